//! Leases as values of a NATS bucket, taken by compare-and-swap on the value's revision.
//!
//! Time: a lease has run out when the broker's clock is past the stored time of its value plus its time to live. Both are the
//! broker's own times (it stamps the value, and its answer to a request for information tells its present time), so clocks of
//! holders and contenders don't matter. A holder counts from before it sent its request, by its own monotonic clock, hence never
//! longer than the broker does. What remains: a broker whose wall clock jumps forward (or a new leader whose clock is ahead) ends
//! a lease early. Then two holders overlap for a moment; the epoch and the expected last sequence of what they append tell them
//! apart, which is why those, and not the lease, guard the stream.
//!
//! Left out: fencing of appends. Invariant: of two that see the same revision only one succeeds, and the epoch rises with it.

use std::time::{Duration, Instant};

use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{JetStream, unix_ms};
use crate::local::leases::check;
use crate::stream::{AppendError, Lease, LeaseError, LeaseOutcome, ReadError};

/// Attempts against others that change the value at the same time.
const ATTEMPTS: u32 = 5;
/// Wait before a value that changed meanwhile is looked at again, times the attempts so far: a replica may answer with what it was.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Serialize, Deserialize)]
struct Value {
    /// Empty when released.
    holder: String,
    epoch: u64,
    ttl_ms: u64,
}

struct Stored {
    value: Value,
    revision: u64,
    time_unix_ms: u64,
}

impl JetStream {
    fn lease_subject(&self, name: &str) -> String {
        format!("$KV.{}_leases.{name}", self.options.stream_name())
    }

    async fn stored_lease(&self, name: &str) -> Result<Option<Stored>, LeaseError> {
        let unavailable = |e: ReadError| LeaseError::Unavailable(e.to_string());
        let Some(raw) = self.last_raw(&self.leases, &self.lease_subject(name)).await.map_err(unavailable)?
        else {
            return Ok(None);
        };
        let value = serde_json::from_slice(&raw.payload)
            .map_err(|e| LeaseError::Unavailable(format!("the value of lease {name} is not a lease: {e}")))?;
        Ok(Some(Stored { value, revision: raw.sequence, time_unix_ms: unix_ms(raw.time) }))
    }

    async fn store_lease(&self, name: &str, value: &Value, revision: u64) -> Result<u64, AppendError> {
        let bytes = Bytes::from(serde_json::to_vec(value).expect("strings and numbers"));
        let size = bytes.len();
        let message = PublishMessage::build().payload(bytes).expected_last_subject_sequence(revision);
        self.publish(&self.leases, self.lease_subject(name), message, size).await?.await
    }

    /// The present time by the clock that stamps the values.
    async fn broker_time(&self) -> Result<u64, LeaseError> {
        #[derive(Deserialize)]
        struct Info {
            ts: String,
        }
        let unavailable =
            |e: &dyn std::fmt::Display| LeaseError::Unavailable(format!("no time from the broker: {e}"));
        let subject = format!("$JS.API.STREAM.INFO.{}", self.leases.cached_info().config.name);
        let answer = self.client.request(subject, Bytes::new()).await.map_err(|e| unavailable(&e))?;
        let info: Info = serde_json::from_slice(&answer.payload).map_err(|e| unavailable(&e))?;
        Ok(unix_ms(async_nats::datetime::parse_rfc3339(&info.ts).map_err(|e| unavailable(&e))?))
    }

    pub(super) async fn take_lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<LeaseOutcome, LeaseError> {
        check(name, holder, ttl)?;
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut last_error = AppendError::WrongLast { actual: None };
        for attempt in 0..ATTEMPTS {
            tokio::time::sleep(PAUSE * attempt).await;
            let stored = self.stored_lease(name).await?;
            let (revision, epoch) = stored.as_ref().map_or((0, 1), |s| (s.revision, s.value.epoch + 1));
            if let Some(Stored { value, time_unix_ms, .. }) =
                stored.filter(|s| !s.value.holder.is_empty() && s.value.holder != holder)
            {
                let expires_ms = (time_unix_ms + value.ttl_ms).saturating_sub(self.broker_time().await?);
                if expires_ms > 0 {
                    return Ok(LeaseOutcome::HeldBy {
                        holder: value.holder,
                        expires_in: Duration::from_millis(expires_ms),
                    });
                }
            }
            let deadline = Instant::now() + ttl;
            match self.store_lease(name, &Value { holder: holder.to_owned(), epoch, ttl_ms }, revision).await
            {
                Ok(revision) => {
                    let (name, holder) = (name.to_owned(), holder.to_owned());
                    return Ok(LeaseOutcome::Held(Lease { name, holder, epoch, ttl, revision, deadline }));
                }
                // Looked at again: if an unknown write was ours, the next attempt takes over from it.
                Err(error @ (AppendError::WrongLast { .. } | AppendError::Unknown(_))) => last_error = error,
                Err(error) => return Err(LeaseError::Unavailable(error.to_string())),
            }
        }
        Err(LeaseError::Unavailable(format!("lease {name} kept changing: {last_error}")))
    }

    pub(super) async fn prolong_lease(&self, lease: &Lease) -> Result<Lease, LeaseError> {
        let ttl_ms = u64::try_from(lease.ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut revision = lease.revision;
        let mut last_error = AppendError::WrongLast { actual: None };
        for _ in 0..ATTEMPTS {
            let deadline = Instant::now() + lease.ttl;
            let value = Value { holder: lease.holder.clone(), epoch: lease.epoch, ttl_ms };
            match self.store_lease(&lease.name, &value, revision).await {
                Ok(revision) => {
                    return Ok(Lease { revision, deadline, ..lease.clone() });
                }
                Err(error @ (AppendError::WrongLast { .. } | AppendError::Unknown(_))) => last_error = error,
                Err(error) => return Err(LeaseError::Unavailable(error.to_string())),
            }
            // An earlier renewal of ours whose answer was lost may have moved the revision; the epoch tells.
            match self.stored_lease(&lease.name).await? {
                Some(s) if s.value.epoch == lease.epoch && s.value.holder == lease.holder => {
                    revision = s.revision;
                }
                Some(s) => {
                    let now = if s.value.holder.is_empty() {
                        "released".to_owned()
                    } else {
                        format!("held by {}", s.value.holder)
                    };
                    return Err(LeaseError::Lost(format!(
                        "{} is now {now}, epoch {}",
                        lease.name, s.value.epoch
                    )));
                }
                None => {
                    return Err(LeaseError::Lost(format!("{} is gone from the broker", lease.name)));
                }
            }
        }
        Err(LeaseError::Unavailable(format!("lease {} kept changing: {last_error}", lease.name)))
    }

    pub(super) async fn give_back_lease(&self, lease: &Lease) -> Result<(), LeaseError> {
        let released = Value { holder: String::new(), epoch: lease.epoch, ttl_ms: 0 };
        match self.store_lease(&lease.name, &released, lease.revision).await {
            Ok(_) | Err(AppendError::WrongLast { .. }) => Ok(()),
            Err(error) => Err(LeaseError::Unavailable(error.to_string())),
        }
    }
}
