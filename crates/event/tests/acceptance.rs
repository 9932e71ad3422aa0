//! Which messages become entries, and which rejections: each rule of the acceptance fold as a fact.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/world.rs"]
mod world;

use exchequer_event::{
    accept::{Acceptor, COMPARED_EVENTS, Incoming, Outcome},
    audit::Auditor,
    digest::{Digest, Purpose},
    name::{MAX_BATCH_BYTES, MAX_EVENT_BYTES},
    seal::{self, BlockPlace},
    v1::{self, KeyRole, RejectionReason as Reason, control_record, entry::Kind},
};
use proptest::prelude::*;
use prost::{Message, bytes::Bytes};
use world::{Agent, World, key, public};

fn accepted(agent: &str, new_events: usize) -> Outcome {
    Outcome::Batch { agent_id: agent.into(), new_events }
}

fn rejected(agent: &str, reason: Reason) -> Outcome {
    Outcome::Rejected { agent_id: Some(agent.into()), reason }
}

#[test]
fn contiguous_batches_are_accepted_in_order_with_their_seal_first() {
    let (mut world, mut a) = (World::new(), Agent::new("a", 1));
    assert_eq!(world.events("a", a.batch(3, "")), accepted("a", 3));
    assert_eq!(world.events("a", a.batch(2, "")), accepted("a", 2));
    let head = world.acceptor.head("a").unwrap();
    assert_eq!((head.epoch, head.seq, head.hash), (1, 5, a.hash.into()));
    let kinds: Vec<_> =
        world.entries[4..].iter().map(|e| matches!(e.kind, Some(Kind::BatchSealed(_)))).collect();
    assert_eq!(kinds, [true, false, false, false, true, false, false]);
}

#[test]
fn an_exact_duplicate_adds_nothing_and_an_overlap_adds_what_is_new() {
    let (mut world, mut a) = (World::new(), Agent::new("a", 1));
    let mut fork = a.clone();
    let first = a.batch(3, "");
    world.events("a", first.clone());
    let before = world.entries.len();
    assert_eq!(world.events("a", first), Outcome::Duplicate { agent_id: "a".into() });
    assert_eq!(world.entries.len(), before);
    assert_eq!(world.events("a", fork.batch(5, "")), accepted("a", 2));
    let Some(Kind::BatchSealed(sealed)) = &world.entries[before].kind else { panic!("no seal") };
    assert_eq!(sealed.skipped, 3);
    assert_eq!(world.entries.len(), before + 3);
}

#[test]
fn a_gap_is_rejected_with_the_head_to_go_back_to() {
    let (mut world, mut a) = (World::new(), Agent::new("a", 1));
    world.events("a", a.batch(2, ""));
    let lost = a.batch(2, "");
    let after = a.batch(2, "");
    assert_eq!(world.events("a", after.clone()), rejected("a", Reason::Gap));
    let Some(Kind::Rejection(rejection)) = &world.entries.last().unwrap().kind else {
        panic!("no rejection")
    };
    assert_eq!(rejection.head.as_ref().unwrap().seq, 2);
    assert_eq!(world.events("a", lost), accepted("a", 2));
    assert_eq!(world.events("a", after), accepted("a", 2));
}

#[test]
fn two_events_in_one_place_are_an_equivocation_with_evidence_of_both() {
    let (mut world, mut a) = (World::new(), Agent::new("a", 1));
    let mut fork = a.clone();
    world.events("a", a.batch(3, "one"));
    assert_eq!(world.events("a", fork.batch(4, "other")), Outcome::Equivocation { agent_id: "a".into() });
    assert_eq!(world.acceptor.head("a").unwrap().seq, 3, "nothing of the fork is accepted");
    let Some(Kind::Equivocation(evidence)) = &world.entries.last().unwrap().kind else {
        panic!("no evidence")
    };
    assert_eq!(evidence.seq, 1);
    assert_ne!(evidence.recorded_digest, evidence.offered_digest);
    assert_eq!(seal::event_digest(&evidence.offered_event).0, *evidence.offered_digest);
}

