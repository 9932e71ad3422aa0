//! BLAKE3 digests, each purpose under a `derive_key` context of its own, so that bytes hashed for one purpose never stand for
//! another. The table of contexts in `docs/protocol.md` lists exactly these.

use std::{fmt, sync::LazyLock};

use blake3::hazmat::{ContextKey, HasherExt as _, hash_derive_key_context};

/// Length of a digest in bytes.
pub const DIGEST_LEN: usize = 32;

/// A BLAKE3 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; DIGEST_LEN]);

impl Digest {
    /// What stands where there is no predecessor.
    pub const ZERO: Self = Self([0; DIGEST_LEN]);

    /// From exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }
}

impl AsRef<[u8]> for Digest {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Digest> for prost::bytes::Bytes {
    fn from(digest: Digest) -> Self {
        Self::copy_from_slice(&digest.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What a digest is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// An event's bytes: the link of an agent's hash chain and a leaf of the batch tree.
    Event,
    /// A decision run's bytes: a leaf of the block tree.
    DecisionRun,
    /// Two children of a batch or block tree.
    TreeNode,
    /// A batch seal's bytes, as signed.
    BatchSeal,
    /// A block seal's bytes, as signed, and as the link of a partition's chain.
    BlockSeal,
    /// A control record's bytes, as signed.
    Control,
    /// A receipt's bytes, as signed.
    Receipt,
    /// The payload of a message that was not accepted.
    Message,
    /// Everything an execution was given.
    Input,
    /// An output stream.
    Output,
    /// The result of an execution.
    Result,
    /// A request under an idempotency key.
    Request,
    /// A payload key: its first half is the key's public id.
    PayloadKey,
    /// Which event a payload belongs to: the associated data of its encryption.
    PayloadPlace,
    /// A payload with its salt: what the log commits to.
    PayloadCommitment,
    /// Which message was put back where, and after which loss: the mark on it, as signed.
    RefillMark,
    /// A sandbox profile in its canonical form.
    Profile,
    /// What is mounted in a sandbox, as it is read back.
    Mounts,
}

const CONTEXTS: [(Purpose, &str); 18] = [
    (Purpose::Event, "exchequer.v1 event"),
    (Purpose::DecisionRun, "exchequer.v1 decision run"),
    (Purpose::TreeNode, "exchequer.v1 tree node"),
    (Purpose::BatchSeal, "exchequer.v1 batch seal"),
    (Purpose::BlockSeal, "exchequer.v1 block seal"),
    (Purpose::Control, "exchequer.v1 control record"),
    (Purpose::Receipt, "exchequer.v1 receipt"),
    (Purpose::Message, "exchequer.v1 message"),
    (Purpose::Input, "exchequer.v1 execution input"),
    (Purpose::Output, "exchequer.v1 execution output"),
    (Purpose::Result, "exchequer.v1 execution result"),
    (Purpose::Request, "exchequer.v1 request"),
    (Purpose::PayloadKey, "exchequer.v1 payload key"),
    (Purpose::PayloadPlace, "exchequer.v1 payload place"),
    (Purpose::PayloadCommitment, "exchequer.v1 payload commitment"),
    (Purpose::RefillMark, "exchequer.v1 refill mark"),
    (Purpose::Profile, "exchequer.v1 sandbox profile"),
    (Purpose::Mounts, "exchequer.v1 sandbox mounts"),
];

// Deriving the context key costs as much as hashing a short event, so it is done once.
static KEYS: LazyLock<[ContextKey; 18]> =
    LazyLock::new(|| CONTEXTS.map(|(_, context)| hash_derive_key_context(context)));

impl Purpose {
    /// The `derive_key` context.
    pub fn context(self) -> &'static str {
        CONTEXTS[self as usize].1
    }

    /// Digest of some bytes.
    pub fn digest(self, bytes: &[u8]) -> Digest {
        // Not by way of `hasher`: a hasher is large, and this is done for every event.
        let mut hasher = blake3::Hasher::new_from_context_key(&KEYS[self as usize]);
        hasher.update(bytes);
        Digest(*hasher.finalize().as_bytes())
    }

    /// Digest of bytes that come in pieces; the pieces are concatenated.
    pub fn hasher(self) -> Hasher {
        Hasher(blake3::Hasher::new_from_context_key(&KEYS[self as usize]))
    }

    /// Digest of several fields, each preceded by its length (u64, big-endian), so that no two lists of fields collide.
    pub fn digest_fields<'a>(self, fields: impl IntoIterator<Item = &'a [u8]>) -> Digest {
        let mut hasher = self.hasher();
        for field in fields {
            hasher.update(&(field.len() as u64).to_be_bytes()).update(field);
        }
        hasher.finish()
    }
}

/// A digest in the making.
#[derive(Clone)]
pub struct Hasher(blake3::Hasher);

impl Hasher {
    /// More bytes.
    pub fn update(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(bytes);
        self
    }

    /// The digest of all bytes so far.
    pub fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_purpose_has_its_own_context_in_its_own_place() {
        for (place, (purpose, context)) in CONTEXTS.iter().enumerate() {
            assert_eq!(*purpose as usize, place);
            assert_eq!(purpose.digest(b"x").0, blake3::derive_key(context, b"x"));
            assert!(CONTEXTS.iter().filter(|(_, other)| other == context).count() == 1);
        }
    }

    #[test]
    fn moving_a_byte_between_fields_changes_the_digest() {
        let digest = |fields: [&'static [u8]; 2]| Purpose::Input.digest_fields(fields);
        assert_ne!(digest([b"ab", b"c"]), digest([b"a", b"bc"]));
    }
}
