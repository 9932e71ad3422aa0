//! The predicate: one execution, as the agent recorded it. `docs/schemas/execution-v1.schema.json` is its schema.
//!
//! Left out: making one of records. Invariant: fields are declared in the order of their names, which makes the encoding canonical.

use serde::{Deserialize, Serialize};

use super::{BundleError, Hex, content::result_digest};
use crate::{name, v1};

/// `signing_status` of a bundle that carries a signature.
pub const SIGNED: &str = "signed";
/// `signing_status` of a bundle that carries none.
pub const UNSIGNED: &str = "unsigned";

/// One execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Execution {
    /// Where its admission is in the agent's chain.
    pub admission: Position,
    /// Who ran it.
    pub agent: Agent,
    /// Subject of the caller's token.
    pub caller: String,
    /// Each control, as read back from the kernel for this very process before it executed the program.
    pub controls: Vec<Control>,
    /// Why it could not be started, or nobody saw its end; empty otherwise.
    pub detail: String,
    /// What went through the egress proxy, target by target.
    pub egress: Vec<EgressTarget>,
    /// Its id (a UUID, version 7).
    pub execution_id: String,
    /// What paid for it.
    pub hold: Hold,
    /// What it was given.
    pub inputs: Inputs,
    /// What was enforced.
    pub limits: Limits,
    /// Where its outcome is in the agent's chain.
    pub outcome: Position,
    /// The sandbox profile.
    pub profile: Profile,
    /// Digests of the outcome's record, under the project's contexts (docs/protocol.md).
    pub recorded: Recorded,
    /// What came out. The subject `result` is the digest of this member's encoding.
    pub result: ExecutionResult,
    /// Budget scope that the hold is charged to.
    pub scope: String,
    /// [`SIGNED`] or [`UNSIGNED`].
    pub signing_status: String,
    /// The skill that it ran; empty for none.
    pub skill: String,
    /// The tenant.
    pub tenant: String,
    /// What it used; absent if nobody saw the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// A place in an agent's chain of events, which the log finds by agent, epoch and seq.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The life of the agent's spool.
    pub epoch: u64,
    /// BLAKE3 event digest of the event.
    pub hash: Hex<32>,
    /// Place within the epoch.
    pub seq: u64,
    /// The event's time by the agent's clock, milliseconds since the Unix epoch.
    pub time_unix_ms: u64,
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Its id.
    pub id: String,
    /// Its Ed25519 key.
    pub public_key: Hex<32>,
}

/// One layer of the sandbox and what the kernel says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// What was read, from where.
    pub evidence: String,
    /// The layer.
    pub name: String,
    /// How to get the control on this host; empty when it holds.
    pub remedy: String,
    /// `enforced`, `degraded`, `unavailable` or `unverified`.
    pub status: String,
}

/// What paid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// The hold; a lease, if anything is reserved of it.
    pub id: String,
    /// What was set aside of the lease.
    pub reserved: Vec<Amount>,
}

/// Some of a meter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amount {
    /// How much.
    pub amount: u64,
    /// The meter.
    pub meter: String,
}

/// What an execution was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    /// Arguments with secrets removed by rule.
    pub arguments_redacted: Vec<String>,
    /// BLAKE3 input digest over program, arguments, environment, standard input and files as they really were.
    pub digest: Hex<32>,
    /// Files that were put into the work area.
    pub files: Vec<File>,
    /// Program path.
    pub program: String,
}

/// A file that went into or came out of the work area.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Plain BLAKE3; absent if there is a problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<Hex<32>>,
    /// Path relative to the work area.
    pub path: String,
    /// Why it was not taken out; empty if it was.
    pub problem: String,
    /// SHA-256; absent if there is a problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Hex<32>>,
    /// Bytes.
    pub size: u64,
}

/// Limits that were enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// CPU time of the whole tree, milliseconds.
    pub cpu_ms: u64,
    /// Bytes through the egress proxy.
    pub egress_bytes: u64,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Standard output and error together, bytes.
    pub output_bytes: u64,
    /// Wall-clock time, milliseconds.
    pub wall_ms: u64,
}

/// A sandbox profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// BLAKE3 digest of its canonical form; absent if the agent recorded none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Hex<32>>,
    /// Its name.
    pub name: String,
}

/// Digests of the outcome's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// BLAKE3 result digest.
    pub result_digest: Hex<32>,
    /// BLAKE3 output digest of standard error; absent if nobody saw the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_digest: Option<Hex<32>>,
    /// BLAKE3 output digest of standard output; absent if nobody saw the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_digest: Option<Hex<32>>,
}

/// What came out: equal for equal results, whenever and wherever they were had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutionResult {
    /// The files that were asked for, in the order of asking.
    pub artifacts: Vec<File>,
    /// `exited`, `signaled`, `seccomp`, `wall_limit`, … : how it ended.
    pub cause: String,
    /// Exit code, if it exited.
    pub exit_code: i32,
    /// Signal number, if a signal ended it.
    pub signal: i32,
    /// Standard error; absent if nobody saw the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<Stream>,
    /// Standard output; absent if nobody saw the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<Stream>,
}

/// An output stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// SHA-256.
    pub sha256: Hex<32>,
    /// Bytes.
    pub size: u64,
}

/// A target of an execution's egress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressTarget {
    /// Connections that were made.
    pub connections: u64,
    /// Name or address as the program asked for it, in lower case; empty for the sum of what is not told apart.
    pub host: String,
    /// Port; 0 where the host is empty.
    pub port: u32,
    /// Bytes that came in from it.
    pub received: u64,
    /// Requests for it that were refused.
    pub refused: u64,
    /// Bytes sent out to it.
    pub sent: u64,
}

