//! Awaiting a condition that nothing announces.
//!
//! Left out: conditions that can be awaited directly; await those. Invariant: it returns only once the condition held.

use std::panic::Location;
use std::time::{Duration, Instant};

/// Evaluates `condition` until it holds, with pauses of 1 to 50 ms; panics, naming the caller's line, once `timeout` is over.
#[track_caller]
pub fn eventually<C, F>(timeout: Duration, mut condition: C) -> impl Future<Output = ()>
where
    C: FnMut() -> F,
    F: Future<Output = bool>,
{
    let caller = Location::caller();
    async move {
        let deadline = Instant::now() + timeout;
        let mut pause = Duration::from_millis(1);
        while !condition().await {
            assert!(Instant::now() < deadline, "the condition at {caller} did not hold within {timeout:?}");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn returns_once_the_condition_holds() {
        let mut asked = 0;
        eventually(Duration::from_secs(5), || {
            asked += 1;
            let held = asked == 4;
            async move { held }
        })
        .await;
        assert_eq!(asked, 4);
    }

    #[tokio::test]
    #[should_panic(expected = "eventually.rs")]
    async fn panics_with_the_callers_place_when_it_never_holds() {
        eventually(Duration::from_millis(5), || async { false }).await;
    }
}
