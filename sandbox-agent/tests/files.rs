//! Files that go into an execution and come out of it, by the RPC, with a real sandbox and a real workspace.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/rig.rs"]
#[allow(dead_code, reason = "what other tests of the agent need")]
mod rig;

use std::{collections::BTreeMap, fs};

use exchequer_event::{
    payload::PayloadKey,
    v1::{self, event::Kind, execute_response::Part, input_file::Source},
};
use rig::{Metering, Rig};
use sandbox_agent::Options;

fn shell(script: &str) -> v1::ExecuteRequest {
    v1::ExecuteRequest {
        program: "/bin/sh".into(),
        arguments: vec!["-c".into(), script.into()],
        ..v1::ExecuteRequest::default()
    }
}

fn content(path: &str, content: &str) -> v1::InputFile {
    v1::InputFile { path: path.into(), source: Some(Source::Content(content.to_owned().into())) }
}

fn output(path: &str, workspace_path: &str) -> v1::OutputFile {
    v1::OutputFile { path: path.into(), workspace_path: workspace_path.into() }
}

/// What an execution answered.
struct Answer {
    admitted: v1::ExecutionAdmitted,
    finished: v1::ExecutionFinished,
    stdout: Vec<u8>,
    files: BTreeMap<u32, Vec<u8>>,
}

async fn execute(rig: &Rig, request: v1::ExecuteRequest) -> Answer {
    let parts = rig.execute("acme", request).await.unwrap();
    let (mut admitted, mut finished) = (None, None);
    let (mut stdout, mut files) = (Vec::new(), BTreeMap::<u32, Vec<u8>>::new());
    for part in parts.into_iter().flatten() {
        assert!(finished.is_none(), "the outcome is last");
        match part {
            Part::Admitted(part) => admitted = part.record,
            Part::Stdout(bytes) => stdout.extend(bytes),
            Part::Stderr(bytes) => panic!("{}", String::from_utf8_lossy(&bytes)),
            Part::Artifact(chunk) => files.entry(chunk.output).or_default().extend(chunk.data),
            Part::Finished(part) => finished = part.record,
        }
    }
    Answer { admitted: admitted.unwrap(), finished: finished.unwrap(), stdout, files }
}

async fn with_workspace(change: impl FnOnce(&mut Options)) -> (tempfile::TempDir, Rig) {
    let workspace = exchequer_testkit::temp_dir();
    fs::create_dir_all(workspace.path().join("acme/out")).unwrap();
    fs::write(workspace.path().join("acme/table"), "from the workspace\n").unwrap();
    let path = workspace.path().to_owned();
    let rig = Rig::start_in(exchequer_testkit::temp_dir(), Metering::Grants, |options| {
        options.workspace = Some(path);
        change(options);
    })
    .await;
    (workspace, rig)
}

fn b3(bytes: &[u8]) -> Vec<u8> {
    blake3::hash(bytes).as_bytes().to_vec()
}

#[tokio::test]
async fn files_go_in_and_come_out_and_both_are_recorded_by_what_they_are() {
    let (workspace, rig) = with_workspace(|_| {}).await;
    fs::write(workspace.path().join("acme/out/kept"), "old").unwrap();
    let mut request = shell("cat a/b/inline table; printf one > one; mkdir d; printf kept > d/two");
    let from_workspace = Some(Source::WorkspacePath("table".into()));
    request.inputs = vec![
        content("a/b/inline", "inline\n"),
        v1::InputFile { path: "table".into(), source: from_workspace },
        content("empty", ""),
    ];
    request.outputs = vec![output("one", ""), output("d/two", "out/kept"), output("none", "")];
    let answer = execute(&rig, request).await;
    assert_eq!(String::from_utf8(answer.stdout).unwrap(), "inline\nfrom the workspace\n");
    let [inline, table, empty] = &answer.admitted.inputs[..] else { panic!() };
    assert_eq!(
        (inline.path.as_str(), inline.size, &inline.digest[..]),
        ("a/b/inline", 7, &b3(b"inline\n")[..])
    );
    assert_eq!((table.path.as_str(), table.size), ("table", 19));
    assert_eq!((empty.size, &empty.digest[..]), (0, &b3(b"")[..]));
    let [one, two, none] = &answer.finished.artifacts[..] else { panic!() };
    assert_eq!((one.path.as_str(), &one.digest[..]), ("one", &b3(b"one")[..]));
    assert_eq!(hex::encode(&two.sha256), "79f076abdd19a752db7267bfff2f9022161d120dea919fdaca2ffdfc24ca8c96");
    assert_eq!((none.digest.len(), none.sha256.len(), none.problem.is_empty()), (0, 0, false));
    assert_eq!(answer.files[&0], b"one");
    assert_eq!(answer.files[&1], b"kept");
    assert!(!answer.files.contains_key(&2));
    assert_eq!(fs::read_to_string(workspace.path().join("acme/out/kept")).unwrap(), "kept");
    let events = rig.recorded();
    let recorded = events.iter().filter_map(|event| event.kind.as_ref());
    let of = |kind: &Kind| match kind {
        Kind::ExecutionAdmitted(admitted) => *admitted == answer.admitted,
        Kind::ExecutionFinished(finished) => *finished == answer.finished,
        _ => false,
    };
    assert_eq!(recorded.filter(|kind| of(kind)).count(), 2, "what was answered is what is recorded");
}

