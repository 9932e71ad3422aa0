//! Worlds by their seeds.

use exchequer_sim::{Outcome, Settings, run};

/// Worlds of an ordinary test run; more by `cargo run --release -p exchequer-sim -- --seeds N`.
const SEEDS: u64 = 2_000;
/// Seeds that once failed, kept.
const ONCE_FAILED: [u64; 0] = [];

fn worlds(seeds: impl Iterator<Item = u64>) -> Outcome {
    let mut sum = Outcome::default();
    for seed in seeds {
        let outcome = run(Settings::of_seed(seed)).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        sum.answers += outcome.answers;
        sum.denied += outcome.denied;
        sum.void += outcome.void;
        sum.fenced += outcome.fenced;
        sum.crashes += outcome.crashes;
    }
    sum
}

fn check(half: u64) {
    let worlds_run = SEEDS / 2;
    let sum = worlds((half..SEEDS).step_by(2));
    // Worlds in which nothing goes wrong show nothing.
    assert!(sum.answers > 10 * worlds_run && sum.denied > worlds_run && sum.crashes > worlds_run, "{sum:?}");
    assert!(sum.fenced > worlds_run / 2 && sum.void > worlds_run / 10, "{sum:?}");
}

#[test]
fn nothing_is_overspent_lost_or_answered_in_two_ways_whatever_happens_even_seeds() {
    check(0);
}

#[test]
fn nothing_is_overspent_lost_or_answered_in_two_ways_whatever_happens_odd_seeds() {
    check(1);
}

#[test]
fn what_once_failed_holds() {
    worlds(ONCE_FAILED.into_iter());
}

#[test]
fn a_world_depends_on_its_seed_alone() {
    for seed in 0..20 {
        assert_eq!(run(Settings::of_seed(seed)), run(Settings::of_seed(seed)), "seed {seed}");
    }
    assert_ne!(run(Settings::of_seed(1)).unwrap().stream, run(Settings::of_seed(2)).unwrap().stream);
}
