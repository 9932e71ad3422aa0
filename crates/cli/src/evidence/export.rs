//! `export`: asks a ledger for the entries of a tenant, a range or a time with their proofs, and writes an evidence pack or lines.
//!
//! Everything is proven in the tree of one checkpoint. An entry that is not in it ends the export, and what was written is verified as
//! a whole before it gets its name. An export that is ended is continued by the next one from its partial file (`partial`). Left out:
//! connecting and tokens. Invariant: at the given path there is what is whole and verified, or what was there before.

mod fetch;
pub mod follow;
mod partial;

use std::{io, path::PathBuf};

use exchequer_event::{
    entry,
    v1::{self, EntryKind, entry::Kind, ledger_service_client::LedgerServiceClient},
};
use exchequer_tlog::{HASH_BYTES, Hash, SignedCheckpoint, VerifierKey};
use prost::bytes::Bytes;
use tonic::Status;

use super::{
    keys::verify_signatures,
    lines::Rendering,
    pack::{Scope, Selection, TimeRange, WriteError},
    report::{Report, Verdict},
    verify::{self, Progress, Target, Trust},
};
pub(super) use fetch::Listing;
use fetch::Merged;
pub use fetch::Transport;
use partial::{Output, Partial, Written};

/// What is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// An evidence pack: one archive with entries, proofs and keys.
    #[default]
    Native,
    /// A JSON object per entry by the protocol's own names, and FILE.proof.
    Ndjson,
    /// An OCSF 1.9 event per entry, and FILE.proof.
    Ocsf,
}

impl Format {
    fn rendering(self) -> Option<Rendering> {
        match self {
            Self::Native => None,
            Self::Ndjson => Some(Rendering::Ndjson),
            Self::Ocsf => Some(Rendering::Ocsf),
        }
    }

    /// What the names of its files end with.
    fn extension(self) -> &'static str {
        match self {
            Self::Native => "pack",
            Self::Ndjson => "ndjson",
            Self::Ocsf => "ocsf.ndjson",
        }
    }
}

/// What to export, and where to.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which entries; without it the range that covers `time`.
    pub scope: Option<Scope>,
    /// Only what is of this time.
    pub time: Option<TimeRange>,
    /// What is written.
    pub format: Format,
    /// The log's verifier key as the caller knows it; without it the ledger's word is taken.
    pub key: Option<VerifierKey>,
    /// Root of the tree before the range, which this has to continue.
    pub continues: Option<String>,
    /// Where to. A file that is there is replaced.
    pub out: PathBuf,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Exported {
    /// Its origin.
    pub origin: String,
    /// The log's verifier key.
    pub log_key: String,
    /// Entries in it.
    pub entries: u64,
    /// How many of them an earlier export had left.
    pub resumed: u64,
    /// Its size in bytes, without what lies beside it.
    pub bytes: u64,
    /// What verifying it found.
    pub report: Report,
}

/// Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The ledger refused or could not be reached.
    #[error("the ledger: {} ({:?})", .0.message(), .0.code())]
    Ledger(Box<Status>),
    /// The ledger's answers make no evidence that verifies.
    #[error("the ledger's answers can't be used: {0}")]
    Answers(String),
    /// The request can't be fulfilled as it is.
    #[error("{0}")]
    Request(String),
    /// It could not be written.
    #[error("it could not be written: {0}")]
    Write(#[from] WriteError),
    /// What was written does not verify.
    #[error("what was written does not verify, and was not kept:\n{0}")]
    Unverified(Box<Report>),
}

