//! Decides commands. Reads the state and changes nothing; what it returns is applied by [`State::record`].
//!
//! Time passes by the writer's sweeps alone: a hold is open until its expiry is recorded, and a window is the present one until its
//! end is, so what a state answers never depends on when it is asked. A writer sweeps until nothing is due before it decides.

use thiserror::Error;

use crate::{
    command::{Action, Command},
    event::{Decision, Event, Refusal},
    id::{HoldId, Label},
    meter::Amounts,
    past::Past,
    scope::ScopePath,
    state::{Hold, HoldStatus, State},
};

mod admission;
mod configure;
mod holds;
pub(crate) mod thresholds;
mod usage;

pub use configure::{
    MAX_BUDGETS, MAX_CONCURRENCY_LIMITS, MAX_GRANTS, MAX_GRANTS_PER_BUDGET, MAX_PRICES, MAX_RATE_LIMITS,
};
pub use thresholds::{MAX_NOTIFICATIONS, MAX_REACHED};

/// Scopes of a tenant that anything was held, used or set at, and those that enclose them, at most: each is kept for good.
pub const MAX_SCOPES: usize = 100_000;
/// Holds of a tenant that are open, or expired and neither settled nor voided, at most.
pub const MAX_HOLDS: usize = 1_000_000;
/// How far ahead of the writer's clock a usage may claim to be, milliseconds. The writer's own settlements and draws, which have no
/// idempotency key, are recorded whatever they claim.
pub const MAX_AHEAD_MS: u64 = 300_000;

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decided {
    /// A new decision, to be recorded and journaled.
    New(Decision),
    /// The answer that its key got in a block that is not yet retired. Nothing to record.
    Repeated(Event),
    /// Its key was answered by the block of this stream sequence, where the answer is to be read back. Nothing to record.
    RepeatedAt(u64),
}

impl Decided {
    /// The answer to the caller, unless it is to be read back.
    pub fn reply(&self) -> Option<&Event> {
        match self {
            Self::New(decision) => decision.events.first(),
            Self::Repeated(reply) => Some(reply),
            Self::RepeatedAt(_) => None,
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
pub fn decide(state: &State, past: &Past, command: &Command, now_ms: u64) -> Result<Decided, DecideError> {
    if let Some(asked) = command.idempotency() {
        let id = state.ids.key(command.tenant(), &asked.key);
        if let Some(recent) = state.recent.get(&id) {
            return if recent.request_hash == asked.request_hash {
                Ok(Decided::Repeated(recent.reply.clone()))
            } else {
                Err(DecideError::IdempotencyConflict)
            };
        }
        if let Some(answer) = past.answer_of(&id) {
            return if answer.request[..] == asked.request_hash[..answer.request.len()] {
                Ok(Decided::RepeatedAt(answer.stream_seq))
            } else {
                Err(DecideError::IdempotencyConflict)
            };
        }
    }
    let events = Asked { state, past, command, now_ms: now_ms.max(state.now_ms()) }.events()?;
    Ok(Decided::New(Decision {
        idempotency: command.idempotency().cloned(),
        actor: command.actor().clone(),
        events,
    }))
}

/// What `command` would be answered at `now_ms` if it were new: a dry run, of which nothing is recorded.
pub fn preview(state: &State, past: &Past, command: &Command, now_ms: u64) -> Result<Event, DecideError> {
    let asked = Asked { state, past, command, now_ms: now_ms.max(state.now_ms()) };
    Ok(asked.events()?.swap_remove(0))
}

/// A command, and all that its decision depends on.
#[derive(Clone, Copy)]
struct Asked<'a> {
    state: &'a State,
    past: &'a Past,
    command: &'a Command,
    now_ms: u64,
}

impl<'a> Asked<'a> {
    fn events(&self) -> Result<Vec<Event>, DecideError> {
        Ok(match self.command.action() {
            Action::Reserve { hold_id, .. }
                if self.state.hold(hold_id).is_some() || self.past.hold_of(hold_id).is_some() =>
            {
                return Err(DecideError::HoldIdTaken);
            }
            Action::Reserve { .. } => vec![self.reserve()],
            Action::Extend { hold_id, added, ttl } => vec![self.extend(hold_id, added, *ttl)],
            Action::Void { hold_id } => vec![self.void(hold_id)],
            Action::Revoke { hold_id, reason } => vec![self.revoke(hold_id, reason)],
            Action::Settle { hold_id, used, source } => self.settle(hold_id, used, source.as_ref()),
            Action::Draw { hold_id, used, source } => self.draw(hold_id, used, source.as_ref()),
            Action::Report { scope, used, source, subject } => {
                self.report(scope, used, source.as_ref(), subject.as_ref())
            }
            Action::Correct(correction) => self.correct(correction),
            _ => self.configure(),
        })
    }

    /// The hold, if it is the tenant's and not over. Who held what is over, and whether it was a lease, is not asked any more: the
    /// past does not say, and an answer must not depend on what is retired already.
    fn hold_of_tenant(&self, hold_id: &HoldId) -> Result<&'a Hold, Refusal> {
        let tenant = self.command.tenant();
        match self.state.hold(hold_id) {
            Some(hold) if hold.scope.tenant() != tenant.as_str() => Err(Refusal::NotHolder),
            Some(hold) if matches!(hold.status, HoldStatus::Settled { .. } | HoldStatus::Voided) => {
                Err(Refusal::HoldClosed)
            }
            Some(hold) => Ok(hold),
            None if self.past.hold(tenant, hold_id).is_some() => Err(Refusal::HoldClosed),
            None if self.past.hold_of(hold_id).is_some() => Err(Refusal::NotHolder),
            None => Err(Refusal::UnknownHold),
        }
    }

    /// The hold, if it is the actor's and not over.
    fn own_hold(&self, hold_id: &HoldId) -> Result<&'a Hold, Refusal> {
        let hold = self.hold_of_tenant(hold_id)?;
        if hold.holder == *self.command.actor() { Ok(hold) } else { Err(Refusal::NotHolder) }
    }

    /// A refusal, if what is done at `scope` would make more scopes than a tenant may have.
    fn too_many_scopes(&self, scope: &ScopePath, field: &str) -> Option<Event> {
        let around = self.state.around(scope);
        let known = around.numbers();
        let kept = known.first().map_or(0, |&outermost| self.state.nodes[outermost].scopes);
        let new = scope.enclosing().count() - known.len();
        (new > 0 && kept + new > MAX_SCOPES).then(|| refused_field(Refusal::TooMany, field))
    }

    /// A refusal, if the tenant has not defined all that is named.
    fn unknown_meter(&self, amounts: &Amounts, field: &str) -> Option<Event> {
        let unknown = amounts.custom().any(|(meter, _)| !self.state.defines(self.command.tenant(), meter));
        unknown.then(|| refused_field(Refusal::UnknownMeter, field))
    }
}

fn refused_hold(refusal: Refusal, hold_id: &HoldId) -> Event {
    Event::CommandRefused { refusal, hold_id: Some(hold_id.clone()), field: None }
}

fn refused_field(refusal: Refusal, field: &str) -> Event {
    Event::CommandRefused { refusal, hold_id: None, field: Label::parse(field).ok() }
}
