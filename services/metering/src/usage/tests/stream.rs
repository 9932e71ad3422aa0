//! The projection over a real stream of signed blocks: deleted, killed, late, asked again, and asked in vain.

use std::{fs::File, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use exchequer_event::{
    accept::Acceptor,
    accept::Incoming,
    control::{sign_control, topic},
    digest::Digest,
    name::{budget_subject, control_subject},
    seal::{BlockPlace, block_digest, seal_block},
    v1::{self, KeyRole, control_record::Kind as ControlKind},
};
use exchequer_stream::{EventStream, LocalStream, Message, Record};
use exchequer_testkit::{SimAgent, eventually};
use futures::StreamExt as _;
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::{BASE, Used, expected, run};
use crate::usage::{
    UsageProjection, UsageReader,
    calendar::{Granularity, unix_ms},
    follow::Follower,
    projection::QUERIES,
    query::{Query, Step},
    query_usage,
    record::Dimension,
};

const PATIENCE: Duration = Duration::from_secs(30);

struct World {
    dir: tempfile::TempDir,
    origin: &'static str,
    stream: Arc<dyn EventStream>,
    ledger: SigningKey,
    metering: SigningKey,
    agent: SimAgent,
    blocks: u64,
    prev_hash: Digest,
    log_index: u64,
    history: Vec<(u64, Used)>,
}

impl World {
    async fn new() -> Self {
        Self::of_origin("exchequer.test/log").await
    }

    async fn of_origin(origin: &'static str) -> Self {
        let dir = exchequer_testkit::temp_dir();
        let stream = LocalStream::open(&dir.path().join("stream")).unwrap();
        let mut world = Self {
            dir,
            origin,
            stream: Arc::new(stream),
            ledger: SigningKey::from_bytes(&[7; 32]),
            metering: SigningKey::from_bytes(&[8; 32]),
            agent: SimAgent::new("bot"),
            blocks: 0,
            prev_hash: Digest::ZERO,
            log_index: 0,
            history: Vec::new(),
        };
        let ledger_key = world.ledger.verifying_key().to_bytes().to_vec().into();
        world.control(ControlKind::Genesis(v1::Genesis { origin: origin.to_owned(), ledger_key })).await;
        let keys = [
            (KeyRole::Metering, "metering", world.metering.verifying_key()),
            (KeyRole::Agent, "bot", world.agent.public_key()),
        ];
        for (role, holder, key) in keys {
            let public_key = key.to_bytes().to_vec().into();
            let enrolled = v1::KeyEnrolled { role: role.into(), holder: holder.to_owned(), public_key };
            world.control(ControlKind::KeyEnrolled(enrolled)).await;
        }
        world
    }

    async fn control(&mut self, kind: ControlKind) {
        let subject = control_subject(topic(&kind));
        let record = v1::ControlRecord { time_unix_ms: 1, actor: "ledger".to_owned(), kind: Some(kind) };
        let signed = sign_control(&self.ledger, &record).encode_to_vec();
        self.stream.append(Message::new(subject, signed)).await.unwrap();
        self.log_index += 1;
    }

    /// Appends a block of these runs, made in this minute.
    async fn block(&mut self, minute: u32, runs: &[Vec<Used>]) {
        let items: Vec<Bytes> = runs.iter().map(|records| run(records).encode_to_vec().into()).collect();
        self.blocks += 1;
        let place = BlockPlace {
            partition: "0".to_owned(),
            epoch: 1,
            index: self.blocks,
            prev_hash: self.prev_hash,
            now_unix_ms: unix_ms(minute),
            usage_cursor: 0,
        };
        let block = seal_block(&self.metering, place, items);
        self.prev_hash = block_digest(&block.seal);
        self.stream.append(Message::new(budget_subject("0"), block.encode_to_vec())).await.unwrap();
        self.log_index += 1;
        for records in runs {
            self.history.extend(records.iter().map(|used| (self.log_index, used.clone())));
            self.log_index += 1;
        }
    }

    /// Appends a batch of an agent's events, and a message that is refused: both are entries of the log.
    async fn others(&mut self, executions: usize) {
        let batch = self.agent.batch("acme", executions);
        self.stream.append(Message::new(self.agent.subject(), batch)).await.unwrap();
        let no_block = format!("no block of {}", self.origin);
        self.stream.append(Message::new(budget_subject("0"), no_block)).await.unwrap();
        self.log_index += 2 + 2 * executions as u64;
    }

    async fn work(&mut self, blocks: std::ops::Range<u32>) {
        for block in blocks {
            let used = |scope, n: u32| Used {
                scope,
                agent: if n.is_multiple_of(2) { "bot" } else { "" },
                skill: "sum",
                subject: if n.is_multiple_of(3) { "ann" } else { "bob" },
                minute: BASE + block % 7 * 13 + n * 700,
                amounts: vec![("tokens", u64::from(block + n)), ("cost_micros", 5)],
                correction: (n == 4).then_some(false),
            };
            let acme = (0..5).map(|n| used("acme/a/b", n)).collect();
            self.block(BASE + block, &[acme, vec![used("other", 1)]]).await;
            self.others(3).await;
        }
    }

    fn usage_dir(&self) -> PathBuf {
        self.dir.path().join("usage")
    }

    /// Directories that were set aside.
    fn set_aside(&self) -> usize {
        let names = std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("usage.set-aside-")).count()
    }

    async fn projection(&self) -> UsageProjection {
        let lock = File::create(self.dir.path().join("lock")).unwrap();
        UsageProjection::start(self.usage_dir(), Arc::clone(&self.stream), Arc::new(lock)).await.unwrap()
    }

    async fn caught_up(&self, reader: &UsageReader) {
        let query = query(Dimension::Scope, Step::Whole);
        eventually(PATIENCE, || async { reader.answer(query.clone(), Some(self.log_index)).await.is_ok() })
            .await;
    }

    /// Compares the answers with a look at all that was recorded.
    async fn check(&self, reader: &UsageReader) {
        for dimension in [Dimension::Scope, Dimension::Skill, Dimension::Agent] {
            for step in [Step::Whole, Step::Bucket(Granularity::Hour), Step::Bucket(Granularity::Month)] {
                for as_of in [self.log_index, self.log_index / 2, 3] {
                    let query = Query { as_of, ..query(dimension, step) };
                    let answered = reader.answer(query.clone(), Some(as_of)).await.unwrap();
                    assert_eq!(answered.page.rows, expected(&self.history, &query), "{query:?}");
                }
            }
        }
    }

    async fn records(&self) -> Vec<Record> {
        let tip = usize::try_from(self.stream.tip().await.unwrap()).unwrap();
        self.stream.read(1, &[]).await.unwrap().take(tip).map(Result::unwrap).collect().await
    }
}

