//! A profile as a TOML file: what the sandbox takes of it, and what the agent adds to it.
//!
//! Leaves out whether a configuration allows it ([`super::ceiling`]). Invariant: every fault of a file is found in one reading,
//! with its line; lists are in one order, so that equal profiles have equal digests.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    ops::RangeInclusive,
    path::{Component, Path, PathBuf},
    str::FromStr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use exchequer_config::{Faults, Reader, format_bytes, format_duration, parse_bytes, parse_duration};
use exchequer_event::digest::{Digest, Purpose};

use crate::egress::Rule;
use crate::sandbox::{
    Network, Profile,
    profile::WorkArea,
    spec::{MAX_CPUS_MILLI, MAX_WALL_MS, MIN_CPUS_MILLI, MIN_MEMORY_BYTES},
    syscalls::Group,
};

/// Largest profile file, bytes.
pub const MAX_FILE_BYTES: u64 = 64 << 10;
/// What a profile extends that begins with nothing.
const NOTHING: &str = "nothing";
/// What a profile extends that does not say.
const STRICT: &str = "strict";
/// Bytes per second of a device: below the least, others wait long for a page that such an execution is reading.
const IO_PER_SECOND: RangeInclusive<u64> = (1 << 20)..=(1 << 40);
/// Most paths, devices or rules that one list may have.
const MAX_LISTED: usize = 256;

/// A profile with everything that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// What it is for, in a few words. Enforces nothing, and is not in the digest.
    pub description: String,
    /// What the sandbox enforces.
    pub sandbox: Profile,
    /// Where the egress proxy may connect to; in order, each once.
    pub egress: Vec<Rule>,
    /// What a program finds in its environment unless the request says otherwise.
    pub environment: BTreeMap<String, String>,
    /// What an execution may use at most.
    pub limits: Ceilings,
}

/// What an execution with a profile may use at most. The agent's own maximum holds beside these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceilings {
    /// Processor time, milliseconds.
    pub cpu_ms: Option<u64>,
    /// Wall-clock time, milliseconds.
    pub wall_ms: Option<u64>,
    /// Memory, bytes.
    pub memory_bytes: Option<u64>,
    /// Output, bytes.
    pub output_bytes: Option<u64>,
    /// Bytes through the egress proxy.
    pub egress_bytes: Option<u64>,
    /// Processes and threads; what every execution gets.
    pub processes: u64,
    /// Open descriptors per process; what every execution gets.
    pub open_files: u64,
    /// Largest file, bytes; what every execution gets.
    pub file_bytes: u64,
    /// Thousandths of a processor; what every execution gets. `None`: whatever the host has.
    pub cpus_milli: Option<u64>,
    /// Bytes per second read, and as many written, of each block device; what every execution gets. `None`: whatever the
    /// host has.
    pub io_bytes_per_s: Option<u64>,
}

impl Definition {
    /// The profile that has nothing: what `extends = "nothing"` begins with.
    fn nothing() -> Self {
        let work = WorkArea {
            path: PathBuf::from("/tmp"),
            size_bytes: 64 << 20,
            max_files: 16_384,
            executable: false,
        };
        let sandbox = Profile {
            name: NOTHING.to_owned(),
            hostname: "sandbox".to_owned(),
            read_only: Vec::new(),
            devices: Vec::new(),
            work,
            network: Network::None,
            seccomp: Vec::new(),
        };
        let limits = Ceilings {
            cpu_ms: None,
            wall_ms: None,
            memory_bytes: None,
            output_bytes: None,
            egress_bytes: None,
            processes: 64,
            open_files: 256,
            file_bytes: 64 << 20,
            cpus_milli: None,
            io_bytes_per_s: None,
        };
        Self { description: String::new(), sandbox, egress: Vec::new(), environment: BTreeMap::new(), limits }
    }

