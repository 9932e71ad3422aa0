//! Where a partition's fold stands, for who compares it with another's or with a replay.
//!
//! Left out: comparing. Invariant: position and digest are of one moment.

use exchequer_event::v1;
use tonic::{Request, Response, Status};

use super::{Api, Reply, who::Who};
use crate::partition;

pub(super) async fn get(
    api: &Api,
    request: Request<v1::GetPositionRequest>,
) -> Reply<v1::GetPositionResponse> {
    let (who, message) = Who::open(request)?;
    who.caller.may_read_all()?;
    let router = &api.shared.router;
    let named = if message.partition.is_empty() { partition::name(0) } else { message.partition };
    let partition = (0..router.partitions()).find(|partition| partition::name(*partition) == named);
    let partition = partition.ok_or_else(|| Status::not_found(format!("there is no partition {named}")))?;
    let owner = router.owner(partition).unwrap_or_default();
    let stored = api.snapshots.clone();
    let stored = tokio::task::spawn_blocking(move || stored.positions(partition)).await;
    let stored =
        stored.map_err(|error| Status::internal(format!("the snapshots could not be read: {error}")))?;
    let snapshots = stored.into_iter().map(|(stream_seq, digest)| v1::SnapshotPosition {
        stream_seq,
        state_digest: digest.to_vec().into(),
    });
    let snapshots = snapshots.collect();
    let fold = api.shared.fold();
    Ok(Response::new(v1::GetPositionResponse {
        partition: named,
        stream_seq: fold.cursor(),
        usage_cursor: fold.usage_cursor(partition),
        blocks: fold.head(partition).index,
        state_digest: fold.budget(partition).digest(fold.past(partition)).to_vec().into(),
        log_index: fold.log_index(),
        snapshots,
        owner,
    }))
}
