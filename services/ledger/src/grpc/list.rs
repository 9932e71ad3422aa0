//! Lists: a page of entries, with the seals that they stand under and their proofs in one tree where that is asked for.
//!
//! Left out: which entries match (`query`). Invariant: every proof of an answer is in the tree whose size the answer names, and a page
//! with everything that comes along fits into one answer.

use bytes::Bytes;
use exchequer_auth::Caller;
use exchequer_event::{
    entry,
    name::MAX_BATCH_EVENTS,
    v1::{self, entry::Kind},
};
use exchequer_tlog::{HASH_BYTES, Prover};
use tonic::{Response, Status};

use super::{Grpc, checked_query, fault};
use crate::{
    query::{CurrentBundle, MAX_PAGE_BYTES, Page, PageToken},
    store::{LogReader, StoreError},
};

const DEFAULT_PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;
/// A hash of a proof with its framing.
const PROOF_HASH_BYTES: usize = HASH_BYTES + 2;
/// Entries between a record and its seal, at most: a batch and a block have the same bound.
const MAX_WALK: u64 = MAX_BATCH_EVENTS as u64;

/// Answers `ListEntries`.
pub(super) async fn list(
    grpc: &Grpc,
    caller: Caller,
    request: v1::ListEntriesRequest,
) -> Result<Response<v1::ListEntriesResponse>, Status> {
    let v1::ListEntriesRequest { filter, page_size, page_token, with_proofs, tree_size, with_seals } =
        request;
    let (filter, query) = checked_query(filter, caller)?;
    if page_size > MAX_PAGE {
        return Err(fault::field("page_size", format!("must be at most {MAX_PAGE}")));
    }
    let PageToken { next: from, tree_size } = match &*page_token {
        "" => PageToken { next: 0, tree_size: grpc.proof_size("tree_size", tree_size)?.size },
        token => match PageToken::decode(token, &filter) {
            Some(token) if tree_size == 0 || token.tree_size == tree_size => token,
            Some(_) => return Err(fault::field("page_token", "is a token of another tree")),
            None => return Err(fault::field("page_token", "is not a token of this filter")),
        },
    };
    let published = grpc.published().size;
    if tree_size > published {
        return Err(fault::out_of_range("page_token", tree_size, published));
    }
    let limit = if page_size == 0 { DEFAULT_PAGE } else { page_size } as usize;
    let read = move |grpc: &Grpc| {
        let mut page = query.page(&grpc.reader, Some(&grpc.index), from, tree_size, limit)?;
        if with_seals {
            add_seals(&grpc.reader, &mut page, tree_size)?;
        }
        if with_proofs {
            add_proofs(&grpc.reader, &mut page, tree_size)?;
        }
        Ok(page)
    };
    let page = grpc.blocking(read).await?;
    let next = PageToken { next: page.next, tree_size };
    let next_page_token = if page.next < tree_size { next.encode(&filter) } else { String::new() };
    Ok(Response::new(v1::ListEntriesResponse { entries: page.entries, next_page_token, tree_size }))
}

/// Puts each seal before the first record that stands under it. Seals are public: whoever may see a record may see its seal.
fn add_seals(reader: &LogReader, page: &mut Page, size: u64) -> Result<(), StoreError> {
    let mut bundle = CurrentBundle::default();
    // Stream sequence of the seal that is in the page already.
    let mut sealed = None;
    let mut bytes = 0;
    for found in std::mem::take(&mut page.entries) {
        let Ok(decoded) = entry::decode(&found.entry) else { continue };
        let seal = match decoded.kind {
            Some(Kind::Event(_) | Kind::DecisionRun(_)) if sealed != Some(decoded.stream_seq) => {
                seal_before(reader, &mut bundle, found.index, decoded.stream_seq, size)?
            }
            _ => None,
        };
        let more = found.entry.len() + seal.as_ref().map_or(0, |seal| seal.entry.len());
        if bytes + more > MAX_PAGE_BYTES && bytes > 0 {
            page.next = found.index;
            break;
        }
        bytes += more;
        if seal.is_some() || matches!(decoded.kind, Some(Kind::BatchSealed(_) | Kind::BlockSealed(_))) {
            sealed = Some(decoded.stream_seq);
        }
        page.entries.extend(seal);
        page.entries.push(found);
    }
    Ok(())
}

/// The seal of the message that the record at `index` came with.
fn seal_before(
    reader: &LogReader,
    bundle: &mut CurrentBundle,
    index: u64,
    stream_seq: u64,
    size: u64,
) -> Result<Option<v1::LogEntry>, StoreError> {
    for at in (index.saturating_sub(MAX_WALK)..index).rev() {
        let bytes = bundle.entry(reader, at, size)?;
        match entry::decode(&bytes) {
            Ok(decoded) if decoded.stream_seq != stream_seq => break,
            Ok(v1::Entry { kind: Some(Kind::BatchSealed(_) | Kind::BlockSealed(_)), .. }) => {
                return Ok(Some(v1::LogEntry { index: at, entry: bytes, proof: Vec::new() }));
            }
            _ => {}
        }
    }
    Ok(None)
}

/// Adds the proofs. A page that would grow too long by them is cut; what was cut begins the next one.
fn add_proofs(reader: &LogReader, page: &mut Page, size: u64) -> Result<(), StoreError> {
    let mut prover = Prover::new(reader, size);
    let mut bytes = 0;
    for place in 0..page.entries.len() {
        let entry = &mut page.entries[place];
        let hashes = prover.inclusion(entry.index)?;
        bytes += hashes.len() * PROOF_HASH_BYTES;
        entry.proof = hashes.iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect();
        if bytes > MAX_PAGE_BYTES - MAX_PAGE_BYTES / 4 {
            page.next = page.entries.get(place + 1).map_or(page.next, |entry| entry.index);
            page.entries.truncate(place + 1);
            break;
        }
    }
    Ok(())
}
