//! Entries of a ledger by filter, with what proves them, in log order.
//!
//! Left out: what is made of them. Invariant: no more than two pages of a listing are held, and an entry that comes twice or out of
//! order ends the export.

use std::{collections::VecDeque, pin::Pin};

use exchequer_event::{
    entry, seal,
    v1::{self, entry::Kind, ledger_service_client::LedgerServiceClient},
};
use prost::bytes::Bytes;
use tonic::{
    Response, Status,
    client::GrpcService,
    codegen::{Body, StdError},
};

use super::{ExportError, answers};
use crate::evidence::pack::TimeRange;

/// Entries that a page asks for.
const PAGE: u32 = 1000;

/// The transport to a ledger.
pub trait Transport:
    GrpcService<
        tonic::body::Body,
        Error: Into<StdError>,
        ResponseBody: Body<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
        Future: Send,
    > + Clone
    + Send
    + 'static
{
}

impl<T> Transport for T where
    T: GrpcService<
            tonic::body::Body,
            Error: Into<StdError>,
            ResponseBody: Body<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
            Future: Send,
        > + Clone
        + Send
        + 'static
{
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<v1::ListEntriesResponse>, Status>> + Send>>;

/// Entries by one filter.
pub(in crate::evidence) struct Listing<T> {
    client: LedgerServiceClient<T>,
    request: v1::ListEntriesRequest,
    /// The page after the one that is being read.
    ahead: Option<Answer>,
    page: VecDeque<v1::LogEntry>,
    /// Whether the next entry is a page's first, which may be a seal that the page before had.
    at_start: bool,
    next: u64,
    /// Blocks of another time are left out.
    time: Option<TimeRange>,
    left_out: Option<u64>,
}

impl<T: Transport> Listing<T> {
    pub(in crate::evidence) fn new(
        client: &LedgerServiceClient<T>,
        mut request: v1::ListEntriesRequest,
    ) -> Self {
        request.page_size = PAGE;
        let mut listing = Self {
            client: client.clone(),
            request,
            ahead: None,
            page: VecDeque::new(),
            at_start: true,
            next: 0,
            time: None,
            left_out: None,
        };
        listing.ask();
        listing
    }

    /// Only runs of blocks of this time.
    pub(super) fn of_blocks(mut self, time: TimeRange) -> Self {
        self.time = Some(time);
        self
    }

    fn ask(&mut self) {
        let (mut client, request) = (self.client.clone(), self.request.clone());
        self.ahead = Some(Box::pin(async move { client.list_entries(request).await }));
    }

    /// The next entry.
    pub(in crate::evidence) async fn next(&mut self) -> Result<Option<v1::LogEntry>, ExportError> {
        loop {
            let Some(entry) = self.page.pop_front() else {
                let Some(answer) = self.ahead.take() else { return Ok(None) };
                let answer = answer.await?.into_inner();
                self.page = answer.entries.into();
                self.at_start = true;
                if !answer.next_page_token.is_empty() {
                    self.request.page_token = answer.next_page_token;
                    self.ask();
                    // Sent now, so that the ledger works while this page is being read.
                    if let Some(ahead) = &mut self.ahead
                        && let std::task::Poll::Ready(answer) = futures::poll!(ahead)
                    {
                        self.ahead = Some(Box::pin(async move { answer }));
                    }
                }
                continue;
            };
            let at_start = std::mem::replace(&mut self.at_start, false);
            if entry.index < self.next {
                if at_start {
                    continue;
                }
                return answers(format!("entry {} is listed out of order", entry.index));
            }
            self.next = entry.index + 1;
            if self.leaves_out(&entry) {
                continue;
            }
            return Ok(Some(entry));
        }
    }

    fn leaves_out(&mut self, entry: &v1::LogEntry) -> bool {
        let Some(time) = self.time else { return false };
        let Ok(decoded) = entry::decode(&entry.entry) else { return false };
        if let Some(Kind::BlockSealed(sealed)) = &decoded.kind {
            let timely =
                seal::read_block_seal(&sealed.seal).is_ok_and(|(place, ..)| time.contains(place.now_unix_ms));
            self.left_out = (!timely).then_some(decoded.stream_seq);
        }
        self.left_out == Some(decoded.stream_seq)
    }
}

/// Several listings as one, in log order, each entry once.
pub(super) struct Merged<T> {
    listings: Vec<(Listing<T>, Option<v1::LogEntry>)>,
}

impl<T: Transport> Merged<T> {
    pub(super) async fn new(listings: Vec<Listing<T>>) -> Result<Self, ExportError> {
        let mut waiting = Vec::new();
        for mut listing in listings {
            let first = listing.next().await?;
            waiting.push((listing, first));
        }
        Ok(Self { listings: waiting })
    }

    /// The next entry.
    pub(super) async fn next(&mut self) -> Result<Option<v1::LogEntry>, ExportError> {
        let indexes = self.listings.iter().filter_map(|(_, entry)| Some(entry.as_ref()?.index));
        let Some(least) = indexes.min() else { return Ok(None) };
        let mut found: Option<v1::LogEntry> = None;
        for (listing, waiting) in &mut self.listings {
            let Some(entry) = waiting.take_if(|entry| entry.index == least) else { continue };
            if found.as_ref().is_none_or(|found| found.proof.is_empty()) {
                found = Some(entry);
            }
            *waiting = listing.next().await?;
        }
        Ok(found)
    }
}
