//! Rules about what stands in the source: nothing undone, no ignored tests, `unsafe` in one place, no sleeps in tests.

use super::{Exception, Finding, Tree, has_word, unused};

/// Marks of something left for later. Written in two halves, so that this file isn't a finding.
const MARKS: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];

/// Macros that panic in place of code.
const STUBS: [&str; 2] = ["todo!", "unimplemented!"];

/// Where `unsafe` may stand.
const UNSAFE: [Exception; 1] = [Exception {
    path: "sandbox-agent/src/sandbox/sys.rs",
    reason: "the calls that rustix has no safe form of: fork, exec, signals, and what runs between them",
}];

/// How many lines above an `unsafe` its reason may stand.
const REASON_WITHIN: usize = 4;

/// Where a test may sleep: between two looks at a condition that nothing announces.
const SLEEPS: [Exception; 6] = [
    Exception {
        path: "crates/cli/tests/commands/served.rs",
        reason: "a process at rest is watched for a while; the while is what is measured",
    },
    Exception {
        path: "crates/cli/tests/commands/up.rs",
        reason: "`until` polls what processes of their own write and answer",
    },
    Exception { path: "crates/cli/tests/daemons.rs", reason: "`until` polls the daemons' answers" },
    Exception {
        path: "crates/testkit/src/eventually.rs",
        reason: "`eventually` polls a test's own condition",
    },
    Exception {
        path: "crates/testkit/src/nats.rs",
        reason: "polls for the file that tells a server's ports",
    },
    Exception { path: "sandbox-agent/tests/sandbox/rig.rs", reason: "`until` polls the host's processes" },
];

/// No mark of unfinished work in any file, and no stub in code.
pub(super) fn nothing_left_undone(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, text) in &tree.texts {
        for (index, line) in text.lines().enumerate() {
            for mark in MARKS.iter().filter(|mark| has_word(line, mark)) {
                found.push(Finding::new(path, index + 1, format!("`{mark}`")));
            }
        }
    }
    for (path, source) in &tree.sources {
        for (line, code) in source.lines() {
            for stub in STUBS.iter().filter(|stub| code.contains(*stub)) {
                found.push(Finding::new(path, line, format!("`{stub}`")));
            }
        }
    }
    found
}

/// No test is ignored, by attribute or as a doc test.
pub(super) fn no_ignored_tests(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, source) in &tree.sources {
        for (line, code) in source.lines() {
            let by_configuration = code.contains("cfg_attr(") && has_word(code, "ignore");
            if code.contains("#[ignore") || by_configuration {
                found.push(Finding::new(path, line, "an ignored test"));
            }
        }
        for comment in source.comments.iter().filter(|comment| comment.text.contains("```ignore")) {
            found.push(Finding::new(path, comment.line, "an ignored doc test"));
        }
    }
    found
}

/// `unsafe` stands only where [`UNSAFE`] says, and each time with a `SAFETY` comment just above.
pub(super) fn unsafe_in_one_place(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut used = Vec::new();
    for (path, source) in &tree.sources {
        for (line, _) in source.lines().filter(|(_, code)| has_word(code, "unsafe")) {
            let Some(exception) = UNSAFE.iter().find(|exception| exception.path == path) else {
                found.push(Finding::new(path, line, "`unsafe` outside the one file that may hold it"));
                continue;
            };
            used.push(exception.path);
            let reasoned = source.comments.iter().any(|comment| {
                comment.text.contains("SAFETY")
                    && comment.line <= line
                    && comment.line + REASON_WITHIN >= line
            });
            if !reasoned {
                found.push(Finding::new(path, line, "`unsafe` without a SAFETY comment just above"));
            }
        }
    }
    found.extend(unused(&UNSAFE, &used, "unsafe in one place"));
    found
}

/// Tests await conditions; they don't sleep and hope.
pub(super) fn no_sleeps_in_tests(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut used = Vec::new();
    for (path, source) in &tree.sources {
        let whole =
            path.contains("/tests/") || path.ends_with("/tests.rs") || path.starts_with("crates/testkit/");
        let ranges = source.test_lines();
        for (line, code) in source.lines() {
            let in_test = whole || ranges.iter().any(|range| range.contains(&line));
            let sleeps = ["sleep", "sleep_until", "sleep_ms"]
                .iter()
                .any(|name| has_word(code, name) && code.contains(&format!("{name}(")));
            if !in_test || !sleeps {
                continue;
            }
            match SLEEPS.iter().find(|exception| exception.path == path) {
                Some(exception) => used.push(exception.path),
                None => found.push(Finding::new(path, line, "a sleep in a test; await the condition")),
            }
        }
    }
    found.extend(unused(&SLEEPS, &used, "no sleeps in tests"));
    found
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;
    use super::*;

    /// The files that the exceptions name, so that a test of something else sees no unused exception.
    const SYS: (&str, &str) = ("sandbox-agent/src/sandbox/sys.rs", "// SAFETY: x\nunsafe { a() }\n");
    const SLEEPER: &str = "fn f() { tokio::time::sleep(d) }\n";

    #[test]
    fn marks_and_stubs_are_found() {
        let marked = format!("a\n# {}: later\nnot{0}s\n", MARKS[0]);
        check(
            nothing_left_undone,
            &[("a.toml", &marked), ("b.rs", "fn a() { todo!() }\n// a todo!() in a comment\n")],
            &[("a.toml", 2, MARKS[0]), ("b.rs", 1, "`todo!`")],
        );
    }

    #[test]
    fn ignored_tests_are_found() {
        let text =
            "#[ignore = \"slow\"]\n#[cfg_attr(windows, ignore)]\n/// ```ignore\n// #[ignore]\n#[test]\n";
        let expected = [("a.rs", 1, "test"), ("a.rs", 2, "test"), ("a.rs", 3, "doc test")];
        check(no_ignored_tests, &[("a.rs", text)], &expected);
    }

    #[test]
    fn unsafe_elsewhere_or_without_a_reason_is_found() {
        let bare = format!("{}{}unsafe {{ b() }}\n", SYS.1, "\n".repeat(REASON_WITHIN));
        check(unsafe_in_one_place, &[SYS, ("b.rs", "// unsafe\n#![deny(unsafe_code)]\n")], &[]);
        check(
            unsafe_in_one_place,
            &[("a.rs", "// SAFETY: no.\nfn a() { unsafe { b() } }\n"), (SYS.0, &bare)],
            &[("a.rs", 2, "outside"), (SYS.0, 7, "without a SAFETY")],
        );
    }

    #[test]
    fn an_exception_for_unsafe_that_nothing_needs_is_found() {
        check(unsafe_in_one_place, &[("a.rs", "")], &[(SYS.0, 0, "doesn't need it")]);
    }

    #[test]
    fn a_sleep_in_a_test_is_found_and_one_in_the_product_is_not() {
        let mixed = "fn a() { sleep(d) }\n#[cfg(test)]\nmod tests {\n fn b() { thread::sleep(d) }\n}\n";
        let mut files: Vec<_> = SLEEPS.iter().map(|exception| (exception.path, SLEEPER)).collect();
        files.push(("a/src/lib.rs", mixed));
        files.push(("a/tests/x.rs", "fn c() { sleep_until(t) }\n// sleep(1)\n"));
        check(no_sleeps_in_tests, &files, &[("a/src/lib.rs", 4, "sleep"), ("a/tests/x.rs", 1, "sleep")]);
    }
}
