//! Between the domain and `exchequer.v1` messages.
//!
//! What was journaled is decoded strictly: every field in bounds, amounts above zero and in the order of the meters, no field set
//! where it has no meaning, only the run's own tenant's scopes. So `encode(decode(run))` is the run again, except for fields of a
//! later version, which are skipped; a journal keeps and forwards the bytes that it has. What callers send may order amounts
//! freely. Statuses, permissions and request digests are not here.

use exchequer_proto::v1::{self, budget_event::Kind};
use prost::Message;
use thiserror::Error;

use crate::{
    command::Idempotency,
    event::{Decision, DecisionRun, Denial, Event, Refusal},
    fault::{Fault, Invalid},
    id::{HoldId, IdempotencyKey, Subject, TenantId},
    meter::{Allowance, Amounts, MAX_AMOUNT, MAX_GRANTED, Meter, Totals},
    scope::ScopePath,
    state::{Balance, Hold, HoldStatus},
};

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
                if scope_of(event).is_some_and(|scope| scope.tenant() != tenant.as_str()) {
                    return Err(Fault::OutsideTenant.at(format!("events[{at}].scope")));
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
        match decision.events.len() {
            0 => return Err(Fault::Empty.at("events")),
            2.. if idempotency.is_some() => return Err(Fault::TooLong { max: 1 }.at("events")),
            _ => {}
        }
        let events = each("events", &decision.events, |event| Event::try_from(event))?;
        Ok(Self { idempotency, actor, events })
    }
}

