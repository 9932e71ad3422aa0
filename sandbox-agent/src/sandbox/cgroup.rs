//! Control groups: one parent per helper, in it one leaf per execution, with limits and accounts for the tree as a whole.
//!
//! What happens per execution has to be cheap and exact, so this works on the kernel's plain files with no library
//! between: a leaf is made before it is asked for and removed after the answer ([`keeper`]), its files are opened and the payload enters it with the
//! surroundings; what is left on the way of an execution is writing its limits. Where cgroups can be made is [`places`]'s
//! subject; what the files of the two versions are called and mean is in [`v1`] and [`v2`].
//!
//! Left out: when to kill and what an execution's end is called (`supervisor`). Invariants: a leaf is used for one
//! execution, so that its counters start at zero; a limit is claimed only as read back ([`Leaf::read_back`]); the
//! program, which sees no cgroup file system, can write none of this.

mod devices;
mod files;
mod keeper;
mod leaf;
mod places;
mod v1;
mod v2;

#[cfg(test)]
mod tests;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use super::control::Layer;
use super::outcome::{MemorySource, Usage};
use super::sys;
use super::wire::Refusal;

use files::Seen;
pub(super) use keeper::Stock;
pub(super) use leaf::{Held, Leaf};

/// Which of the two interfaces a hierarchy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// What a hierarchy can limit or count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    Memory,
    Pids,
    Io,
    /// A ceiling on processors used at one time.
    Cpu,
    /// Counting processor time: `cpuacct`; every cgroup of version 2 does it.
    CpuTime,
}

impl Controller {
    const ALL: [Self; 5] = [Self::Memory, Self::Pids, Self::Io, Self::Cpu, Self::CpuTime];

    fn name(self, version: Version) -> &'static str {
        match (self, version) {
            (Self::Memory, _) => "memory",
            (Self::Pids, _) => "pids",
            (Self::Cpu, _) => "cpu",
            (Self::Io, Version::V1) => "blkio",
            (Self::Io, Version::V2) => "io",
            (Self::CpuTime, Version::V1) => "cpuacct",
            (Self::CpuTime, Version::V2) => "cpu.stat",
        }
    }
}

/// What one execution may use, as the cgroup limits it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bounds {
    /// Memory and swap together, bytes.
    memory_bytes: u64,
    /// Processes and threads.
    pids: u64,
    /// Thousandths of a processor; 0 for all there are.
    cpus_milli: u64,
    /// Bytes per second read, and as much written, of each block device; 0 for no limit.
    io_bytes_per_s: u64,
}

/// Processor time, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuTime {
    pub(super) user_us: u64,
    pub(super) system_us: u64,
}

impl CpuTime {
    pub(super) fn total(self) -> Duration {
        Duration::from_micros(self.user_us + self.system_us)
    }

    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            user_us: self.user_us.saturating_sub(earlier.user_us),
            system_us: self.system_us.saturating_sub(earlier.system_us),
        }
    }
}

/// Bytes to and from block devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct IoBytes {
    pub(super) read: u64,
    pub(super) written: u64,
}

/// What a leaf counted; `None`: this host has no such counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) cpu: Option<CpuTime>,
    /// Most memory at one time, bytes, and which version says so.
    pub(super) peak_memory: Option<(Version, u64)>,
    /// Most processes and threads at one time. Neither version counts it before Linux 6.1, version 1 on few before 6.12.
    pub(super) peak_pids: Option<u64>,
    pub(super) io: Option<IoBytes>,
    /// The kernel killed a process of it because its memory was at its limit.
    pub(super) out_of_memory: bool,
}

impl Counted {
    /// `usage` by wait4, with what the cgroup knows better.
    pub(super) fn replace_in(self, mut usage: Usage) -> Usage {
        if let Some(cpu) = self.cpu {
            (usage.cpu_user_us, usage.cpu_system_us) = (cpu.user_us, cpu.system_us);
        }
        if let Some((version, bytes)) = self.peak_memory {
            usage.peak_memory_bytes = bytes;
            usage.memory_source = match version {
                Version::V1 => MemorySource::Cgroup1,
                Version::V2 => MemorySource::Cgroup2,
            };
        }
        if let Some(io) = self.io {
            (usage.read_bytes, usage.written_bytes) = (io.read, io.written);
        }
        usage.peak_pids = self.peak_pids.unwrap_or(0);
        usage
    }
}

/// One hierarchy, and this helper's directory in it.
#[derive(Debug)]
struct Hierarchy {
    version: Version,
    holds: Vec<Controller>,
    /// The parent of the leaves.
    dir: PathBuf,
    /// Says to [`sweep`] that somebody lives: held by whoever has this descriptor, however they end.
    lock: OwnedFd,
}

