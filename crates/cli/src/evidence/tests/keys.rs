//! Rotated ledger keys, histories of checkpoints, and verifications that go on from an earlier one.

use std::{fs, num::NonZeroUsize, path::Path};

use exchequer_event::v1::{self, KeyRole, control_record::Kind};
use exchequer_tlog::{Cosigner, WitnessPolicy};
use prost::bytes::Bytes;

use super::world::{Log, World, check, key, kinds, saved, trust, vkey};
use crate::evidence::{
    pack::{PackWriter, Scope},
    report::{FaultKind as F, Report, Verdict},
    saved::read_saved,
    state::Verified,
    verify::{Finished, Request, Target, Trust, run_blocking},
};

fn public(seed: u8) -> Bytes {
    Bytes::copy_from_slice(key(seed).verifying_key().as_bytes())
}

pub(super) fn enrolled(seed: u8) -> Kind {
    let (role, holder) = (KeyRole::Ledger.into(), "ledger".into());
    Kind::KeyEnrolled(v1::KeyEnrolled { role, holder, public_key: public(seed) })
}

pub(super) fn revoked(seed: u8) -> Kind {
    let (role, holder, reason) = (KeyRole::Ledger.into(), "ledger".into(), "rotated".into());
    Kind::KeyRevoked(v1::KeyRevoked { role, holder, public_key: public(seed), reason })
}

/// A log whose key went from 100 over 110 to 120; entry 4 enrols 110, entry 10 revokes 100, entry 11 enrols 120. 17 entries.
fn rotated() -> World {
    let mut world = World::new();
    world.control_by(100, enrolled(110));
    world.batch(1, &["acme", "globex", "acme", "acme"]);
    world.control_by(110, revoked(100));
    world.control_by(110, enrolled(120));
    world.batch(2, &["acme", "acme", "acme", "acme"]);
    assert_eq!(world.entries.len(), 17);
    world
}

fn prefix(world: &World, size: usize) -> Log {
    Log::new(world.entries[..size].to_vec())
}

/// The log's whole report with its checkpoint signed by this key.
fn signed_by(log: &Log, seed: u8, trust: &Trust) -> Report {
    let dir = tempfile::tempdir().unwrap();
    log.write(dir.path());
    fs::write(dir.path().join("checkpoint"), log.signed_by(seed).to_string()).unwrap();
    check(&Target::Directory(dir.path().into()), trust)
}

pub(super) fn trusting(seed: u8) -> Trust {
    Trust { key: Some(vkey(seed)), ..Trust::default() }
}

#[test]
fn a_rotation_is_followed_from_the_first_key_and_from_any_later_one() {
    let log = rotated().log();
    for trust in [Trust::default(), trusting(100), trusting(110), trusting(120)] {
        let report = signed_by(&log, 120, &trust);
        assert_eq!(report.verdict, Verdict::Holds, "{report}");
        let direct = trust.key == Some(vkey(120));
        assert_eq!(report.signed_by, (!direct).then(|| vkey(120).to_string()));
        assert_eq!(report.signed_unix_s, Some(1_700_000_000));
    }
    // Witnesses cosign what the newer key signed.
    let cosigner = Cosigner::new("w.example/11", key(11)).unwrap();
    let policy = WitnessPolicy::of(vec![cosigner.verifier().clone()], 1).unwrap();
    let report = signed_by(&log, 120, &Trust { witnesses: Some(policy), ..trusting(100) });
    assert_eq!(kinds(&report), [(None, F::Quorum)], "{report}");
    // Both keys are valid, and the older is as good.
    assert_eq!(signed_by(&log, 110, &trusting(100)).verdict, Verdict::Holds);
    // The newer key leads nowhere back, a revoked one is none, a stranger's neither.
    assert_eq!(kinds(&signed_by(&log, 110, &trusting(120))), [(None, F::CheckpointSignature)]);
    let report = signed_by(&log, 100, &trusting(100));
    assert_eq!(kinds(&report), [(None, F::LedgerKey)], "{report}");
    assert!(report.faults[0].detail.contains("that entry 10 revoked"), "{report}");
    assert_eq!(kinds(&signed_by(&log, 7, &trusting(100))), [(None, F::CheckpointSignature)]);
}

