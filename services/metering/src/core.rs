//! The protocol of metering's writers, without IO: what is read, decided, appended and answered, for every partition of a stream.
//!
//! A [`Core`] takes [`Input`]s with the time at which they came and gives [`Output`]s for whoever carries them out: the service
//! around it (`crate::writer`), or a simulation. It owns the [`Fold`] of the whole stream and, for each partition, the writer's side:
//! the state as it will be once the block in flight is accepted, the commands that wait, and the lease under which it may write.
//!
//! - A partition has one block in flight at most. What comes meanwhile goes into the next: under load blocks grow, and the rate with
//!   them. A second block could not be appended before the first one's sequence is known, which the fence expects.
//! - A block of ours that is acknowledged at the sequence right behind what was folded is folded at once, from our own bytes; the
//!   reader's copy is compared with it and passed over. In any other order it is folded when it is read.
//! - The same bytes are appended with the same expectation until their outcome is known. A block that another was appended before
//!   is decided again; one that the fold did not accept, or that is not seen in time, is answered as not known.
//!
//! Pure: no clock, IO, async, randomness or logging; the same inputs give the same outputs. Left out: reading back what was decided
//! long ago, snapshots, whose lease it is. Invariant: a caller is answered only from a block that the fold accepted; the speculative
//! state equals the fold's whenever no block is in flight.

mod part;
mod reading;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use ed25519_dalek::SigningKey;
use exchequer_budget::{Command, DecideError, DecisionRun, Event, IdempotencyKey, TenantId};
use exchequer_stream::{Message, Record};

use self::{part::Part, reading::Reading};
use crate::fold::Fold;

/// Commands that one block considers at most.
pub const BLOCK_COMMANDS: usize = 4096;
/// Wait before a failed read, tip or append is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// A moment, by the two clocks that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Time since a fixed moment, by a clock that only moves on: for deadlines.
    pub mono: Duration,
    /// Milliseconds since the Unix epoch, by a clock that may be wrong: for decisions.
    pub wall_ms: u64,
}

/// What names a caller, handed back with the answer.
pub trait Ticket {
    /// Whether nobody waits for the answer any more: then what is not yet decided is not decided.
    fn is_gone(&self) -> bool {
        false
    }

    /// Headers of the block whose first command it asked for.
    fn headers(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

impl Ticket for u64 {}

/// A lease on a partition, as far as the core has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its epoch.
    pub epoch: u64,
    /// When it runs out, by [`Now::mono`].
    pub until: Duration,
}

/// How an attempt to append ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is durable, at this stream sequence.
    Acked(u64),
    /// The place is taken, by an earlier attempt or by another writer: the subject ends at this stream sequence.
    Overtaken(u64),
    /// It may or may not be in the stream, or get there late.
    Unknown(String),
    /// It can't get into the stream.
    Impossible(String),
}

/// What the core is told.
#[derive(Debug)]
pub enum Input<T> {
    /// Reading works: records follow in order from the sequence that [`Output::Open`] named. With the newest record of a loss, as it
    /// was before.
    Opened(Option<Record>),
    /// The next record of the reader opened last.
    Read(Record),
    /// Reading failed, or could not begin.
    ReadFailed(ReadFault),
    /// A partition's lease was taken or renewed; or it is not held, and why.
    Lease {
        /// The partition.
        partition: u16,
        /// The lease.
        lease: Result<Held, String>,
    },
    /// The answer to [`Output::ReadTip`].
    Tip {
        /// The partition.
        partition: u16,
        /// The number of the question.
        probe: u64,
        /// Last sequences of the stream, and of the partition's subject after that.
        ends: Result<(u64, u64), String>,
    },
    /// An attempt at a block, as asked for by [`Output::Append`], has ended.
    Appended {
        /// The partition.
        partition: u16,
        /// The number of the block.
        block: u64,
        /// How.
        outcome: Appended,
    },
    /// Commands of one partition.
    Asked {
        /// The partition.
        partition: u16,
        /// The commands, to be decided in this order.
        commands: Vec<(T, Command)>,
    },
    /// No further blocks: finish what is in flight.
    Stop,
    /// Time has passed.
    Tick,
}

