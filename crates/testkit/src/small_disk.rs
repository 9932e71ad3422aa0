//! A test on a disk of its own that can be filled, for any user: the test runs again as a child, in a user and a mount namespace with a
//! small tmpfs.
//!
//! Left out: file systems that can't allocate ahead. Invariant: where the namespace can't be had the test fails; it never passes unrun.

use std::path::PathBuf;
use std::process::Command;

/// Set for the child: where its disk is.
const DISK: &str = "EXCHEQUER_TEST_SMALL_DISK";

/// In the child, the directory in which the disk is mounted. Otherwise runs the test `name` (its full path in its binary) as that child,
/// on a disk of `mib` MiB, and gives `None` once it has passed. Panics if it does not.
pub fn small_disk(name: &str, mib: u32) -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os(DISK) {
        return Some(dir.into());
    }
    let dir = crate::temp_dir();
    let script = "mount -t tmpfs -o \"size=$1m\" tmpfs \"$2\" && exec \"$3\" --exact \"$4\" --nocapture";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(mib.to_string())
        .arg(dir.path())
        .arg(std::env::current_exe().expect("this test's binary"))
        .arg(name)
        .env(DISK, dir.path())
        .output()
        .expect("unshare (util-linux) is needed to mount a small disk");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "on a small disk: {}\n{said}{complained}", output.status);
    assert!(said.contains("1 passed"), "no test is called {name}:\n{said}");
    None
}
