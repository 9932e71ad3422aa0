//! The state of all budgets of a partition: a fold over recorded decisions.
//!
//! Balances are kept at every enclosing scope of a hold, budget or not, so that usage can be asked of any scope. What is
//! available or owed is derived.
//!
//! Closed holds, and idempotency keys with their answers, are kept for good: there is no window after which a repeated request
//! could be charged again. Memory therefore grows with history, and there is no bound yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use thiserror::Error;

use crate::{
    event::{Decision, DecisionRun, Event},
    id::{HoldId, IdempotencyKey, Subject, TenantId},
    meter::{Amounts, Meter, Totals},
    scope::ScopePath,
};

/// Full checks after every decision cost time in the square of the holds; debug builds stop at this many.
#[cfg(debug_assertions)]
const DEBUG_CHECK_HOLDS: usize = 256;

/// A limited meter at a scope: `granted = available + held + spent - debt`, and `available` or `debt` is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Granted in total.
    pub granted: u64,
    /// Left for new holds.
    pub available: u64,
    /// In open holds.
    pub held: u128,
    /// Settled.
    pub spent: u128,
    /// Spent or held beyond what was granted.
    pub debt: u128,
}

/// What was used at a scope and below, since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Settled.
    pub spent: Totals,
    /// In open holds.
    pub held: Totals,
    /// Number of settled holds.
    pub settled_holds: u64,
    /// Number of open holds.
    pub open_holds: u64,
}

/// A hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The scope that it was asked for.
    pub scope: ScopePath,
    /// Who may extend, settle or void it.
    pub holder: Subject,
    /// What it holds or held.
    pub amounts: Amounts,
    /// When it runs out or ran out, milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// How it stands.
    pub status: HoldStatus,
}

/// How a hold stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldStatus {
    /// Its amounts are held.
    Open,
    /// Its usage is spent.
    Settled {
        /// What was used.
        used: Amounts,
        /// Whether it had run out before.
        late: bool,
    },
    /// Nothing is held or spent.
    Voided,
    /// Nothing is held; it can still be settled.
    Expired,
}

/// What is kept per scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) granted: [Option<u64>; Meter::COUNT],
    pub(crate) usage: Usage,
}

impl Account {
    pub(crate) fn is_limited(&self) -> bool {
        self.granted.iter().any(Option::is_some)
    }

    pub(crate) fn balance(&self, meter: Meter) -> Option<Balance> {
        let granted = self.granted[meter.index()]?;
        let (held, spent) = (self.usage.held.get(meter), self.usage.spent.get(meter));
        let taken = held + spent;
        let debt = taken.saturating_sub(u128::from(granted));
        // What was taken fits u64 unless it is above what was granted, and then nothing is left.
        let available = u64::try_from(taken).map_or(0, |taken| granted.saturating_sub(taken));
        Some(Balance { granted, available, held, spent, debt })
    }

    fn balances(&self) -> impl Iterator<Item = (Meter, Balance)> {
        Meter::ALL.into_iter().filter_map(|meter| Some((meter, self.balance(meter)?)))
    }

    fn open(&mut self, amounts: &Amounts) {
        self.usage.open_holds += 1;
        self.hold(amounts);
    }

    fn hold(&mut self, amounts: &Amounts) {
        for (meter, amount) in amounts.iter() {
            self.usage.held.0[meter.index()] += u128::from(amount);
        }
    }

    fn release(&mut self, amounts: &Amounts) {
        self.usage.open_holds -= 1;
        for (meter, amount) in amounts.iter() {
            let held = &mut self.usage.held.0[meter.index()];
            *held = held.checked_sub(u128::from(amount)).expect("held is the sum of the open holds");
        }
    }

    fn settle(&mut self, used: &Amounts) {
        self.usage.settled_holds += 1;
        for (meter, amount) in used.iter() {
            self.usage.spent.0[meter.index()] += u128::from(amount);
        }
    }
}

/// What a key was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) request_hash: [u8; 32],
    pub(crate) reply: Event,
}

/// All budgets of a partition. Starts empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub(crate) now_ms: u64,
    pub(crate) accounts: BTreeMap<ScopePath, Account>,
    pub(crate) holds: BTreeMap<HoldId, Hold>,
    pub(crate) keys: BTreeMap<TenantId, BTreeMap<IdempotencyKey, Recorded>>,
    /// Derived from `holds`: the open ones, by when they run out.
    pub(crate) expiry: BTreeSet<(u64, HoldId)>,
}

