//! The acceptor's state at the log's end: from a snapshot in sled and the entries after it, or from the entries alone.
//!
//! Left out: truth; all of this follows from the log. Invariant: with, without or with a foreign snapshot, the state is the one that
//! the log's entries lead to.

use bytes::Bytes;
use exchequer_event::{accept::Acceptor, entry};
use prost::Message as _;

use crate::store::{LogReader, StoreError};

/// Entries after which a new snapshot is written.
pub(crate) const SNAPSHOT_ENTRIES: u64 = 65_536;
/// Entries read at once when rolling forward.
const STEP: u64 = 4096;
const KEY: &[u8] = b"acceptor";

/// A snapshot as it is stored.
#[derive(Clone, PartialEq, prost::Message)]
struct Stored {
    /// Entries that it covers.
    #[prost(uint64, tag = "1")]
    size: u64,
    /// Leaf hash of the last of them: says that it is of this log.
    #[prost(bytes = "bytes", tag = "2")]
    last_leaf: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    acceptor: Bytes,
    /// BLAKE3 of the acceptor's bytes.
    #[prost(bytes = "bytes", tag = "4")]
    sum: Bytes,
}

/// Snapshots of the acceptor.
#[derive(Clone, Debug)]
pub(crate) struct Snapshots {
    tree: sled::Tree,
}

impl Snapshots {
    pub(crate) fn open(db: &sled::Db) -> sled::Result<Self> {
        Ok(Self { tree: db.open_tree("acceptor")? })
    }

    /// Keeps the state that the first `size` entries lead to.
    pub(crate) fn save(
        &self,
        reader: &LogReader,
        size: u64,
        acceptor: &Acceptor,
    ) -> Result<(), SnapshotError> {
        let Some(last) = size.checked_sub(1) else { return Ok(()) };
        let bytes = Bytes::from(acceptor.snapshot());
        let stored = Stored {
            size,
            last_leaf: Bytes::copy_from_slice(&reader.leaf(last)?.0),
            sum: Bytes::copy_from_slice(blake3::hash(&bytes).as_bytes()),
            acceptor: bytes,
        };
        self.tree.insert(KEY, stored.encode_to_vec())?;
        Ok(())
    }

    /// The newest snapshot that is of this log and not beyond it.
    fn load(&self, reader: &LogReader) -> Option<(u64, Acceptor)> {
        let stored = Stored::decode(&*self.tree.get(KEY).ok()??).ok()?;
        let leaf = reader.leaf(stored.size.checked_sub(1)?).ok()?;
        let holds = stored.size <= reader.committed()
            && stored.last_leaf == leaf.0.as_slice()
            && stored.sum == blake3::hash(&stored.acceptor).as_bytes().as_slice();
        let acceptor = Acceptor::restore(&stored.acceptor).ok().filter(|_| holds)?;
        Some((stored.size, acceptor))
    }

    /// The acceptor at the end of the committed log, and how many entries of it a snapshot covered.
    pub(crate) fn acceptor(&self, reader: &LogReader) -> Result<(Acceptor, u64), StoreError> {
        let (from, mut acceptor) = self.load(reader).unwrap_or_else(|| (0, Acceptor::new()));
        let size = reader.committed();
        for_each_entry(reader, from, size, |entry| acceptor.evolve(&entry))?;
        tracing::info!(from, size, "acceptor rolled forward");
        Ok((acceptor, from))
    }
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
