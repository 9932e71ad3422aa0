//! The ledger's configuration, read once from the `[ledger]` section.
//!
//! Left out: stream, authentication and telemetry, which are the process's. Invariant: a key that is to be enrolled is a usable
//! Ed25519 key of a named holder.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ed25519_dalek::VerifyingKey;
use exchequer_config::Reader;
use exchequer_event::{control::public_key, name, v1::KeyRole};
use exchequer_tlog::{SignatureKind, VerifierKey};

use crate::{
    mirror::MirrorOptions,
    witness::{MAX_WITNESSES, WitnessAddress},
};

const DEFAULT_ORIGIN: &str = "exchequer.local/log";
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);

/// A key that the ledger enrols when it starts, if it never was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// What the key may sign: agent batches or decision blocks.
    pub role: KeyRole,
    /// Who holds it.
    pub holder: String,
    /// The key.
    pub key: VerifyingKey,
}

/// What the ledger needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Where gRPC is served.
    pub grpc_listen: SocketAddr,
    /// Where the log's files are served.
    pub http_listen: SocketAddr,
    /// The data directory, of this process alone.
    pub data: PathBuf,
    /// The log's origin: the first line of its checkpoints, and the name of its key.
    pub origin: String,
    /// The Ed25519 key that signs; made if there is none.
    pub key_file: PathBuf,
    /// At most and, while the tree grows, at least so often a checkpoint is signed.
    pub checkpoint_interval: Duration,
    /// Whether entries are served as files to everybody. They hold tenants' data.
    pub public_entries: bool,
    /// Keys to enrol.
    pub enroll: Vec<Enrolment>,
    /// Witnesses that are asked to cosign each checkpoint.
    pub witnesses: Vec<WitnessAddress>,
    /// How many of them have to, before a checkpoint is published; with 0, each that does so at once is taken along.
    pub witness_quorum: usize,
    /// Where the log is mirrored to, beside the data directory.
    pub mirror: Option<MirrorOptions>,
}

impl Options {
    /// Defaults in a data directory.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        let data = data.into();
        Self {
            grpc_listen: SocketAddr::from(([127, 0, 0, 1], 7401)),
            http_listen: SocketAddr::from(([127, 0, 0, 1], 7402)),
            origin: DEFAULT_ORIGIN.to_owned(),
            key_file: default_key_file(&data),
            data,
            checkpoint_interval: DEFAULT_INTERVAL,
            public_entries: false,
            enroll: Vec::new(),
            witnesses: Vec::new(),
            witness_quorum: 0,
            mirror: None,
        }
    }

    /// Reads the `[ledger]` section. `None` means that a fault was recorded, which the reader's `finish` reports with all others.
    pub fn read(reader: &mut Reader) -> Option<Self> {
        let data = reader.required::<PathBuf>("ledger.data");
        let defaults = Self::new(data.clone().unwrap_or_default());
        let origin = reader.get("ledger.origin", defaults.origin);
        if exchequer_tlog::VerifierKey::new(&*origin, exchequer_tlog::SignatureKind::Ed25519, any_key())
            .is_err()
            || origin.len() > exchequer_event::control::MAX_ORIGIN_BYTES
        {
            reader.fault("ledger.origin", "must be a key name: 1 to 200 bytes without spaces and `+`");
        }
        let options = Self {
            grpc_listen: reader.get("ledger.grpc_listen", defaults.grpc_listen),
            http_listen: reader.get("ledger.http_listen", defaults.http_listen),
            origin,
            key_file: reader.get("ledger.key_file", defaults.key_file),
            checkpoint_interval: reader.duration(
                "ledger.checkpoint_interval",
                DEFAULT_INTERVAL,
                SHORTEST_INTERVAL..=LONGEST_INTERVAL,
            ),
            public_entries: reader.get("ledger.public_entries", false),
            enroll: enrolments(reader),
            witnesses: witnesses(reader),
            witness_quorum: reader.get("ledger.witness_quorum", 0),
            mirror: MirrorOptions::read(reader),
            data: defaults.data,
        };
        if options.witness_quorum > options.witnesses.len() {
            reader.fault("ledger.witness_quorum", "is more than there are [[ledger.witness]]");
        }
        data.map(|_| options)
    }
}