    /// Reads a profile file's text. `path` is named in the faults.
    pub fn parse(path: &str, text: &str) -> Result<Self, Faults> {
        parse(path, text, &BUILT_IN)
    }

    /// The environment of a program that is given no other: the profile's, with the work area as `HOME` and `TMPDIR`.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let work = self.sandbox.work.path.to_string_lossy().into_owned();
        let mut environment = self.environment.clone();
        for name in ["HOME", "TMPDIR"] {
            environment.entry(name.to_owned()).or_insert_with(|| work.clone());
        }
        environment
    }

    /// Digest of the canonical form: the keys of the file format, each followed by how many values it has (u64, big-endian) and by
    /// these, in order; integers in decimal. The description is left out. A limit that is not set has no value; `limits.cpus` and
    /// `limits.io_per_second` are then left out with their keys: they are younger than digests that are signed and recorded, and
    /// profiles that do without them keep theirs.
    pub fn digest(&self) -> Digest {
        let Self { description: _, sandbox, egress, environment, limits } = self;
        let Profile { name, hostname, read_only, devices, work, network, seccomp } = sandbox;
        let WorkArea { path, size_bytes, max_files, executable } = work;
        let Ceilings {
            cpu_ms,
            wall_ms,
            memory_bytes,
            output_bytes,
            egress_bytes,
            processes,
            open_files,
            file_bytes,
            cpus_milli,
            io_bytes_per_s,
        } = *limits;
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let limit = |value: Option<u64>| value.map(|value| value.to_string()).into_iter().collect::<Vec<_>>();
        let fields: [(&str, Vec<String>); 20] = [
            ("name", vec![name.clone()]),
            ("hostname", vec![hostname.clone()]),
            ("read_only", read_only.iter().map(text).collect()),
            ("devices", devices.clone()),
            ("network", vec![network.name().to_owned()]),
            ("egress", egress.iter().map(ToString::to_string).collect()),
            ("seccomp", seccomp.iter().map(|group| group.name().to_owned()).collect()),
            ("work.path", vec![text(path)]),
            ("work.size", vec![size_bytes.to_string()]),
            ("work.max_files", vec![max_files.to_string()]),
            ("work.executable", vec![executable.to_string()]),
            (
                "environment",
                environment.iter().flat_map(|(name, value)| [name.clone(), value.clone()]).collect(),
            ),
            ("limits.cpu", limit(cpu_ms)),
            ("limits.wall", limit(wall_ms)),
            ("limits.memory", limit(memory_bytes)),
            ("limits.output", limit(output_bytes)),
            ("limits.egress", limit(egress_bytes)),
            ("limits.processes", vec![processes.to_string()]),
            ("limits.open_files", vec![open_files.to_string()]),
            ("limits.file_size", vec![file_bytes.to_string()]),
        ];
        let younger = [("limits.cpus", limit(cpus_milli)), ("limits.io_per_second", limit(io_bytes_per_s))];
        let younger = younger.into_iter().filter(|(_, values)| !values.is_empty());
        let fields: Vec<_> = fields.into_iter().chain(younger).collect();
        let counts: Vec<_> = fields.iter().map(|(_, values)| (values.len() as u64).to_be_bytes()).collect();
        Purpose::Profile.digest_fields(fields.iter().zip(&counts).flat_map(|((key, values), count)| {
            [key.as_bytes(), count].into_iter().chain(values.iter().map(String::as_bytes))
        }))
    }

    /// As the file that this would be, complete.
    pub fn to_toml(&self) -> String {
        let Self { description, sandbox, egress, environment, limits } = self;
        let work = &sandbox.work;
        let list = |items: &mut dyn Iterator<Item = String>| {
            let items = items.map(|item| format!("{item:?}")).collect::<Vec<_>>();
            format!("[{}]", items.join(", "))
        };
        let paths = list(&mut sandbox.read_only.iter().map(|path| path.to_string_lossy().into_owned()));
        let mut lines = vec![
            format!("name = {:?}", sandbox.name),
            format!("description = {description:?}"),
            format!("extends = {NOTHING:?}"),
            format!("hostname = {:?}", sandbox.hostname),
            format!("read_only = {paths}"),
            format!("devices = {}", list(&mut sandbox.devices.iter().cloned())),
            format!("network = {:?}", sandbox.network.name()),
            format!("egress = {}", list(&mut egress.iter().map(ToString::to_string))),
            format!("seccomp = {}", list(&mut sandbox.seccomp.iter().map(|group| group.name().to_owned()))),
            "\n[work]".to_owned(),
            format!("path = {:?}", work.path.to_string_lossy()),
            format!("size = {:?}", format_bytes(work.size_bytes)),
            format!("max_files = {}", work.max_files),
            format!("executable = {}", work.executable),
            "\n[environment]".to_owned(),
        ];
        lines.extend(environment.iter().map(|(name, value)| format!("{name} = {value:?}")));
        lines.push("\n[limits]".to_owned());
        let time = |millis| format_duration(Duration::from_millis(millis));
        let texts = [
            ("cpu", limits.cpu_ms.map(time)),
            ("wall", limits.wall_ms.map(time)),
            ("memory", limits.memory_bytes.map(format_bytes)),
            ("output", limits.output_bytes.map(format_bytes)),
            ("egress", limits.egress_bytes.map(format_bytes)),
            ("file_size", Some(format_bytes(limits.file_bytes))),
            ("io_per_second", limits.io_bytes_per_s.map(format_bytes)),
        ];
        lines.extend(texts.iter().filter_map(|(key, text)| Some(format!("{key} = {:?}", text.as_ref()?))));
        lines.extend(limits.cpus_milli.map(|milli| format!("cpus = {}", Cpus(milli))));
        lines.push(format!("processes = {}", limits.processes));
        lines.push(format!("open_files = {}\n", limits.open_files));
        lines.join("\n")
    }
}

