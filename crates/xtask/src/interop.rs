//! `cargo xtask interop`: programs of other languages read a real log, served by a real ledger, over HTTP and from its directory, and
//! verify a result bundle of a real execution.
//!
//! The log: Go has the packages of its checksum database (`golang.org/x/mod/sumdb`, from Debian); Python has pymerkle and python-ecdsa (from
//! pip, pinned by hash, in an environment of their own under the target directory). Bundles: Python's
//! securesystemslib, and npm's @sigstore/verify (pinned by integrity, under the target directory too). The readers are in
//! `crates/xtask/interop`.
//! Left out: what the readers check; each says so itself. Invariant: a reader that could not be had is an error of its own kind,
//! never a pass.

mod bundles;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::invoke::{self, capture, cargo, on_path};
use crate::workspace::target_dir;

/// Entries of the log, so that there is a tile on the third level (65,536 leaves) and partial ones on all.
const ENTRIES: u32 = 66_000;

/// Where Debian keeps the sources of Go packages.
const GOPATH: &str = "/usr/share/gocode";

/// What pip installs: pure Python, so that one hash stands for every machine.
const REQUIREMENTS: &str = "requirements.txt";

/// How it went wrong.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// What a reader needs is not here and could not be installed; says what.
    NotRun(String),
    Failed(String),
}

impl From<Trouble> for String {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::NotRun(reason) => format!("not run: {reason}"),
            Trouble::Failed(reason) => reason,
        }
    }
}

/// What a reader reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// The log: it is given the kit and the log.
    Log,
    /// A result bundle: it is given the kit.
    Bundle,
}

