//! What each command does, one fact at a time, through one `check`.
#![allow(clippy::unwrap_used, missing_docs)]

mod words;

use exchequer_budget::{
    Action, Command, DecideError, Decided, Event, Fault, HoldStatus, MAX_AMOUNT, MAX_GRANTED, Meter, Refusal,
    SWEEP_MAX, State, Ttl, decide, sweep,
};
use words::*;

/// Runs `given`, then `when` at its time; compares the events it makes, and afterwards `balances`, each as
/// (scope, meter, [granted, available, held, spent, debt]).
#[track_caller]
fn check(given: Vec<Step>, when: Step, events: &[Event], balances: &[(&str, Meter, [u64; 5])]) -> State {
    let mut state = State::default();
    for step in given {
        step.run(&mut state);
    }
    assert_eq!(when.run(&mut state), events);
    for &(name, meter, want) in balances {
        let balance = state.balance(&scope(name), meter).unwrap();
        let got =
            [balance.granted.into(), balance.available.into(), balance.held, balance.spent, balance.debt];
        assert_eq!(got, want.map(u128::from), "{name} {meter}");
    }
    assert_eq!(state.check(), Ok(()));
    assert_eq!(State::decode(&state.encode()).as_ref(), Ok(&state));
    state
}

const CPU: Meter = Meter::CpuMs;
const WALL: Meter = Meter::WallMs;

#[test]
fn a_hold_is_taken_at_every_enclosing_scope() {
    let state = check(
        vec![set("acme", &[(CPU, 100)]), set("acme/a/x", &[(CPU, 50)])],
        reserve("h", "acme/a/x", &[(CPU, 30)]),
        &[granted("h", "acme/a/x", &[(CPU, 30)], 10_000)],
        &[("acme", CPU, [100, 70, 30, 0, 0]), ("acme/a/x", CPU, [50, 20, 30, 0, 0])],
    );
    let between = state.usage(&scope("acme/a"));
    assert_eq!((between.held.get(CPU), between.open_holds), (30, 1));
    assert_eq!(state.balance(&scope("acme/a"), CPU), None);
}

#[test]
fn a_denial_names_the_outermost_scope_and_its_first_meter_that_bind() {
    let budgets = || vec![set("acme", &[(CPU, 5), (WALL, 5)]), set("acme/a", &[(CPU, 1), (WALL, 1)])];
    for (amounts, want) in [
        (&[(CPU, 6), (WALL, 6)], exhausted("acme/a", "acme", CPU, 6, 5)),
        (&[(CPU, 1), (WALL, 6)], exhausted("acme/a", "acme", WALL, 6, 5)),
        (&[(CPU, 1), (WALL, 2)], exhausted("acme/a", "acme/a", WALL, 2, 1)),
    ] {
        let untouched = [("acme", CPU, [5, 5, 0, 0, 0]), ("acme/a", WALL, [1, 1, 0, 0, 0])];
        check(budgets(), reserve("h", "acme/a", amounts), &[want], &untouched);
    }
}

#[test]
fn the_last_unit_can_be_held_and_the_next_one_cannot() {
    let given = || vec![set("acme", &[(CPU, 3)]), reserve("h1", "acme", &[(CPU, 1)])];
    check(
        given(),
        reserve("h2", "acme", &[(CPU, 2)]),
        &[granted("h2", "acme", &[(CPU, 2)], 10_000)],
        &[("acme", CPU, [3, 0, 3, 0, 0])],
    );
    let denied = exhausted("acme", "acme", CPU, 3, 2);
    check(given(), reserve("h2", "acme", &[(CPU, 3)]), &[denied], &[("acme", CPU, [3, 2, 1, 0, 0])]);
}

#[test]
fn without_any_budget_nothing_is_granted() {
    let state = check(
        vec![set("other", &[(CPU, 9)])],
        reserve("h", "acme/a", &[(CPU, 1)]),
        &[no_budget("acme/a")],
        &[],
    );
    assert_eq!(state.hold(&hold("h")), None);
    // A budget below the scope does not cover it.
    check(
        vec![set("acme/a/x", &[(CPU, 9)])],
        reserve("h", "acme/a", &[(CPU, 1)]),
        &[no_budget("acme/a")],
        &[],
    );
}

