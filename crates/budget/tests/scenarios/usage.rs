//! Reports and corrections.

use std::sync::Arc;

use exchequer_budget::{
    Action, BudgetTerms, Correction, Decision, Event, GrantId, GrantTerms, MAX_AHEAD_MS, MAX_AMOUNT, Meter,
    Overage, Refusal, Source, Subject, Window, wire,
};

use crate::words::*;

fn correct(name: &str, text: &str, added: bool) -> Action {
    Action::Correct(Arc::new(Correction {
        scope: scope(name),
        amounts: amounts(text),
        added,
        reason: label("counted twice"),
        reference: None,
        source: None,
    }))
}

#[test]
fn reported_usage_is_spent_at_all_enclosing_scopes() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=10"));
    world.run(report("acme/a/x", "cpu_ms=12"));
    world.check("acme", [10, 0, 0, 12, 2]);
    assert_eq!(world.state.usage(&scope("acme/a")).spent.get(Meter::CpuMs), 12);
}

#[test]
fn sums_beyond_64_bits_are_exact_and_read_as_the_largest_number() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=1"));
    let reported = world.run(report("acme", &format!("cpu_ms={MAX_AMOUNT}"))).swap_remove(0);
    let events = vec![reported; 1 << 16];
    let decision = Decision { idempotency: None, actor: Subject::metering(), events };
    world.state.record(&decision, &scope("acme").tenant_id(), 0);
    let spent = u128::from(MAX_AMOUNT) * ((1 << 16) + 1);
    world.check("acme", [1, 0, 0, spent, spent - 1]);
    let view = wire::budget(&world.state.budget(&scope("acme"), Window::AllTime).unwrap());
    let balance = &view.balances[0];
    assert_eq!((balance.granted, balance.spent, balance.debt), (1, u64::MAX, u64::MAX));
    assert_eq!(wire::meter_totals(&world.state.usage(&scope("acme")).spent)[0].amount, u64::MAX);
}

#[test]
fn usage_from_the_future_is_refused_and_late_usage_is_not() {
    let mut world = World::at(1_000_000);
    let at = |used_ms| Action::Report {
        scope: scope("acme"),
        used: amounts("cpu_ms=1"),
        source: Source { used_ms, skill: Some(label("python")), ..Source::default() }.told(),
        subject: Some(label("user-1")),
    };
    assert!(matches!(world.run(at(1))[0], Event::UsageReported { .. }));
    assert!(matches!(world.run(at(1_000_000 + MAX_AHEAD_MS))[0], Event::UsageReported { .. }));
    assert_eq!(refused(&world.run(at(1_000_001 + MAX_AHEAD_MS))), Refusal::Time);
}

#[test]
fn usage_of_a_hold_is_refused_for_its_time_only_if_a_caller_asks() {
    let mut world = World::at(1_000_000);
    world.run(set("acme", "cpu_ms=100"));
    world.run(lease("l", "acme", "cpu_ms=30"));
    world.run(reserve("h", "acme", "cpu_ms=30"));
    let source = || Source { used_ms: 1_000_001 + MAX_AHEAD_MS, ..Source::default() }.told();
    let draw = || Action::Draw { hold_id: hold("l"), used: amounts("cpu_ms=1"), source: source() };
    let settle = || Action::Settle { hold_id: hold("h"), used: amounts("cpu_ms=2"), source: source() };
    for (key, action) in [("draw", draw()), ("settle", settle())] {
        let asked = world.ask("acme", "agent-1", Some((key, 1)), action).unwrap();
        let refused = Event::CommandRefused {
            refusal: Refusal::Time,
            hold_id: None,
            field: Some(label("source.used_unix_ms")),
        };
        assert_eq!(asked.reply(), Some(&refused));
    }
    // The writer's own, of executions: they have no keys.
    assert!(matches!(world.run(draw())[0], Event::LeaseDrawn { .. }));
    assert!(matches!(world.run(settle())[0], Event::HoldSettled { .. }));
    world.check("acme", [100, 68, 29, 3, 0]);
}

#[test]
fn a_correction_takes_back_no_more_than_was_spent_at_any_enclosing_scope() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=10"));
    world.run(report("acme/a", "cpu_ms=8"));
    assert_eq!(refused(&world.run(correct("acme/a", "cpu_ms=9", false))), Refusal::BelowZero);
    assert_eq!(refused(&world.run(correct("acme/b", "cpu_ms=1", false))), Refusal::BelowZero);
    world.run(correct("acme", "cpu_ms=3", false));
    world.check("acme", [10, 5, 0, 5, 0]);
    // At acme/a eight were spent, but at acme only five are left to be taken back.
    assert_eq!(refused(&world.run(correct("acme/a", "cpu_ms=6", false))), Refusal::BelowZero);
    world.run(correct("acme/a", "cpu_ms=7", true));
    world.check("acme", [10, 0, 0, 12, 2]);
}

#[test]
fn a_correction_takes_back_what_was_not_charged_first() {
    let mut world = World::default();
    let terms = BudgetTerms::all_time(allowance("cpu_ms=6"));
    world.run(set_terms("acme", BudgetTerms { overage: Overage::Cap, ..terms }));
    world.run(report("acme", "cpu_ms=10"));
    world.run(correct("acme", "cpu_ms=5", false));
    world.check("acme", [6, 1, 0, 5, 0]);
}

#[test]
fn a_correction_takes_back_from_grants_that_ended_before_what_is_still_granted() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=100"));
    world.run(add(grant("over", 100)));
    world.run(add(GrantTerms { priority: 1, ..grant("live", 10) }));
    world.run(report("acme", "cpu_ms=205"));
    world.run(Action::RevokeGrant { grant_id: GrantId::parse("over").unwrap() });
    world.check("acme", [210, 5, 0, 205, 0]);
    world.run(correct("acme", "cpu_ms=100", false));
    world.check("acme", [110, 5, 0, 105, 0]);
    world.run(correct("acme", "cpu_ms=15", false));
    assert_eq!(left(&world, Window::AllTime), [("live".to_owned(), 10)]);
    world.check("acme", [110, 20, 0, 90, 0]);
}

#[test]
fn a_correction_of_an_earlier_window_floors_at_zero_in_the_present_one() {
    let mut world = World::at(0);
    world.run(set_terms("acme", over(Window::Hour, "UTC", "cpu_ms=10")));
    world.run(report("acme", "cpu_ms=8"));
    world.until(3_600_000);
    world.run(report("acme", "cpu_ms=1"));
    world.run(correct("acme", "cpu_ms=5", false));
    assert_eq!(world.balance("acme", Window::Hour, Meter::CpuMs), [10, 10, 0, 0, 0]);
    assert_eq!(world.state.usage(&scope("acme")).spent.get(Meter::CpuMs), 4);
}
