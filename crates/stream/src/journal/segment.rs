//! One segment file: its format, the check at opening, and bounded reads of its durable part.
//!
//! A segment is a header (magic, first sequence, salt, CRC) and frames. A frame is 32 bytes (magic, body length, sequence, how
//! much of the segment was synced before it was written, CRC of the body, CRC of these) and its body, all little-endian. The salt
//! is random and enters each CRC, so a body can't contain something that passes for a frame.
//!
//! The "synced before" field tells a torn tail from damage: a broken frame that a later frame declares as synced was
//! acknowledged and is never cut. A closing mark (a frame without a body) says that of everything before it. What can't be told
//! apart is damage to the last group written before a crash; it is cut as torn.
//! Left out: writing, which is the journal's. Invariant: every frame that is handed out passed its CRCs and is in sequence.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{Entry, JournalError, MAX_BODY};
use crate::files::sync_dir;

const SEGMENT_MAGIC: [u8; 8] = *b"EXQJRNL1";
const RECORD_MAGIC: [u8; 4] = *b"ExqR";
const MARK_MAGIC: [u8; 4] = *b"ExqM";
pub(super) const HEADER: usize = 28;
pub(super) const FRAME: usize = 32;
/// Distance between two entries of the index of a segment, in bytes.
const INDEX_EVERY: u64 = 32 * 1024;
pub(super) const SUFFIX: &str = ".journal";

#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    /// Sequence of the first record.
    pub(super) first: u64,
    /// Sequence after the last durable record.
    pub(super) next: u64,
    /// Durable length in bytes.
    pub(super) end: u64,
    salt: u64,
    /// (sequence, offset), ascending: where to begin reading.
    index: Vec<(u64, u64)>,
}

/// The end of a segment, as far as writing needs it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tail {
    salt: u64,
    pub(super) next: u64,
    pub(super) end: u64,
    pub(super) is_empty: bool,
}

/// Is shown each record; its refusal counts as damage.
pub(super) type Visit<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), String>;

/// Where and how far to read, taken under the journal's lock and used outside of it.
pub(super) struct Span {
    path: PathBuf,
    salt: u64,
    offset: u64,
    end: u64,
}

enum Kind {
    Record,
    Mark,
}

struct Head {
    kind: Kind,
    len: usize,
    seq: u64,
    synced: u64,
    body_crc: u32,
}

