//! `exchequer budget set`, `show` and `remove`.
//!
//! Left out: deciding anything. Invariant: amounts are printed in the unit that the meter's name says.

use exchequer_event::v1::{self, Enforcement, MeterAmount, Overage, Window};
use serde_json::Value as Json;

use super::{
    live,
    words::{amount, period_text, read, threshold, threshold_text, word},
};
use crate::{
    client::Connection,
    describe::{self, utc},
    print::{self, Format},
};

/// Arguments of `budget set`.
#[derive(clap::Args)]
pub struct Set {
    /// The scope: tenant, and what is below it
    #[arg(long, value_name = "SCOPE")]
    scope: String,
    /// The time over which it counts: lifetime, hour, day, week, month
    #[arg(long, value_name = "WINDOW", default_value = "lifetime", value_parser = read::<Window>)]
    window: Window,
    /// IANA time zone of the window, such as Europe/Vienna [default: UTC]
    #[arg(long, value_name = "ZONE", default_value = "", hide_default_value = true)]
    time_zone: String,
    /// What it does with a hold that it does not cover: hard refuses it, soft grants it and tells the caller, shadow grants and records it
    #[arg(long, value_name = "HOW", default_value = "hard", value_parser = read::<Enforcement>)]
    enforcement: Enforcement,
    /// What becomes of usage that it does not cover: debt that blocks, cap (recorded and not charged), overdraft (debt up to a limit does
    /// not block)
    #[arg(long, value_name = "HOW", default_value = "debt", value_parser = read::<Overage>)]
    overage: Overage,
    /// With --overage overdraft: how much debt does not block; once for each meter
    #[arg(long, value_name = "METER=AMOUNT", value_parser = amount)]
    overdraft: Vec<MeterAmount>,
    /// How much of what is left goes into the next window at most; once for each meter
    #[arg(long, value_name = "METER=AMOUNT", value_parser = amount)]
    rollover_cap: Vec<MeterAmount>,
    /// Debt goes into the next window
    #[arg(long)]
    carry_debt: bool,
    /// Report when this is reached, once a window: 80%, 4000, or "forecast 100%" for what will be spent by the window's end; at most 8
    #[arg(long = "threshold", value_name = "AT", value_parser = threshold)]
    thresholds: Vec<v1::Threshold>,
    /// Set it once, however often this is sent
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    idempotency_key: String,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
    /// Meter and total, such as cpu_ms=60000
    #[arg(required = true, value_name = "METER=AMOUNT", value_parser = amount)]
    granted: Vec<MeterAmount>,
}

/// Arguments of `budget show`.
#[derive(clap::Args)]
pub struct Show {
    /// One scope
    #[arg(long, value_name = "SCOPE", conflicts_with = "tenant")]
    scope: Option<String>,
    /// One tenant
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

/// Arguments of `budget remove`.
#[derive(clap::Args)]
pub struct Remove {
    /// The scope
    #[arg(long, value_name = "SCOPE")]
    scope: String,
    /// The window: lifetime, hour, day, week, month
    #[arg(long, value_name = "WINDOW", default_value = "lifetime", value_parser = read::<Window>)]
    window: Window,
    /// Remove it once, however often this is sent
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    idempotency_key: String,
    #[command(flatten)]
    connection: Connection,
    /// The meters; all if none is named
    #[arg(value_name = "METER")]
    meters: Vec<String>,
}

impl Set {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let request = v1::SetBudgetRequest {
            scope: self.scope,
            granted: self.granted,
            idempotency_key: self.idempotency_key,
            window: self.window.into(),
            time_zone: self.time_zone,
            enforcement: self.enforcement.into(),
            overage: self.overage.into(),
            overdraft: self.overdraft,
            rollover_cap: self.rollover_cap,
            carry_debt: self.carry_debt,
            thresholds: self.thresholds,
        };
        let answer = self.connection.metering().await?.set_budget(request).await?.into_inner();
        show(&[answer.budget.unwrap_or_default()], self.format, true)
    }
}

impl Show {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = self.connection.metering().await?;
        let Some(scope) = self.scope else {
            return show(&live::budgets(&mut client, &self.tenant).await?, self.format, false);
        };
        let answer = client.get_budget(v1::GetBudgetRequest { scope }).await?.into_inner();
        let mut budgets = answer.budgets;
        if budgets.is_empty() {
            budgets.extend(answer.budget);
        }
        show(&budgets, self.format, true)
    }
}

impl Remove {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let request = v1::RemoveBudgetRequest {
            scope: self.scope,
            window: self.window.into(),
            meters: self.meters,
            idempotency_key: self.idempotency_key,
        };
        let answer = self.connection.metering().await?.remove_budget(request).await?.into_inner();
        let removed = answer.removed.unwrap_or_default();
        Ok(print::text(&format!(
            "{}, {}: removed {}",
            removed.scope,
            word::<Window>(removed.window),
            removed.meters.join(" ")
        ))?)
    }
}

