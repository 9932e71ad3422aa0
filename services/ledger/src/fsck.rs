//! Checking and repairing the data directory of a ledger that is stopped.
//!
//! What was signed is the measure: the newest checkpoint that is found (kept, published, or a mirror's), or the state where it counts
//! more. Every file is compared with the tree under it, and what does not fit is named, with what it can be repaired from: entries from
//! the mirror, tiles from the entries, the state from both; what no checkpoint covers is cut off, for the ledger to integrate it from
//! the stream again. A directory without a log is filled from the mirror in the same way.
//!
//! Left out: the records inside the entries (`exchequer verify`), and what is derived from the log. Invariant: nothing is signed;
//! nothing that a published checkpoint covers is dropped; nothing is put in place that the signed tree does not hold.

mod pieces;
mod repair;
mod report;
mod resolve;
mod scan;
mod search;
mod signed;
mod trust;
mod walk;

use std::{io, path::PathBuf};

use bytes::Bytes;
use exchequer_event::{accept::KeyState, digest::Digest, entry};
use exchequer_tlog::{EMPTY_ROOT, Hash, MAX_NOTE_BYTES, SignedCheckpoint, VerifierKey};
use tokio::runtime::Handle;

pub use report::{Class, Finding, FsckReport, RepairSource};

use crate::{
    mirror::{CHECKPOINT, Place},
    service::{StartError, lock},
    store::{Places, Position, StoreError},
};
use pieces::Pieces;
use repair::Repair;
use signed::{Kept, PUBLISHED, Signed};
use trust::Trust;
use walk::{Walked, walk};

/// What to check.
#[derive(Clone, Debug)]
pub struct FsckOptions {
    /// The ledger's data directory.
    pub data: PathBuf,
    /// Keys of the log, all of one origin. None: that of `ledger.key` in the data directory. Other keys that the log let sign before are
    /// learnt from its entries.
    pub keys: Vec<VerifierKey>,
    /// Whether to repair what can be repaired.
    pub repair: bool,
    /// Where else the log is: `s3://bucket/prefix`, a directory, or the URL of a server.
    pub mirror: Option<String>,
    /// A token for that server.
    pub token: Option<String>,
}

/// Nothing was found out, or not everything.
#[derive(Debug, thiserror::Error)]
pub enum CouldNotCheck {
    /// A ledger runs over it.
    #[error("the data directory {0} is in use by another process")]
    InUse(PathBuf),
    /// It can't be read or written.
    #[error("the data directory {path} can't be used: {reason}")]
    Data {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Without a key, nothing tells a checkpoint from a forgery.
    #[error("the log's verifier key has to be given: {0}")]
    NoKey(String),
    /// The mirror is none of this log, or can't be read.
    #[error("the mirror can't be used: {0}")]
    Mirror(String),
    /// A file can't be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks a data directory, and repairs it if the options say so.
pub async fn fsck(options: FsckOptions) -> Result<FsckReport, CouldNotCheck> {
    let handle = Handle::current();
    let path = options.data.clone();
    tokio::task::spawn_blocking(move || Check::open(options, handle)?.run())
        .await
        .map_err(|error| CouldNotCheck::Data { path, reason: error.to_string() })?
}

/// What the state file says.
enum State {
    Missing,
    Damaged(String),
    Says(Position),
}

/// The tree that is to be there.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Tree {
    size: u64,
    root: Hash,
}

struct Check {
    options: FsckOptions,
    places: Places,
    trust: Trust,
    pieces: Pieces,
    /// The mirror's checkpoint, verified.
    mirrored: Option<SignedCheckpoint>,
    _lock: std::sync::Arc<std::fs::File>,
}

/// What a check came to, before anything is repaired.
struct Plan {
    tree: Option<Tree>,
    findings: Vec<Finding>,
    /// Whether the tree can be made whole.
    is_whole: bool,
    /// Whether the state has to be written.
    is_state_wrong: bool,
    last: Option<Bytes>,
    /// Every key that the tree holds.
    keys: Vec<KeyState>,
}

/// What was found, and what is to be done about it.
struct Found {
    signed: Signed,
    /// Every checkpoint that verifies, the newest last.
    kept: Vec<Kept>,
    plan: Plan,
}

/// What a finding in the mirror's checkpoint has for a path.
const MIRRORED: &str = "mirror:checkpoint";

impl Plan {
    /// Nothing says what is to be there.
    fn of_nothing(findings: Vec<Finding>) -> Self {
        Self { tree: None, findings, is_whole: false, is_state_wrong: false, last: None, keys: Vec::new() }
    }
}

impl Check {
    fn open(options: FsckOptions, handle: Handle) -> Result<Self, CouldNotCheck> {
        let unusable = |reason: String| CouldNotCheck::Data { path: options.data.clone(), reason };
        if options.repair && options.mirror.is_some() {
            std::fs::create_dir_all(&options.data).map_err(|error| unusable(error.to_string()))?;
        }
        let lock = lock(&options.data).map_err(|error| match error {
            StartError::Locked(path) => CouldNotCheck::InUse(path),
            error => unusable(error.to_string()),
        })?;
        let places = Places::new(&options.data);
        let unavailable = |error: crate::mirror::PlaceError| CouldNotCheck::Mirror(error.to_string());
        let mirror = options.mirror.as_deref().map(|url| Place::open_to_read(url, options.token.as_deref()));
        let mirror = mirror.transpose().map_err(unavailable)?;
        let note = match &mirror {
            Some(mirror) => {
                let found = handle.block_on(mirror.get(CHECKPOINT, MAX_NOTE_BYTES)).map_err(unavailable)?;
                let found = found.ok_or_else(|| CouldNotCheck::Mirror("it has no checkpoint".to_owned()))?;
                Some(found.bytes)
            }
            None => None,
        };
        let trust = Trust::new((&options.data, &options.keys), &places, note.as_deref())?;
        let mirrored = note.map(|note| trust.verified(&note)).transpose();
        let mirrored =
            mirrored.map_err(|reason| CouldNotCheck::Mirror(format!("its checkpoint: {reason}")))?;
        let pieces = Pieces::new(places.log.clone(), mirror, handle);
        Ok(Self { options, places, trust, pieces, mirrored, _lock: lock })
    }

