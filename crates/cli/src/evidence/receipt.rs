//! A receipt: one decision of metering, or what was decided of one hold in one block, with everything that shows it to be so, in one
//! file that a stranger checks with nothing but the log's verifier key.
//!
//! The file is JSON ([`Receipt`]): the signed checkpoint; the control records that enrolled the ledger's keys and the key that signed
//! the block, with every revocation of them that the log had; the block's seal; the decision run. Each entry comes as its exact bytes
//! with its inclusion proof. Refusals are decisions too.
//!
//! [`fetch::fetch`] makes one from a ledger's answers, `check` checks one. Left out: what is not selected, so that a receipt shows that
//! something was decided and not that nothing else was. Invariant: there is exactly one sequence of bytes for the same content.

pub mod fetch;

use std::{fs::File, io::Read as _, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use exchequer_event::{
    control::open_control,
    entry, seal,
    v1::{self, KeyRole, budget_event, control_record, entry::Kind},
};
use exchequer_tlog::{Hash, SignedCheckpoint};
use prost::bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    pack::{Scope, Selection},
    report::{Decided, Fault, FaultKind, Report, Subject},
    selection::Check,
    verify::Trust,
};
use crate::describe;

/// Name and version of the format.
pub const FORMAT: &str = "exchequer-decision-receipt/v1";

/// Largest file that is read: two entries of the largest size and some hundreds of control records, in base64 with their proofs.
const MAX_RECEIPT_BYTES: usize = 4 << 20;
const VERIFY: &str = "`exchequer budget receipt --verify FILE --vkey VKEY` checks it. By hand: check that `checkpoint` is signed by log_key \
                      (c2sp.org/tlog-checkpoint) and that the key is the one you know the log by; for each entry hash a zero byte and its \
                      bytes with SHA-256, and check the inclusion proof (RFC 6962) of that leaf. Each entry is an exchequer.v1.Entry: the \
                      decision run's digest is among those of the block seal before it, whose signature is by a metering key that a \
                      control record before it enrolled and none before it revoked.";

/// What a receipt is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum About {
    /// The decision that answered this idempotency key.
    IdempotencyKey(String),
    /// Every decision of the run that names this hold.
    HoldId(String),
}

impl About {
    /// Places of its decisions in a run.
    fn places(&self, run: &v1::DecisionRun) -> Vec<u32> {
        let is_it = |decision: &v1::Decision| match self {
            Self::IdempotencyKey(key) => !key.is_empty() && decision.idempotency_key == *key,
            Self::HoldId(hold) => {
                decision.events.iter().any(|event| event.kind.as_ref().and_then(hold_of) == Some(hold))
            }
        };
        let places = (0..).zip(&run.decisions).filter(|(_, decision)| is_it(decision));
        places.map(|(place, _)| place).collect()
    }

    fn describe(&self) -> String {
        match self {
            Self::IdempotencyKey(key) => format!("idempotency key {key:?}"),
            Self::HoldId(hold) => format!("hold {hold}"),
        }
    }
}

/// The hold that an event is about.
fn hold_of(kind: &budget_event::Kind) -> Option<&str> {
    use budget_event::Kind;
    let hold = match kind {
        Kind::HoldGranted(hold) => &hold.hold_id,
        Kind::HoldExtended(hold) => &hold.hold_id,
        Kind::HoldSettled(hold) => &hold.hold_id,
        Kind::HoldVoided(hold) => &hold.hold_id,
        Kind::HoldExpired(hold) => &hold.hold_id,
        Kind::HoldRevoked(hold) => &hold.hold_id,
        Kind::LeaseDrawn(hold) => &hold.hold_id,
        Kind::CommandRefused(refused) => &refused.hold_id,
        _ => return None,
    };
    (!hold.is_empty()).then_some(hold)
}

