//! A caller: asks, asks again with the same key until it is answered, and goes on with what the answer says.
//!
//! Left out: how a call gets anywhere (the world). Invariant: a key belongs to one request for good, so that its answers can be compared.

use std::sync::Arc;

use exchequer_budget::{
    Action, Allowance, Amounts, BudgetTerms, Command, Event, HoldId, Idempotency, IdempotencyKey, Meter,
    ScopePath, Subject, TenantId, Ttl,
};

use crate::rng::Rng;

/// Scopes of a tenant that calls go to; all but the first lie below it.
const SCOPES: [&str; 3] = ["", "/a", "/a/b"];

/// What a caller wants to do next.
#[derive(Clone, Debug)]
enum Wish {
    Budget { scope: String, granted: u64 },
    Reserve { scope: String, amount: u64, ttl_ms: u64 },
    Extend { hold: HoldId, amount: u64, ttl_ms: u64 },
    Settle { hold: HoldId, amount: u64 },
    Void { hold: HoldId },
}

/// One caller of one tenant.
#[derive(Debug)]
pub(crate) struct Client {
    name: String,
    tenant: TenantId,
    /// Keys used so far.
    keys: u64,
    wish: Wish,
    /// Calls that are still to be made.
    pub(crate) left: u64,
    /// Number of the attempt at hand: answers to earlier ones are compared all the same.
    pub(crate) attempt: u64,
}

impl Client {
    pub(crate) fn new(number: usize, tenant: &str, calls: u64, rng: &mut Rng) -> Self {
        let tenant = TenantId::parse(tenant).expect("a tenant's name");
        let scope = format!("{tenant}{}", SCOPES[rng.index(2)]);
        // The same for all who set it, so that it does not matter when they do.
        let granted = if scope == tenant.as_str() { 150 } else { 80 };
        let wish = Wish::Budget { scope, granted };
        Self { name: format!("client-{number}"), tenant, keys: 0, wish, left: calls, attempt: 0 }
    }

    /// The key of the call at hand.
    pub(crate) fn key(&self) -> String {
        format!("{}-{}", self.name, self.keys)
    }

    pub(crate) fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// The call at hand. `drawn` is the id of the hold that it may be granted; each attempt draws another, as instances do.
    pub(crate) fn command(&self, drawn: HoldId) -> Command {
        let subject = Subject::parse(&self.name).expect("a subject");
        let amounts = |amount| Amounts::new([(Meter::Invocations, amount)]).expect("an amount");
        let ttl = |ms| Ttl::from_ms(ms).expect("a time to live");
        let action = match &self.wish {
            Wish::Budget { scope, granted } => Action::SetBudget {
                scope: ScopePath::parse(scope).expect("a scope"),
                terms: Arc::new(BudgetTerms::all_time(
                    Allowance::new([(Meter::Invocations, *granted)]).expect("an allowance"),
                )),
            },
            Wish::Reserve { scope, amount, ttl_ms } => Action::Reserve {
                hold_id: drawn,
                scope: ScopePath::parse(scope).expect("a scope"),
                holder: subject.clone(),
                amounts: amounts(*amount),
                ttl: ttl(*ttl_ms),
                at_least: Amounts::default(),
                lease: false,
            },
            Wish::Extend { hold, amount, ttl_ms } => {
                Action::Extend { hold_id: hold.clone(), added: amounts(*amount), ttl: ttl(*ttl_ms) }
            }
            Wish::Settle { hold, amount } => {
                Action::Settle { hold_id: hold.clone(), used: amounts(*amount), source: None }
            }
            Wish::Void { hold } => Action::Void { hold_id: hold.clone() },
        };
        let key = IdempotencyKey::parse(&self.key()).expect("a key");
        let request_hash = *blake3::hash(format!("{:?}", self.wish).as_bytes()).as_bytes();
        let idempotency = Some(Idempotency { key, request_hash });
        Command::new(self.tenant.clone(), subject, idempotency, action).expect("a command")
    }

    /// The call at hand was answered: on to the next.
    pub(crate) fn go_on(&mut self, reply: &Event, rng: &mut Rng) {
        self.keys += 1;
        self.left = self.left.saturating_sub(1);
        let held = match reply {
            Event::HoldGranted { hold_id, .. } | Event::HoldExtended { hold_id, .. } => Some(hold_id.clone()),
            _ => None,
        };
        self.wish = match (held, rng.below(10)) {
            (Some(hold), 0..=1) => {
                Wish::Extend { hold, amount: rng.between(1, 5), ttl_ms: rng.between(1_000, 20_000) }
            }
            (Some(hold), 2..=6) => Wish::Settle { hold, amount: rng.between(1, 12) },
            (Some(hold), 7) => Wish::Void { hold },
            // What was held, if anything, is left to run out.
            _ => reserve(&self.tenant, rng),
        };
    }
}

fn reserve(tenant: &TenantId, rng: &mut Rng) -> Wish {
    let scope = format!("{tenant}{}", SCOPES[rng.index(SCOPES.len())]);
    Wish::Reserve { scope, amount: rng.between(1, 10), ttl_ms: rng.between(1_000, 20_000) }
}
