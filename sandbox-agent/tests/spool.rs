//! The spool against kill -9 and a full disk, from outside.
//!
//! Left out: the ledger; receipts are what the spool wrote itself. Invariant: a child is killed at whatever it does, and what it had
//! said before counts.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use exchequer_event::v1::{self, event::Kind};
use exchequer_testkit::{small_disk, temp_dir};
use sandbox_agent::spool::{self, LostExecution, NewEvent, Spool};

/// The directory in which the test's other process records.
const CHILD_DIR: &str = "EXCHEQUER_TEST_SPOOL";

fn open(dir: &Path) -> (Spool, Vec<LostExecution>) {
    Spool::open(dir, "a", 64 << 20, 16, 0).unwrap()
}

fn admitted(id: &str) -> NewEvent {
    let record = v1::ExecutionAdmitted {
        hold_id: format!("hold-{id}"),
        program: "x".repeat(20_000),
        ..v1::ExecutionAdmitted::default()
    };
    let kind = Kind::ExecutionAdmitted(record);
    NewEvent { tenant: "acme".into(), execution_id: id.into(), skill: String::new(), kind }
}

fn finished(id: &str) -> NewEvent {
    NewEvent { kind: Kind::ExecutionFinished(v1::ExecutionFinished::default()), ..admitted(id) }
}

fn say(line: &str) {
    std::io::stdout().lock().write_all(format!("{line}.\n").as_bytes()).unwrap();
}

