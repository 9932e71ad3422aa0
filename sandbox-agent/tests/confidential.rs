//! Payloads of a tenant that has a payload key: never in clear on the agent's disk, opened with the key, within every bound.
#![allow(clippy::unwrap_used, missing_docs)]

#[allow(dead_code, reason = "what other tests of the agent need")]
#[path = "support/rig.rs"]
mod rig;

use exchequer_event::{
    name::MAX_EVENT_BYTES,
    payload::{MAX_OVERHEAD, PayloadKey},
    v1::{self, event::Kind, execute_response::Part},
};
use prost::Message as _;
use rig::{Metering, Rig};
use sandbox_agent::{
    Options,
    spool::{NewEvent, PayloadKeys, RecordError, Spool},
};

const EXECUTION: &str = "0190b2a4-0000-7000-8000-00000000000f";

fn key() -> PayloadKey {
    PayloadKey::new(&[7; 32])
}

fn keys() -> PayloadKeys {
    PayloadKeys::from([("acme".to_owned(), key())])
}

fn confidential(options: &mut Options) {
    options.payload_keys = keys();
}

async fn start(metering: Metering) -> Rig {
    Rig::start_in(exchequer_testkit::temp_dir(), metering, confidential).await
}

fn run(program: &str, arguments: &[&str]) -> v1::ExecuteRequest {
    v1::ExecuteRequest {
        program: program.into(),
        arguments: arguments.iter().map(|&a| a.into()).collect(),
        ..v1::ExecuteRequest::default()
    }
}

fn holds(event: &v1::Event, needle: &str) -> bool {
    event.encode_to_vec().windows(needle.len()).any(|window| window == needle.as_bytes())
}

fn is_admitted(kind: &Kind) -> bool {
    matches!(kind, Kind::ExecutionAdmitted(_))
}

fn is_finished(kind: &Kind) -> bool {
    matches!(kind, Kind::ExecutionFinished(_))
}

fn opened(event: &v1::Event) -> Kind {
    key().open(event).unwrap().event.kind.unwrap()
}

#[tokio::test]
async fn one_tenants_payload_is_encrypted_and_anothers_is_not() {
    let rig = start(Metering::Grants).await;
    let parts = rig.execute("acme", run("/bin/echo", &["needle"])).await.unwrap();
    let Some(Part::Admitted(answer)) = &parts[0] else { panic!("{parts:?}") };
    let told = answer.record.clone().unwrap();
    assert_eq!((told.program.as_str(), told.caller.as_str()), ("/bin/echo", "caller"));
    rig.execute("open", run("/bin/echo", &["needle"])).await.unwrap();
    let events = rig.recorded();
    let of = |tenant: &str, wanted: fn(&Kind) -> bool| {
        let found =
            events.iter().find(|event| event.tenant == tenant && wanted(event.kind.as_ref().unwrap()));
        found.unwrap_or_else(|| panic!("{tenant}: {events:?}"))
    };

    let admitted = of("acme", is_admitted);
    for secret in ["needle", "/bin/echo", "caller"] {
        assert!(!holds(admitted, secret), "{secret}: {admitted:?}");
        assert!(holds(of("open", is_admitted), secret), "{secret}");
    }
    assert_eq!(opened(admitted), Kind::ExecutionAdmitted(told));
    let finished = of("acme", is_finished);
    let Some(Kind::ExecutionFinished(public)) = &finished.kind else { panic!() };
    assert_eq!((public.cause(), public.hold_id.as_str()), (v1::ExitCause::Exited, "hold-1"));
    assert_eq!(public.usage.as_ref().unwrap().output_bytes, 7);
    assert!(public.stdout.is_none() && public.result_digest.is_empty());
    let Kind::ExecutionFinished(whole) = opened(finished) else { panic!() };
    assert_eq!(whole.stdout.unwrap().size, 7);
    assert_eq!(whole.result_digest.len(), 32);
    let nonce = |event: &v1::Event| event.confidential.clone().unwrap().nonce;
    assert_ne!(nonce(admitted), nonce(finished));
    for event in events.iter().filter(|event| event.tenant != "acme") {
        assert_eq!(event.confidential, None, "{event:?}");
    }
}

