//! Evidence packs.

use std::{fs, io::Cursor, io::Read as _};

use exchequer_event::{entry, v1};
use prost::Message as _;

use super::world::{Log, MARKER, World, check, kinds, on_all_cores, saved, trust, vkey};
use crate::evidence::{
    pack::{PackReader, PackWriter, Scope, WriteError},
    report::{FaultKind as F, Report, Verdict},
    verify::{Target, Trust},
};

/// What belongs into the pack of tenant acme of the small log: the control records, the batch seal with two events, the block seal with
/// one run, the revocation.
const ACME: [u64; 10] = [0, 1, 2, 3, 4, 5, 8, 9, 11, 15];

fn acme() -> Scope {
    Scope::Tenant("acme".into())
}

fn check_with(pack: &[u8], trust: &Trust) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pack");
    fs::write(&path, pack).unwrap();
    check(&Target::Pack(path), trust)
}

pub(super) fn check_pack(pack: &[u8]) -> Report {
    check_with(pack, &trust())
}

#[test]
fn a_tenants_pack_holds_and_has_no_byte_of_another_tenant() {
    let log = World::small().log();
    assert!(log.entries.iter().any(|entry| find(entry, MARKER)));
    let pack = log.pack(acme(), ACME);
    let report = check_pack(&pack);
    assert_eq!(report.verdict, Verdict::Holds, "{report}");
    let c = report.checked;
    assert_eq!((c.entries, c.proofs, c.events, c.decision_runs, c.signatures), (10, 10, 2, 1, 7));
    assert!(!find(&pack, MARKER) && !find(&pack, "globex"));
    assert!(report.notes[0].contains("does not show that nothing"), "{report}");
    assert_eq!(pack, log.pack(acme(), ACME), "the same content has the same bytes");
}

