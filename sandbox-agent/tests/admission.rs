//! The admission path by its RPCs, with a real sandbox, a real spool and a metering service that answers as it is told.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/rig.rs"]
#[allow(dead_code, reason = "what other tests of the agent need")]
mod rig;

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Command,
    sync::atomic::Ordering,
    time::Duration,
};

use exchequer_auth::Role;
use exchequer_config::Reader;
use exchequer_event::{
    bundle,
    v1::{self, event::Kind, execute_response::Part},
};
use futures::StreamExt as _;
use rig::{Metering, Rig};
use sandbox_agent::{
    profiles::{Profiles, built_in},
    spool::{NewEvent, Spool},
};
use tonic::Code;
use tonic_types::StatusExt as _;

fn run(program: &str, arguments: &[&str]) -> v1::ExecuteRequest {
    v1::ExecuteRequest {
        program: program.into(),
        arguments: arguments.iter().map(|&a| a.into()).collect(),
        ..v1::ExecuteRequest::default()
    }
}

#[tokio::test]
async fn an_execution_is_recorded_before_it_is_answered_and_says_what_it_used() {
    let rig = Rig::start(Metering::Grants).await;
    let mut request = run("/bin/sh", &["-c", "echo out; echo err >&2; cat; exit 3", "--token=hunter2"]);
    request.stdin = "in".into();
    request.skill = "sum-up".into();
    let parts = rig.execute("acme", request).await.unwrap();
    let Some(Part::Admitted(admitted)) = &parts[0] else { panic!("the first part is {:?}", parts[0]) };
    let Some(Part::Finished(finished)) = parts.last().unwrap() else {
        panic!("the last part is {:?}", parts.last())
    };
    let output = |stderr: bool| -> Vec<u8> {
        let of = |part: &Option<Part>| match part {
            Some(Part::Stdout(bytes)) if !stderr => bytes.to_vec(),
            Some(Part::Stderr(bytes)) if stderr => bytes.to_vec(),
            _ => Vec::new(),
        };
        parts.iter().flat_map(of).collect()
    };
    assert_eq!(output(false), b"out\nin");
    assert_eq!(output(true), b"err\n");

    let record = finished.record.as_ref().unwrap();
    assert_eq!((record.cause(), record.exit_code), (v1::ExitCause::Exited, 3));
    assert_eq!(record.stdout.as_ref().unwrap().size, 6);
    let usage = record.usage.as_ref().unwrap();
    assert_eq!(usage.output_bytes, 10);
    assert!(usage.wall_us > 0 && usage.peak_memory_bytes > 0);

    let events = rig.recorded();
    let of_execution = |event: &&v1::Event| !event.execution_id.is_empty();
    assert!(events.iter().filter(of_execution).all(|event| event.skill == "sum-up"), "{events:?}");
    let place = |head: &Option<v1::AgentHead>| usize::try_from(head.as_ref().unwrap().seq).unwrap() - 1;
    let Some(Kind::ExecutionAdmitted(recorded)) = &events[place(&admitted.position)].kind else { panic!() };
    assert_eq!(Some(recorded), admitted.record.as_ref());
    assert_eq!(recorded.arguments_redacted.last().unwrap(), "--token=[redacted]");
    assert_eq!((recorded.hold_id.as_str(), recorded.scope.as_str()), ("hold-1", "acme"));
    assert!(recorded.controls.iter().any(|control| control.name == "seccomp"));
    let Some(Kind::ExecutionFinished(recorded)) = &events[place(&finished.position)].kind else { panic!() };
    assert_eq!(recorded, record);
    assert_eq!(record.hold_id, "hold-1");
    assert!(!format!("{events:?}").contains("hunter2"));

    // The bundle says the same of what came out and of where it is recorded, under the agent's key.
    let statement = bundle::verify_bundle(&finished.bundle, &rig.agent_key()).unwrap();
    let stdout: bundle::DigestSet = bundle::ContentDigests::of(b"out\nin").into();
    let stderr: bundle::DigestSet = bundle::ContentDigests::of(b"err\n").into();
    assert_eq!(statement.subject("stdout").unwrap().digest, stdout);
    assert_eq!(statement.subject("stderr").unwrap().digest, stderr);
    let said = &statement.predicate;
    assert_eq!((said.execution_id.as_str(), said.hold.id.as_str()), (&*finished.execution_id, "hold-1"));
    assert_eq!(said.recorded.result_digest.0, record.result_digest[..]);
    for (head, said) in [(&admitted.position, &said.admission), (&finished.position, &said.outcome)] {
        let (head, event) = (head.as_ref().unwrap(), &events[place(head)]);
        assert_eq!((said.epoch, said.seq, &said.hash.0[..]), (head.epoch, head.seq, &head.hash[..]));
        assert_eq!(said.time_unix_ms, event.time_unix_ms);
    }
    assert_eq!(said.controls.len(), admitted.record.as_ref().unwrap().controls.len());
    assert!(!format!("{statement:?}").contains("hunter2"));
}