impl State {
    /// Applies a decision of `tenant` that was made at `now_ms`. Live and at replay alike; never refuses.
    pub fn record(&mut self, decision: &Decision, tenant: &TenantId, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        for event in &decision.events {
            self.evolve(event);
        }
        if let (Some(idempotency), Some(reply)) = (&decision.idempotency, decision.events.first()) {
            if !self.keys.contains_key(tenant.as_str()) {
                self.keys.insert(tenant.clone(), BTreeMap::new());
            }
            let keys = self.keys.get_mut(tenant.as_str()).expect("inserted above");
            keys.entry(idempotency.key.clone())
                .or_insert_with(|| Recorded { request_hash: idempotency.request_hash, reply: reply.clone() });
        }
    }

    /// Applies a run of decisions that were made at `now_ms`.
    pub fn record_run(&mut self, run: &DecisionRun, now_ms: u64) {
        for decision in &run.decisions {
            self.record(decision, &run.tenant, now_ms);
        }
    }

    /// Applies one event. An event that contradicts the state (a hold unknown, closed or granted before, an extension beyond
    /// what a hold can hold) changes nothing; `decide` makes none.
    pub fn evolve(&mut self, event: &Event) {
        match event {
            Event::BudgetSet { scope, granted } => {
                let account = self.accounts.entry(scope.clone()).or_default();
                for (meter, amount) in granted.iter() {
                    account.granted[meter.index()] = Some(amount);
                }
            }
            Event::HoldGranted { hold_id, scope, holder, amounts, expires_ms } => {
                if !self.holds.contains_key(hold_id) {
                    each_enclosing(&mut self.accounts, scope, |account| account.open(amounts));
                    self.expiry.insert((*expires_ms, hold_id.clone()));
                    let hold = Hold {
                        scope: scope.clone(),
                        holder: holder.clone(),
                        amounts: *amounts,
                        expires_ms: *expires_ms,
                        status: HoldStatus::Open,
                    };
                    self.holds.insert(hold_id.clone(), hold);
                }
            }
            Event::HoldExtended { hold_id, added, expires_ms } => {
                if let Some(hold) = self.holds.get_mut(hold_id)
                    && hold.status == HoldStatus::Open
                    && let Some(amounts) = hold.amounts.checked_add(added)
                {
                    each_enclosing(&mut self.accounts, &hold.scope, |account| account.hold(added));
                    self.expiry.remove(&(hold.expires_ms, hold_id.clone()));
                    self.expiry.insert((*expires_ms, hold_id.clone()));
                    hold.amounts = amounts;
                    hold.expires_ms = *expires_ms;
                }
            }
            Event::HoldSettled { hold_id, used, late: _ } => {
                if let Some(hold) = self.holds.get_mut(hold_id) {
                    let late = match hold.status {
                        HoldStatus::Open => false,
                        HoldStatus::Expired => true,
                        HoldStatus::Settled { .. } | HoldStatus::Voided => return,
                    };
                    each_enclosing(&mut self.accounts, &hold.scope, |account| {
                        if !late {
                            account.release(&hold.amounts);
                        }
                        account.settle(used);
                    });
                    if !late {
                        self.expiry.remove(&(hold.expires_ms, hold_id.clone()));
                    }
                    hold.status = HoldStatus::Settled { used: *used, late };
                }
            }
            Event::HoldVoided { hold_id } => self.give_back(hold_id, HoldStatus::Voided),
            Event::HoldExpired { hold_id } => self.give_back(hold_id, HoldStatus::Expired),
            Event::HoldDenied { .. } | Event::CommandRefused { .. } => {}
        }
        #[cfg(debug_assertions)]
        if self.holds.len() <= DEBUG_CHECK_HOLDS {
            assert_eq!(self.check(), Ok(()), "after {event:?}");
        }
    }

    fn give_back(&mut self, hold_id: &HoldId, status: HoldStatus) {
        if let Some(hold) = self.holds.get_mut(hold_id)
            && hold.status == HoldStatus::Open
        {
            each_enclosing(&mut self.accounts, &hold.scope, |account| {
                account.release(&hold.amounts);
            });
            self.expiry.remove(&(hold.expires_ms, hold_id.clone()));
            hold.status = status;
        }
    }

