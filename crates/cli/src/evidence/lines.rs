//! Evidence in lines: one JSON object per entry, for programs that take events and not archives, and a file beside it to check it by.
//!
//! `FILE` holds nothing but records, each on a line that ends with a newline, in log order. `FILE.proof` holds what they are checked
//! with: the checkpoint, the log's key, the selection and the number of records ([`ProofFile`]). Each record carries its entry's exact
//! bytes and inclusion proof, and everything else in it is rendered from those bytes: a checker renders it again and compares, so
//! that no byte of the file can be changed unseen.
//!
//! [`LineWriter`] writes, [`LineReader`] reads; both hold one line at a time. Left out: what entries mean. Invariant: there is exactly
//! one line for an entry at its place in an export.

mod check;
mod json;
mod ocsf;
mod resume;

use std::{
    ffi::OsString,
    io::{self, BufRead},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use exchequer_event::entry;
use exchequer_tlog::{Hash, SignedCheckpoint, VerifierKey, leaf_hash, verify_inclusion};
use prost::bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use super::pack::{Scope, Selection, TimeRange, WriteError};

pub(super) use check::check;
pub use resume::begun_checkpoint;

/// Name and version of the format.
pub const FORMAT: &str = "exchequer-evidence-lines/v1";

/// Largest line: the largest entry in base64, its fields in JSON with every character escaped, and a proof.
const MAX_LINE_BYTES: u64 = 4 << 20;
const VERIFY: &str = "`exchequer verify FILE --key VKEY` checks it, with this file beside it as FILE.proof. By hand: check that `checkpoint` \
                      is signed by log_key (c2sp.org/tlog-checkpoint) and that the key is the one you know the log by; for each line take \
                      the entry's bytes from their base64, hash a zero byte and them with SHA-256, and check the inclusion proof (RFC 6962) \
                      of that leaf against the checkpoint. What a line says beside the entry's bytes is a rendering of them.";

/// What records look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rendering {
    /// The fields of the entry by the protocol's own names, as proto3 JSON has them.
    Ndjson,
    /// An OCSF 1.9 event.
    Ocsf,
}

/// What lies beside the records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofFile {
    /// [`FORMAT`].
    pub format: String,
    /// What the records look like.
    pub rendering: Rendering,
    /// What it is about.
    pub scope: Scope,
    /// The time that it is about, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<TimeRange>,
    /// The log's origin.
    pub origin: String,
    /// Entries in the tree of the checkpoint.
    pub tree_size: u64,
    /// Root of that tree, base64.
    pub root: String,
    /// The log's verifier key.
    pub log_key: String,
    /// The signed checkpoint that all proofs lead to.
    pub checkpoint: String,
    /// SHA-256 of the checkpoint's text, hex: also a signature that nobody knows the key of is as it was.
    pub checkpoint_sha256: String,
    /// Records in the file; none while it is being written.
    pub entries: Option<u64>,
    /// How to verify it.
    pub verify: String,
}

impl ProofFile {
    fn new(
        rendering: Rendering,
        selection: Selection,
        key: &VerifierKey,
        checkpoint: &SignedCheckpoint,
    ) -> Self {
        let head = checkpoint.checkpoint();
        Self {
            format: FORMAT.into(),
            rendering,
            scope: selection.scope,
            time: selection.time,
            origin: head.origin().into(),
            tree_size: head.size(),
            root: head.root().to_string(),
            log_key: key.to_string(),
            checkpoint: checkpoint.to_string(),
            checkpoint_sha256: sum(&checkpoint.to_string()),
            entries: None,
            verify: VERIFY.into(),
        }
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("it has nothing that JSON can't hold");
        bytes.push(b'\n');
        bytes
    }
}

fn sum(checkpoint: &str) -> String {
    hex::encode(Sha256::digest(checkpoint))
}

/// The path of what lies beside the records at this path.
pub fn proof_path(records: &Path) -> PathBuf {
    let mut name = OsString::from(records);
    name.push(".proof");
    name.into()
}

/// Renders the entries of one export, in order: an entry without a clock of its own takes the time of the one before it.
#[derive(Clone, Debug)]
struct Renderer {
    rendering: Rendering,
    origin: String,
    time_unix_ms: u64,
}

impl Renderer {
    fn new(rendering: Rendering, origin: &str) -> Self {
        Self { rendering, origin: origin.to_owned(), time_unix_ms: 0 }
    }

