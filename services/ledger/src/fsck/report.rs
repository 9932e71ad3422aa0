//! What a check of a data directory found: damage by class, with its place and what it can be repaired from.
//!
//! Left out: finding it. Invariant: a report is sound only if every finding is harmless or was repaired.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::Serialize;

/// Findings that a report lists. Those beyond are counted.
const MAX_FINDINGS: usize = 200;

/// A kind of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Entries in a bundle are not those of the signed tree.
    EntryChanged,
    /// A bundle is missing.
    BundleMissing,
    /// A bundle ends too early, or is longer than its entries.
    BundleTruncated,
    /// A bundle holds what belongs into another one, which holds what belongs here.
    BundleSwapped,
    /// Hashes in a tile are not those of the signed tree.
    TileChanged,
    /// A tile is missing.
    TileMissing,
    /// A tile is not as long as its width demands.
    TileTruncated,
    /// A tile holds what belongs into another one, which holds what belongs here.
    TileSwapped,
    /// Nothing that is left leads to the signed tree here.
    TreeLost,
    /// The state is missing.
    StateMissing,
    /// The state can't be read, or its checksum is wrong.
    StateDamaged,
    /// The state counts fewer entries than a published checkpoint covers.
    StateStale,
    /// The state counts entries that are not there, or not as it says.
    StateAhead,
    /// A checkpoint in the history is damaged.
    HistoryDamaged,
    /// The history ends in the middle of a checkpoint, as a crash leaves it.
    HistoryTorn,
    /// The history lacks the newest checkpoint.
    HistoryBehind,
    /// The published checkpoint is missing: it was lost, or none was published yet.
    CheckpointMissing,
    /// The published checkpoint is none.
    CheckpointDamaged,
    /// The published checkpoint is older than the newest in the history: a crash, or one that has not its cosignatures yet.
    CheckpointStale,
    /// A checkpoint is not signed by a key that the log lets sign.
    CheckpointForged,
    /// A checkpoint of the ledger's own key is of another tree than the log.
    Fork,
    /// A partial file of a size that nothing needs any more, as a crash leaves it.
    Leftover,
    /// Such a file, which does not even fit the tree.
    LeftoverChanged,
    /// A file beyond the log's end, of a commit that did not come to its end.
    Beyond,
    /// A file that is none of a log's.
    ForeignFile,
}

impl Class {
    /// Whether it endangers nothing: the ledger runs over it, or cleans it up by itself.
    pub fn is_harmless(self) -> bool {
        matches!(
            self,
            Self::HistoryTorn
                | Self::HistoryBehind
                | Self::CheckpointMissing
                | Self::CheckpointStale
                | Self::Leftover
                | Self::Beyond
        )
    }

    /// Its name, as in JSON.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// What damage can be repaired from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RepairSource {
    /// The entries, or tiles below, which lead to the signed root.
    Entries,
    /// Another file of this log that holds the same.
    Log,
    /// The mirror; what it gives is compared with the signed tree.
    Mirror,
    /// Checkpoints of the history, or the published one.
    Checkpoints,
    /// The stream: the log is cut back to the newest checkpoint, and the ledger integrates the rest again.
    Stream,
    /// The ledger, which settles it when it starts.
    Start,
    /// Nothing is needed but to move it out of the way.
    Removal,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file, under the data directory.
    pub path: String,
    /// What is wrong with it.
    pub class: Class,
    /// In words: what was found, and what was expected.
    pub detail: String,
    /// What it can be repaired from; `None` if from nothing that is at hand.
    pub repair: Option<RepairSource>,
    /// Whether it was.
    pub repaired: bool,
}

impl Finding {
    pub(super) fn new(
        path: impl Into<String>,
        class: Class,
        detail: impl Into<String>,
        repair: Option<RepairSource>,
    ) -> Self {
        Self { path: path.into(), class, detail: detail.into(), repair, repaired: false }
    }

    fn remains(&self) -> bool {
        !self.repaired && !self.class.is_harmless()
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FsckReport {
    /// The log's origin.
    pub origin: String,
    /// Entries that count, after the repair if there was one.
    pub size: u64,
    /// Their root, in base64.
    pub root: String,
    /// Entries under the newest checkpoint that was found.
    pub published: u64,
    /// The findings, or the first of them.
    pub findings: Vec<Finding>,
    /// Findings of each class, those that are not listed too.
    pub classes: BTreeMap<Class, u64>,
    /// Findings that remain and are not harmless.
    pub remaining: u64,
    /// Where a repair put what it replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<PathBuf>,
}

impl FsckReport {
    pub(super) fn add(&mut self, finding: Finding) {
        *self.classes.entry(finding.class).or_default() += 1;
        self.remaining += u64::from(finding.remains());
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        }
    }

    /// Whether no damage remains.
    pub fn is_sound(&self) -> bool {
        self.remaining == 0
    }
}

impl fmt::Display for FsckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.is_sound(), self.findings.iter().any(|finding| finding.repaired)) {
            (true, false) => "SOUND",
            (true, true) => "REPAIRED",
            (false, _) => "DAMAGED",
        };
        writeln!(f, "{verdict}  {}: {} entries, root {}", self.origin, self.size, self.root)?;
        writeln!(f, "  the newest checkpoint covers {}", self.published)?;
        for finding in &self.findings {
            let remedy = match (finding.repaired, finding.repair) {
                (true, _) => "repaired".to_owned(),
                (false, Some(source)) => format!("can be repaired from: {}", name_of(source)),
                (false, None) => "can't be repaired from what is at hand".to_owned(),
            };
            let harmless = if finding.class.is_harmless() { " (harmless)" } else { "" };
            writeln!(
                f,
                "  {}{harmless}  {}: {}; {remedy}",
                finding.class.name(),
                finding.path,
                finding.detail
            )?;
        }
        let listed = self.findings.len() as u64;
        let all: u64 = self.classes.values().sum();
        if all > listed {
            writeln!(f, "  and {} more", all - listed)?;
        }
        if let Some(aside) = &self.set_aside {
            writeln!(f, "  what was replaced is in {}", aside.display())?;
        }
        Ok(())
    }
}

fn name_of(source: RepairSource) -> &'static str {
    match source {
        RepairSource::Entries => "the entries and tiles that are sound",
        RepairSource::Log => "another file of the log",
        RepairSource::Mirror => "the mirror",
        RepairSource::Checkpoints => "the checkpoints that are kept",
        RepairSource::Stream => "the stream, by cutting the log back to the newest checkpoint",
        RepairSource::Start => "the history of checkpoints, by the ledger when it starts",
        RepairSource::Removal => "nothing; it is moved away",
    }
}
