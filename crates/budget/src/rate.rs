//! Rate limits: GCRA, exact in integers.
//!
//! Time is scaled by the rate, so that one unit of the meter takes `period_ms` of it and nothing is rounded: at `now_ms` the scaled
//! time is `now_ms * amount`. `tat` is the theoretical arrival time of the next unit; `burst` units may be ahead of the clock.

/// A limit and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// At least 1.
    pub(crate) amount: u64,
    /// At least 1.
    pub(crate) period_ms: u64,
    /// At least 1.
    pub(crate) burst: u64,
    /// Scaled; no more than the scaled time where nothing waits.
    pub(crate) tat: u128,
}

/// What does not fit now.
pub(crate) struct Excess {
    /// What would.
    pub(crate) available: u64,
    /// When all of it does; 0 for never.
    pub(crate) retry_after_ms: u64,
}

impl Rate {
    fn scaled(&self, now_ms: u64) -> u128 {
        u128::from(now_ms) * u128::from(self.amount)
    }

    fn cost(&self, units: u64) -> u128 {
        u128::from(units) * u128::from(self.period_ms)
    }

    /// Whether `units` fit at `now_ms`.
    pub(crate) fn admits(&self, units: u64, now_ms: u64) -> Result<(), Excess> {
        let now = self.scaled(now_ms);
        let ahead = self.tat.saturating_sub(now);
        let (room, cost) = (self.cost(self.burst), self.cost(units));
        if ahead.saturating_add(cost) <= room {
            return Ok(());
        }
        let available = u64::try_from(room.saturating_sub(ahead) / u128::from(self.period_ms));
        let wait = if units > self.burst {
            0
        } else {
            ahead.saturating_add(cost).saturating_sub(room).div_ceil(u128::from(self.amount))
        };
        Err(Excess {
            available: available.unwrap_or(u64::MAX).min(units.saturating_sub(1)),
            retry_after_ms: u64::try_from(wait).unwrap_or(u64::MAX),
        })
    }

    /// Takes `units` at `now_ms`, whether they fit or not.
    pub(crate) fn take(&mut self, units: u64, now_ms: u64) {
        self.tat = self.tat.max(self.scaled(now_ms)).saturating_add(self.cost(units));
    }

    /// Another limit in place of this one: what was taken and is not yet paid off by time stays taken, rounded up.
    pub(crate) fn replace(&mut self, amount: u64, period_ms: u64, burst: u64, now_ms: u64) {
        let ahead = self.tat.saturating_sub(self.scaled(now_ms));
        let ahead = ahead.saturating_mul(u128::from(period_ms)).div_ceil(u128::from(self.period_ms));
        *self = Self { amount, period_ms, burst, tat: 0 };
        if ahead > 0 {
            self.tat = self.scaled(now_ms).saturating_add(ahead);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(amount: u64, period_ms: u64, burst: u64) -> Rate {
        Rate { amount, period_ms, burst, tat: 0 }
    }

    fn check(rate: &Rate, units: u64, now_ms: u64, want: Option<(u64, u64)>) {
        let got = rate.admits(units, now_ms).err().map(|excess| (excess.available, excess.retry_after_ms));
        assert_eq!(got, want, "{units} at {now_ms}");
    }

    #[test]
    fn a_burst_fits_at_once_and_the_rest_when_it_was_paid_off() {
        let mut rate = rate(3, 1_000, 5);
        rate.take(5, 10_000);
        // A unit takes 333⅓ ms: it is there after 334 of them, three after 1,000.
        check(&rate, 1, 10_000, Some((0, 334)));
        check(&rate, 1, 10_333, Some((0, 1)));
        check(&rate, 1, 10_334, None);
        check(&rate, 3, 10_000, Some((0, 1_000)));
        check(&rate, 3, 10_999, Some((2, 1)));
        check(&rate, 3, 11_000, None);
        check(&rate, 6, 99_000, Some((5, 0)));
        // Waiting longer than a burst takes saves up no more than one.
        check(&rate, 5, 99_000, None);
    }

    #[test]
    fn nothing_is_lost_to_rounding() {
        // Seven a second, asked for every millisecond: after 1,000 s there were 7,000 more than the burst, no more and no fewer.
        let mut rate = rate(7, 1_000, 2);
        let mut taken = 0;
        for now_ms in 1..=1_000_000 {
            if rate.admits(1, now_ms).is_ok() {
                rate.take(1, now_ms);
                taken += 1;
            }
        }
        assert_eq!(taken, 7_001);
    }

    #[test]
    fn a_changed_limit_keeps_what_was_taken() {
        let mut rate = rate(10, 1_000, 10);
        rate.take(10, 5_000);
        rate.replace(1, 1_000, 10, 5_500);
        // Five units were left to pay off; now each takes a second.
        check(&rate, 10, 5_500, Some((5, 5_000)));
        check(&rate, 5, 5_500, None);
    }

    #[test]
    fn the_largest_limit_does_not_overflow() {
        let most = crate::MAX_AMOUNT;
        let mut rate = rate(most, crate::MAX_PERIOD_MS, most);
        for _ in 0..100 {
            rate.take(most, u64::MAX);
        }
        rate.replace(1, 1, 1, u64::MAX);
        check(&rate, 1, u64::MAX, Some((0, 100 * most)));
    }
}
