//! The process of one execution's supervision, outside the namespaces that the payload lives in: builds the surroundings,
//! waits until they are needed, and sees one execution through ([`super::execution`]).
//!
//! Leaves out the output, which goes from payload to agent directly. Invariant: surroundings serve one execution or none; it
//! ends only after their init has, which without a pid namespace may leave a dying payload to the helper; the agent's or the helper's death
//! makes it kill them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_child_subreaper, set_dumpable_behavior};

use super::cgroup::{self, Leaf};
use super::channel::{self, Packet};
use super::control::Layer;
use super::execution::{Execution, Given, NOT_RUN, launch_failed, no_files};
use super::init::{self, Init};
use super::outcome::Usage;
use super::payload;
use super::readback::{self, Baseline, Standing};
use super::seccomp::Filters;
use super::sys::{self, SingleThreaded};
use super::wire::{
    Built, Confined, Ended, InitReport, Refusal, Report, Said, Surroundings, WANTED_FDS, Wanted,
};

/// The user and group id inside a user namespace.
const INSIDE_ID: u32 = 1000;
/// What all executions of a helper have in common.
pub(super) struct Host {
    pub(super) baseline: Baseline,
    pub(super) filters: Filters,
    /// Who payloads are on the host, if the agent is root.
    pub(super) user: (u32, u32),
    pub(super) single: SingleThreaded,
    pub(super) cgroups: Arc<cgroup::Parent>,
}

/// The descriptors that a supervisor starts with.
pub(super) struct Links {
    /// To the helper: says which execution the surroundings are for; hangs up when they are not needed.
    pub(super) order: OwnedFd,
    /// Hangs up when the helper dies.
    pub(super) helper: OwnedFd,
}

/// The supervisor's life: builds the surroundings, waits until they are needed, sees one execution through. `is_ahead`:
/// nobody has asked yet; if the surroundings fail, nobody has to hear of it. `taken`: what came of taking a cgroup for it, if
/// this host has any.
pub(super) fn run(
    host: &Host,
    links: Links,
    surroundings: &[u8],
    is_ahead: bool,
    fallback_work: &Path,
    taken: Option<io::Result<u64>>,
) -> i32 {
    let Ok(surroundings) = serde_json::from_slice::<Surroundings>(surroundings) else {
        return 1;
    };
    let Links { order, helper } = links;
    let tree = Tree::build(host, &surroundings, fallback_work, taken, &helper);
    let init = tree.as_ref().ok().map(|tree| tree.init);
    let watched = tree.as_ref().ok().filter(|_| is_ahead);
    let requested = if is_ahead && tree.is_err() {
        last_request(&order)
    } else {
        wait_for_request(&order, &helper, watched)
    };
    // Nobody is to be told that these can be had.
    drop(order);
    let status =
        requested.map_or(1, |requested| serve(&helper, surroundings, tree, requested, fallback_work));
    if let Some(init) = init {
        end(init);
    }
    // There is one only where no private root could be built.
    let _ = fs::remove_dir_all(fallback_work);
    status
}

/// Ends an init that waits, is not needed or is about to end by itself. What was waited for before is no child any more, and
/// nobody's to kill.
fn end(init: i32) {
    if let Ok(None) = sys::wait(Some(init), false) {
        let _ = sys::send_signal(init, libc::SIGKILL);
        let _ = sys::wait(Some(init), true);
    }
}

/// What an execution is asked for with.
struct Requested {
    wanted: Wanted,
    control: OwnedFd,
    stdio: [OwnedFd; 3],
    inputs: Vec<OwnedFd>,
}

impl Requested {
    fn parse(mut packet: Packet) -> Option<Self> {
        let wanted = channel::parse(&packet).ok()?;
        let inputs = packet.fds.split_off(WANTED_FDS.min(packet.fds.len()));
        let [control, stdin, stdout, stderr] = <[OwnedFd; WANTED_FDS]>::try_from(packet.fds).ok()?;
        Some(Self { wanted, control, stdio: [stdin, stdout, stderr], inputs })
    }
}

