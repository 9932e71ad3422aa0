//! The operators' routes: `/metrics`, `/healthz`, `/readyz`.
//!
//! Left out: gRPC health (each server has its own). Invariant: `/readyz` says 200 only if the process named at least one
//! component and every one of them works.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

/// Which components work, and what ails the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    components: BTreeMap<String, State>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Works,
    Degraded(String),
    Fails(String),
}

impl Readiness {
    /// Nothing known yet: not ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a component's state; the error says why it can't serve.
    pub fn component(mut self, name: impl Into<String>, state: Result<(), impl Display>) -> Self {
        let state = state.map_or_else(|reason| State::Fails(reason.to_string()), |()| State::Works);
        self.components.insert(name.into(), state);
        self
    }

    /// Adds a component that serves, though with less than it should have: shown, and no reason to take the process out of service.
    pub fn degraded(mut self, name: impl Into<String>, reason: Option<String>) -> Self {
        self.components.insert(name.into(), reason.map_or(State::Works, State::Degraded));
        self
    }

    /// The components of both; of a name that both have, `other`'s state counts.
    pub fn merge(mut self, other: Self) -> Self {
        self.components.extend(other.components);
        self
    }

    /// The components that don't work, each with its reason.
    pub fn faults(&self) -> impl Iterator<Item = (&str, &str)> {
        self.components.iter().filter_map(|(name, state)| match state {
            State::Fails(reason) => Some((name.as_str(), reason.as_str())),
            State::Works | State::Degraded(_) => None,
        })
    }

    /// Whether there are components and all of them work.
    pub fn is_ready(&self) -> bool {
        !self.components.is_empty() && self.faults().next().is_none()
    }
}

impl IntoResponse for Readiness {
    fn into_response(self) -> Response {
        let is_ready = self.is_ready();
        let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let shown = |state: &State| match state {
            State::Works => "ok".to_owned(),
            State::Degraded(reason) => format!("degraded: {reason}"),
            State::Fails(reason) => reason.clone(),
        };
        let components: BTreeMap<_, _> =
            self.components.iter().map(|(name, state)| (name, shown(state))).collect();
        (status, Json(json!({ "ready": is_ready, "components": components }))).into_response()
    }
}

/// `/metrics` in Prometheus' format; `/healthz`, which answers as long as the process does; `/readyz`, 200 or 503 with
/// each component's state as JSON. `readiness` is asked on every request and must not block.
pub fn http_routes(readiness: impl Fn() -> Readiness + Send + Sync + 'static) -> Router {
    let readiness = Arc::new(readiness);
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(move || async move { readiness() }))
}

async fn metrics() -> impl IntoResponse {
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], crate::metrics_text())
}
