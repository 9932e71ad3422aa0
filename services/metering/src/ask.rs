//! From requests to commands: every field checked, every fault reported with its path, all of them together.
//!
//! Left out: permissions and answers ([`crate::api`]). Invariant: what comes out is valid; a request that differs in anything but
//! the order of its amounts has another digest.

mod policy;

use exchequer_budget::{
    Action, Command, HoldId, Idempotency, IdempotencyKey, Invalid, ScopePath, Subject, TenantId, Ttl,
};
use exchequer_event::digest::Purpose;
use exchequer_event::v1;
use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Items per page, unless the caller says otherwise.
const PAGE_SIZE: usize = 100;
/// Most items per page.
const MAX_PAGE_SIZE: u32 = 1000;

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

    /// A fault that no type of the model knows.
    pub(crate) fn fault(&mut self, field: &str, fault: &str) {
        self.details.add_bad_request_violation(field, fault);
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
        self.tenant_at("tenant", text)
    }

    pub(crate) fn tenant_at(&mut self, field: &str, text: &str) -> Option<TenantId> {
        self.take(TenantId::parse(text).map_err(|fault| fault.at(field)))
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

/// A fault of one field: `INVALID_ARGUMENT`.
pub(crate) fn invalid(field: &str, fault: &str) -> Status {
    let details = ErrorDetails::with_bad_request_violation(field, fault);
    Status::with_error_details(Code::InvalidArgument, format!("{field} {fault}"), details)
}

/// A fault of one field that is beyond what there is: `OUT_OF_RANGE`.
pub(crate) fn out_of_range(field: &str, fault: &str) -> Status {
    let details = ErrorDetails::with_bad_request_violation(field, fault);
    Status::with_error_details(Code::OutOfRange, format!("{field} {fault}"), details)
}

/// Key and digest of a request. The digest covers the actor and everything asked, of which `canonical` has the amounts in
/// order and the key left out.
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

/// Puts amounts in the order of their names.
pub(crate) fn sort(amounts: &mut [v1::MeterAmount]) {
    amounts.sort_unstable_by(|a, b| a.meter.cmp(&b.meter));
}

/// The command, if the action fits the tenant.
pub(crate) fn command(
    tenant: TenantId,
    actor: &Subject,
    idempotency: Option<Idempotency>,
    action: Action,
) -> Result<Command, Status> {
    Command::new(tenant, actor.clone(), idempotency, action)
        .map_err(|Invalid { field, fault }| invalid(&field, &fault.to_string()))
}

/// How many items a page has.
pub(crate) fn page_size(asked: u32) -> Result<usize, Status> {
    match asked {
        0 => Ok(PAGE_SIZE),
        1..=MAX_PAGE_SIZE => Ok(usize::try_from(asked).unwrap_or(PAGE_SIZE)),
        _ => Err(out_of_range("page_size", "must be 0 to 1000")),
    }
}

/// The token of the page that begins after `last`, of the method that `method` names.
pub(crate) fn token(method: &str, last: &str) -> String {
    hex::encode(format!("{method}:{last}"))
}

/// What the page begins after; nothing for the first.
pub(crate) fn parse_token<T>(
    method: &str,
    token: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let text = hex::decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let last = text.as_deref().and_then(|text| text.strip_prefix(method)?.strip_prefix(':'));
    let last =
        last.and_then(parse).ok_or_else(|| out_of_range("page_token", "is not one that this method gave"))?;
    Ok(Some(last))
}
