//! Rules about who may depend on what: pure crates on nothing impure, services not on each other.
//!
//! Left out: dev-dependencies of pure crates; their tests may use oracles of any kind.

use super::{Finding, Tree, has_word};

/// The crates that are the same function of the same input everywhere, always.
const PURE: [&str; 3] = ["crates/event", "crates/tlog", "crates/budget"];

/// What a pure crate may depend on. None of these does IO, reads a clock, draws randomness, logs or is async.
const PURE_DEPENDENCIES: [&str; 14] = [
    "base64",
    "blake3",
    "bytes",
    // Without its default features, so that it draws no nonces: it is given them.
    "chacha20poly1305",
    "ed25519-dalek",
    "exchequer-proto",
    "hex",
    // Without the system's zones and clock zone: the workspace takes its bundled database only.
    "jiff",
    "prost",
    "rs_merkle",
    "serde",
    "serde_json",
    "sha2",
    "thiserror",
];

/// Modules of std that reach outside, by any path (`std::fs`, `use std::{fs, io}`).
const OUTSIDE: [&str; 6] = ["fs", "net", "time", "thread", "process", "env"];

/// Words that have no place in a pure crate's code.
const IMPURE: [&str; 13] = [
    "Instant",
    "SystemTime",
    "tokio",
    "futures",
    "tracing",
    "rand",
    "getrandom",
    "OsRng",
    "async",
    "await",
    "println",
    "eprintln",
    "dbg",
];

/// Money and usage are integers; a float would make two replays differ.
const FLOATS: [&str; 2] = ["f32", "f64"];

/// The packages that meet on the stream and in proto only.
const SERVICES: [(&str, &str); 3] = [
    ("services/ledger", "exchequer-ledger"),
    ("services/metering", "exchequer-metering"),
    ("sandbox-agent", "sandbox-agent"),
];

/// Pure crates depend on listed crates only, and their code names nothing impure.
pub(super) fn pure_crates(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for folder in PURE {
        let manifest = format!("{folder}/Cargo.toml");
        match tree.texts.get(&manifest) {
            None => found.push(Finding::new(&manifest, 0, "the pure crate is gone; the rule must be told")),
            Some(text) => found.extend(impure_dependencies(&manifest, text)),
        }
        let inside = format!("{folder}/src/");
        for (path, source) in
            tree.sources.range(inside.clone()..).take_while(|(path, _)| path.starts_with(&inside))
        {
            let tests = source.test_lines();
            let floats = if folder == "crates/budget" { &FLOATS[..] } else { &[] };
            for (line, code) in
                source.lines().filter(|(line, _)| !tests.iter().any(|range| range.contains(line)))
            {
                if path.ends_with("/tests.rs") {
                    continue;
                }
                for word in IMPURE.iter().chain(floats).filter(|word| has_word(code, word)) {
                    found.push(Finding::new(path, line, format!("`{word}` in a pure crate")));
                }
            }
            let excluded =
                |line: usize| tests.iter().any(|range| range.contains(&line)) || path.ends_with("/tests.rs");
            for (line, module) in std_modules(&source.code).into_iter().filter(|(line, _)| !excluded(*line)) {
                found.push(Finding::new(path, line, format!("`std::{module}` in a pure crate")));
            }
        }
    }
    found
}

/// A service's manifest and code don't name another service's package.
pub(super) fn services_apart(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (folder, own) in SERVICES {
        let inside = format!("{folder}/");
        for (_, other) in SERVICES.iter().filter(|(_, package)| *package != own) {
            let manifest = format!("{folder}/Cargo.toml");
            if let Some(text) = tree.texts.get(&manifest) {
                for (line, _, name, _) in dependencies(text).filter(|(_, _, name, _)| name == other) {
                    found.push(Finding::new(&manifest, line, format!("{own} depends on {name}")));
                }
            }
            let module = other.replace('-', "_");
            for (path, source) in
                tree.sources.range(inside.clone()..).take_while(|(p, _)| p.starts_with(&inside))
            {
                for (line, _) in source.lines().filter(|(_, code)| has_word(code, &module)) {
                    found.push(Finding::new(path, line, format!("{own} uses {module}")));
                }
            }
        }
    }
    found
}

fn impure_dependencies(manifest: &str, text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    for (line, section, name, rest) in dependencies(text) {
        if section.ends_with("dev-dependencies") {
            continue;
        }
        if !PURE_DEPENDENCIES.contains(&name) {
            found.push(Finding::new(manifest, line, format!("`{name}` is not on the list for pure crates")));
        }
        if name == "exchequer-proto" && rest.contains("grpc") {
            found.push(Finding::new(manifest, line, "a pure crate takes the messages only, without `grpc`"));
        }
    }
    found
}

