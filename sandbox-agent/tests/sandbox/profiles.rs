//! Each built-in profile by what it is for: real interpreters and compilers run in it, and what it does not widen stays shut.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sandbox_agent::profiles::{BUILT_IN, Definition, built_in};
use sandbox_agent::sandbox::syscalls::{Arch, Group, hostile};
use sandbox_agent::sandbox::{ExitCause, Network, Spec};

use crate::rig::{Host, Ran, rig, run};

/// The surroundings in which profiles are of use: an agent refuses to execute without namespaces.
const HOSTS: [Host; 2] = [Host::AsIs, Host::PlainUser];
const EXITED: ExitCause = ExitCause::Exited { code: 0 };

fn profile(name: &str) -> Definition {
    Definition::clone(built_in(name).unwrap())
}

/// A program as an agent would run it with this profile.
fn spec(profile: &Definition, program: impl AsRef<Path>, args: &[&str]) -> Spec {
    let mut spec = Spec::new(program.as_ref().to_str().unwrap(), args.iter().copied());
    spec.env = profile.environment().into_iter().collect();
    spec.cwd.clone_from(&profile.sandbox.work.path);
    spec.limits.pids = profile.limits.processes;
    spec.limits.open_files = profile.limits.open_files;
    spec.limits.file_bytes = profile.limits.file_bytes;
    spec.limits.memory_bytes = 2 << 30;
    spec.profile = profile.sandbox.clone();
    spec
}

/// A program that the system has, where every profile shows it.
fn installed(name: &str, package: &str) -> PathBuf {
    let found = ["/usr/bin", "/usr/local/bin", "/bin"].iter().map(|dir| Path::new(dir).join(name));
    found.into_iter().find(|path| path.is_file()).unwrap_or_else(|| {
        panic!(
            "{name} is not installed, and what the profile is for can't be shown: apt-get install {package}"
        )
    })
}

fn python() -> PathBuf {
    installed("python3", "python3")
}

fn prints(ran: &Ran, expected: &str, what: &str) {
    assert_eq!(
        (&ran.outcome.cause, ran.stdout.as_str()),
        (&EXITED, expected),
        "{what}: {}",
        ran.stderr.chars().take(4000).collect::<String>()
    );
}

/// What interpreters with native modules do: mappings, threads pinned to processors, callbacks out of C, child processes,
/// databases, event loops.
const PYTHON: &str = r"
import asyncio, concurrent.futures, ctypes, hashlib, mmap, os, sqlite3, subprocess, tempfile, threading
m = mmap.mmap(-1, 1 << 20); m[:4] = b'abcd'; assert m[:4] == b'abcd'
seen = []
ts = [threading.Thread(target=seen.append, args=(i,)) for i in range(16)]
[t.start() for t in ts]; [t.join() for t in ts]; assert sorted(seen) == list(range(16))
os.sched_setaffinity(0, os.sched_getaffinity(0)); os.setpriority(os.PRIO_PROCESS, 0, 5)
cb = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda x: x + 1); assert cb(41) == 42
assert subprocess.run(['/bin/echo', 'hi'], capture_output=True).stdout == b'hi\n'
async def child():
    p = await asyncio.create_subprocess_exec('/bin/echo', 'x', stdout=asyncio.subprocess.PIPE)
    return (await p.communicate())[0]
assert asyncio.run(child()) == b'x\n'
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert len(set(pool.map(lambda i: hashlib.sha256(bytes(i)).digest(), range(64)))) == 64
db = sqlite3.connect(os.path.join(tempfile.mkdtemp(), 'x.db')); db.execute('create table a(b)'); db.commit()
print('done')
";

