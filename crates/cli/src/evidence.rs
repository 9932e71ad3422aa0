//! Evidence: checking a log, and carrying a part of it away so that somebody else can check it.
//!
//! - [`verify`](verify::verify) checks an evidence pack, a receipt, evidence in lines, a directory of segments, a log directory or a log behind a
//!   URL, and says which entry is wrong.
//! - [`export`](export::export) writes an evidence pack (one tar file with entries, proofs, keys and how to verify them) or lines of
//!   JSON; [`follow`](export::follow::follow) writes one segment after the other.
//! - [`fetch`](receipt::fetch::fetch) makes the receipt of one decision of metering.
//!
//! Left out: talking to people. Invariant: a report says [`Holds`](report::Verdict::Holds) only if every byte that the signed tree
//! covers was read and every check was made.

pub mod event_at;
pub mod export;
pub mod lines;
pub mod pack;
pub mod receipt;
pub mod report;
pub mod saved;
pub mod state;
pub mod verify;

mod keys;
mod load;
mod log;
mod mismatch;
mod pack_check;
mod records;
mod segments;
mod selection;
mod signatures;
mod source;
mod tree;

#[cfg(test)]
mod tests;
