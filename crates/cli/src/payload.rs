//! `exchequer payload-key`, and opening confidential payloads with such a key, or with what its holder showed.
//!
//! Left out: encrypting, which is the agent's. Invariant: a key is never printed, and a payload only after it was checked against the
//! commitment in its entry.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use exchequer_auth::payload_keys;
use exchequer_event::{
    entry,
    payload::{self, OpenError, Opened},
    v1::{self, entry::Kind},
};
use prost::{Message as _, bytes::Bytes};

use crate::{client::Refused, print};

/// Make, show and erase the keys under which tenants' payloads are encrypted
#[derive(clap::Subcommand)]
#[command(after_help = "\
Examples:
  exchequer payload-key new acme.key
  exchequer log show --tenant acme --payload-key acme.key
  exchequer payload-key erase acme.key

The agent encrypts the payloads of a tenant's events from the start on that names the key in its configuration:
  [[agent.confidential]]
  tenant = \"acme\"
  key_file = \"/config/acme.key\"")]
pub enum PayloadKey {
    /// Make a key file, readable by its owner only, and print the key's id
    New {
        /// The key file; must not exist
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print the id of the key: entries name it
    Show {
        /// The key file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Overwrite and remove a key file: without the key, nobody opens what was encrypted under it, and all proofs go on holding
    #[command(after_help = "\
This destroys one file. What was encrypted can be opened for as long as any copy of the key is left: on other agents, in backups and
snapshots, in the memory of agents that run, and, with file systems that copy on write and on flash disks, in blocks that were not
overwritten in place. Stop the agents that use the key first, and give the tenant a new one: without an [[agent.confidential]], its
payloads are recorded in clear.")]
    Erase {
        /// The key file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

impl PayloadKey {
    /// Runs it.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let (key, remark) = match self {
            Self::New { file } => (payload_keys::create(file)?, None),
            Self::Show { file } => (payload_keys::load(file)?, None),
            Self::Erase { file } => {
                let remark = format!(
                    "{} is overwritten and removed; copies, backups, snapshots and running agents may still hold the key",
                    file.display()
                );
                (payload_keys::erase(file)?, Some(remark))
            }
        };
        print::text(&payload::PayloadKey::new(&key).id().to_string())?;
        if let Some(remark) = remark {
            print::remark(&remark);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// With what to open payloads.
#[derive(clap::Args)]
#[command(next_help_heading = "Confidential payloads")]
pub struct Reveal {
    /// Open payloads that are under this payload key, and check them against their commitments; can be given more than once
    #[arg(long, value_name = "FILE")]
    payload_key: Vec<PathBuf>,
}

/// Opens payloads.
#[derive(Default)]
pub struct Opener {
    keys: Vec<payload::PayloadKey>,
    shown: Option<Bytes>,
}

impl Reveal {
    /// Reads the key files.
    pub fn opener(&self) -> anyhow::Result<Opener> {
        let load = |file: &PathBuf| payload_keys::load(file).map(|key| payload::PayloadKey::new(&key));
        Ok(Opener { keys: self.payload_key.iter().map(load).collect::<Result<_, _>>()?, shown: None })
    }
}

impl Opener {
    /// Takes the payload that is in this file, in hex, as `--format json` shows it.
    pub fn with_opening(self, file: &PathBuf) -> anyhow::Result<Self> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let opening = hex::decode(text.trim()).with_context(|| format!("{} is not hex", file.display()))?;
        Ok(Self { shown: Some(opening.into()), ..self })
    }

    /// Opens an entry's payload. `None` where nothing is confidential, or it is under a key that is not here.
    pub fn open(&self, logged: &v1::LogEntry) -> anyhow::Result<Option<Opened>> {
        let Some(event) = event(logged) else { return Ok(None) };
        let opened = match (&self.shown, payload::key_id(&event)) {
            (Some(plaintext), _) => {
                payload::reveal(&event, plaintext).map(|event| Opened { event, plaintext: plaintext.clone() })
            }
            (None, Some(id)) => match self.keys.iter().find(|key| key.id() == id) {
                Some(key) => key.open(&event),
                None => return Ok(None),
            },
            (None, None) => return Ok(None),
        };
        let refused = |error: OpenError| Refused(format!("entry {}: {error}", logged.index));
        Ok(Some(opened.map_err(refused)?))
    }
}

fn event(logged: &v1::LogEntry) -> Option<v1::Event> {
    match entry::decode(&logged.entry).ok()?.kind? {
        Kind::Event(bytes) => v1::Event::decode(bytes).ok(),
        _ => None,
    }
}

/// An entry with another event in it: for showing, not for hashing.
pub fn with_event(logged: &v1::LogEntry, event: &v1::Event) -> v1::LogEntry {
    let stream_seq = entry::decode(&logged.entry).map_or(0, |entry| entry.stream_seq);
    let entry = v1::Entry { stream_seq, kind: Some(Kind::Event(event.encode_to_vec().into())) };
    v1::LogEntry { entry: entry.encode_to_vec().into(), ..logged.clone() }
}

#[cfg(test)]
mod tests {
    use exchequer_event::{payload::Once, v1::event};

    use super::*;

    fn key(byte: u8) -> payload::PayloadKey {
        payload::PayloadKey::new(&[byte; payload::KEY_LEN])
    }

    fn recorded() -> v1::Event {
        let denied = v1::ExecutionDenied { program: "/bin/x".into(), ..v1::ExecutionDenied::default() };
        let kind = Some(event::Kind::ExecutionDenied(denied));
        let event = v1::Event { tenant: "acme".into(), seq: 4, kind, ..v1::Event::default() };
        key(1).conceal(event, &Once { nonce: [2; payload::NONCE_LEN], salt: [3; payload::SALT_LEN] })
    }

    #[test]
    fn a_payload_that_does_not_hold_names_its_entry() {
        let logged = |event: &v1::Event| with_event(&v1::LogEntry { index: 7, ..Default::default() }, event);
        let with = |byte| Opener { keys: vec![key(9), key(byte)], shown: None };
        let opened = with(1).open(&logged(&recorded())).unwrap().unwrap();
        assert!(format!("{:?}", opened.event.kind).contains("/bin/x"));
        assert!(with(2).open(&logged(&recorded())).unwrap().is_none());
        let mut changed = recorded();
        changed.confidential.as_mut().unwrap().commitment = vec![0; 32].into();
        let refused = with(1).open(&logged(&changed)).unwrap_err();
        assert_eq!(refused.to_string(), "entry 7: the payload is not what the event commits to");
        let shown = |plaintext: Bytes| Opener { keys: Vec::new(), shown: Some(plaintext) };
        assert!(shown(opened.plaintext).open(&logged(&recorded())).unwrap().is_some());
        assert!(shown(vec![0; 256].into()).open(&logged(&recorded())).is_err());
    }
}
