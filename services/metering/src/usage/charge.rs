//! What an execution costs: from an accepted `ExecutionFinished` to the amounts that settle its hold.
//!
//! Left out: whether the hold exists and whose it is (`fold`). Invariant: [`amounts`] says what
//! `exchequer_event::metered` says, which is pure, so every reader of the log computes the same charge.

use exchequer_budget::{Amounts, HoldId, Meter, Subject};
use exchequer_event::{
    metered::{METERS, Metered},
    v1::{self, event::Kind},
};

/// An accepted execution that has a hold to settle, or a lease to draw from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Stream sequence of the batch that it came in.
    pub stream_seq: u64,
    /// The agent that ran it.
    pub agent: Subject,
    /// The execution.
    pub execution_id: String,
    /// The skill that it ran; empty for none.
    pub skill: String,
    /// The agent's clock when it ended, in milliseconds since the Unix epoch.
    pub used_unix_ms: u64,
    /// The hold that pays.
    pub hold_id: HoldId,
    /// What it is charged; `None` charges all that is left of the hold.
    pub used: Option<Amounts>,
}

impl Charge {
    /// The charge of an accepted event, if it is an execution's end with a hold.
    pub fn of(stream_seq: u64, event: &v1::Event) -> Option<Self> {
        let Some(Kind::ExecutionFinished(finished)) = &event.kind else { return None };
        Some(Self {
            stream_seq,
            agent: Subject::parse(&event.agent_id).ok()?,
            execution_id: event.execution_id.clone(),
            skill: event.skill.clone(),
            used_unix_ms: event.time_unix_ms,
            hold_id: HoldId::parse(&finished.hold_id).ok()?,
            used: amounts(finished),
        })
    }
}

/// What a finished execution is charged, per meter: see [`Metered::charge`]. `None` charges all that is left of the hold.
pub fn amounts(finished: &v1::ExecutionFinished) -> Option<Amounts> {
    let Metered(amounts) = Metered::charge(finished)?;
    let named = METERS.iter().zip(amounts);
    let named = named.filter_map(|(name, amount)| Some((Meter::parse(name).ok()?, amount)));
    Some(Amounts::new(named).expect("each meter is named once and cut"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_meter_of_the_machine_is_charged() {
        let usage = v1::Usage {
            cpu_user_us: 2_000,
            wall_us: 3_000,
            peak_memory_bytes: 5 << 20,
            output_bytes: 7,
            egress_bytes: 9,
            ..v1::Usage::default()
        };
        let finished = v1::ExecutionFinished { usage: Some(usage), ..v1::ExecutionFinished::default() };
        let used = amounts(&finished).unwrap();
        let meters = [
            Meter::CpuMs,
            Meter::WallMs,
            Meter::MemoryMibMs,
            Meter::OutputBytes,
            Meter::Invocations,
            Meter::EgressBytes,
        ];
        assert_eq!(meters.map(|meter| used.get(meter)), [2, 3, 15, 7, 1, 9]);
    }
}
