//! `exchequer budget grant`, `limit`, `price`, `meter`, `webhook`, `settings`, `holds`, `hold` and `correct`: one call of metering each.
//!
//! Left out: deciding anything. Invariant: what is printed is what metering answered.

use exchequer_event::v1::{self, MeterAmount, Window};

use super::{
    set::settings_lines,
    words::{amount, number, period, read},
};
use crate::{
    client::Connection,
    describe::{self, amounts_text, utc},
    export::time,
    print::{self, Format},
};

/// Holds per page.
const PAGE: u32 = 500;

/// Add to a budget for a time, or end what was added
#[derive(clap::Subcommand)]
pub enum Grant {
    /// Add a grant to a budget
    #[command(after_help = "\
Example:
  exchequer budget grant add --id onboarding --scope acme --window month --meter cost_micros --amount 5_000_000 --expires 2027-01-01

Usage is taken from grants of the lowest priority first, then from those that expire first. What the budget itself grants has priority 0.")]
    Add(AddGrant),
    /// End a grant; what is left of it goes
    #[command(after_help = "Example:\n  exchequer budget grant revoke --tenant acme onboarding")]
    Revoke(RevokeGrant),
}

/// Arguments of `budget grant add`.
#[derive(clap::Args)]
pub struct AddGrant {
    /// Its id: 1 to 64 characters of [A-Za-z0-9._-], never used before by the tenant
    #[arg(long, value_name = "ID")]
    id: String,
    /// Scope of the budget
    #[arg(long, value_name = "SCOPE")]
    scope: String,
    /// Window of the budget: lifetime, hour, day, week, month
    #[arg(long, value_name = "WINDOW", default_value = "lifetime", value_parser = read::<Window>)]
    window: Window,
    /// Meter of the budget
    #[arg(long, value_name = "METER")]
    meter: String,
    /// How much
    #[arg(long, value_name = "AMOUNT", value_parser = number)]
    amount: u64,
    /// A lower one is used first
    #[arg(long, value_name = "N", default_value_t = 0)]
    priority: u32,
    /// From when on: YYYY-MM-DD, YYYY-MM-DDTHH:MM:SSZ or milliseconds since the Unix epoch [default: now]
    #[arg(long, value_name = "TIME", value_parser = time)]
    effective: Option<u64>,
    /// Until when [default: no end]
    #[arg(long, value_name = "TIME", value_parser = time)]
    expires: Option<u64>,
    /// Grant it anew in each window
    #[arg(long)]
    recurring: bool,
    /// If it recurs: how much of what is left goes into the next window at most
    #[arg(long, value_name = "AMOUNT", value_parser = number, requires = "recurring")]
    rollover_cap: Option<u64>,
    #[command(flatten)]
    once: Once,
}

/// Arguments of `budget grant revoke`.
#[derive(clap::Args)]
pub struct RevokeGrant {
    /// The tenant
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    /// The grant
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    once: Once,
}

/// How often holds are granted, and how many are open
#[derive(clap::Subcommand)]
pub enum Limit {
    /// Limit how much of a meter is held per time, at a scope and below (GCRA)
    #[command(after_help = "\
Examples:
  exchequer budget limit rate --scope acme/skills --meter invocations --amount 100 --per 1m --burst 20
  exchequer budget limit rate --scope acme/skills --meter invocations --remove")]
    Rate(Rate),
    /// Limit how many holds are open at a scope and below
    #[command(
        after_help = "Examples:\n  exchequer budget limit holds --scope acme --max 50\n  exchequer budget limit holds --scope acme --remove"
    )]
    Holds(OpenHolds),
}

