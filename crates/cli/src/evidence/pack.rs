//! The evidence pack: entries of a log with everything that is needed to check them, in one file.
//!
//! A pack is an uncompressed ustar archive with these members, in this order, each with mode 0644, owner 0 and time 0:
//!
//! ```text
//! README.txt                    how to verify it with public tools
//! log.vkey                      the log's verifier key (C2SP signed-note), one line
//! checkpoint                    the signed checkpoint (C2SP tlog-checkpoint) that all proofs lead to
//! entries/<index>               an entry: the leaf's bytes, by ascending index
//! proofs/<index>.tlog-proof     after it, its inclusion proof (C2SP tlog-proof@v1); in a range only of its first and last entry
//! manifest.json                 what the pack is about
//! SHA256SUMS                    of README.txt, log.vkey, checkpoint and manifest.json, as `sha256sum -c` reads it
//! ```
//!
//! A tenant's pack holds the tenant's events and decision runs, the seals that they stand under (digests only, so that the signatures
//! can be checked), and the log's control records (who was enrolled when). Of other tenants it holds nothing but the digests in those
//! seals. A pack of a range holds every entry of it, and outside of it the seal of the first one and the control records; its entries
//! with the proofs of the first and the last lead to the signed root, so none of them can be missing.
//!
//! [`PackWriter`] writes, [`PackReader`] reads; both hold one entry at a time. Left out: what entries mean. Invariant: there is
//! exactly one sequence of bytes for the same content, and the reader refuses every other.

mod read;
mod resume;

use std::{fmt::Write as _, io};

use exchequer_tlog::{
    Hash, ProofInvalid, SignedCheckpoint, TlogProof, TlogProofError, VerifierKey, leaf_hash, verify_inclusion,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use read::{PackReader, Pair, ReadError, begins};
pub use resume::{ResumeError, Resumed, begun_checkpoint};

/// Name and version of the format.
pub const FORMAT: &str = "exchequer-evidence-pack/v2";

/// What writes evidence.
const TOOL: &str = concat!("exchequer ", env!("CARGO_PKG_VERSION"));

pub(super) const README: &str = "README.txt";
pub(super) const VKEY: &str = "log.vkey";
pub(super) const CHECKPOINT: &str = "checkpoint";
pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const SUMS: &str = "SHA256SUMS";

const BLOCK: usize = 512;
const VERIFY: &str = "Check that `checkpoint` is signed by log.vkey, and that the key is the one you know the log by. Check each \
                      proofs/<index>.tlog-proof with entries/<index> against it (c2sp.org/tlog-proof). In a range, the leaves \
                      between the first and the last lead with these two proofs to the signed root. Each entry is an \
                      exchequer.v1.Entry; an event or decision run stands under the seal before it, whose signature is by a \
                      key that the control records enrolled. `exchequer verify PACK --key VKEY` does all of this.";

/// What a pack is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Scope {
    /// What belongs to one tenant.
    Tenant(String),
    /// Every entry of a range.
    Range {
        /// The first index.
        first: u64,
        /// One more than the last index.
        end: u64,
    },
}

impl Scope {
    /// Whether an entry comes with a proof of its own. Those within a range are proven by the range.
    pub fn proves(&self, index: u64) -> bool {
        match self {
            Self::Tenant(_) => true,
            Self::Range { first, end } => index <= *first || index.saturating_add(1) >= *end,
        }
    }
}

/// A time by the authors' clocks, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeRange {
    /// From then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_unix_ms: Option<u64>,
    /// Before then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_unix_ms: Option<u64>,
}

impl TimeRange {
    /// Whether it holds this time.
    pub fn contains(&self, unix_ms: u64) -> bool {
        self.from_unix_ms.is_none_or(|from| unix_ms >= from)
            && self.until_unix_ms.is_none_or(|until| unix_ms < until)
    }
}

/// What is selected of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Which entries.
    pub scope: Scope,
    /// For a tenant: only events, and runs of blocks, of this time. For a range: the time that it was chosen to cover.
    pub time: Option<TimeRange>,
}

impl From<Scope> for Selection {
    fn from(scope: Scope) -> Self {
        Self { scope, time: None }
    }
}

/// The manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// What wrote it.
    pub tool: String,
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
    /// Entries in the pack.
    pub entries: u64,
    /// How to verify it.
    pub verify: String,
}

