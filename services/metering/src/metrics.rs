//! Metering's instruments. Left out: the duration of RPCs, which the trace layer measures.

use exchequer_budget::Event;
use exchequer_telemetry::{KeyValue, LATENCY_SECONDS, meter};
use opentelemetry::metrics::{Counter, Gauge, Histogram};

/// Everything that metering counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Recorded decisions by kind of event.
    decisions: Counter<u64>,
    /// Commands answered from an earlier decision with the same key.
    pub(crate) repeated: Counter<u64>,
    /// Commands answered `UNAVAILABLE` without being decided durably, in time.
    pub(crate) abandoned: Counter<u64>,
    /// Decisions per block.
    pub(crate) block_decisions: Histogram<u64>,
    /// Encoded size of blocks.
    pub(crate) block_bytes: Histogram<u64>,
    /// From sealing a block until it is known to be durable and accepted.
    pub(crate) append_seconds: Histogram<f64>,
    /// Open holds of the tenants with a budget.
    pub(crate) open_holds: Gauge<u64>,
    /// Stream messages that are not yet settled: tip as read minus usage cursor.
    pub(crate) usage_lag: Gauge<u64>,
    /// Blocks of ours that another writer's block made void, or that the fold refused.
    pub(crate) fenced: Counter<u64>,
    /// Times that the lease was lost.
    pub(crate) lease_lost: Counter<u64>,
    /// Snapshots that could not be stored, or did not match.
    pub(crate) snapshot_faults: Counter<u64>,
    /// Decision runs of accepted blocks that no version of this fold can apply.
    pub(crate) undecodable_runs: Counter<u64>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let meter = meter();
        let counter = |name: &'static str, description: &'static str| {
            meter.u64_counter(name).with_description(description).build()
        };
        let sizes = |name: &'static str, description: &'static str, highest: i32| {
            let bounds = (0..=highest).map(|power| f64::powi(2.0, power)).collect();
            meter.u64_histogram(name).with_description(description).with_boundaries(bounds).build()
        };
        Self {
            decisions: counter("exchequer_metering_decisions_total", "Recorded decisions, by outcome."),
            repeated: counter(
                "exchequer_metering_repeated_total",
                "Commands answered by an earlier decision.",
            ),
            abandoned: counter(
                "exchequer_metering_abandoned_total",
                "Commands whose outcome stayed unknown.",
            ),
            block_decisions: sizes("exchequer_metering_block_decisions", "Decisions per block.", 13),
            block_bytes: sizes("exchequer_metering_block_bytes", "Encoded size of blocks.", 19),
            append_seconds: meter
                .f64_histogram("exchequer_metering_append_seconds")
                .with_description("From sealing a block until it is durable and accepted.")
                .with_boundaries(LATENCY_SECONDS.to_vec())
                .build(),
            open_holds: meter
                .u64_gauge("exchequer_metering_open_holds")
                .with_description("Open holds.")
                .build(),
            usage_lag: meter
                .u64_gauge("exchequer_metering_usage_lag_messages")
                .with_description("Stream messages read whose usage is not settled.")
                .build(),
            fenced: counter("exchequer_metering_fenced_total", "Blocks that came too late or were refused."),
            lease_lost: counter("exchequer_metering_lease_lost_total", "Times the lease was lost."),
            snapshot_faults: counter("exchequer_metering_snapshot_faults_total", "Snapshots that failed."),
            undecodable_runs: counter(
                "exchequer_metering_undecodable_runs_total",
                "Decision runs of accepted blocks that could not be applied.",
            ),
        }
    }

    pub(crate) fn decided(&self, event: &Event) {
        let outcome = match event {
            Event::BudgetSet { .. } => "budget_set",
            Event::HoldGranted { .. } => "granted",
            Event::HoldDenied { .. } => "denied",
            Event::HoldExtended { .. } => "extended",
            Event::HoldSettled { late: false, .. } => "settled",
            Event::HoldSettled { late: true, .. } => "settled_late",
            Event::HoldVoided { .. } => "voided",
            Event::HoldExpired { .. } => "expired",
            Event::CommandRefused { .. } => "refused",
        };
        self.decisions.add(1, &[KeyValue::new("outcome", outcome)]);
    }
}
