//! An append-only journal of numbered records in fsynced segment files: the truth store of the embedded stream and of spools.
//!
//! Appends are queued and written by one thread; all that is queued shares one `fdatasync` (group commit). One process at a time
//! holds the directory (`flock`). Where a reserve is asked for, blocks are allocated ahead of what is written, so that a full disk
//! refuses records and breaks none. Left out: what the records mean; repair (damage is named by segment and offset).
//! Invariant: a record is acknowledged and becomes readable only once it is on disk; after a failed write or sync nothing more is
//! acknowledged until the journal is opened again, for then only the disk can tell what it holds.

mod open;
mod room;
mod segment;
mod writer;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use self::open::{DirLock, lock_dir, open_room, open_segments};
pub use self::open::{Inspected, inspect};
use self::room::Room;
use self::segment::{FRAME, HEADER, Segment};
use self::writer::Writer;
use crate::files;
use crate::stream::{Ack, AppendError, MAX_IN_FLIGHT, MAX_MESSAGE};

/// Bytes of one record.
pub const MAX_BODY: usize = MAX_MESSAGE + 64 * 1024;
/// Bytes that share one write and one sync, at most; one record may exceed it.
pub const MAX_GROUP: usize = 8 * 1024 * 1024;
/// Bytes between two looks at the file system's free space.
const SPACE_CHECK_EVERY: u64 = 1024 * 1024;

/// Bounds of a journal.
#[derive(Clone, Debug)]
pub struct Options {
    /// A segment that has grown to this many bytes is followed by a new one.
    pub segment_bytes: u64,
    /// Appends that would make the journal larger than this are refused with [`AppendError::Full`].
    pub max_bytes: u64,
    /// Appends are refused with [`AppendError::Full`] while the file system has less than this left; not looked at where
    /// `reserve_bytes` could be allocated.
    pub min_free_bytes: u64,
    /// Bytes on the file system that stay allocated beyond all that is queued, for [`Journal::enqueue_reserved`]. Other appends are
    /// refused with [`AppendError::Full`] while they can't be had. 0: nothing is allocated ahead.
    pub reserve_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            max_bytes: u64::MAX,
            min_free_bytes: 2 * MAX_IN_FLIGHT as u64,
            reserve_bytes: 0,
        }
    }
}

/// A record of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its sequence, 1 for the first, without holes.
    pub seq: u64,
    /// The bytes as appended.
    pub body: Bytes,
}

/// Why a journal can't be opened, read or pruned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Another process (or another handle in this one) has it open.
    #[error("journal {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// Records that were acknowledged are damaged or missing.
    #[error("journal segment {} is corrupt at offset {offset}: {detail}", .segment.display())]
    Corrupt {
        /// The file.
        segment: PathBuf,
        /// Where the damaged frame begins, in bytes.
        offset: u64,
        /// What is wrong there.
        detail: String,
    },
    /// The records asked for were pruned.
    #[error("the journal begins at {first}")]
    Pruned {
        /// The first sequence there is.
        first: u64,
    },
    /// The journal was closed.
    #[error("the journal was closed")]
    Closed,
    /// A write or sync failed, so nothing more becomes durable before the journal is opened again.
    #[error("{0}")]
    Failed(String),
    /// The file system failed.
    #[error("cannot {action} {}: {detail}", .path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's message.
        detail: String,
    },
}

impl JournalError {
    fn io(action: &'static str, path: &Path, error: &std::io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), detail: error.to_string() }
    }
}

struct Pending {
    body: Bytes,
    ack: oneshot::Sender<Result<u64, AppendError>>,
    _room: OwnedSemaphorePermit,
}

#[derive(Default)]
struct Queue {
    pending: VecDeque<Pending>,
    /// Sequence of the next append.
    next: u64,
    queued_bytes: u64,
    unchecked_bytes: u64,
    /// Blocks of the last segment; `None` without a reserve.
    room: Option<Room>,
    /// Why nothing is accepted any more.
    failed: Option<String>,
    closing: bool,
}

