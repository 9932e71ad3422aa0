//! Checking a directory of segments, as `export --follow` leaves it: each holds, each goes on where the one before ended, and all of
//! them are of one log that only grew.
//!
//! A segment's name is its range: `<first>-<end>.pack`, or the records of lines. That one tree continues the other needs no proof of
//! its own: the range proof of a segment leads to the root of the tree before it, which has to be the one that the segment before ends
//! with. So the last segment's signature covers them all, and only that one has to be by a key that the caller's leads to: the key that signed
//! an earlier one may have been rotated since. Left out: the segments themselves. Invariant: `Holds` means that no entry between the first and the last is missing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use exchequer_tlog::EMPTY_ROOT;

use super::{
    report::{Fault, FaultKind, RangeRoots, Report, Subject, Verdict},
    verify::{OWN_WORD, Progress, Target, Trust, verify_blocking},
};

/// What segments' names end with.
pub(super) const EXTENSIONS: [&str; 3] = ["pack", "ndjson", "ocsf.ndjson"];
/// Digits of a name's numbers, so that names sort as ranges do.
const DIGITS: usize = 12;

/// A segment by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    pub(super) first: u64,
    pub(super) end: u64,
    pub(super) path: PathBuf,
}

/// The name of a segment.
pub(super) fn name(first: u64, end: u64, extension: &str) -> String {
    format!("{first:0DIGITS$}-{end:0DIGITS$}.{extension}")
}

/// The range that a name says, and what follows it.
pub(super) fn read_name(file: &str) -> Option<(u64, u64, &str)> {
    let (range, extension) = file.split_once('.')?;
    let (first, end) = range.split_once('-')?;
    let (first, end) = (first.parse().ok()?, end.parse().ok()?);
    (first < end && file == name(first, end, extension)).then_some((first, end, extension))
}

/// The segments of a directory, in order.
pub(super) fn list(dir: &Path) -> std::io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let file = entry?.file_name();
        if let Some((first, end, extension)) = file.to_str().and_then(read_name)
            && EXTENSIONS.contains(&extension)
        {
            segments.push(Segment { first, end, path: dir.join(&file) });
        }
    }
    segments.sort();
    Ok(segments)
}

/// Whether a directory holds segments.
pub(super) fn are_in(dir: &Path) -> bool {
    list(dir).is_ok_and(|segments| !segments.is_empty())
}

/// Checks a directory of segments into the report.
pub(super) fn check(dir: &Path, trust: &Trust, report: &mut Report, progress: &mut dyn FnMut(Progress)) {
    report.subject = Subject::Segments;
    let segments = match list(dir) {
        Ok(segments) => segments,
        Err(error) => return report.fault(Fault::new(FaultKind::Unreadable, error.to_string())),
    };
    let total = segments.iter().map(|segment| segment.end - segment.first).sum();
    let mut trust = trust.clone();
    let saved = std::mem::take(&mut trust.checkpoints);
    let mut sizes: Vec<(u64, String)> = Vec::new();
    let mut before: Option<(u64, Option<String>)> = None;
    let mut done = 0;
    let key = trust.key.take();
    for segment in &segments {
        if segments.last() == Some(segment) {
            trust.key.clone_from(&key);
        }
        let found = verify_blocking(&Target::Pack(segment.path.clone()), &trust, None, |_| {});
        let roots = found.range_roots.clone();
        check_place(segment, before.as_ref(), roots.as_ref(), report);
        let scope = super::pack::Scope::Range { first: segment.first, end: segment.end };
        if found.verdict == Verdict::Holds && (found.scope != Some(scope) || roots.is_none()) {
            let detail = format!("{} holds another range than its name says", segment.path.display());
            report.fault(Fault::new(FaultKind::PackDamaged, detail));
        }
        if let Some(RangeRoots { before, after }) = &roots {
            sizes.extend([(segment.first, before.clone()), (segment.end, after.clone())]);
        }
        before = Some((segment.end, roots.map(|roots| roots.after)));
        take(&segment.path, found, report);
        done += segment.end - segment.first;
        progress(Progress { done, total });
        if report.is_full() {
            report.note("the check stopped early: nothing is said about what follows");
            return;
        }
    }
    if let (Some(first), Some(last)) = (segments.first(), segments.last()) {
        report.note(format!(
            "{} segments hold every entry from {} up to {}",
            segments.len(),
            first.first,
            last.end
        ));
        if report.verdict != Verdict::Holds {
            report.notes.pop();
        }
    }
    for saved in saved {
        let head = saved.signed.checkpoint();
        match sizes.iter().find(|(size, _)| *size == head.size()) {
            Some((size, root)) if *root == head.root().to_string() => {
                report.continues_size = report.continues_size.max(Some(*size));
                report.checked.checkpoints += 1;
            }
            Some((_, root)) => {
                let detail = "the trusted checkpoint has another root for the same size";
                report.fault(Fault::new(FaultKind::Inconsistent, detail).hashes(head.root(), root));
            }
            None => {
                let detail = format!(
                    "no segment begins or ends with the trusted checkpoint's {} entries",
                    head.size()
                );
                report.fault(Fault::new(FaultKind::BadInput, detail));
            }
        }
    }
}

/// Whether a segment goes on where the one before ended, in the same log.
fn check_place(
    segment: &Segment,
    before: Option<&(u64, Option<String>)>,
    roots: Option<&RangeRoots>,
    report: &mut Report,
) {
    let empty = (0, Some(EMPTY_ROOT.to_string()));
    let Some((end, root)) = before.or_else(|| (segment.first == 0).then_some(&empty)) else { return };
    if *end != segment.first {
        let (from, to) = (*end.min(&segment.first), *end.max(&segment.first));
        let what = if *end < segment.first { "in no segment" } else { "in more than one segment" };
        return report
            .fault(Fault::new(FaultKind::PackDamaged, format!("entries {from} up to {to} are {what}")));
    }
    if let (Some(root), Some(roots)) = (root, roots)
        && *root != roots.before
    {
        let detail = format!("{} is of another log than the segment before it", segment.path.display());
        report.fault(Fault::new(FaultKind::Inconsistent, detail).hashes(root, &roots.before));
    }
}

/// Takes what a segment's own check found.
fn take(path: &Path, found: Report, report: &mut Report) {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for mut fault in found.faults {
        fault.detail = format!("{file}: {}", fault.detail);
        report.fault(fault);
    }
    report.more_faults += found.more_faults;
    let (sum, more) = (&mut report.checked, found.checked);
    sum.entries += more.entries;
    sum.proofs += more.proofs;
    sum.signatures += more.signatures;
    sum.events += more.events;
    sum.decision_runs += more.decision_runs;
    for note in found.notes {
        let is_answered = report.key_given && note == OWN_WORD;
        if !is_answered && !report.notes.contains(&note) {
            report.note(note);
        }
    }
    report.origin = found.origin;
    report.key = found.key;
    report.signed_by = found.signed_by;
    report.cosignatures = found.cosignatures;
    report.tree_size = found.tree_size;
    report.root = found.root;
    report.signed_unix_s = found.signed_unix_s;
}
