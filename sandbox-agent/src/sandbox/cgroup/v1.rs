//! Version 1: the names of the files, what is written to them and what their contents mean (the kernel's
//! admin-guide/cgroup-v1).
//!
//! Leaves out where the hierarchies are. Invariant: the memory limit includes swap wherever the kernel counts swap.

use std::path::Path;

use super::{CpuTime, IoBytes, is_rounded, keyed, read, read_number, swap_is_limited};

const MEMORY_LIMIT: &str = "memory.limit_in_bytes";
/// Memory and swap together; only with swap accounting.
pub(super) const SWAP_LIMIT: &str = "memory.memsw.limit_in_bytes";
pub(super) const MEMORY_FILES: [&str; 2] = [MEMORY_LIMIT, SWAP_LIMIT];
const PERIOD: &str = "cpu.cfs_period_us";
const QUOTA: &str = "cpu.cfs_quota_us";
pub(super) const CPU_FILES: [&str; 2] = [PERIOD, QUOTA];

/// The kernel's own default.
const PERIOD_US: u64 = 100_000;

/// The order matters: the limit with swap can't be below the one without.
pub(super) fn memory_limits(bytes: u64) -> Vec<(&'static str, String)> {
    vec![(MEMORY_LIMIT, bytes.to_string()), (SWAP_LIMIT, bytes.to_string())]
}

pub(super) fn memory_is_limited(leaf: &Path, bytes: u64) -> bool {
    let swap = leaf.join(SWAP_LIMIT);
    is_rounded(read_number(&leaf.join(MEMORY_LIMIT)), bytes)
        && swap_is_limited(swap.exists().then(|| is_rounded(read_number(&swap), bytes)))
}

pub(super) fn cpu_limits(milli: u64) -> Vec<(&'static str, String)> {
    vec![(PERIOD, PERIOD_US.to_string()), (QUOTA, (milli * PERIOD_US / 1000).to_string())]
}

pub(super) fn cpu_is_limited(leaf: &Path, milli: u64) -> bool {
    read_number(&leaf.join(PERIOD)) == Some(PERIOD_US)
        && read_number(&leaf.join(QUOTA)) == Some(milli * PERIOD_US / 1000)
}

pub(super) fn cpu_time(leaf: &Path) -> Option<CpuTime> {
    let micros = |file: &str| Some(read_number(&leaf.join(file))? / 1000);
    Some(CpuTime { user_us: micros("cpuacct.usage_user")?, system_us: micros("cpuacct.usage_sys")? })
}

/// Without swap.
pub(super) fn peak_memory(leaf: &Path) -> Option<u64> {
    read_number(&leaf.join("memory.max_usage_in_bytes"))
}

pub(super) fn oom_kills(leaf: &Path) -> Option<u64> {
    keyed(&read(&leaf.join("memory.oom_control"))?, "oom_kill")
}

/// What processes read and wrote themselves: version 1 does not attribute what the kernel writes back later.
pub(super) fn io_bytes(leaf: &Path) -> Option<IoBytes> {
    Some(parse_io(&read(&leaf.join("blkio.throttle.io_service_bytes_recursive"))?))
}

/// Lines of `major:minor Operation bytes`, and a total at the end.
pub(super) fn parse_io(text: &str) -> IoBytes {
    let sum = |operation: &str| {
        let lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let bytes = lines.filter_map(|line| match line[..] {
            [_, of, bytes] if of == operation => bytes.parse::<u64>().ok(),
            _ => None,
        });
        bytes.sum()
    };
    IoBytes { read: sum("Read"), written: sum("Write") }
}