/// The built-in profiles; `strict` is the first.
pub static BUILT_IN: LazyLock<Vec<Arc<Definition>>> = LazyLock::new(|| {
    let mut read = Vec::new();
    for (name, text) in [
        ("strict", include_str!("../../profiles/strict.toml")),
        ("network", include_str!("../../profiles/network.toml")),
        ("python", include_str!("../../profiles/python.toml")),
        ("node", include_str!("../../profiles/node.toml")),
        ("build", include_str!("../../profiles/build.toml")),
    ] {
        let parsed = parse(name, text, &read);
        read.push(Arc::new(parsed.unwrap_or_else(|faults| panic!("built-in profile {name}: {faults}"))));
    }
    read
});

fn parse(path: &str, text: &str, bases: &[Arc<Definition>]) -> Result<Definition, Faults> {
    let mut reader = Reader::of_file(path, text);
    let name = reader.required::<String>("name").unwrap_or_default();
    if !name.is_empty() && !is_name(&name) {
        reader.fault("name", "has to match ^[a-z0-9][a-z0-9_-]{0,62}$");
    }
    let extends = reader.get("extends", STRICT.to_owned());
    let base = bases.iter().find(|base| base.sandbox.name == extends);
    if base.is_none() && extends != NOTHING {
        let names = bases.iter().map(|base| base.sandbox.name.as_str());
        let names = names.chain([NOTHING]).collect::<Vec<_>>().join(", ");
        reader.fault("extends", format!("has to be one of {names}"));
    }
    let mut read = base.map_or_else(Definition::nothing, |base| Definition::clone(base));
    read.sandbox.name = name;
    read.description = reader.get("description", String::new());
    sandbox(&mut reader, &mut read.sandbox);
    egress(&mut reader, &mut read);
    environment(&mut reader, &mut read.environment);
    limits(&mut reader, &mut read.limits);
    reader.finish().map(|()| read)
}

