//! Version 2: the names of the files, what is written to them and what their contents mean (the kernel's
//! admin-guide/cgroup-v2).
//!
//! Leaves out where the hierarchy is. Invariant: the memory limit includes swap wherever the kernel counts swap; when
//! memory runs out, the whole leaf is killed, never a part of it.

use std::io;
use std::path::Path;

use super::files::{Files, Seen};
use super::{
    Controller, CpuTime, IoBytes, PIDS_MAX, PIDS_PEAK, Version, is_rounded, keyed, swap_is_limited, write,
};

const MEMORY_LIMIT: &str = "memory.max";
/// Swap alone; only with swap accounting.
const SWAP_LIMIT: &str = "memory.swap.max";
/// Whether running out of memory kills all members.
const GROUP_KILL: &str = "memory.oom.group";
/// Since Linux 5.19.
const MEMORY_PEAK: &str = "memory.peak";
const MEMORY_EVENTS: &str = "memory.events";
const CPU_LIMIT: &str = "cpu.max";
const CPU_STAT: &str = "cpu.stat";
/// Lines of `major:minor key=value ...`, one device in each write; `max` lifts a limit.
const IO_LIMIT: &str = "io.max";
const IO: &str = "io.stat";
const SUBTREE: &str = "cgroup.subtree_control";

/// The kernel's own default.
const PERIOD_US: u64 = 100_000;

/// Makes controllers available to the children of `dir`, one by one; those that it can't be are taken out of `holds`.
/// The first refusal is told.
pub(super) fn enable(dir: &Path, holds: &mut Vec<Controller>) -> Result<(), (String, io::Error)> {
    let mut first = Ok(());
    holds.retain(|controller| {
        if *controller == Controller::CpuTime {
            return true;
        }
        let name = controller.name(Version::V2);
        let file = dir.join(SUBTREE);
        let enabled = write(&file, &format!("+{name}"));
        let held = enabled.is_ok();
        if let (Err(error), true) = (enabled, first.is_ok()) {
            first = Err((format!("writing +{name} to {}", file.display()), error));
        }
        held
    });
    first
}

/// The files with a controller's limits, in the order of writing.
pub(super) fn limits(controller: Controller) -> &'static [&'static str] {
    match controller {
        Controller::Memory => &[MEMORY_LIMIT, SWAP_LIMIT, GROUP_KILL],
        Controller::Pids => &[PIDS_MAX],
        Controller::Cpu => &[CPU_LIMIT],
        Controller::Io => &[IO_LIMIT],
        Controller::CpuTime => &[],
    }
}

/// The files with what a controller counts.
pub(super) fn counters(controller: Controller) -> &'static [&'static str] {
    match controller {
        Controller::Memory => &[MEMORY_PEAK, MEMORY_EVENTS],
        Controller::Pids => &[PIDS_PEAK],
        Controller::Io => &[IO],
        Controller::CpuTime => &[CPU_STAT],
        Controller::Cpu => &[],
    }
}

pub(super) fn memory_limits(bytes: u64) -> Vec<(&'static str, String)> {
    vec![(MEMORY_LIMIT, bytes.to_string()), (SWAP_LIMIT, "0".to_owned()), (GROUP_KILL, "1".to_owned())]
}

pub(super) fn memory_is_limited(limits: &Seen, bytes: u64) -> bool {
    let swap = limits.text(SWAP_LIMIT).map(|_| limits.number(SWAP_LIMIT) == Some(0));
    is_rounded(limits.number(MEMORY_LIMIT), bytes) && swap_is_limited(swap)
}

fn quota(milli: u64) -> String {
    format!("{} {PERIOD_US}", milli * PERIOD_US / 1000)
}

pub(super) fn cpu_limits(milli: u64) -> Vec<(&'static str, String)> {
    vec![(CPU_LIMIT, quota(milli))]
}

pub(super) fn cpu_is_limited(limits: &Seen, milli: u64) -> bool {
    limits.text(CPU_LIMIT) == Some(&*quota(milli))
}

fn io_limit(device: &str, rate: &str) -> (&'static str, String) {
    (IO_LIMIT, format!("{device} rbps={rate} wbps={rate}"))
}

pub(super) fn io_limits(devices: &[String], bytes_per_s: u64) -> Vec<(&'static str, String)> {
    let rate = bytes_per_s.to_string();
    devices.iter().map(|device| io_limit(device, &rate)).collect()
}

pub(super) fn io_is_limited(limits: &Seen, device: &str, bytes_per_s: u64) -> bool {
    let text = limits.text(IO_LIMIT).unwrap_or_default();
    let wanted = [format!("rbps={bytes_per_s}"), format!("wbps={bytes_per_s}")];
    let line = text.lines().find_map(|line| line.strip_prefix(device)?.strip_prefix(' '));
    line.is_some_and(|line| wanted.iter().all(|pair| line.split(' ').any(|own| own == pair)))
}

/// The files with the limits that can keep a killed process from ending.
pub(super) const DELAYING: &[&str] = &[CPU_LIMIT, IO_LIMIT];

/// What to write so that those of [`DELAYING`] that are set are no longer.
pub(super) fn lifts(limits: &Seen) -> Vec<(&'static str, String)> {
    let cpu = limits.text(CPU_LIMIT).filter(|text| !text.starts_with("max"));
    let cpu = cpu.map(|_| (CPU_LIMIT, format!("max {PERIOD_US}")));
    let lines = limits.text(IO_LIMIT).unwrap_or_default().lines();
    let io = lines.filter_map(|line| Some(io_limit(line.split_once(' ')?.0, "max")));
    cpu.into_iter().chain(io).collect()
}

pub(super) fn cpu_time(files: &Files) -> Option<CpuTime> {
    let text = files.read(CPU_STAT)?;
    Some(CpuTime { user_us: keyed(&text, "user_usec")?, system_us: keyed(&text, "system_usec")? })
}

/// Without swap.
pub(super) fn peak_memory(files: &Files) -> Option<u64> {
    files.number(MEMORY_PEAK)
}

pub(super) fn oom_kills(files: &Files) -> Option<u64> {
    keyed(&files.read(MEMORY_EVENTS)?, "oom_kill")
}

pub(super) fn io_bytes(files: &Files) -> Option<IoBytes> {
    Some(parse_io(&files.read(IO)?))
}

/// Lines of `major:minor key=value ...`.
pub(super) fn parse_io(text: &str) -> IoBytes {
    let sum = |key: &str| {
        let values = text.split_whitespace().filter_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        values.filter_map(|value| value.parse::<u64>().ok()).sum()
    };
    IoBytes { read: sum("rbytes"), written: sum("wbytes") }
}
