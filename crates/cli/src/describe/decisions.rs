//! What metering decided, in words.
//!
//! Left out: the JSON. Invariant: every kind of budget event has a sentence of its own.

use exchequer_event::v1::{
    self, DenialReason, Enforcement, Overage, Window, budget_event::Kind, threshold::At,
};

use super::{amounts_text, utc};

/// A decision in words.
pub fn decision_text(decision: &v1::Decision) -> String {
    let events: Vec<_> =
        decision.events.iter().filter_map(|event| event.kind.as_ref()).map(event_text).collect();
    format!("{}: {}", decision.actor, events.join(", "))
}

fn event_text(kind: &Kind) -> String {
    match kind {
        Kind::BudgetSet(set) => budget_set(set),
        Kind::BudgetRemoved(removed) => {
            let of = window(removed.window());
            format!("{of}budget of {} removed for {}", removed.scope, removed.meters.join(" "))
        }
        Kind::GrantAdded(grant) => grant_added(grant),
        Kind::GrantBegun(grant) => format!("grant {} began", grant.grant_id),
        Kind::GrantEnded(grant) => {
            let how = if grant.revoked { "was ended" } else { "expired" };
            format!("grant {} {how} with {} left", grant.grant_id, grant.remainder)
        }
        Kind::WindowRolled(rolled) => format!(
            "{}budget of {}: the window from {} to {} began",
            window(rolled.window()),
            rolled.scope,
            utc(rolled.start_unix_ms),
            utc(rolled.end_unix_ms)
        ),
        Kind::HoldGranted(hold) => {
            let what = if hold.lease { "lease" } else { "hold" };
            let exceeded = exceeded(&hold.exceeded);
            format!(
                "{what} {} granted at {}: {}{exceeded}",
                hold.hold_id,
                hold.scope,
                amounts_text(&hold.amounts)
            )
        }
        Kind::HoldDenied(denied) => denial(denied),
        Kind::HoldExtended(hold) => {
            let by = if hold.added.is_empty() {
                String::new()
            } else {
                format!(" by {}", amounts_text(&hold.added))
            };
            let (until, exceeded) = (utc(hold.expires_unix_ms), exceeded(&hold.exceeded));
            format!("hold {} extended{by} until {until}{exceeded}", hold.hold_id)
        }
        Kind::HoldSettled(hold) => format!(
            "hold {} settled{}: {}{}",
            hold.hold_id,
            late(hold.late),
            amounts_text(&hold.used),
            uncharged(&hold.uncharged)
        ),
        Kind::LeaseDrawn(lease) => format!(
            "lease {} drawn{}: {}{}",
            lease.hold_id,
            late(lease.late),
            amounts_text(&lease.used),
            uncharged(&lease.uncharged)
        ),
        Kind::HoldVoided(hold) => format!("hold {} voided", hold.hold_id),
        Kind::HoldExpired(hold) => format!("hold {} expired", hold.hold_id),
        Kind::HoldRevoked(hold) => format!("hold {} revoked: {}", hold.hold_id, hold.reason),
        Kind::UsageReported(usage) => {
            let subject = match &*usage.subject {
                "" => String::new(),
                subject => format!(" by {subject}"),
            };
            let (used, uncharged) = (amounts_text(&usage.used), uncharged(&usage.uncharged));
            format!("usage at {} reported{subject}: {used}{uncharged}", usage.scope)
        }
        Kind::UsageCorrected(usage) => {
            let how = if usage.added { "added to" } else { "taken back from" };
            let of = match &*usage.reference {
                "" => String::new(),
                reference => format!(" of {reference}"),
            };
            let (amounts, uncharged) = (amounts_text(&usage.amounts), uncharged(&usage.uncharged));
            format!("usage corrected: {amounts} {how} {}{of}: {}{uncharged}", usage.scope, usage.reason)
        }
        Kind::RateLimitSet(limit) if limit.amount == 0 => {
            format!("rate limit of {} at {} removed", limit.meter, limit.scope)
        }
        Kind::RateLimitSet(limit) => format!(
            "rate limit of {} at {} set to {} per {} ms, {} at once",
            limit.meter, limit.scope, limit.amount, limit.period_ms, limit.burst
        ),
        Kind::ConcurrencyLimitSet(limit) if limit.max_open_holds == 0 => {
            format!("limit on open holds at {} removed", limit.scope)
        }
        Kind::ConcurrencyLimitSet(limit) => {
            format!("limit on open holds at {} set to {}", limit.scope, limit.max_open_holds)
        }
        Kind::PriceSet(price) if price.per == 0 => {
            format!("price of {} at {} removed", price.meter, price.scope)
        }
        Kind::PriceSet(price) => format!(
            "price of {} at {} set to {} millionths per {}",
            price.meter, price.scope, price.micros, price.per
        ),
        Kind::MeterDefined(meter) => {
            format!("meter {} of {} defined: {}", meter.meter, meter.tenant, meter.description)
        }
        Kind::ThresholdReached(reached) => threshold(reached),
        Kind::WebhookSet(webhook) if webhook.url.is_empty() => {
            format!("webhook of {} removed", webhook.tenant)
        }
        Kind::WebhookSet(webhook) => format!("webhook of {} set to {}", webhook.tenant, webhook.url),
        Kind::NotificationEnded(ended) => {
            let how = if ended.delivered { "delivered" } else { "given up" };
            format!(
                "notification {} {how} after {} attempts: {}",
                ended.notification, ended.attempts, ended.detail
            )
        }
        Kind::CommandRefused(refused) => {
            let reason = refused.reason().as_str_name().trim_start_matches("REFUSAL_REASON_").to_lowercase();
            let of = [("hold ", &refused.hold_id), ("field ", &refused.field)];
            let of: Vec<_> = of
                .iter()
                .filter(|(_, name)| !name.is_empty())
                .map(|(what, name)| format!(" {what}{name}"))
                .collect();
            format!("refused: {reason}{}", of.concat())
        }
    }
}

