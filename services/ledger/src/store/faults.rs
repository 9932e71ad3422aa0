//! The store over a file system that fails: each operation in turn, in every way, then power loss and reopening.
//!
//! Here are the log that the tests build and the faults of single operations; a disk that is full ([`space`]), bits that flip and
//! reads that fail ([`decay`]), and what has to be durable before what ([`order`]) have files of their own.
//! The property of all of them: the log reopens to a prefix that contains all that any published checkpoint covers, or refuses and
//! says why; a fork is never signed.

mod decay;
mod memory;
mod order;
mod space;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use exchequer_event::{accept::KeyState, digest::Digest, v1::KeyRole};
use exchequer_tlog::{Cosigner, EMPTY_ROOT, Hash, SignedCheckpoint, leaf_hash, node_hash};

use self::memory::{Fault, Tree};
use super::{LogKeys, LogSigner, OpenError, Opened, Position, Quorum, SignError, files::Files as _, open};

pub(crate) use self::memory::Shared;

const ORIGIN: &str = "test.example/log";

const FAULTS: [Fault; 8] = [
    Fault::CrashBefore,
    Fault::CrashAfter,
    Fault::CrashAfterButPersisted,
    Fault::CrashScattered(0),
    Fault::CrashScattered(1),
    Fault::CrashScattered(2),
    Fault::Torn,
    Fault::Eio,
];

impl Shared {
    /// A file system for each fault at each of the first operations, with the fault's name.
    pub(crate) fn each_fault(operations: u64, check: impl Fn(Self, String)) {
        for (fault, at) in FAULTS.into_iter().flat_map(|fault| (0..operations).map(move |at| (fault, at))) {
            check(Self::failing(at, fault), format!("{fault:?} at {at}"));
        }
    }
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

pub(crate) fn reopen(files: &Shared) -> Result<Opened, OpenError> {
    reopen_with(files, Quorum::default())
}

fn reopen_with(files: &Shared, quorum: Quorum) -> Result<Opened, OpenError> {
    open(Arc::new(files.clone()), Path::new("/data"), ORIGIN)?.with_keys(&[key_state()], quorum)
}

/// The key as a log that has it from its first entry on.
pub(crate) fn key_state() -> KeyState {
    let (holder, key) = ("ledger".to_owned(), key().verifying_key());
    KeyState { role: KeyRole::Ledger, holder, key, revoked: false, enrolled_at: 0, revoked_at: None }
}

fn keys(states: &[KeyState]) -> LogKeys {
    LogKeys::new(ORIGIN, states)
}

fn sign(opened: &mut Opened, position: &Position) -> Result<SignedCheckpoint, SignError> {
    let signer = LogSigner::new(ORIGIN, &key()).unwrap();
    opened.checkpoints.sign(&opened.reader, position, &signer, 1)
}

/// Signs at a position and publishes at once, as without witnesses and others.
pub(crate) fn publish(opened: &mut Opened, position: &Position) -> Result<u64, SignError> {
    let signed = sign(opened, position)?;
    opened.checkpoints.settle(&signed, &keys(&[key_state()]))?;
    opened.checkpoints.publish(&opened.reader, &signed)?;
    Ok(signed.checkpoint().size())
}

fn entry(index: u64) -> Bytes {
    Bytes::from(format!("entry {index}").into_bytes())
}

fn naive_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => EMPTY_ROOT,
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            node_hash(&naive_root(left), &naive_root(right))
        }
    }
}

/// The root of the first entries. Each is computed once: the tests ask for the same few thousands of times.
fn root_of(size: u64) -> Hash {
    static KNOWN: Mutex<BTreeMap<u64, Hash>> = Mutex::new(BTreeMap::new());
    let compute = || naive_root(&(0..size).map(|index| leaf_hash(&entry(index))).collect::<Vec<_>>());
    *KNOWN.lock().unwrap().entry(size).or_insert_with(compute)
}

/// Commits batches up to a size, publishing after every second one. The sizes of what was published, and whether all went well.
fn work(opened: &mut Opened, published: &mut Vec<u64>, until: u64) -> bool {
    let steps = [1u64, 254, 1, 3, 300, 2, 255];
    while opened.writer.position().size < until {
        let (from, cursor) = (opened.writer.position().size, opened.writer.position().cursor + 1);
        let step = steps[usize::try_from(cursor).unwrap() % steps.len()].min(until - from);
        let entries: Vec<_> = (from..from + step).map(entry).collect();
        if opened.writer.commit(&entries, cursor, Digest([1; 32])).is_err() {
            return false;
        }
        if opened.reader.remove_superseded().is_err() {
            return false;
        }
        if cursor.is_multiple_of(2) || opened.writer.position().size == until {
            let position = opened.writer.position().clone();
            opened.reader.pin(position.size);
            match publish(opened, &position) {
                Ok(size) => published.push(size),
                Err(_) => return false,
            }
            if opened.reader.remove_superseded().is_err() {
                return false;
            }
        }
    }
    true
}

