//! The acceptor's state as bytes. Derived state: the format is private and may change with any version; what can't be read is rebuilt
//! from the log. Equal states give equal bytes.

use prost::{Message, bytes::Bytes};

use super::{Acceptor, AgentState, KeyState, PartitionHead};
use crate::{
    control,
    digest::Digest,
    seal::{self, Refusal},
    v1::KeyRole,
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

impl Acceptor {
    /// The state as bytes; equal states give equal bytes.
    pub fn snapshot(&self) -> Vec<u8> {
        Snapshot {
            origin: self.origin.clone(),
            keys: self.keys.iter().map(key).collect(),
            agents: self
                .agents
                .iter()
                .map(|(id, agent)| Agent {
                    id: id.clone(),
                    epoch: agent.epoch,
                    seq: agent.seq,
                    recent: seal::join_digests(&agent.recent.iter().copied().collect::<Vec<_>>()),
                })
                .collect(),
            partitions: self.partitions.iter().map(partition).collect(),
        }
        .encode_to_vec()
    }

    /// The state from a snapshot's bytes.
    pub fn restore(bytes: &[u8]) -> Result<Self, Refusal> {
        let snapshot = Snapshot::decode(bytes).map_err(|e| seal::malformed(format!("snapshot: {e}")))?;
        let mut acceptor = Self { origin: snapshot.origin, ..Self::default() };
        for key in snapshot.keys {
            acceptor.keys.push(KeyState {
                role: KeyRole::try_from(key.role).map_err(|_| seal::malformed("snapshot: role"))?,
                holder: key.holder,
                key: control::public_key("snapshot: key", &key.public)?,
                revoked: key.revoked,
            });
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
