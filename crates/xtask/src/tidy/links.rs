//! Relative links of README.md and of everything under docs/ lead somewhere, down to the heading.
//!
//! Left out: links to other sites. Whether those answer is not a property of this tree.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Tree, has_extension};

/// Every relative link of the docs names a file (or folder) of the project and, after `#`, a heading in it.
pub(super) fn resolve(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    if !tree.texts.contains_key("README.md") {
        found.push(Finding::new("README.md", 0, "is missing"));
    }
    let mut anchors: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in tree.texts.iter().filter(|(path, _)| has_extension(path, "md")) {
        anchors.insert(path, headings(text));
    }
    for (path, text) in tree.texts.iter().filter(|(path, _)| is_doc(path)) {
        for (line, target) in targets(text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let Some(resolved) = join(path, file) else {
                found.push(Finding::new(path, line, format!("`{target}` leads out of the project")));
                continue;
            };
            if !exists(tree, &resolved) {
                found.push(Finding::new(path, line, format!("`{target}`: there is no {resolved}")));
            } else if !anchor.is_empty()
                && !anchors.get(resolved.as_str()).is_some_and(|a| a.contains(anchor))
            {
                found.push(Finding::new(
                    path,
                    line,
                    format!("`{target}`: no heading #{anchor} in {resolved}"),
                ));
            }
        }
    }
    found
}

fn is_doc(path: &str) -> bool {
    path == "README.md" || (path.starts_with("docs/") && has_extension(path, "md"))
}

fn exists(tree: &Tree, path: &str) -> bool {
    let folder = format!("{}/", path.trim_end_matches('/'));
    path.is_empty()
        || tree.texts.contains_key(path)
        || tree.texts.range(folder.clone()..).next().is_some_and(|(name, _)| name.starts_with(&folder))
}

/// The path that a link of `from` means, relative to the root; `None` if it leaves the root.
fn join(from: &str, link: &str) -> Option<String> {
    if link.is_empty() {
        return Some(from.to_owned());
    }
    let mut parts: Vec<&str> = if link.starts_with('/') { Vec::new() } else { from.split('/').collect() };
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// Lines outside code fences, with inline code blanked, counted from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        if fenced {
            return None;
        }
        let mut kept = String::new();
        for (part, piece) in line.split('`').enumerate() {
            kept.push_str(if part % 2 == 0 { piece } else { " " });
        }
        Some((index + 1, kept))
    })
}

/// The targets of inline links and images, `[text](target)`, and of definitions, `[name]: target`.
fn targets(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (line, prose) in prose(text) {
        for (at, _) in prose.match_indices("](") {
            let inner = &prose[at + 2..];
            let target = inner.split([')', ' ']).next().unwrap_or_default();
            found.push((line, target.trim_matches(['<', '>']).to_owned()));
        }
        if let Some((_, target)) = prose.strip_prefix('[').and_then(|rest| rest.split_once("]: ")) {
            found.push((line, target.split_whitespace().next().unwrap_or_default().to_owned()));
        }
    }
    found
}

/// The anchors that a file's headings make, as the common renderers form them, and explicit `id="…"` ones.
fn headings(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        if let Some((_, rest)) = line.split_once("id=\"") {
            anchors.extend(rest.split_once('"').map(|(id, _)| id.to_owned()));
        }
        let Some(title) = line.strip_prefix('#').map(|rest| rest.trim_start_matches('#')) else {
            continue;
        };
        let Some(title) = title.strip_prefix(' ') else {
            continue;
        };
        let slug: String = title
            .trim()
            .chars()
            .filter_map(|character| match character {
                ' ' => Some('-'),
                '-' | '_' => Some(character),
                _ if character.is_alphanumeric() => Some(character.to_ascii_lowercase()),
                _ => None,
            })
            .collect();
        let repeats = (1..).map(|count| format!("{slug}-{count}"));
        let free = std::iter::once(slug.clone()).chain(repeats).find(|anchor| !anchors.contains(anchor));
        anchors.extend(free);
    }
    anchors
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;
    use super::*;

    #[test]
    fn links_to_files_folders_and_headings_resolve() {
        let readme = "# A title\n[a](docs/a.md#the-table-of-contexts) [b](docs/) [c](#a-title) [d](https://x.y/z)\n\
                      `[not](a-link)`\n```\n[nor](this)\n```\n[e]: LICENSE\n";
        let doc = "## The table, of `contexts`\n[up](../README.md)\n";
        check(resolve, &[("README.md", readme), ("docs/a.md", doc), ("LICENSE", "")], &[]);
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let readme = "[a](docs/b.md)\n[b](docs/a.md#nowhere)\n[c](../outside.md)\n[d]: gone.md\n";
        check(
            resolve,
            &[("README.md", readme), ("docs/a.md", "# Here\n")],
            &[
                ("README.md", 1, "there is no docs/b.md"),
                ("README.md", 2, "no heading #nowhere in docs/a.md"),
                ("README.md", 3, "leads out"),
                ("README.md", 4, "there is no gone.md"),
            ],
        );
    }

    #[test]
    fn a_missing_readme_is_found() {
        check(resolve, &[("docs/a.md", "")], &[("README.md", 0, "missing")]);
    }

    #[test]
    fn repeated_headings_get_numbers() {
        let anchors = headings("# One\n# One\n## Two words, here\n");
        assert_eq!(anchors.into_iter().collect::<Vec<_>>(), ["one", "one-1", "two-words-here"]);
    }
}
