//! Tells tenants' webhooks of the thresholds that were reached: in order for each tenant, again until taken or given up.
//!
//! What waits to be told is part of the fold, and so is each end, recorded through the writer: an instance that dies or loses a partition
//! leaves to the next owner exactly what is not recorded as ended. A receiver can therefore get a notification more than once, under the
//! same id. What is due when is [`outbox`]; this is the task around it. Left out: which thresholds are reached (`exchequer-budget`).
//! Invariants: only the owner of a partition delivers; the outbox has what the fold has, told in the fold's order.

mod address;
mod outbox;
mod payload;
mod post;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ed25519_dalek::SigningKey;
use exchequer_budget::{Action, Command, Event, Label, Subject};
use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, pending},
    stream::FuturesUnordered,
};
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

pub use self::{address::AllowedHost, outbox::WEBHOOK_RETRIES};
use self::{
    outbox::{Line, Origin, Outbox, Outcome, Step, Verdict},
    post::Post,
};
use crate::{core::Block, fold::Fold, queue::Queue, route::Route, writer::Shared};

/// Longest text of what came of a notification, characters: what a [`Label`] holds.
const MAX_DETAIL: usize = 256;

/// The outbox, as the writer keeps it up to date and the [`Notifier`] works it off.
#[derive(Debug)]
pub(crate) struct Board {
    outbox: Mutex<Outbox>,
    changed: Notify,
    began: Instant,
}

impl Board {
    /// With what waits in a fold.
    pub(crate) fn new(fold: &Fold, retries: Vec<Duration>) -> Self {
        let mut outbox = Outbox::new(retries);
        for partition in 0..fold.partitions() {
            for reached in fold.budget(partition).notifications() {
                let line = (partition, reached.scope.tenant_id());
                outbox.add(Duration::ZERO, &line, reached.notification, None);
            }
        }
        Self { outbox: Mutex::new(outbox), changed: Notify::new(), began: Instant::now() }
    }

