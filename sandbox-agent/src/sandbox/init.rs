//! The first process inside: joins the remaining namespaces, builds the root, forks the payload, then only reaps.
//!
//! Leaves out the payload's own restrictions and all decisions about time and cost. Invariant: it ends only when no other
//! process of the execution is left, having reported what the kernel accounted to them.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{
    DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal, umask,
};

use super::cgroup::Leaf;
use super::channel;
use super::control::Layer;
use super::files;
use super::landlock_rules::Reach;
use super::payload::{self, Payload};
use super::profile::{EGRESS_PORT, Network};
use super::root::{self, OwnFiles};
use super::sys;
use super::wire::{Built, InitReport, Order, Refusal, Surroundings};

/// What the init process gets from the supervisor that forks it.
pub(super) struct Init<'a> {
    pub(super) surroundings: &'a Surroundings,
    /// The user and group id inside.
    pub(super) id: (u32, u32),
    pub(super) own_pid_namespace: bool,
    /// Where to make a private work directory if there can be no private root.
    pub(super) fallback_work: &'a Path,
    pub(super) payload_link: OwnedFd,
    pub(super) filters: &'a super::seccomp::Filters,
    pub(super) leaf: Option<&'a Leaf>,
    pub(super) single: sys::SingleThreaded,
}

/// The init process's life; its exit status says nothing, its reports do.
pub(super) fn run(init: Init<'_>, link: &OwnedFd) -> i32 {
    match build_and_reap(init, link) {
        Ok(()) => 0,
        Err((stage, error)) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            // Nobody left to tell is the supervisor's death, which the kernel answers with this process's.
            let _ = channel::send(link, &InitReport::Failed { stage, errno });
            1
        }
    }
}

type Failed = (String, io::Error);

fn at(stage: &str) -> impl Fn(io::Error) -> Failed {
    let stage = stage.to_owned();
    move |error| (stage.clone(), error)
}

fn build_and_reap(init: Init<'_>, link: &OwnedFd) -> Result<(), Failed> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| at("init death signal")(e.into()))?;
    umask(rustix::fs::Mode::from_raw_mode(0o022));
    let &Init { surroundings, own_pid_namespace, fallback_work, .. } = &init;
    let mut refusals = vec![];
    let namespaces = join_namespaces(&surroundings.omit, &mut refusals);
    if namespaces.contains(&Layer::UtsNamespace)
        && let Err(error) = rustix::system::sethostname(surroundings.profile.hostname.as_bytes())
    {
        refusals.push(Refusal::new(Layer::UtsNamespace, "sethostname", &error.into()));
    }
    let mut own = OwnFiles::default();
    let (reach, listener) = open_network(surroundings.profile.network, &namespaces, &mut refusals);
    if namespaces.contains(&Layer::MountNamespace) && surroundings.has(Layer::PrivateRoot) {
        match root::enter(surroundings, init.id, own_pid_namespace) {
            Ok(proc) => {
                root::seal().map_err(|refused| (refused.step, refused.error))?;
                own = OwnFiles { root: true, proc: own_pid_namespace && proc.is_none() };
                refusals.extend(proc.map(|r| Refusal::new(Layer::MaskedProc, r.step, &r.error)));
            }
            Err(r) => refusals.push(Refusal::new(Layer::PrivateRoot, r.step, &r.error)),
        }
    }
    let work = if own.root {
        surroundings.profile.work.path.clone()
    } else {
        let made = fs::DirBuilder::new().mode(0o700).create(fallback_work);
        made.map_err(at("making a private work directory"))?;
        fallback_work.to_owned()
    };
    let held = files::hold(&work).map_err(at("opening the work area"))?;
    if !own_pid_namespace {
        rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))
            .map_err(|e| at("becoming the tree's reaper")(e.into()))?;
    }
    // Before the fork: a signal between fork and mask would be lost.
    sys::block_exactly(&WAKING);

    let Init { payload_link, filters, leaf, single, .. } = init;
    let parent = rustix::process::getpid();
    let payload = Payload { surroundings, work, own, reach, link: payload_link, filters, leaf, parent };
    let main = single.fork(|| payload::run(&payload)).map_err(at("fork"))?;
    let listening = listener.as_ref().map(AsFd::as_fd);
    lock_down([link.as_fd(), held.as_fd()].into_iter().chain(listening)).map_err(at("init lock-down"))?;
    // Its descriptors are closed by number.
    std::mem::forget(payload);
    let built = InitReport::Built(Built { refusals, own_root: own.root });
    channel::send_files(link, &built, listening.as_slice()).map_err(at("reporting to the supervisor"))?;
    drop(listener);
    let outputs = follow_order(link, &held)?;
    let status = reap(main, own_pid_namespace, link).map_err(at("reaping"))?;
    report_end(status, link, &held, &outputs).map_err(at("reporting the end"))?;
    // Its end takes the namespaces down, which nobody should have to wait for who waits for the outcome: until the supervisor
    // hangs up or kills it.
    let _ = channel::receive(link.as_fd());
    Ok(())
}

