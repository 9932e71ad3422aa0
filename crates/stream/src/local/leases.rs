//! Leases within one process: exclusion in memory, epochs on disk.
//!
//! Left out: other processes, which the journal's lock keeps out; so nobody holds anything when the stream is opened.
//! Invariant: an epoch is on disk before it is handed out, and each is higher than all before it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::files;
use crate::stream::{Lease, LeaseError, LeaseOutcome};
use crate::subject::{check_holder, check_key};

#[derive(Debug)]
pub(crate) struct Leases {
    dir: PathBuf,
    held: Arc<Mutex<HashMap<String, Lease>>>,
}

/// Checks what both implementations require of a lease.
pub(crate) fn check(name: &str, holder: &str, ttl: Duration) -> Result<(), LeaseError> {
    check_key(name).and_then(|()| check_holder(holder)).map_err(LeaseError::Invalid)?;
    if ttl.is_zero() || ttl > Duration::from_secs(24 * 60 * 60) {
        return Err(LeaseError::Invalid(format!(
            "time to live of {ttl:?}; more than zero and at most a day"
        )));
    }
    Ok(())
}

impl Leases {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, held: Arc::default() }
    }

    pub(super) async fn acquire(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<LeaseOutcome, LeaseError> {
        check(name, holder, ttl)?;
        let mut held = Arc::clone(&self.held).lock_owned().await;
        if let Some(other) = held.get(name).filter(|l| l.holder != holder && !l.remaining().is_zero()) {
            return Ok(LeaseOutcome::HeldBy { holder: other.holder.clone(), expires_in: other.remaining() });
        }
        let (dir, name, holder) = (self.dir.clone(), name.to_owned(), holder.to_owned());
        // The guard goes along, so that a caller who gives up doesn't let a second writer in.
        let acquired = tokio::task::spawn_blocking(move || -> std::io::Result<Lease> {
            let epoch = match std::fs::read_to_string(dir.join(&name)) {
                Ok(text) => text.trim().parse::<u64>().map_err(std::io::Error::other)? + 1,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => 1,
                Err(e) => return Err(e),
            };
            files::write_atomic(&dir, &name, epoch.to_string().as_bytes())?;
            let lease = Lease { name, holder, epoch, ttl, revision: epoch, deadline: Instant::now() + ttl };
            held.insert(lease.name.clone(), lease.clone());
            Ok(lease)
        });
        let unavailable = |e: String| LeaseError::Unavailable(format!("cannot raise a lease's epoch: {e}"));
        let acquired = acquired.await.map_err(|e| unavailable(e.to_string()))?;
        Ok(LeaseOutcome::Held(acquired.map_err(|e| unavailable(e.to_string()))?))
    }

    pub(super) async fn renew(&self, lease: &Lease) -> Result<Lease, LeaseError> {
        let mut held = self.held.lock().await;
        match held.get_mut(&lease.name).filter(|l| l.epoch == lease.epoch) {
            Some(current) => {
                current.deadline = Instant::now() + lease.ttl;
                Ok(current.clone())
            }
            None => {
                Err(LeaseError::Lost(format!("{} is no longer held under epoch {}", lease.name, lease.epoch)))
            }
        }
    }

    pub(super) async fn release(&self, lease: &Lease) {
        let mut held = self.held.lock().await;
        if held.get(&lease.name).is_some_and(|l| l.epoch == lease.epoch) {
            held.remove(&lease.name);
        }
    }
}
