//! The journal against torn writes, damage, kill -9, a failing disk and its bounds.
//!
//! Left out: power cuts, which a process can't stage. Invariant: each test reads back through the public interface only.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use exchequer_stream::journal::{Entry, Journal, JournalError, MAX_BODY, Options};
use exchequer_stream::{AppendError, EventStream, LocalStream, Message};
use exchequer_testkit::temp_dir;
use futures::future::try_join_all;
use proptest::prelude::*;

/// The directory in which the test's other process appends.
const CHILD_DIR: &str = "EXCHEQUER_TEST_JOURNAL";

fn open(dir: &Path) -> Journal {
    Journal::open(dir, Options::default()).unwrap()
}

fn small_segments() -> Options {
    Options { segment_bytes: 4096, ..Options::default() }
}

fn entries(journal: &Journal) -> Vec<Entry> {
    let (reader, mut all) = (journal.reader(), Vec::new());
    loop {
        let batch = reader.read(all.last().map_or(journal.first(), |e: &Entry| e.seq + 1), 10_000).unwrap();
        if batch.is_empty() {
            return all;
        }
        all.extend(batch);
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    found.retain(|p| p.extension().is_some_and(|e| e == "journal"));
    found.sort();
    found
}

fn body(i: u64) -> Bytes {
    Bytes::from(format!("record {i} ").repeat(usize::try_from(i % 7).unwrap() + 1))
}

/// Copies a journal as a crash would leave it: the copy's files are no longer the journal's.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in segments(from) {
        std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

#[tokio::test]
async fn a_tail_torn_at_any_byte_is_cut_to_the_records_before_it() {
    let (dir, torn) = (temp_dir(), temp_dir());
    let journal = open(dir.path());
    let mut ends = vec![];
    for i in 1..=6 {
        journal.append(body(i)).await.unwrap();
        ends.push(std::fs::metadata(&segments(dir.path())[0]).unwrap().len());
    }
    let whole = entries(&journal);
    let file = std::fs::read(&segments(dir.path())[0]).unwrap();
    drop(journal);
    for length in 0..=file.len() {
        let at = torn.path().join(length.to_string());
        std::fs::create_dir(&at).unwrap();
        let name = segments(dir.path())[0].file_name().unwrap().to_owned();
        std::fs::write(at.join(name), &file[..length]).unwrap();
        let complete = ends.iter().filter(|end| **end <= length as u64).count();
        let journal =
            Journal::open(&at, Options::default()).unwrap_or_else(|e| panic!("cut at {length}: {e}"));
        assert_eq!(entries(&journal), whole[..complete], "cut at {length}");
        assert_eq!(journal.append(body(9)).await, Ok(complete as u64 + 1), "cut at {length}");
        drop(journal);
        let journal = open(&at);
        assert_eq!(entries(&journal).len(), complete + 1, "cut at {length}, opened again");
    }
}

#[tokio::test]
async fn every_flipped_bit_is_named_and_never_cut_away() {
    let (dir, damaged) = (temp_dir(), temp_dir());
    let journal = open(dir.path());
    let mut starts = vec![0, std::fs::metadata(&segments(dir.path())[0]).unwrap().len()];
    for i in 1..=4 {
        journal.append(body(i)).await.unwrap();
        starts.push(std::fs::metadata(&segments(dir.path())[0]).unwrap().len());
    }
    let whole = entries(&journal);
    drop(journal);
    copy(dir.path(), damaged.path());
    let path = segments(damaged.path()).remove(0);
    let file = std::fs::read(&path).unwrap();
    let mark = *starts.last().unwrap();
    for bit in 0..file.len() * 8 {
        let mut flipped = file.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &flipped).unwrap();
        let place = (bit / 8) as u64;
        let frame = *starts.iter().rfind(|s| **s <= place).unwrap();
        match Journal::open(damaged.path(), Options::default()) {
            // The closing mark says nothing about itself, and protects all before it.
            Ok(journal) => {
                assert!(frame == mark, "bit {bit} was not noticed");
                assert_eq!(entries(&journal), whole);
            }
            Err(JournalError::Corrupt { segment, offset, .. }) => {
                assert_eq!(segment, path);
                assert!(
                    offset == frame || (frame == 0 && offset < starts[1]),
                    "bit {bit}: {offset}, not {frame}"
                );
            }
            Err(other) => panic!("bit {bit}: {other}"),
        }
    }
}

