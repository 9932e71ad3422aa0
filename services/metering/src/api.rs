//! The RPCs: authorize, validate, hand to the writer, answer.
//!
//! Left out: who the caller is (the auth layer says so) and every decision about budgets (the writer's). Invariant: a tenant is the
//! first segment of a scope, no answer tells a caller of one tenant whether something exists in another, and nobody but an agent
//! acts or holds under an agent id.

use std::time::Duration;

use exchequer_auth::{Caller, Role};
use exchequer_budget::{
    Action, Amounts, BudgetTerms, Command, DecideError, Event, Hold, HoldId, Idempotency, ScopePath, Subject,
    TenantId, Window, wire,
};
use exchequer_event::{
    name,
    v1::{
        self, budget_event::Kind, extend_response, metering_service_server::MeteringService, reserve_response,
    },
};
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    ask::{self, Check},
    core::Unanswered,
    queue::{Answered, Queue, Refused},
    recall::Recall,
    route::{Peer, Route},
    writer::Shared,
};

/// When a caller should try again after `UNAVAILABLE`.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Budgets per page, unless the caller says otherwise.
const PAGE_SIZE: u32 = 100;
/// Most budgets per page.
const MAX_PAGE_SIZE: u32 = 1000;

/// The service behind gRPC.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) shared: Shared,
    pub(crate) queue: Queue,
    pub(crate) recall: Recall,
    /// How long a call waits for its answer.
    pub(crate) patience: Duration,
}

type Reply<T> = Result<Response<T>, Status>;

impl Api {
    /// Whether calls for a tenant are answered here.
    fn serving(&self, tenant: &TenantId) -> Result<(), Status> {
        self.serving_partition(self.shared.router.partition_of_tenant(tenant))
    }

    fn serving_hold(&self, hold_id: &HoldId) -> Result<(), Status> {
        let partition = self.shared.router.partition_of_hold(hold_id).ok_or_else(|| no_hold(hold_id))?;
        self.serving_partition(partition)
    }

    fn serving_partition(&self, partition: u16) -> Result<(), Status> {
        match self.shared.router.route(partition) {
            Route::Here => Ok(()),
            Route::There(peer) => Err(unavailable(&format!("the partition's owner is at {}", peer.address))),
            Route::Nobody(reason) => Err(unavailable(&reason)),
        }
    }

    /// The peer that a call for a tenant is to be handed on to, if it is not to be answered here.
    fn elsewhere(&self, metadata: &MetadataMap, tenant: &TenantId) -> Result<Option<Peer>, Status> {
        let router = &self.shared.router;
        router.elsewhere(metadata, router.partition_of_tenant(tenant))
    }

    async fn submit(&self, command: Command) -> Result<Answered, Status> {
        let key = command.idempotency().map(|asked| asked.key.to_string()).unwrap_or_default();
        let partition = self.shared.router.partition_of_tenant(command.tenant());
        let answers = self.queue.submit_many(partition, vec![command]).map_err(|refused| match refused {
            Refused::Full => {
                let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
                Status::with_error_details(
                    Code::ResourceExhausted,
                    "too many calls wait for a decision",
                    details,
                )
            }
            Refused::Closed => unavailable("stopping"),
        })?;
        let answer = async { answers.await.ok().and_then(|mut answers| answers.pop()) };
        match timeout(self.patience, answer).await {
            Ok(Some(Ok(answered))) => Ok(answered),
            Ok(Some(Err(Unanswered::Refused(DecideError::IdempotencyConflict)))) => {
                Err(Status::already_exists(format!(
                    "idempotency_key `{key}` was used by another request; a key belongs to one request for good"
                )))
            }
            Ok(Some(Err(Unanswered::Refused(DecideError::HoldIdTaken)))) => {
                Err(Status::aborted("the id drawn for the hold is taken; ask again"))
            }
            Ok(Some(Err(Unanswered::Unavailable(reason)))) => Err(unavailable(&reason)),
            Ok(None) => Err(unavailable("the writer has ended; ask again with the same idempotency key")),
            Err(_) => Err(unavailable("no decision in time; ask again with the same idempotency key")),
        }
    }

