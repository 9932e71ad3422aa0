//! Budgets by file, by verb and as they change, against a real service.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use serde_json::Value as Json;

use crate::up::{Said, Up, until};

const FILE: &str = "\
tenants:
  acme:
    webhook: http://127.0.0.1:9/budgets
    meters: {gpu_ms: Milliseconds on a GPU}
    prices:
      - {scope: acme, meter: gpu_ms, micros: 40}
    rate_limits:
      - {scope: acme/skills, meter: invocations, amount: 100, period: 1m, burst: 20}
    concurrency_limits:
      - {scope: acme, max_open_holds: 50}
    budgets:
      - scope: acme
        window: month
        time_zone: Europe/Vienna
        overage: overdraft
        carry_debt: true
        amounts:
          cpu_ms: 36_000_000
          cost_micros: {granted: 500_000_000, overdraft: 50_000_000, rollover_cap: 100_000_000}
        thresholds: [50%, 400_000_000, forecast 100%]
        grants:
          - {id: extra, meter: cost_micros, amount: 100_000_000, priority: 1, expires: 2100-01-01}
          - {id: every, meter: cpu_ms, amount: 600_000, recurring: true, rollover_cap: 600_000}
      - {scope: acme, amounts: {invocations: 1000}}
      - {scope: acme/skills, window: day, enforcement: soft, amounts: {invocations: 5, gpu_ms: 60_000}}
";

/// What `apply` or `diff` says of a file.
fn with(up: &Up, verb: &str, file: &str, rest: &[&str]) -> Said {
    let path = up.path("budgets.yaml");
    fs::write(&path, file).unwrap();
    up.run(&format!("budget {verb}"), &[&["-f", path.to_str().unwrap()], rest].concat())
}

