//! The index against a scan of the log, and against itself rebuilt.

use std::collections::BTreeMap;

use exchequer_event::{
    digest::Digest,
    entry::{Facets, encode, facets},
    v1::{EntryFilter, EntryKind, EventKind, entry::Kind, event::Kind as Happened},
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    ingest::Block as Handed,
    store::{
        Opened,
        faults::{Shared, reopen},
    },
};

/// Entries of a log, cheap to make: events of agents, each batch after its seal, and now and then something else.
struct Source {
    index: u64,
    agents: u64,
    /// Events of an execution.
    per_execution: u64,
    /// Milliseconds from one execution to the next.
    pace_ms: u64,
    seqs: BTreeMap<u64, u64>,
}

const TENANTS: u64 = 5;

impl Source {
    fn new(agents: u64, per_execution: u64, pace_ms: u64) -> Self {
        Self { index: 0, agents, per_execution, pace_ms, seqs: BTreeMap::new() }
    }

    fn execution(&self, number: u64) -> String {
        let time = 1_750_000_000_000 + number * self.pace_ms;
        // Far apart, near to each other, and equal in all but one digit.
        format!("{:08x}-{:04x}-7000-8000-{:012x}", time >> 16, time & 0xffff, number)
    }

    fn event(&mut self, agent: u64, number: u64) -> v1::Event {
        let seq = self.seqs.entry(agent).or_default();
        // A new epoch now and then.
        *seq = if number % 7919 == 7918 { 1 } else { *seq + 1 };
        let (execution, step) = (number / self.per_execution, number % self.per_execution);
        let kind = match step {
            0 => Happened::ExecutionAdmitted(v1::ExecutionAdmitted::default()),
            _ => Happened::ExecutionFinished(v1::ExecutionFinished::default()),
        };
        v1::Event {
            agent_id: format!("agent-{agent}"),
            seq: *seq,
            time_unix_ms: 1_750_000_000_000 + execution * self.pace_ms + step,
            tenant: format!("tenant-{}", execution % TENANTS),
            execution_id: self.execution(execution),
            skill: if execution.is_multiple_of(3) {
                String::new()
            } else {
                format!("skill-{}", execution % 200)
            },
            kind: Some(kind),
            ..v1::Event::default()
        }
    }
}

impl Iterator for Source {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let index = self.index;
        self.index += 1;
        let agent = index / 11 % self.agents;
        let kind = match index % 11 {
            0 => {
                let seal = v1::BatchSeal { agent_id: format!("agent-{agent}"), ..v1::BatchSeal::default() };
                Kind::BatchSealed(v1::BatchSealed { seal: seal.encode_to_vec().into(), ..Default::default() })
            }
            5 if index.is_multiple_of(3) => {
                let subject = format!("events.agent-{agent}");
                Kind::Rejection(v1::Rejection { subject, ..v1::Rejection::default() })
            }
            _ => Kind::Event(self.event(agent, index).encode_to_vec().into()),
        };
        encode(&v1::Entry { stream_seq: index, kind: Some(kind) })
    }
}

struct World {
    files: Shared,
    opened: Opened,
    entries: Vec<Bytes>,
    facets: Vec<Facets>,
    db: sled::Db,
    index: Index,
}

impl World {
    /// A log of so many entries in commits of these sizes, each handed over to the index (`true`) or left for it to read (`false`).
    fn new(source: Source, size: usize, commits: &[(usize, bool)]) -> Self {
        let files = Shared::default();
        let opened = reopen(&files).unwrap();
        let db = database();
        let index = Index::open(&db, &opened.reader).unwrap();
        let entries: Vec<_> = source.take(size).collect();
        let facets = entries.iter().map(|bytes| facets(&exchequer_event::entry::decode(bytes).unwrap()));
        let mut world = Self { files, opened, facets: facets.collect(), entries, db, index };
        let mut commits = commits.iter().cycle();
        let mut at = 0;
        while at < size {
            let (length, is_handed) = commits.next().unwrap();
            let end = size.min(at + length);
            world.commit(at, end);
            let block = Handed { first: at as u64, entries: world.entries[at..end].to_vec() };
            if *is_handed {
                world.follow(Some(block));
            }
            at = end;
        }
        world.follow(None);
        world
    }

    fn commit(&mut self, from: usize, to: usize) {
        let cursor = self.opened.writer.position().cursor + 1;
        self.opened.writer.commit(&self.entries[from..to], cursor, Digest([1; 32])).unwrap();
        self.opened.reader.remove_superseded().unwrap();
    }

