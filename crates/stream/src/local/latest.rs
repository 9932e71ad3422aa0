//! Latest values within one process: a small file for each key, which holds its revision and the value.
//!
//! The file is a line `revision <n>` and the value; one without that line is from before there were revisions, and has the first.
//! Left out: other processes, which the journal's lock keeps out. Invariant: a value is on disk before anybody sees it, and whether it
//! may be set is decided under the same lock that sets it.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

use crate::files;
use crate::stream::{AppendError, ReadError, ValueStream};

/// A value with its revision.
type Valued = Option<(Bytes, u64)>;

#[derive(Debug)]
struct Slot {
    present: watch::Sender<Valued>,
    /// A write failed: what is on disk has to be looked at.
    is_doubtful: bool,
}

#[derive(Debug)]
pub(super) struct Latest {
    dir: PathBuf,
    slots: Arc<Mutex<HashMap<String, Slot>>>,
}

/// Everything that a blocking operation needs. The guard goes along, so that a caller who gives up doesn't let a second writer in.
struct Locked {
    dir: PathBuf,
    slots: OwnedMutexGuard<HashMap<String, Slot>>,
}

impl Locked {
    /// The key's slot, which says what is on disk.
    fn slot(&mut self, key: &str) -> io::Result<&mut Slot> {
        let is_known = self.slots.get(key).is_some_and(|slot| !slot.is_doubtful);
        if !is_known {
            if self.slots.contains_key(key) {
                // What is seen now has to be there after a power cut, too.
                files::sync_dir(&self.dir)?;
            }
            let found = read(&self.dir, key)?;
            let new = || Slot { present: watch::Sender::new(None), is_doubtful: false };
            let slot = self.slots.entry(key.to_owned()).or_insert_with(new);
            slot.is_doubtful = false;
            slot.present.send_if_modified(|present| {
                let is_other = *present != found;
                *present = found;
                is_other
            });
        }
        self.slots.get_mut(key).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn read(dir: &Path, key: &str) -> io::Result<Valued> {
    let file = match std::fs::read(dir.join(key)) {
        Ok(file) => Bytes::from(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let line = file.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let revision = std::str::from_utf8(&file[..line]).ok().and_then(|line| line.strip_prefix("revision "));
    Ok(Some(match revision.and_then(|revision| revision.parse().ok()) {
        Some(revision) => (file.slice(line + 1..), revision),
        None => (file, 1),
    }))
}

impl Latest {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, slots: Arc::default() }
    }

    /// Runs file operations where they may block.
    async fn locked<T: Send + 'static>(
        &self,
        act: impl FnOnce(Locked) -> T + Send + 'static,
    ) -> Result<T, String> {
        let locked = Locked { dir: self.dir.clone(), slots: Arc::clone(&self.slots).lock_owned().await };
        tokio::task::spawn_blocking(move || act(locked)).await.map_err(|e| e.to_string())
    }

    /// Sets a value, if the revision is the expected one; the new revision.
    pub(super) async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Option<u64>,
    ) -> Result<u64, AppendError> {
        let name = key.to_owned();
        let written = self.locked(move |mut locked| {
            let dir = locked.dir.clone();
            let unreadable = |e: io::Error| {
                AppendError::Unavailable(format!("cannot read the latest value of {name}: {e}"))
            };
            let slot = locked.slot(&name).map_err(unreadable)?;
            let revision = slot.present.borrow().as_ref().map_or(0, |(_, revision)| *revision);
            if expected.is_some_and(|expected| expected != revision) {
                return Err(AppendError::WrongLast { actual: Some(revision) });
            }
            let next = revision + 1;
            let content = [format!("revision {next}\n").as_bytes(), &value].concat();
            if let Err(e) = files::write_atomic(&dir, &name, &content) {
                // A failed rename or directory sync may or may not have taken effect.
                slot.is_doubtful = true;
                return Err(AppendError::Unknown(format!("cannot write the latest value of {name}: {e}")));
            }
            slot.present.send_replace(Some((value, next)));
            Ok(next)
        });
        written.await.unwrap_or_else(|e| Err(AppendError::Unknown(e)))
    }

    /// The value with its revision.
    pub(super) async fn get(&self, key: &str) -> Result<Valued, ReadError> {
        Ok(self.receiver(key).await?.borrow().clone())
    }

    async fn receiver(&self, key: &str) -> Result<watch::Receiver<Valued>, ReadError> {
        let name = key.to_owned();
        let receiver = self.locked(move |mut locked| Ok(locked.slot(&name)?.present.subscribe()));
        let unavailable =
            |e: String| ReadError::Unavailable(format!("cannot read the latest value of {key}: {e}"));
        receiver.await.map_err(unavailable)?.map_err(|e: io::Error| unavailable(e.to_string()))
    }

    /// The value if there is one, then each change.
    pub(super) async fn watch(&self, key: &str) -> Result<ValueStream, ReadError> {
        let receiver = self.receiver(key).await?;
        let changes = futures::stream::unfold((receiver, true), |(mut receiver, first)| async move {
            if first {
                receiver.mark_changed();
            }
            loop {
                if receiver.changed().await.is_err() {
                    return None;
                }
                let value = receiver.borrow_and_update().clone();
                if let Some((value, _)) = value {
                    return Some((Ok(value), (receiver, false)));
                }
            }
        });
        let closed =
            futures::stream::once(async { Err(ReadError::Unavailable("the stream was closed".into())) });
        Ok(changes.chain(closed).boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_value_from_before_there_were_revisions_has_the_first() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("old"), b"\n\x05value").unwrap();
        let latest = Latest::new(dir.path().to_owned());
        assert_eq!(latest.get("old").await, Ok(Some((Bytes::from_static(b"\n\x05value"), 1))));
        assert_eq!(latest.put("old", Bytes::from_static(b"new"), Some(1)).await, Ok(2));
        assert_eq!(latest.get("old").await, Ok(Some((Bytes::from_static(b"new"), 2))));
    }

    #[tokio::test]
    async fn after_a_write_whose_outcome_is_unknown_the_disk_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let latest = Latest::new(dir.path().to_owned());
        assert_eq!(latest.put("k", Bytes::from_static(b"1"), Some(0)).await, Ok(1));
        // The staged file can't be written.
        std::fs::create_dir(dir.path().join(".k.tmp")).unwrap();
        let unknown = latest.put("k", Bytes::from_static(b"2"), Some(1)).await;
        assert!(matches!(unknown, Err(AppendError::Unknown(_))), "{unknown:?}");
        std::fs::write(dir.path().join("k"), b"revision 2\n2").unwrap();
        assert_eq!(latest.get("k").await, Ok(Some((Bytes::from_static(b"2"), 2))));
    }
}
