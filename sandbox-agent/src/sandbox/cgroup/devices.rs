//! Which block devices this host has at the moment, as limits name them.
//!
//! Leaves out partitions: the kernel limits whole devices only, a partition with the device it is on. Invariant: what is left out
//! can hold no request (a size of 0, as of a loop device that nothing backs) or is memory (`ram<N>`); what is told is never a
//! part of a list that was too long or could not be read.

use std::fs;
use std::path::Path;

/// Where the kernel lists them.
const LIST: &str = "/sys/block";
/// More than this are not limited: each is a write for every execution.
pub(super) const MAX: usize = 64;

/// The devices' `major:minor`, in order, or why there is none to limit.
pub(super) type Known = Result<Vec<String>, String>;

/// The devices that a limit concerns: those that this host has now, none without a limit.
pub(super) fn concerned(io_bytes_per_s: u64) -> Known {
    if io_bytes_per_s == 0 { Ok(vec![]) } else { whole(Path::new(LIST)) }
}

/// Each whole device that a directory such as [`LIST`] has.
pub(super) fn whole(list: &Path) -> Known {
    let entries = fs::read_dir(list).map_err(|error| format!("{}: {error}", list.display()))?;
    let numbers = entries.filter_map(|entry| number(&entry.ok()?.path()));
    let mut devices = numbers.take(MAX + 1).collect::<Vec<_>>();
    devices.sort_unstable();
    match devices.len() {
        0 => Err("no block device is known".to_owned()),
        count if count > MAX => Err(format!("more than {MAX} block devices")),
        _ => Ok(devices),
    }
}

fn number(device: &Path) -> Option<String> {
    let ram = device.file_name()?.to_str()?.strip_prefix("ram");
    let is_memory = ram.is_some_and(|rest| rest.parse::<u32>().is_ok());
    let is_empty = fs::read_to_string(device.join("size")).is_ok_and(|size| size.trim() == "0");
    // Without a number nobody can open it: a path of a device with several, which has its own entry.
    let number = fs::read_to_string(device.join("dev")).ok()?;
    let (major, minor) = number.trim().split_once(':')?;
    let is_number = [major, minor].iter().all(|part| part.parse::<u32>().is_ok());
    (is_number && !is_empty && !is_memory).then(|| format!("{major}:{minor}"))
}
