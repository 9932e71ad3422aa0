//! CPU time and memory as the kernel counts them: of this process, and of another by its id.
//!
//! Left out: wall-clock time. Invariant: what can't be read is an error, not zero.

use std::time::Duration;

use anyhow::Context as _;

/// User and system time of a process and all its threads so far.
pub(crate) fn of(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    // The command's name, in parentheses, may hold spaces; fields are counted from after it.
    let fields = text.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect::<Vec<_>>());
    let ticks = fields.as_deref().and_then(|fields| {
        let number = |place: usize| fields.get(place)?.parse::<u64>().ok();
        Some(number(11)? + number(12)?)
    });
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_millis(ticks.with_context(|| format!("{path} has no times"))? * 1000 / per_second))
}

/// User and system time of this process.
pub(crate) fn own() -> anyhow::Result<Duration> {
    of(std::process::id())
}

/// The largest resident memory that this process has had, MiB.
pub(crate) fn peak_mib() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
