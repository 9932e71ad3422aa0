//! Reads back from the kernel which layers hold for a payload, in two steps: when its surroundings are complete, what can't
//! be undone any more ([`standing`]: a namespace is not left for the host's, a filter not taken off, a capability not got
//! back); and when nothing but `execve` remains, what comes with the program ([`controls`]).
//!
//! Leaves out applying anything. Invariant: a status is `Enforced` only if something that the kernel says of that very process, in
//! `/proc`, in its cgroup's files or by `prlimit`, or an attempt it made itself under the layer, says so; what can't be read is not
//! enforced. One word of the payload's own is believed: which variables it is about to pass to `execve`.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::cgroup::Held;
use exchequer_event::digest::Purpose;

use super::control::{Control, ControlStatus, Layer};
use super::profile::{Network, Profile};
use super::rlimits::Planned;
use super::seccomp;
use super::sys;
use super::wire::{Attempt, Confined, Refusal};

/// What the helper read about itself at its start, to compare payloads with.
pub(super) struct Baseline {
    namespaces: BTreeMap<&'static str, String>,
    seccomp_filters: usize,
}

const NAMESPACES: [(Layer, &str); 7] = [
    (Layer::UserNamespace, "user"),
    (Layer::PidNamespace, "pid"),
    (Layer::MountNamespace, "mnt"),
    (Layer::NetNamespace, "net"),
    (Layer::IpcNamespace, "ipc"),
    (Layer::UtsNamespace, "uts"),
    (Layer::CgroupNamespace, "cgroup"),
];

impl Baseline {
    pub(super) fn of_this_process() -> io::Result<Self> {
        // Hashing asks what the processor can do, once and for all processes that are forked later; a virtual machine's
        // takes its time to answer.
        digest(&[]);
        let namespaces =
            NAMESPACES.iter().filter_map(|(_, name)| Some((*name, namespace("self", name).ok()?)));
        let status = fs::read_to_string("/proc/self/status")?;
        let seccomp_filters =
            field(&status, "Seccomp_filters").and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Self { namespaces: namespaces.collect(), seccomp_filters })
    }
}

fn namespace(pid: &str, name: &str) -> io::Result<String> {
    Ok(fs::read_link(format!("/proc/{pid}/ns/{name}"))?.to_string_lossy().into_owned())
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// What holds for a payload whatever its program.
pub(super) struct Standing {
    /// In the layers' order.
    judged: Vec<(Layer, Judged)>,
    /// How many variables the payload itself was started with.
    inherited: io::Result<usize>,
}

/// Reads what can't be undone any more. The payload waits for its program.
pub(super) fn standing(pid: i32, baseline: &Baseline, profile: &Profile, report: &Confined) -> Standing {
    let payload =
        Payload { pid, baseline, profile, report, status: OnceCell::new(), mounts: OnceCell::new() };
    let judged = Layer::ALL.into_iter().filter_map(|layer| Some((layer, payload.judge(layer)?)));
    let judged = judged.map(|(layer, judged)| (layer, judged.unwrap_or_else(|error| unread(&error))));
    let environment = read(pid, "environ");
    Standing {
        judged: judged.collect(),
        inherited: environment.map(|all| all.split('\0').filter(|variable| !variable.is_empty()).count()),
    }
}

/// A payload without a program.
struct Payload<'a> {
    pid: i32,
    baseline: &'a Baseline,
    profile: &'a Profile,
    report: &'a Confined,
    /// Read at most once.
    status: OnceCell<String>,
    mounts: OnceCell<Vec<Mount>>,
}

/// A payload that waits for the word to execute its program.
pub(super) struct Prepared<'a> {
    pub(super) pid: i32,
    pub(super) standing: &'a Standing,
    /// The variables that were asked for.
    pub(super) env: &'a [(String, String)],
    /// Names of those that `execve` will be given.
    pub(super) environment: &'a [String],
    pub(super) rlimits: &'a [Planned],
    pub(super) rlimits_are_own: bool,
    /// `None`: there is no cgroup of its own.
    pub(super) cgroup: Option<io::Result<Held>>,
    pub(super) refusals: &'a [Refusal],
}

