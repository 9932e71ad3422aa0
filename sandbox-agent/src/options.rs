//! The agent's configuration: section `[agent]`.

use std::{collections::btree_map::Entry, path::PathBuf, time::Duration};

use ed25519_dalek::VerifyingKey;
use exchequer_auth::payload_keys;
use exchequer_config::Reader;
use exchequer_event::{
    metered::{MAX_METERED, METERS, Metered},
    name,
    payload::PayloadKey,
    v1,
};
use exchequer_tlog::VerifierKey;

use crate::{
    audit_log::AuditLogOptions,
    leases::LeaseOptions,
    profiles::Profiles,
    sandbox,
    spool::{self, PayloadKeys},
};

/// Largest number of concurrent executions that can be configured.
pub const MAX_CONCURRENT: usize = 4096;
/// Largest number of waiting requests that can be configured: each may be of 3 MiB.
pub const MAX_WAITING: usize = 4096;
/// Most executions whose surroundings can be built ahead: each takes three processes, a cgroup and a keyring while nobody asks for it.
const MAX_READY: usize = 64;
/// Most bytes of files that an execution can be given, or hand out.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Most executions that one slice can be for.
const MAX_LEASE_INVOCATIONS: u64 = 1_000_000;
/// Longest life of a hold, milliseconds (`ReserveRequest.ttl_ms`).
const MAX_HOLD_MS: u64 = 24 * 60 * 60 * 1000;

/// The services that the agent works with.
#[derive(Clone, Debug)]
pub struct Peers {
    /// The ledger's public key, which signs receipts.
    pub ledger_key: VerifyingKey,
    /// Where the metering service answers.
    pub metering_url: String,
}

impl Peers {
    /// Takes the peers from section `[agent]`; faults stay with the reader.
    pub fn read(reader: &mut Reader) -> Option<Self> {
        let ledger_key = reader.required::<VerifierKey>("agent.ledger_verifier_key");
        let metering_url = reader.required::<String>("agent.metering_url");
        if metering_url.as_deref().is_some_and(|url| url.parse::<tonic::transport::Endpoint>().is_err()) {
            reader.fault("agent.metering_url", "is not a URL");
        }
        Some(Self { ledger_key: *ledger_key?.public_key(), metering_url: metering_url? })
    }
}

/// What the agent is told of itself.
#[derive(Clone, Debug)]
pub struct Options {
    /// The agent's id, under which its key is enrolled.
    pub id: String,
    /// Directory of the spool and the key.
    pub data: PathBuf,
    /// Ed25519 key that signs batches; created if absent.
    pub key_file: PathBuf,
    /// Whether executions run although controls are missing. Every such execution is recorded as degraded.
    pub allow_degraded: bool,
    /// Controls that executions run without, by name; recorded at the start, and with each execution that lacks one.
    pub not_required: Vec<String>,
    /// Bytes of unconfirmed events at which new executions are refused.
    pub spool_limit: u64,
    /// What executions may see and do.
    pub profiles: Profiles,
    /// Executions at one time.
    pub max_concurrent: usize,
    /// Of these, executions of one tenant.
    pub max_concurrent_per_tenant: usize,
    /// Requests that may wait for one of them to end.
    pub max_waiting: usize,
    /// Longest time that a request may wait, and how long it does if it does not say.
    pub max_wait: Duration,
    /// Executions whose surroundings are built ahead, for the profile asked for last; they are not among `max_concurrent`.
    pub ready_sandboxes: usize,
    /// Directory that holds a directory per tenant, of which files are read and written; `None` if there is none.
    pub workspace: Option<PathBuf>,
    /// Input files of one execution together, bytes; in memory while it runs.
    pub max_input_bytes: u64,
    /// Output files of one execution together, bytes.
    pub max_artifact_bytes: u64,
    /// How long a hold outlives the wall-clock limit: the time in which the outcome has to reach metering.
    pub hold_margin: Duration,
    /// How slices of budgets are leased; `None` reserves a hold for each execution.
    pub lease: Option<LeaseOptions>,
    /// How long receipts may stay away before unconfirmed events are published again.
    pub resend_after: Duration,
    /// Keys under which the payloads of tenants' events are encrypted; those of other tenants are recorded in clear.
    pub payload_keys: PayloadKeys,
    /// The events once more in a file on the host, if that is wanted.
    pub audit_log: Option<AuditLogOptions>,
    /// Limits of an execution that asks for none.
    pub default_limits: v1::Limits,
    /// Largest limits that may be asked for.
    pub max_limits: v1::Limits,
    /// The program to start the sandbox helper from: this program, unless a test says otherwise.
    pub helper: PathBuf,
}

