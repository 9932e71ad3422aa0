//! Keys, notes, checkpoints and cosignatures: known answers, what is refused, and who has to have signed.

use base64::Engine as _;
use exchequer_tlog::{
    Checkpoint, CheckpointError, Cosigner, EMPTY_ROOT, Hash, KeyError, MAX_NOTE_BYTES, MAX_SIGNATURES,
    NoteError, NoteSignature, NoteSigner, NoteVerifyError, Policy, SignatureKind, SignedCheckpoint,
    SignedNote, TrustError, VerifierKey,
};

use crate::oracle::signing_key;

const ORIGIN: &str = "ledger.example/log";

fn signer() -> NoteSigner {
    NoteSigner::new(ORIGIN, signing_key(1)).unwrap()
}

fn cosigner(name: &str, seed: u8) -> Cosigner {
    Cosigner::new(name, signing_key(seed)).unwrap()
}

fn checkpoint() -> Checkpoint {
    Checkpoint::new(ORIGIN, 7, Hash([7; 32])).unwrap()
}

#[test]
fn the_example_note_of_the_go_documentation_verifies() {
    let key: VerifierKey =
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW".parse().unwrap();
    assert_eq!((key.name(), key.id(), key.kind()), ("PeterNeumann", 0xc74f_20a3, SignatureKind::Ed25519));
    let text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
    let line = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=";
    let note = SignedNote::parse(format!("{text}\n{line}\n").as_bytes()).unwrap();
    let verified = note.verify([&key]).unwrap();
    assert_eq!((verified.text, verified.by.len(), verified.by[0].time), (text, 1, None));
    assert_eq!(verified.by[0].signature.to_string(), line);
}

#[test]
fn a_public_logs_checkpoint_verifies_with_its_witnesses() {
    // A staging log's checkpoint as published, with an RFC 6962 signature (unknown here) and four cosignatures.
    let note = "\
arche2025h1.staging.ct.transparency.dev
1432088532
U7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=

— arche2025h1.staging.ct.transparency.dev zTM8sQAAAZ5W0WdjBAMARjBEAiBjW5IQf9pvsYLfQFX6hoGREPMHbdQ3urbllzalApkptQIgIpwtEroeW2BXaHAI4kJXFbon5Ch9MNL5zRNZ55lvGt0=
— arche2025h1.staging.ct.transparency.dev ui8GwCF1+kWqZrxGdhj4aX3gcw7XUlXQQabg/27lefwhUkzbC3NygNI75MdhL1bfTW9g8Ei59RA23oHP7Ry1k3ZFWwQ=
— transparency.dev/DEV:witness-little-garden 2AQqhwAAAABqEiEgzgFIqqhbUoDwjMWE6UP8nd8/KYTzwZ2rhIgcqoXHAwVkjZr4AscylP3v7sEodkRAErumC2q44vdgJY096st5BQ==
— witness1.smartit.nu/witness1 pIyCDwAAAABqEiEghIp82KWebrw7/oHQwlTAm3g2RKS4+eebl8eO0WH+/iEcxZ75W3u5hNI7TOQtmJbqmNWVuE0tgh0XwzdZsDsUAQ==
— remora.n621.de 2net5wAAAABqEiEgPlfF3V06o0Y+fHM+J5J9s27wgxxcOVSpZ/2g/KSiXCg9DEZI+aVCIobWX9sXTynk5XeU/zZ0WBxtqB0DrAWfBw==
— witness.stagemole.eu Z/euoAAAAABqEiEgw0i+7g2ENfDAWHmtRzCfKTHSDwYDJA2NmKeGi9Y8FtEyOUvVr+AJmIY/2TUFucgKi7lI7cUiOvKFYe/TmN9DAg==
";
    let witnesses = [
        "transparency.dev/DEV:witness-little-garden+d8042a87+BCtusOxINQNUTN5Oj8HObRkh2yHf/MwYaGX4CPdiVEPM",
        "witness1.smartit.nu/witness1+a48c820f+BPSFWg9G6KPiO7QPryYO5Xq4oYJJ+kAvLKLSimDhoxMO",
        "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2",
        "witness.stagemole.eu+67f7aea0+BEqSG3yu9YrmcM3BHvQYTxwFj3uSWakQepafafpUqklv",
    ];
    let log = "arche2025h1.staging.ct.transparency.dev+ba2f06c0+AU0vHmlGCS/PdN8b2OaGmKprLI8HKM+dJ472xgFYh15f";
    let policy = Policy {
        origin: "arche2025h1.staging.ct.transparency.dev".to_owned(),
        log_keys: vec![log.parse().unwrap()],
        witnesses: witnesses.iter().map(|key| key.parse().unwrap()).collect(),
        quorum: 4,
    };
    let signed = SignedCheckpoint::parse(note.as_bytes()).unwrap();
    let verified = signed.verify(&policy).unwrap();
    assert_eq!(verified.checkpoint.size(), 1_432_088_532);
    assert_eq!(verified.checkpoint.root().to_string(), "U7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=");
    let times: Vec<_> = verified.by.iter().map(|signed| signed.time).collect();
    let time = Some(0x6a12_2120);
    assert_eq!(times, [None, time, time, time, time]);
    assert_eq!(signed.to_string(), note);
}

