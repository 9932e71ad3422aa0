//! Byte-exact against the crates `tlog_tiles` and `signed_note`, at every size where something changes: tiles, bundles, roots, proofs of
//! a log that holds nothing but its own files; notes with many signers; cosignatures; proof files.

use std::collections::BTreeMap;

use ed25519_dalek::{Signature, Verifier as _, VerifyingKey};
use exchequer_tlog::{
    BundleEdge, Checkpoint, Cosigner, EMPTY_ROOT, Hash, NoteSigner, NoteVerifyError, RightEdge, SignedNote,
    VerifierKey, bundles_for_size, encode_tile, leaf_hash, tiles_for_size, verify_consistency,
    verify_inclusion,
};
use signed_note::{Note, NoteError, StandardVerifier, Verifier, VerifierList};
use tlog_tiles::tlog::{check_record, check_tree, prove_record, prove_tree, tree_hash};
use tlog_tiles::{Tile, TileHashReader, TileReader};

use crate::oracle::{Tiles, entry, leaves, mth, signing_key};
use crate::tlog_proofs::proven;

const SIZES: [u64; 12] = [0, 1, 2, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537];

fn at(index: u64) -> usize {
    usize::try_from(index).unwrap()
}

fn theirs(hash: &Hash) -> tlog_tiles::Hash {
    tlog_tiles::Hash(hash.0)
}

fn ours(hashes: &[tlog_tiles::Hash]) -> Vec<Hash> {
    hashes.iter().map(|hash| Hash(hash.0)).collect()
}

/// The files of a log of one size, by path, as a stranger finds them: no wider tile is there.
struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    fn of(leaves: &[Hash]) -> Self {
        let tiles = RightEdge::new().integrate(leaves).tiles;
        Self(tiles.iter().map(|tile| (tile.id.to_string(), tile.bytes())).collect())
    }
}

impl TileReader for Files {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, tlog_tiles::tlog::Error> {
        let path = |tile: &Tile| tile.path().replacen("tile/8/", "tile/", 1);
        Ok(tiles.iter().map(|tile| self.0[&path(tile)].clone()).collect())
    }

    fn save_tiles(&self, _: &[Tile], _: &[Vec<u8>]) {}
}

#[test]
fn a_log_of_each_size_is_read_by_the_other_crate_from_exactly_its_own_files() {
    let all = leaves(65_537);
    for size in SIZES {
        let (leaves, root) = (&all[..at(size)], mth(&all[..at(size)]));
        let files = Files::of(leaves);
        let named: Vec<_> = tiles_for_size(size).map(|id| id.to_string()).collect();
        let mut expected: Vec<_> = Tile::new_tiles(8, 0, size)
            .iter()
            .map(|tile| tile.path().replacen("tile/8/", "tile/", 1))
            .collect();
        assert_eq!(named, expected, "{size}");
        expected.sort();
        assert!(files.0.keys().eq(expected.iter()), "{size}");
        assert!(files.0.values().all(|bytes| !bytes.is_empty()), "{size}: an empty tile");
        if size == 0 {
            assert_eq!((files.0.len(), root), (0, EMPTY_ROOT));
            continue;
        }
        let reader = TileHashReader::new(size, theirs(&root), &files);
        assert_eq!(tree_hash(size, &reader).unwrap().0, root.0, "{size}");
        for index in [0, 254, 255, 256, size / 2, size - 1].into_iter().filter(|index| *index < size) {
            let proof = prove_record(size, index, &reader).unwrap();
            check_record(&proof, size, theirs(&root), index, theirs(&leaves[at(index)])).unwrap();
            verify_inclusion(&leaves[at(index)], index, size, &ours(&proof), &root).unwrap();
        }
        for old in SIZES.into_iter().filter(|old| (1..=size).contains(old)) {
            let before = mth(&all[..at(old)]);
            let proof = prove_tree(size, old, &reader).unwrap();
            check_tree(&proof, size, theirs(&root), old, theirs(&before)).unwrap();
            verify_consistency(old, &before, size, &root, &ours(&proof)).unwrap();
        }
    }
}