const UNTIL: u64 = 700;

/// What a log holds at rest, without the parts that depend on how often it was signed.
fn tiles(files: &Shared) -> Tree {
    let is_tile = |path: &PathBuf| path.starts_with("/data/log/tile");
    files.with(|memory| {
        memory.seen.iter().filter(|(path, _)| is_tile(path)).map(|(p, b)| (p.clone(), b.clone())).collect()
    })
}

#[test]
fn after_a_fault_at_any_operation_the_log_reopens_with_all_that_was_published_and_goes_on() {
    let clean = Shared::default();
    let mut published = Vec::new();
    assert!(work(&mut reopen(&clean).unwrap(), &mut published, UNTIL));
    let operations = clean.operations();
    assert!(operations > 60 && published.len() > 2);
    for (fault, at) in FAULTS.into_iter().flat_map(|fault| (0..operations).map(move |at| (fault, at))) {
        let files = Shared::failing(at, fault);
        let mut published = Vec::new();
        if let Ok(mut opened) = reopen(&files) {
            assert!(!work(&mut opened, &mut published, UNTIL), "{fault:?} at {at} went unnoticed");
        }
        files.reboot();
        let mut opened = reopen(&files).unwrap_or_else(|error| panic!("{fault:?} at {at}: {error}"));
        let size = opened.writer.position().size;
        let covered = published.last().copied().unwrap_or(0);
        assert!(size >= covered, "{fault:?} at {at}: {covered} were published, {size} are there");
        assert_eq!(opened.writer.position().root, root_of(size), "{fault:?} at {at}");
        assert!(opened.checkpoints.last().map_or(0, |signed| signed.checkpoint().size()) >= covered);
        // Every entry is there once, and the log ends like one that nothing happened to.
        assert!(work(&mut opened, &mut published, UNTIL), "{fault:?} at {at}: it does not go on");
        let entries = opened.reader.verified_entries(0, UNTIL).unwrap();
        assert!(entries.iter().eq((0..UNTIL).map(entry).collect::<Vec<_>>().iter()));
        let opened = reopen(&files).unwrap();
        assert_eq!(opened.writer.position().root, root_of(UNTIL));
        let (mut left, expected) = (tiles(&files), tiles(&clean));
        for (path, bytes) in expected {
            assert!(left.remove(&path) == Some(bytes), "{fault:?} at {at}: {} differs", path.display());
        }
        // A removal is not synced: with the power, superseded files may come back.
        assert!(
            left.keys().all(|path| path.to_string_lossy().contains(".p/")),
            "{fault:?} at {at}: {left:?}"
        );
    }
}

#[test]
fn what_is_signed_after_a_failed_commit_outlasts_a_power_loss() {
    let clean = Shared::default();
    assert!(work(&mut reopen(&clean).unwrap(), &mut Vec::new(), UNTIL));
    for at in 0..clean.operations() {
        let files = Shared::failing(at, Fault::Eio);
        let Ok(mut opened) = reopen(&files) else { continue };
        assert!(!work(&mut opened, &mut Vec::new(), UNTIL), "the fault at {at} went unnoticed");
        opened.writer = opened.writer.reload().unwrap();
        // No commit comes in between that would sync what the failed one did not.
        let position = opened.writer.position().clone();
        if position.size > 0 {
            publish(&mut opened, &position).unwrap();
        }
        files.cut_power();
        let opened = reopen(&files).unwrap_or_else(|error| panic!("fault at {at}: {error}"));
        assert_eq!(*opened.writer.position(), position, "fault at {at}");
    }
}

