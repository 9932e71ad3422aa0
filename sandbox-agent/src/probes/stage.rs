//! What attacks aim at: the program that attacks, a file, a process, sockets and shared memory of the host, and programs with privileges.
//!
//! Left out: the attacks' results. Invariant: everything is this stage's own, lives in one directory and in children that end with it, and
//! is gone with it; nothing of the host that was there before is touched.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    net::{TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            net::{SocketAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
    process::Stdio,
};

use rustix::fs::{XattrFlags, setxattr};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::sandbox::{Profile, SandboxError, StartOptions, refused_calls};

/// The attacks, built from `probes/*.c`; empty if they could not be.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/attack"));
/// Why they could not be.
const PROBLEM: &str = include_str!(concat!(env!("OUT_DIR"), "/attack.problem"));
/// What is in the host's file that attacks are after.
pub const SECRET: &[u8] = b"a secret of the host\n";
/// Programs that hosts have with root's setuid bit, where no own one can be made.
const SETUID_PROGRAMS: [&str; 7] = ["su", "passwd", "newgrp", "gpasswd", "chsh", "mount", "umount"];

/// Why there are no results.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The attacks are not in this build.
    #[error(
        "this build has no probes: the attacks could not be built ({PROBLEM}); a C compiler and a static C library are needed"
    )]
    NotBuilt,
    /// The stage could not be set.
    #[error("setting the probes' stage: {0}: {1}")]
    Stage(&'static str, #[source] io::Error),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// A value for a table's `{name}`, or why there is none.
type Value = Result<Vec<String>, String>;

/// A set stage.
pub struct Stage {
    dir: TempDir,
    user: Option<(u32, u32)>,
    values: BTreeMap<&'static str, Value>,
    shown: Vec<PathBuf>,
    _held: (TcpListener, UdpSocket, UnixListener, UnixListener),
    _children: [Child; 2],
}

fn at(what: &'static str) -> impl Fn(io::Error) -> ProbeError {
    move |error| ProbeError::Stage(what, error)
}

/// The attacking program.
pub fn program() -> Result<&'static [u8], ProbeError> {
    if PROGRAM.is_empty() { Err(ProbeError::NotBuilt) } else { Ok(PROGRAM) }
}

impl Stage {
    /// Sets it, for a sandbox that was started with these options. Within a tokio runtime.
    pub async fn set(options: &StartOptions) -> Result<Self, ProbeError> {
        let program = program()?;
        let user = rustix::process::geteuid().is_root().then_some((options.uid, options.gid));
        let dir = tempfile::Builder::new().prefix("exchequer-probes-").tempdir_in(&options.scratch);
        let dir = dir.map_err(at("its directory"))?;
        let place = |name: &str| dir.path().join(name);
        let files = || -> io::Result<()> {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
            write(&place("attack"), program, 0o755)?;
            write(&place("secret"), SECRET, 0o644)?;
            // Anybody's, whatever the umask.
            for open in ["shared", "outside"] {
                fs::create_dir(place(open))?;
                fs::set_permissions(place(open), fs::Permissions::from_mode(0o777))?;
            }
            Ok(())
        };
        files().map_err(at("its files"))?;
        let attack = place("attack");
        let duck = child(&attack, &["wait"], user).await.map_err(at("a process to attack"))?;
        let memory = child(&attack, &["make_shared_memory"], user).await;
        let memory = memory.map_err(at("shared memory to attack"))?;
        let abstract_name = place("").display().to_string();
        let sockets = || -> io::Result<_> {
            let path = UnixListener::bind(place("socket"))?;
            fs::set_permissions(place("socket"), fs::Permissions::from_mode(0o666))?;
            let address = SocketAddr::from_abstract_name(&abstract_name)?;
            let (tcp, udp) = (TcpListener::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
            Ok((tcp, udp, path, UnixListener::bind_addr(&address)?))
        };
        let held = sockets().map_err(at("sockets to attack"))?;
        let port = |address: io::Result<std::net::SocketAddr>| {
            address.map(|address| vec![address.port().to_string()]).map_err(|error| error.to_string())
        };
        let one = |text: String| Ok(vec![text]);
        let path = |name: &str| one(place(name).display().to_string());
        let calls = refused_calls(&Profile::strict());
        let setuid = setuid_program(&place("setuid"));
        let capable = capable_program(&place("capable"));
        let made = |program: io::Result<PathBuf>| match program {
            Ok(path) => Ok(vec![path.display().to_string()]),
            Err(error) => Err(error.to_string()),
        };
        let values = BTreeMap::from([
            ("secret", path("secret")),
            ("shared", path("shared")),
            ("socket", path("socket")),
            ("abstract", one(abstract_name.clone())),
            ("tcp", port(held.0.local_addr())),
            ("udp", port(held.1.local_addr())),
            ("duck", one(duck.0.id().unwrap_or_default().to_string())),
            ("shm", one(memory.1)),
            ("marker", one(format!("{}-orphan", place("").display()))),
            ("hostname", one(host_name())),
            ("mnt", namespace("mnt")),
            ("cgroup", namespace("cgroup")),
            ("cgroup_procs", cgroup_procs()),
            ("devices", devices(&Profile::strict())),
            ("hostile", Ok(ranges(&calls.hostile))),
            ("unlisted", Ok(ranges(&calls.unlisted))),
            ("setuid", made(setuid)),
            ("capable", made(capable)),
        ]);
        let shown =
            ["attack", "shared", "setuid", "capable"].map(place).into_iter().filter(|path| path.exists());
        let shown = shown.collect();
        Ok(Self { user, values, shown, _held: held, _children: [duck.0, memory.0], dir })
    }

    /// The attacking program.
    pub(super) fn program(&self) -> PathBuf {
        self.dir.path().join("attack")
    }

    /// The host's user and group of programs inside, if it is another one than this process's.
    pub(super) fn user(&self) -> Option<(u32, u32)> {
        self.user
    }

    /// What the profile has to show for attacks to be made.
    pub(super) fn shown(&self) -> &[PathBuf] {
        &self.shown
    }

    /// A new empty directory for an attack outside, its user's.
    pub(super) fn outside(&self) -> io::Result<TempDir> {
        let dir = tempfile::tempdir_in(self.dir.path().join("outside"))?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777))?;
        Ok(dir)
    }

    /// Arguments with each `{name}` in its place.
    pub(super) fn fill(&self, arguments: &[&str]) -> Value {
        let mut filled = vec![];
        for argument in arguments {
            let Some((before, rest)) = argument.split_once('{') else {
                filled.push((*argument).to_owned());
                continue;
            };
            let (name, after) = rest.split_once('}').unwrap_or((rest, ""));
            let unknown = || Err(format!("the stage has no {name}"));
            let values = self.values.get(name).cloned().unwrap_or_else(unknown)?;
            filled.extend(values.into_iter().map(|value| format!("{before}{value}{after}")));
        }
        Ok(filled)
    }

    /// The one value of that name.
    pub(super) fn value(&self, name: &str) -> Result<String, String> {
        self.fill(&[&format!("{{{name}}}")]).map(|values| values.concat())
    }
}

