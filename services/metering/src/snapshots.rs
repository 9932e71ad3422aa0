//! Snapshots of the fold in sled: derived, so that a restart need not read the stream from its beginning.
//!
//! Left out: the truth. Deleting the directory, or any damage to it, costs a replay and never meaning. Invariant: what
//! [`Snapshots::newest`] returns was stored as a whole, by this format, for as many partitions; anything else is passed
//! over.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use exchequer_budget::{Amounts, HoldId, State, Subject, wire};
use exchequer_event::{
    accept::Acceptor,
    digest::{DIGEST_LEN, Digest},
    v1,
};
use prost::Message;

use crate::{
    fold::{AnswerId, Budgets, Fold},
    usage::Charge,
};

/// BLAKE3 `derive_key` context of a stored snapshot's digest.
pub const SNAPSHOT_CONTEXT: &str = "exchequer.v1 metering snapshot";
/// Snapshots kept: the newest, and one more in case that one is damaged.
const KEPT: usize = 2;
const ANSWER_BYTES: usize = size_of::<AnswerId>() + size_of::<u64>();

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
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredPartition {
    #[prost(uint64, tag = "4")]
    subject_last: u64,
    #[prost(bytes = "bytes", tag = "6")]
    budget: Bytes,
    #[prost(message, repeated, tag = "7")]
    charges: Vec<StoredCharge>,
    /// Answer ids and stream sequences (big-endian), end to end, in order.
    #[prost(bytes = "bytes", tag = "8")]
    answers: Bytes,
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
}

impl Snapshots {
    /// Opens the directory. If sled can't, it is set aside under another name and a new one is made; the path it now has is
    /// returned. The caller holds the lock of the data directory, so nobody else has it open.
    pub fn open(dir: &Path) -> io::Result<(Self, Option<PathBuf>)> {
        let open = |dir: &Path| sled::Config::new().path(dir).cache_capacity(16 << 20).open();
        match open(dir) {
            Ok(db) => Ok((Self { db }, None)),
            Err(error) => {
                let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
                let aside = dir.with_extension(format!("set-aside-{millis}"));
                tracing::warn!(%error, to = %aside.display(), "snapshots can't be opened and are set aside");
                fs::rename(dir, &aside)?;
                open(dir).map(|db| (Self { db }, Some(aside))).map_err(io::Error::other)
            }
        }
    }

    /// Stores a snapshot and forgets those before the last. Blocks.
    pub(crate) fn store(&self, taken: &Taken) -> Result<(), sled::Error> {
        self.db.insert(taken.cursor.to_be_bytes(), encode(taken))?;
        let surplus: Vec<_> = self.db.iter().keys().rev().skip(KEPT).collect::<Result<_, _>>()?;
        for key in surplus {
            self.db.remove(key)?;
        }
        self.db.flush()?;
        Ok(())
    }

    /// The newest snapshot of a stream with so many partitions that is whole. Blocks.
    pub fn newest(&self, partitions: u16) -> Option<Fold> {
        self.db.iter().rev().find_map(|entry| {
            let read = entry.map_err(|error| error.to_string()).and_then(|(_, bytes)| decode(&bytes));
            match read {
                Ok(fold) if fold.partitions() == partitions => Some(fold),
                Ok(_) => None,
                Err(fault) => {
                    tracing::warn!(fault, "a snapshot is damaged and passed over");
                    None
                }
            }
        })
    }
}

/// A fold as it was at one moment, to be stored when there is time.
pub(crate) struct Taken {
    pub(crate) cursor: u64,
    stored: Stored,
}

/// Takes the fold as it is: all that has to be done while nothing else may change it.
pub(crate) fn take(fold: &Fold) -> Taken {
    let charge = |charge: &Charge| StoredCharge {
        stream_seq: charge.stream_seq,
        agent: charge.agent.to_string(),
        hold_id: charge.hold_id.to_string(),
        used: charge.used.map(|used| wire::meter_amounts(used.iter())).unwrap_or_default(),
        whole_hold: charge.used.is_none(),
        execution_id: charge.execution_id.clone(),
        skill: charge.skill.clone(),
        used_unix_ms: charge.used_unix_ms,
    };
    let partition = |part: &Budgets| {
        let mut answers = Vec::with_capacity(part.answers.len() * ANSWER_BYTES);
        for (id, seq) in &part.answers {
            answers.extend_from_slice(id);
            answers.extend_from_slice(&seq.to_be_bytes());
        }
        StoredPartition {
            subject_last: part.subject_last,
            budget: part.budget.encode().into(),
            charges: part.charges.iter().map(charge).collect(),
            answers: answers.into(),
        }
    };
    let stored = Stored {
        cursor: fold.cursor,
        cursor_digest: fold.cursor_digest.into(),
        acceptor: fold.acceptor.snapshot().into(),
        partitions: fold.parts.iter().map(partition).collect(),
    };
    Taken { cursor: fold.cursor, stored }
}

/// As bytes, the digest of the rest first.
pub(crate) fn encode(taken: &Taken) -> Vec<u8> {
    let mut out = vec![0; DIGEST_LEN];
    taken.stored.encode(&mut out).expect("a Vec has room");
    let digest = blake3::derive_key(SNAPSHOT_CONTEXT, &out[DIGEST_LEN..]);
    out[..DIGEST_LEN].copy_from_slice(&digest);
    out
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Fold, String> {
    let (digest, body) = bytes.split_at_checked(DIGEST_LEN).ok_or("it is cut")?;
    if digest != blake3::derive_key(SNAPSHOT_CONTEXT, body) {
        return Err("its digest is another".to_owned());
    }
    let stored = Stored::decode(body).map_err(|error| error.to_string())?;
    let count = u16::try_from(stored.partitions.len()).map_err(|_| "it has too many partitions")?;
    let mut fold = Fold::new(count);
    fold.cursor = stored.cursor;
    fold.cursor_digest = Digest::from_slice(&stored.cursor_digest).ok_or("its cursor has no digest")?;
    fold.acceptor = Acceptor::restore(&stored.acceptor).map_err(|error| error.to_string())?;
    for (part, stored) in fold.parts.iter_mut().zip(&stored.partitions) {
        restore(part, stored)?;
    }
    Ok(fold)
}

fn restore(part: &mut Budgets, stored: &StoredPartition) -> Result<(), String> {
    part.subject_last = stored.subject_last;
    part.budget = State::decode(&stored.budget).map_err(|error| error.to_string())?;
    for charge in &stored.charges {
        let used = wire::used_amounts("used", &charge.used).map_err(|error| error.to_string())?;
        part.charged.insert(HoldId::parse(&charge.hold_id).map_err(|error| error.to_string())?);
        part.charges.push_back(Charge {
            stream_seq: charge.stream_seq,
            agent: Subject::parse(&charge.agent).map_err(|error| error.to_string())?,
            hold_id: HoldId::parse(&charge.hold_id).map_err(|error| error.to_string())?,
            execution_id: charge.execution_id.clone(),
            skill: charge.skill.clone(),
            used_unix_ms: charge.used_unix_ms,
            used: (!charge.whole_hold).then_some::<Amounts>(used),
        });
    }
    for answer in stored.answers.chunks(ANSWER_BYTES) {
        let (id, seq) = answer.split_at_checked(size_of::<AnswerId>()).ok_or("its answers are cut")?;
        let id = AnswerId::try_from(id).map_err(|_| "its answers are cut")?;
        let seq = <[u8; 8]>::try_from(seq).map_err(|_| "its answers are cut")?;
        part.answers.insert(id, u64::from_be_bytes(seq));
    }
    Ok(())
}
