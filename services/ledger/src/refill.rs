//! Refill: when the broker lost acknowledged messages that the log holds, the ledger puts them back, each at its own sequence.
//!
//! A message that the log holds whole is put back as it was; for any other, a [`StreamRefilled`](v1::StreamRefilled) with its
//! entries stands in its place. What others appended into lost places meanwhile is appended again behind the cursor, and after it
//! once more what was lost, for readers of the budgets that had not read so far: in their order, the chains come out the same. A
//! [`StreamLost`](v1::StreamLost) record closes it, which says that all of it was done: until then, each message that was put back
//! carries a [`mark`], and whoever finds one does the rest. Every step may be repeated.
//!
//! Left out: messages that the log does not hold; their authors publish them again. Invariant: only the holder of the signing
//! lease writes; a message is put back at its own sequence or not at all; the log does not change.

mod held;
mod mark;

use std::time::Duration;

use exchequer_event::{
    accept::{Acceptor, Incoming, Outcome},
    digest::Digest,
    v1::{self, control_record::Kind as ControlKind},
};
use exchequer_stream::{AppendError, EventStream, Message, ReadError, Record, RecordStream};
use futures::StreamExt as _;

use self::held::{Events, Held, held, stood_for};
use crate::{
    control::ControlWriter,
    genesis::{self, GenesisError},
    standing::Standing,
    store::{LogReader, Position, StoreError, message_digest},
};

const LOSS_SUBJECT: &str = "control.loss";
/// Messages that are compared or put back together.
const CHUNK: u64 = 32;
/// Messages that the search for the loss compares first; each further step takes so many times more.
const FIRST_STEP: u64 = 64;
const STEP_GROWTH: u64 = 4;
/// Others may take lost places so often in a row before it is left to the next attempt.
const MAX_OVERTAKEN: u32 = 64;
const OVERTAKEN_PAUSE: Duration = Duration::from_millis(20);

/// The stream does not fit the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("a lost message can't be put back: {0}")]
    Append(#[from] AppendError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else has to put it right.
    #[error(
        "the stream {0}: it lost messages. Waiting for the ledger that holds the signing lease to put them back; if that does \
         not come to pass, begin again with that ledger's files"
    )]
    Waiting(String),
    /// Reading on would make another tree of it.
    #[error(
        "the stream holds others' messages in places that were lost, up to {to}, and the log ends before, at {cursor}: begin again \
         with the files of a ledger that goes on beyond"
    )]
    Replaced { cursor: u64, to: u64 },
    #[error("the signing lease was lost while the stream was being refilled")]
    LeaseLost,
    #[error("the stream is another log's, and nothing is written to it: {0}")]
    OtherLog(GenesisError),
    #[error("the stream's genesis can't be compared: {0}")]
    Genesis(GenesisError),
    #[error("the stream gave message {got} where {expected} was to be compared")]
    Hole { expected: u64, got: u64 },
    #[error("the stream ended")]
    Ended,
}

/// The stream and the log that it has to fit.
pub(crate) struct Refill<'a> {
    pub(crate) stream: &'a dyn EventStream,
    pub(crate) reader: LogReader,
    pub(crate) control: ControlWriter,
    pub(crate) standing: &'a Standing,
    /// The acceptor at the position.
    pub(crate) acceptor: &'a Acceptor,
    pub(crate) position: Position,
}

