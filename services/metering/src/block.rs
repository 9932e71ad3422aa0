//! One block on its way: appending it until it is known whether it is in the stream.
//!
//! Left out: making it ([`crate::propose`]) and seeing it accepted ([`crate::fold`]). Invariant: the same bytes are appended with
//! the same expected sequence however often, so at most one copy is ever in the stream; "not appended" is never concluded from
//! silence.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use exchequer_budget::{Command, DecideError, Event};
use exchequer_stream::{AppendError, EventStream, Message};
use futures::future::BoxFuture;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use crate::propose::Answer;

/// How long one attempt may take before its outcome counts as unknown.
const ATTEMPT: Duration = Duration::from_secs(2);

/// A command that waits for its answer.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) command: Command,
    pub(crate) reply: oneshot::Sender<Result<Answered, Unanswered>>,
    /// The caller's span. A block carries the trace of its first command.
    pub(crate) span: tracing::Span,
}

/// A durable answer.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) reply: Event,
    /// Stream sequence of the block that records it.
    pub(crate) stream_seq: u64,
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(crate) enum Unanswered {
    Refused(DecideError),
    /// Not decided, or not known to be; asking again with the same key is safe.
    Unavailable(String),
}

/// A block that was handed to the stream.
pub(crate) struct InFlight {
    pub(crate) payload: Bytes,
    pub(crate) message: Message,
    pub(crate) asked: Vec<Asked>,
    pub(crate) answers: Vec<Result<Answer, DecideError>>,
    pub(crate) started: Instant,
    pub(crate) deadline: Instant,
    /// Where the fold accepted it.
    pub(crate) landed: Option<u64>,
    /// Whether an attempt has ended, in whatever way.
    pub(crate) attempted: bool,
    /// Another message has the place; once the fold has read this far without meeting the block, it is not in the stream.
    pub(crate) overtaken_at: Option<u64>,
}

impl InFlight {
    /// The callers' answers, now that the block is durable.
    pub(crate) fn answer(self, stream_seq: u64) {
        for (asked, answer) in self.asked.into_iter().zip(self.answers) {
            deliver(asked, answer, Some(stream_seq));
        }
    }

    pub(crate) fn fail(self, reason: &str) {
        for asked in self.asked {
            let _ = asked.reply.send(Err(Unanswered::Unavailable(reason.to_owned())));
        }
    }
}

/// Gives a caller its answer; it may have gone away.
pub(crate) fn deliver(asked: Asked, answer: Result<Answer, DecideError>, block: Option<u64>) {
    let answer = match answer {
        Err(error) => Err(Unanswered::Refused(error)),
        Ok(Answer { reply, recorded }) => match recorded.or(block) {
            Some(stream_seq) => Ok(Answered { reply, stream_seq }),
            None => Err(Unanswered::Unavailable("the block that answers this key is not known".to_owned())),
        },
    };
    let _ = asked.reply.send(answer);
}

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// It is in the stream.
    Acked,
    /// The place is taken, by an earlier attempt or by another writer: read up to `last` to know.
    Overtaken { last: u64 },
    /// It may or may not be in the stream.
    Unknown(String),
    /// It can't get into the stream.
    Impossible(String),
}

/// Appends after `delay`.
pub(crate) fn attempt(
    stream: Arc<dyn EventStream>,
    message: Message,
    delay: Duration,
) -> BoxFuture<'static, Attempt> {
    Box::pin(async move {
        sleep(delay).await;
        let (subject, expected) = (message.subject.clone(), message.expect_last);
        match timeout(ATTEMPT, stream.append(message)).await {
            Err(_) => Attempt::Unknown("no acknowledgement".to_owned()),
            Ok(Ok(_)) => Attempt::Acked,
            Ok(Err(AppendError::WrongLast { .. })) => match timeout(ATTEMPT, stream.last(&subject)).await {
                Err(_) => Attempt::Unknown("no answer to the reading back".to_owned()),
                Ok(Err(error)) => Attempt::Unknown(error.to_string()),
                Ok(Ok(last)) => {
                    let last = last.map_or(0, |record| record.seq);
                    if Some(last) == expected {
                        // Something is on its way to the subject and not there yet.
                        return Attempt::Unknown("an append to the subject is in flight".to_owned());
                    }
                    Attempt::Overtaken { last }
                }
            },
            Ok(Err(
                error @ (AppendError::Unknown(_) | AppendError::Unavailable(_) | AppendError::Full(_)),
            )) => Attempt::Unknown(error.to_string()),
            Ok(Err(error @ (AppendError::TooLarge { .. } | AppendError::Invalid(_)))) => {
                Attempt::Impossible(error.to_string())
            }
        }
    })
}
