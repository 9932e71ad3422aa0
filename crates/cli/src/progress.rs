//! Progress on a terminal's standard error; nothing where that is no terminal.
//!
//! Left out: what progresses. Invariant: no more than a line is taken, and it is gone in the end.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// How often it is shown.
const PERIOD: Duration = Duration::from_millis(200);
/// Cells of the bar.
const CELLS: u8 = 24;

/// A bar with counts and rate.
pub struct Shown {
    what: &'static str,
    unit: &'static str,
    begun: Instant,
    last: Option<Instant>,
    is_terminal: bool,
}

impl Shown {
    /// Shows that entries are `what`, such as "verified".
    pub fn new(what: &'static str) -> Self {
        Self::of(what, "entries")
    }

    /// Shows that things of this name are `what`.
    pub fn of(what: &'static str, unit: &'static str) -> Self {
        Self { what, unit, begun: Instant::now(), last: None, is_terminal: io::stderr().is_terminal() }
    }

    /// So many of so many.
    pub fn update(&mut self, done: u64, total: u64) {
        if self.is_terminal && self.last.is_none_or(|last| last.elapsed() >= PERIOD) {
            self.last = Some(Instant::now());
            let line = line(self.what, self.unit, done, total, self.begun.elapsed());
            // Progress that can't be shown is no reason to stop.
            let _ = write!(io::stderr(), "\r{line}\x1b[K");
        }
    }

    /// Takes the line away, so that something else can be said.
    pub fn clear(&mut self) {
        if self.last.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.clear();
    }
}

fn line(what: &str, unit: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let filled = usize::try_from(done.min(total) * u64::from(CELLS) / total.max(1)).unwrap_or_default();
    let bar: String = (0..usize::from(CELLS)).map(|cell| if cell < filled { '#' } else { '.' }).collect();
    let rate = u128::from(done) * 1000 / elapsed.as_millis().max(1);
    format!("[{bar}] {what} {done} of {total} {unit}, {rate}/s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_how_much_is_done_and_how_fast() {
        let half = line("verified", "entries", 50, 100, Duration::from_secs(5));
        assert_eq!(half, "[############............] verified 50 of 100 entries, 10/s");
        assert!(line("exported", "messages", 0, 0, Duration::ZERO).contains("0 of 0 messages, 0/s"));
        assert!(
            line("exported", "entries", 9, 5, Duration::from_secs(1))
                .starts_with(&format!("[{}]", "#".repeat(24)))
        );
    }
}
