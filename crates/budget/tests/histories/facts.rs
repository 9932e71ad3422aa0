//! The naive oracle: the list of all that happened, from which everything is reckoned anew each time it is asked.
//!
//! Written from what `event.proto` and `metering.proto` say. Left out: what a command is answered (`answers.rs`).

use std::{collections::BTreeMap, rc::Rc};

use exchequer_budget::{
    Amounts, Balance, BudgetTerms, Event, HoldId, HoldStatus, MAX_AMOUNT, Meter, RateLimit, ScopePath,
    Subject, TenantId, Uncharged, Window,
};

use crate::pots::Pots;

pub(crate) struct Fact {
    pub(crate) tenant: TenantId,
    pub(crate) at_ms: u64,
    pub(crate) event: Event,
}

pub(crate) type Sums = BTreeMap<Meter, u128>;

#[derive(Clone)]
pub(crate) struct HoldNow {
    pub(crate) scope: ScopePath,
    pub(crate) holder: Subject,
    pub(crate) amounts: Sums,
    pub(crate) used: Sums,
    pub(crate) expires_ms: u64,
    pub(crate) lease: bool,
    pub(crate) revoked: bool,
    pub(crate) status: HoldStatus,
}

impl HoldNow {
    pub(crate) fn is_open(&self) -> bool {
        self.status == HoldStatus::Open
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.status, HoldStatus::Settled { .. } | HoldStatus::Voided)
    }
}

#[derive(Default)]
pub(crate) struct BudgetNow {
    pub(crate) terms: BudgetTerms,
    pub(crate) start_ms: u64,
    pub(crate) end_ms: u64,
    pub(crate) lines: BTreeMap<Meter, Pots>,
}

impl BudgetNow {
    pub(crate) fn balance(&self, meter: Meter, held: u128) -> Balance {
        let pots = &self.lines[&meter];
        let (available, debt) = pots.available_and_debt(held);
        Balance {
            granted: pots.granted(),
            available,
            held,
            spent: pots.spent,
            debt,
            allowance: pots.allowance,
            overdraft: pots.overdraft,
            rollover_cap: pots.rollover_cap,
            uncharged: pots.uncharged,
        }
    }
}

/// What of an event was used (or taken back), where, and what of it was not charged.
struct Spend<'f> {
    scope: &'f ScopePath,
    amounts: &'f Amounts,
    uncharged: &'f [Uncharged],
    back: bool,
}

fn spend(event: &Event) -> Option<Spend<'_>> {
    match event {
        Event::HoldSettled { scope, used, uncharged, .. }
        | Event::LeaseDrawn { scope, used, uncharged, .. }
        | Event::UsageReported { scope, used, uncharged, .. } => {
            Some(Spend { scope, amounts: used, uncharged, back: false })
        }
        Event::UsageCorrected { correction, uncharged } => Some(Spend {
            scope: &correction.scope,
            amounts: &correction.amounts,
            uncharged,
            back: !correction.added,
        }),
        _ => None,
    }
}

pub(crate) fn amounts(sums: &Sums) -> Amounts {
    let cut = |(&meter, &sum): (&Meter, &u128)| (meter, u64::try_from(sum).unwrap().min(MAX_AMOUNT));
    Amounts::new(sums.iter().map(cut)).unwrap()
}

fn sums(amounts: &Amounts) -> Sums {
    amounts.iter().map(|(meter, amount)| (meter, amount.into())).collect()
}

#[derive(Clone, Default)]
pub(crate) struct Facts(pub(crate) Vec<Rc<Fact>>);

impl Facts {
    pub(crate) fn tell(&mut self, tenant: &TenantId, at_ms: u64, event: &Event) {
        self.0.push(Rc::new(Fact { tenant: tenant.clone(), at_ms, event: event.clone() }));
    }

    pub(crate) fn with(&self, tenant: &TenantId, at_ms: u64, event: &Event) -> Self {
        let mut after = self.clone();
        after.tell(tenant, at_ms, event);
        after
    }

    fn events(&self) -> impl DoubleEndedIterator<Item = &Event> {
        self.0.iter().map(|fact| &fact.event)
    }

