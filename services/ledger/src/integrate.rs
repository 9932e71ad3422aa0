//! Integration: messages of the stream become the log's entries. Pure: no IO, clock, randomness or async.
//!
//! Left out: the tree over the entries and their storage. Invariant: the same messages in the same order lead to the same bytes,
//! however they are cut into batches.

use std::collections::BTreeMap;

use bytes::Bytes;
use exchequer_event::{
    accept::{Acceptor, Incoming, Outcome},
    entry,
    v1::{self, EntryKind, RejectionReason},
};
use exchequer_stream::Record;

/// What a run of messages became.
#[derive(Clone, Debug, Default)]
pub struct Integrated {
    /// The entries in log order, encoded.
    pub entries: Vec<Bytes>,
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
pub fn integrate<'a>(acceptor: &mut Acceptor, records: impl IntoIterator<Item = &'a Record>) -> Integrated {
    let mut integrated = Integrated::default();
    for record in records {
        let message =
            Incoming { stream_seq: record.seq, subject: &record.subject, payload: record.payload.clone() };
        let decided = acceptor.decide(&message);
        for entry in &decided.entries {
            acceptor.evolve(entry);
            *integrated.kinds.entry(entry::kind(entry)).or_default() += 1;
            // The bounds that the acceptor checks leave room for what an entry adds.
            integrated.entries.push(entry::encode(entry).expect("an accepted record fits into an entry"));
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
            Outcome::Block { .. } => (None, None),
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
