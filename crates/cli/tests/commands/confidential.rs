//! A tenant with a payload key: charged, found, proved and verified as ever, readable with the key, and unreadable for good without.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::Value as Json;

use super::up::{Up, exchequer, until};

/// Files below a directory that hold these bytes.
fn holding(directory: &Path, needle: &str) -> Vec<PathBuf> {
    let (mut open, mut found) = (vec![directory.to_owned()], Vec::new());
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else if fs::read(entry.path())
                .unwrap_or_default()
                .windows(needle.len())
                .any(|window| window == needle.as_bytes())
            {
                found.push(entry.path());
            }
        }
    }
    found
}

fn configured(key: &Path) -> String {
    format!("[[agent.confidential]]\ntenant = \"acme\"\nkey_file = \"{}\"\n", key.display())
}

fn events(up: &Up, tenant: &str, rest: &[&str]) -> Vec<Json> {
    let filter = ["--tenant", tenant, "--kind", "event", "--all", "--format", "json"];
    up.run("log show", &[&filter, rest].concat()).json_lines()
}

/// Waits until so many executions of the tenant have ended; its events.
fn settled(up: &Up, tenant: &str, executions: usize) -> Vec<Json> {
    until("the outcomes in the log", || {
        let events = events(up, tenant, &[]);
        let ended = events.iter().filter(|entry| entry["entry"]["event"].get("execution_finished").is_some());
        (ended.count() == executions).then_some(events)
    })
}

