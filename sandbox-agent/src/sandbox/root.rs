//! The private root: a tmpfs holding only what the profile names, entered by `pivot_root`, the host's tree let go.
//!
//! Leaves out namespaces (the caller has a mount namespace of its own) and Landlock. Invariant: on [`Refused`] the tree is
//! as it was; after success every mount is nosuid, and everything but the work area is read-only.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};

use super::control::Layer;
use super::sys;
use super::wire::Surroundings;

/// Files that programs look up their own id in; made by the engine, with one account.
pub(super) const ACCOUNT_FILES: [&str; 2] = ["/etc/passwd", "/etc/group"];

/// Directories of which one exists on any host, to mount the new root over. Not `/proc` or `/dev`: both are needed while
/// the root is built.
const BASES: [&str; 7] = ["/tmp", "/run", "/mnt", "/var", "/srv", "/sys", "/usr"];

/// Which of the files inside are the engine's own rather than the host's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OwnFiles {
    pub(super) root: bool,
    pub(super) proc: bool,
}

/// The kernel refused a step; nothing has changed.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) step: String,
    pub(super) error: io::Error,
}

fn at<T>(step: impl Into<String>, result: io::Result<T>) -> Result<T, Refused> {
    result.map_err(|error| Refused { step: step.into(), error })
}

/// What stands at a host path: to be linked again, or bound.
enum Source {
    Link(PathBuf),
    Directory(OwnedFd),
    File(OwnedFd),
}

fn source(path: &Path) -> Option<Source> {
    // Held open from here on: the base is about to cover part of the host's tree.
    let hold = || open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok();
    let kind = fs::symlink_metadata(path).ok()?.file_type();
    if kind.is_symlink() {
        Some(Source::Link(fs::read_link(path).ok()?))
    } else if kind.is_dir() {
        hold().map(Source::Directory)
    } else {
        hold().map(Source::File)
    }
}

fn inside(base: &Path, path: &Path) -> PathBuf {
    base.join(path.strip_prefix("/").unwrap_or(path))
}

/// Builds and enters the root. `Ok` carries the refusal of `/proc`, without which the root still stands.
pub(super) fn enter(
    surroundings: &Surroundings,
    id: (u32, u32),
    with_proc: bool,
) -> Result<Option<Refused>, Refused> {
    let profile = &surroundings.profile;
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    at("mount --make-rprivate /", mount_change("/", private).map_err(Into::into))?;
    let base = BASES.iter().map(Path::new).find(|path| path.is_dir());
    let base = at("finding a directory to mount over", base.ok_or_else(|| io::ErrorKind::NotFound.into()))?;
    let sources = profile
        .read_only
        .iter()
        .filter_map(|path| source(path).map(|source| (path.as_path(), source)))
        .collect::<Vec<_>>();
    let devices = profile
        .devices
        .iter()
        .filter_map(|name| {
            let path = Path::new("/dev").join(name);
            source(&path).map(|source| (path, source))
        })
        .collect::<Vec<_>>();

    at("mount tmpfs for the root", tmpfs(base, MountFlags::empty(), c"mode=0755,size=1m"))?;
    let built = fill(base, surroundings, id, &sources, &devices, with_proc);
    let entered = built.and_then(|proc| {
        at("chdir to the new root", chdir(base).map_err(Into::into))?;
        at("pivot_root", pivot_root(".", ".").map_err(Into::into)).map(|()| proc)
    });
    if entered.is_err() {
        let _ = chdir("/");
        at("unmounting the unfinished root", unmount(base, UnmountFlags::DETACH).map_err(Into::into))?;
    }
    entered
}

/// Lets go of the host's tree and closes the root. A failure here leaves no root to go on with.
pub(super) fn seal() -> Result<(), Refused> {
    at("unmounting the host's tree", unmount(".", UnmountFlags::DETACH).map_err(Into::into))?;
    at("chdir /", chdir("/").map_err(Into::into))?;
    let flags =
        MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    at("remounting the root read-only", mount_remount("/", flags, c"").map_err(Into::into))
}

fn fill(
    base: &Path,
    surroundings: &Surroundings,
    (uid, gid): (u32, u32),
    sources: &[(&Path, Source)],
    devices: &[(PathBuf, Source)],
    with_proc: bool,
) -> Result<Option<Refused>, Refused> {
    let work = &surroundings.profile.work;
    let target = inside(base, &work.path);
    at("making the work area", fs::create_dir_all(&target))?;
    let options = format!("mode=0700,size={},nr_inodes={}", work.size_bytes, work.max_files);
    let options = at("naming the work area's limits", CString::new(options).map_err(Into::into))?;
    let noexec = if work.executable { MountFlags::empty() } else { MountFlags::NOEXEC };
    let mounted = if surroundings.has(Layer::WorkArea) {
        tmpfs(&target, noexec, &options)
    } else {
        mount("tmpfs", &target, "tmpfs", MountFlags::NOSUID, c"mode=0700").map_err(Into::into)
    };
    at("mount tmpfs for the work area", mounted)?;

    for (path, source) in sources {
        place(base, path, source, libc::MOUNT_ATTR_NODEV)?;
    }
    for (path, source) in devices {
        place(base, path, source, libc::MOUNT_ATTR_NOEXEC)?;
    }
    let accounts =
        [format!("sandbox:x:{uid}:{gid}::{}:/bin/sh\n", work.path.display()), format!("sandbox:x:{gid}:\n")];
    for (path, text) in ACCOUNT_FILES.into_iter().zip(accounts) {
        let target = inside(base, Path::new(path));
        at("making /etc", fs::create_dir_all(target.parent().unwrap_or(base)))?;
        // A profile may name the host's own.
        if !target.exists() {
            at(format!("writing {path}"), fs::write(&target, text))?;
        }
    }
    if !with_proc {
        return Ok(None);
    }
    let proc = inside(base, Path::new("/proc"));
    at("making /proc", fs::create_dir_all(&proc))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = if surroundings.has(Layer::MaskedProc) { c"subset=pid" } else { c"" };
    let mounted = mount("proc", &proc, "proc", flags, options).map_err(Into::into);
    Ok(at("mount proc with subset=pid", mounted).err())
}

fn tmpfs(target: &Path, more: MountFlags, options: &std::ffi::CStr) -> io::Result<()> {
    Ok(mount("tmpfs", target, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV | more, options)?)
}

fn place(base: &Path, path: &Path, source: &Source, attribute: u64) -> Result<(), Refused> {
    let target = inside(base, path);
    let step = |what: &str| format!("{what} {}", path.display());
    at(step("making the directory of"), fs::create_dir_all(target.parent().unwrap_or(base)))?;
    let held = match source {
        Source::Link(to) => return at(step("linking"), symlink(to, &target)),
        Source::Directory(held) => {
            at(step("making"), fs::create_dir_all(&target))?;
            held
        }
        Source::File(held) => {
            at(step("making"), fs::File::create(&target))?;
            held
        }
    };
    let held = format!("/proc/self/fd/{}", held.as_raw_fd());
    at(step("bind"), mount_bind_recursive(held.as_str(), &target).map_err(Into::into))?;
    let name = at(step("naming"), CString::new(target.as_os_str().as_bytes()).map_err(Into::into))?;
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | attribute;
    at(step("making read-only"), sys::add_mount_attributes(&name, attributes))
}
