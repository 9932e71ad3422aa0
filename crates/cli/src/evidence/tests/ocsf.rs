//! OCSF events have what version 1.9 of the schema requires of their class.

use std::fs;

use exchequer_event::v1::{self, budget_event, event};
use serde_json::{Value as Json, json};

use super::{
    lines::write_lines,
    world::{Log, World, check, trust},
};
use crate::evidence::{lines::Rendering, pack::Scope, report::Verdict, verify::Target};

/// Attributes that the schema requires of every class.
const BASE: [&str; 9] = [
    "/activity_id",
    "/category_uid",
    "/class_uid",
    "/metadata/product",
    "/metadata/version",
    "/severity_id",
    "/time",
    "/type_uid",
    "/metadata",
];

/// Class, category, and what the class requires beside the base.
const CLASSES: [(u64, u64, &[&str]); 4] = [
    (0, 0, &[]),
    (1007, 1, &["/actor", "/device/type_id", "/process"]),
    (6002, 6, &["/app"]),
    (6003, 6, &["/actor", "/api/operation", "/src_endpoint"]),
];

/// Objects that have to have one of these attributes, where they are there.
const AT_LEAST_ONE: [(&str, &[&str]); 8] = [
    ("/actor", &["process", "user", "session", "app_name", "app_uid"]),
    ("/actor/user", &["account", "name", "uid"]),
    ("/app", &["name", "uid"]),
    ("/device", &["ip", "uid", "name", "hostname", "instance_uid", "interface_uid", "interface_name"]),
    ("/message_context", &["application", "service"]),
    ("/metadata/product", &["name", "uid"]),
    ("/process", &["pid", "uid", "cpid"]),
    ("/src_endpoint", &["ip", "uid", "name", "hostname", "svc_name", "instance_uid", "domain"]),
];

fn check_required(event: &Json) {
    for path in BASE {
        assert!(event.pointer(path).is_some_and(|value| !value.is_null()), "{path} is missing in {event}");
    }
    let number = |path: &str| event.pointer(path).and_then(Json::as_u64).unwrap();
    let class = CLASSES.iter().find(|(class, ..)| *class == number("/class_uid"));
    let (class, category, required) = class.unwrap();
    assert_eq!(number("/category_uid"), *category);
    assert_eq!(number("/type_uid"), class * 100 + number("/activity_id"));
    for path in *required {
        assert!(event.pointer(path).is_some_and(|value| !value.is_null()), "{path} is missing in {event}");
    }
    for (path, names) in AT_LEAST_ONE {
        if let Some(object) = event.pointer(path) {
            assert!(names.iter().any(|name| object.get(name).is_some()), "{path} is empty in {event}");
        }
    }
    if let Some(file) = event.pointer("/process/file") {
        assert!(file["name"].is_string() && file["type_id"].is_u64());
    }
    assert!(number("/time") > 0 && number("/severity_id") <= 6, "{event}");
    assert_eq!(event["metadata"]["version"], "1.9.0");
    let profiles = event["metadata"]["profiles"].as_array().unwrap();
    assert!(profiles.contains(&json!("record_integrity")));
    let attestation = &event["attestation_list"][0];
    assert!(attestation["authority_uid"].is_string() && attestation["chain_uid"].is_string());
    let fingerprint = &attestation["fingerprint"];
    assert_eq!((&fingerprint["algorithm_id"], fingerprint["value"].as_str().unwrap().len()), (&json!(3), 64));
    assert_eq!(profiles.contains(&json!("ai_operation")), event.get("message_context").is_some());
}