#[tokio::test]
async fn why_an_execution_was_denied_is_payload_and_by_which_gate_is_not() {
    let rig = start(Metering::Denies).await;
    rig.execute("acme", run("/bin/echo", &["x"])).await.unwrap_err();
    let events = rig.recorded();
    let recorded = events.last().unwrap();
    let Some(Kind::ExecutionDenied(public)) = &recorded.kind else { panic!("{events:?}") };
    assert_eq!((public.gate(), public.meter.as_str()), (v1::DenialGate::Budget, "cpu_ms"));
    assert_eq!((public.reason.as_str(), public.program.as_str(), public.caller.as_str()), ("", "", ""));
    let Kind::ExecutionDenied(whole) = opened(recorded) else { panic!() };
    assert!(whole.reason.contains("cpu_ms left") && whole.program == "/bin/echo" && whole.caller == "caller");
}

#[tokio::test]
async fn after_a_restart_with_the_same_key_what_was_lost_is_recorded_and_both_are_opened() {
    let dir = exchequer_testkit::temp_dir();
    let (spool, _) = Spool::open(&dir.path().join("agent/spool"), "a", 8 << 20, 8, 0).unwrap();
    let spool = spool.with_payload_keys(keys());
    let admitted = v1::ExecutionAdmitted {
        program: "/bin/needle".into(),
        hold_id: "hold-0".into(),
        ..v1::ExecutionAdmitted::default()
    };
    let event = NewEvent {
        tenant: "acme".into(),
        execution_id: EXECUTION.into(),
        skill: String::new(),
        kind: Kind::ExecutionAdmitted(admitted.clone()),
    };
    spool.record(event).await.unwrap();
    drop(spool);
    let rig = Rig::start_in(dir, Metering::Grants, confidential).await;
    let events = rig.recorded();
    assert!(!holds(&events[0], "needle"));
    assert_eq!(opened(&events[0]), Kind::ExecutionAdmitted(admitted));
    let last = events.last().unwrap();
    let Some(Kind::ExecutionFinished(public)) = &last.kind else { panic!("{events:?}") };
    assert_eq!((public.cause(), public.hold_id.as_str()), (v1::ExitCause::Lost, "hold-0"));
    assert_eq!(public.detail, "");
    let Kind::ExecutionFinished(whole) = opened(last) else { panic!() };
    assert!(whole.detail.contains("the agent was ended"));
}

#[tokio::test]
async fn what_would_be_too_large_once_encrypted_is_refused_and_not_written() {
    let dir = exchequer_testkit::temp_dir();
    let (spool, _) = Spool::open(dir.path(), "a", 8 << 20, 8, 0).unwrap();
    let spool = spool.with_payload_keys(keys());
    let denied = |tenant: &str, length: usize| NewEvent {
        tenant: tenant.into(),
        execution_id: EXECUTION.into(),
        skill: String::new(),
        kind: Kind::ExecutionDenied(v1::ExecutionDenied {
            reason: "x".repeat(length),
            ..v1::ExecutionDenied::default()
        }),
    };
    // Identity, chain and framing of such an event take less than 200 bytes.
    let fits = MAX_EVENT_BYTES - MAX_OVERHEAD - 200;
    spool.record(denied("acme", fits)).await.unwrap();
    let clear = MAX_EVENT_BYTES - 200;
    spool.record(denied("open", clear)).await.unwrap();
    let refused = spool.record(denied("acme", clear)).await;
    assert!(matches!(refused, Err(RecordError::TooLarge(size)) if size > MAX_EVENT_BYTES), "{refused:?}");
    assert_eq!(spool.tip(), 2);
    // The chain goes on as if nothing had been asked.
    spool.record(denied("acme", 1)).await.unwrap();
    let last = spool.reader().read(3, 1).unwrap().remove(0);
    assert!(key().open(&v1::Event::decode(last.body).unwrap()).is_ok());
}

#[tokio::test]
async fn the_largest_request_fits_a_record_when_it_is_encrypted() {
    let rig = start(Metering::Grants).await;
    let argument = "ä".repeat(128);
    // A program that is there, by a path of 1023 bytes.
    let program = format!("/usr{}/bin/true", "/.".repeat(505));
    let mut request = run(&program, &vec![argument.as_str(); 64]);
    request.scope = ["s".repeat(64).as_str(); 5].join("/");
    request.skill = "k".repeat(63);
    rig.execute("acme", request).await.unwrap();
    let events = rig.recorded();
    let admitted =
        events.iter().find(|event| matches!(event.kind, Some(Kind::ExecutionAdmitted(_)))).unwrap();
    let Kind::ExecutionAdmitted(whole) = opened(admitted) else { panic!() };
    assert_eq!(whole.program.len(), 1023);
    assert_eq!(
        whole.arguments_redacted.iter().map(String::len).sum::<usize>(),
        32 * 256 + "[32 more arguments]".len()
    );
    assert!(admitted.encoded_len() + 4096 < MAX_EVENT_BYTES, "{}", admitted.encoded_len());
}
