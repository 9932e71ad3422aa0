//! `export`: asks a ledger for the entries of a tenant or a range with their proofs, and writes an evidence pack.
//!
//! Everything in a pack is proven in the tree of one checkpoint. A proof that does not hold ends the export, and the finished pack is
//! verified before it gets its name. Left out: connecting and tokens. Invariant: at the given path there is a whole, verified pack or
//! what was there before.

use std::{
    collections::VecDeque,
    io::{self, BufWriter},
    path::{Path, PathBuf},
    pin::pin,
};

use exchequer_event::{
    entry,
    name::MAX_BATCH_EVENTS,
    v1::{self, EntryKind, entry::Kind, ledger_service_client::LedgerServiceClient},
};
use exchequer_tlog::{HASH_BYTES, Hash, SignedCheckpoint, VerifierKey};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use prost::bytes::Bytes;
use tonic::{
    Code, Status,
    client::GrpcService,
    codegen::{Body, StdError},
};

use super::{
    pack::{Manifest, PackWriter, Scope, WriteError},
    report::{Report, Verdict},
    verify::{self, Progress, Target, Trust},
};

/// Entries that a page asks for.
const PAGE: u32 = 500;
/// Entries that are held while their proofs are fetched.
const HELD: usize = 256;
/// Requests at a time.
const CONCURRENT: usize = 16;
/// Entries between a record and its seal, at most: a batch and a block have the same bound.
const MAX_WALK: u64 = MAX_BATCH_EVENTS as u64;

/// What to export, and where to.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which entries.
    pub scope: Scope,
    /// The log's verifier key as the caller knows it; without it the ledger's word is taken.
    pub key: Option<VerifierKey>,
    /// The pack's path. A file that is there is replaced.
    pub out: PathBuf,
}

/// A pack that was written.
#[derive(Clone, Debug)]
pub struct Exported {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its size in bytes.
    pub bytes: u64,
    /// What verifying it found.
    pub report: Report,
}

/// No pack was written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The ledger refused or could not be reached.
    #[error("the ledger: {} ({:?})", .0.message(), .0.code())]
    Ledger(Box<Status>),
    /// The ledger's answers make no pack that verifies.
    #[error("the ledger's answers can't be used: {0}")]
    Answers(String),
    /// The request can't be fulfilled as it is.
    #[error("{0}")]
    Request(String),
    /// The pack could not be written.
    #[error("the pack could not be written: {0}")]
    Write(#[from] WriteError),
    /// The finished pack does not verify.
    #[error("the pack does not verify, and was not kept:\n{0}")]
    Unverified(Box<Report>),
}

impl From<Status> for ExportError {
    fn from(status: Status) -> Self {
        Self::Ledger(Box::new(status))
    }
}

impl From<io::Error> for ExportError {
    fn from(error: io::Error) -> Self {
        Self::Write(error.into())
    }
}

fn answers<T>(detail: impl Into<String>) -> Result<T, ExportError> {
    Err(ExportError::Answers(detail.into()))
}

/// Writes a pack. `progress` counts entries; the total is known for a range and else grows along.
pub async fn export<T>(
    mut client: LedgerServiceClient<T>,
    request: Request,
    mut progress: impl FnMut(Progress),
) -> Result<Exported, ExportError>
where
    T: GrpcService<tonic::body::Body> + Clone,
    T::Error: Into<StdError>,
    T::ResponseBody: Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as Body>::Error: Into<StdError> + Send,
{
    let newest = client.get_checkpoint(v1::GetCheckpointRequest {}).await?.into_inner();
    let Ok(checkpoint) = SignedCheckpoint::parse(&newest.checkpoint) else {
        return answers("the checkpoint can't be read");
    };
    let key = match &request.key {
        Some(key) => key.clone(),
        None => match newest.verifier_key.trim().parse() {
            Ok(key) => key,
            Err(error) => return answers(format!("its verifier key: {error}")),
        },
    };
    let size = checkpoint.checkpoint().size();
    if let Scope::Range { first, end } = request.scope
        && (first >= end || end > size)
    {
        let detail =
            format!("there is no range {first} up to {end} in the {size} entries of the newest checkpoint");
        return Err(ExportError::Request(detail));
    }
    let dir = request.out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temp = tempfile::Builder::new().prefix(".exchequer-export-").tempfile_in(dir)?;
    let pack = PackWriter::new(BufWriter::new(temp), request.scope.clone(), &key, checkpoint)?;
    let mut export = Export { client, size, pack, held: Vec::new(), last: None, seal: None, written: 0 };
    export.run(&request.scope, &mut progress).await?;
    let (out, manifest) = export.pack.finish()?;
    let temp = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    temp.as_file().sync_all()?;
    let target = Target::Pack(temp.path().to_owned());
    let trust = Trust { key: request.key.clone(), ..Trust::default() };
    let mut report = verify::verify(target, trust, None, |_| {}).await;
    if report.verdict != Verdict::Holds {
        return Err(ExportError::Unverified(Box::new(report)));
    }
    report.target = request.out.display().to_string();
    let bytes = temp.as_file().metadata()?.len();
    temp.persist(&request.out).map_err(|error| error.error)?;
    std::fs::File::open(dir)?.sync_all()?;
    Ok(Exported { manifest, bytes, report })
}

