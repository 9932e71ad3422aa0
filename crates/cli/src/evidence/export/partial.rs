//! The file that an export writes before it is whole: `OUT.partial`, and for lines `OUT.proof.partial` beside it.
//!
//! It outlives an export that is ended, and is its own journal: what was written and holds is kept by the next one with the same
//! selection, in the tree of the same checkpoint. Left out: what is written. Invariant: one export at a time writes to it, and OUT is
//! replaced only by what is whole, synced and verified. Lines are two files: an end between the two replacements leaves the new proofs
//! beside the old records, which then do not verify until the next export.

use std::{
    cell::Cell,
    ffi::OsString,
    fs::{self, File, TryLockError},
    io::{self, BufWriter, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use exchequer_tlog::{Hash, SignedCheckpoint, VerifierKey};
use prost::bytes::Bytes;

use super::{ExportError, Format};
use crate::evidence::{
    lines::{self, LineWriter, ProofFile, Rendering},
    pack::{self, Manifest, PackWriter, ResumeError, Resumed, Selection, WriteError},
};

/// The files of an export in progress.
pub(super) struct Partial {
    out: PathBuf,
    path: PathBuf,
    beside: PathBuf,
    file: File,
    format: Format,
    /// Entries that were in it when the export ended; none if it did not come to that.
    kept: Cell<Option<u64>>,
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// What an export to this path is written to before it is whole.
pub(super) fn path_of(out: &Path) -> PathBuf {
    with_suffix(out, ".partial")
}

impl Partial {
    /// Opens what is there, or makes it.
    pub(super) fn open(out: &Path, format: Format) -> Result<Self, ExportError> {
        let path = path_of(out);
        let taken = || ExportError::Request(format!("{} is being written by another export", path.display()));
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(taken()),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        // Another export may have given this very file its name between the opening and the lock.
        if !fs::metadata(&path).is_ok_and(|found| found.ino() == file.metadata().map_or(0, |own| own.ino())) {
            return Err(taken());
        }
        Ok(Self {
            kept: Cell::new(None),
            out: out.to_owned(),
            beside: with_suffix(&lines::proof_path(out), ".partial"),
            path,
            file,
            format,
        })
    }

    /// The checkpoint of what is there.
    pub(super) fn checkpoint(&self) -> io::Result<Option<SignedCheckpoint>> {
        match self.format.rendering() {
            None => pack::begun_checkpoint(&self.file),
            Some(_) => lines::begun_checkpoint(&self.beside),
        }
    }

    /// Continues what is there if that is possible, and begins with this checkpoint if nothing is.
    pub(super) fn writer(
        &self,
        selection: Selection,
        key: &VerifierKey,
        checkpoint: SignedCheckpoint,
    ) -> Result<Output, ExportError> {
        let other = |error| match error {
            ResumeError::Io(error) => error.into(),
            ResumeError::Other => ExportError::Request(format!(
                "{} was begun for something else; remove it to begin again",
                self.path.display()
            )),
        };
        let file = self.file.try_clone()?;
        match self.format.rendering() {
            None => match PackWriter::resume(file, selection.clone(), key).map_err(other)? {
                Resumed::Continued(writer) => Ok(Output::Pack(writer)),
                Resumed::Nothing => Ok(Output::Pack(PackWriter::new(
                    BufWriter::new(self.emptied()?),
                    selection,
                    key,
                    checkpoint,
                )?)),
            },
            Some(rendering) => {
                match LineWriter::resume(file, &self.beside, rendering, selection.clone(), key)
                    .map_err(other)?
                {
                    Resumed::Continued(writer) => Ok(Output::Lines(writer)),
                    Resumed::Nothing => self.begin_lines(rendering, selection, key, checkpoint),
                }
            }
        }
    }

    fn begin_lines(
        &self,
        rendering: Rendering,
        selection: Selection,
        key: &VerifierKey,
        checkpoint: SignedCheckpoint,
    ) -> Result<Output, ExportError> {
        let writer = LineWriter::new(BufWriter::new(self.emptied()?), rendering, selection, key, checkpoint);
        self.put_beside(writer.beside())?;
        Ok(Output::Lines(writer))
    }

    fn emptied(&self) -> io::Result<File> {
        let mut file = self.file.try_clone()?;
        file.set_len(0)?;
        io::Seek::rewind(&mut file)?;
        Ok(file)
    }

    fn put_beside(&self, beside: &ProofFile) -> io::Result<()> {
        let mut file = File::create(&self.beside)?;
        file.write_all(&beside.encode())?;
        file.sync_all()
    }

    /// Syncs what was written, and puts what belongs beside it there. Where that lies, for the check.
    pub(super) fn finish(&self, written: Written) -> io::Result<(PathBuf, Option<PathBuf>)> {
        self.file.sync_all()?;
        let Written::Lines(beside) = written else { return Ok((self.path.clone(), None)) };
        self.put_beside(&beside)?;
        Ok((self.path.clone(), Some(self.beside.clone())))
    }

    /// Gives what was verified its name.
    pub(super) fn persist(self) -> io::Result<u64> {
        let bytes = self.file.metadata()?.len();
        // Records never have their name without what they are checked by.
        if self.format.rendering().is_some() {
            fs::rename(&self.beside, lines::proof_path(&self.out))?;
        }
        fs::rename(&self.path, &self.out)?;
        let dir = self.out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()?;
        Ok(bytes)
    }

    /// Notes how many entries are in it.
    pub(super) fn keeps(&self, entries: u64) {
        self.kept.set(Some(entries));
    }

    /// Whether there is anything in it to continue. What was refused as another export's is left as it is.
    pub(super) fn is_worth_keeping(&self) -> bool {
        match self.kept.get() {
            Some(entries) => entries > 0,
            None => self.checkpoint().is_ok_and(|checkpoint| checkpoint.is_some()),
        }
    }

    /// Removes what can't be continued.
    pub(super) fn remove(self) {
        // What can't be removed is refused or continued by the next export.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.beside);
    }
}

/// What writes.
pub(super) enum Output {
    Pack(PackWriter<BufWriter<File>>),
    Lines(LineWriter<BufWriter<File>>),
}

/// What was written.
pub(super) enum Written {
    Pack(Manifest),
    Lines(ProofFile),
}

impl Output {
    pub(super) fn entry(&mut self, index: u64, entry: &Bytes, proof: Vec<Hash>) -> Result<(), WriteError> {
        match self {
            Self::Pack(pack) => pack.entry(index, entry, proof),
            Self::Lines(lines) => lines.entry(index, entry, &proof),
        }
    }

    pub(super) fn written(&self) -> (Option<u64>, u64) {
        match self {
            Self::Pack(pack) => pack.written(),
            Self::Lines(lines) => lines.written(),
        }
    }

    pub(super) fn finish(self) -> Result<Written, WriteError> {
        Ok(match self {
            Self::Pack(pack) => Written::Pack(pack.finish()?.1),
            Self::Lines(lines) => Written::Lines(lines.finish()?.1),
        })
    }
}