#[test]
fn a_fork_after_the_head_is_the_wrong_chain() {
    let (mut world, mut a) = (World::new(), Agent::new("a", 1));
    let mut fork = a.clone();
    world.events("a", a.batch(3, "one"));
    fork.batch(3, "other");
    assert_eq!(world.events("a", fork.batch(1, "other")), rejected("a", Reason::WrongChain));
}

#[test]
fn a_new_epoch_names_where_the_old_one_ended_and_the_old_one_is_stale() {
    let (mut world, mut a) = (World::new(), Agent::new("a", 1));
    world.events("a", a.batch(3, ""));
    let mut renewed = Agent { epoch: 2, seq: 0, hash: Digest::ZERO, ..a.clone() };
    assert_eq!(world.events("a", renewed.batch(1, "")), accepted("a", 1));
    let seal_at = world.entries.len() - 2;
    let Some(Kind::BatchSealed(sealed)) = &world.entries[seal_at].kind else { panic!("no seal") };
    assert_eq!(sealed.previous_epoch.as_ref().unwrap().seq, 3);
    assert_eq!(world.events("a", a.batch(1, "")), rejected("a", Reason::Stale));
    let mut late = Agent { epoch: 3, seq: 4, ..a };
    assert_eq!(world.events("a", late.batch(1, "")), rejected("a", Reason::Gap));
}

#[test]
fn an_overlap_older_than_what_is_compared_is_stale() {
    let (mut world, mut a) = (World::new(), Agent::new("a", 1));
    let first = a.batch(1, "");
    world.events("a", first.clone());
    for _ in 0..COMPARED_EVENTS / 512 {
        world.events("a", a.batch(512, ""));
    }
    assert_eq!(world.events("a", first), rejected("a", Reason::Stale));
}

#[test]
fn only_an_enrolled_unrevoked_key_of_the_subjects_agent_is_believed() {
    let mut world = World::new();
    let mut stranger = Agent::new("c", 3);
    assert_eq!(world.events("c", stranger.batch(1, "")), rejected("c", Reason::UnknownKey));
    let mut forger = Agent { key: key(9), ..Agent::new("a", 1) };
    assert_eq!(world.events("a", forger.batch(1, "")), rejected("a", Reason::BadSignature));
    let mut b = Agent::new("b", 2);
    assert_eq!(world.events("a", b.batch(1, "")), rejected("a", Reason::SealMismatch));
    world.control(control_record::Kind::KeyRevoked(v1::KeyRevoked {
        role: KeyRole::Agent.into(),
        holder: "b".into(),
        public_key: public(&key(2)),
        reason: "lost".into(),
    }));
    let mut b = Agent::new("b", 2);
    assert_eq!(world.events("b", b.batch(1, "")), rejected("b", Reason::UnknownKey));
    world.enrol(KeyRole::Agent, "b", public(&key(2)));
    let mut b = Agent::new("b", 2);
    assert_eq!(world.events("b", b.batch(1, "")), rejected("b", Reason::UnknownKey), "revoked stays revoked");
}

#[test]
fn a_tampered_batch_is_refused_for_what_is_wrong_with_it() {
    let sealed = |change: fn(&mut v1::SignedBatch)| {
        let mut batch = v1::SignedBatch::decode(Agent::new("a", 1).batch(3, "x")).unwrap();
        change(&mut batch);
        Bytes::from(batch.encode_to_vec())
    };
    let check = |change: fn(&mut v1::SignedBatch), reason| {
        assert_eq!(World::new().events("a", sealed(change)), rejected("a", reason));
    };
    check(|batch| batch.signature = Bytes::new(), Reason::BadSignature);
    check(|batch| batch.events.swap(0, 1), Reason::SealMismatch);
    check(|batch| drop(batch.events.pop()), Reason::SealMismatch);
    check(|batch| batch.events.clear(), Reason::Malformed);
    check(|batch| batch.events[0] = Bytes::from(vec![0; MAX_EVENT_BYTES + 1]), Reason::TooLarge);
    check(|batch| batch.seal = Bytes::from_static(b"\xff"), Reason::Malformed);
    let mut world = World::new();
    assert_eq!(world.events("a", Bytes::from(vec![0; MAX_BATCH_BYTES + 1])), rejected("a", Reason::TooLarge));
    assert_eq!(world.events("a", Bytes::from_static(b"garbage")), rejected("a", Reason::Malformed));
    assert_eq!(
        world.publish("elsewhere", Bytes::new()).outcome,
        Outcome::Rejected { agent_id: None, reason: Reason::UnknownSubject }
    );
}

