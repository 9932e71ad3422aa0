//! Checkpoints in files of their own or one after the other: each after a line `checkpoint <bytes> <blake3, 16 hex digits>`.
//!
//! Left out: files. Invariant: a frame that is cut or changed is none.

/// The frame of a note.
pub(crate) fn encode_frame(note: &str) -> Vec<u8> {
    let sum = blake3::hash(note.as_bytes()).to_hex();
    format!("checkpoint {} {}\n{note}", note.len(), &sum[..16]).into_bytes()
}

/// The note of the first frame of these bytes, and what follows it; `None` if it is cut or changed.
pub(crate) fn split_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().take(64).position(|byte| *byte == b'\n')?;
    let (length, sum) =
        std::str::from_utf8(&bytes[..end]).ok()?.strip_prefix("checkpoint ")?.split_once(' ')?;
    let (note, rest) = bytes[end + 1..].split_at_checked(length.parse().ok()?)?;
    (blake3::hash(note).to_hex()[..16] == *sum).then_some((note, rest))
}

/// Whether a whole frame stands somewhere in bytes that do not begin with one: then they are no torn tail.
pub(crate) fn find_frame(bytes: &[u8]) -> bool {
    (1..bytes.len())
        .any(|start| bytes[start..].starts_with(b"checkpoint ") && split_frame(&bytes[start..]).is_some())
}
