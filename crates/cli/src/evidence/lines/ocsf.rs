//! Records as OCSF 1.9 events (<https://schema.ocsf.io>).
//!
//! | entry | class |
//! |---|---|
//! | `ExecutionAdmitted`, `ExecutionFinished` | Process Activity 1007: Launch, Terminate |
//! | `ExecutionDenied`, decision runs, keys and genesis | API Activity 6003 |
//! | `AgentStarted`, `AgentStopped` | Application Lifecycle 6002: Start, Stop |
//! | all others | Base Event 0, activity Other |
//!
//! Every event has the profile `record_integrity`: its attestation's fingerprint is the leaf hash of the entry in `raw_data`. Decision
//! runs that settle tokens have `ai_operation`. Left out: whatever the log does not hold; the network address of a caller is one such
//! thing, so `src_endpoint`, which API Activity requires, names the service that recorded the call. Invariant: every event has what its
//! class requires.

use exchequer_event::{
    entry::{self, Facets},
    payload::{self, KeyId},
    seal,
    v1::{self, ExitCause, budget_event, control_record, entry::Kind, event},
};
use prost::Message as _;
use serde_json::{Value as Json, json};

use super::{Place, json};

/// Version of the schema.
pub(super) const VERSION: &str = "1.9.0";

const INFORMATIONAL: u8 = 1;
const LOW: u8 = 2;
const MEDIUM: u8 = 3;
const HIGH: u8 = 4;

const SUCCESS: u8 = 1;
const FAILURE: u8 = 2;

/// A class with its category.
#[derive(Clone, Copy)]
enum Class {
    Base,
    ProcessActivity,
    ApplicationLifecycle,
    ApiActivity,
}

impl Class {
    fn uids(self) -> (u64, u64) {
        match self {
            Self::Base => (0, 0),
            Self::ProcessActivity => (1, 1007),
            Self::ApplicationLifecycle => (6, 6002),
            Self::ApiActivity => (6, 6003),
        }
    }
}

/// The author's clock, where an entry has one.
pub(super) fn time_of(decoded: &v1::Entry) -> Option<u64> {
    let time = match &decoded.kind {
        Some(Kind::Equivocation(equivocation)) => {
            seal::decode_event(&equivocation.offered_event).map_or(0, |event| event.time_unix_ms)
        }
        _ => entry::facets(decoded).time_unix_ms,
    };
    (time > 0).then_some(time)
}

/// The event of an entry.
pub(super) fn event(place: &Place<'_>, decoded: &v1::Entry, time_unix_ms: u64) -> Json {
    let facets = entry::facets(decoded);
    let mapped = map(decoded, &facets);
    let (category, class) = mapped.class.uids();
    let mut event = json!({
        "activity_id": mapped.activity,
        "attestation_list": [{
            "authority_uid": place.origin,
            "chain_uid": place.origin,
            "fingerprint": {
                "algorithm": "SHA-256",
                "algorithm_id": 3,
                "encoding": "Hex",
                "encoding_id": 1,
                "serialization": "RFC 6962 leaf of the exchequer.v1.Entry in raw_data",
                "serialization_id": 99,
                "value": place.leaf_hex,
            },
            "uid": format!("{}/{}", place.origin, place.index),
        }],
        "category_uid": category,
        "class_uid": class,
        "message": mapped.message,
        "metadata": {
            "event_code": mapped.code,
            "log_name": place.origin,
            "product": { "name": "Exchequer", "vendor_name": "Exchequer" },
            "profiles": ["record_integrity"],
            "sequence": place.index,
            "uid": format!("{}/{}", place.origin, place.index),
            "version": VERSION,
        },
        "raw_data": place.entry,
        "severity_id": mapped.severity,
        "time": time_unix_ms,
        "type_uid": class * 100 + u64::from(mapped.activity),
        "unmapped": { "exchequer": {
            "kind": json::kind_name(facets.kind),
            "leaf_hash": place.leaf,
            "proof": place.proof,
            "stream_seq": decoded.stream_seq,
        } },
    });
    if let Some(id) = payload_key(decoded) {
        event["unmapped"]["exchequer"]["payload_key_id"] = json!(id.to_string());
    }
    if !facets.skill.is_empty() {
        event["unmapped"]["exchequer"]["skill"] = json!(facets.skill);
    }
    if !facets.tenant.is_empty() {
        event["metadata"]["tenant_uid"] = json!(facets.tenant);
    }
    if !facets.execution_id.is_empty() {
        event["metadata"]["correlation_uid"] = json!(facets.execution_id);
    }
    if let Some(status) = mapped.status {
        event["status_id"] = json!(status);
    }
    for (name, value) in mapped.more {
        if name == "message_context" {
            event["metadata"]["profiles"] = json!(["ai_operation", "record_integrity"]);
        }
        event[name] = value;
    }
    event
}

