//! `verify`: checks an evidence pack, evidence in lines, segments, a log directory or a live log, offline but for reading it.
//!
//! What has to hold: the checkpoint is signed by the log's key; every entry is the leaf that the signed tree has at its place; every
//! tile is what the entries lead to; every batch, block and control record is signed by a key that was enrolled at that point of the
//! log, and numbering and chains are unbroken; the tree continues the earlier checkpoint that the caller trusts, if one is given.
//!
//! Witnesses' cosignatures count as the caller says which witnesses to believe; without, they are signatures by unknown keys.
//!
//! Left out: what witnesses themselves hold. Invariant: without a key of the caller the report says that only consistency was shown.

use std::{
    fs::File,
    io::Read as _,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use exchequer_event::{accept::Acceptor, v1::KeyRole};
use exchequer_tlog::{
    Checkpoint, EMPTY_ROOT, MAX_POLICY_BYTES, SignedCheckpoint, TrustError, VerifierKey, WitnessPolicy,
};

use super::{
    keys::{Signed, verify_signatures},
    lines,
    log::{self, Scanned},
    pack, pack_check, receipt,
    report::{Cosignature, Fault, FaultKind, Report, Subject, Verdict},
    saved::Saved,
    segments, signatures,
    source::{Remote, Source, SourceError},
    state::Verified,
};

/// Largest checkpoint that is read, bytes: room for more signatures than there are witnesses.
pub(super) const MAX_CHECKPOINT_BYTES: usize = 64 * 1024;
const MAX_KEY_FILE_BYTES: u64 = 4096;

/// What is noted where the caller gave no key.
pub(super) const OWN_WORD: &str = "no key was given: the key is the log's own word, so this shows that the log is consistent in itself, not whose log it is";

/// What to verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An evidence pack, a receipt, or evidence in lines with its proof file beside it.
    Pack(PathBuf),
    /// A receipt of a decision of metering.
    Receipt(PathBuf),
    /// Evidence in lines whose proof file lies elsewhere.
    Lines {
        /// The records.
        records: PathBuf,
        /// What they are checked with.
        beside: PathBuf,
    },
    /// A directory of segments; a log directory, or the ledger's data directory around it.
    Directory(PathBuf),
    /// The `http://` address under which a log's files are served.
    Url(String),
}

impl Target {
    /// What a command-line argument means: an address, a directory, and else a pack.
    pub fn parse(argument: &str) -> Self {
        if argument.starts_with("http://") || argument.starts_with("https://") {
            Self::Url(argument.to_owned())
        } else if Path::new(argument).is_dir() {
            Self::Directory(argument.into())
        } else {
            Self::Pack(argument.into())
        }
    }
}

/// What the caller trusts.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// The log's verifier key. Without it the log's own word is taken, and the report says so.
    pub key: Option<VerifierKey>,
    /// Earlier checkpoints that the tree has to continue.
    pub checkpoints: Vec<Saved>,
    /// An earlier verification, after which a log is read on. Nothing of the entries before it is read again.
    pub since: Option<Verified>,
    /// The witnesses that are believed, and how many of them have to have cosigned.
    pub witnesses: Option<WitnessPolicy>,
}

/// A verification to make.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to verify.
    pub target: Target,
    /// What the caller trusts.
    pub trust: Trust,
    /// Goes along with each request to a URL.
    pub token: Option<String>,
    /// Threads that read and hash beside the one that judges; `None` for one a core, or for as many requests as are worth making at a
    /// time. The report is the same for any number.
    pub threads: Option<NonZeroUsize>,
}

/// A verification that was made.
#[derive(Clone, Debug)]
pub struct Finished {
    /// What it found.
    pub report: Report,
    /// What the next one can go on from, if a log held.
    pub verified: Option<Verified>,
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Entries done.
    pub done: u64,
    /// Entries in all.
    pub total: u64,
}

/// Reads a verifier key: the key itself, or the path of a file that holds it.
pub fn read_key(argument: &str) -> Result<VerifierKey, String> {
    if let Ok(key) = argument.trim().parse() {
        return Ok(key);
    }
    let mut text = String::new();
    let file = File::open(argument)
        .map_err(|error| format!("{argument} is neither a verifier key nor a file: {error}"))?;
    let read = file.take(MAX_KEY_FILE_BYTES).read_to_string(&mut text);
    read.map_err(|error| format!("{argument}: {error}"))?;
    text.trim().parse().map_err(|error| format!("{argument}: {error}"))
}