/// An entry of the log with its inclusion proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvenEntry {
    /// Its index in the log.
    pub index: u64,
    /// The leaf's bytes, base64.
    pub entry: String,
    /// Hashes from leaf to root, base64.
    pub proof: Vec<String>,
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// [`FORMAT`].
    pub format: String,
    /// The tenant whose decision it is.
    pub tenant: String,
    /// Stream sequence of the block, as the answer named it.
    pub stream_seq: u64,
    /// Which decisions.
    pub about: About,
    /// Their places in the run, from 0.
    pub places: Vec<u32>,
    /// The log's origin.
    pub origin: String,
    /// The log's verifier key.
    pub log_key: String,
    /// The signed checkpoint that all proofs lead to.
    pub checkpoint: String,
    /// SHA-256 of the checkpoint's text, hex: also a signature that nobody knows the key of is as it was.
    pub checkpoint_sha256: String,
    /// The entries, in log order.
    pub entries: Vec<ProvenEntry>,
    /// How to verify it.
    pub verify: String,
}

impl Receipt {
    /// A receipt of decisions of this run, of which and of whose seal and keys these are the entries.
    pub(super) fn new(
        checkpoint: &SignedCheckpoint,
        log_key: &str,
        about: About,
        (stream_seq, run): (u64, &v1::DecisionRun),
        entries: Vec<ProvenEntry>,
    ) -> Self {
        let text = checkpoint.to_string();
        Self {
            format: FORMAT.into(),
            tenant: run.tenant.clone(),
            stream_seq,
            places: about.places(run),
            about,
            origin: checkpoint.checkpoint().origin().into(),
            log_key: log_key.to_owned(),
            checkpoint_sha256: sum(&text),
            checkpoint: text,
            entries,
            verify: VERIFY.into(),
        }
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("it has nothing that JSON can't hold");
        bytes.push(b'\n');
        bytes
    }
}

fn sum(checkpoint: &str) -> String {
    hex::encode(Sha256::digest(checkpoint))
}

/// Whether a file begins as a receipt does.
pub(super) fn begins(path: &Path) -> bool {
    let expected = format!("{{\n  \"format\": \"{FORMAT}\"");
    let mut first = vec![0; expected.len()];
    File::open(path).and_then(|mut file| file.read_exact(&mut first)).is_ok() && first == expected.as_bytes()
}

/// Checks a receipt's file into the report.
pub(super) fn check(path: &Path, trust: &Trust, report: &mut Report) {
    report.subject = Subject::Receipt;
    let mut bytes = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(MAX_RECEIPT_BYTES as u64 + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => report.fault(Fault::new(FaultKind::Unreadable, error.to_string())),
        Ok(length) if length > MAX_RECEIPT_BYTES => {
            let detail = format!("it is longer than the {MAX_RECEIPT_BYTES} bytes that a receipt can have");
            report.fault(Fault::new(FaultKind::BadInput, detail));
        }
        Ok(_) => check_bytes(&bytes, trust, report),
    }
}

/// Checks a receipt's bytes into the report.
pub(super) fn check_bytes(bytes: &[u8], trust: &Trust, report: &mut Report) {
    report.subject = Subject::Receipt;
    let broken = |detail: String| Fault::new(FaultKind::ReceiptDamaged, detail);
    let receipt: Receipt = match serde_json::from_slice(bytes) {
        Ok(receipt) => receipt,
        Err(error) => {
            let is_one = bytes.first() == Some(&b'{') || find(bytes, FORMAT.as_bytes());
            let kind = if is_one { FaultKind::ReceiptDamaged } else { FaultKind::BadInput };
            return report.fault(Fault::new(kind, format!("it is no receipt of a decision: {error}")));
        }
    };
    let signed = match SignedCheckpoint::parse(receipt.checkpoint.as_bytes()) {
        Ok(signed) => signed,
        Err(error) => return report.fault(broken(format!("checkpoint: {error}"))),
    };
    let own_key = receipt.log_key.parse().ok();
    for (field, is_right) in [
        ("format is not one that is known here", receipt.format == FORMAT),
        ("verify is not the format's", receipt.verify == VERIFY),
        ("log_key is no verifier key", own_key.is_some()),
        ("origin is not the checkpoint's", receipt.origin == signed.checkpoint().origin()),
        ("checkpoint_sha256 is not the checkpoint's", receipt.checkpoint_sha256 == sum(&receipt.checkpoint)),
        ("the JSON is not written as a receipt's is", receipt.encode() == bytes),
    ] {
        if !is_right {
            report.fault(broken(field.into()));
        }
    }
    let selection = Selection::from(Scope::Tenant(receipt.tenant.clone()));
    let mut check = Check::begin(&signed, selection, own_key, trust, report);
    let mut shape = Shape::default();
    for proven in &receipt.entries {
        let index = proven.index;
        if shape.last.replace(index).is_some_and(|last| index <= last) {
            check.report.fault(broken("it is out of order".into()).at(index, ""));
            break;
        }
        let Ok(bytes) = BASE64.decode(&proven.entry).map(Bytes::from) else {
            check.report.fault(broken("its entry is no base64".into()).at(index, ""));
            continue;
        };
        let proof: Option<Vec<Hash>> = proven.proof.iter().map(|hash| hash.parse().ok()).collect();
        check.entry(index, &bytes, proof.map(Some).ok_or_else(|| "it has an unreadable hash".to_owned()));
        if !shape.take(&bytes) {
            let detail = "such an entry is in no receipt, or only once";
            check.report.fault(broken(detail.into()).at(index, ""));
        }
    }
    check.close();
    match shape.decided(&receipt) {
        Ok(decided) => report.decided = Some(decided),
        Err(detail) => report.fault(broken(detail)),
    }
    report.note(
        "that none but the revocations that are here came before the block is the word of whoever made the receipt, and of the ledger, which \
         takes no block of a revoked key; `verify` of the whole log shows it",
    );
}

