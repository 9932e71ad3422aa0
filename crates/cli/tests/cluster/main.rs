//! kill -9 of metering instances and nats-servers, at random, under load: three instances of metering and a ledger as processes over a real
//! cluster of three nats-servers with three replicas.
//!
//! Left out: power cuts, kills of two nats-servers at once (two of three are what the stream needs), and networks that fail without anybody
//! dying. Invariant of the test: a kill comes when the load has got as far as the seed says, never after a time.
#![allow(clippy::unwrap_used, missing_docs)]

mod deployment;
mod evidence;
mod load;

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use exchequer_auth::Role;
use exchequer_event::v1;
use exchequer_testkit::{Random, eventually};
use tokio::task::JoinSet;
use tonic::{Request, metadata::MetadataValue};

use crate::{
    deployment::{Deployment, INSTANCES, Metering, NODES},
    evidence::Log,
    load::{Answer, CALLERS, Caller, Change, HOLDS, PATIENCE, Progress, TENANTS, answered},
};

/// Partitions of the deployment.
pub const PARTITIONS: u16 = 4;
/// How often what is killed.
const KILLS: [(Victim, usize); 3] = [(Victim::Metering, 6), (Victim::Nats, 2), (Victim::Both, 1)];
/// Calls that fail, or holds that come to their end, before something that stays down a while is started again.
const FAILURES_WHILE_DOWN: u64 = 60;
const DONE_WHILE_DOWN: u64 = 120;
/// How often the owner is killed to see who takes over.
const FAILOVERS: u64 = 4;
/// Overrides the seed, to try a sequence of kills again. The load's own timing is the machine's.
const SEED: &str = "CLUSTER_SEED";

