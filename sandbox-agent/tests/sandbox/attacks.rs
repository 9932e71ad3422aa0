//! Attacks, each with a positive control: outside the sandbox the same program gets its answer from the kernel.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use sandbox_agent::sandbox::{ExitCause, Profile};

use crate::rig::{HOSTS, Host, attack, attack_outside, rig, run, run_in, shell};

/// What stops an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    Killed,
    Errno(i32),
}
use Stopped::{Errno, Killed};

const EPERM: Stopped = Errno(libc::EPERM);

async fn is_stopped(args: &[&str], expected: Stopped) {
    let outside = attack_outside(args);
    assert_eq!(outside.status.signal(), None, "{args:?}: the positive control was killed");
    let own_answer = String::from_utf8_lossy(&outside.stdout).into_owned();
    for host in HOSTS {
        let ran = run(host, &attack(args)).await;
        let (cause, stdout) = match expected {
            Killed => (ExitCause::Seccomp, String::new()),
            Errno(number) => (ExitCause::Exited { code: 1 }, format!("errno {number}\n")),
        };
        assert_eq!(
            (ran.outcome.cause, &ran.stdout),
            (cause, &stdout),
            "{host:?}: {args:?} (outside: {own_answer})"
        );
        if expected != Killed {
            assert_ne!(own_answer, stdout, "{args:?}: refused without a sandbox, so this proves nothing");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_calls_kill() {
    let calls = [
        "mount",
        "umount",
        "pivot_root",
        "chroot",
        "fsopen",
        "open_tree",
        "ptrace",
        "process_vm_readv",
        "bpf",
        "io_uring_setup",
        "unshare",
        "setns",
        "clone_newuser",
        "keyctl",
        "add_key",
        "userfaultfd",
        "perf_event_open",
        "kexec",
        "open_by_handle_at",
        "sethostname",
        "clock_settime",
        "syslog",
    ];
    for call in calls {
        is_stopped(&[call], Killed).await;
    }
}

#[cfg(target_arch = "x86_64")]
#[tokio::test(flavor = "multi_thread")]
async fn foreign_entries_into_the_kernel_kill() {
    is_stopped(&["x32"], Killed).await;
    is_stopped(&["i386"], Killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_outside_the_list_are_refused() {
    for call in ["memfd_create", "seccomp", "setuid", "pdeathsig", "tiocsti"] {
        is_stopped(&[call], EPERM).await;
    }
    is_stopped(&["clone3"], Errno(libc::ENOSYS)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_programs_need_of_filtered_calls_still_works() {
    for host in HOSTS {
        for call in ["socketpair", "mkfifo"] {
            assert_eq!(
                run(host, &attack(&[call])).await.outcome.cause,
                ExitCause::Exited { code: 0 },
                "{host:?}: {call}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_socket_with_an_address_can_be_made() {
    for family in ["socket_inet", "socket_inet6", "socket_netlink", "socket_unix"] {
        is_stopped(&[family], EPERM).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_on_the_host_can_not_be_reached() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    assert!(attack_outside(&["connect", &port]).status.success());
    is_stopped(&["connect", &port], EPERM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_host_can_not_be_read() {
    let secret = rig().join("secret");
    fs::write(&secret, "secret").unwrap();
    let secret = secret.to_str().unwrap();
    assert!(attack_outside(&["read", secret]).status.success());
    for host in HOSTS {
        let errno = if host.allows_namespaces() { libc::ENOENT } else { libc::EACCES };
        let ran = run(host, &attack(&["read", secret])).await;
        assert_eq!(ran.stdout, format!("errno {errno}\n"), "{host:?}");
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
        assert_eq!(run(host, &attack(&["mknod_device"])).await.stdout, "errno 1\n", "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_outside_can_not_be_signalled() {
    let me = std::process::id().to_string();
    assert!(attack_outside(&["signal", &me]).status.success());
    for host in HOSTS {
        let errno = if host.allows_namespaces() { libc::ESRCH } else { libc::EPERM };
        let ran = run(host, &attack(&["signal", &me])).await;
        assert_eq!(ran.stdout, format!("errno {errno}\n"), "{host:?}");
        // The sandbox's own init, which has the payload's user id.
        let ran = run(host, &shell("kill -9 $PPID 2>/dev/null || echo refused")).await;
        assert_eq!(
            (ran.outcome.cause, ran.stdout.as_str()),
            (ExitCause::Exited { code: 0 }, "refused\n"),
            "{host:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_descriptor_leaks_in() {
    for host in HOSTS {
        let ran = run(host, &attack(&["fds"])).await;
        assert_eq!((ran.outcome.cause, ran.stdout.as_str()), (ExitCause::Exited { code: 0 }, ""), "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_variable_of_the_agent_leaks_in() {
    assert!(std::env::vars().next().is_some(), "the tests themselves have an environment");
    for host in HOSTS {
        let spec = sandbox_agent::sandbox::Spec::new("/usr/bin/env", [""; 0]);
        assert_eq!(run(host, &spec).await.stdout, "", "{host:?}");
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
