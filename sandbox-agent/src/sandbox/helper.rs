//! The helper process: one thread, forks a supervisor for each execution, reaps them, and dies with the agent.
//!
//! Leaves out what an execution is: it never reads a specification. Invariant: it has one thread and no state but its
//! children; when it ends, each supervisor sees its hang-up and kills its tree.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::exit;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit};

use super::readback::Baseline;
use super::seccomp::Filters;
use super::supervisor::{self, Host, Links};
use super::sys::{self, SingleThreaded};
use super::{channel, tree};

/// The first argument that makes a binary this helper. The rest: user id, group id, directory for work areas of hosts
/// that allow no private root.
pub(super) const ARGUMENT: &str = "__sandbox-helper";

/// Said by a helper that was built for an architecture without a list of system calls.
const NO_LIST: &str = "there is no list of system calls for this architecture";

/// Becomes the helper, never to return, if the first argument asks for it. To be called first in `main`, before any
/// thread exists.
pub fn run_if_requested() {
    let args = env::args().collect::<Vec<_>>();
    if args.get(1).is_none_or(|first| first != ARGUMENT) {
        return;
    }
    let [_, _, uid, gid, scratch] = &args[..] else { exit(2) };
    let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse()) else { exit(2) };
    match serve((uid, gid), Path::new(scratch)) {
        Ok(()) => exit(0),
        // The one way to be heard: the agent sees the socket close, its log shows this line.
        #[allow(clippy::print_stderr)]
        Err(error) => {
            eprintln!("sandbox helper: {error}");
            exit(1)
        }
    }
}

fn serve(user: (u32, u32), scratch: &Path) -> io::Result<()> {
    let single = SingleThreaded::verify()?;
    // The agent's socket came as stdin; the low numbers must stay occupied for the payload's own streams.
    let agent = io::stdin().as_fd().try_clone_to_owned()?;
    let null = fs::File::open("/dev/null")?;
    sys::place_at(null.as_fd(), 0, false)?;
    drop(null);
    // Out of the terminal's foreground group: an interrupt is for the agent, which ends this process by closing.
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
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
    };
    let (life_read, life_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let born = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let mut supervisors =
        Supervisors { fallback: scratch.to_owned(), born, started: 0, running: HashMap::new() };
    loop {
        let mut fds = [PollFd::new(&agent, PollFlags::IN), PollFd::new(&children, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [of_agent, of_children] = fds.map(|fd| !fd.revents().is_empty());
        if of_children {
            let mut drained = [0; 1024];
            // Level-triggered and coalesced: what counts is that reaping follows.
            let _ = rustix::io::read(&children, &mut drained);
            supervisors.reap();
        }
        if of_agent {
            let packet = channel::receive(agent.as_fd())?;
            if packet.bytes.is_empty() && packet.fds.is_empty() {
                return Ok(());
            }
            let Ok([control, stdin, stdout, stderr]) = <[OwnedFd; 4]>::try_from(packet.fds) else {
                continue;
            };
            let links = Links { control, stdio: [stdin, stdout, stderr], helper: life_read.try_clone()? };
            let work = supervisors.next_work_directory();
            let ours = [&agent, &children, &life_write, &life_read].map(AsRawFd::as_raw_fd);
            let forked = single.fork(|| {
                // Held open here, these would hide the helper's death from agent and supervisors.
                sys::close_inherited(&ours);
                supervisor::run(&host, links, &work)
            });
            // Without a supervisor the agent sees its control socket close: the execution failed to launch.
            if let Ok(pid) = forked {
                supervisors.running.insert(pid, work);
            }
        }
    }
}

/// The running supervisors and where each one's payload works if there can be no private root.
struct Supervisors {
    fallback: PathBuf,
    /// Tells this helper's directories from those that a killed one with the same process id left.
    born: u128,
    started: u64,
    running: HashMap<i32, PathBuf>,
}

impl Supervisors {
    fn next_work_directory(&mut self) -> PathBuf {
        self.started += 1;
        let (pid, born) = (std::process::id(), self.born);
        self.fallback.join(format!("exchequer-sandbox-{pid}-{born}-{}", self.started))
    }

    fn reap(&mut self) {
        let mut lost = false;
        while let Ok(Some(ended)) = sys::wait(None, false) {
            match self.running.remove(&ended.pid) {
                Some(_) if ended.status == 0 => {}
                // Killed or crashed: it could clean up nothing.
                Some(work) => {
                    lost = true;
                    let _ = fs::remove_dir_all(work);
                }
                None => lost = true,
            }
        }
        if lost {
            self.kill_strays();
        }
    }

    /// Kills what was handed down by a supervisor that died before its tree. Each death comes back to [`Self::reap`].
    fn kill_strays(&self) {
        let me = i32::try_from(std::process::id()).unwrap_or(0);
        for pid in tree::children(me).into_iter().filter(|pid| !self.running.contains_key(pid)) {
            // Errors: already gone.
            let _ = sys::send_signal(pid, libc::SIGKILL);
        }
    }
}
