//! The agent's RPCs: who may call, what a request says, and the answer as a stream. What happens in between is `execute.rs`.

use std::{pin::Pin, sync::Arc};

use exchequer_auth::Caller;
use exchequer_event::v1::{self, agent_service_server::AgentService};
use futures::{Stream, StreamExt as _, stream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    execute::Executor,
    request::{self, Faults},
};

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
        let request = request.into_inner();
        let tenant = match (request.tenant.as_str(), &caller.tenant) {
            ("", Some(own)) => own.clone(),
            ("", None) => return Err(invalid("tenant", "is required: the token names none")),
            (asked, _) => asked.to_owned(),
        };
        caller.may_execute(&tenant)?;
        let checked = request::check(request, &tenant, &self.executor.options).map_err(refuse)?;
        let mut parts = self.executor.begin(&caller, checked);
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
        Ok(Response::new(v1::GetCapabilitiesResponse {
            controls: self.executor.probe().await?,
            allow_degraded: self.executor.options.allow_degraded,
            max_limits: Some(self.executor.options.max_limits),
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

fn refuse(faults: Faults) -> Status {
    let first =
        faults.0.first().map(|fault| format!("{}: {}", fault.field, fault.description)).unwrap_or_default();
    Status::with_error_details(Code::InvalidArgument, first, ErrorDetails::with_bad_request(faults.0))
}

fn invalid(field: &str, description: &str) -> Status {
    let details = ErrorDetails::with_bad_request_violation(field, description);
    Status::with_error_details(Code::InvalidArgument, format!("{field}: {description}"), details)
}