impl Options {
    /// Takes the options of section `[agent]` but for its [`Peers`]; faults stay with the reader.
    pub fn read(reader: &mut Reader) -> Option<Self> {
        let id = reader.required::<String>("agent.id");
        if id.as_deref().is_some_and(|id| !spool::is_agent_id(id)) {
            reader.fault("agent.id", "has to match ^[a-z0-9][a-z0-9_-]{0,62}$");
        }
        let data = reader.required::<PathBuf>("agent.data");
        let key_file = reader.optional::<PathBuf>("agent.key_file");
        let allow_degraded = reader.get("agent.allow_degraded", false);
        let not_required = reader.list::<String>("agent.not_required");
        for name in &not_required {
            if !sandbox::Layer::ALL.iter().any(|layer| layer.name() == name) {
                reader.fault("agent.not_required", format!("there is no control {name:?}"));
            }
        }
        let spool_limit = reader.bytes("agent.spool_limit", 256 << 20, (8 << 20)..=(1 << 40));
        let read_only = reader.list::<PathBuf>("agent.read_only");
        if read_only.iter().any(|path| !path.is_absolute()) {
            reader.fault("agent.read_only", "has to be a list of absolute paths");
        }
        let profiles = Profiles::read(reader, &read_only);
        let max_concurrent = reader.in_range("agent.max_concurrent", 64, 1..=MAX_CONCURRENT);
        // A quarter is left for others, whatever one tenant asks for.
        let most_of_one = (max_concurrent - max_concurrent / 4).max(1);
        let max_concurrent_per_tenant =
            reader.in_range("agent.max_concurrent_per_tenant", most_of_one, 1..=max_concurrent.max(1));
        let max_waiting = reader.in_range("agent.max_waiting", 256, 0..=MAX_WAITING);
        let max_wait = reader.duration(
            "agent.max_wait",
            Duration::from_secs(30),
            Duration::ZERO..=Duration::from_secs(3600),
        );
        let ready = sandbox::StartOptions::default().ready;
        let ready_sandboxes = reader.in_range("agent.ready_sandboxes", ready, 0..=MAX_READY);
        let workspace = reader.optional::<PathBuf>("agent.workspace");
        if workspace.as_ref().is_some_and(|path| !path.is_absolute()) {
            reader.fault("agent.workspace", "has to be an absolute path");
        }
        let max_input_bytes = reader.bytes("agent.max_input_bytes", 64 << 20, 0..=MAX_FILE_BYTES);
        let max_artifact_bytes = reader.bytes("agent.max_artifact_bytes", 64 << 20, 0..=MAX_FILE_BYTES);
        let hold_margin = reader.duration(
            "agent.hold_margin",
            Duration::from_secs(300),
            // A caller may leave its answer unread for ten seconds before the program runs, and for as long after its time.
            Duration::from_secs(30)..=Duration::from_secs(3600),
        );
        let resend_after = reader.duration(
            "agent.resend_after",
            Duration::from_secs(10),
            Duration::from_millis(100)..=Duration::from_secs(300),
        );
        let payload_keys = payload_keys(reader);
        let audit_log = AuditLogOptions::read(reader);
        let engine = sandbox::Limits::default();
        let default_limits = limits(
            reader,
            "agent.default_limits",
            &v1::Limits {
                cpu_ms: engine.cpu_ms,
                wall_ms: engine.wall_ms,
                memory_bytes: 512 << 20,
                output_bytes: engine.output_bytes,
                egress_bytes: 16 << 20,
            },
        );
        let max_limits = limits(
            reader,
            "agent.max_limits",
            &v1::Limits {
                cpu_ms: 600_000,
                wall_ms: 600_000,
                memory_bytes: 4 << 30,
                output_bytes: 64 << 20,
                egress_bytes: 1 << 30,
            },
        );
        for (name, default, max) in [
            ("cpu_ms", default_limits.cpu_ms, max_limits.cpu_ms),
            ("wall_ms", default_limits.wall_ms, max_limits.wall_ms),
            ("memory", default_limits.memory_bytes, max_limits.memory_bytes),
            ("output_bytes", default_limits.output_bytes, max_limits.output_bytes),
            ("egress_bytes", default_limits.egress_bytes, max_limits.egress_bytes),
        ] {
            if default > max {
                reader.fault(&format!("agent.default_limits.{name}"), "is above agent.max_limits");
            }
        }
        let hold_ms =
            max_limits.wall_ms.saturating_add(u64::try_from(hold_margin.as_millis()).unwrap_or(u64::MAX));
        if hold_ms > MAX_HOLD_MS {
            reader.fault(
                "agent.max_limits.wall_ms",
                "with agent.hold_margin is longer than a hold can live: a day",
            );
        }
        let lease = lease(reader, &default_limits, hold_margin);
        let data = data?;
        Some(Self {
            id: id?,
            key_file: key_file.unwrap_or_else(|| data.join("agent.key")),
            data,
            allow_degraded,
            not_required,
            spool_limit,
            profiles,
            max_concurrent,
            max_concurrent_per_tenant,
            max_waiting,
            max_wait,
            ready_sandboxes,
            workspace,
            max_input_bytes,
            max_artifact_bytes,
            hold_margin,
            lease,
            resend_after,
            payload_keys,
            audit_log,
            default_limits,
            max_limits,
            helper: PathBuf::from("/proc/self/exe"),
        })
    }
}

