//! Mirroring into stores that fail, and that others write to: at each operation in turn.

mod bucket;
mod faulty;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use exchequer_event::digest::Digest;
use exchequer_tlog::{
    Checkpoint, MAX_NOTE_BYTES, NoteSigner, SignedCheckpoint, bundles_for_size, tiles_for_size,
};
use futures::TryStreamExt as _;
use object_store::{ObjectStore, ObjectStoreExt as _, local::LocalFileSystem, memory::InMemory};

use super::{CHECKPOINT, Mirror, MirrorError, Place};
use crate::store::{
    LogKeys, LogReader, Opened,
    faults::{Shared, key_state, publish, reopen},
};
use faulty::{Fault, Faulty};

const ORIGIN: &str = "test.example/log";
/// Sizes at which a checkpoint is published: within a bundle, around its end, over several of them.
const SIZES: [u64; 6] = [1, 255, 256, 300, 700, 701];

/// A log with its published checkpoints.
struct Log {
    files: Shared,
    opened: Opened,
    published: Vec<SignedCheckpoint>,
}

impl Log {
    fn new(sizes: &[u64], what: &str) -> Self {
        let files = Shared::default();
        let mut opened = reopen(&files).unwrap();
        let mut published = Vec::new();
        for (cursor, size) in (1..).zip(sizes) {
            let from = opened.writer.position().size;
            let entries: Vec<Bytes> = (from..*size).map(|index| format!("{what} {index}").into()).collect();
            opened.writer.commit(&entries, cursor, Digest([1; 32])).unwrap();
            let position = opened.writer.position().clone();
            publish(&mut opened, &position).unwrap();
            published.extend(opened.checkpoints.published().cloned());
        }
        Self { files, opened, published }
    }

    fn mirror(&self, place: Place) -> Mirror {
        Mirror::new(place, LogKeys::new(ORIGIN, &[key_state()]), self.opened.reader.clone())
    }
}

/// Everything in a store but the lock file.
async fn objects(store: &dyn ObjectStore) -> BTreeMap<String, Bytes> {
    let mut objects = BTreeMap::new();
    for meta in store.list(None).try_collect::<Vec<_>>().await.unwrap() {
        let path = meta.location.to_string();
        if path != "mirror.lock" {
            objects.insert(path, store.get(&meta.location).await.unwrap().bytes().await.unwrap());
        }
    }
    objects
}

fn size_at(objects: &BTreeMap<String, Bytes>, path: &str) -> u64 {
    objects.get(path).map_or(0, |note| SignedCheckpoint::parse(note).unwrap().checkpoint().size())
}

/// Every tile and bundle of a log of this size.
fn files(reader: &LogReader, size: u64) -> Vec<(String, Vec<u8>)> {
    tiles_for_size(size)
        .map(|id| (id.to_string(), reader.tile_bytes(id).unwrap()))
        .chain(bundles_for_size(size).map(|id| (id.to_string(), reader.bundle_bytes(id).unwrap())))
        .collect()
}

/// Whether all that a size covers is there: each file in its width, or its full version.
#[track_caller]
fn assert_holds(objects: &BTreeMap<String, Bytes>, reader: &LogReader, size: u64, what: &str) {
    for (path, bytes) in files(reader, size) {
        let full = path.split(".p/").next().unwrap();
        let held = objects.get(&path).or_else(|| objects.get(full));
        let held = held.unwrap_or_else(|| panic!("{what}: {path} is missing"));
        assert!(held.starts_with(&bytes), "{what}: {path} is another");
    }
}