    /// A hold, live or closed; `NOT_FOUND` if there is none.
    async fn hold(&self, hold_id: &HoldId) -> Result<Hold, Status> {
        let (partition, past) = {
            let fold = self.shared.fold();
            let partition = fold.partition_of_hold(hold_id).ok_or_else(|| no_hold(hold_id))?;
            if let Some(hold) = fold.budget(partition).hold(hold_id) {
                return Ok(hold.clone());
            }
            (partition, fold.past(partition).hold_of(hold_id).ok_or_else(|| no_hold(hold_id))?)
        };
        self.recall.hold(partition, hold_id, past).await.map_err(|why| unavailable(&why))
    }

    /// The tenant of a hold that the caller may try to act on; `NOT_FOUND` if there is none that it may know of.
    async fn tenant_of_hold(&self, caller: &Caller, hold_id: &HoldId) -> Result<TenantId, Status> {
        let tenant = self.hold(hold_id).await?.scope.tenant_id();
        may_reserve(caller, &tenant).map_err(|_| no_hold(hold_id))?;
        Ok(tenant)
    }

    fn budget_of(&self, scope: &ScopePath) -> Result<Option<v1::Budget>, Status> {
        let fold = self.shared.fold();
        let view = fold.budget_of(&scope.tenant_id()).budget(scope, Window::AllTime);
        view.map(|view| wire::budget(&view).map_err(beyond)).transpose()
    }
}

#[tonic::async_trait]
impl MeteringService for Api {
    type WatchBudgetsStream = tonic::codegen::BoxStream<v1::WatchBudgetsResponse>;
    async fn watch_budgets(&self, _: Request<v1::WatchBudgetsRequest>) -> Reply<Self::WatchBudgetsStream> {
        Err(Status::unimplemented("draft"))
    }
    async fn remove_budget(&self, _: Request<v1::RemoveBudgetRequest>) -> Reply<v1::RemoveBudgetResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn add_grant(&self, _: Request<v1::AddGrantRequest>) -> Reply<v1::AddGrantResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn revoke_grant(&self, _: Request<v1::RevokeGrantRequest>) -> Reply<v1::RevokeGrantResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn set_rate_limit(&self, _: Request<v1::SetRateLimitRequest>) -> Reply<v1::SetRateLimitResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn set_concurrency_limit(
        &self,
        _: Request<v1::SetConcurrencyLimitRequest>,
    ) -> Reply<v1::SetConcurrencyLimitResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn set_price(&self, _: Request<v1::SetPriceRequest>) -> Reply<v1::SetPriceResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn define_meter(&self, _: Request<v1::DefineMeterRequest>) -> Reply<v1::DefineMeterResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn set_webhook(&self, _: Request<v1::SetWebhookRequest>) -> Reply<v1::SetWebhookResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn get_settings(&self, _: Request<v1::GetSettingsRequest>) -> Reply<v1::GetSettingsResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn draw_lease(&self, _: Request<v1::DrawLeaseRequest>) -> Reply<v1::DrawLeaseResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn revoke_hold(&self, _: Request<v1::RevokeHoldRequest>) -> Reply<v1::RevokeHoldResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn list_holds(&self, _: Request<v1::ListHoldsRequest>) -> Reply<v1::ListHoldsResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn decide(&self, _: Request<v1::DecideRequest>) -> Reply<v1::DecideResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn report_usage(&self, _: Request<v1::ReportUsageRequest>) -> Reply<v1::ReportUsageResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn correct_usage(&self, _: Request<v1::CorrectUsageRequest>) -> Reply<v1::CorrectUsageResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn query_usage(&self, _: Request<v1::QueryUsageRequest>) -> Reply<v1::QueryUsageResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn get_position(&self, _: Request<v1::GetPositionRequest>) -> Reply<v1::GetPositionResponse> {
        Err(Status::unimplemented("draft"))
    }
    async fn set_budget(&self, request: Request<v1::SetBudgetRequest>) -> Reply<v1::SetBudgetResponse> {
        let metadata = request.metadata().clone();
        let (caller, message) = open(request)?;
        let mut check = Check::default();
        let scope = check.scope(&message.scope);
        let granted = check.take(wire::allowance("granted", &message.granted));
        let key = check.optional_key(&message.idempotency_key);
        check.refusal()?;
        let (Some(scope), Some(granted)) = (scope, granted) else { return Err(incomplete()) };
        caller.may_set_budget(scope.tenant())?;
        let actor = actor(&caller)?;
        if let Some(peer) = self.elsewhere(&metadata, &scope.tenant_id())? {
            let answered = peer.client().set_budget(peer.request(message, &metadata)).await;
            return answered.map_err(|status| peer.failed(status));
        }
        let canonical = v1::SetBudgetRequest {
            granted: ask::sorted(message.granted),
            idempotency_key: String::new(),
            ..message
        };
        let idempotency = ask::idempotency(key, "SetBudget", &actor, &canonical);
        let action = Action::SetBudget { scope: scope.clone(), terms: BudgetTerms::all_time(granted).into() };
        self.submit(command(scope.tenant_id(), actor, idempotency, action)?).await?;
        let budget = self.budget_of(&scope)?;
        Ok(Response::new(v1::SetBudgetResponse { budget }))
    }

