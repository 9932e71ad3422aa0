//! One execution in its surroundings, from the request to the outcome: read-back, clocks, kill.
//!
//! Leaves out how the surroundings are built ([`super::supervisor`]), and which cause stands and what is accounted ([`ending`]).
//! Invariant: there is an outcome only when init says that
//! nothing is left, or when init is gone and what it left is killed.

mod ending;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::ending::{Ending, cause_of};
use super::cgroup::{self, Leaf};
use super::channel;
use super::control::Layer;
use super::outcome::{ExitCause, FileProblem};
use super::readback::{self, Standing};
use super::rlimits;
use super::spec::Spec;
use super::supervisor::Tree;
use super::sys;
use super::tree;
use super::wire::{
    CpuAndFaults, GO, InitReport, KillReason, Order, Program, Ready, Refusal, Report, Request, Said,
};

/// How long the payload may take to be ready for its program, inputs put in their places included.
const SETUP_LIMIT: Duration = Duration::from_secs(10);
/// How long init gets to kill and account for the tree before it is killed itself, the accounting lost.
const KILL_GRACE: Duration = Duration::from_secs(2);
/// How often a kill is repeated until the tree is gone.
const KILL_INTERVAL: Duration = Duration::from_millis(10);
/// Bounds of the time between two looks at the tree's processor time.
const CPU_CHECK_MIN: Duration = Duration::from_millis(2);
const CPU_CHECK_MAX: Duration = Duration::from_millis(250);

/// What an execution is made from, beside its surroundings.
pub(super) struct Given<'a> {
    pub(super) spec: &'a Spec,
    /// The variables of a program whose environment is to be left as it is.
    pub(super) inherited: Vec<(String, String)>,
    pub(super) inputs: Vec<OwnedFd>,
    pub(super) stdio: [OwnedFd; 3],
}

/// Why there are no files.
pub(super) const NOT_RUN: &str = "the program did not run";

pub(super) fn no_files(spec: &Spec, problem: &str) -> Vec<Option<FileProblem>> {
    spec.outputs.iter().map(|_| Some(FileProblem(problem.to_owned()))).collect()
}

