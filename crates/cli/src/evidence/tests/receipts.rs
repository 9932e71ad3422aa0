//! Receipts of decisions.

use std::fs;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use exchequer_event::v1::{self, KeyRole, budget_event, control_record::Kind};
use prost::bytes::Bytes;

use super::world::{Log, World, check, key, kinds, on_all_cores, trust, vkey};
use crate::evidence::{
    pack::Scope,
    receipt::{About, ProvenEntry, Receipt, check_bytes},
    report::{FaultKind as F, Report, Subject, Verdict},
    verify::{Target, Trust},
};

/// A control record of each kind that a receipt holds and one that it does not, then a block with runs of two tenants.
struct Case {
    world: World,
    run: v1::DecisionRun,
    stream_seq: u64,
}

/// Genesis, the metering key, the seal, the run of acme.
const NEEDED: [u64; 4] = [0, 1, 4, 6];

/// A receipt with these entries of a log, whether or not they are those that it needs.
fn of(log: &Log, about: About, (stream_seq, run): (u64, &v1::DecisionRun), indexes: &[u64]) -> Receipt {
    let entry = |index: &u64| ProvenEntry {
        index: *index,
        entry: STANDARD.encode(&log.entries[usize::try_from(*index).unwrap()]),
        proof: log.proof(*index).iter().map(ToString::to_string).collect(),
    };
    let entries = indexes.iter().map(entry).collect();
    Receipt::new(&log.signed_by(100), &vkey(100).to_string(), about, (stream_seq, run), entries)
}

fn decision(key: &str, kind: budget_event::Kind) -> v1::Decision {
    let events = vec![v1::BudgetEvent { kind: Some(kind) }];
    v1::Decision { idempotency_key: key.into(), actor: "agent-1".into(), events, ..v1::Decision::default() }
}

fn denied() -> v1::Decision {
    let denied = v1::HoldDenied {
        scope: "acme/x".into(),
        reason: v1::DenialReason::Exhausted.into(),
        binding_scope: "acme".into(),
        binding_meter: "invocations".into(),
        requested: 5,
        available: 2,
        ..v1::HoldDenied::default()
    };
    decision("k-denied", budget_event::Kind::HoldDenied(denied))
}

fn case() -> Case {
    let mut world = World::new();
    let granted = v1::HoldGranted { hold_id: "h1".into(), scope: "acme".into(), ..Default::default() };
    let voided = v1::HoldVoided { hold_id: "h1".into() };
    let run = v1::DecisionRun {
        tenant: "acme".into(),
        decisions: vec![
            decision("k-granted", budget_event::Kind::HoldGranted(granted)),
            denied(),
            decision("k-voided", budget_event::Kind::HoldVoided(voided)),
        ],
    };
    let other = v1::DecisionRun { tenant: "globex".into(), decisions: vec![denied()] };
    world.runs(1_795_309_323_456, vec![other, run.clone()]);
    let stream_seq = world.stream_seq();
    // The log goes on.
    world.runs(1_795_309_323_456, vec![v1::DecisionRun { tenant: "acme".into(), decisions: vec![denied()] }]);
    Case { world, run, stream_seq }
}

impl Case {
    fn log(&self) -> Log {
        self.world.log()
    }

    fn receipt(&self, about: About, indexes: &[u64]) -> Receipt {
        of(&self.log(), about, (self.stream_seq, &self.run), indexes)
    }

    fn denial(&self) -> Receipt {
        self.receipt(About::IdempotencyKey("k-denied".into()), &NEEDED)
    }
}

fn check_with(bytes: &[u8], trust: &Trust) -> Report {
    let mut report = Report::new(Subject::Receipt, "test");
    report.key_given = trust.key.is_some();
    check_bytes(bytes, trust, &mut report);
    report.finish()
}

fn found(receipt: &Receipt) -> Report {
    check_with(&receipt.encode(), &trust())
}

#[test]
fn a_receipt_of_a_denial_holds_and_says_what_was_denied() {
    let case = case();
    let report = found(&case.denial());
    assert_eq!(report.verdict, Verdict::Holds, "{report}");
    assert_eq!((report.checked.entries, report.checked.proofs, report.checked.signatures), (4, 4, 3));
    let text = report.to_string();
    for part in
        ["2026-11-22T01:02:03.456Z", "block 1 of partition 0", "acme has 2 of invocations left, 5 requested"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let decided = report.decided.unwrap();
    assert_eq!(decided.decisions[0]["events"][0]["hold_denied"]["reason"], "DENIAL_REASON_EXHAUSTED");
    assert!(!String::from_utf8(case.denial().encode()).unwrap().contains("globex"));
}

#[test]
fn a_receipt_of_a_hold_has_all_that_the_block_did_to_it() {
    let receipt = case().receipt(About::HoldId("h1".into()), &NEEDED);
    assert_eq!(receipt.places, [0, 2]);
    let report = found(&receipt);
    assert_eq!((report.verdict, report.decided.unwrap().lines.len()), (Verdict::Holds, 2));
}

#[test]
fn verify_tells_a_receipt_from_a_pack() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    fs::write(&path, case().denial().encode()).unwrap();
    for target in [Target::Pack(path.clone()), Target::Receipt(path.clone())] {
        let report = check(&target, &trust());
        assert_eq!((report.verdict, report.subject), (Verdict::Holds, Subject::Receipt), "{report}");
    }
    fs::write(&path, b"what?").unwrap();
    assert_eq!(check(&Target::Receipt(path), &trust()).verdict, Verdict::CouldNotCheck);
    assert_eq!(check(&Target::Receipt("/no/such".into()), &trust()).verdict, Verdict::CouldNotCheck);
}

