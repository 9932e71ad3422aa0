//! Admission against slices of budgets, with a real sandbox and a metering service that answers as it is told.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/rig.rs"]
#[allow(dead_code, reason = "what other tests of the agent need")]
mod rig;

use std::{sync::atomic::Ordering, time::Duration};

use exchequer_event::{
    metered::Metered,
    v1::{self, event::Kind, execute_response::Part},
};
use exchequer_testkit::eventually;
use rig::{Extension, Metering, Parts, Rig};
use sandbox_agent::{
    Options,
    leases::LeaseOptions,
    spool::{NewEvent, Spool},
};
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(20);
/// So long that the agent does not look after its leases within a test.
const NEVER: Duration = Duration::from_secs(3600);

fn run(program: &str, arguments: &[&str]) -> v1::ExecuteRequest {
    v1::ExecuteRequest {
        program: program.into(),
        arguments: arguments.iter().map(|&a| a.into()).collect(),
        ..v1::ExecuteRequest::default()
    }
}

/// Slices for so many executions by default limits.
fn lease(executions: u64, change: impl FnOnce(&mut LeaseOptions)) -> impl FnOnce(&mut Options) {
    move |options| {
        let once = Metered::at_most(&options.default_limits);
        let mut lease = LeaseOptions {
            amounts: once.zip(&once, |amount, _| amount * executions),
            ttl: Duration::from_secs(900),
            renew_below: 25,
            check_interval: NEVER,
        };
        change(&mut lease);
        options.lease = Some(lease);
    }
}

async fn rig(executions: u64, change: impl FnOnce(&mut LeaseOptions)) -> Rig {
    Rig::start_in(exchequer_testkit::temp_dir(), Metering::Grants, lease(executions, change)).await
}

/// An execution that runs until its parts are dropped, and what its admission says.
async fn begin(rig: &Rig) -> (Parts, v1::ExecutionAdmitted) {
    let mut parts = rig.begin("acme", run("/bin/sleep", &["9"])).await.unwrap();
    let Some(Part::Admitted(admitted)) = parts.message().await.unwrap().unwrap().part else { panic!() };
    (parts, admitted.record.unwrap())
}

async fn hold_of(rig: &Rig) -> String {
    let parts = rig.execute("acme", run("/bin/true", &[])).await.unwrap();
    let Some(Part::Admitted(admitted)) = &parts[0] else { panic!("{parts:?}") };
    admitted.record.as_ref().unwrap().hold_id.clone()
}

fn outcomes(rig: &Rig) -> Vec<v1::ExecutionFinished> {
    let finished = |event: v1::Event| match event.kind {
        Some(Kind::ExecutionFinished(finished)) => Some(finished),
        _ => None,
    };
    rig.recorded().into_iter().filter_map(finished).collect()
}

#[tokio::test]
async fn many_concurrent_executions_take_one_reservation_and_draw_what_they_used() {
    let rig = rig(100, |_| {}).await;
    for _ in 0..3 {
        let all = (0..8).map(|_| rig.execute("acme", run("/bin/true", &[])));
        futures::future::try_join_all(all).await.unwrap();
    }
    assert_eq!(rig.asked().holds.load(Ordering::Relaxed), 1, "one reservation for all");
    assert_eq!(rig.asked().leases.load(Ordering::Relaxed), 1);
    let outcomes = outcomes(&rig);
    assert_eq!(outcomes.len(), 24);
    assert!(outcomes.iter().all(|finished| finished.hold_id == "lease-1" && finished.reserved.len() == 5));
    let used = outcomes.iter().map(|finished| Metered::charge(finished).unwrap());
    let used = used.fold(Metered::default(), |sum, used| sum.zip(&used, |a, b| a + b));
    let [slice] = &rig.slices().await[..] else { panic!("{:?}", rig.slices().await) };
    assert_eq!(Metered::read(&slice.drawn), Some(used), "what is not used comes back");
    assert_eq!((slice.scope.as_str(), slice.running, &slice.reserved[..]), ("acme", 0, &[][..]));
}

