//! What a verification found: a verdict, the facts it rests on, what it does not show, and each fault with its place.
//!
//! Left out: finding it. Invariant: the verdict follows from the faults alone; a report without faults holds.

use std::fmt;

use exchequer_tlog::RangeCheck;
use serde::Serialize;
use serde_json::Value as Json;

use super::pack::{Scope, TimeRange};
use crate::describe::utc;

/// Faults that a report lists. Those beyond are counted.
pub const MAX_FAULTS: usize = 100;

/// What it comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every check was made and held.
    Holds,
    /// Something is not what was signed.
    Tampered,
    /// Nothing is known to be wrong, but not everything could be checked.
    CouldNotCheck,
}

impl Verdict {
    /// The exit status of a program that ends with this verdict.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Holds => 0,
            Self::Tampered => 1,
            Self::CouldNotCheck => 2,
        }
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The checkpoint is not signed by the log's key, or a signature of that key is wrong.
    CheckpointSignature,
    /// Too few of the witnesses that were asked for cosigned the checkpoint.
    Quorum,
    /// An entry is not the one whose hash the signed tree holds.
    EntryChanged,
    /// A hash in a tile is wrong; the entry or hashes below it are those of the signed tree.
    TileChanged,
    /// An entry and its hash in the tree disagree, and what is signed does not tell which of them is right.
    EntryOrTileChanged,
    /// Entries and their hashes were changed together: they fit each other, but not the signed tree.
    EntriesRewritten,
    /// The tree does not have the signed root.
    RootMismatch,
    /// A bundle or tile is not as long as its content demands.
    FileDamaged,
    /// A superseded partial file, which nothing needs any more, differs from the file that took its place.
    StaleFileChanged,
    /// A record's signature, numbering, chain or seal does not hold.
    Record,
    /// The key that signed the checkpoint is not a ledger key of this log.
    LedgerKey,
    /// The tree does not continue the trusted checkpoint.
    Inconsistent,
    /// The pack is not in its own format, or not what its manifest says.
    PackDamaged,
    /// The receipt is not in its own format, or not of what it says.
    ReceiptDamaged,
    /// An entry of a tenant's pack belongs to somebody else.
    ForeignEntry,
    /// An entry's inclusion proof does not lead to the signed root.
    Inclusion,
    /// A file is missing.
    Missing,
    /// A file could not be read.
    Unreadable,
    /// What was given to check, or to check it with, can't be used.
    BadInput,
}

impl FaultKind {
    /// The verdict that this fault alone leads to.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::Missing | Self::Unreadable | Self::BadInput => Verdict::CouldNotCheck,
            _ => Verdict::Tampered,
        }
    }
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Index of the entry, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// What is wrong.
    pub kind: FaultKind,
    /// What the entry is, such as `event 7 of agent worker-1`; empty where it is about no entry.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub entry: String,
    /// In words, with the file where it is about one.
    pub detail: String,
    /// What should be there: a hash in base64, as C2SP files have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
}

impl Fault {
    /// A fault that is about no single entry.
    pub(super) fn new(kind: FaultKind, detail: impl Into<String>) -> Self {
        Self { index: None, kind, entry: String::new(), detail: detail.into(), expected: None, found: None }
    }

    pub(super) fn at(mut self, index: u64, entry: impl Into<String>) -> Self {
        self.index = Some(index);
        self.entry = entry.into();
        self
    }

    pub(super) fn hashes(mut self, expected: impl fmt::Display, found: impl fmt::Display) -> Self {
        self.expected = Some(expected.to_string());
        self.found = Some(found.to_string());
        self
    }
}

/// What was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Entries whose place in the tree was checked.
    pub entries: u64,
    /// Hash tiles that were compared.
    pub tiles: u64,
    /// Saved checkpoints that the tree was found to continue, each signed by a ledger key of its time.
    pub checkpoints: u64,
    /// Inclusion proofs that were verified.
    pub proofs: u64,
    /// Signatures of agents, metering and the ledger under the entries.
    pub signatures: u64,
    /// Events that stand under a seal.
    pub events: u64,
    /// Decision runs that stand under a seal.
    pub decision_runs: u64,
    /// Recorded rejections.
    pub rejections: u64,
    /// Recorded equivocations.
    pub equivocations: u64,
}

