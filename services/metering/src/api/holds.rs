//! Holds: reserving, extending, settling, drawing, voiding, revoking.
//!
//! Left out: whether a hold is granted. Invariant: only who may hold in a hold's tenant learns that there is such a hold, unless it may
//! read that tenant.

use exchequer_budget::{Action, Command, HoldId, TenantId, preview, wire};
use exchequer_event::v1::{self, budget_event::Kind, extend_response, reserve_response};
use tonic::{Request, Response, Status};

use super::{
    Answered, Api, Asking, Reply, clock_ms, meters_of,
    place::Place,
    status::{incomplete, no_hold, refusal, unexpected},
    who::Who,
};
use crate::ask::{self, Check};

/// The tenant of a hold that the caller may try to act on; `NOT_FOUND` if there is none that it may know of. `known` is the tenant of
/// one that is over.
fn tenant_of_hold(
    api: &Api,
    who: &Who,
    hold_id: &HoldId,
    known: Option<TenantId>,
) -> Result<TenantId, Status> {
    let tenant = if let Some(tenant) = known {
        tenant
    } else {
        let fold = api.shared.fold();
        let partition = fold.partition_of_hold(hold_id).ok_or_else(|| no_hold(hold_id))?;
        let hold = fold.budget(partition).hold(hold_id).ok_or_else(|| no_hold(hold_id))?;
        hold.scope.tenant_id()
    };
    who.may_reserve(tenant.as_str()).map_err(|_| no_hold(hold_id))?;
    Ok(tenant)
}

impl Asking for v1::ReserveRequest {
    type Answer = v1::ReserveResponse;

    fn place(&self) -> Place<'_> {
        Place::Scope(&self.scope)
    }

    fn command(mut self, api: &Api, who: &Who, _: Option<TenantId>) -> Result<Command, Status> {
        let mut check = Check::default();
        let scope = check.scope(&self.scope);
        let amounts = check.take(wire::requested_amounts("amounts", &self.amounts));
        let at_least =
            amounts.as_ref().map(|amounts| wire::least_amounts("at_least", &self.at_least, amounts));
        let at_least = at_least.and_then(|at_least| check.take(at_least));
        let ttl = check.ttl(self.ttl_ms);
        // What records nothing needs no key.
        let key = if self.dry_run { None } else { check.key(&self.idempotency_key) };
        let named = check.optional_holder(&self.holder);
        check.refusal()?;
        let (Some(scope), Some(amounts), Some(at_least), Some(ttl)) = (scope, amounts, at_least, ttl) else {
            return Err(incomplete());
        };
        who.may_reserve(scope.tenant())?;
        let actor = who.actor()?;
        let holder = named.unwrap_or_else(|| actor.clone());
        if holder != *actor && who.caller.may_administer().is_err() {
            return Err(Status::permission_denied(
                "holder may be another than the caller only for the role admin",
            ));
        }
        api.defined(&scope.tenant_id(), meters_of(&self.amounts, |at| format!("amounts[{at}].meter")))?;
        self.idempotency_key.clear();
        ask::sort(&mut self.amounts);
        ask::sort(&mut self.at_least);
        let idempotency = ask::idempotency(key, "Reserve", actor, &self);
        let tenant = scope.tenant_id();
        let hold_id = api.shared.router.draw_hold(&tenant);
        let lease = self.lease;
        let action = Action::Reserve { hold_id, scope, holder, amounts, ttl, at_least, lease };
        ask::command(tenant, actor, idempotency, action)
    }

    fn answer(answered: Answered) -> Result<Self::Answer, Status> {
        let outcome = match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::HoldGranted(granted)) => reserve_response::Outcome::Granted(granted),
            Some(Kind::HoldDenied(denied)) => reserve_response::Outcome::Denied(denied),
            Some(Kind::CommandRefused(refused)) => return Err(refusal(&refused)),
            _ => return Err(unexpected(&answered.reply)),
        };
        Ok(v1::ReserveResponse { outcome: Some(outcome), stream_seq: answered.stream_seq })
    }
}

