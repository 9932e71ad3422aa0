//! The writer's side of one partition: what waits, the block in flight, and what becomes of it.
//!
//! Left out: making a block ([`crate::propose`]) and reading ([`super::reading`]). Invariant: "not appended" is never concluded from
//! silence, only from having folded everything up to where another message has the place.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use exchequer_budget::{Command, DecideError, DecisionRun, Past, State};
use exchequer_event::{
    digest::Purpose,
    seal::{BlockPlace, seal_block},
    v1::KeyRole,
};
use exchequer_stream::Message;
use prost::Message as _;

use super::{
    Answered, Appended, BLOCK_COMMANDS, Block, Core, Held, Note, Now, Output, RETRY, Ticket, Unanswered,
};
use crate::{
    fold::{Fold, Read},
    propose::{Answer, propose},
};

/// Wait before the writer's own work (expiry, settlement) is tried again after a block failed.
const QUIET: Duration = Duration::from_secs(1);
/// Debug builds compare both states after every block up to this many open holds.
#[cfg(debug_assertions)]
const DEBUG_COMPARE_HOLDS: u64 = 256;

#[derive(Debug)]
struct Waiting<T> {
    ticket: T,
    command: Command,
    since: Duration,
}

/// A block that is to get into the stream.
#[derive(Debug)]
struct InFlight<T> {
    number: u64,
    message: Message,
    waiting: Vec<Waiting<T>>,
    answers: Vec<Result<Answer, DecideError>>,
    /// Its decisions, until the fold has them.
    runs: Option<Vec<DecisionRun>>,
    began: Duration,
    deadline: Duration,
    /// Where the fold accepted it.
    landed: Option<u64>,
    /// Whether an attempt has ended, in whatever way.
    attempted: bool,
    /// Another message has the place; once the fold has come this far without meeting the block, it is not in the stream.
    overtaken_at: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Part<T> {
    partition: u16,
    pub(super) lease: Result<Held, String>,
    /// The fold's state with the block in flight recorded; while the lease is held.
    speculative: Option<State>,
    waiting: VecDeque<Waiting<T>>,
    in_flight: Option<InFlight<T>>,
    blocks: u64,
    quiet_until: Duration,
    /// A lease epoch, and the stream's last sequence when we had just taken it: decide only once that has been read.
    target: Option<(u64, u64)>,
    /// The question for it: its number, the epoch, and the cursor when it was asked.
    probe: Option<(u64, u64, u64)>,
    probes: u64,
    probe_after: Duration,
    forfeited: Option<u64>,
    /// What was last said.
    status: Option<Result<u64, String>>,
}

impl<T: Ticket> Part<T> {
    pub(super) fn new(partition: u16) -> Self {
        Self {
            partition,
            lease: Err("the lease is being asked for".to_owned()),
            speculative: None,
            waiting: VecDeque::new(),
            in_flight: None,
            blocks: 0,
            quiet_until: Duration::ZERO,
            target: None,
            probe: None,
            probes: 0,
            probe_after: Duration::ZERO,
            forfeited: None,
            status: None,
        }
    }

    pub(super) fn ask(&mut self, now: Now, commands: Vec<(T, Command)>) {
        let waiting = |(ticket, command)| Waiting { ticket, command, since: now.mono };
        self.waiting.extend(commands.into_iter().map(waiting));
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_none()
    }

    /// The fold begins anew; so does what is decided from it.
    pub(super) fn begin_again(&mut self) {
        self.speculative = None;
    }

    pub(super) fn forget_tip(&mut self) {
        (self.target, self.probe) = (None, None);
    }

    /// The cursor when this question was asked, if it is the open one; and its answer is taken.
    pub(super) fn take_probe(&mut self, probe: u64, ends: &Result<(u64, u64), String>) -> Option<u64> {
        let (_, epoch, folded) = self.probe.take_if(|open| open.0 == probe)?;
        match ends {
            Ok((tip, _)) => {
                self.target = Some((epoch, *tip));
                self.probe_after = Duration::ZERO;
            }
            Err(_) => self.probe_after = RETRY,
        }
        Some(folded)
    }