fn query(dimension: Dimension, step: Step) -> Query {
    Query {
        tenant: "acme".to_owned(),
        dimension,
        name: None,
        meter: None,
        from: BASE - 5000,
        to: BASE + 50_000,
        step,
        as_of: 0,
        page_size: 10_000,
        after: None,
    }
}

fn request() -> v1::QueryUsageRequest {
    v1::QueryUsageRequest {
        tenant: "acme".to_owned(),
        from_unix_ms: unix_ms(BASE - 5000),
        to_unix_ms: unix_ms(BASE + 50_000),
        ..v1::QueryUsageRequest::default()
    }
}

#[tokio::test]
async fn a_directory_that_is_deleted_at_any_moment_is_rebuilt_to_the_same_answers() {
    let mut world = World::new().await;
    let mut usage = world.projection().await;
    for (round, deleted_at) in (0..).zip([2, 9, 17]) {
        world.work(round * 20..round * 20 + deleted_at).await;
        std::fs::remove_dir_all(world.usage_dir()).unwrap();
        world.work(round * 20 + deleted_at..round * 20 + 20).await;
        eventually(PATIENCE, || async { world.usage_dir().join("db").exists() }).await;
        world.caught_up(&usage.reader()).await;
        world.check(&usage.reader()).await;
        // And while nothing runs.
        if round == 1 {
            usage.stop().await;
            std::fs::remove_dir_all(world.usage_dir()).unwrap();
            usage = world.projection().await;
            world.caught_up(&usage.reader()).await;
            world.check(&usage.reader()).await;
        }
    }
}

