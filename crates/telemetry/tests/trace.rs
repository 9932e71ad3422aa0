//! One trace across a client, a server and a stream message; one observation a request.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};

use axum::body::{Body as AxumBody, Bytes};
use exchequer_telemetry::{
    Guard, LogFormat, Options, TraceLayer, continue_from, current_trace_id, extract, init, inject,
    metrics_text,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame};
use opentelemetry::trace::TraceContextExt as _;
use tower::{Layer as _, Service, ServiceExt as _, service_fn};
use tracing::{Instrument as _, info_span};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn set_up() {
    // Spans lose their ids when the guard goes, so it stays for all tests of the process.
    static GUARD: OnceLock<Guard> = OnceLock::new();
    let options = Options {
        service_name: "test".to_owned(),
        log_format: LogFormat::Text,
        log_filter: "off".to_owned(),
        otlp_endpoint: None,
    };
    GUARD.get_or_init(|| init(&options).unwrap());
}

/// A body that yields these frames, then ends.
#[derive(Debug, Default)]
struct Frames(VecDeque<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

fn data() -> Frame<Bytes> {
    Frame::data(Bytes::from_static(b"x"))
}

fn trailers(status: &'static str) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().unwrap());
    Frame::trailers(trailers)
}

fn grpc(path: &str) -> Request<()> {
    Request::builder().method("POST").uri(path).header("content-type", "application/grpc").body(()).unwrap()
}

async fn drain<B: Body<Error: std::fmt::Debug>>(body: B) -> usize {
    let mut body = Box::pin(body);
    let mut frames = 0;
    while let Some(frame) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await {
        frame.unwrap();
        frames += 1;
    }
    frames
}

/// How many requests were observed with these labels.
fn observed(side: &str, method: &str, code: &str) -> u64 {
    let prefix =
        format!("exchequer_rpc_{side}_duration_seconds_count{{code=\"{code}\",method=\"{method}\"}} ");
    let text = metrics_text();
    text.lines().find_map(|line| line.strip_prefix(&prefix)).map_or(0, |count| count.parse().unwrap())
}

#[test]
fn a_stream_message_carries_the_trace_to_its_reader() {
    set_up();
    let mut headers =
        vec![("Traceparent".to_owned(), "stale".to_owned()), ("other".to_owned(), "kept".to_owned())];
    let sent = info_span!("publish").in_scope(|| {
        inject(&mut headers);
        current_trace_id().unwrap()
    });
    assert_eq!(headers.len(), 2, "{headers:?}");
    assert_eq!(extract(&headers).span().span_context().trace_id().to_string(), sent);
    let read = info_span!("read");
    continue_from(&read, &headers);
    assert_eq!(read.in_scope(current_trace_id), Some(sent));
}

#[test]
fn without_a_trace_nothing_is_injected_and_malformed_headers_are_no_trace() {
    set_up();
    let mut headers = Vec::new();
    inject(&mut headers);
    assert_eq!((headers.len(), current_trace_id()), (0, None));
    let zero = format!("00-{}-{}-01", "0".repeat(32), "0".repeat(16));
    for malformed in ["", "x", "00-zz-00f067aa0ba902b7-01", &PARENT[..52], &zero, &"a".repeat(10_000)] {
        let headers = [("traceparent".to_owned(), malformed.to_owned())];
        assert!(!extract(&headers).span().span_context().is_valid(), "{malformed}");
        let span = info_span!("read");
        continue_from(&span, &headers);
        assert!(span.in_scope(current_trace_id).is_some_and(|id| id != TRACE));
    }
}

#[tokio::test]
async fn the_same_trace_goes_from_client_to_server() {
    set_up();
    let server = TraceLayer::server().layer(service_fn(async |request: Request<()>| {
        let parent = request.headers()["traceparent"].to_str().unwrap().to_owned();
        let body = format!("{} {parent}", current_trace_id().unwrap());
        Ok::<_, Infallible>(Response::new(AxumBody::from(body)))
    }));
    let client = TraceLayer::client().layer(server);
    let caller = info_span!("caller");
    let (expected, response) = async {
        let id = current_trace_id().unwrap();
        (id, client.oneshot(grpc("/t.Same/Trace")).await.unwrap())
    }
    .instrument(caller)
    .await;
    let body = axum::body::to_bytes(AxumBody::new(response.into_body()), 1024).await.unwrap();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let (seen, parent) = body.split_once(' ').unwrap();
    assert_eq!(seen, expected);
    assert!(parent.starts_with(&format!("00-{expected}-")), "{parent}");
}

#[tokio::test]
async fn a_server_continues_the_trace_that_a_request_names() {
    set_up();
    let server = TraceLayer::server().layer(service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(Response::new(AxumBody::from(current_trace_id().unwrap())))
    }));
    let mut request = grpc("/t.Named/Trace");
    request.headers_mut().insert("traceparent", PARENT.parse().unwrap());
    let response = server.oneshot(request).await.unwrap();
    let body = axum::body::to_bytes(AxumBody::new(response.into_body()), 1024).await.unwrap();
    assert_eq!(body, TRACE);
}

