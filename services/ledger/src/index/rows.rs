//! What a block's entries are found by, a row each, before the block is complete; and the keys that it becomes then.
//!
//! Left out: where keys are stored. Invariant: the keys and values of a block depend on its entries alone, not on when or in which
//! portions they came.

use std::{collections::HashMap, sync::Arc};

use exchequer_event::{
    entry::Facets,
    v1::{EntryFilter, EntryKind, EventKind},
};

use super::{
    BLOCK, Candidates, key,
    posting::{AgentRuns, Fingerprint, Ranges, push_execution, push_named, push_varint, spread},
};

/// Most names of a kind, or time units of executions, that have keys of their own in a block; more share [`SHARED_KEYS`].
const MAX_NAMED: usize = 64;
/// Keys that many names or executions are spread over: what keeps a block's keys few.
const SHARED_KEYS_BITS: u32 = 6;
/// Most executions of one time unit in a block that share one key.
const MAX_UNIT: usize = 512;

/// Names as small numbers; 0 for none.
#[derive(Debug, Default)]
struct Names {
    ids: HashMap<Arc<str>, u32>,
    list: Vec<Arc<str>>,
    last: u32,
}

impl Names {
    fn id(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        // Entries of one kind come in runs.
        if self.name(self.last) == Some(name) {
            return self.last;
        }
        self.last = self.ids.get(name).copied().unwrap_or_else(|| {
            let name: Arc<str> = name.into();
            self.list.push(name.clone());
            let id = u32::try_from(self.list.len()).unwrap_or_default();
            self.ids.insert(name, id);
            id
        });
        self.last
    }

    fn name(&self, id: u32) -> Option<&str> {
        let place = usize::try_from(id).ok()?.checked_sub(1)?;
        self.list.get(place).map(|name| &**name)
    }

    /// The number of a filter's name: `None` for a name that no row has, 0 for none asked for.
    fn asked(&self, name: &str) -> Option<u32> {
        if name.is_empty() { Some(0) } else { self.ids.get(name).copied() }
    }
}

/// What an entry is found by.
#[derive(Clone, Copy, Debug)]
struct Row {
    kind: EntryKind,
    event_kind: EventKind,
    tenant: u32,
    agent: u32,
    skill: u32,
    execution: Option<u128>,
    seq: u64,
    time_unix_ms: u64,
}

/// The rows of a block that is not complete yet: the newest entries of the log.
#[derive(Debug)]
pub(super) struct Rows {
    first: u64,
    all: Vec<Row>,
    tenants: Names,
    agents: Names,
    skills: Names,
}

/// The number that an execution's UUID stands for; of another text, some number.
pub(super) fn execution_number(execution_id: &str) -> u128 {
    let digits = execution_id.bytes().filter_map(|digit| char::from(digit).to_digit(16));
    digits.fold(0, |number, digit| number << 4 | u128::from(digit))
}

/// Executions are named by time-ordered UUIDs, whose first 4 bytes change about once a minute: those of one unit lie together.
pub(super) fn execution_unit(execution: u128) -> u32 {
    u32::try_from(execution >> 96).unwrap_or_default()
}

pub(super) fn fingerprint(execution: u128) -> Fingerprint {
    spread(&execution.to_be_bytes())
}

/// Which of the shared keys.
pub(super) fn share(hash: u64) -> u8 {
    u8::try_from(hash >> (u64::BITS - SHARED_KEYS_BITS)).unwrap_or_default()
}

impl Rows {
    /// None, from an index on.
    pub(super) fn new(first: u64) -> Self {
        Self {
            first,
            all: Vec::new(),
            tenants: Names::default(),
            agents: Names::default(),
            skills: Names::default(),
        }
    }

    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn end(&self) -> u64 {
        self.first + self.all.len() as u64
    }

    /// Rows that are missing until the block is complete.
    pub(super) fn room(&self) -> usize {
        usize::try_from(self.first + BLOCK - self.end()).unwrap_or_default()
    }

