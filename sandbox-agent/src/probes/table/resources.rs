//! More than one's share.

use super::{Contrast, Cost, EPERM, PROBE, Probe, by, by_engine};
use crate::{probes::Seen, sandbox::Layer};

const ENOSPC: Seen = Seen::Errno(libc::ENOSPC);
const EAGAIN: Seen = Seen::Errno(libc::EAGAIN);
const OUT_OF_MEMORY: Seen = Seen::Ended("out of memory");

pub(super) const PROBES: &[Probe] = &[
    Probe {
        name: "fork_bomb",
        what: "makes 60 processes where 20 are allowed",
        attack: &["forks", "60"],
        stops: &[by(Layer::Rlimits, EAGAIN), by(Layer::Cgroup, EAGAIN)],
        fit: |spec| spec.limits.pids = 20,
        ..PROBE
    },
    Probe {
        name: "memory_bomb",
        what: "uses 256 MiB in one process where 64 are allowed",
        attack: &["memory", "268435456"],
        // Address space is limited only where the memory in use is not.
        stops: &[by(Layer::Cgroup, OUT_OF_MEMORY), by(Layer::Rlimits, Seen::Errno(libc::ENOMEM))],
        fit: |spec| spec.limits.memory_bytes = 64 << 20,
        cost: Cost::Slow,
        ..PROBE
    },
    Probe {
        name: "memory_bomb_of_tree",
        what: "uses 4 times 40 MiB in four processes where 64 are allowed",
        attack: &["memory_of_tree", "41943040", "4"],
        stops: &[by(Layer::Cgroup, OUT_OF_MEMORY)],
        fit: |spec| spec.limits.memory_bytes = 64 << 20,
        cost: Cost::Slow,
        ..PROBE
    },
    Probe {
        name: "disk_fill",
        what: "writes 3 MB of files into a work area of 1 MiB",
        attack: &["fill", "3000000", "500000"],
        stops: &[by(Layer::WorkArea, ENOSPC)],
        fit: |spec| spec.profile.work.size_bytes = 1 << 20,
        ..PROBE
    },
    Probe {
        name: "file_flood",
        what: "makes 500 files in a work area of 100",
        attack: &["many_files", "500"],
        stops: &[by(Layer::WorkArea, ENOSPC)],
        fit: |spec| spec.profile.work.max_files = 100,
        ..PROBE
    },
    Probe {
        name: "big_file",
        what: "writes 3 MB into a file where 1 MiB is allowed",
        attack: &["big_file", "3000000"],
        stops: &[by(Layer::Rlimits, Seen::Killed(libc::SIGXFSZ))],
        fit: |spec| spec.limits.file_bytes = 1 << 20,
        ..PROBE
    },
    Probe {
        name: "descriptors",
        what: "opens 300 descriptors where 256 are allowed",
        attack: &["descriptors", "300"],
        stops: &[by(Layer::Rlimits, Seen::Errno(libc::EMFILE))],
        fit: |spec| spec.limits.open_files = 256,
        ..PROBE
    },
    Probe {
        name: "raise_limit",
        what: "raises its hard limit for descriptors",
        attack: &["raise_limit", "300"],
        stops: &[by(Layer::Rlimits, EPERM)],
        fit: |spec| spec.limits.open_files = 256,
        ..PROBE
    },
    Probe {
        name: "lock_memory",
        what: "locks memory",
        attack: &["lock_memory"],
        stops: &[by(Layer::Seccomp, EPERM), by(Layer::Rlimits, EPERM)],
        ..PROBE
    },
    Probe {
        name: "core_dump",
        what: "raises the limit for core dumps and dumps one",
        attack: &["core_dump"],
        stops: &[by(Layer::Rlimits, EPERM)],
        // The helper itself may have none either, so that switching this layer off inside lets nothing through.
        contrast: Contrast::Outside,
        cost: Cost::Slow,
        ..PROBE
    },
    Probe {
        name: "output_flood",
        what: "writes 1 MB of output where 64 KiB are allowed",
        attack: &["flood", "1000000"],
        stops: &[by_engine(Seen::Ended("output limit"))],
        contrast: Contrast::Outside,
        fit: |spec| spec.limits.output_bytes = 64 << 10,
        ..PROBE
    },
    Probe {
        name: "processor_time",
        what: "computes for 400 ms where 50 are allowed",
        attack: &["spin", "400"],
        stops: &[by_engine(Seen::Ended("processor-time limit"))],
        contrast: Contrast::Outside,
        fit: |spec| spec.limits.cpu_ms = 50,
        cost: Cost::Slow,
        ..PROBE
    },
    Probe {
        name: "wall_clock",
        what: "sleeps a second where 100 ms are allowed",
        attack: &["sleep", "1"],
        stops: &[by_engine(Seen::Ended("wall-clock limit"))],
        contrast: Contrast::Outside,
        fit: |spec| spec.limits.wall_ms = 100,
        cost: Cost::Slow,
        ..PROBE
    },
];
