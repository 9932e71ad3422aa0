//! What tenants and administrators set: budgets, grants, limits, prices, meters, webhooks.

use std::sync::Arc;

use super::{Asked, refused_field, usage::followed_by};
use crate::{
    budget::Budget,
    calendar,
    command::Action,
    event::{Event, Refusal},
    id::GrantId,
    meter::{MAX_CUSTOM_METERS, Meter},
    policy::{BudgetTerms, GrantTerms, Price, RateLimit, Window},
    scope::ScopePath,
    state::{Node, Tenant},
};

/// Scopes and windows of a tenant with budgets, at most.
pub const MAX_BUDGETS: usize = 100_000;
/// Grants of a budget that have not ended, at most.
pub const MAX_GRANTS_PER_BUDGET: usize = 64;
/// Grants of a tenant that have not ended, at most.
pub const MAX_GRANTS: usize = 65_536;
/// Rate limits of a tenant at most.
pub const MAX_RATE_LIMITS: usize = 4_096;
/// Limits on open holds of a tenant at most.
pub const MAX_CONCURRENCY_LIMITS: usize = 4_096;
/// Prices of a tenant at most.
pub const MAX_PRICES: usize = 4_096;

impl Asked<'_> {
    pub(super) fn configure(&self) -> Vec<Event> {
        let event = match self.command.action() {
            Action::SetBudget { scope, terms } => return self.set_budget(scope, terms),
            Action::RemoveBudget { scope, window, meters } => self.remove_budget(scope, *window, meters),
            Action::AddGrant(terms) => return self.add_grant(terms),
            Action::RevokeGrant { grant_id } => return self.revoke_grant(grant_id),
            Action::SetRateLimit(limit) => self.set_rate_limit(limit),
            Action::SetConcurrencyLimit { scope, max_open_holds } => {
                let is_new = self.node(scope).is_none_or(|node| node.max_open_holds == 0);
                let is_full = self.count(|tenant| tenant.concurrency_limits) >= MAX_CONCURRENCY_LIMITS;
                if *max_open_holds > 0 && is_new && is_full {
                    refused_field(Refusal::TooMany, "limit")
                } else if let Some(refused) =
                    self.too_many_scopes(scope, "limit.scope").filter(|_| *max_open_holds > 0)
                {
                    refused
                } else {
                    Event::ConcurrencyLimitSet { scope: scope.clone(), max_open_holds: *max_open_holds }
                }
            }
            Action::SetPrice(price) => self.set_price(price),
            Action::DefineMeter { meter, description } => {
                let is_new = !self.state.defines(self.command.tenant(), *meter);
                if is_new && self.count(|tenant| tenant.meters.len()) >= MAX_CUSTOM_METERS {
                    refused_field(Refusal::TooMany, "meter")
                } else {
                    let tenant = self.command.tenant().clone();
                    Event::MeterDefined { tenant, meter: *meter, description: description.clone() }
                }
            }
            Action::SetWebhook { url } => {
                Event::WebhookSet { tenant: self.command.tenant().clone(), url: url.clone() }
            }
            Action::EndNotification { notification, delivered, attempts, detail } => {
                let waits = self.state.notifications.get(notification);
                if waits.is_some_and(|one| one.scope.tenant() == self.command.tenant().as_str()) {
                    Event::NotificationEnded {
                        notification: *notification,
                        delivered: *delivered,
                        attempts: *attempts,
                        detail: detail.clone(),
                    }
                } else {
                    refused_field(Refusal::UnknownNotification, "notification")
                }
            }
            _ => unreachable!("asked for settings only"),
        };
        vec![event]
    }

    fn node(&self, scope: &ScopePath) -> Option<&Node> {
        self.state.number(scope.as_str()).map(|number| &self.state.nodes[number])
    }

    fn count(&self, count: impl Fn(&Tenant) -> usize) -> usize {
        self.state.tenants.get(self.command.tenant()).map_or(0, count)
    }

    fn unknown(&self, meter: Meter, field: &str) -> Option<Event> {
        let known = self.state.defines(self.command.tenant(), meter);
        (!known).then(|| refused_field(Refusal::UnknownMeter, field))
    }

    fn set_budget(&self, scope: &ScopePath, terms: &Arc<BudgetTerms>) -> Vec<Event> {
        if let Some(refused) = terms.granted.iter().find_map(|(meter, _)| self.unknown(meter, "granted")) {
            return vec![refused];
        }
        let node = self.node(scope);
        let before = node.and_then(|node| node.budget(terms.window));
        if before.is_none() && self.count(|tenant| tenant.budgets) >= MAX_BUDGETS {
            return vec![refused_field(Refusal::TooMany, "scope")];
        }
        if let Some(refused) = self.too_many_scopes(scope, "scope") {
            return vec![refused];
        }
        let (start_ms, end_ms) = calendar::window(terms.window, terms.zone.as_ref(), self.now_ms);
        let set = Event::BudgetSet { scope: scope.clone(), terms: Arc::clone(terms), start_ms, end_ms };
        let mut after = before.cloned().unwrap_or_else(|| Budget::new(terms.window));
        let spent = node.filter(|_| terms.window == Window::AllTime).map(|node| &node.usage.spent);
        after.set(terms, (start_ms, end_ms), |meter| spent.map_or(0, |spent| spent.get(meter)));
        followed_by(set, self.reached_after(scope, &after))
    }

    fn remove_budget(&self, scope: &ScopePath, window: Window, meters: &[Meter]) -> Event {
        let Some(budget) = self.node(scope).and_then(|node| node.budget(window)) else {
            return refused_field(Refusal::UnknownBudget, "scope");
        };
        let mut meters = if meters.is_empty() { budget.meters().collect() } else { meters.to_vec() };
        meters.sort_unstable();
        meters.dedup();
        if meters.iter().any(|&meter| budget.line(meter).is_none()) {
            return refused_field(Refusal::UnknownBudget, "meters");
        }
        Event::BudgetRemoved { scope: scope.clone(), window, meters }
    }

    fn add_grant(&self, asked: &Arc<GrantTerms>) -> Vec<Event> {
        let refused = |refusal, field| vec![refused_field(refusal, field)];
        let terms = if asked.effective_ms == 0 {
            Arc::new(GrantTerms { effective_ms: self.now_ms, ..GrantTerms::clone(asked) })
        } else {
            Arc::clone(asked)
        };
        if terms.expires_ms != 0 && terms.expires_ms <= self.now_ms {
            return refused(Refusal::Time, "grant.expires_unix_ms");
        }
        let Some(budget) = self.node(&terms.scope).and_then(|node| node.budget(terms.window)) else {
            return refused(Refusal::UnknownBudget, "grant.scope");
        };
        let Some(line) = budget.line(terms.meter) else {
            return refused(Refusal::UnknownBudget, "grant.meter");
        };
        let (tenant, grant_id) = (self.command.tenant(), &terms.grant_id);
        let known = self.state.tenants.get(tenant).is_some_and(|kept| kept.grants.contains_key(grant_id));
        if known || self.past.has_grant(tenant, grant_id) {
            return refused(Refusal::GrantExists, "grant.grant_id");
        }
        let is_full = self.count(|tenant| tenant.live_grants) >= MAX_GRANTS;
        if is_full || line.grants.len() >= MAX_GRANTS_PER_BUDGET {
            return refused(Refusal::TooMany, "grant");
        }
        let mut after = budget.clone();
        if let Some(line) = after.line_mut(terms.meter) {
            line.add_grant(Arc::clone(&terms), terms.effective_ms <= self.now_ms);
        }
        let reached = self.reached_after(&terms.scope, &after);
        followed_by(Event::GrantAdded(terms), reached)
    }

    fn revoke_grant(&self, grant_id: &GrantId) -> Vec<Event> {
        let place = self.state.place(self.command.tenant(), grant_id);
        let found = place.and_then(|place| {
            let node = &self.state.nodes[place.node];
            let budget = node.budget(place.window)?;
            Some((node, budget, place.meter, budget.line(place.meter)?.grant(grant_id.as_str())?))
        });
        let Some((node, budget, meter, grant)) = found else {
            return vec![refused_field(Refusal::UnknownGrant, "grant_id")];
        };
        let mut after = budget.clone();
        if let Some(line) = after.line_mut(meter) {
            line.end_grant(grant_id.as_str());
        }
        let ended =
            Event::GrantEnded { grant_id: grant_id.clone(), revoked: true, remainder: grant.remaining() };
        followed_by(ended, self.reached_after(&node.path, &after))
    }

    fn set_rate_limit(&self, limit: &RateLimit) -> Event {
        if let Some(refused) = self.unknown(limit.meter, "limit.meter") {
            return refused;
        }
        let node = self.node(&limit.scope);
        let is_new = node.is_none_or(|node| node.rates.iter().all(|(meter, _)| *meter != limit.meter));
        if limit.amount > 0 && is_new && self.count(|tenant| tenant.rate_limits) >= MAX_RATE_LIMITS {
            return refused_field(Refusal::TooMany, "limit");
        }
        let crowded = self.too_many_scopes(&limit.scope, "limit.scope").filter(|_| limit.amount > 0);
        crowded.unwrap_or_else(|| Event::RateLimitSet(limit.clone()))
    }

    fn set_price(&self, price: &Price) -> Event {
        if let Some(refused) = self.unknown(price.meter, "price.meter") {
            return refused;
        }
        let node = self.node(&price.scope);
        let is_new = node.is_none_or(|node| node.prices.iter().all(|(meter, _)| *meter != price.meter));
        if price.per > 0 && is_new && self.count(|tenant| tenant.prices) >= MAX_PRICES {
            return refused_field(Refusal::TooMany, "price");
        }
        let crowded = self.too_many_scopes(&price.scope, "price.scope").filter(|_| price.per > 0);
        crowded.unwrap_or_else(|| Event::PriceSet(price.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command::Command,
        decide::{Decided, decide},
        id::Subject,
        past::Past,
        state::State,
    };

    #[test]
    fn a_tenant_has_no_more_grants_than_it_may_have_however_many_budgets() {
        let scope = ScopePath::parse("acme").unwrap();
        let tenant = scope.tenant_id();
        let mut state = State::default();
        let ask = |state: &mut State, action| {
            let command = Command::new(tenant.clone(), Subject::metering(), None, action).unwrap();
            match decide(state, &Past::default(), &command, 0).unwrap() {
                Decided::New(decision) => decision,
                other => panic!("{other:?}"),
            }
        };
        let granted = crate::Allowance::new([(Meter::CpuMs, 1)]).unwrap();
        let set = Action::SetBudget { scope: scope.clone(), terms: Arc::new(BudgetTerms::all_time(granted)) };
        let decision = ask(&mut state, set);
        state.record(&decision, &tenant, 0);
        let add = Action::AddGrant(Arc::new(GrantTerms {
            grant_id: GrantId::parse("g").unwrap(),
            scope: scope.clone(),
            window: Window::AllTime,
            meter: Meter::CpuMs,
            amount: 1,
            priority: 0,
            effective_ms: 0,
            expires_ms: 0,
            recurring: false,
            rollover_cap: 0,
        }));
        for (live_grants, is_full) in [(MAX_GRANTS - 1, false), (MAX_GRANTS, true)] {
            state.tenants.get_mut(&tenant).unwrap().live_grants = live_grants;
            let events = ask(&mut state, add.clone()).events;
            assert_eq!(events[0] == refused_field(Refusal::TooMany, "grant"), is_full, "{events:?}");
        }
    }
}
