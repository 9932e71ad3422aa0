//! The audit refuses what an agent signed against its own seal, which no acceptor takes.

use ed25519_dalek::SigningKey;
use exchequer_event::{
    audit::{Auditor, examine_bytes},
    control,
    digest::Digest,
    entry, seal,
    seal::Refusal,
    v1::{self, KeyRole, RejectionReason, control_record::Kind as ControlKind, entry::Kind, event},
};
use prost::{Message, bytes::Bytes};

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn public(seed: u8) -> Bytes {
    Bytes::copy_from_slice(key(seed).verifying_key().as_bytes())
}

/// Three events of a sealed batch, changed before they are signed, and what the audit says of each entry.
fn check(change: impl Fn(usize, &mut v1::Event)) -> Result<(), (usize, Refusal)> {
    let control = |kind| {
        let record = v1::ControlRecord { time_unix_ms: 1, actor: "test".into(), kind: Some(kind) };
        Kind::Control(control::sign_control(&key(9), &record))
    };
    let mut kinds = vec![
        control(ControlKind::Genesis(v1::Genesis { origin: "test/log".into(), ledger_key: public(9) })),
        control(ControlKind::KeyEnrolled(v1::KeyEnrolled {
            role: KeyRole::Agent.into(),
            holder: "agent-1".into(),
            public_key: public(1),
        })),
    ];
    let mut prev_hash = Digest::ZERO;
    let mut events = Vec::new();
    for place in 0..3 {
        let mut event = v1::Event {
            agent_id: "agent-1".into(),
            epoch: 1,
            seq: place as u64 + 1,
            prev_hash: prev_hash.into(),
            kind: Some(event::Kind::AgentStopped(v1::AgentStopped::default())),
            ..v1::Event::default()
        };
        change(place, &mut event);
        let bytes = Bytes::from(event.encode_to_vec());
        prev_hash = seal::event_digest(&bytes);
        events.push(bytes);
    }
    let digests: Vec<_> = events.iter().map(|event| seal::event_digest(event)).collect();
    let signed = seal::seal_batch(&key(1), "agent-1", 1, 1, Digest::ZERO, events);
    kinds.push(Kind::BatchSealed(v1::BatchSealed {
        seal: signed.seal,
        signature: signed.signature,
        public_key: public(1),
        skipped: 0,
        event_digests: seal::join_digests(&digests),
        previous_epoch: None,
    }));
    kinds.extend(signed.events.into_iter().map(Kind::Event));
    let (mut whole, mut halves) = (Auditor::new(), Auditor::new());
    for (place, kind) in kinds.into_iter().enumerate() {
        let stream_seq = place.min(2) as u64 + 1;
        let entry = v1::Entry { stream_seq, kind: Some(kind) };
        let examined = examine_bytes(&entry::encode(&entry).expect("small")).expect("decodes");
        let checked = whole.check(&entry);
        assert_eq!(checked, halves.judge(examined), "entry {place}");
        checked.map_err(|refusal| (place, refusal))?;
    }
    assert_eq!((whole.counts(), whole.counts().events), (halves.counts(), 3));
    whole.finish().map_err(|refusal| (usize::MAX, refusal))
}

fn mismatch(place: usize, detail: &str) -> Result<(), (usize, Refusal)> {
    Err((place, Refusal { reason: RejectionReason::SealMismatch, detail: detail.into() }))
}

#[test]
fn events_have_to_stand_where_their_seal_puts_them() {
    assert_eq!(check(|_, _| {}), Ok(()));
    let (identity, link) =
        ("agent_id, epoch or seq is not the seal's", "prev_hash is not the digest of the event before");
    let second = |change: fn(&mut v1::Event)| {
        check(move |place, event| {
            if place == 1 {
                change(event);
            }
        })
    };
    assert_eq!(second(|event| event.seq = 3), mismatch(4, identity));
    assert_eq!(second(|event| event.epoch = 2), mismatch(4, identity));
    assert_eq!(second(|event| event.agent_id = "agent-2".into()), mismatch(4, identity));
    assert_eq!(second(|event| event.prev_hash = Digest::ZERO.into()), mismatch(4, link));
    assert_eq!(second(|event| event.prev_hash = Bytes::new()), mismatch(4, link));
    assert_eq!(check(|_, event| event.prev_hash = Digest([1; 32]).into()), mismatch(3, link));
}
