//! Self-contained proofs: they verify offline, and no changed byte goes unnoticed.

use exchequer_tlog::{
    Checkpoint, CheckpointError, Cosigner, Hash, MAX_EXTRA_BYTES, MAX_PROOF_HASHES, NoteError, NoteSigner,
    Policy, ProofInvalid, RightEdge, TlogProof, TlogProofError, TlogProofInvalid, inclusion_proof,
};

use crate::oracle::{Tiles, entry, leaves, signing_key};

const ORIGIN: &str = "ledger.example/log";

/// The proof of entry 73 in a log of 300, witnessed once, and the policy that demands exactly this.
pub(crate) fn proven(extra: &[u8]) -> (TlogProof, Policy) {
    let mut tiles = Tiles::default();
    let integration = RightEdge::new().integrate(&leaves(300));
    tiles.write(integration.tiles);
    let hashes = inclusion_proof(73, 300, &tiles).unwrap();
    let signer = NoteSigner::new(ORIGIN, signing_key(1)).unwrap();
    let witness = Cosigner::new("w.example", signing_key(2)).unwrap();
    let checkpoint = Checkpoint::new(ORIGIN, 300, integration.root).unwrap();
    let mut signed = checkpoint.sign(&signer);
    signed.add(checkpoint.cosign(&witness, 1_700_000_000)).unwrap();
    let policy = Policy {
        origin: ORIGIN.to_owned(),
        log_keys: vec![signer.verifier().clone()],
        witnesses: vec![witness.verifier().clone()],
        quorum: 1,
    };
    (TlogProof::new(73, hashes, signed, extra.to_vec()).unwrap(), policy)
}

#[test]
fn a_proof_reads_back_and_verifies_offline() {
    for extra in [&b""[..], b"opaque"] {
        let (proof, policy) = proven(extra);
        let parsed = TlogProof::parse(proof.to_string().as_bytes()).unwrap();
        assert_eq!(parsed, proof);
        assert_eq!(parsed.extra(), extra);
        let verified = parsed.verify(entry(73).as_bytes(), &policy).unwrap();
        assert_eq!((verified.checkpoint.size(), verified.by.len()), (300, 2));
    }
}

#[test]
fn a_proof_has_the_lines_of_the_specification() {
    let (proof, _) = proven(b"opaque");
    let text = proof.to_string();
    let lines: Vec<_> = text.split('\n').collect();
    assert_eq!(lines[..3], ["c2sp.org/tlog-proof@v1", "extra b3BhcXVl", "index 73"]);
    assert_eq!(lines[3], proof.hashes()[0].to_string());
    assert_eq!(lines[3 + proof.hashes().len()..][..3], ["", ORIGIN, "300"]);
}

#[test]
fn another_entry_or_policy_is_refused() {
    let (proof, policy) = proven(b"");
    let refused = proof.verify(entry(74).as_bytes(), &policy);
    assert!(matches!(refused, Err(TlogProofInvalid::Inclusion(ProofInvalid::Root { .. }))));
    let strict = Policy { quorum: 2, ..policy };
    assert!(matches!(proof.verify(entry(73).as_bytes(), &strict), Err(TlogProofInvalid::Checkpoint(_))));
}

