//! What is read from the stream: folding it, recognising what was folded from our own bytes, and refusing a stream that is not the
//! one that was folded.
//!
//! Left out: reading. Invariant: whenever reading begins anew, nothing is folded or decided before the last folded message was read
//! again and is the same, or stands for it by the ledger's word; where the ledger says that all that was lost with it comes again
//! elsewhere, all is folded anew. What was folded before it was read has to be read as it was folded.

use std::{collections::VecDeque, time::Duration};

use exchequer_event::{
    accept::Incoming,
    digest::{Digest, Purpose},
};
use exchequer_stream::Record;

use super::{Block, Core, Note, Now, Output, RETRY, ReadFault, Ticket};
use crate::fold::{Fold, Folded, Read};

/// Wait before a stream that lacks what was folded is looked at again: the ledger may have put it back.
const LOST_RETRY: Duration = Duration::from_secs(1);
/// Wait before a fault that does not heal itself is tried again.
const PATIENCE: Duration = Duration::from_secs(5);
/// How far the writer's clock may be ahead of the stream's.
const CLOCK_AHEAD_MS: i128 = 60_000;

#[derive(Debug, Default)]
pub(super) struct Reading {
    /// Why reading does not work at the moment.
    fault: Option<String>,
    /// Why nothing is read from it: the stream is not the one that was folded.
    foreign: Option<String>,
    /// The newest loss on record when reading began.
    loss: Option<Record>,
    /// Whether the next record is the one the fold ends with, read again to see that this is its stream.
    verify_cursor: bool,
    /// Sequence and digest of what was folded from our own bytes and is yet to be read.
    ahead: VecDeque<(u64, Digest)>,
    /// The most that the stream's clock was seen to be ahead of ours since its start, milliseconds: stored while we ran.
    clock: Option<i128>,
}

impl Reading {
    pub(super) fn works(&self) -> Result<(), String> {
        match self.foreign.as_ref().or(self.fault.as_ref()) {
            Some(why) => Err(why.clone()),
            None if self.verify_cursor => Err("the stream is being compared with what was folded".to_owned()),
            None => Ok(()),
        }
    }

    pub(super) fn is_foreign(&self) -> bool {
        self.foreign.is_some()
    }

    pub(super) fn expect(&mut self, seq: u64, digest: Digest) {
        self.ahead.push_back((seq, digest));
    }

    /// The time for decisions: the wall clock, unless it is far ahead of what the stream's was when it stored a block of ours.
    pub(super) fn decision_ms(&self, now: Now) -> u64 {
        let Some(clock) = self.clock else { return now.wall_ms };
        let latest = clock + millis(now.mono) + CLOCK_AHEAD_MS;
        now.wall_ms.min(u64::try_from(latest).unwrap_or(0))
    }

    /// A block of ours came back: the stream stored it at this time or earlier by our clock.
    fn set_clock(&mut self, now: Now, stored_ms: u64) {
        let clock = i128::from(stored_ms) - millis(now.mono);
        self.clock = Some(self.clock.map_or(clock, |before| before.max(clock)));
    }
}

fn millis(duration: Duration) -> i128 {
    i128::try_from(duration.as_millis()).unwrap_or(i128::MAX / 4)
}

fn incoming(record: &Record) -> Incoming<'_> {
    Incoming { stream_seq: record.seq, subject: &record.subject, payload: record.payload.clone() }
}

impl<T: Ticket> Core<T> {
    pub(super) fn open_reader(&mut self, after: Duration) {
        let cursor = self.fold().cursor();
        self.reading.fault.get_or_insert_with(|| "the stream is being opened".to_owned());
        self.reading.verify_cursor = cursor > 0;
        self.reading.ahead.clear();
        // Where the stream and the subjects end has to be asked again.
        self.parts.iter_mut().for_each(super::part::Part::forget_tip);
        self.out.push(Output::Open { from: cursor.max(1), after, with_loss: cursor > 0 });
    }

    pub(super) fn on_opened(&mut self, loss: Option<Record>) {
        self.reading.loss = loss;
        self.reading.fault = None;
    }

    pub(super) fn on_read_fault(&mut self, fault: ReadFault) {
        let (why, after) = match fault {
            ReadFault::Lost(why) => return self.foreign(&why),
            ReadFault::Passing(why) => (why, RETRY),
            ReadFault::Lasting(why) => (why, PATIENCE),
        };
        self.reading.fault = Some(why);
        self.open_reader(after);
    }

    /// Fails closed: deciding on from a state that the stream does not bear out could grant what was granted before. What the
    /// broker lost and the ledger puts back heals it.
    fn foreign(&mut self, why: &str) {
        let why = format!(
            "this is not the stream that was folded, or it lost messages: {why}. It goes on by itself once the ledger has put them \
             back. If the stream was replaced on purpose, remove the snapshots and start again"
        );
        if self.reading.foreign.as_ref() != Some(&why) {
            self.out.push(Output::Foreign(Some(why.clone())));
        }
        self.reading.foreign = Some(why);
        self.open_reader(LOST_RETRY);
    }