#[test]
fn a_verifier_key_reads_back_from_its_text_and_from_no_other() {
    for key in [signer().verifier().clone(), cosigner("w.example", 2).verifier().clone()] {
        let text = key.to_string();
        assert_eq!(text.parse(), Ok(key.clone()));
        let (name, rest) = text.split_once('+').unwrap();
        let (id, base64) = rest.split_once('+').unwrap();
        for (bad, error) in [
            (String::new(), KeyError::Malformed),
            (format!("{name}+{id}"), KeyError::Malformed),
            (format!("+{id}+{base64}"), KeyError::Name),
            (format!("a b+{id}+{base64}"), KeyError::Name),
            (format!("other+{id}+{base64}"), KeyError::Id),
            (format!("{name}+00000000+{base64}"), KeyError::Id),
            (
                format!("{name}+{}+{base64}", id.to_uppercase().replace(char::is_numeric, "A")),
                KeyError::Malformed,
            ),
            (format!("{name}+{}+{base64}", &id[1..]), KeyError::Malformed),
            (format!("{name}+{id}+"), KeyError::Malformed),
            (format!("{name}+{id}+{base64}="), KeyError::Malformed),
            (format!("{text}\n"), KeyError::Malformed),
            (format!("{name}+{id}+BgAA"), KeyError::Kind(6)),
            (format!("{name}+{id}+AQAA"), KeyError::PublicKey),
            ("x".repeat(400), KeyError::Malformed),
        ] {
            assert_eq!(bad.parse::<VerifierKey>(), Err(error), "{bad}");
        }
    }
}

#[test]
fn a_key_under_which_anybody_can_sign_is_refused() {
    let mut identity = [0; 32];
    identity[0] = 1;
    let weak = ed25519_dalek::VerifyingKey::from_bytes(&identity).unwrap();
    assert_eq!(VerifierKey::new("x", SignatureKind::Ed25519, weak), Err(KeyError::PublicKey));
}

#[test]
fn a_key_name_fits_into_a_signature_line() {
    for bad in ["", "a b", "a+b", "a\u{2003}b", "a\nb", "a\u{1}b", &"n".repeat(256)] {
        assert_eq!(NoteSigner::new(bad, signing_key(1)).unwrap_err(), KeyError::Name, "{bad:?}");
    }
    NoteSigner::new("ü-—.example/ø", signing_key(1)).unwrap();
}

#[test]
fn a_private_key_is_not_in_the_debug_text() {
    let text = format!("{:?} {:?}", signer(), cosigner("w.example", 1));
    assert!(!text.contains("1, 1, 1") && !text.contains("0101"), "{text}");
}

