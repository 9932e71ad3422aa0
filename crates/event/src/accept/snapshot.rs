//! The acceptor's state as bytes. Derived state: the format is private and may change with any version; what can't be read is rebuilt
//! from the log. Equal states give equal bytes.
//!
//! Most of a state is agents' digests, and they change a little at a time. Whoever keeps the state of many agents keeps the rest
//! ([`Acceptor::snapshot_without_agents`]) and each agent's window ([`Acceptor::agents`]) by themselves.

use std::collections::VecDeque;

use prost::{Message, bytes::Bytes};

use super::{Acceptor, AgentState, COMPARED_EVENTS, KeyState, PartitionHead};
use crate::{
    control,
    digest::Digest,
    seal::{self, Refusal},
    v1::{self, KeyRole},
};

#[derive(Clone, PartialEq, prost::Message)]
struct Snapshot {
    #[prost(string, tag = "1")]
    origin: String,
    #[prost(message, repeated, tag = "2")]
    keys: Vec<Key>,
    #[prost(message, repeated, tag = "3")]
    agents: Vec<Agent>,
    #[prost(message, repeated, tag = "4")]
    partitions: Vec<Partition>,
    #[prost(uint64, tag = "5")]
    entries: u64,
    #[prost(message, repeated, tag = "6")]
    ledger_enrolments: Vec<v1::SignedControl>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Key {
    #[prost(int32, tag = "1")]
    role: i32,
    #[prost(string, tag = "2")]
    holder: String,
    #[prost(bytes = "bytes", tag = "3")]
    public: Bytes,
    #[prost(bool, tag = "4")]
    revoked: bool,
    #[prost(uint64, tag = "5")]
    enrolled_at: u64,
    #[prost(uint64, optional, tag = "6")]
    revoked_at: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Agent {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(uint64, tag = "2")]
    epoch: u64,
    #[prost(uint64, tag = "3")]
    seq: u64,
    #[prost(bytes = "bytes", tag = "4")]
    recent: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Partition {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "2")]
    epoch: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    hash: Bytes,
    #[prost(uint64, tag = "5")]
    now_unix_ms: u64,
    #[prost(uint64, tag = "6")]
    usage_cursor: u64,
    #[prost(uint64, tag = "7")]
    stream_seq: u64,
}

/// What is known of one agent: how far it is, and the digests of its last events.
#[derive(Clone, Copy, Debug)]
pub struct AgentWindow<'a> {
    /// The agent.
    pub agent_id: &'a str,
    /// Its epoch.
    pub epoch: u64,
    /// Seq of its last event.
    pub seq: u64,
    recent: &'a VecDeque<Digest>,
}

impl AgentWindow<'_> {
    /// Seq of the first event whose digest is known.
    pub fn first_seq(&self) -> u64 {
        self.seq + 1 - self.recent.len() as u64
    }

    /// The digest of an event within the window.
    pub fn digest(&self, seq: u64) -> Option<Digest> {
        let place = usize::try_from(seq.checked_sub(self.first_seq())?).ok()?;
        self.recent.get(place).copied()
    }
}

impl Acceptor {
    /// The state as bytes; equal states give equal bytes.
    pub fn snapshot(&self) -> Vec<u8> {
        let agents = self.agents.iter().map(|(id, agent)| Agent {
            id: id.clone(),
            epoch: agent.epoch,
            seq: agent.seq,
            recent: seal::join_digests(&agent.recent.iter().copied().collect::<Vec<_>>()),
        });
        Snapshot { agents: agents.collect(), ..self.without_agents() }.encode_to_vec()
    }

    /// The same, without any agent: what [`Self::restore`] and then [`Self::restore_agent`] for each make whole again.
    pub fn snapshot_without_agents(&self) -> Vec<u8> {
        self.without_agents().encode_to_vec()
    }

