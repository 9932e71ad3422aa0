//! What a running spool says of itself.
//!
//! Left out: a spool that no agent has open (`inspect.rs`). Invariant: it is read from the spool when it is asked for.

use exchequer_event::v1;
use prost::Message as _;

use super::{Spool, lock};

impl Spool {
    /// The state as it is reported.
    pub async fn status(&self) -> v1::GetSpoolStatusResponse {
        let (seq, hash) = *self.head.lock().await;
        let refusing = self.check_room().err().map(|error| error.to_string());
        let (confirmed, open_executions) = {
            let confirmed = self.confirmed();
            let open = confirmed.running.values().filter(|of| of.finished.is_none());
            (confirmed.seq, open.count() as u64)
        };
        let (publishing_trouble, audit_log_trouble) = {
            let troubles = lock(&self.troubles);
            (troubles.publishing.clone(), troubles.audit_log.clone())
        };
        let reader = self.reader();
        let oldest = tokio::task::spawn_blocking(move || reader.read(confirmed + 1, 1)).await;
        let oldest = oldest.ok().and_then(Result::ok).and_then(|entries| entries.into_iter().next());
        let oldest =
            oldest.and_then(|entry| v1::Event::decode(entry.body).ok()).map(|event| event.time_unix_ms);
        v1::GetSpoolStatusResponse {
            written: Some(self.position(seq, hash)),
            confirmed: Some(v1::AgentHead {
                agent_id: self.agent_id.clone(),
                epoch: self.epoch,
                seq: confirmed,
                ..v1::AgentHead::default()
            }),
            kept_events: (self.tip() + 1).saturating_sub(self.first()),
            kept_bytes: self.kept_bytes(),
            limit_bytes: self.limit,
            oldest_unconfirmed_unix_ms: oldest.unwrap_or_default(),
            oldest_unconfirmed_age_ms: oldest.map_or(0, |then| (self.clock)().saturating_sub(then)),
            open_executions,
            refusing: refusing.unwrap_or_default(),
            publishing_trouble: publishing_trouble.unwrap_or_default(),
            condemned: self.condemned.get().cloned().unwrap_or_default(),
            audit_log_trouble: audit_log_trouble.unwrap_or_default(),
            pruning_trouble: self.pruning_trouble().unwrap_or_default(),
        }
    }
}
