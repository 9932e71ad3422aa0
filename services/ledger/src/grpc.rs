//! The gRPC service: validation, roles and tenant isolation in front of the log.
//!
//! Left out: authentication, which the layer in front does. Invariant: without a verified caller nothing is answered; nothing beyond
//! the newest signed checkpoint is shown.

mod fault;
mod list;
mod tail;

pub(crate) use tail::Tails;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use exchequer_auth::Caller;
use exchequer_event::{
    control::public_key,
    entry, name, seal,
    v1::{self, KeyRole, control_record::Kind, ledger_service_server::LedgerService},
};
use exchequer_stream::{EventStream, Message};
use exchequer_tlog::Prover;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    control::ControlWriter,
    index::Index,
    key::{LedgerKey, rotate::Rotation},
    query::{self, BadFilter, Query},
    standing::{Published, Standing},
    store::{LogReader, StoreError},
};

/// Largest request: a batch and its framing.
pub(crate) const MAX_REQUEST_BYTES: usize = name::MAX_BATCH_BYTES + 16 * 1024;
/// Largest answer: a page of entries and one entry more.
pub(crate) const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;
/// Longest reason of a revocation, bytes.
const MAX_REASON_BYTES: usize = 512;
/// A rotation that takes longer goes on without its caller.
const ROTATION_WITHIN: Duration = Duration::from_secs(30);

/// The ledger's gRPC service.
#[derive(Clone, Debug)]
pub(crate) struct Grpc {
    pub(crate) reader: LogReader,
    pub(crate) index: Index,
    pub(crate) standing: Arc<Standing>,
    pub(crate) stream: Arc<dyn EventStream>,
    pub(crate) control: ControlWriter,
    pub(crate) key: LedgerKey,
    pub(crate) rotation: Rotation,
    pub(crate) tails: Tails,
    pub(crate) shutdown: CancellationToken,
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    Ok(Caller::of(request.extensions())?.clone())
}

impl Grpc {
    fn published(&self) -> Published {
        self.standing.published.borrow().clone()
    }

    /// Runs file reads where they may block.
    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Status> {
        let this = self.clone();
        let outcome = tokio::task::spawn_blocking(move || read(&this)).await;
        outcome.map_err(|error| Status::internal(error.to_string()))?.map_err(fault::store)
    }

    /// The size that a proof is asked for: the published one for 0, none beyond it.
    fn proof_size(&self, field: &'static str, asked: u64) -> Result<Published, Status> {
        let published = self.published();
        if asked > published.size {
            return Err(fault::out_of_range(field, asked, published.size));
        }
        Ok(if asked == 0 { published } else { Published { size: asked, ..published } })
    }

    fn key_fields(
        role: i32,
        holder: &str,
        key: &Bytes,
        roles: &[KeyRole],
    ) -> Result<(KeyRole, ed25519_dalek::VerifyingKey), Status> {
        let role = KeyRole::try_from(role).ok().filter(|role| roles.contains(role));
        let role = role.ok_or_else(|| fault::field("role", "must be AGENT or METERING"))?;
        if !name::is_holder(holder) {
            return Err(fault::field("holder", "must match ^[a-z0-9][a-z0-9_-]{0,62}$"));
        }
        let key =
            public_key("public_key", key).map_err(|refusal| fault::field("public_key", refusal.detail))?;
        Ok((role, key))
    }
}

/// A filter that holds, and what the caller may see of what it names.
fn checked_query(
    filter: Option<v1::EntryFilter>,
    caller: Caller,
) -> Result<(v1::EntryFilter, Query), Status> {
    let filter = filter.unwrap_or_default();
    Query::check(&filter).map_err(|BadFilter { field, reason }| fault::field(field, reason))?;
    let query = Query::new(filter.clone(), caller)?;
    Ok((filter, query))
}

#[tonic::async_trait]
impl LedgerService for Grpc {
    async fn submit_batch(
        &self,
        request: Request<v1::SubmitBatchRequest>,
    ) -> Result<Response<v1::SubmitBatchResponse>, Status> {
        let caller = caller(&request)?;
        let agent_id = caller.subject.clone();
        caller.may_submit_as(&agent_id)?;
        if !name::is_holder(&agent_id) {
            return Err(Status::permission_denied("the token's subject is not an agent id"));
        }
        let batch = request.into_inner().batch;
        if let Some(other) = fault::foreign_seal(&batch, &agent_id) {
            return Err(caller
                .may_submit_as(&other)
                .map_or_else(Status::from, |()| fault::field("batch", "seal")));
        }
        let keys: Vec<_> = self
            .standing
            .keys()
            .iter()
            .filter(|key| key.role == KeyRole::Agent && key.holder == agent_id && !key.revoked)
            .map(|key| key.key)
            .collect();
        seal::open_batch(&agent_id, &batch, &keys).map_err(|refusal| fault::refusal(&refusal))?;
        let mut message = Message::new(name::events_subject(&agent_id), batch);
        exchequer_telemetry::inject(&mut message.headers);
        let stream_seq = self.stream.append(message).await.map_err(fault::append)?;
        Ok(Response::new(v1::SubmitBatchResponse { stream_seq }))
    }

