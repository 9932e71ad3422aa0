//! The RPCs: authorize, validate, hand to the writer, answer; or hand on to the instance whose call it is.
//!
//! This file is the table of the RPCs; what each does is in the file of its subject. Left out: who the caller is (the auth layer says
//! so) and every decision about budgets (the writer's). Invariant: a tenant is the first segment of a scope, no answer tells a caller
//! of one tenant whether something exists in another, and nobody but an agent acts or holds under an agent id.

mod admin;
mod batch;
mod budgets;
mod events;
mod holds;
mod look;
mod past;
mod place;
mod position;
mod status;
mod usage;
mod watch;
mod who;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use exchequer_budget::{Command, DecideError, IdempotencyKey, Meter, TenantId};
use exchequer_event::v1::{self, metering_service_server::MeteringService};
use tokio::time::timeout;
use tonic::{Request, Response, Status};

pub(crate) use self::{events::routes, status::unavailable, watch::Watchers};
use self::{
    place::{Place, hand_on},
    status::busy,
    who::Who,
};
use crate::{
    ask,
    core::Unanswered,
    queue::{Answered, Outcome, Queue, Refused},
    recall::Recall,
    snapshots::Snapshots,
    usage::UsageReader,
    writer::Shared,
};

/// The service behind gRPC and HTTP.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) shared: Shared,
    pub(crate) queue: Queue,
    /// Reads back what is over.
    pub(crate) recall: Recall,
    pub(crate) snapshots: Snapshots,
    pub(crate) watchers: Watchers,
    /// How long a call waits for its answer.
    pub(crate) patience: Duration,
    pub(crate) usage: UsageReader,
}

type Reply<T> = Result<Response<T>, Status>;

/// A request that one command answers.
trait Asking: Sized {
    /// What it is answered.
    type Answer;

    /// What it names that says whose it is.
    fn place(&self) -> Place<'_>;

    /// Whether the caller may ask this of any tenant: seen to before anything is read for it.
    fn permitted(_who: &Who) -> Result<(), Status> {
        Ok(())
    }

    /// The command, once every field was found good and the caller may ask this. `known` is the tenant of the hold that it names, if that
    /// hold is over.
    fn command(self, api: &Api, who: &Who, known: Option<TenantId>) -> Result<Command, Status>;

    /// The answer, from what was decided.
    fn answer(answered: Answered) -> Result<Self::Answer, Status>;
}

impl Api {
    /// Asks, and answers once it is durable.
    async fn ask<A: Asking>(&self, request: Request<A>) -> Reply<A::Answer> {
        let (who, message) = Who::open(request)?;
        A::permitted(&who)?;
        let known = self.known_tenant(&who, message.place()).await?;
        let command = message.command(self, &who, known)?;
        let answered = self.submit(command).await?;
        A::answer(answered).map(Response::new)
    }

    /// The tenant of a hold that is over.
    async fn known_tenant(&self, who: &Who, place: Place<'_>) -> Result<Option<TenantId>, Status> {
        match place {
            Place::Hold(hold_id) => self.past_tenant(who, hold_id).await,
            Place::Tenant(_) | Place::Scope(_) => Ok(None),
        }
    }

    /// That the tenant has defined every meter that is named and not the product's own; said with the path of the first that is not. The
    /// writer sees to it again; but what is refused here is not recorded.
    fn defined<'m>(
        &self,
        tenant: &TenantId,
        named: impl IntoIterator<Item = (&'m str, fn(usize) -> String)>,
    ) -> Result<(), Status> {
        let mut fold = None;
        for (at, (name, path)) in named.into_iter().enumerate() {
            let Some(meter) = Meter::parse(name).ok().filter(|meter| meter.is_custom()) else { continue };
            let fold = fold.get_or_insert_with(|| self.shared.fold());
            if !fold.budget_of(tenant).defines(tenant, meter) {
                return Err(ask::invalid(&path(at), "names a meter that the tenant has not defined"));
            }
        }
        Ok(())
    }

    async fn submit(&self, command: Command) -> Result<Answered, Status> {
        let partition = self.partition_of(command.tenant());
        let mut answers = self.submit_all(partition, vec![command]).await?;
        answers.pop().unwrap_or_else(|| Err(Status::internal("an answer is missing")))
    }

