//! The index: which entries have which tenant, agent, execution, kind and time. Derived, in sled; the log is the truth.
//!
//! Entries are indexed by blocks (what was integrated together): per block and term one posting, not one per entry. A term's key ends
//! with the block's first index, so the postings of a term lie in log order and two terms are intersected block by block.
//!
//! | key | value |
//! |---|---|
//! | `b` block | count, least and greatest time |
//! | `t` tenant 00 block, `a` agent 00 block, `k` kind block | ranges of indexes |
//! | `x` first 4 bytes of the execution, 1 byte of its hash, block | executions with their indexes |
//! | `s` agent 00 first seq, first index | the index of each seq from there on, as distances |
//! | `m` minute block | nothing |
//!
//! Left out: exact matching (the query compares each entry again). Invariant: for entries below [`Index::size`] no match is missing.

mod posting;

use std::{collections::BTreeMap, sync::Arc};

use exchequer_event::{entry::Facets, v1};
use prost::Message as _;

use crate::{
    snapshot::for_each_entry,
    store::{LogReader, StoreError},
};
use posting::Ranges;

const META: &[u8] = b"meta";
const VERSION: u32 = 1;
/// Entries per block when the index is built from the log.
const STEP: u64 = 4096;
/// Longest run of seqs under one key, so that a seq is found within as many keys before it.
const SEQ_RUN: usize = 512;
/// Blocks that one search looks at before it returns what it has.
const MAX_BLOCKS: usize = 4096;
/// Longest time range, in minutes, that is searched by minute.
const MAX_MINUTES: u64 = 1440;
const MINUTE_MS: u64 = 60_000;

#[derive(Clone, PartialEq, prost::Message)]
struct Meta {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    size: u64,
    /// Leaf hash of the last indexed entry: says that the index is of this log.
    #[prost(bytes = "bytes", tag = "3")]
    last_leaf: bytes::Bytes,
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
}

impl Index {
    pub(crate) fn open(db: &sled::Db, reader: &LogReader) -> Result<Self, IndexError> {
        let index = Self { tree: db.open_tree("index")? };
        let meta = index.meta()?;
        let is_ours = meta.version == VERSION
            && meta.size <= reader.committed()
            && (meta.size == 0 || meta.last_leaf == reader.leaf(meta.size - 1)?.0.as_slice());
        if !is_ours {
            tracing::warn!(size = meta.size, "the index is not of this log; it is rebuilt");
            index.tree.clear()?;
        }
        Ok(index)
    }

    fn meta(&self) -> Result<Meta, IndexError> {
        let stored = self.tree.get(META)?;
        let meta = stored.and_then(|bytes| Meta::decode(&*bytes).ok());
        Ok(meta.unwrap_or(Meta { version: VERSION, ..Meta::default() }))
    }

    /// Entries that are indexed.
    pub(crate) fn size(&self) -> Result<u64, IndexError> {
        Ok(self.meta()?.size)
    }

    /// Indexes what follows from the log, at most [`STEP`] entries; the new size.
    pub(crate) fn roll_forward(&self, reader: &LogReader) -> Result<u64, IndexError> {
        let size = self.size()?;
        let end = reader.committed().min(size + STEP);
        let mut facets = Vec::new();
        for_each_entry(reader, size, end, |entry| facets.push(exchequer_event::entry::facets(&entry)))?;
        self.add(reader, size, &facets)?;
        Ok(end)
    }