    async fn get_entry(
        &self,
        request: Request<v1::GetEntryRequest>,
    ) -> Result<Response<v1::GetEntryResponse>, Status> {
        let caller = caller(&request)?;
        let index = request.into_inner().index;
        let size = self.published().size;
        if index >= size {
            return Err(Status::not_found(format!(
                "entry {index} is not in the signed log of {size} entries"
            )));
        }
        let entries = self.blocking(move |this| this.reader.entries(index, index + 1)).await?;
        let bytes = entries.into_iter().next().ok_or_else(|| Status::data_loss("the entry is missing"))?;
        let decoded = entry::decode(&bytes).map_err(|refusal| Status::data_loss(refusal.to_string()))?;
        query::check_visible(&caller, &entry::facets(&decoded))?;
        Ok(Response::new(v1::GetEntryResponse {
            entry: Some(v1::LogEntry { index, entry: bytes, proof: Vec::new() }),
        }))
    }

    async fn list_entries(
        &self,
        request: Request<v1::ListEntriesRequest>,
    ) -> Result<Response<v1::ListEntriesResponse>, Status> {
        let caller = caller(&request)?;
        list::list(self, caller, request.into_inner()).await
    }

    type TailEntriesStream = tail::TailStream;

    async fn tail_entries(
        &self,
        request: Request<v1::TailEntriesRequest>,
    ) -> Result<Response<Self::TailEntriesStream>, Status> {
        let caller = caller(&request)?;
        let v1::TailEntriesRequest { filter, from_index } = request.into_inner();
        let subject = caller.subject.clone();
        let (_, query) = checked_query(filter, caller)?;
        let permit = self.tails.admit(&subject)?;
        Ok(Response::new(tail::start(self.clone(), query, from_index, permit)))
    }

