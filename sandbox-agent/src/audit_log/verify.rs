//! Checks a local audit log: that nobody changed, removed, added or moved a line.
//!
//! [`Chain`] is pure: it is shown lines, oldest first. [`verify`] finds and reads the files. Left out: whether the log holds the same
//! events; their digests are there to compare. Invariant: a fault is named with the first line at which it can be told. What can't be told
//! from the files alone: lines that were cut off at the end while the agent has not run since, files that were removed from the beginning (as rotation does), and a
//! chain that was written anew as a whole.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::Duration,
};

use exchequer_event::digest::Digest;
use serde::Serialize;

use super::{
    GONE, MAX_LINE_BYTES,
    file::{numbered, rotated},
    line::{self, Content, Line},
};

/// How often files are read that change meanwhile.
const ATTEMPTS: usize = 5;
/// Before they are read again.
const PAUSE: Duration = Duration::from_millis(50);

/// An event's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Position {
    /// The agent.
    pub agent: String,
    /// The epoch of its spool.
    pub epoch: u64,
    /// The position in it.
    pub seq: u64,
}

/// Events that the audit log says it does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hole {
    /// The epoch.
    pub epoch: u64,
    /// The first of them.
    pub from: u64,
    /// The last.
    pub until: u64,
    /// Why, as it was written there.
    pub reason: String,
}

/// A sound audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Files that were read, oldest first.
    pub files: Vec<String>,
    /// Lines in them.
    pub lines: u64,
    /// Events in them.
    pub events: u64,
    /// The first event, or the first that is said to be missing.
    pub first: Option<Position>,
    /// The last one.
    pub last: Option<Position>,
    /// The digest of the last event, in hex, as the ledger's log has it. Where no event before it is missing, one that is equal there
    /// shows that all of them are.
    pub last_blake3: Option<String>,
    /// Whether lines were before the first one: files that rotation removed.
    pub begins_later: bool,
    /// What it says is missing.
    pub holes: Vec<Hole>,
    /// Torn lines that were cut off: crashes while a line was written.
    pub cuts: u64,
    /// The number of the file's last line, if it has no end: it is being written, or was torn by a crash. It is not among the lines.
    pub unfinished: Option<u64>,
}

impl Report {
    /// Whether lines were written and taken away later, as the agent has noted.
    pub fn is_gone(&self) -> bool {
        self.holes.iter().any(|hole| hole.reason == GONE)
    }
}

/// The first line that is not as it was written, or that does not follow the one before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Broken {
    /// The file.
    pub file: String,
    /// The line in it, 1 for the first; 0 if the file is missing.
    pub line: u64,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(f, "{} {}", self.file, self.problem)
        } else {
            write!(f, "{} line {}: {}", self.file, self.line, self.problem)
        }
    }
}

/// Why an audit log is not sound, or could not be read.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It was changed.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// It can't be read.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
}

/// The line before.
struct Before {
    file: String,
    number: u64,
    hash: String,
    position: Position,
    /// The digest that the next event names, if the line holds an event.
    digest: Option<Digest>,
}

/// A chain of lines, as far as it was read.
#[derive(Default)]
pub struct Chain {
    before: Option<Before>,
    report: Report,
}

impl Chain {
    /// Takes the next line, without its newline.
    pub fn take(&mut self, file: &str, number: u64, bytes: &[u8]) -> Result<(), Broken> {
        let broken = |problem: String| Broken { file: file.to_owned(), line: number, problem };
        let line = Line::parse(bytes).map_err(broken)?;
        let (from, until) = line.span();
        if let Some(before) = &self.before {
            continues(&before.position, &line).map_err(broken)?;
            if line.link.prev_hash.as_ref() != Some(&before.hash) {
                return Err(before.accuse(&line, file, number));
            }
            if let (Some(digest), Content::Event { prev, .. }) = (before.digest, &line.content)
                && before.position.epoch == line.epoch
                && digest != *prev
            {
                return Err(broken("its event does not follow the one before".to_owned()));
            }
        } else {
            self.report.begins_later = line.link.prev_hash.is_some();
            if !self.report.begins_later && from != 1 {
                return Err(broken(format!("events 1 to {} are missing before it", from - 1)));
            }
            self.report.first = Some(Position { agent: line.agent.clone(), epoch: line.epoch, seq: from });
        }
        self.report.lines += 1;
        self.report.cuts += u64::from(line.link.cut_bytes > 0);
        let position = Position { agent: line.agent, epoch: line.epoch, seq: until };
        self.report.last = Some(position.clone());
        let digest = match line.content {
            Content::Event { digest, .. } => {
                self.report.events += 1;
                self.report.last_blake3 = Some(hex::encode(digest.0));
                Some(digest)
            }
            Content::Missing { from, until, reason } => {
                self.report.holes.push(Hole { epoch: line.epoch, from, until, reason });
                None
            }
        };
        self.before =
            Some(Before { file: file.to_owned(), number, hash: line::hash(bytes), position, digest });
        Ok(())
    }

    /// What was read, all of which holds.
    pub fn finish(self) -> Report {
        self.report
    }
}

impl Before {
    /// Which of two lines was changed, where the second does not name the first.
    fn accuse(&self, line: &Line, file: &str, number: u64) -> Broken {
        match (&self.digest, &line.content) {
            // The second event still follows the first one: its line is what does not fit.
            (Some(digest), Content::Event { prev, .. }) if digest == prev => Broken {
                file: file.to_owned(),
                line: number,
                problem: "its prev_hash is not the digest of the line before".to_owned(),
            },
            _ => Broken {
                file: self.file.clone(),
                line: self.number,
                problem: format!("is not the line that line {number} of {file} follows"),
            },
        }
    }
}