#[test]
fn a_key_counts_from_the_entry_that_enrols_it_up_to_the_one_that_revokes_it() {
    let world = rotated();
    // Sizes that do not end within a batch.
    for (size, good) in [
        (4, [true, false, false]),
        (5, [true, true, false]),
        (10, [true, true, false]),
        (11, [false, true, false]),
        (12, [false, true, true]),
    ] {
        let log = prefix(&world, size);
        for (seed, good) in [100, 110, 120].into_iter().zip(good) {
            let report = signed_by(&log, seed, &trusting(100));
            assert_eq!(report.verdict == Verdict::Holds, good, "{size} by {seed}: {report}");
        }
    }
}

#[test]
fn a_history_is_checked_at_each_size_by_the_keys_of_its_time() {
    let world = rotated();
    let dir = tempfile::tempdir().unwrap();
    let log = world.log();
    log.write(&dir.path().join("log"));
    fs::write(dir.path().join("log/checkpoint"), log.signed_by(120).to_string()).unwrap();
    let frame = |size, seed| {
        let note = prefix(&world, size).signed_by(seed).to_string();
        format!("checkpoint {} 0123456789abcdef\n{note}", note.len())
    };
    let history = dir.path().join("checkpoints");
    fs::create_dir(&history).unwrap();
    let first = [frame(0, 100), frame(1, 100), frame(4, 100)].concat();
    let cut = &frame(17, 120)[..300];
    fs::write(history.join("00000000"), &first).unwrap();
    fs::write(history.join("00000001"), [&frame(5, 110), &frame(12, 120), cut].concat()).unwrap();
    let against = |path: &Path| {
        let trust = Trust { checkpoints: read_saved(path).unwrap(), ..trust() };
        check(&Target::Directory(dir.path().join("log")), &trust)
    };
    let report = against(&history);
    assert_eq!(report.verdict, Verdict::Holds, "{report}");
    assert_eq!((report.checked.checkpoints, report.continues_size), (5, Some(12)));

    // By a key of another time.
    fs::write(history.join("00000002"), frame(4, 110)).unwrap();
    let report = against(&history);
    assert_eq!(kinds(&report), [(None, F::LedgerKey)], "{report}");
    assert!(report.faults[0].detail.contains("00000002, checkpoint 0"), "{report}");
    assert!(report.faults[0].detail.contains("only entry 4 enrolled"), "{report}");

    // Of another tree.
    let other = Log::new([&world.entries[..3], &world.entries[4..5]].concat()).signed_by(100).to_string();
    fs::write(history.join("00000002"), other).unwrap();
    let report = against(&history);
    assert_eq!(kinds(&report), [(None, F::Inconsistent)], "{report}");
    assert_eq!(report.checked.checkpoints, 5);

    // Damaged in the middle.
    fs::write(history.join("00000002"), [&frame(4, 100), "garbage\n", &frame(5, 110)].concat()).unwrap();
    assert!(read_saved(&history).unwrap_err().contains("damaged"));
    fs::write(history.join("00000002"), "no checkpoint").unwrap();
    assert!(read_saved(&history).unwrap_err().contains("00000002"));
    assert!(read_saved(&dir.path().join("nothing")).is_err());
}

fn run(dir: &Path, since: Option<Verified>) -> Finished {
    let trust = Trust { since, ..trust() };
    let (target, threads) = (Target::Directory(dir.into()), NonZeroUsize::new(2));
    run_blocking(Request { target, trust, token: None, threads }, |_| {})
}

/// The state after the first part of a log, by way of a file.
fn state_of(log: &Log) -> Verified {
    let dir = tempfile::tempdir().unwrap();
    log.write(dir.path());
    let finished = run(dir.path(), None);
    assert_eq!(finished.report.verdict, Verdict::Holds, "{}", finished.report);
    let path = dir.path().join("verified");
    finished.verified.unwrap().write(&path).unwrap();
    Verified::read(&path).unwrap()
}