fn once<T>(cell: &OnceCell<T>, read: impl FnOnce() -> io::Result<T>) -> io::Result<&T> {
    if cell.get().is_none() {
        // It was empty a moment ago, and there is one thread.
        let _ = cell.set(read()?);
    }
    cell.get().ok_or_else(|| io::ErrorKind::Other.into())
}

type Judged = (ControlStatus, String);

const ENFORCED: ControlStatus = ControlStatus::Enforced;
const DEGRADED: ControlStatus = ControlStatus::Degraded;
const UNAVAILABLE: ControlStatus = ControlStatus::Unavailable;

fn unread(error: &io::Error) -> Judged {
    (UNAVAILABLE, format!("could not be read back: {error}"))
}

/// One control per layer, in the layers' order.
pub(super) fn controls(payload: Prepared<'_>) -> Vec<Control> {
    Layer::ALL
        .map(|layer| {
            let mut standing = payload.standing.judged.iter();
            let stands = standing.find(|(own, _)| *own == layer).map(|(_, judged)| judged.clone());
            let (status, mut evidence) =
                stands.unwrap_or_else(|| payload.judge(layer).unwrap_or_else(|error| unread(&error)));
            if status != ENFORCED {
                for refusal in payload.refusals.iter().filter(|refusal| refusal.layer == layer) {
                    evidence = format!("{evidence}; {}: {}", refusal.step, refusal.error);
                }
            }
            Control::new(layer, status, evidence)
        })
        .to_vec()
}

/// A file of a process in `/proc`.
fn read(pid: i32, file: &str) -> io::Result<String> {
    let path = format!("/proc/{pid}/{file}");
    sys::read_whole(&path).map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
}