/// Whether a line's events come right behind a position.
fn continues(before: &Position, line: &Line) -> Result<(), String> {
    let (from, _) = line.span();
    if line.agent != before.agent {
        return Err(format!("is agent {}'s, the line before agent {}'s", line.agent, before.agent));
    }
    let expected = match line.epoch.cmp(&before.epoch) {
        std::cmp::Ordering::Less => return Err(format!("goes back to epoch {}", line.epoch)),
        std::cmp::Ordering::Equal => before.seq + 1,
        std::cmp::Ordering::Greater => 1,
    };
    match from.cmp(&expected) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Less => Err(format!("goes back to event {from}, event {expected} should follow")),
        std::cmp::Ordering::Greater => {
            Err(format!("events {expected} to {} are missing before it", from - 1))
        }
    }
}

/// Checks an audit log, with the files that rotation left of it, oldest first. Blocks. While an agent writes it, it is read again where it was
/// rotated meanwhile.
pub fn verify(path: &Path) -> Result<Report, VerifyError> {
    let io = |source| VerifyError::Io { file: path.display().to_string(), source };
    for _ in 1..ATTEMPTS {
        let before = listed(path).map_err(io)?;
        let found = examine(path);
        let is_unfinished = matches!(&found, Ok(report) if report.unfinished.is_some());
        // A rotation that is just going on.
        let is_absent = before.first().is_none_or(|(number, ..)| *number != 0);
        if before == listed(path).map_err(io)? && !is_unfinished && !is_absent {
            return found;
        }
        std::thread::sleep(PAUSE);
    }
    let before = listed(path).map_err(io)?;
    let found = examine(path);
    if before == listed(path).map_err(io)? {
        return found;
    }
    Err(io(io::Error::other("its files change faster than they can be read")))
}

/// The files that there are: number, device, inode; `FILE` is 0 and first.
fn listed(path: &Path) -> io::Result<Vec<(u64, u64, u64)>> {
    let mut files = Vec::new();
    for number in [0].into_iter().chain(rotated(path)?) {
        let file = if number == 0 { path.to_owned() } else { numbered(path, number) };
        match file.metadata() {
            Ok(found) => files.push((number, found.dev(), found.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// Checks the files as they are now.
fn examine(path: &Path) -> Result<Report, VerifyError> {
    let io = |file: &Path| {
        let file = file.display().to_string();
        move |source| VerifyError::Io { file, source }
    };
    let mut chain = Chain::default();
    let numbers = rotated(path).map_err(io(path))?;
    let mut files: Vec<_> = numbers.iter().rev().map(|number| (*number, numbered(path, *number))).collect();
    files.push((0, path.to_owned()));
    let mut expected = numbers.last().copied().unwrap_or_default();
    for (number, path) in files {
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && number == 0 && !numbers.is_empty() => {
                let file = path.display().to_string();
                return Err(Broken { file, line: 0, problem: "is missing".to_owned() }.into());
            }
            opened => opened.map_err(io(&path))?,
        };
        let name = path.display().to_string();
        let is_behind_gap = number != expected;
        let missing = numbered_name(&path, number, expected);
        expected = number.saturating_sub(1);
        chain.report.files.push(name.clone());
        match read(&mut chain, &name, number == 0, BufReader::new(file)) {
            Ok(()) => {}
            Err(Ok(broken)) if is_behind_gap && (broken.line <= 1 || broken.file != name) => {
                return Err(Broken { file: missing, line: 0, problem: "is missing".to_owned() }.into());
            }
            Err(Ok(broken)) => return Err(broken.into()),
            Err(Err(error)) => return Err(io(&path)(error)),
        }
    }
    let report = chain.finish();
    // Rotation leaves at least one earlier file.
    if report.begins_later && numbers.is_empty() {
        let problem = "lines before it are missing, and no earlier file is there".to_owned();
        return Err(Broken { file: path.display().to_string(), line: 1, problem }.into());
    }
    Ok(report)
}

/// The name of the file `expected`, beside this one with another number.
fn numbered_name(path: &Path, number: u64, expected: u64) -> String {
    let name = path.display().to_string();
    let base = if number == 0 { &name } else { name.strip_suffix(&format!(".{number}")).unwrap_or(&name) };
    format!("{base}.{expected}")
}

/// Takes a file's lines. Only one that may be written at this moment may end within a line.
fn read(
    chain: &mut Chain,
    name: &str,
    is_written: bool,
    mut lines: impl BufRead,
) -> Result<(), Result<Broken, io::Error>> {
    for number in 1.. {
        let mut line = Vec::new();
        lines.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line).map_err(Err)?;
        let broken =
            |problem: &str| Broken { file: name.to_owned(), line: number, problem: problem.to_owned() };
        match line.pop() {
            None => break,
            Some(b'\n') => chain.take(name, number, &line).map_err(Ok)?,
            Some(_) if line.len() as u64 + 1 == MAX_LINE_BYTES => {
                return Err(Ok(broken("is longer than lines are")));
            }
            Some(_) if is_written => {
                chain.report.unfinished = Some(number);
                break;
            }
            Some(_) => return Err(Ok(broken("is cut off"))),
        }
    }
    Ok(())
}