/// Arguments of `budget limit rate`.
#[derive(clap::Args)]
pub struct Rate {
    /// The scope
    #[arg(long, value_name = "SCOPE")]
    scope: String,
    /// The meter; invocations counts 1 for a hold that names none
    #[arg(long, value_name = "METER")]
    meter: String,
    /// How much per period on average
    #[arg(long, value_name = "AMOUNT", value_parser = number, required_unless_present = "remove")]
    amount: Option<u64>,
    /// The period, such as 1s or 1m; at most 24h
    #[arg(long, value_name = "TIME", value_parser = period, default_value = "1s")]
    per: u64,
    /// How much at once [default: the amount]
    #[arg(long, value_name = "AMOUNT", value_parser = number)]
    burst: Option<u64>,
    /// Remove the limit
    #[arg(long, conflicts_with_all = ["amount", "burst"])]
    remove: bool,
    #[command(flatten)]
    once: Once,
}

/// Arguments of `budget limit holds`.
#[derive(clap::Args)]
pub struct OpenHolds {
    /// The scope
    #[arg(long, value_name = "SCOPE")]
    scope: String,
    /// Open holds at most
    #[arg(long, value_name = "N", value_parser = number, required_unless_present = "remove")]
    max: Option<u64>,
    /// Remove the limit
    #[arg(long, conflicts_with = "max")]
    remove: bool,
    #[command(flatten)]
    once: Once,
}

/// Arguments of `budget price`.
#[derive(clap::Args)]
pub struct Price {
    /// The scope; the innermost one with a price for a meter decides
    #[arg(long, value_name = "SCOPE")]
    scope: String,
    /// The meter
    #[arg(long, value_name = "METER")]
    meter: String,
    /// Millionths of the currency's unit; 0 makes it free
    #[arg(long, value_name = "MICROS", value_parser = number, required_unless_present = "remove")]
    micros: Option<u64>,
    /// How much of the meter they buy
    #[arg(long, value_name = "AMOUNT", value_parser = number, default_value = "1")]
    per: u64,
    /// Remove the price
    #[arg(long, conflicts_with = "micros")]
    remove: bool,
    #[command(flatten)]
    once: Once,
}

/// Arguments of `budget meter`.
#[derive(clap::Args)]
pub struct Meter {
    /// The tenant
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    /// What it counts, and in which unit
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    description: String,
    /// Its name: [a-z][a-z0-9_]*, at most 32 characters
    #[arg(value_name = "METER")]
    name: String,
    #[command(flatten)]
    once: Once,
}

/// Arguments of `budget webhook`.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("where").args(["url", "none"]).required(true))]
pub struct Webhook {
    /// The tenant
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    /// Report nowhere
    #[arg(long)]
    none: bool,
    /// An http or https URL
    #[arg(value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    once: Once,
}

/// Arguments of `budget settings`.
#[derive(clap::Args)]
pub struct Settings {
    /// The tenant, where the token is not of one
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

/// Arguments of `budget holds`.
#[derive(clap::Args)]
pub struct Holds {
    /// At this scope and below
    #[arg(long, value_name = "SCOPE")]
    scope: String,
    /// Only leases
    #[arg(long)]
    leases: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

/// One hold
#[derive(clap::Subcommand)]
pub enum Hold {
    /// Show a hold as it stands
    Show(ShowHold),
    /// Forbid that a hold is extended; it goes back when it is settled, voided or runs out
    #[command(
        after_help = "Example:\n  exchequer budget hold revoke 0_0198c9f2-… --reason \"agent retired\""
    )]
    Revoke(RevokeHold),
}

