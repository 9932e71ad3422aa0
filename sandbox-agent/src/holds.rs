//! The agent's side of metering: which amounts an execution holds, and the calls that reserve and void them. Settling needs no call:
//! metering follows the recorded outcome.

use std::time::Duration;

use exchequer_auth::BearerToken;
use exchequer_event::v1::{self, metering_service_client::MeteringServiceClient};
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
    let memory_mib = limits.memory_bytes.div_ceil(1 << 20);
    let machine = [
        ("cpu_ms", limits.cpu_ms),
        ("wall_ms", limits.wall_ms),
        ("memory_mib_ms", memory_mib.saturating_mul(limits.wall_ms)),
        ("output_bytes", limits.output_bytes),
        ("invocations", 1),
    ];
    machine
        .into_iter()
        .map(|(meter, amount)| v1::MeterAmount { meter: meter.to_owned(), amount })
        .chain(extra.iter().cloned())
        .collect()
}