#[test]
fn a_meter_that_no_budget_limits_is_held_and_counted() {
    let given = vec![set("acme", &[(CPU, 9)])];
    let state = check(
        given,
        reserve("h", "acme", &[(WALL, 500)]),
        &[granted("h", "acme", &[(WALL, 500)], 10_000)],
        &[("acme", CPU, [9, 9, 0, 0, 0])],
    );
    assert_eq!(state.usage(&scope("acme")).held.get(WALL), 500);
}

#[test]
fn a_settlement_spends_what_was_used_and_returns_the_rest() {
    let given = vec![set("acme", &[(CPU, 100)]), reserve("h", "acme/a", &[(CPU, 30), (WALL, 5)])];
    let state = check(
        given,
        settle("h", &[(CPU, 10)]),
        &[settled("h", &[(CPU, 10)], false)],
        &[("acme", CPU, [100, 90, 0, 10, 0])],
    );
    let usage = state.usage(&scope("acme/a"));
    assert_eq!((usage.spent.get(CPU), usage.held.get(WALL)), (10, 0));
    assert_eq!((usage.settled_holds, usage.open_holds), (1, 0));
    assert_eq!(state.next_expiry_ms(), None);
}

#[test]
fn a_settlement_above_the_hold_is_recorded_in_full_and_the_uncovered_part_is_debt() {
    let given = || vec![set("acme", &[(CPU, 40)]), reserve("h", "acme", &[(CPU, 30)])];
    check(
        given(),
        settle("h", &[(CPU, 39)]),
        &[settled("h", &[(CPU, 39)], false)],
        &[("acme", CPU, [40, 1, 0, 39, 0])],
    );
    check(
        given(),
        settle("h", &[(CPU, 55)]),
        &[settled("h", &[(CPU, 55)], false)],
        &[("acme", CPU, [40, 0, 0, 55, 15])],
    );
}

#[test]
fn debt_blocks_holds_of_its_scope_and_meter_only() {
    let given = || {
        vec![
            set("acme/a", &[(CPU, 10), (WALL, 10)]),
            set("acme/b", &[(CPU, 10)]),
            reserve("h", "acme/a", &[(CPU, 10)]),
            settle("h", &[(CPU, 11)]),
        ]
    };
    let state = [("acme/a", CPU, [10, 0, 0, 11, 1])];
    check(given(), reserve("h2", "acme/a", &[(CPU, 1)]), &[in_debt("acme/a", "acme/a", CPU, 1)], &state);
    let wall = granted("h2", "acme/a", &[(WALL, 1)], 10_000);
    check(given(), reserve("h2", "acme/a", &[(WALL, 1)]), &[wall], &state);
    let sibling = granted("h2", "acme/b", &[(CPU, 1)], 10_000);
    check(given(), reserve("h2", "acme/b", &[(CPU, 1)]), &[sibling], &state);
}

#[test]
fn lowering_a_budget_below_what_is_held_and_spent_makes_debt_and_raising_it_pays() {
    let given = || {
        vec![
            set("acme", &[(CPU, 100), (WALL, 7)]),
            reserve("h1", "acme", &[(CPU, 20)]),
            settle("h1", &[(CPU, 20)]),
            reserve("h2", "acme", &[(CPU, 30)]),
        ]
    };
    let lowered = [("acme", CPU, [40, 0, 30, 20, 10]), ("acme", WALL, [7, 7, 0, 0, 0])];
    check(given(), set("acme", &[(CPU, 40)]), &[budget_set("acme", &[(CPU, 40)])], &lowered);
    let mut raised = given();
    raised.push(set("acme", &[(CPU, 40)]));
    let paid = [("acme", CPU, [60, 10, 30, 20, 0])];
    check(raised, set("acme", &[(CPU, 60)]), &[budget_set("acme", &[(CPU, 60)])], &paid);
}

#[test]
fn what_was_spent_before_a_budget_was_set_counts() {
    let given =
        vec![set("acme", &[(CPU, 100)]), reserve("h", "acme/a", &[(CPU, 30)]), settle("h", &[(CPU, 25)])];
    let set_later = set("acme/a", &[(CPU, 27)]);
    check(given, set_later, &[budget_set("acme/a", &[(CPU, 27)])], &[("acme/a", CPU, [27, 2, 0, 25, 0])]);
}

#[test]
fn a_budget_of_zero_forbids() {
    let given = vec![set("acme", &[(CPU, 9)]), set("acme/a", &[(CPU, 0)])];
    check(given, reserve("h", "acme/a", &[(CPU, 1)]), &[exhausted("acme/a", "acme/a", CPU, 1, 0)], &[]);
}