    /// Hands all commands of a partition over at once, in order; none, if there is no room for all. Each has its own answer.
    async fn submit_all(
        &self,
        partition: u16,
        commands: Vec<Command>,
    ) -> Result<Vec<Result<Answered, Status>>, Status> {
        let keys: Vec<_> = commands.iter().map(|command| Some(command.idempotency()?.key.clone())).collect();
        let answers = self.queue.submit_many(partition, commands).map_err(|refused| match refused {
            Refused::Full => busy("too many calls wait for a decision"),
            Refused::Closed => unavailable("stopping"),
        })?;
        let outcomes = match timeout(self.patience, answers).await {
            Ok(Ok(outcomes)) => outcomes,
            Ok(Err(_)) => {
                return Err(unavailable("the writer has ended; ask again with the same idempotency key"));
            }
            Err(_) => {
                return Err(unavailable("no decision in time; ask again with the same idempotency key"));
            }
        };
        Ok(keys.into_iter().zip(outcomes).map(|(key, outcome)| answered(key, outcome)).collect())
    }
}

fn answered(key: Option<IdempotencyKey>, outcome: Outcome) -> Result<Answered, Status> {
    match outcome {
        Ok(answered) => Ok(answered),
        Err(Unanswered::Refused(DecideError::IdempotencyConflict)) => {
            let key = key.as_ref().map(IdempotencyKey::as_str).unwrap_or_default();
            Err(Status::already_exists(format!(
                "idempotency_key `{key}` was used by another request; a key belongs to one request for good"
            )))
        }
        Err(Unanswered::Refused(DecideError::HoldIdTaken)) => {
            Err(Status::aborted("the id drawn for the hold is taken; ask again"))
        }
        Err(Unanswered::Unavailable(reason)) => Err(unavailable(&reason)),
    }
}

/// The meters that amounts name, with the way to say where.
fn meters_of(
    amounts: &[v1::MeterAmount],
    path: fn(usize) -> String,
) -> impl Iterator<Item = (&str, fn(usize) -> String)> {
    amounts.iter().map(move |amount| (amount.meter.as_str(), path))
}

fn clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[tonic::async_trait]
impl MeteringService for Api {
    type WatchBudgetsStream = tonic::codegen::BoxStream<v1::WatchBudgetsResponse>;