/// Pushes every checkpoint, over a store on which an operation fails, and checks after each attempt what readers would see.
async fn survives(log: &Log, fault: Fault, at: u64, raw: Arc<dyn ObjectStore>, dir: Option<&Path>) -> u64 {
    let over = |store: Arc<dyn ObjectStore>| match dir {
        Some(dir) => Place::over_directory(store, dir.to_owned()),
        None => Place::over(store, object_store::path::Path::default(), true),
    };
    let lock = dir.map(|dir| dir.join("mirror.lock"));
    let intruder = (log.mirror(over(raw.clone())), log.published.clone());
    let store = Arc::new(Faulty::new(raw.clone(), fault, at, intruder, lock));
    let mirror = log.mirror(over(store.clone()));
    let (mut shown, mut complete) = (0, 0);
    for signed in &log.published {
        let size = signed.checkpoint().size();
        for attempt in 0.. {
            let outcome = mirror.push(signed).await;
            let what = format!("{fault:?} at {at}, size {size}, attempt {attempt}");
            let objects = objects(&*raw).await;
            let now = (size_at(&objects, CHECKPOINT), size_at(&objects, "state"));
            assert!(now.0 >= shown && now.1 >= complete && now.0 <= now.1, "{what}: {now:?}");
            assert_holds(&objects, &log.opened.reader, now.1, &what);
            (shown, complete) = now;
            match outcome {
                Ok(mirrored) => {
                    assert!(mirrored >= size && shown >= size, "{what}: {mirrored}");
                    break;
                }
                Err(error) => assert!(attempt < 3 && !error.is_final(), "{what}: {error}"),
            }
        }
    }
    // What is there in the end is what the log has, byte for byte.
    let objects = objects(&*raw).await;
    assert_eq!(objects[CHECKPOINT], log.published.last().unwrap().to_string());
    assert_eq!(objects["state"], objects[CHECKPOINT]);
    for (path, bytes) in files(&log.opened.reader, SIZES[SIZES.len() - 1]) {
        assert_eq!(objects.get(&path).map(|held| &held[..]), Some(&bytes[..]), "{path}");
    }
    store.operations()
}

#[tokio::test]
async fn after_a_fault_at_any_operation_of_an_object_store_the_mirror_is_complete_and_never_shows_too_much() {
    let log = Log::new(&SIZES, "entry");
    let operations = survives(&log, Fault::Before, u64::MAX, Arc::new(InMemory::new()), None).await;
    assert!(operations > 40, "{operations}");
    for (fault, at) in Fault::ALL.into_iter().flat_map(|fault| (0..operations).map(move |at| (fault, at))) {
        survives(&log, fault, at, Arc::new(InMemory::new()), None).await;
    }
}

#[tokio::test]
async fn after_a_fault_at_any_operation_of_a_directory_the_mirror_is_complete_and_never_shows_too_much() {
    let log = Log::new(&SIZES, "entry");
    let attempt = async |fault, at| {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalFileSystem::new_with_prefix(dir.path()).unwrap();
        survives(&log, fault, at, Arc::new(store), Some(dir.path())).await
    };
    let operations = attempt(Fault::Before, u64::MAX).await;
    for (fault, at) in Fault::ALL.into_iter().flat_map(|fault| (0..operations).map(move |at| (fault, at))) {
        attempt(fault, at).await;
    }
}

fn in_memory(store: &Arc<InMemory>) -> Place {
    Place::over(store.clone(), object_store::path::Path::default(), true)
}

/// Pushes the log's newest checkpoint over a store that somebody else has written to; the error, and that nothing was overwritten.
async fn refused(store: Arc<InMemory>, log: &Log) -> MirrorError {
    let before = objects(&*store).await;
    let error = log.mirror(in_memory(&store)).push(log.published.last().unwrap()).await.unwrap_err();
    let after = objects(&*store).await;
    for (path, bytes) in &before {
        assert_eq!(after.get(path), Some(bytes), "{path} was overwritten");
    }
    for path in ["state", CHECKPOINT] {
        assert_eq!(after.get(path), before.get(path), "{path} was put");
    }
    error
}

async fn mirrored(log: &Log) -> Arc<InMemory> {
    let store = Arc::new(InMemory::new());
    log.mirror(in_memory(&store)).push(log.published.last().unwrap()).await.unwrap();
    store
}