pub(super) fn launch_failed(stage: impl Into<String>, error: &io::Error) -> ExitCause {
    ExitCause::LaunchFailed { stage: stage.into(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
}

/// Who a supervisor listens to.
#[derive(Clone, Copy)]
enum Source {
    Init,
    Payload,
    Agent,
    Helper,
}

pub(super) struct Execution<'a> {
    spec: &'a Spec,
    control: &'a OwnedFd,
    helper: &'a OwnedFd,
    init: i32,
    init_link: OwnedFd,
    payload: i32,
    payload_link: Option<OwnedFd>,
    own_pid_namespace: bool,
    own_user_namespace: bool,
    leaf: Option<Leaf>,
    memory_is_counted: bool,
    refusals: Vec<Refusal>,
    standing: Standing,
    /// Until inputs are there.
    waiting: Option<Waiting>,
    /// Until init has its order.
    order: Option<(Order, Vec<OwnedFd>)>,
    cwd: PathBuf,
    started: Instant,
    /// What the payload used before it became the program.
    before: CpuAndFaults,
    prepared: bool,
    main_has_ended: bool,
    released: Option<Instant>,
    next_cpu_check: Option<Instant>,
    ending: Option<Ending>,
    done: Option<Done>,
    listener: Option<OwnedFd>,
}

/// What only the payload's message needs.
struct Waiting {
    inherited: Vec<(String, String)>,
    stdio: [OwnedFd; 3],
}

/// What init said last.
struct Done {
    usage: CpuAndFaults,
    files: Vec<Option<FileProblem>>,
    fds: Vec<OwnedFd>,
    at: Instant,
}

impl<'a> Execution<'a> {
    /// Tells the payload its program, or first init the inputs.
    pub(super) fn new(
        tree: Tree,
        given: Given<'a>,
        control: &'a OwnedFd,
        helper: &'a OwnedFd,
        fallback_work: &Path,
    ) -> Self {
        let Tree {
            init,
            init_link,
            payload,
            payload_link,
            own_pid_namespace,
            own_user_namespace,
            own_root,
            mut leaf,
            memory_is_counted,
            listener,
            mut refusals,
            standing,
        } = tree;
        let Given { spec, inherited, inputs, stdio } = given;
        if let Some(leaf) = &mut leaf {
            leaf.limit(&spec.limits, &mut refusals);
        }
        let order = Order { inputs: spec.inputs.clone(), outputs: spec.outputs.clone() };
        let mut execution = Self {
            spec,
            control,
            helper,
            init,
            init_link,
            payload,
            payload_link: Some(payload_link),
            own_pid_namespace,
            own_user_namespace,
            leaf,
            memory_is_counted,
            refusals,
            standing,
            waiting: Some(Waiting { inherited, stdio }),
            order: Some((order, inputs)),
            cwd: if own_root { spec.cwd.clone() } else { fallback_cwd(spec, fallback_work) },
            started: Instant::now(),
            before: CpuAndFaults::default(),
            prepared: false,
            main_has_ended: false,
            released: None,
            next_cpu_check: None,
            ending: None,
            done: None,
            listener,
        };
        if spec.inputs.is_empty() {
            execution.send_program();
        } else {
            execution.give_order();
        }
        execution
    }

    /// Tells init what to put in place and to hand out. Where there is nothing to put, the program is on its way meanwhile.
    fn give_order(&mut self) {
        let Some((order, inputs)) = self.order.take() else { return };
        let fds = inputs.iter().map(AsFd::as_fd).collect::<Vec<_>>();
        match channel::send_files(&self.init_link, &order, &fds) {
            // Ended already: what it said before is about to be heard.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                self.fail("giving init its order", &error);
                // Without one it waits for ever.
                let _ = sys::send_signal(self.init, libc::SIGKILL);
            }
            _ => {}
        }
    }

    /// Sees it through and tells the outcome.
    pub(super) fn run(mut self) {
        let mut init_lives = true;
        // Once init says that nothing is left, all is known; its own end, and with it that of the namespaces, is awaited
        // after the outcome is told.
        while init_lives && self.done.is_none() {
            for source in self.wait_for_events() {
                match source {
                    Source::Init => init_lives = self.hear_init(),
                    Source::Payload => self.hear_payload(),
                    Source::Agent => self.hear_agent(),
                    Source::Helper => self.lose("the sandbox's helper ended"),
                }
            }
            self.check_clocks();
            self.push_kill();
        }
        let mut ended = None;
        if self.done.is_none() {
            // It may have reported and wait for a hang-up, its report unreadable.
            let _ = sys::send_signal(self.init, libc::SIGKILL);
            // Its end is that of its namespaces, which wait for every process in them.
            if let Some(leaf) = &mut self.leaf {
                leaf.kill();
                leaf.lift();
            }
            ended = sys::wait(Some(self.init), true).ok().flatten();
            // What it would have reaped was handed to this process.
            while tree::kill_below(i32::try_from(std::process::id()).unwrap_or(0)) > 0 {
                let _ = sys::wait(None, true);
            }
        }
        let (report, files) = self.outcome(ended.map(|ended| ended.usage.into()));
        let fds = files.iter().map(AsFd::as_fd).collect::<Vec<_>>();
        match (channel::send_files(self.control, &report, &fds), report) {
            // The kernel takes no more descriptors on their way: the outcome comes without the files.
            (Err(error), Report::Finished(mut ended)) if error.kind() != io::ErrorKind::BrokenPipe => {
                let problem = FileProblem(format!("its descriptor can't be handed out: {error}"));
                ended.files.iter_mut().for_each(|file| *file = Some(file.take().unwrap_or(problem.clone())));
                let _ = channel::send(self.control, &Report::Finished(ended));
            }
            // An agent that is gone needs no outcome.
            _ => {}
        }
    }

    /// Which of the other ends have something to say, or hung up.
    fn wait_for_events(&self) -> Vec<Source> {
        let mut sources = vec![(Source::Init, &self.init_link)];
        sources.extend(self.payload_link.as_ref().map(|link| (Source::Payload, link)));
        // Once the end has begun nobody can change it, and a hang-up would be readable for ever.
        if self.ending.is_none() {
            sources.extend([(Source::Agent, self.control), (Source::Helper, self.helper)]);
        }
        let mut fds = sources.iter().map(|(_, fd)| PollFd::new(fd, PollFlags::IN)).collect::<Vec<_>>();
        let timeout = Timespec::try_from(self.next_deadline().saturating_duration_since(Instant::now())).ok();
        // Interrupted or failed: nothing is ready, the clocks are looked at.
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return vec![];
        }
        let ready = sources.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        ready.map(|((source, _), _)| *source).collect()
    }

    fn next_deadline(&self) -> Instant {
        let now = Instant::now();
        if self.ending.is_some() {
            return now + KILL_INTERVAL;
        }
        match self.released {
            None if self.prepared => now + CPU_CHECK_MAX,
            None => self.started + SETUP_LIMIT,
            Some(_) => self
                .wall_deadline()
                .into_iter()
                .chain(self.next_cpu_check)
                .min()
                .unwrap_or(now + CPU_CHECK_MAX),
        }
    }

    fn wall_deadline(&self) -> Option<Instant> {
        Some(self.released? + Duration::from_millis(self.spec.limits.wall_ms))
    }

    fn check_clocks(&mut self) {
        let now = Instant::now();
        if self.ending.is_some() {
            return;
        }
        if !self.prepared && now > self.started + SETUP_LIMIT {
            let late = io::Error::from_raw_os_error(libc::ETIMEDOUT);
            self.stop(launch_failed("preparing the payload", &late));
        }
        if self.wall_deadline().is_some_and(|deadline| now >= deadline) {
            self.stop(ExitCause::Timeout);
        }
        if self.next_cpu_check.is_some_and(|due| now >= due) {
            self.check_cpu(now);
        }
    }

    /// The next look is due when all processors together could have used up what is left.
    fn check_cpu(&mut self, now: Instant) {
        let budget = Duration::from_millis(self.spec.limits.cpu_ms);
        if self.leaf.as_ref().is_some_and(Leaf::out_of_memory) {
            self.stop(ExitCause::OutOfMemory);
            return;
        }
        let used = self.cpu_used();
        if used >= budget {
            self.stop(ExitCause::CpuLimit);
            return;
        }
        let processors =
            available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
        let wait = (budget.saturating_sub(used) / processors).clamp(CPU_CHECK_MIN, CPU_CHECK_MAX);
        self.next_cpu_check = Some(now + wait);
    }

    /// The cgroup counts exactly, and what ended too; without one the tree is walked.
    fn cpu_used(&self) -> Duration {
        let counted = self.leaf.as_ref().and_then(Leaf::cpu_used);
        counted.map_or_else(
            || {
                let own = Duration::from_micros(self.before.user_us + self.before.system_us);
                Duration::from_nanos(tree::cpu_ns(self.init)).saturating_sub(own)
            },
            cgroup::CpuTime::total,
        )
    }

    /// Repeated until init says that nothing is left.
    fn push_kill(&mut self) {
        let Some(ending) = self.ending.as_ref().filter(|_| self.done.is_none()) else {
            return;
        };
        // Beside what follows, and where there is a cgroup at once: init remains to account for the tree.
        if let Some(leaf) = &mut self.leaf {
            leaf.kill();
        }
        // Errors: init is gone, which its link says too.
        if ending.since.elapsed() > KILL_GRACE {
            let _ = sys::send_signal(self.init, libc::SIGKILL);
        } else if self.own_pid_namespace {
            let _ = sys::send_signal(self.init, libc::SIGTERM);
        } else {
            tree::kill_below(self.init);
        }
    }

    fn hear_init(&mut self) -> bool {
        let packet = match channel::receive(self.init_link.as_fd()) {
            Ok(packet) => packet,
            Err(error) => {
                self.fail("reading init's report", &error);
                return false;
            }
        };
        if packet.bytes.is_empty() {
            return false;
        }
        match channel::parse(&packet) {
            Ok(InitReport::Placed) => self.send_program(),
            Ok(InitReport::Failed { stage, errno }) => {
                self.fail(&stage, &io::Error::from_raw_os_error(errno));
            }
            Ok(InitReport::MainEnded { status }) => self.main_ended(status),
            Ok(InitReport::Done { status, usage, files }) => {
                self.main_ended(status);
                self.done = Some(Done { usage, files, fds: packet.fds, at: Instant::now() });
            }
            Ok(InitReport::Built(_)) => {
                self.fail("reading init's report", &io::ErrorKind::InvalidData.into());
            }
            Err(error) => self.fail("reading init's report", &error),
        }
        true
    }

    fn main_ended(&mut self, status: i32) {
        self.main_has_ended = true;
        // What it said before it ended explains the end better than its status.
        while self.payload_link.is_some() {
            self.hear_payload();
        }
        if self.released.is_none() {
            self.lose_payload();
        }
        self.stop(cause_of(status));
    }

    /// It ended before it was told to execute: no program ran.
    fn lose_payload(&mut self) {
        let lost = io::Error::from_raw_os_error(libc::ECHILD);
        self.stop(launch_failed("preparing the payload", &lost));
    }

    fn send_program(&mut self) {
        let (Some(Waiting { inherited, stdio }), Some(link)) = (self.waiting.take(), &self.payload_link)
        else {
            return;
        };
        let spec = self.spec;
        let inherited = inherited.into_iter().filter(|(key, _)| spec.env.iter().all(|(own, _)| own != key));
        let program = Program {
            name: spec.program.clone(),
            args: spec.args.clone(),
            env: spec.env.iter().cloned().chain(inherited).collect(),
            cwd: self.cwd.clone(),
        };
        let sent = channel::send_files(link, &program, &stdio.each_ref().map(AsFd::as_fd));
        match sent {
            // Ended already: what it said before is about to be heard.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                self.stop(launch_failed("telling the payload its program", &error));
            }
            _ => {}
        }
    }

    fn hear_payload(&mut self) {
        let Some(link) = &self.payload_link else { return };
        let packet = channel::receive(link.as_fd()).unwrap_or_default();
        match Said::parse(&packet.bytes) {
            // Closed by execve, or by its end.
            Ok(Said::Gone) => {
                self.payload_link = None;
                if self.released.is_none() {
                    self.lose_payload();
                }
            }
            // Its number may be another's by now.
            Ok(Said::Ready(_)) if self.ending.is_some() || self.main_has_ended => {}
            Ok(Said::Ready(report)) if !self.prepared => self.prepare(&report),
            Ok(Said::Failed { stage, errno }) => self.stop(ExitCause::LaunchFailed { stage, errno }),
            Ok(Said::Ready(_) | Said::Confined(_)) => {
                self.stop(launch_failed("reading the payload's report", &io::ErrorKind::InvalidData.into()));
            }
            Err(error) => self.stop(launch_failed("reading the payload's report", &error)),
        }
    }

    fn prepare(&mut self, report: &Ready) {
        self.before = report.usage;
        self.prepared = true;
        let pid = self.payload;
        let cgroup = self.leaf.as_ref().map(|leaf| leaf.read_back(pid));
        let mut rlimits = rlimits::plan(&self.spec.limits, self.own_user_namespace);
        if self.memory_is_counted && matches!(&cgroup, Some(Ok(held)) if held.limits_memory) {
            rlimits::free_address_space(&mut rlimits);
        }
        if !self.spec.omit.contains(&Layer::Rlimits)
            && let Err(error) = rlimits::apply(pid, &rlimits)
        {
            self.refusals.push(Refusal::new(Layer::Rlimits, "prlimit", &error));
        }
        let controls = readback::controls(readback::Prepared {
            pid,
            standing: &self.standing,
            env: &self.spec.env,
            environment: &report.environment,
            rlimits: &rlimits,
            rlimits_are_own: self.own_user_namespace,
            cgroup,
            refusals: &self.refusals,
        });
        let listener = self.listener.take();
        let listening = listener.as_ref().map(AsFd::as_fd);
        let told = channel::send_files(self.control, &Report::Prepared { controls }, listening.as_slice());
        if let Err(error) = told {
            self.stop(launch_failed("reporting the controls", &error));
        }
    }

    fn hear_agent(&mut self) {
        let packet = channel::receive(self.control.as_fd()).unwrap_or_default();
        match channel::parse(&packet) {
            Ok(Request::Release) if self.ending.is_some() => {}
            Ok(Request::Release) if self.prepared && self.released.is_none() => self.release(),
            Ok(Request::Kill(KillReason::OutputLimit)) => self.stop(ExitCause::OutputLimit),
            Ok(Request::Kill(KillReason::EgressLimit)) => self.stop(ExitCause::EgressLimit),
            Ok(Request::Kill(KillReason::Cancelled)) => self.stop(ExitCause::Cancelled),
            // Gone: nobody wants it any more.
            _ if packet.bytes.is_empty() => self.stop(ExitCause::Cancelled),
            _ => self.fail("reading the agent's request", &io::ErrorKind::InvalidData.into()),
        }
    }

    fn release(&mut self) {
        let now = Instant::now();
        self.released = Some(now);
        let first = Duration::from_millis(self.spec.limits.cpu_ms).clamp(CPU_CHECK_MIN, CPU_CHECK_MAX);
        self.next_cpu_check = Some(now + first / 2);
        if let Some(leaf) = &mut self.leaf {
            leaf.start_counting();
        }
        let gone = || Err(io::Error::from_raw_os_error(libc::ECHILD));
        let told =
            self.payload_link.as_ref().map_or_else(gone, |link| channel::send_with(link.as_fd(), &[GO], &[]));
        if let Err(error) = told {
            self.released = None;
            self.stop(launch_failed("releasing the payload", &error));
        }
        self.give_order();
    }
}

/// The working directory's place in the host's tree where there is no private root.
fn fallback_cwd(spec: &Spec, fallback_work: &Path) -> PathBuf {
    match spec.cwd.strip_prefix(&spec.profile.work.path) {
        Ok(below) => fallback_work.join(below),
        Err(_) => spec.cwd.clone(),
    }
}
