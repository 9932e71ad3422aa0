//! What is text: notes, checkpoints, verifier keys, paths, proof files, requests to witnesses.

use ed25519_dalek::SigningKey;
use exchequer_tlog::{
    AddCheckpoint, BundleId, Checkpoint, Cosigner, EMPTY_ROOT, Hash, MAX_ENTRY, MAX_NOTE_BYTES,
    MAX_ORIGIN_BYTES, MAX_PROOF_HASHES, MAX_SIGNATURES, NoteSigner, Policy, SignedCheckpoint, SignedNote,
    TileId, TlogProof, VerifierKey, leaf_hash,
};

const ORIGIN: &str = "fuzz.example/log";

fn signer() -> NoteSigner {
    NoteSigner::new(ORIGIN, SigningKey::from_bytes(&[1; 32])).unwrap()
}

fn witness() -> Cosigner {
    Cosigner::new("witness.example/w", SigningKey::from_bytes(&[2; 32])).unwrap()
}

fn signed() -> SignedCheckpoint {
    let checkpoint = Checkpoint::new(ORIGIN, 1, leaf_hash(b"entry")).unwrap();
    let mut signed = checkpoint.sign(&signer());
    signed.add(checkpoint.cosign(&witness(), 1_700_000_000)).unwrap();
    signed
}

fn policy() -> Policy {
    Policy {
        origin: ORIGIN.to_owned(),
        log_keys: vec![signer().verifier().clone()],
        witnesses: vec![witness().verifier().clone()],
        quorum: 1,
    }
}

/// A signed note.
pub(crate) fn note(data: &[u8]) -> bool {
    let Ok(note) = SignedNote::parse(data) else { return false };
    assert_eq!(note.to_string().as_bytes(), data);
    assert!(data.len() <= MAX_NOTE_BYTES && (1..=MAX_SIGNATURES).contains(&note.signatures().len()));
    assert_eq!(SignedNote::new(note.text(), note.signatures().to_vec()), Ok(note.clone()));
    let signer = signer();
    if note.verify([signer.verifier()]).is_ok() {
        // Ed25519 is deterministic, and nobody else has the key.
        assert!(note.signatures().contains(&signer.sign(note.text())));
    }
    let mut more = note.clone();
    if more.add(signer.sign(note.text())).is_ok() {
        more.verify([signer.verifier()]).unwrap();
        assert_eq!(SignedNote::parse(more.to_string().as_bytes()), Ok(more));
    }
    true
}

pub(crate) fn notes() -> Vec<Vec<u8>> {
    let signer = signer();
    let text = "two\n\nparagraphs\n";
    let mut note = SignedNote::new(text, vec![signer.sign(text)]).unwrap();
    let other = NoteSigner::new("other", SigningKey::from_bytes(&[3; 32])).unwrap();
    note.add(other.sign(text)).unwrap();
    vec![
        note.to_string().into_bytes(),
        signed().to_string().into_bytes(),
        b"a\r\n\n\xe2\x80\x94 x AAAAAAA=\n".to_vec(),
        b"a\n\n\xe2\x80\x94 x AAAAAAA=\n".to_vec(),
    ]
}

/// A signed checkpoint.
pub(crate) fn checkpoint(data: &[u8]) -> bool {
    let Ok(parsed) = SignedCheckpoint::parse(data) else { return false };
    assert_eq!(parsed.to_string().as_bytes(), data);
    let head = parsed.checkpoint();
    assert!(head.origin().len() <= MAX_ORIGIN_BYTES);
    assert!(head.size() > 0 || *head.root() == EMPTY_ROOT);
    assert_eq!(head.to_string().parse(), Ok(head.clone()));
    if let Ok(verified) = parsed.verify(&policy()) {
        assert_eq!(verified.checkpoint, *head);
        assert_eq!(head.origin(), ORIGIN);
    }
    let mut again = head.sign(&signer());
    again.add(head.cosign(&witness(), 7)).unwrap();
    let policy = Policy { origin: head.origin().to_owned(), ..policy() };
    again.verify(&policy).unwrap();
    true
}

