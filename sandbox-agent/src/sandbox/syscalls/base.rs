//! What every profile allows: a program that computes, reads its files, writes to its work area, starts others of its kind.
//!
//! Leaves out everything with an address (group `network`). Invariant: what is here reaches nothing that mounts, Landlock,
//! namespaces and limits do not hold in.

use super::{Answer, Call, Case, Condition, EPERM, Verdict, call, x86_64};

/// The calls of group `base`.
pub(super) const CALLS: &[Call] = &[
    // Reading, writing, positions.
    call("read", 0, 63, "input"),
    call("write", 1, 64, "output"),
    call("readv", 19, 65, "input, scattered"),
    call("writev", 20, 66, "output, gathered"),
    call("pread64", 17, 67, "the dynamic loader reads headers with it"),
    call("pwrite64", 18, 68, "positioned output"),
    call("preadv", 295, 69, "positioned input, scattered"),
    call("pwritev", 296, 70, "positioned output, gathered"),
    call("preadv2", 327, 286, "newer form of preadv"),
    call("pwritev2", 328, 287, "newer form of pwritev"),
    call("lseek", 8, 62, "file positions"),
    call("sendfile", 40, 71, "copying between descriptors (cat, cp)"),
    call("copy_file_range", 326, 285, "copying between files (cat, cp)"),
    call("splice", 275, 76, "copying between pipes and files (cat)"),
    call("tee", 276, 77, "duplicating pipe contents (tee)"),
    call("readahead", 187, 213, "hint, reads only what can be read"),
    call("fadvise64", 221, 223, "hint (cat, sort)"),
    call("fallocate", 285, 47, "reserving space in the work area"),
    call("fsync", 74, 82, "durability of own files"),
    call("fdatasync", 75, 83, "durability of own files"),
    call("sync_file_range", 277, 84, "durability of own files"),
    call("ftruncate", 77, 46, "own files"),
    call("truncate", 76, 45, "own files; confined by mounts and Landlock"),
    // Descriptors.
    call("close", 3, 57, "own descriptors"),
    call("close_range", 436, 436, "own descriptors"),
    call("dup", 32, 23, "shell redirection"),
    call("dup3", 292, 24, "shell redirection"),
    call("fcntl", 72, 25, "flags, duplication, locks of own descriptors"),
    call("flock", 73, 32, "locks of own files"),
    call("pipe2", 293, 59, "pipelines"),
    call("eventfd2", 290, 19, "event loops"),
    call("epoll_create1", 291, 20, "event loops"),
    call("epoll_ctl", 233, 21, "event loops"),
    call("epoll_pwait", 281, 22, "event loops"),
    call("epoll_pwait2", 441, 441, "event loops"),
    call("ppoll", 271, 73, "waiting on descriptors"),
    call("pselect6", 270, 72, "waiting on descriptors"),
    call("signalfd4", 289, 74, "event loops"),
    call("timerfd_create", 283, 85, "event loops"),
    call("timerfd_settime", 286, 86, "event loops"),
    call("timerfd_gettime", 287, 87, "event loops"),
    call("inotify_init1", 294, 26, "watching own files"),
    call("inotify_add_watch", 254, 27, "watching own files"),
    call("inotify_rm_watch", 255, 28, "watching own files"),
    // The file tree: what is visible is the business of mounts and Landlock.
    call("openat", 257, 56, "opening what mounts and Landlock let through"),
    call("openat2", 437, 437, "newer form of openat"),
    call("newfstatat", 262, 79, "file metadata"),
    call("fstat", 5, 80, "file metadata"),
    call("statx", 332, 291, "file metadata"),
    call("statfs", 137, 43, "file system metadata (df, sort)"),
    call("fstatfs", 138, 44, "file system metadata"),
    call("faccessat", 269, 48, "access checks"),
    call("faccessat2", 439, 439, "access checks"),
    call("readlinkat", 267, 78, "symbolic links"),
    call("getdents64", 217, 61, "listing directories"),
    call("getcwd", 79, 17, "working directory"),
    call("chdir", 80, 49, "working directory"),
    call("fchdir", 81, 50, "working directory"),
    call("mkdirat", 258, 34, "work area"),
    call("unlinkat", 263, 35, "work area"),
    call("renameat2", 316, 276, "work area"),
    call("linkat", 265, 37, "work area"),
    call("symlinkat", 266, 36, "work area"),
    call("fchmod", 91, 52, "work area; its mount honours no setuid bit"),
    call("fchmodat", 268, 53, "work area; its mount honours no setuid bit"),
    call("fchmodat2", 452, 452, "newer form of fchmodat"),
    call("fchown", 93, 55, "to the own id only, the kernel refuses others (cp -p, tar)"),
    call("fchownat", 260, 54, "to the own id only, the kernel refuses others"),
    call("utimensat", 280, 88, "work area (touch, cp -p, tar)"),
    call("umask", 95, 166, "modes of new files"),
    call("getxattr", 191, 8, "reading attributes (ls, cp)"),
    call("lgetxattr", 192, 9, "reading attributes (ls, cp)"),
    call("fgetxattr", 193, 10, "reading attributes (ls, cp)"),
    call("listxattr", 194, 11, "reading attributes (cp)"),
    call("llistxattr", 195, 12, "reading attributes (cp)"),
    call("flistxattr", 196, 13, "reading attributes (cp)"),
    // Memory.
    call("brk", 12, 214, "heap"),
    call("mmap", 9, 222, "memory, loading libraries"),
    call("munmap", 11, 215, "memory"),
    call("mremap", 25, 216, "memory"),
    call("mprotect", 10, 226, "relocation protection, thread stacks"),
    call("madvise", 28, 233, "allocators"),
    call("msync", 26, 227, "own mappings"),
    call("mincore", 27, 232, "own mappings"),
    call("membarrier", 324, 283, "language runtimes"),
    // Processes and threads, inside the pid namespace.
    call("execve", 59, 221, "becoming the program; running other programs inside"),
    call("exit", 60, 93, "ending a thread"),
    call("exit_group", 231, 94, "ending"),
    call("wait4", 61, 260, "own children"),
    call("waitid", 247, 95, "own children"),
    call("kill", 62, 129, "job control; reaches only the tree"),
    call("tkill", 200, 130, "raise, abort"),
    call("tgkill", 234, 131, "raise, abort"),
    call("pidfd_open", 434, 434, "waiting for own children in event loops"),
    call("pidfd_send_signal", 424, 424, "job control; reaches only the tree"),
    call("getpid", 39, 172, "own ids"),
    call("getppid", 110, 173, "own ids"),
    call("gettid", 186, 178, "own ids"),
    call("getuid", 102, 174, "own ids"),
    call("geteuid", 107, 175, "own ids"),
    call("getgid", 104, 176, "own ids"),
    call("getegid", 108, 177, "own ids"),
    call("getresuid", 118, 148, "own ids"),
    call("getresgid", 120, 150, "own ids"),
    call("getgroups", 115, 158, "own ids"),
    call("getpgid", 121, 155, "job control"),
    call("setpgid", 109, 154, "job control"),
    call("getsid", 124, 156, "job control"),
    call("setsid", 112, 157, "job control; the tree is killed by namespace, not by session"),
    call("capget", 125, 90, "reading own (empty) capabilities"),
    call("set_tid_address", 218, 96, "thread start"),
    call("set_robust_list", 273, 99, "thread start"),
    call("get_robust_list", 274, 100, "thread libraries"),
    call("rseq", 334, 293, "thread start"),
    call("futex", 202, 98, "locks"),
    call("sched_yield", 24, 124, "spinning locks"),
    call("sched_getaffinity", 204, 123, "counting processors"),
    call("sched_getparam", 143, 121, "thread libraries read their own policy"),
    call("sched_getscheduler", 145, 120, "thread libraries read their own policy"),
    call("sched_get_priority_max", 146, 125, "thread libraries"),
    call("sched_get_priority_min", 147, 126, "thread libraries"),
    call("getpriority", 140, 141, "reading own priority"),
    call("getcpu", 309, 168, "allocators"),
    call("getrusage", 98, 165, "own usage"),
    call("times", 100, 153, "own usage (shells)"),
    call("setrlimit", 160, 164, "lowering own limits (ulimit); the hard limits are set"),
    call("getrlimit", 97, 163, "reading own limits"),
    // Signals.
    call("rt_sigaction", 13, 134, "signal handlers"),
    call("rt_sigprocmask", 14, 135, "signal masks"),
    call("rt_sigreturn", 15, 139, "returning from handlers"),
    call("rt_sigpending", 127, 136, "pending signals"),
    call("rt_sigsuspend", 130, 133, "waiting for signals (shells)"),
    call("rt_sigtimedwait", 128, 137, "waiting for signals"),
    call("sigaltstack", 131, 132, "handlers' own stack"),
    call("restart_syscall", 219, 128, "the kernel resumes interrupted sleeps with it"),
    // Time.
    call("clock_gettime", 228, 113, "reading clocks"),
    call("clock_getres", 229, 114, "reading clocks"),
    call("clock_nanosleep", 230, 115, "sleeping"),
    call("nanosleep", 35, 101, "sleeping"),
    call("gettimeofday", 96, 169, "reading clocks"),
    call("setitimer", 38, 103, "own timers (timeout)"),
    call("getitimer", 36, 102, "own timers"),
    call("timer_create", 222, 107, "own timers (timeout)"),
    call("timer_settime", 223, 110, "own timers (timeout)"),
    call("timer_gettime", 224, 108, "own timers"),
    call("timer_getoverrun", 225, 109, "own timers"),
    call("timer_delete", 226, 111, "own timers"),
    // The machine, read-only.
    call("uname", 63, 160, "kernel and host name of the namespace"),
    call("sysinfo", 99, 179, "memory size (sort)"),
    call("getrandom", 318, 278, "randomness"),
    // Socket pairs between own processes; making any other socket is out.
    call("sendto", 44, 206, "socket pairs"),
    call("recvfrom", 45, 207, "socket pairs"),
    call("sendmsg", 46, 211, "socket pairs"),
    call("recvmsg", 47, 212, "socket pairs"),
    call("shutdown", 48, 210, "socket pairs"),
    call("getsockname", 51, 204, "telling what a descriptor is (runtimes at start)"),
    call("getpeername", 52, 205, "telling what a descriptor is"),
    call("getsockopt", 55, 209, "telling what a descriptor is"),
    // Older forms of the above.
    x86_64("arch_prctl", 158, "thread-local storage at start"),
    x86_64("open", 2, "older form of openat"),
    x86_64("creat", 85, "older form of openat"),
    x86_64("stat", 4, "older form of newfstatat"),
    x86_64("lstat", 6, "older form of newfstatat"),
    x86_64("access", 21, "older form of faccessat"),
    x86_64("readlink", 89, "older form of readlinkat"),
    x86_64("getdents", 78, "older form of getdents64"),
    x86_64("mkdir", 83, "older form of mkdirat"),
    x86_64("rmdir", 84, "older form of unlinkat"),
    x86_64("unlink", 87, "older form of unlinkat"),
    x86_64("rename", 82, "older form of renameat2"),
    call("renameat", 264, 38, "older form of renameat2"),
    x86_64("link", 86, "older form of linkat"),
    x86_64("symlink", 88, "older form of symlinkat"),
    x86_64("chmod", 90, "older form of fchmodat"),
    x86_64("chown", 92, "older form of fchownat"),
    x86_64("lchown", 94, "older form of fchownat"),
    x86_64("utime", 132, "older form of utimensat"),
    x86_64("utimes", 235, "older form of utimensat"),
    x86_64("futimesat", 261, "older form of utimensat"),
    x86_64("dup2", 33, "older form of dup3"),
    x86_64("pipe", 22, "older form of pipe2"),
    x86_64("poll", 7, "older form of ppoll"),
    x86_64("select", 23, "older form of pselect6"),
    x86_64("epoll_create", 213, "older form of epoll_create1"),
    x86_64("epoll_wait", 232, "older form of epoll_pwait"),
    x86_64("eventfd", 284, "older form of eventfd2"),
    x86_64("signalfd", 282, "older form of signalfd4"),
    x86_64("inotify_init", 253, "older form of inotify_init1"),
    x86_64("fork", 57, "older form of clone"),
    x86_64("vfork", 58, "older form of clone"),
    x86_64("getpgrp", 111, "older form of getpgid"),
    x86_64("time", 201, "older form of clock_gettime"),
    x86_64("alarm", 37, "older form of setitimer"),
    x86_64("pause", 34, "older form of rt_sigsuspend"),
    // By their arguments.
    call("clone", 56, 220, "threads and processes").when(&[NO_NAMESPACES], Verdict::Kill),
    call("clone3", 435, 435, "its flags are behind a pointer: libc falls back to clone").answers(ENOSYS),
    call("ioctl", 16, 29, "telling what a descriptor is").when(IOCTLS, EPERM),
    call("prctl", 157, 167, "the thread's name, reading own state").when(PRCTLS, EPERM),
    call("socketpair", 53, 199, "between own processes").when(LOCAL, EPERM),
    call("prlimit64", 302, 261, "own limits").when(&[OWN_PROCESS], EPERM),
    call("mknodat", 259, 33, "fifos").when(&[FIFO_AT], EPERM),
    x86_64("mknod", 133, "fifos").when(&[FIFO], EPERM),
];

