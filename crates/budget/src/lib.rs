//! Budgets as a pure fold: commands, events, state, decide and evolve.
//!
//! [`decide`] looks at a [`State`], a [`Past`] and a [`Command`] and says which events happen; [`sweep`] says what time brings;
//! [`State::record`] applies events, live and at replay alike. There is no clock, randomness, IO, async or logging in this crate:
//! `now` and hold ids are passed in. Windows on a calendar are reckoned from the bundled tz database when they are decided, and
//! recorded; applying what is recorded needs none.
//!
//! Invariants, checked by [`State::check`]:
//! - `granted = available + held + spent - debt` per budget, and never both `available` and `debt`;
//! - `held` is the sum of the open holds at the scope and below;
//! - no hold is granted that any enclosing hard budget does not cover in full, an overdraft included.
//!
//! Costs are reckoned at the prices of the moment: of a hold when it is granted, of usage when it is recorded, all usage of one hold
//! rounded up once. What stays within its hold costs no more than was held for it, unless a price is raised in between: then the
//! difference is spent beyond the hold, as debt where nothing is left.
//!
//! A state keeps what is live; what is over goes to the [`Past`], which is compact and never forgets.
//!
//! Arithmetic can't overflow: an amount is at most [`MAX_AMOUNT`] (2^48), what a budget grants at most [`MAX_GRANTED`] (2^62), a
//! grant at most [`MAX_GRANT`] (2^55), and sums are `u128`, which 2^80 settlements of the largest amount would be needed to fill;
//! there they saturate.

mod budget;
mod calendar;
mod command;
mod decide;
mod event;
mod evolve;
mod fault;
mod id;
mod meter;
mod past;
mod policy;
mod price;
mod rate;
mod scope;
mod snapshot;
mod state;
mod sweep;
pub mod wire;

pub use budget::{Balance, Budget, Grant};
pub use command::{Action, Command, Idempotency, MAX_TTL_MS, MIN_TTL_MS, Ttl};
pub use decide::{
    DecideError, Decided, MAX_AHEAD_MS, MAX_BUDGETS, MAX_CONCURRENCY_LIMITS, MAX_GRANTS,
    MAX_GRANTS_PER_BUDGET, MAX_HOLDS, MAX_NOTIFICATIONS, MAX_PRICES, MAX_RATE_LIMITS, MAX_REACHED,
    MAX_SCOPES, decide, preview,
};
pub use event::{
    Decision, DecisionRun, Denial, Event, Exceeded, MAX_EXCEEDED, MAX_UNCHARGED, Reached, Refusal, Uncharged,
};
pub use fault::{Fault, Invalid};
pub use id::{GrantId, HoldId, IdempotencyKey, Label, Subject, TenantId, WebhookUrl, Zone};
pub use meter::{
    Allowance, Amounts, CustomMeter, MAX_AMOUNT, MAX_CUSTOM_METERS, MAX_GRANTED, MAX_METER_NAME, MAX_METERS,
    Meter, Totals,
};
pub use past::{PAST_CONTEXT, PAST_ID_CONTEXT, Past, PastAnswer, PastError, PastHold, ROW_BYTES, Rows};
pub use policy::{
    BudgetTerms, Correction, Enforcement, GrantTerms, MAX_GRANT, MAX_PERCENT, MAX_PERIOD_MS, MAX_THRESHOLDS,
    Overage, Price, RateLimit, Source, Threshold, Window,
};
pub use scope::{MAX_SEGMENTS, ScopePath};
pub use snapshot::{STATE_CONTEXT, SnapshotError};
pub use state::{Broken, BudgetView, Hold, HoldStatus, OpenHolds, Settings, State, Usage};
pub use sweep::{SWEEP_MAX, sweep};
