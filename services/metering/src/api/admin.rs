//! What tenant admins set beside budgets: grants, limits, prices, meters and webhooks; and the settings as they stand.
//!
//! Left out: what they do. Invariant: nothing is set for a tenant but by who may set its budgets; prices by the role admin alone.

use std::sync::Arc;

use exchequer_budget::{Action, Command, TenantId};
use exchequer_event::v1::{self, budget_event::Kind};
use tonic::Status;

use super::{
    Answered, Api, Asking,
    place::Place,
    status::{incomplete, refusal, unexpected},
    who::Who,
};
use crate::ask::{self, Check};

impl Asking for v1::AddGrantRequest {
    type Answer = v1::AddGrantResponse;

    fn place(&self) -> Place<'_> {
        Place::Scope(self.grant.as_ref().map_or("", |grant| &grant.scope))
    }

    fn command(mut self, api: &Api, who: &Who, _: Option<TenantId>) -> Result<Command, Status> {
        let mut check = Check::default();
        let terms = check.grant(self.grant.as_ref());
        let key = check.optional_key(&self.idempotency_key);
        check.refusal()?;
        let terms = terms.ok_or_else(incomplete)?;
        who.caller.may_set_budget(terms.scope.tenant())?;
        let actor = who.actor()?;
        api.defined(
            &terms.scope.tenant_id(),
            [(terms.meter.name(), (|_| "grant.meter".to_owned()) as fn(usize) -> String)],
        )?;
        self.idempotency_key.clear();
        let idempotency = ask::idempotency(key, "AddGrant", actor, &self);
        ask::command(terms.scope.tenant_id(), actor, idempotency, Action::AddGrant(Arc::new(terms)))
    }

    fn answer(answered: Answered) -> Result<Self::Answer, Status> {
        match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::GrantAdded(grant)) => {
                Ok(v1::AddGrantResponse { grant: Some(grant), stream_seq: answered.stream_seq })
            }
            Some(Kind::CommandRefused(refused)) => Err(refusal(&refused)),
            _ => Err(unexpected(&answered.reply)),
        }
    }
}

impl Asking for v1::RevokeGrantRequest {
    type Answer = v1::RevokeGrantResponse;

    fn place(&self) -> Place<'_> {
        Place::Tenant(&self.tenant)
    }

    fn command(mut self, _: &Api, who: &Who, _: Option<TenantId>) -> Result<Command, Status> {
        let mut check = Check::default();
        let tenant = check.tenant(&self.tenant);
        let grant_id = check.grant_id(&self.grant_id);
        let key = check.optional_key(&self.idempotency_key);
        check.refusal()?;
        let (Some(tenant), Some(grant_id)) = (tenant, grant_id) else { return Err(incomplete()) };
        who.caller.may_set_budget(tenant.as_str())?;
        let actor = who.actor()?;
        self.idempotency_key.clear();
        let idempotency = ask::idempotency(key, "RevokeGrant", actor, &self);
        ask::command(tenant, actor, idempotency, Action::RevokeGrant { grant_id })
    }

    fn answer(answered: Answered) -> Result<Self::Answer, Status> {
        match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::GrantEnded(ended)) => {
                Ok(v1::RevokeGrantResponse { ended: Some(ended), stream_seq: answered.stream_seq })
            }
            Some(Kind::CommandRefused(refused)) => Err(refusal(&refused)),
            _ => Err(unexpected(&answered.reply)),
        }
    }
}

impl Asking for v1::SetRateLimitRequest {
    type Answer = v1::SetRateLimitResponse;

    fn place(&self) -> Place<'_> {
        Place::Scope(self.limit.as_ref().map_or("", |limit| &limit.scope))
    }

    fn command(mut self, api: &Api, who: &Who, _: Option<TenantId>) -> Result<Command, Status> {
        let mut check = Check::default();
        let limit = check.rate_limit(self.limit.as_ref());
        let key = check.optional_key(&self.idempotency_key);
        check.refusal()?;
        let limit = limit.ok_or_else(incomplete)?;
        who.caller.may_set_budget(limit.scope.tenant())?;
        let actor = who.actor()?;
        api.defined(
            &limit.scope.tenant_id(),
            [(limit.meter.name(), (|_| "limit.meter".to_owned()) as fn(usize) -> String)],
        )?;
        self.idempotency_key.clear();
        let idempotency = ask::idempotency(key, "SetRateLimit", actor, &self);
        ask::command(limit.scope.tenant_id(), actor, idempotency, Action::SetRateLimit(limit))
    }

    fn answer(answered: Answered) -> Result<Self::Answer, Status> {
        match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::RateLimitSet(_)) => Ok(v1::SetRateLimitResponse { stream_seq: answered.stream_seq }),
            Some(Kind::CommandRefused(refused)) => Err(refusal(&refused)),
            _ => Err(unexpected(&answered.reply)),
        }
    }
}

impl Asking for v1::SetConcurrencyLimitRequest {
    type Answer = v1::SetConcurrencyLimitResponse;

