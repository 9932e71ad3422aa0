//! Random histories of everything that can be asked. A naive oracle, written from what the protocol says, predicts every answer, all
//! that time brings and every balance; replays, snapshots and retiring change nothing; events that contradict everything break nothing.
//!
//! `PROPTEST_CASES` asks for more histories. What ever failed is kept in `proptest-regressions` and tried first.
#![allow(clippy::unwrap_used, missing_docs)]

mod answers;
mod clock;
mod facts;
mod hostile;
mod kinds;
mod names;
mod passing;
mod pots;
mod world;

use std::{collections::BTreeSet, sync::Arc};

use exchequer_budget::{
    Action, BudgetTerms, Command, Event, HoldId, Meter, Past, ScopePath, State, Subject, WebhookUrl, Window,
    preview,
};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    strategy::ValueTree,
    test_runner::{FileFailurePersistence, TestRunner},
};

use crate::world::{Ask, Step, World};

fn step(start: u64) -> impl Strategy<Value = Step> {
    let ask =
        (names::action(start), names::actor(), prop::bool::weighted(0.1), option::weighted(0.2, 0..12_u8));
    prop_oneof![
        12 => ask.prop_map(|(action, actor, other_tenant, key)| {
            Step::Ask(Box::new(Ask { action, actor, other_tenant, key }))
        }),
        5 => names::wait().prop_map(Step::Wait),
        2 => Just(Step::Retire),
        1 => Just(Step::Restart),
        1 => Just(Step::Snapshot),
    ]
}

/// Begins with a few budgets, and asks some of the last commands with keys again in the end, word by word.
fn history() -> impl Strategy<Value = (u64, Vec<Step>)> {
    let steps = |start| (Just(start), vec(step(start).boxed(), 1..70));
    let budgets = vec((prop::sample::select(&["t", "t", "t/a"][..]), names::terms().boxed()), 0..4);
    let settings = (prop::bool::weighted(0.8), any::<(bool, bool)>());
    (names::start().prop_flat_map(steps), settings, budgets, 0..20_usize).prop_map(
        |((start, later), (defines, (reports, narrows)), budgets, again)| {
            let mut actions = Vec::new();
            if defines {
                actions.push(Action::DefineMeter { meter: names::gpu(), description: None });
            }
            if reports {
                let url = WebhookUrl::parse("https://x.example/").ok();
                actions.push(Action::SetWebhook { url });
            }
            actions.extend(budgets.into_iter().map(|(scope, terms)| Action::SetBudget {
                scope: ScopePath::parse(scope).unwrap(),
                terms: Arc::new(terms),
            }));
            let actor = Subject::parse("agent-1").unwrap();
            let ask = |action| Ask { action, actor: actor.clone(), other_tenant: false, key: None };
            let mut steps: Vec<_> =
                actions.into_iter().map(|action| Step::Ask(Box::new(ask(action)))).collect();
            let grants: Vec<_> = steps.iter().filter_map(place_of).collect();
            steps.extend(later);
            if narrows {
                asks(&mut steps).for_each(|ask| names::narrow(&mut ask.action));
            }
            draw_holds(&mut steps);
            place_grants(&mut steps, &grants);
            let asked = steps.iter().rev().filter(|step| matches!(step, Step::Ask(ask) if ask.key.is_some()));
            let again: Vec<_> = asked.take(again).cloned().collect();
            steps.extend(again);
            (start, steps)
        },
    )
}

fn asks(steps: &mut [Step]) -> impl Iterator<Item = &mut Ask> {
    steps.iter_mut().filter_map(|step| if let Step::Ask(ask) = step { Some(&mut **ask) } else { None })
}

fn place_of(step: &Step) -> Option<(ScopePath, Window, Meter)> {
    let Step::Ask(ask) = step else { return None };
    let Action::SetBudget { scope, terms } = &ask.action else { return None };
    let (meter, _) = terms.granted.iter().next()?;
    Some((scope.clone(), terms.window, meter))
}

