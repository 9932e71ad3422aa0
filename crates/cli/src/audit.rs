//! `exchequer audit`: what is claimed here is tried. One subject so far: the sandbox of this host.
//!
//! Left out: the attacks and their judgement (`sandbox_agent::probes`). Invariant: exit status 0 says that every probe that can be run here
//! held and every layer is on; what could not be run is listed, and what could not be tried at all is status 2.

use std::process::ExitCode;

use anyhow::Context as _;
use sandbox_agent::{
    probes::{Guard, Mutation, Report, Seen, Suite, Verdict},
    sandbox::{Control, ControlStatus, Layer, Sandbox, StartOptions},
};
use serde_json::{Value as Json, json};

use crate::print::{self, Format};

/// Try what is claimed on this host: attack the sandbox
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  exchequer audit --sandbox
  exchequer audit --sandbox --mutations
  exchequer audit --sandbox --format json

Each probe is an attack that is made inside, where it has to be stopped with exactly the expected error or signal, and once more where it
has to succeed (outside as the same user, or inside without the layers that stop it): a probe whose control fails has failed. Where several
layers stop it, it is made against each of them alone too (`probe/layer`). With --mutations, each layer is switched off in turn, and it is
shown which probes notice.

held            stopped as it had to be
broken          not stopped, or otherwise than it had to be
control_failed  nothing can be said: the attack did not succeed where it had to, or could not be made
open            no layer that stops it is to be had as a whole on this host
not_covered     what it aims at can't be made by this user, or the one layer can't be had without the others

Exit status: 0 clean, 1 findings, 2 it could not be checked.")]
pub struct Audit {
    #[command(flatten)]
    subjects: Subjects,
    /// Switch each layer off in turn and see which probes notice
    #[arg(long, requires = "sandbox")]
    mutations: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What is tried: at least one.
#[derive(clap::Args)]
#[group(required = true, multiple = true)]
struct Subjects {
    /// The sandbox of this host, with this user
    #[arg(long)]
    sandbox: bool,
}

impl Audit {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let Subjects { sandbox: true } = self.subjects else {
            anyhow::bail!("nothing to audit was named");
        };
        let sandbox = Sandbox::start(StartOptions::default()).context("starting the sandbox")?;
        let suite = Suite::start(sandbox).await?;
        let controls = suite.read_back().await?;
        let reports = suite.audit().await;
        let mutations = if self.mutations { Some(suite.mutations(&controls, &reports).await) } else { None };
        let audited = Audited { controls, reports, mutations };
        let findings = audited.findings();
        match self.format {
            Format::Json => print::json(&json!({ "sandbox": audited.to_json(), "findings": findings }))?,
            Format::Text => audited.show(&findings)?,
        }
        Ok(ExitCode::from(u8::from(!findings.is_empty())))
    }
}

struct Audited {
    controls: Vec<Control>,
    reports: Vec<Report>,
    mutations: Option<Vec<Mutation>>,
}

impl Audited {
    fn findings(&self) -> Vec<String> {
        let missing = self.controls.iter().filter(|control| control.status != ControlStatus::Enforced);
        let missing = missing.map(|control| {
            format!("{} is {}: {}; {}", control.layer, status(control), control.evidence, control.remedy)
        });
        let failed = self.reports.iter().filter_map(|report| match report.verdict {
            Verdict::Held | Verdict::NotCovered => None,
            verdict => Some(format!(
                "{} is {}: {}; expected {}, seen {}; {}",
                report.name(),
                verdict.name(),
                report.probe.what,
                report.expected,
                report.observed,
                report.control
            )),
        });
        let unnoticed = self.mutations.iter().flatten().filter(|mutation| !mutation.is_noticed());
        let unnoticed = unnoticed.map(|mutation| {
            let by = if mutation.read_back { "no probe notices" } else { "the read-back does not say" };
            format!("{}: {by} that it is off", mutation.layer)
        });
        missing.chain(failed).chain(unnoticed).collect()
    }

