//! Checking selected entries of a log: each is in the signed tree, each record stands under a signed seal, a range is whole, and
//! nothing else is there.
//!
//! Left out: the format that they come in. Invariant: one seal and one entry are in memory.

use exchequer_event::{
    audit::{Auditor, check_sealed_batch, check_sealed_block},
    control::open_control,
    digest::{Digest, Purpose},
    entry,
    seal::{self, Refusal},
    v1::{self, KeyRole, entry::Kind},
};
use exchequer_tlog::{
    Checkpoint, Hash, ProofInvalid, RangeCheck, SignedCheckpoint, VerifierKey, leaf_hash, verify_inclusion,
};
use prost::bytes::Bytes;

use super::{
    keys::LedgerKeys,
    pack::{Scope, Selection, TimeRange},
    records::describe,
    report::{Fault, FaultKind, RangeRoots, Report},
    verify::{Trust, check_checkpoint, check_ledger_key, trusted_checkpoints},
};

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
    /// The writer's clock, for a block.
    time_unix_ms: Option<u64>,
    used: bool,
}

/// The check of one selection.
pub(super) struct Check<'a> {
    pub(super) report: &'a mut Report,
    scope: Scope,
    time: Option<TimeRange>,
    /// The key that the caller trusts.
    trusted: Option<VerifierKey>,
    /// The key that signed the checkpoint.
    signer: Option<VerifierKey>,
    head: Checkpoint,
    /// Folds the control records alone: it says which key was enrolled when.
    auditor: Auditor,
    /// The ledger's keys by these control records.
    keys: LedgerKeys,
    seal: Option<Seal>,
    next_in_range: Option<u64>,
    range: Option<RangeCheck>,
}

/// What comes with an entry: its proof, none for one that the range proves, or what is wrong with it.
pub(super) type Proof = Result<Option<Vec<Hash>>, String>;

impl<'a> Check<'a> {
    /// Begins with the checkpoint, which `own_key` signed by the word of whoever selected.
    pub(super) fn begin(
        signed: &SignedCheckpoint,
        selection: Selection,
        own_key: Option<VerifierKey>,
        trust: &Trust,
        report: &'a mut Report,
    ) -> Self {
        let head = signed.checkpoint().clone();
        let trusted = trust.key.clone();
        // A key of the same log is followed to from the trusted one when the control records have been read.
        let signer = match (own_key, &trusted) {
            (own, None) => own,
            (Some(own), Some(trusted)) if own.name() == trusted.name() => Some(own),
            (_, Some(trusted)) => Some(trusted.clone()),
        };
        if trust.since.is_some() {
            report.fault(Fault::new(FaultKind::BadInput, "a pack is always verified as a whole"));
        }
        check_checkpoint(signed, signer.as_ref(), trust.witnesses.as_ref(), report);
        if let Some(trusted) = &trusted {
            report.key = Some(trusted.to_string());
        }
        for earlier in trusted_checkpoints(trust, signer.as_ref(), report) {
            check_same_tree(&earlier, &head, report);
        }
        report.scope = Some(selection.scope.clone());
        report.time = selection.time;
        let next_in_range = match selection.scope {
            Scope::Range { first, .. } => Some(first),
            Scope::Tenant(_) => None,
        };
        Self {
            report,
            scope: selection.scope,
            time: selection.time,
            trusted,
            signer,
            head,
            auditor: Auditor::new(),
            keys: LedgerKeys::default(),
            seal: None,
            next_in_range,
            range: None,
        }
    }

    /// The next entry.
    pub(super) fn entry(&mut self, index: u64, bytes: &Bytes, proof: Proof) {
        self.report.checked.entries += 1;
        let decoded = entry::decode(bytes);
        let what = decoded.as_ref().map_or_else(|_| "can't be decoded".to_owned(), describe);
        let leaf = leaf_hash(bytes);
        let mut sound = true;
        match &proof {
            Ok(None) => {}
            Ok(Some(hashes)) => match self.check_proof(index, &leaf, hashes) {
                Some(fault) => {
                    self.report.fault(fault.at(index, what.clone()));
                    sound = false;
                }
                None => self.report.checked.proofs += 1,
            },
            Err(detail) => {
                let fault = Fault::new(FaultKind::PackDamaged, format!("proof: {detail}"));
                self.report.fault(fault.at(index, what.clone()));
                sound = false;
            }
        }
        self.check_range(index, leaf, proof.ok().flatten());
        let checked = decoded.map_err(Found::from).and_then(|entry| self.check_entry(index, &entry));
        if let Err(Found { kind, detail }) = checked
            // An entry that is not the signed one has been reported as that.
            && sound
        {
            self.report.fault(Fault::new(kind, detail).at(index, what));
        }
    }