#[test]
fn an_event_that_does_not_fit_its_seal_is_refused_though_signed() {
    let resealed = |event: v1::Event| {
        let events = vec![Bytes::from(event.encode_to_vec())];
        let batch = seal::seal_batch(&key(1), "a", 1, 1, Digest::ZERO, events);
        World::new().events("a", batch.encode_to_vec().into())
    };
    let good = v1::SignedBatch::decode(Agent::new("a", 1).batch(1, "")).unwrap();
    let good = v1::Event::decode(good.events[0].clone()).unwrap();
    assert_eq!(resealed(good.clone()), accepted("a", 1));
    let mismatch = rejected("a", Reason::SealMismatch);
    assert_eq!(resealed(v1::Event { agent_id: "b".into(), ..good.clone() }), mismatch);
    assert_eq!(resealed(v1::Event { epoch: 2, ..good.clone() }), mismatch);
    assert_eq!(resealed(v1::Event { seq: 2, ..good.clone() }), mismatch);
    assert_eq!(resealed(v1::Event { prev_hash: Bytes::new(), ..good.clone() }), mismatch);
    let malformed = rejected("a", Reason::Malformed);
    assert_eq!(resealed(v1::Event { kind: None, ..good.clone() }), malformed);
    assert_eq!(resealed(v1::Event { tenant: "a/b".into(), ..good.clone() }), malformed);
    assert_eq!(resealed(v1::Event { execution_id: "x".into(), ..good.clone() }), malformed);
    assert_eq!(resealed(v1::Event { skill: "A skill".into(), ..good.clone() }), malformed);
    assert_eq!(resealed(v1::Event { skill: "sum.up-2".into(), ..good }), accepted("a", 1));
}

#[test]
fn nothing_counts_before_the_genesis_and_there_is_only_one() {
    let mut world = World::empty();
    let genesis = |key: &ed25519_dalek::SigningKey| {
        control_record::Kind::Genesis(v1::Genesis {
            origin: "test.local/log".into(),
            ledger_key: public(key),
        })
    };
    let reason = |reason| Outcome::Rejected { agent_id: None, reason };
    assert_eq!(world.events("a", Agent::new("a", 1).batch(1, "")), rejected("a", Reason::Genesis));
    assert_eq!(world.enrol(KeyRole::Agent, "a", public(&key(1))), reason(Reason::Genesis));
    let ledger = world.ledger.clone();
    assert_eq!(world.control_by(&key(7), genesis(&ledger)), reason(Reason::BadSignature));
    assert_eq!(world.control(genesis(&ledger)), Outcome::Control);
    assert_eq!(world.control(genesis(&ledger)), reason(Reason::Genesis));
    let other = key(7);
    let enrol = control_record::Kind::KeyEnrolled(v1::KeyEnrolled {
        role: KeyRole::Agent.into(),
        holder: "a".into(),
        public_key: public(&key(1)),
    });
    assert_eq!(world.control_by(&other, enrol), reason(Reason::UnknownKey));
}

