//! The writer's reader: opening it where the fold ends, and refusing a stream that is not the one that was folded.
//!
//! Left out: folding what was read. Invariant: nothing is folded after a snapshot before the message at its end was read again and
//! is the same.

use std::{sync::Arc, time::Duration};

use exchequer_stream::{EventStream, ReadError};
use futures::future::BoxFuture;
use tokio::time::timeout;

use super::{RETRY, Writer};

/// How long opening a reader or asking for the tip may take; and the wait before a fault that does not heal itself is tried again.
const PATIENCE: Duration = Duration::from_secs(5);

impl Writer {
    pub(super) fn open_reader(&mut self, delay: Duration) {
        let cursor = self.shared.fold().cursor;
        let stream = Arc::clone(&self.stream);
        self.records = None;
        self.verify_cursor = cursor > 0;
        self.opening = Some(Box::pin(async move {
            tokio::time::sleep(delay).await;
            let opened = timeout(PATIENCE, stream.read(cursor.max(1), &[])).await;
            opened.unwrap_or_else(|_| Err(ReadError::Unavailable("no answer to reading".to_owned())))
        }));
    }

    pub(super) fn on_read_error(&mut self, error: &ReadError) {
        if let ReadError::Lost { .. } = error {
            return self.is_foreign(error.to_string());
        }
        tracing::warn!(%error, "reading the stream again");
        self.read_fault = Some(error.to_string());
        let heals_itself = matches!(error, ReadError::Unavailable(_));
        self.open_reader(if heals_itself { RETRY } else { PATIENCE });
    }

    /// Fails closed: deciding on from a state that the stream does not bear out could grant what was granted before.
    pub(super) fn is_foreign(&mut self, why: String) {
        let dir = self.options.data.display();
        let why = format!(
            "this is not the stream that was folded, or it lost messages: {why}. \
             If it was replaced on purpose, remove the snapshots in {dir} and start again"
        );
        tracing::error!("{why}");
        self.records = None;
        self.opening = None;
        self.foreign = Some(why);
    }

    pub(super) fn on_probe(&mut self, probed: Probed) {
        let Probed { epoch, folded, tip } = probed;
        match tip {
            Ok(tip) => {
                // What was folded while the question was under way may lie beyond the answer.
                if tip < folded {
                    self.is_foreign(format!("it ends at {tip}, {folded} was folded"));
                }
                self.target = Some((epoch, tip));
            }
            Err(error) => tracing::warn!(%error, "the stream's last sequence could not be asked for"),
        }
    }
}

/// The answer to what the stream's last sequence is.
pub(super) struct Probed {
    /// The lease under which it was asked.
    epoch: u64,
    /// The cursor when it was asked.
    folded: u64,
    tip: Result<u64, ReadError>,
}

/// Asks for the stream's last sequence. `folded` is the cursor now.
pub(super) fn probe(stream: Arc<dyn EventStream>, epoch: u64, folded: u64) -> BoxFuture<'static, Probed> {
    Box::pin(async move {
        let tip = match timeout(PATIENCE, stream.tip()).await {
            Ok(Ok(tip)) => Ok(tip),
            Ok(Err(error)) => {
                // The next one is asked for as soon as this one ends.
                tokio::time::sleep(RETRY).await;
                Err(error)
            }
            Err(_) => Err(ReadError::Unavailable("no answer".to_owned())),
        };
        Probed { epoch, folded, tip }
    })
}
