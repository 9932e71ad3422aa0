//! What each command does, one fact at a time. The world looks at the equation, the snapshot and the wire form after each decision.
#![allow(clippy::unwrap_used, missing_docs)]

mod holds;
mod leases;
mod limits;
mod past;
mod policies;
mod usage;
mod windows;
mod words;
