//! Page tokens: where a page ended, and what the first page was an answer to.
//!
//! Left out: whether the caller may ask. Invariant: all pages of one query are of the same log index and the same range, however far the log
//! has grown between them, and a token serves no other query.

use bytes::Bytes;
use exchequer_event::{digest::Purpose, v1};
use prost::Message as _;

use super::query::Place;

/// Longest token that is looked at, bytes.
const MAX_TOKEN_BYTES: usize = 2048;

/// Its bytes in hex are what callers get. Private: it may change with any version.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PageToken {
    /// Request digest of the query without its page.
    #[prost(bytes = "bytes", tag = "1")]
    query: Bytes,
    #[prost(uint64, tag = "2")]
    pub(super) as_of: u64,
    /// End of the range, minutes.
    #[prost(uint32, tag = "3")]
    pub(super) to: u32,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "5")]
    meter: String,
    #[prost(uint32, tag = "6")]
    from: u32,
}

impl PageToken {
    pub(super) fn new(request: &v1::QueryUsageRequest, as_of: u64, to: u32, last: &Place) -> Self {
        let Place { name, meter, from } = last.clone();
        Self { query: digest(request), as_of, to, name, meter, from }
    }

    pub(super) fn text(&self) -> String {
        hex::encode(self.encode_to_vec())
    }

    /// The token of this very query.
    pub(super) fn read(text: &str, request: &v1::QueryUsageRequest) -> Option<Self> {
        let bytes = hex::decode(text.get(..text.len().min(MAX_TOKEN_BYTES))?).ok()?;
        Self::decode(&*bytes).ok().filter(|token| token.query == digest(request))
    }

    pub(super) fn place(&self) -> Place {
        Place { name: self.name.clone(), meter: self.meter.clone(), from: self.from }
    }
}

fn digest(request: &v1::QueryUsageRequest) -> Bytes {
    let query = v1::QueryUsageRequest { page_size: 0, page_token: String::new(), ..request.clone() };
    Purpose::Request.digest_fields([&b"QueryUsage"[..], &query.encode_to_vec()]).into()
}
