//! One execution from request to recorded outcome.
//!
//! slot → room in the spool → hold, or a share of a slice → sandbox prepared and its controls read back → **admission on disk** → released → output streamed
//! → **outcome on disk** → answered. Whatever refuses on the way gives back what was held and is recorded as a denial before it is
//! answered, as long as the spool has room for more than outcomes. The caller may go away at any moment: the execution is then cancelled, and its outcome is still recorded.
//!
//! Left out: the wire (`grpc.rs`) and the checks of the request ([`request`](crate::request)).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ed25519_dalek::SigningKey;
use exchequer_auth::Caller;
use exchequer_event::{
    metered::Metered,
    v1::{self, DenialGate, event::Kind, execute_response::Part},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use tracing::Instrument as _;

use crate::{
    bundle,
    holds::{self, HoldError, Holds},
    leases::{Leases, Share},
    metrics,
    options::Options,
    record::{self, Outputs},
    request::Checked,
    sandbox::{Chunk, Outcome, Prepared, Running, Sandbox, SandboxError, Stream, probe},
    spool::{NewEvent, RecordError, Spool},
};

/// Domain of the reasons in error details.
const ERROR_DOMAIN: &str = "exchequer";
/// Parts of an answer that wait for the caller to read; beyond them the program's output waits in its pipes.
const WAITING_PARTS: usize = 16;

/// Probes at one time: they need no hold, so nothing else bounds them.
const MAX_PROBES: usize = 2;
/// How long a caller may leave its answer unread before it counts as gone: at a time, and in all once the program's time is over. An
/// outcome has to be recorded while its hold lasts, so `agent.hold_margin` is more than twice this.
const CALLER_PATIENCE: Duration = Duration::from_secs(10);

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
    slots: Arc<Semaphore>,
    probes: Semaphore,
    tasks: TaskTracker,
    draining: CancellationToken,
    killing: CancellationToken,
}

/// Who asks for what.
struct Request {
    execution_id: String,
    caller: String,
    checked: Checked,
}

