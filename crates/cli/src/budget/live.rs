//! What metering has of a tenant, as a plan; and the calls that make it what another plan says.
//!
//! Left out: what differs (`plan`). Invariant: calls are made in the order of the changes, and the first that fails ends them.

use std::collections::BTreeMap;

use anyhow::Context as _;
use exchequer_event::v1::{self, MeterAmount};

use super::{
    plan::{Action, Change, Key, Plan},
    words,
};
use crate::client::Metering;

/// Budgets per page.
const PAGE: u32 = 500;

/// All budgets of a tenant.
pub async fn budgets(client: &mut Metering, tenant: &str) -> anyhow::Result<Vec<v1::Budget>> {
    let (mut budgets, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListBudgetsRequest { tenant: tenant.to_owned(), page_size: PAGE, page_token };
        let page = client.list_budgets(request).await?.into_inner();
        budgets.extend(page.budgets);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(budgets);
        }
    }
}

/// What a tenant has now.
pub async fn read(client: &mut Metering, tenant: &str) -> anyhow::Result<Plan> {
    let budgets = budgets(client, tenant).await?;
    let request = v1::GetSettingsRequest { tenant: tenant.to_owned() };
    let settings = client.get_settings(request).await?.into_inner();
    Ok(plan(budgets, settings))
}

fn plan(budgets: Vec<v1::Budget>, settings: v1::GetSettingsResponse) -> Plan {
    let mut plan = Plan {
        rate_limits: settings.rate_limits,
        concurrency_limits: settings.concurrency_limits,
        prices: settings.prices,
        meters: settings.meters,
        webhook: settings.webhook.map(|webhook| webhook.url),
        ..Plan::default()
    };
    for budget in budgets {
        let of = |amount: fn(&v1::Balance) -> u64| {
            let amounts = budget
                .balances
                .iter()
                .map(move |balance| MeterAmount { meter: balance.meter.clone(), amount: amount(balance) });
            amounts.collect::<Vec<_>>()
        };
        plan.budgets.push(v1::SetBudgetRequest {
            granted: of(|balance| balance.allowance),
            overdraft: of(|balance| balance.overdraft),
            rollover_cap: of(|balance| balance.rollover_cap),
            scope: budget.scope,
            window: budget.window,
            time_zone: budget.time_zone,
            enforcement: budget.enforcement,
            overage: budget.overage,
            carry_debt: budget.carry_debt,
            thresholds: budget.thresholds,
            idempotency_key: String::new(),
        });
        plan.grants.extend(budget.grants.into_iter().filter_map(|grant| grant.added));
    }
    plan
}

/// A change of what metering has.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    DefineMeter(v1::MeterDefined),
    SetPrice(v1::PriceSet),
    SetRateLimit(v1::RateLimitSet),
    SetConcurrencyLimit(v1::ConcurrencyLimitSet),
    SetWebhook(v1::WebhookSet),
    SetBudget(v1::SetBudgetRequest),
    AddGrant(v1::GrantAdded),
    RevokeGrant(v1::RevokeGrantRequest),
    RemoveBudget(v1::RemoveBudgetRequest),
}

