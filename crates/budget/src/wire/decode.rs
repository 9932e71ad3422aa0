//! Recorded messages as events, strictly.

use std::sync::Arc;

use exchequer_proto::v1::{self, budget_event::Kind};

use super::{
    asked::{self, Form, allowance_of, amounts, label, nonempty},
    each, enforcement_of, overage_of, threshold_of, window_of,
};
use crate::{
    event::{Denial, Event, Exceeded, MAX_EXCEEDED, MAX_UNCHARGED, Reached, Refusal, Uncharged},
    fault::{Fault, Invalid},
    id::{GrantId, HoldId, Label, Subject, TenantId, Zone},
    meter::{Amounts, MAX_AMOUNT, MAX_GRANTED, Meter},
    policy::{BudgetTerms, Correction, Enforcement, GrantTerms, MAX_GRANT, Source, Window},
    scope::ScopePath,
};

const RECORDED: Form = Form { min: 1, max: MAX_AMOUNT, ordered: true };
const GRANTED: Form = Form { min: 0, max: MAX_GRANTED, ordered: true };

impl TryFrom<&v1::BudgetEvent> for Event {
    type Error = Invalid;

    fn try_from(event: &v1::BudgetEvent) -> Result<Self, Invalid> {
        let kind = event.kind.as_ref().ok_or_else(|| Fault::Missing.at("kind"))?;
        decoded(kind).map_err(|invalid| invalid.within(name(kind)))
    }
}

/// The field that a kind is in.
fn name(kind: &Kind) -> &'static str {
    match kind {
        Kind::BudgetSet(_) => "budget_set",
        Kind::HoldGranted(_) => "hold_granted",
        Kind::HoldDenied(_) => "hold_denied",
        Kind::HoldExtended(_) => "hold_extended",
        Kind::HoldSettled(_) => "hold_settled",
        Kind::HoldVoided(_) => "hold_voided",
        Kind::HoldExpired(_) => "hold_expired",
        Kind::CommandRefused(_) => "command_refused",
        Kind::BudgetRemoved(_) => "budget_removed",
        Kind::GrantAdded(_) => "grant_added",
        Kind::GrantEnded(_) => "grant_ended",
        Kind::GrantBegun(_) => "grant_begun",
        Kind::WindowRolled(_) => "window_rolled",
        Kind::LeaseDrawn(_) => "lease_drawn",
        Kind::HoldRevoked(_) => "hold_revoked",
        Kind::UsageReported(_) => "usage_reported",
        Kind::UsageCorrected(_) => "usage_corrected",
        Kind::RateLimitSet(_) => "rate_limit_set",
        Kind::ConcurrencyLimitSet(_) => "concurrency_limit_set",
        Kind::PriceSet(_) => "price_set",
        Kind::MeterDefined(_) => "meter_defined",
        Kind::ThresholdReached(_) => "threshold_reached",
        Kind::WebhookSet(_) => "webhook_set",
        Kind::NotificationEnded(_) => "notification_ended",
    }
}

