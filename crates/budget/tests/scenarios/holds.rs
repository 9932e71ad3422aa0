//! Reserve, extend, settle, void, expire; all enclosing scopes at once.

use exchequer_budget::{Denial, Event, HoldStatus, MAX_AMOUNT, Meter, Refusal, SWEEP_MAX, Window, sweep};

use crate::words::*;

const CPU: Meter = Meter::CpuMs;
const WALL: Meter = Meter::WallMs;

#[test]
fn a_hold_is_taken_at_every_enclosing_scope() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=100"));
    world.run(set("acme/a/x", "cpu_ms=50"));
    world.run(reserve("h", "acme/a/x", "cpu_ms=30"));
    world.check("acme", [100, 70, 30, 0, 0]);
    world.check("acme/a/x", [50, 20, 30, 0, 0]);
    let between = world.state.usage(&scope("acme/a"));
    assert_eq!((between.held.get(CPU), between.open_holds), (30, 1));
    assert_eq!(world.state.balance(&scope("acme/a"), Window::AllTime, CPU), None);
}

#[test]
fn a_denial_names_the_outermost_scope_then_window_then_meter_that_bind() {
    for (wanted, want) in [
        ("cpu_ms=6 wall_ms=6", exhausted("acme", CPU, 6, 5)),
        ("cpu_ms=1 wall_ms=6", exhausted("acme", WALL, 6, 5)),
        ("cpu_ms=1 wall_ms=2", exhausted("acme/a", WALL, 2, 1)),
    ] {
        let mut world = World::default();
        world.run(set("acme", "cpu_ms=5 wall_ms=5"));
        world.run(set("acme/a", "cpu_ms=1 wall_ms=1"));
        assert_eq!(denied(&world.run(reserve("h", "acme/a", wanted))), Ok(want));
        world.check("acme", [5, 5, 0, 0, 0]);
    }
    let mut world = World::default();
    for window in [Window::Month, Window::Hour, Window::Day] {
        world.run(set_terms("acme", over(window, "UTC", "cpu_ms=1")));
    }
    let denial = denied(&world.run(reserve("h", "acme", "cpu_ms=2"))).unwrap();
    assert!(matches!(denial, Denial::Exhausted { window: Window::Hour, .. }), "{denial:?}");
}

#[test]
fn the_last_unit_can_be_held_and_the_next_one_cannot() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=3"));
    world.run(reserve("h1", "acme", "cpu_ms=1"));
    assert_eq!(denied(&world.run(reserve("h2", "acme", "cpu_ms=3"))), Ok(exhausted("acme", CPU, 3, 2)));
    world.run(reserve("h3", "acme", "cpu_ms=2"));
    world.check("acme", [3, 0, 3, 0, 0]);
}

#[test]
fn without_any_budget_nothing_is_granted_and_other_meters_are_free() {
    let mut world = World::default();
    world.run(set("acme/a/x", "cpu_ms=9"));
    assert_eq!(denied(&world.run(reserve("h", "acme/a", "cpu_ms=1"))), Ok(Denial::NoBudget));
    world.run(reserve("h", "acme/a/x", "wall_ms=500"));
    assert_eq!(world.state.usage(&scope("acme")).held.get(WALL), 500);
}

#[test]
fn a_settlement_spends_what_was_used_and_returns_the_rest() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=100"));
    world.run(reserve("h", "acme/a", "cpu_ms=30 wall_ms=5"));
    world.run(settle("h", "cpu_ms=10"));
    world.check("acme", [100, 90, 0, 10, 0]);
    let usage = world.state.usage(&scope("acme/a"));
    assert_eq!((usage.spent.get(CPU), usage.held.get(WALL)), (10, 0));
    assert_eq!((usage.settled_holds, usage.open_holds), (1, 0));
    assert_eq!(world.state.next_due_ms(), None);
    assert_eq!(refused(&world.run(settle("h", ""))), Refusal::HoldClosed);
    assert_eq!(refused(&world.run(void("h"))), Refusal::HoldClosed);
}

