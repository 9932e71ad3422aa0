//! Integration: messages of the stream become the log's entries. Pure: no IO, clock, randomness or async.
//!
//! Left out: the tree over the entries and their storage. Invariant: the same messages in the same order lead to the same bytes,
//! however they are cut into batches.

use std::collections::BTreeMap;

use bytes::Bytes;
use exchequer_event::{
    accept::{Acceptor, Examined, Incoming, KeyState, Outcome},
    entry,
    v1::{self, EntryKind, RejectionReason, entry::Kind},
};
use exchequer_stream::Record;
use exchequer_tlog::{Hash, leaf_hash};

/// An entry, encoded, with its leaf hash.
#[derive(Clone, Debug)]
struct Leaf {
    entry: Bytes,
    hash: Hash,
}

impl Leaf {
    fn new(entry: &v1::Entry) -> Self {
        // The bounds that the acceptor checks leave room for what an entry adds.
        let entry = entry::encode(entry).expect("an accepted record fits into an entry");
        Self { hash: leaf_hash(&entry), entry }
    }
}

/// A message on which all was done that does not depend on the messages before it. That is most of the work, and as many messages can
/// be prepared at a time as there are cores.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The message.
    pub record: Record,
    examined: Examined,
    /// The entries that its events become if they are accepted.
    events: Vec<Leaf>,
}

impl Prepared {
    /// Prepares a message. The keys may be those of an earlier state; they decide what it costs, not what comes of it.
    pub fn new(record: Record, likely: &[KeyState]) -> Self {
        let examined = Examined::new(&incoming(&record), likely);
        let entry =
            |event: &Bytes| v1::Entry { stream_seq: record.seq, kind: Some(Kind::Event(event.clone())) };
        let events = examined.events().iter().map(|event| Leaf::new(&entry(event))).collect();
        Self { record, examined, events }
    }
}

fn incoming(record: &Record) -> Incoming<'_> {
    Incoming { stream_seq: record.seq, subject: &record.subject, payload: record.payload.clone() }
}

/// What a run of messages became.
#[derive(Clone, Debug, Default)]
pub struct Integrated {
    /// The entries in log order, encoded.
    pub entries: Vec<Bytes>,
    /// The leaf hash of each entry.
    pub leaves: Vec<Hash>,
    /// How many entries there are of each kind.
    pub kinds: BTreeMap<EntryKind, u64>,
    /// The agents that have something to be told: the outcome of their last message.
    pub agents: BTreeMap<String, AgentOutcome>,
    /// Why messages were refused, each as often as it happened.
    pub rejections: BTreeMap<RejectionReason, u64>,
    /// Whether the set of keys may have changed.
    pub keys_changed: bool,
}

/// What became of an agent's last message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentOutcome {
    /// How far its events are now; seq 0 if it has none.
    pub head: v1::AgentHead,
    /// Why its last batch was refused, if it was.
    pub refused: Option<RejectionReason>,
}

/// Takes messages into the acceptor's state, in order, and returns what they become.
pub fn integrate(acceptor: &mut Acceptor, messages: impl IntoIterator<Item = Prepared>) -> Integrated {
    let mut integrated = Integrated::default();
    for Prepared { record, examined, events } in messages {
        let decided = acceptor.decide_examined(&incoming(&record), examined);
        let new = decided.entries.iter().filter(|entry| matches!(entry.kind, Some(Kind::Event(_)))).count();
        // What the log held already stands at a batch's beginning.
        let skipped = events.len().saturating_sub(new);
        let mut prepared = events.into_iter().skip(skipped);
        for entry in &decided.entries {
            acceptor.evolve(entry);
            *integrated.kinds.entry(entry::kind(entry)).or_default() += 1;
            let ready = if matches!(entry.kind, Some(Kind::Event(_))) { prepared.next() } else { None };
            let leaf = ready.unwrap_or_else(|| Leaf::new(entry));
            integrated.entries.push(leaf.entry);
            integrated.leaves.push(leaf.hash);
        }
        let (agent_id, refused) = match decided.outcome {
            Outcome::Batch { agent_id, .. } | Outcome::Duplicate { agent_id } => (Some(agent_id), None),
            // There is no closer reason: the batch is another continuation of a head that was passed.
            Outcome::Equivocation { agent_id } => (Some(agent_id), Some(RejectionReason::WrongChain)),
            Outcome::Rejected { agent_id, reason } => {
                *integrated.rejections.entry(reason).or_default() += 1;
                (agent_id, Some(reason))
            }
            Outcome::Control => {
                integrated.keys_changed = true;
                (None, None)
            }
            Outcome::Block { .. } | Outcome::Refilled => (None, None),
        };
        if let Some(agent_id) = agent_id {
            let outcome = AgentOutcome { head: head_of(acceptor, &agent_id), refused };
            integrated.agents.insert(agent_id, outcome);
        }
    }
    integrated
}

/// An agent's head; seq 0 if it has no events.
pub(crate) fn head_of(acceptor: &Acceptor, agent_id: &str) -> v1::AgentHead {
    let none = || v1::AgentHead { agent_id: agent_id.to_owned(), ..v1::AgentHead::default() };
    acceptor.head(agent_id).unwrap_or_else(none)
}
