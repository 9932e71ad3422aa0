//! The vocabulary of the scenarios: steps with defaults (tenant `acme`, actor and holder `agent-1`, time 0, ttl 10 s) and events.

use exchequer_budget::{
    Action, Allowance, Amounts, Command, Decided, Denial, Event, HoldId, Idempotency, IdempotencyKey, Meter,
    Refusal, ScopePath, State, Subject, TenantId, Ttl, decide, sweep,
};

#[derive(Clone, Debug)]
pub(crate) struct Step {
    at_ms: u64,
    tenant: TenantId,
    actor: Subject,
    idempotency: Option<Idempotency>,
    /// None is a sweep.
    action: Option<Action>,
}

impl Step {
    pub(crate) fn at(mut self, at_ms: u64) -> Self {
        self.at_ms = at_ms;
        self
    }

    pub(crate) fn by(mut self, actor: &str) -> Self {
        self.actor = subject(actor);
        self
    }

    pub(crate) fn of(mut self, tenant: &str) -> Self {
        self.tenant = tenant_id(tenant);
        self
    }

    pub(crate) fn keyed(mut self, key: &str, hash: u8) -> Self {
        let key = IdempotencyKey::parse(&key[..key.len().min(128)]).unwrap();
        self.idempotency = Some(Idempotency { key, request_hash: [hash; 32] });
        self
    }

    pub(crate) fn command(&self) -> Command {
        let action = self.action.clone().unwrap();
        Command::new(self.tenant.clone(), self.actor.clone(), self.idempotency.clone(), action).unwrap()
    }

    /// Decides and records; the new events.
    pub(crate) fn run(self, state: &mut State) -> Vec<Event> {
        if self.action.is_none() {
            let mut events = Vec::new();
            for (tenant, decision) in sweep(state, self.at_ms) {
                state.record(&decision, &tenant, self.at_ms);
                events.extend(decision.events);
            }
            return events;
        }
        match decide(state, &self.command(), self.at_ms).unwrap() {
            Decided::New(decision) => {
                state.record(&decision, &self.tenant, self.at_ms);
                decision.events
            }
            Decided::Repeated(_) => Vec::new(),
        }
    }
}

fn step(action: Option<Action>) -> Step {
    Step { at_ms: 0, tenant: tenant_id("acme"), actor: subject("agent-1"), idempotency: None, action }
}

pub(crate) fn set(name: &str, granted: &[(Meter, u64)]) -> Step {
    let scope = scope(name);
    let tenant = scope.tenant().to_owned();
    step(Some(Action::SetBudget { scope, granted: allowance(granted) })).of(&tenant)
}

pub(crate) fn reserve(hold_id: &str, name: &str, wanted: &[(Meter, u64)]) -> Step {
    step(Some(Action::Reserve {
        hold_id: hold(hold_id),
        scope: scope(name),
        holder: subject("agent-1"),
        amounts: amounts(wanted),
        ttl: Ttl::from_ms(10_000).unwrap(),
    }))
}

pub(crate) fn extend(hold_id: &str, added: &[(Meter, u64)], ttl_ms: u64) -> Step {
    let (hold_id, added, ttl) = (hold(hold_id), amounts(added), Ttl::from_ms(ttl_ms).unwrap());
    step(Some(Action::Extend { hold_id, added, ttl }))
}

pub(crate) fn settle(hold_id: &str, used: &[(Meter, u64)]) -> Step {
    step(Some(Action::Settle { hold_id: hold(hold_id), used: amounts(used) }))
}

pub(crate) fn void(hold_id: &str) -> Step {
    step(Some(Action::Void { hold_id: hold(hold_id) }))
}

pub(crate) fn swept() -> Step {
    step(None)
}

pub(crate) fn budget_set(name: &str, granted: &[(Meter, u64)]) -> Event {
    Event::BudgetSet { scope: scope(name), granted: allowance(granted) }
}

pub(crate) fn granted(hold_id: &str, name: &str, held: &[(Meter, u64)], expires_ms: u64) -> Event {
    Event::HoldGranted {
        hold_id: hold(hold_id),
        scope: scope(name),
        holder: subject("agent-1"),
        amounts: amounts(held),
        expires_ms,
    }
}

pub(crate) fn exhausted(asked: &str, binding: &str, meter: Meter, requested: u64, available: u64) -> Event {
    let denial = Denial::Exhausted { scope: scope(binding), meter, requested, available };
    Event::HoldDenied { scope: scope(asked), denial }
}

pub(crate) fn in_debt(asked: &str, binding: &str, meter: Meter, requested: u64) -> Event {
    let denial = Denial::InDebt { scope: scope(binding), meter, requested };
    Event::HoldDenied { scope: scope(asked), denial }
}

pub(crate) fn no_budget(asked: &str) -> Event {
    Event::HoldDenied { scope: scope(asked), denial: Denial::NoBudget }
}

pub(crate) fn extended(hold_id: &str, added: &[(Meter, u64)], expires_ms: u64) -> Event {
    Event::HoldExtended { hold_id: hold(hold_id), added: amounts(added), expires_ms }
}

pub(crate) fn settled(hold_id: &str, used: &[(Meter, u64)], late: bool) -> Event {
    Event::HoldSettled { hold_id: hold(hold_id), used: amounts(used), late }
}

pub(crate) fn voided(hold_id: &str) -> Event {
    Event::HoldVoided { hold_id: hold(hold_id) }
}

pub(crate) fn expired(hold_id: &str) -> Event {
    Event::HoldExpired { hold_id: hold(hold_id) }
}

pub(crate) fn refused(refusal: Refusal, hold_id: &str) -> Event {
    Event::CommandRefused { refusal, hold_id: hold(hold_id) }
}

pub(crate) fn scope(name: &str) -> ScopePath {
    ScopePath::parse(name).unwrap()
}

pub(crate) fn hold(id: &str) -> HoldId {
    HoldId::parse(id).unwrap()
}

pub(crate) fn subject(name: &str) -> Subject {
    Subject::parse(name).unwrap()
}

pub(crate) fn tenant_id(name: &str) -> TenantId {
    TenantId::parse(name).unwrap()
}

pub(crate) fn amounts(amounts: &[(Meter, u64)]) -> Amounts {
    Amounts::new(amounts.iter().copied()).unwrap()
}

pub(crate) fn allowance(granted: &[(Meter, u64)]) -> Allowance {
    Allowance::new(granted.iter().copied()).unwrap()
}
