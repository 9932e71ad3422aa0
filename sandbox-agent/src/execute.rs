//! One execution from request to recorded outcome.
//!
//! request checked → slot, in turn → room in the spool → input files read → hold, or a share of a slice → sandbox prepared and its controls
//! read back → **admission on disk** → released → output streamed → files taken out → **outcome on disk** → answered. Whatever refuses on the
//! way gives back what was held and is recorded as a denial before it is answered, as long as the spool has room for more than outcomes.
//! The caller may go away at any moment, and its deadline may pass: the execution is then cancelled, and its outcome is still recorded.
//!
//! Left out: the wire (`grpc.rs`); admission is `admit`, refusals are `denial`, files are `files`. Every way in begins with
//! [`Executor::begin`].

mod admit;
mod denial;
mod files;

use std::{
    io::Read as _,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ed25519_dalek::SigningKey;
use exchequer_auth::Caller;
use exchequer_event::{
    metered::Metered,
    v1::{self, event::Kind, execute_response::Part},
};
use tokio::sync::{
    Semaphore,
    mpsc::{self, error::TrySendError},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Status;
use tracing::Instrument as _;

use self::{
    denial::{Denial, Subject},
    files::Taken,
};
use crate::{
    bundle,
    egress::{self, Egress},
    holds::Holds,
    leases::{Leases, Share},
    metrics,
    options::Options,
    probes,
    record::{self, Outputs},
    request::{self, Checked},
    sandbox::{Chunk, ExitCause, Outcome, Prepared, Running, Sandbox, SandboxError, Stream},
    slots::{Slot, Slots},
    spool::Spool,
    throttle::Throttle,
    workspace::{Destination, Workspace},
};

/// Parts of an answer that wait for the caller to read; beyond them the program's output waits in its pipes.
const WAITING_PARTS: usize = 16;
/// Largest piece of a file that is answered at once.
const ARTIFACT_CHUNK_BYTES: usize = 64 << 10;

/// Probes at one time: they need no hold, so nothing else bounds them.
const MAX_PROBES: usize = 2;
/// How long a caller may leave its answer unread before it counts as gone: at a time, and in all once the program's time is over. An
/// outcome has to be recorded while its hold lasts, so `agent.hold_margin` is more than twice this.
const CALLER_PATIENCE: Duration = Duration::from_secs(10);
/// How long a caller may take to read all files that it asked for: they are in memory until then, and the slot is taken.
const ARTIFACT_PATIENCE: Duration = Duration::from_secs(60);

/// Parts of the answer as they come.
pub type Parts = mpsc::Receiver<Result<Part, Status>>;
type Answer = mpsc::Sender<Result<Part, Status>>;

/// Runs executions.
pub struct Executor {
    /// The agent's configuration.
    pub options: Options,
    /// Where admissions and outcomes are recorded.
    pub spool: Arc<Spool>,
    /// Where they are paid.
    pub holds: Holds,
    /// Slices that pay for most of them, if the agent takes leases.
    pub leases: Option<Arc<Leases>>,
    /// Where they run.
    pub sandbox: Sandbox,
    /// What bundles are signed with.
    key: SigningKey,
    workspace: Option<Arc<Workspace>>,
    slots: Arc<Slots>,
    throttle: Mutex<Throttle>,
    began: Instant,
    probes: Semaphore,
    tasks: TaskTracker,
    killing: CancellationToken,
}

/// A request that may be admitted.
struct Request {
    subject: Subject,
    checked: Checked,
    deadline: Option<Instant>,
}

impl Request {
    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }
}

/// An execution that is admitted and not yet released.
struct Admitted {
    prepared: Prepared,
    output: mpsc::Receiver<Chunk>,
    payment: Payment,
    part: v1::Admitted,
    /// Time of the admission's event.
    time_unix_ms: u64,
    destinations: Vec<Option<Destination>>,
    _slot: Slot,
}

/// What pays for an execution.
enum Payment {
    /// A hold of its own.
    Hold(v1::HoldGranted),
    /// A share of a slice.
    Share(Share),
}

impl Payment {
    fn hold_id(&self) -> &str {
        match self {
            Self::Hold(hold) => &hold.hold_id,
            Self::Share(share) => share.hold_id(),
        }
    }

    /// What is reserved, if it is of a lease.
    fn reserved(&self) -> Vec<v1::MeterAmount> {
        match self {
            Self::Hold(_) => Vec::new(),
            Self::Share(share) => share.reserved(),
        }
    }
}

impl Executor {
    /// An executor over these parts.
    pub fn new(
        options: Options,
        spool: Arc<Spool>,
        holds: Holds,
        leases: Option<Arc<Leases>>,
        sandbox: Sandbox,
        workspace: Option<Workspace>,
        key: SigningKey,
    ) -> Arc<Self> {
        Arc::new(Self {
            slots: Slots::new(options.max_concurrent, options.max_concurrent_per_tenant, options.max_waiting),
            throttle: Mutex::default(),
            began: Instant::now(),
            probes: Semaphore::new(MAX_PROBES),
            options,
            spool,
            holds,
            leases,
            sandbox,
            key,
            workspace: workspace.map(Arc::new),
            tasks: TaskTracker::new(),
            killing: CancellationToken::new(),
        })
    }

    /// What the sandbox enforces, from attacks that are made now.
    pub async fn capabilities(&self) -> Result<(Vec<v1::Control>, Vec<v1::ProbeResult>), Status> {
        let busy = |_| Status::resource_exhausted(format!("{MAX_PROBES} probes are running"));
        let _slot = self.probes.try_acquire().map_err(busy)?;
        let failed = |error| Status::unavailable(format!("the probes could not run: {error}"));
        probes::wire::capabilities(&self.sandbox).await.map_err(failed)
    }

    /// The slices of budgets that are held now.
    pub fn slices(&self) -> Vec<v1::Slice> {
        self.leases.as_ref().map(|leases| leases.list()).unwrap_or_default()
    }

    /// How many executions have a slot, and how many wait for one.
    pub fn occupancy(&self) -> (usize, usize) {
        (self.slots.running(), self.slots.waiting())
    }

    /// Begins an execution for a tenant that is already known to be the caller's. It goes on by itself; dropping the parts cancels it.
    /// What still runs at the deadline is cancelled, what still waits is refused.
    pub fn begin(
        self: &Arc<Self>,
        caller: &Caller,
        tenant: &str,
        request: v1::ExecuteRequest,
        deadline: Option<Instant>,
    ) -> Parts {
        let (answer, parts) = mpsc::channel(WAITING_PARTS);
        let subject = Subject::new(&caller.subject, tenant, &request);
        let (executor, tenant) = (Arc::clone(self), tenant.to_owned());
        // The execution's own span: it outlives the call's, and everything it does belongs to the caller's trace.
        let span = tracing::info_span!("execution", execution_id = subject.execution_id);
        // Too large a future to be moved about.
        let run = async move { Box::pin(executor.run(subject, &tenant, request, deadline, answer)).await };
        self.tasks.spawn(run.instrument(span));
        parts
    }

    /// Refuses new executions and those that wait, and waits for those that run; after `kill_after` they are cancelled. Their outcomes are
    /// recorded.
    pub async fn drain(&self, kill_after: Duration) {
        self.slots.close();
        self.tasks.close();
        if tokio::time::timeout(kill_after, self.tasks.wait()).await.is_err() {
            self.killing.cancel();
            self.tasks.wait().await;
        }
    }

    async fn run(
        &self,
        subject: Subject,
        tenant: &str,
        request: v1::ExecuteRequest,
        deadline: Option<Instant>,
        answer: Answer,
    ) {
        let began = Instant::now();
        let (subject, denial) = match request::check(request, tenant, &self.options) {
            Err(faults) => (subject, Denial::request(faults)),
            Ok(checked) => {
                let request = Request { subject, checked, deadline };
                match self.admit(&request, &answer).await {
                    Ok(admitted) => {
                        metrics::admission_seconds().record(began.elapsed().as_secs_f64(), &[]);
                        metrics::running().add(1, &[]);
                        self.execute(&request, admitted, &answer).await;
                        metrics::running().add(-1, &[]);
                        return;
                    }
                    Err(denial) => (request.subject, denial),
                }
            }
        };
        let status = self.record_denial(&subject, denial).await;
        self.deliver_last(&answer, Err(status)).await;
    }

    async fn execute(&self, request: &Request, admitted: Admitted, answer: &Answer) {
        let Admitted { mut prepared, output, payment, part, time_unix_ms, destinations, _slot } = admitted;
        let execution_id = &request.subject.execution_id;
        let admission = bundle::Admission::new(&request.checked, &part, time_unix_ms);
        let caller_is_there = deliver(answer, Ok(Part::Admitted(part)), CALLER_PATIENCE).await;
        // Four hashers: too large to be moved about with the future.
        let mut outputs = Box::<Outputs>::default();
        let unread_until =
            Instant::now() + Duration::from_millis(request.checked.limits.wall_ms) + CALLER_PATIENCE;
        let proxy = egress::open(&mut prepared, &request.checked.egress, request.checked.limits.egress_bytes);
        let outcome = match prepared.release().await {
            Ok(running) => {
                let caller = caller_is_there.then_some(unread_until);
                self.follow(running, output, answer, caller, request.deadline, &mut outputs).await
            }
            Err(error) => Err(error),
        };
        let egress = match proxy {
            Some(proxy) => proxy.finish().await,
            None => Egress::default(),
        };
        let (mut record, contents) = match outcome {
            Ok(mut outcome) => {
                egress.add_to(&mut outcome);
                let found = std::mem::take(&mut outcome.files);
                let ended_by_itself = matches!(outcome.cause, ExitCause::Exited { .. });
                let (artifacts, contents) =
                    self.take_out(request, found, destinations, ended_by_itself).await;
                let (hold_id, reserved) = (payment.hold_id(), payment.reserved());
                (record::finished(&outcome, &outputs, artifacts, hold_id, reserved), contents)
            }
            Err(error) => {
                tracing::error!(%error, execution_id, "the sandbox lost an execution");
                (record::lost(payment.hold_id(), payment.reserved(), &error.to_string()), Vec::new())
            }
        };
        record.egress = record::egress(egress.targets);
        metrics::count_execution(record.cause().as_str_name());
        let finished = Kind::ExecutionFinished(record.clone());
        let last = match self.spool.record_timed(request.subject.event(finished)).await {
            Ok((position, time_unix_ms)) => {
                // Only now: an outcome that is not recorded is charged all that was reserved.
                if let Payment::Share(share) = payment {
                    share.finish(Metered::charge(&record));
                }
                // What is recorded can be read at leisure: it charges nobody any more.
                tokio::select! {
                    () = hand_out(answer, contents) => {}
                    () = self.killing.cancelled() => {}
                }
                let bundle = admission.sign(&record, &position, time_unix_ms, &outputs, &self.key);
                Ok(Part::Finished(v1::Finished {
                    execution_id: execution_id.clone(),
                    position: Some(position),
                    record: Some(record),
                    bundle: bundle.into(),
                }))
            }
            Err(error) => {
                tracing::error!(%error, execution_id, "an outcome could not be recorded");
                Err(Status::internal(format!("the outcome could not be recorded: {error}")))
            }
        };
        self.deliver_last(answer, last).await;
    }

    /// Hands the caller the last part. Nothing that has to be proved depends on it any more, so an agent that has run out of patience does
    /// not wait for a slow reader.
    async fn deliver_last(&self, answer: &Answer, last: Result<Part, Status>) {
        // Where there is room, it is there in any case.
        let Err(TrySendError::Full(last)) = answer.try_send(last) else { return };
        tokio::select! {
            _ = deliver(answer, last, CALLER_PATIENCE) => {}
            () = self.killing.cancelled() => {}
        }
    }

    /// Hashes the outputs and keeps those that are to be kept; what is recorded of them, and what can be answered.
    async fn take_out(
        &self,
        request: &Request,
        found: Vec<Result<std::os::fd::OwnedFd, crate::sandbox::FileProblem>>,
        destinations: Vec<Option<Destination>>,
        ended_by_itself: bool,
    ) -> (Vec<v1::File>, Vec<Option<std::fs::File>>) {
        let paths = request.checked.spec.outputs.clone();
        if paths.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let (id, room) = (request.subject.execution_id.clone(), self.options.max_artifact_bytes);
        let names = paths.clone();
        let taking = move || files::take_out(&paths, found, &destinations, &id, ended_by_itself, room);
        let taken = tokio::task::spawn_blocking(taking).await.unwrap_or_else(|error| {
            let lost = |path: &std::path::PathBuf| Taken {
                record: record::problem(&path.to_string_lossy(), &error.to_string()),
                content: None,
            };
            names.iter().map(lost).collect()
        });
        taken.into_iter().map(|taken| (taken.record, taken.content)).unzip()
    }

    /// Passes output on until the execution has ended. A caller that is gone, its deadline, or a drain that has run out of patience kills
    /// it; so does one that has not read what there was by the time that is given with it.
    async fn follow(
        &self,
        mut running: Running,
        mut output: mpsc::Receiver<Chunk>,
        answer: &Answer,
        caller: Option<Instant>,
        deadline: Option<Instant>,
        outputs: &mut Outputs,
    ) -> Result<Outcome, SandboxError> {
        let (mut caller_is_there, unread_until) = (caller.is_some(), caller.unwrap_or_else(Instant::now));
        let deadline = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(deadline);
        let mut has_output = true;
        loop {
            if !caller_is_there {
                running.kill();
            }
            let chunk = tokio::select! {
                biased;
                () = answer.closed(), if caller_is_there => None,
                () = self.killing.cancelled(), if caller_is_there => None,
                () = &mut deadline, if caller_is_there => None,
                chunk = output.recv(), if has_output => {
                    has_output = chunk.is_some();
                    let Some(chunk) = chunk else { continue };
                    Some(chunk)
                }
                outcome = running.outcome(), if !has_output => return outcome,
            };
            let Some(Chunk { stream, bytes }) = chunk else {
                caller_is_there = false;
                continue;
            };
            outputs.update(stream, &bytes);
            if caller_is_there {
                let part = match stream {
                    Stream::Stdout => Part::Stdout(bytes),
                    Stream::Stderr => Part::Stderr(bytes),
                };
                let patience = unread_until.saturating_duration_since(Instant::now()).min(CALLER_PATIENCE);
                caller_is_there = deliver(answer, Ok(part), patience).await;
            }
        }
    }

    /// Records a denial, and gives back what the caller is told. A denial changes nothing that has to be proved later: where it can't
    /// be recorded, because the spool is full or broken, it is counted and logged; what anybody can bring about at will is recorded at a
    /// bounded rate.
    async fn record_denial(&self, subject: &Subject, denial: Denial) -> Status {
        metrics::count_execution(denial.gate.as_str_name());
        let unrecorded = if denial.is_cheap() {
            let mut throttle = self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
            throttle.take(&subject.tenant, self.began.elapsed())
        } else {
            Some(0)
        };
        let Some(unrecorded) = unrecorded else {
            metrics::unrecorded_denials().add(1, &[]);
            return denial.status;
        };
        let recorded = match self.spool.check_room_for_denial() {
            Ok(()) => {
                let denied = Kind::ExecutionDenied(denial.record(subject, unrecorded));
                self.spool.record(subject.event(denied)).await.map(drop)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = recorded {
            if denial.is_cheap() {
                let mut throttle = self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
                throttle.put_back(&subject.tenant, unrecorded);
            }
            metrics::unrecorded_denials().add(1, &[]);
            tracing::warn!(%error, execution_id = subject.execution_id, "a denial was not recorded");
        }
        denial.status
    }
}

/// Hands a part to the caller; whether it is still there. A caller that stops reading must not keep an outcome from being recorded.
async fn deliver(answer: &Answer, part: Result<Part, Status>, patience: Duration) -> bool {
    answer.send_timeout(part, patience).await.is_ok()
}

/// Hands the files to the caller, in order, as long as it reads them.
async fn hand_out(answer: &Answer, contents: Vec<Option<std::fs::File>>) {
    let until = Instant::now() + ARTIFACT_PATIENCE;
    for (output, file) in (0..).zip(contents) {
        let Some(mut file) = file else { continue };
        loop {
            // Work areas are in memory wherever there is a root of its own, so this does not wait for a disk.
            let mut data = vec![0; ARTIFACT_CHUNK_BYTES];
            let Ok(count @ 1..) = file.read(&mut data) else { break };
            data.truncate(count);
            let part = Part::Artifact(v1::ArtifactChunk { output, data: data.into() });
            let patience = until.saturating_duration_since(Instant::now()).min(CALLER_PATIENCE);
            if !deliver(answer, Ok(part), patience).await {
                return;
            }
        }
    }
}
