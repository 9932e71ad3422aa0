//! `cargo xtask interop`: programs of other languages read a real log, served by a real ledger, over HTTP and from its directory.
//!
//! Go has the packages of its checksum database (`golang.org/x/mod/sumdb`, from Debian); Python has pymerkle and python-ecdsa (from
//! pip, pinned by hash, in an environment of their own under the target directory). The readers are in `crates/xtask/interop`.
//! Left out: what the readers check; each says so itself. Invariant: a reader that could not be had is an error of its own kind,
//! never a pass.

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

/// A program that reads the log: its name, and how to get the command that is given the kit and the log.
type Reader = (&'static str, fn(&Path, &Path) -> Result<Command, Trouble>);

const READERS: [Reader; 2] = [("go", go), ("python", python)];

/// `cargo xtask interop [go] [python]`.
pub(crate) fn run(root: &Path, wanted: &[String]) -> Result<(), Trouble> {
    let names = READERS.map(|(name, _)| name);
    if let Some(unknown) = wanted.iter().find(|want| !names.contains(&want.as_str())) {
        return Err(Trouble::Failed(format!("no reader `{unknown}`; the readers are: {}", names.join(" "))));
    }
    let work = target_dir(root).join("interop");
    fs::create_dir_all(&work).map_err(|error| Trouble::Failed(format!("{}: {error}", work.display())))?;
    // Every reader that can be had is run, whatever becomes of the others.
    let mut troubles = Vec::new();
    let mut ready = Vec::new();
    for (name, get) in READERS {
        if wanted.is_empty() || wanted.iter().any(|want| want == name) {
            match get(root, &work) {
                Ok(command) => ready.push(command),
                Err(trouble) => troubles.push((name, trouble)),
            }
        }
    }
    if !ready.is_empty() {
        read_all(root, &work, ready).map_err(Trouble::Failed)?;
    }
    worst(troubles)
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

fn python(root: &Path, work: &Path) -> Result<Command, Trouble> {
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
    command.arg(folder.join("reader.py"));
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
        assert_eq!(refused, Err(Trouble::Failed("no reader `cobol`; the readers are: go python".to_owned())));
    }

    #[test]
    fn every_python_package_is_pinned_by_hash() {
        let list = include_str!("../interop/requirements.txt");
        let lines: Vec<_> = list.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(lines.len() >= 3, "{list}");
        for line in lines {
            assert!(line.contains("==") && line.contains(" --hash=sha256:"), "{line}");
        }
    }
}
