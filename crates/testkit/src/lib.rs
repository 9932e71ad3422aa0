//! Dev-only: real parts for tests.
//!
//! Left out: fakes. Invariant: what it starts, it stops; what it can't start, it says how to get.

mod agent;
mod eventually;
mod nats;

pub use agent::{FIRST_TIME_UNIX_MS, SimAgent};
pub use eventually::eventually;
pub use nats::{NatsServer, Sync};

/// A temporary directory, removed when dropped.
pub fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("exchequer-").tempdir().expect("a temporary directory")
}
