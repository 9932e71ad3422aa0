//! A container engine to work with: the one that answers, or one that was asked to be installed.
//!
//! Left out: choosing between engines. Whatever the `docker` client is configured for is used.
//!
//! Invariant: an engine that this started is stopped by this; one that was already there is left alone.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::invoke::{self, capture, on_path};

/// How long a freshly started engine may take until it answers.
const ENGINE_STARTS_WITHIN: Duration = Duration::from_secs(60);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Debian's and Ubuntu's packages with an engine and a compose.
const PACKAGES: [&str; 2] = ["docker.io", "docker-compose"];

/// Which compose there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compose {
    /// `docker compose`.
    Plugin,
    /// `docker-compose` 1.x. It passes `systempaths=unconfined` on to the engine, which refuses it.
    Standalone,
}

/// An engine that answers, with a compose.
pub(crate) struct Engine {
    pub(crate) compose: Compose,
    started: Option<Child>,
}

impl Engine {
    /// Finds an engine; installs and starts one only if asked to.
    pub(crate) fn find(work: &Path, install: bool) -> Result<Self, String> {
        let mut started = None;
        if let Err(reason) = answers() {
            if !install {
                return Err(format!(
                    "no container engine: {reason}\nStart one (and install docker compose), or let this command do it \
                     on Debian or Ubuntu, as root: cargo xtask docker --install-engine"
                ));
            }
            started = Some(install_and_start(work)?);
        }
        // From here on, dropping it stops what was started.
        let mut engine = Self { compose: Compose::Plugin, started };
        engine.compose = find_compose(install)?;
        println!("engine {}, compose: {:?}", answers()?, engine.compose);
        Ok(engine)
    }

    /// Lets an engine that was started for this live on.
    pub(crate) fn leave_running(&mut self) {
        if let Some(child) = self.started.take() {
            println!("the engine that was started for this goes on; stop it with: kill {}", child.id());
        }
    }

    /// A compose command.
    pub(crate) fn compose(&self) -> Command {
        match self.compose {
            Compose::Plugin => {
                let mut command = Command::new("docker");
                command.arg("compose");
                command
            }
            Compose::Standalone => Command::new("docker-compose"),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let Some(mut child) = self.started.take() else { return };
        println!("stopping the engine that was started for this");
        // SIGTERM lets it stop its containers and release its mounts; `Child::kill` would not.
        let asked = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        if !asked.is_ok_and(|status| status.success()) {
            let _ = child.kill();
        }
        let _ = child.wait();
    }
}

/// The engine's version, if there is one that answers.
fn answers() -> Result<String, String> {
    if on_path("docker").is_none() {
        return Err("there is no `docker` command on PATH".to_owned());
    }
    capture(Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]))
        .map_err(|reason| reason.lines().last().unwrap_or("it doesn't answer").to_owned())
}

fn find_compose(install: bool) -> Result<Compose, String> {
    let find = || {
        if capture(Command::new("docker").args(["compose", "version"])).is_ok() {
            Some(Compose::Plugin)
        } else {
            on_path("docker-compose").map(|_| Compose::Standalone)
        }
    };
    if let Some(compose) = find() {
        return Ok(compose);
    }
    if install {
        install_packages()?;
    }
    find().ok_or_else(|| {
        "the engine has no compose: install the compose plugin, or docker-compose (Debian, Ubuntu: apt-get install \
         docker-compose), or run cargo xtask docker --install-engine as root"
            .to_owned()
    })
}

fn install_packages() -> Result<(), String> {
    if on_path("apt-get").is_none() {
        return Err(
            "--install-engine knows apt-get only, and there is none; install an engine by hand".to_owned()
        );
    }
    invoke::run(Command::new("apt-get").args(["update", "-q"]))?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    invoke::run(install.args(["install", "-y", "-q", "--no-install-recommends"]).args(PACKAGES))
        .map_err(|reason| format!("{reason}\n--install-engine has to run as root"))
}

fn install_and_start(work: &Path) -> Result<Child, String> {
    if daemon().is_none() {
        install_packages()?;
    }
    let daemon = daemon().ok_or("the packages were installed, and there is no dockerd")?;
    let log = work.join("dockerd.log");
    let file = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
    let errors = file.try_clone().map_err(|error| error.to_string())?;
    println!("starting {} (its log: {})", daemon.display(), log.display());
    let mut child = Command::new(daemon)
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .spawn()
        .map_err(|error| format!("dockerd: {error}"))?;
    let deadline = Instant::now() + ENGINE_STARTS_WITHIN;
    loop {
        if answers().is_ok() {
            return Ok(child);
        }
        let ended = child.try_wait().map_err(|error| error.to_string())?;
        if ended.is_some() || Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let tail: Vec<&str> = said.lines().rev().take(5).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            return Err(format!("dockerd did not come up:\n{}", tail.join("\n")));
        }
        std::thread::sleep(LOOK_AGAIN_AFTER);
    }
}

fn daemon() -> Option<PathBuf> {
    on_path("dockerd").or_else(|| {
        // A user's PATH may leave out the folder where daemons live.
        Some(PathBuf::from("/usr/sbin/dockerd")).filter(|path| invoke::is_executable(path))
    })
}
