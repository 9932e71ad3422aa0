//! The resource limits of a payload: which values, set, and what the kernel's table calls them.
//!
//! Leaves out wall clock, the tree's processor time and output (the supervisor's and the agent's). Invariant: a limit is
//! never above what the engine itself is allowed, and never silently above what was asked.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use serde::{Deserialize, Serialize};

use super::spec::Limits;

/// One limit: the kernel's resource, soft and hard value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Planned {
    which: Which,
    pub(super) soft: u64,
    pub(super) hard: u64,
}

/// The kernel's resources that are limited.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Which {
    Cpu,
    AddressSpace,
    Processes,
    OpenFiles,
    FileSize,
    CoreSize,
    LockedMemory,
    MessageQueues,
}

impl Planned {
    /// Its name in `/proc/<pid>/limits`.
    pub(super) fn name(&self) -> &'static str {
        match self.which {
            Which::Cpu => "Max cpu time",
            Which::AddressSpace => "Max address space",
            Which::Processes => "Max processes",
            Which::OpenFiles => "Max open files",
            Which::FileSize => "Max file size",
            Which::CoreSize => "Max core file size",
            Which::LockedMemory => "Max locked memory",
            Which::MessageQueues => "Max msgqueue size",
        }
    }
}

impl Which {
    fn resource(self) -> Resource {
        match self {
            Self::Cpu => Resource::Cpu,
            Self::AddressSpace => Resource::As,
            Self::Processes => Resource::Nproc,
            Self::OpenFiles => Resource::Nofile,
            Self::FileSize => Resource::Fsize,
            Self::CoreSize => Resource::Core,
            Self::LockedMemory => Resource::Memlock,
            Self::MessageQueues => Resource::Msgqueue,
        }
    }
}

/// The limits for one execution. `own_count`: the kernel counts processes for this execution alone (it has a user
/// namespace); otherwise it counts all of the user's.
pub(super) fn plan(limits: &Limits, own_count: bool) -> Vec<Planned> {
    // One second above the budget that the supervisor enforces exactly: this one is the net below.
    let cpu = limits.cpu_ms.div_ceil(1000) + 1;
    let others = if own_count { SUPERVISOR_AND_INIT } else { processes_of_user() };
    [
        (Which::Cpu, cpu, cpu + 1),
        (Which::Processes, limits.pids + others, limits.pids + others),
        (Which::OpenFiles, limits.open_files, limits.open_files),
        (Which::FileSize, limits.file_bytes, limits.file_bytes),
        (Which::CoreSize, 0, 0),
        (Which::LockedMemory, 0, 0),
        (Which::MessageQueues, 0, 0),
        (Which::AddressSpace, limits.memory_bytes, limits.memory_bytes),
    ]
    .into_iter()
    .map(|(which, soft, hard)| {
        let ceiling = getrlimit(which.resource()).maximum.unwrap_or(u64::MAX);
        Planned { which, soft: soft.min(ceiling), hard: hard.min(ceiling) }
    })
    .collect()
}

/// For where a cgroup limits the memory in use: address space, which runtimes reserve far more of than they use, is free.
pub(super) fn free_address_space(planned: &mut Vec<Planned>) {
    planned.retain(|limit| !matches!(limit.which, Which::AddressSpace));
}

/// Both run under the payload's user id in its user namespace.
const SUPERVISOR_AND_INIT: u64 = 2;

fn processes_of_user() -> u64 {
    let me = rustix::process::getuid().as_raw();
    let mine = |entry: &fs::DirEntry| {
        let is_process =
            entry.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
        is_process && entry.metadata().is_ok_and(|data| data.uid() == me)
    };
    let Ok(entries) = fs::read_dir("/proc") else {
        return SUPERVISOR_AND_INIT;
    };
    let tasks = entries.filter_map(Result::ok).filter(mine).map(|entry| {
        fs::read_dir(entry.path().join("task")).map_or(1, |tasks| u64::try_from(tasks.count()).unwrap_or(1))
    });
    tasks.sum::<u64>() + SUPERVISOR_AND_INIT
}

/// Sets them on this process. Returns the first refusal. Allocates nothing.
pub(super) fn apply(planned: &[Planned]) -> Result<(), i32> {
    let mut first = Ok(());
    for limit in planned {
        let value = Rlimit { current: Some(limit.soft), maximum: Some(limit.hard) };
        if let Err(error) = setrlimit(limit.which.resource(), value) {
            first = first.and(Err(error.raw_os_error()));
        }
    }
    first
}
