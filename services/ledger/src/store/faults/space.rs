//! A disk that is full: the process goes on, reloads when there is space again, and has lost nothing.

use super::{
    UNTIL, entry,
    memory::{Fault, Shared},
    reopen, root_of, work,
};

#[test]
fn when_the_disk_is_full_nothing_is_lost_and_the_same_process_goes_on_once_there_is_space() {
    let clean = Shared::default();
    assert!(work(&mut reopen(&clean).unwrap(), &mut Vec::new(), UNTIL));
    let operations = clean.operations();
    let mut met = 0;
    for at in 0..operations {
        let files = Shared::failing(at, Fault::Full);
        let mut published = Vec::new();
        // An empty log opens without writing, so this is the process that meets the full disk.
        let Ok(mut opened) = reopen(&files) else { panic!("operation {at}: an empty log needs no space") };
        if work(&mut opened, &mut published, UNTIL) {
            assert!(at + 8 > operations, "operation {at}: a full disk went unnoticed");
            continue;
        }
        met += 1;
        // As long as it is full, reading goes on, and a commit is refused again and again.
        for _ in 0..2 {
            opened.writer = opened.writer.reload().unwrap_or_else(|error| panic!("operation {at}: {error}"));
            let size = opened.writer.position().size;
            assert!(size >= published.last().copied().unwrap_or(0));
            opened.reader.verified_entries(0, size).unwrap();
            assert!(size == UNTIL || !work(&mut opened, &mut published, UNTIL), "operation {at}");
        }
        files.free_space();
        opened.writer = opened.writer.reload().unwrap();
        let size = opened.writer.position().size;
        assert_eq!(opened.writer.position().root, root_of(size), "operation {at}");
        assert!(work(&mut opened, &mut published, UNTIL + 1), "operation {at}: it does not go on");
        assert!(published.is_sorted(), "operation {at}: {published:?}");
        drop(opened);

        files.cut_power();
        let opened = reopen(&files).unwrap_or_else(|error| panic!("operation {at}: {error}"));
        assert_eq!(opened.writer.position().root, root_of(UNTIL + 1), "operation {at}");
        let entries = opened.reader.verified_entries(0, UNTIL + 1).unwrap();
        assert!(entries.iter().eq((0..=UNTIL).map(entry).collect::<Vec<_>>().iter()));
        assert_eq!(opened.checkpoints.last().unwrap().checkpoint().size(), UNTIL + 1);
    }
    assert!(met > 60, "{met}");
}

#[test]
fn a_log_that_cannot_be_opened_for_want_of_space_opens_when_there_is_some() {
    let whole = Shared::default();
    assert!(work(&mut reopen(&whole).unwrap(), &mut Vec::new(), UNTIL));
    // The served checkpoint is damaged and has to be restored, which takes space.
    whole.with(|memory| memory.seen.insert("/data/log/checkpoint".into(), b"nothing".to_vec()));
    let operations = whole.operations();
    let refused = (operations..operations + 20).filter(|at| {
        let files = Shared::default();
        files.with(|memory| {
            *memory = whole.with(|whole| whole.clone());
            memory.fault = Some((*at, Fault::Full));
        });
        let refused = reopen(&files).is_err();
        files.free_space();
        let opened = reopen(&files).unwrap();
        assert_eq!(opened.writer.position().root, root_of(UNTIL));
        assert_eq!(opened.checkpoints.last().unwrap().checkpoint().size(), UNTIL);
        refused
    });
    assert!(refused.count() > 0);
}
