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
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
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
        let dropped = check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) });
        match dropped {
            // Beyond the last that the kernel knows.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
            other => other.map(drop)?,
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

/// `prlimit(2)`: soft and hard value as they were before, then `set`. No limit is [`u64::MAX`].
pub(super) fn resource_limit(pid: c_int, resource: u32, set: Option<(u64, u64)>) -> io::Result<(u64, u64)> {
    let new = set.map(|(soft, hard)| libc::rlimit64 { rlim_cur: soft, rlim_max: hard });
    let new = new.as_ref().map_or(ptr::null(), ptr::from_ref);
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: pointers are to live locals, or null where nothing is set.
    let result = unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, new, &raw mut old) };
    if result == 0 { Ok((old.rlim_cur, old.rlim_max)) } else { Err(io::Error::last_os_error()) }
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

/// Closes every descriptor but the standard streams and `kept`. For children that own nothing else.
pub(super) fn keep_only(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept = kept.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        close_range(first, fd - 1)?;
        first = fd + 1;
    }
    close_range(first, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: integers only. The caller is a forked child that never drops the owners of these descriptors.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return Ok(());
    }
    let open = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok())
        .filter(|fd| (first..=last).contains(fd))
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

/// Lets every open descriptor but `fd` and the standard streams survive `execve`. Only for probes of what closing them
/// is good for.
pub(super) fn leak_all_but(fd: BorrowedFd<'_>) -> io::Result<()> {
    let open = fs::read_dir("/proc/self/fd")?;
    let open = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    for other in open.filter(|number| *number > 2 && *number != fd.as_raw_fd()).collect::<Vec<_>>() {
        // SAFETY: integers only. One of them was the directory being read, already closed: EBADF.
        unsafe { libc::fcntl(other, libc::F_SETFD, 0) };
    }
    Ok(())
}

/// Takes the loopback interface of this process's network namespace up.
pub(super) fn bring_loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: `ifreq` is plain integers, for which zero is a value; the kernel reads name and flags of a live local.
    unsafe {
        let mut request: libc::ifreq = mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
            *to = c_char::try_from(*from).unwrap_or(0);
        }
        request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap_or(0);
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)).map(drop)
    }
}

const KEY_TYPE: &CStr = c"user";
const KEY_NAME: &CStr = c"exchequer-sandbox-host";

/// Joins a session keyring of its own, which is empty.
pub(super) fn join_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: c_int = 1;
    let anonymous = ptr::null::<c_char>();
    // SAFETY: a null name asks for a keyring without one.
    match unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, anonymous) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Adds a key to this process's session keyring, for [`find_key`] to find where the keyring is inherited.
pub(super) fn add_key() -> io::Result<()> {
    let content = c"x";
    // SAFETY: strings end in a null byte; the content is one byte long.
    let key = unsafe {
        libc::syscall(
            libc::SYS_add_key,
            KEY_TYPE.as_ptr(),
            KEY_NAME.as_ptr(),
            content.as_ptr(),
            1_usize,
            libc::KEY_SPEC_SESSION_KEYRING,
        )
    };
    if key == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the session keyring of this process has the helper's key: 0 or an error number.
pub(super) fn find_key() -> c_int {
    const SEARCH: c_int = 10;
    // SAFETY: strings end in a null byte; no keyring to link the found key to.
    let key = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            SEARCH,
            libc::KEY_SPEC_SESSION_KEYRING,
            KEY_TYPE.as_ptr(),
            KEY_NAME.as_ptr(),
            0,
        )
    };
    if key == -1 { errno() } else { 0 }
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

/// Adds a filter for system calls to this process.
pub(super) fn install_filter(program: &[seccompiler::sock_filter]) -> Result<(), c_int> {
    let length = libc::c_ushort::try_from(program.len()).map_err(|_| libc::E2BIG)?;
    // The kernel only reads it; both types are the C structure.
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: pointer and length are of a live slice of instructions.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) } {
        0 => Ok(()),
        _ => Err(errno()),
    }
}

/// Reads a file of the kernel's own, whose size nobody knows beforehand, with as few calls as it takes.
pub(super) fn read_whole(path: &str) -> io::Result<String> {
    read_from_start(&fs::File::open(path)?)
}

/// As [`read_whole`], of a file that is open already, wherever it was read up to.
pub(super) fn read_from_start(file: &fs::File) -> io::Result<String> {
    // On the stack: after a fork it is there, and a large piece of heap is not.
    let mut piece = [0; 4096];
    let mut text = vec![];
    loop {
        let count = file.read_at(&mut piece, text.len() as u64)?;
        text.extend_from_slice(&piece[..count]);
        if count == 0 {
            return String::from_utf8(text).map_err(io::Error::other);
        }
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
