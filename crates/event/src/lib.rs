//! The records of Exchequer as bytes: how they are hashed, sealed, signed, and which of them are accepted.
//!
//! Pure: no IO, clock, randomness, logging or async. The ledger, the metering service, the agent and the offline verifier all use
//! this one implementation, so they accept the same records and reject the same records.
//!
//! - [`digest`]: BLAKE3 with one `derive_key` context per purpose.
//! - [`name`]: agent ids, tenants, execution ids, stream subjects, and their bounds.
//! - [`tree`]: the Merkle tree under a seal (`rs_merkle`).
//! - [`seal`]: batches of events and blocks of decisions: sealing, signing, and opening what somebody else sealed.
//! - [`control`]: control records and receipts.
//! - [`metered`]: what an execution uses of a machine, in meters.
//! - [`payload`]: an event's confidential payload: encrypted, committed to, opened.
//! - [`bundle`]: result bundles, which an agent signs for others to keep: DSSE, in-toto, and the execution.
//! - [`accept`]: [`Acceptor`](accept::Acceptor), the fold over the stream that turns messages into log entries.
//! - [`audit`]: [`Auditor`](audit::Auditor), the fold over log entries that a stranger runs.
//!
//! What is left out: the Merkle log over the entries (`exchequer-tlog`), budgets (`exchequer-budget`), and all transport.

pub mod accept;
pub mod audit;
pub mod bundle;
pub mod control;
pub mod digest;
pub mod entry;
mod fields;
mod lean;
pub mod metered;
pub mod name;
pub mod payload;
pub mod seal;
pub mod tree;

pub use exchequer_proto::v1;