#[tokio::test(flavor = "multi_thread")]
async fn python_runs_with_threads_native_callbacks_and_children() {
    for host in HOSTS {
        prints(
            &run(host, &spec(&profile("python"), python(), &["-c", PYTHON])).await,
            "done\n",
            &format!("{host:?}"),
        );
        // The strict profile lacks what the group is for, and nothing else: so the group is what makes the difference.
        let affinity = "import os; os.sched_setaffinity(0, os.sched_getaffinity(0))";
        let ran = run(host, &spec(&profile("strict"), python(), &["-c", affinity])).await;
        assert!(ran.stderr.contains("PermissionError: [Errno 1]"), "{host:?}: {}", ran.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn python_imports_a_tree_of_packages_with_native_code_from_a_read_only_path() {
    let tree = rig().join("site-packages");
    fs::create_dir_all(tree.join("numerical")).unwrap();
    let source = tree.join("native.c");
    fs::write(&source, "double half(double x) { return x / 2; }\n").unwrap();
    let library = tree.join("numerical/native.so");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(built.expect("a C compiler is needed").success());
    let module = "import ctypes, os\nlib = ctypes.CDLL(os.path.join(os.path.dirname(__file__), 'native.so'))\n\
                  lib.half.restype = ctypes.c_double\ndef half(x): return lib.half(ctypes.c_double(x))\n";
    fs::write(tree.join("numerical/__init__.py"), module).unwrap();
    let text = format!(
        "name = \"own\"\nextends = \"python\"\nread_only = [{tree:?}]\n[environment]\nPYTHONPATH = {tree:?}\n"
    );
    let own = Definition::parse("own.toml", &text).unwrap_or_else(|faults| panic!("{faults}"));
    let script = "import numerical; print(numerical.half(5)); open(numerical.__file__, 'a')";
    for host in HOSTS {
        let ran = run(host, &spec(&own, python(), &["-c", script])).await;
        assert_eq!(ran.stdout, "2.5\n", "{host:?}: {}", ran.stderr);
        assert!(
            ran.stderr.contains("[Errno 13]") || ran.stderr.contains("[Errno 30]"),
            "{host:?}: {}",
            ran.stderr
        );
    }
}

const NODE: &str = r"
const { Worker } = require('worker_threads'), fs = require('fs'), cp = require('child_process'), crypto = require('crypto');
(async () => {
  fs.writeFileSync('a.txt', 'abc');
  if ((await fs.promises.readFile('a.txt')).length !== 3) throw 1;
  if (cp.execFileSync('/bin/echo', ['hi']).toString() !== 'hi\n') throw 2;
  await new Promise(r => crypto.pbkdf2('a', 'b', 1000, 32, 'sha256', r));
  await new Promise(r => new Worker('require(`worker_threads`).parentPort.postMessage(1)', { eval: true }).on('message', r));
  await WebAssembly.instantiate(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0]));
  fs.watch('.', () => {}).close();
  require('os').setPriority(5);
  console.log('done');
})();
";

#[tokio::test(flavor = "multi_thread")]
async fn node_runs_with_workers_children_and_the_file_system() {
    let node = installed("node", "nodejs");
    for host in HOSTS {
        let mut spec = spec(&profile("node"), &node, &["-e", NODE]);
        // V8 reserves addresses, not memory.
        spec.limits.memory_bytes = 1 << 40;
        prints(&run(host, &spec).await, "done\n", &format!("{host:?}"));
        // Told to use it all the same, the event loop finds io_uring missing and does without.
        spec.env.retain(|(name, _)| name != "UV_USE_IO_URING");
        spec.env.push(("UV_USE_IO_URING".to_owned(), "1".to_owned()));
        prints(&run(host, &spec).await, "done\n", &format!("{host:?} with io_uring asked for"));
    }
}

const BUILD: &str = "set -e
printf '#include <stdio.h>\\nint main(void) { puts(\"built\"); return 0; }\\n' > main.c
printf 'all: program\\n\\t./program\\nprogram: main.o\\n\\tcc -o $@ $^\\nmain.o: main.c\\n\\tcc -O2 -c $<\\n' > Makefile
make -s -j4
";

#[tokio::test(flavor = "multi_thread")]
async fn make_and_a_compiler_build_a_program_that_runs_in_the_work_area() {
    for (tool, package) in [("cc", "gcc"), ("make", "make")] {
        installed(tool, package);
    }
    for host in HOSTS {
        prints(
            &run(host, &spec(&profile("build"), "/bin/sh", &["-c", BUILD])).await,
            "built\n",
            &format!("{host:?}"),
        );
        // In any other profile the program is made, and not executed.
        let script = "echo 'int main(void) { return 0; }' > main.c; cc -o program main.c && echo made; ./program && echo ran";
        let ran = run(host, &spec(&profile("python"), "/bin/sh", &["-c", script])).await;
        assert!(
            ran.stdout == "made\n" && ran.stderr.contains("ermission denied"),
            "{host:?}: {}",
            ran.stderr
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cargo_builds_a_crate_offline() {
    let cargo = PathBuf::from(std::env::var("CARGO").expect("cargo runs the tests"));
    // The toolchain, where any user can reach it: its home may be closed. Links where they can be had, copies elsewhere.
    let (sysroot, toolchain) = (cargo.parent().unwrap().parent().unwrap(), rig().join("toolchain"));
    fs::create_dir(&toolchain).unwrap();
    fs::set_permissions(&toolchain, fs::Permissions::from_mode(0o755)).unwrap();
    for part in ["bin", "lib"] {
        let copied = ["-al", "-a"].iter().any(|how| {
            Command::new("cp").arg(how).arg(sysroot.join(part)).arg(&toolchain).status().unwrap().success()
        });
        assert!(copied, "{} can't be copied", sysroot.display());
    }
    let text = format!(
        "name = \"rust\"\nextends = \"build\"\nread_only = [{toolchain:?}]\n[environment]\nPATH = \"{}/bin:/usr/bin:/bin\"\n",
        toolchain.display()
    );
    let rust = Definition::parse("rust.toml", &text).unwrap_or_else(|faults| panic!("{faults}"));
    let script = "set -e; cargo new --quiet --vcs none built; cd built; cargo run --quiet --offline";
    let mut spec = spec(&rust, "/bin/sh", &["-c", script]);
    spec.limits.memory_bytes = 8 << 30;
    for host in HOSTS {
        prints(&run(host, &spec).await, "Hello, world!\n", &format!("{host:?}"));
    }
}

const LOOPBACK: &str = r"
import socket, threading
s = socket.create_server(('127.0.0.1', 0)); port = s.getsockname()[1]
def serve():
    c, _ = s.accept(); c.sendall(c.recv(16).upper()); c.close()
t = threading.Thread(target=serve); t.start()
c = socket.create_connection(('127.0.0.1', port)); c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
c.sendall(b'abc'); print(c.recv(16)); t.join()
";

/// Each kind of socket that no profile has, and the error.
const SOCKETS: &str = r"
import socket
for family, kind, protocol in [(2, 2, 0), (10, 2, 0), (2, 3, 255), (2, 1, 262), (1, 1, 0), (16, 3, 0), (17, 3, 0), (40, 1, 0)]:
    try:
        socket.socket(family, kind, protocol); print('made', family, kind, protocol)
    except OSError as e:
        if e.errno != 1: print('errno', e.errno, family, kind, protocol)
";

/// Binding, and connecting to a port where nobody listens.
const DIRECT: &str = r"
import socket
def attempt(what):
    try: what(); print('done')
    except OSError as e: print('errno', e.errno)
attempt(lambda: socket.create_server(('127.0.0.1', 0)))
attempt(lambda: socket.create_connection(('127.0.0.1', 9)))
attempt(lambda: socket.create_connection(('192.0.2.1', 443)))
attempt(lambda: socket.socket().sendto(b'x', socket.MSG_FASTOPEN, ('127.0.0.1', 9)))
";

fn with_network(network: Network) -> Definition {
    let mut profile = profile("python");
    profile.sandbox.network = network;
    profile
}

#[tokio::test(flavor = "multi_thread")]
async fn only_tcp_sockets_can_be_made_and_only_with_a_network() {
    for host in HOSTS {
        for network in Network::ALL {
            let ran = run(host, &spec(&with_network(network), python(), &["-c", SOCKETS])).await;
            prints(&ran, "", &format!("{host:?} {network:?}"));
        }
        let ran = run(host, &spec(&with_network(Network::Loopback), python(), &["-c", LOOPBACK])).await;
        prints(&ran, "b'ABC'\n", &format!("{host:?}"));
        let ran = run(host, &spec(&with_network(Network::None), python(), &["-c", LOOPBACK])).await;
        assert!(ran.stderr.contains("PermissionError: [Errno 1]"), "{host:?}: {}", ran.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_egress_nothing_is_reached_but_the_proxy() {
    for host in HOSTS {
        let ran = run(host, &spec(&with_network(Network::Egress), python(), &["-c", DIRECT])).await;
        prints(&ran, "errno 13\nerrno 13\nerrno 13\nerrno 1\n", &format!("{host:?}"));
        let ran = run(host, &spec(&with_network(Network::Loopback), python(), &["-c", DIRECT])).await;
        // ECONNREFUSED and ENETUNREACH: nobody is there, and no way leads out.
        prints(&ran, "done\nerrno 111\nerrno 101\nerrno 1\n", &format!("{host:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_network_namespace_no_profile_reaches_the_hosts_network() {
    for network in [Network::Loopback, Network::Egress] {
        let ran = run(Host::Restricted, &spec(&with_network(network), python(), &["-c", DIRECT])).await;
        prints(&ran, "errno 1\nerrno 1\nerrno 1\nerrno 1\n", &format!("{network:?}"));
    }
}

/// Makes each call whose number it is given in a process of its own. The first argument is what makes `clone` hostile; the others make
/// no call succeed.
const CALLS: &str = r"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for number in map(int, sys.argv[1:]):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        answer = libc.syscall(number, 0x10000011, -1, -1, -1, -1, -1)
        os._exit(ctypes.get_errno() if answer < 0 else 0)
    status = os.waitpid(pid, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == 31
    print(number, 'killed' if killed else 'errno %d' % os.WEXITSTATUS(status))
";

#[tokio::test(flavor = "multi_thread")]
async fn every_hostile_call_kills_in_every_profile_unless_a_group_says_that_runtimes_try_it() {
    let arch = Arch::HOST.unwrap();
    let clone = Group::Base.calls().iter().find(|call| call.name == "clone").unwrap();
    for definition in BUILT_IN.iter() {
        let groups = definition.sandbox.groups();
        let softened =
            |name: &str| groups.iter().any(|group| group.calls().iter().any(|call| call.name == name));
        let calls = hostile().iter().chain([clone]);
        let calls = calls.filter_map(|call| Some((call.name, call.number(arch)?))).collect::<Vec<_>>();
        let numbers = calls.iter().map(|(_, number)| number.to_string()).collect::<Vec<_>>();
        let args = ["-c", CALLS].into_iter().chain(numbers.iter().map(String::as_str)).collect::<Vec<_>>();
        let expected = calls.iter().map(|(name, number)| {
            let answer = if softened(name) { format!("errno {}", libc::ENOSYS) } else { "killed".to_owned() };
            format!("{number} {answer}\n")
        });
        let ran = run(Host::AsIs, &spec(definition, python(), &args)).await;
        prints(&ran, &expected.collect::<String>(), &definition.sandbox.name);
    }
}