#[test]
fn a_block_that_does_not_follow_its_chain_is_fenced() {
    let mut world = World::new();
    let accepted = Outcome::Block { partition: "0".into() };
    let fenced = Outcome::Rejected { agent_id: None, reason: Reason::Fenced };
    let (outcome, first) = world.block(1, 1, Digest::ZERO, 0);
    assert_eq!(outcome, accepted);
    assert_eq!(world.block(1, 1, Digest::ZERO, 0).0, fenced, "a second first block");
    let (outcome, second) = world.block(2, 2, first, 0);
    assert_eq!(outcome, accepted);
    assert_eq!(world.block(1, 3, second, 0).0, fenced, "a zombie's epoch");
    assert_eq!(world.block(2, 3, first, 0).0, fenced, "another predecessor");
    assert_eq!(world.block(2, 3, second, 1_000).0, fenced, "usage from the future");
    assert_eq!(world.block(2, 3, second, 1).0, accepted);
    assert_eq!(world.acceptor.partition("0").index, 3);
}

/// Decoders skip what they don't know, so a signed seal can be padded to any size: its entry would not fit into the log.
#[test]
fn a_padded_seal_is_too_large_though_signed() {
    let pad = |seal: &Bytes| {
        // Field 1000, length-delimited, 2,000 bytes.
        let mut padded = seal.to_vec();
        padded.extend([0xc2, 0x3e, 0xd0, 0x0f]);
        padded.extend([0; 2000]);
        Bytes::from(padded)
    };
    let mut batch = v1::SignedBatch::decode(Agent::new("a", 1).batch(1, "")).unwrap();
    batch.seal = pad(&batch.seal);
    batch.signature = seal::sign(&key(1), Purpose::BatchSeal.digest(&batch.seal));
    assert!(v1::BatchSeal::decode(batch.seal.clone()).is_ok(), "it decodes");
    assert_eq!(World::new().events("a", batch.encode_to_vec().into()), rejected("a", Reason::TooLarge));

    let mut world = World::new();
    let place = BlockPlace {
        partition: "0".into(),
        epoch: 1,
        index: 1,
        prev_hash: Digest::ZERO,
        now_unix_ms: 1,
        usage_cursor: 0,
    };
    let mut block = seal::seal_block(&world.metering, place, Vec::new());
    block.seal = pad(&block.seal);
    block.signature = seal::sign(&world.metering, Purpose::BlockSeal.digest(&block.seal));
    let outcome = world.publish("budget.0", block.encode_to_vec().into()).outcome;
    assert_eq!(outcome, Outcome::Rejected { agent_id: None, reason: Reason::TooLarge });
}

#[derive(Clone, Debug)]
enum Step {
    Send { agent: usize, count: usize },
    Duplicate { back: usize },
    Lose { agent: usize, count: usize },
    Fork { agent: usize },
    Garbage(Vec<u8>),
    NewEpoch { agent: usize },
    FlipByte { back: usize, at: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..2_usize, 1..6_usize).prop_map(|(agent, count)| Step::Send { agent, count }),
        2 => (0..8_usize).prop_map(|back| Step::Duplicate { back }),
        1 => (0..2_usize, 1..4_usize).prop_map(|(agent, count)| Step::Lose { agent, count }),
        1 => (0..2_usize).prop_map(|agent| Step::Fork { agent }),
        1 => proptest::collection::vec(any::<u8>(), 0..64).prop_map(Step::Garbage),
        1 => (0..2_usize).prop_map(|agent| Step::NewEpoch { agent }),
        2 => (0..8_usize, any::<usize>()).prop_map(|(back, at)| Step::FlipByte { back, at }),
    ]
}

