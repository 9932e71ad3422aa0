//! Every command, as a process, against a running `exchequer up`.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod audits;
mod budgets;
mod bundles;
mod confidential;
mod export;
mod profiles;
mod receipts;
mod replays;
mod served;
mod spool;
mod up;
mod witnesses;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use serde_json::Value as Json;
use up::{Up, copy, exchequer, until};

#[test]
fn a_program_runs_with_its_own_output_and_exit_status() {
    let up = Up::start();
    up.run("budget set", &["--scope", "acme", "invocations=50"]).ok();
    let run = |rest: &[&str]| up.run("run", &[&["--tenant", "acme"], rest].concat());

    let said = run(&["--", "echo", "hello"]);
    assert_eq!((said.status, said.stdout.as_str()), (0, "hello\n"), "{}", said.stderr);
    for part in ["exited 0", "cpu ", "hold ", "invocations=1", "controls enforced", "recorded as local/"] {
        assert!(said.stderr.contains(part), "`{part}` is missing in: {}", said.stderr);
    }
    let said = run(&["--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((said.status, said.stdout.as_str()), (7, "out\n"));
    assert!(said.stderr.starts_with("err\n"), "{}", said.stderr);
    assert_eq!(run(&["--", "sh", "-c", "kill -SEGV $$"]).status, 128 + 11);
    assert_eq!(run(&["--wall-ms", "200", "--", "sleep", "30"]).status, 137);
    assert_eq!(run(&["--", "/no/such/program"]).status, 127);
    let (given, kept) = (up.path("given"), up.path("kept"));
    fs::write(&given, "from a file").unwrap();
    let (given, kept) = (format!("in={}", given.display()), format!("out={}", kept.display()));
    run(&["--input", &given, "--output", &kept, "--", "cp", "in", "out"]).ok();
    assert_eq!(fs::read_to_string(up.path("kept")).unwrap(), "from a file");
    let said = run(&["--output", &kept, "--", "true"]);
    assert_eq!(said.status, 1);
    assert!(said.stderr.contains("output out: "), "{}", said.stderr);
    assert_eq!(fs::read_to_string(up.path("kept")).unwrap(), "from a file");
    assert_eq!(run(&["--env", "A=b c", "--", "sh", "-c", "echo $A"]).ok(), "b c\n");
    let said = up.run_with(b"through", "run", &["--tenant", "acme", "--stdin", "--", "cat"]);
    assert_eq!(said.stdout, "through", "{}", said.stderr);

    let parts = run(&["--format", "json", "--", "echo", "x"]).json_lines();
    assert_eq!(parts[0]["admitted"]["record"]["scope"], "acme");
    assert_eq!(parts[1]["stdout_base64"], "eAo=");
    assert_eq!(parts[2]["finished"]["record"]["cause"], "EXIT_CAUSE_EXITED");
    assert_eq!(parts[2]["finished"]["record"]["exit_code"], 0);
}

#[test]
fn a_data_directory_is_checked_and_repaired_when_its_ledger_is_stopped() {
    let up = Up::start();
    up.run("budget set", &["--scope", "acme", "invocations=5"]).ok();
    let ledger = up.path("ledger").to_str().unwrap().to_owned();
    exchequer(["fsck", &ledger]).fails(2, &["in use by another process"]);
    let (status, data) = up.stop();
    assert_eq!(status, 0);
    let fsck = |rest: &[&str]| exchequer([&["fsck", &*ledger], rest].concat());
    assert!(fsck(&[]).ok().starts_with("SOUND"));
    let tiles = data.path().join("ledger/log/tile/0/000.p");
    let tile = fs::read_dir(tiles).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&tile).unwrap();
    fs::write(&tile, &whole[..40]).unwrap();
    let said = fsck(&["--format", "json"]);
    let report: Json = serde_json::from_str(&said.stdout).unwrap();
    let found = &report["findings"][0];
    assert_eq!((said.status, &found["class"]), (1, &Json::from("tile_truncated")), "{}", said.stdout);
    assert_eq!((&found["repair"], &found["repaired"]), (&Json::from("entries"), &Json::from(false)));
    assert!(fsck(&["--repair"]).ok().starts_with("REPAIRED"));
    assert!(fs::read(&tile).unwrap() == whole && fsck(&[]).ok().starts_with("SOUND"));
    exchequer(["fsck", "/nowhere"]).fails(2, &["/nowhere"]);
}

#[test]
fn a_refusal_names_the_scope_and_the_meter_that_bind() {
    let up = Up::start();
    let run = |rest: &[&str]| up.run("run", &[rest, &["--", "true"]].concat());
    run(&["--tenant", "acme"]).fails(1, &["FAILED_PRECONDITION", "no budget covers scope acme"]);
    let table = up.run("budget set", &["--scope", "acme", "invocations=1", "cpu_ms=100000"]).ok();
    assert!(table.starts_with("SCOPE  WINDOW"), "{table}");
    run(&["--tenant", "acme", "--scope", "skills/sh"]).ok();
    let binding = ["RESOURCE_EXHAUSTED", "scope=acme", "meter=invocations", "requested=1", "available=0"];
    run(&["--tenant", "acme", "--scope", "skills/sh"]).fails(1, &binding);

    let usage = until("the settlement", || {
        let usage = up.run("usage", &["--scope", "acme", "--format", "json"]).json_lines().remove(0);
        (usage["settled_holds"] == 1).then_some(usage)
    });
    let spent =
        |meter: &str| usage["spent"].as_array().unwrap().iter().find(|of| of["meter"] == meter).unwrap();
    assert_eq!(spent("invocations")["amount"], 1);
    let shown = up.run("budget show", &["--tenant", "acme", "--format", "json"]).json_lines();
    let balance =
        shown[0][0]["balances"].as_array().unwrap().iter().find(|of| of["meter"] == "invocations").unwrap();
    assert_eq!((&balance["spent"], &balance["available"]), (&Json::from(1), &Json::from(0)));
    assert!(up.run("usage", &["--scope", "acme"]).ok().contains("1 settled, 0 open"));
}

#[test]
fn a_caller_may_do_what_its_token_says_and_nothing_else() {
    let up = Up::start();
    up.run("budget set", &["--scope", "acme", "invocations=9"]).ok();
    let run = ["--tenant", "acme", "--", "true"];
    let user = up.token(&["--subject", "alice", "--tenant", "acme", "--role", "user"]);
    let other = up.token(&["--subject", "bob", "--tenant", "other", "--role", "user"]);
    let with = |token: &str, verb: &str, rest: &[&str]| up.run(verb, &[&["--token", token], rest].concat());
    with(&user, "run", &run).ok();
    with(&other, "run", &run).fails(1, &["PERMISSION_DENIED", "tenant `acme`"]);
    with(&user, "budget set", &["--scope", "acme", "invocations=99"])
        .fails(1, &["PERMISSION_DENIED", "tenant-admin"]);
    with(&user, "agent list", &[]).fails(1, &["PERMISSION_DENIED"]);
    with("nonsense", "run", &run).fails(1, &["UNAUTHENTICATED"]);
    // Other addresses are not sent the data directory's token.
    up.run("run", &[&["--grpc", &up.client("grpc")], &run[..]].concat()).fails(1, &["UNAUTHENTICATED"]);

    until("the execution in the log", || {
        with(&user, "log show", &[]).ok().contains("exited 0").then_some(())
    });
    assert_eq!(with(&other, "log show", &[]).ok(), "");
    up.run("budget set", &["--scope", "a//b", "cpu_ms=1"]).fails(1, &["INVALID_ARGUMENT", "scope"]);
    up.run("run", &["--tenant", "acme", "--cpu-ms", "999999999", "--", "true"])
        .fails(1, &["INVALID_ARGUMENT", "limits.cpu_ms", "maximum"]);
    up.run("usage", &["--grpc", "127.0.0.1:1", "--scope", "acme"])
        .fails(2, &["metering at 127.0.0.1:1 can't be reached"]);
    exchequer(["usage", "--data", "/nowhere", "--scope", "acme"])
        .fails(2, &["no service is named", "/nowhere/client.json"]);
}

#[test]
fn the_log_can_be_read_followed_and_proved() {
    let up = Up::start();
    up.run("budget set", &["--scope", "acme", "invocations=9"]).ok();
    up.run("run", &["--tenant", "acme", "--skill", "sum-up", "--", "echo", "--password=hunter2"]).ok();
    let entries = until("the outcome in the log", || {
        let entries =
            up.run("log show", &["--tenant", "acme", "--kind", "event", "--format", "json"]).json_lines();
        (entries.len() == 2).then_some(entries)
    });
    let event = &entries[1]["entry"]["event"];
    assert_eq!(event["execution_finished"]["cause"], "EXIT_CAUSE_EXITED");
    let execution = event["execution_id"].as_str().unwrap();
    assert!(!entries[0].to_string().contains("hunter2"));

    let text = up.run("log show", &["--execution", execution]).ok();
    for part in ["tenant=acme", execution, "skill=sum-up", "agent=local/", "/usr/bin/echo", "exited 0"] {
        assert!(text.contains(part), "`{part}` is missing in:\n{text}");
    }
    let finished = ["--event-kind", "execution-finished", "--event-kind", "execution-denied"];
    let found = up.run("log show", &[&["--skill", "sum-up"], &finished[..]].concat()).ok();
    assert!(found.lines().count() == 1 && found.contains("exited 0"), "{found}");
    assert_eq!(up.run("log show", &["--skill", "another"]).ok(), "");
    up.run("log show", &["--skill", "A skill"]).fails(1, &["INVALID_ARGUMENT", "filter.skill"]);
    let said = up.run("log show", &["--event-kind", "party"]);
    assert!(said.status == 2 && said.stderr.contains("expected agent-started, "), "{}", said.stderr);
    let index = entries[1]["index"].to_string();
    assert!(up.run("log show", &["--index", &index]).ok().contains("exited 0"));
    assert_eq!(up.run("log tail", &["--from", "0", "--count", "3"]).ok().lines().count(), 3);
    assert_eq!(up.run("log show", &["--limit", "2"]).ok().lines().count(), 2);
    assert!(up.run("log heads", &[]).ok().contains("local"));
    // Nothing is signed before its key is enrolled.
    assert_eq!(up.run("log show", &["--kind", "rejection"]).ok(), "");

    let (proof, entry) = (up.path("proof"), up.path("entry"));
    let out = ["--out", proof.to_str().unwrap(), "--entry-out", entry.to_str().unwrap()];
    up.run("log prove", &[&[&index[..]], &out[..]].concat()).ok();
    let proof = exchequer_tlog::TlogProof::parse(&fs::read(proof).unwrap()).unwrap();
    let key: exchequer_tlog::VerifierKey = up.client("verifier_key").parse().unwrap();
    let origin = key.name().to_owned();
    let policy = exchequer_tlog::Policy { origin, log_keys: vec![key], witnesses: Vec::new(), quorum: 0 };
    proof.verify(&fs::read(entry).unwrap(), &policy).unwrap();
    up.run("log prove", &["99999999"]).fails(1, &[]);
    let stranger = "exchequer.local/log+a028356e+ASDdwtwtY3f5rpB3efD2TO5vIzkDYrD+TImqOAoq0suK";
    up.run("log prove", &[&index, "--key", stranger]).fails(1, &["does not hold"]);
}

#[test]
fn evidence_holds_and_a_changed_byte_is_named() {
    let up = Up::start();
    up.run("budget set", &["--scope", "acme", "invocations=9"]).ok();
    up.run("run", &["--tenant", "acme", "--", "echo", "hello"]).ok();
    until("the outcome in the log", || {
        up.run("log show", &["--tenant", "acme"]).ok().contains("exited 0").then_some(())
    });
    let key = up.client("verifier_key");
    let verify = |target: &str| up.run("verify", &[target, "--key", &key, "--format", "json"]);
    let report = verify(&up.url()).json_lines().remove(0);
    assert_eq!((&report["verdict"], &report["key_given"]), (&Json::from("holds"), &Json::from(true)));
    assert!(report["checked"]["events"].as_u64().unwrap() >= 3, "{report}");

    let pack = up.path("acme.pack");
    let said = up.run("export", &["--tenant", "acme", "--out", pack.to_str().unwrap()]).ok();
    assert!(said.contains("verified"), "{said}");
    let report = verify(pack.to_str().unwrap()).json_lines().remove(0);
    assert_eq!(report["scope"]["tenant"], "acme");

    let (status, data) = up.stop();
    assert_eq!(status, 0);
    let ledger = data.path().join("ledger");
    let text = exchequer(["verify", ledger.to_str().unwrap(), "--key", &key]).ok();
    assert!(text.starts_with("HOLDS"), "{text}");
    let altered = data.path().join("altered");
    copy(&ledger, &altered);
    let bundle = find(&altered, "entries").unwrap();
    let mut bytes = fs::read(&bundle).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&bundle, bytes).unwrap();
    let said = exchequer(["verify", altered.to_str().unwrap(), "--key", &key]);
    assert_eq!(said.status, 1, "{}{}", said.stdout, said.stderr);
    assert!(
        said.stdout.starts_with("TAMPERED") && said.stdout.contains("fault      entry "),
        "{}",
        said.stdout
    );

    let mut bytes = fs::read(&pack).unwrap_or_else(|_| fs::read(data.path().join("acme.pack")).unwrap());
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(data.path().join("altered.pack"), bytes).unwrap();
    let said = exchequer(["verify", data.path().join("altered.pack").to_str().unwrap(), "--key", &key]);
    assert_eq!(said.status, 1, "{}{}", said.stdout, said.stderr);
    let said = exchequer(["verify", "/nowhere"]);
    assert_eq!(said.status, 2, "{}{}", said.stdout, said.stderr);
}

