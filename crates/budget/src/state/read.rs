//! What can be asked of a state.
//!
//! Left out: who may ask, and messages. Everything that can be many comes a page at a time, or as an iterator.

use std::{collections::BTreeSet, ops::Bound, sync::Arc};

use super::{Hold, State, Usage};
use crate::{
    budget::{Balance, Budget},
    event::Reached,
    id::{HoldId, Label, TenantId, WebhookUrl},
    meter::Meter,
    policy::{Price, RateLimit, Window},
    scope::ScopePath,
};

/// Holds that a page looks at for each that it may show.
const LOOKS_PER_HOLD: usize = 10;

/// A page of open holds.
#[derive(Clone, Debug)]
pub struct OpenHolds<'s> {
    /// In order of their ids.
    pub holds: Vec<(&'s HoldId, &'s Hold)>,
    /// The last that was looked at, after which the next page begins; none if this was the last page.
    pub last: Option<&'s HoldId>,
}

/// A scope's budgets over one window, with what is held there.
#[derive(Clone, Copy, Debug)]
pub struct BudgetView<'s> {
    scope: &'s ScopePath,
    budget: &'s Budget,
    usage: &'s Usage,
}

impl<'s> BudgetView<'s> {
    /// The scope.
    pub fn scope(&self) -> &'s ScopePath {
        self.scope
    }

    /// The budgets.
    pub fn budget(&self) -> &'s Budget {
        self.budget
    }

    /// Their balances, in canonical order of meters.
    pub fn balances(&self) -> impl Iterator<Item = (Meter, Balance)> + use<'s> {
        let Self { budget, usage, .. } = *self;
        budget.lines.iter().map(move |line| (line.meter, line.balance(usage.held.get(line.meter))))
    }

    /// The balance of one meter, if it is limited.
    pub fn balance(&self, meter: Meter) -> Option<Balance> {
        let line = self.budget.line(meter)?;
        Some(line.balance(self.usage.held.get(meter)))
    }
}

/// A tenant's settings, beside its budgets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// In order of scope and meter.
    pub rate_limits: Vec<RateLimit>,
    /// Scopes and open holds at most, in order.
    pub concurrency_limits: Vec<(ScopePath, u64)>,
    /// In order of scope and meter.
    pub prices: Vec<Price>,
    /// The tenant's own meters and what they count, in order of name.
    pub meters: Vec<(Meter, Option<Label>)>,
    /// Where thresholds are reported.
    pub webhook: Option<WebhookUrl>,
    /// Notifications that wait.
    pub notifications_waiting: u64,
}

impl State {
    /// The latest time that a decision was recorded at: never falls.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Decisions recorded so far.
    pub fn decisions(&self) -> u64 {
        self.decisions
    }

    /// When the next sweep has something to do.
    pub fn next_due_ms(&self) -> Option<u64> {
        let hold = self.expiry.first().map(|&(at, _)| at);
        let timer = self.timers.first().map(|&(at, _)| at);
        hold.into_iter().chain(timer).min()
    }