async fn check<S>(layer: TraceLayer, service: S, request: Request<()>, expected: (&str, &str, &str))
where
    S: Service<Request<()>, Response = Response<Frames>, Error = &'static str>,
    S::Future: Send + 'static,
{
    let (side, method, code) = expected;
    let before = observed(side, method, code);
    match layer.layer(service).oneshot(request).await {
        Ok(response) => {
            drain(response.into_body()).await;
        }
        Err(error) => assert_eq!(error, "away"),
    }
    assert_eq!(observed(side, method, code), before + 1, "{expected:?}\n{}", metrics_text());
}

fn answering(
    status: u16,
    header: Option<&'static str>,
    frames: fn() -> Vec<Frame<Bytes>>,
) -> impl Service<
    Request<()>,
    Response = Response<Frames>,
    Error = &'static str,
    Future = impl Future<Output = Result<Response<Frames>, &'static str>> + Send + 'static,
> {
    service_fn(move |_: Request<()>| async move {
        let mut response = Response::new(Frames(frames().into()));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        if let Some(code) = header {
            response.headers_mut().insert("grpc-status", code.parse().unwrap());
        }
        Ok(response)
    })
}

#[tokio::test]
async fn each_way_of_ending_is_observed_once_under_its_code() {
    set_up();
    let (server, client) = (TraceLayer::server(), TraceLayer::client());
    let ok = answering(200, None, || vec![data(), data(), trailers("0")]);
    check(server, ok, grpc("/t.S/Ok"), ("server", "t.S/Ok", "Ok")).await;
    let failed = answering(200, None, || vec![data(), trailers("8")]);
    check(client, failed, grpc("/t.S/Failed"), ("client", "t.S/Failed", "ResourceExhausted")).await;
    let refused = answering(200, Some("7"), Vec::new);
    check(server, refused, grpc("/t.S/Refused"), ("server", "t.S/Refused", "PermissionDenied")).await;
    let unfinished = answering(200, None, || vec![data()]);
    check(server, unfinished, grpc("/t.S/Unfinished"), ("server", "t.S/Unfinished", "Unknown")).await;
    let gateway = answering(503, None, Vec::new);
    check(client, gateway, grpc("/t.S/Gateway"), ("client", "t.S/Gateway", "503")).await;
    let tile = answering(200, None, || vec![data()]);
    let get = Request::builder().uri("/tile/0/x001/234").body(()).unwrap();
    check(server, tile, get, ("server", "GET /tile", "200")).await;
    let away = service_fn(async |_: Request<()>| Err::<Response<Frames>, _>("away"));
    check(client, away, grpc("/t.S/Away"), ("client", "t.S/Away", "transport_error")).await;
}

#[tokio::test]
async fn an_abandoned_request_is_observed_as_cancelled() {
    set_up();
    let service = answering(200, None, || vec![data(), trailers("0")]);
    let response = TraceLayer::server().layer(service).oneshot(grpc("/t.S/Abandoned")).await.unwrap();
    drop(response);
    assert_eq!(observed("server", "t.S/Abandoned", "Cancelled"), 1);
    let pending = service_fn(|_: Request<()>| std::future::pending::<Result<Response<Frames>, Infallible>>());
    let mut service = TraceLayer::server().layer(pending);
    drop(service.call(grpc("/t.S/Unanswered")));
    assert_eq!(observed("server", "t.S/Unanswered", "Cancelled"), 1);
}

#[tokio::test]
async fn paths_that_do_not_exist_make_no_time_series() {
    set_up();
    for index in 0..20 {
        let guess = grpc(&format!("/guess.S/{index}"));
        check(
            TraceLayer::server(),
            answering(200, Some("12"), Vec::new),
            guess,
            ("server", "other", "Unimplemented"),
        )
        .await;
        let guess = Request::builder().uri(format!("/guess{index}")).body(()).unwrap();
        check(TraceLayer::server(), answering(404, None, Vec::new), guess, ("server", "other", "404")).await;
    }
    assert!(!metrics_text().contains("guess"));
}

/// Compiles only if tonic's server and generated clients accept the layer.
#[tokio::test]
async fn tonic_accepts_the_layer_on_both_sides() {
    let routes = tonic::service::Routes::default();
    let _router = tonic::transport::Server::builder().layer(TraceLayer::server()).add_routes(routes);
    let channel = tonic::transport::Endpoint::from_static("http://127.0.0.1:9").connect_lazy();
    let _client = tonic::client::Grpc::new(TraceLayer::client().layer(channel)).ready().await;
    let _axum: axum::Router = axum::Router::new().layer(TraceLayer::server());
}
