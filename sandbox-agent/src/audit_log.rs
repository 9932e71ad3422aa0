//! The local audit log: the spool's events once more, as lines of JSON on the host, for those who watch that host.
//!
//! Each line names the digest of the line before, so that a change is told by `exchequer audit-log verify`, and the position and digest of
//! its event, so that it can be compared with the ledger's log. Events are written as they were recorded: what is encrypted there is
//! encrypted here.
//!
//! The spool is the queue: an event is read from it once it is durable, in order, a chunk at a time, and what receipts cover is kept until
//! it was written here. So nothing is missing after a crash. Where the file can't be written, readiness and a metric say so and executions
//! go on, for the spool is the truth; the spool then keeps nothing for it, and what is gone by the time it can be written again is named
//! in a line of its own.
//!
//! Left out: evidence. Whoever can write the file can write all of it anew; the ledger's log is what shows that. Invariant: lines are
//! in order of seq, and a seq that has no line is named in one.

mod file;
mod line;
mod verify;

#[cfg(test)]
mod tests;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use exchequer_config::Reader;
use exchequer_event::name::MAX_EVENT_BYTES;

use self::file::LogFile;
pub use self::verify::{Broken, Chain, Hole, Position, Report, VerifyError, verify};
use crate::{metrics, spool::Spool};

/// Longest line: an event in base64 and again in JSON, which can write a byte as six.
const MAX_LINE_BYTES: u64 = 10 * MAX_EVENT_BYTES as u64;
/// Bytes of events that are written and synced together.
const CHUNK_BYTES: usize = 256 << 10;
/// Why lines are missing that someone took away behind the agent's back: [`Report::is_gone`].
const GONE: &str = "were written and are gone";
/// What was written last, beside the spool.
const MARK_FILE: &str = "audit_log_mark.json";
/// First pause after a failure; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// Where the local audit log is, and how much is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditLogOptions {
    /// The file that is written; earlier ones are beside it, as `.1`, `.2` and so on.
    pub path: PathBuf,
    /// A file that a line would make larger is followed by a new one.
    pub max_bytes: u64,
    /// Earlier files that are kept.
    pub backup_count: u64,
}

/// Bytes, with a unit or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
struct Size(u64);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.trim().parse().or_else(|_| exchequer_config::parse_bytes(text)).map(Self)
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&exchequer_config::format_bytes(self.0))
    }
}

impl AuditLogOptions {
    /// Takes `[agent.audit_log]`: none without `path`.
    pub fn read(reader: &mut Reader) -> Option<Self> {
        reader.also_env("agent.audit_log.max_bytes", "AUDIT_LOG_MAX_BYTES");
        reader.also_env("agent.audit_log.backup_count", "AUDIT_LOG_BACKUP_COUNT");
        let path = reader.optional::<PathBuf>("agent.audit_log.path");
        if path.as_ref().is_some_and(|path| path.file_name().is_none_or(|name| name.to_str().is_none())) {
            reader.fault("agent.audit_log.path", "has to name a file");
        }
        let max_bytes = reader.in_range("agent.audit_log.max_bytes", Size(64 << 20), Size(1)..=Size(1 << 40));
        let backup_count = reader.in_range("agent.audit_log.backup_count", 5, 1..=10_000);
        Some(Self { path: path?, max_bytes: max_bytes.0, backup_count })
    }
}

