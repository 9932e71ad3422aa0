//! Where this process may make cgroups: which hierarchies are mounted, where in them it is itself, and where below that
//! children may be made.
//!
//! Leaves out making them. Invariant: a place is in the process's own cgroup, or next to it in one that was delegated,
//! so that limits set on the agent hold for what it executes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Controller, PROCS, Version, members, v2, write};

/// A mounted hierarchy and this process's cgroup in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) version: Version,
    /// What it can do. Version 2 is asked in its files.
    pub(super) controllers: Vec<Controller>,
    mount: PathBuf,
    pub(super) own: PathBuf,
}

/// Asks the kernel.
pub(super) fn discover() -> io::Result<Vec<Found>> {
    Ok(find(&fs::read_to_string("/proc/self/cgroup")?, &fs::read_to_string("/proc/self/mountinfo")?))
}

/// Hierarchies as `/proc/<pid>/cgroup` and `/proc/<pid>/mountinfo` name them (cgroups(7), proc(5)), each once.
pub(super) fn find(cgroup: &str, mountinfo: &str) -> Vec<Found> {
    let mut found: Vec<Found> = vec![];
    for line in mountinfo.lines() {
        let Some((mount, superblock)) = line.split_once(" - ") else { continue };
        let fields = mount.split(' ').collect::<Vec<_>>();
        let (&[_, _, _, root, point, ..], Some((kind, options))) = (&fields[..], superblock.split_once(' '))
        else {
            continue;
        };
        let version = match kind {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => continue,
        };
        let options = options.rsplit(' ').next().unwrap_or_default().split(',').collect::<Vec<_>>();
        let controllers = Controller::ALL
            .into_iter()
            .filter(|one| version == Version::V1 && options.contains(&one.name(version)))
            .collect::<Vec<_>>();
        if version == Version::V1 && controllers.is_empty() {
            continue;
        }
        let named = controllers.first().map_or("", |one| one.name(version));
        let Some(path) = member_path(cgroup, version, named) else { continue };
        let Some(own) = below(&unescape(root), path) else { continue };
        let mount = PathBuf::from(unescape(point));
        let own = if own.as_os_str().is_empty() { mount.clone() } else { mount.join(own) };
        if !found.iter().any(|one| one.version == version && one.controllers == controllers) {
            found.push(Found { version, controllers, mount, own });
        }
    }
    found
}

/// A member's cgroup in one hierarchy, from its `/proc/<pid>/cgroup`.
pub(super) fn member_path<'a>(cgroup: &'a str, version: Version, controller: &str) -> Option<&'a str> {
    cgroup.lines().find_map(|line| {
        let (number, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let named = match version {
            Version::V1 => controllers.split(',').any(|one| one == controller),
            Version::V2 => number == "0" && controllers.is_empty(),
        };
        named.then_some(path)
    })
}

/// `path` relative to what is mounted. None: this process is not below it, or there are parents it may not name.
fn below(root: &str, path: &str) -> Option<PathBuf> {
    let rest = Path::new(path).strip_prefix(root).ok()?;
    rest.components().all(|part| matches!(part, std::path::Component::Normal(_))).then(|| rest.to_owned())
}

/// Mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

/// Where in version 2 to make a parent, and what its leaves can do.
pub(super) struct Chosen {
    pub(super) dir: PathBuf,
    pub(super) holds: Vec<Controller>,
}

type Failed = (String, io::Error);

/// The cgroup that the agent is moved to where its own has to be free of processes.
const AGENT: &str = "exchequer-agent";

/// Chooses a place and makes the controllers available to its children. A cgroup of version 2 has either processes or
/// children with controllers: see the three cases.
pub(super) fn choose_v2(found: &Found) -> Result<Chosen, Failed> {
    let own = &found.own;
    let mut chosen = match own.parent().filter(|_| own != &found.mount) {
        // Delegated, with a subgroup for the agent: made by systemd, or by an agent before this one.
        Some(parent) if is_delegated(parent) || own.file_name().is_some_and(|name| name == AGENT) => {
            Chosen { dir: parent.to_owned(), holds: offered(parent) }
        }
        _ => Chosen { dir: own.clone(), holds: offered(own) },
    };
    // Nothing to enable, or the root, which may have both.
    if chosen.holds == [Controller::CpuTime] || !chosen.dir.join("cgroup.type").exists() {
        return enable(chosen);
    }
    let agent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    let helper = Some(rustix::process::getpid().as_raw_nonzero().get());
    let here = members(&chosen.dir);
    if let Some(other) = here.iter().find(|pid| ![agent, helper].contains(&Some(**pid))) {
        let step = format!("taking {}: process {other} is in it, beside the agent", chosen.dir.display());
        return Err((step, io::ErrorKind::ResourceBusy.into()));
    }
    if !here.is_empty() {
        let agent = chosen.dir.join(AGENT);
        let at = |step: &str| {
            let step = format!("{step} {}", agent.display());
            move |error| (step, error)
        };
        match fs::create_dir(&agent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at("mkdir")(error)),
            _ => {}
        }
        for pid in here {
            write(&agent.join(PROCS), &pid.to_string()).map_err(at("moving the agent to"))?;
        }
        chosen.holds = offered(&chosen.dir);
    }
    enable(chosen)
}

fn enable(mut chosen: Chosen) -> Result<Chosen, Failed> {
    let wanted = chosen.holds.clone();
    match v2::enable(&chosen.dir, &mut chosen.holds) {
        // Something is to be had all the same.
        Err(failed) if chosen.holds == [Controller::CpuTime] && wanted != chosen.holds => Err(failed),
        _ => Ok(chosen),
    }
}

/// What the children of `dir` could be given.
fn offered(dir: &Path) -> Vec<Controller> {
    let names = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let offers = |one: &Controller| {
        *one == Controller::CpuTime || names.split_whitespace().any(|name| name == one.name(Version::V2))
    };
    Controller::ALL.into_iter().filter(offers).collect()
}

/// Whether systemd marked it as given away (`Delegate=yes`).
fn is_delegated(dir: &Path) -> bool {
    let mut value = [0; 8];
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        rustix::fs::getxattr(dir, *name, &mut value[..]).is_ok_and(|length| value[..length] == *b"1")
    })
}
