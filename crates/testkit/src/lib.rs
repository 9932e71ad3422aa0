//! Dev-only: real parts for tests.
//!
//! Left out: fakes. Invariant: what it starts, it stops; what it can't start, it says how to get.

mod agent;
mod daemon;
mod eventually;
mod nats;
mod ports;
mod random;
mod small_disk;

pub use agent::{FIRST_TIME_UNIX_MS, SimAgent};
pub use daemon::Daemon;
pub use eventually::eventually;
pub use nats::{NatsCluster, NatsServer, Sync};
pub use ports::free_ports;
pub use random::Random;
pub use small_disk::small_disk;

/// A temporary directory, removed when dropped.
pub fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("exchequer-").tempdir().expect("a temporary directory")
}
