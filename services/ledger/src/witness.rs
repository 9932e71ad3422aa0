//! Witnesses (C2SP tlog-witness), both sides: a [`Witness`] cosigns other logs' checkpoints, and a ledger asks witnesses for theirs.
//!
//! - `decide`: what a witness answers. No IO.
//! - `register`: what it holds of each log, compared and made durable before a cosignature exists.
//! - `server`: the HTTP around both.
//! - `client`: the ledger's side.
//!
//! Left out: listening, and the request's format (`exchequer_tlog::AddCheckpoint`). Invariant: per origin, the trees that a witness
//! cosigns each continue the one before, whatever is asked at the same time and whenever the process or the machine ends.

pub(crate) mod client;
mod decide;
mod register;
mod server;

pub use client::{MAX_WITNESSES, WitnessAddress};
pub use server::{MAX_REQUEST_BYTES, Witness, WitnessOptions, WitnessedLog};

/// Content type of a size (tlog-witness, "add-checkpoint").
const SIZE_TYPE: &str = "text/x.tlog.size";
