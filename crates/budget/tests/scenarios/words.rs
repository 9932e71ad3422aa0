//! The vocabulary of the scenarios: a world that sweeps before it decides and looks at everything after it recorded; actions with
//! defaults (actor and holder `agent-1`, ttl 10 s); amounts as text (`cpu_ms=5 wall_ms=3`).

use std::sync::Arc;

use exchequer_budget::{
    Action, Allowance, Amounts, BudgetTerms, Command, DecideError, Decided, Decision, DecisionRun, Denial,
    Event, GrantId, GrantTerms, HoldId, Idempotency, IdempotencyKey, Label, Meter, Past, Reached, Refusal,
    ScopePath, State, Subject, TenantId, Threshold, Ttl, Window, Zone, decide, preview, sweep, wire,
};

#[derive(Default)]
pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) past: Past,
    pub(crate) now_ms: u64,
    /// Told of what was journaled only.
    replica: State,
}

impl World {
    pub(crate) fn at(now_ms: u64) -> Self {
        Self { now_ms, ..Self::default() }
    }

    /// Lets time pass until `now_ms`; what it brought.
    pub(crate) fn until(&mut self, now_ms: u64) -> Vec<Event> {
        self.now_ms = now_ms;
        let mut events = Vec::new();
        loop {
            let due = sweep(&self.state, self.now_ms);
            if due.is_empty() {
                return events;
            }
            for (tenant, decision) in due {
                self.record(&tenant, &decision);
                events.extend(decision.events);
            }
        }
    }

    pub(crate) fn run(&mut self, action: Action) -> Vec<Event> {
        self.run_by("agent-1", action)
    }

    pub(crate) fn run_by(&mut self, actor: &str, action: Action) -> Vec<Event> {
        match self.ask("acme", actor, None, action).unwrap() {
            Decided::New(decision) => decision.events,
            other => panic!("{other:?} without a key"),
        }
    }

    pub(crate) fn ask(
        &mut self,
        tenant: &str,
        actor: &str,
        key: Option<(&str, u8)>,
        action: Action,
    ) -> Result<Decided, DecideError> {
        self.until(self.now_ms);
        let idempotency = key.map(|(key, hash)| Idempotency {
            key: IdempotencyKey::parse(key).unwrap(),
            request_hash: [hash; 32],
        });
        let tenant = TenantId::parse(tenant).unwrap();
        let command =
            Command::new(tenant.clone(), Subject::parse(actor).unwrap(), idempotency, action).unwrap();
        let told = preview(&self.state, &self.past, &command, self.now_ms);
        let decided = decide(&self.state, &self.past, &command, self.now_ms);
        if let Ok(Decided::New(decision)) = &decided {
            assert_eq!(told.as_ref(), Ok(&decision.events[0]), "a dry run tells what would be");
            self.record(&tenant, decision);
        }
        decided
    }

    fn record(&mut self, tenant: &TenantId, decision: &Decision) {
        self.state.record(decision, tenant, self.now_ms);
        let run = DecisionRun { tenant: tenant.clone(), decisions: vec![decision.clone()] };
        let bytes = wire::encode_run(&run);
        let decoded = wire::decode_run(&bytes);
        assert_eq!(decoded.as_ref(), Ok(&run));
        self.replica.record_run(&decoded.unwrap(), self.now_ms);
        self.look();
    }

    /// Everything so far is in the block of this stream sequence.
    pub(crate) fn retire(&mut self, stream_seq: u64) {
        self.state.retire(&mut self.past, stream_seq);
        let rows = self.past.count();
        self.replica.retire(&mut self.past, stream_seq);
        assert_eq!(self.past.count(), rows, "a second state adds nothing to the same past");
        self.look();
    }

    fn look(&self) {
        assert_eq!(self.state.check(), Ok(()));
        let encoded = self.state.encode();
        assert!(self.replica.encode() == encoded, "a replay leads to the same state");
        assert!(State::decode(&encoded).unwrap().encode() == encoded, "a snapshot is the state");
    }

    /// Granted, available, held, spent, debt of a budget.
    pub(crate) fn balance(&self, name: &str, window: Window, meter: Meter) -> [u128; 5] {
        let balance = self.state.balance(&scope(name), window, meter).unwrap();
        [balance.granted, balance.available, balance.held, balance.spent, balance.debt]
    }

    #[track_caller]
    pub(crate) fn check(&self, name: &str, want: [u128; 5]) {
        assert_eq!(self.balance(name, Window::AllTime, Meter::CpuMs), want, "{name}");
    }
}

pub(crate) fn scope(name: &str) -> ScopePath {
    ScopePath::parse(name).unwrap()
}

pub(crate) fn hold(name: &str) -> HoldId {
    HoldId::parse(name).unwrap()
}

pub(crate) fn label(text: &str) -> Label {
    Label::parse(text).unwrap()
}

fn rows(text: &str) -> impl Iterator<Item = (Meter, u64)> {
    text.split_whitespace().map(|row| {
        let (meter, amount) = row.split_once('=').unwrap();
        (Meter::parse(meter).unwrap(), amount.parse().unwrap())
    })
}

