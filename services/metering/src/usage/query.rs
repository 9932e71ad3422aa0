//! Answers from the directory: rows of usage over time, as of a log index, a page at a time.
//!
//! A range is read from the largest buckets that fit. A bucket whose last log index is before the one asked for counts as it is, one
//! whose first is not before it counts nothing, and only those between are read again finer, down to the entries of a minute. Since what
//! is later than the index asked for is passed over in any case, a flush during a query does not show, and nothing is locked.
//!
//! Left out: requests and statuses ([`super::grpc`]). Invariant: an answer reads at most [`MAX_READS`] rows and entries; one that would need
//! more ends its page early or, if it has not come to a single row, is refused.

use std::collections::HashSet;

use super::{
    calendar::{Granularity, Piece, cover},
    record::{Dimension, SubjectDigest},
    rows::{self, Bucket, Chunk, Name},
    store::StoreError,
    tally::Tally,
};

/// Rows and entries that one call reads at most: about a tenth of a second.
pub(super) const MAX_READS: u64 = 200_000;

/// How long the span of a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The whole range.
    Whole,
    /// A bucket of UTC; the first and the last are cut to the range.
    Bucket(Granularity),
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Query {
    pub(super) tenant: String,
    pub(super) dimension: Dimension,
    /// `None` for all names.
    pub(super) name: Option<String>,
    /// `None` for all meters.
    pub(super) meter: Option<String>,
    /// Minutes; `from` is before `to`.
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) step: Step,
    /// What the log holds from this index on does not count. Not above the directory's own.
    pub(super) as_of: u64,
    pub(super) page_size: usize,
    /// The last row of the page before.
    pub(super) after: Option<Place>,
}

/// Which row: rows are in order of this.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) meter: String,
    /// Beginning of its span.
    pub(super) from: u32,
}

/// Usage of one meter by one name in one span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) place: Place,
    pub(super) to: u32,
    pub(super) tally: Tally,
    pub(super) unique: u64,
}

