//! The agent container's seccomp profile lets through what the sandbox's own list allows.
//!
//! Filters stack: a call that the container refuses never reaches the sandbox's list, and a program would fail in the
//! container that runs elsewhere. Left out: whether the agent itself gets by; `cargo xtask docker` finds that out.

use super::{Finding, Tree};

const SANDBOX: &str = "sandbox-agent/src/sandbox/syscalls.rs";
const CONTAINER: &str = "docker/seccomp.json";

/// Every call in the sandbox's `ALLOWED…` lists has a place in the container's profile.
pub(super) fn covers_sandbox(tree: &Tree) -> Vec<Finding> {
    let (Some(source), Some(profile)) = (tree.sources.get(SANDBOX), tree.texts.get(CONTAINER)) else {
        return vec![Finding::new(CONTAINER, 0, format!("it or {SANDBOX} is gone; the rule must be told"))];
    };
    let mut inside = false;
    let mut seen = 0;
    let mut found = Vec::new();
    for (line, code) in source.lines() {
        if code.contains("const ALLOWED") {
            inside = true;
        }
        if let Some((_, rest)) = code.split_once("libc::SYS_").filter(|_| inside) {
            let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            seen += 1;
            if !profile.contains(&format!("\"{name}\"")) {
                found.push(Finding::new(SANDBOX, line, format!("`{name}` is not in {CONTAINER}")));
            }
        }
        if code.contains("];") {
            inside = false;
        }
    }
    if seen == 0 {
        found.push(Finding::new(SANDBOX, 0, "no `ALLOWED` list found in it; the rule must be told"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::tests::check;
    use super::*;

    #[test]
    fn a_call_that_the_container_would_refuse_is_found() {
        let list = "pub const ALLOWED: &[Entry] = &[\n    (libc::SYS_read, \"input\"),\n    (libc::SYS_tee, \"tee\"),\n];\n\
                    pub const HOSTILE: &[Entry] = &[\n    (libc::SYS_bpf, \"kernel\"),\n];\n";
        check(
            covers_sandbox,
            &[(SANDBOX, list), (CONTAINER, "[\"read\", \"readv\"]")],
            &[(SANDBOX, 3, "`tee` is not in docker/seccomp.json")],
        );
    }

    #[test]
    fn a_list_that_has_moved_is_found() {
        check(covers_sandbox, &[(SANDBOX, "")], &[(CONTAINER, 0, "is gone")]);
        check(covers_sandbox, &[(SANDBOX, "//! x"), (CONTAINER, "")], &[(SANDBOX, 0, "no `ALLOWED` list")]);
    }
}
