//! Budgets as a pure fold: commands, events, state, decide and evolve.
//!
//! [`decide`] looks at a [`State`] and a [`Command`] and says which events happen; [`State::record`] applies them, live and at
//! replay alike. A budget is one total per scope and meter over its life; windows, grants, rates and prices are not here.
//! There is no clock, randomness, IO, async or logging in this crate: `now` and hold ids are passed in.
//!
//! Invariants, checked by [`State::check`]:
//! - `granted = available + held + spent - debt` per scope and meter, and never both `available` and `debt`;
//! - `held` is the sum of the open holds at the scope and below, `spent` the sum of what was settled there;
//! - no hold is granted that any enclosing budget does not cover in full.
//!
//! A state keeps closed holds and answered idempotency keys for good: it grows with history, without a bound yet.
//!
//! Arithmetic can't overflow: an amount is at most [`MAX_AMOUNT`] (2^48), a grant at most [`MAX_GRANTED`] (2^62), and sums over
//! holds are `u128`, which 2^80 settlements of the largest amount would be needed to fill.

mod command;
mod decide;
mod event;
mod fault;
mod id;
mod meter;
mod scope;
mod snapshot;
mod state;
pub mod wire;

pub use command::{Action, Command, Idempotency, MAX_TTL_MS, MIN_TTL_MS, Ttl};
pub use decide::{DecideError, Decided, SWEEP_MAX, decide, sweep};
pub use event::{Decision, DecisionRun, Denial, Event, Refusal};
pub use fault::{Fault, Invalid};
pub use id::{HoldId, IdempotencyKey, Subject, TenantId};
pub use meter::{Allowance, Amounts, MAX_AMOUNT, MAX_GRANTED, Meter, Totals};
pub use scope::{MAX_SEGMENTS, ScopePath};
pub use snapshot::{STATE_CONTEXT, SnapshotError};
pub use state::{Balance, Broken, Hold, HoldStatus, State, Usage};
