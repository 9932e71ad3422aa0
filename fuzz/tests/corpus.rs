//! The kept corpus through every target, and what the corpus has to be.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use exchequer_fuzz::{TARGETS, Target, target};

/// Bytes of the whole corpus: it is kept with the sources.
const MAX_CORPUS_BYTES: usize = 1024 * 1024;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn inputs(target: Target) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = corpus().join(target.name);
    let files = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    files.map(|file| file.unwrap().path()).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn every_kept_input_keeps_every_property() {
    for target in TARGETS {
        let (mut accepted, mut refused) = (0, 0);
        for (path, input) in inputs(target) {
            let outcome = std::panic::catch_unwind(|| (target.run)(&input));
            let outcome = outcome.unwrap_or_else(|_| panic!("{} {}", target.name, path.display()));
            *(if outcome { &mut accepted } else { &mut refused }) += 1;
        }
        assert!(accepted > 0, "{}: nothing in the corpus is accepted", target.name);
        assert!(refused > 0, "{}: nothing in the corpus is refused", target.name);
    }
}

#[test]
fn what_the_project_writes_itself_is_accepted() {
    for target in TARGETS {
        let samples = (target.samples)();
        assert!(samples.iter().any(|sample| (target.run)(sample)), "{}", target.name);
    }
}

#[test]
fn each_target_has_a_corpus_and_each_corpus_a_target() {
    let dirs = fs::read_dir(corpus()).unwrap();
    let names: BTreeSet<_> = dirs.map(|dir| dir.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().all(|name| target(name).is_some()), "{names:?}");
    assert_eq!(names.len(), TARGETS.len());
    let bytes: usize = TARGETS.into_iter().flat_map(inputs).map(|(_, input)| input.len()).sum();
    assert!(bytes <= MAX_CORPUS_BYTES, "{bytes}");
}
