//! Metering's instruments. Left out: the duration of RPCs, which the trace layer measures.

use std::{collections::BTreeMap, time::Duration};

use exchequer_budget::{Amounts, Event, ScopePath};
use exchequer_telemetry::{KeyValue, LATENCY_SECONDS, meter};
use opentelemetry::metrics::{Counter, Gauge, Histogram};

use crate::{core::Block, fold::Fold, partition};

/// Everything that metering counts.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Recorded decisions by kind of event, and by the depth of the scope where it is named.
    decisions: Counter<u64>,
    /// What holds were granted, by meter.
    held: Counter<u64>,
    /// What was settled, by meter: beside what was held, how well callers know what they need.
    settled: Counter<u64>,
    /// From entering the line until the block is decided that answers it, of each block's first command.
    pub(crate) queue_seconds: Histogram<f64>,
    /// Time of the writer's task per thing that it was told: deciding and folding.
    pub(crate) step_seconds: Histogram<f64>,
    /// From entering the line until the answer, of commands that came together.
    answer_seconds: Histogram<f64>,
    /// Partitions that this instance serves.
    pub(crate) partitions: Gauge<u64>,
    /// Calls handed on to a partition's owner.
    pub(crate) forwarded: Counter<u64>,
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
    open_holds: Gauge<u64>,
    /// Age of the oldest open hold when the last snapshot was taken.
    oldest_hold_seconds: Gauge<f64>,
    /// Stream messages that are not yet settled: tip as read minus usage cursor.
    usage_lag: Gauge<u64>,
    /// Blocks of ours that another writer's block made void, or that the fold refused.
    pub(crate) fenced: Counter<u64>,
    /// Times that the lease was lost.
    pub(crate) lease_lost: Counter<u64>,
    /// Snapshots that could not be stored, or did not match.
    pub(crate) snapshot_faults: Counter<u64>,
    /// Decision runs of accepted blocks that no version of this fold can apply.
    undecodable_runs: Counter<u64>,
    /// Notifications whose end was recorded here, by how they ended.
    notifications: Counter<u64>,
    /// Attempts at a webhook that failed.
    pub(crate) webhook_failures: Counter<u64>,
    /// Notifications that wait in the partitions that this instance serves.
    pub(crate) notifications_waiting: Gauge<u64>,
}

/// Stream messages that the projection of usage has not counted yet.
pub(crate) fn projection_lag() -> Gauge<u64> {
    meter()
        .u64_gauge("exchequer_metering_projection_lag_messages")
        .with_description("Stream messages that usage over time does not count yet.")
        .build()
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
        let seconds = |name: &'static str, description: &'static str| {
            let histogram = meter.f64_histogram(name).with_description(description);
            histogram.with_boundaries(LATENCY_SECONDS.to_vec()).build()
        };
        Self {
            decisions: counter(
                "exchequer_metering_decisions_total",
                "Recorded decisions, by outcome and by depth of the scope where it is named.",
            ),
            held: counter("exchequer_metering_held_total", "What holds were granted, by meter."),
            settled: counter("exchequer_metering_settled_total", "What was settled, by meter."),
            queue_seconds: seconds(
                "exchequer_metering_queue_seconds",
                "How long a block's first command had waited for it.",
            ),
            step_seconds: seconds(
                "exchequer_metering_step_seconds",
                "Steps of the writer: deciding and folding.",
            ),
            answer_seconds: seconds(
                "exchequer_metering_answer_seconds",
                "From asking the writer until its answer.",
            ),
            partitions: meter
                .u64_gauge("exchequer_metering_partitions")
                .with_description("Partitions that this instance serves.")
                .build(),
            forwarded: counter(
                "exchequer_metering_forwarded_total",
                "Calls handed on to a partition's owner.",
            ),
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
            append_seconds: seconds(
                "exchequer_metering_append_seconds",
                "From sealing a block until it is durable and accepted.",
            ),
            oldest_hold_seconds: meter
                .f64_gauge("exchequer_metering_oldest_hold_seconds")
                .with_description(
                    "Age of the oldest open hold when the last snapshot was taken; 0 if there was none.",
                )
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
            notifications: counter(
                "exchequer_metering_notifications_total",
                "Notifications of thresholds that are over, by outcome.",
            ),
            webhook_failures: counter(
                "exchequer_metering_webhook_failures_total",
                "Attempts to deliver a notification that failed.",
            ),
            notifications_waiting: meter
                .u64_gauge("exchequer_metering_notifications_waiting")
                .with_description("Notifications that wait in the partitions that this instance serves.")
                .build(),
        }
    }

    /// Counts an accepted block.
    pub(crate) fn folded(&self, block: &Block, fold: &Fold) {
        let partition = KeyValue::new("partition", i64::from(block.partition));
        self.open_holds.record(fold.budget(block.partition).open_holds(), &[partition]);
        if block.undecodable > 0 {
            self.undecodable_runs.add(block.undecodable as u64, &[]);
            let (stream_seq, undecodable) = (block.stream_seq, block.undecodable);
            tracing::error!(stream_seq, undecodable, "an accepted block has undecodable runs");
        }
        // Whoever is not the writer would count what the writer counts.
        if !block.is_ours {
            return;
        }
        let mut tally = Tally::default();
        for event in block.runs.iter().flat_map(|run| &run.decisions).flat_map(|decision| &decision.events) {
            tally.count(event);
        }
        for ((outcome, scope), count) in tally.decisions {
            self.decisions.add(count, &[KeyValue::new("outcome", outcome), KeyValue::new("scope", scope)]);
        }
        for (counter, amounts) in [(&self.held, tally.held), (&self.settled, tally.settled)] {
            for (meter, amount) in amounts {
                counter.add(amount, &[KeyValue::new("meter", meter)]);
            }
        }
    }

    /// How old the open holds are at `now_ms`: their ids say when they were drawn.
    pub(crate) fn ages(&self, fold: &Fold, now_ms: u64) {
        for partition in 0..fold.partitions() {
            let drawn_ms = fold.budget(partition).first_open().and_then(partition::drawn_ms);
            let age = Duration::from_millis(drawn_ms.map_or(0, |drawn_ms| now_ms.saturating_sub(drawn_ms)));
            let partition = KeyValue::new("partition", i64::from(partition));
            self.oldest_hold_seconds.record(age.as_secs_f64(), &[partition]);
        }
    }

    /// Commands that came together were answered after so long.
    pub(crate) fn answered(&self, waited: Option<Duration>) {
        if let Some(waited) = waited {
            self.answer_seconds.record(waited.as_secs_f64(), &[]);
        }
    }

    /// Counts a notification's end.
    pub(crate) fn notified(&self, delivered: bool) {
        let outcome = if delivered { "delivered" } else { "given_up" };
        self.notifications.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// How many messages a partition's settlement is behind.
    pub(crate) fn usage_lag(&self, partition: u16, lag: u64) {
        self.usage_lag.record(lag, &[KeyValue::new("partition", i64::from(partition))]);
    }
}

