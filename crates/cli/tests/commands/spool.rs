//! An agent's spool and its local audit log, over a real execution.

use std::fs;

use serde_json::Value as Json;

use crate::up::{Up, exchequer, until};

#[test]
fn the_spools_state_is_shown_of_a_running_agent_and_of_a_stopped_one() {
    let up = Up::start();
    up.run("budget set", &["--scope", "acme", "invocations=5"]).ok();
    up.run("run", &["--tenant", "acme", "--", "true"]).ok();
    let status = until("every receipt", || {
        let status = up.run("spool status", &["--format", "json"]).json_lines().remove(0);
        (status["written"]["seq"] == status["confirmed"]["seq"]).then_some(status)
    });
    assert_eq!(
        (&status["written"]["agent_id"], &status["oldest_unconfirmed_unix_ms"]),
        (&Json::from("local"), &Json::from(0))
    );
    let shown = up.run("spool status", &[]).ok();
    for part in [
        "agent       local, epoch ",
        "nothing is unconfirmed",
        "0 executions",
        "publishing  works",
        "are admitted",
    ] {
        assert!(shown.contains(part), "`{part}` is missing in: {shown}");
    }
    let user = up.token(&["--subject", "alice", "--tenant", "acme", "--role", "user"]);
    up.run("spool status", &["--token", &user]).fails(1, &["PERMISSION_DENIED"]);
    let spool = up.path("agent").join("spool").to_str().unwrap().to_owned();
    exchequer(["spool", "status", &spool]).fails(2, &["in use by another process"]);
    let (_, _data) = up.stop();
    let found = exchequer(["spool", "status", &spool, "--format", "json"]).json_lines().remove(0);
    assert_eq!((&found["agent_id"], &found["open"]), (&Json::from("local"), &Json::Array(Vec::new())));
    // The admission, the outcome, the start and the stop.
    assert!(found["written"].as_u64().unwrap() >= 4, "{found}");
    assert!(exchequer(["spool", "status", &spool]).ok().contains("at least 0: so much was removed"));
    exchequer(["spool", "status", "/nowhere"]).fails(2, &["epoch file"]);
}

#[test]
fn the_local_audit_log_is_verified_and_its_first_broken_line_is_named() {
    let data = exchequer_testkit::temp_dir();
    let log = data.path().join("audit.ndjson");
    let config = format!("[agent.audit_log]\npath = \"{}\"\n", log.display());
    fs::write(data.path().join("config.toml"), config).unwrap();
    let up = Up::start_in(data);
    up.run("budget set", &["--scope", "acme", "invocations=5"]).ok();
    up.run("run", &["--tenant", "acme", "--", "true"]).ok();
    let (_, _data) = up.stop();
    let path = log.to_str().unwrap();
    let said = exchequer(["audit-log", "verify", path]).ok();
    assert!(said.starts_with("SOUND: ") && said.contains("agent local, from event 1 of epoch "), "{said}");
    let whole = fs::read_to_string(&log).unwrap();
    let events: Vec<Json> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        events.iter().any(|line| line["event"]["executionFinished"]["cause"] == "EXIT_CAUSE_EXITED"),
        "{whole}"
    );
    assert!(events.last().unwrap()["event"]["agentStopped"].is_object(), "the last line is the stop's");
    let changed = whole.replacen("\"acme\"", "\"evil\"", 1);
    let line = whole.lines().position(|line| line.contains("\"acme\"")).unwrap() + 1;
    fs::write(&log, changed).unwrap();
    let said = exchequer(["audit-log", "verify", path]);
    assert_eq!(said.status, 1);
    assert!(said.stdout.starts_with(&format!("BROKEN: {path} line {line}: ")), "{}", said.stdout);
    let said = exchequer(["audit-log", "verify", path, "--format", "json"]);
    let broken: Json = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((said.status, &broken["broken"]["line"]), (1, &Json::from(line)), "{}", said.stdout);
    exchequer(["audit-log", "verify", "/nowhere/audit"]).fails(2, &["/nowhere"]);
}
