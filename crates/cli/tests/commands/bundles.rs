//! `exchequer run --bundle`, `exchequer bundle` and `exchequer replay`: what came out of an execution, signed, checked and run again.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value as Json;

use crate::up::{Up, copy, exchequer, until};

/// Runs something and keeps its bundle.
fn kept(up: &Up, name: &str, rest: &[&str]) -> PathBuf {
    let directory = up.path(name);
    let bundle = ["--tenant", "acme", "--bundle", directory.to_str().unwrap()];
    up.run("run", &[&bundle, rest].concat()).ok();
    directory
}

fn verify(path: &Path, rest: &[&str]) -> crate::up::Said {
    exchequer([&["bundle", "verify", path.to_str().unwrap()], rest].concat())
}

/// The bundle does not hold, and this is said.
#[track_caller]
fn refused(path: &Path, rest: &[&str], expected: &str) {
    let said = verify(path, rest);
    assert_eq!(said.status, 1, "{}{}", said.stdout, said.stderr);
    assert!(said.stdout.starts_with("DOES NOT HOLD") && said.stdout.contains(expected), "{}", said.stdout);
}

fn agent_key(up: &Up) -> String {
    let keys = up.run("agent list", &["--format", "json"]).json_lines().remove(0);
    let key = keys.as_array().unwrap().iter().find(|key| key["role"] == "KEY_ROLE_AGENT").unwrap();
    key["public_key"].as_str().unwrap().to_owned()
}