/// A file with entries: of full width or of the widest partial one, which is what the checkpoint covers.
fn find(directory: &Path, below: &str) -> Option<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else if entry.path().components().any(|part| part.as_os_str() == below) {
                found.push(entry.path());
            }
        }
    }
    found.into_iter().max_by_key(|path| fs::metadata(path).unwrap().len())
}

#[test]
fn keys_are_enrolled_revoked_and_listed_and_capabilities_shown() {
    let up = Up::start();
    let file = up.path("worker.key");
    let public = exchequer(["key", file.to_str().unwrap()]).ok();
    let key = public.trim();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    up.run("agent enroll", &["--id", "worker-2", "--key", key]).ok();
    let listed = |state: &str| {
        until("the key's state", || {
            let text = up.run("agent list", &[]).ok();
            text.lines()
                .any(|line| line.contains(key) && line.contains("worker-2") && line.contains(state))
                .then_some(())
        });
    };
    listed("enrolled");
    up.run("agent revoke", &["--id", "worker-2", "--key", key, "--reason", "lost"]).ok();
    listed("revoked");
    up.run("agent enroll", &["--id", "worker-2", "--key", "00"]).fails(2, &["--key"]);
    let text = up.run("agent capabilities", &[]).ok();
    assert!(text.contains("no_new_privs") && text.contains("NoNewPrivs 1"), "{text}");
    let vkey = exchequer(["key", file.to_str().unwrap(), "--origin", "example.org/log"]).ok();
    assert!(vkey.starts_with("example.org/log+"), "{vkey}");
}

