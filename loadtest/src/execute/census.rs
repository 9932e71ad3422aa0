//! What an agent has of the kernel: processes, descriptors, mounts, cgroups, namespaces, directories.
//!
//! Left out: files that an agent has open below its data directory (stores open and close theirs as they please) and memory. Invariant: what can't be read is an
//! error, not zero.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde::Serialize;

/// How long what executions had may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing may change for the helper to be quiet.
const QUIET: Duration = Duration::from_millis(50);
/// The argument that makes a binary the sandbox's helper.
const HELPER: &str = "__sandbox-helper";

/// Counts at a moment when nothing is executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Census {
    /// The agent and its helper, by their process ids: a helper that died would have lost its own to init.
    agent: u32,
    helper: u32,
    /// Below the agent, in all.
    processes: usize,
    zombies: usize,
    /// Descriptors that are not of files below its data directory.
    agent_descriptors: usize,
    /// All.
    helper_descriptors: usize,
    /// Where the helper lives.
    mounts: usize,
    /// The helper's own and those of its executions, in all hierarchies.
    cgroups: usize,
    /// Of the agent and all processes below it.
    network_namespaces: usize,
    /// Work areas on the host, named after the helper.
    directories: usize,
}

/// Directories of cgroups that are kept ready, in up to five hierarchies.
const READY_CGROUPS: usize = 5 * 8;

