//! The load: real executions, simulated agents that publish signed events, and direct reservations on a tight budget.
//!
//! Left out: what has to be true afterwards. Invariant: a call that fails because something is away is made again, with the same
//! idempotency key where it has one; any other failure is a defect and ends the test. What was answered is remembered, each part of
//! an answer as soon as it came.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ed25519_dalek::VerifyingKey;
use exchequer_auth::Role;
use exchequer_event::{
    control::open_receipt,
    name::receipt_key,
    v1::{self, execute_response::Part, reserve_response::Outcome},
};
use exchequer_stream::{Ack, AppendError, EventStream, JetStream, Message};
use exchequer_testkit::{Random, SimAgent, eventually};
use futures::{StreamExt as _, stream};
use prost::Message as _;
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::deployment::{Access, Agent, Metering};

/// Tenant of the executions.
pub const ACME: &str = "acme";
/// Tenant of the simulated agents.
pub const SYNTHETIC: &str = "synthetic";
/// Tenant whose budget runs out.
pub const TIGHT: &str = "tight";

pub const EXECUTIONS: u64 = 320;
pub const EXECUTION_CLIENTS: usize = 6;
pub const SIMULATED_EXECUTIONS: u64 = 900;
pub const DIRECT_CLIENTS: u64 = 4;
pub const DIRECT_RESERVATIONS: u64 = 300;
/// Invocations that the tight budget grants; far fewer than are asked for.
pub const TIGHT_INVOCATIONS: u64 = 500;

/// How long a call may take before it is made again.
const CALL_PATIENCE: Duration = Duration::from_secs(20);
/// How long a call may be made again and again.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Reservations of one simulated agent at once.
const RESERVATIONS_AT_ONCE: usize = 16;
/// Batches of one simulated agent that wait for the stream's acknowledgement.
const BATCHES_IN_FLIGHT: usize = 4;
/// What a simulated execution holds of CPU time, milliseconds; some use more.
const SIMULATED_CPU_MS: u64 = 20;

/// Calls that failed because something was away.
static FAILURES: AtomicU64 = AtomicU64::new(0);

/// How many calls have failed because something was away.
pub fn failures() -> u64 {
    FAILURES.load(Ordering::Relaxed)
}

/// Whether the call may simply be made again: the server, or something behind it, was away. A status that carries an error of its own
/// was made by the transport.
fn is_transient(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Cancelled)
        || std::error::Error::source(status).is_some()
}

