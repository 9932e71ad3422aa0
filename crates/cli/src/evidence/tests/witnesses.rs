//! Witnesses' cosignatures of a checkpoint, and the quorum that the caller asks for.

use exchequer_tlog::{Checkpoint, Cosigner, Hash, SignedCheckpoint, WitnessPolicy};

use super::world::{ORIGIN, World, check, key, kinds, trust, vkey};
use crate::evidence::{
    pack::Scope,
    report::{FaultKind as F, Report, Verdict},
    verify::{Target, Trust, read_policy},
};

fn witness(seed: u8) -> Cosigner {
    Cosigner::new(format!("w.example/{seed}"), key(seed)).unwrap()
}

/// What comes of checking a log that witnesses 11 and 12 and a stranger cosigned.
fn check_with(witnesses: Option<WitnessPolicy>) -> Report {
    let mut log = World::small().log();
    let mut signed = log.signed_by(100);
    for seed in [11, 12, 31] {
        signed.add(signed.checkpoint().cosign(&witness(seed), 1000 + u64::from(seed))).unwrap();
    }
    log.files.insert("checkpoint".into(), signed.to_string().into_bytes());
    let dir = tempfile::tempdir().unwrap();
    log.write(dir.path());
    check(&Target::Directory(dir.path().into()), &Trust { witnesses, ..trust() })
}

fn of(seeds: &[u8], needed: usize) -> WitnessPolicy {
    let keys = seeds.iter().map(|seed| witness(*seed).verifier().clone()).collect();
    WitnessPolicy::of(keys, needed).unwrap()
}

#[test]
fn a_log_holds_with_its_quorum_and_not_without() {
    let notes = |report: &Report| report.notes.join("\n");
    let report = check_with(None);
    assert!(report.verdict == Verdict::Holds && notes(&report).contains("3 signatures"), "{report}");
    let report = check_with(Some(of(&[11, 12], 2)));
    assert_eq!(report.verdict, Verdict::Holds, "{report}");
    assert!(notes(&report).contains("1 signatures"), "{report}");
    let by: Vec<_> = report.cosignatures.iter().map(|by| (by.key.clone(), by.unix_s)).collect();
    assert_eq!(by, [11, 12].map(|seed| (witness(seed).verifier().to_string(), Some(1000 + u64::from(seed)))));
    assert_eq!(check_with(Some(of(&[11, 13], 1))).verdict, Verdict::Holds);

    let report = check_with(Some(of(&[11, 13], 2)));
    assert_eq!((report.verdict.exit_code(), kinds(&report)), (1, vec![(None, F::Quorum)]), "{report}");
    assert!(report.to_string().contains("1 witnesses signed the checkpoint, 2 have to"), "{report}");
    // The ledger's own cosignature is nobody else's word.
    let own =
        WitnessPolicy::of(vec![Cosigner::new(ORIGIN, key(100)).unwrap().verifier().clone()], 1).unwrap();
    let report = check_with(Some(own));
    assert_eq!((report.verdict.exit_code(), kinds(&report)), (2, vec![(None, F::BadInput)]), "{report}");
}

#[test]
fn a_forged_cosignature_of_a_witness_that_is_believed_is_a_fault() {
    let mut log = World::small().log();
    let mut signed = log.signed_by(100);
    let other = Checkpoint::new(ORIGIN, 16, Hash([7; 32])).unwrap();
    signed.add(signed.checkpoint().cosign(&witness(12), 1)).unwrap();
    signed.add(other.cosign(&witness(11), 1)).unwrap();
    log.files.insert("checkpoint".into(), signed.to_string().into_bytes());
    let dir = tempfile::tempdir().unwrap();
    log.write(dir.path());
    let target = Target::Directory(dir.path().into());
    let report = check(&target, &Trust { witnesses: Some(of(&[11, 12], 1)), ..trust() });
    assert_eq!(kinds(&report), [(None, F::CheckpointSignature)], "{report}");
    // To somebody who does not know that witness it is a signature like any.
    assert_eq!(check(&target, &Trust { witnesses: Some(of(&[12], 1)), ..trust() }).verdict, Verdict::Holds);
}

#[test]
fn a_pack_is_held_to_the_quorum_too_and_so_is_a_policy_file() {
    let dir = tempfile::tempdir().unwrap();
    let log = World::small().log();
    let pack = dir.path().join("all.pack");
    std::fs::write(&pack, log.pack(Scope::Range { first: 0, end: 16 }, 0..16)).unwrap();
    let target = Target::Pack(pack);
    assert_eq!(check(&target, &trust()).verdict, Verdict::Holds);
    let report = check(&target, &Trust { witnesses: Some(of(&[11], 1)), ..trust() });
    assert_eq!(kinds(&report), [(None, F::Quorum)], "{report}");

    let file = dir.path().join("policy");
    let policy = |quorum: &str| {
        let (one, two) = (witness(11), witness(12));
        let lines = format!(
            "log {}\nwitness one {}\nwitness two {}\ngroup both all one two\nquorum {quorum}\n",
            vkey(100),
            one.verifier(),
            two.verifier()
        );
        std::fs::write(&file, lines).unwrap();
        read_policy(&file)
    };
    assert_eq!(check_with(Some(policy("both").unwrap())).verdict, Verdict::Holds);
    assert!(policy("three").unwrap_err().contains("line 5: `three` is not defined above"));
    let both = policy("both").unwrap();
    assert_eq!(both.logs(), [vkey(100)]);
    let alone: SignedCheckpoint = log.signed_by(100);
    assert!(both.verify(&alone, &vkey(100)).is_err());
}
