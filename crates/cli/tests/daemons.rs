//! The three daemons as processes of their own: their configuration, and a deployment over a real nats-server, driven by the
//! command line.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use exchequer_testkit::{NatsServer, temp_dir};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(60);
const DAEMONS: [&str; 3] = ["exchequer-ledger", "exchequer-metering", "sandbox-agent"];

fn program(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_exchequer")).with_file_name(name);
    assert!(
        program.is_file(),
        "{} is not there: run `cargo build --workspace --bins` first",
        program.display()
    );
    program
}

fn command(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program(name));
    command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
    command
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn exchequer(arguments: &[&str]) -> String {
    let output = command("exchequer", arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_daemon_lists_every_fault_of_its_configuration_with_status_2() {
    let dir = temp_dir();
    let file = dir.path().join("bad.toml");
    fs::write(
        &file,
        "[telemetry]\nlog_format = \"loud\"\n[ledger]\ngrpc_listen = \"x\"\n[metering]\ngrpc_listen = \"x\"\n[agent]\n\
         grpc_listen = \"x\"\n",
    )
    .unwrap();
    for (name, section) in DAEMONS.into_iter().zip(["ledger", "metering", "agent"]) {
        for check in [&["--check"][..], &[]] {
            let arguments = [&["--config", file.to_str().unwrap()], check].concat();
            let output = command(name, &arguments).output().unwrap();
            let text = said(&output);
            assert_eq!(output.status.code(), Some(2), "{name}: {text}");
            let keys =
                ["stream.url", "auth.jwks_file", "auth.issuer", "auth.audience", "telemetry.log_format"];
            for key in
                keys.into_iter().chain([&*format!("{section}.data"), &format!("{section}.grpc_listen")])
            {
                assert!(text.contains(&format!("`{key}`: ")), "{name}: {key} is missing in: {text}");
            }
        }
    }
}

#[test]
fn what_the_configuration_names_is_checked_with_it() {
    let dir = temp_dir();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let text = format!(
        "[stream]\nurl = \"nats://, http://nats\"\nprefix = \"a.b\"\ncredentials_file = \"{jwks}\"\nmonitor_urls = [\"nats\"]\n\
         [auth]\njwks_file = \"{jwks}\"\nissuer = \"i\"\naudience = \"a\"\n\
         [telemetry]\nlog_filter = \"x=loudest\"\notlp_endpoint = \"https://collector\"\n\
         [ledger]\ndata = \"{data}\"\n[metering]\ndata = \"{data}\"\n\
         [agent]\nid = \"a\"\ndata = \"{data}\"\nmetering_url = \"http://m\"\nledger_verifier_key = \"{vkey}\"\n\
         token_file = \"{nowhere}\"\n",
        nowhere = at("nowhere"),
        jwks = at("jwks.json"),
        data = at("data"),
        vkey = exchequer(&["key", &at("other.key"), "--origin", "test.example/log"]).trim(),
    );
    let config = dir.path().join("bad.toml");
    fs::write(&config, text).unwrap();
    fs::write(at("jwks.json"), "{}").unwrap();
    fs::create_dir(at("data")).unwrap();
    for (name, section) in DAEMONS.into_iter().zip(["ledger", "metering", "agent"]) {
        // Readable by everybody, and then no key.
        let file = at(&format!("data/{section}.key"));
        fs::copy(at("other.key"), &file).unwrap();
        for (mode, reason) in [(0o644, "has mode 0644"), (0o600, "is not an Ed25519 key file")] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let output = command(name, &["--check", "--config", config.to_str().unwrap()]).output().unwrap();
            let text = said(&output);
            assert_eq!(output.status.code(), Some(2), "{name}: {text}");
            let keys = [
                "stream.url",
                "stream.prefix",
                "stream.credentials_file",
                "stream.monitor_urls",
                "auth.jwks_file",
                "telemetry.log_filter",
                "telemetry.otlp_endpoint",
                &format!("{section}.key_file"),
            ];
            for key in keys.into_iter().chain((section == "agent").then_some("agent.token_file")) {
                assert!(text.contains(&format!("`{key}`: ")), "{name}: {key} is missing in: {text}");
            }
            assert!(text.contains(reason), "{name}: {reason} is missing in: {text}");
            fs::write(&file, "no key").unwrap();
        }
    }
}

/// A daemon; killed when dropped, its log shown if the test failed.
struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    fn start(name: &str, config: &Path) -> Self {
        let log = config.with_file_name(format!("{name}.log"));
        let file = File::create(&log).unwrap();
        let child = command(name, &["--config", config.to_str().unwrap()])
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn stop(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
        // It fails only if the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Loopback ports that were free a moment ago.
fn ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn one_process_over_jetstream_needs_the_server_and_nothing_else() {
    let nats = NatsServer::start();
    let dir = temp_dir();
    let data = dir.path().join("data");
    let path = data.to_str().unwrap();
    let log = File::create(dir.path().join("up.log")).unwrap();
    let listen = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--set", "agent.allow_degraded=true"];
    let child = command("exchequer", &[&["up", "--nats", &nats.url(), "--data", path], &listen[..]].concat())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let daemon = Daemon { child, log: dir.path().join("up.log") };
    until("client.json", || data.join("client.json").exists());
    exchequer(&["budget", "set", "--data", path, "--scope", "acme", "invocations=1"]);
    assert_eq!(exchequer(&["run", "--data", path, "--tenant", "acme", "--", "echo", "hello"]), "hello\n");
    assert!(!data.join("stream").exists());
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn the_demo_holds_over_jetstream_and_leaves_its_log() {
    let nats = NatsServer::start();
    let dir = temp_dir();
    let data = dir.path().join("data");
    let said = exchequer(&["demo", "--nats", &nats.url(), "--data", data.to_str().unwrap()]);
    assert!(said.contains(" proofs held"), "{said}");
    let text = exchequer(&["verify", data.join("ledger").to_str().unwrap()]);
    assert!(text.starts_with("HOLDS"), "{text}");
}

#[test]
fn three_daemons_over_jetstream_do_what_one_process_does() {
    let nats = NatsServer::start();
    let dir = temp_dir();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let [lg, lh, mg, mh, ag, ah] = ports();
    for service in ["ledger", "metering", "agent"] {
        fs::create_dir(at(service)).unwrap();
    }
    let vkey = exchequer(&["key", &at("ledger/ledger.key"), "--origin", "test.example/log"]);
    let keys = ["metering/metering.key", "agent/agent.key"].map(|file| exchequer(&["key", &at(file)]));
    let data = at("");
    let token = |rest: &[&str]| exchequer(&[&["token", "--data", &data, "--init"], rest].concat());
    fs::write(at("agent.token"), token(&["--subject", "worker-1", "--role", "agent"])).unwrap();
    let admin = token(&["--subject", "admin", "--role", "admin"]);
    let config = dir.path().join("exchequer.toml");
    let text = format!(
        "[stream]\nurl = \"{url}\"\n\
         [auth]\njwks_file = \"{jwks}\"\nissuer = \"exchequer.local\"\naudience = \"exchequer\"\n\
         [ledger]\ngrpc_listen = \"127.0.0.1:{lg}\"\nhttp_listen = \"127.0.0.1:{lh}\"\ndata = \"{ledger}\"\n\
         origin = \"test.example/log\"\ncheckpoint_interval = \"50ms\"\n\
         [[ledger.enroll]]\nrole = \"metering\"\nholder = \"metering\"\npublic_key = \"{metering_key}\"\n\
         [[ledger.enroll]]\nrole = \"agent\"\nholder = \"worker-1\"\npublic_key = \"{agent_key}\"\n\
         [metering]\ngrpc_listen = \"127.0.0.1:{mg}\"\nhttp_listen = \"127.0.0.1:{mh}\"\ndata = \"{metering}\"\n\
         [agent]\nid = \"worker-1\"\ngrpc_listen = \"127.0.0.1:{ag}\"\nhttp_listen = \"127.0.0.1:{ah}\"\ndata = \"{agent}\"\n\
         metering_url = \"http://127.0.0.1:{mg}\"\ntoken_file = \"{token_file}\"\nledger_verifier_key = \"{vkey}\"\n\
         allow_degraded = true\n",
        url = nats.url(),
        jwks = at("auth/jwks.json"),
        ledger = at("ledger"),
        metering = at("metering"),
        agent = at("agent"),
        metering_key = keys[0].trim(),
        agent_key = keys[1].trim(),
        token_file = at("agent.token"),
        vkey = vkey.trim(),
    );
    fs::write(&config, text).unwrap();
    for name in DAEMONS {
        let output = command(name, &["--check", "--config", config.to_str().unwrap()]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}: {}", said(&output));
    }
    let daemons = DAEMONS.map(|name| Daemon::start(name, &config));
    let grpc = format!("ledger=127.0.0.1:{lg},metering=127.0.0.1:{mg},agent=127.0.0.1:{ag}");
    let connection = ["--grpc", &grpc, "--token", admin.trim()];
    let attempt = |verb: &[&str], rest: &[&str]| {
        command("exchequer", &[verb, &connection, rest].concat()).output().unwrap()
    };
    until("a budget", || attempt(&["budget", "set"], &["--scope", "acme", "invocations=1"]).status.success());
    let mut output = attempt(&["agent", "list"], &[]);
    until("the agent", || {
        output = attempt(&["run"], &["--tenant", "acme", "--", "echo", "hello"]);
        output.status.success()
    });
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n");
    let output = attempt(&["run"], &["--tenant", "acme", "--", "true"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("meter=invocations"), "{}", said(&output));
    until("the outcome in the log", || {
        let output = attempt(&["log", "show"], &["--tenant", "acme"]);
        said(&output).contains("exited 0")
    });
    let url = format!("http://127.0.0.1:{lh}");
    exchequer(&["verify", &url, "--key", vkey.trim(), "--token", admin.trim()]);
    for (name, daemon) in DAEMONS.into_iter().zip(daemons) {
        assert_eq!(daemon.stop(), Some(0), "{name}");
    }
}
