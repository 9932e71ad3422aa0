//! Queries: which entries a caller gets, from the index where it is built and from the log where it is not yet.
//!
//! Left out: transport. Invariant: every entry that is returned was compared with the whole filter and with what the caller may see,
//! whatever the index says.

use std::ops::Range;

use bytes::Bytes;
use exchequer_auth::{Caller, Denied};
use exchequer_event::{
    entry::{self, Facets},
    name,
    v1::{self, EntryFilter, EntryKind, EventKind},
};

use crate::{
    index::Index,
    store::{LogReader, StoreError},
};

/// Entries that one page looks at.
const MAX_EXAMINED: usize = 16_384;
/// Bytes of entries after which a page is full: clients' default limit of a message is 4 MiB.
pub(crate) const MAX_PAGE_BYTES: usize = 2 * 1024 * 1024;
/// Indexes asked of the index at once.
const STEP: usize = 512;
const BUNDLE: u64 = exchequer_tlog::TILE_WIDTH as u64;

/// Kinds that hold no tenant's data and are needed to verify those that do.
const PUBLIC_KINDS: [EntryKind; 3] = [EntryKind::BatchSealed, EntryKind::BlockSealed, EntryKind::Control];

/// Whether the caller may see an entry.
pub(crate) fn check_visible<S: AsRef<str>>(caller: &Caller, facets: &Facets<S>) -> Result<(), Denied> {
    let tenant = facets.tenant.as_ref();
    match facets.kind {
        kind if PUBLIC_KINDS.contains(&kind) => Ok(()),
        EntryKind::Event | EntryKind::DecisionRun if !tenant.is_empty() => caller.may_read_tenant(tenant),
        // Rejections and equivocations quote whatever somebody sent; an event without tenant is the host's own.
        _ => caller.may_read_all(),
    }
}

/// A filter is malformed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadFilter {
    pub(crate) field: &'static str,
    pub(crate) reason: String,
}

/// A checked filter, narrowed to what the caller may see.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    filter: EntryFilter,
    caller: Caller,
}

/// A page of entries.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) entries: Vec<v1::LogEntry>,
    /// First index that was not considered.
    pub(crate) next: u64,
}

impl Query {
    /// Checks the filter's fields.
    pub(crate) fn check(filter: &EntryFilter) -> Result<(), BadFilter> {
        let bad = |field, reason: &str| Err(BadFilter { field, reason: reason.to_owned() });
        if !filter.tenant.is_empty() && !name::is_tenant(&filter.tenant) {
            return bad("filter.tenant", "is not a tenant name");
        }
        if !filter.execution_id.is_empty() && !name::is_uuid(&filter.execution_id) {
            return bad("filter.execution_id", "is not a UUID in lower-case hyphenated form");
        }
        if !filter.agent_id.is_empty() && !name::is_holder(&filter.agent_id) {
            return bad("filter.agent_id", "is not an agent id");
        }
        if filter.agent_seq > 0 && filter.agent_id.is_empty() {
            return bad("filter.agent_seq", "is only with agent_id");
        }
        let is_kind =
            |kind: &i32| EntryKind::try_from(*kind).is_ok_and(|kind| kind != EntryKind::Unspecified);
        if filter.kinds.len() > 16 || !filter.kinds.iter().all(is_kind) {
            return bad("filter.kinds", "must be at most 16 known kinds");
        }
        if !filter.skill.is_empty() && !name::is_skill(&filter.skill) {
            return bad("filter.skill", "is not a skill's name");
        }
        let is_event_kind =
            |kind: &i32| EventKind::try_from(*kind).is_ok_and(|kind| kind != EventKind::Unspecified);
        if filter.event_kinds.len() > 16 || !filter.event_kinds.iter().all(is_event_kind) {
            return bad("filter.event_kinds", "must be at most 16 known kinds");
        }
        if filter.until_unix_ms > 0 && filter.until_unix_ms <= filter.from_unix_ms {
            return bad("filter.until_unix_ms", "must be after from_unix_ms");
        }
        if filter.until_index > 0 && filter.until_index <= filter.from_index {
            return bad("filter.until_index", "must be after from_index");
        }
        Ok(())
    }

    /// Narrows a checked filter to what the caller may see.
    pub(crate) fn new(mut filter: EntryFilter, caller: Caller) -> Result<Self, Denied> {
        if caller.may_read_all().is_err() {
            let is_public =
                !filter.kinds.is_empty() && filter.kinds().all(|kind| PUBLIC_KINDS.contains(&kind));
            if filter.tenant.is_empty() && !is_public {
                // Denied for want of a role, or of a tenant of its own.
                let own = caller.tenant.clone().unwrap_or_default();
                caller.may_read_tenant(&own)?;
                if own.is_empty() {
                    return Err(Denied::Tenant { wanted: own });
                }
                filter.tenant = own;
            } else if !filter.tenant.is_empty() {
                caller.may_read_tenant(&filter.tenant)?;
            }
        }
        Ok(Self { filter, caller })
    }

    fn takes(&self, facets: &Facets<&str>) -> bool {
        let filter = &self.filter;
        let is = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
        is(&filter.tenant, facets.tenant)
            && is(&filter.execution_id, facets.execution_id)
            && is(&filter.skill, facets.skill)
            && is(&filter.agent_id, facets.agent_id)
            && (filter.agent_seq == 0 || filter.agent_seq == facets.agent_seq)
            && (filter.kinds.is_empty() || filter.kinds.contains(&facets.kind.into()))
            && (filter.event_kinds.is_empty() || filter.event_kinds.contains(&facets.event_kind.into()))
            && (filter.from_unix_ms == 0 || facets.time_unix_ms >= filter.from_unix_ms)
            && (filter.until_unix_ms == 0 || (1..filter.until_unix_ms).contains(&facets.time_unix_ms))
            && check_visible(&self.caller, facets).is_ok()
    }

