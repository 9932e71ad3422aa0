//! `exchequer budget apply` and `budget diff`: budgets as a file says.
//!
//! Left out: reading the file (`file`), what differs (`plan`), the calls (`live`). Invariant: nothing is changed before all of the file
//! was read without fault and every tenant's difference is known and can be made.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use serde_json::json;

use super::{
    file, live,
    plan::{Action, Change, Key, Plan, differences},
    yaml,
};
use crate::{
    client::{Connection, Refused},
    print::{self, Format},
};

/// Arguments of `budget apply`.
#[derive(clap::Args)]
pub struct Apply {
    #[command(flatten)]
    wanted: Wanted,
    /// Show what would be changed, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Arguments of `budget diff`.
#[derive(clap::Args)]
pub struct Diff {
    #[command(flatten)]
    wanted: Wanted,
}

#[derive(clap::Args)]
struct Wanted {
    /// The file; - for standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Also remove what the named tenants have and the file does not name
    #[arg(long)]
    prune: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
}

/// What one tenant's part of the file comes to.
struct Tenant {
    name: String,
    live: Plan,
    wanted: Plan,
    changes: Vec<Change>,
    unnamed: usize,
}

impl Apply {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let tenants = self.wanted.compare().await?;
        if self.dry_run {
            show(&tenants, Some(false), &self.wanted)?;
            return Ok(ExitCode::SUCCESS);
        }
        check_grants(&tenants)?;
        let mut client = self.wanted.connection.metering().await?;
        let total: usize = tenants.iter().map(|tenant| tenant.changes.len()).sum();
        for tenant in &tenants {
            for call in live::calls(&tenant.name, &tenant.live, &tenant.wanted, &tenant.changes) {
                let sent = call.send(&mut client).await;
                sent.inspect_err(|_| print::remark("not all was applied; `budget diff` shows what is left"))?;
            }
        }
        show(&tenants, (total > 0).then_some(true), &self.wanted)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Diff {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let tenants = self.wanted.compare().await?;
        show(&tenants, None, &self.wanted)?;
        Ok(ExitCode::from(u8::from(tenants.iter().any(|tenant| !tenant.changes.is_empty()))))
    }
}

impl Wanted {
    /// Reads the file, and what there is.
    async fn compare(&self) -> anyhow::Result<Vec<Tenant>> {
        let text = read_file(&self.file)?;
        let plans = match file::read(&text) {
            Ok(plans) => plans,
            Err(faults) => {
                for fault in &faults {
                    print::remark(&format!("{}: {fault}", self.file.display()));
                }
                bail!("{} has {} faults", self.file.display(), faults.len());
            }
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now_ms = u64::try_from(now).unwrap_or(u64::MAX);
        let mut client = self.connection.metering().await?;
        let mut tenants = Vec::new();
        for (name, mut wanted) in plans {
            let live = live::read(&mut client, &name).await.with_context(|| format!("reading {name}"))?;
            leave_ended(&mut wanted, &live, now_ms);
            let (changes, unnamed) = differences(&live, &wanted, self.prune);
            tenants.push(Tenant { name, live, wanted, changes, unnamed });
        }
        Ok(tenants)
    }
}

fn read_file(path: &Path) -> anyhow::Result<String> {
    let bound = yaml::MAX_BYTES as u64 + 1;
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(bound).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(bound).read_to_string(&mut text))
    };
    read.with_context(|| path.display().to_string())?;
    Ok(text)
}

/// A grant whose time is over is neither there nor wanted.
fn leave_ended(wanted: &mut Plan, live: &Plan, now_ms: u64) {
    let is_live = |id: &str| live.grants.iter().any(|grant| grant.grant_id == id);
    wanted.grants.retain(|grant| {
        grant.expires_unix_ms == 0 || grant.expires_unix_ms > now_ms || is_live(&grant.grant_id)
    });
}

