//! Errors as gRPC statuses, with the field that is at fault.
//!
//! Left out: authentication and authorisation, which have their own. Invariant: a status says what the caller may do next.

use bytes::Bytes;
use exchequer_event::{
    name::MAX_BATCH_BYTES,
    seal::Refusal,
    v1::{self, RejectionReason},
};
use exchequer_stream::AppendError;
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{key::rotate::RotateError, store::StoreError};

/// `INVALID_ARGUMENT` for one field.
pub(super) fn field(field: &str, reason: impl Into<String>) -> Status {
    let reason = reason.into();
    let details = ErrorDetails::with_bad_request_violation(field, reason.clone());
    Status::with_error_details(Code::InvalidArgument, format!("{field}: {reason}"), details)
}

/// `OUT_OF_RANGE` for a field that is beyond the signed log.
pub(super) fn out_of_range(field: &str, asked: u64, size: u64) -> Status {
    let reason = format!("{asked} is beyond the signed log of {size} entries");
    let details = ErrorDetails::with_bad_request_violation(field, reason.clone());
    Status::with_error_details(Code::OutOfRange, format!("{field}: {reason}"), details)
}

/// What the stream said to an append.
pub(super) fn append(error: AppendError) -> Status {
    let text = error.to_string();
    match error {
        AppendError::Unavailable(_) => Status::unavailable(text),
        // What is appended here may be appended twice without harm.
        AppendError::Unknown(_) | AppendError::WrongLast { .. } => {
            Status::unavailable(format!("{text}; try again"))
        }
        AppendError::Full(_) => Status::resource_exhausted(text),
        AppendError::TooLarge { .. } | AppendError::Invalid(_) => Status::invalid_argument(text),
    }
}

/// Why the ledger's key was not rotated.
pub(super) fn rotate(error: RotateError) -> Status {
    let text = error.to_string();
    match error {
        RotateError::NotSigning(_) | RotateError::Revoked => Status::failed_precondition(text),
        RotateError::InProgress => Status::aborted(text),
        RotateError::Append(error) => append(error),
        RotateError::Stopped => Status::unavailable(text),
        RotateError::File(_) | RotateError::Note { .. } | RotateError::Key(_) => {
            tracing::error!(error = text, "the ledger's key can't be rotated");
            Status::internal("the ledger's key files can't be written")
        }
    }
}

/// What is wrong with a batch.
pub(super) fn refusal(refusal: &Refusal) -> Status {
    match refusal.reason {
        RejectionReason::UnknownKey => {
            Status::failed_precondition(format!("no key of this agent is enrolled: {}", refusal.detail))
        }
        _ => field("batch", refusal.to_string()),
    }
}

/// What the log's files said. The caller can do nothing about it, and learns no paths.
#[expect(clippy::needless_pass_by_value, reason = "it is the argument of map_err")]
pub(super) fn store(error: StoreError) -> Status {
    tracing::error!(%error, "the log can't be read");
    match error {
        StoreError::OutOfRange { asked, size } => {
            Status::out_of_range(format!("{asked} is beyond the log of {size} entries"))
        }
        StoreError::Damaged { .. } | StoreError::NotInTree { .. } => Status::data_loss("the log is damaged"),
        StoreError::Io { .. } | StoreError::TooLarge(_) => Status::internal("the log can't be read"),
    }
}

/// The agent that a batch's seal names, if it is another than this one.
pub(super) fn foreign_seal(batch: &Bytes, agent_id: &str) -> Option<String> {
    if batch.len() > MAX_BATCH_BYTES {
        return None;
    }
    let signed = v1::SignedBatch::decode(batch.clone()).ok()?;
    let seal = v1::BatchSeal::decode(signed.seal).ok()?;
    (seal.agent_id != agent_id).then_some(seal.agent_id)
}
