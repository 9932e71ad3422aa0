//! `exchequer token` and `exchequer key`: what an installation without an identity provider and a key store hands out.
//!
//! Left out: revoking single tokens; keep them short-lived. Invariant: a private key is never printed.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use exchequer_auth::{Grant, Role, keys};
use exchequer_event::{bundle::public_key_pem, v1};
use exchequer_tlog::{SignatureKind, VerifierKey};
use serde_json::json;

use crate::{
    assembly,
    client::Connection,
    describe,
    print::{self, Format},
};

/// Mint a token with the data directory's own issuer
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  exchequer token --subject alice --tenant acme --role user --ttl 8h
  exchequer token --subject audit --role auditor --ttl 1h
  exchequer token --init --data deploy --subject worker-1 --role agent --ttl 30d     (makes the issuer deploy/auth)

Roles: user (execute and read in its tenant), tenant-admin (set budgets of its tenant), agent (a worker host: its subject is the
agent's id), auditor (read everything), admin. The issuer is `exchequer.local`, the audience `exchequer`; other services verify
the token with the directory's auth/jwks.json.")]
pub struct Token {
    /// Who it is for
    #[arg(long, value_name = "NAME")]
    subject: String,
    /// The tenant it may act for
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// A role; can be given more than once
    #[arg(long, value_name = "ROLE", required = true)]
    role: Vec<Role>,
    /// How long it is valid
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = exchequer_config::parse_duration)]
    ttl: Duration,
    /// Make the issuer if the data directory has none
    #[arg(long)]
    init: bool,
    /// Data directory whose issuer mints
    #[arg(long, value_name = "DIR", env = "EXCHEQUER_DATA", default_value = ".exchequer")]
    data: PathBuf,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Token {
    /// Runs it.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let auth = self.data.join("auth");
        if self.init {
            std::fs::create_dir_all(&auth).with_context(|| auth.display().to_string())?;
        } else if !auth.join("jwks.json").is_file() {
            bail!(
                "{} has no issuer; give --data of an `exchequer up`, or --init to make one",
                self.data.display()
            );
        }
        let issuer = assembly::issuer(&self.data)?;
        let grant = Grant { subject: self.subject, tenant: self.tenant, roles: self.role, ttl: self.ttl };
        let token = issuer.mint(&grant)?;
        match self.format {
            Format::Text => print::text(&token)?,
            Format::Json => print::json(&json!({
                "token": token,
                "subject": grant.subject,
                "tenant": grant.tenant,
                "roles": grant.roles.iter().map(|role| role.name()).collect::<Vec<_>>(),
                "ttl_s": grant.ttl.as_secs(),
            }))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Make a service's key file if it is not there, and print its public key; or replace the ledger's key
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  exchequer key agent.key > agent.pub        for [[ledger.enroll]] public_key_file, or `exchequer agent enroll --key`
  exchequer key agent.key --pem              for programs that verify bundles (docs/bundle.md)
  exchequer key ledger.key --origin example.org/log        the verifier key, for agent.ledger_verifier_key
  exchequer key rotate-ledger --reason 'a year old'"
)]
pub struct Key {
    #[command(subcommand)]
    verb: Option<KeyVerb>,
    /// The key file
    #[arg(value_name = "FILE", required = true)]
    file: Option<PathBuf>,
    /// Print the verifier key of a log of this origin instead
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<String>,
    /// Print the public key as PEM (SubjectPublicKeyInfo) instead
    #[arg(long, conflicts_with = "origin")]
    pem: bool,
}

#[derive(clap::Subcommand)]
enum KeyVerb {
    /// Replace the ledger's key by a new one, which the ledger makes, enrols and signs with; print the new verifier key
    #[command(after_help = "\
The old key is revoked in the log; checkpoints that it signed stay verifiable, and agents follow by themselves. Hand the new
verifier key to auditors, and its key file to every other ledger of this log (see docs/operations.md).")]
    RotateLedger(RotateLedger),
}

/// Arguments of `key rotate-ledger`.
#[derive(clap::Args)]
struct RotateLedger {
    /// Do not revoke the old key: other ledgers of this log sign with it until they have the new one
    #[arg(long)]
    keep_old: bool,
    /// Why, for the record of the revocation
    #[arg(long, value_name = "TEXT", default_value = "rotated")]
    reason: String,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

impl RotateLedger {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let request = v1::RotateLedgerKeyRequest { keep_old: self.keep_old, reason: self.reason };
        let answer = self.connection.ledger().await?.rotate_ledger_key(request).await?.into_inner();
        self.connection.note_verifier_key(&answer.verifier_key)?;
        match self.format {
            Format::Json => print::json(&describe::to_json("RotateLedgerKeyResponse", &answer))?,
            Format::Text => {
                print::text(&answer.verifier_key)?;
                let state = if answer.revoked { "is revoked" } else { "stays enrolled" };
                print::remark(&format!("the old key {} {state}", hex::encode(&answer.replaced_key)));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Key {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(KeyVerb::RotateLedger(rotate)) = self.verb {
            return rotate.run().await;
        }
        let file = self.file.context("FILE is missing")?;
        let key = keys::load_or_create(&file)?.verifying_key();
        match self.origin {
            Some(origin) => {
                print::text(
                    &VerifierKey::new(origin, SignatureKind::Ed25519, key).context("--origin")?.to_string(),
                )?;
            }
            None if self.pem => print::text(public_key_pem(&key).trim_end())?,
            None => print::text(&hex::encode(key.as_bytes()))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
