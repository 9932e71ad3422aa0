//! What is over for good: answered idempotency keys, closed holds, ended grants. Append-only and compact; never forgotten, so that no
//! repeated request is ever charged again, however late.
//!
//! A row says where in the stream an answer or a hold is to be read back. Left out: the answers themselves. Invariant: a row never
//! changes, and the chain is BLAKE3 over all rows in their order, so equal chains and counts mean equal pasts.

use std::{collections::HashMap, sync::Arc};

use thiserror::Error;

use crate::id::{GrantId, HoldId, IdempotencyKey, TenantId};

/// BLAKE3 `derive_key` context of the ids of rows.
pub const PAST_ID_CONTEXT: &str = "exchequer.v1 budget past id";
/// BLAKE3 `derive_key` context of the chain over rows.
pub const PAST_CONTEXT: &str = "exchequer.v1 budget past";

/// Bytes of a row.
pub const ROW_BYTES: usize = 40;
/// Rows that are kept, and handed on, together.
const CHUNK_ROWS: usize = 4096;
/// Parts of the index. Each grows by itself, so that no decision waits until all of it has been moved.
const SHARDS: usize = 1024;

type Row = [u8; ROW_BYTES];

pub(crate) type PastId = [u8; 16];

/// What names rows: a keyed digest, cheap enough for each decision.
#[derive(Clone)]
pub(crate) struct Ids([u8; 32]);

impl Default for Ids {
    fn default() -> Self {
        Self(blake3::derive_key(PAST_ID_CONTEXT, b""))
    }
}

impl Ids {
    fn id(&self, kind: u8, parts: [&str; 2]) -> PastId {
        // Kind, and a tenant without slashes before one: no two are the same text. Long keys don't fit the buffer.
        let mut buffer = [0; 256];
        let [first, second] = parts.map(str::as_bytes);
        let len = 2 + first.len() + second.len();
        let digest = if len <= buffer.len() {
            buffer[0] = kind;
            buffer[1..=first.len()].copy_from_slice(first);
            buffer[1 + first.len()] = b'/';
            buffer[2 + first.len()..len].copy_from_slice(second);
            blake3::keyed_hash(&self.0, &buffer[..len])
        } else {
            blake3::keyed_hash(&self.0, &[&[kind], first, b"/", second].concat())
        };
        let mut id = PastId::default();
        id.copy_from_slice(&digest.as_bytes()[..16]);
        id
    }

    pub(crate) fn key(&self, tenant: &TenantId, key: &IdempotencyKey) -> PastId {
        self.id(b'k', [tenant.as_str(), key.as_str()])
    }

    pub(crate) fn hold(&self, hold_id: &HoldId) -> PastId {
        self.id(b'h', ["", hold_id.as_str()])
    }

    pub(crate) fn grant(&self, tenant: &TenantId, grant_id: &GrantId) -> PastId {
        self.id(b'g', [tenant.as_str(), grant_id.as_str()])
    }

    pub(crate) fn tenant(&self, tenant: &str) -> [u8; 8] {
        let mut short = [0; 8];
        short.copy_from_slice(&self.id(b't', [tenant, ""])[..8]);
        short
    }
}

/// An idempotency key that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PastAnswer {
    /// The first half of the request's digest.
    pub request: [u8; 16],
    /// Stream sequence of the block that answered it.
    pub stream_seq: u64,
}

/// A hold that was settled or voided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PastHold {
    tenant: [u8; 8],
    /// Stream sequence of the block that granted it.
    pub granted_seq: u64,
    /// Stream sequence of the block that settled or voided it.
    pub closed_seq: u64,
}

/// Why bytes are not rows that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PastError {
    /// They end within a row.
    #[error("the rows end within one")]
    Cut,
    /// A row is there already.
    #[error("a row is there twice")]
    Repeated,
}

/// The past of a partition. Starts empty.
#[derive(Clone)]
pub struct Past {
    pub(crate) ids: Ids,
    full: Vec<Arc<[Row]>>,
    /// The rows behind the last full chunk.
    open: Vec<Row>,
    index: Vec<HashMap<PastId, usize>>,
    chain: blake3::Hasher,
}

/// Rows of a past as they were at one moment. Taking them costs little however many they are.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// How many of the first chunk's rows are not meant.
    skip: usize,
    full: Vec<Arc<[Row]>>,
    open: Vec<Row>,
}

impl Rows {
    /// The rows, end to end, in pieces of bounded size, with the number of rows in each.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let chunks = self.full.iter().map(|chunk| &chunk[..]).chain([&self.open[..]]).enumerate();
        let meant =
            chunks.map(|(at, rows)| if at == 0 { rows.get(self.skip..).unwrap_or_default() } else { rows });
        meant.filter(|rows| !rows.is_empty()).map(|rows| (rows.len() as u64, rows.as_flattened()))
    }
}

impl Default for Past {
    fn default() -> Self {
        Self {
            ids: Ids::default(),
            full: Vec::new(),
            open: Vec::new(),
            index: vec![HashMap::new(); SHARDS],
            chain: blake3::Hasher::new_derive_key(PAST_CONTEXT),
        }
    }
}

