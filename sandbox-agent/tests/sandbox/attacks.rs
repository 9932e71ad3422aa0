//! The probe suite in the three surroundings, and what belongs beside it: that the layers let through what programs need.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::process::Command;

use sandbox_agent::probes::{Suite, Verdict};
use sandbox_agent::sandbox::{ExitCause, Layer, Profile};

use crate::documented::mutations_are_documented;
use crate::rig::{HOSTS, Host, attack, rig, run, run_in, shell};

#[tokio::test(flavor = "multi_thread")]
async fn every_attack_is_stopped_as_the_table_says_and_succeeds_in_its_control() {
    for host in [Host::AsIs, Host::PlainUser] {
        let suite = Suite::start(host.sandbox()).await.unwrap();
        let controls = suite.read_back().await.unwrap();
        for report in suite.audit().await {
            let lost =
                |layer| controls.iter().any(|control| control.layer == layer && !control.remedy.is_empty());
            let open = report.verdict == Verdict::Open && report.probe.layers().all(lost);
            // Alone some layers can't be had: a plain user has no namespace without the first.
            let carried = report.verdict == Verdict::NotCovered && report.only.is_some();
            assert!(report.verdict == Verdict::Held || open || carried, "{host:?}: {report:#?}");
        }
    }
}

/// Controls need namespaces, which are not to be had there; the same attacks have theirs in the test above.
#[tokio::test(flavor = "multi_thread")]
async fn where_layers_are_missing_those_that_remain_stop_what_they_should() {
    let suite = Suite::start(Host::Restricted.sandbox()).await.unwrap();
    let reports = suite.audit().await;
    let held = reports.iter().filter(|report| report.verdict == Verdict::Held).count();
    let broken = reports.iter().filter(|report| report.verdict == Verdict::Broken).collect::<Vec<_>>();
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(held * 2 > reports.len(), "{held} of {} held", reports.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_switched_off_is_noticed_whichever_it_is() {
    for host in [Host::AsIs, Host::PlainUser] {
        let suite = Suite::start(host.sandbox()).await.unwrap();
        let controls = suite.read_back().await.unwrap();
        let reports = suite.audit().await;
        let mutations = suite.mutations(&controls, &reports).await;
        assert_eq!(mutations.iter().map(|mutation| mutation.layer).collect::<Vec<_>>(), Layer::ALL);
        for mutation in &mutations {
            assert!(mutation.is_noticed(), "{host:?}: {mutation:#?}");
        }
        if host == Host::AsIs {
            mutations_are_documented(&mutations);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_programs_need_of_filtered_calls_still_works() {
    for host in HOSTS {
        for spec in [attack(&["pair"]), shell("mkfifo fifo")] {
            let ran = run(host, &spec).await;
            assert_eq!(
                ran.outcome.cause,
                ExitCause::Exited { code: 0 },
                "{host:?}: {} {:?}",
                ran.stderr,
                spec.args
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_own_state_is_not_to_be_seen() {
    for path in
        ["/etc/shadow", "/etc/passwd", "/proc/kallsyms", "/proc/sys/kernel/hostname", "/root", "/home"]
    {
        let outside = fs::metadata(path).is_ok();
        for host in HOSTS {
            let ran = run(host, &shell(&format!("cat {path} 2>/dev/null; ls {path}/ 2>/dev/null"))).await;
            let host_text = fs::read_to_string(path).unwrap_or_default();
            assert!(
                outside && (ran.stdout.is_empty() || ran.stdout != host_text),
                "{host:?}: {path}: {}",
                ran.stdout
            );
            if path == "/etc/passwd" {
                assert!(!ran.stdout.contains("root:"), "{host:?}: {}", ran.stdout);
            } else {
                assert_eq!(ran.stdout, "", "{host:?}: {path}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn system_paths_can_not_be_written_or_replaced() {
    for host in HOSTS {
        for command in [
            "echo x > /usr/bin/planted",
            "rm /bin/true",
            "mkdir /new",
            "ln -s / /etc/planted",
            "chmod 777 /usr",
        ] {
            let ran = run(host, &shell(&format!("{command} 2>/dev/null && echo done"))).await;
            assert_eq!(ran.stdout, "", "{host:?}: {command}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_executed_from_the_work_area() {
    let command = "cp /bin/true ./copy && chmod 755 ./copy && ./copy && echo executed";
    let outside = Command::new("/bin/sh").args(["-c", command]).current_dir(rig()).output().unwrap();
    assert_eq!(outside.stdout, b"executed\n");
    for host in HOSTS {
        let ran = run(host, &shell(command)).await;
        assert!(ran.stdout.is_empty() && ran.stderr.contains("ermission denied"), "{host:?}: {}", ran.stderr);
    }
    // The profile decides, not the engine.
    let mut spec = shell(command);
    spec.profile.work.executable = true;
    assert_eq!(run(Host::AsIs, &spec).await.stdout, "executed\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_the_harmless_ones() {
    let ran =
        run(Host::AsIs, &shell("head -c 4 /dev/zero | wc -c; echo x > /dev/null && echo written")).await;
    assert_eq!(ran.stdout, "4\nwritten\n");
    let nodes = fs::read_dir("/dev").unwrap().map(Result::unwrap).filter(|entry| {
        let kind = entry.file_type().unwrap();
        kind.is_char_device() || kind.is_block_device()
    });
    let named = nodes.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>().join(" ");
    for host in HOSTS {
        let command = format!("cd /dev; for d in {named}; do head -c 1 $d >/dev/null 2>&1 && echo $d; done");
        let ran = run(host, &shell(&command)).await;
        let readable = ran.stdout.lines().collect::<Vec<_>>();
        for device in &readable {
            assert!(Profile::strict().devices.iter().any(|own| own == device), "{host:?}: {device}");
        }
        assert_eq!(readable.len(), Profile::strict().devices.len(), "{host:?}: {readable:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_payload_is_nobody_in_particular() {
    for host in HOSTS {
        let sandbox = host.sandbox();
        let id = run_in(&sandbox, &shell("id -u; id -g; hostname 2>/dev/null || uname -n"), None)
            .await
            .unwrap()
            .stdout;
        let lines = id.lines().collect::<Vec<_>>();
        assert!(lines[0] != "0" && lines[1] != "0", "{host:?}: {id}");
        if host.allows_namespaces() {
            assert_eq!(lines, ["1000", "1000", "sandbox"], "{host:?}");
        }
    }
}
