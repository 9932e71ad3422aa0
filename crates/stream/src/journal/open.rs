//! A journal's directory when it is opened: who may use it, whether it is whole, and where writing goes on.
//!
//! Left out: the check of one segment. Invariant: only [`open_segments`] changes anything, and all that it cuts was never acknowledged.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use super::room::Room;
use super::segment::{self, SUFFIX, Segment, Visit};
use super::{JournalError, Options};

/// The right to use a directory, which ends with this value.
pub(super) struct DirLock(File);

impl Drop for DirLock {
    fn drop(&mut self) {
        // Closing alone would leave it locked while a process forked meanwhile has not executed its program yet.
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "cannot unlock a journal");
        }
    }
}

pub(super) fn lock_dir(dir: &Path) -> Result<DirLock, JournalError> {
    let path = dir.join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|e| JournalError::io("open", &path, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(DirLock(file)),
        Err(TryLockError::WouldBlock) => Err(JournalError::Locked(dir.to_owned())),
        Err(TryLockError::Error(e)) => Err(JournalError::io("lock", &path, &e)),
    }
}

/// The blocks ahead of the last segment. A full disk is no reason not to open: what is there can be read and published.
pub(super) fn open_room(dir: &Path, file: &File, end: u64, options: &Options) -> Result<Room, JournalError> {
    let file = file.try_clone().map_err(|e| JournalError::io("open a segment again in", dir, &e))?;
    let mut room = Room::new(file, end, options.segment_bytes + options.reserve_bytes);
    if let Err(error) = room.ensure(options.reserve_bytes) {
        tracing::warn!(dir = %dir.display(), %error, "the journal's reserve can't be allocated");
    }
    if !room.is_supported() {
        tracing::warn!(
            dir = %dir.display(),
            min_free = options.min_free_bytes,
            "this file system can't allocate ahead; free space is kept instead, which others may take"
        );
    }
    Ok(room)
}

/// Segments that were found sound, and where a new one has to begin, if one has to.
struct Checked {
    segments: VecDeque<Segment>,
    fresh: Option<(u64, Option<PathBuf>)>,
}

/// Checks all segments. Changes nothing.
fn check_segments(dir: &Path, visit: Visit<'_>) -> Result<Checked, JournalError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| JournalError::io("list", dir, &e))? {
        let path = entry.map_err(|e| JournalError::io("list", dir, &e))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if let Some(first) = name.strip_suffix(SUFFIX) {
            let first = first.parse::<u64>().ok().filter(|f| *f > 0 && name == segment::file_name(*f));
            let detail = || "not a segment's name".to_owned();
            found.push((
                first.ok_or_else(|| JournalError::Corrupt {
                    segment: path.clone(),
                    offset: 0,
                    detail: detail(),
                })?,
                path,
            ));
        }
    }
    found.sort();
    let mut segments: VecDeque<Segment> = VecDeque::new();
    let (last_of, mut fresh) = (found.len(), found.is_empty().then_some((1, None)));
    for (i, (first, path)) in found.into_iter().enumerate() {
        if let Some(before) = segments.back()
            && before.next != first
        {
            let detail = format!("records from {} to {} are missing before it", before.next, first - 1);
            return Err(JournalError::Corrupt { segment: path, offset: 0, detail });
        }
        match Segment::open(&path, first, i + 1 == last_of, visit)? {
            Some(segment) => segments.push_back(segment),
            None => fresh = Some((first, Some(path))),
        }
    }
    Ok(Checked { segments, fresh })
}

/// Checks all segments, cuts a torn tail and leaves the last one open for writing.
pub(super) fn open_segments(dir: &Path, visit: Visit<'_>) -> Result<(VecDeque<Segment>, File), JournalError> {
    let Checked { mut segments, fresh } = check_segments(dir, visit)?;
    if let Some((first, cut_short)) = fresh {
        if let Some(path) = cut_short {
            std::fs::remove_file(&path).map_err(|e| JournalError::io("remove", &path, &e))?;
        }
        let created = Segment::create(dir, first);
        let (segment, file) = created.map_err(|e| JournalError::io("create a segment in", dir, &e))?;
        segments.push_back(segment);
        return Ok((segments, file));
    }
    let last = &segments[segments.len() - 1];
    let io = |e| JournalError::io("open", &last.path, &e);
    let file = OpenOptions::new().read(true).write(true).open(&last.path).map_err(io)?;
    // Not cut where nothing is torn: that would give back the blocks that were allocated ahead.
    let cut = if file.metadata().map_err(io)?.len() == last.end { Ok(()) } else { file.set_len(last.end) };
    // Synced even if nothing is cut: what a killed process wrote may be in the page cache only, and is about to be readable.
    cut.and_then(|()| file.sync_all()).map_err(|e| JournalError::io("cut the tail of", &last.path, &e))?;
    Ok((segments, file))
}

/// A journal as it lies on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// The first sequence that was not pruned.
    pub first: u64,
    /// The last sequence, one below `first` if there is none.
    pub tip: u64,
    /// Bytes of all segments, a torn tail left out.
    pub bytes: u64,
}

/// Reads and checks a journal that nobody has open, and shows each record to `visit`; changes nothing in it. Blocks.
pub fn inspect(
    dir: &Path,
    mut visit: impl FnMut(u64, &[u8]) -> Result<(), String>,
) -> Result<Inspected, JournalError> {
    let _lock = lock_dir(dir)?;
    let Checked { segments, fresh } = check_segments(dir, &mut visit)?;
    let next = segments.back().map(|s| s.next).or(fresh.map(|(first, _)| first)).unwrap_or(1);
    Ok(Inspected {
        first: segments.front().map_or(next, |s| s.first),
        tip: next - 1,
        bytes: segments.iter().map(|s| s.end).sum(),
    })
}
