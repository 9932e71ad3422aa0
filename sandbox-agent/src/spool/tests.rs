//! The spool by itself: what it keeps, what it gives up, and what it knows when it is opened again.

use std::{
    fs,
    sync::atomic::{AtomicU64, Ordering},
};

use super::*;

fn stopped() -> NewEvent {
    let kind = Kind::AgentStopped(v1::AgentStopped { reason: "test".into() });
    NewEvent::own(kind)
}

fn admitted(id: &str) -> NewEvent {
    let kind = Kind::ExecutionAdmitted(v1::ExecutionAdmitted {
        hold_id: format!("hold-{id}"),
        ..Default::default()
    });
    NewEvent { tenant: "acme".into(), execution_id: id.into(), skill: "sum-up".into(), kind }
}

fn finished(id: &str) -> NewEvent {
    NewEvent { kind: Kind::ExecutionFinished(v1::ExecutionFinished::default()), ..admitted(id) }
}

async fn confirm_all(spool: &Spool) {
    let (seq, hash) = *spool.head.lock().await;
    spool.confirm(seq, &hash.0).unwrap();
}

fn open(dir: &Path) -> (Spool, Vec<LostExecution>) {
    Spool::open(dir, "a", 1 << 20, 8, 0).unwrap()
}

#[tokio::test]
async fn events_are_chained_across_reopening_and_an_unfinished_execution_is_reported_lost() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, lost) = open(dir.path());
    assert_eq!(lost, []);
    for event in [admitted("x"), admitted("y"), finished("x")] {
        spool.record(event).await.unwrap();
    }
    let epoch = spool.epoch();
    drop(spool);
    let (spool, lost) = open(dir.path());
    assert_eq!(spool.epoch(), epoch);
    let lost: Vec<_> = lost.iter().map(|l| (l.hold_id.as_str(), l.skill.as_str())).collect();
    assert_eq!(lost, [("hold-y", "sum-up")]);
    assert_eq!(spool.record(stopped()).await.unwrap().seq, 4);
    let entries = spool.reader().read(1, usize::MAX).unwrap();
    let mut prev = Digest::ZERO;
    for entry in entries {
        assert_eq!(v1::Event::decode(entry.body.clone()).unwrap().prev_hash, prev.0.as_slice());
        prev = seal::event_digest(&entry.body);
    }
}

#[tokio::test]
async fn a_full_spool_refuses_admissions_and_still_takes_outcomes_and_a_receipt_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = Spool::open(dir.path(), "a", 5 << 20, 8, 0).unwrap();
    let large = || NewEvent {
        kind: Kind::AgentStopped(v1::AgentStopped { reason: "x".repeat(30 << 10) }),
        ..stopped()
    };
    while spool.check_room().is_ok() {
        spool.record(large()).await.unwrap();
    }
    assert!(matches!(spool.check_room(), Err(RecordError::Full { .. })));
    spool.record(finished("x")).await.unwrap();
    confirm_all(&spool).await;
    spool.check_room().unwrap();
    assert!(spool.first() > 1);
}

/// Enough events for a segment and some.
async fn fill_a_segment(spool: &Spool) {
    for _ in 0..200 {
        let kind = Kind::AgentStopped(v1::AgentStopped { reason: "x".repeat(30 << 10) });
        spool.record(NewEvent { kind, ..stopped() }).await.unwrap();
    }
}

fn ids(lost: &[LostExecution]) -> Vec<&str> {
    lost.iter().map(|lost| lost.execution_id.as_str()).collect()
}

/// Copies a spool as a crash leaves it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

#[tokio::test]
async fn an_execution_that_runs_for_long_keeps_nothing_but_what_its_outcome_needs() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    let NewEvent { kind: Kind::ExecutionAdmitted(mut admission), .. } = admitted("x") else { unreachable!() };
    admission.reserved = vec![v1::MeterAmount { meter: "cpu_ms".into(), amount: 1 << 60 }];
    let event = NewEvent { kind: Kind::ExecutionAdmitted(admission.clone()), ..admitted("x") };
    spool.record(event).await.unwrap();
    spool.record(admitted("y")).await.unwrap();
    fill_a_segment(&spool).await;
    spool.record(finished("y")).await.unwrap();
    confirm_all(&spool).await;
    assert!(spool.first() > 2, "an open execution does not pin the journal");
    assert_eq!(spool.status().await.open_executions, 1);
    drop(spool);

    let looked_at = inspect(dir.path()).unwrap();
    assert_eq!((ids(&looked_at.open), looked_at.written), (vec!["x"], 203));
    let (spool, lost) = open(dir.path());
    let expected = LostExecution {
        execution_id: "x".into(),
        tenant: "acme".into(),
        skill: "sum-up".into(),
        hold_id: "hold-x".into(),
        reserved: admission.reserved,
    };
    assert_eq!(lost, [expected]);
    spool.record(finished("x")).await.unwrap();
    // The list still has it; the journal's outcome counts.
    drop(spool);
    let (spool, lost) = open(dir.path());
    assert_eq!(lost, []);
    fill_a_segment(&spool).await;
    confirm_all(&spool).await;
    drop(spool);
    assert_eq!(open(dir.path()).1, [], "its outcome is removed, and so is it from the list");
}

