//! Surroundings built ahead serve one execution each, are never seen again, and end with their helper.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use sandbox_agent::sandbox::{Control, ControlStatus, ExitCause, Layer, Sandbox, SandboxError, StartOptions};
use tokio::sync::mpsc;

use crate::rig::{HOSTS, Host, children_of, finish, processes_with_argument, run_in, shell, until};

/// Processes below the helper: a supervisor, an init and a payload for each that waits.
fn below(pid: u32) -> Vec<u32> {
    let children = children_of(pid);
    children.iter().copied().chain(children.iter().flat_map(|child| below(*child))).collect()
}

/// One execution, and then as many as `ready` that wait.
pub async fn warm(host: Host, ready: usize) -> (Sandbox, u32) {
    let sandbox = host.sandbox_with_ready(ready);
    run_in(&sandbox, &shell("true"), None).await.unwrap();
    let helper = sandbox.helper_pid().await.unwrap();
    until("only those that wait are there", || waiting(helper).len() == ready).await;
    (sandbox, helper)
}

/// The supervisors below the helper, if each of them waits with its init and a payload.
pub fn waiting(helper: u32) -> Vec<u32> {
    let children = children_of(helper);
    let waits = |child: &u32| below(*child).len() == 2;
    if children.iter().all(waits) { children } else { vec![] }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_surroundings_serve_twice() {
    for host in HOSTS {
        let (sandbox, helper) = warm(host, 2).await;
        let waiting = waiting(helper).into_iter().collect::<BTreeSet<_>>();
        for round in 0..6 {
            let spec = shell("ls -A; echo left > behind");
            let (sender, output) = mpsc::channel(16);
            let prepared = sandbox.prepare(&spec, None, sender).await.unwrap();
            if round == 0 {
                // Nothing of them has ended yet: one of them serves, or none does.
                let now = children_of(helper).into_iter().collect::<BTreeSet<_>>();
                assert!(waiting.is_subset(&now), "{host:?}: {waiting:?}, {now:?}");
            }
            let ran = finish(prepared.release().await.unwrap(), output).await;
            assert_eq!(ran.stdout, "", "{host:?}: {round}: something was left behind");
            assert_eq!(ran.outcome.cause, ExitCause::Exited { code: 0 }, "{host:?}");
        }
        // Unused they would wait on.
        until("the first that waited have served", || {
            children_of(helper).iter().all(|pid| !waiting.contains(pid))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_none_are_wanted_none_are_built() {
    for host in HOSTS {
        let sandbox = host.sandbox_with_ready(0);
        let helper = sandbox.helper_pid().await.unwrap();
        let (sender, output) = mpsc::channel(16);
        let first = sandbox.prepare(&shell("true"), None, sender).await.unwrap();
        let mut of_first = vec![];
        until("its supervisor is the only one", || {
            of_first = children_of(helper);
            of_first.len() == 1
        })
        .await;
        let (sender, _second_output) = mpsc::channel(16);
        let _second = sandbox.prepare(&shell("true"), None, sender).await.unwrap();
        finish(first.release().await.unwrap(), output).await;
        // When it reaps an execution the helper builds what is to be ahead, before it takes the next request.
        until("the first is reaped", || !children_of(helper).contains(&of_first[0])).await;
        let (sender, _third_output) = mpsc::channel(16);
        let _third = sandbox.prepare(&shell("true"), None, sender).await.unwrap();
        assert_eq!(children_of(helper).len(), 2, "{host:?}: more than what was asked for");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_have_waited_too_long_are_replaced_though_nobody_asks() {
    for host in HOSTS {
        let sandbox = host.sandbox_with_ready_until(2, Duration::from_millis(500));
        run_in(&sandbox, &shell("true"), None).await.unwrap();
        let helper = sandbox.helper_pid().await.unwrap();
        let mut old = vec![];
        until("two wait", || {
            old = waiting(helper);
            old.len() == 2
        })
        .await;
        until("two others wait in their place", || {
            let now = waiting(helper);
            now.len() == 2 && now.iter().all(|pid| !old.contains(pid))
        })
        .await;
        until("the old ones are gone", || old.iter().all(|pid| !is_alive(*pid))).await;
        assert_eq!(sandbox.helper_pid().await, Some(helper), "{host:?}");
        assert_eq!(run_in(&sandbox, &shell("echo new"), None).await.unwrap().stdout, "new\n", "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_built_ahead_get_a_tenth_of_a_second_to_a_day_old() {
    let (least, most) = (Duration::from_millis(100), Duration::from_secs(86_400));
    let (below, above) = (Duration::from_nanos(99_999_999), most + Duration::from_nanos(1));
    for ready_age in [Duration::ZERO, below, above, Duration::MAX] {
        let refused = Sandbox::start(StartOptions { ready_age, ..StartOptions::default() }).err().unwrap();
        assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput, "{ready_age:?}: {refused}");
    }
    for ready_age in [least, most] {
        let sandbox = Host::AsIs.sandbox_with_ready_until(1, ready_age);
        assert_eq!(
            run_in(&sandbox, &shell("echo fine"), None).await.unwrap().stdout,
            "fine\n",
            "{ready_age:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_profile_gets_surroundings_of_its_own() {
    for host in HOSTS {
        let (sandbox, helper) = warm(host, 2).await;
        let mut spec = shell("uname -n; [ -w . ] && pwd");
        spec.profile.hostname = "other".to_owned();
        spec.profile.work.path = PathBuf::from("/work");
        spec.cwd = PathBuf::from("/work");
        let ran = run_in(&sandbox, &spec, None).await.unwrap();
        if host.allows_namespaces() {
            assert_eq!(ran.stdout, "other\n/work\n", "{host:?}: {}", ran.stderr);
        }
        until("only as many wait as may", || waiting(helper).len() == 2).await;
        assert_eq!(
            run_in(&sandbox, &shell("echo strict"), None).await.unwrap().stdout,
            "strict\n",
            "{host:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_that_wait_end_with_the_helper_or_the_sandbox() {
    for host in HOSTS {
        let (sandbox, helper) = warm(host, 2).await;
        let waiting = below(helper);
        drop(sandbox);
        until("all are gone", || waiting.iter().all(|pid| !is_alive(*pid))).await;
        let (sandbox, helper) = warm(host, 2).await;
        let waiting = below(helper);
        kill_hard(helper);
        until("all are gone", || waiting.iter().all(|pid| !is_alive(*pid))).await;
        assert_eq!(run_in(&sandbox, &shell("echo again"), None).await.unwrap().stdout, "again\n", "{host:?}");
        let left = fs::read_dir(std::env::temp_dir()).unwrap().filter_map(Result::ok);
        let prefix = format!("exchequer-sandbox-{helper}-");
        assert_eq!(
            left.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count(),
            0,
            "{host:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_surroundings_are_not_used() {
    for host in HOSTS {
        // The supervisor, its init, the payload: whichever dies while it waits.
        for depth in 0..3 {
            let (sandbox, helper) = warm(host, 1).await;
            let victim = below(helper)[depth];
            kill_hard(victim);
            until("the rest of it is gone", || below(helper).is_empty()).await;
            let ran = run_in(&sandbox, &shell("echo fine"), None).await.unwrap();
            assert_eq!(ran.stdout, "fine\n", "{host:?}: {depth}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_while_its_surroundings_break_is_answered() {
    for host in HOSTS {
        for depth in 0..3 {
            let (sandbox, helper) = warm(host, 1).await;
            kill_hard(below(helper)[depth]);
            // Nobody may have noticed yet: it runs in others, or is refused, as soon as anybody does.
            match run_in(&sandbox, &shell("echo fine"), None).await {
                Ok(ran) => {
                    let expected = match ran.outcome.cause {
                        ExitCause::LaunchFailed { errno, .. } if errno != libc::ETIMEDOUT => "",
                        _ => "fine\n",
                    };
                    assert_eq!(ran.stdout, expected, "{host:?}: {depth}: {:?}", ran.outcome.cause);
                }
                Err(SandboxError::Launch { errno, .. }) => {
                    assert_ne!(errno, libc::ETIMEDOUT, "{host:?}: {depth}");
                }
                Err(SandboxError::SupervisorLost) => {}
                Err(error) => panic!("{host:?}: {depth}: {error}"),
            }
            let ran = run_in(&sandbox, &shell("echo again"), None).await.unwrap();
            assert_eq!(ran.stdout, "again\n", "{host:?}: {depth}");
            assert_eq!(sandbox.helper_pid().await, Some(helper), "{host:?}: {depth}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_left_off_is_not_left_off_for_the_next() {
    let (sandbox, _) = warm(Host::AsIs, 2).await;
    let mut spec = shell("true");
    spec.omit = vec![Layer::Seccomp];
    let status = |controls: &[Control]| {
        controls.iter().find(|control| control.layer == Layer::Seccomp).unwrap().status
    };
    let ran = run_in(&sandbox, &spec, None).await.unwrap();
    assert_eq!(status(&ran.controls), ControlStatus::Unavailable);
    for _ in 0..3 {
        let ran = run_in(&sandbox, &shell("true"), None).await.unwrap();
        assert_eq!(status(&ran.controls), ControlStatus::Enforced);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn executions_in_ready_surroundings_leave_nothing_running() {
    for (n, host) in HOSTS.into_iter().enumerate() {
        let (sandbox, helper) = warm(host, 2).await;
        let marker = format!("6{}{n}.5", std::process::id());
        for _ in 0..20 {
            let ran =
                run_in(&sandbox, &shell(&format!("setsid sleep {marker} & exit 3")), None).await.unwrap();
            assert_eq!(ran.outcome.cause, ExitCause::Exited { code: 3 }, "{host:?}");
            assert_eq!(processes_with_argument(&marker), [0; 0], "{host:?}");
        }
        until("two wait and no more", || waiting(helper).len() == 2).await;
    }
}

/// Not a zombie that somebody else has yet to reap.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn kill_hard(pid: u32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}