/// A witness's cosignature of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cosignature {
    /// The witness's verifier key.
    pub key: String,
    /// When it cosigned, by its own clock, seconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unix_s: Option<u64>,
}

/// What was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// An evidence pack.
    Pack,
    /// A receipt of a decision.
    Receipt,
    /// Evidence in lines.
    Lines,
    /// A directory of segments.
    Segments,
    /// A log directory.
    Directory,
    /// A log behind a URL.
    Url,
}

/// Roots of the log's trees at both ends of a range: ranges that follow each other have to agree on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RangeRoots {
    /// Of the tree of the entries before the range, base64.
    pub before: String,
    /// Of the tree that ends with the range, base64.
    pub after: String,
}

impl RangeRoots {
    pub(super) fn of(range: &RangeCheck) -> Self {
        Self { before: range.before().to_string(), after: range.after().to_string() }
    }
}

/// What a receipt shows to have been decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decided {
    /// The partition.
    pub partition: String,
    /// Number of the block within it.
    pub block: u64,
    /// Stream sequence of the block.
    pub stream_seq: u64,
    /// When it was decided by the writer's clock, milliseconds since the Unix epoch.
    pub time_unix_ms: u64,
    /// What was asked for: an idempotency key or a hold.
    pub about: String,
    /// The decisions, by the protocol's own names.
    pub decisions: Vec<Json>,
    /// The same in words.
    #[serde(skip)]
    pub lines: Vec<String>,
}

/// The result of a verification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What it comes to.
    pub verdict: Verdict,
    /// What kind of thing was verified.
    pub subject: Subject,
    /// Where it is.
    pub target: String,
    /// The log's origin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The verifier key that the checkpoint was checked with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Whether that key was given by the caller. Otherwise it is the log's own word, and who wrote the log is not shown.
    pub key_given: bool,
    /// The verifier key that signed the checkpoint, where that is another to which the log's control records lead from `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// Entries in the signed tree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tree_size: Option<u64>,
    /// The signed root, base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Time of the ledger's own cosignature, seconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed_unix_s: Option<u64>,
    /// Cosignatures by the witnesses that the caller believes, where they are enough.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cosignatures: Vec<Cosignature>,
    /// Entries that were not read again, as an earlier verification had found them to hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_size: Option<u64>,
    /// Size of the largest saved checkpoint that the tree was found to continue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continues_size: Option<u64>,
    /// What a pack is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// The time that a pack is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<TimeRange>,
    /// The trees at both ends of a range that holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range_roots: Option<RangeRoots>,
    /// What a receipt is of. Only if it holds has it been decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decided: Option<Decided>,
    /// What was checked.
    pub checked: Checked,
    /// What the reader must know beside the verdict.
    pub notes: Vec<String>,
    /// What is wrong: first what is about no entry, then by index.
    pub faults: Vec<Fault>,
    /// Faults beyond [`MAX_FAULTS`], which are not listed.
    pub more_faults: u64,
}