#[test]
fn an_extension_adds_and_lives_longer_but_never_shorter() {
    let given = || vec![set("acme", &[(CPU, 10)]), reserve("h", "acme", &[(CPU, 4)])];
    let state = check(
        given(),
        extend("h", &[(CPU, 6)], 5_000).at(9_000),
        &[extended("h", &[(CPU, 6)], 14_000)],
        &[("acme", CPU, [10, 0, 10, 0, 0])],
    );
    assert_eq!(state.next_expiry_ms(), Some(14_000));
    check(
        given(),
        extend("h", &[], 1_000),
        &[extended("h", &[], 10_000)],
        &[("acme", CPU, [10, 6, 4, 0, 0])],
    );
}

#[test]
fn a_denied_extension_leaves_the_hold_as_it_was() {
    let given = vec![set("acme", &[(CPU, 10)]), reserve("h", "acme/a", &[(CPU, 4)])];
    let state = check(
        given,
        extend("h", &[(CPU, 7)], 60_000),
        &[exhausted("acme/a", "acme", CPU, 7, 6)],
        &[("acme", CPU, [10, 6, 4, 0, 0])],
    );
    assert_eq!(state.next_expiry_ms(), Some(10_000));
}

#[test]
fn one_hold_holds_no_more_than_one_amount() {
    let given = vec![set("acme", &[(CPU, MAX_GRANTED)]), reserve("h", "acme", &[(CPU, MAX_AMOUNT - 1)])];
    let denied = exhausted("acme", "acme", CPU, 2, 1);
    check(given, extend("h", &[(CPU, 2)], 1_000), &[denied], &[]);
}

#[test]
fn voiding_returns_all() {
    let given = vec![set("acme", &[(CPU, 10)]), reserve("h", "acme", &[(CPU, 4)])];
    let state = check(given, void("h"), &[voided("h")], &[("acme", CPU, [10, 10, 0, 0, 0])]);
    assert_eq!(state.usage(&scope("acme")).settled_holds, 0);
    assert_eq!(state.hold(&hold("h")).unwrap().status, HoldStatus::Voided);
}

#[test]
fn expiry_returns_all_at_its_time_and_not_before() {
    let given = || vec![set("acme", &[(CPU, 10)]), reserve("h", "acme", &[(CPU, 4)])];
    check(given(), swept().at(9_999), &[], &[("acme", CPU, [10, 6, 4, 0, 0])]);
    check(given(), swept().at(10_000), &[expired("h")], &[("acme", CPU, [10, 10, 0, 0, 0])]);
    // An extension moved it.
    let mut extended = given();
    extended.push(extend("h", &[], 20_000));
    check(extended, swept().at(19_999), &[], &[("acme", CPU, [10, 6, 4, 0, 0])]);
}

#[test]
fn a_late_settlement_after_expiry_is_recorded() {
    let given = vec![
        set("acme", &[(CPU, 10)]),
        reserve("h1", "acme", &[(CPU, 6)]),
        swept().at(10_000),
        reserve("h2", "acme", &[(CPU, 9)]),
    ];
    let state = check(
        given,
        settle("h1", &[(CPU, 5)]),
        &[settled("h1", &[(CPU, 5)], true)],
        &[("acme", CPU, [10, 0, 9, 5, 4])],
    );
    let usage = state.usage(&scope("acme"));
    assert_eq!((usage.open_holds, usage.settled_holds), (1, 1));
}

#[test]
fn what_is_closed_or_unknown_or_anothers_is_refused() {
    let given = || vec![set("acme", &[(CPU, 10)]), reserve("h", "acme", &[(CPU, 4)])];
    let actions = || [settle("h", &[]), void("h"), extend("h", &[], 1_000)];
    for action in actions() {
        let unknown = vec![set("acme", &[(CPU, 10)])];
        check(unknown, action.clone(), &[refused(Refusal::UnknownHold, "h")], &[]);
        check(given(), action.clone().by("mallory"), &[refused(Refusal::NotHolder, "h")], &[]);
        check(given(), action.clone().of("other"), &[refused(Refusal::NotHolder, "h")], &[]);
        for close in [settle("h", &[(CPU, 1)]), void("h")] {
            let mut closed = given();
            closed.push(close);
            check(closed, action.clone(), &[refused(Refusal::HoldClosed, "h")], &[]);
        }
    }
    for action in [void("h"), extend("h", &[], 1_000)] {
        let mut expired = given();
        expired.push(swept().at(10_000));
        check(expired, action, &[refused(Refusal::HoldClosed, "h")], &[]);
    }
}