#[test]
fn a_tenants_payloads_are_opened_with_its_key_and_by_nobody_once_it_is_erased() {
    // Not in the data directory, where nothing readable may be.
    let keys = exchequer_testkit::temp_dir();
    let (file, other) = (keys.path().join("acme.key"), keys.path().join("other.key"));
    let (path, other) = (file.to_str().unwrap(), other.to_str().unwrap());
    let id = exchequer(["payload-key", "new", path]).ok();
    let id = id.trim();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(exchequer(["payload-key", "show", path]).ok().trim(), id);
    assert!(!fs::read_to_string(&file).unwrap().contains(id));
    exchequer(["payload-key", "new", path]).fails(2, &[path]);
    exchequer(["payload-key", "new", other]).ok();

    let data = exchequer_testkit::temp_dir();
    fs::write(data.path().join("config.toml"), configured(&file)).unwrap();
    let up = Up::start_in(data);
    for tenant in ["acme", "open"] {
        up.run("budget set", &["--scope", tenant, "invocations=3"]).ok();
        let caller = format!("caller-of-{tenant}");
        let token = up.token(&["--subject", &caller, "--tenant", tenant, "--role", "user"]);
        let argument = format!("argument-of-{tenant}");
        let said = up.run("run", &["--token", &token, "--tenant", tenant, "--", "echo", &argument]);
        // Its caller is told what it asked for.
        assert_eq!(said.ok().trim(), argument);
    }
    let recorded = settled(&up, "acme", 1);
    settled(&up, "open", 1);

    // Charged all the same.
    let usage = until("the settlement", || {
        let usage = up.run("usage", &["--scope", "acme", "--format", "json"]).json_lines().remove(0);
        (usage["settled_holds"] == 1).then_some(usage)
    });
    let spent = usage["spent"].as_array().unwrap().iter().find(|of| of["meter"] == "output_bytes").unwrap();
    assert_eq!(spent["amount"], "argument-of-acme\n".len());

    // Without the key.
    let text = up.run("log show", &["--tenant", "acme"]).ok();
    assert!(text.contains(&format!("confidential (key {id}): admitted under acme")), "{text}");
    assert!(text.contains(&format!("confidential (key {id}): exited 0")), "{text}");
    assert!(!text.contains("argument-of") && !text.contains("caller-of"), "{text}");
    assert_eq!(recorded[0]["entry"]["event"]["confidential"]["key_id"], id);
    assert_eq!(up.run("log show", &["--tenant", "acme", "--payload-key", other]).ok(), text);
    let text = up.run("log show", &["--tenant", "open"]).ok();
    assert!(text.contains("argument-of-open") && text.contains("caller-of-open"), "{text}");

    // With it.
    let text = up.run("log show", &["--tenant", "acme", "--payload-key", other, "--payload-key", path]).ok();
    assert!(text.contains("/usr/bin/echo argument-of-acme admitted for caller-of-acme"), "{text}");
    let index = recorded[0]["index"].to_string();
    let one = ["--index", &index, "--format", "json"];
    let opened = up.run("log show", &[&one[..], &["--payload-key", path]].concat()).json_lines().remove(0);
    let event = &opened["entry"]["event"];
    assert_eq!(event["execution_admitted"]["arguments_redacted"][0], "argument-of-acme");
    let tail = ["--tenant", "acme", "--kind", "event", "--from", "0", "--count", "1", "--payload-key", path];
    assert!(up.run("log tail", &tail).ok().contains("argument-of-acme"));

    // Who is shown one opening checks it without the key; it is good for its own entry only.
    let opening = keys.path().join("opening");
    fs::write(&opening, event["confidential"]["opening"].as_str().unwrap()).unwrap();
    let opening = ["--opening", opening.to_str().unwrap()];
    let shown = up.run("log show", &[&one[..], &opening].concat()).json_lines().remove(0);
    assert_eq!(shown, opened);
    let next = recorded[1]["index"].to_string();
    up.run("log show", &[&["--index", &next][..], &opening].concat())
        .fails(1, &[&format!("entry {next}: the payload is not what the event commits to")]);

    // No file of the data directory, logs of the process included, holds the payload; those of the other tenant are found.
    let holding = |needle: &str| holding(&up.path(""), needle);
    for what in ["argument-of", "caller-of"] {
        assert_eq!(holding(&format!("{what}-acme")), [] as [PathBuf; 0]);
        let found = holding(&format!("{what}-open"));
        for part in ["ledger", "spool", "stream"] {
            assert!(found.iter().any(|file| file.to_str().unwrap().contains(part)), "{part}: {found:?}");
        }
    }

    let key = up.client("verifier_key");
    let pack = up.path("acme.pack");
    up.run("export", &["--tenant", "acme", "--out", pack.to_str().unwrap()]).ok();
    up.run("verify", &[&up.url(), "--key", &key]).ok();
    let said = exchequer(["payload-key", "erase", path]);
    assert!(said.stderr.contains("backups"), "{}", said.stderr);
    assert_eq!(said.ok().trim(), id);
    up.run("log show", &["--tenant", "acme", "--payload-key", path]).fails(2, &[path]);
    for target in [up.url(), pack.to_str().unwrap().to_owned()] {
        let said = up.run("verify", &[&target, "--key", &key]).ok();
        assert!(said.starts_with("HOLDS"), "{said}");
    }

    // Without its key the agent does not start, rather than write in clear.
    let (_, data) = up.stop();
    let config = data.path().join("config.toml");
    // What a start finds, too; but should it find nothing, this ends all the same.
    let arguments =
        ["up", "--check", "--data", data.path().to_str().unwrap(), "--config", config.to_str().unwrap()];
    let said = exchequer(arguments);
    assert_eq!(said.status, 2, "{}{}", said.stdout, said.stderr);
    assert!(said.stderr.contains("agent.confidential[0].key_file"), "{}", said.stderr);

    // With a new one it does, and what was erased stays closed.
    exchequer(["payload-key", "new", path]).ok();
    let up = Up::start_in(data);
    let run = ["--tenant", "acme", "--", "echo", "argument-of-acme"];
    up.run("run", &run).ok();
    let ids: Vec<_> = settled(&up, "acme", 2)
        .iter()
        .map(|entry| entry["entry"]["event"]["confidential"]["key_id"].as_str().unwrap() == id)
        .collect();
    assert_eq!(ids, [true, true, false, false]);
    let text = up.run("log show", &["--tenant", "acme", "--payload-key", path]).ok();
    assert_eq!(text.matches("argument-of-acme").count(), 1, "{text}");
    assert_eq!(text.matches(&format!("confidential (key {id})")).count(), 2, "{text}");
    let said = up.run("verify", &[&up.url(), "--key", &key]).ok();
    assert!(said.starts_with("HOLDS"), "{said}");
}

#[test]
fn every_fault_of_a_confidential_tenant_is_told_before_anything_starts() {
    let dir = exchequer_testkit::temp_dir();
    let key = dir.path().join("a.key");
    exchequer(["payload-key", "new", key.to_str().unwrap()]).ok();
    let no_key = dir.path().join("agent.key");
    exchequer(["key", no_key.to_str().unwrap()]).ok();
    let config = dir.path().join("config.toml");
    let tables =
        [("acme", &key), ("acme", &key), ("a/b", &key), ("b", &no_key), ("c", &dir.path().join("none"))]
            .map(|(tenant, file)| configured(file).replace("acme", tenant));
    fs::write(&config, tables.concat() + "[[agent.confidential]]\n").unwrap();
    let data = dir.path().join("data");
    let said =
        exchequer(["up", "--check", "--config", config.to_str().unwrap(), "--data", data.to_str().unwrap()]);
    assert_eq!(said.status, 2, "{}", said.stderr);
    for fault in ["[1].tenant", "[2].tenant", "[3].key_file", "[4].key_file", "[5].tenant", "[5].key_file"] {
        assert!(said.stderr.contains(&format!("agent.confidential{fault}")), "{fault}: {}", said.stderr);
    }
    assert!(!said.stderr.contains("[0]"), "{}", said.stderr);
}