fn find(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn public_readers_read_it() {
    let log = World::small().log();
    let pack = log.pack(acme(), ACME);
    let mut names = Vec::new();
    for member in tar::Archive::new(&pack[..]).entries().unwrap() {
        let mut member = member.unwrap();
        let name = member.path().unwrap().display().to_string();
        let mut content = Vec::new();
        member.read_to_end(&mut content).unwrap();
        if name == "proofs/8.tlog-proof" {
            let text = String::from_utf8(content).unwrap();
            assert!(text.starts_with("c2sp.org/tlog-proof@v1\nindex 8\n"), "{text}");
        }
        names.push(name);
    }
    assert_eq!(names[..5], ["README.txt", "log.vkey", "checkpoint", "entries/0", "proofs/0.tlog-proof"]);
    assert_eq!(names[23..], ["manifest.json", "SHA256SUMS"]);
}

#[test]
fn each_byte_of_a_pack_is_covered() {
    // One of each: genesis, enrolment, seal, event.
    let pack = World::small().log().pack(acme(), [0, 2, 4, 5]);
    let dirs: Vec<_> = (0..64).map(|_| tempfile::tempdir().unwrap()).collect();
    on_all_cores(pack.len(), |lane, at| {
        let mut bytes = pack.clone();
        bytes[at] ^= 1;
        let path = dirs[lane].path().join("a.pack");
        fs::write(&path, bytes).unwrap();
        let report = check(&Target::Pack(path), &trust());
        assert!(report.verdict != Verdict::Holds, "byte {at}: {report}");
    });
}

#[test]
fn a_changed_entry_or_proof_is_named() {
    let log = World::small().log();
    let pack = log.pack(acme(), ACME);
    let place = |bytes: &[u8]| pack.windows(bytes.len()).position(|window| window == bytes).unwrap();
    let mut changed = pack.clone();
    changed[place(&log.entries[8]) + 10] ^= 1;
    assert_eq!(kinds(&check_pack(&changed)), [(Some(8), F::Inclusion)]);
    let hash = format!("index 8\n{}", log.proof(8)[0]);
    let mut changed = pack.clone();
    let byte = &mut changed[place(hash.as_bytes()) + 10];
    *byte = if *byte == b'A' { b'B' } else { b'A' };
    assert_eq!(kinds(&check_pack(&changed)), [(Some(8), F::Inclusion)]);
}

#[test]
fn a_pack_cut_or_continued_anywhere_does_not_hold() {
    let pack = World::small().log().pack(acme(), ACME);
    on_all_cores(pack.len() / 512, |_, block| {
        let report = check_pack(&pack[..block * 512]);
        assert!(report.verdict != Verdict::Holds, "{block}: {report}");
    });
    assert_eq!(kinds(&check_pack(&[&pack[..], &[0]].concat())), [(None, F::PackDamaged)]);
}

#[test]
fn members_removed_doubled_moved_or_added_are_refused() {
    let log = World::small().log();
    let pack = log.pack(acme(), ACME);
    // Each member with its header and padding.
    let mut members = Vec::new();
    for member in tar::Archive::new(Cursor::new(&pack)).entries().unwrap() {
        let member = member.unwrap();
        let from = usize::try_from(member.raw_header_position()).unwrap();
        let size = usize::try_from(member.size()).unwrap();
        members.push(pack[from..from + 512 + size.next_multiple_of(512)].to_vec());
    }
    let join = |members: &[Vec<u8>]| [members.concat(), vec![0; 1024]].concat();
    assert_eq!(join(&members), pack);
    let refused = |members: &[Vec<u8>]| {
        let report = check_pack(&join(members));
        assert!(report.verdict != Verdict::Holds, "{report}");
    };
    for at in 0..members.len() {
        let mut removed = members.clone();
        removed.remove(at);
        refused(&removed);
        let mut doubled = members.clone();
        doubled.insert(at, members[at].clone());
        refused(&doubled);
        if at > 0 {
            let mut moved = members.clone();
            moved.swap(at - 1, at);
            refused(&moved);
        }
        for name in ["../escape", "notes.txt", "entries/007", "/entries/7"] {
            let mut header = tar::Header::new_ustar();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(0);
            header.set_cksum();
            let mut added = members.clone();
            added.insert(at, header.as_bytes().to_vec());
            refused(&added);
        }
    }
    // An entry and its proof together: the manifest counts them.
    let mut removed = members.clone();
    removed.drain(3..5);
    let report = check_pack(&join(&removed));
    assert!(report.faults[0].detail.contains("counts 10 entries, the pack has 9"), "{report}");
}

/// A pack that was written with the wrong entries.
#[track_caller]
fn wrong(log: &Log, scope: Scope, indexes: &[u64], expected: &[(Option<u64>, F)]) {
    let report = check_pack(&log.pack(scope, indexes.iter().copied()));
    assert_eq!(kinds(&report), expected, "{report}");
    assert_eq!(report.verdict, Verdict::Tampered);
}

#[test]
fn a_pack_with_the_wrong_entries_does_not_hold() {
    let log = World::small().log();
    // An event and a run of the other tenant, and a rejection.
    wrong(&log, acme(), &[0, 1, 2, 3, 4, 5, 6, 8], &[(Some(6), F::ForeignEntry)]);
    wrong(&log, acme(), &[0, 1, 2, 3, 9, 10, 11], &[(Some(10), F::ForeignEntry)]);
    wrong(&log, acme(), &[0, 1, 2, 3, 12], &[(Some(12), F::ForeignEntry)]);
}

#[test]
fn what_stands_under_no_enrolled_seal_is_refused() {
    let log = World::small().log();
    let record = |index| (Some(index), F::Record);
    // The seal left out; only the seal of another message; the enrolment of the seal's key left out.
    wrong(&log, acme(), &[0, 1, 2, 3, 5], &[record(5)]);
    wrong(&log, acme(), &[0, 1, 2, 3, 4, 5, 11], &[record(11)]);
    wrong(&log, acme(), &[0, 1, 3, 4, 5], &[record(4), record(5)]);
    // A seal for nothing, and no genesis.
    wrong(&log, acme(), &[0, 1, 2, 3, 4, 9, 11], &[(Some(4), F::PackDamaged)]);
    let report = check_pack(&log.pack(acme(), [1, 2, 3, 4, 5]));
    assert!(
        kinds(&report).contains(&(None, F::LedgerKey)) && kinds(&report).contains(&record(1)),
        "{report}"
    );
}

#[test]
fn a_record_that_its_seal_does_not_promise_is_refused_although_the_log_proves_it() {
    let world = World::small();
    let replaced = |entry: Vec<u8>| {
        let mut entries = world.entries.clone();
        entries[5] = entry.into();
        let pack = Log::new(entries).pack(acme(), ACME);
        assert_eq!(kinds(&check_pack(&pack)), [(Some(5), F::Record)]);
    };
    // Of another message, another record of the same seal, and one with another content.
    let fifth = entry::decode(&world.entries[5]).unwrap();
    replaced(v1::Entry { stream_seq: fifth.stream_seq + 1, ..fifth }.encode_to_vec());
    replaced(world.entries[8].to_vec());
    let mut changed = world.entries[5].to_vec();
    *changed.last_mut().unwrap() ^= 1;
    replaced(changed);
}

#[test]
fn another_key_or_checkpoint_does_not_hold() {
    let log = World::small().log();
    let pack = log.pack(acme(), ACME);
    let report = check_with(&pack, &Trust { key: Some(vkey(7)), ..Trust::default() });
    assert!(kinds(&report).contains(&(None, F::CheckpointSignature)), "{report}");
    // Forged as a whole by another key: the genesis in it says whose log it is.
    let mut forged = PackWriter::new(Vec::new(), acme(), &vkey(7), log.signed_by(7)).unwrap();
    for index in ACME {
        forged.entry(index, &log.entries[usize::try_from(index).unwrap()], log.proof(index)).unwrap();
    }
    let forged = forged.finish().unwrap().0;
    assert_eq!(kinds(&check_with(&forged, &Trust::default())), [(None, F::LedgerKey)]);
    assert!(kinds(&check_pack(&forged)).contains(&(None, F::CheckpointSignature)));
    // Without a key it is the pack's own word.
    let report = check_with(&pack, &Trust::default());
    assert!(report.verdict == Verdict::Holds && !report.key_given && report.notes.len() == 2, "{report}");
}

#[test]
fn a_trusted_checkpoint_is_compared_where_that_is_possible() {
    let world = World::small();
    let log = world.log();
    let pack = log.pack(acme(), ACME);
    let against =
        |other: &Log| check_with(&pack, &Trust { checkpoints: vec![saved(other.signed_by(100))], ..trust() });
    assert_eq!(against(&log).continues_size, Some(16));
    assert_eq!(against(&Log::new(world.entries[..9].to_vec())).verdict, Verdict::CouldNotCheck);
    let mut entries = world.entries.clone();
    entries.swap(0, 1);
    assert_eq!(kinds(&against(&Log::new(entries))), [(None, F::Inconsistent)]);
}

#[test]
fn a_range_is_complete_or_does_not_hold() {
    let log = World::small().log();
    let range = |first, end| Scope::Range { first, end };
    let report = check_pack(&log.pack(range(5, 13), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15]));
    assert_eq!(report.verdict, Verdict::Holds, "{report}");
    wrong(&log, range(5, 13), &[0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 15], &[(None, F::PackDamaged)]);
    wrong(&log, range(5, 13), &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15], &[(None, F::PackDamaged)]);
}

#[test]
fn the_writer_refuses_what_is_not_in_the_tree_or_out_of_order() {
    let log = World::small().log();
    let mut pack = PackWriter::new(Vec::new(), acme(), &vkey(100), log.signed_by(100)).unwrap();
    pack.entry(4, &log.entries[4], log.proof(4)).unwrap();
    let again = pack.entry(4, &log.entries[4], log.proof(4));
    assert!(matches!(again, Err(WriteError::Order { index: 4, last: 4 })));
    let other = pack.entry(5, &log.entries[6], log.proof(5));
    assert!(matches!(other, Err(WriteError::NotIncluded { index: 5, .. })));
}

#[test]
fn what_is_no_pack_could_not_be_checked() {
    for bytes in [&b""[..], b"{}", &[0; 2048]] {
        assert_eq!(kinds(&check_pack(bytes)), [(None, F::BadInput)]);
    }
    assert!(PackReader::open(Cursor::new([0; 10])).is_err());
    let missing = check(&Target::Pack("/nowhere/at/all".into()), &trust());
    assert_eq!((missing.verdict, missing.faults[0].kind), (Verdict::CouldNotCheck, F::Unreadable));
}
