//! What the demo says: numbered steps, what each shows, and what proved it. A proof that fails is remembered, and decides the exit
//! status.

use std::{fmt::Display, time::Instant};

use crate::print;

/// Steps in all.
const STEPS: usize = 7;

/// A line. That nobody listens any more changes nothing about what holds.
pub fn say(line: impl Display) {
    let _ = print::text(&line.to_string());
}

/// Something to know, below a step.
pub fn note(text: impl Display) {
    text.to_string().lines().for_each(|line| say(format!("      {line}")));
}

/// The stage.
pub struct Stage {
    began: Instant,
    step: usize,
    proofs: usize,
    failures: Vec<String>,
}

impl Stage {
    /// The curtain.
    pub fn open() -> Self {
        Self { began: Instant::now(), step: 0, proofs: 0, failures: Vec::new() }
    }

    /// The next step.
    pub fn step(&mut self, title: &str) {
        self.step += 1;
        say(format!("\n[{}/{STEPS}] {title}   ({:.1} s)", self.step, self.began.elapsed().as_secs_f64()));
    }

    /// A proof: it holds, or the demo fails.
    pub fn prove(&mut self, holds: bool, what: impl Display) {
        self.proofs += 1;
        say(format!("   {} {what}", if holds { "ok  " } else { "FAIL" }));
        if !holds {
            self.failures.push(format!("step {}: {what}", self.step));
        }
    }

    /// The end; whether everything held.
    pub fn close(self) -> bool {
        let seconds = self.began.elapsed().as_secs_f64();
        say("");
        if self.failures.is_empty() {
            say(format!("All {} proofs held, in {seconds:.1} s.", self.proofs));
            return true;
        }
        say(format!("{} of {} proofs FAILED, in {seconds:.1} s:", self.failures.len(), self.proofs));
        for failure in &self.failures {
            say(format!("  - {failure}"));
        }
        false
    }
}
