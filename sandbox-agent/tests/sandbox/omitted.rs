//! A layer that is left off is read back as missing, and no other is.

use std::collections::BTreeSet;

use sandbox_agent::sandbox::{Control, ControlStatus, Layer};

use crate::rig::{HOSTS, Host, Ran, run, run_in, shell};

/// What a layer carries: left off, these are missing too.
fn carried(host: Host, layer: Layer) -> Vec<Layer> {
    use Layer::{
        Capabilities, CgroupNamespace, IpcNamespace, MaskedProc, MountNamespace, NetNamespace, NoNewPrivs,
        PidNamespace, PrivateRoot, Rlimits, UserNamespace, UtsNamespace, WorkArea,
    };
    match layer {
        MountNamespace => vec![PrivateRoot, WorkArea, MaskedProc],
        PrivateRoot => vec![WorkArea, MaskedProc],
        // Process limits count all of the user's.
        UserNamespace if host == Host::AsIs && is_root() => vec![Rlimits],
        UserNamespace => vec![
            PidNamespace,
            MountNamespace,
            NetNamespace,
            IpcNamespace,
            UtsNamespace,
            CgroupNamespace,
            PrivateRoot,
            WorkArea,
            MaskedProc,
            Capabilities,
            Rlimits,
        ],
        // The capability that it stands for is kept until `execve`.
        NoNewPrivs => vec![Capabilities],
        _ => vec![],
    }
}

fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0
}

fn missing(controls: &[Control]) -> BTreeSet<Layer> {
    let missing = controls.iter().filter(|control| control.status != ControlStatus::Enforced);
    missing.map(|control| control.layer).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_layer_that_is_left_off_is_missing_with_what_it_carries() {
    for host in HOSTS.into_iter().filter(|host| host.allows_namespaces()) {
        let sandbox = host.sandbox();
        let usual = missing(&run_in(&sandbox, &shell("true"), None).await.unwrap().controls);
        for layer in Layer::ALL {
            let mut spec = shell("true");
            spec.omit = vec![layer];
            let ran = run_in(&sandbox, &spec, None).await.unwrap();
            let mut expected = usual.clone();
            expected.insert(layer);
            expected.extend(carried(host, layer));
            assert_eq!(missing(&ran.controls), expected, "{host:?}: {layer}: {:#?}", ran.controls);
        }
    }
}

async fn without(layer: Layer, command: &str) -> Ran {
    let mut spec = shell(command);
    spec.omit = vec![layer];
    run(Host::AsIs, &spec).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_finds_open_what_is_left_off() {
    if !Host::AsIs.allows_namespaces() {
        return;
    }
    for (layer, command, with, off) in [
        (Layer::ClosedFds, "for fd in /proc/self/fd/*; do readlink $fd; done | grep -cx /", "0\n", "1\n"),
        (Layer::Capabilities, "grep CapEff /proc/self/status | grep -c 0000000000000000", "1\n", "0\n"),
        (Layer::NoNewPrivs, "grep NoNewPrivs /proc/self/status | cut -f2", "1\n", "0\n"),
        (Layer::NoNewPrivs, "grep CapEff /proc/self/status | grep -c 0000000000000000", "1\n", "1\n"),
        (Layer::Seccomp, "grep Seccomp: /proc/self/status | cut -f2", "2\n", "0\n"),
        (Layer::CleanEnv, "env | grep -c ^CARGO_MANIFEST_DIR=", "0\n", "1\n"),
        (Layer::MaskedProc, "[ -e /proc/meminfo ]; echo $?", "1\n", "0\n"),
        (Layer::PidNamespace, "[ $$ -le 2 ]; echo $?", "0\n", "1\n"),
        (Layer::UtsNamespace, "[ \"$(uname -n)\" = sandbox ]; echo $?", "0\n", "1\n"),
        (Layer::Rlimits, "ulimit -c -H", "0\n", "0\n"),
    ] {
        assert_eq!(run(Host::AsIs, &shell(command)).await.stdout, with, "with {layer}");
        let ran = without(layer, command).await;
        assert_eq!(ran.stdout, off, "without {layer}: {}", ran.stderr);
    }
}