    async fn get_checkpoint(
        &self,
        request: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<v1::GetCheckpointResponse>, Status> {
        caller(&request)?;
        let published = self.published();
        if published.note.is_empty() {
            return Err(Status::unavailable("no checkpoint has been signed yet"));
        }
        let verifier_key = self.key.current().verifier_key.clone();
        Ok(Response::new(v1::GetCheckpointResponse { checkpoint: published.note, verifier_key }))
    }

    async fn get_inclusion_proof(
        &self,
        request: Request<v1::GetInclusionProofRequest>,
    ) -> Result<Response<v1::GetInclusionProofResponse>, Status> {
        caller(&request)?;
        let v1::GetInclusionProofRequest { index, tree_size } = request.into_inner();
        let newest = self.published();
        let Published { size, .. } = self.proof_size("tree_size", tree_size)?;
        if index >= size {
            return Err(fault::out_of_range("index", index, size));
        }
        let hashes = self.blocking(move |this| Ok(Prover::new(&this.reader, size).inclusion(index)?)).await?;
        let hashes = hashes.iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect();
        let checkpoint = if newest.size == size { newest.note } else { Bytes::new() };
        Ok(Response::new(v1::GetInclusionProofResponse { index, tree_size: size, hashes, checkpoint }))
    }

    async fn get_consistency_proof(
        &self,
        request: Request<v1::GetConsistencyProofRequest>,
    ) -> Result<Response<v1::GetConsistencyProofResponse>, Status> {
        caller(&request)?;
        let v1::GetConsistencyProofRequest { old_size, new_size } = request.into_inner();
        let Published { size: new_size, .. } = self.proof_size("new_size", new_size)?;
        if old_size > new_size {
            return Err(fault::out_of_range("old_size", old_size, new_size));
        }
        let hashes =
            self.blocking(move |this| Ok(Prover::new(&this.reader, new_size).consistency(old_size)?)).await?;
        let hashes = hashes.iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect();
        Ok(Response::new(v1::GetConsistencyProofResponse { old_size, new_size, hashes }))
    }

    async fn list_agent_heads(
        &self,
        request: Request<v1::ListAgentHeadsRequest>,
    ) -> Result<Response<v1::ListAgentHeadsResponse>, Status> {
        let caller = caller(&request)?;
        let mut agent_id = request.into_inner().agent_id;
        if !agent_id.is_empty() && !name::is_holder(&agent_id) {
            return Err(fault::field("agent_id", "is not an agent id"));
        }
        if let Err(denied) = caller.may_read_all() {
            caller.require_role(exchequer_auth::Role::Agent).map_err(|_| denied)?;
            if agent_id.is_empty() {
                agent_id.clone_from(&caller.subject);
            }
            caller.may_submit_as(&agent_id)?;
        }
        let heads = match &*agent_id {
            "" => self.standing.heads(),
            agent_id => self.standing.head(agent_id).into_iter().collect(),
        };
        Ok(Response::new(v1::ListAgentHeadsResponse { heads }))
    }

    async fn enroll_key(
        &self,
        request: Request<v1::EnrollKeyRequest>,
    ) -> Result<Response<v1::EnrollKeyResponse>, Status> {
        let caller = caller(&request)?;
        caller.may_administer()?;
        let v1::EnrollKeyRequest { role, holder, public_key } = request.into_inner();
        let roles = [KeyRole::Agent, KeyRole::Metering];
        let (role, key) = Self::key_fields(role, &holder, &public_key, &roles)?;
        let known = self.standing.keys();
        match known.iter().find(|known| known.role == role && known.holder == holder && known.key == key) {
            Some(known) if known.revoked => {
                return Err(Status::failed_precondition("the key was revoked and can't be enrolled again"));
            }
            Some(_) => return Ok(Response::new(v1::EnrollKeyResponse { stream_seq: 0 })),
            None => {}
        }
        let enrolled = v1::KeyEnrolled { role: role.into(), holder, public_key };
        let appended = self.control.append(&caller.subject, Kind::KeyEnrolled(enrolled)).await;
        Ok(Response::new(v1::EnrollKeyResponse { stream_seq: appended.map_err(fault::append)? }))
    }

    async fn revoke_key(
        &self,
        request: Request<v1::RevokeKeyRequest>,
    ) -> Result<Response<v1::RevokeKeyResponse>, Status> {
        let caller = caller(&request)?;
        caller.may_administer()?;
        let v1::RevokeKeyRequest { role, holder, public_key, reason } = request.into_inner();
        // The ledger's own key can't revoke itself: nobody could sign anything afterwards. It is rotated.
        let roles = [KeyRole::Agent, KeyRole::Metering];
        let (role, key) = Self::key_fields(role, &holder, &public_key, &roles)?;
        if reason.len() > MAX_REASON_BYTES {
            return Err(fault::field("reason", format!("must be at most {MAX_REASON_BYTES} bytes")));
        }
        let known = self.standing.keys();
        match known.iter().find(|known| known.role == role && known.holder == holder && known.key == key) {
            None => return Err(Status::not_found("no such key is enrolled")),
            Some(known) if known.revoked => {
                return Err(Status::failed_precondition("the key is revoked already"));
            }
            Some(_) => {}
        }
        let revoked = v1::KeyRevoked { role: role.into(), holder, public_key, reason };
        let appended = self.control.append(&caller.subject, Kind::KeyRevoked(revoked)).await;
        Ok(Response::new(v1::RevokeKeyResponse { stream_seq: appended.map_err(fault::append)? }))
    }

    async fn rotate_ledger_key(
        &self,
        request: Request<v1::RotateLedgerKeyRequest>,
    ) -> Result<Response<v1::RotateLedgerKeyResponse>, Status> {
        let caller = caller(&request)?;
        caller.may_administer()?;
        let v1::RotateLedgerKeyRequest { keep_old, reason } = request.into_inner();
        if reason.len() > MAX_REASON_BYTES {
            return Err(fault::field("reason", format!("must be at most {MAX_REASON_BYTES} bytes")));
        }
        let rotation = self.rotation.clone();
        // In a task of its own: a caller that goes away does not leave it half done.
        let rotating = tokio::spawn(async move { rotation.rotate(&caller.subject, keep_old, reason).await });
        let outcome = tokio::time::timeout(ROTATION_WITHIN, rotating).await.map_err(|_| {
            Status::deadline_exceeded(
                "the rotation is not finished and goes on; ListKeys shows how far it is",
            )
        })?;
        let rotated = outcome.map_err(|error| Status::internal(error.to_string()))?.map_err(fault::rotate)?;
        Ok(Response::new(v1::RotateLedgerKeyResponse {
            public_key: Bytes::copy_from_slice(rotated.public.as_bytes()),
            verifier_key: rotated.verifier_key,
            replaced_key: Bytes::copy_from_slice(rotated.replaced.as_bytes()),
            revoked: rotated.revoked,
        }))
    }

    async fn list_keys(
        &self,
        request: Request<v1::ListKeysRequest>,
    ) -> Result<Response<v1::ListKeysResponse>, Status> {
        caller(&request)?.may_read_all()?;
        let role = request.into_inner().role;
        let role = KeyRole::try_from(role).map_err(|_| fault::field("role", "is not a known role"))?;
        let keys = self.standing.keys();
        let keys = keys
            .iter()
            .filter(|key| role == KeyRole::Unspecified || key.role == role)
            .map(|key| v1::EnrolledKey {
                role: key.role.into(),
                holder: key.holder.clone(),
                public_key: Bytes::copy_from_slice(key.key.as_bytes()),
                revoked: key.revoked,
            })
            .collect();
        Ok(Response::new(v1::ListKeysResponse { keys }))
    }
}