/// Arguments of `budget hold show`.
#[derive(clap::Args)]
pub struct ShowHold {
    /// The hold
    #[arg(value_name = "HOLD")]
    hold: String,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

/// Arguments of `budget hold revoke`.
#[derive(clap::Args)]
pub struct RevokeHold {
    /// The hold
    #[arg(value_name = "HOLD")]
    hold: String,
    /// Why; recorded
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    once: Once,
}

/// Arguments of `budget correct`.
#[derive(clap::Args)]
pub struct Correct {
    /// The scope whose usage is corrected
    #[arg(long, value_name = "SCOPE")]
    scope: String,
    /// Add to what was spent, instead of taking it back
    #[arg(long)]
    add: bool,
    /// Why; recorded
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// The hold or idempotency key that it corrects
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reference: String,
    /// The agent that it belongs to
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    agent: String,
    /// The skill that it belongs to
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    skill: String,
    /// The execution that it belongs to
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    execution: String,
    /// Which time's usage is corrected [default: now's]; budgets change in their present window in any case
    #[arg(long, value_name = "TIME", value_parser = time)]
    used_at: Option<u64>,
    /// Correct it once, however often this is sent
    #[arg(long, value_name = "KEY")]
    idempotency_key: String,
    #[command(flatten)]
    connection: Connection,
    /// Meter and amount, such as cpu_ms=600
    #[arg(required = true, value_name = "METER=AMOUNT", value_parser = amount)]
    amounts: Vec<MeterAmount>,
}

/// What every change takes.
#[derive(clap::Args)]
struct Once {
    /// Do it once, however often this is sent
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    idempotency_key: String,
    #[command(flatten)]
    connection: Connection,
}

/// Says where the change is recorded.
fn done(stream_seq: u64) -> anyhow::Result<()> {
    Ok(print::text(&format!("recorded at stream sequence {stream_seq}"))?)
}

impl Grant {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => {
                let Once { idempotency_key, connection } = add.once;
                let grant = v1::GrantAdded {
                    grant_id: add.id,
                    scope: add.scope,
                    window: add.window.into(),
                    meter: add.meter,
                    amount: add.amount,
                    priority: add.priority,
                    effective_unix_ms: add.effective.unwrap_or_default(),
                    expires_unix_ms: add.expires.unwrap_or_default(),
                    recurring: add.recurring,
                    rollover_cap: add.rollover_cap.unwrap_or_default(),
                };
                let request = v1::AddGrantRequest { grant: Some(grant), idempotency_key };
                done(connection.metering().await?.add_grant(request).await?.into_inner().stream_seq)
            }
            Self::Revoke(RevokeGrant { tenant, id, once: Once { idempotency_key, connection } }) => {
                let request = v1::RevokeGrantRequest { tenant, grant_id: id, idempotency_key };
                let answer = connection.metering().await?.revoke_grant(request).await?.into_inner();
                let ended = answer.ended.unwrap_or_default();
                print::text(&format!("{} ended with {} left", ended.grant_id, ended.remainder))?;
                done(answer.stream_seq)
            }
        }
    }
}

impl Limit {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Rate(rate) => {
                let Once { idempotency_key, connection } = rate.once;
                let amount = rate.amount.unwrap_or_default();
                let limit = v1::RateLimitSet {
                    scope: rate.scope,
                    meter: rate.meter,
                    amount,
                    period_ms: if rate.remove { 0 } else { rate.per },
                    burst: rate.burst.unwrap_or(amount),
                };
                let request = v1::SetRateLimitRequest { limit: Some(limit), idempotency_key };
                done(connection.metering().await?.set_rate_limit(request).await?.into_inner().stream_seq)
            }
            Self::Holds(OpenHolds { scope, max, once: Once { idempotency_key, connection }, .. }) => {
                let limit = v1::ConcurrencyLimitSet { scope, max_open_holds: max.unwrap_or_default() };
                let request = v1::SetConcurrencyLimitRequest { limit: Some(limit), idempotency_key };
                let answer = connection.metering().await?.set_concurrency_limit(request).await?;
                done(answer.into_inner().stream_seq)
            }
        }
    }
}

impl Price {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let Once { idempotency_key, connection } = self.once;
        let price = v1::PriceSet {
            scope: self.scope,
            meter: self.meter,
            micros: self.micros.unwrap_or_default(),
            per: if self.remove { 0 } else { self.per },
        };
        let request = v1::SetPriceRequest { price: Some(price), idempotency_key };
        done(connection.metering().await?.set_price(request).await?.into_inner().stream_seq)
    }
}

