//! The helper process: one thread, forks a supervisor for each execution, reaps them, and dies with the agent.
//!
//! Leaves out what an execution is: it never reads a specification. Invariant: it has one thread, and knows nothing but its
//! children and their cgroups; when it ends, each supervisor sees its hang-up and kills its tree.

use std::collections::{HashMap, VecDeque};
use std::env;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit};

use super::cgroup::{Parent, Stock};
use super::execution::launch_failed;
use super::outcome::Usage;
use super::readback::Baseline;
use super::seccomp::Filters;
use super::supervisor::{self, Host, Links};
use super::sys::{self, SingleThreaded};
use super::wire::{EXECUTE, Ended, Report, split_request};
use super::{channel, tree};

/// The first argument that makes a binary this helper. The rest: user id, group id, how many surroundings to build
/// ahead, how old they get (milliseconds), directory for work areas of hosts that allow no private root.
pub(super) const ARGUMENT: &str = "__sandbox-helper";

/// Said by a helper that was built for an architecture without a list of system calls.
const NO_LIST: &str = "there is no list of system calls for this architecture";

/// How long building ahead waits for an execution to end.
const REFILL_PAUSE: Duration = Duration::from_millis(50);

/// Becomes the helper, never to return, if the first argument asks for it. To be called first in `main`, before any
/// thread exists.
pub fn run_if_requested() {
    let args = env::args().collect::<Vec<_>>();
    if args.get(1).is_none_or(|first| first != ARGUMENT) {
        return;
    }
    let [_, _, uid, gid, ready, age_ms, scratch] = &args[..] else { exit(2) };
    let (Ok(uid), Ok(gid), Ok(ready)) = (uid.parse(), gid.parse(), ready.parse()) else { exit(2) };
    let Ok(ready_age) = age_ms.parse().map(Duration::from_millis) else { exit(2) };
    match serve((uid, gid), ready, ready_age, Path::new(scratch)) {
        Ok(()) => exit(0),
        // The one way to be heard: the agent sees the socket close, its log shows this line.
        #[allow(clippy::print_stderr)]
        Err(error) => {
            eprintln!("sandbox helper: {error}");
            exit(1)
        }
    }
}