    async fn get_budget(&self, request: Request<v1::GetBudgetRequest>) -> Reply<v1::GetBudgetResponse> {
        let (caller, message) = open(request)?;
        let mut check = Check::default();
        let scope = check.scope(&message.scope);
        check.refusal()?;
        let scope = scope.ok_or_else(incomplete)?;
        caller.may_read_tenant(scope.tenant())?;
        self.serving(&scope.tenant_id())?;
        let budget = self.budget_of(&scope)?;
        let budget = budget.ok_or_else(|| Status::not_found(format!("scope {scope} has no budget")))?;
        Ok(Response::new(v1::GetBudgetResponse { budget: Some(budget.clone()), budgets: vec![budget] }))
    }

    async fn list_budgets(&self, request: Request<v1::ListBudgetsRequest>) -> Reply<v1::ListBudgetsResponse> {
        let (caller, message) = open(request)?;
        let mut check = Check::default();
        let spans_tenants = caller.may_read_all().is_ok();
        let tenant = match (&*message.tenant, &caller.tenant) {
            ("", _) if spans_tenants => None,
            ("", Some(own)) => check.tenant(own),
            ("", None) => {
                return Err(Status::permission_denied(
                    "the caller belongs to no tenant and may not read all of them",
                ));
            }
            (named, _) => check.tenant(named),
        };
        check.refusal()?;
        match &tenant {
            Some(tenant) => caller.may_read_tenant(tenant.as_str())?,
            None => caller.may_read_all()?,
        }
        let size = match message.page_size {
            0 => PAGE_SIZE,
            size @ 1..=MAX_PAGE_SIZE => size,
            _ => return Err(ask::out_of_range("page_size", "must be 0 to 1000")),
        };
        let after = match &*message.page_token {
            "" => None,
            token => {
                let not_one = |_| ask::out_of_range("page_token", "is not one that this method gave");
                Some(ask::parse_page_token(token).map_err(not_one)?)
            }
        };
        if let Some(tenant) = &tenant {
            self.serving(tenant)?;
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let fold = self.shared.fold();
        let after = after.as_ref().map(|scope| (scope, Window::Month));
        let mut views: Vec<_> = (0..fold.partitions())
            .flat_map(|partition| {
                fold.budget(partition).budgets(tenant.as_ref(), after).take(size.saturating_add(1))
            })
            .collect();
        views.sort_by_key(exchequer_budget::BudgetView::scope);
        let is_last = views.len() <= size;
        views.truncate(size);
        let next_page_token = match views.last() {
            Some(last) if !is_last => ask::page_token(last.scope()),
            _ => String::new(),
        };
        let budgets = views.iter().map(wire::budget);
        let budgets = budgets.collect::<Result<_, _>>().map_err(beyond)?;
        Ok(Response::new(v1::ListBudgetsResponse { budgets, next_page_token }))
    }

    async fn reserve(&self, request: Request<v1::ReserveRequest>) -> Reply<v1::ReserveResponse> {
        let metadata = request.metadata().clone();
        let (caller, message) = open(request)?;
        let mut check = Check::default();
        let scope = check.scope(&message.scope);
        let amounts = check.take(wire::requested_amounts("amounts", &message.amounts));
        let ttl = check.ttl(message.ttl_ms);
        let key = check.key(&message.idempotency_key);
        let named = check.optional_holder(&message.holder);
        check.refusal()?;
        let (Some(scope), Some(amounts), Some(ttl)) = (scope, amounts, ttl) else { return Err(incomplete()) };
        may_reserve(&caller, &scope.tenant_id())?;
        let actor = actor(&caller)?;
        let holder = named.unwrap_or_else(|| actor.clone());
        if holder != actor && !caller.has(Role::Admin) {
            return Err(Status::permission_denied(
                "holder may be another than the caller only for the role admin",
            ));
        }
        if let Some(peer) = self.elsewhere(&metadata, &scope.tenant_id())? {
            let answered = peer.client().reserve(peer.request(message, &metadata)).await;
            return answered.map_err(|status| peer.failed(status));
        }
        let canonical = v1::ReserveRequest {
            amounts: ask::sorted(message.amounts),
            idempotency_key: String::new(),
            ..message
        };
        let idempotency = ask::idempotency(key, "Reserve", &actor, &canonical);
        let tenant = scope.tenant_id();
        let hold_id = self.shared.router.draw_hold(&tenant);
        let action =
            Action::Reserve { hold_id, scope, holder, amounts, ttl, at_least: Amounts::NONE, lease: false };
        let answered = self.submit(command(tenant, actor, idempotency, action)?).await?;
        let outcome = match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::HoldGranted(granted)) => reserve_response::Outcome::Granted(granted),
            Some(Kind::HoldDenied(denied)) => reserve_response::Outcome::Denied(denied),
            Some(Kind::CommandRefused(refused)) => return Err(refusal(&refused)),
            _ => return Err(unexpected(&answered.reply)),
        };
        Ok(Response::new(v1::ReserveResponse { outcome: Some(outcome), stream_seq: answered.stream_seq }))
    }

    async fn extend(&self, request: Request<v1::ExtendRequest>) -> Reply<v1::ExtendResponse> {
        let (caller, message) = open(request)?;
        may_hold_somewhere(&caller)?;
        let mut check = Check::default();
        let hold_id = check.hold_id(&message.hold_id);
        let added = check.take(wire::added_amounts("amounts", &message.amounts));
        let ttl = check.ttl(message.ttl_ms);
        let key = check.key(&message.idempotency_key);
        check.refusal()?;
        let (Some(hold_id), Some(added), Some(ttl)) = (hold_id, added, ttl) else { return Err(incomplete()) };
        self.serving_hold(&hold_id)?;
        let tenant = self.tenant_of_hold(&caller, &hold_id).await?;
        let actor = actor(&caller)?;
        let canonical = v1::ExtendRequest {
            amounts: ask::sorted(message.amounts),
            idempotency_key: String::new(),
            ..message
        };
        let idempotency = ask::idempotency(key, "Extend", &actor, &canonical);
        let action = Action::Extend { hold_id, added, ttl };
        let answered = self.submit(command(tenant, actor, idempotency, action)?).await?;
        let outcome = match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::HoldExtended(extended)) => extend_response::Outcome::Extended(extended),
            Some(Kind::HoldDenied(denied)) => extend_response::Outcome::Denied(denied),
            Some(Kind::CommandRefused(refused)) => return Err(refusal(&refused)),
            _ => return Err(unexpected(&answered.reply)),
        };
        Ok(Response::new(v1::ExtendResponse { outcome: Some(outcome), stream_seq: answered.stream_seq }))
    }

    async fn settle(&self, request: Request<v1::SettleRequest>) -> Reply<v1::SettleResponse> {
        let (caller, message) = open(request)?;
        may_hold_somewhere(&caller)?;
        let mut check = Check::default();
        let hold_id = check.hold_id(&message.hold_id);
        let used = check.take(wire::used_amounts("used", &message.used));
        let key = check.key(&message.idempotency_key);
        check.refusal()?;
        let (Some(hold_id), Some(used)) = (hold_id, used) else { return Err(incomplete()) };
        self.serving_hold(&hold_id)?;
        let tenant = self.tenant_of_hold(&caller, &hold_id).await?;
        let actor = actor(&caller)?;
        let canonical =
            v1::SettleRequest { used: ask::sorted(message.used), idempotency_key: String::new(), ..message };
        let idempotency = ask::idempotency(key, "Settle", &actor, &canonical);
        let action = Action::Settle { hold_id, used, source: None };
        let answered = self.submit(command(tenant, actor, idempotency, action)?).await?;
        match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::HoldSettled(settled)) => Ok(Response::new(v1::SettleResponse {
                settled: Some(settled),
                stream_seq: answered.stream_seq,
            })),
            Some(Kind::CommandRefused(refused)) => Err(refusal(&refused)),
            _ => Err(unexpected(&answered.reply)),
        }
    }

    async fn void(&self, request: Request<v1::VoidRequest>) -> Reply<v1::VoidResponse> {
        let (caller, message) = open(request)?;
        may_hold_somewhere(&caller)?;
        let mut check = Check::default();
        let hold_id = check.hold_id(&message.hold_id);
        let key = check.key(&message.idempotency_key);
        check.refusal()?;
        let hold_id = hold_id.ok_or_else(incomplete)?;
        self.serving_hold(&hold_id)?;
        let tenant = self.tenant_of_hold(&caller, &hold_id).await?;
        let actor = actor(&caller)?;
        let canonical = v1::VoidRequest { idempotency_key: String::new(), ..message };
        let idempotency = ask::idempotency(key, "Void", &actor, &canonical);
        let answered = self.submit(command(tenant, actor, idempotency, Action::Void { hold_id })?).await?;
        match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::HoldVoided(voided)) => {
                Ok(Response::new(v1::VoidResponse { voided: Some(voided), stream_seq: answered.stream_seq }))
            }
            Some(Kind::CommandRefused(refused)) => Err(refusal(&refused)),
            _ => Err(unexpected(&answered.reply)),
        }
    }

    async fn get_hold(&self, request: Request<v1::GetHoldRequest>) -> Reply<v1::GetHoldResponse> {
        let (caller, message) = open(request)?;
        let mut check = Check::default();
        let hold_id = check.hold_id(&message.hold_id);
        check.refusal()?;
        let hold_id = hold_id.ok_or_else(incomplete)?;
        self.serving_hold(&hold_id)?;
        let hold = self.hold(&hold_id).await?;
        // A holder sees its own holds, whatever their tenant.
        let is_holder = may_reserve(&caller, &hold.scope.tenant_id()).is_ok()
            && actor(&caller).is_ok_and(|actor| actor == hold.holder);
        if !is_holder && caller.may_read_tenant(hold.scope.tenant()).is_err() {
            return Err(no_hold(&hold_id));
        }
        Ok(Response::new(wire::hold(&hold_id, &hold)))
    }

    async fn get_usage(&self, request: Request<v1::GetUsageRequest>) -> Reply<v1::GetUsageResponse> {
        let (caller, message) = open(request)?;
        let mut check = Check::default();
        let scope = check.scope(&message.scope);
        check.refusal()?;
        let scope = scope.ok_or_else(incomplete)?;
        caller.may_read_tenant(scope.tenant())?;
        self.serving(&scope.tenant_id())?;
        let fold = self.shared.fold();
        let partition = fold.partition_of_tenant(&scope.tenant_id());
        let usage = fold.budget(partition).usage(&scope);
        Ok(Response::new(v1::GetUsageResponse {
            scope: scope.to_string(),
            spent: wire::meter_totals(&usage.spent).map_err(beyond)?,
            held: wire::meter_totals(&usage.held).map_err(beyond)?,
            settled_holds: usage.settled_holds,
            open_holds: usage.open_holds,
            usage_cursor: fold.usage_cursor(partition),
        }))
    }
}

