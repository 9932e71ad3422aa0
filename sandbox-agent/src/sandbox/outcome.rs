//! How an execution ended and what it used.
//!
//! Leaves out the output itself (streamed while it runs) and digests of it. Invariant: usage comes from the kernel's
//! accounting of the execution's processes, with what the engine spent on setting the process up taken off.

use serde::{Deserialize, Serialize};

/// Why an execution ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum ExitCause {
    /// The program exited by itself.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// A signal ended the program.
    Signaled {
        /// The signal's number.
        signal: i32,
    },
    /// The kernel killed the program for a forbidden system call (SIGSYS).
    Seccomp,
    /// The wall-clock limit passed; the whole tree was killed.
    Timeout,
    /// It wrote more than the output limit; the whole tree was killed.
    OutputLimit,
    /// It used up its processor time; the whole tree was killed.
    CpuLimit,
    /// The caller killed it, or went away.
    Cancelled,
    /// The program never ran.
    LaunchFailed {
        /// What failed.
        stage: String,
        /// The kernel's error number.
        errno: i32,
    },
}

/// What the execution's processes used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time in user mode, microseconds.
    pub cpu_user_us: u64,
    /// Processor time in the kernel, microseconds.
    pub cpu_system_us: u64,
    /// Largest resident set of any one process, KiB. Includes the few MiB of the engine's own image before `execve`.
    pub max_rss_kib: u64,
    /// Page faults served without reading from disk.
    pub minor_faults: u64,
    /// Page faults that read from disk.
    pub major_faults: u64,
    /// 512-byte blocks read from disk.
    pub blocks_in: u64,
    /// 512-byte blocks written to disk.
    pub blocks_out: u64,
    /// From release to the end of the last process, nanoseconds.
    pub wall_ns: u64,
    /// Bytes of stdout and stderr handed on.
    pub output_bytes: u64,
}

impl Usage {
    /// Processor time in whole milliseconds, rounded up.
    pub fn cpu_ms(&self) -> u64 {
        (self.cpu_user_us + self.cpu_system_us).div_ceil(1000)
    }

    /// Wall-clock time in whole milliseconds, rounded up.
    pub fn wall_ms(&self) -> u64 {
        self.wall_ns.div_ceil(1_000_000)
    }
}

/// The end of an execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Why it ended.
    pub cause: ExitCause,
    /// What it used.
    pub usage: Usage,
}
