//! A segment of the journal as a crash, a disk or somebody else left it. The first byte of an input says whether its checksums are mended
//! before it is read, for otherwise nothing behind one would ever be reached.

use std::{fs, path::Path};

use bytes::Bytes;
use exchequer_stream::journal::{Entry, Journal, JournalError, Options};
use tempfile::TempDir;

const NAME: &str = "00000000000000000001.journal";
const HEADER: usize = 28;
const FRAME: usize = 32;

const MEND: u8 = 1;
const APPEND: u8 = 2;

fn crc(salt: &[u8], bytes: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(salt);
    hasher.update(bytes);
    hasher.finalize().to_le_bytes()
}

/// Gives the header and every frame that is there the checksums of what they hold.
fn mend(segment: &mut [u8]) {
    if segment.len() < HEADER {
        return;
    }
    let sum = crc32fast::hash(&segment[..24]).to_le_bytes();
    segment[24..HEADER].copy_from_slice(&sum);
    let (header, mut rest) = segment.split_at_mut(HEADER);
    let salt = &header[16..24];
    while rest.len() >= FRAME {
        let length = u32::from_le_bytes(rest[4..8].try_into().unwrap()) as usize;
        let (head, body) = rest.split_at_mut(FRAME);
        let Some(body_bytes) = body.get(..length) else { return };
        head[24..28].copy_from_slice(&crc(salt, body_bytes));
        let sum = crc(salt, &head[..28]);
        head[28..].copy_from_slice(&sum);
        rest = &mut body[length..];
    }
}

fn temporary() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    made.expect("a temporary directory")
}

fn open(dir: &Path) -> Result<(Journal, Vec<Entry>), JournalError> {
    let mut visited = Vec::new();
    let options = Options { min_free_bytes: 0, ..Options::default() };
    let journal = Journal::open_with(dir, options, |seq, body| {
        visited.push(Entry { seq, body: Bytes::copy_from_slice(body) });
        Ok(())
    })?;
    let (reader, mut read) = (journal.reader(), Vec::new());
    loop {
        let more = reader.read(read.len() as u64 + 1, 4096).expect("what was opened can be read");
        if more.is_empty() {
            break;
        }
        read.extend(more);
    }
    assert_eq!(read, visited);
    assert!(read.iter().map(|entry| entry.seq).eq(1..=journal.tip()));
    Ok((journal, read))
}

/// A journal of one segment.
pub(crate) fn segment(data: &[u8]) -> bool {
    let Some((how, bytes)) = data.split_first() else { return false };
    let mut bytes = bytes.to_vec();
    if how & MEND != 0 {
        mend(&mut bytes);
    }
    let dir = temporary();
    fs::write(dir.path().join(NAME), bytes).expect("a file in it");
    let Ok((journal, mut records)) = open(dir.path()) else { return false };
    if how & APPEND != 0 {
        let body = Bytes::from_static(b"the next one");
        let seq = futures::executor::block_on(journal.append(body.clone())).expect("there is room");
        records.push(Entry { seq, body });
    }
    drop(journal);
    // What was cut stays cut, what was there is there.
    let (journal, again) = open(dir.path()).expect("what was opened opens again");
    assert_eq!((again, journal.tip()), (records.clone(), records.len() as u64));
    !records.is_empty()
}

pub(crate) fn segments() -> Vec<Vec<u8>> {
    let dir = temporary();
    let (journal, _) = open(dir.path()).unwrap();
    for body in ["one", "", "the third record"] {
        futures::executor::block_on(journal.append(Bytes::from(body))).unwrap();
    }
    drop(journal);
    let whole = fs::read(dir.path().join(NAME)).unwrap();
    let tagged = |how: u8, bytes: &[u8]| [&[how], bytes].concat();
    let mut damaged = whole.clone();
    damaged[HEADER + 40] ^= 1;
    vec![
        tagged(APPEND, &whole),
        tagged(MEND | APPEND, &whole),
        tagged(0, &whole[..whole.len() - 5]),
        tagged(0, &damaged),
    ]
}
