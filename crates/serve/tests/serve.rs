//! What is in front of every service: authentication, and health that follows readiness.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, routing::get};
use exchequer_auth::{Grant, Issuer, Role, Verifier};
use exchequer_serve::{Living, Parts, Running, bind, config::Listen, serve};
use exchequer_telemetry::Readiness;
use exchequer_testkit::{eventually, temp_dir};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{service::Routes, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const SERVICE: &str = "exchequer.v1.TestService";

struct Switch(Arc<AtomicBool>);

/// A server with a private and a public route, and a service that works while the switch is on.
async fn start(verifier: Verifier) -> (Running, Living<Switch>, Arc<AtomicBool>) {
    let switch = Arc::new(AtomicBool::new(false));
    let living = Living::new(Switch(Arc::clone(&switch)));
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let bound = bind(Listen { grpc: any, http: any }).await.unwrap();
    let parts = Parts {
        grpc: Routes::default(),
        services: vec![SERVICE],
        http: Router::new().route("/private", get(async || "private")).route("/open/x", get(async || "open")),
        public_http: vec!["/open/".to_owned()],
        readiness: living.readiness(|service| {
            let state = if service.0.load(Ordering::Relaxed) { Ok(()) } else { Err("off") };
            Readiness::new().component("switch", state)
        }),
    };
    (serve(bound, verifier, parts).unwrap(), living, switch)
}

/// Status and body of a GET.
async fn get_http(at: SocketAddr, path: &str, token: Option<&str>) -> (u16, String) {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let mut connection = TcpStream::connect(at).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn only_what_is_named_public_is_served_without_a_token() {
    let dir = temp_dir();
    let issuer = Issuer::open(dir.path(), "issuer", "audience").unwrap();
    let ttl = Duration::from_secs(60);
    let token =
        issuer.mint(&Grant { subject: "a".into(), tenant: None, roles: vec![Role::Auditor], ttl }).unwrap();
    let (running, ..) = start(Verifier::open(issuer.verifier_options()).await.unwrap()).await;
    let at = running.http;
    for path in ["/open/x", "/metrics", "/healthz"] {
        assert_eq!(get_http(at, path, None).await.0, 200, "{path}");
    }
    assert_eq!(get_http(at, "/private", None).await.0, 401);
    assert_eq!(get_http(at, "/private", Some("nonsense")).await.0, 401);
    assert_eq!(get_http(at, "/private", Some(&token)).await, (200, "private".to_owned()));
    running.stop().await;
    assert!(TcpStream::connect(at).await.is_err());
}

#[tokio::test]
async fn health_over_grpc_and_http_follows_the_service_until_it_is_taken_away() {
    let dir = temp_dir();
    let issuer = Issuer::open(dir.path(), "issuer", "audience").unwrap();
    let (running, living, switch) = start(Verifier::open(issuer.verifier_options()).await.unwrap()).await;
    let channel = Endpoint::from_shared(format!("http://{}", running.grpc)).unwrap().connect().await.unwrap();
    let client = HealthClient::new(channel);
    let serving = async |expected: bool| {
        for service in [SERVICE, ""] {
            let asked = async || {
                let request = HealthCheckRequest { service: service.to_owned() };
                let answer = client.clone().check(request).await;
                answer.is_ok_and(|answer| (answer.into_inner().status == 1) == expected)
            };
            eventually(Duration::from_secs(10), asked).await;
        }
    };
    serving(false).await;
    let (status, body) = get_http(running.http, "/readyz", None).await;
    assert!(status == 503 && body.contains("off"), "{status} {body}");
    switch.store(true, Ordering::Relaxed);
    serving(true).await;
    assert_eq!(get_http(running.http, "/readyz", None).await.0, 200);
    assert!(living.take().is_some() && living.take().is_none());
    serving(false).await;
    assert!(get_http(running.http, "/readyz", None).await.1.contains("stopping"));
}
