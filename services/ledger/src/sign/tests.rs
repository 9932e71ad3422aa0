//! Ledgers that publish at the same time, over a stream that fails or lies: the published checkpoints stay one sequence.

use std::{
    fs::File,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use exchequer_event::{
    accept::{Acceptor, Incoming},
    control::sign_control,
    digest::Digest,
    v1::{self, control_record::Kind},
};
use exchequer_stream::{
    Ack, AppendError, Durability, EventStream, Lease, LeaseError, LeaseOutcome, LocalStream, Message,
    ReadError, Record, RecordStream, ValueStream,
};
use exchequer_testkit::temp_dir;
use exchequer_tlog::SignedCheckpoint;
use prost::Message as _;
use tempfile::TempDir;

use super::agree::{Agreement, CHECKPOINT_KEY};
use crate::{
    integrate::Integrated,
    key::LedgerKey,
    metrics::Metrics,
    standing::{Published, Standing},
    store::{self, Disk, LogReader, LogSigner, LogWriter, Opened, Quorum, SignError},
    witness::client::Witnesses,
};

const ORIGIN: &str = "test.example/log";

/// What happens to a swap of the newest checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Swap {
    Works,
    /// It is there, and nobody is told.
    UnknownButPersisted,
    /// It is not there, and nobody is told.
    UnknownAndLost,
    Refused,
}

/// A stream that grants every lease, remembers what was published in which order, and fails once as it is told.
#[derive(Debug)]
struct Odd {
    stream: LocalStream,
    next: Mutex<Swap>,
    published: Mutex<Vec<Bytes>>,
    epoch: AtomicU64,
    _dir: TempDir,
}

impl Odd {
    fn new() -> Arc<Self> {
        let dir = temp_dir();
        let stream = LocalStream::open(dir.path()).unwrap();
        let (next, published) = (Mutex::new(Swap::Works), Mutex::default());
        Arc::new(Self { stream, next, published, epoch: AtomicU64::new(0), _dir: dir })
    }

    fn fail_once(&self, how: Swap) {
        *self.next.lock().unwrap() = how;
    }

    /// Every checkpoint that was ever published, in order.
    fn published(&self) -> Vec<SignedCheckpoint> {
        self.published.lock().unwrap().iter().map(|note| SignedCheckpoint::parse(note).unwrap()).collect()
    }
}

