//! `exchequer verify-replay`: the budget state, rebuilt from nothing and compared with what metering holds.
//!
//! Left out: the fold itself (`exchequer-metering`), and whether the stream is the log's, which `verify` shows of the log. Invariant: what
//! is said to be equal was reached from the stream's first message with no snapshot's help.

use std::{
    cmp::Reverse,
    fmt::Write as _,
    fs::File,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use exchequer_event::{digest::Digest, v1};
use exchequer_metering::{Fold, Folded, Read, Snapshots, agreed, partition};
use exchequer_stream::{EventStream, JetStream, LocalStream, jetstream};
use futures::StreamExt as _;
use serde::Serialize;
use tokio::time::timeout;

use crate::{
    client::Connection,
    print::{self, Format},
    progress::Shown,
};

/// A message that does not come within this time does not come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Rebuild the budgets from the stream's first message and compare them with metering's snapshots
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  exchequer verify-replay                                               an `exchequer up` that is stopped
  exchequer verify-replay --nats nats://127.0.0.1:4222 --metering /data      stopped metering of a deployment
  exchequer verify-replay --nats nats://127.0.0.1:4222 --running --token @auditor.token

Every message is read from the first on, accepted or refused by the protocol's rules, and folded; at the stream sequence of each
snapshot the BLAKE3 of the canonical state is compared with the snapshot's. --running asks GetPosition of metering that runs, for its
snapshots and for where it stands now; otherwise the snapshots in its data directory are read, which nobody may be using.
Exit status: 0 every one is equal, 1 one is not, 2 it could not be compared, or there is nothing to compare with.")]
pub struct VerifyReplay {
    /// The embedded stream's directory [default: `stream` in the data directory]
    #[arg(long, value_name = "DIR", conflicts_with = "nats")]
    stream: Option<PathBuf>,
    /// Read the stream of this NATS server
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// Credentials for it
    #[arg(long, value_name = "FILE", requires = "nats")]
    nats_credentials: Option<PathBuf>,
    /// The deployment's prefix there, as in [stream]
    #[arg(long, value_name = "PREFIX", requires = "nats")]
    nats_prefix: Option<String>,
    /// Metering's data directory [default: `metering` in the data directory]
    #[arg(long, value_name = "DIR", conflicts_with = "running")]
    metering: Option<PathBuf>,
    /// Compare with metering that runs; the stream has to be NATS
    #[arg(long, requires = "nats")]
    running: bool,
    /// One partition [default: all]
    #[arg(long, value_name = "N")]
    partition: Option<u16>,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

/// A state that metering says it had.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    what: String,
    partition: u16,
    stream_seq: u64,
    digest: Digest,
}

/// A claim, compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Compared {
    what: String,
    partition: u16,
    stream_seq: u64,
    claimed: String,
    /// None where the stream has no message of that sequence.
    replayed: Option<String>,
    equal: bool,
}

/// What a replay came to.
#[derive(Clone, Debug, Default, Serialize)]
struct Outcome {
    /// Stream sequence of the last message.
    stream_seq: u64,
    /// BLAKE3 budget state digest of each partition there.
    state_digests: Vec<String>,
    messages: u64,
    blocks: u64,
    void_blocks: u64,
    decisions: u64,
    seconds: f64,
    decisions_per_s: u64,
    compared: Vec<Compared>,
    /// Snapshots that could not be read.
    unreadable: Vec<String>,
}

/// The digest of a partition's state, as snapshots and positions have it.
fn digest_of(fold: &Fold, partition: u16) -> Digest {
    Digest(fold.budget(partition).digest(fold.past(partition)))
}

/// A replay under way.
struct Replay {
    fold: Fold,
    /// What is still to be compared, the next one last.
    claims: Vec<Claim>,
    outcome: Outcome,
}

impl Replay {
    fn new(partitions: u16, mut claims: Vec<Claim>) -> Self {
        let place = |claim: &Claim| (claim.stream_seq, claim.partition, claim.what.clone());
        claims.sort_by_key(|claim| Reverse(place(claim)));
        Self { fold: Fold::new(partitions), claims, outcome: Outcome::default() }
    }

    fn digest(&self, partition: u16) -> Digest {
        digest_of(&self.fold, partition)
    }

