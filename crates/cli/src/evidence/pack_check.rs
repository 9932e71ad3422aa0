//! Checking an evidence pack: every entry is in the signed tree, every record stands under a signed seal, and nothing else is there.
//!
//! Left out: the format (`pack`). Invariant: one seal and one entry are in memory.

use std::{fs::File, io::BufReader, path::Path};

use exchequer_event::{
    audit::{Auditor, check_sealed_batch, check_sealed_block},
    digest::{Digest, Purpose},
    entry,
    seal::{self, Refusal},
    v1::{self, KeyRole, entry::Kind},
};
use exchequer_tlog::{
    Checkpoint, ProofInvalid, SignedCheckpoint, TlogProof, VerifierKey, leaf_hash, verify_inclusion,
};
use prost::bytes::Bytes;

use super::{
    pack::{PackReader, Pair, ReadError, Scope},
    records::describe,
    report::{Fault, FaultKind, Report},
    verify::{Progress, Trust, check_checkpoint, check_ledger_key, trusted_checkpoints},
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
    let manifest = pack.manifest().clone();
    report.scope = Some(manifest.scope.clone());
    if trust.since.is_some() {
        report.fault(Fault::new(FaultKind::BadInput, "a pack is always verified as a whole"));
    }
    let broken = |detail: String| Fault::new(FaultKind::PackDamaged, detail);
    let signed = match SignedCheckpoint::parse(pack.checkpoint()) {
        Ok(signed) => signed,
        Err(error) => return report.fault(broken(format!("checkpoint: {error}"))),
    };
    let head = signed.checkpoint().clone();
    let own_key: Option<VerifierKey> = pack.vkey().parse().ok();
    if own_key.is_none() {
        report.fault(broken("log.vkey is no verifier key".into()));
    }
    if manifest.origin != head.origin()
        || manifest.tree_size != head.size()
        || manifest.root != head.root().to_string()
    {
        report.fault(broken("manifest.json names another tree than the checkpoint".into()));
    }
    let key = trust.key.clone().or(own_key);
    check_checkpoint(&signed, key.as_ref(), trust.witnesses.as_ref(), report);
    for earlier in trusted_checkpoints(trust, key.as_ref(), report) {
        check_same_tree(&earlier, &head, report);
    }
    let mut check = Check {
        report,
        scope: manifest.scope,
        note: signed.to_string(),
        head,
        auditor: Auditor::new(),
        seal: None,
        next_in_range: None,
    };
    if let Scope::Range { first, .. } = check.scope {
        check.next_in_range = Some(first);
    }
    let mut done = 0;
    loop {
        match pack.next_pair() {
            Ok(Some(pair)) => check.pair(pair),
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
    check.finish(key.as_ref());
}

fn check_same_tree(earlier: &Checkpoint, head: &Checkpoint, report: &mut Report) {
    if earlier.size() != head.size() {
        let detail = format!(
            "a pack does not hold what shows that its tree of {} entries and the trusted one of {} continue each other; \
             give the log's directory or URL for that",
            head.size(),
            earlier.size()
        );
        report.fault(Fault::new(FaultKind::BadInput, detail));
    } else if earlier.root() == head.root() {
        report.continues_size = Some(earlier.size());
        report.checked.checkpoints += 1;
    } else {
        let detail = "the trusted checkpoint has another root for the same size";
        report.fault(Fault::new(FaultKind::Inconsistent, detail).hashes(earlier.root(), head.root()));
    }
}

/// The seal that the next records may stand under.
struct Seal {
    index: u64,
    stream_seq: u64,
    purpose: Purpose,
    /// Digests of the records that follow, in order.
    digests: Vec<Digest>,
    /// Agent, epoch and seq of the first record that follows, for a batch.
    first: Option<(String, u64, u64)>,
    used: bool,
}

struct Check<'a> {
    report: &'a mut Report,
    scope: Scope,
    note: String,
    head: Checkpoint,
    /// Folds the control records alone: it says which key was enrolled when.
    auditor: Auditor,
    seal: Option<Seal>,
    next_in_range: Option<u64>,
}

impl Check<'_> {
    fn pair(&mut self, pair: Pair) {
        let Pair { index, entry: bytes, proof } = pair;
        let bytes = Bytes::from(bytes);
        self.report.checked.entries += 1;
        let decoded = entry::decode(&bytes);
        let what = decoded.as_ref().map_or_else(|_| "can't be decoded".to_owned(), describe);
        let mut sound = true;
        if let Some(fault) = self.check_proof(index, &bytes, &proof) {
            self.report.fault(fault.at(index, what.clone()));
            sound = false;
        } else {
            self.report.checked.proofs += 1;
        }
        self.check_range(index);
        let checked = decoded.map_err(Found::from).and_then(|entry| self.check_entry(index, &entry));
        if let Err(Found { kind, detail }) = checked
            // An entry that is not the signed one has been reported as that.
            && sound
        {
            self.report.fault(Fault::new(kind, detail).at(index, what));
        }
    }

    fn check_proof(&self, index: u64, entry: &[u8], proof: &[u8]) -> Option<Fault> {
        let broken = |detail: String| Some(Fault::new(FaultKind::PackDamaged, format!("proof: {detail}")));
        let proof = match TlogProof::parse(proof) {
            Ok(proof) => proof,
            Err(error) => return broken(error.to_string()),
        };
        if proof.index() != index || !proof.extra().is_empty() {
            return broken("it is for another entry, or has further data".into());
        }
        if proof.checkpoint().to_string() != self.note {
            return broken("its checkpoint is not the pack's".into());
        }
        let leaf = leaf_hash(entry);
        match verify_inclusion(&leaf, index, self.head.size(), proof.hashes(), self.head.root()) {
            Ok(()) => None,
            Err(ProofInvalid::Root { expected, computed }) => {
                let detail =
                    "the entry and its proof do not lead to the signed root: one of them was changed";
                Some(Fault::new(FaultKind::Inclusion, detail).hashes(expected, computed))
            }
            Err(error) => Some(Fault::new(FaultKind::Inclusion, error.to_string())),
        }
    }

    /// In a pack of a range no entry of the range may be missing.
    fn check_range(&mut self, index: u64) {
        let (Scope::Range { first, end }, Some(next)) = (&self.scope, self.next_in_range) else {
            return;
        };
        if (*first..*end).contains(&index) {
            if index > next {
                let detail = format!("entries {next} up to {index} of the range are not in the pack");
                self.report.fault(Fault::new(FaultKind::PackDamaged, detail));
            }
            self.next_in_range = Some(index + 1);
        }
    }

    fn check_entry(&mut self, index: u64, entry: &v1::Entry) -> Result<(), Found> {
        let foreign = |detail: &str| Err(Found { kind: FaultKind::ForeignEntry, detail: detail.into() });
        match &entry.kind {
            Some(Kind::Control(_)) => Ok(self.auditor.check(entry)?),
            Some(Kind::BatchSealed(sealed)) => {
                self.close_seal();
                let batch = check_sealed_batch(sealed)?;
                if !self.auditor.acceptor().may_sign(KeyRole::Agent, &batch.agent_id, &batch.key) {
                    return Err(Found::record("the batch's key was not enrolled here, or revoked"));
                }
                self.report.checked.signatures += 1;
                let skipped = u64::from(sealed.skipped);
                self.seal = Some(Seal {
                    index,
                    stream_seq: entry.stream_seq,
                    purpose: Purpose::Event,
                    digests: batch.digests.into_iter().skip(sealed.skipped as usize).collect(),
                    first: Some((batch.agent_id, batch.epoch, batch.first_seq.saturating_add(skipped))),
                    used: false,
                });
                Ok(())
            }
            Some(Kind::BlockSealed(sealed)) => {
                self.close_seal();
                let (digests, key) = check_sealed_block(sealed)?;
                let mut keys = self.auditor.acceptor().keys().iter();
                if !keys.any(|k| k.role == KeyRole::Metering && !k.revoked && k.key == key) {
                    return Err(Found::record("the block's key was not enrolled here, or revoked"));
                }
                self.report.checked.signatures += 1;
                self.seal = Some(Seal {
                    index,
                    stream_seq: entry.stream_seq,
                    purpose: Purpose::DecisionRun,
                    digests,
                    first: None,
                    used: false,
                });
                Ok(())
            }
            Some(Kind::Event(bytes)) => {
                let place = self.under_seal(index, entry.stream_seq, Purpose::Event, bytes)?;
                let event = seal::decode_event(bytes)?;
                let first = self.seal.as_ref().and_then(|seal| seal.first.as_ref());
                if first.is_none_or(|(agent, epoch, seq)| {
                    event.agent_id != *agent
                        || event.epoch != *epoch
                        || event.seq != seq.saturating_add(place)
                }) {
                    return Err(Found::record("agent, epoch or seq is not the seal's"));
                }
                self.report.checked.events += 1;
                match &self.scope {
                    Scope::Tenant(tenant) if event.tenant != *tenant => {
                        foreign("the event is not the tenant's")
                    }
                    _ => Ok(()),
                }
            }
            Some(Kind::DecisionRun(bytes)) => {
                self.under_seal(index, entry.stream_seq, Purpose::DecisionRun, bytes)?;
                let run = seal::decode_run(bytes)?;
                self.report.checked.decision_runs += 1;
                match &self.scope {
                    Scope::Tenant(tenant) if run.tenant != *tenant => {
                        foreign("the decision run is not the tenant's")
                    }
                    _ => Ok(()),
                }
            }
            Some(Kind::Rejection(_) | Kind::Equivocation(_)) => match &self.scope {
                Scope::Tenant(_) => foreign("rejections and equivocations belong to no tenant"),
                Scope::Range { .. } => Ok(()),
            },
            None => Err(Found::record("the entry has no kind")),
        }
    }

    /// Checks that a record is the one that the seal before it promises at its place, and returns that place.
    fn under_seal(
        &mut self,
        index: u64,
        stream_seq: u64,
        purpose: Purpose,
        bytes: &[u8],
    ) -> Result<u64, Found> {
        let seal = self.seal.as_mut().filter(|seal| seal.purpose == purpose && seal.stream_seq == stream_seq);
        let seal = seal.ok_or_else(|| Found::record("the seal that it stands under is not in the pack"))?;
        let place = index - seal.index - 1;
        let promised = usize::try_from(place).ok().and_then(|place| seal.digests.get(place));
        if promised != Some(&purpose.digest(bytes)) {
            return Err(Found::record(
                "the record is not the one that the seal before it promises at its place",
            ));
        }
        seal.used = true;
        Ok(place)
    }

    /// A seal has nothing to do in a tenant's pack unless something of the tenant stands under it.
    fn close_seal(&mut self) {
        if let (Some(seal), Scope::Tenant(_)) = (self.seal.take(), &self.scope)
            && !seal.used
        {
            let detail = "no record of the tenant stands under this seal in the pack";
            self.report.fault(Fault::new(FaultKind::PackDamaged, detail).at(seal.index, "seal"));
        }
    }

    fn finish(mut self, key: Option<&VerifierKey>) {
        self.close_seal();
        let report = self.report;
        report.checked.signatures += self.auditor.counts().signatures;
        if let (Scope::Range { end, .. }, Some(next)) = (&self.scope, self.next_in_range)
            && next < *end
        {
            let detail = format!("entries {next} up to {end} of the range are not in the pack");
            report.fault(Fault::new(FaultKind::PackDamaged, detail));
        }
        check_ledger_key(key, self.auditor.acceptor(), report);
        if let Scope::Tenant(_) = &self.scope {
            report.note(
                "a tenant's pack shows that what it holds is in the log; it does not show that nothing of the tenant was left out",
            );
        }
    }
}

/// What is wrong with a record.
struct Found {
    kind: FaultKind,
    detail: String,
}

impl Found {
    fn record(detail: &str) -> Self {
        Self { kind: FaultKind::Record, detail: detail.into() }
    }
}

impl From<Refusal> for Found {
    fn from(refusal: Refusal) -> Self {
        Self { kind: FaultKind::Record, detail: refusal.to_string() }
    }
}
