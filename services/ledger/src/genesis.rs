//! The first record of the log: written to an empty stream, compared with everywhere else.
//!
//! Left out: whether the key may still sign, which the signer asks each time. Invariant: a ledger runs only over a stream and a log
//! whose genesis names its own origin, and whose control records, from there on, enrol its own key.

use ed25519_dalek::VerifyingKey;
use exchequer_event::{
    accept::{Acceptor, Incoming, KeyState},
    v1::{self, KeyRole, control_record::Kind},
};
use exchequer_stream::{AppendError, EventStream, ReadError};
use futures::StreamExt as _;

use crate::control::ControlWriter;

const SUBJECT: &str = "control.genesis";
const KEYS: &str = "control.keys";

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
    #[error("the log `{origin}` has not enrolled this ledger's key {key}")]
    Key {
        /// Origin of the log.
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
    loop {
        let mut last = 0;
        for subject in [SUBJECT, KEYS] {
            last = last.max(stream.last(subject).await?.map_or(0, |record| record.seq));
        }
        // The key may have been enrolled by what is in the stream and not in the log yet.
        let is_known = holds(acceptor, origin, key)?;
        let found = if is_known { acceptor.clone() } else { fold(stream, acceptor, cursor, last).await? };
        if !found.origin().is_empty() {
            return if holds(&found, origin, key)? {
                Ok(())
            } else {
                Err(GenesisError::Key { origin: origin.to_owned(), key: hex::encode(key.as_bytes()) })
            };
        }
        let last = stream.last(SUBJECT).await?.map_or(0, |record| record.seq);
        let genesis = v1::Genesis { origin: origin.to_owned(), ledger_key: key.as_bytes().to_vec().into() };
        match stream.append(control.message("ledger", Kind::Genesis(genesis)).expecting(last)).await {
            // Somebody else's came first, or perhaps ours is there: what stands there is read in the next round.
            Ok(_) | Err(AppendError::WrongLast { .. } | AppendError::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether the first genesis up to `last`, if there is one, is of this origin and names a ledger key that the log holds.
pub(crate) async fn compare(
    stream: &dyn EventStream,
    last: u64,
    origin: &str,
    keys: &[KeyState],
) -> Result<(), GenesisError> {
    let newest = stream.last(SUBJECT).await?.map_or(0, |record| record.seq);
    let found = fold(stream, &Acceptor::new(), 0, newest.min(last)).await?;
    let Some(first) = found.keys().first() else { return Ok(()) };
    if holds(&found, origin, &first.key)?
        && keys.iter().any(|known| known.role == KeyRole::Ledger && known.key == first.key)
    {
        return Ok(());
    }
    let own = keys.iter().find(|known| known.role == KeyRole::Ledger);
    let key = own.map_or_else(String::new, |own| hex::encode(own.key.as_bytes()));
    Err(GenesisError::Key { origin: origin.to_owned(), key })
}

/// The state after the genesis and key records behind the cursor, up to `last`.
async fn fold(
    stream: &dyn EventStream,
    acceptor: &Acceptor,
    cursor: u64,
    last: u64,
) -> Result<Acceptor, ReadError> {
    let mut found = acceptor.clone();
    if last <= cursor {
        return Ok(found);
    }
    let mut records = stream.read(cursor + 1, &[SUBJECT, KEYS]).await?;
    while let Some(record) = records.next().await {
        let record = record?;
        let message =
            Incoming { stream_seq: record.seq, subject: &record.subject, payload: record.payload.clone() };
        found.decide(&message).entries.iter().for_each(|entry| found.evolve(entry));
        if record.seq >= last {
            return Ok(found);
        }
    }
    Err(ReadError::Unavailable("the stream ended before its last control record".to_owned()))
}

/// Whether the log is of this origin and has enrolled the key, revoked since or not. An empty one is of none.
fn holds(acceptor: &Acceptor, origin: &str, key: &VerifyingKey) -> Result<bool, GenesisError> {
    let found = acceptor.origin();
    if !found.is_empty() && found != origin {
        return Err(GenesisError::Origin { found: found.to_owned(), configured: origin.to_owned() });
    }
    Ok(acceptor.keys().iter().any(|known| known.role == KeyRole::Ledger && known.key == *key))
}