    pub(super) fn on_record(&mut self, now: Now, record: Record) {
        if std::mem::take(&mut self.reading.verify_cursor) {
            return self.verify_cursor(now, &record);
        }
        if let Some(&(seq, digest)) = self.reading.ahead.front() {
            if record.seq != seq || Purpose::Message.digest(&record.payload) != digest {
                return self.foreign(&format!("message {} is not the one folded as {seq}", record.seq));
            }
            self.reading.ahead.pop_front();
            self.reading.set_clock(now, record.time_unix_ms);
            return;
        }
        if record.seq <= self.fold().cursor() {
            return;
        }
        self.fold_record(now, &record);
    }

    fn fold_record(&mut self, now: Now, record: &Record) {
        if record.subject.starts_with("control.") {
            self.may_sign = None;
        }
        let read = Read { seq: record.seq, subject: &record.subject, payload: &record.payload };
        let at = self.fold().partition_of_subject(&record.subject);
        let mut own = None;
        if let Some(part) = at.map(|at| &mut self.parts[usize::from(at)]) {
            if part.landed().is_some() {
                // Ours is part of what this record follows: it stands, whatever becomes of its ack.
                part.resolve(now, &mut self.out);
            }
            if part.is_in_flight(&record.payload) {
                own = part.take_runs();
                self.reading.set_clock(now, record.time_unix_ms);
            }
        }
        let is_ours = own.is_some();
        let folded = self.fold_mut().fold_known(read, own);
        self.folded(now, record.seq, is_ours, folded);
        for partition in 0..self.parts.len() {
            self.conclude(now, partition);
        }
    }

    /// Brings the writer's side up to what was folded.
    pub(super) fn folded(&mut self, now: Now, stream_seq: u64, is_ours: bool, folded: Folded) {
        match folded {
            Folded::Other => {}
            Folded::Block { partition, runs, now_ms, undecodable } => {
                let block = Block { partition, stream_seq, now_ms, is_ours, runs, undecodable };
                let mut fold = self.fold.write().unwrap_or_else(std::sync::PoisonError::into_inner);
                let part = &mut self.parts[usize::from(partition)];
                if is_ours {
                    part.land(stream_seq, &mut fold.part_mut(partition).past);
                } else {
                    part.follow(&block, &mut fold, &mut self.out);
                }
                self.out.push(Output::Folded(block));
            }
            Folded::VoidBlock { partition, reason } => {
                let note = Note::Void { stream_seq, is_ours, reason: reason.clone() };
                self.out.push(Output::Note { partition, note });
                if is_ours {
                    self.abandon(
                        now,
                        usize::from(partition),
                        &format!("the block was not accepted: {reason}"),
                    );
                }
            }
        }
    }

    /// Compares the first record read with the last one folded.
    fn verify_cursor(&mut self, now: Now, record: &Record) {
        let mut fold = self.fold.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (cursor, digest) = (fold.cursor, Purpose::Message.digest(&record.payload));
        let mut is_displaced = false;
        if record.seq == cursor && digest != fold.cursor_digest {
            if fold.acceptor.stands_for_lost(&incoming(record)) {
                fold.cursor_digest = digest;
            } else {
                let loss = self.reading.loss.as_ref();
                let lost = loss.and_then(|loss| fold.acceptor.stated_loss(&incoming(loss)));
                is_displaced = lost.is_some_and(|lost| (lost.from..=lost.to).contains(&cursor));
            }
        }
        let is_folded = record.seq == cursor && digest == fold.cursor_digest;
        drop(fold);
        if !is_folded && !is_displaced {
            let why = format!("message {} of the stream is not the one folded as {cursor}", record.seq);
            return self.foreign(&why);
        }
        if self.reading.foreign.take().is_some() {
            self.out.push(Output::Foreign(None));
        }
        if is_displaced {
            self.begin_again(now);
        }
    }

    /// Others' messages took the places of what was lost, which stands behind them now: where each block is, is to be learnt anew.
    fn begin_again(&mut self, now: Now) {
        for partition in 0..self.parts.len() {
            self.abandon(now, partition, "the stream lost messages; ask again with the same idempotency key");
            self.parts[partition].begin_again();
        }
        let mut fold = self.fold_mut();
        *fold = Fold::new(fold.partitions());
        drop(fold);
        self.may_sign = None;
        self.out.push(Output::BegunAgain);
        self.open_reader(Duration::ZERO);
    }

    /// A partition's subject ends at `last`. If all of that has been folded and was elsewhere, the broker lost messages: whether the
    /// ledger put them back, or others in their place, shows when the cursor is compared and the stream asked again.
    pub(super) fn compare_subject(&mut self, partition: usize, last: u64) {
        let (cursor, folded) = {
            let fold = self.fold();
            (fold.cursor, fold.parts[partition].subject_last)
        };
        if last <= cursor && last != folded {
            self.open_reader(Duration::ZERO);
        }
    }

    pub(super) fn on_tip(&mut self, partition: u16, probe: u64, ends: Result<(u64, u64), String>) {
        let Some(part) = self.parts.get_mut(usize::from(partition)) else { return };
        let Some(folded) = part.take_probe(probe, &ends) else { return };
        if let Ok((tip, subject_last)) = ends {
            let mut fold = self.fold_mut();
            // It is what was folded, but where another message was put in the place of one that the broker lost.
            if tip >= folded && subject_last <= fold.cursor {
                fold.parts[usize::from(partition)].subject_last = subject_last;
            }
            drop(fold);
            // What was folded while the question was under way may lie beyond the answer.
            if tip < folded {
                self.foreign(&format!("it ends at {tip}, {folded} was folded"));
            }
        }
    }
}
