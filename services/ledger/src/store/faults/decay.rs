//! Files that decay at rest, and reads that fail: the log refuses and says which file, or what is intact is all there.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{Opened, Tree, UNTIL, entry, memory::Shared, reopen, root_of, work};

/// Bits looked at in a file: all of a short one, a sample of a long one, its ends always.
fn places(length: usize) -> impl Iterator<Item = (usize, u8)> {
    let step = (length / 48).max(1) | 1;
    let bytes = (0..length).step_by(step).chain(length.saturating_sub(2)..length);
    bytes.map(|byte| (byte, u8::try_from(byte % 8).unwrap()))
}

/// Whether the reason for refusing leads to the file.
fn leads_to(path: &Path, reason: &str) -> bool {
    let name = path.strip_prefix("/data").unwrap();
    let name = name.strip_prefix("log").unwrap_or(name).to_str().unwrap();
    // The tree is compared as a whole: its tiles are named together, by what they should add up to.
    let is_tile = name.starts_with("tile/") && reason.contains("entries on disk has the root");
    let is_bundle = name.starts_with("tile/entries/") && reason.contains("entry ");
    reason.contains(name) || is_tile || is_bundle
}

/// What can be read of an opened log is right, and what it signs next is no fork. Whether all of it could be read.
fn check_sound(mut opened: Opened, what: &str) -> bool {
    let position = opened.writer.position().clone();
    assert_eq!((position.size, position.root), (UNTIL, root_of(UNTIL)), "{what}");
    assert_eq!(opened.checkpoints.last().unwrap().checkpoint().size(), UNTIL, "{what}");
    let mut whole = true;
    for from in (0..UNTIL).step_by(50) {
        match opened.reader.verified_entries(from, from + 50) {
            Ok(read) => assert!(read.into_iter().eq((from..from + 50).map(entry)), "{what}: {from}"),
            Err(_) => whole = false,
        }
    }
    let mut published = Vec::new();
    if work(&mut opened, &mut published, UNTIL + 100) {
        let signed = opened.checkpoints.last().unwrap().checkpoint().clone();
        assert_eq!((signed.size(), *signed.root()), (UNTIL + 100, root_of(UNTIL + 100)), "{what}");
    }
    for size in published {
        assert!(size > UNTIL, "{what}");
    }
    whole
}

fn flipped(whole: &Tree, path: &Path, (byte, bit): (usize, u8)) -> Shared {
    let files = Shared::default();
    files.with(|memory| {
        memory.seen = whole.clone();
        memory.seen.get_mut(path).unwrap()[byte] ^= 1 << bit;
        memory.durable = memory.seen.clone();
    });
    files
}

#[test]
fn a_bit_that_flips_in_any_file_is_named_or_does_no_harm() {
    let files = Shared::default();
    assert!(work(&mut reopen(&files).unwrap(), &mut Vec::new(), UNTIL));
    let whole = files.with(|memory| memory.seen.clone());
    let (mut refused, mut unreadable, mut harmless) = (0, 0, 0);
    for (path, bytes) in &whole {
        for place in places(bytes.len()) {
            let files = flipped(&whole, path, place);
            let what = format!("{} {place:?}", path.display());
            match reopen(&files) {
                Err(error) => {
                    let reason = error.to_string();
                    assert!(leads_to(path, &reason), "{what}: {reason}");
                    refused += 1;
                }
                Ok(opened) => {
                    let whole = check_sound(opened, &what);
                    *(if whole { &mut harmless } else { &mut unreadable }) += 1;
                }
            }
        }
    }
    assert!(whole.len() > 6 && refused > 100 && unreadable > 100, "{refused} {unreadable}");
    // What does no harm: a served checkpoint, which is written anew from the history.
    assert!(harmless > 0);
}

#[test]
fn a_served_checkpoint_with_a_flipped_bit_is_restored_from_the_history() {
    let files = Shared::default();
    assert!(work(&mut reopen(&files).unwrap(), &mut Vec::new(), UNTIL));
    let whole = files.with(|memory| memory.seen.clone());
    let path = PathBuf::from("/data/log/checkpoint");
    for place in places(whole[&path].len()) {
        let files = flipped(&whole, &path, place);
        reopen(&files).unwrap_or_else(|error| panic!("{place:?}: {error}"));
        let served = files.with(|memory| memory.seen[&path].clone());
        assert!(served == whole[&path], "{place:?} is served");
    }
}

#[test]
fn a_file_that_lost_its_end_or_is_empty_is_named_or_does_no_harm() {
    let files = Shared::default();
    assert!(work(&mut reopen(&files).unwrap(), &mut Vec::new(), UNTIL));
    let whole = files.with(|memory| memory.seen.clone());
    for (path, bytes) in &whole {
        for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            let files = flipped(&whole, path, (0, 0));
            files.with(|memory| {
                memory.seen.insert(path.clone(), bytes[..length].to_vec());
                memory.durable = memory.seen.clone();
            });
            let what = format!("{} cut at {length}", path.display());
            match reopen(&files) {
                Err(error) => assert!(leads_to(path, &error.to_string()), "{what}: {error}"),
                Ok(opened) => drop(check_sound(opened, &what)),
            }
        }
    }
}

#[test]
fn a_read_that_fails_is_reported_and_costs_nothing() {
    let clean = Shared::default();
    assert!(work(&mut reopen(&clean).unwrap(), &mut Vec::new(), 400));
    let begin = clean.with(|memory| memory.clone());
    clean.with(|memory| memory.reads = 0);
    assert!(work(&mut reopen(&clean).unwrap(), &mut Vec::new(), UNTIL));
    let reads = clean.with(|memory| memory.reads);
    assert!(reads > 30, "{reads}");
    for at in 0..reads {
        let files = Shared::default();
        files.with(|memory| {
            *memory = begin.clone();
            (memory.reads, memory.read_fault) = (0, Some(at));
        });
        let mut published = Vec::new();
        let went = match reopen(&files) {
            Ok(mut opened) => {
                assert_eq!(opened.writer.position().root, root_of(400), "read {at}");
                work(&mut opened, &mut published, UNTIL)
            }
            Err(error) => {
                let reason = error.to_string();
                assert!(reason.contains("/data") && reason.contains("EIO"), "read {at}: {reason}");
                false
            }
        };
        assert!(!went, "read {at} failed unnoticed");
        files.cut_power();
        let mut opened = reopen(&files).unwrap_or_else(|error| panic!("read {at}: {error}"));
        let size = opened.writer.position().size;
        assert!(size >= published.last().copied().unwrap_or(400), "read {at}");
        assert!(work(&mut opened, &mut published, UNTIL + 1), "read {at}");
        let entries = opened.reader.verified_entries(0, UNTIL).unwrap();
        assert!(entries.iter().eq((0..UNTIL).map(entry).collect::<Vec<Bytes>>().iter()));
        assert_eq!(opened.writer.position().root, root_of(UNTIL + 1), "read {at}");
    }
}