/// Records executions, some of them long ones, and confirms all that is written, until it is killed.
async fn work(dir: &Path) {
    let (spool, lost) = open(dir);
    let spool = Arc::new(spool);
    for lost in lost {
        say(&format!("lost {}", lost.execution_id));
        spool.record(finished(&lost.execution_id)).await.unwrap();
        say(&format!("finished {}", lost.execution_id));
    }
    let pid = std::process::id();
    for worker in 0..8 {
        let spool = Arc::clone(&spool);
        tokio::spawn(async move {
            for i in 0_u64.. {
                let id = format!("{pid}-{worker}-{i}");
                spool.record(admitted(&id)).await.unwrap();
                say(&format!("admitted {id}"));
                // The first of each worker never ends.
                if i > 0 {
                    spool.record(finished(&id)).await.unwrap();
                    say(&format!("finished {id}"));
                }
            }
        });
    }
    loop {
        let spool = Arc::clone(&spool);
        tokio::task::spawn_blocking(move || {
            let reader = spool.reader();
            if let Some(entry) = reader.read(spool.tip().max(1), 1).unwrap().first() {
                let hash = exchequer_event::seal::event_digest(&entry.body);
                let before = spool.first();
                spool.confirm(entry.seq, &hash.0).unwrap();
                if spool.first() > before {
                    say("removed");
                }
            }
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_knows_which_executions_have_no_outcome_and_recorded_each_outcome_once() {
    let name =
        "killed_at_any_moment_it_knows_which_executions_have_no_outcome_and_recorded_each_outcome_once";
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        return work(Path::new(&dir)).await;
    }
    let dir = temp_dir();
    let (mut has_admission, mut has_outcome) = (BTreeSet::new(), BTreeSet::new());
    let mut removals = 0;
    for round in 0..10_usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut removed = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
            let Some(line) = line.strip_suffix('.') else { continue };
            match line.split_once(' ') {
                Some(("admitted", id)) => drop(has_admission.insert(id.to_owned())),
                Some(("finished", id)) => drop(has_outcome.insert(id.to_owned())),
                Some(("lost", id)) => assert!(!has_outcome.contains(id), "{id} had an outcome already"),
                _ => removed += usize::from(line == "removed"),
            }
            // Right after a removal, or a little later.
            if removed > round % 3 && has_admission.len() % (round + 1) == 0 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        removals += removed;
        let looked_at = spool::inspect(dir.path()).unwrap();
        let (spool, lost) = open(dir.path());
        assert_eq!(looked_at.open, lost);
        assert_eq!((looked_at.written, looked_at.removed + 1), (spool.tip(), spool.first()));
        let lost: BTreeSet<_> = lost.into_iter().map(|lost| lost.execution_id).collect();
        let open: BTreeSet<_> = has_admission.difference(&has_outcome).cloned().collect();
        // What was written and not yet said when it was killed is one event of each worker, at most.
        let unsaid = lost.difference(&open).count() + open.difference(&lost).count();
        assert!(unsaid <= 8, "round {round}: {lost:?} is lost and {open:?} open");
        assert!(lost.iter().all(|id| !has_outcome.contains(id)));
        let long: Vec<_> = open.iter().filter(|id| id.ends_with("-0")).collect();
        assert!(long.iter().all(|id| lost.contains(*id)), "round {round}: {long:?} ran for long");
        // What it had written and not said.
        has_outcome.extend(open.difference(&lost).cloned());
        has_admission.extend(lost);
    }
    assert!(removals >= 10, "{removals} removals");
}

/// Takes all that is left of the file system.
fn fill(dir: &Path) {
    let mut size = 1 << 20;
    let mut file = fs::OpenOptions::new().create(true).append(true).open(dir.join("filler")).unwrap();
    while size > 0 {
        if file.write_all(&vec![1; size]).is_err() {
            size /= 2;
        }
    }
}

#[tokio::test]
async fn on_a_full_disk_executions_are_refused_and_those_that_run_have_their_outcomes_recorded() {
    let name = "on_a_full_disk_executions_are_refused_and_those_that_run_have_their_outcomes_recorded";
    let Some(disk) = small_disk(name, 16) else { return };
    let dir = disk.join("spool");
    let (spool, _) = open(&dir);
    for i in 0..300 {
        let id = format!("early-{i}");
        spool.record(admitted(&id)).await.unwrap();
        spool.record(finished(&id)).await.unwrap();
    }
    fill(&disk);
    // As many as may run at one time get in while there is room for them.
    let mut running = 0;
    while running < 16 && spool.check_room().is_ok() {
        match spool.record(admitted(&format!("late-{running}"))).await {
            Ok(_) => running += 1,
            Err(_) => break,
        }
    }
    fill(&disk);
    let mut more = 0;
    let small = || NewEvent::own(Kind::AgentStopped(v1::AgentStopped { reason: "x".repeat(1000) }));
    while spool.record(small()).await.is_ok() {
        more += 1;
    }
    let refused = spool.check_room().unwrap_err().to_string();
    assert!(refused.contains("can't be allocated"), "{refused}");
    assert!(spool.record(admitted("refused")).await.is_err());
    assert!(spool.status().await.refusing.contains("can't be allocated"));
    assert!(fs::write(disk.join("other"), vec![1; 8192]).is_err(), "the disk is full indeed");
    for i in 0..running {
        // The largest outcome there can be.
        let detail = "x".repeat(32_000);
        let kind =
            Kind::ExecutionFinished(v1::ExecutionFinished { detail, ..v1::ExecutionFinished::default() });
        spool.record(NewEvent { kind, ..admitted(&format!("late-{i}")) }).await.unwrap();
    }
    let (tip, first) = (spool.tip(), spool.first());
    assert!(running > 0);
    assert_eq!((tip, first), (600 + 2 * running + more, 1));
    assert!(spool.check_room().is_err());
    // A receipt makes room although the disk is full: the list beside the journal has its blocks.
    let last = spool.reader().read(tip, 1).unwrap().remove(0);
    spool.confirm(tip, &exchequer_event::seal::event_digest(&last.body).0).unwrap();
    assert!(spool.first() > first);
    spool.check_room().unwrap();
    spool.record(admitted("after")).await.unwrap();
    drop(spool);
    fs::remove_file(disk.join("filler")).unwrap();
    let (spool, lost) = open(&dir);
    let lost: Vec<_> = lost.iter().map(|lost| lost.execution_id.as_str()).collect();
    assert_eq!((lost, spool.tip()), (vec!["after"], tip + 1));
}
