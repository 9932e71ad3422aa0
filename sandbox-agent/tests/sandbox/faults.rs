//! Whoever dies, nothing that was executed outlives it, and nothing is leaked by what ends well.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sandbox_agent::sandbox::{Chunk, ExitCause, Running, Sandbox, SandboxError};
use tokio::sync::mpsc;

use crate::ready::{waiting, warm};
use crate::rig::{
    HOSTS, Host, RIG_MADE, cgroups_of, children_of, finish, processes_with_argument, rig, run_in, shell,
    until,
};

fn marker(test: u32, host: Host) -> String {
    format!("{test}{}{}.5", std::process::id(), host as u8)
}

/// Starts a program with a daemon beside it; both sleep with the marker as argument.
async fn start_sleepers(sandbox: &Sandbox, marker: &str) -> (Running, mpsc::Receiver<Chunk>) {
    let spec = shell(&format!("setsid sleep {marker} & exec sleep {marker}"));
    let (sender, output) = mpsc::channel(16);
    let running = sandbox.prepare(&spec, None, sender).await.unwrap().release().await.unwrap();
    until("both sleep", || processes_with_argument(marker).len() == 2).await;
    (running, output)
}

async fn all_end(marker: &str, host: Host) {
    until(&format!("{host:?}: no process is left"), || processes_with_argument(marker).is_empty()).await;
}

