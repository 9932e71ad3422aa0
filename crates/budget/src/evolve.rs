//! Applies events. Total: an event that contradicts the state (a hold unknown, closed or granted before, a budget that is not there)
//! changes nothing, or only what makes sense of it; `decide` makes none.
//!
//! What is charged, and when a window begins and ends, is what the event says: nothing is decided again.

use std::sync::Arc;

use crate::{
    budget::Budget,
    event::{Event, Reached, Uncharged},
    id::{GrantId, HoldId, TenantId},
    meter::{Amounts, Meter},
    policy::{BudgetTerms, Correction, GrantTerms, Price, RateLimit, Window},
    rate::Rate,
    scope::ScopePath,
    state::{Hold, HoldStatus, NodeId, Place, Retiring, State, Tenant, Timer},
};

/// What a hold takes of a rate limit: "invocations" counts 1 for a new hold that names none.
pub(crate) fn rate_units(meter: Meter, amounts: &Amounts, is_new: bool) -> u64 {
    match amounts.get(meter) {
        0 if is_new && meter == Meter::Invocations => 1,
        amount => amount,
    }
}

impl State {
    pub(crate) fn evolve(&mut self, tenant: &TenantId, event: &Event) {
        match event {
            Event::BudgetSet { scope, terms, start_ms, end_ms } => {
                self.set_budget(tenant, scope, terms, (*start_ms, *end_ms));
            }
            Event::BudgetRemoved { scope, window, meters } => {
                self.remove_budget(tenant, scope, *window, meters);
            }
            Event::GrantAdded(terms) => self.add_grant(tenant, terms),
            Event::GrantBegun { grant_id } => self.begin_grant(tenant, grant_id),
            Event::GrantEnded { grant_id, .. } => self.end_grant(tenant, grant_id),
            Event::WindowRolled { scope, window, start_ms, end_ms } => {
                self.roll(scope, *window, *start_ms, *end_ms);
            }
            Event::HoldGranted { hold_id, scope, holder, amounts, expires_ms, lease, .. } => {
                let hold = Hold {
                    scope: scope.clone(),
                    holder: holder.clone(),
                    amounts: amounts.clone(),
                    used: Amounts::NONE,
                    expires_ms: *expires_ms,
                    lease: *lease,
                    revoked: false,
                    status: HoldStatus::Open,
                    granted_seq: 0,
                };
                self.grant_hold(hold_id, hold);
            }
            Event::HoldExtended { hold_id, added, expires_ms, .. } => {
                self.extend_hold(hold_id, added, *expires_ms);
            }
            Event::HoldSettled { hold_id, used, uncharged, .. } => {
                self.settle_hold(hold_id, used, uncharged);
            }
            Event::LeaseDrawn { hold_id, used, uncharged, .. } => self.draw(hold_id, used, uncharged),
            Event::HoldVoided { hold_id } => self.give_back(hold_id, HoldStatus::Voided),
            Event::HoldExpired { hold_id } => self.give_back(hold_id, HoldStatus::Expired),
            Event::HoldRevoked { hold_id, .. } => {
                if let Some(hold) = self.holds.get_mut(hold_id) {
                    hold.revoked = true;
                }
            }
            Event::UsageReported { scope, used, uncharged, .. } => {
                let number = self.numbered(scope);
                self.spend(number, used, uncharged);
            }
            Event::UsageCorrected { correction, uncharged } => self.correct(correction, uncharged),
            Event::RateLimitSet(limit) => self.set_rate_limit(tenant, limit),
            Event::ConcurrencyLimitSet { scope, max_open_holds } => {
                if *max_open_holds == 0 && self.number(scope.as_str()).is_none() {
                    return;
                }
                let number = self.numbered(scope);
                let before = std::mem::replace(&mut self.nodes[number].max_open_holds, *max_open_holds);
                self.tenant(tenant).concurrency_limits += usize::from(*max_open_holds > 0);
                self.tenant(tenant).concurrency_limits -= usize::from(before > 0);
                self.reindex(number);
            }
            Event::PriceSet(price) => self.set_price(tenant, price),
            Event::MeterDefined { meter, description, .. } => {
                self.tenant(tenant).meters.insert(*meter, description.clone());
            }
            Event::WebhookSet { url, .. } => self.tenant(tenant).webhook.clone_from(url),
            Event::ThresholdReached(reached) => self.reach(tenant, reached),
            Event::NotificationEnded { notification, .. } => {
                if let Some(ended) = self.notifications.remove(notification) {
                    let waiting = &mut self.tenant(&ended.scope.tenant_id()).waiting;
                    *waiting = waiting.saturating_sub(1);
                }
            }
            Event::HoldDenied { .. } | Event::CommandRefused { .. } => return,
        }
        self.assert_sound(event);
    }

