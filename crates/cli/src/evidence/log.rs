//! Checking a whole log (C2SP tlog-tiles) against a checkpoint: every entry, every tile, every record.
//!
//! Left out: whether the checkpoint is to be trusted. Invariant: memory is bounded by a few bundles and one partial tile a level, and
//! every byte of the current bundles and tiles takes part in a comparison.

use std::sync::mpsc::{Receiver, sync_channel};

use exchequer_tlog::{
    BundleError, BundleId, Checkpoint, HASH_BYTES, Hash, MAX_ENTRY, TILE_BYTES, TILE_WIDTH, TileId,
    decode_bundle, decode_tile, leaf_hash,
};
use prost::bytes::Bytes;

use super::{
    records::Records,
    report::{Fault, FaultKind, MAX_FAULTS, Report},
    source::{Source, SourceError},
    tree::{Sides, Supposition, Suppositions, Vote, root_of},
    verify::Progress,
};

/// Bytes of the largest bundle there can be.
const MAX_BUNDLE_BYTES: usize = TILE_WIDTH as usize * (MAX_ENTRY + 2);
const WIDTH: u64 = TILE_WIDTH as u64;

/// What a scan leads to beside the faults it reports.
pub(super) struct Scanned {
    /// The audit of the records.
    pub(super) records: Records,
    /// Whether the whole tree could be read.
    pub(super) whole: bool,
    /// Root at the size that was asked for.
    pub(super) earlier_root: Option<Hash>,
}

/// Reads the whole log up to the checkpoint and reports what does not fit it.
pub(super) fn scan(
    source: &Source,
    head: &Checkpoint,
    earlier: Option<u64>,
    report: &mut Report,
    progress: &mut dyn FnMut(Progress),
) -> Scanned {
    let size = head.size();
    let bundles = size.div_ceil(WIDTH);
    let mut scan = Scan {
        source,
        size,
        report,
        tree: Suppositions::new(earlier.filter(|earlier| *earlier <= size)),
        levels: Vec::new(),
        parents: None,
        records: Records::default(),
        mismatches: Vec::new(),
        upper: Vec::new(),
    };
    let mut whole = true;
    std::thread::scope(|scope| {
        let count = source.lanes().min(bundles);
        let start = |lane: u64| {
            let (give, take) = sync_channel(1);
            scope.spawn(move || {
                let mut index = lane;
                while index < bundles && give.send(load(source, index, size)).is_ok() {
                    index += count;
                }
            });
            take
        };
        let lanes: Vec<Receiver<Loaded>> = (0..count).map(start).collect();
        for index in 0..bundles {
            // One lane holds the bundles of one remainder, so their order is kept without holding many.
            let lane = usize::try_from(index % count).unwrap_or_default();
            let taken = lanes[lane].recv().is_ok_and(|loaded| scan.take(index, loaded));
            if !taken {
                whole = false;
                break;
            }
            progress(Progress { done: size.min((index + 1) * WIDTH), total: size });
        }
    });
    scan.finish(head, whole)
}

/// A bundle as it was read, and the level-0 tile over it.
struct Loaded {
    bundle: Result<Frames, SourceError>,
    tile: Result<Vec<Hash>, Fault>,
    stale: Vec<Fault>,
}

/// The entries of a bundle, up to the first that is cut.
struct Frames {
    entries: Vec<Bytes>,
    hashes: Vec<Hash>,
    damage: Option<BundleError>,
}

impl Frames {
    fn read(bytes: Vec<u8>, width: u16) -> Self {
        let damage = decode_bundle(&bytes, width).err();
        let bytes = Bytes::from(bytes);
        let mut entries = Vec::with_capacity(usize::from(width));
        let mut at = 0;
        while entries.len() < usize::from(width) {
            let Some(length) = bytes[at..].first_chunk::<2>() else { break };
            let (from, to) = (at + 2, at + 2 + usize::from(u16::from_be_bytes(*length)));
            if to > bytes.len() {
                break;
            }
            entries.push(bytes.slice(from..to));
            at = to;
        }
        let hashes = entries.iter().map(|entry| leaf_hash(entry)).collect();
        Self { entries, hashes, damage }
    }
}

/// Reads a file that may have grown to its full version since: partial ones may go then.
fn read_current(source: &Source, path: &str, full: &str, max: usize) -> Result<(Vec<u8>, bool), SourceError> {
    match source.read(path, max) {
        Err(SourceError::Missing) if path != full => source.read(full, max).map(|bytes| (bytes, true)),
        read => read.map(|bytes| (bytes, path == full)),
    }
}

