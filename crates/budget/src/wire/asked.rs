//! What callers send, field by field: checked, and every fault named by its path within the request.
//!
//! Left out: scopes, ids and keys, which parse by themselves, and what only a state knows (whether a meter is defined).

use std::sync::Arc;

use exchequer_proto::v1;

use super::{enforcement_of, overage_of, threshold_of, window_of};
use crate::{
    fault::{Fault, Invalid},
    id::{GrantId, Label, WebhookUrl, Zone},
    meter::{Allowance, Amounts, MAX_AMOUNT, MAX_GRANTED, MAX_METERS, Meter},
    policy::{BudgetTerms, Correction, GrantTerms, Price, RateLimit, Source, Window},
    scope::ScopePath,
};

/// How amounts are to be given: from `min` on, and in order if they were recorded.
#[derive(Clone, Copy)]
pub(super) struct Form {
    pub(super) min: u64,
    pub(super) max: u64,
    pub(super) ordered: bool,
}

/// Amounts as given, each meter once.
pub(super) fn rows(
    field: &str,
    amounts: &[v1::MeterAmount],
    form: Form,
) -> Result<Vec<(Meter, u64)>, Invalid> {
    if amounts.len() > MAX_METERS {
        return Err(Fault::TooLong { max: MAX_METERS }.at(field));
    }
    let Form { min, max, ordered } = form;
    let mut rows: Vec<(Meter, u64)> = Vec::with_capacity(amounts.len());
    for (at, message) in amounts.iter().enumerate() {
        let name = || format!("{field}[{at}].meter");
        let meter = Meter::parse(&message.meter).map_err(|fault| fault.at(name()))?;
        if !(min..=max).contains(&message.amount) {
            return Err(Fault::OutOfRange { min, max }.at(format!("{field}[{at}].amount")));
        }
        if rows.iter().any(|row| row.0 == meter) {
            return Err(Fault::RepeatedMeter.at(name()));
        }
        if ordered && rows.last().is_some_and(|last| last.0 > meter) {
            return Err(Fault::OutOfOrder.at(name()));
        }
        rows.push((meter, message.amount));
    }
    Ok(rows)
}

pub(super) fn amounts(field: &str, given: &[v1::MeterAmount], form: Form) -> Result<Amounts, Invalid> {
    Amounts::new(rows(field, given, form)?).map_err(|fault| fault.at(field))
}

pub(super) fn nonempty(field: &str, amounts: Amounts) -> Result<Amounts, Invalid> {
    if amounts.is_empty() { Err(Fault::Empty.at(field)) } else { Ok(amounts) }
}

pub(super) fn allowance_of(field: &str, given: &[v1::MeterAmount], form: Form) -> Result<Allowance, Invalid> {
    Allowance::new(rows(field, given, form)?).map_err(|fault| fault.at(field))
}

const ABOVE_ZERO: Form = Form { min: 1, max: MAX_AMOUNT, ordered: false };
const MAYBE_ZERO: Form = Form { min: 0, max: MAX_AMOUNT, ordered: false };
const GRANTED: Form = Form { min: 0, max: MAX_GRANTED, ordered: false };

/// Amounts that a caller asks to hold: at least one, each above zero and each meter once.
pub fn requested_amounts(field: &str, given: &[v1::MeterAmount]) -> Result<Amounts, Invalid> {
    nonempty(field, amounts(field, given, ABOVE_ZERO)?)
}

/// Amounts that a caller asks to add to a hold: as [`requested_amounts`], but maybe none.
pub fn added_amounts(field: &str, given: &[v1::MeterAmount]) -> Result<Amounts, Invalid> {
    amounts(field, given, ABOVE_ZERO)
}

/// Amounts that a caller says were used: maybe none, maybe zero, each meter once.
pub fn used_amounts(field: &str, given: &[v1::MeterAmount]) -> Result<Amounts, Invalid> {
    amounts(field, given, MAYBE_ZERO)
}

/// The least that a balancing reservation takes: maybe none, each of a meter that is `requested`, and at most as much.
pub fn least_amounts(
    field: &str,
    given: &[v1::MeterAmount],
    requested: &Amounts,
) -> Result<Amounts, Invalid> {
    for (at, (meter, least)) in rows(field, given, ABOVE_ZERO)?.into_iter().enumerate() {
        match requested.get(meter) {
            0 => return Err(Fault::Unexpected.at(format!("{field}[{at}].meter"))),
            max if least > max => {
                return Err(Fault::OutOfRange { min: 1, max }.at(format!("{field}[{at}].amount")));
            }
            _ => {}
        }
    }
    amounts(field, given, ABOVE_ZERO)
}

/// A number per meter: at least one meter, each once, maybe zero.
pub fn allowance(field: &str, given: &[v1::MeterAmount]) -> Result<Allowance, Invalid> {
    let allowance = allowance_of(field, given, GRANTED)?;
    if allowance.is_empty() { Err(Fault::Empty.at(field)) } else { Ok(allowance) }
}

/// A window.
pub fn window(field: &str, number: i32) -> Result<Window, Invalid> {
    window_of(field, number)
}

/// The name of a meter.
pub fn meter(field: &str, name: &str) -> Result<Meter, Invalid> {
    Meter::parse(name).map_err(|fault| fault.at(field))
}

/// Names of meters: maybe none, each once.
pub fn meters(field: &str, names: &[String]) -> Result<Vec<Meter>, Invalid> {
    if names.len() > MAX_METERS {
        return Err(Fault::TooLong { max: MAX_METERS }.at(field));
    }
    let mut meters = Vec::with_capacity(names.len());
    for (at, name) in names.iter().enumerate() {
        let parsed = meter(&format!("{field}[{at}]"), name)?;
        if meters.contains(&parsed) {
            return Err(Fault::RepeatedMeter.at(format!("{field}[{at}]")));
        }
        meters.push(parsed);
    }
    Ok(meters)
}

