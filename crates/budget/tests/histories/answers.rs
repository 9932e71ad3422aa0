//! What the oracle says that a command is answered: the whole decision, thresholds included.
//!
//! Left out: limits on how many settings a tenant can have, which these histories do not reach.

use std::{collections::BTreeMap, sync::Arc};

use exchequer_budget::{
    Action, Amounts, Correction, Denial, Enforcement, Event, Exceeded, GrantTerms, HoldId, Label,
    MAX_AHEAD_MS, MAX_AMOUNT, MAX_EXCEEDED, MAX_UNCHARGED, Meter, Overage, Refusal, ScopePath, Source,
    Subject, TenantId, Uncharged, Window,
};

use crate::{
    clock,
    facts::{BudgetNow, Facts, HoldNow, amounts, rate_units},
};

/// Who asks, and when.
pub(crate) struct Asking<'o> {
    pub(crate) facts: &'o Facts,
    pub(crate) tenant: &'o TenantId,
    pub(crate) actor: &'o Subject,
    pub(crate) now_ms: u64,
    /// Whether with a key. What settles or draws without one is the writer's own.
    pub(crate) keyed: bool,
}

fn refused(refusal: Refusal, field: &str) -> Event {
    Event::CommandRefused { refusal, hold_id: None, field: Some(Label::parse(field).unwrap()) }
}

pub(crate) fn enclosing(scope: &ScopePath) -> Vec<ScopePath> {
    scope.enclosing().map(|name| ScopePath::parse(name).unwrap()).collect()
}

fn narrow(wide: u128) -> u64 {
    u64::try_from(wide).unwrap_or(u64::MAX)
}