fn note_by(keys: &[&NoteSigner], text: &str) -> SignedNote {
    SignedNote::new(text, keys.iter().map(|key| key.sign(text)).collect()).unwrap()
}

#[test]
fn the_last_blank_line_separates_the_signatures() {
    for text in ["a\n", "\n", "a\n\nb\n", "a\n\n\n", "— x AAAA\n\n— y\n", "è subito sera.\u{7f}\n"] {
        let note = note_by(&[&signer()], text);
        let parsed = SignedNote::parse(note.to_string().as_bytes()).unwrap();
        assert_eq!(parsed, note);
        assert_eq!(parsed.verify([signer().verifier()]).unwrap().text, text);
    }
}

#[test]
fn a_malformed_note_is_refused() {
    let line = signer().sign("a\n").to_string();
    let line = line.as_str();
    for (bad, error) in [
        (String::new(), NoteError::Unsigned),
        ("a\n".to_owned(), NoteError::Unsigned),
        (format!("a\n{line}\n"), NoteError::Unsigned),
        (format!("a\n\n{line}"), NoteError::Unsigned),
        (format!("a\n\n{line}\n\n"), NoteError::Unsigned),
        ("a\n\n\n".to_owned(), NoteError::Unsigned),
        (format!("\n{line}\n"), NoteError::Unsigned),
        (format!("a\r\n\n{line}\n"), NoteError::ControlCharacter),
        (format!("a\0\n\n{line}\n"), NoteError::ControlCharacter),
        (format!("a\n\n{line}\t\n"), NoteError::ControlCharacter),
        (format!("a\n\n{line}\nb\n"), NoteError::SignatureLine { line: 1 }),
        (format!("a\n\n {line}\n"), NoteError::SignatureLine { line: 0 }),
        (format!("a\n\n{line} \n"), NoteError::SignatureLine { line: 0 }),
        (format!("a\n\n{line}=\n"), NoteError::SignatureLine { line: 0 }),
        (format!("a\n\n{}\n", line.replace('—', "-")), NoteError::SignatureLine { line: 0 }),
        (format!("a\n\n{}\n", line.replace("— ", "—")), NoteError::SignatureLine { line: 0 }),
        ("a\n\n— x AAAAAA==\n".to_owned(), NoteError::SignatureLine { line: 0 }),
        ("a\n\n— x \n".to_owned(), NoteError::SignatureLine { line: 0 }),
        ("a\n\n— x+y AAAAAAA=\n".to_owned(), NoteError::SignatureLine { line: 0 }),
        ("a\n\n—  AAAAAAA=\n".to_owned(), NoteError::SignatureLine { line: 0 }),
        (format!("{}\n\n{line}\n", "a".repeat(MAX_NOTE_BYTES)), NoteError::TooLarge),
    ] {
        assert_eq!(SignedNote::parse(bad.as_bytes()), Err(error), "{:?}", &bad[..bad.len().min(200)]);
    }
    assert_eq!(SignedNote::parse(b"a\xff\n\n"), Err(NoteError::Encoding));
}

#[test]
fn a_note_that_would_not_parse_is_not_made() {
    let signature = signer().sign("a\n");
    let make = |text: &str| SignedNote::new(text, vec![signature.clone()]);
    assert_eq!(make("a"), Err(NoteError::Text));
    assert_eq!(make(""), Err(NoteError::Text));
    assert_eq!(make("a\0\n"), Err(NoteError::ControlCharacter));
    assert_eq!(make(&format!("{}\n", "a".repeat(MAX_NOTE_BYTES))), Err(NoteError::TooLarge));
    assert_eq!(SignedNote::new("a\n", vec![]), Err(NoteError::Unsigned));
}

