//! The few file operations that the store is made of, so that tests can let each of them fail.
//!
//! Left out: locking. Invariant: after [`Files::write`] and [`Files::append`] the bytes are on disk; a new or changed *name* is only
//! after [`Files::sync_dir`] of its directory.

use std::{
    fmt::Debug,
    fs::{self, File, OpenOptions},
    io::{self, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

/// Files that are synced at the same time.
const SYNCS_AT_A_TIME: usize = 16;

/// A file to write.
#[derive(Clone, Debug)]
pub(crate) struct NewFile {
    /// Where.
    pub(crate) path: PathBuf,
    /// Its whole content.
    pub(crate) bytes: Vec<u8>,
}

/// File operations. All paths are absolute or relative to the process.
pub(crate) trait Files: Send + Sync + Debug {
    /// The whole content.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Names in a directory; none if it is missing.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes a directory and its parents, durably.
    fn create_dirs(&self, dir: &Path) -> io::Result<()>;
    /// Writes files, replacing what is there, and syncs their content.
    fn write(&self, files: &[NewFile]) -> io::Result<()>;
    /// Cuts a file (made if missing) at `at`, writes from there and syncs the content.
    fn append(&self, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Renames, replacing what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; a missing one is no error.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory if it is empty.
    fn remove_empty_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// The real file system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disk;

/// Syncs several files at a time: the file system then makes them durable with fewer commits of its own journal.
fn sync_all(files: &[File]) -> io::Result<()> {
    let share = files.len().div_ceil(SYNCS_AT_A_TIME).max(1);
    let mut parts = files.chunks(share);
    let Some(own) = parts.next() else { return Ok(()) };
    let sync = |part: &[File]| part.iter().try_for_each(File::sync_data);
    std::thread::scope(|scope| {
        let others: Vec<_> = parts.map(|part| scope.spawn(move || sync(part))).collect();
        let mut synced = sync(own);
        for other in others {
            synced = synced.and(other.join().unwrap_or_else(|_| Err(io::Error::other("syncing panicked"))));
        }
        synced
    })
}

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create_dirs(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.create_dirs(parent)?;
        }
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            outcome => outcome?,
        }
        let synced = self.sync_dir(parent.unwrap_or(Path::new(".")));
        if synced.is_err() {
            // The next attempt has to make and sync it again, not to find it.
            let _ = fs::remove_dir(dir);
        }
        synced
    }

    fn write(&self, files: &[NewFile]) -> io::Result<()> {
        // All are written before the first is synced, so that the disk gets them together.
        let mut open = Vec::with_capacity(files.len());
        for new in files {
            let mut file = File::create(&new.path)?;
            file.write_all(&new.bytes)?;
            open.push(file);
        }
        sync_all(&open)
    }

    fn append(&self, path: &Path, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.set_len(at)?;
        file.seek(SeekFrom::Start(at))?;
        file.write_all(bytes)?;
        file.sync_data()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    fn remove_empty_dir(&self, dir: &Path) -> io::Result<()> {
        match fs::remove_dir(dir) {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) =>
            {
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}
