//! Policies of witnesses, and their cosignatures as another implementation of notes sees them.

use ed25519_dalek::{Signature, Verifier as _, VerifyingKey};
use exchequer_tlog::{
    Checkpoint, Cosigner, Hash, LineFault, NoteSigner, PolicyError, SignatureKind, SignedCheckpoint,
    TrustError, VerifierKey, WitnessPolicy,
};
use sha2::{Digest as _, Sha256};
use signed_note::{Note, NoteError, StandardVerifier, Verifier, VerifierList};

use crate::oracle::signing_key;

const ORIGIN: &str = "ledger.example/log";

fn log() -> NoteSigner {
    NoteSigner::new(ORIGIN, signing_key(1)).unwrap()
}

fn witness(seed: u8) -> Cosigner {
    Cosigner::new(format!("w.example/{seed}"), signing_key(seed)).unwrap()
}

/// A checkpoint with the cosignatures of these witnesses.
fn cosigned(by: &[u8]) -> SignedCheckpoint {
    let checkpoint = Checkpoint::new(ORIGIN, 42, Hash([3; 32])).unwrap();
    let mut signed = checkpoint.sign(&log());
    for seed in by {
        signed.add(checkpoint.cosign(&witness(*seed), 1000 + u64::from(*seed))).unwrap();
    }
    signed
}

#[track_caller]
fn check(policy: &WitnessPolicy, by: &[u8], holds: bool) {
    let outcome = policy.verify(&cosigned(by), log().verifier());
    assert_eq!(outcome.is_ok(), holds, "{by:?}: {outcome:?}");
}

/// Witnesses 11 to 13 of one party, 21 to 23 of another, as in the specification's example.
fn example(quorum: &str) -> String {
    let keys = |party: char, seeds: [u8; 3]| {
        seeds
            .map(|seed| format!("witness {party}{seed} {} https://example.com\n", witness(seed).verifier()))
            .concat()
    };
    format!(
        "# A comment\n\nlog {}\n{} \t group X-witnesses 2 X11 X12 X13\n{}group Y-witnesses any Y21 Y22 Y23\n\
         group X-and-Y all X-witnesses Y-witnesses\nquorum {quorum}\n",
        log().verifier(),
        keys('X', [11, 12, 13]),
        keys('Y', [21, 22, 23]),
    )
}

#[test]
fn the_example_of_the_specification_means_what_it_says() {
    let policy = WitnessPolicy::parse(&example("X-and-Y")).unwrap();
    assert_eq!((policy.logs(), policy.witnesses().len()), (&[log().verifier().clone()][..], 6));
    for (by, holds) in [
        (&[][..], false),
        (&[11, 12], false),
        (&[11, 12, 13], false),
        (&[11, 21, 22, 23], false),
        (&[21, 22, 23], false),
        (&[11, 13, 22], true),
        (&[11, 12, 13, 21, 22, 23], true),
        // A stranger's cosignature is no witness's.
        (&[11, 31, 22], false),
    ] {
        check(&policy, by, holds);
    }
    let refused = policy.verify(&cosigned(&[11, 12]), log().verifier());
    assert_eq!(refused, Err(TrustError::Quorum { needed: 3, got: 2 }));
    check(&WitnessPolicy::parse(&example("none")).unwrap(), &[], true);
    // A member of a group may be the quorum all the same.
    check(&WitnessPolicy::parse(&example("Y-witnesses")).unwrap(), &[22], true);
    let single = WitnessPolicy::parse(&format!("witness a {}\nquorum a", witness(11).verifier())).unwrap();
    check(&single, &[11], true);
    check(&single, &[12], false);
}

#[test]
fn a_number_of_witnesses_is_a_policy_too() {
    let keys = |seeds: &[u8]| seeds.iter().map(|seed| witness(*seed).verifier().clone()).collect::<Vec<_>>();
    let policy = WitnessPolicy::of(keys(&[11, 12, 13]), 2).unwrap();
    check(&policy, &[11], false);
    check(&policy, &[13, 11], true);
    check(&WitnessPolicy::of(keys(&[11]), 0).unwrap(), &[], true);
    assert_eq!(WitnessPolicy::of(keys(&[11]), 2), Err(PolicyError::TooFew { needed: 2, got: 1 }));
    assert!(matches!(WitnessPolicy::of(keys(&[11, 11]), 1), Err(PolicyError::Twice(_))));
    let other_name = VerifierKey::new("other", SignatureKind::Cosignature, signing_key(11).verifying_key());
    assert!(matches!(
        WitnessPolicy::of([keys(&[11]), vec![other_name.unwrap()]].concat(), 1),
        Err(PolicyError::Twice(_))
    ));
    assert!(matches!(WitnessPolicy::of(vec![log().verifier().clone()], 1), Err(PolicyError::NotAWitness(_))));
}

