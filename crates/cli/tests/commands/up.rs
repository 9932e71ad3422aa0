//! `exchequer up` as a process, and the other commands run against it.
//!
//! Left out: what is expected of them. Invariant: the process ends with the value.

use std::{
    ffi::OsStr,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;
use tempfile::TempDir;

/// How long anything may take that happens by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a command said.
pub struct Said {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    fn new(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let status = output.status.code().unwrap_or(-1);
        Self { status, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// Standard output, where the command had to succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// Standard output as JSON, one document a line.
    #[track_caller]
    pub fn json_lines(self) -> Vec<Json> {
        self.ok().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Asserts the status and what standard error contains; one line of it.
    #[track_caller]
    pub fn fails(&self, status: i32, expected: &[&str]) {
        assert_eq!(self.status, status, "{}{}", self.stdout, self.stderr);
        for part in expected {
            assert!(self.stderr.contains(part), "`{part}` is missing in: {}", self.stderr);
        }
        assert_eq!(self.stderr.trim_end().lines().count(), 1, "{}", self.stderr);
    }
}

/// Runs a command in an environment of its own.
pub fn exchequer<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Said {
    Said::new(&command(arguments).stdin(Stdio::null()).output().unwrap())
}

/// A command in an environment of its own.
pub fn command<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_exchequer"));
    command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin");
    command
}

/// Waits until there is something to return.
#[track_caller]
pub fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A running `exchequer up`.
pub struct Up {
    child: Child,
    data: TempDir,
}

impl Up {
    /// Starts one in a new data directory.
    pub fn start() -> Self {
        Self::start_in(exchequer_testkit::temp_dir())
    }

    /// Starts one in a data directory, with the config.toml that may be there; returns once it is ready.
    pub fn start_in(data: TempDir) -> Self {
        let said = std::fs::File::create(data.path().join("up.log")).unwrap();
        let client = data.path().join("client.json");
        if client.exists() {
            std::fs::remove_file(&client).unwrap();
        }
        let config = data.path().join("config.toml");
        let config = config.exists().then(|| [OsStr::new("--config").to_owned(), config.into_os_string()]);
        let child = command(["up", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .args(config.into_iter().flatten())
            .arg("--data")
            .arg(data.path())
            // Hosts that forbid user namespaces are common, and not what is tested here.
            .args(["--set", "agent.allow_degraded=true", "--set", "ledger.checkpoint_interval=50ms"])
            .stdin(Stdio::null())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .spawn()
            .unwrap();
        let mut up = Self { child, data };
        until("client.json", || {
            let ended = up.child.try_wait().unwrap();
            assert!(ended.is_none(), "up ended: {}", up.said());
            client.exists().then_some(())
        });
        up
    }

    /// What it printed and logged.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.data.path().join("up.log")).unwrap_or_default()
    }

    /// A path below the data directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.data.path().join(name)
    }

    /// A value of client.json.
    pub fn client(&self, key: &str) -> String {
        let text = std::fs::read(self.path("client.json")).unwrap();
        serde_json::from_slice::<Json>(&text).unwrap()[key].as_str().unwrap().to_owned()
    }

    /// Where the log's files are.
    pub fn url(&self) -> String {
        format!("http://{}", self.client("http"))
    }

    /// CPU time that the process has used so far, of all its threads, in clock ticks.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The second field is a name in parentheses and may hold anything; utime and stime are the 14th and 15th.
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    /// Runs a command: its verb, this data directory, the rest.
    pub fn run(&self, verb: &str, rest: &[&str]) -> Said {
        exchequer(self.arguments(verb, rest))
    }

    /// The same with standard input.
    pub fn run_with(&self, stdin: &[u8], verb: &str, rest: &[&str]) -> Said {
        let mut child = command(self.arguments(verb, rest))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin).unwrap();
        Said::new(&child.wait_with_output().unwrap())
    }

    /// A command to start: its verb, this data directory, the rest.
    pub fn command(&self, verb: &str, rest: &[&str]) -> Command {
        command(self.arguments(verb, rest))
    }

    fn arguments(&self, verb: &str, rest: &[&str]) -> Vec<String> {
        let data = self.data.path().to_str().unwrap();
        let verbs = verb.split(' ').map(str::to_owned);
        verbs
            .chain(["--data".into(), data.into()])
            .chain(rest.iter().map(|part| (*part).to_owned()))
            .collect()
    }

    /// A token of the data directory's issuer.
    pub fn token(&self, rest: &[&str]) -> String {
        self.run("token", rest).ok().trim().to_owned()
    }

    /// Tells it to stop; its exit status and the data directory.
    pub fn stop(mut self) -> (i32, TempDir) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        let data = std::mem::replace(&mut self.data, exchequer_testkit::temp_dir());
        (status.code().unwrap_or(-1), data)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.said());
        }
        // It fails only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Copies a directory.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            // A temporary file of a running writer may be gone by now.
            let _ = std::fs::copy(entry.path(), &target);
        }
    }
}
