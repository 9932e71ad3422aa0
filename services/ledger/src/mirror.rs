//! The mirror: every published state of the log is written to an object store too, as a static C2SP log that anybody can serve.
//!
//! ```text
//! PREFIX/tile/…        bundles and hash tiles, put once
//! PREFIX/state         the signed checkpoint up to which bundles and tiles are complete; swapped by conditional put
//! PREFIX/checkpoint    the checkpoint that readers see; after the state, by conditional put
//! ```
//!
//! The data directory stays the truth of the running ledger. Left out: repair from a mirror (`fsck`). Invariant: neither state nor
//! checkpoint ever goes back or covers what is not there, whoever else writes; what is not ours is not overwritten.

mod http;
mod place;
mod push;

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use exchequer_config::Reader;
use exchequer_tlog::SignedCheckpoint;
use tokio_util::sync::CancellationToken;

pub(crate) use place::{Place, PlaceError};
pub(crate) use push::{Mirror, MirrorError};

use crate::{
    control::pause,
    metrics::Metrics,
    standing::{Part, Standing},
    store::{LogKeys, LogReader},
};

/// Where a mirror keeps its newest checkpoint; what every static log calls it.
pub(crate) const CHECKPOINT: &str = "checkpoint";

const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LAST_BACKOFF: Duration = Duration::from_secs(30);
/// How often the lag is measured while an object store is slow.
const LAG_CHECK: Duration = Duration::from_secs(5);
/// For the last checkpoint at the shutdown; what is not mirrored then is at the next start.
const LAST_PUSH: Duration = Duration::from_secs(5);

/// Where the log is mirrored to. Credentials come from the environment (`AWS_*`), never from the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorOptions {
    /// `s3://bucket/prefix` or `file:///directory`, which has to exist.
    pub url: String,
    /// Another S3 endpoint than that of AWS, such as `http://minio:9000`.
    pub endpoint: Option<String>,
    /// The bucket's region.
    pub region: Option<String>,
}

impl MirrorOptions {
    /// Reads `[ledger.mirror]`; `None` if there is none, or a fault was recorded.
    pub(crate) fn read(reader: &mut Reader) -> Option<Self> {
        let url = reader.optional::<String>("ledger.mirror.url");
        let endpoint = reader.optional::<String>("ledger.mirror.endpoint");
        let region = reader.optional::<String>("ledger.mirror.region");
        let Some(url) = url else {
            if endpoint.is_some() || region.is_some() {
                reader.fault("ledger.mirror.url", "is required where a mirror is set up");
            }
            return None;
        };
        let is_s3 = url.strip_prefix("s3://").is_some_and(|rest| !rest.starts_with('/') && !rest.is_empty());
        if !is_s3 && !url.starts_with("file:///") {
            reader.fault("ledger.mirror.url", "must be s3://bucket/prefix or file:///directory");
        }
        if !is_s3 && (endpoint.is_some() || region.is_some()) {
            reader.fault("ledger.mirror.endpoint", "endpoint and region are for s3:// only");
        }
        if endpoint.as_deref().is_some_and(|url| !url.starts_with("http://") && !url.starts_with("https://"))
        {
            reader.fault("ledger.mirror.endpoint", "must be a URL with http:// or https://");
        }
        Some(Self { url, endpoint, region })
    }
}

/// Mirrors each published checkpoint, or the newest where they come faster, until the shutdown or until the mirror turns out not to be
/// this log's.
pub(crate) async fn run(
    options: MirrorOptions,
    origin: String,
    reader: LogReader,
    standing: Arc<Standing>,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let mut published = standing.published.subscribe();
    let mut backoff = FIRST_BACKOFF;
    let mut place = None;
    let mut mirrored = 0;
    loop {
        let newest = published.borrow_and_update().clone();
        let is_last = shutdown.is_cancelled();
        let pushing = async {
            let place = match &place {
                Some(place) => place,
                None => place.insert(Place::open(&options)?),
            };
            if newest.note.is_empty() {
                return Ok(0);
            }
            let signed = SignedCheckpoint::parse(&newest.note)
                .map_err(|error| MirrorError::Foreign(format!("this log's own checkpoint: {error}")))?;
            // The keys may have changed since the last time.
            let keys = LogKeys::new(&origin, &standing.keys());
            Mirror::new(place.clone(), keys, reader.clone()).push(&signed).await
        };
        let lag = async {
            loop {
                metrics.mirrored(mirrored, standing.published.borrow().size);
                tokio::time::sleep(LAG_CHECK).await;
            }
        };
        let outcome = tokio::select! {
            outcome = pushing => outcome,
            () = lag => return,
            () = tokio::time::sleep(LAST_PUSH), if is_last => return,
            () = shutdown.cancelled(), if !is_last => continue,
        };
        let fault = match outcome {
            Ok(size) => {
                mirrored = size;
                backoff = FIRST_BACKOFF;
                None
            }
            Err(error) => Some(error),
        };
        metrics.mirrored(mirrored, standing.published.borrow().size);
        standing.report(Part::Mirror, fault.as_ref().map(ToString::to_string));
        if is_last || fault.as_ref().is_some_and(MirrorError::is_final) {
            return;
        }
        if fault.is_some() {
            if pause(backoff, &shutdown).await {
                return;
            }
            backoff = LAST_BACKOFF.min(backoff * 2);
        } else {
            tokio::select! {
                changed = published.changed() => if changed.is_err() { return },
                // Once more: the signer signed its last before this shutdown.
                () = shutdown.cancelled() => {}
            }
        }
    }
}
