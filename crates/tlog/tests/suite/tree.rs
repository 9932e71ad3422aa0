//! Roots, tiles and edges: in batches or at once, they are those of the oracle.

use exchequer_tlog::{
    BundleEdge, BundleError, EMPTY_ROOT, EntryTooLarge, Frontier, Hash, MAX_ENTRY, RightEdge, TileId,
    TreeReadError, bundles_between, bundles_for_size, decode_bundle, decode_tile, leaf_hash, tiles_between,
    tiles_for_size,
};
use proptest::prelude::*;

use crate::oracle::{self, Missing, Tiles, entry, leaves, mth};

#[track_caller]
fn check_size(size: u64) {
    let leaves = leaves(size);
    let root = mth(&leaves);
    let integration = RightEdge::new().integrate(&leaves);
    assert_eq!(integration.root, root);
    assert_eq!(integration.edge.size(), size);

    let ids: Vec<_> = integration.tiles.iter().map(|tile| tile.id).collect();
    assert_eq!(ids, tiles_for_size(size).collect::<Vec<_>>());
    for tile in &integration.tiles {
        let span = 256usize.pow(u32::from(tile.id.level()));
        let first = usize::try_from(tile.id.index()).unwrap() * 256 * span;
        let expected: Vec<_> = leaves[first..].chunks_exact(span).take(256).map(mth).collect();
        assert_eq!(tile.hashes, expected, "{}", tile.id);
        assert_eq!(tile.hashes.len(), usize::from(tile.id.width()));
        assert_eq!(decode_tile(&tile.bytes(), tile.id.width()).unwrap(), tile.hashes);
    }

    let mut frontier = Frontier::new();
    for leaf in &leaves {
        frontier.append(*leaf);
    }
    assert_eq!(frontier.root(), root);
    assert_eq!(frontier, integration.edge.frontier());

    let mut tiles = Tiles::default();
    tiles.write(integration.tiles);
    assert_eq!(RightEdge::load(size, &tiles).unwrap(), integration.edge);
}

#[test]
fn the_tree_of_every_small_size_is_the_oracles() {
    (0..=600).for_each(check_size);
}

#[test]
fn the_tree_around_each_power_of_256_is_the_oracles() {
    for size in [65_535, 65_536, 65_537, 65_536 + 256, 70_000] {
        check_size(size);
    }
}

#[test]
fn the_tree_of_the_reference_leaves_has_the_reference_roots() {
    // The leaves and roots that the reference implementations of RFC 6962 test with.
    let entries: [&[u8]; 8] = [
        &[],
        &[0x00],
        &[0x10],
        &[0x20, 0x21],
        &[0x30, 0x31],
        &[0x40, 0x41, 0x42, 0x43],
        &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
        &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f],
    ];
    let roots = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let mut edge = RightEdge::new();
    for (entry, root) in entries.iter().zip(roots) {
        let integration = edge.integrate(&[leaf_hash(entry)]);
        assert_eq!(format!("{:?}", integration.root), root);
        edge = integration.edge;
    }
}

#[test]
fn integrating_nothing_changes_nothing() {
    for size in [0, 1, 256, 300] {
        let before = RightEdge::new().integrate(&leaves(size));
        let after = before.edge.integrate(&[]);
        assert_eq!((after.tiles.len(), after.edge, after.root), (0, before.edge, before.root));
    }
    assert_eq!(RightEdge::new().root(), EMPTY_ROOT);
}

#[test]
fn a_tile_that_is_missing_or_short_is_named() {
    let mut tiles = Tiles::default();
    tiles.write(RightEdge::new().integrate(&leaves(300)).tiles);
    let id = TileId::new(0, 1, 44).unwrap();
    tiles.0.get_mut(&(0, 1)).unwrap().pop();
    assert_eq!(RightEdge::load(300, &tiles), Err(TreeReadError::Short { id, got: 43 }));
    tiles.0.remove(&(0, 1));
    assert_eq!(RightEdge::load(300, &tiles), Err(TreeReadError::Read { id, source: Missing }));
}

