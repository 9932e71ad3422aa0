//! Two instances of one partition: one answers, whatever the other believes.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use exchequer_auth::BearerToken;
use exchequer_event::v1;
use exchequer_stream::{
    Ack, AppendError, Durability, EventStream, Lease, LeaseError, LeaseOutcome, Message, ReadError, Record,
    RecordStream, ValueStream,
};
use exchequer_testkit::{NatsServer, eventually};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::world::{PATIENCE, World, client_with, granted, jetstream, reserve, set, within};

#[tokio::test(flavor = "multi_thread")]
async fn only_the_holder_of_the_lease_answers_and_another_hands_on_until_it_takes_over() {
    let server = NatsServer::start();
    let world = World::nats(&server).await;
    let first = world.metering("first").await;
    let mut admin = world.admin(&first);
    admin.set_budget(set("acme", &[("cpu_ms", 100)])).await.unwrap();

    let second = world.enrolled(world.options("second"), jetstream(&server.url()).await).await;
    within(second.service.ready()).await;
    assert_eq!((first.service.router().owned(), second.service.router().owned()), (vec![0], vec![]));
    let mut client = world.agent(&second);
    let request = reserve("acme", &[("cpu_ms", 60)], "k");
    let handed_on = client.reserve(request.clone()).await.unwrap().into_inner();
    let direct = world.agent(&first).reserve(request.clone()).await.unwrap().into_inner();
    assert_eq!(handed_on, direct);
    // The owner is told by whom: the agent's own token went along, and nobody else's.
    assert_eq!(granted(direct.clone()).holder, "agent-1");
    let stranger = BearerToken::fixed("not-a-token").unwrap();
    let mut nobody = client_with(second.address, stranger);
    assert_eq!(nobody.reserve(request.clone()).await.unwrap_err().code(), Code::Unauthenticated);
    // What was handed on once is not handed on again.
    let mut marked = tonic::Request::new(request.clone());
    marked.metadata_mut().insert(exchequer_metering::FORWARDED, "1".parse().unwrap());
    assert_eq!(client.reserve(marked).await.unwrap_err().code(), Code::Unavailable);

    first.stop().await;
    within(second.service.ready_here()).await;
    assert_eq!(client.reserve(request).await.unwrap().into_inner(), direct);
    crate::world::denied(client.reserve(reserve("acme", &[("cpu_ms", 60)], "l")).await.unwrap().into_inner());
    second.stop().await;
}

/// A stream with oddities.
#[derive(Debug)]
struct Odd {
    stream: Arc<dyn EventStream>,
    /// Appended to the names of leases: whoever uses it believes to own the partition.
    lease_suffix: &'static str,
    /// The tip is answered only once this is cancelled, and another message has come by then.
    late_tip: Option<CancellationToken>,
    /// While set, what is appended gets into the stream without anybody being told.
    withhold_acks: Arc<AtomicBool>,
}

impl Odd {
    fn new(stream: Arc<dyn EventStream>) -> Self {
        Self { stream, lease_suffix: "", late_tip: None, withhold_acks: Arc::default() }
    }
}