    pub(super) fn push(&mut self, facets: &Facets<&str>) {
        self.all.push(Row {
            kind: facets.kind,
            event_kind: facets.event_kind,
            tenant: self.tenants.id(facets.tenant),
            agent: self.agents.id(facets.agent_id),
            skill: self.skills.id(facets.skill),
            execution: (!facets.execution_id.is_empty()).then(|| execution_number(facets.execution_id)),
            seq: facets.agent_seq,
            time_unix_ms: facets.time_unix_ms,
        });
    }

    /// The indexes from `from` to below `until` whose rows match, at most `limit`.
    pub(super) fn search(&self, filter: &EntryFilter, from: u64, until: u64, limit: usize) -> Candidates {
        let end = until.min(self.end());
        let nothing = Candidates { indexes: Vec::new(), next: end };
        let (Some(tenant), Some(agent), Some(skill)) = (
            self.tenants.asked(&filter.tenant),
            self.agents.asked(&filter.agent_id),
            self.skills.asked(&filter.skill),
        ) else {
            return nothing;
        };
        let execution = (!filter.execution_id.is_empty()).then(|| execution_number(&filter.execution_id));
        let is = |wanted: u32, found: u32| wanted == 0 || wanted == found;
        let takes = |row: &Row| {
            is(tenant, row.tenant)
                && is(agent, row.agent)
                && is(skill, row.skill)
                && (execution.is_none() || execution == row.execution)
                && (filter.agent_seq == 0 || filter.agent_seq == row.seq)
                && (filter.kinds.is_empty() || filter.kinds.contains(&row.kind.into()))
                && (filter.event_kinds.is_empty() || filter.event_kinds.contains(&row.event_kind.into()))
                && row.time_unix_ms >= filter.from_unix_ms
                && (filter.until_unix_ms == 0 || row.time_unix_ms < filter.until_unix_ms)
        };
        let place = |index: u64| usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let rows = self.all.get(place(from)..place(end)).unwrap_or_default();
        let matching = (from..).zip(rows).filter(|(_, row)| takes(row)).map(|(index, _)| index);
        let indexes: Vec<_> = matching.take(limit).collect();
        let next = if indexes.len() < limit { end } else { indexes.last().map_or(end, |last| last + 1) };
        Candidates { indexes, next }
    }

    /// The keys and values of the block.
    pub(super) fn keys(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut keys = Keys { first: self.first, pairs: Vec::new() };
        let times = || self.all.iter().map(|row| row.time_unix_ms).filter(|time| *time > 0);
        let mut block = Vec::new();
        push_varint(&mut block, times().min().unwrap_or(u64::MAX));
        push_varint(&mut block, times().max().unwrap_or(0));
        keys.insert(&key::blocks(), block);
        keys.numbers(b'k', self.ranges(|row| usize::try_from(i32::from(row.kind)).unwrap_or_default()));
        keys.numbers(b'e', self.ranges(|row| usize::try_from(i32::from(row.event_kind)).unwrap_or_default()));
        let place = |id: u32| usize::try_from(id).unwrap_or_default();
        let encode = |ranges: &Ranges| ranges.encode(self.first);
        keys.names(b't', &self.tenants, &self.ranges(|row| place(row.tenant)), encode);
        keys.names(b's', &self.skills, &self.ranges(|row| place(row.skill)), encode);
        let mut agents = vec![AgentRuns::default(); self.agents.list.len() + 1];
        for (index, row) in (self.first..).zip(&self.all) {
            agents[place(row.agent)].push(index, row.seq);
        }
        keys.names(b'a', &self.agents, &agents, |runs| runs.encode(self.first));
        keys.executions(self.all.iter().map(|row| row.execution));
        keys.pairs
    }

