//! The acceptor's state at the log's end: from a snapshot in sled and the entries after it, or from the entries alone.
//!
//! | key | value |
//! |---|---|
//! | `snapshot` | what it covers, the state but for the agents, and how far each agent is |
//! | `d` agent 00 epoch, chunk | the digests of the agent's events of that chunk of seqs |
//!
//! Both are written together, and of the chunks only those that hold new events. Left out: truth; all of this follows from the log.
//! Invariant: with, without or with a foreign snapshot, the state is the one that the log's entries lead to.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;
use exchequer_event::{
    accept::{Acceptor, AgentWindow},
    digest::{DIGEST_LEN, Digest},
    entry,
    seal::split_digests,
};
use prost::Message as _;

use crate::store::{LogReader, StoreError};

/// Entries after which a new snapshot is written.
pub(crate) const SNAPSHOT_ENTRIES: u64 = 65_536;
/// Entries read at once when rolling forward.
const STEP: u64 = 4096;
const KEY: &[u8] = b"snapshot";
/// Seqs of an agent whose digests are kept together: what one new event makes be written.
const CHUNK: u64 = 64;
/// BLAKE3 `derive_key` context of the digest of a stored part.
const CONTEXT: &str = "exchequer.v1 acceptor snapshot";

/// A snapshot as it is stored, but for the chunks.
#[derive(Clone, PartialEq, prost::Message)]
struct Stored {
    /// Entries that it covers.
    #[prost(uint64, tag = "1")]
    size: u64,
    /// Leaf hash of the last of them: says that it is of this log.
    #[prost(bytes = "bytes", tag = "2")]
    last_leaf: Bytes,
    /// The acceptor without its agents.
    #[prost(bytes = "bytes", tag = "3")]
    acceptor: Bytes,
    #[prost(message, repeated, tag = "4")]
    agents: Vec<Window>,
}

/// Which digests of an agent are stored.
#[derive(Clone, PartialEq, prost::Message)]
struct Window {
    #[prost(string, tag = "1")]
    agent_id: String,
    #[prost(uint64, tag = "2")]
    epoch: u64,
    #[prost(uint64, tag = "3")]
    first_seq: u64,
    #[prost(uint64, tag = "4")]
    seq: u64,
}

impl Window {
    fn of(agent: &AgentWindow<'_>) -> Self {
        let agent_id = agent.agent_id.to_owned();
        Self { agent_id, epoch: agent.epoch, first_seq: agent.first_seq(), seq: agent.seq }
    }

    fn chunks(&self) -> std::ops::RangeInclusive<u64> {
        chunk_of(self.first_seq)..=chunk_of(self.seq)
    }

    fn key(&self, chunk: u64) -> Vec<u8> {
        let (epoch, chunk) = (self.epoch.to_be_bytes(), chunk.to_be_bytes());
        [&b"d"[..], self.agent_id.as_bytes(), &[0], &epoch, &chunk].concat()
    }
}

fn chunk_of(seq: u64) -> u64 {
    seq.saturating_sub(1) / CHUNK
}

/// Puts the digest of a part before it.
fn summed(key: &[u8], body: &[u8]) -> Vec<u8> {
    [&sum(key, body)[..], body].concat()
}

fn sum(key: &[u8], body: &[u8]) -> [u8; DIGEST_LEN] {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(&(key.len() as u64).to_be_bytes()).update(key).update(body);
    *hasher.finalize().as_bytes()
}

/// Snapshots of the acceptor.
#[derive(Debug)]
pub(crate) struct Snapshots {
    tree: sled::Tree,
    /// What the chunks in the tree hold, by agent.
    stored: BTreeMap<String, Window>,
}

impl Snapshots {
    pub(crate) fn open(db: &sled::Db) -> sled::Result<Self> {
        Ok(Self { tree: db.open_tree("acceptor")?, stored: BTreeMap::new() })
    }

    /// Keeps the state that the first `size` entries lead to.
    pub(crate) fn save(
        &mut self,
        reader: &LogReader,
        size: u64,
        acceptor: &Acceptor,
    ) -> Result<(), SnapshotError> {
        let Some(last) = size.checked_sub(1) else { return Ok(()) };
        let mut batch = sled::Batch::default();
        let mut agents = Vec::new();
        for agent in acceptor.agents() {
            let window = Window::of(&agent);
            self.write_chunks(&mut batch, &agent, &window);
            agents.push(window);
        }
        let stored = Stored {
            size,
            last_leaf: Bytes::copy_from_slice(&reader.leaf(last)?.0),
            acceptor: acceptor.snapshot_without_agents().into(),
            agents,
        };
        batch.insert(KEY, summed(KEY, &stored.encode_to_vec()));
        self.tree.apply_batch(batch)?;
        self.stored = by_agent(stored.agents);
        Ok(())
    }

