//! `cargo xtask tidy`: the house rules that rustfmt and clippy don't know.
//!
//! Each rule is a function from the project's files to findings and has a test that shows it find something.
//! Left out: anything that a lint of the compiler or clippy covers.
//!
//! Invariant: an exception is a line in a constant with its reason; one that excuses nothing is itself a finding.

mod contexts;
mod layering;
mod links;
mod naming;
mod source;

use std::collections::BTreeMap;
use std::path::Path;

use crate::scan::Source;
use crate::workspace;

/// One breach of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    path: String,
    /// Counted from 1; 0 where the file as a whole is meant.
    line: usize,
    text: String,
}

impl Finding {
    fn new(path: &str, line: usize, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, text: text.into() }
    }
}

/// An exception to a rule: where, and why it has to be.
struct Exception {
    path: &'static str,
    reason: &'static str,
}

/// The project's files by path; text files with their contents, Rust files taken apart.
#[derive(Default)]
pub(crate) struct Tree {
    texts: BTreeMap<String, String>,
    sources: BTreeMap<String, Source>,
}

impl Tree {
    fn load(root: &Path) -> Result<Self, String> {
        let mut tree = Self::default();
        for name in workspace::files(root)? {
            let bytes = std::fs::read(root.join(&name)).map_err(|error| format!("{name}: {error}"))?;
            // Binary files stay in the tree by name: links may point at them.
            tree.add(&name, String::from_utf8(bytes).unwrap_or_default());
        }
        Ok(tree)
    }

    fn add(&mut self, name: &str, text: String) {
        if is_rust(name) {
            self.sources.insert(name.to_owned(), Source::read(&text));
        }
        self.texts.insert(name.to_owned(), text);
    }

    #[cfg(test)]
    fn of(files: &[(&str, &str)]) -> Self {
        let mut tree = Self::default();
        for (name, text) in files {
            tree.add(name, (*text).to_owned());
        }
        tree
    }
}

type Rule = fn(&Tree) -> Vec<Finding>;

const RULES: [(&str, Rule); 12] = [
    ("pure crates stay pure", layering::pure_crates),
    ("services don't import each other", layering::services_apart),
    ("short files", naming::short_files),
    ("file names", naming::file_names),
    ("type names", naming::type_names),
    ("each file opens with its doc", naming::opening_docs),
    ("nothing left undone", source::nothing_left_undone),
    ("no ignored tests", source::no_ignored_tests),
    ("unsafe in one place, with reasons", source::unsafe_in_one_place),
    ("no sleeps in tests", source::no_sleeps_in_tests),
    ("links of the docs resolve", links::resolve),
    ("BLAKE3 contexts are in the docs' table", contexts::documented),
];

/// Checks every rule and prints all findings.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    let tree = Tree::load(root)?;
    let mut count = 0;
    for (name, rule) in RULES {
        let mut findings = rule(&tree);
        findings.sort();
        count += findings.len();
        println!("{} {name}", if findings.is_empty() { "ok  " } else { "FAIL" });
        for Finding { path, line, text } in findings {
            let place = if line == 0 { path } else { format!("{path}:{line}") };
            println!("       {place}: {text}");
        }
    }
    println!("{} rules, {} files, {count} findings", RULES.len(), tree.texts.len());
    if count == 0 { Ok(()) } else { Err(format!("tidy: {count} findings")) }
}

fn is_rust(path: &str) -> bool {
    has_extension(path, "rs")
}

fn has_extension(path: &str, wanted: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == wanted)
}

/// Whether a word stands in a line by itself, not as a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let in_name = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(in_name) && !after.is_some_and(in_name)
    })
}

/// Findings for exceptions that excused nothing: they would hide the next breach in that file.
fn unused(exceptions: &[Exception], used: &[&str], rule: &str) -> Vec<Finding> {
    exceptions
        .iter()
        .filter(|exception| !used.contains(&exception.path))
        .map(|exception| {
            Finding::new(
                exception.path,
                0,
                format!("excused from `{rule}` ({}) and doesn't need it", exception.reason),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asserts that a rule finds exactly these (path, line, part of the text) in these files.
    pub(super) fn check(rule: Rule, files: &[(&str, &str)], expected: &[(&str, usize, &str)]) {
        let mut findings = rule(&Tree::of(files));
        findings.sort();
        let places: Vec<_> = findings.iter().map(|found| (found.path.as_str(), found.line)).collect();
        let wanted: Vec<_> = expected.iter().map(|(path, line, _)| (*path, *line)).collect();
        assert_eq!(places, wanted, "{findings:#?}");
        for (found, (_, _, part)) in findings.iter().zip(expected) {
            assert!(found.text.contains(part), "`{part}` is not in `{}`", found.text);
        }
    }

    #[test]
    fn a_word_is_found_only_by_itself() {
        assert!(has_word("use rand;", "rand"));
        assert!(!has_word("operand + rand_core", "rand"));
        assert!(has_word("a rand_core rand", "rand"));
    }

    #[test]
    fn an_exception_that_excuses_nothing_is_a_finding() {
        let exceptions =
            [Exception { path: "a.rs", reason: "x" }, Exception { path: "b.rs", reason: "because" }];
        let found = unused(&exceptions, &["a.rs"], "rule");
        assert_eq!(found, [Finding::new("b.rs", 0, "excused from `rule` (because) and doesn't need it")]);
    }
}
