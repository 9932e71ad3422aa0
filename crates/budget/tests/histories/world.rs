//! The fold and the oracle side by side: both take the same steps, and have to say and to be the same after each.

use std::collections::{BTreeMap, BTreeSet};

use exchequer_budget::{
    Action, Command, DecideError, Decided, Decision, DecisionRun, Enforcement, Event, Idempotency,
    IdempotencyKey, Overage, Past, ROW_BYTES, ScopePath, State, Subject, TenantId, decide, preview, sweep,
    wire,
};

use crate::{
    answers::{Asking, enclosing},
    facts::{Facts, amounts},
    kinds,
    names::SCOPES,
    passing,
    pots::Pots,
};

#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) action: Action,
    pub(crate) actor: Subject,
    /// Whose command it is, where the action names no scope.
    pub(crate) other_tenant: bool,
    /// Of few.
    pub(crate) key: Option<u8>,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Ask(Box<Ask>),
    /// By how much the writer's clock moves; it may be set back.
    Wait(i64),
    /// The block is accepted.
    Retire,
    /// The writer starts again from what a snapshot holds.
    Restart,
    /// A snapshot is kept, to be replayed from in the end.
    Snapshot,
}

enum Row {
    Run { now_ms: u64, bytes: Vec<u8> },
    Block(u64),
}

struct Snapshot {
    rows: usize,
    state: Vec<u8>,
    past: u64,
}

struct Answered {
    request: u8,
    reply: Event,
    /// Block, once that is accepted.
    block: Option<u64>,
}

pub(crate) struct World {
    state: State,
    past: Past,
    facts: Facts,
    answered: BTreeMap<(TenantId, u8), Answered>,
    journal: Vec<Row>,
    snapshots: Vec<Snapshot>,
    clock_ms: u64,
    blocks: u64,
    /// What kinds of things happened.
    pub(crate) met: BTreeSet<&'static str>,
}

fn past_of(rows: &[u8]) -> Past {
    let mut past = Past::default();
    past.extend(rows).unwrap();
    past
}

fn rows_of(past: &Past) -> Vec<u8> {
    past.rows_after(0).pieces().flat_map(|(_, bytes)| bytes.to_vec()).collect()
}

/// What of the request the digest covers.
fn request_of(action: &Action, actor: &Subject) -> u8 {
    blake3::hash(format!("{actor} {action:?}").as_bytes()).as_bytes()[0]
}

impl World {
    pub(crate) fn at(clock_ms: u64) -> Self {
        Self {
            state: State::default(),
            past: Past::default(),
            facts: Facts::default(),
            answered: BTreeMap::new(),
            journal: Vec::new(),
            snapshots: Vec::new(),
            clock_ms,
            blocks: 0,
            met: BTreeSet::new(),
        }
    }

