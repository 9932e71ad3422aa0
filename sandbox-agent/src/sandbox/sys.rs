//! The system calls that need `unsafe`: fork, exec, wait, signals, and the few that rustix has no wrapper for.
//!
//! This is the only file of the crate with `unsafe`; the code that runs after a fork is built from these and from
//! rustix, and holds none of its own. Invariant: [`SingleThreaded`] exists only in a process that the kernel said has
//! one thread, so that a forked child may allocate and take locks like any other program.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char, c_int};
use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::time::Duration;

/// Exit status of a forked child whose code panicked.
pub(super) const EXIT_PANICKED: c_int = 101;

/// Proof that the calling process had exactly one thread when it was made.
#[derive(Clone, Copy)]
pub(super) struct SingleThreaded(());

impl SingleThreaded {
    /// Asks the kernel how many threads this process has.
    pub(super) fn verify() -> io::Result<Self> {
        let threads = fs::read_dir("/proc/self/task")?.count();
        if threads == 1 {
            Ok(Self(()))
        } else {
            Err(io::Error::other(format!("{threads} threads where only one may be")))
        }
    }

    /// Forks; `child` runs in the child, which then exits with what it returned and never comes back here.
    pub(super) fn fork(self, child: impl FnOnce() -> c_int) -> io::Result<c_int> {
        let Self(()) = self;
        // SAFETY: `self` proves that no other thread exists that could hold a lock across the fork.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                // A panic must not unwind into the parent's frames, which the child shares a copy of.
                let status = catch_unwind(AssertUnwindSafe(child)).unwrap_or(EXIT_PANICKED);
                // SAFETY: `_exit` runs no handlers and does not return.
                unsafe { libc::_exit(status) }
            }
            pid => Ok(pid),
        }
    }
}

/// A null-terminated array of C strings, as `execve` wants it.
pub(super) struct CStrings {
    _owned: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl CStrings {
    pub(super) fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
        Self { _owned: strings, pointers }
    }
}

/// Replaces the process image; returns only if that failed. Allocates nothing.
pub(super) fn execve(program: &CStr, args: &CStrings, env: &CStrings) -> Result<Infallible, c_int> {
    // SAFETY: all three are null-terminated and outlive the call; the arrays end in a null pointer.
    unsafe { libc::execve(program.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    Err(errno())
}

fn errno() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn check(result: c_int) -> io::Result<c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// `unshare(2)`. The caller shares no memory or descriptor table with anyone, so no flag can pull one away.
pub(super) fn unshare(flags: c_int) -> io::Result<()> {
    // SAFETY: takes no pointers; with a single thread it only changes this process's own namespaces.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

/// Gives up root for one plain user and group, with no supplementary groups; permitted capabilities survive only if
/// `PR_SET_KEEPCAPS` is set.
pub(super) fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: an empty list needs no pointer; the other two take integers only.
    check(unsafe { libc::setgroups(0, ptr::null()) })?;
    // SAFETY: integers only.
    check(unsafe { libc::setresgid(gid, gid, gid) })?;
    // SAFETY: integers only.
    check(unsafe { libc::setresuid(uid, uid, uid) }).map(drop)
}

/// Drops every capability the kernel knows from the bounding set.
pub(super) fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64_u64 {
        // SAFETY: integers only.
        let present = unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) };
        match present {
            -1 => return Ok(()),
            0 => {}
            // SAFETY: integers only.
            _ => check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }).map(drop)?,
        }
    }
    Ok(())
}

/// What the kernel accounted to ended processes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ResourceUsage {
    pub(super) user_us: u64,
    pub(super) system_us: u64,
    pub(super) max_rss_kib: u64,
    pub(super) minor_faults: u64,
    pub(super) major_faults: u64,
    pub(super) blocks_in: u64,
    pub(super) blocks_out: u64,
}

