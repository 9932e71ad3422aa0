//! The arithmetic of one slice: a part of a budget that the agent holds by a lease and admits executions against by itself.
//!
//! Pure: amounts and times are passed in. Left out: the calls that obtain, extend and close leases ([`leases`](crate::leases)).
//! Invariant: what running executions have reserved and ended ones have drawn is never more than metering granted, unless an execution
//! used more than it had reserved, and then nothing is admitted until that is made up. Nothing is admitted that could still run when
//! metering lets the lease run out: the slice's end is reckoned from before the request for it was sent, so it is never the later one.

use exchequer_event::metered::Metered;

/// A slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    hold_id: String,
    leased: Metered,
    reserved: Metered,
    drawn: Metered,
    running: u64,
    ends_ms: u64,
    is_closed: bool,
}

/// Why a slice does not admit an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    /// It is closed for good.
    Closed,
    /// It ends before the execution is sure to have been charged.
    Time,
    /// Less is left of it.
    Amounts,
}

impl Slice {
    /// The slice of a lease that was granted, for which the request was sent at `sent_ms`.
    pub fn new(hold_id: String, leased: Metered, sent_ms: u64, ttl_ms: u64) -> Self {
        let (reserved, drawn) = (Metered::default(), Metered::default());
        let ends_ms = sent_ms.saturating_add(ttl_ms);
        Self { hold_id, leased, reserved, drawn, running: 0, ends_ms, is_closed: false }
    }

    /// The lease.
    pub fn hold_id(&self) -> &str {
        &self.hold_id
    }

    /// What metering has granted so far.
    pub fn leased(&self) -> &Metered {
        &self.leased
    }

    /// What executions without a recorded outcome may still use.
    pub fn reserved(&self) -> &Metered {
        &self.reserved
    }

    /// What executions with a recorded outcome are charged.
    pub fn drawn(&self) -> &Metered {
        &self.drawn
    }

    /// Executions without a recorded outcome.
    pub fn running(&self) -> u64 {
        self.running
    }

    /// When it ends.
    pub fn ends_ms(&self) -> u64 {
        self.ends_ms
    }

    /// Whether nothing more is admitted, for good.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// What more can be reserved.
    pub fn left(&self) -> Metered {
        let taken = self.reserved.zip(&self.drawn, u64::saturating_add);
        self.leased.zip(&taken, u64::saturating_sub)
    }

    /// Reserves `need` for an execution that is sure to have ended and been charged at `until_ms`.
    pub fn admit(&mut self, need: &Metered, until_ms: u64) -> Result<(), Short> {
        if self.is_closed {
            return Err(Short::Closed);
        }
        if until_ms > self.ends_ms {
            return Err(Short::Time);
        }
        if !need.is_within(&self.left()) {
            return Err(Short::Amounts);
        }
        self.reserved = self.reserved.zip(need, u64::saturating_add);
        self.running += 1;
        Ok(())
    }

    /// Ends an execution that had reserved `need`: what it did not use is left again. An execution that never ran used nothing.
    pub fn finish(&mut self, need: &Metered, used: &Metered) {
        self.reserved = self.reserved.zip(need, u64::saturating_sub);
        self.drawn = self.drawn.zip(used, u64::saturating_add);
        self.running = self.running.saturating_sub(1);
    }

    /// Metering added `added` and lets the lease live for `ttl_ms` more; it was asked at `sent_ms`.
    pub fn extend(&mut self, added: &Metered, sent_ms: u64, ttl_ms: u64) {
        self.leased = self.leased.zip(added, u64::saturating_add);
        self.ends_ms = sent_ms.saturating_add(ttl_ms);
    }

    /// Nothing more is admitted.
    pub fn close(&mut self) {
        self.is_closed = true;
    }

    /// What is missing for `full` to be left.
    pub fn missing(&self, full: &Metered) -> Metered {
        full.zip(&self.left(), u64::saturating_sub)
    }

    /// Whether less than `percent` of any amount of `full` is left.
    pub fn is_low(&self, full: &Metered, percent: u64) -> bool {
        !full.zip(full, |full, _| full.saturating_mul(percent) / 100).is_within(&self.left())
    }

    /// Whether the lease can be given back: it is closed, nothing runs, and metering has charged all that was drawn. Given back earlier, it
    /// would free amounts that are still to be charged.
    pub fn is_settled(&self, charged: &Metered) -> bool {
        self.is_closed && self.running == 0 && self.drawn.is_within(charged)
    }
}

#[cfg(test)]
mod tests;
