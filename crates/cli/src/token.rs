//! `exchequer token` and `exchequer key`: what an installation without an identity provider and a key store hands out.
//!
//! Left out: revoking single tokens; keep them short-lived. Invariant: a private key is never printed.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use exchequer_auth::{Grant, Role, keys};
use exchequer_tlog::{SignatureKind, VerifierKey};
use serde_json::json;

use crate::{
    assembly,
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

/// Make a service's key file if it is not there, and print its public key
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  exchequer key agent.key > agent.pub        for [[ledger.enroll]] public_key_file, or `exchequer agent enroll --key`
  exchequer key ledger.key --origin example.org/log        the verifier key, for agent.ledger_verifier_key")]
pub struct Key {
    /// The key file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print the verifier key of a log of this origin instead
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<String>,
}

impl Key {
    /// Runs it.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let key = keys::load_or_create(&self.file)?.verifying_key();
        match self.origin {
            Some(origin) => {
                print::text(
                    &VerifierKey::new(origin, SignatureKind::Ed25519, key).context("--origin")?.to_string(),
                )?;
            }
            None => print::text(&hex::encode(key.as_bytes()))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
