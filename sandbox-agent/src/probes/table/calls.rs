//! System calls: the whole table of them, foreign entries, and those whose arguments decide.

use super::{Contrast, EPERM, PROBE, Probe, SIGSYS, by};
use crate::{probes::Seen, sandbox::Layer};

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "hostile_calls",
        what: "makes each system call that the filter calls hostile, in a process of its own",
        attack: &["calls", "{hostile}"],
        stops: &[by(Layer::Seccomp, SIGSYS)],
        contrast: Contrast::Answers,
        ..PROBE
    },
    Probe {
        name: "unlisted_calls",
        what: "makes each system call, up to number 600, that is in no list of the profile (but sync, which only costs)",
        attack: &["calls", "{unlisted}"],
        stops: &[by(Layer::Seccomp, EPERM)],
        contrast: Contrast::Answers,
        ..PROBE
    },
    #[cfg(target_arch = "x86_64")]
    Probe {
        name: "x32_entry",
        what: "enters the kernel by the x32 table",
        attack: &["x32"],
        stops: &[by(Layer::Seccomp, SIGSYS)],
        contrast: Contrast::Answers,
        ..PROBE
    },
    #[cfg(target_arch = "x86_64")]
    Probe {
        name: "i386_entry",
        what: "enters the kernel as a 32-bit program (int 0x80)",
        attack: &["i386"],
        stops: &[by(Layer::Seccomp, SIGSYS)],
        contrast: Contrast::Answers,
        ..PROBE
    },
    Probe {
        name: "new_namespaces",
        what: "makes a process in new namespaces with clone, for each kind",
        attack: &[
            "clone_namespace",
            "0x20000",
            "0x2000000",
            "0x4000000",
            "0x8000000",
            "0x10000000",
            "0x20000000",
            "0x40000000",
        ],
        stops: &[by(Layer::Seccomp, SIGSYS)],
        contrast: Contrast::Answers,
        ..PROBE
    },
    Probe {
        name: "new_user_namespace",
        what: "makes a process in a user namespace of its own, where it has every capability",
        attack: &["clone_namespace", "0x10000000"],
        stops: &[by(Layer::Seccomp, SIGSYS)],
        ..PROBE
    },
    Probe {
        name: "clone3",
        what: "calls clone3, whose flags a filter can't see",
        attack: &["clone3"],
        stops: &[by(Layer::Seccomp, Seen::Errno(libc::ENOSYS))],
        contrast: Contrast::Answers,
        ..PROBE
    },
    Probe {
        name: "io_uring",
        what: "sets up an io_uring, whose operations no filter sees",
        attack: &["io_uring"],
        stops: &[by(Layer::Seccomp, SIGSYS)],
        contrast: Contrast::Answers,
        ..PROBE
    },
    Probe {
        name: "userfaultfd",
        what: "opens a userfaultfd",
        attack: &["userfaultfd"],
        stops: &[by(Layer::Seccomp, SIGSYS)],
        contrast: Contrast::Answers,
        ..PROBE
    },
    Probe {
        name: "memfd_secret",
        what: "makes memory that the kernel itself can't read",
        attack: &["memfd_secret"],
        stops: &[by(Layer::Seccomp, EPERM)],
        contrast: Contrast::Answers,
        ..PROBE
    },
    Probe {
        name: "memfd",
        what: "makes a file in memory, which could be executed",
        attack: &["memfd"],
        stops: &[by(Layer::Seccomp, EPERM)],
        ..PROBE
    },
    Probe {
        name: "add_key",
        what: "adds a key to the kernel's store",
        attack: &["add_key"],
        stops: &[by(Layer::Seccomp, SIGSYS)],
        ..PROBE
    },
    Probe {
        name: "session_key",
        what: "looks up a key of the agent's session keyring",
        attack: &["key", "exchequer-sandbox-host"],
        stops: &[by(Layer::Seccomp, SIGSYS), by(Layer::Keyrings, Seen::Errno(libc::ENOKEY))],
        ..PROBE
    },
    Probe {
        name: "bpf_map",
        what: "makes a BPF map",
        attack: &["bpf_map"],
        stops: &[by(Layer::Seccomp, SIGSYS)],
        contrast: Contrast::Answers,
        ..PROBE
    },
    Probe {
        name: "perf_event",
        what: "opens a performance counter",
        attack: &["perf_event"],
        stops: &[by(Layer::Seccomp, SIGSYS)],
        contrast: Contrast::Answers,
        ..PROBE
    },
    Probe {
        name: "kernel_log",
        what: "reads the kernel's log",
        attack: &["kernel_log"],
        stops: &[by(Layer::Seccomp, SIGSYS)],
        contrast: Contrast::Answers,
        ..PROBE
    },
    Probe {
        name: "set_clock",
        what: "sets the machine's clock (to a time that no clock has)",
        attack: &["set_clock"],
        stops: &[by(Layer::Seccomp, SIGSYS)],
        contrast: Contrast::Answers,
        ..PROBE
    },
    Probe {
        name: "set_hostname",
        what: "sets the host name",
        attack: &["set_hostname"],
        stops: &[by(Layer::Seccomp, SIGSYS), by(Layer::Capabilities, EPERM)],
        ..PROBE
    },
    Probe {
        name: "seccomp_call",
        what: "asks for the filters' actions by the call that installs filters",
        attack: &["install_filter"],
        stops: &[by(Layer::Seccomp, EPERM)],
        ..PROBE
    },
    Probe {
        name: "input_injection",
        what: "types into its terminal (TIOCSTI)",
        attack: &["input_injection"],
        stops: &[by(Layer::Seccomp, EPERM)],
        contrast: Contrast::Answers,
        ..PROBE
    },
    Probe {
        name: "input_injection_high_bits",
        what: "the same with bits set that the kernel does not look at",
        attack: &["input_injection_high"],
        stops: &[by(Layer::Seccomp, EPERM)],
        contrast: Contrast::Answers,
        ..PROBE
    },
    Probe {
        name: "death_signal",
        what: "takes back that it dies with its parent",
        attack: &["death_signal"],
        stops: &[by(Layer::Seccomp, EPERM)],
        ..PROBE
    },
    Probe {
        name: "undumpable",
        what: "hides its state from the supervisor",
        attack: &["undumpable"],
        stops: &[by(Layer::Seccomp, EPERM)],
        ..PROBE
    },
    Probe {
        name: "address_randomization",
        what: "turns the randomisation of addresses off",
        attack: &["randomization_off"],
        stops: &[by(Layer::Seccomp, EPERM)],
        ..PROBE
    },
];