    /// Indexes a block. It has to begin at [`Self::size`].
    pub(crate) fn add(&self, reader: &LogReader, first: u64, facets: &[Facets]) -> Result<(), IndexError> {
        let end = first + facets.len() as u64;
        if end == first {
            return Ok(());
        }
        let mut terms: BTreeMap<Vec<u8>, Ranges> = BTreeMap::new();
        let mut executions: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut seqs: BTreeMap<&str, SeqRun> = BTreeMap::new();
        let mut batch = sled::Batch::default();
        let (mut least, mut greatest) = (u64::MAX, 0);
        for (index, facets) in (first..).zip(facets) {
            let mut add = |term: Vec<u8>| terms.entry(term).or_default().push(index);
            add(kind_term(facets.kind));
            if !facets.tenant.is_empty() {
                add(name_term(b't', &facets.tenant));
            }
            if !facets.agent_id.is_empty() {
                add(name_term(b'a', &facets.agent_id));
            }
            if !facets.execution_id.is_empty() {
                let list = executions.entry(execution_term(&facets.execution_id)).or_default();
                posting::push_execution(list, &facets.execution_id, index - first);
            }
            if facets.agent_seq > 0 {
                let seq = facets.agent_seq;
                let run = seqs.entry(&facets.agent_id).or_insert_with(|| SeqRun::new(seq, index));
                if seq != run.first_seq + run.indexes.len() as u64 || run.indexes.len() >= SEQ_RUN {
                    let full = std::mem::replace(run, SeqRun::new(seq, index));
                    batch.insert(full.key(&facets.agent_id), full.encode());
                }
                run.indexes.push(index);
            }
            if facets.time_unix_ms > 0 {
                least = least.min(facets.time_unix_ms);
                greatest = greatest.max(facets.time_unix_ms);
                let minute = (facets.time_unix_ms / MINUTE_MS).to_be_bytes();
                batch.insert(block_key(&[b"m", &minute[..]].concat(), first), &[]);
            }
        }
        for (agent, run) in seqs {
            batch.insert(run.key(agent), run.encode());
        }
        for (term, ranges) in terms {
            batch.insert(block_key(&term, first), ranges.encode(first));
        }
        for (term, list) in executions {
            batch.insert(block_key(&term, first), list);
        }
        let mut block = Vec::new();
        for number in [end - first, least, greatest] {
            posting::push_varint(&mut block, number);
        }
        batch.insert(block_key(b"b", first), block);
        let last_leaf = bytes::Bytes::copy_from_slice(&reader.leaf(end - 1)?.0);
        batch.insert(META, Meta { version: VERSION, size: end, last_leaf }.encode_to_vec());
        self.tree.apply_batch(batch)?;
        Ok(())
    }

    /// Indexes from `from` to below `until` that may match, about `limit` of them. `until` must not be above [`Self::size`].
    pub(crate) fn candidates(
        &self,
        filter: &v1::EntryFilter,
        from: u64,
        until: u64,
        limit: usize,
    ) -> Result<Candidates, IndexError> {
        if filter.agent_seq > 0 {
            return self.by_seq(filter, from, until);
        }
        let is_timed = filter.from_unix_ms > 0 || filter.until_unix_ms > 0;
        let by_minute = is_timed
            && filter.tenant.is_empty()
            && filter.execution_id.is_empty()
            && filter.agent_id.is_empty();
        let mut found = Candidates { indexes: Vec::new(), next: from };
        let blocks: Box<dyn Iterator<Item = Result<u64, IndexError>>> = match minutes(filter) {
            Some(minutes) if by_minute => Box::new(self.blocks_of_minutes(minutes)?.into_iter().map(Ok)),
            _ => Box::new(self.blocks(&driving_term(filter), from)),
        };
        for (looked_at, block) in blocks.enumerate() {
            let first = block?;
            if first >= until {
                break;
            }
            if looked_at >= MAX_BLOCKS || found.indexes.len() >= limit {
                found.next = found.next.max(first.min(until));
                return Ok(found);
            }
            let Some((end, ranges)) = self.matches(filter, first)? else { continue };
            found.indexes.extend(ranges.indexes().filter(|index| (from..until).contains(index)));
            found.next = found.next.max(end.min(until));
        }
        found.next = until;
        Ok(found)
    }

