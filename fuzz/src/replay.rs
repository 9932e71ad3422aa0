//! The two folds: messages through the acceptor, whose entries the auditor has to accept, and entries through the auditor.

use std::sync::LazyLock;

use bytes::Bytes;
use exchequer_event::{
    accept::{Acceptor, Incoming},
    audit::Auditor,
    digest::{Digest, Purpose},
    entry,
    name::MAX_ENTRY_BYTES,
    seal, tree,
    v1::{self, KeyRole, entry::Kind},
};
use exchequer_tlog::push_entry;
use prost::Message as _;

use crate::records::{
    AGENT, agent, batches, blocks, controls, enrolment, genesis, metering_key, seal_anew, seal_block_anew,
    sign_control_anew,
};

/// Messages of one input that are looked at.
const MAX_MESSAGES: usize = 64;

/// The two folds after the same messages.
#[derive(Clone, Default)]
struct World {
    acceptor: Acceptor,
    auditor: Auditor,
    stream_seq: u64,
    entries: Vec<Bytes>,
}

impl World {
    /// Whether the message led to entries.
    fn publish(&mut self, subject: &str, payload: Bytes) -> bool {
        self.stream_seq += 1;
        let decided = self.acceptor.decide(&Incoming { stream_seq: self.stream_seq, subject, payload });
        for made in &decided.entries {
            let bytes = entry::encode(made).expect("an entry fits into the log");
            assert_eq!(entry::decode(&bytes).as_ref(), Ok(made));
            entry::facets(made);
            self.auditor.check(made).expect("the auditor accepts what the acceptor made");
            self.acceptor.evolve(made);
            self.entries.push(bytes);
        }
        self.auditor.finish().expect("each message's entries are complete");
        assert!(self.acceptor.snapshot() == self.auditor.acceptor().snapshot(), "the folds differ");
        !decided.entries.is_empty()
    }
}

/// A log with a genesis, a metering key and an agent.
static BEGUN: LazyLock<World> = LazyLock::new(|| {
    let mut world = World::default();
    world.publish("control.genesis", genesis().into());
    let metering = enrolment(KeyRole::Metering, "metering", metering_key().verifying_key().as_bytes());
    world.publish("control.keys", metering.into());
    world.publish("control.keys", enrolment(KeyRole::Agent, AGENT, agent().public_key().as_bytes()).into());
    world
});

/// Where a message goes: events, budget, control, or to nobody.
const WHERE: u8 = 3;
const AS_IT_IS: u8 = 0;
const SIGNED_ANEW: u8 = 4;
const CONTINUING: u8 = 8;

/// The next message: a byte that says where it goes (two bits) and how it is mended (two bits), a length, the payload.
fn next_message(data: &mut &[u8]) -> Option<(u8, Vec<u8>)> {
    let (head, rest) = data.split_first_chunk::<3>()?;
    let length = usize::from(u16::from_be_bytes([head[1], head[2]])).min(rest.len());
    let (payload, rest) = rest.split_at(length);
    *data = rest;
    Some((head[0], payload.to_vec()))
}

/// Messages of the stream, one after the other.
pub(crate) fn messages(mut data: &[u8]) -> bool {
    let mut world = BEGUN.clone();
    let mut accepted = false;
    for _ in 0..MAX_MESSAGES {
        let Some((how, payload)) = next_message(&mut data) else { break };
        let (subject, mended) = match (how & WHERE, how & (SIGNED_ANEW | CONTINUING)) {
            (0, SIGNED_ANEW) => ("events.a1", seal_anew(&payload, None)),
            (0, CONTINUING) => {
                let head = world.acceptor.head(AGENT).unwrap_or_default();
                let before = Digest::from_slice(&head.hash).unwrap_or(Digest::ZERO);
                ("events.a1", seal_anew(&payload, Some((head.epoch.max(1), head.seq + 1, before))))
            }
            (1, SIGNED_ANEW) => ("budget.0", seal_block_anew(&payload, None)),
            (1, CONTINUING) => {
                let head = world.acceptor.partition("0");
                ("budget.0", seal_block_anew(&payload, Some((head.index.wrapping_add(1), head.hash))))
            }
            (2, SIGNED_ANEW | CONTINUING) => ("control.keys", sign_control_anew(&payload)),
            (0, _) => ("events.a1", None),
            (1, _) => ("budget.0", None),
            (2, _) => ("control.keys", None),
            _ => ("events.nobody", None),
        };
        accepted |= world.publish(subject, mended.unwrap_or_else(|| payload.into()));
    }
    accepted
}

