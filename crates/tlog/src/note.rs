//! Signed notes (signed-note): a text and the signatures under it.
//!
//! What the text says is left out. Invariant: a [`SignedNote`] is well-formed and within the limits, and what was
//! parsed encodes back to the same bytes.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::key::{VerifierKey, is_key_name};

/// The longest note in bytes.
pub const MAX_NOTE_BYTES: usize = 1_000_000;

/// The most signatures under a note.
pub const MAX_SIGNATURES: usize = 64;

/// One signature under a note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteSignature {
    name: String,
    id: u32,
    bytes: Vec<u8>,
}

/// A text with the signatures under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedNote {
    text: String,
    signatures: Vec<NoteSignature>,
}

/// The bytes are no signed note, or one beyond the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The note is longer than [`MAX_NOTE_BYTES`].
    #[error("the note is longer than {MAX_NOTE_BYTES} bytes")]
    TooLarge,
    /// The note is not UTF-8.
    #[error("the note is not UTF-8")]
    Encoding,
    /// The note has a control character other than newline.
    #[error("the note has a control character")]
    ControlCharacter,
    /// The text does not end with a newline.
    #[error("the note's text does not end with a newline")]
    Text,
    /// No blank line with signatures after it ends the note.
    #[error("the note has no signatures after a blank line")]
    Unsigned,
    /// A line after the last blank line is no signature.
    #[error("signature line {line} is malformed")]
    SignatureLine {
        /// Which one, from 0.
        line: usize,
    },
    /// There are more than [`MAX_SIGNATURES`].
    #[error("the note has more than {MAX_SIGNATURES} signatures")]
    TooManySignatures,
}

/// The note can't be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteVerifyError {
    /// A known key's signature is wrong: the note was altered or forged.
    #[error("the signature by {name}+{id:08x} is wrong")]
    BadSignature {
        /// The key's name.
        name: String,
        /// The key's id.
        id: u32,
    },
    /// Two different known keys have the same name and id: the configuration is wrong.
    #[error("two keys are known as {name}+{id:08x}")]
    AmbiguousKey {
        /// The keys' name.
        name: String,
        /// The keys' id.
        id: u32,
    },
    /// No known key signed the note.
    #[error("no known key signed the note")]
    NoKnownKey,
}

/// A note whose signatures by known keys all hold, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<'a> {
    /// The text, with its last newline.
    pub text: &'a str,
    /// The known keys that signed it, each once, in the note's order.
    pub by: Vec<SignedBy<'a>>,
}

/// A signature that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedBy<'a> {
    /// The key.
    pub key: &'a VerifierKey,
    /// For a cosignature its time, in seconds since the Unix epoch.
    pub time: Option<u64>,
    /// The signature, to be copied under another copy of the text.
    pub signature: &'a NoteSignature,
}

impl NoteSignature {
    pub(crate) fn of(key: &VerifierKey, bytes: Vec<u8>) -> Self {
        Self { name: key.name().to_owned(), id: key.id(), bytes }
    }

    /// Parses a signature line without its newline, as a witness returns it.
    pub fn parse(line: &str) -> Result<Self, NoteError> {
        Self::parse_line(line).ok_or(NoteError::SignatureLine { line: 0 })
    }

    fn parse_line(line: &str) -> Option<Self> {
        let (name, base64) = line.strip_prefix("— ")?.split_once(' ')?;
        if line.len() > MAX_NOTE_BYTES || !is_key_name(name) {
            return None;
        }
        let bytes = STANDARD.decode(base64).ok()?;
        let (id, bytes) = bytes.split_first_chunk::<4>()?;
        if bytes.is_empty() {
            return None;
        }
        Some(Self { name: name.to_owned(), id: u32::from_be_bytes(*id), bytes: bytes.to_vec() })
    }

    /// The name of the key that is said to have signed.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id of the key that is said to have signed.
    pub fn id(&self) -> u32 {
        self.id
    }

    fn is_by(&self, key: &VerifierKey) -> bool {
        self.name == key.name() && self.id == key.id()
    }
}

impl fmt::Display for NoteSignature {
    /// The signature line without its newline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.id.to_be_bytes()[..], &self.bytes].concat();
        write!(f, "— {} {}", self.name, STANDARD.encode(bytes))
    }
}

