//! What is read off bytes is what the generated decoder says of them.

use proptest::{collection::vec, prelude::*, sample::select};
use prost::Message as _;

use super::*;
use crate::{
    seal::{BlockPlace, decode_event},
    v1::event::Kind as Happened,
};

fn event_kind(kind: &Happened) -> EventKind {
    match kind {
        Happened::AgentStarted(_) => EventKind::AgentStarted,
        Happened::AgentStopped(_) => EventKind::AgentStopped,
        Happened::ExecutionAdmitted(_) => EventKind::ExecutionAdmitted,
        Happened::ExecutionDenied(_) => EventKind::ExecutionDenied,
        Happened::ExecutionFinished(_) => EventKind::ExecutionFinished,
        Happened::ControlDegraded(_) => EventKind::ControlDegraded,
    }
}

fn happened() -> impl Strategy<Value = Option<Happened>> {
    select(vec![
        None,
        Some(Happened::AgentStarted(v1::AgentStarted::default())),
        Some(Happened::AgentStopped(v1::AgentStopped { reason: "told to".into() })),
        Some(Happened::ExecutionAdmitted(v1::ExecutionAdmitted {
            program: "/bin/true".into(),
            ..v1::ExecutionAdmitted::default()
        })),
        Some(Happened::ExecutionDenied(v1::ExecutionDenied::default())),
        Some(Happened::ExecutionFinished(v1::ExecutionFinished::default())),
        Some(Happened::ControlDegraded(v1::ControlDegraded::default())),
    ])
}

/// A piece of an encoded event: some of its fields, or fields that no event has.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let name = |names: [&'static str; 3]| select(names.to_vec()).prop_map(str::to_owned);
    let fields = (
        name(["", "a1", "b"]),
        any::<u64>(),
        name(["", "acme", "globex"]),
        name(["", "0190b2a4-0000-7000-8000-00000000000f", "0190b2a4-0000-7000-8000-000000000010"]),
        name(["", "sum-up", "python3"]),
        happened(),
    );
    let known = fields.prop_map(|(agent_id, number, tenant, execution_id, skill, kind)| {
        let (seq, time_unix_ms) = (number >> 32, number & 0xffff_ffff);
        v1::Event { agent_id, seq, time_unix_ms, tenant, execution_id, skill, kind, ..v1::Event::default() }
            .encode_to_vec()
    });
    // A varint, eight bytes, four bytes, a string, and a group with a tenant in it, all of field 100 or, once, of the tenant's type.
    let unknown = select(vec![
        vec![0xa0, 6, 0x96, 1],
        vec![0xa1, 6, 1, 2, 3, 4, 5, 6, 7, 8],
        vec![0xa5, 6, 1, 2, 3, 4],
        vec![0xa2, 6, 2, b'h', b'i'],
        vec![0xa3, 6, 0x32, 1, b'x', 0xa4, 6],
        vec![0x30, 1],
        vec![0x32, 1, 0xff],
        vec![0x32, 9, b'x'],
    ]);
    prop_oneof![4 => known, 1 => unknown]
}

proptest! {
    #[test]
    fn an_event_is_found_by_what_it_decodes_to(pieces in vec(piece(), 1..4)) {
        let bytes = Bytes::from(pieces.concat());
        let decoded = decode_event(&bytes);
        let entry = v1::Entry { stream_seq: 7, kind: Some(Kind::Event(bytes)) };
        let encoded = entry.encode_to_vec();
        prop_assert_eq!(read_facets(&encoded).unwrap().into_owned(), facets(&entry));
        if let Ok(event) = decoded {
            let expected = Facets {
                kind: EntryKind::Event,
                event_kind: event_kind(event.kind.as_ref().unwrap()),
                tenant: event.tenant,
                execution_id: event.execution_id,
                skill: event.skill,
                agent_id: event.agent_id,
                agent_seq: event.seq,
                time_unix_ms: event.time_unix_ms,
            };
            prop_assert_eq!(facets(&entry), expected);
        }
    }

    #[test]
    fn no_bytes_are_too_strange_to_be_read(bytes in vec(any::<u8>(), 0..64)) {
        let _ = read_facets(&bytes);
        let entry = v1::Entry { stream_seq: 1, kind: Some(Kind::Event(bytes.into())) };
        prop_assert_eq!(read_facets(&entry.encode_to_vec()).unwrap().into_owned(), facets(&entry));
    }
}

#[test]
fn every_kind_of_entry_is_found_by_what_it_says() {
    let key = ed25519_dalek::SigningKey::from_bytes(&[1; 32]);
    let batch = crate::seal::seal_batch(&key, "a1", 1, 1, crate::digest::Digest::ZERO, Vec::new());
    let place = BlockPlace {
        partition: "0".into(),
        epoch: 1,
        index: 1,
        prev_hash: crate::digest::Digest::ZERO,
        now_unix_ms: 1234,
        usage_cursor: 0,
    };
    let block = crate::seal::seal_block(&key, place, Vec::new());
    let run = v1::DecisionRun { tenant: "acme".into(), decisions: Vec::new() };
    let record = v1::ControlRecord { time_unix_ms: 99, actor: "root".into(), kind: None };
    let with = |kind| Facets::<String> { kind, ..Facets::default() };
    for (kind, expected) in [
        (
            Kind::BatchSealed(v1::BatchSealed { seal: batch.seal, skipped: 1, ..Default::default() }),
            Facets { agent_id: "a1".into(), ..with(EntryKind::BatchSealed) },
        ),
        (
            Kind::BlockSealed(v1::BlockSealed { seal: block.seal, ..Default::default() }),
            Facets { time_unix_ms: 1234, ..with(EntryKind::BlockSealed) },
        ),
        (
            Kind::DecisionRun(run.encode_to_vec().into()),
            Facets { tenant: "acme".into(), ..with(EntryKind::DecisionRun) },
        ),
        (
            Kind::Control(v1::SignedControl { record: record.encode_to_vec().into(), ..Default::default() }),
            Facets { time_unix_ms: 99, ..with(EntryKind::Control) },
        ),
        (
            Kind::Rejection(v1::Rejection { subject: "events.a1".into(), ..Default::default() }),
            Facets { agent_id: "a1".into(), ..with(EntryKind::Rejection) },
        ),
        (
            Kind::Rejection(v1::Rejection { subject: "budget.0".into(), ..Default::default() }),
            with(EntryKind::Rejection),
        ),
        (
            Kind::Equivocation(v1::Equivocation { agent_id: "a2".into(), seq: 3, ..Default::default() }),
            Facets { agent_id: "a2".into(), ..with(EntryKind::Equivocation) },
        ),
    ] {
        let entry = v1::Entry { stream_seq: 3, kind: Some(kind) };
        assert_eq!(facets(&entry), expected);
        assert_eq!(read_facets(&entry.encode_to_vec()).unwrap().into_owned(), expected);
    }
    assert_eq!(read_facets(b""), None);
    assert_eq!(facets(&v1::Entry::default()), Facets::default());
}
