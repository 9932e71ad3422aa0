//! What was signed and kept: the history of checkpoints and the published one.
//!
//! Left out: whether the tree has their roots, which the walk compares. Invariant: only a checkpoint whose signature verifies is taken
//! for one; a damaged one that names a size is remembered, so that nothing which it may have covered is cut off.

use std::{io, path::Path};

use exchequer_tlog::SignedCheckpoint;

use super::{
    report::{Class, Finding, RepairSource},
    trust::Trust,
};
use crate::store::{Places, encode_frame, split_frame};

const FRAME: &[u8] = b"checkpoint ";
/// Where the published checkpoint is.
pub(super) const PUBLISHED: &str = "log/checkpoint";
/// A frame's first line is shorter.
const MAX_FRAME_LINE: usize = 64;

/// A checkpoint and where it is kept.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) signed: SignedCheckpoint,
    pub(super) path: String,
}

impl Kept {
    pub(super) fn size(&self) -> u64 {
        self.signed.checkpoint().size()
    }
}

/// A segment of the history that has to be written anew, without what is damaged in it.
#[derive(Debug)]
pub(super) struct Rewrite {
    pub(super) path: String,
    pub(super) bytes: Vec<u8>,
}

/// All that was signed.
#[derive(Debug, Default)]
pub(super) struct Signed {
    /// Verified checkpoints of the history, in its order.
    pub(super) history: Vec<Kept>,
    /// The published one, verified.
    pub(super) published: Option<Kept>,
    /// What is wrong.
    pub(super) findings: Vec<Finding>,
    /// Segments to write anew.
    pub(super) rewrites: Vec<Rewrite>,
    /// Largest size that a damaged checkpoint names.
    pub(super) claimed: u64,
    /// Files in the history that are none of its.
    pub(super) foreign: Vec<String>,
}

impl Signed {
    /// Reads history and published checkpoint.
    pub(super) fn read(places: &Places, trust: &Trust) -> io::Result<Self> {
        let mut read = Self::default();
        let mut segments: Vec<(u64, String)> = Vec::new();
        for name in names(&places.history)? {
            match name.parse::<u64>() {
                Ok(number) if name == format!("{number:08}") => segments.push((number, name)),
                _ => read.foreign.push(format!("checkpoints/{name}")),
            }
        }
        segments.sort();
        let last = segments.last().map(|(number, _)| *number);
        for (number, name) in segments {
            let bytes = std::fs::read(places.history.join(&name))?;
            read.segment(&format!("checkpoints/{name}"), &bytes, Some(number) == last, trust);
        }
        read.published(places, trust)?;
        Ok(read)
    }