#[test]
fn a_repeated_key_gets_the_recorded_answer_and_changes_nothing() {
    let mut state = State::default();
    set("acme", &[(CPU, 10)]).run(&mut state);
    for (first, repeated) in [
        (reserve("h1", "acme", &[(CPU, 4)]), reserve("h2", "acme", &[(CPU, 4)])),
        (reserve("h3", "acme", &[(CPU, 40)]), reserve("h4", "acme", &[(CPU, 40)])),
        (extend("h1", &[(CPU, 1)], 1_000), extend("h1", &[(CPU, 1)], 1_000)),
        (settle("h1", &[(CPU, 5)]), settle("h1", &[(CPU, 5)])),
        (settle("h1", &[(CPU, 6)]), settle("h1", &[(CPU, 6)])),
        (void("gone"), void("gone")),
        (set("acme", &[(CPU, 9)]), set("acme", &[(CPU, 9)])),
    ] {
        let key = format!("{first:?}");
        let reply = first.keyed(&key, 1).run(&mut state);
        let before = state.clone();
        let repeat = repeated.clone().keyed(&key, 1).at(99_000_000).command();
        assert_eq!(decide(&state, &repeat, 99_000_000), Ok(Decided::Repeated(reply[0].clone())));
        let other = repeated.clone().keyed(&key, 2).command();
        assert_eq!(decide(&state, &other, 0), Err(DecideError::IdempotencyConflict));
        assert_eq!(state, before);
    }
    // Keys are the tenant's own.
    let key = "the same";
    void("x").keyed(key, 1).run(&mut state);
    let other = void("x").keyed(key, 2).of("other").command();
    assert!(matches!(decide(&state, &other, 0), Ok(Decided::New(_))));
}

#[test]
fn a_hold_id_is_given_once() {
    let mut state = State::default();
    set("acme", &[(CPU, 10)]).run(&mut state);
    let again = reserve("h", "acme", &[(CPU, 1)]);
    again.clone().run(&mut state);
    assert_eq!(decide(&state, &again.command(), 0), Err(DecideError::HoldIdTaken));
}

#[test]
fn time_never_falls() {
    let mut state = State::default();
    set("acme", &[(CPU, 10)]).at(50_000).run(&mut state);
    let events = reserve("h", "acme", &[(CPU, 1)]).at(7).run(&mut state);
    assert_eq!(events, [granted("h", "acme", &[(CPU, 1)], 60_000)]);
    assert_eq!(state.now_ms(), 50_000);
}

#[test]
fn a_sweep_is_bounded_and_keeps_tenants_apart() {
    let mut state = State::default();
    for tenant in ["acme", "other"] {
        set(tenant, &[(CPU, 10_000)]).of(tenant).run(&mut state);
    }
    for i in 0..SWEEP_MAX {
        let tenant = if i % 2 == 0 { "acme" } else { "other" };
        reserve(&format!("h{i}"), tenant, &[(CPU, 1)]).of(tenant).run(&mut state);
    }
    reserve("last", "acme", &[(CPU, 1)]).at(1).run(&mut state);
    let first = sweep(&state, 60_000);
    assert_eq!(first.iter().map(|(tenant, _)| tenant.as_str()).collect::<Vec<_>>(), ["acme", "other"]);
    assert_eq!(first.iter().map(|(_, decision)| decision.events.len()).sum::<usize>(), SWEEP_MAX);
    for (tenant, decision) in &first {
        state.record(decision, tenant, 60_000);
    }
    let second = sweep(&state, 60_000);
    assert_eq!(second.len(), 1);
    assert_eq!(second[0].1.events, [expired("last")]);
}

