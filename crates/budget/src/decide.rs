//! Decides commands and expiry. Reads the state and changes nothing; what it returns is applied by [`State::record`].
//!
//! Time passes by the writer's sweeps alone: a hold is open until its expiry is recorded, so what a state answers never
//! depends on when it is asked. A writer sweeps before it decides.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::{
    command::{Action, Command},
    event::{Decision, Denial, Event, Refusal},
    id::{HoldId, Subject, TenantId},
    meter::{Amounts, MAX_AMOUNT},
    scope::ScopePath,
    state::{Hold, HoldStatus, State},
};

/// Holds that one sweep ends at most, so that a run of it fits into a log entry.
pub const SWEEP_MAX: usize = 512;

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decided {
    /// A new decision, to be recorded and journaled.
    New(Decision),
    /// The answer that its key got before. Nothing to record.
    Repeated(Event),
}

impl Decided {
    /// The answer to the caller.
    pub fn reply(&self) -> &Event {
        match self {
            Self::New(decision) => &decision.events[0],
            Self::Repeated(reply) => reply,
        }
    }
}

/// Why a command could not be decided. The state stands as it was and nothing is journaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecideError {
    /// The key was used by another request.
    #[error("the idempotency key was used by another request")]
    IdempotencyConflict,
    /// The id drawn for the new hold is taken: draw another.
    #[error("the hold id is taken")]
    HoldIdTaken,
}

/// Decides `command` at `now_ms`, or at the state's own time if that is later.
pub fn decide(state: &State, command: &Command, now_ms: u64) -> Result<Decided, DecideError> {
    if let Some(asked) = command.idempotency()
        && let Some(recorded) = state.recorded(command.tenant(), &asked.key)
    {
        return if recorded.request_hash == asked.request_hash {
            Ok(Decided::Repeated(recorded.reply.clone()))
        } else {
            Err(DecideError::IdempotencyConflict)
        };
    }
    let now_ms = now_ms.max(state.now_ms());
    let event = match command.action() {
        Action::SetBudget { scope, granted } => Event::BudgetSet { scope: scope.clone(), granted: *granted },
        Action::Reserve { hold_id, scope, holder, amounts, ttl } => {
            if state.hold(hold_id).is_some() {
                return Err(DecideError::HoldIdTaken);
            }
            match binding(state, scope, amounts) {
                Some(denial) => Event::HoldDenied { scope: scope.clone(), denial },
                None => Event::HoldGranted {
                    hold_id: hold_id.clone(),
                    scope: scope.clone(),
                    holder: holder.clone(),
                    amounts: *amounts,
                    expires_ms: now_ms.saturating_add(ttl.as_ms()),
                },
            }
        }
        Action::Extend { hold_id, added, ttl } => match own_hold(state, command, hold_id) {
            Ok(hold) if hold.status == HoldStatus::Open => {
                match beyond_one_hold(hold, added).or_else(|| binding(state, &hold.scope, added)) {
                    Some(denial) => Event::HoldDenied { scope: hold.scope.clone(), denial },
                    None => Event::HoldExtended {
                        hold_id: hold_id.clone(),
                        added: *added,
                        expires_ms: hold.expires_ms.max(now_ms.saturating_add(ttl.as_ms())),
                    },
                }
            }
            Ok(_) => refused(Refusal::HoldClosed, hold_id),
            Err(refusal) => refused(refusal, hold_id),
        },
        Action::Settle { hold_id, used } => match own_hold(state, command, hold_id) {
            Ok(hold) => match hold.status {
                HoldStatus::Open | HoldStatus::Expired => Event::HoldSettled {
                    hold_id: hold_id.clone(),
                    used: *used,
                    late: hold.status == HoldStatus::Expired,
                },
                HoldStatus::Settled { .. } | HoldStatus::Voided => refused(Refusal::HoldClosed, hold_id),
            },
            Err(refusal) => refused(refusal, hold_id),
        },
        Action::Void { hold_id } => match own_hold(state, command, hold_id) {
            Ok(hold) if hold.status == HoldStatus::Open => Event::HoldVoided { hold_id: hold_id.clone() },
            Ok(_) => refused(Refusal::HoldClosed, hold_id),
            Err(refusal) => refused(refusal, hold_id),
        },
    };
    Ok(Decided::New(Decision {
        idempotency: command.idempotency().cloned(),
        actor: command.actor().clone(),
        events: vec![event],
    }))
}

/// Ends the holds that are due at `now_ms`, or at the state's own time if that is later: one decision per tenant, in order of
/// tenant, of up to [`SWEEP_MAX`] holds together. Record them and sweep again until nothing is due.
pub fn sweep(state: &State, now_ms: u64) -> Vec<(TenantId, Decision)> {
    let mut by_tenant: BTreeMap<TenantId, Vec<Event>> = BTreeMap::new();
    for (tenant, hold_id) in state.due(now_ms.max(state.now_ms())).take(SWEEP_MAX) {
        by_tenant.entry(tenant).or_default().push(Event::HoldExpired { hold_id: hold_id.clone() });
    }
    by_tenant
        .into_iter()
        .map(|(tenant, events)| (tenant, Decision { idempotency: None, actor: Subject::metering(), events }))
        .collect()
}

fn refused(refusal: Refusal, hold_id: &HoldId) -> Event {
    Event::CommandRefused { refusal, hold_id: hold_id.clone() }
}

fn own_hold<'s>(state: &'s State, command: &Command, hold_id: &HoldId) -> Result<&'s Hold, Refusal> {
    let hold = state.hold(hold_id).ok_or(Refusal::UnknownHold)?;
    if hold.scope.tenant() == command.tenant().as_str() && hold.holder == *command.actor() {
        Ok(hold)
    } else {
        Err(Refusal::NotHolder)
    }
}

/// What forbids `amounts` at `scope`, if anything does. Meters that no enclosing scope limits are free.
fn binding(state: &State, scope: &ScopePath, amounts: &Amounts) -> Option<Denial> {
    if amounts.is_empty() {
        return None;
    }
    let mut limited = false;
    for name in scope.enclosing() {
        let Some(account) = state.account(name) else {
            continue;
        };
        limited |= account.is_limited();
        for (meter, requested) in amounts.iter() {
            let Some(balance) = account.balance(meter) else {
                continue;
            };
            if balance.debt > 0 {
                return Some(Denial::InDebt { scope: scope.of_enclosing(name), meter, requested });
            }
            if balance.available < requested {
                let available = balance.available;
                return Some(Denial::Exhausted {
                    scope: scope.of_enclosing(name),
                    meter,
                    requested,
                    available,
                });
            }
        }
    }
    (!limited).then_some(Denial::NoBudget)
}

fn beyond_one_hold(hold: &Hold, added: &Amounts) -> Option<Denial> {
    added
        .iter()
        .map(|(meter, requested)| (meter, requested, MAX_AMOUNT - hold.amounts.get(meter)))
        .find(|&(_, requested, available)| requested > available)
        .map(|(meter, requested, available)| Denial::Exhausted {
            scope: hold.scope.clone(),
            meter,
            requested,
            available,
        })
}