impl Manifest {
    fn new(selection: Selection, key: &VerifierKey, checkpoint: &SignedCheckpoint) -> Self {
        let head = checkpoint.checkpoint();
        Self {
            format: FORMAT.into(),
            tool: TOOL.into(),
            scope: selection.scope,
            time: selection.time,
            origin: head.origin().into(),
            tree_size: head.size(),
            root: head.root().to_string(),
            log_key: key.to_string(),
            entries: 0,
            verify: VERIFY.into(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a manifest has nothing that JSON can't hold");
        bytes.push(b'\n');
        bytes
    }
}

/// A pack could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The output failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// An entry does not come after the one before it.
    #[error("entry {index} does not come after entry {last}")]
    Order {
        /// The entry.
        index: u64,
        /// The one before it.
        last: u64,
    },
    /// The proof does not show the entry to be in the checkpoint's tree.
    #[error("entry {index} is not in the tree of the checkpoint: {reason}")]
    NotIncluded {
        /// The entry.
        index: u64,
        /// Why.
        reason: ProofInvalid,
    },
    /// The bytes are no entry.
    #[error("entry {index} can't be decoded")]
    NoEntry {
        /// The entry.
        index: u64,
    },
    /// The proof can't be written.
    #[error(transparent)]
    Proof(#[from] TlogProofError),
}

/// Writes a pack, one entry at a time.
pub struct PackWriter<W> {
    out: W,
    checkpoint: SignedCheckpoint,
    manifest: Manifest,
    last: Option<u64>,
    sums: String,
}

impl<W: io::Write> PackWriter<W> {
    /// Begins a pack. All proofs have to be in the tree of this checkpoint, which `key` has to have signed.
    pub fn new(
        out: W,
        selection: impl Into<Selection>,
        key: &VerifierKey,
        checkpoint: SignedCheckpoint,
    ) -> Result<Self, WriteError> {
        let manifest = Manifest::new(selection.into(), key, &checkpoint);
        let mut pack = Self { out, checkpoint, manifest, last: None, sums: String::new() };
        for (name, content) in head_members(&pack.manifest, &pack.checkpoint) {
            pack.summed(name, content.as_bytes())?;
        }
        Ok(pack)
    }

    /// The next entry and the hashes of its inclusion proof, which is not looked at where the scope proves the entry.
    pub fn entry(&mut self, index: u64, entry: &[u8], proof: Vec<Hash>) -> Result<(), WriteError> {
        if let Some(last) = self.last
            && index <= last
        {
            return Err(WriteError::Order { index, last });
        }
        if self.manifest.scope.proves(index) {
            let proof = proof_file(index, entry, proof, &self.checkpoint)?;
            self.member(&entry_name(index), entry)?;
            self.member(&proof_name(index), proof.as_bytes())?;
        } else {
            self.member(&entry_name(index), entry)?;
        }
        self.last = Some(index);
        self.manifest.entries += 1;
        Ok(())
    }

    /// Index of the last entry, and how many there are.
    pub fn written(&self) -> (Option<u64>, u64) {
        (self.last, self.manifest.entries)
    }

    /// Ends the pack.
    pub fn finish(mut self) -> Result<(W, Manifest), WriteError> {
        let manifest = self.manifest.encode();
        self.summed(MANIFEST, &manifest)?;
        let sums = std::mem::take(&mut self.sums);
        self.member(SUMS, sums.as_bytes())?;
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok((self.out, self.manifest))
    }

    fn summed(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        sum_line(&mut self.sums, name, content);
        self.member(name, content)
    }

    fn member(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.out.write_all(header(name, content.len() as u64).as_bytes())?;
        self.out.write_all(content)?;
        self.out.write_all(&[0; BLOCK][..padding(content.len())])
    }
}

/// Text of an entry's proof file, if the proof holds.
fn proof_file(
    index: u64,
    entry: &[u8],
    proof: Vec<Hash>,
    checkpoint: &SignedCheckpoint,
) -> Result<String, WriteError> {
    let head = checkpoint.checkpoint();
    verify_inclusion(&leaf_hash(entry), index, head.size(), &proof, head.root())
        .map_err(|reason| WriteError::NotIncluded { index, reason })?;
    Ok(TlogProof::new(index, proof, checkpoint.clone(), Vec::new())?.to_string())
}

/// The members before the entries.
fn head_members(manifest: &Manifest, checkpoint: &SignedCheckpoint) -> [(&'static str, String); 3] {
    [
        (README, readme(manifest)),
        (VKEY, format!("{}\n", manifest.log_key)),
        (CHECKPOINT, checkpoint.to_string()),
    ]
}

fn entry_name(index: u64) -> String {
    format!("entries/{index}")
}

fn proof_name(index: u64) -> String {
    format!("proofs/{index}.tlog-proof")
}

fn sum_line(sums: &mut String, name: &str, content: &[u8]) {
    for byte in Sha256::digest(content) {
        // Writing to a string can't fail.
        let _ = write!(sums, "{byte:02x}");
    }
    let _ = writeln!(sums, "  {name}");
}

/// The one header that a member of this name and size has.
fn header(name: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).expect("the names of members are short and relative");
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    header
}

/// Zeros after content of this length.
fn padding(length: usize) -> usize {
    length.next_multiple_of(BLOCK) - length
}

fn time_text(time: TimeRange) -> String {
    let bound = |ms: Option<u64>| ms.map_or_else(String::new, |ms| ms.to_string());
    format!(
        "{}..{} (milliseconds since the Unix epoch, by the authors' clocks)",
        bound(time.from_unix_ms),
        bound(time.until_unix_ms)
    )
}

fn readme(manifest: &Manifest) -> String {
    let scope = match (&manifest.scope, manifest.time) {
        (Scope::Tenant(tenant), time) => format!(
            "the entries of tenant {tenant}{}: its events and decision runs, the seals that they stand under (of other tenants' records \
             in the same batches these hold digests, and nothing else), and the log's control records",
            time.map_or_else(String::new, |time| format!(" of the time {}", time_text(time)))
        ),
        (Scope::Range { first, end }, time) => format!(
            "entries {first} up to {end}{}, the seal of the first of them, and the log's control records",
            time.map_or_else(String::new, |time| format!(
                ", which is every entry from the first to the last that the ledger found for the time {}",
                time_text(time)
            ))
        ),
    };
    let Manifest { origin, tree_size, root, .. } = manifest;
    format!(
        "Evidence from the audit log {origin}\n\
         \n\
         This archive ({FORMAT}) holds {scope}.\n\
         All of it is proven to be in the log's tree of {tree_size} entries with the root\n\
         {root}, which `checkpoint` signs.\n\
         \n\
         With Exchequer:   exchequer verify PACK --key VKEY\n\
         where VKEY is the log's verifier key as you know it. The one in log.vkey is the archive's\n\
         own word; with it you learn that the archive is consistent, not whose log it is from.\n\
         \n\
         Without Exchequer, by public formats (https://c2sp.org) and tools that read them:\n\
         1. `sha256sum -c SHA256SUMS` finds accidental damage.\n\
         2. `checkpoint` is a signed note (c2sp.org/signed-note, c2sp.org/tlog-checkpoint). Check its\n\
         \x20  signature with log.vkey, for example with note.Open of golang.org/x/mod/sumdb/note.\n\
         3. Each proofs/<index>.tlog-proof (c2sp.org/tlog-proof) proves that entries/<index> is in the\n\
         \x20  tree. The leaf hash is SHA-256 of a zero byte and the entry:\n\
         \x20  (printf '\\0'; cat entries/<index>) | sha256sum. The check is tlog.CheckRecord of\n\
         \x20  golang.org/x/mod/sumdb/tlog, or any verifier of RFC 6962 inclusion proofs.\n\
         \x20  In a range only the first and the last entry have one: the left siblings in the one, the\n\
         \x20  leaves of the range and the right siblings in the other are the tree, and have its root.\n\
         4. Each entry is a protobuf message exchequer.v1.Entry (proto/exchequer/v1/event.proto):\n\
         \x20  protoc --decode exchequer.v1.Entry exchequer/v1/event.proto < entries/<index>\n\
         \x20  An event or decision run is under the seal (batch_sealed, block_sealed) before it: its\n\
         \x20  BLAKE3 digest is among the seal's, at the place that its index says, and the seal is\n\
         \x20  signed (Ed25519) by a key that a control record enrolled. docs/protocol.md has the bytes.\n\
         \n\
         What it shows: these records were in the log when the checkpoint was signed, unchanged, signed\n\
         by those who made them. What a tenant's archive does not show: that no further record of the\n\
         tenant is in the log. A whole log shows that, and an archive of a range does for its range.\n"
    )
}
