//! What records say: as JSON, by the protocol's own descriptors, and in a line for people.
//!
//! Left out: whether a record is genuine (`evidence`). Invariant: the JSON holds every field of the message; digests, signatures and
//! keys in hex, records within records decoded.

mod decisions;

use std::sync::LazyLock;

use exchequer_event::{
    entry, payload,
    v1::{self, control_record, entry::Kind, event},
};
use prost::{Message, bytes::Bytes};
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, MapKey, MessageDescriptor, ReflectMessage, Value,
};
use serde_json::{Map, Value as Json, json};

pub use decisions::decision_text;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(exchequer_proto::DESCRIPTORS).expect("the descriptors that this was built from")
});

/// Fields of bytes that hold an encoded message.
const NESTED: [(&str, &str); 9] = [
    ("LogEntry.entry", "Entry"),
    ("Entry.event", "Event"),
    ("Entry.decision_run", "DecisionRun"),
    ("BatchSealed.seal", "BatchSeal"),
    ("BlockSealed.seal", "BlockSeal"),
    ("SignedControl.record", "ControlRecord"),
    ("Equivocation.offered_seal", "BatchSeal"),
    ("Equivocation.offered_event", "Event"),
    ("SignedReceipt.receipt", "Receipt"),
];
const PACKAGE: &str = "exchequer.v1.";

/// A message of `exchequer.v1` as JSON. `name` is its name without the package.
pub fn to_json(name: &str, message: &impl Message) -> Json {
    decoded(name, &message.encode_to_vec()).unwrap_or(Json::Null)
}

fn decoded(name: &str, bytes: &[u8]) -> Option<Json> {
    let descriptor = POOL.get_message_by_name(&format!("{PACKAGE}{name}"))?;
    Some(object(&DynamicMessage::decode(descriptor, bytes).ok()?))
}

fn object(message: &DynamicMessage) -> Json {
    let descriptor: MessageDescriptor = message.descriptor();
    let mut fields = Map::new();
    for field in descriptor.fields() {
        // Scalars are shown also where they are zero, so that a reader finds every field of the kind it expects.
        if field.supports_presence() && !message.has_field(&field) {
            continue;
        }
        fields.insert(field.name().to_owned(), value(&field, &message.get_field(&field)));
    }
    Json::Object(fields)
}

fn value(field: &FieldDescriptor, value: &Value) -> Json {
    match value {
        Value::Bool(b) => json!(b),
        Value::I32(n) => json!(n),
        Value::I64(n) => json!(n),
        Value::U32(n) => json!(n),
        Value::U64(n) => json!(n),
        Value::F32(n) => json!(n),
        Value::F64(n) => json!(n),
        Value::String(text) => json!(text),
        Value::Bytes(bytes) => bytes_json(field, bytes),
        Value::EnumNumber(number) => {
            let kind = field.kind();
            let known = kind.as_enum().and_then(|descriptor| descriptor.get_value(*number));
            known.map_or(json!(number), |known| json!(known.name()))
        }
        Value::Message(message) => object(message),
        Value::List(items) => items.iter().map(|item| self::value(field, item)).collect(),
        Value::Map(entries) => {
            let pairs = entries.iter().map(|(key, item)| (map_key(key), self::value(field, item)));
            Json::Object(pairs.collect())
        }
    }
}

fn bytes_json(field: &FieldDescriptor, bytes: &Bytes) -> Json {
    let name = field.full_name().strip_prefix(PACKAGE).unwrap_or_default();
    if let Some((_, inner)) = NESTED.iter().find(|(outer, _)| *outer == name)
        && let Some(json) = decoded(inner, bytes)
    {
        return json;
    }
    match std::str::from_utf8(bytes) {
        Ok(note) if name.ends_with(".checkpoint") => json!(note),
        _ => json!(hex::encode(bytes)),
    }
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::String(text) => text.clone(),
        other => format!("{other:?}"),
    }
}

