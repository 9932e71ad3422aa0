//! What profiles may have at most: `[agent.ceiling]`.
//!
//! Invariant: a profile without excess has nothing that the ceiling does not name, once it is narrowed: what it leaves to the host is
//! then the ceiling's.

use std::path::PathBuf;

use exchequer_config::{Reader, format_bytes};

use super::definition::{BUILT_IN, Ceilings, Cpus, Definition, cpus, io_per_second};
use crate::egress::Rule;
use crate::sandbox::{Network, syscalls::Group};

/// The ceiling over all profiles of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ceiling {
    networks: Vec<Network>,
    egress: Vec<Rule>,
    read_only: Vec<PathBuf>,
    devices: Vec<String>,
    executable_work: bool,
    work_size: u64,
    max_files: u64,
    processes: u64,
    open_files: u64,
    file_size: u64,
    cpus_milli: Option<u64>,
    io_bytes_per_s: Option<u64>,
    seccomp: Vec<Group>,
}

impl Ceiling {
    /// What the built-in profiles have, and these paths; no egress rule.
    pub fn of_built_in(read_only: &[PathBuf]) -> Self {
        let strict = &BUILT_IN[0].sandbox;
        let sandboxes = || BUILT_IN.iter().map(|profile| &profile.sandbox);
        let most = |of: fn(&Definition) -> u64| BUILT_IN.iter().map(|profile| of(profile)).max().unwrap_or(0);
        Self {
            networks: Network::ALL.to_vec(),
            egress: Vec::new(),
            read_only: strict.read_only.iter().chain(read_only).cloned().collect(),
            devices: strict.devices.clone(),
            executable_work: sandboxes().any(|sandbox| sandbox.work.executable),
            work_size: most(|profile| profile.sandbox.work.size_bytes),
            max_files: most(|profile| profile.sandbox.work.max_files),
            processes: most(|profile| profile.limits.processes),
            open_files: most(|profile| profile.limits.open_files),
            file_size: most(|profile| profile.limits.file_bytes),
            cpus_milli: None,
            io_bytes_per_s: None,
            seccomp: Group::NAMED.to_vec(),
        }
    }

    /// Takes it from `[agent.ceiling]`; faults stay with the reader. What is not given is as in [`Self::of_built_in`].
    pub fn read(reader: &mut Reader, read_only: &[PathBuf]) -> Self {
        let default = Self::of_built_in(read_only);
        let networks = reader.list::<Network>("agent.ceiling.networks");
        let egress = reader.list::<Rule>("agent.ceiling.egress");
        let paths = reader.list::<PathBuf>("agent.ceiling.read_only");
        if paths.iter().any(|path| !path.is_absolute()) {
            reader.fault("agent.ceiling.read_only", "has to be a list of absolute paths");
        }
        let devices = reader.list::<String>("agent.ceiling.devices");
        let executable_work = reader.get("agent.ceiling.executable_work", default.executable_work);
        let work_size = reader.bytes("agent.ceiling.work_size", default.work_size, 4096..=(1 << 40));
        let max_files = reader.in_range("agent.ceiling.max_files", default.max_files, 1..=(1 << 24));
        let processes = reader.in_range("agent.ceiling.processes", default.processes, 1..=4096);
        let open_files = reader.in_range("agent.ceiling.open_files", default.open_files, 16..=(1 << 20));
        let file_size = reader.bytes("agent.ceiling.file_size", default.file_size, 1..=(1 << 40));
        let cpus_milli = cpus(reader, "agent.ceiling.cpus");
        let io_bytes_per_s = io_per_second(reader, "agent.ceiling.io_per_second");
        let seccomp = reader.list::<Group>("agent.ceiling.seccomp");
        Self {
            networks: given(reader, "agent.ceiling.networks", networks, default.networks),
            egress,
            read_only: given(reader, "agent.ceiling.read_only", paths, default.read_only),
            devices: given(reader, "agent.ceiling.devices", devices, default.devices),
            executable_work,
            work_size,
            max_files,
            processes,
            open_files,
            file_size,
            cpus_milli,
            io_bytes_per_s,
            seccomp: given(reader, "agent.ceiling.seccomp", seccomp, default.seccomp),
        }
    }

    /// Everything that the profile has beyond the ceiling; nothing, if it is within.
    pub fn excess(&self, profile: &Definition) -> Vec<String> {
        let sandbox = &profile.sandbox;
        let mut excess = Vec::new();
        let mut beyond = |field: &str, what: String, key: &str| {
            excess.push(format!("`{field}`: {what} is beyond agent.ceiling.{key}"));
        };
        if !self.networks.contains(&sandbox.network) {
            beyond("network", format!("{:?}", sandbox.network.name()), "networks");
        }
        for rule in
            profile.egress.iter().filter(|rule| !self.egress.iter().any(|allowed| allowed.covers(rule)))
        {
            beyond("egress", format!("{:?}", rule.to_string()), "egress");
        }
        for path in
            sandbox.read_only.iter().filter(|path| !self.read_only.iter().any(|own| path.starts_with(own)))
        {
            beyond("read_only", format!("{:?}", path.display().to_string()), "read_only");
        }
        for device in sandbox.devices.iter().filter(|device| !self.devices.contains(device)) {
            beyond("devices", format!("{device:?}"), "devices");
        }
        for group in sandbox.seccomp.iter().filter(|group| !self.seccomp.contains(group)) {
            beyond("seccomp", format!("{:?}", group.name()), "seccomp");
        }
        if sandbox.work.executable && !self.executable_work {
            beyond("work.executable", "true".to_owned(), "executable_work");
        }
        if sandbox.work.size_bytes > self.work_size {
            beyond("work.size", format_bytes(sandbox.work.size_bytes), "work_size");
        }
        let limits = &profile.limits;
        for (field, value, most, key) in [
            ("work.max_files", sandbox.work.max_files, self.max_files, "max_files"),
            ("limits.processes", limits.processes, self.processes, "processes"),
            ("limits.open_files", limits.open_files, self.open_files, "open_files"),
        ] {
            if value > most {
                beyond(field, value.to_string(), key);
            }
        }
        if limits.file_bytes > self.file_size {
            beyond("limits.file_size", format_bytes(limits.file_bytes), "file_size");
        }
        let above = |value: Option<u64>, most: Option<u64>| {
            value.filter(|value| most.is_some_and(|most| *value > most))
        };
        if let Some(milli) = above(limits.cpus_milli, self.cpus_milli) {
            beyond("limits.cpus", Cpus(milli).to_string(), "cpus");
        }
        if let Some(bytes) = above(limits.io_bytes_per_s, self.io_bytes_per_s) {
            beyond("limits.io_per_second", format_bytes(bytes), "io_per_second");
        }
        excess
    }

    /// Gives limits that leave to the host what the ceiling bounds the ceiling's bound.
    pub(super) fn narrow(&self, limits: &mut Ceilings) {
        limits.cpus_milli = limits.cpus_milli.or(self.cpus_milli);
        limits.io_bytes_per_s = limits.io_bytes_per_s.or(self.io_bytes_per_s);
    }
}

/// A list that was given, even if it is empty, instead of the default.
fn given<T>(reader: &Reader, key: &str, list: Vec<T>, default: Vec<T>) -> Vec<T> {
    if reader.is_given(key) { list } else { default }
}