impl ExportError {
    /// Whether what was written up to here is worth keeping for another try.
    fn leaves_partial(&self) -> bool {
        match self {
            Self::Ledger(_) | Self::Request(_) | Self::Write(WriteError::Io(_)) => true,
            Self::Answers(_) | Self::Write(_) | Self::Unverified(_) => false,
        }
    }
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

pub(super) fn answers<T>(detail: impl Into<String>) -> Result<T, ExportError> {
    Err(ExportError::Answers(detail.into()))
}

/// Exports. `progress` counts entries; the total is known for a range and else grows along.
pub async fn export<T: Transport>(
    client: LedgerServiceClient<T>,
    request: Request,
    mut progress: impl FnMut(Progress),
) -> Result<Exported, ExportError> {
    let partial = Partial::open(&request.out, request.format)?;
    match write(client, &request, &partial, &mut progress).await {
        Ok(exported) => Ok(Exported { bytes: partial.persist()?, ..exported }),
        Err(error) => {
            if !error.leaves_partial() || !partial.is_worth_keeping() {
                partial.remove();
            }
            Err(error)
        }
    }
}

async fn write<T: Transport>(
    mut client: LedgerServiceClient<T>,
    request: &Request,
    partial: &Partial,
    progress: &mut impl FnMut(Progress),
) -> Result<Exported, ExportError> {
    let newest = client.get_checkpoint(v1::GetCheckpointRequest {}).await?.into_inner();
    let served: VerifierKey = match newest.verifier_key.trim().parse() {
        Ok(key) => key,
        Err(error) => return answers(format!("its verifier key: {error}")),
    };
    let checkpoint = match partial.checkpoint()? {
        Some(begun) => begun,
        None => match SignedCheckpoint::parse(&newest.checkpoint) {
            Ok(checkpoint) => checkpoint,
            Err(_) => return answers("the checkpoint can't be read"),
        },
    };
    // What is continued can be of before a rotation, whose key is then the one that the caller knows.
    let signed =
        |key: &VerifierKey| verify_signatures(&checkpoint, key.name(), std::slice::from_ref(key)).is_ok();
    let key = match &request.key {
        Some(known) if !signed(&served) => known.clone(),
        _ => served,
    };
    let size = checkpoint.checkpoint().size();
    let scope = match (&request.scope, request.time) {
        (Some(scope), _) => scope.clone(),
        (None, Some(time)) => covering(&client, time, size).await?,
        (None, None) => return Err(ExportError::Request("nothing is selected".into())),
    };
    if let Scope::Range { first, end } = scope
        && (first >= end || end > size)
    {
        let detail = format!("there is no range {first} up to {end} in the {size} entries of the checkpoint");
        return Err(ExportError::Request(detail));
    }
    let selection = Selection { scope, time: request.time };
    let output = partial.writer(selection.clone(), &key, checkpoint)?;
    let resumed = output.written().1;
    let mut export = Export { client, size, selection, output, seal: None };
    let ran = export.run(progress).await;
    partial.keeps(export.output.written().1);
    ran?;
    let written = export.output.finish()?;
    let (origin, entries) = match &written {
        Written::Pack(manifest) => (manifest.origin.clone(), manifest.entries),
        Written::Lines(beside) => (beside.origin.clone(), beside.entries.unwrap_or_default()),
    };
    let report = check(request, partial.finish(written)?).await?;
    Ok(Exported { origin, log_key: key.to_string(), entries, resumed, bytes: 0, report })
}

/// Verifies what was written.
async fn check(request: &Request, (path, beside): (PathBuf, Option<PathBuf>)) -> Result<Report, ExportError> {
    let target = match beside {
        Some(beside) => Target::Lines { records: path, beside },
        None => Target::Pack(path),
    };
    let trust = Trust { key: request.key.clone(), ..Trust::default() };
    let mut report = verify::verify(target, trust, None, |_| {}).await;
    if report.verdict != Verdict::Holds {
        return Err(ExportError::Unverified(Box::new(report)));
    }
    if let Some(continues) = &request.continues
        && report.range_roots.as_ref().is_none_or(|roots| roots.before != *continues)
    {
        return answers("the log is not the one that was exported before: it does not continue it");
    }
    report.target = request.out.display().to_string();
    Ok(report)
}

/// The range from the first to the last entry of a time.
async fn covering<T: Transport>(
    client: &LedgerServiceClient<T>,
    time: TimeRange,
    size: u64,
) -> Result<Scope, ExportError> {
    let filter = timed(v1::EntryFilter::default(), time);
    let request = v1::ListEntriesRequest { filter: Some(filter), tree_size: size, ..Default::default() };
    let mut listing = Listing::new(client, request);
    let mut found: Option<(u64, u64)> = None;
    while let Some(entry) = listing.next().await? {
        found = Some((found.map_or(entry.index, |(first, _)| first), entry.index + 1));
    }
    match found {
        Some((first, end)) => Ok(Scope::Range { first, end }),
        None => Err(ExportError::Request("no entry is of that time".into())),
    }
}

fn timed(filter: v1::EntryFilter, time: TimeRange) -> v1::EntryFilter {
    v1::EntryFilter {
        from_unix_ms: time.from_unix_ms.unwrap_or_default(),
        until_unix_ms: time.until_unix_ms.unwrap_or_default(),
        ..filter
    }
}

struct Export<T> {
    client: LedgerServiceClient<T>,
    /// Entries of the checkpoint's tree.
    size: u64,
    selection: Selection,
    output: Output,
    /// Stream sequence of the seal that came last.
    seal: Option<u64>,
}

impl<T: Transport> Export<T> {
    async fn run(&mut self, progress: &mut impl FnMut(Progress)) -> Result<(), ExportError> {
        let (last, _) = self.output.written();
        let from = last.map_or(0, |last| last + 1);
        let mut entries = self.listings(from).await?;
        let mut next_in_range = match self.selection.scope {
            Scope::Range { first, .. } => first.max(from),
            Scope::Tenant(_) => 0,
        };
        let mut is_begun = last.is_some();
        while let Some(entry) = entries.next().await? {
            if !std::mem::replace(&mut is_begun, true) {
                begins_with_control(&entry)?;
            }
            if last.is_some_and(|last| entry.index <= last) {
                // A seal that was written before the export was ended, for a record that was not.
                self.note_seal(&entry)?;
                continue;
            }
            if let Scope::Range { first, end } = self.selection.scope {
                let missing = entry.index > next_in_range && next_in_range < end;
                if missing {
                    return answers(format!("it does not show entry {next_in_range} to this token"));
                }
                if (first..end).contains(&entry.index) {
                    next_in_range = entry.index + 1;
                }
            }
            self.take(entry).await?;
            let (_, written) = self.output.written();
            let total =
                if let Scope::Range { first, end } = self.selection.scope { end - first } else { written };
            progress(Progress { done: written.min(total), total });
        }
        if let Scope::Range { end, .. } = self.selection.scope
            && next_in_range < end
        {
            return answers(format!("it does not show entry {next_in_range} to this token"));
        }
        let (_, written) = self.output.written();
        progress(Progress { done: written, total: written });
        Ok(())
    }

