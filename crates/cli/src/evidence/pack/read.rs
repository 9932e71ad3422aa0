//! Reading a pack, strictly: the members, their order, their headers and padding are exactly the format's.
//!
//! Left out: whether proofs and signatures hold. Invariant: no more than one member is in memory, and none that is larger than its
//! kind can be; nothing is ever written to disk.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use exchequer_tlog::MAX_ENTRY;

use super::{
    BLOCK, CHECKPOINT, FORMAT, MANIFEST, Manifest, README, SUMS, VERIFY, VKEY, entry_name, header, padding,
    proof_name, readme, sum_line,
};
use crate::evidence::verify::MAX_CHECKPOINT_BYTES;

const MAX_SMALL_BYTES: usize = 16 * 1024;
/// A proof: the checkpoint, and at most 65 lines of hashes.
const MAX_PROOF_BYTES: usize = MAX_CHECKPOINT_BYTES + 4096;
const MAX_TOOL_BYTES: usize = 64;

/// A pack can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error(transparent)]
    Io(io::Error),
    /// The file does not begin as a pack does.
    #[error("not an evidence pack ({FORMAT})")]
    NotAPack,
    /// It is not in the format.
    #[error("{detail}")]
    Damaged {
        /// The entry, where it is known.
        index: Option<u64>,
        /// What is wrong, and where.
        detail: String,
    },
}

/// Whether the file at this path begins as a pack does.
pub fn begins(path: &Path) -> bool {
    let mut magic = [0; README.len()];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *README.as_bytes()
}

/// An entry with its proof, neither of them checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The entry's index.
    pub index: u64,
    /// Its bytes.
    pub entry: Vec<u8>,
    /// Its proof file, where it has one.
    pub proof: Option<Vec<u8>>,
}

/// A pack that has the right members. Entries are read with [`next_pair`](Self::next_pair).
pub struct PackReader<R> {
    members: Members<R>,
    manifest: Manifest,
    vkey: String,
    checkpoint: Vec<u8>,
    /// The next member.
    ahead: Member,
}

pub(super) struct Members<R> {
    pub(super) input: R,
    /// The last member, for messages.
    last: String,
}

pub(super) struct Member {
    pub(super) name: String,
    size: u64,
}

fn damaged(index: Option<u64>, detail: impl Into<String>) -> ReadError {
    ReadError::Damaged { index, detail: detail.into() }
}

/// Index of an entry's or proof's member.
pub(super) fn index_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("entries/");
    let digits = digits.or_else(|| name.strip_prefix("proofs/")?.strip_suffix(".tlog-proof"))?;
    let index = digits.parse().ok()?;
    (name == entry_name(index) || name == proof_name(index)).then_some(index)
}

/// The largest that a member can be; `None` if there is no such member.
fn limit(name: &str) -> Option<usize> {
    match name {
        README | VKEY | MANIFEST | SUMS => Some(MAX_SMALL_BYTES),
        CHECKPOINT => Some(MAX_CHECKPOINT_BYTES),
        _ if index_of(name).is_some() => {
            Some(if name.starts_with("entries/") { MAX_ENTRY } else { MAX_PROOF_BYTES })
        }
        _ => None,
    }
}

impl<R: Read + Seek> Members<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, last: "the beginning".into() }
    }

    /// The next member's header; `None` at the right end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<Member>, ReadError> {
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        if block == [0; BLOCK] {
            let mut end = [0; BLOCK];
            self.fill(&mut end)?;
            let more = self.input.read(&mut [0]).map_err(ReadError::Io)?;
            if end != [0; BLOCK] || more != 0 {
                return Err(damaged(None, "bytes follow the end of the archive"));
            }
            return Ok(None);
        }
        let read = tar::Header::from_byte_slice(&block);
        let after = &self.last;
        let name = String::from_utf8(read.path_bytes().into_owned()).unwrap_or_default();
        let Some(max) = limit(&name) else {
            return Err(damaged(
                None,
                format!("the member after {after} has no name that a pack has: {name:?}"),
            ));
        };
        let size = read.entry_size().unwrap_or(u64::MAX);
        if size > max as u64 {
            return Err(damaged(
                index_of(&name),
                format!("{name} is longer than the {max} bytes it can have"),
            ));
        }
        if header(&name, size).as_bytes() != &block {
            return Err(damaged(
                index_of(&name),
                format!("the header of {name} is not the one that a pack has"),
            ));
        }
        self.last.clone_from(&name);
        Ok(Some(Member { name, size }))
    }

    pub(super) fn content(&mut self, member: &Member) -> Result<Vec<u8>, ReadError> {
        let length = usize::try_from(member.size).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        self.pad(member, length)?;
        Ok(bytes)
    }

    fn skip(&mut self, member: &Member) -> Result<(), ReadError> {
        let length = usize::try_from(member.size).unwrap_or(usize::MAX);
        self.input.seek_relative(i64::try_from(length).unwrap_or(i64::MAX)).map_err(ReadError::Io)?;
        self.pad(member, length)
    }

    fn pad(&mut self, member: &Member, length: usize) -> Result<(), ReadError> {
        let mut zeros = [0; BLOCK];
        let zeros = &mut zeros[..padding(length)];
        self.fill(zeros)?;
        if zeros.iter().any(|byte| *byte != 0) {
            let name = &member.name;
            return Err(damaged(index_of(name), format!("the padding after {name} is not zero")));
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), ReadError> {
        self.input.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                damaged(None, format!("the archive is cut after the header of {}", self.last))
            }
            _ => ReadError::Io(error),
        })
    }

    /// The next member, which has to be this one.
    pub(super) fn expect(&mut self, name: &str) -> Result<Vec<u8>, ReadError> {
        let member = self.next()?;
        self.is(member, name)
    }

    fn is(&mut self, member: Option<Member>, name: &str) -> Result<Vec<u8>, ReadError> {
        match member {
            Some(member) if member.name == name => self.content(&member),
            Some(Member { name: found, .. }) => {
                Err(damaged(index_of(&found), format!("{found} stands where {name} has to")))
            }
            None => Err(damaged(None, format!("{name} is missing"))),
        }
    }
}