fn kill_hard(pids: &[u32]) {
    let pids = pids.iter().map(u32::to_string);
    assert!(Command::new("kill").arg("-9").args(pids).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_helper_takes_its_executions_along_and_is_replaced() {
    for host in HOSTS {
        let sandbox = host.sandbox();
        let marker = marker(1, host);
        let (mut running, _output) = start_sleepers(&sandbox, &marker).await;
        let helper = sandbox.helper_pid().await.unwrap();
        kill_hard(&[helper]);
        all_end(&marker, host).await;
        let error = running.outcome().await.unwrap_err();
        assert!(matches!(&error, SandboxError::Lost(why) if why.contains("helper")), "{host:?}: {error}");
        let ran = run_in(&sandbox, &shell("echo again"), None).await.unwrap();
        assert_eq!(ran.stdout, "again\n", "{host:?}");
        assert_ne!(sandbox.helper_pid().await.unwrap(), helper, "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_supervisor_takes_its_execution_along() {
    for host in HOSTS {
        let sandbox = host.sandbox();
        let marker = marker(2, host);
        let (mut running, _output) = start_sleepers(&sandbox, &marker).await;
        let helper = sandbox.helper_pid().await.unwrap();
        let supervisors = children_of(helper);
        assert_eq!(supervisors.len(), 1, "{host:?}");
        kill_hard(&[supervisors[0]]);
        all_end(&marker, host).await;
        let error = running.outcome().await.unwrap_err();
        assert!(matches!(error, SandboxError::SupervisorLost), "{host:?}: {error}");
        until("the helper has reaped everything", || children_of(helper).is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_init_ends_its_execution() {
    for host in HOSTS {
        let sandbox = host.sandbox();
        let marker = marker(3, host);
        let (mut running, _output) = start_sleepers(&sandbox, &marker).await;
        let supervisor = children_of(sandbox.helper_pid().await.unwrap())[0];
        kill_hard(&[children_of(supervisor)[0]]);
        all_end(&marker, host).await;
        let error = running.outcome().await.unwrap_err();
        assert!(matches!(&error, SandboxError::Lost(why) if why.contains("init")), "{host:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_killed_before_its_release_is_a_failed_launch_and_no_program() {
    for host in HOSTS {
        for ready in [0, 2] {
            // Nothing is built ahead until something was asked for.
            let sandbox = if ready == 0 { host.sandbox_with_ready(0) } else { warm(host, ready).await.0 };
            let helper = sandbox.helper_pid().await.unwrap();
            let ahead = waiting(helper);
            assert_eq!(ahead.len(), ready, "{host:?}");
            let (sender, output) = mpsc::channel(16);
            let mut spec = shell("echo ran");
            spec.outputs = vec![PathBuf::from("none")];
            let prepared = sandbox.prepare(&spec, None, sender).await.unwrap();
            // The oldest of those that waited serves.
            let supervisor = children_of(helper)[0];
            assert_eq!(ahead.contains(&supervisor), ready > 0, "{host:?}: {ahead:?}");
            let payload = children_of(children_of(supervisor)[0])[0];
            kill_hard(&[payload]);
            until("it is gone or dead", || is_over(payload)).await;
            let ran = finish(prepared.release().await.unwrap(), output).await;
            let ExitCause::LaunchFailed { stage, errno } = ran.outcome.cause else {
                panic!("{host:?}: {:?}", ran.outcome.cause)
            };
            assert_eq!((stage.as_str(), errno), ("preparing the payload", libc::ECHILD), "{host:?}");
            assert_eq!((ran.outcome.usage.wall_ns, ran.stdout.as_str()), (0, ""), "{host:?}");
            assert_eq!(ran.outcome.files.len(), 1, "{host:?}");
        }
    }
}

/// Whether a process has ended, reaped or not.
fn is_over(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}

#[tokio::test(flavor = "multi_thread")]
async fn helper_and_supervisor_killed_together_leave_nothing_in_a_pid_namespace() {
    for host in HOSTS.into_iter().filter(|host| host.allows_namespaces()) {
        let sandbox = host.sandbox();
        let marker = marker(7, host);
        let (_running, _output) = start_sleepers(&sandbox, &marker).await;
        let helper = sandbox.helper_pid().await.unwrap();
        let supervisor = children_of(helper)[0];
        // The helper first: it must not see the other's death.
        kill_hard(&[helper, supervisor]);
        all_end(&marker, host).await;
    }
}

/// Set in the process that [`a_killed_agent_takes_its_executions_along`] starts to be killed: marker and surroundings.
const AGENT_ROLE: &str = "SANDBOX_TEST_AGENT";

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_takes_its_executions_along() {
    if let Ok(role) = env::var(AGENT_ROLE) {
        let (marker, number) = role.split_once(' ').unwrap();
        let host = HOSTS[number.parse::<usize>().unwrap()];
        let (mut running, _output) = start_sleepers(&host.sandbox(), marker).await;
        let outcome = running.outcome().await;
        panic!("the program ended by itself: {outcome:?}");
    }
    for (number, host) in HOSTS.into_iter().enumerate() {
        let marker = marker(4, host);
        let mut agent = Command::new(env::current_exe().unwrap())
            .args(["--exact", "faults::a_killed_agent_takes_its_executions_along", "--nocapture"])
            .env(AGENT_ROLE, format!("{marker} {number}"))
            .env(RIG_MADE, rig())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("both sleep", || processes_with_argument(&marker).len() == 2).await;
        let helper = children_of(agent.id())[0];
        assert_eq!(!cgroups_of(helper).is_empty(), host.allows_cgroups(), "{host:?}");
        agent.kill().unwrap();
        agent.wait().unwrap();
        all_end(&marker, host).await;
        until("no cgroup is left", || cgroups_of(helper).is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_execution_is_killed() {
    for host in HOSTS {
        let sandbox = host.sandbox();
        let marker = marker(5, host);
        let (running, _output) = start_sleepers(&sandbox, &marker).await;
        drop(running);
        all_end(&marker, host).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_execution_says_cancelled() {
    for host in HOSTS {
        let sandbox = host.sandbox();
        let marker = marker(6, host);
        let (running, output) = start_sleepers(&sandbox, &marker).await;
        running.kill();
        assert_eq!(finish(running, output).await.outcome.cause, ExitCause::Cancelled, "{host:?}");
        assert_eq!(processes_with_argument(&marker), [0; 0], "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_runs_before_the_release_or_after_an_abort() {
    for host in HOSTS {
        let sandbox = host.sandbox();
        let helper = sandbox.helper_pid().await.unwrap();
        let (sender, mut output) = mpsc::channel(16);
        let prepared = sandbox.prepare(&shell("echo ran"), None, sender).await.unwrap();
        assert_eq!(children_of(helper).len(), 1, "{host:?}");
        assert!(output.try_recv().is_err(), "{host:?}");
        prepared.abort().await.unwrap();
        assert!(output.recv().await.is_none(), "{host:?}");
        until("the helper has reaped it", || children_of(helper).is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_executions_leak_neither_descriptors_nor_processes_nor_directories() {
    for host in HOSTS {
        let sandbox = host.sandbox();
        run_in(&sandbox, &shell("true"), None).await.unwrap();
        let helper = sandbox.helper_pid().await.unwrap();
        // Descriptor slots, which grow by doubling from 64: one lost per execution shows, and anybody may read it.
        let open = || {
            let status = fs::read_to_string(format!("/proc/{helper}/status")).unwrap();
            status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap().trim().to_owned()
        };
        let before = open();
        for round in 0..25 {
            let tasks = (0..8).map(|_| {
                let sandbox = sandbox.clone();
                tokio::spawn(async move {
                    run_in(&sandbox, &shell("echo x > f"), None).await.unwrap().outcome.cause
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                assert_eq!(task.await.unwrap(), ExitCause::Exited { code: 0 }, "{host:?}: {round}");
            }
        }
        until("the helper has reaped everything", || children_of(helper).is_empty()).await;
        assert_eq!(open(), before, "{host:?}");
        // The eight that are kept ready.
        until("its cgroups are removed", || cgroups_of(helper).iter().all(|dir| children(dir) <= 8)).await;
        let left = work_directories(helper);
        assert!(left.is_empty(), "{host:?}: {left:?}");
    }
}

fn children(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count()
}

fn work_directories(helper: u32) -> Vec<PathBuf> {
    let prefix = format!("exchequer-sandbox-{helper}-");
    let entries = fs::read_dir(env::temp_dir()).unwrap().filter_map(Result::ok);
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_that_can_not_be_started_is_an_error_not_a_hang() {
    let (sender, _output) = mpsc::channel(1);
    let sandbox = Sandbox::start(sandbox_agent::sandbox::StartOptions {
        helper: rig().join("host_allows"),
        ..sandbox_agent::sandbox::StartOptions::default()
    })
    .unwrap();
    let error = sandbox.prepare(&shell("true"), None, sender).await.err().unwrap();
    assert!(matches!(error, SandboxError::Io(_) | SandboxError::SupervisorLost), "{error}");
}
