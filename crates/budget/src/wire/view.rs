//! What a state holds, as messages. A sum is exact in the state; in a message it is 2^64 - 1 where it is more, as in events.

use exchequer_proto::v1;

use super::{encode::meter_amounts, enforcement_number, overage_number, threshold_message, window_number};
use crate::{
    id::{HoldId, TenantId},
    meter::Totals,
    state::{BudgetView, Hold, HoldStatus, Settings},
};

fn narrow(sum: u128) -> u64 {
    u64::try_from(sum).unwrap_or(u64::MAX)
}

/// Sums as a message has them.
pub fn meter_totals(totals: &Totals) -> Vec<v1::MeterAmount> {
    meter_amounts(totals.iter().map(|(meter, sum)| (meter, narrow(sum))))
}

/// A scope's budgets over one window as a message has them.
pub fn budget(view: &BudgetView<'_>) -> v1::Budget {
    let balances = view.balances().map(|(meter, balance)| v1::Balance {
        meter: meter.to_string(),
        granted: narrow(balance.granted),
        available: narrow(balance.available),
        held: narrow(balance.held),
        spent: narrow(balance.spent),
        debt: narrow(balance.debt),
        allowance: balance.allowance,
        overdraft: balance.overdraft,
        rollover_cap: balance.rollover_cap,
        uncharged: narrow(balance.uncharged),
    });
    let budget = view.budget();
    v1::Budget {
        scope: view.scope().to_string(),
        balances: balances.collect(),
        window: window_number(budget.window()),
        time_zone: budget.zone().map(ToString::to_string).unwrap_or_default(),
        enforcement: enforcement_number(budget.enforcement()),
        overage: overage_number(budget.overage()),
        carry_debt: budget.carry_debt(),
        thresholds: budget.thresholds().iter().map(|&threshold| threshold_message(threshold)).collect(),
        window_start_unix_ms: budget.window_start_ms(),
        window_end_unix_ms: budget.window_end_ms(),
        grants: budget
            .grants()
            .map(|grant| v1::Grant {
                added: Some(grant.terms().into()),
                remaining: grant.remaining(),
                effective: grant.effective(),
            })
            .collect(),
    }
}

/// A hold as a message has it.
pub fn hold(hold_id: &HoldId, hold: &Hold) -> v1::GetHoldResponse {
    let state = match hold.status {
        HoldStatus::Open => v1::HoldState::Open,
        HoldStatus::Settled { .. } => v1::HoldState::Settled,
        HoldStatus::Voided => v1::HoldState::Voided,
        HoldStatus::Expired => v1::HoldState::Expired,
    };
    v1::GetHoldResponse {
        hold_id: hold_id.to_string(),
        scope: hold.scope.to_string(),
        holder: hold.holder.to_string(),
        state: state.into(),
        amounts: meter_amounts(hold.amounts.iter()),
        used: meter_amounts(hold.used.iter()),
        expires_unix_ms: hold.expires_ms,
        lease: hold.lease,
        revoked: hold.revoked,
    }
}

/// A tenant's settings as a message has them.
pub fn settings(tenant: &TenantId, settings: &Settings) -> v1::GetSettingsResponse {
    let limits = settings.concurrency_limits.iter();
    let meters = settings.meters.iter();
    v1::GetSettingsResponse {
        rate_limits: settings.rate_limits.iter().map(Into::into).collect(),
        concurrency_limits: limits
            .map(|(scope, max)| v1::ConcurrencyLimitSet { scope: scope.to_string(), max_open_holds: *max })
            .collect(),
        prices: settings.prices.iter().map(Into::into).collect(),
        meters: meters
            .map(|(meter, description)| v1::MeterDefined {
                tenant: tenant.to_string(),
                meter: meter.to_string(),
                description: description.as_ref().map(ToString::to_string).unwrap_or_default(),
            })
            .collect(),
        webhook: settings
            .webhook
            .as_ref()
            .map(|url| v1::WebhookSet { tenant: tenant.to_string(), url: url.to_string() }),
        notifications_waiting: settings.notifications_waiting,
    }
}