#[tokio::test]
async fn an_admission_says_what_is_reserved_and_that_comes_back_at_the_end() {
    let rig = rig(2, |_| {}).await;
    let (parts, admitted) = begin(&rig).await;
    assert_eq!(admitted.hold_id, "lease-1");
    let once = Metered::at_most(&admitted.limits.unwrap());
    assert_eq!(Metered::read(&admitted.reserved), Some(once));
    let slices = rig.slices().await;
    assert_eq!(Metered::read(&slices[0].left), Some(once), "room for one more");
    drop(parts);
    eventually(PATIENCE, || async { rig.slices().await[0].running == 0 }).await;
    assert!(rig.slices().await[0].reserved.is_empty());
}

#[tokio::test]
async fn without_metering_executions_go_on_within_the_slice_and_are_refused_beyond_it() {
    // For two executions and nearly a third.
    let change = |lease: &mut LeaseOptions| {
        lease.amounts = lease.amounts.zip(&lease.amounts, |two, _| two + two * 9 / 20);
        lease.amounts.0[4] = 3;
    };
    let rig = rig(2, change).await;
    let _first = begin(&rig).await;
    rig.asked().is_away.store(true, Ordering::Relaxed);
    let (second, admitted) = begin(&rig).await;
    assert_eq!(admitted.hold_id, "lease-1");
    let beyond = rig.execute("acme", run("/bin/true", &[])).await.unwrap_err();
    assert_eq!(beyond.code(), Code::Unavailable, "{beyond}");
    drop(second);
    eventually(PATIENCE, || async { rig.slices().await[0].running == 1 }).await;
    assert_eq!(hold_of(&rig).await, "lease-1", "what came back can be used again");
}

#[tokio::test]
async fn a_slice_is_filled_up_before_it_runs_short() {
    let rig = rig(4, |_| {}).await;
    let mut running = Vec::new();
    for _ in 0..4 {
        let (parts, admitted) = begin(&rig).await;
        assert_eq!(admitted.hold_id, "lease-1");
        running.push(parts);
    }
    eventually(PATIENCE, || async { rig.asked().extensions.load(Ordering::Relaxed) > 0 }).await;
    running.push(begin(&rig).await.0);
    assert_eq!(rig.asked().holds.load(Ordering::Relaxed), 1);
    assert_eq!(rig.slices().await[0].running, 5);
}

#[tokio::test]
async fn what_the_budget_does_not_add_to_the_slice_is_reserved_as_a_hold() {
    let rig = rig(1, |_| {}).await;
    *rig.asked().extension.lock().unwrap() = Extension::Denies;
    let _first = begin(&rig).await;
    assert_eq!(hold_of(&rig).await, "hold-2");
    assert!(!rig.slices().await[0].closed, "the lease stands as it was");
}

/// A slice whose time is too short for an execution by default limits, which takes 10 s and the rig's margin of 60 s.
async fn rig_with_little_time_left(extension: Extension) -> Rig {
    let rig = rig(100, |lease| lease.ttl = Duration::from_secs(72)).await;
    *rig.asked().extension.lock().unwrap() = extension;
    assert_eq!(hold_of(&rig).await, "lease-1");
    eventually(PATIENCE, || async { rig.slices().await[0].expires_in_ms < 70_000 }).await;
    rig
}

