//! Executions settle their holds by their recorded events, exactly once.

use exchequer_auth::Role;
use exchequer_event::v1::{self, HoldState, budget_event::Kind};
use exchequer_testkit::{NatsServer, eventually};

use crate::world::{Agent, Client, PATIENCE, Running, World, granted, reserve, set};

async fn hold(client: &mut Client, scope: &str, cpu_ms: u64, key: &str) -> String {
    let request = reserve(scope, &[("cpu_ms", cpu_ms), ("invocations", 1)], key);
    granted(client.reserve(request).await.unwrap().into_inner()).hold_id
}

async fn spent(admin: &Client, scope: &str) -> (u64, u64, u64) {
    let request = v1::GetUsageRequest { scope: scope.to_owned() };
    let usage = admin.clone().get_usage(request).await.unwrap().into_inner();
    let cpu = usage.spent.iter().find(|amount| amount.meter == "cpu_ms").map_or(0, |amount| amount.amount);
    (cpu, usage.settled_holds, usage.usage_cursor)
}

async fn settled(world: &World, running: &Running, admin: &Client) -> (u64, u64, u64) {
    let tip = world.stream.tip().await.unwrap();
    eventually(PATIENCE, || async { spent(admin, "acme").await.2 >= tip }).await;
    running.caught_up(&world.stream).await;
    spent(admin, "acme").await
}

fn settlements(journal: &[(u64, v1::Decision)], hold_id: &str) -> usize {
    let is_settlement = |event: &v1::BudgetEvent| matches!(&event.kind, Some(Kind::HoldSettled(settled)) if settled.hold_id == hold_id);
    journal.iter().flat_map(|(_, decision)| &decision.events).filter(|event| is_settlement(event)).count()
}

async fn check(world: World) {
    let running = world.metering("m").await;
    let (mut admin, mut client) = (world.admin(&running), world.agent(&running));
    admin.set_budget(set("acme", &[("cpu_ms", 1000), ("invocations", 100)])).await.unwrap();
    let mut agent = Agent::enrolled(&world, "agent-1").await;
    let mut rival = Agent::enrolled(&world, "agent-2").await;

    // Above the hold, within it, lost, and of no hold at all.
    let holds = [
        hold(&mut client, "acme/a", 50, "1").await,
        hold(&mut client, "acme/a", 50, "2").await,
        hold(&mut client, "acme/b", 50, "3").await,
        hold(&mut client, "acme/b", 50, "4").await,
    ];
    // Another agent's word about a hold is no settlement, and does not keep the true one out.
    let foreign = rival.batch(&[(&holds[0], Some(999))]);
    world.stream.append(foreign).await.unwrap();
    let first = agent.batch(&[(&holds[0], Some(60)), (&holds[1], Some(5)), ("no-such-hold", Some(7))]);
    world.stream.append(first.clone()).await.unwrap();
    assert_eq!(settled(&world, &running, &admin).await.0, 65);

    // The same batch again, and the same hold again in another event.
    world.stream.append(first.clone()).await.unwrap();
    let second = agent.batch(&[(&holds[0], Some(60)), (&holds[2], None), (&holds[2], Some(1))]);
    world.stream.append(second).await.unwrap();
    world.stream.append(first).await.unwrap();
    assert_eq!(settled(&world, &running, &admin).await.0, 115);

    // A batch that skips one is not accepted, so it settles nothing; what was skipped and it again, then, do.
    let skipped = agent.batch(&[("no-such-hold", Some(1))]);
    let early = agent.batch(&[(&holds[3], Some(10))]);
    world.stream.append(early.clone()).await.unwrap();
    assert_eq!(settled(&world, &running, &admin).await.0, 115);
    world.stream.append(skipped).await.unwrap();
    world.stream.append(early).await.unwrap();
    let (cpu, count, _) = settled(&world, &running, &admin).await;
    assert_eq!((cpu, count), (125, 4));

    let journal = world.journal().await;
    for hold_id in &holds {
        assert_eq!(settlements(&journal, hold_id), 1);
    }
    let actor = journal.iter().map(|(_, decision)| decision).find(|decision| decision.actor == "agent-1");
    assert!(actor.is_some());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_executions_settle_their_holds_once_embedded() {
    check(World::local().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_executions_settle_their_holds_once_over_nats() {
    let server = NatsServer::start();
    check(World::nats(&server).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_that_came_while_metering_was_away_is_settled_on_its_return_once() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let (mut admin, mut client) = (world.admin(&running), world.agent(&running));
    admin.set_budget(set("acme", &[("cpu_ms", 100_000), ("invocations", 1000)])).await.unwrap();
    let mut agent = Agent::enrolled(&world, "agent-1").await;
    let mut holds = Vec::new();
    for n in 0..100 {
        holds.push(hold(&mut client, "acme", 50, &n.to_string()).await);
    }
    running.stop().await;
    for chunk in holds.chunks(30) {
        let finished: Vec<_> = chunk.iter().map(|hold| (hold.as_str(), Some(7))).collect();
        world.stream.append(agent.batch(&finished)).await.unwrap();
    }
    // Once from the snapshot, then from nothing.
    for away in [false, true] {
        if away {
            std::fs::remove_dir_all(crate::world::snapshots_dir(&world.options("m"))).unwrap();
        }
        let running = world.metering("m").await;
        let admin = world.admin(&running);
        let (cpu, count, _) = settled(&world, &running, &admin).await;
        assert_eq!((cpu, count), (700, 100));
        running.stop().await;
    }
    let journal = world.journal().await;
    assert!(holds.iter().all(|hold_id| settlements(&journal, hold_id) == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_that_ends_after_its_hold_is_settled_late() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let mut admin = world.admin(&running);
    admin.set_budget(set("acme", &[("cpu_ms", 100)])).await.unwrap();
    let mut agent = Agent::enrolled(&world, "agent-1").await;
    let client = world.client(running.address, "agent-1", None, &[Role::Agent]);
    let brief = v1::ReserveRequest { ttl_ms: 1000, ..reserve("acme", &[("cpu_ms", 50)], "k") };
    let hold_id = granted(client.clone().reserve(brief).await.unwrap().into_inner()).hold_id;
    let state = async || {
        let request = v1::GetHoldRequest { hold_id: hold_id.clone() };
        client.clone().get_hold(request).await.unwrap().into_inner().state()
    };
    eventually(PATIENCE, || async { state().await == HoldState::Expired }).await;
    world.stream.append(agent.batch(&[(&hold_id, Some(120))])).await.unwrap();
    eventually(PATIENCE, || async { state().await == HoldState::Settled }).await;
    assert_eq!(spent(&admin, "acme").await.0, 120);

    // What was spent beyond the budget is debt, and debt refuses.
    let refused = client.clone().reserve(reserve("acme", &[("cpu_ms", 1)], "l")).await.unwrap().into_inner();
    assert_eq!(crate::world::denied(refused).reason(), v1::DenialReason::InDebt);
    running.stop().await;
}
