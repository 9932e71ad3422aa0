//! Events as no writer would make them, but as the strict decoding lets them pass: of holds, grants and budgets that are not there or
//! of other tenants, twice, with times that run backwards and amounts that can't be.

use std::sync::Arc;

use exchequer_budget::{
    Action, Command, Correction, Decided, Decision, DecisionRun, Event, HoldId, MAX_AMOUNT, Past, Reached,
    ScopePath, State, Subject, TenantId, Threshold, Uncharged, decide, preview, sweep, wire,
};
use proptest::{collection::vec, prelude::*};

use crate::names::{action, amounts, grant, grant_id, hold, label, scope, start, terms, wait, window};

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Told(&'static str, Box<Event>),
    Asked(Box<Action>),
    Wait(i64),
    Retire,
}

fn time(start: u64) -> impl Strategy<Value = u64> {
    prop_oneof![4 => start - 9_000_000..start + 90_000_000, 1 => Just(0), 1 => Just(1), 1 => Just(u64::MAX)]
}

fn uncharged() -> impl Strategy<Value = Vec<Uncharged>> {
    let row = (scope(), window(), amounts(9), prop_oneof![3 => 1..20_u64, 1 => Just(MAX_AMOUNT)]);
    vec(
        row.prop_filter_map("a meter", |(scope, window, amounts, amount)| {
            let (meter, _) = amounts.iter().next()?;
            Some(Uncharged { scope, window, meter, amount })
        }),
        0..3,
    )
}

fn of_holds(start: u64) -> impl Strategy<Value = Event> {
    let used = || (hold(), scope(), amounts(15), any::<bool>(), uncharged());
    prop_oneof![
        6 => (hold(), scope(), amounts(12), time(start), any::<bool>()).prop_map(
            |(hold_id, scope, amounts, expires_ms, lease)| {
                let (holder, exceeded) = (Subject::parse("agent-1").unwrap(), Vec::new());
                Event::HoldGranted { hold_id, scope, holder, amounts, expires_ms, lease, exceeded }
            }
        ),
        2 => (hold(), amounts(9), time(start)).prop_map(|(hold_id, added, expires_ms)| {
            Event::HoldExtended { hold_id, added, expires_ms, exceeded: Vec::new() }
        }),
        3 => used().prop_map(|(hold_id, scope, used, late, uncharged)| {
            Event::HoldSettled { hold_id, scope, used, late, source: None, uncharged }
        }),
        3 => used().prop_map(|(hold_id, scope, used, late, uncharged)| {
            Event::LeaseDrawn { hold_id, scope, used, late, source: None, uncharged }
        }),
        1 => hold().prop_map(|hold_id: HoldId| Event::HoldVoided { hold_id }),
        1 => hold().prop_map(|hold_id: HoldId| Event::HoldExpired { hold_id }),
        1 => hold().prop_map(|hold_id| Event::HoldRevoked { hold_id, reason: label() }),
    ]
}

fn of_budgets(start: u64) -> impl Strategy<Value = Event> {
    let times = || (time(start), time(start));
    let threshold = prop_oneof![
        (1..150_u32).prop_map(Threshold::SpentPercent),
        (1..60_u64).prop_map(Threshold::SpentAmount),
    ];
    prop_oneof![
        4 => (scope(), terms().boxed(), times()).prop_map(|(scope, terms, (start_ms, end_ms))| {
            Event::BudgetSet { scope, terms: Arc::new(terms), start_ms, end_ms }
        }),
        1 => (scope(), window(), amounts(9)).prop_map(|(scope, window, amounts)| {
            Event::BudgetRemoved { scope, window, meters: amounts.iter().map(|row| row.0).collect() }
        }),
        2 => (scope(), window(), times()).prop_map(|(scope, window, (start_ms, end_ms))| {
            Event::WindowRolled { scope, window, start_ms, end_ms }
        }),
        3 => (grant(start).boxed(), time(start)).prop_map(|(mut terms, effective_ms)| {
            terms.effective_ms = effective_ms;
            Event::GrantAdded(Arc::new(terms))
        }),
        1 => grant_id().prop_map(|grant_id| Event::GrantBegun { grant_id }),
        1 => (grant_id(), any::<bool>(), 0..9_u64).prop_map(|(grant_id, revoked, remainder)| {
            Event::GrantEnded { grant_id, revoked, remainder }
        }),
        2 => (scope(), amounts(15), uncharged()).prop_map(|(scope, used, uncharged)| {
            Event::UsageReported { scope, used, source: None, uncharged, subject: None }
        }),
        3 => (scope(), amounts(15), any::<bool>(), uncharged()).prop_map(|(scope, amounts, added, uncharged)| {
            let (reason, reference, source) = (label(), None, None);
            let correction = Correction { scope, amounts, added, reason, reference, source };
            Event::UsageCorrected { correction: Arc::new(correction), uncharged }
        }),
        1 => (scope(), window(), amounts(9), threshold, time(start), 0..5_u64).prop_map(
            |(scope, window, amounts, threshold, window_start_ms, notification)| {
                let meter = amounts.iter().next().map_or(crate::names::gpu(), |row| row.0);
                Event::ThresholdReached(Arc::new(Reached {
                    scope,
                    window,
                    meter,
                    window_start_ms,
                    threshold,
                    spent: 1,
                    granted: 1,
                    forecast: 0,
                    notification,
                }))
            }
        ),
        1 => (0..6_u64).prop_map(|notification| {
            Event::NotificationEnded { notification, delivered: false, attempts: 9, detail: None }
        }),
    ]
}

