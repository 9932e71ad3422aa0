//! What the oracle says that time brings, and which thresholds are reached.
//!
//! Left out: what one sweep does at most.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use exchequer_budget::{
    Event, GrantId, HoldId, MAX_REACHED, Reached, ScopePath, TenantId, Threshold, Window,
};

use crate::{
    answers::{Asking, enclosing},
    clock,
    facts::Facts,
    names::WINDOWS,
    pots::Pots,
};

fn narrow(wide: u128) -> u64 {
    u64::try_from(wide).unwrap_or(u64::MAX)
}

/// The thresholds that a budget, as it is `after` something, reaches and had not. Numbers go on from `number`.
fn reached_of(
    after: &Facts,
    scope: &ScopePath,
    window: Window,
    now_ms: u64,
    number: &mut u64,
    changed: impl Fn(exchequer_budget::Meter, (u128, u128)) -> bool,
) -> Vec<Event> {
    let mut events = Vec::new();
    let Some(budget) = after.budget(scope, window) else { return events };
    let tenant = scope.tenant_id();
    for (&meter, pots) in &budget.lines {
        let (spent, granted) = (pots.spent, pots.granted());
        if !changed(meter, (spent, granted)) {
            continue;
        }
        for &threshold in budget.terms.thresholds.iter().filter(|at| !pots.reached.contains(at)) {
            let percent =
                |value: u128, percent: u32| value > 0 && value * 100 >= granted * u128::from(percent);
            let (length, elapsed) = (budget.end_ms - budget.start_ms, now_ms.saturating_sub(budget.start_ms));
            let (is_reached, forecast) = match threshold {
                Threshold::SpentPercent(of) => (percent(spent, of), 0),
                Threshold::SpentAmount(amount) => (spent >= amount.into(), 0),
                Threshold::ForecastPercent(_) if elapsed == 0 || elapsed < length.div_ceil(100) => (false, 0),
                Threshold::ForecastPercent(of) => {
                    let forecast = spent * u128::from(length) / u128::from(elapsed);
                    (percent(forecast, of), forecast)
                }
            };
            if is_reached {
                let notification = if after.has_webhook(&tenant) {
                    *number += 1;
                    *number
                } else {
                    0
                };
                events.push(Event::ThresholdReached(Arc::new(Reached {
                    scope: scope.clone(),
                    window,
                    meter,
                    window_start_ms: budget.start_ms,
                    threshold,
                    spent: narrow(spent),
                    granted: narrow(granted),
                    forecast: narrow(forecast),
                    notification,
                })));
            }
        }
    }
    events
}

fn last_number(facts: &Facts) -> u64 {
    facts.notified().keys().max().copied().unwrap_or(0)
}

/// The place of a grant that has not ended.
fn place_of(facts: &Facts, tenant: &TenantId, id: &GrantId) -> Option<(ScopePath, Window)> {
    facts.places().into_iter().filter(|place| place.0.tenant() == tenant.as_str()).find(|(scope, window)| {
        let budget = facts.budget(scope, *window);
        budget.is_some_and(|budget| budget.lines.values().any(|pots| pots.grant(id.as_str()).is_some()))
    })
}

impl Asking<'_> {
    /// What `event` reaches. Usage: where a budget changed by it. A change of a budget itself: all of that budget's.
    pub(crate) fn reached_by(&self, event: &Event) -> Vec<Event> {
        let after = self.facts.with(self.tenant, self.now_ms, event);
        let mut number = last_number(self.facts);
        let own = match event {
            Event::BudgetSet { scope, terms, .. } => Some((scope.clone(), terms.window)),
            Event::GrantAdded(terms) => Some((terms.scope.clone(), terms.window)),
            Event::GrantEnded { grant_id, .. } => place_of(self.facts, self.tenant, grant_id),
            _ => None,
        };
        if let Some((scope, window)) = own {
            return reached_of(&after, &scope, window, self.now_ms, &mut number, |_, _| true);
        }
        let scope = match event {
            Event::HoldSettled { scope, .. }
            | Event::LeaseDrawn { scope, .. }
            | Event::UsageReported { scope, .. } => scope,
            Event::UsageCorrected { correction, .. } => &correction.scope,
            _ => return Vec::new(),
        };
        let mut events = Vec::new();
        for scope in enclosing(scope) {
            for window in WINDOWS {
                let before = self.facts.budget(&scope, window);
                let changed = |meter, now| {
                    let line = before.as_ref().and_then(|budget| budget.lines.get(&meter));
                    line.is_some_and(|pots| (pots.spent, pots.granted()) != now)
                };
                events.extend(reached_of(&after, &scope, window, self.now_ms, &mut number, changed));
            }
        }
        assert!(events.len() <= MAX_REACHED, "these histories reach fewer at once");
        events
    }
}

