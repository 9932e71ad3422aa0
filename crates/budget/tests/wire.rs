//! The wire form: strict about what was journaled, exact about which field is wrong, and never in a panic.
#![allow(clippy::unwrap_used, missing_docs)]

use exchequer_budget::{
    Amounts, DecisionRun, Event, Fault, HoldId, Invalid, MAX_AMOUNT, MAX_GRANTED, Meter, SWEEP_MAX,
    ScopePath, SnapshotError, State, TenantId, sweep, wire,
};
use exchequer_proto::v1::{self, budget_event::Kind};
use proptest::{collection::vec, option, prelude::*, sample::select};
use prost::Message;

fn amount(meter: &str, amount: u64) -> v1::MeterAmount {
    v1::MeterAmount { meter: meter.into(), amount }
}

fn granted() -> v1::HoldGranted {
    v1::HoldGranted {
        hold_id: "h".into(),
        scope: "acme/a".into(),
        holder: "agent-1".into(),
        amounts: vec![amount("cpu_ms", 1), amount("wall_ms", MAX_AMOUNT)],
        expires_unix_ms: 9,
    }
}

fn denied() -> v1::HoldDenied {
    v1::HoldDenied {
        scope: "acme/a".into(),
        reason: v1::DenialReason::Exhausted.into(),
        binding_scope: "acme".into(),
        binding_meter: "cpu_ms".into(),
        requested: 5,
        available: 4,
    }
}

fn decision(kind: Kind) -> v1::Decision {
    v1::Decision {
        idempotency_key: "key".into(),
        request_hash: vec![7; 32].into(),
        actor: "agent-1".into(),
        events: vec![v1::BudgetEvent { kind: Some(kind) }],
    }
}

fn run(decision: v1::Decision) -> v1::DecisionRun {
    v1::DecisionRun { tenant: "acme".into(), decisions: vec![decision] }
}

/// Decodes the run's bytes: `None` if they decode and encode to themselves, otherwise the field and the fault.
fn decoded(run: &v1::DecisionRun) -> Option<(String, Fault)> {
    let bytes = run.encode_to_vec();
    match wire::decode_run(&bytes) {
        Ok(domain) => {
            assert_eq!(wire::encode_run(&domain), bytes);
            None
        }
        Err(Invalid { field, fault }) => Some((field, fault)),
    }
}

#[track_caller]
fn check_granted(change: impl FnOnce(&mut v1::HoldGranted), field: &str, fault: Fault) {
    let mut hold = granted();
    change(&mut hold);
    let field = format!("decisions[0].events[0].{field}");
    assert_eq!(decoded(&run(decision(Kind::HoldGranted(hold)))), Some((field, fault)));
}

#[track_caller]
fn check_denied(change: impl FnOnce(&mut v1::HoldDenied), want: Option<(&str, Fault)>) {
    let mut denial = denied();
    change(&mut denial);
    let want = want.map(|(field, fault)| (format!("decisions[0].events[0].{field}"), fault));
    assert_eq!(decoded(&run(decision(Kind::HoldDenied(denial)))), want);
}

#[track_caller]
fn check_run(change: impl FnOnce(&mut v1::DecisionRun), field: &str, fault: Fault) {
    let mut run = run(decision(Kind::HoldGranted(granted())));
    change(&mut run);
    assert_eq!(decoded(&run), Some((field.into(), fault)));
}

#[test]
fn a_grant_names_the_field_that_is_wrong() {
    assert_eq!(decoded(&run(decision(Kind::HoldGranted(granted())))), None);
    let bounds = Fault::OutOfRange { min: 1, max: MAX_AMOUNT };
    check_granted(|hold| hold.hold_id.clear(), "hold_id", Fault::Empty);
    check_granted(|hold| hold.scope = "acme//a".into(), "scope", Fault::Empty);
    check_granted(|hold| hold.scope = "other".into(), "scope", Fault::OutsideTenant);
    check_granted(|hold| hold.holder = "a\0".into(), "holder", Fault::Character);
    check_granted(|hold| hold.amounts.clear(), "amounts", Fault::Empty);
    check_granted(|hold| hold.amounts[1].meter = "cpu".into(), "amounts[1].meter", Fault::UnknownMeter);
    check_granted(|hold| hold.amounts[1].meter = "cpu_ms".into(), "amounts[1].meter", Fault::RepeatedMeter);
    check_granted(|hold| hold.amounts.swap(0, 1), "amounts[1].meter", Fault::OutOfOrder);
    check_granted(|hold| hold.amounts[0].amount = 0, "amounts[0].amount", bounds);
    check_granted(
        |hold| hold.amounts[1].amount += 1,
        "amounts[1].amount",
        Fault::OutOfRange { min: 0, max: MAX_AMOUNT },
    );
    check_granted(|hold| hold.amounts = vec![amount("cpu_ms", 1); 9], "amounts", Fault::TooLong { max: 8 });
}