impl Options {
    /// Whether nothing runs without this control.
    pub fn requires(&self, control: &str) -> bool {
        !self.allow_degraded && self.not_required.iter().all(|name| name != control)
    }
}

/// `[[agent.confidential]]`. A key that can't be read is a fault: what was to be encrypted is never written in clear.
fn payload_keys(reader: &mut Reader) -> PayloadKeys {
    let mut keys = PayloadKeys::new();
    for table in reader.tables("agent.confidential") {
        let (tenant_key, file_key) = (format!("{table}.tenant"), format!("{table}.key_file"));
        let tenant = reader.required::<String>(&tenant_key);
        let key = match reader.required::<PathBuf>(&file_key).map(payload_keys::load) {
            Some(Err(error)) => {
                reader.fault(&file_key, error.to_string());
                None
            }
            loaded => loaded.and_then(Result::ok),
        };
        let Some(tenant) = tenant else { continue };
        if !name::is_tenant(&tenant) {
            reader.fault(&tenant_key, "has to be 1 to 64 of [A-Za-z0-9._-]");
            continue;
        }
        match (keys.entry(tenant), key) {
            (Entry::Occupied(_), _) => reader.fault(&tenant_key, "has a key already"),
            (Entry::Vacant(place), Some(key)) => {
                place.insert(PayloadKey::new(&key));
            }
            (Entry::Vacant(_), None) => {}
        }
    }
    keys
}

/// Section `[agent.lease]`: off without `invocations`.
fn lease(reader: &mut Reader, default_limits: &v1::Limits, margin: Duration) -> Option<LeaseOptions> {
    let invocations = reader.in_range("agent.lease.invocations", 0, 0..=MAX_LEASE_INVOCATIONS);
    // By default no part of slices: most executions have no way out, and those that do have a hold of their own.
    let once = Metered::at_most(&v1::Limits { egress_bytes: 0, ..*default_limits });
    let mut amounts = once.zip(&once, |amount, _| amount.saturating_mul(invocations).min(MAX_METERED));
    for (place, meter) in METERS.iter().enumerate().filter(|(_, meter)| **meter != "invocations") {
        let key = format!("agent.lease.{meter}");
        let Some(amount) = reader.optional::<u64>(&key) else { continue };
        if invocations == 0 {
            reader.fault(&key, "needs agent.lease.invocations");
        } else if !(once.0[place]..=MAX_METERED).contains(&amount) {
            let least = once.0[place];
            reader
                .fault(&key, format!("has to be {least} (an execution by default limits) to {MAX_METERED}"));
        }
        amounts.0[place] = amount;
    }
    let ttl = reader.duration(
        "agent.lease.ttl",
        Duration::from_secs(900),
        Duration::from_secs(1)..=Duration::from_millis(MAX_HOLD_MS),
    );
    let renew_below = reader.in_range("agent.lease.renew_below", 25, 1..=90);
    let check_interval = reader.duration(
        "agent.lease.check_interval",
        Duration::from_secs(5),
        Duration::from_millis(100)..=Duration::from_secs(3600),
    );
    if invocations > 0 && ttl <= margin.saturating_add(Duration::from_millis(default_limits.wall_ms)) {
        let problem = "has to be longer than agent.default_limits.wall_ms and agent.hold_margin together";
        reader.fault("agent.lease.ttl", problem);
    }
    (invocations > 0).then_some(LeaseOptions { amounts, ttl, renew_below, check_interval })
}