    fn place(&self) -> Place<'_> {
        Place::Scope(self.limit.as_ref().map_or("", |limit| &limit.scope))
    }

    fn command(mut self, _: &Api, who: &Who, _: Option<TenantId>) -> Result<Command, Status> {
        let mut check = Check::default();
        let limit = check.concurrency_limit(self.limit.as_ref());
        let key = check.optional_key(&self.idempotency_key);
        check.refusal()?;
        let (scope, max_open_holds) = limit.ok_or_else(incomplete)?;
        who.caller.may_set_budget(scope.tenant())?;
        let actor = who.actor()?;
        self.idempotency_key.clear();
        let idempotency = ask::idempotency(key, "SetConcurrencyLimit", actor, &self);
        let action = Action::SetConcurrencyLimit { scope: scope.clone(), max_open_holds };
        ask::command(scope.tenant_id(), actor, idempotency, action)
    }

    fn answer(answered: Answered) -> Result<Self::Answer, Status> {
        match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::ConcurrencyLimitSet(_)) => {
                Ok(v1::SetConcurrencyLimitResponse { stream_seq: answered.stream_seq })
            }
            Some(Kind::CommandRefused(refused)) => Err(refusal(&refused)),
            _ => Err(unexpected(&answered.reply)),
        }
    }
}

impl Asking for v1::SetPriceRequest {
    type Answer = v1::SetPriceResponse;

    fn place(&self) -> Place<'_> {
        Place::Scope(self.price.as_ref().map_or("", |price| &price.scope))
    }

    fn command(mut self, api: &Api, who: &Who, _: Option<TenantId>) -> Result<Command, Status> {
        let mut check = Check::default();
        let price = check.price(self.price.as_ref());
        let key = check.optional_key(&self.idempotency_key);
        check.refusal()?;
        let price = price.ok_or_else(incomplete)?;
        who.caller.may_administer()?;
        let actor = who.actor()?;
        api.defined(
            &price.scope.tenant_id(),
            [(price.meter.name(), (|_| "price.meter".to_owned()) as fn(usize) -> String)],
        )?;
        self.idempotency_key.clear();
        let idempotency = ask::idempotency(key, "SetPrice", actor, &self);
        ask::command(price.scope.tenant_id(), actor, idempotency, Action::SetPrice(price))
    }

    fn answer(answered: Answered) -> Result<Self::Answer, Status> {
        match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::PriceSet(_)) => Ok(v1::SetPriceResponse { stream_seq: answered.stream_seq }),
            Some(Kind::CommandRefused(refused)) => Err(refusal(&refused)),
            _ => Err(unexpected(&answered.reply)),
        }
    }
}

impl Asking for v1::DefineMeterRequest {
    type Answer = v1::DefineMeterResponse;

    fn place(&self) -> Place<'_> {
        Place::Tenant(self.meter.as_ref().map_or("", |meter| &meter.tenant))
    }

    fn command(mut self, _: &Api, who: &Who, _: Option<TenantId>) -> Result<Command, Status> {
        let mut check = Check::default();
        let defined = check.meter_definition(self.meter.as_ref());
        let tenant = self.meter.as_ref().and_then(|meter| check.tenant_at("meter.tenant", &meter.tenant));
        let key = check.optional_key(&self.idempotency_key);
        check.refusal()?;
        let (Some(tenant), Some((meter, description))) = (tenant, defined) else { return Err(incomplete()) };
        who.caller.may_set_budget(tenant.as_str())?;
        let actor = who.actor()?;
        self.idempotency_key.clear();
        let idempotency = ask::idempotency(key, "DefineMeter", actor, &self);
        ask::command(tenant, actor, idempotency, Action::DefineMeter { meter, description })
    }

    fn answer(answered: Answered) -> Result<Self::Answer, Status> {
        match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::MeterDefined(_)) => Ok(v1::DefineMeterResponse { stream_seq: answered.stream_seq }),
            Some(Kind::CommandRefused(refused)) => Err(refusal(&refused)),
            _ => Err(unexpected(&answered.reply)),
        }
    }
}

impl Asking for v1::SetWebhookRequest {
    type Answer = v1::SetWebhookResponse;

    fn place(&self) -> Place<'_> {
        Place::Tenant(self.webhook.as_ref().map_or("", |webhook| &webhook.tenant))
    }

    fn command(mut self, _: &Api, who: &Who, _: Option<TenantId>) -> Result<Command, Status> {
        let mut check = Check::default();
        let url = check.webhook(self.webhook.as_ref());
        let webhook = self.webhook.as_ref();
        let tenant = webhook.and_then(|webhook| check.tenant_at("webhook.tenant", &webhook.tenant));
        let key = check.optional_key(&self.idempotency_key);
        check.refusal()?;
        let tenant = tenant.ok_or_else(incomplete)?;
        who.caller.may_set_budget(tenant.as_str())?;
        let actor = who.actor()?;
        self.idempotency_key.clear();
        let idempotency = ask::idempotency(key, "SetWebhook", actor, &self);
        ask::command(tenant, actor, idempotency, Action::SetWebhook { url })
    }

    fn answer(answered: Answered) -> Result<Self::Answer, Status> {
        match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::WebhookSet(_)) => Ok(v1::SetWebhookResponse { stream_seq: answered.stream_seq }),
            Some(Kind::CommandRefused(refused)) => Err(refusal(&refused)),
            _ => Err(unexpected(&answered.reply)),
        }
    }
}
