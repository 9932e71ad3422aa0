//! The line in front of the writer: commands with whom to answer.
//!
//! Commands that come together enter as one, and their answers leave as one: a batch costs one message there and one back, whatever
//! its size. Left out: deciding. Invariant: at most so many commands wait, and each is answered once or its caller sees the line gone.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use exchequer_budget::{Command, Event};
use tokio::sync::{mpsc, oneshot};

use crate::core::{Ticket, Unanswered};

/// A durable answer.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) reply: Event,
    /// Stream sequence of the block that records it.
    pub(crate) stream_seq: u64,
    /// Whether it was decided before, for the same request under the same key.
    pub(crate) repeated: bool,
}

/// What a command is answered.
pub(crate) type Outcome = Result<Answered, Unanswered>;

/// Why commands were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Too many wait.
    Full,
    /// The writer has ended.
    Closed,
}

/// Commands of one partition that came together.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) partition: u16,
    pub(crate) commands: Vec<(Caller, Command)>,
}

/// The line's entrance.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    sender: mpsc::UnboundedSender<Asked>,
    waiting: Arc<AtomicUsize>,
    limit: usize,
}

impl Queue {
    /// A line of at most `limit` commands, and its other end.
    pub(crate) fn new(limit: usize) -> (Self, mpsc::UnboundedReceiver<Asked>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self { sender, waiting: Arc::default(), limit }, receiver)
    }

    /// Asks for commands of one partition to be decided, in this order. Answers are in the order of the commands.
    pub(crate) fn submit_many(
        &self,
        partition: u16,
        commands: Vec<Command>,
    ) -> Result<oneshot::Receiver<Vec<Outcome>>, Refused> {
        let count = commands.len();
        // What is taken here is given back by each command's caller, answered or not.
        let places = (0..count).map(|_| self.place()).collect::<Result<Vec<_>, _>>()?;
        let (reply, answers) = oneshot::channel();
        let batch = Arc::new(Batch {
            answers: Mutex::new((vec![None; count], count)),
            reply: Mutex::new(Some(reply)),
            span: tracing::Span::current(),
            since: Instant::now(),
        });
        let commands = commands.into_iter().zip(places).enumerate();
        let commands = commands.map(|(index, (command, place))| {
            (Caller { partition, batch: Arc::clone(&batch), index, _place: place }, command)
        });
        let asked = Asked { partition, commands: commands.collect() };
        self.sender.send(asked).map_err(|_| Refused::Closed)?;
        Ok(answers)
    }

    fn place(&self) -> Result<Place, Refused> {
        let place = Place(Arc::clone(&self.waiting));
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.limit { Ok(place) } else { Err(Refused::Full) }
    }
}

/// One command's place in the line.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Batch {
    /// The answers so far, and how many are missing.
    answers: Mutex<(Vec<Option<Outcome>>, usize)>,
    reply: Mutex<Option<oneshot::Sender<Vec<Outcome>>>>,
    /// The callers' span. A block carries the trace of its first command.
    span: tracing::Span,
    since: Instant,
}

/// Whom to answer.
#[derive(Debug)]
pub(crate) struct Caller {
    /// Of the command.
    pub(crate) partition: u16,
    batch: Arc<Batch>,
    index: usize,
    _place: Place,
}

impl Caller {
    /// Gives the answer. How long the caller had waited, if this was the last of those that came together.
    pub(crate) fn answer(self, outcome: Outcome) -> Option<std::time::Duration> {
        let mut answers = self.batch.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let (given, missing) = &mut *answers;
        given[self.index] = Some(outcome);
        *missing -= 1;
        if *missing > 0 {
            return None;
        }
        let given = std::mem::take(given);
        drop(answers);
        let reply = self.batch.reply.lock().unwrap_or_else(PoisonError::into_inner).take();
        // It may have gone away.
        let _ = reply.map(|reply| reply.send(given.into_iter().flatten().collect()));
        Some(self.batch.since.elapsed())
    }
}

impl Ticket for Caller {
    fn is_gone(&self) -> bool {
        let reply = self.batch.reply.lock().unwrap_or_else(PoisonError::into_inner);
        reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn headers(&self) -> Vec<(String, String)> {
        let mut headers = Vec::new();
        self.batch.span.in_scope(|| exchequer_telemetry::inject(&mut headers));
        headers
    }
}