#[tokio::test]
async fn equal_executions_have_equal_results_and_other_output_another() {
    let rig = Rig::start(Metering::Grants).await;
    let digest = async |word: &str| {
        let parts = rig.execute("acme", run("/bin/echo", &[word])).await.unwrap();
        let Some(Part::Finished(finished)) = parts.last().unwrap().clone() else { panic!() };
        finished.record.unwrap().result_digest
    };
    assert_eq!(digest("a").await, digest("a").await);
    assert_ne!(digest("a").await, digest("b").await);
}

#[tokio::test]
async fn without_an_answer_of_metering_nothing_runs_and_the_denial_is_recorded() {
    let rig = Rig::start(Metering::Unavailable).await;
    let status = rig.execute("acme", run("/bin/true", &[])).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let [_, denied] = &rig.recorded()[..] else { panic!("{:?}", rig.recorded()) };
    let Some(Kind::ExecutionDenied(denied)) = &denied.kind else { panic!() };
    assert_eq!(denied.gate(), v1::DenialGate::MeteringUnavailable);
}

#[tokio::test]
async fn a_refusal_of_the_budget_names_scope_and_meter() {
    let rig = Rig::start(Metering::Denies).await;
    let status = rig.execute("acme", run("/bin/true", &[])).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.metadata["scope"], "acme");
    assert_eq!(info.metadata["meter"], "cpu_ms");
    let Some(Kind::ExecutionDenied(denied)) = &rig.recorded()[1].kind else { panic!() };
    assert_eq!((denied.scope.as_str(), denied.meter.as_str()), ("acme", "cpu_ms"));
}

#[tokio::test]
async fn a_program_that_the_kernel_can_not_start_is_an_outcome_and_the_hold_is_charged() {
    let dir = exchequer_testkit::temp_dir();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let script = dir.path().join("script");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    let rig = Rig::start_in(exchequer_testkit::temp_dir(), Metering::Grants, |options| {
        options.profiles = Profiles::built_in(&[dir.path().to_owned()]);
    })
    .await;
    let parts = rig.execute("acme", run(script.to_str().unwrap(), &[])).await.unwrap();
    let Some(Part::Finished(finished)) = parts.last().unwrap() else { panic!() };
    let record = finished.record.as_ref().unwrap();
    assert_eq!(record.cause(), v1::ExitCause::LaunchFailed);
    assert!(record.detail.contains("No such file"), "{}", record.detail);
}

#[tokio::test]
async fn the_profile_that_is_asked_for_is_the_one_that_holds_and_its_digest_is_recorded() {
    let rig = Rig::start(Metering::Grants).await;
    let script = "cp /bin/true ./copy; ./copy && echo executable; ulimit -n; echo $PYTHONNOUSERSITE";
    for (name, recorded, output) in [
        ("", "strict", "256\n\n"),
        ("build", "build", "executable\n1024\n\n"),
        ("python", "python", "1024\n1\n"),
    ] {
        let request = v1::ExecuteRequest { profile: name.into(), ..run("/bin/sh", &["-c", script]) };
        let parts = rig.execute("acme", request).await.unwrap();
        let Some(Part::Admitted(admitted)) = parts.first().unwrap() else { panic!() };
        let record = admitted.record.as_ref().unwrap();
        assert_eq!(record.profile, recorded);
        assert_eq!(record.profile_digest[..], built_in(recorded).unwrap().digest().0, "{recorded}");
        let stdout = parts
            .iter()
            .filter_map(|part| if let Some(Part::Stdout(bytes)) = part { Some(&bytes[..]) } else { None });
        assert_eq!(String::from_utf8(stdout.collect::<Vec<_>>().concat()).unwrap(), output, "{recorded}");
    }
}

