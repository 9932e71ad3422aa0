//! What the writer's task does with the stream: opening a reader, asking where it ends, appending until it is known.
//!
//! Left out: what follows from it ([`crate::core`]). Invariant: the same bytes are appended with the same expected sequence however
//! often, so at most one copy is ever in the stream; "not appended" is never concluded from silence.

use std::{sync::Arc, time::Duration};

use exchequer_stream::{AppendError, EventStream, Message, ReadError, Record};
use futures::{
    StreamExt,
    future::BoxFuture,
    stream::{BoxStream, ReadyChunks},
};
use tokio::time::{sleep, timeout};

use crate::core::{Appended, Input, ReadFault};

/// Where the ledger records what the broker lost.
const LOSS_SUBJECT: &str = "control.loss";
/// How long opening a reader or asking for the tip may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one attempt may take before its outcome counts as unknown.
const ATTEMPT: Duration = Duration::from_secs(2);
/// Records that are taken at once where they are there.
const CHUNK: usize = 256;

/// What is read, as much at once as there is.
pub(super) type Records = ReadyChunks<BoxStream<'static, Result<Record, ReadError>>>;
/// A reader, and the newest record of a loss as it was before.
pub(super) type Opening = Result<(Records, Option<Record>), ReadFault>;

pub(super) fn open(
    stream: Arc<dyn EventStream>,
    from: u64,
    after: Duration,
    with_loss: bool,
) -> BoxFuture<'static, Opening> {
    Box::pin(async move {
        sleep(after).await;
        let opening = async {
            let loss = if with_loss { stream.last(LOSS_SUBJECT).await? } else { None };
            Ok((stream.read(from, &[]).await?.ready_chunks(CHUNK), loss))
        };
        let opened = timeout(PATIENCE, opening).await;
        opened
            .unwrap_or_else(|_| Err(ReadError::Unavailable("no answer to reading".to_owned())))
            .map_err(fault)
    })
}

pub(super) fn read<T>(record: Result<Record, ReadError>) -> Input<T> {
    match record {
        Ok(record) => Input::Read(record),
        Err(error) => Input::ReadFailed(fault(error)),
    }
}

pub(super) fn ended<T>() -> Input<T> {
    Input::ReadFailed(ReadFault::Passing("the reader ended".to_owned()))
}

fn fault(error: ReadError) -> ReadFault {
    match &error {
        ReadError::Lost { .. } => ReadFault::Lost(error.to_string()),
        // What was replaced is compared again at once: it may be the ledger that did it.
        ReadError::Unavailable(_) | ReadError::Replaced { .. } => {
            tracing::warn!(%error, "reading the stream again");
            ReadFault::Passing(error.to_string())
        }
        _ => {
            tracing::warn!(%error, "reading the stream again");
            ReadFault::Lasting(error.to_string())
        }
    }
}

pub(super) fn read_tip<T: Send + 'static>(
    stream: Arc<dyn EventStream>,
    partition: u16,
    subject: String,
    probe: u64,
    after: Duration,
) -> BoxFuture<'static, Input<T>> {
    Box::pin(async move {
        sleep(after).await;
        let asking = async {
            let tip = stream.tip().await?;
            Ok((tip, stream.last(&subject).await?.map_or(0, |record| record.seq)))
        };
        let ends = match timeout(PATIENCE, asking).await {
            Ok(ends) => ends.map_err(|error: ReadError| error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        };
        if let Err(error) = &ends {
            tracing::warn!(partition, error, "the stream's last sequence could not be asked for");
        }
        Input::Tip { partition, probe, ends }
    })
}

pub(super) fn append<T: Send + 'static>(
    stream: Arc<dyn EventStream>,
    partition: u16,
    block: u64,
    message: Message,
    after: Duration,
) -> BoxFuture<'static, Input<T>> {
    Box::pin(async move {
        if !after.is_zero() {
            sleep(after).await;
        }
        Input::Appended { partition, block, outcome: attempt(&*stream, message).await }
    })
}

async fn attempt(stream: &dyn EventStream, message: Message) -> Appended {
    let (subject, expected) = (message.subject.clone(), message.expect_last);
    match timeout(ATTEMPT, stream.append(message)).await {
        Err(_) => Appended::Unknown("no acknowledgement".to_owned()),
        Ok(Ok(stream_seq)) => Appended::Acked(stream_seq),
        Ok(Err(AppendError::WrongLast { .. })) => match timeout(ATTEMPT, stream.last(&subject)).await {
            Err(_) => Appended::Unknown("no answer to the reading back".to_owned()),
            Ok(Err(error)) => Appended::Unknown(error.to_string()),
            Ok(Ok(last)) => {
                let last = last.map_or(0, |record| record.seq);
                if Some(last) == expected {
                    // Something is on its way to the subject and not there yet.
                    return Appended::Unknown("an append to the subject is in flight".to_owned());
                }
                Appended::Overtaken(last)
            }
        },
        Ok(Err(error @ (AppendError::Unknown(_) | AppendError::Unavailable(_) | AppendError::Full(_)))) => {
            Appended::Unknown(error.to_string())
        }
        Ok(Err(error @ (AppendError::TooLarge { .. } | AppendError::Invalid(_)))) => {
            Appended::Impossible(error.to_string())
        }
    }
}
