//! Exports that were ended and go on.

use std::{fs, path::Path};

use super::{
    exports::{Ledger, Lie, acme, ledger, request, run_request},
    lines::write_lines,
    world::{World, check, trust},
};
use crate::evidence::{
    export::{self, ExportError, Format},
    lines::{self, Rendering},
    pack::Scope,
    report::Verdict,
    verify::Target,
};

/// Everything of a world that has grown since, so that a newer checkpoint is there than the one that was begun with.
fn grown(world: &World, lie: Lie) -> Ledger {
    let mut grown = World::large(400);
    grown.batch(1, &["acme"]);
    Ledger { newest: Some(grown.log().signed_by(100)), ..ledger(world, None, lie) }
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_export_goes_on_from_every_byte_at_which_it_can_be_cut_in_the_tree_it_began_with() {
    let world = World::small();
    let log = world.log();
    let range = Scope::Range { first: 5, end: 13 };
    for (scope, indexes) in [
        (acme(), vec![0, 1, 2, 3, 4, 5, 8, 9, 11, 15]),
        (range, vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15]),
    ] {
        let whole = log.pack(scope.clone(), indexes.iter().copied());
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("pack");
        let first_entry = b"entries/0\0";
        let head = whole.windows(10).position(|window| window == first_entry).unwrap();
        let mut most = 0;
        for cut in (0..whole.len()).step_by(509) {
            fs::write(dir.path().join("pack.partial"), &whole[..cut]).unwrap();
            let ledger = if cut >= head { grown(&world, Lie::None) } else { ledger(&world, None, Lie::None) };
            let exported = run_request(ledger, request(scope.clone(), &out)).await.unwrap();
            assert_eq!(fs::read(&out).unwrap(), whole, "cut at {cut}");
            most = most.max(exported.resumed);
            assert_eq!(files(dir.path()), ["pack"]);
        }
        assert_eq!(most, indexes.len() as u64, "a file that lacks its end alone needs no entry again");
    }
}

#[tokio::test]
async fn lines_go_on_from_every_byte_too() {
    let world = World::small();
    let log = world.log();
    for (format, rendering) in [(Format::Ndjson, Rendering::Ndjson), (Format::Ocsf, Rendering::Ocsf)] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("lines");
        write_lines(&log, rendering, acme(), &[0, 1, 2, 3, 4, 5, 8, 9, 11, 15], &out);
        let (whole, beside) = (fs::read(&out).unwrap(), fs::read(lines::proof_path(&out)).unwrap());
        for cut in (0..whole.len()).step_by(311) {
            fs::write(dir.path().join("lines.partial"), &whole[..cut]).unwrap();
            fs::write(dir.path().join("lines.proof.partial"), &beside).unwrap();
            let request = export::Request { format, ..request(acme(), &out) };
            let exported = run_request(grown(&world, Lie::None), request).await.unwrap();
            assert_eq!(fs::read(&out).unwrap(), whole, "cut at {cut}");
            assert_eq!(fs::read(lines::proof_path(&out)).unwrap(), beside);
            assert_eq!(exported.resumed, whole[..cut].split(|byte| *byte == b'\n').count() as u64 - 1);
            assert_eq!(files(dir.path()), ["lines", "lines.proof"]);
        }
    }
}

#[tokio::test]
async fn a_ledger_that_goes_away_leaves_what_the_next_export_continues() {
    let world = World::large(900);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("pack");
    let away = Ledger { page: 70, ..ledger(&world, None, Lie::Away) };
    let error = run_request(away, request(acme(), &out)).await.unwrap_err();
    assert!(matches!(error, ExportError::Ledger(_)), "{error}");
    assert_eq!(files(dir.path()), ["pack.partial"]);
    let back = Ledger { page: 70, ..grown(&world, Lie::None) };
    let exported = run_request(back, request(acme(), &out)).await.unwrap();
    assert!(exported.resumed > 50 && exported.entries > exported.resumed, "{exported:?}");
    assert_eq!(check(&Target::Pack(out), &trust()).verdict, Verdict::Holds);
}

#[tokio::test]
async fn what_was_damaged_is_written_again_and_what_is_of_another_export_is_left_alone() {
    let world = World::small();
    let log = world.log();
    let whole = log.pack(acme(), [0, 1, 2, 3, 4, 5, 8, 9, 11, 15]);
    let dir = tempfile::tempdir().unwrap();
    let (out, partial) = (dir.path().join("pack"), dir.path().join("pack.partial"));
    let mut damaged = whole.clone();
    let entry = &log.entries[5];
    let place = whole.windows(entry.len()).position(|window| window == &entry[..]).unwrap();
    damaged[place + 4] ^= 1;
    fs::write(&partial, &damaged).unwrap();
    let exported = run_request(ledger(&world, None, Lie::None), request(acme(), &out)).await.unwrap();
    assert_eq!((exported.resumed, fs::read(&out).unwrap()), (5, whole.clone()));

    let other = log.pack(Scope::Tenant("globex".into()), [0, 1, 2, 3]);
    fs::write(&partial, &other).unwrap();
    let error = run_request(ledger(&world, None, Lie::None), request(acme(), &out)).await.unwrap_err();
    assert!(matches!(&error, ExportError::Request(text) if text.contains("remove it")), "{error}");
    assert_eq!(fs::read(&partial).unwrap(), other);
    // Nor does one write where another does.
    let held = fs::File::open(&partial).unwrap();
    held.lock().unwrap();
    let error = run_request(ledger(&world, None, Lie::None), request(acme(), &out)).await.unwrap_err();
    assert!(error.to_string().contains("another export"), "{error}");
}