/// A program that reads: its name, what, and how to get the command.
type Reader = (&'static str, Subject, fn(&Path, &Path) -> Result<Command, Trouble>);

const READERS: [Reader; 4] = [
    ("go", Subject::Log, go),
    ("python", Subject::Log, |root, work| python(root, work, "reader.py")),
    ("securesystemslib", Subject::Bundle, |root, work| python(root, work, "bundle.py")),
    ("sigstore", Subject::Bundle, sigstore),
];

/// `cargo xtask interop [READER...]`.
pub(crate) fn run(root: &Path, wanted: &[String]) -> Result<(), Trouble> {
    let names = READERS.map(|(name, _, _)| name);
    if let Some(unknown) = wanted.iter().find(|want| !names.contains(&want.as_str())) {
        return Err(Trouble::Failed(format!("no reader `{unknown}`; the readers are: {}", names.join(" "))));
    }
    let work = target_dir(root).join("interop");
    fs::create_dir_all(&work).map_err(|error| Trouble::Failed(format!("{}: {error}", work.display())))?;
    // Every reader that can be had is run, whatever becomes of the others.
    let mut troubles = Vec::new();
    let mut ready = Vec::new();
    for (name, subject, get) in READERS {
        if wanted.is_empty() || wanted.iter().any(|want| want == name) {
            match get(root, &work) {
                Ok(command) => ready.push((subject, command)),
                Err(trouble) => troubles.push((name, trouble)),
            }
        }
    }
    let (logs, bundles): (Vec<_>, Vec<_>) =
        ready.into_iter().partition(|(subject, _)| *subject == Subject::Log);
    if !logs.is_empty() {
        read_all(root, &work, commands(logs)).map_err(Trouble::Failed)?;
    }
    if !bundles.is_empty() {
        verify_all(root, &work, commands(bundles)).map_err(Trouble::Failed)?;
    }
    worst(troubles)
}

fn commands(readers: Vec<(Subject, Command)>) -> Vec<Command> {
    readers.into_iter().map(|(_, command)| command).collect()
}

fn verify_all(root: &Path, work: &Path, readers: Vec<Command>) -> Result<(), String> {
    let kit = bundles::Kit::make(root, work)?;
    readers.into_iter().try_for_each(|mut reader| invoke::run(reader.arg(&kit.dir)))
}

/// The readers' troubles as one; a failure outweighs what did not run.
fn worst(troubles: Vec<(&str, Trouble)>) -> Result<(), Trouble> {
    let (mut reasons, mut failed) = (Vec::new(), false);
    for (name, trouble) in troubles {
        failed |= matches!(trouble, Trouble::Failed(_));
        reasons.push(format!("{name}: {}", String::from(trouble).trim_start_matches("not run: ")));
    }
    match (reasons.is_empty(), failed) {
        (true, _) => Ok(()),
        (false, true) => Err(Trouble::Failed(reasons.join("; "))),
        (false, false) => Err(Trouble::NotRun(reasons.join("; "))),
    }
}

fn read_all(root: &Path, work: &Path, readers: Vec<Command>) -> Result<(), String> {
    let served = Served::start(root, work)?;
    for mut reader in readers {
        for source in [&served.url, &served.log] {
            let mut once = Command::new(reader.get_program());
            once.args(reader.get_args()).arg(&served.kit).arg(source);
            // The log is on this machine; a proxy is not.
            invoke::run(once.env("NO_PROXY", "127.0.0.1").env("no_proxy", "127.0.0.1"))?;
        }
        reader.env_clear();
    }
    Ok(())
}

/// The ledger's process; it ends when its standard input does.
struct Served {
    process: Child,
    dir: PathBuf,
    kit: PathBuf,
    url: String,
    log: String,
}

impl Served {
    fn start(root: &Path, work: &Path) -> Result<Self, String> {
        invoke::run(cargo(root).args([
            "build",
            "--locked",
            "--package",
            "exchequer-ledger",
            "--example",
            "served_log",
        ]))?;
        let dir = work.join(format!("log-{}", std::process::id()));
        let program = target_dir(root).join("debug/examples/served_log");
        let failed = |error: std::io::Error| format!("{}: {error}", program.display());
        let process = Command::new(&program)
            .arg(&dir)
            .arg(ENTRIES.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let kit = dir.join("kit");
        let mut served = Self { process, dir, kit, url: String::new(), log: String::new() };
        let mut line = String::new();
        let output = served.process.stdout.take().ok_or("the ledger has no standard output")?;
        BufReader::new(output).read_line(&mut line).map_err(failed)?;
        if !line.starts_with("ready ") {
            return Err(format!("the ledger did not come up: `{}`", line.trim_end()));
        }
        println!("{}", line.trim_end());
        let read = |name: &str| fs::read_to_string(served.kit.join(name)).map_err(failed);
        (served.url, served.log) = (read("url")?, read("log")?);
        Ok(served)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn go(root: &Path, work: &Path) -> Result<Command, Trouble> {
    if on_path("go").is_none() {
        install(&["golang-go"])?;
    }
    if !Path::new(GOPATH).join("src/golang.org/x/mod/sumdb/tlog/tlog.go").is_file() {
        install(&["golang-golang-x-mod-dev"])?;
    }
    let program = work.join("reader-go");
    let mut build = Command::new("go");
    build.arg("build").arg("-o").arg(&program).arg(root.join("crates/xtask/interop/reader.go"));
    // Debian's packages by path: no module is fetched, no other toolchain either.
    build.env("GO111MODULE", "off").env("GOPATH", GOPATH).env("GOFLAGS", "").env("GOTOOLCHAIN", "local");
    build.env("GOCACHE", work.join("go-build")).env("CGO_ENABLED", "0");
    invoke::run(&mut build).map_err(Trouble::Failed)?;
    Ok(Command::new(program))
}

fn python(root: &Path, work: &Path, program: &str) -> Result<Command, Trouble> {
    let unavailable = |reason| Trouble::NotRun(format!("the Python packages could not be had: {reason}"));
    let folder = root.join("crates/xtask/interop");
    let venv = work.join("venv");
    let interpreter = venv.join("bin/python");
    if capture(Command::new(&interpreter).args(["-m", "pip", "--version"])).is_err() {
        let make = || capture(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
        if on_path("python3").is_none() || make().is_err() {
            install(&["python3", "python3-venv"])?;
            make().map_err(unavailable)?;
        }
    }
    capture(
        Command::new(&interpreter)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary", ":all:", "--require-hashes", "--requirement"])
            .arg(folder.join(REQUIREMENTS)),
    )
    .map_err(unavailable)?;
    let mut command = Command::new(interpreter);
    command.arg(folder.join(program));
    Ok(command)
}

fn sigstore(root: &Path, work: &Path) -> Result<Command, Trouble> {
    if on_path("node").is_none() || on_path("npm").is_none() {
        install(&["nodejs", "npm"])?;
    }
    let unavailable = |reason| Trouble::NotRun(format!("the npm packages could not be had: {reason}"));
    let folder = root.join("crates/xtask/interop");
    let modules = work.join("npm");
    let failed = |error: std::io::Error| Trouble::Failed(format!("{}: {error}", modules.display()));
    fs::create_dir_all(&modules).map_err(failed)?;
    for name in ["package.json", "package-lock.json"] {
        fs::copy(folder.join(name), modules.join(name)).map_err(failed)?;
    }
    // `ci` takes what the lock file pins and nothing else; none of it runs a script.
    capture(
        Command::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
            .current_dir(&modules),
    )
    .map_err(unavailable)?;
    let mut command = Command::new("node");
    command.arg(folder.join("bundle.cjs")).arg(modules);
    Ok(command)
}

/// Installs Debian packages, where that is possible.
fn install(packages: &[&str]) -> Result<(), Trouble> {
    let names = packages.join(" ");
    let refuse =
        |reason: &str| Err(Trouble::NotRun(format!("{names} (Debian) is not installed, and {reason}")));
    if on_path("apt-get").is_none() {
        return refuse("there is no apt-get");
    }
    if capture(Command::new("id").arg("-u")) != Ok("0".to_owned()) {
        return refuse("only root can install it");
    }
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
        command
    };
    println!("installing {names}");
    let attempt =
        || capture(apt().args(["install", "--yes", "--no-install-recommends"]).args(packages)).map(drop);
    // The list of packages may be missing or old.
    let installed = attempt().or_else(|_| capture(apt().arg("update")).and_then(|_| attempt()));
    installed.or_else(|reason| refuse(&format!("apt-get could not: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_run_is_not_a_pass_and_a_failure_outweighs_it() {
        let not_run = || Trouble::NotRun("no pip".to_owned());
        let failed = || Trouble::Failed("wrong root".to_owned());
        assert_eq!(worst(vec![]), Ok(()));
        assert_eq!(worst(vec![("python", not_run())]), Err(Trouble::NotRun("python: no pip".to_owned())));
        let both = Trouble::Failed("go: wrong root; python: no pip".to_owned());
        assert_eq!(worst(vec![("go", failed()), ("python", not_run())]), Err(both));
        assert_eq!(String::from(not_run()), "not run: no pip");
    }

    #[test]
    fn an_unknown_reader_is_refused() {
        let refused = run(Path::new("/nowhere"), &["cobol".to_owned()]);
        let names = "no reader `cobol`; the readers are: go python securesystemslib sigstore";
        assert_eq!(refused, Err(Trouble::Failed(names.to_owned())));
    }

    #[test]
    fn every_python_package_is_pinned_by_hash() {
        let list = include_str!("../interop/requirements.txt");
        let lines: Vec<_> = list.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(lines.len() >= 8, "{list}");
        for line in lines {
            assert!(line.contains("==") && line.contains(" --hash=sha256:"), "{line}");
        }
    }

    #[test]
    fn every_npm_package_is_pinned_by_integrity_and_from_no_named_host() {
        let lock = include_str!("../interop/package-lock.json");
        let packages = lock.matches("\"node_modules/").count();
        assert!(packages >= 4, "{lock}");
        assert_eq!(lock.matches("\"integrity\": \"sha512-").count(), packages);
        assert!(!lock.contains("\"resolved\""), "{lock}");
    }
}
