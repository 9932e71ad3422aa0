//! Segments: one after the other, again after a restart, and checked together.

use std::{fs, path::Path, time::Duration};

use tokio::sync::Notify;

use super::{
    exports::{Ledger, Lie, client, ledger},
    keys::{enrolled, revoked, trusting},
    world::{World, check, kinds, saved, trust, vkey},
};
use crate::evidence::{
    export::{
        ExportError, Format,
        follow::{Follow, Happened, follow},
    },
    report::{FaultKind as F, Report, Subject, Verdict},
    verify::{Target, Trust},
};

fn options(dir: &Path, format: Format) -> Follow {
    Follow { dir: dir.to_owned(), format, key: Some(vkey(100)), every: Duration::ZERO, max_entries: 7 }
}

/// Follows until the segments reach an index, or an error ends it.
async fn follow_to(ledger: Ledger, options: Follow, end: u64) -> Result<(), ExportError> {
    let reached = Notify::new();
    let mut seen = 0;
    let following = follow(client(ledger), options, |happened| {
        if let Happened::Segment(_, exported) = happened {
            assert_eq!(exported.report.verdict, Verdict::Holds);
            if let Some(crate::evidence::pack::Scope::Range { end, .. }) = exported.report.scope {
                seen = end;
            }
        }
        if seen >= end {
            reached.notify_one();
        }
    });
    tokio::select! {
        ended = following => ended,
        () = reached.notified() => Ok(()),
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn check_dir(dir: &Path) -> Report {
    check(&Target::Directory(dir.to_owned()), &trust())
}

#[tokio::test]
async fn segments_follow_the_log_over_restarts_without_gap_or_repetition() {
    for (format, extension) in
        [(Format::Native, "pack"), (Format::Ndjson, "ndjson"), (Format::Ocsf, "ocsf.ndjson")]
    {
        let dir = tempfile::tempdir().unwrap();
        let mut world = World::small();
        follow_to(ledger(&world, None, Lie::None), options(dir.path(), format), 16).await.unwrap();
        let earlier = world.log().signed_by(100);
        world.batch(1, &["acme", "globex", "acme"]);
        world.block(&["acme"]);
        follow_to(ledger(&world, None, Lie::None), options(dir.path(), format), 22).await.unwrap();
        let found: Vec<_> = names(dir.path()).into_iter().filter(|name| !name.contains(".proof")).collect();
        let expected =
            ["000000000000-000000000007", "000000000007-000000000014", "000000000014-000000000016"];
        let expected: Vec<_> = expected.iter().map(|range| format!("{range}.{extension}")).collect();
        assert_eq!(found[..3], expected);
        assert_eq!(found[3], format!("000000000016-000000000022.{extension}"));
        let report = check_dir(dir.path());
        assert_eq!((report.verdict, report.subject), (Verdict::Holds, Subject::Segments), "{report}");
        assert_eq!(report.tree_size, Some(22));
        assert!(report.notes.iter().any(|note| note.contains("every entry from 0 up to 22")), "{report}");
        let since = Trust { checkpoints: vec![saved(earlier)], ..trust() };
        assert_eq!(check(&Target::Directory(dir.path().to_owned()), &since).continues_size, Some(16));

        // One that is missing, and one that is changed.
        let second = dir.path().join(&found[1]);
        let kept = fs::read(&second).unwrap();
        let mut changed = kept.clone();
        changed[kept.len() / 2] ^= 1;
        fs::write(&second, changed).unwrap();
        assert_eq!(check_dir(dir.path()).verdict, Verdict::Tampered);
        fs::remove_file(&second).unwrap();
        let report = check_dir(dir.path());
        assert!(
            report.verdict == Verdict::Tampered && report.faults[0].detail.contains("entries 7 up to 14"),
            "{report}"
        );
        let error =
            follow_to(ledger(&world, None, Lie::None), options(dir.path(), format), 22).await.unwrap_err();
        assert!(matches!(&error, ExportError::Request(text) if text.contains("missing")), "{error}");
    }
}

#[tokio::test]
async fn a_segment_that_was_begun_is_finished_first_although_the_log_has_grown() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::small();
    let whole =
        world.log().pack(crate::evidence::pack::Scope::Range { first: 0, end: 7 }, [0, 1, 2, 3, 4, 5, 6, 15]);
    let partial = dir.path().join("000000000000-000000000007.pack.partial");
    fs::write(&partial, &whole[..whole.len() / 2]).unwrap();
    let options = Follow { max_entries: 100, ..options(dir.path(), Format::Native) };
    follow_to(ledger(&world, None, Lie::None), options, 16).await.unwrap();
    let segments = ["000000000000-000000000007.pack", "000000000007-000000000016.pack"];
    assert_eq!(names(dir.path()), segments);
    assert_eq!(fs::read(dir.path().join(segments[0])).unwrap(), whole);
    assert_eq!(check_dir(dir.path()).verdict, Verdict::Holds);
}

#[tokio::test]
async fn another_log_under_the_same_key_is_not_appended_and_would_be_found() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let world = World::small();
    follow_to(ledger(&world, None, Lie::None), options(dir.path(), Format::Native), 16).await.unwrap();
    let mut fork = World::new();
    fork.batch(1, &["globex"; 20]);
    let error =
        follow_to(ledger(&fork, None, Lie::None), options(dir.path(), Format::Native), 25).await.unwrap_err();
    assert!(error.to_string().contains("does not continue"), "{error}");
    assert_eq!(names(dir.path()).len(), 3, "nothing of the other log stays");
    // Put there by hand, it is found although it holds by itself.
    follow_to(ledger(&fork, None, Lie::None), options(other_dir.path(), Format::Native), 21).await.unwrap();
    let name = "000000000014-000000000021.pack";
    fs::remove_file(dir.path().join("000000000014-000000000016.pack")).unwrap();
    fs::copy(other_dir.path().join(name), dir.path().join(name)).unwrap();
    assert!(kinds(&check_dir(dir.path())).contains(&(None, F::Inconsistent)));
}

#[tokio::test]
async fn following_goes_on_over_a_rotation_with_the_old_key_and_with_the_new_one() {
    for known in [100, 110] {
        let dir = tempfile::tempdir().unwrap();
        let mut world = World::small();
        follow_to(ledger(&world, None, Lie::None), options(dir.path(), Format::Ndjson), 16).await.unwrap();
        world.control_by(100, enrolled(110));
        world.control_by(110, revoked(100));
        world.batch(1, &["acme", "globex"]);
        let rotated = Ledger { signer: 110, ..ledger(&world, None, Lie::None) };
        let options = Follow { key: Some(vkey(known)), ..options(dir.path(), Format::Ndjson) };
        follow_to(rotated, options, 21).await.unwrap();
        for trust in [Trust::default(), trusting(100), trusting(110)] {
            let report = check(&Target::Directory(dir.path().to_owned()), &trust);
            assert_eq!((report.verdict, report.tree_size), (Verdict::Holds, Some(21)), "{report}");
            let is_noted = report.notes.iter().any(|note| note.contains("no key was given"));
            assert_eq!(is_noted, trust.key.is_none());
        }
        let stranger = check(&Target::Directory(dir.path().to_owned()), &trusting(7));
        assert_eq!(kinds(&stranger), [(None, F::CheckpointSignature)], "{stranger}");
    }
}
