//! Whether the program can be there at all: what is known before anything is held for it.
//!
//! Left out: what only the kernel can tell, such as an interpreter that is missing; that ends as `LAUNCH_FAILED`. Invariant: a program that
//! the sandbox would start is never refused.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path},
};

use crate::sandbox::Profile;

/// Why this program can't be executed under this profile, if that is certain. Looks at the host's file system.
pub(super) fn problem(program: &Path, profile: &Profile) -> Option<&'static str> {
    if program.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    if !profile.read_only.iter().any(|visible| program.starts_with(visible)) {
        return if program.starts_with("/proc") || program.starts_with("/dev") {
            None
        } else if program.starts_with(&profile.work.path) {
            // Inputs are not executable, and nothing else is in there yet.
            Some("is in the work area, where nothing is executable before a program runs")
        } else {
            Some("is not in what the profile shows of the host")
        };
    }
    match fs::metadata(program) {
        Ok(found) if found.is_dir() => Some("is a directory"),
        Ok(found) if !found.is_file() => Some("is no regular file"),
        Ok(found) if found.permissions().mode() & 0o111 == 0 => Some("is not executable"),
        Ok(_) => None,
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                Some("is not there: this host has no such program")
            }
            // The sandbox may be let where the agent is not.
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_certainly_not_there_is_told_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let profile = Profile::strict().with_read_only(dir.path());
        let at = |name: &str| dir.path().join(name);
        fs::write(at("plain"), "").unwrap();
        fs::create_dir(at("dir")).unwrap();
        let of = |path: &Path| problem(path, &profile);
        assert_eq!(of(Path::new("/bin/sh")), None);
        assert_eq!(of(Path::new("/usr/../bin/sh")), None, "left to the kernel");
        assert_eq!(of(Path::new("/proc/self/exe")), None, "left to the kernel");
        assert!(of(Path::new("/root/x")).unwrap().contains("profile"));
        assert!(of(Path::new("/binary")).unwrap().contains("profile"), "paths are compared name by name");
        assert!(of(Path::new("/tmp/x")).unwrap().contains("work area"));
        assert!(of(Path::new("/usr/bin/no-such-program")).unwrap().contains("no such program"));
        assert!(of(Path::new("/bin/sh/x")).unwrap().contains("no such program"));
        assert_eq!(of(&at("plain")), Some("is not executable"));
        assert_eq!(of(&at("dir")), Some("is a directory"));
    }
}
