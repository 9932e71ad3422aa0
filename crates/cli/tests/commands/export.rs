//! `exchequer export`: scopes, formats, following, and what it says where it can't.
//!
//! Left out: what each format holds (`evidence/tests`).

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;

use crate::up::{Up, exchequer, until};

/// Runs a few programs and waits until a checkpoint covers them.
fn with_work() -> Up {
    let up = Up::start();
    up.run("budget set", &["--scope", "acme", "invocations=50"]).ok();
    work(&up, 2);
    up
}

fn work(up: &Up, runs: usize) {
    let before = finished(up);
    for _ in 0..runs {
        up.run("run", &["--tenant", "acme", "--", "true"]).ok();
    }
    until("the executions in the log", || (finished(up) >= before + runs).then_some(()));
}

fn finished(up: &Up) -> usize {
    up.run("log show", &["--tenant", "acme"]).ok().matches("exited 0").count()
}

fn verdict(path: &Path, key: &str) -> Json {
    exchequer(["verify", path.to_str().unwrap(), "--key", key, "--format", "json"]).json_lines().remove(0)
}

#[test]
fn every_scope_and_format_is_written_and_verifies() {
    let up = with_work();
    let key = up.client("verifier_key");
    let all: [(&str, &[&str]); 5] = [
        ("tenant", &["--tenant", "acme"]),
        ("time", &["--from", "2020-01-01", "--until", "2100-01-01T00:00:00Z"]),
        ("tenant-time", &["--tenant", "acme", "--from", "2020-01-01"]),
        ("range", &["--range", "2..9"]),
        ("first", &["--range", "0..1"]),
    ];
    for (name, scope) in all {
        for format in ["native", "ndjson", "ocsf"] {
            let out = up.path(&format!("{name}.{format}"));
            let rest =
                [scope, &["--format", format, "--report", "json", "--out", out.to_str().unwrap()]].concat();
            let said = up.run("export", &rest).json_lines().remove(0);
            let report = verdict(&out, &key);
            assert_eq!(report["verdict"], "holds", "{name} {format}: {report}");
            assert_eq!(report["checked"]["entries"], said["entries"]);
            assert_eq!(
                (&said["resumed"], said["report"]["verdict"].as_str()),
                (&Json::from(0), Some("holds"))
            );
        }
    }
    // A tenant's user exports what is the tenant's, and nothing else.
    let user = up.token(&["--subject", "alice", "--tenant", "acme", "--role", "user"]);
    let out = up.path("own.pack");
    let out = out.to_str().unwrap();
    up.run("export", &["--token", &user, "--tenant", "acme", "--out", out]).ok();
    up.run("export", &["--token", &user, "--tenant", "globex", "--out", out])
        .fails(1, &["PERMISSION_DENIED"]);
    up.run("export", &["--token", &user, "--range", "0..9", "--out", out]).fails(1, &["does not show entry"]);
}

#[test]
fn what_can_not_be_exported_is_said_with_the_status_that_tells_why() {
    let up = Up::start();
    let out = up.path("pack");
    let out = out.to_str().unwrap();
    let export = |rest: &[&str]| up.run("export", &[rest, &["--out", out]].concat());
    export(&["--range", "0..100000"]).fails(2, &["no range 0 up to 100000"]);
    export(&["--from", "2000-01-01", "--until", "2000-01-02"]).fails(2, &["no entry is of that time"]);
    export(&["--tenant", "A/b"]).fails(1, &["INVALID_ARGUMENT", "filter.tenant"]);
    export(&["--from", "2026-02-02", "--until", "2026-02-01"]).fails(2, &["--until"]);
    export(&[]).fails(2, &["--tenant"]);
    for bad in [&["--range", "5..5"][..], &["--range", "0..5", "--from", "1"], &["--from", "yesterday"]] {
        assert_eq!(export(bad).status, 2);
    }
    assert_eq!(up.run("export", &["--tenant", "acme"]).status, 2, "without --out");
    up.run("export", &["--range", "0..1", "--out", "/nowhere/at/all"]).fails(2, &["could not be written"]);
    export(&["--grpc", "127.0.0.1:1", "--token", "x", "--tenant", "acme"]).fails(2, &["can't be reached"]);
    assert!(!up.path("pack").exists() && !up.path("pack.partial").exists());
}

fn follow(up: &Up, dir: &Path) -> Child {
    let rest = ["--follow", dir.to_str().unwrap(), "--every", "0.05", "--report", "json"];
    up.command("export", &rest).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

fn segments(dir: &Path) -> usize {
    let files = fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "pack")).count()
}

#[test]
fn following_writes_segments_until_it_is_told_to_stop_and_goes_on_after_a_kill() {
    let up = with_work();
    let key = up.client("verifier_key");
    let dir = up.path("segments");
    for (signal, status) in [(Signal::KILL, None), (Signal::TERM, Some(0)), (Signal::INT, Some(0))] {
        let mut child = follow(&up, &dir);
        let before = segments(&dir);
        until("a first segment", || (segments(&dir) > 0).then_some(()));
        work(&up, 1);
        until("a segment more", || (segments(&dir) > before).then_some(()));
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), status, "{signal:?}");
        let report = verdict(&dir, &key);
        assert_eq!(
            (report["verdict"].as_str(), report["subject"].as_str()),
            (Some("holds"), Some("segments"))
        );
    }
    // With one of them gone there is a gap.
    let mut files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "pack"));
    files.sort();
    assert!(files.len() > 2);
    fs::remove_file(&files[1]).unwrap();
    let said = exchequer(["verify", dir.to_str().unwrap(), "--key", &key]);
    assert_eq!(said.status, 1, "{}", said.stdout);
    assert!(said.stdout.contains("are in no segment"), "{}", said.stdout);
}