fn show(budgets: &[v1::Budget], format: Format, single: bool) -> anyhow::Result<()> {
    if format == Format::Json {
        let documents: Vec<Json> = budgets.iter().map(|budget| describe::to_json("Budget", budget)).collect();
        match &documents[..] {
            [only] if single => print::json(only)?,
            _ => print::json(&Json::Array(documents))?,
        }
        return Ok(());
    }
    let rows: Vec<_> = budgets.iter().flat_map(rows).collect();
    print::table(HEAD, &rows)?;
    for budget in budgets {
        if let Some(settings) = settings_text(budget) {
            print::text(&settings)?;
        }
    }
    let grants: Vec<_> = budgets.iter().flat_map(|budget| &budget.grants).filter_map(grant_row).collect();
    if !grants.is_empty() {
        print::table(
            ["GRANT", "SCOPE", "WINDOW", "METER", "AMOUNT", "LEFT", "PRIORITY", "EFFECTIVE", "EXPIRES"],
            &grants,
        )?;
    }
    Ok(())
}

/// What the columns of [`rows`] are.
pub const HEAD: [&str; 8] = ["SCOPE", "WINDOW", "METER", "GRANTED", "AVAILABLE", "HELD", "SPENT", "DEBT"];

/// A row for each balance.
pub fn rows(budget: &v1::Budget) -> impl Iterator<Item = [String; 8]> + '_ {
    budget.balances.iter().map(|balance| {
        let numbers = [balance.granted, balance.available, balance.held, balance.spent, balance.debt];
        let [granted, available, held, spent, debt] = numbers.map(|number| number.to_string());
        let window = word::<Window>(budget.window);
        [budget.scope.clone(), window, balance.meter.clone(), granted, available, held, spent, debt]
    })
}

/// What is not as by default.
fn settings_text(budget: &v1::Budget) -> Option<String> {
    let mut parts = Vec::new();
    if budget.window_end_unix_ms > 0 {
        let zone = &budget.time_zone;
        let (start, end) = (utc(budget.window_start_unix_ms), utc(budget.window_end_unix_ms));
        parts.push(format!("{start} to {end} ({zone})"));
    }
    if budget.enforcement() != Enforcement::Unspecified {
        parts.push(word::<Enforcement>(budget.enforcement));
    }
    if budget.overage() != Overage::Unspecified {
        parts.push(format!("overage: {}", word::<Overage>(budget.overage)));
    }
    if budget.carry_debt {
        parts.push("debt goes into the next window".to_owned());
    }
    if !budget.thresholds.is_empty() {
        let thresholds: Vec<_> = budget.thresholds.iter().map(threshold_text).collect();
        parts.push(format!("reported at {}", thresholds.join(", ")));
    }
    let uncharged: Vec<_> = budget.balances.iter().filter(|balance| balance.uncharged > 0).collect();
    for balance in uncharged {
        parts.push(format!("{} of {} not charged", balance.uncharged, balance.meter));
    }
    let name = format!("{}, {}", budget.scope, word::<Window>(budget.window));
    (!parts.is_empty()).then(|| format!("{name}: {}", parts.join("; ")))
}

fn grant_row(grant: &v1::Grant) -> Option<[String; 9]> {
    let added = grant.added.as_ref()?;
    let time = |ms: u64| if ms == 0 { "-".to_owned() } else { utc(ms) };
    let mut amount = added.amount.to_string();
    if added.recurring {
        amount += " a window";
    }
    Some([
        added.grant_id.clone(),
        added.scope.clone(),
        word::<Window>(added.window),
        added.meter.clone(),
        amount,
        grant.remaining.to_string(),
        added.priority.to_string(),
        if grant.effective { "yes".to_owned() } else { time(added.effective_unix_ms) },
        time(added.expires_unix_ms),
    ])
}

/// A tenant's limits, prices, meters and webhook in lines.
pub fn settings_lines(settings: &v1::GetSettingsResponse) -> Vec<String> {
    let mut lines = Vec::new();
    for limit in &settings.rate_limits {
        lines.push(format!(
            "rate limit   {}: {} of {} per {}, {} at once",
            limit.scope,
            limit.amount,
            limit.meter,
            period_text(limit.period_ms),
            limit.burst
        ));
    }
    for limit in &settings.concurrency_limits {
        lines.push(format!("open holds   {}: at most {}", limit.scope, limit.max_open_holds));
    }
    for price in &settings.prices {
        lines.push(format!(
            "price        {}: {} millionths per {} of {}",
            price.scope, price.micros, price.per, price.meter
        ));
    }
    for meter in &settings.meters {
        lines.push(format!("meter        {}: {}", meter.meter, meter.description));
    }
    if let Some(webhook) = settings.webhook.as_ref().filter(|webhook| !webhook.url.is_empty()) {
        lines.push(format!(
            "webhook      {}, {} notifications wait",
            webhook.url, settings.notifications_waiting
        ));
    }
    lines
}
