//! Real programs behave as they would anywhere: output, input, exit codes, environment, working directory.

use std::path::Path;

use sandbox_agent::sandbox::{ExitCause, SandboxError, Spec};

use crate::rig::{HOSTS, Host, run, run_in, shell};

const OK: ExitCause = ExitCause::Exited { code: 0 };

async fn prints(spec: &Spec, stdin: Option<&str>, expected: &str) {
    for host in HOSTS {
        let ran = run_in(&host.sandbox(), spec, stdin).await.unwrap();
        assert_eq!((&ran.outcome.cause, ran.stdout.as_str()), (&OK, expected), "{host:?}: {}", ran.stderr);
        assert_eq!(ran.outcome.usage.output_bytes, expected.len() as u64, "{host:?}");
        assert!(ran.outcome.usage.wall_ns > 0, "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_program_prints() {
    prints(&Spec::new("/bin/echo", ["one", "two three"]), None, "one two three\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bare_name_is_found_in_the_path() {
    prints(&Spec::new("echo", ["found"]), None, "found\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_of_ordinary_tools_works() {
    let spec = shell("printf '3\\n1\\n2\\n' | sort | awk '{ s = s $1 } END { print s }'");
    prints(&spec, None, "123\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_arrives_whole() {
    let input = "line\n".repeat(50_000);
    prints(&shell("wc -l; echo end"), Some(&input), "50000\nend\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_ignores_its_input_still_ends() {
    prints(&shell("exit 0"), Some(&"x".repeat(1 << 20)), "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_can_be_written_and_read_in_the_work_area() {
    prints(&shell("echo kept > file && mkdir d && mv file d && cat d/file"), None, "kept\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_is_exactly_the_one_specified() {
    let mut spec = Spec::new("/usr/bin/env", [""; 0]);
    spec.env = vec![("A".to_owned(), "1".to_owned()), ("B".to_owned(), "two words".to_owned())];
    prints(&spec, None, "A=1\nB=two words\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_computes_and_runs_threads_and_children() {
    if !Path::new("/usr/bin/python3").exists() {
        return;
    }
    let code = "import subprocess, threading, json\n\
                t = threading.Thread(target=lambda: print(json.dumps({'n': sum(range(1000))}), flush=True))\n\
                t.start(); t.join()\n\
                print(subprocess.run(['/bin/echo', 'child'], capture_output=True, text=True).stdout, end='')";
    prints(&Spec::new("/usr/bin/python3", ["-c", code]), None, "{\"n\": 499500}\nchild\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stdout_and_stderr_are_told_apart() {
    let ran = run(Host::AsIs, &shell("echo out; echo err >&2")).await;
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("out\n", "err\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_signals_are_reported() {
    for host in HOSTS {
        let sandbox = host.sandbox();
        for (command, cause) in [
            ("exit 7", ExitCause::Exited { code: 7 }),
            ("kill -9 $$", ExitCause::Signaled { signal: 9 }),
            ("kill -SEGV $$", ExitCause::Signaled { signal: 11 }),
        ] {
            let ran = run_in(&sandbox, &shell(command), None).await.unwrap();
            assert_eq!(ran.outcome.cause, cause, "{host:?}: {command}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_program_is_a_failed_launch() {
    for host in HOSTS {
        for (program, errno) in [("/usr/bin/no-such-program", 2), ("no-such-program", 2), ("/usr/bin", 13)] {
            let ran = run(host, &Spec::new(program, [""; 0])).await;
            let cause = ExitCause::LaunchFailed { stage: "execve".to_owned(), errno };
            assert_eq!(ran.outcome.cause, cause, "{host:?}: {program}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_working_directory_fails_before_anything_is_prepared() {
    for host in HOSTS {
        let mut spec = shell("true");
        spec.cwd = "/tmp/absent".into();
        let error = run_in(&host.sandbox(), &spec, None).await.unwrap_err();
        assert!(
            matches!(&error, SandboxError::Launch { stage, errno: 2 } if stage == "cwd"),
            "{host:?}: {error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn specifications_at_fault_are_refused_by_field() {
    let sandbox = Host::AsIs.sandbox();
    let ok = shell("true");
    let with = |change: &dyn Fn(&mut Spec)| {
        let mut spec = ok.clone();
        change(&mut spec);
        spec
    };
    for (field, spec) in [
        ("program", with(&|s| s.program.clear())),
        ("args[1]", with(&|s| s.args[1].push('\0'))),
        ("args", with(&|s| s.args.push("x".repeat(200_000)))),
        ("env", with(&|s| s.env.push(("A=B".to_owned(), String::new())))),
        ("cwd", with(&|s| s.cwd = "relative".into())),
        ("cwd", with(&|s| s.cwd = "/tmp/../etc".into())),
        ("limits.cpu_ms", with(&|s| s.limits.cpu_ms = 0)),
        ("limits.cpus_milli", with(&|s| s.limits.cpus_milli = 9)),
        ("limits.cpus_milli", with(&|s| s.limits.cpus_milli = 4_096_001)),
        ("limits.io_bytes_per_s", with(&|s| s.limits.io_bytes_per_s = 1 << 63)),
        ("limits.wall_ms", with(&|s| s.limits.wall_ms = u64::MAX)),
        ("limits.memory_bytes", with(&|s| s.limits.memory_bytes = 1)),
        ("profile.devices", with(&|s| s.profile.devices.push("../sda".to_owned()))),
    ] {
        let error = run_in(&sandbox, &spec, None).await.unwrap_err();
        assert!(matches!(&error, SandboxError::Spec(fault) if fault.field == field), "{field}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_executions_run_at_once() {
    let sandbox = Host::AsIs.sandbox();
    let one = |n: usize| {
        let sandbox = sandbox.clone();
        tokio::spawn(async move {
            run_in(&sandbox, &shell(&format!("sleep 0.2; echo {n}")), None).await.unwrap().stdout
        })
    };
    for (n, task) in (0..24).map(one).collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(task.await.unwrap(), format!("{n}\n"));
    }
}
