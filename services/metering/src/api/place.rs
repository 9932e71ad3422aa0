//! Where a request belongs: what it names says which partition it is of, and the partition's owner answers it.
//!
//! Left out: who owns a partition ([`crate::route`]). Invariant: what names no partition is answered here, since all that can be said
//! about it is what is wrong with it.

use exchequer_auth::Caller;
use exchequer_budget::{HoldId, TenantId};
use tonic::{Request, Status};

use super::Api;
use crate::route::Peer;

/// What a request names.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'m> {
    Tenant(&'m str),
    Scope(&'m str),
    Hold(&'m str),
}

impl Api {
    pub(super) fn partition(&self, place: Place<'_>) -> Option<u16> {
        let router = &self.shared.router;
        if router.partitions() == 1 {
            return Some(0);
        }
        match place {
            Place::Tenant(tenant) => Some(router.partition_of_tenant(&TenantId::parse(tenant).ok()?)),
            // What is wrong with the rest of a scope, its tenant's owner says.
            Place::Scope(scope) => {
                let tenant = scope.split('/').next().unwrap_or_default();
                Some(router.partition_of_tenant(&TenantId::parse(tenant).ok()?))
            }
            Place::Hold(hold_id) => router.partition_of_hold(&HoldId::parse(hold_id).ok()?),
        }
    }

    pub(super) fn partition_of(&self, tenant: &TenantId) -> u16 {
        let router = &self.shared.router;
        if router.partitions() == 1 { 0 } else { router.partition_of_tenant(tenant) }
    }

    /// The peer that a call is to be handed on to, if it is not to be answered here.
    pub(super) fn elsewhere<M>(
        &self,
        request: &Request<M>,
        place: Place<'_>,
    ) -> Result<Option<Peer>, Status> {
        Caller::of(request.extensions()).map_err(Status::from)?;
        match self.partition(place) {
            Some(partition) => self.shared.router.elsewhere(request.metadata(), partition),
            None => Ok(None),
        }
    }
}

/// Hands a call on to the owner of what it names, if that is another instance.
macro_rules! hand_on {
    ($api:ident . $method:ident, $request:ident, $place:expr) => {
        if let Some(peer) = $api.elsewhere(&$request, $place)? {
            let (metadata, _, message) = $request.into_parts();
            let answered = peer.client().$method(peer.request(message, &metadata)).await;
            return answered.map_err(|status| peer.failed(status));
        }
    };
}

pub(super) use hand_on;
