//! The checkpoints of a log that was scanned: signed by a key that its own entries had enrolled by then, and continued by its tree.
//!
//! Left out: checkpoints of selected entries (`selection`). Invariant: no key counts that does not come, by the log's
//! own control records, from the one that the caller trusts; without one, from the genesis.

use exchequer_tlog::{NoteVerifyError, SignedCheckpoint, TrustError, VerifierKey};

use super::{
    keys::{LedgerKeys, Signed, verify_signatures},
    log::Scanned,
    report::{Fault, FaultKind, Report},
    saved::Saved,
    verify::{OWN_WORD, Trust, check_continues, not_this_logs, note_signatures},
};

/// Checks the log's checkpoint and the saved ones into the report.
pub(super) fn check(signed: &SignedCheckpoint, trust: &Trust, scanned: &Scanned, report: &mut Report) {
    let head = signed.checkpoint();
    report.origin = Some(head.origin().to_owned());
    report.tree_size = Some(head.size());
    report.root = Some(head.root().to_string());
    let ledger = scanned.records.keys();
    let Some(key) = trust.key.clone().or_else(|| ledger.first()) else {
        let detail = "no key was given, and the first entries name none";
        return report.fault(Fault::new(FaultKind::BadInput, detail));
    };
    report.key = Some(key.to_string());
    if !report.key_given {
        report.note(OWN_WORD);
    }
    let keys = ledger.reached_from(&key);
    let audited = scanned.audited() && head.size() > 0;
    match verify_signatures(signed, key.name(), &keys) {
        Ok(by) => {
            note_signatures(signed, &by, trust.witnesses.as_ref(), report);
            report.signed_by = by.by.first().filter(|by| **by != key).map(ToString::to_string);
            if audited && let Some(fault) = not_valid("the checkpoint", &by, head.size(), ledger) {
                report.fault(fault);
            }
        }
        Err(error) => report.fault(not_signed(&error, scanned)),
    }
    if audited && ledger.origin() != key.name() {
        let detail = "the genesis names another origin than the checkpoint";
        report.fault(Fault::new(FaultKind::LedgerKey, detail).hashes(key.name(), ledger.origin()));
    }
    for (saved, verified) in trust.checkpoints.iter().zip(verify_all(&trust.checkpoints, key.name(), &keys)) {
        check_saved(saved, verified, signed, scanned, report);
    }
}

fn check_saved(
    saved: &Saved,
    verified: Result<Signed, TrustError>,
    head: &SignedCheckpoint,
    scanned: &Scanned,
    report: &mut Report,
) {
    let earlier = saved.signed.checkpoint();
    let by = match verified {
        Ok(by) => by,
        Err(error) => return report.fault(not_this_logs(&saved.from, &error, report.key_given)),
    };
    let what = format!("the saved checkpoint {}", saved.from);
    if !check_continues(&what, earlier, head.checkpoint(), scanned, report) {
        return;
    }
    if scanned.audited()
        && earlier.size() > 0
        && let Some(fault) = not_valid(&what, &by, earlier.size(), scanned.records.keys())
    {
        return report.fault(fault);
    }
    report.checked.checkpoints += 1;
    report.continues_size = report.continues_size.max(Some(earlier.size()));
}

/// The fault of a checkpoint none of whose signers was enrolled and unrevoked at its size.
fn not_valid(what: &str, by: &Signed, size: u64, ledger: &LedgerKeys) -> Option<Fault> {
    if by.by.iter().any(|key| ledger.may_sign(key.public_key(), size)) {
        return None;
    }
    let place = by.by.iter().find_map(|key| ledger.find(key.public_key()));
    let detail = match place.map(|key| (key.enrolled_at, key.revoked_at)) {
        None => format!("{what} is signed by a key that is no ledger key that this log enrolled"),
        Some((_, Some(revoked))) if revoked < size => {
            format!("{what}, of {size} entries, is signed by a ledger key that entry {revoked} revoked")
        }
        Some((enrolled, _)) => {
            format!(
                "{what}, of {size} entries, is signed by a ledger key that only entry {enrolled} enrolled"
            )
        }
    };
    Some(Fault::new(FaultKind::LedgerKey, detail))
}

/// The fault of a checkpoint that no known key signed. Whose keys are not all known can't call it forged.
fn not_signed(error: &TrustError, scanned: &Scanned) -> Fault {
    let is_unknown = matches!(error, TrustError::NotByLog | TrustError::Note(NoteVerifyError::NoKnownKey));
    if is_unknown && !scanned.audited() {
        let detail = format!(
            "checkpoint: {error}; a later key could have been enrolled by records that could not be audited"
        );
        return Fault::new(FaultKind::Missing, detail);
    }
    Fault::new(FaultKind::CheckpointSignature, format!("checkpoint: {error}"))
}

/// Verifies the signatures of many checkpoints, on all cores.
fn verify_all(saved: &[Saved], origin: &str, keys: &[VerifierKey]) -> Vec<Result<Signed, TrustError>> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let part = saved.len().div_ceil(threads).max(1);
    let verify = |part: &[Saved]| -> Vec<_> {
        part.iter().map(|saved| verify_signatures(&saved.signed, origin, keys)).collect()
    };
    std::thread::scope(|scope| {
        let parts: Vec<_> = saved.chunks(part).map(|part| scope.spawn(move || verify(part))).collect();
        parts
            .into_iter()
            .flat_map(|part| part.join().expect("verifying a signature does not panic"))
            .collect()
    })
}
