//! The journal's room: few syncs for many records, a reserve that a full disk can't take, and looking without changing.
//!
//! Left out: file systems without `fallocate`. Invariant: the full disk is a real one, mounted for the test.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use bytes::Bytes;
use exchequer_stream::AppendError;
use exchequer_stream::journal::{self, Inspected, Journal, JournalError, Options};
use exchequer_testkit::{small_disk, temp_dir};
use futures::future::join_all;

const RESERVE: u64 = 256 * 1024;

fn with_reserve() -> Options {
    Options { segment_bytes: 128 * 1024, reserve_bytes: RESERVE, ..Options::default() }
}

/// Takes all that is left of the file system.
fn fill(dir: &Path) {
    let mut size = 1 << 20;
    let path = dir.join("filler");
    let mut content = fs::read(&path).unwrap_or_default();
    while size > 0 {
        content.resize(content.len() + size, 1);
        if fs::write(&path, &content).is_err() {
            content.truncate(content.len() - size);
            fs::write(&path, &content).unwrap();
            size /= 2;
        }
    }
}

fn is_full(outcome: &Result<u64, AppendError>) -> bool {
    matches!(outcome, Err(AppendError::Full(reason)) if reason.contains("can't be allocated"))
}

#[tokio::test]
async fn on_a_full_disk_records_are_refused_whole_the_reserve_holds_and_room_is_found_again() {
    let name = "on_a_full_disk_records_are_refused_whole_the_reserve_holds_and_room_is_found_again";
    let Some(disk) = small_disk(name, 4) else { return };
    let dir = disk.join("journal");
    let record = Bytes::from(vec![7; 30_000]);
    let journal = Journal::open(&dir, with_reserve()).unwrap();
    let mut last = 0;
    for _ in 0..10 {
        last = journal.append(record.clone()).await.unwrap();
    }
    fill(&disk);
    let refused = loop {
        match journal.append(record.clone()).await {
            Ok(seq) => last = seq,
            refused => break refused,
        }
    };
    assert!(is_full(&refused), "{refused:?}");
    assert!(matches!(journal.check_room(record.len()), Err(AppendError::Full(_))));
    assert!(fs::write(disk.join("other"), vec![1; 4096]).is_err(), "the disk is full indeed");
    for _ in 0..RESERVE / (record.len() as u64 + 32) {
        let (seq, ack) = journal.enqueue_reserved(record.clone()).await.unwrap();
        assert_eq!((seq, ack.await), (last + 1, Ok(last + 1)));
        last = seq;
    }
    let (size, failure) = (journal.size_bytes(), journal.failure());
    assert_eq!(failure, None, "nothing was written that did not fit");
    // Beyond its reserve nothing is promised, and nothing breaks.
    while let Ok((seq, ack)) = journal.enqueue_reserved(record.clone()).await {
        assert_eq!(ack.await, Ok(seq));
        last = seq;
    }
    assert!(journal.size_bytes() - size < 2 * RESERVE);
    assert!(is_full(&journal.append(record.clone()).await));
    drop(journal);

    let journal = Journal::open(&dir, with_reserve()).unwrap();
    assert_eq!(journal.tip(), last, "a full disk is no reason not to open");
    assert!(is_full(&journal.append(record.clone()).await));
    fs::remove_file(disk.join("filler")).unwrap();
    assert_eq!(journal.append(record.clone()).await, Ok(last + 1), "room is found again without a restart");
    let entries = journal.reader().read(1, usize::MAX).unwrap();
    assert!(entries.iter().map(|entry| entry.seq).eq(1..=last + 1));
    assert!(entries.iter().all(|entry| entry.body == record));
}

#[tokio::test]
async fn blocks_ahead_are_given_back_when_a_segment_is_over_and_kept_across_a_restart() {
    let dir = temp_dir();
    let journal = Journal::open(dir.path(), with_reserve()).unwrap();
    let blocks = || {
        let files = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
        files.map(|file| file.blocks() * 512).sum::<u64>()
    };
    for _ in 0..200 {
        journal.append(Bytes::from(vec![1; 10_000])).await.unwrap();
    }
    let ahead = blocks() - journal.size_bytes();
    assert!((RESERVE..2 * RESERVE + 128 * 1024).contains(&ahead), "{ahead} bytes are allocated ahead");
    drop(journal);
    let before = blocks();
    let journal = Journal::open(dir.path(), with_reserve()).unwrap();
    let after = blocks();
    assert!((before..=before + 128 * 1024).contains(&after), "{before} before and {after} after");
    assert_eq!(journal.tip(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_come_together_share_syncs() {
    let dir = temp_dir();
    let journal = Journal::open(dir.path(), Options::default()).unwrap();
    for _ in 0..20 {
        let together = (0..64).map(|_| journal.append(Bytes::from_static(b"a record")));
        assert!(join_all(together).await.into_iter().all(|outcome| outcome.is_ok()));
    }
    assert_eq!(journal.tip(), 20 * 64);
    assert!(journal.syncs() * 4 <= journal.tip(), "{} syncs for {} records", journal.syncs(), journal.tip());
}

#[tokio::test]
async fn looking_at_a_journal_changes_nothing_and_needs_it_closed() {
    let dir = temp_dir();
    let options = Options { segment_bytes: 1, ..Options::default() };
    let journal = Journal::open(dir.path(), options).unwrap();
    for body in ["one", "two", "three"] {
        journal.append(Bytes::from(body)).await.unwrap();
    }
    let locked = journal::inspect(dir.path(), |_, _| Ok(())).unwrap_err();
    assert_eq!(locked, JournalError::Locked(dir.path().to_owned()));
    assert_eq!((journal.first_after_pruning(2), journal.first_after_pruning(9)), (2, 3));
    journal.prune_before(2).unwrap();
    assert_eq!(journal.first(), 2);
    let bytes = journal.size_bytes();
    drop(journal);
    // As a crash leaves it: the last record is torn.
    let last = dir.path().join(format!("{:020}.journal", 3));
    let whole = fs::read(&last).unwrap();
    fs::write(&last, &whole[..40]).unwrap();
    let mut seen = Vec::new();
    let inspected = journal::inspect(dir.path(), |seq, body| {
        seen.push((seq, body.to_vec()));
        Ok(())
    });
    let torn = 32 + "three".len() as u64;
    assert_eq!(inspected, Ok(Inspected { first: 2, tip: 2, bytes: bytes - torn }));
    assert_eq!(seen, [(2, b"two".to_vec())]);
    assert_eq!(fs::read(&last).unwrap(), &whole[..40]);
}