#[tokio::test]
async fn an_outcome_that_is_confirmed_before_its_recorder_goes_on_is_not_missed_later() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    spool.record(admitted("x")).await.unwrap();
    {
        // It is written, and nobody takes note of the answer: as a caller that is dropped, or slower than the receipt.
        let recording = spool.record(finished("x"));
        tokio::pin!(recording);
        assert!(futures::poll!(&mut recording).is_pending());
    }
    fill_a_segment(&spool).await;
    assert_eq!(spool.confirmed().running.len(), 1);
    confirm_all(&spool).await;
    assert!(spool.first() > 2 && spool.confirmed().running.is_empty());
    drop(spool);
    assert_eq!(open(dir.path()).1, []);
}

#[tokio::test]
async fn a_crash_between_the_list_and_the_removal_loses_and_doubles_nothing() {
    let (dir, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (spool, _) = open(dir.path());
    for event in [admitted("x"), admitted("y"), finished("y"), admitted("z")] {
        spool.record(event).await.unwrap();
    }
    fill_a_segment(&spool).await;
    spool.record(finished("z")).await.unwrap();
    let before = crashed.path().join("before");
    copy(&dir.path().join("journal"), &before.join("journal"));
    fs::copy(dir.path().join("epoch"), before.join("epoch")).unwrap();
    confirm_all(&spool).await;
    assert!(spool.first() > 4);
    drop(spool);
    for name in ["unfinished.0", "unfinished.1"] {
        fs::copy(dir.path().join(name), before.join(name)).unwrap();
    }
    assert_eq!(ids(&open(&before).1), ["x"], "the list is there, the journal is whole");
    assert_eq!(ids(&open(dir.path()).1), ["x"], "both are done");
}

#[tokio::test]
async fn a_list_that_is_torn_or_damaged_is_told_from_one_that_is_whole() {
    let (dir, torn) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (spool, _) = open(dir.path());
    spool.record(admitted("x")).await.unwrap();
    fill_a_segment(&spool).await;
    confirm_all(&spool).await;
    spool.record(admitted("y")).await.unwrap();
    let first = spool.first();
    drop(spool);
    let newest = fs::read(dir.path().join("unfinished.1")).unwrap();
    // A second one that is cut short anywhere, before anything was removed for it.
    copy(dir.path(), torn.path());
    let mut next = unfinished::newest(dir.path()).unwrap().unwrap();
    next.first += 1;
    let listed = unfinished::newest(torn.path()).unwrap();
    Unfinished::open(torn.path(), 8, listed.as_ref()).unwrap().write(next).unwrap();
    let whole = fs::read(torn.path().join("unfinished.0")).unwrap();
    assert!(whole.len() > 100);
    for length in 0..whole.len() - 1 {
        fs::write(torn.path().join("unfinished.0"), &whole[..length]).unwrap();
        assert_eq!(unfinished::newest(torn.path()).unwrap().unwrap().first, first, "cut at {length}");
    }
    assert_eq!(ids(&open(torn.path()).1), ["x", "y"]);
    // Damage to the only one that covers what was removed is no list at all.
    let path = dir.path().join("unfinished.1");
    for at in 0..newest.len() - 1 {
        let mut flipped = newest.clone();
        flipped[at] ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert_eq!(unfinished::newest(dir.path()).unwrap(), None, "byte {at}");
    }
    let refused = Spool::open(dir.path(), "a", 1 << 20, 8, 0);
    assert!(
        matches!(&refused, Err(SpoolError::Unfinished(problem)) if problem.contains("damaged or missing"))
    );
    fs::write(&path, &newest).unwrap();
    assert_eq!(ids(&open(dir.path()).1), ["x", "y"]);
}

#[tokio::test]
async fn a_list_of_another_journal_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    fill_a_segment(&spool).await;
    confirm_all(&spool).await;
    let (first, tip, epoch) = (spool.first(), spool.tip(), spool.epoch());
    drop(spool);
    let snapshot = unfinished::newest(dir.path()).unwrap();
    let check =
        |id: &str, epoch, first, tip| Snapshot::check(snapshot.as_ref(), id, epoch, first, tip).is_ok();
    assert!(
        check("a", epoch, first, tip) && check("a", epoch, 1, tip) && check("a", epoch, first, first - 1)
    );
    assert!(!check("a", epoch, first + 1, tip), "more was removed than the list covers");
    assert!(!check("a", epoch, 1, first - 2), "the journal lost what was confirmed");
    assert!(!check("a", epoch + 1, first, tip) && !check("b", epoch, first, tip));
}