/// Whether a profile can be called so.
fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let rest = |byte: u8| plain(byte) || byte == b'_' || byte == b'-';
    name.len() <= 63 && name.bytes().next().is_some_and(plain) && name.bytes().all(rest)
}

fn sandbox(reader: &mut Reader, profile: &mut Profile) {
    if let Some(hostname) = reader.optional::<String>("hostname") {
        if hostname.is_empty() || hostname.len() > 64 || !hostname.bytes().all(|byte| byte.is_ascii_graphic())
        {
            reader.fault("hostname", "has to be 1 to 64 printable ASCII characters without spaces");
        }
        profile.hostname = hostname;
    }
    // In order, so that what leads to a path is there before it.
    let mut paths = listed::<PathBuf>(reader, "read_only");
    paths.retain(|path| {
        let problem = problem_of_path(path);
        if let Some(problem) = problem {
            reader.fault("read_only", format!("`{}` {problem}", path.display()));
        }
        problem.is_none()
    });
    profile.read_only.extend(paths);
    profile.read_only.sort();
    profile.read_only.dedup();
    let devices = listed::<String>(reader, "devices");
    if devices.iter().any(|name| !is_device(name)) {
        reader.fault("devices", "has to be names of nodes in /dev, without `/`");
    }
    profile.devices.extend(devices);
    profile.devices.sort();
    profile.devices.dedup();
    profile.network = reader.get("network", profile.network);
    let groups = listed::<Group>(reader, "seccomp");
    if groups.contains(&Group::Base) || groups.contains(&Group::Network) {
        reader.fault("seccomp", "`base` is always on, and `network` comes with a network; name neither");
    }
    profile.seccomp.extend(groups);
    profile.seccomp.sort();
    profile.seccomp.dedup();

    let work = &mut profile.work;
    if let Some(path) = reader.optional::<PathBuf>("work.path") {
        let reserved = ["/proc", "/dev", "/etc"].iter().any(|reserved| path.starts_with(reserved));
        if let Some(problem) = problem_of_path(&path).or(reserved.then_some("is in /proc, /dev or /etc")) {
            reader.fault("work.path", problem);
        }
        work.path = path;
    }
    if let Some(path) = profile.read_only.iter().find(|path| work.path.starts_with(path)) {
        reader.fault("work.path", format!("is in `{}`, which is read-only", path.display()));
    }
    work.size_bytes = size(reader, "work.size", 4096..=(1 << 40)).unwrap_or(work.size_bytes);
    work.max_files = count(reader, "work.max_files", work.max_files, 1..=(1 << 24));
    work.executable = reader.get("work.executable", work.executable);
}

fn problem_of_path(path: &Path) -> Option<&'static str> {
    let text = path.to_string_lossy();
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if text.contains('\0') {
        Some("contains a NUL byte")
    } else if !path.is_absolute() || !plain {
        Some("is not an absolute path without `..`")
    } else if path == Path::new("/") {
        Some("is the root directory")
    } else if path.as_os_str() != path.components().collect::<PathBuf>().as_os_str() {
        Some("has `//`, `.` or a slash at its end")
    } else {
        None
    }
}

fn is_device(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\0']) && !name.starts_with('.')
}

fn egress(reader: &mut Reader, read: &mut Definition) {
    read.egress.extend(listed::<Rule>(reader, "egress"));
    read.egress.sort();
    read.egress.dedup();
    if !read.egress.is_empty() && read.sandbox.network != Network::Egress {
        reader.fault("egress", "has rules, but `network` is not \"egress\"");
    }
}