#[test]
fn a_changed_hash_on_the_edge_changes_the_root() {
    let honest = RightEdge::new().integrate(&leaves(66_000));
    let mut tiles = Tiles::default();
    tiles.write(honest.tiles);
    for level in [0, 1, 2] {
        let index = *tiles.0.keys().filter(|(l, _)| *l == level).map(|(_, index)| index).max().unwrap();
        let mut tampered = tiles.clone();
        tampered.0.get_mut(&(level, index)).unwrap()[0].0[31] ^= 1;
        assert_ne!(RightEdge::load(66_000, &tampered).unwrap().root(), honest.root, "level {level}");
    }
}

#[track_caller]
fn check_batches(batches: &[u64]) {
    let total: u64 = batches.iter().sum();
    let leaves = leaves(total);
    let mut edge = RightEdge::new();
    let mut frontier = Frontier::new();
    let mut tiles = Tiles::default();
    for batch in batches {
        let (from, to) = (edge.size(), edge.size() + batch);
        let new = &leaves[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()];
        let integration = edge.integrate(new);
        let ids: Vec<_> = integration.tiles.iter().map(|tile| tile.id).collect();
        assert_eq!(ids, tiles_between(from, to).collect::<Vec<_>>());
        tiles.write(integration.tiles);
        edge = RightEdge::load(to, &tiles).unwrap();
        assert_eq!(edge, integration.edge);
        for leaf in new {
            frontier.append(*leaf);
        }
        assert_eq!(frontier.root(), integration.root);
    }
    let once = RightEdge::new().integrate(&leaves);
    let mut expected = Tiles::default();
    expected.write(once.tiles);
    assert_eq!((edge.root(), &edge, &tiles), (mth(&leaves), &once.edge, &expected));
}

#[test]
fn batches_across_65536_build_the_tree_of_one_batch() {
    check_batches(&[65_535, 1, 1, 254, 1, 256, 300]);
    check_batches(&[1, 65_300, 500]);
}

fn batches() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(prop_oneof![0u64..4, 250u64..260, 0u64..700], 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn batches_of_any_size_build_the_tree_of_one_batch(batches in batches()) {
        check_batches(&batches);
    }

    #[test]
    fn batches_of_any_size_build_the_bundles_of_one_batch(batches in batches()) {
        let mut edge = BundleEdge::default();
        let mut files = std::collections::BTreeMap::new();
        for batch in &batches {
            let (from, to) = (edge.size(), edge.size() + batch);
            let integration = edge.integrate((from..to).map(entry)).unwrap();
            let ids: Vec<_> = integration.bundles.iter().map(|bundle| bundle.id).collect();
            prop_assert_eq!(ids, bundles_between(from, to).collect::<Vec<_>>());
            for bundle in integration.bundles {
                files.insert(bundle.id.index(), bundle.bytes);
            }
            let partial = if to % 256 == 0 { Vec::new() } else { files[&(to / 256)].clone() };
            edge = BundleEdge::load(to, partial).unwrap();
            prop_assert_eq!(&edge, &integration.edge);
        }
        let mut read = Vec::new();
        for id in bundles_for_size(edge.size()) {
            let entries = decode_bundle(&files[&id.index()], id.width()).unwrap();
            read.extend(entries.into_iter().map(<[u8]>::to_vec));
        }
        let expected: Vec<_> = (0..edge.size()).map(|index| entry(index).into_bytes()).collect();
        prop_assert_eq!(read, expected);
    }
}

#[test]
fn an_entry_too_large_refuses_the_batch_and_a_wrong_partial_bundle_the_state() {
    let edge = BundleEdge::default().integrate(["a"]).unwrap().edge;
    let entries = [vec![0; 3], vec![0; MAX_ENTRY + 1]];
    assert_eq!(edge.integrate(&entries), Err(EntryTooLarge(MAX_ENTRY + 1)));
    assert_eq!(edge.size(), 1);
    assert_eq!(BundleEdge::load(2, vec![0, 1, b'a']), Err(BundleError::Truncated { entry: 1 }));
    assert_eq!(BundleEdge::load(256, vec![0, 1, b'a']), Err(BundleError::Trailing { bytes: 3 }));
}

#[test]
fn a_leaf_hash_is_the_oracles() {
    assert_eq!(leaf_hash(entry(7).as_bytes()), oracle::leaf(7));
    assert_ne!(leaf_hash(&[]), EMPTY_ROOT);
    assert_eq!(mth(&[] as &[Hash]), EMPTY_ROOT);
}
