//! The workspace: a directory per tenant on the agent's host, out of which inputs are read and into which outputs are written.
//!
//! Every path is resolved by `openat2`, below the tenant's directory, without symbolic links, magic links or another file system. What
//! lies there is looked at before it is opened (a device or fifo is never opened), and what is opened is that very file. A file is read
//! once, into sealed memory: what was hashed is what the program gets, whatever becomes of the file meanwhile.
//!
//! Left out: which files a request may name ([`request`](crate::request)). Invariant: nothing outside of the tenant's directory is opened,
//! made or replaced, and a target either keeps its old content or has the whole new one.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use exchequer_event::bundle::{ContentDigests, ContentHasher};
use rustix::{
    fs::{
        self, AtFlags, CWD, FileType, MemfdFlags, Mode, OFlags, RenameFlags, ResolveFlags, SealFlags, Stat,
    },
    io::Errno,
};

/// Nothing leads out, or around.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// How often a path is resolved again when something on it was moved meanwhile.
const MAX_ATTEMPTS: usize = 8;
/// How much is copied at a time.
const COPY_BYTES: usize = 64 << 10;

/// Why a file can't be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    /// The request names something that can't be an input or output.
    #[error("{0}")]
    Request(&'static str),
    /// The host is at fault.
    #[error("{0}")]
    Host(String),
}

impl FileFault {
    fn of(errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Self::Request("there is no such file in the workspace"),
            Errno::NOTDIR => Self::Request("a part of the path is no directory"),
            Errno::LOOP => Self::Request("is or passes a symbolic link"),
            Errno::XDEV => Self::Request("leaves the tenant's workspace, or its file system"),
            Errno::NAMETOOLONG => Self::Request("has a name that is too long"),
            Errno::NOSYS => {
                Self::Host("this kernel has no openat2 (Linux 5.6), so there is no workspace".to_owned())
            }
            errno => Self::Host(format!("the workspace can't be used: {errno}")),
        }
    }
}

impl From<io::Error> for FileFault {
    fn from(error: io::Error) -> Self {
        Self::Host(format!("the workspace can't be used: {error}"))
    }
}

