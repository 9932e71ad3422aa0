//! States as bytes: the acceptor's snapshot, a partition's budget state, and the decision runs that lead to one.

use bytes::Bytes;
use exchequer_budget::{State, wire};
use exchequer_event::{
    accept::{Acceptor, Incoming},
    v1::{self, budget_event::Kind},
};
use prost::Message as _;

use crate::records::{AGENT, agent, batches, enrolment, genesis};

/// A snapshot of the acceptor; it goes on with a batch.
pub(crate) fn acceptor(data: &[u8]) -> bool {
    let Ok(state) = Acceptor::restore(data) else { return false };
    let snapshot = state.snapshot();
    let mut again = Acceptor::restore(&snapshot).expect("its own snapshot");
    assert!(again.snapshot() == snapshot, "a snapshot of a snapshot differs");
    for (stream_seq, payload) in (1..).zip(batches()) {
        let decided = again.decide(&Incoming { stream_seq, subject: "events.a1", payload: payload.into() });
        decided.entries.iter().for_each(|entry| again.evolve(entry));
    }
    true
}

pub(crate) fn acceptors() -> Vec<Vec<u8>> {
    let mut acceptor = Acceptor::new();
    let mut samples = vec![acceptor.snapshot(), vec![0x12, 1, 1]];
    let enrolment = enrolment(v1::KeyRole::Agent, AGENT, agent().public_key().as_bytes());
    let messages = [
        ("control.genesis", genesis()),
        ("control.keys", enrolment),
        ("events.a1", batches().swap_remove(0)),
    ];
    for (stream_seq, (subject, payload)) in (1..).zip(messages) {
        let decided = acceptor.decide(&Incoming { stream_seq, subject, payload: Bytes::from(payload) });
        decided.entries.iter().for_each(|entry| acceptor.evolve(entry));
        samples.push(acceptor.snapshot());
    }
    // An agent whose seq nothing can follow.
    samples.push([&[0x1a, 15, 0x0a, 2, b'a', b'1', 0x18][..], &[0xff; 9], &[1]].concat());
    samples
}

/// A decision run (0 before it) or a state (1 before it).
pub(crate) fn budget(data: &[u8]) -> bool {
    match data.split_first() {
        Some((0, bytes)) => {
            let Ok(run) = wire::decode_run(bytes) else { return false };
            let encoded = wire::encode_run(&run);
            let again = wire::decode_run(&encoded).expect("its own encoding");
            assert_eq!(wire::encode_run(&again), encoded);
            true
        }
        Some((1, bytes)) => {
            let Ok(state) = State::decode(bytes) else { return false };
            assert!(state.encode() == bytes, "only the canonical bytes are decoded");
            state.check().expect("a state that decodes does not contradict itself");
            true
        }
        _ => false,
    }
}

pub(crate) fn budgets() -> Vec<Vec<u8>> {
    let granted = v1::HoldGranted {
        hold_id: "h".into(),
        scope: "acme/a".into(),
        holder: "agent-1".into(),
        amounts: vec![v1::MeterAmount { meter: "cpu_ms".into(), amount: 1 }],
        expires_unix_ms: 9,
        ..Default::default()
    };
    let decision = v1::Decision {
        idempotency_key: "key".into(),
        request_hash: vec![7; 32].into(),
        actor: "agent-1".into(),
        events: vec![v1::BudgetEvent { kind: Some(Kind::HoldGranted(granted)) }],
    };
    let run = v1::DecisionRun { tenant: "acme".into(), decisions: vec![decision] };
    let tagged = |tag: u8, bytes: Vec<u8>| [vec![tag], bytes].concat();
    vec![tagged(0, run.encode_to_vec()), tagged(1, State::default().encode()), vec![2]]
}
