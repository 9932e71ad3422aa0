//! Tails: entries from an index on, and then live.
//!
//! Left out: acknowledgement; a client resumes by the last index it got. Invariant: what waits for a slow client is bounded, and a
//! tail ends with the client or with the ledger.

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

/// The stream of a tail.
pub(crate) type TailStream = ReceiverStream<Result<v1::TailEntriesResponse, Status>>;

/// Starts a tail, if there are not too many.
pub(super) fn start(grpc: Grpc, query: Query, from: u64) -> Result<TailStream, Status> {
    let permit = grpc
        .tails
        .clone()
        .try_acquire_owned()
        .map_err(|_| Status::resource_exhausted("too many tails; try again later"))?;
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
    Ok(ReceiverStream::new(receiver))
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