/// Reads a policy file (C2SP tlog-policy).
pub fn read_policy(path: &Path) -> Result<WitnessPolicy, String> {
    let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(|error| at(&error))?;
    let mut text = String::new();
    let read = file.take(MAX_POLICY_BYTES as u64 + 1).read_to_string(&mut text);
    read.map_err(|error| at(&error))?;
    WitnessPolicy::parse(&text).map_err(|error| at(&error))
}

/// Verifies on a thread of its own. `token` goes along with each request to a URL.
pub async fn verify(
    target: Target,
    trust: Trust,
    token: Option<String>,
    progress: impl FnMut(Progress) + Send + 'static,
) -> Report {
    run(Request { target, trust, token, threads: None }, progress).await.report
}

/// Makes a verification on a thread of its own.
pub async fn run(request: Request, progress: impl FnMut(Progress) + Send + 'static) -> Finished {
    let name = request.target.clone();
    let done = tokio::task::spawn_blocking(move || run_blocking(request, progress)).await;
    done.unwrap_or_else(|error| {
        let (subject, shown) = name.describe();
        let mut report = Report::new(subject, shown);
        report.fault(Fault::new(FaultKind::Unreadable, format!("the verification ended: {error}")));
        Finished { report, verified: None }
    })
}

/// Verifies from this thread, which must not be one of an async runtime, on all cores.
pub fn verify_blocking(
    target: &Target,
    trust: &Trust,
    token: Option<String>,
    progress: impl FnMut(Progress),
) -> Report {
    let request = Request { target: target.clone(), trust: trust.clone(), token, threads: None };
    run_blocking(request, progress).report
}

/// Makes a verification from this thread, which must not be one of an async runtime.
pub fn run_blocking(request: Request, mut progress: impl FnMut(Progress)) -> Finished {
    let Request { target, trust, token, threads } = &request;
    let (subject, shown) = target.describe();
    let mut report = Report::new(subject, shown);
    report.key_given = trust.key.is_some();
    let state = match target {
        Target::Pack(path) => {
            let beside = lines::proof_path(path);
            // By what it is: beside a pack there can be what belonged to lines of the same name.
            if beside.is_file() && !pack::begins(path) {
                lines::check(path, &beside, trust, &mut report, &mut progress);
            } else if receipt::begins(path) {
                receipt::check(path, trust, &mut report);
            } else {
                pack_check::check(path, trust, &mut report, &mut progress);
            }
            None
        }
        Target::Receipt(path) => {
            receipt::check(path, trust, &mut report);
            None
        }
        Target::Lines { records, beside } => {
            lines::check(records, beside, trust, &mut report, &mut progress);
            None
        }
        Target::Directory(path) if segments::are_in(path) => {
            segments::check(path, trust, &mut report, &mut progress);
            None
        }
        Target::Directory(path) => {
            let inner = path.join("log");
            let nested = !path.join("checkpoint").is_file() && inner.join("checkpoint").is_file();
            let root = if nested { inner } else { path.clone() };
            check_log(&Source::Directory(root), *threads, trust, &mut report, &mut progress)
        }
        Target::Url(url) => match Remote::new(url, token.clone()) {
            Ok(remote) => check_log(&Source::Remote(remote), *threads, trust, &mut report, &mut progress),
            Err(error) => {
                report.fault(Fault::new(FaultKind::BadInput, error));
                None
            }
        },
    };
    let report = report.finish();
    Finished { verified: state.filter(|_| report.verdict == Verdict::Holds), report }
}

impl Target {
    fn describe(&self) -> (Subject, String) {
        match self {
            Self::Pack(path) | Self::Lines { records: path, .. } => {
                (Subject::Pack, path.display().to_string())
            }
            Self::Receipt(path) => (Subject::Receipt, path.display().to_string()),
            Self::Directory(path) => (Subject::Directory, path.display().to_string()),
            Self::Url(url) => (Subject::Url, url.clone()),
        }
    }
}

