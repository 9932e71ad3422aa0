//! The spool's events read again when it is opened: whether they are a chain, and which executions they leave open.
//!
//! Left out: where they are read from. Invariant: an execution is open if it was admitted, or is listed as open, and has no outcome.

use std::collections::BTreeMap;

use exchequer_event::{
    digest::Digest,
    seal,
    v1::{self, event::Kind},
};
use prost::Message as _;

use super::{LostExecution, unfinished::Snapshot};

/// What the journal's events leave open.
pub(super) struct Replayed {
    /// The last event and its digest.
    pub(super) head: (u64, Digest),
    /// By execution, with the place of its admission.
    pub(super) open: BTreeMap<String, (u64, LostExecution)>,
}

impl Replayed {
    pub(super) fn new(snapshot: Option<&Snapshot>) -> Self {
        let open = snapshot.map(|snapshot| snapshot.open.as_slice()).unwrap_or_default().iter();
        let open = open.map(|of| (of.execution(), of.seq));
        let open = open.map(|(execution, seq)| (execution.execution_id.clone(), (seq, execution)));
        Self { head: (0, Digest::ZERO), open: open.collect() }
    }

    /// Takes the next event; refuses one that is not this spool's, or not the next one.
    pub(super) fn take(
        &mut self,
        agent_id: &str,
        epoch: u64,
        seq: u64,
        bytes: &[u8],
    ) -> Result<v1::Event, String> {
        let mut event = v1::Event::decode(bytes).map_err(|e| e.to_string())?;
        if (event.agent_id.as_str(), event.epoch, event.seq) != (agent_id, epoch, seq) {
            return Err(format!("the event is {} {}/{}", event.agent_id, event.epoch, event.seq));
        }
        if self.head.0 > 0 && event.prev_hash != self.head.1.0.as_slice() {
            return Err("prev_hash is not the digest of the event before".into());
        }
        self.head = (seq, seal::event_digest(bytes));
        match &mut event.kind {
            Some(Kind::ExecutionAdmitted(admitted)) => {
                let lost = LostExecution {
                    execution_id: event.execution_id.clone(),
                    tenant: event.tenant.clone(),
                    skill: event.skill.clone(),
                    hold_id: std::mem::take(&mut admitted.hold_id),
                    reserved: std::mem::take(&mut admitted.reserved),
                };
                self.open.insert(event.execution_id.clone(), (seq, lost));
            }
            Some(Kind::ExecutionFinished(_)) => drop(self.open.remove(&event.execution_id)),
            _ => {}
        }
        Ok(event)
    }
}