/// An entry in a line: index, time, kind, tenant, execution, agent and seq, what happened.
pub fn line(logged: &v1::LogEntry) -> String {
    let Ok(decoded) = entry::decode(&logged.entry) else {
        return format!("{:>6}  this is no entry", logged.index);
    };
    let facets = entry::facets(&decoded);
    let time = match facets.time_unix_ms {
        0 => "-".to_owned(),
        ms => utc(ms),
    };
    let kind = facets.kind.as_str_name().trim_start_matches("ENTRY_KIND_").to_lowercase();
    let mut text = format!("{:>6}  {time:<24}  {kind:<12}", logged.index);
    let of =
        |name: &str, value: &str| if value.is_empty() { String::new() } else { format!("  {name}{value}") };
    text += &of("tenant=", &facets.tenant);
    text += &of("execution=", &facets.execution_id);
    text += &of("skill=", &facets.skill);
    if facets.agent_seq > 0 {
        text += &of("agent=", &format!("{}/{}", facets.agent_id, facets.agent_seq));
    } else {
        text += &of("agent=", &facets.agent_id);
    }
    format!("{text}  {}", happened(&decoded))
}

fn happened(decoded: &v1::Entry) -> String {
    match &decoded.kind {
        Some(Kind::BatchSealed(sealed)) => match v1::BatchSeal::decode(sealed.seal.clone()) {
            Ok(seal) => {
                let last = seal.first_seq + u64::from(seal.count).saturating_sub(1);
                let skipped =
                    if sealed.skipped == 0 { String::new() } else { format!(", {} known", sealed.skipped) };
                format!("sealed events {} to {last} of epoch {}{skipped}", seal.first_seq, seal.epoch)
            }
            Err(_) => "unreadable seal".to_owned(),
        },
        Some(Kind::Event(bytes)) => match v1::Event::decode(bytes.clone()) {
            Ok(event) => match (&event.kind, payload::key_id(&event)) {
                (Some(kind), Some(id)) => format!("confidential (key {id}): {}", public_text(kind)),
                (Some(kind), None) => event_text(kind),
                (None, _) => "nothing".to_owned(),
            },
            Err(_) => "unreadable event".to_owned(),
        },
        Some(Kind::BlockSealed(sealed)) => match v1::BlockSeal::decode(sealed.seal.clone()) {
            Ok(seal) => {
                format!("sealed block {} of partition {}: {} runs", seal.index, seal.partition, seal.count)
            }
            Err(_) => "unreadable seal".to_owned(),
        },
        Some(Kind::DecisionRun(bytes)) => match v1::DecisionRun::decode(bytes.clone()) {
            Ok(run) => run.decisions.iter().map(decision_text).collect::<Vec<_>>().join("; "),
            Err(_) => "unreadable decisions".to_owned(),
        },
        Some(Kind::Control(signed)) => match v1::ControlRecord::decode(signed.record.clone()) {
            Ok(record) => control_text(&record),
            Err(_) => "unreadable control record".to_owned(),
        },
        Some(Kind::Rejection(rejection)) => {
            let reason =
                rejection.reason().as_str_name().trim_start_matches("REJECTION_REASON_").to_lowercase();
            format!(
                "rejected {} from {}: {reason}: {}",
                bytes_text(rejection.payload_size),
                rejection.subject,
                rejection.detail
            )
        }
        Some(Kind::Equivocation(two)) => {
            format!("two different events for {}/{} of epoch {}", two.agent_id, two.seq, two.epoch)
        }
        None => "nothing".to_owned(),
    }
}