/// The terms of a budget that is to be set. No zone means UTC where there is a window.
pub fn budget_terms(request: &v1::SetBudgetRequest) -> Result<BudgetTerms, Invalid> {
    let window = window_of("window", request.window)?;
    let zone = match &*request.time_zone {
        "" if window == Window::AllTime => None,
        "" => Some(Zone::utc()),
        name => {
            let zone = Zone::parse(name).ok().filter(Zone::known);
            Some(zone.ok_or_else(|| Fault::UnknownZone.at("time_zone"))?)
        }
    };
    let terms = BudgetTerms {
        window,
        zone,
        granted: allowance("granted", &request.granted)?,
        overdraft: allowance_of("overdraft", &request.overdraft, GRANTED)?,
        rollover_cap: allowance_of("rollover_cap", &request.rollover_cap, GRANTED)?,
        enforcement: enforcement_of("enforcement", request.enforcement)?,
        overage: overage_of("overage", request.overage)?,
        carry_debt: request.carry_debt,
        thresholds: super::each("thresholds", &request.thresholds, threshold_of)?.into(),
    };
    terms.check()?;
    Ok(terms)
}

/// A grant that is to be added. Paths are within the grant.
pub fn grant(grant: &v1::GrantAdded) -> Result<GrantTerms, Invalid> {
    let terms = GrantTerms {
        grant_id: GrantId::parse(&grant.grant_id).map_err(|fault| fault.at("grant_id"))?,
        scope: ScopePath::parse(&grant.scope).map_err(|fault| fault.at("scope"))?,
        window: window_of("window", grant.window)?,
        meter: meter("meter", &grant.meter)?,
        amount: grant.amount,
        priority: grant.priority,
        effective_ms: grant.effective_unix_ms,
        expires_ms: grant.expires_unix_ms,
        recurring: grant.recurring,
        rollover_cap: grant.rollover_cap,
    };
    terms.check()?;
    Ok(terms)
}

/// A rate limit that is to be set. Paths are within the limit.
pub fn rate_limit(limit: &v1::RateLimitSet) -> Result<RateLimit, Invalid> {
    let limit = RateLimit {
        scope: ScopePath::parse(&limit.scope).map_err(|fault| fault.at("scope"))?,
        meter: meter("meter", &limit.meter)?,
        amount: limit.amount,
        period_ms: limit.period_ms,
        burst: limit.burst,
    };
    limit.check()?;
    Ok(limit)
}

/// A limit on open holds that is to be set: scope and how many. Paths are within the limit.
pub fn concurrency_limit(limit: &v1::ConcurrencyLimitSet) -> Result<(ScopePath, u64), Invalid> {
    let scope = ScopePath::parse(&limit.scope).map_err(|fault| fault.at("scope"))?;
    if limit.max_open_holds > MAX_AMOUNT {
        return Err(Fault::OutOfRange { min: 0, max: MAX_AMOUNT }.at("max_open_holds"));
    }
    Ok((scope, limit.max_open_holds))
}

/// A price that is to be set. Paths are within the price.
pub fn price(price: &v1::PriceSet) -> Result<Price, Invalid> {
    let price = Price {
        scope: ScopePath::parse(&price.scope).map_err(|fault| fault.at("scope"))?,
        meter: meter("meter", &price.meter)?,
        micros: price.micros,
        per: price.per,
    };
    price.check()?;
    Ok(price)
}

/// A meter that is to be defined, and its description. Paths are within the definition.
pub fn meter_definition(defined: &v1::MeterDefined) -> Result<(Meter, Option<Label>), Invalid> {
    let meter = meter("meter", &defined.meter)?;
    if !meter.is_custom() {
        return Err(Fault::Unexpected.at("meter"));
    }
    Ok((meter, label("description", &defined.description)?))
}

/// Where thresholds are to be reported; none for nowhere.
pub fn webhook(url: &str) -> Result<Option<WebhookUrl>, Invalid> {
    if url.is_empty() {
        return Ok(None);
    }
    WebhookUrl::parse(url).map(Some).map_err(|fault| fault.at("url"))
}

/// What usage belongs to; none if nothing is said.
pub fn source(field: &str, source: Option<&v1::UsageSource>) -> Result<Option<Arc<Source>>, Invalid> {
    let Some(source) = source else { return Ok(None) };
    let label = |name: &str, text: &str| label(&format!("{field}.{name}"), text);
    Ok(Source {
        agent_id: label("agent_id", &source.agent_id)?,
        skill: label("skill", &source.skill)?,
        execution_id: label("execution_id", &source.execution_id)?,
        used_ms: source.used_unix_ms,
    }
    .told())
}

/// What is counted once per distinct value; none if nothing is said.
pub fn subject(field: &str, text: &str) -> Result<Option<Label>, Invalid> {
    label(field, text)
}

/// A correction that is to be recorded. Paths are within the correction.
pub fn correction(given: &v1::UsageCorrected) -> Result<Correction, Invalid> {
    if !given.uncharged.is_empty() {
        return Err(Fault::Unexpected.at("uncharged"));
    }
    Ok(Correction {
        scope: ScopePath::parse(&given.scope).map_err(|fault| fault.at("scope"))?,
        amounts: requested_amounts("amounts", &given.amounts)?,
        added: given.added,
        reason: Label::parse(&given.reason).map_err(|fault| fault.at("reason"))?,
        reference: label("reference", &given.reference)?,
        source: source("source", given.source.as_ref())?,
    })
}

pub(super) fn label(field: &str, text: &str) -> Result<Option<Label>, Invalid> {
    Label::optional(text).map_err(|fault| fault.at(field))
}
