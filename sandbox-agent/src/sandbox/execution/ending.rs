//! How an execution ends: which cause stands, whether anybody saw it, and what is accounted.
//!
//! Leaves out killing and waiting ([`super`]). Invariant: there is one cause, the first; a program whose end nobody saw has no
//! outcome but that.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::super::cgroup::Leaf;
use super::super::outcome::{ExitCause, MemorySource, Usage};
use super::super::wire::{CpuAndFaults, Ended, Report};
use super::{Execution, NOT_RUN, launch_failed, no_files};

/// Why there are no files of a program whose end is known.
const INIT_LOST: &str = "the process that hands it out was lost";

/// How the execution ends, from the moment that is known until its last process is gone.
pub(super) struct Ending {
    cause: Cause,
    pub(super) since: Instant,
}

/// Why it ends.
enum Cause {
    Known(ExitCause),
    /// Released, and nobody saw the program's end.
    Lost(String),
}

impl Execution<'_> {
    /// The first cause stands: what comes later is its consequence.
    pub(super) fn stop(&mut self, cause: ExitCause) {
        self.end(Cause::Known(cause));
    }

    /// What kept the end from being seen. Before the release there is nothing to be lost.
    pub(super) fn lose(&mut self, why: impl Into<String>) {
        let why = why.into();
        if self.released.is_some() {
            self.end(Cause::Lost(why));
        } else {
            self.stop(launch_failed(why, &io::Error::from_raw_os_error(libc::ECHILD)));
        }
    }

    /// A step of the engine's failed.
    pub(super) fn fail(&mut self, stage: &str, error: &io::Error) {
        if self.released.is_some() {
            self.end(Cause::Lost(format!("{stage}: {error}")));
        } else {
            self.stop(launch_failed(stage, error));
        }
    }

    fn end(&mut self, cause: Cause) {
        if self.ending.is_none() {
            self.ending = Some(Ending { cause, since: Instant::now() });
            // Without one it does not get as far as killing and reaping.
            self.give_order();
        }
    }

    pub(super) fn outcome(&mut self, init_usage: Option<CpuAndFaults>) -> (Report, Vec<OwnedFd>) {
        const BLOCK_BYTES: u64 = 512;
        // If nothing else is known it is because init, which would know, is gone.
        self.lose("its init ended");
        let cause = match self.ending.take().map(|ending| ending.cause) {
            Some(Cause::Known(cause)) => cause,
            Some(Cause::Lost(why)) => return (Report::Lost(why), vec![]),
            None => return (Report::Lost(String::new()), vec![]),
        };
        let counted = self.leaf.as_ref().map(Leaf::counted).unwrap_or_default();
        let cause = match cause {
            // What memory ran out for may be another of its processes than the one that ended it.
            ExitCause::Exited { .. } | ExitCause::Signaled { .. } if counted.out_of_memory => {
                ExitCause::OutOfMemory
            }
            other => other,
        };
        let end = self.done.as_ref().map_or_else(Instant::now, |done| done.at);
        let used = self.done.as_ref().map(|done| done.usage).or(init_usage).unwrap_or_default();
        let Some(from) = self.released else {
            let files = no_files(self.spec, NOT_RUN);
            return (Report::Finished(Ended { cause, usage: Usage::default(), files }), vec![]);
        };
        let own = self.before;
        let usage = Usage {
            cpu_user_us: used.user_us.saturating_sub(own.user_us),
            cpu_system_us: used.system_us.saturating_sub(own.system_us),
            peak_memory_bytes: used.max_rss_kib.saturating_mul(1024),
            memory_source: MemorySource::Wait4,
            minor_faults: used.minor_faults.saturating_sub(own.minor_faults),
            major_faults: used.major_faults.saturating_sub(own.major_faults),
            read_bytes: used.blocks_in.saturating_sub(own.blocks_in).saturating_mul(BLOCK_BYTES),
            written_bytes: used.blocks_out.saturating_sub(own.blocks_out).saturating_mul(BLOCK_BYTES),
            wall_ns: u64::try_from(end.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX),
            ..Usage::default()
        };
        let usage = counted.replace_in(usage);
        let (files, fds) = match self.done.take() {
            Some(done) => (done.files, done.fds),
            None => (no_files(self.spec, INIT_LOST), vec![]),
        };
        (Report::Finished(Ended { cause, usage, files }), fds)
    }
}

/// From a raw wait status.
pub(super) fn cause_of(status: i32) -> ExitCause {
    if libc::WIFEXITED(status) {
        return ExitCause::Exited { code: libc::WEXITSTATUS(status) };
    }
    match libc::WTERMSIG(status) {
        libc::SIGSYS => ExitCause::Seccomp,
        libc::SIGXCPU => ExitCause::CpuLimit,
        signal => ExitCause::Signaled { signal },
    }
}