    fn show(&self, findings: &[String]) -> std::io::Result<()> {
        let rows: Vec<_> = self
            .reports
            .iter()
            .map(|report| {
                let verdict = report.verdict.name().to_owned();
                [report.name(), verdict, guard(report), report.observed.clone(), report.control.clone()]
            })
            .collect();
        print::table(["PROBE", "VERDICT", "STOPPED BY", "SEEN", "CONTROL"], &rows)?;
        if let Some(mutations) = &self.mutations {
            mutations.iter().try_for_each(show_mutation)?;
        }
        print::text("")?;
        let count = |verdict| self.reports.iter().filter(|report| report.verdict == verdict).count();
        let verdicts =
            [Verdict::Held, Verdict::Broken, Verdict::ControlFailed, Verdict::Open, Verdict::NotCovered];
        let counted = verdicts.map(|verdict| format!("{} {}", count(verdict), verdict.name())).join(", ");
        print::text(&format!("{} probes as {}: {counted}", self.reports.len(), user()))?;
        for finding in findings {
            print::text(&format!("finding: {finding}"))?;
        }
        Ok(())
    }

    fn to_json(&self) -> Json {
        let noticed = |noticed: &[(String, Seen)]| {
            noticed
                .iter()
                .map(|(name, seen)| json!({ "probe": name, "saw": seen.to_string() }))
                .collect::<Vec<_>>()
        };
        json!({
            "user": user(),
            "controls": self.controls.iter().map(|control| json!({
                "name": control.layer.name(),
                "status": status(control),
                "evidence": control.evidence,
            })).collect::<Vec<_>>(),
            "probes": self.reports.iter().map(|report| json!({
                "name": report.probe.name,
                "alone": report.only.map(Layer::name),
                "what": report.probe.what,
                "verdict": report.verdict.name(),
                "stopped_by": guard(report),
                "expected": report.expected,
                "observed": report.observed,
                "control": report.control,
            })).collect::<Vec<_>>(),
            "mutations": self.mutations.as_ref().map(|mutations| mutations.iter().map(|mutation| json!({
                "layer": mutation.layer.name(),
                "available": mutation.available,
                "noticed": noticed(&mutation.noticed),
                "noticed_alone": noticed(&mutation.noticed_alone),
                "read_back": mutation.read_back,
            })).collect::<Vec<_>>()),
        })
    }
}

fn show_mutation(mutation: &Mutation) -> std::io::Result<()> {
    let list = |noticed: &[(String, Seen)]| {
        noticed.iter().map(|(name, seen)| format!("{name}: {seen}")).collect::<Vec<_>>()
    };
    print::text(&format!("\nwithout {}, noticed by", mutation.layer.name()))?;
    let noticed = match (mutation.available, mutation.noticed.is_empty()) {
        (false, _) => vec!["nobody: it can't be had here".to_owned()],
        (true, true) => vec!["none: other layers stop the same".to_owned()],
        (true, false) => list(&mutation.noticed),
    };
    print::wrapped("  ", &noticed)?;
    let alone = list(&mutation.noticed_alone);
    if alone.is_empty() {
        return Ok(());
    }
    print::text("  and by probes that only it stops")?;
    print::wrapped("    ", &alone)
}

fn guard(report: &Report) -> String {
    match report.guard {
        Some(Guard::Layer(layer)) => layer.name().to_owned(),
        Some(Guard::Engine) => "engine".to_owned(),
        None => String::new(),
    }
}

fn status(control: &Control) -> &'static str {
    match control.status {
        ControlStatus::Enforced => "enforced",
        ControlStatus::Degraded => "degraded",
        ControlStatus::Unavailable => "unavailable",
    }
}

fn user() -> String {
    let uid = rustix::process::geteuid();
    if uid.is_root() { "root".to_owned() } else { format!("user {}", uid.as_raw()) }
}