impl<R: Read + Seek> PackReader<R> {
    /// Reads everything but entries and proofs, and checks that the pack has the members it should.
    pub fn open(mut input: R) -> Result<Self, ReadError> {
        let mut magic = [0; README.len()];
        if input.read_exact(&mut magic).is_err() || magic != *README.as_bytes() {
            return Err(ReadError::NotAPack);
        }
        input.seek(SeekFrom::Start(0)).map_err(ReadError::Io)?;
        let mut members = Members::new(input);
        let readme_text = members.expect(README)?;
        let vkey = members.expect(VKEY)?;
        let checkpoint = members.expect(CHECKPOINT)?;
        let start = members.input.stream_position().map_err(ReadError::Io)?;
        let (mut count, mut last) = (0, None);
        let mut member = members.next()?;
        // Which entries have to have a proof is known by the manifest, which comes last.
        let after = loop {
            let Some((entry, index)) = member.as_ref().and_then(|m| Some((m, index_of(&m.name)?))) else {
                break member;
            };
            if last.is_some_and(|last| index <= last) || !entry.name.starts_with("entries/") {
                return Err(damaged(Some(index), format!("{} is out of order", entry.name)));
            }
            members.skip(entry)?;
            (count, last) = (count + 1, Some(index));
            member = members.next()?;
            if let Some(proof) = member.as_ref().filter(|member| member.name == proof_name(index)) {
                members.skip(proof)?;
                member = members.next()?;
            }
        };
        let manifest_text = members.is(after, MANIFEST)?;
        let sums = members.expect(SUMS)?;
        if members.next()?.is_some() {
            return Err(damaged(None, format!("a member follows {SUMS}")));
        }
        let mut expected = String::new();
        for (name, content) in
            [(README, &readme_text), (VKEY, &vkey), (CHECKPOINT, &checkpoint), (MANIFEST, &manifest_text)]
        {
            let from = expected.len();
            sum_line(&mut expected, name, content);
            if sums.get(from..expected.len()) != Some(&expected.as_bytes()[from..]) {
                return Err(damaged(None, format!("{name} does not have the hash that {SUMS} gives")));
            }
        }
        if sums != expected.as_bytes() {
            return Err(damaged(None, format!("{SUMS} has further lines")));
        }
        let manifest: Manifest = serde_json::from_slice(&manifest_text)
            .map_err(|error| damaged(None, format!("{MANIFEST}: {error}")))?;
        let canonical = manifest.encode() == manifest_text
            && manifest.format == FORMAT
            && manifest.verify == VERIFY
            && manifest.tool.len() <= MAX_TOOL_BYTES
            && readme(&manifest).as_bytes() == readme_text;
        if !canonical {
            return Err(damaged(None, format!("{MANIFEST} or {README} is not one of {FORMAT}")));
        }
        if manifest.entries != count {
            let detail = format!("{MANIFEST} counts {} entries, the pack has {count}", manifest.entries);
            return Err(damaged(None, detail));
        }
        let vkey = String::from_utf8(vkey).unwrap_or_default();
        if vkey != format!("{}\n", manifest.log_key) {
            return Err(damaged(None, format!("{VKEY} is not the key that {MANIFEST} names")));
        }
        members.input.seek(SeekFrom::Start(start)).map_err(ReadError::Io)?;
        let ahead = Self::ahead(&mut members)?;
        Ok(Self { members, manifest, vkey, checkpoint, ahead })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The log's key as the pack gives it.
    pub fn vkey(&self) -> &str {
        self.vkey.trim_end()
    }

    /// The signed checkpoint.
    pub fn checkpoint(&self) -> &[u8] {
        &self.checkpoint
    }

    /// The next entry and its proof.
    pub fn next_pair(&mut self) -> Result<Option<Pair>, ReadError> {
        let Some(index) = index_of(&self.ahead.name) else {
            return Ok(None);
        };
        let entry = self.members.content(&self.ahead)?;
        let proof = if self.manifest.scope.proves(index) {
            Some(self.members.expect(&proof_name(index))?)
        } else {
            None
        };
        self.ahead = Self::ahead(&mut self.members)?;
        if self.ahead.name.starts_with("proofs/") {
            return Err(damaged(Some(index), format!("{} has nothing to prove", self.ahead.name)));
        }
        Ok(Some(Pair { index, entry, proof }))
    }

    fn ahead(members: &mut Members<R>) -> Result<Member, ReadError> {
        members.next()?.ok_or_else(|| damaged(None, "the pack changed while it was read"))
    }
}