impl Payload<'_> {
    /// `None`: comes with the program.
    fn judge(&self, layer: Layer) -> Option<io::Result<Judged>> {
        Some(match layer {
            Layer::UserNamespace => self.user_namespace(),
            Layer::NetNamespace => self.net_namespace(),
            Layer::UtsNamespace => self.uts_namespace(),
            Layer::PidNamespace => self.own_namespace("pid"),
            Layer::MountNamespace => self.own_namespace("mnt"),
            Layer::IpcNamespace => self.own_namespace("ipc"),
            Layer::CgroupNamespace => self.own_namespace("cgroup"),
            Layer::Keyrings => Ok(self.keyrings()),
            Layer::PrivateRoot => self.private_root(),
            Layer::WorkArea => self.work_area(),
            Layer::MaskedProc => self.masked_proc(),
            Layer::Capabilities => self.capabilities(),
            Layer::NoNewPrivs => self.no_new_privs(),
            Layer::Landlock => Ok(self.landlock()),
            Layer::Seccomp => self.seccomp(),
            Layer::Cgroup | Layer::Rlimits | Layer::ClosedFds | Layer::CleanEnv => return None,
        })
    }

    fn read(&self, file: &str) -> io::Result<String> {
        read(self.pid, file)
    }

    fn status(&self) -> io::Result<&str> {
        once(&self.status, || self.read("status")).map(String::as_str)
    }

    fn mounts(&self) -> io::Result<&[Mount]> {
        once(&self.mounts, || Ok(self.read("mountinfo")?.lines().filter_map(Mount::parse).collect()))
            .map(Vec::as_slice)
    }

    fn own_namespace(&self, name: &str) -> io::Result<Judged> {
        let own = namespace(&self.pid.to_string(), name)?;
        let host = self.baseline.namespaces.get(name).map_or("unknown", String::as_str);
        let status = if own != host && host != "unknown" { ENFORCED } else { UNAVAILABLE };
        Ok((status, format!("ns/{name} is {own}, the host's is {host}")))
    }

    fn user_namespace(&self) -> io::Result<Judged> {
        let (status, evidence) = self.own_namespace("user")?;
        let map = |file| self.read(file).map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
        let (uids, gids) = (map("uid_map")?, map("gid_map")?);
        let one_plain_id = |map: &str| {
            let parts = map.split(' ').collect::<Vec<_>>();
            matches!(parts[..], [inside, outside, "1"] if inside != "0" && outside != "0")
        };
        let evidence = format!("{evidence}; uid_map '{uids}', gid_map '{gids}'");
        match status {
            ENFORCED if one_plain_id(&uids) && one_plain_id(&gids) => Ok((ENFORCED, evidence)),
            ENFORCED => Ok((DEGRADED, evidence)),
            missing => Ok((missing, evidence)),
        }
    }

    fn net_namespace(&self) -> io::Result<Judged> {
        let (status, evidence) = self.own_namespace("net")?;
        let devices = self.read("net/dev")?;
        let names =
            devices.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect::<Vec<_>>();
        let evidence = format!("{evidence}; net/dev lists: {}", names.join(" "));
        let network = self.profile.network;
        let addresses = local_addresses(&self.read("net/fib_trie")?);
        let (state, wanted) = match (addresses.as_slice(), network) {
            ([], Network::None) => ("down", true),
            ([], _) => ("down", false),
            ([one], Network::Loopback | Network::Egress) if one == "127.0.0.1" => ("up", true),
            _ => ("up", false),
        };
        let mut evidence = format!("{evidence}, {state} (network: {})", network.name());
        if !addresses.is_empty() {
            evidence = format!("{evidence}; fib_trie has the local addresses {}", addresses.join(" "));
        }
        if network == Network::Egress {
            evidence = format!(
                "{evidence}; net/tcp has the listeners {}",
                listeners(&self.read("net/tcp")?).join(" ")
            );
        }
        let only_loopback = names.iter().all(|name| *name == "lo");
        Ok((if status == ENFORCED && !(only_loopback && wanted) { DEGRADED } else { status }, evidence))
    }

    fn keyrings(&self) -> Judged {
        let Attempt { what, before, under } = &self.report.keyrings;
        let evidence = format!(
            "{what}: {} before, {} in the own session keyring",
            errno_name(*before),
            errno_name(*under)
        );
        (if *before == 0 && *under == libc::ENOKEY { ENFORCED } else { UNAVAILABLE }, evidence)
    }

    fn uts_namespace(&self) -> io::Result<Judged> {
        let (status, evidence) = self.own_namespace("uts")?;
        let evidence = format!("{evidence}; uname says '{}'", self.report.hostname);
        let named = self.report.hostname == self.profile.hostname;
        Ok((if status == ENFORCED && !named { DEGRADED } else { status }, evidence))
    }

    fn private_root(&self) -> io::Result<Judged> {
        let mounts = self.mounts()?;
        let work = &self.profile.work.path;
        let named = |point: &Path| {
            point == work
                || point == Path::new("/")
                || point == Path::new("/proc")
                || self.profile.read_only.iter().any(|path| point.starts_with(path))
                || self.profile.devices.iter().any(|device| point == Path::new("/dev").join(device))
        };
        let root_is_own = mounts.iter().any(|mount| mount.point == "/" && mount.kind == "tmpfs");
        let stray = mounts.iter().find(|mount| !named(Path::new(&mount.point)));
        let writable = mounts.iter().find(|mount| {
            let point = Path::new(&mount.point);
            !mount.has("ro") && point != work && point != Path::new("/proc")
        });
        let setuid = mounts.iter().find(|mount| !mount.has("nosuid"));
        let points =
            mounts.iter().map(|mount| mount.point.as_str()).take(MOUNTS_NAMED).collect::<Vec<_>>().join(" ");
        let listed =
            format!("mountinfo has {} mounts: {points}; mountinfo BLAKE3 {}", mounts.len(), digest(mounts));
        if !root_is_own {
            return Ok((UNAVAILABLE, format!("the root is not the sandbox's own; {listed}")));
        }
        let faults = [("not named by the profile", stray), ("writable", writable), ("not nosuid", setuid)];
        let faults = faults
            .iter()
            .filter_map(|(fault, mount)| Some(format!("{} is {fault}", mount.as_ref()?.point)))
            .collect::<Vec<_>>();
        if faults.is_empty() {
            Ok((ENFORCED, format!("root is a read-only nosuid tmpfs; {listed}")))
        } else {
            Ok((DEGRADED, format!("{}; {listed}", faults.join(", "))))
        }
    }

    fn work_area(&self) -> io::Result<Judged> {
        let work = &self.profile.work;
        let mounts = self.mounts()?;
        let Some(mount) =
            mounts.iter().rfind(|mount| Path::new(&mount.point) == work.path && mount.kind == "tmpfs")
        else {
            let evidence = "a directory on the host, private by mode 0700 and Landlock; its size has no limit, a file's \
                            has RLIMIT_FSIZE";
            return Ok((DEGRADED, evidence.to_owned()));
        };
        let options = ["nosuid", "nodev"].iter().all(|option| mount.has(option));
        let noexec = work.executable || mount.has("noexec");
        let sized = mount.limits.iter().any(|option| option.starts_with("size="));
        let evidence =
            format!("{} is tmpfs {} ({})", mount.point, mount.options.join(","), mount.limits.join(","));
        Ok((if options && noexec && sized { ENFORCED } else { DEGRADED }, evidence))
    }

    fn masked_proc(&self) -> io::Result<Judged> {
        let mounts = self.mounts()?;
        let root_is_own = mounts.iter().any(|mount| mount.point == "/" && mount.kind == "tmpfs");
        let procs = mounts.iter().filter(|mount| mount.kind == "proc").collect::<Vec<_>>();
        match procs[..] {
            _ if !root_is_own => {
                Ok((UNAVAILABLE, "the host's /proc is in the file tree; Landlock alone denies it".into()))
            }
            [] => Ok((ENFORCED, "no proc file system is mounted inside".into())),
            [proc] if proc.limits.iter().any(|option| option == "subset=pid") => Ok((
                ENFORCED,
                format!("one proc, at {}, of the own pid namespace ({})", proc.point, proc.limits.join(",")),
            )),
            _ => Ok((DEGRADED, format!("{} proc mounts, not all with subset=pid", procs.len()))),
        }
    }

    fn capabilities(&self) -> io::Result<Judged> {
        let status = self.status()?;
        let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
        let values = sets.map(|set| (set, field(status, set).unwrap_or("missing")));
        let empty = |value: &str| !value.is_empty() && value.bytes().all(|b| b == b'0');
        let evidence = values.map(|(set, value)| format!("{set} {value}")).join(", ");
        let usable = values.iter().any(|(set, value)| *set != "CapBnd" && !empty(value));
        Ok(match values.iter().all(|(_, value)| empty(value)) {
            true => (ENFORCED, evidence),
            false if usable => (UNAVAILABLE, evidence),
            false => (
                DEGRADED,
                format!("{evidence}: the bounding set is full, no_new_privs keeps it from being used"),
            ),
        })
    }

    fn no_new_privs(&self) -> io::Result<Judged> {
        let status = self.status()?;
        let value = field(status, "NoNewPrivs").unwrap_or("missing");
        Ok((if value == "1" { ENFORCED } else { UNAVAILABLE }, format!("NoNewPrivs {value}")))
    }

    fn landlock(&self) -> Judged {
        let report = self.report;
        let denied = |attempt: &Attempt, errno| attempt.before == 0 && attempt.under == errno;
        let attempts = [
            (&report.landlock_files, libc::EACCES, "files"),
            (&report.landlock_tcp, libc::EACCES, "TCP"),
            (&report.landlock_signals, libc::EPERM, "signals"),
        ];
        let text = attempts.map(|(attempt, ..)| {
            let Attempt { what, before, under } = attempt;
            format!("{what}: {} before, {} under the rules", errno_name(*before), errno_name(*under))
        });
        let evidence =
            format!("ABI {}, {}; {}", report.landlock_abi, report.landlock_handled, text.join(", "));
        // On a loopback of its own a program may use TCP: nothing else is there to be reached.
        let free = |name: &str| name == "TCP" && self.profile.network == Network::Loopback;
        let missing =
            attempts.iter().filter(|(attempt, errno, name)| !free(name) && !denied(attempt, *errno));
        let missing = missing.map(|(.., name)| *name).collect::<Vec<_>>();
        match missing[..] {
            [] => (ENFORCED, evidence),
            ["files", ..] => (UNAVAILABLE, evidence),
            _ => (DEGRADED, format!("{evidence}; not denied: {}", missing.join(", "))),
        }
    }

    fn seccomp(&self) -> io::Result<Judged> {
        const MODE_FILTER: &str = "2";
        let status = self.status()?;
        let mode = field(status, "Seccomp").unwrap_or("missing");
        let filters = field(status, "Seccomp_filters").and_then(|text| text.parse::<usize>().ok());
        let wanted = self.baseline.seccomp_filters + seccomp::INSTALLED;
        let shown = filters.map_or("no".to_owned(), |count| count.to_string());
        let evidence = format!("Seccomp {mode}, {shown} filters, {wanted} expected");
        if mode == MODE_FILTER && filters == Some(wanted) {
            Ok((ENFORCED, evidence))
        } else {
            let error = io::Error::from_raw_os_error(self.report.seccomp_errno);
            Ok((UNAVAILABLE, format!("{evidence}; installing: {error}")))
        }
    }
}

