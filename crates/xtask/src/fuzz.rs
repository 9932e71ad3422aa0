//! `cargo xtask fuzz`: coverage-guided fuzzing of every target of the crate `fuzz`, a few seconds each, with libFuzzer.
//!
//! A stable compiler suffices: this very program stands in for rustc for the workspace's own crates ([`compile`]) and adds the flags
//! that record coverage. Dependencies are those of any other build. New inputs go to the target directory; the corpus beside the
//! sources is read only, except that an input that failed is added to it, so that the ordinary tests fail as well.
//! Left out: the targets. Invariant: a target that was not fuzzed is never reported as passed.

use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::interop::Trouble;
use crate::invoke::{self, cargo, on_path};
use crate::workspace::target_dir;

/// Set for the build: says that this program was started in place of rustc.
const AS_COMPILER: &str = "XTASK_FUZZ_COMPILER";

/// Seconds for each target unless others are asked for: about a minute for all.
const SECONDS: u32 = 3;

/// An input that takes longer has hung.
const INPUT_SECONDS: u32 = 10;

/// Memory of a target, MiB.
const MEMORY_MIB: u32 = 1024;

/// The longest input that is made up, bytes; a whole tile fits.
const MAX_INPUT: u32 = 16 * 1024;

/// What records coverage (what `cargo fuzz` passes, too). Without optimization there are no branches worth the name.
const COVERAGE: [&str; 6] = [
    "opt-level=1",
    "passes=sancov-module",
    "llvm-args=-sanitizer-coverage-level=4",
    "llvm-args=-sanitizer-coverage-inline-8bit-counters",
    "llvm-args=-sanitizer-coverage-pc-table",
    "llvm-args=-sanitizer-coverage-trace-compares",
];

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    seconds: u32,
    targets: Vec<String>,
}

fn parse(args: &[String]) -> Result<Wanted, String> {
    let mut wanted = Wanted { seconds: SECONDS, targets: Vec::new() };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--seconds" {
            let seconds = args.next().and_then(|number| number.parse().ok()).filter(|seconds| *seconds > 0);
            wanted.seconds = seconds.ok_or("--seconds needs a number above 0")?;
        } else if arg.starts_with('-') {
            return Err(format!("unexpected argument: {arg}"));
        } else {
            wanted.targets.push(arg.clone());
        }
    }
    Ok(wanted)
}

/// `cargo xtask fuzz [--seconds N] [TARGET...]`.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<(), Trouble> {
    let wanted = parse(args).map_err(Trouble::Failed)?;
    let names = targets(root).map_err(Trouble::Failed)?;
    if let Some(unknown) = wanted.targets.iter().find(|target| !names.contains(target)) {
        return Err(Trouble::Failed(format!("no target `{unknown}`; the targets are: {}", names.join(" "))));
    }
    if ["c++", "g++", "clang++"].into_iter().all(|compiler| on_path(compiler).is_none())
        && std::env::var_os("CXX").is_none()
    {
        return Err(Trouble::NotRun("no C++ compiler (Debian: apt-get install g++)".to_owned()));
    }
    let engine = build(root).map_err(Trouble::Failed)?;
    let mut failed = Vec::new();
    for name in names {
        if wanted.targets.is_empty() || wanted.targets.contains(&name) {
            match fuzz(root, &engine, &name, wanted.seconds) {
                Ok(summary) => println!("{name:<18} {summary}"),
                Err(reason) => failed.push(format!("{name}: {reason}")),
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Trouble::Failed(failed.join("\n"))) }
}

