//! Files go into the work area and come out of it, and nothing else does, whatever the program tries.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::PathBuf;

use sandbox_agent::sandbox::{ExitCause, Given, Outcome, SandboxError, Spec};
use tokio::sync::mpsc;

use crate::rig::{HOSTS, Host, finish, rig, shell};

fn content(bytes: &[u8]) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    // Wherever it stands: contents are read from their beginning.
    file.seek(SeekFrom::End(0)).unwrap();
    file.into()
}

fn paths(paths: &[&str]) -> Vec<PathBuf> {
    paths.iter().map(PathBuf::from).collect()
}

async fn run_with(host: Host, spec: &Spec, files: Vec<OwnedFd>) -> Result<(String, Outcome), SandboxError> {
    let (sender, output) = mpsc::channel(16);
    let given = Given { stdin: None, files };
    let prepared = host.sandbox().prepare(spec, given, sender).await?;
    let ran = finish(prepared.release().await?, output).await;
    Ok((ran.stdout + &ran.stderr, ran.outcome))
}

/// What each output is: its bytes, or the problem.
fn taken(outcome: Outcome) -> Vec<Result<String, String>> {
    let read = |file: OwnedFd| {
        let mut text = String::new();
        File::from(file).read_to_string(&mut text).unwrap();
        text
    };
    outcome.files.into_iter().map(|file| file.map(read).map_err(|problem| problem.to_string())).collect()
}

