//! A small world for the acceptance tests: a ledger key, agents with keys and chains, and a stream that numbers what is published.
#![allow(clippy::unwrap_used, missing_docs, dead_code)]

use ed25519_dalek::SigningKey;
use exchequer_event::{
    accept::{Acceptor, Decided, Examined, Incoming, KeyState, Outcome},
    audit::Auditor,
    control,
    digest::Digest,
    name,
    seal::{self, BlockPlace},
    v1::{self, KeyRole, control_record::Kind, event},
};
use prost::{Message, bytes::Bytes};

pub fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub fn public(key: &SigningKey) -> Bytes {
    Bytes::copy_from_slice(key.verifying_key().as_bytes())
}

/// An agent that seals what it is told to, honest or not.
#[derive(Clone)]
pub struct Agent {
    pub id: String,
    pub key: SigningKey,
    pub epoch: u64,
    pub seq: u64,
    pub hash: Digest,
}

impl Agent {
    pub fn new(id: &str, seed: u8) -> Self {
        Self { id: id.into(), key: key(seed), epoch: 1, seq: 0, hash: Digest::ZERO }
    }

    /// The next batch of events; `salt` makes their content differ.
    pub fn batch(&mut self, count: usize, salt: &str) -> Bytes {
        let (first, prev) = (self.seq + 1, self.hash);
        let mut events = Vec::new();
        for _ in 0..count {
            self.seq += 1;
            let event = v1::Event {
                agent_id: self.id.clone(),
                epoch: self.epoch,
                seq: self.seq,
                prev_hash: self.hash.into(),
                time_unix_ms: 1_000 + self.seq,
                kind: Some(event::Kind::AgentStopped(v1::AgentStopped { reason: salt.into() })),
                ..v1::Event::default()
            };
            let bytes = Bytes::from(event.encode_to_vec());
            self.hash = seal::event_digest(&bytes);
            events.push(bytes);
        }
        seal::seal_batch(&self.key, &self.id, self.epoch, first, prev, events).encode_to_vec().into()
    }
}

pub struct World {
    pub ledger: SigningKey,
    pub metering: SigningKey,
    pub acceptor: Acceptor,
    pub auditor: Auditor,
    pub messages: Vec<(String, Bytes)>,
    pub entries: Vec<v1::Entry>,
}

impl World {
    /// A log with a genesis, one metering key, and agents `a` (seed 1) and `b` (seed 2) enrolled.
    pub fn new() -> Self {
        let mut world = Self::empty();
        let ledger = public(&world.ledger);
        world.control(Kind::Genesis(v1::Genesis { origin: "test.local/log".into(), ledger_key: ledger }));
        let metering = public(&world.metering);
        world.enrol(KeyRole::Metering, "metering", metering);
        world.enrol(KeyRole::Agent, "a", public(&key(1)));
        world.enrol(KeyRole::Agent, "b", public(&key(2)));
        world
    }

    pub fn empty() -> Self {
        Self {
            ledger: key(100),
            metering: key(101),
            acceptor: Acceptor::new(),
            auditor: Auditor::new(),
            messages: Vec::new(),
            entries: Vec::new(),
        }
    }

    pub fn control(&mut self, kind: Kind) -> Outcome {
        let ledger = self.ledger.clone();
        self.control_by(&ledger, kind)
    }

    pub fn control_by(&mut self, key: &SigningKey, kind: Kind) -> Outcome {
        let subject = name::control_subject(control::topic(&kind));
        let record = v1::ControlRecord { time_unix_ms: 1, actor: "test".into(), kind: Some(kind) };
        self.publish(&subject, control::sign_control(key, &record).encode_to_vec().into()).outcome
    }

    pub fn enrol(&mut self, role: KeyRole, holder: &str, public_key: Bytes) -> Outcome {
        self.control(Kind::KeyEnrolled(v1::KeyEnrolled {
            role: role.into(),
            holder: holder.into(),
            public_key,
        }))
    }

    pub fn events(&mut self, agent: &str, payload: Bytes) -> Outcome {
        self.publish(&name::events_subject(agent), payload).outcome
    }

    pub fn block(
        &mut self,
        epoch: u64,
        index: u64,
        prev_hash: Digest,
        usage_cursor: u64,
    ) -> (Outcome, Digest) {
        let run = v1::DecisionRun { tenant: "acme".into(), decisions: vec![v1::Decision::default()] };
        let place = BlockPlace {
            partition: "0".into(),
            epoch,
            index,
            prev_hash,
            now_unix_ms: 1_000 * index,
            usage_cursor,
        };
        let block = seal::seal_block(&self.metering, place, vec![run.encode_to_vec().into()]);
        let hash = seal::block_digest(&block.seal);
        (self.publish("budget.0", block.encode_to_vec().into()).outcome, hash)
    }

    /// Appends to the stream, folds, and audits what the fold made of it.
    pub fn publish(&mut self, subject: &str, payload: Bytes) -> Decided {
        self.messages.push((subject.to_owned(), payload.clone()));
        let incoming = Incoming { stream_seq: self.messages.len() as u64, subject, payload };
        let decided = self.acceptor.decide(&incoming);
        // Prepared ahead, with keys that have been revoked since or with none: nothing else may come of it.
        let once = |key: &KeyState| KeyState { revoked: false, ..key.clone() };
        for likely in [self.acceptor.keys().iter().map(once).collect(), Vec::new()] {
            let ahead = self.acceptor.decide_examined(&incoming, Examined::new(&incoming, &likely));
            assert_eq!((&ahead.entries, &ahead.outcome), (&decided.entries, &decided.outcome));
        }
        for entry in &decided.entries {
            self.acceptor.evolve(entry);
            self.auditor.check(entry).unwrap();
            self.entries.push(entry.clone());
        }
        self.auditor.finish().unwrap();
        decided
    }
}
