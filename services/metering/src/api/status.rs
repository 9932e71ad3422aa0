//! Statuses that several RPCs answer with.
//!
//! Left out: which request gets which. Invariant: what a caller may try again says after how long.

use std::time::Duration;

use exchequer_budget::{Event, HoldId};
use exchequer_event::v1;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// When a caller should try again after `UNAVAILABLE` or `RESOURCE_EXHAUSTED`.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(500);

pub(crate) fn unavailable(reason: &str) -> Status {
    let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
    Status::with_error_details(Code::Unavailable, reason, details)
}

pub(super) fn busy(reason: &str) -> Status {
    let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
    Status::with_error_details(Code::ResourceExhausted, reason, details)
}

pub(super) fn no_hold(hold_id: &HoldId) -> Status {
    Status::not_found(format!("there is no hold {hold_id}"))
}

pub(super) fn refusal(refused: &v1::CommandRefused) -> Status {
    use v1::RefusalReason as Reason;
    let hold_id = &refused.hold_id;
    let (code, text) = match refused.reason() {
        Reason::HoldClosed => {
            (Code::FailedPrecondition, format!("hold {hold_id} was settled or voided, or has expired"))
        }
        Reason::NotHolder => (Code::PermissionDenied, format!("hold {hold_id} belongs to another holder")),
        Reason::HoldRevoked => (Code::FailedPrecondition, format!("hold {hold_id} was revoked")),
        Reason::NotALease => (Code::FailedPrecondition, format!("hold {hold_id} is no lease")),
        Reason::UnknownMeter => {
            (Code::InvalidArgument, "names a meter that the tenant has not defined".to_owned())
        }
        Reason::UnknownBudget => (Code::NotFound, "there is no such budget".to_owned()),
        Reason::UnknownGrant => (Code::NotFound, "there is no such grant, or it has ended".to_owned()),
        Reason::GrantExists => (Code::AlreadyExists, "a grant of this id was made before".to_owned()),
        Reason::BelowZero => (Code::FailedPrecondition, "takes back more than was spent".to_owned()),
        Reason::TooMany => {
            (Code::FailedPrecondition, "the tenant has as many of these as it may have".to_owned())
        }
        Reason::Time => (Code::InvalidArgument, "lies outside the time that is accepted".to_owned()),
        Reason::UnknownNotification => (Code::NotFound, "no such notification waits".to_owned()),
        Reason::Unspecified | Reason::UnknownHold => (Code::NotFound, format!("there is no hold {hold_id}")),
    };
    if refused.field.is_empty() {
        return Status::new(code, text);
    }
    let details = ErrorDetails::with_bad_request_violation(&refused.field, &text);
    Status::with_error_details(code, format!("{} {text}", refused.field), details)
}

pub(super) fn unexpected(reply: &Event) -> Status {
    tracing::error!(?reply, "a decision answers another command than was asked");
    Status::internal("the decision does not fit the request")
}

/// A value is missing although no fault was found with it.
pub(super) fn incomplete() -> Status {
    Status::internal("the request was checked incompletely")
}