#[tokio::test]
async fn an_execution_that_could_outlive_the_slice_is_not_admitted_against_it() {
    let rig = rig_with_little_time_left(Extension::Unavailable).await;
    assert_eq!(hold_of(&rig).await, "hold-2");
    assert_eq!(rig.asked().leases.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_lease_is_extended_when_its_time_is_short() {
    let rig = rig_with_little_time_left(Extension::Grants).await;
    assert_eq!(hold_of(&rig).await, "lease-1");
    assert!(rig.slices().await[0].expires_in_ms > 70_000);
    assert_eq!(rig.asked().holds.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_revoked_lease_admits_nothing_and_is_given_back_once_all_of_it_is_charged() {
    let rig = rig(100, |lease| lease.check_interval = Duration::from_millis(100)).await;
    let (parts, _) = begin(&rig).await;
    rig.asked().is_revoked.store(true, Ordering::Relaxed);
    eventually(PATIENCE, || async { rig.slices().await[0].closed }).await;
    assert_eq!(hold_of(&rig).await, "hold-2");
    assert_eq!(rig.asked().leases.load(Ordering::Relaxed), 1, "whoever revoked it gets its amounts back");
    drop(parts);
    eventually(PATIENCE, || async { rig.slices().await[0].running == 0 }).await;
    let looks = rig.asked().looks.load(Ordering::Relaxed);
    eventually(PATIENCE, || async { rig.asked().looks.load(Ordering::Relaxed) > looks + 2 }).await;
    assert_eq!(rig.asked().settlements.load(Ordering::Relaxed), 0, "the execution is not charged yet");
    let drawn = rig.slices().await[0].drawn.clone();
    *rig.asked().charged.lock().unwrap() = drawn;
    eventually(PATIENCE, || async { rig.slices().await.is_empty() }).await;
    assert_eq!(rig.asked().settlements.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_revocation_is_learned_from_a_refused_extension_too() {
    let rig = rig(1, |_| {}).await;
    *rig.asked().extension.lock().unwrap() = Extension::Ended;
    let (first, admitted) = begin(&rig).await;
    assert_eq!(admitted.hold_id, "lease-1");
    assert_eq!(hold_of(&rig).await, "hold-2");
    assert!(rig.slices().await[0].closed);
    drop(first);
    eventually(PATIENCE, || async { rig.slices().await[0].running == 0 }).await;
    assert_eq!(hold_of(&rig).await, "hold-3", "what came back is not admitted against");
}

#[tokio::test]
async fn what_is_asked_for_beside_the_machine_has_a_hold_of_its_own() {
    let rig = rig(100, |_| {}).await;
    let extra_holds = vec![v1::MeterAmount { meter: "input_tokens".into(), amount: 5 }];
    let request = v1::ExecuteRequest { extra_holds, ..run("/bin/true", &[]) };
    rig.execute("acme", request).await.unwrap();
    let outcomes = outcomes(&rig);
    assert_eq!((outcomes[0].hold_id.as_str(), &outcomes[0].reserved[..]), ("hold-1", &[][..]));
    assert!(rig.slices().await.is_empty());
}

#[tokio::test]
async fn an_agent_that_stops_gives_its_leases_back_when_metering_has_charged_them() {
    let rig = rig(100, |_| {}).await;
    hold_of(&rig).await;
    *rig.asked().charged.lock().unwrap() = rig.slices().await[0].drawn.clone();
    let asked = rig.asked().clone();
    rig.stop().await;
    assert_eq!(asked.settlements.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_new_life_uses_no_old_slice_and_says_what_was_reserved_of_it() {
    let dir = exchequer_testkit::temp_dir();
    let (spool, _) = Spool::open(&dir.path().join("agent/spool"), "a", 8 << 20, 8, 0).unwrap();
    let reserved = Metered([1, 2, 3, 4, 1, 5]).amounts();
    let admitted = v1::ExecutionAdmitted {
        hold_id: "lease-0".into(),
        scope: "acme".into(),
        reserved: reserved.clone(),
        ..v1::ExecutionAdmitted::default()
    };
    let event = NewEvent {
        tenant: "acme".into(),
        execution_id: "0190b2a4-0000-7000-8000-000000000001".into(),
        skill: String::new(),
        kind: Kind::ExecutionAdmitted(admitted),
    };
    spool.record(event).await.unwrap();
    drop(spool);
    let rig = Rig::start_in(dir, Metering::Grants, lease(100, |_| {})).await;
    let [lost] = &outcomes(&rig)[..] else { panic!() };
    assert_eq!((lost.cause(), lost.hold_id.as_str()), (v1::ExitCause::Lost, "lease-0"));
    assert_eq!(lost.reserved, reserved);
    assert_eq!(Metered::charge(lost), Metered::read(&reserved), "it is charged what was reserved for it");
    assert_eq!(hold_of(&rig).await, "lease-1");
}
