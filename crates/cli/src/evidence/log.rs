//! Checking a whole log (C2SP tlog-tiles) against a checkpoint: every entry, every tile, every record.
//!
//! Left out: whether the checkpoint is to be trusted. Invariant: memory is bounded by a few bundles and one partial tile a level, and
//! every byte of the current bundles and tiles takes part in a comparison.

use std::sync::mpsc::{Receiver, sync_channel};

use exchequer_tlog::{BundleError, BundleId, Checkpoint, Hash, TILE_WIDTH, TileId};

use super::{
    load::{Frames, Loaded, WIDTH, load, load_tile, stale_tiles, unreadable},
    mismatch::{Mismatch, UpperMismatch, upper_fault},
    records::Records,
    report::{Fault, FaultKind, MAX_FAULTS, Report},
    source::{Source, SourceError},
    state::Verified,
    tree::{Peaks, Sides, Supposition, Suppositions, TILE_HEIGHT, root_of},
    verify::Progress,
};

/// Bundles that each thread may be ahead.
const AHEAD: usize = 2;

/// What to scan.
pub(super) struct Plan<'a> {
    /// The tree.
    pub(super) head: &'a Checkpoint,
    /// The sizes at which its root is wanted, ascending.
    pub(super) sizes: Vec<u64>,
    /// What need not be read again.
    pub(super) since: Option<&'a Verified>,
    /// How many threads read.
    pub(super) threads: u64,
}

/// What a scan leads to beside the faults it reports.
pub(super) struct Scanned {
    /// The audit of the records.
    pub(super) records: Records,
    /// Whether the whole tree could be read.
    pub(super) whole: bool,
    tree: Suppositions,
    truth: Supposition,
}

impl Scanned {
    /// Root at a size that was asked for.
    pub(super) fn root_at(&self, size: u64) -> Option<Hash> {
        self.tree.root_at(size, self.truth)
    }

    /// Whether every record could be audited.
    pub(super) fn audited(&self) -> bool {
        self.whole && !self.records.stopped()
    }
}

/// Reads the log up to the checkpoint and reports what does not fit it.
pub(super) fn scan(
    source: &Source,
    plan: Plan<'_>,
    report: &mut Report,
    progress: &mut dyn FnMut(Progress),
) -> Scanned {
    let size = plan.head.size();
    let since = plan.since.map_or(0, |verified| verified.checkpoint().checkpoint().size());
    let (begin, bundles) = (since / WIDTH, size.div_ceil(WIDTH));
    let records = plan.since.map(|verified| Records::resume(verified.auditor.clone(), verified.keys.clone()));
    let (peaks, levels, mut whole) = match edge(source, begin * WIDTH, size) {
        Ok((peaks, levels)) => (peaks, levels, true),
        Err(fault) => {
            report.fault(fault);
            (Peaks::default(), Vec::new(), false)
        }
    };
    let mut scan = Scan {
        source,
        size,
        since,
        report,
        tree: Suppositions::new(peaks, begin * WIDTH, if whole { plan.sizes } else { Vec::new() }),
        levels,
        parents: None,
        records: records.unwrap_or_default(),
        mismatches: Vec::new(),
        upper: Vec::new(),
    };
    std::thread::scope(|scope| {
        let count = plan.threads.min(bundles - begin);
        let start = |lane: u64| {
            let (give, take) = sync_channel(AHEAD);
            scope.spawn(move || {
                let mut index = begin + lane;
                while index < bundles && give.send(load(source, index, size)).is_ok() {
                    index += count;
                }
            });
            take
        };
        let lanes: Vec<Receiver<Loaded>> = (0..count).filter(|_| whole).map(start).collect();
        for index in begin..bundles {
            if !whole {
                break;
            }
            // One lane holds the bundles of one remainder, so their order is kept without holding many.
            let lane = usize::try_from((index - begin) % count).unwrap_or_default();
            whole = lanes[lane].recv().is_ok_and(|loaded| scan.take(index, loaded));
            progress(Progress { done: size.min((index + 1) * WIDTH) - since, total: size - since });
        }
    });
    scan.finish(plan.head, whole)
}

/// Hashes of the tiles in the making, from level 1 on, each with the tile's index.
type Levels = Vec<(u64, Vec<Hash>)>;