    fn without_agents(&self) -> Snapshot {
        Snapshot {
            origin: self.origin.clone(),
            keys: self.keys.iter().map(key).collect(),
            entries: self.entries,
            ledger_enrolments: self.ledger_enrolments.clone(),
            agents: Vec::new(),
            partitions: self.partitions.iter().map(partition).collect(),
        }
    }

    /// Each agent's window, in order of name. Along one log, an agent's window is another only if its epoch or seq is.
    pub fn agents(&self) -> impl Iterator<Item = AgentWindow<'_>> {
        self.agents.iter().map(|(id, agent)| AgentWindow {
            agent_id: id,
            epoch: agent.epoch,
            seq: agent.seq,
            recent: &agent.recent,
        })
    }

    /// Puts an agent's window back: the digests up to that of `seq`.
    pub fn restore_agent(
        &mut self,
        agent_id: &str,
        epoch: u64,
        seq: u64,
        recent: Vec<Digest>,
    ) -> Result<(), Refusal> {
        if recent.is_empty() || recent.len() > COMPARED_EVENTS || (recent.len() as u64) > seq {
            return Err(seal::malformed(format!("snapshot: {} digests up to seq {seq}", recent.len())));
        }
        self.agents.insert(agent_id.to_owned(), AgentState { epoch, seq, recent: recent.into() });
        Ok(())
    }

    /// The state from a snapshot's bytes.
    pub fn restore(bytes: &[u8]) -> Result<Self, Refusal> {
        let snapshot = Snapshot::decode(bytes).map_err(|e| seal::malformed(format!("snapshot: {e}")))?;
        if snapshot.entries == 0 && !snapshot.keys.is_empty() {
            return Err(seal::malformed("snapshot: it is from before keys knew their place"));
        }
        let mut acceptor = Self {
            origin: snapshot.origin,
            entries: snapshot.entries,
            ledger_enrolments: snapshot.ledger_enrolments,
            ..Self::default()
        };
        for key in snapshot.keys {
            acceptor.keys.push(KeyState {
                role: KeyRole::try_from(key.role).map_err(|_| seal::malformed("snapshot: role"))?,
                holder: key.holder,
                key: control::public_key("snapshot: key", &key.public)?,
                revoked: key.revoked,
                enrolled_at: key.enrolled_at,
                revoked_at: key.revoked_at,
            });
        }
        // What counts on from here can't overflow.
        let is_last = |number: u64| number == u64::MAX;
        if snapshot.agents.iter().any(|agent| is_last(agent.seq))
            || snapshot.partitions.iter().any(|partition| is_last(partition.index))
        {
            return Err(seal::malformed("snapshot: a number that nothing can follow"));
        }
        for agent in snapshot.agents {
            let recent =
                seal::split_digests(&agent.recent).ok_or_else(|| seal::malformed("snapshot: digests"))?;
            let state = AgentState { epoch: agent.epoch, seq: agent.seq, recent: recent.into() };
            acceptor.agents.insert(agent.id, state);
        }
        for partition in snapshot.partitions {
            let head = PartitionHead {
                epoch: partition.epoch,
                index: partition.index,
                hash: Digest::from_slice(&partition.hash).ok_or_else(|| seal::malformed("snapshot: hash"))?,
                now_unix_ms: partition.now_unix_ms,
                usage_cursor: partition.usage_cursor,
                stream_seq: partition.stream_seq,
            };
            acceptor.partitions.insert(partition.name, head);
        }
        Ok(acceptor)
    }
}

fn key(key: &KeyState) -> Key {
    Key {
        role: key.role.into(),
        holder: key.holder.clone(),
        public: Bytes::copy_from_slice(key.key.as_bytes()),
        revoked: key.revoked,
        enrolled_at: key.enrolled_at,
        revoked_at: key.revoked_at,
    }
}

fn partition((name, head): (&String, &PartitionHead)) -> Partition {
    Partition {
        name: name.clone(),
        epoch: head.epoch,
        index: head.index,
        hash: head.hash.into(),
        now_unix_ms: head.now_unix_ms,
        usage_cursor: head.usage_cursor,
        stream_seq: head.stream_seq,
    }
}
