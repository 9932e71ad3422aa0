//! The stack of docker/compose.yaml, brought up with secrets of its own, and one execution sent through it.
//!
//! The order is that of a first installation: issuer, ledger, its public key, the others, their enrolment, a budget.
//! No private key of a service leaves its volume. Left out: load, and anything that the tests already show.
//!
//! Invariant: every step that can fail is checked by what it answered, not by its having been sent.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::engine::{Compose, Engine};
use crate::invoke::{self, capture};

pub(super) const TAG: &str = "dev";
const PROJECT: &str = "exchequer";

/// The passwords of the stack's NATS users, as nats.conf names them.
const PASSWORDS: [&str; 3] = ["NATS_LEDGER_PASSWORD", "NATS_METERING_PASSWORD", "NATS_AGENT_PASSWORD"];

/// The ports that compose.yaml publishes on loopback.
const GRPC: &str = "ledger=127.0.0.1:7401,metering=127.0.0.1:7411,agent=127.0.0.1:7421";
const LEDGER_HTTP: u16 = 7402;
const AGENT_HTTP: u16 = 7422;

const AGENT: &str = "agent-1";
const TENANT: &str = "trial";
/// A program that the agent's image holds; the same file runs here for comparison.
const PROGRAM: [&str; 2] = ["/usr/bin/exchequer", "--version"];

/// How long a service may take until it does what it is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// The stack, and the `exchequer` command to drive it with.
pub(super) struct Stack<'engine> {
    engine: &'engine Engine,
    folder: PathBuf,
    work: PathBuf,
    cli: PathBuf,
}

impl<'engine> Stack<'engine> {
    /// Makes an issuer, tokens and passwords for this stack alone, readable by this user alone.
    pub(super) fn prepare(
        root: &Path,
        work: &Path,
        cli: &Path,
        engine: &'engine Engine,
    ) -> Result<Self, String> {
        let work = work.join("stack");
        let failed = |error: std::io::Error| format!("{}: {error}", work.display());
        if work.exists() {
            fs::remove_dir_all(&work).map_err(failed)?;
        }
        fs::DirBuilder::new().mode(0o700).create(&work).map_err(failed)?;
        let stack = Self { engine, folder: root.join("docker"), work: work.clone(), cli: cli.to_owned() };
        let token = stack.token(AGENT, &["--role", "agent", "--ttl", "30d"])?;
        let token_file = work.join("agent.token");
        fs::write(&token_file, token).map_err(failed)?;
        // Read in the container by user 65534; out here the folder keeps others away.
        fs::set_permissions(&token_file, fs::Permissions::from_mode(0o644)).map_err(failed)?;
        let mut text = format!(
            "EXCHEQUER_TAG={TAG}\nEXCHEQUER_AUTH_ISSUER=exchequer.local\nEXCHEQUER_AUTH_AUDIENCE=exchequer\n\
             EXCHEQUER_JWKS={}\nEXCHEQUER_AGENT_TOKEN={}\n",
            work.join("auth/jwks.json").display(),
            token_file.display(),
        );
        for name in PASSWORDS {
            let _ = writeln!(text, "{name}={}", random()?);
        }
        fs::write(stack.environment(), text).map_err(failed)?;
        Ok(stack)
    }