#[test]
fn as_many_signatures_as_the_limit_are_accepted_and_no_more() {
    let signers: Vec<_> = (0..=MAX_SIGNATURES)
        .map(|i| NoteSigner::new(format!("s{i}.example"), signing_key(u8::try_from(i).unwrap())).unwrap())
        .collect();
    let most: Vec<_> = signers[..MAX_SIGNATURES].iter().collect();
    let mut note = note_by(&most, "a\n");
    let parsed = SignedNote::parse(note.to_string().as_bytes()).unwrap();
    let verified = parsed.verify(most.iter().map(|signer| signer.verifier())).unwrap();
    assert_eq!(verified.by.len(), MAX_SIGNATURES);

    let one_more = signers[MAX_SIGNATURES].sign("a\n");
    let bytes = format!("{note}{one_more}\n");
    assert_eq!(SignedNote::parse(bytes.as_bytes()), Err(NoteError::TooManySignatures));
    assert_eq!(note.add(one_more), Err(NoteError::TooManySignatures));
    assert_eq!(note.signatures().len(), MAX_SIGNATURES);
    note.add(signers[0].sign("a\n")).unwrap();
}

#[test]
fn unknown_keys_are_ignored_even_when_they_share_a_name_with_a_known_one() {
    let namesake = NoteSigner::new(ORIGIN, signing_key(9)).unwrap();
    let stranger = NoteSigner::new("stranger.example", signing_key(8)).unwrap();
    let known = signer();
    let note = note_by(&[&namesake, &stranger, &known], "a\n");
    let verified = note.verify([known.verifier()]).unwrap();
    assert_eq!(verified.by.iter().map(|by| by.key).collect::<Vec<_>>(), [known.verifier()]);
    assert_eq!(note.verify([cosigner(ORIGIN, 1).verifier()]), Err(NoteVerifyError::NoKnownKey));
    assert_eq!(note.verify([] as [&VerifierKey; 0]), Err(NoteVerifyError::NoKnownKey));
}

#[test]
fn one_wrong_signature_of_a_known_key_refuses_the_note() {
    let (first, second) = (signer(), NoteSigner::new("second.example", signing_key(2)).unwrap());
    let note = SignedNote::new("a\n", vec![first.sign("a\n"), second.sign("b\n")]).unwrap();
    let bad = NoteVerifyError::BadSignature { name: "second.example".into(), id: second.verifier().id() };
    assert_eq!(note.verify([first.verifier(), second.verifier()]), Err(bad));
    note.verify([first.verifier()]).unwrap();
    // A second signature by the same key is verified as well.
    let note = SignedNote::new("a\n", vec![first.sign("a\n"), first.sign("b\n")]).unwrap();
    assert!(matches!(note.verify([first.verifier()]), Err(NoteVerifyError::BadSignature { .. })));
}

#[test]
fn a_key_that_signed_twice_or_is_known_twice_counts_once() {
    let signer = signer();
    let note = note_by(&[&signer, &signer], "a\n");
    assert_eq!(note.verify([signer.verifier(), signer.verifier()]).unwrap().by.len(), 1);
}

#[test]
fn a_checkpoint_is_its_lines() {
    let text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
    let parsed: Checkpoint = text.parse().unwrap();
    assert_eq!((parsed.origin(), parsed.size()), ("example.com/behind-the-sofa", 20_852_163));
    assert_eq!(parsed.to_string(), text);
    let extended = format!("{text}first extension\nsecond +\n");
    let parsed: Checkpoint = extended.parse().unwrap();
    assert_eq!(parsed.extensions(), ["first extension", "second +"]);
    assert_eq!(parsed.to_string(), extended);
    let empty = Checkpoint::new(ORIGIN, 0, EMPTY_ROOT).unwrap();
    assert_eq!(empty.to_string().parse(), Ok(empty));
}

