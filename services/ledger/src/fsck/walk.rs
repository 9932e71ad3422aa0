//! Walking the signed tree from its root to each entry: what lies in each file, compared with what has to.
//!
//! Left out: which tree is the right one, and files that belong to none. Invariant: a file is put in place only with exactly the bytes
//! of the signed tree.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use exchequer_event::{
    accept::{Acceptor, KeyState},
    entry,
};
use exchequer_tlog::{BundleId, Frontier, Hash, TILE_WIDTH, TileId, encode_tile, push_entry};

use super::{
    pieces::{Entries, Pieces, Read, full_path},
    repair::Repair,
    report::{Class, Finding, RepairSource},
    resolve::Resolved,
    search::root_over,
    signed::Kept,
};
use crate::store::StoreError;

const WIDTH: u64 = TILE_WIDTH as u64;
/// Damaged files that are compared with each other to find swaps.
const MAX_SWAPPED: usize = 1024;

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Walked {
    /// Whether anything led to the root.
    pub(super) is_resolved: bool,
    pub(super) findings: Vec<Finding>,
    /// Index of the first entry that can't be had.
    pub(super) first_lost: Option<u64>,
    /// The last entry.
    pub(super) last: Option<Bytes>,
    /// Every key that the entries before the first lost one hold.
    pub(super) keys: Vec<KeyState>,
    /// Superseded files that do not fit.
    pub(super) changed: BTreeSet<String>,
}

impl Walked {
    /// Whether the tree is whole, or all that it lacks can be had.
    pub(super) fn is_whole(&self) -> bool {
        self.is_resolved && self.findings.iter().all(|finding| finding.repair.is_some())
    }
}

/// Walks the tree of this size and root, under checkpoints in the order of their sizes, putting right what it can if there is a repair.
pub(super) fn walk(
    pieces: &Pieces,
    (size, root): (u64, &Hash),
    checkpoints: &[Kept],
    repair: Option<&mut Repair>,
) -> Result<Walked, StoreError> {
    let mut walk = Walk {
        pieces,
        checkpoints: checkpoints.iter().collect(),
        repair,
        walked: Walked::default(),
        tree: Some(Frontier::new()),
        damaged: Vec::new(),
        acceptor: Acceptor::new(),
        size,
    };
    walk.compare_checkpoints();
    let Some(edge) = pieces.edge(size, root) else {
        walk.name_what_does_not_fit(size, root);
        return Ok(walk.walked);
    };
    walk.walked.is_resolved = true;
    for tile in edge {
        walk.tile(&tile)?;
    }
    walk.name_swapped();
    walk.walked.keys = walk.acceptor.keys().to_vec();
    Ok(walk.walked)
}

struct Walk<'a, 'b> {
    pieces: &'a Pieces,
    /// Those that are not reached yet.
    checkpoints: std::collections::VecDeque<&'a Kept>,
    repair: Option<&'b mut Repair>,
    walked: Walked,
    /// The tree so far; none after a part that is lost.
    tree: Option<Frontier>,
    /// Of damaged files: the finding, and the roots over what lies there and what should.
    damaged: Vec<(usize, Hash, Hash)>,
    /// After the entries before the first lost one.
    acceptor: Acceptor,
    size: u64,
}

impl Walk<'_, '_> {
    fn find(&mut self, path: &str, class: Class, detail: String, repair: Option<RepairSource>) {
        self.walked.findings.push(Finding::new(format!("log/{path}"), class, detail, repair));
    }

    fn put(&mut self, path: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        match &mut self.repair {
            Some(repair) => repair.put(&format!("log/{path}"), bytes),
            None => Ok(()),
        }
    }

    /// A tile whose hashes are known, and all below it.
    fn tile(&mut self, tile: &Resolved) -> Result<(), StoreError> {
        let (id, path) = (tile.id, tile.id.to_string());
        let expected = encode_tile(&tile.hashes);
        let source = tile.source.or(Some(RepairSource::Entries));
        let wrong = match self.pieces.tile(id) {
            Read::Whole(hashes) if hashes == tile.hashes => None,
            Read::Whole(hashes) => {
                let place = hashes.iter().zip(&tile.hashes).take_while(|(a, b)| a == b).count();
                let (found, right) = (hashes[place], tile.hashes[place]);
                self.note_damage(&hashes, &tile.hashes);
                Some((Class::TileChanged, format!("hash {place} is {found}, the signed tree has {right}")))
            }
            Read::Truncated(_, reason) => Some((Class::TileTruncated, reason)),
            Read::Missing => Some((Class::TileMissing, "it is not there".to_owned())),
        };
        if let Some((class, detail)) = wrong {
            self.find(&path, class, detail, source);
            self.put(&path, expected)?;
        }
        self.leftovers(&path, id.width(), |width, walk| {
            let narrow = TileId::new(id.level(), id.index(), width).ok()?;
            Some(matches!(walk.pieces.tile(narrow), Read::Whole(hashes) if tile.hashes.starts_with(&hashes)))
        })?;
        if id.level() == 0 {
            return self.bundle(id.index(), &tile.hashes);
        }
        for (index, above) in (id.index() * WIDTH..).zip(&tile.hashes) {
            match self.pieces.full(id.level() - 1, index, above) {
                Some(below) => self.tile(&below)?,
                None => self.lost(id.level() - 1, index),
            }
        }
        Ok(())
    }