    /// The line of an entry, with its newline. `None` for bytes that are no entry.
    fn line(&mut self, index: u64, bytes: &Bytes, leaf: &Hash, proof: &[Hash]) -> Option<String> {
        let decoded = entry::decode(bytes).ok()?;
        let place = Place {
            origin: &self.origin,
            index,
            leaf: leaf.to_string(),
            leaf_hex: hex::encode(leaf.0),
            proof: proof.iter().map(Hash::to_string).collect(),
            entry: BASE64.encode(bytes),
        };
        let record = match self.rendering {
            Rendering::Ndjson => json::record(&place, &decoded),
            Rendering::Ocsf => {
                self.time_unix_ms = ocsf::time_of(&decoded).unwrap_or(self.time_unix_ms);
                ocsf::event(&place, &decoded, self.time_unix_ms)
            }
        };
        let mut line = record.to_string();
        line.push('\n');
        Some(line)
    }
}

/// An entry's place in the log, as records give it.
struct Place<'a> {
    origin: &'a str,
    index: u64,
    /// Base64, as C2SP files have it.
    leaf: String,
    leaf_hex: String,
    proof: Vec<String>,
    /// Base64.
    entry: String,
}

/// What a line says of its entry, neither of it checked.
struct Claim {
    index: u64,
    entry: Bytes,
    proof: Vec<Hash>,
}

impl Claim {
    fn read(rendering: Rendering, line: &str) -> Result<Self, String> {
        let record: Json = serde_json::from_str(line).map_err(|error| format!("it is no JSON: {error}"))?;
        let [index, entry, proof] = match rendering {
            Rendering::Ndjson => ["/index", "/entry", "/proof"],
            Rendering::Ocsf => ["/metadata/sequence", "/raw_data", "/unmapped/exchequer/proof"],
        };
        let lacks = |what: &str| format!("it has no {what}");
        let index = record.pointer(index).and_then(Json::as_u64).ok_or_else(|| lacks("index"))?;
        let entry = record.pointer(entry).and_then(Json::as_str).and_then(|text| BASE64.decode(text).ok());
        let hashes =
            record.pointer(proof).and_then(Json::as_array).ok_or_else(|| lacks("inclusion proof"))?;
        let proof = hashes.iter().map(|hash| hash.as_str()?.parse().ok()).collect::<Option<Vec<Hash>>>();
        Ok(Self {
            index,
            entry: entry.ok_or_else(|| lacks("entry"))?.into(),
            proof: proof.ok_or_else(|| lacks("readable inclusion proof"))?,
        })
    }
}

/// Writes records, one entry at a time.
pub struct LineWriter<W> {
    out: W,
    checkpoint: SignedCheckpoint,
    beside: ProofFile,
    renderer: Renderer,
    last: Option<u64>,
    entries: u64,
}

impl<W: io::Write> LineWriter<W> {
    /// Begins. All proofs have to be in the tree of this checkpoint, which `key` has to have signed.
    pub fn new(
        out: W,
        rendering: Rendering,
        selection: impl Into<Selection>,
        key: &VerifierKey,
        checkpoint: SignedCheckpoint,
    ) -> Self {
        let beside = ProofFile::new(rendering, selection.into(), key, &checkpoint);
        let renderer = Renderer::new(rendering, &beside.origin);
        Self { out, checkpoint, beside, renderer, last: None, entries: 0 }
    }

    /// The next entry and the hashes of its inclusion proof.
    pub fn entry(&mut self, index: u64, entry: &Bytes, proof: &[Hash]) -> Result<(), WriteError> {
        if let Some(last) = self.last
            && index <= last
        {
            return Err(WriteError::Order { index, last });
        }
        let (head, leaf) = (self.checkpoint.checkpoint(), leaf_hash(entry));
        verify_inclusion(&leaf, index, head.size(), proof, head.root())
            .map_err(|reason| WriteError::NotIncluded { index, reason })?;
        let line = self.renderer.line(index, entry, &leaf, proof).ok_or(WriteError::NoEntry { index })?;
        self.out.write_all(line.as_bytes())?;
        self.last = Some(index);
        self.entries += 1;
        Ok(())
    }

    /// What has to lie beside the records while they are written.
    pub fn beside(&self) -> &ProofFile {
        &self.beside
    }

    /// Index of the last entry, and how many there are.
    pub fn written(&self) -> (Option<u64>, u64) {
        (self.last, self.entries)
    }

    /// Ends the records. What is returned has to lie beside them.
    pub fn finish(mut self) -> Result<(W, ProofFile), WriteError> {
        self.out.flush()?;
        self.beside.entries = Some(self.entries);
        Ok((self.out, self.beside))
    }
}

/// Reads records, one line at a time.
pub struct LineReader<R> {
    input: R,
    line: String,
}

impl<R: BufRead> LineReader<R> {
    /// Reads from here.
    pub fn new(input: R) -> Self {
        Self { input, line: String::new() }
    }

    /// The next line with its newline; empty at the end. A line that is cut has no newline.
    pub fn next_line(&mut self) -> io::Result<&str> {
        self.line.clear();
        io::Read::take(&mut self.input, MAX_LINE_BYTES).read_line(&mut self.line)?;
        Ok(&self.line)
    }
}
