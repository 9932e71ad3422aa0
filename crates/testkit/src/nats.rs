//! A real nats-server with JetStream for a test, on loopback ports of its own choice.
//!
//! Left out: clusters ([`NatsCluster`]). Invariant: the server, its store and its ports stay the same across [`NatsServer::kill9`] and
//! [`NatsServer::restart`]; the process ends with the value.

mod cluster;

pub use self::cluster::NatsCluster;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// When the server syncs its store to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Before each acknowledgement.
    Always,
    /// As shipped: every two minutes.
    Default,
}

/// A running (or killed) nats-server.
#[derive(Debug)]
pub struct NatsServer {
    dir: TempDir,
    sync: Sync,
    child: Option<Child>,
    client_port: u16,
    monitor_port: u16,
}

impl NatsServer {
    /// Starts a server that syncs always. Panics, saying what to do, if there is no nats-server.
    pub fn start() -> Self {
        Self::start_with(Sync::Always)
    }

    /// Starts a server.
    pub fn start_with(sync: Sync) -> Self {
        let mut server = Self { dir: super::temp_dir(), sync, child: None, client_port: 0, monitor_port: 0 };
        server.restart();
        server
    }

    /// For clients.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.client_port)
    }

    /// For monitoring, e.g. `<url>/varz`.
    pub fn monitor_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.monitor_port)
    }

    /// The process's id; 0 while it is killed.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Kills the process with SIGKILL and waits until it is gone.
    pub fn kill9(&mut self) {
        kill9(&mut self.child);
    }

    /// Copies the store as it is on disk at this moment.
    pub fn copy_store(&self) -> TempDir {
        let copy = super::temp_dir();
        copy_dir(&self.dir.path().join("store"), copy.path()).expect("a copy of the store");
        copy
    }

    /// Kills the process if it runs and starts it over an earlier copy of its store (or over none, if that is empty): whatever it
    /// acknowledged since is lost.
    pub fn restart_from(&mut self, copy: &Path) {
        self.kill9();
        let store = self.dir.path().join("store");
        std::fs::remove_dir_all(&store).expect("the store is removed");
        copy_dir(copy, &store).expect("the store is replaced");
        self.restart();
    }

    /// Kills the process if it runs and starts it on the same ports and store; returns once it accepts clients.
    pub fn restart(&mut self) {
        self.kill9();
        let path = self.dir.path();
        let port = |p: u16| if p == 0 { "-1".to_owned() } else { p.to_string() };
        let sync = if self.sync == Sync::Always { ", sync_interval: always" } else { "" };
        let config = format!(
            "host: 127.0.0.1\nport: {}\nhttp: \"127.0.0.1:{}\"\njetstream {{ store_dir: \"{}\"{sync} }}\n",
            port(self.client_port),
            port(self.monitor_port),
            path.join("store").display(),
        );
        let (child, ports) = launch(path, &config).unwrap_or_else(|why| panic!("{why}"));
        (self.client_port, self.monitor_port) = ports;
        self.child = Some(child);
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Runs a server over a configuration in a directory, up to when it accepts clients: the process, its ports for clients and for monitoring.
/// Else why not, with its log.
fn launch(dir: &Path, config: &str) -> Result<(Child, (u16, u16)), String> {
    let (config_file, log) = (dir.join("nats.conf"), dir.join("log"));
    std::fs::write(&config_file, config).expect("the server's configuration");
    let mut child = Command::new(binary())
        .arg("-c")
        .arg(&config_file)
        .arg("-l")
        .arg(&log)
        .arg("--ports_file_dir")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nats-server can be run");
    let id = child.id();
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Some(ports) = read_ports(dir, id) {
            return Ok((child, ports));
        }
        let ended = child.try_wait().expect("the server's state");
        if ended.is_some() || Instant::now() > deadline {
            kill9(&mut Some(child));
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            return Err(format!("nats-server did not start ({ended:?}):\n{log}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill9(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        // It fails only if the process has already ended.
        let _ = child.kill();
        child.wait().expect("the server's exit status");
    }
}

fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for item in std::fs::read_dir(from)? {
        let item = item?;
        let target = to.join(item.file_name());
        if item.file_type()?.is_dir() {
            copy_dir(&item.path(), &target)?;
        } else if let Err(error) = std::fs::copy(item.path(), target) {
            // A running server removes temporary files of its own.
            if error.kind() != std::io::ErrorKind::NotFound {
                return Err(error);
            }
        }
    }
    Ok(())
}

/// The ports that the server `id` has written down, once it has: it does so when it is ready.
fn read_ports(dir: &Path, id: u32) -> Option<(u16, u16)> {
    let suffix = format!("_{id}.ports");
    let file = std::fs::read_dir(dir)
        .ok()?
        .flatten()
        .find(|f| f.file_name().to_string_lossy().ends_with(&suffix))?;
    let text = std::fs::read_to_string(file.path()).ok()?;
    let port = |list: &str| -> Option<u16> {
        let (_, after) = text.split_once(&format!("\"{list}\""))?;
        let (_, address) = after.split_once("127.0.0.1:")?;
        let digits: String = address.chars().take_while(char::is_ascii_digit).collect();
        // Followed by something, so the number is complete even if the file is being written.
        address[digits.len()..].starts_with('"').then(|| digits.parse().ok())?
    };
    Some((port("nats")?, port("monitoring")?))
}

/// `NATS_SERVER`, else on `PATH`, else where `cargo xtask test` puts it.
fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("NATS_SERVER") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "NATS_SERVER is {}, which is not a file", path.display());
        return path;
    }
    let on_path =
        std::env::var_os("PATH").into_iter().flat_map(|p| std::env::split_paths(&p).collect::<Vec<_>>());
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    on_path.chain([tools]).map(|dir| dir.join("nats-server")).find(|p| p.is_file()).unwrap_or_else(|| {
        panic!(
            "this test needs a nats-server (2.12 or later): run `cargo xtask test`, which fetches one, or put one on PATH or in \
             NATS_SERVER"
        )
    })
}