    pub(super) fn landed(&self) -> Option<u64> {
        self.in_flight.as_ref().and_then(|block| block.landed)
    }

    /// Whether these bytes are the block in flight, which has not landed.
    pub(super) fn is_in_flight(&self, payload: &Bytes) -> bool {
        let is_it = |block: &InFlight<T>| block.landed.is_none() && block.message.payload == *payload;
        self.in_flight.as_ref().is_some_and(is_it)
    }

    pub(super) fn take_runs(&mut self) -> Option<Vec<DecisionRun>> {
        self.in_flight.as_mut().and_then(|block| block.runs.take())
    }

    /// The block in flight was accepted: what it ended is in the past, for the writer's state too.
    pub(super) fn land(&mut self, stream_seq: u64, past: &mut Past) {
        if let Some(block) = &mut self.in_flight {
            block.landed = Some(stream_seq);
        }
        if let Some(speculative) = &mut self.speculative {
            speculative.retire(past, stream_seq);
        }
    }

    /// Another's block was accepted.
    pub(super) fn follow(&mut self, block: &Block, fold: &mut Fold, out: &mut Vec<Output<T>>) {
        if self.in_flight.is_some() {
            self.decide_again(fold, out);
        } else if let Some(speculative) = &mut self.speculative {
            for run in &block.runs {
                speculative.record_run(run, block.now_ms);
            }
            speculative.retire(&mut fold.part_mut(self.partition).past, block.stream_seq);
        }
    }

    /// Another writer was first: the undecided commands go back to the front of the line.
    fn decide_again(&mut self, fold: &Fold, out: &mut Vec<Output<T>>) {
        let Some(block) = self.in_flight.take() else { return };
        self.speculative = Some(fold.part(self.partition).budget.clone());
        let note = Note::Overtaken { commands: block.waiting.len() };
        out.push(Output::Note { partition: self.partition, note });
        for waiting in block.waiting.into_iter().rev() {
            self.waiting.push_front(waiting);
        }
    }

    /// Answers the callers of a block that has landed.
    pub(super) fn resolve(&mut self, now: Now, out: &mut Vec<Output<T>>) {
        let Some(stream_seq) = self.landed() else { return };
        let Some(block) = self.in_flight.take() else { return };
        let note = Note::Durable { took: now.mono.saturating_sub(block.began) };
        out.push(Output::Note { partition: self.partition, note });
        for (waiting, answer) in block.waiting.into_iter().zip(block.answers) {
            out.push(deliver(waiting.ticket, answer, Some(stream_seq)));
        }
    }

    /// Gives up on the block in flight. It may yet get into the stream; then the fold will say so.
    fn abandon(&mut self, now: Now, fold: &Fold, why: &str, out: &mut Vec<Output<T>>) {
        self.quiet_until = now.mono + QUIET;
        let Some(block) = self.in_flight.take() else { return };
        self.speculative = Some(fold.part(self.partition).budget.clone());
        let note = Note::Abandoned { commands: block.waiting.len(), why: why.to_owned() };
        out.push(Output::Note { partition: self.partition, note });
        for waiting in block.waiting {
            let answer = Err(Unanswered::Unavailable(why.to_owned()));
            out.push(Output::Answer { ticket: waiting.ticket, answer });
        }
    }

    fn refuse_waiting(&mut self, reason: &str, out: &mut Vec<Output<T>>) {
        for waiting in self.waiting.drain(..) {
            let answer = Err(Unanswered::Unavailable(reason.to_owned()));
            out.push(Output::Answer { ticket: waiting.ticket, answer });
        }
    }