/// The HTTP paths that need no token, as the authentication layer takes them: checkpoint, key and hash tiles. Entries hold tenants'
/// data and are among them only if the options say so.
pub fn public_paths(options: &Options) -> Vec<String> {
    let mut paths = vec!["/checkpoint".to_owned(), "/verifier-key".to_owned()];
    paths.extend((0..exchequer_tlog::LEVELS).map(|level| format!("/tile/{level}/")));
    if options.public_entries {
        paths.push("/tile/entries/".to_owned());
    }
    paths
}

fn default_key_file(data: &Path) -> PathBuf {
    data.join("ledger.key")
}

/// Some key, where only a name is checked.
fn any_key() -> VerifyingKey {
    ed25519_dalek::SigningKey::from_bytes(&[1; 32]).verifying_key()
}

fn enrolments(reader: &mut Reader) -> Vec<Enrolment> {
    let tables = reader.tables("ledger.enroll");
    tables.into_iter().filter_map(|table| enrolment(reader, &table)).collect()
}

fn enrolment(reader: &mut Reader, table: &str) -> Option<Enrolment> {
    let (role_key, holder_key) = (format!("{table}.role"), format!("{table}.holder"));
    let role = reader.required::<String>(&role_key);
    let role = match role.as_deref() {
        Some("agent") => Some(KeyRole::Agent),
        Some("metering") => Some(KeyRole::Metering),
        Some(_) => {
            reader.fault(&role_key, "must be `agent` or `metering`");
            None
        }
        None => None,
    };
    let holder = reader.required::<String>(&holder_key);
    if holder.as_deref().is_some_and(|holder| !name::is_holder(holder)) {
        reader
            .fault(&holder_key, "must be 1 to 63 of a-z, 0-9, `-` and `_`, beginning with a letter or digit");
    }
    let (text_key, file_key) = (format!("{table}.public_key"), format!("{table}.public_key_file"));
    let text = reader.optional::<String>(&text_key);
    let file = reader.optional::<PathBuf>(&file_key);
    let (named, text) = match (text, file) {
        (Some(text), None) => (text_key, text),
        (None, Some(file)) => match std::fs::read_to_string(&file) {
            Ok(text) => (file_key, text),
            Err(error) => {
                reader.fault(&file_key, format!("{}: {error}", file.display()));
                return None;
            }
        },
        _ => {
            reader.fault(&text_key, "exactly one of public_key and public_key_file is required");
            return None;
        }
    };
    let key = hex::decode(text.trim()).ok().and_then(|bytes| public_key("public_key", &bytes).ok());
    if key.is_none() {
        reader.fault(&named, "must be the hex of a 32-byte Ed25519 public key");
    }
    Some(Enrolment { role: role?, holder: holder?, key: key? })
}

fn witnesses(reader: &mut Reader) -> Vec<WitnessAddress> {
    let mut all: Vec<WitnessAddress> = Vec::new();
    for table in reader.tables("ledger.witness") {
        let (key_key, url_key) = (format!("{table}.verifier_key"), format!("{table}.url"));
        let key = reader.required::<VerifierKey>(&key_key);
        let url = reader.required::<String>(&url_key);
        if key.as_ref().is_some_and(|key| key.kind() != SignatureKind::Cosignature) {
            reader.fault(&key_key, "is a log's key; a witness's is of type 04, as the witness prints it");
        }
        if url.as_deref().is_some_and(|url| !is_plain_http(url)) {
            reader.fault(&url_key, "is not an http:// URL; a proxy of your own can speak https");
        }
        let (Some(key), Some(url)) = (key, url) else { continue };
        let is_same = |other: &WitnessAddress| {
            other.key.name() == key.name() || other.key.public_key() == key.public_key()
        };
        if all.iter().any(is_same) {
            reader.fault(&key_key, "is there already, by its name or its key");
        }
        all.push(WitnessAddress { key, url });
    }
    if all.len() > MAX_WITNESSES {
        reader.fault("ledger.witness", format!("more than {MAX_WITNESSES} witnesses"));
    }
    all
}

