//! Every class of damage to a data directory: named, repaired where that is possible, and the ledger starts with the original tree.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use ed25519_dalek::SigningKey;
use exchequer_auth::{Role, keys};
use exchequer_event::v1;
use exchequer_ledger::{Class, CouldNotCheck, FsckOptions, FsckReport, RepairSource, fsck};
use exchequer_stream::EventStream;
use exchequer_testkit::{SimAgent, eventually, temp_dir};
use exchequer_tlog::{Checkpoint, Hash, NoteSigner, VerifierKey};
use tempfile::TempDir;

use super::support::{
    Log, ORIGIN, PATIENCE, World, checkpoint, covered, leaf_hashes, local_stream, options, start, tile_files,
};

/// Entries: genesis, enrolment, and three batches of 201. Two full bundles and 93 entries of a third.
const SIZE: u64 = 605;
/// Entries under the checkpoint before the last one.
const BEFORE: u64 = 404;

/// A log at rest, with the stream that it came from.
struct Template {
    dir: TempDir,
    agent: SimAgent,
    root: Hash,
    verifier_key: String,
}

fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        fs::copy(from, to).unwrap();
        return;
    }
    fs::create_dir_all(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        copy(&item.path(), &to.join(item.file_name()));
    }
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for item in fs::read_dir(dir).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

impl Template {
    async fn new() -> Self {
        let mut agent = SimAgent::new("a1");
        let world = World::new(&[&agent]).await;
        for _ in 0..2 {
            world.take(&mut agent, "acme", 100).await;
        }
        assert_eq!(world.log().signed.checkpoint().size(), BEFORE);
        let (data, old) = (world.options.data.clone(), world.dir.path().join("old"));
        for part in ["state", "log/checkpoint", "checkpoints"] {
            fs::create_dir_all(old.join(part).parent().unwrap()).unwrap();
            copy(&data.join(part), &old.join(part));
        }
        world.take(&mut agent, "acme", 100).await;
        let World { dir, stream, service, .. } = world;
        let root = *checkpoint(&service).checkpoint().root();
        let verifier_key = service.verifier_key();
        service.stop().await;
        drop(stream);
        fs::remove_dir_all(data.join("derived")).unwrap();
        copy(&data.join("log"), &dir.path().join("mirror"));
        Self { dir, agent, root, verifier_key }
    }

    /// What each entry of a log is.
    fn leaves(&self, data: &Path) -> Vec<Hash> {
        leaf_hashes(&Log::read(data, &self.verifier_key).entries)
    }

    /// A copy with this damage.
    fn damaged(&self, damage: impl FnOnce(&Path)) -> Damaged<'_> {
        let dir = temp_dir();
        copy(self.dir.path(), dir.path());
        damage(&dir.path().join("ledger"));
        Damaged { template: self, dir }
    }
}

struct Damaged<'a> {
    template: &'a Template,
    dir: TempDir,
}

