//! Meters, and amounts of them. Canonical by construction: the product's own meters in the order of [`Meter::BUILT_IN`], then a
//! tenant's own by name.
//!
//! Left out: whether a tenant has defined a meter, which only a state knows.

use std::fmt;

use crate::fault::Fault;

/// The most that one command can ask, one hold can hold, or one settlement can record of a meter.
pub const MAX_AMOUNT: u64 = 1 << 48;
/// The most that a budget can grant of a meter by itself.
pub const MAX_GRANTED: u64 = 1 << 62;
/// Characters of a meter's name at most.
pub const MAX_METER_NAME: usize = 32;
/// Meters that a tenant can define.
pub const MAX_CUSTOM_METERS: usize = 64;
/// Meters that one list can name.
pub const MAX_METERS: usize = BUILT_IN + MAX_CUSTOM_METERS;

const BUILT_IN: usize = Meter::BUILT_IN.len();

/// The name of a meter that a tenant defined, padded with zeros, so that it is ordered as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CustomMeter([u8; MAX_METER_NAME]);

impl CustomMeter {
    fn parse(name: &str) -> Result<Self, Fault> {
        let bytes = name.as_bytes();
        let rest = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_';
        let is_name = bytes.len() <= MAX_METER_NAME
            && bytes.first().is_some_and(u8::is_ascii_lowercase)
            && bytes.iter().all(rest);
        if !is_name {
            return Err(Fault::UnknownMeter);
        }
        let mut padded = [0; MAX_METER_NAME];
        padded[..bytes.len()].copy_from_slice(bytes);
        Ok(Self(padded))
    }

    fn name(&self) -> &str {
        let len = self.0.iter().position(|&byte| byte == 0).unwrap_or(MAX_METER_NAME);
        str::from_utf8(&self.0[..len]).unwrap_or_default()
    }
}

/// What is metered. The unit is in the name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Meter {
    /// CPU time of the whole tree, milliseconds.
    CpuMs,
    /// Wall-clock time, milliseconds.
    WallMs,
    /// Memory over time, MiB times milliseconds.
    MemoryMibMs,
    /// Output, bytes.
    OutputBytes,
    /// Sent over the network, bytes.
    EgressBytes,
    /// Executions.
    Invocations,
    /// Tokens read by a model.
    InputTokens,
    /// Tokens written by a model.
    OutputTokens,
    /// Money, millionths of the currency's unit.
    CostMicros,
    /// One that a tenant defined.
    Custom(CustomMeter),
}

impl Meter {
    /// The product's own meters, in canonical order.
    pub const BUILT_IN: [Self; 9] = [
        Self::CpuMs,
        Self::WallMs,
        Self::MemoryMibMs,
        Self::OutputBytes,
        Self::EgressBytes,
        Self::Invocations,
        Self::InputTokens,
        Self::OutputTokens,
        Self::CostMicros,
    ];

    /// Its name in messages.
    pub fn name(&self) -> &str {
        match self {
            Self::CpuMs => "cpu_ms",
            Self::WallMs => "wall_ms",
            Self::MemoryMibMs => "memory_mib_ms",
            Self::OutputBytes => "output_bytes",
            Self::EgressBytes => "egress_bytes",
            Self::Invocations => "invocations",
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
            Self::CostMicros => "cost_micros",
            Self::Custom(custom) => custom.name(),
        }
    }

    /// Parses a name: one of the product's own, or `[a-z][a-z0-9_]{0,31}`.
    pub fn parse(name: &str) -> Result<Self, Fault> {
        match Self::BUILT_IN.into_iter().find(|meter| meter.name() == name) {
            Some(meter) => Ok(meter),
            None => CustomMeter::parse(name).map(Self::Custom),
        }
    }

    /// Whether a tenant has to define it.
    pub fn is_custom(self) -> bool {
        matches!(self, Self::Custom(_))
    }

