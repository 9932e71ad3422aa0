//! Records added up in memory between two flushes.
//!
//! A hot tenant's thousands of records a second come to a few hundred numbers: per name and minute one entry for each log entry, and one for
//! each distinct subject. Left out: what was flushed before ([`super::store`]). Pure. Invariant: the entries of a cell are in order of
//! log index, and all of them are later than everything flushed.

use std::collections::{BTreeMap, HashMap};

use exchequer_event::v1;

use super::{
    record::{Dimension, SubjectDigest, Usage},
    tally::{Tallies, Tally, add_to},
};

/// What one log entry added to a cell.
#[derive(Clone, Debug)]
pub(super) struct Delta {
    pub(super) index: u64,
    pub(super) tallies: Tallies,
}

/// For each meter that a subject's records used, the first log index that did.
pub(super) type FirstUses = Vec<(u16, u64)>;

/// One name's minute.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    pub(super) deltas: Vec<Delta>,
    pub(super) subjects: HashMap<SubjectDigest, FirstUses>,
}

/// One name. Meters go by their place in `meters`.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) tenant: String,
    pub(super) dimension: Dimension,
    pub(super) name: String,
    pub(super) meters: Vec<String>,
    pub(super) minutes: BTreeMap<u32, Cell>,
}

/// What has been read and not flushed yet.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) slots: Vec<Slot>,
    slot_of: HashMap<String, usize>,
    /// The slots of a record, by tenant, scope, agent and skill.
    routes: HashMap<String, Vec<usize>>,
    weight: usize,
    /// Spares an allocation for each record.
    key: String,
}

impl Gathered {
    /// Entries that a flush has to write, about.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    /// Takes in a run of an accepted block; `index` is its place in the log.
    pub(super) fn take_run(&mut self, run: &v1::DecisionRun, index: u64, block_unix_ms: u64) {
        for event in run.decisions.iter().flat_map(|decision| &decision.events) {
            if let Some(usage) = Usage::of(&run.tenant, event, block_unix_ms) {
                self.take(&run.tenant, &usage, index);
            }
        }
    }

    pub(super) fn take(&mut self, tenant: &str, usage: &Usage<'_>, index: u64) {
        if usage.meters().next().is_none() {
            return;
        }
        let mut key = std::mem::take(&mut self.key);
        key.clear();
        for part in [tenant, usage.scope, usage.agent, usage.skill] {
            key.push_str(part);
            key.push('\0');
        }
        if !self.routes.contains_key(&key) {
            let route = usage.names().map(|(dimension, name)| self.slot(tenant, dimension, name)).collect();
            self.routes.insert(key.clone(), route);
        }
        for &place in &self.routes[&key] {
            self.weight += self.slots[place].take(usage, index);
        }
        self.key = key;
    }

    fn slot(&mut self, tenant: &str, dimension: Dimension, name: &str) -> usize {
        let key = format!("{tenant}\0{}{name}", dimension as u8);
        *self.slot_of.entry(key).or_insert_with(|| {
            let (tenant, name) = (tenant.to_owned(), name.to_owned());
            self.slots.push(Slot { tenant, dimension, name, meters: Vec::new(), minutes: BTreeMap::new() });
            self.slots.len() - 1
        })
    }
}

impl Slot {
    /// Takes in a record and says how many entries came to be.
    fn take(&mut self, usage: &Usage<'_>, index: u64) -> usize {
        let Self { meters, minutes, .. } = self;
        let cell = minutes.entry(usage.minute).or_default();
        let mut entries = 0;
        if cell.deltas.last().is_none_or(|last| last.index != index) {
            cell.deltas.push(Delta { index, tallies: Vec::new() });
            entries += 1;
        }
        let tallies = cell.deltas.last_mut().map(|delta| &mut delta.tallies);
        let mut subject = usage.subject.map(|digest| {
            cell.subjects.entry(digest).or_insert_with(|| {
                entries += 1;
                FirstUses::new()
            })
        });
        let Some(tallies) = tallies else { return entries };
        for (name, amount) in usage.meters() {
            let known = meters.iter().position(|meter| meter == name);
            let Ok(meter) = u16::try_from(known.unwrap_or(meters.len())) else { continue };
            if known.is_none() {
                meters.push(name.to_owned());
            }
            let tally =
                usage.correction.map_or_else(|| Tally::used(amount), |added| Tally::corrected(amount, added));
            add_to(tallies, meter, &tally);
            if let Some(first_uses) = &mut subject
                && first_uses.iter().all(|(known, _)| *known != meter)
            {
                first_uses.push((meter, index));
            }
        }
        entries
    }
}
