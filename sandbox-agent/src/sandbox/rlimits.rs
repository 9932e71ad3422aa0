//! The resource limits of a payload: which values, set from outside and read back.
//!
//! Leaves out wall clock, the tree's processor time and output (the supervisor's and the agent's). Invariant: a limit is
//! never above what the engine itself is allowed, nor above what was asked but for a second of processor time and the engine's own two processes.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::process::Resource;

use super::spec::Limits;
use super::sys;

/// One limit: the kernel's resource, soft and hard value.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    which: Which,
    pub(super) soft: u64,
    pub(super) hard: u64,
}

/// The kernel's resources that are limited.
#[derive(Clone, Copy, Debug)]
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
    /// Soft and hard value that hold for a process.
    pub(super) fn held(&self, pid: i32) -> io::Result<(u64, u64)> {
        sys::resource_limit(pid, self.which.number(), None)
    }

    /// Its name, as `/proc/<pid>/limits` has it.
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
    /// The kernel's number for it.
    fn number(self) -> u32 {
        let which = match self {
            Self::Cpu => Resource::Cpu,
            Self::AddressSpace => Resource::As,
            Self::Processes => Resource::Nproc,
            Self::OpenFiles => Resource::Nofile,
            Self::FileSize => Resource::Fsize,
            Self::CoreSize => Resource::Core,
            Self::LockedMemory => Resource::Memlock,
            Self::MessageQueues => Resource::Msgqueue,
        };
        which as u32
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
        let ceiling =
            sys::resource_limit(THIS_PROCESS, which.number(), None).map_or(u64::MAX, |(_, hard)| hard);
        Planned { which, soft: soft.min(ceiling), hard: hard.min(ceiling) }
    })
    .collect()
}

/// For where a cgroup limits the memory in use: address space, which runtimes reserve far more of than they use, is free.
pub(super) fn free_address_space(planned: &mut Vec<Planned>) {
    planned.retain(|limit| !matches!(limit.which, Which::AddressSpace));
}

/// As a process id.
const THIS_PROCESS: i32 = 0;

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

/// Sets them on a process of the same user, all of them, whatever becomes of one; the first refusal.
pub(super) fn apply(pid: i32, planned: &[Planned]) -> io::Result<()> {
    let set = |limit: &Planned| {
        sys::resource_limit(pid, limit.which.number(), Some((limit.soft, limit.hard))).map(drop)
    };
    planned.iter().map(set).collect::<Vec<_>>().into_iter().collect()
}