#[test]
fn what_follows_an_earlier_verification_is_verified_alone() {
    let mut world = World::large(1200);
    let old: Vec<_> = [4, 206, 812, world.entries.len()].map(|size| prefix(&world, size)).into();
    for log in &old {
        let state = state_of(log);
        let mut world = World::large(1200);
        world.batch(2, &["acme"; 100]);
        world.batch(2, &["acme"; 300]);
        let new = world.log();
        let dir = tempfile::tempdir().unwrap();
        new.write(dir.path());
        let bundles = log.size() / 256;
        // What was verified before is not even there.
        for bundle in 0..bundles {
            fs::remove_file(dir.path().join(new.bundle_path(bundle))).unwrap();
            fs::remove_file(dir.path().join(new.tile_path(0, bundle))).unwrap();
        }
        let Finished { report, verified } = run(dir.path(), Some(state.clone()));
        assert_eq!(report.verdict, Verdict::Holds, "{report}");
        assert_eq!((report.since_size, report.checked.entries), (Some(log.size()), new.size() - log.size()));
        assert!(report.notes[0].contains("not read again"), "{report}");
        // And the state after it is that of a whole verification.
        let whole = tempfile::tempdir().unwrap();
        new.write(whole.path());
        let expected = run(whole.path(), None).verified.unwrap();
        assert_eq!(verified.unwrap().auditor.acceptor(), expected.auditor.acceptor());

        // A change after it is found and named.
        let index = log.size() + 50;
        let mut entries = new.entries.clone();
        let mut bytes = entries[usize::try_from(index).unwrap()].to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        entries[usize::try_from(index).unwrap()] = bytes.into();
        let path = new.bundle_path(index / 256);
        fs::write(dir.path().join(&path), &Log::new(entries.clone()).files[&path]).unwrap();
        let report = run(dir.path(), Some(state.clone())).report;
        assert_eq!(kinds(&report), [(Some(index), F::EntryChanged)], "{report}");
        // Signed anew, its records give it away; another past is none that was verified.
        let forged = tempfile::tempdir().unwrap();
        Log::new(entries).write(forged.path());
        let report = run(forged.path(), Some(state.clone())).report;
        assert_eq!(kinds(&report), [(Some(index), F::Record)], "{report}");
        let mut entries = new.entries.clone();
        entries[1] = Bytes::from_static(b"another past");
        Log::new(entries).write(forged.path());
        let report = run(forged.path(), Some(state.clone())).report;
        assert_eq!(kinds(&report), [(None, F::Inconsistent)], "{report}");
    }
    world.batch(1, &["acme"]);
    let dir = tempfile::tempdir().unwrap();
    old[2].write(dir.path());
    let finished = run(dir.path(), Some(state_of(&world.log())));
    assert!(finished.report.faults[0].detail.contains("rolled back") && finished.verified.is_none());
}

#[test]
fn a_state_goes_with_nothing_older_and_comes_of_nothing_broken() {
    let world = World::large(600);
    let (log, state) = (world.log(), state_of(&prefix(&world, 509)));
    let dir = tempfile::tempdir().unwrap();
    log.write(dir.path());
    let trust = Trust {
        checkpoints: vec![saved(prefix(&world, 300).signed_by(100))],
        since: Some(state.clone()),
        ..trust()
    };
    let report = check(&Target::Directory(dir.path().into()), &trust);
    assert_eq!(kinds(&report), [(None, F::BadInput)], "{report}");
    fs::remove_file(dir.path().join(log.bundle_path(2))).unwrap();
    assert!(run(dir.path(), None).verified.is_none());
    let path = dir.path().join("verified");
    fs::write(&path, "{}").unwrap();
    assert!(Verified::read(&path).unwrap_err().contains("--save"));
    state.write(&path).unwrap();
    let other = fs::read_to_string(&path).unwrap().replace("verified 1", "verified 0");
    fs::write(&path, other).unwrap();
    assert!(Verified::read(&path).unwrap_err().contains("another version"));
}

#[test]
fn a_pack_is_followed_from_a_trusted_key_to_the_one_that_signed_it() {
    let log = rotated().log();
    let dir = tempfile::tempdir().unwrap();
    let pack = |seed| {
        let path = dir.path().join("pack");
        let mut out = Vec::new();
        let scope = Scope::Range { first: 0, end: 17 };
        let mut pack = PackWriter::new(&mut out, scope, &vkey(seed), log.signed_by(seed)).unwrap();
        for index in 0..17 {
            pack.entry(index, &log.entries[usize::try_from(index).unwrap()], log.proof(index)).unwrap();
        }
        pack.finish().unwrap();
        fs::write(&path, out).unwrap();
        Target::Pack(path)
    };
    for trust in [Trust::default(), trusting(100), trusting(110), trusting(120)] {
        let report = check(&pack(120), &trust);
        assert_eq!(report.verdict, Verdict::Holds, "{report}");
        let leads = trust.key.is_some() && trust.key != Some(vkey(120));
        assert_eq!(report.signed_by, leads.then(|| vkey(120).to_string()));
    }
    // The newer key leads nowhere back, a revoked one is none, a stranger's neither.
    assert_eq!(kinds(&check(&pack(110), &trusting(120))), [(None, F::CheckpointSignature)]);
    assert_eq!(kinds(&check(&pack(100), &trusting(100))), [(None, F::LedgerKey)]);
    assert_eq!(kinds(&check(&pack(120), &trusting(7))), [(None, F::CheckpointSignature)]);
}