    pub(crate) fn holds(&self) -> BTreeMap<HoldId, HoldNow> {
        let mut holds: BTreeMap<HoldId, HoldNow> = BTreeMap::new();
        for event in self.events() {
            let mut change = |hold_id: &HoldId, change: &dyn Fn(&mut HoldNow)| {
                change(holds.get_mut(hold_id).expect("granted before"));
            };
            match event {
                Event::HoldGranted { hold_id, scope, holder, amounts, expires_ms, lease, .. } => {
                    let hold = HoldNow {
                        scope: scope.clone(),
                        holder: holder.clone(),
                        amounts: sums(amounts),
                        used: Sums::new(),
                        expires_ms: *expires_ms,
                        lease: *lease,
                        revoked: false,
                        status: HoldStatus::Open,
                    };
                    assert!(holds.insert(hold_id.clone(), hold).is_none(), "{hold_id} is granted twice");
                }
                Event::HoldExtended { hold_id, added, expires_ms, .. } => change(hold_id, &|hold| {
                    hold.expires_ms = *expires_ms;
                    added.iter().for_each(|(meter, more)| {
                        *hold.amounts.entry(meter).or_default() += u128::from(more);
                    });
                }),
                Event::LeaseDrawn { hold_id, used, .. } => change(hold_id, &|hold| {
                    for (meter, amount) in used.iter() {
                        *hold.used.entry(meter).or_default() += u128::from(amount);
                        if let Some(left) = hold.amounts.get_mut(&meter) {
                            *left = left.saturating_sub(amount.into());
                        }
                    }
                }),
                Event::HoldSettled { hold_id, used, late, .. } => change(hold_id, &|hold| {
                    hold.status = HoldStatus::Settled { late: *late };
                    used.iter().for_each(|(meter, amount)| {
                        *hold.used.entry(meter).or_default() += u128::from(amount);
                    });
                }),
                Event::HoldVoided { hold_id } => change(hold_id, &|hold| hold.status = HoldStatus::Voided),
                Event::HoldExpired { hold_id } => change(hold_id, &|hold| hold.status = HoldStatus::Expired),
                Event::HoldRevoked { hold_id, .. } => change(hold_id, &|hold| hold.revoked = true),
                _ => {}
            }
        }
        holds
    }

    fn open_below(&self, scope: &ScopePath) -> Vec<HoldNow> {
        self.holds().into_values().filter(|hold| hold.is_open() && scope.encloses(&hold.scope)).collect()
    }

    pub(crate) fn open_holds(&self, scope: &ScopePath) -> u64 {
        self.open_below(scope).len() as u64
    }

    pub(crate) fn held(&self, scope: &ScopePath) -> Sums {
        let mut held = Sums::new();
        for (meter, amount) in self.open_below(scope).into_iter().flat_map(|hold| hold.amounts) {
            *held.entry(meter).or_default() += amount;
        }
        held
    }

    /// Spent since the beginning, at a scope and below.
    pub(crate) fn spent(&self, scope: &ScopePath) -> Sums {
        let mut spent = Sums::new();
        for spend in self.events().filter_map(spend).filter(|spend| scope.encloses(spend.scope)) {
            for (meter, amount) in spend.amounts.iter() {
                let sum = spent.entry(meter).or_default();
                *sum = if spend.back { *sum - u128::from(amount) } else { *sum + u128::from(amount) };
            }
        }
        spent
    }

    pub(crate) fn settled_holds(&self, scope: &ScopePath) -> u64 {
        let is_below =
            |event: &&Event| matches!(event, Event::HoldSettled { scope: at, .. } if scope.encloses(at));
        self.events().filter(is_below).count() as u64
    }