    fn tenant(&mut self, tenant: &TenantId) -> &mut Tenant {
        if !self.tenants.contains_key(tenant) {
            self.tenants.insert(tenant.clone(), Tenant::default());
        }
        self.tenants.get_mut(tenant).expect("inserted above")
    }

    fn reindex(&mut self, number: NodeId) {
        let node = &self.nodes[number];
        if node.is_configured() {
            self.configured.insert(node.path.clone(), number);
        } else {
            self.configured.remove(&node.path);
        }
    }

    fn set_timer(&mut self, at_ms: u64, timer: Timer) {
        // Beyond the calendar's end a window has none; a grant's times are whatever was asked.
        let is_never = at_ms == u64::MAX && matches!(timer, Timer::WindowEnds(..));
        if at_ms > 0 && !is_never {
            self.timers.insert((at_ms, timer));
        }
    }

    fn set_budget(&mut self, tenant: &TenantId, scope: &ScopePath, terms: &BudgetTerms, window: (u64, u64)) {
        let number = self.numbered(scope);
        let node = &mut self.nodes[number];
        let at = node.budgets.partition_point(|budget| budget.window < terms.window);
        let is_new = node.budgets.get(at).is_none_or(|budget| budget.window != terms.window);
        if is_new {
            node.budgets.insert(at, Budget::new(terms.window));
        }
        let end_before = node.budgets[at].end_ms;
        let spent = &node.usage.spent;
        let is_all_time = terms.window == Window::AllTime;
        node.budgets[at].set(terms, window, |meter| if is_all_time { spent.get(meter) } else { 0 });
        self.tenant(tenant).budgets += usize::from(is_new);
        self.timers.remove(&(end_before, Timer::WindowEnds(scope.clone(), terms.window)));
        self.set_timer(window.1, Timer::WindowEnds(scope.clone(), terms.window));
        self.reindex(number);
    }

    fn remove_budget(&mut self, tenant: &TenantId, scope: &ScopePath, window: Window, meters: &[Meter]) {
        let Some(number) = self.number(scope.as_str()) else { return };
        let Some(budget) = self.nodes[number].budget_mut(window) else { return };
        let end_ms = budget.end_ms;
        let mut ended = Vec::new();
        budget.lines.retain(|line| {
            let stays = !meters.contains(&line.meter);
            if !stays {
                ended.extend(line.grants.iter().map(|grant| Arc::clone(&grant.terms)));
            }
            stays
        });
        if budget.lines.is_empty() {
            self.nodes[number].budgets.retain(|budget| budget.window != window);
            self.timers.remove(&(end_ms, Timer::WindowEnds(scope.clone(), window)));
            let budgets = &mut self.tenant(tenant).budgets;
            *budgets = budgets.saturating_sub(1);
        }
        for terms in ended {
            self.forget_grant(tenant, &terms);
        }
        self.reindex(number);
    }

