//! kill -9, of metering and of the nats-server under it, in the middle of concurrent reservations.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use exchequer_event::v1;
use exchequer_metering::Options;
use exchequer_testkit::{NatsServer, eventually};
use tokio::task::JoinHandle;

use crate::world::{Client, PATIENCE, World, jetstream, reserve, serve, set, within};

const CHILD: &str = "EXCHEQUER_TEST_METERING_CHILD";
const BUDGET: u64 = 3000;
const CALLERS: u64 = 32;

/// Metering in a process of its own: this test binary, run again.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
}

impl Process {
    async fn start(world: &World, url: &str) -> Self {
        Self::with_partitions(world, url, 1).await
    }

    pub async fn with_partitions(world: &World, url: &str, partitions: u16) -> Self {
        let announced = world.dir.path().join("address");
        let _ = fs::remove_file(&announced);
        let settings = format!("{url}\n{partitions}\n{}", world.dir.path().display());
        let child = Command::new(env::current_exe().unwrap())
            .args(["crash::what_was_answered_outlives_kill_9_of_metering", "--exact"])
            .env(CHILD, settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        eventually(PATIENCE, || async { announced.exists() }).await;
        let address = fs::read_to_string(&announced).unwrap().parse().unwrap();
        Self { child, address }
    }

    pub fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The key of the process.
pub fn process_key(world: &World) -> [u8; 32] {
    let key = hex::decode(fs::read_to_string(world.dir.path().join("key")).unwrap()).unwrap();
    key.try_into().unwrap()
}

/// The child: serves until it is killed.
async fn be_metering(settings: &str) {
    let [url, partitions, dir] = settings.split('\n').collect::<Vec<_>>().try_into().unwrap();
    let dir = PathBuf::from(dir);
    let mut options = Options::new(dir.join("m"));
    options.partitions = partitions.parse().unwrap();
    options.lease_ttl = std::time::Duration::from_secs(1);
    options.snapshot_interval = std::time::Duration::from_secs(1);
    options.webhook_allow = vec!["127.0.0.1".parse().unwrap()];
    let running = serve(options, jetstream(url).await, &dir).await;
    let key = dir.join("key");
    publish(&key, &hex::encode(running.service.public_key().as_bytes()));
    publish(&dir.join("address"), &running.address.to_string());
    std::future::pending::<()>().await;
}

fn publish(path: &Path, text: &str) {
    let staged = path.with_extension("new");
    fs::write(&staged, text).unwrap();
    fs::rename(staged, path).unwrap();
}

/// Callers that reserve one invocation after the other until told to stop; an answer that does not come is asked for again
/// with the same key. What they were answered.
fn callers(
    world: &World,
    address: SocketAddr,
    run: u64,
    stop: &Arc<AtomicBool>,
) -> Vec<JoinHandle<Vec<(String, String, u64)>>> {
    (0..CALLERS)
        .map(|caller| {
            let mut client: Client = world.client(address, "agent-1", None, &[exchequer_auth::Role::Agent]);
            let stop = Arc::clone(stop);
            tokio::spawn(async move {
                let mut answered = Vec::new();
                for n in 0_u64.. {
                    let key = format!("{run}-{caller}-{n}");
                    let request = reserve("acme", &[("invocations", 1)], &key);
                    let response = loop {
                        match client.reserve(request.clone()).await {
                            Ok(response) => break Some(response.into_inner()),
                            Err(_) if stop.load(Ordering::Relaxed) => break None,
                            Err(_) => tokio::task::yield_now().await,
                        }
                    };
                    match response.map(|response| (response.outcome, response.stream_seq)) {
                        Some((Some(v1::reserve_response::Outcome::Granted(granted)), seq)) => {
                            answered.push((key, granted.hold_id, seq));
                        }
                        Some((Some(v1::reserve_response::Outcome::Denied(_)), _)) => {}
                        _ => return answered,
                    }
                    if stop.load(Ordering::Relaxed) {
                        return answered;
                    }
                }
                answered
            })
        })
        .collect()
}

async fn answers(callers: Vec<JoinHandle<Vec<(String, String, u64)>>>) -> Vec<(String, String, u64)> {
    let mut all = Vec::new();
    for caller in callers {
        all.extend(within(caller).await.unwrap());
    }
    all
}

/// Each answer is in the journal exactly once, at its place; no key was decided twice; no more was granted than there is.
async fn check(world: &World, answered: &[(String, String, u64)]) {
    let journal = world.journal().await;
    let mut grants = std::collections::BTreeMap::new();
    let mut keys = std::collections::BTreeSet::new();
    for (seq, decision) in &journal {
        if !decision.idempotency_key.is_empty() {
            assert!(keys.insert(&decision.idempotency_key), "{} was decided twice", decision.idempotency_key);
        }
        for event in &decision.events {
            if let Some(v1::budget_event::Kind::HoldGranted(granted)) = &event.kind {
                let before = grants.insert(granted.hold_id.clone(), (decision.idempotency_key.clone(), *seq));
                assert_eq!(before, None, "a hold was granted twice");
            }
        }
    }
    assert!(grants.len() as u64 <= BUDGET, "{} granted of {BUDGET}", grants.len());
    for (key, hold_id, seq) in answered {
        assert_eq!(grants.get(hold_id), Some(&(key.clone(), *seq)));
    }
}

async fn some_blocks(world: &World, more: usize) {
    let before = world.journal().await.len();
    eventually(PATIENCE, || async { world.journal().await.len() >= before + more }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_outlives_kill_9_of_metering() {
    if let Ok(settings) = env::var(CHILD) {
        return be_metering(&settings).await;
    }
    let server = NatsServer::start();
    let world = World::nats(&server).await;
    let mut answered = Vec::new();
    for run in 0..4 {
        let mut process = Process::start(&world, &server.url()).await;
        if run == 0 {
            world.enrol(v1::KeyRole::Metering, "metering", process_key(&world)).await;
        }
        let admin = world.client(process.address, "root", None, &[exchequer_auth::Role::Admin]);
        eventually(PATIENCE, || async {
            admin.clone().set_budget(set("acme", &[("invocations", BUDGET)])).await.is_ok()
        })
        .await;
        let stop = Arc::new(AtomicBool::new(false));
        let callers = callers(&world, process.address, run, &stop);
        some_blocks(&world, 150).await;
        process.kill9();
        stop.store(true, Ordering::Relaxed);
        answered.extend(answers(callers).await);
        check(&world, &answered).await;
    }
    assert!(answered.len() > 100, "{} answers", answered.len());

    // And one that is in the journal is answered again, the same, after everything.
    let process = Process::start(&world, &server.url()).await;
    let client = world.client(process.address, "agent-1", None, &[exchequer_auth::Role::Agent]);
    let (key, hold_id, seq) = answered.first().cloned().unwrap();
    let request = reserve("acme", &[("invocations", 1)], &key);
    eventually(PATIENCE, || async { client.clone().reserve(request.clone()).await.is_ok() }).await;
    let again = client.clone().reserve(request).await.unwrap().into_inner();
    assert_eq!(again.stream_seq, seq);
    assert_eq!(crate::world::granted(again).hold_id, hold_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_outlives_kill_9_of_the_stream() {
    let mut server = NatsServer::start();
    let world = World::nats(&server).await;
    let running = world.metering_with(world.options("m"), jetstream(&server.url()).await).await;
    world.admin(&running).set_budget(set("acme", &[("invocations", BUDGET)])).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let callers = callers(&world, running.address, 0, &stop);
    for _ in 0..3 {
        some_blocks(&world, 100).await;
        server.kill9();
        // Without the stream, nothing is answered, and that is said in bounded time.
        let refused = world.agent(&running).reserve(reserve("acme", &[("invocations", 1)], "away")).await;
        assert!(refused.is_err(), "{refused:?}");
        server.restart();
        within(running.service.ready_here()).await;
    }
    some_blocks(&world, 100).await;
    stop.store(true, Ordering::Relaxed);
    let answered = answers(callers).await;
    check(&world, &answered).await;
    assert!(answered.len() > 100, "{} answers", answered.len());
    running.stop().await;
}
