//! `exchequer bundle`: result bundles, checked against a key, their files and the log, and shown.
//!
//! Left out: the format (`exchequer_event::bundle`), and running anything ([`replay`]). Invariant: `holds` is said only if the signature
//! verifies under the key that is named beside it and nothing that was compared differs.

mod directory;
mod inputs;
mod logged;
pub mod replay;

use std::{
    fmt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use ed25519_dalek::VerifyingKey;
use exchequer_event::bundle::{self, BundleError, Execution, MAX_BUNDLE_BYTES, Statement, key_id};
use serde::Serialize;
use serde_json::json;

use crate::{
    client::{Connection, Refused},
    describe::utc,
    payload::Reveal,
    print::{self, Format},
};

pub use directory::Saving;

/// Longest text of a key file.
const MAX_KEY_TEXT: usize = 1024;
/// What is noted where the caller gave neither key nor log.
const OWN_WORD: &str =
    "no key was given: it is the bundle's own word, so this shows that the bundle is whole, not whose it is";

/// Check and show result bundles
#[derive(clap::Subcommand)]
pub enum Bundle {
    /// Check a bundle: its signature, the files that lie beside it, and where it says the log holds it
    Verify(Verify),
    /// Show what a bundle says; nothing is checked
    Show(Show),
}

/// Check a bundle: its signature, the files that lie beside it, and where it says the log holds it
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  exchequer run --tenant acme --bundle out -- echo hello
  exchequer bundle verify out --key agent.pub
  exchequer bundle verify out/bundle.dsse.json --key 1f3c…
  exchequer bundle verify out --log http://127.0.0.1:7480

A file: the signature, and that the statement is consistent. A directory that `run --bundle` wrote: also each file against the digests
that were signed, and inputs.json against the digests of what was given. --log: also that the log holds, that it has the two events which
the bundle names, that they say what the bundle says, and that the key was the agent's. It reads the whole log.
Exit status: 0 it holds, 1 it does not, and what differs is named, 2 it could not be checked.")]
pub struct Verify {
    /// A bundle, or a directory that `run --bundle` wrote
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// The agent's Ed25519 public key in hex, or a file that holds it in hex or PEM
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Look the bundle's events up in this log
    #[arg(long, value_name = "URL|DIR")]
    log: Option<String>,
    /// That log's verifier key, or a file that holds it
    #[arg(long, value_name = "VKEY", requires = "log")]
    log_key: Option<String>,
    #[command(flatten)]
    reveal: Reveal,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

/// Show what a bundle says; nothing is checked
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  exchequer bundle show out\n  exchequer bundle show out/bundle.dsse.json --format json"
)]
pub struct Show {
    /// A bundle, or a directory that `run --bundle` wrote
    #[arg(value_name = "PATH")]
    path: PathBuf,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What a check came to.
#[derive(Default, Serialize)]
struct Report {
    holds: bool,
    execution_id: String,
    agent: String,
    /// Id of the key that verified the signature; empty if none did.
    key_id: String,
    /// Whether the caller named the key.
    key_given: bool,
    /// What was compared.
    checked: Vec<String>,
    /// What differs.
    differences: Vec<String>,
    /// What this does not show.
    notes: Vec<String>,
}

impl Report {
    fn compare(&mut self, holds: bool, difference: impl FnOnce() -> String) {
        if !holds {
            self.differences.push(difference());
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.holds { "HOLDS" } else { "DOES NOT HOLD" };
        write!(f, "{verdict}: bundle")?;
        if !self.execution_id.is_empty() {
            write!(f, " of execution {} by agent {}", self.execution_id, self.agent)?;
        }
        if !self.key_id.is_empty() {
            let source = if self.key_given { "given by you" } else { "the bundle's own word" };
            write!(f, "\n  signed with key {} ({source})", self.key_id)?;
        }
        self.checked.iter().try_for_each(|line| write!(f, "\n  checked: {}", print::escaped(line)))?;
        self.differences.iter().try_for_each(|line| write!(f, "\n  differs: {}", print::escaped(line)))?;
        self.notes.iter().try_for_each(|line| write!(f, "\n  note: {}", print::escaped(line)))
    }
}

impl Bundle {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Verify(verify) => verify.run().await,
            Self::Show(show) => show.run(),
        }
    }
}

