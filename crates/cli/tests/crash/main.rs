//! kill -9 of the agent, the ledger, metering and nats-server, one after the other, in the middle of hundreds of executions, thousands
//! of signed events and thousands of budget decisions; as processes, over a real stream.
//!
//! Left out: power cuts (nothing here can lose what the kernel has taken), kills of two parts at once, and the client's end of a call.
//! Invariant of the test: a kill comes when the load has got as far as the seed says, never after a time.
#![allow(clippy::unwrap_used, missing_docs)]

mod deployment;
mod evidence;
mod load;

use std::{sync::Arc, time::Instant};

use exchequer_auth::Role;
use exchequer_event::v1;
use exchequer_stream::EventStream as _;
use exchequer_testkit::{Random, SimAgent, eventually};
use sandbox_agent::audit_log::Report;
use tokio::task::JoinSet;

use crate::{
    deployment::{Deployment, Victim, running},
    evidence::{Log, meters},
    load::{
        ACME, Answers, DIRECT_CLIENTS, EXECUTION_CLIENTS, PATIENCE, Progress, SYNTHETIC, TIGHT,
        TIGHT_INVOCATIONS, answered, meter_amounts,
    },
};

/// How often each of the four is killed. The agent more often: what it answers before it is on disk is found only if the kill comes
/// within the millisecond between.
const KILLS: [(Victim, usize); 4] =
    [(Victim::Agent, 7), (Victim::Ledger, 3), (Victim::Metering, 3), (Victim::Nats, 3)];
const SIMULATED_AGENTS: u64 = 2;
/// What [`Progress::done`] says when all is done.
const ALL_DONE: u64 = 3000;
/// Calls that fail, or thousandths of the load that are done, before something that stays down a while is started again.
const FAILURES_WHILE_DOWN: u64 = 12;
const DONE_WHILE_DOWN: u64 = 150;
/// Overrides the seed, to try a sequence of kills again. The load's own timing is the machine's.
const SEED: &str = "CRASH_SEED";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_answered_outlives_kill_9_of_any_part() {
    let seed = seed();
    say(&format!("{SEED}={seed}"));
    let began = Instant::now();
    let mut random = Random::new(seed);
    let simulated: Vec<_> = (1..=SIMULATED_AGENTS).map(|n| SimAgent::new(format!("simulated-{n}"))).collect();
    let mut deployment = Deployment::start(&simulated).await;
    set_budgets(&deployment).await;
    say(&format!("everything runs after {:.1} s", began.elapsed().as_secs_f32()));

    let progress = Arc::new(Progress::default());
    let executed = Arc::new(Answers::default());
    let (mut executing, mut simulating, mut reserving) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    for _ in 0..EXECUTION_CLIENTS {
        let (access, progress, answers) = (deployment.access.clone(), progress.clone(), executed.clone());
        executing.spawn(async move { load::execute(access, &progress, &answers).await });
    }
    for agent in simulated {
        let (access, progress, random) = (deployment.access.clone(), progress.clone(), random.split());
        let key = *deployment.verifier_key.public_key();
        simulating.spawn(async move { load::simulate(access, agent, key, random, &progress).await });
    }
    for caller in 0..DIRECT_CLIENTS {
        let (access, progress, random) = (deployment.access.clone(), progress.clone(), random.split());
        reserving.spawn(async move { load::reserve_directly(access, caller, random, &progress).await });
    }

    // Seconds that no other program sleeps, so that this one is found among all that run.
    let seconds = format!("8640.{}", std::process::id());
    let hanging = kill_all(&mut deployment, &seconds, &progress, &executed, &mut random).await;
    executing.join_all().await;
    let simulated = simulating.join_all().await;
    let direct = reserving.join_all().await;
    say(&format!("the load is done after {:.1} s", began.elapsed().as_secs_f32()));

    settled(&deployment).await;
    let log = Log::read(&deployment.access.ledger()).await;
    say(&format!(
        "{} entries after {:.1} s: {} events in {} batches, {} decisions in {} blocks, {} executions lost, {} batches refused",
        log.entries,
        began.elapsed().as_secs_f32(),
        log.events(),
        log.batches,
        log.decisions(),
        log.blocks,
        log.lost().len(),
        log.rejections.len(),
    ));
    log.check_rejections();
    log.check_numbering();
    log.check_executed(&executed.lock().unwrap());
    for (agent, _) in &simulated {
        log.check_simulated(agent);
    }
    log.check_answers(simulated.iter().flat_map(|(_, reserved)| reserved), &direct);
    for execution_id in &hanging {
        assert!(
            log.lost().contains(execution_id.as_str()),
            "{execution_id} was running when the agent was killed"
        );
    }
    assert!(log.denials(TIGHT) > 0, "the tight budget has to run out");

    let budgets = log.add_up();
    log.check_charges(&budgets);
    log.check_open(&budgets, &direct);
    for tenant in [ACME, SYNTHETIC, TIGHT] {
        let sums = &budgets.tenants[tenant];
        let budget = budget(&deployment, tenant).await;
        assert_eq!(budget, log.budget(tenant), "metering's state is the fold of the log");
        let balances = budget.balances.into_iter().map(|balance| (balance.meter.clone(), balance));
        assert_eq!(balances.collect::<std::collections::BTreeMap<_, _>>(), sums.balances(), "{tenant}");
        let usage = deployment.usage(tenant).await;
        assert_eq!(
            (meters(&usage.spent), meters(&usage.held)),
            (sums.spent.clone(), sums.held.clone()),
            "{tenant}"
        );
    }

    load::ask_again(&deployment.access, &direct).await;
    say(deployment.verify().trim());
    check_audit_log(&deployment).await;
    assert_eq!(
        running(|line| line.contains(&seconds)),
        Vec::<String>::new(),
        "programs outlived their agent"
    );
    deployment.kill9(Victim::Agent);
    eventually(PATIENCE, || async { deployment.sandbox_processes().is_empty() }).await;
    say(&format!("all of it holds after {:.1} s", began.elapsed().as_secs_f32()));
}