/// The parent of a helper's leaves, in each hierarchy that is of use.
#[derive(Debug)]
pub(super) struct Parent {
    name: String,
    hierarchies: Vec<Hierarchy>,
    /// What could not be had, and why.
    problems: Vec<Refusal>,
}

/// What parents' names begin with; process id and time of birth follow.
const PREFIX: &str = "exchequer-";
/// How often making a parent is tried against others that sweep at the same moment.
const TRIES: usize = 8;

impl Parent {
    /// Makes this helper's parent wherever the host has something to offer, and removes what dead helpers left there.
    /// What can't be had is kept as the executions' refusals.
    pub(super) fn make() -> Self {
        let born = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
        let mut parent = Self {
            name: format!("{PREFIX}{}-{born}", std::process::id()),
            hierarchies: vec![],
            problems: vec![],
        };
        match places::discover() {
            Ok(found) => parent.settle(&found),
            Err(error) => parent.problem("looking for cgroups in /proc/self", &error),
        }
        parent
    }

    fn problem(&mut self, step: impl Into<String>, error: &io::Error) {
        self.problems.push(Refusal::new(Layer::Cgroup, step, error));
    }

    fn settle(&mut self, found: &[places::Found]) {
        for place in found.iter().filter(|place| place.version == Version::V2) {
            match places::choose_v2(place) {
                Ok(chosen) => self.settle_in(&chosen.dir, Version::V2, chosen.holds),
                Err((step, error)) => self.problem(step, &error),
            }
        }
        for place in found.iter().filter(|place| place.version == Version::V1) {
            let missing = place.controllers.iter().copied().filter(|one| !self.has(*one)).collect::<Vec<_>>();
            if !missing.is_empty() {
                self.settle_in(&place.own, Version::V1, missing);
            }
        }
        for needed in [Controller::Memory, Controller::Pids] {
            if !self.has(needed) {
                let name = needed.name(Version::V2);
                let none = io::Error::from(io::ErrorKind::NotFound);
                self.problem(format!("finding a place for a cgroup with the {name} controller"), &none);
            }
        }
    }

    fn has(&self, controller: Controller) -> bool {
        self.hierarchies.iter().any(|hierarchy| hierarchy.holds.contains(&controller))
    }

    fn locks(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.hierarchies.iter().map(|hierarchy| hierarchy.lock.as_fd())
    }

    /// Whether leaves of it limit anything that an execution must not exceed.
    fn is_of_use(&self) -> bool {
        self.has(Controller::Memory) || self.has(Controller::Pids)
    }

    fn settle_in(&mut self, place: &Path, version: Version, holds: Vec<Controller>) {
        sweep(place);
        let dir = place.join(&self.name);
        match make_locked(&dir) {
            Ok(lock) => {
                let mut hierarchy = Hierarchy { version, holds, dir, lock };
                if version == Version::V2
                    && let Err((step, error)) = v2::enable(&hierarchy.dir, &mut hierarchy.holds)
                {
                    self.problem(step, &error);
                }
                self.hierarchies.push(hierarchy);
            }
            Err(error) => self.problem(format!("mkdir {}", dir.display()), &error),
        }
    }

