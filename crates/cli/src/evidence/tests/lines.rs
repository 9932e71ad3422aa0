//! Evidence in lines.

use std::{fs, path::Path};

use serde_json::{Value as Json, json};

use super::{
    exports::{Lie, acme, ledger, request, run_request},
    world::{Log, MARKER, OTHER_EXECUTION, World, check, kinds, on_all_cores, trust, vkey},
};
use crate::evidence::{
    export::{self, Format},
    lines::{LineWriter, Rendering, proof_path},
    pack::Scope,
    report::{FaultKind as F, Report, Subject, Verdict},
    verify::Target,
};

const ACME: [u64; 10] = [0, 1, 2, 3, 4, 5, 8, 9, 11, 15];
const BOTH: [Rendering; 2] = [Rendering::Ndjson, Rendering::Ocsf];

/// Writes lines of these entries with what lies beside them.
pub(super) fn write_lines(log: &Log, rendering: Rendering, scope: Scope, indexes: &[u64], out: &Path) {
    let mut lines = LineWriter::new(Vec::new(), rendering, scope, &vkey(100), log.signed_by(100));
    for index in indexes {
        lines.entry(*index, &log.entries[usize::try_from(*index).unwrap()], &log.proof(*index)).unwrap();
    }
    let (bytes, beside) = lines.finish().unwrap();
    fs::write(out, bytes).unwrap();
    fs::write(proof_path(out), beside.encode()).unwrap();
}

fn check_file(path: &Path) -> Report {
    check(&Target::Pack(path.to_owned()), &trust())
}

#[test]
fn each_byte_of_lines_and_of_what_lies_beside_them_is_covered() {
    let log = World::small().log();
    for rendering in BOTH {
        let dirs: Vec<_> = (0..64).map(|_| tempfile::tempdir().unwrap()).collect();
        let out = dirs[0].path().join("whole");
        write_lines(&log, rendering, acme(), &[0, 2, 4, 5], &out);
        let report = check_file(&out);
        assert_eq!((report.verdict, report.subject), (Verdict::Holds, Subject::Lines), "{report}");
        assert_eq!((report.checked.proofs, report.checked.events), (4, 1));
        let (lines, beside) = (fs::read(&out).unwrap(), fs::read(proof_path(&out)).unwrap());
        on_all_cores(lines.len() + beside.len(), |lane, at| {
            let (mut lines, mut beside) = (lines.clone(), beside.clone());
            match lines.get_mut(at) {
                Some(byte) => *byte ^= 1,
                None => beside[at - lines.len()] ^= 1,
            }
            let out = dirs[lane].path().join("changed");
            fs::write(&out, &lines).unwrap();
            fs::write(proof_path(&out), &beside).unwrap();
            let report = check_file(&out);
            assert!(report.verdict != Verdict::Holds, "{rendering:?}, byte {at}: {report}");
        });
    }
}

#[test]
fn lines_removed_doubled_swapped_or_cut_do_not_hold() {
    let log = World::small().log();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("lines");
    for rendering in BOTH {
        write_lines(&log, rendering, acme(), &ACME, &out);
        let text = fs::read_to_string(&out).unwrap();
        let lines: Vec<_> = text.split_inclusive('\n').collect();
        let refused = |lines: &[&str]| {
            fs::write(&out, lines.concat()).unwrap();
            let report = check_file(&out);
            assert_eq!(report.verdict, Verdict::Tampered, "{report}");
        };
        for at in 0..lines.len() {
            let mut changed = lines.clone();
            changed.remove(at);
            refused(&changed);
            let mut changed = lines.clone();
            changed.insert(at, lines[at]);
            refused(&changed);
            if at > 0 {
                let mut changed = lines.clone();
                changed.swap(at - 1, at);
                refused(&changed);
            }
        }
        refused(&[&text[..text.len() - 1]]);
        refused(&[&text, "\n"]);
        fs::write(&out, log.pack(acme(), ACME)).unwrap();
        assert_eq!(check_file(&out).subject, Subject::Pack, "a pack is one, whatever lies beside it");
        fs::write(&out, &text).unwrap();
        fs::remove_file(proof_path(&out)).unwrap();
        let report = check_file(&out);
        assert_eq!(
            kinds(&report),
            [(None, F::BadInput)],
            "without what lies beside them nothing can be checked"
        );
    }
}

