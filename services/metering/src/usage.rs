//! Usage: what an execution costs ([`amounts`]), and how much was used when, by scope, skill and agent.
//!
//! The second is a projection: [`UsageProjection`] follows the whole stream by itself, adds up what accepted blocks record, and keeps it
//! in a sled directory from which any range of minutes is answered as of any log index. The directory is derived: it can be deleted at
//! any moment, and is rebuilt from the stream to the same answers.
//!
//! Left out: budgets ([`crate::Fold`]) and permissions (the caller of `query_usage`). Invariant: an answer is a function of the
//! log's entries before its index alone; how they were cut into flushes, or how often the directory was rebuilt, does not show.

mod calendar;
mod charge;
mod follow;
mod gather;
mod grpc;
mod page;
mod projection;
mod query;
mod record;
mod rows;
mod store;
mod tally;
#[cfg(test)]
mod tests;
mod windows;

pub use charge::{Charge, amounts};
pub(crate) use grpc::query_usage;
pub use projection::UsageProjection;
pub(crate) use projection::UsageReader;
