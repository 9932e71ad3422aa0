//! `cargo xtask ci`: the list of everything that has to hold, in order, each step timed.
//!
//! Every step runs even if an earlier one failed, so that one run shows all there is to mend.
//! Left out: setting up a machine. A tool that is missing is named together with what provides it.
//!
//! Invariant: the exit status is zero only if every step that ran passed, and a step that could not run for want of an
//! optional tool is listed as `not run` with the reason.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::interop::{self, Trouble};
use crate::invoke::{self, capture, cargo};
use crate::testing::{Tally, run_counting};
use crate::{fuzz, tidy, tools};

/// How a step ended.
enum Ending {
    Passed,
    /// An optional tool isn't here, or it has no data to work on; says which.
    NotRun(String),
    Tests(Tally, Result<(), String>),
}

type Step = fn(&Path) -> Result<Ending, String>;

const STEPS: [(&str, Step); 10] = [
    ("fmt", fmt),
    ("tidy", |root| tidy::run(root).map(|()| Ending::Passed)),
    ("deny", deny),
    ("buf", buf),
    ("clippy", clippy),
    ("doc", doc),
    ("test", |root| Ok(test(root))),
    ("interop", |root| ending(interop::run(root, &[]))),
    ("fuzz", |root| ending(fuzz::run(root, &[]))),
    ("demo", demo),
];

/// `cargo xtask ci [STEP...]`.
pub(crate) fn run(root: &Path, wanted: &[String]) -> Result<(), String> {
    let names = STEPS.map(|(name, _)| name);
    match wanted.iter().find(|want| !names.contains(&want.as_str())) {
        Some(unknown) => Err(format!("no step `{unknown}`; the steps are: {}", names.join(" "))),
        None => run_steps(root, wanted),
    }
}

/// Runs the named steps, or all of them.
fn run_steps(root: &Path, wanted: &[String]) -> Result<(), String> {
    let mut lines = Vec::new();
    let mut failed = Vec::new();
    let mut sum = None;
    let begun = Instant::now();
    for (name, step) in STEPS {
        if !wanted.is_empty() && !wanted.iter().any(|want| want == name) {
            continue;
        }
        println!("\n=== {name}");
        let started = Instant::now();
        let (word, reason) = match step(root) {
            Ok(Ending::Passed) => ("passed", None),
            Ok(Ending::NotRun(reason)) => ("not run", Some(reason)),
            Ok(Ending::Tests(tally, outcome)) => {
                sum = Some(tally);
                outcome.map_or_else(|reason| ("FAILED", Some(reason)), |()| ("passed", None))
            }
            Err(reason) => ("FAILED", Some(reason)),
        };
        if let Some(reason) = &reason {
            println!("{name}: {word}: {reason}");
        }
        if word == "FAILED" {
            failed.push(name);
        }
        let note = reason.as_deref().and_then(|text| text.lines().next()).unwrap_or("").to_owned();
        lines.push(
            format!("{name:<8}{:>9}  {word:<8} {note}", seconds(started.elapsed())).trim_end().to_owned(),
        );
    }
    println!("\n=== steps\n{}\n{:<8}{:>9}", lines.join("\n"), "all", seconds(begun.elapsed()));
    if let Some(tally) = sum {
        println!("\n{tally}");
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", "))) }
}

fn fmt(root: &Path) -> Result<Ending, String> {
    component(root, "fmt", "rustfmt", "rustfmt-web")?;
    invoke::run(cargo(root).args(["fmt", "--all", "--check"]))?;
    Ok(Ending::Passed)
}

fn clippy(root: &Path) -> Result<Ending, String> {
    component(root, "clippy", "clippy", "rust-web-clippy")?;
    let command = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    invoke::run(cargo(root).args(command))?;
    Ok(Ending::Passed)
}

fn doc(root: &Path) -> Result<Ending, String> {
    capture(Command::new("rustdoc").arg("--version"))
        .map_err(|reason| format!("{reason}\nrustdoc comes with Rust (Debian: rustc-web)"))?;
    let mut command = cargo(root);
    command.env("RUSTDOCFLAGS", "-D warnings");
    invoke::run(command.args(["doc", "--workspace", "--no-deps", "--locked"]))?;
    Ok(Ending::Passed)
}

fn test(root: &Path) -> Ending {
    let (tally, outcome) = run_counting(root, &[]);
    Ending::Tests(tally, outcome)
}

fn ending(outcome: Result<(), Trouble>) -> Result<Ending, String> {
    match outcome {
        Ok(()) => Ok(Ending::Passed),
        Err(Trouble::NotRun(reason)) => Ok(Ending::NotRun(reason)),
        Err(Trouble::Failed(reason)) => Err(reason),
    }
}

fn demo(root: &Path) -> Result<Ending, String> {
    invoke::run(cargo(root).args(["run", "--release", "--locked", "--", "demo"]))?;
    Ok(Ending::Passed)
}

fn buf(root: &Path) -> Result<Ending, String> {
    let buf = tools::buf(root)?;
    invoke::run(Command::new(buf).arg("lint").current_dir(root.join("proto")))?;
    Ok(Ending::Passed)
}

fn deny(root: &Path) -> Result<Ending, String> {
    if capture(cargo(root).args(["deny", "--version"])).is_err() {
        return Ok(Ending::NotRun(
            "cargo-deny is not installed (cargo install cargo-deny --locked)".to_owned(),
        ));
    }
    invoke::run(cargo(root).args(["deny", "--locked", "check", "bans", "licenses", "sources"]))?;
    // Advisories need a database from outside: being without it is not a fault of the tree.
    match capture(cargo(root).args(["deny", "--locked", "check", "advisories"])) {
        Ok(said) => {
            println!("{said}");
            Ok(Ending::Passed)
        }
        Err(reason) if reason.contains("advisory database") && reason.contains("fetch") => Ok(
            Ending::NotRun(format!("bans, licenses and sources passed; no advisory database here\n{reason}")),
        ),
        Err(reason) => Err(reason),
    }
}

fn component(root: &Path, subcommand: &str, rustup: &str, debian: &str) -> Result<(), String> {
    capture(cargo(root).args([subcommand, "--version"])).map(drop).map_err(|reason| {
        format!(
            "{reason}\n`cargo {subcommand}` is not installed: rustup component add {rustup}, or on Debian: \
             apt-get install {debian} (with rustc-web and cargo-web)"
        )
    })
}

fn seconds(time: Duration) -> String {
    format!("{}.{} s", time.as_secs(), time.subsec_millis() / 100)
}
