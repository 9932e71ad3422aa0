//! Starts sandboxes in the three surroundings that matter, and runs programs in them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use sandbox_agent::sandbox::{Control, Outcome, Running, Sandbox, SandboxError, Spec, StartOptions, Stream};
use tokio::sync::mpsc;

/// The surroundings of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The agent runs as whoever runs the tests.
    AsIs,
    /// The agent runs as a plain user.
    PlainUser,
    /// As a plain user under a container runtime's filter: no namespaces, no mounts.
    Restricted,
}

pub const HOSTS: [Host; 3] = [Host::AsIs, Host::PlainUser, Host::Restricted];

impl Host {
    /// Whether namespaces are to be had, by asking the kernel without the sandbox's code.
    pub fn allows_namespaces(self) -> bool {
        static KERNEL: OnceLock<bool> = OnceLock::new();
        let kernel =
            KERNEL.get_or_init(|| Command::new(rig().join("host_allows")).status().unwrap().success());
        self != Self::Restricted && *kernel
    }

    /// Whether it may make cgroups with memory and pids limits, by trying without the sandbox's code.
    pub fn allows_cgroups(self) -> bool {
        static TRIED: OnceLock<bool> = OnceLock::new();
        let tried = TRIED.get_or_init(|| {
            ["memory", "pids"].iter().all(|controller| {
                own_cgroups(controller).is_some_and(|own| {
                    let dir = own.join(format!("exchequer-test-{controller}-{}", std::process::id()));
                    // Version 2: only its root has children with controllers beside the processes of a test run.
                    let fit = own.join("tasks").exists() || !own.join("cgroup.type").exists();
                    fit && fs::create_dir(&dir).is_ok() && fs::remove_dir(&dir).is_ok()
                })
            })
        });
        self == Self::AsIs && *tried
    }

    pub fn sandbox(self) -> Sandbox {
        self.sandbox_with_ready(0)
    }

    /// With that many executions built ahead.
    pub fn sandbox_with_ready(self, ready: usize) -> Sandbox {
        self.sandbox_with_ready_until(ready, StartOptions::default().ready_age)
    }

    /// With that many, which get so old and no older.
    pub fn sandbox_with_ready_until(self, ready: usize, ready_age: Duration) -> Sandbox {
        let helper = match self {
            Self::AsIs => "sandbox-agent",
            Self::PlainUser => "plain_user_helper",
            Self::Restricted => "restricted_helper",
        };
        let scratch = std::env::temp_dir();
        let defaults = StartOptions::default();
        // Whom those helpers become.
        let (uid, gid) = if self == Self::AsIs { (defaults.uid, defaults.gid) } else { (12345, 12345) };
        let helper = rig().join(helper);
        Sandbox::start(StartOptions { helper, uid, gid, scratch, ready, ready_age }).unwrap()
    }
}

/// A directory that any user can reach, with the agent's binary and the compiled probes.
pub fn rig() -> &'static Path {
    static RIG: OnceLock<PathBuf> = OnceLock::new();
    RIG.get_or_init(|| {
        if let Ok(made) = std::env::var(RIG_MADE) {
            return PathBuf::from(made);
        }
        let base = std::env::temp_dir();
        // What an earlier run of these tests left.
        for entry in fs::read_dir(&base).unwrap().filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.strip_prefix(RIG_PREFIX).map(str::to_owned);
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let dir = base.join(format!("{RIG_PREFIX}{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let agent = dir.join("sandbox-agent");
        fs::copy(env!("CARGO_BIN_EXE_sandbox-agent"), &agent).unwrap();
        let helper = format!("-DHELPER=\"{}\"", agent.display());
        compile("confine_helper.c", &dir.join("plain_user_helper"), &[&helper]);
        compile("confine_helper.c", &dir.join("restricted_helper"), &[&helper, "-DFORBID"]);
        compile("host_allows.c", &dir.join("host_allows"), &[]);
        fs::write(dir.join("attack"), sandbox_agent::probes::stage::program().unwrap()).unwrap();
        fs::set_permissions(dir.join("attack"), fs::Permissions::from_mode(0o755)).unwrap();
        compile("memory.c", &dir.join("memory"), &[]);
        dir
    })
}

/// Set for test processes that share the directory of the one that started them.
pub const RIG_MADE: &str = "SANDBOX_TEST_RIG";
const RIG_PREFIX: &str = "exchequer-sandbox-rig-";

fn compile(source: &str, to: &Path, flags: &[&str]) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/probes").join(source);
    let built = Command::new("cc").args(["-O1", "-Wall", "-o"]).arg(to).args(flags).arg(&source).status();
    assert!(built.expect("a C compiler is needed").success(), "{} does not compile", source.display());
}

/// A shell command in the strict profile.
pub fn shell(command: &str) -> Spec {
    let mut spec = Spec::new("/bin/sh", ["-c", command]);
    spec.env = vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())];
    spec
}

