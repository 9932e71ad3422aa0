//! `exchequer capabilities`: what the sandbox enforces here, or where an agent runs, from attacks that are made for the answer.
//!
//! Left out: the whole suite (`exchequer audit --sandbox`). Invariant: nothing is shown that was not tried just now.

use std::{path::PathBuf, process::ExitCode};

use exchequer_event::v1;
use sandbox_agent::{
    probes,
    sandbox::{Sandbox, StartOptions},
};

use crate::{
    client::Connection,
    describe,
    print::{self, Format},
};

/// Show what the sandbox enforces on this host, or on an agent's, each control with the attack that was made just now to see it
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  exchequer capabilities
  exchequer capabilities --format json
  exchequer capabilities --agent worker-1:7070 --token @token

enforced     read back from the kernel, and an attack was stopped by this control alone that succeeded without it
degraded     holds in part, or the attack was not stopped
unavailable  can't be had on this host; how to get it is said
unverified   read back, but no attack could show it

Exit status: 0 it is shown, 2 it could not be asked. Whether it is enough says `exchequer audit --sandbox`.")]
pub struct Capabilities {
    /// Ask the agent there rather than this host
    #[arg(long, value_name = "ADDR")]
    agent: Option<String>,
    /// Bearer token for that agent, or @FILE that holds it
    #[arg(long, value_name = "TOKEN", env = "EXCHEQUER_TOKEN", hide_env_values = true, requires = "agent")]
    token: Option<String>,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Capabilities {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(agent) = self.agent {
            let grpc = Some(format!("agent={agent}"));
            let connection = Connection { data: PathBuf::new(), grpc, http: None, token: self.token };
            let request = v1::GetCapabilitiesRequest {};
            let answer = connection.agent().await?.get_capabilities(request).await?.into_inner();
            show(&answer, self.format)?;
        } else {
            let sandbox = Sandbox::start(StartOptions::default())?;
            let (controls, probes) = probes::wire::capabilities(&sandbox).await?;
            let answer = v1::GetCapabilitiesResponse { controls, probes, ..Default::default() };
            show(&answer, self.format)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints an answer.
pub fn show(answer: &v1::GetCapabilitiesResponse, format: Format) -> std::io::Result<()> {
    if format == Format::Json {
        return print::json(&describe::to_json("GetCapabilitiesResponse", answer));
    }
    let rows: Vec<_> = answer
        .controls
        .iter()
        .map(|control| {
            let probe = answer.probes.iter().find(|probe| probe.control == control.name);
            let tried = probe.map_or("no probe".to_owned(), tried);
            [control.name.clone(), status(control), tried, control.evidence.clone()]
        })
        .collect();
    print::table(["CONTROL", "STATUS", "PROBE", "EVIDENCE"], &rows)?;
    for control in answer.controls.iter().filter(|control| !control.remedy.is_empty()) {
        print::text(&format!("to get {}: {}", control.name, control.remedy))?;
    }
    let Some(limits) = &answer.max_limits else { return Ok(()) };
    print::text(&format!(
        "most that may be asked for: cpu {} ms, wall {} ms, memory {}, output {}",
        limits.cpu_ms,
        limits.wall_ms,
        describe::bytes_text(limits.memory_bytes),
        describe::bytes_text(limits.output_bytes)
    ))?;
    let degraded = if answer.allow_degraded { "run, and are recorded so" } else { "are refused" };
    print::text(&format!("executions with missing controls {degraded}"))
}

fn status(control: &v1::Control) -> String {
    control.status().as_str_name().trim_start_matches("CONTROL_STATUS_").to_lowercase()
}

fn tried(probe: &v1::ProbeResult) -> String {
    format!("{}: {}; {}", probe.what, probe.observed, probe.contrast)
}
