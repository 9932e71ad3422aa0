//! What time brings: holds and grants that end, grants that begin, windows that roll.
//!
//! Left out: commands. Things are due in the order of their times; at the same time grants end before windows, and begin after them.

use std::collections::{BTreeMap, HashMap, hash_map::Entry};

use crate::{
    budget::{Budget, Grant},
    calendar,
    decide::thresholds::{Numbers, report_all},
    event::{Decision, Event},
    id::{GrantId, Subject, TenantId},
    policy::Window,
    scope::ScopePath,
    state::{NodeId, State, Timer},
};

/// Events that one sweep makes at most, thresholds not counted.
pub const SWEEP_MAX: usize = 512;
/// Bytes that the events of one sweep take at most when they are encoded, so that a run of it fits into a log entry.
const SWEEP_BYTES: usize = 40 * 1024;
/// Bytes that an event takes beside its names.
const EVENT_BYTES: usize = 128;

/// What is due at `now_ms`, or at the state's own time if that is later: one decision per tenant, in order of tenant, of up to
/// [`SWEEP_MAX`] events together. Record them and sweep again until nothing is due.
pub fn sweep(state: &State, now_ms: u64) -> Vec<(TenantId, Decision)> {
    let now_ms = now_ms.max(state.now_ms());
    let mut swept = Swept {
        state,
        now_ms,
        numbers: Numbers::new(state),
        by_tenant: BTreeMap::new(),
        bytes: 0,
        after: HashMap::new(),
    };
    let mut holds = state.expiry.range(..).take_while(|(at, _)| *at <= now_ms).peekable();
    let mut timers = state.timers.range(..).take_while(|(at, _)| *at <= now_ms).peekable();
    for _ in 0..SWEEP_MAX {
        if swept.bytes > SWEEP_BYTES {
            break;
        }
        let timer_first = match (holds.peek(), timers.peek()) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some((hold_at, _)), Some((timer_at, _))) => timer_at < hold_at,
        };
        if timer_first {
            if let Some((_, timer)) = timers.next() {
                swept.timer(timer);
            }
        } else if let Some((_, hold_id)) = holds.next() {
            if let Some(hold) = state.holds.get(hold_id) {
                swept.add(hold.scope.tenant_id(), Event::HoldExpired { hold_id: hold_id.clone() });
            }
        } else {
            break;
        }
    }
    let decision = |events| Decision { idempotency: None, actor: Subject::metering(), events };
    swept.by_tenant.into_iter().map(|(tenant, events)| (tenant, decision(events))).collect()
}

struct Swept<'s> {
    state: &'s State,
    now_ms: u64,
    numbers: Numbers<'s>,
    by_tenant: BTreeMap<TenantId, Vec<Event>>,
    bytes: usize,
    /// Budgets that were changed, as they will be: what comes next for one goes on from there.
    after: HashMap<(NodeId, Window), Budget>,
}

impl Swept<'_> {
    fn add(&mut self, tenant: TenantId, event: Event) {
        let names = match &event {
            Event::WindowRolled { scope, .. } => scope.as_str().len(),
            Event::ThresholdReached(reached) => reached.scope.as_str().len(),
            _ => 0,
        };
        self.bytes += EVENT_BYTES + names;
        self.by_tenant.entry(tenant).or_default().push(event);
    }

    fn timer(&mut self, timer: &Timer) {
        // Each is of something that is there, and of nothing that has ended in this sweep already.
        let _ = match timer {
            Timer::WindowEnds(scope, window) => self.roll(scope, *window),
            Timer::GrantEnds(tenant, grant_id) => self.grant(tenant, grant_id, true),
            Timer::GrantBegins(tenant, grant_id) => self.grant(tenant, grant_id, false),
        };
    }

    fn budget(&mut self, node: NodeId, window: Window) -> Option<&mut Budget> {
        match self.after.entry((node, window)) {
            Entry::Occupied(changed) => Some(changed.into_mut()),
            Entry::Vacant(place) => Some(place.insert(self.state.nodes[node].budget(window)?.clone())),
        }
    }

    fn roll(&mut self, scope: &ScopePath, window: Window) -> Option<()> {
        let number = self.state.number(scope.as_str())?;
        let now_ms = self.now_ms;
        let budget = self.budget(number, window)?;
        // Straight to the present window; never to one that begins before the last one's end.
        let (start_ms, end_ms) = calendar::window(window, budget.zone.as_ref(), now_ms);
        let start_ms = start_ms.max(budget.end_ms);
        budget.roll(start_ms, end_ms);
        let rolled = Event::WindowRolled { scope: scope.clone(), window, start_ms, end_ms };
        self.add(scope.tenant_id(), rolled);
        self.report(number, window);
        Some(())
    }

    fn grant(&mut self, tenant: &TenantId, grant_id: &GrantId, ends: bool) -> Option<()> {
        let place = self.state.place(tenant, grant_id)?;
        let line = self.budget(place.node, place.window)?.line_mut(place.meter)?;
        // It ends before it begins if both are due at the same time.
        let remainder = line.grant(grant_id.as_str()).map(Grant::remaining)?;
        let grant_id = grant_id.clone();
        let event = if ends {
            line.end_grant(grant_id.as_str());
            Event::GrantEnded { grant_id, revoked: false, remainder }
        } else {
            line.begin_grant(grant_id.as_str());
            Event::GrantBegun { grant_id }
        };
        self.add(tenant.clone(), event);
        self.report(place.node, place.window);
        Some(())
    }

    /// Reports what a changed budget reaches, each threshold once.
    fn report(&mut self, node: NodeId, window: Window) {
        let scope = &self.state.nodes[node].path;
        let mut reached = Vec::new();
        let Some(after) = self.after.get_mut(&(node, window)) else { return };
        report_all(scope, after, self.now_ms, &mut self.numbers, &mut reached);
        for event in &reached {
            if let Event::ThresholdReached(reached) = event {
                after.mark(reached);
            }
        }
        for event in reached {
            self.add(scope.tenant_id(), event);
        }
    }
}
