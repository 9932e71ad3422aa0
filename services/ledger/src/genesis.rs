//! The first record of the log: written to an empty stream, compared with everywhere else.
//!
//! Left out: rotation of the ledger's key. Invariant: a ledger runs only over a stream and a log whose genesis names its own origin
//! and its own key.

use ed25519_dalek::VerifyingKey;
use exchequer_event::{
    accept::{Acceptor, Incoming, Outcome},
    v1::{self, KeyRole, control_record::Kind},
};
use exchequer_stream::{AppendError, EventStream, ReadError};
use futures::StreamExt as _;

use crate::control::ControlWriter;

const SUBJECT: &str = "control.genesis";

/// The stream or the log is not this ledger's.
#[derive(Debug, thiserror::Error)]
pub enum GenesisError {
    /// Another log's.
    #[error("the genesis names the log `{found}`, this ledger is configured for `{configured}`")]
    Origin {
        /// Origin of the genesis.
        found: String,
        /// Origin of the configuration.
        configured: String,
    },
    /// Another key's.
    #[error("the genesis of `{origin}` names another ledger key than this ledger's {key}")]
    Key {
        /// Origin of the genesis.
        origin: String,
        /// This ledger's key in hex.
        key: String,
    },
    /// The stream can't be read.
    #[error("the stream's genesis can't be read: {0}")]
    Read(#[from] ReadError),
    /// The stream takes no genesis.
    #[error("the genesis can't be appended: {0}")]
    Append(#[from] AppendError),
}

/// Makes sure that the log's genesis is this ledger's, and that there is one.
pub(crate) async fn ensure(
    stream: &dyn EventStream,
    acceptor: &Acceptor,
    cursor: u64,
    control: &ControlWriter,
    origin: &str,
    key: &VerifyingKey,
) -> Result<(), GenesisError> {
    if !acceptor.origin().is_empty() {
        return check(acceptor, origin, key);
    }
    loop {
        let last = stream.last(SUBJECT).await?.map_or(0, |record| record.seq);
        if let Some(found) = find(stream, cursor, last).await? {
            return check(&found, origin, key);
        }
        let genesis = v1::Genesis { origin: origin.to_owned(), ledger_key: key.as_bytes().to_vec().into() };
        match stream.append(control.message("ledger", Kind::Genesis(genesis)).expecting(last)).await {
            // Somebody else's came first, or perhaps ours is there: what stands there is read in the next round.
            Ok(_) | Err(AppendError::WrongLast { .. } | AppendError::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the first genesis up to `last` is of this origin and key, if there is one.
pub(crate) async fn compare(
    stream: &dyn EventStream,
    last: u64,
    origin: &str,
    key: VerifyingKey,
) -> Result<(), GenesisError> {
    let newest = stream.last(SUBJECT).await?.map_or(0, |record| record.seq);
    match find(stream, 0, newest.min(last)).await? {
        Some(found) => check(&found, origin, &key),
        None => Ok(()),
    }
}

/// The state after the first genesis that an acceptor takes, if there is one up to `last`.
async fn find(stream: &dyn EventStream, cursor: u64, last: u64) -> Result<Option<Acceptor>, ReadError> {
    if last <= cursor {
        return Ok(None);
    }
    let mut records = stream.read(cursor + 1, &[SUBJECT]).await?;
    let mut first = Acceptor::new();
    while let Some(record) = records.next().await {
        let record = record?;
        let message =
            Incoming { stream_seq: record.seq, subject: &record.subject, payload: record.payload.clone() };
        let decided = first.decide(&message);
        decided.entries.iter().for_each(|entry| first.evolve(entry));
        if decided.outcome == Outcome::Control {
            return Ok(Some(first));
        }
        if record.seq >= last {
            return Ok(None);
        }
    }
    Err(ReadError::Unavailable("the stream ended before its last genesis".to_owned()))
}

fn check(acceptor: &Acceptor, origin: &str, key: &VerifyingKey) -> Result<(), GenesisError> {
    let found = acceptor.origin().to_owned();
    if found != origin {
        return Err(GenesisError::Origin { found, configured: origin.to_owned() });
    }
    if acceptor.may_sign(KeyRole::Ledger, "ledger", key) {
        return Ok(());
    }
    Err(GenesisError::Key { origin: found, key: hex::encode(key.as_bytes()) })
}
