//! `exchequer-sim`: runs worlds by their seeds and says which did not hold.
//!
//! Left out: the worlds. Exit code 0 if all held, 1 if one did not; its seed is enough to see it again.

#![allow(clippy::print_stdout)]

use std::{process::ExitCode, thread};

use clap::Parser;
use exchequer_sim::{Outcome, Settings, run};

/// Runs simulated worlds of metering: instances, broker and clients with all that can go wrong between them.
#[derive(Debug, Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Threads; 0 for one per core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let threads = match arguments.threads {
        0 => thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let (from, to) = (arguments.from, arguments.from.saturating_add(arguments.seeds));
    let part = |first: u64| {
        let mut sum = Outcome::default();
        let mut failed = 0;
        for seed in (from + first..to).step_by(threads) {
            match run(Settings::of_seed(seed)) {
                Ok(outcome) => {
                    sum.answers += outcome.answers;
                    sum.decisions += outcome.decisions;
                    sum.denied += outcome.denied;
                    sum.blocks += outcome.blocks;
                    sum.void += outcome.void;
                    sum.fenced += outcome.fenced;
                    sum.crashes += outcome.crashes;
                }
                Err(why) => {
                    println!("seed {seed}: {why}");
                    failed += 1;
                }
            }
        }
        (sum, failed)
    };
    let parts: Vec<_> = thread::scope(|scope| {
        let parts: Vec<_> = (0..threads as u64).map(|first| scope.spawn(move || part(first))).collect();
        parts.into_iter().map(|part| part.join().expect("a world panicked")).collect()
    });
    let sum = |of: fn(&Outcome) -> u64| parts.iter().map(|(outcome, _)| of(outcome)).sum::<u64>();
    let failed: u64 = parts.iter().map(|(_, failed)| failed).sum();
    println!(
        "{} worlds, {failed} failed: {} answers, {} decisions ({} denied) in {} blocks, {} void, {} fenced, {} crashes",
        arguments.seeds,
        sum(|outcome| outcome.answers),
        sum(|outcome| outcome.decisions),
        sum(|outcome| outcome.denied),
        sum(|outcome| outcome.blocks),
        sum(|outcome| outcome.void),
        sum(|outcome| outcome.fenced),
        sum(|outcome| outcome.crashes),
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
