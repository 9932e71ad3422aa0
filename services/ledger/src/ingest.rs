//! Ingest: reads the stream from the committed cursor on, cuts it into runs, integrates and commits each.
//!
//! Reading, preparing and committing overlap: while one run is made durable, the messages of the next are prepared on all cores. Left
//! out: signing. Invariant: what is in flight is bounded, and the cursor moves only with the entries of the messages it has passed.

use std::{
    fs::File,
    num::NonZero,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use exchequer_event::{accept::Acceptor, digest::Digest};
use exchequer_stream::{EventStream, ReadError, Record, RecordStream};
use futures::{Stream, StreamExt as _, stream::BoxStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Span;

#[cfg(test)]
mod tests;

use crate::{
    control::{ControlWriter, pause},
    integrate::{Prepared, integrate},
    metrics::Metrics,
    refill::{Refill, Unfit},
    snapshot::{SNAPSHOT_ENTRIES, Snapshots},
    standing::{Part, Standing},
    store::{
        LogReader, LogWriter, MAX_INTEGRATION_BYTES, MAX_INTEGRATION_RECORDS, OpenError, Position,
        StoreError, message_digest,
    },
};

/// A run is closed when no message came for so long, so that a burst becomes one run.
const QUIET: Duration = Duration::from_millis(4);
/// A run is closed after so long at the latest.
const LINGER: Duration = Duration::from_millis(50);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(5);
const LAG_CHECK: Duration = Duration::from_secs(5);

/// What the index is handed directly, so that it need not read it back.
#[derive(Debug)]
pub(crate) struct Block {
    /// Index of the first entry.
    pub(crate) first: u64,
    /// The entries, encoded.
    pub(crate) entries: Vec<Bytes>,
}

/// Why the stream can't be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FeedError {
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Going on would put other messages into the log than those that were lost.
    #[error(
        "message {seq} of the stream is not the one that the log was built from: the stream lost messages or is another"
    )]
    OtherStream { seq: u64 },
    #[error("the stream jumps from {after} to {seq}")]
    Hole { after: u64, seq: u64 },
    #[error("the stream ended")]
    Ended,
    #[error("a message could not be prepared: {0}")]
    Prepare(#[from] tokio::task::JoinError),
}

/// Messages in stream order, prepared.
type PreparedStream = BoxStream<'static, Result<Prepared, FeedError>>;

/// Messages that are integrated together.
#[derive(Debug, Default)]
struct Run {
    messages: Vec<Prepared>,
    bytes: usize,
}

impl Run {
    fn push(&mut self, message: Prepared) {
        self.bytes += message.record.payload.len();
        self.messages.push(message);
    }

    fn has_room(&self) -> bool {
        self.messages.len() < MAX_INTEGRATION_RECORDS && self.bytes < MAX_INTEGRATION_BYTES
    }
}

/// The writing end of the log, in the hands of one blocking thread at a time.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) writer: LogWriter,
    pub(crate) acceptor: Acceptor,
    pub(crate) reader: LogReader,
    pub(crate) snapshots: Snapshots,
    /// Entries that the last snapshot covers.
    pub(crate) snapshot_size: u64,
    pub(crate) blocks: mpsc::Sender<Block>,
    pub(crate) standing: Arc<Standing>,
    pub(crate) control: ControlWriter,
    pub(crate) metrics: Metrics,
    /// A commit may outlive the service that was dropped; the data directory is let go after it.
    pub(crate) _lock: Arc<File>,
}

impl Pipeline {
    /// Integrates and commits one run. After an error the pipeline has to [`recover`](Self::recover).
    fn take(&mut self, run: Run) -> Result<(), StoreError> {
        let Some(last) = run.messages.last() else { return Ok(()) };
        let (cursor, last_message) = (last.record.seq, message_digest(&last.record));
        // They end with the run: integrated and committed.
        let _spans: Vec<_> = run.messages.iter().filter_map(|message| span_of(&message.record)).collect();
        let first = self.writer.position().size;
        let started = Instant::now();
        let integrated = integrate(&mut self.acceptor, run.messages);
        self.metrics.integrated(integrated.kinds.clone(), started.elapsed());
        let started = Instant::now();
        self.writer.commit_leaves(&integrated.entries, &integrated.leaves, cursor, last_message)?;
        let position = self.writer.position().clone();
        self.metrics.committed(position.size, started.elapsed());
        self.metrics.rejected(integrated.rejections.clone());
        self.standing.committed(position, &integrated, &self.acceptor);
        if !integrated.entries.is_empty() {
            // A full queue is no loss: the index reads from the log what it was not handed.
            let _ = self.blocks.try_send(Block { first, entries: integrated.entries });
        }
        self.reader.remove_superseded()?;
        if self.writer.position().size >= self.snapshot_size + SNAPSHOT_ENTRIES {
            self.save_snapshot();
        }
        Ok(())
    }

