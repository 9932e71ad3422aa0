//! What an execution costs: from an accepted `ExecutionFinished` to the amounts that settle its hold.
//!
//! Left out: whether the hold exists and whose it is (`fold`). Invariant: [`amounts`] is the only place where measured
//! usage becomes meters, and it is pure, so every reader of the log computes the same charge.

use exchequer_budget::{Amounts, HoldId, MAX_AMOUNT, Meter, Subject};
use exchequer_event::v1::{self, ExitCause, event::Kind};

const MICROS_PER_MILLI: u64 = 1_000;
const BYTES_PER_MIB: u64 = 1 << 20;

/// An accepted execution that has a hold to settle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Stream sequence of the batch that it came in.
    pub stream_seq: u64,
    /// The agent that ran it.
    pub agent: Subject,
    /// The hold that pays.
    pub hold_id: HoldId,
    /// What it used; `None` charges the whole hold.
    pub used: Option<Amounts>,
}

impl Charge {
    /// The charge of an accepted event, if it is an execution's end with a hold.
    pub fn of(stream_seq: u64, event: &v1::Event) -> Option<Self> {
        let Some(Kind::ExecutionFinished(finished)) = &event.kind else { return None };
        Some(Self {
            stream_seq,
            agent: Subject::parse(&event.agent_id).ok()?,
            hold_id: HoldId::parse(&finished.hold_id).ok()?,
            used: amounts(finished),
        })
    }
}

/// What a finished execution used, per meter:
///
/// - `cpu_ms`: user and system time together, rounded up to milliseconds;
/// - `wall_ms`: rounded up to milliseconds;
/// - `memory_mib_ms`: peak memory rounded up to MiB, times `wall_ms`;
/// - `output_bytes`: as measured; `invocations`: 1.
///
/// Each is cut at [`MAX_AMOUNT`] (2^48, which is 8,900 years of CPU). `None`, if the usage is unknown: the agent was lost while it
/// ran, or the event carries no usage. Then the whole hold is charged, since anything less would reward the loss.
pub fn amounts(finished: &v1::ExecutionFinished) -> Option<Amounts> {
    let usage = finished.usage.as_ref().filter(|_| finished.cause() != ExitCause::Lost)?;
    let wall_ms = usage.wall_us.div_ceil(MICROS_PER_MILLI);
    let cpu_ms = usage.cpu_user_us.saturating_add(usage.cpu_system_us).div_ceil(MICROS_PER_MILLI);
    let used = [
        (Meter::CpuMs, cpu_ms),
        (Meter::WallMs, wall_ms),
        (Meter::MemoryMibMs, usage.peak_memory_bytes.div_ceil(BYTES_PER_MIB).saturating_mul(wall_ms)),
        (Meter::OutputBytes, usage.output_bytes),
        (Meter::Invocations, 1),
    ];
    let used = used.map(|(meter, amount)| (meter, amount.min(MAX_AMOUNT)));
    Some(Amounts::new(used).expect("each meter is named once and cut"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(usage: v1::Usage, want: [u64; 5]) {
        let finished = v1::ExecutionFinished {
            cause: ExitCause::Exited.into(),
            usage: Some(usage),
            ..v1::ExecutionFinished::default()
        };
        let used = amounts(&finished).unwrap();
        let meters =
            [Meter::CpuMs, Meter::WallMs, Meter::MemoryMibMs, Meter::OutputBytes, Meter::Invocations];
        assert_eq!(meters.map(|meter| used.get(meter)), want);
    }

    #[test]
    fn measured_usage_is_rounded_up_and_cut() {
        check(v1::Usage::default(), [0, 0, 0, 0, 1]);
        let some = v1::Usage {
            cpu_user_us: 1_000,
            cpu_system_us: 1,
            wall_us: 2_001,
            peak_memory_bytes: (5 << 20) + 1,
            output_bytes: 7,
            page_faults: 9,
        };
        check(some, [2, 3, 18, 7, 1]);
        let most = v1::Usage {
            cpu_user_us: u64::MAX,
            cpu_system_us: u64::MAX,
            wall_us: u64::MAX,
            peak_memory_bytes: u64::MAX,
            output_bytes: u64::MAX,
            page_faults: u64::MAX,
        };
        let max_ms = u64::MAX.div_ceil(1000);
        check(most, [max_ms.min(MAX_AMOUNT), max_ms.min(MAX_AMOUNT), MAX_AMOUNT, MAX_AMOUNT, 1]);
    }

    #[test]
    fn unknown_usage_charges_the_whole_hold() {
        let usage = Some(v1::Usage::default());
        let lost = v1::ExecutionFinished { cause: ExitCause::Lost.into(), usage, ..Default::default() };
        assert_eq!(amounts(&lost), None);
        let silent = v1::ExecutionFinished { cause: ExitCause::Exited.into(), ..Default::default() };
        assert_eq!(amounts(&silent), None);
    }
}
