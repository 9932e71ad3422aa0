//! The process that becomes the program: takes the remaining layers on itself and tries what they must stop, all before it
//! knows its program; then takes its streams, reports, is given its limits, waits for the word, executes.
//!
//! Leaves out reading back whether the layers hold: that is asked of the kernel from outside. Invariant: once its filter is
//! installed it makes no call that the filter forbids; once it has reported it allocates nothing: the limits are set
//! meanwhile, and that of the memory may be below what this image already has mapped.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Ipv4Addr, SocketAddrV4, SocketType};
use rustix::process::{DumpableBehavior, Pid, Signal};

use super::cgroup::Leaf;
use super::control::Layer;
use super::landlock_rules::Reach;
use super::root::OwnFiles;
use super::sys::{self, CStrings};
use super::wire::{Attempt, Confined, GO, Program, Ready, Refusal, Said, Surroundings};
use super::{channel, landlock_rules, seccomp};

/// Where programs are looked up if the environment names no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";
/// The exit status of a payload that could not become the program.
const EXIT_NOT_EXECUTED: i32 = 127;

/// What the payload gets from the init that forks it.
pub(super) struct Payload<'a> {
    pub(super) surroundings: &'a Surroundings,
    /// Where the work area really is.
    pub(super) work: PathBuf,
    pub(super) own: OwnFiles,
    /// What TCP reaches.
    pub(super) reach: Reach,
    pub(super) link: OwnedFd,
    pub(super) filters: &'a seccomp::Filters,
    pub(super) leaf: Option<&'a Leaf>,
    pub(super) parent: Pid,
}

/// The payload's life until it becomes the program; returns only if it does not.
pub(super) fn run(payload: &Payload<'_>) -> i32 {
    let link = payload.link.as_fd();
    let bound = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if bound.is_err() || rustix::process::getppid() != Some(payload.parent) {
        // Init ended meanwhile, and has said why.
        return EXIT_NOT_EXECUTED;
    }
    if let Err((stage, error)) = become_program(link, payload) {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        // Nobody left to tell: the kernel ends this process with its parents.
        let _ = rustix::io::write(link, &Said::failed(stage, errno));
    }
    EXIT_NOT_EXECUTED
}