#[tokio::test]
async fn damage_before_the_last_group_is_named_even_after_a_crash() {
    let (dir, crashed) = (temp_dir(), temp_dir());
    let journal = open(dir.path());
    journal.append(body(1)).await.unwrap();
    let second = std::fs::metadata(&segments(dir.path())[0]).unwrap().len();
    journal.append(body(2)).await.unwrap();
    journal.append(body(3)).await.unwrap();
    // The journal is still open, so there is no closing mark.
    copy(dir.path(), crashed.path());
    let path = segments(crashed.path()).remove(0);
    let mut file = std::fs::read(&path).unwrap();
    file[usize::try_from(second).unwrap() + 40] ^= 1;
    std::fs::write(&path, file).unwrap();
    let error = Journal::open(crashed.path(), Options::default()).unwrap_err();
    let detail = "bad checksum of a record".to_owned();
    assert_eq!(error, JournalError::Corrupt { segment: path, offset: second, detail });
}

#[tokio::test]
async fn damage_in_an_earlier_segment_and_a_missing_segment_are_named() {
    let (dir, damaged) = (temp_dir(), temp_dir());
    let journal = Journal::open(dir.path(), small_segments()).unwrap();
    for i in 1..=400 {
        journal.append(body(i)).await.unwrap();
    }
    copy(dir.path(), damaged.path());
    let paths = segments(damaged.path());
    assert!(paths.len() > 3);
    let first = std::fs::read(&paths[0]).unwrap();
    std::fs::write(&paths[0], &first[..first.len() - 1]).unwrap();
    let error = Journal::open(damaged.path(), small_segments()).unwrap_err();
    assert!(matches!(&error, JournalError::Corrupt { segment, .. } if *segment == paths[0]), "{error}");
    std::fs::write(&paths[0], &first).unwrap();
    std::fs::remove_file(&paths[1]).unwrap();
    let error = Journal::open(damaged.path(), small_segments()).unwrap_err();
    assert!(matches!(&error, JournalError::Corrupt { segment, .. } if *segment == paths[2]), "{error}");
    assert!(error.to_string().contains("are missing before it"), "{error}");
}