impl Verify {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let bytes = read_bundle(&self.path)?;
        let key = self.key.as_deref().map(read_key).transpose()?;
        let mut report = Report { key_given: key.is_some(), ..Report::default() };
        match verified(&bytes, key.as_ref()) {
            Ok((statement, key)) => {
                report.execution_id.clone_from(&statement.predicate.execution_id);
                report.agent.clone_from(&statement.predicate.agent.id);
                report.key_id = key_id(&key);
                report.checked.push("the signature and the statement".to_owned());
                if self.path.is_dir() {
                    directory::check(&self.path, &statement, &mut report)?;
                }
                match &self.log {
                    Some(log) => {
                        let log = logged::Log {
                            target: log,
                            key: self.log_key.as_deref(),
                            connection: &self.connection,
                            opener: self.reveal.opener()?,
                        };
                        logged::check(log, &statement, &mut report).await?;
                    }
                    None if !report.key_given => report.notes.push(OWN_WORD.to_owned()),
                    None => {}
                }
            }
            Err(error) => report.differences.push(error.to_string()),
        }
        report.holds = report.differences.is_empty();
        match self.format {
            Format::Text => print::text(&report.to_string())?,
            Format::Json => print::json(&serde_json::to_value(&report)?)?,
        }
        Ok(ExitCode::from(u8::from(!report.holds)))
    }
}

