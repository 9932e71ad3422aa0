//! Slots to run in, and waiting for one: the clock and the wake-ups around [`Queue`].
//!
//! Left out: who is fair to whom. Invariant: a [`Slot`], and a place in the queue, end when they are dropped, at whatever moment that is; the
//! slot is then handed to whoever is next.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::{
    metrics,
    queue::{Queue, Refusal, Ticket},
};

/// Least and most time after which a caller is told to try again.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// How much the last execution counts for in the mean of how long a slot is held: one part in so many.
const MEAN_OVER: u32 = 8;

/// What a ticket that waits is told.
enum Word {
    Runs,
    Displaced,
    Closed,
}

struct State {
    queue: Queue,
    waiters: HashMap<Ticket, oneshot::Sender<Word>>,
    mean_held: Duration,
}

impl State {
    fn tell(&mut self, ticket: Ticket, word: Word) {
        // Who does not listen any more is about to drop its place, and that hands the slot on.
        let _ = self.waiters.remove(&ticket).map(|waiter| waiter.send(word));
    }
}

/// The slots of an agent.
pub struct Slots {
    slots: usize,
    state: Mutex<State>,
}

/// Why there is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSlot {
    /// The queue is full, or its place went to a tenant that has fewer waiting.
    Full {
        /// When it may be worth while to try again.
        retry_after: Duration,
    },
    /// It waited as long as it was to.
    Patience {
        /// When it may be worth while to try again.
        retry_after: Duration,
    },
    /// The agent stops.
    Closed,
}

/// The right to run one execution, or to wait for it.
pub struct Slot {
    slots: Arc<Slots>,
    ticket: Ticket,
    since: Option<Instant>,
}

impl Slots {
    /// So many slots, of which one tenant has at most so many, and so many that may wait for one.
    pub fn new(slots: usize, max_per_tenant: usize, max_waiting: usize) -> Arc<Self> {
        let state = State {
            queue: Queue::new(slots, max_per_tenant, max_waiting),
            waiters: HashMap::new(),
            mean_held: RETRY_AFTER.0,
        };
        Arc::new(Self { slots, state: Mutex::new(state) })
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.state().queue.waiting()
    }

    /// How many have a slot.
    pub fn running(&self) -> usize {
        self.state().queue.running()
    }

    /// A slot, at once or within this time. May be dropped while it waits.
    pub async fn enter(self: &Arc<Self>, tenant: &str, patience: Duration) -> Result<Slot, NoSlot> {
        let (mut slot, told) = {
            let mut state = self.state();
            let entry = state.queue.enter(tenant).map_err(|refusal| match refusal {
                Refusal::Full => NoSlot::Full { retry_after: self.retry_after(&state) },
                Refusal::Closed => NoSlot::Closed,
            })?;
            if let Some(displaced) = entry.displaced {
                state.tell(displaced, Word::Displaced);
            }
            let since = entry.runs.then(Instant::now);
            let slot = Slot { slots: Arc::clone(self), ticket: entry.ticket, since };
            if entry.runs {
                return Ok(slot);
            }
            let (tell, told) = oneshot::channel();
            state.waiters.insert(entry.ticket, tell);
            (slot, told)
        };
        metrics::waiting().add(1, &[]);
        let _counted = Counted;
        let word = timeout_at(Instant::now() + patience, told).await;
        match word {
            Ok(Ok(Word::Runs)) => {
                slot.since = Some(Instant::now());
                Ok(slot)
            }
            Ok(Ok(Word::Displaced)) => Err(NoSlot::Full { retry_after: self.retry_after(&self.state()) }),
            Ok(Ok(Word::Closed) | Err(_)) => Err(NoSlot::Closed),
            Err(_) => {
                drop(slot);
                Err(NoSlot::Patience { retry_after: self.retry_after(&self.state()) })
            }
        }
    }

    /// Lets nobody in any more, and sends those away that wait.
    pub fn close(&self) {
        let mut state = self.state();
        for ticket in state.queue.close() {
            state.tell(ticket, Word::Closed);
        }
    }

    /// How long the queue takes to pass, if executions go on as they did.
    fn retry_after(&self, state: &State) -> Duration {
        let rounds = (state.queue.waiting() / self.slots.max(1)).saturating_add(1);
        let (least, most) = RETRY_AFTER;
        state.mean_held.saturating_mul(u32::try_from(rounds).unwrap_or(u32::MAX)).clamp(least, most)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What it guards is whole between any two statements that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.slots.state();
        state.waiters.remove(&self.ticket);
        if let Some(since) = self.since {
            let held = since.elapsed();
            state.mean_held = (state.mean_held * (MEAN_OVER - 1) + held) / MEAN_OVER;
        }
        if let Some(next) = state.queue.leave(self.ticket) {
            state.tell(next, Word::Runs);
        }
    }
}

/// One that waits, in the metrics.
struct Counted;

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::waiting().add(-1, &[]);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_place_that_is_dropped_hands_its_slot_on_at_whatever_moment() {
        let slots = Slots::new(1, 1, 8);
        let first = slots.enter("a", LONG).await.unwrap();
        let mut second = Box::pin(slots.enter("a", LONG));
        let mut third = Box::pin(slots.enter("b", LONG));
        assert!(futures::poll!(&mut second).is_pending() && futures::poll!(&mut third).is_pending());
        assert_eq!((slots.running(), slots.waiting()), (1, 2));
        drop(first);
        // The second has its slot by now and has not been polled: it goes away without ever having seen it.
        drop(second);
        assert!(matches!(futures::poll!(&mut third), Poll::Ready(Ok(_))));
        assert_eq!((slots.running(), slots.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn a_tenant_that_runs_as_many_as_one_may_waits_while_another_has_the_free_slot() {
        let slots = Slots::new(2, 1, 8);
        let first = slots.enter("a", LONG).await.unwrap();
        let mut second = Box::pin(slots.enter("a", LONG));
        assert!(futures::poll!(&mut second).is_pending());
        let _other = slots.enter("b", Duration::ZERO).await.unwrap();
        drop(first);
        assert!(matches!(futures::poll!(&mut second), Poll::Ready(Ok(_))));
    }

    #[tokio::test]
    async fn closing_sends_those_away_that_wait() {
        let slots = Slots::new(1, 1, 8);
        let _first = slots.enter("a", LONG).await.unwrap();
        let mut second = Box::pin(slots.enter("a", LONG));
        assert!(futures::poll!(&mut second).is_pending());
        slots.close();
        assert_eq!(second.await.err(), Some(NoSlot::Closed));
        assert_eq!(slots.enter("a", LONG).await.err(), Some(NoSlot::Closed));
    }

    #[tokio::test]
    async fn patience_ends_and_says_when_to_try_again() {
        let slots = Slots::new(1, 1, 1);
        let _first = slots.enter("a", LONG).await.unwrap();
        let refused = slots.enter("a", Duration::ZERO).await.err();
        assert_eq!(refused, Some(NoSlot::Patience { retry_after: RETRY_AFTER.0 }));
        let mut second = Box::pin(slots.enter("a", LONG));
        assert!(futures::poll!(&mut second).is_pending());
        assert!(matches!(slots.enter("a", LONG).await.err(), Some(NoSlot::Full { .. })));
    }
}