#[test]
fn a_malformed_checkpoint_is_refused() {
    let root = Hash([7; 32]);
    for (bad, error) in [
        (String::new(), CheckpointError::Lines),
        ("o\n1\n".to_owned(), CheckpointError::Lines),
        (format!("o\n1\n{root}"), CheckpointError::Lines),
        (format!("\n1\n{root}\n"), CheckpointError::Lines),
        (format!("o\n1\n{root}\n\n"), CheckpointError::Lines),
        (format!("o\n1\n{root}\n\nx\n"), CheckpointError::Lines),
        (format!("{}\n1\n{root}\n", "o".repeat(256)), CheckpointError::Origin),
        (format!("o\r\n1\n{root}\n"), CheckpointError::Origin),
        (format!("o\n01\n{root}\n"), CheckpointError::Size),
        (format!("o\n+1\n{root}\n"), CheckpointError::Size),
        (format!("o\n-1\n{root}\n"), CheckpointError::Size),
        (format!("o\n1 \n{root}\n"), CheckpointError::Size),
        (format!("o\n18446744073709551616\n{root}\n"), CheckpointError::Size),
        (format!("o\n1\n{root}=\n"), CheckpointError::Root),
        ("o\n1\nAAAA\n".to_owned(), CheckpointError::Root),
        (format!("o\n0\n{root}\n"), CheckpointError::EmptyTree),
        (format!("o\n1\n{root}\nx\ty\n"), CheckpointError::Note(NoteError::ControlCharacter)),
    ] {
        assert_eq!(bad.parse::<Checkpoint>(), Err(error), "{bad:?}");
    }
    assert_eq!(Checkpoint::new("a\nb", 1, root), Err(CheckpointError::Origin));
    assert_eq!(Checkpoint::new("", 1, root), Err(CheckpointError::Origin));
}

fn policy(quorum: usize) -> Policy {
    let witnesses = [("w1.example", 2), ("w1.example", 3), ("w2.example", 4)];
    Policy {
        origin: ORIGIN.to_owned(),
        log_keys: vec![signer().verifier().clone(), cosigner(ORIGIN, 1).verifier().clone()],
        witnesses: witnesses.iter().map(|(name, seed)| cosigner(name, *seed).verifier().clone()).collect(),
        quorum,
    }
}

#[test]
fn a_quorum_counts_witnesses_not_keys() {
    let mut signed = checkpoint().sign(&signer());
    signed.add(checkpoint().cosign(&cosigner(ORIGIN, 1), 100)).unwrap();
    signed.verify(&policy(0)).unwrap();
    assert_eq!(signed.verify(&policy(1)), Err(TrustError::Quorum { needed: 1, got: 0 }));
    signed.add(checkpoint().cosign(&cosigner("w1.example", 2), 101)).unwrap();
    signed.add(checkpoint().cosign(&cosigner("w1.example", 3), 102)).unwrap();
    assert_eq!(signed.verify(&policy(2)), Err(TrustError::Quorum { needed: 2, got: 1 }));
    signed.add(checkpoint().cosign(&cosigner("w2.example", 4), 103)).unwrap();
    let verified =
        SignedCheckpoint::parse(signed.to_string().as_bytes()).unwrap().verify(&policy(2)).unwrap();
    let times: Vec<_> = verified.by.iter().map(|by| by.time).collect();
    assert_eq!(times, [None, Some(100), Some(101), Some(102), Some(103)]);
    assert_eq!(verified.checkpoint, checkpoint());
}

#[test]
fn a_checkpoint_has_to_be_the_logs_own() {
    let signed = checkpoint().sign(&signer());
    let other = Policy { origin: "other.example".to_owned(), ..policy(0) };
    let error = TrustError::Origin { expected: "other.example".to_owned(), got: ORIGIN.to_owned() };
    assert_eq!(signed.verify(&other), Err(error));

    // Witnessed, but not signed by the log.
    let cosignature = checkpoint().cosign(&cosigner("w2.example", 4), 5);
    let note = SignedNote::new(checkpoint().to_string(), vec![cosignature]).unwrap();
    let signed = SignedCheckpoint::parse(note.to_string().as_bytes()).unwrap();
    assert_eq!(signed.verify(&policy(1)), Err(TrustError::NotByLog));
}