/// Checks a log into the report. The state that a verification of what follows can go on from; whether it held is the report's to say.
fn check_log(
    source: &Source,
    threads: Option<NonZeroUsize>,
    trust: &Trust,
    report: &mut Report,
    progress: &mut dyn FnMut(Progress),
) -> Option<Verified> {
    let read = source.read("checkpoint", MAX_CHECKPOINT_BYTES).map_err(|error| {
        let kind = if error == SourceError::Missing { FaultKind::Missing } else { FaultKind::Unreadable };
        Fault::new(kind, format!("checkpoint {error}"))
    });
    let parsed = read.and_then(|bytes| {
        SignedCheckpoint::parse(&bytes)
            .map_err(|error| Fault::new(FaultKind::BadInput, format!("checkpoint: {error}")))
    });
    let signed = match parsed {
        Ok(signed) => signed,
        Err(fault) => {
            report.fault(fault);
            return None;
        }
    };
    let head = signed.checkpoint();
    let since = trust.since.as_ref();
    if let Some(verified) = since.map(|verified| verified.checkpoint().checkpoint())
        && verified.size() > head.size()
    {
        report.fault(rolled_back("what was verified", verified.size(), head.size()));
        return None;
    }
    let earlier = since.iter().map(|verified| verified.checkpoint().checkpoint().size());
    let mut sizes: Vec<_> = earlier
        .chain(trust.checkpoints.iter().map(|saved| saved.signed.checkpoint().size()))
        .filter(|size| *size <= head.size())
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    let since_size = since.map_or(0, |verified| verified.checkpoint().checkpoint().size());
    if sizes.first().is_some_and(|size| *size < since_size) {
        let detail = format!(
            "a saved checkpoint is older than the {since_size} entries that are not read again: only a whole verification \
             can compare it"
        );
        report.fault(Fault::new(FaultKind::BadInput, detail));
        return None;
    }
    let threads = threads.map_or_else(|| source.lanes(), |threads| threads.get() as u64);
    let scanned = log::scan(source, log::Plan { head, sizes, since, threads }, report, progress);
    if let Some(verified) = since {
        report.since_size = Some(since_size);
        report.note(format!(
            "the first {since_size} entries were not read again: that they held is the word of the earlier verification"
        ));
        check_continues(
            "what was verified before",
            verified.checkpoint().checkpoint(),
            head,
            &scanned,
            report,
        );
    }
    signatures::check(&signed, trust, &scanned, report);
    let Scanned { records, .. } = scanned;
    let (auditor, keys) = records.into_state();
    Some(Verified { checkpoint: signed, auditor, keys })
}

/// Checks the checkpoint's signatures and writes its facts down.
pub(super) fn check_checkpoint(
    signed: &SignedCheckpoint,
    key: Option<&VerifierKey>,
    witnesses: Option<&WitnessPolicy>,
    report: &mut Report,
) {
    let head = signed.checkpoint();
    report.origin = Some(head.origin().to_owned());
    report.tree_size = Some(head.size());
    report.root = Some(head.root().to_string());
    let Some(key) = key else { return };
    report.key = Some(key.to_string());
    if !report.key_given {
        report.note(OWN_WORD);
    }
    match verify_signatures(signed, key.name(), std::slice::from_ref(key)) {
        Ok(by) => note_signatures(signed, &by, witnesses, report),
        Err(error) => {
            report.fault(Fault::new(FaultKind::CheckpointSignature, format!("checkpoint: {error}")));
        }
    }
}

/// Writes down who signed a checkpoint and when, holds it to the witnesses, and says how much of it could not be checked.
pub(super) fn note_signatures(
    signed: &SignedCheckpoint,
    by: &Signed,
    witnesses: Option<&WitnessPolicy>,
    report: &mut Report,
) {
    report.signed_unix_s = by.time;
    let known = match (witnesses, by.by.first()) {
        (Some(policy), Some(key)) => check_witnesses(signed, key, policy, report),
        _ => 0,
    };
    let unknown = by.unknown.saturating_sub(known);
    if unknown > 0 {
        report.note(format!("{unknown} signatures of the checkpoint are by keys that are not known here"));
    }
}