fn crc(salt: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn decode_head(salt: u64, bytes: &[u8]) -> Option<Head> {
    let kind = match bytes.get(..4)? {
        m if m == RECORD_MAGIC => Kind::Record,
        m if m == MARK_MAGIC => Kind::Mark,
        _ => return None,
    };
    if bytes.len() < FRAME || crc(salt, &bytes[..FRAME - 4]) != u32_at(bytes, FRAME - 4) {
        return None;
    }
    let len = usize::try_from(u32_at(bytes, 4)).ok().filter(|len| *len <= MAX_BODY)?;
    Some(Head { kind, len, seq: u64_at(bytes, 8), synced: u64_at(bytes, 16), body_crc: u32_at(bytes, 24) })
}

/// Fills `buf`, or returns how much there was.
fn read_full(reader: &mut impl Read, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match reader.read(&mut buf[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

pub(super) fn file_name(first: u64) -> String {
    format!("{first:020}{SUFFIX}")
}

impl Segment {
    /// Creates an empty segment, durably, and leaves it open for writing.
    pub(super) fn create(dir: &Path, first: u64) -> std::io::Result<(Self, File)> {
        let path = dir.join(file_name(first));
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        let mut salt = [0; 8];
        getrandom::fill(&mut salt).map_err(|e| std::io::Error::other(e.to_string()))?;
        let mut header = Vec::with_capacity(HEADER);
        header.extend(SEGMENT_MAGIC);
        header.extend(first.to_le_bytes());
        header.extend(salt);
        header.extend(crc32fast::hash(&header).to_le_bytes());
        file.write_all(&header)?;
        file.sync_all()?;
        sync_dir(dir)?;
        let salt = u64::from_le_bytes(salt);
        Ok((Self { path, first, next: first, end: HEADER as u64, salt, index: Vec::new() }, file))
    }

    /// Checks a whole segment and shows each record to `visit`. `None`: the last segment's creation was cut short, so it never
    /// held a record. A torn tail of the last segment is left beyond `end`, for the caller to cut.
    pub(super) fn open(
        path: &Path,
        first: u64,
        last: bool,
        visit: Visit<'_>,
    ) -> Result<Option<Self>, JournalError> {
        let io = |e| JournalError::io("read", path, &e);
        let corrupt =
            |offset, detail: String| JournalError::Corrupt { segment: path.to_owned(), offset, detail };
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut reader = BufReader::with_capacity(1 << 18, file);
        let mut header = [0; HEADER];
        let read = read_full(&mut reader, &mut header).map_err(io)?;
        if read < HEADER
            || header[..8] != SEGMENT_MAGIC
            || crc32fast::hash(&header[..24]) != u32_at(&header, 24)
        {
            if last && length <= HEADER as u64 {
                return Ok(None);
            }
            return Err(corrupt(0, "bad segment header".into()));
        }
        if u64_at(&header, 8) != first {
            return Err(corrupt(8, format!("named {first}, but begins at {}", u64_at(&header, 8))));
        }
        let salt = u64_at(&header, 16);
        let mut segment =
            Self { path: path.to_owned(), first, next: first, end: HEADER as u64, salt, index: Vec::new() };
        let mut body = Vec::new();
        while segment.end < length {
            match segment.check_frame(&mut reader, &mut body).map_err(io)? {
                Ok(Kind::Mark) => segment.end += FRAME as u64,
                Ok(Kind::Record) => {
                    visit(segment.next, &body).map_err(|detail| corrupt(segment.end, detail))?;
                    segment.note((FRAME + body.len()) as u64);
                }
                Err(detail) if last && !segment.synced_beyond(segment.end).map_err(io)? => {
                    tracing::warn!(segment = %path.display(), offset = segment.end, cut = length - segment.end, detail, "torn tail");
                    break;
                }
                Err(detail) => return Err(corrupt(segment.end, detail.into())),
            }
        }
        Ok(Some(segment))
    }

    /// Reads and checks the frame at `self.end`, where `reader` stands; its body is left in `body`.
    fn check_frame(
        &self,
        reader: &mut impl Read,
        body: &mut Vec<u8>,
    ) -> std::io::Result<Result<Kind, &'static str>> {
        let mut head = [0; FRAME];
        if read_full(reader, &mut head)? < FRAME {
            return Ok(Err("incomplete frame"));
        }
        let Some(head) = decode_head(self.salt, &head) else {
            return Ok(Err("bad frame head"));
        };
        body.resize(head.len, 0);
        if read_full(reader, body)? < head.len {
            return Ok(Err("incomplete record"));
        }
        Ok(if crc(self.salt, body) != head.body_crc {
            Err("bad checksum of a record")
        } else if head.seq != self.next {
            Err("record out of sequence")
        } else {
            Ok(head.kind)
        })
    }

    /// Whether any frame after `offset` was written when the segment was already synced beyond `offset`.
    fn synced_beyond(&self, offset: u64) -> std::io::Result<bool> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut rest = Vec::new();
        file.read_to_end(&mut rest)?;
        Ok((1..rest.len().saturating_sub(FRAME - 1))
            .filter_map(|at| decode_head(self.salt, &rest[at..]))
            .any(|head| head.synced > offset))
    }

    /// Takes note of a record of `size` bytes (frame and body) that became durable at `self.end`.
    pub(super) fn note(&mut self, size: u64) {
        if self.index.last().is_none_or(|(_, at)| self.end - at >= INDEX_EVERY) {
            self.index.push((self.next, self.end));
        }
        self.next += 1;
        self.end += size;
    }

    pub(super) fn tail(&self) -> Tail {
        Tail { salt: self.salt, next: self.next, end: self.end, is_empty: self.next == self.first }
    }

    /// What to read to get at `from`, which this segment holds.
    pub(super) fn span(&self, from: u64) -> Span {
        let after = self.index.partition_point(|(seq, _)| *seq <= from);
        let offset = after.checked_sub(1).map_or(HEADER as u64, |i| self.index[i].1);
        Span { path: self.path.clone(), salt: self.salt, offset, end: self.end }
    }
}

impl Tail {
    /// Appends a record's frame to `out`.
    pub(super) fn encode_record(&self, out: &mut Vec<u8>, seq: u64, body: &[u8]) {
        self.encode(out, RECORD_MAGIC, seq, body);
    }

    /// Appends a closing mark's frame to `out`.
    pub(super) fn encode_mark(&self, out: &mut Vec<u8>) {
        self.encode(out, MARK_MAGIC, self.next, &[]);
    }

    fn encode(&self, out: &mut Vec<u8>, magic: [u8; 4], seq: u64, body: &[u8]) {
        let start = out.len();
        let len = u32::try_from(body.len()).expect("bodies are checked against MAX_BODY");
        out.extend(magic);
        out.extend(len.to_le_bytes());
        out.extend(seq.to_le_bytes());
        out.extend(self.end.to_le_bytes());
        out.extend(crc(self.salt, body).to_le_bytes());
        let head_crc = crc(self.salt, &out[start..]);
        out.extend(head_crc.to_le_bytes());
        out.extend(body);
    }
}

impl Span {
    /// Reads records from `from` on until `budget` bytes are used up (one record at least) or the span ends.
    pub(super) fn read(
        &self,
        from: u64,
        budget: &mut usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), JournalError> {
        let io = |e| JournalError::io("read", &self.path, &e);
        let corrupt = |offset, detail: &str| JournalError::Corrupt {
            segment: self.path.clone(),
            offset,
            detail: detail.into(),
        };
        let mut file = File::open(&self.path).map_err(io)?;
        file.seek(SeekFrom::Start(self.offset)).map_err(io)?;
        let mut reader = BufReader::with_capacity(1 << 17, file);
        let (mut offset, mut wanted) = (self.offset, from);
        let mut head = [0; FRAME];
        while offset < self.end {
            if read_full(&mut reader, &mut head).map_err(io)? < FRAME {
                return Err(corrupt(offset, "incomplete frame"));
            }
            let head = decode_head(self.salt, &head).ok_or_else(|| corrupt(offset, "bad frame head"))?;
            let size = (FRAME + head.len) as u64;
            if matches!(head.kind, Kind::Mark) {
                offset += size;
                continue;
            }
            if head.seq < from {
                reader.seek_relative(i64::try_from(head.len).expect("at most MAX_BODY")).map_err(io)?;
                offset += size;
                continue;
            }
            if !out.is_empty() && *budget < head.len {
                *budget = 0;
                return Ok(());
            }
            let mut body = vec![0; head.len];
            if read_full(&mut reader, &mut body).map_err(io)? < head.len {
                return Err(corrupt(offset, "incomplete record"));
            }
            if crc(self.salt, &body) != head.body_crc {
                return Err(corrupt(offset, "bad checksum of a record"));
            }
            if head.seq != wanted {
                return Err(corrupt(offset, "record out of sequence"));
            }
            *budget = budget.saturating_sub(head.len + FRAME);
            out.push(Entry { seq: head.seq, body: Bytes::from(body) });
            wanted += 1;
            offset += size;
        }
        Ok(())
    }
}