impl SignedNote {
    /// The note of this text (with its last newline) and these signatures, of which there has to be at least one.
    pub fn new(text: impl Into<String>, signatures: Vec<NoteSignature>) -> Result<Self, NoteError> {
        let note = Self { text: text.into(), signatures };
        check_characters(&note.text)?;
        if !note.text.ends_with('\n') {
            return Err(NoteError::Text);
        }
        if note.signatures.is_empty() {
            return Err(NoteError::Unsigned);
        }
        note.check_limits()?;
        Ok(note)
    }

    fn check_limits(&self) -> Result<(), NoteError> {
        if self.signatures.len() > MAX_SIGNATURES {
            return Err(NoteError::TooManySignatures);
        }
        let lines: usize = self.signatures.iter().map(|signature| signature.to_string().len() + 1).sum();
        if self.text.len() + 1 + lines > MAX_NOTE_BYTES { Err(NoteError::TooLarge) } else { Ok(()) }
    }

    /// Parses a note. Nothing in it may be trusted before [`Self::verify`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NoteError> {
        if bytes.len() > MAX_NOTE_BYTES {
            return Err(NoteError::TooLarge);
        }
        let note = std::str::from_utf8(bytes).map_err(|_| NoteError::Encoding)?;
        check_characters(note)?;
        // The text may have blank lines of its own; the last one separates.
        let blank = note.rfind("\n\n").ok_or(NoteError::Unsigned)?;
        let (text, rest) = note.split_at(blank + 1);
        let lines =
            rest.strip_prefix('\n').and_then(|rest| rest.strip_suffix('\n')).ok_or(NoteError::Unsigned)?;
        let mut signatures = Vec::new();
        for (line, signature) in lines.split('\n').enumerate() {
            if line == MAX_SIGNATURES {
                return Err(NoteError::TooManySignatures);
            }
            signatures.push(NoteSignature::parse_line(signature).ok_or(NoteError::SignatureLine { line })?);
        }
        Ok(Self { text: text.to_owned(), signatures })
    }

    /// The text, with its last newline. Not to be trusted before [`Self::verify`].
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The signatures, of known and unknown keys alike.
    pub fn signatures(&self) -> &[NoteSignature] {
        &self.signatures
    }

    /// Adds a signature; one with the same name and key id is replaced.
    pub fn add(&mut self, signature: NoteSignature) -> Result<(), NoteError> {
        let mut grown = self.clone();
        grown.signatures.retain(|held| (&held.name, held.id) != (&signature.name, signature.id));
        grown.signatures.push(signature);
        grown.check_limits()?;
        *self = grown;
        Ok(())
    }

    /// Checks every signature by one of these keys. Unknown keys are ignored, whatever they share with a known one; one
    /// wrong signature by a known key refuses the note, and so does the absence of a right one.
    pub fn verify<'a>(
        &'a self,
        known: impl IntoIterator<Item = &'a VerifierKey>,
    ) -> Result<Verified<'a>, NoteVerifyError> {
        let known: Vec<_> = known.into_iter().collect();
        let mut by: Vec<SignedBy<'a>> = Vec::new();
        for signature in &self.signatures {
            let mut keys = known.iter().copied().filter(|key| signature.is_by(key));
            let Some(key) = keys.next() else { continue };
            let named = |name: &str| (name.to_owned(), signature.id);
            if keys.any(|other| other != key) {
                let (name, id) = named(&signature.name);
                return Err(NoteVerifyError::AmbiguousKey { name, id });
            }
            let Ok(time) = key.verify(&self.text, &signature.bytes) else {
                let (name, id) = named(&signature.name);
                return Err(NoteVerifyError::BadSignature { name, id });
            };
            if by.iter().all(|held| held.key != key) {
                by.push(SignedBy { key, time, signature });
            }
        }
        if by.is_empty() { Err(NoteVerifyError::NoKnownKey) } else { Ok(Verified { text: &self.text, by }) }
    }
}

fn check_characters(note: &str) -> Result<(), NoteError> {
    let control = note.bytes().any(|byte| byte < b' ' && byte != b'\n');
    if control { Err(NoteError::ControlCharacter) } else { Ok(()) }
}

impl fmt::Display for SignedNote {
    /// The whole note, as it is served and stored.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        f.write_str("\n")?;
        self.signatures.iter().try_for_each(|signature| writeln!(f, "{signature}"))
    }
}
