//! Digests of what an execution was given and what came out, as anybody's tools compute them: `sha256sum` and `b3sum`.
//!
//! Left out: reading. Invariant: these are plain digests, unlike those under the project's contexts (`digest`), for an in-toto `blake3` is
//! what everybody else calls BLAKE3.

use sha2::{Digest as _, Sha256};

use crate::digest::{Digest, Purpose};

/// Digests and size of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentDigests {
    /// SHA-256.
    pub sha256: [u8; 32],
    /// BLAKE3, without a key or context.
    pub blake3: [u8; 32],
    /// Number of bytes.
    pub size: u64,
}

impl ContentDigests {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = ContentHasher::default();
        hasher.update(bytes);
        hasher.finish()
    }
}

/// Digests in the making.
#[derive(Clone, Default)]
pub struct ContentHasher {
    sha256: Sha256,
    blake3: blake3::Hasher,
    size: u64,
}

impl ContentHasher {
    /// More bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.blake3.update(bytes);
        self.size += bytes.len() as u64;
    }

    /// The digests of all bytes so far.
    pub fn finish(&self) -> ContentDigests {
        ContentDigests {
            sha256: self.sha256.clone().finalize().into(),
            blake3: *self.blake3.finalize().as_bytes(),
            size: self.size,
        }
    }
}

/// The input digest of an admission: program, arguments, environment in order of its names, standard input. Lists are preceded by their
/// length, so that nothing can move between them. Files are not in it: the admission lists them by digest.
pub fn input_digest(
    program: &str,
    arguments: &[String],
    environment: &[(String, String)],
    stdin: &[u8],
) -> Digest {
    let counts = [arguments.len() as u64, environment.len() as u64].map(u64::to_be_bytes);
    let fields = [program.as_bytes(), &counts[0], &counts[1]]
        .into_iter()
        .chain(arguments.iter().map(String::as_bytes))
        .chain(environment.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]))
        .chain([stdin]);
    Purpose::Input.digest_fields(fields)
}
