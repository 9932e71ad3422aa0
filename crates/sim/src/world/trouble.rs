//! What goes wrong, until the world heals.
//!
//! Left out: what gets lost or delayed on the way, which each message meets by itself.

use std::collections::VecDeque;

use super::{Happening, MS, SECOND, World};

impl World {
    /// Something goes wrong, and something will again, until the world heals.
    pub(super) fn trouble(&mut self) {
        if !self.is_troubled() {
            return self.heal();
        }
        let next = self.rng.between(100 * MS, 3 * SECOND);
        self.after(next, Happening::Trouble);
        let to = self.rng.index(self.instances.len());
        let lasts = self.rng.between(50 * MS, 4 * SECOND);
        match self.rng.below(6) {
            0 => {
                if self.instances[to].core.is_some() {
                    self.outcome.crashes += 1;
                    self.instances[to].crash();
                    self.after(lasts, Happening::Restarts(to));
                }
            }
            1 => {
                self.instances[to].stalled.get_or_insert_with(VecDeque::new);
                self.after(lasts, Happening::Resumes(to));
            }
            2 => {
                self.instances[to].cut = true;
                self.after(lasts, Happening::Reconnects(to));
            }
            3 => {
                let off = i64::try_from(self.rng.between(0, 20_000)).unwrap_or(0) - 10_000;
                self.instances[to].clock_off_ms = off;
            }
            // The fold at some moment, to begin from after a crash; or none.
            4 => {
                self.instances[to].snapshot =
                    self.instances[to].core.as_ref().map(|core| core.fold().clone());
            }
            _ => self.instances[to].snapshot = None,
        }
    }

    fn heal(&mut self) {
        (self.broker.lies, self.broker.is_unfenced) = (false, false);
        for to in 0..self.instances.len() {
            self.instances[to].cut = false;
            self.instances[to].clock_off_ms = 0;
            self.after(0, Happening::Resumes(to));
            self.after(0, Happening::Restarts(to));
        }
    }
}
