//! The predicate, made of the two events that the agent recorded.
//!
//! Left out: the digests that no event has (plain ones of the streams), which the caller gives. Invariant: everything else is the
//! record's, so whoever finds the events in the log can make it again and compare.

use ed25519_dalek::VerifyingKey;

use super::{
    Agent, Amount, BundleError, ContentDigests, Control, EgressTarget, Execution, ExecutionResult, File, Hex,
    Hold, Inputs, Limits, Position, Profile, Recorded, Stream, Usage,
    execution::{cause_name, status_name},
};
use crate::v1;

/// What a bundle is made of.
#[derive(Clone, Copy, Debug)]
pub struct BundleParts<'a> {
    /// The tenant.
    pub tenant: &'a str,
    /// The execution.
    pub execution_id: &'a str,
    /// The skill; empty for none.
    pub skill: &'a str,
    /// What was recorded of its admission.
    pub admitted: &'a v1::ExecutionAdmitted,
    /// Where.
    pub admitted_at: &'a v1::AgentHead,
    /// The event's time.
    pub admitted_unix_ms: u64,
    /// What was recorded of its outcome.
    pub finished: &'a v1::ExecutionFinished,
    /// Where.
    pub finished_at: &'a v1::AgentHead,
    /// The event's time.
    pub finished_unix_ms: u64,
    /// Of standard output as it was handed on; none if the outcome records none.
    pub stdout: Option<ContentDigests>,
    /// Of standard error.
    pub stderr: Option<ContentDigests>,
}

fn hex(field: &'static str, bytes: &[u8]) -> Result<Hex<32>, BundleError> {
    Hex::from_slice(bytes).ok_or(BundleError::Parts(field))
}

fn optional(field: &'static str, bytes: &[u8]) -> Result<Option<Hex<32>>, BundleError> {
    if bytes.is_empty() { Ok(None) } else { hex(field, bytes).map(Some) }
}

fn position(head: &v1::AgentHead, time_unix_ms: u64) -> Result<Position, BundleError> {
    Ok(Position { epoch: head.epoch, hash: hex("position.hash", &head.hash)?, seq: head.seq, time_unix_ms })
}

fn files(files: &[v1::File]) -> Result<Vec<File>, BundleError> {
    let file = |file: &v1::File| {
        Ok(File {
            blake3: optional("file.digest", &file.digest)?,
            path: file.path.clone(),
            problem: file.problem.clone(),
            sha256: optional("file.sha256", &file.sha256)?,
            size: file.size,
        })
    };
    files.iter().map(file).collect()
}

fn control(control: &v1::Control) -> Control {
    Control {
        evidence: control.evidence.clone(),
        name: control.name.clone(),
        remedy: control.remedy.clone(),
        status: status_name(control.status()),
    }
}

fn egress(target: &v1::EgressTarget) -> EgressTarget {
    EgressTarget {
        connections: target.connections,
        host: target.host.clone(),
        port: target.port,
        received: target.received,
        refused: target.refused,
        sent: target.sent,
    }
}

fn usage(usage: &v1::Usage) -> Usage {
    Usage {
        cpu_system_us: usage.cpu_system_us,
        cpu_user_us: usage.cpu_user_us,
        egress_bytes: usage.egress_bytes,
        ingress_bytes: usage.ingress_bytes,
        major_faults: usage.major_faults,
        memory_source: usage.memory_source.clone(),
        output_bytes: usage.output_bytes,
        page_faults: usage.page_faults,
        peak_memory_bytes: usage.peak_memory_bytes,
        peak_pids: usage.peak_pids,
        read_bytes: usage.read_bytes,
        wall_us: usage.wall_us,
        written_bytes: usage.written_bytes,
    }
}

fn stream(
    field: &'static str,
    recorded: Option<&v1::Output>,
    digests: Option<ContentDigests>,
) -> Result<(Option<Hex<32>>, Option<Stream>), BundleError> {
    match (recorded, digests) {
        (None, None) => Ok((None, None)),
        (Some(output), Some(digests)) if output.size == digests.size => {
            let stream = Stream { sha256: Hex(digests.sha256), size: digests.size };
            Ok((Some(hex(field, &output.digest)?), Some(stream)))
        }
        _ => Err(BundleError::Parts(field)),
    }
}

impl Execution {
    /// Of these records.
    pub fn of(
        parts: &BundleParts<'_>,
        public_key: &VerifyingKey,
        signing_status: &str,
    ) -> Result<Self, BundleError> {
        let (admitted, finished) = (parts.admitted, parts.finished);
        if parts.admitted_at.agent_id != parts.finished_at.agent_id || admitted.hold_id != finished.hold_id {
            return Err(BundleError::Inconsistent("the outcome is not the admission's"));
        }
        let limits = admitted.limits.unwrap_or_default();
        let (stdout_digest, stdout) = stream("stdout", finished.stdout.as_ref(), parts.stdout)?;
        let (stderr_digest, stderr) = stream("stderr", finished.stderr.as_ref(), parts.stderr)?;
        let amount = |amount: &v1::MeterAmount| Amount { amount: amount.amount, meter: amount.meter.clone() };
        Ok(Self {
            admission: position(parts.admitted_at, parts.admitted_unix_ms)?,
            agent: Agent { id: parts.admitted_at.agent_id.clone(), public_key: Hex(*public_key.as_bytes()) },
            caller: admitted.caller.clone(),
            controls: admitted.controls.iter().map(control).collect(),
            detail: finished.detail.clone(),
            egress: finished.egress.iter().map(egress).collect(),
            execution_id: parts.execution_id.to_owned(),
            hold: Hold {
                id: admitted.hold_id.clone(),
                reserved: admitted.reserved.iter().map(amount).collect(),
            },
            inputs: Inputs {
                arguments_redacted: admitted.arguments_redacted.clone(),
                digest: hex("input_digest", &admitted.input_digest)?,
                files: files(&admitted.inputs)?,
                program: admitted.program.clone(),
            },
            limits: Limits {
                cpu_ms: limits.cpu_ms,
                egress_bytes: limits.egress_bytes,
                memory_bytes: limits.memory_bytes,
                output_bytes: limits.output_bytes,
                wall_ms: limits.wall_ms,
            },
            outcome: position(parts.finished_at, parts.finished_unix_ms)?,
            profile: Profile {
                digest: optional("profile_digest", &admitted.profile_digest)?,
                name: admitted.profile.clone(),
            },
            recorded: Recorded {
                result_digest: hex("result_digest", &finished.result_digest)?,
                stderr_digest,
                stdout_digest,
            },
            result: ExecutionResult {
                artifacts: files(&finished.artifacts)?,
                cause: cause_name(finished.cause()),
                exit_code: finished.exit_code,
                signal: finished.signal,
                stderr,
                stdout,
            },
            scope: admitted.scope.clone(),
            signing_status: signing_status.to_owned(),
            skill: parts.skill.to_owned(),
            tenant: parts.tenant.to_owned(),
            usage: finished.usage.as_ref().map(usage),
        })
    }
}