/// A window as an adjective.
fn window(window: Window) -> &'static str {
    match window {
        Window::Unspecified => "",
        Window::Hour => "hourly ",
        Window::Day => "daily ",
        Window::Week => "weekly ",
        Window::Month => "monthly ",
    }
}

fn late(late: bool) -> &'static str {
    if late { " (late)" } else { "" }
}

fn budget_set(set: &v1::BudgetSet) -> String {
    let enforcement = match set.enforcement() {
        Enforcement::Unspecified => "",
        Enforcement::Soft => "soft ",
        Enforcement::Shadow => "shadow ",
    };
    let overage = match set.overage() {
        Overage::Unspecified => String::new(),
        Overage::Cap => ", usage beyond it is not charged".to_owned(),
        Overage::Overdraft => format!(", overdraft {}", amounts_text(&set.overdraft)),
    };
    let zone = if set.time_zone.is_empty() { String::new() } else { format!(" in {}", set.time_zone) };
    let (of, amounts) = (window(set.window()), amounts_text(&set.granted));
    format!("{enforcement}{of}budget of {} set to {amounts}{zone}{overage}", set.scope)
}

fn grant_added(grant: &v1::GrantAdded) -> String {
    let recurring = if grant.recurring { " in each window" } else { "" };
    let until = match grant.expires_unix_ms {
        0 => String::new(),
        ms => format!(" until {}", utc(ms)),
    };
    format!(
        "grant {} of {}={}{recurring} added to the {}budget of {} from {}{until}",
        grant.grant_id,
        grant.meter,
        grant.amount,
        window(grant.window()),
        grant.scope,
        utc(grant.effective_unix_ms)
    )
}

fn denial(denied: &v1::HoldDenied) -> String {
    let v1::HoldDenied { scope, binding_scope, binding_meter, requested, available, .. } = denied;
    let of = window(denied.binding_window());
    let why = match denied.reason() {
        DenialReason::NoBudget => "no enclosing scope has a budget".to_owned(),
        DenialReason::InDebt => format!("the {of}budget of {binding_scope} is in debt for {binding_meter}"),
        DenialReason::RateLimited if denied.retry_after_ms == 0 => {
            format!(
                "{requested} of {binding_meter} is more than the rate limit at {binding_scope} takes at once"
            )
        }
        DenialReason::RateLimited => format!(
            "the rate limit of {binding_meter} at {binding_scope} is reached, {requested} requested, again in {} ms",
            denied.retry_after_ms
        ),
        DenialReason::Concurrency => format!("{binding_scope} has as many open holds as it may have"),
        DenialReason::Exhausted | DenialReason::Unspecified => format!(
            "{}{binding_scope} has {available} of {binding_meter} left, {requested} requested",
            if of.is_empty() { String::new() } else { format!("the {of}budget of ") }
        ),
    };
    format!("hold denied at {scope}: {why}")
}

