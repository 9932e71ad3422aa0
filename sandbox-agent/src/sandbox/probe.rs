//! Asks the kernel which layers this host gives an execution, by building one and not running it.
//!
//! Leaves out attacks (the tests have those). Invariant: the answer is as fresh as the call; nothing is remembered.

use tokio::sync::mpsc;

use super::client::{Sandbox, SandboxError};
use super::control::Control;
use super::spec::Spec;

/// The controls of a strict execution built just now and ended right before `execve`.
pub async fn probe(sandbox: &Sandbox) -> Result<Vec<Control>, SandboxError> {
    let (output, _unused) = mpsc::channel(1);
    let prepared = sandbox.prepare_afresh(&Spec::new("/bin/true", [""; 0]), output).await?;
    let controls = prepared.controls().to_vec();
    prepared.abort().await?;
    Ok(controls)
}
