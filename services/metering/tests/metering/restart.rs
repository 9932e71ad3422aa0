//! Restarts: with a snapshot, without one, with a damaged one, and over another stream.

use std::{fs, path::Path, sync::Arc, time::Duration};

use exchequer_event::v1;
use exchequer_metering::{Position, Service, StartError};
use exchequer_stream::LocalStream;
use exchequer_testkit::eventually;

use crate::world::{Agent, PATIENCE, World, denied, granted, reserve, set, snapshots_dir};

/// Some of everything, then a budget that is used up.
async fn history(world: &World) -> Position {
    let running = world.metering("m").await;
    let (mut admin, mut client) = (world.admin(&running), world.agent(&running));
    let mut agent = Agent::enrolled(world, "agent-1").await;
    admin.set_budget(set("acme", &[("cpu_ms", 1000)])).await.unwrap();
    admin.set_budget(set("zeta", &[("wall_ms", 10)])).await.unwrap();
    for n in 0..10 {
        let hold = granted(
            client.reserve(reserve("acme/x", &[("cpu_ms", 60)], &n.to_string())).await.unwrap().into_inner(),
        );
        if n % 2 == 0 {
            world.stream.append(agent.batch(&[(&hold.hold_id, Some(100))])).await.unwrap();
        }
    }
    running.caught_up(&world.stream).await;
    eventually(PATIENCE, || async {
        let request = v1::GetUsageRequest { scope: "acme".to_owned() };
        admin.clone().get_usage(request).await.unwrap().into_inner().settled_holds == 5
    })
    .await;
    denied(client.reserve(reserve("acme/x", &[("cpu_ms", 300)], "too much")).await.unwrap().into_inner());
    running.caught_up(&world.stream).await;
    let position = running.service.position();
    running.stop().await;
    position
}

/// Back at the same place, saying the same.
async fn check(world: &World, before: &Position) {
    let running = world.start(world.options("m"), Arc::clone(&world.stream)).await;
    crate::world::within(running.service.ready_here()).await;
    running.caught_up(&world.stream).await;
    assert_eq!(running.service.position(), *before);
    let mut client = world.agent(&running);
    let refused =
        denied(client.reserve(reserve("acme/x", &[("cpu_ms", 300)], "too much")).await.unwrap().into_inner());
    assert_eq!(
        (&*refused.binding_scope, &*refused.binding_meter, refused.available),
        ("acme", "cpu_ms", 200)
    );
    assert_eq!(running.service.position(), *before, "a repeated answer records nothing");
    running.stop().await;
}

fn overwrite(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            overwrite(&path);
        } else {
            let len = fs::metadata(&path).unwrap().len();
            fs::write(&path, vec![0xa5; usize::try_from(len.clamp(1, 1 << 20)).unwrap()]).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_changes_the_time_to_restart_and_nothing_else() {
    let world = World::local().await;
    let before = history(&world).await;
    let snapshots = snapshots_dir(&world.options("m"));

    check(&world, &before).await;
    fs::remove_dir_all(&snapshots).unwrap();
    check(&world, &before).await;
    overwrite(&snapshots);
    check(&world, &before).await;
    let aside = fs::read_dir(world.options("m").data).unwrap().flatten();
    assert_eq!(aside.filter(|entry| entry.file_name().to_string_lossy().contains("set-aside")).count(), 1);
    fs::remove_dir_all(&snapshots).unwrap();
    check(&world, &before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_passed_over_for_the_one_before() {
    let world = World::local().await;
    history(&world).await;
    let running = world.metering("m").await;
    world.admin(&running).set_budget(set("zeta", &[("wall_ms", 11)])).await.unwrap();
    running.caught_up(&world.stream).await;
    let before = running.service.position();
    running.stop().await;
    let snapshots = snapshots_dir(&world.options("m"));
    {
        let db = sled::open(&snapshots).unwrap();
        assert_eq!(db.len(), 2);
        let (key, value) = db.iter().next_back().unwrap().unwrap();
        let mut damaged = value.to_vec();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        db.insert(key, damaged).unwrap();
        db.flush().unwrap();
    }
    check(&world, &before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_another_stream_it_refuses_to_serve_and_says_why() {
    let world = World::local().await;
    history(&world).await;
    let other = World::local().await;
    let replaced = LocalStream::open(&other.dir.path().join("replaced")).unwrap();
    for n in 0..200 {
        let message = exchequer_stream::Message::new("events.x", format!("{n}"));
        exchequer_stream::EventStream::append(&replaced, message).await.unwrap();
    }
    for stream in [Arc::new(replaced) as Arc<dyn exchequer_stream::EventStream>, Arc::clone(&other.stream)] {
        let running = world.start(world.options("m"), stream).await;
        eventually(PATIENCE, || async {
            format!("{:?}", running.service.readiness()).contains("not the stream that was folded")
        })
        .await;
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_serves_one_process_and_only_until_it_stops() {
    let world = World::local().await;
    let mut options = world.options("m");
    options.snapshot_interval = Duration::from_secs(1);
    let running = world.metering_with(options.clone(), Arc::clone(&world.stream)).await;
    let second = Service::start(options.clone(), Arc::clone(&world.stream)).await;
    assert!(matches!(second, Err(StartError::InUse { .. })), "{second:?}");
    running.stop().await;
    world.metering_with(options, Arc::clone(&world.stream)).await.stop().await;
}