fn decoded(kind: &Kind) -> Result<Event, Invalid> {
    Ok(match kind {
        Kind::BudgetSet(set) => budget_set(set)?,
        Kind::BudgetRemoved(removed) => Event::BudgetRemoved {
            scope: scope("scope", &removed.scope)?,
            window: window_of("window", removed.window)?,
            meters: ordered_meters("meters", &removed.meters)?,
        },
        Kind::GrantAdded(grant) => Event::GrantAdded(grant_added(grant)?),
        Kind::GrantBegun(begun) => Event::GrantBegun { grant_id: grant_id(&begun.grant_id)? },
        Kind::GrantEnded(ended) => Event::GrantEnded {
            grant_id: grant_id(&ended.grant_id)?,
            revoked: ended.revoked,
            remainder: bounded("remainder", ended.remainder, 0, 2 * MAX_GRANT)?,
        },
        Kind::WindowRolled(rolled) => {
            let window = window_of("window", rolled.window)?;
            if window == Window::AllTime {
                return Err(Fault::Missing.at("window"));
            }
            later("end_unix_ms", rolled.start_unix_ms, rolled.end_unix_ms)?;
            Event::WindowRolled {
                scope: scope("scope", &rolled.scope)?,
                window,
                start_ms: rolled.start_unix_ms,
                end_ms: rolled.end_unix_ms,
            }
        }
        Kind::HoldGranted(hold) => Event::HoldGranted {
            hold_id: hold_id(&hold.hold_id)?,
            scope: scope("scope", &hold.scope)?,
            holder: Subject::parse(&hold.holder).map_err(|fault| fault.at("holder"))?,
            amounts: nonempty("amounts", recorded("amounts", &hold.amounts)?)?,
            expires_ms: hold.expires_unix_ms,
            lease: hold.lease,
            exceeded: exceeded(&hold.exceeded)?,
        },
        Kind::HoldDenied(denied) => {
            Event::HoldDenied { scope: scope("scope", &denied.scope)?, denial: denial(denied)? }
        }
        Kind::HoldExtended(extended) => Event::HoldExtended {
            hold_id: hold_id(&extended.hold_id)?,
            added: recorded("added", &extended.added)?,
            expires_ms: extended.expires_unix_ms,
            exceeded: exceeded(&extended.exceeded)?,
        },
        Kind::HoldSettled(settled) => {
            let scope = scope("scope", &settled.scope)?;
            let used = recorded("used", &settled.used)?;
            Event::HoldSettled {
                hold_id: hold_id(&settled.hold_id)?,
                late: settled.late,
                source: source(settled.source.as_ref())?,
                uncharged: uncharged(&settled.uncharged, &scope, &used)?,
                scope,
                used,
            }
        }
        Kind::LeaseDrawn(drawn) => {
            let scope = scope("scope", &drawn.scope)?;
            let used = nonempty("used", recorded("used", &drawn.used)?)?;
            Event::LeaseDrawn {
                hold_id: hold_id(&drawn.hold_id)?,
                late: drawn.late,
                source: source(drawn.source.as_ref())?,
                uncharged: uncharged(&drawn.uncharged, &scope, &used)?,
                scope,
                used,
            }
        }
        Kind::HoldVoided(voided) => Event::HoldVoided { hold_id: hold_id(&voided.hold_id)? },
        Kind::HoldExpired(expired) => Event::HoldExpired { hold_id: hold_id(&expired.hold_id)? },
        Kind::HoldRevoked(revoked) => Event::HoldRevoked {
            hold_id: hold_id(&revoked.hold_id)?,
            reason: Label::parse(&revoked.reason).map_err(|fault| fault.at("reason"))?,
        },
        Kind::UsageReported(reported) => {
            let scope = scope("scope", &reported.scope)?;
            let used = nonempty("used", recorded("used", &reported.used)?)?;
            Event::UsageReported {
                source: source(reported.source.as_ref())?,
                uncharged: uncharged(&reported.uncharged, &scope, &used)?,
                subject: label("subject", &reported.subject)?,
                scope,
                used,
            }
        }
        Kind::UsageCorrected(corrected) => usage_corrected(corrected)?,
        Kind::RateLimitSet(limit) => Event::RateLimitSet(asked::rate_limit(limit)?),
        Kind::ConcurrencyLimitSet(limit) => {
            let (scope, max_open_holds) = asked::concurrency_limit(limit)?;
            Event::ConcurrencyLimitSet { scope, max_open_holds }
        }
        Kind::PriceSet(price) => Event::PriceSet(asked::price(price)?),
        Kind::MeterDefined(defined) => {
            let (meter, description) = asked::meter_definition(defined)?;
            Event::MeterDefined { tenant: tenant(&defined.tenant)?, meter, description }
        }
        Kind::WebhookSet(set) => {
            Event::WebhookSet { tenant: tenant(&set.tenant)?, url: asked::webhook(&set.url)? }
        }
        Kind::ThresholdReached(reached) => Event::ThresholdReached(Arc::new(threshold_reached(reached)?)),
        Kind::NotificationEnded(ended) => Event::NotificationEnded {
            notification: bounded("notification", ended.notification, 1, u64::MAX)?,
            delivered: ended.delivered,
            attempts: ended.attempts,
            detail: label("detail", &ended.detail)?,
        },
        Kind::CommandRefused(refused) => command_refused(refused)?,
    })
}