/// The calls for these changes from `live` to `wanted`. Meters of one scope and window with the same settings go in one.
pub fn calls(tenant: &str, live: &Plan, wanted: &Plan, changes: &[Change]) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut removed: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
    let mut sent = vec![false; wanted.budgets.len()];
    for Change { key, action, .. } in changes {
        let is_removed = *action == Action::Remove;
        let source = if is_removed { live } else { wanted };
        match key {
            Key::Meter { meter } => {
                let defined = source.meters.iter().find(|defined| defined.meter == *meter);
                calls.extend(defined.cloned().map(Call::DefineMeter));
            }
            Key::Price { scope, meter } => {
                let price = source.prices.iter().find(|price| price.scope == *scope && price.meter == *meter);
                calls.extend(price.cloned().map(|price| {
                    let gone = v1::PriceSet { micros: 0, per: 0, ..price.clone() };
                    Call::SetPrice(if is_removed { gone } else { price })
                }));
            }
            Key::RateLimit { scope, meter } => {
                let is_it = |limit: &&v1::RateLimitSet| limit.scope == *scope && limit.meter == *meter;
                let limit = source.rate_limits.iter().find(is_it);
                calls.extend(limit.cloned().map(|limit| {
                    let gone = v1::RateLimitSet { amount: 0, period_ms: 0, burst: 0, ..limit.clone() };
                    Call::SetRateLimit(if is_removed { gone } else { limit })
                }));
            }
            Key::ConcurrencyLimit { scope } => {
                let limit = source.concurrency_limits.iter().find(|limit| limit.scope == *scope);
                calls.extend(limit.cloned().map(|limit| {
                    let max_open_holds = if is_removed { 0 } else { limit.max_open_holds };
                    Call::SetConcurrencyLimit(v1::ConcurrencyLimitSet { max_open_holds, ..limit })
                }));
            }
            Key::Webhook => {
                let url = if is_removed { String::new() } else { source.webhook.clone().unwrap_or_default() };
                calls.push(Call::SetWebhook(v1::WebhookSet { tenant: tenant.to_owned(), url }));
            }
            Key::Budget { scope, window, meter } if is_removed => {
                removed.entry((scope, window)).or_default().push(meter.clone());
            }
            Key::Budget { .. } => {
                let sets = |set: &v1::SetBudgetRequest| Plan::budget_keys(set).any(|of_set| of_set == *key);
                if let Some(place) = wanted.budgets.iter().position(sets)
                    && !std::mem::replace(&mut sent[place], true)
                {
                    calls.push(Call::SetBudget(wanted.budgets[place].clone()));
                }
            }
            Key::Grant { grant_id } if is_removed => {
                calls.push(Call::RevokeGrant(v1::RevokeGrantRequest {
                    tenant: tenant.to_owned(),
                    grant_id: grant_id.clone(),
                    idempotency_key: String::new(),
                }));
            }
            Key::Grant { grant_id } => {
                let grant = source.grants.iter().find(|grant| grant.grant_id == *grant_id);
                calls.extend(grant.cloned().map(Call::AddGrant));
            }
        }
    }
    calls.extend(removed.into_iter().map(|((scope, window), meters)| {
        Call::RemoveBudget(v1::RemoveBudgetRequest {
            scope: scope.to_owned(),
            window: words::read::<v1::Window>(window).unwrap_or_default().into(),
            meters,
            idempotency_key: String::new(),
        })
    }));
    calls
}

impl Call {
    /// Makes it.
    pub async fn send(self, client: &mut Metering) -> anyhow::Result<()> {
        let what = self.describe();
        let idempotency_key = String::new();
        let sent = match self {
            Self::DefineMeter(meter) => {
                let request = v1::DefineMeterRequest { meter: Some(meter), idempotency_key };
                client.define_meter(request).await.map(drop)
            }
            Self::SetPrice(price) => {
                let request = v1::SetPriceRequest { price: Some(price), idempotency_key };
                client.set_price(request).await.map(drop)
            }
            Self::SetRateLimit(limit) => {
                let request = v1::SetRateLimitRequest { limit: Some(limit), idempotency_key };
                client.set_rate_limit(request).await.map(drop)
            }
            Self::SetConcurrencyLimit(limit) => {
                let request = v1::SetConcurrencyLimitRequest { limit: Some(limit), idempotency_key };
                client.set_concurrency_limit(request).await.map(drop)
            }
            Self::SetWebhook(webhook) => {
                let request = v1::SetWebhookRequest { webhook: Some(webhook), idempotency_key };
                client.set_webhook(request).await.map(drop)
            }
            Self::SetBudget(request) => client.set_budget(request).await.map(drop),
            Self::AddGrant(grant) => {
                let request = v1::AddGrantRequest { grant: Some(grant), idempotency_key };
                client.add_grant(request).await.map(drop)
            }
            Self::RevokeGrant(request) => client.revoke_grant(request).await.map(drop),
            Self::RemoveBudget(request) => client.remove_budget(request).await.map(drop),
        };
        sent.context(what)
    }

    fn describe(&self) -> String {
        match self {
            Self::DefineMeter(meter) => format!("defining meter {}", meter.meter),
            Self::SetPrice(price) => format!("setting the price of {} at {}", price.meter, price.scope),
            Self::SetRateLimit(limit) => {
                format!("setting the rate limit of {} at {}", limit.meter, limit.scope)
            }
            Self::SetConcurrencyLimit(limit) => {
                format!("setting the limit on open holds at {}", limit.scope)
            }
            Self::SetWebhook(webhook) => format!("setting the webhook of {}", webhook.tenant),
            Self::SetBudget(set) => format!("setting the budget of {}", set.scope),
            Self::AddGrant(grant) => format!("adding grant {}", grant.grant_id),
            Self::RevokeGrant(grant) => format!("ending grant {}", grant.grant_id),
            Self::RemoveBudget(removed) => format!("removing the budget of {}", removed.scope),
        }
    }
}

#[cfg(test)]
mod tests {
    use exchequer_event::v1::{Overage, Window};

    use super::{super::plan::differences, *};
    use crate::budget::file;

    const EXAMPLE: &str = include_str!("../../../../docs/budgets.yaml");