#[test]
fn the_bundles_of_each_size_have_the_places_of_the_leaf_tiles() {
    for size in SIZES {
        let entries: Vec<_> = (0..size).map(entry).collect();
        let bundles = BundleEdge::default().integrate(&entries).unwrap().bundles;
        let paths: Vec<_> = bundles.iter().map(|bundle| bundle.id.to_string()).collect();
        assert_eq!(paths, bundles_for_size(size).map(|id| id.to_string()).collect::<Vec<_>>());
        let leaf_tiles = Tile::new_tiles(8, 0, size).into_iter().filter(|tile| tile.level() == 0);
        let expected: Vec<_> =
            leaf_tiles.map(|tile| tile.path().replacen("tile/8/0/", "tile/entries/", 1)).collect();
        assert_eq!(paths, expected, "{size}");
        let bytes: usize = bundles.iter().map(|bundle| bundle.bytes.len()).sum();
        assert_eq!(bytes, entries.iter().map(|entry| 2 + entry.len()).sum::<usize>(), "{size}");
    }
}

#[test]
fn the_checkpoint_of_each_size_has_the_bytes_of_the_other_crates() {
    let all = leaves(65_537);
    for size in SIZES {
        let root = mth(&all[..at(size)]);
        let here = Checkpoint::new("ledger.example/log", size, root).unwrap();
        let there = tlog_tiles::Checkpoint::new("ledger.example/log", size, theirs(&root), "").unwrap();
        assert_eq!(here.to_string().into_bytes(), there.to_bytes(), "{size}");
        assert_eq!(tlog_tiles::Checkpoint::from_bytes(&there.to_bytes()).unwrap().size(), size);
    }
}

fn signers(count: u8) -> Vec<NoteSigner> {
    (1..=count).map(|seed| NoteSigner::new(format!("s{seed}.example"), signing_key(seed)).unwrap()).collect()
}

fn list(keys: &[&VerifierKey]) -> VerifierList {
    let verifier = |key: &&VerifierKey| Box::new(StandardVerifier::new(&key.to_string()).unwrap()) as _;
    VerifierList::new(keys.iter().map(verifier).collect())
}

#[test]
fn both_count_the_same_signers_of_a_note_with_twenty_and_refuse_it_for_one_that_fails() {
    let (signers, text) = (signers(20), "a text\n\nwith a blank line\n");
    let note = SignedNote::new(text, signers.iter().map(|signer| signer.sign(text)).collect()).unwrap();
    let known: Vec<_> = signers.iter().step_by(3).map(NoteSigner::verifier).collect();
    let read = Note::from_bytes(note.to_string().as_bytes()).unwrap();
    let (verified, unknown) = read.verify(&list(&known)).unwrap();
    let here = note.verify(known.iter().copied()).unwrap();
    assert_eq!((verified.len(), unknown.len()), (7, 13));
    let names = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        names(verified.iter().map(signed_note::Signature::name).collect()),
        names(here.by.iter().map(|by| by.key.name()).collect())
    );

    // One known key's signature is of another text.
    let mut lines: Vec<_> = signers.iter().map(|signer| signer.sign(text)).collect();
    lines[3] = signers[3].sign("another text\n");
    let note = SignedNote::new(text, lines).unwrap();
    let read = Note::from_bytes(note.to_string().as_bytes()).unwrap();
    assert!(matches!(read.verify(&list(&known)), Err(NoteError::InvalidSignature { .. })));
    assert!(matches!(note.verify(known.iter().copied()), Err(NoteVerifyError::BadSignature { .. })));
    // To whom that key is unknown, the note holds; to whom all are, it does not.
    let (others, nobody) = (&known[..1], signers[1].verifier());
    assert_eq!(
        read.verify(&list(others)).unwrap().0.len(),
        note.verify(others.iter().copied()).unwrap().by.len()
    );
    let note = SignedNote::new(text, vec![signers[0].sign(text)]).unwrap();
    let read = Note::from_bytes(note.to_string().as_bytes()).unwrap();
    assert!(matches!(read.verify(&list(&[nobody])), Err(NoteError::UnverifiedNote)));
    assert_eq!(note.verify([nobody]), Err(NoteVerifyError::NoKnownKey));
}

