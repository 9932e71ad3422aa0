//! Usage reported as CloudEvents over HTTP.

use std::net::SocketAddr;

use exchequer_auth::{BearerToken, Role};
use exchequer_event::v1;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::world::{Running, World, amounts, set};

const EVENT: &str = "application/cloudevents+json";
pub const BATCH: &str = "application/cloudevents-batch+json";

pub struct Answer {
    status: u16,
    head: String,
    body: Value,
}

pub struct Sender<'w> {
    http: SocketAddr,
    token: Option<&'w BearerToken>,
}

impl Sender<'_> {
    pub async fn post(&self, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = format!(
            "POST /v1/usage/events HTTP/1.1\r\nhost: metering\r\nconnection: close\r\ncontent-length: {}\r\n",
            body.len()
        );
        if let Some(token) = self.token {
            request.extend(["authorization: ", token.header().to_str().unwrap(), "\r\n"]);
        }
        for (name, value) in headers {
            request.extend([*name, ": ", *value, "\r\n"]);
        }
        request += "\r\n";
        let mut connection = TcpStream::connect(self.http).await.unwrap();
        // A server that refuses early may not read all of it.
        let _ = connection.write_all(&[request.as_bytes(), body].concat()).await;
        let mut answer = Vec::new();
        let _ = connection.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_ascii_lowercase(),
            body: serde_json::from_str(body).unwrap_or(Value::Null),
        }
    }

    pub async fn send(&self, content_type: &str, body: Value) -> Answer {
        self.post(&[("content-type", content_type)], body.to_string().as_bytes()).await
    }
}

pub fn sender<'w>(running: &Running, token: &'w BearerToken) -> Sender<'w> {
    Sender { http: running.http, token: Some(token) }
}

pub fn event(id: &str, data: Value) -> Value {
    json!({ "specversion": "1.0", "id": id, "source": "/gateway/1", "type": "com.example.usage", "data": data })
}

pub fn used(scope: &str, meter: &str, amount: impl Into<Value>) -> Value {
    json!({ "scope": scope, "used": { meter: amount.into() } })
}

pub fn outcomes(answer: &Answer) -> Vec<(&str, &str)> {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let results = answer.body["results"].as_array().unwrap();
    results
        .iter()
        .map(|result| (result["outcome"].as_str().unwrap(), result["field"].as_str().unwrap_or_default()))
        .collect()
}

