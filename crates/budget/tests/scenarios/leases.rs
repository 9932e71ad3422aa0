//! Leases: a slice that its holder draws from.

use exchequer_budget::{Action, Event, HoldStatus, MAX_AMOUNT, Meter, Price, Refusal, Window};

use crate::words::*;

#[test]
fn a_draw_is_spent_and_no_longer_held() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=100"));
    world.run(lease("l", "acme/a", "cpu_ms=30"));
    world.run(draw("l", "cpu_ms=10 wall_ms=3"));
    world.check("acme", [100, 70, 20, 10, 0]);
    let hold = world.state.hold(&hold("l")).unwrap();
    assert_eq!((&hold.amounts, &hold.used), (&amounts("cpu_ms=20"), &amounts("cpu_ms=10 wall_ms=3")));
    // Beyond what is left of it.
    world.run(draw("l", "cpu_ms=25"));
    world.check("acme", [100, 65, 0, 35, 0]);
    world.run(settle("l", "cpu_ms=5"));
    world.check("acme", [100, 60, 0, 40, 0]);
    assert_eq!(refused(&world.run(draw("l", "cpu_ms=1"))), Refusal::HoldClosed);
    assert_eq!(world.state.usage(&scope("acme")).settled_holds, 1);
}

#[test]
fn a_voided_lease_keeps_what_was_drawn() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=100"));
    world.run(lease("l", "acme", "cpu_ms=30"));
    world.run(draw("l", "cpu_ms=10"));
    world.run(void("l"));
    world.check("acme", [100, 90, 0, 10, 0]);
}

#[test]
fn a_late_draw_is_recorded_and_the_lease_can_still_be_settled() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=100"));
    world.run(lease("l", "acme", "cpu_ms=30"));
    world.until(10_000);
    let events = world.run(draw("l", "cpu_ms=10"));
    assert!(matches!(&events[0], Event::LeaseDrawn { late: true, .. }));
    world.check("acme", [100, 90, 0, 10, 0]);
    assert_eq!(world.state.hold(&hold("l")).unwrap().status, HoldStatus::Expired);
    world.run(settle("l", "cpu_ms=2"));
    world.check("acme", [100, 88, 0, 12, 0]);
}

#[test]
fn only_a_lease_can_be_drawn_from() {
    let mut world = World::default();
    world.run(set("acme", "cpu_ms=100"));
    world.run(reserve("h", "acme", "cpu_ms=30"));
    assert_eq!(refused(&world.run(draw("h", "cpu_ms=1"))), Refusal::NotALease);
    assert_eq!(world.balance("acme", Window::AllTime, Meter::CpuMs), [100, 70, 30, 0, 0]);
}

fn price(name: &str, micros: u64, per: u64) -> Action {
    Action::SetPrice(Price { scope: scope(name), meter: Meter::CpuMs, micros, per })
}

#[test]
fn many_small_draws_cost_what_the_lease_held_for_them() {
    let mut world = World::default();
    world.run(set("acme", "cost_micros=10"));
    world.run(price("acme", 1, 10));
    let cost = |world: &World| world.balance("acme", Window::AllTime, Meter::CostMicros);
    world.run(lease("l", "acme/a", "cpu_ms=95"));
    assert_eq!(cost(&world), [10, 0, 10, 0, 0]);
    for _ in 0..90 {
        world.run(draw("l", "cpu_ms=1"));
    }
    assert_eq!(cost(&world), [10, 0, 1, 9, 0]);
    // What a settlement adds counts with the draws before it.
    world.run(settle("l", "cpu_ms=5"));
    assert_eq!(cost(&world), [10, 0, 0, 10, 0]);
}

#[test]
fn draws_beyond_what_a_lease_counts_are_not_free() {
    let mut world = World::default();
    world.run(set("acme", "cost_micros=1000"));
    world.run(lease("l", "acme", "cpu_ms=1"));
    world.run(draw("l", &format!("cpu_ms={MAX_AMOUNT}")));
    world.run(price("acme", 3, 1));
    world.run(draw("l", "cpu_ms=7"));
    assert_eq!(world.balance("acme", Window::AllTime, Meter::CostMicros), [1000, 979, 0, 21, 0]);
    // A price of which the whole is beyond 64 bits.
    world.run(lease("m", "acme", "wall_ms=1"));
    world.run(draw("m", &format!("cpu_ms={}", MAX_AMOUNT - 1)));
    world.run(price("acme", MAX_AMOUNT, 1));
    let events = world.run(draw("m", "cpu_ms=1"));
    assert!(
        matches!(&events[0], Event::LeaseDrawn { used, .. } if used.get(Meter::CostMicros) == MAX_AMOUNT)
    );
}
