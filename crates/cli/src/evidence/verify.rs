//! `verify`: checks an evidence pack, a log directory or a live log, offline but for reading it.
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

use exchequer_event::{
    accept::Acceptor,
    entry,
    v1::{KeyRole, control_record::Kind as ControlKind, entry::Kind},
};
use exchequer_tlog::{
    BundleId, Checkpoint, EMPTY_ROOT, MAX_ENTRY, MAX_POLICY_BYTES, Policy, SignatureKind, SignedCheckpoint,
    TILE_WIDTH, TrustError, VerifierKey, WitnessPolicy, decode_bundle,
};
use prost::bytes::Bytes;

use super::{
    log, pack_check,
    report::{Cosignature, Fault, FaultKind, Report, Subject},
    source::{Remote, Source, SourceError},
};

/// Largest checkpoint that is read, bytes: room for more signatures than there are witnesses.
pub(super) const MAX_CHECKPOINT_BYTES: usize = 64 * 1024;
const MAX_KEY_FILE_BYTES: u64 = 4096;

/// What to verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An evidence pack.
    Pack(PathBuf),
    /// A log directory, or the ledger's data directory around it.
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
    /// An earlier checkpoint that the tree has to continue.
    pub checkpoint: Option<SignedCheckpoint>,
    /// The witnesses that are believed, and how many of them have to have cosigned.
    pub witnesses: Option<WitnessPolicy>,
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

/// Reads a checkpoint that was saved earlier.
pub fn read_checkpoint(path: &Path) -> Result<SignedCheckpoint, String> {
    let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(|error| at(&error))?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_CHECKPOINT_BYTES as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| at(&error))?;
    SignedCheckpoint::parse(&bytes).map_err(|error| at(&error))
}

/// Verifies on a thread of its own. `token` goes along with each request to a URL.
pub async fn verify(
    target: Target,
    trust: Trust,
    token: Option<String>,
    progress: impl FnMut(Progress) + Send + 'static,
) -> Report {
    let name = target.clone();
    let done = tokio::task::spawn_blocking(move || verify_blocking(&target, &trust, token, progress)).await;
    done.unwrap_or_else(|error| {
        let (subject, shown) = name.describe();
        let mut report = Report::new(subject, shown);
        report.fault(Fault::new(FaultKind::Unreadable, format!("the verification ended: {error}")));
        report
    })
}

/// Verifies from this thread, which must not be one of an async runtime, on all cores.
pub fn verify_blocking(
    target: &Target,
    trust: &Trust,
    token: Option<String>,
    progress: impl FnMut(Progress),
) -> Report {
    verify_on(None, target, trust, token, progress)
}

/// The same on this many threads beside the calling one; `None` for as many as there are cores, or requests worth making at a time.
/// The report is the same for any number.
pub fn verify_on(
    threads: Option<NonZeroUsize>,
    target: &Target,
    trust: &Trust,
    token: Option<String>,
    mut progress: impl FnMut(Progress),
) -> Report {
    let (subject, shown) = target.describe();
    let mut report = Report::new(subject, shown);
    report.key_given = trust.key.is_some();
    match target {
        Target::Pack(path) => pack_check::check(path, trust, &mut report, &mut progress),
        Target::Directory(path) => {
            let inner = path.join("log");
            let nested = !path.join("checkpoint").is_file() && inner.join("checkpoint").is_file();
            let root = if nested { inner } else { path.clone() };
            check_log(&Source::Directory(root), threads, trust, &mut report, &mut progress);
        }
        Target::Url(url) => match Remote::new(url, token) {
            Ok(remote) => check_log(&Source::Remote(remote), threads, trust, &mut report, &mut progress),
            Err(error) => report.fault(Fault::new(FaultKind::BadInput, error)),
        },
    }
    report.finish()
}

impl Target {
    fn describe(&self) -> (Subject, String) {
        match self {
            Self::Pack(path) => (Subject::Pack, path.display().to_string()),
            Self::Directory(path) => (Subject::Directory, path.display().to_string()),
            Self::Url(url) => (Subject::Url, url.clone()),
        }
    }
}

fn check_log(
    source: &Source,
    threads: Option<NonZeroUsize>,
    trust: &Trust,
    report: &mut Report,
    progress: &mut dyn FnMut(Progress),
) {
    let bytes = match source.read("checkpoint", MAX_CHECKPOINT_BYTES) {
        Ok(bytes) => bytes,
        Err(error) => {
            let kind = if error == SourceError::Missing { FaultKind::Missing } else { FaultKind::Unreadable };
            return report.fault(Fault::new(kind, format!("checkpoint {error}")));
        }
    };
    let signed = match SignedCheckpoint::parse(&bytes) {
        Ok(signed) => signed,
        Err(error) => {
            return report.fault(Fault::new(FaultKind::BadInput, format!("checkpoint: {error}")));
        }
    };
    let head = signed.checkpoint().clone();
    let key = trust.key.clone().or_else(|| {
        let key = first_key(source, head.size());
        if key.is_none() {
            let detail = "no key was given, and the first entries name none";
            report.fault(Fault::new(FaultKind::BadInput, detail));
        }
        key
    });
    check_checkpoint(&signed, key.as_ref(), trust.witnesses.as_ref(), report);
    let earlier = trusted_checkpoint(trust, key.as_ref(), report);
    let threads = threads.map_or_else(|| source.lanes(), |threads| threads.get() as u64);
    let scanned = log::scan(source, &head, earlier.as_ref().map(Checkpoint::size), threads, report, progress);
    if let Some(earlier) = &earlier {
        check_continues(earlier, &head, scanned.earlier_root, scanned.whole, report);
    }
    if scanned.whole && head.size() > 0 && !scanned.records.stopped() {
        check_ledger_key(key.as_ref(), scanned.records.acceptor(), report);
    }
}