impl Meter {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let Once { idempotency_key, connection } = self.once;
        let meter = v1::MeterDefined { tenant: self.tenant, meter: self.name, description: self.description };
        let request = v1::DefineMeterRequest { meter: Some(meter), idempotency_key };
        done(connection.metering().await?.define_meter(request).await?.into_inner().stream_seq)
    }
}

impl Webhook {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let Once { idempotency_key, connection } = self.once;
        let webhook = v1::WebhookSet { tenant: self.tenant, url: self.url.unwrap_or_default() };
        let request = v1::SetWebhookRequest { webhook: Some(webhook), idempotency_key };
        done(connection.metering().await?.set_webhook(request).await?.into_inner().stream_seq)
    }
}

impl Settings {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let request = v1::GetSettingsRequest { tenant: self.tenant };
        let settings = self.connection.metering().await?.get_settings(request).await?.into_inner();
        if self.format == Format::Json {
            return Ok(print::json(&describe::to_json("GetSettingsResponse", &settings))?);
        }
        for line in settings_lines(&settings) {
            print::text(&line)?;
        }
        Ok(())
    }
}

impl Holds {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = self.connection.metering().await?;
        let (mut holds, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListHoldsRequest {
                scope: self.scope.clone(),
                leases_only: self.leases,
                page_size: PAGE,
                page_token,
            };
            let page = client.list_holds(request).await?.into_inner();
            holds.extend(page.holds);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return show_holds(&holds, self.format);
            }
        }
    }
}

fn show_holds(holds: &[v1::GetHoldResponse], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        for hold in holds {
            print::json(&describe::to_json("GetHoldResponse", hold))?;
        }
        return Ok(());
    }
    let rows: Vec<_> = holds.iter().map(hold_row).collect();
    Ok(print::table(["HOLD", "SCOPE", "HOLDER", "STATE", "EXPIRES", "AMOUNTS", "USED"], &rows)?)
}

fn hold_row(hold: &v1::GetHoldResponse) -> [String; 7] {
    let mut state = hold.state().as_str_name().trim_start_matches("HOLD_STATE_").to_lowercase();
    if hold.lease {
        state += ", lease";
    }
    if hold.revoked {
        state += ", revoked";
    }
    [
        hold.hold_id.clone(),
        hold.scope.clone(),
        hold.holder.clone(),
        state,
        utc(hold.expires_unix_ms),
        amounts_text(&hold.amounts),
        amounts_text(&hold.used),
    ]
}

impl Hold {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Show(ShowHold { hold, format, connection }) => {
                let request = v1::GetHoldRequest { hold_id: hold };
                let hold = connection.metering().await?.get_hold(request).await?.into_inner();
                show_holds(&[hold], format)
            }
            Self::Revoke(RevokeHold { hold, reason, once: Once { idempotency_key, connection } }) => {
                let request = v1::RevokeHoldRequest { hold_id: hold, reason, idempotency_key };
                done(connection.metering().await?.revoke_hold(request).await?.into_inner().stream_seq)
            }
        }
    }
}

impl Correct {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let source = v1::UsageSource {
            agent_id: self.agent,
            skill: self.skill,
            execution_id: self.execution,
            used_unix_ms: self.used_at.unwrap_or_default(),
        };
        let correction = v1::UsageCorrected {
            scope: self.scope,
            amounts: self.amounts,
            added: self.add,
            reason: self.reason,
            reference: self.reference,
            source: Some(source),
            uncharged: Vec::new(),
        };
        let request =
            v1::CorrectUsageRequest { correction: Some(correction), idempotency_key: self.idempotency_key };
        let answer = self.connection.metering().await?.correct_usage(request).await?.into_inner();
        let corrected = answer.corrected.unwrap_or_default();
        let what = if corrected.added { "added to" } else { "taken back from" };
        print::text(&format!("{} {what} {}", amounts_text(&corrected.amounts), corrected.scope))?;
        done(answer.stream_seq)
    }
}
