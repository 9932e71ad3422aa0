//! The ordered stream that everything else reads: [`EventStream`], and its two implementations, [`LocalStream`] (embedded, over
//! the fsynced [`Journal`]) and [`JetStream`] (a NATS server).
//!
//! Left out: what the messages mean, retention, and progress; each reader stores the sequence it has committed together with what
//! it committed, and resumes from there. Invariant: an acknowledged message is on disk, once, at its sequence, and readers see
//! every sequence in order or an error; nothing is skipped.

mod files;
pub mod jetstream;
pub mod journal;
mod local;
mod stream;
pub mod subject;

pub use jetstream::JetStream;
pub use journal::Journal;
pub use local::LocalStream;
pub use stream::{
    Ack, AppendError, Durability, EventStream, Lease, LeaseError, LeaseOutcome, MAX_HEADER_BYTES,
    MAX_HEADERS, MAX_IN_FLIGHT, MAX_LATEST, MAX_MESSAGE, MAX_PAYLOAD, Message, ReadError, Record,
    RecordStream, ValueStream,
};
