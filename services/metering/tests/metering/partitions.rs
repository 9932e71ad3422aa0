//! Several partitions and several instances: who owns what, and what becomes of a call wherever it arrives.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use exchequer_auth::Role;
use exchequer_budget::TenantId;
use exchequer_event::v1;
use exchequer_metering::{Options, Service, StartError, partition};
use exchequer_stream::{EventStream, LeaseOutcome, Message};
use exchequer_testkit::{NatsServer, eventually};

use crate::{
    crash::{Process, process_key},
    world::{PATIENCE, Running, World, denied, granted, reserve, set, within},
};

pub const PARTITIONS: u16 = 4;

pub fn options(world: &World, name: &str) -> Options {
    let mut options = world.options(name);
    options.partitions = PARTITIONS;
    options.lease_ttl = Duration::from_secs(3);
    options
}

/// A tenant of each partition.
pub fn tenants() -> Vec<String> {
    let tenant_of = |wanted| {
        let names = (0..).map(|n| format!("tenant-{n}"));
        names
            .into_iter()
            .find(|name| partition::of_tenant(&TenantId::parse(name).unwrap(), PARTITIONS) == wanted)
    };
    (0..PARTITIONS).map(|partition| tenant_of(partition).unwrap()).collect()
}

pub fn owners(running: &Running) -> BTreeSet<String> {
    let router = running.service.router();
    (0..PARTITIONS).filter_map(|partition| router.owner(partition).ok()).collect()
}

/// All leases are somebody else's for a moment, so that whoever waits by then begins at the same time.
pub async fn hold_back(stream: &Arc<dyn EventStream>) {
    for partition in 0..PARTITIONS {
        let name = format!("metering-{partition}");
        let taken = stream.acquire_lease(&name, "before", Duration::from_secs(3)).await;
        assert!(matches!(taken, Ok(LeaseOutcome::Held(_))), "{taken:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_share_the_partitions_and_each_answers_for_all_until_one_dies() {
    let server = NatsServer::start();
    let world = World::nats(&server).await;
    hold_back(&world.stream).await;
    let here = world.enrolled(options(&world, "here"), Arc::clone(&world.stream)).await;
    let mut process = Process::with_partitions(&world, &server.url(), PARTITIONS).await;
    world.enrol(v1::KeyRole::Metering, "metering", process_key(&world)).await;
    eventually(PATIENCE, || async {
        let owners = owners(&here);
        owners.len() == 2
            && owners.iter().all(|owner| owner.contains('@'))
            && here.service.readiness().is_ready()
    })
    .await;
    let before = here.service.router().owned();
    assert!((1..PARTITIONS).contains(&u16::try_from(before.len()).unwrap()), "{before:?}");

    let clients = |role: Role, subject: &str| {
        [here.address, process.address].map(|address| world.client(address, subject, None, &[role]))
    };
    let mut holds = Vec::new();
    for (n, tenant) in tenants().iter().enumerate() {
        let (mut admins, mut agents) = (clients(Role::Admin, "root"), clients(Role::Agent, "agent-1"));
        eventually(PATIENCE, || async {
            let asked = set(tenant, &[("cpu_ms", 100)]);
            admins[n % 2].clone().set_budget(asked).await.is_ok()
        })
        .await;
        admins[1 - n % 2].set_budget(set(tenant, &[("cpu_ms", 100)])).await.unwrap();
        let request = reserve(tenant, &[("cpu_ms", 60)], "k");
        let [first, second] = &mut agents;
        let answers = [
            first.reserve(request.clone()).await.unwrap().into_inner(),
            second.reserve(request.clone()).await.unwrap().into_inner(),
        ];
        assert_eq!(answers[0], answers[1], "a key has one answer, wherever it is asked");
        let hold = granted(answers[0].clone());
        assert!(hold.hold_id.starts_with(&format!("{n}_")), "{}", hold.hold_id);
        denied(second.reserve(reserve(tenant, &[("cpu_ms", 41)], "l")).await.unwrap().into_inner());
        holds.push((request, answers[0].clone()));
    }

    process.kill9();
    within(here.service.ready_here()).await;
    let mut agent = world.agent(&here);
    for (request, answer) in holds {
        assert_eq!(agent.reserve(request.clone()).await.unwrap().into_inner(), answer);
        granted(agent.reserve(reserve(&request.scope, &[("cpu_ms", 40)], "m")).await.unwrap().into_inner());
        denied(agent.reserve(reserve(&request.scope, &[("cpu_ms", 1)], "n")).await.unwrap().into_inner());
    }
    here.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_chains_of_their_own_and_a_restart_finds_each_where_it_was() {
    let world = World::local().await;
    let running = world.metering_with(options(&world, "m"), Arc::clone(&world.stream)).await;
    let (mut admin, mut agent) = (world.admin(&running), world.agent(&running));
    for tenant in tenants() {
        admin.set_budget(set(&tenant, &[("cpu_ms", 100)])).await.unwrap();
        granted(agent.reserve(reserve(&tenant, &[("cpu_ms", 100)], "k")).await.unwrap().into_inner());
    }
    let positions = |running: &Running| {
        (0..PARTITIONS).map(|partition| running.service.position_of(partition)).collect::<Vec<_>>()
    };
    for tenant in tenants() {
        denied(agent.reserve(reserve(&tenant, &[("cpu_ms", 1)], "l")).await.unwrap().into_inner());
    }
    running.caught_up(&world.stream).await;
    let before = positions(&running);
    assert!(before.iter().all(|position| position.blocks >= 2), "{before:?}");
    running.stop().await;

    for is_deleted in [false, true] {
        if is_deleted {
            std::fs::remove_dir_all(crate::world::snapshots_dir(&world.options("m"))).unwrap();
        }
        let running = world.start(options(&world, "m"), Arc::clone(&world.stream)).await;
        within(running.service.ready_here()).await;
        let mut agent = world.agent(&running);
        for tenant in tenants() {
            denied(agent.reserve(reserve(&tenant, &[("cpu_ms", 1)], "l")).await.unwrap().into_inner());
        }
        assert_eq!(positions(&running), before, "a repeated answer records nothing");
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_number_of_partitions_than_the_streams_is_refused() {
    let world = World::local().await;
    let running = world.metering_with(options(&world, "m"), Arc::clone(&world.stream)).await;
    running.stop().await;
    for partitions in [1, 3, 64] {
        let another = Options { partitions, ..options(&world, "another") };
        let refused = Service::start(another, Arc::clone(&world.stream)).await;
        let Err(StartError::Partitions { configured, agreed }) = refused else { panic!("{refused:?}") };
        assert_eq!((configured, &*agreed), (partitions, "4"));
    }
    world.metering_with(options(&world, "m"), Arc::clone(&world.stream)).await.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_blocks_from_before_there_were_partitions_has_one() {
    let world = World::local().await;
    world.stream.append(Message::new("budget.0", "a block of old")).await.unwrap();
    let refused = Service::start(options(&world, "m"), Arc::clone(&world.stream)).await;
    assert!(matches!(refused, Err(StartError::Partitions { configured: PARTITIONS, .. })), "{refused:?}");
    world.metering("m").await.stop().await;
}