    fn take(&mut self, read: Read<'_>) {
        self.compare_before(read.seq);
        match self.fold.fold(read) {
            Folded::Block { runs, .. } => {
                self.outcome.blocks += 1;
                self.outcome.decisions += runs.iter().map(|run| run.decisions.len() as u64).sum::<u64>();
            }
            Folded::VoidBlock { .. } => self.outcome.void_blocks += 1,
            Folded::Other => {}
        }
        self.outcome.messages += 1;
    }

    /// Compares the claims about states before the message of this sequence.
    fn compare_before(&mut self, seq: u64) {
        while let Some(claim) = self.claims.pop_if(|claim| claim.stream_seq < seq) {
            let here = self.fold.cursor() == claim.stream_seq;
            let replayed = here.then(|| self.digest(claim.partition));
            self.outcome.compared.push(Compared {
                what: claim.what,
                partition: claim.partition,
                stream_seq: claim.stream_seq,
                claimed: claim.digest.to_string(),
                equal: replayed == Some(claim.digest),
                replayed: replayed.map(|digest| digest.to_string()),
            });
        }
    }

    fn finish(mut self, elapsed: Duration, unreadable: Vec<String>) -> Outcome {
        self.compare_before(u64::MAX);
        let digests =
            (0..self.fold.partitions()).map(|partition| self.digest(partition).to_string()).collect();
        let mut outcome = self.outcome;
        outcome.stream_seq = self.fold.cursor();
        outcome.state_digests = digests;
        outcome.seconds = elapsed.as_secs_f64();
        let rate = u128::from(outcome.decisions) * 1_000_000 / elapsed.as_micros().max(1);
        outcome.decisions_per_s = u64::try_from(rate).unwrap_or(u64::MAX);
        outcome.unreadable = unreadable;
        outcome
    }
}

impl Outcome {
    fn exit_code(&self) -> u8 {
        let differs = |compared: &Compared| compared.replayed.is_some() && !compared.equal;
        if self.compared.iter().any(differs) {
            1
        } else if self.compared.is_empty() || self.compared.iter().any(|compared| !compared.equal) {
            2
        } else {
            0
        }
    }

    fn text(&self) -> String {
        let mut text = match self.exit_code() {
            0 => "EQUAL".to_owned(),
            1 => "DIFFERENT".to_owned(),
            _ => "COULD NOT COMPARE".to_owned(),
        };
        // Writing to a string can't fail.
        let _ = write!(
            text,
            ": {} {} replayed to stream sequence {}",
            self.state_digests.len(),
            if self.state_digests.len() == 1 { "partition" } else { "partitions" },
            self.stream_seq
        );
        for (partition, digest) in self.state_digests.iter().enumerate() {
            let _ = write!(text, "\n  state      {digest} of partition {partition}");
        }
        let void = match self.void_blocks {
            0 => String::new(),
            void => format!(", {void} void blocks of fenced writers"),
        };
        let _ = write!(
            text,
            "\n  replayed   {} messages, {} blocks{void}, {} decisions in {:.1} s: {} decisions/s",
            self.messages, self.blocks, self.decisions, self.seconds, self.decisions_per_s
        );
        for Compared { what, partition, stream_seq, claimed, replayed, equal } in &self.compared {
            let what = format!("{what} of partition {partition}");
            let _ = match (replayed, equal) {
                (_, true) => write!(text, "\n  equal      {what} at {stream_seq}"),
                (Some(replayed), false) => write!(
                    text,
                    "\n  DIFFERENT  {what} at {stream_seq}\n      claimed  {claimed}\n      replayed {replayed}"
                ),
                (None, false) => write!(
                    text,
                    "\n  missing    {what} at {stream_seq}: the stream holds no message of that sequence"
                ),
            };
        }
        for unreadable in &self.unreadable {
            let _ = write!(text, "\n  note       {unreadable}");
        }
        if self.compared.is_empty() {
            text += "\n  note       there is no snapshot to compare with";
        }
        text
    }
}