    /// The rows of each number, except 0, as ranges.
    fn ranges(&self, number: impl Fn(&Row) -> usize) -> Vec<Ranges> {
        let mut all: Vec<Ranges> = Vec::new();
        for (index, row) in (self.first..).zip(&self.all) {
            let number = number(row);
            if number >= all.len() {
                all.resize(number + 1, Ranges::default());
            }
            if number > 0 {
                all[number].push(index);
            }
        }
        all
    }
}

/// The keys of a block while they are made.
struct Keys {
    first: u64,
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Keys {
    fn insert(&mut self, term: &[u8], value: Vec<u8>) {
        self.pairs.push((key::of_block(term, self.first), value));
    }

    fn numbers(&mut self, tag: u8, postings: Vec<Ranges>) {
        for (number, ranges) in postings.iter().enumerate().filter(|(_, ranges)| !ranges.is_empty()) {
            self.insert(
                &key::number(tag, u8::try_from(number).unwrap_or_default()),
                ranges.encode(self.first),
            );
        }
    }

    /// A key for each name, or, if they are many, a few keys that share them.
    fn names<T>(&mut self, tag: u8, names: &Names, postings: &[T], encode: impl Fn(&T) -> Vec<u8>) {
        let mut named: Vec<_> = names.list.iter().zip(postings.iter().skip(1)).collect();
        named.sort_unstable_by_key(|(name, _)| *name);
        if named.len() <= MAX_NAMED {
            for (name, posting) in named {
                self.insert(&key::name(tag, name), encode(posting));
            }
            return;
        }
        let mut shared = vec![Vec::new(); 1 << SHARED_KEYS_BITS];
        for (name, posting) in named {
            push_named(&mut shared[usize::from(share(spread(name.as_bytes())))], name, &encode(posting));
        }
        self.shared(shared, |share| key::shared_names(tag, share));
    }

    fn shared(&mut self, lists: Vec<Vec<u8>>, term: impl Fn(u8) -> Vec<u8>) {
        for (share, list) in (0..).zip(lists).filter(|(_, list)| !list.is_empty()) {
            self.insert(&term(share), list);
        }
    }

    /// The executions, by the unit of time that they began in. Those of a busy unit are spread by their fingerprint; if the units are
    /// many (a slow log, or ids that say no time), so are all.
    fn executions(&mut self, named: impl Iterator<Item = Option<u128>>) {
        let offset_of = |(offset, execution): (u64, Option<u128>)| {
            execution.map(|execution| (execution_unit(execution), fingerprint(execution), offset))
        };
        let mut found: Vec<Found> = (0..).zip(named).filter_map(offset_of).collect();
        found.sort_unstable();
        if found.chunk_by(|a, b| a.0 == b.0).count() > MAX_NAMED {
            for (unit, ..) in &mut found {
                *unit = 0;
            }
            found.sort_unstable();
            self.shared(executions_by_share(&found), key::shared_executions);
            return;
        }
        for found in found.chunk_by(|a, b| a.0 == b.0) {
            let unit = found[0].0;
            if found.chunk_by(|a, b| a.1 == b.1).count() > MAX_UNIT {
                self.shared(executions_by_share(found), |share| key::spread_unit(unit, share));
            } else {
                self.insert(&key::unit(unit), executions(found));
            }
        }
    }
}

/// An execution's unit and fingerprint, and the offset of an entry; sorted where there are several.
type Found = (u32, Fingerprint, u64);

fn executions(found: &[Found]) -> Vec<u8> {
    let mut list = Vec::new();
    for entries in found.chunk_by(|a, b| a.1 == b.1) {
        let offsets: Vec<_> = entries.iter().map(|(.., offset)| *offset).collect();
        push_execution(&mut list, entries[0].1, &offsets);
    }
    list
}

fn executions_by_share(found: &[Found]) -> Vec<Vec<u8>> {
    let mut lists = vec![Vec::new(); 1 << SHARED_KEYS_BITS];
    for found in found.chunk_by(|a, b| share(a.1) == share(b.1)) {
        lists[usize::from(share(found[0].1))] = executions(found);
    }
    lists
}