impl Show {
    fn run(self) -> anyhow::Result<ExitCode> {
        let (statement, envelope) = bundle::read_unverified(&read_bundle(&self.path)?).map_err(refused)?;
        match self.format {
            Format::Json => print::json(&serde_json::to_value(&statement)?)?,
            Format::Text => {
                show(&statement)?;
                let keys: Vec<_> = envelope.signatures.iter().map(|signature| &*signature.key_id).collect();
                print::text(&match keys[..] {
                    [] => "signatures    none: unsigned".to_owned(),
                    _ => format!("signatures    by key {} (not checked)", print::escaped(&keys.join(", "))),
                })?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn refused(error: BundleError) -> Refused {
    Refused(format!("the bundle can't be read: {error}"))
}

/// What the bundle says under this key, or under the one that it names itself; and that key.
fn verified(bytes: &[u8], key: Option<&VerifyingKey>) -> Result<(Statement, VerifyingKey), BundleError> {
    let key = if let Some(key) = key {
        *key
    } else {
        let (statement, envelope) = bundle::read_unverified(bytes)?;
        if envelope.signatures.is_empty() {
            return Err(BundleError::Unsigned);
        }
        VerifyingKey::from_bytes(&statement.predicate.agent.public_key.0)
            .map_err(|_| BundleError::Inconsistent("agent.public_key is no Ed25519 key"))?
    };
    Ok((bundle::verify_bundle(bytes, &key)?, key))
}

/// The bytes of a bundle that is a file, or lies in a directory.
fn read_bundle(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.is_dir() {
        return directory::read_within(path, directory::BUNDLE, MAX_BUNDLE_BYTES);
    }
    directory::read(path, MAX_BUNDLE_BYTES)
}

/// A public key given as hex, or as a file with hex or PEM.
fn read_key(given: &str) -> anyhow::Result<VerifyingKey> {
    let text = if Path::new(given).is_file() {
        String::from_utf8(directory::read(Path::new(given), MAX_KEY_TEXT)?)
            .with_context(|| format!("{given} holds no public key"))?
    } else {
        given.to_owned()
    };
    if let Some(key) = bundle::public_key_from_pem(&text) {
        return Ok(key);
    }
    let bytes = hex::decode(text.trim()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let key = bytes.and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok()).filter(|key| !key.is_weak());
    let Some(key) = key else {
        bail!("--key: {given} is neither an Ed25519 public key in hex nor a file with one")
    };
    Ok(key)
}

fn show(statement: &Statement) -> std::io::Result<()> {
    let said: &Execution = &statement.predicate;
    let or =
        |text: &str, otherwise: &str| if text.is_empty() { otherwise.to_owned() } else { text.to_owned() };
    let place = |position: &bundle::Position| {
        let (epoch, seq, hash) = (position.epoch, position.seq, position.hash);
        format!("epoch {epoch}, seq {seq}, {hash}, at {}", utc(position.time_unix_ms))
    };
    let result = &said.result;
    let ending = match (&*result.cause, result.exit_code, result.signal) {
        ("exited", code, _) => format!("exited {code}"),
        (cause, _, 0) => cause.to_owned(),
        (cause, _, signal) => format!("{cause} (signal {signal})"),
    };
    let held = said.controls.iter().filter(|control| control.status == "enforced").count();
    let limits = &said.limits;
    let mut rows = vec![
        ("execution", said.execution_id.clone()),
        ("agent", format!("{}, key {}", said.agent.id, said.agent.public_key)),
        ("tenant", format!("{}, scope {}, skill {}", said.tenant, said.scope, or(&said.skill, "none"))),
        ("caller", said.caller.clone()),
        (
            "program",
            json!([std::slice::from_ref(&said.inputs.program), &said.inputs.arguments_redacted[..]].concat())
                .to_string(),
        ),
        ("input digest", said.inputs.digest.to_string()),
        ("profile", said.profile.name.clone()),
        (
            "limits",
            format!(
                "cpu {} ms, wall {} ms, memory {} B, output {} B, egress {} B",
                limits.cpu_ms, limits.wall_ms, limits.memory_bytes, limits.output_bytes, limits.egress_bytes
            ),
        ),
        ("hold", said.hold.id.clone()),
        ("controls", format!("{held} of {} enforced", said.controls.len())),
        ("admission", place(&said.admission)),
        ("outcome", place(&said.outcome)),
        ("ended", format!("{ending}{}{}", if said.detail.is_empty() { "" } else { ": " }, said.detail)),
        ("result digest", said.recorded.result_digest.to_string()),
    ];
    if let Some(usage) = &said.usage {
        let cpu = usage.cpu_user_us.saturating_add(usage.cpu_system_us);
        let (wall, peak, source) = (usage.wall_us, usage.peak_memory_bytes, &usage.memory_source);
        let output = usage.output_bytes;
        rows.push((
            "usage",
            format!("cpu {cpu} us, wall {wall} us, memory {peak} B peak ({source}), output {output} B"),
        ));
    }
    for control in said.controls.iter().filter(|control| control.status != "enforced") {
        rows.push(("not enforced", format!("{} ({}): {}", control.name, control.status, control.evidence)));
    }
    for file in &said.inputs.files {
        rows.push(("input", format!("{}, {} B", file.path, file.size)));
    }
    for file in result.artifacts.iter().filter(|file| !file.problem.is_empty()) {
        rows.push(("no artifact", format!("{}: {}", file.path, file.problem)));
    }
    for subject in &statement.subject {
        rows.push(("subject", format!("{} sha256:{}", subject.name, subject.digest.sha256)));
    }
    rows.push(("signing", said.signing_status.clone()));
    rows.into_iter()
        .try_for_each(|(name, value)| print::text(&format!("{name:<13} {}", print::escaped(&value))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_hex_or_a_file_of_hex_or_pem_and_nothing_else() {
        let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]).verifying_key();
        let hex = hex::encode(key.as_bytes());
        assert_eq!(read_key(&hex).unwrap(), key);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        for text in [format!("{hex}\n"), bundle::public_key_pem(&key)] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(read_key(file.to_str().unwrap()).unwrap(), key);
        }
        let weak = format!("01{}", "00".repeat(31));
        for bad in ["", "zz", &hex[2..], &weak, "/nowhere"] {
            assert!(read_key(bad).is_err(), "{bad}");
        }
    }
}