fn budget_set(set: &v1::BudgetSet) -> Result<Event, Invalid> {
    let zone = if set.time_zone.is_empty() {
        None
    } else {
        Some(Zone::parse(&set.time_zone).map_err(|fault| fault.at("time_zone"))?)
    };
    let terms = BudgetTerms {
        window: window_of("window", set.window)?,
        zone,
        granted: allowance_of("granted", &set.granted, GRANTED)?,
        overdraft: allowance_of("overdraft", &set.overdraft, GRANTED)?,
        rollover_cap: allowance_of("rollover_cap", &set.rollover_cap, GRANTED)?,
        enforcement: enforcement_of("enforcement", set.enforcement)?,
        overage: overage_of("overage", set.overage)?,
        carry_debt: set.carry_debt,
        thresholds: each("thresholds", &set.thresholds, threshold_of)?.into(),
    };
    terms.check()?;
    let (start_ms, end_ms) = (set.window_start_unix_ms, set.window_end_unix_ms);
    if terms.window == Window::AllTime {
        absent("window_start_unix_ms", start_ms == 0)?;
        absent("window_end_unix_ms", end_ms == 0)?;
    } else {
        later("window_end_unix_ms", start_ms, end_ms)?;
    }
    Ok(Event::BudgetSet { scope: scope("scope", &set.scope)?, terms: Arc::new(terms), start_ms, end_ms })
}

fn grant_added(grant: &v1::GrantAdded) -> Result<Arc<GrantTerms>, Invalid> {
    asked::grant(grant).map(Arc::new)
}

fn usage_corrected(corrected: &v1::UsageCorrected) -> Result<Event, Invalid> {
    let correction = Correction {
        scope: scope("scope", &corrected.scope)?,
        amounts: nonempty("amounts", recorded("amounts", &corrected.amounts)?)?,
        added: corrected.added,
        reason: Label::parse(&corrected.reason).map_err(|fault| fault.at("reason"))?,
        reference: label("reference", &corrected.reference)?,
        source: source(corrected.source.as_ref())?,
    };
    let uncharged = uncharged(&corrected.uncharged, &correction.scope, &correction.amounts)?;
    absent("uncharged", correction.added || uncharged.is_empty())?;
    Ok(Event::UsageCorrected { correction: Arc::new(correction), uncharged })
}

fn threshold_reached(reached: &v1::ThresholdReached) -> Result<Reached, Invalid> {
    let threshold = reached.threshold.as_ref().ok_or_else(|| Fault::Missing.at("threshold"))?;
    let threshold = threshold_of(threshold).map_err(|invalid| invalid.within("threshold"))?;
    let window = window_of("window", reached.window)?;
    absent("window_start_unix_ms", window != Window::AllTime || reached.window_start_unix_ms == 0)?;
    Ok(Reached {
        scope: scope("scope", &reached.scope)?,
        window,
        meter: asked::meter("meter", &reached.meter)?,
        window_start_ms: reached.window_start_unix_ms,
        threshold,
        spent: reached.spent,
        granted: reached.granted,
        forecast: reached.forecast,
        notification: reached.notification,
    })
}