    /// Everything of the selection from an index on: the control records, and the records with their seals.
    async fn listings(&self, from: u64) -> Result<Merged<T>, ExportError> {
        let Self { client, size, .. } = self;
        let list = |filter: v1::EntryFilter, with_proofs: bool, with_seals: bool| {
            let filter = v1::EntryFilter { from_index: from.max(filter.from_index), ..filter };
            let request = v1::ListEntriesRequest {
                filter: Some(filter),
                with_proofs,
                with_seals,
                tree_size: *size,
                ..Default::default()
            };
            Listing::new(client, request)
        };
        let of = |kinds: &[EntryKind]| v1::EntryFilter {
            kinds: kinds.iter().map(|kind| i32::from(*kind)).collect(),
            ..Default::default()
        };
        let mut listings = vec![list(of(&[EntryKind::Control]), true, false)];
        match (&self.selection.scope, self.selection.time) {
            (Scope::Range { first, end }, _) => {
                if from < *end {
                    let filter =
                        v1::EntryFilter { from_index: *first, until_index: *end, ..Default::default() };
                    let proofs = matches!(self.output, Output::Lines(_));
                    listings.push(list(filter, proofs, true));
                }
            }
            (Scope::Tenant(tenant), None) => {
                let filter = of(&[EntryKind::Event, EntryKind::DecisionRun]);
                listings.push(list(v1::EntryFilter { tenant: tenant.clone(), ..filter }, true, true));
            }
            (Scope::Tenant(tenant), Some(time)) => {
                let events = v1::EntryFilter { tenant: tenant.clone(), ..of(&[EntryKind::Event]) };
                listings.push(list(timed(events, time), true, true));
                // A decision run has no clock of its own; its block has.
                let runs = v1::EntryFilter { tenant: tenant.clone(), ..of(&[EntryKind::DecisionRun]) };
                listings.push(list(runs, true, true).of_blocks(time));
            }
        }
        Merged::new(listings).await
    }

    /// Notes a seal; an event or decision run has to stand under the one that came last.
    fn note_seal(&mut self, logged: &v1::LogEntry) -> Result<(), ExportError> {
        let index = logged.index;
        let Ok(entry) = entry::decode(&logged.entry) else {
            return answers(format!("entry {index} can't be decoded"));
        };
        match entry.kind {
            Some(Kind::BatchSealed(_) | Kind::BlockSealed(_)) => self.seal = Some(entry.stream_seq),
            Some(Kind::Event(_) | Kind::DecisionRun(_)) if self.seal != Some(entry.stream_seq) => {
                return answers(format!("it does not show the seal that entry {index} stands under"));
            }
            _ => {}
        }
        Ok(())
    }

    async fn take(&mut self, logged: v1::LogEntry) -> Result<(), ExportError> {
        self.note_seal(&logged)?;
        let v1::LogEntry { index, entry, mut proof } = logged;
        let is_proven = matches!(self.output, Output::Lines(_)) || self.selection.scope.proves(index);
        if is_proven && proof.is_empty() {
            let request = v1::GetInclusionProofRequest { index, tree_size: self.size };
            proof = self.client.get_inclusion_proof(request).await?.into_inner().hashes;
        }
        let hashes: Option<Vec<_>> = proof.iter().map(read_hash).collect();
        let Some(hashes) = hashes else {
            return answers(format!(
                "the proof of entry {index} has a hash that is not of {HASH_BYTES} bytes"
            ));
        };
        self.output.entry(index, &entry, hashes)?;
        Ok(())
    }
}

/// The genesis is before everything else, and is selected by every scope.
fn begins_with_control(first: &v1::LogEntry) -> Result<(), ExportError> {
    match entry::decode(&first.entry).map(|entry| entry.kind) {
        Ok(Some(Kind::Control(_))) => Ok(()),
        _ => answers("it shows no control records to this token, without which no signature can be checked"),
    }
}

fn read_hash(bytes: &Bytes) -> Option<Hash> {
    Some(Hash(bytes[..].try_into().ok()?))
}
