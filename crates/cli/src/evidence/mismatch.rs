//! Two hashes that should be one: which of them is the signed one, and how that is said.
//!
//! Left out: finding them. Invariant: nobody is accused whom the supposition that reaches the signed root does not convict.

use exchequer_tlog::{Hash, TileId};

use super::{
    load::{WIDTH, full_tile},
    report::{Fault, FaultKind},
    tree::{Supposition, Vote},
};

/// An entry and its hash in the level-0 tile disagree.
pub(super) struct Mismatch {
    pub(super) index: u64,
    pub(super) entry: String,
    pub(super) by_entry: Hash,
    pub(super) by_tile: Hash,
    pub(super) vote: Vote,
    pub(super) full: bool,
    pub(super) above: bool,
}

/// A hash in a tile above level 0 is not the root of what is below it.
pub(super) struct UpperMismatch {
    pub(super) id: TileId,
    pub(super) place: u64,
    pub(super) computed: Hash,
    pub(super) stored: Hash,
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

    pub(super) fn fault(&self, truth: Option<Supposition>) -> Fault {
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

pub(super) fn upper_fault(upper: &UpperMismatch, truth: Option<Supposition>) -> Fault {
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
