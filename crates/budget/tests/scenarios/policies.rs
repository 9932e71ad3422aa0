//! What budgets do beyond refusing: soft and shadow, cap, overdraft, grants, thresholds.

use std::sync::Arc;

use exchequer_budget::{
    Action, BudgetTerms, Denial, Enforcement, Event, GrantId, MAX_GRANTS_PER_BUDGET, Meter, Overage, Refusal,
    Threshold, WebhookUrl, Window,
};

use crate::words::*;

fn terms(granted: &str) -> BudgetTerms {
    BudgetTerms::all_time(allowance(granted))
}

#[test]
fn soft_and_shadow_budgets_grant_and_tell() {
    let mut world = World::default();
    world.run(set_terms("acme", BudgetTerms { enforcement: Enforcement::Shadow, ..terms("cpu_ms=5") }));
    world.run(set_terms("acme/a", BudgetTerms { enforcement: Enforcement::Soft, ..terms("cpu_ms=8") }));
    let exceeded = |events: &[Event]| match &events[0] {
        Event::HoldGranted { exceeded, .. } | Event::HoldExtended { exceeded, .. } => {
            let row = |row: &exchequer_budget::Exceeded| {
                (row.scope.to_string(), row.requested, row.available, row.enforcement)
            };
            exceeded.iter().map(row).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };
    let first = exceeded(&world.run(reserve("h", "acme/a", "cpu_ms=6")));
    assert_eq!(first, [("acme".to_owned(), 6, 5, Enforcement::Shadow)]);
    let second = exceeded(&world.run(extend("h", "cpu_ms=3", 1_000)));
    let soft = ("acme/a".to_owned(), 3, 2, Enforcement::Soft);
    assert_eq!(second, [("acme".to_owned(), 3, 0, Enforcement::Shadow), soft]);
    world.check("acme", [5, 0, 9, 0, 4]);
}

#[test]
fn a_capped_budget_charges_what_it_covers() {
    let mut world = World::default();
    world.run(set_terms("acme", BudgetTerms { overage: Overage::Cap, ..terms("cpu_ms=10") }));
    world.run(reserve("h1", "acme/a", "cpu_ms=4"));
    world.run(reserve("h2", "acme/a", "cpu_ms=3"));
    // Held by it 4, available 3: of 9 used, 2 are not charged.
    world.run(settle("h1", "cpu_ms=9"));
    world.check("acme", [10, 0, 3, 7, 0]);
    let uncharged =
        |world: &World| world.state.balance(&scope("acme"), Window::AllTime, Meter::CpuMs).unwrap().uncharged;
    assert_eq!((uncharged(&world), world.state.usage(&scope("acme")).spent.get(Meter::CpuMs)), (2, 9));
    world.run(settle("h2", "cpu_ms=1"));
    world.run(report("acme", "cpu_ms=5"));
    world.check("acme", [10, 0, 0, 10, 0]);
    assert_eq!(uncharged(&world), 5);
}

#[test]
fn an_overdraft_lets_holds_be_granted_out_of_debt() {
    let mut world = World::default();
    let overdraft = allowance("cpu_ms=5");
    world
        .run(set_terms("acme", BudgetTerms { overage: Overage::Overdraft, overdraft, ..terms("cpu_ms=10") }));
    assert_eq!(
        denied(&world.run(reserve("h", "acme", "cpu_ms=16"))),
        Ok(exhausted("acme", Meter::CpuMs, 16, 15))
    );
    world.run(reserve("h", "acme", "cpu_ms=12"));
    world.check("acme", [10, 0, 12, 0, 2]);
    world.run(settle("h", "cpu_ms=15"));
    assert_eq!(
        denied(&world.run(reserve("h2", "acme", "cpu_ms=1"))),
        Ok(exhausted("acme", Meter::CpuMs, 1, 0))
    );
    world.run(report("acme", "cpu_ms=1"));
    let denial = denied(&world.run(reserve("h2", "acme", "cpu_ms=1"))).unwrap();
    assert!(matches!(denial, Denial::InDebt { .. }));
}

#[test]
fn a_budget_set_again_keeps_what_was_spent_and_one_set_late_counts_what_was() {
    let mut world = World::default();
    world.run(report("acme", "cpu_ms=4"));
    world.run(set("acme", "cpu_ms=10"));
    world.check("acme", [10, 6, 0, 4, 0]);
    world.run(set("acme", "wall_ms=1"));
    world.run(set("acme", "cpu_ms=3"));
    world.check("acme", [3, 0, 0, 4, 1]);
    world.run(Action::RemoveBudget {
        scope: scope("acme"),
        window: Window::AllTime,
        meters: vec![Meter::CpuMs],
    });
    assert_eq!(world.state.budget(&scope("acme"), Window::AllTime).unwrap().balances().count(), 1);
    world.run(Action::RemoveBudget { scope: scope("acme"), window: Window::AllTime, meters: vec![] });
    assert!(world.state.budget(&scope("acme"), Window::AllTime).is_none());
    let gone = Action::RemoveBudget { scope: scope("acme"), window: Window::AllTime, meters: vec![] };
    assert_eq!(refused(&world.run(gone)), Refusal::UnknownBudget);
}

#[test]
fn usage_is_taken_from_grants_by_priority_then_expiry_then_id() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=10"));
    for (id, priority, expires_ms) in [("late", 1, 0), ("b", 1, 90_000), ("a", 1, 90_000), ("first", 0, 0)] {
        world.run(add(exchequer_budget::GrantTerms { priority, expires_ms, ..grant(id, 10) }));
    }
    world.check("acme", [50, 50, 0, 0, 0]);
    world.run(report("acme", "cpu_ms=25"));
    let rows = |rows: [(&str, u64); 4]| rows.map(|(id, left)| (id.to_owned(), left)).to_vec();
    assert_eq!(left(&world, Window::AllTime), rows([("first", 0), ("a", 5), ("b", 10), ("late", 10)]));
    world.check("acme", [50, 25, 0, 25, 0]);
    // At its end what is left of a grant is no longer granted; what was used of it was.
    world.until(90_000);
    world.check("acme", [35, 10, 0, 25, 0]);
    let revoke = |id: &str| Action::RevokeGrant { grant_id: GrantId::parse(id).unwrap() };
    let ended = world.run(revoke("late"));
    assert!(matches!(&ended[0], Event::GrantEnded { revoked: true, remainder: 10, .. }));
    world.check("acme", [25, 0, 0, 25, 0]);
    assert_eq!(refused(&world.run(revoke("late"))), Refusal::UnknownGrant);
    assert_eq!(refused(&world.run(add(grant("a", 1)))), Refusal::GrantExists);
    world.retire(1);
    assert_eq!(refused(&world.run(add(grant("a", 1)))), Refusal::GrantExists);
}