fn full_tile(level: u8, index: u64) -> String {
    TileId::new(level, index, TILE_WIDTH).map_or_else(|_| String::new(), |id| id.to_string())
}

fn full_bundle(index: u64) -> String {
    BundleId::new(index, TILE_WIDTH).map_or_else(|_| String::new(), |id| id.to_string())
}

fn unreadable(path: &str, error: &SourceError) -> Fault {
    let kind = match error {
        SourceError::Missing => FaultKind::Missing,
        SourceError::TooLong(_) => FaultKind::FileDamaged,
        SourceError::Failed(_) => FaultKind::Unreadable,
    };
    Fault::new(kind, format!("{path} {error}"))
}

/// Reads one tile of the tree of this size.
fn load_tile(source: &Source, level: u8, index: u64, size: u64) -> Result<Vec<Hash>, Fault> {
    let Some(id) = TileId::in_tree(level, index, size) else {
        return Ok(Vec::new());
    };
    let (path, full) = (id.to_string(), full_tile(level, index));
    let read = read_current(source, &path, &full, TILE_BYTES);
    let (bytes, is_full) = read.map_err(|error| unreadable(&path, &error))?;
    let width = if is_full { TILE_WIDTH } else { id.width() };
    let mut hashes = decode_tile(&bytes, width)
        .map_err(|error| Fault::new(FaultKind::FileDamaged, format!("{path}: {error}")))?;
    hashes.truncate(usize::from(id.width()));
    Ok(hashes)
}

/// Superseded partial versions of a tile that are no prefix of it.
fn stale_tiles(source: &Source, level: u8, index: u64, current: &[Hash]) -> Vec<Fault> {
    let full = full_tile(level, index);
    let mut faults = Vec::new();
    for width in source.partials(&full).into_iter().map(usize::from) {
        if width >= current.len() {
            continue;
        }
        let path = format!("{full}.p/{width}");
        let Ok(bytes) = source.read(&path, TILE_BYTES) else { continue };
        let expected = exchequer_tlog::encode_tile(&current[..width]);
        if bytes != expected {
            let position = bytes.iter().zip(&expected).take_while(|(a, b)| a == b).count() / HASH_BYTES;
            let detail = format!("{path}, which is superseded, differs from {full} at hash {position}");
            faults.push(Fault::new(FaultKind::StaleFileChanged, detail));
        }
    }
    faults
}

/// Superseded partial versions of a bundle that are no prefix of it.
fn stale_bundles(source: &Source, index: u64, current: &[Hash]) -> Vec<Fault> {
    let full = full_bundle(index);
    let mut faults = Vec::new();
    for width in source.partials(&full) {
        if usize::from(width) >= current.len() {
            continue;
        }
        let path = format!("{full}.p/{width}");
        let Ok(bytes) = source.read(&path, MAX_BUNDLE_BYTES) else { continue };
        let frames = Frames::read(bytes, width);
        let same = frames.hashes.iter().zip(current).take_while(|(a, b)| a == b).count();
        if same < usize::from(width) || frames.damage.is_some() {
            let place = index * WIDTH + same as u64;
            let detail =
                format!("{path}, which is superseded, differs from the current bundle at entry {place}");
            faults.push(Fault::new(FaultKind::StaleFileChanged, detail));
        }
    }
    faults
}

fn load(source: &Source, index: u64, size: u64) -> Loaded {
    let id = BundleId::in_tree(index, size);
    let width = id.map_or(0, |id| id.width());
    let path = id.map_or_else(String::new, |id| id.to_string());
    let bundle =
        read_current(source, &path, &full_bundle(index), MAX_BUNDLE_BYTES).map(|(bytes, is_full)| {
            let mut frames = Frames::read(bytes, if is_full { TILE_WIDTH } else { width });
            frames.entries.truncate(usize::from(width));
            frames.hashes.truncate(usize::from(width));
            frames
        });
    let tile = load_tile(source, 0, index, size);
    let mut stale = Vec::new();
    if let Ok(frames) = &bundle
        && frames.damage.is_none()
    {
        stale.extend(stale_bundles(source, index, &frames.hashes));
        stale.extend(stale_tiles(source, 0, index, &frames.hashes));
    }
    Loaded { bundle, tile, stale }
}

/// An entry and its hash in the level-0 tile disagree.
struct Mismatch {
    index: u64,
    entry: String,
    by_entry: Hash,
    by_tile: Hash,
    vote: Vote,
    full: bool,
    above: bool,
}

/// A hash in a tile above level 0 is not the root of what is below it.
struct UpperMismatch {
    id: TileId,
    place: u64,
    computed: Hash,
    stored: Hash,
}

