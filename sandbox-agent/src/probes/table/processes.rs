//! Other processes, and one's own place among them.

use super::{Contrast, Cost, EPERM, PROBE, Probe, SIGSYS, Watch, by, by_engine};
use crate::{probes::Seen, sandbox::Layer};

const ESRCH: Seen = Seen::Errno(libc::ESRCH);

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "signal_host",
        what: "signals a process of the host that has its user",
        attack: &["signal", "{duck}"],
        stops: &[by(Layer::PidNamespace, ESRCH), by(Layer::Landlock, EPERM)],
        ..PROBE
    },
    Probe {
        name: "signal_init",
        what: "kills the sandbox's init",
        attack: &["kill_parent"],
        stops: &[by(Layer::Landlock, EPERM)],
        ..PROBE
    },
    Probe {
        name: "trace_host",
        what: "traces a process of the host that has its user",
        attack: &["trace", "{duck}"],
        stops: &[
            by(Layer::Seccomp, SIGSYS),
            by(Layer::PidNamespace, ESRCH),
            by(Layer::Landlock, EPERM),
            by(Layer::UserNamespace, EPERM),
        ],
        ..PROBE
    },
    Probe {
        name: "trace_sibling",
        what: "traces another process of the same execution",
        attack: &["trace_sibling"],
        stops: &[by(Layer::Seccomp, SIGSYS)],
        ..PROBE
    },
    Probe {
        name: "read_sibling",
        what: "reads the memory of another process of the same execution",
        attack: &["read_sibling"],
        stops: &[by(Layer::Seccomp, SIGSYS)],
        ..PROBE
    },
    Probe {
        name: "limits_of_init",
        what: "reaches for the limits of the sandbox's init",
        attack: &["limits_of_parent"],
        stops: &[by(Layer::Seccomp, EPERM)],
        ..PROBE
    },
    Probe {
        name: "shared_memory",
        what: "attaches shared memory of a process of the host",
        attack: &["shared_memory", "{shm}"],
        stops: &[by(Layer::Seccomp, EPERM), by(Layer::IpcNamespace, Seen::Errno(libc::EINVAL))],
        ..PROBE
    },
    Probe {
        name: "priority",
        what: "changes its priority",
        attack: &["lower_priority"],
        stops: &[by(Layer::Seccomp, EPERM)],
        ..PROBE
    },
    Probe {
        name: "io_priority",
        what: "changes its priority for input and output",
        attack: &["io_priority"],
        stops: &[by(Layer::Seccomp, EPERM)],
        ..PROBE
    },
    Probe {
        name: "scheduling",
        what: "changes its scheduling class",
        attack: &["batch_scheduling"],
        stops: &[by(Layer::Seccomp, EPERM)],
        ..PROBE
    },
    Probe {
        name: "affinity",
        what: "chooses its processors",
        attack: &["pin_processor"],
        stops: &[by(Layer::Seccomp, EPERM)],
        ..PROBE
    },
    Probe {
        name: "orphan",
        what: "leaves a process behind in a session of its own, without a parent",
        attack: &["orphan", "{marker}"],
        stops: &[by_engine(Seen::words("nothing left"))],
        contrast: Contrast::Outside,
        watch: Watch::Survivors,
        cost: Cost::Slow,
        ..PROBE
    },
];
