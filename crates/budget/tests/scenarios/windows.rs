//! Windows: they roll, roll over, carry debt, and keep holds.

use exchequer_budget::{BudgetTerms, Event, GrantTerms, Meter, Threshold, Window};

use crate::words::*;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

fn day(world: &World) -> [u128; 5] {
    world.balance("acme", Window::Day, Meter::CpuMs)
}

#[test]
fn a_window_rolls_at_its_end_and_holds_stay_held() {
    let mut world = World::at(5 * HOUR);
    world.run(set_terms("acme", over(Window::Day, "UTC", "cpu_ms=10")));
    world.run(report("acme", "cpu_ms=4"));
    world.now_ms = DAY - 1;
    world.run(reserve("h", "acme", "cpu_ms=5"));
    assert_eq!(day(&world), [10, 1, 5, 4, 0]);
    let rolled =
        Event::WindowRolled { scope: scope("acme"), window: Window::Day, start_ms: DAY, end_ms: 2 * DAY };
    assert_eq!(world.until(DAY), [rolled]);
    assert_eq!(day(&world), [10, 5, 5, 0, 0]);
    world.run(settle("h", "cpu_ms=6"));
    assert_eq!(day(&world), [10, 4, 0, 6, 0]);
}

#[test]
fn a_window_that_nobody_looked_at_rolls_straight_to_the_present_one() {
    let mut world = World::at(0);
    world.run(set_terms("acme", over(Window::Day, "Asia/Kolkata", "cpu_ms=10")));
    let events = world.until(9 * DAY);
    let (start_ms, end_ms) = (9 * DAY - 5 * HOUR - HOUR / 2, 10 * DAY - 5 * HOUR - HOUR / 2);
    assert_eq!(events, [Event::WindowRolled { scope: scope("acme"), window: Window::Day, start_ms, end_ms }]);
}

#[test]
fn what_is_left_rolls_over_up_to_its_cap() {
    let mut world = World::at(0);
    let rollover_cap = allowance("cpu_ms=15");
    world.run(set_terms("acme", BudgetTerms { rollover_cap, ..over(Window::Day, "UTC", "cpu_ms=10") }));
    world.run(report("acme", "cpu_ms=4"));
    world.until(DAY);
    assert_eq!(day(&world), [16, 16, 0, 0, 0]);
    world.until(2 * DAY);
    assert_eq!(day(&world), [25, 25, 0, 0, 0]);
    world.until(3 * DAY);
    assert_eq!(day(&world), [25, 25, 0, 0, 0]);
}

#[test]
fn debt_goes_into_the_next_window_only_if_it_is_carried() {
    for (carry_debt, want) in [(false, [10, 10, 0, 0, 0]), (true, [10, 7, 0, 3, 0])] {
        let mut world = World::at(0);
        world.run(set_terms("acme", BudgetTerms { carry_debt, ..over(Window::Day, "UTC", "cpu_ms=10") }));
        world.run(report("acme", "cpu_ms=13"));
        world.until(DAY);
        assert_eq!(day(&world), want);
    }
}

#[test]
fn a_recurring_grant_is_granted_anew_and_another_stays_until_it_is_used() {
    let mut world = World::at(0);
    world.run(set_terms("acme", over(Window::Day, "UTC", "cpu_ms=0")));
    let daily = |id, amount| GrantTerms { window: Window::Day, ..grant(id, amount) };
    world.run(add(GrantTerms { recurring: true, rollover_cap: 2, priority: 1, ..daily("again", 10) }));
    world.run(add(GrantTerms { priority: 2, expires_ms: DAY * 5 / 2, ..daily("once", 10) }));
    world.run(report("acme", "cpu_ms=4"));
    world.until(DAY);
    let rows = |again, once| [("again".to_owned(), again), ("once".to_owned(), once)].to_vec();
    assert_eq!(left(&world, Window::Day), rows(12, 10));
    world.run(report("acme", "cpu_ms=15"));
    world.until(2 * DAY);
    assert_eq!(left(&world, Window::Day), rows(10, 7));
    assert_eq!(day(&world), [17, 17, 0, 0, 0]);
    world.until(3 * DAY);
    assert_eq!(day(&world), [12, 12, 0, 0, 0]);
}