#[test]
fn a_bundle_is_checked_against_key_files_and_log_and_what_differs_is_named() {
    let up = Up::start();
    up.run("budget set", &["--scope", "acme", "invocations=9"]).ok();
    let given = up.path("given.txt");
    fs::write(&given, "given\n").unwrap();
    let input = format!("in/a.txt={}", given.display());
    let script = "echo out; echo err >&2; cp in/a.txt out.txt; : > empty; exit 0";
    let script = [
        &["--skill", "sum-up", "--env", "A=b", "--input", &input, "--output", "out.txt", "--output", "empty"]
            [..],
        &["--output", "missing", "--", "sh", "-c", script, "--token=hunter2"],
    ]
    .concat();
    let kept = up.path("kept");
    let said =
        up.run("run", &[&["--tenant", "acme", "--bundle", kept.to_str().unwrap()], &script[..]].concat());
    assert_eq!(said.status, 1, "a file that was asked for is missing: {}", said.stderr);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&kept), mode(&kept.join("inputs.json"))), (0o700, 0o600));
    for (name, content) in [("stdout", "out\n"), ("artifacts/out.txt", "given\n"), ("artifacts/empty", "")] {
        assert_eq!(fs::read_to_string(kept.join(name)).unwrap(), content, "{name}");
    }
    assert!(!kept.join("artifacts/missing").exists());
    let again = up.run("run", &["--tenant", "acme", "--bundle", kept.to_str().unwrap(), "--", "true"]);
    again.fails(2, &["is not empty"]);
    let nothing = up.path("nothing");
    let nobody = up.run("run", &["--tenant", "nobody", "--bundle", nothing.to_str().unwrap(), "--", "true"]);
    nobody.fails(1, &["no budget covers"]);
    assert!(!nothing.exists(), "what was refused leaves nothing behind");

    let key = agent_key(&up);
    let hex = hex_of(&key);
    let said = verify(&kept, &["--key", &hex]).ok();
    for part in ["HOLDS", "by agent local", "given by you", "5 files", "inputs.json"] {
        assert!(said.contains(part), "`{part}` is missing in: {said}");
    }
    assert!(verify(&kept, &[]).ok().contains("not whose it is"));
    let pem = up.path("agent.pem");
    let key_file = up.path("agent/agent.key");
    fs::write(&pem, exchequer(["key", key_file.to_str().unwrap(), "--pem"]).ok()).unwrap();
    verify(&kept.join("bundle.dsse.json"), &["--key", pem.to_str().unwrap()]).ok();
    let other = exchequer(["key", up.path("other.key").to_str().unwrap()]).ok();
    refused(&kept, &["--key", other.trim()], "it is signed with key");
    assert_eq!(verify(&up.path("nowhere"), &[]).status, 2);
    assert_eq!(verify(&kept, &["--key", "zz"]).status, 2);

    let shown = exchequer(["bundle", "show", kept.to_str().unwrap()]).ok();
    for part in [
        "acme",
        "--token=[redacted]",
        "sum-up",
        "exited 0",
        "input         in/a.txt, 6 B",
        "no artifact   missing: ",
        "subject       artifacts/out.txt sha256:",
        "subject       result sha256:",
        "not checked",
    ] {
        assert!(shown.contains(part), "`{part}` is missing in:\n{shown}");
    }
    assert!(!shown.contains("hunter2"));

    let id = exchequer(["bundle", "show", kept.to_str().unwrap(), "--format", "json"]).json_lines();
    let id = id[0]["predicate"]["execution_id"].as_str().unwrap().to_owned();
    until("the outcome in the log", || {
        up.run("log show", &["--execution", &id]).ok().contains("exited 0").then_some(())
    });
    let url = up.url();
    let with_log = |path: &Path| {
        let data = up.path("");
        verify(path, &["--log", &url, "--data", data.to_str().unwrap()])
    };
    // A checkpoint that covers the outcome may come a moment later.
    let said = until("the outcome under a checkpoint", || {
        let said = with_log(&kept);
        (said.status == 0).then_some(said)
    });
    assert!(said.stdout.contains("the events, what they say, and the agent's key"), "{}", said.stdout);
    assert!(!said.stdout.contains("note:"), "{}", said.stdout);

    // Every file and every part of the envelope.
    let changed = |what: &str, change: &dyn Fn(&Path)| {
        let target = up.path(&format!("changed-{what}"));
        copy(&kept, &target);
        change(&target);
        target
    };
    for name in ["stdout", "stderr", "result", "artifacts/out.txt", "artifacts/empty"] {
        let path = changed(&name.replace('/', "-"), &|dir| fs::write(dir.join(name), "other").unwrap());
        refused(&path, &[], &format!("differs: {name} has SHA-256"));
    }
    refused(&changed("gone", &|dir| fs::remove_file(dir.join("stderr")).unwrap()), &[], "stderr is missing");
    let more = changed("more", &|dir| {
        fs::write(dir.join("artifacts/x"), "x").unwrap();
    });
    refused(&more, &[], "artifacts/x is in the directory and not in the bundle");
    let inputs = |what: &str, from: &str, to: &str, expected: &str| {
        let path = changed(what, &|dir| {
            let text = fs::read_to_string(dir.join("inputs.json")).unwrap();
            assert!(text.contains(from), "{text}");
            fs::write(dir.join("inputs.json"), text.replace(from, to)).unwrap();
        });
        refused(&path, &[], expected);
    };
    inputs("script", "exit 0", "exit 1", "stdin and files have digest");
    inputs("content", "Z2l2ZW4K", "Z2l2ZW5K", "file in/a.txt is not the one that was given");
    inputs("asked", "\"missing\"", "\"another\"", "asks for other files than were signed");
    let envelope = |change: &dyn Fn(&mut Json)| {
        changed(&format!("envelope-{:p}", &raw const *change), &|dir| {
            let file = dir.join("bundle.dsse.json");
            let mut json: Json = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            change(&mut json);
            fs::write(&file, json.to_string()).unwrap();
        })
    };
    let unsigned = envelope(&|json| json["signatures"].as_array_mut().unwrap().clear());
    refused(&unsigned, &[], "differs: unsigned");
    refused(&unsigned, &["--key", &hex], "differs: unsigned");
    let sig = envelope(&|json| {
        let sig = json["signatures"][0]["sig"].as_str().unwrap();
        let flipped = if sig.starts_with('A') { "B" } else { "A" };
        json["signatures"][0]["sig"] = format!("{flipped}{}", &sig[1..]).into();
    });
    refused(&sig, &[], "the signature does not verify");
    refused(&envelope(&|json| json["payloadType"] = "text/plain".into()), &[], "the payload's type is");

    // Another log holds none of it.
    let stranger = Up::start();
    let said = until("a checkpoint of the other log", || {
        let said = verify(&kept, &["--log", &stranger.url(), "--data", stranger.path("").to_str().unwrap()]);
        (said.status == 1).then_some(said)
    });
    assert!(said.stdout.contains("has digest") || said.stdout.contains("hold no event"), "{}", said.stdout);
}

