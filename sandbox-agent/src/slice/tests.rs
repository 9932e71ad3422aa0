//! The slice against a model of metering's side, which keeps every grant and every execution in lists and shares no sum with it.

use proptest::prelude::*;

use super::*;

const TTL_MS: u64 = 1_000;

fn of(amount: u64) -> Metered {
    Metered([amount, 2 * amount, 3 * amount, amount / 2, 1, amount])
}

#[test]
fn it_admits_to_its_last_unit_and_no_further() {
    let mut slice = Slice::new("lease".into(), Metered([10, 20, 30, 5, 2, 7]), 0, TTL_MS);
    let need = Metered([6, 1, 1, 1, 1, 5]);
    assert_eq!(slice.admit(&need, 10), Ok(()));
    assert_eq!(slice.admit(&need, 10), Err(Short::Amounts));
    assert_eq!(slice.admit(&Metered([4, 1, 1, 1, 1, 2]), 10), Ok(()));
    assert_eq!(slice.left().0[..1], [0]);
    slice.finish(&need, &Metered([1, 1, 1, 1, 1, 0]));
    assert_eq!(slice.left(), Metered([5, 18, 28, 3, 0, 5]));
    assert_eq!(slice.admit(&need, 10), Err(Short::Amounts), "its invocations are used up");
}

#[test]
fn usage_above_what_was_reserved_is_made_up_before_anything_is_admitted() {
    let mut slice = Slice::new("lease".into(), of(10), 0, TTL_MS);
    slice.admit(&of(4), 10).unwrap();
    slice.finish(&of(4), &of(14));
    assert_eq!(slice.left().0[0], 0);
    slice.extend(&of(5), 5, TTL_MS);
    assert_eq!(slice.left().0[0], 1, "10 + 5 were granted and 14 used");
}

#[test]
fn it_can_be_given_back_only_when_it_is_closed_idle_and_charged() {
    let mut slice = Slice::new("lease".into(), of(10), 0, TTL_MS);
    slice.admit(&of(4), 10).unwrap();
    slice.close();
    assert_eq!(slice.admit(&of(1), 10), Err(Short::Closed));
    assert!(!slice.is_settled(&of(10)), "something runs");
    slice.finish(&of(4), &of(3));
    assert!(!slice.is_settled(&of(2)), "metering has not charged all of it");
    assert!(slice.is_settled(&of(3)));
    let open = Slice::new("lease".into(), of(10), 0, TTL_MS);
    assert!(!open.is_settled(&of(0)), "it still admits");
}

#[test]
fn it_is_low_when_any_meter_is() {
    let slice = Slice::new("lease".into(), Metered([100, 100, 100, 24, 100, 100]), 0, TTL_MS);
    assert!(slice.is_low(&Metered([100; 6]), 25));
    assert!(!slice.is_low(&Metered([100; 6]), 24));
    assert_eq!(slice.missing(&Metered([100; 6])), Metered([0, 0, 0, 76, 0, 0]));
}

#[derive(Clone, Debug)]
enum Step {
    /// An execution comes that needs this and takes so long.
    Admit {
        need: u64,
        takes_ms: u64,
    },
    /// The n-th of those that run ends and used this share of what it had reserved, percent.
    Finish {
        which: usize,
        percent: u64,
    },
    /// The n-th of those that run is lost: its outcome is never recorded.
    Lose {
        which: usize,
    },
    /// Metering is asked for more: it decides this much after the request was sent, and the answer takes as long again.
    Extend {
        added: u64,
        delay_ms: u64,
        is_answered: bool,
    },
    Revoke,
    Wait {
        ms: u64,
    },
}

/// How long a message takes; often no time at all, where being off by a little shows.
fn delay() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1..300_u64]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..40_u64, 0..900_u64).prop_map(|(need, takes_ms)| Step::Admit { need, takes_ms }),
        4 => (any::<usize>(), 0..=100_u64).prop_map(|(which, percent)| Step::Finish { which, percent }),
        1 => any::<usize>().prop_map(|which| Step::Lose { which }),
        2 => (0..100_u64, delay(), any::<bool>())
            .prop_map(|(added, delay_ms, is_answered)| Step::Extend { added, delay_ms, is_answered }),
        1 => Just(Step::Revoke),
        3 => (0..400_u64).prop_map(|ms| Step::Wait { ms }),
    ]
}

/// Metering's lease: what it granted and when it lets it run out.
struct Lease {
    granted: u64,
    ends_ms: u64,
    is_revoked: bool,
}

fn check(granted: u64, delay_ms: u64, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut now_ms = 10_000;
    let mut slice = Slice::new("lease".into(), of(granted), now_ms, TTL_MS);
    now_ms += delay_ms;
    let mut lease = Lease { granted, ends_ms: now_ms + TTL_MS, is_revoked: false };
    let (mut running, mut used): (Vec<Metered>, Vec<Metered>) = (Vec::new(), Vec::new());
    let mut lost: Vec<Metered> = Vec::new();
    for step in steps {
        match step {
            Step::Admit { need, takes_ms } => {
                let admitted = slice.admit(&of(need), now_ms + takes_ms);
                if admitted.is_ok() {
                    prop_assert!(!slice.is_closed(), "nothing is admitted after a revocation is known");
                    prop_assert!(now_ms + takes_ms <= lease.ends_ms, "it ends before metering's lease does");
                    running.push(of(need));
                }
            }
            Step::Finish { which, percent } if !running.is_empty() => {
                let need = running.swap_remove(which % running.len());
                let part = need.zip(&need, |need, _| need * percent / 100);
                slice.finish(&need, &part);
                used.push(part);
            }
            Step::Lose { which } if !running.is_empty() => {
                lost.push(running.swap_remove(which % running.len()));
            }
            Step::Extend { added, delay_ms, is_answered } => {
                let sent_ms = now_ms;
                now_ms += delay_ms;
                let is_open = now_ms < lease.ends_ms && !lease.is_revoked;
                if is_open {
                    lease = Lease { granted: lease.granted + added, ends_ms: now_ms + TTL_MS, ..lease };
                }
                now_ms += delay_ms;
                match (is_answered, is_open) {
                    (false, _) => {}
                    (true, true) => slice.extend(&of(added), sent_ms, TTL_MS),
                    (true, false) => slice.close(),
                }
            }
            Step::Revoke => lease.is_revoked = true,
            Step::Wait { ms } => now_ms += ms,
            Step::Finish { .. } | Step::Lose { .. } => {}
        }
        for meter in 0..4 {
            let taken = running.iter().chain(&used).chain(&lost).map(|amounts| amounts.0[meter]).sum::<u64>();
            prop_assert!(taken <= of(lease.granted).0[meter], "meter {meter}: {taken} of {}", lease.granted);
        }
        let charged = used.iter().fold(Metered::default(), |sum, used| sum.zip(used, |a, b| a + b));
        prop_assert_eq!(slice.drawn(), &charged);
        prop_assert_eq!(slice.running(), (running.len() + lost.len()) as u64);
        if slice.is_settled(&charged) {
            prop_assert!(running.is_empty() && lost.is_empty(), "what may still be charged stays held");
        }
        if !slice.is_closed() {
            prop_assert!(slice.ends_ms() <= lease.ends_ms);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_order_of_events_admits_more_than_metering_granted_or_longer(
        granted in 0..200_u64,
        delay_ms in delay(),
        steps in prop::collection::vec(step(), 0..80),
    ) {
        check(granted, delay_ms, steps)?;
    }
}
