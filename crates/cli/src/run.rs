//! `exchequer run`: one program in the sandbox, its output as it comes, its exit status as one's own.
//!
//! Left out: what may run and what it costs, which agent and metering decide. Invariant: status 0 is the program's own.

mod files;

use std::{
    collections::HashMap,
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use exchequer_event::v1::{self, execute_response::Part};
use serde_json::json;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::{
    bundle::Saving,
    client::{Connection, Refused},
    describe,
    print::{self, Format},
};

/// Where a name without a slash is looked for.
const DIRECTORIES: [&str; 2] = ["/usr/bin", "/bin"];
/// Largest standard input that an agent takes.
const MAX_STDIN_BYTES: u64 = 1 << 20;
/// Status of a program that a limit or a signal of ours killed: 128 and SIGKILL, as shells say it.
const KILLED: u8 = 137;
/// Status of a program that could not be started, as shells say it.
const NOT_STARTED: u8 = 127;
/// Status of an execution without an outcome of its own.
const NO_OUTCOME: u8 = 1;

/// Run one program in the sandbox, metered and recorded
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  exchequer run --tenant acme -- echo hello
  exchequer run --tenant acme --scope skills/python --cpu-ms 2000 --memory-mib 256 -- python3 -c 'print(6*7)'
  exchequer run --tenant acme --skill sum-up -- python3 -c 'print(6+7)'
  exchequer run --tenant acme --stdin -- sha256sum < file
  exchequer run --tenant acme --input a.txt=notes.txt --output b.txt=copy.txt -- cp a.txt b.txt
  exchequer run --tenant acme --input t=workspace:tables/may --output s=workspace:sums/may -- sh -c 'cksum t > s'

Exit status: the program's own; 128 + the signal that ended it; 137 if a limit killed it; 127 if it could not be started;
1 if it was refused, or a file that was asked for did not come out; 2 if the agent could not be asked.")]
pub struct Run {
    /// Tenant that pays; the token's own if not given
    #[arg(long, value_name = "TENANT", default_value = "", hide_default_value = true)]
    tenant: String,
    /// Budget scope below the tenant, such as skills/python
    #[arg(long, value_name = "SCOPE", default_value = "", hide_default_value = true)]
    scope: String,
    /// Skill that this runs: recorded with every event of the execution, so that they are found by it
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    skill: String,
    /// CPU time of the whole tree
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    cpu_ms: u64,
    /// Wall-clock time
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    wall_ms: u64,
    /// Memory
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    memory_mib: u64,
    /// Standard output and error together
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    output_bytes: u64,
    /// Sent out through the egress proxy, where the profile has one
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    egress_bytes: u64,
    /// A variable of the program's environment; can be given more than once
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Give the program this command's standard input, up to 1 MiB
    #[arg(long)]
    stdin: bool,
    /// Name of the sandbox profile; the agent's default if not given
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    profile: String,
    /// Put a file into the program's work area: its path there, and the file to read (of the same path if not given), or
    /// `workspace:` and its path in the tenant's workspace on the agent's host; can be given more than once
    #[arg(long, value_name = "PATH[=FILE]", value_parser = files::input)]
    input: Vec<files::Place>,
    /// Take a file out of the program's work area when it has ended: its path there, and the file to write, or `workspace:` and
    /// where to keep it in the tenant's workspace; can be given more than once. Kept by --bundle in any case
    #[arg(long, value_name = "PATH[=FILE]", value_parser = files::output)]
    output: Vec<files::Place>,
    /// How long the request may wait for its turn; the agent's own patience if not given
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    max_wait_ms: u64,
    /// Keep the signed result bundle in this new directory, with what the program was given and what came out: `exchequer bundle verify` checks
    /// it, `exchequer replay` runs it again. Environment, arguments and standard input are in it in clear
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Text: the program's output as it is. JSON: everything that was answered, one document a line
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    connection: Connection,
    /// Program and arguments; a name without a slash is looked for in /usr/bin and /bin
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl Run {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let stdin = if self.stdin { read_stdin()? } else { Vec::new() };
        let (program, arguments) = self.command.split_first().context("no command")?;
        let memory_bytes = self.memory_mib.checked_mul(1 << 20).context("--memory-mib is too large")?;
        let request = v1::ExecuteRequest {
            tenant: self.tenant,
            scope: self.scope,
            program: resolved(program),
            arguments: arguments.to_vec(),
            environment: self.env.into_iter().collect::<HashMap<_, _>>(),
            stdin: stdin.into(),
            limits: Some(v1::Limits {
                cpu_ms: self.cpu_ms,
                wall_ms: self.wall_ms,
                memory_bytes,
                output_bytes: self.output_bytes,
                egress_bytes: self.egress_bytes,
            }),
            skill: self.skill,
            profile: self.profile,
            inputs: files::inputs(self.input)?,
            outputs: files::outputs(&self.output),
            max_wait_ms: self.max_wait_ms,
            ..v1::ExecuteRequest::default()
        };
        let mut agent = self.connection.agent().await?;
        let mut writing = files::Writing::begin(&self.output)?;
        let mut saving = self.bundle.as_deref().map(|dir| Saving::begin(dir, &request)).transpose()?;
        let mut parts = match agent.execute(request).await {
            Ok(parts) => parts.into_inner(),
            Err(status) => {
                if let Some(saving) = saving {
                    saving.discard();
                }
                if names_the_program(&status) {
                    print::remark(&format!("error: {}", status.message()));
                    return Ok(ExitCode::from(NOT_STARTED));
                }
                return Err(status.into());
            }
        };
        let mut admitted = None;
        while let Some(response) = parts.message().await? {
            match response.part {
                Some(Part::Admitted(part)) => {
                    if self.format == Format::Json {
                        print::json(&json!({ "admitted": describe::to_json("Admitted", &part) }))?;
                    }
                    admitted = Some(part);
                }
                Some(Part::Stdout(bytes)) => {
                    saving.as_mut().map_or(Ok(()), |saving| saving.stdout(&bytes))?;
                    match self.format {
                        Format::Text => print::bytes(io::stdout().lock(), &bytes)?,
                        Format::Json => print::json(&json!({ "stdout_base64": STANDARD.encode(&bytes) }))?,
                    }
                }
                Some(Part::Stderr(bytes)) => {
                    saving.as_mut().map_or(Ok(()), |saving| saving.stderr(&bytes))?;
                    match self.format {
                        Format::Text => print::bytes(io::stderr().lock(), &bytes)?,
                        Format::Json => print::json(&json!({ "stderr_base64": STANDARD.encode(&bytes) }))?,
                    }
                }
                Some(Part::Artifact(chunk)) => {
                    saving.as_mut().map_or(Ok(()), |saving| saving.artifact(&chunk))?;
                    writing.chunk(&chunk)?;
                    if self.format == Format::Json {
                        let data = STANDARD.encode(&chunk.data);
                        print::json(&json!({ "artifact": { "output": chunk.output, "base64": data } }))?;
                    }
                }
                Some(Part::Finished(part)) => {
                    if self.format == Format::Json {
                        print::json(&json!({ "finished": describe::to_json("Finished", &part) }))?;
                    }
                    let record = part.record.clone().unwrap_or_default();
                    print::remark(&summary(admitted.as_ref(), &part, &record));
                    if let Some(saving) = saving {
                        saving.finish(&part.bundle)?;
                    }
                    let problems = writing.finish(&record.artifacts)?;
                    for problem in &problems {
                        print::remark(&format!("exchequer: {problem}"));
                    }
                    let status = status(&record);
                    let is_short = status == 0 && !problems.is_empty();
                    return Ok(ExitCode::from(if is_short { NO_OUTCOME } else { status }));
                }
                None => {}
            }
        }
        bail!(Refused("the agent ended the answer before the execution's outcome".to_owned()))
    }
}

/// Whether the request was refused for its program, which then can't be there.
fn names_the_program(status: &Status) -> bool {
    let details = status.get_details_bad_request();
    details.is_some_and(|details| details.field_violations.iter().any(|fault| fault.field == "program"))
}

fn read_stdin() -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(MAX_STDIN_BYTES + 1).read_to_end(&mut bytes).context("standard input")?;
    if bytes.len() as u64 > MAX_STDIN_BYTES {
        bail!("standard input is larger than 1 MiB, which is the most that an execution takes");
    }
    Ok(bytes)
}

