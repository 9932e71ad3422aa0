//! The one thread that writes a journal: group commit, rotation, and what happens when the disk fails.
//!
//! Left out: admission to the queue. Invariant: acknowledge and show only after `fdatasync`; stop for good at the first error.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::room::{self, Room};
use super::segment::{self, FRAME, HEADER, Segment, Tail};
use super::{MAX_GROUP, Pending, Shared, lock};
use crate::files::sync_dir;
use crate::stream::AppendError;

pub(super) struct Writer {
    shared: Arc<Shared>,
    file: File,
    buffer: Vec<u8>,
    wrote: bool,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, file: File) -> Self {
        Self { shared, file, buffer: Vec::new(), wrote: false }
    }

    pub(super) fn run(mut self) {
        while let Some(group) = self.next_group() {
            match self.write(&group) {
                Ok(first) => {
                    for (pending, seq) in group.into_iter().zip(first..) {
                        // A caller that has gone away doesn't want to know.
                        let _ = pending.ack.send(Ok(seq));
                    }
                }
                Err(error) => return self.fail(group, &error),
            }
        }
        if self.wrote {
            self.mark();
        }
    }

    /// All that is queued, up to the bound; waits for some. `None` once the journal is closing and the queue is empty.
    fn next_group(&self) -> Option<Vec<Pending>> {
        let mut queue = lock(&self.shared.queue);
        while queue.pending.is_empty() {
            if queue.closing {
                return None;
            }
            queue = self.shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let mut size = 0;
        let taken = queue.pending.iter().take_while(|p| {
            size += FRAME + p.body.len();
            size <= MAX_GROUP
        });
        let taken = taken.count().max(1);
        Some(queue.pending.drain(..taken).collect())
    }

    /// Makes a group durable and visible; the sequence of its first record.
    fn write(&mut self, group: &[Pending]) -> std::io::Result<u64> {
        let shared = Arc::clone(&self.shared);
        let mut tail = shared.tail();
        if tail.end >= shared.options.segment_bytes && !tail.is_empty {
            match self.rotate(&tail) {
                Ok(fresh) => tail = fresh,
                // Where blocks were allocated ahead there is room in this segment for all that is queued.
                Err(error) if shared.options.reserve_bytes > 0 && room::is_no_space(&error) => {
                    tracing::warn!(dir = %shared.dir.display(), %error, "no room for another segment");
                }
                Err(error) => return Err(error),
            }
        }
        let first = tail.next;
        self.buffer.clear();
        for (pending, seq) in group.iter().zip(first..) {
            tail.encode_record(&mut self.buffer, seq, &pending.body);
        }
        self.file.write_all_at(&self.buffer, tail.end)?;
        self.file.sync_data()?;
        self.wrote = true;
        shared.syncs.fetch_add(1, Ordering::Relaxed);
        let written = self.buffer.len() as u64;
        let tip = first + group.len() as u64 - 1;
        {
            let mut segments = lock(&shared.segments);
            let last = segments.back_mut().expect("never empty");
            for pending in group {
                last.note((FRAME + pending.body.len()) as u64);
            }
        }
        shared.bytes.fetch_add(written, Ordering::AcqRel);
        {
            let mut queue = lock(&shared.queue);
            queue.queued_bytes -= written;
            if let Some(room) = &mut queue.room {
                room.written(tail.end + written);
            }
        }
        shared.tip.send_replace(tip);
        self.buffer.shrink_to(MAX_GROUP / 8);
        Ok(first)
    }

    /// Begins the next segment; if that fails, the present one goes on.
    fn rotate(&mut self, tail: &Tail) -> std::io::Result<Tail> {
        let shared = &self.shared;
        let created = Segment::create(&shared.dir, tail.next).and_then(|(created, file)| {
            if shared.options.reserve_bytes > 0 {
                self.move_room(&file)?;
            }
            Ok((created, file))
        });
        let (created, file) = match created {
            Err(error) if room::is_no_space(&error) => {
                // Whatever is there of it must not come back behind what this segment goes on to hold.
                match std::fs::remove_file(shared.dir.join(segment::file_name(tail.next))) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                    _ => sync_dir(&shared.dir)?,
                }
                return Err(error);
            }
            created => created?,
        };
        let fresh = created.tail();
        let before = std::mem::replace(&mut self.file, file);
        if shared.options.reserve_bytes > 0
            && let Err(error) = before.set_len(tail.end)
        {
            tracing::warn!(%error, "blocks beyond a segment's end were not given back");
        }
        shared.bytes.fetch_add(fresh.end, Ordering::AcqRel);
        lock(&shared.segments).push_back(created);
        Ok(fresh)
    }

    /// Allocates in a new segment what is queued, and the reserve; the room is there from then on.
    fn move_room(&self, file: &File) -> std::io::Result<()> {
        let options = &self.shared.options;
        let mut room =
            Room::new(file.try_clone()?, HEADER as u64, options.segment_bytes + options.reserve_bytes);
        // Most of it without the lock, which each append needs.
        room.ensure(options.segment_bytes + options.reserve_bytes)?;
        let mut queue = lock(&self.shared.queue);
        room.ensure(queue.queued_bytes + options.reserve_bytes)?;
        queue.room = Some(room);
        Ok(())
    }

    /// Refuses everything from now on.
    fn fail(&self, group: Vec<Pending>, error: &std::io::Error) {
        let reason =
            format!("cannot write to {}: {error}; it has to be opened again", self.shared.dir.display());
        tracing::error!(dir = %self.shared.dir.display(), %error, "the journal failed and refuses appends until reopened");
        let mut queue = lock(&self.shared.queue);
        queue.failed = Some(reason.clone());
        let unwritten = std::mem::take(&mut queue.pending);
        drop(queue);
        for pending in group {
            let _ = pending.ack.send(Err(AppendError::Unknown(reason.clone())));
        }
        for pending in unwritten {
            let _ = pending.ack.send(Err(AppendError::Unavailable(reason.clone())));
        }
        // Wakes readers that wait for a record which will not become durable.
        self.shared.tip.send_modify(|_| {});
    }

    /// Declares all before it as synced, so that later damage can't pass for a torn tail.
    fn mark(&mut self) {
        let tail = self.shared.tail();
        self.buffer.clear();
        tail.encode_mark(&mut self.buffer);
        let marked = self.file.write_all_at(&self.buffer, tail.end).and_then(|()| self.file.sync_data());
        if let Err(error) = marked {
            tracing::warn!(dir = %self.shared.dir.display(), %error, "no closing mark");
        }
    }
}