/// A page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) rows: Vec<Row>,
    /// Whether there may be more after the last row.
    pub(super) more: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueryError {
    #[error("the answer needs more than {MAX_READS} rows to be read; ask for less at once")]
    TooMuch,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sled::Error> for QueryError {
    fn from(error: sled::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Answers. Blocks.
pub(super) fn answer(db: &sled::Db, query: &Query) -> Result<Page, QueryError> {
    answer_within(db, query, MAX_READS)
}

pub(super) fn answer_within(db: &sled::Db, query: &Query, max_reads: u64) -> Result<Page, QueryError> {
    let mut reading = Reading { db, query, left: max_reads, rows: Vec::new() };
    let more = match reading.names() {
        Ok(()) => reading.rows.len() > query.page_size,
        Err(QueryError::TooMuch) if !reading.rows.is_empty() => true,
        Err(error) => return Err(error),
    };
    reading.rows.truncate(query.page_size);
    Ok(Page { rows: reading.rows, more })
}

/// What the buckets of a span come to.
#[derive(Debug, Default)]
struct Sum {
    tally: Tally,
    /// Buckets with subjects.
    sources: Vec<Source>,
}

#[derive(Debug)]
struct Source {
    granularity: Granularity,
    start: u32,
    /// How many subjects it has, where all of the bucket counts.
    unique: Option<u64>,
}

struct Reading<'a> {
    db: &'a sled::Db,
    query: &'a Query,
    /// What may still be read.
    left: u64,
    rows: Vec<Row>,
}

impl Reading<'_> {
    fn count(&mut self, reads: u64) -> Result<(), QueryError> {
        self.left = self.left.checked_sub(reads).ok_or(QueryError::TooMuch)?;
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.rows.len() > self.query.page_size
    }

    fn names(&mut self) -> Result<(), QueryError> {
        let query = self.query;
        let key = |name: &str| rows::names_key(&query.tenant, query.dimension, name);
        if let Some(name) = &query.name {
            self.count(1)?;
            return match self.db.get(key(name))? {
                Some(row) => self.name(name, &row),
                None => Ok(()),
            };
        }
        let all = key("");
        let begin = query.after.as_ref().map_or_else(|| all.clone(), |after| key(&after.name));
        for row in self.db.range(begin..) {
            let (key, row) = row?;
            let Some(name) = key.strip_prefix(&*all) else { break };
            self.count(1)?;
            let name = std::str::from_utf8(name).map_err(|_| StoreError::Damaged("a name"))?;
            self.name(name, &row)?;
            if self.is_full() {
                break;
            }
        }
        Ok(())
    }

    fn name(&mut self, name: &str, row: &[u8]) -> Result<(), QueryError> {
        let query = self.query;
        let known = Name::decode(row).ok_or(StoreError::Damaged("a name"))?;
        if known.last_minute < query.from || known.first_minute >= query.to {
            return Ok(());
        }
        let asked = |meter: &String| query.meter.as_ref().is_none_or(|asked| asked == meter);
        let mut meters: Vec<_> = (0..).zip(&known.meters).filter(|(_, meter)| asked(meter)).collect();
        meters.sort_by_key(|(_, meter)| *meter);
        for (meter, meter_name) in meters {
            let mut from = query.from;
            if let Some(after) = &query.after {
                let this = (name, &**meter_name);
                match this.cmp(&(&*after.name, &*after.meter)) {
                    std::cmp::Ordering::Less => continue,
                    std::cmp::Ordering::Equal => from = self.span_end(after.from),
                    std::cmp::Ordering::Greater => {}
                }
            }
            let series = Series { number: known.number, meter, name, meter_name };
            self.spans(&series, from)?;
            if self.is_full() {
                break;
            }
        }
        Ok(())
    }

    /// End of the span that begins at a minute of the range.
    fn span_end(&self, from: u32) -> u32 {
        match self.query.step {
            Step::Whole => self.query.to,
            Step::Bucket(granularity) => granularity.next(from).min(self.query.to),
        }
    }

    /// The rows of one name and meter, from a beginning of a span on.
    fn spans(&mut self, series: &Series<'_>, from: u32) -> Result<(), QueryError> {
        let to = self.query.to;
        if from >= to {
            return Ok(());
        }
        let Step::Bucket(granularity) = self.query.step else { return self.span(series, from, to) };
        let (first, last) = (granularity.ceil(from), granularity.floor(to));
        if first > last {
            return self.span(series, from, to);
        }
        if from < first {
            self.span(series, from, first)?;
        }
        let begin = rows::bucket_key(series.number, granularity, first);
        let end = rows::bucket_key(series.number, granularity, last);
        for row in self.db.range(begin..end) {
            if self.is_full() {
                return Ok(());
            }
            let (key, row) = row?;
            let start = start_of(&key)?;
            let mut sum = Sum::default();
            self.bucket(series, granularity, start, &row, &mut sum)?;
            self.push(series, start, granularity.next(start), &sum)?;
        }
        if last < to && !self.is_full() {
            self.span(series, last, to)?;
        }
        Ok(())
    }

    /// One row over whatever buckets cover its span.
    fn span(&mut self, series: &Series<'_>, from: u32, to: u32) -> Result<(), QueryError> {
        let mut sum = Sum::default();
        for Piece { granularity, from, to } in cover(from, to) {
            let begin = rows::bucket_key(series.number, granularity, from);
            let end = rows::bucket_key(series.number, granularity, to);
            for row in self.db.range(begin..end) {
                let (key, row) = row?;
                self.bucket(series, granularity, start_of(&key)?, &row, &mut sum)?;
            }
        }
        self.push(series, from, to, &sum)
    }

    fn push(&mut self, series: &Series<'_>, from: u32, to: u32, sum: &Sum) -> Result<(), QueryError> {
        if !sum.tally.is_empty() {
            let unique = self.unique(series, &sum.sources)?;
            let place = Place { name: series.name.to_owned(), meter: series.meter_name.to_owned(), from };
            self.rows.push(Row { place, to, tally: sum.tally, unique });
        }
        Ok(())
    }

    fn bucket(
        &mut self,
        series: &Series<'_>,
        granularity: Granularity,
        start: u32,
        row: &[u8],
        sum: &mut Sum,
    ) -> Result<(), QueryError> {
        self.count(1)?;
        let bucket = Bucket::decode(row).ok_or(StoreError::Damaged("a bucket"))?;
        let Some(metered) = bucket.get(series.meter).filter(|_| bucket.first < self.query.as_of) else {
            return Ok(());
        };
        let is_whole = bucket.last < self.query.as_of;
        if is_whole {
            sum.tally.add(&metered.tally);
        } else {
            self.finer(series, granularity, start, &mut sum.tally)?;
        }
        if metered.unique > 0 {
            sum.sources.push(Source { granularity, start, unique: is_whole.then_some(metered.unique) });
        }
        Ok(())
    }

    /// Adds what a bucket held when the log was at the index asked for, which is between its first and its last.
    fn finer(
        &mut self,
        series: &Series<'_>,
        granularity: Granularity,
        start: u32,
        tally: &mut Tally,
    ) -> Result<(), QueryError> {
        let Some(finer) = granularity.finer() else { return self.entries(series, start, tally) };
        let begin = rows::bucket_key(series.number, finer, start);
        let end = rows::bucket_key(series.number, finer, granularity.next(start));
        for row in self.db.range(begin..end) {
            let (key, row) = row?;
            self.count(1)?;
            let bucket = Bucket::decode(&row).ok_or(StoreError::Damaged("a bucket"))?;
            let Some(metered) = bucket.get(series.meter).filter(|_| bucket.first < self.query.as_of) else {
                continue;
            };
            if bucket.last < self.query.as_of {
                tally.add(&metered.tally);
            } else {
                self.finer(series, finer, start_of(&key)?, tally)?;
            }
        }
        Ok(())
    }

    fn entries(&mut self, series: &Series<'_>, minute: u32, tally: &mut Tally) -> Result<(), QueryError> {
        let mut add = |meter: u16, it: &Tally| {
            if meter == series.meter {
                tally.add(it);
            }
        };
        for row in self.db.scan_prefix(rows::chunks_key(series.number, minute)) {
            let (key, row) = row?;
            self.count(1)?;
            let first = u64::from_be_bytes(rows::tail(&key).ok_or(StoreError::Damaged("a chunk's key"))?);
            if first >= self.query.as_of {
                break;
            }
            let chunk = Chunk::decode(&row).ok_or(StoreError::Damaged("a chunk"))?;
            if chunk.last < self.query.as_of {
                chunk.totals.iter().for_each(|(meter, it)| add(*meter, it));
                continue;
            }
            let deltas = chunk.deltas(first).ok_or(StoreError::Damaged("a chunk's entries"))?;
            self.count(deltas.len() as u64)?;
            let before = deltas.iter().take_while(|delta| delta.index < self.query.as_of);
            before.flat_map(|delta| &delta.tallies).for_each(|(meter, it)| add(*meter, it));
        }
        Ok(())
    }

    /// Distinct subjects: as counted where one bucket that counts as it is has all of them, otherwise the union of the buckets' sets.
    fn unique(&mut self, series: &Series<'_>, sources: &[Source]) -> Result<u64, QueryError> {
        match sources {
            [] => return Ok(0),
            [Source { unique: Some(unique), .. }] => return Ok(*unique),
            _ => {}
        }
        let mut union: HashSet<SubjectDigest> = HashSet::new();
        for source in sources {
            for row in
                self.db.scan_prefix(rows::subjects_key(series.number, source.granularity, source.start))
            {
                let (key, row) = row?;
                self.count(1)?;
                let uses = rows::decode_first_uses(&row).ok_or(StoreError::Damaged("a subject"))?;
                let is_before =
                    |(meter, first): &(u16, u64)| *meter == series.meter && *first < self.query.as_of;
                if uses.iter().any(is_before) {
                    union.insert(rows::tail(&key).ok_or(StoreError::Damaged("a subject's key"))?);
                }
            }
        }
        Ok(union.len() as u64)
    }
}

/// One name's meter.
struct Series<'a> {
    number: u64,
    meter: u16,
    name: &'a str,
    meter_name: &'a str,
}

fn start_of(key: &[u8]) -> Result<u32, QueryError> {
    Ok(u32::from_be_bytes(rows::tail(key).ok_or(StoreError::Damaged("a bucket's key"))?))
}