fn hosts() -> impl Iterator<Item = Host> {
    HOSTS.into_iter().filter(|host| *host != Host::Restricted || !Host::AsIs.allows_namespaces())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_in_is_there_before_the_program_and_what_it_leaves_comes_out() {
    for host in HOSTS {
        let mut spec =
            shell("cat a/b/in two; stat -c %a a/b/in a; id -u > user; cp two a/out; stat -c %u two");
        spec.inputs = paths(&["a/b/in", "two"]);
        spec.outputs = paths(&["a/out", "user"]);
        let big = vec![b'x'; 3 << 20];
        let mut expected = String::from_utf8(big.clone()).unwrap();
        let (output, outcome) = run_with(host, &spec, vec![content(b"one\n"), content(&big)]).await.unwrap();
        assert_eq!(outcome.cause, ExitCause::Exited { code: 0 }, "{host:?}");
        let files = taken(outcome);
        let user = files[1].clone().unwrap();
        assert_eq!(files[0], Ok(expected.clone()), "{host:?}");
        expected = format!("one\n{expected}600\n700\n{user}");
        assert_eq!(output, expected, "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_a_regular_file_with_one_name_comes_out() {
    let script = "echo inside > real; ln -s /etc/passwd link; ln -s real inner; ln real second; mkfifo fifo; mkdir dir; \
                  mkdir way; echo x > way/file; mv way away; ln -s away way; ln -s / root; ln -s .. up; echo x > shut; \
                  chmod 0 shut; rm -f gone";
    let expected = [
        ("real", "has 2 hard links"),
        ("second", "has 2 hard links"),
        ("link", "is a symbolic link"),
        ("inner", "is a symbolic link"),
        ("fifo", "is a fifo"),
        ("dir", "is a directory"),
        ("way/file", "leads through a symbolic link"),
        ("root/etc/passwd", "leads through a symbolic link"),
        ("up/etc/passwd", "leads through a symbolic link"),
        ("real/x", "leads through something that is not a directory"),
        ("shut", "can't be opened: Permission denied (os error 13)"),
        ("gone", "does not exist"),
    ];
    for host in HOSTS {
        let mut spec = shell(script);
        spec.outputs =
            expected.iter().map(|(path, _)| PathBuf::from(path)).chain(paths(&["away/file"])).collect();
        let (output, outcome) = run_with(host, &spec, vec![]).await.unwrap();
        assert_eq!((output.as_str(), &outcome.cause), ("", &ExitCause::Exited { code: 0 }), "{host:?}");
        let files = taken(outcome);
        for ((path, problem), file) in expected.iter().zip(&files) {
            assert_eq!(file, &Err((*problem).to_owned()), "{host:?}: {path}");
        }
        assert_eq!(files.last().unwrap(), &Ok("x\n".to_owned()), "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_or_socket_can_not_even_be_made() {
    for host in HOSTS {
        let mut spec = shell(
            "mknod dev c 1 3; echo $?; /usr/bin/python3 -c 'import socket; \
             socket.socket(socket.AF_UNIX).bind(\"sock\")' 2>/dev/null; echo $?",
        );
        spec.outputs = paths(&["dev", "sock"]);
        let (output, outcome) = run_with(host, &spec, vec![]).await.unwrap();
        assert!(output.starts_with("1\n1\n"), "{host:?}: {output}");
        assert_eq!(taken(outcome), ["dev", "sock"].map(|_| Err("does not exist".to_owned())), "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_path_that_is_mounted_in_the_work_area_does_not_come_out() {
    for host in hosts() {
        let visible = rig().join("attack");
        let below = visible.strip_prefix("/tmp").expect("the work area covers the rig").to_owned();
        let mut spec = shell("true");
        spec.profile = spec.profile.with_read_only(&visible);
        spec.outputs = vec![below.clone()];
        let (_, outcome) = run_with(host, &spec, vec![]).await.unwrap();
        assert_eq!(taken(outcome), [Err("leads out of the work area".to_owned())], "{host:?}");
        spec.outputs.clear();
        spec.inputs = vec![below.parent().unwrap().join("attack")];
        let error = run_with(host, &spec, vec![content(b"x")]).await.unwrap_err();
        assert!(
            matches!(&error, SandboxError::Launch { stage, .. } if stage == "inputs[0]"),
            "{host:?}: {error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_race_of_renames_never_leads_outside() {
    // Goes on until it is killed: files are opened only when nobody is left to rename anything.
    let script = "mkdir d; echo mine > d/passwd; ln -s /etc l; (while :; do mv -T d x; mv -T l d; mv -T d l; mv -T x d; done) & \
                  sleep 0.2";
    for host in HOSTS {
        let mut spec = shell(script);
        spec.outputs = paths(&["d/passwd"]);
        for _ in 0..5 {
            let (_, outcome) = run_with(host, &spec, vec![]).await.unwrap();
            let [file] = &taken(outcome)[..] else { panic!() };
            let harmless =
                ["leads through a symbolic link", "does not exist"].map(|text| Err(text.to_owned()));
            assert!(*file == Ok("mine\n".to_owned()) || harmless.contains(file), "{host:?}: {file:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_is_not_a_regular_file_is_refused_before_anything_runs() {
    for host in HOSTS {
        let mut spec = shell("true");
        spec.inputs = paths(&["good", "bad"]);
        for bad in ["/dev/zero", "/proc/self/ns", "/"] {
            let files = vec![content(b""), File::open(bad).unwrap().into()];
            let error = run_with(host, &spec, files).await.unwrap_err();
            let SandboxError::Launch { stage, errno } = &error else { panic!("{host:?}: {bad}: {error}") };
            assert_eq!((stage.as_str(), *errno), ("inputs[1]", libc::EINVAL), "{host:?}: {bad}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_beyond_the_work_area_fail_the_launch() {
    for host in HOSTS.into_iter().filter(|host| host.allows_namespaces()) {
        let mut spec = shell("true");
        spec.profile.work.size_bytes = 1 << 20;
        spec.inputs = paths(&["big"]);
        let error = run_with(host, &spec, vec![content(&vec![0; 2 << 20])]).await.unwrap_err();
        let SandboxError::Launch { stage, errno } = &error else { panic!("{host:?}: {error}") };
        assert_eq!((stage.as_str(), *errno), ("inputs[0]", libc::ENOSPC), "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_in_the_place_of_another_is_refused() {
    let mut spec = shell("true");
    spec.inputs = paths(&["a", "a/b"]);
    let error = run_with(Host::AsIs, &spec, vec![content(b""), content(b"")]).await.unwrap_err();
    assert!(matches!(&error, SandboxError::Launch { stage, .. } if stage == "inputs[1]"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_of_a_killed_execution_come_out_too() {
    for host in HOSTS {
        let mut spec = shell("echo kept > file; while :; do :; done");
        spec.limits.cpu_ms = 200;
        spec.outputs = paths(&["file"]);
        let (_, outcome) = run_with(host, &spec, vec![]).await.unwrap();
        assert_eq!(outcome.cause, ExitCause::CpuLimit, "{host:?}");
        assert_eq!(taken(outcome), [Ok("kept\n".to_owned())], "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_at_fault_are_refused_by_field() {
    for (path, problem) in [
        ("../x", "contains '..'"),
        ("a/../../x", "contains '..'"),
        ("/etc/passwd", "is absolute"),
        ("", "names no file"),
        ("a/", "names no file"),
        ("./a", "contains '.' or '//'"),
        ("a//b", "contains '.' or '//'"),
        ("a\0b", "is not UTF-8 or contains a NUL byte"),
        (&"x".repeat(1025), "is longer than 1024 bytes"),
    ] {
        for field in ["inputs", "outputs"] {
            let mut spec = shell("true");
            let list = vec![PathBuf::from("fine"), PathBuf::from(path)];
            if field == "inputs" {
                spec.inputs = list;
            } else {
                spec.outputs = list;
            }
            let files = spec.inputs.iter().map(|_| content(b"")).collect();
            let SandboxError::Spec(fault) = run_with(Host::AsIs, &spec, files).await.unwrap_err() else {
                panic!()
            };
            assert_eq!((fault.field, fault.problem.as_str()), (format!("{field}[1]"), problem), "{path:?}");
        }
    }
    let mut spec = shell("true");
    spec.inputs = paths(&["a"]);
    let SandboxError::Spec(fault) = run_with(Host::AsIs, &spec, vec![]).await.unwrap_err() else { panic!() };
    assert_eq!(fault.field, "inputs");
    spec.inputs = (0..65).map(|n| PathBuf::from(n.to_string())).collect();
    assert_eq!(spec.check().unwrap_err().field, "inputs");
    spec.inputs = (0..30).map(|n| PathBuf::from(format!("{n}{}", "x".repeat(1000)))).collect();
    assert_eq!(spec.check().unwrap_err().field, "inputs");
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_files_go_in_and_come_out() {
    for host in HOSTS {
        let mut spec = shell("true");
        spec.inputs = (0..64).map(|n| PathBuf::from(format!("f{n}"))).collect();
        spec.outputs = spec.inputs.clone();
        let files = (0..64).map(|n| content(format!("{n}").as_bytes())).collect();
        let (_, outcome) = run_with(host, &spec, files).await.unwrap();
        let expected = (0..64).map(|n| Ok(n.to_string())).collect::<Vec<_>>();
        assert_eq!(taken(outcome), expected, "{host:?}");
    }
}

#[test]
fn the_attacks_on_paths_work_where_nothing_confines_them() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("real"), "x").unwrap();
    symlink("/etc/passwd", dir.path().join("link")).unwrap();
    fs::hard_link(dir.path().join("real"), dir.path().join("second")).unwrap();
    assert_eq!(fs::read(dir.path().join("link")).unwrap(), fs::read("/etc/passwd").unwrap());
    assert_eq!(fs::metadata(dir.path().join("second")).unwrap().nlink(), 2);
}