impl VerifyReplay {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        // What is stored is read first: it says whether the service is stopped.
        let stored = if self.running {
            None
        } else {
            let dir = self.metering.clone().unwrap_or_else(|| self.connection.data.join("metering"));
            Some(tokio::task::spawn_blocking(move || stored(&dir)).await??)
        };
        let stream = self.open().await?;
        let partitions = agreed(stream.as_ref()).await.context("the stream")?;
        if let Some(partition) = self.partition.filter(|partition| *partition >= partitions) {
            bail!("there is no partition {partition}: the stream has {partitions}");
        }
        let (mut claims, unreadable) = match stored {
            Some(stored) => claims_of(stored, partitions),
            None => (self.ask(partitions).await?, Vec::new()),
        };
        claims.retain(|claim| self.partition.is_none_or(|only| claim.partition == only));
        let mut replay = Replay::new(partitions, claims);
        let elapsed = read_all(stream.as_ref(), &mut replay).await?;
        let outcome = replay.finish(elapsed, unreadable);
        match self.format {
            Format::Text => print::text(&outcome.text())?,
            Format::Json => print::json(&serde_json::to_value(&outcome)?)?,
        }
        Ok(ExitCode::from(outcome.exit_code()))
    }

    async fn open(&self) -> anyhow::Result<Arc<dyn EventStream>> {
        if let Some(url) = &self.nats {
            jetstream::check_url(url).map_err(anyhow::Error::msg).context("--nats")?;
            let mut options = jetstream::Options::new(url.clone());
            options.credentials.clone_from(&self.nats_credentials);
            options.prefix.clone_from(&self.nats_prefix);
            return Ok(Arc::new(JetStream::connect(options).await.context("--nats")?));
        }
        let dir = self.stream.clone().unwrap_or_else(|| self.connection.data.join("stream"));
        // Opening makes what is not there.
        if !dir.is_dir() {
            bail!("{} is no stream's directory; --stream or --nats says where the stream is", dir.display());
        }
        let opened = tokio::task::spawn_blocking(move || LocalStream::open(&dir)).await?;
        Ok(Arc::new(opened.context("the stream (is what uses it stopped?)")?))
    }

    /// What metering that runs says of itself.
    async fn ask(&self, partitions: u16) -> anyhow::Result<Vec<Claim>> {
        let mut client = self.connection.metering().await?;
        let mut claims = Vec::new();
        for partition in 0..partitions {
            let request = v1::GetPositionRequest { partition: partition::name(partition) };
            let position = client.get_position(request).await?.into_inner();
            let mut claim = |what: &str, stream_seq: u64, digest: &[u8]| {
                let digest =
                    Digest::from_slice(digest).context("metering answered a digest of another length")?;
                claims.push(Claim { what: what.to_owned(), partition, stream_seq, digest });
                anyhow::Ok(())
            };
            claim("the running state", position.stream_seq, &position.state_digest)?;
            for snapshot in &position.snapshots {
                claim("snapshot", snapshot.stream_seq, &snapshot.state_digest)?;
            }
        }
        // Before the first message there is nothing to be equal.
        claims.retain(|claim| claim.stream_seq > 0);
        Ok(claims)
    }
}

/// Reads and folds all that the stream holds now.
async fn read_all(stream: &dyn EventStream, replay: &mut Replay) -> anyhow::Result<Duration> {
    let tip = stream.tip().await.context("the stream")?;
    if tip == 0 {
        bail!("the stream is empty");
    }
    let mut records = stream.read(1, &[]).await.context("the stream")?;
    let mut shown = Shown::of("replayed", "messages");
    let begun = Instant::now();
    loop {
        let next = timeout(PATIENCE, records.next()).await;
        let record = next.context("the stream gives no further message")?.context("the stream ended")??;
        if replay.outcome.messages == 0 && record.seq > 1 {
            bail!(
                "the stream begins with message {}: what came before can't be replayed from it",
                record.seq
            );
        }
        replay.take(Read { seq: record.seq, subject: &record.subject, payload: &record.payload });
        shown.update(record.seq, tip);
        if record.seq >= tip {
            return Ok(begun.elapsed());
        }
    }
}

/// Snapshots by the sequence that they are kept under, and what else is to be said.
struct Stored {
    snapshots: Vec<(u64, Result<Fold, String>)>,
    notes: Vec<String>,
}