    fn io(&self) -> impl Fn(io::Error) -> CouldNotCheck + use<> {
        let path = self.options.data.clone();
        move |error| CouldNotCheck::Data { path: path.clone(), reason: error.to_string() }
    }

    fn state(&self) -> Result<State, CouldNotCheck> {
        match std::fs::read(&self.places.state) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::Missing),
            Err(error) => Err(self.io()(error)),
            Ok(bytes) => Ok(match Position::decode(&bytes, self.trust.origin()) {
                Ok(position) => State::Says(position),
                Err(reason) => State::Damaged(reason),
            }),
        }
    }

    /// Reads what was signed, and compares the tree with it.
    fn examine(&self) -> Result<Found, CouldNotCheck> {
        let signed = Signed::read(&self.places, &self.trust).map_err(self.io())?;
        let mut kept: Vec<Kept> = signed.history.iter().chain(&signed.published).cloned().collect();
        kept.extend(self.mirrored.clone().map(|signed| Kept { signed, path: MIRRORED.to_owned() }));
        kept.sort_by_key(Kept::size);
        let state = self.state()?;
        let plan = self.plan(&state, &signed, &kept)?;
        Ok(Found { signed, kept, plan })
    }

    fn run(mut self) -> Result<FsckReport, CouldNotCheck> {
        let mut found = self.examine()?;
        let is_strange = |finding: &Finding| finding.class == Class::CheckpointForged;
        if found.signed.findings.iter().any(is_strange) && !found.plan.keys.is_empty() {
            // Signed by a key of this log that was replaced, perhaps.
            self.trust.learn(&found.plan.keys)?;
            found = self.examine()?;
        }
        let Found { signed, kept, mut plan } = found;
        let newest = kept.last().cloned();
        for mut finding in signed.findings.clone() {
            if finding.path == PUBLISHED && newest.as_ref().is_some_and(|newest| newest.path == MIRRORED) {
                finding.repair = Some(RepairSource::Mirror);
            }
            plan.findings.push(finding);
        }
        let published = newest.as_ref().map_or(0, Kept::size);
        let changed = plan.findings.iter().filter(|finding| finding.class == Class::LeftoverChanged);
        let changed = changed.map(|finding| finding.path.clone()).collect();
        let strays = match plan.tree {
            Some(tree) => {
                let served = signed.published.as_ref().map_or(0, Kept::size);
                let kept = [tree.size, published, served];
                scan::strays(&self.places, &kept, tree.size, &changed, &signed.foreign)
            }
            None => Ok(Vec::new()),
        };
        let strays = strays.map_err(self.io())?;
        plan.findings.extend(strays);
        let tree = plan.tree.unwrap_or(Tree { size: 0, root: EMPTY_ROOT });
        let mut report = FsckReport {
            origin: self.trust.origin().to_owned(),
            size: tree.size,
            root: tree.root.to_string(),
            published,
            ..FsckReport::default()
        };
        if self.options.repair && plan.findings.iter().any(|finding| finding.repair.is_some()) {
            report.set_aside = self.repair(&mut plan, &signed, &kept)?;
        }
        plan.findings.into_iter().for_each(|finding| report.add(finding));
        if let Some(fault) = self.pieces.mirror_fault.take().filter(|_| !report.is_sound()) {
            return Err(CouldNotCheck::Mirror(fault));
        }
        Ok(report)
    }

    /// Decides which tree is to be there, and names what is not.
    fn plan(&self, state: &State, signed: &Signed, kept: &[Kept]) -> Result<Plan, CouldNotCheck> {
        let newest = kept.last().map(|kept| kept.signed.checkpoint());
        let newest = newest.map(|head| Tree { size: head.size(), root: *head.root() });
        let mut findings = Vec::new();
        let says = match state {
            State::Says(position) => Some(Tree { size: position.size, root: position.root }),
            State::Missing | State::Damaged(_) => None,
        };
        match (state, newest) {
            (State::Damaged(reason), Some(_)) => {
                let source = Some(RepairSource::Checkpoints);
                findings.push(Finding::new("state", Class::StateDamaged, reason.clone(), source));
            }
            (State::Damaged(reason), None) => {
                findings.push(Finding::new("state", Class::StateDamaged, reason.clone(), None));
                return Ok(Plan::of_nothing(findings));
            }
            (State::Missing, Some(_)) => {
                let detail = "it is not there".to_owned();
                findings.push(Finding::new(
                    "state",
                    Class::StateMissing,
                    detail,
                    Some(RepairSource::Checkpoints),
                ));
            }
            (State::Missing, None) if scan::has_tiles(&self.places).map_err(self.io())? => {
                let detail = "there are tiles, and neither a state nor a checkpoint says what of them counts"
                    .to_owned();
                findings.push(Finding::new("state", Class::StateMissing, detail, None));
                return Ok(Plan::of_nothing(findings));
            }
            _ => {}
        }
        let is_stale = matches!((says, newest), (Some(says), Some(newest)) if says.size < newest.size);
        if let (true, Some(says), Some(newest)) = (is_stale, says, newest) {
            let detail =
                format!("it counts {} entries, a published checkpoint covers {}", says.size, newest.size);
            findings.push(Finding::new("state", Class::StateStale, detail, Some(RepairSource::Checkpoints)));
        }
        let by_state = match says.filter(|_| !is_stale) {
            Some(tree) => Some((tree, self.walk(tree, kept, None)?)),
            None => None,
        };
        let planned = |tree: Tree, walked: Walked, is_state_wrong, mut findings: Vec<Finding>| {
            let is_whole = walked.is_whole();
            findings.extend(walked.findings);
            Plan {
                tree: Some(tree),
                findings,
                is_whole,
                is_state_wrong,
                last: walked.last,
                keys: walked.keys,
            }
        };
        let Some((tree, walked)) = by_state else {
            return match newest {
                Some(tree) => Ok(planned(tree, self.walk(tree, kept, None)?, true, findings)),
                // Nothing was ever signed, and nothing counts.
                None => Ok(planned(
                    Tree { size: 0, root: EMPTY_ROOT },
                    Walked { is_resolved: true, ..Walked::default() },
                    false,
                    findings,
                )),
            };
        };
        let Some(newest) = newest.filter(|newest| !walked.is_whole() && *newest != tree) else {
            return Ok(planned(tree, walked, false, findings));
        };
        let back = self.walk(newest, kept, None)?;
        if !back.is_whole() {
            let (tree, walked) =
                if walked.is_resolved || !back.is_resolved { (tree, walked) } else { (newest, back) };
            return Ok(planned(tree, walked, false, findings));
        }
        let is_covered = signed.claimed > newest.size;
        let repair = (!is_covered).then_some(RepairSource::Stream);
        let caution = if is_covered {
            format!("; a damaged checkpoint names {} entries, so nothing is cut off", signed.claimed)
        } else {
            String::new()
        };
        if walked.is_resolved && !walked.findings.iter().any(|finding| finding.class == Class::Fork) {
            // Only entries that no checkpoint covers are lost.
            let lost = walked.findings.into_iter().map(|mut finding| {
                if finding.repair.is_none() {
                    finding.repair = repair;
                    finding.detail.push_str(&caution);
                }
                finding
            });
            findings.extend(lost);
        } else {
            let detail = format!(
                "it counts {} entries with the root {}, which are not there as it says; the newest checkpoint covers {}{caution}",
                tree.size, tree.root, newest.size
            );
            findings.push(Finding::new("state", Class::StateAhead, detail, repair));
            findings.extend(back.findings);
        }
        let tree = if is_covered { tree } else { newest };
        Ok(Plan {
            tree: Some(tree),
            findings,
            is_whole: !is_covered,
            is_state_wrong: !is_covered,
            last: back.last,
            keys: back.keys,
        })
    }

    fn walk(&self, tree: Tree, kept: &[Kept], repair: Option<&mut Repair>) -> Result<Walked, CouldNotCheck> {
        Ok(walk(&self.pieces, (tree.size, &tree.root), kept, repair)?)
    }

    /// Repairs in the order in which the store commits: tiles, state, checkpoints; then moves away what nothing needs.
    fn repair(
        &self,
        plan: &mut Plan,
        signed: &Signed,
        kept: &[Kept],
    ) -> Result<Option<PathBuf>, CouldNotCheck> {
        let mut repair = Repair::begin(self.places.clone());
        if let Some(tree) = plan.tree {
            let walked = self.walk(tree, kept, Some(&mut repair))?;
            plan.is_whole &= walked.is_whole();
            plan.last = walked.last;
            if plan.is_whole && plan.is_state_wrong {
                let position = rebuilt(tree, plan.last.as_ref())?;
                repair.put("state", position.encode(self.trust.origin()))?;
            }
        }
        // As long as something is missing, a damaged checkpoint may be all that says how much was published: it stays.
        for rewrite in signed.rewrites.iter().filter(|_| plan.is_whole) {
            repair.put(&rewrite.path, rewrite.bytes.clone())?;
        }
        if let (true, Some(newest)) = (plan.is_whole, kept.last()) {
            let in_history = signed.history.iter().map(Kept::size).max();
            if in_history.is_none_or(|size| size < newest.size()) {
                let (path, bytes) = signed.appended(&self.places, &newest.signed).map_err(self.io())?;
                repair.put(&path, bytes)?;
            }
            // Only what was published is published. Which of those that are kept were, the ledger agrees upon when it starts.
            let is_behind = signed.published.as_ref().is_none_or(|served| served.size() < newest.size());
            if is_behind && newest.path == MIRRORED {
                repair.put(PUBLISHED, newest.signed.to_string().into_bytes())?;
            } else if signed.is_published_unsound() {
                repair.remove(PUBLISHED)?;
            }
        }
        for finding in &mut plan.findings {
            let is_stray = matches!(finding.class, Class::Leftover | Class::Beyond | Class::ForeignFile);
            if is_stray && self.places.data.join(&finding.path).exists() {
                repair.remove(&finding.path)?;
            }
            let is_of_whole = matches!(
                finding.class,
                Class::StateMissing
                    | Class::StateDamaged
                    | Class::StateStale
                    | Class::StateAhead
                    | Class::HistoryDamaged
                    | Class::HistoryTorn
                    | Class::HistoryBehind
                    | Class::CheckpointMissing
                    | Class::CheckpointDamaged
                    | Class::CheckpointStale
                    | Class::CheckpointForged
            );
            let is_by_us = finding.repair.is_some_and(|source| source != RepairSource::Start);
            finding.repaired = is_by_us && (plan.is_whole || !is_of_whole);
        }
        Ok(repair.aside())
    }
}

/// The state of a tree whose last entry this is. The message at the cursor is not known as a whole; the ledger learns it from the
/// stream when it starts, if the message leads to the log's last entries.
fn rebuilt(tree: Tree, last: Option<&Bytes>) -> Result<Position, StoreError> {
    let damaged = |reason: String| StoreError::Damaged {
        path: format!("entry {}", tree.size.saturating_sub(1)),
        reason,
    };
    let cursor = match last {
        Some(bytes) => entry::decode(bytes).map_err(|error| damaged(error.to_string()))?.stream_seq,
        None if tree.size == 0 => 0,
        None => return Err(damaged("it can't be had".to_owned())),
    };
    Ok(Position { size: tree.size, root: tree.root, cursor, last_message: Digest::ZERO })
}
