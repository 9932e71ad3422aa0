//! When the writer stores a snapshot, and the comparison that comes with it.
//!
//! Left out: what a snapshot is ([`crate::snapshots`]). Invariant: none is stored while a block is in flight, or of a stream that
//! turned out to be another.

use std::sync::Arc;

use tokio::time::Instant;

use super::Writer;
use crate::snapshots;

/// A snapshot may take one part in this many of the writer's time.
const SNAPSHOT_SHARE: u32 = 20;

impl Writer {
    pub(super) fn snapshot_if_due(&mut self) {
        if Instant::now() >= self.snapshot_at && self.in_flight.is_none() {
            let is_storing = self.storing.as_ref().is_some_and(|storing| !storing.is_finished());
            if !is_storing {
                let began = Instant::now();
                self.store_snapshot();
                let pause = self.options.snapshot_interval.max(began.elapsed() * SNAPSHOT_SHARE);
                self.snapshot_at = Instant::now() + pause;
            }
        }
    }

    pub(super) fn store_snapshot(&mut self) {
        let shared = Arc::clone(&self.shared);
        let fold = shared.fold();
        if fold.cursor == self.snapshot_cursor || self.foreign.is_some() {
            return;
        }
        if self.in_flight.is_none() && self.speculative != fold.budget {
            shared.metrics.snapshot_faults.add(1, &[]);
            tracing::error!(cursor = fold.cursor, "what was decided is not what was recorded: a defect");
            self.speculative = fold.budget.clone();
        }
        let (cursor, bytes) = (fold.cursor, snapshots::encode(&fold));
        drop(fold);
        self.snapshot_cursor = cursor;
        let snapshots = self.snapshots.clone();
        self.storing = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = snapshots.store(cursor, bytes) {
                shared.metrics.snapshot_faults.add(1, &[]);
                tracing::warn!(%error, "a snapshot could not be stored");
            }
        }));
    }
}