    /// Derived state: failing to keep it costs time at the next start, and nothing else.
    fn save_snapshot(&mut self) {
        let size = self.writer.position().size;
        if size == self.snapshot_size {
            return;
        }
        if let Err(error) = self.snapshots.save(&self.reader, size, &self.acceptor) {
            tracing::warn!(%error, "no snapshot of the acceptor could be kept");
        }
        self.snapshot_size = size;
    }

    /// Commits until the feed ends; first that `at_cursor` is now the message at the cursor.
    fn drain(mut self, at_cursor: Digest, mut runs: mpsc::Receiver<Run>) -> (Self, Result<(), StoreError>) {
        let position = self.writer.position();
        if position.last_message != at_cursor {
            let cursor = position.cursor;
            if let Err(error) = self.writer.commit(&[], cursor, at_cursor) {
                return (self, Err(error));
            }
        }
        while let Some(run) = runs.blocking_recv() {
            if let Err(error) = self.take(run) {
                return (self, Err(error));
            }
        }
        (self, Ok(()))
    }

    /// Keeps what the next start begins with.
    async fn end(mut self) {
        let saved = tokio::task::spawn_blocking(move || self.save_snapshot()).await;
        debug_assert!(saved.is_ok());
    }

    /// Back to what is on disk, by the same way as at the start.
    fn recover(&mut self) -> Result<(), OpenError> {
        self.writer = self.writer.reload()?;
        (self.acceptor, self.snapshot_size) = self.snapshots.acceptor(&self.reader)?;
        self.standing.reopened(self.writer.position().clone(), &self.acceptor);
        Ok(())
    }
}

/// The part of a message's trace that happens here; none if it carries no trace.
fn span_of(record: &Record) -> Option<Span> {
    if record.headers.is_empty() {
        return None;
    }
    let span = tracing::info_span!("integrate", subject = record.subject, stream_seq = record.seq);
    exchequer_telemetry::continue_from(&span, &record.headers);
    Some(span)
}

/// Runs until the shutdown. Faults are reported and retried.
pub(crate) async fn run(pipeline: Pipeline, stream: Arc<dyn EventStream>, shutdown: CancellationToken) {
    let standing = pipeline.standing.clone();
    let mut pipeline = pipeline;
    let mut backoff = FIRST_BACKOFF;
    loop {
        let mut position = pipeline.writer.position().clone();
        let at_cursor = tokio::select! {
            () = shutdown.cancelled() => return pipeline.end().await,
            fits = fit(&pipeline, &*stream) => match fits {
                Ok(at_cursor) => at_cursor,
                Err(unfit) => {
                    standing.report(Part::Ingest, Some(unfit.to_string()));
                    if pause(backoff, &shutdown).await {
                        return pipeline.end().await;
                    }
                    backoff = LAST_BACKOFF.min(backoff * 2);
                    continue;
                }
            },
        };
        position.last_message = at_cursor;
        let (runs, received) = mpsc::channel(1);
        let committer = tokio::task::spawn_blocking(move || pipeline.drain(at_cursor, received));
        let fed = feed(&*stream, &position, runs, &standing, &shutdown).await;
        let Ok((returned, committed)) = committer.await else {
            standing.report(
                Part::Ingest,
                Some("integration panicked; the ledger has to be restarted".to_owned()),
            );
            return;
        };
        pipeline = returned;
        if let Err(error) = committed {
            standing.report(Part::Ingest, Some(error.to_string()));
            match reopen(pipeline, &shutdown).await {
                Some(reopened) => pipeline = reopened,
                None => return,
            }
        } else if let Err(error) = fed {
            standing.report(Part::Ingest, Some(error.to_string()));
        }
        if pipeline.writer.position().cursor > position.cursor {
            backoff = FIRST_BACKOFF;
        }
        if shutdown.is_cancelled() || pause(backoff, &shutdown).await {
            return pipeline.end().await;
        }
        backoff = LAST_BACKOFF.min(backoff * 2);
    }
}

/// The digest of the message at the cursor, once the stream holds the log's messages.
async fn fit(pipeline: &Pipeline, stream: &dyn EventStream) -> Result<Digest, Unfit> {
    let refill = Refill {
        stream,
        reader: pipeline.reader.clone(),
        control: pipeline.control.clone(),
        standing: &pipeline.standing,
        acceptor: &pipeline.acceptor,
        position: pipeline.writer.position().clone(),
    };
    refill.fit().await
}

