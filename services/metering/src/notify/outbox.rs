//! What is due when: the notifications that wait, and the attempts at them.
//!
//! Times are passed in, counted from a moment of the caller's; nothing here waits, draws or logs. Left out: delivering ([`super::post`])
//! and recording ([`super`]). Invariants: of a tenant's notifications only the first is worked on, by one step at a time; nothing is
//! begun in a partition that is not ours; at most [`MAX_IN_FLIGHT`] steps are under way.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use exchequer_budget::TenantId;

/// Deliveries and records under way at once; a tenant has one at most.
pub(super) const MAX_IN_FLIGHT: usize = 64;
/// What a receiver's `Retry-After` can ask for at most.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Wait before what could not be done for a reason of our own is tried again.
pub(super) const AGAIN: Duration = Duration::from_secs(1);
/// A wait is lengthened by up to one part in this many, at random.
const JITTER_SHARE: u32 = 4;

/// Waits between the attempts at a notification, each lengthened at random by up to a quarter. It is given up when the attempt after the
/// last one fails, about eight hours after the first.
pub const WEBHOOK_RETRIES: [Duration; 8] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(2 * 60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(3600),
    Duration::from_secs(2 * 3600),
    Duration::from_secs(4 * 3600),
];

/// Whose notifications are delivered one after the other: a tenant of a partition.
pub(super) type Line = (u16, TenantId);

/// Where it was decided that a threshold is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// Stream sequence of the block.
    pub(super) stream_seq: u64,
    /// The decision's time, milliseconds since the Unix epoch.
    pub(super) time_ms: u64,
}

/// How a notification ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) delivered: bool,
    /// Attempts made here.
    pub(super) attempts: u32,
    pub(super) detail: String,
}

/// Something to do, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) line: Line,
    /// The notification.
    pub(super) number: u64,
    /// Known if the block was read since this process began.
    pub(super) origin: Option<Origin>,
    /// How it ended, which is to be recorded; without, it is to be delivered.
    pub(super) verdict: Option<Verdict>,
}

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The receiver has it.
    Delivered(String),
    /// The receiver did not take it.
    Failed {
        detail: String,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// There is no receiver any more.
    Nowhere,
    /// It does not wait any more: its end is recorded.
    Ended,
    /// It could not be done here, for a while.
    Postponed,
}

#[derive(Debug, Default)]
struct Turn {
    waiting: BTreeMap<u64, Option<Origin>>,
    /// Attempts at the first.
    attempts: u32,
    /// How the first ended, until that is recorded.
    verdict: Option<Verdict>,
    /// When there is something to do; none while it is being done, and where it is not ours to do.
    due: Option<Duration>,
    /// Whether a step is under way.
    busy: bool,
}

impl Turn {
    fn first(&self) -> Option<u64> {
        self.waiting.first_key_value().map(|(&number, _)| number)
    }
}

/// The notifications of all partitions, as the fold has them, and the plan for ours.
#[derive(Debug)]
pub(super) struct Outbox {
    retries: Vec<Duration>,
    lines: BTreeMap<Line, Turn>,
    due: BTreeSet<(Duration, Line)>,
    ours: BTreeSet<u16>,
    waiting: BTreeMap<u16, u64>,
    in_flight: usize,
}

impl Outbox {
    pub(super) fn new(retries: Vec<Duration>) -> Self {
        Self {
            retries,
            lines: BTreeMap::new(),
            due: BTreeSet::new(),
            ours: BTreeSet::new(),
            waiting: BTreeMap::new(),
            in_flight: 0,
        }
    }

    /// A notification waits.
    pub(super) fn add(&mut self, now: Duration, line: &Line, number: u64, origin: Option<Origin>) {
        let turn = self.lines.entry(line.clone()).or_default();
        if turn.waiting.insert(number, origin).is_none() {
            *self.waiting.entry(line.0).or_default() += 1;
        }
        self.plan(now, line);
    }

