//! `exchequer witness` as a process, and a ledger that publishes nothing without it.
//!
//! Left out: what a witness cosigns, which its own tests show.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;

use crate::up::{Up, command, exchequer, until};

const ORIGIN: &str = "exchequer.local/log";
const NAME: &str = "w.example/w1";

/// A running `exchequer witness`.
struct Witness {
    child: Child,
    said: String,
}

impl Witness {
    fn start(data: &Path, listen: &str, log: &str) -> Self {
        let out = data.with_extension("out");
        let child = command(["witness", "--name", NAME, "--listen", listen, "--log", log, "--data"])
            .arg(data)
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .spawn()
            .unwrap();
        let said = until("the witness's announcement", || {
            let said = fs::read_to_string(&out).unwrap();
            said.contains("cosigned up to").then_some(said)
        });
        Self { child, said }
    }

    /// What follows a word in what it said.
    fn value(&self, before: &str) -> String {
        let at = self.said.find(before).unwrap() + before.len();
        self.said[at..].split_whitespace().next().unwrap().to_owned()
    }

    fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // It fails only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_ledger_publishes_with_its_witness_and_verify_asks_for_the_cosignature() {
    let data = exchequer_testkit::temp_dir();
    let witness_data = data.path().join("witness");
    fs::create_dir(data.path().join("ledger")).unwrap();
    let key = data.path().join("ledger/ledger.key");
    let log = exchequer(["key", key.to_str().unwrap(), "--origin", ORIGIN]).ok().trim().to_owned();
    let witness = Witness::start(&witness_data, "127.0.0.1:0", &log);
    let (url, vkey) = (witness.value("HTTP "), witness.value("verifier key "));
    fs::write(
        data.path().join("config.toml"),
        format!(
            "[ledger]\nwitness_quorum = 1\n[[ledger.witness]]\nverifier_key = \"{vkey}\"\nurl = \"{url}\"\n"
        ),
    )
    .unwrap();
    let up = Up::start_in(data);
    assert!(!up.said().contains("not ready"), "{}", up.said());
    let target = up.url();
    let verify = |rest: &[&str]| up.run("verify", &[&[&target, "--format", "json"], rest].concat());

    let report = until("a first checkpoint", || {
        let said = verify(&["--witness", &vkey]);
        (said.status == 0).then(|| said.json_lines().remove(0))
    });
    assert_eq!(report["cosignatures"][0]["key"], Json::from(vkey.clone()), "{report}");
    let stranger = up.path("stranger");
    let other = Witness::start(&stranger, "127.0.0.1:0", &log);
    let strange = other.value("verifier key ");
    let said = verify(&["--witness", &strange]);
    assert_eq!(said.status, 1, "{}{}", said.stdout, said.stderr);
    verify(&["--witness", &vkey, "--quorum", "2"]).fails(2, &["a quorum of 2 out of 1 witnesses"]);
    let policy = up.path("policy");
    fs::write(&policy, format!("log {log}\nwitness w {vkey}\nquorum w\n")).unwrap();
    verify(&["--policy", policy.to_str().unwrap()]).ok();
    fs::write(&policy, format!("log {log}\nwitness w {strange}\nquorum w\n")).unwrap();
    assert_eq!(verify(&["--policy", policy.to_str().unwrap()]).status, 1);

    // The witness goes away: the log stands still, and goes on with it.
    let size = |said: &Json| said["tree_size"].as_u64().unwrap();
    let address = url.trim_start_matches("http://").to_owned();
    witness.stop();
    up.run("budget set", &["--scope", "acme", "invocations=5"]).ok();
    let before = size(&verify(&[]).json_lines().remove(0));
    let witness = Witness::start(&witness_data, &address, &log);
    assert!(witness.value("cosigned up to ").parse::<u64>().unwrap() >= before);
    until("the budget in a checkpoint", || {
        let said = verify(&["--witness", &vkey]);
        (said.status == 0 && size(&said.json_lines()[0]) > before).then_some(())
    });
    let twice = command(["witness", "--name", NAME, "--listen", "127.0.0.1:0", "--log", &log, "--data"])
        .arg(&witness_data)
        .output()
        .unwrap();
    assert_eq!(twice.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&twice.stderr).contains("in use by another process"));
    witness.stop();
}
