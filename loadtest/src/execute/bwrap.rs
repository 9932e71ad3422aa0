//! The baseline: Debian's bubblewrap over the paths that the strict profile shows, started and waited for as a program.
//!
//! Left out: what it has no option for (limits, output, Landlock, a filter, reading back). Invariant: a run counts if it exited with 0.

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use sandbox_agent::sandbox::Profile;

use super::PROGRAM;

/// Bubblewrap with a root like the sandbox's.
pub(super) struct Baseline {
    /// Its whole path: looked up by name, it would be started by a fork of this process, which is slower.
    program: PathBuf,
    arguments: Vec<String>,
}

impl Baseline {
    /// Fails if there is no bubblewrap, or it can't run the program.
    pub(super) fn new() -> anyhow::Result<Self> {
        let places = env::var_os("PATH").unwrap_or_default();
        let program = env::split_paths(&places).map(|place| place.join("bwrap")).find(|path| path.is_file());
        let program = program.context(
            "the baseline is bubblewrap, and there is no `bwrap` here: apt-get install bubblewrap",
        )?;
        let mut arguments =
            ["--unshare-all", "--die-with-parent", "--new-session"].map(str::to_owned).to_vec();
        for path in Profile::strict().read_only {
            let place = path.display().to_string();
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            // As in the sandbox: links are made again, the rest is bound.
            if found.is_symlink() {
                let to = fs::read_link(&path)?.display().to_string();
                arguments.extend(["--symlink".to_owned(), to, place]);
            } else {
                arguments.extend(["--ro-bind".to_owned(), place.clone(), place]);
            }
        }
        for (option, place) in
            [("--proc", "/proc"), ("--dev", "/dev"), ("--tmpfs", "/tmp"), ("--chdir", "/tmp")]
        {
            arguments.extend([option, place].map(str::to_owned));
        }
        arguments.push(PROGRAM.to_owned());
        let baseline = Self { program, arguments };
        baseline.execute()?;
        Ok(baseline)
    }

    /// How long one took.
    pub(super) fn execute(&self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let ran = Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .stdin(Stdio::null())
            .output();
        let time = started.elapsed();
        let ran = ran.context("bwrap")?;
        let said = String::from_utf8_lossy(&ran.stderr);
        ensure!(ran.status.success(), "bwrap ended with {}: {}", ran.status, said.trim());
        Ok(time)
    }
}
