//! How many refusals a tenant can have recorded: a token bucket each, so that garbage can't fill the spool.
//!
//! Left out: clocks (the time is given) and recording. Invariant: what is not recorded is counted, and the next that is recorded of the
//! tenant says how many it stands for.

use std::{collections::BTreeMap, time::Duration};

/// Refusals that a tenant can have recorded at once.
pub const BURST: u32 = 64;
/// After this long, one more.
pub const INTERVAL: Duration = Duration::from_millis(125);
/// Tenants that have a bucket of their own at a time; the others share one.
const MAX_TENANTS: usize = 1024;
/// Whose bucket is shared: no tenant has this name.
const SHARED: &str = "";

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// When it will be full.
    full_at: Duration,
    unrecorded: u64,
}

/// The buckets.
#[derive(Debug, Default)]
pub struct Throttle {
    buckets: BTreeMap<String, Bucket>,
}

impl Throttle {
    /// Whether a refusal of this tenant may be recorded at this time since some beginning; if so, how many before it were not.
    pub fn take(&mut self, tenant: &str, now: Duration) -> Option<u64> {
        if !self.buckets.contains_key(tenant) && self.buckets.len() >= MAX_TENANTS {
            self.buckets.retain(|_, bucket| bucket.full_at > now || bucket.unrecorded > 0);
        }
        let is_known = self.buckets.contains_key(tenant) || self.buckets.len() < MAX_TENANTS;
        let name = if is_known { tenant } else { SHARED };
        let bucket = self.buckets.entry(name.to_owned()).or_insert(Bucket { full_at: now, unrecorded: 0 });
        let full_at = bucket.full_at.max(now) + INTERVAL;
        if full_at > now + INTERVAL * BURST {
            bucket.unrecorded += 1;
            return None;
        }
        bucket.full_at = full_at;
        Some(std::mem::take(&mut bucket.unrecorded))
    }

    /// A refusal that was to be recorded, for itself and for so many before it, was not: the next says so.
    pub fn put_back(&mut self, tenant: &str, unrecorded: u64) {
        let name = if self.buckets.contains_key(tenant) { tenant } else { SHARED };
        let empty = Bucket { full_at: Duration::ZERO, unrecorded: 0 };
        let bucket = self.buckets.entry(name.to_owned()).or_insert(empty);
        bucket.unrecorded = bucket.unrecorded.saturating_add(unrecorded).saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_another_tenant_is_not_affected() {
        let (mut throttle, now) = (Throttle::default(), Duration::from_secs(7));
        let recorded = (0..1000).filter(|_| throttle.take("a", now).is_some()).count();
        assert_eq!(recorded, BURST as usize);
        assert_eq!(throttle.take("b", now), Some(0));
        assert_eq!(throttle.take("a", now + INTERVAL), Some(1000 - u64::from(BURST)));
        assert_eq!(throttle.take("a", now + INTERVAL), None);
        assert_eq!(throttle.take("a", now + INTERVAL * 2), Some(1));
        let much_later = now + INTERVAL * BURST * 9;
        let recorded = (0..1000).filter(|_| throttle.take("a", much_later).is_some()).count();
        assert_eq!(recorded, BURST as usize, "what was not used does not add up");
    }

    #[test]
    fn what_could_not_be_recorded_is_counted_again_with_itself() {
        let (mut throttle, now) = (Throttle::default(), Duration::from_secs(7));
        while throttle.take("a", now).is_some() {}
        let unrecorded = throttle.take("a", now + INTERVAL).unwrap();
        assert_eq!(unrecorded, 1);
        throttle.put_back("a", unrecorded);
        assert_eq!(throttle.take("a", now + INTERVAL * 2), Some(2));
    }

    #[test]
    fn any_number_of_names_takes_a_bounded_room() {
        let mut throttle = Throttle::default();
        for name in 0..5000 {
            throttle.take(&name.to_string(), Duration::ZERO);
        }
        assert!(throttle.buckets.len() <= MAX_TENANTS + 1);
        assert_eq!(throttle.take("new", Duration::ZERO), None, "the shared bucket is empty");
        assert!(throttle.take("new", Duration::from_secs(60)).is_some());
    }
}
