//! Metering as a whole: over the embedded stream and a real nats-server, through gRPC with real tokens.
#![allow(clippy::unwrap_used, missing_docs)]

mod batch;
mod calls;
mod crash;
mod events;
mod fencing;
mod leases;
mod load;
mod loss;
mod partitions;
mod reports;
mod restart;
mod settings;
mod settlement;
mod usage;
mod watching;
mod webhooks;
mod world;