/// Makes a call until it is answered.
pub async fn answered<T, F>(mut call: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, Status>>,
{
    let answer = Mutex::new(None);
    eventually(PATIENCE, || {
        let called = timeout(CALL_PATIENCE, call());
        let answer = &answer;
        async move {
            match called.await {
                Ok(Ok(value)) => answer.lock().unwrap().replace(value).is_none(),
                Ok(Err(status)) => {
                    assert!(is_transient(&status), "not a failure of something that is away: {status:?}");
                    FAILURES.fetch_add(1, Ordering::Relaxed);
                    false
                }
                Err(_) => {
                    FAILURES.fetch_add(1, Ordering::Relaxed);
                    false
                }
            }
        }
    })
    .await;
    answer.into_inner().unwrap().expect("the condition held")
}

/// How far the load is.
#[derive(Debug, Default)]
pub struct Progress {
    tickets: AtomicU64,
    executed: AtomicU64,
    simulated: AtomicU64,
    direct: AtomicU64,
}

impl Progress {
    /// Thousandths of the three loads, added up: 0 to 3000.
    pub fn done(&self, simulated_agents: u64) -> u64 {
        let part = |done: &AtomicU64, all: u64| done.load(Ordering::Relaxed) * 1000 / all;
        part(&self.executed, EXECUTIONS)
            + part(&self.simulated, SIMULATED_EXECUTIONS * simulated_agents)
            + part(&self.direct, DIRECT_RESERVATIONS * DIRECT_CLIENTS)
    }
}

/// What the executions' callers were answered.
#[derive(Debug, Default)]
pub struct Executed {
    pub admitted: Vec<v1::Admitted>,
    pub finished: Vec<v1::Finished>,
}

/// Remembers what was answered, also by calls that then broke off.
pub type Answers = Mutex<Executed>;

/// Executes one program after the other until all are done.
pub async fn execute(access: Access, progress: &Progress, answers: &Answers) {
    let client = access.agent("caller", Some(ACME), Role::User);
    loop {
        let ticket = progress.tickets.fetch_add(1, Ordering::Relaxed);
        if ticket >= EXECUTIONS {
            return;
        }
        let (program, arguments, expected) = if ticket.is_multiple_of(2) {
            ("/bin/true", Vec::new(), String::new())
        } else {
            ("/bin/echo", vec![ticket.to_string()], format!("{ticket}\n"))
        };
        let request = request(program, arguments);
        let (finished, stdout) = answered(|| run(client.clone(), request.clone(), answers)).await;
        let record = finished.record.unwrap_or_default();
        assert_eq!((record.cause(), record.exit_code), (v1::ExitCause::Exited, 0), "{record:?}");
        assert_eq!(String::from_utf8(stdout).unwrap(), expected);
        progress.executed.fetch_add(1, Ordering::Relaxed);
    }
}

pub fn request(program: &str, arguments: Vec<String>) -> v1::ExecuteRequest {
    let limits = v1::Limits { cpu_ms: 10_000, wall_ms: 120_000, ..v1::Limits::default() };
    v1::ExecuteRequest {
        program: program.to_owned(),
        arguments,
        limits: Some(limits),
        ..v1::ExecuteRequest::default()
    }
}

async fn run(
    mut client: Agent,
    request: v1::ExecuteRequest,
    answers: &Answers,
) -> Result<(v1::Finished, Vec<u8>), Status> {
    let answers = || answers.lock().unwrap_or_else(PoisonError::into_inner);
    let mut parts = client.execute(request).await?.into_inner();
    let mut stdout = Vec::new();
    while let Some(part) = parts.message().await? {
        match part.part {
            Some(Part::Admitted(admitted)) => answers().admitted.push(admitted),
            Some(Part::Stdout(bytes)) => stdout.extend_from_slice(&bytes),
            Some(Part::Finished(finished)) => {
                answers().finished.push(finished.clone());
                return Ok((finished, stdout));
            }
            Some(Part::Stderr(_) | Part::Artifact(_)) | None => {}
        }
    }
    Err(Status::unavailable("the answer ended early"))
}

/// Begins an execution that does not end by itself; its answer, which has to be kept for as long as it shall run.
pub async fn hang(
    access: &Access,
    argument: &str,
    answers: &Answers,
) -> (String, tonic::Streaming<v1::ExecuteResponse>) {
    let client = access.agent("caller", Some(ACME), Role::User);
    let request = request("/bin/sleep", vec![argument.to_owned()]);
    answered(|| {
        let (mut client, request) = (client.clone(), request.clone());
        async move {
            let mut parts = client.execute(request).await?.into_inner();
            match parts.message().await?.and_then(|part| part.part) {
                Some(Part::Admitted(admitted)) => {
                    let execution_id = admitted.execution_id.clone();
                    answers.lock().unwrap().admitted.push(admitted);
                    Ok((execution_id, parts))
                }
                other => panic!("an execution's answer begins with {other:?}"),
            }
        }
    })
    .await
}

/// A reservation as it was answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Reserved {
    pub tenant: &'static str,
    pub key: String,
    pub outcome: Outcome,
    pub stream_seq: u64,
}

impl Reserved {
    /// The hold, if it was granted.
    pub fn hold_id(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Granted(granted) => Some(&granted.hold_id),
            Outcome::Denied(_) => None,
        }
    }
}

