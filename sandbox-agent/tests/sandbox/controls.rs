//! What the engine says about its layers is what the kernel says, and missing layers are named.

use std::fs;

use sandbox_agent::sandbox::{Control, ControlStatus, Layer, probe};

use crate::rig::{HOSTS, Host, run, run_in, shell};

/// The layers that a host without namespaces can't have, and the status it must report for them.
const LOST_WITHOUT_NAMESPACES: [(Layer, ControlStatus); 13] = [
    (Layer::UserNamespace, ControlStatus::Unavailable),
    (Layer::PidNamespace, ControlStatus::Unavailable),
    (Layer::MountNamespace, ControlStatus::Unavailable),
    (Layer::NetNamespace, ControlStatus::Unavailable),
    (Layer::IpcNamespace, ControlStatus::Unavailable),
    (Layer::UtsNamespace, ControlStatus::Unavailable),
    (Layer::CgroupNamespace, ControlStatus::Unavailable),
    (Layer::PrivateRoot, ControlStatus::Unavailable),
    (Layer::WorkArea, ControlStatus::Degraded),
    (Layer::MaskedProc, ControlStatus::Unavailable),
    // The same filter forbids keyctl.
    (Layer::Keyrings, ControlStatus::Unavailable),
    (Layer::Capabilities, ControlStatus::Degraded),
    (Layer::Rlimits, ControlStatus::Degraded),
];

fn expected(host: Host, layer: Layer) -> ControlStatus {
    if layer == Layer::Cgroup && !host.allows_cgroups() {
        return ControlStatus::Unavailable;
    }
    let lost = LOST_WITHOUT_NAMESPACES.iter().find(|(lost, _)| *lost == layer && !host.allows_namespaces());
    lost.map_or(ControlStatus::Enforced, |(_, status)| *status)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_layer_has_the_status_that_this_host_allows() {
    for host in HOSTS {
        let controls = probe(&host.sandbox()).await.unwrap();
        assert_eq!(controls.iter().map(|control| control.layer).collect::<Vec<_>>(), Layer::ALL, "{host:?}");
        for Control { layer, status, evidence, remedy } in controls {
            assert_eq!(status, expected(host, layer), "{host:?}: {layer}: {evidence}");
            assert_eq!(remedy.is_empty(), status == ControlStatus::Enforced, "{host:?}: {layer}");
            assert!(!evidence.is_empty(), "{host:?}: {layer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_namespaces_are_named_with_the_call_the_error_and_a_remedy() {
    let controls = probe(&Host::Restricted.sandbox()).await.unwrap();
    for (layer, call) in [
        (Layer::UserNamespace, "unshare(CLONE_NEWUSER)"),
        (Layer::PidNamespace, "unshare(CLONE_NEWPID)"),
        (Layer::MountNamespace, "unshare(CLONE_NEWNS)"),
        (Layer::NetNamespace, "unshare(CLONE_NEWNET)"),
    ] {
        let control = controls.iter().find(|control| control.layer == layer).unwrap();
        let refusal = format!("{call}: Operation not permitted");
        assert!(control.evidence.contains(&refusal), "{}", control.evidence);
        assert!(control.remedy.contains("docker run --security-opt"), "{}", control.remedy);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_evidence_agrees_with_what_the_program_itself_reads() {
    for host in HOSTS.into_iter().filter(|host| host.allows_namespaces()) {
        let ran = run(
            host,
            &shell(
                "readlink /proc/self/ns/net; grep -E '^(Seccomp|NoNewPrivs|CapBnd|CapEff)' /proc/self/status",
            ),
        )
        .await;
        let inside = ran.stdout.lines().next().unwrap().to_owned();
        let net = ran.controls.iter().find(|control| control.layer == Layer::NetNamespace).unwrap();
        assert!(net.evidence.contains(&inside), "{host:?}: {inside} is not in {}", net.evidence);
        let outside = fs::read_link("/proc/self/ns/net").unwrap().to_string_lossy().into_owned();
        assert_ne!(inside, outside, "{host:?}");
        for line in
            ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"]
        {
            assert!(ran.stdout.contains(line), "{host:?}: {line} is not in {}", ran.stdout);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_the_agent_itself_may_not_have_is_never_claimed() {
    // More than any hard limit for open files: the kernel's table shows what really holds.
    let mut spec = shell("ulimit -n");
    spec.limits.open_files = 1 << 40;
    for host in HOSTS {
        let ran = run_in(&host.sandbox(), &spec, None).await.unwrap();
        let rlimits = ran.controls.iter().find(|control| control.layer == Layer::Rlimits).unwrap();
        let held = format!("Max open files {}", ran.stdout.trim());
        assert!(rlimits.evidence.contains(&held), "{host:?}: {held} is not in {}", rlimits.evidence);
    }
}
