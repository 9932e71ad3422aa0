//! Whatever is read without decoding is what decoding reads, over broken bytes of every sort.

use proptest::prelude::*;
use prost::{Message, bytes::Bytes};

use super::*;
use crate::{
    digest::Digest,
    seal,
    v1::{self, budget_event, entry::Kind, event},
};

const UUID: &str = "0190b2a4-0000-7000-8000-00000000000f";

fn controls() -> Vec<v1::Control> {
    let control = |name: &str, status| v1::Control { name: name.into(), status, ..v1::Control::default() };
    vec![control("seccomp", 1), control("net_namespace", 300)]
}

/// An event of each kind.
fn events() -> Vec<v1::Event> {
    let output = || Some(v1::Output { digest: vec![9; 32].into(), size: 1 << 40 });
    let kinds = [
        event::Kind::AgentStarted(v1::AgentStarted {
            version: "1".into(),
            controls: controls(),
            allow_degraded: true,
            ..v1::AgentStarted::default()
        }),
        event::Kind::AgentStopped(v1::AgentStopped { reason: "ünïcode".into() }),
        event::Kind::ExecutionAdmitted(v1::ExecutionAdmitted {
            caller: "alice".into(),
            arguments_redacted: vec!["-c".into(), String::new()],
            input_digest: vec![4; 32].into(),
            limits: Some(v1::Limits { cpu_ms: 1000, ..v1::Limits::default() }),
            controls: controls(),
            ..v1::ExecutionAdmitted::default()
        }),
        event::Kind::ExecutionDenied(v1::ExecutionDenied { gate: 2, ..v1::ExecutionDenied::default() }),
        event::Kind::ExecutionFinished(v1::ExecutionFinished {
            exit_code: -1,
            usage: Some(v1::Usage { wall_us: u64::MAX, ..v1::Usage::default() }),
            stdout: output(),
            stderr: output(),
            ..v1::ExecutionFinished::default()
        }),
        event::Kind::ControlDegraded(v1::ControlDegraded { controls: controls(), executed: true }),
    ];
    let event = |(seq, kind)| v1::Event {
        agent_id: "agent-1".into(),
        epoch: 3,
        seq,
        prev_hash: Digest([7; 32]).into(),
        time_unix_ms: 1 << 41,
        tenant: if seq % 2 == 0 { "acme".into() } else { String::new() },
        execution_id: if seq % 2 == 0 { UUID.into() } else { String::new() },
        skill: if seq % 2 == 0 { "python.sum".into() } else { String::new() },
        confidential: (seq % 4 == 2).then(|| v1::Confidential {
            key_id: vec![1; 16].into(),
            nonce: vec![2; 24].into(),
            ciphertext: vec![3; 200].into(),
            commitment: vec![4; 32].into(),
        }),
        kind: Some(kind),
    };
    (300..).zip(kinds).map(event).collect()
}

/// A run with a change of each kind.
fn run() -> v1::DecisionRun {
    let amount = || vec![v1::MeterAmount { meter: "cpu_ms".into(), amount: 1 << 35 }];
    let hold_id = || UUID.to_owned();
    let kinds = [
        budget_event::Kind::BudgetSet(v1::BudgetSet {
            scope: "acme".into(),
            granted: amount(),
            ..v1::BudgetSet::default()
        }),
        budget_event::Kind::HoldGranted(v1::HoldGranted {
            hold_id: hold_id(),
            amounts: amount(),
            ..v1::HoldGranted::default()
        }),
        budget_event::Kind::HoldDenied(v1::HoldDenied { reason: 1, ..v1::HoldDenied::default() }),
        budget_event::Kind::HoldExtended(v1::HoldExtended {
            hold_id: hold_id(),
            added: amount(),
            expires_unix_ms: 1 << 41,
            ..v1::HoldExtended::default()
        }),
        budget_event::Kind::HoldSettled(v1::HoldSettled {
            hold_id: hold_id(),
            used: amount(),
            late: true,
            ..v1::HoldSettled::default()
        }),
        budget_event::Kind::HoldVoided(v1::HoldVoided { hold_id: hold_id() }),
        budget_event::Kind::HoldExpired(v1::HoldExpired { hold_id: hold_id() }),
        budget_event::Kind::CommandRefused(v1::CommandRefused {
            reason: 3,
            hold_id: hold_id(),
            ..v1::CommandRefused::default()
        }),
    ];
    let decision = |kind| v1::Decision {
        idempotency_key: "k".into(),
        request_hash: vec![1; 32].into(),
        actor: "alice".into(),
        events: vec![v1::BudgetEvent { kind: Some(kind) }],
    };
    v1::DecisionRun { tenant: "acme".into(), decisions: kinds.map(decision).into() }
}

/// Reads an event both ways. Whether it was read lean.
fn check_event(bytes: &[u8]) -> bool {
    let Some(lean) = event(bytes) else { return false };
    let decoded = seal::decode_event(&Bytes::copy_from_slice(bytes)).unwrap();
    assert_eq!(lean.agent_id, decoded.agent_id.as_bytes());
    assert_eq!((lean.epoch, lean.seq), (decoded.epoch, decoded.seq));
    assert_eq!(lean.prev_hash, decoded.prev_hash);
    true
}

