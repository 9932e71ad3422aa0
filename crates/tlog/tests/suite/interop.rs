//! Other implementations read what is written here, and the other way round: the crates `tlog_tiles` and `signed_note`.

use exchequer_tlog::{
    Checkpoint, Cosigner, Hash, NoteSigner, RightEdge, SignedNote, TileId, TileReader as _, VerifierKey,
    consistency_proof, encode_tile, inclusion_proof, leaf_hash, tiles_between, verify_consistency,
    verify_inclusion,
};
use signed_note::{Note, NoteError, StandardSigner, StandardVerifier, VerifierList};
use tlog_tiles::tlog::{
    check_record, check_tree, node_hash, prove_record, prove_tree, record_hash, tree_hash,
};
use tlog_tiles::{Tile, TileHashReader, TileReader};

use crate::oracle::{Tiles, entry, leaves, mth, signing_key};

const ORIGIN: &str = "ledger.example/log";

fn ours(hash: tlog_tiles::Hash) -> Hash {
    Hash(hash.0)
}

fn theirs(hash: &Hash) -> tlog_tiles::Hash {
    tlog_tiles::Hash(hash.0)
}

fn all_ours(hashes: &[tlog_tiles::Hash]) -> Vec<Hash> {
    hashes.iter().copied().map(ours).collect()
}

fn all_theirs(hashes: &[Hash]) -> Vec<tlog_tiles::Hash> {
    hashes.iter().map(theirs).collect()
}

/// The same tile as the other crate names it.
fn their_tile(id: TileId) -> Tile {
    Tile::new(8, id.level(), id.index(), u32::from(id.width()), false)
}

impl TileReader for Tiles {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, tlog_tiles::tlog::Error> {
        let read = tiles.iter().map(|tile| {
            let width = u16::try_from(tile.width()).unwrap();
            let id = TileId::new(tile.level(), tile.level_index(), width).unwrap();
            encode_tile(&self.tile(id).unwrap()[..usize::from(width)])
        });
        Ok(read.collect())
    }

    fn save_tiles(&self, _: &[Tile], _: &[Vec<u8>]) {}
}

#[test]
fn the_other_crate_names_the_same_tiles() {
    for (old, new) in
        [(0, 0), (0, 1), (0, 256), (1, 257), (255, 256), (256, 65_537), (65_535, 70_000), (9, 16_800_000)]
    {
        let here: Vec<_> = tiles_between(old, new).map(their_tile).collect();
        assert_eq!(here, Tile::new_tiles(8, old, new), "{old} to {new}");
    }
    for id in tiles_between(0, 300_000).chain(tiles_between(255_999_000, 256_000_333)) {
        let path = their_tile(id).path();
        assert_eq!(path.strip_prefix("tile/8/"), id.to_string().strip_prefix("tile/"));
        assert_eq!(Tile::from_path(&path).unwrap(), their_tile(id));
    }
}

#[test]
fn the_other_crate_reads_the_tiles_and_both_accept_each_others_proofs() {
    assert_eq!(ours(record_hash(b"entry")), leaf_hash(b"entry"));
    let all = leaves(66_000);
    let mut tiles = Tiles::default();
    tiles.write(RightEdge::new().integrate(&all).tiles);
    for size in [1u64, 2, 3, 255, 256, 257, 1000, 65_535, 65_536, 65_537, 66_000] {
        let root = mth(&all[..usize::try_from(size).unwrap()]);
        let reader = TileHashReader::new(size, theirs(&root), &tiles);
        assert_eq!(ours(tree_hash(size, &reader).unwrap()), root);
        for index in [0, 1, size / 3, size / 2, size - 1] {
            let index = index.min(size - 1);
            let leaf = leaf_hash(entry(index).as_bytes());
            let here = inclusion_proof(index, size, &tiles).unwrap();
            let there = prove_record(size, index, &reader).unwrap();
            assert_eq!(here, all_ours(&there));
            check_record(&all_theirs(&here), size, theirs(&root), index, theirs(&leaf)).unwrap();
            verify_inclusion(&leaf, index, size, &all_ours(&there), &root).unwrap();

            let old = index + 1;
            let old_root = mth(&all[..usize::try_from(old).unwrap()]);
            let here = consistency_proof(old, size, &tiles).unwrap();
            let there = prove_tree(size, old, &reader).unwrap();
            assert_eq!(here, all_ours(&there));
            check_tree(&all_theirs(&here), size, theirs(&root), old, theirs(&old_root)).unwrap();
            verify_consistency(old, &old_root, size, &root, &all_ours(&there)).unwrap();
        }
    }
    let (left, right) = (all[0], all[1]);
    assert_eq!(ours(node_hash(theirs(&left), theirs(&right))), mth(&[left, right]));
}