    /// When the next open hold runs out.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.expiry.first().map(|&(at, _)| at)
    }

    /// The open hold with the least id: where ids are drawn in order of time, the oldest. Looks at each tenant.
    pub fn first_open(&self) -> Option<&HoldId> {
        self.open.values().filter_map(BTreeSet::first).min()
    }

    /// Number of open holds.
    pub fn open_holds(&self) -> u64 {
        self.expiry.len() as u64
    }

    /// A hold that is open or expired, or was closed in a block that is not yet retired. Others are in the
    /// [`Past`](crate::Past).
    pub fn hold(&self, hold_id: &HoldId) -> Option<&Hold> {
        self.holds.get(hold_id)
    }

    /// Up to `limit` open holds at `scope` and below, in order of their ids, after `after`. Looks at a bounded number of holds, the
    /// tenant's own alone: a page can have fewer than `limit` although there are more.
    pub fn open_holds_below(
        &self,
        scope: &ScopePath,
        leases_only: bool,
        after: Option<&HoldId>,
        limit: usize,
    ) -> OpenHolds<'_> {
        let mut page = OpenHolds { holds: Vec::new(), last: None };
        let has_any = self.number(scope.as_str()).is_some_and(|at| self.nodes[at].usage.open_holds > 0);
        let Some(ids) = self.open.get(scope.tenant()).filter(|_| has_any) else { return page };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let looks = limit.saturating_mul(LOOKS_PER_HOLD);
        let mut last = None;
        for (looked, hold_id) in ids.range::<HoldId, _>((from, Bound::Unbounded)).enumerate() {
            let hold = &self.holds[hold_id];
            let is_asked = (hold.lease || !leases_only) && scope.encloses(&hold.scope);
            if looked >= looks || (is_asked && page.holds.len() >= limit) {
                page.last = last;
                break;
            }
            if is_asked {
                page.holds.push((hold_id, hold));
            }
            last = Some(hold_id);
        }
        page
    }

    /// What was used at a scope and below.
    pub fn usage(&self, scope: &ScopePath) -> Usage {
        self.number(scope.as_str()).map(|number| self.nodes[number].usage.clone()).unwrap_or_default()
    }

    /// A scope's budgets over one window.
    pub fn budget(&self, scope: &ScopePath, window: Window) -> Option<BudgetView<'_>> {
        self.budgets_of(scope).find(|view| view.budget.window == window)
    }

    /// The balance of a limited meter at a scope over one window.
    pub fn balance(&self, scope: &ScopePath, window: Window, meter: Meter) -> Option<Balance> {
        self.budget(scope, window)?.balance(meter)
    }

    /// A scope's budgets, in order of window.
    pub fn budgets_of(&self, scope: &ScopePath) -> impl Iterator<Item = BudgetView<'_>> {
        self.number(scope.as_str()).into_iter().flat_map(|number| self.views(number))
    }

    /// Budgets of one tenant or all, in order of scope and window, after `after`.
    pub fn budgets<'s>(
        &'s self,
        tenant: Option<&'s TenantId>,
        after: Option<(&ScopePath, Window)>,
    ) -> impl Iterator<Item = BudgetView<'s>> + use<'s> {
        let after = after.map(|(scope, window)| (scope.clone(), window));
        self.configured_of(tenant.map(TenantId::as_str), after.as_ref().map(|(scope, _)| scope))
            .flat_map(|number| self.views(number))
            .filter(move |view| {
                after.as_ref().is_none_or(|(scope, window)| {
                    (view.scope.as_str(), view.budget.window) > (scope.as_str(), *window)
                })
            })
    }

    /// Budgets at a scope and below, in order of scope and window.
    pub fn budgets_below<'s>(&'s self, scope: &'s ScopePath) -> impl Iterator<Item = BudgetView<'s>> {
        self.configured_of(Some(scope.tenant()), Some(scope))
            .flat_map(|number| self.views(number))
            .skip_while(|view| view.scope < scope)
            .take_while(|view| view.scope.as_str().starts_with(scope.as_str()))
            .filter(|view| scope.encloses(view.scope))
    }

    fn views(&self, number: usize) -> impl Iterator<Item = BudgetView<'_>> {
        let node = &self.nodes[number];
        node.budgets.iter().map(|budget| BudgetView { scope: &node.path, budget, usage: &node.usage })
    }

    /// Scopes of a tenant with any setting, in order, from `from` on. Beginning there keeps a page's cost independent of what is
    /// before it.
    fn configured_of<'s>(
        &'s self,
        tenant: Option<&'s str>,
        from: Option<&ScopePath>,
    ) -> impl Iterator<Item = usize> + use<'s> {
        let from = match (from, tenant) {
            (Some(from), Some(tenant)) if from.as_str() < tenant => Bound::Included(tenant),
            (Some(from), _) => Bound::Included(from.as_str()),
            (None, Some(tenant)) => Bound::Included(tenant),
            (None, None) => Bound::Unbounded,
        };
        self.configured
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(move |(scope, _)| tenant.is_none_or(|tenant| scope.as_str().starts_with(tenant)))
            .filter(move |(scope, _)| tenant.is_none_or(|tenant| scope.tenant() == tenant))
            .map(|(_, &number)| number)
    }

    /// A tenant's settings.
    pub fn settings(&self, tenant: &TenantId) -> Settings {
        let mut settings = Settings::default();
        if let Some(kept) = self.tenants.get(tenant) {
            settings.meters = kept.meters.iter().map(|(&meter, text)| (meter, text.clone())).collect();
            settings.webhook.clone_from(&kept.webhook);
            settings.notifications_waiting = kept.waiting as u64;
        }
        for number in self.configured_of(Some(tenant.as_str()), None) {
            let node = &self.nodes[number];
            settings.rate_limits.extend(node.rates.iter().map(|(meter, rate)| RateLimit {
                scope: node.path.clone(),
                meter: *meter,
                amount: rate.amount,
                period_ms: rate.period_ms,
                burst: rate.burst,
            }));
            if node.max_open_holds > 0 {
                settings.concurrency_limits.push((node.path.clone(), node.max_open_holds));
            }
            settings.prices.extend(node.prices.iter().map(|&(meter, (micros, per))| Price {
                scope: node.path.clone(),
                meter,
                micros,
                per,
            }));
        }
        settings
    }

    /// Where a tenant's thresholds are reported.
    pub fn webhook(&self, tenant: &TenantId) -> Option<&WebhookUrl> {
        self.tenants.get(tenant)?.webhook.as_ref()
    }

    /// Whether a tenant can use a meter: it is the product's own, or the tenant has defined it.
    pub fn defines(&self, tenant: &TenantId, meter: Meter) -> bool {
        !meter.is_custom() || self.tenants.get(tenant).is_some_and(|kept| kept.meters.contains_key(&meter))
    }

    /// Notifications that wait to be delivered, in order of their numbers.
    pub fn notifications(&self) -> impl Iterator<Item = &Arc<Reached>> {
        self.notifications.values()
    }

    /// A notification, if it waits.
    pub fn notification(&self, number: u64) -> Option<&Arc<Reached>> {
        self.notifications.get(&number)
    }
}