impl Census {
    /// Counts now.
    pub(super) fn of(agent: u32, data: Option<&Path>) -> anyhow::Result<Self> {
        let below = below(agent)?;
        let helpers: Vec<_> = below.iter().filter(|(pid, _)| is_helper(**pid)).map(|(pid, _)| *pid).collect();
        // A supervisor that was just forked still looks like the helper; the helper is the agent's own child.
        let helper =
            helpers.into_iter().find(|pid| below[pid].parent == agent).context("no helper process")?;
        let mut network_namespaces = BTreeSet::new();
        for pid in below.keys().chain([&agent]) {
            // A zombie has none.
            if let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/net")) {
                network_namespaces.insert(namespace);
            }
        }
        let mounts =
            fs::read_to_string(format!("/proc/{helper}/mountinfo")).context("the helper's mounts")?;
        let mut cgroups = 0;
        count_cgroups(Path::new("/sys/fs/cgroup"), &format!("exchequer-{helper}-"), false, &mut cgroups)?;
        let work = format!("exchequer-sandbox-{helper}-");
        let mut directories = 0;
        for entry in fs::read_dir(std::env::temp_dir())? {
            directories += usize::from(entry?.file_name().to_string_lossy().starts_with(&work));
        }
        Ok(Self {
            agent,
            helper,
            processes: below.len(),
            zombies: below.values().filter(|process| process.is_zombie).count(),
            agent_descriptors: descriptors(agent, data)?,
            helper_descriptors: descriptors(helper, None)?,
            mounts: mounts.lines().count(),
            cgroups,
            network_namespaces: network_namespaces.len(),
            directories,
        })
    }

    /// Waits until nothing is built below the agent: for a while no process comes, goes or computes.
    pub(super) async fn quiet(agent: u32) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let (mut last, mut since) = (Activity::of(agent)?, Instant::now());
        while since.elapsed() < QUIET {
            if Instant::now() >= deadline {
                bail!("the helper is not quiet {PATIENCE:?} after the last execution");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            let now = Activity::of(agent)?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    /// Whether there is no more than before, at a moment when as many sandboxes are built ahead. Cgroups are made ready and removed by a
    /// process of their own, a bounded number of them however many executions there were: so many are no remains.
    fn has_no_more_than(&self, before: &Self) -> bool {
        (self.agent, self.helper) == (before.agent, before.helper)
            && self.processes <= before.processes
            && self.network_namespaces <= before.network_namespaces
            && self.cgroups <= before.cgroups + READY_CGROUPS
            && self.zombies <= before.zombies
            && self.agent_descriptors <= before.agent_descriptors
            && self.helper_descriptors <= before.helper_descriptors
            && self.mounts <= before.mounts
            && self.directories <= before.directories
    }

    /// Waits until there is no more than before; an error that says what there is.
    pub(super) async fn settled(before: &Self, data: Option<&Path>) -> anyhow::Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Self::of(before.agent, data)?;
            if now.has_no_more_than(before) {
                return Ok(now);
            }
            if Instant::now() >= deadline {
                bail!("executions left something behind: before {before:?}, after {now:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[derive(PartialEq, Eq)]
struct Activity {
    /// Processes below the agent.
    pids: Vec<u32>,
    /// Processor time that they have used, in ticks.
    ticks: u64,
}

impl Activity {
    fn of(agent: u32) -> anyhow::Result<Self> {
        let below = below(agent)?;
        let ticks = below.values().map(|process| process.ticks).sum();
        Ok(Self { pids: below.into_keys().collect(), ticks })
    }
}

struct Process {
    parent: u32,
    is_zombie: bool,
    ticks: u64,
}

/// Every process below this one.
fn below(root: u32) -> anyhow::Result<BTreeMap<u32, Process>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Gone meanwhile.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let mut fields = stat.rsplit_once(')').context("a stat without a name")?.1.split_whitespace();
        let is_zombie = fields.next().context("a stat without a state")? == "Z";
        let parent = fields.next().context("a stat without a parent")?.parse()?;
        // utime and stime, the 14th and 15th of proc_pid_stat(5).
        let mut ticks = 0;
        for field in fields.skip(9).take(2) {
            ticks += field.parse::<u64>()?;
        }
        all.insert(pid, Process { parent, is_zombie, ticks });
    }
    let mut found = BTreeSet::from([root]);
    loop {
        let more = all.iter().filter(|(_, process)| found.contains(&process.parent)).map(|(pid, _)| *pid);
        let more: Vec<_> = more.filter(|pid| !found.contains(pid)).collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    found.remove(&root);
    all.retain(|pid, _| found.contains(pid));
    Ok(all)
}

fn is_helper(pid: u32) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    arguments.split(|byte| *byte == 0).nth(1) == Some(HELPER.as_bytes())
}

/// All but those of files below `without`.
fn descriptors(pid: u32, without: Option<&Path>) -> anyhow::Result<usize> {
    let directory = format!("/proc/{pid}/fd");
    let mut count = 0;
    for entry in fs::read_dir(&directory).with_context(|| directory.clone())? {
        // Closed meanwhile.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        count += usize::from(without.is_none_or(|without| !target.starts_with(without)));
    }
    Ok(count)
}

/// The helper's cgroup and those below it, in one hierarchy after the other.
fn count_cgroups(directory: &Path, own: &str, is_own: bool, count: &mut usize) -> anyhow::Result<()> {
    let entries = match fs::read_dir(directory) {
        // Another's that was just removed, or no cgroups at all.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| directory.display().to_string())?,
    };
    for entry in entries {
        // Removed meanwhile: version 1 says ENODEV.
        let Ok(entry) = entry else { continue };
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let is_own = is_own || entry.file_name().to_string_lossy().starts_with(own);
        *count += usize::from(is_own);
        count_cgroups(&entry.path(), own, is_own, count)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_descriptor_more_and_a_process_more_are_counted() {
        let own = std::process::id();
        // Other tests of this process open directories below it.
        let elsewhere = std::env::temp_dir();
        let before = descriptors(own, Some(&elsewhere)).unwrap();
        let mut child = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
        // The pipe.
        assert!(descriptors(own, Some(&elsewhere)).unwrap() > before);
        let pid = child.id();
        assert!(!below(own).unwrap()[&pid].is_zombie);
        drop(child.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        while !below(own).unwrap()[&pid].is_zombie {
            assert!(Instant::now() < deadline, "it is no zombie");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!below(own).unwrap().contains_key(&pid));
    }

    #[test]
    fn cgroups_below_the_helpers_are_counted_and_those_of_others_are_not() {
        let root = tempfile::tempdir().unwrap();
        for path in
            ["memory/exchequer-7-1/3", "memory/exchequer-77-1/3", "pids/slice/exchequer-7-1", "pids/7"]
        {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        let mut count = 0;
        count_cgroups(root.path(), "exchequer-7-", false, &mut count).unwrap();
        assert_eq!(count, 3);
    }
}
