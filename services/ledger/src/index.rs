//! The index: which entries have which tenant, agent, execution, skill, kind and time. Derived; the log is the truth.
//!
//! Entries are indexed in blocks of [`BLOCK`]: a block's keys go into sled together, once the log holds all of its entries, and depend
//! on those alone. So what is in sled is a function of the log, and rebuilding gives it back byte for byte. What follows the last
//! complete block is kept in memory, and read from the log again at the start. `key.rs` lists the keys; a block has a few of each
//! kind, however many names and executions it holds, since writing a key costs as much as indexing dozens of events.
//!
//! Left out: exact matching (the query compares each entry again). Invariant: for entries below [`Index::size`] no match is missing.

mod key;
mod posting;
mod rows;
#[cfg(test)]
mod tests;

use std::{
    iter::Peekable,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;
use exchequer_event::{entry::read_facets, v1};
use prost::Message as _;

use crate::store::{LogReader, StoreError};
use posting::{AgentRuns, Ranges};
use rows::Rows;

/// Entries of a block. More of them make fewer keys for each entry, and more to read again at the start.
pub(crate) const BLOCK: u64 = 8192;
/// What is stored and how. Another version is rebuilt.
const VERSION: u32 = 2;
/// Blocks that one search looks at before it returns what it has.
const MAX_BLOCKS: usize = 4096;
/// Entries that the index may be behind before that is shown.
const MAX_UNSHOWN: u64 = 2 * BLOCK;

#[derive(Clone, PartialEq, prost::Message)]
struct Meta {
    #[prost(uint32, tag = "1")]
    version: u32,
    /// Entries of complete blocks.
    #[prost(uint64, tag = "2")]
    size: u64,
    /// Leaf hash of the last of them: says that the index is of this log.
    #[prost(bytes = "bytes", tag = "3")]
    last_leaf: Bytes,
}

/// The index can't be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IndexError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("sled: {0}")]
    Sled(#[from] sled::Error),
}

/// Indexes that may match, ascending; everything below `next` has been considered.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    pub(crate) indexes: Vec<u64>,
    pub(crate) next: u64,
}

/// The index of one log.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    tree: sled::Tree,
    rows: Arc<RwLock<Rows>>,
}

impl Index {
    /// Opens what sled holds; if that is not of this log, nothing. The rest is up to [`run`].
    pub(crate) fn open(db: &sled::Db, reader: &LogReader) -> Result<Self, IndexError> {
        let tree = db.open_tree("index")?;
        let meta = tree.get(key::META)?.and_then(|bytes| Meta::decode(&*bytes).ok()).unwrap_or_default();
        let is_ours = meta.version == VERSION
            && meta.size.is_multiple_of(BLOCK)
            && (1..=reader.committed()).contains(&meta.size)
            && meta.last_leaf == reader.leaf(meta.size - 1)?.0.as_slice();
        if !is_ours && !tree.is_empty() {
            tracing::warn!(size = meta.size, "the index is not of this log or this version; it is rebuilt");
            tree.clear()?;
        }
        let size = if is_ours { meta.size } else { 0 };
        Ok(Self { tree, rows: Arc::new(RwLock::new(Rows::new(size))) })
    }

    fn rows(&self) -> RwLockReadGuard<'_, Rows> {
        // A row is pushed as a whole.
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn rows_mut(&self) -> RwLockWriteGuard<'_, Rows> {
        self.rows.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries that are indexed.
    pub(crate) fn size(&self) -> u64 {
        self.rows().end()
    }

    /// Indexes what follows from the log, up to the end of a block; the new size.
    fn roll_forward(&self, reader: &LogReader) -> Result<u64, IndexError> {
        let size = self.size();
        let end = reader.committed().min(size - size % BLOCK + BLOCK);
        self.add(reader, &reader.verified_entries(size, end)?)?;
        Ok(self.size())
    }

