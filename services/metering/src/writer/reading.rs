//! The writer's reader: opening it where the fold ends, and refusing a stream that is not the one that was folded.
//!
//! Left out: folding what was read. Invariant: whenever reading begins anew, nothing is folded or decided before the last folded
//! message was read again and is the same, or stands for it by the ledger's word, or the ledger says that all that was lost with it
//! comes again.

use std::{sync::Arc, time::Duration};

use exchequer_event::{accept::Incoming, digest::Purpose};
use exchequer_stream::{EventStream, ReadError, Record, RecordStream};
use futures::future::BoxFuture;
use tokio::time::timeout;

use super::{RETRY, Writer};

/// Where the ledger records what the broker lost.
const LOSS_SUBJECT: &str = "control.loss";
/// Wait before a stream that lacks what was folded is looked at again: the ledger may have put it back.
const LOST_RETRY: Duration = Duration::from_secs(1);
/// How long opening a reader or asking for the tip may take; and the wait before a fault that does not heal itself is tried again.
const PATIENCE: Duration = Duration::from_secs(5);

impl Writer {
    pub(super) fn open_reader(&mut self, delay: Duration) {
        let cursor = self.shared.fold().cursor;
        let stream = Arc::clone(&self.stream);
        self.records = None;
        self.verify_cursor = cursor > 0;
        // Where the stream and the subject end has to be asked again.
        (self.target, self.probe) = (None, None);
        self.opening = Some(Box::pin(async move {
            tokio::time::sleep(delay).await;
            let opening = async {
                let loss = if cursor > 0 { stream.last(LOSS_SUBJECT).await? } else { None };
                Ok(Opened { records: stream.read(cursor.max(1), &[]).await?, loss })
            };
            let opened = timeout(PATIENCE, opening).await;
            opened.unwrap_or_else(|_| Err(ReadError::Unavailable("no answer to reading".to_owned())))
        }));
    }

    pub(super) fn on_read_error(&mut self, error: &ReadError) {
        if let ReadError::Lost { .. } = error {
            return self.is_foreign(&error.to_string());
        }
        tracing::warn!(%error, "reading the stream again");
        self.read_fault = Some(error.to_string());
        // What was replaced is compared again at once: it may be the ledger that did it.
        let heals_itself = matches!(error, ReadError::Unavailable(_) | ReadError::Replaced { .. });
        self.open_reader(if heals_itself { RETRY } else { PATIENCE });
    }

    /// Fails closed: deciding on from a state that the stream does not bear out could grant what was granted before. What the
    /// broker lost and the ledger puts back heals it.
    pub(super) fn is_foreign(&mut self, why: &str) {
        let dir = self.options.data.display();
        let why = format!(
            "this is not the stream that was folded, or it lost messages: {why}. It goes on by itself once the ledger has put them \
             back. If the stream was replaced on purpose, remove the snapshots in {dir} and start again"
        );
        if self.foreign.as_ref() != Some(&why) {
            tracing::error!("{why}");
        }
        self.foreign = Some(why);
        self.open_reader(LOST_RETRY);
    }

    /// Compares the first record read with the last one folded.
    pub(super) fn verify_cursor(&mut self, record: &Record) {
        let shared = Arc::clone(&self.shared);
        let mut fold = shared.fold_mut();
        let (cursor, digest) = (fold.cursor, Purpose::Message.digest(&record.payload));
        if record.seq == cursor && digest != fold.cursor_digest {
            let stands = fold.acceptor.stands_for_lost(&incoming(record));
            // Another's message took its place; what was lost follows again behind it, before the record that says so.
            let lost = self.loss.as_ref().and_then(|loss| fold.acceptor.stated_loss(&incoming(loss)));
            if stands || lost.is_some_and(|lost| (lost.from..=lost.to).contains(&cursor)) {
                fold.cursor_digest = digest;
            }
        }
        let is_ours = record.seq == cursor && digest == fold.cursor_digest;
        drop(fold);
        if is_ours {
            if self.foreign.take().is_some() {
                tracing::warn!(cursor, "the stream holds again what was folded");
            }
        } else {
            self.is_foreign(&format!(
                "message {} of the stream is not the one folded as {cursor}",
                record.seq
            ));
        }
    }

    /// The partition's subject ends at `last`. If all of that has been folded and was elsewhere, the broker lost messages: whether the
    /// ledger put them back, or others in their place, shows when the cursor is compared and the stream asked again.
    pub(super) fn compare_subject(&mut self, last: u64) {
        let (cursor, folded) = {
            let fold = self.shared.fold();
            (fold.cursor, fold.subject_last)
        };
        if last <= cursor && last != folded {
            tracing::warn!(last, folded, "the partition's subject ends elsewhere");
            self.open_reader(Duration::ZERO);
        }
    }

    pub(super) fn on_probe(&mut self, probed: Probed) {
        let Probed { epoch, folded, ends } = probed;
        match ends {
            Ok((tip, subject_last)) => {
                self.target = Some((epoch, tip));
                let shared = Arc::clone(&self.shared);
                let mut fold = shared.fold_mut();
                // It is what was folded, but where another message was put in the place of one that the broker lost.
                if tip >= folded && subject_last <= fold.cursor {
                    fold.subject_last = subject_last;
                }
                drop(fold);
                // What was folded while the question was under way may lie beyond the answer.
                if tip < folded {
                    self.is_foreign(&format!("it ends at {tip}, {folded} was folded"));
                }
            }
            Err(error) => tracing::warn!(%error, "the stream's last sequence could not be asked for"),
        }
    }
}

/// A reader that begins at the cursor.
pub(super) struct Opened {
    pub(super) records: RecordStream,
    /// The newest record of a loss, as it was before.
    pub(super) loss: Option<Record>,
}

fn incoming(record: &Record) -> Incoming<'_> {
    Incoming { stream_seq: record.seq, subject: &record.subject, payload: record.payload.clone() }
}

/// The answer to what the stream's last sequence is.
pub(super) struct Probed {
    /// The lease under which it was asked.
    epoch: u64,
    /// The cursor when it was asked.
    folded: u64,
    /// The last sequence of the stream, and of the partition's subject after that.
    ends: Result<(u64, u64), ReadError>,
}

/// Asks for the last sequences of the stream and of the subject. `folded` is the cursor now.
pub(super) fn probe(
    stream: Arc<dyn EventStream>,
    subject: String,
    epoch: u64,
    folded: u64,
) -> BoxFuture<'static, Probed> {
    Box::pin(async move {
        let asking = async {
            let tip = stream.tip().await?;
            Ok((tip, stream.last(&subject).await?.map_or(0, |record| record.seq)))
        };
        let ends = match timeout(PATIENCE, asking).await {
            Ok(Ok(ends)) => Ok(ends),
            Ok(Err(error)) => {
                // The next one is asked for as soon as this one ends.
                tokio::time::sleep(RETRY).await;
                Err(error)
            }
            Err(_) => Err(ReadError::Unavailable("no answer".to_owned())),
        };
        Probed { epoch, folded, ends }
    })
}