async fn reserve(client: &Metering, tenant: &'static str, key: String, amounts: &[(&str, u64)]) -> Reserved {
    let request = v1::ReserveRequest {
        scope: tenant.to_owned(),
        amounts: meter_amounts(amounts),
        ttl_ms: 3_600_000,
        idempotency_key: key.clone(),
        ..v1::ReserveRequest::default()
    };
    let response = answered(|| {
        let (mut client, request) = (client.clone(), request.clone());
        async move { Ok(client.reserve(request).await?.into_inner()) }
    })
    .await;
    let outcome = response.outcome.expect("a reservation is granted or refused");
    Reserved { tenant, key, outcome, stream_seq: response.stream_seq }
}

pub fn meter_amounts(amounts: &[(&str, u64)]) -> Vec<v1::MeterAmount> {
    amounts
        .iter()
        .map(|(meter, amount)| v1::MeterAmount { meter: (*meter).to_owned(), amount: *amount })
        .collect()
}

/// What a caller of the tight budget was answered.
#[derive(Debug, Default)]
pub struct Direct {
    pub reserved: Vec<Reserved>,
    /// Key and hold of each void.
    pub voided: Vec<(String, String)>,
}

/// Reserves and voids, one after the other. Some requests are made again after their answer: it has to be the same.
pub async fn reserve_directly(
    access: Access,
    caller: u64,
    mut random: Random,
    progress: &Progress,
) -> Direct {
    let client = access.metering(&format!("clerk-{caller}"), Some(TIGHT), Role::TenantAdmin);
    let mut answers = Direct::default();
    for n in 0..DIRECT_RESERVATIONS {
        let (key, amounts) = (format!("clerk-{caller}-{n}"), [("invocations", 1 + random.below(2))]);
        let reserved = reserve(&client, TIGHT, key.clone(), &amounts).await;
        if random.below(8) == 0 {
            assert_eq!(
                reserve(&client, TIGHT, key, &amounts).await,
                reserved,
                "the same key, another answer"
            );
        }
        if let Some(hold_id) = reserved.hold_id()
            && random.below(2) == 0
        {
            let request =
                v1::VoidRequest { hold_id: hold_id.to_owned(), idempotency_key: format!("void-{hold_id}") };
            answered(|| {
                let (mut client, request) = (client.clone(), request.clone());
                async move { client.void(request).await }
            })
            .await;
            answers.voided.push((request.idempotency_key, request.hold_id));
        }
        answers.reserved.push(reserved);
        progress.direct.fetch_add(1, Ordering::Relaxed);
    }
    answers
}

/// Asks for some of the reservations again, by their keys: the answers have outlived everything, too.
pub async fn ask_again(access: &Access, direct: &[Direct]) {
    for answers in direct {
        let subject = answers.reserved[0].key.rsplit_once('-').unwrap().0;
        let client = access.metering(subject, Some(TIGHT), Role::TenantAdmin);
        for reserved in answers.reserved.iter().step_by(10) {
            let asked = match &reserved.outcome {
                Outcome::Granted(granted) => granted.amounts[0].amount,
                Outcome::Denied(denied) => denied.requested,
            };
            let again = reserve(&client, TIGHT, reserved.key.clone(), &[("invocations", asked)]).await;
            assert_eq!(&again, reserved);
        }
    }
}

/// A simulated agent's publisher: batches in flight, and where it goes on.
struct Publisher {
    agent: SimAgent,
    stream: std::sync::Arc<JetStream>,
    ledger_key: VerifyingKey,
    confirmed: u64,
    next: u64,
    in_flight: VecDeque<Ack>,
}

impl Publisher {
    /// Takes a receipt in: forward what it confirms, or back to where the ledger wants the agent to begin again.
    fn take_receipt(&mut self, value: &prost::bytes::Bytes) {
        let receipt = open_receipt(value, &self.ledger_key, self.agent.id()).expect("the ledger's receipt");
        let head = receipt.head.unwrap_or_default();
        self.confirmed = self.confirmed.max(head.seq);
        if receipt.resend_from > 0 && receipt.resend_from < self.next {
            self.in_flight.clear();
            self.next = receipt.resend_from;
        }
        self.next = self.next.max(self.confirmed + 1);
    }