#[test]
fn a_denial_says_no_more_than_its_reason_allows() {
    let no_budget = |denial: &mut v1::HoldDenied| {
        *denial = v1::HoldDenied {
            scope: "acme/a".into(),
            reason: v1::DenialReason::NoBudget.into(),
            ..v1::HoldDenied::default()
        };
    };
    let in_debt = |denial: &mut v1::HoldDenied| {
        denial.reason = v1::DenialReason::InDebt.into();
        denial.available = 0;
    };
    check_denied(|_| {}, None);
    check_denied(no_budget, None);
    check_denied(in_debt, None);
    check_denied(|denial| denial.reason = 0, Some(("reason", Fault::Missing)));
    check_denied(|denial| denial.reason = 99, Some(("reason", Fault::Missing)));
    let equal = Fault::OutOfRange { min: 0, max: 4 };
    check_denied(|denial| denial.available = 5, Some(("available", equal)));
    check_denied(
        |denial| denial.binding_scope = "acme/b".into(),
        Some(("binding_scope", Fault::OutsideTenant)),
    );
    check_denied(|denial| denial.binding_meter.clear(), Some(("binding_meter", Fault::UnknownMeter)));
    let bounds = Fault::OutOfRange { min: 1, max: MAX_AMOUNT };
    check_denied(|denial| denial.requested = u64::MAX, Some(("requested", bounds)));
    let with = |change: fn(&mut v1::HoldDenied), base: &dyn Fn(&mut v1::HoldDenied), field| {
        check_denied(
            |denial| {
                base(denial);
                change(denial);
            },
            Some((field, Fault::Unexpected)),
        );
    };
    with(|denial| denial.available = 1, &in_debt, "available");
    with(|denial| denial.available = 1, &no_budget, "available");
    with(|denial| denial.requested = 1, &no_budget, "requested");
    with(|denial| denial.binding_scope = "acme".into(), &no_budget, "binding_scope");
    with(|denial| denial.binding_meter = "cpu_ms".into(), &no_budget, "binding_meter");
}

#[test]
fn a_run_and_its_decisions_are_whole() {
    check_run(|run| run.tenant = "a/b".into(), "tenant", Fault::Character);
    check_run(|run| run.decisions.clear(), "decisions", Fault::Empty);
    let at = |field: &str| format!("decisions[0].{field}");
    check_run(|run| run.decisions[0].actor.clear(), &at("actor"), Fault::Empty);
    check_run(|run| run.decisions[0].events.clear(), &at("events"), Fault::Empty);
    check_run(|run| run.decisions[0].events[0].kind = None, &at("events[0].kind"), Fault::Missing);
    let long = "k".repeat(129);
    check_run(
        |run| run.decisions[0].idempotency_key = long,
        &at("idempotency_key"),
        Fault::TooLong { max: 128 },
    );
    check_run(|run| run.decisions[0].idempotency_key.clear(), &at("request_hash"), Fault::Unexpected);
    let short = vec![7; 31].into();
    check_run(
        |run| run.decisions[0].request_hash = short,
        &at("request_hash"),
        Fault::Length { expected: 32 },
    );
    check_run(
        |run| {
            let again = run.decisions[0].events[0].clone();
            run.decisions[0].events.push(again);
        },
        &at("events"),
        Fault::TooLong { max: 1 },
    );
    let too_long = Fault::TooLong { max: wire::MAX_RUN_BYTES };
    assert_eq!(wire::decode_run(&vec![0; wire::MAX_RUN_BYTES + 1]), Err(too_long.at("run")));
    assert_eq!(wire::decode_run(&[0xff]), Err(Fault::Undecodable.at("run")));
}

