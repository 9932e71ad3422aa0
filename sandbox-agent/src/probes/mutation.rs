//! The suite against sandboxes that lack a layer: which probes notice, and whether each layer stops by itself what it is said to stop.
//!
//! Left out: more than one layer at a time, but where a probe says so. Invariant: a probe notices only by what it saw of its attack; the
//! read-back's own word is kept apart and never counts.

use std::collections::BTreeMap;

use super::{
    seen::Seen,
    suite::{Report, Suite, Verdict},
    table::{self, Probe},
};
use crate::sandbox::{ControlStatus, Layer};

/// What came of a layer being off, and of being the only one.
#[derive(Clone, Debug)]
pub struct Mutation {
    /// The layer.
    pub layer: Layer,
    /// Whether this host has it: without, nothing could be switched off.
    pub available: bool,
    /// Probes that held before and see something else with only this layer off, and what they see.
    pub noticed: Vec<(&'static str, Seen)>,
    /// Probes that this layer alone, of those that stop them, stops as the table says, and that see something else once it is off too.
    pub alone: Vec<&'static str>,
    /// Probes for which that is not so, and what they saw.
    pub not_alone: Vec<(&'static str, String)>,
    /// Whether the read-back says that the layer is missing when it is.
    pub read_back: bool,
}

impl Mutation {
    /// Whether nothing is left to be said against the suite as to this layer.
    pub fn is_covered(&self) -> bool {
        let seen = !self.noticed.is_empty() || !self.alone.is_empty();
        !self.available || (seen && self.not_alone.is_empty() && self.read_back)
    }
}

impl Suite {
    /// Each layer off, and each alone. `reports` are those of an audit just before.
    pub async fn mutations(&self, reports: &[Report]) -> Vec<Mutation> {
        let held = reports.iter().filter(|report| report.verdict == Verdict::Held);
        let held = held.filter_map(|report| Some((report.probe.name, report.seen.clone()?))).collect();
        let mut mutations = vec![];
        for layer in Layer::ALL {
            mutations.push(self.mutate(layer, &held).await);
        }
        mutations
    }

    async fn mutate(&self, layer: Layer, held: &BTreeMap<&'static str, Seen>) -> Mutation {
        let mut mutation = Mutation {
            layer,
            available: true,
            noticed: vec![],
            alone: vec![],
            not_alone: vec![],
            read_back: true,
        };
        let controls = self.read_back().await.unwrap_or_default();
        if super::suite::status(&controls, layer) == ControlStatus::Unavailable {
            mutation.available = false;
            return mutation;
        }
        for probe in table::all() {
            let Some(before) = held.get(probe.name) else { continue };
            let concerned = probe.layers().any(|stop| stop == layer);
            // Of the others those by which layers' statuses are told: what a layer carries away with it shows there.
            let told_by = table::PROOFS.iter().any(|(_, name)| *name == probe.name);
            if probe.without.contains(&layer) || !(concerned || told_by) {
                continue;
            }
            let without = self.inside(probe, &[layer]).await;
            // One that could not be made says nothing about the layer.
            if !matches!(without.seen, Seen::Nothing(_)) {
                mutation.read_back &= without.status(layer) != ControlStatus::Enforced;
                if !is_alike(&without.seen, before) {
                    mutation.noticed.push((probe.name, without.seen));
                }
            }
            if concerned {
                self.try_alone(probe, &mut mutation).await;
            }
        }
        mutation
    }

    async fn try_alone(&self, probe: &'static Probe, mutation: &mut Mutation) {
        let layer = mutation.layer;
        let Some(stop) = probe.stops.iter().find(|stop| stop.guard.layer() == Some(layer)) else { return };
        let others = probe.layers().filter(|other| *other != layer).collect::<Vec<_>>();
        let inside = self.inside(probe, &others).await;
        match inside.status(layer) {
            ControlStatus::Enforced if inside.seen.is(&stop.seen) => {
                let all = probe.layers().collect::<Vec<_>>();
                let none = self.inside(probe, &all).await.seen;
                // Where something beside the layers stops it too, this shows nothing.
                if !matches!(none, Seen::Nothing(_)) && !none.is(&stop.seen) {
                    mutation.alone.push(probe.name);
                }
            }
            ControlStatus::Enforced => mutation.not_alone.push((probe.name, inside.seen.to_string())),
            // On this host it can't be had without one of the others.
            ControlStatus::Degraded | ControlStatus::Unavailable => {}
        }
    }
}

/// Whether two results say the same. Of many calls, the sum of them.
fn is_alike(one: &Seen, other: &Seen) -> bool {
    match (one, other) {
        (Seen::Each(_), Seen::Each(_)) => one.to_string() == other.to_string(),
        _ => one == other,
    }
}