#[test]
fn each_byte_of_a_receipt_is_covered() {
    let bytes = case().denial().encode();
    on_all_cores(bytes.len(), |_, at| {
        for bit in [1, 2, 0x20] {
            let mut changed = bytes.clone();
            changed[at] ^= bit;
            let report = check_with(&changed, &trust());
            assert_eq!(report.verdict, Verdict::Tampered, "byte {at}: {report}");
            assert!(report.decided.is_none());
        }
    });
    for length in 0..bytes.len() {
        assert!(check_with(&bytes[..length], &trust()).verdict != Verdict::Holds, "{length}");
    }
    let longer = [&bytes[..], b"\n"].concat();
    assert_eq!(kinds(&check_with(&longer, &trust())), [(None, F::ReceiptDamaged)]);
}

#[test]
fn what_does_not_belong_together_is_refused_although_the_log_proves_each_part() {
    let case = case();
    let about = || About::IdempotencyKey("k-denied".into());
    for (indexes, expected) in [
        // The key's enrolment left out; the seal left out; the run of another tenant, of another block; nothing.
        (&[0, 4, 6][..], (Some(4), F::Record)),
        (&[0, 1, 6], (Some(6), F::Record)),
        (&[0, 1, 4, 5], (Some(5), F::ForeignEntry)),
        (&[0, 1, 4, 8], (Some(8), F::Record)),
        (&[0, 1, 7, 8], (None, F::ReceiptDamaged)),
        (&[0, 1], (None, F::ReceiptDamaged)),
        (&[0, 1, 4, 6, 7, 8], (Some(7), F::ReceiptDamaged)),
    ] {
        let report = found(&case.receipt(about(), indexes));
        assert!(kinds(&report).contains(&expected), "{indexes:?}: {report}");
        assert_eq!((report.verdict, report.decided), (Verdict::Tampered, None), "{indexes:?}");
    }
    let unlike = |change: fn(&mut Receipt)| {
        let mut receipt = case.denial();
        change(&mut receipt);
        assert_eq!(found(&receipt).verdict, Verdict::Tampered);
    };
    unlike(|receipt| receipt.places = vec![0]);
    unlike(|receipt| receipt.places.clear());
    unlike(|receipt| receipt.about = About::IdempotencyKey("k-granted".into()));
    unlike(|receipt| receipt.about = About::IdempotencyKey(String::new()));
    unlike(|receipt| receipt.about = About::HoldId("h2".into()));
    unlike(|receipt| receipt.stream_seq += 1);
    unlike(|receipt| receipt.tenant = "globex".into());
    unlike(|receipt| receipt.entries.swap(1, 2));
}

#[test]
fn another_logs_key_is_not_enough() {
    let bytes = case().denial().encode();
    let report = check_with(&bytes, &Trust { key: Some(vkey(7)), ..Trust::default() });
    assert!(kinds(&report).contains(&(None, F::CheckpointSignature)), "{report}");
    let report = check_with(&bytes, &Trust::default());
    assert!(report.verdict == Verdict::Holds && !report.key_given, "{report}");
    assert!(report.notes.iter().any(|note| note.contains("not whose log it is")), "{report}");
}

#[test]
fn a_block_by_a_key_that_was_revoked_before_it_is_no_receipt() {
    let revoked = || {
        let public_key = Bytes::copy_from_slice(key(101).verifying_key().as_bytes());
        let holder = "metering".into();
        Kind::KeyRevoked(v1::KeyRevoked {
            role: KeyRole::Metering.into(),
            holder,
            public_key,
            reason: "lost".into(),
        })
    };
    // Revoked afterwards: what it signed before stands.
    let mut later = case();
    later.world.control(revoked());
    let last = later.log().size() - 1;
    let about = || About::IdempotencyKey("k-denied".into());
    let report = found(&later.receipt(about(), &[&NEEDED[..], &[last]].concat()));
    assert_eq!(report.verdict, Verdict::Holds, "{report}");
    // Revoked before: no ledger would take the block, and no receipt that shows the revocation holds.
    let mut before = World::new();
    before.control(revoked());
    let mut entries = before.log().entries;
    entries.extend(case().log().entries[4..].to_vec());
    let (run, stream_seq) = (case().run, case().stream_seq);
    let receipt = of(&Log::new(entries), about(), (stream_seq, &run), &[0, 1, 4, 5, 7]);
    assert!(kinds(&found(&receipt)).contains(&(Some(5), F::Record)), "{}", found(&receipt));
}

#[test]
fn a_pack_of_the_tenant_still_holds_what_the_receipt_shows() {
    let pack = case().log().pack(Scope::Tenant("acme".into()), [0, 1, 2, 3, 4, 6, 7, 8]);
    assert_eq!(super::packs::check_pack(&pack).verdict, Verdict::Holds);
}