    fn follow(&self, block: Option<Handed>) {
        follow(&self.index, &self.opened.reader, block, &CancellationToken::new(), |_| ()).unwrap();
    }

    fn pairs(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        pairs(&self.db)
    }

    /// What a scan finds. The index may find more, since the query compares again; here it should not.
    fn scan(&self, filter: &EntryFilter, until: u64) -> Vec<u64> {
        let is = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
        let takes = |found: &Facets| {
            is(&filter.tenant, &found.tenant)
                && is(&filter.agent_id, &found.agent_id)
                && is(&filter.execution_id, &found.execution_id)
                && is(&filter.skill, &found.skill)
                && (filter.agent_seq == 0 || filter.agent_seq == found.agent_seq)
                && (filter.kinds.is_empty() || filter.kinds().any(|kind| kind == found.kind))
                && (filter.event_kinds.is_empty()
                    || filter.event_kinds().any(|kind| kind == found.event_kind))
        };
        let matching = (0..until).zip(&self.facets).filter(|(_, found)| takes(found));
        matching.map(|(index, _)| index).collect()
    }

    fn find(&self, filter: &EntryFilter, until: u64, limit: usize) -> Vec<u64> {
        let (mut found, mut from) = (Vec::new(), 0);
        while from < until {
            let page = self.index.candidates(filter, from, until, limit).unwrap();
            assert!(page.next > from && page.indexes.len() <= limit, "{page:?} from {from}");
            found.extend(page.indexes);
            from = page.next;
        }
        found
    }

    fn filters(&self) -> Vec<EntryFilter> {
        let of = EntryFilter::default;
        let events = [1, 8191, 8194, 16_390, self.facets.len() - 1].map(|at| self.facets[at].clone());
        let mut filters = vec![
            of(),
            EntryFilter { kinds: vec![EntryKind::Rejection.into(), EntryKind::BatchSealed.into()], ..of() },
            EntryFilter { event_kinds: vec![EventKind::ExecutionFinished.into()], ..of() },
            EntryFilter {
                event_kinds: vec![EventKind::ExecutionAdmitted.into(), EventKind::AgentStopped.into()],
                ..of()
            },
            EntryFilter { tenant: "nobody".into(), ..of() },
            EntryFilter { skill: "skill-7".into(), tenant: "tenant-2".into(), ..of() },
            EntryFilter { agent_id: "agent-1".into(), kinds: vec![EntryKind::Event.into()], ..of() },
            EntryFilter { agent_id: "agent-1".into(), kinds: vec![EntryKind::Rejection.into()], ..of() },
            EntryFilter { execution_id: "0190b2a4-0000-7000-8000-00000000000f".into(), ..of() },
        ];
        for event in events {
            filters.extend([
                EntryFilter { tenant: event.tenant, ..of() },
                EntryFilter { agent_id: event.agent_id.clone(), ..of() },
                EntryFilter { agent_id: event.agent_id.clone(), agent_seq: event.agent_seq, ..of() },
                EntryFilter { agent_id: event.agent_id, agent_seq: event.agent_seq + 1, ..of() },
                EntryFilter { execution_id: event.execution_id, ..of() },
                EntryFilter { skill: event.skill, ..of() },
            ]);
        }
        filters
    }

    fn check(&self) {
        let size = self.entries.len() as u64;
        for filter in self.filters() {
            for (until, limit) in [(size, 512), (size - 1, 7000), (8193, 3000)] {
                assert_eq!(
                    self.find(&filter, until, limit),
                    self.scan(&filter, until),
                    "{filter:?} until {until}"
                );
            }
        }
        for bounds in [(0, 8000), (3, 8192), (1000, 0), (16_000, 17_000)] {
            self.check_times(bounds);
        }
    }

    /// Times only rule out blocks, so here nothing may be missing.
    fn check_times(&self, (from, until): (u64, u64)) {
        let time = |after: u64| if after == 0 { 0 } else { 1_750_000_000_000 + after };
        let filter =
            EntryFilter { from_unix_ms: time(from), until_unix_ms: time(until), ..EntryFilter::default() };
        let found = self.find(&filter, self.entries.len() as u64, 512);
        for (index, at) in (0..).zip(self.facets.iter().map(|found| found.time_unix_ms)) {
            let is_within = at >= filter.from_unix_ms.max(1) && (until == 0 || at < filter.until_unix_ms);
            assert!(!is_within || found.binary_search(&index).is_ok(), "{index} at {at} is not found");
        }
    }
}

