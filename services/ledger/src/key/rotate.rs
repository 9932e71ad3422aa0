//! Rotation of the ledger's key, so that a crash at any step leaves a ledger that can sign.
//!
//! The steps: (1) a note of the old key, if it is to be revoked, then the new key as a pending file, both beside the key file; (2) the
//! new key is enrolled by a record that the old one signs; (3) when the log holds that, the pending file takes the key file's place, and
//! the new key signs; (4) it revokes the old one; (5) when the log holds that, the note goes. At the start, what is found beside the key
//! file says how far a rotation came: a pending key that the log has enrolled is put in place, any other is removed; a note of a key
//! that is no longer the current one is an unfinished revocation, any other is removed.
//!
//! Left out: other instances of the same log, which get the new key file from whoever runs them. Invariant: at each moment the key file
//! holds a key that the log lets sign, and a key signs only once the own log holds its enrolment.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use ed25519_dalek::{SigningKey, VerifyingKey};
use exchequer_auth::keys;
use exchequer_event::{
    control::public_key,
    v1::{self, KeyRole, control_record::Kind},
};
use exchequer_stream::AppendError;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{HOLDER, LedgerKey, state_of};
use crate::{control::ControlWriter, standing::Standing};

/// The key was not replaced, or not all of it is done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotateError {
    /// Another instance signs.
    #[error("the key is rotated where the log is signed: {0}")]
    NotSigning(String),
    /// One at a time.
    #[error("a rotation is in progress")]
    InProgress,
    /// The new key could not be enrolled; nothing has changed.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// A key file can't be made or put in place.
    #[error(transparent)]
    File(#[from] keys::KeyError),
    /// The note of the old key can't be written or removed.
    #[error("{path}: {source}")]
    Note {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The origin makes no key.
    #[error(transparent)]
    Key(#[from] exchequer_tlog::KeyError),
    /// The old key was revoked before the new one was enrolled.
    #[error("the ledger's key was revoked meanwhile")]
    Revoked,
    /// The ledger stops; the next start goes on with it.
    #[error("the ledger stops; the rotation goes on at the next start")]
    Stopped,
}

/// What a rotation led to.
#[derive(Clone, Debug)]
pub(crate) struct Rotated {
    pub(crate) replaced: VerifyingKey,
    pub(crate) public: VerifyingKey,
    pub(crate) verifier_key: String,
    pub(crate) revoked: bool,
}

/// What is to be said in the revocation of the old key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Note {
    key: VerifyingKey,
    actor: String,
    reason: String,
}

impl Note {
    fn encode(&self) -> String {
        format!("{}\n{}\n{}", hex::encode(self.key.as_bytes()), self.actor.replace('\n', " "), self.reason)
    }

    fn decode(text: &str) -> Option<Self> {
        let mut lines = text.splitn(3, '\n');
        let key = public_key("key", &hex::decode(lines.next()?).ok()?).ok()?;
        Some(Self { key, actor: lines.next()?.to_owned(), reason: lines.next()?.to_owned() })
    }
}

/// Replaces the ledger's key.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    key: LedgerKey,
    control: ControlWriter,
    standing: Arc<Standing>,
    shutdown: CancellationToken,
    pending: PathBuf,
    note: PathBuf,
    one: Arc<Mutex<()>>,
}

impl Rotation {
    /// The rotations of the key of an instance. Its name keeps its files apart from those of others that may share the directory.
    pub(crate) fn new(
        key: LedgerKey,
        instance: &str,
        control: ControlWriter,
        standing: Arc<Standing>,
        shutdown: CancellationToken,
    ) -> Self {
        let beside = |suffix: &str| {
            let mut name = key.0.file.file_name().unwrap_or_default().to_owned();
            name.push(format!(".{instance}.{suffix}"));
            key.0.file.with_file_name(name)
        };
        let (pending, note) = (beside("pending"), beside("revoke"));
        Self { key, control, standing, shutdown, pending, note, one: Arc::default() }
    }

    /// Replaces the key by a new one, and answers when the log holds all of it.
    pub(crate) async fn rotate(
        &self,
        actor: &str,
        keep_old: bool,
        reason: String,
    ) -> Result<Rotated, RotateError> {
        let _one = self.one.try_lock().map_err(|_| RotateError::InProgress)?;
        if !self.standing.leads() {
            let reason = self.standing.sign_fault().unwrap_or_else(|| "this ledger does not sign".to_owned());
            return Err(RotateError::NotSigning(reason));
        }
        self.resume_from_files().await?;
        let replaced = self.key.current().public();
        if !keep_old {
            self.write_note(&Note { key: replaced, actor: actor.to_owned(), reason })?;
        }
        let outcome = self.enrol(actor).await;
        if let Err(error) = outcome {
            // What may be enrolled yet is left to the next start.
            if !matches!(error, RotateError::Stopped) {
                self.discard();
            }
            return Err(error);
        }
        self.put_in_place(outcome?).await?;
        self.finish().await?;
        let current = self.key.current();
        let (public, verifier_key) = (current.public(), current.verifier_key.clone());
        Ok(Rotated { replaced, public, verifier_key, revoked: !keep_old })
    }

    /// Goes on with a rotation that a stop or a crash interrupted.
    pub(crate) async fn resume(self) {
        let _one = self.one.lock().await;
        if let Err(error) = self.resume_from_files().await {
            tracing::error!(%error, "a rotation of the ledger's key is not finished");
        }
    }