#[async_trait]
impl EventStream for Odd {
    async fn enqueue(&self, message: Message) -> Result<Ack, AppendError> {
        let ack = self.stream.enqueue(message).await?;
        if self.withhold_acks.load(Ordering::SeqCst) {
            ack.await?;
            return pending().await;
        }
        Ok(ack)
    }
    async fn read(&self, from: u64, filters: &[&str]) -> Result<RecordStream, ReadError> {
        self.stream.read(from, filters).await
    }
    async fn last(&self, subject: &str) -> Result<Option<Record>, ReadError> {
        self.stream.last(subject).await
    }
    async fn tip(&self) -> Result<u64, ReadError> {
        let tip = self.stream.tip().await?;
        if let Some(answer) = &self.late_tip {
            self.stream.append(Message::new("events.nobody", "no batch")).await.unwrap();
            answer.cancelled().await;
        }
        Ok(tip)
    }
    async fn put_latest(&self, key: &str, value: Bytes) -> Result<(), AppendError> {
        self.stream.put_latest(key, value).await
    }
    async fn latest(&self, key: &str) -> Result<Option<(Bytes, u64)>, ReadError> {
        self.stream.latest(key).await
    }
    async fn put_latest_if(&self, key: &str, value: Bytes, expected: u64) -> Result<u64, AppendError> {
        self.stream.put_latest_if(key, value, expected).await
    }
    async fn watch_latest(&self, key: &str) -> Result<ValueStream, ReadError> {
        self.stream.watch_latest(key).await
    }
    async fn acquire_lease(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<LeaseOutcome, LeaseError> {
        self.stream.acquire_lease(&format!("{name}{}", self.lease_suffix), holder, ttl).await
    }
    async fn renew_lease(&self, lease: &Lease) -> Result<Lease, LeaseError> {
        self.stream.renew_lease(lease).await
    }
    async fn release_lease(&self, lease: Lease) -> Result<(), LeaseError> {
        self.stream.release_lease(lease).await
    }
    async fn durability(&self) -> Durability {
        self.stream.durability().await
    }
}

/// Both decide at once, each believing to be the only one. `ahead` makes the second's lease the younger one.
async fn check_zombie(world: &World, second_stream: Arc<dyn EventStream>, ahead: u64) {
    const EACH: u64 = 60;
    const BUDGET: u64 = 50;
    for _ in 0..ahead {
        let taken = second_stream.acquire_lease("metering-0-zombie", "before", Duration::from_secs(10)).await;
        let Ok(LeaseOutcome::Held(lease)) = taken else { panic!("{taken:?}") };
        second_stream.release_lease(lease).await.unwrap();
    }
    let first = world.metering("first").await;
    let zombies = Arc::new(Odd { lease_suffix: "-zombie", ..Odd::new(second_stream) });
    let second = world.start(world.options("second"), zombies).await;
    world.enrol(v1::KeyRole::Metering, "metering", second.service.public_key().to_bytes()).await;
    world.admin(&first).set_budget(set("acme", &[("invocations", BUDGET)])).await.unwrap();

    let mut calls = Vec::new();
    for n in 0..EACH {
        for running in [&first, &second] {
            let mut client = world.agent(running);
            calls.push(tokio::spawn(async move {
                let key = format!("k{n}-{:p}", &raw const client);
                let request = reserve("acme", &[("invocations", 1)], &key);
                let response = client.reserve(request).await.ok()?.into_inner();
                match response.outcome? {
                    v1::reserve_response::Outcome::Granted(granted) => {
                        Some((granted.hold_id, response.stream_seq))
                    }
                    v1::reserve_response::Outcome::Denied(_) => None,
                }
            }));
        }
    }
    let mut answered = Vec::new();
    for call in calls {
        answered.extend(within(call).await.unwrap());
    }
    let journal = world.journal().await;
    let recorded: Vec<_> = journal
        .iter()
        .flat_map(|(seq, decision)| decision.events.iter().map(move |event| (*seq, event)))
        .filter_map(|(seq, event)| match &event.kind {
            Some(v1::budget_event::Kind::HoldGranted(granted)) => Some((granted.hold_id.clone(), seq)),
            _ => None,
        })
        .collect();
    assert!(recorded.len() as u64 <= BUDGET, "{} granted of {BUDGET}", recorded.len());
    assert!(!answered.is_empty());
    for answer in &answered {
        assert_eq!(recorded.iter().filter(|hold| *hold == answer).count(), 1, "{answer:?}");
    }
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_with_the_older_lease_never_overspends() {
    let server = NatsServer::start();
    let world = World::nats(&server).await;
    check_zombie(&world, jetstream(&server.url()).await, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_was_overtaken_never_overspends() {
    let server = NatsServer::start();
    let world = World::nats(&server).await;
    check_zombie(&world, jetstream(&server.url()).await, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_both_believe_to_own_an_embedded_partition_never_overspend() {
    let world = World::local().await;
    check_zombie(&world, Arc::clone(&world.stream), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_the_tip_is_asked_for_does_not_make_the_stream_another() {
    let world = World::local().await;
    let answer = CancellationToken::new();
    let odd = Odd { late_tip: Some(answer.clone()), ..Odd::new(Arc::clone(&world.stream)) };
    let metering = world.start(world.options("late"), Arc::new(odd)).await;
    world.enrol(v1::KeyRole::Metering, "metering", metering.service.public_key().to_bytes()).await;
    let before = world.stream.tip().await.unwrap();
    eventually(PATIENCE, || async { metering.service.position().cursor >= before }).await;
    answer.cancel();
    within(metering.service.ready_here()).await;
    metering.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_was_read_back_is_answered_although_its_ack_is_missing_and_another_owner_goes_on() {
    let world = World::local().await;
    for _ in 0..3 {
        let taken = world.stream.acquire_lease("metering-0-zombie", "before", Duration::from_secs(10)).await;
        let Ok(LeaseOutcome::Held(lease)) = taken else { panic!("{taken:?}") };
        world.stream.release_lease(lease).await.unwrap();
    }
    let silent = Odd::new(Arc::clone(&world.stream));
    let withhold_acks = Arc::clone(&silent.withhold_acks);
    let first = world.metering_with(world.options("first"), Arc::new(silent)).await;
    let younger = Odd { lease_suffix: "-zombie", ..Odd::new(Arc::clone(&world.stream)) };
    let second = world.metering_with(world.options("second"), Arc::new(younger)).await;
    world.admin(&first).set_budget(set("acme", &[("cpu_ms", 100)])).await.unwrap();
    let blocks = first.service.position().blocks;

    withhold_acks.store(true, Ordering::SeqCst);
    let mut client = world.agent(&first);
    let call = tokio::spawn(async move { client.reserve(reserve("acme", &[("cpu_ms", 60)], "k")).await });
    for running in [&first, &second] {
        eventually(PATIENCE, || async { running.service.position().blocks == blocks + 1 }).await;
    }
    let other = world.agent(&second).reserve(reserve("acme", &[("cpu_ms", 30)], "l")).await.unwrap();
    granted(other.into_inner());
    let answered = within(call).await.unwrap().unwrap().into_inner();
    let hold_id = granted(answered.clone()).hold_id;
    let journal = world.journal().await;
    let recorded = journal
        .iter()
        .filter(|(seq, decision)| *seq == answered.stream_seq && format!("{decision:?}").contains(&hold_id));
    assert_eq!(recorded.count(), 1);
    first.stop().await;
    second.stop().await;
}