    /// Writes the chunks that hold something new, and removes those that hold nothing that is still compared.
    fn write_chunks(&self, batch: &mut sled::Batch, agent: &AgentWindow<'_>, window: &Window) {
        let before = self.stored.get(agent.agent_id);
        if before == Some(window) {
            return;
        }
        let same_epoch = before.filter(|before| before.epoch == window.epoch && before.seq <= window.seq);
        let new = same_epoch.map_or(window.first_seq, |before| window.first_seq.max(before.seq + 1));
        for chunk in chunk_of(new)..=chunk_of(window.seq) {
            let first = window.first_seq.max(chunk * CHUNK + 1);
            let last = window.seq.min((chunk + 1) * CHUNK);
            let mut body = first.to_be_bytes().to_vec();
            body.extend((first..=last).filter_map(|seq| agent.digest(seq)).flat_map(|digest| digest.0));
            let key = window.key(chunk);
            batch.insert(&*key, summed(&key, &body));
        }
        if let Some(before) = before {
            let is_over = |chunk: &u64| before.epoch != window.epoch || !window.chunks().contains(chunk);
            before.chunks().filter(is_over).for_each(|chunk| batch.remove(before.key(chunk)));
        }
    }

    fn part(&self, key: &[u8]) -> Option<Bytes> {
        let bytes = self.tree.get(key).ok()??;
        let (digest, body) = bytes.split_at_checked(DIGEST_LEN)?;
        (digest == sum(key, body)).then(|| Bytes::copy_from_slice(body))
    }

    /// The newest snapshot, if it is whole, of this log and not beyond it.
    fn load(&self, reader: &LogReader) -> Option<(Stored, Acceptor)> {
        let stored = Stored::decode(self.part(KEY)?).ok()?;
        let holds = stored.size <= reader.committed()
            && stored.last_leaf == reader.leaf(stored.size.checked_sub(1)?).ok()?.0.as_slice();
        let mut acceptor = Acceptor::restore(&stored.acceptor).ok().filter(|_| holds)?;
        for window in &stored.agents {
            let recent = self.digests(window)?;
            acceptor.restore_agent(&window.agent_id, window.epoch, window.seq, recent).ok()?;
        }
        Some((stored, acceptor))
    }

    /// All digests of a window, or nothing.
    fn digests(&self, window: &Window) -> Option<Vec<Digest>> {
        let (mut next, mut digests) = (window.first_seq, Vec::new());
        for chunk in window.chunks() {
            let part = self.part(&window.key(chunk))?;
            let (first, found) = part.split_first_chunk::<8>()?;
            for (seq, digest) in (u64::from_be_bytes(*first)..).zip(split_digests(found)?) {
                // Those before the window were compared once.
                if seq > next {
                    return None;
                }
                if seq == next {
                    digests.push(digest);
                    next += 1;
                }
            }
        }
        (next == window.seq + 1).then_some(digests)
    }

    /// The acceptor at the end of the committed log, and how many entries of it a snapshot covered.
    pub(crate) fn acceptor(&mut self, reader: &LogReader) -> Result<(Acceptor, u64), StoreError> {
        let (from, mut acceptor) = if let Some((stored, acceptor)) = self.load(reader) {
            self.stored = by_agent(stored.agents);
            (stored.size, acceptor)
        } else {
            // What is left of another is never looked at: each part is read by the key that a whole snapshot names.
            if let Err(error) = self.tree.clear() {
                tracing::warn!(%error, "an unusable snapshot of the acceptor can't be removed");
            }
            self.stored.clear();
            (0, Acceptor::new())
        };
        let size = reader.committed();
        for_each_entry(reader, from, size, |entry| acceptor.evolve(&entry))?;
        tracing::info!(from, size, "acceptor rolled forward");
        Ok((acceptor, from))
    }
}

fn by_agent(windows: Vec<Window>) -> BTreeMap<String, Window> {
    windows.into_iter().map(|window| (window.agent_id.clone(), window)).collect()
}

/// Decodes the entries `from..to`, each compared with the tree.
pub(crate) fn for_each_entry(
    reader: &LogReader,
    from: u64,
    to: u64,
    mut take: impl FnMut(exchequer_event::v1::Entry),
) -> Result<(), StoreError> {
    let mut next = from;
    while next < to {
        let end = to.min(next + STEP - next % STEP);
        for (index, bytes) in (next..).zip(reader.verified_entries(next, end)?) {
            let decoded = entry::decode(&bytes).map_err(|error| StoreError::Damaged {
                path: format!("entry {index}"),
                reason: error.to_string(),
            })?;
            take(decoded);
        }
        next = end;
    }
    Ok(())
}

/// A snapshot was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("sled: {0}")]
    Sled(#[from] sled::Error),
}