#[test]
fn a_grant_begins_when_it_is_effective_and_pays_debt_then() {
    let mut world = World::at(1_000);
    assert_eq!(refused(&world.run(add(grant("g", 1)))), Refusal::UnknownBudget);
    world.run(set("acme", "cpu_ms=1"));
    world.run(report("acme", "cpu_ms=4"));
    world.run(add(exchequer_budget::GrantTerms { effective_ms: 5_000, ..grant("g", 10) }));
    world.check("acme", [1, 0, 0, 4, 3]);
    assert_eq!(world.state.next_due_ms(), Some(5_000));
    world.until(5_000);
    world.check("acme", [11, 7, 0, 4, 0]);
    let over = exchequer_budget::GrantTerms { effective_ms: 1, expires_ms: 5_000, ..grant("over", 1) };
    assert_eq!(refused(&world.run(add(over))), Refusal::Time);
    for n in 1..MAX_GRANTS_PER_BUDGET {
        world.run(add(grant(&format!("g{n}"), 1)));
    }
    assert_eq!(refused(&world.run(add(grant("more", 1)))), Refusal::TooMany);
    let remove = Action::RemoveBudget { scope: scope("acme"), window: Window::AllTime, meters: vec![] };
    world.run(remove);
    world.run(set("acme", "cpu_ms=1"));
    world.check("acme", [1, 0, 0, 4, 3]);
    assert_eq!(refused(&world.run(add(grant("g1", 1)))), Refusal::GrantExists);
}

