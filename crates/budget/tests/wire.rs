//! What was journaled is decoded strictly: each change of a valid message that gives it no meaning is refused with its path.
#![allow(clippy::unwrap_used, missing_docs)]

use exchequer_budget::{Event, Fault, MAX_AMOUNT, wire};
use exchequer_proto::v1::{self, budget_event::Kind};
use prost::Message;

fn amount(meter: &str, amount: u64) -> v1::MeterAmount {
    v1::MeterAmount { meter: meter.into(), amount }
}

fn run(kinds: Vec<Kind>) -> v1::DecisionRun {
    let events = kinds.into_iter().map(|kind| v1::BudgetEvent { kind: Some(kind) }).collect();
    let decision = v1::Decision {
        idempotency_key: "key".into(),
        request_hash: vec![7; 32].into(),
        actor: "agent-1".into(),
        events,
    };
    v1::DecisionRun { tenant: "acme".into(), decisions: vec![decision] }
}

/// One valid event of each kind, with every field that can be set.
fn kinds() -> Vec<Kind> {
    let source = Some(v1::UsageSource { skill: "python".into(), used_unix_ms: 5, ..Default::default() });
    let uncharged = vec![v1::Uncharged {
        scope: "acme".into(),
        window: v1::Window::Day.into(),
        meter: "cpu_ms".into(),
        amount: 1,
    }];
    let exceeded = vec![v1::Exceeded {
        scope: "acme".into(),
        window: 0,
        meter: "cpu_ms".into(),
        requested: 2,
        available: 1,
        enforcement: v1::Enforcement::Soft.into(),
    }];
    let used = vec![amount("cpu_ms", 2), amount("cost_micros", 1), amount("gpu_ms", 9)];
    let threshold = |at| v1::Threshold { at: Some(at) };
    let at = v1::threshold::At::ForecastPercent(90);
    vec![
        Kind::BudgetSet(v1::BudgetSet {
            scope: "acme/a".into(),
            granted: vec![amount("cpu_ms", 0), amount("gpu_ms", 5)],
            window: v1::Window::Month.into(),
            time_zone: "Europe/Vienna".into(),
            enforcement: v1::Enforcement::Shadow.into(),
            overage: v1::Overage::Overdraft.into(),
            overdraft: vec![amount("gpu_ms", 1)],
            rollover_cap: vec![amount("cpu_ms", 1)],
            carry_debt: true,
            thresholds: vec![threshold(at), threshold(v1::threshold::At::SpentAmount(1))],
            window_start_unix_ms: 1,
            window_end_unix_ms: 2,
        }),
        Kind::BudgetRemoved(v1::BudgetRemoved {
            scope: "acme".into(),
            window: 0,
            meters: vec!["cpu_ms".into()],
        }),
        Kind::GrantAdded(v1::GrantAdded {
            grant_id: "g".into(),
            scope: "acme".into(),
            window: v1::Window::Week.into(),
            meter: "cpu_ms".into(),
            amount: 1,
            priority: 2,
            effective_unix_ms: 3,
            expires_unix_ms: 4,
            recurring: true,
            rollover_cap: 1,
        }),
        Kind::GrantBegun(v1::GrantBegun { grant_id: "g".into() }),
        Kind::GrantEnded(v1::GrantEnded { grant_id: "g".into(), revoked: true, remainder: 1 }),
        Kind::WindowRolled(v1::WindowRolled {
            scope: "acme".into(),
            window: v1::Window::Hour.into(),
            start_unix_ms: 1,
            end_unix_ms: 2,
        }),
        Kind::HoldGranted(v1::HoldGranted {
            hold_id: "h".into(),
            scope: "acme/a".into(),
            holder: "agent-1".into(),
            amounts: used.clone(),
            expires_unix_ms: 9,
            lease: true,
            exceeded: exceeded.clone(),
        }),
        Kind::HoldDenied(v1::HoldDenied {
            scope: "acme/a".into(),
            reason: v1::DenialReason::RateLimited.into(),
            binding_scope: "acme".into(),
            binding_meter: "cpu_ms".into(),
            requested: 2,
            available: 1,
            binding_window: 0,
            retry_after_ms: 5,
        }),
        Kind::HoldExtended(v1::HoldExtended {
            hold_id: "h".into(),
            added: used.clone(),
            expires_unix_ms: 9,
            exceeded,
        }),
        Kind::HoldSettled(v1::HoldSettled {
            hold_id: "h".into(),
            used: used.clone(),
            late: true,
            source: source.clone(),
            uncharged: uncharged.clone(),
            scope: "acme/a".into(),
        }),
        Kind::LeaseDrawn(v1::LeaseDrawn {
            hold_id: "h".into(),
            used: used.clone(),
            late: true,
            source: source.clone(),
            uncharged: uncharged.clone(),
            scope: "acme/a".into(),
        }),
        Kind::HoldVoided(v1::HoldVoided { hold_id: "h".into() }),
        Kind::HoldExpired(v1::HoldExpired { hold_id: "h".into() }),
        Kind::HoldRevoked(v1::HoldRevoked { hold_id: "h".into(), reason: "left".into() }),
        Kind::UsageReported(v1::UsageReported {
            scope: "acme/a".into(),
            used: used.clone(),
            source: source.clone(),
            uncharged: uncharged.clone(),
            subject: "user".into(),
        }),
        Kind::UsageCorrected(v1::UsageCorrected {
            scope: "acme".into(),
            amounts: used,
            added: true,
            reason: "twice".into(),
            reference: "h".into(),
            source,
            uncharged,
        }),
        Kind::RateLimitSet(v1::RateLimitSet {
            scope: "acme".into(),
            meter: "cpu_ms".into(),
            amount: 1,
            period_ms: 2,
            burst: 3,
        }),
        Kind::ConcurrencyLimitSet(v1::ConcurrencyLimitSet { scope: "acme".into(), max_open_holds: 0 }),
        Kind::PriceSet(v1::PriceSet { scope: "acme".into(), meter: "cpu_ms".into(), micros: 0, per: 1 }),
        Kind::MeterDefined(v1::MeterDefined {
            tenant: "acme".into(),
            meter: "gpu_ms".into(),
            description: "seconds".into(),
        }),
        Kind::ThresholdReached(v1::ThresholdReached {
            scope: "acme".into(),
            window: v1::Window::Day.into(),
            meter: "cpu_ms".into(),
            window_start_unix_ms: 1,
            threshold: Some(threshold(at)),
            spent: 1,
            granted: 2,
            forecast: 3,
            notification: 4,
        }),
        Kind::WebhookSet(v1::WebhookSet { tenant: "acme".into(), url: "https://x.example/".into() }),
        Kind::NotificationEnded(v1::NotificationEnded {
            notification: 4,
            delivered: true,
            attempts: 2,
            detail: "200".into(),
        }),
        Kind::CommandRefused(v1::CommandRefused {
            reason: v1::RefusalReason::TooMany.into(),
            hold_id: String::new(),
            field: "grant".into(),
        }),
    ]
}

