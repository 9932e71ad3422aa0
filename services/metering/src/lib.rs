//! Metering: owns a partition of the budgets, decides, journals the decisions in signed blocks, follows usage, serves.
//!
//! The budgets are a fold over `budget.<partition>` alone ([`Fold`]); one writer task (`writer`) decides what waits in blocks
//! ([`propose()`]), appends them, and answers from what the fold accepted. Executions settle their holds by their recorded events
//! ([`usage`]). Snapshots in sled ([`Snapshots`]) shorten a restart and mean nothing.
//!
//! Nothing is forgotten: closed holds, and for each idempotency key the answer and its block, are kept for good. Memory, snapshots
//! and the time that a snapshot takes grow with the partition's history; there is no bound yet.
//!
//! Left out: windows, rates and prices (`exchequer-budget`), forwarding to the owner, listening and authentication (the server
//! around [`Service`]). Invariant: nothing is answered as decided before it is durable, accepted and part of the fold.

mod api;
mod ask;
mod block;
mod fold;
mod lease;
mod metrics;
mod options;
mod propose;
mod service;
mod snapshots;
pub mod usage;
mod writer;

pub use fold::{ANSWER_CONTEXT, Fold, Folded, Read};
pub use options::Options;
pub use propose::{Answer, Proposal, propose};
pub use service::{Position, Service, StartError};
pub use snapshots::{SNAPSHOT_CONTEXT, Snapshots};