    /// What metering would answer if it had been told exactly this.
    fn answered(plan: &Plan) -> (Vec<v1::Budget>, v1::GetSettingsResponse) {
        let amount = |amounts: &[MeterAmount], meter: &str| {
            amounts.iter().find(|amount| amount.meter == meter).map_or(0, |amount| amount.amount)
        };
        let budgets = plan.budgets.iter().map(|set| v1::Budget {
            scope: set.scope.clone(),
            window: set.window,
            time_zone: super::super::plan::zone(set.window(), &set.time_zone).to_owned(),
            enforcement: set.enforcement,
            overage: set.overage,
            carry_debt: set.carry_debt,
            thresholds: set.thresholds.clone(),
            balances: set
                .granted
                .iter()
                .map(|granted| v1::Balance {
                    meter: granted.meter.clone(),
                    allowance: granted.amount,
                    granted: granted.amount + 1,
                    overdraft: amount(&set.overdraft, &granted.meter),
                    rollover_cap: amount(&set.rollover_cap, &granted.meter),
                    ..v1::Balance::default()
                })
                .collect(),
            grants: plan
                .grants
                .iter()
                .filter(|grant| grant.scope == set.scope && grant.window == set.window)
                .map(|grant| v1::Grant {
                    added: Some(v1::GrantAdded {
                        effective_unix_ms: grant.effective_unix_ms.max(1),
                        ..grant.clone()
                    }),
                    ..v1::Grant::default()
                })
                .collect(),
            ..v1::Budget::default()
        });
        let settings = v1::GetSettingsResponse {
            rate_limits: plan.rate_limits.clone(),
            concurrency_limits: plan.concurrency_limits.clone(),
            prices: plan.prices.clone(),
            meters: plan.meters.clone(),
            webhook: plan.webhook.clone().map(|url| v1::WebhookSet { tenant: "acme".into(), url }),
            notifications_waiting: 0,
        };
        (budgets.collect(), settings)
    }

    #[test]
    fn what_was_set_by_a_file_does_not_differ_from_it() {
        for (tenant, wanted) in file::read(EXAMPLE).unwrap() {
            let (budgets, settings) = answered(&wanted);
            let live = plan(budgets, settings);
            assert_eq!(differences(&live, &wanted, true), (Vec::new(), 0), "{tenant}");
        }
    }

    #[test]
    fn a_new_tenant_is_set_up_with_one_call_for_each_thing_in_order() {
        let wanted = file::read(EXAMPLE).unwrap().remove("acme").unwrap();
        let live = Plan::default();
        let (changes, _) = differences(&live, &wanted, false);
        let calls = calls("acme", &live, &wanted, &changes);
        let said: Vec<_> = calls.iter().map(Call::describe).collect();
        assert_eq!(
            said,
            [
                "defining meter gpu_ms",
                "setting the price of cpu_ms at acme",
                "setting the price of gpu_ms at acme",
                "setting the rate limit of invocations at acme/skills",
                "setting the limit on open holds at acme",
                "setting the webhook of acme",
                "setting the budget of acme",
                "setting the budget of acme/skills/python",
                "adding grant extra-cpu",
                "adding grant onboarding-2026",
            ]
        );
        let Call::SetBudget(set) = &calls[6] else { panic!() };
        assert_eq!((set.granted.len(), set.overage()), (2, Overage::Overdraft));
    }

    #[test]
    fn what_is_removed_is_set_to_nothing() {
        let live = file::read(EXAMPLE).unwrap().remove("acme").unwrap();
        let wanted = Plan::default();
        let (changes, _) = differences(&live, &wanted, true);
        let calls = calls("acme", &live, &wanted, &changes);
        for call in &calls {
            match call {
                Call::SetPrice(price) => assert_eq!((price.micros, price.per), (0, 0)),
                Call::SetRateLimit(limit) => {
                    assert_eq!((limit.amount, limit.period_ms, limit.burst), (0, 0, 0));
                }
                Call::SetConcurrencyLimit(limit) => assert_eq!(limit.max_open_holds, 0),
                Call::SetWebhook(webhook) => assert_eq!(webhook.url, ""),
                Call::RevokeGrant(grant) => assert_eq!(grant.tenant, "acme"),
                Call::RemoveBudget(removed) => assert_eq!(removed.meters.len(), 2),
                other => panic!("{other:?}"),
            }
        }
        let last: Vec<_> = calls.iter().rev().take(2).collect();
        let Call::RemoveBudget(month) = last[1] else { panic!("{last:?}") };
        assert_eq!((month.scope.as_str(), month.window()), ("acme", Window::Month));
        assert_eq!(calls.len(), 2 + 2 + 1 + 1 + 1 + 2);
    }
}
