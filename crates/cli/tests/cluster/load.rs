//! The load: callers that reserve, extend, settle and void through any of the instances, and somebody who changes the budgets meanwhile.
//!
//! Left out: what has to be true afterwards. Invariant: a call that fails because something is away is made again, through any instance, with
//! the same idempotency key; any other failure is a defect and ends the test. What was answered is remembered.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use exchequer_event::v1::{self, budget_event::Kind, extend_response, reserve_response};
use exchequer_testkit::{Random, eventually};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::deployment::{INSTANCES, Metering};

/// Tenants; their budgets are in different partitions.
pub const TENANTS: [&str; 8] = ["acme", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath"];
/// Where a tenant's holds are asked for, below its name. The tenant itself and "/left" have budgets.
const PLACES: [&str; 4] = ["", "/left", "/left/deep", "/right"];
pub const CALLERS: u64 = 16;
/// Holds that are asked for, all callers together.
pub const HOLDS: u64 = 2400;
/// Changes of budgets.
const BUDGET_CHANGES: u64 = 40;
/// A hold's CPU time at most, milliseconds.
const MAX_CPU_MS: u64 = 40;

/// How long a call may take before it is made again.
const CALL_PATIENCE: Duration = Duration::from_secs(10);
/// How long a call may be made again and again.
pub const PATIENCE: Duration = Duration::from_secs(90);
const HOUR_MS: u64 = 3_600_000;

/// How far the load is, and what it met.
#[derive(Debug, Default)]
pub struct Progress {
    asked: AtomicU64,
    done: AtomicU64,
    failures: AtomicU64,
}

impl Progress {
    /// Holds that were asked for and brought to their end, of [`HOLDS`].
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Calls that failed because something was away.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// Whether the call may simply be made again: the server, or something behind it, was away. A status that carries an error of its own
/// was made by the transport.
fn is_transient(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Cancelled)
        || std::error::Error::source(status).is_some()
}

/// Makes a call until it is answered.
pub async fn answered<T, F>(call: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, Status>>,
{
    counting(&Progress::default(), call).await
}

async fn counting<T, F>(progress: &Progress, mut call: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, Status>>,
{
    let (answer, last) = (Mutex::new(None), Mutex::new(String::new()));
    let asked = eventually(PATIENCE, || {
        let called = timeout(CALL_PATIENCE, call());
        let (answer, last) = (&answer, &last);
        async move {
            let failure = match called.await {
                Ok(Ok(value)) => return answer.lock().unwrap().replace(value).is_none(),
                Ok(Err(status)) => {
                    assert!(is_transient(&status), "not a failure of something that is away: {status:?}");
                    status.to_string()
                }
                Err(_) => format!("no answer within {CALL_PATIENCE:?}"),
            };
            progress.failures.fetch_add(1, Ordering::Relaxed);
            *last.lock().unwrap() = failure;
            false
        }
    });
    let asked = timeout(PATIENCE.saturating_sub(CALL_PATIENCE), asked).await;
    assert!(asked.is_ok(), "no answer, and the last failure was: {}", last.lock().unwrap());
    answer.into_inner().unwrap().expect("the condition held")
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    Reserve(v1::ReserveRequest),
    Extend(v1::ExtendRequest),
    Settle(v1::SettleRequest),
    Void(v1::VoidRequest),
}

impl Asked {
    pub fn key(&self) -> &str {
        match self {
            Self::Reserve(request) => &request.idempotency_key,
            Self::Extend(request) => &request.idempotency_key,
            Self::Settle(request) => &request.idempotency_key,
            Self::Void(request) => &request.idempotency_key,
        }
    }

    /// Asks one instance: what was decided, and the block's place in the stream.
    pub async fn of(self, mut client: Metering) -> Result<(Kind, u64), Status> {
        Ok(match self {
            Self::Reserve(request) => {
                let response = client.reserve(request).await?.into_inner();
                let kind = match response.outcome.expect("granted or refused") {
                    reserve_response::Outcome::Granted(granted) => Kind::HoldGranted(granted),
                    reserve_response::Outcome::Denied(denied) => Kind::HoldDenied(denied),
                };
                (kind, response.stream_seq)
            }
            Self::Extend(request) => {
                let response = client.extend(request).await?.into_inner();
                let kind = match response.outcome.expect("extended or refused") {
                    extend_response::Outcome::Extended(extended) => Kind::HoldExtended(extended),
                    extend_response::Outcome::Denied(denied) => Kind::HoldDenied(denied),
                };
                (kind, response.stream_seq)
            }
            Self::Settle(request) => {
                let response = client.settle(request).await?.into_inner();
                (Kind::HoldSettled(response.settled.expect("a settlement")), response.stream_seq)
            }
            Self::Void(request) => {
                let response = client.void(request).await?.into_inner();
                (Kind::HoldVoided(response.voided.expect("a void")), response.stream_seq)
            }
        })
    }
}

/// A request and its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub caller: String,
    pub tenant: &'static str,
    pub asked: Asked,
    pub kind: Kind,
    pub stream_seq: u64,
}

/// Somebody who asks for holds.
pub struct Caller<'a> {
    pub name: String,
    pub clients: [Metering; INSTANCES],
    pub random: Random,
    pub progress: &'a Progress,
    pub answers: Vec<Answer>,
}

impl Caller<'_> {
    /// Asks for hold after hold, until there have been enough of all callers.
    pub async fn run(mut self) -> Vec<Answer> {
        loop {
            let number = self.progress.asked.fetch_add(1, Ordering::Relaxed);
            if number >= HOLDS {
                return self.answers;
            }
            self.hold(number).await;
            self.progress.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One hold from its reservation to its end, whichever that is.
    async fn hold(&mut self, number: u64) {
        let tenant = *self.random.pick(&TENANTS);
        let key = format!("{}-{number}", self.name);
        let mut held = 1 + self.random.below(MAX_CPU_MS);
        let scope = format!("{tenant}{}", self.random.pick(&PLACES));
        let mut amounts = vec![amount("cpu_ms", held)];
        if self.random.below(2) == 0 {
            amounts.push(amount("invocations", 1));
        }
        let reserve = v1::ReserveRequest {
            scope,
            amounts,
            ttl_ms: HOUR_MS,
            idempotency_key: key.clone(),
            ..v1::ReserveRequest::default()
        };
        let Kind::HoldGranted(granted) = self.ask(tenant, Asked::Reserve(reserve)).await else { return };
        let hold_id = granted.hold_id;
        if self.random.below(5) == 0 {
            let more = 1 + self.random.below(MAX_CPU_MS);
            let extend = v1::ExtendRequest {
                hold_id: hold_id.clone(),
                amounts: vec![amount("cpu_ms", more)],
                ttl_ms: HOUR_MS,
                idempotency_key: format!("{key}-more"),
            };
            if let Kind::HoldExtended(_) = self.ask(tenant, Asked::Extend(extend)).await {
                held += more;
            }
        }
        let idempotency_key = format!("{key}-end");
        match self.random.below(10) {
            // Left open.
            0 => {}
            1..=4 => {
                self.ask(tenant, Asked::Void(v1::VoidRequest { hold_id, idempotency_key })).await;
            }
            // Now and then more than was held.
            _ => {
                let used = self.random.below(held + held / 4 + 1);
                let used = if used == 0 { Vec::new() } else { vec![amount("cpu_ms", used)] };
                let settle = v1::SettleRequest { hold_id, used, idempotency_key, source: None };
                self.ask(tenant, Asked::Settle(settle)).await;
            }
        }
    }

    /// Asks until there is an answer, each time another instance; some requests are made twice, at once or one after the other, and answered
    /// alike.
    async fn ask(&mut self, tenant: &'static str, asked: Asked) -> Kind {
        let (clients, progress) = (self.clients.clone(), self.progress);
        let mut instances = self.random.split();
        let mut until_answered = || {
            let (clients, asked, mut instances) = (clients.clone(), asked.clone(), instances.split());
            async move { counting(progress, || asked.clone().of(instances.pick(&clients).clone())).await }
        };
        let (kind, stream_seq) = match self.random.below(8) {
            0 => {
                let (one, other) = tokio::join!(until_answered(), until_answered());
                assert_eq!(one, other, "asked twice at once: {asked:?}");
                one
            }
            1 => {
                let one = until_answered().await;
                assert_eq!(until_answered().await, one, "asked again: {asked:?}");
                one
            }
            _ => until_answered().await,
        };
        self.answers.push(Answer {
            caller: self.name.clone(),
            tenant,
            asked,
            kind: kind.clone(),
            stream_seq,
        });
        kind
    }
}

pub fn amount(meter: &str, amount: u64) -> v1::MeterAmount {
    v1::MeterAmount { meter: meter.to_owned(), amount }
}

/// A change of a budget that was answered: its key, scope and amounts.
pub type Change = (String, String, Vec<v1::MeterAmount>);

/// Sets every budget, and goes on changing them, up and down, as the load proceeds. What was set, in order.
pub async fn set_budgets(clients: &[Metering; INSTANCES], random: &mut Random) -> Vec<Change> {
    let mut changes = Vec::new();
    for tenant in TENANTS {
        let whole = vec![amount("cpu_ms", 3000), amount("invocations", 150)];
        changes.push(set_budget(clients, random, tenant.to_owned(), whole, format!("{tenant}-budget")).await);
        let left = vec![amount("cpu_ms", 1500)];
        changes.push(
            set_budget(clients, random, format!("{tenant}/left"), left, format!("{tenant}-left")).await,
        );
    }
    changes
}

/// Changes budgets, up and down, as the load proceeds.
pub async fn change_budgets(
    clients: [Metering; INSTANCES],
    mut random: Random,
    progress: &Progress,
) -> Vec<Change> {
    let mut changes = Vec::new();
    for number in 0..BUDGET_CHANGES {
        eventually(PATIENCE, || async { progress.done() >= HOLDS * number / BUDGET_CHANGES }).await;
        let tenant = *random.pick(&TENANTS);
        // On the whole more, so that grants and refusals go on beside each other.
        let granted = vec![amount("cpu_ms", 1000 + random.below(2500) + 250 * number)];
        changes.push(
            set_budget(&clients, &mut random, tenant.to_owned(), granted, format!("change-{number}")).await,
        );
    }
    changes
}

async fn set_budget(
    clients: &[Metering; INSTANCES],
    random: &mut Random,
    scope: String,
    granted: Vec<v1::MeterAmount>,
    key: String,
) -> Change {
    let request = v1::SetBudgetRequest {
        scope: scope.clone(),
        granted: granted.clone(),
        idempotency_key: key.clone(),
        ..v1::SetBudgetRequest::default()
    };
    answered(|| {
        let (mut client, request) = (random.pick(clients).clone(), request.clone());
        async move { client.set_budget(request).await }
    })
    .await;
    (key, scope, granted)
}

/// Asks each instance again for some of what was answered: the answers have outlived everything, too.
pub async fn ask_again(clients: &[Metering; INSTANCES], answers: &[Answer]) {
    for (number, answer) in answers.iter().enumerate().step_by(7) {
        let client = &clients[number % INSTANCES];
        let again = answered(|| answer.asked.clone().of(client.clone())).await;
        assert_eq!(again, (answer.kind.clone(), answer.stream_seq), "asked again: {:?}", answer.asked);
    }
}

/// Asks one instance for a tenant's hold until it is answered, and gives it back: how long the answer took since `began`, and what was answered.
pub async fn probe(
    caller: String,
    client: Metering,
    tenant: &'static str,
    key: String,
    began: Instant,
) -> (Duration, Vec<Answer>) {
    let ask = async |asked: Asked| {
        let (kind, stream_seq) = answered(|| asked.clone().of(client.clone())).await;
        Answer { caller: caller.clone(), tenant, asked, kind, stream_seq }
    };
    let reserve = v1::ReserveRequest {
        scope: tenant.to_owned(),
        amounts: vec![amount("cpu_ms", 1)],
        ttl_ms: HOUR_MS,
        idempotency_key: key.clone(),
        ..v1::ReserveRequest::default()
    };
    let reserved = ask(Asked::Reserve(reserve)).await;
    let took = began.elapsed();
    let Kind::HoldGranted(granted) = &reserved.kind else { panic!("the budget is ample: {reserved:?}") };
    let void = v1::VoidRequest { hold_id: granted.hold_id.clone(), idempotency_key: format!("{key}-end") };
    let voided = ask(Asked::Void(void)).await;
    (took, vec![reserved, voided])
}
