//! `exchequer usage`: what was spent at a scope, and over time.
//!
//! Left out: budgets. Invariant: amounts are printed in the unit that the meter's name says.

use std::process::ExitCode;

use anyhow::Context as _;
use exchequer_event::v1::{self, UsageDimension};

use crate::{
    client::Connection,
    describe::{self, utc},
    export::time,
    print::{self, Format},
};

/// Rows per page.
const PAGE: u32 = 5000;

/// Show what was spent at a scope and below, and what is held
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  exchequer usage --scope acme
  exchequer usage --scope acme/skills --format json
  exchequer usage query --tenant acme --by skill --from 2026-11-01 --step day"
)]
pub struct Usage {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// The scope
    #[arg(long, value_name = "SCOPE")]
    scope: Option<String>,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Show usage over time by scope, skill or agent: sum, count, largest, distinct subjects
    #[command(after_help = "\
Examples:
  exchequer usage query --tenant acme --from 2026-11-01 --until 2026-12-01
  exchequer usage query --tenant acme --by skill --meter cost_micros --step day
  exchequer usage query --tenant acme --by agent --name worker-1 --step month
  exchequer usage query --tenant acme --as-of 120000      only what the log had recorded before that index

Times are UTC, to the minute. --format json prints a line for each row.")]
    Query(Query),
}

/// What usage is grouped by.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum By {
    /// A scope and all below it
    #[default]
    Scope,
    /// Skills
    Skill,
    /// Agents
    Agent,
}

/// Length of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    /// One row over the whole range
    #[default]
    All,
    /// A minute
    Minute,
    /// An hour
    Hour,
    /// A day
    Day,
    /// A calendar month
    Month,
}

/// Arguments of `usage query`.
#[derive(clap::Args)]
struct Query {
    /// The tenant
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    /// What usage is grouped by
    #[arg(long, value_enum, default_value_t)]
    by: By,
    /// One scope, skill or agent [default: the tenant's scope, every skill, every agent]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    name: String,
    /// One meter [default: every one]
    #[arg(long, value_name = "METER", default_value = "", hide_default_value = true)]
    meter: String,
    /// From then on: YYYY-MM-DD, YYYY-MM-DDTHH:MM:SSZ or milliseconds since the Unix epoch [default: the beginning]
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<u64>,
    /// Before then [default: now]
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<u64>,
    /// Length of a row
    #[arg(long, value_enum, default_value_t)]
    step: Step,
    /// Only what the log had recorded before this index
    #[arg(long, value_name = "INDEX", default_value_t = 0, hide_default_value = true)]
    as_of: u64,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

impl Usage {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(Verb::Query(query)) = self.verb {
            query.run().await?;
            return Ok(ExitCode::SUCCESS);
        }
        let scope = self.scope.context("--scope is required")?;
        let request = v1::GetUsageRequest { scope };
        let usage = self.connection.metering().await?.get_usage(request).await?.into_inner();
        if self.format == Format::Json {
            print::json(&describe::to_json("GetUsageResponse", &usage))?;
            return Ok(ExitCode::SUCCESS);
        }
        let of = |amounts: &[v1::MeterAmount], meter: &str| {
            amounts.iter().find(|amount| amount.meter == meter).map_or(0, |amount| amount.amount)
        };
        let mut meters: Vec<&str> =
            usage.spent.iter().chain(&usage.held).map(|amount| amount.meter.as_str()).collect();
        meters.sort_unstable();
        meters.dedup();
        let rows: Vec<_> = meters
            .into_iter()
            .map(|meter| {
                let (spent, held) = (of(&usage.spent, meter), of(&usage.held, meter));
                [meter.to_owned(), spent.to_string(), held.to_string()]
            })
            .collect();
        print::table(["METER", "SPENT", "HELD"], &rows)?;
        print::text(&format!(
            "{}: {} settled, {} open; executions up to stream sequence {} are included",
            usage.scope, usage.settled_holds, usage.open_holds, usage.usage_cursor
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Query {
    fn request(&self, page_token: String) -> v1::QueryUsageRequest {
        let dimension = match self.by {
            By::Scope => UsageDimension::Unspecified,
            By::Skill => UsageDimension::Skill,
            By::Agent => UsageDimension::Agent,
        };
        let step_minutes = match self.step {
            Step::All | Step::Month => 0,
            Step::Minute => 1,
            Step::Hour => 60,
            Step::Day => 1440,
        };
        v1::QueryUsageRequest {
            tenant: self.tenant.clone(),
            dimension: dimension.into(),
            name: self.name.clone(),
            meter: self.meter.clone(),
            from_unix_ms: self.from.unwrap_or_default(),
            to_unix_ms: self.until.unwrap_or_default(),
            step_minutes,
            by_month: self.step == Step::Month,
            as_of_index: self.as_of,
            page_size: PAGE,
            page_token,
        }
    }

    async fn run(&self) -> anyhow::Result<()> {
        let mut client = self.connection.metering().await?;
        let (mut rows, mut page_token) = (Vec::new(), String::new());
        loop {
            let page = client.query_usage(self.request(page_token)).await?.into_inner();
            match self.format {
                Format::Json => {
                    for row in &page.rows {
                        print::json(&describe::to_json("UsageRow", row))?;
                    }
                }
                Format::Text => rows.extend(page.rows.iter().map(cells)),
            }
            page_token = page.next_page_token;
            if !page_token.is_empty() {
                continue;
            }
            if self.format == Format::Text {
                let head = ["NAME", "METER", "FROM", "UNTIL", "SUM", "COUNT", "LARGEST", "SUBJECTS"];
                print::table(head, &rows)?;
                print::text(&format!(
                    "up to log index {}, stream sequence {}",
                    page.log_index, page.stream_seq
                ))?;
            }
            return Ok(());
        }
    }
}

fn cells(row: &v1::UsageRow) -> [String; 8] {
    [
        row.name.clone(),
        row.meter.clone(),
        utc(row.from_unix_ms),
        utc(row.to_unix_ms),
        row.sum.to_string(),
        row.count.to_string(),
        row.max.to_string(),
        row.unique_subjects.to_string(),
    ]
}
