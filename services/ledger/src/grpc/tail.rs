//! Tails: entries from an index on, and then live.
//!
//! Left out: acknowledgement; a client resumes by the last index it got. Invariant: what waits for a slow client is bounded, and a
//! tail ends with the client or with the ledger.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Grpc;
use crate::query::{Page, Query};
use exchequer_event::v1;

/// Entries that wait for a slow client.
const QUEUE: usize = 64;
/// Entries read at once.
const PAGE: usize = 128;

/// Tails at once.
const MAX_TAILS: usize = 256;
/// Tails of one subject at once, so that no caller takes them from all others.
const MAX_SUBJECT_TAILS: usize = 16;

/// The open tails of each subject.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tails(Arc<Mutex<BTreeMap<String, usize>>>);

/// The right to one tail, until it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    tails: Tails,
    subject: String,
}

impl Tails {
    /// Room for one more tail of the subject.
    pub(super) fn admit(&self, subject: &str) -> Result<Permit, Status> {
        let mut open = self.lock();
        if open.values().sum::<usize>() >= MAX_TAILS {
            return Err(Status::resource_exhausted("too many tails; try again later"));
        }
        let own = open.entry(subject.to_owned()).or_default();
        if *own >= MAX_SUBJECT_TAILS {
            let reason = format!("{subject} has {MAX_SUBJECT_TAILS} tails already; end one first");
            return Err(Status::resource_exhausted(reason));
        }
        *own += 1;
        Ok(Permit { tails: self.clone(), subject: subject.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.tails.lock();
        if let Some(own) = open.get_mut(&self.subject) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.subject);
            }
        }
    }
}

/// The stream of a tail.
pub(crate) type TailStream = ReceiverStream<Result<v1::TailEntriesResponse, Status>>;

/// Starts a tail.
pub(super) fn start(grpc: Grpc, query: Query, from: u64, permit: Permit) -> TailStream {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let ended = tokio::select! {
            () = grpc.shutdown.cancelled() => Some(Status::unavailable("the ledger is stopping")),
            () = sender.closed() => None,
            ended = follow(&grpc, query, from, &sender) => ended.err(),
        };
        if let Some(status) = ended {
            // A client that is gone needs no reason.
            let _ = sender.try_send(Err(status));
        }
        drop(permit);
    });
    ReceiverStream::new(receiver)
}

async fn follow(
    grpc: &Grpc,
    query: Query,
    from: u64,
    sender: &mpsc::Sender<Result<v1::TailEntriesResponse, Status>>,
) -> Result<(), Status> {
    let mut published = grpc.standing.published.subscribe();
    let mut next = from;
    loop {
        let tree_size = published.borrow_and_update().size;
        while next < tree_size {
            let query = query.clone();
            let read = move |grpc: &Grpc| query.page(&grpc.reader, Some(&grpc.index), next, tree_size, PAGE);
            let page: Page = grpc.blocking(read).await?;
            for entry in page.entries {
                let response = v1::TailEntriesResponse { entry: Some(entry), tree_size };
                if sender.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
            next = page.next;
        }
        if published.changed().await.is_err() {
            return Err(Status::unavailable("the ledger is stopping"));
        }
    }
}
