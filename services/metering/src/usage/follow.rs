//! The projection's own fold of the stream: what was accepted, at which log index, and the usage in it.
//!
//! It shares nothing with the writer's fold, so that neither waits for the other. Left out: reading the stream and when to flush
//! ([`super::projection`]). Invariant: every entry that acceptance makes of a message counts one in the log index, as it does in the ledger.

use std::{collections::BTreeSet, io, path::Path};

use bytes::Bytes;
use exchequer_event::{
    accept::{Incoming, Outcome},
    digest::Purpose,
};
use exchequer_stream::Record;

use super::{
    gather::Gathered,
    store::{Restored, Store, StoreError},
};

/// Entries gathered after which they are flushed without waiting longer.
const FLUSH_WEIGHT: usize = 20_000;

/// The fold, with the directory that it is kept in.
#[derive(Debug)]
pub(super) struct Follower {
    store: Store,
    at: Restored,
    /// The last message, whose digest is taken when it is needed.
    last: Option<Bytes>,
    gathered: Gathered,
    changed_agents: BTreeSet<String>,
    is_flushed: bool,
}

impl Follower {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self::new(Store::open(dir)?))
    }

    /// Begins with nothing; what is there is set aside.
    pub(super) fn open_anew(dir: &Path) -> io::Result<Self> {
        Ok(Self::new(Store::open_anew(dir)?))
    }

    fn new((store, at): (Store, Restored)) -> Self {
        Self {
            store,
            at,
            last: None,
            gathered: Gathered::default(),
            changed_agents: BTreeSet::new(),
            is_flushed: true,
        }
    }

    pub(super) fn db(&self) -> sled::Db {
        self.store.db.clone()
    }

    #[cfg(test)]
    pub(super) fn acceptor(&self) -> &exchequer_event::accept::Acceptor {
        &self.at.acceptor
    }

    /// Stream sequence of the last message read.
    pub(super) fn cursor(&self) -> u64 {
        self.at.cursor
    }

    /// Log index that follows its last entry.
    pub(super) fn log_index(&self) -> u64 {
        self.at.log_index
    }

    /// Whether all that was read is in the directory.
    pub(super) fn is_flushed(&self) -> bool {
        self.is_flushed
    }

    /// Whether so much was gathered that it is to be flushed at once.
    pub(super) fn is_full(&self) -> bool {
        self.gathered.weight() >= FLUSH_WEIGHT
    }

    /// Whether the directory was deleted.
    pub(super) fn is_gone(&self) -> bool {
        self.store.is_gone()
    }

    /// Takes the next message. Messages come in order.
    pub(super) fn take(&mut self, record: &Record) {
        let decided = self.at.acceptor.decide(&incoming(record));
        for entry in &decided.entries {
            self.at.acceptor.evolve(entry);
        }
        match &decided.outcome {
            Outcome::Block { partition } => {
                let block_unix_ms = self.at.acceptor.partition(partition).now_unix_ms;
                // The runs are the entries behind the block's seal.
                for (index, run) in (self.at.log_index + 1..).zip(&decided.runs) {
                    self.gathered.take_run(run, index, block_unix_ms);
                }
            }
            Outcome::Batch { agent_id, .. } => {
                self.changed_agents.insert(agent_id.clone());
            }
            _ => {}
        }
        self.at.log_index += decided.entries.len() as u64;
        self.at.cursor = record.seq;
        self.last = Some(record.payload.clone());
        self.is_flushed = false;
    }

    /// Writes what was gathered.
    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        self.digest_last();
        let gathered = std::mem::take(&mut self.gathered);
        self.store.flush(gathered, &self.at, &self.changed_agents)?;
        self.changed_agents.clear();
        self.is_flushed = true;
        Ok(())
    }

    /// Waits until sled has written everything to its file.
    pub(super) fn settle(&self) -> Result<(), StoreError> {
        self.store.settle()
    }

    /// Whether the record is the last one taken, or stands for it by the ledger's word, or the ledger says that it was lost and comes
    /// again behind what took its place.
    pub(super) fn is_at(&mut self, record: &Record, loss: Option<&Record>) -> bool {
        self.digest_last();
        let (cursor, digest) = (self.at.cursor, Purpose::Message.digest(&record.payload));
        if record.seq != cursor {
            return false;
        }
        if digest == self.at.cursor_digest {
            return true;
        }
        let acceptor = &self.at.acceptor;
        let lost = loss.and_then(|loss| acceptor.stated_loss(&incoming(loss)));
        let holds_again = acceptor.stands_for_lost(&incoming(record))
            || lost.is_some_and(|lost| (lost.from..=lost.to).contains(&cursor));
        if holds_again {
            self.at.cursor_digest = digest;
            self.is_flushed = false;
        }
        holds_again
    }

    fn digest_last(&mut self) {
        if let Some(payload) = self.last.take() {
            self.at.cursor_digest = Purpose::Message.digest(&payload);
        }
    }
}

fn incoming(record: &Record) -> Incoming<'_> {
    Incoming { stream_seq: record.seq, subject: &record.subject, payload: record.payload.clone() }
}
