//! The acceptor's agents in rows: what changes with every batch of events, a little at a time.
//!
//! Left out: the rest of the acceptor, which is in the position. Invariant: written in the same batch as the position, so that what
//! [`Windows::restore`] puts back is the acceptor at that position.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use exchequer_event::{
    accept::{Acceptor, AgentWindow},
    digest::{DIGEST_LEN, Digest},
    seal::split_digests,
};
use prost::Message as _;

use super::store::StoreError;

/// Seqs of an agent whose digests are kept together.
const CHUNK: u64 = 64;

/// Which digests of an agent are stored.
#[derive(Clone, PartialEq, prost::Message)]
struct Window {
    #[prost(uint64, tag = "1")]
    epoch: u64,
    #[prost(uint64, tag = "2")]
    first_seq: u64,
    #[prost(uint64, tag = "3")]
    seq: u64,
}

impl Window {
    fn of(agent: &AgentWindow<'_>) -> Self {
        Self { epoch: agent.epoch, first_seq: agent.first_seq(), seq: agent.seq }
    }

    fn chunks(&self) -> std::ops::RangeInclusive<u64> {
        chunk_of(self.first_seq)..=chunk_of(self.seq)
    }
}

fn chunk_of(seq: u64) -> u64 {
    seq.saturating_sub(1) / CHUNK
}

fn window_key(agent_id: &str) -> Vec<u8> {
    [b"a", agent_id.as_bytes()].concat()
}

fn chunk_key(agent_id: &str, epoch: u64, chunk: u64) -> Vec<u8> {
    [b"c", agent_id.as_bytes(), &[0], &epoch.to_be_bytes(), &chunk.to_be_bytes()].concat()
}

/// What is stored, by agent.
#[derive(Debug, Default)]
pub(super) struct Windows {
    stored: BTreeMap<String, Window>,
}

impl Windows {
    /// Writes the agents that have had batches accepted.
    pub(super) fn save(&mut self, batch: &mut sled::Batch, acceptor: &Acceptor, changed: &BTreeSet<String>) {
        for agent in acceptor.agents().filter(|agent| changed.contains(agent.agent_id)) {
            let window = Window::of(&agent);
            let before = self.stored.get(agent.agent_id);
            // Chunks that hold nothing new stay as they are: what fell out of the window is passed over when they are read.
            let first_new =
                before.filter(|before| before.epoch == window.epoch).map_or(0, |before| before.seq + 1);
            for chunk in window.chunks().filter(|chunk| (chunk + 1) * CHUNK >= first_new) {
                let seqs = (chunk * CHUNK + 1).max(window.first_seq)..=((chunk + 1) * CHUNK).min(window.seq);
                let mut value = seqs.start().to_be_bytes().to_vec();
                for digest in seqs.filter_map(|seq| agent.digest(seq)) {
                    value.extend_from_slice(&digest.0);
                }
                batch.insert(chunk_key(agent.agent_id, window.epoch, chunk), value);
            }
            if let Some(before) = before {
                let is_needed = |chunk: &u64| before.epoch == window.epoch && window.chunks().contains(chunk);
                for chunk in before.chunks().filter(|chunk| !is_needed(chunk)) {
                    batch.remove(chunk_key(agent.agent_id, before.epoch, chunk));
                }
            }
            batch.insert(window_key(agent.agent_id), window.encode_to_vec());
            self.stored.insert(agent.agent_id.to_owned(), window);
        }
    }

    /// Puts the agents back into an acceptor that is restored without them.
    pub(super) fn restore(db: &sled::Db, acceptor: &mut Acceptor) -> Result<Self, StoreError> {
        let mut windows = Self::default();
        for row in db.scan_prefix(b"a") {
            let (key, value) = row?;
            let agent_id =
                std::str::from_utf8(&key[1..]).map_err(|_| StoreError::Damaged("an agent's name"))?;
            let window = Window::decode(&*value).map_err(|_| StoreError::Damaged("an agent's window"))?;
            let mut digests = Vec::new();
            for chunk in window.chunks() {
                let row = db.get(chunk_key(agent_id, window.epoch, chunk))?;
                digests.extend(
                    row.as_deref().and_then(|row| read_chunk(row, window.first_seq)).unwrap_or_default(),
                );
            }
            if digests.len() as u64 != (window.seq + 1).saturating_sub(window.first_seq) {
                return Err(StoreError::Damaged("an agent's digests"));
            }
            let restored = acceptor.restore_agent(agent_id, window.epoch, window.seq, digests);
            restored.map_err(|_| StoreError::Damaged("an agent's state"))?;
            windows.stored.insert(agent_id.to_owned(), window);
        }
        Ok(windows)
    }
}

/// The digests of a chunk from `first_seq` on.
fn read_chunk(row: &[u8], first_seq: u64) -> Option<Vec<Digest>> {
    let (begins, digests) = row.split_first_chunk::<8>()?;
    let surplus = usize::try_from(first_seq.saturating_sub(u64::from_be_bytes(*begins))).ok()?;
    let digests = digests.get(surplus.checked_mul(DIGEST_LEN)?..)?;
    split_digests(&Bytes::copy_from_slice(digests))
}
