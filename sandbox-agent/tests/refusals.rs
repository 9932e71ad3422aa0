//! Requests that ask for what can't be: each is answered with the path of its field, nothing is held or executed for it, and it is
//! recorded. With a real sandbox and a real workspace.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/rig.rs"]
#[allow(dead_code, reason = "what other tests of the agent need")]
mod rig;

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    sync::atomic::Ordering,
};

use exchequer_auth::Role;
use exchequer_event::v1::{self, event::Kind, input_file::Source};
use rig::{Metering, Rig};
use tonic::Code;
use tonic_types::StatusExt as _;

fn run(program: &str, arguments: &[&str]) -> v1::ExecuteRequest {
    v1::ExecuteRequest {
        program: program.into(),
        arguments: arguments.iter().map(|&a| a.into()).collect(),
        ..v1::ExecuteRequest::default()
    }
}

fn input(path: &str) -> v1::InputFile {
    v1::InputFile { path: path.into(), source: Some(Source::Content("x".into())) }
}

fn from_workspace(path: &str) -> v1::InputFile {
    v1::InputFile { path: "in".into(), source: Some(Source::WorkspacePath(path.into())) }
}

fn with_inputs(inputs: Vec<v1::InputFile>) -> v1::ExecuteRequest {
    v1::ExecuteRequest { inputs, ..run("/bin/true", &[]) }
}

fn output(path: &str, workspace_path: &str) -> v1::OutputFile {
    v1::OutputFile { path: path.into(), workspace_path: workspace_path.into() }
}

fn with_outputs(outputs: Vec<v1::OutputFile>) -> v1::ExecuteRequest {
    v1::ExecuteRequest { outputs, ..run("/bin/true", &[]) }
}

/// Everything in a tenant's directory that is no input.
fn furnish(workspace: &Path) {
    let acme = workspace.join("acme");
    fs::create_dir_all(acme.join("dir")).unwrap();
    fs::create_dir(workspace.join("globex")).unwrap();
    fs::write(workspace.join("globex/secret"), "theirs").unwrap();
    fs::write(acme.join("file"), "content").unwrap();
    fs::write(acme.join("large"), vec![0; 70 << 10]).unwrap();
    fs::hard_link(workspace.join("globex/secret"), acme.join("hard")).unwrap();
    symlink("../globex/secret", acme.join("link")).unwrap();
    symlink("../globex", acme.join("theirs")).unwrap();
    drop(UnixListener::bind(acme.join("socket")).unwrap());
    let made = std::process::Command::new("mkfifo").arg(acme.join("fifo")).status().unwrap();
    assert!(made.success());
}

/// Asserts that the request is refused as it has to be, and that this left a record and nothing else.
async fn check(rig: &Rig, code: Code, field: &str, request: v1::ExecuteRequest) {
    let before = rig.recorded().len();
    let program = request.program.clone();
    let status = rig.execute("acme", request).await.unwrap_err();
    assert_eq!(status.code(), code, "{field}: {status:?}");
    let violations = status.get_details_bad_request().unwrap().field_violations;
    assert!(violations.iter().any(|v| v.field == field), "{field}: {violations:?}");
    assert_eq!(rig.asked().holds.load(Ordering::Relaxed), 0, "{field}: nothing is held");
    let events = &rig.recorded()[before..];
    let [event] = events else { panic!("{field}: {events:?}") };
    let Some(Kind::ExecutionDenied(denied)) = &event.kind else { panic!("{field}: {event:?}") };
    assert_eq!(denied.gate(), v1::DenialGate::Request, "{field}");
    assert!(denied.reason.contains(field), "{field}: {}", denied.reason);
    assert!(denied.reason.len() <= 1024 && denied.program.len() <= 1024);
    assert_eq!((event.tenant.as_str(), denied.caller.as_str()), ("acme", "caller"));
    assert!(program.starts_with(&denied.program) && !event.execution_id.is_empty());
}

