//! Snapshots of the fold in sled: derived, so that a restart need not read the stream from its beginning.
//!
//! Left out: the truth. Deleting the directory, or any damage to it, costs a replay and never meaning. Invariant: what
//! [`Snapshots::newest`] returns was stored as a whole, by this format, for this partition; anything else is passed over.

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
    fold::{AnswerId, Fold},
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
    #[prost(string, tag = "1")]
    partition: String,
    #[prost(uint64, tag = "2")]
    cursor: u64,
    #[prost(bytes = "bytes", tag = "3")]
    cursor_digest: Bytes,
    #[prost(uint64, tag = "4")]
    subject_last: u64,
    #[prost(bytes = "bytes", tag = "5")]
    acceptor: Bytes,
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

/// The snapshot directory of one partition.
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
    pub fn store(&self, cursor: u64, bytes: Vec<u8>) -> Result<(), sled::Error> {
        self.db.insert(cursor.to_be_bytes(), bytes)?;
        let surplus: Vec<_> = self.db.iter().keys().rev().skip(KEPT).collect::<Result<_, _>>()?;
        for key in surplus {
            self.db.remove(key)?;
        }
        self.db.flush()?;
        Ok(())
    }

    /// The newest snapshot of the partition that is whole. Blocks.
    pub fn newest(&self, partition: &str) -> Option<Fold> {
        self.db.iter().rev().find_map(|entry| {
            let read = entry.map_err(|error| error.to_string()).and_then(|(_, bytes)| decode(&bytes));
            match read {
                Ok(fold) if fold.partition == partition => Some(fold),
                Ok(_) => None,
                Err(fault) => {
                    tracing::warn!(fault, "a snapshot is damaged and passed over");
                    None
                }
            }
        })
    }
}

/// The fold as bytes, the digest of the rest first.
pub(crate) fn encode(fold: &Fold) -> Vec<u8> {
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
    let mut answers = Vec::with_capacity(fold.answers.len() * ANSWER_BYTES);
    for (id, seq) in &fold.answers {
        answers.extend_from_slice(id);
        answers.extend_from_slice(&seq.to_be_bytes());
    }
    let stored = Stored {
        partition: fold.partition.clone(),
        cursor: fold.cursor,
        cursor_digest: fold.cursor_digest.into(),
        subject_last: fold.subject_last,
        acceptor: fold.acceptor.snapshot().into(),
        budget: fold.budget.encode().into(),
        charges: fold.charges.iter().map(charge).collect(),
        answers: answers.into(),
    };
    let mut out = vec![0; DIGEST_LEN];
    stored.encode(&mut out).expect("a Vec has room");
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
    let mut fold = Fold::new(&stored.partition);
    fold.cursor = stored.cursor;
    fold.cursor_digest = Digest::from_slice(&stored.cursor_digest).ok_or("its cursor has no digest")?;
    fold.subject_last = stored.subject_last;
    fold.acceptor = Acceptor::restore(&stored.acceptor).map_err(|error| error.to_string())?;
    fold.budget = State::decode(&stored.budget).map_err(|error| error.to_string())?;
    for charge in &stored.charges {
        let used = wire::used_amounts("used", &charge.used).map_err(|error| error.to_string())?;
        fold.charged.insert(HoldId::parse(&charge.hold_id).map_err(|error| error.to_string())?);
        fold.charges.push_back(Charge {
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
        fold.answers.insert(id, u64::from_be_bytes(seq));
    }
    Ok(fold)
}