fn exceeded(exceeded: &[v1::Exceeded]) -> String {
    let each = exceeded.iter().map(|of| {
        let kind = if of.enforcement() == Enforcement::Shadow { "shadow" } else { "soft" };
        format!(
            ", although the {kind} {}budget of {} has {} of {} left",
            window(of.window()),
            of.scope,
            of.available,
            of.meter
        )
    });
    each.collect()
}

fn uncharged(uncharged: &[v1::Uncharged]) -> String {
    let each = uncharged.iter().map(|of| {
        format!(
            ", {} of {} not charged to the {}budget of {}",
            of.amount,
            of.meter,
            window(of.window()),
            of.scope
        )
    });
    each.collect()
}

fn threshold(reached: &v1::ThresholdReached) -> String {
    let v1::ThresholdReached { scope, meter, spent, granted, forecast, .. } = reached;
    let at = match reached.threshold.as_ref().and_then(|threshold| threshold.at.as_ref()) {
        Some(At::SpentPercent(percent)) => format!("{percent}%"),
        Some(At::SpentAmount(amount)) => amount.to_string(),
        Some(At::ForecastPercent(percent)) => format!("a forecast of {percent}% ({forecast})"),
        None => "a threshold".to_owned(),
    };
    let of = window(reached.window());
    format!("the {of}budget of {scope} reached {at} of {meter}: {spent} of {granted} spent")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: Kind, expected: &str) {
        assert_eq!(event_text(&kind), expected);
    }

    fn amounts(meter: &str, amount: u64) -> Vec<v1::MeterAmount> {
        vec![v1::MeterAmount { meter: meter.into(), amount }]
    }

    #[test]
    fn a_denial_says_what_binds() {
        let denied = |reason: DenialReason, window: Window| {
            Kind::HoldDenied(v1::HoldDenied {
                scope: "acme/x".into(),
                reason: reason.into(),
                binding_scope: "acme".into(),
                binding_meter: "cpu_ms".into(),
                requested: 5,
                available: 2,
                binding_window: window.into(),
                retry_after_ms: 40,
            })
        };
        for (reason, window, expected) in [
            (DenialReason::Exhausted, Window::Unspecified, "acme has 2 of cpu_ms left, 5 requested"),
            (
                DenialReason::Exhausted,
                Window::Day,
                "the daily budget of acme has 2 of cpu_ms left, 5 requested",
            ),
            (DenialReason::InDebt, Window::Month, "the monthly budget of acme is in debt for cpu_ms"),
            (DenialReason::NoBudget, Window::Unspecified, "no enclosing scope has a budget"),
            (
                DenialReason::RateLimited,
                Window::Unspecified,
                "the rate limit of cpu_ms at acme is reached, 5 requested, again in 40 ms",
            ),
            (DenialReason::Concurrency, Window::Unspecified, "acme has as many open holds as it may have"),
        ] {
            check(denied(reason, window), &format!("hold denied at acme/x: {expected}"));
        }
    }

    #[test]
    fn budgets_and_grants_say_their_settings() {
        let set = v1::BudgetSet {
            scope: "acme".into(),
            granted: amounts("cpu_ms", 7),
            window: Window::Month.into(),
            time_zone: "Europe/Vienna".into(),
            enforcement: Enforcement::Soft.into(),
            overage: Overage::Overdraft.into(),
            overdraft: amounts("cpu_ms", 2),
            ..Default::default()
        };
        check(
            Kind::BudgetSet(set),
            "soft monthly budget of acme set to cpu_ms=7 in Europe/Vienna, overdraft cpu_ms=2",
        );
        let plain =
            v1::BudgetSet { scope: "acme".into(), granted: amounts("cpu_ms", 7), ..Default::default() };
        check(Kind::BudgetSet(plain), "budget of acme set to cpu_ms=7");
        let grant = v1::GrantAdded {
            grant_id: "g".into(),
            scope: "acme".into(),
            window: Window::Day.into(),
            meter: "cpu_ms".into(),
            amount: 3,
            recurring: true,
            ..Default::default()
        };
        check(
            Kind::GrantAdded(grant),
            "grant g of cpu_ms=3 in each window added to the daily budget of acme from 1970-01-01T00:00:00.000Z",
        );
        let ended = v1::GrantEnded { grant_id: "g".into(), revoked: false, remainder: 1 };
        check(Kind::GrantEnded(ended), "grant g expired with 1 left");
    }

    #[test]
    fn usage_says_what_was_not_charged_and_which_budgets_were_exceeded() {
        let uncharged = vec![v1::Uncharged {
            scope: "acme".into(),
            window: Window::Hour.into(),
            meter: "cpu_ms".into(),
            amount: 4,
        }];
        let drawn = v1::LeaseDrawn {
            hold_id: "l".into(),
            used: amounts("cpu_ms", 9),
            late: true,
            uncharged,
            ..Default::default()
        };
        check(
            Kind::LeaseDrawn(drawn),
            "lease l drawn (late): cpu_ms=9, 4 of cpu_ms not charged to the hourly budget of acme",
        );
        let exceeded = vec![v1::Exceeded {
            scope: "acme".into(),
            meter: "cpu_ms".into(),
            available: 1,
            enforcement: Enforcement::Shadow.into(),
            ..Default::default()
        }];
        let granted = v1::HoldGranted {
            hold_id: "h".into(),
            scope: "acme/x".into(),
            amounts: amounts("cpu_ms", 9),
            exceeded,
            ..Default::default()
        };
        check(
            Kind::HoldGranted(granted),
            "hold h granted at acme/x: cpu_ms=9, although the shadow budget of acme has 1 of cpu_ms left",
        );
        let corrected = v1::UsageCorrected {
            scope: "acme".into(),
            amounts: amounts("cpu_ms", 9),
            reason: "clock".into(),
            reference: "h".into(),
            ..Default::default()
        };
        check(Kind::UsageCorrected(corrected), "usage corrected: cpu_ms=9 taken back from acme of h: clock");
    }

    #[test]
    fn a_threshold_says_which_and_how_far() {
        let reached = |at: At| {
            Kind::ThresholdReached(v1::ThresholdReached {
                scope: "acme".into(),
                window: Window::Month.into(),
                meter: "cpu_ms".into(),
                threshold: Some(v1::Threshold { at: Some(at) }),
                spent: 8,
                granted: 10,
                forecast: 11,
                ..Default::default()
            })
        };
        check(
            reached(At::SpentPercent(80)),
            "the monthly budget of acme reached 80% of cpu_ms: 8 of 10 spent",
        );
        check(
            reached(At::ForecastPercent(110)),
            "the monthly budget of acme reached a forecast of 110% (11) of cpu_ms: 8 of 10 spent",
        );
    }

    #[test]
    fn what_is_set_to_nothing_is_removed() {
        let scope = || "acme".to_owned();
        check(
            Kind::RateLimitSet(v1::RateLimitSet {
                scope: scope(),
                meter: "cpu_ms".into(),
                ..Default::default()
            }),
            "rate limit of cpu_ms at acme removed",
        );
        check(
            Kind::ConcurrencyLimitSet(v1::ConcurrencyLimitSet { scope: scope(), max_open_holds: 0 }),
            "limit on open holds at acme removed",
        );
        check(
            Kind::PriceSet(v1::PriceSet { scope: scope(), meter: "cpu_ms".into(), micros: 1, per: 0 }),
            "price of cpu_ms at acme removed",
        );
        check(
            Kind::WebhookSet(v1::WebhookSet { tenant: scope(), url: String::new() }),
            "webhook of acme removed",
        );
        let refused = v1::CommandRefused {
            reason: v1::RefusalReason::UnknownMeter.into(),
            field: "amounts[0].meter".into(),
            ..Default::default()
        };
        check(Kind::CommandRefused(refused), "refused: unknown_meter field amounts[0].meter");
    }
}