/// Whom a kill hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Metering,
    Nats,
    Both,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_kill_of_instances_or_brokers_loses_doubles_or_overspends_what_was_answered() {
    let mut random = Random::new(seed());
    let began = Instant::now();
    let mut deployment = Deployment::start().await;
    let roots = deployment.access.metering("root", Role::Admin);
    let mut changes = load::set_budgets(&roots, &mut random).await;
    say(&format!("everything runs after {:.1} s", began.elapsed().as_secs_f32()));

    let progress = Arc::new(Progress::default());
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        let name = format!("caller-{number}");
        let clients = deployment.access.metering(&name, Role::Agent);
        let (progress, random) = (Arc::clone(&progress), random.split());
        callers.spawn(async move {
            let caller = Caller { name, clients, random, progress: &progress, answers: Vec::new() };
            Box::pin(caller.run()).await
        });
    }
    let changing = {
        let (roots, progress, random) = (roots.clone(), Arc::clone(&progress), random.split());
        tokio::spawn(async move { load::change_budgets(roots, random, &progress).await })
    };
    kill_all(&mut deployment, &progress, &mut random).await;
    let answers = callers.join_all().await.concat();
    changes.extend(changing.await.unwrap());
    say(&format!(
        "the load is done after {:.1} s, {} calls failed",
        began.elapsed().as_secs_f32(),
        progress.failures()
    ));

    check(&mut deployment, &answers, &changes).await;
    say(&format!("all of it holds after {:.1} s", began.elapsed().as_secs_f32()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn when_the_owner_is_killed_the_others_answer_in_its_place() {
    let mut random = Random::new(seed());
    let mut deployment = Deployment::start().await;
    let roots = deployment.access.metering("root", Role::Admin);
    let changes = load::set_budgets(&roots, &mut random).await;
    let (mut answers, mut times) = (Vec::new(), Vec::new());
    for round in 0..FAILOVERS {
        let mut owners = Vec::new();
        for tenant in TENANTS {
            owners.push(owner(&roots, tenant).await);
        }
        let victim = *random.pick(&owners);
        let caller = format!("prober-{round}");
        let clients = deployment.access.metering(&caller, Role::Agent);
        deployment.metering[victim].kill9();
        let killed = Instant::now();
        let mut probes = JoinSet::new();
        for (instance, client) in clients.iter().enumerate().filter(|(instance, _)| *instance != victim) {
            for (tenant, owner) in TENANTS.into_iter().zip(&owners) {
                let is_orphan = *owner == victim;
                let probe = load::probe(
                    caller.clone(),
                    client.clone(),
                    tenant,
                    format!("{caller}-{instance}"),
                    killed,
                );
                probes.spawn(async move { (is_orphan, probe.await) });
            }
        }
        for (is_orphan, (took, more)) in probes.join_all().await {
            times.extend(is_orphan.then_some(took));
            answers.extend(more);
        }
        deployment.metering[victim].start();
    }
    times.sort();
    let seconds = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f32();
    say(&format!(
        "from a kill to an answer: median {:.2} s, 90 % within {:.2} s, longest {:.2} s",
        seconds(50),
        seconds(90),
        seconds(100)
    ));
    check(&mut deployment, &answers, &changes).await;
}

/// Kills by the seed's order and starts again, at once or after others have met the absence. Instances may be down together; nodes of nats are
/// not.
async fn kill_all(deployment: &mut Deployment, progress: &Progress, random: &mut Random) {
    let mut victims = KILLS.map(|(victim, kills)| vec![victim; kills]).concat();
    random.shuffle(&mut victims);
    let share = HOLDS / (victims.len() as u64 + 1);
    for (round, victim) in victims.into_iter().enumerate() {
        let at = share * (round as u64 + 1) + random.below(share / 2);
        eventually(PATIENCE, || async { progress.done() >= at }).await;
        let (done, failed) = (progress.done(), progress.failures());
        let killed = Instant::now();
        let (instance, node) = (place(random, INSTANCES), place(random, NODES));
        let mut what = Vec::new();
        if victim != Victim::Metering {
            // All three are up and level before another goes.
            deployment.nats.healthy((node + 1) % NODES).await;
            deployment.nats.healthy((node + 2) % NODES).await;
            deployment.nats.kill9(node);
            what.push(format!("nats-server {}", node + 1));
        }
        if victim != Victim::Nats {
            if deployment.metering[instance].runs() {
                deployment.metering[instance].kill9();
            }
            what.push(deployment.metering[instance].name().to_owned());
        }
        if random.below(3) > 0 {
            eventually(PATIENCE, || async {
                progress.done() >= HOLDS.min(done + DONE_WHILE_DOWN)
                    || progress.failures() >= failed + FAILURES_WHILE_DOWN
            })
            .await;
        }
        let down = killed.elapsed();
        if victim != Victim::Metering {
            deployment.nats.restart(node);
            deployment.nats.healthy(node).await;
        }
        // Now and then an instance stays down until the next one has been killed.
        let stays_down = victim == Victim::Metering && random.below(3) == 0;
        for daemon in deployment.metering.iter_mut().filter(|daemon| !stays_down && !daemon.runs()) {
            daemon.start();
        }
        say(&format!(
            "{} killed at {done} of {HOLDS}, {} after {:.2} s, round over after {:.2} s",
            what.join(" and "),
            if stays_down { "left down" } else { "started" },
            down.as_secs_f32(),
            killed.elapsed().as_secs_f32()
        ));
    }
}

/// Everything that has to be true once all is up again: of the log, of what each instance says, and of both together.
async fn check(deployment: &mut Deployment, answers: &[Answer], changes: &[Change]) {
    deployment.restore().await;
    let roots = deployment.access.metering("root", Role::Admin);
    deployment.logged().await;
    let log = Log::read(&deployment.access.ledger()).await;
    log.check_partitions();
    log.check_answers(answers, changes);
    let budgets = log.add_up();
    say(&format!(
        "{} decisions in {} blocks: {} holds granted, {} refused, {} open; {} times a partition was taken over, {} blocks fenced",
        log.decisions(),
        log.blocks,
        budgets.grants,
        budgets.denials,
        budgets.open(),
        log.takeovers(),
        log.fenced()
    ));
    let balances = budgets.balances();
    assert_eq!(balances.len(), 2 * TENANTS.len());
    for (scope, expected) in &balances {
        for client in &roots {
            let answered = budget(client, scope).await;
            let balances =
                answered.balances.into_iter().map(|balance| (balance.meter.clone(), balance)).collect();
            assert_eq!(expected, &balances, "{scope}");
        }
    }
    for of_caller in answers.chunk_by(|one, other| one.caller == other.caller) {
        load::ask_again(&deployment.access.metering(&of_caller[0].caller, Role::Agent), of_caller).await;
    }
    deployment.logged().await;
    let again = Log::read(&deployment.access.ledger()).await;
    assert_eq!(again.decisions(), log.decisions(), "asking again decides nothing");
    say(deployment.verify().trim());
}

/// The instance that owns a tenant's partition: the only one that answers a call which it may not hand on.
async fn owner(clients: &[Metering; INSTANCES], tenant: &str) -> usize {
    let found = OnceLock::new();
    eventually(PATIENCE, || async {
        for (instance, client) in clients.iter().enumerate() {
            let mut request = Request::new(v1::GetBudgetRequest { scope: tenant.to_owned() });
            request.metadata_mut().insert("x-exchequer-forwarded", MetadataValue::from_static("1"));
            if client.clone().get_budget(request).await.is_ok() {
                return found.set(instance).is_ok();
            }
        }
        false
    })
    .await;
    found.into_inner().unwrap()
}

fn place(random: &mut Random, count: usize) -> usize {
    usize::try_from(random.below(count as u64)).unwrap()
}

async fn budget(client: &Metering, scope: &str) -> v1::Budget {
    let response = answered(|| {
        let mut client = client.clone();
        let request = v1::GetBudgetRequest { scope: scope.to_owned() };
        async move { Ok(client.get_budget(request).await?.into_inner()) }
    })
    .await;
    response.budget.unwrap()
}

fn seed() -> u64 {
    let seed = std::env::var(SEED).ok().map(|seed| seed.parse().expect("a number"));
    let seed = seed.unwrap_or_else(|| {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    });
    say(&format!("{SEED}={seed}"));
    seed
}

/// What a failed run shows, and any run with `--nocapture`.
#[allow(clippy::print_stderr)]
fn say(text: &str) {
    eprintln!("{text}");
}
