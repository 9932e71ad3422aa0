//! Whether a state contradicts itself: everything that is kept twice, or follows from something else, is reckoned again.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::{HoldStatus, State, Tenant, Timer, Usage};
use crate::{meter::Meter, policy::Window, scope::ScopePath};

/// How a state contradicts itself: a defect, or a damaged snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Broken {
    /// What is held or counted at a scope is not what its holds say.
    #[error("what is held at {0} is not what its holds say")]
    Held(ScopePath),
    /// A balance that does not balance, or grants that don't add up.
    #[error("{2} of {0} over {1:?} does not balance")]
    Balance(ScopePath, Window, Meter),
    /// Budgets, limits, prices or scopes are out of order or not indexed.
    #[error("what is set at {0} is out of order")]
    Settings(ScopePath),
    /// A hold's scope is not known.
    #[error("a hold's scope is not known")]
    Missing,
    /// The open holds and the indexes of when they run out and of whose they are differ.
    #[error("an index does not match the open holds")]
    Expiry,
    /// What is due and the timers differ.
    #[error("the timers do not match what is due")]
    Timers,
    /// What is counted per tenant is not what there is.
    #[error("the counts of a tenant are not what there is")]
    Tenants,
    /// The notifications and what is counted of them differ.
    #[error("the notifications do not match their counts")]
    Notifications,
    /// What waits to be retired and what is over differ.
    #[error("what waits to be retired is not what is over")]
    Retiring,
}

impl State {
    /// Reckons again what is kept, and compares. Takes time in proportion to the whole state.
    pub fn check(&self) -> Result<(), Broken> {
        self.check_holds()?;
        let mut tenants: BTreeMap<&str, Tenant> = BTreeMap::new();
        let mut timers = 0;
        self.check_counts()?;
        for (number, node) in self.nodes.iter().enumerate() {
            let broken = || Broken::Settings(node.path.clone());
            let parent = node.path.as_str().rsplit_once('/').map(|(outer, _)| outer);
            let kept = node.parent.map(|parent| self.nodes[parent].path.as_str());
            let is_indexed = self.configured.get(&node.path) == Some(&number);
            if self.number(node.path.as_str()) != Some(number)
                || kept != parent
                || is_indexed != node.is_configured()
                || !node.budgets.is_sorted_by(|a, b| a.window < b.window)
                || !node.rates.is_sorted_by(|a, b| a.0 < b.0)
                || !node.prices.is_sorted_by(|a, b| a.0 < b.0)
            {
                return Err(broken());
            }
            let tenant = tenants.entry(node.path.tenant()).or_default();
            tenant.rate_limits += node.rates.len();
            tenant.prices += node.prices.len();
            tenant.concurrency_limits += usize::from(node.max_open_holds > 0);
            tenant.budgets += node.budgets.len();
            for budget in &node.budgets {
                if budget.lines.is_empty() || !budget.lines.is_sorted_by(|a, b| a.meter < b.meter) {
                    return Err(broken());
                }
                if budget.end_ms > 0 && budget.end_ms < u64::MAX {
                    timers += 1;
                    let timer = Timer::WindowEnds(node.path.clone(), budget.window);
                    if !self.timers.contains(&(budget.end_ms, timer)) {
                        return Err(Broken::Timers);
                    }
                }
                for line in &budget.lines {
                    let held = node.usage.held.get(line.meter);
                    let balance = line.balance(held);
                    let balanced = balance.granted + balance.debt == balance.available + held + balance.spent
                        && (balance.available == 0 || balance.debt == 0);
                    if !balanced || !line.is_sound(budget.thresholds.len()) {
                        return Err(Broken::Balance(node.path.clone(), budget.window, line.meter));
                    }
                    timers += self.check_grants(number, budget.window, line)?;
                }
            }
        }
        if self.configured.len() != self.nodes.iter().filter(|node| node.is_configured()).count()
            || self.numbers.len() != self.nodes.len()
        {
            return Err(Broken::Missing);
        }
        if timers != self.timers.len() {
            return Err(Broken::Timers);
        }
        self.check_tenants(&tenants)
    }

    fn check_counts(&self) -> Result<(), Broken> {
        let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for node in &self.nodes {
            counts.entry(node.path.tenant()).or_default().0 += 1;
        }
        for hold in self.holds.values().filter(|hold| hold.status.is_live()) {
            counts.entry(hold.scope.tenant()).or_default().1 += 1;
        }
        let mut nodes = self.nodes.iter();
        let is_right = nodes.all(|node| {
            (node.scopes, node.live_holds) == counts.remove(node.path.as_str()).unwrap_or_default()
        });
        if is_right { Ok(()) } else { Err(Broken::Tenants) }
    }

