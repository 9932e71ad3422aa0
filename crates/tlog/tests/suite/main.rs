//! The crate against an independent oracle, other implementations, known answers and bad input.
#![allow(clippy::unwrap_used, missing_docs)]

mod decoders;
mod exactness;
mod interop;
mod notes;
mod oracle;
mod proofs;
mod tlog_proofs;
mod tree;
mod witnesses;
