//! Any number of threads finds the same: random damage, and each report compared as a whole.

use std::{fs, num::NonZeroUsize, path::Path};

use super::world::{Log, World, on_all_cores, saved, trust};
use crate::evidence::{
    report::{Report, Verdict},
    verify::{Request, Target, Trust, run_blocking},
};

/// A small deterministic generator (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % end as u64).unwrap()
    }
}

/// Damages one file of the log.
fn damage(random: &mut Random, log: &Log, dir: &Path) {
    let paths: Vec<_> = log.files.keys().filter(|path| *path != "checkpoint").collect();
    let path = paths[random.below(paths.len())];
    let mut bytes = log.files[path].clone();
    match random.below(6) {
        0 => return fs::remove_file(dir.join(path)).unwrap_or_default(),
        1 => bytes.truncate(random.below(bytes.len())),
        2 => bytes.extend_from_slice(b"more"),
        3 => bytes = log.files[paths[random.below(paths.len())]].clone(),
        _ => {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
    }
    fs::write(dir.join(path), bytes).unwrap();
}

#[test]
fn one_thread_and_many_report_the_same_of_any_damage() {
    let world = World::large(2000);
    let earlier = saved(Log::new(world.entries[..1113].to_vec()).signed_by(100));
    let log = world.log();
    let on = |dir: &Path, threads: usize| -> Report {
        let trust = Trust { checkpoints: vec![earlier.clone()], ..trust() };
        let (target, threads) = (Target::Directory(dir.into()), NonZeroUsize::new(threads));
        run_blocking(Request { target, trust, token: None, threads }, |_| {}).report
    };
    on_all_cores(48, |_, seed| {
        let dir = tempfile::tempdir().unwrap();
        log.write(dir.path());
        let mut random = Random(seed as u64);
        for _ in 0..seed % 4 {
            damage(&mut random, &log, dir.path());
        }
        let one = on(dir.path(), 1);
        assert!(seed % 4 != 0 || one.verdict == Verdict::Holds, "seed {seed}: {one}");
        for threads in [2, 4, 50] {
            assert_eq!(one, on(dir.path(), threads), "seed {seed}, {threads} threads");
        }
    });
}
