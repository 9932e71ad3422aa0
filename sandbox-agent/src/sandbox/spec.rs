//! What to execute, and within which limits.
//!
//! Leaves out what is visible inside ([`super::profile`]). Invariant: a [`Spec`] that passed [`Spec::check`] has no
//! value that the kernel's interfaces would silently reinterpret (NUL bytes, relative directories, zero limits).

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::control::Layer;
use super::profile::Profile;

/// Most bytes that program, arguments and environment may have together.
pub const MAX_STRINGS_BYTES: usize = 96 << 10;
/// Least memory limit: below it no dynamically linked program starts.
pub const MIN_MEMORY_BYTES: u64 = 4 << 20;
/// Most input files, and most output files.
pub const MAX_FILES: usize = 64;
/// Paths of input and output files together, bytes: they travel in one packet.
pub const MAX_FILE_PATHS_BYTES: usize = 24 << 10;
/// Longest path of an input or output file, bytes.
pub const MAX_FILE_PATH_BYTES: usize = 1024;
/// Longest time an execution may be given: a day.
pub const MAX_WALL_MS: u64 = 24 * 60 * 60 * 1000;
/// Least part of a processor, thousandths: a millisecond in each period of 100, below which the kernel refuses.
pub const MIN_CPUS_MILLI: u64 = 10;
/// Most processors, thousandths.
pub const MAX_CPUS_MILLI: u64 = 4096 * 1000;

/// The limits of one execution, each enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Processor time of all its processes together, milliseconds. The supervisor checks the tree's time when it could
    /// first have run out and then at least every 2 ms: the overshoot is about 2 ms times the processors used. Without a
    /// cgroup that counts it, up to 20 ms come on top per ended child that a process of the tree (not the engine) waited
    /// for, since the kernel shows those in clock ticks. `RLIMIT_CPU`, in whole seconds per process, stands behind it.
    pub cpu_ms: u64,
    /// Wall-clock time from release to the end, milliseconds.
    pub wall_ms: u64,
    /// Memory of all its processes together, swap and the files in its work area included, bytes; by its cgroup. Without
    /// one: address space (`RLIMIT_AS`), per process.
    pub memory_bytes: u64,
    /// Bytes of stdout and stderr together.
    pub output_bytes: u64,
    /// Processes and threads at one time.
    pub pids: u64,
    /// Thousandths of a processor that all of them together get; 0 for whatever the host has. Needs a cgroup.
    pub cpus_milli: u64,
    /// Bytes per second that all of them together read, and as many that they write, of each block device that the host
    /// had when the helper started; 0 for whatever the host has. Needs a cgroup. What is in the page cache is not read
    /// of a device.
    pub io_bytes_per_s: u64,
    /// Open descriptors per process.
    pub open_files: u64,
    /// Largest file a process can write, bytes.
    pub file_bytes: u64,
    /// Bytes sent out through the egress proxy. The proxy's to enforce, by [`super::Killer::kill`]; the sandbox
    /// itself has no use for it.
    pub egress_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu_ms: 10_000,
            wall_ms: 30_000,
            memory_bytes: 1 << 30,
            output_bytes: 8 << 20,
            pids: 64,
            cpus_milli: 0,
            io_bytes_per_s: 0,
            open_files: 256,
            file_bytes: 64 << 20,
            egress_bytes: 0,
        }
    }
}

/// One execution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The program: a path inside, or a bare name looked up in the `PATH` of `env` (or the system's directories).
    pub program: String,
    /// Arguments after the program's name.
    pub args: Vec<String>,
    /// The whole environment; nothing is inherited or added.
    pub env: Vec<(String, String)>,
    /// The working directory inside.
    pub cwd: PathBuf,
    /// The limits.
    pub limits: Limits,
    /// What is visible.
    pub profile: Profile,
    /// Files that are in the work area before the program runs, relative to it; their contents travel beside this
    /// ([`super::Given::files`]). Mode 0600, owned by the program's user; directories on the way are made.
    pub inputs: Vec<PathBuf>,
    /// Files that are handed out of the work area after the last process is gone, relative to it.
    pub outputs: Vec<PathBuf>,
    /// Layers to leave off, for probes that show what each of them stops; an execution for a caller leaves off none. The
    /// read-back shows them as missing, together with what they carry: without `MountNamespace` there is no
    /// `PrivateRoot`, no `WorkArea` of limited size and no `MaskedProc`; without `PrivateRoot` the same two are lost;
    /// without `PidNamespace` no `/proc` is mounted at all, which masks it as well; without `UserNamespace` no other
    /// namespace can be made by a plain user, and process limits count all of the user's.
    pub omit: Vec<Layer>,
}

/// Why a [`Spec`] can't be executed: the field's path and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct SpecFault {
    /// Path of the field, as in `limits.cpu_ms` or `args[2]`.
    pub field: String,
    /// What is wrong.
    pub problem: String,
}

impl Spec {
    /// A program in the strict profile's work area, with default limits and an empty environment.
    pub fn new(program: impl Into<String>, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let profile = Profile::strict();
        Self {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: profile.work.path.clone(),
            limits: Limits::default(),
            profile,
            inputs: Vec::new(),
            outputs: Vec::new(),
            omit: Vec::new(),
        }
    }