    fn add_grant(&mut self, tenant: &TenantId, terms: &Arc<GrantTerms>) {
        let Some(number) = self.number(terms.scope.as_str()) else { return };
        if self.tenant(tenant).grants.contains_key(&terms.grant_id) {
            return;
        }
        let effective = terms.effective_ms <= self.now_ms;
        let budget = self.nodes[number].budget_mut(terms.window);
        let Some(line) = budget.and_then(|budget| budget.line_mut(terms.meter)) else { return };
        line.add_grant(Arc::clone(terms), effective);
        let place = Place { node: number, window: terms.window, meter: terms.meter };
        let kept = self.tenant(tenant);
        kept.grants.insert(terms.grant_id.clone(), Some(place));
        kept.live_grants += 1;
        let (tenant, grant_id) = (tenant.clone(), terms.grant_id.clone());
        if !effective {
            self.set_timer(terms.effective_ms, Timer::GrantBegins(tenant.clone(), grant_id.clone()));
        }
        self.set_timer(terms.expires_ms, Timer::GrantEnds(tenant, grant_id));
    }

    /// The budget of a grant that has not ended.
    pub(crate) fn place(&self, tenant: &TenantId, grant_id: &GrantId) -> Option<Place> {
        *self.tenants.get(tenant)?.grants.get(grant_id)?
    }

    fn begin_grant(&mut self, tenant: &TenantId, grant_id: &GrantId) {
        let Some(place) = self.place(tenant, grant_id) else { return };
        let budget = self.nodes[place.node].budget_mut(place.window);
        let Some(line) = budget.and_then(|budget| budget.line_mut(place.meter)) else { return };
        line.begin_grant(grant_id.as_str());
        if let Some(grant) = line.grant(grant_id.as_str()) {
            let timer = Timer::GrantBegins(tenant.clone(), grant_id.clone());
            let effective_ms = grant.terms.effective_ms;
            self.timers.remove(&(effective_ms, timer));
        }
    }

    fn end_grant(&mut self, tenant: &TenantId, grant_id: &GrantId) {
        let Some(place) = self.place(tenant, grant_id) else { return };
        let budget = self.nodes[place.node].budget_mut(place.window);
        let Some(line) = budget.and_then(|budget| budget.line_mut(place.meter)) else { return };
        let terms = line.grant(grant_id.as_str()).map(|grant| Arc::clone(&grant.terms));
        line.end_grant(grant_id.as_str());
        if let Some(terms) = terms {
            self.forget_grant(tenant, &terms);
        }
    }

    fn forget_grant(&mut self, tenant: &TenantId, terms: &GrantTerms) {
        let (tenant, grant_id) = (tenant.clone(), terms.grant_id.clone());
        self.timers.remove(&(terms.effective_ms, Timer::GrantBegins(tenant.clone(), grant_id.clone())));
        self.timers.remove(&(terms.expires_ms, Timer::GrantEnds(tenant.clone(), grant_id.clone())));
        let kept = self.tenant(&tenant);
        kept.grants.insert(grant_id.clone(), None);
        kept.live_grants = kept.live_grants.saturating_sub(1);
        self.retiring.push_back((self.decisions, Retiring::Grant(tenant, grant_id)));
    }

    fn roll(&mut self, scope: &ScopePath, window: Window, start_ms: u64, end_ms: u64) {
        let Some(number) = self.number(scope.as_str()) else { return };
        let Some(budget) = self.nodes[number].budget_mut(window) else { return };
        let before = budget.end_ms;
        budget.roll(start_ms, end_ms);
        self.timers.remove(&(before, Timer::WindowEnds(scope.clone(), window)));
        self.set_timer(end_ms, Timer::WindowEnds(scope.clone(), window));
    }

    fn grant_hold(&mut self, hold_id: &HoldId, hold: Hold) {
        if self.holds.contains_key(hold_id) {
            return;
        }
        let number = self.numbered(&hold.scope);
        let now_ms = self.now_ms;
        self.each_enclosing(number, |node| {
            node.usage.open_holds += 1;
            node.usage.held.add(&hold.amounts);
            for (meter, rate) in &mut node.rates {
                rate.take(rate_units(*meter, &hold.amounts, true), now_ms);
            }
        });
        if let Some(outermost) = self.outermost_mut(&hold.scope) {
            outermost.live_holds += 1;
        }
        self.index_open(hold_id, &hold.scope, hold.expires_ms);
        self.retiring.push_back((self.decisions, Retiring::Granted(hold_id.clone())));
        self.holds.insert(hold_id.clone(), hold);
    }

