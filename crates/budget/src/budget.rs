//! One scope's budgets over one window: what they grant, what of it was used, and what remains.
//!
//! Usage is taken from what the budget itself grants first, then from its grants in order of priority, expiry and id; what nothing
//! covers is kept as uncovered until something does. Left out: what is held, which is the scope's ([`Usage`](crate::Usage)).
//!
//! Invariant, for each meter: `granted - spent = left - uncovered`, and `left` or `uncovered` is zero. With what is held,
//! `granted = available + held + spent - debt` follows.

use std::sync::Arc;

use crate::{
    event::Reached,
    id::Zone,
    meter::{Amounts, Meter},
    policy::{BudgetTerms, Enforcement, GrantTerms, Overage, Threshold, Window},
};

/// A balance: `granted = available + held + spent - debt`, and `available` or `debt` is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Granted in total, in the present window.
    pub granted: u128,
    /// Left for new holds.
    pub available: u128,
    /// In open holds.
    pub held: u128,
    /// Spent in the present window.
    pub spent: u128,
    /// Spent or held beyond what was granted.
    pub debt: u128,
    /// What the budget itself grants per window.
    pub allowance: u64,
    /// How much debt does not block.
    pub overdraft: u64,
    /// How much of what is left goes into the next window at most.
    pub rollover_cap: u64,
    /// Usage in the present window that was not charged.
    pub uncharged: u128,
}

/// A grant that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub(crate) terms: Arc<GrantTerms>,
    pub(crate) effective: bool,
    pub(crate) left: u64,
    /// Used in the present window.
    pub(crate) used: u64,
}

impl Grant {
    /// As it was added.
    pub fn terms(&self) -> &GrantTerms {
        &self.terms
    }

    /// Whether it has begun.
    pub fn effective(&self) -> bool {
        self.effective
    }

    /// What is left of it; 0 before it is effective.
    pub fn remaining(&self) -> u64 {
        self.left
    }

    /// In what order grants are used.
    fn rank(terms: &GrantTerms) -> (u32, u64, &str) {
        let expires = if terms.expires_ms == 0 { u64::MAX } else { terms.expires_ms };
        (terms.priority, expires, terms.grant_id.as_str())
    }
}

/// The budget of one meter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) meter: Meter,
    pub(crate) allowance: u64,
    pub(crate) overdraft: u64,
    pub(crate) rollover_cap: u64,
    /// What came from the window before, beside the allowance.
    pub(crate) rolled_in: u64,
    /// Used in the window of `allowance + rolled_in`.
    pub(crate) base_used: u64,
    /// In order of use.
    pub(crate) grants: Vec<Grant>,
    /// Used in the window of grants that have ended since.
    pub(crate) ended_used: u128,
    pub(crate) uncovered: u128,
    pub(crate) spent: u128,
    pub(crate) uncharged: u128,
    /// A bit for each threshold that was reached in the window.
    pub(crate) reached: u8,
}

impl Line {
    pub(crate) fn new(meter: Meter) -> Self {
        Self {
            meter,
            allowance: 0,
            overdraft: 0,
            rollover_cap: 0,
            rolled_in: 0,
            base_used: 0,
            grants: Vec::new(),
            ended_used: 0,
            uncovered: 0,
            spent: 0,
            uncharged: 0,
            reached: 0,
        }
    }

    pub(crate) fn base_left(&self) -> u64 {
        (self.allowance + self.rolled_in).saturating_sub(self.base_used)
    }

    pub(crate) fn left(&self) -> u128 {
        let grants = self.grants.iter().map(|grant| u128::from(grant.left));
        u128::from(self.base_left()) + grants.sum::<u128>()
    }

    pub(crate) fn granted(&self) -> u128 {
        let grants = self.grants.iter().map(|grant| u128::from(grant.left) + u128::from(grant.used));
        let base = u128::from(self.allowance) + u128::from(self.rolled_in);
        base.saturating_add(self.ended_used).saturating_add(grants.sum())
    }

    /// What is left beyond what was taken or is held, and what is missing to that.
    pub(crate) fn available_and_debt(&self, held: u128) -> (u128, u128) {
        let (left, taken) = (self.left(), self.uncovered.saturating_add(held));
        (left.saturating_sub(taken), taken.saturating_sub(left))
    }

    pub(crate) fn balance(&self, held: u128) -> Balance {
        let (available, debt) = self.available_and_debt(held);
        Balance {
            granted: self.granted(),
            available,
            held,
            spent: self.spent,
            debt,
            allowance: self.allowance,
            overdraft: self.overdraft,
            rollover_cap: self.rollover_cap,
            uncharged: self.uncharged,
        }
    }

    pub(crate) fn charge(&mut self, amount: u128) {
        self.spent = self.spent.saturating_add(amount);
        self.uncovered = self.uncovered.saturating_add(amount);
        self.cover();
    }

