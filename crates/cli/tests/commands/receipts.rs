//! `exchequer budget receipt` and `exchequer verify-replay`: what shows a decision, and what shows the state.

use std::fs;

use serde_json::Value as Json;

use crate::up::{Up, copy, exchequer, until};

/// The decision runs of a tenant that the signed log shows, with their stream sequences.
fn decisions(up: &Up, tenant: &str) -> Vec<(u64, Json)> {
    let runs =
        up.run("log show", &["--tenant", tenant, "--kind", "decision-run", "--format", "json", "--all"]);
    let runs = runs.json_lines();
    let each = runs.iter().flat_map(|run| {
        let entry = &run["entry"];
        let decisions = entry["decision_run"]["decisions"].as_array().unwrap();
        decisions.iter().map(move |decision| (entry["stream_seq"].as_u64().unwrap(), decision.clone()))
    });
    each.collect()
}

/// The decision whose first event is of this kind.
fn find(up: &Up, tenant: &str, kind: &str) -> (u64, Json) {
    until(kind, || {
        decisions(up, tenant).into_iter().find(|(_, decision)| decision["events"][0].get(kind).is_some())
    })
}

#[test]
fn a_stranger_checks_the_receipt_of_a_denial_with_the_logs_key_alone() {
    let up = Up::start();
    up.run("budget set", &["--scope", "acme", "invocations=1"]).ok();
    up.run("budget set", &["--scope", "globex", "invocations=1"]).ok();
    up.run("run", &["--tenant", "acme", "--", "true"]).ok();
    up.run("run", &["--tenant", "acme", "--", "true"]).fails(1, &["RESOURCE_EXHAUSTED"]);
    let (seq, denied) = find(&up, "acme", "hold_denied");
    let (seq, key) = (seq.to_string(), denied["idempotency_key"].as_str().unwrap().to_owned());
    let user = up.token(&["--subject", "alice", "--tenant", "acme", "--role", "user"]);
    let path = up.path("denied.receipt");
    let out = path.to_str().unwrap();
    let ask = |token: &str, rest: &[&str]| {
        up.run("budget receipt", &[&["--token", token, "--wait", "1s"], rest].concat())
    };
    let said = ask(&user, &["--stream-seq", &seq, "--key", &key, "--out", out]).ok();
    assert!(said.contains("acme has 0 of invocations left, 1 requested"), "{said}");

    // Another tenant's token finds nothing, at this sequence or any other.
    let other = up.token(&["--subject", "bob", "--tenant", "globex", "--role", "user"]);
    ask(&other, &["--stream-seq", &seq, "--key", &key]).fails(2, &["shows this token no decision"]);
    ask(&other, &["--stream-seq", &seq, "--key", &key, "--tenant", "acme"]).fails(1, &["PERMISSION_DENIED"]);
    ask(&user, &["--stream-seq", "1", "--key", &key]).fails(2, &["shows this token no decision"]);
    ask(&user, &["--stream-seq", &seq, "--key", "another"]).fails(2, &["no decision about", "another"]);

    let granted = find(&up, "acme", "hold_granted");
    let hold = granted.1["events"][0]["hold_granted"]["hold_id"].as_str().unwrap();
    let receipt = ask(&user, &["--stream-seq", &granted.0.to_string(), "--hold", hold]).ok();
    let held = up.path("held.receipt");
    fs::write(&held, receipt).unwrap();

    // Offline: everything is stopped.
    let vkey = up.client("verifier_key");
    let (status, data) = up.stop();
    assert_eq!(status, 0);
    let check = |file: &str, rest: &[&str]| {
        exchequer(
            [&["budget", "receipt", "--verify", data.path().join(file).to_str().unwrap()], rest].concat(),
        )
    };
    let said = check("denied.receipt", &["--vkey", &vkey]).ok();
    assert!(said.starts_with("HOLDS: receipt") && said.contains("given by you"), "{said}");
    assert!(said.contains("hold denied at acme"), "{said}");
    let report = check("held.receipt", &["--vkey", &vkey, "--format", "json"]).json_lines().remove(0);
    let event = &report["decided"]["decisions"][0]["events"][0];
    assert_eq!(
        (&report["verdict"], &event["hold_granted"]["hold_id"]),
        (&Json::from("holds"), &Json::from(hold))
    );
    let path = data.path().join("denied.receipt");
    exchequer(["verify", path.to_str().unwrap(), "--key", &vkey]).ok();
    assert!(check("denied.receipt", &[]).ok().contains("not whose log it is"));
    let stranger = "exchequer.local/log+a028356e+ASDdwtwtY3f5rpB3efD2TO5vIzkDYrD+TImqOAoq0suK";
    assert_eq!(check("denied.receipt", &["--vkey", stranger]).status, 1);
    let said = check("nowhere", &["--vkey", &vkey]);
    assert!(said.status == 2 && said.stdout.starts_with("COULD NOT CHECK"), "{}", said.stdout);

    // A denial that is made a smaller one is no longer the decision that was signed.
    let text = fs::read_to_string(&path).unwrap();
    let mut receipt: Json = serde_json::from_str(&text).unwrap();
    let entry = receipt["entries"].as_array_mut().unwrap().last_mut().unwrap();
    let bytes = entry["entry"].as_str().unwrap().to_owned();
    let at = bytes.len() / 2;
    let changed = if bytes.as_bytes()[at] == b'A' { "B" } else { "A" };
    fs::write(&path, text.replace(&bytes, &format!("{}{changed}{}", &bytes[..at], &bytes[at + 1..])))
        .unwrap();
    let said = check("denied.receipt", &["--vkey", &vkey]);
    assert_eq!(said.status, 1, "{}", said.stdout);
    assert!(said.stdout.starts_with("TAMPERED") && said.stdout.contains("do not lead to the signed root"));
    assert!(!said.stdout.contains("hold denied"), "{}", said.stdout);
}