    async fn publish(&mut self, count: u64) {
        let last = self.agent.seq().min(self.next + count - 1);
        let batch = self.agent.seal(self.next, last).encode_to_vec();
        match self.stream.enqueue(Message::new(self.agent.subject(), batch)).await {
            Ok(ack) => {
                self.in_flight.push_back(ack);
                self.next = last + 1;
            }
            Err(error) => self.go_back(&error).await,
        }
    }

    /// Back to the first event that no receipt covers, once the stream is there again.
    async fn go_back(&mut self, error: &AppendError) {
        assert!(matches!(error, AppendError::Unknown(_) | AppendError::Unavailable(_)), "{error}");
        self.in_flight.clear();
        self.next = self.confirmed + 1;
        eventually(PATIENCE, || async { self.stream.tip().await.is_ok() }).await;
    }
}

/// Reserves, records and publishes executions, until a receipt covers the last one. The agent, and its reservations.
pub async fn simulate(
    access: Access,
    agent: SimAgent,
    ledger_key: VerifyingKey,
    mut random: Random,
    progress: &Progress,
) -> (SimAgent, Vec<Reserved>) {
    let client = access.metering(agent.id(), None, Role::Agent);
    let stream = access.stream().await;
    let amounts = [("cpu_ms", SIMULATED_CPU_MS), ("wall_ms", 2 * SIMULATED_CPU_MS), ("invocations", 1)];
    let id = agent.id().to_owned();
    let holds = stream::iter(0..SIMULATED_EXECUTIONS)
        .map(|n| {
            let (client, key) = (client.clone(), format!("{id}-{n}"));
            async move { reserve(&client, SYNTHETIC, key, &amounts).await }
        })
        .buffer_unordered(RESERVATIONS_AT_ONCE);
    tokio::pin!(holds);
    let mut receipts = stream.watch_latest(&receipt_key(agent.id())).await.unwrap();
    let mut publisher = Publisher {
        agent,
        stream: stream.clone(),
        ledger_key,
        confirmed: 0,
        next: 1,
        in_flight: VecDeque::new(),
    };
    let (mut reserved, mut is_drained, mut wanted) = (Vec::new(), false, 1);
    loop {
        let seq = publisher.agent.seq();
        if is_drained && publisher.confirmed == seq {
            return (publisher.agent, reserved);
        }
        let pending = seq + 1 - publisher.next;
        let has_room = publisher.in_flight.len() < BATCHES_IN_FLIGHT;
        if has_room && pending > 0 && (is_drained || pending >= wanted) {
            let before = publisher.next;
            publisher.publish(wanted).await;
            wanted = 1 + random.below(100);
            if random.below(6) == 0 && before <= publisher.confirmed + 200 {
                // A repetition, as after an answer that got lost.
                publisher.next = publisher.next.min(before);
            }
            continue;
        }
        tokio::select! {
            biased;
            value = receipts.next() => publisher.take_receipt(&value.expect("receipts do not end").unwrap()),
            acked = async { publisher.in_flight[0].as_mut().await }, if !publisher.in_flight.is_empty() => {
                publisher.in_flight.pop_front();
                if let Err(error) = acked {
                    publisher.go_back(&error).await;
                }
            }
            hold = holds.next(), if !is_drained => match hold {
                Some(answer) => {
                    let hold_id = answer.hold_id().expect("the budget is ample");
                    publisher.agent.execute(SYNTHETIC, hold_id, random.below(1500 * SIMULATED_CPU_MS));
                    reserved.push(answer);
                    progress.simulated.fetch_add(1, Ordering::Relaxed);
                }
                None => is_drained = true,
            },
        }
    }
}
