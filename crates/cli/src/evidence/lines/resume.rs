//! Continuing lines whose writer was ended: what is whole and holds stays, the rest is cut off.
//!
//! Left out: which files these are. Invariant: nothing stays that the writer would not write again.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Seek as _, SeekFrom},
    path::Path,
};

use exchequer_tlog::{SignedCheckpoint, VerifierKey, leaf_hash, verify_inclusion};

use super::{Claim, LineReader, LineWriter, ProofFile, Renderer, Rendering, Selection};
use crate::evidence::pack::{ResumeError, Resumed};

/// The checkpoint of lines that were begun, by what lies beside them.
pub fn begun_checkpoint(beside: &Path) -> io::Result<Option<SignedCheckpoint>> {
    Ok(read(beside)?.and_then(|beside| SignedCheckpoint::parse(beside.checkpoint.as_bytes()).ok()))
}

fn read(beside: &Path) -> io::Result<Option<ProofFile>> {
    match fs::read(beside) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl LineWriter<BufWriter<File>> {
    /// Continues the lines in this file, beside which the other lies.
    pub fn resume(
        file: File,
        beside: &Path,
        rendering: Rendering,
        selection: impl Into<Selection>,
        key: &VerifierKey,
    ) -> Result<Resumed<Self>, ResumeError> {
        let Some(begun) = read(beside)? else { return Ok(Resumed::Nothing) };
        let Ok(checkpoint) = SignedCheckpoint::parse(begun.checkpoint.as_bytes()) else {
            return Ok(Resumed::Nothing);
        };
        let expected = ProofFile::new(rendering, selection.into(), key, &checkpoint);
        if (ProofFile { entries: None, ..begun }) != expected {
            return Err(ResumeError::Other);
        }
        let head = checkpoint.checkpoint();
        let mut renderer = Renderer::new(rendering, head.origin());
        let (mut last, mut entries, mut end) = (None, 0, 0);
        let mut input = BufReader::new(&file);
        input.seek(SeekFrom::Start(0))?;
        let mut lines = LineReader::new(input);
        loop {
            let line = match lines.next_line() {
                Ok(line) => line,
                // Bytes that are no text.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => break,
                Err(error) => return Err(error.into()),
            };
            let Ok(Claim { index, entry, proof }) = Claim::read(rendering, line) else { break };
            let leaf = leaf_hash(&entry);
            let mut next = renderer.clone();
            let holds = last.is_none_or(|last| index > last)
                && verify_inclusion(&leaf, index, head.size(), &proof, head.root()).is_ok()
                && next.line(index, &entry, &leaf, &proof).as_deref() == Some(line);
            if !holds {
                break;
            }
            renderer = next;
            (last, entries, end) = (Some(index), entries + 1, end + line.len() as u64);
        }
        drop(lines);
        file.set_len(end)?;
        let mut out = BufWriter::new(file);
        out.seek(SeekFrom::Start(end))?;
        Ok(Resumed::Continued(Self { out, checkpoint, beside: expected, renderer, last, entries }))
    }
}
