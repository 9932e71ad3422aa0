//! Watching budgets: what stands, then what has changed, from what is durable.
//!
//! Left out: what a change was, which the log says. Invariant: a watcher is told of a state that the stream bears out, at most four times
//! a second, and for a bounded time; a caller and a tenant's callers hold no more than a bounded number of places, and give them back
//! whenever the stream of answers is dropped.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use exchequer_budget::{ScopePath, wire};
use exchequer_event::v1;
use futures::stream;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tonic::{Request, Response, Status, codegen::BoxStream};

use super::{
    Api, Reply,
    status::{busy, incomplete, unavailable},
    who::Who,
};
use crate::{ask::Check, route::Route};

/// Shortest time between two messages.
const PERIOD: Duration = Duration::from_millis(250);
/// Budgets that one watcher is shown at most.
const MAX_BUDGETS: usize = 1000;
/// How long one watches at most: a caller is looked at when it asks, and a token or its key may be good no more since.
const MAX_AGE: Duration = Duration::from_secs(15 * 60);
/// Watchers of one caller, of one tenant's callers, and of all together.
const MAX_PER_CALLER: usize = 16;
const MAX_PER_TENANT: usize = 64;
const MAX_WATCHERS: usize = 256;

/// Tenant and subject of a caller.
type CallerName = (Option<String>, String);

/// Who watches.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watchers(Arc<Mutex<HashMap<CallerName, usize>>>);

/// A watcher's place.
struct Seat {
    watchers: Watchers,
    name: CallerName,
}

impl Watchers {
    fn enter(&self, name: CallerName) -> Option<Seat> {
        let mut watching = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = watching.get(&name).copied().unwrap_or(0);
        let of_tenant = watching.iter().filter(|((tenant, _), _)| *tenant == name.0);
        if own >= MAX_PER_CALLER
            || of_tenant.map(|(_, seats)| seats).sum::<usize>() >= MAX_PER_TENANT
            || watching.values().sum::<usize>() >= MAX_WATCHERS
        {
            return None;
        }
        watching.insert(name.clone(), own + 1);
        drop(watching);
        Some(Seat { watchers: self.clone(), name })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut watching = self.watchers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = watching.get_mut(&self.name) {
            *own -= 1;
            if *own == 0 {
                watching.remove(&self.name);
            }
        }
    }
}

/// Scope and number of the window.
type Name = (String, i32);

struct Watching {
    api: Api,
    scope: ScopePath,
    ticks: Interval,
    ends: Instant,
    /// What the watcher was told last; nothing before the first message.
    told: Option<BTreeMap<Name, v1::Budget>>,
    cursor: u64,
    ended: bool,
    _seat: Seat,
}

pub(super) fn budgets(
    api: &Api,
    request: Request<v1::WatchBudgetsRequest>,
) -> Reply<BoxStream<v1::WatchBudgetsResponse>> {
    let (who, message) = Who::open(request)?;
    let mut check = Check::default();
    let scope = check.scope(&message.scope);
    check.refusal()?;
    let scope = scope.ok_or_else(incomplete)?;
    who.caller.may_read_tenant(scope.tenant())?;
    let name = (who.caller.tenant, who.caller.subject);
    let seat = api.watchers.enter(name).ok_or_else(|| busy("too many watch already"))?;
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watching = Watching {
        api: api.clone(),
        scope,
        ticks,
        ends: Instant::now() + MAX_AGE,
        told: None,
        cursor: 0,
        ended: false,
        _seat: seat,
    };
    let answers = stream::unfold(watching, async |mut watching| {
        let answer = watching.next().await?;
        Some((answer, watching))
    });
    Ok(Response::new(Box::pin(answers)))
}

impl Watching {
    async fn next(&mut self) -> Option<Result<v1::WatchBudgetsResponse, Status>> {
        while !self.ended {
            self.ticks.tick().await;
            match self.look() {
                Ok(None) => {}
                Ok(Some(changes)) => return Some(Ok(changes)),
                Err(status) => {
                    self.ended = true;
                    return Some(Err(status));
                }
            }
        }
        None
    }

    /// What has changed since the watcher was told, if anything has.
    fn look(&mut self) -> Result<Option<v1::WatchBudgetsResponse>, Status> {
        if Instant::now() >= self.ends {
            return Err(unavailable("one watches for 15 minutes at the most; ask again"));
        }
        let router = &self.api.shared.router;
        let tenant = self.scope.tenant_id();
        if let Route::Nobody(reason) = router.route(router.partition_of_tenant(&tenant)) {
            return Err(unavailable(&reason));
        }
        let fold = self.api.shared.fold();
        let cursor = fold.cursor();
        if self.told.is_some() && cursor == self.cursor {
            return Ok(None);
        }
        let state = fold.budget_of(&tenant);
        let mut now = BTreeMap::new();
        for view in state.budgets_below(&self.scope).take(MAX_BUDGETS) {
            let budget = wire::budget(&view);
            now.insert((budget.scope.clone(), budget.window), budget);
        }
        drop(fold);
        let is_first = self.told.is_none();
        let told = self.told.take().unwrap_or_default();
        let changed = now.iter().filter(|(name, budget)| told.get(*name) != Some(*budget));
        let budgets: Vec<_> = changed.map(|(_, budget)| budget.clone()).collect();
        // Where there are more than are shown, one that is not among the first any more may still be there: it is not told of again.
        let is_whole = now.len() < MAX_BUDGETS;
        let gone = told.into_iter().filter(|(name, _)| is_whole && !now.contains_key(name));
        let removed: Vec<_> = gone
            .map(|((scope, window), budget)| {
                let meters = budget.balances.into_iter().map(|balance| balance.meter).collect();
                v1::BudgetRemoved { scope, window, meters }
            })
            .collect();
        self.told = Some(now);
        self.cursor = cursor;
        let is_news = is_first || !budgets.is_empty() || !removed.is_empty();
        Ok(is_news.then_some(v1::WatchBudgetsResponse { budgets, removed, stream_seq: cursor }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchers_of_one_tenant_leave_room_for_the_others() {
        let watchers = Watchers::default();
        let enter =
            |tenant: &str, subject: usize| watchers.enter((Some(tenant.to_owned()), subject.to_string()));
        let mut seats: Vec<_> = (0..1000).filter_map(|n| enter("acme", n % 10)).collect();
        assert_eq!(seats.len(), MAX_PER_TENANT);
        assert!(enter("acme", 99).is_none());
        assert!(enter("zeta", 0).is_some());
        seats.pop();
        assert!(enter("acme", 99).is_some());
    }
}
