//! Refusals: what is answered, and what is recorded of it.
//!
//! Left out: when to refuse. Invariant: a denial is bounded, whatever was asked for, and says nothing of values that may be secret.

use std::time::Duration;

use exchequer_event::{
    name,
    v1::{self, DenialGate, event::Kind},
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    options::Options,
    redact,
    request::{Faults, MAX_PROGRAM_BYTES},
    slots::NoSlot,
    spool::{NewEvent, RecordError},
};

/// Domain of the reasons in error details.
const ERROR_DOMAIN: &str = "exchequer";
/// Longest reason that is recorded, bytes.
const MAX_REASON_BYTES: usize = 1024;

/// Whose execution it is, as far as it may be recorded: a request that was refused may name anything.
pub(super) struct Subject {
    pub(super) execution_id: String,
    pub(super) caller: String,
    pub(super) tenant: String,
    pub(super) skill: String,
    pub(super) program: String,
}

impl Subject {
    /// Of a request that has not been checked.
    pub(super) fn new(caller: &str, tenant: &str, request: &v1::ExecuteRequest) -> Self {
        let named = |is_name: bool, name: &str| if is_name { name.to_owned() } else { String::new() };
        Self {
            execution_id: uuid::Uuid::now_v7().to_string(),
            caller: caller.to_owned(),
            tenant: named(name::is_tenant(tenant), tenant),
            skill: named(name::is_skill(&request.skill), &request.skill),
            program: redact::redact(name::clip(&request.program, MAX_PROGRAM_BYTES)),
        }
    }

    pub(super) fn event(&self, kind: Kind) -> NewEvent {
        NewEvent {
            tenant: self.tenant.clone(),
            execution_id: self.execution_id.clone(),
            skill: self.skill.clone(),
            kind,
        }
    }
}

/// A refusal to admit: what is recorded, and what is answered.
pub(super) struct Denial {
    /// Whether the admission may be on disk after all: then its usage counts as unknown at the next start.
    pub(super) is_admission_in_doubt: bool,
    pub(super) gate: DenialGate,
    pub(super) status: Status,
    reason: String,
    scope: String,
    meter: String,
}

impl Denial {
    pub(super) fn new(gate: DenialGate, status: Status) -> Self {
        let reason = status.message().to_owned();
        Self {
            is_admission_in_doubt: false,
            gate,
            status,
            reason,
            scope: String::new(),
            meter: String::new(),
        }
    }

    /// The agent takes nothing now.
    pub(super) fn busy(message: impl Into<String>) -> Self {
        Self::new(DenialGate::Policy, Status::resource_exhausted(message))
    }

    /// The request is at fault.
    pub(super) fn request(faults: Faults) -> Self {
        let (reason, first) = (faults.text(), &faults.0[..faults.0.len().min(1)]);
        let first = Faults(first.to_vec()).text();
        let details = ErrorDetails::with_bad_request(faults.0);
        let status = Status::with_error_details(Code::InvalidArgument, first, details);
        Self { reason, ..Self::new(DenialGate::Request, status) }
    }

    /// The request can't be met on this host; the field that asks for it.
    pub(super) fn host(field: &str, problem: &str) -> Self {
        let details = ErrorDetails::with_bad_request_violation(field, problem);
        let message = format!("{field}: {problem}");
        let status = Status::with_error_details(Code::FailedPrecondition, message, details);
        Self::new(DenialGate::Request, status)
    }

    /// There is no slot to run in.
    pub(super) fn no_slot(refusal: NoSlot, options: &Options, waited: Duration) -> Self {
        let busy = |reason: &str, message: String, retry_after: Duration| {
            let mut details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, []);
            details.set_retry_info(Some(retry_after));
            let status = Status::with_error_details(Code::ResourceExhausted, message, details);
            Self::new(DenialGate::Policy, status)
        };
        let (slots, of_one) = (options.max_concurrent, options.max_concurrent_per_tenant);
        let run = format!("as many executions run as may ({slots}, of one tenant {of_one})");
        match refusal {
            NoSlot::Full { retry_after } => {
                busy("QUEUE_FULL", format!("{run} and as many wait"), retry_after)
            }
            NoSlot::Patience { retry_after } => busy(
                "WAITED_TOO_LONG",
                format!("{run}, and its turn did not come in {} ms", waited.as_millis()),
                retry_after,
            ),
            NoSlot::Closed => Self::new(DenialGate::Policy, Status::unavailable("the agent is stopping")),
        }
    }

    /// The call's own deadline came before its turn.
    pub(super) fn deadline() -> Self {
        let message = "the call's deadline passed before the execution began";
        Self::new(DenialGate::Policy, Status::deadline_exceeded(message))
    }

    /// The caller did not wait for its turn.
    pub(super) fn gone() -> Self {
        Self::new(DenialGate::Policy, Status::cancelled("the caller went away before the execution began"))
    }

    /// The budget refuses.
    pub(super) fn budget(denied: &v1::HoldDenied) -> Self {
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
        let mut details =
            ErrorDetails::with_error_info(denied.reason().as_str_name(), ERROR_DOMAIN, metadata);
        if denied.retry_after_ms > 0 {
            details.set_retry_info(Some(Duration::from_millis(denied.retry_after_ms)));
        }
        let status = Status::with_error_details(code, message, details);
        Self { scope: scope.clone(), meter: meter.clone(), ..Self::new(DenialGate::Budget, status) }
    }

    /// Controls are missing that this host has to have.
    pub(super) fn controls(missing: &[v1::Control]) -> Self {
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
        let status = Status::with_error_details(Code::FailedPrecondition, message, details);
        Self::new(DenialGate::Control, status)
    }

    /// The spool does not take the admission.
    pub(super) fn spool(error: &RecordError) -> Self {
        let message = format!("the admission can't be recorded: {error}");
        Self::new(DenialGate::Policy, Status::unavailable(message))
    }

    /// The same, of an admission that may be on disk all the same.
    pub(super) fn with_admission_in_doubt(self) -> Self {
        Self { is_admission_in_doubt: true, ..self }
    }

    /// Whether anybody can bring it about as often as they like, at no cost: then it is not recorded each time.
    pub(super) fn is_cheap(&self) -> bool {
        matches!(self.gate, DenialGate::Request | DenialGate::Policy)
    }

    /// As it is recorded, for itself and for so many before it that were not.
    pub(super) fn record(&self, subject: &Subject, unrecorded: u64) -> v1::ExecutionDenied {
        let mut reason = name::clip(&self.reason, MAX_REASON_BYTES).to_owned();
        if unrecorded > 0 {
            reason = format!("{reason} ({unrecorded} refusals of this tenant before it were not recorded)");
        }
        v1::ExecutionDenied {
            caller: subject.caller.clone(),
            gate: self.gate.into(),
            reason,
            program: subject.program.clone(),
            scope: self.scope.clone(),
            meter: self.meter.clone(),
        }
    }
}
