//! The options of `[metering]` that the library takes; addresses are the server's.
//!
//! Left out: IO. Invariant: an `Options` read without fault is within every bound.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use exchequer_config::Reader;

use crate::{AllowedHost, WEBHOOK_RETRIES, partition::MAX_PARTITIONS};

const SECOND: Duration = Duration::from_secs(1);

/// How metering runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of the key, the lock and the snapshots; made if it is not there.
    pub data: PathBuf,
    /// The Ed25519 key that signs blocks; made if it is not there.
    pub key_file: PathBuf,
    /// How many partitions there are: the same for all instances of a stream, and for good.
    pub partitions: u16,
    /// Where other instances reach this one's gRPC, as `host:port`; without, they can't hand calls on to it.
    pub advertise: Option<String>,
    /// How long the lease lasts without renewal: the time that a crashed owner keeps others out.
    pub lease_ttl: Duration,
    /// How long a block may take to be known as durable before its callers are told that the outcome is unknown.
    pub append_timeout: Duration,
    /// Commands that wait for a block at most; more are refused.
    pub queue_limit: usize,
    /// How often a snapshot is stored while the stream moves.
    pub snapshot_interval: Duration,
    /// Hosts to which webhooks may lead although their addresses are not public.
    pub webhook_allow: Vec<AllowedHost>,
    /// Waits between the attempts at a notification: [`WEBHOOK_RETRIES`], unless a test is in a hurry.
    pub webhook_retries: Vec<Duration>,
}

impl Options {
    /// Options for a data directory, all else by default.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        let data = data.into();
        Self {
            key_file: data.join("metering.key"),
            data,
            partitions: 1,
            advertise: None,
            lease_ttl: Duration::from_millis(1500),
            append_timeout: 5 * SECOND,
            queue_limit: 8192,
            snapshot_interval: 10 * SECOND,
            webhook_allow: Vec::new(),
            webhook_retries: WEBHOOK_RETRIES.to_vec(),
        }
    }

    /// Reads `[metering]`; faults are kept by the reader. `data` is where things go if the configuration does not say.
    pub fn read(reader: &mut Reader, data: impl Into<PathBuf>) -> Self {
        let data: PathBuf = reader.get("metering.data", data.into());
        let defaults = Self::new(data);
        let key_file = reader.get("metering.key_file", defaults.key_file);
        let advertise = reader.optional::<String>("metering.advertise");
        if advertise.as_deref().is_some_and(|address| !is_address(address)) {
            reader.fault("metering.advertise", "must be host:port, of at most 128 characters");
        }
        let listen = reader.optional::<SocketAddr>("metering.grpc_listen");
        let advertise = advertise.or_else(|| {
            // A wildcard says nothing to others.
            listen.filter(|listen| !listen.ip().is_unspecified()).map(|listen| listen.to_string())
        });
        Self {
            lease_ttl: reader.duration("metering.lease_ttl", defaults.lease_ttl, SECOND..=60 * SECOND),
            append_timeout: reader.duration(
                "metering.append_timeout",
                defaults.append_timeout,
                SECOND..=60 * SECOND,
            ),
            queue_limit: reader.in_range("metering.queue_limit", defaults.queue_limit, 1..=1_000_000),
            snapshot_interval: reader.duration(
                "metering.snapshot_interval",
                defaults.snapshot_interval,
                SECOND..=3600 * SECOND,
            ),
            partitions: reader.in_range("metering.partitions", defaults.partitions, 1..=MAX_PARTITIONS),
            webhook_allow: reader.list("metering.webhook_allow"),
            webhook_retries: defaults.webhook_retries,
            advertise,
            data: defaults.data,
            key_file,
        }
    }
}

/// Whether this can be the address of a peer: it stands in the name of a lease's holder, and in a URL.
fn is_address(text: &str) -> bool {
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    let port = text.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
    text.len() <= 128 && text.bytes().all(plain) && port.is_some_and(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str) -> (Options, Result<(), String>) {
        let mut reader = Reader::new(Some(("exchequer.toml", file)), std::iter::empty(), Vec::new());
        let options = Options::read(&mut reader, "/var/lib/exchequer");
        (options, reader.finish().map_err(|faults| faults.to_string()))
    }

    #[test]
    fn what_is_not_given_has_its_default_and_the_key_lies_with_the_data() {
        let (options, faults) = read("[metering]\ndata = \"/srv/m\"\nappend_timeout = \"2s\"\n");
        assert_eq!(faults, Ok(()));
        assert_eq!(options.key_file, PathBuf::from("/srv/m/metering.key"));
        assert_eq!((options.partitions, options.append_timeout), (1, 2 * SECOND));
        assert_eq!(options.advertise, None);
    }

    #[test]
    fn what_it_advertises_is_where_it_listens_unless_told_otherwise() {
        for (file, want) in [
            ("grpc_listen = \"127.0.0.1:7\"", Some("127.0.0.1:7")),
            ("grpc_listen = \"0.0.0.0:7\"", None),
            ("grpc_listen = \"0.0.0.0:7\"\nadvertise = \"metering-1:7411\"", Some("metering-1:7411")),
            ("advertise = \"[::1]:7411\"", Some("[::1]:7411")),
        ] {
            let (options, _) = read(&format!("[metering]\n{file}\n"));
            assert_eq!(options.advertise.as_deref(), want, "{file}");
        }
        for address in ["x", ":1", "a:b", "a:70000", "a/b:1", "a@b:1"] {
            let (_, faults) = read(&format!("[metering]\nadvertise = \"{address}\"\n"));
            assert!(faults.is_err_and(|faults| faults.contains("metering.advertise")), "{address}");
        }
    }

    #[test]
    fn every_fault_is_reported_together() {
        let (_, faults) = read(
            "[metering]\npartitions = 65\nadvertise = \"x\"\nlease_ttl = \"1ms\"\nqueue_limit = 0\nqueue = 1\n\
             webhook_allow = [\"hooks.internal\", \"10.0.0.0/8\"]\n",
        );
        let faults = faults.unwrap_err();
        for key in [
            "metering.partitions",
            "metering.advertise",
            "metering.lease_ttl",
            "metering.queue_limit",
            "metering.queue",
            "metering.webhook_allow",
        ] {
            assert!(faults.contains(key), "{key} in {faults}");
        }
    }
}