fn serve(user: (u32, u32), ready: usize, ready_age: Duration, scratch: &Path) -> io::Result<()> {
    let single = SingleThreaded::verify()?;
    // The agent's socket came as stdin; the low numbers must stay occupied for the payload's own streams.
    let agent = io::stdin().as_fd().try_clone_to_owned()?;
    let null = fs::File::open("/dev/null")?;
    sys::place_at(null.as_fd(), 0, false)?;
    drop(null);
    // Out of the terminal's foreground group: an interrupt is for the agent, which ends this process by closing.
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    // Supervisors, who are no longer root, read what is made here.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // What a killed supervisor leaves behind comes here.
    rustix::process::set_child_subreaper(Pid::from_raw(1))?;
    sys::block_exactly(&[libc::SIGCHLD]);
    let children = sys::signal_descriptor(&[libc::SIGCHLD])?;
    // For payloads to look for, in the keyring that they must not have. Without keyrings there is nothing to find: the
    // read-back says so.
    let _ = sys::join_session_keyring().and_then(|()| sys::add_key());
    let host = Host {
        baseline: Baseline::of_this_process()?,
        filters: Filters::compile().ok_or_else(|| io::Error::other(NO_LIST))?,
        user,
        single,
        cgroups: Arc::new(Parent::make()),
    };
    let (life_read, _life_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let born = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let cgroups = Stock::open(Arc::clone(&host.cgroups), single);
    let mut supervisors = Supervisors {
        fallback: scratch.to_owned(),
        born,
        started: 0,
        running: HashMap::new(),
        ready: VecDeque::new(),
        ready_age,
        used: None,
        life: life_read,
        cgroups,
    };
    loop {
        let mut fds = [PollFd::new(&agent, PollFlags::IN), PollFd::new(&children, PollFlags::IN)];
        let timeout = supervisors.next_work().and_then(|wait| Timespec::try_from(wait).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [of_agent, of_children] = fds.map(|fd| !fd.revents().is_empty());
        // First: somebody waits for it.
        if of_agent && !supervisors.hear(&host, &agent)? {
            return Ok(());
        }
        supervisors.renew(&host);
        if of_children {
            let mut drained = [0; 1024];
            // Level-triggered and coalesced: what counts is that reaping follows.
            let _ = rustix::io::read(&children, &mut drained);
            supervisors.reap(single);
            supervisors.refill(&host, ready);
        } else if supervisors.is_refill_late() {
            supervisors.refill(&host, ready);
        }
    }
}

/// Says on its control socket, the first of a request's descriptors, that an execution has no supervisor.
fn refuse(fds: &[BorrowedFd<'_>], stage: &str, error: &io::Error) {
    let cause = launch_failed(stage, error);
    let ended = Ended { cause, usage: Usage::default(), files: vec![] };
    // An agent that is gone needs no answer; one that gets none sees the socket close.
    let _ = fds.first().map(|control| channel::send(control, &Report::Finished(ended)));
}

/// The running supervisors and where each one's payload works if there can be no private root.
struct Supervisors {
    fallback: PathBuf,
    /// Tells this helper's directories from those that a killed one with the same process id left.
    born: u128,
    started: u64,
    /// With its cgroup.
    running: HashMap<i32, (PathBuf, Option<u64>)>,
    /// Those that wait for a request, oldest first.
    ready: VecDeque<Ready>,
    /// How old those get before newer ones take their place.
    ready_age: Duration,
    /// What was asked for last and is to be built ahead again, and when that was.
    used: Option<(Vec<u8>, Instant)>,
    /// Hangs up when this process dies.
    life: OwnedFd,
    cgroups: Stock,
}

/// A supervisor whose surroundings are built and were never used.
struct Ready {
    pid: i32,
    surroundings: Vec<u8>,
    order: OwnedFd,
    since: Instant,
}

impl Supervisors {
    /// Takes a request; false if the agent is gone.
    fn hear(&mut self, host: &Host, agent: &OwnedFd) -> io::Result<bool> {
        let packet = match channel::receive(agent.as_fd()) {
            // More descriptors than this process may have: its control socket is closed with the others.
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => return Ok(true),
            other => other?,
        };
        if packet.bytes.is_empty() && packet.fds.is_empty() {
            return Ok(false);
        }
        let Some(request @ (kind, surroundings, _)) = split_request(&packet.bytes) else { return Ok(true) };
        let fds = packet.fds.iter().map(AsFd::as_fd).collect::<Vec<_>>();
        if let Err((stage, error)) = self.execute(host, request, &fds) {
            refuse(&fds, stage, &error);
        }
        if kind == EXECUTE {
            self.used = Some((surroundings.to_vec(), Instant::now()));
        }
        Ok(true)
    }

    /// Hands the execution to a supervisor that waits in such surroundings, if it may be such a one, or else to a new one.
    fn execute(
        &mut self,
        host: &Host,
        (kind, surroundings, wanted): (u8, &[u8], &[u8]),
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), (&'static str, io::Error)> {
        let hand_over = |ready: &Ready| channel::send_with(ready.order.as_fd(), wanted, fds);
        let fits = |ready: &Ready| kind == EXECUTE && ready.surroundings == surroundings;
        while let Some(place) = self.ready.iter().position(fits) {
            let Some(ready) = self.ready.remove(place) else { break };
            match hand_over(&ready) {
                // It ended meanwhile.
                Err(gone) if gone.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) => {
                    self.ready.insert(place, ready);
                    return Err(("handing the execution over", error));
                }
                Ok(()) => return Ok(()),
            }
        }
        let new = self.start(host, surroundings, false).map_err(|error| ("starting a supervisor", error))?;
        hand_over(&new).map_err(|error| ("handing the execution over", error))
    }

    /// Builds surroundings like those used last ahead, in the place of those asked for longest ago. When an execution has ended, or after a
    /// pause: entering a cgroup keeps every process of the host from forking, executing and ending for milliseconds.
    fn refill(&mut self, host: &Host, wanted: usize) {
        let Some((surroundings, _)) = self.used.take() else { return };
        let surroundings = surroundings.as_slice();
        let there = self.ready.iter().filter(|ready| ready.surroundings == surroundings).count();
        for _ in there..wanted {
            if self.ready.len() >= wanted {
                self.ready.pop_front();
            }
            match self.start(host, surroundings, true) {
                Ok(ready) => self.ready.push_back(ready),
                // No processes or descriptors to spare: the next execution tries again for itself.
                Err(_) => return,
            }
        }
    }

    fn next_work(&self) -> Option<Duration> {
        let renewal = self.ready.front().map(|oldest| self.ready_age.saturating_sub(oldest.since.elapsed()));
        let refill = self.used.as_ref().map(|(_, since)| REFILL_PAUSE.saturating_sub(since.elapsed()));
        renewal.into_iter().chain(refill).min()
    }

    /// Whether no execution has ended for so long that the next one would miss what is to be built ahead.
    fn is_refill_late(&self) -> bool {
        self.used.as_ref().is_some_and(|(_, since)| since.elapsed() >= REFILL_PAUSE)
    }

    /// Old ones end when their link is dropped, which is once the new one is there: where none can be started, old ones that serve are
    /// better than none, and are young again until the next try. The new one is the youngest: at the back. Each once at a time: on a host
    /// so busy that the new ones are old already, requests come first.
    fn renew(&mut self, host: &Host) {
        for _ in 0..self.ready.len() {
            if self.ready.front().is_none_or(|oldest| oldest.since.elapsed() < self.ready_age) {
                return;
            }
            let Some(old) = self.ready.pop_front() else { return };
            let renewed = self.start(host, &old.surroundings, true);
            self.ready.push_back(renewed.unwrap_or_else(|_| Ready { since: Instant::now(), ..old }));
        }
    }

    fn start(&mut self, host: &Host, surroundings: &[u8], is_ahead: bool) -> io::Result<Ready> {
        let (order, theirs) = channel::pair()?;
        let links = Links { order: theirs, helper: self.life.try_clone()? };
        let work = self.next_work_directory();
        let taken = self.cgroups.take();
        let leaf = taken.as_ref().and_then(|taken| taken.as_ref().ok().copied());
        let forked = host.single.fork(|| {
            // Held open here, the others would hide the helper's death from the agent and from other supervisors.
            match sys::keep_only(&[links.order.as_fd(), links.helper.as_fd()]) {
                Ok(()) => supervisor::run(host, links, surroundings, is_ahead, &work, taken),
                Err(_) => 1,
            }
        });
        let pid = forked.inspect_err(|_| {
            if let Some(number) = leaf {
                self.cgroups.give_back(number);
            }
        })?;
        self.running.insert(pid, (work, leaf));
        Ok(Ready { pid, surroundings: surroundings.to_vec(), order, since: Instant::now() })
    }

    fn next_work_directory(&mut self) -> PathBuf {
        self.started += 1;
        let (pid, born) = (std::process::id(), self.born);
        self.fallback.join(format!("exchequer-sandbox-{pid}-{born}-{}", self.started))
    }

    fn reap(&mut self, single: SingleThreaded) {
        let mut lost = false;
        while let Ok(Some(ended)) = sys::wait(None, false) {
            self.ready.retain(|ready| ready.pid != ended.pid);
            if self.cgroups.is_keeper(ended.pid) {
                let in_use = self.running.values().filter_map(|(_, leaf)| *leaf).collect::<Vec<_>>();
                self.cgroups.replace_keeper(single, &in_use);
                continue;
            }
            let Some((work, leaf)) = self.running.remove(&ended.pid) else {
                lost = true;
                continue;
            };
            if let Some(number) = leaf {
                self.cgroups.give_back(number);
            }
            // Killed or crashed, it could clean up nothing.
            lost |= ended.status != 0;
            // Or only a part: a program can close its directories to the user that it ran as.
            if work.exists() {
                let _ = fs::remove_dir_all(work);
            }
        }
        if lost {
            self.kill_strays();
        }
    }

    /// Kills what was handed down by a supervisor that died before its tree. Each death comes back to [`Self::reap`].
    fn kill_strays(&self) {
        let me = i32::try_from(std::process::id()).unwrap_or(0);
        let known = |pid: &i32| self.running.contains_key(pid) || self.cgroups.is_keeper(*pid);
        for pid in tree::children(me).into_iter().filter(|pid| !known(pid)) {
            // Errors: already gone.
            let _ = sys::send_signal(pid, libc::SIGKILL);
        }
    }
}
