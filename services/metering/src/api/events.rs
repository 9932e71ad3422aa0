//! Usage reported as CloudEvents (1.0) over HTTP: `POST /v1/usage/events`, one event (structured or binary mode) or a batch of them.
//!
//! An event is a report of usage whose idempotency key follows from `source` and `id`, so that it counts once however often it comes,
//! without a window. Left out: other formats than JSON, and answering by events. Invariant: the answer 200 says of every event of the
//! request what became of it, durably; any other answer says that the same request can be sent again or has to be changed.

mod envelope;
mod json;

use axum::{
    Extension, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use exchequer_auth::Caller;
use exchequer_event::v1::{self, decide_answer::Answer, decide_command};
use serde_json::{Value, json};
use tonic::{Code, metadata::MetadataMap};

use self::{
    envelope::{Envelope, Fault, is_json},
    json::Json,
};
use super::{
    Api,
    batch::{MAX_COMMANDS, decide_all},
    who::Who,
};

/// Largest body, bytes.
const MAX_BODY_BYTES: usize = 1024 * 1024;
/// When to send the same request again, seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

pub(crate) fn routes(api: Api) -> Router {
    Router::new()
        .route("/v1/usage/events", post(take))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(api)
}

/// An answer that is no result (RFC 9457).
struct Problem {
    status: StatusCode,
    detail: String,
    field: String,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), field: String::new() }
    }

    fn malformed(fault: Fault) -> Self {
        let Fault { field, message } = fault;
        let detail = if field.is_empty() { message } else { format!("{field} {message}") };
        Self { status: StatusCode::BAD_REQUEST, detail, field }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or_default(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if !self.field.is_empty() {
            body["field"] = Value::String(self.field);
        }
        let mut response = (self.status, [(header::CONTENT_TYPE, PROBLEM)], body.to_string()).into_response();
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

async fn take(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let Some(Extension(caller)) = caller else {
        return Problem::new(StatusCode::UNAUTHORIZED, "this needs a bearer token").into_response();
    };
    let taken = async {
        let who = Who::new(caller);
        who.may_hold_somewhere().map_err(|status| Problem::new(StatusCode::FORBIDDEN, status.message()))?;
        let body = body.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
        let request = read(&headers, &body)?;
        let metadata = token(&headers);
        report(&api, &who, &metadata, request).await
    };
    match taken.await {
        Ok(results) => axum::Json(json!({ "results": results })).into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// The caller's token, for what is handed on to another instance.
fn token(headers: &HeaderMap) -> MetadataMap {
    let mut kept = HeaderMap::new();
    if let Some(token) = headers.get(header::AUTHORIZATION) {
        kept.insert(header::AUTHORIZATION, token.clone());
    }
    MetadataMap::from_headers(kept)
}

/// What one request brings.
struct Events {
    events: Vec<Envelope>,
    /// Whether the request is the event: what is wrong with it is wrong with the request.
    is_single: bool,
}

fn read(headers: &HeaderMap, body: &[u8]) -> Result<Events, Problem> {
    let unsupported = |detail: &str| Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail);
    let media_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut parts = media_type.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
    let is_utf8 = parts.all(|parameter| match parameter.split_once('=') {
        Some((name, value)) if name.eq_ignore_ascii_case("charset") => {
            value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        _ => true,
    });
    if !is_utf8 {
        return Err(unsupported("the charset must be UTF-8"));
    }
    let parse = || {
        let parsed: Result<Json, _> = serde_json::from_slice(body);
        parsed
            .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")))
    };
    match essence.as_str() {
        "application/cloudevents+json" => {
            Ok(Events { events: vec![Envelope::read(parse()?)], is_single: true })
        }
        "application/cloudevents-batch+json" => {
            let Json::List(events) = parse()? else {
                return Err(Problem::new(StatusCode::BAD_REQUEST, "a batch is an array"));
            };
            if events.len() > MAX_COMMANDS {
                let detail = format!("a batch has at most {MAX_COMMANDS} events");
                return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
            }
            Ok(Events { events: events.into_iter().map(Envelope::read).collect(), is_single: false })
        }
        other if !other.starts_with("application/cloudevents") && headers.contains_key("ce-specversion") => {
            if !is_json(other) {
                return Err(unsupported("an event's data must be JSON"));
            }
            let mut members = attributes(headers).map_err(Problem::malformed)?;
            members.push(("data".to_owned(), parse()?));
            Ok(Events { events: vec![Envelope::read(Json::Object(members))], is_single: true })
        }
        _ => Err(unsupported(
            "CloudEvents 1.0 are taken as application/cloudevents+json, as application/cloudevents-batch+json, or with ce- headers and data \
             in JSON",
        )),
    }
}

/// The attributes of an event in binary mode (CloudEvents HTTP binding, section 3.1.3).
fn attributes(headers: &HeaderMap) -> Result<Vec<(String, Json)>, Fault> {
    let mut members = Vec::new();
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix("ce-") else { continue };
        if matches!(name, "data" | "data_base64" | "datacontenttype") {
            return Err(Fault::new(format!("ce-{name}"), "is no attribute of an event in binary mode"));
        }
        let value = value.to_str().ok().and_then(decoded);
        let value = value.ok_or_else(|| Fault::new(format!("ce-{name}"), "can't be decoded"))?;
        members.push((name.to_owned(), Json::Text(value)));
    }
    Ok(members)
}

/// A header's text: quotes taken off, then percent-encoding.
fn decoded(value: &str) -> Option<String> {
    let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = quoted.unwrap_or(value).bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'\\' if quoted.is_some() => bytes.push(rest.next()?),
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                bytes.push(u8::try_from(high * 16 + low).ok()?);
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

/// Reports what was read, and says of each event what became of it.
async fn report(
    api: &Api,
    who: &Who,
    metadata: &MetadataMap,
    request: Events,
) -> Result<Vec<Value>, Problem> {
    let Events { mut events, is_single } = request;
    let mut commands = Vec::with_capacity(events.len());
    for event in &mut events {
        if let Ok(report) = &mut event.report {
            let report = decide_command::Command::Report(std::mem::take(report));
            commands.push(v1::DecideCommand { command: Some(report) });
        }
    }
    let mut answers = decide_all(api, who, metadata, commands).await.into_iter();
    let mut results = Vec::with_capacity(events.len());
    for event in events {
        let outcome = match &event.report {
            Err(fault) => refused("refused", fault.clone()),
            Ok(_) => match answers.next().and_then(|answer| answer.answer) {
                Some(Answer::Report(reported)) => {
                    let outcome = if reported.repeated { "duplicate" } else { "recorded" };
                    json!({ "outcome": outcome, "stream_seq": reported.stream_seq })
                }
                Some(Answer::Failure(failure)) => judged(&event, &failure, is_single)?,
                _ => return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "an answer is missing")),
            },
        };
        if is_single && let Err(fault) = event.report {
            return Err(Problem::malformed(fault));
        }
        let mut result = json!({ "source": event.source, "id": event.id });
        if let (Value::Object(result), Value::Object(outcome)) = (&mut result, outcome) {
            result.extend(outcome);
        }
        results.push(result);
    }
    Ok(results)
}

fn refused(outcome: &str, fault: Fault) -> Value {
    let mut result = json!({ "outcome": outcome, "message": fault.message });
    if !fault.field.is_empty() {
        result["field"] = Value::String(fault.field);
    }
    result
}

/// The outcome of an event that was not recorded; a problem where that is the request's as a whole.
fn judged(event: &Envelope, failure: &v1::DecideFailure, is_single: bool) -> Result<Value, Problem> {
    let asked = failure.field.split_once(".report.").map(|(_, path)| path).unwrap_or_default();
    let field = event.path(asked);
    let code = Code::from_i32(i32::try_from(failure.code).unwrap_or_default());
    let (status, outcome) = match code {
        Code::InvalidArgument | Code::OutOfRange => (StatusCode::BAD_REQUEST, "refused"),
        Code::PermissionDenied => (StatusCode::FORBIDDEN, "refused"),
        Code::NotFound => (StatusCode::NOT_FOUND, "refused"),
        Code::FailedPrecondition => (StatusCode::UNPROCESSABLE_ENTITY, "refused"),
        Code::AlreadyExists => (StatusCode::CONFLICT, "conflict"),
        Code::ResourceExhausted => (StatusCode::TOO_MANY_REQUESTS, ""),
        Code::Unavailable | Code::Aborted | Code::DeadlineExceeded => (StatusCode::SERVICE_UNAVAILABLE, ""),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, ""),
    };
    let message = match code {
        Code::AlreadyExists => "an event of this source and id said something else".to_owned(),
        _ => failure.message.strip_prefix(asked).unwrap_or(&failure.message).trim_start().to_owned(),
    };
    if outcome.is_empty() || is_single {
        let fault = Fault { field, message };
        return Err(Problem { status, ..Problem::malformed(fault) });
    }
    Ok(refused(outcome, Fault { field, message }))
}