#[test]
fn every_kind_of_event_is_itself_after_decoding_and_encoding() {
    for kind in kinds() {
        let bytes = run(vec![kind.clone()]).encode_to_vec();
        let decoded = wire::decode_run(&bytes).unwrap_or_else(|invalid| panic!("{invalid}: {kind:?}"));
        assert_eq!(wire::encode_run(&decoded), bytes, "{kind:?}");
    }
    let all = run(kinds()).encode_to_vec();
    assert_eq!(wire::encode_run(&wire::decode_run(&all).unwrap()), all);
}

/// Changes the valid event of the kind at `at` of [`kinds`], and compares the fault.
#[track_caller]
fn check(change: impl Fn(&mut Kind), want: (&str, Fault)) {
    let mut found = Vec::new();
    for kind in kinds() {
        let mut changed = kind.clone();
        change(&mut changed);
        if changed != kind {
            let event = v1::BudgetEvent { kind: Some(changed) };
            found.extend(Event::try_from(&event).err().map(|invalid| (invalid.field, invalid.fault)));
        }
    }
    assert_eq!(found, [(want.0.to_owned(), want.1)]);
}

macro_rules! changed {
    ($kind:ident, $message:ident => $change:expr) => {
        |kind: &mut Kind| {
            if let Kind::$kind($message) = kind {
                $change;
            }
        }
    };
}

