//! `exchequer audit` and `exchequer capabilities` on this host.

use serde_json::Value as Json;

use crate::up::{Up, exchequer};

fn texts<'a>(document: &'a Json, field: &str) -> Vec<&'a str> {
    document.as_array().unwrap().iter().map(|one| one[field].as_str().unwrap_or_default()).collect()
}

#[test]
fn an_audit_of_the_sandbox_lists_every_probe_and_its_status_says_whether_there_are_findings() {
    let said = exchequer(["audit", "--sandbox", "--format", "json"]);
    let audited: Json = serde_json::from_str(&said.stdout).unwrap();
    let findings = audited["findings"].as_array().unwrap();
    assert_eq!(said.status, i32::from(!findings.is_empty()), "{}", said.stderr);
    let probes = &audited["sandbox"]["probes"];
    for name in ["hostile_calls", "setuid_program", "tcp", "orphan", "fork_bomb"] {
        assert!(texts(probes, "name").contains(&name), "{name}");
    }
    // What this host can't have is open; nothing may be broken, on no host.
    for verdict in texts(probes, "verdict") {
        assert!(["held", "open", "not_covered"].contains(&verdict), "{findings:#?}");
    }
    let missing = texts(&audited["sandbox"]["controls"], "status").iter().any(|status| *status != "enforced");
    assert_eq!(findings.is_empty(), !missing, "{findings:#?}");
}

#[test]
fn an_audit_needs_a_subject() {
    for arguments in [&["audit"][..], &["audit", "--mutations"]] {
        assert_eq!(exchequer(arguments).status, 2, "{arguments:?}");
    }
}

#[test]
fn capabilities_are_told_of_this_host_and_of_an_agents_with_the_probe_behind_each() {
    let up = Up::start();
    let here = exchequer(["capabilities", "--format", "json"]).json_lines().remove(0);
    let address = up.client("grpc");
    let token = up.client("token");
    let there = exchequer(["capabilities", "--agent", &address, "--token", &token, "--format", "json"]);
    let there = there.json_lines().remove(0);
    assert_eq!(texts(&here["controls"], "name"), texts(&there["controls"], "name"));
    for told in [&here, &there] {
        assert_eq!(texts(&told["controls"], "name"), texts(&told["probes"], "control"));
        for (control, probe) in
            told["controls"].as_array().unwrap().iter().zip(told["probes"].as_array().unwrap())
        {
            if control["status"] == "CONTROL_STATUS_ENFORCED" {
                assert_eq!(probe["verdict"], "PROBE_VERDICT_HELD", "{control} {probe}");
            }
        }
    }
    assert!(there["max_limits"].is_object() && !here["max_limits"].is_object(), "{here}");
    let text = exchequer(["capabilities"]).ok();
    assert!(text.contains("hostile") && text.contains("SIGSYS"), "{text}");
    assert_eq!(up.stop().0, 0);
}
