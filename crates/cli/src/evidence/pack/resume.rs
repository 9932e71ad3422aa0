//! Continuing a pack whose writer was ended: what is whole and holds stays, the rest is cut off.
//!
//! A pack is its own journal: each member says how long it is. Left out: which file that is. Invariant: nothing stays that the writer
//! would not write again.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Seek as _, SeekFrom},
};

use exchequer_event::entry;
use exchequer_tlog::{SignedCheckpoint, TlogProof, VerifierKey};

use super::{
    CHECKPOINT, Manifest, PackWriter, README, Selection, VKEY, entry_name, head_members, proof_file,
    proof_name,
    read::{Members, ReadError, index_of},
    sum_line,
};

/// A pack can't be continued.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The file could not be read or cut.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is of another selection, key or tool.
    #[error("it is of another export")]
    Other,
}

/// What a partial file is good for.
#[derive(Debug)]
pub enum Resumed<T> {
    /// It goes on from here.
    Continued(T),
    /// Not even its head is whole.
    Nothing,
}

type Writer = PackWriter<BufWriter<File>>;

/// The checkpoint of a pack that was begun.
pub fn begun_checkpoint(file: &File) -> io::Result<Option<SignedCheckpoint>> {
    let mut input = BufReader::new(file);
    input.seek(SeekFrom::Start(0))?;
    let mut members = Members::new(input);
    let head = [README, VKEY, CHECKPOINT].map(|name| members.expect(name).ok());
    Ok(head[2].as_deref().and_then(|bytes| SignedCheckpoint::parse(bytes).ok()))
}

impl Writer {
    /// Continues the pack in this file.
    pub fn resume(
        file: File,
        selection: impl Into<Selection>,
        key: &VerifierKey,
    ) -> Result<Resumed<Self>, ResumeError> {
        let Some(checkpoint) = begun_checkpoint(&file)? else { return Ok(Resumed::Nothing) };
        let mut manifest = Manifest::new(selection.into(), key, &checkpoint);
        let mut input = BufReader::new(&file);
        input.seek(SeekFrom::Start(0))?;
        let mut members = Members::new(input);
        let mut sums = String::new();
        for (name, content) in head_members(&manifest, &checkpoint) {
            match members.expect(name) {
                Ok(found) if found == content.as_bytes() => sum_line(&mut sums, name, &found),
                Ok(_) | Err(ReadError::Damaged { .. } | ReadError::NotAPack) => {
                    return Err(ResumeError::Other);
                }
                Err(ReadError::Io(error)) => return Err(error.into()),
            }
        }
        let mut last = None;
        let mut end = members.input.stream_position()?;
        while let Some(index) = next_entry(&mut members, &manifest, &checkpoint, last)? {
            last = Some(index);
            manifest.entries += 1;
            end = members.input.stream_position()?;
        }
        drop(members);
        file.set_len(end)?;
        let mut out = BufWriter::new(file);
        out.seek(SeekFrom::Start(end))?;
        Ok(Resumed::Continued(Self { out, checkpoint, manifest, last, sums }))
    }
}

/// The next entry that is whole and holds; `None` from the first on that does not.
fn next_entry(
    members: &mut Members<BufReader<&File>>,
    manifest: &Manifest,
    checkpoint: &SignedCheckpoint,
    last: Option<u64>,
) -> io::Result<Option<u64>> {
    let read = || -> Result<Option<u64>, ReadError> {
        let Some(member) = members.next()? else { return Ok(None) };
        let Some(index) = index_of(&member.name).filter(|index| last.is_none_or(|last| *index > last)) else {
            return Ok(None);
        };
        if member.name != entry_name(index) {
            return Ok(None);
        }
        let entry = members.content(&member)?;
        if entry::decode(&entry.clone().into()).is_err() {
            return Ok(None);
        }
        if !manifest.scope.proves(index) {
            return Ok(Some(index));
        }
        let proof = members.expect(&proof_name(index))?;
        let hashes = TlogProof::parse(&proof).ok().map(|proof| proof.hashes().to_vec()).unwrap_or_default();
        let same = proof_file(index, &entry, hashes, checkpoint).is_ok_and(|text| text.as_bytes() == proof);
        Ok(same.then_some(index))
    };
    match { read }() {
        Ok(index) => Ok(index),
        Err(ReadError::Io(error)) => Err(error),
        Err(ReadError::NotAPack | ReadError::Damaged { .. }) => Ok(None),
    }
}