#[tokio::test]
async fn what_can_not_be_is_refused_by_its_field_and_recorded_and_nothing_runs() {
    let workspace = exchequer_testkit::temp_dir();
    furnish(workspace.path());
    let rig = Rig::start_in(exchequer_testkit::temp_dir(), Metering::Grants, |options| {
        options.workspace = Some(workspace.path().to_owned());
        options.max_input_bytes = 64 << 10;
    })
    .await;
    let refused = async |field: &str, request| check(&rig, Code::InvalidArgument, field, request).await;
    let ok = || run("/bin/true", &[]);

    refused("program", run("true", &[])).await;
    refused("program", run("", &[])).await;
    refused("program", run("/no/such/program", &[])).await;
    refused("program", run("/usr/bin/no-such-program", &[])).await;
    refused("program", run("/usr/bin", &[])).await;
    refused("program", run("/tmp/in", &[])).await;
    refused("program", run(&format!("/{}", "x".repeat(2000)), &[])).await;
    refused("program", run("/bin/a\0b", &[])).await;
    refused("arguments", run("/bin/true", &["x"; 257])).await;
    refused("arguments", run("/bin/true", &[&"x".repeat(17 << 10)])).await;
    refused("arguments[0]", run("/bin/true", &["a\0b"])).await;

    let environment = |variables: Vec<(String, String)>| v1::ExecuteRequest {
        environment: variables.into_iter().collect(),
        ..ok()
    };
    refused("environment", environment((0..65).map(|i| (format!("V{i}"), String::new())).collect())).await;
    refused("environment", environment(vec![("V".into(), "x".repeat(17 << 10))])).await;
    refused("environment", environment(vec![("A=B".into(), "x".into())])).await;
    refused("environment[V]", environment(vec![("V".into(), "a\0b".into())])).await;

    let limits = |limits| v1::ExecuteRequest { limits: Some(limits), ..ok() };
    let none = v1::Limits::default;
    refused("limits.cpu_ms", limits(v1::Limits { cpu_ms: u64::MAX, ..none() })).await;
    refused("limits.wall_ms", limits(v1::Limits { wall_ms: 60_001, ..none() })).await;
    refused("limits.memory_bytes", limits(v1::Limits { memory_bytes: 1, ..none() })).await;
    refused("limits.memory_bytes", limits(v1::Limits { memory_bytes: 1 << 63, ..none() })).await;
    refused("limits.output_bytes", limits(v1::Limits { output_bytes: (64 << 20) + 1, ..none() })).await;
    refused("limits.egress_bytes", limits(v1::Limits { egress_bytes: 1, ..none() })).await;
    refused("max_wait_ms", v1::ExecuteRequest { max_wait_ms: u64::MAX, ..ok() }).await;

    refused("stdin", v1::ExecuteRequest { stdin: vec![0; (1 << 20) + 1].into(), ..ok() }).await;
    refused("profile", v1::ExecuteRequest { profile: "no-such-profile".into(), ..ok() }).await;
    refused("skill", v1::ExecuteRequest { skill: "Sum up".into(), ..ok() }).await;
    refused("scope", v1::ExecuteRequest { scope: "a//b".into(), ..ok() }).await;
    refused("scope", v1::ExecuteRequest { scope: "a/b/c/d/e/f".into(), ..ok() }).await;
    let extra = |meter: &str, amount| v1::ExecuteRequest {
        extra_holds: vec![v1::MeterAmount { meter: meter.into(), amount }],
        ..ok()
    };
    refused("extra_holds[0]", extra("cpu_ms", 1)).await;
    refused("extra_holds[0]", extra("input_tokens", 0)).await;
    refused("extra_holds[0]", extra("input_tokens", u64::MAX)).await;
    // As many as the throttle records at once; the rest has an agent of its own.
    assert!(rig.recorded().len() < 64);
}

