//! The agent's side: starts the helper, asks for executions, shows their controls, streams their output.
//!
//! Leaves out what to do about a missing control, and concurrency limits. Invariant: a program runs only after
//! [`Prepared::release`]; dropping any value of this module ends what it stands for.

use std::io;
use std::net::TcpListener;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::channel::{self, MAX_PACKET_BYTES};
use super::control::{Control, Layer};
use super::helper;
use super::outcome::{ExitCause, FileProblem, Outcome};
use super::spec::{Spec, SpecFault};
use super::wire::{EXECUTE, EXECUTE_ONCE, Ended, Report, Request, Surroundings, Wanted, join_request};

pub use super::wire::KillReason;

/// How long helper and supervisor may take to answer. A supervisor bounds building the surroundings and preparing the payload itself,
/// by 10 s each.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Largest piece of output handed on at once.
const CHUNK_BYTES: usize = 16 << 10;
/// Executions that are built ahead of being asked for, unless told otherwise.
const READY: usize = 2;
/// How old they get, unless told otherwise.
const READY_AGE: Duration = Duration::from_secs(60);
/// How old they may get: below, the helper would do little but renew them; above, they show a host that is long gone.
const READY_AGES: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(24 * 60 * 60);

/// How a sandbox is started.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// The binary that becomes the helper; it must call [`helper::run_if_requested`] first.
    pub helper: PathBuf,
    /// The host's user id for payloads if the agent is root; never 0.
    pub uid: u32,
    /// The host's group id for payloads if the agent is root; never 0.
    pub gid: u32,
    /// Where hosts that allow no private root get their work areas.
    pub scratch: PathBuf,
    /// How many executions' surroundings are built ahead, for the profile asked for last; each serves one execution. Each
    /// takes three sleeping processes and a few MiB.
    pub ready: usize,
    /// How old they get before newer ones take their place, in whole milliseconds, from 100 ms to a day: files that were replaced on the
    /// host since are seen as they were.
    pub ready_age: Duration,
}

impl Default for StartOptions {
    /// This binary, `nobody`, the system's temporary directory.
    fn default() -> Self {
        const NOBODY: u32 = 65_534;
        Self {
            helper: PathBuf::from("/proc/self/exe"),
            uid: NOBODY,
            gid: NOBODY,
            scratch: std::env::temp_dir(),
            ready: READY,
            ready_age: READY_AGE,
        }
    }
}

/// Why an execution could not be prepared or followed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The specification is at fault.
    #[error(transparent)]
    Spec(#[from] SpecFault),
    /// The payload's surroundings could not be made; nothing was executed.
    #[error("launch failed: {stage}: {}", io::Error::from_raw_os_error(*errno))]
    Launch {
        /// What failed.
        stage: String,
        /// The kernel's error number.
        errno: i32,
    },
    /// The supervisor of this execution died; its processes died with it.
    #[error("the execution's supervisor was lost")]
    SupervisorLost,
    /// It was released and its end not seen, by this cause; its processes are gone.
    #[error("the execution was lost: {0}")]
    Lost(String),
    /// Helper, sockets or pipes failed.
    #[error("sandbox: {0}")]
    Io(#[from] io::Error),
}

/// Which stream a chunk is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The stream.
    pub stream: Stream,
    /// The bytes, in the stream's order; at least one.
    pub bytes: Bytes,
}

/// What an execution is given beside its specification.
#[derive(Debug, Default)]
pub struct Given {
    /// All of its standard input; without one it is empty.
    pub stdin: Option<Vec<u8>>,
    /// The contents of [`Spec::inputs`], in order: regular files (or memory files), read from their beginning.
    pub files: Vec<OwnedFd>,
}

impl From<Option<Vec<u8>>> for Given {
    fn from(stdin: Option<Vec<u8>>) -> Self {
        Self { stdin, files: Vec::new() }
    }
}

/// A socket to another process of the sandbox. Not a stream but packets: tokio's type only lends its readiness.
type Link = UnixStream;

fn link(end: OwnedFd) -> io::Result<Link> {
    let end = std::os::unix::net::UnixStream::from(end);
    end.set_nonblocking(true)?;
    UnixStream::from_std(end)
}

