//! Version 2: the names of the files, what is written to them and what their contents mean (the kernel's
//! admin-guide/cgroup-v2).
//!
//! Leaves out where the hierarchy is. Invariant: the memory limit includes swap wherever the kernel counts swap; when
//! memory runs out, the whole leaf is killed, never a part of it.

use std::io;
use std::path::Path;

use super::{
    Controller, CpuTime, IoBytes, Version, is_rounded, keyed, read, read_number, swap_is_limited, write,
};

const MEMORY_LIMIT: &str = "memory.max";
/// Swap alone; only with swap accounting.
pub(super) const SWAP_LIMIT: &str = "memory.swap.max";
/// Whether running out of memory kills all members.
pub(super) const GROUP_KILL: &str = "memory.oom.group";
pub(super) const MEMORY_FILES: [&str; 3] = [MEMORY_LIMIT, SWAP_LIMIT, GROUP_KILL];
const CPU_LIMIT: &str = "cpu.max";
pub(super) const CPU_FILES: [&str; 1] = [CPU_LIMIT];
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

pub(super) fn memory_limits(bytes: u64) -> Vec<(&'static str, String)> {
    vec![(MEMORY_LIMIT, bytes.to_string()), (SWAP_LIMIT, "0".to_owned()), (GROUP_KILL, "1".to_owned())]
}

pub(super) fn memory_is_limited(leaf: &Path, bytes: u64) -> bool {
    let swap = leaf.join(SWAP_LIMIT);
    is_rounded(read_number(&leaf.join(MEMORY_LIMIT)), bytes)
        && swap_is_limited(swap.exists().then(|| read_number(&swap) == Some(0)))
}

fn quota(milli: u64) -> String {
    format!("{} {PERIOD_US}", milli * PERIOD_US / 1000)
}

pub(super) fn cpu_limits(milli: u64) -> Vec<(&'static str, String)> {
    vec![(CPU_LIMIT, quota(milli))]
}

pub(super) fn cpu_is_limited(leaf: &Path, milli: u64) -> bool {
    read(&leaf.join(CPU_LIMIT)) == Some(quota(milli))
}

pub(super) fn cpu_time(leaf: &Path) -> Option<CpuTime> {
    let text = read(&leaf.join("cpu.stat"))?;
    Some(CpuTime { user_us: keyed(&text, "user_usec")?, system_us: keyed(&text, "system_usec")? })
}

/// Without swap. Since Linux 5.19.
pub(super) fn peak_memory(leaf: &Path) -> Option<u64> {
    read_number(&leaf.join("memory.peak"))
}

pub(super) fn oom_kills(leaf: &Path) -> Option<u64> {
    keyed(&read(&leaf.join("memory.events"))?, "oom_kill")
}

pub(super) fn io_bytes(leaf: &Path) -> Option<IoBytes> {
    Some(parse_io(&read(&leaf.join("io.stat"))?))
}

/// Lines of `major:minor key=value ...`.
pub(super) fn parse_io(text: &str) -> IoBytes {
    let sum = |key: &str| {
        let values = text.split_whitespace().filter_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        values.filter_map(|value| value.parse::<u64>().ok()).sum()
    };
    IoBytes { read: sum("rbytes"), written: sum("wbytes") }
}