fn is_plain_http(url: &str) -> bool {
    let parsed = url.parse::<axum::http::Uri>().ok();
    parsed
        .is_some_and(|url| url.scheme_str() == Some("http") && url.host().is_some() && url.query().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<Options>, Option<String>) {
        let mut reader = Reader::new(Some(("x.toml", text)), std::iter::empty(), Vec::new());
        let options = Options::read(&mut reader);
        (options, reader.finish().err().map(|faults| faults.to_string()))
    }

    #[test]
    fn the_section_is_read_with_its_defaults() {
        let key = hex::encode(any_key().as_bytes());
        let (options, faults) = read(&format!(
            "[ledger]\ndata = \"/d\"\ncheckpoint_interval = \"250ms\"\n[[ledger.enroll]]\nrole = \"agent\"\nholder = \"a1\"\n\
             public_key = \"{key}\"\n"
        ));
        assert_eq!(faults, None);
        let enroll = vec![Enrolment { role: KeyRole::Agent, holder: "a1".into(), key: any_key() }];
        let expected =
            Options { checkpoint_interval: Duration::from_millis(250), enroll, ..Options::new("/d") };
        assert_eq!(options, Some(expected));
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let (_, faults) = read(
            "[ledger]\norigin = \"a b\"\ncheckpoint_interval = \"1ms\"\n[[ledger.enroll]]\nrole = \"king\"\nholder = \"A\"\n\
             public_key = \"00\"\n",
        );
        let faults = faults.unwrap();
        for key in ["ledger.data", "ledger.origin", "checkpoint_interval", "role", "holder", "public_key"] {
            assert!(faults.contains(key), "{key} is missing in {faults}");
        }
    }

    #[test]
    fn a_witness_is_its_key_and_its_address_and_no_two_are_one() {
        let vkey = |name: &str, kind, seed| {
            let key = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]).verifying_key();
            VerifierKey::new(name, kind, key).unwrap()
        };
        let [one, two] = [("w.example/1", 1), ("w.example/2", 2)]
            .map(|(name, seed)| vkey(name, SignatureKind::Cosignature, seed));
        let table = |key: &VerifierKey, url: &str| {
            format!("[[ledger.witness]]\nverifier_key = \"{key}\"\nurl = \"{url}\"\n")
        };
        let section = |quorum: usize, tables: &[String]| {
            read(&format!("[ledger]\ndata = \"/d\"\nwitness_quorum = {quorum}\n{}", tables.concat()))
        };
        let url = "http://w.example:7480/a";
        let (options, faults) = section(2, &[table(&one, url), table(&two, url)]);
        assert_eq!(faults, None);
        let options = options.unwrap();
        assert_eq!((options.witnesses.len(), options.witness_quorum), (2, 2));
        assert_eq!(options.witnesses[1], WitnessAddress { key: two.clone(), url: url.into() });

        let fault = |quorum, tables: &[String], expected: &str| {
            let faults = section(quorum, tables).1.unwrap();
            assert!(faults.contains(expected), "{faults}");
        };
        fault(2, &[table(&one, url)], "is more than there are");
        fault(1, &[table(&one, url), table(&one, url)], "is there already");
        fault(
            1,
            &[table(&one, url), table(&vkey("w.example/3", SignatureKind::Cosignature, 1), url)],
            "is there already",
        );
        fault(1, &[table(&vkey("log", SignatureKind::Ed25519, 3), url)], "is a log's key");
        fault(1, &[table(&one, "https://w.example")], "is not an http:// URL");
        fault(1, &["[[ledger.witness]]\n".into()], "is required");
    }

    #[test]
    fn a_mirror_is_a_bucket_or_a_directory() {
        let mirror = |text: &str| read(&format!("[ledger]\ndata = \"/d\"\n[ledger.mirror]\n{text}\n"));
        let (options, faults) = mirror("url = \"s3://b/p\"\nendpoint = \"http://minio:9000\"");
        assert_eq!(faults, None);
        let endpoint = Some("http://minio:9000".to_owned());
        let expected = MirrorOptions { url: "s3://b/p".to_owned(), endpoint, region: None };
        assert_eq!(options.unwrap().mirror, Some(expected));
        for fault in [
            "url = \"s3:///p\"",
            "url = \"ftp://b\"",
            "region = \"r\"",
            "url = \"file:///d\"\nregion = \"r\"",
            "url = \"s3://b\"\nendpoint = \"minio\"",
        ] {
            assert!(mirror(fault).1.is_some_and(|faults| faults.contains("ledger.mirror")), "{fault}");
        }
    }

    #[test]
    fn entries_are_public_only_if_the_options_say_so() {
        let options = Options::new("/d");
        assert!(!public_paths(&options).iter().any(|path| path.contains("entries")));
        assert!(
            public_paths(&Options { public_entries: true, ..options }).contains(&"/tile/entries/".to_owned())
        );
    }
}