impl Request {
    fn event(&self, kind: Kind) -> NewEvent {
        NewEvent {
            tenant: self.checked.tenant.clone(),
            execution_id: self.execution_id.clone(),
            skill: self.checked.skill.clone(),
            kind,
        }
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
    _slot: OwnedSemaphorePermit,
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

/// A refusal to admit: what is recorded, and what is answered.
struct Denial {
    /// Whether the admission may be on disk after all: then its usage counts as unknown at the next start.
    is_admission_in_doubt: bool,
    gate: DenialGate,
    scope: String,
    meter: String,
    status: Status,
}

impl Denial {
    fn new(gate: DenialGate, status: Status) -> Self {
        Self { is_admission_in_doubt: false, gate, scope: String::new(), meter: String::new(), status }
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
        key: SigningKey,
    ) -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(options.max_concurrent)),
            probes: Semaphore::new(MAX_PROBES),
            options,
            spool,
            holds,
            leases,
            sandbox,
            key,
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            killing: CancellationToken::new(),
        })
    }

    /// Starts a child for the controls' sake and reads them back.
    pub async fn probe(&self) -> Result<Vec<v1::Control>, Status> {
        let busy = |_| Status::resource_exhausted(format!("{MAX_PROBES} probes are running"));
        let _slot = self.probes.try_acquire().map_err(busy)?;
        let controls = probe(&self.sandbox).await;
        let failed = |error| Status::unavailable(format!("the probe could not run: {error}"));
        Ok(record::controls(&controls.map_err(failed)?))
    }

    /// The slices of budgets that are held now.
    pub fn slices(&self) -> Vec<v1::Slice> {
        self.leases.as_ref().map(|leases| leases.list()).unwrap_or_default()
    }

    /// Begins an execution. It goes on by itself; dropping the parts cancels it.
    pub fn begin(self: &Arc<Self>, caller: &Caller, checked: Checked) -> Parts {
        let (answer, parts) = mpsc::channel(WAITING_PARTS);
        let request = Request {
            execution_id: uuid::Uuid::now_v7().to_string(),
            caller: caller.subject.clone(),
            checked,
        };
        let executor = Arc::clone(self);
        // The execution's own span: it outlives the call's, and everything it does belongs to the caller's trace.
        let span = tracing::info_span!("execution", execution_id = request.execution_id);
        self.tasks.spawn(async move { executor.run(request, answer).await }.instrument(span));
        parts
    }

    /// Refuses new executions and waits for those that run; after `kill_after` they are cancelled. Their outcomes are recorded.
    pub async fn drain(&self, kill_after: Duration) {
        self.draining.cancel();
        self.tasks.close();
        if tokio::time::timeout(kill_after, self.tasks.wait()).await.is_err() {
            self.killing.cancel();
            self.tasks.wait().await;
        }
    }

    async fn run(&self, request: Request, answer: Answer) {
        let began = Instant::now();
        match self.admit(&request).await {
            Ok(admitted) => {
                metrics::admission_seconds().record(began.elapsed().as_secs_f64(), &[]);
                metrics::running().add(1, &[]);
                self.execute(&request, admitted, &answer).await;
                metrics::running().add(-1, &[]);
            }
            Err(denial) => {
                let status = self.record_denial(&request, denial).await;
                deliver(&answer, Err(status), CALLER_PATIENCE).await;
            }
        }
    }

    async fn admit(&self, request: &Request) -> Result<Admitted, Denial> {
        let busy = |message: String| Denial::new(DenialGate::Policy, Status::resource_exhausted(message));
        if self.draining.is_cancelled() {
            return Err(Denial::new(DenialGate::Policy, Status::unavailable("the agent is stopping")));
        }
        let slot = Arc::clone(&self.slots).try_acquire_owned();
        let slot =
            slot.map_err(|_| busy(format!("{} executions are running", self.options.max_concurrent)))?;
        self.spool.check_room().map_err(|error| match error {
            RecordError::Full { .. } => busy(error.to_string()),
            error => Denial::new(DenialGate::Policy, Status::unavailable(error.to_string())),
        })?;
        let payment = self.pay(request).await?;
        match self.prepare(request, &payment).await {
            Ok((prepared, output, part, time_unix_ms)) => {
                Ok(Admitted { prepared, output, payment, part, time_unix_ms, _slot: slot })
            }
            Err(denial) => {
                match payment {
                    Payment::Hold(hold) => self.holds.void(&hold.hold_id).await,
                    // It would be charged after all.
                    Payment::Share(_) if denial.is_admission_in_doubt => {}
                    Payment::Share(share) => share.give_back(),
                }
                Err(denial)
            }
        }
    }

    /// A share of the scope's slice, or a hold of its own. What is asked for beside the machine is no part of slices.
    async fn pay(&self, request: &Request) -> Result<Payment, Denial> {
        let checked = &request.checked;
        if let Some(leases) = self.leases.as_ref().filter(|_| checked.extra_holds.is_empty())
            && let Some(share) = leases.admit(&checked.scope, &checked.limits).await
        {
            metrics::count_admission("slice");
            return Ok(Payment::Share(share));
        }
        let hold = self.hold(request).await?;
        metrics::count_admission("hold");
        Ok(Payment::Hold(hold))
    }

    async fn hold(&self, request: &Request) -> Result<v1::HoldGranted, Denial> {
        let checked = &request.checked;
        let margin = u64::try_from(self.options.hold_margin.as_millis()).unwrap_or(u64::MAX);
        let reserve = v1::ReserveRequest {
            scope: checked.scope.clone(),
            amounts: holds::amounts(&checked.limits, &checked.extra_holds),
            ttl_ms: checked.limits.wall_ms.saturating_add(margin),
            idempotency_key: request.execution_id.clone(),
            ..v1::ReserveRequest::default()
        };
        self.holds.reserve(reserve).await.map_err(|error| match error {
            HoldError::Denied(denied) => budget_denial(&denied),
            HoldError::Refused(status) => Denial::new(DenialGate::Budget, status),
            HoldError::Unavailable(status) => {
                let message = format!("metering is not available, so nothing runs: {}", status.message());
                Denial::new(DenialGate::MeteringUnavailable, Status::unavailable(message))
            }
        })
    }

    async fn prepare(
        &self,
        request: &Request,
        payment: &Payment,
    ) -> Result<(Prepared, mpsc::Receiver<Chunk>, v1::Admitted, u64), Denial> {
        let checked = &request.checked;
        let (chunks, output) = mpsc::channel(WAITING_PARTS);
        let stdin = (!checked.stdin.is_empty()).then(|| checked.stdin.clone());
        let prepared = self.sandbox.prepare(&checked.spec, stdin, chunks).await.map_err(|error| {
            Denial::new(
                DenialGate::Launch,
                Status::internal(format!("the sandbox can't be prepared: {error}")),
            )
        })?;
        let controls = record::controls(prepared.controls());
        let missing = record::missing(&controls);
        if !missing.is_empty() {
            let executed = self.options.allow_degraded;
            let degraded = Kind::ControlDegraded(v1::ControlDegraded { controls: missing.clone(), executed });
            self.spool.record(request.event(degraded)).await.map_err(|error| spool_denial(&error))?;
            if !executed {
                return Err(control_denial(&missing));
            }
        }
        let record = v1::ExecutionAdmitted {
            caller: request.caller.clone(),
            profile: checked.spec.profile.name.clone(),
            program: checked.spec.program.clone(),
            arguments_redacted: checked.arguments_redacted.clone(),
            input_digest: checked.input_digest.into(),
            limits: Some(checked.limits),
            hold_id: payment.hold_id().to_owned(),
            scope: checked.scope.clone(),
            controls,
            reserved: payment.reserved(),
            ..v1::ExecutionAdmitted::default()
        };
        let admitted = Kind::ExecutionAdmitted(record.clone());
        let recorded = self.spool.record_timed(request.event(admitted)).await;
        let (position, time_unix_ms) =
            recorded.map_err(|error| Denial { is_admission_in_doubt: true, ..spool_denial(&error) })?;
        let part = v1::Admitted {
            execution_id: request.execution_id.clone(),
            position: Some(position),
            record: Some(record),
            held: match payment {
                Payment::Hold(hold) => hold.amounts.clone(),
                Payment::Share(share) => share.reserved(),
            },
        };
        Ok((prepared, output, part, time_unix_ms))
    }

    async fn execute(&self, request: &Request, admitted: Admitted, answer: &Answer) {
        let Admitted { prepared, output, payment, part, time_unix_ms, _slot } = admitted;
        let admission = bundle::Admission::new(&request.checked, &part, time_unix_ms);
        let caller_is_there = deliver(answer, Ok(Part::Admitted(part)), CALLER_PATIENCE).await;
        let mut outputs = Outputs::default();
        let unread_until =
            Instant::now() + Duration::from_millis(request.checked.limits.wall_ms) + CALLER_PATIENCE;
        let outcome = match prepared.release().await {
            Ok(running) => {
                let caller = caller_is_there.then_some(unread_until);
                self.follow(running, output, answer, caller, &mut outputs).await
            }
            Err(error) => Err(error),
        };
        let record = match outcome {
            Ok(outcome) => record::finished(&outcome, &outputs, payment.hold_id(), payment.reserved()),
            Err(error) => {
                tracing::error!(%error, execution_id = request.execution_id, "the sandbox lost an execution");
                record::lost(payment.hold_id(), payment.reserved(), &error.to_string())
            }
        };
        metrics::count_execution(record.cause().as_str_name());
        let recorded =
            self.spool.record_timed(request.event(Kind::ExecutionFinished(record.clone()))).await;
        let last = match recorded {
            Ok((position, time_unix_ms)) => {
                // Only now: an outcome that is not recorded is charged all that was reserved.
                if let Payment::Share(share) = payment {
                    share.finish(Metered::charge(&record));
                }
                let bundle = admission.sign(&record, &position, time_unix_ms, &outputs, &self.key);
                Ok(Part::Finished(v1::Finished {
                    execution_id: request.execution_id.clone(),
                    position: Some(position),
                    record: Some(record),
                    bundle: bundle.into(),
                }))
            }
            Err(error) => {
                tracing::error!(%error, execution_id = request.execution_id, "an outcome could not be recorded");
                Err(Status::internal(format!("the outcome could not be recorded: {error}")))
            }
        };
        deliver(answer, last, CALLER_PATIENCE).await;
    }

    /// Passes output on until the execution has ended. A caller that is gone, or a drain that has run out of patience, kills it; so does
    /// one that has not read what there was by the time that is given with it.
    async fn follow(
        &self,
        mut running: Running,
        mut output: mpsc::Receiver<Chunk>,
        answer: &Answer,
        caller: Option<Instant>,
        outputs: &mut Outputs,
    ) -> Result<Outcome, SandboxError> {
        let (mut caller_is_there, unread_until) = (caller.is_some(), caller.unwrap_or_else(Instant::now));
        let mut has_output = true;
        loop {
            if !caller_is_there {
                running.kill();
            }
            let chunk = tokio::select! {
                biased;
                () = answer.closed(), if caller_is_there => None,
                () = self.killing.cancelled(), if caller_is_there => None,
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
    /// be recorded, because the spool is full or broken, it is counted and logged.
    async fn record_denial(&self, request: &Request, denial: Denial) -> Status {
        metrics::count_execution(denial.gate.as_str_name());
        let record = v1::ExecutionDenied {
            caller: request.caller.clone(),
            gate: denial.gate.into(),
            reason: exchequer_event::name::clip(denial.status.message(), 1024).to_owned(),
            program: request.checked.spec.program.clone(),
            scope: denial.scope,
            meter: denial.meter,
        };
        let recorded = match self.spool.check_room_for_denial() {
            Ok(()) => self.spool.record(request.event(Kind::ExecutionDenied(record))).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = recorded {
            metrics::unrecorded_denials().add(1, &[]);
            tracing::warn!(%error, execution_id = request.execution_id, "a denial was not recorded");
        }
        denial.status
    }
}

/// Hands a part to the caller; whether it is still there. A caller that stops reading must not keep an outcome from being recorded.
async fn deliver(answer: &Answer, part: Result<Part, Status>, patience: Duration) -> bool {
    answer.send_timeout(part, patience).await.is_ok()
}

fn budget_denial(denied: &v1::HoldDenied) -> Denial {
    let scope = &denied.binding_scope;
    let meter = &denied.binding_meter;
    let (code, message) = match denied.reason() {
        v1::DenialReason::NoBudget => {
            (Code::FailedPrecondition, format!("no budget covers scope {}: set one first", denied.scope))
        }
        v1::DenialReason::InDebt => (
            Code::ResourceExhausted,
            format!("scope {scope} is in debt for {meter}; {} was requested", denied.requested),
        ),
        v1::DenialReason::RateLimited => (
            Code::ResourceExhausted,
            format!(
                "scope {scope} is at its rate limit for {meter}; try again in {} ms",
                denied.retry_after_ms
            ),
        ),
        v1::DenialReason::Concurrency => {
            (Code::ResourceExhausted, format!("scope {scope} has as many open holds as it may have"))
        }
        v1::DenialReason::Exhausted | v1::DenialReason::Unspecified => (
            Code::ResourceExhausted,
            format!(
                "scope {scope} has {} of {meter} left, {} was requested",
                denied.available, denied.requested
            ),
        ),
    };
    let metadata = [
        ("scope", scope.clone()),
        ("meter", meter.clone()),
        ("requested", denied.requested.to_string()),
        ("available", denied.available.to_string()),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
    let details = ErrorDetails::with_error_info(denied.reason().as_str_name(), ERROR_DOMAIN, metadata);
    Denial {
        scope: scope.clone(),
        meter: meter.clone(),
        ..Denial::new(DenialGate::Budget, Status::with_error_details(code, message, details))
    }
}

fn control_denial(missing: &[v1::Control]) -> Denial {
    let names: Vec<_> = missing.iter().map(|control| control.name.as_str()).collect();
    let remedies = missing.iter().map(|control| (control.name.clone(), control.remedy.clone()));
    let message = format!(
        "this host does not enforce {}; the agent refuses (agent.allow_degraded is off)",
        names.join(", ")
    );
    let details = ErrorDetails::with_error_info(
        "CONTROL_MISSING",
        ERROR_DOMAIN,
        remedies.collect::<std::collections::HashMap<_, _>>(),
    );
    Denial::new(DenialGate::Control, Status::with_error_details(Code::FailedPrecondition, message, details))
}

fn spool_denial(error: &RecordError) -> Denial {
    Denial::new(DenialGate::Policy, Status::unavailable(format!("the admission can't be recorded: {error}")))
}