#[tokio::test]
async fn a_mirror_that_is_not_this_logs_or_is_ahead_is_never_overwritten() {
    let log = Log::new(&[300], "entry");
    let fork = refused(mirrored(&Log::new(&[300], "other")).await, &log).await;
    assert!(matches!(fork, MirrorError::Fork { size: 300, .. }) && fork.is_final(), "{fork}");
    let shorter_fork = refused(mirrored(&Log::new(&[200], "other")).await, &log).await;
    assert!(matches!(shorter_fork, MirrorError::Fork { size: 200, .. }), "{shorter_fork}");
    let ahead = refused(mirrored(&Log::new(&[300, 301], "entry")).await, &log).await;
    assert!(matches!(ahead, MirrorError::Ahead { mirrored: 301, size: 300 }) && !ahead.is_final(), "{ahead}");

    let strange = NoteSigner::new(ORIGIN, SigningKey::from_bytes(&[8; 32])).unwrap();
    // By a key that this log may get to know from the entries that it lacks.
    let later = Checkpoint::new(ORIGIN, 400, *log.published[0].checkpoint().root()).unwrap();
    let store = Arc::new(InMemory::new());
    store.put(&"state".into(), later.sign(&strange).to_string().into()).await.unwrap();
    let ahead = refused(store, &log).await;
    assert!(matches!(ahead, MirrorError::Ahead { mirrored: 400, size: 300 }), "{ahead}");
    let head = Checkpoint::new(ORIGIN, 200, *log.published[0].checkpoint().root()).unwrap();
    for (path, bytes) in [
        ("state", head.sign(&strange).to_string()),
        ("state", "no note".to_owned()),
        (CHECKPOINT, log.published[0].to_string()),
        ("tile/0/000", "something else".to_owned()),
        ("tile/0/000", "x".repeat(9000)),
    ] {
        let store = Arc::new(InMemory::new());
        store.put(&path.into(), bytes.into()).await.unwrap();
        let foreign = refused(store, &log).await;
        assert!(matches!(foreign, MirrorError::Foreign(_)) && foreign.is_final(), "{path}: {foreign}");
    }
}

#[tokio::test]
async fn entries_that_were_changed_on_disk_do_not_get_into_the_mirror() {
    let log = Log::new(&[300], "entry");
    log.files.change("/data/log/tile/entries/001.p/44", |bytes| bytes[8] ^= 1);
    let store = Arc::new(InMemory::new());
    let error = refused(store.clone(), &log).await;
    assert!(matches!(error, MirrorError::Damaged { size: 300 }), "{error}");
    assert!(objects(&*store).await.is_empty());
}

#[tokio::test]
async fn objects_have_the_types_and_cache_headers_of_a_static_log() {
    let store = mirrored(&Log::new(&[300], "entry")).await;
    for (path, expected) in [
        ("tile/0/000", ("application/octet-stream", "public, max-age=31536000, immutable")),
        ("tile/entries/001.p/44", ("application/octet-stream", "private, max-age=31536000, immutable")),
        ("checkpoint", ("text/plain; charset=utf-8", "no-cache")),
        ("state", ("text/plain; charset=utf-8", "no-cache")),
    ] {
        let attributes = store.get(&path.into()).await.unwrap().attributes;
        let of = |attribute| attributes.get(&attribute).map(AsRef::as_ref).unwrap_or_default();
        let found = (of(object_store::Attribute::ContentType), of(object_store::Attribute::CacheControl));
        assert_eq!(found, expected, "{path}");
    }
}

#[tokio::test]
async fn partial_files_go_when_the_full_one_is_there_and_a_note_too_long_is_refused() {
    let log = Log::new(&[200, 300], "entry");
    let store = Arc::new(InMemory::new());
    let place = in_memory(&store);
    let mirror = log.mirror(place.clone());
    mirror.push(&log.published[0]).await.unwrap();
    assert!(objects(&*store).await.contains_key("tile/0/000.p/200"));
    mirror.push(&log.published[1]).await.unwrap();
    let left = objects(&*store).await;
    assert!(!left.keys().any(|path| path.contains("000.p/200")), "{:?}", left.keys());
    store.put(&"long".into(), vec![0u8; MAX_NOTE_BYTES + 1].into()).await.unwrap();
    let error = place.get("long", MAX_NOTE_BYTES).await.unwrap_err().to_string();
    assert!(error.contains("more than"), "{error}");
}