    /// The first fault, if there is one.
    pub fn check(&self) -> Result<(), SpecFault> {
        let strings = [("program".to_owned(), &self.program)]
            .into_iter()
            .chain(self.args.iter().enumerate().map(|(i, arg)| (format!("args[{i}]"), arg)))
            .chain(self.env.iter().map(|(key, _)| ("env".to_owned(), key)))
            .chain(self.env.iter().map(|(key, value)| (format!("env[{key}]"), value)));
        let mut total = 0;
        for (field, value) in strings {
            refuse(value.contains('\0'), &field, "contains a NUL byte")?;
            total += value.len() + 1;
        }
        refuse(
            total > MAX_STRINGS_BYTES,
            "args",
            "program, arguments and environment exceed 96 KiB together",
        )?;
        refuse(self.program.is_empty(), "program", "is empty")?;
        for (key, _) in &self.env {
            refuse(key.is_empty() || key.contains('='), "env", "has a name that is empty or contains '='")?;
        }
        check_path("cwd", &self.cwd)?;
        check_path("profile.work.path", &self.profile.work.path)?;
        for path in &self.profile.read_only {
            check_path("profile.read_only", path)?;
            refuse(self.profile.work.path == *path, "profile.read_only", "is the work area")?;
        }
        for device in &self.profile.devices {
            let odd = device.is_empty() || device.contains(['/', '\0']) || device.starts_with('.');
            refuse(odd, "profile.devices", "is not a plain name")?;
        }
        let name = &self.profile.hostname;
        refuse(name.is_empty() || name.len() > 64, "profile.hostname", "is empty or longer than 64 bytes")?;
        for (field, paths) in [("inputs", &self.inputs), ("outputs", &self.outputs)] {
            refuse(
                paths.len() > MAX_FILES,
                field,
                &format!("has {} files, the most is {MAX_FILES}", paths.len()),
            )?;
            for (place, path) in paths.iter().enumerate() {
                let field = format!("{field}[{place}]");
                check_relative(&field, path)?;
                refuse(paths[..place].contains(path), &field, "is there twice")?;
            }
        }
        let paths = self.inputs.iter().chain(&self.outputs).map(|path| path.as_os_str().len()).sum::<usize>();
        refuse(paths > MAX_FILE_PATHS_BYTES, "inputs", "exceed 24 KiB together with the outputs' paths")?;
        let limits = &self.limits;
        for (field, value, least) in [
            ("limits.cpu_ms", limits.cpu_ms, 1),
            ("limits.wall_ms", limits.wall_ms, 1),
            ("limits.memory_bytes", limits.memory_bytes, MIN_MEMORY_BYTES),
            ("limits.pids", limits.pids, 1),
            ("limits.open_files", limits.open_files, 4),
            ("profile.work.size_bytes", self.profile.work.size_bytes, 4096),
            ("profile.work.max_files", self.profile.work.max_files, 1),
        ] {
            refuse(value < least, field, &format!("is {value}, the least is {least}"))?;
            refuse(i64::try_from(value).is_err(), field, "is too large")?;
        }
        refuse(limits.wall_ms > MAX_WALL_MS, "limits.wall_ms", "is longer than a day")?;
        let cpus = MIN_CPUS_MILLI..=MAX_CPUS_MILLI;
        refuse(
            limits.cpus_milli != 0 && !cpus.contains(&limits.cpus_milli),
            "limits.cpus_milli",
            &format!("is {}, neither 0 nor from {MIN_CPUS_MILLI} to {MAX_CPUS_MILLI}", limits.cpus_milli),
        )?;
        refuse(i64::try_from(limits.io_bytes_per_s).is_err(), "limits.io_bytes_per_s", "is too large")
    }
}

fn refuse(fault: bool, field: &str, problem: &str) -> Result<(), SpecFault> {
    if fault { Err(SpecFault { field: field.to_owned(), problem: problem.to_owned() }) } else { Ok(()) }
}

/// A file below the work area, named by plain components only.
fn check_relative(field: &str, path: &Path) -> Result<(), SpecFault> {
    let text = path.to_str().unwrap_or("\0");
    refuse(text.contains('\0'), field, "is not UTF-8 or contains a NUL byte")?;
    refuse(text.is_empty() || text.ends_with('/'), field, "names no file")?;
    refuse(text.len() > MAX_FILE_PATH_BYTES, field, "is longer than 1024 bytes")?;
    refuse(path.is_absolute(), field, "is absolute")?;
    refuse(path.components().any(|part| part == Component::ParentDir), field, "contains '..'")?;
    refuse(text.split('/').any(|part| part.is_empty() || part == "."), field, "contains '.' or '//'")
}

fn check_path(field: &str, path: &Path) -> Result<(), SpecFault> {
    let text = path.to_str().unwrap_or("\0");
    refuse(text.contains('\0'), field, "is not UTF-8 or contains a NUL byte")?;
    refuse(!path.is_absolute(), field, "is not absolute")?;
    refuse(path == Path::new("/"), field, "is the root directory")?;
    refuse(path.components().any(|part| part == Component::ParentDir), field, "contains '..'")
}
