//! What a tenant can set: budgets, grants, limits and prices, as commands ask for them and events record them.
//!
//! Left out: how they stand ([`crate::Budget`]). A value may contradict itself until [`Command::new`](crate::Command::new) or the
//! strict decoding has looked at it.

use std::sync::Arc;

use crate::{
    fault::{Fault, Invalid},
    id::{GrantId, Label, Zone},
    meter::{Allowance, Amounts, MAX_AMOUNT, Meter},
    scope::ScopePath,
};

/// Thresholds of a budget at most.
pub const MAX_THRESHOLDS: usize = 8;
/// The most that a grant adds, and rolls over: so that all of a budget's grants together stay below 2^63.
pub const MAX_GRANT: u64 = 1 << 55;
/// The longest period of a rate limit, milliseconds.
pub const MAX_PERIOD_MS: u64 = 86_400_000;
/// The most that a threshold can be in percent.
pub const MAX_PERCENT: u32 = 1_000;

/// The time over which a budget counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Window {
    /// All time.
    #[default]
    AllTime,
    /// An hour of the zone's clock.
    Hour,
    /// A day of the zone's calendar.
    Day,
    /// A week from Monday.
    Week,
    /// A month of the zone's calendar.
    Month,
}

/// What a budget does with a hold that it does not cover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enforcement {
    /// Refuses it.
    #[default]
    Hard,
    /// Grants it, tells the caller, and records it.
    Soft,
    /// Grants it and records it.
    Shadow,
}

/// What becomes of usage that a budget does not cover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overage {
    /// It is debt, which blocks new holds.
    #[default]
    Debt,
    /// It is not charged.
    Cap,
    /// It is debt, which blocks new holds beyond the overdraft only.
    Overdraft,
}

/// A point at which a budget is reported once per window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threshold {
    /// Spent, in percent of what is granted: 1 to 1000.
    SpentPercent(u32),
    /// Spent, absolute: 1 to [`MAX_GRANTED`](crate::MAX_GRANTED).
    SpentAmount(u64),
    /// Spent by the window's end if it goes on like this, in percent of what is granted: 1 to 1000.
    ForecastPercent(u32),
}

/// A scope's budgets over one window. Everything but the three lists is the same for all meters of the scope over this window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BudgetTerms {
    /// The window.
    pub window: Window,
    /// Its zone; none over all time.
    pub zone: Option<Zone>,
    /// What is granted per window. Not empty; meters that are not named keep what they had.
    pub granted: Allowance,
    /// With [`Overage::Overdraft`]: how much debt does not block. Names meters of `granted`.
    pub overdraft: Allowance,
    /// How much of what is left of `granted` goes into the next window at most. Names meters of `granted`.
    pub rollover_cap: Allowance,
    /// What they do with a hold that they do not cover.
    pub enforcement: Enforcement,
    /// What becomes of usage that they do not cover.
    pub overage: Overage,
    /// Whether debt goes into the next window, as spent there.
    pub carry_debt: bool,
    /// When they are reported.
    pub thresholds: Arc<[Threshold]>,
}

impl BudgetTerms {
    /// Budgets over all time that refuse what they do not cover and owe what was used beyond.
    pub fn all_time(granted: Allowance) -> Self {
        Self { granted, ..Self::default() }
    }

