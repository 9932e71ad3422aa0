//! The in-toto Statement (v1) around an execution: its subjects and its one encoding.
//!
//! The encoding is JSON without spaces, members in the order of their names, numbers whole, as RFC 8785 would write it. Unknown members
//! are refused: what is new gets a new predicate type, so that nobody calls verified what it has not read.
//! Left out: signatures. Invariant: decoding succeeds for exactly the bytes that [`Statement::encode`] makes, and every subject follows
//! from the result or is bound to it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{BundleError, BundleParts, ContentDigests, Execution, Stream};

/// Type of the Statement.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// Type of the predicate. A name, not an address: nothing is served there.
pub const PREDICATE_TYPE: &str = "urn:exchequer:execution:v1";
/// Subject: standard output.
pub const STDOUT: &str = "stdout";
/// Subject: standard error.
pub const STDERR: &str = "stderr";
/// Subject: the member `result` of the predicate, encoded.
pub const RESULT: &str = "result";
/// Before the path of an artifact.
pub const ARTIFACTS: &str = "artifacts/";

/// So many bytes, in lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hex<const N: usize>(pub [u8; N]);

impl<const N: usize> Hex<N> {
    /// From exactly so many bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }
}

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = hex::decode(&text).ok().and_then(|bytes| Self::from_slice(&bytes));
        bytes.ok_or_else(|| D::Error::custom(format!("expected {N} bytes in hex")))
    }
}

/// What came out of an execution, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// [`STATEMENT_TYPE`].
    #[serde(rename = "_type")]
    pub kind: String,
    /// The execution.
    pub predicate: Execution,
    /// [`PREDICATE_TYPE`].
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    /// What came out: standard output, standard error, the artifacts that were taken out in order, and last the result.
    pub subject: Vec<Subject>,
}

/// Something that came out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// Its digests.
    pub digest: DigestSet,
    /// `stdout`, `stderr`, `artifacts/PATH` or `result`.
    pub name: String,
}

/// Plain digests of the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DigestSet {
    /// BLAKE3, 32 bytes, without key or context. in-toto predefines no name for it; this is the one that is used, in lower-case hex.
    pub blake3: Hex<32>,
    /// SHA-256.
    pub sha256: Hex<32>,
}

impl From<ContentDigests> for DigestSet {
    fn from(digests: ContentDigests) -> Self {
        Self { blake3: Hex(digests.blake3), sha256: Hex(digests.sha256) }
    }
}

impl Statement {
    /// About this execution.
    pub(super) fn of(predicate: Execution, parts: &BundleParts<'_>) -> Result<Self, BundleError> {
        let mut subject = Vec::new();
        for (name, digests) in [(STDOUT, parts.stdout), (STDERR, parts.stderr)] {
            subject.extend(digests.map(|digests| Subject { digest: digests.into(), name: name.to_owned() }));
        }
        for artifact in &predicate.result.artifacts {
            if let (Some(blake3), Some(sha256)) = (artifact.blake3, artifact.sha256) {
                let name = format!("{ARTIFACTS}{}", artifact.path);
                subject.push(Subject { digest: DigestSet { blake3, sha256 }, name });
            }
        }
        let digest = ContentDigests::of(&predicate.result.encode()).into();
        subject.push(Subject { digest, name: RESULT.to_owned() });
        let statement = Self {
            kind: STATEMENT_TYPE.to_owned(),
            predicate,
            predicate_type: PREDICATE_TYPE.to_owned(),
            subject,
        };
        statement.check()?;
        Ok(statement)
    }

    /// Its one encoding.
    pub fn encode(&self) -> Vec<u8> {
        // Strings, whole numbers and lists in structs: nothing of it can fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From its one encoding.
    pub fn decode(bytes: &[u8]) -> Result<Self, BundleError> {
        let statement: Self =
            serde_json::from_slice(bytes).map_err(|error| BundleError::Statement(error.to_string()))?;
        if statement.encode() != bytes {
            return Err(BundleError::NotCanonical);
        }
        statement.check()?;
        Ok(statement)
    }

    /// The subject of this name.
    pub fn subject(&self, name: &str) -> Option<&Subject> {
        self.subject.iter().find(|subject| subject.name == name)
    }

    fn check(&self) -> Result<(), BundleError> {
        if self.kind != STATEMENT_TYPE {
            return Err(BundleError::Statement(format!("_type is {:?}", self.kind)));
        }
        if self.predicate_type != PREDICATE_TYPE {
            return Err(BundleError::Statement(format!("predicateType is {:?}", self.predicate_type)));
        }
        self.predicate.check()?;
        let result = &self.predicate.result;
        let mut subjects = self.subject.iter();
        for (name, stream) in [(STDOUT, &result.stdout), (STDERR, &result.stderr)] {
            let Some(Stream { sha256, .. }) = stream else { continue };
            if !subjects.next().is_some_and(|of| of.name == name && of.digest.sha256 == *sha256) {
                return Err(BundleError::Inconsistent(
                    "the subjects of the streams are not those of the result",
                ));
            }
        }
        for artifact in &result.artifacts {
            let (Some(blake3), Some(sha256)) = (artifact.blake3, artifact.sha256) else { continue };
            let is_its = |of: &Subject| {
                of.name.strip_prefix(ARTIFACTS) == Some(artifact.path.as_str())
                    && of.digest == DigestSet { blake3, sha256 }
            };
            if !subjects.next().is_some_and(is_its) {
                return Err(BundleError::Inconsistent(
                    "the subjects of the artifacts are not those of the result",
                ));
            }
        }
        let digest = ContentDigests::of(&result.encode()).into();
        let last = subjects.next().is_some_and(|of| of.name == RESULT && of.digest == digest);
        if !last || subjects.next().is_some() {
            return Err(BundleError::Inconsistent("the last subject is not the result"));
        }
        Ok(())
    }
}