    /// A notification's end is recorded.
    pub(super) fn end(&mut self, now: Duration, line: &Line, number: u64) {
        let Some(turn) = self.lines.get_mut(line) else { return };
        let was_first = turn.first() == Some(number);
        if turn.waiting.remove(&number).is_none() {
            return;
        }
        if let Some(waiting) = self.waiting.get_mut(&line.0) {
            *waiting -= 1;
        }
        if was_first {
            (turn.attempts, turn.verdict) = (0, None);
            if let Some(at) = turn.due.take() {
                self.due.remove(&(at, line.clone()));
            }
        }
        self.plan(now, line);
    }

    /// A partition is ours, or no longer. What was found out about its notifications is kept for when it is ours again.
    pub(super) fn own(&mut self, now: Duration, partition: u16, is_ours: bool) {
        let changed = if is_ours { self.ours.insert(partition) } else { self.ours.remove(&partition) };
        if !changed {
            return;
        }
        let lines = self.lines.iter().filter(|(line, _)| line.0 == partition);
        for line in lines.map(|(line, _)| line.clone()).collect::<Vec<_>>() {
            if is_ours {
                self.plan(now, &line);
            } else if let Some(at) = self.lines.get_mut(&line).and_then(|turn| turn.due.take()) {
                self.due.remove(&(at, line));
            }
        }
    }

    /// The next step that is due, which is under way from now on until [`Self::done`].
    pub(super) fn next(&mut self, now: Duration) -> Option<Step> {
        if self.in_flight >= MAX_IN_FLIGHT || self.due.first().is_none_or(|(at, _)| *at > now) {
            return None;
        }
        let (_, line) = self.due.pop_first()?;
        let turn = self.lines.get_mut(&line)?;
        let (&number, &origin) = turn.waiting.first_key_value()?;
        (turn.due, turn.busy) = (None, true);
        self.in_flight += 1;
        Some(Step { number, origin, verdict: turn.verdict.clone(), line })
    }

    /// A step has ended. `jitter` is drawn anew each time.
    pub(super) fn done(&mut self, now: Duration, step: &Step, outcome: Outcome, jitter: u8) {
        self.in_flight -= 1;
        let Some(turn) = self.lines.get_mut(&step.line) else { return };
        turn.busy = false;
        let mut at = now;
        // While it was under way, another owner may have recorded its end.
        if turn.first() == Some(step.number) {
            match outcome {
                Outcome::Delivered(detail) => {
                    turn.attempts += 1;
                    turn.verdict = Some(Verdict { delivered: true, attempts: turn.attempts, detail });
                }
                Outcome::Failed { detail, retry_after } => {
                    let wait = usize::try_from(turn.attempts).ok().and_then(|n| self.retries.get(n));
                    turn.attempts += 1;
                    match wait {
                        Some(&wait) => {
                            let longer = wait * u32::from(jitter) / (u32::from(u8::MAX) * JITTER_SHARE);
                            at += (wait + longer).max(retry_after.unwrap_or_default().min(MAX_RETRY_AFTER));
                        }
                        None => {
                            turn.verdict =
                                Some(Verdict { delivered: false, attempts: turn.attempts, detail });
                        }
                    }
                }
                Outcome::Nowhere => {
                    let detail = "the tenant has no webhook any more".to_owned();
                    turn.verdict = Some(Verdict { delivered: false, attempts: turn.attempts, detail });
                }
                Outcome::Ended => return self.end(now, &step.line, step.number),
                Outcome::Postponed => at += AGAIN,
            }
        }
        self.plan(at, &step.line);
    }

    /// When the next step is due, if one can be begun.
    pub(super) fn wake_at(&self) -> Option<Duration> {
        let (at, _) = self.due.first().filter(|_| self.in_flight < MAX_IN_FLIGHT)?;
        Some(*at)
    }