    fn check_proof(&self, index: u64, leaf: &Hash, hashes: &[Hash]) -> Option<Fault> {
        match verify_inclusion(leaf, index, self.head.size(), hashes, self.head.root()) {
            Ok(()) => None,
            Err(ProofInvalid::Root { expected, computed }) => {
                let detail =
                    "the entry and its proof do not lead to the signed root: one of them was changed";
                Some(Fault::new(FaultKind::Inclusion, detail).hashes(expected, computed))
            }
            Err(error) => Some(Fault::new(FaultKind::Inclusion, error.to_string())),
        }
    }

    /// In a range no entry may be missing, and all of them lead with the proofs of the first and the last to the signed root.
    fn check_range(&mut self, index: u64, leaf: Hash, proof: Option<Vec<Hash>>) {
        let (Scope::Range { first, end }, Some(next)) = (&self.scope, self.next_in_range) else {
            return;
        };
        if !(*first..*end).contains(&index) {
            return;
        }
        if index > next {
            let detail = format!("entries {next} up to {index} of the range are not in the pack");
            self.report.fault(Fault::new(FaultKind::PackDamaged, detail));
            self.range = None;
        }
        self.next_in_range = Some(index + 1);
        if index == *first {
            self.range =
                proof.as_ref().and_then(|proof| RangeCheck::new(self.head.size(), index, proof).ok());
        }
        let Some(range) = &mut self.range else { return };
        range.push(leaf);
        if index + 1 != *end {
            return;
        }
        match proof.as_ref().map(|proof| range.root(proof)) {
            Some(Ok(root)) if root == *self.head.root() => {
                self.report.range_roots = Some(RangeRoots::of(range));
            }
            Some(Ok(root)) => {
                let detail = format!(
                    "entries {first} up to {end} do not lead to the signed root: one of them that has no proof of its own was changed"
                );
                self.report.fault(Fault::new(FaultKind::RootMismatch, detail).hashes(self.head.root(), root));
            }
            // Without a proof that can be used the fault has been reported at the entry.
            Some(Err(_)) | None => {}
        }
    }

    /// Whether a time is one that the selection is about.
    fn is_timely(&self, unix_ms: Option<u64>) -> bool {
        self.time.is_none_or(|time| unix_ms.is_some_and(|ms| time.contains(ms)))
    }

    fn check_entry(&mut self, index: u64, entry: &v1::Entry) -> Result<(), Found> {
        let foreign = |detail: &str| Err(Found { kind: FaultKind::ForeignEntry, detail: detail.into() });
        match &entry.kind {
            Some(Kind::Control(record)) => {
                self.auditor.check(entry)?;
                self.keys.take(index, &open_control(record)?);
                Ok(())
            }
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
                    time_unix_ms: None,
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
                    time_unix_ms: seal::read_block_seal(&sealed.seal)
                        .ok()
                        .map(|(place, ..)| place.now_unix_ms),
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
                    Scope::Tenant(_) if !self.is_timely(Some(event.time_unix_ms)) => {
                        foreign("the event is not of the time that was selected")
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
                    Scope::Tenant(_)
                        if !self.is_timely(self.seal.as_ref().and_then(|seal| seal.time_unix_ms)) =>
                    {
                        foreign("the decision run's block is not of the time that was selected")
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

    /// After the last entry: what is checked of all of them, and what is to be said of such a selection.
    pub(super) fn finish(self) {
        let (scope, time) = (self.scope.clone(), self.time);
        let report = self.close();
        if let (Scope::Range { .. }, Some(_)) = (&scope, time) {
            report.note(
                "every entry of the range is here; the range was chosen by the authors' clocks, and an entry outside of it whose author \
                 claims a time within is not ruled out",
            );
        }
        if let Scope::Tenant(_) = &scope {
            report.note(
                "a tenant's pack shows that what it holds is in the log; it does not show that nothing of the tenant was left out",
            );
        }
    }

    /// After the last entry: what is checked of all of them.
    pub(super) fn close(mut self) -> &'a mut Report {
        self.close_seal();
        let report = self.report;
        report.checked.signatures += self.auditor.counts().signatures;
        if let (Scope::Range { end, .. }, Some(next)) = (&self.scope, self.next_in_range)
            && next < *end
        {
            let detail = format!("entries {next} up to {end} of the range are not in the pack");
            report.fault(Fault::new(FaultKind::PackDamaged, detail));
        }
        check_ledger_key(self.signer.as_ref(), self.auditor.acceptor(), report);
        if let (Some(trusted), Some(signer)) = (&self.trusted, &self.signer)
            && trusted != signer
        {
            if self.keys.reached_from(trusted).contains(signer) {
                report.signed_by = Some(signer.to_string());
            } else {
                let detail = "checkpoint: it is signed by another key, which no control record here leads to from the given one";
                report.fault(Fault::new(FaultKind::CheckpointSignature, detail));
            }
        }
        report
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
