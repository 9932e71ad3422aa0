//! W3C trace context (`traceparent`, `tracestate`) in and out of HTTP headers and stream headers.
//!
//! Left out: baggage. Invariant: what a peer sends can only name a parent; a malformed header is no header.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Writes the current span's context into the headers of a stream message, in place of one that is there.
pub fn inject(headers: &mut Vec<(String, String)>) {
    inject_from(&Span::current(), &mut Pairs(headers));
}

/// Reads the context that [`inject`] wrote; an empty context if there is none.
pub fn extract(headers: &[(String, String)]) -> Context {
    extract_with(&PairsRef(headers))
}

/// Makes the context in a stream message's headers the parent of `span`, which must not have been entered yet.
/// Without one, the span stays as it is.
pub fn continue_from(span: &Span, headers: &[(String, String)]) {
    set_parent(span, extract(headers));
}

/// The current span's trace id in hex, to be named in answers and logs; `None` outside of any trace.
pub fn current_trace_id() -> Option<String> {
    trace_id(&Span::current())
}

pub(crate) fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let span_context = context.span().span_context().clone();
    span_context.is_valid().then(|| span_context.trace_id().to_string())
}

pub(crate) fn inject_http(span: &Span, headers: &mut HeaderMap) {
    inject_from(span, &mut Http(headers));
}

pub(crate) fn continue_from_http(span: &Span, headers: &HeaderMap) {
    set_parent(span, extract_with(&HttpRef(headers)));
}

fn inject_from(span: &Span, injector: &mut dyn Injector) {
    TraceContextPropagator::new().inject_context(&span.context(), injector);
}

fn extract_with(extractor: &dyn Extractor) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), extractor)
}

fn set_parent(span: &Span, parent: Context) {
    if parent.span().span_context().is_valid() {
        // It fails where no trace pipeline is set up or the span is filtered out: then there is nothing to connect.
        let _ = span.set_parent(parent);
    }
}

struct Pairs<'a>(&'a mut Vec<(String, String)>);

impl Injector for Pairs<'_> {
    fn set(&mut self, key: &str, value: String) {
        self.0.retain(|(name, _)| !name.eq_ignore_ascii_case(key));
        // An empty `tracestate` says nothing.
        if !value.is_empty() {
            self.0.push((key.to_owned(), value));
        }
    }
}

struct PairsRef<'a>(&'a [(String, String)]);

impl Extractor for PairsRef<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value.as_str())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).collect()
    }
}

struct Http<'a>(&'a mut HeaderMap);

impl Injector for Http<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = HeaderName::from_bytes(key.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value))
            && !value.is_empty()
        {
            self.0.insert(name, value);
        }
    }
}

struct HttpRef<'a>(&'a HeaderMap);

impl Extractor for HttpRef<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}