#[test]
fn a_settlement_above_the_hold_is_debt_that_blocks() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=10"));
    world.run(reserve("h", "acme", "cpu_ms=5"));
    world.run(settle("h", "cpu_ms=12"));
    world.check("acme", [10, 0, 0, 12, 2]);
    let denial = denied(&world.run(reserve("h2", "acme", "cpu_ms=1"))).unwrap();
    assert!(matches!(denial, Denial::InDebt { requested: 1, .. }), "{denial:?}");
    world.run(set("acme", "cpu_ms=13"));
    world.check("acme", [13, 1, 0, 12, 0]);
}

#[test]
fn a_hold_runs_out_and_can_still_be_settled_late() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=10"));
    world.run(reserve("h", "acme", "cpu_ms=5"));
    assert_eq!(world.until(9_999), []);
    assert_eq!(world.until(10_000), [Event::HoldExpired { hold_id: hold("h") }]);
    world.check("acme", [10, 10, 0, 0, 0]);
    assert_eq!(refused(&world.run(extend("h", "", 1_000))), Refusal::HoldClosed);
    let events = world.run(settle("h", "cpu_ms=4"));
    assert!(matches!(&events[0], Event::HoldSettled { late: true, .. }));
    world.check("acme", [10, 6, 0, 4, 0]);
    assert_eq!(world.state.hold(&hold("h")).unwrap().status, HoldStatus::Settled { late: true });
}

#[test]
fn an_expired_hold_that_is_voided_or_settled_with_nothing_is_kept_no_longer() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=10"));
    for id in ["h1", "h2"] {
        world.run(reserve(id, "acme", "cpu_ms=5"));
    }
    world.retire(1);
    world.until(10_000);
    assert_eq!(refused(&world.run_by("agent-2", void("h1"))), Refusal::NotHolder);
    assert_eq!(world.run(void("h1")), [Event::HoldVoided { hold_id: hold("h1") }]);
    assert!(matches!(world.run(settle("h2", ""))[0], Event::HoldSettled { late: true, .. }));
    world.check("acme", [10, 10, 0, 0, 0]);
    for id in ["h1", "h2"] {
        assert_eq!(refused(&world.run(void(id))), Refusal::HoldClosed);
    }
    world.retire(2);
    assert!(world.state.hold(&hold("h1")).is_none() && world.state.hold(&hold("h2")).is_none());
    assert!(world.past.hold(&scope("acme").tenant_id(), &hold("h1")).is_some());
}

#[test]
fn an_extension_adds_and_never_shortens_a_life() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=10"));
    world.run(reserve("h", "acme", "cpu_ms=4"));
    world.now_ms = 5_000;
    world.run(extend("h", "cpu_ms=3", 1_000));
    assert_eq!(world.state.hold(&hold("h")).unwrap().expires_ms, 10_000);
    world.run(extend("h", "", 20_000));
    assert_eq!(world.state.next_due_ms(), Some(25_000));
    assert_eq!(denied(&world.run(extend("h", "cpu_ms=4", 1_000))), Ok(exhausted("acme", CPU, 4, 3)));
    world.check("acme", [10, 3, 7, 0, 0]);
    let beyond = world.run(extend("h", &format!("wall_ms={MAX_AMOUNT}"), 1_000));
    assert!(denied(&beyond).is_err(), "it held none of that meter");
    let more = denied(&world.run(extend("h", "wall_ms=1", 1_000)));
    assert_eq!(more, Ok(exhausted("acme", WALL, 1, 0)));
}

#[test]
fn only_the_holder_acts_on_a_hold_and_only_its_tenant_revokes_it() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=10"));
    world.run(reserve("h", "acme", "cpu_ms=4"));
    for action in [extend("h", "", 1_000), settle("h", ""), void("h")] {
        assert_eq!(refused(&world.run_by("agent-2", action.clone())), Refusal::NotHolder);
        let other = world.ask("other", "agent-1", None, action).unwrap();
        assert_eq!(refused(&[other.reply().unwrap().clone()]), Refusal::NotHolder);
    }
    assert_eq!(refused(&world.run(void("none"))), Refusal::UnknownHold);
    let other = world.ask("other", "root", None, revoke("h")).unwrap();
    assert_eq!(refused(&[other.reply().unwrap().clone()]), Refusal::NotHolder);
    world.run_by("tenant-admin:root", revoke("h"));
    assert_eq!(refused(&world.run(extend("h", "", 1_000))), Refusal::HoldRevoked);
    world.run(settle("h", "cpu_ms=1"));
    world.check("acme", [10, 9, 0, 1, 0]);
}