#[test]
fn budgets_are_listed_by_tenant_and_page() {
    let mut state = State::default();
    for name in ["acme", "acme-b/x", "acme/a", "acme/b/c", "zoo"] {
        let tenant = scope(name).tenant_id();
        set(name, &[(CPU, 100)]).of(tenant.as_str()).run(&mut state);
    }
    // Has an account, but no budget.
    reserve("h", "acme/c", &[(CPU, 1)]).run(&mut state);
    let list = |tenant: Option<&str>, after: Option<&str>| {
        let tenant = tenant.map(tenant_id);
        let after = after.map(scope);
        state.budgets(tenant.as_ref(), after.as_ref()).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(list(None, None), ["acme", "acme-b/x", "acme/a", "acme/b/c", "zoo"]);
    assert_eq!(list(Some("acme"), None), ["acme", "acme/a", "acme/b/c"]);
    assert_eq!(list(Some("acme"), Some("acme/a")), ["acme/b/c"]);
    assert_eq!(list(Some("acme"), Some("aaa")), ["acme", "acme/a", "acme/b/c"]);
    assert_eq!(list(Some("acme"), Some("zoo")), [""; 0]);
    assert_eq!(list(None, Some("acme/b/c")), ["zoo"]);
}

#[test]
fn events_that_contradict_the_state_change_nothing() {
    let mut state = State::default();
    set("acme", &[(CPU, 10)]).run(&mut state);
    reserve("h", "acme", &[(CPU, 4)]).run(&mut state);
    void("h").run(&mut state);
    let before = state.clone();
    for event in [
        granted("h", "acme", &[(CPU, 1)], 1),
        extended("h", &[(CPU, 1)], 1),
        settled("h", &[(CPU, 1)], false),
        voided("h"),
        expired("h"),
        extended("unknown", &[(CPU, 1)], 1),
        settled("unknown", &[(CPU, 1)], true),
        voided("unknown"),
        expired("unknown"),
    ] {
        state.evolve(&event);
        assert_eq!(state, before, "{event:?}");
    }
}

#[test]
fn commands_out_of_bounds_do_not_exist() {
    let command = |action| Command::new(tenant_id("acme"), subject("agent-1"), None, action);
    let reserve = |name: &str, amounts: &[(Meter, u64)]| Action::Reserve {
        hold_id: hold("h"),
        scope: scope(name),
        holder: subject("agent-1"),
        amounts: words::amounts(amounts),
        ttl: Ttl::from_ms(1_000).unwrap(),
    };
    let set = |name: &str, granted: &[(Meter, u64)]| Action::SetBudget {
        scope: scope(name),
        granted: allowance(granted),
    };
    assert_eq!(command(reserve("acme", &[])), Err(Fault::Empty.at("amounts")));
    assert_eq!(command(reserve("acmes/a", &[(CPU, 1)])), Err(Fault::OutsideTenant.at("scope")));
    assert_eq!(command(set("acme", &[])), Err(Fault::Empty.at("granted")));
    assert_eq!(command(set("other", &[(CPU, 1)])), Err(Fault::OutsideTenant.at("scope")));
    let out_of_range = Err(Fault::OutOfRange { min: 1_000, max: 86_400_000 });
    assert_eq!(Ttl::from_ms(999), out_of_range);
    assert_eq!(Ttl::from_ms(86_400_001), out_of_range);
    assert_eq!(Ttl::from_ms(86_400_000).map(Ttl::as_ms), Ok(86_400_000));
}

#[test]
fn sums_beyond_64_bits_stay_exact() {
    let mut state = State::default();
    set("acme", &[(CPU, MAX_GRANTED)]).run(&mut state);
    for i in 0..65_537 {
        // Straight to the fold: all granted before any was settled.
        state.evolve(&granted(&format!("h{i}"), "acme", &[(CPU, 1)], 10_000));
    }
    for i in 0..65_537 {
        state.evolve(&settled(&format!("h{i}"), &[(CPU, MAX_AMOUNT)], false));
    }
    let spent = 65_537 * u128::from(MAX_AMOUNT);
    let balance = state.balance(&scope("acme"), CPU).unwrap();
    assert_eq!((balance.spent, balance.debt), (spent, spent - u128::from(MAX_GRANTED)));
    assert_eq!((balance.available, balance.held), (0, 0));
    assert_eq!(state.check(), Ok(()));
    assert!(exchequer_budget::wire::budget(&scope("acme"), &state.balances(&scope("acme"))).is_err());
    let restored = State::decode(&state.encode()).unwrap();
    assert_eq!(restored, state);
    let denied = reserve("more", "acme", &[(CPU, 1)]).run(&mut state);
    assert_eq!(denied, [in_debt("acme", "acme", CPU, 1)]);
}