fn event_text(kind: &event::Kind) -> String {
    match kind {
        event::Kind::AgentStarted(started) => {
            format!(
                "agent {} started on Linux {}; {}",
                started.version,
                started.kernel,
                controls_text(&started.controls)
            )
        }
        event::Kind::AgentStopped(stopped) => format!("agent stopped: {}", stopped.reason),
        event::Kind::ExecutionAdmitted(admitted) => {
            let command: Vec<_> = std::iter::once(admitted.program.as_str())
                .chain(admitted.arguments_redacted.iter().map(String::as_str))
                .collect();
            format!(
                "{} admitted for {} under {}: {}",
                command.join(" "),
                admitted.caller,
                admitted.scope,
                controls_text(&admitted.controls)
            )
        }
        event::Kind::ExecutionDenied(denied) => {
            let gate = denied.gate().as_str_name().trim_start_matches("DENIAL_GATE_").to_lowercase();
            format!("{} denied to {} by {gate}: {}", denied.program, denied.caller, denied.reason)
        }
        event::Kind::ExecutionFinished(finished) => {
            let usage = finished.usage.as_ref().map(usage_text).unwrap_or_default();
            format!("{}; {usage}", ending(finished))
        }
        event::Kind::ControlDegraded(degraded) => {
            let names: Vec<_> = degraded.controls.iter().map(|control| control.name.as_str()).collect();
            let consequence = if degraded.executed { "ran all the same" } else { "refused" };
            format!("missing {}: {consequence}", names.join(", "))
        }
    }
}

/// What is left to say of an event whose payload is not open.
fn public_text(kind: &event::Kind) -> String {
    match kind {
        event::Kind::ExecutionAdmitted(admitted) => {
            format!("admitted under {}: {}", admitted.scope, controls_text(&admitted.controls))
        }
        event::Kind::ExecutionDenied(denied) => {
            let gate = denied.gate().as_str_name().trim_start_matches("DENIAL_GATE_").to_lowercase();
            format!("denied by {gate}")
        }
        other => event_text(other),
    }
}

/// How an execution ended, in words.
pub fn ending(finished: &v1::ExecutionFinished) -> String {
    use v1::ExitCause::{
        Cancelled, CpuLimit, EgressLimit, Exited, LaunchFailed, Lost, OutOfMemory, OutputLimit, Seccomp,
        Signaled, Unspecified, WallLimit,
    };
    match finished.cause() {
        Exited => format!("exited {}", finished.exit_code),
        Signaled => format!("ended by signal {}", finished.signal),
        Seccomp => "killed by the kernel for a forbidden system call".to_owned(),
        WallLimit => "killed at its wall-clock limit".to_owned(),
        CpuLimit => "killed at its CPU limit".to_owned(),
        OutputLimit => "killed at its output limit".to_owned(),
        EgressLimit => "killed at its egress limit".to_owned(),
        OutOfMemory => "killed by the kernel at its memory limit".to_owned(),
        Cancelled => "cancelled".to_owned(),
        LaunchFailed if finished.detail.is_empty() => "could not be launched".to_owned(),
        LaunchFailed => format!("could not be launched: {}", finished.detail),
        Lost => "lost with the agent that ran it".to_owned(),
        Unspecified => "ended in an unknown way".to_owned(),
    }
}

/// What an execution used, in words.
pub fn usage_text(usage: &v1::Usage) -> String {
    let network = match (usage.egress_bytes, usage.ingress_bytes) {
        (0, 0) => String::new(),
        (sent, received) => format!(", sent {}, received {}", bytes_text(sent), bytes_text(received)),
    };
    format!(
        "cpu {}, wall {}, memory {} peak, output {}{network}",
        time_text(usage.cpu_user_us + usage.cpu_system_us),
        time_text(usage.wall_us),
        bytes_text(usage.peak_memory_bytes),
        bytes_text(usage.output_bytes)
    )
}

/// How many controls hold, and which don't.
pub fn controls_text(controls: &[v1::Control]) -> String {
    let missing: Vec<_> = controls
        .iter()
        .filter(|control| control.status() != v1::ControlStatus::Enforced)
        .map(|control| control.name.as_str())
        .collect();
    let held = controls.len() - missing.len();
    if missing.is_empty() {
        format!("all {held} controls enforced")
    } else {
        format!("{held} of {} controls enforced, missing {}", controls.len(), missing.join(", "))
    }
}