    /// The latest time that a decision was recorded at: never falls.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// When the next open hold runs out.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.expiry.first().map(|&(at, _)| at)
    }

    /// Number of open holds.
    pub fn open_holds(&self) -> u64 {
        self.expiry.len() as u64
    }

    /// A hold, open or closed.
    pub fn hold(&self, hold_id: &HoldId) -> Option<&Hold> {
        self.holds.get(hold_id)
    }

    /// The balance of a limited meter at a scope.
    pub fn balance(&self, scope: &ScopePath, meter: Meter) -> Option<Balance> {
        self.account(scope.as_str())?.balance(meter)
    }

    /// The balances of a scope's budget, in canonical order of meters; empty if it has none.
    pub fn balances(&self, scope: &ScopePath) -> Vec<(Meter, Balance)> {
        self.account(scope.as_str()).map(|account| account.balances().collect()).unwrap_or_default()
    }

    /// Scopes with a budget, in order, of one tenant or all, after `after`.
    pub fn budgets<'s>(
        &'s self,
        tenant: Option<&'s TenantId>,
        after: Option<&ScopePath>,
    ) -> impl Iterator<Item = &'s ScopePath> {
        // Beginning at the tenant keeps a page's cost independent of the tenants before it.
        let from = match (after, tenant) {
            (Some(after), Some(tenant)) if after.as_str() < tenant.as_str() => {
                Bound::Included(tenant.as_str())
            }
            (Some(after), _) => Bound::Excluded(after.as_str()),
            (None, Some(tenant)) => Bound::Included(tenant.as_str()),
            (None, None) => Bound::Unbounded,
        };
        self.accounts
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(move |(scope, _)| {
                tenant.is_none_or(|tenant| scope.as_str().starts_with(tenant.as_str()))
            })
            .filter(move |(scope, _)| tenant.is_none_or(|tenant| scope.tenant() == tenant.as_str()))
            .filter(|(_, account)| account.is_limited())
            .map(|(scope, _)| scope)
    }

    /// What was used at a scope and below.
    pub fn usage(&self, scope: &ScopePath) -> Usage {
        self.account(scope.as_str()).map(|account| account.usage).unwrap_or_default()
    }

    pub(crate) fn account(&self, scope: &str) -> Option<&Account> {
        self.accounts.get(scope)
    }

    pub(crate) fn recorded(&self, tenant: &TenantId, key: &IdempotencyKey) -> Option<&Recorded> {
        self.keys.get(tenant)?.get(key)
    }

    /// Open holds that run out by `now_ms`, the oldest first, and whose they are.
    pub(crate) fn due(&self, now_ms: u64) -> impl Iterator<Item = (TenantId, &HoldId)> {
        self.expiry.iter().take_while(move |&&(at, _)| at <= now_ms).map(|(_, hold_id)| {
            let hold = self.holds.get(hold_id).expect("the index names holds");
            (hold.scope.tenant_id(), hold_id)
        })
    }

    /// Recomputes what is kept from the holds and compares. Takes time in proportion to all holds ever made.
    pub fn check(&self) -> Result<(), Broken> {
        let mut expected: BTreeMap<&str, Usage> = BTreeMap::new();
        let mut open = 0;
        for (hold_id, hold) in &self.holds {
            let counted = match hold.status {
                HoldStatus::Open => {
                    open += 1;
                    if !self.expiry.contains(&(hold.expires_ms, hold_id.clone())) {
                        return Err(Broken::Expiry);
                    }
                    Some(hold.amounts)
                }
                HoldStatus::Settled { used, .. } => Some(used),
                HoldStatus::Voided | HoldStatus::Expired => None,
            };
            for scope in hold.scope.enclosing() {
                let usage = expected.entry(scope).or_default();
                let Some(amounts) = counted else { continue };
                let (count, totals) = if hold.status == HoldStatus::Open {
                    (&mut usage.open_holds, &mut usage.held)
                } else {
                    (&mut usage.settled_holds, &mut usage.spent)
                };
                *count += 1;
                for (meter, amount) in amounts.iter() {
                    totals.0[meter.index()] += u128::from(amount);
                }
            }
        }
        if self.expiry.len() != open {
            return Err(Broken::Expiry);
        }
        for (scope, account) in &self.accounts {
            if account.usage != expected.remove(scope.as_str()).unwrap_or_default() {
                return Err(Broken::Usage(scope.clone()));
            }
            for (meter, balance) in account.balances() {
                let Balance { granted, available, held, spent, debt } = balance;
                let balanced = u128::from(granted) + debt == u128::from(available) + held + spent;
                if !balanced || (available > 0 && debt > 0) {
                    return Err(Broken::Balance(scope.clone(), meter));
                }
            }
        }
        if expected.is_empty() { Ok(()) } else { Err(Broken::Missing) }
    }
}

/// How a state contradicts itself: a defect, or a damaged snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Broken {
    /// What is held, spent or counted at a scope is not what its holds say.
    #[error("usage of {0} is not that of its holds")]
    Usage(ScopePath),
    /// A balance that does not balance.
    #[error("{1} of {0} does not balance")]
    Balance(ScopePath, Meter),
    /// A hold's scope is not accounted for.
    #[error("a hold's scope has no account")]
    Missing,
    /// The open holds and the index of when they run out differ.
    #[error("the expiry index does not match the open holds")]
    Expiry,
}

fn each_enclosing(
    accounts: &mut BTreeMap<ScopePath, Account>,
    scope: &ScopePath,
    mut change: impl FnMut(&mut Account),
) {
    for name in scope.enclosing() {
        match accounts.get_mut(name) {
            Some(account) => change(account),
            None => change(accounts.entry(scope.of_enclosing(name)).or_default()),
        }
    }
}
