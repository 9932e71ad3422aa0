//! Log directories.

use std::{fs, path::Path};

use exchequer_tlog::{leaf_hash, push_entry};
use prost::bytes::Bytes;

use super::world::{Log, World, check, kinds, on_all_cores, saved, trust, vkey};
use crate::evidence::{
    report::{FaultKind as F, Report, Verdict},
    verify::{Target, Trust},
};

fn check_dir(dir: &Path) -> Report {
    check(&Target::Directory(dir.into()), &trust())
}

/// Verifies a log in which some files have another content.
fn check_changed(log: &Log, changed: &[(String, Option<Vec<u8>>)]) -> Report {
    let dir = tempfile::tempdir().unwrap();
    log.write(dir.path());
    for (path, content) in changed {
        match content {
            Some(bytes) => fs::write(dir.path().join(path), bytes).unwrap(),
            None => fs::remove_file(dir.path().join(path)).unwrap(),
        }
    }
    check_dir(dir.path())
}

fn flipped(log: &Log, path: &str, at: usize) -> (String, Option<Vec<u8>>) {
    let mut bytes = log.files[path].clone();
    bytes[at] ^= 1;
    (path.to_owned(), Some(bytes))
}

/// Where an entry's content begins in its bundle.
fn entry_at(log: &Log, index: usize) -> usize {
    log.entries[index / 256 * 256..index].iter().map(|entry| entry.len() + 2).sum::<usize>() + 2
}

#[test]
fn a_whole_log_holds_and_the_report_says_what_was_checked() {
    let log = World::small().log();
    let dir = tempfile::tempdir().unwrap();
    log.write(dir.path());
    let report = check_dir(dir.path());
    assert_eq!(report.verdict, Verdict::Holds, "{report}");
    assert_eq!((report.tree_size, report.root.clone()), (Some(16), Some(log.root.to_string())));
    assert_eq!(report.signed_unix_s, Some(1_700_000_000));
    let c = report.checked;
    assert_eq!((c.entries, c.events, c.decision_runs, c.signatures, c.rejections), (16, 5, 2, 8, 1));
    assert!(report.notes.is_empty() && report.key_given, "{report}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["verdict"], &json["checked"]["entries"]), (&"holds".into(), &16.into()));
}

#[test]
fn the_data_directory_around_a_log_will_do_too() {
    let dir = tempfile::tempdir().unwrap();
    World::small().log().write(&dir.path().join("log"));
    assert_eq!(check_dir(dir.path()).verdict, Verdict::Holds);
}

#[test]
fn logs_of_every_size_around_a_tile_hold() {
    let world = World::large(600);
    for size in [1, 4, 255, 256, 257, 511, 512, 513, 600] {
        let log = Log::new(world.entries[..size].to_vec());
        let report = check_changed(&log, &[]);
        // A tree that ends within a batch lacks what its seal promises; everything else holds.
        let missing = kinds(&report);
        assert!(missing.iter().all(|(_, kind)| *kind == F::Record) && missing.len() <= 1, "{size}: {report}");
        assert_eq!(report.checked.entries, size as u64);
    }
    let whole = check_changed(&world.log(), &[]);
    assert_eq!(whole.verdict, Verdict::Holds, "{whole}");
}

#[test]
fn without_a_key_the_report_says_that_only_consistency_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    World::small().log().write(dir.path());
    let report = check(&Target::Directory(dir.path().into()), &Trust::default());
    assert_eq!(report.verdict, Verdict::Holds);
    assert_eq!(report.key, Some(vkey(100).to_string()));
    assert!(!report.key_given && report.notes[0].contains("not whose log it is"), "{report}");
}

