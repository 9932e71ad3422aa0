//! Notifications of thresholds at a real receiver: signed, in order, until taken or given up, across owners.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, VerifyingKey};
use exchequer_auth::Role;
use exchequer_event::v1::{self, budget_event, control_record, threshold::At};
use exchequer_metering::Options;
use exchequer_testkit::{NatsServer, eventually};
use futures::StreamExt as _;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    crash::{Process, process_key},
    world::{Client, PATIENCE, Running, World, amounts, set, within},
};

/// A request that arrived.
#[derive(Clone, Debug)]
struct Seen {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    fn id(&self) -> &str {
        self.header("webhook-id")
    }

    fn data(&self) -> Value {
        let body: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(body["type"], "budget.threshold_reached");
        body["data"].clone()
    }

    /// As docs/protocol.md says that receivers do it.
    fn is_signed_by(&self, key: &VerifyingKey) -> bool {
        let signed = [self.id(), self.header("webhook-timestamp")].join(".") + ".";
        let signed = [signed.as_bytes(), &self.body].concat();
        let signature = self.header("webhook-signature").strip_prefix("v1a,").unwrap();
        let signature = Signature::from_slice(&STANDARD.decode(signature).unwrap()).unwrap();
        key.verify_strict(&signed, &signature).is_ok()
    }
}