    /// Whether the terms fit each other. The zone is not looked up.
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        if self.granted.is_empty() {
            return Err(Fault::Empty.at("granted"));
        }
        if (self.window == Window::AllTime) != self.zone.is_none() {
            let fault = if self.zone.is_some() { Fault::Unexpected } else { Fault::Missing };
            return Err(fault.at("time_zone"));
        }
        for (field, named) in [("overdraft", &self.overdraft), ("rollover_cap", &self.rollover_cap)] {
            if named.iter().any(|(meter, _)| self.granted.get(meter).is_none()) {
                return Err(Fault::Unexpected.at(field));
            }
        }
        if self.overage != Overage::Overdraft && !self.overdraft.is_empty() {
            return Err(Fault::Unexpected.at("overdraft"));
        }
        if self.window == Window::AllTime {
            if !self.rollover_cap.is_empty() {
                return Err(Fault::Unexpected.at("rollover_cap"));
            }
            if self.carry_debt {
                return Err(Fault::Unexpected.at("carry_debt"));
            }
        }
        if self.thresholds.len() > MAX_THRESHOLDS {
            return Err(Fault::TooLong { max: MAX_THRESHOLDS }.at("thresholds"));
        }
        for (at, threshold) in self.thresholds.iter().enumerate() {
            let field = |name: &str| format!("thresholds[{at}]{name}");
            let percent = Fault::OutOfRange { min: 1, max: u64::from(MAX_PERCENT) };
            let amount = Fault::OutOfRange { min: 1, max: crate::MAX_GRANTED };
            match *threshold {
                Threshold::SpentPercent(value) if !(1..=MAX_PERCENT).contains(&value) => {
                    return Err(percent.at(field(".spent_percent")));
                }
                Threshold::SpentAmount(value) if !(1..=crate::MAX_GRANTED).contains(&value) => {
                    return Err(amount.at(field(".spent_amount")));
                }
                Threshold::ForecastPercent(_) if self.window == Window::AllTime => {
                    return Err(Fault::Unexpected.at(field(".forecast_percent")));
                }
                Threshold::ForecastPercent(value) if !(1..=MAX_PERCENT).contains(&value) => {
                    return Err(percent.at(field(".forecast_percent")));
                }
                _ if self.thresholds[..at].contains(threshold) => {
                    return Err(Fault::Repeated.at(field("")));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A grant as it was added. Times are milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantTerms {
    /// Its id.
    pub grant_id: GrantId,
    /// Scope of the budget.
    pub scope: ScopePath,
    /// Window of the budget.
    pub window: Window,
    /// Meter of the budget.
    pub meter: Meter,
    /// How much: 1 to [`MAX_GRANT`].
    pub amount: u64,
    /// A lower one is used first.
    pub priority: u32,
    /// From when on. In a command, 0 means now.
    pub effective_ms: u64,
    /// Until when; 0 for no end.
    pub expires_ms: u64,
    /// Whether it is granted anew in each window.
    pub recurring: bool,
    /// If it recurs: how much of what is left goes into the next window at most.
    pub rollover_cap: u64,
}

impl GrantTerms {
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        if !(1..=MAX_GRANT).contains(&self.amount) {
            return Err(Fault::OutOfRange { min: 1, max: MAX_GRANT }.at("amount"));
        }
        if self.expires_ms != 0 && self.expires_ms <= self.effective_ms {
            return Err(Fault::NotLater.at("expires_unix_ms"));
        }
        if self.recurring && self.window == Window::AllTime {
            return Err(Fault::Unexpected.at("recurring"));
        }
        if self.rollover_cap > 0 && !self.recurring {
            return Err(Fault::Unexpected.at("rollover_cap"));
        }
        if self.rollover_cap > MAX_GRANT {
            return Err(Fault::OutOfRange { min: 0, max: MAX_GRANT }.at("rollover_cap"));
        }
        Ok(())
    }
}

/// A rate limit (GCRA): `amount` per `period_ms` on average, `burst` at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The scope.
    pub scope: ScopePath,
    /// The meter.
    pub meter: Meter,
    /// How much per period, at most [`MAX_AMOUNT`]; 0 removes the limit.
    pub amount: u64,
    /// The period: 1 to [`MAX_PERIOD_MS`].
    pub period_ms: u64,
    /// How much at once: 1 to [`MAX_AMOUNT`].
    pub burst: u64,
}

impl RateLimit {
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        if self.amount == 0 {
            return match (self.period_ms, self.burst) {
                (0, 0) => Ok(()),
                (0, _) => Err(Fault::Unexpected.at("burst")),
                _ => Err(Fault::Unexpected.at("period_ms")),
            };
        }
        if self.amount > MAX_AMOUNT {
            return Err(Fault::OutOfRange { min: 0, max: MAX_AMOUNT }.at("amount"));
        }
        if !(1..=MAX_PERIOD_MS).contains(&self.period_ms) {
            return Err(Fault::OutOfRange { min: 1, max: MAX_PERIOD_MS }.at("period_ms"));
        }
        if !(1..=MAX_AMOUNT).contains(&self.burst) {
            return Err(Fault::OutOfRange { min: 1, max: MAX_AMOUNT }.at("burst"));
        }
        Ok(())
    }
}

/// A price of a meter below a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// The scope.
    pub scope: ScopePath,
    /// The meter; not the cost itself.
    pub meter: Meter,
    /// Millionths of the currency's unit per `per` of the meter, at most [`MAX_AMOUNT`]; 0 makes it free.
    pub micros: u64,
    /// How much `micros` buys, at most [`MAX_AMOUNT`]; 0 removes the price.
    pub per: u64,
}

impl Price {
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        if self.meter == Meter::CostMicros {
            return Err(Fault::Unexpected.at("meter"));
        }
        if self.per == 0 && self.micros != 0 {
            return Err(Fault::Unexpected.at("micros"));
        }
        for (field, value) in [("micros", self.micros), ("per", self.per)] {
            if value > MAX_AMOUNT {
                return Err(Fault::OutOfRange { min: 0, max: MAX_AMOUNT }.at(field));
            }
        }
        Ok(())
    }
}

/// What usage belongs to, beside its scope. Never empty as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The agent.
    pub agent_id: Option<Label>,
    /// The skill.
    pub skill: Option<Label>,
    /// The execution.
    pub execution_id: Option<Label>,
    /// When it was used, milliseconds since the Unix epoch; 0 for when it is recorded.
    pub used_ms: u64,
}

impl Source {
    /// Itself, unless it says nothing.
    pub fn told(self) -> Option<Arc<Self>> {
        (self != Self::default()).then(|| Arc::new(self))
    }
}

/// A correction of usage by a compensating entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Correction {
    /// The scope.
    pub scope: ScopePath,
    /// What is taken back, or added. Not empty.
    pub amounts: Amounts,
    /// Whether it is added.
    pub added: bool,
    /// Why.
    pub reason: Label,
    /// The hold or key that it corrects.
    pub reference: Option<Label>,
    /// What it belongs to.
    pub source: Option<Arc<Source>>,
}
