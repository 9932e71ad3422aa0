//! Messages between the agent, the supervisor, init and the payload; JSON, one per packet of a local socket pair.
//!
//! Leaves out how packets travel ([`super::channel`]). Invariant: both ends are the same binary, so there is no version;
//! a message that does not parse ends the execution.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::control::{Control, Layer};
use super::outcome::{ExitCause, FileProblem, Usage};
use super::profile::Profile;
use super::rlimits;
use super::spec::Spec;
use super::sys::ResourceUsage;

/// All that an execution's surroundings are built from, before anybody asked for the execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Surroundings {
    pub(super) profile: Profile,
    pub(super) omit: Vec<Layer>,
}

impl Surroundings {
    pub(super) fn of(spec: &Spec) -> Self {
        Self { profile: spec.profile.clone(), omit: spec.omit.clone() }
    }

    pub(super) fn has(&self, layer: Layer) -> bool {
        !self.omit.contains(&layer)
    }
}

/// First byte of the agent's packet to the helper, which carries the execution's control socket and streams; the
/// surroundings follow, of which the helper looks at nothing.
pub(super) const EXECUTE: u8 = b'X';
/// Likewise, for surroundings that nobody is going to ask for again.
pub(super) const EXECUTE_ONCE: u8 = b'O';

/// Why the agent ends an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KillReason {
    /// The caller wants it or is gone.
    Cancelled,
    /// It wrote more than it may.
    OutputLimit,
    /// More was to be sent through the egress proxy than may be.
    EgressLimit,
}

/// Agent to supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// With a descriptor per input file. `environment` is for a program whose environment is to be left as it is.
    Prepare {
        spec: Box<Spec>,
        environment: Vec<(String, String)>,
    },
    Release,
    Kill(KillReason),
}

/// Supervisor to agent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// With the descriptor of the listener, if there is one.
    Prepared { controls: Vec<Control> },
    /// With a descriptor per output file that has no problem.
    Finished(Ended),
}

/// The end of an execution, as sent to the agent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) cause: ExitCause,
    pub(super) usage: Usage,
    /// One per output path; a file without a problem has a descriptor in the packet.
    pub(super) files: Vec<Option<FileProblem>>,
}

/// A step of a layer that the kernel refused; the execution goes on with the layers that remain.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub(super) layer: Layer,
    pub(super) step: String,
    pub(super) error: String,
}

impl Refusal {
    pub(super) fn new(layer: Layer, step: impl Into<String>, error: &io::Error) -> Self {
        Self { layer, step: step.into(), error: error.to_string() }
    }
}

/// Supervisor to init, once it is known what for: with a descriptor per input file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) inputs: Vec<PathBuf>,
    pub(super) outputs: Vec<PathBuf>,
}

/// Supervisor to payload, when the inputs are in their places: with the three streams.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Program {
    pub(super) name: String,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) cwd: PathBuf,
    pub(super) rlimits: Vec<rlimits::Planned>,
    /// Whether a cgroup's limit is set for the memory of those who are in it.
    pub(super) memory_is_limited: bool,
}

/// Init to supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum InitReport {
    /// The surroundings are built. With the descriptor of the listener, if there is one.
    Built { refusals: Vec<Refusal>, own_root: bool },
    /// The inputs of the order are in their places.
    Placed,
    /// The surroundings could not be built and could not be done without.
    Failed { stage: String, errno: i32 },
    /// The program ended, with this raw wait status; what it left running is still there.
    MainEnded { status: i32 },
    /// No process is left. With a descriptor per output file that has no problem.
    Done { status: i32, usage: CpuAndFaults, files: Vec<Option<FileProblem>> },
}

/// The kernel's accounting, as sent between processes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct CpuAndFaults {
    pub(super) user_us: u64,
    pub(super) system_us: u64,
    pub(super) max_rss_kib: u64,
    pub(super) minor_faults: u64,
    pub(super) major_faults: u64,
    pub(super) blocks_in: u64,
    pub(super) blocks_out: u64,
}

impl From<ResourceUsage> for CpuAndFaults {
    fn from(usage: ResourceUsage) -> Self {
        let ResourceUsage {
            user_us,
            system_us,
            max_rss_kib,
            minor_faults,
            major_faults,
            blocks_in,
            blocks_out,
        } = usage;
        Self { user_us, system_us, max_rss_kib, minor_faults, major_faults, blocks_in, blocks_out }
    }
}

/// An attempt made twice by the payload: before the restriction (it must succeed) and under it (it must not).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Attempt {
    pub(super) what: String,
    /// Error number before; 0 is success.
    pub(super) before: i32,
    /// Error number under the restriction; 0 is success.
    pub(super) under: i32,
}

/// Payload to supervisor, sent when every layer is on and only `execve` remains.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PayloadReport {
    pub(super) refusals: Vec<Refusal>,
    /// Whether the cgroup that it is in limits its memory, so that nothing limits its address space.
    pub(super) address_space_is_free: bool,
    pub(super) hostname: String,
    /// Names of the variables that `execve` will be given.
    pub(super) environment: Vec<String>,
    pub(super) keyrings: Attempt,
    pub(super) landlock_abi: i64,
    /// The rights that Landlock was asked to handle.
    pub(super) landlock_handled: String,
    pub(super) landlock_files: Attempt,
    pub(super) landlock_tcp: Attempt,
    pub(super) landlock_signals: Attempt,
    /// What this process used before becoming the program.
    pub(super) usage: CpuAndFaults,
}

/// Payload packets after the report: it failed to become the program, with this error number.
pub(super) const EXEC_FAILED: u8 = b'E';
/// Supervisor to payload: become the program.
pub(super) const GO: u8 = b'G';