#[test]
fn what_has_no_meaning_is_refused_with_its_path() {
    let range = |min, max| Fault::OutOfRange { min, max };
    let missing = Fault::Missing;
    check(changed!(BudgetSet, m => m.window = 9), ("budget_set.window", missing));
    check(changed!(BudgetSet, m => m.time_zone.clear()), ("budget_set.time_zone", missing));
    check(changed!(BudgetSet, m => m.granted.reverse()), ("budget_set.granted[1].meter", Fault::OutOfOrder));
    check(changed!(BudgetSet, m => m.overage = 0), ("budget_set.overdraft", Fault::Unexpected));
    check(
        changed!(BudgetSet, m => m.window_end_unix_ms = 1),
        ("budget_set.window_end_unix_ms", Fault::NotLater),
    );
    check(
        changed!(BudgetSet, m => m.rollover_cap[0].meter = "wall_ms".into()),
        ("budget_set.rollover_cap", Fault::Unexpected),
    );
    check(
        changed!(BudgetSet, m => m.thresholds.push(m.thresholds[0])),
        ("budget_set.thresholds[2]", Fault::Repeated),
    );
    check(changed!(BudgetSet, m => m.thresholds[0].at = None), ("budget_set.thresholds[0].at", missing));
    check(changed!(BudgetRemoved, m => m.meters.clear()), ("budget_removed.meters", Fault::Empty));
    check(changed!(GrantAdded, m => m.recurring = false), ("grant_added.rollover_cap", Fault::Unexpected));
    check(changed!(GrantAdded, m => m.expires_unix_ms = 3), ("grant_added.expires_unix_ms", Fault::NotLater));
    check(changed!(GrantAdded, m => m.amount = 0), ("grant_added.amount", range(1, 1 << 55)));
    check(changed!(WindowRolled, m => m.window = 0), ("window_rolled.window", missing));
    check(changed!(WindowRolled, m => m.end_unix_ms = 1), ("window_rolled.end_unix_ms", Fault::NotLater));
    check(changed!(HoldGranted, m => m.amounts.clear()), ("hold_granted.amounts", Fault::Empty));
    check(
        changed!(HoldGranted, m => m.amounts[0].amount = 0),
        ("hold_granted.amounts[0].amount", range(1, MAX_AMOUNT)),
    );
    check(
        changed!(HoldGranted, m => m.exceeded[0].enforcement = 0),
        ("hold_granted.exceeded[0].enforcement", missing),
    );
    check(changed!(HoldDenied, m => m.available = 2), ("hold_denied.available", range(0, 1)));
    check(
        changed!(HoldDenied, m => m.binding_scope = "acme/b".into()),
        ("hold_denied.binding_scope", Fault::OutsideTenant),
    );
    check(
        changed!(HoldDenied, m => m.reason = v1::DenialReason::Exhausted.into()),
        ("hold_denied.retry_after_ms", Fault::Unexpected),
    );
    check(changed!(HoldDenied, m => m.binding_window = 1), ("hold_denied.binding_window", Fault::Unexpected));
    check(
        changed!(HoldSettled, m => m.uncharged[0].amount = 3),
        ("hold_settled.uncharged[0].amount", range(1, 2)),
    );
    check(
        changed!(HoldSettled, m => m.source = Some(v1::UsageSource::default())),
        ("hold_settled.source", Fault::Empty),
    );
    check(changed!(LeaseDrawn, m => m.used.clear()), ("lease_drawn.used", Fault::Empty));
    check(
        changed!(UsageReported, m => m.used[0].meter = "CPU".into()),
        ("usage_reported.used[0].meter", Fault::UnknownMeter),
    );
    check(changed!(UsageCorrected, m => m.added = false), ("usage_corrected.uncharged", Fault::Unexpected));
    check(changed!(UsageCorrected, m => m.reason.clear()), ("usage_corrected.reason", Fault::Empty));
    check(changed!(RateLimitSet, m => m.burst = 0), ("rate_limit_set.burst", range(1, MAX_AMOUNT)));
    check(changed!(PriceSet, m => m.meter = "cost_micros".into()), ("price_set.meter", Fault::Unexpected));
    check(changed!(MeterDefined, m => m.meter = "cpu_ms".into()), ("meter_defined.meter", Fault::Unexpected));
    check(changed!(ThresholdReached, m => m.threshold = None), ("threshold_reached.threshold", missing));
    check(changed!(WebhookSet, m => m.url = "x".into()), ("webhook_set.url", Fault::NotAUrl));
    check(
        changed!(NotificationEnded, m => m.notification = 0),
        ("notification_ended.notification", range(1, u64::MAX)),
    );
    check(changed!(CommandRefused, m => m.reason = 0), ("command_refused.reason", missing));
    check(
        changed!(CommandRefused, m => m.hold_id = "h".into()),
        ("command_refused.hold_id", Fault::Unexpected),
    );
}