#[tokio::test]
async fn damage_found_while_reading_is_named() {
    let dir = temp_dir();
    let journal = open(dir.path());
    for i in 1..=3 {
        journal.append(body(i)).await.unwrap();
    }
    let path = segments(dir.path()).remove(0);
    let mut file = std::fs::read(&path).unwrap();
    let last = file.len() - 1;
    file[last] ^= 1;
    std::fs::write(&path, file).unwrap();
    let error = journal.reader().read(3, 1000).unwrap_err();
    assert!(matches!(&error, JournalError::Corrupt { segment, .. } if *segment == path), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_nothing_acknowledged() {
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        return append_until_killed(Path::new(&dir)).await;
    }
    let dir = temp_dir();
    let mut acknowledged: BTreeMap<u64, String> = BTreeMap::new();
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill_9_loses_nothing_acknowledged", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = 20 + round * 37;
        let mut seen = 0;
        let mut note = |line: String| {
            if let Some((seq, body)) = line.strip_prefix("acked ").and_then(|l| l.split_once(' ')) {
                assert!(
                    acknowledged.insert(seq.parse().unwrap(), body.to_owned()).is_none(),
                    "{seq} acknowledged twice"
                );
                seen += 1;
            }
            seen
        };
        for line in lines.by_ref() {
            if note(line.unwrap()) >= wanted {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What was printed before the kill counts too; the last line may be cut short.
        let mut rest: Vec<String> = lines.map_while(Result::ok).collect();
        rest.retain(|l| l.ends_with('.'));
        for line in rest {
            note(line);
        }

        let journal = Journal::open(dir.path(), small_segments()).unwrap();
        let found = entries(&journal);
        assert!(found.iter().map(|e| e.seq).eq(1..=journal.tip()));
        for (seq, body) in &acknowledged {
            assert_eq!(found[usize::try_from(*seq).unwrap() - 1].body, body, "acknowledged at {seq}");
        }
    }
    assert!(acknowledged.len() > 2000);
}

async fn append_until_killed(dir: &Path) {
    let journal = std::sync::Arc::new(Journal::open(dir, small_segments()).unwrap());
    let writers = (0..8).map(|writer| {
        let journal = std::sync::Arc::clone(&journal);
        tokio::spawn(async move {
            for i in 0_u64.. {
                let body = format!("{}/{writer}/{i}.", std::process::id());
                let seq = journal.append(Bytes::from(body.clone())).await.unwrap();
                let line = format!("acked {seq} {body}\n");
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        })
    });
    try_join_all(writers.collect::<Vec<_>>()).await.unwrap();
}

#[tokio::test]
async fn segments_rotate_and_prune() {
    let dir = temp_dir();
    let journal = Journal::open(dir.path(), small_segments()).unwrap();
    for i in 1..=400 {
        assert_eq!(journal.append(body(i)).await, Ok(i));
    }
    let before = segments(dir.path());
    assert!(before.len() > 5);
    let total: u64 = before.iter().map(|p| std::fs::metadata(p).unwrap().len()).sum();
    assert_eq!(journal.size_bytes(), total);
    for from in [1, 2, 57, 200, 399, 400] {
        let read = journal.reader().read(from, 0).unwrap();
        assert_eq!(read, [Entry { seq: from, body: body(from) }]);
    }
    assert_eq!(journal.reader().read(401, 100).unwrap(), []);

    journal.prune_before(200).unwrap();
    let first = journal.first();
    assert!(first > 100 && first <= 200, "{first}");
    assert_eq!(journal.reader().read(first - 1, 100), Err(JournalError::Pruned { first }));
    assert!(entries(&journal).iter().map(|e| e.seq).eq(first..=400));
    let left = segments(dir.path());
    assert!(left.len() < before.len());
    assert_eq!(journal.size_bytes(), left.iter().map(|p| std::fs::metadata(p).unwrap().len()).sum::<u64>());
    drop(journal);

    let journal = Journal::open(dir.path(), small_segments()).unwrap();
    assert_eq!((journal.first(), journal.tip()), (first, 400));
    journal.prune_before(u64::MAX).unwrap();
    assert_eq!(segments(dir.path()).len(), 1, "the last segment stays and keeps the sequence");
    drop(journal);
    let journal = Journal::open(dir.path(), small_segments()).unwrap();
    assert_eq!(journal.append(body(401)).await, Ok(401));
}

#[tokio::test]
async fn a_failed_write_is_unknown_and_nothing_is_accepted_until_reopened() {
    let dir = temp_dir();
    let journal = Journal::open(dir.path(), small_segments()).unwrap();
    let mut next = 1;
    while std::fs::metadata(&segments(dir.path())[0]).unwrap().len() < 4096 {
        journal.append(body(next)).await.unwrap();
        next += 1;
    }
    // The next segment's name is taken, so the disk refuses to create it.
    let obstacle = dir.path().join(format!("{next:020}.journal"));
    std::fs::create_dir(&obstacle).unwrap();
    let failed = journal.append(body(next)).await;
    assert!(matches!(failed, Err(AppendError::Unknown(_))), "{failed:?}");
    let refused = journal.append(body(next)).await;
    assert!(matches!(refused, Err(AppendError::Unavailable(_))), "{refused:?}");
    assert!(journal.failure().is_some());
    assert_eq!(entries(&journal).len() as u64, next - 1, "what was acknowledged can still be read");
    let waited = journal.reader().wait_for(next).await;
    assert!(matches!(waited, Err(JournalError::Failed(_))), "{waited:?}");
    drop(journal);

    std::fs::remove_dir(&obstacle).unwrap();
    let journal = Journal::open(dir.path(), small_segments()).unwrap();
    assert_eq!(journal.append(body(next)).await, Ok(next));
    assert_eq!(entries(&journal).len() as u64, next);
}

#[tokio::test]
async fn bounds_are_kept() {
    let dir = temp_dir();
    let journal =
        Journal::open(dir.path(), Options { max_bytes: 4096, segment_bytes: 1024, ..Options::default() })
            .unwrap();
    let large = Bytes::from(vec![0; MAX_BODY + 1]);
    assert_eq!(
        journal.append(large).await,
        Err(AppendError::TooLarge { what: "record", size: MAX_BODY + 1, limit: MAX_BODY })
    );
    let mut count = 0;
    let full = loop {
        match journal.append(Bytes::from(vec![1; 500])).await {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, AppendError::Full(_)), "{full}");
    assert!((5..8).contains(&count), "{count}");
    assert!(journal.size_bytes() <= 4096);
    journal.prune_before(count + 1).unwrap();
    assert_eq!(journal.append(Bytes::from(vec![2; 500])).await, Ok(count + 1), "room was made");
    assert_eq!(
        Journal::open(dir.path(), Options::default()).unwrap_err(),
        JournalError::Locked(dir.path().to_owned())
    );
    drop(journal);

    let journal =
        Journal::open(dir.path(), Options { min_free_bytes: u64::MAX, ..Options::default() }).unwrap();
    let refused = journal.append(body(1)).await;
    assert!(
        matches!(&refused, Err(AppendError::Full(reason)) if reason.contains("kept free")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn many_appends_share_few_syncs_and_the_queue_is_bounded() {
    let dir = temp_dir();
    let journal = open(dir.path());
    let large = Bytes::from(vec![7; MAX_BODY]);
    let mut acks = Vec::new();
    for _ in 0..100 {
        // More than the queue holds: later calls wait for earlier records to become durable.
        acks.push(journal.enqueue(large.clone()).await.unwrap().1);
    }
    assert_eq!(try_join_all(acks).await.unwrap(), (1..=100).collect::<Vec<_>>());
    assert!(segments(dir.path()).len() > 1);
    let read = journal.reader().read(1, 3 * MAX_BODY).unwrap();
    assert!((2..=3).contains(&read.len()), "a read is bounded too");
}

#[tokio::test]
async fn a_closed_stream_ends_its_readers_and_frees_the_directory() {
    use futures::StreamExt as _;
    let dir = temp_dir();
    let stream = LocalStream::open(dir.path()).unwrap();
    let mut records = stream.read(1, &[]).await.unwrap();
    stream.append(Message::new("events.a", "1")).await.unwrap();
    assert_eq!(records.next().await.unwrap().unwrap().seq, 1);
    let ack = stream.enqueue(Message::new("events.a", "2")).await.unwrap();
    drop(stream);
    assert_eq!(ack.await, Ok(2), "what was handed over is made durable first");
    let stream = LocalStream::open(dir.path()).unwrap();
    assert_eq!(stream.tip().await, Ok(2));
    let ended = tokio::time::timeout(Duration::from_secs(10), records.collect::<Vec<_>>())
        .await
        .expect("the old reader ends");
    assert!(ended.last().unwrap().is_err(), "{ended:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn any_bodies_in_any_segment_size_come_back(
        bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 1..60),
        segment_bytes in 1_u64..20_000,
        reopen_at in 0_usize..60,
    ) {
        let dir = temp_dir();
        let options = Options { segment_bytes, ..Options::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut journal = Journal::open(dir.path(), options.clone()).unwrap();
        for (i, body) in bodies.iter().enumerate() {
            if i == reopen_at {
                drop(journal);
                journal = Journal::open(dir.path(), options.clone()).unwrap();
            }
            prop_assert_eq!(runtime.block_on(journal.append(Bytes::from(body.clone()))), Ok(i as u64 + 1));
        }
        let found: Vec<_> = entries(&journal).into_iter().map(|e| e.body.to_vec()).collect();
        prop_assert_eq!(&found, &bodies);
        drop(journal);
        let journal = Journal::open(dir.path(), options).unwrap();
        let found: Vec<_> = entries(&journal).into_iter().map(|e| e.body.to_vec()).collect();
        prop_assert_eq!(&found, &bodies);
    }
}