fn standard_signer(name: &str, seed: u8) -> StandardSigner {
    use base64::Engine as _;
    let id = NoteSigner::new(name, signing_key(seed)).unwrap().verifier().id();
    let mut key = [seed; 33];
    key[0] = 1;
    let key = base64::engine::general_purpose::STANDARD.encode(key);
    StandardSigner::new(&format!("PRIVATE+KEY+{name}+{id:08x}+{key}")).unwrap()
}

fn verifiers(keys: &[&VerifierKey]) -> VerifierList {
    VerifierList::new(
        keys.iter().map(|key| Box::new(StandardVerifier::new(&key.to_string()).unwrap()) as _).collect(),
    )
}

#[test]
fn the_other_crates_verify_a_checkpoint_written_here() {
    let signer = NoteSigner::new(ORIGIN, signing_key(1)).unwrap();
    let checkpoint = Checkpoint::new(ORIGIN, 42, Hash([3; 32])).unwrap();
    let mut signed = checkpoint.sign(&signer);
    signed.add(checkpoint.cosign(&Cosigner::new("w.example", signing_key(2)).unwrap(), 77)).unwrap();

    let note = Note::from_bytes(signed.to_string().as_bytes()).unwrap();
    let (verified, unknown) = note.verify(&verifiers(&[signer.verifier()])).unwrap();
    assert_eq!((verified.len(), unknown.len()), (1, 1));
    let read = tlog_tiles::Checkpoint::from_bytes(note.text()).unwrap();
    assert_eq!((read.origin(), read.size(), ours(*read.hash())), (ORIGIN, 42, Hash([3; 32])));
    assert_eq!(read.to_bytes(), checkpoint.to_string().into_bytes());

    let tampered = signed.to_string().replace("\n42\n", "\n43\n");
    let refused = Note::from_bytes(tampered.as_bytes()).unwrap().verify(&verifiers(&[signer.verifier()]));
    assert!(matches!(refused, Err(NoteError::InvalidSignature { .. })));
}

#[test]
fn a_note_and_checkpoint_of_the_other_crates_verify_here() {
    let there = tlog_tiles::Checkpoint::new(ORIGIN, 42, theirs(&Hash([3; 32])), "an extension\n").unwrap();
    let mut note = Note::new(&there.to_bytes(), &[]).unwrap();
    note.add_sigs(&[&standard_signer(ORIGIN, 1), &standard_signer("second.example", 2)]).unwrap();

    let here = SignedNote::parse(&note.to_bytes()).unwrap();
    let keys = [(ORIGIN, 1), ("second.example", 2)]
        .map(|(name, seed)| NoteSigner::new(name, signing_key(seed)).unwrap().verifier().clone());
    let verified = here.verify(&keys).unwrap();
    assert_eq!(verified.by.len(), 2);
    let checkpoint: Checkpoint = verified.text.parse().unwrap();
    assert_eq!((checkpoint.size(), checkpoint.extensions()), (42, &["an extension".to_owned()][..]));
    assert_eq!(here.to_string().into_bytes(), note.to_bytes());
    // Ed25519 is deterministic: the signatures are the same bytes.
    let signed = NoteSigner::new(ORIGIN, signing_key(1)).unwrap().sign(verified.text);
    assert_eq!(signed, here.signatures()[0]);
}
