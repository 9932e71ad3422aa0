//! Messages between the agent, the supervisor, init and the payload, one per packet of a local socket pair: JSON, behind a head where it has to
//! be told apart without being read.
//!
//! Leaves out how packets travel ([`super::channel`]). Invariant: both ends are the same binary, so there is no version;
//! a message that does not parse ends the execution.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::control::{Control, Layer};
use super::outcome::{ExitCause, FileProblem, Usage};
use super::profile::Profile;
use super::spec::{Limits, Spec};
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

/// What an execution adds to its surroundings.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Wanted {
    program: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    cwd: PathBuf,
    limits: Limits,
    inputs: Vec<PathBuf>,
    outputs: Vec<PathBuf>,
    /// The agent's environment, for a program that gets it for a probe.
    inherited: Vec<(String, String)>,
}

impl Wanted {
    pub(super) fn new(spec: &Spec, inherited: Vec<(String, String)>) -> Self {
        let Spec { program, args, env, cwd, limits, inputs, outputs, profile: _, omit: _ } = spec.clone();
        Self { program, args, env, cwd, limits, inputs, outputs, inherited }
    }

    /// The whole specification, and what is inherited.
    pub(super) fn within(self, surroundings: Surroundings) -> (Spec, Vec<(String, String)>) {
        let Self { program, args, env, cwd, limits, inputs, outputs, inherited } = self;
        let Surroundings { profile, omit } = surroundings;
        (Spec { program, args, env, cwd, limits, profile, inputs, outputs, omit }, inherited)
    }
}

/// Descriptors that come with [`Wanted`] before those of the input files: the execution's control socket and its streams.
pub(super) const WANTED_FDS: usize = 4;

/// First byte of the agent's packet to the helper ([`join_request`]), which carries the descriptors of [`Wanted`].
pub(super) const EXECUTE: u8 = b'X';
/// Likewise, in surroundings that are built for this execution alone and not built ahead for another.
pub(super) const EXECUTE_ONCE: u8 = b'O';

/// What an agent asks the helper for, of which the helper looks at nothing: it compares the surroundings and passes on the rest.
pub(super) fn join_request(kind: u8, surroundings: &[u8], wanted: &[u8]) -> Vec<u8> {
    let length = u32::try_from(surroundings.len()).unwrap_or(u32::MAX);
    [&[kind], &length.to_le_bytes()[..], surroundings, wanted].concat()
}

/// Kind, surroundings, and what is wanted in them.
pub(super) fn split_request(packet: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (kind, rest) = packet.split_first()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (surroundings, wanted) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    Some((*kind, surroundings, wanted))
}

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
    /// It was released, and nobody saw its end: why. What it used is unknown.
    Lost(String),
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

/// Supervisor to init, once it is known what for: with a descriptor per input file. Where there are none, only after the payload was told to
/// execute, or when the execution ends: init reaps nothing before.
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
}

/// Init to supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum InitReport {
    /// The surroundings are built. With the descriptor of the listener, if there is one.
    Built(Built),
    /// The inputs of the order are in their places.
    Placed,
    /// A step failed that could not be done without: of the surroundings, the inputs, reaping or reporting.
    Failed { stage: String, errno: i32 },
    /// The program ended, with this raw wait status; what it left running is still there, and about to be killed.
    MainEnded { status: i32 },
    /// No process is left, the program ended with this raw wait status. With a descriptor per output file that has no problem.
    Done { status: i32, usage: CpuAndFaults, files: Vec<Option<FileProblem>> },
}

/// What came of building the surroundings.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Built {
    pub(super) refusals: Vec<Refusal>,
    pub(super) own_root: bool,
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

/// Payload to supervisor, when it has taken on every layer that does not depend on the program.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Confined {
    pub(super) refusals: Vec<Refusal>,
    /// By the execution's cgroup.
    pub(super) memory_is_counted: bool,
    pub(super) hostname: String,
    pub(super) keyrings: Attempt,
    pub(super) landlock_abi: i64,
    /// The rights that Landlock was asked to handle.
    pub(super) landlock_handled: String,
    pub(super) landlock_files: Attempt,
    pub(super) landlock_tcp: Attempt,
    pub(super) landlock_signals: Attempt,
    /// The error number of installing the filter; 0 if there is none.
    pub(super) seccomp_errno: i32,
}

/// Payload to supervisor, when only `execve` remains.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    /// Names of the variables that `execve` will be given.
    pub(super) environment: Vec<String>,
    /// What this process used before becoming the program.
    pub(super) usage: CpuAndFaults,
}

/// First byte of the payload's packets; JSON of [`Confined`] follows.
const CONFINED: u8 = b'C';
/// JSON of [`Ready`] follows.
const READY: u8 = b'R';
/// Four bytes of error number follow, then the name of the stage that failed.
const FAILED: u8 = b'F';
/// The program could not be executed: four bytes of error number follow. Sent by a process that may not allocate.
const EXEC_FAILED: u8 = b'E';

/// What a payload says.
pub(super) enum Said {
    Confined(Confined),
    Ready(Ready),
    Failed {
        stage: String,
        errno: i32,
    },
    /// Nothing any more: it ended, or became the program.
    Gone,
}

impl Said {
    /// What a packet of the payload's says.
    pub(super) fn parse(packet: &[u8]) -> io::Result<Self> {
        match *packet {
            [] => Ok(Self::Gone),
            [CONFINED, ref report @ ..] => Ok(Self::Confined(serde_json::from_slice(report)?)),
            [READY, ref report @ ..] => Ok(Self::Ready(serde_json::from_slice(report)?)),
            [FAILED, a, b, c, d, ref stage @ ..] => {
                let stage = String::from_utf8_lossy(stage).into_owned();
                Ok(Self::Failed { stage, errno: i32::from_le_bytes([a, b, c, d]) })
            }
            [EXEC_FAILED, a, b, c, d] => {
                let errno = i32::from_le_bytes([a, b, c, d]);
                Ok(Self::Failed { stage: "execve".to_owned(), errno })
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    pub(super) fn confined(report: &Confined) -> io::Result<Vec<u8>> {
        let mut packet = vec![CONFINED];
        serde_json::to_writer(&mut packet, report)?;
        Ok(packet)
    }

    pub(super) fn ready(report: &Ready) -> io::Result<Vec<u8>> {
        let mut packet = vec![READY];
        serde_json::to_writer(&mut packet, report)?;
        Ok(packet)
    }

    pub(super) fn failed(stage: &str, errno: i32) -> Vec<u8> {
        let [a, b, c, d] = errno.to_le_bytes();
        [&[FAILED, a, b, c, d], stage.as_bytes()].concat()
    }

    /// Allocates nothing.
    pub(super) fn exec_failed(errno: i32) -> [u8; 5] {
        let [a, b, c, d] = errno.to_le_bytes();
        [EXEC_FAILED, a, b, c, d]
    }
}

/// Supervisor to payload: execute.
pub(super) const GO: u8 = b'G';