/// The right edge of the tree at a size of full bundles, as the tiles above level 0 have it. Each of these hashes is a peak of that tree
/// or under one, so its root vouches for all of them.
fn edge(source: &Source, size: u64, head: u64) -> Result<(Peaks, Levels), Fault> {
    let mut levels = Levels::new();
    for level in 1_u8.. {
        let hashes = size.checked_shr(u32::from(level) * TILE_HEIGHT).unwrap_or(0);
        if hashes == 0 {
            break;
        }
        let (index, width) = (hashes / WIDTH, usize::try_from(hashes % WIDTH).unwrap_or_default());
        let mut tile = if width > 0 { load_tile(source, level, index, head)? } else { Vec::new() };
        if tile.len() < width {
            let detail = format!("the tile of level {level} at {index} is shorter than the tree demands");
            return Err(Fault::new(FaultKind::FileDamaged, detail));
        }
        tile.truncate(width);
        levels.push((index, tile));
    }
    let mut peaks = Peaks::default();
    let heights: Vec<u32> = (1..).map(|level| level * TILE_HEIGHT).take(levels.len()).collect();
    for (height, (_, hashes)) in heights.into_iter().zip(&levels).rev() {
        for hash in hashes {
            peaks.push(height, *hash);
        }
    }
    Ok((peaks, levels))
}

struct Scan<'a> {
    source: &'a Source,
    size: u64,
    /// Entries before this one were audited earlier.
    since: u64,
    report: &'a mut Report,
    tree: Suppositions,
    /// From level 1 on: the hashes of the tile in the making, and its index.
    levels: Levels,
    /// The level-1 tile over the current bundles.
    parents: Option<(u64, Option<Vec<Hash>>)>,
    records: Records,
    mismatches: Vec<Mismatch>,
    upper: Vec<UpperMismatch>,
}