/// What was used. Sources are those of `Usage` in `event.proto`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// CPU time in the kernel, microseconds (wait4).
    pub cpu_system_us: u64,
    /// CPU time in user space, microseconds (wait4).
    pub cpu_user_us: u64,
    /// Bytes sent out through the egress proxy.
    pub egress_bytes: u64,
    /// Bytes that came in through it.
    pub ingress_bytes: u64,
    /// Major page faults (wait4).
    pub major_faults: u64,
    /// Where the peak of memory is from: `cgroup2`, `cgroup1` or `wait4`.
    pub memory_source: String,
    /// Standard output and error together, bytes.
    pub output_bytes: u64,
    /// Minor and major page faults (wait4).
    pub page_faults: u64,
    /// Most memory at one time, bytes; of the tree by a cgroup, of the largest process by wait4.
    pub peak_memory_bytes: u64,
    /// Most processes and threads at one time (cgroup); 0 if nobody counted.
    pub peak_pids: u64,
    /// Bytes read from block devices.
    pub read_bytes: u64,
    /// Wall-clock time, microseconds.
    pub wall_us: u64,
    /// Bytes written to block devices.
    pub written_bytes: u64,
}

impl ExecutionResult {
    /// Its one encoding, which the subject `result` is about.
    pub fn encode(&self) -> Vec<u8> {
        // Strings, whole numbers and lists in structs: nothing of it can fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Execution {
    pub(super) fn check(&self) -> Result<(), BundleError> {
        let rules = [
            (name::is_holder(&self.agent.id), "agent.id"),
            (name::is_uuid(&self.execution_id), "execution_id"),
            (name::is_tenant(&self.tenant), "tenant"),
            (self.skill.is_empty() || name::is_skill(&self.skill), "skill"),
            (matches!(self.signing_status.as_str(), SIGNED | UNSIGNED), "signing_status"),
            (cause(&self.result.cause).is_some(), "result.cause"),
            (self.controls.iter().all(|control| status(&control.status).is_some()), "controls"),
        ];
        if let Some((_, field)) = rules.iter().find(|(holds, _)| !holds) {
            return Err(BundleError::Statement(format!("{field} can't be what it is")));
        }
        let (from, to) = (&self.admission, &self.outcome);
        if from.seq == 0 || (from.epoch, from.seq) >= (to.epoch, to.seq) {
            return Err(BundleError::Inconsistent("the outcome does not come after the admission"));
        }
        for file in self.inputs.files.iter().chain(&self.result.artifacts) {
            let has_both = file.blake3.is_some() && file.sha256.is_some();
            let has_none = file.blake3.is_none() && file.sha256.is_none();
            if !(has_both && file.problem.is_empty() || has_none && !file.problem.is_empty()) {
                return Err(BundleError::Inconsistent("a file has digests or a problem, and one of the two"));
            }
        }
        let (result, recorded) = (&self.result, &self.recorded);
        let has_digests = [
            result.stdout.is_some(),
            result.stderr.is_some(),
            recorded.stdout_digest.is_some(),
            recorded.stderr_digest.is_some(),
        ];
        if has_digests.contains(&true) && has_digests.contains(&false) {
            return Err(BundleError::Inconsistent(
                "either both streams have all their digests or neither has any",
            ));
        }
        if self.result_digest() != Some(recorded.result_digest) {
            return Err(BundleError::Inconsistent("recorded.result_digest is not that of the result"));
        }
        Ok(())
    }

    /// The result digest of what this says came out; `None` if there is no such cause.
    fn result_digest(&self) -> Option<Hex<32>> {
        let (result, recorded) = (&self.result, &self.recorded);
        let ending = [i32::from(cause(&result.cause)?), result.exit_code, result.signal];
        let bytes = |digest: &Option<Hex<32>>| digest.map(|digest| digest.0.to_vec()).unwrap_or_default();
        let outputs = [bytes(&recorded.stdout_digest), bytes(&recorded.stderr_digest)];
        let digests: Vec<_> = result.artifacts.iter().map(|file| bytes(&file.blake3)).collect();
        let artifacts: Vec<_> =
            result.artifacts.iter().zip(&digests).map(|(file, digest)| (&*file.path, &digest[..])).collect();
        Some(Hex(result_digest(ending, [&outputs[0], &outputs[1]], &artifacts).0))
    }
}

/// The cause of this name.
pub(super) fn cause(name: &str) -> Option<v1::ExitCause> {
    let cause = v1::ExitCause::from_str_name(&format!("EXIT_CAUSE_{}", name.to_uppercase()))?;
    (cause != v1::ExitCause::Unspecified && name == cause_name(cause)).then_some(cause)
}

pub(super) fn cause_name(cause: v1::ExitCause) -> String {
    cause.as_str_name().trim_start_matches("EXIT_CAUSE_").to_lowercase()
}

fn status(name: &str) -> Option<v1::ControlStatus> {
    let status = v1::ControlStatus::from_str_name(&format!("CONTROL_STATUS_{}", name.to_uppercase()))?;
    (status != v1::ControlStatus::Unspecified && name == status_name(status)).then_some(status)
}

pub(super) fn status_name(status: v1::ControlStatus) -> String {
    status.as_str_name().trim_start_matches("CONTROL_STATUS_").to_lowercase()
}