/// Waits until it is known what the surroundings are for, and puts the inputs in their places. A killed payload, and the
/// signal to kill it, wait meanwhile.
fn follow_order(link: &OwnedFd, work: &OwnedFd) -> Result<Vec<PathBuf>, Failed> {
    let packet = channel::receive(link.as_fd()).map_err(at("receiving the order"))?;
    let Order { inputs, outputs } = channel::parse(&packet).map_err(at("receiving the order"))?;
    if !inputs.is_empty() {
        files::put(work.as_fd(), &inputs, &packet.fds)
            .map_err(|(place, error)| (format!("inputs[{place}]"), error))?;
        channel::send(link, &InitReport::Placed).map_err(at("reporting to the supervisor"))?;
    }
    Ok(outputs)
}

/// Takes the loopback up and listens on it, as the profile's network asks. Never on the host's.
fn open_network(
    network: Network,
    namespaces: &[Layer],
    refusals: &mut Vec<Refusal>,
) -> (Reach, Option<OwnedFd>) {
    if network == Network::None || !namespaces.contains(&Layer::NetNamespace) {
        return (Reach::Nothing, None);
    }
    if let Err(error) = sys::bring_loopback_up() {
        refusals.push(Refusal::new(Layer::NetNamespace, "taking the loopback up", &error));
        return (Reach::Nothing, None);
    }
    if network == Network::Loopback {
        return (Reach::Loopback, None);
    }
    match listen() {
        Ok(listener) => (Reach::Proxy, Some(listener)),
        Err(error) => {
            refusals.push(Refusal::new(Layer::NetNamespace, "listening on 127.0.0.1", &error));
            (Reach::Nothing, None)
        }
    }
}

fn listen() -> io::Result<OwnedFd> {
    const BACKLOG: i32 = 64;
    let (family, kind, flags) = (AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC);
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, EGRESS_PORT))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// The cgroup namespace is the payload's own affair: it has to be in its cgroup first.
const NAMESPACES: [(Layer, i32, &str); 4] = [
    (Layer::MountNamespace, libc::CLONE_NEWNS, "unshare(CLONE_NEWNS)"),
    (Layer::NetNamespace, libc::CLONE_NEWNET, "unshare(CLONE_NEWNET)"),
    (Layer::IpcNamespace, libc::CLONE_NEWIPC, "unshare(CLONE_NEWIPC)"),
    (Layer::UtsNamespace, libc::CLONE_NEWUTS, "unshare(CLONE_NEWUTS)"),
];

fn join_namespaces(omit: &[Layer], refusals: &mut Vec<Refusal>) -> Vec<Layer> {
    let wanted = NAMESPACES.iter().filter(|(layer, ..)| !omit.contains(layer)).collect::<Vec<_>>();
    let all = wanted.iter().fold(0, |flags, (_, flag, _)| flags | flag);
    if sys::unshare(all).is_ok() {
        return wanted.iter().map(|(layer, ..)| *layer).collect();
    }
    let mut joined = vec![];
    for &(layer, flag, step) in wanted {
        match sys::unshare(flag) {
            Ok(()) => joined.push(layer),
            Err(error) => refusals.push(Refusal::new(layer, step, &error)),
        }
    }
    joined
}

/// Gives up everything that reaping and reporting do not need.
fn lock_down<'a>(kept: impl Iterator<Item = BorrowedFd<'a>>) -> io::Result<()> {
    sys::place_at(io::stdin().as_fd(), 2, false)?;
    sys::keep_only(&kept.collect::<Vec<_>>())?;
    rustix::thread::set_no_new_privs(true)?;
    payload::drop_capabilities();
    // Its memory is the engine's: not to be read by the payload, which has the same user id.
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

const WAKING: [i32; 2] = [libc::SIGCHLD, libc::SIGTERM];
/// Only a net: both signals wake it at once.
const REAP_INTERVAL: Duration = Duration::from_secs(1);

/// Reaps until nothing is left; the program's status. SIGTERM, which only the supervisor has reason to send, means: kill the rest.
fn reap(main: i32, own_pid_namespace: bool, link: &OwnedFd) -> io::Result<i32> {
    let mut status = None;
    let (mut told, mut kill) = (false, false);
    loop {
        loop {
            match sys::wait(None, false) {
                Ok(Some(ended)) if ended.pid == main => status = Some(ended.status),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return Ok(status.unwrap_or(libc::SIGKILL)),
            }
        }
        // What the program left running ends with it.
        if let Some(status) = status.filter(|_| !told) {
            channel::send(link, &InitReport::MainEnded { status })?;
            (told, kill) = (true, true);
        }
        if kill && own_pid_namespace {
            sys::kill_all_in_namespace();
        }
        kill |= sys::take_signal(&WAKING, REAP_INTERVAL) == Some(libc::SIGTERM);
    }
}

/// Nobody is left to change a file: opens those that were asked for, and hands them out with the accounting.
fn report_end(status: i32, link: &OwnedFd, work: &OwnedFd, outputs: &[PathBuf]) -> io::Result<()> {
    let taken = files::take(work.as_fd(), outputs);
    let fds = taken.iter().flatten().map(AsFd::as_fd).collect::<Vec<_>>();
    let files = taken.iter().map(|file| file.as_ref().err().cloned()).collect();
    let usage = sys::resource_usage(true).into();
    channel::send_files(link, &InitReport::Done { status, usage, files }, &fds)
}