fn resolve(dir: impl AsFd, path: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, FileFault> {
    for _ in 1..MAX_ATTEMPTS {
        match fs::openat2(&dir, path, flags | OFlags::CLOEXEC, mode, BENEATH) {
            // Something was moved while the kernel followed the path.
            Err(Errno::AGAIN | Errno::INTR) => {}
            outcome => return outcome.map_err(FileFault::of),
        }
    }
    fs::openat2(&dir, path, flags | OFlags::CLOEXEC, mode, BENEATH).map_err(FileFault::of)
}

/// The directory that holds the tenants' directories.
#[derive(Debug)]
pub struct Workspace {
    root: OwnedFd,
}

impl Workspace {
    /// Opens it.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: fs::openat(CWD, dir, flags, Mode::empty())? })
    }

    /// A tenant's directory. Operators make these: that one is missing is the host's fault.
    pub fn tenant(&self, tenant: &str) -> Result<TenantDir, FileFault> {
        // A tenant may be called `..`, or `.`, which would be everybody's.
        if tenant.starts_with('.') {
            return Err(FileFault::Host("a tenant whose name begins with a dot has no workspace".to_owned()));
        }
        let opened = resolve(&self.root, tenant, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        let missing = |fault| match fault {
            FileFault::Request(problem) => {
                FileFault::Host(format!("the tenant has no directory in the agent's workspace: {problem}"))
            }
            fault @ FileFault::Host(_) => fault,
        };
        Ok(TenantDir(opened.map_err(missing)?))
    }
}

/// A tenant's directory.
#[derive(Debug)]
pub struct TenantDir(OwnedFd);

impl TenantDir {
    /// Opens a regular file that has this name only.
    pub fn open_file(&self, path: &str) -> Result<File, FileFault> {
        let found = resolve(&self.0, path, OFlags::PATH, Mode::empty())?;
        check_regular(&fs::fstat(&found).map_err(FileFault::of)?)?;
        // The very file that was looked at, whatever has its name by now.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = fs::open(format!("/proc/self/fd/{}", found.as_raw_fd()), flags, Mode::empty());
        Ok(File::from(opened.map_err(FileFault::of)?))
    }

    /// A place to put a file, where there is none or a regular one. The directory has to exist.
    pub fn destination(&self, path: &str) -> Result<Destination, FileFault> {
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let dir = resolve(&self.0, parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        let dir = dir.map_err(|fault| match fault {
            FileFault::Request("there is no such file in the workspace") => {
                FileFault::Request("there is no such directory in the workspace")
            }
            fault => fault,
        })?;
        let destination = Destination { dir, name: name.to_owned() };
        destination.check()?;
        Ok(destination)
    }
}

fn check_regular(stat: &Stat) -> Result<(), FileFault> {
    let problem = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if stat.st_nlink == 1 => return Ok(()),
        FileType::RegularFile => "has more than one hard link",
        FileType::Directory => "is a directory",
        FileType::Symlink => "is or passes a symbolic link",
        FileType::Fifo => "is a fifo",
        FileType::Socket => "is a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "is a device",
        FileType::Unknown => "is no regular file",
    };
    Err(FileFault::Request(problem))
}

/// Where an output goes: a directory that is held open, and a name in it.
#[derive(Debug)]
pub struct Destination {
    dir: OwnedFd,
    name: String,
}

impl Destination {
    fn check(&self) -> Result<(), FileFault> {
        match fs::statat(&self.dir, self.name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(FileFault::of(errno)),
            Ok(stat) => check_regular(&stat),
        }
    }

    /// Begins to write what will take the name's place. `id` tells writers apart.
    pub fn begin(&self, id: &str) -> Result<Replacement<'_>, FileFault> {
        let temporary = format!(".exchequer-{id}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let file = File::from(resolve(&self.dir, &temporary, flags, Mode::RUSR | Mode::WUSR)?);
        let replacement = Replacement { destination: self, temporary, file };
        if rustix::process::geteuid().is_root() {
            // Whose directory it is, his is the file.
            let owner = fs::fstat(&self.dir).map_err(FileFault::of)?;
            let (uid, gid) = (fs::Uid::from_raw(owner.st_uid), fs::Gid::from_raw(owner.st_gid));
            fs::fchown(&replacement.file, Some(uid), Some(gid)).map_err(FileFault::of)?;
        }
        Ok(replacement)
    }
}

/// A file that is not in its place yet; dropped, it is gone.
#[derive(Debug)]
pub struct Replacement<'a> {
    destination: &'a Destination,
    temporary: String,
    file: File,
}

impl Write for Replacement<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Replacement<'_> {
    /// Makes it durable, and then puts it in its place. Whatever has the name by then is replaced, never followed.
    pub fn commit(self) -> Result<(), FileFault> {
        let Destination { dir, name } = self.destination;
        self.destination.check()?;
        self.file.sync_all()?;
        let renamed =
            fs::renameat_with(dir, self.temporary.as_str(), dir, name.as_str(), RenameFlags::empty());
        renamed.map_err(FileFault::of)?;
        let readable =
            fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        fs::fsync(readable.map_err(FileFault::of)?).map_err(FileFault::of)
    }
}

impl Drop for Replacement<'_> {
    fn drop(&mut self) {
        // After a commit there is nothing of this name.
        let _ = fs::unlinkat(&self.destination.dir, self.temporary.as_str(), AtFlags::empty());
    }
}

/// An input as the program gets it: sealed memory that nobody can change any more.
#[derive(Debug)]
pub struct Loaded {
    /// The content, from its beginning.
    pub fd: OwnedFd,
    /// What it is.
    pub digests: ContentDigests,
}

/// Reads all of `from` into sealed memory; `None` if it is longer than `room` bytes.
pub fn load(mut from: impl Read, room: u64) -> io::Result<Option<Loaded>> {
    let memory = fs::memfd_create("input", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memory);
    let Some(digests) = copy(&mut from, room, &mut file)? else { return Ok(None) };
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fs::fcntl_add_seals(&file, seals)?;
    fs::seek(&file, fs::SeekFrom::Start(0))?;
    Ok(Some(Loaded { fd: file.into(), digests }))
}

/// Copies and hashes; `None` if there is more than `room` bytes.
pub fn copy(from: &mut impl Read, room: u64, to: &mut impl Write) -> io::Result<Option<ContentDigests>> {
    let mut content = ContentHasher::default();
    let (mut buffer, mut size) = (vec![0; COPY_BYTES], 0);
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(Some(content.finish())),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        size += count as u64;
        if size > room {
            return Ok(None);
        }
        content.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
    }
}

#[cfg(test)]
mod tests;