#[test]
fn a_stop_is_clean_and_a_start_continues_the_same_log_and_budgets() {
    let up = Up::start();
    up.run("budget set", &["--scope", "acme", "invocations=1"]).ok();
    up.run("run", &["--tenant", "acme", "--", "true"]).ok();
    let key = up.client("verifier_key");
    assert_eq!(fs::metadata(up.path("client.json")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(up.said().contains(&up.client("token")) && up.said().contains(&key));
    let (status, data) = up.stop();
    assert_eq!(status, 0);
    let checkpoint = find(&data.path().join("ledger"), "checkpoint").unwrap();
    let before = data.path().join("before");
    fs::copy(checkpoint, &before).unwrap();

    let up = Up::start_in(data);
    assert_eq!(up.client("verifier_key"), key);
    up.run("run", &["--tenant", "acme", "--", "true"]).fails(1, &["RESOURCE_EXHAUSTED", "meter=invocations"]);
    assert!(up.run("log show", &["--agent", "local"]).ok().contains("agent stopped"));
    let said = up.run("verify", &[&up.url(), "--checkpoint", before.to_str().unwrap()]).ok();
    assert!(said.contains("continues"), "{said}");
    assert_eq!(up.stop().0, 0);
}

#[test]
fn a_second_process_may_not_use_the_same_data() {
    let up = Up::start();
    let data = up.path("");
    let said =
        exchequer(["up", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", data.to_str().unwrap()]);
    assert_eq!(said.status, 1, "{}{}", said.stdout, said.stderr);
    assert!(said.stderr.contains("embedded stream"), "{}", said.stderr);
}

#[test]
fn every_fault_of_the_configuration_is_listed_with_status_2() {
    let dir = exchequer_testkit::temp_dir();
    let file = dir.path().join("bad.toml");
    // Others may read it, and it is no key: a bad key file, too.
    let named = file.display();
    let bad = format!(
        "[ledger]\norigin = \"a b\"\ncheckpoint_interval = \"soon\"\nkey_file = \"{named}\"\n\
         [agent]\nid = \"Nobody\"\nmetering_url = \"http://x\"\nkey_file = \"{named}\"\ntoken_file = \"/nowhere\"\n\
         [metering]\nunheard_of = 1\nkey_file = \"{named}\"\n\
         [auth]\nissuer = \"i\"\njwks_file = \"/nowhere\"\n\
         [telemetry]\nlog_filter = \"info,x=loudest\"\notlp_endpoint = \"collector:4317\"\n\
         [stream]\nprefix = \"a.b\"\ncredentials_file = \"/nowhere\"\nmonitor_urls = [\"nats:8222\"]\n"
    );
    fs::write(&file, bad).unwrap();
    let data = dir.path().join("data");
    let (config, path) = (file.to_str().unwrap(), data.to_str().unwrap());
    let said = exchequer(["up", "--config", config, "--data", path, "--nats", "http://me:hunter2@nats"]);
    assert_eq!(said.status, 2, "{}", said.stderr);
    let keys = [
        "ledger.origin",
        "ledger.checkpoint_interval",
        "ledger.key_file",
        "agent.id",
        "agent.metering_url",
        "agent.key_file",
        "agent.token_file",
        "auth.audience",
        "auth.jwks_file",
        "metering.unheard_of",
        "metering.key_file",
        "telemetry.log_filter",
        "telemetry.otlp_endpoint",
        "stream.url",
        "stream.prefix",
        "stream.credentials_file",
        "stream.monitor_urls",
    ];
    for key in keys {
        assert!(said.stderr.contains(&format!("`{key}`: ")), "{key} is missing in: {}", said.stderr);
    }
    assert!(!said.stderr.contains("hunter2"), "{}", said.stderr);
    assert!(!data.exists());
    assert_eq!(exchequer(["up", "--check", "--data", path]).ok(), "");
    assert!(!data.exists());
    assert_eq!(exchequer(["run"]).status, 2);
}
