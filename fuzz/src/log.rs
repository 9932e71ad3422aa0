//! What the log's files are: tiles of hashes and bundles of entries. The first two bytes of an input are the width.

use exchequer_tlog::{
    BundleEdge, Hash, MAX_ENTRY, RightEdge, TILE_BYTES, decode_bundle, decode_tile, encode_tile, leaf_hash,
    push_entry,
};

fn split(data: &[u8]) -> Option<(u16, &[u8])> {
    let (width, rest) = data.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*width), rest))
}

fn with_width(width: u16, bytes: &[u8]) -> Vec<u8> {
    [&width.to_be_bytes()[..], bytes].concat()
}

/// A tile.
pub(crate) fn tile(data: &[u8]) -> bool {
    let Some((width, bytes)) = split(data) else { return false };
    let Ok(hashes) = decode_tile(bytes, width) else { return false };
    assert_eq!(hashes.len(), usize::from(width));
    assert!(bytes.len() <= TILE_BYTES);
    assert_eq!(encode_tile(&hashes), bytes);
    true
}

pub(crate) fn tiles() -> Vec<Vec<u8>> {
    let make = |width: u16| with_width(width, &encode_tile(&vec![Hash([9; 32]); usize::from(width)]));
    vec![make(1), make(3), make(256), with_width(2, &[0; 63])]
}

/// A bundle of entries; the tree over them has the same size.
pub(crate) fn bundle(data: &[u8]) -> bool {
    let Some((width, bytes)) = split(data) else { return false };
    let Ok(entries) = decode_bundle(bytes, width) else { return false };
    assert_eq!(entries.len(), usize::from(width));
    assert!(entries.iter().all(|entry| entry.len() <= MAX_ENTRY));
    let mut encoded = Vec::new();
    for entry in &entries {
        push_entry(&mut encoded, entry).unwrap();
    }
    assert_eq!(encoded, bytes);
    if (1..256).contains(&width) {
        let edge = BundleEdge::load(u64::from(width), bytes.to_vec()).unwrap();
        let leaves: Vec<_> = entries.iter().map(|entry| leaf_hash(entry)).collect();
        assert_eq!(edge.size(), RightEdge::new().integrate(&leaves).edge.size());
        let again = BundleEdge::default().integrate(&entries).unwrap();
        assert_eq!(again.edge, edge);
    }
    true
}

pub(crate) fn bundles() -> Vec<Vec<u8>> {
    let make = |entries: &[&[u8]]| {
        let mut bytes = Vec::new();
        for entry in entries {
            push_entry(&mut bytes, entry).unwrap();
        }
        with_width(u16::try_from(entries.len()).unwrap(), &bytes)
    };
    vec![make(&[]), make(&[b"one", b"", b"three"]), make(&[b"".as_slice(); 256]), with_width(1, &[0, 5, 1])]
}