pub(crate) fn message_samples() -> Vec<Vec<u8>> {
    let frame = |how: u8, payload: &[u8]| {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [&[how], &length[..], payload].concat()
    };
    let batches: Vec<_> = batches().iter().map(|batch| frame(AS_IT_IS, batch)).collect();
    let blocks: Vec<_> = blocks().iter().map(|block| frame(1 | CONTINUING, block)).collect();
    let controls: Vec<_> = controls().iter().map(|control| frame(2, control)).collect();
    let again: Vec<_> = crate::records::batches().iter().map(|batch| frame(CONTINUING, batch)).collect();
    vec![
        [batches.concat(), blocks.concat()].concat(),
        [again.concat(), batches.concat(), controls.concat()].concat(),
        [batches[0].clone(), again[0].clone(), frame(SIGNED_ANEW, &crate::records::batches()[1])].concat(),
        vec![3],
    ]
}

/// The seal of a batch with the root over its digests, their number and a signature.
fn seal_entry_anew(decoded: &mut v1::Entry) -> Option<()> {
    let Some(Kind::BatchSealed(sealed)) = &mut decoded.kind else { return None };
    let mut seal = v1::BatchSeal::decode(sealed.seal.clone()).ok()?;
    let digests = seal::split_digests(&sealed.event_digests)?;
    seal.count = u32::try_from(digests.len()).ok()?;
    seal.root = tree::root(&digests).into();
    sealed.seal = seal.encode_to_vec().into();
    sealed.public_key = Bytes::copy_from_slice(agent().public_key().as_bytes());
    sealed.signature = seal::sign(agent().key(), Purpose::BatchSeal.digest(&sealed.seal));
    Some(())
}

fn audit(data: &[u8], anew: bool) -> bool {
    let mut auditor = BEGUN.auditor.clone();
    let mut rest = data;
    let mut accepted = false;
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)).min(tail.len());
        let (bytes, tail) = tail.split_at(length);
        rest = tail;
        let Ok(mut decoded) = entry::decode(&Bytes::copy_from_slice(bytes)) else { break };
        assert!(bytes.len() <= MAX_ENTRY_BYTES);
        entry::facets(&decoded);
        if anew {
            let _ = seal_entry_anew(&mut decoded);
        }
        if auditor.check(&decoded).is_err() {
            break;
        }
        accepted = true;
    }
    let _ = auditor.finish();
    let snapshot = auditor.acceptor().snapshot();
    assert!(Acceptor::restore(&snapshot).unwrap().snapshot() == snapshot);
    accepted
}

/// Entries of a log, each after its length, as in a bundle: as they are, and with seals that are signed anew.
pub(crate) fn entries(data: &[u8]) -> bool {
    audit(data, false) | audit(data, true)
}

/// A batch, and a seal after it whose numbers overflow.
fn overflowing(first_seq: u64, skipped: u32) -> Vec<u8> {
    let mut world = BEGUN.clone();
    let from = world.entries.len();
    world.publish("events.a1", batches().swap_remove(0).into());
    let seal = v1::BatchSeal {
        agent_id: AGENT.into(),
        epoch: 1,
        first_seq,
        prev_hash: vec![0; 32].into(),
        ..v1::BatchSeal::default()
    };
    let sealed = v1::BatchSealed {
        seal: seal.encode_to_vec().into(),
        event_digests: vec![7; 64].into(),
        skipped,
        ..v1::BatchSealed::default()
    };
    let last = v1::Entry { stream_seq: 99, kind: Some(Kind::BatchSealed(sealed)) };
    world.entries.push(entry::encode(&last).unwrap());
    let mut bytes = Vec::new();
    for entry in &world.entries[from..] {
        push_entry(&mut bytes, entry).unwrap();
    }
    bytes
}

pub(crate) fn entry_samples() -> Vec<Vec<u8>> {
    let logs = message_samples().into_iter().map(|sample| {
        let mut world = BEGUN.clone();
        let from = world.entries.len();
        let mut rest = &sample[..];
        while let Some((how, payload)) = next_message(&mut rest) {
            world.publish(
                ["events.a1", "budget.0", "control.keys", "events.nobody"][usize::from(how & WHERE)],
                payload.into(),
            );
        }
        let mut bytes = Vec::new();
        for entry in &world.entries[from..] {
            push_entry(&mut bytes, entry).unwrap();
        }
        bytes
    });
    logs.chain([overflowing(u64::MAX, 1), overflowing(u64::MAX - 2, 9)]).collect()
}