fn limits(reader: &mut Reader, section: &str, default: &v1::Limits) -> v1::Limits {
    v1::Limits {
        cpu_ms: reader.in_range(&format!("{section}.cpu_ms"), default.cpu_ms, 1..=sandbox::spec::MAX_WALL_MS),
        wall_ms: reader.in_range(
            &format!("{section}.wall_ms"),
            default.wall_ms,
            1..=sandbox::spec::MAX_WALL_MS,
        ),
        memory_bytes: reader.bytes(
            &format!("{section}.memory"),
            default.memory_bytes,
            sandbox::spec::MIN_MEMORY_BYTES..=(1 << 40),
        ),
        output_bytes: reader.in_range(
            &format!("{section}.output_bytes"),
            default.output_bytes,
            1..=(1 << 30),
        ),
        egress_bytes: reader.bytes(&format!("{section}.egress_bytes"), default.egress_bytes, 0..=(1 << 40)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lease: &str) -> (Option<Options>, Result<(), String>) {
        let file = format!("[agent]\nid = \"a\"\ndata = \"/srv/a\"\n{lease}");
        let mut reader = Reader::new(Some(("exchequer.toml", &file)), std::iter::empty(), Vec::new());
        let options = Options::read(&mut reader);
        (options, reader.finish().map_err(|faults| faults.to_string()))
    }

    #[test]
    fn leases_are_off_unless_they_are_asked_for_and_then_by_default_limits() {
        let (options, faults) = read("");
        assert_eq!((options.unwrap().lease, faults), (None, Ok(())));
        let (options, faults) = read("[agent.lease]\ninvocations = 10\noutput_bytes = 4294967296\n");
        assert_eq!(faults, Ok(()));
        let options = options.unwrap();
        let once = Metered::at_most(&v1::Limits { egress_bytes: 0, ..options.default_limits });
        let mut ten = once.zip(&once, |amount, _| 10 * amount);
        ten.0[3] = 1 << 32;
        assert_eq!(options.lease.unwrap().amounts, ten);
    }

    #[test]
    fn one_tenant_has_three_quarters_of_the_slots_unless_it_is_said_otherwise() {
        for (max_concurrent, expected) in [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (64, 48)] {
            let (options, faults) = read(&format!("max_concurrent = {max_concurrent}\n"));
            assert_eq!((options.unwrap().max_concurrent_per_tenant, faults), (expected, Ok(())));
        }
        let (options, _) = read("max_concurrent_per_tenant = 64\n");
        assert_eq!(options.unwrap().max_concurrent_per_tenant, 64);
        for wrong in ["0", "65"] {
            let faults = read(&format!("max_concurrent_per_tenant = {wrong}\n")).1.unwrap_err();
            assert!(faults.contains("agent.max_concurrent_per_tenant"), "{faults}");
        }
    }

    #[test]
    fn two_sandboxes_are_built_ahead_unless_it_is_said_otherwise() {
        for (given, expected) in [("", 2), ("ready_sandboxes = 0\n", 0), ("ready_sandboxes = 64\n", 64)] {
            let (options, faults) = read(given);
            assert_eq!((options.unwrap().ready_sandboxes, faults), (expected, Ok(())));
        }
        for wrong in ["65", "-1", "\"two\""] {
            let faults = read(&format!("ready_sandboxes = {wrong}\n")).1.unwrap_err();
            assert!(faults.contains("agent.ready_sandboxes"), "{faults}");
        }
    }

    #[test]
    fn a_control_that_is_not_required_has_to_be_one() {
        let (options, faults) = read("not_required = [\"cgroup\"]\n");
        let options = options.unwrap();
        assert_eq!(faults, Ok(()));
        assert!(!options.requires("cgroup") && options.requires("seccomp"));
        let faults = read("not_required = [\"cgroup\", \"cgroups\"]\n").1.unwrap_err();
        assert!(faults.contains("agent.not_required") && faults.contains("\"cgroups\""), "{faults}");
    }

    #[test]
    fn a_slice_that_could_never_admit_anything_is_a_fault() {
        let check = |lease: &str, key: &str| {
            let faults = read(&format!("[agent.lease]\n{lease}")).1.unwrap_err();
            assert!(faults.contains(key), "{key} in {faults}");
        };
        check("cpu_ms = 100000000\n", "agent.lease.cpu_ms");
        check("invocations = 10\ncpu_ms = 1\n", "agent.lease.cpu_ms");
        check("invocations = 10\nttl = \"5m\"\n", "agent.lease.ttl");
        check("invocations = 10\nrenew_below = 100\n", "agent.lease.renew_below");
    }
}
