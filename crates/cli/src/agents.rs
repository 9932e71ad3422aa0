//! `exchequer agent`: keys of agents and metering writers, and what an agent's host enforces.
//!
//! Left out: keys that verify tokens (JWKS files). Invariant: a key that is enrolled here is a usable Ed25519 key.

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, bail};
use exchequer_event::{
    control::public_key,
    v1::{self, KeyRole},
};
use prost::bytes::Bytes;

use crate::{
    capabilities,
    client::Connection,
    describe,
    print::{self, Format},
};

/// Longest text of a key file.
const MAX_KEY_TEXT: usize = 1024;

/// Enrol, revoke and list keys; ask what an agent enforces
#[derive(clap::Subcommand)]
pub enum Agents {
    /// Let a key sign from here on. The daemons log theirs when they start; `exchequer key FILE` prints a key file's
    #[command(
        after_help = "Examples:\n  exchequer agent enroll --id worker-1 --key 1f3c…\n  exchequer agent enroll --role metering --id metering --key metering.pub"
    )]
    Enroll(HeldKey),
    /// Let a key sign no more
    #[command(
        after_help = "Examples:\n  exchequer agent revoke --id worker-1 --key 1f3c… --reason 'host compromised'"
    )]
    Revoke(Revoke),
    /// Every key that was ever enrolled
    List(List),
    /// What the agent's sandbox enforces, from attacks that are made for this call; `exchequer capabilities` asks this host
    Capabilities(Capabilities),
}

/// What a key may sign.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Role {
    /// Batches of an agent's events.
    #[default]
    Agent,
    /// Blocks of decisions.
    Metering,
}

impl Role {
    fn wire(self) -> i32 {
        match self {
            Self::Agent => KeyRole::Agent.into(),
            Self::Metering => KeyRole::Metering.into(),
        }
    }
}

/// A key and its holder: the arguments of `agent enroll`, and of `agent revoke` beside the reason.
#[derive(clap::Args)]
pub struct HeldKey {
    /// Who holds the key: the agent's id
    #[arg(long, value_name = "ID")]
    id: String,
    /// Ed25519 public key in hex, or a file that holds it
    #[arg(long, value_name = "KEY")]
    key: String,
    #[arg(long, value_enum, default_value_t)]
    role: Role,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

/// Arguments of `agent revoke`.
#[derive(clap::Args)]
pub struct Revoke {
    #[command(flatten)]
    held: HeldKey,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

/// Arguments of `agent list`.
#[derive(clap::Args)]
pub struct List {
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

/// Arguments of `agent capabilities`.
#[derive(clap::Args)]
pub struct Capabilities {
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

impl Agents {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Enroll(enroll) => {
                let request = v1::EnrollKeyRequest {
                    role: enroll.role.wire(),
                    holder: enroll.id.clone(),
                    public_key: read_key(&enroll.key)?,
                };
                let answer = enroll.connection.ledger().await?.enroll_key(request).await?.into_inner();
                match (enroll.format, answer.stream_seq) {
                    (Format::Json, _) => print::json(&describe::to_json("EnrollKeyResponse", &answer))?,
                    (Format::Text, 0) => {
                        print::text(&format!("the key of {} was enrolled already", enroll.id))?;
                    }
                    (Format::Text, seq) => {
                        print::text(&format!(
                            "the key of {} may sign from stream sequence {seq} on",
                            enroll.id
                        ))?;
                    }
                }
            }
            Self::Revoke(Revoke { held: revoke, reason }) => {
                let request = v1::RevokeKeyRequest {
                    role: revoke.role.wire(),
                    holder: revoke.id.clone(),
                    public_key: read_key(&revoke.key)?,
                    reason,
                };
                let answer = revoke.connection.ledger().await?.revoke_key(request).await?.into_inner();
                match revoke.format {
                    Format::Json => print::json(&describe::to_json("RevokeKeyResponse", &answer))?,
                    Format::Text => print::text(&format!(
                        "the key of {} may sign no more from stream sequence {} on",
                        revoke.id, answer.stream_seq
                    ))?,
                }
            }
            Self::List(list) => {
                let request = v1::ListKeysRequest { role: KeyRole::Unspecified.into() };
                let keys = list.connection.ledger().await?.list_keys(request).await?.into_inner().keys;
                show_keys(keys, list.format)?;
            }
            Self::Capabilities(asked) => {
                let request = v1::GetCapabilitiesRequest {};
                let answer = asked.connection.agent().await?.get_capabilities(request).await?.into_inner();
                capabilities::show(&answer, asked.format)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show_keys(keys: Vec<v1::EnrolledKey>, format: Format) -> std::io::Result<()> {
    if format == Format::Json {
        return print::json(&keys.iter().map(|key| describe::to_json("EnrolledKey", key)).collect());
    }
    let rows: Vec<_> = keys
        .into_iter()
        .map(|key| {
            let role = key.role().as_str_name().trim_start_matches("KEY_ROLE_").to_lowercase();
            let state = if key.revoked { "revoked" } else { "enrolled" };
            [role, key.holder, state.to_owned(), hex::encode(key.public_key)]
        })
        .collect();
    print::table(["ROLE", "HOLDER", "STATE", "PUBLIC KEY"], &rows)
}

/// A public key given as hex or as a file with hex.
fn read_key(given: &str) -> anyhow::Result<Bytes> {
    let text = if Path::new(given).is_file() {
        let text = std::fs::read_to_string(given).with_context(|| given.to_owned())?;
        if text.len() > MAX_KEY_TEXT {
            bail!("{given} is too long to hold a public key");
        }
        text
    } else {
        given.to_owned()
    };
    let bytes =
        hex::decode(text.trim()).with_context(|| format!("--key: {given} is neither hex nor a file"))?;
    let key = public_key("--key", &bytes).map_err(|refusal| anyhow::anyhow!("{}", refusal.detail))?;
    Ok(Bytes::copy_from_slice(key.as_bytes()))
}
