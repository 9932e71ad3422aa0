//! Events as messages.

use std::fmt::Display;

use exchequer_proto::v1::{self, budget_event::Kind};

use super::{enforcement_number, overage_number, threshold_message, window_number};
use crate::{
    event::{Denial, Event, Exceeded, Reached, Refusal, Uncharged},
    meter::Meter,
    policy::{BudgetTerms, GrantTerms, Price, RateLimit, Source},
    scope::ScopePath,
};

impl From<&Event> for v1::BudgetEvent {
    fn from(event: &Event) -> Self {
        Self { kind: Some(kind(event)) }
    }
}

fn kind(event: &Event) -> Kind {
    match event {
        Event::BudgetSet { scope, terms, start_ms, end_ms } => {
            Kind::BudgetSet(budget_set(scope, terms, *start_ms, *end_ms))
        }
        Event::BudgetRemoved { scope, window, meters } => Kind::BudgetRemoved(v1::BudgetRemoved {
            scope: scope.to_string(),
            window: window_number(*window),
            meters: meters.iter().map(Meter::to_string).collect(),
        }),
        Event::GrantAdded(terms) => Kind::GrantAdded(v1::GrantAdded::from(&**terms)),
        Event::GrantBegun { grant_id } => Kind::GrantBegun(v1::GrantBegun { grant_id: grant_id.to_string() }),
        Event::GrantEnded { grant_id, revoked, remainder } => Kind::GrantEnded(v1::GrantEnded {
            grant_id: grant_id.to_string(),
            revoked: *revoked,
            remainder: *remainder,
        }),
        Event::WindowRolled { scope, window, start_ms, end_ms } => Kind::WindowRolled(v1::WindowRolled {
            scope: scope.to_string(),
            window: window_number(*window),
            start_unix_ms: *start_ms,
            end_unix_ms: *end_ms,
        }),
        Event::HoldGranted { hold_id, scope, holder, amounts, expires_ms, lease, exceeded } => {
            Kind::HoldGranted(v1::HoldGranted {
                hold_id: hold_id.to_string(),
                scope: scope.to_string(),
                holder: holder.to_string(),
                amounts: meter_amounts(amounts.iter()),
                expires_unix_ms: *expires_ms,
                lease: *lease,
                exceeded: exceeded.iter().map(Into::into).collect(),
            })
        }
        Event::HoldDenied { scope, denial } => Kind::HoldDenied(denied(scope, denial)),
        Event::HoldExtended { hold_id, added, expires_ms, exceeded } => {
            Kind::HoldExtended(v1::HoldExtended {
                hold_id: hold_id.to_string(),
                added: meter_amounts(added.iter()),
                expires_unix_ms: *expires_ms,
                exceeded: exceeded.iter().map(Into::into).collect(),
            })
        }
        Event::HoldSettled { hold_id, scope, used, late, source, uncharged } => {
            Kind::HoldSettled(v1::HoldSettled {
                hold_id: hold_id.to_string(),
                used: meter_amounts(used.iter()),
                late: *late,
                source: source.as_deref().map(Into::into),
                uncharged: uncharged.iter().map(Into::into).collect(),
                scope: scope.to_string(),
            })
        }
        Event::LeaseDrawn { hold_id, scope, used, late, source, uncharged } => {
            Kind::LeaseDrawn(v1::LeaseDrawn {
                hold_id: hold_id.to_string(),
                used: meter_amounts(used.iter()),
                late: *late,
                source: source.as_deref().map(Into::into),
                uncharged: uncharged.iter().map(Into::into).collect(),
                scope: scope.to_string(),
            })
        }
        Event::HoldVoided { hold_id } => Kind::HoldVoided(v1::HoldVoided { hold_id: hold_id.to_string() }),
        Event::HoldExpired { hold_id } => Kind::HoldExpired(v1::HoldExpired { hold_id: hold_id.to_string() }),
        Event::HoldRevoked { hold_id, reason } => {
            Kind::HoldRevoked(v1::HoldRevoked { hold_id: hold_id.to_string(), reason: reason.to_string() })
        }
        Event::UsageReported { scope, used, source, uncharged, subject } => {
            Kind::UsageReported(v1::UsageReported {
                scope: scope.to_string(),
                used: meter_amounts(used.iter()),
                source: source.as_deref().map(Into::into),
                uncharged: uncharged.iter().map(Into::into).collect(),
                subject: text(subject.as_ref()),
            })
        }
        Event::UsageCorrected { correction, uncharged } => Kind::UsageCorrected(v1::UsageCorrected {
            scope: correction.scope.to_string(),
            amounts: meter_amounts(correction.amounts.iter()),
            added: correction.added,
            reason: correction.reason.to_string(),
            reference: text(correction.reference.as_ref()),
            source: correction.source.as_deref().map(Into::into),
            uncharged: uncharged.iter().map(Into::into).collect(),
        }),
        Event::RateLimitSet(limit) => Kind::RateLimitSet(limit.into()),
        Event::ConcurrencyLimitSet { scope, max_open_holds } => {
            Kind::ConcurrencyLimitSet(v1::ConcurrencyLimitSet {
                scope: scope.to_string(),
                max_open_holds: *max_open_holds,
            })
        }
        Event::PriceSet(price) => Kind::PriceSet(price.into()),
        Event::MeterDefined { tenant, meter, description } => Kind::MeterDefined(v1::MeterDefined {
            tenant: tenant.to_string(),
            meter: meter.to_string(),
            description: text(description.as_ref()),
        }),
        Event::WebhookSet { tenant, url } => {
            Kind::WebhookSet(v1::WebhookSet { tenant: tenant.to_string(), url: text(url.as_ref()) })
        }
        Event::ThresholdReached(reached) => Kind::ThresholdReached((&**reached).into()),
        Event::NotificationEnded { notification, delivered, attempts, detail } => {
            Kind::NotificationEnded(v1::NotificationEnded {
                notification: *notification,
                delivered: *delivered,
                attempts: *attempts,
                detail: text(detail.as_ref()),
            })
        }
        Event::CommandRefused { refusal, hold_id, field } => Kind::CommandRefused(v1::CommandRefused {
            reason: refusal_reason(*refusal).into(),
            hold_id: text(hold_id.as_ref()),
            field: text(field.as_ref()),
        }),
    }
}