impl From<&Event> for v1::BudgetEvent {
    fn from(event: &Event) -> Self {
        let kind = match event {
            Event::BudgetSet { scope, granted } => Kind::BudgetSet(v1::BudgetSet {
                scope: scope.to_string(),
                granted: meter_amounts(granted.iter()),
                ..Default::default()
            }),
            Event::HoldGranted { hold_id, scope, holder, amounts, expires_ms } => {
                Kind::HoldGranted(v1::HoldGranted {
                    hold_id: hold_id.to_string(),
                    scope: scope.to_string(),
                    holder: holder.to_string(),
                    amounts: meter_amounts(amounts.iter()),
                    expires_unix_ms: *expires_ms,
                    ..Default::default()
                })
            }
            Event::HoldDenied { scope, denial } => Kind::HoldDenied(denied(scope, denial)),
            Event::HoldExtended { hold_id, added, expires_ms } => Kind::HoldExtended(v1::HoldExtended {
                hold_id: hold_id.to_string(),
                added: meter_amounts(added.iter()),
                expires_unix_ms: *expires_ms,
                ..Default::default()
            }),
            Event::HoldSettled { hold_id, used, late } => Kind::HoldSettled(v1::HoldSettled {
                hold_id: hold_id.to_string(),
                used: meter_amounts(used.iter()),
                late: *late,
                ..Default::default()
            }),
            Event::HoldVoided { hold_id } => {
                Kind::HoldVoided(v1::HoldVoided { hold_id: hold_id.to_string() })
            }
            Event::HoldExpired { hold_id } => {
                Kind::HoldExpired(v1::HoldExpired { hold_id: hold_id.to_string() })
            }
            Event::CommandRefused { refusal, hold_id } => {
                let reason = match refusal {
                    Refusal::UnknownHold => v1::RefusalReason::UnknownHold,
                    Refusal::HoldClosed => v1::RefusalReason::HoldClosed,
                    Refusal::NotHolder => v1::RefusalReason::NotHolder,
                };
                Kind::CommandRefused(v1::CommandRefused {
                    reason: reason.into(),
                    hold_id: hold_id.to_string(),
                    ..Default::default()
                })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<&v1::BudgetEvent> for Event {
    type Error = Invalid;

    fn try_from(event: &v1::BudgetEvent) -> Result<Self, Invalid> {
        let event = match event.kind.as_ref().ok_or_else(|| Fault::Missing.at("kind"))? {
            Kind::BudgetSet(set) => Self::BudgetSet {
                scope: scope("scope", &set.scope)?,
                granted: allowance_from(slots("granted", &set.granted, MAX_GRANTED, Form::Recorded)?)
                    .and_then(nonempty(Allowance::is_empty))
                    .map_err(|fault| fault.at("granted"))?,
            },
            Kind::HoldGranted(hold) => Self::HoldGranted {
                hold_id: hold_id(&hold.hold_id)?,
                scope: scope("scope", &hold.scope)?,
                holder: Subject::parse(&hold.holder).map_err(|fault| fault.at("holder"))?,
                amounts: recorded("amounts", &hold.amounts)
                    .and_then(|amounts| nonempty(Amounts::is_empty)(amounts).map_err(|f| f.at("amounts")))?,
                expires_ms: hold.expires_unix_ms,
            },
            Kind::HoldDenied(denied) => {
                Self::HoldDenied { scope: scope("scope", &denied.scope)?, denial: denial(denied)? }
            }
            Kind::HoldExtended(extended) => Self::HoldExtended {
                hold_id: hold_id(&extended.hold_id)?,
                added: recorded("added", &extended.added)?,
                expires_ms: extended.expires_unix_ms,
            },
            Kind::HoldSettled(settled) => Self::HoldSettled {
                hold_id: hold_id(&settled.hold_id)?,
                used: recorded("used", &settled.used)?,
                late: settled.late,
            },
            Kind::HoldVoided(voided) => Self::HoldVoided { hold_id: hold_id(&voided.hold_id)? },
            Kind::HoldExpired(expired) => Self::HoldExpired { hold_id: hold_id(&expired.hold_id)? },
            Kind::CommandRefused(refused) => Self::CommandRefused {
                refusal: match refused.reason() {
                    v1::RefusalReason::UnknownHold => Refusal::UnknownHold,
                    v1::RefusalReason::HoldClosed => Refusal::HoldClosed,
                    v1::RefusalReason::NotHolder => Refusal::NotHolder,
                    _ => return Err(Fault::Missing.at("reason")),
                },
                hold_id: hold_id(&refused.hold_id)?,
            },
            _ => return Err(Fault::Missing.at("kind")),
        };
        Ok(event)
    }
}

fn denied(scope: &ScopePath, denial: &Denial) -> v1::HoldDenied {
    let scope = scope.to_string();
    let (reason, binding, requested, available) = match denial {
        Denial::Exhausted { scope, meter, requested, available } => {
            (v1::DenialReason::Exhausted, Some((scope, meter)), *requested, *available)
        }
        Denial::InDebt { scope, meter, requested } => {
            (v1::DenialReason::InDebt, Some((scope, meter)), *requested, 0)
        }
        Denial::NoBudget => (v1::DenialReason::NoBudget, None, 0, 0),
    };
    let (binding_scope, binding_meter) =
        binding.map(|(scope, meter)| (scope.to_string(), meter.to_string())).unwrap_or_default();
    v1::HoldDenied {
        scope,
        reason: reason.into(),
        binding_scope,
        binding_meter,
        requested,
        available,
        ..Default::default()
    }
}

fn denial(denied: &v1::HoldDenied) -> Result<Denial, Invalid> {
    let reason = denied.reason();
    if !matches!(reason, v1::DenialReason::Exhausted | v1::DenialReason::InDebt | v1::DenialReason::NoBudget)
    {
        return Err(Fault::Missing.at("reason"));
    }
    let absent = |field, empty: bool| {
        if empty { Ok(()) } else { Err(Fault::Unexpected.at(field)) }
    };
    if reason == v1::DenialReason::NoBudget {
        absent("binding_scope", denied.binding_scope.is_empty())?;
        absent("binding_meter", denied.binding_meter.is_empty())?;
        absent("requested", denied.requested == 0)?;
        absent("available", denied.available == 0)?;
        return Ok(Denial::NoBudget);
    }
    let requested = denied.requested;
    if !(1..=MAX_AMOUNT).contains(&requested) {
        return Err(Fault::OutOfRange { min: 1, max: MAX_AMOUNT }.at("requested"));
    }
    let scope = scope("binding_scope", &denied.binding_scope)?;
    if !ScopePath::parse(&denied.scope)
        .is_ok_and(|asked| asked.enclosing().any(|name| name == scope.as_str()))
    {
        return Err(Fault::OutsideTenant.at("binding_scope"));
    }
    let meter = Meter::parse(&denied.binding_meter).map_err(|fault| fault.at("binding_meter"))?;
    if reason == v1::DenialReason::InDebt {
        absent("available", denied.available == 0)?;
        return Ok(Denial::InDebt { scope, meter, requested });
    }
    if denied.available >= requested {
        return Err(Fault::OutOfRange { min: 0, max: requested - 1 }.at("available"));
    }
    Ok(Denial::Exhausted { scope, meter, requested, available: denied.available })
}

fn scope_of(event: &Event) -> Option<&ScopePath> {
    match event {
        Event::BudgetSet { scope, .. }
        | Event::HoldGranted { scope, .. }
        | Event::HoldDenied { scope, .. } => Some(scope),
        _ => None,
    }
}

fn scope(field: &str, text: &str) -> Result<ScopePath, Invalid> {
    ScopePath::parse(text).map_err(|fault| fault.at(field))
}

fn hold_id(text: &str) -> Result<HoldId, Invalid> {
    HoldId::parse(text).map_err(|fault| fault.at("hold_id"))
}

fn nonempty<T>(is_empty: fn(&T) -> bool) -> impl Fn(T) -> Result<T, Fault> {
    move |value| {
        if is_empty(&value) { Err(Fault::Empty) } else { Ok(value) }
    }
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

/// Amounts that a caller asks to hold: at least one, each above zero and each meter once.
pub fn requested_amounts(field: &str, amounts: &[v1::MeterAmount]) -> Result<Amounts, Invalid> {
    amounts_from(field, slots(field, amounts, MAX_AMOUNT, Form::Asked { min: 1 })?)
        .and_then(|amounts| nonempty(Amounts::is_empty)(amounts).map_err(|fault| fault.at(field)))
}

/// Amounts that a caller asks to add to a hold: as [`requested_amounts`], but maybe none.
pub fn added_amounts(field: &str, amounts: &[v1::MeterAmount]) -> Result<Amounts, Invalid> {
    amounts_from(field, slots(field, amounts, MAX_AMOUNT, Form::Asked { min: 1 })?)
}

/// Amounts that a caller says were used: maybe none, maybe zero, each meter once.
pub fn used_amounts(field: &str, amounts: &[v1::MeterAmount]) -> Result<Amounts, Invalid> {
    amounts_from(field, slots(field, amounts, MAX_AMOUNT, Form::Asked { min: 0 })?)
}

/// What a caller asks a budget to grant: at least one meter, each once, maybe zero.
pub fn allowance(field: &str, granted: &[v1::MeterAmount]) -> Result<Allowance, Invalid> {
    allowance_from(slots(field, granted, MAX_GRANTED, Form::Asked { min: 0 })?)
        .and_then(nonempty(Allowance::is_empty))
        .map_err(|fault| fault.at(field))
}

fn recorded(field: &str, amounts: &[v1::MeterAmount]) -> Result<Amounts, Invalid> {
    let slots = slots(field, amounts, MAX_AMOUNT, Form::Recorded)?;
    if let Some(at) = amounts.iter().position(|amount| amount.amount == 0) {
        return Err(Fault::OutOfRange { min: 1, max: MAX_AMOUNT }.at(format!("{field}[{at}].amount")));
    }
    amounts_from(field, slots)
}

#[derive(Clone, Copy)]
enum Form {
    Asked { min: u64 },
    Recorded,
}

type Slots = [Option<u64>; Meter::COUNT];

fn slots(field: &str, amounts: &[v1::MeterAmount], max: u64, form: Form) -> Result<Slots, Invalid> {
    if amounts.len() > Meter::COUNT {
        return Err(Fault::TooLong { max: Meter::COUNT }.at(field));
    }
    let mut slots = Slots::default();
    let mut last = None;
    for (at, message) in amounts.iter().enumerate() {
        let name = || format!("{field}[{at}].meter");
        let meter = Meter::parse(&message.meter).map_err(|fault| fault.at(name()))?;
        let min = match form {
            Form::Asked { min } => min,
            Form::Recorded => 0,
        };
        if !(min..=max).contains(&message.amount) {
            return Err(Fault::OutOfRange { min, max }.at(format!("{field}[{at}].amount")));
        }
        if slots[meter.index()].replace(message.amount).is_some() {
            return Err(Fault::RepeatedMeter.at(name()));
        }
        if matches!(form, Form::Recorded) && last.replace(meter) > Some(meter) {
            return Err(Fault::OutOfOrder.at(name()));
        }
    }
    Ok(slots)
}

fn named(slots: Slots) -> impl Iterator<Item = (Meter, u64)> {
    Meter::ALL.into_iter().zip(slots).filter_map(|(meter, amount)| Some((meter, amount?)))
}

fn amounts_from(field: &str, slots: Slots) -> Result<Amounts, Invalid> {
    Amounts::new(named(slots)).map_err(|fault| fault.at(field))
}

fn allowance_from(slots: Slots) -> Result<Allowance, Fault> {
    Allowance::new(named(slots))
}

/// Amounts as a message has them.
pub fn meter_amounts(amounts: impl IntoIterator<Item = (Meter, u64)>) -> Vec<v1::MeterAmount> {
    amounts.into_iter().map(|(meter, amount)| v1::MeterAmount { meter: meter.to_string(), amount }).collect()
}

/// A sum that is exact here and has no place in a message: more than 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the sum of {meter} is beyond 64 bits")]
pub struct BeyondWire {
    /// The meter.
    pub meter: Meter,
}

fn narrow(meter: Meter, sum: u128) -> Result<u64, BeyondWire> {
    u64::try_from(sum).map_err(|_| BeyondWire { meter })
}

/// Sums as a message has them.
pub fn meter_totals(totals: &Totals) -> Result<Vec<v1::MeterAmount>, BeyondWire> {
    let amounts: Result<Vec<_>, _> =
        totals.iter().map(|(meter, sum)| Ok((meter, narrow(meter, sum)?))).collect();
    Ok(meter_amounts(amounts?))
}

/// A budget as a message has it.
pub fn budget(scope: &ScopePath, balances: &[(Meter, Balance)]) -> Result<v1::Budget, BeyondWire> {
    let balances = balances
        .iter()
        .map(|&(meter, balance)| {
            Ok(v1::Balance {
                meter: meter.to_string(),
                granted: balance.granted,
                available: balance.available,
                held: narrow(meter, balance.held)?,
                spent: narrow(meter, balance.spent)?,
                debt: narrow(meter, balance.debt)?,
                ..Default::default()
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(v1::Budget { scope: scope.to_string(), balances, ..Default::default() })
}

/// A hold as a message has it.
pub fn hold(hold_id: &HoldId, hold: &Hold) -> v1::GetHoldResponse {
    let (state, used) = match hold.status {
        HoldStatus::Open => (v1::HoldState::Open, Amounts::NONE),
        HoldStatus::Settled { used, .. } => (v1::HoldState::Settled, used),
        HoldStatus::Voided => (v1::HoldState::Voided, Amounts::NONE),
        HoldStatus::Expired => (v1::HoldState::Expired, Amounts::NONE),
    };
    v1::GetHoldResponse {
        hold_id: hold_id.to_string(),
        scope: hold.scope.to_string(),
        holder: hold.holder.to_string(),
        state: state.into(),
        amounts: meter_amounts(hold.amounts.iter()),
        used: meter_amounts(used.iter()),
        expires_unix_ms: hold.expires_ms,
        ..Default::default()
    }
}