    fn check_holds(&self) -> Result<(), Broken> {
        let mut expected: BTreeMap<&str, Usage> = BTreeMap::new();
        let (mut open, mut closed) = (0, 0);
        for (hold_id, hold) in &self.holds {
            if self.number(hold.scope.as_str()).is_none() {
                return Err(Broken::Missing);
            }
            match hold.status {
                HoldStatus::Open => {
                    open += 1;
                    let own = self.open.get(hold.scope.tenant());
                    if !self.expiry.contains(&(hold.expires_ms, hold_id.clone()))
                        || !own.is_some_and(|ids| ids.contains(hold_id))
                    {
                        return Err(Broken::Expiry);
                    }
                    for scope in hold.scope.enclosing() {
                        let usage = expected.entry(scope).or_default();
                        usage.open_holds += 1;
                        usage.held.add(&hold.amounts);
                    }
                }
                HoldStatus::Settled { .. } | HoldStatus::Voided => closed += 1,
                HoldStatus::Expired => {}
            }
        }
        let is_bare = self.open.values().any(BTreeSet::is_empty);
        if self.expiry.len() != open
            || self.open.values().map(BTreeSet::len).sum::<usize>() != open
            || is_bare
        {
            return Err(Broken::Expiry);
        }
        for node in &self.nodes {
            let expected = expected.remove(node.path.as_str()).unwrap_or_default();
            if (node.usage.open_holds, &node.usage.held) != (expected.open_holds, &expected.held) {
                return Err(Broken::Held(node.path.clone()));
            }
        }
        self.check_retiring(closed)
    }

    fn check_retiring(&self, closed: usize) -> Result<(), Broken> {
        use super::Retiring;
        let (mut answers, mut over, mut grants) = (0, 0, 0);
        for (number, retiring) in &self.retiring {
            let is_right = match retiring {
                Retiring::Answer(id) => {
                    answers += 1;
                    self.recent.contains_key(id)
                }
                Retiring::Granted(hold_id) => {
                    self.holds.get(hold_id).is_some_and(|hold| hold.granted_seq == 0)
                }
                Retiring::Closed(hold_id) => {
                    over += 1;
                    self.holds.get(hold_id).is_some_and(|hold| {
                        matches!(hold.status, HoldStatus::Settled { .. } | HoldStatus::Voided)
                    })
                }
                Retiring::Grant(tenant, grant_id) => {
                    grants += 1;
                    self.tenants.get(tenant).is_some_and(|kept| kept.grants.get(grant_id) == Some(&None))
                }
            };
            if !is_right || *number > self.decisions {
                return Err(Broken::Retiring);
            }
        }
        let ended =
            self.tenants.values().flat_map(|kept| kept.grants.values()).filter(|place| place.is_none());
        if !self.retiring.iter().is_sorted_by_key(|(number, _)| *number)
            || (answers, over, grants) != (self.recent.len(), closed, ended.count())
        {
            return Err(Broken::Retiring);
        }
        Ok(())
    }

    fn check_grants(&self, node: usize, window: Window, line: &crate::budget::Line) -> Result<usize, Broken> {
        let path = &self.nodes[node].path;
        let mut timers = 0;
        for grant in &line.grants {
            let (terms, tenant) = (&grant.terms, path.tenant_id());
            let place = super::Place { node, window, meter: line.meter };
            let kept = self.tenants.get(&tenant).and_then(|kept| kept.grants.get(&terms.grant_id));
            if kept != Some(&Some(place))
                || (&terms.scope, terms.window, terms.meter) != (path, window, line.meter)
            {
                return Err(Broken::Tenants);
            }
            let mut due = Vec::with_capacity(2);
            if !grant.effective {
                due.push((terms.effective_ms, Timer::GrantBegins(tenant.clone(), terms.grant_id.clone())));
            }
            if terms.expires_ms > 0 {
                due.push((terms.expires_ms, Timer::GrantEnds(tenant, terms.grant_id.clone())));
            }
            timers += due.len();
            if !due.iter().all(|timer| self.timers.contains(timer)) {
                return Err(Broken::Timers);
            }
        }
        Ok(timers)
    }

    fn check_tenants(&self, expected: &BTreeMap<&str, Tenant>) -> Result<(), Broken> {
        let mut waiting: BTreeMap<&str, usize> = BTreeMap::new();
        for one in self.notifications.values() {
            *waiting.entry(one.scope.tenant()).or_default() += 1;
        }
        let mut grants = 0;
        for (tenant, kept) in &self.tenants {
            let live_grants = kept.grants.values().flatten().count();
            grants += live_grants;
            let none = Tenant::default();
            let expected = expected.get(tenant.as_str()).unwrap_or(&none);
            let counts = |tenant: &Tenant| {
                [tenant.budgets, tenant.rate_limits, tenant.concurrency_limits, tenant.prices]
            };
            if counts(kept) != counts(expected)
                || kept.live_grants != live_grants
                || kept.meters.keys().any(|meter| !meter.is_custom())
            {
                return Err(Broken::Tenants);
            }
            if kept.waiting != waiting.remove(tenant.as_str()).unwrap_or(0) {
                return Err(Broken::Notifications);
            }
        }
        let unknown = expected.iter().any(|(tenant, counts)| {
            !self.tenants.contains_key(*tenant)
                && counts.budgets + counts.rate_limits + counts.concurrency_limits + counts.prices > 0
        });
        let lines = self.nodes.iter().flat_map(|node| &node.budgets).flat_map(|budget| &budget.lines);
        if unknown || grants != lines.map(|line| line.grants.len()).sum::<usize>() {
            return Err(Broken::Tenants);
        }
        let last = self.notifications.last_key_value();
        let numbered = self.notifications.iter().all(|(number, one)| one.notification == *number);
        if !waiting.is_empty()
            || !numbered
            || last.is_some_and(|(number, _)| *number > self.last_notification)
        {
            return Err(Broken::Notifications);
        }
        Ok(())
    }
}