fn text(value: Option<&impl Display>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

/// Amounts as a message has them.
pub fn meter_amounts(amounts: impl IntoIterator<Item = (Meter, u64)>) -> Vec<v1::MeterAmount> {
    amounts.into_iter().map(|(meter, amount)| v1::MeterAmount { meter: meter.to_string(), amount }).collect()
}

fn budget_set(scope: &ScopePath, terms: &BudgetTerms, start_ms: u64, end_ms: u64) -> v1::BudgetSet {
    v1::BudgetSet {
        scope: scope.to_string(),
        granted: meter_amounts(terms.granted.iter()),
        window: window_number(terms.window),
        time_zone: text(terms.zone.as_ref()),
        enforcement: enforcement_number(terms.enforcement),
        overage: overage_number(terms.overage),
        overdraft: meter_amounts(terms.overdraft.iter()),
        rollover_cap: meter_amounts(terms.rollover_cap.iter()),
        carry_debt: terms.carry_debt,
        thresholds: terms.thresholds.iter().map(|&threshold| threshold_message(threshold)).collect(),
        window_start_unix_ms: start_ms,
        window_end_unix_ms: end_ms,
    }
}

impl From<&GrantTerms> for v1::GrantAdded {
    fn from(terms: &GrantTerms) -> Self {
        Self {
            grant_id: terms.grant_id.to_string(),
            scope: terms.scope.to_string(),
            window: window_number(terms.window),
            meter: terms.meter.to_string(),
            amount: terms.amount,
            priority: terms.priority,
            effective_unix_ms: terms.effective_ms,
            expires_unix_ms: terms.expires_ms,
            recurring: terms.recurring,
            rollover_cap: terms.rollover_cap,
        }
    }
}

impl From<&RateLimit> for v1::RateLimitSet {
    fn from(limit: &RateLimit) -> Self {
        Self {
            scope: limit.scope.to_string(),
            meter: limit.meter.to_string(),
            amount: limit.amount,
            period_ms: limit.period_ms,
            burst: limit.burst,
        }
    }
}

impl From<&Price> for v1::PriceSet {
    fn from(price: &Price) -> Self {
        Self {
            scope: price.scope.to_string(),
            meter: price.meter.to_string(),
            micros: price.micros,
            per: price.per,
        }
    }
}

impl From<&Source> for v1::UsageSource {
    fn from(source: &Source) -> Self {
        Self {
            agent_id: text(source.agent_id.as_ref()),
            skill: text(source.skill.as_ref()),
            execution_id: text(source.execution_id.as_ref()),
            used_unix_ms: source.used_ms,
        }
    }
}

impl From<&Exceeded> for v1::Exceeded {
    fn from(row: &Exceeded) -> Self {
        Self {
            scope: row.scope.to_string(),
            window: window_number(row.window),
            meter: row.meter.to_string(),
            requested: row.requested,
            available: row.available,
            enforcement: enforcement_number(row.enforcement),
        }
    }
}

impl From<&Uncharged> for v1::Uncharged {
    fn from(row: &Uncharged) -> Self {
        Self {
            scope: row.scope.to_string(),
            window: window_number(row.window),
            meter: row.meter.to_string(),
            amount: row.amount,
        }
    }
}

impl From<&Reached> for v1::ThresholdReached {
    fn from(reached: &Reached) -> Self {
        Self {
            scope: reached.scope.to_string(),
            window: window_number(reached.window),
            meter: reached.meter.to_string(),
            window_start_unix_ms: reached.window_start_ms,
            threshold: Some(threshold_message(reached.threshold)),
            spent: reached.spent,
            granted: reached.granted,
            forecast: reached.forecast,
            notification: reached.notification,
        }
    }
}

fn refusal_reason(refusal: Refusal) -> v1::RefusalReason {
    match refusal {
        Refusal::UnknownHold => v1::RefusalReason::UnknownHold,
        Refusal::HoldClosed => v1::RefusalReason::HoldClosed,
        Refusal::NotHolder => v1::RefusalReason::NotHolder,
        Refusal::HoldRevoked => v1::RefusalReason::HoldRevoked,
        Refusal::NotALease => v1::RefusalReason::NotALease,
        Refusal::UnknownMeter => v1::RefusalReason::UnknownMeter,
        Refusal::UnknownBudget => v1::RefusalReason::UnknownBudget,
        Refusal::UnknownGrant => v1::RefusalReason::UnknownGrant,
        Refusal::GrantExists => v1::RefusalReason::GrantExists,
        Refusal::BelowZero => v1::RefusalReason::BelowZero,
        Refusal::TooMany => v1::RefusalReason::TooMany,
        Refusal::Time => v1::RefusalReason::Time,
        Refusal::UnknownNotification => v1::RefusalReason::UnknownNotification,
    }
}

fn denied(asked: &ScopePath, denial: &Denial) -> v1::HoldDenied {
    let mut message = v1::HoldDenied { scope: asked.to_string(), ..Default::default() };
    let reason = match denial {
        Denial::Exhausted { scope, window, meter, requested, available } => {
            message.binding_scope = scope.to_string();
            message.binding_window = window_number(*window);
            message.binding_meter = meter.to_string();
            (message.requested, message.available) = (*requested, *available);
            v1::DenialReason::Exhausted
        }
        Denial::InDebt { scope, window, meter, requested } => {
            message.binding_scope = scope.to_string();
            message.binding_window = window_number(*window);
            message.binding_meter = meter.to_string();
            message.requested = *requested;
            v1::DenialReason::InDebt
        }
        Denial::NoBudget => v1::DenialReason::NoBudget,
        Denial::RateLimited { scope, meter, requested, available, retry_after_ms } => {
            message.binding_scope = scope.to_string();
            message.binding_meter = meter.to_string();
            (message.requested, message.available) = (*requested, *available);
            message.retry_after_ms = *retry_after_ms;
            v1::DenialReason::RateLimited
        }
        Denial::Concurrency { scope } => {
            message.binding_scope = scope.to_string();
            message.requested = 1;
            v1::DenialReason::Concurrency
        }
    };
    message.reason = reason.into();
    message
}
