//! Holds: reserve, extend, void, revoke.

use super::{Asked, MAX_HOLDS, admission, refused_field, refused_hold};
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
        let outermost = self.state.number(scope.tenant()).map(|number| &self.state.nodes[number]);
        if outermost.is_some_and(|node| node.live_holds >= MAX_HOLDS) {
            return refused_field(Refusal::TooMany, "holds");
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

    /// Of an expired hold nothing is held: voiding it says that no usage comes any more, and it need not be kept.
    pub(super) fn void(&self, hold_id: &HoldId) -> Event {
        match self.own_hold(hold_id) {
            Ok(_) => Event::HoldVoided { hold_id: hold_id.clone() },
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        command::Command,
        decide::{Decided, decide},
        id::Subject,
        past::Past,
        scope::ScopePath,
        state::State,
    };

    #[test]
    fn a_tenant_has_no_more_live_holds_than_it_may_have() {
        let scope = ScopePath::parse("acme/a").unwrap();
        let mut state = State::default();
        state.numbered(&scope);
        let ask = |state: &State| {
            let action = Action::Reserve {
                hold_id: HoldId::parse("h").unwrap(),
                scope: scope.clone(),
                holder: Subject::metering(),
                amounts: Amounts::new([(crate::Meter::CpuMs, 1)]).unwrap(),
                ttl: Ttl::from_ms(1_000).unwrap(),
                at_least: Amounts::NONE,
                lease: false,
            };
            let command = Command::new(scope.tenant_id(), Subject::metering(), None, action).unwrap();
            match decide(state, &Past::default(), &command, 0).unwrap() {
                Decided::New(decision) => decision.events[0].clone(),
                other => panic!("{other:?}"),
            }
        };
        state.outermost_mut(&scope).unwrap().live_holds = MAX_HOLDS - 1;
        assert!(matches!(ask(&state), Event::HoldDenied { .. }), "there is no budget");
        state.outermost_mut(&scope).unwrap().live_holds = MAX_HOLDS;
        assert_eq!(ask(&state), refused_field(Refusal::TooMany, "holds"));
    }
}