/// Why reading does not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadFault {
    /// The stream can't be reached, or its content changed under the reader: read again.
    Passing(String),
    /// It does not heal by itself soon.
    Lasting(String),
    /// The stream ends before what was folded.
    Lost(String),
}

/// What is to be done.
#[derive(Debug)]
pub enum Output<T> {
    /// Drop the reader, and after a while read from a sequence on: [`Input::Opened`], then [`Input::Read`].
    Open {
        /// The first sequence.
        from: u64,
        /// The while.
        after: Duration,
        /// Whether to say what the newest record of a loss is.
        with_loss: bool,
    },
    /// Ask after a while where the stream ends, and then where the subject does: [`Input::Tip`].
    ReadTip {
        /// The partition.
        partition: u16,
        /// The subject.
        subject: String,
        /// The number of the question.
        probe: u64,
        /// The while.
        after: Duration,
    },
    /// Append after a while: [`Input::Appended`].
    Append {
        /// The partition.
        partition: u16,
        /// The number of the block: the same for each attempt at it.
        block: u64,
        /// The message.
        message: Message,
        /// The while.
        after: Duration,
    },
    /// Answer a caller.
    Answer {
        /// Which.
        ticket: T,
        /// What.
        answer: Result<Answered, Unanswered>,
    },
    /// Give a lease up, and ask for one with a higher epoch.
    Forfeit {
        /// The partition.
        partition: u16,
        /// The epoch that has been overtaken.
        epoch: u64,
    },
    /// From now on a partition's calls are answered under this epoch; or they are not, and why.
    Status {
        /// The partition.
        partition: u16,
        /// The epoch.
        status: Result<u64, String>,
    },
    /// A block was accepted; the fold has it.
    Folded(Block),
    /// Worth counting, and sometimes a line in the log.
    Note {
        /// The partition.
        partition: u16,
        /// What.
        note: Note,
    },
    /// The stream turned out to be another than was folded; or it no longer is.
    Foreign(Option<String>),
    /// The fold was emptied: what was kept of it is another history's.
    BegunAgain,
}

/// An accepted block.
#[derive(Clone, Debug)]
pub struct Block {
    /// The partition.
    pub partition: u16,
    /// Its stream sequence.
    pub stream_seq: u64,
    /// When it was decided, milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// Whether it is ours.
    pub is_ours: bool,
    /// The decisions.
    pub runs: Vec<DecisionRun>,
    /// Runs that don't decode as decisions and changed nothing; their writer is defective or hostile.
    pub undecodable: usize,
}

/// What happened to a block of ours, or to another on the partition's subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// One was decided.
    Begun {
        /// Commands answered from earlier decisions.
        repeated: usize,
        /// Decisions in it; 0 if all were repeated and nothing is appended.
        decisions: usize,
        /// Its size.
        bytes: usize,
        /// How long its first command had waited.
        waited: Duration,
    },
    /// It is durable and accepted.
    Durable {
        /// How long that took from its decision.
        took: Duration,
    },
    /// Another was first; the commands are decided again.
    Overtaken {
        /// How many.
        commands: usize,
    },
    /// An attempt ended without a known outcome, and is repeated.
    Retried(String),
    /// It was given up; its callers were told that the outcome is not known.
    Abandoned {
        /// How many.
        commands: usize,
        /// Why.
        why: String,
    },
    /// A block in the stream was not accepted.
    Void {
        /// Its stream sequence.
        stream_seq: u64,
        /// Whether it is ours.
        is_ours: bool,
        /// Why.
        reason: String,
    },
}

/// A durable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What the command led to.
    pub reply: Reply,
    /// Stream sequence of the block that records it.
    pub stream_seq: u64,
    /// Whether it was decided before, for the same request under the same key.
    pub repeated: bool,
}