#[test]
fn a_stopped_service_is_replayed_from_nothing_and_its_snapshots_are_compared() {
    let work = |scope: &str, runs: usize| {
        let up = Up::start();
        up.run("budget set", &["--scope", scope, "invocations=50"]).ok();
        for _ in 0..runs {
            up.run("run", &["--tenant", scope, "--", "true"]).ok();
        }
        up
    };
    let up = work("acme", 3);
    let data = up.path("").to_str().unwrap().to_owned();
    exchequer(["verify-replay", "--data", &data]).fails(2, &["in use"]);
    let (_, first) = up.stop();
    let replay = |rest: &[&str]| exchequer([&["verify-replay"], rest].concat());
    let first = first.path().to_str().unwrap();
    let text = replay(&["--data", first]).ok();
    assert!(text.starts_with("EQUAL: 1 partition replayed") && text.contains("decisions/s"), "{text}");
    let outcome = replay(&["--data", first, "--format", "json"]).json_lines().remove(0);
    let compared = outcome["compared"].as_array().unwrap();
    assert!(!compared.is_empty() && compared.iter().all(|one| one["equal"] == true), "{outcome}");
    // A budget, three holds, and three settlements unless the last one came too late.
    assert!(outcome["decisions"].as_u64().unwrap() >= 6, "{outcome}");

    // With another deployment's snapshots there is no equality; with none, nothing to say.
    let (_, second) = work("globex", 5).stop();
    let foreign = second.path().join("metering");
    let said = replay(&["--data", first, "--metering", foreign.to_str().unwrap()]);
    assert!(said.status == 1 || said.stdout.contains("no message of that sequence"), "{}", said.stdout);
    assert!(!said.stdout.starts_with("EQUAL"), "{}", said.stdout);
    let stream = second.path().join("stream");
    assert_ne!(replay(&["--data", first, "--stream", stream.to_str().unwrap()]).status, 0);
    let bare = tempfile::tempdir().unwrap();
    copy(std::path::Path::new(first), bare.path());
    fs::remove_dir_all(bare.path().join("metering/snapshots")).unwrap();
    let data = bare.path().to_str().unwrap();
    replay(&["--data", data]).fails(2, &["holds no snapshots"]);
    fs::remove_dir_all(bare.path().join("stream")).unwrap();
    replay(&["--data", data, "--metering", foreign.to_str().unwrap()])
        .fails(2, &["is no stream's directory"]);
    replay(&["--nats", "nats://127.0.0.1:1", "--data", first]).fails(2, &["--nats"]);
}