#[tokio::test]
async fn a_clock_that_jumps_changes_times_and_no_order() {
    static JUMPS: AtomicU64 = AtomicU64::new(0);
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    let jumping = || {
        [5_000, 9_000_000_000_000, 4_000, 0]
            [usize::try_from(JUMPS.fetch_add(1, Ordering::Relaxed) % 4).unwrap()]
    };
    let spool = Spool { clock: jumping, ..spool };
    for event in [admitted("x"), admitted("y"), finished("x"), stopped()] {
        spool.record(event).await.unwrap();
    }
    drop(spool);
    let (spool, lost) = open(dir.path());
    assert_eq!(ids(&lost), ["y"]);
    let entries = spool.reader().read(1, usize::MAX).unwrap();
    let events = entries.into_iter().map(|entry| v1::Event::decode(entry.body).unwrap());
    let times: Vec<_> = events.map(|event| (event.seq, event.time_unix_ms)).collect();
    assert_eq!(times, [(1, 5_000), (2, 9_000_000_000_000), (3, 4_000), (4, 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn executions_that_record_at_the_same_time_share_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let spool = std::sync::Arc::new(Spool::open(dir.path(), "a", 64 << 20, 64, 0).unwrap().0);
    let recorders = (0..64).map(|recorder| {
        let spool = std::sync::Arc::clone(&spool);
        tokio::spawn(async move {
            for i in 0..20 {
                let id = format!("{recorder}-{i}");
                spool.record(admitted(&id)).await.unwrap();
                spool.record(finished(&id)).await.unwrap();
            }
        })
    });
    for recorder in recorders.collect::<Vec<_>>() {
        recorder.await.unwrap();
    }
    let (records, syncs) = (spool.tip(), spool.syncs());
    assert_eq!(records, 64 * 20 * 2);
    assert!(syncs * 4 <= records, "{syncs} syncs for {records} records");
}

#[tokio::test]
async fn the_status_says_what_waits_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    let spool = Spool { clock: || 7_000, ..spool };
    let empty = spool.status().await;
    assert_eq!((empty.oldest_unconfirmed_unix_ms, empty.open_executions, empty.kept_events), (0, 0, 0));
    spool.record(admitted("x")).await.unwrap();
    let spool = Spool { clock: || 9_500, ..spool };
    spool.record(admitted("y")).await.unwrap();
    spool.note_publishing(Some("nobody there".into()));
    let status = spool.status().await;
    assert_eq!((status.oldest_unconfirmed_unix_ms, status.oldest_unconfirmed_age_ms), (7_000, 2_500));
    assert_eq!((status.open_executions, status.publishing_trouble.as_str()), (2, "nobody there"));
    assert_eq!((status.refusing.as_str(), status.condemned.as_str()), ("", ""));
    confirm_all(&spool).await;
    assert_eq!(spool.status().await.oldest_unconfirmed_unix_ms, 0);
    spool.condemn("another history".into());
    let status = spool.status().await;
    assert_eq!(status.condemned, "another history");
    assert!(status.refusing.contains("another history"), "{}", status.refusing);
}

#[tokio::test]
async fn what_can_not_be_removed_stays_until_the_next_receipt_and_the_receipt_still_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    fill_a_segment(&spool).await;
    let full = tempfile::tempdir().unwrap();
    for name in ["unfinished.0", "unfinished.1"] {
        std::os::unix::fs::symlink("/dev/full", full.path().join(name)).unwrap();
    }
    *lock(&spool.unfinished) = Unfinished::open(full.path(), 8, None).unwrap();
    confirm_all(&spool).await;
    assert_eq!((spool.first(), spool.confirmed_seq()), (1, 200));
    let trouble = spool.status().await.pruning_trouble;
    assert!(trouble.contains("cannot write the list of open executions"), "{trouble}");
    *lock(&spool.unfinished) = Unfinished::open(dir.path(), 8, None).unwrap();
    confirm_all(&spool).await;
    assert!(spool.first() > 1);
    assert_eq!(spool.status().await.pruning_trouble, "");
}

#[test]
fn a_new_spool_begins_above_the_ledgers_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let far = unix_ms();
    assert_eq!(Spool::open(dir.path(), "a", 1 << 20, 8, far).unwrap().0.epoch(), far + 1);
    assert!(
        matches!(Spool::open(&dir.path().join("other"), "a", 1 << 20, 8, 0), Ok((spool, _)) if spool.epoch() > 1_700_000_000)
    );
}

#[tokio::test]
async fn a_receipt_about_other_events_confirms_nothing_and_ends_the_spool() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    for _ in 0..3 {
        spool.record(stopped()).await.unwrap();
    }
    assert!(matches!(spool.confirm(2, &[7; 32]), Err(ConfirmError::Condemned(_))));
    assert!(matches!(spool.confirm(9, &[7; 32]), Err(ConfirmError::Condemned(_))));
    assert_eq!((spool.confirmed_seq(), spool.first()), (0, 1));
    assert!(matches!(spool.check_room(), Err(RecordError::Condemned(_))));
}

#[tokio::test]
async fn an_old_spool_is_refused_where_the_ledger_holds_a_later_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _) = open(dir.path());
    let later = spool.epoch() + 1;
    drop(spool);
    let refused = Spool::open(dir.path(), "a", 1 << 20, 8, later);
    assert!(matches!(refused, Err(SpoolError::Ended { ledger, .. }) if ledger == later));
}