#[tokio::test]
async fn a_profiles_limits_hold_beside_the_agents() {
    let directory = exchequer_testkit::temp_dir();
    fs::write(directory.path().join("short.toml"), "name = \"short\"\n[limits]\nwall = \"2s\"\n").unwrap();
    let config = format!("[agent]\nprofiles = {:?}\n", directory.path());
    let mut reader = Reader::new(Some(("agent.toml", &config)), std::iter::empty(), Vec::new());
    let profiles = Profiles::read(&mut reader, &[]);
    reader.finish().unwrap();
    let rig =
        Rig::start_in(exchequer_testkit::temp_dir(), Metering::Grants, |options| options.profiles = profiles)
            .await;
    let asked = |wall_ms| v1::ExecuteRequest {
        profile: "short".into(),
        limits: Some(v1::Limits { wall_ms, ..v1::Limits::default() }),
        ..run("/bin/true", &[])
    };
    let refused = rig.execute("acme", asked(2001)).await.unwrap_err();
    let violation = &refused.get_details_bad_request().unwrap().field_violations[0];
    assert_eq!(violation.field, "limits.wall_ms");
    assert!(violation.description.contains("the profile's maximum of 2000"), "{}", violation.description);
    let parts = rig.execute("acme", asked(0)).await.unwrap();
    let Some(Part::Admitted(admitted)) = parts.first().unwrap() else { panic!() };
    assert_eq!(admitted.record.as_ref().unwrap().limits.unwrap().wall_ms, 2000);
}

