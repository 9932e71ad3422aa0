//! The program that fuzzes: libFuzzer around the target that `FUZZ_TARGET` names. `cargo xtask fuzz` builds and runs it.
//!
//! Left out: the targets. Invariant: an input is kept for the corpus whether it was accepted or not, since refusing is half of the job.
#![no_main]

use std::sync::LazyLock;

use exchequer_fuzz::{Target, target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    target(&name).unwrap_or_else(|| panic!("FUZZ_TARGET names no target: {name:?}"))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    (TARGET.run)(data);
});
