//! Whether the kernel's bound on keys leaves room for as many executions as are configured, said once at the start.
//!
//! Each execution holds one session keyring from when it is built. It belongs to the user that the program runs as, who is never root, so
//! `kernel.keys.maxkeys` bounds them and not `root_maxkeys`. Left out: the keyrings, and what else that user has there (`/proc/key-users`).
//! Invariant: nothing is refused here; an execution that gets no keyring lacks a control, which is read back and recorded.

use std::fs;

/// Most keys that a user other than root may own.
const MAX_KEYS: &str = "/proc/sys/kernel/keys/maxkeys";

/// Warns if executions that are configured would find no room for their keyring. A kernel without keyrings has no such file, and no bound.
pub fn warn_if_short(max_concurrent: usize, ready: usize) {
    let Ok(text) = fs::read_to_string(MAX_KEYS) else { return };
    let Ok(max_keys) = text.trim().parse::<usize>() else { return };
    if let Some(fit) = short(max_concurrent.saturating_add(ready), max_keys) {
        tracing::warn!(
            sysctl = "kernel.keys.maxkeys",
            max_keys,
            at_once = fit,
            max_concurrent,
            ready_sandboxes = ready,
            "the kernel allows fewer session keyrings than executions are configured: beyond them keyrings are missing"
        );
    }
}

/// How many executions have a keyring at one time, if that is fewer than are wanted: kernels refuse the key that would reach the bound.
fn short(wanted: usize, max_keys: usize) -> Option<usize> {
    let fit = max_keys.saturating_sub(1);
    (wanted > fit).then_some(fit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_short_for_as_many_executions_as_it_allows_keys() {
        for (wanted, max_keys, expected) in [
            (66, 200, None),
            (199, 200, None),
            (200, 200, Some(199)),
            (4160, 200, Some(199)),
            (1, 1, Some(0)),
            (1, 0, Some(0)),
            (0, 0, None),
            (usize::MAX, 1_000_000, Some(999_999)),
        ] {
            assert_eq!(short(wanted, max_keys), expected, "{wanted} of {max_keys}");
        }
    }
}
