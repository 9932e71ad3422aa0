//! Usage: reports of what no hold covers, corrections, and what was spent at a scope.
//!
//! Left out: reckoning usage over time ([`crate::usage`]). Invariant: an agent reports in its own name only; a scope without a budget has usage all
//! the same.

use std::sync::Arc;

use exchequer_budget::{Action, Command, TenantId, wire};
use exchequer_event::v1::{self, budget_event::Kind};
use tonic::{Request, Response, Status};

use super::{
    Answered, Api, Asking, Reply, clock_ms, meters_of,
    place::Place,
    status::{incomplete, refusal, unexpected},
    who::Who,
};
use crate::ask::{self, Check};

impl Asking for v1::ReportUsageRequest {
    type Answer = v1::ReportUsageResponse;

    fn place(&self) -> Place<'_> {
        Place::Scope(&self.scope)
    }

    fn command(mut self, api: &Api, who: &Who, _: Option<TenantId>) -> Result<Command, Status> {
        let mut check = Check::default();
        let scope = check.scope(&self.scope);
        let used = check.take(wire::requested_amounts("used", &self.used));
        let source = check.source(self.source.as_ref());
        let subject = check.optional_label("subject", &self.subject);
        let key = check.key(&self.idempotency_key);
        check.refusal()?;
        let (Some(scope), Some(used)) = (scope, used) else { return Err(incomplete()) };
        who.may_reserve(scope.tenant())?;
        let source = who.source(source)?.told();
        let actor = who.actor()?;
        api.defined(&scope.tenant_id(), meters_of(&self.used, |at| format!("used[{at}].meter")))?;
        self.idempotency_key.clear();
        ask::sort(&mut self.used);
        let idempotency = ask::idempotency(key, "ReportUsage", actor, &self);
        let tenant = scope.tenant_id();
        ask::command(tenant, actor, idempotency, Action::Report { scope, used, source, subject })
    }

    fn answer(answered: Answered) -> Result<Self::Answer, Status> {
        match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::UsageReported(reported)) => Ok(v1::ReportUsageResponse {
                reported: Some(reported),
                stream_seq: answered.stream_seq,
                repeated: answered.repeated,
            }),
            Some(Kind::CommandRefused(refused)) => Err(refusal(&refused)),
            _ => Err(unexpected(&answered.reply)),
        }
    }
}

fn correction_path(at: usize) -> String {
    format!("correction.amounts[{at}].meter")
}

impl Asking for v1::CorrectUsageRequest {
    type Answer = v1::CorrectUsageResponse;

    fn place(&self) -> Place<'_> {
        Place::Scope(self.correction.as_ref().map_or("", |correction| &correction.scope))
    }

    fn command(mut self, api: &Api, who: &Who, _: Option<TenantId>) -> Result<Command, Status> {
        let mut check = Check::default();
        let correction = check.correction(self.correction.as_ref());
        let key = check.key(&self.idempotency_key);
        check.refusal()?;
        let correction = correction.ok_or_else(incomplete)?;
        who.caller.may_set_budget(correction.scope.tenant())?;
        let actor = who.actor()?;
        let given = self.correction.iter().flat_map(|correction| &correction.amounts);
        let given = given.map(|amount| (amount.meter.as_str(), correction_path as fn(usize) -> String));
        api.defined(&correction.scope.tenant_id(), given)?;
        self.idempotency_key.clear();
        if let Some(correction) = &mut self.correction {
            ask::sort(&mut correction.amounts);
        }
        let idempotency = ask::idempotency(key, "CorrectUsage", actor, &self);
        ask::command(correction.scope.tenant_id(), actor, idempotency, Action::Correct(Arc::new(correction)))
    }

    fn answer(answered: Answered) -> Result<Self::Answer, Status> {
        match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::UsageCorrected(corrected)) => {
                Ok(v1::CorrectUsageResponse { corrected: Some(corrected), stream_seq: answered.stream_seq })
            }
            Some(Kind::CommandRefused(refused)) => Err(refusal(&refused)),
            _ => Err(unexpected(&answered.reply)),
        }
    }
}

pub(super) fn get(api: &Api, request: Request<v1::GetUsageRequest>) -> Reply<v1::GetUsageResponse> {
    let (who, message) = Who::open(request)?;
    let mut check = Check::default();
    let scope = check.scope(&message.scope);
    check.refusal()?;
    let scope = scope.ok_or_else(incomplete)?;
    who.caller.may_read_tenant(scope.tenant())?;
    let fold = api.shared.fold();
    let partition = fold.partition_of_tenant(&scope.tenant_id());
    let usage = fold.budget(partition).usage(&scope);
    Ok(Response::new(v1::GetUsageResponse {
        scope: scope.to_string(),
        spent: wire::meter_totals(&usage.spent),
        held: wire::meter_totals(&usage.held),
        settled_holds: usage.settled_holds,
        open_holds: usage.open_holds,
        usage_cursor: fold.usage_cursor(partition),
    }))
}

pub(super) async fn query(
    api: &Api,
    request: Request<v1::QueryUsageRequest>,
) -> Reply<v1::QueryUsageResponse> {
    let (who, message) = Who::open(request)?;
    who.caller.may_read_tenant(&message.tenant)?;
    crate::usage::query_usage(&api.usage, message, clock_ms()).await.map(Response::new)
}