/// `None`: nobody needs the surroundings any more, or they are broken.
fn wait_for_request(order: &OwnedFd, helper: &OwnedFd, tree: Option<&Tree>) -> Option<Requested> {
    loop {
        let mut fds = vec![PollFd::new(order, PollFlags::IN), PollFd::new(helper, PollFlags::IN)];
        // The payload of surroundings built ahead says nothing more, unless it ended.
        fds.extend(tree.map(|tree| PollFd::new(&tree.payload_link, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return last_request(order),
        }
        let ready = fds.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>();
        if ready[0] {
            return Requested::parse(channel::receive(order.as_fd()).ok()?);
        }
        if ready[1] {
            return None;
        }
        if ready.get(2) == Some(&true) {
            // Broken, or its payload killed: whoever asks next gets others.
            return last_request(order);
        }
    }
}

/// Takes no request any more; one that was handed over before is to hear why it fails.
fn last_request(order: &OwnedFd) -> Option<Requested> {
    rustix::net::shutdown(order, rustix::net::Shutdown::Read).ok()?;
    Requested::parse(channel::receive(order.as_fd()).ok()?)
}

fn serve(
    helper: &OwnedFd,
    surroundings: Surroundings,
    tree: Result<Tree, Failed>,
    requested: Requested,
    fallback_work: &Path,
) -> i32 {
    let Requested { wanted, control, stdio, inputs } = requested;
    let (spec, inherited) = wanted.within(surroundings);
    match tree {
        Ok(tree) => {
            let given = Given { spec: &spec, inherited, inputs, stdio };
            Execution::new(tree, given, &control, helper, fallback_work).run();
        }
        Err((stage, error)) => {
            let cause = launch_failed(stage, &error);
            let ended = Ended { cause, usage: Usage::default(), files: no_files(&spec, NOT_RUN) };
            // An agent that is gone needs no outcome.
            let _ = channel::send(&control, &Report::Finished(ended));
        }
    }
    0
}

/// What came of [`enter_namespaces`].
struct Entered {
    /// The user and group id inside.
    id: (u32, u32),
    own_user_namespace: bool,
    own_pid_namespace: bool,
}

/// Becomes the unprivileged user (keeping capabilities until the namespaces are made), then enters a user and a pid
/// namespace (the latter for children only).
fn enter_namespaces(host: &Host, omit: &[Layer], refusals: &mut Vec<Refusal>) -> io::Result<Entered> {
    if rustix::process::geteuid().is_root() {
        rustix::thread::set_keep_capabilities(true)?;
        sys::become_user(host.user.0, host.user.1)?;
        let mut sets = rustix::thread::capabilities(None)?;
        sets.effective = sets.permitted;
        rustix::thread::set_capabilities(None, sets)?;
    }
    // Owned by the user again, so that the maps can be written; this image holds no secrets.
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut entered = Entered { id: (uid, gid), own_user_namespace: false, own_pid_namespace: false };
    match unless(omit, Layer::UserNamespace, libc::CLONE_NEWUSER) {
        None => {}
        Some(Ok(())) => {
            entered.own_user_namespace = true;
            let mapped = fs::write("/proc/self/setgroups", "deny")
                .and_then(|()| fs::write("/proc/self/uid_map", format!("{INSIDE_ID} {uid} 1")))
                .and_then(|()| fs::write("/proc/self/gid_map", format!("{INSIDE_ID} {gid} 1")));
            match mapped {
                Ok(()) => entered.id = (INSIDE_ID, INSIDE_ID),
                Err(error) => {
                    refusals.push(Refusal::new(Layer::UserNamespace, "writing the id maps", &error));
                }
            }
        }
        Some(Err(error)) => {
            refusals.push(Refusal::new(Layer::UserNamespace, "unshare(CLONE_NEWUSER)", &error));
        }
    }
    match unless(omit, Layer::PidNamespace, libc::CLONE_NEWPID) {
        None => {}
        Some(Ok(())) => entered.own_pid_namespace = true,
        Some(Err(error)) => refusals.push(Refusal::new(Layer::PidNamespace, "unshare(CLONE_NEWPID)", &error)),
    }
    Ok(entered)
}

fn unless(omit: &[Layer], layer: Layer, flag: i32) -> Option<io::Result<()>> {
    (!omit.contains(&layer)).then(|| sys::unshare(flag))
}

/// How long the surroundings may take to be built.
const BUILD_LIMIT: Duration = Duration::from_secs(10);

/// A step that failed, and without which there are no surroundings.
type Failed = (String, io::Error);

fn at(step: &str) -> impl Fn(io::Error) -> Failed {
    let step = step.to_owned();
    move |error| (step.clone(), error)
}

/// The surroundings of an execution: namespaces, init and a payload that has no program yet; and what was read back of them.
pub(super) struct Tree {
    pub(super) init: i32,
    pub(super) init_link: OwnedFd,
    pub(super) payload: i32,
    pub(super) payload_link: OwnedFd,
    pub(super) own_pid_namespace: bool,
    pub(super) own_user_namespace: bool,
    pub(super) own_root: bool,
    pub(super) leaf: Option<Leaf>,
    pub(super) memory_is_counted: bool,
    /// The socket that listens inside, if the profile asks for one.
    pub(super) listener: Option<OwnedFd>,
    pub(super) refusals: Vec<Refusal>,
    pub(super) standing: Standing,
}

impl Tree {
    fn build(
        host: &Host,
        surroundings: &Surroundings,
        fallback_work: &Path,
        taken: Option<io::Result<u64>>,
        helper: &OwnedFd,
    ) -> Result<Self, Failed> {
        let mut refusals = vec![];
        // First of all: what it opens keeps the rights that this process is about to give up.
        let leaf = Leaf::for_execution(&host.cgroups, taken, &surroundings.omit, &mut refusals);
        // Something of the host for a program whose descriptors are not closed.
        let _leak = (!surroundings.has(Layer::ClosedFds)).then(|| fs::File::open("/"));
        let Entered { id, own_user_namespace, own_pid_namespace } =
            enter_namespaces(host, &surroundings.omit, &mut refusals)
                .map_err(at("becoming the unprivileged user"))?;
        // If init dies, what it should have reaped comes here and is killed here.
        set_child_subreaper(rustix::process::Pid::from_raw(1)).map_err(|e| at("subreaper")(e.into()))?;
        let (init_link, init_end) = channel::pair().map_err(at("socketpair"))?;
        let (payload_link, payload_end) = channel::pair().map_err(at("socketpair"))?;
        channel::identify_senders(&payload_link).map_err(at("SO_PASSCRED"))?;
        let child = Init {
            surroundings,
            id,
            own_pid_namespace,
            fallback_work,
            payload_link: payload_end,
            filters: &host.filters,
            leaf: leaf.as_ref(),
            single: host.single,
        };
        let init = host.single.fork(move || init::run(child, &init_end)).map_err(at("fork"))?;
        // The namespaces' capabilities were for init; reading, killing and waiting need none, unless a probe's program has
        // more itself.
        if surroundings.has(Layer::Capabilities) && surroundings.has(Layer::NoNewPrivs) {
            payload::drop_capabilities();
        }
        let heard = Heard::wait(&init_link, &payload_link, helper).inspect_err(|_| end(init))?;
        let Heard { built, listener, payload, confined } = heard;
        refusals.extend(built.refusals);
        refusals.extend(confined.refusals.iter().cloned());
        let standing = readback::standing(payload, &host.baseline, &surroundings.profile, &confined);
        Ok(Self {
            init,
            init_link,
            payload,
            payload_link,
            own_pid_namespace,
            own_user_namespace,
            own_root: built.own_root,
            leaf,
            memory_is_counted: confined.memory_is_counted,
            listener,
            refusals,
            standing,
        })
    }
}

/// What init and payload say of themselves when they are done.
struct Heard {
    built: Built,
    listener: Option<OwnedFd>,
    payload: i32,
    confined: Confined,
}

impl Heard {
    fn wait(init_link: &OwnedFd, payload_link: &OwnedFd, helper: &OwnedFd) -> Result<Self, Failed> {
        let until = Instant::now() + BUILD_LIMIT;
        let lost = || io::Error::from_raw_os_error(libc::ECHILD);
        let (mut of_init, mut of_payload) = (None, None);
        loop {
            (of_init, of_payload) = match (of_init, of_payload) {
                (Some((built, listener)), Some((payload, confined))) => {
                    return Ok(Self { built, listener, payload, confined });
                }
                other => other,
            };
            let mut fds = [init_link, payload_link, helper].map(|fd| PollFd::new(fd, PollFlags::IN));
            let left = until.saturating_duration_since(Instant::now());
            match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
                Ok(0) => {
                    let late = io::Error::from_raw_os_error(libc::ETIMEDOUT);
                    return Err(at("building the surroundings")(late));
                }
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(at("building the surroundings")(error.into())),
            }
            let [init_says, payload_says, helper_is_gone] = fds.map(|fd| !fd.revents().is_empty());
            if helper_is_gone {
                return Err(at("building the surroundings")(io::ErrorKind::Interrupted.into()));
            }
            if init_says {
                let step = at("reading init's report");
                let packet = channel::receive(init_link.as_fd()).map_err(&step)?;
                if packet.bytes.is_empty() {
                    return Err(at("init was lost")(lost()));
                }
                match channel::parse(&packet).map_err(&step)? {
                    InitReport::Built(report) => of_init = Some((report, packet.fds.into_iter().next())),
                    InitReport::Failed { stage, errno } => {
                        return Err((stage, io::Error::from_raw_os_error(errno)));
                    }
                    _ => return Err(step(io::ErrorKind::InvalidData.into())),
                }
            } else if payload_says {
                let step = at("reading the payload's report");
                let packet = channel::receive(payload_link.as_fd()).map_err(&step)?;
                match (Said::parse(&packet.bytes).map_err(&step)?, packet.sender) {
                    (Said::Confined(report), Some(pid)) => of_payload = Some((pid, report)),
                    (Said::Failed { stage, errno }, _) => {
                        return Err((stage, io::Error::from_raw_os_error(errno)));
                    }
                    (Said::Gone, _) => return Err(at("confining the payload")(lost())),
                    _ => return Err(step(io::ErrorKind::InvalidData.into())),
                }
            }
        }
    }
}