fn hex_of(key: &str) -> String {
    // 64 hexadecimal digits are valid base64, of another length.
    if key.len() == 64 {
        return key.to_owned();
    }
    hex::encode(STANDARD.decode(key).unwrap())
}

#[test]
fn a_replay_says_whether_the_same_comes_out_and_where_it_first_differs() {
    let up = Up::start();
    up.run("budget set", &["--scope", "acme", "invocations=30"]).ok();
    let replay =
        |directory: &Path, rest: &[&str]| up.run("replay", &[&[directory.to_str().unwrap()], rest].concat());
    let given = up.path("given.txt");
    fs::write(&given, "given").unwrap();
    let input = format!("a={}", given.display());
    let files = ["--scope", "skills/sh", "--env", "A=b", "--input", &input, "--output", "b"];
    let stable = kept(&up, "stable", &[&files[..], &["--", "sh", "-c", "echo $A; cp a b; exit 0"]].concat());
    let said = replay(&stable, &["--runs", "3"]).ok();
    assert!(said.starts_with("EQUAL: 3 of 3 runs") && said.contains("3 × "), "{said}");

    // Process ids are the same inside each time; the clock is not.
    let clock = kept(&up, "clock", &["--output", "o", "--", "sh", "-c", "printf same; date +%N | tee o"]);
    let said = replay(&clock, &["--runs", "2", "--format", "json"]);
    let report: Json = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((said.status, &report["deterministic"]), (1, &Json::from(false)), "{}", said.stdout);
    assert_eq!((&report["runs"], &report["equal_runs"]), (&Json::from(2), &Json::from(0)));
    let difference = report["results"][0]["differences"][0].as_str().unwrap();
    let (_, at) = difference.split_once("stdout first differs at byte ").unwrap();
    let at: u64 = at.split(':').next().unwrap().parse().unwrap();
    assert!((4..13).contains(&at), "{difference}");
    let difference = report["results"][0]["differences"][1].as_str().unwrap();
    assert!(difference.starts_with("artifacts/o first differs at byte "), "{difference}");
    assert!(replay(&clock, &[]).stdout.starts_with("DIFFERS: 0 of 1 runs"));

    // Nothing runs with other inputs than were signed, or under a bundle that was changed.
    let spent =
        || up.run("usage", &["--scope", "acme", "--format", "json"]).json_lines()[0]["settled_holds"].clone();
    let before = until("the settlements", || Some(spent()).filter(|spent| *spent == 8));
    let other = up.path("other");
    copy(&stable, &other);
    let text = fs::read_to_string(other.join("inputs.json")).unwrap();
    fs::write(other.join("inputs.json"), text.replace("exit 0", "exit 1")).unwrap();
    replay(&other, &[]).fails(1, &["nothing was run", "inputs.json"]);
    fs::write(other.join("inputs.json"), text).unwrap();
    let bundle = fs::read_to_string(other.join("bundle.dsse.json")).unwrap();
    let sig = bundle.rfind("\"sig\":\"").unwrap() + 7;
    let flipped = if bundle.as_bytes()[sig] == b'A' { "B" } else { "A" };
    fs::write(other.join("bundle.dsse.json"), format!("{}{flipped}{}", &bundle[..sig], &bundle[sig + 1..]))
        .unwrap();
    replay(&other, &[]).fails(1, &["the signature does not verify"]);
    assert_eq!(spent(), before);
}
