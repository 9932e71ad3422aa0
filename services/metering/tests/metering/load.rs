//! Many callers at once: their decisions share blocks, and the totals are exact.

use std::time::Instant;

use exchequer_auth::Role;
use exchequer_event::v1;
use exchequer_testkit::NatsServer;

use crate::world::{World, granted, reserve, set, within};

const CLIENTS: u64 = 64;
const EACH: u64 = 40;

// The rate is an indication for whoever reads the output; the assertions are about blocks and totals.
#[allow(clippy::print_stderr)]
async fn check(world: World, name: &str) {
    let running = world.metering("m").await;
    let mut admin = world.admin(&running);
    admin.set_budget(set("acme", &[("invocations", 1_000_000)])).await.unwrap();
    let before = running.service.position().blocks;
    let began = Instant::now();
    let mut tasks = Vec::new();
    for n in 0..CLIENTS {
        let mut client = world.client(running.address, "agent-1", None, &[Role::Agent]);
        tasks.push(tokio::spawn(async move {
            for k in 0..EACH {
                let request = reserve("acme/hot", &[("invocations", 2)], &format!("{n}-{k}"));
                granted(client.reserve(request).await.unwrap().into_inner());
            }
        }));
    }
    for task in tasks {
        within(task).await.unwrap();
    }
    let seconds = began.elapsed().as_secs_f64();
    let blocks = running.service.position().blocks - before;
    let request = v1::GetUsageRequest { scope: "acme".to_owned() };
    let usage = admin.get_usage(request).await.unwrap().into_inner();
    assert_eq!((usage.open_holds, usage.held[0].amount), (CLIENTS * EACH, 2 * CLIENTS * EACH));
    assert!(blocks < CLIENTS * EACH / 2, "{blocks} blocks for {} decisions", CLIENTS * EACH);
    #[allow(clippy::cast_precision_loss)]
    let rate = (CLIENTS * EACH) as f64 / seconds;
    eprintln!("{name}: {rate:.0} decisions/s in {blocks} blocks");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_calls_share_blocks_embedded() {
    check(World::local().await, "embedded").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_calls_share_blocks_over_nats() {
    let server = NatsServer::start();
    check(World::nats(&server).await, "nats, synced").await;
}
