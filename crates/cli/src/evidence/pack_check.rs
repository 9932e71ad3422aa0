//! Checking an evidence pack.
//!
//! Left out: the format (`pack`), and what has to hold of the entries (`selection`). Invariant: one entry is in memory.

use std::{fs::File, io::BufReader, path::Path};

use exchequer_tlog::{Hash, SignedCheckpoint, TlogProof};
use prost::bytes::Bytes;

use super::{
    pack::{Manifest, PackReader, Pair, ReadError, Selection},
    report::{Fault, FaultKind, Report},
    selection::Check,
    verify::{Progress, Trust},
};

/// Checks a pack file into the report.
pub(super) fn check(path: &Path, trust: &Trust, report: &mut Report, progress: &mut dyn FnMut(Progress)) {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return report.fault(Fault::new(FaultKind::Unreadable, error.to_string())),
    };
    match PackReader::open(BufReader::new(file)) {
        Ok(pack) => check_pack(pack, trust, report, progress),
        Err(error) => report.fault(read_fault(&error)),
    }
}

fn read_fault(error: &ReadError) -> Fault {
    let kind = match error {
        ReadError::Io(_) => FaultKind::Unreadable,
        ReadError::NotAPack => FaultKind::BadInput,
        ReadError::Damaged { .. } => FaultKind::PackDamaged,
    };
    let fault = Fault::new(kind, error.to_string());
    match error {
        ReadError::Damaged { index: Some(index), .. } => fault.at(*index, ""),
        _ => fault,
    }
}

fn check_pack(
    mut pack: PackReader<BufReader<File>>,
    trust: &Trust,
    report: &mut Report,
    progress: &mut dyn FnMut(Progress),
) {
    let manifest: Manifest = pack.manifest().clone();
    let broken = |detail: String| Fault::new(FaultKind::PackDamaged, detail);
    let signed = match SignedCheckpoint::parse(pack.checkpoint()) {
        Ok(signed) => signed,
        Err(error) => return report.fault(broken(format!("checkpoint: {error}"))),
    };
    let own_key = pack.vkey().parse().ok();
    if own_key.is_none() {
        report.fault(broken("log.vkey is no verifier key".into()));
    }
    let head = signed.checkpoint();
    if manifest.origin != head.origin()
        || manifest.tree_size != head.size()
        || manifest.root != head.root().to_string()
    {
        report.fault(broken("manifest.json names another tree than the checkpoint".into()));
    }
    let selection = Selection { scope: manifest.scope, time: manifest.time };
    let note = signed.to_string();
    let mut check = Check::begin(&signed, selection, own_key, trust, report);
    let mut done = 0;
    loop {
        match pack.next_pair() {
            Ok(Some(Pair { index, entry, proof })) => {
                let proof = proof.map(|proof| read_proof(index, &proof, &note)).transpose();
                check.entry(index, &Bytes::from(entry), proof);
            }
            Ok(None) => break,
            Err(error) => {
                check.report.fault(read_fault(&error));
                return;
            }
        }
        done += 1;
        progress(Progress { done, total: manifest.entries });
        if check.report.is_full() {
            check.report.note("the check stopped early: nothing is said about what follows");
            return;
        }
    }
    check.finish();
}

fn read_proof(index: u64, proof: &[u8], note: &str) -> Result<Vec<Hash>, String> {
    let proof = TlogProof::parse(proof).map_err(|error| error.to_string())?;
    if proof.index() != index || !proof.extra().is_empty() {
        return Err("it is for another entry, or has further data".into());
    }
    if proof.checkpoint().to_string() != note {
        return Err("its checkpoint is not the pack's".into());
    }
    Ok(proof.hashes().to_vec())
}