    /// Its place among the product's own.
    pub(crate) const fn index(self) -> Option<usize> {
        Some(match self {
            Self::CpuMs => 0,
            Self::WallMs => 1,
            Self::MemoryMibMs => 2,
            Self::OutputBytes => 3,
            Self::EgressBytes => 4,
            Self::Invocations => 5,
            Self::InputTokens => 6,
            Self::OutputTokens => 7,
            Self::CostMicros => 8,
            Self::Custom(_) => return None,
        })
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An amount per meter, each at most [`MAX_AMOUNT`]; a meter that is not named has zero.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Amounts {
    built_in: [u64; BUILT_IN],
    /// Those above zero, in order.
    custom: Vec<(CustomMeter, u64)>,
}

impl Amounts {
    /// Nothing of any meter.
    pub const NONE: Self = Self { built_in: [0; BUILT_IN], custom: Vec::new() };

    /// Sums up `amounts`; fails if a meter's sum is above [`MAX_AMOUNT`].
    pub fn new(amounts: impl IntoIterator<Item = (Meter, u64)>) -> Result<Self, Fault> {
        let mut sum = Self::NONE;
        for (meter, amount) in amounts {
            let added = sum.get(meter).checked_add(amount).filter(|&sum| sum <= MAX_AMOUNT);
            sum.set(meter, added.ok_or(Fault::OutOfRange { min: 0, max: MAX_AMOUNT })?);
        }
        Ok(sum)
    }

    /// The amount of `meter`.
    pub fn get(&self, meter: Meter) -> u64 {
        match (meter.index(), meter) {
            (Some(index), _) => self.built_in[index],
            (None, Meter::Custom(name)) => {
                self.custom.iter().find(|row| row.0 == name).map_or(0, |row| row.1)
            }
            (None, _) => 0,
        }
    }

    /// Sets the amount of `meter`, cut at [`MAX_AMOUNT`].
    pub(crate) fn set(&mut self, meter: Meter, amount: u64) {
        let amount = amount.min(MAX_AMOUNT);
        if let Some(index) = meter.index() {
            self.built_in[index] = amount;
        } else if let Meter::Custom(name) = meter {
            let custom = &mut self.custom;
            match custom.binary_search_by_key(&name, |row| row.0) {
                Ok(at) if amount == 0 => drop(custom.remove(at)),
                Ok(at) => custom[at].1 = amount,
                Err(at) if amount > 0 => custom.insert(at, (name, amount)),
                Err(_) => {}
            }
        }
    }

    /// Whether all are zero.
    pub fn is_empty(&self) -> bool {
        *self == Self::NONE
    }

    /// Meters with an amount above zero, in canonical order.
    pub fn iter(&self) -> impl Iterator<Item = (Meter, u64)> {
        let built_in = Meter::BUILT_IN.into_iter().zip(self.built_in).filter(|&(_, amount)| amount > 0);
        built_in.chain(self.custom())
    }

    /// Those of a tenant's own meters.
    pub(crate) fn custom(&self) -> impl Iterator<Item = (Meter, u64)> {
        self.custom.iter().map(|&(name, amount)| (Meter::Custom(name), amount))
    }

    /// The sum, unless a meter's would be above [`MAX_AMOUNT`].
    pub fn checked_add(&self, more: &Self) -> Option<Self> {
        let mut sum = self.clone();
        for (meter, amount) in more.iter() {
            let added = sum.get(meter) + amount;
            if added > MAX_AMOUNT {
                return None;
            }
            sum.set(meter, added);
        }
        Some(sum)
    }

    /// The sum, each meter cut at [`MAX_AMOUNT`].
    pub(crate) fn saturating_add(&self, more: &Self) -> Self {
        let mut sum = self.clone();
        more.iter().for_each(|(meter, amount)| sum.set(meter, sum.get(meter) + amount));
        sum
    }

    /// The difference, nothing below zero.
    pub(crate) fn saturating_sub(&self, less: &Self) -> Self {
        let mut rest = self.clone();
        less.iter().for_each(|(meter, amount)| rest.set(meter, rest.get(meter).saturating_sub(amount)));
        rest
    }

    /// The lesser of both, meter by meter.
    pub(crate) fn min(&self, other: &Self) -> Self {
        let mut least = Self::NONE;
        self.iter().for_each(|(meter, amount)| least.set(meter, amount.min(other.get(meter))));
        least
    }
}

impl fmt::Debug for Amounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// A number for each of some meters, each at most [`MAX_GRANTED`]. Zero is a number too: a budget of nothing.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Allowance(Vec<(Meter, u64)>);

impl Allowance {
    /// Fails if a meter is named twice or has more than [`MAX_GRANTED`].
    pub fn new(granted: impl IntoIterator<Item = (Meter, u64)>) -> Result<Self, Fault> {
        let mut rows: Vec<_> = granted.into_iter().collect();
        rows.sort_unstable();
        if rows.iter().any(|row| row.1 > MAX_GRANTED) {
            return Err(Fault::OutOfRange { min: 0, max: MAX_GRANTED });
        }
        if rows.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(Fault::RepeatedMeter);
        }
        if rows.len() > MAX_METERS {
            return Err(Fault::TooLong { max: MAX_METERS });
        }
        Ok(Self(rows))
    }

    /// Whether no meter is named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of `meter`, if it is named.
    pub fn get(&self, meter: Meter) -> Option<u64> {
        self.0.iter().find(|row| row.0 == meter).map(|row| row.1)
    }

    /// Meters and their numbers, in canonical order.
    pub fn iter(&self) -> impl Iterator<Item = (Meter, u64)> {
        self.0.iter().copied()
    }
}

impl fmt::Debug for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Sums of amounts over many holds.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Totals {
    built_in: [u128; BUILT_IN],
    custom: Vec<(CustomMeter, u128)>,
}

impl Totals {
    /// The sum of `meter`.
    pub fn get(&self, meter: Meter) -> u128 {
        match (meter.index(), meter) {
            (Some(index), _) => self.built_in[index],
            (None, Meter::Custom(name)) => {
                self.custom.iter().find(|row| row.0 == name).map_or(0, |row| row.1)
            }
            (None, _) => 0,
        }
    }

