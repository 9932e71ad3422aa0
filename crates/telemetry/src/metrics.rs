//! The process's metrics: one meter, one registry, one text.
//!
//! Left out: any component's instruments; each has its own `metrics.rs`. Invariant: a metric is exported under the
//! very name that the code gives it (unit and `_total` included), so that a dashboard can be searched for in the code.

use std::sync::OnceLock;

use opentelemetry::metrics::{Histogram, Meter, MeterProvider as _};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};

/// Bucket boundaries for latencies in seconds, from 100 µs to 30 s.
pub const LATENCY_SECONDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

struct Metrics {
    registry: Registry,
    provider: SdkMeterProvider,
}

fn metrics() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .without_units()
            .without_counter_suffixes()
            .without_target_info()
            .scope_info_enabled(false)
            .build()
            .expect("a fresh registry takes its first collector");
        Metrics { registry, provider: SdkMeterProvider::builder().with_reader(exporter).build() }
    })
}

/// The meter from which every component makes its instruments, under full names such as
/// `exchequer_ledger_entries_total` or `exchequer_ledger_commit_seconds`.
pub fn meter() -> Meter {
    metrics().provider.meter("exchequer")
}

/// Every metric of the process in Prometheus' text format 0.0.4.
pub fn metrics_text() -> String {
    let families = metrics().registry.gather();
    TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| {
        // One metric that can't be written must not read as "no metrics at all": leave it to the scraper to fail.
        tracing::error!(%error, "metrics can't be encoded");
        format!("encoding failed: {error}\n")
    })
}

/// Duration of requests that this process answered, by method and code.
pub(crate) fn server_seconds() -> &'static Histogram<f64> {
    static SECONDS: OnceLock<Histogram<f64>> = OnceLock::new();
    SECONDS.get_or_init(|| {
        seconds("exchequer_rpc_server_duration_seconds", "Requests answered, until their last byte.")
    })
}

/// Duration of requests that this process made, by method and code.
pub(crate) fn client_seconds() -> &'static Histogram<f64> {
    static SECONDS: OnceLock<Histogram<f64>> = OnceLock::new();
    SECONDS.get_or_init(|| {
        seconds("exchequer_rpc_client_duration_seconds", "Requests made, until the answer's last byte.")
    })
}

fn seconds(name: &'static str, description: &'static str) -> Histogram<f64> {
    meter()
        .f64_histogram(name)
        .with_description(description)
        .with_boundaries(LATENCY_SECONDS.to_vec())
        .build()
}
