//! Holds: reserve, extend, void, revoke.

use super::{Asked, admission, refused_hold};
use crate::{
    command::{Action, Ttl},
    event::{Event, Refusal},
    id::{HoldId, Label},
    meter::{Amounts, MAX_AMOUNT},
    state::HoldStatus,
};

impl Asked<'_> {
    pub(super) fn reserve(&self) -> Event {
        let Action::Reserve { hold_id, scope, holder, amounts, ttl, at_least, lease } = self.command.action()
        else {
            unreachable!("asked for a reservation only")
        };
        if let Some(refused) = self.unknown_meter(amounts, "amounts") {
            return refused;
        }
        if let Some(refused) = self.too_many_scopes(scope, "scope") {
            return refused;
        }
        let balanced = if at_least.is_empty() {
            Ok(amounts.clone())
        } else {
            admission::balance(self.state, scope, amounts, at_least)
        };
        let admitted =
            balanced.and_then(|amounts| admission::priced(self.state, scope, amounts)).and_then(|amounts| {
                let exceeded = admission::admit(self.state, scope, &amounts, true, self.now_ms)?;
                Ok((amounts, exceeded))
            });
        match admitted {
            Err(denial) => Event::HoldDenied { scope: scope.clone(), denial },
            Ok((amounts, exceeded)) => Event::HoldGranted {
                hold_id: hold_id.clone(),
                scope: scope.clone(),
                holder: holder.clone(),
                amounts,
                expires_ms: self.now_ms.saturating_add(ttl.as_ms()),
                lease: *lease,
                exceeded,
            },
        }
    }

    pub(super) fn extend(&self, hold_id: &HoldId, added: &Amounts, ttl: Ttl) -> Event {
        let hold = match self.own_hold(hold_id) {
            Ok(hold) if hold.status != HoldStatus::Open => return refused_hold(Refusal::HoldClosed, hold_id),
            Ok(hold) if hold.revoked => return refused_hold(Refusal::HoldRevoked, hold_id),
            Ok(hold) => hold,
            Err(refusal) => return refused_hold(refusal, hold_id),
        };
        if let Some(refused) = self.unknown_meter(added, "amounts") {
            return refused;
        }
        let admitted = admission::priced(self.state, &hold.scope, added.clone()).and_then(|added| {
            let beyond = added.iter().find(|&(meter, amount)| amount > MAX_AMOUNT - hold.amounts.get(meter));
            if let Some((meter, requested)) = beyond {
                let left = MAX_AMOUNT - hold.amounts.get(meter);
                return Err(admission::beyond_one_hold(&hold.scope, meter, requested, left));
            }
            let exceeded = admission::admit(self.state, &hold.scope, &added, false, self.now_ms)?;
            Ok((added, exceeded))
        });
        match admitted {
            Err(denial) => Event::HoldDenied { scope: hold.scope.clone(), denial },
            Ok((added, exceeded)) => Event::HoldExtended {
                hold_id: hold_id.clone(),
                added,
                expires_ms: hold.expires_ms.max(self.now_ms.saturating_add(ttl.as_ms())),
                exceeded,
            },
        }
    }

    pub(super) fn void(&self, hold_id: &HoldId) -> Event {
        match self.own_hold(hold_id) {
            Ok(hold) if hold.status == HoldStatus::Open => Event::HoldVoided { hold_id: hold_id.clone() },
            Ok(_) => refused_hold(Refusal::HoldClosed, hold_id),
            Err(refusal) => refused_hold(refusal, hold_id),
        }
    }

    pub(super) fn revoke(&self, hold_id: &HoldId, reason: &Label) -> Event {
        match self.hold_of_tenant(hold_id) {
            Ok(hold) if hold.status == HoldStatus::Open => {
                Event::HoldRevoked { hold_id: hold_id.clone(), reason: reason.clone() }
            }
            Ok(_) => refused_hold(Refusal::HoldClosed, hold_id),
            Err(refusal) => refused_hold(refusal, hold_id),
        }
    }
}