#[test]
fn a_run_holds_its_own_tenant_s_scopes_only() {
    let scoped = kinds().into_iter().filter(|kind| {
        let encoded = format!("{kind:?}");
        encoded.contains("scope: \"acme")
            || encoded.contains("tenant: \"acme")
            || encoded.contains("Exceeded")
    });
    for kind in scoped {
        let mut foreign = run(vec![kind.clone()]);
        foreign.tenant = "other".into();
        let invalid = wire::decode_run(&foreign.encode_to_vec()).unwrap_err();
        assert_eq!(invalid.fault, Fault::OutsideTenant, "{kind:?}");
        assert!(invalid.field.starts_with("decisions[0].events[0]."), "{invalid}");
    }
}

#[test]
fn what_callers_send_may_be_in_any_order_and_is_checked_with_its_path() {
    let request = v1::SetBudgetRequest {
        granted: vec![amount("gpu_ms", 1), amount("cpu_ms", 2)],
        window: v1::Window::Day.into(),
        ..Default::default()
    };
    let terms = wire::budget_terms(&request).unwrap();
    assert_eq!(terms.zone.map(|zone| zone.to_string()).as_deref(), Some("UTC"));
    let fault = |request: v1::SetBudgetRequest| {
        let invalid = wire::budget_terms(&request).unwrap_err();
        (invalid.field, invalid.fault)
    };
    let zoned = v1::SetBudgetRequest { time_zone: "Nowhere/Land".into(), ..request.clone() };
    assert_eq!(fault(zoned), ("time_zone".to_owned(), Fault::UnknownZone));
    let repeated = v1::SetBudgetRequest { granted: vec![amount("cpu_ms", 1); 2], ..request };
    assert_eq!(fault(repeated), ("granted[1].meter".to_owned(), Fault::RepeatedMeter));
    let requested = wire::requested_amounts("amounts", &[amount("wall_ms", 3)]).unwrap();
    for (least, field) in
        [(amount("cpu_ms", 1), "at_least[0].meter"), (amount("wall_ms", 4), "at_least[0].amount")]
    {
        assert_eq!(wire::least_amounts("at_least", &[least], &requested).unwrap_err().field, field);
    }
}
