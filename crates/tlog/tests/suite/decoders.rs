//! Arbitrary and damaged bytes: no decoder panics, and whatever parses encodes back to the same bytes.

use exchequer_tlog::{
    AddCheckpoint, BundleId, Checkpoint, EMPTY_ROOT, Hash, NoteSignature, SignedCheckpoint, SignedNote,
    TileId, TlogProof, VerifierKey, decode_bundle, decode_tile, encode_tile, push_entry,
};
use proptest::prelude::*;

use crate::tlog_proofs::proven;

#[track_caller]
fn check_text(text: &str) {
    fn same<T: std::str::FromStr + ToString>(text: &str) {
        if let Ok(parsed) = text.parse::<T>() {
            assert_eq!(parsed.to_string(), text);
        }
    }
    same::<Hash>(text);
    same::<TileId>(text);
    same::<BundleId>(text);
    same::<VerifierKey>(text);
    same::<Checkpoint>(text);
    if let Ok(parsed) = NoteSignature::parse(text) {
        assert_eq!(parsed.to_string(), text);
    }
}

#[track_caller]
fn check_bytes(bytes: &[u8]) {
    if let Ok(parsed) = SignedNote::parse(bytes) {
        assert_eq!(parsed.to_string().as_bytes(), bytes);
        assert_eq!(SignedNote::new(parsed.text(), parsed.signatures().to_vec()), Ok(parsed));
    }
    if let Ok(parsed) = SignedCheckpoint::parse(bytes) {
        assert_eq!(parsed.to_string().as_bytes(), bytes);
    }
    if let Ok(parsed) = AddCheckpoint::parse(bytes) {
        assert_eq!(parsed.to_string().as_bytes(), bytes);
    }
    if let Ok(parsed) = TlogProof::parse(bytes) {
        assert_eq!(parsed.to_string().as_bytes(), bytes);
    }
    for width in [0, 1, 2, 255, 256, u16::MAX] {
        if let Ok(hashes) = decode_tile(bytes, width) {
            assert_eq!(encode_tile(&hashes), bytes);
        }
        if let Ok(entries) = decode_bundle(bytes, width) {
            let mut encoded = Vec::new();
            for entry in entries {
                push_entry(&mut encoded, entry).unwrap();
            }
            assert_eq!(encoded, bytes);
        }
    }
    check_text(&String::from_utf8_lossy(bytes));
}

/// Cuts, doubles or overwrites a stretch of the bytes.
fn damage(bytes: &mut Vec<u8>, kind: u8, at: usize, length: usize, byte: u8) {
    let from = at % (bytes.len() + 1);
    let to = (from + length).min(bytes.len());
    match kind {
        0 => drop(bytes.drain(from..to)),
        1 => {
            let copy = bytes[from..to].to_vec();
            bytes.splice(from..from, copy);
        }
        2 => bytes.insert(from, byte),
        _ => bytes[from..to].fill(byte),
    }
}

fn documents() -> Vec<Vec<u8>> {
    let (proof, policy) = proven(b"opaque");
    let mut bundle = Vec::new();
    push_entry(&mut bundle, b"one").unwrap();
    push_entry(&mut bundle, b"").unwrap();
    vec![
        proof.to_string().into_bytes(),
        proof.checkpoint().to_string().into_bytes(),
        proof.checkpoint().checkpoint().to_string().into_bytes(),
        proof.checkpoint().note().signatures()[0].to_string().into_bytes(),
        policy.log_keys[0].to_string().into_bytes(),
        b"tile/0/x001/x234/067.p/5".to_vec(),
        b"tile/entries/x001/x234/067.p/5".to_vec(),
        bundle,
        AddCheckpoint { old: 3, proof: vec![EMPTY_ROOT, EMPTY_ROOT], signed: proof.checkpoint().clone() }
            .to_string()
            .into_bytes(),
    ]
}

#[test]
fn the_documents_that_are_damaged_below_are_sound() {
    for document in documents() {
        check_bytes(&document);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_are_refused_or_canonical(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        check_bytes(&bytes);
    }

    #[test]
    fn damaged_documents_are_refused_or_canonical(
        which in 0usize..9,
        edits in prop::collection::vec(
            (0u8..4, any::<usize>(), 0usize..40, prop::sample::select(&b"\n\0 +=/A0x.\xe2\xff"[..])), 1..6),
    ) {
        let mut bytes = documents().swap_remove(which);
        for (kind, at, length, byte) in edits {
            damage(&mut bytes, kind, at, length, byte);
        }
        check_bytes(&bytes);
    }

    #[test]
    fn a_place_reads_back_from_its_path(level in 0u8..64, index in any::<u64>(), shift in 0u32..64, width in 1u16..=256) {
        let index = index >> shift;
        let id = TileId::new(level, index, width).unwrap();
        prop_assert_eq!(id.to_string().parse(), Ok(id));
        let id = BundleId::new(index, width).unwrap();
        prop_assert_eq!(id.to_string().parse(), Ok(id));
    }
}