#[test]
fn callers_may_order_amounts_freely_but_not_repeat_them() {
    let unordered = [amount("wall_ms", 2), amount("cpu_ms", 1)];
    let want = Amounts::new([(Meter::CpuMs, 1), (Meter::WallMs, 2)]).unwrap();
    assert_eq!(wire::requested_amounts("amounts", &unordered), Ok(want));
    assert_eq!(wire::used_amounts("used", &unordered), Ok(want));
    let twice = [amount("wall_ms", 2), amount("wall_ms", 1)];
    assert_eq!(wire::requested_amounts("amounts", &twice), Err(Fault::RepeatedMeter.at("amounts[1].meter")));
    let zero = [amount("wall_ms", 0)];
    let at_least_one = Fault::OutOfRange { min: 1, max: MAX_AMOUNT }.at("amounts[0].amount");
    assert_eq!(wire::requested_amounts("amounts", &zero), Err(at_least_one.clone()));
    assert_eq!(wire::added_amounts("amounts", &zero), Err(at_least_one));
    assert_eq!(wire::used_amounts("used", &zero), Ok(Amounts::NONE));
    assert_eq!(wire::requested_amounts("amounts", &[]), Err(Fault::Empty.at("amounts")));
    assert_eq!(wire::added_amounts("amounts", &[]), Ok(Amounts::NONE));
    assert_eq!(wire::allowance("granted", &[]), Err(Fault::Empty.at("granted")));
    assert_eq!(
        wire::allowance("granted", &[amount("wall_ms", 0)]).unwrap().iter().collect::<Vec<_>>(),
        [(Meter::WallMs, 0)]
    );
    let too_much = Fault::OutOfRange { min: 0, max: MAX_GRANTED }.at("granted[0].amount");
    assert_eq!(wire::allowance("granted", &[amount("wall_ms", u64::MAX)]), Err(too_much));
}

#[test]
fn the_largest_sweep_fits_into_a_run() {
    let mut state = State::default();
    let amounts = Amounts::new([(Meter::CpuMs, 1)]).unwrap();
    for i in 0..=SWEEP_MAX {
        state.evolve(&Event::HoldGranted {
            hold_id: HoldId::parse(&format!("{i:064}")).unwrap(),
            scope: ScopePath::parse("acme").unwrap(),
            holder: exchequer_budget::Subject::metering(),
            amounts,
            expires_ms: 0,
        });
    }
    let (tenant, decision) = sweep(&state, 0).remove(0);
    assert_eq!(decision.events.len(), SWEEP_MAX);
    let bytes = wire::encode_run(&DecisionRun { tenant, decisions: vec![decision] });
    assert!(wire::decode_run(&bytes).is_ok());
}

#[test]
fn a_snapshot_that_contradicts_itself_is_refused() {
    let mut state = State::default();
    let amounts = Amounts::new([(Meter::CpuMs, 5)]).unwrap();
    state.evolve(&Event::HoldGranted {
        hold_id: HoldId::parse("h").unwrap(),
        scope: ScopePath::parse("acme").unwrap(),
        holder: exchequer_budget::Subject::metering(),
        amounts,
        expires_ms: 0,
    });
    let mut bytes = state.encode();
    // Granted + 1, held, spent of the scope.
    let held = bytes.windows(3).position(|window| window == [0, 5, 0]).unwrap() + 1;
    bytes[held] = 6;
    let broken = exchequer_budget::Broken::Usage(ScopePath::parse("acme").unwrap());
    assert_eq!(State::decode(&bytes), Err(SnapshotError::Broken(broken)));
    assert_eq!(State::decode(b""), Err(SnapshotError::Magic));
}

fn text() -> impl Strategy<Value = String> {
    const NAMES: [&str; 11] =
        ["", "acme", "acme/a", "acme/a/b", "other", "h", "agent-1", "cpu_ms", "wall_ms", "a b", "é/\0"];
    prop_oneof![4 => select(&NAMES[..]).prop_map(str::to_owned), 1 => ".{0,70}"]
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..3_u64, Just(MAX_AMOUNT), Just(MAX_AMOUNT + 1), Just(MAX_GRANTED), Just(u64::MAX)]
}