/// Most grants are for budgets that there were in the beginning.
fn place_grants(steps: &mut [Step], places: &[(ScopePath, Window, Meter)]) {
    for ask in asks(steps) {
        if let Action::AddGrant(terms) = &mut ask.action
            && terms.amount % 8 > 0
            && let Some((scope, window, meter)) =
                places.iter().cycle().nth(usize::try_from(terms.amount % 8).unwrap())
        {
            let terms = Arc::make_mut(terms);
            (terms.scope, terms.window, terms.meter) = (scope.clone(), *window, *meter);
            if *window == Window::AllTime {
                (terms.recurring, terms.rollover_cap) = (false, 0);
            }
        }
    }
}

/// Most reservations draw an id of their own, and most of what is done to a hold is done to one of the last three.
fn draw_holds(steps: &mut [Step]) {
    let mut drawn = 0_usize;
    for ask in asks(steps) {
        let is_new = matches!(ask.action, Action::Reserve { .. });
        if let Some(hold_id) = names::hold_of(&mut ask.action) {
            let place: usize = hold_id.as_str()[1..].parse().unwrap();
            if place >= 13 {
                continue;
            }
            drawn += usize::from(is_new);
            let number = if is_new { drawn } else { drawn.saturating_sub(place % 3) };
            *hold_id = HoldId::parse(&format!("drawn-{number}")).unwrap();
        }
    }
}

fn config(cases: u32) -> ProptestConfig {
    let kept = "proptest-regressions/histories.txt";
    let failure_persistence = Some(Box::new(FileFailurePersistence::Direct(kept)) as _);
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let cases = if asked { ProptestConfig::default().cases } else { cases };
    ProptestConfig { cases, failure_persistence, ..ProptestConfig::default() }
}

/// The same histories each time, so that this fails only if what is generated has become poorer.
#[test]
fn the_histories_meet_every_kind_of_answer() {
    let mut runner = TestRunner::deterministic();
    let mut met = BTreeSet::new();
    for _ in 0..200 {
        let (start, steps) = history().new_tree(&mut runner).unwrap().current();
        let mut world = World::at(start);
        for step in &steps {
            world.take(step);
        }
        met.append(&mut world.met);
    }
    let missed: Vec<_> = kinds::ALL.iter().filter(|kind| !met.contains(*kind)).collect();
    assert!(missed.is_empty(), "not met: {missed:?}");
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn the_fold_says_and_is_what_the_oracle_says((start, steps) in history()) {
        let mut world = World::at(start);
        for step in &steps {
            world.take(step);
        }
        world.end();
    }

    #[test]
    fn events_that_contradict_everything_leave_a_sound_state((start, steps) in hostile::history()) {
        hostile::run(start, &steps);
    }
}

proptest! {
    #![proptest_config(config(4_000))]

    #[test]
    fn windows_are_those_of_the_clock(
        (terms, since, around) in (names::terms(), 946_684_800_000..2_145_916_800_000_u64, -7_200_000..7_200_000_i64),
    ) {
        let now_ms = clock::next_change(terms.zone.as_ref(), since).saturating_add_signed(around);
        let (window, zone) = (terms.window, terms.zone.clone());
        let actor = Subject::parse("agent-1").unwrap();
        let scope = ScopePath::parse("t").unwrap();
        let granted = exchequer_budget::Allowance::new([(Meter::CpuMs, 1)]).unwrap();
        let terms = BudgetTerms { window, zone, granted, ..BudgetTerms::default() };
        let want = clock::window(terms.window, terms.zone.as_ref(), now_ms);
        let action = Action::SetBudget { scope: scope.clone(), terms: Arc::new(terms) };
        let command = Command::new(scope.tenant_id(), actor, None, action).unwrap();
        let set = preview(&State::default(), &Past::default(), &command, now_ms).unwrap();
        let Event::BudgetSet { start_ms, end_ms, .. } = set else { panic!("{set:?}") };
        prop_assert_eq!((start_ms, end_ms), want);
    }
}
