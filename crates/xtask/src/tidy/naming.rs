//! Rules about files and names: length, banned names, opening docs.

use super::{Finding, Tree, is_rust};

/// "About 600 lines": a file beyond it has more than one subject.
const MOST_LINES: usize = 600;

/// Stems that say nothing about what is inside. `mod.rs` hides the module's name from every tab and search.
const EMPTY_NAMES: [&str; 7] = ["util", "utils", "common", "types", "shared", "helpers", "mod"];

const EMPTY_SUFFIXES: [&str; 3] = ["Manager", "Handler", "Helper"];

const TYPE_WORDS: [&str; 5] = ["struct", "enum", "trait", "type", "union"];

/// No Rust file is longer than [`MOST_LINES`].
pub(super) fn short_files(tree: &Tree) -> Vec<Finding> {
    rust_texts(tree)
        .filter_map(|(path, text)| {
            let lines = text.lines().count();
            (lines > MOST_LINES)
                .then(|| Finding::new(path, 0, format!("{lines} lines; at most {MOST_LINES}")))
        })
        .collect()
}

/// No Rust file or folder has a name that says nothing.
pub(super) fn file_names(tree: &Tree) -> Vec<Finding> {
    rust_texts(tree)
        .filter_map(|(path, _)| {
            let stem = path.trim_end_matches(".rs");
            let empty = stem.split('/').find(|part| EMPTY_NAMES.contains(part))?;
            Some(Finding::new(path, 0, format!("`{empty}` says nothing about what is inside")))
        })
        .collect()
}

/// No type's name ends in a word that says nothing.
pub(super) fn type_names(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, source) in &tree.sources {
        for (line, code) in source.lines() {
            let words: Vec<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            for pair in words.windows(2) {
                let empty = EMPTY_SUFFIXES.iter().any(|suffix| pair[1].ends_with(suffix));
                if TYPE_WORDS.contains(&pair[0]) && empty {
                    found.push(Finding::new(path, line, format!("`{}` doesn't say what it does", pair[1])));
                }
            }
        }
    }
    found
}

/// Every Rust file opens with `//!`.
pub(super) fn opening_docs(tree: &Tree) -> Vec<Finding> {
    rust_texts(tree)
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| {
            Finding::new(path, 1, "the file doesn't open with `//!`: what it does, what it leaves out")
        })
        .collect()
}

fn rust_texts(tree: &Tree) -> impl Iterator<Item = (&String, &String)> {
    tree.texts.iter().filter(|(path, _)| is_rust(path))
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;
    use super::*;

    #[test]
    fn a_file_of_601_lines_is_found_and_one_of_600_is_not() {
        let (long, short) = ("\n".repeat(601), "\n".repeat(600));
        check(
            short_files,
            &[("a.rs", &long), ("b.rs", &short), ("c.md", &long)],
            &[("a.rs", 0, "601 lines")],
        );
    }

    #[test]
    fn names_that_say_nothing_are_found_in_files_and_folders() {
        let files =
            [("src/utils.rs", ""), ("tests/common/x.rs", ""), ("src/a/mod.rs", ""), ("src/modern.rs", "")];
        let expected = [
            ("src/a/mod.rs", 0, "`mod`"),
            ("src/utils.rs", 0, "`utils`"),
            ("tests/common/x.rs", 0, "`common`"),
        ];
        check(file_names, &files, &expected);
    }

    #[test]
    fn types_that_say_nothing_are_found_in_code_and_not_in_comments() {
        let text = "// struct AManager\npub struct SpoolManager<T>(T);\ntype JobHandler = ();\nuse x::OtherHelper;\n";
        check(type_names, &[("a.rs", text)], &[("a.rs", 2, "`SpoolManager`"), ("a.rs", 3, "`JobHandler`")]);
    }

    #[test]
    fn a_file_without_an_opening_doc_is_found() {
        check(
            opening_docs,
            &[("a.rs", "//! A.\n"), ("b.rs", "// B.\n")],
            &[("b.rs", 1, "doesn't open with")],
        );
    }
}