#[test]
fn all_grants_of_a_budget_that_are_due_begin_and_end_in_one_sweep_and_a_threshold_is_reached_once() {
    let mut world = World::default();
    let thresholds = [Threshold::SpentPercent(50), Threshold::SpentPercent(100)].into();
    world.run(set_terms("acme", BudgetTerms { thresholds, ..terms("cpu_ms=10") }));
    for n in 0..20 {
        let effective_ms = if n < 10 { 0 } else { 4_000 };
        let terms = grant(&format!("g{n}"), 10);
        world.run(add(exchequer_budget::GrantTerms { effective_ms, expires_ms: 5_000, ..terms }));
    }
    world.run(report("acme", "cpu_ms=20"));
    let due = exchequer_budget::sweep(&world.state, 5_000);
    let count = |kind: fn(&Event) -> bool| due[0].1.events.iter().filter(|event| kind(event)).count();
    assert_eq!(count(|event| matches!(event, Event::GrantBegun { .. })), 10);
    assert_eq!(count(|event| matches!(event, Event::GrantEnded { .. })), 20);
    assert_eq!(
        crate::words::thresholds(&due[0].1.events),
        [Threshold::SpentPercent(50), Threshold::SpentPercent(100)]
    );
    world.until(5_000);
    assert!(exchequer_budget::sweep(&world.state, 5_000).is_empty());
    world.check("acme", [20, 0, 0, 20, 0]);
}

#[test]
fn a_grant_that_begins_and_ends_at_the_end_of_time_is_as_sound_as_any() {
    let mut world = World::at(1_000);
    world.run(set("acme", "cpu_ms=1"));
    let last = u64::MAX;
    world.run(add(exchequer_budget::GrantTerms { effective_ms: last, ..grant("begins", 10) }));
    world.run(add(exchequer_budget::GrantTerms { expires_ms: last, ..grant("ends", 10) }));
    world.check("acme", [11, 11, 0, 0, 0]);
}

#[test]
fn a_threshold_is_reached_once_by_spending_or_by_a_smaller_grant() {
    let mut world = World::default();
    let at =
        |thresholds: &[Threshold], granted| BudgetTerms { thresholds: thresholds.into(), ..terms(granted) };
    let (half, six) = (Threshold::SpentPercent(50), Threshold::SpentAmount(6));
    world.run(set_terms("acme", at(&[half, six], "cpu_ms=10")));
    world.run(reserve("h", "acme", "cpu_ms=9"));
    assert_eq!(thresholds(&world.run(report("acme/a", "cpu_ms=4"))), []);
    let events = world.run(settle("h", "cpu_ms=1"));
    assert_eq!(thresholds(&events), [half]);
    let told = &reached(&events)[0];
    assert_eq!((told.spent, told.granted, told.notification), (5, 10, 0));
    assert_eq!(thresholds(&world.run(report("acme", "cpu_ms=1"))), [six]);
    assert_eq!(thresholds(&world.run(report("acme", "cpu_ms=1"))), []);
    // Set anew, those that stay are not reached again.
    let most = Threshold::SpentPercent(80);
    assert_eq!(thresholds(&world.run(set_terms("acme", at(&[most, half], "cpu_ms=10")))), []);
    assert_eq!(thresholds(&world.run(set_terms("acme", at(&[most, half], "cpu_ms=8")))), [most]);
}

#[test]
fn notifications_are_numbered_where_a_webhook_is_and_wait_until_they_end() {
    let mut world = World::default();
    world.run(Action::SetWebhook { url: WebhookUrl::parse("https://x.example/").ok() });
    let thresholds: Arc<[Threshold]> = [1, 2, 3].map(Threshold::SpentAmount).into();
    world.run(set_terms("acme", BudgetTerms { thresholds, ..terms("cpu_ms=10") }));
    world.run(report("acme", "cpu_ms=2"));
    world.run(report("acme", "cpu_ms=2"));
    let waiting = |world: &World| -> Vec<u64> {
        world.state.notifications().map(|reached| reached.notification).collect()
    };
    assert_eq!(waiting(&world), [1, 2, 3]);
    let end =
        |notification| Action::EndNotification { notification, delivered: true, attempts: 1, detail: None };
    world.run_by("metering", end(2));
    assert_eq!(waiting(&world), [1, 3]);
    assert_eq!(refused(&world.run_by("metering", end(2))), Refusal::UnknownNotification);
    assert_eq!(world.state.settings(&scope("acme").tenant_id()).notifications_waiting, 2);
}
