//! An execution's process tree as the host's `/proc` shows it: members, processor time, and killing it where no pid
//! namespace does that.
//!
//! Leaves out when to do any of it ([`super::supervisor`]). Invariant: every process of the tree is below its init, which
//! is a pid namespace's first process or a subreaper, so walking children from there finds all.

use std::fs;

use super::sys;

/// All descendants of `root`, parents first.
pub(super) fn descendants(root: i32) -> Vec<i32> {
    let mut found = vec![];
    let mut next = vec![root];
    while let Some(pid) = next.pop() {
        let children = children(pid);
        found.extend(&children);
        next.extend(children);
    }
    found
}

/// The children of one process.
pub(super) fn children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return vec![];
    };
    let lists = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Processor time that the processes below `init` used so far, ended ones included, nanoseconds.
pub(super) fn cpu_ns(init: i32) -> u64 {
    let tick_ns = 1_000_000_000 / sys::clock_ticks_per_second();
    let live = descendants(init).into_iter().map(|pid| {
        let ticks = ticks(pid).unwrap_or_default();
        sys::process_cpu_ns(pid).unwrap_or(ticks.own * tick_ns) + ticks.waited_for * tick_ns
    });
    live.sum::<u64>() + ticks(init).unwrap_or_default().waited_for * tick_ns
}

#[derive(Clone, Copy, Default)]
struct Ticks {
    own: u64,
    waited_for: u64,
}

fn ticks(pid: i32) -> Option<Ticks> {
    // Field numbers as in proc(5), counted from the state, which follows the parenthesised name.
    const STATE: usize = 3;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = stat.rsplit_once(')')?.1.split_whitespace().collect::<Vec<_>>();
    let field = |number: usize| fields.get(number - STATE)?.parse::<u64>().ok();
    Some(Ticks { own: field(14)? + field(15)?, waited_for: field(16)? + field(17)? })
}

/// Kills everything below `root`. Forks that race it are found by the next call: repeat until nothing is left.
pub(super) fn kill_below(root: i32) -> usize {
    let members = descendants(root);
    // Stopped first, so that a fork bomb holds still while the list is worked off.
    for signal in [libc::SIGSTOP, libc::SIGKILL] {
        for pid in &members {
            // A member that ended meanwhile, or became another user's by a setuid program outside: nothing to do here.
            let _ = sys::send_signal(*pid, signal);
        }
    }
    members.len()
}