#[test]
fn a_file_is_applied_once_and_what_differs_is_shown_and_what_it_does_not_name_pruned() {
    let up = Up::start();
    let diff = |file: &str| with(&up, "diff", file, &[]);
    let apply = |file: &str, rest: &[&str]| with(&up, "apply", file, rest);
    let first = diff(FILE);
    assert_eq!(first.status, 1, "{}", first.stderr);
    assert_eq!(first.stdout.matches("\n  + ").count(), 12, "{}", first.stdout);
    assert!(apply(FILE, &["--dry-run"]).ok().ends_with("12 changes; nothing was applied\n"));
    assert!(apply(FILE, &[]).ok().ends_with("12 changes, applied\n"));
    assert_eq!(diff(FILE).ok(), "no changes\n");
    assert_eq!(apply(FILE, &["--prune"]).ok(), "no changes\n");

    let changed = FILE.replace("36_000_000", "36_000_001").replace("soft", "hard");
    let text = apply(&changed, &[]).ok();
    for part in ["~ budget of acme, month, cpu_ms: granted 36000000 → 36000001", "enforcement soft → hard"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(diff(&changed).ok(), "no changes\n");
    let settings = up.run("budget settings", &["--tenant", "acme"]).ok();
    assert!(settings.contains("100 of invocations per 1m, 20 at once"), "{settings}");
    let table = up.run("budget show", &["--scope", "acme"]).ok();
    assert!(table.contains("month") && table.contains("extra") && table.contains("Europe/Vienna"), "{table}");

    // A grant can't be changed, and then nothing else is.
    let regranted = changed.replace("amount: 600_000,", "amount: 1,").replace("36_000_001", "1");
    apply(&regranted, &[]).fails(1, &["a grant can't be changed", "grant every"]);
    assert_eq!(diff(&changed).ok(), "no changes\n");

    // What is not named stays, until it is pruned.
    let little = "tenants: {acme: {budgets: [{scope: acme, amounts: {invocations: 1000}}]}}";
    let kept = apply(little, &[]).ok();
    assert_eq!(
        kept,
        "no changes\n11 more that the file does not name stay as they are; --prune removes them\n"
    );
    let text = apply(little, &["--prune"]).ok();
    assert!(text.contains("10 changes, applied") && text.contains("meters can't be removed"), "{text}");
    let documents = up.run("budget show", &["--tenant", "acme", "--format", "json"]).json_lines().remove(0);
    assert_eq!(documents.as_array().unwrap().len(), 1, "{documents}");
    assert!(with(&up, "diff", little, &["--prune"]).ok().starts_with("no changes"));
}

#[test]
fn a_file_with_faults_and_a_token_without_the_role_change_nothing() {
    let up = Up::start();
    let said = with(&up, "apply", "tenants:\n  acme:\n    budgets:\n      - {window: year, limit: 5}\n", &[]);
    assert_eq!(said.status, 2);
    for part in ["line 4: tenants.acme.budgets[0].limit: there is no such field", "budgets.yaml has 4 faults"]
    {
        assert!(said.stderr.contains(part), "{part}: {}", said.stderr);
    }
    up.run("budget apply", &["-f", "/no/such"]).fails(2, &["/no/such"]);
    let user = up.token(&["--subject", "alice", "--tenant", "acme", "--role", "user"]);
    with(&up, "apply", FILE, &["--token", &user]).stderr.contains("PERMISSION_DENIED").then_some(()).unwrap();
    assert_eq!(with(&up, "diff", FILE, &[]).status, 1);
}

#[test]
fn single_settings_are_set_shown_and_taken_back_by_verbs() {
    let up = Up::start();
    let run = |verb: &str, rest: &[&str]| up.run(&format!("budget {verb}"), rest);
    let set = ["--scope", "acme", "--window", "day", "--enforcement", "soft", "--threshold", "80%"];
    let table = run("set", &[&set[..], &["invocations=50", "cost_micros=1_000"]].concat()).ok();
    assert!(table.contains("day") && table.contains("soft; reported at 80%"), "{table}");
    run(
        "grant add",
        &["--id", "g", "--scope", "acme", "--window", "day", "--meter", "cost_micros", "--amount", "5"],
    )
    .ok();
    assert!(
        run("show", &["--scope", "acme"]).ok().contains("\ng "),
        "{}",
        run("show", &["--scope", "acme"]).stdout
    );
    assert!(run("grant revoke", &["--tenant", "acme", "g"]).ok().contains("g ended with 5 left"));
    run("grant revoke", &["--tenant", "acme", "g"]).fails(1, &[]);
    run("meter", &["--tenant", "acme", "gpu_ms", "--description", "GPU"]).ok();
    run("price", &["--scope", "acme", "--meter", "gpu_ms", "--micros", "4"]).ok();
    run("limit rate", &["--scope", "acme", "--meter", "invocations", "--amount", "9", "--per", "1s"]).ok();
    run("limit holds", &["--scope", "acme", "--max", "3"]).ok();
    run("webhook", &["--tenant", "acme", "http://127.0.0.1:9/x"]).ok();
    let all = run("settings", &["--tenant", "acme"]).ok();
    for part in [
        "4 millionths per 1 of gpu_ms",
        "9 of invocations per 1s",
        "at most 3",
        "meter        gpu_ms",
        "127.0.0.1:9/x",
    ] {
        assert!(all.contains(part), "{part}: {all}");
    }
    run("price", &["--scope", "acme", "--meter", "gpu_ms", "--remove"]).ok();
    run("limit rate", &["--scope", "acme", "--meter", "invocations", "--remove"]).ok();
    run("limit holds", &["--scope", "acme", "--remove"]).ok();
    run("webhook", &["--tenant", "acme", "--none"]).ok();
    assert_eq!(run("settings", &["--tenant", "acme"]).ok(), "meter        gpu_ms: GPU\n");

    up.run("run", &["--tenant", "acme", "--", "true"]).ok();
    until("the settlement", || {
        let table = run("show", &["--scope", "acme", "--format", "json"]).json_lines().remove(0);
        let balances = table["balances"].as_array().unwrap().clone();
        balances.iter().any(|of| of["meter"] == "invocations" && of["spent"] == 1).then_some(())
    });
    let correct = ["--scope", "acme", "--reason", "test", "--idempotency-key", "c1", "invocations=1"];
    assert!(run("correct", &correct).ok().contains("taken back from acme"));
    let table = run("show", &["--scope", "acme", "--format", "json"]).json_lines().remove(0);
    assert!(
        table["balances"]
            .as_array()
            .unwrap()
            .iter()
            .all(|of| of["spent"] == 0 || of["meter"] != "invocations")
    );
    assert_eq!(run("holds", &["--scope", "acme"]).ok().lines().count(), 1);
    run("hold revoke", &["0_nowhere", "--reason", "x"]).fails(1, &[]);
    assert!(run("remove", &["--scope", "acme", "--window", "day"]).ok().contains("removed"));
    assert_eq!(run("show", &["--tenant", "acme"]).ok().lines().count(), 1);
}

#[test]
fn balances_are_watched_as_they_change() {
    let up = Up::start();
    up.run("budget set", &["--scope", "acme", "invocations=50"]).ok();
    let mut watch = up.command("budget watch", &["acme", "--format", "json", "--count", "3"]);
    let mut watch = watch.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = || -> Json { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let first = next();
    assert_eq!((&first["scope"], &first["balance"]["available"]), (&Json::from("acme"), &Json::from(50)));
    up.run("budget set", &["--scope", "acme", "invocations=60"]).ok();
    assert_eq!(next()["balance"]["available"], 60);
    up.run("budget set", &["--scope", "acme/skills", "--window", "hour", "cpu_ms=5"]).ok();
    let below = next();
    assert_eq!((&below["scope"], &below["window"]), (&Json::from("acme/skills"), &Json::from("hour")));
    assert_eq!(watch.wait().unwrap().code(), Some(0));
    up.run("budget watch", &["a//b"]).fails(1, &["INVALID_ARGUMENT"]);
}
