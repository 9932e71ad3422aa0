//! Whether the kernel's bound on keys leaves room for as many executions as are configured, said once at the start.
//!
//! Each execution holds one session keyring from when it is built. It belongs to the user that the program runs as, who is never root, so
//! `kernel.keys.maxkeys` bounds them and not `root_maxkeys`; where the agent is that user too, its helper's keyring and key count with them.
//! Left out: the keyrings, and what else that user has there (`/proc/key-users`).
//! Invariant: nothing is refused here; an execution that gets no keyring lacks a control, which is read back and recorded.

use std::fs;

/// Most keys that a user other than root may own.
const MAX_KEYS: &str = "/proc/sys/kernel/keys/maxkeys";

/// What the helper has itself: its session keyring and the key in it. Root's are counted elsewhere; two too many do no harm.
const HELPERS_OWN: usize = 2;

/// Warns if executions that are configured may find no room for their keyring. A kernel without keyrings has no such file, and no bound.
pub fn warn_if_short(max_concurrent: usize, ready: usize) {
    let Ok(text) = fs::read_to_string(MAX_KEYS) else { return };
    let Ok(max_keys) = text.trim().parse::<usize>() else { return };
    let needed = needed(max_concurrent, ready);
    if needed > max_keys {
        tracing::warn!(
            sysctl = "kernel.keys.maxkeys",
            max_keys,
            needed,
            max_concurrent,
            ready_sandboxes = ready,
            "the kernel allows fewer keys than the configured executions may need: beyond them keyrings are missing"
        );
    }
}

/// Most keys at one time. Of those built ahead there are twice as many for a moment: the new ones are there before the old ones have ended.
fn needed(max_concurrent: usize, ready: usize) -> usize {
    max_concurrent.saturating_add(ready.saturating_mul(2)).saturating_add(HELPERS_OWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_those_built_ahead_twice_and_the_helper_need_keys() {
        for (max_concurrent, ready, expected) in [
            (64, 2, 70),
            (194, 2, 200),
            (195, 2, 201),
            (198, 0, 200),
            (1, 0, 3),
            (usize::MAX, 1, usize::MAX),
            (1, usize::MAX, usize::MAX),
        ] {
            assert_eq!(needed(max_concurrent, ready), expected, "{max_concurrent} and {ready}");
        }
    }
}