type Failed = (&'static str, io::Error);

/// Enters the execution's cgroup, then a cgroup namespace, which shows that as the root. Init stays outside: it has to
/// outlive the tree to account for it.
fn join_cgroup(surroundings: &Surroundings, leaf: Option<&Leaf>) -> (bool, Vec<Refusal>) {
    let mut refusals = vec![];
    let attached = leaf.map(|leaf| leaf.attach(0));
    let memory_is_counted = attached.as_ref().is_some_and(|attached| attached.to_memory);
    if let Some(Err(error)) = attached.map(|attached| attached.refused) {
        refusals.push(Refusal::new(Layer::Cgroup, "writing to cgroup.procs", &error));
    }
    if surroundings.has(Layer::CgroupNamespace)
        && let Err(error) = sys::unshare(libc::CLONE_NEWCGROUP)
    {
        refusals.push(Refusal::new(Layer::CgroupNamespace, "unshare(CLONE_NEWCGROUP)", &error));
    }
    (memory_is_counted, refusals)
}

/// Takes on every layer that does not depend on the program, the filter last.
fn confine(payload: &Payload<'_>) -> Result<Confined, Failed> {
    let &Payload { surroundings, ref work, own, reach, ref link, filters, leaf, parent } = payload;
    let (memory_is_counted, mut refusals) = join_cgroup(surroundings, leaf);
    let on = |layer| surroundings.has(layer);
    let closed =
        if on(Layer::ClosedFds) { sys::keep_only(&[link.as_fd()]) } else { sys::leak_all_but(link.as_fd()) };
    closed.map_err(|e| ("closing descriptors", e))?;
    rustix::process::setsid().map_err(|e| ("setsid", e.into()))?;
    sys::default_signals();
    sys::block_exactly(&[]);

    let before = Tries::make(parent);
    if on(Layer::Keyrings)
        && let Err(error) = sys::join_session_keyring()
    {
        refusals.push(Refusal::new(Layer::Keyrings, "keyctl(KEYCTL_JOIN_SESSION_KEYRING)", &error));
    }
    if !on(Layer::Capabilities) {
        refusals.extend(keep_capabilities());
    } else if on(Layer::NoNewPrivs) {
        refusals.extend(drop_capabilities());
    } else {
        refusals.extend(keep_only_what_filters_need());
    }
    if on(Layer::NoNewPrivs)
        && let Err(error) = rustix::thread::set_no_new_privs(true)
    {
        refusals.push(Refusal::new(Layer::NoNewPrivs, "prctl(PR_SET_NO_NEW_PRIVS)", &error.into()));
    }
    // The mode that execve gives any readable program: the supervisor reads this process's state through it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(|e| ("dumpable", e.into()))?;
    let landlock_abi = sys::landlock_abi().unwrap_or(0);
    let mut landlock_handled = "no rights handled".to_owned();
    if on(Layer::Landlock) {
        landlock_handled = landlock_rules::handled(landlock_abi, reach);
    }
    if on(Layer::Landlock)
        && let Err(error) =
            landlock_rules::restrict(&surroundings.profile, work, own, reach, on(Layer::NoNewPrivs))
    {
        let error = io::Error::other(error.to_string());
        refusals.push(Refusal::new(Layer::Landlock, "landlock_restrict_self", &error));
    }
    let under = Tries::make(parent);
    let filter = filters.of(&surroundings.profile, reach);
    let seccomp_errno = if on(Layer::Seccomp) { filter.install().err().unwrap_or(0) } else { 0 };
    Ok(Confined {
        refusals,
        memory_is_counted,
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        keyrings: attempt("searching the helper's key", before.keyrings, under.keyrings),
        landlock_abi,
        landlock_handled,
        landlock_files: attempt("open(\"/\")", before.files, under.files),
        landlock_tcp: attempt("bind(TCP 0.0.0.0:0)", before.tcp, under.tcp),
        landlock_signals: attempt("kill(init, 0)", before.signals, under.signals),
        seccomp_errno,
    })
}

/// Waits for its program and takes its streams. `None`: there will be none.
fn receive_program(link: BorrowedFd<'_>) -> Result<Option<Program>, Failed> {
    let packet = channel::receive(link).map_err(|e| ("program", e))?;
    if packet.bytes.is_empty() {
        return Ok(None);
    }
    let program = channel::parse(&packet).map_err(|e| ("program", e))?;
    for (number, fd) in (0..).zip(&packet.fds) {
        sys::place_at(fd.as_fd(), number, false).map_err(|e| ("streams", e))?;
    }
    Ok(Some(program))
}

fn become_program(link: BorrowedFd<'_>, payload: &Payload<'_>) -> Result<(), Failed> {
    let report = Said::confined(&confine(payload)?).map_err(|e| ("report", e))?;
    rustix::io::write(link, &report).map_err(|e| ("report", e.into()))?;
    let Some(Program { name: program, args, env, cwd }) = receive_program(link)? else {
        return Ok(());
    };
    rustix::process::chdir(&cwd).map_err(|e| ("cwd", e.into()))?;

    let programs = candidates(&program, &env).map_err(|e| ("program", e))?;
    let args = strings([program].into_iter().chain(args)).map_err(|e| ("args", e))?;
    let environment = env.iter().map(|(key, _)| key.clone()).collect();
    let env = env.into_iter().map(|(key, value)| format!("{key}={value}"));
    let env = strings(env).map_err(|e| ("env", e))?;
    let report = Ready { environment, usage: sys::resource_usage(false).into() };
    let report = Said::ready(&report).map_err(|e| ("report", e))?;

    // From here on: no allocation.
    let mut word = [0];
    if rustix::io::write(link, &report).is_err() || rustix::io::read(link, &mut word) != Ok(1) || word != [GO]
    {
        return Ok(());
    }
    let mut error = libc::ENOENT;
    for program in &programs {
        let Err(errno) = sys::execve(program, &args, &env);
        // As a shell looks a name up: go on if it is not there, remember if it was but could not be executed.
        if errno != libc::ENOENT && errno != libc::ENOTDIR {
            error = errno;
            if errno != libc::EACCES {
                break;
            }
        }
    }
    // Nobody left to tell: the kernel ends this process with its parents.
    let _ = rustix::io::write(link, &Said::exec_failed(error));
    Ok(())
}

/// Hands all that there are on to the program, for probes of what having none is good for.
fn keep_capabilities() -> Option<Refusal> {
    use rustix::thread::{capabilities, configure_capability_in_ambient_set, set_capabilities};
    let keep = || -> io::Result<()> {
        let mut sets = capabilities(None)?;
        sets.effective = sets.permitted;
        sets.inheritable = sets.permitted;
        set_capabilities(None, sets)?;
        for capability in sets.permitted.iter() {
            configure_capability_in_ambient_set(capability, true)?;
        }
        Ok(())
    };
    let error = keep().err()?;
    Some(Refusal::new(Layer::Capabilities, "keeping capabilities for a probe", &error))
}

/// Without `no_new_privs` the kernel takes rules and filters from CAP_SYS_ADMIN only; `execve` takes it away.
fn keep_only_what_filters_need() -> Vec<Refusal> {
    use rustix::thread::{CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities};
    let need = CapabilitySets {
        effective: CapabilitySet::SYS_ADMIN,
        permitted: CapabilitySet::SYS_ADMIN,
        inheritable: CapabilitySet::empty(),
    };
    [
        ("prctl(PR_CAPBSET_DROP)", sys::drop_bounding_set()),
        ("prctl(PR_CAP_AMBIENT_CLEAR_ALL)", clear_ambient_capability_set().map_err(Into::into)),
        ("capset", set_capabilities(None, need).map_err(Into::into)),
    ]
    .into_iter()
    .filter_map(|(step, result)| Some(Refusal::new(Layer::Capabilities, step, &result.err()?)))
    .collect()
}

/// Empties all five capability sets, as far as the kernel lets.
pub(super) fn drop_capabilities() -> Vec<Refusal> {
    use rustix::thread::{CapabilitySet, CapabilitySets, clear_ambient_capability_set, set_capabilities};
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    [
        ("prctl(PR_CAPBSET_DROP)", sys::drop_bounding_set()),
        ("prctl(PR_CAP_AMBIENT_CLEAR_ALL)", clear_ambient_capability_set().map_err(Into::into)),
        ("capset", set_capabilities(None, none).map_err(Into::into)),
    ]
    .into_iter()
    .filter_map(|(step, result)| Some(Refusal::new(Layer::Capabilities, step, &result.err()?)))
    .collect()
}

/// What works without Landlock and that its rules forbid, and what is found in an inherited keyring; as error numbers, 0 for success.
struct Tries {
    files: i32,
    tcp: i32,
    signals: i32,
    keyrings: i32,
}

impl Tries {
    fn make(parent: Pid) -> Self {
        let number = |result: Result<(), Errno>| result.err().map_or(0, Errno::raw_os_error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let any_port = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        Self {
            files: number(rustix::fs::open("/", flags, Mode::empty()).map(drop)),
            tcp: number(
                rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)
                    .and_then(|socket| rustix::net::bind(&socket, &any_port)),
            ),
            signals: number(rustix::process::test_kill_process(parent)),
            keyrings: sys::find_key(),
        }
    }
}

fn attempt(what: &str, before: i32, under: i32) -> Attempt {
    Attempt { what: what.to_owned(), before, under }
}

fn strings(of: impl Iterator<Item = String>) -> io::Result<CStrings> {
    Ok(CStrings::new(of.map(CString::new).collect::<Result<_, _>>()?))
}

fn candidates(program: &str, env: &[(String, String)]) -> io::Result<Vec<CString>> {
    let name = Path::new(program);
    let paths = if program.contains('/') {
        vec![name.to_owned()]
    } else {
        let path = env.iter().find(|(key, _)| key == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
        path.split(':').filter(|part| !part.is_empty()).map(|part| Path::new(part).join(name)).collect()
    };
    Ok(paths
        .into_iter()
        .map(|path| CString::new(path.into_os_string().into_vec()))
        .collect::<Result<_, _>>()?)
}