/// Amounts as `cpu_ms=5 invocations=1`.
pub fn amounts_text(amounts: &[v1::MeterAmount]) -> String {
    let pairs: Vec<_> = amounts.iter().map(|amount| format!("{}={}", amount.meter, amount.amount)).collect();
    pairs.join(" ")
}

fn control_text(record: &v1::ControlRecord) -> String {
    use control_record::Kind;
    let key = |role: v1::KeyRole, holder: &str, key: &[u8]| {
        let role = role.as_str_name().trim_start_matches("KEY_ROLE_").to_lowercase();
        format!("{role} key {} of {holder}", hex::encode(key))
    };
    let what = match &record.kind {
        Some(Kind::Genesis(genesis)) => format!("log {} begins", genesis.origin),
        Some(Kind::KeyEnrolled(enrolled)) => {
            format!("{} enrolled", key(enrolled.role(), &enrolled.holder, &enrolled.public_key))
        }
        Some(Kind::KeyRevoked(revoked)) => {
            format!(
                "{} revoked: {}",
                key(revoked.role(), &revoked.holder, &revoked.public_key),
                revoked.reason
            )
        }
        Some(Kind::DurabilityDegraded(degraded)) => format!("durability degraded: {}", degraded.detail),
        Some(Kind::StreamLost(lost)) => format!(
            "the broker lost messages {} to {}: {} put back, {} appended again",
            lost.from, lost.to, lost.refilled, lost.reappended
        ),
        Some(Kind::StreamRefilled(refilled)) => {
            format!("stands for the lost message {}: {} entries", refilled.seq, refilled.entries.len())
        }
        None => "nothing".to_owned(),
    };
    format!("{what} (by {})", record.actor)
}

fn time_text(us: u64) -> String {
    if us < 10_000 { format!("{us} µs") } else { format!("{} ms", us / 1000) }
}

/// A size with a unit.
pub fn bytes_text(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// Milliseconds since the Unix epoch as `2026-11-22T01:02:03.456Z`.
pub fn utc(unix_ms: u64) -> String {
    let (days, in_day) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    // Years from March on, in eras of 400 years, put the leap day last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (seconds, ms) = (in_day / 1000, in_day % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_dates() {
        for (ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (1_795_309_323_456, "2026-11-22T01:02:03.456Z"),
        ] {
            assert_eq!(utc(ms), expected);
        }
    }

    #[test]
    fn an_entry_is_decoded_through_its_nested_records_with_zeros_and_hex() {
        let finished = v1::ExecutionFinished {
            cause: v1::ExitCause::Exited.into(),
            result_digest: vec![0xab; 2].into(),
            ..v1::ExecutionFinished::default()
        };
        let event = v1::Event {
            agent_id: "a1".into(),
            seq: 7,
            tenant: "acme".into(),
            kind: Some(event::Kind::ExecutionFinished(finished)),
            ..v1::Event::default()
        };
        let entry = v1::Entry { stream_seq: 3, kind: Some(Kind::Event(event.encode_to_vec().into())) };
        let logged = v1::LogEntry { index: 9, entry: entry.encode_to_vec().into(), ..Default::default() };
        let json = to_json("LogEntry", &logged);
        assert_eq!(json["index"], 9);
        let inner = &json["entry"]["event"];
        assert_eq!(inner["seq"], 7);
        assert_eq!(inner["execution_finished"]["cause"], "EXIT_CAUSE_EXITED");
        assert_eq!(inner["execution_finished"]["exit_code"], 0);
        assert_eq!(inner["execution_finished"]["result_digest"], "abab");
        assert!(inner.get("agent_started").is_none());
        let line = line(&logged);
        assert!(
            line.contains("tenant=acme") && line.contains("agent=a1/7") && line.contains("exited 0"),
            "{line}"
        );
    }
}
