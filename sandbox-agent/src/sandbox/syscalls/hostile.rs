//! Calls that kill: no program that belongs here asks for these, an attack does.
//!
//! Leaves out what innocent programs try and do without; that answers EPERM, and the reasons for the doubtful cases are below.
//! Invariant: no group lets any of these through; one may soften the answer to an error.
//!
//! EPERM and not death: `seccomp` and `landlock_*` (programs that confine themselves try), `memfd_create` (libffi tries; it
//! would make executable files where the work area has none), `memfd_secret` (key-handling libraries try; locked memory is 0
//! anyway), `pkey_alloc` (V8 tries), `name_to_handle_at` (file tools; harmless without its counterpart), `vmsplice` and
//! `get_mempolicy` and their kin (numerical and copying libraries try), `clock_adjtime` (reads clocks too), `setuid` and its
//! kin (servers drop privileges), `fanotify_init` (file watchers try), `chown` to others (the kernel refuses).

use super::{Answer, Call, call, x86_64};

/// The calls of no group.
pub(super) const CALLS: &[Call] = &[
    call("ptrace", 101, 117, "takes over other processes").answers(KILL),
    call("process_vm_readv", 310, 270, "reads other processes' memory").answers(KILL),
    call("process_vm_writev", 311, 271, "writes other processes' memory").answers(KILL),
    call("pidfd_getfd", 438, 438, "takes other processes' descriptors").answers(KILL),
    call("process_mrelease", 448, 448, "acts on other processes' memory").answers(KILL),
    call("process_madvise", 440, 440, "acts on other processes' memory").answers(KILL),
    call("kcmp", 312, 272, "compares the kernel objects of other processes").answers(KILL),
    call("mount", 165, 40, "changes the file tree").answers(KILL),
    call("umount2", 166, 39, "uncovers what mounts hide").answers(KILL),
    call("pivot_root", 155, 41, "leaves the private root").answers(KILL),
    call("chroot", 161, 51, "leaves the private root").answers(KILL),
    call("fsopen", 430, 430, "mounts, newer form").answers(KILL),
    call("fsconfig", 431, 431, "mounts, newer form").answers(KILL),
    call("fsmount", 432, 432, "mounts, newer form").answers(KILL),
    call("fspick", 433, 433, "mounts, newer form").answers(KILL),
    call("open_tree", 428, 428, "mounts, newer form").answers(KILL),
    call("move_mount", 429, 429, "mounts, newer form").answers(KILL),
    call("mount_setattr", 442, 442, "mounts, newer form").answers(KILL),
    call("open_tree_attr", 467, 467, "mounts, newer form").answers(KILL),
    call("unshare", 272, 97, "regains capabilities in new namespaces").answers(KILL),
    call("setns", 308, 268, "enters other namespaces").answers(KILL),
    call("bpf", 321, 280, "loads code into the kernel").answers(KILL),
    call("perf_event_open", 298, 241, "wide kernel attack surface, side channels").answers(KILL),
    call("lookup_dcookie", 212, 18, "the kernel's profiler").answers(KILL),
    call("io_uring_setup", 425, 425, "system calls that no filter sees").answers(KILL),
    call("io_uring_enter", 426, 426, "system calls that no filter sees").answers(KILL),
    call("io_uring_register", 427, 427, "system calls that no filter sees").answers(KILL),
    call("userfaultfd", 323, 282, "stretches kernel races").answers(KILL),
    call("keyctl", 250, 219, "the kernel's key store is not namespaced").answers(KILL),
    call("add_key", 248, 217, "the kernel's key store is not namespaced").answers(KILL),
    call("request_key", 249, 218, "the kernel's key store is not namespaced").answers(KILL),
    call("kexec_load", 246, 104, "replaces the kernel").answers(KILL),
    call("kexec_file_load", 320, 294, "replaces the kernel").answers(KILL),
    call("init_module", 175, 105, "loads code into the kernel").answers(KILL),
    call("finit_module", 313, 273, "loads code into the kernel").answers(KILL),
    call("delete_module", 176, 106, "removes code from the kernel").answers(KILL),
    call("open_by_handle_at", 304, 265, "opens files beside all path checks").answers(KILL),
    call("reboot", 169, 142, "the machine").answers(KILL),
    call("swapon", 167, 224, "the machine").answers(KILL),
    call("swapoff", 168, 225, "the machine").answers(KILL),
    call("vhangup", 153, 58, "the machine's terminals").answers(KILL),
    call("quotactl", 179, 60, "the machine's disks").answers(KILL),
    call("quotactl_fd", 443, 443, "the machine's disks").answers(KILL),
    call("settimeofday", 164, 170, "the machine's clock").answers(KILL),
    call("clock_settime", 227, 112, "the machine's clock").answers(KILL),
    call("sethostname", 170, 161, "names").answers(KILL),
    call("setdomainname", 171, 162, "names").answers(KILL),
    call("acct", 163, 89, "process accounting").answers(KILL),
    call("syslog", 103, 116, "the kernel's log").answers(KILL),
    x86_64("iopl", 172, "raw hardware").answers(KILL),
    x86_64("ioperm", 173, "raw hardware").answers(KILL),
    x86_64("modify_ldt", 154, "segment tricks").answers(KILL),
];

const KILL: Answer = Answer::Kill;
