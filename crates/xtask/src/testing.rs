//! `cargo xtask test`: every test of the workspace, with a real nats-server for those that need one.
//!
//! Left out: choosing tests. What follows `--` goes to `cargo test` as it is.
//!
//! Invariant: a run in which a test was ignored, or in which none ran, is a failure.

use std::path::Path;

use crate::invoke::{cargo, run_watching};
use crate::tools::nats_server;

/// What the tests of all binaries said, added up.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
}

impl Tally {
    /// Adds a line such as `test result: ok. 12 passed; 0 failed; 1 ignored; …`; other lines count nothing.
    fn read(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once("test result: ").and_then(|(_, rest)| rest.split_once(". "))
        else {
            return;
        };
        for part in counts.split(';') {
            let mut words = part.split_whitespace();
            let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else {
                continue;
            };
            match what {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.ignored)
    }
}

/// Runs the tests and prints the sum as the last line.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<(), String> {
    let (tally, outcome) = run_counting(root, args);
    println!("{tally}");
    outcome
}

/// Runs the tests; the caller prints the sum.
pub(crate) fn run_counting(root: &Path, args: &[String]) -> (Tally, Result<(), String>) {
    let mut tally = Tally::default();
    let server = match nats_server(root) {
        Ok(server) => server,
        Err(reason) => return (tally, Err(reason)),
    };
    println!("NATS_SERVER={}", server.display());
    let mut command = cargo(root);
    command.env("NATS_SERVER", &server).arg("test");
    if !names_packages(args) {
        command.arg("--workspace");
    }
    command.args(["--locked", "--no-fail-fast"]).args(args);
    let outcome = run_watching(&mut command, |line| tally.read(line)).and_then(|()| judge(&tally));
    (tally, outcome)
}

fn judge(tally: &Tally) -> Result<(), String> {
    match tally {
        Tally { passed: 0, .. } => Err("no test ran".to_owned()),
        Tally { ignored: 1.., .. } => Err(format!("{} tests are ignored; none may be", tally.ignored)),
        Tally { failed: 1.., .. } => Err(format!("{} tests failed", tally.failed)),
        _ => Ok(()),
    }
}

fn names_packages(args: &[String]) -> bool {
    args.iter()
        .take_while(|arg| *arg != "--")
        .any(|arg| arg.starts_with("-p") || arg == "--package" || arg.starts_with("--package="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        for line in lines {
            tally.read(line);
        }
        tally
    }

    #[test]
    fn the_results_of_all_binaries_are_added_up() {
        let found = tally(&[
            "running 14 tests",
            "test result: ok. 12 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.00s",
        ]);
        assert_eq!(found, Tally { passed: 15, failed: 1, ignored: 2 });
        assert_eq!(found.to_string(), "15 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn a_run_without_tests_or_with_ignored_ones_fails() {
        assert_eq!(judge(&Tally::default()).unwrap_err(), "no test ran");
        let ignored = Tally { passed: 5, failed: 0, ignored: 1 };
        assert_eq!(judge(&ignored).unwrap_err(), "1 tests are ignored; none may be");
        assert_eq!(judge(&Tally { passed: 5, failed: 0, ignored: 0 }), Ok(()));
    }

    #[test]
    fn naming_a_package_replaces_the_whole_workspace() {
        let args = |list: &[&str]| list.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
        assert!(names_packages(&args(&["-p", "xtask"])));
        assert!(names_packages(&args(&["--package=xtask"])));
        assert!(!names_packages(&args(&["a_name", "--", "-p"])));
    }
}