    /// The first `limit` entries at all that match from `from` to below `until`, or fewer, if the page is full before; `next` says
    /// from where to go on.
    pub(crate) fn page(
        &self,
        reader: &LogReader,
        index: Option<&Index>,
        from: u64,
        until: u64,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let mut end = if self.filter.until_index == 0 { until } else { until.min(self.filter.until_index) };
        let mut from = from.max(self.filter.from_index);
        if self.filter.stream_seq > 0 {
            let message = message(reader, self.filter.stream_seq, until)?;
            (from, end) = (from.max(message.start), end.min(message.end));
        }
        let mut page = self.page_within(reader, index, from, end, limit)?;
        if page.next >= end {
            page.next = until;
        }
        Ok(page)
    }

    fn page_within(
        &self,
        reader: &LogReader,
        index: Option<&Index>,
        from: u64,
        until: u64,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let mut page = Page { entries: Vec::new(), next: from };
        let mut bundle = CurrentBundle::default();
        let (mut bytes, mut examined) = (0, 0);
        while page.next < until && examined < MAX_EXAMINED {
            let (indexes, next) = self.candidates(index, page.next, until);
            // One search may look at thousands of blocks in vain; it counts, so that a page always ends.
            examined += STEP.min(indexes.len().max(STEP / 8));
            for index in indexes {
                let entry = bundle.entry(reader, index, until)?;
                if !entry::read_facets(&entry).is_some_and(|facets| self.takes(&facets)) {
                    continue;
                }
                if page.entries.len() == limit || (bytes + entry.len() > MAX_PAGE_BYTES && bytes > 0) {
                    page.next = index;
                    return Ok(page);
                }
                bytes += entry.len();
                page.entries.push(v1::LogEntry { index, entry, proof: Vec::new() });
            }
            page.next = next;
        }
        Ok(page)
    }

    /// Indexes that may match, and up to where that is all of them.
    fn candidates(&self, index: Option<&Index>, from: u64, until: u64) -> (Vec<u64>, u64) {
        let indexed = index.and_then(|index| {
            let end = index.size().min(until);
            // An index that can't be read is reported where it is written; here the log itself answers.
            if end > from { index.candidates(&self.filter, from, end, STEP).ok() } else { None }
        });
        if let Some(found) = indexed {
            return (found.indexes, found.next);
        }
        let end = until.min(from + STEP as u64);
        ((from..end).collect(), end)
    }
}

/// Indexes of the entries of one stream message among the first `size`. No index is kept for it: sequences never fall along the log, so
/// a search reads a bundle for each halving of it.
fn message(reader: &LogReader, stream_seq: u64, size: u64) -> Result<Range<u64>, StoreError> {
    let mut bundle = CurrentBundle::default();
    let mut first = |from: u64, is_before: &dyn Fn(u64) -> bool| -> Result<u64, StoreError> {
        let (mut low, mut high) = (from, size);
        while low < high {
            let middle = low + (high - low) / 2;
            let bytes = bundle.entry(reader, middle, size)?;
            let entry = entry::decode(&bytes).map_err(|_| StoreError::NotInTree { index: middle })?;
            if is_before(entry.stream_seq) { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    };
    let start = first(0, &|seq| seq < stream_seq)?;
    Ok(start..first(start, &|seq| seq <= stream_seq)?)
}

/// The bundle that was read last.
#[derive(Default)]
pub(crate) struct CurrentBundle {
    first: u64,
    entries: Vec<Bytes>,
}

impl CurrentBundle {
    /// The entry at an index of a log of this size.
    pub(crate) fn entry(&mut self, reader: &LogReader, index: u64, size: u64) -> Result<Bytes, StoreError> {
        let first = index - index % BUNDLE;
        let place = usize::try_from(index % BUNDLE).unwrap_or_default();
        if self.first != first || self.entries.len() <= place {
            self.entries = reader.entries(first, size.min(first + BUNDLE))?;
            self.first = first;
        }
        self.entries.get(place).cloned().ok_or(StoreError::OutOfRange { asked: index, size })
    }
}

/// Where a listing goes on, and the tree that all of it is read from. It names the filter, so that a token of another listing is
/// refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageToken {
    /// First index that was not considered.
    pub(crate) next: u64,
    /// Size of the tree of the first page.
    pub(crate) tree_size: u64,
}

impl PageToken {
    pub(crate) fn encode(self, filter: &EntryFilter) -> String {
        hex::encode([self.next.to_be_bytes(), self.tree_size.to_be_bytes(), filter_sum(filter)].concat())
    }

    /// What a token of this filter says.
    pub(crate) fn decode(token: &str, filter: &EntryFilter) -> Option<Self> {
        let mut bytes = [0; 24];
        hex::decode_to_slice(token, &mut bytes).ok()?;
        let (next, rest) = bytes.split_first_chunk::<8>()?;
        let (tree_size, sum) = rest.split_first_chunk::<8>()?;
        let token = Self { next: u64::from_be_bytes(*next), tree_size: u64::from_be_bytes(*tree_size) };
        (sum == filter_sum(filter) && token.next <= token.tree_size).then_some(token)
    }
}

fn filter_sum(filter: &EntryFilter) -> [u8; 8] {
    let hash = blake3::hash(&prost::Message::encode_to_vec(filter));
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}