async fn spent(world: &World, running: &Running, scope: &str) -> Vec<v1::MeterAmount> {
    let request = v1::GetUsageRequest { scope: scope.to_owned() };
    world.admin(running).get_usage(request).await.unwrap().into_inner().spent
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_counts_once_in_whatever_mode_it_comes() {
    let world = World::local().await;
    let running = world.metering("m").await;
    world.admin(&running).set_budget(set("acme", &[("input_tokens", 1000)])).await.unwrap();
    let token = world.token("c", Some("acme"), &[Role::TenantAdmin]);
    let sender = sender(&running, &token);

    let first = event("e-1", used("acme/chat", "input_tokens", 7));
    let answer = sender.send(EVENT, first.clone()).await;
    assert_eq!(outcomes(&answer), [("recorded", "")]);
    let recorded_at = answer.body["results"][0]["stream_seq"].as_u64().unwrap();
    assert!(recorded_at > 0);
    let again = sender.send("Application/CloudEvents+JSON; charset=UTF-8", first.clone()).await;
    assert_eq!(outcomes(&again), [("duplicate", "")]);
    assert_eq!(again.body["results"][0]["stream_seq"], recorded_at);

    // In binary mode it is the same event; its attributes are headers, and may be quoted and percent-encoded.
    let data = used("acme/chat", "input_tokens", 7).to_string();
    let headers = |id| {
        [
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-id", id),
            ("ce-source", "/gateway%2F1"),
            ("ce-type", "\"com.example.usage\""),
        ]
    };
    assert_eq!(outcomes(&sender.post(&headers("e-1"), data.as_bytes()).await), [("duplicate", "")]);
    assert_eq!(outcomes(&sender.post(&headers("e-2"), data.as_bytes()).await), [("recorded", "")]);

    // A batch may hold what came before, and the same event twice.
    let batch = json!([
        first,
        event("e-3", used("acme", "input_tokens", 1)),
        event("e-3", used("acme", "input_tokens", 1)),
        event("e-3", used("acme", "input_tokens", 2)),
    ]);
    let want = [("duplicate", ""), ("recorded", ""), ("duplicate", ""), ("conflict", "")];
    assert_eq!(outcomes(&sender.send(BATCH, batch).await), want);
    assert_eq!(outcomes(&sender.send(BATCH, json!([])).await), []);

    // Another source's event of the same id is another; so is the pair that is the same text when joined.
    let mut other = event("e-1", used("acme", "input_tokens", 1));
    other["source"] = json!("/gateway/");
    other["id"] = json!("1e-1");
    assert_eq!(outcomes(&sender.send(EVENT, other).await), [("recorded", "")]);
    assert_eq!(spent(&world, &running, "acme").await, amounts(&[("input_tokens", 16)]));

    // For good, and after a restart.
    running.stop().await;
    let running = world.metering("m").await;
    let sender = self::sender(&running, &token);
    let changed = event("e-1", used("acme/chat", "input_tokens", 8));
    let conflict = sender.send(EVENT, changed).await;
    assert_eq!((conflict.status, &conflict.body["status"]), (409, &json!(409)));
    let same = sender.send(EVENT, event("e-1", used("acme/chat", "input_tokens", 7))).await;
    assert_eq!(outcomes(&same), [("duplicate", "")]);
    assert_eq!(spent(&world, &running, "acme").await, amounts(&[("input_tokens", 16)]));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_an_event_is_told_by_its_path_and_changes_nothing() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let token = world.token("agent-1", None, &[Role::Agent]);
    let sender = sender(&running, &token);
    let good = used("acme", "cpu_ms", 1);
    let with = |field: &str, value: Value| {
        let mut event = event("e", good.clone());
        event[field] = value;
        event
    };
    let without = |field: &str| {
        let mut event = event("e", good.clone());
        event.as_object_mut().unwrap().remove(field);
        event
    };
    let data = |field: &str, value: Value| {
        let mut event = event("e", good.clone());
        event["data"][field] = value;
        event
    };
    let deep = "a/b/c/d/e/f/g";
    let huge: Value = serde_json::from_str("1e30").unwrap();
    let cases = [
        (json!("e"), ""),
        (without("id"), "id"),
        (with("id", json!("")), "id"),
        (with("id", json!(7)), "id"),
        (with("id", json!("x".repeat(1025))), "id"),
        (without("source"), "source"),
        (without("type"), "type"),
        (without("specversion"), "specversion"),
        (with("specversion", json!("0.3")), "specversion"),
        (with("time", json!("yesterday")), "time"),
        (with("time", json!("1969-12-31T23:59:59Z")), "time"),
        (with("datacontenttype", json!("text/xml")), "datacontenttype"),
        (with("data_base64", json!("e30=")), "data_base64"),
        (with("subject", json!("x".repeat(257))), "subject"),
        (without("data"), "data"),
        (with("data", json!([])), "data"),
        (data("scope", Value::Null), "data.scope"),
        (data("scope", json!(7)), "data.scope"),
        (data("scope", json!("acme//x")), "data.scope"),
        (data("scope", json!(deep)), "data.scope"),
        (data("used", json!(7)), "data.used"),
        (data("used", json!({})), "data.used"),
        (data("used", json!({ "cpu_ms": -1 })), "data.used.cpu_ms"),
        (data("used", json!({ "cpu_ms": 1.5 })), "data.used.cpu_ms"),
        (data("used", json!({ "wall_ms": 1, "cpu_ms": huge })), "data.used.cpu_ms"),
        (data("used", json!({ "cpu_ms": "1" })), "data.used.cpu_ms"),
        (data("used", json!({ "cpu_ms": u64::MAX })), "data.used.cpu_ms"),
        (data("used", json!({ "wall_ms": 1, "Cpu": 1 })), "data.used.Cpu"),
        (data("used", json!({ "wall_ms": 1, "gpu_ms": 1 })), "data.used.gpu_ms"),
        (data("agent", json!("Agent 2")), "data.agent"),
        (data("skill", json!("a b")), "data.skill"),
        (data("price", json!(1)), "data.price"),
    ];
    let blocks = running.service.position().blocks;
    for (event, field) in &cases {
        let answer = sender.send(EVENT, event.clone()).await;
        assert_eq!(answer.status, 400, "{event}: {}", answer.body);
        assert!(answer.head.contains("content-type: application/problem+json"), "{}", answer.head);
        assert_eq!(answer.body["field"].as_str().unwrap_or_default(), *field, "{event}: {}", answer.body);
    }
    let batch: Vec<_> = cases.iter().map(|case| case.0.clone()).collect();
    let answer = sender.send(BATCH, json!(batch)).await;
    let want: Vec<_> = cases.iter().map(|case| ("refused", case.1)).collect();
    assert_eq!(outcomes(&answer), want);

    let twice = br#"{"specversion":"1.0","id":"e","source":"s","type":"t","data":{"scope":"acme","used":{"cpu_ms":1,"cpu_ms":2}}}"#;
    let answer = sender.post(&[("content-type", EVENT)], twice).await;
    assert_eq!((answer.status, &answer.body["field"]), (400, &json!("data.used.cpu_ms")));
    for body in [&b"{"[..], b"", b"\xff", b"[1e999]"] {
        assert_eq!(sender.post(&[("content-type", BATCH)], body).await.status, 400);
    }
    assert_eq!(sender.send(BATCH, json!({})).await.status, 400);
    let nested = "[".repeat(100_000);
    assert_eq!(sender.post(&[("content-type", BATCH)], nested.as_bytes()).await.status, 400);
    let after = world.journal().await.into_iter().filter(|(_, decision)| {
        decision
            .events
            .iter()
            .any(|event| matches!(event.kind, Some(v1::budget_event::Kind::UsageReported(_))))
    });
    assert_eq!(after.count(), 0);
    assert!(running.service.position().blocks >= blocks);
    assert_eq!(spent(&world, &running, "acme").await, []);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_report_and_what_is_no_event_is_refused_by_status() {
    let world = World::local().await;
    let running = world.metering("m").await;
    let good = event("e", used("acme", "cpu_ms", 1));
    let status = async |token: Option<&BearerToken>, content_type: &str, body: Value| {
        Sender { http: running.http, token }.send(content_type, body).await.status
    };
    let chief = world.token("c", Some("acme"), &[Role::TenantAdmin]);
    let user = world.token("u", Some("acme"), &[Role::User]);
    let auditor = world.token("a", None, &[Role::Auditor]);
    let forged = BearerToken::fixed("eyJhbGciOiJub25lIn0.e30.").unwrap();
    assert_eq!(status(None, EVENT, good.clone()).await, 401);
    assert_eq!(status(Some(&forged), EVENT, good.clone()).await, 401);
    assert_eq!(status(Some(&user), EVENT, good.clone()).await, 403);
    assert_eq!(status(Some(&auditor), BATCH, json!([good])).await, 403);
    let foreign = event("e", used("zeta", "cpu_ms", 1));
    assert_eq!(status(Some(&chief), EVENT, foreign.clone()).await, 403);
    // An agent can't say that another used it.
    let agent = world.token("agent-1", None, &[Role::Agent]);
    let mut other = good.clone();
    other["data"]["agent"] = json!("agent-2");
    let answer = self::sender(&running, &agent).send(EVENT, other).await;
    assert_eq!((answer.status, &answer.body["field"]), (403, &json!("data.agent")));
    let sender = sender(&running, &chief);
    let answer = sender.send(BATCH, json!([foreign, good])).await;
    assert_eq!(outcomes(&answer), [("refused", ""), ("recorded", "")]);

    for content_type in
        ["application/json", "text/plain", "application/cloudevents+avro", "application/cloudevents"]
    {
        assert_eq!(status(Some(&chief), content_type, good.clone()).await, 415, "{content_type}");
    }
    assert_eq!(status(Some(&chief), "application/cloudevents+json; charset=latin1", good.clone()).await, 415);
    let binary = [("content-type", "text/xml"), ("ce-specversion", "1.0")];
    assert_eq!(sender.post(&binary, b"<x/>").await.status, 415);
    assert_eq!(status(Some(&chief), BATCH, json!(vec![good.clone(); 1025])).await, 413);
    let mut large = good.clone();
    large["comment"] = json!("x".repeat(1 << 20));
    assert_eq!(status(Some(&chief), EVENT, large).await, 413);
    running.stop().await;

    // Nobody decides: the same request is good later.
    let idle = world.start(world.options("idle"), world.stream.clone()).await;
    let answer = self::sender(&idle, &chief).send(EVENT, good).await;
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("retry-after: 1"), "{}", answer.head);
    idle.stop().await;
}
