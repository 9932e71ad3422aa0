//! The files of a local audit log: appending, rotation by size, and where it goes on after a crash.
//!
//! `FILE` is written; `FILE.1` is the one before, `FILE.2` the one before that, and so on. The chain goes on across files. A file is begun
//! when the next line would make the present one larger than it may be, so only a line that is too long by itself makes a larger file.
//!
//! A mark beside the spool says what was written last, so that lines that are cut off at the end, or a file that is removed, are told when it
//! is opened again. It is placed after the lines are synced and is not synced itself: after a crash it may be an older one, or none,
//! and then less is told; it never claims a line that was not on disk.
//!
//! Left out: where lines come from. Invariant: a whole line that was written is never changed; a torn one is cut before the next is
//! written, and that says so.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    AuditLogOptions, MAX_LINE_BYTES,
    line::{self, Content, Line, Link},
};

/// Where an audit log ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) agent: String,
    pub(super) epoch: u64,
    /// The last seq, of an event or of what is missing.
    pub(super) seq: u64,
}

/// What was written last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The file: another one was never written so far.
    path: PathBuf,
    pub(super) epoch: u64,
    pub(super) seq: u64,
    /// SHA-256 of the line, in hex.
    pub(super) hash: String,
}

impl Mark {
    /// The mark at this place, if it is one of that file. One that can't be understood is none.
    fn read(place: &Path, path: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read(place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        let mark: Option<Self> = serde_json::from_slice(&text)
            .inspect_err(|error| tracing::warn!(%error, "the mark of what was written last can't be read"))
            .ok();
        Ok(mark.filter(|mark| mark.path == path))
    }

    fn write(&self, place: &Path) -> io::Result<()> {
        let staged = place.with_extension("new");
        fs::write(&staged, serde_json::to_vec(self)?)?;
        fs::rename(&staged, place)
    }
}

/// An audit log, open for appending. After an error it has to be opened again.
#[derive(Debug)]
pub(super) struct LogFile {
    options: AuditLogOptions,
    /// Where the mark of what was written last is.
    place: PathBuf,
    mark: Option<Mark>,
    file: File,
    /// Of its whole lines.
    size: u64,
    /// All that is in it.
    length: u64,
    link: Link,
    end: Option<End>,
    /// Whole lines that are not written yet.
    waiting: Vec<u8>,
}

/// The file's earlier ones by number, ascending: `FILE.1` is 1.
pub(super) fn rotated(path: &Path) -> io::Result<Vec<u64>> {
    let (dir, name) = split(path)?;
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?.file_name();
        let number =
            entry.to_str().and_then(|entry| entry.strip_prefix(name)).and_then(|rest| rest.strip_prefix('.'));
        if let Some(number) =
            number.and_then(|text| text.parse().ok().filter(|n: &u64| *n > 0 && n.to_string() == text))
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The path of an earlier file.
pub(super) fn numbered(path: &Path, number: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn split(path: &Path) -> io::Result<(&Path, &str)> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| io::Error::other("an audit log's name has to be UTF-8"))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((dir, name))
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(split(path)?.0)?.sync_all()
}

impl LogFile {
    /// Opens it where it ended, or begins one. Blocks.
    pub(super) fn open(options: &AuditLogOptions, place: &Path) -> io::Result<Self> {
        let path = &options.path;
        finish_rotation(path)?;
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).open(path)?;
        sync_dir(path)?;
        let length = file.metadata()?.len();
        let (last, size) = last_line(&mut file, length)?;
        let cut_bytes = length - size;
        let last = match last {
            Some(last) => Some(last),
            // A rotation was the last thing that happened.
            None if size == 0 => match File::open(numbered(path, 1)) {
                Ok(mut before) => {
                    let length = before.metadata()?.len();
                    last_line(&mut before, length)?.0
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            },
            None => None,
        };
        let (mut link, mut end) = (Link { prev_hash: None, cut_bytes }, None);
        if let Some(last) = last {
            let line = Line::parse(&last).map_err(|problem| {
                let what = format!("its last line {problem}; keep the file as evidence and move it away");
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?;
            link.prev_hash = Some(line::hash(&last));
            end = Some(End { seq: line.span().1, agent: line.agent, epoch: line.epoch });
        }
        let (options, place, mark) = (options.clone(), place.to_owned(), Mark::read(place, path)?);
        Ok(Self { options, place, mark, file, size, length, link, end, waiting: Vec::new() })
    }

    pub(super) fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// What was written last, as far as that is known.
    pub(super) fn mark(&self) -> Option<&Mark> {
        self.mark.as_ref()
    }

    /// SHA-256 of its last line, in hex.
    pub(super) fn last_hash(&self) -> Option<&str> {
        self.link.prev_hash.as_deref()
    }

    /// Adds the line of an event, which [`flush`](Self::flush) writes.
    pub(super) fn event(&mut self, bytes: &[u8]) -> io::Result<()> {
        let line = Line::event(self.link.clone(), bytes).map_err(io::Error::other)?;
        self.push(&line)
    }

    /// Adds a line that says what is missing.
    pub(super) fn missing(
        &mut self,
        agent: &str,
        epoch: u64,
        from: u64,
        until: u64,
        reason: &str,
    ) -> io::Result<()> {
        let content = Content::Missing { from, until, reason: reason.to_owned() };
        self.push(&Line { link: self.link.clone(), agent: agent.to_owned(), epoch, content })
    }

    fn push(&mut self, line: &Line) -> io::Result<()> {
        let mut text = line.text().map_err(io::Error::other)?.into_bytes();
        let hash = line::hash(&text);
        text.push(b'\n');
        let held = self.size + self.waiting.len() as u64;
        if held > 0 && held + text.len() as u64 > self.options.max_bytes {
            self.flush()?;
            self.rotate()?;
        }
        self.link = Link { prev_hash: Some(hash), cut_bytes: 0 };
        self.end = Some(End { agent: line.agent.clone(), epoch: line.epoch, seq: line.span().1 });
        self.waiting.extend(text);
        Ok(())
    }

    /// Makes all lines that were added durable. Blocks.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.check_place()?;
        // What is beyond the last whole line is torn.
        self.file.set_len(self.size)?;
        self.file.seek(SeekFrom::Start(self.size))?;
        self.file.write_all(&self.waiting)?;
        self.file.sync_data()?;
        self.size += self.waiting.len() as u64;
        self.length = self.size;
        self.waiting.clear();
        if let (Some(end), Some(hash)) = (&self.end, &self.link.prev_hash) {
            let path = self.options.path.clone();
            let mark = Mark { path, epoch: end.epoch, seq: end.seq, hash: hash.clone() };
            mark.write(&self.place)?;
            self.mark = Some(mark);
        }
        Ok(())
    }

    /// That the open file is still the one at its path, and as long as it was left.
    fn check_place(&self) -> io::Result<()> {
        let open = self.file.metadata()?;
        let there = fs::metadata(&self.options.path)?;
        if (open.dev(), open.ino()) != (there.dev(), there.ino()) {
            return Err(io::Error::other("another file is in the place of the one that was written"));
        }
        if open.len() != self.length {
            let (length, wrote) = (open.len(), self.length);
            return Err(io::Error::other(format!("it has {length} bytes, and {wrote} were written")));
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.options.path;
        for number in rotated(path)?.into_iter().rev() {
            if number >= self.options.backup_count {
                fs::remove_file(numbered(path, number))?;
            } else {
                fs::rename(numbered(path, number), numbered(path, number + 1))?;
            }
        }
        fs::rename(path, numbered(path, 1))?;
        self.file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o640).open(path)?;
        (self.size, self.length) = (0, 0);
        sync_dir(path)
    }
}

/// Completes a rotation that a crash cut short: it leaves one number out, and everything below it has to move up.
fn finish_rotation(path: &Path) -> io::Result<()> {
    let numbers = rotated(path)?;
    let gap = numbers.iter().zip(1..).find(|(number, place)| *number != place).map(|(_, place)| place);
    let Some(gap) = gap else { return Ok(()) };
    for number in (1..gap).rev() {
        fs::rename(numbered(path, number), numbered(path, number + 1))?;
    }
    match fs::rename(path, numbered(path, 1)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_dir(path),
    }
}

/// The last whole line of a file of this length, without its newline, and where it ends with it.
fn last_line(file: &mut File, length: u64) -> io::Result<(Option<Vec<u8>>, u64)> {
    // A torn line and the last whole one.
    let from = length.saturating_sub(2 * MAX_LINE_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(length - from).read_to_end(&mut tail)?;
    let Some(end) = tail.iter().rposition(|byte| *byte == b'\n') else {
        if from > 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "its last lines are longer than lines can be",
            ));
        }
        return Ok((None, 0));
    };
    let begin = tail[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |before| before + 1);
    Ok((Some(tail[begin..end].to_vec()), from + end as u64 + 1))
}