    /// End of a block and the ranges in it that may match; `None` if there is no such block or it can't match.
    fn matches(&self, filter: &v1::EntryFilter, first: u64) -> Result<Option<(u64, Ranges)>, IndexError> {
        let Some(block) = self.tree.get(block_key(b"b", first))? else { return Ok(None) };
        let mut block = &block[..];
        let mut number = || posting::take_varint(&mut block).unwrap_or_default();
        let (end, least, greatest) = (first + number(), number(), number());
        let is_over = |bound: u64, over: bool| bound > 0 && over;
        if is_over(filter.from_unix_ms, greatest < filter.from_unix_ms)
            || is_over(filter.until_unix_ms, least >= filter.until_unix_ms)
        {
            return Ok(None);
        }
        let mut ranges = Ranges::all(first, end);
        for (tag, name) in [(b't', &filter.tenant), (b'a', &filter.agent_id)] {
            if !name.is_empty() {
                ranges = ranges.intersect(&self.ranges(&name_term(tag, name), first)?);
            }
        }
        if !filter.kinds.is_empty() {
            let mut any = Ranges::default();
            for kind in filter.kinds() {
                any = any.union(&self.ranges(&kind_term(kind), first)?);
            }
            ranges = ranges.intersect(&any);
        }
        if !filter.execution_id.is_empty() {
            let list = self.tree.get(block_key(&execution_term(&filter.execution_id), first))?;
            let of =
                list.map(|list| posting::execution(&list, &filter.execution_id, first)).unwrap_or_default();
            ranges = ranges.intersect(&of);
        }
        Ok(Some((end, ranges)))
    }

    fn ranges(&self, term: &[u8], first: u64) -> Result<Ranges, IndexError> {
        let stored = self.tree.get(block_key(term, first))?;
        Ok(stored.map(|bytes| Ranges::decode(&bytes, first)).unwrap_or_default())
    }

    /// First indexes of the term's blocks, from the one on that may hold `from`.
    fn blocks(&self, term: &[u8], from: u64) -> impl Iterator<Item = Result<u64, IndexError>> + use<> {
        let (least, at) = (block_key(term, 0), block_key(term, from));
        let start = self
            .tree
            .range(least..=at.clone())
            .next_back()
            .and_then(Result::ok)
            .map_or(at, |(key, _)| key.to_vec());
        let range = self.tree.range(start..=block_key(term, u64::MAX));
        range.map(|item| Ok(key_block(&item?.0)))
    }

    fn blocks_of_minutes(
        &self,
        minutes: std::ops::RangeInclusive<u64>,
    ) -> Result<std::collections::BTreeSet<u64>, IndexError> {
        let term = |minute: &u64| [b"m", &minute.to_be_bytes()[..]].concat();
        let (least, greatest) =
            (block_key(&term(minutes.start()), 0), block_key(&term(minutes.end()), u64::MAX));
        self.tree.range(least..=greatest).map(|item| Ok(key_block(&item?.0))).collect()
    }

    fn by_seq(&self, filter: &v1::EntryFilter, from: u64, until: u64) -> Result<Candidates, IndexError> {
        let seq = filter.agent_seq;
        let least = seq_key(&filter.agent_id, seq.saturating_sub(SEQ_RUN as u64 - 1), 0);
        let mut indexes = Vec::new();
        for item in self.tree.range(least..=seq_key(&filter.agent_id, seq, u64::MAX)) {
            let (key, list) = item?;
            let Some((rest, _)) = key.split_last_chunk::<8>() else { continue };
            let place = usize::try_from(seq - key_block(rest)).unwrap_or(usize::MAX);
            let mut at = key_block(&key);
            let mut list = &list[..];
            let gaps = std::iter::from_fn(|| posting::take_varint(&mut list));
            let places = gaps.map(|gap| {
                at += gap;
                at
            });
            indexes.extend(places.skip(place).take(1));
        }
        indexes.retain(|index| (from..until).contains(index));
        indexes.sort_unstable();
        Ok(Candidates { indexes, next: until })
    }
}