impl Prepared<'_> {
    fn judge(&self, layer: Layer) -> io::Result<Judged> {
        match layer {
            Layer::Cgroup => self.cgroup(),
            Layer::Rlimits => self.rlimits(),
            Layer::ClosedFds => self.closed_fds(),
            Layer::CleanEnv => self.clean_env(),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn cgroup(&self) -> io::Result<Judged> {
        match &self.cgroup {
            None => Ok((UNAVAILABLE, "no cgroup of its own".to_owned())),
            Some(Ok(Held { status, evidence, .. })) => Ok((*status, evidence.clone())),
            Some(Err(error)) => Err(io::Error::new(error.kind(), error.to_string())),
        }
    }

    fn rlimits(&self) -> io::Result<Judged> {
        let (mut held, mut wrong) = (vec![], vec![]);
        for limit in self.rlimits {
            let (soft, hard) = limit.held(self.pid)?;
            let (name, wanted) = (limit.name(), (limit.soft, limit.hard));
            if (soft, hard) == wanted {
                held.push(format!("{name} {soft}"));
            } else {
                wrong.push(format!("{name} is {soft}/{hard}, not {}/{}", wanted.0, wanted.1));
            }
        }
        let shared = "Max processes counts all of the user's processes, not this execution's alone";
        if !self.rlimits_are_own {
            wrong.push(shared.to_owned());
        }
        let status = match (held.is_empty(), wrong.is_empty()) {
            (_, true) => ENFORCED,
            (false, _) => DEGRADED,
            (true, false) => UNAVAILABLE,
        };
        Ok((status, [held, wrong].concat().join(", ")))
    }

    fn closed_fds(&self) -> io::Result<Judged> {
        let mut left = vec![];
        let mut leaking = vec![];
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if ["0", "1", "2"].contains(&name.as_str()) {
                continue;
            }
            let info = read(self.pid, &format!("fdinfo/{name}"))?;
            let flags =
                field(&info, "flags").and_then(|octal| i32::from_str_radix(octal, 8).ok()).unwrap_or(0);
            if flags & libc::O_CLOEXEC == 0 {
                leaking.push(name);
            } else {
                left.push(name);
            }
        }
        let evidence = format!("open beyond 0, 1, 2: {}, closed by execve", left.join(" "));
        Ok(match (leaking.is_empty(), left.len()) {
            (false, _) => (UNAVAILABLE, format!("stay open across execve: {}", leaking.join(" "))),
            // The link on which it waits for the word to execute.
            (true, 0..=1) => (ENFORCED, evidence),
            (true, _) => (DEGRADED, evidence),
        })
    }

    fn clean_env(&self) -> io::Result<Judged> {
        let inherited = match &self.standing.inherited {
            Ok(count) => *count,
            Err(error) => return Err(io::Error::new(error.kind(), error.to_string())),
        };
        let specified = |name: &&String| self.env.iter().any(|(own, _)| own == *name);
        let given = self.environment;
        let foreign = given.iter().filter(|name| !specified(name)).count();
        let evidence = format!(
            "environ before execve has {inherited} variables; execve gets {}, {foreign} of them not specified",
            given.len()
        );
        Ok(match (foreign, inherited) {
            (0, 0) => (ENFORCED, evidence),
            (0, _) => (DEGRADED, evidence),
            _ => (UNAVAILABLE, evidence),
        })
    }
}

