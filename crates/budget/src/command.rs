//! What can be asked of the budgets. A command is valid once it exists; whether it succeeds is for `decide` to say.
//!
//! Expiry is not a command: nobody asks for it, see [`crate::sweep`].

use crate::{
    fault::{Fault, Invalid},
    id::{HoldId, IdempotencyKey, Subject, TenantId},
    meter::{Allowance, Amounts},
    scope::ScopePath,
};

/// The shortest life that a hold can be given, milliseconds.
pub const MIN_TTL_MS: u64 = 1_000;
/// The longest life that a hold can be given at a time, milliseconds.
pub const MAX_TTL_MS: u64 = 86_400_000;

/// How long a hold lives from now, milliseconds: 1 s to 24 h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ttl(u64);

impl Ttl {
    /// Checks the bounds.
    pub fn from_ms(ms: u64) -> Result<Self, Fault> {
        if (MIN_TTL_MS..=MAX_TTL_MS).contains(&ms) {
            Ok(Self(ms))
        } else {
            Err(Fault::OutOfRange { min: MIN_TTL_MS, max: MAX_TTL_MS })
        }
    }

    /// Milliseconds.
    pub fn as_ms(self) -> u64 {
        self.0
    }
}

/// What makes a command safe to repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// The caller's key, unique within the tenant.
    pub key: IdempotencyKey,
    /// Digest of the request. It has to cover the caller too: the same key and digest gets the same answer.
    pub request_hash: [u8; 32],
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Limits meters at a scope. What was spent there before counts. Lowering a budget below what is held and spent makes debt.
    SetBudget {
        /// The scope.
        scope: ScopePath,
        /// The new totals; meters that are not named keep theirs. Not empty.
        granted: Allowance,
    },
    /// Holds amounts at a scope and all that enclose it.
    Reserve {
        /// The new hold, drawn by the caller.
        hold_id: HoldId,
        /// The scope.
        scope: ScopePath,
        /// Who may extend, settle or void it.
        holder: Subject,
        /// What to hold. Not empty.
        amounts: Amounts,
        /// How long.
        ttl: Ttl,
    },
    /// Adds to a hold and lets it live until `now + ttl`, if that is later than it does.
    Extend {
        /// The hold.
        hold_id: HoldId,
        /// What to hold in addition; may be empty.
        added: Amounts,
        /// How long from now.
        ttl: Ttl,
    },
    /// Records what was used and returns the rest.
    Settle {
        /// The hold.
        hold_id: HoldId,
        /// What was used; may be empty, and may be more than was held.
        used: Amounts,
    },
    /// Returns all of a hold.
    Void {
        /// The hold.
        hold_id: HoldId,
    },
}

/// A valid command: one tenant's, by one actor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    tenant: TenantId,
    actor: Subject,
    idempotency: Option<Idempotency>,
    action: Action,
}

impl Command {
    /// Checks that the action fits the tenant and asks for something.
    ///
    /// `tenant` is whose decision it will be, and scopes and holds of another are refused; for a caller that spans tenants, pass
    /// the scope's. `actor` is the caller's subject, or the agent whose recorded execution is being settled; it has to be the
    /// holder for what is done to a hold.
    pub fn new(
        tenant: TenantId,
        actor: Subject,
        idempotency: Option<Idempotency>,
        action: Action,
    ) -> Result<Self, Invalid> {
        match &action {
            Action::SetBudget { scope, granted } => {
                within(&tenant, scope)?;
                if granted.is_empty() {
                    return Err(Fault::Empty.at("granted"));
                }
            }
            Action::Reserve { scope, amounts, .. } => {
                within(&tenant, scope)?;
                if amounts.is_empty() {
                    return Err(Fault::Empty.at("amounts"));
                }
            }
            Action::Extend { .. } | Action::Settle { .. } | Action::Void { .. } => {}
        }
        Ok(Self { tenant, actor, idempotency, action })
    }

    /// Whose decision it will be.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Who asks.
    pub fn actor(&self) -> &Subject {
        &self.actor
    }

    /// What makes it safe to repeat, if anything.
    pub fn idempotency(&self) -> Option<&Idempotency> {
        self.idempotency.as_ref()
    }

    /// What is asked.
    pub fn action(&self) -> &Action {
        &self.action
    }
}

fn within(tenant: &TenantId, scope: &ScopePath) -> Result<(), Invalid> {
    if scope.tenant() == tenant.as_str() { Ok(()) } else { Err(Fault::OutsideTenant.at("scope")) }
}