const ENOSYS: Answer = Answer::Refuse(libc::ENOSYS.unsigned_abs());

/// Flags of `clone` that make a namespace. `CLONE_NEWTIME` is not among them: its bit belongs to the exit signal there.
pub(in crate::sandbox) const NAMESPACE_FLAGS: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .unsigned_abs();

const NO_NAMESPACES: Case = Case(
    &[Condition::masked(0, NAMESPACE_FLAGS, 0)],
    "no flag that makes a namespace: those regain capabilities",
);
/// The bits of a socket's type that name it.
const TYPE: u32 = !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC).unsigned_abs();
/// Nothing with a name in a file system or in the abstract space is reached from a pair: the ends of a stream refuse another address,
/// those of packets pass over it. A datagram goes wherever its sender says, so there are no pairs of those.
const LOCAL: &[Case] = &[
    Case(
        &[
            Condition::equal(0, libc::AF_UNIX.unsigned_abs()),
            Condition::masked(1, TYPE, libc::SOCK_STREAM.unsigned_abs()),
        ],
        "AF_UNIX, stream",
    ),
    Case(
        &[
            Condition::equal(0, libc::AF_UNIX.unsigned_abs()),
            Condition::masked(1, TYPE, libc::SOCK_SEQPACKET.unsigned_abs()),
        ],
        "AF_UNIX, packets",
    ),
];
const OWN_PROCESS: Case = Case(
    &[Condition::equal(0, 0)],
    "of the calling process: init shares the user id, and its limits must stay",
);
const FIFO_AT: Case =
    Case(&[Condition::masked(2, libc::S_IFMT, libc::S_IFIFO)], "S_IFIFO: no device, no socket");