fn command_refused(refused: &v1::CommandRefused) -> Result<Event, Invalid> {
    let refusal = match refused.reason() {
        v1::RefusalReason::Unspecified => return Err(Fault::Missing.at("reason")),
        v1::RefusalReason::UnknownHold => Refusal::UnknownHold,
        v1::RefusalReason::HoldClosed => Refusal::HoldClosed,
        v1::RefusalReason::NotHolder => Refusal::NotHolder,
        v1::RefusalReason::HoldRevoked => Refusal::HoldRevoked,
        v1::RefusalReason::NotALease => Refusal::NotALease,
        v1::RefusalReason::UnknownMeter => Refusal::UnknownMeter,
        v1::RefusalReason::UnknownBudget => Refusal::UnknownBudget,
        v1::RefusalReason::UnknownGrant => Refusal::UnknownGrant,
        v1::RefusalReason::GrantExists => Refusal::GrantExists,
        v1::RefusalReason::BelowZero => Refusal::BelowZero,
        v1::RefusalReason::TooMany => Refusal::TooMany,
        v1::RefusalReason::Time => Refusal::Time,
        v1::RefusalReason::UnknownNotification => Refusal::UnknownNotification,
    };
    let is_of_hold = matches!(
        refusal,
        Refusal::UnknownHold
            | Refusal::HoldClosed
            | Refusal::NotHolder
            | Refusal::HoldRevoked
            | Refusal::NotALease
    );
    let hold_id = if is_of_hold {
        Some(hold_id(&refused.hold_id)?)
    } else {
        absent("hold_id", refused.hold_id.is_empty())?;
        None
    };
    absent("field", hold_id.is_none() || refused.field.is_empty())?;
    Ok(Event::CommandRefused { refusal, hold_id, field: label("field", &refused.field)? })
}

fn denial(denied: &v1::HoldDenied) -> Result<Denial, Invalid> {
    let reason = denied.reason();
    let binds = !matches!(reason, v1::DenialReason::NoBudget);
    let (requested, available) = (denied.requested, denied.available);
    if reason == v1::DenialReason::Unspecified {
        return Err(Fault::Missing.at("reason"));
    }
    absent("retry_after_ms", denied.retry_after_ms == 0 || reason == v1::DenialReason::RateLimited)?;
    if !binds {
        absent("binding_scope", denied.binding_scope.is_empty())?;
        absent("binding_meter", denied.binding_meter.is_empty())?;
        absent("requested", requested == 0)?;
        absent("available", available == 0)?;
        absent("binding_window", denied.binding_window == 0)?;
        return Ok(Denial::NoBudget);
    }
    let scope = enclosing("binding_scope", &denied.binding_scope, &scope("scope", &denied.scope)?)?;
    let window = window_of("binding_window", denied.binding_window)?;
    if matches!(reason, v1::DenialReason::RateLimited | v1::DenialReason::Concurrency) {
        absent("binding_window", window == Window::AllTime)?;
    }
    if reason == v1::DenialReason::Concurrency {
        absent("binding_meter", denied.binding_meter.is_empty())?;
        absent("available", available == 0)?;
        bounded("requested", requested, 1, 1)?;
        return Ok(Denial::Concurrency { scope });
    }
    let meter = asked::meter("binding_meter", &denied.binding_meter)?;
    bounded("requested", requested, 1, u64::MAX)?;
    if reason == v1::DenialReason::InDebt {
        absent("available", available == 0)?;
        return Ok(Denial::InDebt { scope, window, meter, requested });
    }
    bounded("available", available, 0, requested - 1)?;
    Ok(if reason == v1::DenialReason::RateLimited {
        let retry_after_ms = denied.retry_after_ms;
        Denial::RateLimited { scope, meter, requested, available, retry_after_ms }
    } else {
        Denial::Exhausted { scope, window, meter, requested, available }
    })
}