    fn make_leaf(&self, number: u64) -> io::Result<()> {
        for hierarchy in &self.hierarchies {
            if let Err(error) = fs::create_dir(hierarchy.leaf(number)) {
                // What was made before it is empty; what can't be removed goes with the parent.
                let _ = self.remove_leaf(number);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Fails with EBUSY while processes are in it.
    fn remove_leaf(&self, number: u64) -> io::Result<()> {
        let removed = self.hierarchies.iter().map(|hierarchy| remove(&hierarchy.leaf(number)));
        // All of them, whatever becomes of the first.
        removed.fold(Ok(()), Result::and)
    }

    /// Kills what nobody else will; `again`: it was called for this leaf before. Where the supervisor has ended, nobody lifted
    /// the limits that what is killed would have to wait for.
    fn kill_leaf(&self, number: u64, again: bool) {
        for hierarchy in &self.hierarchies {
            end_members(&hierarchy.leaf(number), again);
        }
    }

    /// Leaves that are there, in whichever hierarchy.
    fn leaves(&self) -> Vec<u64> {
        let mut numbers = self.hierarchies.iter().flat_map(|it| children(&it.dir)).collect::<Vec<_>>();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    fn remove(&self) -> io::Result<()> {
        self.hierarchies.iter().map(|it| remove(&it.dir)).fold(Ok(()), Result::and)
    }
}

impl Hierarchy {
    fn leaf(&self, number: u64) -> PathBuf {
        self.dir.join(number.to_string())
    }
}

/// The leaves in one parent's directory.
fn children(dir: &Path) -> Vec<u64> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(gone) if gone.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn open_dir(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::empty())?)
}

/// Makes a directory and locks it, so that no sweep takes it for a dead helper's.
fn make_locked(dir: &Path) -> io::Result<OwnedFd> {
    for _ in 0..TRIES {
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // A sweep that came between removes it, which shows here or in its absence afterwards.
        if let Ok(lock) = open_dir(dir)
            && flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
            && dir.is_dir()
        {
            return Ok(lock);
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// How long a start waits for what dead helpers left to be gone.
const SWEEP_LIMIT: Duration = Duration::from_secs(1);
/// How often removing is tried again while processes are ending.
const REMOVE_INTERVAL: Duration = Duration::from_millis(5);

/// Ends and removes what dead helpers left in `place`: parents that nobody holds the lock of. Whatever still runs there
/// lost its supervisor. What can't be removed stays for the next start.
fn sweep(place: &Path) {
    let until = Instant::now() + SWEEP_LIMIT;
    for entry in fs::read_dir(place).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name();
        let mut numbers = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).into_iter();
        let ours = numbers.any(|rest| {
            rest.split_once('-')
                .is_some_and(|(pid, born)| pid.parse::<u32>().is_ok() && born.parse::<u128>().is_ok())
        });
        let dir = entry.path();
        let Some(_lock) = ours
            .then(|| open_dir(&dir).ok())
            .flatten()
            .filter(|lock| flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok())
        else {
            continue;
        };
        let mut again = false;
        loop {
            for leaf in children(&dir).into_iter().map(|number| dir.join(number.to_string())) {
                end_members(&leaf, again);
                let _ = remove(&leaf);
            }
            again = true;
            if remove(&dir).is_ok() || Instant::now() > until {
                break;
            }
            std::thread::sleep(REMOVE_INTERVAL);
        }
    }
}

/// The processes in one cgroup, as this process's pid namespace numbers them.
fn members(dir: &Path) -> Vec<i32> {
    let list = fs::read_to_string(dir.join(PROCS)).unwrap_or_default();
    // Zero is a process that this namespace has no number for.
    list.lines().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid > 0).collect()
}

/// Kills what is in a leaf: at once where the kernel can (version 2, Linux 5.14), else stopped first, so that a fork bomb
/// holds still; forks that race it are found by the next call. Whether it was at once.
fn kill_members(leaf: &Path) -> bool {
    if write(&leaf.join(KILL), "1").is_ok() {
        return true;
    }
    let members = members(leaf);
    for signal in [libc::SIGSTOP, libc::SIGKILL] {
        for pid in &members {
            // Already gone, or not ours to kill: then it keeps the leaf from being removed, which shows.
            let _ = sys::send_signal(*pid, signal);
        }
    }
    false
}

/// As [`kill_members`], and as [`Leaf::lift`] by path: after a kill one by one only `again`, when forks that raced the first
/// are killed too.
fn end_members(leaf: &Path, again: bool) {
    if !(kill_members(leaf) || again) {
        return;
    }
    // Each file exists in one version and one hierarchy.
    let v1 = v1::lifts(&Seen::below(leaf, v1::DELAYING));
    let v2 = v2::lifts(&Seen::below(leaf, v2::DELAYING));
    for (file, value) in v1.into_iter().chain(v2) {
        // Refused or gone: the end comes as late as the limit makes it.
        let _ = write(&leaf.join(file), &value);
    }
}

const PROCS: &str = "cgroup.procs";
const KILL: &str = "cgroup.kill";
/// The same in both versions.
const PIDS_MAX: &str = "pids.max";
const PIDS_PEAK: &str = "pids.peak";

/// Writes to a file that the kernel made; never makes one.
fn write(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// The number after `key` in a file of `key value` lines.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?.trim().parse().ok()
}

impl Version {
    fn name(self) -> &'static str {
        match self {
            Self::V1 => "cgroup v1",
            Self::V2 => "cgroup v2",
        }
    }
}

/// Whether a limit as read back is the one that was written: the kernel rounds down to pages.
fn is_rounded(read: Option<u64>, written: u64) -> bool {
    const LARGEST_PAGE: u64 = 64 << 10;
    read.is_some_and(|read| read <= written && written - read < LARGEST_PAGE)
}

/// Whether swapped-out memory can't come on top: the file says so, or there is no file for it and no swap.
fn swap_is_limited(limit: Option<bool>) -> bool {
    limit.unwrap_or_else(|| {
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        memory.lines().any(|line| {
            line.strip_prefix("SwapTotal:").is_some_and(|rest| rest.split_whitespace().next() == Some("0"))
        })
    })
}
