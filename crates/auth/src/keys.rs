//! Key files: made once, readable by their owner only, replaced only by another whole key.
//!
//! One line of text: a tag that says what it is, and the 32-byte seed in base64. Left out: encryption at rest,
//! when to rotate, hardware keys.
//! Invariant: a path that exists holds a whole key; a crash or a race at creation leaves either it or nothing.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;

/// A sort of key file.
pub(crate) struct Sort {
    /// What its line begins with.
    pub(crate) tag: &'static str,
    /// What it is called.
    pub(crate) name: &'static str,
}

const ED25519: Sort = Sort { tag: "exchequer-ed25519-seed-v1", name: "an Ed25519 key file" };
/// Far above the 70 bytes of a key file, far below anything harmful.
const MAX_FILE_BYTES: u64 = 1024;

/// Why a key file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The operating system refused.
    #[error("cannot use the key file {path}: {source}")]
    Io {
        /// The file's path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Others than the owner may read or write the file.
    #[error("the key file {path} has mode {mode:04o}: others than its owner may use it; `chmod 600` it")]
    Exposed {
        /// The file's path.
        path: PathBuf,
        /// The permission bits.
        mode: u32,
    },
    /// The file is not a key file.
    #[error("{path} is not {expected} of this system")]
    Malformed {
        /// The file's path.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// The system has no randomness to make a key from.
    #[error("no randomness for a new key: {0}")]
    Randomness(String),
}

/// Loads the key at `path`; makes it, mode 0600, if nothing is there. Of several that race, all get the same key.
pub fn load_or_create(path: impl AsRef<Path>) -> Result<SigningKey, KeyError> {
    let path = path.as_ref();
    match load(path) {
        Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        outcome => return outcome,
    }
    match create(path) {
        Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => load(path),
        outcome => outcome,
    }
}

/// Loads the key at `path`; refuses a file that group or others may touch.
pub fn load(path: impl AsRef<Path>) -> Result<SigningKey, KeyError> {
    load_secret(path.as_ref(), &ED25519).map(|seed| SigningKey::from_bytes(&seed))
}

/// The secret in a key file of this sort.
pub(crate) fn load_secret(path: &Path, sort: &Sort) -> Result<[u8; 32], KeyError> {
    let failed = |source| KeyError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    // Of the opened file, not of the path, so that what was checked is what is read.
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    let malformed = || KeyError::Malformed { path: path.to_owned(), expected: sort.name };
    match file.take(MAX_FILE_BYTES).read_to_string(&mut text) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(malformed()),
        outcome => outcome.map_err(failed)?,
    };
    let seed = text.trim_end().strip_prefix(sort.tag).and_then(|rest| rest.strip_prefix(' '));
    let seed = seed.and_then(|seed| STANDARD.decode(seed).ok()).ok_or_else(malformed)?;
    <[u8; 32]>::try_from(seed).map_err(|_| malformed())
}

/// Makes a new key at `path`, mode 0600; fails with `AlreadyExists` if something is there.
pub fn create(path: impl AsRef<Path>) -> Result<SigningKey, KeyError> {
    create_secret(path.as_ref(), &ED25519).map(|seed| SigningKey::from_bytes(&seed))
}

/// Makes a key file of this sort with a random secret.
pub(crate) fn create_secret(path: &Path, sort: &Sort) -> Result<[u8; 32], KeyError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| KeyError::Randomness(error.to_string()))?;
    let line = format!("{} {}\n", sort.tag, STANDARD.encode(seed));
    let failed = |source| KeyError::Io { path: path.to_owned(), source };
    let staged = stage(path, line.as_bytes(), 0o600).map_err(failed)?;
    // A link, unlike a rename, never replaces what is there.
    let linked = std::fs::hard_link(&staged, path);
    std::fs::remove_file(&staged).map_err(failed)?;
    linked.and_then(|()| sync_directory(path)).map_err(failed)?;
    Ok(seed)
}

/// Puts the key at `next` in the place of the one at `path`, at once and durably: `path` holds the old key or the new, never none.
pub fn put_in_place(next: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<(), KeyError> {
    let (next, path) = (next.as_ref(), path.as_ref());
    let failed = |source| KeyError::Io { path: path.to_owned(), source };
    std::fs::rename(next, path).and_then(|()| sync_directory(path)).map_err(failed)
}

/// Replaces the file at `path` as a whole, durably: readers see the old content or the new.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let staged = stage(path, content, mode)?;
    std::fs::rename(&staged, path)?;
    sync_directory(path)
}

/// Writes `content` durably to a new file beside `path`.
fn stage(path: &Path, content: &[u8], mode: u32) -> io::Result<PathBuf> {
    let mut suffix = [0; 8];
    getrandom::fill(&mut suffix).map_err(|error| io::Error::other(error.to_string()))?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{:016x}.new", u64::from_be_bytes(suffix)));
    let staged = path.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&staged)?;
    // The umask may have taken bits away; it never adds any.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(staged)
}

pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}
