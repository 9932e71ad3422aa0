//! Metering as a whole: over the embedded stream and a real nats-server, through gRPC with real tokens.
#![allow(clippy::unwrap_used, missing_docs)]

mod calls;
mod crash;
mod fencing;
mod load;
mod loss;
mod partitions;
mod restart;
mod settlement;
mod world;