#[test]
fn what_was_changed_by_somebody_else_is_refused_with_its_reason() {
    let files = Shared::default();
    assert!(work(&mut reopen(&files).unwrap(), &mut Vec::new(), 700));
    let whole = files.with(|memory| memory.seen.clone());
    let check = |change: &dyn Fn(&mut Tree), expected: &str| {
        files.with(|memory| {
            memory.seen = whole.clone();
            change(&mut memory.seen);
        });
        let error = reopen(&files).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    let flip = |path: &str, place: usize| {
        let path = Path::new("/data").join(path);
        move |files: &mut Tree| files.get_mut(&path).unwrap()[place] ^= 1
    };
    check(&flip("state", 40), "checksum");
    check(&flip("log/tile/0/002.p/188", 5), "on disk has the root");
    check(&flip("log/tile/1/000.p/2", 5), "on disk has the root");
    check(&flip("log/tile/entries/002.p/188", 20), "is not the one that the tree holds");
    check(&flip("checkpoints/00000000", 80), "in the middle of the history");
    check(&|files| drop(files.remove(Path::new("/data/state"))), "entries were lost");
    check(&|files| drop(files.remove(Path::new("/data/log/tile/0/002.p/188"))), "002");
}

#[test]
fn a_checkpoint_of_another_tree_is_never_signed_over() {
    let (one, other) = (Shared::default(), Shared::default());
    assert!(work(&mut reopen(&one).unwrap(), &mut Vec::new(), 300));
    let mut opened = reopen(&other).unwrap();
    let entries: Vec<_> = (1000..1400).map(entry).collect();
    opened.writer.commit(&entries, 1, Digest([1; 32])).unwrap();
    // The other tree, under the first one's checkpoints: at the next start, and even without one.
    let history = one.with(|memory| memory.seen.clone());
    let is_checkpoint =
        |path: &PathBuf| path.starts_with("/data/checkpoints") || path.ends_with("checkpoint");
    other.with(|memory| memory.seen.extend(history.into_iter().filter(|(path, _)| is_checkpoint(path))));
    assert!(matches!(reopen(&other), Err(OpenError::Fork { signed: 255, .. })));
    let mut signing = reopen(&one).unwrap();
    let position = opened.writer.position().clone();
    signing.reader = opened.reader;
    let refused = publish(&mut signing, &position).unwrap_err();
    assert!(matches!(refused, SignError::Fork { signed: 300, size: 400, .. }), "{refused}");
}

#[test]
fn what_was_signed_and_lacks_its_quorum_is_published_by_no_restart() {
    let witness = Cosigner::new("witness.example/w", SigningKey::from_bytes(&[8; 32])).unwrap();
    let quorum = Quorum { witnesses: vec![witness.verifier().clone()], needed: 1 };
    let files = Shared::default();
    let served = |files: &Shared| {
        let note = files.read(Path::new("/data/log/checkpoint")).unwrap();
        SignedCheckpoint::parse(&note).unwrap().checkpoint().size()
    };
    // 300 entries were published before there was a witness: that stands.
    assert!(work(&mut reopen(&files).unwrap(), &mut Vec::new(), 300));
    let mut opened = reopen_with(&files, quorum.clone()).unwrap();
    let grow = |opened: &mut Opened, size: u64| {
        let entries: Vec<_> = (opened.writer.position().size..size).map(entry).collect();
        let cursor = opened.writer.position().cursor + 1;
        opened.writer.commit(&entries, cursor, Digest([1; 32])).unwrap();
        let position = opened.writer.position().clone();
        sign(opened, &position).unwrap()
    };
    let known = keys(&[key_state()]);
    let mut signed = grow(&mut opened, 400);
    assert!(matches!(
        opened.checkpoints.settle(&signed, &known),
        Err(SignError::Quorum { size: 400, needed: 1, got: 0 })
    ));
    signed.add(signed.checkpoint().cosign(&witness, 2)).unwrap();
    opened.checkpoints.settle(&signed, &known).unwrap();
    opened.checkpoints.publish(&opened.reader, &signed).unwrap();
    grow(&mut opened, 450);
    grow(&mut opened, 500);
    // Served is what was cosigned last; 500 entries were signed and nothing else may be signed there.
    let mut opened = reopen_with(&files, quorum.clone()).unwrap();
    let size = |signed: Option<&SignedCheckpoint>| signed.unwrap().checkpoint().size();
    assert_eq!((size(opened.checkpoints.published()), served(&files)), (400, 400));
    assert_eq!(size(opened.checkpoints.last()), 500);
    // A crash between keeping the cosigned note and publishing it: whether others published meanwhile is looked at first.
    let mut signed = opened.checkpoints.last().unwrap().clone();
    signed.add(signed.checkpoint().cosign(&witness, 3)).unwrap();
    opened.checkpoints.settle(&signed, &known).unwrap();
    let mut opened = reopen_with(&files, quorum.clone()).unwrap();
    assert_eq!((served(&files), opened.checkpoints.last()), (400, Some(&signed)));
    opened.checkpoints.publish(&opened.reader, &signed).unwrap();
    let opened = reopen_with(&files, quorum).unwrap();
    assert_eq!((served(&files), opened.checkpoints.previous_size()), (500, 400));
}

#[test]
fn a_checkpoint_lost_from_the_history_is_restored_and_one_lost_from_the_log_is_published_anew() {
    let files = Shared::default();
    assert!(work(&mut reopen(&files).unwrap(), &mut Vec::new(), 300));
    let [served, history] = ["/data/log/checkpoint", "/data/checkpoints/00000000"].map(PathBuf::from);
    files.with(|memory| memory.seen.remove(&history));
    let opened = reopen(&files).unwrap();
    assert_eq!(opened.checkpoints.last().unwrap().checkpoint().size(), 300);
    assert!(files.read(&history).is_ok(), "it was not restored");
    let note = files.with(|memory| memory.seen.remove(&served)).unwrap();
    let mut opened = reopen(&files).unwrap();
    assert!(opened.checkpoints.published().is_none() && files.read(&served).is_err());
    let position = opened.writer.position().clone();
    assert_eq!(publish(&mut opened, &position).unwrap(), 300);
    assert_eq!(files.read(&served).unwrap(), note, "the kept one, not a second of the same size");
}

#[test]
fn a_checkpoint_that_was_kept_and_not_published_stays_so_until_it_is_agreed_upon() {
    let files = Shared::default();
    let mut opened = reopen(&files).unwrap();
    assert!(work(&mut opened, &mut Vec::new(), 300));
    opened.writer.commit(&[entry(300)], 9, Digest([1; 32])).unwrap();
    let position = opened.writer.position().clone();
    let signer = LogSigner::new(ORIGIN, &key()).unwrap();
    opened.checkpoints.sign(&opened.reader, &position, &signer, 1).unwrap();
    let opened = reopen(&files).unwrap();
    let size = |signed: Option<&SignedCheckpoint>| signed.unwrap().checkpoint().size();
    assert_eq!((size(opened.checkpoints.published()), size(opened.checkpoints.last())), (300, 301));
    assert_eq!(opened.checkpoints.previous_size(), 255);
}

#[test]
fn what_another_published_is_taken_up_with_its_files_if_it_is_of_this_tree_and_signed_by_its_key() {
    let (one, other) = (Shared::default(), Shared::default());
    let mut ours = reopen(&one).unwrap();
    // This log never was of 300 entries.
    let entries: Vec<_> = (0..700).map(entry).collect();
    ours.writer.commit(&entries, 1, Digest([1; 32])).unwrap();
    let mut theirs = reopen(&other).unwrap();
    assert!(work(&mut theirs, &mut Vec::new(), 300));
    let signed = theirs.checkpoints.last().unwrap().clone();
    let revoked = KeyState { revoked: true, revoked_at: Some(299), ..key_state() };
    let refused = ours.checkpoints.take_up(&ours.reader, &signed, &keys(&[revoked])).unwrap_err();
    assert!(matches!(refused, SignError::Foreign(_)), "{refused}");
    let revoked_later = KeyState { revoked: true, revoked_at: Some(300), ..key_state() };
    ours.checkpoints.take_up(&ours.reader, &signed, &keys(&[revoked_later])).unwrap();
    ours.checkpoints.publish(&ours.reader, &signed).unwrap();
    let mut ours = reopen(&one).unwrap();
    assert_eq!(ours.checkpoints.published(), Some(&signed));
    for (path, bytes) in tiles(&other) {
        assert_eq!(files_at(&one, &path), Some(bytes), "{}", path.display());
    }
    let mut forked = reopen(&Shared::default()).unwrap();
    forked.writer.commit(&(1000..1300).map(entry).collect::<Vec<_>>(), 1, Digest([1; 32])).unwrap();
    assert!(work(&mut forked, &mut Vec::new(), 400));
    let signed = forked.checkpoints.last().unwrap().clone();
    let refused = ours.checkpoints.take_up(&ours.reader, &signed, &keys(&[key_state()])).unwrap_err();
    assert!(refused.is_fork(), "{refused}");
}

fn files_at(files: &Shared, path: &Path) -> Option<Vec<u8>> {
    files.with(|memory| memory.seen.get(path).cloned())
}
