//! What the demo says: numbered steps, what each shows, and what proved it. A proof that fails is remembered, and decides the exit
//! status.

use std::{fmt::Display, time::Instant};

/// Steps in all.
const STEPS: usize = 7;

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
        println!("\n[{}/{STEPS}] {title}   ({:.1} s)", self.step, self.began.elapsed().as_secs_f64());
    }

    /// Something to know.
    pub fn note(&self, text: impl Display) {
        for line in text.to_string().lines() {
            println!("      {line}");
        }
    }

    /// A proof: it holds, or the demo fails.
    pub fn prove(&mut self, holds: bool, what: impl Display) {
        self.proofs += 1;
        println!("   {} {what}", if holds { "ok  " } else { "FAIL" });
        if !holds {
            self.failures.push(format!("step {}: {what}", self.step));
        }
    }

    /// The end; whether everything held.
    pub fn close(self) -> bool {
        let seconds = self.began.elapsed().as_secs_f64();
        println!();
        if self.failures.is_empty() {
            println!("All {} proofs held, in {seconds:.1} s.", self.proofs);
            return true;
        }
        println!("{} of {} proofs FAILED, in {seconds:.1} s:", self.failures.len(), self.proofs);
        for failure in &self.failures {
            println!("  - {failure}");
        }
        false
    }
}
