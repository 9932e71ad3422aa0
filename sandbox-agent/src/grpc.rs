//! The agent's RPCs: who may call, what a request says, and the answer as a stream. What happens in between is `execute.rs`.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use exchequer_auth::Caller;
use exchequer_event::v1::{self, agent_service_server::AgentService};
use futures::{Stream, StreamExt as _, stream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::execute::Executor;

/// The service over an executor.
#[derive(Clone)]
pub struct Service {
    executor: Arc<Executor>,
}

impl Service {
    /// The service over this executor.
    pub fn new(executor: Arc<Executor>) -> Self {
        Self { executor }
    }
}

#[tonic::async_trait]
impl AgentService for Service {
    type ExecuteStream = Pin<Box<dyn Stream<Item = Result<v1::ExecuteResponse, Status>> + Send>>;

    async fn execute(
        &self,
        request: Request<v1::ExecuteRequest>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        let caller = Caller::of(request.extensions())?.clone();
        let deadline = timeout(request.metadata()).and_then(|timeout| Instant::now().checked_add(timeout));
        let request = request.into_inner();
        let tenant = match (request.tenant.as_str(), &caller.tenant) {
            ("", Some(own)) => own.clone(),
            ("", None) => return Err(invalid("tenant", "is required: the token names none")),
            (asked, _) => asked.to_owned(),
        };
        caller.may_execute(&tenant)?;
        let mut parts = self.executor.begin(&caller, &tenant, request, deadline);
        // A refusal is the answer of the call itself, not of its stream.
        let first =
            parts.recv().await.ok_or_else(|| Status::internal("the execution ended without an answer"))??;
        let parts = stream::once(async { Ok(first) }).chain(ReceiverStream::new(parts));
        let parts = parts.map(|part| part.map(|part| v1::ExecuteResponse { part: Some(part) }));
        Ok(Response::new(Box::pin(parts)))
    }

    async fn get_capabilities(
        &self,
        request: Request<v1::GetCapabilitiesRequest>,
    ) -> Result<Response<v1::GetCapabilitiesResponse>, Status> {
        let caller = Caller::of(request.extensions())?;
        if caller.roles.is_empty() {
            return Err(Status::permission_denied("the token names no role"));
        }
        let (controls, probes) = self.executor.capabilities().await?;
        Ok(Response::new(v1::GetCapabilitiesResponse {
            controls,
            probes,
            allow_degraded: self.executor.options.allow_degraded,
            max_limits: Some(self.executor.options.max_limits),
            not_required: self.executor.options.not_required.clone(),
        }))
    }

    async fn get_spool_status(
        &self,
        request: Request<v1::GetSpoolStatusRequest>,
    ) -> Result<Response<v1::GetSpoolStatusResponse>, Status> {
        Caller::of(request.extensions())?.may_read_all()?;
        Ok(Response::new(self.executor.spool.status().await))
    }

    async fn list_slices(
        &self,
        request: Request<v1::ListSlicesRequest>,
    ) -> Result<Response<v1::ListSlicesResponse>, Status> {
        Caller::of(request.extensions())?.may_read_all()?;
        Ok(Response::new(v1::ListSlicesResponse { slices: self.executor.slices() }))
    }
}

fn invalid(field: &str, description: &str) -> Status {
    let details = ErrorDetails::with_bad_request_violation(field, description);
    Status::with_error_details(Code::InvalidArgument, format!("{field}: {description}"), details)
}

/// The call's `grpc-timeout`: up to eight digits and a unit. One that is malformed is none, as the transport takes it.
fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let amount: u64 = digits.parse().ok().filter(|_| is_number)?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calls_deadline_is_read_as_the_transport_reads_it() {
        let of = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            timeout(&metadata)
        };
        assert_eq!(of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(of("7u"), Some(Duration::from_micros(7)));
        for malformed in ["", "m", "123456789S", "-1S", "+1S", "1s", "1"] {
            assert_eq!(of(malformed), None, "{malformed:?}");
        }
        assert_eq!(timeout(&MetadataMap::new()), None);
    }
}
