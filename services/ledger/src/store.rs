//! The log on disk: a C2SP log directory, the state that says how much of it counts, and all checkpoints ever signed.
//!
//! ```text
//! DATA/lock                       held while a process has the log open
//! DATA/state                      size, root, stream cursor; swapped as a whole
//! DATA/checkpoints/<n>            every checkpoint in order, in segments
//! DATA/log/checkpoint             the newest
//! DATA/log/tile/<L>/<N>[.p/<W>]   hash tiles
//! DATA/log/tile/entries/<N>[.p/<W>]
//! DATA/staging/                   files before they replace others
//! ```
//!
//! [`open`] recovers, [`LogWriter`] commits, [`CheckpointLog`] signs and publishes, [`LogReader`] reads. Left out: what entries mean.
//! Invariant: entries and tiles are durable before the state names them, and the state is durable before a checkpoint covers it.

mod checkpoints;
pub(crate) mod files;
pub(crate) mod frame;
mod open;
mod read;
mod state;
mod write;

#[cfg(test)]
pub(crate) mod faults;

pub(crate) use checkpoints::{CheckpointLog, LogKeys, LogSigner, Quorum, SignError};
pub(crate) use files::{Disk, Files};
pub(crate) use frame::{encode_frame, split_frame};
pub use open::OpenError;
pub(crate) use open::{Opened, open};
pub(crate) use read::LogReader;
pub use read::StoreError;
pub(crate) use state::{Position, message_digest};
pub(crate) use write::{LogWriter, Places, swap_in};

/// Most records that one integration takes.
pub(crate) const MAX_INTEGRATION_RECORDS: usize = 4096;
/// Payload bytes after which an integration takes no further record.
pub(crate) const MAX_INTEGRATION_BYTES: usize = 8 * 1024 * 1024;
/// More bundles than one integration can touch: an event's entry has well over 40 bytes.
pub(crate) const MAX_INTEGRATION_BUNDLES: u64 = 2048;
