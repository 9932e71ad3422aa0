//! Finding the hashes of the signed tree, from the root down, in whatever is left of it.
//!
//! A tile that leads to a hash above it is right, wherever it was found; so are then the hashes that it holds. Left out: what lies
//! there instead. Invariant: every hash that is returned leads to the root that was asked for.

use exchequer_tlog::{EMPTY_ROOT, Hash, LEVELS, RightEdge, TILE_WIDTH, TileId, TileReader};

use super::{
    pieces::{Pieces, Read},
    report::RepairSource,
    search::{Version, root_over, search},
};

const WIDTH: u64 = TILE_WIDTH as u64;

/// Hashes of the signed tree, and what had to be consulted to know them; `None` if the tile's own file was enough.
pub(super) struct Resolved {
    pub(super) id: TileId,
    pub(super) hashes: Vec<Hash>,
    pub(super) source: Option<RepairSource>,
}

/// What is consulted, in this order.
const STAGES: [Option<RepairSource>; 5] = [
    None,
    Some(RepairSource::Log),
    Some(RepairSource::Entries),
    Some(RepairSource::Entries),
    Some(RepairSource::Mirror),
];

impl Pieces {
    /// The partial tiles of each level, highest first, which together lead to the root.
    pub(super) fn edge(&self, size: u64, root: &Hash) -> Option<Vec<Resolved>> {
        let ids: Vec<TileId> = (0..LEVELS)
            .rev()
            .filter_map(|level| {
                let hashes = size.checked_shr(8 * u32::from(level)).unwrap_or(0);
                TileId::in_tree(level, hashes / WIDTH, size)
            })
            .collect();
        if ids.is_empty() {
            return (*root == EMPTY_ROOT).then(Vec::new);
        }
        self.resolve(&ids, |tiles| {
            let edge = RightEdge::load(size, &Tiles { ids: &ids, tiles });
            edge.is_ok_and(|edge| edge.root() == *root)
        })
    }

    /// The full tile that leads to a hash one level up.
    pub(super) fn full(&self, level: u8, index: u64, above: &Hash) -> Option<Resolved> {
        let id = TileId::new(level, index, TILE_WIDTH).ok()?;
        self.resolve(&[id], |tiles| root_over(&tiles[0]) == *above)?.pop()
    }

    fn resolve(&self, ids: &[TileId], check: impl Fn(&[Vec<Hash>]) -> bool) -> Option<Vec<Resolved>> {
        let widths: Vec<usize> = ids.iter().map(|id| usize::from(id.width())).collect();
        let mut versions: Vec<Vec<Version>> = vec![Vec::new(); ids.len()];
        for (stage, source) in STAGES.into_iter().enumerate() {
            let mut is_new = false;
            for (id, versions) in ids.iter().zip(&mut versions) {
                for version in self.versions(*id, stage) {
                    if !versions.contains(&version) {
                        versions.push(version);
                        is_new = true;
                    }
                }
            }
            if !is_new {
                continue;
            }
            if let Some(tiles) = search(&widths, &versions, &check) {
                let resolved = ids.iter().zip(tiles).map(|(id, hashes)| Resolved { id: *id, hashes, source });
                return Some(resolved.collect());
            }
        }
        None
    }

    fn versions(&self, id: TileId, stage: usize) -> Vec<Version> {
        let known = |hashes: Vec<Hash>| hashes.into_iter().map(Some).collect::<Version>();
        match stage {
            0 => match self.tile(id) {
                Read::Missing => Vec::new(),
                Read::Truncated(hashes, _) | Read::Whole(hashes) => vec![known(hashes)],
            },
            1 => self.wider_tiles(id).into_iter().map(known).collect(),
            2 => vec![self.below(id, false)],
            3 if id.level() > 0 => vec![self.below(id, true)],
            3 => Vec::new(),
            _ => self.mirrored_tile(id).into_iter().map(known).collect(),
        }
    }

    /// A tile's hashes as what is below it has them: the tiles of the next level, or the entries alone.
    pub(super) fn below(&self, id: TileId, is_deep: bool) -> Version {
        let width = usize::from(id.width());
        let mut version = if id.level() == 0 { self.leaves(id) } else { Version::new() };
        if id.level() > 0 {
            let first = id.index() * WIDTH;
            version = (first..first + width as u64)
                .map(|index| self.subtree(id.level() - 1, index, is_deep))
                .collect();
        }
        version.resize(width, None);
        version
    }

    fn leaves(&self, id: TileId) -> Version {
        let Ok(bundle) = exchequer_tlog::BundleId::new(id.index(), id.width()) else { return Version::new() };
        let own = match self.bundle(bundle) {
            Read::Missing => Vec::new(),
            Read::Truncated(entries, _) | Read::Whole(entries) => entries.hashes,
        };
        let mut leaves: Version = own.into_iter().take(usize::from(id.width())).map(Some).collect();
        if leaves.len() < usize::from(id.width()) {
            // What the file lacks, a wider version may have.
            let wider = self.wider_bundles(bundle).into_iter().next();
            leaves.extend(
                wider
                    .into_iter()
                    .flat_map(|wide| wide.hashes)
                    .map(Some)
                    .skip(leaves.len())
                    .collect::<Version>(),
            );
        }
        leaves
    }

    fn subtree(&self, level: u8, index: u64, is_deep: bool) -> Option<Hash> {
        let id = TileId::new(level, index, TILE_WIDTH).ok()?;
        if !is_deep && let Read::Whole(hashes) = self.tile(id) {
            return Some(root_over(&hashes));
        }
        let hashes: Option<Vec<Hash>> = self.below(id, true).into_iter().collect();
        Some(root_over(&hashes?))
    }
}

/// Some tiles, to load an edge from.
struct Tiles<'a> {
    ids: &'a [TileId],
    tiles: &'a [Vec<Hash>],
}

impl TileReader for Tiles<'_> {
    type Tile = Vec<Hash>;
    type Error = ();

    fn tile(&self, id: TileId) -> Result<Self::Tile, Self::Error> {
        let place = self.ids.iter().position(|held| *held == id).ok_or(())?;
        Ok(self.tiles[place].clone())
    }
}
