//! What an execution uses of a machine, in meters: the one place where limits and measured usage become amounts that are held and
//! charged.
//!
//! Left out: budgets, and meters that no kernel measures. Invariant: pure, so the agent that reserves, metering that charges and whoever
//! reads the log compute the same numbers from the same record.

use crate::v1;

/// Names of the meters, in the order of [`Metered`].
pub const METERS: [&str; 6] =
    ["cpu_ms", "wall_ms", "memory_mib_ms", "output_bytes", "invocations", "egress_bytes"];
/// The largest amount of a meter that is held or charged at once: 8,900 years of CPU.
pub const MAX_METERED: u64 = 1 << 48;

const MICROS_PER_MILLI: u64 = 1_000;
const BYTES_PER_MIB: u64 = 1 << 20;

/// An amount of each of the machine's [`METERS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metered(pub [u64; METERS.len()]);

impl Metered {
    /// What an execution under these limits uses at most.
    pub fn at_most(limits: &v1::Limits) -> Self {
        let memory_mib = limits.memory_bytes.div_ceil(BYTES_PER_MIB);
        let memory = memory_mib.saturating_mul(limits.wall_ms);
        Self([limits.cpu_ms, limits.wall_ms, memory, limits.output_bytes, 1, limits.egress_bytes])
    }

    /// What a finished execution is charged: what it used, or what was reserved for it if that is unknown. `None`, if
    /// neither is said in a way that can be read: then all that is left of its hold is charged, since less would reward the silence.
    pub fn charge(finished: &v1::ExecutionFinished) -> Option<Self> {
        let reserved = || Self::read(&finished.reserved).filter(|_| !finished.reserved.is_empty());
        Self::used(finished).or_else(reserved).map(|Self(amounts)| Self(amounts.map(|a| a.min(MAX_METERED))))
    }

    /// What a finished execution used:
    ///
    /// - `cpu_ms`: user and system time together, rounded up to milliseconds;
    /// - `wall_ms`: rounded up to milliseconds;
    /// - `memory_mib_ms`: peak memory rounded up to MiB, times `wall_ms`;
    /// - `output_bytes` and `egress_bytes`: as measured; `invocations`: 1.
    ///
    /// `None`, if it is unknown: the execution was lost, or the record carries no usage.
    fn used(finished: &v1::ExecutionFinished) -> Option<Self> {
        let usage = finished.usage.as_ref().filter(|_| finished.cause() != v1::ExitCause::Lost)?;
        let wall_ms = usage.wall_us.div_ceil(MICROS_PER_MILLI);
        let cpu_ms = usage.cpu_user_us.saturating_add(usage.cpu_system_us).div_ceil(MICROS_PER_MILLI);
        let memory = usage.peak_memory_bytes.div_ceil(BYTES_PER_MIB).saturating_mul(wall_ms);
        Some(Self([cpu_ms, wall_ms, memory, usage.output_bytes, 1, usage.egress_bytes]))
    }

    /// Amounts by name; `None`, if one is not a machine's meter or is named twice.
    pub fn read(amounts: &[v1::MeterAmount]) -> Option<Self> {
        let (mut read, mut seen) = (Self::default(), [false; METERS.len()]);
        for v1::MeterAmount { meter, amount } in amounts {
            let place = METERS.iter().position(|name| name == meter)?;
            if std::mem::replace(&mut seen[place], true) {
                return None;
            }
            read.0[place] = *amount;
        }
        Some(read)
    }

    /// The machine's meters among amounts of any.
    pub fn among(amounts: &[v1::MeterAmount]) -> Self {
        let of = |name| {
            amounts.iter().filter(|a| a.meter == name).fold(0, |sum: u64, a| sum.saturating_add(a.amount))
        };
        Self(METERS.map(of))
    }