    async fn resume_from_files(&self) -> Result<(), RotateError> {
        if !self.pending.exists() && !self.note.exists() {
            return Ok(());
        }
        // What the stream already holds decides.
        if !self.control.caught_up(&self.standing, &self.shutdown).await {
            return Err(RotateError::Stopped);
        }
        match keys::load(&self.pending) {
            Ok(next) if self.is_enrolled(&next.verifying_key()) => {
                tracing::info!("a new ledger key was enrolled before the last stop; it signs from here on");
                self.put_in_place(next).await?;
            }
            Ok(_) => {
                tracing::warn!(
                    "a rotation of the ledger's key did not come to enrol the new one; it is dropped"
                );
                self.discard();
            }
            Err(keys::KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        self.finish().await
    }

    fn is_enrolled(&self, key: &VerifyingKey) -> bool {
        state_of(&self.standing.keys(), key).is_some_and(|state| !state.revoked)
    }

    /// Makes the new key and enrols it by the old one, up to where the own log holds that.
    async fn enrol(&self, actor: &str) -> Result<SigningKey, RotateError> {
        let next = keys::create(&self.pending)?;
        let public = next.verifying_key();
        let enrolled = Kind::KeyEnrolled(v1::KeyEnrolled {
            role: KeyRole::Ledger.into(),
            holder: HOLDER.to_owned(),
            public_key: public.as_bytes().to_vec().into(),
        });
        match self.control.append(actor, enrolled.clone()).await {
            Ok(_) => {}
            // It may be there, or come later: appending it again changes nothing.
            Err(AppendError::Unknown(_)) => {
                if !self.control.insist_for(actor, &enrolled, &self.shutdown).await {
                    return Err(RotateError::Stopped);
                }
            }
            Err(error) => return Err(error.into()),
        }
        let old = self.key.current().public();
        self.wait_until(|| self.is_enrolled(&public) || !self.is_enrolled(&old)).await?;
        if self.is_enrolled(&public) { Ok(next) } else { Err(RotateError::Revoked) }
    }

    /// The new key signs.
    async fn put_in_place(&self, next: SigningKey) -> Result<(), RotateError> {
        // Whoever starts next in this directory decides what becomes of the files.
        if self.shutdown.is_cancelled() {
            return Err(RotateError::Stopped);
        }
        let replace = || keys::put_in_place(&self.pending, &self.key.0.file).map_err(RotateError::from);
        self.key.change(next, replace).await?;
        // Tells the signer.
        self.standing.changed.send_modify(|_| {});
        Ok(())
    }

    /// Revokes the key that the note names, unless that is the current one.
    async fn finish(&self) -> Result<(), RotateError> {
        let failed = |source| RotateError::Note { path: self.note.clone(), source };
        let text = match std::fs::read_to_string(&self.note) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            text => text.map_err(failed)?,
        };
        if let Some(note) = Note::decode(&text).filter(|note| note.key != self.key.current().public()) {
            let revoked = Kind::KeyRevoked(v1::KeyRevoked {
                role: KeyRole::Ledger.into(),
                holder: HOLDER.to_owned(),
                public_key: note.key.as_bytes().to_vec().into(),
                reason: note.reason,
            });
            if self.is_enrolled(&note.key)
                && !self.control.insist_for(&note.actor, &revoked, &self.shutdown).await
            {
                return Err(RotateError::Stopped);
            }
            self.wait_until(|| !self.is_enrolled(&note.key)).await?;
        }
        remove(&self.note).map_err(failed)
    }

    /// Waits until the log holds what is waited for.
    async fn wait_until(&self, mut holds: impl FnMut() -> bool) -> Result<(), RotateError> {
        let mut changed = self.standing.changed.subscribe();
        tokio::select! {
            () = self.shutdown.cancelled() => Err(RotateError::Stopped),
            outcome = changed.wait_for(|_| holds()) => outcome.map(drop).map_err(|_| RotateError::Stopped),
        }
    }

    /// Before the pending key: a pending key without a note is one whose predecessor is kept.
    fn write_note(&self, note: &Note) -> Result<(), RotateError> {
        let text = note.encode();
        let write = || {
            let mut file = File::create(&self.note)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            sync_dir_of(&self.note)
        };
        write().map_err(|source| RotateError::Note { path: self.note.clone(), source })
    }

    /// Removes what a rotation left that changed nothing. The pending key goes first: alone, it would mean another rotation.
    fn discard(&self) {
        for path in [&self.pending, &self.note] {
            if let Err(error) = remove(path) {
                tracing::error!(%error, path = %path.display(), "a dropped rotation's file can't be removed");
                return;
            }
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.and_then(|()| sync_dir_of(path)),
    }
}

fn sync_dir_of(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_comes_back_and_a_cut_one_is_none_or_of_the_same_key() {
        let key = SigningKey::from_bytes(&[3; 32]).verifying_key();
        let note = Note { key, actor: "ada".into(), reason: "a\nb".into() };
        let text = note.encode();
        assert_eq!(Note::decode(&text), Some(note));
        for end in 0..text.len() {
            assert!(Note::decode(&text[..end]).is_none_or(|cut| cut.key == key), "cut at {end}");
        }
    }
}