/// The key that a part of an event is encrypted under: its fields are empty here.
fn payload_key(decoded: &v1::Entry) -> Option<KeyId> {
    let Some(Kind::Event(bytes)) = &decoded.kind else { return None };
    payload::key_id(&seal::decode_event(bytes).ok()?)
}

/// What an entry maps to beside what every event has.
struct Mapped {
    class: Class,
    activity: u8,
    severity: u8,
    status: Option<u8>,
    /// Name of what is recorded.
    code: &'static str,
    message: String,
    more: Vec<(&'static str, Json)>,
}

impl Mapped {
    fn base(code: &'static str, severity: u8, message: impl Into<String>) -> Self {
        let (class, activity, message) = (Class::Base, 99, message.into());
        Self { class, activity, severity, status: None, code, message, more: Vec::new() }
    }
}

fn map(decoded: &v1::Entry, facets: &Facets) -> Mapped {
    match &decoded.kind {
        Some(Kind::Event(bytes)) => match seal::decode_event(bytes) {
            Ok(event) => map_event(&event),
            Err(_) => Mapped::base("event", MEDIUM, "an event that can't be decoded"),
        },
        Some(Kind::DecisionRun(bytes)) => match seal::decode_run(bytes) {
            Ok(run) => map_run(&run),
            Err(_) => Mapped::base("decision_run", MEDIUM, "a decision run that can't be decoded"),
        },
        Some(Kind::Control(signed)) => match v1::ControlRecord::decode(signed.record.clone()) {
            Ok(record) => map_control(&record),
            Err(_) => Mapped::base("control", MEDIUM, "a control record that can't be decoded"),
        },
        Some(Kind::BatchSealed(_)) => Mapped::base(
            "batch_sealed",
            INFORMATIONAL,
            format!("seal of a batch of agent {}", facets.agent_id),
        ),
        Some(Kind::BlockSealed(_)) => Mapped::base("block_sealed", INFORMATIONAL, "seal of a decision block"),
        Some(Kind::Rejection(rejection)) => {
            Mapped::base("rejection", MEDIUM, format!("a message was not accepted: {}", rejection.detail))
        }
        Some(Kind::Equivocation(equivocation)) => {
            let message =
                format!("agent {} signed two different events for one place", equivocation.agent_id);
            Mapped::base("equivocation", HIGH, message)
        }
        None => Mapped::base("unknown", MEDIUM, "an entry without a kind"),
    }
}

fn recorder(agent_id: &str) -> Json {
    json!({ "app_name": "sandbox-agent", "app_uid": agent_id })
}

fn device(agent_id: &str) -> Json {
    json!({ "name": agent_id, "type_id": 0, "uid": agent_id })
}

fn process(event: &v1::Event) -> Json {
    json!({ "uid": event.execution_id })
}

fn map_event(event: &v1::Event) -> Mapped {
    let agent = &event.agent_id;
    match &event.kind {
        Some(event::Kind::ExecutionAdmitted(admitted)) => {
            let mut actor = recorder(agent);
            let mut process = process(event);
            let mut message = "an execution was launched; who launched what is confidential".to_owned();
            if event.confidential.is_none() {
                let name = admitted.program.rsplit('/').next().unwrap_or_default();
                actor["user"] = json!({ "uid": admitted.caller });
                process["cmd_line"] = json!(command_line(admitted));
                process["name"] = json!(name);
                process["file"] = json!({ "name": name, "path": admitted.program, "type_id": 0 });
                message = format!("{} launched {}", admitted.caller, admitted.program);
            }
            process["created_time"] = json!(event.time_unix_ms);
            process["sandbox"] = json!(admitted.profile);
            Mapped {
                class: Class::ProcessActivity,
                activity: 1,
                severity: INFORMATIONAL,
                status: Some(SUCCESS),
                code: "execution_admitted",
                message,
                more: vec![("actor", actor), ("device", device(agent)), ("process", process)],
            }
        }
        Some(event::Kind::ExecutionFinished(finished)) => map_finished(event, finished),
        Some(event::Kind::ExecutionDenied(denied)) => {
            let mut actor = recorder(agent);
            let gate = denied.gate().as_str_name();
            let mut api = json!({
                "operation": "Execute",
                "response": { "error": gate },
                "service": { "name": "exchequer.v1.AgentService" },
            });
            let mut message = "an execution was refused; who asked for what is confidential".to_owned();
            let mut more = vec![("src_endpoint", json!({ "svc_name": "sandbox-agent", "uid": agent }))];
            if event.confidential.is_none() {
                actor["user"] = json!({ "uid": denied.caller });
                api["response"]["error_message"] = json!(denied.reason);
                message = format!("{} was refused to launch {}", denied.caller, denied.program);
                more.push(("status_detail", json!(denied.reason)));
            }
            more.extend([("actor", actor), ("api", api)]);
            Mapped {
                class: Class::ApiActivity,
                activity: 1,
                severity: LOW,
                status: Some(FAILURE),
                code: "execution_denied",
                message,
                more,
            }
        }
        Some(event::Kind::AgentStarted(started)) => {
            lifecycle(agent, 3, "agent_started", Some(&started.version))
        }
        Some(event::Kind::AgentStopped(_)) => lifecycle(agent, 4, "agent_stopped", None),
        Some(event::Kind::ControlDegraded(degraded)) => {
            let names: Vec<_> = degraded.controls.iter().map(|control| control.name.as_str()).collect();
            let message = format!("controls that do not hold on agent {agent}: {}", names.join(", "));
            Mapped {
                more: vec![("device", device(agent))],
                ..Mapped::base("control_degraded", MEDIUM, message)
            }
        }
        None => Mapped::base("event", MEDIUM, "an event without a kind"),
    }
}

fn command_line(admitted: &v1::ExecutionAdmitted) -> String {
    let arguments = admitted.arguments_redacted.iter().map(String::as_str);
    std::iter::once(admitted.program.as_str()).chain(arguments).collect::<Vec<_>>().join(" ")
}

fn map_finished(event: &v1::Event, finished: &v1::ExecutionFinished) -> Mapped {
    let cause = finished.cause();
    let (severity, status) = match cause {
        ExitCause::Exited if finished.exit_code == 0 => (INFORMATIONAL, SUCCESS),
        ExitCause::Exited | ExitCause::Signaled | ExitCause::Cancelled => (INFORMATIONAL, FAILURE),
        ExitCause::Seccomp => (HIGH, FAILURE),
        ExitCause::Lost => (MEDIUM, FAILURE),
        _ => (LOW, FAILURE),
    };
    let mut process = process(event);
    process["terminated_time"] = json!(event.time_unix_ms);
    let mut more = vec![
        ("actor", recorder(&event.agent_id)),
        ("device", device(&event.agent_id)),
        ("process", process),
        ("status_code", json!(cause.as_str_name())),
    ];
    if cause == ExitCause::Exited {
        more.push(("exit_code", json!(finished.exit_code)));
    }
    if !finished.detail.is_empty() {
        more.push(("status_detail", json!(finished.detail)));
    }
    if let Some(usage) = &finished.usage {
        more.push(("duration", json!(usage.wall_us / 1000)));
    }
    Mapped {
        class: Class::ProcessActivity,
        activity: 2,
        severity,
        status: Some(status),
        code: "execution_finished",
        message: format!("execution {} ended: {}", event.execution_id, cause.as_str_name()),
        more,
    }
}

fn lifecycle(agent: &str, activity: u8, code: &'static str, version: Option<&str>) -> Mapped {
    let mut app = json!({ "name": "sandbox-agent", "uid": agent, "vendor_name": "Exchequer" });
    if let Some(version) = version {
        app["version"] = json!(version);
    }
    Mapped {
        class: Class::ApplicationLifecycle,
        activity,
        severity: INFORMATIONAL,
        status: Some(SUCCESS),
        code,
        message: format!("agent {agent} {}", if activity == 3 { "started" } else { "stopped" }),
        more: vec![("app", app)],
    }
}

fn map_run(run: &v1::DecisionRun) -> Mapped {
    let events =
        || run.decisions.iter().flat_map(|decision| &decision.events).filter_map(|event| event.kind.as_ref());
    let refused = events().any(|kind| {
        matches!(kind, budget_event::Kind::HoldDenied(_) | budget_event::Kind::CommandRefused(_))
    });
    let mut more = vec![
        ("actor", json!({ "app_name": "metering" })),
        ("api", json!({ "operation": "Decide", "service": { "name": "exchequer.v1.MeteringService" } })),
        ("src_endpoint", json!({ "svc_name": "metering" })),
    ];
    let tokens = |meter: &str| {
        let settled = events().filter_map(|kind| match kind {
            budget_event::Kind::HoldSettled(settled) => Some(&settled.used),
            _ => None,
        });
        let amounts = settled.flatten().filter(|amount| amount.meter == meter).map(|amount| amount.amount);
        amounts.reduce(u64::saturating_add)
    };
    let (prompt, completion) = (tokens("input_tokens"), tokens("output_tokens"));
    if prompt.is_some() || completion.is_some() {
        let (prompt, completion) = (prompt.unwrap_or(0), completion.unwrap_or(0));
        more.push((
            "message_context",
            json!({
                "completion_tokens": completion,
                "prompt_tokens": prompt,
                "service": { "name": "exchequer.v1.MeteringService" },
                "total_tokens": prompt.saturating_add(completion),
            }),
        ));
    }
    Mapped {
        class: Class::ApiActivity,
        activity: 3,
        severity: if refused { LOW } else { INFORMATIONAL },
        // A run holds the decisions on many calls; where all of them were granted, and only there, one status fits.
        status: (!refused).then_some(SUCCESS),
        code: "decision_run",
        message: format!("{} decisions on the budgets of tenant {}", run.decisions.len(), run.tenant),
        more,
    }
}

fn map_control(record: &v1::ControlRecord) -> Mapped {
    use control_record::Kind as Control;
    let (activity, operation, code, message) = match &record.kind {
        Some(Control::Genesis(genesis)) => {
            (1, "Genesis", "genesis", format!("the log {} began", genesis.origin))
        }
        Some(Control::KeyEnrolled(key)) => {
            (1, "EnrollKey", "key_enrolled", format!("a key of {} was enrolled", key.holder))
        }
        Some(Control::KeyRevoked(key)) => {
            (4, "RevokeKey", "key_revoked", format!("a key of {} was revoked: {}", key.holder, key.reason))
        }
        Some(Control::DurabilityDegraded(degraded)) => {
            return Mapped::base("durability_degraded", MEDIUM, degraded.detail.clone());
        }
        Some(Control::StreamLost(lost)) => {
            let message = format!("the stream lost messages from {} to {}", lost.from, lost.to);
            return Mapped::base("stream_lost", MEDIUM, message);
        }
        // What stands for a lost message is not an entry itself.
        Some(Control::StreamRefilled(_)) | None => {
            return Mapped::base("control", INFORMATIONAL, "a control record");
        }
    };
    Mapped {
        class: Class::ApiActivity,
        activity,
        severity: INFORMATIONAL,
        status: Some(SUCCESS),
        code,
        message,
        more: vec![
            ("actor", json!({ "app_name": "ledger", "user": { "uid": record.actor } })),
            ("api", json!({ "operation": operation, "service": { "name": "exchequer.v1.LedgerService" } })),
            ("src_endpoint", json!({ "svc_name": "ledger" })),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_confidential_of_an_event_is_left_out_and_the_key_named() {
        let confidential = v1::Confidential {
            key_id: vec![7; 16].into(),
            nonce: vec![0; 24].into(),
            ciphertext: vec![0; 48].into(),
            commitment: vec![0; 32].into(),
        };
        let kinds = [
            event::Kind::ExecutionAdmitted(v1::ExecutionAdmitted::default()),
            event::Kind::ExecutionDenied(v1::ExecutionDenied::default()),
        ];
        for kind in kinds {
            let (confidential, kind) = (Some(confidential.clone()), Some(kind));
            let event = v1::Event {
                agent_id: "a1".into(),
                epoch: 1,
                seq: 1,
                prev_hash: vec![0; 32].into(),
                time_unix_ms: 5,
                confidential,
                kind,
                ..v1::Event::default()
            };
            let entry = v1::Entry { stream_seq: 1, kind: Some(Kind::Event(event.encode_to_vec().into())) };
            let place = Place {
                origin: "test.local/log",
                index: 3,
                leaf: String::new(),
                leaf_hex: String::new(),
                proof: Vec::new(),
                entry: String::new(),
            };
            let shown = super::event(&place, &entry, 5);
            assert_eq!(shown["unmapped"]["exchequer"]["payload_key_id"], "07".repeat(16));
            assert!(shown["message"].as_str().unwrap().ends_with("is confidential"), "{shown}");
            let kept_back =
                ["/actor/user", "/process/cmd_line", "/process/file", "/process/name", "/status_detail"];
            for path in kept_back {
                assert_eq!(shown.pointer(path), None, "{shown}");
            }
            assert_eq!(shown.pointer("/api/response/error_message"), None);
        }
    }
}