    fn lease(&self, now: Now) -> Result<Held, String> {
        match &self.lease {
            Ok(lease) if lease.until > now.mono => Ok(*lease),
            Ok(_) => Err("the lease has run out".to_owned()),
            Err(reason) => Err(reason.clone()),
        }
    }

    fn is_due(&self, now_ms: u64) -> bool {
        let due = self.speculative.as_ref().and_then(State::next_due_ms);
        due.is_some_and(|at| at <= now_ms)
    }

    fn has_work(&self, now: Now, now_ms: u64, fold: &Fold) -> bool {
        let has_own = || self.is_due(now_ms) || !fold.part(self.partition).charges.is_empty();
        !self.waiting.is_empty() || (now.mono >= self.quiet_until && has_own())
    }

    pub(super) fn wake_at(&self, now: Now, now_ms: u64, fold: &Fold) -> Option<Duration> {
        if let Some(block) = &self.in_flight {
            return Some(block.deadline);
        }
        let lease = self.lease(now).ok()?;
        let mut at = lease.until;
        // Without the lease, what is due waits for its owner.
        if matches!(self.status, Some(Ok(_))) {
            if let Some(due_ms) = self.speculative.as_ref().and_then(State::next_due_ms) {
                let wait = Duration::from_millis(due_ms.saturating_sub(now_ms));
                at = at.min((now.mono + wait).max(self.quiet_until));
            }
            if !fold.part(self.partition).charges.is_empty() {
                at = at.min(self.quiet_until);
            }
        }
        Some(at)
    }

    /// Whether the writer's state is the fold's.
    #[cfg(debug_assertions)]
    fn is_recorded(&self, fold: &Fold) -> bool {
        let recorded = &fold.part(self.partition).budget;
        self.speculative.as_ref().is_none_or(|speculative| speculative == recorded)
    }
}

impl<T: Ticket> Core<T> {
    /// Does whatever can be done for a partition now.
    pub(super) fn advance(&mut self, now: Now, partition: usize) {
        self.check_deadline(now, partition);
        loop {
            let status = self.serving(now, partition);
            let part = &mut self.parts[partition];
            if !part.status.as_ref().is_some_and(|said| is_as_said(said, &status)) {
                part.status = Some(status.clone());
                self.out.push(Output::Status { partition: part.partition, status: status.clone() });
            }
            let epoch = match status {
                Ok(epoch) => epoch,
                Err(reason) => {
                    part.refuse_waiting(&reason, &mut self.out);
                    if part.in_flight.is_none() && part.lease.is_err() {
                        part.speculative = None;
                    }
                    return;
                }
            };
            if part.in_flight.is_some() {
                return;
            }
            // A caller that went away before its command was decided takes it along.
            part.waiting.retain(|waiting| !waiting.ticket.is_gone());
            let now_ms = self.reading.decision_ms(now);
            let fold = self.fold.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            part.speculative.get_or_insert_with(|| fold.part(part.partition).budget.clone());
            if !part.has_work(now, now_ms, &fold) {
                return;
            }
            drop(fold);
            self.start_block(now, now_ms, partition, epoch);
        }
    }

