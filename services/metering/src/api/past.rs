//! Holds that are over: whose they were, and how they ended, read back from where the stream recorded it.
//!
//! Left out: reading ([`crate::recall`]). Invariant: a caller that is bound to a tenant learns of its own tenant's holds alone, without
//! anything being read for it.

use exchequer_budget::{HoldId, TenantId, wire};
use exchequer_event::v1;
use tonic::Status;

use super::{
    Api,
    status::{no_hold, unavailable},
    who::Who,
};
use crate::recall::Unrecalled;

impl Api {
    /// The tenant of a hold that is over, if the caller may know of it; nothing for a hold that is not over, or never was.
    pub(super) async fn past_tenant(&self, who: &Who, hold_id: &str) -> Result<Option<TenantId>, Status> {
        let Ok(hold_id) = HoldId::parse(hold_id) else { return Ok(None) };
        let (partition, place) = {
            let fold = self.shared.fold();
            let Some(partition) = fold.partition_of_hold(&hold_id) else { return Ok(None) };
            if fold.budget(partition).hold(&hold_id).is_some() {
                return Ok(None);
            }
            let past = fold.past(partition);
            if !who.spans_tenants() {
                return Ok(who.own_tenant().filter(|own| past.hold(own, &hold_id).is_some()));
            }
            let Some(place) = past.hold_of(&hold_id) else { return Ok(None) };
            (partition, place)
        };
        // The block that granted it says enough.
        let granted = (place.granted_seq, place.granted_seq);
        let hold = self.recall.hold(partition, &hold_id, granted).await.map_err(|why| unread(&why))?;
        Ok(Some(hold.scope.tenant_id()))
    }

    /// A hold of the tenant that is over, as it was.
    pub(super) async fn closed_hold(
        &self,
        tenant: &TenantId,
        hold_id: &HoldId,
    ) -> Result<v1::GetHoldResponse, Status> {
        let (partition, place) = {
            let fold = self.shared.fold();
            let partition = fold.partition_of_tenant(tenant);
            (partition, fold.past(partition).hold(tenant, hold_id))
        };
        let place = place.ok_or_else(|| no_hold(hold_id))?;
        let between = (place.granted_seq, place.closed_seq);
        let hold = self.recall.hold(partition, hold_id, between).await.map_err(|why| unread(&why))?;
        Ok(wire::hold(hold_id, &hold))
    }
}

/// Passing, whatever it is: who repeats a command must not take it for a refusal.
fn unread(why: &Unrecalled) -> Status {
    unavailable(&why.to_string())
}