fn step(start: u64) -> impl Strategy<Value = Step> {
    let event = prop_oneof![of_holds(start).boxed(), of_budgets(start).boxed()].boxed();
    let tenant = prop_oneof![6 => Just("t"), 1 => Just("u"), 1 => Just("nobody")];
    prop_oneof![
        9 => (tenant, event).prop_map(|(tenant, event)| Step::Told(tenant, Box::new(event))),
        4 => action(start).prop_map(|action| Step::Asked(Box::new(action))),
        2 => wait().prop_map(Step::Wait),
        1 => Just(Step::Retire),
    ]
}

pub(crate) fn history() -> impl Strategy<Value = (u64, Vec<Step>)> {
    start().prop_flat_map(|start| (Just(start), vec(step(start).boxed(), 1..60)))
}

struct Told {
    state: State,
    past: Past,
    now_ms: u64,
}

impl Told {
    fn record(&mut self, tenant: &TenantId, decision: Decision) {
        let run = DecisionRun { tenant: tenant.clone(), decisions: vec![decision] };
        // What is not decoded never reaches the fold.
        let Ok(run) = wire::decode_run(&wire::encode_run(&run)) else { return };
        self.state.record_run(&run, self.now_ms);
        assert_eq!(self.state.check(), Ok(()), "after {run:?}");
        let encoded = self.state.encode();
        assert!(State::decode(&encoded).is_ok_and(|state| state.encode() == encoded), "after {run:?}");
    }
}

pub(crate) fn run(start: u64, steps: &[Step]) {
    let mut told = Told { state: State::default(), past: Past::default(), now_ms: start };
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Told(tenant, event) => {
                let actor = Subject::parse("agent-1").unwrap();
                let decision = Decision { idempotency: None, actor, events: vec![Event::clone(event)] };
                told.record(&TenantId::parse(tenant).unwrap(), decision);
            }
            Step::Asked(action) => {
                for _ in 0..200 {
                    let due = sweep(&told.state, told.now_ms);
                    if due.is_empty() {
                        break;
                    }
                    for (tenant, decision) in due {
                        told.record(&tenant, decision);
                    }
                }
                let due = told.state.next_due_ms();
                assert!(
                    due.is_none_or(|due| due > told.now_ms.max(told.state.now_ms())),
                    "time does not pass"
                );
                let tenant = action.scope().map_or(TenantId::parse("t").unwrap(), ScopePath::tenant_id);
                let actor = Subject::parse("agent-1").unwrap();
                let Ok(command) = Command::new(tenant.clone(), actor, None, Action::clone(action)) else {
                    continue;
                };
                let dry = preview(&told.state, &told.past, &command, told.now_ms);
                match decide(&told.state, &told.past, &command, told.now_ms) {
                    Ok(Decided::New(decision)) => {
                        assert_eq!(dry.as_ref(), Ok(&decision.events[0]));
                        told.record(&tenant, decision);
                    }
                    other => assert!(dry.is_err() && other.is_err()),
                }
            }
            Step::Wait(ms) => told.now_ms = told.now_ms.saturating_add_signed(*ms),
            Step::Retire => {
                told.state.retire(&mut told.past, at as u64);
                assert_eq!(told.state.check(), Ok(()));
            }
        }
    }
}
