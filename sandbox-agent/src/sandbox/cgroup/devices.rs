//! Which block devices this host has, as limits name them.
//!
//! Leaves out partitions: the kernel limits whole devices only, a partition with the device it is on. Invariant: what is left out
//! can hold no request (a size of 0, as of a loop device that nothing backs) or is memory.

use std::fs;
use std::path::Path;

/// Where the kernel lists them.
pub(super) const LIST: &str = "/sys/block";

/// `major:minor` of each whole device that a directory such as [`LIST`] has, in order.
pub(super) fn whole(list: &Path) -> Vec<String> {
    let entries = fs::read_dir(list).into_iter().flatten().filter_map(Result::ok);
    let mut devices = entries.filter_map(|entry| number(&entry.path())).collect::<Vec<_>>();
    devices.sort_unstable();
    devices
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
