//! The number of partitions, on which all instances of a stream agree once and for good.
//!
//! It stands in a latest value of the stream; the first instance sets it. Left out: changing it, since a tenant's decisions would then
//! lie in two chains. Invariant: an instance with another number does not start.

use std::time::Duration;

use exchequer_stream::{AppendError, EventStream, ReadError};
use tokio::time::{Instant, sleep};

use crate::partition;

/// The key of the value: the number, in decimal digits.
const KEY: &str = "metering.partitions";
/// How long the stream may be out of reach at the start.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(200);

/// Why there is no agreement.
#[derive(Debug)]
pub(crate) enum Disagreement {
    /// The stream has another number.
    Another(String),
    /// It could not be asked.
    Unreachable(String),
}

/// The number that a stream has, whoever asks: what was agreed on, or 1 where nothing was.
pub async fn agreed(stream: &dyn EventStream) -> Result<u16, ReadError> {
    let Some((value, _)) = stream.latest(KEY).await? else { return Ok(1) };
    let number = std::str::from_utf8(&value).ok().and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| ReadError::Unavailable(format!("{KEY} holds no number of partitions")))
}

/// Agrees on `partitions`, or finds that another number was agreed on.
pub(crate) async fn agree(stream: &dyn EventStream, partitions: u16) -> Result<(), Disagreement> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt(stream, partitions).await {
            Ok(agreed) if agreed == partitions.to_string() => return Ok(()),
            Ok(agreed) => return Err(Disagreement::Another(agreed)),
            Err(Some(why)) if Instant::now() >= deadline => return Err(Disagreement::Unreachable(why)),
            Err(_) => sleep(RETRY).await,
        }
    }
}

/// The number agreed on; no reason, if another instance was first and has to be looked at.
async fn attempt(stream: &dyn EventStream, partitions: u16) -> Result<String, Option<String>> {
    let unread = |error: ReadError| Some(error.to_string());
    if let Some((value, _)) = stream.latest(KEY).await.map_err(unread)? {
        return Ok(String::from_utf8_lossy(&value).into_owned());
    }
    // A stream from before there was an agreement has one partition.
    let first = exchequer_event::name::budget_subject(&partition::name(0));
    if partitions != 1 && stream.last(&first).await.map_err(unread)?.is_some() {
        return Ok("1".to_owned());
    }
    match stream.put_latest_if(KEY, partitions.to_string().into(), 0).await {
        Ok(_) => Ok(partitions.to_string()),
        Err(AppendError::WrongLast { .. }) => Err(None),
        Err(error) => Err(Some(error.to_string())),
    }
}