async fn send(link: &Link, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let fds = fds.iter().map(AsFd::as_fd).collect::<Vec<_>>();
    link.async_io(Interest::WRITABLE, || channel::send_with(link.as_fd(), bytes, &fds)).await
}

async fn receive(link: &Link) -> Result<(Report, Vec<OwnedFd>), SandboxError> {
    let packet = link.async_io(Interest::READABLE, || channel::receive(link.as_fd())).await?;
    if packet.bytes.is_empty() {
        return Err(SandboxError::SupervisorLost);
    }
    Ok((channel::parse(&packet)?, packet.fds))
}

fn kill(link: &Link, reason: KillReason) {
    // A full or closed socket: the supervisor is gone or about to end this execution anyway.
    let _ = channel::send(link, &Request::Kill(reason));
}

struct HelperProcess {
    link: Link,
    process: Child,
}

impl HelperProcess {
    fn start(options: &StartOptions) -> io::Result<Self> {
        let (ours, theirs) = channel::pair()?;
        let process = Command::new(&options.helper)
            .arg(helper::ARGUMENT)
            .args([options.uid, options.gid].map(|id| id.to_string()))
            .arg(options.ready.to_string())
            .arg(options.ready_age.as_millis().to_string())
            .arg(&options.scratch)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()?;
        Ok(Self { link: link(ours)?, process })
    }
}

/// The sandbox of an agent. Cheap to clone; the helper ends with the last clone and execution, and with the process.
#[derive(Clone)]
pub struct Sandbox {
    options: Arc<StartOptions>,
    helper: Arc<Mutex<HelperProcess>>,
}

impl Sandbox {
    /// Starts the helper. Within a tokio runtime.
    pub fn start(options: StartOptions) -> io::Result<Self> {
        if options.uid == 0 || options.gid == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "payloads must not be the host's root"));
        }
        if !READY_AGES.contains(&options.ready_age) {
            let problem = "what is built ahead gets 100 ms to a day old";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        let helper = HelperProcess::start(&options)?;
        Ok(Self { options: Arc::new(options), helper: Arc::new(Mutex::new(helper)) })
    }

    /// How it was started.
    pub fn options(&self) -> &StartOptions {
        &self.options
    }

    /// The helper's process id, if it has not been found dead.
    pub async fn helper_pid(&self) -> Option<u32> {
        self.helper.lock().await.process.id()
    }

    /// Builds an execution up to the moment before `execve`. Output is sent to `output`, which must be drained while it
    /// runs: a full channel stops the program, not the clock. A helper found dead is started again.
    pub async fn prepare(
        &self,
        spec: &Spec,
        given: impl Into<Given>,
        output: mpsc::Sender<Chunk>,
    ) -> Result<Prepared, SandboxError> {
        // Surroundings with a layer left off are not for anybody else.
        let kind = if spec.omit.is_empty() { EXECUTE } else { EXECUTE_ONCE };
        self.prepare_as(kind, spec, given.into(), output).await
    }

    /// As [`Self::prepare`], in surroundings of which nothing was built or read before.
    pub(super) async fn prepare_afresh(
        &self,
        spec: &Spec,
        output: mpsc::Sender<Chunk>,
    ) -> Result<Prepared, SandboxError> {
        self.prepare_as(EXECUTE_ONCE, spec, Given::default(), output).await
    }

    async fn prepare_as(
        &self,
        kind: u8,
        spec: &Spec,
        given: Given,
        output: mpsc::Sender<Chunk>,
    ) -> Result<Prepared, SandboxError> {
        spec.check()?;
        let Given { stdin, files } = given;
        if files.len() != spec.inputs.len() {
            let problem = format!("has {} paths, {} contents were given", spec.inputs.len(), files.len());
            return Err(SpecFault { field: "inputs".to_owned(), problem }.into());
        }
        let (control, control_end) = channel::pair()?;
        let (stdin_end, stdin_write) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        let (stdout_read, stdout_end) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        let (stderr_read, stderr_end) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        let mut fds = vec![control_end, stdin_end, stdout_end, stderr_end];
        fds.extend(files);
        let until = Instant::now() + ANSWER_LIMIT;
        let late =
            || SandboxError::Launch { stage: "waiting for the sandbox".to_owned(), errno: libc::ETIMEDOUT };
        timeout_at(until, self.ask_helper(&ask(kind, spec)?, &fds)).await.map_err(|_| late())??;
        drop(fds);
        let control = link(control)?;
        let (stdin, stdout, stderr) = (
            (pipe::Sender::from_owned_fd(stdin_write)?, stdin.unwrap_or_default()),
            pipe::Receiver::from_owned_fd(stdout_read)?,
            pipe::Receiver::from_owned_fd(stderr_read)?,
        );
        // A helper or supervisor that does not get as far as watching its own clock; dropping the socket ends what there is.
        let (report, fds) = timeout_at(until, receive(&control)).await.map_err(|_| late())??;
        match report {
            Report::Prepared { controls } => Ok(Prepared {
                controls,
                listener: fds.into_iter().next().map(TcpListener::from),
                helper: Arc::clone(&self.helper),
                control: Arc::new(control),
                stdin,
                stdout,
                stderr,
                output: Output::new(output, spec.limits.output_bytes),
            }),
            Report::Finished(Ended { cause: ExitCause::LaunchFailed { stage, errno }, .. }) => {
                Err(SandboxError::Launch { stage, errno })
            }
            Report::Lost(why) => Err(SandboxError::Lost(why)),
            Report::Finished(_) => Err(SandboxError::SupervisorLost),
        }
    }

    async fn ask_helper(&self, ask: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
        let mut helper = self.helper.lock().await;
        let Err(first) = send(&helper.link, ask, fds).await else {
            return Ok(());
        };
        if !matches!(first.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) {
            return Err(first);
        }
        // Reaped here; its supervisors have seen its death themselves.
        let _ = helper.process.try_wait();
        *helper = HelperProcess::start(&self.options)?;
        send(&helper.link, ask, fds).await
    }
}