impl Report {
    pub(super) fn new(subject: Subject, target: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Holds,
            subject,
            target: target.into(),
            origin: None,
            key: None,
            key_given: false,
            signed_by: None,
            since_size: None,
            tree_size: None,
            root: None,
            signed_unix_s: None,
            cosignatures: Vec::new(),
            continues_size: None,
            scope: None,
            time: None,
            range_roots: None,
            decided: None,
            checked: Checked::default(),
            notes: Vec::new(),
            faults: Vec::new(),
            more_faults: 0,
        }
    }

    /// Takes a fault. The verdict only ever gets worse.
    pub(super) fn fault(&mut self, fault: Fault) {
        self.verdict = match (self.verdict, fault.kind.verdict()) {
            (Verdict::Tampered, _) | (_, Verdict::Tampered) => Verdict::Tampered,
            _ => Verdict::CouldNotCheck,
        };
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        } else {
            self.more_faults += 1;
        }
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Whether no further fault would be listed.
    pub(super) fn is_full(&self) -> bool {
        self.faults.len() >= MAX_FAULTS
    }

    pub(super) fn finish(mut self) -> Self {
        // What was not shown to be decided is not repeated as if it were.
        self.decided = self.decided.filter(|_| self.verdict == Verdict::Holds);
        self.faults.sort_by_key(|fault| fault.index);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(index) = self.index {
            write!(f, "entry {index}")?;
            if !self.entry.is_empty() {
                write!(f, " ({})", self.entry)?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.detail)?;
        if let Some(expected) = &self.expected {
            write!(f, "\n      expected {expected}")?;
        }
        if let Some(found) = &self.found {
            write!(f, "\n      found    {found}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    /// The report for people, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Holds => "HOLDS",
            Verdict::Tampered => "TAMPERED",
            Verdict::CouldNotCheck => "COULD NOT CHECK",
        };
        let subject = match self.subject {
            Subject::Pack => "evidence pack",
            Subject::Receipt => "receipt",
            Subject::Lines => "evidence in lines",
            Subject::Segments => "segments in",
            Subject::Directory => "log directory",
            Subject::Url => "log at",
        };
        write!(f, "{verdict}: {subject} {}", self.target)?;
        if let Some(origin) = &self.origin {
            write!(f, "\n  log        {origin}")?;
        }
        match &self.scope {
            Some(Scope::Tenant(tenant)) => write!(f, "\n  tenant     {tenant}")?,
            Some(Scope::Range { first, end }) => write!(f, "\n  range      entries {first} up to {end}")?,
            None => {}
        }
        if let (Some(size), Some(root)) = (self.tree_size, &self.root) {
            write!(f, "\n  checkpoint {size} entries, root {root}")?;
        }
        if let Some(time) = self.signed_unix_s {
            write!(f, "\n  signed at  {time} (seconds since the Unix epoch)")?;
        }
        if let Some(key) = &self.key {
            let source = if self.key_given { "given by you" } else { "the log's own word" };
            write!(f, "\n  key        {key} ({source})")?;
        }
        for cosignature in &self.cosignatures {
            write!(f, "\n  cosigned   {}", cosignature.key)?;
            if let Some(time) = cosignature.unix_s {
                write!(f, " at {time}")?;
            }
        }
        if let Some(key) = &self.signed_by {
            write!(f, "\n  signed by  {key} (enrolled by that key or by one that it leads to)")?;
        }
        if let Some(size) = self.since_size {
            write!(f, "\n  since      {size} entries, verified before and not read again")?;
        }
        if let Some(size) = self.continues_size {
            write!(f, "\n  continues  the saved checkpoint of {size} entries")?;
        }
        if let Some(decided) = &self.decided {
            write!(
                f,
                "\n  decided at {} in block {} of partition {}, stream sequence {}",
                utc(decided.time_unix_ms),
                decided.block,
                decided.partition,
                decided.stream_seq
            )?;
            for line in &decided.lines {
                write!(f, "\n  decision   {line}")?;
            }
        }
        let c = &self.checked;
        write!(f, "\n  checked    {} entries", c.entries)?;
        for (count, what) in [
            (c.proofs, "inclusion proofs"),
            (c.checkpoints, "saved checkpoints"),
            (c.tiles, "tiles"),
            (c.signatures, "signatures under the entries"),
            (c.events, "events"),
            (c.decision_runs, "decision runs"),
            (c.rejections, "rejections on record"),
            (c.equivocations, "equivocations on record"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        for note in &self.notes {
            write!(f, "\n  note       {note}")?;
        }
        for fault in &self.faults {
            write!(f, "\n  fault      {fault}")?;
        }
        if self.more_faults > 0 {
            write!(f, "\n  and {} faults more", self.more_faults)?;
        }
        Ok(())
    }
}