/// The key of the genesis among the first entries.
fn first_key(source: &Source, size: u64) -> Option<VerifierKey> {
    let id = BundleId::in_tree(0, size)?;
    let max = usize::from(TILE_WIDTH) * (MAX_ENTRY + 2);
    let full = BundleId::new(0, TILE_WIDTH).ok()?;
    let (bytes, width) = match source.read(&id.to_string(), max) {
        Ok(bytes) => (bytes, id.width()),
        Err(_) => (source.read(&full.to_string(), max).ok()?, TILE_WIDTH),
    };
    let entries = decode_bundle(&bytes, width).ok()?;
    entries.into_iter().find_map(|bytes| genesis_key(&Bytes::copy_from_slice(bytes)))
}

/// The log's key by its genesis, if this entry is that.
pub(super) fn genesis_key(bytes: &Bytes) -> Option<VerifierKey> {
    let Some(Kind::Control(signed)) = entry::decode(bytes).ok()?.kind else {
        return None;
    };
    let open = exchequer_event::control::open_control(&signed).ok()?;
    let ControlKind::Genesis(genesis) = open.kind else {
        return None;
    };
    VerifierKey::new(genesis.origin, SignatureKind::Ed25519, open.signer).ok()
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
        report.note(
            "no key was given: the key is the log's own word, so this shows that the log is consistent in itself, not whose \
             log it is",
        );
    }
    match verify_signatures(signed, key) {
        Ok((time, unknown)) => {
            report.signed_unix_s = time;
            let known = witnesses.map_or(0, |policy| check_witnesses(signed, key, policy, report));
            let unknown = unknown.saturating_sub(known);
            if unknown > 0 {
                report.note(format!(
                    "{unknown} signatures of the checkpoint are by keys that are not known here"
                ));
            }
        }
        Err(error) => {
            report.fault(Fault::new(FaultKind::CheckpointSignature, format!("checkpoint: {error}")));
        }
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

/// The time of the ledger's own cosignature, and how many signatures are by unknown keys.
fn verify_signatures(signed: &SignedCheckpoint, key: &VerifierKey) -> Result<(Option<u64>, usize), String> {
    // The ledger cosigns with the same key under the same name: that is where the time comes from.
    let cosigner = VerifierKey::new(key.name(), SignatureKind::Cosignature, *key.public_key());
    let policy = Policy {
        origin: key.name().to_owned(),
        log_keys: vec![key.clone()],
        witnesses: cosigner.into_iter().collect(),
        quorum: 0,
    };
    let verified = signed.verify(&policy).map_err(|error| error.to_string())?;
    let time = verified.by.iter().find_map(|by| by.time);
    Ok((time, signed.note().signatures().len().saturating_sub(verified.by.len())))
}

/// The earlier checkpoint, if it can be trusted as the caller says.
pub(super) fn trusted_checkpoint(
    trust: &Trust,
    key: Option<&VerifierKey>,
    report: &mut Report,
) -> Option<Checkpoint> {
    let signed = trust.checkpoint.as_ref()?;
    let key = key?;
    match verify_signatures(signed, key) {
        Ok(_) => Some(signed.checkpoint().clone()),
        Err(error) => {
            // With a key of the caller the two things the caller gave do not fit; else the log is not the one of before.
            let kind = if report.key_given { FaultKind::BadInput } else { FaultKind::Inconsistent };
            report.fault(Fault::new(kind, format!("the trusted checkpoint is not this log's: {error}")));
            None
        }
    }
}

fn check_continues(
    earlier: &Checkpoint,
    head: &Checkpoint,
    root: Option<exchequer_tlog::Hash>,
    whole: bool,
    report: &mut Report,
) {
    if earlier.size() > head.size() {
        let detail = format!(
            "the trusted checkpoint covers {} entries, this one only {}: the log was rolled back",
            earlier.size(),
            head.size()
        );
        return report.fault(Fault::new(FaultKind::Inconsistent, detail));
    }
    let root = if earlier.size() == 0 { Some(EMPTY_ROOT) } else { root };
    match root {
        Some(root) if root == *earlier.root() => {
            if whole {
                report.continues_size = Some(earlier.size());
            }
        }
        Some(root) => {
            let detail =
                format!("the first {} entries are not those of the trusted checkpoint", earlier.size());
            report.fault(Fault::new(FaultKind::Inconsistent, detail).hashes(earlier.root(), root));
        }
        None => report.fault(Fault::new(
            FaultKind::Missing,
            "too much is missing to compare with the trusted checkpoint",
        )),
    }
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