/// Every kind of entry and event that there is.
fn world() -> World {
    let mut world = World::new();
    let finished = |cause: v1::ExitCause, exit_code| {
        event::Kind::ExecutionFinished(v1::ExecutionFinished {
            cause: cause.into(),
            exit_code,
            usage: Some(v1::Usage { wall_us: 12_345, ..v1::Usage::default() }),
            ..v1::ExecutionFinished::default()
        })
    };
    let admitted = v1::ExecutionAdmitted {
        caller: "alice".into(),
        profile: "default".into(),
        program: "/usr/bin/python3".into(),
        arguments_redacted: vec!["-c".into(), "print(1)".into()],
        ..v1::ExecutionAdmitted::default()
    };
    let denied = v1::ExecutionDenied {
        caller: "alice".into(),
        gate: v1::DenialGate::Budget.into(),
        reason: "exhausted".into(),
        program: "/bin/true".into(),
        ..v1::ExecutionDenied::default()
    };
    world.events(
        1,
        vec![
            (
                "",
                event::Kind::AgentStarted(v1::AgentStarted { version: "1.2.3".into(), ..Default::default() }),
            ),
            ("acme", event::Kind::ExecutionAdmitted(admitted)),
            ("acme", finished(v1::ExitCause::Exited, 0)),
            ("acme", finished(v1::ExitCause::Seccomp, 0)),
            ("acme", event::Kind::ExecutionDenied(denied)),
            ("acme", event::Kind::ControlDegraded(v1::ControlDegraded::default())),
            ("", event::Kind::AgentStopped(v1::AgentStopped { reason: "done".into() })),
        ],
    );
    let settled = |meter: &str, amount| v1::HoldSettled {
        used: vec![v1::MeterAmount { meter: meter.into(), amount }],
        ..v1::HoldSettled::default()
    };
    let decision =
        |kind| v1::Decision { events: vec![v1::BudgetEvent { kind: Some(kind) }], ..v1::Decision::default() };
    let run = |decisions| v1::DecisionRun { tenant: "acme".into(), decisions };
    world.runs(
        2_000,
        vec![
            run(vec![decision(budget_event::Kind::HoldDenied(v1::HoldDenied::default()))]),
            run(vec![
                decision(budget_event::Kind::HoldSettled(settled("input_tokens", 70))),
                decision(budget_event::Kind::HoldSettled(settled("output_tokens", 5))),
                decision(budget_event::Kind::HoldSettled(settled("output_tokens", 6))),
            ]),
        ],
    );
    world.refused();
    world
}

fn events(log: &Log) -> Vec<Json> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("ocsf.ndjson");
    let size = log.size();
    write_lines(
        log,
        Rendering::Ocsf,
        Scope::Range { first: 0, end: size },
        &(0..size).collect::<Vec<_>>(),
        &out,
    );
    let report = check(&Target::Pack(out.clone()), &trust());
    assert_eq!(report.verdict, Verdict::Holds, "{report}");
    fs::read_to_string(&out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn every_kind_of_entry_becomes_an_event_with_all_that_its_class_requires() {
    let events = events(&world().log());
    events.iter().for_each(check_required);
    let types: Vec<_> = events.iter().map(|event| event["type_uid"].as_u64().unwrap()).collect();
    let expected = [
        600_301, 600_301, 600_301, 600_301, 99, 600_203, 100_701, 100_702, 100_702, 600_301, 99, 600_204, 99,
        600_303, 600_303, 99,
    ];
    assert_eq!(types, expected);
}

#[test]
fn an_execution_is_a_process_that_is_launched_and_ends() {
    let events = events(&world().log());
    let (launch, end, killed, denied) = (&events[6], &events[7], &events[8], &events[9]);
    assert_eq!(launch["process"]["cmd_line"], "/usr/bin/python3 -c print(1)");
    assert_eq!(launch["process"]["file"]["name"], "python3");
    assert_eq!(launch["actor"]["user"]["uid"], "alice");
    assert_eq!(launch["process"]["uid"], end["process"]["uid"]);
    assert_eq!(launch["metadata"]["tenant_uid"], "acme");
    assert_eq!((&end["exit_code"], &end["duration"], &end["status_id"]), (&json!(0), &json!(12), &json!(1)));
    assert_eq!((&killed["severity_id"], &killed["status_code"]), (&json!(4), &json!("EXIT_CAUSE_SECCOMP")));
    assert_eq!(killed.get("exit_code"), None);
    assert_eq!(denied["api"]["response"]["error"], "DENIAL_GATE_BUDGET");
    // An entry without a clock takes the time of the one before it.
    assert_eq!((&events[4]["time"], &events[3]["time"]), (&json!(1), &json!(1)));
    assert_eq!((&events[13]["time"], &launch["time"]), (&json!(2_000), &json!(1_002)));
}

#[test]
fn settled_tokens_are_an_ai_operation() {
    let events = events(&world().log());
    let tokens = &events[14]["message_context"];
    assert_eq!((&tokens["prompt_tokens"], &tokens["completion_tokens"]), (&json!(70), &json!(11)));
    assert_eq!(tokens["total_tokens"], 81);
    assert_eq!((events[13].get("message_context"), &events[13]["severity_id"]), (None, &json!(2)));
}
