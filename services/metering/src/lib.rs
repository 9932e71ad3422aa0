//! Metering: owns partitions of the budgets, decides, journals the decisions in signed blocks, follows usage, serves.
//!
//! The budgets are a fold over the stream's blocks alone ([`Fold`]). The protocol of the writers is without IO ([`core`]); one task
//! (`writer`) carries out what it says: reads the stream, appends blocks, answers. Each instance folds every partition, writes those
//! whose lease it holds (`lease`) and hands calls for the others to their owners ([`Router`]). Executions settle their holds by their
//! recorded events ([`usage`]). Thresholds that are reached are told to the tenants' webhooks (`notify`). Snapshots in sled
//! ([`Snapshots`]) shorten a restart and mean nothing.
//!
//! Nothing is forgotten: of each closed hold and each answered idempotency key, a row of 40 bytes says in which block of the stream it
//! is to be read back.
//!
//! Left out: windows, rates and prices (`exchequer-budget`), listening and authentication (the server around [`Service`]).
//! Invariant: nothing is answered as decided before it is durable, accepted and part of the fold.

mod agreement;
mod api;
mod ask;
pub mod core;
mod fold;
mod lease;
mod metrics;
mod notify;
mod options;
pub mod partition;
mod propose;
mod queue;
mod recall;
mod route;
mod service;
mod snapshots;
pub mod usage;
mod writer;

pub use agreement::agreed;
pub use fold::{Fold, Folded, Read};
pub use notify::{AllowedHost, WEBHOOK_RETRIES};
pub use options::Options;
pub use propose::{Answer, Proposal, propose};
pub use route::{FORWARDED, Peer, Route, Router};
pub use service::{Position, Service, StartError};
pub use snapshots::{SNAPSHOT_CONTEXT, Snapshots};