fn open<T>(request: Request<T>) -> Result<(Caller, T), Status> {
    let caller = Caller::of(request.extensions()).map_err(Status::from)?.clone();
    Ok((caller, request.into_inner()))
}

fn may_reserve(caller: &Caller, tenant: &TenantId) -> Result<(), Status> {
    match caller.may_hold() {
        Ok(()) => Ok(()),
        Err(denied) if caller.has(Role::TenantAdmin) => {
            caller.may_set_budget(tenant.as_str()).map_err(|_| Status::from(denied))
        }
        Err(_) => Err(Status::permission_denied("this needs the role agent, admin or tenant-admin")),
    }
}

/// Whether any hold could be the caller's; so that the others learn nothing by asking.
fn may_hold_somewhere(caller: &Caller) -> Result<(), Status> {
    if [Role::Agent, Role::Admin, Role::TenantAdmin].into_iter().any(|role| caller.has(role)) {
        Ok(())
    } else {
        Err(Status::permission_denied("this needs the role agent, admin or tenant-admin"))
    }
}

/// Under what name the caller acts and holds. An agent goes by its id, as in its recorded executions; anybody else by role and
/// subject, which no agent id can equal: whoever may choose the subjects of a tenant's tokens can't take over an agent's holds.
fn actor(caller: &Caller) -> Result<Subject, Status> {
    let name = if caller.has(Role::Agent) && name::is_holder(&caller.subject) {
        caller.subject.clone()
    } else {
        let role = [Role::Admin, Role::TenantAdmin, Role::User].into_iter().find(|role| caller.has(*role));
        let role = role.ok_or_else(|| {
            Status::permission_denied("the token's subject is no agent id: ^[a-z0-9][a-z0-9_-]{0,62}$")
        })?;
        format!("{}:{}", role.name(), caller.subject)
    };
    let unusable = |fault| Status::permission_denied(format!("the token's subject {fault}"));
    Subject::parse(&name).map_err(unusable)
}