const FIFO: Case =
    Case(&[Condition::masked(1, libc::S_IFMT, libc::S_IFIFO)], "S_IFIFO: no device, no socket");

/// `ioctl` requests. Input injection (`TIOCSTI`, `TIOCLINUX`) is out like all others. The kernel reads the request as 32
/// bits, and so does the filter.
const IOCTLS: &[Case] = &[
    Case(&[Condition::equal(1, 0x5401)], "TCGETS: isatty"),
    Case(&[Condition::equal(1, 0x802c_542a)], "TCGETS2: isatty, newer form"),
    Case(&[Condition::equal(1, 0x5413)], "TIOCGWINSZ: terminal size"),
    Case(&[Condition::equal(1, 0x541b)], "FIONREAD: bytes waiting in a pipe"),
    Case(&[Condition::equal(1, 0x5421)], "FIONBIO: non-blocking mode"),
    Case(&[Condition::equal(1, 0x5451)], "FIOCLEX: close-on-exec"),
    Case(&[Condition::equal(1, 0x5450)], "FIONCLEX: close-on-exec"),
];

/// `prctl` operations. Undoing what was set (death signal, dumpable, subreaper) is out.
const PRCTLS: &[Case] = &[
    Case(&[Condition::equal(0, libc::PR_SET_NAME.unsigned_abs())], "PR_SET_NAME: thread names"),
    Case(&[Condition::equal(0, libc::PR_GET_NAME.unsigned_abs())], "PR_GET_NAME: thread names"),
    Case(&[Condition::equal(0, libc::PR_GET_DUMPABLE.unsigned_abs())], "PR_GET_DUMPABLE: reading own state"),
    Case(
        &[Condition::equal(0, libc::PR_GET_NO_NEW_PRIVS.unsigned_abs())],
        "PR_GET_NO_NEW_PRIVS: reading own state",
    ),
    Case(&[Condition::equal(0, libc::PR_GET_SECCOMP.unsigned_abs())], "PR_GET_SECCOMP: reading own state"),
    Case(&[Condition::equal(0, libc::PR_CAPBSET_READ.unsigned_abs())], "PR_CAPBSET_READ: reading own state"),
    Case(
        &[Condition::equal(0, libc::PR_SET_VMA.unsigned_abs())],
        "PR_SET_VMA: allocators name their mappings",
    ),
];
