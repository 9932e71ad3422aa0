//! `exchequer demo`: the whole loop on real input, each step with what it shows and what proved it.
//!
//! The services are those of `up`, in this process; everything is done through their RPCs and files, as a user would. Left out:
//! load. Invariant: exit status 0 only if every proof held.

pub mod attack;
mod files;
mod show;
mod stage;

use std::{
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, bail};
use exchequer_auth::{Grant, Role};
use exchequer_event::{
    entry,
    seal::decode_event,
    v1::{
        self, ExitCause, HoldState, agent_service_client::AgentServiceClient, execute_response::Part,
        ledger_service_client::LedgerServiceClient, metering_service_client::MeteringServiceClient,
    },
};
use exchequer_serve::StreamOptions;
use exchequer_tlog::TlogProof;
use sandbox_agent::profiles::Profiles;
use sha2::{Digest as _, Sha256};
use tonic::{Code, Status, service::interceptor::InterceptedService, transport::Channel};
use tonic_types::StatusExt as _;

use self::stage::{Stage, note, say};
use crate::{
    assembly::{Assembly, AssemblyOptions},
    evidence::{
        export::{self, export},
        pack::Scope,
        report::Verdict,
        verify::{Target, Trust, verify},
    },
};

/// Granted to the demo's tenant.
const BUDGET: [(&str, u64); 4] =
    [("cpu_ms", 8_000), ("wall_ms", 60_000), ("output_bytes", 16 << 20), ("invocations", 20)];
/// Limits of each program.
const LIMITS: v1::Limits = v1::Limits {
    cpu_ms: 2_000,
    wall_ms: 10_000,
    memory_bytes: 512 << 20,
    output_bytes: 1 << 20,
    egress_bytes: 0,
};
/// How long anything may take that happens by itself.
const PATIENCE: Duration = Duration::from_secs(15);
/// Real input.
const INPUT: &str = include_str!("../../../LICENSE");
/// What the attacker is after.
const SECRET: &str = "the host's secret";

/// What the demo is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Keeps everything in this directory, instead of a temporary one
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Uses this NATS server with JetStream, instead of the embedded stream
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
}

