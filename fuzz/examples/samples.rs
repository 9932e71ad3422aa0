//! Writes the samples of every target into the kept corpus: `cargo run -p exchequer-fuzz --example samples`.
//!
//! Left out: what fuzzing found; `cargo xtask fuzz` keeps that. Invariant: files of other names are left as they are.

use std::{fs, io, path::Path};

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in exchequer_fuzz::TARGETS {
        let dir = corpus.join(target.name);
        fs::create_dir_all(&dir)?;
        for (number, sample) in (target.samples)().iter().enumerate() {
            fs::write(dir.join(format!("sample-{number}")), sample)?;
        }
    }
    Ok(())
}