    fn extend_hold(&mut self, hold_id: &HoldId, added: &Amounts, expires_ms: u64) {
        let now_ms = self.now_ms;
        let Some(hold) = self.holds.get_mut(hold_id) else { return };
        let Some(amounts) = hold.amounts.checked_add(added) else { return };
        if hold.status != HoldStatus::Open {
            return;
        }
        let before = std::mem::replace(&mut hold.expires_ms, expires_ms);
        hold.amounts = amounts;
        if before != expires_ms {
            self.expiry.remove(&(before, hold_id.clone()));
            self.expiry.insert((expires_ms, hold_id.clone()));
        }
        if let Some(number) = self.number(self.holds[hold_id].scope.as_str()) {
            self.each_enclosing(number, |node| {
                node.usage.held.add(added);
                for (meter, rate) in &mut node.rates {
                    rate.take(rate_units(*meter, added, false), now_ms);
                }
            });
        }
    }

    fn settle_hold(&mut self, hold_id: &HoldId, used: &Amounts, uncharged: &[Uncharged]) {
        let Some(hold) = self.holds.get_mut(hold_id) else { return };
        let late = match hold.status {
            HoldStatus::Open => false,
            HoldStatus::Expired => true,
            HoldStatus::Settled { .. } | HoldStatus::Voided => return,
        };
        hold.status = HoldStatus::Settled { late };
        hold.used = if hold.used.is_empty() { used.clone() } else { hold.used.saturating_add(used) };
        let (number, expires_ms) = (self.numbers.get(&hold.scope).copied(), hold.expires_ms);
        if let Some(number) = number {
            let amounts = if late { Amounts::NONE } else { self.holds[hold_id].amounts.clone() };
            self.each_enclosing(number, |node| {
                if !late {
                    node.usage.open_holds = node.usage.open_holds.saturating_sub(1);
                    node.usage.held.sub(&amounts);
                }
                node.usage.settled_holds += 1;
            });
            self.spend(number, used, uncharged);
        }
        if !late {
            self.unindex_open(hold_id, expires_ms);
        }
        self.close(hold_id);
    }

    /// Counts out a hold that was settled or voided just now.
    fn close(&mut self, hold_id: &HoldId) {
        let scope = self.holds[hold_id].scope.clone();
        if let Some(outermost) = self.outermost_mut(&scope) {
            outermost.live_holds = outermost.live_holds.saturating_sub(1);
        }
        self.retiring.push_back((self.decisions, Retiring::Closed(hold_id.clone())));
    }

    fn draw(&mut self, hold_id: &HoldId, used: &Amounts, uncharged: &[Uncharged]) {
        let Some(hold) = self.holds.get_mut(hold_id) else { return };
        let is_open = match hold.status {
            HoldStatus::Open => true,
            HoldStatus::Expired => false,
            HoldStatus::Settled { .. } | HoldStatus::Voided => return,
        };
        hold.used = hold.used.saturating_add(used);
        let number = self.numbers.get(&hold.scope).copied();
        // Of a lease that ran out nothing is held any more; what is left of it shrinks all the same, so that no two lost executions are
        // charged all of it.
        let drawn = used.min(&hold.amounts);
        hold.amounts = hold.amounts.saturating_sub(used);
        if is_open && let Some(number) = number {
            self.each_enclosing(number, |node| node.usage.held.sub(&drawn));
        }
        if let Some(number) = number {
            self.spend(number, used, uncharged);
        }
    }