    /// The budgets of a scope over one window.
    pub(crate) fn budget(&self, scope: &ScopePath, window: Window) -> Option<BudgetNow> {
        let mut now: Option<BudgetNow> = None;
        for (at, fact) in self.0.iter().enumerate() {
            let pot_of = |id: &str, now: &mut Option<BudgetNow>, act: &dyn Fn(&mut Pots)| {
                let lines = now.iter_mut().flat_map(|budget| budget.lines.values_mut());
                if fact.tenant.as_str() == scope.tenant() {
                    lines.filter(|pots| pots.grant(id).is_some()).for_each(act);
                }
            };
            match &fact.event {
                Event::BudgetSet { scope: set, terms, start_ms, end_ms }
                    if set == scope && terms.window == window =>
                {
                    let budget = now.get_or_insert_default();
                    budget.terms = BudgetTerms::clone(terms);
                    (budget.start_ms, budget.end_ms) = (*start_ms, *end_ms);
                    for pots in budget.lines.values_mut() {
                        pots.reached.retain(|threshold| terms.thresholds.contains(threshold));
                    }
                    for (meter, allowance) in terms.granted.iter() {
                        let is_new = !budget.lines.contains_key(&meter);
                        let pots = budget.lines.entry(meter).or_default();
                        pots.overdraft = terms.overdraft.get(meter).unwrap_or(0);
                        pots.rollover_cap = terms.rollover_cap.get(meter).unwrap_or(0);
                        pots.set_allowance(allowance);
                        if is_new && window == Window::AllTime {
                            let before = Self(self.0[..at].to_vec()).spent(scope);
                            pots.charge(before.get(&meter).copied().unwrap_or(0));
                        }
                    }
                }
                Event::BudgetRemoved { scope: of, window: over, meters }
                    if of == scope && *over == window =>
                {
                    let budget = now.as_mut().expect("set before");
                    budget.lines.retain(|meter, _| !meters.contains(meter));
                    if budget.lines.is_empty() {
                        now = None;
                    }
                }
                Event::WindowRolled { scope: of, window: over, start_ms, end_ms }
                    if of == scope && *over == window =>
                {
                    let budget = now.as_mut().expect("set before");
                    (budget.start_ms, budget.end_ms) = (*start_ms, *end_ms);
                    let carry_debt = budget.terms.carry_debt;
                    budget.lines.values_mut().for_each(|pots| pots.roll(carry_debt));
                }
                Event::GrantAdded(terms) if terms.scope == *scope && terms.window == window => {
                    let budget = now.as_mut().expect("set before");
                    let pots = budget.lines.get_mut(&terms.meter).expect("set before");
                    pots.add(terms, terms.effective_ms <= fact.at_ms);
                }
                Event::GrantBegun { grant_id } => {
                    pot_of(grant_id.as_str(), &mut now, &|pots| pots.begin(grant_id.as_str()));
                }
                Event::GrantEnded { grant_id, .. } => {
                    pot_of(grant_id.as_str(), &mut now, &|pots| pots.end(grant_id.as_str()));
                }
                Event::ThresholdReached(reached) if reached.scope == *scope && reached.window == window => {
                    let budget = now.as_mut().expect("set before");
                    budget.lines.get_mut(&reached.meter).unwrap().reached.push(reached.threshold);
                }
                event => {
                    let Some(spend) = spend(event).filter(|spend| scope.encloses(spend.scope)) else {
                        continue;
                    };
                    for (&meter, pots) in now.iter_mut().flat_map(|budget| &mut budget.lines) {
                        let amount = u128::from(spend.amounts.get(meter));
                        let is_it =
                            |row: &&Uncharged| (&row.scope, row.window, row.meter) == (scope, window, meter);
                        let free = spend.uncharged.iter().find(is_it).map_or(0, |row| row.amount.into());
                        if spend.back {
                            pots.take_back(amount);
                        } else {
                            pots.uncharged += free;
                            pots.charge(amount - free);
                        }
                    }
                }
            }
        }
        now
    }

    /// The budgets of a scope, in order of window.
    pub(crate) fn budgets(&self, scope: &ScopePath) -> Vec<BudgetNow> {
        crate::names::WINDOWS.iter().filter_map(|&window| self.budget(scope, window)).collect()
    }

    pub(crate) fn rate_limits(&self, scope: &ScopePath) -> BTreeMap<Meter, RateLimit> {
        let mut limits = BTreeMap::new();
        for event in self.events() {
            if let Event::RateLimitSet(limit) = event
                && limit.scope == *scope
            {
                limits.insert(limit.meter, limit.clone());
            }
        }
        limits.retain(|_, limit| limit.amount > 0);
        limits
    }

