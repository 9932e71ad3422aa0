//! `exchequer budget`: what scopes are granted, by command and by file, and what shows what was decided.
//!
//! Left out: deciding anything; what was used (`usage`). Invariant: each verb is one question or one change of metering, except `apply`,
//! which makes what a file says.

mod apply;
mod file;
mod live;
mod plan;
mod receipt;
mod rules;
mod set;
mod watch;
mod words;
mod yaml;

use std::process::ExitCode;

/// Set and show budgets
#[derive(clap::Subcommand)]
pub enum Budget {
    /// Set what a scope is granted per window; meters that are not named keep what they had
    #[command(after_help = "\
Examples:
  exchequer budget set --scope acme cpu_ms=60000 wall_ms=600000 invocations=1000
  exchequer budget set --scope acme/skills/python --window day --time-zone Europe/Vienna cost_micros=5_000_000 --threshold 80%
  exchequer budget set --scope acme --window month --overage overdraft --overdraft cost_micros=500000 cost_micros=10_000_000

Meters: cpu_ms, wall_ms, memory_mib_ms, output_bytes, egress_bytes, invocations, input_tokens, output_tokens, cost_micros, and those that
the tenant defined. An execution is charged to its scope and to all that enclose it, and refused if one of them has too little left.
Several windows may limit the same meter at once. Settings that are not given are as by default, also where a budget was set before.")]
    Set(Box<set::Set>),
    /// Show one budget, a tenant's, or all that you may see
    #[command(
        after_help = "Examples:\n  exchequer budget show\n  exchequer budget show --scope acme/skills --format json"
    )]
    Show(set::Show),
    /// Remove budgets of a scope over one window, with their grants
    #[command(
        after_help = "Example:\n  exchequer budget remove --scope acme/skills/python --window day cost_micros"
    )]
    Remove(set::Remove),
    /// Make budgets and settings what a file says, and show what that changes
    #[command(after_help = "\
Examples:
  exchequer budget apply -f budgets.yaml --dry-run
  exchequer budget apply -f budgets.yaml
  exchequer budget apply -f budgets.yaml --prune      also remove what the named tenants have and the file does not name

The file names per tenant its budgets with their grants, rate limits, limits on open holds, prices, meters and webhook;
docs/budgets.yaml is an example and docs/operations.md explains it. Applying it again changes nothing. All faults of the file are told at
once. A budget that is named is set as a whole; meters, budgets and tenants that are not named stay as they are.
Exit status: 0 applied, or nothing to change; 1 metering refused; 2 the file has faults, or metering could not be asked.")]
    Apply(apply::Apply),
    /// Show what `apply` would change
    #[command(after_help = "\
Example:
  exchequer budget diff -f budgets.yaml

Exit status: 0 no differences, 1 there are some, 2 the file has faults, or metering could not be asked.")]
    Diff(apply::Diff),
    /// Show balances as they change
    #[command(after_help = "\
Examples:
  exchequer budget watch acme
  exchequer budget watch acme/skills --format json      a line for each change

On a terminal a table that is drawn again; elsewhere a line for each balance that changed. A lost connection is made again.")]
    Watch(watch::Watch),
    /// Add to a budget for a time, or end what was added
    #[command(subcommand)]
    Grant(rules::Grant),
    /// Limit how often holds are granted, and how many are open
    #[command(subcommand)]
    Limit(rules::Limit),
    /// Set or remove what a meter costs
    #[command(
        after_help = "Examples:\n  exchequer budget price --scope acme --meter cpu_ms --micros 3 --per 1000\n  exchequer budget price --scope acme --meter cpu_ms --remove"
    )]
    Price(rules::Price),
    /// Define a meter of the tenant's own
    #[command(
        after_help = "Example:\n  exchequer budget meter --tenant acme gpu_ms --description \"Milliseconds on a GPU\""
    )]
    Meter(rules::Meter),
    /// Set or remove where a tenant's thresholds are reported
    #[command(
        after_help = "Examples:\n  exchequer budget webhook --tenant acme https://hooks.acme.example/budgets\n  exchequer budget webhook --tenant acme --none"
    )]
    Webhook(rules::Webhook),
    /// Show a tenant's limits, prices, meters and webhook
    Settings(rules::Settings),
    /// Show open holds and leases at a scope and below
    #[command(
        after_help = "Examples:\n  exchequer budget holds --scope acme\n  exchequer budget holds --scope acme --leases --format json"
    )]
    Holds(rules::Holds),
    /// Show one hold, or forbid that it is extended
    #[command(subcommand)]
    Hold(rules::Hold),
    /// Correct usage by a compensating entry
    #[command(after_help = "\
Examples:
  exchequer budget correct --scope acme cpu_ms=600 --reason \"host clock\" --reference 0_0198c9f2-… --idempotency-key fix-17
  exchequer budget correct --scope acme --add cpu_ms=600 --reason \"found later\" --idempotency-key fix-18

Nothing is edited: the correction is an entry of its own, and what it corrects stands.")]
    Correct(Box<rules::Correct>),
    /// Write, or check offline, a receipt that shows a decision to anybody: granted or denied, settled or refused
    #[command(after_help = "\
Examples:
  exchequer budget receipt --stream-seq 4711 --key order-17 --out order-17.receipt
  exchequer budget receipt --stream-seq 4711 --hold 0_0198c9f2-… --out hold.receipt
  exchequer budget receipt --verify order-17.receipt --vkey exchequer.local/log+1a2b3c4d+AQ…

Every answer of metering names its `stream_seq`. The receipt holds the decision, the seal that metering's key signed, and the log's proofs
of both and of that key's enrolment. To check it nothing else is needed but the log's verifier key, as you know it; without --vkey the
receipt's own word for it is taken, which shows that it is consistent and not whose log it is from.
Exit status: 0 written, or it holds; 1 refused, or it was changed; 2 it could not be asked or checked.")]
    Receipt(Box<receipt::Arguments>),
}

impl Budget {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Apply(apply) => return apply.run().await,
            Self::Diff(diff) => return diff.run().await,
            Self::Watch(watch) => return watch.run().await,
            Self::Receipt(receipt) => return receipt.run().await,
            Self::Set(set) => set.run().await?,
            Self::Show(show) => show.run().await?,
            Self::Remove(remove) => remove.run().await?,
            Self::Grant(grant) => grant.run().await?,
            Self::Limit(limit) => limit.run().await?,
            Self::Price(price) => price.run().await?,
            Self::Meter(meter) => meter.run().await?,
            Self::Webhook(webhook) => webhook.run().await?,
            Self::Settings(settings) => settings.run().await?,
            Self::Holds(holds) => holds.run().await?,
            Self::Hold(hold) => hold.run().await?,
            Self::Correct(correct) => correct.run().await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