fn find(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

/// What has to be in a receipt: control records, one seal, one run, in log order.
#[derive(Default)]
struct Shape {
    last: Option<u64>,
    seal: Option<v1::BlockSealed>,
    run: Option<(u64, v1::DecisionRun)>,
}

impl Shape {
    /// Takes an entry; whether it may be there.
    fn take(&mut self, bytes: &Bytes) -> bool {
        // What can't be decoded has been reported.
        let Ok(decoded) = entry::decode(bytes) else { return true };
        match decoded.kind {
            Some(Kind::Control(_)) => {}
            Some(Kind::BlockSealed(seal)) if self.seal.is_none() => self.seal = Some(seal),
            Some(Kind::DecisionRun(run)) if self.run.is_none() => {
                self.run = seal::decode_run(&run).ok().map(|run| (decoded.stream_seq, run));
            }
            _ => return false,
        }
        true
    }

    fn decided(&self, receipt: &Receipt) -> Result<Decided, String> {
        let (Some(seal), Some((stream_seq, run))) = (&self.seal, &self.run) else {
            return Err("it holds no decision run with its seal".into());
        };
        let (place, ..) = seal::read_block_seal(&seal.seal).map_err(|refusal| refusal.to_string())?;
        if *stream_seq != receipt.stream_seq {
            return Err(format!("stream_seq is not the decision run's, which is {stream_seq}"));
        }
        let places = receipt.about.places(run);
        if places.is_empty() || places != receipt.places {
            return Err(format!("the decisions about {} are not at these places", receipt.about.describe()));
        }
        let chosen = places.iter().filter_map(|place| run.decisions.get(usize::try_from(*place).ok()?));
        Ok(Decided {
            partition: place.partition,
            block: place.index,
            stream_seq: *stream_seq,
            time_unix_ms: place.now_unix_ms,
            about: receipt.about.describe(),
            lines: chosen.clone().map(describe::decision_text).collect(),
            decisions: chosen.map(|decision| describe::to_json("Decision", decision)).collect(),
        })
    }
}

/// Whether a control record is needed to check a block that this key signed.
fn concerns(signed: &v1::SignedControl, metering_key: &[u8]) -> bool {
    use control_record::Kind;
    let is_needed = |role: KeyRole, key: &[u8]| {
        role == KeyRole::Ledger || (role == KeyRole::Metering && key == metering_key)
    };
    match open_control(signed).map(|open| open.kind) {
        Ok(Kind::Genesis(_)) => true,
        Ok(Kind::KeyEnrolled(key)) => is_needed(key.role(), &key.public_key),
        Ok(Kind::KeyRevoked(key)) => is_needed(key.role(), &key.public_key),
        _ => false,
    }
}