struct Shared {
    dir: PathBuf,
    options: Options,
    queue: Mutex<Queue>,
    work: Condvar,
    room: Arc<Semaphore>,
    /// Durable parts only, ascending, never empty.
    segments: Mutex<VecDeque<Segment>>,
    bytes: AtomicU64,
    syncs: AtomicU64,
    tip: watch::Sender<u64>,
    /// Held while segments are removed.
    pruning: Mutex<()>,
}

// No code panics while it holds one of these locks, and each update leaves a consistent state, so poisoning carries no news.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An open journal. Dropping it makes what was queued durable and releases the directory.
pub struct Journal {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    // Released after the writer has ended.
    _lock: DirLock,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("dir", &self.shared.dir)
            .field("tip", &self.tip())
            .finish_non_exhaustive()
    }
}

impl Journal {
    /// Opens the journal in `dir`, creating it if there is none. Reads and checks all of it. Blocks.
    pub fn open(dir: &Path, options: Options) -> Result<Self, JournalError> {
        Self::open_with(dir, options, |_, _| Ok(()))
    }

    /// As [`Journal::open`]; shows each record to `visit`, whose refusal is reported as corruption.
    pub fn open_with(
        dir: &Path,
        options: Options,
        mut visit: impl FnMut(u64, &[u8]) -> Result<(), String>,
    ) -> Result<Self, JournalError> {
        files::create_dir(dir).map_err(|e| JournalError::io("create", dir, &e))?;
        let lock = lock_dir(dir)?;
        let (segments, file) = open_segments(dir, &mut visit)?;
        let (next, end) = segments.back().map_or((1, HEADER as u64), |s| (s.next, s.end));
        let room =
            if options.reserve_bytes == 0 { None } else { Some(open_room(dir, &file, end, &options)?) };
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            options,
            queue: Mutex::new(Queue { next, room, unchecked_bytes: SPACE_CHECK_EVERY, ..Queue::default() }),
            work: Condvar::new(),
            room: Arc::new(Semaphore::new(MAX_IN_FLIGHT / 1024)),
            bytes: AtomicU64::new(segments.iter().map(|s| s.end).sum()),
            syncs: AtomicU64::new(0),
            segments: Mutex::new(segments),
            pruning: Mutex::default(),
            tip: watch::Sender::new(next - 1),
        });
        let writer = Writer::new(Arc::clone(&shared), file);
        let writer = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || writer.run())
            .map_err(|e| JournalError::io("start a writer for", dir, &e))?;
        Ok(Self { shared, writer: Some(writer), _lock: lock })
    }

    /// Queues a record and gives its sequence; waits while [`MAX_IN_FLIGHT`] bytes are queued. Sequences rise in the order in
    /// which calls return.
    pub async fn enqueue(&self, body: Bytes) -> Result<(u64, Ack), AppendError> {
        let room = self.reserve(body.len()).await?;
        self.push(room, body)
    }

    /// As [`Journal::enqueue`], for a record that the reserve of [`Options::reserve_bytes`] is for: it is taken although the file
    /// system is full. The caller sees to it that these are never more than the reserve holds before others are taken again.
    pub async fn enqueue_reserved(&self, body: Bytes) -> Result<(u64, Ack), AppendError> {
        let room = self.reserve(body.len()).await?;
        self.push_within(room, body, 0)
    }

    /// Refuses as [`Journal::enqueue`] would refuse a record of this size now.
    pub fn check_room(&self, len: usize) -> Result<(), AppendError> {
        let shared = &self.shared;
        shared.check_room(&mut lock(&shared.queue), (FRAME + len) as u64, shared.options.reserve_bytes)
    }

    /// Appends a record and waits until it is durable; its sequence.
    pub async fn append(&self, body: Bytes) -> Result<u64, AppendError> {
        self.enqueue(body).await?.1.await
    }

    pub(crate) async fn reserve(&self, len: usize) -> Result<OwnedSemaphorePermit, AppendError> {
        if len > MAX_BODY {
            return Err(AppendError::TooLarge { what: "record", size: len, limit: MAX_BODY });
        }
        let units = u32::try_from((len + FRAME) / 1024 + 1).expect("at most MAX_BODY");
        let room = Arc::clone(&self.shared.room).acquire_many_owned(units).await;
        room.map_err(|_| AppendError::Unavailable("the journal was closed".into()))
    }

    pub(crate) fn push(&self, room: OwnedSemaphorePermit, body: Bytes) -> Result<(u64, Ack), AppendError> {
        self.push_within(room, body, self.shared.options.reserve_bytes)
    }

    fn push_within(
        &self,
        room: OwnedSemaphorePermit,
        body: Bytes,
        reserve: u64,
    ) -> Result<(u64, Ack), AppendError> {
        let shared = &self.shared;
        let mut queue = lock(&shared.queue);
        let size = (FRAME + body.len()) as u64;
        shared.check_room(&mut queue, size, reserve)?;
        let seq = queue.next;
        let (ack, acked) = oneshot::channel();
        queue.next += 1;
        queue.queued_bytes += size;
        queue.unchecked_bytes += size;
        queue.pending.push_back(Pending { body, ack, _room: room });
        drop(queue);
        shared.work.notify_one();
        let lost = || AppendError::Unknown("the journal's writer ended".into());
        Ok((seq, acked.map(move |outcome| outcome.unwrap_or_else(|_| Err(lost()))).boxed()))
    }

    /// The last durable sequence, 0 if there is none.
    pub fn tip(&self) -> u64 {
        *self.shared.tip.borrow()
    }

    /// The first sequence that was not pruned; `tip() + 1` if there is none.
    pub fn first(&self) -> u64 {
        self.shared.first()
    }

    /// Bytes of all segments.
    pub fn size_bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Acquire)
    }

    /// How often records were synced since it was opened: once for all that share a write.
    pub fn syncs(&self) -> u64 {
        self.shared.syncs.load(Ordering::Relaxed)
    }

    /// Why appends are refused until the journal is opened again, if they are.
    pub fn failure(&self) -> Option<String> {
        lock(&self.shared.queue).failed.clone()
    }

    /// A reader, which doesn't keep the journal open.
    pub fn reader(&self) -> Reader {
        Reader { shared: Arc::downgrade(&self.shared), tip: self.shared.tip.subscribe() }
    }

    /// What [`Journal::first`] will be once all is removed that [`Journal::prune_before`] removes for this `seq`.
    pub fn first_after_pruning(&self, seq: u64) -> u64 {
        let segments = lock(&self.shared.segments);
        let kept = segments.iter().position(|s| s.next > seq).unwrap_or(segments.len() - 1);
        segments[kept].first
    }

    /// Removes the segments that hold only records before `seq`; the last segment stays. Appends do not wait for it. Blocks.
    pub fn prune_before(&self, seq: u64) -> Result<(), JournalError> {
        let shared = &self.shared;
        let _pruning = lock(&shared.pruning);
        loop {
            // Out of the readers' sight first, and the file without the lock, which each append needs.
            let segment = {
                let mut segments = lock(&shared.segments);
                match segments.front() {
                    Some(first) if segments.len() > 1 && first.next <= seq => segments.pop_front(),
                    _ => None,
                }
            };
            let Some(segment) = segment else { return Ok(()) };
            if let Err(error) = std::fs::remove_file(&segment.path) {
                let error = JournalError::io("remove", &segment.path, &error);
                lock(&shared.segments).push_front(segment);
                return Err(error);
            }
            shared.bytes.fetch_sub(segment.end, Ordering::AcqRel);
            // One by one: a crash must not leave a hole.
            files::sync_dir(&shared.dir).map_err(|e| JournalError::io("sync", &shared.dir, &e))?;
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        lock(&self.shared.queue).closing = true;
        self.shared.work.notify_one();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!(dir = %self.shared.dir.display(), "the journal's writer panicked");
        }
    }
}

