//! What happened, as it is journaled. The wire form is `wire.rs`'s business.

use std::sync::Arc;

use crate::{
    command::Idempotency,
    id::{GrantId, HoldId, Label, Subject, TenantId, WebhookUrl},
    meter::{Amounts, Meter},
    policy::{BudgetTerms, Correction, Enforcement, GrantTerms, Price, RateLimit, Source, Threshold, Window},
    scope::ScopePath,
};

/// One change of budget state, or a refusal. Times are milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Budgets of a scope were set.
    BudgetSet {
        /// The scope.
        scope: ScopePath,
        /// Their terms.
        terms: Arc<BudgetTerms>,
        /// Beginning of the present window; 0 over all time.
        start_ms: u64,
        /// Its end; 0 over all time.
        end_ms: u64,
    },
    /// Budgets limit nothing any more; their grants ended with them.
    BudgetRemoved {
        /// The scope.
        scope: ScopePath,
        /// The window.
        window: Window,
        /// The meters, in canonical order. Not empty.
        meters: Vec<Meter>,
    },
    /// A grant was added to a budget.
    GrantAdded(Arc<GrantTerms>),
    /// A grant that was to begin later began.
    GrantBegun {
        /// The grant.
        grant_id: GrantId,
    },
    /// A grant ended.
    GrantEnded {
        /// The grant.
        grant_id: GrantId,
        /// Whether somebody ended it before its time.
        revoked: bool,
        /// What was left of it.
        remainder: u64,
    },
    /// A scope's budgets over one window: it ended and the next began.
    WindowRolled {
        /// The scope.
        scope: ScopePath,
        /// The window.
        window: Window,
        /// Beginning of the new window.
        start_ms: u64,
        /// Its end.
        end_ms: u64,
    },
    /// A hold was granted.
    HoldGranted {
        /// The hold.
        hold_id: HoldId,
        /// The scope that it was asked for.
        scope: ScopePath,
        /// Who may extend, settle or void it.
        holder: Subject,
        /// What is held, the cost included.
        amounts: Amounts,
        /// When it runs out.
        expires_ms: u64,
        /// Whether its holder may draw from it.
        lease: bool,
        /// Soft and shadow budgets that do not cover it, at most [`MAX_EXCEEDED`].
        exceeded: Vec<Exceeded>,
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
        /// What is held in addition, the cost included.
        added: Amounts,
        /// When it runs out now.
        expires_ms: u64,
        /// Soft and shadow budgets that do not cover it, at most [`MAX_EXCEEDED`].
        exceeded: Vec<Exceeded>,
    },
    /// A hold was settled.
    HoldSettled {
        /// The hold.
        hold_id: HoldId,
        /// Its scope.
        scope: ScopePath,
        /// What was used, in full.
        used: Amounts,
        /// Whether it had run out before.
        late: bool,
        /// What the usage belongs to.
        source: Option<Arc<Source>>,
        /// What was not charged, at most [`MAX_UNCHARGED`] budgets.
        uncharged: Vec<Uncharged>,
    },
    /// A part of a lease was used.
    LeaseDrawn {
        /// The lease.
        hold_id: HoldId,
        /// Its scope.
        scope: ScopePath,
        /// What was used, in full. Not empty.
        used: Amounts,
        /// Whether it had run out before.
        late: bool,
        /// What the usage belongs to.
        source: Option<Arc<Source>>,
        /// What was not charged, at most [`MAX_UNCHARGED`] budgets.
        uncharged: Vec<Uncharged>,
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
    /// A hold may not be extended any more.
    HoldRevoked {
        /// The hold.
        hold_id: HoldId,
        /// Why.
        reason: Label,
    },
    /// Usage was reported that no hold covered.
    UsageReported {
        /// The scope.
        scope: ScopePath,
        /// What was used, the cost included. Not empty.
        used: Amounts,
        /// What it belongs to.
        source: Option<Arc<Source>>,
        /// What was not charged, at most [`MAX_UNCHARGED`] budgets.
        uncharged: Vec<Uncharged>,
        /// What is counted once per distinct value.
        subject: Option<Label>,
    },
    /// Usage was corrected by a compensating entry.
    UsageCorrected {
        /// The correction.
        correction: Arc<Correction>,
        /// What was not charged, at most [`MAX_UNCHARGED`] budgets.
        uncharged: Vec<Uncharged>,
    },
    /// A rate limit was set or removed.
    RateLimitSet(RateLimit),
    /// A limit on open holds was set or removed.
    ConcurrencyLimitSet {
        /// The scope.
        scope: ScopePath,
        /// Open holds at most; 0 for no limit.
        max_open_holds: u64,
    },
    /// A price was set or removed.
    PriceSet(Price),
    /// A meter of the tenant's own was defined.
    MeterDefined {
        /// The tenant.
        tenant: TenantId,
        /// The meter.
        meter: Meter,
        /// What it counts.
        description: Option<Label>,
    },
    /// Where thresholds are reported was set.
    WebhookSet {
        /// The tenant.
        tenant: TenantId,
        /// The URL; none for nowhere.
        url: Option<WebhookUrl>,
    },
    /// A threshold of a budget was reached.
    ThresholdReached(Arc<Reached>),
    /// A notification was taken by its receiver, or given up.
    NotificationEnded {
        /// Its number.
        notification: u64,
        /// Whether it was taken.
        delivered: bool,
        /// Attempts made.
        attempts: u32,
        /// The last answer or error.
        detail: Option<Label>,
    },
    /// A command was refused for another reason. Changes no balance.
    CommandRefused {
        /// Why.
        refusal: Refusal,
        /// The hold that was meant.
        hold_id: Option<HoldId>,
        /// Field of the request that is at fault.
        field: Option<Label>,
    },
}