impl Refill<'_> {
    /// Makes sure that the stream holds the log's messages up to the cursor, and puts them back where it lost them. The digest of the
    /// message that now is at the cursor.
    pub(crate) async fn fit(&self) -> Result<Digest, Unfit> {
        let cursor = self.position.cursor;
        if cursor == 0 {
            return Ok(self.position.last_message);
        }
        let tip = self.stream.tip().await?;
        let loss = self.newest_loss().await?;
        if let Some(v1::StreamLost { to, reappended: 1.., .. }) = loss
            && cursor < to
        {
            return Err(Unfit::Replaced { cursor, to });
        }
        let why = if tip < cursor {
            format!("ends at {tip}, the log holds it up to {cursor}")
        } else {
            let mut records = match self.stream.read(cursor, &[]).await {
                // Whether a dropped message was the log's can't be told.
                Err(ReadError::Pruned { .. }) => return Ok(self.position.last_message),
                records => records?,
            };
            match &self.compare(&mut records, cursor, cursor).await?[..] {
                [(record, true)] => match mark::read(record, &self.standing.keys()) {
                    Some(from) if !loss.is_some_and(|loss| is_end_of(&loss, from, cursor)) => {
                        format!("was refilled from {from} on, and that did not come to its end")
                    }
                    _ => return Ok(message_digest(record)),
                },
                // It is settled: what others put here comes once more behind it, and so do the lost messages.
                [(record, false)] if loss.is_some_and(|loss| loss.from <= cursor && loss.to == cursor) => {
                    return Ok(message_digest(record));
                }
                _ => format!("holds another message {cursor} than the log was built from"),
            }
        };
        if !self.standing.leads() {
            return Err(Unfit::Waiting(why));
        }
        tracing::warn!(cursor, tip, "the stream {why}: putting back what it lost");
        let from = self.first_lost(tip).await?;
        self.put_back(from).await?;
        self.settle(from).await
    }

    /// The first sequence at which the stream does not hold the log's message any more.
    async fn first_lost(&self, tip: u64) -> Result<u64, Unfit> {
        let first = match self.stream.read(1, &[]).await {
            Ok(_) => 1,
            Err(ReadError::Pruned { first, .. }) => first,
            Err(error) => return Err(error.into()),
        };
        let keys = self.standing.keys();
        let mut upper = tip.min(self.position.cursor);
        let mut step = FIRST_STEP;
        while upper >= first {
            let lower = upper.saturating_sub(step - 1).max(first);
            let mut records = self.stream.read(lower, &[]).await?;
            let mut newest = None;
            let mut next = lower;
            while next <= upper {
                for (record, is_ours) in self.compare(&mut records, next, upper).await? {
                    next = record.seq + 1;
                    if is_ours {
                        newest = Some((record.seq, mark::read(&record, &keys)));
                    }
                }
            }
            if let Some((seq, mark)) = newest {
                // A refill that did not come to its end, or was itself lost in part, begins where it began.
                return Ok(mark.unwrap_or(seq + 1).max(first));
            }
            upper = lower - 1;
            step = step.saturating_mul(STEP_GROWTH);
        }
        if first == 1 && tip > 0 {
            match genesis::compare(self.stream, tip, self.acceptor.origin(), &self.standing.keys()).await {
                Ok(()) => {}
                Err(error @ (GenesisError::Origin { .. } | GenesisError::Key { .. })) => {
                    return Err(Unfit::OtherLog(error));
                }
                Err(error) => return Err(Unfit::Genesis(error)),
            }
        }
        Ok(first)
    }

    /// Appends the log's messages until the stream ends at the cursor. A place that another's message took meanwhile stays its.
    async fn put_back(&self, from: u64) -> Result<(), Unfit> {
        let cursor = self.position.cursor;
        let mut overtaken = 0;
        loop {
            let tip = self.stream.tip().await?;
            if tip >= cursor {
                return Ok(());
            }
            if !self.standing.leads() {
                return Err(Unfit::LeaseLost);
            }
            let mut fault = None;
            let mut acks = Vec::new();
            for held in self.held(tip + 1, cursor).await? {
                match self.stream.enqueue(self.message(&held, from)).await {
                    Ok(ack) => acks.push(ack),
                    Err(error) => {
                        fault = Some(error);
                        break;
                    }
                }
            }
            for ack in acks {
                if let Err(error) = ack.await {
                    fault.get_or_insert(error);
                }
            }
            match fault {
                None => overtaken = 0,
                // Each message is in its own place or nowhere; the tip says where to go on.
                Some(AppendError::WrongLast { .. } | AppendError::Unknown(_))
                    if overtaken < MAX_OVERTAKEN =>
                {
                    overtaken += 1;
                    tokio::time::sleep(OVERTAKEN_PAUSE).await;
                }
                Some(fault) => return Err(fault.into()),
            }
        }
    }

    /// Appends again what others had put into lost places, then the record of the loss. The digest of the message at the cursor.
    async fn settle(&self, from: u64) -> Result<Digest, Unfit> {
        let cursor = self.position.cursor;
        let mut records = self.stream.read(from, &[]).await?;
        let keys = self.standing.keys();
        let (mut refilled, mut reappended) = (0, 0);
        let mut at_cursor = self.position.last_message;
        let mut events = None;
        let mut next = from;
        while next <= cursor {
            for (record, is_ours) in self.compare(&mut records, next, cursor).await? {
                next = record.seq + 1;
                if record.seq == cursor {
                    at_cursor = message_digest(&record);
                }
                if !is_ours {
                    if self.is_repetition(&record) {
                        // Asked for once: it reads all that was lost.
                        let events = match &mut events {
                            Some(events) => events,
                            empty => empty.insert(self.events(from).await?),
                        };
                        if events.is_nothing_at(&record) {
                            continue;
                        }
                    }
                    self.append_again(record).await?;
                    reappended += 1;
                } else if mark::read(&record, &keys) == Some(from) {
                    refilled += 1;
                }
            }
        }
        if reappended > 0 {
            self.repeat(from).await?;
        }
        let lost = v1::StreamLost { from, to: cursor, refilled, reappended };
        self.control.append("ledger", ControlKind::StreamLost(lost)).await?;
        tracing::warn!(
            from,
            to = cursor,
            refilled,
            reappended,
            "the stream holds again what the broker lost"
        );
        Ok(at_cursor)
    }

    /// Whether the log holds every event of the batch, wherever.
    fn is_repetition(&self, record: &Record) -> bool {
        let (subject, payload) = (&*record.subject, record.payload.clone());
        let decided = self.acceptor.decide(&Incoming { stream_seq: record.seq, subject, payload });
        matches!(decided.outcome, Outcome::Duplicate { .. })
    }

    /// What the log took in from `from` to the cursor.
    async fn events(&self, from: u64) -> Result<Events, Unfit> {
        let mut events = Events::default();
        let mut next = from;
        while next <= self.position.cursor {
            for held in self.held(next, self.position.cursor).await? {
                next = held.seq + 1;
                events.take(&held);
            }
        }
        Ok(events)
    }

    /// Appends all lost messages that the log holds whole behind those of others. To the log, they are repetitions.
    async fn repeat(&self, from: u64) -> Result<(), Unfit> {
        let mut next = from;
        while next <= self.position.cursor {
            for held in self.held(next, self.position.cursor).await? {
                next = held.seq + 1;
                if !self.standing.leads() {
                    return Err(Unfit::LeaseLost);
                }
                if let Some((subject, payload)) = held.original() {
                    self.stream.append(Message::new(subject, payload)).await?;
                }
            }
        }
        Ok(())
    }

    async fn append_again(&self, record: Record) -> Result<(), Unfit> {
        if !self.standing.leads() {
            return Err(Unfit::LeaseLost);
        }
        let mut message = Message::new(record.subject, record.payload);
        message.headers = record.headers.into_iter().filter(|(name, _)| name != mark::NAME).collect();
        self.stream.append(message).await?;
        Ok(())
    }

    /// What stands for a message: itself if the log holds it whole, else its entries.
    fn message(&self, held: &Held, from: u64) -> Message {
        let message = if let Some((subject, payload)) = held.original() {
            Message::new(subject, payload)
        } else {
            let key_chain = self.control.key_chain(self.standing);
            let refilled = v1::StreamRefilled { seq: held.seq, entries: held.entries.clone(), key_chain };
            self.control.message("ledger", ControlKind::StreamRefilled(refilled))
        };
        mark::set(message, from, held.seq, &self.control)
    }

    /// The next records from `from` on, to `to` at the furthest, each with whether it is the log's message of its sequence.
    async fn compare(
        &self,
        records: &mut RecordStream,
        from: u64,
        to: u64,
    ) -> Result<Vec<(Record, bool)>, Unfit> {
        let keys = self.standing.keys();
        let mut compared = Vec::new();
        for held in self.held(from, to).await? {
            let record = records.next().await.ok_or(Unfit::Ended)??;
            if record.seq != held.seq {
                return Err(Unfit::Hole { expected: held.seq, got: record.seq });
            }
            let is_known =
                record.seq == self.position.cursor && message_digest(&record) == self.position.last_message;
            let is_ours = is_known || held.is_of(&record, &keys);
            compared.push((record, is_ours));
        }
        Ok(compared)
    }

    /// What the log holds of the messages from `from` on, to `to` at the furthest: at least one.
    async fn held(&self, from: u64, to: u64) -> Result<Vec<Held>, Unfit> {
        let (reader, to) = (self.reader.clone(), to.min(from.saturating_add(CHUNK - 1)));
        let read = tokio::task::spawn_blocking(move || held(&reader, from, to));
        Ok(read.await.map_err(|_| Unfit::Ended)??)
    }

    /// The newest loss on record, which came to its end then.
    async fn newest_loss(&self) -> Result<Option<v1::StreamLost>, Unfit> {
        let Some(record) = self.stream.last(LOSS_SUBJECT).await? else { return Ok(None) };
        Ok(match stood_for(&record, &self.standing.keys()) {
            Some(ControlKind::StreamLost(lost)) if record.seq > lost.to => Some(lost),
            _ => None,
        })
    }
}

/// Whether the loss is the end of the refill that began at `from` and reached the cursor.
fn is_end_of(loss: &v1::StreamLost, from: u64, cursor: u64) -> bool {
    let is_this = loss.from == from && loss.to >= cursor;
    // A later loss was found by a ledger that had read beyond this one.
    is_this || loss.from > cursor
}