    /// Meters with a sum above zero, in canonical order.
    pub fn iter(&self) -> impl Iterator<Item = (Meter, u128)> {
        let built_in = Meter::BUILT_IN.into_iter().zip(self.built_in).filter(|&(_, sum)| sum > 0);
        built_in.chain(self.custom.iter().map(|&(name, sum)| (Meter::Custom(name), sum)))
    }

    pub(crate) fn set(&mut self, meter: Meter, sum: u128) {
        if let Some(index) = meter.index() {
            self.built_in[index] = sum;
        } else if let Meter::Custom(name) = meter {
            match self.custom.binary_search_by_key(&name, |row| row.0) {
                Ok(at) if sum == 0 => drop(self.custom.remove(at)),
                Ok(at) => self.custom[at].1 = sum,
                Err(at) if sum > 0 => self.custom.insert(at, (name, sum)),
                Err(_) => {}
            }
        }
    }

    pub(crate) fn add(&mut self, amounts: &Amounts) {
        for (sum, amount) in self.built_in.iter_mut().zip(amounts.built_in) {
            *sum = sum.saturating_add(u128::from(amount));
        }
        amounts.custom().for_each(|(meter, amount)| {
            self.set(meter, self.get(meter).saturating_add(u128::from(amount)));
        });
    }

    pub(crate) fn sub(&mut self, amounts: &Amounts) {
        for (sum, amount) in self.built_in.iter_mut().zip(amounts.built_in) {
            *sum = sum.saturating_sub(u128::from(amount));
        }
        amounts.custom().for_each(|(meter, amount)| {
            self.set(meter, self.get(meter).saturating_sub(u128::from(amount)));
        });
    }
}

impl fmt::Debug for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_meter_is_found_by_its_name_and_in_its_place() {
        for (index, meter) in Meter::BUILT_IN.into_iter().enumerate() {
            assert_eq!(Meter::parse(meter.name()), Ok(meter));
            assert_eq!(meter.index(), Some(index));
        }
        let longest = "g".repeat(32);
        for name in ["gpu_ms", "x", &longest] {
            let meter = Meter::parse(name).unwrap();
            assert!(meter.is_custom() && meter.name() == name && meter > Meter::CostMicros);
        }
        for name in ["", "CPU_MS", "_x", "1x", "a-b", "é", &"g".repeat(33)] {
            assert_eq!(Meter::parse(name), Err(Fault::UnknownMeter), "{name:?}");
        }
    }

    #[test]
    fn amounts_add_up_to_the_limit_and_no_further() {
        let gpu = Meter::parse("gpu_ms").unwrap();
        let most = Amounts::new([(Meter::WallMs, MAX_AMOUNT), (gpu, MAX_AMOUNT)]).unwrap();
        let other = Amounts::new([(Meter::CpuMs, 7)]).unwrap();
        for meter in [Meter::WallMs, gpu] {
            let one = Amounts::new([(meter, 1)]).unwrap();
            assert_eq!(most.checked_add(&one), None);
            assert_eq!(most.saturating_add(&one), most);
            assert_eq!(Amounts::NONE.saturating_sub(&one), Amounts::NONE);
        }
        assert_eq!(
            most.checked_add(&other).unwrap().iter().collect::<Vec<_>>(),
            [(Meter::CpuMs, 7), (Meter::WallMs, MAX_AMOUNT), (gpu, MAX_AMOUNT)]
        );
        assert_eq!(most.saturating_sub(&most), Amounts::NONE);
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