#[test]
fn each_byte_of_the_entries_is_covered_and_its_entry_is_named() {
    let log = World::small().log();
    let path = log.bundle_path(0);
    let bytes = &log.files[&path];
    let mut owner = Vec::new();
    for (index, entry) in (0..).zip(&log.entries) {
        owner.extend(std::iter::repeat_n(index, entry.len() + 2));
    }
    assert_eq!(owner.len(), bytes.len());
    let dirs: Vec<_> = (0..64).map(|_| tempfile::tempdir().unwrap()).collect();
    for dir in &dirs {
        log.write(dir.path());
    }
    on_all_cores(bytes.len(), |lane, at| {
        let (name, content) = flipped(&log, &path, at);
        fs::write(dirs[lane].path().join(name), content.unwrap()).unwrap();
        let report = check_dir(dirs[lane].path());
        assert_eq!(report.verdict, Verdict::Tampered, "byte {at}: {report}");
        let first = report.faults.iter().find(|fault| fault.index.is_some());
        assert_eq!(first.unwrap().index, Some(owner[at]), "byte {at}: {report}");
    });
}

#[test]
fn each_byte_of_the_tiles_is_covered_and_no_entry_is_accused() {
    let log = World::large(300).log();
    let tiles: Vec<_> = log
        .files
        .iter()
        .filter(|(path, _)| path.starts_with("tile/") && !path.starts_with("tile/entries/"))
        .map(|(path, bytes)| (path.clone(), bytes.len()))
        .collect();
    assert_eq!(tiles.len(), 3);
    // Each hash at one of its bytes: what is compared is the hash.
    let places: Vec<_> = tiles
        .iter()
        .flat_map(|(path, length)| (0..*length).step_by(331).chain([*length - 1]).map(move |at| (path, at)))
        .collect();
    on_all_cores(places.len(), |_, n| {
        let (path, at) = places[n];
        let report = check_changed(&log, &[flipped(&log, path, at)]);
        assert_eq!(report.verdict, Verdict::Tampered);
        let found: Vec<_> = report.faults.iter().map(|fault| fault.kind).collect();
        assert_eq!(found, [F::TileChanged], "{path} {at}: {report}");
    });
}

#[test]
fn each_byte_of_a_small_tile_is_covered() {
    let log = World::small().log();
    let path = log.tile_path(0, 0);
    on_all_cores(log.files[&path].len(), |_, at| {
        let report = check_changed(&log, &[flipped(&log, &path, at)]);
        assert_eq!(kinds(&report), [(Some(at as u64 / 32), F::TileChanged)], "{report}");
    });
}

#[test]
fn each_byte_of_the_checkpoint_is_covered() {
    let log = World::small().log();
    let bytes = &log.files["checkpoint"];
    let text = String::from_utf8(bytes.clone()).unwrap();
    let cosignature = text.rfind("— ").unwrap();
    on_all_cores(bytes.len(), |_, at| {
        let report = check_changed(&log, &[flipped(&log, "checkpoint", at)]);
        if report.verdict == Verdict::Holds {
            // Whoever is named by nobody's key is ignored (signed-note), and the report counts it.
            assert!(
                at > cosignature && report.notes[0].contains("keys that are not known"),
                "byte {at}: {report}"
            );
            assert_eq!(report.signed_unix_s, None);
        }
    });
    // The content and the log's signature have no such byte.
    let report = check_changed(&log, &[flipped(&log, "checkpoint", text.find("16").unwrap() + 1)]);
    assert_eq!(report.verdict, Verdict::Tampered, "{report}");
}

#[test]
fn a_changed_entry_is_told_from_a_changed_tile_in_full_and_partial_bundles() {
    let log = World::large(700).log();
    for index in [10, 255, 256, 699] {
        let bundle = index as u64 / 256;
        let changed = flipped(&log, &log.bundle_path(bundle), entry_at(&log, index) + 5);
        let report = check_changed(&log, &[changed]);
        assert_eq!(kinds(&report), [(Some(index as u64), F::EntryChanged)], "{report}");
        let fault = &report.faults[0];
        assert_eq!(fault.expected, Some(leaf_hash(&log.entries[index]).to_string()));
        assert!(fault.entry.contains("agent agent-1"), "{report}");

        let changed = flipped(&log, &log.tile_path(0, bundle), index % 256 * 32);
        let report = check_changed(&log, &[changed]);
        assert_eq!(kinds(&report), [(Some(index as u64), F::TileChanged)], "{report}");
    }
}