#[async_trait]
impl EventStream for Odd {
    async fn enqueue(&self, message: Message) -> Result<Ack, AppendError> {
        self.stream.enqueue(message).await
    }
    async fn read(&self, from: u64, filters: &[&str]) -> Result<RecordStream, ReadError> {
        self.stream.read(from, filters).await
    }
    async fn last(&self, subject: &str) -> Result<Option<Record>, ReadError> {
        self.stream.last(subject).await
    }
    async fn tip(&self) -> Result<u64, ReadError> {
        self.stream.tip().await
    }
    async fn put_latest(&self, key: &str, value: Bytes) -> Result<(), AppendError> {
        self.stream.put_latest(key, value).await
    }
    async fn latest(&self, key: &str) -> Result<Option<(Bytes, u64)>, ReadError> {
        self.stream.latest(key).await
    }
    async fn put_latest_if(&self, key: &str, value: Bytes, expected: u64) -> Result<u64, AppendError> {
        let how = std::mem::replace(&mut *self.next.lock().unwrap(), Swap::Works);
        let unknown = || Err(AppendError::Unknown("no answer in time".into()));
        match how {
            Swap::Refused => return Err(AppendError::Unavailable("it is down".into())),
            Swap::UnknownAndLost => return unknown(),
            Swap::Works | Swap::UnknownButPersisted => {}
        }
        let revision = self.stream.put_latest_if(key, value.clone(), expected).await?;
        self.published.lock().unwrap().push(value);
        if how == Swap::Works { Ok(revision) } else { unknown() }
    }
    async fn watch_latest(&self, key: &str) -> Result<ValueStream, ReadError> {
        self.stream.watch_latest(key).await
    }
    async fn acquire_lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<LeaseOutcome, LeaseError> {
        // A lease of its own for each: all of them believe to hold it.
        let own = format!("{name}-{}", self.epoch.fetch_add(1, Ordering::SeqCst));
        self.stream.acquire_lease(&own, holder, ttl).await
    }
    async fn renew_lease(&self, lease: &Lease) -> Result<Lease, LeaseError> {
        self.stream.renew_lease(lease).await
    }
    async fn release_lease(&self, lease: Lease) -> Result<(), LeaseError> {
        self.stream.release_lease(lease).await
    }
    async fn durability(&self) -> Durability {
        self.stream.durability().await
    }
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// After a genesis by the key.
fn acceptor() -> Acceptor {
    let ledger_key = Bytes::copy_from_slice(key().verifying_key().as_bytes());
    let kind = Some(Kind::Genesis(v1::Genesis { origin: ORIGIN.into(), ledger_key }));
    let record = v1::ControlRecord { kind, ..v1::ControlRecord::default() };
    let payload = sign_control(&key(), &record).encode_to_vec().into();
    let mut acceptor = Acceptor::new();
    let decided = acceptor.decide(&Incoming { stream_seq: 1, subject: "control.genesis", payload });
    decided.entries.iter().for_each(|entry| acceptor.evolve(entry));
    acceptor
}

/// A ledger's store and its part in the agreement, without a lease.
struct Node {
    writer: LogWriter,
    reader: LogReader,
    standing: Arc<Standing>,
    agreement: Agreement,
    salt: &'static str,
}

impl Node {
    fn open(dir: &Path, stream: &Arc<Odd>, salt: &'static str) -> Self {
        let tree = store::open(Arc::new(Disk), dir, ORIGIN).unwrap();
        let acceptor = acceptor();
        let Opened { writer, reader, checkpoints } =
            tree.with_keys(acceptor.keys(), Quorum::default()).unwrap();
        let published =
            checkpoints.published().map_or_else(Published::default, |last| Published::new(last, 1));
        let standing = Arc::new(Standing::new(&acceptor, writer.position().clone(), published));
        let key = LedgerKey::new(ORIGIN, dir.join("ledger.key"), key()).unwrap();
        let lock = Arc::new(File::create(dir.join("lock")).unwrap());
        let metrics = Metrics::new(Arc::downgrade(&standing));
        let agreement = Agreement {
            checkpoints: Arc::new(Mutex::new(checkpoints)),
            witnesses: Witnesses::new(&[], 0).unwrap(),
            reader: reader.clone(),
            standing: standing.clone(),
            stream: stream.clone(),
            key,
            origin: ORIGIN.to_owned(),
            metrics,
            _lock: lock,
        };
        Self { writer, reader, standing, agreement, salt }
    }

    /// Commits entries up to a size.
    fn grow(&mut self, until: u64) {
        let position = self.writer.position().clone();
        if until <= position.size {
            return;
        }
        let entry = |index: u64| Bytes::from(format!("{} {index}", self.salt));
        let entries: Vec<_> = (position.size..until).map(entry).collect();
        self.writer.commit(&entries, position.cursor + 1, Digest([1; 32])).unwrap();
        self.standing.committed(self.writer.position().clone(), &Integrated::default(), &acceptor());
        self.reader.remove_superseded().unwrap();
    }