#[test]
fn no_changed_bit_of_a_proof_goes_unnoticed() {
    let (proof, policy) = proven(b"");
    let bytes = proof.to_string().into_bytes();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut mutated = bytes.clone();
            mutated[at] ^= 1 << bit;
            let refused =
                TlogProof::parse(&mutated).map(|proof| proof.verify(entry(73).as_bytes(), &policy).is_err());
            assert!(refused.unwrap_or(true), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn a_changed_extra_leaves_the_meaning_as_it_is() {
    let (proof, policy) = proven(b"opaque");
    let expected = proof.verify(entry(73).as_bytes(), &policy).unwrap();
    let bytes = proof.to_string().into_bytes();
    let mut unnoticed = 0;
    for at in 0..bytes.len() {
        let mut mutated = bytes.clone();
        mutated[at] ^= 1;
        let Ok(parsed) = TlogProof::parse(&mutated) else {
            continue;
        };
        let Ok(verified) = parsed.verify(entry(73).as_bytes(), &policy) else {
            continue;
        };
        assert_eq!((verified, parsed.index()), (expected.clone(), 73), "byte {at}");
        unnoticed += 1;
    }
    // Only characters of the extra data.
    assert!((1..=8).contains(&unnoticed), "{unnoticed}");
}

#[test]
fn a_malformed_proof_is_refused() {
    let (proof, _) = proven(b"");
    let text = proof.to_string();
    let hash = Hash([1; 32]).to_string();
    let (_, checkpoint) = text.split_once("\n\n").unwrap();
    let make = |lines: &str| format!("c2sp.org/tlog-proof@v1\n{lines}\n{checkpoint}");
    TlogProof::parse(make(&format!("index 0\n{hash}\n")).as_bytes()).unwrap();
    let too_many = format!("{hash}\n").repeat(MAX_PROOF_HASHES + 1);
    let too_much = "A".repeat((MAX_EXTRA_BYTES / 3 + 1) * 4);
    for (bad, error) in [
        (String::new(), TlogProofError::Header),
        (text.replace("@v1", "@v2"), TlogProofError::Header),
        ("c2sp.org/tlog-proof@v1".to_owned(), TlogProofError::Header),
        ("c2sp.org/tlog-proof@v1\n".to_owned(), TlogProofError::Index),
        (make(""), TlogProofError::Index),
        (make("index 00\n"), TlogProofError::Index),
        (make("index +1\n"), TlogProofError::Index),
        (make("index  1\n"), TlogProofError::Index),
        (make("index 18446744073709551616\n"), TlogProofError::Index),
        (make("index 1\nextra AAAA\n"), TlogProofError::Hash { line: 0 }),
        (make("extra AAAA\nextra AAAA\nindex 1\n"), TlogProofError::Index),
        (make("extra \nindex 1\n"), TlogProofError::Extra),
        (make("extra ~\nindex 1\n"), TlogProofError::Extra),
        (make(&format!("extra {too_much}\nindex 1\n")), TlogProofError::Extra),
        (make(&format!("index 1\n{hash}=\n")), TlogProofError::Hash { line: 0 }),
        (make(&format!("index 1\n{hash}\n{}\n", &hash[1..])), TlogProofError::Hash { line: 1 }),
        (format!("c2sp.org/tlog-proof@v1\nindex 1\n{hash}\n"), TlogProofError::Hash { line: 1 }),
        (make(&format!("index 1\n{too_many}")), TlogProofError::TooManyHashes),
        (
            "c2sp.org/tlog-proof@v1\nindex 1\n\n".to_owned(),
            TlogProofError::Checkpoint(CheckpointError::Note(NoteError::Unsigned)),
        ),
        (" ".repeat(2_000_000), TlogProofError::TooLarge),
    ] {
        assert_eq!(TlogProof::parse(bad.as_bytes()), Err(error), "{:?}", &bad[..bad.len().min(200)]);
    }
    assert_eq!(TlogProof::parse(b"c2sp.org/tlog-proof@v1\xff"), Err(TlogProofError::Encoding));
}

#[test]
fn a_proof_beyond_the_limits_is_not_made() {
    let (proof, _) = proven(b"");
    let make = |hashes, extra| {
        TlogProof::new(0, vec![Hash([0; 32]); hashes], proof.checkpoint().clone(), vec![0; extra])
    };
    make(MAX_PROOF_HASHES, MAX_EXTRA_BYTES).unwrap();
    assert_eq!(make(MAX_PROOF_HASHES + 1, 0), Err(TlogProofError::TooManyHashes));
    assert_eq!(make(0, MAX_EXTRA_BYTES + 1), Err(TlogProofError::Extra));
    let largest = make(MAX_PROOF_HASHES, MAX_EXTRA_BYTES).unwrap();
    assert_eq!(TlogProof::parse(largest.to_string().as_bytes()), Ok(largest));
}