#[test]
fn changes_in_several_places_are_told_apart() {
    let log = World::large(700).log();
    let report = check_changed(
        &log,
        &[
            flipped(&log, &log.bundle_path(0), entry_at(&log, 10) + 5),
            flipped(&log, &log.tile_path(0, 1), 3 * 32),
        ],
    );
    assert_eq!(kinds(&report), [(Some(10), F::EntryChanged), (Some(259), F::TileChanged)], "{report}");
}

#[test]
fn without_the_root_the_tile_above_tells_who_is_right() {
    let log = World::large(700).log();
    let entry = flipped(&log, &log.bundle_path(0), entry_at(&log, 10) + 5);
    let tile = flipped(&log, &log.tile_path(0, 1), 3 * 32);
    // Without the last bundle and its tile no root can be computed.
    let (bundle, last) = ((log.bundle_path(2), None), (log.tile_path(0, 2), None));
    let report = check_changed(&log, &[entry, tile, bundle, last]);
    let found = kinds(&report);
    assert!(found.contains(&(Some(10), F::EntryChanged)), "{report}");
    assert!(found.contains(&(Some(259), F::TileChanged)), "{report}");
}

/// The log with one entry replaced, with `levels` levels of tiles made to fit.
fn rewritten(log: &Log, index: usize, levels: u8) -> Vec<(String, Option<Vec<u8>>)> {
    let mut entries = log.entries.clone();
    let mut entry = entries[index].to_vec();
    *entry.last_mut().unwrap() ^= 1;
    entries[index] = entry.into();
    let other = Log::new(entries);
    let level = |path: &str| path.strip_prefix("tile/")?.split('/').next()?.parse::<u8>().ok();
    let fits =
        |path: &String| path.starts_with("tile/entries/") || level(path).is_some_and(|level| level < levels);
    let files = other.files.into_iter().filter(|(path, _)| fits(path));
    files.map(|(path, bytes)| (path, Some(bytes))).collect()
}

#[test]
fn an_entry_rewritten_with_its_tiles_is_found_by_what_is_above() {
    let log = World::large(700).log();
    // The record audit names the entry, the tree the bundle.
    let report = check_changed(&log, &rewritten(&log, 300, 1));
    assert_eq!(kinds(&report), [(None, F::EntriesRewritten), (Some(300), F::Record)], "{report}");
    assert!(report.faults[0].detail.contains("entries 256 to 511"), "{report}");
    // With every tile rewritten only the signed root is left, and the records.
    let report = check_changed(&log, &rewritten(&log, 300, 8));
    assert_eq!(kinds(&report), [(None, F::RootMismatch), (Some(300), F::Record)], "{report}");
    assert_eq!(report.faults[0].expected, Some(log.root.to_string()));
}

#[test]
fn a_log_rewritten_and_signed_anew_fails_by_its_records() {
    let world = World::small();
    let mut entries = world.entries.clone();
    let mut event = entries[5].to_vec();
    *event.last_mut().unwrap() ^= 1;
    entries[5] = event.into();
    let report = check_changed(&Log::new(entries), &[]);
    assert_eq!(kinds(&report), [(Some(5), F::Record)], "{report}");
    assert!(report.faults[0].entry.contains("event 1 of agent agent-1"), "{report}");
    // Left out altogether, the event is missed by the seal's promise.
    let mut entries = world.entries.clone();
    entries.remove(8);
    assert_eq!(kinds(&check_changed(&Log::new(entries), &[])), [(Some(8), F::Record)]);
}

#[test]
fn missing_and_cut_files_are_named() {
    let log = World::large(300).log();
    for (path, bytes) in &log.files {
        let report = check_changed(&log, &[(path.clone(), None)]);
        assert_eq!(report.verdict, Verdict::CouldNotCheck, "{report}");
        assert!(report.faults[0].detail.contains(path) && report.faults[0].kind == F::Missing, "{report}");

        let cut = bytes[..bytes.len() - 1].to_vec();
        let report = check_changed(&log, &[(path.clone(), Some(cut))]);
        assert!(report.verdict != Verdict::Holds, "{path}: {report}");
        let longer = [&bytes[..], b"x"].concat();
        let report = check_changed(&log, &[(path.clone(), Some(longer))]);
        assert!(report.verdict != Verdict::Holds, "{path}: {report}");
    }
    let path = log.bundle_path(1);
    let cut = log.files[&path][..entry_at(&log, 290) + 3].to_vec();
    let report = check_changed(&log, &[(path, Some(cut))]);
    assert_eq!(kinds(&report), [(Some(290), F::FileDamaged)], "{report}");
}

