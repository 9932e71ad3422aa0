//! The agent's metrics.

use std::sync::OnceLock;

use exchequer_event::metered::{METERS, Metered};
use exchequer_telemetry::{KeyValue, LATENCY_SECONDS, meter};
use opentelemetry::metrics::{Counter, Gauge, Histogram, UpDownCounter};

macro_rules! instrument {
    ($(#[$doc:meta])* $name:ident: $type:ty = $build:expr) => {
        $(#[$doc])*
        pub(crate) fn $name() -> &'static $type {
            static INSTRUMENT: OnceLock<$type> = OnceLock::new();
            INSTRUMENT.get_or_init(|| $build)
        }
    };
}

instrument! {
    /// Executions that ended or were denied, by outcome.
    executions: Counter<u64> = meter()
        .u64_counter("exchequer_agent_executions_total")
        .with_description("Executions by outcome: an exit cause, or the gate that denied them.")
        .build()
}
instrument! {
    /// Denials that were not recorded.
    unrecorded_denials: Counter<u64> = meter()
        .u64_counter("exchequer_agent_unrecorded_denials_total")
        .with_description("Denials that were answered but not recorded: the spool is full or broken, or one tenant's are too many.")
        .build()
}
instrument! {
    /// What became of requests to egress proxies.
    egress_requests: Counter<u64> = meter()
        .u64_counter("exchequer_agent_egress_requests_total")
        .with_description("Requests of programs to the egress proxy: connections made, refused by the policy, failed on the way.")
        .build()
}
instrument! {
    /// Executions running now.
    running: UpDownCounter<i64> = meter()
        .i64_up_down_counter("exchequer_agent_running_executions")
        .with_description("Executions between admission and outcome.")
        .build()
}
instrument! {
    /// Requests that wait for a slot.
    waiting: UpDownCounter<i64> = meter()
        .i64_up_down_counter("exchequer_agent_waiting_executions")
        .with_description("Requests that wait for a slot to run in.")
        .build()
}
instrument! {
    /// From the request to its slot, or to its refusal for want of one.
    wait_seconds: Histogram<f64> = meter()
        .f64_histogram("exchequer_agent_wait_seconds")
        .with_description("From the request to its slot, or to its refusal for want of one, in seconds.")
        .with_boundaries(LATENCY_SECONDS.to_vec())
        .build()
}
instrument! {
    /// From the request to the durable admission.
    admission_seconds: Histogram<f64> = meter()
        .f64_histogram("exchequer_agent_admission_seconds")
        .with_description("From the request to the durable admission, in seconds.")
        .with_boundaries(LATENCY_SECONDS.to_vec())
        .build()
}
instrument! {
    /// Events handed to the stream, repetitions included.
    published_events: Counter<u64> = meter()
        .u64_counter("exchequer_agent_published_events_total")
        .with_description("Events handed to the stream, repetitions included.")
        .build()
}
instrument! {
    /// Failures after which publishing began again.
    publish_retries: Counter<u64> = meter()
        .u64_counter("exchequer_agent_publish_retries_total")
        .with_description("Times that publishing went back to the last confirmed event.")
        .build()
}
instrument! {
    /// The last seq that the stream acknowledged.
    published_seq: Gauge<u64> = meter()
        .u64_gauge("exchequer_agent_published_seq")
        .with_description("Seq of the last event that the stream acknowledged.")
        .build()
}
instrument! {
    /// The last seq that a receipt covers.
    confirmed_seq: Gauge<u64> = meter()
        .u64_gauge("exchequer_agent_confirmed_seq")
        .with_description("Seq of the last event that a signed receipt of the ledger covers.")
        .build()
}
instrument! {
    /// Bytes in the spool.
    spool_bytes: Gauge<u64> = meter()
        .u64_gauge("exchequer_agent_spool_bytes")
        .with_description("Bytes of events that are kept.")
        .build()
}
instrument! {
    /// The last seq that the local audit log holds.
    audit_log_seq: Gauge<u64> = meter()
        .u64_gauge("exchequer_agent_audit_log_seq")
        .with_description("Seq of the last event that the local audit log holds.")
        .build()
}
instrument! {
    /// Failures of the local audit log.
    audit_log_failures: Counter<u64> = meter()
        .u64_counter("exchequer_agent_audit_log_failures_total")
        .with_description("Times that the local audit log could not be opened or written.")
        .build()
}

instrument! {
    /// Admissions, by what pays.
    admissions: Counter<u64> = meter()
        .u64_counter("exchequer_agent_admissions_total")
        .with_description("Executions admitted, by what pays for them: a hold of their own, or the slice of a lease.")
        .build()
}
instrument! {
    /// Calls about leases.
    lease_calls: Counter<u64> = meter()
        .u64_counter("exchequer_agent_lease_calls_total")
        .with_description("Calls to metering about leases by outcome: granted, extended, denied, ended, unavailable, returned.")
        .build()
}
instrument! {
    /// Slices.
    slices: Gauge<u64> = meter()
        .u64_gauge("exchequer_agent_slices")
        .with_description("Slices of budgets that are held by leases now.")
        .build()
}
instrument! {
    /// What is left of all slices.
    slices_left: Gauge<u64> = meter()
        .u64_gauge("exchequer_agent_slices_left")
        .with_description("What is left of all slices together, by meter, in the unit that its name says.")
        .build()
}

/// Counts an admission by what pays.
pub(crate) fn count_admission(payer: &'static str) {
    admissions().add(1, &[KeyValue::new("payer", payer)]);
}

/// Counts a call about a lease by its outcome.
pub(crate) fn count_lease_call(outcome: &'static str) {
    lease_calls().add(1, &[KeyValue::new("outcome", outcome)]);
}

/// Says how many slices there are, and what is left of them.
pub(crate) fn record_slices(listed: &[exchequer_event::v1::Slice]) {
    slices().record(listed.len() as u64, &[]);
    let left: Vec<_> =
        listed.iter().filter(|slice| !slice.closed).flat_map(|slice| slice.left.clone()).collect();
    for (name, amount) in METERS.into_iter().zip(Metered::among(&left).0) {
        slices_left().record(amount, &[KeyValue::new("meter", name)]);
    }
}

/// Counts a request to an egress proxy by its outcome.
pub(crate) fn count_egress(outcome: &'static str) {
    egress_requests().add(1, &[KeyValue::new("outcome", outcome)]);
}

/// Counts an execution by its outcome.
pub(crate) fn count_execution(outcome: &'static str) {
    executions().add(1, &[KeyValue::new("outcome", outcome)]);
}