/// Each dependency of a manifest: line, section, name, and the rest of its line.
fn dependencies(text: &str) -> impl Iterator<Item = (usize, &str, &str, &str)> {
    let mut section = "";
    text.lines().enumerate().filter_map(move |(index, line)| {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
            // `[dependencies.name]` is a dependency of its own.
            return section.split_once("dependencies.").map(|(kind, name)| {
                (
                    index + 1,
                    if kind.ends_with("dev-") { "dev-dependencies" } else { "dependencies" },
                    name,
                    "",
                )
            });
        }
        if !section.ends_with("dependencies") || line.starts_with('#') {
            return None;
        }
        let (key, rest) = line.split_once('=')?;
        let name = key.trim().split('.').next().unwrap_or_default();
        Some((index + 1, section, name, rest))
    })
}

/// Every module of [`OUTSIDE`] that a `std::` path reaches, grouped imports included, with its line.
fn std_modules(code: &str) -> Vec<(usize, &'static str)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("std::") {
        if code[..at].ends_with(|character: char| character.is_alphanumeric() || character == '_') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let after = code[at + "std::".len()..].trim_start();
        let names: Vec<&str> = match after.strip_prefix('{') {
            Some(group) => top_level(group),
            None => vec![first_name(after)],
        };
        for module in OUTSIDE.into_iter().filter(|module| names.contains(module)) {
            found.push((line, module));
        }
    }
    found
}

/// The first names of the members of an import group whose opening brace is already taken off.
fn top_level(group: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (offset, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(first_name(group[start..offset].trim_start()));
                start = offset + 1;
                if character == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names
}

fn first_name(path: &str) -> &str {
    path.split(|character: char| !character.is_alphanumeric() && character != '_').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;
    use super::*;

    const OTHERS: [(&str, &str); 2] = [("crates/tlog/Cargo.toml", ""), ("crates/budget/Cargo.toml", "")];

    #[test]
    fn an_impure_dependency_is_found_and_a_test_one_is_not() {
        let manifest = "[dependencies]\nblake3.workspace = true\ntokio = \"1\"\n\
                        exchequer-proto = { workspace = true, features = [\"grpc\"] }\n\
                        [dev-dependencies]\nrand = \"1\"\n[dependencies.sled]\nversion = \"1\"\n";
        let files = [("crates/event/Cargo.toml", manifest), OTHERS[0], OTHERS[1]];
        check(
            pure_crates,
            &files,
            &[
                ("crates/event/Cargo.toml", 3, "`tokio` is not on the list"),
                ("crates/event/Cargo.toml", 4, "without `grpc`"),
                ("crates/event/Cargo.toml", 7, "`sled` is not on the list"),
            ],
        );
    }

    #[test]
    fn a_clock_or_a_file_in_a_pure_crate_is_found_and_one_in_its_tests_is_not() {
        let code = "//! std::fs in a doc is fine.\nuse std::{collections::BTreeMap, fs, io::{self, Write}};\n\
                    fn a() { std::time::Duration::ZERO; }\nfn b() { let t = Instant::now(); }\n\
                    #[cfg(test)]\nmod tests { use std::fs; }\n";
        let files =
            [("crates/event/Cargo.toml", ""), OTHERS[0], OTHERS[1], ("crates/event/src/lib.rs", code)];
        check(
            pure_crates,
            &files,
            &[
                ("crates/event/src/lib.rs", 2, "`std::fs`"),
                ("crates/event/src/lib.rs", 3, "`std::time`"),
                ("crates/event/src/lib.rs", 4, "`Instant`"),
            ],
        );
    }

    #[test]
    fn floats_are_found_in_the_budget_only() {
        let code = "fn a() -> f64 { 0.5 }\n";
        let files = [
            ("crates/event/Cargo.toml", ""),
            ("crates/event/src/lib.rs", code),
            OTHERS[0],
            OTHERS[1],
            ("crates/budget/src/lib.rs", code),
        ];
        check(pure_crates, &files, &[("crates/budget/src/lib.rs", 1, "`f64`")]);
    }

    #[test]
    fn a_pure_crate_that_has_moved_is_found() {
        let files = [("crates/event/Cargo.toml", ""), OTHERS[0]];
        check(pure_crates, &files, &[("crates/budget/Cargo.toml", 0, "is gone")]);
    }

    #[test]
    fn a_service_that_imports_another_is_found_in_manifest_and_code() {
        let files = [
            ("services/ledger/Cargo.toml", "[dev-dependencies]\nexchequer-metering.workspace = true\n"),
            ("services/ledger/src/lib.rs", "use sandbox_agent::Service;\n"),
            ("services/metering/Cargo.toml", "[package]\nname = \"exchequer-metering\"\n"),
        ];
        check(
            services_apart,
            &files,
            &[
                ("services/ledger/Cargo.toml", 2, "depends on exchequer-metering"),
                ("services/ledger/src/lib.rs", 1, "uses sandbox_agent"),
            ],
        );
    }
}