#[tokio::test]
async fn files_that_can_not_be_inputs_or_outputs_are_refused_by_their_field() {
    let workspace = exchequer_testkit::temp_dir();
    furnish(workspace.path());
    let rig = Rig::start_in(exchequer_testkit::temp_dir(), Metering::Grants, |options| {
        options.workspace = Some(workspace.path().to_owned());
        options.max_input_bytes = 64 << 10;
    })
    .await;
    let refused = async |field: &str, request| check(&rig, Code::InvalidArgument, field, request).await;
    for path in ["", "/etc/x", "../x", "a/../x", "a//b", "./a", "a/", "a\0b"] {
        refused("inputs[0].path", with_inputs(vec![input(path)])).await;
        refused("outputs[0].path", with_outputs(vec![output(path, "")])).await;
    }
    refused("inputs[0].path", with_inputs(vec![input(&"x".repeat(1025))])).await;
    refused("inputs[0].path", with_inputs(vec![input(&"x".repeat(256))])).await;
    // More faults than are told.
    refused("inputs[0].path", with_inputs((0..64).map(|_| input("../x")).collect())).await;
    refused("inputs[1].path", with_inputs(vec![input("a"), input("a")])).await;
    refused("inputs[0].path", with_inputs(vec![input("a/b"), input("a")])).await;
    refused("inputs", with_inputs((0..65).map(|i| input(&i.to_string())).collect())).await;
    refused("inputs", with_inputs((0..64).map(|i| input(&format!("{i:064}x"))).collect())).await;
    refused("inputs[0]", with_inputs(vec![v1::InputFile { path: "a".into(), source: None }])).await;
    let large = v1::InputFile { source: Some(Source::Content(vec![0; (1 << 20) + 1].into())), ..input("a") };
    refused("inputs", with_inputs(vec![large])).await;
    let large = v1::InputFile { source: Some(Source::Content(vec![0; 65 << 10].into())), ..input("a") };
    refused("inputs[0].content", with_inputs(vec![large])).await;
    for path in [
        "/etc/passwd",
        "../globex/secret",
        "dir/../../globex/secret",
        "link",
        "theirs/secret",
        "hard",
        "dir",
        "fifo",
        "socket",
        "nothing",
        "file/x",
        "large",
    ] {
        refused("inputs[0].workspace_path", with_inputs(vec![from_workspace(path)])).await;
    }
    refused("outputs[1].path", with_outputs(vec![output("a", ""), output("a", "")])).await;
    let both = v1::ExecuteRequest { inputs: vec![input("a")], ..with_outputs(vec![output("a", "")]) };
    refused("outputs[0].path", both).await;
    let twice = with_outputs(vec![output("a", "x"), output("b", "x")]);
    refused("outputs[1].workspace_path", twice).await;
    for path in ["/x", "../globex/x", "theirs/x", "link", "dir", "none/x", "hard", "fifo"] {
        refused("outputs[0].workspace_path", with_outputs(vec![output("a", path)])).await;
    }
    assert_eq!(fs::read_to_string(workspace.path().join("globex/secret")).unwrap(), "theirs");
}

#[tokio::test]
async fn what_the_host_lacks_is_a_precondition() {
    let lacking = Code::FailedPrecondition;
    let rig = Rig::start(Metering::Grants).await;
    check(&rig, lacking, "inputs", with_inputs(vec![from_workspace("file")])).await;
    check(&rig, lacking, "outputs", with_outputs(vec![output("a", "x")])).await;
    let workspace = exchequer_testkit::temp_dir();
    let rig = Rig::start_in(exchequer_testkit::temp_dir(), Metering::Grants, |options| {
        options.workspace = Some(workspace.path().to_owned());
    })
    .await;
    check(&rig, lacking, "inputs", with_inputs(vec![from_workspace("file")])).await;
}

#[tokio::test]
async fn garbage_of_a_tenant_is_counted_and_does_not_fill_the_spool() {
    let rig = Rig::start(Metering::Grants).await;
    let garbage = || v1::ExecuteRequest {
        arguments: vec!["--password=hunter2".into(), "\0".into()],
        environment: (0..64).map(|i| (format!("{i}{}", "\u{1F4A9}".repeat(900)), String::new())).collect(),
        ..run(&"/x".repeat(9000), &[])
    };
    for _ in 0..400 {
        rig.execute("acme", garbage()).await.unwrap_err();
    }
    let events = rig.recorded();
    let denials = events.len() - 1;
    // Some come back while this runs: eight a second.
    assert!((64..300).contains(&denials), "{denials}");
    assert!(rig.spool().status().await.kept_bytes < 1 << 20);
    assert!(!format!("{events:?}").contains("hunter2"));
    rig.execute("globex", garbage()).await.unwrap_err();
    let (event, denied) = rig.last_denial().unwrap();
    assert_eq!(event.tenant, "globex", "another tenant's are recorded all the same: {denied:?}");
    exchequer_testkit::eventually(std::time::Duration::from_secs(10), || async {
        rig.execute("acme", garbage()).await.unwrap_err();
        rig.last_denial().is_some_and(|(_, denied)| denied.reason.contains("were not recorded"))
    })
    .await;
}

#[tokio::test]
async fn a_name_that_is_none_is_refused_and_kept_out_of_the_record() {
    let rig = Rig::start(Metering::Grants).await;
    let admin = |tenant: &str| rig.token(tenant, Role::Admin);
    let asked = v1::ExecuteRequest { tenant: "no tenant/at all".into(), ..run("/bin/true", &[]) };
    let status = rig.execute_as(Some(admin("acme")), asked).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let (event, denied) = rig.last_denial().unwrap();
    assert_eq!((event.tenant.as_str(), denied.gate()), ("", v1::DenialGate::Request));
    let before = rig.recorded().len();
    let reader = rig.token("acme", Role::Auditor);
    rig.execute_as(Some(reader), run("\0", &[])).await.unwrap_err();
    rig.execute_as(None, run("\0", &[])).await.unwrap_err();
    assert_eq!(rig.recorded().len(), before, "who may not ask leaves no record");
}