/// The snapshots in the data directory of metering that is stopped.
fn stored(data: &Path) -> anyhow::Result<Stored> {
    let dir = data.join("snapshots");
    // Opening makes what is not there, and sets aside what can't be opened.
    if !dir.is_dir() {
        bail!("{} holds no snapshots of metering; --metering says where its data is", data.display());
    }
    let lock = File::open(data.join("metering.lock")).with_context(|| data.display().to_string())?;
    if lock.try_lock().is_err() {
        bail!("{} is in use by another process; --running asks metering that runs", data.display());
    }
    let (snapshots, aside) = Snapshots::open(&dir).with_context(|| dir.display().to_string())?;
    let notes = aside
        .map(|aside| format!("the snapshots can't be opened and were moved to {}", aside.display()))
        .into_iter()
        .collect();
    Ok(Stored { snapshots: snapshots.all(), notes })
}

/// What the snapshots say of each partition, and what is wrong with those that say nothing.
fn claims_of(stored: Stored, partitions: u16) -> (Vec<Claim>, Vec<String>) {
    let (mut claims, mut notes) = (Vec::new(), stored.notes);
    for (stream_seq, read) in stored.snapshots {
        match read {
            Ok(fold) if fold.partitions() == partitions => {
                claims.extend((0..partitions).map(|partition| Claim {
                    what: "snapshot".to_owned(),
                    partition,
                    stream_seq: fold.cursor(),
                    digest: digest_of(&fold, partition),
                }));
            }
            Ok(fold) => notes.push(format!(
                "the snapshot at {stream_seq} is of a stream with {} partitions, and not {partitions}",
                fold.partitions()
            )),
            Err(fault) => notes.push(format!("the snapshot at {stream_seq} can't be read: {fault}")),
        }
    }
    (claims, notes)
}

#[cfg(test)]
mod tests {
    use exchequer_event::seal::{self, BlockPlace};
    use prost::{Message as _, bytes::Bytes};

    use super::*;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    fn claim(stream_seq: u64, digest: Digest) -> Claim {
        Claim { what: "snapshot".to_owned(), partition: 0, stream_seq, digest }
    }

    /// Messages 1, 2 and 4, none of which changes a budget.
    fn replay(claims: Vec<Claim>) -> Outcome {
        let mut replay = Replay::new(2, claims);
        let place = BlockPlace {
            partition: "0".into(),
            epoch: 1,
            index: 1,
            prev_hash: Digest::ZERO,
            now_unix_ms: 1,
            usage_cursor: 0,
        };
        let key = ed25519_dalek::SigningKey::from_bytes(&[9; 32]);
        let block: Bytes = seal::seal_block(&key, place, Vec::new()).encode_to_vec().into();
        for seq in [1, 2, 4] {
            replay.take(Read { seq, subject: "budget.0", payload: &block });
        }
        replay.finish(Duration::from_secs(2), Vec::new())
    }

    #[test]
    fn each_claim_is_compared_with_the_state_at_its_sequence() {
        let empty = digest_of(&Fold::new(2), 0);
        let check = |claims: Vec<Claim>, equal: &[bool], status: u8| {
            let outcome = replay(claims);
            let found: Vec<_> = outcome.compared.iter().map(|compared| compared.equal).collect();
            assert_eq!((found.as_slice(), outcome.exit_code()), (equal, status), "{}", outcome.text());
        };
        check(vec![claim(4, empty), claim(2, empty)], &[true, true], 0);
        check(vec![claim(4, digest(1)), claim(2, empty)], &[true, false], 1);
        // Of a sequence that the stream does not have, or not yet, nothing can be said.
        check(vec![claim(3, empty)], &[false], 2);
        check(vec![claim(5, empty), claim(2, empty)], &[true, false], 2);
        check(Vec::new(), &[], 2);
        check(vec![claim(3, empty), claim(4, digest(1))], &[false, false], 1);
    }

    #[test]
    fn a_replay_says_what_was_read_and_what_differs() {
        let outcome = replay(vec![claim(4, digest(1))]);
        // The blocks are by a key that no genesis enrolled.
        assert_eq!((outcome.messages, outcome.blocks, outcome.void_blocks), (3, 0, 3));
        let text = outcome.text();
        for part in ["DIFFERENT: 2 partitions replayed to stream sequence 4", "3 messages", "claimed  0101"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