/// Reads the durable records of a journal, also while it is written.
#[derive(Clone)]
pub struct Reader {
    shared: Weak<Shared>,
    tip: watch::Receiver<u64>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("tip", &*self.tip.borrow()).finish_non_exhaustive()
    }
}

impl Reader {
    /// Durable records from `from` (0 = 1) on, in order: about `max_bytes` of them, one at least; none at the end. Blocks.
    pub fn read(&self, from: u64, max_bytes: usize) -> Result<Vec<Entry>, JournalError> {
        let shared = self.shared.upgrade().ok_or(JournalError::Closed)?;
        let (mut from, mut budget, mut entries) = (from.max(1), max_bytes, Vec::new());
        loop {
            let span = {
                let segments = lock(&shared.segments);
                if from < segments[0].first {
                    return Err(JournalError::Pruned { first: segments[0].first });
                }
                let at = segments.partition_point(|s| s.next <= from);
                match segments.get(at) {
                    Some(segment) => segment.span(from),
                    None => return Ok(entries),
                }
            };
            match span.read(from, &mut budget, &mut entries) {
                // Pruned between the look-up and the opening.
                Err(JournalError::Io { .. }) if shared.first() > from => {
                    return Err(JournalError::Pruned { first: shared.first() });
                }
                outcome => outcome?,
            }
            match entries.last() {
                Some(entry) if budget > 0 => from = entry.seq + 1,
                _ => return Ok(entries),
            }
        }
    }

