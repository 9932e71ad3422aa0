//! Meters and amounts of them. Canonical by construction: one slot per meter, in the order of [`Meter::ALL`].

use std::fmt;

use crate::fault::Fault;

/// The most that one command can ask, one hold can hold, or one settlement can record of a meter.
pub const MAX_AMOUNT: u64 = 1 << 48;
/// The most that a budget can grant of a meter.
pub const MAX_GRANTED: u64 = 1 << 62;

/// What is metered. The unit is in the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Meter {
    /// CPU time of the whole tree, milliseconds.
    CpuMs,
    /// Wall-clock time, milliseconds.
    WallMs,
    /// Memory over time, MiB times milliseconds.
    MemoryMibMs,
    /// Output, bytes.
    OutputBytes,
    /// Executions.
    Invocations,
    /// Tokens read by a model.
    InputTokens,
    /// Tokens written by a model.
    OutputTokens,
    /// Money, millionths of the currency's unit.
    CostMicros,
}

impl Meter {
    /// All meters, in canonical order.
    pub const ALL: [Self; 8] = [
        Self::CpuMs,
        Self::WallMs,
        Self::MemoryMibMs,
        Self::OutputBytes,
        Self::Invocations,
        Self::InputTokens,
        Self::OutputTokens,
        Self::CostMicros,
    ];
    pub(crate) const COUNT: usize = Self::ALL.len();

    /// Its name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CpuMs => "cpu_ms",
            Self::WallMs => "wall_ms",
            Self::MemoryMibMs => "memory_mib_ms",
            Self::OutputBytes => "output_bytes",
            Self::Invocations => "invocations",
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
            Self::CostMicros => "cost_micros",
        }
    }

    /// Parses a name.
    pub fn parse(name: &str) -> Result<Self, Fault> {
        Self::ALL.into_iter().find(|meter| meter.name() == name).ok_or(Fault::UnknownMeter)
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An amount per meter, each at most [`MAX_AMOUNT`]; a meter that is not named has zero.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Amounts([u64; Meter::COUNT]);

impl Amounts {
    /// Nothing of any meter.
    pub const NONE: Self = Self([0; Meter::COUNT]);

    /// Sums up `amounts`; fails if a meter's sum is above [`MAX_AMOUNT`].
    pub fn new(amounts: impl IntoIterator<Item = (Meter, u64)>) -> Result<Self, Fault> {
        let mut sum = Self::NONE;
        for (meter, amount) in amounts {
            let slot = &mut sum.0[meter.index()];
            *slot = slot
                .checked_add(amount)
                .filter(|&sum| sum <= MAX_AMOUNT)
                .ok_or(Fault::OutOfRange { min: 0, max: MAX_AMOUNT })?;
        }
        Ok(sum)
    }

    /// The amount of `meter`.
    pub fn get(&self, meter: Meter) -> u64 {
        self.0[meter.index()]
    }

    /// Whether all are zero.
    pub fn is_empty(&self) -> bool {
        *self == Self::NONE
    }

    /// Meters with an amount above zero, in canonical order.
    pub fn iter(&self) -> impl Iterator<Item = (Meter, u64)> {
        Meter::ALL.into_iter().zip(self.0).filter(|&(_, amount)| amount > 0)
    }

    /// The sum, unless a meter's would be above [`MAX_AMOUNT`].
    pub fn checked_add(&self, more: &Self) -> Option<Self> {
        Self::new(self.iter().chain(more.iter())).ok()
    }
}

impl fmt::Debug for Amounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(meter, amount)| (meter.name(), amount))).finish()
    }
}

/// What a budget grants, for the meters that it limits. Zero is a limit too.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Allowance([Option<u64>; Meter::COUNT]);

impl Allowance {
    /// Limits each meter named; fails if one is named twice or granted above [`MAX_GRANTED`].
    pub fn new(granted: impl IntoIterator<Item = (Meter, u64)>) -> Result<Self, Fault> {
        let mut allowance = Self::default();
        for (meter, amount) in granted {
            if amount > MAX_GRANTED {
                return Err(Fault::OutOfRange { min: 0, max: MAX_GRANTED });
            }
            if allowance.0[meter.index()].replace(amount).is_some() {
                return Err(Fault::RepeatedMeter);
            }
        }
        Ok(allowance)
    }

    /// Whether no meter is limited.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// Limited meters and what they are granted, in canonical order.
    pub fn iter(&self) -> impl Iterator<Item = (Meter, u64)> {
        Meter::ALL.into_iter().zip(self.0).filter_map(|(meter, granted)| Some((meter, granted?)))
    }
}

impl fmt::Debug for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(meter, amount)| (meter.name(), amount))).finish()
    }
}

/// Sums of amounts over many holds.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals(pub(crate) [u128; Meter::COUNT]);

impl Totals {
    /// The sum of `meter`.
    pub fn get(&self, meter: Meter) -> u128 {
        self.0[meter.index()]
    }

    /// Meters with a sum above zero, in canonical order.
    pub fn iter(&self) -> impl Iterator<Item = (Meter, u128)> {
        Meter::ALL.into_iter().zip(self.0).filter(|&(_, amount)| amount > 0)
    }
}

impl fmt::Debug for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(meter, amount)| (meter.name(), amount))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_meter_is_found_by_its_name_and_in_its_place() {
        for (index, meter) in Meter::ALL.into_iter().enumerate() {
            assert_eq!(Meter::parse(meter.name()), Ok(meter));
            assert_eq!(meter.index(), index);
        }
        assert_eq!(Meter::parse("CPU_MS"), Err(Fault::UnknownMeter));
    }

    #[test]
    fn amounts_add_up_to_the_limit_and_no_further() {
        let most = Amounts::new([(Meter::WallMs, MAX_AMOUNT)]).unwrap();
        let one = Amounts::new([(Meter::WallMs, 1)]).unwrap();
        let other = Amounts::new([(Meter::CpuMs, 7)]).unwrap();
        assert_eq!(most.checked_add(&one), None);
        assert_eq!(
            most.checked_add(&other).unwrap().iter().collect::<Vec<_>>(),
            [(Meter::CpuMs, 7), (Meter::WallMs, MAX_AMOUNT)]
        );
        let fault = Err(Fault::OutOfRange { min: 0, max: MAX_AMOUNT });
        assert_eq!(Amounts::new([(Meter::WallMs, u64::MAX), (Meter::WallMs, u64::MAX)]), fault);
    }

    #[test]
    fn an_allowance_names_a_meter_once_and_may_grant_zero() {
        let zero = Allowance::new([(Meter::CpuMs, 0)]).unwrap();
        assert!(!zero.is_empty());
        assert_eq!(Allowance::new([(Meter::CpuMs, 1), (Meter::CpuMs, 1)]), Err(Fault::RepeatedMeter));
        assert_eq!(
            Allowance::new([(Meter::CpuMs, MAX_GRANTED + 1)]),
            Err(Fault::OutOfRange { min: 0, max: MAX_GRANTED })
        );
    }
}
