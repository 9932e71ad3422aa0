//! The suite against sandboxes that lack a layer: which probes notice.
//!
//! Left out: more than one layer at a time, but where a probe has only one of those that stop it against itself anyway. Invariant: a probe
//! notices only by what it saw of its attack; the read-back's own word is kept apart and never counts.

use super::{
    seen::Seen,
    suite::{Report, Suite, Verdict, others},
    table,
};
use crate::sandbox::{Control, ControlStatus, Layer};

/// What came of a layer being off.
#[derive(Clone, Debug)]
pub struct Mutation {
    /// The layer.
    pub layer: Layer,
    /// Whether this host has it: without, nothing could be switched off.
    pub available: bool,
    /// Probes that held before and see something else now, and what they see: against every other layer.
    pub noticed: Vec<(String, Seen)>,
    /// The same of probes that had, of those that stop them, only this layer against themselves.
    pub noticed_alone: Vec<(String, Seen)>,
    /// Whether the read-back says in each of these runs that the layer is missing.
    pub read_back: bool,
}

impl Mutation {
    /// Whether it is noticed that the layer is off, by a probe and by the read-back.
    pub fn is_noticed(&self) -> bool {
        !self.available || (!(self.noticed.is_empty() && self.noticed_alone.is_empty()) && self.read_back)
    }
}

impl Suite {
    /// Each layer off in turn. `controls` and `reports` are those of an audit just before: what could not be had then is not switched off.
    pub async fn mutations(&self, controls: &[Control], reports: &[Report]) -> Vec<Mutation> {
        let mut mutations = vec![];
        for layer in Layer::ALL {
            mutations.push(self.mutate(layer, controls, reports).await);
        }
        mutations
    }

    async fn mutate(&self, layer: Layer, controls: &[Control], reports: &[Report]) -> Mutation {
        let (noticed, noticed_alone) = (vec![], vec![]);
        let mut mutation = Mutation { layer, available: true, noticed, noticed_alone, read_back: true };
        // Only a read-back's word makes a layer one that can't be had: one that is not in it has to be noticed.
        let is_missing =
            |control: &Control| control.layer == layer && control.status == ControlStatus::Unavailable;
        if controls.iter().any(is_missing) {
            mutation.available = false;
            return mutation;
        }
        for report in reports.iter().filter(|report| report.verdict == Verdict::Held) {
            let (Some(before), true) = (&report.seen, is_asked(layer, report)) else { continue };
            let off = [others(report.probe, report.only), vec![layer]].concat();
            let without = self.inside(report.probe, &off).await;
            // One that could not be made says nothing about the layer.
            if matches!(without.seen, Seen::Nothing(_)) {
                continue;
            }
            mutation.read_back &= without.status(layer) != ControlStatus::Enforced;
            if !is_alike(&without.seen, before) {
                let noticed =
                    if report.only.is_some() { &mut mutation.noticed_alone } else { &mut mutation.noticed };
                noticed.push((report.name(), without.seen));
            }
        }
        mutation
    }
}

/// Whether a probe is run without the layer: one that is about it, and those by which layers' statuses are told, where it shows what a layer
/// takes away with it.
fn is_asked(layer: Layer, report: &Report) -> bool {
    let about_it = report.probe.layers().any(|stop| stop == layer);
    let told_by = table::PROOFS.iter().any(|(_, name)| *name == report.probe.name);
    match report.only {
        Some(only) => only == layer,
        None => !report.probe.without.contains(&layer) && (about_it || told_by),
    }
}

/// Whether two results say the same. Of many calls, the sum of them.
fn is_alike(one: &Seen, other: &Seen) -> bool {
    match (one, other) {
        (Seen::Each(_), Seen::Each(_)) => one.to_string() == other.to_string(),
        _ => one == other,
    }
}
