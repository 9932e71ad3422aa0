//! The directory's answers against an oracle that looks at every record.

mod stream;

use std::collections::{BTreeMap, BTreeSet};

use exchequer_event::{accept::Acceptor, digest::Digest, v1};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{
    calendar::{Granularity, unix_ms},
    gather::Gathered,
    query::{MAX_READS, Page, Place, Query, QueryError, Row, Step, answer, answer_within},
    record::Dimension,
    store::{Restored, Store},
    tally::Tally,
};

const SCOPES: [&str; 7] = ["acme", "acme/a", "acme/a/b", "acme/a/b/c/d/e", "acme/ab", "other", "other/a"];
const METERS: [&str; 3] = ["tokens", "cost_micros", "a_meter"];
/// 2024-02-28T22:58Z: the leap day, the end of February and the hours are near.
const BASE: u32 = 28_485_538;

/// A record as the oracle sees it.
#[derive(Clone, Debug)]
pub(super) struct Used {
    pub(super) scope: &'static str,
    pub(super) agent: &'static str,
    pub(super) skill: &'static str,
    pub(super) subject: &'static str,
    pub(super) minute: u32,
    pub(super) amounts: Vec<(&'static str, u64)>,
    pub(super) correction: Option<bool>,
}

impl Used {
    pub(super) fn tenant(&self) -> &'static str {
        self.scope.split('/').next().unwrap()
    }

    /// The event that records it: each kind that there is, depending on what it has to say.
    pub(super) fn event(&self) -> v1::BudgetEvent {
        use v1::budget_event::Kind;
        let scope = self.scope.to_owned();
        let used = self.amounts.iter();
        let used: Vec<_> = used
            .map(|(meter, amount)| v1::MeterAmount { meter: (*meter).to_owned(), amount: *amount })
            .collect();
        let source = Some(v1::UsageSource {
            agent_id: self.agent.to_owned(),
            skill: self.skill.to_owned(),
            used_unix_ms: unix_ms(self.minute) + 7,
            ..v1::UsageSource::default()
        });
        let kind = match self.correction {
            Some(added) => Kind::UsageCorrected(v1::UsageCorrected {
                scope,
                amounts: used,
                added,
                source,
                ..Default::default()
            }),
            None if !self.subject.is_empty() => {
                let subject = self.subject.to_owned();
                Kind::UsageReported(v1::UsageReported { scope, used, source, subject, ..Default::default() })
            }
            None if self.minute.is_multiple_of(2) => {
                Kind::HoldSettled(v1::HoldSettled { scope, used, source, ..Default::default() })
            }
            None => Kind::LeaseDrawn(v1::LeaseDrawn { scope, used, source, ..Default::default() }),
        };
        v1::BudgetEvent { kind: Some(kind) }
    }

    fn counts_for(&self, dimension: Dimension) -> Vec<&'static str> {
        match dimension {
            Dimension::Scope => {
                let ends = self.scope.match_indices('/').map(|(at, _)| at).chain([self.scope.len()]);
                ends.map(|end| &self.scope[..end]).collect()
            }
            Dimension::Skill => [self.skill].into_iter().filter(|name| !name.is_empty()).collect(),
            Dimension::Agent => [self.agent].into_iter().filter(|name| !name.is_empty()).collect(),
        }
    }
}

/// The run that records these, all of one tenant.
pub(super) fn run(records: &[Used]) -> v1::DecisionRun {
    let decision = |used: &Used| v1::Decision { events: vec![used.event()], ..v1::Decision::default() };
    v1::DecisionRun {
        tenant: records[0].tenant().to_owned(),
        decisions: records.iter().map(decision).collect(),
    }
}

/// Every row that there is, from every record before the index.
pub(super) fn expected(history: &[(u64, Used)], query: &Query) -> Vec<Row> {
    let mut rows: BTreeMap<Place, (u32, Tally, BTreeSet<&str>)> = BTreeMap::new();
    for (index, used) in history {
        let is_asked = *index < query.as_of && used.tenant() == query.tenant;
        if !is_asked || !(query.from..query.to).contains(&used.minute) {
            continue;
        }
        let (from, to) = match query.step {
            Step::Whole => (query.from, query.to),
            Step::Bucket(step) => {
                (step.floor(used.minute).max(query.from), step.next(used.minute).min(query.to))
            }
        };
        for name in used.counts_for(query.dimension) {
            for &(meter, amount) in used.amounts.iter().filter(|(_, amount)| *amount > 0) {
                let is_other =
                    |asked: &Option<String>, it: &str| asked.as_ref().is_some_and(|asked| asked != it);
                if is_other(&query.name, name) || is_other(&query.meter, meter) {
                    continue;
                }
                let place = Place { name: name.to_owned(), meter: meter.to_owned(), from };
                let (_, tally, subjects) =
                    rows.entry(place).or_insert((to, Tally::default(), BTreeSet::new()));
                match used.correction {
                    Some(true) => tally.sum += i128::from(amount),
                    Some(false) => tally.sum -= i128::from(amount),
                    None => {
                        tally.sum += i128::from(amount);
                        tally.count += 1;
                        tally.max = tally.max.max(amount);
                        if !used.subject.is_empty() {
                            subjects.insert(used.subject);
                        }
                    }
                }
            }
        }
    }
    let rows = rows.into_iter().filter(|(_, (_, tally, _))| tally.sum != 0 || tally.count > 0);
    rows.map(|(place, (to, tally, subjects))| Row { place, to, tally, unique: subjects.len() as u64 })
        .collect()
}

/// All pages of a query.
pub(super) fn pages(mut query: Query, mut page: impl FnMut(&Query) -> Page) -> Vec<Row> {
    let mut rows = Vec::new();
    loop {
        let Page { rows: more_rows, more } = page(&query);
        assert!(more_rows.len() <= query.page_size);
        rows.extend(more_rows);
        if !more {
            return rows;
        }
        query.after = Some(rows.last().expect("a page that is followed has rows").place.clone());
    }
}

