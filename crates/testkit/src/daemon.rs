//! A daemon of the workspace as a process of its own.
//!
//! Left out: what it is asked, and whether it is ready. Invariant: it has the same arguments before and after a kill, and ends with the
//! value, which then shows the end of its log if the test failed.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// Lines of the log that a failed test shows.
const LOG_LINES: usize = 25;

/// A daemon that runs, or could.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    program: PathBuf,
    directory: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Daemon {
    /// A program by a name of its own in this test, with a directory for its log and its temporary files. It is not started.
    pub fn new(
        name: impl Into<String>,
        program: impl Into<PathBuf>,
        directory: impl Into<PathBuf>,
        arguments: Vec<String>,
    ) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            directory: directory.into(),
            arguments,
            child: None,
        }
    }

    /// Its name in this test.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it was started and not killed since.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    fn log(&self) -> PathBuf {
        self.directory.join(format!("{}.log", self.name))
    }

    /// Starts it. Its log goes on where it ended.
    pub fn start(&mut self) {
        let program = &self.program;
        assert!(
            program.is_file(),
            "{} is not there: run `cargo build --workspace --bins` first",
            program.display()
        );
        let log = File::options().create(true).append(true).open(self.log()).expect("the daemon's log");
        let child = Command::new(program)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            // Also names processes that carry it as an argument.
            .env("TMPDIR", &self.directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the daemon's log"))
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("the daemon can be run"));
    }

    /// Kills it with SIGKILL and waits until it is gone. Panics if it has ended by itself.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("a daemon that runs");
        assert_eq!(child.try_wait().expect("the daemon's state"), None, "{} has ended by itself", self.name);
        child.kill().expect("a daemon that runs");
        child.wait().expect("the daemon's exit status");
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Daemon {
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It fails only if the process has already ended.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- end of {}'s log\n{}", self.name, self.log_end());
        }
    }
}