#[tokio::test]
async fn only_the_callers_tenant_is_served_and_only_with_the_role() {
    let rig = Rig::start(Metering::Grants).await;
    let asked = |tenant: &str| v1::ExecuteRequest { tenant: tenant.into(), ..run("/bin/true", &[]) };
    rig.execute_as(Some(rig.token("acme", Role::User)), asked("acme")).await.unwrap();
    let other = rig.execute_as(Some(rig.token("acme", Role::User)), asked("other")).await.unwrap_err();
    assert_eq!(other.code(), Code::PermissionDenied);
    let reader = rig.execute_as(Some(rig.token("acme", Role::Auditor)), asked("acme")).await.unwrap_err();
    assert_eq!(reader.code(), Code::PermissionDenied);
    let nobody = rig.execute_as(None, asked("acme")).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_the_execution_and_its_outcome_is_recorded() {
    let rig = Rig::start(Metering::Grants).await;
    let mut parts = rig.begin("acme", run("/bin/sleep", &["20"])).await.unwrap();
    assert!(matches!(parts.message().await.unwrap().unwrap().part, Some(Part::Admitted(_))));
    drop(parts);
    exchequer_testkit::eventually(Duration::from_secs(10), || async {
        rig.recorded().iter().any(|event| {
            matches!(&event.kind, Some(Kind::ExecutionFinished(f)) if f.cause() == v1::ExitCause::Cancelled)
        })
    })
    .await;
}

#[tokio::test]
async fn stopping_records_the_end_of_what_runs_and_the_stop() {
    let rig = Rig::start(Metering::Grants).await;
    let mut parts = rig.begin("acme", run("/bin/sleep", &["0.3"])).await.unwrap();
    parts.message().await.unwrap();
    let events = rig.stop().await;
    assert!(matches!(&events[events.len() - 2].kind, Some(Kind::ExecutionFinished(_))));
    assert!(matches!(&events[events.len() - 1].kind, Some(Kind::AgentStopped(_))));
}

#[tokio::test]
async fn what_ran_when_the_agent_died_is_recorded_as_lost_when_it_comes_back() {
    let dir = exchequer_testkit::temp_dir();
    let (spool, _) = Spool::open(&dir.path().join("agent/spool"), "a", 8 << 20, 8, 0).unwrap();
    let admitted = v1::ExecutionAdmitted { hold_id: "hold-0".into(), ..v1::ExecutionAdmitted::default() };
    let execution_id = "0190b2a4-0000-7000-8000-000000000001";
    let event = NewEvent {
        tenant: "acme".into(),
        execution_id: execution_id.into(),
        skill: "sum-up".into(),
        kind: Kind::ExecutionAdmitted(admitted),
    };
    spool.record(event).await.unwrap();
    drop(spool);
    let rig = Rig::start_in(dir, Metering::Grants, |_| {}).await;
    let events = rig.recorded();
    let last = events.last().unwrap();
    let Some(Kind::ExecutionFinished(lost)) = &last.kind else { panic!("{events:?}") };
    assert_eq!((lost.cause(), lost.hold_id.as_str()), (v1::ExitCause::Lost, "hold-0"));
    assert_eq!(last.skill, "sum-up");
    assert_eq!((last.tenant.as_str(), last.execution_id.as_str()), ("acme", execution_id));
}

#[tokio::test]
async fn capabilities_come_from_a_probe() {
    let rig = Rig::start(Metering::Grants).await;
    let controls = rig.capabilities().await.controls;
    let seccomp = controls.iter().find(|control| control.name == "seccomp").unwrap();
    assert!(!seccomp.evidence.is_empty());
    assert_ne!(seccomp.status(), v1::ControlStatus::Unspecified);
}

#[tokio::test]
async fn a_control_that_is_not_required_may_be_missing_and_that_is_recorded() {
    let (_dir, helper) = restricted_helper();
    let missing = ["user_namespace", "pid_namespace"];
    let started = |not_required: Vec<String>| {
        let helper = helper.clone();
        Rig::start_in(exchequer_testkit::temp_dir(), Metering::Grants, move |options| {
            options.helper = helper;
            options.allow_degraded = false;
            options.not_required = not_required;
        })
    };
    let rig = started(missing.map(str::to_owned).to_vec()).await;
    let status = rig.execute("acme", run("/bin/true", &[])).await.unwrap_err();
    let info = status.get_details_error_info().unwrap();
    assert!(info.metadata.contains_key("net_namespace") && !info.metadata.contains_key("user_namespace"));
    let names = rig.capabilities().await.controls.into_iter();
    let names = names.filter(|control| control.status() != v1::ControlStatus::Enforced);
    let names: Vec<_> = names.map(|control| control.name).collect();
    let rig = started(names.clone()).await;
    rig.execute("acme", run("/bin/true", &[])).await.unwrap();
    let [started, degraded, _, _] = &rig.recorded()[..] else { panic!("{:?}", rig.recorded()) };
    let Some(Kind::AgentStarted(started)) = &started.kind else { panic!() };
    assert_eq!((started.allow_degraded, &started.not_required), (false, &names));
    let Some(Kind::ControlDegraded(degraded)) = &degraded.kind else { panic!() };
    assert!(degraded.executed && degraded.controls.iter().any(|control| control.name == "net_namespace"));
}

/// A helper under the filter of a container runtime that allows no namespaces and no mounts, where any user can reach it.
fn restricted_helper() -> (tempfile::TempDir, PathBuf) {
    let dir = exchequer_testkit::temp_dir();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let agent = dir.path().join("sandbox-agent");
    fs::copy(env!("CARGO_BIN_EXE_sandbox-agent"), &agent).unwrap();
    let helper = dir.path().join("restricted");
    let compiled = Command::new("cc")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/probes/confine_helper.c"))
        .arg(format!("-DHELPER=\"{}\"", agent.display()))
        .args(["-DFORBID", "-o"])
        .arg(&helper)
        .status()
        .unwrap();
    assert!(compiled.success());
    (dir, helper)
}

#[tokio::test]
async fn without_the_explicit_setting_a_host_that_lacks_a_control_executes_nothing() {
    let (_dir, helper) = restricted_helper();
    let rig = Rig::start_in(exchequer_testkit::temp_dir(), Metering::Grants, |options| {
        options.helper = helper;
        options.allow_degraded = false;
    })
    .await;
    let status = rig.execute("acme", run("/bin/true", &[])).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.reason, "CONTROL_MISSING");
    assert!(info.metadata["user_namespace"].contains("sysctl"), "it says how to get it: {info:?}");
    let [_, degraded, denied] = &rig.recorded()[..] else { panic!("{:?}", rig.recorded()) };
    let Some(Kind::ControlDegraded(degraded)) = &degraded.kind else { panic!() };
    assert!(!degraded.executed && degraded.controls.iter().any(|control| control.name == "net_namespace"));
    let Some(Kind::ExecutionDenied(denied)) = &denied.kind else { panic!() };
    assert_eq!(denied.gate(), v1::DenialGate::Control);
    assert_eq!(rig.asked().voids.load(Ordering::Relaxed), 1, "the hold went back");
}

