//! Names for the kinds of things that histories have to meet, or the comparison would say little.

use exchequer_budget::{Denial, Enforcement, Event, Refusal, Threshold};

/// All of them but the limits that take thousands of settings to reach.
pub(crate) const ALL: &[&str] = &[
    "hold id taken",
    "idempotency conflict",
    "repeated from the past",
    "repeated",
    "new",
    "budget set",
    "budget removed",
    "grant added",
    "grant begun",
    "grant expired",
    "grant revoked",
    "window rolled",
    "hold granted",
    "lease granted",
    "soft exceeded",
    "shadow exceeded",
    "hold extended",
    "exhausted",
    "in debt",
    "no budget",
    "rate limited",
    "rate limited for ever",
    "concurrency",
    "settled",
    "settled late",
    "drawn",
    "drawn late",
    "uncharged",
    "voided",
    "expired",
    "revoked",
    "reported",
    "added",
    "taken back",
    "rate limit set",
    "concurrency limit set",
    "price set",
    "meter defined",
    "webhook set",
    "spent percent reached",
    "spent amount reached",
    "forecast reached",
    "notified",
    "notification ended",
    "unknown hold",
    "hold closed",
    "not holder",
    "hold revoked",
    "not a lease",
    "unknown meter",
    "unknown budget",
    "unknown grant",
    "grant exists",
    "below zero",
    "time",
    "unknown notification",
];

pub(crate) fn of(event: &Event) -> Vec<&'static str> {
    let mut kinds = Vec::new();
    if let Event::HoldSettled { uncharged, .. }
    | Event::LeaseDrawn { uncharged, .. }
    | Event::UsageReported { uncharged, .. }
    | Event::UsageCorrected { uncharged, .. } = event
        && !uncharged.is_empty()
    {
        kinds.push("uncharged");
    }
    if let Event::HoldGranted { exceeded, .. } | Event::HoldExtended { exceeded, .. } = event {
        let shadow =
            |enforcement| if enforcement == Enforcement::Soft { "soft exceeded" } else { "shadow exceeded" };
        kinds.extend(exceeded.iter().map(|row| shadow(row.enforcement)));
    }
    kinds.push(match event {
        Event::BudgetSet { .. } => "budget set",
        Event::BudgetRemoved { .. } => "budget removed",
        Event::GrantAdded(_) => "grant added",
        Event::GrantBegun { .. } => "grant begun",
        Event::GrantEnded { revoked: false, .. } => "grant expired",
        Event::GrantEnded { revoked: true, .. } => "grant revoked",
        Event::WindowRolled { .. } => "window rolled",
        Event::HoldGranted { lease: false, .. } => "hold granted",
        Event::HoldGranted { lease: true, .. } => "lease granted",
        Event::HoldDenied { denial, .. } => denied(denial),
        Event::HoldExtended { .. } => "hold extended",
        Event::HoldSettled { late: false, .. } => "settled",
        Event::HoldSettled { late: true, .. } => "settled late",
        Event::LeaseDrawn { late: false, .. } => "drawn",
        Event::LeaseDrawn { late: true, .. } => "drawn late",
        Event::HoldVoided { .. } => "voided",
        Event::HoldExpired { .. } => "expired",
        Event::HoldRevoked { .. } => "revoked",
        Event::UsageReported { .. } => "reported",
        Event::UsageCorrected { correction, .. } if correction.added => "added",
        Event::UsageCorrected { .. } => "taken back",
        Event::RateLimitSet(_) => "rate limit set",
        Event::ConcurrencyLimitSet { .. } => "concurrency limit set",
        Event::PriceSet(_) => "price set",
        Event::MeterDefined { .. } => "meter defined",
        Event::WebhookSet { .. } => "webhook set",
        Event::ThresholdReached(reached) if reached.notification > 0 => "notified",
        Event::ThresholdReached(reached) => match reached.threshold {
            Threshold::SpentPercent(_) => "spent percent reached",
            Threshold::SpentAmount(_) => "spent amount reached",
            Threshold::ForecastPercent(_) => "forecast reached",
        },
        Event::NotificationEnded { .. } => "notification ended",
        Event::CommandRefused { refusal, .. } => refused(*refusal),
    });
    kinds
}

fn denied(denial: &Denial) -> &'static str {
    match denial {
        Denial::Exhausted { .. } => "exhausted",
        Denial::InDebt { .. } => "in debt",
        Denial::NoBudget => "no budget",
        Denial::RateLimited { retry_after_ms: 0, .. } => "rate limited for ever",
        Denial::RateLimited { .. } => "rate limited",
        Denial::Concurrency { .. } => "concurrency",
    }
}

fn refused(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::UnknownHold => "unknown hold",
        Refusal::HoldClosed => "hold closed",
        Refusal::NotHolder => "not holder",
        Refusal::HoldRevoked => "hold revoked",
        Refusal::NotALease => "not a lease",
        Refusal::UnknownMeter => "unknown meter",
        Refusal::UnknownBudget => "unknown budget",
        Refusal::UnknownGrant => "unknown grant",
        Refusal::GrantExists => "grant exists",
        Refusal::BelowZero => "below zero",
        Refusal::TooMany => "too many",
        Refusal::Time => "time",
        Refusal::UnknownNotification => "unknown notification",
    }
}