/// Addresses that packets of the namespace's own go to (`/proc/net/fib_trie`), each once.
fn local_addresses(trie: &str) -> Vec<String> {
    let mut found: Vec<String> = vec![];
    for (line, next) in trie.lines().zip(trie.lines().skip(1)) {
        let leaf = line.trim_start().strip_prefix("|-- ");
        // Networks are listed as well: an address has all its bits.
        if let (Some(address), true) = (leaf, next.trim() == "/32 host LOCAL")
            && !found.iter().any(|known| known == address)
        {
            found.push(address.to_owned());
        }
    }
    found
}

/// Where somebody listens (`/proc/net/tcp`), as the kernel writes addresses.
fn listeners(table: &str) -> Vec<&str> {
    const LISTEN: &str = "0A";
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(3) == Some(&LISTEN)).filter_map(|row| row.get(1).copied()).collect()
}

/// How many mount points the evidence spells out.
const MOUNTS_NAMED: usize = 24;

pub(super) struct Mount {
    point: String,
    options: Vec<String>,
    kind: String,
    limits: Vec<String>,
}

impl Mount {
    /// A line of `/proc/<pid>/mountinfo` (proc(5)).
    fn parse(line: &str) -> Option<Self> {
        let (mount, superblock) = line.split_once(" - ")?;
        let mount = mount.split(' ').collect::<Vec<_>>();
        let mut superblock = superblock.split(' ');
        let list = |text: &str| text.split(',').map(str::to_owned).collect();
        Some(Self {
            point: (*mount.get(4)?).to_owned(),
            options: list(mount.get(5)?),
            kind: superblock.next()?.to_owned(),
            limits: list(superblock.nth(1)?),
        })
    }

    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|own| own == option)
    }
}

