//! The ledger: turns the ordered stream into a C2SP tlog-tiles Merkle log with signed checkpoints, and serves it.
//!
//! [`Service::start`] recovers the log of a data directory and runs: ingest → integrate → store → sign → have cosigned → receipts. What is served
//! (gRPC by [`Service::grpc`], files by [`Service::http`]) is what a signed checkpoint covers.
//!
//! A [`witness::Witness`] is the other side: it cosigns the checkpoints of other logs.
//!
//! Left out: listening, authentication (the layer in front of it puts the caller into each request), export.
//! Invariant: what is published is durable, is a prefix of what any replica of the same stream builds, and was compared with the
//! checkpoint before it, whichever replica published that.

mod control;
mod fsck;
mod genesis;
mod grpc;
mod http;
mod index;
mod ingest;
mod integrate;
mod key;
mod metrics;
mod mirror;
mod options;
mod query;
mod refill;
mod service;
mod sign;
mod snapshot;
mod standing;
mod store;
pub mod witness;

pub use fsck::{Class, CouldNotCheck, Finding, FsckOptions, FsckReport, RepairSource, fsck};
pub use integrate::{Integrated, Prepared, integrate};
pub use mirror::MirrorOptions;
pub use options::{Enrolment, Options, public_paths};
pub use service::{GenesisError, Service, StartError};
pub use store::{OpenError, StoreError};
