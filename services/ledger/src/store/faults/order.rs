//! What has to be durable before what: asserted at every renaming, while a log grows and after it was reopened.
//!
//! A crash may leave the effects of any operations that were not synced, in any order, so it is not enough that they were made in
//! the right one: at the moment a name is given, everything that it speaks of has to be durable already.

use std::path::{Path, PathBuf};

use exchequer_tlog::{BundleId, LEVELS, SignedCheckpoint, TileId};

use super::{
    ORIGIN, UNTIL,
    memory::{Shared, Tree},
    reopen, work,
};
use crate::store::Position;

/// Whether a file of these entries or hashes is durable, in this width or a wider one.
fn is_durable(durable: &Tree, index: u64, width: u16, at: impl Fn(u64, u16) -> String) -> bool {
    (width..=256).any(|wider| durable.contains_key(&PathBuf::from(format!("/data/log/{}", at(index, wider)))))
}

fn missing(durable: &Tree, size: u64) -> Vec<String> {
    let mut missing = Vec::new();
    for index in 0..=size / 256 {
        let Some(id) = BundleId::in_tree(index, size) else { continue };
        if !is_durable(durable, index, id.width(), |i, w| BundleId::new(i, w).unwrap().to_string()) {
            missing.push(id.to_string());
        }
    }
    for level in 0..LEVELS.min(3) {
        for index in 0..=(size >> (8 * (u32::from(level) + 1))) {
            let Some(id) = TileId::in_tree(level, index, size) else { continue };
            if !is_durable(durable, index, id.width(), |i, w| TileId::new(level, i, w).unwrap().to_string()) {
                missing.push(id.to_string());
            }
        }
    }
    missing
}

fn check_discipline(durable: &Tree, to: &Path, bytes: &[u8]) {
    if to == Path::new("/data/state") {
        let position = Position::decode(bytes, ORIGIN).unwrap();
        let missing = missing(durable, position.size);
        assert!(
            missing.is_empty(),
            "a state of {} is named while {missing:?} are not durable",
            position.size
        );
    }
    if to == Path::new("/data/log/checkpoint") {
        let signed = SignedCheckpoint::parse(bytes).unwrap();
        let state = Position::decode(&durable[Path::new("/data/state")], ORIGIN).unwrap();
        let size = signed.checkpoint().size();
        assert!(
            size <= state.size,
            "a checkpoint of {size} is published over a durable state of {}",
            state.size
        );
        let in_history = |(path, segment): (&PathBuf, &Vec<u8>)| {
            path.starts_with("/data/checkpoints") && segment.windows(bytes.len()).any(|part| part == bytes)
        };
        assert!(durable.iter().any(in_history), "the checkpoint of {size} is published before it is kept");
    }
}

#[test]
fn nothing_is_named_before_what_it_speaks_of_is_durable() {
    let files = Shared::default();
    files.with(|memory| memory.watch = Some(check_discipline));
    assert!(work(&mut reopen(&files).unwrap(), &mut Vec::new(), 300));
    assert!(work(&mut reopen(&files).unwrap(), &mut Vec::new(), UNTIL));
    files.with(|memory| memory.seen.remove(Path::new("/data/log/checkpoint")));
    reopen(&files).unwrap();
}

#[test]
fn after_a_failed_operation_the_discipline_holds_as_well() {
    let clean = Shared::default();
    assert!(work(&mut reopen(&clean).unwrap(), &mut Vec::new(), UNTIL));
    for at in 0..clean.operations() {
        let files = Shared::failing(at, super::memory::Fault::Eio);
        files.with(|memory| memory.watch = Some(check_discipline));
        let mut opened = match reopen(&files) {
            Ok(opened) => opened,
            Err(_) => reopen(&files).unwrap(),
        };
        while !work(&mut opened, &mut Vec::new(), UNTIL) {
            opened.writer = opened.writer.reload().unwrap();
        }
    }
}
