//! Snapshots of the fold in sled: derived, so that a restart need not read the stream from its beginning.
//!
//! What is live is stored whole; of what is over, which only grows, the rows that came since the last snapshot.
//!
//! Left out: the truth. Deleting the directory, or any damage to it, costs a replay and never meaning. Invariant: what
//! [`Snapshots::newest`] returns was stored as a whole, by this format, for as many partitions; anything else is passed
//! over.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use exchequer_budget::{Amounts, HoldId, ROW_BYTES, Rows, State, Subject, wire};
use exchequer_event::{
    accept::Acceptor,
    digest::{DIGEST_LEN, Digest},
    v1,
};
use prost::Message;

use crate::{
    fold::{Budgets, Fold},
    usage::Charge,
};

/// BLAKE3 `derive_key` context of a stored snapshot's digest.
pub const SNAPSHOT_CONTEXT: &str = "exchequer.v1 metering snapshot";
/// Snapshots kept: the newest, and one more in case that one is damaged.
const KEPT: usize = 2;
/// The tree of the past's rows: by partition and number of the first row.
const PAST: &str = "past";

/// The format is private and may change with any version: one that does not decode is passed over.
#[derive(Clone, PartialEq, prost::Message)]
struct Stored {
    #[prost(uint64, tag = "11")]
    cursor: u64,
    #[prost(bytes = "bytes", tag = "12")]
    cursor_digest: Bytes,
    #[prost(bytes = "bytes", tag = "13")]
    acceptor: Bytes,
    #[prost(message, repeated, tag = "14")]
    partitions: Vec<StoredPartition>,
    #[prost(uint64, tag = "15")]
    log_index: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredPartition {
    #[prost(uint64, tag = "4")]
    subject_last: u64,
    #[prost(bytes = "bytes", tag = "6")]
    budget: Bytes,
    #[prost(message, repeated, tag = "7")]
    charges: Vec<StoredCharge>,
    /// Rows of the past, and their chain.
    #[prost(uint64, tag = "9")]
    past_count: u64,
    #[prost(bytes = "bytes", tag = "10")]
    past_chain: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredCharge {
    #[prost(uint64, tag = "1")]
    stream_seq: u64,
    #[prost(string, tag = "2")]
    agent: String,
    #[prost(string, tag = "3")]
    hold_id: String,
    #[prost(message, repeated, tag = "4")]
    used: Vec<v1::MeterAmount>,
    #[prost(bool, tag = "5")]
    whole_hold: bool,
    #[prost(string, tag = "6")]
    execution_id: String,
    #[prost(string, tag = "7")]
    skill: String,
    #[prost(uint64, tag = "8")]
    used_unix_ms: u64,
}

/// The snapshot directory.
#[derive(Clone, Debug)]
pub struct Snapshots {
    db: sled::Db,
    past: sled::Tree,
    /// How many rows of each partition's past are stored.
    stored: Arc<Mutex<Vec<u64>>>,
}

impl Snapshots {
    /// Opens the directory. If sled can't, it is set aside under another name and a new one is made; the path it now has is
    /// returned. The caller holds the lock of the data directory, so nobody else has it open.
    pub fn open(dir: &Path) -> io::Result<(Self, Option<PathBuf>)> {
        let open = |dir: &Path| {
            let db = sled::Config::new().path(dir).cache_capacity(16 << 20).open()?;
            let past = db.open_tree(PAST)?;
            Ok::<_, sled::Error>(Self { db, past, stored: Arc::default() })
        };
        match open(dir) {
            Ok(snapshots) => Ok((snapshots, None)),
            Err(error) => {
                let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
                let aside = dir.with_extension(format!("set-aside-{millis}"));
                tracing::warn!(%error, to = %aside.display(), "snapshots can't be opened and are set aside");
                fs::rename(dir, &aside)?;
                open(dir).map(|snapshots| (snapshots, Some(aside))).map_err(io::Error::other)
            }
        }
    }

    /// What is stored of the past is not that of the fold any more: the next snapshot stores all of it.
    pub(crate) fn begin_again(&self) {
        self.stored().clear();
    }

    /// Takes a fold as it is: all that has to be done while nothing else may change it.
    pub(crate) fn take(&self, fold: &Fold) -> Taken {
        let stored = self.stored();
        let rows = fold.parts.iter().zip(stored.iter().copied().chain(std::iter::repeat(0)));
        let rows = rows.map(|(part, from)| (from, part.past.rows_after(from)));
        Taken { cursor: fold.cursor, live: live(fold), rows: rows.collect() }
    }

    /// Stores a snapshot and forgets those before the last. Blocks.
    pub(crate) fn store(&self, taken: &Taken) -> Result<(), sled::Error> {
        let mut stored = vec![0; taken.rows.len()];
        for (partition, (from, rows)) in (0_u16..).zip(&taken.rows) {
            let key = past_key(partition, *from);
            // Rows from there on are another history's, or were never counted.
            let last = past_key(partition, u64::MAX);
            let stale: Vec<_> = self.past.range(key..=last).keys().collect::<Result<_, _>>()?;
            for key in stale {
                self.past.remove(key)?;
            }
            let mut next = *from;
            for (count, piece) in rows.pieces() {
                self.past.insert(past_key(partition, next), piece)?;
                next += count;
            }
            stored[usize::from(partition)] = next;
        }
        self.db.insert(taken.cursor.to_be_bytes(), encode(&taken.live))?;
        let surplus: Vec<_> = self.db.iter().keys().rev().skip(KEPT).collect::<Result<_, _>>()?;
        for key in surplus {
            self.db.remove(key)?;
        }
        self.db.flush()?;
        *self.stored() = stored;
        Ok(())
    }

    /// Every snapshot with the stream sequence that it is kept under, or what is wrong with it. Blocks.
    pub fn all(&self) -> Vec<(u64, Result<Fold, String>)> {
        let read = self.db.iter().map(|entry| match entry {
            Ok((key, bytes)) => {
                (<[u8; 8]>::try_from(&*key).map_or(0, u64::from_be_bytes), self.decode(&bytes))
            }
            Err(error) => (0, Err(error.to_string())),
        });
        read.collect()
    }

    /// The newest snapshot of a stream with so many partitions that is whole. Blocks.
    pub fn newest(&self, partitions: u16) -> Option<Fold> {
        let fold = self.db.iter().rev().find_map(|entry| {
            let read = entry.map_err(|error| error.to_string()).and_then(|(_, bytes)| self.decode(&bytes));
            match read {
                Ok(fold) if fold.partitions() == partitions => Some(fold),
                Ok(_) => None,
                Err(fault) => {
                    tracing::warn!(fault, "a snapshot is damaged and passed over");
                    None
                }
            }
        })?;
        *self.stored() = fold.parts.iter().map(|part| part.past.count()).collect();
        Some(fold)
    }

    /// Stream sequence and state digest of each snapshot that is kept and whole, the newest first, of one partition. The digests are
    /// computed from what is stored. Blocks.
    pub fn positions(&self, partition: u16) -> Vec<(u64, [u8; 32])> {
        let whole = self.db.iter().rev().filter_map(|entry| self.decode(&entry.ok()?.1).ok());
        let of_partition = whole.filter(|fold| partition < fold.partitions());
        of_partition.map(|fold| (fold.cursor, fold.budget(partition).digest(fold.past(partition)))).collect()
    }

    fn stored(&self) -> MutexGuard<'_, Vec<u64>> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Fold, String> {
        let (mut fold, pasts) = decode(bytes)?;
        for ((partition, part), (count, chain)) in (0_u16..).zip(&mut fold.parts).zip(pasts) {
            let range = past_key(partition, 0)..=past_key(partition, u64::MAX);
            for entry in self.past.range(range) {
                let (key, rows) = entry.map_err(|error| error.to_string())?;
                let from = key.get(2..).and_then(|from| from.try_into().ok()).map_or(0, u64::from_be_bytes);
                let (have, wanted) = (part.past.count(), count.saturating_sub(from));
                // An older snapshot's rows may end within what a newer one stored.
                let [skip, until] = [have.saturating_sub(from), wanted]
                    .map(|rows| usize::try_from(rows).unwrap_or(usize::MAX).saturating_mul(ROW_BYTES));
                if from > have || have >= count {
                    break;
                }
                let rows = rows.get(skip..until.min(rows.len())).unwrap_or_default();
                part.past.extend(rows).map_err(|error| error.to_string())?;
            }
            if part.past.count() != count || part.past.chain()[..] != chain[..] {
                return Err(format!("partition {partition}: rows of the past are missing or others"));
            }
        }
        Ok(fold)
    }
}

fn past_key(partition: u16, from: u64) -> [u8; 10] {
    let mut key = [0; 10];
    key[..2].copy_from_slice(&partition.to_be_bytes());
    key[2..].copy_from_slice(&from.to_be_bytes());
    key
}

/// A fold as it was at one moment, to be stored when there is time.
pub(crate) struct Taken {
    pub(crate) cursor: u64,
    live: Stored,
    /// Of each partition's past: the number of the first row that is not stored, and the rows from there.
    rows: Vec<(u64, Rows)>,
}

/// What is live.
fn live(fold: &Fold) -> Stored {
    let charge = |charge: &Charge| StoredCharge {
        stream_seq: charge.stream_seq,
        agent: charge.agent.to_string(),
        hold_id: charge.hold_id.to_string(),
        used: charge.used.as_ref().map(|used| wire::meter_amounts(used.iter())).unwrap_or_default(),
        whole_hold: charge.used.is_none(),
        execution_id: charge.execution_id.clone(),
        skill: charge.skill.clone(),
        used_unix_ms: charge.used_unix_ms,
    };
    let partition = |part: &Budgets| StoredPartition {
        subject_last: part.subject_last,
        budget: part.budget.encode().into(),
        charges: part.charges.iter().map(charge).collect(),
        past_count: part.past.count(),
        past_chain: part.past.chain().to_vec().into(),
    };
    Stored {
        cursor: fold.cursor,
        cursor_digest: fold.cursor_digest.into(),
        acceptor: fold.acceptor.snapshot().into(),
        partitions: fold.parts.iter().map(partition).collect(),
        log_index: fold.log_index,
    }
}

/// As bytes, the digest of the rest first.
fn encode(live: &Stored) -> Vec<u8> {
    let mut out = vec![0; DIGEST_LEN];
    live.encode(&mut out).expect("a Vec has room");
    let digest = blake3::derive_key(SNAPSHOT_CONTEXT, &out[DIGEST_LEN..]);
    out[..DIGEST_LEN].copy_from_slice(&digest);
    out
}

/// What is live, and how many rows each partition's past has, with their chain.
fn decode(bytes: &[u8]) -> Result<(Fold, Vec<(u64, Bytes)>), String> {
    let (digest, body) = bytes.split_at_checked(DIGEST_LEN).ok_or("it is cut")?;
    if digest != blake3::derive_key(SNAPSHOT_CONTEXT, body) {
        return Err("its digest is another".to_owned());
    }
    let stored = Stored::decode(body).map_err(|error| error.to_string())?;
    let count = u16::try_from(stored.partitions.len()).map_err(|_| "it has too many partitions")?;
    let mut fold = Fold::new(count);
    fold.cursor = stored.cursor;
    fold.cursor_digest = Digest::from_slice(&stored.cursor_digest).ok_or("its cursor has no digest")?;
    fold.log_index = stored.log_index;
    fold.acceptor = Acceptor::restore(&stored.acceptor).map_err(|error| error.to_string())?;
    for (part, stored) in fold.parts.iter_mut().zip(&stored.partitions) {
        restore(part, stored)?;
    }
    let pasts = stored.partitions.into_iter().map(|part| (part.past_count, part.past_chain));
    Ok((fold, pasts.collect()))
}

fn restore(part: &mut Budgets, stored: &StoredPartition) -> Result<(), String> {
    part.subject_last = stored.subject_last;
    part.budget = State::decode(&stored.budget).map_err(|error| error.to_string())?;
    for stored in &stored.charges {
        let used = wire::used_amounts("used", &stored.used).map_err(|error| error.to_string())?;
        let charge = Charge {
            stream_seq: stored.stream_seq,
            agent: Subject::parse(&stored.agent).map_err(|error| error.to_string())?,
            hold_id: HoldId::parse(&stored.hold_id).map_err(|error| error.to_string())?,
            execution_id: stored.execution_id.clone(),
            skill: stored.skill.clone(),
            used_unix_ms: stored.used_unix_ms,
            used: (!stored.whole_hold).then_some::<Amounts>(used),
        };
        part.charged.extend(part.charged(&charge));
        part.charges.push_back(charge);
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A fold as it comes back, and what was stored of it.
    pub(crate) fn stored_and_back(fold: &Fold) -> (Fold, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let (snapshots, _) = Snapshots::open(dir.path()).unwrap();
        let taken = snapshots.take(fold);
        snapshots.store(&taken).unwrap();
        (snapshots.newest(fold.partitions()).unwrap(), encode(&taken.live))
    }

    pub(crate) fn is_whole(bytes: &[u8]) -> bool {
        decode(bytes).is_ok()
    }
}
