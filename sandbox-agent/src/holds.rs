//! The agent's side of metering: which amounts an execution holds, and the calls about holds. An execution settles without a call:
//! metering follows the recorded outcome.

use std::time::Duration;

use exchequer_auth::BearerToken;
use exchequer_event::{
    metered::Metered,
    v1::{self, metering_service_client::MeteringServiceClient},
};
use tonic::{
    Code, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use tower::Layer as _;

/// How long metering may take before the execution is refused.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

type Transport = exchequer_telemetry::Traced<Channel>;

/// A client of the metering service.
#[derive(Clone, Debug)]
pub struct Holds {
    client: MeteringServiceClient<InterceptedService<Transport, BearerToken>>,
}

/// Why there is no hold.
#[derive(Debug)]
pub enum HoldError {
    /// The budget refuses.
    Denied(v1::HoldDenied),
    /// Metering understood the request and refuses it for another reason.
    Refused(Status),
    /// Metering did not answer, or can't decide now: nothing may run.
    Unavailable(Status),
}

/// Why a hold was not extended.
#[derive(Debug)]
pub enum ExtendError {
    /// The budget refuses; the hold stands as it was.
    Denied,
    /// It can't be extended any more: it was revoked, or is no longer there.
    Ended(Status),
    /// Metering did not answer, or can't decide now: whether it was extended is not known.
    Unavailable,
}

impl Holds {
    /// A client that connects when it is first used.
    pub fn new(url: &str, token: BearerToken) -> Result<Self, tonic::transport::Error> {
        let channel = Endpoint::from_shared(url.to_owned())?
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .connect_lazy();
        let traced = exchequer_telemetry::TraceLayer::client().layer(channel);
        Ok(Self { client: MeteringServiceClient::with_interceptor(traced, token) })
    }

    /// Reserves the amounts; the hold, or why there is none. An answer that got lost is asked for once more, under the same
    /// idempotency key; a hold that was granted unseen expires.
    pub async fn reserve(&self, request: v1::ReserveRequest) -> Result<v1::HoldGranted, HoldError> {
        match self.try_reserve(request.clone()).await {
            Err(HoldError::Unavailable(status)) => {
                tracing::warn!(%status, "asking metering once more");
                self.try_reserve(request).await
            }
            outcome => outcome,
        }
    }

    async fn try_reserve(&self, request: v1::ReserveRequest) -> Result<v1::HoldGranted, HoldError> {
        use v1::reserve_response::Outcome;
        let response = self.client.clone().reserve(request).await.map_err(|status| match status.code() {
            Code::InvalidArgument | Code::PermissionDenied | Code::AlreadyExists | Code::NotFound => {
                HoldError::Refused(status)
            }
            _ => HoldError::Unavailable(status),
        })?;
        match response.into_inner().outcome {
            Some(Outcome::Granted(hold)) => Ok(hold),
            Some(Outcome::Denied(denied)) => Err(HoldError::Denied(denied)),
            None => Err(HoldError::Unavailable(Status::internal("metering answered nothing"))),
        }
    }

    /// Extends a hold. An answer that got lost is asked for once more, under the same idempotency key.
    pub async fn extend(&self, request: v1::ExtendRequest) -> Result<v1::HoldExtended, ExtendError> {
        match self.try_extend(request.clone()).await {
            Err(ExtendError::Unavailable) => self.try_extend(request).await,
            outcome => outcome,
        }
    }

    async fn try_extend(&self, request: v1::ExtendRequest) -> Result<v1::HoldExtended, ExtendError> {
        use v1::extend_response::Outcome;
        let response = self.client.clone().extend(request).await.map_err(|status| match status.code() {
            Code::FailedPrecondition
            | Code::NotFound
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::AlreadyExists => ExtendError::Ended(status),
            _ => {
                tracing::warn!(%status, "a hold could not be extended");
                ExtendError::Unavailable
            }
        })?;
        match response.into_inner().outcome {
            Some(Outcome::Extended(extended)) => Ok(extended),
            Some(Outcome::Denied(_)) => Err(ExtendError::Denied),
            None => Err(ExtendError::Unavailable),
        }
    }

    /// A hold as metering has it; `None`, if that can't be learned now.
    pub async fn hold(&self, hold_id: &str) -> Option<v1::GetHoldResponse> {
        let request = v1::GetHoldRequest { hold_id: hold_id.to_owned() };
        match self.client.clone().get_hold(request).await {
            Ok(hold) => Some(hold.into_inner()),
            Err(status) => {
                tracing::debug!(%status, hold_id, "a hold could not be looked at");
                None
            }
        }
    }

    /// Gives back what is left of a lease from which everything was drawn that will be; whether metering has recorded that.
    pub async fn close(&self, hold_id: &str) -> bool {
        let request = v1::SettleRequest {
            hold_id: hold_id.to_owned(),
            idempotency_key: format!("close-{hold_id}"),
            ..v1::SettleRequest::default()
        };
        let settled = self.client.clone().settle(request).await;
        settled
            .inspect_err(|status| tracing::warn!(%status, hold_id, "a lease could not be given back"))
            .is_ok()
    }

    /// Gives a hold back that was not used. If that fails, it expires.
    pub async fn void(&self, hold_id: &str) {
        let request =
            v1::VoidRequest { hold_id: hold_id.to_owned(), idempotency_key: format!("void-{hold_id}") };
        if let Err(status) = self.client.clone().void(request).await {
            tracing::warn!(%status, hold_id, "a hold could not be voided; it expires");
        }
    }
}

/// What an execution may use at most, meter by meter: its limits, one invocation, and what was asked for beside the machine.
pub fn amounts(limits: &v1::Limits, extra: &[v1::MeterAmount]) -> Vec<v1::MeterAmount> {
    let mut amounts = Metered::at_most(limits).amounts();
    amounts.extend_from_slice(extra);
    amounts
}