    /// Brings the stack up and sends one execution through it.
    pub(super) fn try_out(&self) -> Result<(), String> {
        // What an interrupted run left has other keys and passwords.
        self.down()?;
        self.up(&["nats", "ledger"])?;
        let verifier_key = wait_for("the ledger", || {
            get(LEDGER_HTTP, "/readyz")?;
            get(LEDGER_HTTP, "/verifier-key")
        })?;
        self.remember(&format!("EXCHEQUER_AGENT_LEDGER_VERIFIER_KEY={verifier_key}"))?;
        self.up(&[])?;

        let admin = self.token("operator", &["--role", "admin"])?;
        for (service, holder, role) in [("metering", "metering", "metering"), ("agent", AGENT, "agent")] {
            let key = wait_for(&format!("the public key of {service}"), || {
                let said = capture(self.compose().args(["logs", "--no-color", service]))?;
                public_key(&said).ok_or_else(|| said.lines().last().unwrap_or_default().to_owned())
            })?;
            println!("enrolling {service}: {key}");
            self.ask(&admin, &["agent", "enroll", "--role", role, "--id", holder, "--key", &key])?;
        }
        println!("one invocation is granted to {TENANT}");
        wait_for("metering", || self.ask(&admin, &["budget", "set", "--scope", TENANT, "invocations=1"]))?;
        wait_for("the agent", || get(AGENT_HTTP, "/readyz"))?;

        let controls = self.ask(&admin, &["agent", "capabilities"])?;
        let (enforced, missing) = (with_status(&controls, &["enforced"]), missing_controls(&controls));
        if enforced.is_empty() || missing.iter().any(|name| !NOT_REQUIRED.contains(name)) {
            return Err(format!("the agent's sandbox shows {enforced:?} and lacks {missing:?}:\n{controls}"));
        }
        println!(
            "the agent's sandbox, by attacks made just now: {} controls enforced, missing {missing:?}",
            enforced.len()
        );

        let user = self.token("somebody", &["--role", "user", "--tenant", TENANT])?;
        let run = ["run", "--tenant", TENANT, "--", PROGRAM[0], PROGRAM[1]];
        let answer = self.ask(&user, &run)?;
        let expected = capture(Command::new(&self.cli).arg(PROGRAM[1]))?;
        if answer != expected {
            return Err(format!("the execution answered `{answer}`, not `{expected}`"));
        }
        println!("executed in the stack: {answer}");
        match self.ask(&user, &run) {
            Err(refusal) if refusal.contains("invocations") => {
                println!("the second one is refused:\n{refusal}");
            }
            Err(other) => {
                return Err(format!("the second one failed for another reason than its budget: {other}"));
            }
            Ok(_) => return Err("a second execution ran on a budget of one".to_owned()),
        }
        let auditor = self.token("audit", &["--role", "auditor"])?;
        let log = format!("http://127.0.0.1:{LEDGER_HTTP}");
        println!("{}", self.ask(&auditor, &["verify", &log, "--key", &verifier_key])?);
        Ok(())
    }

    /// Takes the stack down, its volumes too.
    pub(super) fn down(&self) -> Result<(), String> {
        invoke::run(self.compose().args(["down", "--volumes", "--remove-orphans", "--timeout", "20"]))
    }

    /// Prints what the services said last.
    pub(super) fn show_logs(&self) {
        // Only shown after a failure, which is what counts.
        let _ = invoke::run(self.compose().args(["logs", "--no-color", "--tail", "40"]));
    }

    /// How somebody takes down by hand what `--keep` left.
    pub(super) fn takedown(&self) -> String {
        let environment = self.environment();
        let compose = match self.engine.compose {
            Compose::Plugin => "docker compose",
            Compose::Standalone => "docker-compose",
        };
        format!(
            "cd {} && {compose} -p {PROJECT} --env-file {} down --volumes",
            self.folder.display(),
            environment.display()
        )
    }

    fn environment(&self) -> PathBuf {
        self.work.join("stack.env")
    }

    fn remember(&self, line: &str) -> Result<(), String> {
        let path = self.environment();
        let append =
            || fs::OpenOptions::new().append(true).open(&path)?.write_all(format!("{line}\n").as_bytes());
        append().map_err(|error| format!("{}: {error}", path.display()))
    }

    /// A compose command for this stack. It runs in docker/, because docker-compose 1.29 takes the profile's path
    /// relative to where it runs, and compose v2 relative to the project, which is then the same.
    fn compose(&self) -> Command {
        let mut command = self.engine.compose();
        command.current_dir(&self.folder);
        command
            .args(["--project-name", PROJECT, "--file", "compose.yaml", "--env-file"])
            .arg(self.environment());
        command
    }