#[tokio::test]
async fn what_was_read_and_not_flushed_is_read_again_after_a_crash() {
    let mut world = World::new().await;
    // More events of one agent than acceptance compares.
    world.others(200).await;
    world.work(0..20).await;
    for _ in 0..5 {
        world.others(100).await;
    }
    world.work(20..40).await;
    let records = world.records().await;
    let mut fresh = Acceptor::new();
    for record in &records {
        let message =
            Incoming { stream_seq: record.seq, subject: &record.subject, payload: record.payload.clone() };
        fresh.decide(&message).entries.iter().for_each(|entry| fresh.evolve(entry));
    }
    let mut cursors = Vec::new();
    for (flushed, lost) in [(0, 5), (4, 9), (30, 1), (50, 20), (1, 0), (usize::MAX, 0)] {
        let mut follower = Follower::open(&world.usage_dir()).unwrap();
        cursors.push(follower.cursor());
        let at = usize::try_from(follower.cursor()).unwrap();
        assert!(at == 0 || follower.is_at(&records[at - 1], None), "it goes on where it was");
        let mut rest = records[at..].iter();
        rest.by_ref().take(flushed).for_each(|record| follower.take(record));
        follower.flush().unwrap();
        rest.take(lost).for_each(|record| follower.take(record));
    }
    assert_eq!(cursors, [0, 0, 4, 34, 84, 85]);
    let follower = Follower::open(&world.usage_dir()).unwrap();
    assert_eq!(follower.log_index(), world.log_index);
    assert!(*follower.acceptor() == fresh);
    drop(follower);
    assert_eq!(world.set_aside(), 0);
    let usage = world.projection().await;
    world.caught_up(&usage.reader()).await;
    world.check(&usage.reader()).await;
    usage.stop().await;
}

#[tokio::test]
async fn a_directory_that_can_not_be_read_is_set_aside_and_rebuilt() {
    let mut world = World::new().await;
    world.work(0..5).await;
    std::fs::create_dir(world.usage_dir()).unwrap();
    std::fs::write(world.usage_dir().join("conf"), "no configuration").unwrap();
    let usage = world.projection().await;
    world.caught_up(&usage.reader()).await;
    world.check(&usage.reader()).await;
    usage.stop().await;
    assert_eq!(world.set_aside(), 1);
}

#[tokio::test]
async fn late_usage_lands_in_its_own_time_and_shows_from_its_index_on() {
    let mut world = World::new().await;
    let used = |minute| Used {
        scope: "acme/a",
        agent: "bot",
        skill: "",
        subject: "",
        minute,
        amounts: vec![("tokens", 10)],
        correction: None,
    };
    world.block(BASE, &[vec![used(BASE)]]).await;
    let before = world.log_index;
    let month = 31 * 1440;
    world.block(BASE + month, &[vec![used(BASE + month)], vec![used(BASE - 1)]]).await;
    let usage = world.projection().await;
    world.caught_up(&usage.reader()).await;
    let of = async |as_of_index| {
        let request = v1::QueryUsageRequest { step_minutes: 1, as_of_index, ..request() };
        let rows = query_usage(&usage.reader(), request, 0).await.unwrap().rows;
        rows.into_iter().map(|row| (row.from_unix_ms, row.sum)).collect::<Vec<_>>()
    };
    let (late, first, last) = (unix_ms(BASE - 1), unix_ms(BASE), unix_ms(BASE + month));
    assert_eq!(of(before).await, [(first, 10)]);
    assert_eq!(of(before + 2).await, [(first, 10), (last, 10)]);
    assert_eq!(of(0).await, [(late, 10), (first, 10), (last, 10)]);
    usage.stop().await;
}

#[tokio::test]
async fn an_answer_as_of_an_index_and_the_pages_of_a_query_do_not_change_when_the_log_grows() {
    let mut world = World::new().await;
    world.work(0..6).await;
    let usage = world.projection().await;
    let reader = usage.reader();
    world.caught_up(&reader).await;
    let as_of_index = world.log_index;
    let all = v1::QueryUsageRequest { step_minutes: 60, as_of_index, ..request() };
    let then = query_usage(&reader, all.clone(), 0).await.unwrap();
    assert!(then.rows.len() > 10 && then.next_page_token.is_empty());
    assert_eq!(then.log_index, as_of_index);

    let first = v1::QueryUsageRequest { as_of_index: 0, page_size: 3, ..all.clone() };
    let mut page = query_usage(&reader, first.clone(), 0).await.unwrap();
    let mut rows = page.rows;
    let mut more = 6..;
    while !page.next_page_token.is_empty() {
        let block = more.next().unwrap();
        world.work(block..block + 1).await;
        world.caught_up(&reader).await;
        let next = v1::QueryUsageRequest { page_token: page.next_page_token, ..first.clone() };
        page = query_usage(&reader, next, 0).await.unwrap();
        assert_eq!(page.log_index, as_of_index, "later pages are of the first one's index");
        rows.extend(page.rows);
    }
    assert_eq!(rows, then.rows);
    assert_eq!(query_usage(&reader, all.clone(), 0).await.unwrap().rows, then.rows);
    let now = v1::QueryUsageRequest { as_of_index: 0, ..all };
    assert_ne!(query_usage(&reader, now, 0).await.unwrap().rows, then.rows);
    usage.stop().await;
}