    /// The amounts by name, without those that are zero.
    pub fn amounts(&self) -> Vec<v1::MeterAmount> {
        let named = METERS.iter().zip(self.0).filter(|(_, amount)| *amount > 0);
        named.map(|(meter, amount)| v1::MeterAmount { meter: (*meter).to_owned(), amount }).collect()
    }

    /// Meter by meter.
    #[must_use]
    pub fn zip(&self, other: &Self, each: impl Fn(u64, u64) -> u64) -> Self {
        Self(std::array::from_fn(|place| each(self.0[place], other.0[place])))
    }

    /// Whether no meter has more than the other.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).all(|(own, other)| *own <= other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(usage: Option<v1::Usage>, reserved: &[(&str, u64)]) -> v1::ExecutionFinished {
        let amount =
            |(meter, amount): &(&str, u64)| v1::MeterAmount { meter: (*meter).into(), amount: *amount };
        let reserved = reserved.iter().map(amount).collect();
        v1::ExecutionFinished { cause: v1::ExitCause::Exited.into(), usage, reserved, ..Default::default() }
    }

    fn check(usage: v1::Usage, want: [u64; METERS.len()]) {
        assert_eq!(Metered::charge(&finished(Some(usage), &[("cpu_ms", 9)])), Some(Metered(want)));
    }

    #[test]
    fn measured_usage_is_rounded_up_and_cut() {
        check(v1::Usage::default(), [0, 0, 0, 0, 1, 0]);
        let some = v1::Usage {
            cpu_user_us: 1_000,
            cpu_system_us: 1,
            wall_us: 2_001,
            peak_memory_bytes: (5 << 20) + 1,
            output_bytes: 7,
            page_faults: 9,
            egress_bytes: 8,
            ingress_bytes: 9,
            ..v1::Usage::default()
        };
        check(some, [2, 3, 18, 7, 1, 8]);
        let most = v1::Usage {
            cpu_user_us: u64::MAX,
            cpu_system_us: u64::MAX,
            wall_us: u64::MAX,
            peak_memory_bytes: u64::MAX,
            output_bytes: u64::MAX,
            egress_bytes: u64::MAX,
            page_faults: u64::MAX,
            ..v1::Usage::default()
        };
        check(most, [MAX_METERED, MAX_METERED, MAX_METERED, MAX_METERED, 1, MAX_METERED]);
    }

    #[test]
    fn unknown_usage_charges_what_was_reserved_and_everything_if_that_is_not_said() {
        let check = |record: v1::ExecutionFinished, want: Option<[u64; METERS.len()]>| {
            assert_eq!(Metered::charge(&record), want.map(Metered), "{record:?}");
        };
        check(finished(None, &[("wall_ms", 4), ("invocations", 1)]), Some([0, 4, 0, 0, 1, 0]));
        let lost = |reserved| {
            let mut lost = finished(Some(v1::Usage::default()), reserved);
            lost.set_cause(v1::ExitCause::Lost);
            lost
        };
        check(lost(&[("cpu_ms", u64::MAX)]), Some([MAX_METERED, 0, 0, 0, 0, 0]));
        check(lost(&[]), None);
        check(lost(&[("tokens", 1)]), None);
        check(lost(&[("cpu_ms", 1), ("cpu_ms", 1)]), None);
    }

    #[test]
    fn no_usage_within_limits_is_charged_above_what_they_hold() {
        let limits = v1::Limits {
            cpu_ms: 5,
            wall_ms: 7,
            memory_bytes: (3 << 20) - 1,
            output_bytes: 11,
            egress_bytes: 13,
        };
        let all = v1::Usage {
            cpu_user_us: 2_500,
            cpu_system_us: 2_500,
            wall_us: 7_000,
            peak_memory_bytes: (3 << 20) - 1,
            output_bytes: 11,
            egress_bytes: 13,
            ..v1::Usage::default()
        };
        let most = Metered::at_most(&limits);
        assert_eq!(Metered::charge(&finished(Some(all), &[])), Some(most));
        assert_eq!(Metered::read(&most.amounts()), Some(most));
    }
}