    /// Notifications that wait in our partitions.
    pub(super) fn waiting(&self) -> u64 {
        self.ours.iter().filter_map(|partition| self.waiting.get(partition)).sum()
    }

    /// Something is to be done for a line at a time, unless that is known already, under way, or not ours to do.
    fn plan(&mut self, at: Duration, line: &Line) {
        let Some(turn) = self.lines.get_mut(line) else { return };
        if turn.waiting.is_empty() {
            if !turn.busy {
                self.lines.remove(line);
            }
        } else if !turn.busy && turn.due.is_none() && self.ours.contains(&line.0) {
            turn.due = Some(at);
            self.due.insert((at, line.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn line(tenant: &str) -> Line {
        (0, TenantId::parse(tenant).unwrap())
    }

    /// Ours is partition 0, with two waits between attempts: 10 s and 100 s.
    fn outbox() -> Outbox {
        let mut outbox = Outbox::new(vec![10 * S, 100 * S]);
        outbox.own(Duration::ZERO, 0, true);
        outbox
    }

    fn failed() -> Outcome {
        Outcome::Failed { detail: "answered 500".to_owned(), retry_after: None }
    }

    fn delivered() -> Outcome {
        Outcome::Delivered("answered 204".to_owned())
    }

    /// The step that is next: its number, and what it is to record.
    fn take(outbox: &mut Outbox, now: Duration, want: (u64, Option<(bool, u32)>)) -> Step {
        let step = outbox.next(now).expect("something is due");
        let verdict = step.verdict.as_ref().map(|verdict| (verdict.delivered, verdict.attempts));
        assert_eq!((step.number, verdict), want);
        step
    }

    #[test]
    fn a_tenants_notifications_go_one_after_the_other_and_each_is_recorded_before_the_next() {
        let mut outbox = outbox();
        let acme = line("acme");
        for number in [2, 1, 3] {
            outbox.add(S, &acme, number, None);
        }
        assert_eq!((outbox.waiting(), outbox.wake_at()), (3, Some(S)));
        let step = take(&mut outbox, S, (1, None));
        assert_eq!(outbox.next(S), None, "one at a time");
        outbox.done(2 * S, &step, delivered(), 0);
        let step = take(&mut outbox, 2 * S, (1, Some((true, 1))));
        // The record could not be made, so that it is made again; nothing is delivered again for that.
        outbox.done(3 * S, &step, Outcome::Postponed, 0);
        assert_eq!(outbox.next(3 * S), None);
        let step = take(&mut outbox, 4 * S, (1, Some((true, 1))));
        outbox.end(4 * S, &acme, 1);
        assert_eq!(outbox.next(4 * S), None, "the step is still under way");
        outbox.done(5 * S, &step, Outcome::Ended, 0);
        take(&mut outbox, 5 * S, (2, None));
        assert_eq!(outbox.waiting(), 2);
    }

    #[test]
    fn attempts_follow_the_table_with_jitter_above_it_and_after_the_last_it_is_given_up() {
        let mut outbox = outbox();
        let acme = line("acme");
        outbox.add(S, &acme, 7, None);
        outbox.add(S, &acme, 8, None);
        let step = take(&mut outbox, S, (7, None));
        outbox.done(S, &step, failed(), 0);
        assert_eq!(outbox.wake_at(), Some(11 * S));
        assert_eq!(outbox.next(10 * S), None);
        let step = take(&mut outbox, 11 * S, (7, None));
        outbox.done(11 * S, &step, failed(), u8::MAX);
        assert_eq!(outbox.wake_at(), Some(136 * S), "100 s and a quarter");
        let step = take(&mut outbox, 136 * S, (7, None));
        outbox.done(137 * S, &step, failed(), 0);
        let step = take(&mut outbox, 137 * S, (7, Some((false, 3))));
        outbox.end(138 * S, &acme, 7);
        outbox.done(138 * S, &step, Outcome::Ended, 0);
        // The next one begins the table anew.
        let step = take(&mut outbox, 138 * S, (8, None));
        outbox.done(138 * S, &step, failed(), 0);
        assert_eq!(outbox.wake_at(), Some(148 * S));
    }

    #[test]
    fn retry_after_lengthens_a_wait_within_bounds_and_never_shortens_it() {
        for (asked, want) in [(1, 10), (60, 60), (3600, 3600), (86_400, 3600)] {
            let mut outbox = outbox();
            outbox.add(S, &line("acme"), 1, None);
            let step = take(&mut outbox, S, (1, None));
            let retry_after = Some(Duration::from_secs(asked));
            outbox.done(S, &step, Outcome::Failed { detail: String::new(), retry_after }, 0);
            assert_eq!(outbox.wake_at(), Some(Duration::from_secs(1 + want)), "{asked}");
        }
    }

    #[test]
    fn one_tenants_failures_hold_up_no_other() {
        let mut outbox = outbox();
        outbox.add(S, &line("acme"), 1, None);
        outbox.add(S, &line("zeta"), 2, None);
        let first = take(&mut outbox, S, (1, None));
        let second = take(&mut outbox, S, (2, None));
        outbox.done(S, &first, failed(), 0);
        outbox.done(S, &second, delivered(), 0);
        take(&mut outbox, S, (2, Some((true, 1))));
        assert_eq!(outbox.wake_at(), Some(11 * S));
    }

    #[test]
    fn only_so_many_are_under_way_and_a_place_that_gets_free_is_taken() {
        let mut outbox = outbox();
        for n in 0..=MAX_IN_FLIGHT {
            outbox.add(S, &line(&format!("tenant-{n}")), n as u64 + 1, None);
        }
        let steps: Vec<_> = std::iter::from_fn(|| outbox.next(S)).collect();
        assert_eq!((steps.len(), outbox.wake_at()), (MAX_IN_FLIGHT, None));
        outbox.done(S, &steps[0], failed(), 0);
        assert!(outbox.next(S).is_some());
        assert_eq!(outbox.next(S), None);
    }

    #[test]
    fn what_is_anothers_is_left_alone_and_what_was_delivered_is_recorded_once_it_is_ours_again() {
        let mut outbox = outbox();
        let (acme, far) = (line("acme"), (1, TenantId::parse("far").unwrap()));
        outbox.add(S, &far, 1, None);
        assert_eq!((outbox.next(S), outbox.waiting()), (None, 0));
        outbox.add(S, &acme, 1, None);
        outbox.add(S, &acme, 2, None);
        let step = take(&mut outbox, S, (1, None));
        outbox.own(S, 0, false);
        outbox.done(2 * S, &step, delivered(), 0);
        assert_eq!(outbox.next(2 * S), None);
        outbox.own(3 * S, 0, true);
        let step = take(&mut outbox, 3 * S, (1, Some((true, 1))));
        // Another owner was first with it.
        outbox.end(3 * S, &acme, 1);
        outbox.done(3 * S, &step, Outcome::Postponed, 0);
        let step = take(&mut outbox, 3 * S, (2, None));
        // And with this one while it is under way: what comes of it is nothing any more.
        outbox.end(4 * S, &acme, 2);
        outbox.done(4 * S, &step, delivered(), 0);
        assert_eq!((outbox.next(5 * S), outbox.waiting(), outbox.wake_at()), (None, 0, None));
        assert_eq!(outbox.lines.len(), 1, "nothing is kept of a tenant for whom nothing waits");
    }

    #[test]
    fn without_a_receiver_it_is_given_up_at_once() {
        let mut outbox = outbox();
        outbox.add(S, &line("acme"), 1, None);
        let step = take(&mut outbox, S, (1, None));
        outbox.done(S, &step, Outcome::Nowhere, 0);
        take(&mut outbox, S, (1, Some((false, 0))));
    }
}