/// Budgets that do not cover a hold and are named in it, at most: the outermost ones. More are not recorded.
pub const MAX_EXCEEDED: usize = 32;
/// Budgets that do not charge a usage in full, at most: the outermost ones. More charge it.
pub const MAX_UNCHARGED: usize = 64;

/// A soft or shadow budget that does not cover a hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// Scope of the budget.
    pub scope: ScopePath,
    /// Its window.
    pub window: Window,
    /// Its meter.
    pub meter: Meter,
    /// What was asked.
    pub requested: u64,
    /// What it had left.
    pub available: u64,
    /// Soft or shadow.
    pub enforcement: Enforcement,
}

/// Usage that a budget did not charge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uncharged {
    /// Scope of the budget.
    pub scope: ScopePath,
    /// Its window.
    pub window: Window,
    /// Its meter.
    pub meter: Meter,
    /// What was not charged: above zero.
    pub amount: u64,
}

/// A threshold that was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Scope of the budget.
    pub scope: ScopePath,
    /// Its window.
    pub window: Window,
    /// Its meter.
    pub meter: Meter,
    /// Beginning of the window; 0 over all time.
    pub window_start_ms: u64,
    /// The threshold.
    pub threshold: Threshold,
    /// Spent in the window, cut at 64 bits.
    pub spent: u64,
    /// Granted in the window, cut at 64 bits.
    pub granted: u64,
    /// For a forecast: what will be spent by the window's end, cut at 64 bits.
    pub forecast: u64,
    /// Number of the notification; 0 for none.
    pub notification: u64,
}

/// Why a hold was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// A budget has less left than was asked for; or the scope's one hold can't hold as much, which names no window's budget.
    Exhausted {
        /// The scope that binds.
        scope: ScopePath,
        /// The window that binds.
        window: Window,
        /// The meter that binds.
        meter: Meter,
        /// What was asked; for a balancing reservation, the least that was.
        requested: u64,
        /// What was left, an overdraft included: less than was asked.
        available: u64,
    },
    /// A budget is in debt.
    InDebt {
        /// The scope that binds.
        scope: ScopePath,
        /// The window that binds.
        window: Window,
        /// The meter that binds.
        meter: Meter,
        /// What was asked.
        requested: u64,
    },
    /// No enclosing scope has a budget for any meter: without one, nothing is granted.
    NoBudget,
    /// A rate limit is reached.
    RateLimited {
        /// The scope that binds.
        scope: ScopePath,
        /// The meter that binds.
        meter: Meter,
        /// What was asked.
        requested: u64,
        /// What would be granted now: less than was asked.
        available: u64,
        /// After how many milliseconds all of it would be; 0 for never: it is more than the burst.
        retry_after_ms: u64,
    },
    /// A scope has as many open holds as it may have.
    Concurrency {
        /// The scope that binds.
        scope: ScopePath,
    },
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
    /// It may not be extended any more.
    HoldRevoked,
    /// Only a lease can be drawn from.
    NotALease,
    /// The tenant has not defined the meter.
    UnknownMeter,
    /// There is no such budget.
    UnknownBudget,
    /// There is no such grant, or it has ended.
    UnknownGrant,
    /// A grant of this id was made before.
    GrantExists,
    /// More is taken back than was spent.
    BelowZero,
    /// The tenant has as many of these as it may have.
    TooMany,
    /// The time lies outside what is accepted here.
    Time,
    /// No such notification waits.
    UnknownNotification,
}

/// One command and what it did. Its first event is the caller's answer; thresholds that were reached by it follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Key and digest of the request; none for decisions that the writer makes itself.
    pub idempotency: Option<Idempotency>,
    /// Who asked.
    pub actor: Subject,
    /// What happened, in order. Never empty.
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