    /// The epoch under which blocks of a partition may be written now, or why none may.
    fn serving(&mut self, now: Now, partition: usize) -> Result<u64, String> {
        if self.stopping {
            return Err("stopping".to_owned());
        }
        self.reading.works()?;
        let part = &mut self.parts[partition];
        let lease = part.lease(now)?;
        let fold = self.fold.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (head, cursor) = (fold.head(part.partition), fold.cursor);
        if lease.epoch < head.epoch {
            // A higher epoch has written: either we are the zombie, or the backend's epochs began anew and have to catch up.
            if part.forfeited.replace(lease.epoch) != Some(lease.epoch) {
                self.out.push(Output::Forfeit { partition: part.partition, epoch: lease.epoch });
            }
            return Err(format!("lease epoch {} is below the partition's {}", lease.epoch, head.epoch));
        }
        let Some((epoch, tip)) = part.target.filter(|(epoch, _)| *epoch == lease.epoch) else {
            if part.probe.is_none_or(|(_, epoch, _)| epoch != lease.epoch) {
                part.probes += 1;
                part.probe = Some((part.probes, lease.epoch, cursor));
                self.out.push(Output::ReadTip {
                    partition: part.partition,
                    subject: fold.part(part.partition).subject.clone(),
                    probe: part.probes,
                    after: part.probe_after,
                });
            }
            return Err("the stream's last sequence is being asked for".to_owned());
        };
        if cursor < tip {
            return Err(format!("catching up: {cursor} of {tip} (lease epoch {epoch})"));
        }
        let key = self.key.verifying_key();
        let may_sign = || fold.acceptor.may_sign(KeyRole::Metering, "", &key);
        if !*self.may_sign.get_or_insert_with(may_sign) {
            let key = hex::encode(key.as_bytes());
            return Err(format!("the metering key {key} is not enrolled, or was revoked"));
        }
        Ok(epoch)
    }

    fn start_block(&mut self, now: Now, now_ms: u64, partition: usize, epoch: u64) {
        let part = &mut self.parts[partition];
        let fold = self.fold.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(speculative) = &mut part.speculative else { return };
        let commands = part.waiting.iter().take(BLOCK_COMMANDS).map(|waiting| &waiting.command);
        let proposal = propose(&fold, part.partition, speculative, commands, now_ms);
        let waiting: Vec<_> = part.waiting.drain(..proposal.answers.len()).collect();
        let repeated = proposal.answers.iter().flatten().filter(|answer| answer.recorded.is_some()).count();
        let waited = waiting.first().map_or(Duration::ZERO, |first| now.mono.saturating_sub(first.since));
        let begun = |bytes| Note::Begun { repeated, decisions: proposal.decisions, bytes, waited };
        if proposal.items.is_empty() {
            self.out.push(Output::Note { partition: part.partition, note: begun(0) });
            for (waiting, answer) in waiting.into_iter().zip(proposal.answers) {
                self.out.push(deliver(waiting.ticket, answer, None));
            }
            // What waited needs no settlement any more: the holds were closed by their holders.
            let partition = part.partition;
            drop(fold);
            self.fold_mut().drop_charges(partition);
            return;
        }
        let head = fold.head(part.partition);
        let (subject, last) = (&fold.part(part.partition).subject, fold.part(part.partition).subject_last);
        let place = BlockPlace {
            partition: fold.part(part.partition).name.clone(),
            epoch,
            index: head.index + 1,
            prev_hash: head.hash,
            now_unix_ms: proposal.now_ms,
            usage_cursor: proposal.usage_cursor,
        };
        let payload: Bytes = seal_block(&self.key, place, proposal.items).encode_to_vec().into();
        self.out.push(Output::Note { partition: part.partition, note: begun(payload.len()) });
        let mut message = Message::new(subject, payload).expecting(last);
        if let Some(first) = waiting.first() {
            message.headers = first.ticket.headers();
        }
        part.blocks += 1;
        self.out.push(Output::Append {
            partition: part.partition,
            block: part.blocks,
            message: message.clone(),
            after: Duration::ZERO,
        });
        part.in_flight = Some(InFlight {
            number: part.blocks,
            message,
            waiting,
            answers: proposal.answers,
            runs: Some(proposal.runs),
            began: now.mono,
            deadline: now.mono + self.append_timeout,
            landed: None,
            attempted: false,
            overtaken_at: None,
        });
    }