/// Opens the store again after a failed commit, as often as it takes; `None` at the shutdown.
async fn reopen(mut pipeline: Pipeline, shutdown: &CancellationToken) -> Option<Pipeline> {
    loop {
        let (returned, outcome) = tokio::task::spawn_blocking(move || {
            let outcome = pipeline.recover();
            (pipeline, outcome)
        })
        .await
        .ok()?;
        pipeline = returned;
        match outcome {
            Ok(()) => return Some(pipeline),
            Err(error) => pipeline.standing.report(Part::Ingest, Some(error.to_string())),
        }
        if pause(LAST_BACKOFF, shutdown).await {
            return None;
        }
    }
}

/// Opens the stream behind the cursor, after making sure that it still holds the message at the cursor.
async fn open_at(stream: &dyn EventStream, position: &Position) -> Result<RecordStream, FeedError> {
    let (cursor, expected) = (position.cursor, position.last_message);
    if cursor == 0 {
        return Ok(stream.read(1, &[]).await?);
    }
    let opened = match stream.read(cursor, &[]).await {
        // Whether the dropped message was ours can't be told; everything after it is there.
        Err(ReadError::Pruned { first, .. }) if first == cursor + 1 => {
            return Ok(stream.read(first, &[]).await?);
        }
        opened => opened?,
    };
    check_first(opened, cursor, expected).await
}

async fn check_first(
    mut records: RecordStream,
    cursor: u64,
    expected: Digest,
) -> Result<RecordStream, FeedError> {
    let record = records.next().await.ok_or(FeedError::Ended)??;
    if record.seq != cursor || message_digest(&record) != expected {
        return Err(FeedError::OtherStream { seq: cursor });
    }
    Ok(records)
}

/// Prepares messages on all cores. The keys are those of the last commit.
fn prepare(
    records: RecordStream,
    standing: Arc<Standing>,
) -> impl Stream<Item = Result<Prepared, FeedError>> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let prepared = records.map(move |record| {
        let likely = standing.keys();
        async move {
            let record = record?;
            Ok(tokio::task::spawn_blocking(move || Prepared::new(record, &likely)).await?)
        }
    });
    prepared.buffered(2 * cores)
}

/// Collects runs and hands them over. Ends with the shutdown, or when the committer is gone.
async fn feed(
    stream: &dyn EventStream,
    position: &Position,
    runs: mpsc::Sender<Run>,
    standing: &Arc<Standing>,
    shutdown: &CancellationToken,
) -> Result<(), FeedError> {
    let opened = async {
        // The stream answers with an error where its end lies before the cursor; waiting here for a message that was lost must
        // not look like being in order.
        let records = open_at(stream, position).await?;
        standing.report(Part::Ingest, None);
        let mut messages = prepare(records, standing.clone()).boxed();
        let mut after = position.cursor;
        loop {
            let first = messages.next().await.ok_or(FeedError::Ended)??;
            let outcome = collect(&mut messages, first, &runs).await;
            let Some((run, permit)) = outcome? else { return Ok(()) };
            for Prepared { record, .. } in &run.messages {
                if record.seq != after + 1 {
                    return Err(FeedError::Hole { after, seq: record.seq });
                }
                after = record.seq;
            }
            permit.send(run);
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        // A quiet stream must not keep a failed commit from being reported and tried again.
        () = runs.closed() => Ok(()),
        ended = opened => ended,
    }
}

/// One run, and the room for it with the committer. While the committer is busy, the run grows. `None` if the committer is gone.
async fn collect<'a>(
    messages: &mut PreparedStream,
    first: Prepared,
    runs: &'a mpsc::Sender<Run>,
) -> Result<Option<(Run, mpsc::Permit<'a, Run>)>, FeedError> {
    let mut run = Run::default();
    run.push(first);
    let latest = tokio::time::Instant::now() + LINGER;
    while run.has_room() {
        let quiet = latest.min(tokio::time::Instant::now() + QUIET);
        match tokio::time::timeout_at(quiet, messages.next()).await {
            Err(_) => break,
            Ok(next) => run.push(next.ok_or(FeedError::Ended)??),
        }
    }
    loop {
        tokio::select! {
            biased;
            permit = runs.reserve() => return Ok(permit.ok().map(|permit| (run, permit))),
            next = messages.next(), if run.has_room() => run.push(next.ok_or(FeedError::Ended)??),
        }
    }
}

/// Measures how far behind the stream the log is.
pub(crate) async fn watch_lag(
    stream: Arc<dyn EventStream>,
    standing: Arc<Standing>,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    loop {
        if let Ok(tip) = stream.tip().await {
            metrics.lag(tip.saturating_sub(standing.changed.borrow().cursor));
        }
        if pause(LAG_CHECK, &shutdown).await {
            return;
        }
    }
}
