//! The result bundle of an execution: what the agent recorded of it, signed with its key for the caller to keep.
//!
//! Left out: the format (`exchequer_event::bundle`), and keeping bundles, which the agent does not. Invariant: a bundle is made only of
//! what is on disk already, so its two positions are in the log or on their way there.

use ed25519_dalek::SigningKey;
use exchequer_event::{
    bundle::{BundleParts, sign_bundle},
    v1,
};

use crate::{record::Outputs, request::Checked, sandbox::Stream};

/// What a bundle needs of the admission, kept while the execution runs.
pub struct Admission {
    tenant: String,
    skill: String,
    execution_id: String,
    record: v1::ExecutionAdmitted,
    position: v1::AgentHead,
    time_unix_ms: u64,
}

impl Admission {
    /// Of a recorded admission.
    pub fn new(checked: &Checked, admitted: &v1::Admitted, time_unix_ms: u64) -> Self {
        Self {
            tenant: checked.tenant.clone(),
            skill: checked.skill.clone(),
            execution_id: admitted.execution_id.clone(),
            record: admitted.record.clone().unwrap_or_default(),
            position: admitted.position.clone().unwrap_or_default(),
            time_unix_ms,
        }
    }

    /// The bundle, after the outcome is on disk. Empty if the records don't make one, which is logged: the outcome is recorded and has to
    /// be answered all the same.
    pub fn sign(
        &self,
        finished: &v1::ExecutionFinished,
        position: &v1::AgentHead,
        time_unix_ms: u64,
        outputs: &Outputs,
        key: &SigningKey,
    ) -> Vec<u8> {
        let parts = BundleParts {
            tenant: &self.tenant,
            execution_id: &self.execution_id,
            skill: &self.skill,
            admitted: &self.record,
            admitted_at: &self.position,
            admitted_unix_ms: self.time_unix_ms,
            finished,
            finished_at: position,
            finished_unix_ms: time_unix_ms,
            stdout: finished.stdout.is_some().then(|| outputs.content(Stream::Stdout)),
            stderr: finished.stderr.is_some().then(|| outputs.content(Stream::Stderr)),
        };
        sign_bundle(&parts, key).unwrap_or_else(|error| {
            tracing::error!(%error, execution_id = self.execution_id, "no bundle could be made");
            Vec::new()
        })
    }
}