    /// Takes the notifications that an accepted block gives out and ends. Called in the fold's order.
    pub(crate) fn folded(&self, block: &Block) {
        let origin = Some(Origin { stream_seq: block.stream_seq, time_ms: block.now_ms });
        let mut is_changed = false;
        for run in &block.runs {
            for event in run.decisions.iter().flat_map(|decision| &decision.events) {
                match event {
                    Event::ThresholdReached(reached) if reached.notification > 0 => {
                        let line = (block.partition, reached.scope.tenant_id());
                        self.outbox().add(self.now(), &line, reached.notification, origin);
                    }
                    Event::NotificationEnded { notification, .. } => {
                        let line = (block.partition, run.tenant.clone());
                        self.outbox().end(self.now(), &line, *notification);
                    }
                    _ => continue,
                }
                is_changed = true;
            }
        }
        if is_changed {
            self.changed.notify_one();
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Delivers what waits in the partitions that this instance serves.
pub(crate) struct Notifier {
    board: Arc<Board>,
    shared: Shared,
    queue: Queue,
    post: Post,
    stop: CancellationToken,
}

impl Notifier {
    pub(crate) fn new(
        board: Arc<Board>,
        shared: Shared,
        queue: Queue,
        key: SigningKey,
        allowed: Vec<AllowedHost>,
        stop: CancellationToken,
    ) -> Self {
        Self { board, shared, queue, post: Post::new(key, allowed), stop }
    }

    /// Runs until stopped. What is under way then is cut off, and delivered again by the next owner.
    pub(crate) async fn run(self) {
        let mut serving = self.shared.router.subscribe();
        let mut doing: FuturesUnordered<BoxFuture<'_, (Step, Outcome)>> = FuturesUnordered::new();
        self.look_who_serves();
        loop {
            while let Some(step) = self.begin() {
                doing.push(self.carry_out(step).boxed());
            }
            let wake = self.board.outbox().wake_at();
            tokio::select! {
                () = self.stop.cancelled() => return,
                changed = serving.changed() => match changed {
                    Ok(()) => self.look_who_serves(),
                    Err(_) => return,
                },
                () = self.board.changed.notified() => {}
                Some((step, outcome)) = doing.next() => self.finish(&step, outcome),
                () = until(wake.map(|at| at.saturating_sub(self.board.now()))) => {}
            }
        }
    }

    fn look_who_serves(&self) {
        let router = &self.shared.router;
        let mut outbox = self.board.outbox();
        for partition in 0..router.partitions() {
            outbox.own(self.board.now(), partition, router.serving(partition).is_ok());
        }
    }

    fn begin(&self) -> Option<Step> {
        let mut outbox = self.board.outbox();
        let step = outbox.next(self.board.now());
        self.shared.metrics.notifications_waiting.record(outbox.waiting(), &[]);
        step
    }

    fn finish(&self, step: &Step, outcome: Outcome) {
        let (partition, number) = (step.line.0, step.number);
        if let Outcome::Failed { detail, .. } = &outcome {
            self.shared.metrics.webhook_failures.add(1, &[]);
            tracing::info!(partition, number, tenant = %step.line.1, detail, "a webhook did not take a notification");
        }
        self.board.outbox().done(self.board.now(), step, outcome, jitter());
    }

    async fn carry_out(&self, step: Step) -> (Step, Outcome) {
        let outcome = match &step.verdict {
            // The lease's clock is looked at, too.
            _ if !matches!(self.shared.router.route(step.line.0), Route::Here) => Outcome::Postponed,
            None => self.deliver(&step).await,
            Some(verdict) => self.record(&step, verdict).await,
        };
        (step, outcome)
    }

    async fn deliver(&self, step: &Step) -> Outcome {
        let (partition, tenant) = &step.line;
        let (reached, url) = {
            let fold = self.shared.fold();
            let budget = fold.budget(*partition);
            (budget.notification(step.number).cloned(), budget.webhook(tenant).cloned())
        };
        // Where a stream that lost messages was folded anew, the number may be another tenant's now.
        let Some(reached) = reached.filter(|reached| reached.scope.tenant() == tenant.as_str()) else {
            return Outcome::Ended;
        };
        let Some(url) = url else { return Outcome::Nowhere };
        let id = payload::id(*partition, step.number);
        self.post.post(url.as_str(), &id, payload::body(*partition, &reached, step.origin)).await
    }

    /// Has the writer record how it ended, which may turn out to be recorded already.
    async fn record(&self, step: &Step, verdict: &Verdict) -> Outcome {
        let (partition, number) = (step.line.0, step.number);
        if self.shared.fold().budget(partition).notification(number).is_none() {
            return Outcome::Ended;
        }
        let Ok(asked) = self.queue.submit_many(partition, vec![end(&step.line, number, verdict)]) else {
            return Outcome::Postponed;
        };
        // An answer comes once the fold has the block; without one, it is looked for there before it is asked for again.
        match asked.await.as_deref() {
            Ok([Ok(_)]) => {
                self.shared.metrics.notified(verdict.delivered);
                if !verdict.delivered {
                    let detail = &verdict.detail;
                    tracing::warn!(partition, number, tenant = %step.line.1, detail, "a notification was given up");
                }
                Outcome::Ended
            }
            _ => Outcome::Postponed,
        }
    }
}

fn end((_, tenant): &Line, number: u64, verdict: &Verdict) -> Command {
    let detail: String = verdict.detail.chars().filter(|c| !c.is_control()).take(MAX_DETAIL).collect();
    let action = Action::EndNotification {
        notification: number,
        delivered: verdict.delivered,
        attempts: verdict.attempts,
        detail: Label::parse(&detail).ok(),
    };
    Command::new(tenant.clone(), Subject::metering(), None, action).expect("names no scope and no amounts")
}

/// Spreads attempts that failed together. Without randomness they are made together.
fn jitter() -> u8 {
    getrandom::u32().map_or(0, |drawn| drawn.to_le_bytes()[0])
}

async fn until(wait: Option<Duration>) {
    match wait {
        Some(wait) => sleep(wait).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use exchequer_budget::{Decision, DecisionRun, Meter, Reached, ScopePath, TenantId, Threshold, Window};

    use super::*;

    fn block(stream_seq: u64, events: Vec<Event>) -> Block {
        let decision = Decision { events, actor: Subject::metering(), idempotency: None };
        let run = DecisionRun { tenant: TenantId::parse("acme").unwrap(), decisions: vec![decision] };
        Block { partition: 0, stream_seq, now_ms: 7, is_ours: false, runs: vec![run], undecodable: 0 }
    }

    fn reached(notification: u64) -> Event {
        Event::ThresholdReached(Arc::new(Reached {
            scope: ScopePath::parse("acme/chat").unwrap(),
            window: Window::AllTime,
            meter: Meter::CpuMs,
            window_start_ms: 0,
            threshold: Threshold::SpentAmount(1),
            spent: 1,
            granted: 1,
            forecast: 0,
            notification,
        }))
    }

    #[test]
    fn the_outbox_follows_what_is_folded_whoever_decided_it() {
        let board = Board::new(&Fold::new(1), Vec::new());
        board.outbox().own(Duration::ZERO, 0, true);
        // Without a number, there is nobody to tell.
        board.folded(&block(5, vec![reached(0), reached(1), reached(2)]));
        assert_eq!(board.outbox().waiting(), 2);
        let ended = |notification| {
            let (delivered, attempts, detail) = (true, 1, None);
            Event::NotificationEnded { notification, delivered, attempts, detail }
        };
        board.folded(&block(6, vec![ended(1)]));
        let step = board.outbox().next(board.now()).unwrap();
        assert_eq!((step.number, step.origin), (2, Some(Origin { stream_seq: 5, time_ms: 7 })));
        board.folded(&block(7, vec![ended(2)]));
        assert_eq!(board.outbox().waiting(), 0);
    }
}