pub(crate) fn amounts(text: &str) -> Amounts {
    Amounts::new(rows(text)).unwrap()
}

pub(crate) fn allowance(text: &str) -> Allowance {
    Allowance::new(rows(text)).unwrap()
}

pub(crate) fn set(name: &str, granted: &str) -> Action {
    set_terms(name, BudgetTerms::all_time(allowance(granted)))
}

pub(crate) fn set_terms(name: &str, terms: BudgetTerms) -> Action {
    Action::SetBudget { scope: scope(name), terms: Arc::new(terms) }
}

/// Budgets over a window in a zone.
pub(crate) fn over(window: Window, zone: &str, granted: &str) -> BudgetTerms {
    let zone = Some(Zone::parse(zone).unwrap());
    BudgetTerms { window, zone, granted: allowance(granted), ..BudgetTerms::default() }
}

pub(crate) fn reserve(hold_id: &str, name: &str, wanted: &str) -> Action {
    Action::Reserve {
        hold_id: hold(hold_id),
        scope: scope(name),
        holder: Subject::parse("agent-1").unwrap(),
        amounts: amounts(wanted),
        ttl: Ttl::from_ms(10_000).unwrap(),
        at_least: Amounts::NONE,
        lease: false,
    }
}

pub(crate) fn lease(hold_id: &str, name: &str, wanted: &str) -> Action {
    let mut action = reserve(hold_id, name, wanted);
    if let Action::Reserve { lease, .. } = &mut action {
        *lease = true;
    }
    action
}

pub(crate) fn balancing(hold_id: &str, name: &str, wanted: &str, least: &str) -> Action {
    let mut action = reserve(hold_id, name, wanted);
    if let Action::Reserve { at_least, .. } = &mut action {
        *at_least = amounts(least);
    }
    action
}

pub(crate) fn extend(hold_id: &str, added: &str, ttl_ms: u64) -> Action {
    Action::Extend { hold_id: hold(hold_id), added: amounts(added), ttl: Ttl::from_ms(ttl_ms).unwrap() }
}

pub(crate) fn settle(hold_id: &str, used: &str) -> Action {
    Action::Settle { hold_id: hold(hold_id), used: amounts(used), source: None }
}

pub(crate) fn draw(hold_id: &str, used: &str) -> Action {
    Action::Draw { hold_id: hold(hold_id), used: amounts(used), source: None }
}

pub(crate) fn void(hold_id: &str) -> Action {
    Action::Void { hold_id: hold(hold_id) }
}

pub(crate) fn revoke(hold_id: &str) -> Action {
    Action::Revoke { hold_id: hold(hold_id), reason: label("left") }
}

pub(crate) fn report(name: &str, used: &str) -> Action {
    Action::Report { scope: scope(name), used: amounts(used), source: None, subject: None }
}

pub(crate) fn grant(grant_id: &str, amount: u64) -> GrantTerms {
    GrantTerms {
        grant_id: GrantId::parse(grant_id).unwrap(),
        scope: scope("acme"),
        window: Window::AllTime,
        meter: Meter::CpuMs,
        amount,
        priority: 0,
        effective_ms: 0,
        expires_ms: 0,
        recurring: false,
        rollover_cap: 0,
    }
}

pub(crate) fn add(terms: GrantTerms) -> Action {
    Action::AddGrant(Arc::new(terms))
}

/// What of the grants of `acme` over a window is left, in order of use.
pub(crate) fn left(world: &World, window: Window) -> Vec<(String, u64)> {
    let view = world.state.budget(&scope("acme"), window).unwrap();
    let grants = view.budget().grants();
    grants.map(|grant| (grant.terms().grant_id.to_string(), grant.remaining())).collect()
}

/// The denial, or what was granted instead.
pub(crate) fn denied(events: &[Event]) -> Result<Denial, Box<Event>> {
    match &events[0] {
        Event::HoldDenied { denial, .. } => Ok(denial.clone()),
        other => Err(Box::new(other.clone())),
    }
}

pub(crate) fn exhausted(name: &str, meter: Meter, requested: u64, available: u64) -> Denial {
    Denial::Exhausted { scope: scope(name), window: Window::AllTime, meter, requested, available }
}

pub(crate) fn refused(events: &[Event]) -> Refusal {
    match &events[0] {
        Event::CommandRefused { refusal, .. } => *refusal,
        other => panic!("{other:?} is no refusal"),
    }
}

pub(crate) fn held(events: &[Event]) -> Amounts {
    match &events[0] {
        Event::HoldGranted { amounts, .. } => amounts.clone(),
        other => panic!("{other:?} holds nothing"),
    }
}

pub(crate) fn reached(events: &[Event]) -> Vec<Reached> {
    let reached = events.iter().filter_map(|event| match event {
        Event::ThresholdReached(reached) => Some(Reached::clone(reached)),
        _ => None,
    });
    reached.collect()
}

pub(crate) fn thresholds(events: &[Event]) -> Vec<Threshold> {
    reached(events).into_iter().map(|reached| reached.threshold).collect()
}