/// Says what a reservation would be answered now, and records nothing.
pub(super) fn try_reserve(api: &Api, request: Request<v1::ReserveRequest>) -> Reply<v1::ReserveResponse> {
    let (who, message) = Who::open(request)?;
    let command = message.command(api, &who, None)?;
    let fold = api.shared.fold();
    let partition = fold.partition_of_tenant(command.tenant());
    let reply = preview(fold.budget(partition), fold.past(partition), &command, clock_ms());
    drop(fold);
    let reply = reply.map_err(|error| Status::aborted(error.to_string()))?;
    v1::ReserveRequest::answer(Answered { reply, stream_seq: 0, repeated: false }).map(Response::new)
}

impl Asking for v1::ExtendRequest {
    type Answer = v1::ExtendResponse;

    fn place(&self) -> Place<'_> {
        Place::Hold(&self.hold_id)
    }

    fn permitted(who: &Who) -> Result<(), Status> {
        who.may_hold_somewhere()
    }

    fn command(mut self, api: &Api, who: &Who, known: Option<TenantId>) -> Result<Command, Status> {
        let mut check = Check::default();
        let hold_id = check.hold_id(&self.hold_id);
        let added = check.take(wire::added_amounts("amounts", &self.amounts));
        let ttl = check.ttl(self.ttl_ms);
        let key = check.key(&self.idempotency_key);
        check.refusal()?;
        let (Some(hold_id), Some(added), Some(ttl)) = (hold_id, added, ttl) else { return Err(incomplete()) };
        let tenant = tenant_of_hold(api, who, &hold_id, known)?;
        let actor = who.actor()?;
        api.defined(&tenant, meters_of(&self.amounts, |at| format!("amounts[{at}].meter")))?;
        self.idempotency_key.clear();
        ask::sort(&mut self.amounts);
        let idempotency = ask::idempotency(key, "Extend", actor, &self);
        ask::command(tenant, actor, idempotency, Action::Extend { hold_id, added, ttl })
    }

    fn answer(answered: Answered) -> Result<Self::Answer, Status> {
        let outcome = match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::HoldExtended(extended)) => extend_response::Outcome::Extended(extended),
            Some(Kind::HoldDenied(denied)) => extend_response::Outcome::Denied(denied),
            Some(Kind::CommandRefused(refused)) => return Err(refusal(&refused)),
            _ => return Err(unexpected(&answered.reply)),
        };
        Ok(v1::ExtendResponse { outcome: Some(outcome), stream_seq: answered.stream_seq })
    }
}

impl Asking for v1::SettleRequest {
    type Answer = v1::SettleResponse;

    fn place(&self) -> Place<'_> {
        Place::Hold(&self.hold_id)
    }

    fn permitted(who: &Who) -> Result<(), Status> {
        who.may_hold_somewhere()
    }

    fn command(mut self, api: &Api, who: &Who, known: Option<TenantId>) -> Result<Command, Status> {
        let mut check = Check::default();
        let hold_id = check.hold_id(&self.hold_id);
        let used = check.take(wire::used_amounts("used", &self.used));
        let key = check.key(&self.idempotency_key);
        let source = check.source(self.source.as_ref());
        check.refusal()?;
        let (Some(hold_id), Some(used)) = (hold_id, used) else { return Err(incomplete()) };
        let source = who.source(source)?.told();
        let tenant = tenant_of_hold(api, who, &hold_id, known)?;
        let actor = who.actor()?;
        api.defined(&tenant, meters_of(&self.used, |at| format!("used[{at}].meter")))?;
        self.idempotency_key.clear();
        ask::sort(&mut self.used);
        let idempotency = ask::idempotency(key, "Settle", actor, &self);
        ask::command(tenant, actor, idempotency, Action::Settle { hold_id, used, source })
    }

    fn answer(answered: Answered) -> Result<Self::Answer, Status> {
        match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::HoldSettled(settled)) => {
                Ok(v1::SettleResponse { settled: Some(settled), stream_seq: answered.stream_seq })
            }
            Some(Kind::CommandRefused(refused)) => Err(refusal(&refused)),
            _ => Err(unexpected(&answered.reply)),
        }
    }
}

impl Asking for v1::DrawLeaseRequest {
    type Answer = v1::DrawLeaseResponse;