/// What is due, in the order of time: holds first, then grants that end, windows, grants that begin.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    HoldEnds(HoldId),
    GrantEnds(TenantId, GrantId),
    WindowEnds(ScopePath, Window),
    GrantBegins(TenantId, GrantId),
}

/// What a sweep decides, tenant by tenant. What is due of a budget goes on from what came before it in the same sweep.
pub(crate) fn sweep(facts: &Facts, now_ms: u64) -> BTreeMap<TenantId, Vec<Event>> {
    let mut due = BTreeSet::new();
    for (hold_id, hold) in facts.holds() {
        if hold.is_open() {
            due.insert((hold.expires_ms, Due::HoldEnds(hold_id)));
        }
    }
    for (scope, window) in facts.places() {
        let Some(budget) = facts.budget(&scope, window) else { continue };
        for pot in budget.lines.values().flat_map(Pots::live) {
            let (tenant, id) = (scope.tenant_id(), pot.terms.grant_id.clone());
            if !pot.effective {
                due.insert((pot.terms.effective_ms, Due::GrantBegins(tenant.clone(), id.clone())));
            }
            if pot.terms.expires_ms > 0 {
                due.insert((pot.terms.expires_ms, Due::GrantEnds(tenant, id)));
            }
        }
        if window != Window::AllTime {
            due.insert((budget.end_ms, Due::WindowEnds(scope, window)));
        }
    }
    let mut number = last_number(facts);
    let mut facts = facts.clone();
    let mut swept: BTreeMap<TenantId, Vec<Event>> = BTreeMap::new();
    for (_, due) in due.into_iter().take_while(|(at_ms, _)| *at_ms <= now_ms) {
        let (place, event) = match due {
            Due::HoldEnds(hold_id) => {
                let tenant = facts.holds()[&hold_id].scope.tenant_id();
                swept.entry(tenant).or_default().push(Event::HoldExpired { hold_id });
                continue;
            }
            Due::GrantEnds(tenant, grant_id) => {
                let (scope, window) = place_of(&facts, &tenant, &grant_id).unwrap();
                let budget = facts.budget(&scope, window).unwrap();
                let pot = budget.lines.values().find_map(|pots| pots.grant(grant_id.as_str())).unwrap();
                let remainder = narrow(pot.left());
                ((scope, window), Event::GrantEnded { grant_id, revoked: false, remainder })
            }
            Due::GrantBegins(tenant, grant_id) => {
                let Some(place) = place_of(&facts, &tenant, &grant_id) else { continue };
                (place, Event::GrantBegun { grant_id })
            }
            Due::WindowEnds(scope, window) => {
                let budget = facts.budget(&scope, window).unwrap();
                let (start_ms, end_ms) = clock::window(window, budget.terms.zone.as_ref(), now_ms);
                let start_ms = start_ms.max(budget.end_ms);
                ((scope.clone(), window), Event::WindowRolled { scope, window, start_ms, end_ms })
            }
        };
        let (scope, window) = place;
        let tenant = scope.tenant_id();
        facts.tell(&tenant, now_ms, &event);
        let reached = reached_of(&facts, &scope, window, now_ms, &mut number, |_, _| true);
        for event in &reached {
            facts.tell(&tenant, now_ms, event);
        }
        let events = swept.entry(tenant).or_default();
        events.push(event);
        events.extend(reached);
    }
    swept
}
