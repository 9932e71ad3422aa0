//! The tree under every supposition about what was changed: by the entries, by the level-0 tiles, by the tiles above, and by what two
//! of the three agree on. The one that reaches the signed root is true, for nobody can make another one that does.
//!
//! Left out: reading. Invariant: a supposition that lacks a hash anywhere is never called true.

use exchequer_tlog::{EMPTY_ROOT, Hash, node_hash};

/// Height of the subtree over a full tile.
pub(super) const TILE_HEIGHT: u32 = 8;

/// The roots of complete subtrees, largest first, with their heights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Peaks(Vec<(u32, Hash)>);

impl Peaks {
    pub(super) fn push(&mut self, mut height: u32, mut hash: Hash) {
        while let Some((_, left)) = self.0.pop_if(|(last, _)| *last == height) {
            hash = node_hash(&left, &hash);
            height += 1;
        }
        self.0.push((height, hash));
    }

    fn leaves(&mut self, hashes: &[Hash]) {
        for hash in hashes {
            self.push(0, *hash);
        }
    }

    fn root(&self) -> Hash {
        let peaks = self.0.iter().rev().map(|(_, hash)| *hash);
        peaks.reduce(|right, left| node_hash(&left, &right)).unwrap_or(EMPTY_ROOT)
    }
}

/// The root of the tree over these hashes.
pub(super) fn root_of(hashes: &[Hash]) -> Hash {
    let mut peaks = Peaks::default();
    peaks.leaves(hashes);
    peaks.root()
}

/// What is supposed to be true. The order is the order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Supposition {
    /// The entries.
    Entries,
    /// The level-0 tiles.
    Tiles,
    /// What two of entries, level-0 tile and tile above agree on; in the last, partial bundle the entries.
    VoteThenEntries,
    /// The same; in the last, partial bundle the level-0 tile.
    VoteThenTiles,
    /// The tiles above; in the last, partial bundle the entries.
    UpperThenEntries,
    /// The tiles above; in the last, partial bundle the level-0 tile.
    UpperThenTiles,
}

pub(super) const SUPPOSITIONS: [Supposition; 6] = [
    Supposition::Entries,
    Supposition::Tiles,
    Supposition::VoteThenEntries,
    Supposition::VoteThenTiles,
    Supposition::UpperThenEntries,
    Supposition::UpperThenTiles,
];

/// Who is right about a full bundle, as far as the tile above tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vote {
    /// Entries and level-0 tile agree.
    Agreed,
    /// The tile above is with the entries.
    Entries,
    /// The tile above is with the level-0 tile.
    Tile,
    /// It is with neither, or there is none.
    Open,
}

/// The hashes of one bundle from each side; `None` for what could not be had.
pub(super) struct Sides<'a> {
    pub(super) entries: Option<&'a [Hash]>,
    pub(super) tile: Option<&'a [Hash]>,
    /// The roots over either.
    pub(super) roots: (Option<Hash>, Option<Hash>),
    /// What the tile above says of a full bundle.
    pub(super) above: Option<Hash>,
    /// Whether the bundle is full.
    pub(super) full: bool,
}

/// The tree under each supposition.
pub(super) struct Suppositions {
    peaks: [Option<Peaks>; 6],
    /// The sizes whose roots were asked for, ascending, and the roots of those that have been reached.
    sizes: Vec<u64>,
    roots: Vec<Roots>,
    size: u64,
}

/// The roots of one size.
enum Roots {
    /// Under every supposition.
    Same(Hash),
    Each(Box<[Option<Hash>; 6]>),
}

impl Suppositions {
    /// A tree of full bundles with these peaks. The roots at `sizes`, which ascend and are none of them smaller, will be kept.
    pub(super) fn new(from: Peaks, size: u64, sizes: Vec<u64>) -> Self {
        let same = sizes.iter().take_while(|wanted| **wanted <= size);
        let roots = same.map(|_| Roots::Same(from.root())).collect();
        Self { peaks: std::array::from_fn(|_| Some(from.clone())), sizes, roots, size }
    }