/// The attack program, visible inside where it is outside.
pub fn attack(args: &[&str]) -> Spec {
    let mut spec = Spec::new(rig().join("attack").to_str().unwrap(), args.iter().copied());
    spec.profile = spec.profile.with_read_only(rig().join("attack"));
    spec
}

/// The attack program without a sandbox: the positive control.
pub fn attack_outside(args: &[&str]) -> std::process::Output {
    Command::new(rig().join("attack")).args(args).current_dir(rig()).output().unwrap()
}

#[derive(Debug)]
pub struct Ran {
    pub outcome: Outcome,
    pub controls: Vec<Control>,
    pub stdout: String,
    pub stderr: String,
}

/// Collects output until the execution ends.
pub async fn finish(mut running: Running, mut output: mpsc::Receiver<sandbox_agent::sandbox::Chunk>) -> Ran {
    let collect = async {
        let (mut stdout, mut stderr) = (vec![], vec![]);
        while let Some(chunk) = output.recv().await {
            let stream = if chunk.stream == Stream::Stdout { &mut stdout } else { &mut stderr };
            stream.extend_from_slice(&chunk.bytes);
        }
        (stdout, stderr)
    };
    let both = async { tokio::join!(running.outcome(), collect) };
    let (outcome, (stdout, stderr)) =
        tokio::time::timeout(Duration::from_secs(60), both).await.expect("an execution must end");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { outcome: outcome.unwrap(), controls: vec![], stdout: text(stdout), stderr: text(stderr) }
}

pub async fn run_in(sandbox: &Sandbox, spec: &Spec, stdin: Option<&str>) -> Result<Ran, SandboxError> {
    let (sender, output) = mpsc::channel(16);
    let prepared = sandbox.prepare(spec, stdin.map(|text| text.as_bytes().to_vec()), sender).await?;
    let controls = prepared.controls().to_vec();
    let ran = finish(prepared.release().await?, output).await;
    Ok(Ran { controls, ..ran })
}

pub async fn run(host: Host, spec: &Spec) -> Ran {
    run_in(&host.sandbox(), spec, None).await.unwrap_or_else(|error| panic!("{host:?}: {error}"))
}

/// Waits for a condition outside the test's control.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let from = Instant::now();
    while !condition() {
        assert!(from.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The tests' own cgroup in the hierarchy that has `controller`; "unified" is that of version 2, if controllers are elsewhere.
pub fn own_cgroups(controller: &str) -> Option<PathBuf> {
    let list = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = |named: &str| {
        let mut lines = list.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
        lines.find(|line| line[1].split(',').any(|one| one == named)).map(|line| line[2].to_owned())
    };
    let below = |mount: &str, path: String| Path::new(mount).join(path.trim_start_matches('/'));
    let v1 = path(controller).filter(|_| !controller.is_empty() && controller != "unified");
    let v1 = v1.map(|path| below(&format!("/sys/fs/cgroup/{controller}"), path));
    let hybrid = Path::new("/sys/fs/cgroup/unified").exists();
    let v2 = || {
        let mount = if hybrid { "/sys/fs/cgroup/unified" } else { "/sys/fs/cgroup" };
        let own = below(mount, path("")?);
        let offers = fs::read_to_string(own.join("cgroup.controllers")).ok()?;
        (controller == "unified" && hybrid || offers.split_whitespace().any(|one| one == controller))
            .then_some(own)
    };
    v1.or_else(v2).filter(|dir| dir.is_dir())
}

/// The cgroups that a helper started by the tests made for its executions.
pub fn cgroups_of(helper: u32) -> Vec<PathBuf> {
    let prefix = format!("exchequer-{helper}-");
    let places = ["memory", "pids", "cpu", "cpuacct", "blkio", "unified"];
    let entries = places.iter().filter_map(|kind| fs::read_dir(own_cgroups(kind)?).ok()).flatten();
    let entries = entries.filter_map(Result::ok);
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}

const KEEPER: &str = "exq-cgroups\n";

fn all_children(pid: u32) -> Vec<u32> {
    // Threads come and go, and so do processes.
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

fn is_keeper(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == KEEPER)
}

/// The process that a helper has beside it for its cgroups.
pub fn keeper_of(helper: u32) -> Option<u32> {
    all_children(helper).into_iter().find(|pid| is_keeper(*pid))
}

/// All others that a process has started.
pub fn children_of(pid: u32) -> Vec<u32> {
    all_children(pid).into_iter().filter(|pid| !is_keeper(*pid)).collect()
}

/// Live processes of the host with `marker` as a whole argument.
pub fn processes_with_argument(marker: &str) -> Vec<u32> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|byte| *byte == 0).any(|argument| argument == marker.as_bytes())
    })
    .collect()
}
