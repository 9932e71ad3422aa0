//! Set-up happens once a process, so its whole life is one test: refusals, export to a collector, a second call.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body as AxumBody, Bytes};
use exchequer_telemetry::{InitError, LogFormat, Options, init};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// The answer of a collector: an empty message, then an OK status.
struct Accepted(VecDeque<Frame<Bytes>>);

impl Body for Accepted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

fn accepted() -> Response<AxumBody> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let frames = [Frame::data(Bytes::from_static(&[0; 5])), Frame::trailers(trailers)];
    let response = Response::builder().header("content-type", "application/grpc");
    response.body(AxumBody::new(Accepted(frames.into()))).unwrap()
}

fn options(filter: &str, endpoint: Option<String>) -> Options {
    Options {
        service_name: "the-service".to_owned(),
        log_format: LogFormat::Json,
        log_filter: filter.to_owned(),
        otlp_endpoint: endpoint,
    }
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[test]
fn set_up_refuses_what_is_wrong_then_exports_spans_and_then_is_done() {
    assert!(matches!(init(&options("a=b=c", None)), Err(InitError::Filter(_))));
    let endpoint = Some("http://127.0.0.1:1".to_owned());
    assert!(matches!(init(&options("off", endpoint)), Err(InitError::NoRuntime)));
    assert_eq!("xml".parse::<LogFormat>(), Err("expected `text` or `json`".to_owned()));

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let received: Arc<Mutex<Vec<u8>>> = Arc::default();
    let guard = runtime.block_on(async {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = format!("http://{}", incoming.local_addr().unwrap());
        let received = Arc::clone(&received);
        let export = async move |request: Request<AxumBody>| {
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            received.lock().unwrap().extend_from_slice(&body);
            accepted()
        };
        let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        let router = Router::new().route(path, axum::routing::post(export));
        let server = Server::builder().add_routes(tonic::service::Routes::from(router));
        tokio::spawn(server.serve_with_incoming(incoming));
        assert!(matches!(init(&options("off", Some("no endpoint".to_owned()))), Err(InitError::Endpoint(_))));
        init(&options("off", Some(endpoint))).unwrap()
    });
    // The filter of the log does not take spans away from the trace.
    tracing::info_span!("the-span").in_scope(|| ());
    guard.shutdown();
    let received = received.lock().unwrap();
    assert!(contains(&received, "the-service") && contains(&received, "the-span"), "{received:?}");

    init(&options("a=b=c", None)).unwrap().shutdown();
}
