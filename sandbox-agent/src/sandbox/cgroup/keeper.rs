//! The keeper: a process beside the helper that makes leaves before they are asked for and removes them after their
//! execution, so that neither is on an execution's way; and the helper's end of it.
//!
//! It outlives the helper, however that ends, just long enough to remove everything. Leaves out limits and counters.
//! Invariant: a leaf is handed out once; a leaf whose execution is over is removed, what still runs in it killed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;

use super::super::channel;
use super::super::sys::{self, SingleThreaded};
use super::{Parent, REMOVE_INTERVAL};

/// The keeper's name in process lists.
const NAME: &std::ffi::CStr = c"exq-cgroups";
/// How many leaves are kept ready.
const READY: usize = 8;
/// How long the supervisors of a dead helper get to end their executions themselves.
const ORPHANS_GRACE: Duration = Duration::from_secs(3);
/// How long what is killed may take to be gone; what is left then, the next helper's start removes.
const END_LIMIT: Duration = Duration::from_secs(10);
/// Numbers that one keeper hands out, before those of the next.
const RANGE: u64 = 1 << 32;
/// Numbers of leaves that the helper makes itself, because none was ready.
const OWN_RANGE: u64 = 1 << 62;

/// Keeper to helper: the leaf that was asked for could not be made.
const NONE: u64 = 0;

/// Helper to keeper: this leaf's execution is over.
const OVER: u8 = b'O';
/// As [`OVER`], and one more is to be made ready.
const OVER_AND_MORE: u8 = b'M';

/// The helper's leaves.
pub(in super::super) struct Stock {
    parent: Arc<Parent>,
    keeper: Option<(i32, OwnedFd)>,
    keepers: u64,
    own: u64,
    /// Leaves that the keeper was asked for and that were not taken yet.
    ordered: usize,
}

impl Stock {
    /// With a keeper, if there is anything to keep.
    pub(in super::super) fn open(parent: Arc<Parent>, single: SingleThreaded) -> Self {
        let mut stock = Self { parent, keeper: None, keepers: 0, own: OWN_RANGE, ordered: 0 };
        stock.start_keeper(single, &[]);
        stock
    }

    /// `in_use`: leaves that executions have; all others that are there were another keeper's.
    fn start_keeper(&mut self, single: SingleThreaded, in_use: &[u64]) {
        if !self.parent.is_of_use() {
            return;
        }
        let Ok((ours, theirs)) = channel::pair() else { return };
        self.keepers += 1;
        let first = self.keepers * RANGE;
        let parent = &self.parent;
        // Here, before the helper makes another for itself.
        let left = parent.leaves().into_iter().filter(|number| !in_use.contains(number));
        let over = left.map(|number| Over { number, killed: false }).collect();
        let forked = single.fork(|| {
            // Anything else held open here would hide the helper's death from somebody.
            let kept = parent.locks().chain([theirs.as_fd()]).collect::<Vec<_>>();
            sys::keep_only(&kept).map_or(1, |()| keep(parent, &theirs, first, over))
        });
        // Without one the helper makes and removes leaves itself; only a crash's remains wait for the next start.
        if let Ok(pid) = forked {
            self.keeper = Some((pid, ours));
            self.ordered = READY;
        }
    }

    /// Whether `pid` is the keeper; called with an ended one, starts another.
    pub(in super::super) fn is_keeper(&self, pid: i32) -> bool {
        self.keeper.as_ref().is_some_and(|(keeper, _)| *keeper == pid)
    }

    /// Replaces a keeper that ended by one that removes what that had made and not handed out, or was about to remove.
    pub(in super::super) fn replace_keeper(&mut self, single: SingleThreaded, in_use: &[u64]) {
        (self.keeper, self.ordered) = (None, 0);
        self.start_keeper(single, in_use);
    }