/// What one block adds to the counters.
#[derive(Default)]
struct Tally {
    decisions: BTreeMap<(&'static str, i64), u64>,
    held: BTreeMap<String, u64>,
    settled: BTreeMap<String, u64>,
}

impl Tally {
    fn count(&mut self, event: &Event) {
        let (outcome, scope): (_, Option<&ScopePath>) = match event {
            Event::BudgetSet { scope, .. } => ("budget_set", Some(scope)),
            Event::BudgetRemoved { scope, .. } => ("budget_removed", Some(scope)),
            Event::GrantAdded(_) => ("grant_added", None),
            Event::GrantBegun { .. } => ("grant_begun", None),
            Event::GrantEnded { .. } => ("grant_ended", None),
            Event::WindowRolled { scope, .. } => ("window_rolled", Some(scope)),
            Event::HoldGranted { scope, amounts, .. } => {
                sum(&mut self.held, amounts);
                ("granted", Some(scope))
            }
            Event::HoldDenied { scope, .. } => ("denied", Some(scope)),
            Event::HoldExtended { added, .. } => {
                sum(&mut self.held, added);
                ("extended", None)
            }
            Event::HoldSettled { scope, used, late, .. } => {
                sum(&mut self.settled, used);
                (if *late { "settled_late" } else { "settled" }, Some(scope))
            }
            Event::LeaseDrawn { scope, used, .. } => {
                sum(&mut self.settled, used);
                ("drawn", Some(scope))
            }
            Event::HoldVoided { .. } => ("voided", None),
            Event::HoldExpired { .. } => ("expired", None),
            Event::HoldRevoked { .. } => ("revoked", None),
            Event::UsageReported { scope, .. } => ("reported", Some(scope)),
            Event::UsageCorrected { .. } => ("corrected", None),
            Event::ThresholdReached(_) => ("threshold_reached", None),
            Event::NotificationEnded { .. } => ("notification_ended", None),
            Event::CommandRefused { .. } => ("refused", None),
            Event::RateLimitSet(_)
            | Event::ConcurrencyLimitSet { .. }
            | Event::PriceSet(_)
            | Event::MeterDefined { .. }
            | Event::WebhookSet { .. } => ("configured", None),
        };
        let depth = scope.map_or(0, |scope| scope.enclosing().count());
        *self.decisions.entry((outcome, i64::try_from(depth).unwrap_or(i64::MAX))).or_default() += 1;
    }
}

fn sum(sums: &mut BTreeMap<String, u64>, amounts: &Amounts) {
    for (meter, amount) in amounts.iter() {
        let sum = sums.entry(meter.name().to_owned()).or_default();
        *sum = sum.saturating_add(amount);
    }
}