proptest! {
    /// Whatever is thrown at the stream: no panic, the audit of the entries passes, each accepted event stands once, the state folded
    /// from the messages equals the state folded from the entries and the one restored from a snapshot in the middle.
    #[test]
    fn any_history_is_accepted_consistently(steps in proptest::collection::vec(step(), 0..40), cut in 0..40_usize) {
        let mut world = World::new();
        let mut agents = [Agent::new("a", 1), Agent::new("b", 2)];
        let mut accepted: Vec<(String, u64, u64)> = Vec::new();
        let mut restored = None;
        for (place, step) in steps.into_iter().enumerate() {
            if place == cut {
                restored = Some((Acceptor::restore(&world.acceptor.snapshot()).unwrap(), world.messages.len()));
            }
            let earlier = |back: usize| world.messages[world.messages.len().saturating_sub(back + 1)].clone();
            let (subject, payload) = match step {
                Step::Send { agent, count } => {
                    (format!("events.{}", agents[agent].id), agents[agent].batch(count, ""))
                }
                Step::Duplicate { back } => earlier(back),
                Step::Lose { agent, count } => {
                    // Lost on the way; the honest agent goes back to the recorded head.
                    let before = agents[agent].clone();
                    agents[agent].batch(count, "");
                    let payload = agents[agent].batch(1, "");
                    let subject = format!("events.{}", before.id);
                    agents[agent] = before;
                    (subject, payload)
                }
                Step::Fork { agent } => {
                    let mut fork = Agent { seq: 0, hash: Digest::ZERO, ..agents[agent].clone() };
                    (format!("events.{}", fork.id), fork.batch(2, "fork"))
                }
                Step::Garbage(bytes) => ("events.a".into(), bytes.into()),
                Step::NewEpoch { agent } => {
                    agents[agent] = Agent { epoch: agents[agent].epoch + 1, seq: 0, hash: Digest::ZERO, ..agents[agent].clone() };
                    (format!("events.{}", agents[agent].id), agents[agent].batch(1, ""))
                }
                Step::FlipByte { back, at } => {
                    let (subject, payload) = earlier(back);
                    let mut bytes = payload.to_vec();
                    if !bytes.is_empty() {
                        let at = at % bytes.len();
                        bytes[at] ^= 1;
                    }
                    (subject, bytes.into())
                }
            };
            for entry in world.publish(&subject, payload).entries {
                if let Some(Kind::Event(bytes)) = entry.kind {
                    let event = v1::Event::decode(bytes).unwrap();
                    accepted.push((event.agent_id, event.epoch, event.seq));
                }
            }
        }
        let count = accepted.len();
        accepted.sort();
        accepted.dedup();
        prop_assert_eq!(accepted.len(), count, "an event stands twice in the log");

        let mut from_entries = Acceptor::new();
        let mut auditor = Auditor::new();
        for entry in &world.entries {
            auditor.check(entry).unwrap();
            from_entries.evolve(entry);
        }
        prop_assert_eq!(&from_entries, &world.acceptor);
        if let Some((mut acceptor, from)) = restored {
            for (place, (subject, payload)) in world.messages.iter().enumerate().skip(from) {
                let incoming = Incoming { stream_seq: place as u64 + 1, subject, payload: payload.clone() };
                for entry in acceptor.decide(&incoming).entries {
                    acceptor.evolve(&entry);
                }
            }
            prop_assert_eq!(&acceptor, &world.acceptor);
        }
    }

    /// One changed byte in any entry is found by the audit, or changes nothing that an entry says.
    #[test]
    fn a_changed_entry_is_found(entry in 0..20_usize, at in any::<usize>(), bit in 0..8_u32) {
        let mut world = World::new();
        let mut a = Agent::new("a", 1);
        for _ in 0..4 {
            world.events("a", a.batch(3, "x"));
        }
        let entry = entry % world.entries.len();
        let mut bytes = world.entries[entry].encode_to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        let Ok(changed) = v1::Entry::decode(Bytes::from(bytes)) else { return Ok(()) };
        prop_assume!(changed != world.entries[entry] && changed.stream_seq == world.entries[entry].stream_seq);
        let mut auditor = Auditor::new();
        let found = world.entries.iter().enumerate().any(|(place, original)| {
            auditor.check(if place == entry { &changed } else { original }).is_err()
        });
        // A batch entry's `previous_epoch` and `public_key` are compared too, so nothing signed or chained is left unseen.
        prop_assert!(found || auditor.finish().is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut world = World::new();
        for subject in ["events.a", "budget.0", "control.keys", "?"] {
            world.publish(subject, bytes.clone().into());
        }
        let _ = Acceptor::restore(&bytes);
        let _ = exchequer_event::entry::decode(&bytes.into()).map(|entry| exchequer_event::entry::facets(&entry));
    }
}