#[test]
fn a_balancing_hold_takes_what_is_left_but_no_less_than_its_least() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=100 wall_ms=7"));
    world.run(set("acme/a", "cpu_ms=8"));
    let events = world.run(balancing("h", "acme/a", "cpu_ms=50 wall_ms=7", "cpu_ms=3"));
    assert_eq!(held(&events), amounts("cpu_ms=8 wall_ms=7"));
    world.run(set("acme/a", "cpu_ms=10"));
    let short = denied(&world.run(balancing("h2", "acme/a", "cpu_ms=50", "cpu_ms=3")));
    assert_eq!(short, Ok(exhausted("acme/a", CPU, 3, 2)));
    // What is not named there is taken in full or not at all.
    let other = denied(&world.run(balancing("h2", "acme/a", "cpu_ms=5 wall_ms=1", "cpu_ms=1")));
    assert_eq!(other, Ok(exhausted("acme", WALL, 1, 0)));
}

#[test]
fn a_sweep_ends_no_more_than_fits_into_an_entry() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=1000"));
    for n in 0..30 {
        world.run(reserve(&format!("h{n}"), "acme", "cpu_ms=1"));
    }
    let due = sweep(&world.state, 10_000);
    assert_eq!(due.iter().map(|(_, decision)| decision.events.len()).sum::<usize>(), 30.min(SWEEP_MAX));
    assert_eq!(world.until(10_000).len(), 30);
    assert_eq!(world.state.open_holds(), 0);
}

#[test]
fn open_holds_are_listed_by_id_a_page_at_a_time() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=1000"));
    for (id, name) in [("c", "acme/a"), ("a", "acme/a/x"), ("b", "acme/ab"), ("d", "acme/a")] {
        world.run(reserve(id, name, "cpu_ms=1"));
    }
    world.run(lease("e", "acme/a", "cpu_ms=1"));
    world.run(void("d"));
    let page = |leases, after: Option<&str>, limit| {
        let after = after.map(hold);
        let page = world.state.open_holds_below(&scope("acme/a"), leases, after.as_ref(), limit);
        let ids = page.holds.iter().map(|(hold_id, _)| hold_id.to_string());
        (ids.collect::<Vec<_>>(), page.last.map(ToString::to_string))
    };
    let want = |ids: &[&str], last: Option<&str>| {
        (ids.iter().map(ToString::to_string).collect::<Vec<_>>(), last.map(str::to_owned))
    };
    // `d` is over and `b` is beside; what comes last ends the listing.
    assert_eq!(page(false, None, 1), want(&["a"], Some("b")));
    assert_eq!(page(false, None, 2), want(&["a", "c"], Some("c")));
    assert_eq!(page(false, Some("c"), 1), want(&["e"], None));
    assert_eq!(page(true, None, 9), want(&["e"], None));
}

#[test]
fn a_page_of_open_holds_looks_at_so_many_and_the_next_goes_on() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=1000000"));
    for n in 0..21 {
        world.run(reserve(&format!("a{n:05}"), "acme/a", "cpu_ms=1"));
    }
    world.run(reserve("b", "acme/b", "cpu_ms=1"));
    let page = world.state.open_holds_below(&scope("acme/b"), false, None, 2);
    let last = page.last.unwrap();
    assert_eq!((page.holds.len(), last.as_str()), (0, "a00019"));
    let page = world.state.open_holds_below(&scope("acme/b"), false, Some(last), 2);
    assert_eq!((page.holds.len(), page.last), (1, None));
    let none = world.state.open_holds_below(&scope("acme/c"), false, None, 2);
    assert_eq!((none.holds.len(), none.last), (0, None));
}