    /// Waits until the record `seq` is durable.
    pub async fn wait_for(&mut self, seq: u64) -> Result<(), JournalError> {
        while *self.tip.borrow_and_update() < seq {
            let shared = self.shared.upgrade().ok_or(JournalError::Closed)?;
            if let Some(reason) = lock(&shared.queue).failed.clone() {
                return Err(JournalError::Failed(reason));
            }
            drop(shared);
            self.tip.changed().await.map_err(|_| JournalError::Closed)?;
        }
        Ok(())
    }
}

impl Shared {
    /// Whether a record of `size` bytes with its frame may be queued, with `reserve` bytes left beside it.
    fn check_room(&self, queue: &mut Queue, size: u64, reserve: u64) -> Result<(), AppendError> {
        if let Some(reason) = &queue.failed {
            return Err(AppendError::Unavailable(reason.clone()));
        }
        let total = self.bytes.load(Ordering::Acquire) + queue.queued_bytes + size;
        if total > self.options.max_bytes {
            let most = self.options.max_bytes;
            return Err(AppendError::Full(format!("{total} bytes; the journal may have {most}")));
        }
        let ahead = queue.queued_bytes + size + reserve;
        if let Some(room) = &mut queue.room {
            room.ensure(ahead).map_err(|error| {
                AppendError::Full(format!("{ahead} bytes can't be allocated on the file system: {error}"))
            })?;
            // Without blocks of its own the reserve is what is kept free.
            if room.is_supported() || reserve == 0 {
                return Ok(());
            }
        }
        if queue.unchecked_bytes >= SPACE_CHECK_EVERY {
            let free = rustix::fs::statvfs(&self.dir).map(|s| s.f_bavail.saturating_mul(s.f_frsize));
            let free = free.map_err(|e| AppendError::Unavailable(format!("cannot tell free space: {e}")))?;
            let least = self.options.min_free_bytes;
            if free < least {
                return Err(AppendError::Full(format!(
                    "{free} bytes left on the file system; {least} are kept free"
                )));
            }
            queue.unchecked_bytes = 0;
        }
        Ok(())
    }

    fn first(&self) -> u64 {
        lock(&self.segments)[0].first
    }

    fn tail(&self) -> segment::Tail {
        lock(&self.segments).back().expect("never empty").tail()
    }
}
