//! The project's own commands: `test`, `ci`, `tidy`, `interop`, `fuzz` and `docker`.
//!
//! Standard library only, so that a cold checkout has it in seconds. It runs the same tools that a person would run
//! by hand and adds what they leave out: a real NATS server for the tests, the house rules, and one list of steps.
//! Left out: building the product. That is plain `cargo build`.
//!
//! Invariant: a step that did not run is reported as such, never as passed.

// A command-line program: its output is its purpose.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod ci;
mod docker;
mod fuzz;
mod interop;
mod invoke;
mod scan;
mod testing;
mod tidy;
mod tools;
mod workspace;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  test [-- ARGS]       all tests, with a real nats-server; ARGS go to `cargo test` (`-- -p exchequer-tlog`)
  ci [STEP...]         everything that has to hold before a change lands; steps in order:
                         fmt tidy deny buf clippy doc test interop fuzz demo
  tidy                 the house rules that no other tool checks
  interop [go] [python] [securesystemslib] [sigstore]
                       programs of other languages read a real log over HTTP and from its directory, and verify a
                       result bundle; installs what they need (Debian packages as root, pip and npm packages under
                       the target directory)
  fuzz [--seconds N] [TARGET...]
                       coverage-guided fuzzing of every decoder, N seconds each (3); needs a C++ compiler
  tools                find or fetch nats-server and buf, and say where they are
  docker [--keep] [--install-engine] [--stage-only]
                       build the images FROM scratch, bring the stack up on a real engine, run one execution
                       through it and take it down

Environment: NATS_SERVER (a nats-server to use), CARGO_TARGET_DIR (fetched tools go into its tools/).
";

fn main() -> ExitCode {
    if let Err(reason) = fuzz::compile() {
        eprintln!("{reason}");
        return ExitCode::FAILURE;
    }
    let mut args = std::env::args().skip(1);
    let command = args.next();
    let rest: Vec<String> = args.collect();
    let outcome = workspace::root().and_then(|root| match command.as_deref() {
        Some("test") => testing::run(&root, without_dashes(&rest)),
        Some("ci") => ci::run(&root, &rest),
        Some("tidy") => none_left(&rest).and_then(|()| tidy::run(&root)),
        Some("tools") => none_left(&rest).and_then(|()| tools::show(&root)),
        Some("docker") => docker::run(&root, &rest),
        Some("fuzz") => fuzz::run(&root, &rest).map_err(String::from),
        Some("interop") => interop::run(&root, &rest).map_err(String::from),
        Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => Err(format!("unknown command `{other}`\n\n{HELP}")),
        None => Err(HELP.to_owned()),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{}", reason.trim_end());
            ExitCode::FAILURE
        }
    }
}

fn none_left(rest: &[String]) -> Result<(), String> {
    match rest {
        [] => Ok(()),
        more => Err(format!("unexpected arguments: {}", more.join(" "))),
    }
}

/// What follows a leading `--`, or all of it.
fn without_dashes(args: &[String]) -> &[String] {
    match args {
        [dashes, rest @ ..] if dashes == "--" => rest,
        all => all,
    }
}
