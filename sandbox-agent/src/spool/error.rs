//! Why the spool can't be opened, an event not recorded, a receipt not taken.

use exchequer_event::name::MAX_EVENT_BYTES;
use exchequer_stream::{AppendError, journal::JournalError};

/// Why the spool can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The journal.
    #[error("spool: {0}")]
    Journal(#[from] JournalError),
    /// The epoch's file, or the directory.
    #[error("spool: cannot {action}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The ledger has events of this agent from a later spool: nothing of this one would be accepted any more.
    #[error(
        "spool: it is epoch {epoch}, and the ledger holds epoch {ledger} of this agent: it is an old copy, or another agent has \
         the same id. Move the directory away to begin a new epoch"
    )]
    Ended {
        /// This spool's.
        epoch: u64,
        /// The ledger's.
        ledger: u64,
    },
    /// What is known of open executions is missing or damaged, so their outcomes can't be told.
    #[error(
        "spool: {0}; move the directory away to begin a new epoch, and keep it: the ledger may lack what it holds"
    )]
    Unfinished(String),
    /// The epoch's file does not hold an epoch.
    #[error("spool: the epoch file does not hold a number above 0")]
    Epoch,
}

/// Why an event can't be recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// New executions are refused until receipts make room.
    #[error("the spool holds {kept} of at most {limit} bytes that the ledger has not confirmed")]
    Full {
        /// Bytes kept.
        kept: u64,
        /// The limit.
        limit: u64,
    },
    /// The log holds another history of this epoch: what would be recorded here would never be accepted.
    #[error("the spool can't be published: {0}")]
    Condemned(String),
    /// An event is too large for a record.
    #[error("an event of {0} bytes is above the limit of {MAX_EVENT_BYTES}")]
    TooLarge(usize),
    /// The system gives no randomness to encrypt with.
    #[error("a payload can't be encrypted: {0}")]
    Randomness(getrandom::Error),
    /// The journal refused.
    #[error("the spool can't record: {0}")]
    Journal(#[from] AppendError),
    /// The journal took it, and can't tell whether it reached the disk. After every other error it was not recorded.
    #[error("whether the spool recorded it is not known: {0}")]
    InDoubt(AppendError),
}

/// Why a receipt confirms nothing.
#[derive(Debug, thiserror::Error)]
pub enum ConfirmError {
    /// It is about other events than those recorded here.
    #[error("{0}")]
    Condemned(String),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Why what receipts cover can't be removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PruneError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What is known of open executions can't be written down, so nothing is removed.
    #[error("cannot write the list of open executions: {0}")]
    Unfinished(std::io::Error),
}
