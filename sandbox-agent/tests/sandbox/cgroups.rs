//! The cgroup of an execution: limits for the tree as a whole, what it counts, and that none is left behind.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use sandbox_agent::sandbox::{
    Chunk, Control, ControlStatus, ExitCause, Layer, MemorySource, Running, Sandbox, SandboxError, Spec,
    StartOptions, probe,
};
use tokio::sync::mpsc;

use crate::rig::{HOSTS, Host, cgroups_of, keeper_of, own_cgroups, rig, run, run_in, shell, until};

const OK: ExitCause = ExitCause::Exited { code: 0 };

fn hosts_with_cgroups() -> impl Iterator<Item = Host> {
    HOSTS.into_iter().filter(|host| host.allows_cgroups())
}

fn memory(args: &[&str]) -> Spec {
    let program = rig().join("memory");
    let mut spec = Spec::new(program.to_str().unwrap(), args.iter().copied());
    spec.profile = spec.profile.with_read_only(program);
    spec.limits.memory_bytes = 100 << 20;
    spec
}

fn cgroup(controls: &[Control]) -> &Control {
    controls.iter().find(|control| control.layer == Layer::Cgroup).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn address_space_is_free_where_the_memory_in_use_is_limited() {
    let reserve = memory(&["reserve", "65536"]);
    for host in HOSTS {
        let ran = run(host, &reserve).await;
        if host.allows_cgroups() {
            assert_eq!(ran.outcome.cause, OK, "{host:?}: {}", ran.stdout);
        } else {
            assert_eq!(ran.stdout, "errno 12\n", "{host:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn using_more_memory_than_the_limit_is_out_of_memory() {
    for host in hosts_with_cgroups() {
        for args in [&["touch", "200"][..], &["sacrifice", "200"]] {
            let ran = run(host, &memory(args)).await;
            assert_eq!(ran.outcome.cause, ExitCause::OutOfMemory, "{host:?}: {args:?}");
            let peak = ran.outcome.usage.peak_memory_bytes;
            assert!((90 << 20..=100 << 20).contains(&peak), "{host:?}: {args:?}: {peak}");
        }
        let ran = run(host, &memory(&["touch", "60"])).await;
        assert_eq!(ran.outcome.cause, OK, "{host:?}");
        let usage = ran.outcome.usage;
        assert!((60 << 20..70 << 20).contains(&usage.peak_memory_bytes), "{host:?}: {usage:?}");
        assert_ne!(usage.memory_source, MemorySource::Wait4, "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_can_not_share_out_more_memory_than_the_limit() {
    for host in hosts_with_cgroups() {
        let ran = run(host, &memory(&["share", "40", "4"])).await;
        assert_eq!(ran.outcome.cause, ExitCause::OutOfMemory, "{host:?}");
        let ran = run(host, &memory(&["share", "15", "4"])).await;
        assert_eq!(ran.outcome.cause, OK, "{host:?}");
        assert!(ran.outcome.usage.peak_memory_bytes >= 60 << 20, "{host:?}: {:?}", ran.outcome.usage);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_in_the_work_area_count_as_memory() {
    for host in hosts_with_cgroups().filter(|host| host.allows_namespaces()) {
        let mut spec = shell("head -c 60000000 /dev/zero > a && head -c 60000000 /dev/zero > b");
        spec.limits.memory_bytes = 100 << 20;
        spec.profile.work.size_bytes = 1 << 30;
        assert_eq!(run(host, &spec).await.outcome.cause, ExitCause::OutOfMemory, "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_processes_at_one_time_are_counted() {
    for host in hosts_with_cgroups() {
        let ran = run(host, &shell("sleep 0.1 & sleep 0.1 & sleep 0.1 & wait")).await;
        assert_eq!(ran.outcome.cause, OK, "{host:?}");
        // The shell and its three; where the kernel has no such counter, nobody counted.
        let expected = if counts_peaks() { 4 } else { 0 };
        assert_eq!(ran.outcome.usage.peak_pids, expected, "{host:?}");
    }
}

fn counts_peaks() -> bool {
    let temporary = format!("exchequer-test-{}", std::process::id());
    own_cgroups("pids").is_some_and(|own| {
        let dir = own.join(temporary);
        fs::create_dir(&dir).unwrap();
        let counts = dir.join("pids.peak").exists();
        fs::remove_dir(dir).unwrap();
        counts
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn processor_time_is_that_of_the_whole_tree_daemons_included() {
    for host in hosts_with_cgroups() {
        // A daemon that nobody of the tree waits for uses up the budget.
        let mut spec = shell("(setsid sh -c 'while :; do :; done' &) ; sleep 100");
        spec.limits.cpu_ms = 200;
        let ran = run(host, &spec).await;
        assert_eq!(ran.outcome.cause, ExitCause::CpuLimit, "{host:?}");
        assert!(ran.outcome.usage.cpu_ms() >= 200, "{host:?}: {:?}", ran.outcome.usage);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_evidence_has_the_limits_as_the_kernel_holds_them_and_the_version() {
    for host in hosts_with_cgroups() {
        let mut spec = shell("cat /proc/self/cgroup; ls /sys/fs/cgroup");
        spec.limits.pids = 23;
        spec.limits.cpus_milli = 500;
        let ran = run_in(&host.sandbox(), &spec, None).await.unwrap();
        let Control { status, evidence, .. } = cgroup(&ran.controls);
        assert_eq!(*status, ControlStatus::Enforced, "{host:?}: {evidence}");
        assert!(evidence.contains("pids.max=23"), "{host:?}: {evidence}");
        assert!(evidence.contains(&(1 << 30).to_string()), "{host:?}: {evidence}");
        assert!(
            evidence.contains("cpu.cfs_quota_us=50000") || evidence.contains("cpu.max=50000 100000"),
            "{evidence}"
        );
        assert!(evidence.contains("cgroup v1") || evidence.contains("cgroup v2"), "{host:?}: {evidence}");
        // Inside, its own cgroup is the root of all there is, and there is no file to change it by.
        if host.allows_namespaces() {
            let limited = ran.stdout.lines().filter(|line| line.contains("memory") || line.contains("pids"));
            let v2 = ran.stdout.lines().filter(|line| line.starts_with("0::"));
            assert!(limited.chain(v2).all(|line| line.ends_with(":/")), "{host:?}: {}", ran.stdout);
            assert!(ran.stderr.contains("No such file"), "{host:?}: {}", ran.stderr);
        }
    }
}

/// How often the kernel made a helper's executions wait for their part of the processors.
fn throttled(helper: u32) -> u64 {
    let leaves = cgroups_of(helper).into_iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten();
    let counts = leaves.filter_map(|leaf| {
        let text = fs::read_to_string(leaf.ok()?.path().join("cpu.stat")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("nr_throttled "))?.parse::<u64>().ok()
    });
    counts.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_program_waits_for_its_part_of_the_processors() {
    for host in hosts_with_cgroups().filter(|_| own_cgroups("cpu").is_some()) {
        let sandbox = host.sandbox();
        let mut spec = shell("while :; do :; done");
        spec.limits.cpus_milli = 100;
        let (sender, _output) = mpsc::channel(16);
        let running = sandbox.prepare(&spec, None, sender).await.unwrap().release().await.unwrap();
        let helper = sandbox.helper_pid().await.unwrap();
        until("it is throttled", || throttled(helper) > 0).await;
        drop(running);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_used_up_its_part_of_the_processors_can_be_killed_and_hands_out_its_files() {
    for host in hosts_with_cgroups().filter(|_| own_cgroups("cpu").is_some()) {
        let sandbox = host.sandbox();
        let busy = "while :; do :; done";
        let mut spec = shell(&format!("echo kept > file; {busy} & {busy} & echo runs; {busy}"));
        spec.limits.cpus_milli = 10;
        spec.outputs = vec![PathBuf::from("file")];
        let (sender, mut output) = mpsc::channel(16);
        let mut running = sandbox.prepare(&spec, None, sender).await.unwrap().release().await.unwrap();
        assert_eq!(output.recv().await.unwrap().bytes, "runs\n", "{host:?}");
        let helper = sandbox.helper_pid().await.unwrap();
        until("it is throttled", || throttled(helper) > 0).await;
        running.kill();
        let outcome = running.outcome().await.unwrap();
        assert_eq!(outcome.cause, ExitCause::Cancelled, "{host:?}");
        assert!(outcome.files[0].is_ok(), "{host:?}: {:?}", outcome.files[0]);
    }
}

fn limits_io() -> bool {
    own_cgroups("blkio").or_else(|| own_cgroups("io")).is_some()
}

/// Whether it is one of the kernel's disks in memory.
fn is_ram(name: &str) -> bool {
    let number = name.strip_prefix("ram");
    number.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
}

/// `major:minor` of the devices that something can be read of, in order.
fn block_devices() -> Vec<String> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().filter_map(Result::ok);
    let named = entries.filter(|entry| !is_ram(&entry.file_name().to_string_lossy()));
    // One that goes away meanwhile has no files.
    let numbers = named.filter_map(|entry| {
        let read = |file| fs::read_to_string(entry.path().join(file)).ok();
        (read("size")? != "0\n").then(|| read("dev"))?
    });
    let mut numbers = numbers.map(|number| number.trim().to_owned()).collect::<Vec<_>>();
    numbers.sort_unstable();
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn input_and_output_are_limited_of_every_device_or_the_layer_is_degraded() {
    const MOST: usize = 64;
    const NAMED: usize = 16;
    let devices = block_devices();
    for host in hosts_with_cgroups() {
        let mut spec = shell("true");
        spec.limits.io_bytes_per_s = 8 << 20;
        let ran = run_in(&host.sandbox(), &spec, None).await.unwrap();
        let Control { status, evidence, .. } = cgroup(&ran.controls);
        if !limits_io() || devices.is_empty() || devices.len() > MOST {
            assert_eq!(*status, ControlStatus::Degraded, "{host:?}: {evidence}");
            let why = ["no io controller", "is not limited as asked"];
            assert!(why.iter().any(|why| evidence.contains(why)), "{host:?}: {evidence}");
            continue;
        }
        assert_eq!(*status, ControlStatus::Enforced, "{host:?}: {evidence}");
        let (count, first) = (devices.len(), &devices[..devices.len().min(NAMED)]);
        let end = if count > NAMED { format!(", and {} more)", count - NAMED) } else { ")".to_owned() };
        let named = format!("8388608 bytes/s each way, block devices: {count} ({}{end}", first.join(", "));
        assert!(evidence.contains(&named), "{host:?}: {named} is not in {evidence}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_device_at_a_limited_rate_ends_when_its_time_is_over() {
    let file = rig().join("slow_input");
    fs::write(&file, vec![7; 32 << 20]).unwrap();
    fs::File::open(&file).unwrap().sync_all().unwrap();
    let read = format!("exec dd if={} of=/dev/null bs=32M count=1 iflag=direct", file.display());
    let device = fs::metadata(&file).unwrap().dev();
    let device = format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    // Where it is in memory, or not read past the cache, nothing waits for a device.
    let outside = Command::new("sh").args(["-c", &read]).output().unwrap();
    let waits = Path::new(&device).exists() && outside.status.success();
    if !waits || !limits_io() {
        let why = format!("{device} is no block device that is read past the cache, or nothing limits it");
        writeln!(std::io::stderr(), "nothing waits for a device, so nothing was tested: {why}").unwrap();
    }
    for host in hosts_with_cgroups().filter(|_| waits && limits_io()) {
        let sandbox = host.sandbox();
        let mut spec = shell(&read);
        spec.profile = spec.profile.with_read_only(&file);
        let ran = run_in(&sandbox, &spec, None).await.unwrap();
        assert_eq!(ran.outcome.cause, OK, "{host:?}: {}", ran.stderr);
        // At this rate it takes 512 seconds, in which the kernel lets nobody kill it.
        spec.limits.io_bytes_per_s = 64 << 10;
        spec.limits.wall_ms = 1000;
        let ran = run_in(&sandbox, &spec, None).await.unwrap();
        assert_eq!(ran.outcome.cause, ExitCause::Timeout, "{host:?}: {}", ran.stderr);
    }
    fs::remove_file(file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cgroup_the_layer_is_missing_and_address_space_is_the_limit() {
    for host in HOSTS {
        let mut spec = memory(&["reserve", "1000"]);
        spec.omit = vec![Layer::Cgroup];
        let ran = run_in(&host.sandbox(), &spec, None).await.unwrap();
        assert_eq!(cgroup(&ran.controls).status, ControlStatus::Unavailable, "{host:?}");
        assert_eq!(ran.stdout, "errno 12\n", "{host:?}");
        assert_eq!(ran.outcome.usage.memory_source, MemorySource::Wait4, "{host:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_to_whom_nothing_is_delegated_has_no_cgroup_and_is_told_how_to_get_one() {
    let host = Host::PlainUser;
    if host.allows_cgroups() {
        return;
    }
    let controls = probe(&host.sandbox()).await.unwrap();
    let Control { status, evidence, remedy, .. } = cgroup(&controls);
    assert_eq!(*status, ControlStatus::Unavailable);
    assert!(evidence.contains("no cgroup of its own; "), "{evidence}");
    assert!(evidence.contains("Permission denied") || evidence.contains("beside the agent"), "{evidence}");
    assert!(remedy.contains("Delegate=yes"), "{remedy}");
}

/// Cgroups of one test's own, below that of all, and a helper that is started in them.
struct Apart {
    dirs: Vec<PathBuf>,
    helper: PathBuf,
}

/// As in `confine_helper.c`.
const PLAIN_USER: u32 = 12345;

impl Apart {
    /// Belonging to the plain user, who also is the helper's; or else to whoever runs the tests.
    fn make(name: &str, delegated: bool) -> Option<Self> {
        own_cgroups("memory").filter(|own| Host::AsIs.allows_cgroups() && own.join("tasks").exists())?;
        let name = format!("exchequer-test-{name}-{}", std::process::id());
        let kinds = ["memory", "pids", "blkio", "unified"];
        let dirs = kinds.iter().filter_map(|kind| Some(own_cgroups(kind)?.join(&name))).collect::<Vec<_>>();
        for dir in &dirs {
            fs::create_dir(dir).unwrap();
        }
        Some(Self::with_helper(&name, dirs.clone(), &dirs, delegated))
    }

    /// The same where version 2 has the controllers, as systemd delegates it: with a subgroup for the agent or without.
    fn make_v2(name: &str, subgroup: bool) -> Option<Self> {
        let own =
            own_cgroups("memory").filter(|own| Host::AsIs.allows_cgroups() && !own.join("tasks").exists())?;
        fs::write(own.join("cgroup.subtree_control"), "+memory +pids").unwrap();
        let name = format!("exchequer-test-{name}-{}", std::process::id());
        let dir = own.join(&name);
        fs::create_dir(&dir).unwrap();
        let mut dirs = vec![dir.clone()];
        chown(dir.join("cgroup.subtree_control"), Some(PLAIN_USER), Some(PLAIN_USER)).unwrap();
        if subgroup {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(&dir, "user.delegate", b"1", flags).unwrap();
            dirs.insert(0, dir.join("agent"));
            fs::create_dir(&dirs[0]).unwrap();
        }
        let start_in = vec![dirs[0].clone()];
        let mut apart = Self::with_helper(&name, dirs, &start_in, true);
        if !subgroup {
            apart.dirs.insert(0, dir.join("exchequer-agent"));
        }
        Some(apart)
    }

    fn with_helper(name: &str, dirs: Vec<PathBuf>, start_in: &[PathBuf], delegated: bool) -> Self {
        let helper = rig().join(name);
        for dir in &dirs {
            for file in [dir.clone(), dir.join("cgroup.procs")].iter().filter(|_| delegated) {
                chown(file, Some(PLAIN_USER), Some(PLAIN_USER)).unwrap();
            }
        }
        let enter = |dir: &PathBuf| format!("echo $$ > '{}/cgroup.procs' || exit 1\n", dir.display());
        let enter = start_in.iter().map(enter).collect::<Vec<_>>().concat();
        let program = if delegated { "plain_user_helper" } else { "sandbox-agent" };
        let script = format!("#!/bin/sh\n{enter}exec '{}' \"$@\"\n", rig().join(program).display());
        fs::write(&helper, script).unwrap();
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dirs, helper }
    }

    fn sandbox(&self) -> Sandbox {
        let options = StartOptions { helper: self.helper.clone(), ..StartOptions::default() };
        Sandbox::start(options).unwrap()
    }

    /// Fails as long as anything is left in them.
    async fn remove(self) {
        for dir in &self.dirs {
            until(&format!("{} is empty", dir.display()), || fs::remove_dir(dir).is_ok()).await;
        }
        fs::remove_file(self.helper).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_user_has_what_was_delegated() {
    let ways = [Apart::make("plain", true), Apart::make_v2("moved", false), Apart::make_v2("beside", true)];
    for delegated in ways.into_iter().flatten() {
        let sandbox = delegated.sandbox();
        let ran = run_in(&sandbox, &memory(&["touch", "200"]), None).await.unwrap();
        let Control { status, evidence, .. } = cgroup(&ran.controls);
        assert_eq!(*status, ControlStatus::Enforced, "{:?}: {evidence}", delegated.dirs);
        assert_eq!(ran.outcome.cause, ExitCause::OutOfMemory, "{:?}", delegated.dirs);
        drop(sandbox);
        delegated.remove().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_the_host_has_no_controller_for_degrades_the_layer() {
    let Some(delegated) = Apart::make("half", true) else { return };
    // One that may not be written to any more.
    let pids = delegated.dirs.iter().find(|dir| dir.starts_with("/sys/fs/cgroup/pids")).unwrap();
    chown(pids, Some(0), Some(0)).unwrap();
    let sandbox = delegated.sandbox();
    let ran = run_in(&sandbox, &memory(&["reserve", "65536"]), None).await.unwrap();
    let Control { status, evidence, .. } = cgroup(&ran.controls);
    assert_eq!(*status, ControlStatus::Degraded, "{evidence}");
    assert!(evidence.contains("no pids controller") && evidence.contains("Permission denied"), "{evidence}");
    assert_eq!(ran.outcome.cause, OK, "its memory is limited all the same");
    drop(sandbox);
    delegated.remove().await;
}

async fn start_sleeper(sandbox: &Sandbox) -> (Running, mpsc::Receiver<Chunk>) {
    let (sender, mut output) = mpsc::channel(16);
    let spec = shell("setsid sleep 1000 & echo runs; exec sleep 1000");
    let running = sandbox.prepare(&spec, None, sender).await.unwrap().release().await.unwrap();
    assert_eq!(output.recv().await.unwrap().bytes, "runs\n");
    (running, output)
}

fn kill_hard(pids: &[u32]) {
    let pids = pids.iter().map(u32::to_string);
    assert!(Command::new("kill").arg("-9").args(pids).status().unwrap().success());
}

async fn none_left(helper: u32) {
    until(&format!("no cgroup of {helper} is left"), || cgroups_of(helper).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_helper_leaves_no_cgroup() {
    for host in hosts_with_cgroups() {
        let sandbox = host.sandbox();
        let _sleeper = start_sleeper(&sandbox).await;
        let helper = sandbox.helper_pid().await.unwrap();
        assert!(!cgroups_of(helper).is_empty(), "{host:?}");
        kill_hard(&[helper]);
        none_left(helper).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_that_ends_leaves_no_cgroup() {
    for host in hosts_with_cgroups() {
        let sandbox = host.sandbox();
        run_in(&sandbox, &shell("true"), None).await.unwrap();
        let helper = sandbox.helper_pid().await.unwrap();
        assert!(!cgroups_of(helper).is_empty(), "{host:?}");
        drop(sandbox);
        none_left(helper).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_helper_and_its_keeper_leave_when_killed_together_the_next_start_removes() {
    // Where no other test's helper comes first.
    let Some(apart) = Apart::make("next", false) else { return };
    let left = |helper: u32| {
        let prefix = format!("exchequer-{helper}-");
        let below = |dir: &PathBuf| fs::read_dir(dir).unwrap().filter_map(Result::ok).collect::<Vec<_>>();
        let entries = apart.dirs.iter().flat_map(below);
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count()
    };
    let sandbox = apart.sandbox();
    let (mut running, _output) = start_sleeper(&sandbox).await;
    let helper = sandbox.helper_pid().await.unwrap();
    kill_hard(&[keeper_of(helper).unwrap(), helper]);
    // Its supervisor ends it, but has no rights to remove anything.
    assert!(matches!(running.outcome().await, Err(SandboxError::Lost(_))));
    assert_eq!(left(helper), apart.dirs.len());
    let next = apart.sandbox();
    run_in(&next, &shell("true"), None).await.unwrap();
    assert_eq!(left(helper), 0);
    assert_ne!(left(next.helper_pid().await.unwrap()), 0);
    drop((sandbox, next));
    apart.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_keeper_is_replaced() {
    for host in hosts_with_cgroups() {
        let sandbox = host.sandbox();
        run_in(&sandbox, &shell("true"), None).await.unwrap();
        let helper = sandbox.helper_pid().await.unwrap();
        let keeper = keeper_of(helper).unwrap();
        until("it has made some ready", || !leaves(helper).is_empty()).await;
        let made = leaves(helper);
        kill_hard(&[keeper]);
        until("there is another", || keeper_of(helper).is_some_and(|other| other != keeper)).await;
        for _ in 0..20 {
            let ran = run_in(&sandbox, &shell("true"), None).await.unwrap();
            assert_eq!(cgroup(&ran.controls).status, ControlStatus::Enforced, "{host:?}");
        }
        until("what the first had made is gone", || leaves(helper).is_disjoint(&made)).await;
        drop(sandbox);
        none_left(helper).await;
    }
}

/// The directories of a helper's executions.
fn leaves(helper: u32) -> BTreeSet<PathBuf> {
    let entries = cgroups_of(helper).into_iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten();
    let entries = entries.filter_map(Result::ok);
    entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn more_executions_at_once_than_cgroups_are_ready_have_one_each() {
    for host in hosts_with_cgroups() {
        let sandbox = host.sandbox();
        let one = |_| {
            let sandbox = sandbox.clone();
            tokio::spawn(async move { run_in(&sandbox, &shell("sleep 0.2"), None).await.unwrap().controls })
        };
        let mut paths = vec![];
        for task in (0..20).map(one).collect::<Vec<_>>() {
            let controls = task.await.unwrap();
            let Control { status, evidence, .. } = cgroup(&controls);
            assert_eq!(*status, ControlStatus::Enforced, "{host:?}: {evidence}");
            paths.push(evidence.split(" in ").nth(1).unwrap().split(':').next().unwrap().to_owned());
        }
        paths.sort_unstable();
        paths.dedup();
        assert_eq!(paths.len(), 20, "{host:?}");
        let helper = sandbox.helper_pid().await.unwrap();
        // The eight that are kept ready.
        until("the others are gone", || cgroups_of(helper).iter().all(|dir| children(dir) <= 8)).await;
    }
}

fn children(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count()
}
