//! What happened, as it is journaled. The wire form is `wire.rs`'s business.

use crate::{
    command::Idempotency,
    id::{HoldId, Subject, TenantId},
    meter::{Allowance, Amounts, Meter},
    scope::ScopePath,
};

/// One change of budget state, or a refusal. Times are milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Meters are limited at a scope from now on.
    BudgetSet {
        /// The scope.
        scope: ScopePath,
        /// New totals of the meters named.
        granted: Allowance,
    },
    /// A hold was granted.
    HoldGranted {
        /// The hold.
        hold_id: HoldId,
        /// The scope that it was asked for.
        scope: ScopePath,
        /// Who may extend, settle or void it.
        holder: Subject,
        /// What is held.
        amounts: Amounts,
        /// When it runs out.
        expires_ms: u64,
    },
    /// A hold, or an extension of one, was refused. Changes no balance.
    HoldDenied {
        /// The scope that it was asked for.
        scope: ScopePath,
        /// Why.
        denial: Denial,
    },
    /// A hold was extended.
    HoldExtended {
        /// The hold.
        hold_id: HoldId,
        /// What is held in addition.
        added: Amounts,
        /// When it runs out now.
        expires_ms: u64,
    },
    /// A hold was settled.
    HoldSettled {
        /// The hold.
        hold_id: HoldId,
        /// What was used, in full.
        used: Amounts,
        /// Whether it had run out before.
        late: bool,
    },
    /// A hold was voided.
    HoldVoided {
        /// The hold.
        hold_id: HoldId,
    },
    /// A hold ran out.
    HoldExpired {
        /// The hold.
        hold_id: HoldId,
    },
    /// A command was refused for another reason. Changes no balance.
    CommandRefused {
        /// Why.
        refusal: Refusal,
        /// The hold that was meant.
        hold_id: HoldId,
    },
}

/// Why a hold was denied. The outermost scope that binds is named, and its first meter in canonical order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A scope has less left than was asked for; or one hold would hold more than [`crate::MAX_AMOUNT`].
    Exhausted {
        /// The scope that binds.
        scope: ScopePath,
        /// The meter that binds.
        meter: Meter,
        /// What was asked.
        requested: u64,
        /// What was left.
        available: u64,
    },
    /// A scope is in debt for the meter.
    InDebt {
        /// The scope that binds.
        scope: ScopePath,
        /// The meter that binds.
        meter: Meter,
        /// What was asked.
        requested: u64,
    },
    /// No enclosing scope has a budget for any meter: without one, nothing is granted.
    NoBudget,
}

/// Why a command was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such hold.
    UnknownHold,
    /// It was settled, voided or has expired.
    HoldClosed,
    /// It belongs to another holder or tenant.
    NotHolder,
}

/// One command and what it did. Its first event is the caller's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Key and digest of the request; none for decisions that the writer makes itself.
    pub idempotency: Option<Idempotency>,
    /// Who asked.
    pub actor: Subject,
    /// What happened, in order. Never empty; exactly one for a command.
    pub events: Vec<Event>,
}

/// Consecutive decisions of one tenant within a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecisionRun {
    /// The tenant.
    pub tenant: TenantId,
    /// The decisions, in order.
    pub decisions: Vec<Decision>,
}
