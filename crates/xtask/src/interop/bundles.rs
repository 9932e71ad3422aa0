//! A result bundle of a real execution, for programs of other languages to verify: `exchequer up` in a new directory, one run, its keys.
//!
//! Left out: verifying it. Invariant: the process ends with the value, and its directory goes with it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::invoke::{self, capture, cargo};
use crate::workspace::target_dir;

/// How long `exchequer up` may take until it serves.
const PATIENCE: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(50);

/// What the run executes: both streams, and text that JSON has to escape.
const SCRIPT: &str = "printf 'out\\001\\303\\251\\n' | tee made.txt; echo err >&2";

/// A bundle and what it takes to verify it.
pub(super) struct Kit {
    pub(super) dir: PathBuf,
    process: Child,
}

impl Kit {
    pub(super) fn make(root: &Path, work: &Path) -> Result<Self, String> {
        invoke::run(cargo(root).args(["build", "--locked", "--package", "exchequer"]))?;
        let program = target_dir(root).join("debug/exchequer");
        let dir = work.join(format!("bundle-{}", std::process::id()));
        let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
        fs::create_dir_all(&dir).map_err(failed)?;
        let said = File::create(dir.join("up.log")).map_err(failed)?;
        let process = Command::new(&program)
            .args(["up", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"])
            .arg(&dir)
            // Hosts that forbid user namespaces are common, and the format is what is looked at here.
            .args(["--set", "agent.allow_degraded=true"])
            .stdin(Stdio::null())
            .stdout(said.try_clone().map_err(failed)?)
            .stderr(said)
            .spawn()
            .map_err(failed)?;
        let kit = Self { dir, process };
        kit.fill(root, &program)?;
        Ok(kit)
    }

    fn fill(&self, root: &Path, program: &Path) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.dir.display());
        let deadline = Instant::now() + PATIENCE;
        while !self.dir.join("client.json").is_file() {
            if Instant::now() > deadline {
                let said = fs::read_to_string(self.dir.join("up.log")).unwrap_or_default();
                return Err(format!("`exchequer up` did not come up:\n{said}"));
            }
            std::thread::sleep(STEP);
        }
        let exchequer = |verb: &[&str]| {
            let mut command = Command::new(program);
            command.args(verb);
            command
        };
        let data = |verb: &[&str]| {
            let mut command = exchequer(verb);
            command.arg("--data").arg(&self.dir);
            command
        };
        capture(data(&["budget", "set"]).args(["--scope", "acme", "invocations=2"]))?;
        let kept = self.dir.join("kept");
        let mut run = data(&["run"]);
        run.args(["--tenant", "acme", "--skill", "interop", "--output", "made.txt", "--bundle"]).arg(&kept);
        capture(run.args(["--", "sh", "-c", SCRIPT, "--token=hunter2", "\u{1}\"é\\"]))?;
        capture(exchequer(&["bundle", "verify"]).arg(&kept))?;
        let keys = [("agent", self.dir.join("agent/agent.key")), ("other", self.dir.join("other.key"))];
        for (name, key) in keys {
            let hex = capture(exchequer(&["key"]).arg(&key))?;
            let pem = capture(exchequer(&["key"]).arg(&key).arg("--pem"))?;
            fs::write(self.dir.join(format!("{name}.hex")), hex + "\n").map_err(failed)?;
            fs::write(self.dir.join(format!("{name}.pem")), pem + "\n").map_err(failed)?;
        }
        let schema = root.join("docs/schemas/execution-v1.schema.json");
        fs::copy(schema, self.dir.join("schema.json")).map_err(failed)?;
        Ok(())
    }
}

impl Drop for Kit {
    fn drop(&mut self) {
        // It fails only if the process has already ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