impl std::fmt::Debug for Past {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Past").field("rows", &self.count()).finish_non_exhaustive()
    }
}

impl PartialEq for Past {
    fn eq(&self, other: &Self) -> bool {
        (&self.full, &self.open) == (&other.full, &other.open)
    }
}

impl Eq for Past {}

impl Past {
    /// Rows.
    pub fn count(&self) -> u64 {
        self.len() as u64
    }

    fn len(&self) -> usize {
        self.full.len() * CHUNK_ROWS + self.open.len()
    }

    /// BLAKE3 over all rows.
    pub fn chain(&self) -> [u8; 32] {
        self.chain.finalize().into()
    }

    /// The rows after the first `skip`: what a snapshot adds to one that had that many.
    pub fn rows_after(&self, skip: u64) -> Rows {
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let full = self.full.get(skip / CHUNK_ROWS..).unwrap_or_default().to_vec();
        let skip = skip.saturating_sub((self.full.len() - full.len()) * CHUNK_ROWS);
        Rows { skip, full, open: self.open.clone() }
    }

    /// Takes rows that [`Self::rows_after`] gave, a piece or several end to end. On an error those before the fault were taken.
    pub fn extend(&mut self, bytes: &[u8]) -> Result<(), PastError> {
        let (rows, rest) = bytes.as_chunks::<ROW_BYTES>();
        if !rest.is_empty() {
            return Err(PastError::Cut);
        }
        rows.iter().try_for_each(|row| if self.push(row) { Ok(()) } else { Err(PastError::Repeated) })
    }

    /// When a key was answered.
    pub fn answer(&self, tenant: &TenantId, key: &IdempotencyKey) -> Option<PastAnswer> {
        self.answer_of(&self.ids.key(tenant, key))
    }

    /// Where a hold is to be read back, if it is `tenant`'s and over.
    pub fn hold(&self, tenant: &TenantId, hold_id: &HoldId) -> Option<PastHold> {
        self.hold_of(hold_id).filter(|hold| hold.tenant == self.ids.tenant(tenant.as_str()))
    }

    /// Where a hold is to be read back, whosever it was: for callers that span tenants.
    pub fn hold_of(&self, hold_id: &HoldId) -> Option<PastHold> {
        let body = self.body(&self.ids.hold(hold_id))?;
        Some(PastHold { tenant: part(body, 0), granted_seq: number(body, 8), closed_seq: number(body, 16) })
    }

    pub(crate) fn answer_of(&self, id: &PastId) -> Option<PastAnswer> {
        let body = self.body(id)?;
        Some(PastAnswer { request: part(body, 0), stream_seq: number(body, 16) })
    }

    pub(crate) fn has_grant(&self, tenant: &TenantId, grant_id: &GrantId) -> bool {
        self.place(&self.ids.grant(tenant, grant_id)).is_some()
    }

    pub(crate) fn add_answer(&mut self, id: PastId, request_hash: &[u8; 32], stream_seq: u64) {
        let (half, _) = request_hash.split_at(16);
        self.add(id, &[half, &stream_seq.to_be_bytes()]);
    }

    pub(crate) fn add_hold(&mut self, hold_id: &HoldId, tenant: &str, granted_seq: u64, closed_seq: u64) {
        let tenant = self.ids.tenant(tenant);
        let parts = [&tenant[..], &granted_seq.to_be_bytes(), &closed_seq.to_be_bytes()];
        self.add(self.ids.hold(hold_id), &parts);
    }

    pub(crate) fn add_grant(&mut self, tenant: &TenantId, grant_id: &GrantId, stream_seq: u64) {
        self.add(self.ids.grant(tenant, grant_id), &[&[0; 16], &stream_seq.to_be_bytes()]);
    }

    fn add(&mut self, id: PastId, body: &[&[u8]]) {
        let mut row = [0; ROW_BYTES];
        let mut at = id.len();
        row[..at].copy_from_slice(&id);
        for part in body {
            row[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        // One that is there stays as it is: two states that retire the same block into one past add it once.
        self.push(&row);
    }

    fn push(&mut self, row: &Row) -> bool {
        let id: PastId = part(row, 0);
        let at = self.len();
        if *self.index[shard(&id)].entry(id).or_insert(at) != at {
            return false;
        }
        self.open.push(*row);
        self.chain.update(row);
        if self.open.len() == CHUNK_ROWS {
            self.full.push(self.open.drain(..).collect());
        }
        true
    }

    fn place(&self, id: &PastId) -> Option<usize> {
        self.index[shard(id)].get(id).copied()
    }

    fn body(&self, id: &PastId) -> Option<&[u8]> {
        let place = self.place(id)?;
        let chunk = self.full.get(place / CHUNK_ROWS).map_or(&self.open[..], |chunk| &chunk[..]);
        Some(&chunk.get(place % CHUNK_ROWS)?[id.len()..])
    }
}

/// Ids are digests: any of their bits tell them apart evenly.
fn shard(id: &PastId) -> usize {
    usize::from(u16::from_be_bytes([id[0], id[1]])) % SHARDS
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(part(bytes, at))
}
