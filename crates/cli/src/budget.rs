//! `exchequer budget` and `exchequer usage`: what scopes are granted, and what they spent.
//!
//! Left out: deciding anything. Invariant: amounts are printed in the unit that the meter's name says.

use std::process::ExitCode;

use exchequer_event::v1;
use serde_json::Value as Json;

use crate::{
    client::Connection,
    describe,
    print::{self, Format},
};

/// Budgets per page.
const PAGE: u32 = 500;

/// Set and show budgets
#[derive(clap::Subcommand)]
pub enum Budget {
    /// Set what a scope is granted in total; meters that are not named keep what they had
    #[command(after_help = "\
Examples:
  exchequer budget set --scope acme cpu_ms=60000 wall_ms=600000 invocations=1000
  exchequer budget set --scope acme/skills/python cost_micros=5000000

Meters: cpu_ms, wall_ms, memory_mib_ms, output_bytes, invocations, input_tokens, output_tokens, cost_micros.
An execution is charged to its scope and to all that enclose it, and refused if one of them has too little left.")]
    Set(Set),
    /// Show one budget, a tenant's, or all that you may see
    #[command(
        after_help = "Examples:\n  exchequer budget show\n  exchequer budget show --scope acme/skills --format json"
    )]
    Show(Show),
}

/// Arguments of `budget set`.
#[derive(clap::Args)]
pub struct Set {
    /// The scope: tenant, and what is below it
    #[arg(long, value_name = "SCOPE")]
    scope: String,
    /// Set it once, however often this is sent
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    idempotency_key: String,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
    /// Meter and total, such as cpu_ms=60000
    #[arg(required = true, value_name = "METER=AMOUNT", value_parser = amount)]
    granted: Vec<v1::MeterAmount>,
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

/// Show what was spent at a scope and below, and what is held
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  exchequer usage --scope acme\n  exchequer usage --scope acme/skills --format json"
)]
pub struct Usage {
    /// The scope
    #[arg(long, value_name = "SCOPE")]
    scope: String,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

fn amount(text: &str) -> Result<v1::MeterAmount, String> {
    let (meter, amount) = text.split_once('=').ok_or("expected METER=AMOUNT")?;
    let amount = amount.parse().map_err(|error| format!("{amount}: {error}"))?;
    Ok(v1::MeterAmount { meter: meter.to_owned(), amount })
}

impl Budget {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Set(set) => {
                let request = v1::SetBudgetRequest {
                    scope: set.scope,
                    granted: set.granted,
                    idempotency_key: set.idempotency_key,
                    ..v1::SetBudgetRequest::default()
                };
                let answer = set.connection.metering().await?.set_budget(request).await?.into_inner();
                show(&[answer.budget.unwrap_or_default()], set.format, true)?;
            }
            Self::Show(Show { scope: Some(scope), connection, format, .. }) => {
                let request = v1::GetBudgetRequest { scope };
                let answer = connection.metering().await?.get_budget(request).await?.into_inner();
                show(&[answer.budget.unwrap_or_default()], format, true)?;
            }
            Self::Show(Show { tenant, connection, format, .. }) => {
                let mut client = connection.metering().await?;
                let (mut budgets, mut page_token) = (Vec::new(), String::new());
                loop {
                    let request =
                        v1::ListBudgetsRequest { tenant: tenant.clone(), page_size: PAGE, page_token };
                    let page = client.list_budgets(request).await?.into_inner();
                    budgets.extend(page.budgets);
                    page_token = page.next_page_token;
                    if page_token.is_empty() {
                        break;
                    }
                }
                show(&budgets, format, false)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(budgets: &[v1::Budget], format: Format, single: bool) -> std::io::Result<()> {
    if format == Format::Json {
        let documents: Vec<Json> = budgets.iter().map(|budget| describe::to_json("Budget", budget)).collect();
        return match &documents[..] {
            [only] if single => print::json(only),
            _ => print::json(&Json::Array(documents)),
        };
    }
    let mut rows = Vec::new();
    for budget in budgets {
        for balance in &budget.balances {
            let numbers = [balance.granted, balance.available, balance.held, balance.spent, balance.debt];
            let [granted, available, held, spent, debt] = numbers.map(|number| number.to_string());
            rows.push([budget.scope.clone(), balance.meter.clone(), granted, available, held, spent, debt]);
        }
    }
    print::table(["SCOPE", "METER", "GRANTED", "AVAILABLE", "HELD", "SPENT", "DEBT"], &rows)
}

impl Usage {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let request = v1::GetUsageRequest { scope: self.scope };
        let usage = self.connection.metering().await?.get_usage(request).await?.into_inner();
        if self.format == Format::Json {
            print::json(&describe::to_json("GetUsageResponse", &usage))?;
            return Ok(ExitCode::SUCCESS);
        }
        let held =
            |meter: &str| usage.held.iter().find(|held| held.meter == meter).map_or(0, |held| held.amount);
        let spent = |meter: &str| {
            usage.spent.iter().find(|spent| spent.meter == meter).map_or(0, |spent| spent.amount)
        };
        let mut meters: Vec<&str> = usage.spent.iter().map(|spent| spent.meter.as_str()).collect();
        meters.extend(usage.held.iter().map(|held| held.meter.as_str()));
        meters.sort_unstable();
        meters.dedup();
        let rows: Vec<_> = meters
            .into_iter()
            .map(|meter| [meter.to_owned(), spent(meter).to_string(), held(meter).to_string()])
            .collect();
        print::table(["METER", "SPENT", "HELD"], &rows)?;
        print::text(&format!(
            "{}: {} settled, {} open; executions up to stream sequence {} are included",
            usage.scope, usage.settled_holds, usage.open_holds, usage.usage_cursor
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}