#[test]
fn another_zone_reckons_the_window_anew_and_keeps_what_was_spent() {
    let mut world = World::at(20 * HOUR);
    world.run(set_terms("acme", over(Window::Day, "UTC", "cpu_ms=10")));
    world.run(report("acme", "cpu_ms=4"));
    world.run(set_terms("acme", over(Window::Day, "Asia/Tokyo", "cpu_ms=20")));
    assert_eq!(day(&world), [20, 16, 0, 4, 0]);
    let view = world.state.budget(&scope("acme"), Window::Day).unwrap();
    assert_eq!(view.budget().window_start_ms(), 15 * HOUR);
    assert_eq!(world.state.next_due_ms(), Some(39 * HOUR));
}

#[test]
fn a_day_on_which_clocks_change_is_as_long_as_it_is() {
    // 25 October 2026 in Vienna: 25 hours from 24 October 22:00 UTC.
    let start = 1_792_879_200_000;
    let mut world = World::at(start + 12 * HOUR);
    world.run(set_terms("acme", over(Window::Day, "Europe/Vienna", "cpu_ms=10")));
    let view = world.state.budget(&scope("acme"), Window::Day).unwrap();
    assert_eq!((view.budget().window_start_ms(), view.budget().window_end_ms()), (start, start + 25 * HOUR));
    world.run(report("acme", "cpu_ms=10"));
    assert_eq!(world.until(start + 25 * HOUR - 1), []);
    assert_eq!(world.until(start + 25 * HOUR).len(), 1);
}

#[test]
fn a_forecast_waits_for_a_hundredth_of_the_window_and_thresholds_are_armed_anew() {
    let mut world = World::at(0);
    let threshold = Threshold::ForecastPercent(100);
    let armed = [threshold, Threshold::SpentAmount(1)].into();
    world.run(set_terms("acme", BudgetTerms { thresholds: armed, ..over(Window::Day, "UTC", "cpu_ms=100") }));
    world.now_ms = DAY / 100 - 1;
    assert_eq!(thresholds(&world.run(report("acme", "cpu_ms=1"))), [Threshold::SpentAmount(1)]);
    world.now_ms = DAY / 4;
    let events = world.run(report("acme", "cpu_ms=24"));
    let told = &reached(&events)[0];
    assert_eq!((told.threshold, told.spent, told.forecast), (threshold, 25, 100));
    world.until(DAY);
    assert_eq!(thresholds(&world.run(report("acme", "cpu_ms=1"))), [Threshold::SpentAmount(1)]);
}

#[test]
fn usage_of_one_meter_reports_its_own_thresholds_and_a_change_of_the_budget_those_of_all() {
    let mut world = World::at(0);
    let threshold = Threshold::ForecastPercent(100);
    let armed = |granted| BudgetTerms { thresholds: [threshold].into(), ..over(Window::Day, "UTC", granted) };
    let of = |events: &[Event]| reached(events).iter().map(|told| told.meter).collect::<Vec<_>>();
    world.run(set_terms("acme", armed("cpu_ms=100 wall_ms=100 output_bytes=100")));
    world.now_ms = DAY / 100 - 1;
    assert_eq!(of(&world.run(report("acme", "wall_ms=50"))), []);
    // By now the forecast of what is not used here is reached too.
    world.now_ms = DAY / 4;
    assert_eq!(of(&world.run(report("acme", "cpu_ms=30 output_bytes=1"))), [Meter::CpuMs]);
    assert_eq!(of(&world.run(set_terms("acme", armed("cpu_ms=100")))), [Meter::WallMs]);
}