    fn published(&self) -> Published {
        self.standing.published.borrow().clone()
    }
}

fn history(dir: &Path) -> Vec<SignedCheckpoint> {
    let text = std::fs::read_to_string(dir.join("checkpoints/00000000")).unwrap_or_default();
    let mut notes = Vec::new();
    let mut rest = &text[..];
    while let Some((header, tail)) = rest.split_once('\n') {
        let length: usize = header.split(' ').nth(1).unwrap().parse().unwrap();
        notes.push(SignedCheckpoint::parse(&tail.as_bytes()[..length]).unwrap());
        rest = &tail[length..];
    }
    notes
}

fn size(signed: &SignedCheckpoint) -> u64 {
    signed.checkpoint().size()
}

/// Every checkpoint is of the tree, and no size comes after a larger one.
fn check_sequence(checkpoints: &[SignedCheckpoint], reader: &LogReader) {
    for signed in checkpoints {
        assert_eq!(*signed.checkpoint().root(), reader.root(size(signed)).unwrap(), "{}", size(signed));
    }
    assert!(checkpoints.is_sorted_by_key(size), "{:?}", checkpoints.iter().map(size).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn ledgers_that_all_believe_to_hold_the_lease_publish_one_sequence() {
    const UNTIL: u64 = 600;
    let (stream, dirs) = (Odd::new(), [temp_dir(), temp_dir(), temp_dir()]);
    let running = dirs.iter().zip([1u64, 3, 7]).map(|(dir, step)| {
        let mut node = Node::open(dir.path(), &stream, "entry");
        let stream = stream.clone();
        tokio::spawn(async move {
            let mut seen = 0;
            while node.published().size < UNTIL {
                node.grow((node.writer.position().size + step).min(UNTIL));
                match node.agreement.publish().await {
                    Ok(_) | Err(SignError::Contended | SignError::Behind { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                // Now and then an answer is lost.
                if node.published().size.is_multiple_of(5) {
                    stream.fail_once(Swap::UnknownButPersisted);
                }
                assert!(node.published().size >= seen, "what is visible went backwards");
                seen = node.published().size;
            }
            node
        })
    });
    let nodes: Vec<Node> = futures::future::join_all(running).await.into_iter().map(Result::unwrap).collect();
    let published = stream.published();
    check_sequence(&published, &nodes[0].reader);
    assert!(published.windows(2).all(|two| size(&two[0]) < size(&two[1])), "a size was published twice");
    assert!(published.len() > 3);
    for (node, dir) in nodes.iter().zip(&dirs) {
        check_sequence(&history(dir.path()), &nodes[0].reader);
        assert_eq!(node.published().note, published.last().unwrap().to_string().as_bytes());
        let served = std::fs::read(dir.path().join("log/checkpoint")).unwrap();
        assert_eq!(served, node.published().note);
    }
    // Each goes on after a crash, from what it kept.
    drop(nodes);
    for dir in &dirs {
        let mut node = Node::open(dir.path(), &stream, "entry");
        node.grow(node.writer.position().size + 1);
        node.agreement.publish().await.unwrap();
        assert_eq!(node.published().size, node.writer.position().size);
    }
}

#[tokio::test]
async fn a_swap_whose_answer_is_lost_is_read_back_and_one_that_fails_leaves_what_was_kept_for_the_next() {
    let (stream, dir) = (Odd::new(), temp_dir());
    let mut node = Node::open(dir.path(), &stream, "entry");
    node.grow(10);
    stream.fail_once(Swap::UnknownButPersisted);
    node.agreement.publish().await.unwrap();
    assert_eq!(node.published().size, 10);
    assert_eq!((stream.published().len(), history(dir.path()).len()), (1, 1), "signed once, published once");

    node.grow(20);
    stream.fail_once(Swap::UnknownAndLost);
    node.agreement.publish().await.unwrap();
    assert_eq!((node.published().size, stream.published().len(), history(dir.path()).len()), (20, 2, 2));

    node.grow(30);
    stream.fail_once(Swap::Refused);
    let refused = node.agreement.publish().await.unwrap_err();
    assert!(matches!(refused, SignError::Append(AppendError::Unavailable(_))), "{refused}");
    assert_eq!(node.published().size, 20, "nobody sees what was not published");
    assert_eq!(size(history(dir.path()).last().unwrap()), 30, "it is kept");
    let served =
        || SignedCheckpoint::parse(&std::fs::read(dir.path().join("log/checkpoint")).unwrap()).unwrap();
    assert_eq!(size(&served()), 20);
    drop(node);
    let mut node = Node::open(dir.path(), &stream, "entry");
    assert_eq!((node.published().size, size(&served())), (20, 20), "nor after a start");
    node.agreement.publish().await.unwrap();
    assert_eq!((node.published().size, history(dir.path()).len()), (30, 3), "the kept one, not another");
    node.grow(31);
    node.agreement.publish().await.unwrap();
    check_sequence(&stream.published(), &node.reader);
}

#[tokio::test]
async fn who_is_behind_waits_and_then_serves_the_very_same_checkpoint() {
    let (stream, dirs) = (Odd::new(), [temp_dir(), temp_dir()]);
    let mut ahead = Node::open(dirs[0].path(), &stream, "entry");
    let mut behind = Node::open(dirs[1].path(), &stream, "entry");
    ahead.grow(300);
    ahead.agreement.publish().await.unwrap();
    behind.grow(299);
    let is_behind = |error| matches!(error, SignError::Behind { published: 300, size: 299 });
    assert!(is_behind(behind.agreement.follow().await.unwrap_err()));
    assert!(is_behind(behind.agreement.publish().await.unwrap_err()));
    assert_eq!(
        (behind.published().size, history(dirs[1].path()).len()),
        (0, 0),
        "nothing is signed meanwhile"
    );
    // It never is of just that size, and serves its files nevertheless.
    behind.grow(700);
    behind.agreement.follow().await.unwrap();
    assert_eq!(behind.published().note, ahead.published().note);
    assert_eq!(history(dirs[1].path()), history(dirs[0].path()));
    for file in ["checkpoint", "tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/001.p/44"] {
        let [one, other] = [&dirs[0], &dirs[1]].map(|dir| std::fs::read(dir.path().join("log").join(file)));
        assert_eq!(one.unwrap(), other.unwrap(), "{file}");
    }
    behind.agreement.publish().await.unwrap();
    assert_eq!(behind.published().size, 700);
}

#[tokio::test]
async fn who_finds_another_tree_published_signs_nothing() {
    let (stream, dirs) = (Odd::new(), [temp_dir(), temp_dir()]);
    let mut one = Node::open(dirs[0].path(), &stream, "entry");
    let mut other = Node::open(dirs[1].path(), &stream, "another");
    one.grow(10);
    other.grow(20);
    one.agreement.publish().await.unwrap();
    for _ in 0..2 {
        let refused = other.agreement.publish().await.unwrap_err();
        assert!(refused.is_fork(), "{refused}");
    }
    assert_eq!((stream.published().len(), history(dirs[1].path()).len()), (1, 0));
}

#[tokio::test]
async fn what_is_no_checkpoint_of_a_ledger_key_is_not_published_over() {
    let (stream, dir) = (Odd::new(), temp_dir());
    let mut node = Node::open(dir.path(), &stream, "entry");
    node.grow(10);
    let position = node.writer.position().clone();
    let foreign = {
        let elsewhere = temp_dir();
        let tree = store::open(Arc::new(Disk), elsewhere.path(), ORIGIN).unwrap();
        let mut opened = tree.with_keys(&[], Quorum::default()).unwrap();
        let signer = LogSigner::new(ORIGIN, &SigningKey::from_bytes(&[9; 32])).unwrap();
        opened.checkpoints.sign(&node.reader, &position, &signer, 1).unwrap().to_string()
    };
    // Its size is beyond the own tree, and not what the key signed.
    let altered = {
        let elsewhere = temp_dir();
        let tree = store::open(Arc::new(Disk), elsewhere.path(), ORIGIN).unwrap();
        let mut opened = tree.with_keys(acceptor().keys(), Quorum::default()).unwrap();
        let signer = LogSigner::new(ORIGIN, &key()).unwrap();
        let signed = opened.checkpoints.sign(&node.reader, &position, &signer, 1).unwrap().to_string();
        signed.replacen("\n10\n", "\n1000\n", 1)
    };
    let foreign = [(foreign, true), (altered, true)];
    for (value, is_foreign) in [(String::new(), false), ("junk".to_owned(), false)].into_iter().chain(foreign)
    {
        stream.put_latest(CHECKPOINT_KEY, value.clone().into()).await.unwrap();
        let refused = node.agreement.publish().await.unwrap_err();
        assert_eq!(matches!(refused, SignError::Foreign(_)), is_foreign, "{refused}");
        assert!(is_foreign || matches!(refused, SignError::NoCheckpoint(_)), "{refused}");
        assert_eq!(stream.latest(CHECKPOINT_KEY).await.unwrap().unwrap().0, value);
    }
}

#[tokio::test]
async fn a_stream_that_lost_the_newest_checkpoint_is_given_it_again() {
    let (stream, dir) = (Odd::new(), temp_dir());
    let mut node = Node::open(dir.path(), &stream, "entry");
    node.grow(10);
    node.agreement.publish().await.unwrap();
    let older = node.published().note;
    node.grow(20);
    node.agreement.publish().await.unwrap();
    let newest = node.published().note;
    stream.put_latest(CHECKPOINT_KEY, older).await.unwrap();
    node.agreement.follow().await.unwrap();
    assert_eq!(node.published().note, newest, "nobody sees it go backwards");
    node.agreement.publish().await.unwrap();
    assert_eq!(stream.latest(CHECKPOINT_KEY).await.unwrap().unwrap().0, newest);
    assert_eq!(history(dir.path()).len(), 2);
}