/// BLAKE3 of the mounts without what differs from run to run (ids, device numbers, order): for each a line of mount point, type, options and
/// the superblock's options, in the kernel's spelling, sorted.
fn digest(mounts: &[Mount]) -> String {
    let line = |mount: &Mount| {
        let Mount { point, options, kind, limits } = mount;
        format!("{point} {kind} {} {}\n", options.join(","), limits.join(","))
    };
    let mut lines = mounts.iter().map(line).collect::<Vec<_>>();
    lines.sort_unstable();
    Purpose::Mounts.digest(lines.concat().as_bytes()).to_string()
}

fn errno_name(errno: i32) -> String {
    match errno {
        0 => "success".to_owned(),
        other => io::Error::from_raw_os_error(other).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_the_mounts_is_of_what_the_profile_leads_to() {
        let of = |text: &str| digest(&text.lines().filter_map(Mount::parse).collect::<Vec<_>>());
        let one = of(
            "21 20 0:31 / / ro,nosuid shared:7 - tmpfs tmpfs rw,size=4k\n22 21 8:1 /usr /usr ro,nosuid - ext4 /dev/sda1 rw",
        );
        let other = of(
            "94 91 8:2 /usr /usr ro,nosuid - ext4 /dev/sdb2 rw\n91 90 0:77 / / ro,nosuid - tmpfs tmpfs rw,size=4k",
        );
        assert_eq!((one.len(), &one), (64, &other));
        let writable = of(
            "91 90 0:77 / / ro,nosuid - tmpfs tmpfs rw,size=4k\n94 91 8:2 /usr /usr rw,nosuid - ext4 /dev/sdb2 rw",
        );
        assert_ne!(one, writable);
    }
}