/// An execution whose process waits, fully confined, for the word to become the program. Dropping it aborts.
pub struct Prepared {
    controls: Vec<Control>,
    listener: Option<TcpListener>,
    /// Its end would be the execution's.
    helper: Arc<Mutex<HelperProcess>>,
    control: Arc<Link>,
    stdin: (pipe::Sender, Vec<u8>),
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    output: Output,
}

impl Prepared {
    /// One control per layer, as read back from the kernel for this very process.
    pub fn controls(&self) -> &[Control] {
        &self.controls
    }

    /// The socket that listens on the loopback inside, if the profile's network is [`super::Network::Egress`] and the
    /// kernel gave one; once.
    pub fn take_listener(&mut self) -> Option<TcpListener> {
        self.listener.take()
    }

    /// What can end it from elsewhere.
    pub fn killer(&self) -> Killer {
        Killer(Arc::downgrade(&self.control))
    }

    /// Lets the program run.
    pub async fn release(self) -> Result<Running, SandboxError> {
        let word = serde_json::to_vec(&Request::Release).map_err(io::Error::from)?;
        match send(&self.control, &word, &[]).await {
            // It ended meanwhile, and has said why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
        let control = Arc::clone(&self.control);
        Ok(Running { control, task: tokio::spawn(self.follow()) })
    }

    /// Ends it unexecuted, and waits until its payload is gone; the engine's own processes go by themselves.
    pub async fn abort(self) -> Result<(), SandboxError> {
        kill(&self.control, KillReason::Cancelled);
        receive(&self.control).await.map(drop)
    }

    async fn follow(self) -> Result<Outcome, SandboxError> {
        let Self { control, stdin: (mut stdin, input), stdout, stderr, output, helper: _helper, .. } = self;
        let feed = async {
            // A program need not read its input: a closed pipe is no failure.
            let _ = stdin.write_all(&input).await;
            drop(stdin);
        };
        let (report, (), out, err) = tokio::join!(
            receive(&control),
            feed,
            output.pump(Stream::Stdout, stdout, &control),
            output.pump(Stream::Stderr, stderr, &control),
        );
        let (ended, fds) = match report? {
            (Report::Finished(ended), fds) => (ended, fds),
            (Report::Lost(why), _) => return Err(SandboxError::Lost(why)),
            (Report::Prepared { .. }, _) => return Err(SandboxError::SupervisorLost),
        };
        let mut outcome = outcome(ended, fds);
        out?;
        err?;
        outcome.usage.output_bytes = output.passed.load(Ordering::Relaxed);
        // It may have ended by itself before the kill reached it, its output cut all the same.
        if output.exceeded.load(Ordering::Relaxed) && matches!(outcome.cause, ExitCause::Exited { .. }) {
            outcome.cause = ExitCause::OutputLimit;
        }
        Ok(outcome)
    }
}

/// What the helper is asked.
fn ask(kind: u8, spec: &Spec) -> io::Result<Vec<u8>> {
    let surroundings = serde_json::to_vec(&Surroundings::of(spec))?;
    let wanted = serde_json::to_vec(&Wanted::new(spec, environment_for(spec)))?;
    let packet = join_request(kind, &surroundings, &wanted);
    if packet.len() > MAX_PACKET_BYTES {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    Ok(packet)
}

/// The environment that a program gets when the layer against that is left off.
fn environment_for(spec: &Spec) -> Vec<(String, String)> {
    if spec.omit.contains(&Layer::CleanEnv) { std::env::vars().collect() } else { Vec::new() }
}

fn outcome(ended: Ended, fds: Vec<OwnedFd>) -> Outcome {
    let mut fds = fds.into_iter();
    let mut file = |problem: Option<FileProblem>| match problem {
        Some(problem) => Err(problem),
        None => fds.next().ok_or_else(|| FileProblem("its descriptor was lost".to_owned())),
    };
    Outcome {
        cause: ended.cause,
        usage: ended.usage,
        files: ended.files.into_iter().map(&mut file).collect(),
    }
}

struct Output {
    to: mpsc::Sender<Chunk>,
    limit: u64,
    passed: AtomicU64,
    exceeded: AtomicBool,
}

impl Output {
    fn new(to: mpsc::Sender<Chunk>, limit: u64) -> Self {
        Self { to, limit, passed: AtomicU64::new(0), exceeded: AtomicBool::new(false) }
    }

    /// How many of `count` bytes may still pass.
    fn take(&self, count: usize) -> usize {
        let take = |passed: u64| (self.limit - passed).min(count as u64);
        let before = self
            .passed
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |passed| Some(passed + take(passed)))
            .unwrap_or_default();
        usize::try_from(take(before)).unwrap_or(count)
    }

    async fn pump(&self, stream: Stream, mut from: pipe::Receiver, control: &Link) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = from.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            let taken = self.take(count);
            if taken > 0 {
                // Nobody listens any more: the rest is counted all the same.
                let _ = self.to.send(Chunk { stream, bytes: Bytes::copy_from_slice(&buffer[..taken]) }).await;
            }
            if taken < count && !self.exceeded.swap(true, Ordering::Relaxed) {
                kill(control, KillReason::OutputLimit);
            }
        }
    }
}

/// Ends an execution from elsewhere; keeps nothing alive.
#[derive(Clone)]
pub struct Killer(Weak<Link>);

impl Killer {
    /// Kills the whole tree; the outcome will name the reason unless it ended before.
    pub fn kill(&self, reason: KillReason) {
        if let Some(link) = self.0.upgrade() {
            kill(&link, reason);
        }
    }
}

/// An execution whose program runs. Dropping it kills the whole tree.
pub struct Running {
    control: Arc<Link>,
    task: JoinHandle<Result<Outcome, SandboxError>>,
}

impl Running {
    /// Kills the whole tree; the outcome will say `Cancelled` unless it ended before.
    pub fn kill(&self) {
        kill(&self.control, KillReason::Cancelled);
    }

    /// What can end it from elsewhere.
    pub fn killer(&self) -> Killer {
        Killer(Arc::downgrade(&self.control))
    }

    /// Waits until the last process of the execution is gone and all its output handed on. May be dropped and called again
    /// until it has answered once.
    pub async fn outcome(&mut self) -> Result<Outcome, SandboxError> {
        match (&mut self.task).await {
            Ok(outcome) => outcome,
            Err(_) => Err(SandboxError::SupervisorLost),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        self.task.abort();
    }
}
