//! The local audit log over a real spool: what it holds after crashes, rotations and failures, and what its verifier names.

use std::{fs, path::Path};

use exchequer_event::{
    payload::PayloadKey,
    seal,
    v1::{self, event::Kind},
};
use exchequer_testkit::eventually;
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::*;
use crate::spool::{NewEvent, PayloadKeys};

const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    dir: TempDir,
    options: AuditLogOptions,
}

impl Rig {
    fn new(max_bytes: u64, backup_count: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = AuditLogOptions { path: dir.path().join("audit.ndjson"), max_bytes, backup_count };
        Self { dir, options }
    }

    fn spool(&self) -> Arc<Spool> {
        Arc::new(Spool::open(&self.dir.path().join("spool"), "a", 64 << 20, 8, 0).unwrap().0)
    }

    fn path(&self, number: u64) -> std::path::PathBuf {
        if number == 0 { self.options.path.clone() } else { file::numbered(&self.options.path, number) }
    }

    fn lines(&self, number: u64) -> Vec<String> {
        fs::read_to_string(self.path(number)).unwrap().lines().map(str::to_owned).collect()
    }

    fn write(&self, number: u64, lines: &[String]) {
        fs::write(self.path(number), lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect::<String>())
            .unwrap();
    }

    fn verify(&self) -> Result<Report, String> {
        verify(&self.options.path)
            .map_err(|error| error.to_string().replace(&format!("{}/", self.dir.path().display()), ""))
    }

    /// As a crash leaves it that came before the mark of what was written last.
    fn forget_the_mark(&self) {
        fs::remove_file(self.dir.path().join("spool").join(MARK_FILE)).unwrap();
    }

    /// Writes until all that the spool holds is in the file.
    async fn follow(&self, spool: &Arc<Spool>) {
        let following = tokio::spawn(follow(Arc::clone(spool), self.options.clone()));
        tokio::time::timeout(PATIENCE, spool.no_longer_wanted(spool.tip())).await.unwrap();
        assert_eq!(spool.audit_log_trouble(), None);
        following.abort();
        assert!(following.await.is_err());
        // What it had handed to another thread still ends.
        eventually(PATIENCE, || async { Arc::strong_count(spool) == 1 }).await;
    }
}

fn event(text: &str) -> NewEvent {
    NewEvent::own(Kind::AgentStopped(v1::AgentStopped { reason: text.to_owned() }))
}

async fn record(spool: &Spool, count: usize) {
    for i in 0..count {
        spool.record(event(&format!("event {i}"))).await.unwrap();
    }
}