    /// The entries whose hashes are known.
    fn bundle(&mut self, index: u64, leaves: &[Hash]) -> Result<(), StoreError> {
        let width = u16::try_from(leaves.len()).unwrap_or(TILE_WIDTH);
        let Ok(id) = BundleId::new(index, width) else { return Ok(()) };
        let (path, first) = (id.to_string(), index * WIDTH);
        let (own, wrong) = match self.pieces.bundle(id) {
            Read::Whole(entries) => {
                let wrong: Vec<u64> = (first..)
                    .zip(entries.hashes.iter().zip(leaves))
                    .filter(|(_, (a, b))| a != b)
                    .map(|(index, _)| index)
                    .collect();
                let wrong = wrong.first().map(|entry| {
                    let place = usize::try_from(entry - first).unwrap_or_default();
                    let others = match wrong.len() {
                        1 => String::new(),
                        count => format!(", and {} more are changed", count - 1),
                    };
                    let (found, right) = (entries.hashes[place], leaves[place]);
                    let detail = format!(
                        "entry {entry} has the leaf hash {found}, the signed tree has {right}{others}"
                    );
                    (Class::EntryChanged, detail)
                });
                (entries, wrong)
            }
            Read::Truncated(entries, reason) => (entries, Some((Class::BundleTruncated, reason))),
            Read::Missing => (Entries::default(), Some((Class::BundleMissing, "it is not there".to_owned()))),
        };
        let Some((class, detail)) = wrong else {
            self.take(&own.entries);
            self.bundle_leftovers(id, leaves)?;
            self.grow(leaves);
            return Ok(());
        };
        if class == Class::EntryChanged {
            self.note_damage(&own.hashes, leaves);
        }
        let (entries, source) = self.gather(id, own, leaves);
        let lost = entries.iter().position(Option::is_none).map(|place| first + place as u64);
        let whole: Option<Vec<Bytes>> = entries.into_iter().collect();
        self.find(&path, class, detail, whole.as_ref().map(|_| source));
        if let Some(entries) = whole {
            self.take(&entries);
            self.put(&path, joined(&entries)?)?;
        }
        self.lose(lost);
        self.bundle_leftovers(id, leaves)?;
        self.grow(leaves);
        Ok(())
    }

    /// Takes up the next entries of the tree.
    fn take(&mut self, entries: &[Bytes]) {
        self.walked.last = entries.last().cloned();
        if self.walked.first_lost.is_none() {
            // One that is none counts too: keys know their place by it.
            for bytes in entries {
                self.acceptor.evolve(&entry::decode(bytes).unwrap_or_default());
            }
        }
    }

    /// Each entry by its hash, from wherever it is found.
    fn gather(&self, id: BundleId, own: Entries, leaves: &[Hash]) -> (Vec<Option<Bytes>>, RepairSource) {
        let mut found: BTreeMap<Hash, Bytes> = own.hashes.into_iter().zip(own.entries).collect();
        let is_whole = |found: &BTreeMap<Hash, Bytes>| leaves.iter().all(|leaf| found.contains_key(leaf));
        let mut source = RepairSource::Log;
        for wide in self.pieces.wider_bundles(id) {
            found.extend(wide.hashes.into_iter().zip(wide.entries));
        }
        if !is_whole(&found)
            && let Some(mirrored) = self.pieces.mirrored_bundle(id)
        {
            source = RepairSource::Mirror;
            found.extend(mirrored.hashes.into_iter().zip(mirrored.entries));
        }
        (leaves.iter().map(|leaf| found.get(leaf).cloned()).collect(), source)
    }

    fn bundle_leftovers(&mut self, id: BundleId, leaves: &[Hash]) -> Result<(), StoreError> {
        self.leftovers(&id.to_string(), id.width(), |width, walk| {
            let narrow = BundleId::new(id.index(), width).ok()?;
            let read = walk.pieces.bundle(narrow);
            Some(matches!(read, Read::Whole(entries) if leaves.starts_with(&entries.hashes)))
        })
    }

    /// Narrower versions of a file, which have to be its beginning.
    fn leftovers(
        &mut self,
        path: &str,
        width: u16,
        fits: impl Fn(u16, &Self) -> Option<bool>,
    ) -> Result<(), StoreError> {
        let full = full_path(path);
        for narrow in self.pieces.partial_widths(full).range(..width).copied() {
            if fits(narrow, self) != Some(false) {
                continue;
            }
            let name = format!("{full}.p/{narrow}");
            let detail = format!("it is superseded by {path} and is not its beginning");
            self.find(&name, Class::LeftoverChanged, detail, Some(RepairSource::Removal));
            self.walked.changed.insert(format!("log/{name}"));
            if let Some(repair) = &mut self.repair {
                repair.remove(&format!("log/{name}"))?;
            }
        }
        Ok(())
    }