impl Asking<'_> {
    pub(crate) fn events(&self, action: &Action) -> Vec<Event> {
        let first = match action {
            Action::Reserve { .. } => self.reserve(action),
            Action::Extend { hold_id, added, ttl } => self.meant(hold_id, true).map_or_else(
                |event| *event,
                |hold| self.extend(hold_id, &hold, added, self.now_ms + ttl.as_ms()),
            ),
            Action::Settle { hold_id, used, source } => self
                .meant_for_usage(hold_id, used, source.as_deref())
                .map_or_else(|event| *event, |hold| self.used(hold_id, &hold, used, source.clone(), false)),
            Action::Draw { hold_id, used, source } => match self.meant(hold_id, true) {
                Ok(hold) if !hold.lease => held_refusal(Refusal::NotALease, hold_id),
                Err(event) => *event,
                Ok(_) => self.meant_for_usage(hold_id, used, source.as_deref()).map_or_else(
                    |event| *event,
                    |hold| self.used(hold_id, &hold, used, source.clone(), true),
                ),
            },
            Action::Void { hold_id } => match self.meant(hold_id, true) {
                Ok(_) => Event::HoldVoided { hold_id: hold_id.clone() },
                Err(event) => *event,
            },
            Action::Revoke { hold_id, reason } => match self.meant(hold_id, false) {
                Ok(hold) if hold.is_open() => {
                    Event::HoldRevoked { hold_id: hold_id.clone(), reason: reason.clone() }
                }
                Ok(_) => held_refusal(Refusal::HoldClosed, hold_id),
                Err(event) => *event,
            },
            Action::Report { scope, used, source, subject } => {
                self.unusable(used, "used", source.as_deref(), "source").unwrap_or_else(|| {
                    let used = self.costed(scope, &Amounts::NONE, used);
                    let uncharged = self.uncharged(scope, &used, &Amounts::NONE);
                    let (scope, source, subject) = (scope.clone(), source.clone(), subject.clone());
                    Event::UsageReported { scope, used, source, uncharged, subject }
                })
            }
            Action::Correct(correction) => self.correct(correction),
            _ => self.set(action),
        };
        let mut events = vec![first];
        let reached = self.reached_by(&events[0]);
        events.extend(reached);
        events
    }

    fn set(&self, action: &Action) -> Event {
        let known = |meter| self.facts.defines(self.tenant, meter);
        match action {
            Action::SetBudget { terms, .. } if terms.granted.iter().any(|(meter, _)| !known(meter)) => {
                refused(Refusal::UnknownMeter, "granted")
            }
            Action::SetBudget { scope, terms } => {
                let (start_ms, end_ms) = clock::window(terms.window, terms.zone.as_ref(), self.now_ms);
                Event::BudgetSet { scope: scope.clone(), terms: Arc::clone(terms), start_ms, end_ms }
            }
            Action::RemoveBudget { scope, window, meters } => {
                let Some(budget) = self.facts.budget(scope, *window) else {
                    return refused(Refusal::UnknownBudget, "scope");
                };
                let mut named: Vec<_> = budget.lines.keys().copied().collect();
                if !meters.is_empty() {
                    if meters.iter().any(|meter| !named.contains(meter)) {
                        return refused(Refusal::UnknownBudget, "meters");
                    }
                    named.retain(|meter| meters.contains(meter));
                }
                Event::BudgetRemoved { scope: scope.clone(), window: *window, meters: named }
            }
            Action::AddGrant(terms) => self.add_grant(terms),
            Action::RevokeGrant { grant_id } => {
                let of_tenant = |place: &&(ScopePath, Window)| place.0.tenant() == self.tenant.as_str();
                let places = self.facts.places();
                let left = places.iter().filter(of_tenant).find_map(|(scope, window)| {
                    let budget = self.facts.budget(scope, *window)?;
                    budget.lines.values().find_map(|pots| Some(pots.grant(grant_id.as_str())?.left()))
                });
                left.map_or_else(
                    || refused(Refusal::UnknownGrant, "grant_id"),
                    |left| Event::GrantEnded {
                        grant_id: grant_id.clone(),
                        revoked: true,
                        remainder: narrow(left),
                    },
                )
            }
            Action::SetRateLimit(limit) if !known(limit.meter) => {
                refused(Refusal::UnknownMeter, "limit.meter")
            }
            Action::SetRateLimit(limit) => Event::RateLimitSet(limit.clone()),
            Action::SetConcurrencyLimit { scope, max_open_holds } => {
                Event::ConcurrencyLimitSet { scope: scope.clone(), max_open_holds: *max_open_holds }
            }
            Action::SetPrice(price) if !known(price.meter) => refused(Refusal::UnknownMeter, "price.meter"),
            Action::SetPrice(price) => Event::PriceSet(price.clone()),
            Action::DefineMeter { meter, description } => Event::MeterDefined {
                tenant: self.tenant.clone(),
                meter: *meter,
                description: description.clone(),
            },
            Action::SetWebhook { url } => Event::WebhookSet { tenant: self.tenant.clone(), url: url.clone() },
            Action::EndNotification { notification, delivered, attempts, detail } => {
                if self.facts.waiting().get(notification) != Some(self.tenant) {
                    return refused(Refusal::UnknownNotification, "notification");
                }
                Event::NotificationEnded {
                    notification: *notification,
                    delivered: *delivered,
                    attempts: *attempts,
                    detail: detail.clone(),
                }
            }
            other => unreachable!("{other:?}"),
        }
    }

    fn add_grant(&self, terms: &Arc<GrantTerms>) -> Event {
        let mut terms = GrantTerms::clone(terms);
        if terms.effective_ms == 0 {
            terms.effective_ms = self.now_ms;
        }
        let budget = self.facts.budget(&terms.scope, terms.window);
        if terms.expires_ms != 0 && terms.expires_ms <= self.now_ms {
            refused(Refusal::Time, "grant.expires_unix_ms")
        } else if budget.is_none() {
            refused(Refusal::UnknownBudget, "grant.scope")
        } else if budget.is_some_and(|budget| !budget.lines.contains_key(&terms.meter)) {
            refused(Refusal::UnknownBudget, "grant.meter")
        } else if self.facts.made(self.tenant, terms.grant_id.as_str()) {
            refused(Refusal::GrantExists, "grant.grant_id")
        } else {
            Event::GrantAdded(Arc::new(terms))
        }
    }

    /// The hold that is meant. What is over is closed for everybody of its tenant, however long ago it was.
    fn meant(&self, hold_id: &HoldId, own: bool) -> Result<HoldNow, Box<Event>> {
        let refusal = match self.facts.holds().remove(hold_id) {
            None => Refusal::UnknownHold,
            Some(hold) if hold.scope.tenant() != self.tenant.as_str() => Refusal::NotHolder,
            Some(hold) if hold.is_over() => Refusal::HoldClosed,
            Some(hold) if own && hold.holder != *self.actor => Refusal::NotHolder,
            Some(hold) => return Ok(hold),
        };
        Err(Box::new(held_refusal(refusal, hold_id)))
    }

    fn meant_for_usage(
        &self,
        hold_id: &HoldId,
        used: &Amounts,
        source: Option<&Source>,
    ) -> Result<HoldNow, Box<Event>> {
        let hold = self.meant(hold_id, true)?;
        let source = source.filter(|_| self.keyed);
        self.unusable(used, "used", source, "source").map_or(Ok(hold), |event| Err(Box::new(event)))
    }

    fn used(
        &self,
        hold_id: &HoldId,
        hold: &HoldNow,
        used: &Amounts,
        source: Option<Arc<Source>>,
        draws: bool,
    ) -> Event {
        let (hold_id, scope, late) = (hold_id.clone(), hold.scope.clone(), !hold.is_open());
        let used = self.costed(&scope, &amounts(&hold.used), used);
        let own = if late { Amounts::NONE } else { amounts(&hold.amounts) };
        let uncharged = self.uncharged(&scope, &used, &own);
        if draws {
            Event::LeaseDrawn { hold_id, scope, used, late, source, uncharged }
        } else {
            Event::HoldSettled { hold_id, scope, used, late, source, uncharged }
        }
    }

    fn unusable(&self, used: &Amounts, field: &str, source: Option<&Source>, from: &str) -> Option<Event> {
        if source.is_some_and(|source| source.used_ms > self.now_ms + MAX_AHEAD_MS) {
            return Some(refused(Refusal::Time, &format!("{from}.used_unix_ms")));
        }
        self.unknown_meter(used, field)
    }

    fn unknown_meter(&self, amounts: &Amounts, field: &str) -> Option<Event> {
        let unknown = amounts.iter().any(|(meter, _)| !self.facts.defines(self.tenant, meter));
        unknown.then(|| refused(Refusal::UnknownMeter, field))
    }

    fn correct(&self, correction: &Arc<Correction>) -> Event {
        let Correction { scope, amounts, added, source, .. } = &**correction;
        let fields = ("correction.amounts", "correction.source");
        if let Some(refused) = self.unusable(amounts, fields.0, source.as_deref(), fields.1) {
            return refused;
        }
        let uncharged = if *added { self.uncharged(scope, amounts, &Amounts::NONE) } else { Vec::new() };
        let is_spent = |scope: &ScopePath| {
            let spent = self.facts.spent(scope);
            amounts.iter().all(|(meter, back)| spent.get(&meter).is_some_and(|sum| *sum >= back.into()))
        };
        if !added && !enclosing(scope).iter().all(is_spent) {
            return refused(Refusal::BelowZero, fields.0);
        }
        Event::UsageCorrected { correction: Arc::clone(correction), uncharged }
    }

    /// What `amounts` cost: a sum of fractions over their common denominator, rounded up once.
    fn cost(&self, scope: &ScopePath, amounts: &Amounts) -> u128 {
        let scopes = enclosing(scope);
        let price = |meter| scopes.iter().rev().find_map(|scope| self.facts.price(scope, meter));
        let rows: Vec<(u128, u128)> = amounts
            .iter()
            .filter_map(|(meter, amount)| {
                let (micros, per) = price(meter)?;
                Some((u128::from(amount) * u128::from(micros), per.into()))
            })
            .collect();
        let common: u128 = rows.iter().map(|(_, per)| per).product();
        rows.iter().map(|(micros, per)| micros * (common / per)).sum::<u128>().div_ceil(common)
    }

    /// What is used of one hold is rounded up once in all, as far as amounts are counted.
    fn costed(&self, scope: &ScopePath, before: &Amounts, used: &Amounts) -> Amounts {
        let given = used.get(Meter::CostMicros);
        let cost = if given > 0 {
            given.into()
        } else if used.iter().any(|(meter, amount)| amount > MAX_AMOUNT - before.get(meter)) {
            self.cost(scope, used)
        } else {
            let sum = Amounts::new(before.iter().chain(used.iter())).unwrap();
            self.cost(scope, &sum) - self.cost(scope, before)
        };
        let cost = narrow(cost).min(MAX_AMOUNT);
        Amounts::new(used.iter().filter(|row| row.0 != Meter::CostMicros).chain([(Meter::CostMicros, cost)]))
            .unwrap()
    }

    fn priced(&self, scope: &ScopePath, wanted: BTreeMap<Meter, u64>) -> Result<Amounts, Denial> {
        let bare = Amounts::new(wanted).unwrap();
        let cost = self.cost(scope, &bare);
        let total = cost + u128::from(bare.get(Meter::CostMicros));
        if cost > 0 && total > MAX_AMOUNT.into() {
            return Err(too_large(scope, Meter::CostMicros, narrow(total), MAX_AMOUNT));
        }
        Ok(Amounts::new(bare.iter().chain([(Meter::CostMicros, narrow(cost))])).unwrap())
    }

    /// What a budget has left for new holds, an overdraft included; none if it is in debt beyond that.
    fn left(&self, scope: &ScopePath, budget: &BudgetNow, meter: Meter) -> Option<u128> {
        let held = self.facts.held(scope).get(&meter).copied().unwrap_or(0);
        let balance = budget.balance(meter, held);
        let overdraft = if budget.terms.overage == Overage::Overdraft { balance.overdraft } else { 0 };
        (balance.granted + u128::from(overdraft)).checked_sub(balance.held + balance.spent)
    }

    fn short(&self, scope: &ScopePath, budget: &BudgetNow, meter: Meter, requested: u64) -> Option<Denial> {
        let (scope, window) = (scope.clone(), budget.terms.window);
        match self.left(&scope, budget, meter) {
            None => Some(Denial::InDebt { scope, window, meter, requested }),
            Some(left) if left < requested.into() => {
                Some(Denial::Exhausted { scope, window, meter, requested, available: narrow(left) })
            }
            Some(_) => None,
        }
    }

    fn reserve(&self, action: &Action) -> Event {
        let Action::Reserve { hold_id, scope, holder, amounts, ttl, at_least, lease } = action else {
            unreachable!("a reservation only")
        };
        if let Some(refused) = self.unknown_meter(amounts, "amounts") {
            return refused;
        }
        let admitted = self
            .balanced(scope, amounts, at_least)
            .and_then(|wanted| self.priced(scope, wanted))
            .and_then(|amounts| Ok((self.admit(scope, &amounts, true)?, amounts)));
        match admitted {
            Err(denial) => Event::HoldDenied { scope: scope.clone(), denial },
            Ok((exceeded, amounts)) => Event::HoldGranted {
                hold_id: hold_id.clone(),
                scope: scope.clone(),
                holder: holder.clone(),
                amounts,
                expires_ms: self.now_ms + ttl.as_ms(),
                lease: *lease,
                exceeded,
            },
        }
    }

    /// Balancing comes first, before costs and other limits are looked at.
    fn balanced(
        &self,
        scope: &ScopePath,
        amounts: &Amounts,
        at_least: &Amounts,
    ) -> Result<BTreeMap<Meter, u64>, Denial> {
        let mut wanted: BTreeMap<_, _> = amounts.iter().collect();
        for scope in enclosing(scope) {
            for budget in self.facts.budgets(&scope) {
                for &meter in budget.lines.keys().filter(|_| budget.terms.enforcement == Enforcement::Hard) {
                    let least = at_least.get(meter);
                    if least > 0 {
                        self.short(&scope, &budget, meter, least).map_or(Ok(()), Err)?;
                        let left = narrow(self.left(&scope, &budget, meter).unwrap());
                        wanted.entry(meter).and_modify(|amount| *amount = left.min(*amount));
                    }
                }
            }
        }
        Ok(wanted)
    }

    fn extend(&self, hold_id: &HoldId, hold: &HoldNow, added: &Amounts, until_ms: u64) -> Event {
        if !hold.is_open() {
            return held_refusal(Refusal::HoldClosed, hold_id);
        }
        if hold.revoked {
            return held_refusal(Refusal::HoldRevoked, hold_id);
        }
        if let Some(refused) = self.unknown_meter(added, "amounts") {
            return refused;
        }
        let scope = &hold.scope;
        let admitted = self.priced(scope, added.iter().collect()).and_then(|added| {
            for (meter, more) in added.iter() {
                let held = hold.amounts.get(&meter).copied().unwrap_or(0);
                let room = MAX_AMOUNT - narrow(held);
                if more > room {
                    return Err(too_large(scope, meter, more, room));
                }
            }
            let exceeded = if added.is_empty() { Vec::new() } else { self.admit(scope, &added, false)? };
            Ok((exceeded, added))
        });
        match admitted {
            Err(denial) => Event::HoldDenied { scope: scope.clone(), denial },
            Ok((exceeded, added)) => Event::HoldExtended {
                hold_id: hold_id.clone(),
                added,
                expires_ms: hold.expires_ms.max(until_ms),
                exceeded,
            },
        }
    }

    fn admit(&self, scope: &ScopePath, asked: &Amounts, is_new: bool) -> Result<Vec<Exceeded>, Denial> {
        let mut exceeded = Vec::new();
        let mut limited = false;
        for scope in enclosing(scope) {
            for budget in self.facts.budgets(&scope) {
                limited = true;
                for &meter in budget.lines.keys().filter(|&&meter| asked.get(meter) > 0) {
                    let requested = asked.get(meter);
                    let Some(denial) = self.short(&scope, &budget, meter, requested) else { continue };
                    let (window, enforcement) = (budget.terms.window, budget.terms.enforcement);
                    if enforcement == Enforcement::Hard {
                        return Err(denial);
                    }
                    let available = narrow(self.left(&scope, &budget, meter).unwrap_or(0));
                    let scope = scope.clone();
                    exceeded.push(Exceeded { scope, window, meter, requested, available, enforcement });
                }
            }
            for (meter, limit) in self.facts.rate_limits(&scope) {
                let requested = rate_units(meter, asked, is_new);
                let fits = |units: u64, at_ms: u64| {
                    let level = self.facts.level(&scope, meter, at_ms);
                    let period = u128::from(limit.period_ms);
                    level + u128::from(units) * period <= u128::from(limit.burst) * period
                };
                if requested == 0 || fits(requested, self.now_ms) {
                    continue;
                }
                // What is refused changes nothing, so it can be tried: by halves, since waiting never makes it worse.
                let available = largest(requested - 1, |units| fits(units, self.now_ms));
                let retry_after_ms = if requested > limit.burst {
                    0
                } else {
                    1 + largest(u64::MAX >> 1 >> 20, |wait| wait == 0 || !fits(requested, self.now_ms + wait))
                };
                return Err(Denial::RateLimited { scope, meter, requested, available, retry_after_ms });
            }
            let most = self.facts.max_open_holds(&scope);
            if is_new && most > 0 && self.facts.open_holds(&scope) >= most {
                return Err(Denial::Concurrency { scope });
            }
        }
        exceeded.truncate(MAX_EXCEEDED);
        if limited { Ok(exceeded) } else { Err(Denial::NoBudget) }
    }

    /// What capped budgets do not charge: all that would not be left if the hold's own amounts were given back.
    fn uncharged(&self, scope: &ScopePath, used: &Amounts, own: &Amounts) -> Vec<Uncharged> {
        let mut uncharged = Vec::new();
        for scope in enclosing(scope) {
            let held = self.facts.held(&scope);
            for budget in self.facts.budgets(&scope) {
                for (&meter, pots) in budget.lines.iter().filter(|_| budget.terms.overage == Overage::Cap) {
                    let others = held.get(&meter).map_or(0, |sum| sum - u128::from(own.get(meter)));
                    let (covered, _) = pots.available_and_debt(others);
                    let amount = used.get(meter).saturating_sub(narrow(covered));
                    if amount > 0 {
                        let (scope, window) = (scope.clone(), budget.terms.window);
                        uncharged.push(Uncharged { scope, window, meter, amount });
                    }
                }
            }
        }
        uncharged.truncate(MAX_UNCHARGED);
        uncharged
    }
}

/// The largest number up to `most` of which it is true; it is of zero or of none, and never again once it is not.
fn largest(most: u64, is: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if is(middle) { low = middle } else { high = middle - 1 }
    }
    low
}

fn held_refusal(refusal: Refusal, hold_id: &HoldId) -> Event {
    Event::CommandRefused { refusal, hold_id: Some(hold_id.clone()), field: None }
}

fn too_large(scope: &ScopePath, meter: Meter, requested: u64, available: u64) -> Denial {
    Denial::Exhausted { scope: scope.clone(), window: Window::AllTime, meter, requested, available }
}
