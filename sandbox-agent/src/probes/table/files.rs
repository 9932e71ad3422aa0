//! Files, mounts, devices, programs with privileges, and what is inherited.

use super::{Contrast, EACCES, ENOENT, EPERM, PROBE, Probe, SIGSYS, Watch, by, by_engine};
use crate::{probes::Seen, sandbox::Layer};

const NO_PRIVILEGE: Seen = Seen::words("no privilege gained");
const NOTHING_HANDED_OUT: Seen = Seen::words("nothing of the host handed out");

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "host_file",
        what: "reads a file of the host by its path",
        attack: &["read", "{secret}"],
        stops: &[by(Layer::PrivateRoot, ENOENT), by(Layer::Landlock, EACCES)],
        ..PROBE
    },
    Probe {
        name: "host_directory",
        what: "lists a directory of the host (/sys)",
        attack: &["list", "/sys"],
        stops: &[by(Layer::PrivateRoot, ENOENT), by(Layer::Landlock, EACCES)],
        ..PROBE
    },
    Probe {
        name: "write_read_only",
        what: "makes a file in a directory that its profile shows read-only, and that the host lets anybody write",
        attack: &["write", "{shared}/planted"],
        stops: &[by(Layer::PrivateRoot, Seen::Errno(libc::EROFS)), by(Layer::Landlock, EACCES)],
        ..PROBE
    },
    Probe {
        name: "host_process_proc",
        what: "reads /proc of a process of the host that has its user",
        attack: &["read", "/proc/{duck}/status"],
        stops: &[by(Layer::PrivateRoot, ENOENT), by(Layer::Landlock, EACCES)],
        ..PROBE
    },
    Probe {
        name: "kernel_proc",
        what: "reads the kernel's part of /proc (/proc/version)",
        attack: &["read", "/proc/version"],
        stops: &[by(Layer::MaskedProc, ENOENT)],
        ..PROBE
    },
    Probe {
        name: "kernel_symbols",
        what: "reads /proc/kallsyms",
        attack: &["read", "/proc/kallsyms"],
        stops: &[by(Layer::MaskedProc, ENOENT)],
        ..PROBE
    },
    Probe {
        name: "devices",
        what: "opens each device of the host that its profile does not name",
        attack: &["open", "{devices}"],
        stops: &[by(Layer::PrivateRoot, ENOENT)],
        contrast: Contrast::Answers,
        ..PROBE
    },
    Probe {
        name: "terminal_device",
        what: "opens a device that the host lets anybody open (/dev/ptmx)",
        attack: &["open", "/dev/ptmx"],
        stops: &[by(Layer::PrivateRoot, ENOENT), by(Layer::Landlock, EACCES)],
        ..PROBE
    },
    Probe {
        name: "device_node",
        what: "makes a device node",
        attack: &["device_node"],
        stops: &[by(Layer::Seccomp, EPERM), by(Layer::Landlock, EACCES)],
        ..PROBE
    },
    Probe {
        name: "mount",
        what: "mounts a file system",
        attack: &["mount_tmpfs"],
        stops: &[by(Layer::Seccomp, SIGSYS), by(Layer::Landlock, EPERM), by(Layer::Capabilities, EPERM)],
        ..PROBE
    },
    Probe {
        name: "nested_mount",
        what: "mounts a file system in namespaces of its own",
        attack: &["nested_mount", "tmpfs"],
        stops: &[by(Layer::Seccomp, SIGSYS), by(Layer::Landlock, EPERM)],
        ..PROBE
    },
    Probe {
        name: "cgroup_mount",
        what: "mounts the cgroup file system in namespaces of its own",
        attack: &["nested_mount", "cgroup2"],
        stops: &[by(Layer::Seccomp, SIGSYS), by(Layer::Landlock, EPERM)],
        ..PROBE
    },
    Probe {
        name: "cgroup_files",
        what: "opens the host's cgroup.procs, by which a process changes its cgroup",
        attack: &["read", "{cgroup_procs}"],
        stops: &[by(Layer::PrivateRoot, ENOENT), by(Layer::Landlock, EACCES)],
        ..PROBE
    },
    Probe {
        name: "mount_namespace",
        what: "asks /proc whether it is in the host's mount namespace (what it stops is private_root's to show)",
        attack: &["namespace", "mnt", "{mnt}"],
        stops: &[by(Layer::MountNamespace, Seen::words("another namespace"))],
        without: &[Layer::Landlock],
        ..PROBE
    },
    Probe {
        name: "cgroup_namespace",
        what: "asks /proc whether it is in the host's cgroup namespace",
        attack: &["namespace", "cgroup", "{cgroup}"],
        stops: &[by(Layer::CgroupNamespace, Seen::words("another namespace"))],
        ..PROBE
    },
    Probe {
        name: "setuid_program",
        what: "starts a program of root's with the setuid bit, and looks at its user",
        attack: &["gain_by", "{setuid}"],
        stops: &[
            by(Layer::NoNewPrivs, NO_PRIVILEGE),
            by(Layer::PrivateRoot, NO_PRIVILEGE),
            by(Layer::UserNamespace, NO_PRIVILEGE),
        ],
        without: &[Layer::Landlock],
        contrast: Contrast::Outside,
        ..PROBE
    },
    Probe {
        name: "file_capabilities",
        what: "starts a program that has a capability by its file",
        attack: &["gain_by", "{capable}"],
        stops: &[by(Layer::NoNewPrivs, NO_PRIVILEGE), by(Layer::PrivateRoot, NO_PRIVILEGE)],
        without: &[Layer::Landlock],
        contrast: Contrast::Outside,
        root_only: true,
        ..PROBE
    },
    Probe {
        name: "bounding_set",
        what: "looks for a capability that an executed file could give it",
        attack: &["bounding"],
        stops: &[by(Layer::Capabilities, Seen::words("empty"))],
        ..PROBE
    },
    Probe {
        name: "execute_work_area",
        what: "writes a program into the work area and executes it",
        attack: &["execute_copy"],
        stops: &[by(Layer::WorkArea, EACCES), by(Layer::Landlock, EACCES)],
        ..PROBE
    },
    Probe {
        name: "inherited_descriptors",
        what: "looks for a descriptor beside the three streams",
        attack: &["inherited_fds"],
        stops: &[by(Layer::ClosedFds, Seen::words("none"))],
        ..PROBE
    },
    Probe {
        name: "environment",
        what: "looks for a variable of the agent's environment",
        attack: &["variables"],
        stops: &[by(Layer::CleanEnv, Seen::words("none"))],
        ..PROBE
    },
    Probe {
        name: "hostname",
        what: "asks for the host's name",
        attack: &["hostname", "{hostname}"],
        stops: &[by(Layer::UtsNamespace, Seen::words("another name"))],
        ..PROBE
    },
    Probe {
        name: "output_links",
        what: "makes outputs that are symbolic links to a file of the host and its directory, a fifo, a hard link",
        attack: &["links", "{secret}"],
        stops: &[by_engine(NOTHING_HANDED_OUT)],
        contrast: Contrast::Outside,
        watch: Watch::Outputs(&["symbolic", "directory/secret", "fifo", "hard"]),
        ..PROBE
    },
    Probe {
        name: "output_race",
        what: "makes an output that is a symbolic link every other moment, until it is killed",
        attack: &["swap", "{secret}"],
        stops: &[by_engine(NOTHING_HANDED_OUT)],
        contrast: Contrast::Outside,
        watch: Watch::Outputs(&["swapped"]),
        fit: |spec| spec.limits.wall_ms = 100,
        cost: super::Cost::Slow,
        ..PROBE
    },
];