/// Runs the demo; success only if everything held.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let temporary = tempfile::Builder::new().prefix("exchequer-demo-").tempdir()?;
    let data = match &arguments.data {
        Some(data) => {
            fs::create_dir_all(data).with_context(|| data.display().to_string())?;
            data.canonicalize()?
        }
        None => temporary.path().join("data"),
    };
    // The sandboxed attacker is a copy of this binary, in a place that an unprivileged user can reach.
    let tools = tempfile::Builder::new().prefix("exchequer-demo-").tempdir_in("/var/tmp")?;
    fs::set_permissions(tools.path(), Permissions::from_mode(0o755))?;
    let attacker = tools.path().join("attacker");
    fs::copy(std::env::current_exe()?, &attacker).context("a copy of this binary")?;
    fs::set_permissions(&attacker, Permissions::from_mode(0o755))?;

    let options = options(&data, arguments.nats.as_deref(), &attacker)?;
    say("Exchequer demo: ledger, metering and agent in one process.");
    say(format!("data    {}{}", data.display(), if arguments.data.is_some() { "" } else { " (temporary)" }));
    say(format!("stream  {}", arguments.nats.as_deref().unwrap_or("embedded journal")));
    let mut demo = Demo::start(options, attacker, data.join("evidence")).await?;
    demo.introduce()?;
    let outcome = demo.play().await;
    if let Some(assembly) = demo.assembly.take() {
        assembly.stop().await;
    }
    outcome?;
    Ok(if demo.stage.close() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The assembly's options: those of `up`, but on ports of the system's choice, and running with what this host can enforce.
fn options(data: &Path, nats: Option<&str>, attacker: &Path) -> anyhow::Result<AssemblyOptions> {
    let mut options = AssemblyOptions::local(data)?;
    options.agent.allow_degraded = true;
    options.agent.profiles = Profiles::built_in(&[attacker.to_owned()]);
    if let Some(url) = nats {
        let mut stream = exchequer_stream::jetstream::Options::new(url);
        // A stream of this log's own: the server may have others.
        fs::create_dir_all(&options.ledger.data)?;
        let key = exchequer_auth::keys::load_or_create(&options.ledger.key_file)?.verifying_key();
        stream.prefix = Some(format!("demo{}", hex::encode(&key.as_bytes()[..6])));
        options.stream = Some(StreamOptions(stream));
    }
    Ok(options)
}

struct Demo {
    options: AssemblyOptions,
    /// Absent only between stopping and starting again.
    assembly: Option<Assembly>,
    attacker: PathBuf,
    evidence: PathBuf,
    tenant: String,
    stage: Stage,
}

/// An execution that ended.
struct Ran {
    admitted: v1::Admitted,
    finished: v1::ExecutionFinished,
    stdout: String,
}

impl Demo {
    async fn start(options: AssemblyOptions, attacker: PathBuf, evidence: PathBuf) -> anyhow::Result<Self> {
        let assembly = started(&options).await?;
        let mut random = [0; 3];
        getrandom::fill(&mut random)?;
        let tenant = format!("demo-{}", hex::encode(random));
        Ok(Self { options, assembly: Some(assembly), attacker, evidence, tenant, stage: Stage::open() })
    }

    fn introduce(&self) -> anyhow::Result<()> {
        let assembly = self.assembly()?;
        say(format!("tenant  {}", self.tenant));
        say(format!("log     {}", assembly.verifier_key));
        if assembly.missing_controls.is_empty() {
            say("sandbox every control holds on this host, as read back from the kernel");
        } else {
            say(format!("sandbox NOT enforced on this host: {}", assembly.missing_controls.join(", ")));
            say("        the demo sets agent.allow_degraded; without it an agent refuses to execute here");
        }
        Ok(())
    }

    async fn play(&mut self) -> anyhow::Result<()> {
        self.set_budget().await?;
        let mut ran = self.run_programs().await?;
        ran.push(self.attack().await?);
        self.settle(&ran).await?;
        self.exceed().await?;
        self.restart().await?;
        let index = self.prove_inclusion(&ran[0]).await?;
        self.tamper(index).await
    }

    async fn set_budget(&mut self) -> anyhow::Result<()> {
        self.stage.step("A budget is set");
        let granted = BUDGET.map(|(meter, amount)| v1::MeterAmount { meter: meter.into(), amount });
        let request = v1::SetBudgetRequest {
            scope: self.tenant.clone(),
            granted: granted.to_vec(),
            ..v1::SetBudgetRequest::default()
        };
        self.metering()?.set_budget(request).await?;
        let balances = self.balances().await?;
        note(show::balances(&balances));
        let granted = BUDGET.iter().all(|(meter, amount)| {
            balances.iter().any(|b| b.meter == *meter && b.granted == *amount && b.available == *amount)
        });
        self.stage.prove(
            granted,
            "metering answers with the balances that were granted, after the block is durable",
        );
        let mut other = self.metering_as(&Self::grant("somebody-else", Role::TenantAdmin))?;
        let seen = other.get_budget(v1::GetBudgetRequest { scope: self.tenant.clone() }).await;
        self.stage.prove(seen.is_err(), "another tenant's token can't see it");
        Ok(())
    }

    async fn run_programs(&mut self) -> anyhow::Result<Vec<Ran>> {
        self.stage.step("Three real programs run in the sandbox, and one that attacks is stopped");
        let words: Vec<_> = INPUT.split_whitespace().collect();
        let mut sorted = words.clone();
        sorted.sort_unstable();
        let (words, sorted) = (words.join("\n"), sorted.join("\n") + "\n");
        let digest = format!("{}  -\n", hex::encode(Sha256::digest(INPUT)));
        let count = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo $i";
        let programs: [(&str, &[&str], &[u8], &str); 3] = [
            ("sha256sum", &[], INPUT.as_bytes(), &digest),
            ("sort", &[], words.as_bytes(), &sorted),
            ("sh", &["-c", count], b"", "100000\n"),
        ];
        let mut ran = Vec::new();
        for (program, arguments, stdin, expected) in programs {
            let path = program_path(program)?;
            let run = self.execute(&path, arguments, stdin, LIMITS).await?;
            let usage = run.finished.usage.clone().unwrap_or_default();
            let what = format!(
                "{program}: exit 0 and the output computed here by other means ({} bytes, {:.1} ms cpu, {:.1} ms wall)",
                run.stdout.len(),
                show::ms(usage.cpu_user_us + usage.cpu_system_us),
                show::ms(usage.wall_us),
            );
            let exited = run.finished.cause() == ExitCause::Exited && run.finished.exit_code == 0;
            self.stage.prove(exited && run.stdout == expected, what);
            ran.push(run);
        }
        let controls =
            ran.first().and_then(|run| run.admitted.record.as_ref()).map(|record| record.controls.clone());
        note(
            "controls of the first, read back from the kernel before it executed, as signed into the record:",
        );
        for control in controls.unwrap_or_default() {
            let status = control.status().as_str_name().trim_start_matches("CONTROL_STATUS_").to_lowercase();
            note(format!("  {:<17} {status:<12} {}", control.name, control.evidence));
            if !control.remedy.is_empty() {
                note(format!("  {:<17} to get it: {}", "", control.remedy));
            }
        }
        Ok(ran)
    }

    async fn attack(&mut self) -> anyhow::Result<Ran> {
        // World-readable, so that only the sandbox can be what stops the attacker.
        let secret = self.attacker.with_file_name("secret");
        fs::write(&secret, SECRET)?;
        fs::set_permissions(&secret, Permissions::from_mode(0o644))?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let secret = secret.to_string_lossy().into_owned();
        let address = listener.local_addr()?.to_string();
        let arguments = [attack::ARGUMENT, &secret, &address];

        let outside = Command::new(&self.attacker).args(arguments).output()?;
        let outside = String::from_utf8_lossy(&outside.stdout).into_owned();
        let succeeds =
            [attack::READ, attack::CONNECTED, attack::ANSWERED].iter().all(|line| outside.contains(line));
        self.stage.prove(
            succeeds,
            "positive control: outside the sandbox the attacker reads, connects and makes the call",
        );

        let program = self.attacker.to_string_lossy().into_owned();
        let run = self.execute(&program, &arguments, b"", LIMITS).await?;
        note(format!("the attacker, inside, says:\n{}", show::indent(&run.stdout)));
        let says = |line: &str| run.stdout.contains(line);
        self.stage.prove(
            says(attack::NOT_READ) && !says(attack::READ) && !says(SECRET),
            "inside, the host's file can't be read",
        );
        self.stage.prove(
            says(attack::NOT_CONNECTED) && !says(attack::CONNECTED),
            "inside, no connection can be opened",
        );
        let killed = run.finished.cause() == ExitCause::Seccomp && !says(attack::ANSWERED);
        let what = format!(
            "inside, mount(2) is never answered: the kernel killed the process ({}, signal {})",
            run.finished.cause().as_str_name(),
            run.finished.signal
        );
        self.stage.prove(killed, what);
        Ok(run)
    }

    async fn settle(&mut self, ran: &[Ran]) -> anyhow::Result<()> {
        self.stage.step("Each execution's hold, and what was settled from its signed record");
        for run in ran {
            let hold_id = run.finished.hold_id.clone();
            let hold = self.settled(&hold_id).await?;
            let cpu_us =
                run.finished.usage.as_ref().map_or(0, |usage| usage.cpu_user_us + usage.cpu_system_us);
            let line = |meter: &str| {
                format!("{meter} {} of {}", amount(&hold.used, meter), amount(&hold.amounts, meter))
            };
            note(format!("{hold_id}: {}, {}, {}", line("cpu_ms"), line("wall_ms"), line("output_bytes")));
            let exact =
                hold.state() == HoldState::Settled && amount(&hold.used, "cpu_ms") == cpu_us.div_ceil(1000);
            self.stage.prove(exact, "settled with the kernel's figure, the rest returned");
        }
        let balances = self.balances().await?;
        note(show::balances(&balances));
        let balanced = balances.iter().all(|b| {
            u128::from(b.granted) + u128::from(b.debt)
                == u128::from(b.available) + u128::from(b.held) + u128::from(b.spent)
        });
        self.stage.prove(balanced, "granted = available + held + spent - debt, for every meter");
        let invocations = balances.iter().find(|b| b.meter == "invocations").map_or(0, |b| b.spent + b.held);
        self.stage.prove(invocations == 4, "four executions are counted, the attack too");
        Ok(())
    }

    async fn exceed(&mut self) -> anyhow::Result<()> {
        self.stage.step("An execution beyond the budget is refused");
        self.refused().await
    }

    async fn refused(&mut self) -> anyhow::Result<()> {
        // Exactly what was granted: only what has been spent stands against it.
        let (_, granted) = BUDGET[0];
        let limits = v1::Limits { cpu_ms: granted, ..LIMITS };
        let refusal = self.execute(&program_path("true")?, &[], b"", limits).await;
        let status = match refusal {
            Ok(_) => {
                self.stage.prove(false, "all that was granted could be held again, though some is spent");
                return Ok(());
            }
            Err(error) => error.downcast::<Status>().context("the refusal is no gRPC status")?,
        };
        note(status.message());
        let named = status.code() == Code::ResourceExhausted
            && status.get_details_error_info().is_some_and(|info| {
                info.metadata.get("scope") == Some(&self.tenant)
                    && info.metadata.get("meter").is_some_and(|meter| meter == "cpu_ms")
            });
        self.stage.prove(named, "RESOURCE_EXHAUSTED, naming the scope and the meter that bind");
        Ok(())
    }

    async fn restart(&mut self) -> anyhow::Result<()> {
        self.stage.step("The services are stopped and started again");
        let before = self.balances().await?;
        if let Some(assembly) = self.assembly.take() {
            assembly.stop().await;
        }
        for derived in
            [self.options.metering.data.join("snapshots"), self.options.ledger.data.join("derived")]
        {
            fs::remove_dir_all(&derived).with_context(|| derived.display().to_string())?;
        }
        self.assembly = Some(started(&self.options).await?);
        note(
            "in between, every snapshot and index (all of sled) was deleted: the state is replayed from stream and log",
        );
        let after = self.balances().await?;
        self.stage.prove(before == after, "every balance is what it was");
        self.refused().await
    }

    async fn prove_inclusion(&mut self, ran: &Ran) -> anyhow::Result<u64> {
        self.stage.step("A checkpoint is signed; one execution's inclusion is verified offline");
        // One for each run: a kept directory can be used again.
        self.evidence.push(&self.tenant);
        fs::create_dir_all(&self.evidence)?;
        let (index, checkpoint) = self.logged(&ran.admitted.execution_id).await?;
        note(show::indent(&checkpoint));
        let pack = self.evidence.join("evidence.tar");
        let key = self.assembly()?.verifier_key.clone();
        let request = export::Request {
            scope: Some(Scope::Tenant(self.tenant.clone())),
            time: None,
            format: export::Format::Native,
            key: Some(key.clone()),
            continues: None,
            out: pack.clone(),
        };
        let exported = export(self.ledger()?, request, |_| {}).await?;
        note(format!("exported {} entries of {} to a pack", exported.entries, self.tenant));
        // A copy of the log, and then nothing is left to ask: what follows is offline.
        files::copy_dir(&self.options.ledger.data.join("log"), &self.evidence.join("log"))?;
        if let Some(assembly) = self.assembly.take() {
            assembly.stop().await;
        }
        let trust = || Trust { key: Some(key.clone()), ..Trust::default() };
        let report = verify(Target::Pack(pack.clone()), trust(), None, |_| {}).await;
        self.stage.prove(
            report.verdict == Verdict::Holds,
            format!(
                "services stopped, the pack verifies by the log's key alone: {} inclusion proofs, {} signatures",
                report.checked.proofs, report.checked.signatures
            ),
        );
        let member = format!("proofs/{index}.tlog-proof");
        let proof = files::tar_member(&pack, &member)?;
        let proof = TlogProof::parse(&proof).with_context(|| member.clone())?;
        self.stage.prove(
            proof.index() == index,
            format!(
                "{member}: entry {index} (the first program's outcome), {} hashes to the signed root",
                proof.hashes().len()
            ),
        );
        Ok(index)
    }

    async fn tamper(&mut self, index: u64) -> anyhow::Result<()> {
        self.stage.step("One byte of a copy of the log is changed");
        let log = self.evidence.join("log");
        let key = self.options_key()?;
        let check = || {
            verify(
                Target::Directory(log.clone()),
                Trust { key: Some(key.clone()), ..Trust::default() },
                None,
                |_| {},
            )
        };
        let before = check().await;
        let what = format!("before: all {} entries of the copy verify", before.checked.entries);
        self.stage.prove(before.verdict == Verdict::Holds, what);
        let file = files::flip_byte(&log, index, before.tree_size.unwrap_or_default())?;
        note(format!("one bit of entry {index} flipped, in {file}"));
        let after = check().await;
        show::faults(&after);
        let named =
            after.verdict == Verdict::Tampered && after.faults.iter().any(|fault| fault.index == Some(index));
        self.stage.prove(named, format!("after: verification fails and names entry {index}"));
        Ok(())
    }

    /// Runs a program as a user of the tenant.
    async fn execute(
        &self,
        program: &str,
        arguments: &[&str],
        stdin: &[u8],
        limits: v1::Limits,
    ) -> anyhow::Result<Ran> {
        let request = v1::ExecuteRequest {
            tenant: self.tenant.clone(),
            program: program.to_owned(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            environment: [("LC_ALL".to_owned(), "C".to_owned())].into(),
            stdin: stdin.to_vec().into(),
            limits: Some(limits),
            ..v1::ExecuteRequest::default()
        };
        let (channel, token) = self.connection(&Self::grant(&self.tenant, Role::User))?;
        let parts = AgentServiceClient::with_interceptor(channel, token).execute(request).await?;
        let mut parts = parts.into_inner();
        let (mut admitted, mut stdout) = (None, Vec::new());
        while let Some(part) = parts.message().await? {
            match part.part {
                Some(Part::Admitted(part)) => admitted = Some(part),
                Some(Part::Stdout(bytes)) => stdout.extend_from_slice(&bytes),
                Some(Part::Finished(part)) => {
                    return Ok(Ran {
                        admitted: admitted.context("the outcome came before the admission")?,
                        finished: part.record.context("an outcome without a record")?,
                        stdout: String::from_utf8_lossy(&stdout).into_owned(),
                    });
                }
                Some(Part::Stderr(_) | Part::Artifact(_)) | None => {}
            }
        }
        bail!("the answer ended without an outcome")
    }

    async fn balances(&self) -> anyhow::Result<Vec<v1::Balance>> {
        let request = v1::GetBudgetRequest { scope: self.tenant.clone() };
        let budget = self.metering()?.get_budget(request).await?.into_inner().budget;
        Ok(budget.context("an answer without a budget")?.balances)
    }

    /// The hold, once metering has followed the stream to its execution's outcome.
    async fn settled(&self, hold_id: &str) -> anyhow::Result<v1::GetHoldResponse> {
        let mut metering = self.metering()?;
        within("a settlement", async || {
            let request = v1::GetHoldRequest { hold_id: hold_id.to_owned() };
            let hold = metering.get_hold(request).await?.into_inner();
            Ok((hold.state() != HoldState::Open).then_some(hold))
        })
        .await
    }

    /// Index of the entry with an execution's outcome, once a checkpoint covers it, and that checkpoint.
    async fn logged(&self, execution_id: &str) -> anyhow::Result<(u64, String)> {
        let mut ledger = self.ledger()?;
        within("a checkpoint over the outcome", async || {
            let filter =
                v1::EntryFilter { execution_id: execution_id.to_owned(), ..v1::EntryFilter::default() };
            let request =
                v1::ListEntriesRequest { filter: Some(filter), ..v1::ListEntriesRequest::default() };
            let entries = ledger.list_entries(request).await?.into_inner().entries;
            let Some(outcome) = entries.iter().find(|entry| is_outcome(entry)) else { return Ok(None) };
            let checkpoint =
                ledger.get_checkpoint(v1::GetCheckpointRequest {}).await?.into_inner().checkpoint;
            Ok(Some((outcome.index, String::from_utf8_lossy(&checkpoint).into_owned())))
        })
        .await
    }

    fn assembly(&self) -> anyhow::Result<&Assembly> {
        self.assembly.as_ref().context("the services are stopped")
    }

    fn options_key(&self) -> anyhow::Result<exchequer_tlog::VerifierKey> {
        let key = exchequer_auth::keys::load(&self.options.ledger.key_file)?.verifying_key();
        let kind = exchequer_tlog::SignatureKind::Ed25519;
        Ok(exchequer_tlog::VerifierKey::new(&*self.options.ledger.origin, kind, key)?)
    }

    fn grant(tenant: &str, role: Role) -> Grant {
        Grant {
            subject: "demo".into(),
            tenant: Some(tenant.into()),
            roles: vec![role],
            ttl: Duration::from_secs(600),
        }
    }

    fn connection(&self, grant: &Grant) -> anyhow::Result<(Channel, exchequer_auth::BearerToken)> {
        let assembly = self.assembly()?;
        let channel = Channel::from_shared(format!("http://{}", assembly.grpc))?.connect_lazy();
        Ok((channel, exchequer_auth::BearerToken::fixed(&assembly.mint(grant)?)?))
    }

    fn metering_as(&self, grant: &Grant) -> anyhow::Result<MeteringServiceClient<Transport>> {
        let (channel, token) = self.connection(grant)?;
        Ok(MeteringServiceClient::with_interceptor(channel, token))
    }

    fn metering(&self) -> anyhow::Result<MeteringServiceClient<Transport>> {
        self.metering_as(&Self::grant(&self.tenant, Role::TenantAdmin))
    }

    fn ledger(&self) -> anyhow::Result<LedgerServiceClient<Transport>> {
        let (channel, token) = self.connection(&Self::grant(&self.tenant, Role::User))?;
        Ok(LedgerServiceClient::with_interceptor(channel, token))
    }
}

type Transport = InterceptedService<Channel, exchequer_auth::BearerToken>;

/// Starts the services and waits until all of them work.
async fn started(options: &AssemblyOptions) -> anyhow::Result<Assembly> {
    let assembly = Assembly::start(options.clone()).await?;
    match assembly.ready(PATIENCE).await {
        Ok(()) => Ok(assembly),
        Err(faults) => bail!("not ready: {faults:?}"),
    }
}

/// Asks until there is an answer.
async fn within<T>(what: &str, mut ask: impl AsyncFnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if tokio::time::Instant::now() > deadline {
            bail!("{what} did not come within {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A program's path on this host; a missing tool is a failure, not a reason to show less.
fn program_path(name: &str) -> anyhow::Result<String> {
    let found =
        ["/usr/bin", "/bin"].iter().map(|dir| format!("{dir}/{name}")).find(|path| Path::new(path).exists());
    found.with_context(|| format!("{name} is in neither /usr/bin nor /bin"))
}

fn is_outcome(logged: &v1::LogEntry) -> bool {
    let Ok(v1::Entry { kind: Some(v1::entry::Kind::Event(event)), .. }) = entry::decode(&logged.entry) else {
        return false;
    };
    decode_event(&event).is_ok_and(|event| matches!(event.kind, Some(v1::event::Kind::ExecutionFinished(_))))
}

fn amount(amounts: &[v1::MeterAmount], meter: &str) -> u64 {
    amounts.iter().find(|a| a.meter == meter).map_or(0, |a| a.amount)
}
