//! What can be asked of the budgets. A command is valid once it exists; whether it succeeds is for `decide` to say.
//!
//! What time brings (expiry, the end of a window) is not a command: nobody asks for it, see [`crate::sweep`].

use std::sync::Arc;

use crate::{
    fault::{Fault, Invalid},
    id::{GrantId, HoldId, IdempotencyKey, Label, Subject, TenantId, WebhookUrl},
    meter::{Amounts, MAX_METERS, Meter},
    policy::{BudgetTerms, Correction, GrantTerms, Price, RateLimit, Source, Window},
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
    /// Sets budgets. Over all time, what was spent there before counts; a new budget over another window begins with nothing spent.
    /// Lowering a budget below what is held and spent makes debt.
    SetBudget {
        /// The scope.
        scope: ScopePath,
        /// The terms.
        terms: Arc<BudgetTerms>,
    },
    /// Removes budgets, with their grants.
    RemoveBudget {
        /// The scope.
        scope: ScopePath,
        /// The window.
        window: Window,
        /// The meters; empty for all.
        meters: Vec<Meter>,
    },
    /// Adds a grant to a budget.
    AddGrant(Arc<GrantTerms>),
    /// Ends a grant.
    RevokeGrant {
        /// The grant.
        grant_id: GrantId,
    },
    /// Sets or removes a rate limit.
    SetRateLimit(RateLimit),
    /// Sets or removes a limit on open holds.
    SetConcurrencyLimit {
        /// The scope.
        scope: ScopePath,
        /// Open holds at most; 0 removes the limit.
        max_open_holds: u64,
    },
    /// Sets or removes a price.
    SetPrice(Price),
    /// Defines a meter of the tenant's own, or describes it anew.
    DefineMeter {
        /// The meter: a custom one.
        meter: Meter,
        /// What it counts.
        description: Option<Label>,
    },
    /// Sets where thresholds are reported.
    SetWebhook {
        /// The URL; none for nowhere.
        url: Option<WebhookUrl>,
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
        /// Balancing: of each meter named here, as much of its amount as is left is held, but no less than this. Names meters of
        /// `amounts`, each with at most its amount.
        at_least: Amounts,
        /// Whether it is a lease.
        lease: bool,
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
        /// What the usage belongs to.
        source: Option<Arc<Source>>,
    },
    /// Records what was used of a lease.
    Draw {
        /// The lease.
        hold_id: HoldId,
        /// What was used. Not empty.
        used: Amounts,
        /// What the usage belongs to.
        source: Option<Arc<Source>>,
    },
    /// Returns all of a hold.
    Void {
        /// The hold.
        hold_id: HoldId,
    },
    /// Forbids that a hold is extended. Its holder need not be who asks.
    Revoke {
        /// The hold.
        hold_id: HoldId,
        /// Why.
        reason: Label,
    },
    /// Records usage that no hold covers.
    Report {
        /// The scope.
        scope: ScopePath,
        /// What was used. Not empty.
        used: Amounts,
        /// What it belongs to.
        source: Option<Arc<Source>>,
        /// What is counted once per distinct value.
        subject: Option<Label>,
    },
    /// Corrects usage.
    Correct(Arc<Correction>),
    /// Records that a notification was taken or given up. The writer's own.
    EndNotification {
        /// Its number.
        notification: u64,
        /// Whether it was taken.
        delivered: bool,
        /// Attempts made.
        attempts: u32,
        /// The last answer or error.
        detail: Option<Label>,
    },
}

impl Action {
    /// The scope that it names, unless it names a hold, a grant or nothing.
    pub fn scope(&self) -> Option<&ScopePath> {
        Some(match self {
            Self::SetBudget { scope, .. }
            | Self::RemoveBudget { scope, .. }
            | Self::SetConcurrencyLimit { scope, .. }
            | Self::Reserve { scope, .. }
            | Self::Report { scope, .. } => scope,
            Self::AddGrant(grant) => &grant.scope,
            Self::SetRateLimit(limit) => &limit.scope,
            Self::SetPrice(price) => &price.scope,
            Self::Correct(correction) => &correction.scope,
            _ => return None,
        })
    }
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
        if let Some(scope) = action.scope() {
            within(&tenant, scope)?;
        }
        match &action {
            Action::SetBudget { terms, .. } => {
                terms.check()?;
                if terms.zone.as_ref().is_some_and(|zone| !zone.known()) {
                    return Err(Fault::UnknownZone.at("time_zone"));
                }
            }
            Action::RemoveBudget { meters, .. } if meters.len() > MAX_METERS => {
                return Err(Fault::TooLong { max: MAX_METERS }.at("meters"));
            }
            Action::AddGrant(grant) => grant.check().map_err(|invalid| invalid.within("grant"))?,
            Action::SetRateLimit(limit) => limit.check().map_err(|invalid| invalid.within("limit"))?,
            Action::SetPrice(price) => price.check().map_err(|invalid| invalid.within("price"))?,
            Action::DefineMeter { meter, .. } if !meter.is_custom() => {
                return Err(Fault::Unexpected.at("meter.meter"));
            }
            Action::Reserve { amounts, at_least, .. } => {
                if amounts.is_empty() {
                    return Err(Fault::Empty.at("amounts"));
                }
                if at_least.iter().any(|(meter, least)| least > amounts.get(meter)) {
                    return Err(Fault::Unexpected.at("at_least"));
                }
            }
            Action::Draw { used, .. } | Action::Report { used, .. } if used.is_empty() => {
                return Err(Fault::Empty.at("used"));
            }
            Action::Correct(correction) if correction.amounts.is_empty() => {
                return Err(Fault::Empty.at("correction.amounts"));
            }
            _ => {}
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
