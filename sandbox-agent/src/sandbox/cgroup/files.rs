//! The kernel's files of one cgroup, held open.
//!
//! Opened once, with the helper's rights and before anybody waits for the execution; reading or writing one is then a single
//! call. Leaves out what they mean ([`super::v1`], [`super::v2`]). Invariant: a file that the kernel does not have, or that
//! could not be opened, has no content, and nothing is claimed of it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::sys;

/// See the module.
pub(super) struct Files(Vec<(&'static str, File)>);

impl Files {
    /// Opens what there is of them: limits for writing and reading, counters for reading.
    pub(super) fn open(dir: &Path, limits: &[&'static str], counters: &[&'static str]) -> Self {
        let open = |name: &'static str, is_limit| {
            let file = OpenOptions::new().read(true).write(is_limit).open(dir.join(name));
            Some((name, file.ok()?))
        };
        let limits = limits.iter().filter_map(|name| open(name, true));
        Self(limits.chain(counters.iter().filter_map(|name| open(name, false))).collect())
    }

    /// What is in those of them that there are.
    pub(super) fn look(&self, names: &[&'static str]) -> Seen {
        Seen(names.iter().filter_map(|name| Some((*name, self.read(name)?))).collect())
    }

    fn get(&self, name: &str) -> Option<&File> {
        self.0.iter().find(|(own, _)| *own == name).map(|(_, file)| file)
    }

    /// Its content as it is now, without the last newline.
    pub(super) fn read(&self, name: &str) -> Option<String> {
        let mut text = sys::read_from_start(self.get(name)?).ok()?;
        text.truncate(text.trim_end().len());
        Some(text)
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.read(name)?.parse().ok()
    }

    /// `None`: there is no such file.
    pub(super) fn write(&self, name: &str, value: &str) -> Option<io::Result<()>> {
        Some(self.get(name)?.write_all_at(value.as_bytes(), 0))
    }
}

/// The contents of files at one moment.
pub(super) struct Seen(Vec<(&'static str, String)>);

impl Seen {
    /// What is in those files of a directory that there are, by path.
    pub(super) fn below(dir: &Path, names: &[&'static str]) -> Self {
        let read = |name: &&'static str| {
            Some((*name, fs::read_to_string(dir.join(name)).ok()?.trim_end().to_owned()))
        };
        Self(names.iter().filter_map(read).collect())
    }

    /// `None`: there is no such file.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| *own == name).map(|(_, text)| text.as_str())
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(&'static str, String)> {
        self.0.iter()
    }
}