/// What was granted can end, but not become something else.
fn check_grants(tenants: &[Tenant]) -> Result<(), Refused> {
    let is_changed =
        |change: &&Change| change.action == Action::Change && matches!(change.key, Key::Grant { .. });
    let changed: Vec<_> = tenants
        .iter()
        .flat_map(|tenant| {
            tenant.changes.iter().filter(is_changed).map(|change| format!("{}: {change}", tenant.name))
        })
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    Err(Refused(format!(
        "a grant can't be changed; end it (`budget grant revoke`) and give the new one an id of its own; nothing was applied: {}",
        changed.join("; ")
    )))
}

/// Shows the differences. `applied` is none where applying was not asked for, or not needed.
fn show(tenants: &[Tenant], applied: Option<bool>, wanted: &Wanted) -> anyhow::Result<()> {
    if wanted.format == Format::Json {
        let tenants: Vec<_> = tenants
            .iter()
            .map(
                |tenant| json!({"tenant": tenant.name, "changes": tenant.changes, "unnamed": tenant.unnamed}),
            )
            .collect();
        print::json(&json!({"tenants": tenants, "applied": applied == Some(true)}))?;
        return Ok(());
    }
    print::text(&text(tenants, applied, wanted.prune))?;
    Ok(())
}

fn text(tenants: &[Tenant], applied: Option<bool>, prune: bool) -> String {
    let mut lines = Vec::new();
    for tenant in tenants.iter().filter(|tenant| !tenant.changes.is_empty()) {
        lines.push(tenant.name.clone());
        lines.extend(tenant.changes.iter().map(|change| format!("  {change}")));
    }
    let total: usize = tenants.iter().map(|tenant| tenant.changes.len()).sum();
    let unnamed: usize = tenants.iter().map(|tenant| tenant.unnamed).sum();
    let count = if total == 1 { "1 change".to_owned() } else { format!("{total} changes") };
    lines.push(match (total, applied) {
        (0, _) => "no changes".to_owned(),
        (_, Some(true)) => format!("{count}, applied"),
        (_, Some(false)) => format!("{count}; nothing was applied"),
        (_, None) => count,
    });
    if unnamed > 0 {
        let remedy = if prune { "meters can't be removed" } else { "--prune removes them" };
        lines.push(format!("{unnamed} more that the file does not name stay as they are; {remedy}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use exchequer_event::v1;

    use super::*;

    fn grant(id: &str, amount: u64, expires_unix_ms: u64) -> v1::GrantAdded {
        v1::GrantAdded { grant_id: id.into(), amount, expires_unix_ms, ..Default::default() }
    }

    fn tenant(live: Plan, wanted: Plan) -> Tenant {
        let (changes, unnamed) = differences(&live, &wanted, false);
        Tenant { name: "acme".into(), live, wanted, changes, unnamed }
    }

    #[test]
    fn a_grant_whose_time_is_over_is_not_added_again() {
        let mut wanted = Plan { grants: vec![grant("old", 1, 5), grant("new", 1, 50)], ..Plan::default() };
        leave_ended(&mut wanted, &Plan::default(), 10);
        assert_eq!(wanted.grants, [grant("new", 1, 50)]);
    }

    #[test]
    fn a_grant_that_differs_stops_everything() {
        let plan = |amount| Plan { grants: vec![grant("g", amount, 0)], ..Plan::default() };
        assert!(check_grants(&[tenant(plan(1), plan(1))]).is_ok());
        let refused = check_grants(&[tenant(plan(1), plan(2))]).unwrap_err().to_string();
        assert!(refused.contains("acme: ~ grant g: amount 1 → 2"), "{refused}");
    }

    #[test]
    fn the_text_says_what_was_done() {
        let webhook = |url: &str| Plan { webhook: Some(url.into()), ..Plan::default() };
        let of = |live: &str, wanted: Plan, applied| text(&[tenant(webhook(live), wanted)], applied, false);
        assert_eq!(of("http://a", webhook("http://a"), Some(false)), "no changes");
        assert_eq!(
            of("http://a", webhook("http://b"), Some(true)),
            "acme\n  ~ webhook: url http://a → http://b\n1 change, applied"
        );
        assert!(of("http://a", webhook("http://b"), Some(false)).ends_with("1 change; nothing was applied"));
        let kept = of("http://a", Plan::default(), None);
        assert_eq!(
            kept,
            "no changes\n1 more that the file does not name stay as they are; --prune removes them"
        );
    }
}
