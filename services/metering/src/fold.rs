//! The fold of the stream that metering rests on: what was accepted, the budgets of every partition, and the usage that waits to be
//! settled.
//!
//! Pure: no clock, IO or async; the same records give the same fold. Left out: deciding ([`crate::propose`]) and reading
//! ([`crate::core`]). Invariant: a partition's budgets are a function of the accepted blocks of `budget.<partition>` alone; events only
//! add to what waits, and a block's `usage_cursor` takes away what it covers, so that no execution is settled twice or forgotten.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use exchequer_budget::{DecisionRun, Event, HoldId, HoldStatus, Label, Past, State, TenantId};
use exchequer_event::{
    accept::{Acceptor, Incoming, Outcome, PartitionHead},
    digest::{Digest, Purpose},
    name::{self, Subject},
    seal::decode_event,
    v1::entry::Kind,
};

use crate::{partition, usage::Charge};

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

/// What a message was to the budgets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Folded {
    /// Nothing.
    Other,
    /// A block that was accepted; its decisions are in the state.
    Block {
        /// The partition.
        partition: u16,
        /// The decisions.
        runs: Vec<DecisionRun>,
        /// When they were made.
        now_ms: u64,
        /// Runs that don't decode as decisions and changed nothing; their writer is defective or hostile.
        undecodable: usize,
    },
    /// A block that was not accepted and changed nothing.
    VoidBlock {
        /// The partition.
        partition: u16,
        /// Why.
        reason: String,
    },
}

/// The fold.
#[derive(Clone, Debug)]
pub struct Fold {
    pub(crate) acceptor: Acceptor,
    /// Stream sequence of the last message folded.
    pub(crate) cursor: u64,
    /// Digest of that message, which shows that a snapshot is of this stream.
    pub(crate) cursor_digest: Digest,
    /// Entries that the log has of the messages folded.
    pub(crate) log_index: u64,
    pub(crate) parts: Vec<Budgets>,
}

/// What can be charged once at a time: a hold, or an execution under a lease.
pub(crate) type Charged = (HoldId, Option<String>);

/// What is folded of one partition.
#[derive(Clone, Debug)]
pub(crate) struct Budgets {
    pub(crate) name: String,
    pub(crate) subject: String,
    pub(crate) budget: State,
    /// Stream sequence of the last message on the partition's subject, accepted or not.
    pub(crate) subject_last: u64,
    /// What is over.
    pub(crate) past: Past,
    /// Usage that waits, in order of the stream; at most one per hold, and of a lease per execution.
    pub(crate) charges: VecDeque<Charge>,
    pub(crate) charged: HashSet<Charged>,
}

impl Budgets {
    fn new(partition: u16) -> Self {
        let name = partition::name(partition);
        Self {
            subject: name::budget_subject(&name),
            name,
            budget: State::default(),
            subject_last: 0,
            charges: VecDeque::new(),
            charged: HashSet::new(),
            past: Past::default(),
        }
    }

    /// Stream sequence up to which accepted executions are settled, if all up to `cursor` was folded.
    fn usage_cursor(&self, cursor: u64) -> u64 {
        self.charges.front().map_or(cursor, |charge| charge.stream_seq.saturating_sub(1))
    }

    fn fold_block(&mut self, runs: &[DecisionRun], now_ms: u64, stream_seq: u64, settled: u64) {
        for run in runs {
            self.budget.record_run(run, now_ms);
        }
        self.budget.retire(&mut self.past, stream_seq);
        self.drop_drawn(runs);
        while self.charges.front().is_some_and(|charge| charge.stream_seq <= settled) {
            self.drop_first_charge();
        }
    }

    /// Keeps a charge that can settle something: the agent's own hold, not settled or voided, not charged by an earlier event. A
    /// hold is granted before its execution begins, so one that is unknown here stays unknown; it is another partition's, or
    /// invented. What waits is therefore bounded by the holds that are open or expired.
    fn take_charge(&mut self, charge: &Charge) {
        let Some(charged) = self.charged(charge) else { return };
        if self.charged.insert(charged) {
            self.charges.push_back(charge.clone());
        }
    }

    /// What a charge can settle or draw from, if anything.
    pub(crate) fn charged(&self, charge: &Charge) -> Option<Charged> {
        let hold = self.budget.hold(&charge.hold_id).filter(|hold| {
            hold.holder == charge.agent && matches!(hold.status, HoldStatus::Open | HoldStatus::Expired)
        })?;
        Some((charge.hold_id.clone(), hold.lease.then(|| charge.execution_id.clone())))
    }

    /// What a block drew waits no longer, also where its `usage_cursor` does not cover the batch because the rest of it found no room: a
    /// lease stays open, and would be drawn from again. A settled hold is closed, and needs none of this.
    fn drop_drawn(&mut self, runs: &[DecisionRun]) {
        // The writer's own draws have no key; those that holders ask for do.
        let own =
            runs.iter().flat_map(|run| &run.decisions).filter(|decision| decision.idempotency.is_none());
        let drawn: HashSet<_> = own
            .flat_map(|decision| decision.events.iter().map(move |event| (&decision.actor, event)))
            .filter_map(|(actor, event)| match event {
                Event::LeaseDrawn { hold_id, source, .. } => {
                    Some((actor, hold_id, source.as_ref().and_then(|source| source.execution_id.as_ref())))
                }
                _ => None,
            })
            .collect();
        if drawn.is_empty() {
            return;
        }
        let charged = &mut self.charged;
        self.charges.retain(|charge| {
            let execution_id = Label::parse(&charge.execution_id).ok();
            let is_drawn = drawn.contains(&(&charge.agent, &charge.hold_id, execution_id.as_ref()));
            if is_drawn {
                charged.remove(&(charge.hold_id.clone(), Some(charge.execution_id.clone())));
            }
            !is_drawn
        });
    }

