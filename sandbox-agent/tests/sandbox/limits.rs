//! Every limit binds, and the whole tree ends with it.

use sandbox_agent::sandbox::ExitCause;

use crate::rig::{HOSTS, attack, attack_outside, finish, processes_with_argument, run, run_in, shell, until};
use tokio::sync::mpsc;

#[tokio::test(flavor = "multi_thread")]
async fn the_wall_clock_kills_the_whole_tree_daemons_included() {
    for (n, host) in HOSTS.into_iter().enumerate() {
        let marker = format!("7{}{n}.5", std::process::id());
        let mut spec =
            shell(&format!("(setsid sh -c 'sleep {marker} & exec sleep {marker}' &) ; sleep {marker}"));
        spec.limits.wall_ms = 3000;
        let (sender, output) = mpsc::channel(16);
        let running = host.sandbox().prepare(&spec, None, sender).await.unwrap().release().await.unwrap();
        until("all three sleep", || processes_with_argument(&marker).len() == 3).await;
        let ran = finish(running, output).await;
        assert_eq!(ran.outcome.cause, ExitCause::Timeout, "{host:?}");
        assert!((3000..6000).contains(&ran.outcome.usage.wall_ms()), "{host:?}: {:?}", ran.outcome);
        assert_eq!(processes_with_argument(&marker), [0; 0], "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_program_leaves_running_ends_with_it() {
    for (n, host) in HOSTS.into_iter().enumerate() {
        let marker = format!("8{}{n}.5", std::process::id());
        let command = format!("setsid sleep {marker} & while ! grep -q x; do :; done; exit 0");
        let ran = run_in(&host.sandbox(), &shell(&command), Some("x\n")).await.unwrap();
        assert_eq!(ran.outcome.cause, ExitCause::Exited { code: 0 }, "{host:?}");
        assert_eq!(processes_with_argument(&marker), [0; 0], "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_output_is_cut_at_the_limit() {
    for host in HOSTS {
        let mut spec = shell("yes flood");
        spec.limits.output_bytes = 100_001;
        let ran = run(host, &spec).await;
        assert_eq!(ran.outcome.cause, ExitCause::OutputLimit, "{host:?}");
        assert_eq!((ran.stdout.len(), ran.outcome.usage.output_bytes), (100_001, 100_001), "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_ends_right_above_the_limit_is_no_success() {
    let mut spec = shell("printf 12345");
    spec.limits.output_bytes = 4;
    let ran = run(HOSTS[0], &spec).await;
    assert_eq!((ran.outcome.cause, ran.stdout.as_str()), (ExitCause::OutputLimit, "1234"));
}

#[tokio::test(flavor = "multi_thread")]
async fn processor_time_is_bounded_for_the_tree_as_a_whole() {
    for host in HOSTS {
        for command in ["while :; do :; done", "while :; do :; done & while :; do :; done"] {
            let mut spec = shell(command);
            spec.limits.cpu_ms = 200;
            let ran = run(host, &spec).await;
            assert_eq!(ran.outcome.cause, ExitCause::CpuLimit, "{host:?}: {command}");
            let used = ran.outcome.usage.cpu_ms();
            assert!((190..320).contains(&used), "{host:?}: {command}: {used} ms");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn short_lived_children_count_against_processor_time() {
    let mut spec = shell("while :; do /bin/true; done");
    spec.limits.cpu_ms = 300;
    let ran = run(HOSTS[0], &spec).await;
    assert_eq!(ran.outcome.cause, ExitCause::CpuLimit);
    assert!((270..450).contains(&ran.outcome.usage.cpu_ms()), "{:?}", ran.outcome.usage);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_beyond_the_limit_is_not_given() {
    let size = (200 << 20).to_string();
    assert!(attack_outside(&["memory", &size]).status.success());
    for host in HOSTS {
        let mut spec = attack(&["memory", &size]);
        spec.limits.memory_bytes = 64 << 20;
        let ran = run(host, &spec).await;
        if host.allows_cgroups() {
            assert_eq!(ran.outcome.cause, ExitCause::OutOfMemory, "{host:?}");
        } else {
            assert_eq!(ran.stdout, "errno 12\n", "{host:?}");
        }
        spec.limits.memory_bytes = 512 << 20;
        let ran = run(host, &spec).await;
        assert_eq!(ran.outcome.cause, ExitCause::Exited { code: 0 }, "{host:?}");
        assert!(ran.outcome.usage.peak_memory_bytes >= 200 << 20, "{host:?}: {:?}", ran.outcome.usage);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_beyond_the_limit_are_not_made() {
    assert_eq!(attack_outside(&["forks", "60"]).stdout, b"made 60\ndone\n");
    for host in HOSTS.into_iter().filter(|host| host.allows_namespaces()) {
        let mut spec = attack(&["forks", "60"]);
        spec.limits.pids = 20;
        // Nineteen and the program itself.
        assert_eq!(run(host, &spec).await.stdout, "made 19\nerrno 11\n", "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_can_not_grow_beyond_the_limit() {
    for host in HOSTS {
        let mut spec = shell("exec head -c 2000000 /dev/zero > big");
        spec.limits.file_bytes = 1 << 20;
        let ran = run(host, &spec).await;
        assert_eq!(ran.outcome.cause, ExitCause::Signaled { signal: libc::SIGXFSZ }, "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_work_area_can_not_grow_beyond_its_size() {
    for host in HOSTS.into_iter().filter(|host| host.allows_namespaces()) {
        let mut spec = shell("head -c 3000000 /dev/zero > big; echo $?");
        spec.profile.work.size_bytes = 1 << 20;
        let ran = run(host, &spec).await;
        assert_eq!(ran.stdout, "1\n", "{host:?}");
        assert!(ran.stderr.contains("No space left"), "{host:?}: {}", ran.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_files_are_bounded_and_the_bound_can_not_be_raised() {
    for host in HOSTS {
        let ran = run(host, &attack(&["raise_limit", "1048576"])).await;
        assert_eq!(ran.stdout, "errno 1\n", "{host:?}");
        assert_eq!(run(host, &shell("ulimit -n")).await.stdout, "256\n", "{host:?}");
    }
}
