//! Between the domain and `exchequer.v1` messages.
//!
//! What was journaled is decoded strictly: every field in bounds, amounts above zero and in the order of the meters, no field set
//! where it has no meaning, only the run's own tenant's scopes. So `encode(decode(run))` is the run again, except for fields of a
//! later version, which are skipped; a journal keeps and forwards the bytes that it has. What callers send may order amounts
//! freely. Statuses, permissions and request digests are not here.

use exchequer_proto::v1;
use prost::Message;

use crate::{
    command::Idempotency,
    event::{Decision, DecisionRun, Event},
    fault::{Fault, Invalid},
    id::{IdempotencyKey, Subject, TenantId},
    policy::{Enforcement, Overage, Threshold, Window},
    scope::ScopePath,
};

mod asked;
mod decode;
mod encode;
mod view;

pub use asked::{
    added_amounts, allowance, budget_terms, concurrency_limit, correction, grant, least_amounts, meter,
    meter_definition, meters, price, rate_limit, requested_amounts, source, subject, used_amounts, webhook,
    window,
};
pub use encode::meter_amounts;
pub use view::{budget, hold, meter_totals, settings};

/// Bytes that an encoded run takes at most, so that it is an item of a block and fits into a log entry.
pub const MAX_RUN_BYTES: usize = 60 * 1024;

/// Encodes a run. A writer splits runs so that they keep to [`MAX_RUN_BYTES`].
pub fn encode_run(run: &DecisionRun) -> Vec<u8> {
    v1::DecisionRun::from(run).encode_to_vec()
}

/// Decodes a run.
pub fn decode_run(bytes: &[u8]) -> Result<DecisionRun, Invalid> {
    if bytes.len() > MAX_RUN_BYTES {
        return Err(Fault::TooLong { max: MAX_RUN_BYTES }.at("run"));
    }
    let run = v1::DecisionRun::decode(bytes).map_err(|_| Fault::Undecodable.at("run"))?;
    DecisionRun::try_from(&run)
}

impl From<&DecisionRun> for v1::DecisionRun {
    fn from(run: &DecisionRun) -> Self {
        Self { tenant: run.tenant.to_string(), decisions: run.decisions.iter().map(Into::into).collect() }
    }
}

impl TryFrom<&v1::DecisionRun> for DecisionRun {
    type Error = Invalid;

    fn try_from(run: &v1::DecisionRun) -> Result<Self, Invalid> {
        let tenant = TenantId::parse(&run.tenant).map_err(|fault| fault.at("tenant"))?;
        if run.decisions.is_empty() {
            return Err(Fault::Empty.at("decisions"));
        }
        let decisions = each("decisions", &run.decisions, |decision| {
            let decision = Decision::try_from(decision)?;
            for (at, event) in decision.events.iter().enumerate() {
                if let Some(field) = outside(event, &tenant) {
                    return Err(Fault::OutsideTenant.at(format!("events[{at}].{field}")));
                }
            }
            Ok(decision)
        })?;
        Ok(Self { tenant, decisions })
    }
}

