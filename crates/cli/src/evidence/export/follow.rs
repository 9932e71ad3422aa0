//! `export --follow`: one segment after the other, as the log grows.
//!
//! A segment is an export of a range, named by it (`segments`). The directory is the state: the next segment begins where the last one
//! ends, has to continue the tree that it ended with, and a partial file that was left is continued. Left out: shipping segments
//! anywhere else. Invariant: no gap, no entry twice, and whatever has a segment's name was verified.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use exchequer_event::v1::{self, ledger_service_client::LedgerServiceClient};
use exchequer_tlog::{EMPTY_ROOT, SignedCheckpoint, VerifierKey};
use tokio::time::Instant;
use tonic::Code;

use super::{ExportError, Exported, Format, Request, Transport, answers, export};
use crate::evidence::{
    pack::Scope,
    report::Verdict,
    segments,
    verify::{self, Progress, Target, Trust},
};

/// How often the newest checkpoint is asked for, at most.
const POLL: Duration = Duration::from_secs(1);
/// And at least, however often segments are wanted.
const LEAST_POLL: Duration = Duration::from_millis(50);

/// What to follow, and where to.
#[derive(Clone, Debug)]
pub struct Follow {
    /// Where segments go; made if it is not there.
    pub dir: PathBuf,
    /// What a segment is.
    pub format: Format,
    /// The log's verifier key as the caller knows it.
    pub key: Option<VerifierKey>,
    /// A segment is begun when entries have waited for so long…
    pub every: Duration,
    /// … or when there are so many, which is also the most that one holds.
    pub max_entries: u64,
}

/// What happens while following.
#[derive(Debug)]
pub enum Happened<'a> {
    /// A segment has got its name.
    Segment(&'a Path, &'a Exported),
    /// The ledger can't be reached; it is asked again.
    Away(&'a ExportError),
    /// A segment is so far.
    Progress(Progress),
}

/// Writes segments until there is a reason to end. To stop it, drop it: what it was writing is continued the next time.
pub async fn follow<T: Transport>(
    mut client: LedgerServiceClient<T>,
    follow: Follow,
    mut happened: impl FnMut(Happened<'_>),
) -> Result<(), ExportError> {
    fs::create_dir_all(&follow.dir)?;
    let (mut next, mut root) = shipped(&follow).await?;
    let mut waiting_since = Instant::now();
    let mut is_away = false;
    loop {
        let outcome = match next_end(&mut client, &follow, next, waiting_since).await {
            Ok(Some(end)) => {
                let mut progress = |progress| happened(Happened::Progress(progress));
                segment(&client, &follow, next..end, &root, &mut progress).await.map(Some)
            }
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(Some((path, end, exported))) => {
                (next, is_away, waiting_since) = (end, false, Instant::now());
                if let Some(roots) = &exported.report.range_roots {
                    root.clone_from(&roots.after);
                }
                happened(Happened::Segment(&path, &exported));
                continue;
            }
            Ok(None) => is_away = false,
            Err(error) if is_passing(&error) => {
                if !std::mem::replace(&mut is_away, true) {
                    happened(Happened::Away(&error));
                }
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(follow.every.clamp(LEAST_POLL, POLL)).await;
    }
}

/// Whether an error may be gone at the next try.
fn is_passing(error: &ExportError) -> bool {
    matches!(error, ExportError::Ledger(status)
        if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Unknown | Code::Cancelled))
}

/// Where the segments that are there end, and the root of the tree up to there.
async fn shipped(follow: &Follow) -> Result<(u64, String), ExportError> {
    let mut end = 0;
    let found = segments::list(&follow.dir)?;
    for segment in &found {
        if segment.first != end {
            let dir = follow.dir.display();
            let detail = format!("{dir}: entries {end} up to {} are missing or there twice", segment.first);
            return Err(ExportError::Request(detail));
        }
        end = segment.end;
    }
    let Some(last) = found.last() else { return Ok((0, EMPTY_ROOT.to_string())) };
    // Whose log it is, the next segment shows, which has to continue it.
    let report = verify::verify(Target::Pack(last.path.clone()), Trust::default(), None, |_| {}).await;
    match (report.verdict, &report.range_roots) {
        (Verdict::Holds, Some(roots)) => Ok((end, roots.after.clone())),
        _ => Err(ExportError::Unverified(Box::new(report))),
    }
}

/// Where a segment that begins now ends; `None` if it is not time yet.
async fn next_end<T: Transport>(
    client: &mut LedgerServiceClient<T>,
    follow: &Follow,
    next: u64,
    waiting_since: Instant,
) -> Result<Option<u64>, ExportError> {
    for entry in fs::read_dir(&follow.dir)? {
        let file = entry?.file_name();
        let begun =
            file.to_str().and_then(|file| file.strip_suffix(".partial")).and_then(segments::read_name);
        if let Some((first, end, extension)) = begun
            && first == next
            && extension == follow.format.extension()
        {
            return Ok(Some(end));
        }
    }
    let newest = client.get_checkpoint(v1::GetCheckpointRequest {}).await?.into_inner();
    let Ok(checkpoint) = SignedCheckpoint::parse(&newest.checkpoint) else {
        return answers("the checkpoint can't be read");
    };
    let size = checkpoint.checkpoint().size();
    if size < next {
        return answers(format!("the log has {size} entries, and {next} were exported before"));
    }
    let is_time = size - next >= follow.max_entries || waiting_since.elapsed() >= follow.every;
    Ok((is_time && size > next).then(|| size.min(next.saturating_add(follow.max_entries))))
}

async fn segment<T: Transport>(
    client: &LedgerServiceClient<T>,
    follow: &Follow,
    range: std::ops::Range<u64>,
    root: &str,
    progress: &mut impl FnMut(Progress),
) -> Result<(PathBuf, u64, Exported), ExportError> {
    let (first, end) = (range.start, range.end);
    let out = follow.dir.join(segments::name(first, end, follow.format.extension()));
    let request = Request {
        scope: Some(Scope::Range { first, end }),
        time: None,
        format: follow.format,
        key: follow.key.clone(),
        continues: Some(root.to_owned()),
        out: out.clone(),
    };
    let exported = export(client.clone(), request, progress).await?;
    Ok((out, end, exported))
}
