//! The ledger's metrics, all of them.
//!
//! Left out: RPC latencies (the tracing layer has them). Invariant: names carry their unit.

use std::{sync::Weak, time::Duration};

use exchequer_event::v1::{EntryKind, RejectionReason};
use exchequer_telemetry::{KeyValue, LATENCY_SECONDS, meter};
use opentelemetry::metrics::{Counter, Gauge, Histogram};

use crate::{standing::Standing, witness::client::Cosigning};

/// The ledger's instruments.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    entries: Counter<u64>,
    rejections: Counter<u64>,
    tree_size: Gauge<u64>,
    ingest_lag: Gauge<u64>,
    integrate_seconds: Histogram<f64>,
    commit_seconds: Histogram<f64>,
    checkpoints: Counter<u64>,
    receipts: Counter<u64>,
    cosignatures: Counter<u64>,
    mirror_size: Gauge<u64>,
    mirror_lag: Gauge<u64>,
}

impl Metrics {
    /// Makes the instruments. The checkpoint's age is computed when it is asked for, as long as the ledger runs.
    pub(crate) fn new(standing: Weak<Standing>) -> Self {
        let meter = meter();
        let seconds = |name, description| {
            meter
                .f64_histogram(name)
                .with_description(description)
                .with_boundaries(LATENCY_SECONDS.to_vec())
                .build()
        };
        let counter = |name, description| meter.u64_counter(name).with_description(description).build();
        meter
            .u64_observable_gauge("exchequer_ledger_checkpoint_age_seconds")
            .with_description("Seconds since the newest checkpoint was signed.")
            .with_callback(move |observer| {
                if let Some(standing) = standing.upgrade() {
                    let signed = standing.published.borrow().unix_s;
                    observer.observe(crate::sign::unix_s().saturating_sub(signed), &[]);
                }
            })
            .build();
        Self {
            entries: counter("exchequer_ledger_entries_total", "Entries integrated, by kind."),
            rejections: counter("exchequer_ledger_rejections_total", "Messages refused, by reason."),
            tree_size: meter
                .u64_gauge("exchequer_ledger_tree_size_entries")
                .with_description("Entries in the committed tree.")
                .build(),
            ingest_lag: meter
                .u64_gauge("exchequer_ledger_ingest_lag_messages")
                .with_description("Messages of the stream that are not in the log yet.")
                .build(),
            integrate_seconds: seconds(
                "exchequer_ledger_integrate_seconds",
                "Duration of turning a run of messages into entries.",
            ),
            commit_seconds: seconds(
                "exchequer_ledger_commit_seconds",
                "Duration of making a run of entries durable.",
            ),
            checkpoints: counter("exchequer_ledger_checkpoints_total", "Checkpoints signed."),
            receipts: counter("exchequer_ledger_receipts_total", "Receipts published."),
            cosignatures: counter(
                "exchequer_ledger_cosignatures_total",
                "Witnesses asked for a cosignature, by witness and outcome.",
            ),
            mirror_size: meter
                .u64_gauge("exchequer_ledger_mirror_size_entries")
                .with_description("Entries up to which the mirror is complete.")
                .build(),
            mirror_lag: meter
                .u64_gauge("exchequer_ledger_mirror_lag_entries")
                .with_description("Entries under the newest checkpoint that the mirror does not have yet.")
                .build(),
        }
    }

    pub(crate) fn integrated(&self, kinds: impl IntoIterator<Item = (EntryKind, u64)>, took: Duration) {
        for (kind, count) in kinds {
            let name = kind.as_str_name().trim_start_matches("ENTRY_KIND_").to_ascii_lowercase();
            self.entries.add(count, &[KeyValue::new("kind", name)]);
        }
        self.integrate_seconds.record(took.as_secs_f64(), &[]);
    }

    pub(crate) fn rejected(&self, reasons: impl IntoIterator<Item = (RejectionReason, u64)>) {
        for (reason, count) in reasons {
            let name = reason.as_str_name().trim_start_matches("REJECTION_REASON_").to_ascii_lowercase();
            self.rejections.add(count, &[KeyValue::new("reason", name)]);
        }
    }

    pub(crate) fn committed(&self, size: u64, took: Duration) {
        self.tree_size.record(size, &[]);
        self.commit_seconds.record(took.as_secs_f64(), &[]);
    }

    pub(crate) fn lag(&self, messages: u64) {
        self.ingest_lag.record(messages, &[]);
    }

    pub(crate) fn mirrored(&self, mirrored: u64, published: u64) {
        self.mirror_size.record(mirrored, &[]);
        self.mirror_lag.record(published.saturating_sub(mirrored), &[]);
    }

    pub(crate) fn signed(&self) {
        self.checkpoints.add(1, &[]);
    }

    pub(crate) fn cosigned(&self, cosigning: &Cosigning) {
        let failed = cosigning.faults.iter().map(|(name, _)| (name, "failed"));
        for (name, outcome) in cosigning.by.iter().map(|name| (name, "cosigned")).chain(failed) {
            let labels = [KeyValue::new("witness", name.clone()), KeyValue::new("outcome", outcome)];
            self.cosignatures.add(1, &labels);
        }
    }

    pub(crate) fn receipts(&self, count: u64) {
        self.receipts.add(count, &[]);
    }
}
