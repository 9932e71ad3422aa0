//! The BLAKE3 `derive_key` contexts of the code are those of the table in `docs/protocol.md`, in both directions.
//!
//! A context is any string literal of product code that begins with the prefix and is plain text; one with an escape in
//! it is something else (a file's magic line). Tests may make up their own.

use std::collections::BTreeMap;

use super::{Finding, Tree};

const PREFIX: &str = "exchequer.v1 ";
const TABLE: &str = "docs/protocol.md";

/// Each context of the code is in the docs, each one of the docs in the code.
pub(super) fn documented(tree: &Tree) -> Vec<Finding> {
    let Some(docs) = tree.texts.get(TABLE) else {
        return vec![Finding::new(TABLE, 0, "is missing; it holds the table of contexts")];
    };
    let mut in_docs = BTreeMap::new();
    for (index, line) in docs.lines().enumerate() {
        // Odd pieces are between backquotes.
        for context in line.split('`').skip(1).step_by(2).filter(|piece| piece.starts_with(PREFIX)) {
            in_docs.entry(context).or_insert(index + 1);
        }
    }
    let mut in_code = BTreeMap::new();
    for (path, source) in
        tree.sources.iter().filter(|(path, _)| path.contains("src/") && !path.contains("xtask/"))
    {
        let tests = source.test_lines();
        let product =
            source.strings.iter().filter(|piece| !tests.iter().any(|range| range.contains(&piece.line)));
        for piece in product.filter(|piece| is_context(&piece.text) && !path.ends_with("/tests.rs")) {
            in_code.entry(piece.text.as_str()).or_insert((path, piece.line));
        }
    }
    let undocumented = in_code
        .iter()
        .filter(|(context, _)| !in_docs.contains_key(*context))
        .map(|(context, (path, line))| Finding::new(path, *line, format!("`{context}` is not in {TABLE}")));
    let unknown = in_docs
        .iter()
        .filter(|(context, _)| !in_code.contains_key(*context))
        .map(|(context, line)| Finding::new(TABLE, *line, format!("no code uses `{context}`")));
    undocumented.chain(unknown).collect()
}

fn is_context(literal: &str) -> bool {
    literal.starts_with(PREFIX) && !literal.contains('\\')
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;
    use super::*;

    #[test]
    fn contexts_are_compared_in_both_directions() {
        let docs = "| `exchequer.v1 batch leaf` | a |\n| `exchequer.v1 gone` | b |\n";
        let code = "const A: &str = \"exchequer.v1 batch leaf\";\nconst B: &str = \"exchequer.v1 new\";\n\
                    #[cfg(test)]\nmod tests { const C: &str = \"exchequer.v1 made up\"; }\n\
                    const MAGIC: &[u8] = b\"exchequer.v1 batch leaf\\n\";\n";
        check(
            documented,
            &[(TABLE, docs), ("crates/event/src/lib.rs", code)],
            &[
                ("crates/event/src/lib.rs", 2, "`exchequer.v1 new` is not in"),
                (TABLE, 2, "no code uses `exchequer.v1 gone`"),
            ],
        );
    }

    #[test]
    fn a_missing_table_is_found() {
        check(documented, &[("src/lib.rs", "")], &[(TABLE, 0, "is missing")]);
    }
}
