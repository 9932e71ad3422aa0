//! Looking: at one hold, at the open ones, at a tenant's settings.
//!
//! Left out: budgets and usage. Invariant: a hold is shown to its holder and to who may read its tenant; to others there is none.

use exchequer_budget::{HoldId, TenantId, wire};
use exchequer_event::v1;
use tonic::{Request, Response};

use super::{
    Api, Reply,
    status::{incomplete, no_hold},
    who::Who,
};
use crate::ask::{self, Check};

/// What tells a token of this method from others.
const HOLDS_TOKEN: &str = "holds";

pub(super) async fn hold(api: &Api, request: Request<v1::GetHoldRequest>) -> Reply<v1::GetHoldResponse> {
    let (who, message) = Who::open(request)?;
    let mut check = Check::default();
    let hold_id = check.hold_id(&message.hold_id);
    check.refusal()?;
    let hold_id = hold_id.ok_or_else(incomplete)?;
    let (tenant, hold) = if let Some(found) = live(api, &hold_id) {
        found
    } else {
        let tenant = api.past_tenant(&who, &message.hold_id).await?.ok_or_else(|| no_hold(&hold_id))?;
        // Nothing is read for who could not be shown it.
        if who.may_reserve(tenant.as_str()).is_err() && who.caller.may_read_tenant(tenant.as_str()).is_err() {
            return Err(no_hold(&hold_id));
        }
        let hold = api.closed_hold(&tenant, &hold_id).await?;
        (tenant, hold)
    };
    // A holder sees its own holds, whatever their tenant.
    let is_holder = who.may_reserve(tenant.as_str()).is_ok()
        && who.actor().is_ok_and(|actor| actor.as_str() == hold.holder);
    if !is_holder && who.caller.may_read_tenant(tenant.as_str()).is_err() {
        return Err(no_hold(&hold_id));
    }
    Ok(Response::new(hold))
}

fn live(api: &Api, hold_id: &HoldId) -> Option<(TenantId, v1::GetHoldResponse)> {
    let fold = api.shared.fold();
    let hold = fold.budget(fold.partition_of_hold(hold_id)?).hold(hold_id)?;
    Some((hold.scope.tenant_id(), wire::hold(hold_id, hold)))
}

pub(super) fn holds(api: &Api, request: Request<v1::ListHoldsRequest>) -> Reply<v1::ListHoldsResponse> {
    let (who, message) = Who::open(request)?;
    let mut check = Check::default();
    let scope = check.scope(&message.scope);
    check.refusal()?;
    let scope = scope.ok_or_else(incomplete)?;
    who.caller.may_read_tenant(scope.tenant())?;
    let size = ask::page_size(message.page_size)?;
    let after = ask::parse_token(HOLDS_TOKEN, &message.page_token, |text| HoldId::parse(text).ok())?;
    let fold = api.shared.fold();
    let state = fold.budget_of(&scope.tenant_id());
    let page = state.open_holds_below(&scope, message.leases_only, after.as_ref(), size);
    let next_page_token = page.last.map_or_else(String::new, |last| ask::token(HOLDS_TOKEN, last.as_str()));
    let holds = page.holds.into_iter().map(|(hold_id, hold)| wire::hold(hold_id, hold)).collect();
    Ok(Response::new(v1::ListHoldsResponse { holds, next_page_token }))
}

pub(super) fn settings(
    api: &Api,
    request: Request<v1::GetSettingsRequest>,
) -> Reply<v1::GetSettingsResponse> {
    let (who, message) = Who::open(request)?;
    let mut check = Check::default();
    let named = if message.tenant.is_empty() { who.caller.tenant.as_deref() } else { Some(&*message.tenant) };
    let tenant = check.tenant(named.unwrap_or_default());
    check.refusal()?;
    let tenant = tenant.ok_or_else(incomplete)?;
    who.caller.may_read_tenant(tenant.as_str())?;
    let settings = api.shared.fold().budget_of(&tenant).settings(&tenant);
    Ok(Response::new(wire::settings(&tenant, &settings)))
}