#[tokio::test]
async fn with_the_explicit_setting_it_executes_and_the_record_names_what_is_missing() {
    let (_dir, helper) = restricted_helper();
    let rig =
        Rig::start_in(exchequer_testkit::temp_dir(), Metering::Grants, |options| options.helper = helper)
            .await;
    rig.execute("acme", run("/bin/true", &[])).await.unwrap();
    let [_, degraded, admitted, _] = &rig.recorded()[..] else { panic!("{:?}", rig.recorded()) };
    let Some(Kind::ControlDegraded(degraded)) = &degraded.kind else { panic!() };
    assert!(degraded.executed);
    let Some(Kind::ExecutionAdmitted(admitted)) = &admitted.kind else { panic!() };
    let status = |name: &str| admitted.controls.iter().find(|control| control.name == name).unwrap().status();
    assert_eq!(status("user_namespace"), v1::ControlStatus::Unavailable);
    assert_eq!(status("seccomp"), v1::ControlStatus::Enforced);
}

#[tokio::test]
async fn a_full_spool_refuses_clearly_and_refusals_do_not_use_up_the_room_for_outcomes() {
    let rig = Rig::start(Metering::Grants).await;
    let mut running = rig.begin("acme", run("/bin/sleep", &["60"])).await.unwrap();
    running.message().await.unwrap();
    while rig.spool().check_room_for_denial().is_ok() {
        let kind = Kind::AgentStopped(v1::AgentStopped { reason: "x".repeat(30 << 10) });
        let event = NewEvent::own(kind);
        futures::future::join_all((0..32).map(|_| rig.spool().record(event.clone()))).await;
    }
    let before = rig.spool().tip();
    for _ in 0..20 {
        let status = rig.execute("acme", run("/bin/true", &[])).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("the ledger has not confirmed"), "{}", status.message());
    }
    assert_eq!(rig.spool().tip(), before);
    drop(running);
    exchequer_testkit::eventually(Duration::from_secs(10), || async { rig.spool().tip() == before + 1 })
        .await;
    let last = rig.recorded().pop().unwrap();
    assert!(matches!(last.kind, Some(Kind::ExecutionFinished(_))), "what ran is recorded all the same");
}

#[tokio::test]
async fn the_callers_trace_goes_to_metering_and_into_the_stream() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let _guard = exchequer_telemetry::init(&exchequer_telemetry::Options {
        service_name: "test".into(),
        log_format: exchequer_telemetry::LogFormat::Text,
        log_filter: "off".into(),
        otlp_endpoint: None,
    })
    .unwrap();
    let rig = Rig::start(Metering::Grants).await;
    let mut request = tonic::Request::new(run("/bin/true", &[]));
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01").parse().unwrap());
    rig.execute("acme", request).await.unwrap();
    assert!(rig.asked().traceparent.lock().unwrap().contains(TRACE));
    let mut records = rig.stream.read(1, &["events.*"]).await.unwrap();
    let traced = async {
        loop {
            let record = records.next().await.unwrap().unwrap();
            if record.headers.iter().any(|(name, value)| name == "traceparent" && value.contains(TRACE)) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), traced).await.expect("a batch continues the trace");
}
