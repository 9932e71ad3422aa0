//! The options of `[metering]` that the library takes; addresses are the server's.
//!
//! Left out: IO. Invariant: an `Options` read without fault is within every bound.

use std::{path::PathBuf, time::Duration};

use exchequer_config::Reader;
use exchequer_event::name::is_holder;

const SECOND: Duration = Duration::from_secs(1);

/// How metering runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of the key, the lock and the snapshots; made if it is not there.
    pub data: PathBuf,
    /// The Ed25519 key that signs blocks; made if it is not there.
    pub key_file: PathBuf,
    /// The partition to own.
    pub partition: String,
    /// How long the lease lasts without renewal: the time that a crashed owner keeps others out.
    pub lease_ttl: Duration,
    /// How long a block may take to be known as durable before its callers are told that the outcome is unknown.
    pub append_timeout: Duration,
    /// Commands that wait for a block at most; more are refused.
    pub queue_limit: usize,
    /// How often a snapshot is stored while the stream moves.
    pub snapshot_interval: Duration,
}

impl Options {
    /// Options for a data directory, all else by default.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        let data = data.into();
        Self {
            key_file: data.join("metering.key"),
            data,
            partition: "0".to_owned(),
            lease_ttl: Duration::from_millis(2500),
            append_timeout: 5 * SECOND,
            queue_limit: 8192,
            snapshot_interval: 10 * SECOND,
        }
    }

    /// Reads `[metering]`; faults are kept by the reader. `data` is where things go if the configuration does not say.
    pub fn read(reader: &mut Reader, data: impl Into<PathBuf>) -> Self {
        let data: PathBuf = reader.get("metering.data", data.into());
        let defaults = Self::new(data);
        let key_file = reader.get("metering.key_file", defaults.key_file);
        let partition = reader.get("metering.partition", defaults.partition);
        if !is_holder(&partition) {
            reader.fault(
                "metering.partition",
                "must be 1 to 63 of [a-z0-9_-], beginning with a letter or digit",
            );
        }
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
            data: defaults.data,
            key_file,
            partition,
        }
    }
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
        assert_eq!((options.partition.as_str(), options.append_timeout), ("0", 2 * SECOND));
    }

    #[test]
    fn every_fault_is_reported_together() {
        let (_, faults) =
            read("[metering]\npartition = \"A/B\"\nlease_ttl = \"1ms\"\nqueue_limit = 0\nqueue = 1\n");
        let faults = faults.unwrap_err();
        for key in ["metering.partition", "metering.lease_ttl", "metering.queue_limit", "metering.queue"] {
            assert!(faults.contains(key), "{key} in {faults}");
        }
    }
}