    /// Indexes the entries that follow.
    fn add(&self, reader: &LogReader, entries: &[Bytes]) -> Result<(), IndexError> {
        let mut rest = entries;
        loop {
            let mut rows = self.rows_mut();
            let now;
            (now, rest) = rest.split_at(rows.room().min(rest.len()));
            for entry in now {
                // What is no entry is found by its index alone.
                rows.push(&read_facets(entry).unwrap_or_default());
            }
            let is_complete = rows.room() == 0;
            drop(rows);
            if is_complete {
                self.store(reader)?;
            }
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Writes the complete block and begins the next. What fails is tried again with the next entries.
    fn store(&self, reader: &LogReader) -> Result<(), IndexError> {
        let (end, keys) = {
            let rows = self.rows();
            (rows.end(), rows.keys())
        };
        let mut batch = sled::Batch::default();
        for (key, value) in keys {
            batch.insert(key, value);
        }
        let last_leaf = Bytes::copy_from_slice(&reader.leaf(end - 1)?.0);
        batch.insert(key::META, Meta { version: VERSION, size: end, last_leaf }.encode_to_vec());
        self.tree.apply_batch(batch)?;
        *self.rows_mut() = Rows::new(end);
        Ok(())
    }

    /// Indexes from `from` to below `until` that may match, at most `limit` of them. `until` must not be above [`Self::size`].
    pub(crate) fn candidates(
        &self,
        filter: &v1::EntryFilter,
        from: u64,
        until: u64,
        limit: usize,
    ) -> Result<Candidates, IndexError> {
        let complete = {
            let rows = self.rows();
            if from >= rows.first() {
                return Ok(rows.search(filter, from, until, limit));
            }
            rows.first()
        };
        // Blocks that are completed meanwhile do not matter: those below are in sled.
        self.in_blocks(filter, from, until.min(complete), limit)
    }

    fn in_blocks(
        &self,
        filter: &v1::EntryFilter,
        from: u64,
        until: u64,
        limit: usize,
    ) -> Result<Candidates, IndexError> {
        let mut indexes = Vec::new();
        let blocks = Blocks::new(&self.tree, driving_terms(filter), from - from % BLOCK);
        for (looked_at, block) in blocks.enumerate() {
            let first = block?;
            if first >= until {
                break;
            }
            if looked_at >= MAX_BLOCKS {
                return Ok(Candidates { indexes, next: first.max(from) });
            }
            let matches = self.matches(filter, first)?;
            for index in matches.indexes().filter(|index| (from..until).contains(index)) {
                if indexes.len() == limit {
                    return Ok(Candidates { indexes, next: index });
                }
                indexes.push(index);
            }
        }
        Ok(Candidates { indexes, next: until })
    }

    /// The ranges in a block that may match.
    fn matches(&self, filter: &v1::EntryFilter, first: u64) -> Result<Ranges, IndexError> {
        let Some(block) = self.tree.get(key::of_block(&key::blocks(), first))? else {
            return Ok(Ranges::default());
        };
        let mut block = &block[..];
        let mut number = || posting::take_varint(&mut block).unwrap_or_default();
        let (least, greatest) = (number(), number());
        let (from, until) = (filter.from_unix_ms, filter.until_unix_ms);
        if (from > 0 && greatest < from) || (until > 0 && least >= until) {
            return Ok(Ranges::default());
        }
        let mut ranges = Ranges::all(first, first + BLOCK);
        if !filter.execution_id.is_empty() {
            ranges = ranges.intersect(&self.execution(&filter.execution_id, first)?);
        }
        if !filter.agent_id.is_empty() {
            let runs = self.name(b'a', &filter.agent_id, first)?.unwrap_or_default();
            ranges = ranges.intersect(&AgentRuns::find(&runs, first, filter.agent_seq));
        }
        for (tag, name) in [(b't', &filter.tenant), (b's', &filter.skill)] {
            if !name.is_empty() {
                let of = self.name(tag, name, first)?.unwrap_or_default();
                ranges = ranges.intersect(&Ranges::decode(&of, first));
            }
        }
        for (tag, numbers) in [(b'e', &filter.event_kinds), (b'k', &filter.kinds)] {
            if !numbers.is_empty() {
                let mut any = Ranges::default();
                for number in numbers {
                    let of = self.tree.get(key::of_block(&number_term(tag, *number), first))?;
                    any = any.union(&Ranges::decode(&of.unwrap_or_default(), first));
                }
                ranges = ranges.intersect(&any);
            }
        }
        Ok(ranges)
    }

    /// The posting of a name in a block.
    fn name(&self, tag: u8, name: &str, first: u64) -> Result<Option<sled::IVec>, IndexError> {
        let [own, shared] = name_terms(tag, name);
        if let Some(posting) = self.tree.get(key::of_block(&own, first))? {
            return Ok(Some(posting));
        }
        let list = self.tree.get(key::of_block(&shared, first))?;
        Ok(list.and_then(|list| posting::named(&list, name).map(Into::into)))
    }

    fn execution(&self, execution_id: &str, first: u64) -> Result<Ranges, IndexError> {
        let fingerprint = rows::fingerprint(rows::execution_number(execution_id));
        let mut ranges = Ranges::default();
        for term in execution_terms(execution_id) {
            if let Some(list) = self.tree.get(key::of_block(&term, first))? {
                ranges = ranges.union(&posting::execution(&list, fingerprint, first));
            }
        }
        Ok(ranges)
    }
}

/// The blocks of any of several terms, ascending.
struct Blocks(Vec<(Vec<u8>, Peekable<sled::Iter>)>);

impl Blocks {
    fn new(tree: &sled::Tree, terms: Vec<Vec<u8>>, from: u64) -> Self {
        let from_there_on = |term: Vec<u8>| {
            let range = tree.range(key::of_block(&term, from)..=key::of_block(&term, u64::MAX));
            (term, range.peekable())
        };
        Self(terms.into_iter().map(from_there_on).collect())
    }
}

impl Iterator for Blocks {
    type Item = Result<u64, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut least: Option<u64> = None;
        for (term, keys) in &mut self.0 {
            loop {
                match keys.peek() {
                    None => break,
                    Some(Err(error)) => return Some(Err(error.clone().into())),
                    Some(Ok((key, _))) => {
                        if let Some(block) = key::block_of(term, key) {
                            least = Some(least.map_or(block, |least| least.min(block)));
                            break;
                        }
                        keys.next();
                    }
                }
            }
        }
        let block = least?;
        for (term, keys) in &mut self.0 {
            keys.next_if(|item| matches!(item, Ok((key, _)) if key::block_of(term, key) == Some(block)));
        }
        Some(Ok(block))
    }
}

/// The terms of which a matching block has one: the rarest by nature.
fn driving_terms(filter: &v1::EntryFilter) -> Vec<Vec<u8>> {
    if !filter.execution_id.is_empty() {
        return execution_terms(&filter.execution_id).into();
    }
    for (tag, name) in [(b'a', &filter.agent_id), (b't', &filter.tenant), (b's', &filter.skill)] {
        if !name.is_empty() {
            return name_terms(tag, name).into();
        }
    }
    for (tag, numbers) in [(b'e', &filter.event_kinds), (b'k', &filter.kinds)] {
        if !numbers.is_empty() {
            return numbers.iter().map(|number| number_term(tag, *number)).collect();
        }
    }
    vec![key::blocks()]
}

fn number_term(tag: u8, number: i32) -> Vec<u8> {
    key::number(tag, u8::try_from(number).unwrap_or_default())
}

fn name_terms(tag: u8, name: &str) -> [Vec<u8>; 2] {
    [key::name(tag, name), key::shared_names(tag, rows::share(posting::spread(name.as_bytes())))]
}

fn execution_terms(execution_id: &str) -> [Vec<u8>; 3] {
    let execution = rows::execution_number(execution_id);
    let (unit, share) = (rows::execution_unit(execution), rows::share(rows::fingerprint(execution)));
    [key::unit(unit), key::spread_unit(unit, share), key::shared_executions(share)]
}

/// Keeps the index up with the log: from what ingest hands over where that fits, from the log otherwise.
pub(crate) async fn run(
    index: Index,
    reader: LogReader,
    standing: Arc<crate::standing::Standing>,
    mut blocks: tokio::sync::mpsc::Receiver<crate::ingest::Block>,
    shutdown: tokio_util::sync::CancellationToken,
) {
    let mut block = None;
    loop {
        let (index, reader, stopping) = (index.clone(), reader.clone(), shutdown.clone());
        let report = {
            let standing = standing.clone();
            move |fault| standing.report(crate::standing::Part::Index, fault)
        };
        let progress = report.clone();
        let caught_up = tokio::task::spawn_blocking(move || {
            follow(&index, &reader, block, &stopping, |progress_made| progress(Some(progress_made)))
        });
        report(match caught_up.await {
            Ok(outcome) => outcome.err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        });
        tokio::select! {
            () = shutdown.cancelled() => return,
            received = blocks.recv() => block = received,
        }
        if block.is_none() {
            return;
        }
    }
}

/// Indexes the entries that were handed over if they are next, and whatever the log holds beyond. While that is much, says how far it
/// has come.
fn follow(
    index: &Index,
    reader: &LogReader,
    block: Option<crate::ingest::Block>,
    stopping: &tokio_util::sync::CancellationToken,
    mut progress: impl FnMut(String),
) -> Result<(), IndexError> {
    let mut size = index.size();
    if let Some(block) = block
        && block.first == size
    {
        return index.add(reader, &block.entries);
    }
    while !stopping.is_cancelled() {
        let end = reader.committed();
        if size >= end {
            break;
        }
        if end - size > MAX_UNSHOWN {
            let tenth = u128::from(size) * 10 / u128::from(end) * 10;
            progress(format!("{tenth} % of the log is indexed; queries read the rest from the log itself"));
        }
        size = index.roll_forward(reader)?;
    }
    Ok(())
}