/// What a command led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// This.
    Event(Event),
    /// What the key was answered before; to be read back from the block.
    Recorded(TenantId, IdempotencyKey),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// Nothing was decided, and asking again changes nothing.
    Refused(DecideError),
    /// Not decided, or not known to be; asking again with the same key is safe.
    Unavailable(String),
}

/// The writers of all partitions.
#[derive(Debug)]
pub struct Core<T> {
    fold: Arc<RwLock<Fold>>,
    key: SigningKey,
    append_timeout: Duration,
    parts: Vec<Part<T>>,
    reading: Reading,
    stopping: bool,
    /// Whether the log lets our key sign blocks: known until a control record is folded.
    may_sign: Option<bool>,
    out: Vec<Output<T>>,
}

impl<T: Ticket> Core<T> {
    /// Begins where a fold ends. `append_timeout` is how long a block's outcome may be unknown before its callers are told so. The
    /// first thing it wants is a reader.
    pub fn new(fold: Fold, key: SigningKey, append_timeout: Duration) -> Self {
        let parts = (0..fold.partitions()).map(Part::new).collect();
        let mut core = Self {
            fold: Arc::new(RwLock::new(fold)),
            key,
            append_timeout,
            parts,
            reading: Reading::default(),
            stopping: false,
            may_sign: None,
            out: Vec::new(),
        };
        core.open_reader(Duration::ZERO);
        core
    }

    /// What was accepted; to be read at any time, changed by the core alone.
    pub fn shared_fold(&self) -> Arc<RwLock<Fold>> {
        Arc::clone(&self.fold)
    }

    /// What was accepted.
    pub fn fold(&self) -> RwLockReadGuard<'_, Fold> {
        self.fold.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn fold_mut(&self) -> RwLockWriteGuard<'_, Fold> {
        self.fold.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an input; what is to be done about it is in [`Self::outputs`].
    pub fn handle(&mut self, now: Now, input: Input<T>) {
        match input {
            Input::Opened(loss) => self.on_opened(loss),
            Input::Read(record) => self.on_record(now, record),
            Input::ReadFailed(fault) => self.on_read_fault(fault),
            Input::Lease { partition, lease } => {
                if let Some(part) = self.parts.get_mut(usize::from(partition)) {
                    part.lease = lease;
                }
            }
            Input::Tip { partition, probe, ends } => self.on_tip(partition, probe, ends),
            Input::Appended { partition, block, outcome } => self.on_appended(now, partition, block, outcome),
            Input::Asked { partition, commands } => match self.parts.get_mut(usize::from(partition)) {
                Some(part) => part.ask(now, commands),
                None => self.out.extend(commands.into_iter().map(|(ticket, _)| Output::Answer {
                    ticket,
                    answer: Err(Unanswered::Unavailable(format!("there is no partition {partition}"))),
                })),
            },
            Input::Stop => self.stopping = true,
            Input::Tick => {}
        }
        for partition in 0..self.parts.len() {
            self.advance(now, partition);
        }
    }

    /// What is to be done, in order. Empties it.
    pub fn outputs(&mut self) -> Vec<Output<T>> {
        std::mem::take(&mut self.out)
    }

    /// When, by [`Now::mono`], [`Input::Tick`] is due if nothing else comes before.
    pub fn wake_at(&self, now: Now) -> Option<Duration> {
        let (fold, now_ms) = (self.fold(), self.reading.decision_ms(now));
        self.parts.iter().filter_map(|part| part.wake_at(now, now_ms, &fold)).min()
    }

    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.parts.iter().all(Part::is_idle)
    }

    /// Whether the stream turned out to be another than was folded.
    pub fn is_foreign(&self) -> bool {
        self.reading.is_foreign()
    }

    /// Why nothing can be read at the moment, if so.
    pub fn reading(&self) -> Result<(), String> {
        self.reading.works()
    }
}
