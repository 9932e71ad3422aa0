//! Logs, traces and metrics: set-up, and trace context over gRPC metadata and stream headers.
//!
//! A binary calls [`init`] once. Services take a [`meter`], put [`TraceLayer`] in front of their servers and clients,
//! carry the trace over the stream with [`inject`] and [`continue_from`], and serve [`http_routes`].
//!
//! Left out: log and metric export over OTLP (logs go to standard error, metrics are scraped), and any metric of a
//! single component.
//!
//! Invariant: everything here works in a process that never called `init`, or called it twice; then there is no second
//! log and no second registry, and instruments and layers go on counting.

mod layer;
mod metrics;
mod propagation;
mod routes;
mod setup;

pub use layer::{TraceLayer, Traced, TracedBody};
pub use metrics::{LATENCY_SECONDS, meter, metrics_text};
pub use opentelemetry::{Context, KeyValue};
pub use propagation::{continue_from, current_trace_id, extract, inject};
pub use routes::{Readiness, http_routes};
pub use setup::{Guard, InitError, LogFormat, Options, init};
