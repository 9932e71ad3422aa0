//! Where the workspace is, where its target directory is, and which files are its own.
//!
//! Left out: reading Cargo's metadata. The few manifests that rules look at are read where the rules are.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's root: two levels above this crate, as it was when it was built.
pub(crate) fn root() -> Result<PathBuf, String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).ok_or("the xtask crate has no workspace above it")?;
    if root.join("Cargo.toml").is_file() {
        Ok(root.to_owned())
    } else {
        Err(format!("{} is not there any more; build xtask again in the moved workspace", root.display()))
    }
}

/// Cargo's target directory: `CARGO_TARGET_DIR` if set, else `target/` of the workspace.
pub(crate) fn target_dir(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir))
}

/// Every file of the project: those that git tracks and new ones that it doesn't ignore, relative to the root.
///
/// Deleted files that git still lists are left out.
pub(crate) fn files(root: &Path) -> Result<Vec<String>, String> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .map_err(|error| format!("git is needed to list the project's files: {error}"))?;
    if !output.status.success() {
        return Err(format!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let listing = String::from_utf8(output.stdout).map_err(|_| "a file's name is not UTF-8".to_owned())?;
    let mut files: Vec<String> = listing
        .split('\0')
        .filter(|name| !name.is_empty() && root.join(name).is_file())
        .map(str::to_owned)
        .collect();
    files.sort();
    files.dedup();
    Ok(files)
}
