//! Waiting for a slot by the RPC: turns, a full queue, patience, deadlines, callers that go away, and a stop. With a real sandbox; nothing
//! here depends on how long anything takes.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/rig.rs"]
#[allow(dead_code, reason = "what other tests of the agent need")]
mod rig;

use std::{sync::atomic::Ordering, time::Duration};

use exchequer_event::v1::{self, event::Kind, execute_response::Part};
use exchequer_testkit::eventually;
use rig::{Metering, Parts, Rig};
use tonic::{Code, IntoRequest as _, Request};
use tonic_types::StatusExt as _;

const LONG: Duration = Duration::from_secs(20);

fn run(program: &str, arguments: &[&str]) -> v1::ExecuteRequest {
    v1::ExecuteRequest {
        program: program.into(),
        arguments: arguments.iter().map(|&a| a.into()).collect(),
        ..v1::ExecuteRequest::default()
    }
}

fn within(request: v1::ExecuteRequest, timeout: &str) -> Request<v1::ExecuteRequest> {
    let mut request = request.into_request();
    request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
    request
}

async fn start(max_waiting: usize) -> Rig {
    Rig::start_in(exchequer_testkit::temp_dir(), Metering::Grants, |options| {
        options.max_concurrent = 1;
        options.max_waiting = max_waiting;
    })
    .await
}

/// Takes the only slot until it is dropped.
async fn occupy(rig: &Rig) -> Parts {
    let mut parts = rig.begin("acme", run("/bin/sleep", &["60"])).await.unwrap();
    assert!(matches!(parts.message().await.unwrap().unwrap().part, Some(Part::Admitted(_))));
    parts
}

async fn waiting(rig: &Rig, count: usize) {
    eventually(LONG, || async { rig.occupancy() == (1, count) }).await;
}

/// Tenants in order of admission.
fn admitted(rig: &Rig) -> Vec<String> {
    let events = rig.recorded().into_iter();
    let admissions = events.filter(|event| matches!(event.kind, Some(Kind::ExecutionAdmitted(_))));
    admissions.map(|event| event.tenant).collect()
}

#[tokio::test]
async fn a_tenant_that_asks_once_is_not_kept_waiting_by_one_that_asks_often() {
    let rig = start(16).await;
    let first = occupy(&rig).await;
    let mut asked = Vec::new();
    for place in 0..6 {
        asked.push(rig.ask("busy", run("/bin/true", &[])));
        waiting(&rig, place + 1).await;
    }
    asked.push(rig.ask("quiet", run("/bin/true", &[])));
    waiting(&rig, 7).await;
    assert_eq!(rig.open_holds(), 1, "what waits holds nothing");
    drop(first);
    for answer in asked {
        let mut parts = answer.await.unwrap().unwrap();
        while parts.message().await.unwrap().is_some() {}
    }
    assert_eq!(admitted(&rig)[..3], ["acme", "busy", "quiet"]);
    assert_eq!(admitted(&rig).len(), 8);
}

#[tokio::test]
async fn a_full_queue_says_when_to_try_again_and_makes_room_for_who_has_less() {
    let rig = start(2).await;
    let _first = occupy(&rig).await;
    let _second = rig.ask("busy", run("/bin/true", &[]));
    waiting(&rig, 1).await;
    let third = rig.ask("busy", run("/bin/true", &[]));
    waiting(&rig, 2).await;
    let refused = |status: tonic::Status| {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert_eq!(status.get_details_error_info().unwrap().reason, "QUEUE_FULL");
        assert!(status.get_details_retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    };
    refused(rig.execute("busy", run("/bin/true", &[])).await.unwrap_err());
    let (event, denied) = rig.last_denial().unwrap();
    assert_eq!((event.tenant.as_str(), denied.gate()), ("busy", v1::DenialGate::Policy));
    let quiet = rig.ask("quiet", run("/bin/true", &[]));
    refused(third.await.unwrap().unwrap_err());
    assert_eq!((rig.occupancy(), rig.open_holds()), ((1, 2), 1));
    quiet.abort();
}

#[tokio::test]
async fn patience_is_the_requests_own() {
    let rig = start(4).await;
    let _first = occupy(&rig).await;
    let request = v1::ExecuteRequest { max_wait_ms: 1, ..run("/bin/true", &[]) };
    let status = rig.execute("acme", request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.get_details_error_info().unwrap().reason, "WAITED_TOO_LONG");
    assert!(status.get_details_retry_info().is_some());
    assert_eq!((rig.occupancy(), rig.open_holds()), ((1, 0), 1));
}

#[tokio::test]
async fn what_waits_at_its_deadline_is_refused_and_never_held() {
    let rig = start(4).await;
    let _first = occupy(&rig).await;
    let status = rig.execute("acme", within(run("/bin/true", &[]), "400m")).await.unwrap_err();
    // Where the transport's own clock is first, it says it in its own way.
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    eventually(LONG, || async { rig.last_denial().is_some() }).await;
    let (_, denied) = rig.last_denial().unwrap();
    assert!(denied.reason.contains("before the execution began"), "{}", denied.reason);
    assert_eq!((rig.occupancy(), rig.asked().holds.load(Ordering::Relaxed)), ((1, 0), 1));
}

#[tokio::test]
async fn what_runs_at_its_deadline_is_cancelled_and_that_is_recorded() {
    let rig = start(4).await;
    let parts = rig.execute("acme", within(run("/bin/sleep", &["60"]), "3S")).await;
    if let Ok(parts) = &parts {
        let Some(Part::Finished(finished)) = parts.last().unwrap() else { panic!("{parts:?}") };
        assert_eq!(finished.record.as_ref().unwrap().cause(), v1::ExitCause::Cancelled);
    }
    eventually(LONG, || async {
        rig.recorded().iter().any(|event| {
            matches!(&event.kind, Some(Kind::ExecutionFinished(f)) if f.cause() == v1::ExitCause::Cancelled)
        })
    })
    .await;
    eventually(LONG, || async { rig.occupancy() == (0, 0) }).await;
}

#[tokio::test]
async fn a_caller_that_goes_away_while_it_waits_leaves_the_queue_and_no_hold() {
    let rig = start(4).await;
    let first = occupy(&rig).await;
    let gone = rig.ask("acme", run("/bin/true", &[]));
    waiting(&rig, 1).await;
    gone.abort();
    waiting(&rig, 0).await;
    eventually(LONG, || async { rig.last_denial().is_some() }).await;
    assert!(rig.last_denial().unwrap().1.reason.contains("went away"));
    drop(first);
    eventually(LONG, || async { rig.occupancy() == (0, 0) }).await;
    assert_eq!((admitted(&rig).len(), rig.asked().holds.load(Ordering::Relaxed)), (1, 1));
}

#[tokio::test]
async fn a_stop_sends_those_away_that_wait_and_records_the_end_of_what_runs() {
    let rig = start(4).await;
    let mut running = rig.begin("acme", run("/bin/sleep", &["1"])).await.unwrap();
    running.message().await.unwrap();
    let waits = rig.ask("acme", run("/bin/true", &[]));
    waiting(&rig, 1).await;
    let events = rig.stop().await;
    let status = waits.await.unwrap().unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "the agent is stopping"));
    let kinds: Vec<_> = events.iter().filter_map(|event| event.kind.as_ref()).collect();
    let [.., Kind::ExecutionDenied(denied), Kind::ExecutionFinished(finished), Kind::AgentStopped(_)] =
        kinds[..]
    else {
        panic!("{kinds:?}")
    };
    assert_eq!((denied.gate(), finished.cause()), (v1::DenialGate::Policy, v1::ExitCause::Exited));
}
