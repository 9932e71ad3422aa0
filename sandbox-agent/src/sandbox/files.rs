//! Files that go into the work area before the program runs, and come out of it after its last process is gone.
//!
//! Leaves out where contents come from and go to (the agent has descriptors of both). Invariant: no path leads out of the
//! work area, over a symbolic link or onto another file system, whatever the program made of the directories; what is
//! handed out is a regular file with one name, opened without waiting for anybody.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, mkdirat, openat2, sendfile};
use rustix::io::Errno;

use super::outcome::FileProblem;

const WITHIN: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// Most bytes copied by one call; the kernel's own bound is near 2 GiB.
const COPIED_AT_ONCE: usize = 1 << 30;

/// An input that could not be written: its place and why.
pub(super) type Failed = (usize, io::Error);

/// The directory to resolve paths in, held open from before the program runs.
pub(super) fn hold(work: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(work, flags, Mode::empty())?)
}

/// Writes each content to its path. Directories on the way are made.
pub(super) fn put(work: BorrowedFd<'_>, paths: &[PathBuf], contents: &[OwnedFd]) -> Result<(), Failed> {
    for (place, (path, content)) in paths.iter().zip(contents).enumerate() {
        put_one(work, path, content.as_fd()).map_err(|error| (place, error))?;
    }
    Ok(())
}

fn put_one(work: BorrowedFd<'_>, path: &Path, content: BorrowedFd<'_>) -> io::Result<()> {
    if !is_regular(&fstat(content)?) {
        return Err(Errno::INVAL.into());
    }
    let mut directory = None;
    for parent in parents(path) {
        let within = directory.as_ref().map_or(work, OwnedFd::as_fd);
        match mkdirat(within, parent, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        directory = Some(openat2(within, parent, flags, Mode::empty(), WITHIN)?);
    }
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let within = directory.as_ref().map_or(work, OwnedFd::as_fd);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat2(within, Path::new(name), flags, Mode::from_raw_mode(0o600), WITHIN)?;
    let mut offset = 0;
    while sendfile(&file, content, Some(&mut offset), COPIED_AT_ONCE)? > 0 {}
    Ok(())
}

fn parents(path: &Path) -> impl Iterator<Item = &Path> {
    path.parent().into_iter().flat_map(Path::components).map(|part| Path::new(part.as_os_str()))
}

fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Opens each path for reading. Nobody may write in the work area any more.
pub(super) fn take(work: BorrowedFd<'_>, paths: &[PathBuf]) -> Vec<Result<OwnedFd, FileProblem>> {
    paths.iter().map(|path| take_one(work, path).map_err(FileProblem)).collect()
}

fn take_one(work: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, String> {
    let failed = |error: Errno| match error {
        Errno::NOENT => "does not exist".to_owned(),
        Errno::NOTDIR => "leads through something that is not a directory".to_owned(),
        Errno::LOOP => "leads through a symbolic link".to_owned(),
        Errno::XDEV => "leads out of the work area".to_owned(),
        other => format!("can't be opened: {}", io::Error::from(other)),
    };
    // Looked at before it is opened: opening a device or a fifo is an act of its own. This one way of opening gives a
    // handle of a last component that is a link.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let seen = openat2(work, path, flags, Mode::empty(), WITHIN).map_err(failed)?;
    judge(&fstat(&seen).map_err(failed)?)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat2(work, path, flags, Mode::empty(), WITHIN).map_err(failed)?;
    judge(&fstat(&file).map_err(failed)?)?;
    Ok(file)
}

fn judge(stat: &Stat) -> Result<(), String> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if stat.st_nlink == 1 => return Ok(()),
        FileType::RegularFile => return Err(format!("has {} hard links", stat.st_nlink)),
        FileType::Symlink => "a symbolic link",
        FileType::Directory => "a directory",
        FileType::Fifo => "a fifo",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "of an unknown kind",
    };
    Err(format!("is {kind}"))
}