fn command(
    tenant: TenantId,
    actor: Subject,
    idempotency: Option<Idempotency>,
    action: Action,
) -> Result<Command, Status> {
    Command::new(tenant, actor, idempotency, action).map_err(|invalid| {
        let mut check = Check::default();
        check.take::<()>(Err(invalid));
        check.refusal().err().unwrap_or_else(incomplete)
    })
}

pub(crate) fn unavailable(reason: &str) -> Status {
    let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
    Status::with_error_details(Code::Unavailable, reason, details)
}

fn no_hold(hold_id: &HoldId) -> Status {
    Status::not_found(format!("there is no hold {hold_id}"))
}

fn refusal(refused: &v1::CommandRefused) -> Status {
    let hold_id = &refused.hold_id;
    match refused.reason() {
        v1::RefusalReason::HoldClosed => {
            Status::failed_precondition(format!("hold {hold_id} was settled or voided, or has expired"))
        }
        v1::RefusalReason::NotHolder => {
            Status::permission_denied(format!("hold {hold_id} belongs to another holder"))
        }
        v1::RefusalReason::UnknownMeter => {
            let details = ErrorDetails::with_bad_request_violation(&*refused.field, "is not a meter");
            let message = format!("{} is not a meter", refused.field);
            Status::with_error_details(Code::InvalidArgument, message, details)
        }
        _ => Status::not_found(format!("there is no hold {hold_id}")),
    }
}

fn beyond(error: wire::BeyondWire) -> Status {
    Status::out_of_range(error.to_string())
}

fn unexpected(reply: &Event) -> Status {
    tracing::error!(?reply, "a decision answers another command than was asked");
    Status::internal("the decision does not fit the request")
}

/// A value is missing although no fault was found with it.
fn incomplete() -> Status {
    Status::internal("the request was checked incompletely")
}