    /// A subtree that nothing leads to.
    fn lost(&mut self, level: u8, index: u64) {
        let per_tile = 1u64 << (8 * (u32::from(level) + 1));
        let (first, end) = (index * per_tile, self.size.min((index + 1) * per_tile));
        let path = TileId::new(level, index, TILE_WIDTH).map_or_else(|_| String::new(), |id| id.to_string());
        let detail = format!(
            "neither it nor what is below it leads to the signed tree: entries {first} to {} can't be told right from wrong",
            end - 1
        );
        self.find(&path, Class::TreeLost, detail, None);
        self.tree = None;
        self.lose(Some(first));
    }

    fn lose(&mut self, entry: Option<u64>) {
        let first = self.walked.first_lost;
        self.walked.first_lost = first.into_iter().chain(entry).min();
    }

    fn grow(&mut self, leaves: &[Hash]) {
        for leaf in leaves {
            let Some(tree) = &mut self.tree else { return };
            tree.append(*leaf);
            self.compare_checkpoints();
        }
    }

    /// Compares the checkpoints of the size that the tree has now.
    fn compare_checkpoints(&mut self) {
        let Some(tree) = &self.tree else { return };
        let mut forks = Vec::new();
        while let Some(kept) = self.checkpoints.front().filter(|kept| kept.size() <= tree.size()) {
            let root = tree.root();
            let signed = kept.signed.checkpoint();
            if *signed.root() != root {
                let detail = format!(
                    "the checkpoint of {} entries has the root {}, the log has {root}",
                    signed.size(),
                    signed.root()
                );
                forks.push(Finding::new(&*kept.path, Class::Fork, detail, None));
            }
            self.checkpoints.pop_front();
        }
        self.walked.findings.extend(forks);
    }

    /// What lies in the file of the next finding, and what should.
    fn note_damage(&mut self, found: &[Hash], expected: &[Hash]) {
        if self.damaged.len() < MAX_SWAPPED {
            self.damaged.push((self.walked.findings.len(), root_over(found), root_over(expected)));
        }
    }

    /// Files that hold each other's content.
    fn name_swapped(&mut self) {
        // A bundle and the tile over it have the same hashes.
        let is_tile = |finding: usize| self.walked.findings[finding].class == Class::TileChanged;
        let belongs: BTreeMap<(bool, Hash), usize> = self
            .damaged
            .iter()
            .map(|(finding, _, expected)| ((is_tile(*finding), *expected), *finding))
            .collect();
        let held: BTreeMap<usize, usize> = self
            .damaged
            .iter()
            .filter_map(|(finding, found, _)| Some((*finding, *belongs.get(&(is_tile(*finding), *found))?)))
            .collect();
        for (finding, other) in &held {
            if held.get(other) == Some(finding) {
                let path = self.walked.findings[*other].path.clone();
                let finding = &mut self.walked.findings[*finding];
                finding.class = match finding.class {
                    Class::TileChanged => Class::TileSwapped,
                    _ => Class::BundleSwapped,
                };
                finding.detail = format!("it holds what belongs into {path}");
            }
        }
    }

    /// Nothing leads to the root: which files do not fit each other.
    fn name_what_does_not_fit(&mut self, size: u64, root: &Hash) {
        let before = self.walked.findings.len();
        for id in exchequer_tlog::bundles_for_size(size) {
            let wrong = match self.pieces.bundle(id) {
                Read::Whole(_) => continue,
                Read::Truncated(_, reason) => (Class::BundleTruncated, reason),
                Read::Missing => (Class::BundleMissing, "it is not there".to_owned()),
            };
            self.find(&id.to_string(), wrong.0, wrong.1, None);
            self.lose(Some(id.index() * WIDTH));
        }
        for id in exchequer_tlog::tiles_for_size(size) {
            let wrong = match self.pieces.tile(id) {
                Read::Whole(hashes) => {
                    let below = self.pieces.below(id, false);
                    let differs =
                        |(held, below): (&Hash, &Option<Hash>)| below.is_some_and(|below| below != *held);
                    let Some(place) = hashes.iter().zip(&below).position(differs) else { continue };
                    (
                        Class::TileChanged,
                        format!("hash {place} is not that of what is below it, or that was changed"),
                    )
                }
                Read::Truncated(_, reason) => (Class::TileTruncated, reason),
                Read::Missing => (Class::TileMissing, "it is not there".to_owned()),
            };
            self.find(&id.to_string(), wrong.0, wrong.1, None);
        }
        if self.walked.findings.len() == before {
            let detail = format!(
                "the files fit each other, and do not lead to the root {root} of {size} entries: they were rewritten"
            );
            self.find("tile", Class::TreeLost, detail, None);
            self.lose(Some(0));
        }
    }
}

fn joined(entries: &[Bytes]) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    entries.iter().try_for_each(|entry| push_entry(&mut bytes, entry))?;
    Ok(bytes)
}