#[tokio::test]
async fn an_output_that_is_no_plain_file_is_recorded_as_a_problem_and_kept_nowhere() {
    let (workspace, rig) = with_workspace(|_| {}).await;
    let script =
        "ln -s /etc/passwd link; mkfifo fifo; mkdir dir; echo x > x; ln x hard; ln -s . here; echo y > y";
    let mut request = shell(script);
    request.outputs = ["link", "fifo", "dir", "x", "hard", "here/y", "missing"]
        .map(|path| output(path, &format!("out/{}", path.replace('/', "-"))))
        .to_vec();
    let answer = execute(&rig, request).await;
    for file in &answer.finished.artifacts {
        assert!(!file.problem.is_empty() && file.digest.is_empty() && file.size == 0, "{file:?}");
    }
    assert_eq!((answer.finished.artifacts.len(), answer.files.len()), (7, 0));
    assert_eq!(fs::read_dir(workspace.path().join("acme/out")).unwrap().count(), 0);
}

#[tokio::test]
async fn what_did_not_end_by_itself_replaces_nothing_in_the_workspace() {
    let (workspace, rig) = with_workspace(|_| {}).await;
    fs::write(workspace.path().join("acme/out/kept"), "good").unwrap();
    let mut request = shell("printf cut > kept; printf seen > seen; sleep 60");
    request.limits = Some(v1::Limits { wall_ms: 2000, ..v1::Limits::default() });
    request.outputs = vec![output("kept", "out/kept"), output("seen", "")];
    let answer = execute(&rig, request).await;
    assert_eq!(answer.finished.cause(), v1::ExitCause::WallLimit);
    let [kept, seen] = &answer.finished.artifacts[..] else { panic!() };
    assert_eq!(kept.problem, "not kept: the execution did not end by itself");
    assert_eq!((seen.problem.as_str(), answer.files.get(&1).map(Vec::as_slice)), ("", Some(&b"seen"[..])));
    assert_eq!(fs::read_to_string(workspace.path().join("acme/out/kept")).unwrap(), "good");
}

#[tokio::test]
async fn outputs_are_bounded_and_what_fits_is_handed_out() {
    let (workspace, rig) = with_workspace(|options| options.max_artifact_bytes = 200_000).await;
    let script = "head -c 150000 /dev/zero > a; head -c 60000 /dev/zero > b; head -c 50000 /dev/zero > c";
    let mut request = shell(script);
    request.outputs = vec![output("a", ""), output("b", "out/b"), output("c", "out/c")];
    let answer = execute(&rig, request).await;
    let sizes: Vec<_> = answer.finished.artifacts.iter().map(|file| file.size).collect();
    assert_eq!(sizes, [150_000, 0, 50_000]);
    assert!(answer.finished.artifacts[1].problem.contains("larger"));
    assert_eq!((answer.files[&0].len(), answer.files[&2].len()), (150_000, 50_000));
    let names = fs::read_dir(workspace.path().join("acme/out")).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["c"], "nothing half done is left");
}

#[tokio::test]
async fn digests_of_input_and_result_depend_on_the_files() {
    let (_workspace, rig) = with_workspace(|_| {}).await;
    let of = async |given: &[(&str, &str)], script: &str, outputs: &[&str]| {
        let mut request = shell(script);
        request.inputs = given.iter().map(|(path, text)| content(path, text)).collect();
        request.outputs = outputs.iter().map(|path| output(path, "")).collect();
        let answer = execute(&rig, request).await;
        (answer.admitted.input_digest, answer.finished.result_digest)
    };
    let script = "[ -e a ] && cp a o || printf none > o";
    let base = of(&[("a", "1")], script, &["o"]).await;
    assert_eq!(of(&[("a", "1")], script, &["o"]).await, base);
    let other = of(&[("a", "2")], script, &["o"]).await;
    assert!(other.0 != base.0 && other.1 != base.1);
    let moved = of(&[("b", "1")], script, &["o"]).await;
    assert!(moved.0 != base.0 && moved.1 != base.1);
    let without = of(&[("a", "1")], script, &[]).await;
    assert!(without.0 == base.0 && without.1 != base.1, "an output is no input");
}

#[tokio::test]
async fn the_largest_request_can_be_recorded_encrypted_too() {
    let (_workspace, rig) = with_workspace(|options| {
        options.payload_keys.insert("acme".into(), PayloadKey::new(&[7; 32]));
    })
    .await;
    let mut request = shell("true");
    request.arguments.extend((0..254).map(|_| "x".repeat(63)));
    let name = |kind: &str, place: usize| format!("{kind}{place:063}");
    request.inputs = (0..64).map(|place| content(&name("i", place), "x")).collect();
    request.outputs = (0..64).map(|place| output(&name("o", place), "")).collect();
    request.skill = "s".repeat(63);
    request.scope = ["t"; 5].map(|segment| segment.repeat(64)).join("/");
    let answer = execute(&rig, request).await;
    assert_eq!((answer.admitted.inputs.len(), answer.finished.artifacts.len()), (64, 64));
    let sizes = rig.recorded().into_iter().map(|event| prost::Message::encoded_len(&event));
    let largest = sizes.max().unwrap();
    assert!(largest < 28 << 10, "{largest} bytes, and controls have more to say on other hosts");
}