    fn up(&self, services: &[&str]) -> Result<(), String> {
        invoke::run(self.compose().args(["up", "--detach"]).args(services))
    }

    fn token(&self, subject: &str, args: &[&str]) -> Result<String, String> {
        capture(
            Command::new(&self.cli)
                .args(["token", "--init", "--subject", subject, "--data"])
                .arg(&self.work)
                .args(args),
        )
    }

    /// Asks the services with a token; the token stays out of the process list.
    fn ask(&self, token: &str, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new(&self.cli);
        command.env("EXCHEQUER_TOKEN", token).env("EXCHEQUER_GRPC", GRPC);
        command.env("EXCHEQUER_HTTP", format!("http://127.0.0.1:{LEDGER_HTTP}"));
        capture(command.args(args))
    }
}

/// Tries until it succeeds; after [`PATIENCE`] the last failure is the reason.
fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(reason) if Instant::now() >= deadline => {
                return Err(format!("{what} is not there: {reason}"));
            }
            Err(_) => std::thread::sleep(LOOK_AGAIN_AFTER),
        }
    }
}

/// The body of a successful HTTP answer from a loopback port, trimmed.
fn get(port: u16, path: &str) -> Result<String, String> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        // HTTP/1.0: the body ends with the connection.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|error| format!("{address}: {error}"))?;
    body(&answer).map(str::to_owned).ok_or_else(|| format!("{address}{path}: {}", answer.trim()))
}

fn body(answer: &str) -> Option<&str> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    (head.split(' ').nth(1) == Some("200")).then(|| body.trim())
}

/// The last key that a daemon said it signs with, as 64 hexadecimal digits.
fn public_key(log: &str) -> Option<String> {
    let (_, after) = log.rsplit_once("public_key=")?;
    let digits: String = after.trim_start_matches('"').chars().take_while(char::is_ascii_hexdigit).collect();
    (digits.len() == 64).then_some(digits)
}

/// What the agent's configuration in compose.yaml does without.
const NOT_REQUIRED: [&str; 1] = ["cgroup"];

fn missing_controls(shown: &str) -> Vec<&str> {
    with_status(shown, &["unavailable", "degraded"])
}

/// The controls that are listed with one of these.
fn with_status<'a>(shown: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let rows = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(1).is_some_and(|status| wanted.contains(status))).map(|row| row[0]).collect()
}

/// 32 hexadecimal digits from the kernel. A leading letter keeps NATS from reading a number.
fn random() -> Result<String, String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| format!("/dev/urandom: {error}"))?;
    let mut text = "p".to_owned();
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_successful_answer_has_a_body() {
        assert_eq!(body("HTTP/1.0 200 OK\r\na: b\r\n\r\nkey\n"), Some("key"));
        assert_eq!(body("HTTP/1.0 503 Service Unavailable\r\n\r\n{}"), None);
        assert_eq!(body("HTTP/1.0 200 OK\r\n"), None);
    }

    #[test]
    fn controls_are_told_apart_by_their_status() {
        let shown = "CONTROL  STATUS  ATTACK\npid_namespace  enforced  x\ncgroup  unavailable  enforced\n";
        assert_eq!(with_status(shown, &["enforced"]), ["pid_namespace"]);
        assert_eq!(missing_controls(shown), ["cgroup"]);
    }

    #[test]
    fn the_last_whole_public_key_of_a_log_is_taken() {
        let key = "0a".repeat(32);
        let log = format!("INFO x public_key=\"{}\"\nINFO y public_key=\"{key}\" more\n", "1".repeat(64));
        assert_eq!(public_key(&log), Some(key));
        assert_eq!(public_key("public_key=\"abc\""), None);
        assert_eq!(public_key("no key"), None);
    }

    #[test]
    fn passwords_differ_and_begin_with_a_letter() {
        let (one, other) = (random().unwrap(), random().unwrap());
        assert_ne!(one, other);
        assert!(one.len() == 33 && one.starts_with('p'), "{one}");
    }
}
