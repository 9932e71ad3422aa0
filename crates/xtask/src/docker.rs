//! `cargo xtask docker`: the deployment of docker/, built and tried on a real engine.
//!
//! Static binaries → images FROM scratch → the stack → one execution through it → all of it down again.
//! Left out: pushing images anywhere.
//!
//! Invariant: whatever happens, what was brought up is taken down, unless `--keep` asks otherwise.

mod engine;
mod stage;
mod trial;

use std::fs;
use std::path::Path;
use std::process::Command;

use self::engine::Engine;
use self::trial::{Stack, TAG};
use crate::invoke;
use crate::workspace::target_dir;

/// The images, each a target of docker/Dockerfile.
const IMAGES: [&str; 4] = ["nats", "ledger", "metering", "agent"];

/// Runs the whole of it, or with `--stage-only` up to the images' contents.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<(), String> {
    const FLAGS: [&str; 3] = ["--keep", "--install-engine", "--stage-only"];
    if let Some(unknown) = args.iter().find(|arg| !FLAGS.contains(&arg.as_str())) {
        return Err(format!("unknown option `{unknown}`; there are: {}", FLAGS.join(" ")));
    }
    let given = |flag: &str| args.iter().any(|arg| arg == flag);
    let work = target_dir(root).join("docker");
    fs::create_dir_all(&work).map_err(|error| format!("{}: {error}", work.display()))?;
    if given("--stage-only") {
        let (context, _) = stage::stage(root, &work)?;
        println!("staged in {}", context.display());
        return Ok(());
    }
    // Looked for first: the build takes minutes, and without an engine it would be for nothing.
    let mut engine = Engine::find(&work, given("--install-engine"))?;
    let (context, cli) = stage::stage(root, &work)?;
    for image in IMAGES {
        let tag = format!("exchequer-{image}:{TAG}");
        invoke::run(
            Command::new("docker").args(["build", "--quiet", "--target", image, "--tag", &tag]).arg(&context),
        )?;
    }
    let stack = Stack::prepare(root, &work, &cli, &engine)?;
    let outcome = stack.try_out();
    if outcome.is_err() {
        stack.show_logs();
    }
    if given("--keep") {
        println!("left as it is, as asked; take it down with:\n  {}", stack.takedown());
        engine.leave_running();
        return outcome;
    }
    let down = stack.down();
    outcome.and(down)
}