/// The agent's own file of its events has each of them once, across its kills, and they are those of its spool.
async fn check_audit_log(deployment: &Deployment) {
    let written = deployment.spool().await.written.unwrap();
    let is_written = |report: &Report| report.last.as_ref().is_some_and(|last| last.seq >= written.seq);
    eventually(PATIENCE, || async { deployment.audit_log().is_ok_and(|report| is_written(&report)) }).await;
    let report = deployment.audit_log().unwrap();
    assert_eq!((report.holes.len(), report.begins_later), (0, false));
    assert_eq!((report.events, report.last_blake3), (written.seq, Some(hex::encode(&written.hash))));
    assert!(report.files.len() > 1, "it was rotated");
    say(&format!(
        "the local audit log has {} events in {} files, {} torn lines were cut",
        report.events,
        report.files.len(),
        report.cuts
    ));
}

/// Kills everything in turn and starts it again, at once or after others have met its absence. The executions that were running for
/// sure when the agent was killed.
async fn kill_all(
    deployment: &mut Deployment,
    hanging_argument: &str,
    progress: &Progress,
    answers: &Answers,
    random: &mut Random,
) -> Vec<String> {
    let mut victims = KILLS.map(|(victim, kills)| vec![victim; kills]).concat();
    random.shuffle(&mut victims);
    let share = ALL_DONE / (victims.len() as u64 + 1);
    let mut hanging = Vec::new();
    for (round, victim) in victims.into_iter().enumerate() {
        let at = share * (round as u64 + 1) + random.below(share);
        eventually(PATIENCE, || async { progress.done(SIMULATED_AGENTS) >= at }).await;
        let running = match victim {
            Victim::Agent => Some(load::hang(&deployment.access, hanging_argument, answers).await),
            _ => None,
        };
        let (done, failed) = (progress.done(SIMULATED_AGENTS), load::failures());
        deployment.kill9(victim);
        let killed = Instant::now();
        if random.below(2) == 0 {
            eventually(PATIENCE, || async {
                let now = progress.done(SIMULATED_AGENTS);
                now >= ALL_DONE.min(done + DONE_WHILE_DOWN)
                    || load::failures() >= failed + FAILURES_WHILE_DOWN
            })
            .await;
        }
        let down = killed.elapsed().as_secs_f32();
        deployment.restart(victim);
        deployment.serving(victim).await;
        let back = killed.elapsed().as_secs_f32();
        say(&format!(
            "{victim:?} killed at {done} of {ALL_DONE}, started after {down:.2} s, back after {back:.2} s"
        ));
        hanging.extend(running.map(|(execution_id, _answer)| execution_id));
    }
    hanging
}

/// Waits until the log covers everything that was written and metering has settled all of it.
async fn settled(deployment: &Deployment) {
    eventually(PATIENCE, || async {
        let spool = deployment.spool().await;
        spool.written.unwrap_or_default().seq == spool.confirmed.unwrap_or_default().seq
    })
    .await;
    let written = deployment.stream.tip().await.unwrap();
    eventually(PATIENCE, || async { deployment.usage(ACME).await.usage_cursor >= written }).await;
    // What comes after the last block are repetitions, which become no entries.
    let last = deployment.stream.last("budget.0").await.unwrap().unwrap().seq;
    let client = deployment.access.ledger();
    eventually(PATIENCE, || async {
        let mut client = client.clone();
        let page = v1::ListEntriesRequest { page_size: 1, ..v1::ListEntriesRequest::default() };
        let Ok(page) = client.list_entries(page).await else { return false };
        let request = v1::GetEntryRequest { index: page.into_inner().tree_size - 1 };
        let Ok(entry) = client.get_entry(request).await else { return false };
        let entry = entry.into_inner().entry.unwrap();
        exchequer_event::entry::decode(&entry.entry).unwrap().stream_seq >= last
    })
    .await;
}

async fn set_budgets(deployment: &Deployment) {
    let ample = [
        ("cpu_ms", 1 << 40),
        ("wall_ms", 1 << 40),
        ("memory_mib_ms", 1 << 50),
        ("output_bytes", 1 << 50),
        ("invocations", 1 << 20),
    ];
    let client = deployment.access.metering("root", None, Role::Admin);
    for (tenant, granted) in
        [(ACME, &ample[..]), (SYNTHETIC, &ample), (TIGHT, &[("invocations", TIGHT_INVOCATIONS)])]
    {
        let request = v1::SetBudgetRequest {
            scope: tenant.to_owned(),
            granted: meter_amounts(granted),
            idempotency_key: "budget".to_owned(),
            ..v1::SetBudgetRequest::default()
        };
        answered(|| {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.set_budget(request).await }
        })
        .await;
    }
}

async fn budget(deployment: &Deployment, scope: &str) -> v1::Budget {
    let client = deployment.access.metering("auditor", None, Role::Auditor);
    let response = answered(|| {
        let mut client = client.clone();
        let request = v1::GetBudgetRequest { scope: scope.to_owned() };
        async move { Ok(client.get_budget(request).await?.into_inner()) }
    })
    .await;
    response.budget.unwrap()
}

fn seed() -> u64 {
    if let Ok(seed) = std::env::var(SEED) {
        return seed.parse().expect("a number");
    }
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// What a failed run shows, and any run with `--nocapture`.
#[allow(clippy::print_stderr)]
fn say(text: &str) {
    eprintln!("{text}");
}