fn check_run(bytes: &[u8]) -> bool {
    let lean = is_run(bytes);
    assert!(!lean || seal::decode_run(&Bytes::copy_from_slice(bytes)).is_ok());
    lean
}

fn check_record(bytes: &[u8], wanted: u32) -> bool {
    let Some((stream_seq, lean)) = record(bytes, wanted) else { return false };
    let entry = v1::Entry::decode(bytes).unwrap();
    let decoded = match (wanted, entry.kind) {
        (17, Some(Kind::Event(bytes))) | (19, Some(Kind::DecisionRun(bytes))) => bytes,
        other => panic!("{other:?}"),
    };
    assert_eq!((stream_seq, lean), (entry.stream_seq, &decoded[..]));
    true
}

#[test]
fn every_record_of_the_protocol_is_read_lean() {
    for event in events() {
        let bytes = Bytes::from(event.encode_to_vec());
        assert!(check_event(&bytes), "{event:?}");
        let entry = v1::Entry { stream_seq: 1 << 33, kind: Some(Kind::Event(bytes)) };
        assert!(check_record(&entry.encode_to_vec(), 17));
    }
    let bytes = Bytes::from(run().encode_to_vec());
    assert!(check_run(&bytes));
    assert!(check_record(
        &v1::Entry { stream_seq: 5, kind: Some(Kind::DecisionRun(bytes)) }.encode_to_vec(),
        19
    ));
}

#[test]
fn what_the_decoder_refuses_is_not_read() {
    let whole = events().remove(2);
    let with = |change: fn(&mut v1::Event)| {
        let mut event = whole.clone();
        change(&mut event);
        event.encode_to_vec()
    };
    assert!(!check_event(&with(|event| event.kind = None)));
    assert!(!check_event(&with(|event| event.tenant = "a/b".into())));
    assert!(!check_event(&with(|event| event.execution_id = "x".into())));
    for field in 0..4 {
        assert!(!check_event(&with_confidential(&whole, |parts| parts[field].truncate(15))), "{field}");
        assert!(
            !check_event(&with_confidential(&whole, |parts| parts[field].push(0))) || field == 2,
            "{field}"
        );
    }
    let twice = [whole.encode_to_vec(), whole.encode_to_vec()].concat();
    assert!(!check_event(&twice), "two payloads are one to the decoder");
    let bytes = whole.encode_to_vec();
    let followed = |tail: &[u8]| check_event(&[&bytes, tail].concat());
    assert!(followed(&[]) && followed(&[0x10, 5]), "of two epochs the last counts");
    // A field nobody knows, a varint as bytes, a cut length, text that is no UTF-8, a key that is none.
    for tail in [&[0x78, 1][..], &[0x12, 0], &[0x0A, 9, 1], &[0x0A, 1, 0xFF], &[0x07], &[0x80]] {
        assert!(!followed(tail), "{tail:?}");
    }
    let entry = v1::Entry { stream_seq: 1, kind: Some(Kind::Event(bytes.into())) }.encode_to_vec();
    assert!(!check_record(&entry, 19) && !check_record(&[], 17) && !check_record(&[0x08, 1], 17));
}

fn with_confidential(event: &v1::Event, change: impl FnOnce(&mut [Vec<u8>; 4])) -> Vec<u8> {
    let was = event.confidential.clone().unwrap();
    let mut parts = [was.key_id, was.nonce, was.ciphertext, was.commitment].map(|part| part.to_vec());
    change(&mut parts);
    let [key_id, nonce, ciphertext, commitment] = parts.map(Bytes::from);
    let confidential = Some(v1::Confidential { key_id, nonce, ciphertext, commitment });
    v1::Event { confidential, ..event.clone() }.encode_to_vec()
}

fn broken(bytes: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let end = bytes.len();
    let edit = (0..end, any::<u8>(), 0..4_u8);
    prop::collection::vec(edit, 1..4).prop_map(move |edits| {
        let mut bytes = bytes.clone();
        for (at, value, how) in edits {
            let at = at.min(bytes.len().saturating_sub(1));
            match how {
                0 => bytes[at] = value,
                1 => bytes[at] ^= 1 << (value % 8),
                2 => bytes.insert(at, value),
                _ => bytes.truncate(at.max(1)),
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn broken_events_are_read_alike_or_not_at_all(
        bytes in prop::sample::select(events()).prop_flat_map(|event| broken(event.encode_to_vec()))
    ) {
        check_event(&bytes);
    }

    #[test]
    fn broken_runs_are_read_alike_or_not_at_all(bytes in broken(run().encode_to_vec())) {
        check_run(&bytes);
    }

    #[test]
    fn broken_entries_are_read_alike_or_not_at_all(
        bytes in broken(
            v1::Entry { stream_seq: 300, kind: Some(Kind::Event(Bytes::from_static(b"event"))) }.encode_to_vec()
        )
    ) {
        check_record(&bytes, 17);
    }
}