/// Checks that the witnesses cosigned who have to; how many signatures are theirs.
fn check_witnesses(
    signed: &SignedCheckpoint,
    key: &VerifierKey,
    policy: &WitnessPolicy,
    report: &mut Report,
) -> usize {
    if policy.witnesses().iter().any(|witness| witness.public_key() == key.public_key()) {
        report.fault(Fault::new(FaultKind::BadInput, "the log's own key is given as a witness's"));
        return 0;
    }
    match policy.verify(signed, key) {
        Ok(verified) => {
            let by_witness = verified.by.into_iter().filter(|by| policy.witnesses().contains(&by.key));
            let cosignatures = by_witness.map(|by| Cosignature { key: by.key.to_string(), unix_s: by.time });
            report.cosignatures = cosignatures.collect();
            report.cosignatures.len()
        }
        Err(error @ TrustError::Quorum { got, .. }) => {
            report.fault(Fault::new(FaultKind::Quorum, format!("checkpoint: {error}")));
            got
        }
        Err(error) => {
            report.fault(Fault::new(FaultKind::CheckpointSignature, format!("checkpoint: {error}")));
            0
        }
    }
}

/// The earlier checkpoints of this key, if all can be trusted as the caller says.
pub(super) fn trusted_checkpoints(
    trust: &Trust,
    key: Option<&VerifierKey>,
    report: &mut Report,
) -> Vec<Checkpoint> {
    let Some(key) = key else { return Vec::new() };
    let mut checkpoints = Vec::new();
    for saved in &trust.checkpoints {
        match verify_signatures(&saved.signed, key.name(), std::slice::from_ref(key)) {
            Ok(_) => checkpoints.push(saved.signed.checkpoint().clone()),
            Err(error) => report.fault(not_this_logs(&saved.from, &error, report.key_given)),
        }
    }
    checkpoints
}

pub(super) fn not_this_logs(from: &str, error: &TrustError, key_given: bool) -> Fault {
    // With a key of the caller the two things the caller gave do not fit; else the log is not the one of before.
    let kind = if key_given { FaultKind::BadInput } else { FaultKind::Inconsistent };
    Fault::new(kind, format!("the saved checkpoint {from} is not this log's: {error}"))
}

fn rolled_back(what: &str, was: u64, is: u64) -> Fault {
    let detail = format!("{what} covers {was} entries, this checkpoint only {is}: the log was rolled back");
    Fault::new(FaultKind::Inconsistent, detail)
}

/// Whether the tree continues an earlier one.
pub(super) fn check_continues(
    what: &str,
    earlier: &Checkpoint,
    head: &Checkpoint,
    scanned: &Scanned,
    report: &mut Report,
) -> bool {
    if earlier.size() > head.size() {
        report.fault(rolled_back(what, earlier.size(), head.size()));
        return false;
    }
    let root = if earlier.size() == 0 { Some(EMPTY_ROOT) } else { scanned.root_at(earlier.size()) };
    match root {
        Some(root) if root == *earlier.root() => return scanned.whole,
        Some(root) => {
            let detail = format!("the first {} entries are not those of {what}", earlier.size());
            report.fault(Fault::new(FaultKind::Inconsistent, detail).hashes(earlier.root(), root));
        }
        None => {
            let detail = format!("too much is missing to compare with {what}");
            report.fault(Fault::new(FaultKind::Missing, detail));
        }
    }
    false
}

/// Whether the checkpoint's key and origin are those that the log itself names.
pub(super) fn check_ledger_key(key: Option<&VerifierKey>, acceptor: &Acceptor, report: &mut Report) {
    let Some(key) = key else { return };
    let enrolled =
        acceptor.keys().iter().any(|k| k.role == KeyRole::Ledger && !k.revoked && k.key == *key.public_key());
    if !enrolled {
        let detail = "the checkpoint's key is no ledger key that this log enrolled, or it is revoked";
        report.fault(Fault::new(FaultKind::LedgerKey, detail));
    }
    if acceptor.origin() != key.name() {
        let detail = "the genesis names another origin than the checkpoint";
        report.fault(Fault::new(FaultKind::LedgerKey, detail).hashes(key.name(), acceptor.origin()));
    }
}