struct Export<T> {
    client: LedgerServiceClient<T>,
    /// Entries of the checkpoint's tree.
    size: u64,
    pack: PackWriter<BufWriter<tempfile::NamedTempFile>>,
    /// Entries that wait for their proofs.
    held: Vec<(u64, Bytes)>,
    /// The last index that was taken.
    last: Option<u64>,
    /// Stream sequence of the seal that was taken last.
    seal: Option<u64>,
    written: u64,
}

/// Entries by a filter, page by page.
struct Pages {
    filter: v1::EntryFilter,
    token: String,
    page: VecDeque<v1::LogEntry>,
    ended: bool,
    next: u64,
}

impl Pages {
    fn new(tenant: &str, kinds: &[EntryKind]) -> Self {
        let kinds = kinds.iter().map(|kind| i32::from(*kind)).collect();
        Self {
            filter: v1::EntryFilter { tenant: tenant.into(), kinds, ..v1::EntryFilter::default() },
            token: String::new(),
            page: VecDeque::new(),
            ended: false,
            next: 0,
        }
    }
}

impl<T> Export<T>
where
    T: GrpcService<tonic::body::Body> + Clone,
    T::Error: Into<StdError>,
    T::ResponseBody: Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as Body>::Error: Into<StdError> + Send,
{
    async fn run(&mut self, scope: &Scope, progress: &mut impl FnMut(Progress)) -> Result<(), ExportError> {
        let mut control = Pages::new("", &[EntryKind::Control]);
        let mut waiting = self.next(&mut control).await?;
        if waiting.is_none() {
            return answers(
                "it shows no control records to this token, without which no signature can be checked",
            );
        }
        let mut records = match scope {
            Scope::Tenant(tenant) => Pages::new(tenant, &[EntryKind::Event, EntryKind::DecisionRun]),
            Scope::Range { first, .. } => Pages { next: *first, ..Pages::new("", &[]) },
        };
        loop {
            let record = match scope {
                Scope::Tenant(_) => self.next(&mut records).await?,
                Scope::Range { end, .. } => self.next_of_range(&mut records, *end).await?,
            };
            let until = record.as_ref().map_or(u64::MAX, |record| record.index);
            // Every control record before it; it may be one itself.
            while let Some(entry) = waiting.take_if(|entry| entry.index < until) {
                self.take(entry.index, entry.entry).await?;
                waiting = self.next(&mut control).await?;
            }
            let Some(record) = record else { break };
            if waiting.take_if(|entry| entry.index == until).is_some() {
                waiting = self.next(&mut control).await?;
            }
            self.take_record(record).await?;
            let total = if let Scope::Range { first, end } = scope { end - first } else { self.written };
            progress(Progress { done: self.written.min(total), total });
        }
        self.write_held().await?;
        progress(Progress { done: self.written, total: self.written });
        Ok(())
    }

    /// The next entry by a filter that is in the checkpoint's tree.
    async fn next(&mut self, pages: &mut Pages) -> Result<Option<v1::LogEntry>, ExportError> {
        while pages.page.is_empty() && !pages.ended {
            let request = v1::ListEntriesRequest {
                filter: Some(pages.filter.clone()),
                page_size: PAGE,
                page_token: std::mem::take(&mut pages.token),
            };
            let answer = self.client.list_entries(request).await?.into_inner();
            pages.ended = answer.next_page_token.is_empty();
            pages.token = answer.next_page_token;
            pages.page = answer.entries.into();
        }
        let Some(entry) = pages.page.pop_front() else { return Ok(None) };
        if entry.index < pages.next {
            return answers(format!("entry {} is listed out of order", entry.index));
        }
        pages.next = entry.index + 1;
        if entry.index >= self.size {
            // The log has grown since; what follows is not proven by this checkpoint.
            pages.ended = true;
            pages.page.clear();
            return Ok(None);
        }
        Ok(Some(entry))
    }

    /// The next entry of a range.
    async fn next_of_range(
        &mut self,
        pages: &mut Pages,
        end: u64,
    ) -> Result<Option<v1::LogEntry>, ExportError> {
        if pages.page.is_empty() {
            let to = end.min(pages.next + HELD as u64);
            let fetched = self.fetch(pages.next..to).await?;
            for (index, entry) in (pages.next..to).zip(fetched) {
                let Some(entry) = entry else {
                    return answers(format!("it does not show entry {index} to this token"));
                };
                pages.page.push_back(v1::LogEntry { index, entry });
            }
            pages.next = to;
        }
        Ok(pages.page.pop_front())
    }

    /// Entries by index, in the order asked for; `None` for one that the token may not see.
    async fn fetch(&self, indexes: impl IntoIterator<Item = u64>) -> Result<Vec<Option<Bytes>>, ExportError> {
        let fetched = stream::iter(indexes).map(|index| {
            let mut client = self.client.clone();
            async move {
                match client.get_entry(v1::GetEntryRequest { index }).await {
                    Ok(answer) => match answer.into_inner().entry {
                        Some(entry) if entry.index == index => Ok(Some(entry.entry)),
                        _ => answers(format!("it answers with another entry than {index}")),
                    },
                    Err(status) if matches!(status.code(), Code::NotFound | Code::PermissionDenied) => {
                        Ok(None)
                    }
                    Err(status) => Err(status.into()),
                }
            }
        });
        pin!(fetched.buffered(CONCURRENT)).try_collect().await
    }

    /// Takes an event or decision run, and before it the seal that it stands under.
    async fn take_record(&mut self, record: v1::LogEntry) -> Result<(), ExportError> {
        let v1::LogEntry { index, entry: bytes } = record;
        let Ok(entry) = entry::decode(&bytes) else {
            return answers(format!("entry {index} can't be decoded"));
        };
        match entry.kind {
            Some(Kind::Event(_) | Kind::DecisionRun(_)) if self.seal != Some(entry.stream_seq) => {
                let (place, seal) = self.seal_before(index, entry.stream_seq).await?;
                self.take(place, seal).await?;
                self.seal = Some(entry.stream_seq);
            }
            Some(Kind::BatchSealed(_) | Kind::BlockSealed(_)) => self.seal = Some(entry.stream_seq),
            _ => {}
        }
        self.take(index, bytes).await
    }

    /// Walks back to the seal of a record: records of other tenants, which the token may not see, can stand between.
    async fn seal_before(&self, index: u64, stream_seq: u64) -> Result<(u64, Bytes), ExportError> {
        let stop = index.saturating_sub(MAX_WALK);
        let (mut at, mut step) = (index, 1);
        while at > stop {
            // Most often the seal is near; a wide first look would be wasted.
            let from = at.saturating_sub(step).max(stop);
            let fetched = self.fetch((from..at).rev()).await?;
            for (place, bytes) in (from..at).rev().zip(fetched) {
                let Some(bytes) = bytes else { continue };
                let Ok(entry) = entry::decode(&bytes) else { continue };
                if entry.stream_seq != stream_seq {
                    return answers(format!("entry {index} stands under no seal"));
                }
                if matches!(entry.kind, Some(Kind::BatchSealed(_) | Kind::BlockSealed(_))) {
                    return Ok((place, bytes));
                }
            }
            at = from;
            step = (step * 4).min(64);
        }
        answers(format!("the seal that entry {index} stands under is not shown to this token"))
    }

    async fn take(&mut self, index: u64, bytes: Bytes) -> Result<(), ExportError> {
        if self.last.is_some_and(|last| index <= last) {
            return answers(format!("entry {index} comes twice or out of order"));
        }
        self.last = Some(index);
        self.held.push((index, bytes));
        if self.held.len() >= HELD {
            self.write_held().await?;
        }
        Ok(())
    }

    /// Fetches the proofs of the entries that wait, and writes them.
    async fn write_held(&mut self) -> Result<(), ExportError> {
        let held = std::mem::take(&mut self.held);
        let (client, tree_size) = (self.client.clone(), self.size);
        let proven = stream::iter(held).map(|(index, bytes)| {
            let mut client = client.clone();
            async move {
                let request = v1::GetInclusionProofRequest { index, tree_size };
                let answer = client.get_inclusion_proof(request).await?.into_inner();
                let hashes: Option<Vec<_>> = answer.hashes.iter().map(|hash| read_hash(hash)).collect();
                match hashes {
                    Some(hashes) => Ok((index, bytes, hashes)),
                    None => answers(format!(
                        "the proof of entry {index} has a hash that is not of {HASH_BYTES} bytes"
                    )),
                }
            }
        });
        let mut proven = pin!(proven.buffered(CONCURRENT));
        while let Some((index, bytes, hashes)) = proven.try_next().await? {
            self.pack.entry(index, &bytes, hashes)?;
            self.written += 1;
        }
        Ok(())
    }
}

fn read_hash(bytes: &[u8]) -> Option<Hash> {
    Some(Hash(bytes.try_into().ok()?))
}