    pub(crate) fn take(&mut self, step: &Step) {
        match step {
            Step::Wait(ms) => self.clock_ms = self.clock_ms.saturating_add_signed(*ms),
            Step::Retire => self.retire(),
            Step::Restart => {
                let (state, past) =
                    (State::decode(&self.state.encode()).unwrap(), past_of(&rows_of(&self.past)));
                assert_eq!(state.digest(&past), self.state.digest(&self.past));
                (self.state, self.past) = (state, past);
            }
            Step::Snapshot => {
                let (rows, state, past) = (self.journal.len(), self.state.encode(), self.past.count());
                self.snapshots.push(Snapshot { rows, state, past });
            }
            Step::Ask(ask) => {
                self.sweep();
                self.ask(ask);
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.clock_ms.max(self.state.now_ms())
    }

    fn retire(&mut self) {
        self.blocks += 1;
        self.state.retire(&mut self.past, self.blocks);
        self.journal.push(Row::Block(self.blocks));
        for answered in self.answered.values_mut() {
            answered.block.get_or_insert(self.blocks);
        }
        self.look();
    }

    fn sweep(&mut self) {
        for sweeps in 0.. {
            assert!(sweeps < 1_000, "time does not pass");
            let due = sweep(&self.state, self.clock_ms);
            let want = passing::sweep(&self.facts, self.now_ms());
            let got = due.iter().map(|(tenant, decision)| (tenant.clone(), decision.events.clone()));
            assert_eq!(got.collect::<Vec<_>>(), want.into_iter().collect::<Vec<_>>(), "what time brings");
            if due.is_empty() {
                break;
            }
            for (tenant, decision) in &due {
                assert_eq!((&decision.actor, &decision.idempotency), (&Subject::metering(), &None));
                self.record(tenant, decision);
            }
        }
        assert!(self.state.next_due_ms().is_none_or(|due| due > self.now_ms()));
    }

    fn ask(&mut self, ask: &Ask) {
        let Ask { action, actor, other_tenant, key } = ask;
        let tenant = action.scope().map_or_else(
            || TenantId::parse(if *other_tenant { "u" } else { "t" }).unwrap(),
            ScopePath::tenant_id,
        );
        let request = request_of(action, actor);
        let idempotency = key.map(|key| Idempotency {
            key: IdempotencyKey::parse(&format!("key {key}")).unwrap(),
            request_hash: [request; 32],
        });
        let command = Command::new(tenant.clone(), actor.clone(), idempotency.clone(), action.clone());
        let Ok(command) = command else { return };
        let facts = &self.facts;
        let taken = matches!(action, Action::Reserve { hold_id, .. } if facts.holds().contains_key(hold_id));
        let asking = Asking { facts, tenant: &tenant, actor, now_ms: self.now_ms(), keyed: key.is_some() };
        let new = if taken { Err(DecideError::HoldIdTaken) } else { Ok(asking.events(action)) };

        let told = preview(&self.state, &self.past, &command, self.clock_ms);
        assert_eq!(told, new.clone().map(|events| events[0].clone()), "a dry run of {command:?}");
        let want = match key.and_then(|key| self.answered.get(&(tenant.clone(), key))) {
            Some(answered) if answered.request != request => Err(DecideError::IdempotencyConflict),
            Some(Answered { block: Some(block), .. }) => Ok(Decided::RepeatedAt(*block)),
            Some(Answered { reply, .. }) => Ok(Decided::Repeated(reply.clone())),
            None => new.map(|events| Decided::New(Decision { idempotency, actor: actor.clone(), events })),
        };
        let got = decide(&self.state, &self.past, &command, self.clock_ms);
        assert_eq!(got, want, "at {} {command:?}", self.now_ms());
        self.met.insert(match &got {
            Err(DecideError::HoldIdTaken) => "hold id taken",
            Err(DecideError::IdempotencyConflict) => "idempotency conflict",
            Ok(Decided::RepeatedAt(_)) => "repeated from the past",
            Ok(Decided::Repeated(_)) => "repeated",
            Ok(Decided::New(_)) => "new",
        });
        let Ok(Decided::New(decision)) = got else { return };
        if let Some(key) = key {
            let answered = Answered { request, reply: decision.events[0].clone(), block: None };
            self.answered.insert((tenant.clone(), *key), answered);
        }
        self.record(&tenant, &decision);
        self.look_at(&decision.events[0]);
    }

    fn record(&mut self, tenant: &TenantId, decision: &Decision) {
        let now_ms = self.now_ms();
        let run = DecisionRun { tenant: tenant.clone(), decisions: vec![decision.clone()] };
        let bytes = wire::encode_run(&run);
        assert_eq!(wire::decode_run(&bytes).as_ref(), Ok(&run));
        self.journal.push(Row::Run { now_ms, bytes });
        self.state.record(decision, tenant, now_ms);
        for event in &decision.events {
            self.facts.tell(tenant, now_ms, event);
            self.met.extend(kinds::of(event));
        }
        self.look();
    }

    /// Everything that the state says of itself.
    fn look(&self) {
        assert_eq!(self.state.check(), Ok(()));
        let mut seen = 0;
        for (scope, window) in self.facts.places() {
            let (want, got) = (self.facts.budget(&scope, window), self.state.budget(&scope, window));
            assert_eq!(want.is_some(), got.is_some(), "{scope} {window:?}");
            let (Some(want), Some(got)) = (want, got) else { continue };
            seen += 1;
            let (terms, budget) = (&want.terms, got.budget());
            assert_eq!((budget.window_start_ms(), budget.window_end_ms()), (want.start_ms, want.end_ms));
            assert_eq!((budget.zone(), budget.carry_debt()), (terms.zone.as_ref(), terms.carry_debt));
            assert_eq!((budget.enforcement(), budget.overage()), (terms.enforcement, terms.overage));
            assert_eq!(budget.thresholds(), &*terms.thresholds);
            let held = self.facts.held(&scope);
            let balances: Vec<_> = got.balances().collect();
            let of = |meter| want.balance(meter, held.get(&meter).copied().unwrap_or(0));
            assert_eq!(balances, want.lines.keys().map(|&meter| (meter, of(meter))).collect::<Vec<_>>());
            for (meter, balance) in balances {
                assert_eq!(
                    balance.granted + balance.debt,
                    balance.available + balance.held + balance.spent,
                    "{scope} {meter}"
                );
                assert!(balance.available == 0 || balance.debt == 0, "{scope} {meter}");
            }
            let left = budget.grants().map(|grant| {
                (grant.terms().grant_id.clone(), grant.effective(), u128::from(grant.remaining()))
            });
            let pots = want.lines.values().flat_map(Pots::live);
            let want_left = pots.map(|pot| (pot.terms.grant_id.clone(), pot.effective, pot.left()));
            assert_eq!(left.collect::<Vec<_>>(), want_left.collect::<Vec<_>>(), "{scope} {window:?}");
        }
        assert_eq!(self.state.budgets(None, None).count(), seen);
        self.look_at_usage();
    }

    fn look_at_usage(&self) {
        for scope in SCOPES.into_iter().flat_map(|name| enclosing(&ScopePath::parse(name).unwrap())) {
            let got = self.state.usage(&scope);
            let above_zero =
                |sums: crate::facts::Sums| sums.into_iter().filter(|row| row.1 > 0).collect::<Vec<_>>();
            assert_eq!(got.spent.iter().collect::<Vec<_>>(), above_zero(self.facts.spent(&scope)), "{scope}");
            assert_eq!(got.held.iter().collect::<Vec<_>>(), above_zero(self.facts.held(&scope)), "{scope}");
            assert_eq!(got.open_holds, self.facts.open_holds(&scope), "{scope}");
            assert_eq!(got.settled_holds, self.facts.settled_holds(&scope), "{scope}");
        }
        let holds = self.facts.holds();
        for (hold_id, want) in &holds {
            let Some(got) = self.state.hold(hold_id) else {
                assert!(want.is_over() && self.past.hold(&want.scope.tenant_id(), hold_id).is_some());
                continue;
            };
            assert_eq!((&got.scope, &got.holder, got.status), (&want.scope, &want.holder, want.status));
            assert_eq!(
                (&got.amounts, &got.used),
                (&amounts(&want.amounts), &amounts(&want.used)),
                "{hold_id}"
            );
            assert_eq!((got.expires_ms, got.lease, got.revoked), (want.expires_ms, want.lease, want.revoked));
        }
        assert_eq!(self.state.open_holds(), holds.values().filter(|hold| hold.is_open()).count() as u64);
        let numbers: Vec<_> = self.state.notifications().map(|reached| reached.notification).collect();
        assert_eq!(numbers, self.facts.waiting().into_keys().collect::<Vec<_>>());
    }

    /// What was just held is within every hard budget around it.
    fn look_at(&self, event: &Event) {
        let (scope, amounts) = match event {
            Event::HoldGranted { scope, amounts, .. } => (scope.clone(), amounts),
            Event::HoldExtended { hold_id, added, .. } => {
                (self.state.hold(hold_id).unwrap().scope.clone(), added)
            }
            _ => return,
        };
        for scope in enclosing(&scope) {
            for view in self.state.budgets_of(&scope) {
                let is_hard = view.budget().enforcement() == Enforcement::Hard;
                let draws = view.budget().overage() == Overage::Overdraft;
                for (meter, balance) in view.balances().filter(|row| is_hard && amounts.get(row.0) > 0) {
                    let overdraft = if draws { balance.overdraft } else { 0 };
                    assert!(balance.debt <= u128::from(overdraft), "{scope} {meter} is overspent");
                }
            }
        }
    }

    /// A replay from nothing and from each snapshot leads to the same state; a snapshot that is damaged to another one, or none.
    pub(crate) fn end(self) {
        let nothing = Snapshot { rows: 0, state: State::default().encode(), past: 0 };
        let all = rows_of(&self.past);
        for snapshot in self.snapshots.iter().chain([&nothing]) {
            let mut state = State::decode(&snapshot.state).unwrap();
            let mut past = past_of(&all[..usize::try_from(snapshot.past).unwrap() * ROW_BYTES]);
            for row in &self.journal[snapshot.rows..] {
                match row {
                    Row::Run { now_ms, bytes } => {
                        state.record_run(&wire::decode_run(bytes).unwrap(), *now_ms);
                    }
                    Row::Block(block) => state.retire(&mut past, *block),
                }
            }
            assert!(state == self.state && past == self.past, "a replay leads to the same state");
            assert_eq!(state.digest(&past), self.state.digest(&self.past));
        }
        let mut bytes = self.state.encode();
        let at = self.journal.len() * 7919 % bytes.len();
        assert!(State::decode(&bytes[..at]).is_err());
        bytes[at] ^= 1;
        if let Ok(other) = State::decode(&bytes) {
            assert!(other != self.state, "a damaged snapshot is another state, or none");
        }
    }
}
