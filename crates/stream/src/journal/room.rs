//! Disk space that is allocated ahead of what is written, so that a full disk refuses records instead of breaking them.
//!
//! Blocks are allocated beyond the end of the last segment (`fallocate`, the file's length stays), as many as all that is queued
//! needs, and the reserve beside it. A record that takes no part of the reserve is refused where that can't be had; one that may is
//! written into blocks that are there already.
//!
//! Left out: writing. Invariant: what was taken into the queue has its blocks, on every file system that can allocate ahead; where
//! one can't, [`Room::is_supported`] says so and free space is only looked at.

use std::fs::File;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// The room of the segment that is written now.
pub(super) struct Room {
    file: File,
    /// Durable length.
    end: u64,
    /// Up to where blocks are there.
    allocated: u64,
    /// Allocated at once, where the disk has it.
    step: u64,
    is_supported: bool,
}

impl Room {
    pub(super) fn new(file: File, end: u64, step: u64) -> Self {
        Self { file, end, allocated: end, step, is_supported: true }
    }

    pub(super) fn is_supported(&self) -> bool {
        self.is_supported
    }

    /// Allocates what is missing to `bytes` beyond the durable end.
    pub(super) fn ensure(&mut self, bytes: u64) -> std::io::Result<()> {
        let needed = self.end.saturating_add(bytes);
        if !self.is_supported || needed <= self.allocated {
            return Ok(());
        }
        let ahead = needed.max(self.end.saturating_add(self.step));
        match self.allocate(ahead) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.is_supported = false;
                Ok(())
            }
            Err(error) if is_full(error) && ahead > needed => Ok(self.allocate(needed)?),
            outcome => Ok(outcome?),
        }
    }

    fn allocate(&mut self, until: u64) -> Result<(), Errno> {
        // What a crashed process had allocated beyond the end is found there again, and costs nothing.
        let length = until - self.allocated;
        rustix::io::retry_on_intr(|| {
            rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.allocated, length)
        })?;
        self.allocated = until;
        Ok(())
    }

    /// Takes note that the segment is durable up to here.
    pub(super) fn written(&mut self, end: u64) {
        self.end = end;
        self.allocated = self.allocated.max(end);
    }
}

/// Whether the file system, or what this user may have of it, is full.
fn is_full(error: Errno) -> bool {
    matches!(error, Errno::NOSPC | Errno::DQUOT)
}

/// The same of an [`std::io::Error`].
pub(super) fn is_no_space(error: &std::io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(is_full)
}