pub(crate) fn checkpoints() -> Vec<Vec<u8>> {
    let empty = Checkpoint::new(ORIGIN, 0, EMPTY_ROOT).unwrap();
    let extended = format!("{}extension\nanother one\n", signed().checkpoint());
    let extended = SignedNote::new(extended.clone(), vec![signer().sign(&extended)]).unwrap();
    vec![
        signed().to_string().into_bytes(),
        empty.sign(&signer()).to_string().into_bytes(),
        extended.to_string().into_bytes(),
        empty.to_string().into_bytes(),
    ]
}

/// A verifier key.
pub(crate) fn verifier_key(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(key) = text.parse::<VerifierKey>() else { return false };
    assert_eq!(key.to_string(), text);
    assert_eq!(VerifierKey::new(key.name(), key.kind(), *key.public_key()), Ok(key));
    true
}

pub(crate) fn verifier_keys() -> Vec<Vec<u8>> {
    let keys = [signer().verifier().to_string(), witness().verifier().to_string()];
    let upper = keys[0].to_uppercase();
    keys.into_iter().chain([upper]).map(String::into_bytes).collect()
}

/// A path of a tile or bundle.
pub(crate) fn path(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let (tile, bundle) = (text.parse::<TileId>(), text.parse::<BundleId>());
    assert!(tile.is_err() || bundle.is_err(), "{text} is both");
    if let Ok(id) = tile {
        assert_eq!(id.to_string(), text);
        assert!((1..=256).contains(&id.width()) && id.level() < 64);
    }
    if let Ok(id) = bundle {
        assert_eq!(id.to_string(), text);
        assert!((1..=256).contains(&id.width()));
    }
    tile.is_ok() || bundle.is_ok()
}

pub(crate) fn paths() -> Vec<Vec<u8>> {
    ["tile/0/x001/x234/067.p/5", "tile/entries/000", "tile/63/000.p/255", "tile/entries/x001/000.p/256"]
        .map(|path| path.as_bytes().to_vec())
        .into()
}

/// A tlog-proof file.
pub(crate) fn tlog_proof(data: &[u8]) -> bool {
    let Ok(proof) = TlogProof::parse(data) else { return false };
    assert_eq!(proof.to_string().as_bytes(), data);
    assert!(proof.hashes().len() <= MAX_PROOF_HASHES);
    if proof.verify(b"entry", &policy()).is_ok() {
        assert_eq!((proof.index(), proof.hashes()), (0, &[][..]));
    }
    assert!(proof.verify(&vec![0; MAX_ENTRY], &policy()).is_err());
    true
}

pub(crate) fn tlog_proofs() -> Vec<Vec<u8>> {
    let make = |index, hashes, extra: &[u8]| {
        TlogProof::new(index, hashes, signed(), extra.to_vec()).unwrap().to_string().into_bytes()
    };
    vec![
        make(0, Vec::new(), b""),
        make(7, vec![EMPTY_ROOT, Hash([7; 32])], b"extra"),
        b"c2sp.org/tlog-proof@v1\nindex 1\n\n".to_vec(),
    ]
}

/// The body of a request to a witness.
pub(crate) fn add_checkpoint(data: &[u8]) -> bool {
    let Ok(request) = AddCheckpoint::parse(data) else { return false };
    assert_eq!(request.to_string().as_bytes(), data);
    assert!(request.proof.len() <= exchequer_tlog::MAX_PROOF_LINES);
    true
}

pub(crate) fn add_checkpoints() -> Vec<Vec<u8>> {
    let make = |old, proof| AddCheckpoint { old, proof, signed: signed() }.to_string().into_bytes();
    vec![make(0, Vec::new()), make(3, vec![EMPTY_ROOT; 2]), b"old 01\n\n".to_vec()]
}