fn database() -> sled::Db {
    sled::Config::new().temporary(true).open().unwrap()
}

fn pairs(db: &sled::Db) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let tree = db.open_tree("index").unwrap();
    tree.iter().map(|pair| pair.unwrap()).map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

#[test]
fn what_is_stored_follows_from_the_log_however_it_was_committed_handed_over_and_rebuilt() {
    let size = 2 * 8192 + 1500;
    let source = || Source::new(3, 10, 20);
    let one = World::new(source(), size, &[(4096, true)]);
    let two = World::new(source(), size, &[(1, true), (900, true), (37, false), (4000, true), (300, false)]);
    assert!(one.pairs().len() > 3 && one.pairs() == two.pairs());
    // After a restart: the same, and the newest entries are there again.
    let reopened = Index::open(&one.db, &one.opened.reader).unwrap();
    assert_eq!(reopened.size(), 2 * 8192);
    let one = World { index: reopened, ..one };
    one.follow(None);
    assert_eq!(one.index.size(), size as u64);
    one.check();
    // After deletion.
    let db = database();
    let index = Index::open(&db, &one.opened.reader).unwrap();
    let before = one.pairs();
    let rebuilt = World { db, index, ..one };
    rebuilt.follow(None);
    assert_eq!(rebuilt.pairs(), before);
    rebuilt.check();
}

#[test]
fn whatever_a_block_holds_it_has_few_keys_and_everything_in_it_is_found() {
    // Few and many agents; executions within one minute, over many minutes, and over so many that each has its own.
    for (agents, per_execution, pace_ms) in [(1, 10, 1), (1, 1, 1), (500, 2, 1), (70, 4, 500), (3, 1, 60_000)]
    {
        let world = World::new(Source::new(agents, per_execution, pace_ms), 2 * 8192 + 200, &[(2048, true)]);
        let per_block = (world.pairs().len() - 1) / 2;
        assert!(per_block <= 300, "{per_block} keys for {agents} agents, an execution every {pace_ms} ms");
        world.check();
    }
}

#[test]
fn while_the_index_is_rebuilt_queries_miss_nothing_and_the_progress_is_told() {
    let world = World::new(Source::new(3, 10, 20), 5 * 8192 + 100, &[(4096, true)]);
    let size = world.entries.len() as u64;
    let index = Index::open(&database(), &world.opened.reader).unwrap();
    let filter = EntryFilter { agent_id: "agent-2".into(), ..EntryFilter::default() };
    let auditor = exchequer_auth::Caller {
        subject: "aud".into(),
        tenant: None,
        roles: [exchequer_auth::Role::Auditor].into(),
    };
    let query = crate::query::Query::new(filter.clone(), auditor).unwrap();
    let expected = world.scan(&filter, size);
    let mut told = Vec::new();
    let mut check = |progress: String| {
        let (mut found, mut from) = (Vec::new(), 0);
        while from < size {
            let page = query.page(&world.opened.reader, Some(&index), from, size, 1000).unwrap();
            found.extend(page.entries.iter().map(|entry| entry.index));
            from = page.next;
        }
        assert!(found == expected, "{progress}");
        told.push(progress);
    };
    follow(&index, &world.opened.reader, None, &CancellationToken::new(), &mut check).unwrap();
    check("the end".to_owned());
    let percent: Vec<_> = told.iter().map(|text| text.split(' ').next().unwrap()).collect();
    assert_eq!(percent, ["0", "10", "30", "50", "the"]);
}

#[test]
fn an_index_of_another_log_or_of_a_log_that_is_shorter_is_not_used() {
    let one = World::new(Source::new(3, 10, 20), 8192 + 5, &[(4096, true)]);
    let other = World::new(Source::new(4, 10, 20), 8192 + 5, &[(4096, true)]);
    assert_ne!(one.pairs(), other.pairs());
    let index = Index::open(&one.db, &other.opened.reader).unwrap();
    assert_eq!((index.size(), one.pairs().len()), (0, 0));
    other.follow(None);
    let short = World::new(Source::new(4, 10, 20), 8191, &[(4096, true)]);
    assert_eq!(Index::open(&other.db, &short.opened.reader).unwrap().size(), 0);
    assert!(short.pairs().is_empty() && reopen(&short.files).is_ok());
}