#[test]
fn swapped_bundles_are_found() {
    let log = World::large(600).log();
    let (one, two) = (log.bundle_path(0), log.bundle_path(1));
    let report = check_changed(
        &log,
        &[(one.clone(), Some(log.files[&two].clone())), (two, Some(log.files[&one].clone()))],
    );
    assert_eq!(report.verdict, Verdict::Tampered);
    assert_eq!((report.faults[0].index, report.faults[0].kind), (Some(0), F::EntryChanged), "{report}");
    assert!(report.more_faults > 0 || report.faults.len() >= 100);
}

#[test]
fn swapped_tiles_and_partial_files_of_the_wrong_width_are_found() {
    let log = World::large(700).log();
    let (one, two) = (log.tile_path(0, 0), log.tile_path(0, 1));
    let swapped =
        [(one.clone(), Some(log.files[&two].clone())), (two.clone(), Some(log.files[&one].clone()))];
    let report = check_changed(&log, &swapped);
    assert_eq!(report.verdict, Verdict::Tampered);
    assert!(report.faults.iter().all(|fault| fault.kind == F::TileChanged), "{report}");
    assert_eq!(report.faults[0].index, Some(0));
    // The partial files hold an entry less, or one more, than their names say.
    let (tile, bundle) = (log.tile_path(0, 2), log.bundle_path(2));
    let hashes = log.files[&tile].clone();
    let more = [&hashes[..], &hashes[..32]].concat();
    for wrong in [hashes[..hashes.len() - 32].to_vec(), more] {
        let report = check_changed(&log, &[(tile.clone(), Some(wrong))]);
        assert_eq!(kinds(&report), [(None, F::FileDamaged)], "{report}");
        assert!(report.faults[0].detail.contains(&tile), "{report}");
    }
    let entries = log.files[&bundle].clone();
    let last = log.entries.len() - 1;
    let less = entries[..entries.len() - log.entries[last].len() - 2].to_vec();
    let report = check_changed(&log, &[(bundle.clone(), Some(less))]);
    assert_eq!(kinds(&report), [(Some(last as u64), F::FileDamaged)], "{report}");
    let more = [&entries[..], &[0, 1, b'x']].concat();
    let report = check_changed(&log, &[(bundle, Some(more))]);
    assert_eq!(kinds(&report), [(None, F::FileDamaged)], "{report}");
}

#[test]
fn a_superseded_partial_file_that_differs_is_named() {
    let log = World::large(300).log();
    let mut bundle = Vec::new();
    for entry in &log.entries[..9] {
        push_entry(&mut bundle, entry).unwrap();
    }
    let tile = log.files["tile/0/000"][..9 * 32].to_vec();
    for (path, good) in [("tile/entries/000.p/9", bundle), ("tile/0/000.p/9", tile)] {
        let mut bad = good.clone();
        bad[200] ^= 1;
        for (content, expected) in [(good, vec![]), (bad, vec![(None, F::StaleFileChanged)])] {
            let dir = tempfile::tempdir().unwrap();
            log.write(dir.path());
            fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
            fs::write(dir.path().join(path), content).unwrap();
            let report = check_dir(dir.path());
            assert_eq!(kinds(&report), expected, "{report}");
        }
    }
}