impl From<&Decision> for v1::Decision {
    fn from(decision: &Decision) -> Self {
        let (idempotency_key, request_hash) = decision
            .idempotency
            .as_ref()
            .map(|idempotency| (idempotency.key.to_string(), idempotency.request_hash.to_vec()))
            .unwrap_or_default();
        Self {
            idempotency_key,
            request_hash: request_hash.into(),
            actor: decision.actor.to_string(),
            events: decision.events.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<&v1::Decision> for Decision {
    type Error = Invalid;

    fn try_from(decision: &v1::Decision) -> Result<Self, Invalid> {
        let hash = &decision.request_hash[..];
        let idempotency = if decision.idempotency_key.is_empty() {
            if !hash.is_empty() {
                return Err(Fault::Unexpected.at("request_hash"));
            }
            None
        } else {
            let key = IdempotencyKey::parse(&decision.idempotency_key)
                .map_err(|fault| fault.at("idempotency_key"))?;
            let request_hash =
                hash.try_into().map_err(|_| Fault::Length { expected: 32 }.at("request_hash"))?;
            Some(Idempotency { key, request_hash })
        };
        let actor = Subject::parse(&decision.actor).map_err(|fault| fault.at("actor"))?;
        if decision.events.is_empty() {
            return Err(Fault::Empty.at("events"));
        }
        let events = each("events", &decision.events, |event| Event::try_from(event))?;
        Ok(Self { idempotency, actor, events })
    }
}

/// The field by which an event is another tenant's, if it is. Scopes within lists enclose the event's own, or its hold's.
fn outside(event: &Event, tenant: &TenantId) -> Option<String> {
    let other = |scope: &ScopePath| scope.tenant() != tenant.as_str();
    let (field, scope) = match event {
        Event::BudgetSet { scope, .. } => ("budget_set.scope", scope),
        Event::BudgetRemoved { scope, .. } => ("budget_removed.scope", scope),
        Event::GrantAdded(terms) => ("grant_added.scope", &terms.scope),
        Event::WindowRolled { scope, .. } => ("window_rolled.scope", scope),
        Event::HoldGranted { scope, exceeded, .. } => {
            if let Some(at) = exceeded.iter().position(|row| !row.scope.encloses(scope)) {
                return Some(format!("hold_granted.exceeded[{at}].scope"));
            }
            ("hold_granted.scope", scope)
        }
        Event::HoldExtended { exceeded, .. } => {
            let at = exceeded.iter().position(|row| other(&row.scope))?;
            return Some(format!("hold_extended.exceeded[{at}].scope"));
        }
        Event::HoldDenied { scope, .. } => ("hold_denied.scope", scope),
        Event::HoldSettled { scope, .. } => ("hold_settled.scope", scope),
        Event::LeaseDrawn { scope, .. } => ("lease_drawn.scope", scope),
        Event::UsageReported { scope, .. } => ("usage_reported.scope", scope),
        Event::UsageCorrected { correction, .. } => ("usage_corrected.scope", &correction.scope),
        Event::RateLimitSet(limit) => ("rate_limit_set.scope", &limit.scope),
        Event::ConcurrencyLimitSet { scope, .. } => ("concurrency_limit_set.scope", scope),
        Event::PriceSet(price) => ("price_set.scope", &price.scope),
        Event::ThresholdReached(reached) => ("threshold_reached.scope", &reached.scope),
        Event::MeterDefined { tenant: named, .. } => {
            return (named != tenant).then(|| "meter_defined.tenant".to_owned());
        }
        Event::WebhookSet { tenant: named, .. } => {
            return (named != tenant).then(|| "webhook_set.tenant".to_owned());
        }
        Event::GrantBegun { .. }
        | Event::GrantEnded { .. }
        | Event::HoldVoided { .. }
        | Event::HoldExpired { .. }
        | Event::HoldRevoked { .. }
        | Event::NotificationEnded { .. }
        | Event::CommandRefused { .. } => return None,
    };
    other(scope).then(|| field.to_owned())
}

fn each<M, T>(
    field: &str,
    messages: &[M],
    decode: impl Fn(&M) -> Result<T, Invalid>,
) -> Result<Vec<T>, Invalid> {
    messages
        .iter()
        .enumerate()
        .map(|(at, message)| decode(message).map_err(|invalid| invalid.within(format_args!("{field}[{at}]"))))
        .collect()
}

fn window_number(window: Window) -> i32 {
    let window = match window {
        Window::AllTime => v1::Window::Unspecified,
        Window::Hour => v1::Window::Hour,
        Window::Day => v1::Window::Day,
        Window::Week => v1::Window::Week,
        Window::Month => v1::Window::Month,
    };
    window.into()
}

fn window_of(field: &str, number: i32) -> Result<Window, Invalid> {
    Ok(match v1::Window::try_from(number).map_err(|_| Fault::Missing.at(field))? {
        v1::Window::Unspecified => Window::AllTime,
        v1::Window::Hour => Window::Hour,
        v1::Window::Day => Window::Day,
        v1::Window::Week => Window::Week,
        v1::Window::Month => Window::Month,
    })
}

fn enforcement_number(enforcement: Enforcement) -> i32 {
    let enforcement = match enforcement {
        Enforcement::Hard => v1::Enforcement::Unspecified,
        Enforcement::Soft => v1::Enforcement::Soft,
        Enforcement::Shadow => v1::Enforcement::Shadow,
    };
    enforcement.into()
}

fn enforcement_of(field: &str, number: i32) -> Result<Enforcement, Invalid> {
    Ok(match v1::Enforcement::try_from(number).map_err(|_| Fault::Missing.at(field))? {
        v1::Enforcement::Unspecified => Enforcement::Hard,
        v1::Enforcement::Soft => Enforcement::Soft,
        v1::Enforcement::Shadow => Enforcement::Shadow,
    })
}

fn overage_number(overage: Overage) -> i32 {
    let overage = match overage {
        Overage::Debt => v1::Overage::Unspecified,
        Overage::Cap => v1::Overage::Cap,
        Overage::Overdraft => v1::Overage::Overdraft,
    };
    overage.into()
}

fn overage_of(field: &str, number: i32) -> Result<Overage, Invalid> {
    Ok(match v1::Overage::try_from(number).map_err(|_| Fault::Missing.at(field))? {
        v1::Overage::Unspecified => Overage::Debt,
        v1::Overage::Cap => Overage::Cap,
        v1::Overage::Overdraft => Overage::Overdraft,
    })
}

fn threshold_message(threshold: Threshold) -> v1::Threshold {
    use v1::threshold::At;
    let at = match threshold {
        Threshold::SpentPercent(percent) => At::SpentPercent(percent),
        Threshold::SpentAmount(amount) => At::SpentAmount(amount),
        Threshold::ForecastPercent(percent) => At::ForecastPercent(percent),
    };
    v1::Threshold { at: Some(at) }
}

fn threshold_of(threshold: &v1::Threshold) -> Result<Threshold, Invalid> {
    use v1::threshold::At;
    Ok(match threshold.at.ok_or_else(|| Fault::Missing.at("at"))? {
        At::SpentPercent(percent) => Threshold::SpentPercent(percent),
        At::SpentAmount(amount) => Threshold::SpentAmount(amount),
        At::ForecastPercent(percent) => Threshold::ForecastPercent(percent),
    })
}
