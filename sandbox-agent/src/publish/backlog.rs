//! What is to be published next, read from the spool in chunks.
//!
//! Left out: what is in flight. Invariant: at most [`READ_BYTES`] and one event are held, however much waits on the disk.

use std::collections::VecDeque;

use ed25519_dalek::SigningKey;
use exchequer_event::{
    digest::Digest,
    name::{MAX_BATCH_BYTES, MAX_BATCH_EVENTS},
    seal, v1,
};
use exchequer_stream::journal::{Entry, Reader};
use prost::{Message as _, bytes::Bytes};

/// Bytes of events in a batch; what remains of [`MAX_BATCH_BYTES`] is for the seal and the framing of each event.
const MAX_EVENTS_BYTES: usize = MAX_BATCH_BYTES - 16 * 1024;
/// Bytes that are read from the spool at a time: a few batches, so that a backlog is read once and not once for each batch.
const READ_BYTES: usize = 4 * MAX_EVENTS_BYTES;

/// Reads ahead of what is published.
pub(super) struct Backlog {
    reader: Reader,
    /// In order, without gaps.
    ahead: VecDeque<Entry>,
}

/// A batch as it is handed to the stream.
pub(super) struct Sealed {
    pub(super) last_seq: u64,
    pub(super) count: u64,
    pub(super) bytes: Vec<u8>,
}

impl Backlog {
    pub(super) fn new(reader: Reader) -> Self {
        Self { reader, ahead: VecDeque::new() }
    }

    /// Seals what is durable from `next` on, as much as a batch takes. Blocks.
    pub(super) fn seal_next(
        &mut self,
        key: &SigningKey,
        agent_id: &str,
        epoch: u64,
        next: u64,
    ) -> Result<Sealed, String> {
        let events = self.take(next)?;
        let first = events.first().ok_or("nothing where something is durable")?;
        let event = v1::Event::decode(first.clone()).map_err(|error| error.to_string())?;
        let prev_hash = Digest::from_slice(&event.prev_hash).ok_or("an event without prev_hash")?;
        let count = events.len() as u64;
        let batch = seal::seal_batch(key, agent_id, epoch, next, prev_hash, events);
        Ok(Sealed { last_seq: next + count - 1, count, bytes: batch.encode_to_vec() })
    }

    fn take(&mut self, next: u64) -> Result<Vec<Bytes>, String> {
        if self.ahead.front().is_some_and(|entry| entry.seq != next) {
            self.ahead.clear();
        }
        let held: usize = self.ahead.iter().map(|entry| entry.body.len() + 8).sum();
        if self.ahead.len() < MAX_BATCH_EVENTS && held < MAX_EVENTS_BYTES {
            let from = self.ahead.back().map_or(next, |entry| entry.seq + 1);
            let more = self.reader.read(from, READ_BYTES - held).map_err(|error| error.to_string())?;
            self.ahead.extend(more);
        }
        let (mut bytes, mut events) = (0, Vec::new());
        while events.len() < MAX_BATCH_EVENTS {
            let Some(entry) = self.ahead.front() else { break };
            bytes += entry.body.len() + 8;
            if bytes > MAX_EVENTS_BYTES {
                break;
            }
            events.extend(self.ahead.pop_front().map(|entry| entry.body));
        }
        Ok(events)
    }
}
