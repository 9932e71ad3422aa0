//! Payload key files: 32 random bytes under which a tenant's payloads are encrypted, made once and erased when they are to be forgotten.
//!
//! They are files as [`crate::keys`] makes them, with another tag: neither is taken for the other. Left out: what the key does.
//! Invariant: nothing but a whole payload key is ever overwritten or removed.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
};

use crate::keys::{self, KeyError, Sort};

const PAYLOAD: Sort = Sort { tag: "exchequer-payload-key-v1", name: "a payload key file" };

/// Loads the key at `path`; refuses a file that group or others may touch.
pub fn load(path: impl AsRef<Path>) -> Result<[u8; 32], KeyError> {
    keys::load_secret(path.as_ref(), &PAYLOAD)
}

/// Makes a new key at `path`, mode 0600; fails with `AlreadyExists` if something is there.
pub fn create(path: impl AsRef<Path>) -> Result<[u8; 32], KeyError> {
    keys::create_secret(path.as_ref(), &PAYLOAD)
}

/// Overwrites the key at `path` where it lies and removes the file; the key that it held. This is as much as a program can do: a file
/// system that copies on write, a flash disk's spare blocks, a snapshot or a backup may still hold the old bytes.
pub fn erase(path: impl AsRef<Path>) -> Result<[u8; 32], KeyError> {
    let path = path.as_ref();
    let key = load(path)?;
    let overwrite = || {
        let mut file = OpenOptions::new().write(true).open(path)?;
        let length = usize::try_from(file.metadata()?.len()).unwrap_or_default();
        file.write_all(&vec![0; length])?;
        // Before the name goes: afterwards nothing would make the disk write it.
        file.sync_all()?;
        fs::remove_file(path)?;
        keys::sync_directory(path)
    };
    overwrite().map_err(|source| KeyError::Io { path: path.to_owned(), source })?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_gone_when_it_is_erased() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acme.key");
        let key = create(&path).unwrap();
        assert_eq!(load(&path).unwrap(), key);
        assert!(create(&path).is_err());
        // Another name of the same file shows what is left of it.
        let other = dir.path().join("other");
        fs::hard_link(&path, &other).unwrap();
        assert_eq!(erase(&path).unwrap(), key);
        assert!(!path.exists());
        assert!(fs::read(&other).unwrap().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn nothing_else_is_taken_for_a_payload_key_or_erased() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.key");
        keys::create(&path).unwrap();
        let before = fs::read(&path).unwrap();
        assert!(matches!(load(&path), Err(KeyError::Malformed { .. })));
        assert!(matches!(erase(&path), Err(KeyError::Malformed { .. })));
        assert_eq!(fs::read(&path).unwrap(), before);
        let payload = dir.path().join("acme.key");
        create(&payload).unwrap();
        assert!(matches!(keys::load(&payload), Err(KeyError::Malformed { .. })));
    }
}