/// Consecutive seqs of an agent within a block, and where they are.
struct SeqRun {
    first_seq: u64,
    first_index: u64,
    indexes: Vec<u64>,
}

impl SeqRun {
    fn new(first_seq: u64, first_index: u64) -> Self {
        Self { first_seq, first_index, indexes: Vec::new() }
    }

    fn key(&self, agent_id: &str) -> Vec<u8> {
        seq_key(agent_id, self.first_seq, self.first_index)
    }

    /// Each index as its distance from the one before.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut at = self.first_index;
        for index in &self.indexes {
            posting::push_varint(&mut bytes, index - at);
            at = *index;
        }
        bytes
    }
}

/// The minutes that the filter's times span, if both are given and not too far apart.
fn minutes(filter: &v1::EntryFilter) -> Option<std::ops::RangeInclusive<u64>> {
    let last = filter.until_unix_ms.checked_sub(1)?;
    let (from, to) = (filter.from_unix_ms / MINUTE_MS, last / MINUTE_MS);
    (from > 0 && to.saturating_sub(from) < MAX_MINUTES).then_some(from..=to)
}

/// The term that drives a search: the rarest by nature.
fn driving_term(filter: &v1::EntryFilter) -> Vec<u8> {
    if !filter.execution_id.is_empty() {
        return execution_term(&filter.execution_id);
    }
    if !filter.tenant.is_empty() {
        return name_term(b't', &filter.tenant);
    }
    if !filter.agent_id.is_empty() {
        return name_term(b'a', &filter.agent_id);
    }
    match filter.kinds().collect::<Vec<_>>()[..] {
        [kind] => kind_term(kind),
        _ => b"b".to_vec(),
    }
}

fn name_term(tag: u8, name: &str) -> Vec<u8> {
    [&[tag], name.as_bytes(), &[0]].concat()
}

fn kind_term(kind: v1::EntryKind) -> Vec<u8> {
    vec![b'k', u8::try_from(i32::from(kind)).unwrap_or_default()]
}

/// Executions are named by time-ordered UUIDs, whose first 4 bytes change about once a minute: an execution's postings lie together,
/// and the hash spreads those of a busy minute.
fn execution_term(execution_id: &str) -> Vec<u8> {
    let mut term = vec![b'x'];
    term.extend(&posting::execution_bytes(execution_id)[..4]);
    term.push(blake3::hash(execution_id.as_bytes()).as_bytes()[0]);
    term
}

fn block_key(term: &[u8], first: u64) -> Vec<u8> {
    [term, &first.to_be_bytes()].concat()
}

fn seq_key(agent_id: &str, seq: u64, first_index: u64) -> Vec<u8> {
    block_key(&[&name_term(b's', agent_id)[..], &seq.to_be_bytes()].concat(), first_index)
}

fn key_block(key: &[u8]) -> u64 {
    key.last_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes))
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
        let caught_up = tokio::task::spawn_blocking(move || follow(&index, &reader, block, &stopping));
        let fault = match caught_up.await {
            Ok(outcome) => outcome.err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        standing.report(crate::standing::Part::Index, fault);
        tokio::select! {
            () = shutdown.cancelled() => return,
            received = blocks.recv() => block = received,
        }
        if block.is_none() {
            return;
        }
    }
}

/// Indexes the block if it is next, and whatever the log holds beyond.
fn follow(
    index: &Index,
    reader: &LogReader,
    block: Option<crate::ingest::Block>,
    stopping: &tokio_util::sync::CancellationToken,
) -> Result<(), IndexError> {
    let mut size = index.size()?;
    let mut end = reader.committed();
    if let Some(block) = block {
        end = block.first + block.facets.len() as u64;
        if size == block.first {
            return index.add(reader, size, &block.facets);
        }
    }
    while size < end && !stopping.is_cancelled() {
        size = index.roll_forward(reader)?;
    }
    Ok(())
}