#[test]
fn a_checkpoint_of_another_key_is_forged() {
    let log = World::small().log();
    let forged = log.signed_by(7).to_string().into_bytes();
    let report = check_changed(&log, &[("checkpoint".into(), Some(forged.clone()))]);
    assert_eq!(kinds(&report), [(None, F::CheckpointSignature)], "{report}");
    // Trusting the forger's key does not help: the log enrolled another.
    let dir = tempfile::tempdir().unwrap();
    log.write(dir.path());
    fs::write(dir.path().join("checkpoint"), forged).unwrap();
    let target = Target::Directory(dir.path().into());
    let report = check(&target, &Trust { key: Some(vkey(7)), ..Trust::default() });
    assert_eq!(kinds(&report), [(None, F::LedgerKey)], "{report}");
    // And without a key, the genesis names the log's.
    let report = check(&target, &Trust::default());
    assert_eq!(kinds(&report), [(None, F::CheckpointSignature)], "{report}");
}

#[test]
fn a_trusted_checkpoint_has_to_be_continued() {
    let world = World::large(700);
    let log = world.log();
    let dir = tempfile::tempdir().unwrap();
    log.write(dir.path());
    let against = |checkpoint| {
        let trust = Trust { checkpoints: vec![saved(checkpoint)], ..trust() };
        check(&Target::Directory(dir.path().into()), &trust)
    };
    for size in [0, 1, 256, 300, 512, 700, log.entries.len()] {
        let report = against(Log::new(world.entries[..size].to_vec()).signed_by(100));
        assert_eq!(report.verdict, Verdict::Holds, "{report}");
        assert_eq!(report.continues_size, Some(size as u64));
    }
    for size in [1, 256, 300, log.entries.len()] {
        let mut entries = world.entries[..size].to_vec();
        entries[0] = Bytes::from_static(b"another history");
        let report = against(Log::new(entries).signed_by(100));
        assert_eq!(kinds(&report), [(None, F::Inconsistent)], "{report}");
        assert!(report.faults[0].expected.is_some() && report.continues_size.is_none());
    }
    let mut longer = World::large(700);
    longer.batch(1, &["acme"]);
    let report = against(longer.log().signed_by(100));
    assert!(report.faults[0].detail.contains("rolled back"), "{report}");
    assert_eq!(report.verdict, Verdict::Tampered);
    assert_eq!(against(log.signed_by(9)).verdict, Verdict::CouldNotCheck);
}

#[test]
fn a_saved_checkpoint_is_compared_with_what_was_signed_not_with_what_was_changed() {
    let world = World::large(700);
    let log = world.log();
    let before = |size: usize| saved(Log::new(world.entries[..size].to_vec()).signed_by(100));
    let trust = Trust { checkpoints: [12, 300, 512, 695, 700].map(before).into(), ..trust() };
    for index in [10, 690] {
        let dir = tempfile::tempdir().unwrap();
        log.write(dir.path());
        let (path, content) = flipped(&log, &log.bundle_path(index as u64 / 256), entry_at(&log, index) + 5);
        fs::write(dir.path().join(path), content.unwrap()).unwrap();
        let report = check(&Target::Directory(dir.path().into()), &trust);
        assert_eq!(kinds(&report), [(Some(index as u64), F::EntryChanged)], "{report}");
    }
}

#[test]
fn what_is_no_log_could_not_be_checked() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(kinds(&check_dir(dir.path())), [(None, F::Missing)]);
    fs::write(dir.path().join("checkpoint"), "not a note").unwrap();
    assert_eq!(kinds(&check_dir(dir.path())), [(None, F::BadInput)]);
    assert_eq!(check_dir(dir.path()).verdict.exit_code(), 2);
    Log::new(Vec::new()).write(dir.path());
    assert_eq!(check_dir(dir.path()).verdict, Verdict::Holds);
}

#[test]
fn a_checkpoint_of_a_size_that_nobody_has_ends_soon() {
    let log = World::small().log();
    let mut text = String::from_utf8(log.files["checkpoint"].clone()).unwrap();
    text = text.replacen("\n16\n", "\n18446744073709551615\n", 1);
    let report = check_changed(&log, &[("checkpoint".into(), Some(text.into_bytes()))]);
    assert_eq!(report.verdict, Verdict::Tampered);
    assert!(kinds(&report).contains(&(None, F::CheckpointSignature)), "{report}");
}