/// The machine's name.
pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(content)?;
    // Whatever the umask.
    file.set_permissions(fs::Permissions::from_mode(mode))
}

/// A process of the user that programs inside are; it ends with its input. Its first line says that it is ready.
async fn child(program: &Path, arguments: &[&str], user: Option<(u32, u32)>) -> io::Result<(Child, String)> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().current_dir("/").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    let mut child = command.spawn()?;
    let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let line = BufReader::new(output).lines().next_line().await?;
    Ok((child, line.ok_or(io::ErrorKind::UnexpectedEof)?))
}

fn namespace(kind: &str) -> Value {
    let link = fs::read_link(format!("/proc/self/ns/{kind}")).map_err(|error| error.to_string())?;
    Ok(vec![link.display().to_string()])
}

/// Of root's with the setuid bit: an own one if this process can make it, else one that the host has.
fn setuid_program(own: &Path) -> io::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        write(own, PROGRAM, 0o4755)?;
        return Ok(own.to_owned());
    }
    let found = SETUID_PROGRAMS
        .iter()
        .map(|name| Path::new("/usr/bin").join(name))
        .find(|path| fs::metadata(path).is_ok_and(|data| data.uid() == 0 && data.mode() & 0o4001 == 0o4001));
    found.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "no program in /usr/bin has root's setuid bit")
    })
}

/// One that is given CAP_NET_BIND_SERVICE by its file.
fn capable_program(own: &Path) -> io::Result<PathBuf> {
    // struct vfs_cap_data (capabilities(7)): revision 2; permitted and inheritable, low words, then high. Not effective at once: with an
    // empty bounding set it starts all the same, with nothing.
    const REVISION_2: u32 = 0x0200_0000;
    const NET_BIND_SERVICE: u32 = 1 << 10;
    write(own, PROGRAM, 0o755)?;
    let data = [REVISION_2, NET_BIND_SERVICE, 0, 0, 0].map(u32::to_le_bytes).concat();
    setxattr(own, "security.capability", &data, XattrFlags::empty())?;
    Ok(own.to_owned())
}

/// The list of processes of the first cgroup hierarchy that is mounted.
fn cgroup_procs() -> Value {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    let found = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let path = Path::new(mount.split(' ').nth(4)?).join("cgroup.procs");
        (kind.starts_with("cgroup") && path.exists()).then(|| path.display().to_string())
    });
    found.map(|path| vec![path]).ok_or_else(|| "no cgroup file system is mounted".to_owned())
}

/// The nodes in /dev that the profile does not name.
fn devices(profile: &Profile) -> Value {
    let entries = fs::read_dir("/dev").map_err(|error| format!("/dev: {error}"))?;
    let nodes = entries.filter_map(Result::ok).filter(|entry| {
        let kind = entry.file_type().is_ok_and(|kind| kind.is_char_device() || kind.is_block_device());
        kind && !profile.devices.iter().any(|own| entry.file_name() == own.as_str())
    });
    let mut nodes = nodes.map(|entry| entry.path().display().to_string()).collect::<Vec<_>>();
    nodes.sort();
    if nodes.is_empty() {
        Err("the host has no device that the profile does not name".to_owned())
    } else {
        Ok(nodes)
    }
}

/// Numbers as `N` and `N-M`.
fn ranges(numbers: &[i64]) -> Vec<String> {
    let mut ranges: Vec<(i64, i64)> = vec![];
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let text = |(first, last)| if first == last { format!("{first}") } else { format!("{first}-{last}") };
    ranges.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_numbers_are_ranges() {
        assert_eq!(ranges(&[1, 2, 3, 7, 9, 10]), ["1-3", "7", "9-10"]);
        assert_eq!(ranges(&[]), [""; 0]);
    }
}