#[test]
fn a_wrong_cosignature_of_a_known_witness_is_refused_whatever_the_quorum() {
    let mut signed = cosigned(&[11]);
    let other = Checkpoint::new(ORIGIN, 43, Hash([3; 32])).unwrap();
    signed.add(other.cosign(&witness(12), 1)).unwrap();
    let keys = [11, 12].map(|seed| witness(seed).verifier().clone());
    let policy = WitnessPolicy::of(keys.to_vec(), 1).unwrap();
    assert!(matches!(policy.verify(&signed, log().verifier()), Err(TrustError::Note(_))));
    let other_log = NoteSigner::new(ORIGIN, signing_key(9)).unwrap();
    assert!(policy.verify(&cosigned(&[11, 12]), other_log.verifier()).is_err());
}

#[test]
fn a_policy_with_a_faulty_line_names_it() {
    let (w, v, l) = (
        witness(11).verifier().to_string(),
        witness(12).verifier().to_string(),
        log().verifier().to_string(),
    );
    let check = |text: &str, line: usize, fault: LineFault| {
        assert_eq!(WitnessPolicy::parse(text), Err(PolicyError::Line { line, fault }), "{text}");
    };
    check("quorum nobody", 1, LineFault::Undefined("nobody".into()));
    check("quorum none\nquorum none", 2, LineFault::SecondQuorum);
    check(&format!("witness none {w}"), 1, LineFault::Taken("none".into()));
    check(&format!("witness a {w}\nwitness a {v}"), 2, LineFault::Taken("a".into()));
    check(&format!("witness a {w}\nwitness b {w}"), 2, LineFault::DuplicateKey);
    check(&format!("log {l}\nlog {l}"), 2, LineFault::DuplicateKey);
    check(&format!("witness a {l}"), 1, LineFault::Kind(1));
    check(&format!("log {w}"), 1, LineFault::Kind(4));
    check(&format!("witness a {w}\ngroup a any a"), 2, LineFault::Taken("a".into()));
    check(&format!("witness a {w}\ngroup g any b"), 2, LineFault::Undefined("b".into()));
    check(&format!("witness a {w}\ngroup g 2 a a"), 2, LineFault::MemberTwice("a".into()));
    check(&format!("witness a {w}\ngroup g any a\ngroup h any a"), 3, LineFault::MemberTwice("a".into()));
    for threshold in ["0", "2", "01", "+1", "most"] {
        check(&format!("witness a {w}\ngroup g {threshold} a"), 2, LineFault::Threshold(threshold.into()));
    }
    for form in ["group g any", "witness a", "log", "quorum", "quorum a b", "policy x", "log a b c"] {
        check(form, 1, LineFault::Form);
    }
    check("quorum none\r\n", 1, LineFault::ControlCharacter);
    check("log x", 1, LineFault::Key(exchequer_tlog::KeyError::Malformed));
    assert_eq!(WitnessPolicy::parse(&format!("witness a {w}\n")), Err(PolicyError::NoQuorum));
    assert_eq!(WitnessPolicy::parse(&" ".repeat(70_000)), Err(PolicyError::TooLarge));
}

/// A verifier of cosignatures for the other crate, which has none: written from tlog-cosignature and nothing else.
struct ByTheText {
    name: String,
    key: VerifyingKey,
}

impl Verifier for ByTheText {
    fn name(&self) -> &str {
        &self.name
    }

    fn key_id(&self) -> u32 {
        let digest = Sha256::digest([self.name.as_bytes(), b"\n\x04", self.key.as_bytes()].concat());
        u32::from_be_bytes(digest[..4].try_into().unwrap())
    }

    fn verify(&self, text: &[u8], signature: &[u8]) -> bool {
        let (time, signature) = signature.split_at(8);
        let time = u64::from_be_bytes(time.try_into().unwrap());
        let message = [format!("cosignature/v1\ntime {time}\n").as_bytes(), text].concat();
        self.key.verify(&message, &Signature::from_slice(signature).unwrap()).is_ok()
    }
}

#[test]
fn the_other_crate_finds_and_verifies_the_cosignatures_by_the_text_of_the_specification() {
    let list = || {
        let by_text = |seed: u8| ByTheText {
            name: format!("w.example/{seed}"),
            key: signing_key(seed).verifying_key(),
        };
        VerifierList::new(vec![
            Box::new(StandardVerifier::new(&log().verifier().to_string()).unwrap()),
            Box::new(by_text(11)),
            Box::new(by_text(12)),
        ])
    };
    let note = cosigned(&[11, 12, 13]).to_string();
    let (verified, unknown) = Note::from_bytes(note.as_bytes()).unwrap().verify(&list()).unwrap();
    assert_eq!((verified.len(), unknown.len()), (3, 1));
    let tampered = note.replace("\n42\n", "\n43\n");
    let refused = Note::from_bytes(tampered.as_bytes()).unwrap().verify(&list());
    assert!(matches!(refused, Err(NoteError::InvalidSignature { .. })));
}