    /// Takes the next bundle. For a full one: the vote, and its subtree's root by the vote. `None` if nobody knows anything.
    pub(super) fn push(&mut self, sides: &Sides<'_>) -> Option<(Vote, Hash)> {
        let any = sides.entries.or(sides.tile);
        let roots = sides.roots;
        let (vote, voted) = match (roots, sides.above.filter(|_| sides.full)) {
            ((Some(entries), Some(tile)), _) if entries == tile => (Vote::Agreed, entries),
            ((Some(entries), _), Some(above)) if entries == above => (Vote::Entries, entries),
            ((_, Some(tile)), Some(above)) if tile == above => (Vote::Tile, tile),
            ((Some(entries), _), _) => (Vote::Open, entries),
            ((None, Some(tile)), _) => (Vote::Open, tile),
            ((None, None), Some(above)) => (Vote::Open, above),
            ((None, None), None) => return None,
        };
        let added = any.map_or(0, <[Hash]>::len) as u64;
        let width = if sides.full { 256 } else { added };
        self.keep_roots(sides, vote, width);
        for (place, supposition) in SUPPOSITIONS.into_iter().enumerate() {
            let leaves = leaves_of(sides, supposition, vote);
            let Some(mut peaks) = self.peaks[place].take() else { continue };
            let subtree = match supposition {
                Supposition::Entries => roots.0,
                Supposition::Tiles => roots.1,
                Supposition::VoteThenEntries | Supposition::VoteThenTiles => Some(voted),
                Supposition::UpperThenEntries | Supposition::UpperThenTiles => {
                    Some(sides.above.unwrap_or(voted))
                }
            };
            self.peaks[place] = match (sides.full, subtree, leaves) {
                (true, Some(subtree), _) => {
                    peaks.push(TILE_HEIGHT, subtree);
                    Some(peaks)
                }
                (false, _, Some(leaves)) => {
                    peaks.leaves(leaves);
                    Some(peaks)
                }
                _ => None,
            };
        }
        self.size += width;
        Some((vote, voted))
    }

    /// Keeps the roots that were asked for and lie within the next bundle.
    fn keep_roots(&mut self, sides: &Sides<'_>, vote: Vote, width: u64) {
        let next = self.sizes[self.roots.len()..].iter().take_while(|size| **size <= self.size + width);
        let sizes: Vec<u64> = next.copied().collect();
        if sizes.is_empty() {
            return;
        }
        let roots_of = |supposition: Supposition| {
            let leaves = leaves_of(sides, supposition, vote)?;
            let mut peaks = self.peaks[supposition as usize].clone()?;
            let mut taken = 0;
            let root = |size: &u64| {
                let count = usize::try_from(size - self.size).unwrap_or(usize::MAX).min(leaves.len());
                peaks.leaves(&leaves[taken..count]);
                taken = count;
                peaks.root()
            };
            Some(sizes.iter().map(root).collect::<Vec<_>>())
        };
        let agree = vote == Vote::Agreed && self.peaks.iter().all(|peaks| *peaks == self.peaks[0]);
        if agree && let Some(roots) = roots_of(Supposition::Entries) {
            self.roots.extend(roots.into_iter().map(Roots::Same));
            return;
        }
        let each = SUPPOSITIONS.map(roots_of);
        for place in 0..sizes.len() {
            let roots = std::array::from_fn(|n| each[n].as_ref().map(|roots| roots[place]));
            self.roots.push(Roots::Each(Box::new(roots)));
        }
    }

    /// The supposition under which the tree has this root.
    pub(super) fn true_for(&self, root: &Hash) -> Option<Supposition> {
        let reaches = |place: &usize| self.peaks[*place].as_ref().is_some_and(|peaks| peaks.root() == *root);
        (0..SUPPOSITIONS.len()).find(reaches).map(|place| SUPPOSITIONS[place])
    }

    /// The root under a supposition.
    pub(super) fn root(&self, supposition: Supposition) -> Option<Hash> {
        self.peaks[supposition as usize].as_ref().map(Peaks::root)
    }

    /// The root at a size that was asked for, under a supposition; `None` if it was not reached or could not be had.
    pub(super) fn root_at(&self, size: u64, supposition: Supposition) -> Option<Hash> {
        match self.roots.get(self.sizes.binary_search(&size).ok()?)? {
            Roots::Same(root) => Some(*root),
            Roots::Each(roots) => roots[supposition as usize],
        }
    }
}

/// The leaves of the next bundle under a supposition.
fn leaves_of<'a>(sides: &Sides<'a>, supposition: Supposition, vote: Vote) -> Option<&'a [Hash]> {
    let any = sides.entries.or(sides.tile);
    match supposition {
        Supposition::Entries => sides.entries,
        Supposition::Tiles => sides.tile,
        _ if sides.full && vote == Vote::Tile => sides.tile,
        Supposition::VoteThenEntries | Supposition::UpperThenEntries => any,
        Supposition::VoteThenTiles | Supposition::UpperThenTiles if sides.full => any,
        Supposition::VoteThenTiles | Supposition::UpperThenTiles => sides.tile.or(any),
    }
}
