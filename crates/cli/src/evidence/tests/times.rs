//! Exports of a time.

use exchequer_event::v1;

use super::{
    exports::{Ledger, Lie, acme, ledger, request, run_request},
    packs::check_pack,
    world::{Log, World, kinds},
};
use crate::evidence::{
    export::{self, ExportError, Exported},
    pack::{PackWriter, Scope, Selection, TimeRange},
    report::{FaultKind as F, Verdict},
    tests::world::vkey,
};

fn between(from: u64, until: u64) -> TimeRange {
    TimeRange { from_unix_ms: Some(from), until_unix_ms: Some(until) }
}

/// Ten events of the times 1001 to 1010, and blocks of the times 5, 1005 and 2000, each with a run of either tenant.
fn world() -> World {
    let mut world = World::new();
    let run =
        |tenant: &str| v1::DecisionRun { tenant: tenant.into(), decisions: vec![v1::Decision::default()] };
    world.runs(5, vec![run("acme"), run("globex")]);
    world.batch(1, &["acme", "globex", "acme", "globex", "acme"]);
    world.runs(1_005, vec![run("globex"), run("acme")]);
    world.batch(1, &["globex", "acme", "globex", "acme", "globex"]);
    world.runs(2_000, vec![run("acme")]);
    world
}

async fn run(world: &World, scope: Option<Scope>, time: TimeRange) -> Result<Exported, ExportError> {
    let dir = tempfile::tempdir().unwrap();
    let asked = request(acme(), &dir.path().join("pack"));
    let request = export::Request { scope, time: Some(time), ..asked };
    run_request(Ledger { page: 4, ..ledger(world, None, Lie::None) }, request).await
}

#[tokio::test]
async fn a_tenants_time_holds_its_events_and_the_runs_of_blocks_of_that_time() {
    let world = world();
    for (time, events, runs) in [
        (between(1_003, 1_006), 2, 1),
        (between(1_001, 1_011), 5, 1),
        (TimeRange { from_unix_ms: None, until_unix_ms: Some(1_002) }, 1, 1),
        (TimeRange { from_unix_ms: Some(1_009), until_unix_ms: None }, 1, 1),
        (between(1, 3_000), 5, 3),
    ] {
        let report = run(&world, Some(acme()), time).await.unwrap().report;
        assert_eq!((report.checked.events, report.checked.decision_runs), (events, runs), "{time:?}");
        assert_eq!(report.time, Some(time));
    }
}

#[tokio::test]
async fn a_time_alone_is_the_whole_range_that_covers_it() {
    let world = world();
    let report = run(&world, None, between(1_003, 1_008)).await.unwrap().report;
    // From the event of 1003 over the block in between to the one of 1007.
    assert_eq!(report.scope, Some(Scope::Range { first: 10, end: 19 }));
    assert!(report.range_roots.is_some() && report.notes[0].contains("not ruled out"), "{report}");
    let error = run(&world, None, between(5_000, 6_000)).await.unwrap_err();
    assert!(matches!(error, ExportError::Request(_)), "{error}");
}

#[test]
fn a_record_of_another_time_does_not_belong_into_the_pack() {
    let log: Log = world().log();
    let pack = |indexes: &[u64]| {
        let selection = Selection { scope: acme(), time: Some(between(1_003, 1_006)) };
        let mut pack = PackWriter::new(Vec::new(), selection, &vkey(100), log.signed_by(100)).unwrap();
        for index in indexes {
            pack.entry(*index, &log.entries[usize::try_from(*index).unwrap()], log.proof(*index)).unwrap();
        }
        check_pack(&pack.finish().unwrap().0)
    };
    let right = pack(&[0, 1, 2, 3, 7, 10, 12]);
    assert_eq!(right.verdict, Verdict::Holds, "{right}");
    assert_eq!(kinds(&pack(&[0, 1, 2, 3, 7, 8, 10, 12])), [(Some(8), F::ForeignEntry)]);
    assert_eq!(kinds(&pack(&[0, 1, 2, 3, 4, 5, 7, 10, 12])), [(Some(5), F::ForeignEntry)]);
}
