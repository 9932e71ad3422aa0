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

/// The input digest of an admission: program, arguments, environment in order of its names, standard input, and input files in order, by
/// path and BLAKE3. Lists are preceded by their length, so that nothing can move between them; without files there is no list of them.
/// docs/protocol.md defines it.
pub fn input_digest(
    program: &str,
    arguments: &[String],
    environment: &[(String, String)],
    stdin: &[u8],
    files: &[(&str, &[u8])],
) -> Digest {
    let counts = [arguments.len() as u64, environment.len() as u64, files.len() as u64].map(u64::to_be_bytes);
    let fields = [program.as_bytes(), &counts[0], &counts[1]]
        .into_iter()
        .chain(arguments.iter().map(String::as_bytes))
        .chain(environment.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]))
        .chain([stdin])
        .chain((!files.is_empty()).then_some(&counts[2][..]))
        .chain(files.iter().flat_map(|(path, blake3)| [path.as_bytes(), blake3]));
    Purpose::Input.digest_fields(fields)
}

/// The result digest of an outcome: how it ended (cause, exit code, signal), the output digests of standard output and error (empty where
/// nobody saw the end), and the artifacts in order, by path and BLAKE3 (empty where there is a problem); without artifacts there is no list
/// of them. Equal for executions that ended the same way with the same output and the same files. docs/protocol.md defines it.
pub fn result_digest(ending: [i32; 3], outputs: [&[u8]; 2], artifacts: &[(&str, &[u8])]) -> Digest {
    let ending = ending.map(i32::to_be_bytes);
    let count = (artifacts.len() as u64).to_be_bytes();
    let fields = ending
        .iter()
        .map(<[u8; 4]>::as_slice)
        .chain(outputs)
        .chain((!artifacts.is_empty()).then_some(&count[..]))
        .chain(artifacts.iter().flat_map(|(path, blake3)| [path.as_bytes(), blake3]));
    Purpose::Result.digest_fields(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_digest_covers_files_and_is_as_it_was_without_any() {
        let (one, none, two) = (1u64.to_be_bytes(), 0u64.to_be_bytes(), 2u64.to_be_bytes());
        let arguments = ["x".to_owned()];
        let of = |files: &[(&str, &[u8])]| input_digest("/p", &arguments, &[], b"in", files);
        let base: [&[u8]; 5] = [b"/p", &one, &none, b"x", b"in"];
        assert_eq!(of(&[]), Purpose::Input.digest_fields(base));
        let files: [&[u8]; 5] = [&two, b"a", &[7; 32], b"b", &[8; 32]];
        let expected = Purpose::Input.digest_fields(base.into_iter().chain(files));
        assert_eq!(of(&[("a", &[7; 32]), ("b", &[8; 32])]), expected);
        assert_ne!(of(&[("b", &[7; 32]), ("a", &[8; 32])]), expected);
    }
}