    fn segment(&mut self, path: &str, bytes: &[u8], is_last: bool, trust: &Trust) {
        let mut sound = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            let Some((note, tail)) = split_frame(rest) else {
                rest = self.broken(path, at, rest, is_last);
                continue;
            };
            let frame = &rest[..rest.len() - tail.len()];
            rest = tail;
            match trust.verified(note) {
                Ok(signed) => {
                    self.history.push(Kept { signed, path: path.to_owned() });
                    sound.extend_from_slice(frame);
                }
                Err(reason) => {
                    let detail = format!("the checkpoint at byte {at}: {reason}");
                    self.find(path, Class::CheckpointForged, detail, RepairSource::Removal);
                }
            }
        }
        if sound.len() < bytes.len() {
            self.rewrites.push(Rewrite { path: path.to_owned(), bytes: sound });
        }
    }

    /// Takes up what is no frame; what follows it.
    fn broken<'a>(&mut self, path: &str, at: usize, rest: &'a [u8], is_last: bool) -> &'a [u8] {
        let next = (1..rest.len())
            .find(|start| rest[*start..].starts_with(FRAME) && split_frame(&rest[*start..]).is_some());
        if next.is_none() && is_last && is_torn(rest) {
            let detail = format!("{} bytes at byte {at} are the beginning of a checkpoint", rest.len());
            self.find(path, Class::HistoryTorn, detail, RepairSource::Removal);
            return &[];
        }
        let (broken, following) = rest.split_at(next.unwrap_or(rest.len()));
        // Of a damaged note the size is its third line: frame, origin, size.
        let size = String::from_utf8_lossy(broken).lines().nth(2).and_then(|line| line.parse().ok());
        self.claimed = self.claimed.max(size.unwrap_or(0));
        let named = size.map_or_else(String::new, |size| format!(", which names {size} entries"));
        let detail = format!("the checkpoint at byte {at}{named}, does not have its checksum");
        self.find(path, Class::HistoryDamaged, detail, RepairSource::Removal);
        following
    }

    fn published(&mut self, places: &Places, trust: &Trust) -> io::Result<()> {
        let path = PUBLISHED;
        let newest = self.newest().map(Kept::size);
        let bytes = match std::fs::read(&places.checkpoint) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if newest.is_some() {
                    let detail = "it is not there".to_owned();
                    self.find(path, Class::CheckpointMissing, detail, RepairSource::Start);
                }
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        match trust.verified(&bytes) {
            Ok(signed) => {
                let size = signed.checkpoint().size();
                match newest {
                    Some(newest) if size < newest => {
                        let detail = format!("it covers {size} entries, the history's newest {newest}");
                        self.find(path, Class::CheckpointStale, detail, RepairSource::Start);
                    }
                    newest if newest.is_none_or(|newest| size > newest) => {
                        let detail = format!("it lacks the published checkpoint of {size} entries");
                        self.find("checkpoints", Class::HistoryBehind, detail, RepairSource::Checkpoints);
                    }
                    _ => {}
                }
                self.published = Some(Kept { signed, path: path.to_owned() });
            }
            Err(reason) => {
                let is_note = SignedCheckpoint::parse(&bytes).is_ok();
                let class = if is_note { Class::CheckpointForged } else { Class::CheckpointDamaged };
                // Without a history, nothing here says what was published.
                let source = newest.map(|_| RepairSource::Removal);
                self.findings.push(Finding::new(path, class, reason, source));
            }
        }
        Ok(())
    }

    fn find(&mut self, path: &str, class: Class, detail: String, repair: RepairSource) {
        self.findings.push(Finding::new(path, class, detail, Some(repair)));
    }

    /// Whether what lies in the published checkpoint's place is none of this log's.
    pub(super) fn is_published_unsound(&self) -> bool {
        let is_unsound = |class| matches!(class, Class::CheckpointDamaged | Class::CheckpointForged);
        self.findings.iter().any(|finding| finding.path == PUBLISHED && is_unsound(finding.class))
    }

    /// The verified checkpoint of the most entries.
    pub(super) fn newest(&self) -> Option<&Kept> {
        self.history.iter().chain(&self.published).max_by_key(|kept| kept.size())
    }

    /// Adds a checkpoint to the history's end; the file to write.
    pub(super) fn appended(
        &self,
        places: &Places,
        signed: &SignedCheckpoint,
    ) -> io::Result<(String, Vec<u8>)> {
        let newest = names(&places.history)?.into_iter().filter(|name| name.parse::<u64>().is_ok()).max();
        let path = format!("checkpoints/{}", newest.unwrap_or_else(|| format!("{:08}", 0)));
        let rewritten = self.rewrites.iter().find(|rewrite| rewrite.path == path);
        let mut bytes = match rewritten {
            Some(rewrite) => rewrite.bytes.clone(),
            None => match std::fs::read(places.data.join(&path)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                read => read?,
            },
        };
        bytes.extend(encode_frame(&signed.to_string()));
        Ok((path, bytes))
    }
}

/// Whether these bytes are a frame's beginning that a crash cut: a whole one would be longer.
fn is_torn(rest: &[u8]) -> bool {
    let Some(end) = rest.iter().take(MAX_FRAME_LINE).position(|byte| *byte == b'\n') else {
        return rest.len() < MAX_FRAME_LINE && (FRAME.starts_with(rest) || rest.starts_with(FRAME));
    };
    let line = std::str::from_utf8(&rest[..end]).ok();
    let length =
        line.and_then(|line| line.strip_prefix("checkpoint ")?.split_once(' ')?.0.parse::<usize>().ok());
    length.is_some_and(|length| rest.len() - end - 1 < length)
}

/// Names in a directory; none if it is missing.
pub(super) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let items = match dir.read_dir() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        items => items?,
    };
    items.map(|item| Ok(item?.file_name().to_string_lossy().into_owned())).collect()
}