async fn confirm_all(spool: &Arc<Spool>) {
    let (spool, tip) = (Arc::clone(spool), spool.tip());
    tokio::task::spawn_blocking(move || {
        let last = spool.reader().read(tip, 1).unwrap().remove(0);
        spool.confirm(tip, &seal::event_digest(&last.body).0).unwrap();
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn each_line_is_an_event_with_the_digest_of_the_line_before_and_its_own_place_and_digest() {
    let rig = Rig::new(1 << 20, 3);
    let spool = rig.spool();
    record(&spool, 5).await;
    rig.follow(&spool).await;
    let lines = rig.lines(0);
    let entries = spool.reader().read(1, usize::MAX).unwrap();
    assert_eq!(lines.len(), 5);
    let mut before: Option<&String> = None;
    for (line, entry) in lines.iter().zip(&entries) {
        let json: Json = serde_json::from_str(line).unwrap();
        let expected = before.map_or(Json::Null, |before| hex::encode(Sha256::digest(before)).into());
        assert_eq!(json["prev_hash"], expected);
        assert_eq!((&json["agent"], &json["seq"]), (&Json::from("a"), &Json::from(entry.seq)));
        assert_eq!(json["epoch"], spool.epoch());
        assert_eq!(json["blake3"], hex::encode(seal::event_digest(&entry.body).0));
        assert_eq!(json["event"]["seq"], entry.seq.to_string());
        assert_eq!(json["event"]["agentStopped"]["reason"], format!("event {}", entry.seq - 1));
        before = Some(line);
    }
    let report = rig.verify().unwrap();
    assert_eq!((report.lines, report.events, report.begins_later, report.holes.len()), (5, 5, false, 0));
    assert_eq!(report.last, Some(Position { agent: "a".into(), epoch: spool.epoch(), seq: 5 }));
    assert_eq!(report.last_blake3, Some(hex::encode(seal::event_digest(&entries[4].body).0)));
}

#[tokio::test]
async fn what_is_confidential_is_as_encrypted_as_in_the_spool() {
    let rig = Rig::new(1 << 20, 3);
    let spool = Spool::open(&rig.dir.path().join("spool"), "a", 64 << 20, 8, 0).unwrap().0;
    let keys = PayloadKeys::from([("acme".to_owned(), PayloadKey::new(&[7; 32]))]);
    let spool = Arc::new(spool.with_payload_keys(keys));
    let admitted = v1::ExecutionAdmitted { program: "/bin/secret-program".into(), ..Default::default() };
    let kind = Kind::ExecutionAdmitted(admitted);
    let id = "0190a000-0000-7000-8000-000000000000".to_owned();
    let event = NewEvent { tenant: "acme".into(), execution_id: id, skill: String::new(), kind };
    spool.record(event).await.unwrap();
    rig.follow(&spool).await;
    let line = rig.lines(0).remove(0);
    assert!(!line.contains("secret-program"));
    let json: Json = serde_json::from_str(&line).unwrap();
    assert!(json["event"]["confidential"]["ciphertext"].is_string());
    assert_eq!(rig.verify().unwrap().events, 1);
}

#[tokio::test]
async fn the_chain_goes_on_across_files_and_restarts_and_the_oldest_file_is_given_up() {
    let rig = Rig::new(2_000, 3);
    for _ in 0..4 {
        let spool = rig.spool();
        record(&spool, 10).await;
        rig.follow(&spool).await;
    }
    let files = file::rotated(&rig.options.path).unwrap();
    assert_eq!(files, [1, 2, 3]);
    for number in 0..=3 {
        assert!(fs::metadata(rig.path(number)).unwrap().len() <= 2_000);
    }
    let first_of = |number| serde_json::from_str::<Json>(&rig.lines(number)[0]).unwrap();
    let last_before = rig.lines(1).pop().unwrap();
    assert_eq!(first_of(0)["prev_hash"], hex::encode(Sha256::digest(last_before)));
    let report = rig.verify().unwrap();
    assert!(report.begins_later && report.first.as_ref().unwrap().seq > 1);
    assert_eq!((report.last.unwrap().seq, report.files.len()), (40, 4));
    assert_eq!(report.events, 40 - (report.first.unwrap().seq - 1));
}

#[tokio::test]
async fn whatever_is_done_to_a_line_is_named_at_the_first_place_where_it_can_be_told() {
    let rig = Rig::new(3_000, 20);
    let spool = rig.spool();
    record(&spool, 30).await;
    rig.follow(&spool).await;
    let files: Vec<(u64, Vec<String>)> =
        file::rotated(&rig.options.path).unwrap().into_iter().chain([0]).map(|n| (n, rig.lines(n))).collect();
    assert!(files.len() > 4);
    rig.verify().unwrap();
    let name =
        |number: u64| if number == 0 { "audit.ndjson".to_owned() } else { format!("audit.ndjson.{number}") };
    for (number, lines) in &files {
        for at in 0..lines.len() {
            let check = |what: &str, changed: &[String], expected: &str| {
                rig.write(*number, changed);
                let found = rig.verify().expect_err(what);
                assert!(found.starts_with(expected), "{what} of {} line {}: {found}", name(*number), at + 1);
            };
            let here = format!("{} line {}: ", name(*number), at + 1);
            let mut changed = lines.clone();
            // Each byte of the first line of each file, a few of the others.
            for place in (0..lines[at].len()).step_by(if at == 0 { 7 } else { 101 }) {
                let mut bytes = lines[at].clone().into_bytes();
                bytes[place] = if bytes[place] == b'1' { b'2' } else { b'1' };
                let Ok(text) = String::from_utf8(bytes) else { continue };
                changed[at] = text;
                check("a changed byte", &changed, &here);
            }
            changed[at] = lines[at].replacen(':', ": ", 1);
            check("white space", &changed, &here);
            changed.clone_from(lines);
            changed.insert(at, lines[at].clone());
            check("an inserted copy", &changed, &format!("{} line {}: ", name(*number), at + 2));
            let is_last = *number == 0 && at + 1 == lines.len();
            if !is_last && at + 1 < lines.len() {
                changed.clone_from(lines);
                changed.remove(at);
                let is_first = at == 0 && *number == files[files.len() - 2].0;
                let says = if is_first { "1 to 1 are missing" } else { "are missing before it" };
                rig.write(*number, &changed);
                // The line that is at its place now.
                match rig.verify() {
                    Err(found) => assert!(found.starts_with(&here) && found.contains(says), "{found}"),
                    Ok(report) => assert!(is_first && report.begins_later, "a removed line"),
                }
                changed.clone_from(lines);
                changed.swap(at, at + 1);
                rig.write(*number, &changed);
                match rig.verify() {
                    Err(found) => assert!(found.starts_with(&here) || is_first, "{found}"),
                    Ok(_) => panic!("swapped lines"),
                }
            }
            rig.write(*number, lines);
        }
        // Cut in the middle of the last line.
        let whole = fs::read(rig.path(*number)).unwrap();
        fs::write(rig.path(*number), &whole[..whole.len() - 20]).unwrap();
        match rig.verify() {
            Ok(report) => assert_eq!((*number, report.unfinished), (0, Some(lines.len() as u64))),
            Err(found) => {
                assert_ne!(*number, 0, "{found}");
                assert_eq!(found, format!("{} line {}: is cut off", name(*number), lines.len()));
            }
        }
        fs::write(rig.path(*number), &whole).unwrap();
    }
    // A line that was forged as a whole is not the one that the next line follows.
    let (number, lines) = &files[1];
    let parsed = line::Line::parse(lines[0].as_bytes()).unwrap();
    let line::Content::Event { bytes, .. } = &parsed.content else { unreachable!() };
    let mut forged: v1::Event = prost::Message::decode(bytes.as_slice()).unwrap();
    forged.time_unix_ms += 1;
    let mut changed = lines.clone();
    let forged = prost::Message::encode_to_vec(&forged);
    changed[0] = line::Line::event(parsed.link, &forged).unwrap().text().unwrap();
    rig.write(*number, &changed);
    let found = rig.verify().unwrap_err();
    assert!(found.starts_with(&format!("{} line 1: is not the line that", name(*number))), "{found}");
    rig.write(*number, lines);
    // Files: one from the middle is missed, the oldest is not.
    fs::rename(rig.path(2), rig.dir.path().join("away")).unwrap();
    assert_eq!(rig.verify().unwrap_err(), "audit.ndjson.2 is missing");
    fs::rename(rig.dir.path().join("away"), rig.path(2)).unwrap();
    let oldest = *file::rotated(&rig.options.path).unwrap().last().unwrap();
    fs::remove_file(rig.path(oldest)).unwrap();
    assert!(rig.verify().unwrap().begins_later);
}

#[tokio::test]
async fn after_a_crash_a_torn_line_is_cut_the_cut_is_noted_and_nothing_is_missing() {
    let rig = Rig::new(1 << 20, 3);
    let spool = rig.spool();
    record(&spool, 4).await;
    rig.follow(&spool).await;
    let whole = fs::read(&rig.options.path).unwrap();
    let last = whole.len() - rig.lines(0)[3].len() - 1;
    for torn in [last + 1, last + 50, whole.len() - 1] {
        fs::write(&rig.options.path, &whole[..torn]).unwrap();
        rig.forget_the_mark();
        rig.follow(&spool).await;
        let lines = rig.lines(0);
        assert_eq!(lines.len(), 4);
        let json: Json = serde_json::from_str(&lines[3]).unwrap();
        assert_eq!((&json["seq"], &json["cut_bytes"]), (&Json::from(4), &Json::from(torn - last)));
        let report = rig.verify().unwrap();
        assert_eq!((report.events, report.cuts), (4, 1));
    }
    // A crash before the file's first line was whole.
    fs::write(&rig.options.path, &whole[..30]).unwrap();
    rig.forget_the_mark();
    rig.follow(&spool).await;
    assert_eq!(rig.verify().unwrap().events, 4);
}

#[tokio::test]
async fn a_rotation_that_a_crash_cut_short_is_finished_and_reads_well_meanwhile() {
    let rig = Rig::new(1_500, 9);
    let spool = rig.spool();
    record(&spool, 20).await;
    rig.follow(&spool).await;
    let files = file::rotated(&rig.options.path).unwrap();
    let oldest = *files.last().unwrap();
    assert!(oldest >= 3);
    // Files from `gap` on have been moved up, those below have not.
    for gap in (1..=oldest).rev() {
        for number in (gap..=oldest).rev() {
            fs::rename(rig.path(number), rig.path(number + 1)).unwrap();
        }
        assert_eq!(rig.verify().unwrap().events, 20, "with {gap} left out");
        rig.follow(&spool).await;
        let now = file::rotated(&rig.options.path).unwrap();
        assert!(now.iter().copied().eq(1..=oldest + 1), "{now:?}");
        let report = rig.verify().unwrap();
        assert_eq!((report.events, report.holes.len()), (20, 0));
        // Back to where it was.
        fs::remove_file(&rig.options.path).unwrap();
        for number in 0..=oldest {
            fs::rename(rig.path(number + 1), rig.path(number)).unwrap();
        }
    }
}

#[tokio::test]
async fn what_receipts_cover_is_kept_until_it_is_written_unless_the_file_can_not_be_written() {
    let rig = Rig::new(64 << 20, 3);
    let spool = rig.spool();
    let large = "x".repeat(30 << 10);
    let fill = || async {
        for _ in 0..150 {
            spool.record(event(&large)).await.unwrap();
        }
    };
    // Nothing is removed before the file is there.
    let following = follow(Arc::clone(&spool), rig.options.clone());
    fill().await;
    confirm_all(&spool).await;
    assert_eq!(spool.first(), 1);
    let following = tokio::spawn(following);
    eventually(PATIENCE, || async { spool.first() > 1 }).await;
    tokio::time::timeout(PATIENCE, spool.no_longer_wanted(spool.tip())).await.unwrap();
    following.abort();
    assert!(following.await.is_err());
    let first = rig.verify().unwrap();
    assert_eq!((first.events, first.holes.len()), (150, 0));

    // A directory stands in the file's place: it can't be written, and executions go on.
    let away = rig.dir.path().join("away");
    fs::rename(&rig.options.path, &away).unwrap();
    fs::create_dir(&rig.options.path).unwrap();
    let following = tokio::spawn(follow(Arc::clone(&spool), rig.options.clone()));
    eventually(PATIENCE, || async { spool.audit_log_trouble().is_some() }).await;
    assert!(spool.status().await.audit_log_trouble.contains("audit.ndjson"));
    fill().await;
    fill().await;
    confirm_all(&spool).await;
    eventually(PATIENCE, || async { spool.first() > 151 }).await;
    spool.check_room().unwrap();
    let removed = spool.first() - 1;
    fs::remove_dir(&rig.options.path).unwrap();
    fs::rename(&away, &rig.options.path).unwrap();
    eventually(PATIENCE, || async { spool.audit_log_trouble().is_none() }).await;
    tokio::time::timeout(PATIENCE, spool.no_longer_wanted(spool.tip())).await.unwrap();
    following.abort();
    let report = rig.verify().unwrap();
    let [hole] = &report.holes[..] else { panic!("{:?}", report.holes) };
    assert_eq!((hole.from, hole.until), (151, removed));
    assert_eq!((report.events, report.last.unwrap().seq), (450 - (removed - 150), 450));
}

#[tokio::test]
async fn lines_that_were_written_and_are_gone_are_named_when_it_is_opened_again() {
    let rig = Rig::new(1 << 20, 3);
    let spool = rig.spool();
    record(&spool, 4).await;
    rig.follow(&spool).await;
    // The last two lines are cut off, then the whole file is.
    for (kept, from) in [(2, 3), (0, 1)] {
        let lines = rig.lines(0);
        rig.write(0, &lines[..kept]);
        let (log, next, gone) = begin(&spool, &rig.options).unwrap();
        drop(log);
        assert_eq!((next, gone), (5, Some(format!("events {from} to 4 were written and are gone"))));
        let report = rig.verify().unwrap();
        let [hole] = &report.holes[..] else { panic!("{:?}", report.holes) };
        assert_eq!((hole.from, hole.until, report.is_gone()), (from, 4, true));
        assert_eq!(begin(&spool, &rig.options).unwrap().2, None);
    }
}

#[tokio::test]
async fn a_file_that_is_taken_away_while_it_is_written_is_trouble() {
    let rig = Rig::new(1 << 20, 3);
    let spool = rig.spool();
    record(&spool, 2).await;
    let away = rig.dir.path().join("away");
    let check = |change: &dyn Fn(), expected: &str| {
        let _ = fs::remove_file(&rig.options.path);
        let (log, next, _) = begin(&spool, &rig.options).unwrap();
        change();
        let error = write_chunk(&spool, log, next).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&|| fs::remove_file(&rig.options.path).unwrap(), "No such file");
    check(
        &|| {
            fs::rename(&rig.options.path, &away).unwrap();
            fs::write(&rig.options.path, "").unwrap();
        },
        "another file is in the place",
    );
    check(&|| fs::write(&rig.options.path, "x").unwrap(), "it has 1 bytes, and 0 were written");
}

#[tokio::test]
async fn a_missing_file_and_a_beginning_that_no_rotation_removed_are_broken() {
    let rig = Rig::new(1 << 20, 3);
    let spool = rig.spool();
    record(&spool, 3).await;
    rig.follow(&spool).await;
    let lines = rig.lines(0);
    rig.write(0, &lines[1..]);
    let found = rig.verify().unwrap_err();
    assert_eq!(found, "audit.ndjson line 1: lines before it are missing, and no earlier file is there");
    rig.write(0, &lines);
    fs::rename(rig.path(0), rig.path(1)).unwrap();
    assert_eq!(rig.verify().unwrap_err(), "audit.ndjson is missing");
}

#[tokio::test]
async fn a_file_that_is_not_this_spools_is_left_alone() {
    let rig = Rig::new(1 << 20, 3);
    let older = Spool::open(&rig.dir.path().join("older"), "a", 64 << 20, 8, 0).unwrap().0;
    let spool = Spool::open(&rig.dir.path().join("spool"), "a", 64 << 20, 8, older.epoch()).unwrap().0;
    let spool = Arc::new(spool);
    record(&spool, 3).await;
    rig.follow(&spool).await;
    let other = Spool::open(&rig.dir.path().join("other"), "b", 64 << 20, 8, 0).unwrap().0;
    let error = begin(&other, &rig.options).unwrap_err().to_string();
    assert_eq!(error, "it is agent a's");
    assert!(begin(&older, &rig.options).unwrap_err().to_string().contains("does not hold; move it away"));
    let newer = Spool::open(&rig.dir.path().join("newer"), "a", 64 << 20, 8, spool.epoch()).unwrap().0;
    let newer = Arc::new(newer);
    record(&newer, 2).await;
    rig.follow(&newer).await;
    let report = rig.verify().unwrap();
    assert_eq!((report.events, report.last.unwrap().epoch), (5, newer.epoch()));
    fs::write(&rig.options.path, "not a line\n").unwrap();
    assert!(begin(&newer, &rig.options).unwrap_err().to_string().contains("is not a line of an audit log"));
    assert_eq!(fs::read(&rig.options.path).unwrap(), b"not a line\n");
}

fn read_options(file: &str, env: &[(&str, &str)]) -> (Option<AuditLogOptions>, Result<(), String>) {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let mut reader = Reader::new(Some(("exchequer.toml", file)), env, Vec::new());
    let options = AuditLogOptions::read(&mut reader);
    (options, reader.finish().map_err(|faults| faults.to_string()))
}

#[test]
fn size_and_count_come_from_the_file_the_usual_variables_or_those_of_the_requirement() {
    let check = |file: &str, env: &[(&str, &str)], expected: (u64, u64)| {
        let (options, faults) =
            read_options(&format!("[agent.audit_log]\npath = \"/var/log/a\"\n{file}"), env);
        assert_eq!(faults, Ok(()));
        let AuditLogOptions { path, max_bytes, backup_count } = options.unwrap();
        assert_eq!(
            (path.as_path(), max_bytes, backup_count),
            (Path::new("/var/log/a"), expected.0, expected.1)
        );
    };
    check("", &[], (64 << 20, 5));
    check("max_bytes = \"1MiB\"\nbackup_count = 9\n", &[], (1 << 20, 9));
    let plain = [("AUDIT_LOG_MAX_BYTES", "500"), ("AUDIT_LOG_BACKUP_COUNT", "7")];
    check("max_bytes = \"1MiB\"\nbackup_count = 9\n", &plain, (500, 7));
    let own = [("EXCHEQUER_AGENT_AUDIT_LOG_MAX_BYTES", "2KiB"), plain[0], plain[1]];
    check("", &own, (2048, 7));
    assert_eq!(read_options("", &plain), (None, Ok(())), "without a path there is none");
    let faults =
        read_options("[agent.audit_log]\npath = \"/x\"\n", &[("AUDIT_LOG_MAX_BYTES", "many")]).1.unwrap_err();
    assert!(faults.contains("AUDIT_LOG_MAX_BYTES"), "{faults}");
}