    fn place(&self) -> Place<'_> {
        Place::Hold(&self.hold_id)
    }

    fn permitted(who: &Who) -> Result<(), Status> {
        who.may_hold_somewhere()
    }

    fn command(mut self, api: &Api, who: &Who, known: Option<TenantId>) -> Result<Command, Status> {
        let mut check = Check::default();
        let hold_id = check.hold_id(&self.hold_id);
        let used = check.take(wire::used_amounts("used", &self.used));
        let key = check.key(&self.idempotency_key);
        let source = check.source(self.source.as_ref());
        check.refusal()?;
        let (Some(hold_id), Some(used)) = (hold_id, used) else { return Err(incomplete()) };
        let source = who.source(source)?.told();
        let tenant = tenant_of_hold(api, who, &hold_id, known)?;
        let actor = who.actor()?;
        api.defined(&tenant, meters_of(&self.used, |at| format!("used[{at}].meter")))?;
        self.idempotency_key.clear();
        ask::sort(&mut self.used);
        let idempotency = ask::idempotency(key, "DrawLease", actor, &self);
        ask::command(tenant, actor, idempotency, Action::Draw { hold_id, used, source })
    }

    fn answer(answered: Answered) -> Result<Self::Answer, Status> {
        match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::LeaseDrawn(drawn)) => {
                Ok(v1::DrawLeaseResponse { drawn: Some(drawn), stream_seq: answered.stream_seq })
            }
            Some(Kind::CommandRefused(refused)) => Err(refusal(&refused)),
            _ => Err(unexpected(&answered.reply)),
        }
    }
}

impl Asking for v1::VoidRequest {
    type Answer = v1::VoidResponse;

    fn place(&self) -> Place<'_> {
        Place::Hold(&self.hold_id)
    }

    fn permitted(who: &Who) -> Result<(), Status> {
        who.may_hold_somewhere()
    }

    fn command(mut self, api: &Api, who: &Who, known: Option<TenantId>) -> Result<Command, Status> {
        let mut check = Check::default();
        let hold_id = check.hold_id(&self.hold_id);
        let key = check.key(&self.idempotency_key);
        check.refusal()?;
        let hold_id = hold_id.ok_or_else(incomplete)?;
        let tenant = tenant_of_hold(api, who, &hold_id, known)?;
        let actor = who.actor()?;
        self.idempotency_key.clear();
        let idempotency = ask::idempotency(key, "Void", actor, &self);
        ask::command(tenant, actor, idempotency, Action::Void { hold_id })
    }

    fn answer(answered: Answered) -> Result<Self::Answer, Status> {
        match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::HoldVoided(voided)) => {
                Ok(v1::VoidResponse { voided: Some(voided), stream_seq: answered.stream_seq })
            }
            Some(Kind::CommandRefused(refused)) => Err(refusal(&refused)),
            _ => Err(unexpected(&answered.reply)),
        }
    }
}

impl Asking for v1::RevokeHoldRequest {
    type Answer = v1::RevokeHoldResponse;

    fn place(&self) -> Place<'_> {
        Place::Hold(&self.hold_id)
    }

    fn permitted(who: &Who) -> Result<(), Status> {
        who.may_administer_somewhere()
    }

    fn command(mut self, api: &Api, who: &Who, known: Option<TenantId>) -> Result<Command, Status> {
        let mut check = Check::default();
        let hold_id = check.hold_id(&self.hold_id);
        let reason = check.label("reason", &self.reason);
        let key = check.optional_key(&self.idempotency_key);
        check.refusal()?;
        let (Some(hold_id), Some(reason)) = (hold_id, reason) else { return Err(incomplete()) };
        let tenant = tenant_of_hold(api, who, &hold_id, known)?;
        // An agent's role spans tenants; the right to revoke does not, whatever else the token lists.
        who.caller.may_set_budget(tenant.as_str()).map_err(|_| no_hold(&hold_id))?;
        let actor = who.actor()?;
        self.idempotency_key.clear();
        let idempotency = ask::idempotency(key, "RevokeHold", actor, &self);
        ask::command(tenant, actor, idempotency, Action::Revoke { hold_id, reason })
    }

    fn answer(answered: Answered) -> Result<Self::Answer, Status> {
        match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::HoldRevoked(_)) => Ok(v1::RevokeHoldResponse { stream_seq: answered.stream_seq }),
            Some(Kind::CommandRefused(refused)) => Err(refusal(&refused)),
            _ => Err(unexpected(&answered.reply)),
        }
    }
}