type Expected<'a> = &'a [(Class, &'a str)];

impl Damaged<'_> {
    fn data(&self) -> PathBuf {
        self.dir.path().join("ledger")
    }

    async fn run(&self, repair: bool, mirror: bool) -> FsckReport {
        let mirror = mirror.then(|| self.dir.path().join("mirror").display().to_string());
        let options = FsckOptions { data: self.data(), keys: Vec::new(), repair, mirror, token: None };
        fsck(options).await.unwrap()
    }

    /// Checks without repairing, which changes nothing: exactly this damage is named.
    async fn is_named(&self, mirror: bool, expected: Expected<'_>) -> FsckReport {
        let before = files(&self.data());
        let report = self.run(false, mirror).await;
        assert!(files(&self.data()) == before, "a check changed something");
        let all = report.findings.iter().filter(|finding| {
            !finding.class.is_harmless() || expected.iter().any(|(class, _)| *class == finding.class)
        });
        let found: BTreeSet<_> = all.map(|finding| (finding.class, finding.path.as_str())).collect();
        assert_eq!(found, expected.iter().copied().collect(), "{report}");
        let harmful = expected.iter().any(|(class, _)| !class.is_harmless());
        assert_eq!(report.is_sound(), !harmful, "{report}");
        report
    }

    /// The damage is named, repaired, gone; and the ledger starts with the tree that it had.
    async fn is_repaired(&self, mirror: bool, expected: Expected<'_>, source: RepairSource) {
        let named = self.is_named(mirror, expected).await;
        assert!(named.findings.iter().any(|finding| finding.repair == Some(source)), "{named}");
        let before = files(&self.data());
        let report = self.run(true, mirror).await;
        assert!(report.is_sound() && report.findings.iter().all(|finding| finding.repaired), "{report}");
        // What was replaced is kept.
        let aside = report.set_aside.clone();
        for (path, bytes) in &before {
            let now = fs::read(path).ok();
            let kept = aside
                .as_ref()
                .and_then(|aside| fs::read(aside.join(path.strip_prefix(self.data()).unwrap())).ok());
            assert!(
                now.as_ref() == Some(bytes) || kept.as_ref() == Some(bytes),
                "{} is gone",
                path.display()
            );
        }
        let again = self.run(false, false).await;
        // What is served was taken away where it was damaged: the ledger publishes.
        let is_to_publish = |finding: &exchequer_ledger::Finding| finding.class == Class::CheckpointMissing;
        assert!(again.is_sound() && again.findings.iter().all(is_to_publish), "{again}");
        self.starts_with_the_original_tree().await;
    }

    async fn starts_with_the_original_tree(&self) {
        let stream: Arc<dyn EventStream> = local_stream(self.dir.path());
        let options = options(self.data(), &[&self.template.agent]);
        let service = start(&options, &stream).await;
        covered(&service, SIZE).await;
        service.stop().await;
        let log = Log::read(&self.data(), &self.template.verifier_key);
        let head = log.signed.checkpoint();
        assert_eq!((head.size(), *head.root()), (SIZE, self.template.root));
        assert!(tile_files(&self.data()) == tile_files(&self.template.dir.path().join("ledger")));
    }

    /// The damage is named, stays, and whatever a repair does drops nothing.
    async fn is_beyond_repair(&self, mirror: bool, expected: Expected<'_>) {
        let named = self.is_named(mirror, expected).await;
        assert!(named.findings.iter().any(|finding| finding.repair.is_none()), "{named}");
        let state = fs::read(self.data().join("state")).ok();
        let report = self.run(true, mirror).await;
        assert!(!report.is_sound() && report.size == named.size, "{report}");
        assert_eq!(fs::read(self.data().join("state")).ok(), state);
        assert!(!self.run(false, mirror).await.is_sound());
    }
}

fn flip(path: &'static str, place: usize) -> impl Fn(&Path) {
    move |data| {
        let mut bytes = fs::read(data.join(path)).unwrap();
        bytes[place] ^= 1;
        fs::write(data.join(path), bytes).unwrap();
    }
}

fn cut(path: &'static str, length: usize) -> impl Fn(&Path) {
    move |data| {
        let bytes = fs::read(data.join(path)).unwrap();
        fs::write(data.join(path), &bytes[..length.min(bytes.len() - 1)]).unwrap();
    }
}

fn remove(path: &'static str) -> impl Fn(&Path) {
    move |data| {
        let path = data.join(path);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
}

fn swap(one: &'static str, other: &'static str) -> impl Fn(&Path) {
    move |data| {
        let aside = data.join("aside");
        fs::rename(data.join(one), &aside).unwrap();
        fs::rename(data.join(other), data.join(one)).unwrap();
        fs::rename(aside, data.join(other)).unwrap();
    }
}

/// Puts parts back to what they were two thirds of the way.
fn set_back(parts: &'static [&'static str]) -> impl Fn(&Path) {
    move |data| {
        for part in parts {
            remove(part)(data);
            copy(&data.parent().unwrap().join("old").join(part), &data.join(part));
        }
    }
}

const CHECKPOINTS: &[&str] = &["log/checkpoint", "checkpoints"];
const HISTORY: &str = "checkpoints/00000000";

fn append(data: &Path, note: &str) {
    let sum = blake3::hash(note.as_bytes()).to_hex();
    let mut history = fs::read(data.join(HISTORY)).unwrap();
    history.extend(format!("checkpoint {} {}\n{note}", note.len(), &sum[..16]).into_bytes());
    fs::write(data.join(HISTORY), history).unwrap();
}

/// A checkpoint of another tree.
fn another(key: SigningKey) -> String {
    let head = Checkpoint::new(ORIGIN, SIZE, Hash([9; 32])).unwrap();
    head.sign(&NoteSigner::new(ORIGIN, key).unwrap()).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_log_is_sound_and_one_in_use_is_let_alone() {
    let template = Template::new().await;
    let sound = template.damaged(|_| {});
    let report = sound.is_named(true, &[]).await;
    assert!(report.findings.is_empty() && (report.size, report.published) == (SIZE, SIZE), "{report}");
    assert_eq!(report.root, template.root.to_string());

    let stream = local_stream(sound.dir.path());
    let service = start(&options(sound.data(), &[&template.agent]), &stream).await;
    let options = |data, mirror: Option<String>| FsckOptions {
        data,
        keys: Vec::new(),
        repair: true,
        mirror,
        token: None,
    };
    let error = fsck(options(sound.data(), None)).await.unwrap_err();
    assert!(matches!(error, CouldNotCheck::InUse(_)), "{error}");
    service.stop().await;
    let nowhere = Some(sound.dir.path().join("nowhere").display().to_string());
    let error = fsck(options(sound.data(), nowhere)).await.unwrap_err();
    assert!(matches!(error, CouldNotCheck::Mirror(_)), "{error}");
    remove("ledger.key")(&sound.data());
    let error = fsck(options(sound.data(), None)).await.unwrap_err();
    assert!(matches!(error, CouldNotCheck::NoKey(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tiles_are_named_and_rebuilt_from_the_entries() {
    use Class::{TileChanged, TileMissing, TileSwapped, TileTruncated};
    let template = Template::new().await;
    let check = async |damage: &dyn Fn(&Path), expected: Expected<'_>| {
        template.damaged(damage).is_repaired(false, expected, RepairSource::Entries).await;
    };
    check(&flip("log/tile/0/000", 100), &[(TileChanged, "log/tile/0/000")]).await;
    check(&flip("log/tile/0/002.p/93", 0), &[(TileChanged, "log/tile/0/002.p/93")]).await;
    check(&flip("log/tile/1/000.p/2", 40), &[(TileChanged, "log/tile/1/000.p/2")]).await;
    check(&remove("log/tile/0/001"), &[(TileMissing, "log/tile/0/001")]).await;
    check(&cut("log/tile/0/001", 8000), &[(TileTruncated, "log/tile/0/001")]).await;
    check(
        &swap("log/tile/0/000", "log/tile/0/001"),
        &[(TileSwapped, "log/tile/0/000"), (TileSwapped, "log/tile/0/001")],
    )
    .await;
    check(
        &|data| {
            flip("log/tile/0/000", 1)(data);
            flip("log/tile/1/000.p/2", 1)(data);
        },
        &[(TileChanged, "log/tile/0/000"), (TileChanged, "log/tile/1/000.p/2")],
    )
    .await;
    let all = ["log/tile/0/000", "log/tile/0/001", "log/tile/0/002.p/93", "log/tile/1/000.p/2"];
    check(&|data| all.iter().for_each(|path| remove(path)(data)), &all.map(|path| (TileMissing, path))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_named_and_taken_from_the_mirror_and_from_nowhere_else_if_they_were_published() {
    use Class::{BundleMissing, BundleSwapped, BundleTruncated, EntryChanged, TileChanged, TreeLost};
    let template = Template::new().await;
    let check = async |damage: &dyn Fn(&Path), expected: Expected<'_>| {
        template.damaged(damage).is_beyond_repair(false, expected).await;
        template.damaged(damage).is_repaired(true, expected, RepairSource::Mirror).await;
    };
    check(&flip("log/tile/entries/000", 300), &[(EntryChanged, "log/tile/entries/000")]).await;
    check(&flip("log/tile/entries/002.p/93", 300), &[(EntryChanged, "log/tile/entries/002.p/93")]).await;
    check(&remove("log/tile/entries/001"), &[(BundleMissing, "log/tile/entries/001")]).await;
    check(&cut("log/tile/entries/001", 5000), &[(BundleTruncated, "log/tile/entries/001")]).await;
    check(
        &swap("log/tile/entries/000", "log/tile/entries/001"),
        &[(BundleSwapped, "log/tile/entries/000"), (BundleSwapped, "log/tile/entries/001")],
    )
    .await;
    // An entry and its hash at once: nothing here leads to the tree any more.
    let both = |data: &Path| {
        let bundle = fs::read(data.join("log/tile/entries/000")).unwrap();
        let (mut entry, mut end) = (0, 0);
        while end <= 300 {
            end += 2 + usize::from(u16::from_be_bytes([bundle[end], bundle[end + 1]]));
            entry += 1;
        }
        flip("log/tile/entries/000", 300)(data);
        flip("log/tile/0/000", 32 * (entry - 1))(data);
    };
    template.damaged(both).is_beyond_repair(false, &[(TreeLost, "log/tile/0/000")]).await;
    let named = [(EntryChanged, "log/tile/entries/000"), (TileChanged, "log/tile/0/000")];
    template.damaged(both).is_repaired(true, &named, RepairSource::Mirror).await;
    // An entry and the hash of another: each is known from the other side, and only the entry is lost.
    let apart = |data: &Path| {
        flip("log/tile/entries/000", 300)(data);
        flip("log/tile/0/000", 32 * 200)(data);
    };
    template.damaged(apart).is_beyond_repair(false, &named).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_checkpoint_covers_is_cut_off_and_integrated_again_from_the_stream() {
    use Class::{BundleMissing, EntryChanged, StateAhead, TileMissing};
    let template = Template::new().await;
    let check = async |damage: &dyn Fn(&Path), expected: Expected<'_>| {
        let damaged = template.damaged(|data| {
            set_back(CHECKPOINTS)(data);
            damage(data);
        });
        damaged.is_repaired(false, expected, RepairSource::Stream).await;
    };
    check(&flip("log/tile/entries/002.p/93", 300), &[(EntryChanged, "log/tile/entries/002.p/93")]).await;
    check(&remove("log/tile/entries/002.p/93"), &[(BundleMissing, "log/tile/entries/002.p/93")]).await;
    // A state ahead of its tiles.
    let tail = |data: &Path| {
        remove("log/tile/entries/002.p/93")(data);
        remove("log/tile/0/002.p/93")(data);
    };
    let narrower = ["log/tile/0/001.p/148", "log/tile/1/000.p/1"].map(|path| (TileMissing, path));
    let bundle = [(BundleMissing, "log/tile/entries/001.p/148"), (StateAhead, "state")];
    check(&tail, &[&narrower[..], &bundle[..]].concat()).await;
    // The newest checkpoint is damaged, and says how much it covered: nothing of that is cut off.
    let newest_damaged = template.damaged(|data| {
        set_back(&["log/checkpoint"])(data);
        let length = fs::read(data.join(HISTORY)).unwrap().len();
        flip(HISTORY, length - 10)(data);
        flip("log/tile/entries/002.p/93", 300)(data);
    });
    let expected = [(EntryChanged, "log/tile/entries/002.p/93"), (Class::HistoryDamaged, HISTORY)];
    newest_damaged.is_beyond_repair(false, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_cut_a_stream_of_another_log_changes_nothing_of_what_is_left_and_nothing_is_signed() {
    let template = Template::new().await;
    let cut_back = template.damaged(|data| {
        set_back(CHECKPOINTS)(data);
        flip("log/tile/entries/002.p/93", 300)(data);
    });
    let report = cut_back.run(true, false).await;
    assert!(report.is_sound() && report.size == BEFORE, "{report}");
    // The same genesis, and another batch in the place of the one that the log ends with.
    let other = temp_dir();
    copy(&cut_back.dir.path().join("ledger/ledger.key"), &other.path().join("key"));
    let stream = local_stream(other.path());
    let mut options = options(other.path().join("ledger"), &[&template.agent]);
    options.key_file = other.path().join("key");
    let service = start(&options, &stream).await;
    covered(&service, 2).await;
    service.stop().await;
    let mut agent = SimAgent::new("a1");
    for executions in [100, 3] {
        let batch = agent.batch("globex", executions);
        stream.append(exchequer_stream::Message::new(agent.subject(), batch)).await.unwrap();
    }
    options.data = cut_back.data();
    let service = start(&options, &stream).await;
    // Under the same key, the other log's checkpoint was published there: nothing may be signed beside it.
    eventually(PATIENCE, || {
        std::future::ready(format!("{:?}", service.readiness()).contains("it is forked"))
    })
    .await;
    service.stop().await;
    let (original, now) =
        (template.leaves(&template.dir.path().join("ledger")), template.leaves(&options.data));
    let kept = usize::try_from(BEFORE).unwrap();
    assert!(now[..kept] == original[..kept]);
}

#[tokio::test(flavor = "multi_thread")]
async fn state_and_checkpoints_are_named_and_restored_from_each_other() {
    use Class::{
        CheckpointDamaged, CheckpointForged, CheckpointMissing, CheckpointStale, HistoryBehind,
        HistoryDamaged, HistoryTorn, StateDamaged, StateMissing, StateStale,
    };
    use RepairSource::{Checkpoints, Removal};
    let template = Template::new().await;
    let check = async |damage: &dyn Fn(&Path), expected: Expected<'_>, source| {
        template.damaged(damage).is_repaired(false, expected, source).await;
    };
    check(&flip("state", 60), &[(StateDamaged, "state")], Checkpoints).await;
    check(&remove("state"), &[(StateMissing, "state")], Checkpoints).await;
    check(&set_back(&["state"]), &[(StateStale, "state")], Checkpoints).await;
    check(&flip(HISTORY, 80), &[(HistoryDamaged, HISTORY)], Removal).await;
    check(&cut(HISTORY, usize::MAX), &[(HistoryTorn, HISTORY)], Removal).await;
    check(&remove("checkpoints"), &[(HistoryBehind, "checkpoints")], Checkpoints).await;
    // Whether the history's newest may be published is the ledger's to settle, with its witnesses.
    let is_settled_at_the_start = async |damage: &dyn Fn(&Path), class| {
        let damaged = template.damaged(damage);
        damaged.is_named(false, &[(class, "log/checkpoint")]).await;
        let before = files(&damaged.data());
        assert!(damaged.run(true, false).await.is_sound() && files(&damaged.data()) == before);
        damaged.starts_with_the_original_tree().await;
    };
    is_settled_at_the_start(&remove("log/checkpoint"), CheckpointMissing).await;
    is_settled_at_the_start(&set_back(&["log/checkpoint"]), CheckpointStale).await;
    check(&cut("log/checkpoint", 40), &[(CheckpointDamaged, "log/checkpoint")], Removal).await;
    let forged = another(SigningKey::from_bytes(&[9; 32]));
    let path = "log/checkpoint";
    check(&|data| fs::write(data.join(path), &forged).unwrap(), &[(CheckpointForged, path)], Removal).await;
    check(&|data| append(data, &forged), &[(CheckpointForged, HISTORY)], Removal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_under_the_ledgers_own_key_is_named_and_nothing_is_repaired_over_it() {
    let template = Template::new().await;
    let fork = template.damaged(|data| append(data, &another(keys::load(data.join("ledger.key")).unwrap())));
    fork.is_beyond_repair(false, &[(Class::Fork, HISTORY)]).await;
    // Everything that says what counts is gone.
    let nothing_signed = template.damaged(|data| {
        for path in ["state", "checkpoints", "log/checkpoint"] {
            remove(path)(data);
        }
    });
    let options = FsckOptions {
        data: nothing_signed.data(),
        keys: vec![template.verifier_key.parse().unwrap()],
        repair: true,
        mirror: None,
        token: None,
    };
    let report = fsck(options).await.unwrap();
    assert!(!report.is_sound() && report.classes.keys().eq([&Class::StateMissing]), "{report}");
    nothing_signed.is_repaired_with_the_mirror().await;
}

impl Damaged<'_> {
    async fn is_repaired_with_the_mirror(&self) {
        let report = self.run(true, true).await;
        assert!(report.is_sound(), "{report}");
        self.starts_with_the_original_tree().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_of_a_key_that_was_replaced_are_the_logs_and_a_key_that_the_log_lacks_is_refused() {
    let mut agent = SimAgent::new("a1");
    let world = World::new(&[&agent]).await;
    world.take(&mut agent, "acme", 200).await;
    let admin = ("ada", None, &[Role::Admin][..]);
    let rotation = v1::RotateLedgerKeyRequest { keep_old: false, reason: "a year old".into() };
    world.client().rotate_ledger_key(world.request(admin, rotation)).await.unwrap();
    world.take(&mut agent, "acme", 1).await;
    let World { dir: _dir, service, options, .. } = world;
    service.stop().await;
    let check = |keys: Vec<VerifierKey>, repair| {
        fsck(FsckOptions { data: options.data.clone(), keys, repair, mirror: None, token: None })
    };
    let report = check(Vec::new(), false).await.unwrap();
    assert!(report.findings.is_empty(), "{report}");
    flip("log/tile/0/000", 100)(&options.data);
    let report = check(Vec::new(), true).await.unwrap();
    assert!(report.is_sound() && report.classes.keys().eq([&Class::TileChanged]), "{report}");
    let before = files(&options.data);
    let strange = NoteSigner::new(ORIGIN, SigningKey::from_bytes(&[9; 32])).unwrap().verifier().clone();
    let error = check(vec![strange], true).await.unwrap_err();
    assert!(matches!(error, CouldNotCheck::NoKey(_)) && files(&options.data) == before, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_nothing_needs_are_named_and_moved_away() {
    use Class::{Beyond, ForeignFile, Leftover, LeftoverChanged};
    let template = Template::new().await;
    let put = |path: &'static str, length: usize| {
        move |data: &Path| {
            let mut bytes = fs::read(data.join("log/tile/0/001")).unwrap();
            bytes.truncate(length);
            fs::create_dir_all(data.join(path).parent().unwrap()).unwrap();
            fs::write(data.join(path), bytes).unwrap();
        }
    };
    let check = async |damage: &dyn Fn(&Path), expected: Expected<'_>| {
        template.damaged(damage).is_repaired(false, expected, RepairSource::Removal).await;
    };
    check(&put("log/tile/0/001.p/20", 640), &[(Leftover, "log/tile/0/001.p/20")]).await;
    check(&put("log/tile/0/000.p/20", 640), &[(LeftoverChanged, "log/tile/0/000.p/20")]).await;
    check(&put("log/tile/0/001.p/20", 600), &[(LeftoverChanged, "log/tile/0/001.p/20")]).await;
    check(&put("log/tile/entries/001.p/20", 600), &[(LeftoverChanged, "log/tile/entries/001.p/20")]).await;
    check(&put("log/tile/0/003", 8192), &[(Beyond, "log/tile/0/003")]).await;
    check(&put("staging/0-000", 10), &[(Leftover, "staging/0-000")]).await;
    check(&put("log/tile/0/notes", 10), &[(ForeignFile, "log/tile/0/notes")]).await;
    check(&put("checkpoints/notes", 10), &[(ForeignFile, "checkpoints/notes")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_directory_is_filled_from_a_mirror_that_the_ledgers_key_signed() {
    let template = Template::new().await;
    let empty = template.damaged(|data| {
        let key = fs::read(data.join("ledger.key")).unwrap();
        fs::remove_dir_all(data).unwrap();
        fs::create_dir(data).unwrap();
        keys::create(data.join("ledger.key")).unwrap();
        fs::write(data.join("ledger.key"), key).unwrap();
    });
    // A changed entry in the mirror does not get in.
    let bundle = empty.dir.path().join("mirror/tile/entries/000");
    let sound = fs::read(&bundle).unwrap();
    let mut changed = sound.clone();
    changed[300] ^= 1;
    fs::write(&bundle, changed).unwrap();
    let report = empty.run(true, true).await;
    assert!(!report.is_sound() && !empty.data().join("state").exists(), "{report}");
    fs::write(&bundle, sound).unwrap();
    let report = empty.run(true, true).await;
    assert!(report.is_sound() && report.size == SIZE, "{report}");
    empty.starts_with_the_original_tree().await;
    // Another key's mirror is none.
    keys::create(empty.dir.path().join("strange")).unwrap();
    fs::rename(empty.dir.path().join("strange"), empty.data().join("ledger.key")).unwrap();
    let mirror = Some(empty.dir.path().join("mirror").display().to_string());
    let options = FsckOptions { data: empty.data(), keys: Vec::new(), repair: true, mirror, token: None };
    let error = fsck(options).await.unwrap_err();
    assert!(matches!(error, CouldNotCheck::Mirror(_)), "{error}");
}