fn meter_amounts() -> impl Strategy<Value = Vec<v1::MeterAmount>> {
    vec((text(), number()).prop_map(|(meter, amount)| v1::MeterAmount { meter, amount }), 0..4)
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        (text(), meter_amounts())
            .prop_map(|(scope, granted)| Kind::BudgetSet(v1::BudgetSet { scope, granted })),
        (text(), text(), text(), meter_amounts(), number()).prop_map(
            |(hold_id, scope, holder, amounts, expires_unix_ms)| {
                Kind::HoldGranted(v1::HoldGranted { hold_id, scope, holder, amounts, expires_unix_ms })
            }
        ),
        (text(), 0..5_i32, text(), text(), number(), number()).prop_map(
            |(scope, reason, binding_scope, binding_meter, requested, available)| {
                let denied =
                    v1::HoldDenied { scope, reason, binding_scope, binding_meter, requested, available };
                Kind::HoldDenied(denied)
            }
        ),
        (text(), meter_amounts(), number()).prop_map(|(hold_id, added, expires_unix_ms)| {
            Kind::HoldExtended(v1::HoldExtended { hold_id, added, expires_unix_ms })
        }),
        (text(), meter_amounts(), any::<bool>())
            .prop_map(|(hold_id, used, late)| Kind::HoldSettled(v1::HoldSettled { hold_id, used, late })),
        text().prop_map(|hold_id| Kind::HoldVoided(v1::HoldVoided { hold_id })),
        text().prop_map(|hold_id| Kind::HoldExpired(v1::HoldExpired { hold_id })),
        (0..5_i32, text())
            .prop_map(|(reason, hold_id)| Kind::CommandRefused(v1::CommandRefused { reason, hold_id })),
    ]
}

fn any_run() -> impl Strategy<Value = v1::DecisionRun> {
    let hash = prop_oneof![Just(0_usize), Just(32), 0..40_usize].prop_map(|len| vec![9; len].into());
    let decision = (text(), hash, text(), vec(option::of(kind()), 0..3)).prop_map(
        |(idempotency_key, request_hash, actor, kinds)| v1::Decision {
            idempotency_key,
            request_hash,
            actor,
            events: kinds.into_iter().map(|kind| v1::BudgetEvent { kind }).collect(),
        },
    );
    (text(), vec(decision, 0..3)).prop_map(|(tenant, decisions)| v1::DecisionRun { tenant, decisions })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn bytes_that_are_no_run_are_an_error_and_never_a_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _ = wire::decode_run(&bytes);
        let _ = State::decode(&bytes);
        let mut state = State::default().encode();
        state.truncate(state.len() - 5);
        state.extend(bytes);
        let _ = State::decode(&state);
    }

    #[test]
    fn any_run_is_refused_or_decodes_to_itself_and_can_be_folded(runs in vec(any_run(), 0..6)) {
        let mut state = State::default();
        for run in &runs {
            if decoded(run).is_none() {
                state.record_run(&DecisionRun::try_from(run).unwrap(), 1);
                prop_assert_eq!(state.check(), Ok(()));
            }
        }
        prop_assert_eq!(State::decode(&state.encode()), Ok(state));
    }

    /// Valid shapes, so that the fold itself meets events in any order.
    #[test]
    fn any_order_of_valid_events_folds(kinds in vec(kind(), 0..40)) {
        let tenant = TenantId::parse("acme").unwrap();
        let mut state = State::default();
        for event in kinds.iter().filter_map(|kind| {
            Event::try_from(&v1::BudgetEvent { kind: Some(kind.clone()) }).ok()
        }) {
            state.record_run(
                &DecisionRun {
                    tenant: tenant.clone(),
                    decisions: vec![exchequer_budget::Decision {
                        idempotency: None,
                        actor: exchequer_budget::Subject::metering(),
                        events: vec![event],
                    }],
                },
                0,
            );
        }
        prop_assert_eq!(state.check(), Ok(()));
        prop_assert_eq!(State::decode(&state.encode()), Ok(state));
    }
}
