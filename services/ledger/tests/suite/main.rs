//! The ledger as a whole, over the embedded stream and over a real nats-server.
#![allow(clippy::unwrap_used, missing_docs)]

mod beside;
mod fsck;
mod ha;
mod http;
mod integrate;
mod keys;
mod listing;
mod mirror;
mod pipeline;
mod refill;
mod rpc;
mod support;
mod witnesses;
