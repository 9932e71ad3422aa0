//! Admission, gate by gate: a slot, room in the spool, the input files, what pays, the sandbox and its controls, the durable record.
//!
//! Left out: the checks of the request itself ([`request`](crate::request)). Invariant: whatever refuses on the way gives back what was
//! held, and nothing is held before the request is known to be sound.

use std::time::{Duration, Instant};

use exchequer_event::v1::{self, DenialGate, event::Kind};
use tokio::sync::mpsc;
use tonic::Status;

use super::{
    Admitted, Answer, Executor, Payment, Request, WAITING_PARTS,
    denial::Denial,
    files::{self, Given},
};
use crate::{
    holds::{self, HoldError},
    metrics, record,
    sandbox::{self, Chunk, Prepared},
    slots::Slot,
    spool::RecordError,
};

/// How long before the call's deadline its turn has to have come: the answer is to be there before the transport gives up.
const ANSWER_AHEAD: Duration = Duration::from_millis(20);

impl Executor {
    pub(super) async fn admit(&self, request: &Request, answer: &Answer) -> Result<Admitted, Denial> {
        let slot = self.slot(request, answer).await?;
        self.spool.check_room().map_err(|error| match error {
            RecordError::Full { .. } => Denial::busy(error.to_string()),
            error => Denial::new(DenialGate::Policy, Status::unavailable(error.to_string())),
        })?;
        let mut given = self.load(request).await?;
        let payment = self.pay(request).await?;
        match self.prepare(request, &payment, &mut given).await {
            Ok((prepared, output, part, time_unix_ms)) => {
                let destinations = given.destinations;
                Ok(Admitted { prepared, output, payment, part, time_unix_ms, destinations, _slot: slot })
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

    /// A slot, when the request's turn comes, as long as somebody waits for it.
    async fn slot(&self, request: &Request, answer: &Answer) -> Result<Slot, Denial> {
        let came = Instant::now();
        let until_deadline = request
            .deadline
            .map(|deadline| deadline.saturating_duration_since(came).saturating_sub(ANSWER_AHEAD));
        let patience = request.checked.max_wait;
        let ends_first = until_deadline.filter(|left| *left <= patience);
        let entered = tokio::select! {
            biased;
            entered = self.slots.enter(&request.checked.tenant, ends_first.unwrap_or(patience)) => entered,
            () = answer.closed() => return Err(Denial::gone()),
        };
        let waited = came.elapsed();
        metrics::wait_seconds().record(waited.as_secs_f64(), &[]);
        match entered {
            Ok(_) if answer.is_closed() => Err(Denial::gone()),
            Ok(_) if request.is_late() => Err(Denial::deadline()),
            Ok(slot) => Ok(slot),
            Err(crate::slots::NoSlot::Patience { .. }) if ends_first.is_some() => Err(Denial::deadline()),
            Err(refusal) => Err(Denial::no_slot(refusal, &self.options, waited)),
        }
    }

    /// Reads the input files, and finds the places of the outputs.
    async fn load(&self, request: &Request) -> Result<Given, Denial> {
        let checked = &request.checked;
        if checked.files.sources.is_empty() && checked.files.targets.is_empty() {
            return Ok(Given::default());
        }
        let (files, paths) = (checked.files.clone(), checked.spec.inputs.clone());
        let (tenant, workspace) = (checked.tenant.clone(), self.workspace.clone());
        let room = self.options.max_input_bytes.min(checked.spec.profile.work.size_bytes);
        let loading = tokio::task::spawn_blocking(move || {
            files::load(&files, &paths, &tenant, workspace.as_deref(), room)
        });
        loading.await.unwrap_or_else(|_| Err(Denial::host("inputs", "reading them was interrupted")))
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
            idempotency_key: request.subject.execution_id.clone(),
            ..v1::ReserveRequest::default()
        };
        self.holds.reserve(reserve).await.map_err(|error| match error {
            HoldError::Denied(denied) => Denial::budget(&denied),
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
        given: &mut Given,
    ) -> Result<(Prepared, mpsc::Receiver<Chunk>, v1::Admitted, u64), Denial> {
        let checked = &request.checked;
        let (chunks, output) = mpsc::channel(WAITING_PARTS);
        let content = sandbox::Given {
            stdin: (!checked.stdin.is_empty()).then(|| checked.stdin.clone()),
            files: std::mem::take(&mut given.contents),
        };
        let prepared = self.sandbox.prepare(&checked.spec, content, chunks).await.map_err(|error| {
            Denial::new(
                DenialGate::Launch,
                Status::internal(format!("the sandbox can't be prepared: {error}")),
            )
        })?;
        let controls = record::controls(prepared.controls());
        let missing = record::missing(&controls);
        if !missing.is_empty() {
            let required: Vec<_> =
                missing.iter().filter(|control| self.options.requires(&control.name)).cloned().collect();
            let executed = required.is_empty();
            let degraded = Kind::ControlDegraded(v1::ControlDegraded { controls: missing, executed });
            let recorded = self.spool.record(request.subject.event(degraded)).await;
            recorded.map_err(|error| Denial::spool(&error))?;
            if !executed {
                return Err(Denial::controls(&required));
            }
        }
        if request.is_late() {
            return Err(Denial::deadline());
        }
        let record = v1::ExecutionAdmitted {
            caller: request.subject.caller.clone(),
            profile: checked.spec.profile.name.clone(),
            profile_digest: checked.profile_digest.into(),
            program: checked.spec.program.clone(),
            arguments_redacted: checked.arguments_redacted.clone(),
            input_digest: checked.input_digest(&given.recorded).into(),
            limits: Some(checked.limits),
            hold_id: payment.hold_id().to_owned(),
            scope: checked.scope.clone(),
            controls,
            reserved: payment.reserved(),
            inputs: std::mem::take(&mut given.recorded),
        };
        let admitted = Kind::ExecutionAdmitted(record.clone());
        let recorded = self.spool.record_timed(request.subject.event(admitted)).await;
        let (position, time_unix_ms) = recorded.map_err(|error| {
            let denial = Denial::spool(&error);
            if matches!(error, RecordError::InDoubt(_)) { denial.with_admission_in_doubt() } else { denial }
        })?;
        let part = v1::Admitted {
            execution_id: request.subject.execution_id.clone(),
            position: Some(position),
            record: Some(record),
            held: match payment {
                Payment::Hold(hold) => hold.amounts.clone(),
                Payment::Share(share) => share.reserved(),
            },
        };
        Ok((prepared, output, part, time_unix_ms))
    }
}