impl Scan<'_> {
    /// The next bundle. False if it makes no sense to go on.
    fn take(&mut self, index: u64, loaded: Loaded) -> bool {
        let first = index * WIDTH;
        let full = first + WIDTH <= self.size;
        let path = BundleId::in_tree(index, self.size).map_or_else(String::new, |id| id.to_string());
        let failed = matches!(&loaded.bundle, Err(SourceError::Failed(_)));
        let before = self.report.faults.len();
        for fault in loaded.stale {
            self.report.fault(fault);
        }
        let tile = match loaded.tile {
            Ok(hashes) => {
                self.report.checked.tiles += 1;
                Some(hashes)
            }
            Err(fault) => {
                self.report.fault(fault);
                None
            }
        };
        let frames = match loaded.bundle {
            Ok(frames) => Some(frames),
            Err(error) => {
                let entry = self.records.describe(first, None);
                self.report.fault(unreadable(&path, &error).at(first, entry));
                None
            }
        };
        let whole = frames.as_ref().filter(|frames| frames.damage.is_none());
        let above = if full { self.parent(index) } else { None };
        let sides = Sides {
            entries: whole.map(|frames| &frames.hashes[..]),
            tile: tile.as_deref(),
            roots: loaded.roots,
            above,
            full,
        };
        let Some((vote, subtree)) = self.tree.push(&sides) else {
            return false;
        };
        if full {
            self.grow(1, subtree);
        }
        if let Some(frames) = frames {
            let mismatch = |index, entry, by_entry, by_tile| Mismatch {
                index,
                entry,
                by_entry,
                by_tile,
                vote,
                full,
                above: above.is_some(),
            };
            self.take_entries(first, &path, frames, tile.as_deref(), &mismatch);
        } else {
            self.records.stop();
        }
        let listed = self.report.faults.len() > before && self.report.is_full();
        !failed && !listed && self.mismatches.len() + self.upper.len() < MAX_FAULTS
    }

    fn take_entries(
        &mut self,
        first: u64,
        path: &str,
        frames: Frames,
        tile: Option<&[Hash]>,
        mismatch: &dyn Fn(u64, String, Hash, Hash) -> Mismatch,
    ) {
        let mut named = false;
        let read = frames.entries.iter().zip(&frames.hashes).zip(frames.said);
        for (place, ((bytes, by_entry), said)) in (first..).zip(read) {
            let by_tile = tile.and_then(|tile| tile.get(usize::try_from(place - first).ok()?));
            let differs = by_tile.filter(|by_tile| *by_tile != by_entry);
            if let Some(by_tile) = differs {
                let entry = self.records.describe(place, Some(bytes));
                self.mismatches.push(mismatch(place, entry, *by_entry, *by_tile));
                named = true;
                if frames.damage.is_some() {
                    // What follows a wrong length is no entry.
                    self.records.stop();
                    break;
                }
            }
            if place >= self.since
                && let Some(fault) = self.records.take(place, bytes, said)
                && differs.is_none()
            {
                self.report.fault(fault);
            }
        }
        let Some(damage) = frames.damage else {
            let known = self.since.saturating_sub(first);
            self.report.checked.entries += (frames.entries.len() as u64).saturating_sub(known);
            return;
        };
        let fault = Fault::new(FaultKind::FileDamaged, format!("{path}: {damage}"));
        self.report.fault(match damage {
            BundleError::Truncated { .. } if !named => {
                let place = first + frames.entries.len() as u64;
                fault.at(place, self.records.describe(place, None))
            }
            _ => fault,
        });
        self.records.stop();
    }

    /// What the level-1 tile says of a full bundle.
    fn parent(&mut self, bundle: u64) -> Option<Hash> {
        let tile = bundle / WIDTH;
        if self.parents.as_ref().is_none_or(|(index, _)| *index != tile) {
            // A fault in it is reported when the tile itself is compared.
            self.parents = Some((tile, load_tile(self.source, 1, tile, self.size).ok()));
        }
        let hashes = self.parents.as_ref().and_then(|(_, hashes)| hashes.as_ref())?;
        hashes.get(usize::try_from(bundle % WIDTH).ok()?).copied()
    }

    /// Appends the root of a full tile to the level above it.
    fn grow(&mut self, level: u8, hash: Hash) {
        let place = usize::from(level) - 1;
        if self.levels.len() <= place {
            self.levels.push((0, Vec::new()));
        }
        let (_, hashes) = &mut self.levels[place];
        hashes.push(hash);
        if hashes.len() == usize::from(TILE_WIDTH) {
            let root = root_of(hashes);
            self.compare(level);
            let (index, hashes) = &mut self.levels[place];
            *index += 1;
            hashes.clear();
            self.grow(level + 1, root);
        }
    }

    /// Compares a computed tile above level 0 with the stored one.
    fn compare(&mut self, level: u8) {
        let (index, computed) = &self.levels[usize::from(level) - 1];
        let Some(id) = TileId::in_tree(level, *index, self.size) else { return };
        for fault in stale_tiles(self.source, level, *index, computed) {
            self.report.fault(fault);
        }
        match load_tile(self.source, level, *index, self.size) {
            Err(fault) => self.report.fault(fault),
            Ok(stored) => {
                self.report.checked.tiles += 1;
                for (place, (computed, stored)) in (0..).zip(computed.iter().zip(&stored)) {
                    if computed != stored && self.upper.len() < MAX_FAULTS {
                        self.upper.push(UpperMismatch { id, place, computed: *computed, stored: *stored });
                    }
                }
            }
        }
    }

    fn finish(mut self, head: &Checkpoint, whole: bool) -> Scanned {
        if whole {
            for level in 1..=self.levels.len() {
                if !self.levels[level - 1].1.is_empty() {
                    self.compare(u8::try_from(level).unwrap_or(u8::MAX));
                }
            }
        }
        let truth = if whole { self.tree.true_for(head.root()) } else { None };
        for mismatch in &self.mismatches {
            self.report.fault(mismatch.fault(truth));
        }
        for upper in &self.upper {
            self.report.fault(upper_fault(upper, truth));
        }
        let best = truth.unwrap_or(Supposition::VoteThenEntries);
        if whole && truth.is_none() {
            let unread = self.tree.root(best).is_none();
            let fault = if unread {
                Fault::new(FaultKind::Missing, "too much is missing to compute the root")
            } else {
                let detail = "the tree does not have the root that the checkpoint signs: it was rewritten, or the \
                              checkpoint is of another tree";
                let computed = self.tree.root(best).unwrap_or(exchequer_tlog::EMPTY_ROOT);
                Fault::new(FaultKind::RootMismatch, detail).hashes(head.root(), computed)
            };
            self.report.fault(fault);
        } else if !whole {
            self.report.note("the scan stopped early: nothing is said about what follows");
        }
        if whole && let Some(fault) = self.records.finish() {
            self.report.fault(fault);
        }
        let counts = self.records.counts();
        let checked = &mut self.report.checked;
        checked.signatures = counts.signatures;
        checked.events = counts.events;
        checked.decision_runs = counts.decision_runs;
        checked.rejections = counts.rejections;
        checked.equivocations = counts.equivocations;
        if self.records.stopped() {
            self.report.note(format!(
                "signatures, chains and numbering were audited for the first {} entries only: each record is judged by \
                 those before it",
                self.since + counts.entries
            ));
        }
        Scanned { records: self.records, whole, tree: self.tree, truth: best }
    }
}