fn environment(reader: &mut Reader, environment: &mut BTreeMap<String, String>) {
    for key in reader.keys_of("environment") {
        let Some(value) = reader.optional::<String>(&key) else { continue };
        let name = key.strip_prefix("environment.").unwrap_or(&key);
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty() || !name.bytes().all(plain) || name.as_bytes()[0].is_ascii_digit() {
            reader.fault(&key, "has to be named of letters, digits and `_`, not beginning with a digit");
        }
        if value.contains('\0') || value.len() > 4096 {
            reader.fault(&key, "contains a NUL byte or is longer than 4096 bytes");
        }
        environment.insert(name.to_owned(), value);
    }
}

fn limits(reader: &mut Reader, limits: &mut Ceilings) {
    limits.cpu_ms = time(reader, "limits.cpu").or(limits.cpu_ms);
    limits.wall_ms = time(reader, "limits.wall").or(limits.wall_ms);
    limits.memory_bytes = size(reader, "limits.memory", MIN_MEMORY_BYTES..=(1 << 40)).or(limits.memory_bytes);
    limits.output_bytes = size(reader, "limits.output", 1..=(1 << 30)).or(limits.output_bytes);
    limits.egress_bytes = size(reader, "limits.egress", 0..=(1 << 40)).or(limits.egress_bytes);
    limits.processes = count(reader, "limits.processes", limits.processes, 1..=4096);
    limits.open_files = count(reader, "limits.open_files", limits.open_files, 16..=(1 << 20));
    limits.file_bytes = size(reader, "limits.file_size", 1..=(1 << 40)).unwrap_or(limits.file_bytes);
    limits.cpus_milli = cpus(reader, "limits.cpus").or(limits.cpus_milli);
    limits.io_bytes_per_s = io_per_second(reader, "limits.io_per_second").or(limits.io_bytes_per_s);
}

fn listed<T: FromStr<Err: Display>>(reader: &mut Reader, key: &str) -> Vec<T> {
    let list = reader.list::<T>(key);
    if list.len() > MAX_LISTED {
        reader.fault(key, format!("has more than {MAX_LISTED} items"));
    }
    list
}

/// An integer with its unit, as the configuration writes it.
struct Size(u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_bytes(text).map(Self)
    }
}

struct Time(Duration);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_duration(text).map(Self)
    }
}

/// Thousandths of a processor, written as a decimal number of processors and never as a float in between.
pub(super) struct Cpus(pub(super) u64);

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_plain(whole) || !is_plain(part) || part.len() > 3 {
            return Err("expected a number of processors such as `0.5` or `2`, with at most three decimals"
                .to_owned());
        }
        // More digits than fit are too many processors.
        let milli = format!("{whole}{part:0<3}").parse().unwrap_or(u64::MAX);
        if (MIN_CPUS_MILLI..=MAX_CPUS_MILLI).contains(&milli) {
            Ok(Self(milli))
        } else {
            Err(format!("must lie between {} and {}", Self(MIN_CPUS_MILLI), Self(MAX_CPUS_MILLI)))
        }
    }
}

impl Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / 1000, self.0 % 1000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// A number of processors, in thousandths.
pub(super) fn cpus(reader: &mut Reader, key: &str) -> Option<u64> {
    let Cpus(milli) = reader.optional(key)?;
    Some(milli)
}

pub(super) fn io_per_second(reader: &mut Reader, key: &str) -> Option<u64> {
    size(reader, key, IO_PER_SECOND)
}

fn size(reader: &mut Reader, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
    let Size(bytes) = reader.optional(key)?;
    if !range.contains(&bytes) {
        let (least, most) = (format_bytes(*range.start()), format_bytes(*range.end()));
        reader.fault(key, format!("must lie between {least} and {most}"));
    }
    Some(bytes)
}

fn time(reader: &mut Reader, key: &str) -> Option<u64> {
    let Time(time) = reader.optional(key)?;
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if !(1..=MAX_WALL_MS).contains(&millis) {
        reader.fault(key, "must lie between 1ms and 1d");
    }
    Some(millis)
}

fn count(reader: &mut Reader, key: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
    reader.in_range(key, default, range)
}

#[cfg(test)]
mod tests;
