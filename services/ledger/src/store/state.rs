//! The state file: how much of the log counts, and up to where the stream is in it.
//!
//! Left out: the acceptor's state, which follows from the entries. Invariant: the text is canonical and carries its own checksum.

use exchequer_event::digest::{Digest, Purpose};
use exchequer_stream::Record;
use exchequer_tlog::{EMPTY_ROOT, Hash};

const HEADER: &str = "exchequer ledger state v1";

/// Where the log stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// Entries in the log.
    pub(crate) size: u64,
    /// Root of the tree over them.
    pub(crate) root: Hash,
    /// Stream sequence of the last message that is in the log; 0 for none.
    pub(crate) cursor: u64,
    /// Digest of that message. A stream that shows another one there is not the stream that the log was built from.
    pub(crate) last_message: Digest,
}

impl Position {
    /// The empty log's.
    pub(crate) fn empty() -> Self {
        Self { size: 0, root: EMPTY_ROOT, cursor: 0, last_message: Digest::ZERO }
    }

    /// The file's text.
    pub(crate) fn encode(&self, origin: &str) -> Vec<u8> {
        let body = format!(
            "{HEADER}\norigin {origin}\nsize {}\nroot {}\ncursor {}\nlast-message {}\n",
            self.size, self.root, self.cursor, self.last_message
        );
        let sum = blake3::hash(body.as_bytes()).to_hex();
        format!("{body}blake3 {sum}\n").into_bytes()
    }

    /// Reads the file's text; the error says what is wrong with it.
    pub(crate) fn decode(bytes: &[u8], origin: &str) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
        let (body, sum) = text.rsplit_once("blake3 ").ok_or("it has no checksum")?;
        if sum.trim_end() != blake3::hash(body.as_bytes()).to_hex().as_str() {
            return Err("its checksum is wrong".to_owned());
        }
        let mut lines = body.lines();
        if lines.next() != Some(HEADER) {
            return Err(format!("it is not `{HEADER}`"));
        }
        let mut field = |name: &str| -> Result<&str, String> {
            let line =
                lines.next().and_then(|line| line.strip_prefix(name)).and_then(|rest| rest.strip_prefix(' '));
            line.ok_or_else(|| format!("the line `{name}` is missing"))
        };
        let found = field("origin")?;
        if found != origin {
            return Err(format!("it is of the log `{found}`, not `{origin}`"));
        }
        let number = |text: &str| text.parse::<u64>().map_err(|error| format!("`{text}`: {error}"));
        let size = number(field("size")?)?;
        let root = field("root")?.parse::<Hash>().map_err(|error| error.to_string())?;
        let cursor = number(field("cursor")?)?;
        let digest = hex::decode(field("last-message")?).ok().and_then(|bytes| Digest::from_slice(&bytes));
        Ok(Self { size, root, cursor, last_message: digest.ok_or("last-message is not a digest")? })
    }
}

/// Digest by which a message is known again.
pub(crate) fn message_digest(record: &Record) -> Digest {
    Purpose::Message.digest_fields([record.subject.as_bytes(), &record.payload])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_comes_back_and_no_changed_byte_does() {
        let position = Position { size: 7, cursor: 9, last_message: Digest([3; 32]), ..Position::empty() };
        let bytes = position.encode("o/log");
        assert_eq!(Position::decode(&bytes, "o/log"), Ok(position));
        assert!(Position::decode(&bytes, "other").unwrap_err().contains("o/log"));
        for place in 0..bytes.len() - 1 {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            assert!(Position::decode(&changed, "o/log").is_err(), "byte {place}");
            assert!(Position::decode(&bytes[..place], "o/log").is_err(), "cut at {place}");
        }
    }
}
