//! Budgets: setting and removing them, and looking at them one scope or one page at a time.
//!
//! Left out: what a budget does. Invariant: a page begins after the last scope and window of the page before, so pages join without gap
//! or repetition however the budgets change in between.

use std::sync::Arc;

use exchequer_budget::{Action, Command, ScopePath, TenantId, Window, wire};
use exchequer_event::v1::{self, budget_event::Kind};
use tonic::{Request, Response, Status};

use super::{
    Answered, Api, Asking, Reply, meters_of,
    place::Place,
    status::{incomplete, refusal, unexpected},
    who::Who,
};
use crate::ask::{self, Check};

/// What tells a token of this method from others.
const BUDGETS_TOKEN: &str = "budgets";
/// Windows by their numbers in tokens.
const WINDOWS: [Window; 5] = [Window::AllTime, Window::Hour, Window::Day, Window::Week, Window::Month];

pub(super) async fn set(api: &Api, request: Request<v1::SetBudgetRequest>) -> Reply<v1::SetBudgetResponse> {
    let (who, mut message) = Who::open(request)?;
    let mut check = Check::default();
    let scope = check.scope(&message.scope);
    let terms = check.budget_terms(&message);
    let key = check.optional_key(&message.idempotency_key);
    check.refusal()?;
    let (Some(scope), Some(terms)) = (scope, terms) else { return Err(incomplete()) };
    who.caller.may_set_budget(scope.tenant())?;
    let actor = who.actor()?;
    api.defined(&scope.tenant_id(), meters_of(&message.granted, |at| format!("granted[{at}].meter")))?;
    message.idempotency_key.clear();
    ask::sort(&mut message.granted);
    ask::sort(&mut message.overdraft);
    ask::sort(&mut message.rollover_cap);
    let idempotency = ask::idempotency(key, "SetBudget", actor, &message);
    let window = terms.window;
    let action = Action::SetBudget { scope: scope.clone(), terms: Arc::new(terms) };
    let answered = api.submit(ask::command(scope.tenant_id(), actor, idempotency, action)?).await?;
    match v1::BudgetEvent::from(&answered.reply).kind {
        Some(Kind::BudgetSet(_)) => {}
        Some(Kind::CommandRefused(refused)) => return Err(refusal(&refused)),
        _ => return Err(unexpected(&answered.reply)),
    }
    let fold = api.shared.fold();
    // It may have been removed since.
    let budget = fold.budget_of(&scope.tenant_id()).budget(&scope, window);
    let budget = budget.map(|view| wire::budget(&view));
    Ok(Response::new(v1::SetBudgetResponse { budget }))
}

impl Asking for v1::RemoveBudgetRequest {
    type Answer = v1::RemoveBudgetResponse;

    fn place(&self) -> Place<'_> {
        Place::Scope(&self.scope)
    }

    fn command(mut self, _: &Api, who: &Who, _: Option<TenantId>) -> Result<Command, Status> {
        let mut check = Check::default();
        let scope = check.scope(&self.scope);
        let window = check.window(self.window);
        let meters = check.meters(&self.meters);
        let key = check.optional_key(&self.idempotency_key);
        check.refusal()?;
        let (Some(scope), Some(window), Some(meters)) = (scope, window, meters) else {
            return Err(incomplete());
        };
        who.caller.may_set_budget(scope.tenant())?;
        let actor = who.actor()?;
        self.idempotency_key.clear();
        self.meters.sort_unstable();
        let idempotency = ask::idempotency(key, "RemoveBudget", actor, &self);
        let action = Action::RemoveBudget { scope: scope.clone(), window, meters };
        ask::command(scope.tenant_id(), actor, idempotency, action)
    }

    fn answer(answered: Answered) -> Result<Self::Answer, Status> {
        match v1::BudgetEvent::from(&answered.reply).kind {
            Some(Kind::BudgetRemoved(removed)) => Ok(v1::RemoveBudgetResponse { removed: Some(removed) }),
            Some(Kind::CommandRefused(refused)) => Err(refusal(&refused)),
            _ => Err(unexpected(&answered.reply)),
        }
    }
}

pub(super) fn get(api: &Api, request: Request<v1::GetBudgetRequest>) -> Reply<v1::GetBudgetResponse> {
    let (who, message) = Who::open(request)?;
    let mut check = Check::default();
    let scope = check.scope(&message.scope);
    check.refusal()?;
    let scope = scope.ok_or_else(incomplete)?;
    who.caller.may_read_tenant(scope.tenant())?;
    let fold = api.shared.fold();
    let budgets = fold.budget_of(&scope.tenant_id()).budgets_of(&scope).map(|view| wire::budget(&view));
    let budgets: Vec<_> = budgets.collect();
    // Over all time comes first, the longest window last.
    let over_all_time = budgets.first().filter(|budget| budget.window() == v1::Window::Unspecified);
    let budget = over_all_time.or(budgets.last()).cloned();
    let budget = budget.ok_or_else(|| Status::not_found(format!("scope {scope} has no budget")))?;
    Ok(Response::new(v1::GetBudgetResponse { budget: Some(budget), budgets }))
}

pub(super) fn list(api: &Api, request: Request<v1::ListBudgetsRequest>) -> Reply<v1::ListBudgetsResponse> {
    let (who, message) = Who::open(request)?;
    let mut check = Check::default();
    let tenant = who.tenant(&message.tenant)?.and_then(|tenant| check.tenant(&tenant));
    check.refusal()?;
    match &tenant {
        Some(tenant) => who.caller.may_read_tenant(tenant.as_str())?,
        None => who.caller.may_read_all()?,
    }
    let size = ask::page_size(message.page_size)?;
    let after = ask::parse_token(BUDGETS_TOKEN, &message.page_token, parse_place)?;
    let after = after.as_ref().map(|(scope, window)| (scope, *window));
    let fold = api.shared.fold();
    let partitions = match &tenant {
        Some(tenant) => {
            let partition = fold.partition_of_tenant(tenant);
            partition..=partition
        }
        None => 0..=fold.partitions().saturating_sub(1),
    };
    // Each partition's first ones hold the first of all.
    let views = partitions
        .flat_map(|partition| fold.budget(partition).budgets(tenant.as_ref(), after).take(size + 1));
    let mut views: Vec<_> = views.collect();
    views.sort_by(|a, b| (a.scope(), a.budget().window()).cmp(&(b.scope(), b.budget().window())));
    let is_last = views.len() <= size;
    views.truncate(size);
    let next_page_token = match views.last() {
        Some(last) if !is_last => {
            let window =
                WINDOWS.iter().position(|window| *window == last.budget().window()).unwrap_or_default();
            ask::token(BUDGETS_TOKEN, &format!("{window}:{}", last.scope()))
        }
        _ => String::new(),
    };
    let budgets = views.iter().map(wire::budget).collect();
    Ok(Response::new(v1::ListBudgetsResponse { budgets, next_page_token }))
}

fn parse_place(text: &str) -> Option<(ScopePath, Window)> {
    let (window, scope) = text.split_once(':')?;
    let window = WINDOWS.get(window.parse::<usize>().ok()?)?;
    Some((ScopePath::parse(scope).ok()?, *window))
}