/// Writes what the spool records, until it is dropped. From this call on the spool keeps what is not written yet.
pub fn follow(spool: Arc<Spool>, options: AuditLogOptions) -> impl Future<Output = ()> + Send {
    spool.want_from(0);
    async move {
        let mut backoff = MIN_BACKOFF;
        // Said for as long as this runs: nothing brings back what is gone.
        let mut gone = None;
        loop {
            let Err(error) = write_on(&spool, &options, &mut backoff, &mut gone).await;
            let trouble = format!("{}: {error}", options.path.display());
            tracing::error!(trouble, "the local audit log can't be written; executions go on");
            metrics::audit_log_failures().add(1, &[]);
            spool.note_audit_log(Some(trouble));
            let waiting = Arc::clone(&spool);
            // A panic in there has been reported; what is kept too long does no harm.
            let _ = tokio::task::spawn_blocking(move || waiting.want_from(u64::MAX)).await;
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }
}

/// Writes until something fails.
async fn write_on(
    spool: &Arc<Spool>,
    options: &AuditLogOptions,
    backoff: &mut Duration,
    gone: &mut Option<String>,
) -> io::Result<std::convert::Infallible> {
    let (begun, options) = (Arc::clone(spool), options.clone());
    let path = options.path.display().to_string();
    let (mut log, mut next, missing) = tokio::task::spawn_blocking(move || begin(&begun, &options)).await??;
    if let Some(missing) = missing {
        let trouble = format!("{path}: {missing}");
        tracing::error!(trouble, "lines of the local audit log were taken away");
        *gone = Some(trouble);
    }
    let mut reader = spool.reader();
    loop {
        spool.note_audit_log(gone.clone());
        reader.wait_for(next).await.map_err(io::Error::other)?;
        let spool = Arc::clone(spool);
        (log, next) = tokio::task::spawn_blocking(move || write_chunk(&spool, log, next)).await??;
        *backoff = MIN_BACKOFF;
    }
}

/// Opens the file; the seq to go on with, and what was written and is gone.
fn begin(spool: &Spool, options: &AuditLogOptions) -> io::Result<(LogFile, u64, Option<String>)> {
    let mut log = LogFile::open(options, &spool.dir().join(MARK_FILE))?;
    let mut next = match log.end() {
        Some(end) if end.agent != spool.agent_id() => {
            return Err(io::Error::other(format!("it is agent {}'s", end.agent)));
        }
        Some(end) if end.epoch > spool.epoch() || (end.epoch == spool.epoch() && end.seq > spool.tip()) => {
            return Err(io::Error::other(format!(
                "it goes up to event {} of epoch {}, which this spool does not hold; move it away",
                end.seq, end.epoch
            )));
        }
        Some(end) if end.epoch == spool.epoch() => end.seq + 1,
        _ => 1,
    };
    // A spool has one epoch for good: a mark of another is none of this one's.
    let mark = log.mark().filter(|mark| mark.epoch == spool.epoch()).cloned();
    let mut gone = None;
    if let Some(mark) = mark {
        if mark.seq > spool.tip() {
            let tip = spool.tip();
            return Err(io::Error::other(format!(
                "event {} was written, this spool ends at {tip}",
                mark.seq
            )));
        }
        if mark.seq + 1 == next && log.last_hash() != Some(mark.hash.as_str()) {
            let what =
                "its last line is not the one that was written; keep the file as evidence and move it away";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        if next <= mark.seq {
            log.missing(spool.agent_id(), spool.epoch(), next, mark.seq, GONE)?;
            log.flush()?;
            gone = Some(format!("events {next} to {} {GONE}", mark.seq));
            next = mark.seq + 1;
        }
    }
    spool.want_from(next);
    Ok((log, next, gone))
}

fn write_chunk(spool: &Spool, mut log: LogFile, mut next: u64) -> io::Result<(LogFile, u64)> {
    let first = spool.first();
    if next < first {
        let reason = "confirmed and removed from the spool before it could be written here";
        log.missing(spool.agent_id(), spool.epoch(), next, first - 1, reason)?;
        next = first;
    }
    for entry in spool.reader().read(next, CHUNK_BYTES).map_err(io::Error::other)? {
        log.event(&entry.body)?;
        next = entry.seq + 1;
    }
    log.flush()?;
    metrics::audit_log_seq().record(next - 1, &[]);
    spool.want_from(next);
    Ok((log, next))
}