#[test]
fn both_refuse_the_same_malformed_notes() {
    let signer = &signers(1)[0];
    let note = SignedNote::new("a\n", vec![signer.sign("a\n")]).unwrap().to_string();
    Note::from_bytes(note.as_bytes()).unwrap();
    for bad in [
        note.replace('\n', "\r\n"),
        format!("{note}trailing\n"),
        format!("{note}\n"),
        note.trim_end().to_owned(),
        note.replace("\n\n", "\n"),
        note.replace('\u{2014}', "-"),
        note.replacen("a\n", "a\0\n", 1),
    ] {
        assert!(Note::from_bytes(bad.as_bytes()).is_err(), "{bad:?}");
        assert!(SignedNote::parse(bad.as_bytes()).is_err(), "{bad:?}");
    }
}

/// Timestamped cosignatures, written from tlog-cosignature's text alone.
struct Type04 {
    key: VerifyingKey,
    vkey: String,
}

impl Verifier for Type04 {
    fn name(&self) -> &str {
        self.vkey.split('+').next().unwrap()
    }

    fn key_id(&self) -> u32 {
        u32::from_str_radix(self.vkey.split('+').nth(1).unwrap(), 16).unwrap()
    }

    fn verify(&self, text: &[u8], signature: &[u8]) -> bool {
        let (time, signature) = signature.split_first_chunk::<8>().unwrap();
        let time = u64::from_be_bytes(*time);
        let message = [format!("cosignature/v1\ntime {time}\n").as_bytes(), text].concat();
        self.key.verify(&message, &Signature::from_slice(signature).unwrap()).is_ok()
    }
}

#[test]
fn a_cosignature_verifies_in_the_other_crate_by_the_specification() {
    let cosigner = Cosigner::new("w.example", signing_key(2)).unwrap();
    let log = NoteSigner::new("ledger.example/log", signing_key(1)).unwrap();
    let checkpoint = Checkpoint::new("ledger.example/log", 42, Hash([3; 32])).unwrap();
    for time in [0, 1_679_315_147, (1 << 63) - 1] {
        let mut signed = checkpoint.sign(&log);
        signed.add(checkpoint.cosign(&cosigner, time)).unwrap();
        let known = || {
            let verifier =
                Type04 { key: signing_key(2).verifying_key(), vkey: cosigner.verifier().to_string() };
            VerifierList::new(vec![Box::new(verifier)])
        };
        let note = Note::from_bytes(signed.to_string().as_bytes()).unwrap();
        let (verified, unknown) = note.verify(&known()).unwrap();
        assert_eq!((verified.len(), unknown.len()), (1, 1));
        assert_eq!(verified[0].signature()[..8], time.to_be_bytes());
        let other = signed.to_string().replace("\n42\n", "\n43\n");
        assert!(Note::from_bytes(other.as_bytes()).unwrap().verify(&known()).is_err());
    }
}

#[test]
fn the_hashes_of_a_proof_file_verify_in_the_other_crate() {
    let (proof, policy) = proven(b"opaque");
    let file = proof.to_string();
    let (head, note) = file.split_once("\n\n").unwrap();
    let lines: Vec<_> = head.lines().collect();
    assert_eq!(lines[..3], ["c2sp.org/tlog-proof@v1", "extra b3BhcXVl", "index 73"]);
    let path: Vec<_> = lines[3..].iter().map(|line| theirs(&line.parse().unwrap())).collect();
    let note = Note::from_bytes(note.as_bytes()).unwrap();
    note.verify(&list(&[&policy.log_keys[0]])).unwrap();
    let head = tlog_tiles::Checkpoint::from_bytes(note.text()).unwrap();
    let leaf = leaf_hash(entry(73).as_bytes());
    check_record(&path, head.size(), *head.hash(), 73, theirs(&leaf)).unwrap();
    assert!(check_record(&path, head.size(), *head.hash(), 74, theirs(&leaf)).is_err());
}

#[test]
fn a_tile_of_a_grown_log_begins_with_the_partial_one_of_before() {
    let all = leaves(65_537);
    let mut grown = Tiles::default();
    grown.write(RightEdge::new().integrate(&all).tiles);
    for size in SIZES {
        for tile in RightEdge::new().integrate(&all[..at(size)]).tiles {
            let whole = &grown.0[&(tile.id.level(), tile.id.index())];
            assert!(encode_tile(whole).starts_with(&tile.bytes()), "{size}: {}", tile.id);
        }
    }
}
