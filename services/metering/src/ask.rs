//! From requests to commands: every field checked, every fault reported with its path, all of them together.
//!
//! Left out: permissions and answers ([`crate::api`]). Invariant: what comes out is valid; a request that differs in anything but
//! the order of its amounts has another digest.

use exchequer_budget::{
    Fault, HoldId, Idempotency, IdempotencyKey, Invalid, ScopePath, Subject, TenantId, Ttl,
};
use exchequer_event::digest::Purpose;
use exchequer_event::v1;
use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Faults of one request.
#[derive(Debug, Default)]
pub(crate) struct Check {
    details: ErrorDetails,
}

impl Check {
    /// The value, or a fault that [`Self::refusal`] reports.
    pub(crate) fn take<T>(&mut self, checked: Result<T, Invalid>) -> Option<T> {
        match checked {
            Ok(value) => Some(value),
            Err(invalid) => {
                self.details.add_bad_request_violation(invalid.field, invalid.fault.to_string());
                None
            }
        }
    }

    pub(crate) fn scope(&mut self, text: &str) -> Option<ScopePath> {
        self.take(ScopePath::parse(text).map_err(|fault| fault.at("scope")))
    }

    pub(crate) fn hold_id(&mut self, text: &str) -> Option<HoldId> {
        self.take(HoldId::parse(text).map_err(|fault| fault.at("hold_id")))
    }

    pub(crate) fn ttl(&mut self, ms: u64) -> Option<Ttl> {
        self.take(Ttl::from_ms(ms).map_err(|fault| fault.at("ttl_ms")))
    }

    pub(crate) fn key(&mut self, text: &str) -> Option<IdempotencyKey> {
        self.take(IdempotencyKey::parse(text).map_err(|fault| fault.at("idempotency_key")))
    }

    /// A key, or none where none is needed.
    pub(crate) fn optional_key(&mut self, text: &str) -> Option<IdempotencyKey> {
        if text.is_empty() { None } else { self.key(text) }
    }

    /// A holder, or none where none is named.
    pub(crate) fn optional_holder(&mut self, text: &str) -> Option<Subject> {
        if text.is_empty() {
            return None;
        }
        self.take(Subject::parse(text).map_err(|fault| fault.at("holder")))
    }

    pub(crate) fn tenant(&mut self, text: &str) -> Option<TenantId> {
        self.take(TenantId::parse(text).map_err(|fault| fault.at("tenant")))
    }

    /// `INVALID_ARGUMENT` with every fault so far.
    pub(crate) fn refusal(&self) -> Result<(), Status> {
        let Some(violations) = self.details.bad_request() else { return Ok(()) };
        let faults: Vec<_> = violations
            .field_violations
            .iter()
            .map(|violation| format!("{} {}", violation.field, violation.description))
            .collect();
        Err(Status::with_error_details(Code::InvalidArgument, faults.join("; "), self.details.clone()))
    }
}

/// A fault of one field that is beyond what there is: `OUT_OF_RANGE`.
pub(crate) fn out_of_range(field: &str, fault: &str) -> Status {
    let details = ErrorDetails::with_bad_request_violation(field, fault);
    Status::with_error_details(Code::OutOfRange, format!("{field} {fault}"), details)
}

/// Key and digest of a request. The digest covers the actor and everything asked but the key; amounts in any order are the same.
pub(crate) fn idempotency<M: Message>(
    key: Option<IdempotencyKey>,
    rpc: &str,
    actor: &Subject,
    canonical: &M,
) -> Option<Idempotency> {
    let key = key?;
    let body = canonical.encode_to_vec();
    let request_hash =
        Purpose::Request.digest_fields([rpc.as_bytes(), actor.as_str().as_bytes(), body.as_slice()]).0;
    Some(Idempotency { key, request_hash })
}

/// Amounts in the order of their names.
pub(crate) fn sorted(mut amounts: Vec<v1::MeterAmount>) -> Vec<v1::MeterAmount> {
    amounts.sort_by(|a, b| a.meter.cmp(&b.meter));
    amounts
}

const TOKEN_TAG: &str = "1:";

/// The token of the page that begins after `scope`.
pub(crate) fn page_token(scope: &ScopePath) -> String {
    hex::encode(format!("{TOKEN_TAG}{scope}"))
}

/// The scope that a page begins after.
pub(crate) fn parse_page_token(token: &str) -> Result<ScopePath, Fault> {
    let bytes = hex::decode(token).map_err(|_| Fault::Undecodable)?;
    let text = String::from_utf8(bytes).map_err(|_| Fault::Undecodable)?;
    ScopePath::parse(text.strip_prefix(TOKEN_TAG).ok_or(Fault::Undecodable)?)
}