/// What the receiver does.
enum Answer {
    Status(u16),
    /// To the same receiver.
    Redirect(&'static str),
    /// 200, and a body that does not end.
    Endless,
    /// None at all.
    Never,
}

/// Decides by the request and how many of its id and path came before.
type Script = fn(&Seen, usize) -> Answer;

/// An HTTP server that gets notifications.
struct Receiver {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    server: JoinHandle<()>,
}

impl Receiver {
    async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let routes = Router::new().fallback(receive).with_state((Arc::clone(&seen), script));
        let server = tokio::spawn(async { axum::serve(listener, routes).await.unwrap() });
        Self { address, seen, server }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn ids(&self) -> Vec<String> {
        self.seen().iter().map(|seen| seen.id().to_owned()).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn receive(
    State((seen, script)): State<(Arc<Mutex<Vec<Seen>>>, Script)>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request = Seen { path: uri.path().to_owned(), headers, body };
    let before = {
        let mut seen = seen.lock().unwrap();
        let before = seen.iter().filter(|one| one.id() == request.id() && one.path == request.path).count();
        seen.push(request.clone());
        before
    };
    match script(&request, before) {
        Answer::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Answer::Redirect(to) => (StatusCode::FOUND, [("location", to)]).into_response(),
        Answer::Endless => {
            let bytes =
                futures::stream::repeat(Ok::<_, std::convert::Infallible>(Bytes::from_static(&[7; 4096])));
            Body::from_stream(bytes).into_response()
        }
        Answer::Never => std::future::pending().await,
    }
}

/// Options with which the receiver may be asked, and failures are repeated at once.
fn options(world: &World, name: &str) -> Options {
    let mut options = world.options(name);
    options.webhook_allow = vec!["127.0.0.1".parse().unwrap()];
    options.webhook_retries = vec![Duration::from_millis(1); 3];
    options
}

async fn metering(world: &World) -> Running {
    world.metering_with(options(world, "m"), Arc::clone(&world.stream)).await
}

fn webhook(tenant: &str, url: &str) -> v1::SetWebhookRequest {
    let webhook = v1::WebhookSet { tenant: tenant.to_owned(), url: url.to_owned() };
    v1::SetWebhookRequest { webhook: Some(webhook), idempotency_key: String::new() }
}

/// A tenant with 100 of `cpu_ms` that is told at each of these percents.
async fn tenant(admin: &mut Client, name: &str, url: &str, percents: &[u32]) {
    admin.set_webhook(webhook(name, url)).await.unwrap();
    let point = |&percent: &u32| v1::Threshold { at: Some(At::SpentPercent(percent)) };
    let thresholds = percents.iter().map(point).collect();
    let budget = v1::SetBudgetRequest { thresholds, ..set(name, &[("cpu_ms", 100)]) };
    admin.set_budget(budget).await.unwrap();
}

/// Uses some `cpu_ms`; the block that says so.
async fn spend(client: &mut Client, scope: &str, cpu_ms: u64, key: &str) -> u64 {
    let report = v1::ReportUsageRequest {
        scope: scope.to_owned(),
        used: amounts(&[("cpu_ms", cpu_ms)]),
        idempotency_key: key.to_owned(),
        ..v1::ReportUsageRequest::default()
    };
    client.report_usage(report).await.unwrap().into_inner().stream_seq
}

/// The ends that are recorded, in order: number, whether delivered, attempts, detail.
async fn ends(world: &World) -> Vec<(u64, bool, u32, String)> {
    let journal = world.journal().await;
    let events = journal.into_iter().flat_map(|(_, decision)| decision.events);
    let ended = events.filter_map(|event| match event.kind {
        Some(budget_event::Kind::NotificationEnded(ended)) => Some(ended),
        _ => None,
    });
    ended.map(|ended| (ended.notification, ended.delivered, ended.attempts, ended.detail)).collect()
}

async fn until_ended(world: &World, count: usize) -> Vec<(u64, bool, u32, String)> {
    eventually(PATIENCE, || async { ends(world).await.len() >= count }).await;
    ends(world).await
}

/// The metering keys that the log enrols.
async fn enrolled_keys(world: &World) -> Vec<VerifyingKey> {
    let tip = world.stream.tip().await.unwrap();
    let mut records = world.stream.read(1, &[]).await.unwrap();
    let mut keys = Vec::new();
    loop {
        let record = within(records.next()).await.unwrap().unwrap();
        if record.subject.starts_with("control.") {
            let signed = v1::SignedControl::decode(record.payload.clone()).unwrap();
            let control = v1::ControlRecord::decode(signed.record).unwrap();
            if let Some(control_record::Kind::KeyEnrolled(enrolled)) = control.kind
                && enrolled.role() == v1::KeyRole::Metering
            {
                keys.push(VerifyingKey::from_bytes(&enrolled.public_key[..].try_into().unwrap()).unwrap());
            }
        }
        if record.seq >= tip {
            return keys;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_reached_is_told_once_in_order_and_signed_by_the_enrolled_key() {
    let world = World::local().await;
    let running = metering(&world).await;
    let receiver = Receiver::start(|_, _| Answer::Status(204)).await;
    let (mut admin, mut agent) = (world.admin(&running), world.agent(&running));
    tenant(&mut admin, "acme", &receiver.url("/hooks?team=1"), &[50, 80, 100]).await;
    let block = spend(&mut agent, "acme/chat", 85, "a").await;
    let delivered = |number| (number, true, 1, "answered 204".to_owned());
    assert_eq!(until_ended(&world, 2).await, [delivered(1), delivered(2)]);
    spend(&mut agent, "acme/chat", 15, "b").await;
    assert_eq!(until_ended(&world, 3).await, [delivered(1), delivered(2), delivered(3)]);
    assert_eq!(receiver.ids(), ["budget_0_1", "budget_0_2", "budget_0_3"]);

    let seen = receiver.seen();
    let mut data = seen[0].data();
    assert!(data["time_unix_ms"].take().as_u64().unwrap() > 1_700_000_000_000);
    let want = json!({
        "partition": 0, "notification": 1, "tenant": "acme", "scope": "acme", "window": "lifetime", "meter": "cpu_ms",
        "threshold": {"spent_percent": 50}, "spent": 85, "granted": 100, "stream_seq": block, "time_unix_ms": null,
    });
    assert_eq!(data, want);
    let [key] = enrolled_keys(&world).await.try_into().unwrap();
    for one in &seen {
        assert!(one.is_signed_by(&key));
        assert_eq!((&*one.path, one.header("content-type")), ("/hooks", "application/json"));
    }
    let changed = Seen { body: Bytes::from_static(b"{}"), ..seen[0].clone() };
    assert!(!changed.is_signed_by(&key));

    let mut chief = world.client(running.address, "c", Some("acme"), &[Role::TenantAdmin]);
    let settings = chief.get_settings(v1::GetSettingsRequest::default()).await.unwrap().into_inner();
    assert_eq!(settings.notifications_waiting, 0);
    let metrics = exchequer_telemetry::metrics_text();
    for line in [
        "exchequer_metering_notifications_total{outcome=\"delivered\"",
        "exchequer_metering_notifications_waiting",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_told_again_under_the_same_id() {
    let world = World::local().await;
    let running = metering(&world).await;
    let script: Script = |_, before| Answer::Status([500, 429, 200][before]);
    let receiver = Receiver::start(script).await;
    tenant(&mut world.admin(&running), "acme", &receiver.url("/"), &[50]).await;
    spend(&mut world.agent(&running), "acme", 50, "a").await;
    assert_eq!(until_ended(&world, 1).await, [(1, true, 3, "answered 200".to_owned())]);
    assert_eq!(receiver.ids(), ["budget_0_1"; 3]);
    assert!(exchequer_telemetry::metrics_text().contains("exchequer_metering_webhook_failures_total"));
    let bodies: Vec<_> = receiver.seen().into_iter().map(|seen| seen.body).collect();
    assert!(bodies.iter().all(|body| *body == bodies[0]));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_to_the_last_is_given_up_and_the_next_goes_on() {
    let world = World::local().await;
    let running = metering(&world).await;
    let script: Script = |seen, _| match seen.id() {
        "budget_0_1" => Answer::Status(500),
        "budget_0_2" => Answer::Redirect("/elsewhere"),
        _ => Answer::Endless,
    };
    let receiver = Receiver::start(script).await;
    tenant(&mut world.admin(&running), "acme", &receiver.url("/"), &[50, 80, 90]).await;
    spend(&mut world.agent(&running), "acme", 90, "a").await;
    let redirected = "answered 302; redirects are not followed".to_owned();
    assert_eq!(
        until_ended(&world, 3).await,
        [
            (1, false, 4, "answered 500".to_owned()),
            (2, false, 4, redirected),
            (3, true, 1, "answered 200".to_owned()),
        ]
    );
    assert_eq!(
        receiver.ids(),
        [["budget_0_1"; 4], ["budget_0_2"; 4]].concat().into_iter().chain(["budget_0_3"]).collect::<Vec<_>>()
    );
    assert!(receiver.seen().iter().all(|seen| seen.path == "/"));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_does_not_answer_holds_up_no_other_tenant() {
    let world = World::local().await;
    let running = metering(&world).await;
    let slow = Receiver::start(|_, _| Answer::Never).await;
    let quick = Receiver::start(|_, _| Answer::Status(200)).await;
    let (mut admin, mut agent) = (world.admin(&running), world.agent(&running));
    tenant(&mut admin, "acme", &slow.url("/"), &[50, 80]).await;
    tenant(&mut admin, "zeta", &quick.url("/"), &[50, 80]).await;
    spend(&mut agent, "acme", 80, "a").await;
    eventually(PATIENCE, || async { !slow.seen().is_empty() }).await;
    spend(&mut agent, "zeta", 80, "a").await;
    let ended: Vec<_> = until_ended(&world, 2).await.into_iter().map(|(number, ..)| number).collect();
    assert_eq!(ended, [3, 4]);
    assert!(slow.ids().iter().all(|id| id == "budget_0_1"), "the second one waits for the first");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_address_is_asked_only_if_it_is_allowed() {
    for (allow, host, want) in [
        (None, "127.0.0.1", false),
        (None, "localhost", false),
        (None, "2130706433", false),
        (None, "[::ffff:127.0.0.1]", false),
        (Some("127.0.0.1:1"), "127.0.0.1", false),
        (Some("other.internal"), "localhost", false),
        (Some("localhost"), "localhost", true),
    ] {
        let world = World::local().await;
        let mut options = options(&world, "m");
        options.webhook_allow = allow.iter().map(|allow| allow.parse().unwrap()).collect();
        options.webhook_retries = Vec::new();
        let running = world.metering_with(options, Arc::clone(&world.stream)).await;
        let receiver = Receiver::start(|_, _| Answer::Status(200)).await;
        let url = format!("http://{host}:{}/", receiver.address.port());
        tenant(&mut world.admin(&running), "acme", &url, &[50]).await;
        spend(&mut world.agent(&running), "acme", 50, "a").await;
        let [(1, delivered, 1, detail)] = &until_ended(&world, 1).await[..] else { panic!("one attempt") };
        assert_eq!(
            (*delivered, receiver.seen().len()),
            (want, usize::from(want)),
            "{allow:?} {host} {detail}"
        );
        if !want {
            assert!(detail.contains("refused: loopback"), "{detail}");
        }
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn https_is_not_asked_in_plain_and_what_is_no_server_is_a_failure() {
    let world = World::local().await;
    let mut options = options(&world, "m");
    options.webhook_retries = Vec::new();
    let running = world.metering_with(options, Arc::clone(&world.stream)).await;
    let receiver = Receiver::start(|_, _| Answer::Status(200)).await;
    let secure = format!("https://{}/", receiver.address);
    tenant(&mut world.admin(&running), "acme", &secure, &[50]).await;
    spend(&mut world.agent(&running), "acme", 50, "a").await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    tenant(&mut world.admin(&running), "zeta", &format!("http://{nobody}/"), &[50]).await;
    spend(&mut world.agent(&running), "zeta", 50, "a").await;
    for (number, delivered, attempts, detail) in until_ended(&world, 2).await {
        assert_eq!((delivered, attempts), (false, 1), "{number} {detail}");
    }
    assert_eq!(receiver.ids(), [""; 0]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_over_a_restart_is_told_then_and_where_nothing_is_to_be_told_it_is_given_up() {
    let world = World::local().await;
    let mut patient = options(&world, "m");
    patient.webhook_retries = vec![Duration::from_secs(3600)];
    let running = world.metering_with(patient.clone(), Arc::clone(&world.stream)).await;
    let receiver = Receiver::start(|_, before| Answer::Status([503, 200][before.min(1)])).await;
    let (mut admin, mut agent) = (world.admin(&running), world.agent(&running));
    tenant(&mut admin, "acme", &receiver.url("/"), &[50, 80]).await;
    tenant(&mut admin, "zeta", &receiver.url("/"), &[50, 80]).await;
    spend(&mut agent, "acme", 80, "a").await;
    spend(&mut agent, "zeta", 80, "a").await;
    eventually(PATIENCE, || async { receiver.seen().len() == 2 }).await;
    admin.set_webhook(webhook("zeta", "")).await.unwrap();
    running.caught_up(&world.stream).await;
    running.stop().await;
    assert_eq!(ends(&world).await, []);

    let running = world.start(patient, Arc::clone(&world.stream)).await;
    within(running.service.ready_here()).await;
    // The second of acme's is refused at first, and then waits for an hour.
    let mut ended = until_ended(&world, 3).await;
    ended.sort_unstable();
    let nowhere = |number| (number, false, 0, "the tenant has no webhook any more".to_owned());
    assert_eq!(ended, [(1, true, 1, "answered 200".to_owned()), nowhere(3), nowhere(4)]);
    eventually(PATIENCE, || async { receiver.seen().len() == 4 }).await;
    let again = receiver.seen();
    assert_eq!((again[2].id(), again[3].id()), ("budget_0_1", "budget_0_2"));
    assert_eq!(again[2].data()["stream_seq"], Value::Null, "the block was not read again");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_and_not_recorded_is_told_again_by_the_next_owner_under_the_same_id() {
    let server = NatsServer::start();
    let world = World::nats(&server).await;
    let mut process = Process::with_partitions(&world, &server.url(), 1).await;
    world.enrol(v1::KeyRole::Metering, "metering", process_key(&world)).await;
    // The first delivery arrives, and its answer never does: whoever waits for it dies before it could record anything.
    let receiver =
        Receiver::start(|_, before| if before == 0 { Answer::Never } else { Answer::Status(200) }).await;
    let mut admin = world.client(process.address, "root", None, &[Role::Admin]);
    eventually(PATIENCE, || async {
        admin.clone().set_webhook(webhook("acme", &receiver.url("/"))).await.is_ok()
    })
    .await;
    tenant(&mut admin, "acme", &receiver.url("/"), &[50]).await;
    let mut agent = world.client(process.address, "agent-1", None, &[Role::Agent]);
    let block = spend(&mut agent, "acme", 50, "a").await;
    eventually(PATIENCE, || async { receiver.seen().len() == 1 }).await;
    process.kill9();
    assert_eq!(ends(&world).await, []);

    let here = world.metering_with(options(&world, "here"), Arc::clone(&world.stream)).await;
    assert_eq!(until_ended(&world, 1).await, [(1, true, 1, "answered 200".to_owned())]);
    let seen = receiver.seen();
    assert_eq!(receiver.ids(), ["budget_0_1"; 2]);
    assert_eq!(seen[0].data()["stream_seq"], block);
    assert_eq!(seen[0].body, seen[1].body, "the same, by whichever instance");
    let [first, second] = enrolled_keys(&world).await.try_into().unwrap();
    assert!(seen[0].is_signed_by(&first) && seen[1].is_signed_by(&second));
    here.stop().await;
}