impl ResourceUsage {
    fn from_kernel(raw: &libc::rusage) -> Self {
        let count = |value: i64| u64::try_from(value).unwrap_or(0);
        let micros = |time: libc::timeval| count(time.tv_sec) * 1_000_000 + count(time.tv_usec);
        Self {
            user_us: micros(raw.ru_utime),
            system_us: micros(raw.ru_stime),
            max_rss_kib: count(raw.ru_maxrss),
            minor_faults: count(raw.ru_minflt),
            major_faults: count(raw.ru_majflt),
            blocks_in: count(raw.ru_inblock),
            blocks_out: count(raw.ru_oublock),
        }
    }
}

/// `getrusage(2)` of this process, or of all its descendants that were waited for.
pub(super) fn resource_usage(of_children: bool) -> ResourceUsage {
    let who = if of_children { libc::RUSAGE_CHILDREN } else { libc::RUSAGE_SELF };
    // SAFETY: `rusage` is plain integers, for which zero is a value; the pointer is to a live local.
    let raw = unsafe {
        let mut raw: libc::rusage = mem::zeroed();
        libc::getrusage(who, &raw mut raw);
        raw
    };
    ResourceUsage::from_kernel(&raw)
}

/// An ended child, as `wait4(2)` reports it: process id, raw wait status, usage of it and of what it waited for.
pub(super) struct Ended {
    pub(super) pid: c_int,
    pub(super) status: c_int,
    pub(super) usage: ResourceUsage,
}

/// Reaps one child: any (`None`) or a given one. `Ok(None)`: with `block` false, none has ended.
pub(super) fn wait(pid: Option<c_int>, block: bool) -> io::Result<Option<Ended>> {
    let options = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    loop {
        let mut status = 0;
        // SAFETY: both pointers are to live locals; `rusage` is plain integers.
        let (reaped, raw) = unsafe {
            let mut raw: libc::rusage = mem::zeroed();
            let reaped = libc::wait4(pid.unwrap_or(-1), &raw mut status, options, &raw mut raw);
            (reaped, raw)
        };
        match reaped {
            -1 if errno() == libc::EINTR => {}
            -1 => return Err(io::Error::last_os_error()),
            0 => return Ok(None),
            pid => {
                return Ok(Some(Ended { pid, status, usage: ResourceUsage::from_kernel(&raw) }));
            }
        }
    }
}