    fn cover(&mut self) {
        let taken = at_most(self.base_left(), self.uncovered);
        self.base_used += taken;
        self.uncovered -= u128::from(taken);
        for grant in &mut self.grants {
            if self.uncovered == 0 {
                return;
            }
            let taken = at_most(grant.left, self.uncovered);
            grant.left -= taken;
            grant.used += taken;
            self.uncovered -= u128::from(taken);
        }
    }

    /// Takes usage back: from what was not charged first, then from what nothing covers, from grants that have ended (which grant
    /// nothing any more), and from what was covered last.
    pub(crate) fn take_back(&mut self, amount: u128) {
        let uncharged = amount.min(self.uncharged);
        self.uncharged -= uncharged;
        let mut amount = (amount - uncharged).min(self.spent);
        self.spent -= amount;
        let uncovered = amount.min(self.uncovered);
        self.uncovered -= uncovered;
        amount -= uncovered;
        let ended = amount.min(self.ended_used);
        self.ended_used -= ended;
        amount -= ended;
        for grant in self.grants.iter_mut().rev() {
            let back = at_most(grant.used, amount);
            grant.used -= back;
            grant.left += back;
            amount -= u128::from(back);
        }
        self.base_used -= at_most(self.base_used, amount);
    }

    pub(crate) fn set_allowance(&mut self, allowance: u64) {
        self.allowance = allowance;
        let beyond = self.base_used.saturating_sub(allowance + self.rolled_in);
        self.base_used -= beyond;
        self.uncovered = self.uncovered.saturating_add(u128::from(beyond));
        self.cover();
    }

    pub(crate) fn add_grant(&mut self, terms: Arc<GrantTerms>, effective: bool) {
        let at = self.grants.partition_point(|grant| Grant::rank(&grant.terms) < Grant::rank(&terms));
        let left = if effective { terms.amount } else { 0 };
        self.grants.insert(at, Grant { terms, effective, left, used: 0 });
        self.cover();
    }

    pub(crate) fn begin_grant(&mut self, grant_id: &str) {
        if let Some(grant) = self.grants.iter_mut().find(|grant| grant.terms.grant_id.as_str() == grant_id)
            && !grant.effective
        {
            grant.effective = true;
            grant.left = grant.terms.amount;
            self.cover();
        }
    }

    pub(crate) fn end_grant(&mut self, grant_id: &str) {
        if let Some(at) = self.grants.iter().position(|grant| grant.terms.grant_id.as_str() == grant_id) {
            let grant = self.grants.remove(at);
            self.ended_used = self.ended_used.saturating_add(u128::from(grant.used));
        }
    }

    pub(crate) fn grant(&self, grant_id: &str) -> Option<&Grant> {
        self.grants.iter().find(|grant| grant.terms.grant_id.as_str() == grant_id)
    }

    fn roll(&mut self, carry_debt: bool) {
        self.rolled_in = self.base_left().min(self.rollover_cap);
        self.base_used = 0;
        for grant in &mut self.grants {
            if grant.terms.recurring && grant.effective {
                grant.left = grant.terms.amount + grant.left.min(grant.terms.rollover_cap);
            }
            grant.used = 0;
        }
        let debt = if carry_debt { self.uncovered } else { 0 };
        (self.ended_used, self.uncovered, self.spent, self.uncharged, self.reached) = (0, 0, 0, 0, 0);
        self.charge(debt);
    }

    /// Whether the line contradicts itself.
    pub(crate) fn is_sound(&self, thresholds: usize) -> bool {
        let used = self.grants.iter().map(|grant| u128::from(grant.used)).sum::<u128>();
        let covered = (u128::from(self.base_used) + used).saturating_add(self.ended_used);
        let grants = self.grants.iter().all(|grant| {
            let most = u128::from(grant.terms.amount) + u128::from(grant.terms.rollover_cap);
            u128::from(grant.left) + u128::from(grant.used) <= most
                && (grant.effective || grant.left + grant.used == 0)
        });
        let ordered =
            self.grants.windows(2).all(|pair| Grant::rank(&pair[0].terms) < Grant::rank(&pair[1].terms));
        covered.saturating_add(self.uncovered) == self.spent
            && (self.uncovered == 0 || self.left() == 0)
            && self.base_used <= self.allowance + self.rolled_in
            && u16::from(self.reached) < (1 << thresholds)
            && grants
            && ordered
    }
}

fn at_most(left: u64, wanted: u128) -> u64 {
    u64::try_from(wanted).map_or(left, |wanted| wanted.min(left))
}

/// A scope's budgets over one window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    pub(crate) window: Window,
    pub(crate) zone: Option<Zone>,
    pub(crate) enforcement: Enforcement,
    pub(crate) overage: Overage,
    pub(crate) carry_debt: bool,
    pub(crate) thresholds: Arc<[Threshold]>,
    pub(crate) start_ms: u64,
    pub(crate) end_ms: u64,
    /// In order of meters. Not empty, once it is set.
    pub(crate) lines: Vec<Line>,
}

impl Budget {
    pub(crate) fn new(window: Window) -> Self {
        Self {
            window,
            zone: None,
            enforcement: Enforcement::Hard,
            overage: Overage::Debt,
            carry_debt: false,
            thresholds: Arc::default(),
            start_ms: 0,
            end_ms: 0,
            lines: Vec::new(),
        }
    }