/// The targets' names: each has a folder in the corpus, as a test of theirs says.
fn targets(root: &Path) -> Result<Vec<String>, String> {
    let corpus = root.join("fuzz/corpus");
    let dirs = fs::read_dir(&corpus).map_err(|error| format!("{}: {error}", corpus.display()))?;
    let mut names: Vec<_> = dirs.filter_map(|dir| dir.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    if names.is_empty() { Err(format!("{} is empty", corpus.display())) } else { Ok(names) }
}

fn build(root: &Path) -> Result<PathBuf, String> {
    let this = std::env::current_exe().map_err(|error| format!("where is this program? {error}"))?;
    let mut command = cargo(root);
    command.args([
        "build",
        "--locked",
        "--package",
        "exchequer-fuzz",
        "--features",
        "engine",
        "--bin",
        "fuzz",
    ]);
    invoke::run(command.env("RUSTC_WORKSPACE_WRAPPER", this).env(AS_COMPILER, "1"))?;
    Ok(target_dir(root).join("debug/fuzz"))
}

/// In place of rustc: the same command, with coverage where the code is the project's own and runs in the target. Returns only if
/// this program was started as itself.
pub(crate) fn compile() -> Result<(), String> {
    if std::env::var_os(AS_COMPILER).is_none() {
        return Ok(());
    }
    let mut args = std::env::args_os().skip(1);
    let compiler = args.next().ok_or("no compiler was named")?;
    let args: Vec<OsString> = args.collect();
    let mut command = Command::new(&compiler);
    command.args(&args);
    if is_covered(&args) {
        command.args(COVERAGE.iter().flat_map(|flag| ["-C", *flag]));
    }
    Err(format!("{}: {}", compiler.display(), command.exec()))
}

/// Whether what is compiled becomes part of the program that fuzzes: not a build script, and not a mere question to the compiler.
fn is_covered(args: &[OsString]) -> bool {
    let name = args.iter().position(|arg| arg == "--crate-name").and_then(|at| args.get(at + 1));
    let name = name.and_then(|name| name.to_str());
    name.is_some_and(|name| name != "___" && !name.starts_with("build_script"))
}

/// Fuzzes one target; what was done.
fn fuzz(root: &Path, engine: &Path, name: &str, seconds: u32) -> Result<String, String> {
    let failed = |error: std::io::Error| error.to_string();
    let (found, kept) = (target_dir(root).join("fuzz").join(name), root.join("fuzz/corpus").join(name));
    let crashes = target_dir(root).join("fuzz/crashes").join(name);
    fs::create_dir_all(&found).map_err(failed)?;
    let _ = fs::remove_dir_all(&crashes);
    fs::create_dir_all(&crashes).map_err(failed)?;
    let mut command = Command::new(engine);
    command
        .env("FUZZ_TARGET", name)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-max_len={MAX_INPUT}"))
        .arg(format!("-artifact_prefix={}/", crashes.display()))
        .args(["-print_final_stats=1", "-verbosity=1"])
        .arg(&found)
        .arg(&kept)
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let mut said = Vec::new();
    if let Some(mut errors) = child.stderr.take() {
        errors.read_to_end(&mut said).map_err(failed)?;
    }
    let said = String::from_utf8_lossy(&said);
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return summary(&said).ok_or_else(|| format!("libFuzzer did not say what it did:\n{}", tail(&said)));
    }
    let mut inputs = Vec::new();
    for crash in fs::read_dir(&crashes).map_err(failed)?.flatten() {
        let input = kept.join(crash.file_name());
        fs::copy(crash.path(), &input).map_err(failed)?;
        inputs.push(input.display().to_string());
    }
    Err(format!("{status}; the input is kept as {}\n{}", inputs.join(", "), tail(&said)))
}

/// Runs and coverage, out of the engine's last lines.
fn summary(said: &str) -> Option<String> {
    let done = said.lines().rev().find(|line| line.contains("DONE"))?;
    let mut words = done.split_whitespace();
    let mut number = |name: &str| words.by_ref().find(|word| *word == name).and(words.next());
    let (coverage, features) = (number("cov:")?, number("ft:")?);
    let runs = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))?.trim();
    let runs: u64 = runs.parse().ok().filter(|runs| *runs > 0)?;
    Some(format!("{runs} runs, {coverage} edges, {features} features"))
}

/// The last lines, without the input's dump.
fn tail(said: &str) -> String {
    let lines: Vec<_> =
        said.lines().filter(|line| !line.starts_with("stat::") && !line.contains("NEW ")).collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn seconds_and_targets_are_read_and_nothing_else() {
        assert_eq!(parse(&[]), Ok(Wanted { seconds: SECONDS, targets: vec![] }));
        let wanted = Wanted { seconds: 9, targets: words("note tile") };
        assert_eq!(parse(&words("note --seconds 9 tile")), Ok(wanted));
        for bad in ["--seconds", "--seconds 0", "--seconds x", "--fast"] {
            assert!(parse(&words(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_projects_code_is_covered_and_build_scripts_are_not() {
        let covered =
            |text: &str| is_covered(&words(text).into_iter().map(OsString::from).collect::<Vec<_>>());
        assert!(covered("--crate-name exchequer_tlog --edition=2024 src/lib.rs"));
        assert!(!covered("--crate-name build_script_build build.rs"));
        assert!(!covered("- --crate-name ___ --print=file-names"));
        assert!(!covered("-vV"));
    }

    #[test]
    fn a_run_without_runs_has_no_summary() {
        let said = "#9 DONE   cov: 24 ft: 31 corp: 4/13b\nstat::number_of_executed_units: 9\n";
        assert_eq!(summary(said), Some("9 runs, 24 edges, 31 features".to_owned()));
        assert_eq!(summary(&said.replace(": 9", ": 0")), None);
        assert_eq!(summary("INFO: Seed"), None);
    }
}