#[tokio::test]
async fn what_the_log_has_not_reached_is_no_answer() {
    let mut world = World::new().await;
    world.work(0..3).await;
    let usage = world.projection().await;
    world.caught_up(&usage.reader()).await;
    eventually(PATIENCE, || async { usage.lag() == 0 }).await;
    let as_of_index = world.log_index + 5;
    let request = v1::QueryUsageRequest { as_of_index, ..request() };
    let refused = query_usage(&usage.reader(), request, 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("5 entries before as_of_index"), "{refused}");
    usage.stop().await;
}

#[tokio::test]
async fn few_queries_are_reckoned_at_once_and_the_others_are_told_to_come_again() {
    let world = World::new().await;
    let usage = world.projection().await;
    let reader = usage.reader();
    world.caught_up(&reader).await;
    let turns = reader.turns.acquire_many(u32::try_from(QUERIES).unwrap()).await.unwrap();
    let refused = query_usage(&reader, request(), 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.get_details_retry_info().is_some());
    drop(turns);
    query_usage(&reader, request(), 0).await.unwrap();
    usage.stop().await;
}

#[tokio::test]
async fn another_stream_is_not_answered_from_and_the_same_one_is() {
    let mut world = World::new().await;
    world.work(0..3).await;
    let usage = world.projection().await;
    world.caught_up(&usage.reader()).await;
    usage.stop().await;

    let mut other = World::of_origin("exchequer.test/other").await;
    other.work(0..6).await;
    let stream = std::mem::replace(&mut world.stream, Arc::clone(&other.stream));
    let usage = world.projection().await;
    let answer =
        async || query_usage(&usage.reader(), request(), 0).await.map_err(|status| status.to_string());
    eventually(PATIENCE, || async { answer().await.is_err_and(|error| error.contains("not the stream")) })
        .await;
    let as_of_known = v1::QueryUsageRequest { as_of_index: 1, ..request() };
    let refused = query_usage(&usage.reader(), as_of_known, 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    usage.stop().await;

    world.stream = stream;
    let usage = world.projection().await;
    world.caught_up(&usage.reader()).await;
    world.check(&usage.reader()).await;
    usage.stop().await;
}

#[tokio::test]
async fn every_fault_of_a_query_is_reported_with_its_field() {
    let world = World::new().await;
    let usage = world.projection().await;
    world.caught_up(&usage.reader()).await;
    let refused = async |request| -> Status { query_usage(&usage.reader(), request, 0).await.unwrap_err() };
    let all_wrong = v1::QueryUsageRequest {
        tenant: "a/b".to_owned(),
        dimension: 9,
        name: "acme//x".to_owned(),
        meter: "No Meter".to_owned(),
        from_unix_ms: 120_000,
        to_unix_ms: 60_000,
        step_minutes: 7,
        page_token: "00".to_owned(),
        ..v1::QueryUsageRequest::default()
    };
    let faults = refused(all_wrong).await;
    assert_eq!(faults.code(), Code::InvalidArgument);
    let details = faults.get_details_bad_request().unwrap();
    let mut fields: Vec<_> = details.field_violations.iter().map(|violation| &*violation.field).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["dimension", "meter", "name", "page_token", "step_minutes", "tenant", "to_unix_ms"]);

    let check = async |request: v1::QueryUsageRequest, code: Code, field: &str| {
        let refused = refused(request).await;
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(field), "{refused}");
    };
    let (ok, invalid) = (request(), Code::InvalidArgument);
    let foreign = v1::QueryUsageRequest { name: "other/a".to_owned(), ..ok.clone() };
    check(foreign, invalid, "name is not a scope of the tenant").await;
    let both = v1::QueryUsageRequest { step_minutes: 60, by_month: true, ..ok.clone() };
    check(both, invalid, "step_minutes").await;
    check(v1::QueryUsageRequest { to_unix_ms: 0, ..ok.clone() }, invalid, "to_unix_ms").await;
    check(v1::QueryUsageRequest { page_size: 10_001, ..ok }, Code::OutOfRange, "page_size").await;
    usage.stop().await;
}