    /// How full a rate limit's bucket is at `now_ms`, in units times milliseconds of its period: it leaks `amount` of them each
    /// millisecond. What was taken stays taken when the limit is set anew.
    pub(crate) fn level(&self, scope: &ScopePath, meter: Meter, now_ms: u64) -> u128 {
        let holds = self.holds();
        let (mut level, mut limit, mut at_ms) = (0_u128, None::<&RateLimit>, 0);
        for fact in &self.0 {
            let leak = |level: &mut u128, at_ms: &mut u64, limit: &RateLimit, now_ms: u64| {
                let passed = u128::from(now_ms - *at_ms);
                *level = level.saturating_sub(passed * u128::from(limit.amount));
                *at_ms = now_ms;
            };
            match (&fact.event, limit) {
                (Event::RateLimitSet(set), before) if set.scope == *scope && set.meter == meter => {
                    if let Some(before) = before {
                        leak(&mut level, &mut at_ms, before, fact.at_ms);
                        let periods = level * u128::from(set.period_ms);
                        level = periods.div_ceil(before.period_ms.into());
                    }
                    limit = Some(set).filter(|set| set.amount > 0);
                    at_ms = fact.at_ms;
                    if limit.is_none() {
                        level = 0;
                    }
                }
                (Event::HoldGranted { scope: at, amounts, .. }, Some(limit)) if scope.encloses(at) => {
                    leak(&mut level, &mut at_ms, limit, fact.at_ms);
                    level += u128::from(rate_units(meter, amounts, true)) * u128::from(limit.period_ms);
                }
                (Event::HoldExtended { hold_id, added, .. }, Some(limit))
                    if scope.encloses(&holds[hold_id].scope) =>
                {
                    leak(&mut level, &mut at_ms, limit, fact.at_ms);
                    level += u128::from(rate_units(meter, added, false)) * u128::from(limit.period_ms);
                }
                _ => {}
            }
        }
        limit.map_or(0, |limit| level.saturating_sub(u128::from(now_ms - at_ms) * u128::from(limit.amount)))
    }

    pub(crate) fn max_open_holds(&self, scope: &ScopePath) -> u64 {
        let of = |event: &Event| match event {
            Event::ConcurrencyLimitSet { scope: at, max_open_holds } if at == scope => Some(*max_open_holds),
            _ => None,
        };
        self.events().rev().find_map(of).unwrap_or(0)
    }

    /// Millionths, and how much they buy.
    pub(crate) fn price(&self, scope: &ScopePath, meter: Meter) -> Option<(u64, u64)> {
        let of = |event: &Event| match event {
            Event::PriceSet(price) if price.scope == *scope && price.meter == meter => {
                Some((price.micros, price.per))
            }
            _ => None,
        };
        self.events().rev().find_map(of).filter(|(_, per)| *per > 0)
    }

    pub(crate) fn defines(&self, tenant: &TenantId, meter: Meter) -> bool {
        let is_it = |event: &Event| matches!(event, Event::MeterDefined { tenant: of, meter: it, .. } if of == tenant && *it == meter);
        !meter.is_custom() || self.events().any(is_it)
    }

    pub(crate) fn has_webhook(&self, tenant: &TenantId) -> bool {
        let of = |event: &Event| match event {
            Event::WebhookSet { tenant: of, url } if of == tenant => Some(url.is_some()),
            _ => None,
        };
        self.events().rev().find_map(of).unwrap_or(false)
    }

    /// Numbers given to notifications, and the tenant of each.
    pub(crate) fn notified(&self) -> BTreeMap<u64, TenantId> {
        let of = |fact: &Rc<Fact>| match &fact.event {
            Event::ThresholdReached(reached) if reached.notification > 0 => {
                Some((reached.notification, fact.tenant.clone()))
            }
            _ => None,
        };
        self.0.iter().filter_map(of).collect()
    }

    pub(crate) fn waiting(&self) -> BTreeMap<u64, TenantId> {
        let mut waiting = self.notified();
        for event in self.events() {
            if let Event::NotificationEnded { notification, .. } = event {
                waiting.remove(notification);
            }
        }
        waiting
    }

    /// Whether a grant of this id was ever made.
    pub(crate) fn made(&self, tenant: &TenantId, id: &str) -> bool {
        self.0.iter().any(|fact| {
            fact.tenant == *tenant
                && matches!(&fact.event, Event::GrantAdded(terms) if terms.grant_id.as_str() == id)
        })
    }

    /// Scopes and windows that ever had a budget.
    pub(crate) fn places(&self) -> Vec<(ScopePath, Window)> {
        let of = |event: &Event| match event {
            Event::BudgetSet { scope, terms, .. } => Some((scope.clone(), terms.window)),
            _ => None,
        };
        let mut places: Vec<_> = self.events().filter_map(of).collect();
        places.sort();
        places.dedup();
        places
    }
}

/// What amounts take of a rate limit: "invocations" counts 1 for a hold that names none.
pub(crate) fn rate_units(meter: Meter, amounts: &Amounts, is_new: bool) -> u64 {
    let implied = u64::from(is_new && meter == Meter::Invocations);
    amounts.get(meter).max(implied)
}