/// The path of a program. What is not here may be on the agent's host, so it is asked for all the same.
fn resolved(program: &str) -> String {
    if program.contains('/') {
        return program.to_owned();
    }
    let paths = DIRECTORIES.map(|directory| format!("{directory}/{program}"));
    let found = paths.iter().find(|path| Path::new(path).exists());
    found.unwrap_or(&paths[0]).clone()
}

fn summary(
    admitted: Option<&v1::Admitted>,
    finished: &v1::Finished,
    record: &v1::ExecutionFinished,
) -> String {
    let usage = record.usage.as_ref().map(describe::usage_text).unwrap_or_default();
    let held = admitted.map(|part| describe::amounts_text(&part.held)).unwrap_or_default();
    let controls = admitted
        .and_then(|part| part.record.as_ref())
        .map(|record| describe::controls_text(&record.controls));
    let place =
        finished.position.as_ref().map(|head| format!("{}/{}", head.agent_id, head.seq)).unwrap_or_default();
    format!(
        "exchequer: execution {} {} · {usage} · hold {} ({held}) · {} · recorded as {place}",
        finished.execution_id,
        describe::ending(record),
        record.hold_id,
        controls.unwrap_or_default()
    )
}

fn status(record: &v1::ExecutionFinished) -> u8 {
    use v1::ExitCause::{
        CpuLimit, EgressLimit, Exited, LaunchFailed, OutOfMemory, OutputLimit, Seccomp, Signaled, WallLimit,
    };
    let of = |code: i32| u8::try_from(code & 0xff).unwrap_or(NO_OUTCOME);
    match record.cause() {
        Exited => of(record.exit_code),
        Signaled | Seccomp => of(128 + record.signal),
        WallLimit | CpuLimit | OutputLimit | EgressLimit | OutOfMemory => KILLED,
        LaunchFailed => NOT_STARTED,
        _ => NO_OUTCOME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_is_the_programs_or_says_what_ended_it() {
        let of = |cause: v1::ExitCause, exit_code: i32, signal: i32| {
            status(&v1::ExecutionFinished { cause: cause.into(), exit_code, signal, ..Default::default() })
        };
        assert_eq!(of(v1::ExitCause::Exited, 0, 0), 0);
        assert_eq!(of(v1::ExitCause::Exited, 3, 0), 3);
        assert_eq!(of(v1::ExitCause::Signaled, 0, 11), 139);
        assert_eq!(of(v1::ExitCause::Seccomp, 0, 31), 159);
        assert_eq!(of(v1::ExitCause::WallLimit, 0, 0), 137);
        assert_eq!(of(v1::ExitCause::LaunchFailed, 0, 0), 127);
        assert_eq!(of(v1::ExitCause::Lost, 0, 0), 1);
    }

    #[test]
    fn a_bare_name_becomes_a_path() {
        assert_eq!(resolved("/opt/x"), "/opt/x");
        assert!(resolved("sh").ends_with("bin/sh"));
        assert_eq!(resolved("no-such-program"), "/usr/bin/no-such-program");
    }
}