    pub(super) fn on_appended(&mut self, now: Now, partition: u16, number: u64, outcome: Appended) {
        let partition = usize::from(partition);
        let Some(part) = self.parts.get_mut(partition) else { return };
        let Some(block) = part.in_flight.as_mut().filter(|block| block.number == number) else { return };
        block.attempted = true;
        match outcome {
            Appended::Acked(stream_seq) => self.on_acked(now, partition, stream_seq),
            Appended::Overtaken(last) => {
                block.overtaken_at = Some(last);
                self.compare_subject(partition, last);
            }
            Appended::Unknown(why) => {
                self.out.push(Output::Append {
                    partition: part.partition,
                    block: number,
                    message: block.message.clone(),
                    after: RETRY,
                });
                self.out.push(Output::Note { partition: part.partition, note: Note::Retried(why) });
            }
            Appended::Impossible(why) => self.abandon(now, partition, &why),
        }
        self.conclude(now, partition);
    }

    /// The block in flight is durable at `stream_seq`. If that is the next to be folded, it is: nothing can come between.
    fn on_acked(&mut self, now: Now, partition: usize, stream_seq: u64) {
        let part = &mut self.parts[partition];
        let cursor = self.fold.read().unwrap_or_else(std::sync::PoisonError::into_inner).cursor;
        if part.landed().is_some() {
            return;
        }
        if stream_seq <= cursor {
            // Something else was folded from that place: the stream is not what it was.
            return self.open_reader(Duration::ZERO);
        }
        if stream_seq != cursor + 1 || self.reading.works().is_err() {
            return;
        }
        let Some(block) = &mut part.in_flight else { return };
        let (message, runs) = (block.message.clone(), block.runs.take());
        let read = Read { seq: stream_seq, subject: &message.subject, payload: &message.payload };
        let folded = self.fold_mut().fold_known(read, runs);
        self.reading.expect(stream_seq, Purpose::Message.digest(&message.payload));
        self.folded(now, stream_seq, true, folded);
    }

    /// Answers or takes back the block in flight, if it is known what became of it.
    pub(super) fn conclude(&mut self, now: Now, partition: usize) {
        let fold = self.fold.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let part = &mut self.parts[partition];
        let Some(block) = &part.in_flight else { return };
        match (block.landed, block.overtaken_at) {
            (Some(_), _) if block.attempted => {
                part.resolve(now, &mut self.out);
                #[cfg(debug_assertions)]
                if fold.part(part.partition).budget.open_holds() <= DEBUG_COMPARE_HOLDS {
                    assert!(part.is_recorded(&fold), "what was decided is what was recorded");
                }
            }
            (None, Some(at)) if fold.cursor >= at => part.decide_again(&fold, &mut self.out),
            _ => {}
        }
    }

    fn check_deadline(&mut self, now: Now, partition: usize) {
        let part = &mut self.parts[partition];
        if part.in_flight.as_ref().is_none_or(|block| now.mono < block.deadline) {
            return;
        }
        if part.landed().is_some() {
            part.resolve(now, &mut self.out);
        } else {
            let why = "the block's outcome is unknown; ask again with the same idempotency key";
            self.abandon(now, partition, why);
        }
    }

    pub(super) fn abandon(&mut self, now: Now, partition: usize, why: &str) {
        let fold = self.fold.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.parts[partition].abandon(now, &fold, why, &mut self.out);
    }
}

/// Whether a status is worth no word: the figures behind a colon change with each record while a partition catches up.
fn is_as_said(said: &Result<u64, String>, status: &Result<u64, String>) -> bool {
    match (said, status) {
        (Err(said), Err(reason)) => said.split(':').next() == reason.split(':').next(),
        (said, status) => said == status,
    }
}

/// A caller's answer. `block` is the one at hand.
fn deliver<T>(ticket: T, answer: Result<Answer, DecideError>, block: Option<u64>) -> Output<T> {
    let answer = match answer {
        Err(error) => Err(Unanswered::Refused(error)),
        Ok(Answer { reply, recorded, repeated }) => match recorded.or(block) {
            Some(stream_seq) => Ok(Answered { reply, stream_seq, repeated }),
            None => Err(Unanswered::Unavailable("the block that answers this key is not known".to_owned())),
        },
    };
    Output::Answer { ticket, answer }
}