    fn give_back(&mut self, hold_id: &HoldId, status: HoldStatus) {
        let Some(hold) = self.holds.get_mut(hold_id) else { return };
        if hold.status == HoldStatus::Expired && status == HoldStatus::Voided {
            hold.status = status;
            return self.close(hold_id);
        }
        if hold.status != HoldStatus::Open {
            return;
        }
        hold.status = status;
        let (amounts, expires_ms) = (hold.amounts.clone(), hold.expires_ms);
        if let Some(number) = self.numbers.get(&hold.scope).copied() {
            self.each_enclosing(number, |node| {
                node.usage.open_holds = node.usage.open_holds.saturating_sub(1);
                node.usage.held.sub(&amounts);
            });
        }
        self.unindex_open(hold_id, expires_ms);
        if status == HoldStatus::Voided {
            self.close(hold_id);
        }
    }

    fn spend(&mut self, number: NodeId, used: &Amounts, uncharged: &[Uncharged]) {
        self.each_enclosing(number, |node| {
            node.usage.spent.add(used);
            let path = &node.path;
            for budget in &mut node.budgets {
                budget.charge(used, |window, meter| {
                    let is_it =
                        |row: &&Uncharged| (&row.scope, row.window, row.meter) == (path, window, meter);
                    uncharged.iter().find(is_it).map_or(0, |row| row.amount)
                });
            }
        });
    }

    fn correct(&mut self, correction: &Correction, uncharged: &[Uncharged]) {
        if correction.added {
            let number = self.numbered(&correction.scope);
            return self.spend(number, &correction.amounts, uncharged);
        }
        let Some(number) = self.number(correction.scope.as_str()) else { return };
        self.each_enclosing(number, |node| {
            node.usage.spent.sub(&correction.amounts);
            for line in node.budgets.iter_mut().flat_map(|budget| &mut budget.lines) {
                line.take_back(u128::from(correction.amounts.get(line.meter)));
            }
        });
    }

    fn set_rate_limit(&mut self, tenant: &TenantId, limit: &RateLimit) {
        if limit.amount == 0 && self.number(limit.scope.as_str()).is_none() {
            return;
        }
        let (number, now_ms) = (self.numbered(&limit.scope), self.now_ms);
        let rates = &mut self.nodes[number].rates;
        let before = rates.len();
        let at = rates.partition_point(|(meter, _)| *meter < limit.meter);
        let is_set = rates.get(at).is_some_and(|(meter, _)| *meter == limit.meter);
        let &RateLimit { amount, period_ms, burst, meter, .. } = limit;
        if amount == 0 {
            if is_set {
                rates.remove(at);
            }
        } else if is_set {
            rates[at].1.replace(amount, period_ms, burst, now_ms);
        } else {
            rates.insert(at, (meter, Rate { amount, period_ms, burst, tat: 0 }));
        }
        let after = rates.len();
        let limits = &mut self.tenant(tenant).rate_limits;
        *limits = (*limits + after).saturating_sub(before);
        self.reindex(number);
    }

    fn set_price(&mut self, tenant: &TenantId, price: &Price) {
        if price.per == 0 && self.number(price.scope.as_str()).is_none() {
            return;
        }
        let number = self.numbered(&price.scope);
        let prices = &mut self.nodes[number].prices;
        let before = prices.len();
        prices.retain(|(meter, _)| *meter != price.meter);
        if price.per > 0 {
            let at = prices.partition_point(|(meter, _)| *meter < price.meter);
            prices.insert(at, (price.meter, (price.micros, price.per)));
        }
        let after = prices.len();
        let counted = &mut self.tenant(tenant).prices;
        *counted = (*counted + after).saturating_sub(before);
        self.reindex(number);
    }

    fn reach(&mut self, tenant: &TenantId, reached: &Arc<Reached>) {
        let number = self.number(reached.scope.as_str());
        let budget = number.and_then(|number| self.nodes[number].budget_mut(reached.window));
        if let Some(budget) = budget.filter(|budget| budget.start_ms == reached.window_start_ms) {
            budget.mark(reached);
        }
        let notification = reached.notification;
        if notification > 0 && !self.notifications.contains_key(&notification) {
            self.notifications.insert(notification, Arc::clone(reached));
            self.last_notification = self.last_notification.max(notification);
            self.tenant(tenant).waiting += 1;
        }
    }
}
