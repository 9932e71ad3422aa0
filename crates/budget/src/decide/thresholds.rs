//! Which thresholds are reached by what was decided: each once per window, in the same decision.
//!
//! Left out: delivering them. A forecast is `spent * length of the window / elapsed`, rounded down, and is not made before one
//! hundredth of the window has passed.

use std::{collections::HashMap, sync::Arc};

use super::{Asked, admission::narrow};
use crate::{
    budget::{Budget, Line},
    event::{Event, Reached, Uncharged},
    id::TenantId,
    meter::{Amounts, Meter},
    policy::Threshold,
    scope::ScopePath,
    state::State,
};

/// Thresholds that one decision reports at most; more are reported when the budget changes next.
pub const MAX_REACHED: usize = 32;
/// Notifications of a tenant that wait at most; what is reached beyond is recorded without a number and delivered nowhere.
pub const MAX_NOTIFICATIONS: usize = 1024;

/// How usage changes what is spent.
pub(super) enum Spent<'a> {
    More { used: &'a Amounts, uncharged: &'a [Uncharged] },
    Less(&'a Amounts),
}

/// Gives notifications their numbers, over the decisions of one block's part.
pub(crate) struct Numbers<'a> {
    state: &'a State,
    last: u64,
    given: HashMap<TenantId, usize>,
}

impl<'a> Numbers<'a> {
    pub(crate) fn new(state: &'a State) -> Self {
        Self { state, last: state.last_notification, given: HashMap::new() }
    }

    fn next(&mut self, tenant: &TenantId) -> u64 {
        let Some(kept) = self.state.tenants.get(tenant).filter(|kept| kept.webhook.is_some()) else {
            return 0;
        };
        let given = self.given.entry(tenant.clone()).or_default();
        if kept.waiting + *given >= MAX_NOTIFICATIONS {
            return 0;
        }
        *given += 1;
        self.last = self.last.saturating_add(1);
        self.last
    }
}

/// A line as it will be.
pub(crate) struct After<'a> {
    pub(crate) scope: &'a ScopePath,
    pub(crate) budget: &'a Budget,
    pub(crate) meter: Meter,
    pub(crate) reached: u8,
    pub(crate) spent: u128,
    pub(crate) granted: u128,
}

impl<'a> After<'a> {
    pub(crate) fn of(scope: &'a ScopePath, budget: &'a Budget, line: &Line) -> Self {
        let (spent, granted) = (line.spent, line.granted());
        Self { scope, budget, meter: line.meter, reached: line.reached, spent, granted }
    }

    /// Adds the thresholds that are reached and were not, up to [`MAX_REACHED`].
    pub(crate) fn report(&self, now_ms: u64, numbers: &mut Numbers<'_>, out: &mut Vec<Event>) {
        for (bit, &threshold) in self.budget.thresholds.iter().enumerate() {
            if self.reached >> bit & 1 == 1 || out.len() >= MAX_REACHED {
                continue;
            }
            let Some(forecast) = self.reaches(threshold, now_ms) else { continue };
            out.push(Event::ThresholdReached(Arc::new(Reached {
                scope: self.scope.clone(),
                window: self.budget.window,
                meter: self.meter,
                window_start_ms: self.budget.start_ms,
                threshold,
                spent: narrow(self.spent),
                granted: narrow(self.granted),
                forecast: narrow(forecast),
                notification: numbers.next(&self.scope.tenant_id()),
            })));
        }
    }

    /// The forecast, or zero for another threshold, if it is reached.
    fn reaches(&self, threshold: Threshold, now_ms: u64) -> Option<u128> {
        let reaches = |value: u128, percent: u32| {
            value > 0 && value.saturating_mul(100) >= self.granted.saturating_mul(u128::from(percent))
        };
        match threshold {
            Threshold::SpentPercent(percent) => reaches(self.spent, percent).then_some(0),
            Threshold::SpentAmount(amount) => (self.spent >= u128::from(amount)).then_some(0),
            Threshold::ForecastPercent(percent) => {
                let elapsed = u128::from(now_ms.saturating_sub(self.budget.start_ms));
                let length = u128::from(self.budget.end_ms.saturating_sub(self.budget.start_ms));
                if elapsed == 0 || elapsed * 100 < length {
                    return None;
                }
                let forecast = self.spent.saturating_mul(length) / elapsed;
                reaches(forecast, percent).then_some(forecast)
            }
        }
    }
}

/// Adds what all lines of a budget, as it will be, report.
pub(crate) fn report_all(
    scope: &ScopePath,
    after: &Budget,
    now_ms: u64,
    numbers: &mut Numbers<'_>,
    out: &mut Vec<Event>,
) {
    if !after.thresholds.is_empty() {
        after.lines.iter().for_each(|line| After::of(scope, after, line).report(now_ms, numbers, out));
    }
}

impl Asked<'_> {
    /// The thresholds that are reached by usage at `scope`.
    pub(super) fn reached_by(&self, scope: &ScopePath, spent: &Spent<'_>) -> Vec<Event> {
        let mut out = Vec::new();
        let mut numbers = None;
        for &number in self.state.around(scope).numbers() {
            let node = &self.state.nodes[number];
            for budget in node.budgets.iter().filter(|budget| !budget.thresholds.is_empty()) {
                let amounts = match spent {
                    Spent::More { used: amounts, .. } | Spent::Less(amounts) => amounts,
                };
                // Other lines do not change, and need not be summed up over their grants.
                for line in budget.lines.iter().filter(|line| amounts.get(line.meter) > 0) {
                    let mut after = After::of(&node.path, budget, line);
                    match spent {
                        Spent::More { used, uncharged } => {
                            let is_it = |row: &&Uncharged| {
                                (&row.scope, row.window, row.meter) == (&node.path, budget.window, line.meter)
                            };
                            let uncharged = uncharged.iter().find(is_it).map_or(0, |row| row.amount);
                            let charged = used.get(line.meter).saturating_sub(uncharged);
                            after.spent = after.spent.saturating_add(u128::from(charged));
                        }
                        Spent::Less(amounts) => {
                            let mut line = line.clone();
                            line.take_back(u128::from(amounts.get(line.meter)));
                            (after.spent, after.granted) = (line.spent, line.granted());
                        }
                    }
                    let changed = (after.spent, after.granted) != (line.spent, line.granted());
                    if changed {
                        let numbers = numbers.get_or_insert_with(|| Numbers::new(self.state));
                        after.report(self.now_ms, numbers, &mut out);
                    }
                }
            }
        }
        out
    }

    /// The thresholds that are reached by another change of a budget.
    pub(super) fn reached_after(&self, scope: &ScopePath, after: &Budget) -> Vec<Event> {
        let mut out = Vec::new();
        report_all(scope, after, self.now_ms, &mut Numbers::new(self.state), &mut out);
        out
    }
}