fn minutes() -> impl Strategy<Value = u32> {
    let near =
        prop_oneof![0..5u32, 55..70u32, 1380..1390u32, 1500..1510u32, 2880..2950u32, 44_000..44_200u32];
    near.prop_map(|offset| BASE + offset)
}

fn used() -> impl Strategy<Value = Used> {
    let amounts = (vec(0..5u64, 3), option::weighted(0.2, 0..u64::MAX)).prop_map(|(small, large)| {
        let mut amounts: Vec<_> = METERS.into_iter().zip(small).collect();
        if let Some(large) = large {
            amounts[1].1 = large;
        }
        amounts
    });
    let names = (select(&SCOPES[..]), select(&["", "bot", "bot-2"][..]), select(&["", "sum", "sort"][..]));
    (
        names,
        select(&["", "", "ann", "bob", "cyd"][..]),
        minutes(),
        amounts,
        option::weighted(0.15, any::<bool>()),
    )
        .prop_map(|((scope, agent, skill), subject, minute, amounts, correction)| {
            let subject = if correction.is_some() { "" } else { subject };
            Used { scope, agent, skill, subject, minute, amounts, correction }
        })
}

fn queries() -> impl Strategy<Value = Query> {
    let dimension = select(&[Dimension::Scope, Dimension::Skill, Dimension::Agent][..]);
    let name = option::of(select(&["acme", "acme/a", "acme/a/b/c", "acme/ab", "bot", "sum", "nobody"][..]));
    let step = prop_oneof![Just(Step::Whole), select(&Granularity::ALL[..]).prop_map(Step::Bucket)];
    let range = (minutes(), minutes(), 0..100u32, 1..100u32);
    let what = (dimension, name, option::of(select(&METERS[..])), step);
    (what, range, 0..80u64, 1..7usize).prop_map(
        |((dimension, name, meter, step), range, as_of, page_size)| {
            let (a, b, before, after) = range;
            Query {
                tenant: "acme".to_owned(),
                dimension,
                name: name.map(str::to_owned),
                meter: meter.map(str::to_owned),
                from: a.min(b) - before,
                to: a.max(b) + after,
                step,
                as_of,
                page_size,
                after: None,
            }
        },
    )
}

pub(super) fn at(log_index: u64) -> Restored {
    Restored { acceptor: Acceptor::new(), cursor: log_index, cursor_digest: Digest::ZERO, log_index }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_query_as_of_any_index_equals_a_look_at_every_record(
        // One log entry each: its records, and whether what was gathered is flushed after it.
        entries in vec((vec(used(), 1..5), any::<bool>()), 1..24),
        queries in vec(queries(), 12),
        max_reads in 1..400u64,
    ) {
        let dir = exchequer_testkit::temp_dir();
        let (mut store, _) = Store::open(&dir.path().join("usage")).unwrap();
        let (mut history, mut gathered) = (Vec::new(), Gathered::default());
        for (index, (records, flushes)) in (0..).step_by(3).zip(&entries) {
            // A run is of one tenant.
            let tenant = records[0].tenant();
            let records: Vec<_> = records.iter().filter(|used| used.tenant() == tenant).cloned().collect();
            gathered.take_run(&run(&records), index, 1);
            history.extend(records.into_iter().map(|used| (index, used)));
            if *flushes {
                store.flush(std::mem::take(&mut gathered), &at(index + 1), &BTreeSet::new()).unwrap();
            }
        }
        store.flush(gathered, &at(100), &BTreeSet::new()).unwrap();
        for query in queries {
            let want = expected(&history, &query);
            let got = pages(query.clone(), |query| answer(&store.db, query).unwrap());
            prop_assert_eq!(&got, &want, "{:?}", query);
            // The same in however small steps, where a step comes to a row at all.
            let got = pages(query.clone(), |query| match answer_within(&store.db, query, max_reads) {
                Err(QueryError::TooMuch) => answer(&store.db, query).unwrap(),
                page => page.unwrap(),
            });
            prop_assert_eq!(&got, &want, "{:?} within {}", query, max_reads);
        }
    }
}

#[test]
fn an_answer_that_is_too_much_is_refused_or_ends_early() {
    let dir = exchequer_testkit::temp_dir();
    let (mut store, _) = Store::open(&dir.path().join("usage")).unwrap();
    let mut gathered = Gathered::default();
    let used = |minute| Used {
        scope: "acme",
        agent: "bot",
        skill: "",
        subject: "",
        minute,
        amounts: vec![("tokens", 1)],
        correction: None,
    };
    for minute in 0..30 {
        gathered.take_run(&run(&[used(BASE + 2 * minute)]), u64::from(minute), 1);
    }
    store.flush(gathered, &at(30), &BTreeSet::new()).unwrap();
    let query = Query {
        tenant: "acme".to_owned(),
        dimension: Dimension::Agent,
        name: None,
        meter: None,
        from: BASE,
        to: BASE + 60,
        step: Step::Bucket(Granularity::Minute),
        as_of: 30,
        page_size: 100,
        after: None,
    };
    let page = answer_within(&store.db, &query, 11).unwrap();
    assert_eq!((page.rows.len(), page.more), (10, true), "one read is the name's");
    let whole = Query { step: Step::Whole, ..query.clone() };
    assert!(matches!(answer_within(&store.db, &whole, 3), Err(QueryError::TooMuch)));
    let page = answer_within(&store.db, &whole, MAX_READS).unwrap();
    assert_eq!((page.rows.len(), page.more, page.rows[0].tally.sum), (1, false, 30));
}
