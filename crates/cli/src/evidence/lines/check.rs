//! Checking evidence in lines.
//!
//! Left out: what has to hold of the entries (`selection`). Invariant: a line that is not exactly what its entry renders to is a fault.

use std::{
    fs::File,
    io::{self, BufReader, Read as _},
    path::Path,
};

use exchequer_tlog::{SignedCheckpoint, leaf_hash};

use super::{Claim, FORMAT, LineReader, ProofFile, Renderer, Selection, VERIFY, sum};
use crate::evidence::{
    report::{Fault, FaultKind, Report, Subject},
    selection::Check,
    verify::{MAX_CHECKPOINT_BYTES, Progress, Trust},
};

/// A proof file: the checkpoint and little more.
const MAX_PROOF_FILE_BYTES: u64 = 2 * MAX_CHECKPOINT_BYTES as u64;

/// Checks a file of records with what lies beside it into the report.
pub(in crate::evidence) fn check(
    path: &Path,
    beside: &Path,
    trust: &Trust,
    report: &mut Report,
    progress: &mut dyn FnMut(Progress),
) {
    report.subject = Subject::Lines;
    let unreadable = |path: &Path, error: &io::Error| {
        Fault::new(FaultKind::Unreadable, format!("{}: {error}", path.display()))
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return report.fault(unreadable(path, &error)),
    };
    let mut bytes = Vec::new();
    let read = File::open(beside).and_then(|file| file.take(MAX_PROOF_FILE_BYTES).read_to_end(&mut bytes));
    if let Err(error) = read {
        return report.fault(unreadable(beside, &error));
    }
    let broken = |detail: String| Fault::new(FaultKind::PackDamaged, detail);
    let beside: ProofFile = match serde_json::from_slice(&bytes) {
        Ok(beside) => beside,
        Err(error) => return report.fault(broken(format!("{}: {error}", beside.display()))),
    };
    let signed = match SignedCheckpoint::parse(beside.checkpoint.as_bytes()) {
        Ok(signed) => signed,
        Err(error) => return report.fault(broken(format!("checkpoint: {error}"))),
    };
    let own_key = beside.log_key.parse().ok();
    let head = signed.checkpoint();
    let fits = beside.format == FORMAT
        && beside.verify == VERIFY
        && beside.encode() == bytes
        && beside.checkpoint_sha256 == sum(&beside.checkpoint)
        && own_key.is_some()
        && beside.origin == head.origin()
        && beside.tree_size == head.size()
        && beside.root == head.root().to_string();
    if !fits {
        report.fault(broken(format!(
            "the file beside the lines is not one of {FORMAT}, or not of its checkpoint"
        )));
    }
    let selection = Selection { scope: beside.scope.clone(), time: beside.time };
    let check = Check::begin(&signed, selection, own_key, trust, report);
    check_lines(BufReader::new(file), &beside, check, progress);
}

fn check_lines(
    input: BufReader<File>,
    beside: &ProofFile,
    mut check: Check<'_>,
    progress: &mut dyn FnMut(Progress),
) {
    let broken = |detail: String| Fault::new(FaultKind::PackDamaged, detail);
    let mut lines = LineReader::new(input);
    let mut renderer = Renderer::new(beside.rendering, &beside.origin);
    let (mut done, mut last) = (0, None);
    loop {
        let line = match lines.next_line() {
            Ok("") => break,
            Ok(line) => line,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return check.report.fault(broken(format!("line {} is no text", done + 1)));
            }
            Err(error) => return check.report.fault(Fault::new(FaultKind::Unreadable, error.to_string())),
        };
        done += 1;
        let Claim { index, entry, proof } = match Claim::read(beside.rendering, line) {
            Ok(claim) => claim,
            Err(detail) => return check.report.fault(broken(format!("line {done}: {detail}"))),
        };
        if last.is_some_and(|last| index <= last) {
            return check.report.fault(broken(format!("line {done} is out of order")).at(index, ""));
        }
        last = Some(index);
        if renderer.line(index, &entry, &leaf_hash(&entry), &proof).as_deref() != Some(line) {
            let detail = format!("line {done} is not what its entry, index and proof render to");
            check.report.fault(broken(detail).at(index, ""));
        }
        check.entry(index, &entry, Ok(Some(proof)));
        progress(Progress { done, total: beside.entries.unwrap_or(done) });
        if check.report.is_full() {
            check.report.note("the check stopped early: nothing is said about what follows");
            return;
        }
    }
    match beside.entries {
        Some(entries) if entries == done => {}
        Some(entries) => {
            check.report.fault(broken(format!("there have to be {entries} lines and there are {done}")));
        }
        None => check.report.fault(broken("it was never finished".into())),
    }
    check.finish();
}
