//! The result of an execution as the agent seals it: both records encoded and hashed into a chain, the bundle over them signed.
//!
//! Left out: the disk, and who pays. Invariant: what is sealed verifies under the key, and says what the engine said.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use ed25519_dalek::SigningKey;
use exchequer_event::{
    bundle::{BundleParts, input_digest, sign_bundle, verify_bundle},
    seal::event_digest,
    v1::{self, event::Kind},
};
use prost::Message as _;
use sandbox_agent::{
    record::{self, Outputs},
    sandbox::{Control, Outcome, Spec, Stream},
};

const AGENT: &str = "load";
const TENANT: &str = "load";
const HOLD: &str = "00000000-0000-7000-8000-000000000001";
const EXECUTION: &str = "00000000-0000-7000-8000-000000000002";

/// An agent's key.
pub(super) struct Sealer(SigningKey);

/// What was recorded of an admission.
pub(super) struct Admission {
    record: v1::ExecutionAdmitted,
    position: v1::AgentHead,
    time_unix_ms: u64,
}

impl Sealer {
    pub(super) fn new() -> Self {
        Self(SigningKey::from_bytes(&[7; 32]))
    }

    /// Before the program is released.
    pub(super) fn admit(spec: &Spec, controls: &[Control]) -> Admission {
        let limits = v1::Limits {
            cpu_ms: spec.limits.cpu_ms,
            wall_ms: spec.limits.wall_ms,
            memory_bytes: spec.limits.memory_bytes,
            output_bytes: spec.limits.output_bytes,
            egress_bytes: spec.limits.egress_bytes,
        };
        let record = v1::ExecutionAdmitted {
            caller: "loadtest".to_owned(),
            profile: spec.profile.name.clone(),
            program: spec.program.clone(),
            input_digest: input_digest(&spec.program, &spec.args, &spec.env, &[], &[]).into(),
            limits: Some(limits),
            hold_id: HOLD.to_owned(),
            scope: TENANT.to_owned(),
            controls: record::controls(controls),
            ..v1::ExecutionAdmitted::default()
        };
        let time_unix_ms = now_unix_ms();
        let position = recorded(1, &[0; 32], time_unix_ms, Kind::ExecutionAdmitted(record.clone()));
        Admission { record, position, time_unix_ms }
    }

    /// After its end: the bundle.
    pub(super) fn seal(
        &self,
        admission: &Admission,
        outcome: &Outcome,
        outputs: &Outputs,
    ) -> anyhow::Result<Vec<u8>> {
        let finished = record::finished(outcome, outputs, Vec::new(), HOLD, Vec::new());
        let time_unix_ms = now_unix_ms();
        let kind = Kind::ExecutionFinished(finished.clone());
        let position = recorded(2, &admission.position.hash, time_unix_ms, kind);
        let parts = BundleParts {
            tenant: TENANT,
            execution_id: EXECUTION,
            skill: "",
            admitted: &admission.record,
            admitted_at: &admission.position,
            admitted_unix_ms: admission.time_unix_ms,
            finished: &finished,
            finished_at: &position,
            finished_unix_ms: time_unix_ms,
            stdout: Some(outputs.content(Stream::Stdout)),
            stderr: Some(outputs.content(Stream::Stderr)),
        };
        Ok(sign_bundle(&parts, &self.0)?)
    }

    /// Whether a bundle is this key's, of a program that exited with 0, with this many controls.
    pub(super) fn check(&self, bundle: &[u8], controls: usize) -> anyhow::Result<()> {
        let statement = verify_bundle(bundle, &self.0.verifying_key()).context("the bundle")?;
        let execution = &statement.predicate;
        let is_it = execution.result.exit_code == 0 && execution.controls.len() == controls;
        ensure!(is_it, "the bundle says {:?} of {} controls", execution.result, execution.controls.len());
        Ok(())
    }
}

/// Where an event is in the agent's chain.
fn recorded(seq: u64, prev_hash: &[u8], time_unix_ms: u64, kind: Kind) -> v1::AgentHead {
    let event = v1::Event {
        agent_id: AGENT.to_owned(),
        epoch: 1,
        seq,
        prev_hash: prev_hash.to_vec().into(),
        time_unix_ms,
        tenant: TENANT.to_owned(),
        execution_id: EXECUTION.to_owned(),
        kind: Some(kind),
        ..v1::Event::default()
    };
    let hash = event_digest(&event.encode_to_vec());
    v1::AgentHead { agent_id: AGENT.to_owned(), epoch: 1, seq, hash: hash.into() }
}

fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