#[test]
fn a_range_in_lines_is_complete_or_does_not_hold() {
    let log = World::small().log();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("lines");
    let range = Scope::Range { first: 5, end: 13 };
    write_lines(
        &log,
        Rendering::Ndjson,
        range.clone(),
        &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15],
        &out,
    );
    let report = check_file(&out);
    assert!(report.verdict == Verdict::Holds && report.range_roots.is_some(), "{report}");
    write_lines(&log, Rendering::Ndjson, range, &[0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 15], &out);
    assert_eq!(kinds(&check_file(&out)), [(None, F::PackDamaged)]);
}

#[test]
fn a_record_says_what_its_entry_does_by_the_names_of_proto3_json() {
    let log = World::small().log();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("lines");
    write_lines(&log, Rendering::Ndjson, acme(), &ACME, &out);
    let text = fs::read_to_string(&out).unwrap();
    let records: Vec<Json> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let event = &records[5];
    assert_eq!(
        (&event["index"], &event["kind"], &event["stream_seq"]),
        (&json!(5), &json!("event"), &json!(5))
    );
    assert_eq!(event["record"]["agentId"], "agent-1");
    assert_eq!(event["record"]["seq"], "1");
    assert_eq!(event["record"]["agentStopped"], json!({ "reason": "done" }));
    assert_eq!(event["leaf_hash"], exchequer_tlog::leaf_hash(&log.entries[5]).to_string());
    let seal = &records[4];
    assert_eq!((&seal["kind"], &seal["seal"]["count"]), (&json!("batch_sealed"), &json!(4)));
    assert_eq!(records[0]["record"]["genesis"]["origin"], "test.local/log");
    assert_eq!(records[8]["record"]["tenant"], "acme");
}

#[tokio::test]
async fn a_tenants_export_in_any_format_has_no_byte_of_another_tenant() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::small();
    let log = world.log();
    for format in [Format::Native, Format::Ndjson, Format::Ocsf] {
        let out = dir.path().join(format!("{format:?}"));
        let request = export::Request { format, ..request(acme(), &out) };
        let exported = run_request(ledger(&world, Some("acme"), Lie::None), request).await.unwrap();
        assert_eq!((exported.entries, exported.report.verdict), (10, Verdict::Holds));
        let mut bytes = fs::read(&out).unwrap();
        if format != Format::Native {
            // What is in base64 is looked through as well.
            for line in String::from_utf8(bytes.clone()).unwrap().lines() {
                let record: Json = serde_json::from_str(line).unwrap();
                let entry = record.get("entry").or(record.get("raw_data")).unwrap().as_str().unwrap();
                bytes.extend(
                    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, entry).unwrap(),
                );
            }
            bytes.extend(fs::read(proof_path(&out)).unwrap());
        }
        let find = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        for name in [MARKER, "globex", OTHER_EXECUTION, "events.agent-2"] {
            assert!(!find(name.as_bytes()), "{name} is in the {format:?} export");
        }
        // What signatures and proofs need of others is there, and is a digest.
        for index in [6_usize, 10] {
            assert!(!find(&log.entries[index]) && !find(&log.entries[index][8..]));
        }
        let foreign = exchequer_event::entry::decode(&log.entries[6]).unwrap();
        let Some(exchequer_event::v1::entry::Kind::Event(event)) = foreign.kind else { panic!("no event") };
        assert!(
            find(&exchequer_event::seal::event_digest(&event).0),
            "the seal of a shared batch names digests"
        );
    }
}