#[test]
fn a_cosignature_with_another_time_is_wrong() {
    let witness = cosigner("w2.example", 4);
    let line = checkpoint().cosign(&witness, 1_679_315_147).to_string();
    let mut signed = checkpoint().sign(&signer());
    signed.add(NoteSignature::parse(&line).unwrap()).unwrap();
    assert_eq!(signed.verify(&policy(1)).unwrap().by[1].time, Some(1_679_315_147));

    // The time's last byte follows the four bytes of the key id: characters 14 to 16 of the base64.
    let (name, base64) = line.rsplit_once(' ').unwrap();
    let changed = if &base64[15..16] == "A" { "B" } else { "A" };
    let forged = format!("{name} {}{changed}{}", &base64[..15], &base64[16..]);
    signed.add(NoteSignature::parse(&forged).unwrap()).unwrap();
    let bad = NoteVerifyError::BadSignature { name: "w2.example".into(), id: witness.verifier().id() };
    assert_eq!(signed.verify(&policy(1)), Err(TrustError::Note(bad)));
}

#[test]
fn a_cosignature_is_no_log_signature_and_the_other_way_round() {
    let (log, witness) = (signer(), cosigner(ORIGIN, 1));
    assert_ne!(log.verifier().id(), witness.verifier().id());
    let cosigned = SignedNote::new(checkpoint().to_string(), vec![checkpoint().cosign(&witness, 5)]).unwrap();
    assert_eq!(cosigned.verify([log.verifier()]), Err(NoteVerifyError::NoKnownKey));
    let signed = checkpoint().sign(&log);
    assert_eq!(signed.note().verify([witness.verifier()]), Err(NoteVerifyError::NoKnownKey));
}

#[test]
fn no_changed_bit_of_a_checkpoint_goes_unnoticed() {
    let mut signed = checkpoint().sign(&signer());
    signed.add(checkpoint().cosign(&cosigner("w2.example", 4), 5)).unwrap();
    let bytes = signed.to_string().into_bytes();
    signed.verify(&policy(1)).unwrap();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut mutated = bytes.clone();
            mutated[at] ^= 1 << bit;
            let refused = SignedCheckpoint::parse(&mutated).map(|signed| signed.verify(&policy(1)).is_err());
            assert!(refused.unwrap_or(true), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn a_cosignature_beyond_the_largest_time_is_wrong() {
    use ed25519_dalek::Signer as _;

    let witness = cosigner("w2.example", 4);
    let mut signed = checkpoint().sign(&signer());
    for (time, holds) in [((1u64 << 63) - 1, true), (1 << 63, false), (u64::MAX, false)] {
        let message = format!("cosignature/v1\ntime {time}\n{}", checkpoint());
        let signature = signing_key(4).sign(message.as_bytes()).to_bytes();
        let bytes = [&witness.verifier().id().to_be_bytes()[..], &time.to_be_bytes(), &signature].concat();
        let line = format!("— w2.example {}", base64::engine::general_purpose::STANDARD.encode(bytes));
        signed.add(NoteSignature::parse(&line).unwrap()).unwrap();
        assert_eq!(signed.verify(&policy(1)).is_ok(), holds, "{time}");
    }
}

#[test]
fn two_known_keys_of_one_name_and_id_are_refused() {
    // Found by search: two seeds whose keys have the same 32-bit id under this name.
    let [first, second] = [68_723u32, 147_353].map(|number| {
        let mut seed = [0; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        NoteSigner::new("twin.example", ed25519_dalek::SigningKey::from_bytes(&seed)).unwrap()
    });
    assert_eq!((first.verifier().id(), second.verifier().id()), (0xf5a7_3201, 0xf5a7_3201));
    let note = note_by(&[&first], "a\n");
    note.verify([first.verifier()]).unwrap();
    let ambiguous = NoteVerifyError::AmbiguousKey { name: "twin.example".into(), id: 0xf5a7_3201 };
    assert_eq!(note.verify([first.verifier(), second.verifier()]), Err(ambiguous));
}