    /// The window.
    pub fn window(&self) -> Window {
        self.window
    }

    /// The zone of the window; none over all time.
    pub fn zone(&self) -> Option<&Zone> {
        self.zone.as_ref()
    }

    /// What they do with a hold that they do not cover.
    pub fn enforcement(&self) -> Enforcement {
        self.enforcement
    }

    /// What becomes of usage that they do not cover.
    pub fn overage(&self) -> Overage {
        self.overage
    }

    /// Whether debt goes into the next window.
    pub fn carry_debt(&self) -> bool {
        self.carry_debt
    }

    /// When they are reported.
    pub fn thresholds(&self) -> &[Threshold] {
        &self.thresholds
    }

    /// Beginning of the present window, milliseconds since the Unix epoch; 0 over all time.
    pub fn window_start_ms(&self) -> u64 {
        self.start_ms
    }

    /// End of the present window; 0 over all time.
    pub fn window_end_ms(&self) -> u64 {
        self.end_ms
    }

    /// The meters that are limited, in canonical order.
    pub fn meters(&self) -> impl Iterator<Item = Meter> {
        self.lines.iter().map(|line| line.meter)
    }

    /// Grants that have not ended, in order of meters and of use.
    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.lines.iter().flat_map(|line| &line.grants)
    }

    pub(crate) fn line(&self, meter: Meter) -> Option<&Line> {
        self.lines.iter().find(|line| line.meter == meter)
    }

    pub(crate) fn line_mut(&mut self, meter: Meter) -> Option<&mut Line> {
        self.lines.iter_mut().find(|line| line.meter == meter)
    }

    /// What a line has left for new holds, an overdraft included; `None` if its debt blocks them.
    pub(crate) fn headroom(&self, line: &Line, held: u128) -> Option<u128> {
        let (available, debt) = line.available_and_debt(held);
        let overdraft = if self.overage == Overage::Overdraft { u128::from(line.overdraft) } else { 0 };
        Some(available + overdraft.checked_sub(debt)?)
    }

    /// Sets it; new meters begin with what `spent_before` says.
    pub(crate) fn set(
        &mut self,
        terms: &BudgetTerms,
        window: (u64, u64),
        spent_before: impl Fn(Meter) -> u128,
    ) {
        let mut reached_before = Vec::new();
        if self.thresholds != terms.thresholds {
            let old = std::mem::replace(&mut self.thresholds, Arc::clone(&terms.thresholds));
            reached_before = old.to_vec();
        }
        self.zone.clone_from(&terms.zone);
        self.enforcement = terms.enforcement;
        self.overage = terms.overage;
        self.carry_debt = terms.carry_debt;
        (self.start_ms, self.end_ms) = window;
        if !reached_before.is_empty() {
            for line in &mut self.lines {
                // A threshold that stays was reached before, if it was.
                line.reached = (0..).zip(terms.thresholds.iter()).fold(0, |reached, (bit, threshold)| {
                    let old = reached_before.iter().position(|old| old == threshold);
                    reached | (old.map_or(0, |old| line.reached >> old & 1) << bit)
                });
            }
        }
        for (meter, allowance) in terms.granted.iter() {
            let at = self.lines.partition_point(|line| line.meter < meter);
            let is_new = self.lines.get(at).is_none_or(|line| line.meter != meter);
            if is_new {
                self.lines.insert(at, Line::new(meter));
            }
            let line = &mut self.lines[at];
            line.overdraft = terms.overdraft.get(meter).unwrap_or(0);
            line.rollover_cap = terms.rollover_cap.get(meter).unwrap_or(0);
            line.set_allowance(allowance);
            if is_new {
                line.charge(spent_before(meter));
            }
        }
    }

    pub(crate) fn roll(&mut self, start_ms: u64, end_ms: u64) {
        (self.start_ms, self.end_ms) = (start_ms, end_ms);
        let carry_debt = self.carry_debt;
        self.lines.iter_mut().for_each(|line| line.roll(carry_debt));
    }

    /// Takes down that a threshold was reported, so that it is not again in this window.
    pub(crate) fn mark(&mut self, reached: &Reached) {
        let bit = self.thresholds.iter().position(|threshold| *threshold == reached.threshold);
        if let (Some(bit), Some(line)) = (bit, self.line_mut(reached.meter)) {
            line.reached |= 1 << bit;
        }
    }

    /// Charges `used`, but for what `uncharged` says of each meter.
    pub(crate) fn charge(&mut self, used: &Amounts, uncharged: impl Fn(Window, Meter) -> u64) {
        let window = self.window;
        for line in &mut self.lines {
            let amount = used.get(line.meter);
            if amount > 0 {
                let uncharged = uncharged(window, line.meter).min(amount);
                line.uncharged = line.uncharged.saturating_add(u128::from(uncharged));
                line.charge(u128::from(amount - uncharged));
            }
        }
    }
}