/// Which of an entry and its hash in the tile is the one that was signed.
enum Right {
    Entry,
    Tile,
    Neither,
    Unknown,
}

impl Mismatch {
    fn right(&self, truth: Option<Supposition>) -> Right {
        use Supposition as S;
        let by_vote = match self.vote {
            Vote::Tile => Right::Tile,
            Vote::Entries => Right::Entry,
            Vote::Agreed | Vote::Open => Right::Unknown,
        };
        match truth {
            Some(S::Entries) => Right::Entry,
            Some(S::Tiles) => Right::Tile,
            Some(S::VoteThenEntries | S::UpperThenEntries) if !self.full => Right::Entry,
            Some(S::VoteThenTiles | S::UpperThenTiles) if !self.full => Right::Tile,
            Some(S::VoteThenEntries | S::VoteThenTiles) if self.vote == Vote::Open => Right::Entry,
            Some(S::UpperThenEntries | S::UpperThenTiles) if self.vote == Vote::Open => {
                if self.above {
                    Right::Neither
                } else {
                    Right::Entry
                }
            }
            _ => by_vote,
        }
    }

    fn fault(&self, truth: Option<Supposition>) -> Fault {
        let tile = self.index / WIDTH;
        let (kind, detail, hashes) = match self.right(truth) {
            Right::Tile => (
                FaultKind::EntryChanged,
                "the entry's leaf hash is not the one in the signed tree".to_owned(),
                (self.by_tile, self.by_entry),
            ),
            Right::Entry => (
                FaultKind::TileChanged,
                format!("its hash in {} is wrong; the entry itself is the signed one", full_tile(0, tile)),
                (self.by_entry, self.by_tile),
            ),
            Right::Neither => (
                FaultKind::EntriesRewritten,
                "neither the entry nor its hash in the level-0 tile is the one in the signed tree".to_owned(),
                (self.by_tile, self.by_entry),
            ),
            Right::Unknown => (
                FaultKind::EntryOrTileChanged,
                "the entry's leaf hash is not the one in the level-0 tile, and neither leads to the signed root"
                    .to_owned(),
                (self.by_tile, self.by_entry),
            ),
        };
        Fault::new(kind, detail).at(self.index, self.entry.clone()).hashes(hashes.0, hashes.1)
    }
}

struct Scan<'a> {
    source: &'a Source,
    size: u64,
    report: &'a mut Report,
    tree: Suppositions,
    /// From level 1 on: the hashes of the tile in the making, and its index.
    levels: Vec<(u64, Vec<Hash>)>,
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
        let sides =
            Sides { entries: whole.map(|frames| &frames.hashes[..]), tile: tile.as_deref(), above, full };
        let Some((vote, subtree)) = self.tree.push(&sides) else {
            return false;
        };
        if full {
            self.grow(1, subtree);
        }
        if let Some(frames) = &frames {
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
        frames: &Frames,
        tile: Option<&[Hash]>,
        mismatch: &dyn Fn(u64, String, Hash, Hash) -> Mismatch,
    ) {
        let mut named = false;
        for (place, (bytes, by_entry)) in (first..).zip(frames.entries.iter().zip(&frames.hashes)) {
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
            if let Some(fault) = self.records.check(place, bytes)
                && differs.is_none()
            {
                self.report.fault(fault);
            }
        }
        let Some(damage) = frames.damage else {
            self.report.checked.entries += frames.entries.len() as u64;
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
                counts.entries
            ));
        }
        Scanned { earlier_root: self.tree.earlier_root(best), records: self.records, whole }
    }
}

fn upper_fault(upper: &UpperMismatch, truth: Option<Supposition>) -> Fault {
    let UpperMismatch { id, place, computed, stored } = upper;
    let below = id.index() * WIDTH + place;
    let child = full_tile(id.level() - 1, below);
    match truth {
        Some(Supposition::UpperThenEntries | Supposition::UpperThenTiles) if id.level() == 1 => Fault::new(
            FaultKind::EntriesRewritten,
            format!(
                "among entries {} to {} at least one was changed together with its hash in {child}: they fit each \
                 other, but not the signed tree",
                below * WIDTH,
                below * WIDTH + WIDTH - 1
            ),
        )
        .hashes(stored, computed),
        Some(_) => Fault::new(FaultKind::TileChanged, format!("hash {place} of {id} is wrong; {child} below it is right"))
            .hashes(computed, stored),
        None => Fault::new(
            FaultKind::EntryOrTileChanged,
            format!("hash {place} of {id} is not the root of {child}, and neither leads to the signed root"),
        )
        .hashes(stored, computed),
    }
}
