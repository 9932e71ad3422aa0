//! Version 1: the names of the files, what is written to them and what their contents mean (the kernel's
//! admin-guide/cgroup-v1).
//!
//! Leaves out where the hierarchies are. Invariant: the memory limit includes swap wherever the kernel counts swap.

use super::files::{Files, Seen};
use super::{Controller, CpuTime, IoBytes, PIDS_MAX, PIDS_PEAK, is_rounded, keyed, swap_is_limited};

const MEMORY_LIMIT: &str = "memory.limit_in_bytes";
/// Memory and swap together; only with swap accounting.
const SWAP_LIMIT: &str = "memory.memsw.limit_in_bytes";
const MEMORY_PEAK: &str = "memory.max_usage_in_bytes";
const OOM_CONTROL: &str = "memory.oom_control";
const PERIOD: &str = "cpu.cfs_period_us";
const QUOTA: &str = "cpu.cfs_quota_us";
const CPU_USER: &str = "cpuacct.usage_user";
const CPU_SYSTEM: &str = "cpuacct.usage_sys";
/// Lines of `major:minor bytes`, one device in each write; 0 takes a device off.
const IO_READ_LIMIT: &str = "blkio.throttle.read_bps_device";
const IO_WRITE_LIMIT: &str = "blkio.throttle.write_bps_device";
const IO: &str = "blkio.throttle.io_service_bytes_recursive";

/// The kernel's own default.
const PERIOD_US: u64 = 100_000;
const NO_QUOTA: &str = "-1";

/// The files with a controller's limits, in the order of writing.
pub(super) fn limits(controller: Controller) -> &'static [&'static str] {
    match controller {
        Controller::Memory => &[MEMORY_LIMIT, SWAP_LIMIT],
        Controller::Pids => &[PIDS_MAX],
        Controller::Cpu => &[PERIOD, QUOTA],
        Controller::Io => &[IO_READ_LIMIT, IO_WRITE_LIMIT],
        Controller::CpuTime => &[],
    }
}

/// The files with what a controller counts.
pub(super) fn counters(controller: Controller) -> &'static [&'static str] {
    match controller {
        Controller::Memory => &[MEMORY_PEAK, OOM_CONTROL],
        Controller::Pids => &[PIDS_PEAK],
        Controller::Io => &[IO],
        Controller::CpuTime => &[CPU_USER, CPU_SYSTEM],
        Controller::Cpu => &[],
    }
}

/// The order matters: the limit with swap can't be below the one without.
pub(super) fn memory_limits(bytes: u64) -> Vec<(&'static str, String)> {
    vec![(MEMORY_LIMIT, bytes.to_string()), (SWAP_LIMIT, bytes.to_string())]
}

pub(super) fn memory_is_limited(limits: &Seen, bytes: u64) -> bool {
    let swap = limits.text(SWAP_LIMIT).map(|_| is_rounded(limits.number(SWAP_LIMIT), bytes));
    is_rounded(limits.number(MEMORY_LIMIT), bytes) && swap_is_limited(swap)
}

pub(super) fn cpu_limits(milli: u64) -> Vec<(&'static str, String)> {
    vec![(PERIOD, PERIOD_US.to_string()), (QUOTA, (milli * PERIOD_US / 1000).to_string())]
}

pub(super) fn cpu_is_limited(limits: &Seen, milli: u64) -> bool {
    limits.number(PERIOD) == Some(PERIOD_US) && limits.number(QUOTA) == Some(milli * PERIOD_US / 1000)
}

pub(super) fn io_limits(devices: &[String], bytes_per_s: u64) -> Vec<(&'static str, String)> {
    let both = |device: &String| {
        [IO_READ_LIMIT, IO_WRITE_LIMIT].map(|file| (file, format!("{device} {bytes_per_s}")))
    };
    devices.iter().flat_map(both).collect()
}

pub(super) fn io_is_limited(limits: &Seen, device: &str, bytes_per_s: u64) -> bool {
    [IO_READ_LIMIT, IO_WRITE_LIMIT]
        .iter()
        .all(|file| keyed(limits.text(file).unwrap_or_default(), device) == Some(bytes_per_s))
}

/// The files with the limits that can keep a killed process from ending.
pub(super) const DELAYING: &[&str] = &[QUOTA, IO_READ_LIMIT, IO_WRITE_LIMIT];

/// What to write so that those of [`DELAYING`] that are set are no longer.
pub(super) fn lifts(limits: &Seen) -> Vec<(&'static str, String)> {
    let quota = limits.number(QUOTA).map(|_| (QUOTA, NO_QUOTA.to_owned()));
    let io = [IO_READ_LIMIT, IO_WRITE_LIMIT].into_iter().flat_map(|file| {
        let lines = limits.text(file).unwrap_or_default().lines();
        lines.filter_map(move |line| Some((file, format!("{} 0", line.split_once(' ')?.0))))
    });
    quota.into_iter().chain(io).collect()
}

pub(super) fn cpu_time(files: &Files) -> Option<CpuTime> {
    let micros = |file| Some(files.number(file)? / 1000);
    Some(CpuTime { user_us: micros(CPU_USER)?, system_us: micros(CPU_SYSTEM)? })
}

/// Without swap.
pub(super) fn peak_memory(files: &Files) -> Option<u64> {
    files.number(MEMORY_PEAK)
}

pub(super) fn oom_kills(files: &Files) -> Option<u64> {
    keyed(&files.read(OOM_CONTROL)?, "oom_kill")
}

/// What processes read and wrote themselves: version 1 does not attribute what the kernel writes back later.
pub(super) fn io_bytes(files: &Files) -> Option<IoBytes> {
    Some(parse_io(&files.read(IO)?))
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