fn signal_set(signals: &[c_int]) -> libc::sigset_t {
    // SAFETY: `sigset_t` is a bit array initialised by `sigemptyset` before use.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}

/// Makes exactly `signals` the blocked ones.
pub(super) fn block_exactly(signals: &[c_int]) {
    let set = signal_set(signals);
    // SAFETY: the set is initialised and outlives the call.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut()) };
}

/// Takes one pending signal out of `signals`, which must be blocked, waiting up to `timeout`.
pub(super) fn take_signal(signals: &[c_int], timeout: Duration) -> Option<c_int> {
    let set = signal_set(signals);
    let limit = libc::timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    // SAFETY: set and timeout are initialised locals; no signal details are asked for.
    let signal = unsafe { libc::sigtimedwait(&raw const set, ptr::null_mut(), &raw const limit) };
    (signal > 0).then_some(signal)
}

/// A descriptor that is readable while one of `signals` (blocked) is pending.
pub(super) fn signal_descriptor(signals: &[c_int]) -> io::Result<OwnedFd> {
    let set = signal_set(signals);
    // SAFETY: the set is an initialised local.
    let fd = check(unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Restores the default action of every signal: a program must not inherit the runtime's ignored SIGPIPE.
pub(super) fn default_signals() {
    for signal in 1..=64 {
        // SAFETY: installs the default action, no handler; refused signals (KILL, STOP) are left as they are.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Sends a signal; a target that is gone is no error.
pub(super) fn send_signal(pid: c_int, signal: c_int) -> io::Result<()> {
    // SAFETY: integers only.
    match check(unsafe { libc::kill(pid, signal) }) {
        Err(gone) if gone.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}

/// Kills every process that this one may signal, itself excepted. Only for the init of a pid namespace.
pub(super) fn kill_all_in_namespace() {
    // SAFETY: integers only. Reaches beyond this process's children unless it is a namespace's init: the guard.
    unsafe {
        if libc::getpid() == 1 {
            libc::kill(-1, libc::SIGKILL);
        }
    }
}

/// Closes descriptors that a forked child has from its parent, whose owners it never drops.
pub(super) fn close_inherited(fds: &[RawFd]) {
    for fd in fds {
        // SAFETY: integers only; the child ends by `_exit`, so that no owner closes the number again.
        unsafe { libc::close(*fd) };
    }
}

/// Closes every descriptor from `first` on. For children that own nothing beyond.
pub(super) fn close_from(first: RawFd) -> io::Result<()> {
    let first_unsigned = u32::try_from(first).map_err(io::Error::other)?;
    // SAFETY: integers only. The caller is a forked child that never drops the owners of these descriptors.
    if unsafe { libc::syscall(libc::SYS_close_range, first_unsigned, u32::MAX, 0_u32) } == 0 {
        return Ok(());
    }
    let open = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok())
        .filter(|fd| *fd >= first)
        .collect::<Vec<_>>();
    for fd in open {
        // SAFETY: integers only; as above. One of them was the directory being read, already closed: EBADF.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Moves `fd` onto descriptor number `target`, replacing what is there, with close-on-exec as asked.
pub(super) fn place_at(fd: BorrowedFd<'_>, target: RawFd, close_on_exec: bool) -> io::Result<()> {
    let raw = fd.as_raw_fd();
    let flags = if close_on_exec { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: integers only. The caller is a forked child that never drops an owner of `target`.
    unsafe {
        if raw != target {
            check(libc::dup2(raw, target))?;
        }
        check(libc::fcntl(target, libc::F_SETFD, flags)).map(drop)
    }
}

/// Moves `fd` onto number `target` and closes everything above it. For children that need nothing else.
pub(super) fn keep_only(fd: OwnedFd, target: RawFd) -> io::Result<OwnedFd> {
    place_at(fd.as_fd(), target, true)?;
    // Its number is either `target`, owned by what is returned, or closed by the next line.
    mem::forget(fd);
    close_from(target + 1)?;
    adopt(target)
}

/// Takes over a descriptor this process was started with.
pub(super) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: asks whether the descriptor is open; integers only.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: called once per number, by the code that placed it there.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `mount_setattr(2)` on the mount at `path` and all below it: adds `attributes` (`MOUNT_ATTR_*`), takes none away.
pub(super) fn add_mount_attributes(path: &CStr, attributes: u64) -> io::Result<()> {
    // SAFETY: `mount_attr` is plain integers; pointer and size are of a live local.
    unsafe {
        let mut wanted: libc::mount_attr = mem::zeroed();
        wanted.attr_set = attributes;
        let result = libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const wanted,
            mem::size_of::<libc::mount_attr>(),
        );
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// The Landlock ABI version of the running kernel.
pub(super) fn landlock_abi() -> io::Result<i64> {
    const VERSION_FLAG: u32 = 1;
    let nothing = ptr::null::<libc::c_void>();
    // SAFETY: with this flag the kernel reads no attributes: null pointer and zero size are what it asks for.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0_usize, VERSION_FLAG) };
    if abi > 0 { Ok(abi) } else { Err(io::Error::last_os_error()) }
}

/// Processor time of another process's live and ended threads, in nanoseconds.
pub(super) fn process_cpu_ns(pid: c_int) -> io::Result<u64> {
    // The kernel's own encoding of "scheduler clock of process `pid`".
    const PROCESS_SCHEDULER_CLOCK: c_int = 2;
    let clock = (!pid << 3) | PROCESS_SCHEDULER_CLOCK;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live local.
    check(unsafe { libc::clock_gettime(clock, &raw mut time) })?;
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Ok(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// Clock ticks per second in `/proc/<pid>/stat`.
pub(super) fn clock_ticks_per_second() -> u64 {
    // SAFETY: integers only.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|ticks| *ticks > 0).unwrap_or(100)
}
