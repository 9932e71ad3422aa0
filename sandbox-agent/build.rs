//! Builds the attacks of the probe suite (`probes/*.c`) into one static program, which the library embeds.
//!
//! Left out: a failure. Without a compiler or a static C library the program is empty and the reason is embedded in its place, and whoever
//! asks for a probe is told (`src/probes/stage.rs`). Invariant: warnings of the C compiler are shown, never dropped.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=probes");
    println!("cargo:rerun-if-env-changed=CC");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let (program, reason) = (out.join("attack"), out.join("attack.problem"));
    let problem = match compile(&program) {
        Ok(()) => String::new(),
        Err(problem) => {
            println!("cargo:warning=the sandbox's probes can't be built: {problem}");
            // What a compiler left half done is not to be embedded.
            if let Err(error) = std::fs::write(&program, []) {
                println!("cargo:error={}: {error}", program.display());
            }
            problem
        }
    };
    if let Err(error) = std::fs::write(&reason, problem) {
        println!("cargo:error={}: {error}", reason.display());
    }
}

fn compile(program: &PathBuf) -> Result<(), String> {
    let mut sources = std::fs::read_dir("probes")
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>())
        .map_err(|error| format!("probes: {error}"))?;
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "c"));
    sources.sort();
    let compiler = cc::Build::new()
        .warnings(false)
        .cargo_metadata(false)
        .try_get_compiler()
        .map_err(|error| error.to_string())?;
    let built = compiler
        .to_command()
        .args(["-static", "-O1", "-s", "-Wall", "-Wextra", "-o"])
        .arg(program)
        .args(&sources)
        .output()
        .map_err(|error| format!("{}: {error}", compiler.path().display()))?;
    let said = String::from_utf8_lossy(&built.stderr);
    if !built.status.success() {
        let first = said.lines().find(|line| line.contains("error") || line.contains("cannot find"));
        return Err(format!("{}: {}", compiler.path().display(), first.unwrap_or("failed without a word")));
    }
    for line in said.lines() {
        println!("cargo:warning={line}");
    }
    Ok(())
}