    async fn set_budget(&self, request: Request<v1::SetBudgetRequest>) -> Reply<v1::SetBudgetResponse> {
        hand_on!(self.set_budget, request, Place::Scope(&request.get_ref().scope));
        budgets::set(self, request).await
    }
    async fn remove_budget(
        &self,
        request: Request<v1::RemoveBudgetRequest>,
    ) -> Reply<v1::RemoveBudgetResponse> {
        hand_on!(self.remove_budget, request, request.get_ref().place());
        self.ask(request).await
    }
    async fn get_budget(&self, request: Request<v1::GetBudgetRequest>) -> Reply<v1::GetBudgetResponse> {
        hand_on!(self.get_budget, request, Place::Scope(&request.get_ref().scope));
        budgets::get(self, request)
    }
    async fn list_budgets(&self, request: Request<v1::ListBudgetsRequest>) -> Reply<v1::ListBudgetsResponse> {
        let tenant = Who::tenant_of(&request, &request.get_ref().tenant)?;
        hand_on!(self.list_budgets, request, Place::Tenant(&tenant));
        budgets::list(self, request)
    }
    async fn watch_budgets(
        &self,
        request: Request<v1::WatchBudgetsRequest>,
    ) -> Reply<Self::WatchBudgetsStream> {
        watch::budgets(self, request)
    }
    async fn add_grant(&self, request: Request<v1::AddGrantRequest>) -> Reply<v1::AddGrantResponse> {
        hand_on!(self.add_grant, request, request.get_ref().place());
        self.ask(request).await
    }
    async fn revoke_grant(&self, request: Request<v1::RevokeGrantRequest>) -> Reply<v1::RevokeGrantResponse> {
        hand_on!(self.revoke_grant, request, request.get_ref().place());
        self.ask(request).await
    }
    async fn set_rate_limit(
        &self,
        request: Request<v1::SetRateLimitRequest>,
    ) -> Reply<v1::SetRateLimitResponse> {
        hand_on!(self.set_rate_limit, request, request.get_ref().place());
        self.ask(request).await
    }
    async fn set_concurrency_limit(
        &self,
        request: Request<v1::SetConcurrencyLimitRequest>,
    ) -> Reply<v1::SetConcurrencyLimitResponse> {
        hand_on!(self.set_concurrency_limit, request, request.get_ref().place());
        self.ask(request).await
    }
    async fn set_price(&self, request: Request<v1::SetPriceRequest>) -> Reply<v1::SetPriceResponse> {
        hand_on!(self.set_price, request, request.get_ref().place());
        self.ask(request).await
    }
    async fn define_meter(&self, request: Request<v1::DefineMeterRequest>) -> Reply<v1::DefineMeterResponse> {
        hand_on!(self.define_meter, request, request.get_ref().place());
        self.ask(request).await
    }
    async fn set_webhook(&self, request: Request<v1::SetWebhookRequest>) -> Reply<v1::SetWebhookResponse> {
        hand_on!(self.set_webhook, request, request.get_ref().place());
        self.ask(request).await
    }
    async fn get_settings(&self, request: Request<v1::GetSettingsRequest>) -> Reply<v1::GetSettingsResponse> {
        let tenant = Who::tenant_of(&request, &request.get_ref().tenant)?;
        hand_on!(self.get_settings, request, Place::Tenant(&tenant));
        look::settings(self, request)
    }
    async fn reserve(&self, request: Request<v1::ReserveRequest>) -> Reply<v1::ReserveResponse> {
        hand_on!(self.reserve, request, request.get_ref().place());
        if request.get_ref().dry_run {
            return holds::try_reserve(self, request);
        }
        self.ask(request).await
    }
    async fn extend(&self, request: Request<v1::ExtendRequest>) -> Reply<v1::ExtendResponse> {
        hand_on!(self.extend, request, request.get_ref().place());
        self.ask(request).await
    }
    async fn settle(&self, request: Request<v1::SettleRequest>) -> Reply<v1::SettleResponse> {
        hand_on!(self.settle, request, request.get_ref().place());
        self.ask(request).await
    }
    async fn void(&self, request: Request<v1::VoidRequest>) -> Reply<v1::VoidResponse> {
        hand_on!(self.void, request, request.get_ref().place());
        self.ask(request).await
    }
    async fn draw_lease(&self, request: Request<v1::DrawLeaseRequest>) -> Reply<v1::DrawLeaseResponse> {
        hand_on!(self.draw_lease, request, request.get_ref().place());
        self.ask(request).await
    }
    async fn revoke_hold(&self, request: Request<v1::RevokeHoldRequest>) -> Reply<v1::RevokeHoldResponse> {
        hand_on!(self.revoke_hold, request, request.get_ref().place());
        self.ask(request).await
    }
    async fn get_hold(&self, request: Request<v1::GetHoldRequest>) -> Reply<v1::GetHoldResponse> {
        hand_on!(self.get_hold, request, Place::Hold(&request.get_ref().hold_id));
        look::hold(self, request).await
    }
    async fn list_holds(&self, request: Request<v1::ListHoldsRequest>) -> Reply<v1::ListHoldsResponse> {
        hand_on!(self.list_holds, request, Place::Scope(&request.get_ref().scope));
        look::holds(self, request)
    }
    async fn decide(&self, request: Request<v1::DecideRequest>) -> Reply<v1::DecideResponse> {
        batch::decide(self, request).await
    }
    async fn report_usage(&self, request: Request<v1::ReportUsageRequest>) -> Reply<v1::ReportUsageResponse> {
        hand_on!(self.report_usage, request, request.get_ref().place());
        self.ask(request).await
    }
    async fn correct_usage(
        &self,
        request: Request<v1::CorrectUsageRequest>,
    ) -> Reply<v1::CorrectUsageResponse> {
        hand_on!(self.correct_usage, request, request.get_ref().place());
        self.ask(request).await
    }
    async fn get_usage(&self, request: Request<v1::GetUsageRequest>) -> Reply<v1::GetUsageResponse> {
        hand_on!(self.get_usage, request, Place::Scope(&request.get_ref().scope));
        usage::get(self, request)
    }
    async fn query_usage(&self, request: Request<v1::QueryUsageRequest>) -> Reply<v1::QueryUsageResponse> {
        usage::query(self, request).await
    }
    async fn get_position(&self, request: Request<v1::GetPositionRequest>) -> Reply<v1::GetPositionResponse> {
        position::get(self, request).await
    }
}
