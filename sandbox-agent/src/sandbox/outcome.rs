//! How an execution ended and what it used.
//!
//! Leaves out the output itself (streamed while it runs) and digests of it. Invariant: usage comes from the kernel's
//! accounting of the execution's processes, with what the engine spent on setting the process up taken off.

use std::os::fd::OwnedFd;

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
    /// The kernel killed a process of the tree because the tree's memory was at its limit.
    OutOfMemory,
    /// It was to send more through the egress proxy than it may; the whole tree was killed.
    EgressLimit,
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

/// Where the peak of memory is from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemorySource {
    /// The largest resident set of any one process, by `wait4`.
    #[default]
    Wait4,
    /// The tree's memory, by a cgroup of version 1.
    Cgroup1,
    /// The tree's memory, by a cgroup of version 2.
    Cgroup2,
}

impl MemorySource {
    /// The source's name, as recorded.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wait4 => "wait4",
            Self::Cgroup1 => "cgroup1",
            Self::Cgroup2 => "cgroup2",
        }
    }
}

/// What the execution's processes used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time in user mode, microseconds.
    pub cpu_user_us: u64,
    /// Processor time in the kernel, microseconds.
    pub cpu_system_us: u64,
    /// Most memory at one time, bytes; of what, says `memory_source`. By wait4 it includes the few MiB of the engine's own
    /// image before `execve`.
    pub peak_memory_bytes: u64,
    /// Where the peak is from.
    pub memory_source: MemorySource,
    /// Page faults served without reading from disk.
    pub minor_faults: u64,
    /// Page faults that read from disk.
    pub major_faults: u64,
    /// Bytes read from block devices.
    pub read_bytes: u64,
    /// Bytes written to block devices.
    pub written_bytes: u64,
    /// Most processes and threads at one time; 0 if nobody counted.
    pub peak_pids: u64,
    /// Bytes sent out through the egress proxy; counted by the proxy, 0 from the sandbox.
    pub egress_bytes: u64,
    /// Bytes that came in through it; counted by the proxy, 0 from the sandbox.
    pub ingress_bytes: u64,
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
#[derive(Debug)]
pub struct Outcome {
    /// Why it ended.
    pub cause: ExitCause,
    /// What it used.
    pub usage: Usage,
    /// One per path of [`super::Spec::outputs`], in order: the file as it was after the last process had ended, open for
    /// reading, or why there is none.
    pub files: Vec<Result<OwnedFd, FileProblem>>,
}

/// Why an output file is not handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{0}")]
pub struct FileProblem(pub String);