    fn drop_first_charge(&mut self) {
        if let Some(charge) = self.charges.pop_front() {
            self.charged.remove(&(charge.hold_id.clone(), None));
            self.charged.remove(&(charge.hold_id, Some(charge.execution_id)));
        }
    }
}

impl Fold {
    /// Before the first message of a stream with so many partitions.
    pub fn new(partitions: u16) -> Self {
        Self {
            acceptor: Acceptor::new(),
            cursor: 0,
            cursor_digest: Digest::ZERO,
            log_index: 0,
            parts: (0..partitions).map(Budgets::new).collect(),
        }
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> u16 {
        u16::try_from(self.parts.len()).unwrap_or(u16::MAX)
    }

    pub(crate) fn part(&self, partition: u16) -> &Budgets {
        &self.parts[usize::from(partition)]
    }

    pub(crate) fn part_mut(&mut self, partition: u16) -> &mut Budgets {
        &mut self.parts[usize::from(partition)]
    }

    /// What is over in a partition. There has to be such a partition.
    pub fn past(&self, partition: u16) -> &Past {
        &self.part(partition).past
    }

    /// A partition's budgets. There has to be such a partition.
    pub fn budget(&self, partition: u16) -> &State {
        &self.part(partition).budget
    }

    /// The budgets that a tenant's are among.
    pub fn budget_of(&self, tenant: &TenantId) -> &State {
        self.budget(self.partition_of_tenant(tenant))
    }

    /// A tenant's partition.
    pub fn partition_of_tenant(&self, tenant: &TenantId) -> u16 {
        partition::of_tenant(tenant, self.partitions())
    }

    /// A hold's partition, if its id can be one.
    pub fn partition_of_hold(&self, hold_id: &HoldId) -> Option<u16> {
        partition::of_hold(hold_id, self.partitions())
    }

    pub(crate) fn partition_of_subject(&self, subject: &str) -> Option<u16> {
        let Some(Subject::Budget(name)) = Subject::parse(subject) else { return None };
        let partition = name.parse().ok().filter(|partition| *partition < self.partitions())?;
        (self.part(partition).name == name).then_some(partition)
    }

    /// Stream sequence of the last message folded.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Log index that follows the last entry of the last message folded.
    pub fn log_index(&self) -> u64 {
        self.log_index
    }

    /// Where a partition's chain of blocks stands.
    pub fn head(&self, partition: u16) -> PartitionHead {
        self.acceptor.partition(&self.part(partition).name)
    }

    /// Stream sequence up to which accepted executions are settled in a partition's state.
    pub fn usage_cursor(&self, partition: u16) -> u64 {
        self.part(partition).usage_cursor(self.cursor)
    }

    /// Takes the next message. Messages come in order; their sequences may have holes.
    pub fn fold(&mut self, read: Read<'_>) -> Folded {
        self.fold_known(read, None)
    }

    /// As [`Self::fold`]. `known` are the decisions of a block that was made here, so that they need not be decoded again.
    pub(crate) fn fold_known(&mut self, read: Read<'_>, known: Option<Vec<DecisionRun>>) -> Folded {
        let incoming =
            Incoming { stream_seq: read.seq, subject: read.subject, payload: read.payload.clone() };
        let decided = self.acceptor.decide(&incoming);
        for entry in &decided.entries {
            self.acceptor.evolve(entry);
        }
        self.cursor = read.seq;
        self.cursor_digest = Purpose::Message.digest(read.payload);
        self.log_index += decided.entries.len() as u64;
        let at = self.partition_of_subject(read.subject);
        if let Some(at) = at {
            self.parts[usize::from(at)].subject_last = read.seq;
        }
        match (decided.outcome, at) {
            (Outcome::Block { .. }, Some(partition)) => {
                let head = self.head(partition);
                let runs = known.unwrap_or_else(|| {
                    decided.runs.iter().filter_map(|run| DecisionRun::try_from(run).ok()).collect()
                });
                let undecodable = decided.runs.len().saturating_sub(runs.len());
                let part = &mut self.parts[usize::from(partition)];
                part.fold_block(&runs, head.now_unix_ms, read.seq, head.usage_cursor);
                Folded::Block { partition, runs, now_ms: head.now_unix_ms, undecodable }
            }
            (Outcome::Batch { .. }, _) => {
                for entry in &decided.entries {
                    if let Some(Kind::Event(event)) = &entry.kind
                        && let Ok(event) = decode_event(event)
                        && let Some(charge) = Charge::of(read.seq, &event)
                    {
                        self.take_charge(&charge);
                    }
                }
                Folded::Other
            }
            (Outcome::Rejected { reason, .. }, Some(partition)) => {
                Folded::VoidBlock { partition, reason: format!("{reason:?}") }
            }
            _ => Folded::Other,
        }
    }

    fn take_charge(&mut self, charge: &Charge) {
        if let Some(partition) = self.partition_of_hold(&charge.hold_id) {
            self.parts[usize::from(partition)].take_charge(charge);
        }
    }

    /// Nothing of what waits has to be settled any more.
    pub(crate) fn drop_charges(&mut self, partition: u16) {
        let part = &mut self.parts[usize::from(partition)];
        part.charges.clear();
        part.charged.clear();
    }
}
