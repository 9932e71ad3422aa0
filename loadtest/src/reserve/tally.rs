//! What callers were answered, or what the log records, in a form in which the two can be compared.
//!
//! Left out: balances ([`super::audit`]). Invariant: two tallies are equal only if each decision that one has, with its idempotency key, its
//! hold and the place of its block, the other has too, as often (but for a collision of 64 bits).

use exchequer_event::digest::Purpose;

use super::load::{self, Pair};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended<'a> {
    /// A hold of so much.
    Granted(&'a str, Pair),
    /// No hold, for want of the scope's budget.
    Denied(&'a str),
    /// A hold's usage.
    Settled(&'a str, Pair),
}

/// Counts and sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) granted: u64,
    pub(super) denied: u64,
    pub(super) settled: u64,
    pub(super) held: Pair,
    pub(super) spent: Pair,
    /// Sum over all decisions of a digest of each.
    digests: u64,
}

impl Tally {
    pub(super) fn take(&mut self, key: &str, stream_seq: u64, ended: Ended<'_>) {
        let (kind, name) = match ended {
            Ended::Granted(hold_id, amounts) => {
                self.granted += 1;
                load::add(&mut self.held, amounts);
                ("granted", hold_id)
            }
            Ended::Denied(scope) => {
                self.denied += 1;
                ("denied", scope)
            }
            Ended::Settled(hold_id, used) => {
                self.settled += 1;
                load::add(&mut self.spent, used);
                ("settled", hold_id)
            }
        };
        let seq = stream_seq.to_be_bytes();
        let digest = Purpose::Request.digest_fields([key.as_bytes(), kind.as_bytes(), name.as_bytes(), &seq]);
        let first = digest.0.first_chunk().copied().unwrap_or_default();
        self.digests = self.digests.wrapping_add(u64::from_be_bytes(first));
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.granted += other.granted;
        self.denied += other.denied;
        self.settled += other.settled;
        load::add(&mut self.held, other.held);
        load::add(&mut self.spent, other.spent);
        self.digests = self.digests.wrapping_add(other.digests);
    }

    pub(super) fn decisions(&self) -> u64 {
        self.granted + self.denied + self.settled
    }
}
