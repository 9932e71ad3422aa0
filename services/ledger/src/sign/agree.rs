//! Agreement on the newest checkpoint: one value of the stream holds it, and whoever publishes swaps it there for the one that it has
//! compared itself with.
//!
//! The order is: what is published is read, verified and taken up → the own tree is signed and the checkpoint kept → the witnesses
//! cosign it, and it is kept so → it is swapped in → only then anybody sees it. Two that sign at the same time, each believing to hold
//! the lease, can't both swap; the other reads again. Who does not sign takes up what is published as soon as it has that tree, so that every ledger serves the same files.
//!
//! Left out: the lease, which only saves work. Invariant: the published checkpoints of all ledgers of a log are one sequence, each of
//! which has the one before as its prefix, and a ledger that finds another tree published never signs again.

use std::{
    collections::BTreeMap,
    fs::File,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use exchequer_stream::{AppendError, EventStream};
use exchequer_tlog::SignedCheckpoint;

use super::unix_s;
use crate::{
    integrate::AgentOutcome,
    key::LedgerKey,
    metrics::Metrics,
    standing::{Due, Published, Standing},
    store::{CheckpointLog, LogKeys, LogReader, Position, SignError, StoreError},
    witness::client::Witnesses,
};

/// Key of the newest checkpoint among the stream's latest values.
pub(crate) const CHECKPOINT_KEY: &str = "checkpoint";
/// Attempts against others that publish at the same time.
const ATTEMPTS: usize = 5;

/// What is published by whomever, and has been taken up here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Followed {
    /// The value's revision; 0 if nothing was ever published.
    revision: u64,
    /// Entries that it covers.
    size: u64,
}

/// Publishes and follows checkpoints.
#[derive(Clone, Debug)]
pub(crate) struct Agreement {
    pub(crate) checkpoints: Arc<Mutex<CheckpointLog>>,
    pub(crate) witnesses: Witnesses,
    pub(crate) reader: LogReader,
    pub(crate) standing: Arc<Standing>,
    pub(crate) stream: Arc<dyn EventStream>,
    pub(crate) key: LedgerKey,
    pub(crate) origin: String,
    pub(crate) metrics: Metrics,
    /// As the pipeline's: a signature may outlive the service that was dropped.
    pub(crate) _lock: Arc<File>,
}

impl Agreement {
    /// Takes up what is published, which is an error as long as it is beyond the own tree.
    pub(crate) async fn follow(&self) -> Result<Followed, SignError> {
        let Some((note, revision)) = self.stream.latest(CHECKPOINT_KEY).await? else {
            return Ok(Followed { revision: 0, size: 0 });
        };
        let published = self.standing.published.borrow().clone();
        if published.size > 0 && note == published.note {
            return Ok(Followed { revision, size: published.size });
        }
        let signed = SignedCheckpoint::parse(&note).map_err(SignError::NoCheckpoint)?;
        let size = signed.checkpoint().size();
        let (position, keys) = self.standing.at();
        let keys = LogKeys::new(&self.origin, &keys);
        if size > position.size {
            keys.check_beyond(&signed)?;
            return Err(SignError::Behind { published: size, size: position.size });
        }
        self.blocking(move |this, checkpoints| {
            checkpoints.take_up(&this.reader, &signed, &keys)?;
            // An older one than what is visible here: the stream lost the newer one. It is compared, and published over.
            if size >= published.size { this.show(checkpoints, &signed) } else { Ok(()) }
        })
        .await?;
        Ok(Followed { revision, size })
    }

    /// Signs the committed tree if it grew over what is published, and publishes it; the receipts that are covered now.
    pub(crate) async fn publish(&self) -> Result<BTreeMap<String, AgentOutcome>, SignError> {
        for _ in 0..ATTEMPTS {
            let over = self.follow().await?;
            let Due { position, keys, receipts } = self.standing.take_due(&self.reader);
            let size = position.size;
            let keys = LogKeys::new(&self.origin, &keys);
            let outcome = self.publish_over(over, position, keys).await;
            if matches!(outcome, Ok(true)) && self.standing.published.borrow().size >= size {
                return Ok(receipts);
            }
            self.standing.give_back(receipts);
            outcome?;
        }
        Err(SignError::Contended)
    }

    /// Signs a tree and publishes it over what was read. Whether it is done: if not, what is published is to be read again.
    async fn publish_over(
        &self,
        over: Followed,
        position: Position,
        keys: LogKeys,
    ) -> Result<bool, SignError> {
        if position.size == 0 {
            return Ok(true);
        }
        let key = self.key.current();
        if !keys.may_sign(&key.public(), position.size) {
            return Err(SignError::Key { size: position.size });
        }
        if position.size <= over.size {
            return Ok(true);
        }
        let sign = move |this: &Self, checkpoints: &mut CheckpointLog| {
            checkpoints.sign(&this.reader, &position, &key.signer, unix_s())
        };
        // From here on the checkpoint is kept, and nobody but this ledger and its witnesses knows it.
        let mut signed = self.blocking(sign).await?;
        self.cosign(&mut signed).await?;
        let settle = move |_: &Self, checkpoints: &mut CheckpointLog| {
            checkpoints.settle(&signed, &keys)?;
            Ok(signed)
        };
        let signed = self.blocking(settle).await?;
        let note = Bytes::from(signed.to_string());
        match self.stream.put_latest_if(CHECKPOINT_KEY, note, over.revision).await {
            Ok(_) => {}
            // What stands there may be ours nevertheless.
            Err(AppendError::WrongLast { .. } | AppendError::Unknown(_)) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        self.metrics.signed();
        self.blocking(move |this, checkpoints| this.show(checkpoints, &signed)).await?;
        Ok(true)
    }

    /// Adds the cosignatures of the witnesses; an error if they are too few to publish it.
    async fn cosign(&self, signed: &mut SignedCheckpoint) -> Result<(), SignError> {
        let Some(cosigning) = self.witnesses.cosign(signed, &self.reader).await else { return Ok(()) };
        self.metrics.cosigned(&cosigning);
        let (size, needed, got) = (signed.checkpoint().size(), cosigning.needed, cosigning.by.len());
        self.standing.report_witnesses(cosigning);
        if got < needed { Err(SignError::Quorum { size, needed, got }) } else { Ok(()) }
    }

    /// Makes a published checkpoint visible here.
    fn show(&self, checkpoints: &mut CheckpointLog, signed: &SignedCheckpoint) -> Result<(), SignError> {
        checkpoints.publish(&self.reader, signed)?;
        self.standing.published.send_replace(Published::new(signed, unix_s()));
        self.reader.remove_superseded()?;
        Ok(())
    }

    /// Runs file operations where they may block.
    async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Self, &mut CheckpointLog) -> Result<T, SignError> + Send + 'static,
    ) -> Result<T, SignError> {
        let this = self.clone();
        let running = tokio::task::spawn_blocking(move || {
            let mut checkpoints = this.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
            act(&this, &mut checkpoints)
        });
        running.await.unwrap_or_else(|error| {
            let source = std::io::Error::other(error);
            Err(StoreError::Io { path: "checkpoint".into(), source }.into())
        })
    }
}