    /// A leaf that nobody had before, if this host has any to give.
    pub(in super::super) fn take(&mut self) -> Option<io::Result<u64>> {
        self.parent.is_of_use().then(|| {
            if let Some(number) = self.ready() {
                return Ok(number);
            }
            self.own += 1;
            self.parent.make_leaf(self.own).map(|()| self.own)
        })
    }

    fn ready(&mut self) -> Option<u64> {
        let (_, link) = self.keeper.as_ref().filter(|_| self.ordered > 0)?;
        let mut bytes = [0; 8];
        let (received, _) = rustix::net::recv(link, &mut bytes, RecvFlags::DONTWAIT).ok()?;
        if received != bytes.len() {
            return None;
        }
        self.ordered -= 1;
        Some(u64::from_le_bytes(bytes)).filter(|number| *number != NONE)
    }

    /// The execution of this leaf is over.
    pub(in super::super) fn give_back(&mut self, number: u64) {
        let more = self.ordered < READY;
        let word = if more { OVER_AND_MORE } else { OVER };
        let told = self.keeper.as_ref().is_some_and(|(_, link)| {
            let mut packet = vec![word];
            packet.extend(number.to_le_bytes());
            channel::send_with(link.as_fd(), &packet, &[]).is_ok()
        });
        if told {
            self.ordered += usize::from(more);
        } else {
            for again in [false, true] {
                self.parent.kill_leaf(number, again);
            }
            // Still busy: goes with the parent, when that is removed.
            let _ = self.parent.remove_leaf(number);
        }
    }
}

/// A leaf whose execution is over.
struct Over {
    number: u64,
    /// Whether what was left in it was killed before.
    killed: bool,
}

/// The keeper's life. `over`: leaves to begin with that nobody has any more.
fn keep(parent: &Parent, link: &OwnedFd, first: u64, mut over: Vec<Over>) -> i32 {
    // For people who look at process lists, and nothing else.
    let _ = rustix::thread::set_name(NAME);
    let mut next = first;
    let mut make = READY;
    loop {
        while make > 0 {
            make -= 1;
            next += 1;
            // A host that has no room for more now: the helper will try, and the execution show why it has none.
            let made = if parent.make_leaf(next).is_ok() { next } else { NONE };
            if channel::send_with(link.as_fd(), &made.to_le_bytes(), &[]).is_err() {
                break;
            }
        }
        over.retain_mut(|Over { number, killed }| {
            // Its supervisor has ended: whatever still runs in it has nobody who would end it.
            parent.remove_leaf(*number).is_err() && {
                parent.kill_leaf(*number, *killed);
                *killed = true;
                parent.remove_leaf(*number).is_err()
            }
        });
        let wait = (!over.is_empty()).then(|| Timespec::try_from(REMOVE_INTERVAL).ok()).flatten();
        let mut fds = [PollFd::new(link, PollFlags::IN)];
        if poll(&mut fds, wait.as_ref()).is_ok_and(|ready| ready == 0) {
            continue;
        }
        match channel::receive(link.as_fd()).unwrap_or_default().bytes[..] {
            [word @ (OVER | OVER_AND_MORE), ref number @ ..] => {
                let number = number.try_into().map(u64::from_le_bytes);
                over.extend(number.map(|number| Over { number, killed: false }));
                make += usize::from(word == OVER_AND_MORE);
            }
            _ => return end(parent),
        }
    }
}

/// The helper is gone: everything goes, each execution's leaf as soon as its supervisor has ended it.
fn end(parent: &Parent) -> i32 {
    let since = Instant::now();
    let mut killed = false;
    loop {
        let kill = since.elapsed() > ORPHANS_GRACE;
        for leaf in parent.leaves() {
            if kill {
                parent.kill_leaf(leaf, killed);
            }
            // Busy ones are tried again.
            let _ = parent.remove_leaf(leaf);
        }
        killed = kill;
        if parent.remove().is_ok() {
            return 0;
        }
        if since.elapsed() > END_LIMIT {
            return 1;
        }
        std::thread::sleep(REMOVE_INTERVAL);
    }
}