fn exceeded(rows: &[v1::Exceeded]) -> Result<Vec<Exceeded>, Invalid> {
    if rows.len() > MAX_EXCEEDED {
        return Err(Fault::TooLong { max: MAX_EXCEEDED }.at("exceeded"));
    }
    each("exceeded", rows, |row| {
        let enforcement = enforcement_of("enforcement", row.enforcement)?;
        if enforcement == Enforcement::Hard {
            return Err(Fault::Missing.at("enforcement"));
        }
        bounded("requested", row.requested, 1, MAX_AMOUNT)?;
        Ok(Exceeded {
            scope: scope("scope", &row.scope)?,
            window: window_of("window", row.window)?,
            meter: asked::meter("meter", &row.meter)?,
            requested: row.requested,
            available: bounded("available", row.available, 0, row.requested - 1)?,
            enforcement,
        })
    })
}

fn uncharged(rows: &[v1::Uncharged], within: &ScopePath, used: &Amounts) -> Result<Vec<Uncharged>, Invalid> {
    if rows.len() > MAX_UNCHARGED {
        return Err(Fault::TooLong { max: MAX_UNCHARGED }.at("uncharged"));
    }
    each("uncharged", rows, |row| {
        let meter = asked::meter("meter", &row.meter)?;
        Ok(Uncharged {
            scope: enclosing("scope", &row.scope, within)?,
            window: window_of("window", row.window)?,
            meter,
            amount: bounded("amount", row.amount, 1, used.get(meter))?,
        })
    })
}

/// Nothing said and an empty message are the same; only the first is ever recorded.
fn source(source: Option<&v1::UsageSource>) -> Result<Option<Arc<Source>>, Invalid> {
    let decoded = asked::source("source", source)?;
    if source.is_some() && decoded.is_none() {
        return Err(Fault::Empty.at("source"));
    }
    Ok(decoded)
}

fn ordered_meters(field: &str, names: &[String]) -> Result<Vec<Meter>, Invalid> {
    let meters = asked::meters(field, names)?;
    if meters.is_empty() {
        return Err(Fault::Empty.at(field));
    }
    match meters.windows(2).position(|pair| pair[0] > pair[1]) {
        Some(at) => Err(Fault::OutOfOrder.at(format!("{field}[{}]", at + 1))),
        None => Ok(meters),
    }
}

fn recorded(field: &str, given: &[v1::MeterAmount]) -> Result<Amounts, Invalid> {
    amounts(field, given, RECORDED)
}

fn absent(field: &str, is_absent: bool) -> Result<(), Invalid> {
    if is_absent { Ok(()) } else { Err(Fault::Unexpected.at(field)) }
}

fn bounded(field: &str, value: u64, min: u64, max: u64) -> Result<u64, Invalid> {
    if (min..=max).contains(&value) { Ok(value) } else { Err(Fault::OutOfRange { min, max }.at(field)) }
}

fn later(field: &str, start_ms: u64, end_ms: u64) -> Result<(), Invalid> {
    if start_ms < end_ms { Ok(()) } else { Err(Fault::NotLater.at(field)) }
}

fn scope(field: &str, text: &str) -> Result<ScopePath, Invalid> {
    ScopePath::parse(text).map_err(|fault| fault.at(field))
}

fn enclosing(field: &str, text: &str, inner: &ScopePath) -> Result<ScopePath, Invalid> {
    let outer = scope(field, text)?;
    if outer.encloses(inner) { Ok(outer) } else { Err(Fault::OutsideTenant.at(field)) }
}

fn hold_id(text: &str) -> Result<HoldId, Invalid> {
    HoldId::parse(text).map_err(|fault| fault.at("hold_id"))
}

fn grant_id(text: &str) -> Result<GrantId, Invalid> {
    GrantId::parse(text).map_err(|fault| fault.at("grant_id"))
}

fn tenant(text: &str) -> Result<TenantId, Invalid> {
    TenantId::parse(text).map_err(|fault| fault.at("tenant"))
}
