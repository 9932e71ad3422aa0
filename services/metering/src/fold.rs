//! The fold of the stream that metering rests on: what was accepted, the budgets of one partition, and the usage that waits to be
//! settled.
//!
//! Pure: no clock, IO or async; the same records give the same fold. Left out: deciding ([`crate::propose`]) and reading
//! ([`crate::writer`]). Invariant: the budgets are a function of the accepted blocks of `budget.<partition>` alone; events only
//! add to what waits, and a block's `usage_cursor` takes away what it covers, so that no execution is settled twice or forgotten.

use std::collections::{BTreeMap, HashSet, VecDeque};

use bytes::Bytes;
use exchequer_budget::{DecisionRun, HoldId, HoldStatus, IdempotencyKey, State, TenantId};
use exchequer_event::{
    accept::{Acceptor, Incoming, Outcome, PartitionHead},
    digest::{Digest, Purpose},
    name,
    seal::decode_event,
    v1::entry::Kind,
};

use crate::usage::Charge;

/// What names an answered idempotency key: half a BLAKE3 digest of tenant and key, so that a key costs 24 bytes here.
pub(crate) type AnswerId = [u8; 16];

/// BLAKE3 `derive_key` context of an `AnswerId`. Nothing outside of snapshots holds one.
pub const ANSWER_CONTEXT: &str = "exchequer.v1 metering answer";

pub(crate) fn answer_id(tenant: &TenantId, key: &IdempotencyKey) -> AnswerId {
    // A tenant contains no slash, so no two pairs are the same text.
    let digest = blake3::derive_key(ANSWER_CONTEXT, format!("{tenant}/{key}").as_bytes());
    let mut id = AnswerId::default();
    id.copy_from_slice(&digest[..16]);
    id
}

/// A message of the stream.
#[derive(Clone, Copy, Debug)]
pub struct Read<'a> {
    /// Its stream sequence.
    pub seq: u64,
    /// Its subject.
    pub subject: &'a str,
    /// Its payload.
    pub payload: &'a Bytes,
}

/// What a message was to this partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Folded {
    /// Nothing that touches its budgets.
    Other,
    /// A block that was accepted; its decisions are in the state.
    Block {
        /// The decisions.
        runs: Vec<DecisionRun>,
        /// When they were made.
        now_ms: u64,
        /// Runs that don't decode as decisions and changed nothing; their writer is defective or hostile.
        undecodable: usize,
    },
    /// A block that was not accepted and changed nothing.
    VoidBlock {
        /// Why.
        reason: String,
    },
}

/// The fold.
#[derive(Clone, Debug)]
pub struct Fold {
    pub(crate) partition: String,
    pub(crate) subject: String,
    pub(crate) acceptor: Acceptor,
    pub(crate) budget: State,
    /// Stream sequence of the last message folded.
    pub(crate) cursor: u64,
    /// Digest of that message, which shows that a snapshot is of this stream.
    pub(crate) cursor_digest: Digest,
    /// Stream sequence of the last message on the partition's subject, accepted or not.
    pub(crate) subject_last: u64,
    /// Usage that waits, in order of the stream; at most one per hold.
    pub(crate) charges: VecDeque<Charge>,
    pub(crate) charged: HashSet<HoldId>,
    /// Stream sequence of the block that answered a key.
    pub(crate) answers: BTreeMap<AnswerId, u64>,
}

impl Fold {
    /// Before the first message.
    pub fn new(partition: &str) -> Self {
        Self {
            partition: partition.to_owned(),
            subject: name::budget_subject(partition),
            acceptor: Acceptor::new(),
            budget: State::default(),
            cursor: 0,
            cursor_digest: Digest::ZERO,
            subject_last: 0,
            charges: VecDeque::new(),
            charged: HashSet::new(),
            answers: BTreeMap::new(),
        }
    }

    /// The budgets.
    pub fn budget(&self) -> &State {
        &self.budget
    }

    /// Stream sequence of the last message folded.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Where the partition's chain of blocks stands.
    pub fn head(&self) -> PartitionHead {
        self.acceptor.partition(&self.partition)
    }

    /// Stream sequence up to which accepted executions are settled in the state.
    pub fn usage_cursor(&self) -> u64 {
        self.charges.front().map_or(self.cursor, |charge| charge.stream_seq.saturating_sub(1))
    }

    /// Takes the next message. Messages come in order; their sequences may have holes.
    pub fn fold(&mut self, read: Read<'_>) -> Folded {
        let incoming =
            Incoming { stream_seq: read.seq, subject: read.subject, payload: read.payload.clone() };
        let decided = self.acceptor.decide(&incoming);
        for entry in &decided.entries {
            self.acceptor.evolve(entry);
        }
        self.cursor = read.seq;
        self.cursor_digest = Purpose::Message.digest(read.payload);
        if read.subject == self.subject {
            self.subject_last = read.seq;
        }
        match decided.outcome {
            Outcome::Block { partition } if partition == self.partition => {
                let now_ms = self.head().now_unix_ms;
                let mut runs = Vec::with_capacity(decided.runs.len());
                for run in &decided.runs {
                    runs.extend(DecisionRun::try_from(run).ok());
                }
                let undecodable = decided.runs.len() - runs.len();
                self.fold_block(&runs, now_ms, read.seq);
                Folded::Block { runs, now_ms, undecodable }
            }
            Outcome::Batch { .. } => {
                for entry in &decided.entries {
                    if let Some(Kind::Event(event)) = &entry.kind
                        && let Ok(event) = decode_event(event)
                        && let Some(charge) = Charge::of(read.seq, &event)
                    {
                        self.take_charge(charge);
                    }
                }
                Folded::Other
            }
            Outcome::Rejected { reason, .. } if read.subject == self.subject => {
                Folded::VoidBlock { reason: format!("{reason:?}") }
            }
            _ => Folded::Other,
        }
    }

    fn fold_block(&mut self, runs: &[DecisionRun], now_ms: u64, stream_seq: u64) {
        for run in runs {
            self.budget.record_run(run, now_ms);
            for idempotency in run.decisions.iter().filter_map(|decision| decision.idempotency.as_ref()) {
                self.answers.entry(answer_id(&run.tenant, &idempotency.key)).or_insert(stream_seq);
            }
        }
        let settled = self.head().usage_cursor;
        while self.charges.front().is_some_and(|charge| charge.stream_seq <= settled) {
            self.drop_first_charge();
        }
    }

    /// Keeps a charge that can settle something: the agent's own hold, not settled or voided, not charged by an earlier event. A
    /// hold is granted before its execution begins, so one that is unknown here stays unknown; it is another partition's, or
    /// invented. What waits is therefore bounded by the holds that are open or expired.
    fn take_charge(&mut self, charge: Charge) {
        let settles = self.budget.hold(&charge.hold_id).is_some_and(|hold| {
            hold.holder == charge.agent && matches!(hold.status, HoldStatus::Open | HoldStatus::Expired)
        });
        if settles && self.charged.insert(charge.hold_id.clone()) {
            self.charges.push_back(charge);
        }
    }

    pub(crate) fn drop_first_charge(&mut self) {
        if let Some(charge) = self.charges.pop_front() {
            self.charged.remove(&charge.hold_id);
        }
    }
}
