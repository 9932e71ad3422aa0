//! Checkpoints that were saved earlier: a file with one, a segment of the ledger's history, or a directory of such files.
//!
//! Left out: whether they hold. Invariant: what is read is bounded, and nothing in a file is passed over but a last, cut checkpoint,
//! as a copy made while a ledger wrote it has.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use exchequer_tlog::SignedCheckpoint;

use super::verify::MAX_CHECKPOINT_BYTES;

/// Most checkpoints that one verification compares with; a ledger signs 86,400 a day at most by default.
pub const MAX_SAVED: usize = 1 << 18;
/// Largest file with checkpoints: more than a segment of the history can have.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// Longest line before a checkpoint in the history.
const MAX_FRAME_LINE: usize = 64;

/// A checkpoint that was saved earlier.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Where it is from, for people.
    pub from: String,
    /// The checkpoint.
    pub signed: SignedCheckpoint,
}

/// Reads the checkpoints under a path.
pub fn read_saved(path: &Path) -> Result<Vec<Saved>, String> {
    let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    if !path.is_dir() {
        return read_file(path);
    }
    let mut files: Vec<PathBuf> = Vec::new();
    for file in path.read_dir().map_err(|error| at(&error))? {
        let file = file.map_err(|error| at(&error))?.path();
        if file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    let mut saved = Vec::new();
    for file in files {
        saved.extend(read_file(&file)?);
        if saved.len() > MAX_SAVED {
            return Err(at(&format!("more than {MAX_SAVED} checkpoints: give the files in parts")));
        }
    }
    if saved.is_empty() {
        return Err(at(&"there are no checkpoints in it"));
    }
    Ok(saved)
}

fn read_file(path: &Path) -> Result<Vec<Saved>, String> {
    let at = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(|error| at(&error))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| at(&error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(at(&format!(
            "longer than the {MAX_FILE_BYTES} bytes that a file of checkpoints can have"
        )));
    }
    if !is_history(&bytes) {
        let signed = SignedCheckpoint::parse(&bytes).map_err(|error| at(&error))?;
        return Ok(vec![Saved { from: path.display().to_string(), signed }]);
    }
    let mut saved = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let from = format!("{}, checkpoint {}", path.display(), saved.len());
        match split_frame(rest) {
            Frame::Whole { note, rest: tail } => {
                let signed = SignedCheckpoint::parse(note).map_err(|error| format!("{from}: {error}"))?;
                saved.push(Saved { from, signed });
                rest = tail;
            }
            Frame::Cut => break,
            Frame::Broken => return Err(format!("{from} can't be read: the history is damaged there")),
        }
    }
    Ok(saved)
}

/// Whether a file is a segment of the history: a note's second line is a number, and that of a frame is the origin.
fn is_history(bytes: &[u8]) -> bool {
    !matches!(split_frame(bytes), Frame::Broken)
}

enum Frame<'a> {
    Whole {
        note: &'a [u8],
        rest: &'a [u8],
    },
    /// The bytes end within it.
    Cut,
    Broken,
}

/// The checkpoint after a line `checkpoint <bytes> <checksum>`. Its checksum is for the ledger; here its signature counts.
fn split_frame(bytes: &[u8]) -> Frame<'_> {
    let Some(end) = bytes.iter().take(MAX_FRAME_LINE).position(|byte| *byte == b'\n') else {
        let is_short =
            bytes.len() < MAX_FRAME_LINE && b"checkpoint ".starts_with(&bytes[..bytes.len().min(11)]);
        return if is_short { Frame::Cut } else { Frame::Broken };
    };
    let length = std::str::from_utf8(&bytes[..end])
        .ok()
        .and_then(|line| line.strip_prefix("checkpoint ")?.split_once(' ')?.0.parse::<usize>().ok())
        .filter(|length| *length <= MAX_CHECKPOINT_BYTES);
    match length.map(|length| bytes[end + 1..].split_at_checked(length)) {
        None => Frame::Broken,
        Some(None) => Frame::Cut,
        Some(Some((note, rest))) => Frame::Whole { note, rest },
    }
}
