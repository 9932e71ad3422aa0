//! The tower layer around servers and clients: one span and one latency observation a request.
//!
//! Works on HTTP requests of any body, gRPC or plain. A gRPC request's code is its `grpc-status`, from the headers of
//! an immediate refusal or from the trailers; so the observation lasts until the body ends. Left out: message sizes.
//! Invariant: exactly one observation a request, whether it ends, fails or is abandoned; label values are bounded.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use opentelemetry::KeyValue;
use tonic::Code;
use tower::{Layer, Service};
use tracing::{Instrument as _, Span, field};

use crate::metrics::{client_seconds, server_seconds};
use crate::propagation::{continue_from_http, inject_http, trace_id};

/// Longest part of a path that becomes a span's name.
const MAX_NAME_CHARS: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Server,
    Client,
}

/// Traces and times every request through a service.
#[derive(Debug, Clone, Copy)]
pub struct TraceLayer {
    side: Side,
}

impl TraceLayer {
    /// In front of a server (outside of authentication, so that refusals are counted): continues the caller's trace.
    pub fn server() -> Self {
        Self { side: Side::Server }
    }

    /// In front of a client's channel: sends the current trace along.
    pub fn client() -> Self {
        Self { side: Side::Client }
    }
}

impl<S> Layer<S> for TraceLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Traced { inner, side: self.side }
    }
}

/// A service behind [`TraceLayer`].
#[derive(Debug, Clone)]
pub struct Traced<S> {
    inner: S,
    side: Side,
}

impl<S, B, R> Service<Request<B>> for Traced<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    R: Body,
{
    type Response = Response<TracedBody<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let mut observation = Observation::start(self.side, &request);
        match self.side {
            Side::Server => continue_from_http(&observation.span, request.headers()),
            Side::Client => inject_http(&observation.span, request.headers_mut()),
        }
        if let Some(id) = trace_id(&observation.span) {
            observation.span.record("trace_id", id);
        }
        let response = observation.span.in_scope(|| self.inner.call(request));
        let response = response.instrument(observation.span.clone());
        Box::pin(async move {
            match response.await {
                Ok(response) => {
                    let (parts, body) = response.into_parts();
                    observation.answered(parts.status, &parts.headers, body.is_end_stream());
                    Ok(Response::from_parts(parts, TracedBody::new(body, observation)))
                }
                Err(error) => {
                    observation.finish("transport_error");
                    Err(error)
                }
            }
        })
    }
}

/// One request's span and stopwatch.
#[derive(Debug)]
struct Observation {
    span: Span,
    side: Side,
    method: String,
    started: Instant,
    is_grpc: bool,
    /// The HTTP status, once there is one.
    status: Option<StatusCode>,
    is_finished: bool,
}

impl Observation {
    fn start<B>(side: Side, request: &Request<B>) -> Self {
        let content_type = request.headers().get(header::CONTENT_TYPE);
        let is_grpc = content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
        let path = request.uri().path();
        let method = if is_grpc {
            path.trim_start_matches('/').chars().take(MAX_NAME_CHARS).collect()
        } else {
            // The first segment names the route; what follows are its arguments, too many for a label.
            let route = path.split('/').nth(1).unwrap_or_default();
            let route: String = route.chars().take(MAX_NAME_CHARS).collect();
            format!("{} /{route}", known_verb(request.method()))
        };
        let span = match side {
            Side::Server => tracing::info_span!(
                parent: None,
                "request",
                otel.name = method,
                otel.kind = "server",
                method,
                code = field::Empty,
                trace_id = field::Empty,
            ),
            Side::Client => tracing::info_span!(
                "call",
                otel.name = method,
                otel.kind = "client",
                method,
                code = field::Empty,
                trace_id = field::Empty,
            ),
        };
        Self { span, side, method, started: Instant::now(), is_grpc, status: None, is_finished: false }
    }

    fn answered(&mut self, status: StatusCode, headers: &HeaderMap, has_ended: bool) {
        self.status = Some(status);
        if has_ended || headers.contains_key("grpc-status") {
            self.ended(Some(headers));
        }
    }

    /// The answer is complete: `trailers` are its last headers, if it had any.
    fn ended(&mut self, trailers: Option<&HeaderMap>) {
        let http = self.status.unwrap_or_default();
        if self.is_grpc && http == StatusCode::OK {
            // gRPC: an answer that ends without a status is an error of unknown kind.
            let status = trailers.and_then(|trailers| trailers.get("grpc-status"));
            let code = status.map_or(Code::Unknown, |status| Code::from_bytes(status.as_bytes()));
            self.finish(&format!("{code:?}"));
        } else {
            self.finish(http.as_str());
        }
    }

    fn finish(&mut self, code: &str) {
        if std::mem::replace(&mut self.is_finished, true) {
            return;
        }
        self.span.record("code", code);
        // Whoever sends paths that don't exist must not make a time series of each.
        let is_guess = self.side == Side::Server
            && ["Unimplemented", "Unauthenticated", "401", "404", "405"].contains(&code);
        let method = if is_guess { "other".to_owned() } else { self.method.clone() };
        let labels = [KeyValue::new("method", method), KeyValue::new("code", code.to_owned())];
        let seconds = match self.side {
            Side::Server => server_seconds(),
            Side::Client => client_seconds(),
        };
        seconds.record(self.started.elapsed().as_secs_f64(), &labels);
    }
}

impl Drop for Observation {
    /// Whoever goes before the end has abandoned the request.
    fn drop(&mut self) {
        self.finish("Cancelled");
    }
}

fn known_verb(method: &Method) -> &str {
    match *method {
        Method::GET | Method::HEAD | Method::POST | Method::PUT | Method::DELETE | Method::OPTIONS => {
            method.as_str()
        }
        _ => "other",
    }
}

/// An answer's body that knows when its request is over.
#[derive(Debug)]
pub struct TracedBody<B> {
    inner: Pin<Box<B>>,
    observation: Option<Observation>,
}

impl<B> TracedBody<B> {
    fn new(inner: B, observation: Observation) -> Self {
        Self { inner: Box::pin(inner), observation: Some(observation) }
    }
}

impl<B: Default> Default for TracedBody<B> {
    /// An empty body of no request, for layers that answer by themselves.
    fn default() -> Self {
        Self { inner: Box::pin(B::default()), observation: None }
    }
}

impl<B: Body> Body for TracedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        let span = this.observation.as_ref().map(|observation| observation.span.clone());
        let _entered = span.as_ref().map(Span::enter);
        let polled = this.inner.as_mut().poll_frame(context);
        if let (Some(observation), Poll::Ready(frame)) = (&mut this.observation, &polled) {
            match frame {
                None => observation.ended(None),
                Some(Err(_)) => observation.finish("transport_error"),
                Some(Ok(frame)) => match frame.trailers_ref() {
                    Some(trailers) => observation.ended(Some(trailers)),
                    // A reader may stop at the last frame without asking for the end.
                    None if this.inner.is_end_stream() => observation.ended(None),
                    None => {}
                },
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
