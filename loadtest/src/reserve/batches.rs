//! Clients that send many commands in one call, each on a connection of its own.
//!
//! Left out: pacing ([`super::singles`]). Invariant: every command has an idempotency key of its own, and counts once its answer has come and
//! was the one expected.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use exchequer_event::v1::{
    self, decide_answer::Answer, decide_command::Command, metering_service_client::MeteringServiceClient,
    reserve_response::Outcome,
};
use hdrhistogram::Histogram;
use tonic::{service::interceptor::InterceptedService, transport::Channel};

use super::{
    load::{self, Pair, SCARCE, SCOPES, TTL_MS},
    tally::{Ended, Tally},
};

/// A client with a token.
pub(super) type Client = MeteringServiceClient<InterceptedService<Channel, exchequer_auth::BearerToken>>;

/// One connection's client.
pub(super) struct Batcher {
    client: Client,
    /// Begins its idempotency keys.
    name: String,
    next: u64,
    /// Holds that were granted and not settled, with their numbers.
    open: Vec<(u64, String)>,
    pub(super) tally: Tally,
    pub(super) latencies: Histogram<u64>,
    /// Stream sequences of the first block and the last that answered it.
    pub(super) blocks: Option<(u64, u64)>,
}

/// Reservation `number` under a client's name.
pub(super) fn reservation(name: &str, number: u64, scope: &str) -> v1::ReserveRequest {
    v1::ReserveRequest {
        scope: scope.to_owned(),
        amounts: load::amounts(load::asked(number)),
        ttl_ms: TTL_MS,
        idempotency_key: format!("{name}-r-{number}"),
        ..v1::ReserveRequest::default()
    }
}

/// The settlement of hold `number`.
pub(super) fn settlement(name: &str, number: u64, hold_id: String) -> v1::SettleRequest {
    v1::SettleRequest {
        hold_id,
        used: load::amounts(load::used(number)),
        idempotency_key: format!("{name}-s-{number}"),
        source: None,
    }
}

/// The pair of an answer's amounts.
fn pair(amounts: &[v1::MeterAmount]) -> anyhow::Result<Pair> {
    load::pair(amounts).with_context(|| format!("an answer has other meters: {amounts:?}"))
}

/// Takes a settlement's answer into account.
pub(super) fn take_settled(tally: &mut Tally, key: &str, answer: &v1::SettleResponse) -> anyhow::Result<()> {
    let settled = answer.settled.as_ref().context("no settlement in the answer")?;
    tally.take(key, answer.stream_seq, Ended::Settled(&settled.hold_id, pair(&settled.used)?));
    Ok(())
}

/// Takes a reservation's answer into account; the hold, if there is one.
pub(super) fn take_reserved(
    tally: &mut Tally,
    key: &str,
    answer: v1::ReserveResponse,
) -> anyhow::Result<Option<String>> {
    match answer.outcome.context("no outcome in the answer")? {
        Outcome::Granted(granted) => {
            let amounts = pair(&granted.amounts)?;
            tally.take(key, answer.stream_seq, Ended::Granted(&granted.hold_id, amounts));
            Ok(Some(granted.hold_id))
        }
        Outcome::Denied(denied) => {
            ensure!(denied.reason() == v1::DenialReason::Exhausted, "denied otherwise: {denied:?}");
            tally.take(key, answer.stream_seq, Ended::Denied(&denied.binding_scope));
            Ok(None)
        }
    }
}

impl Batcher {
    pub(super) fn new(client: Client, name: String) -> Self {
        let latencies = Histogram::new(3).expect("three digits are possible");
        Self { client, name, next: 0, open: Vec::new(), tally: Tally::default(), latencies, blocks: None }
    }

    async fn send(&mut self, commands: Vec<v1::DecideCommand>) -> anyhow::Result<Vec<v1::DecideAnswer>> {
        let (count, sent) = (commands.len(), Instant::now());
        let answers = self.client.decide(v1::DecideRequest { commands }).await?.into_inner().answers;
        ensure!(answers.len() == count, "{} answers to {count} commands", answers.len());
        let micros = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.latencies.record_n(micros, count as u64)?;
        Ok(answers)
    }

    /// Half a batch settles what the batch before was granted, half of it reserves; in the last one only what is open is settled.
    pub(super) async fn work(&mut self, batch: usize, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.round(batch / 2).await?;
        }
        while !self.open.is_empty() {
            self.round(0).await?;
        }
        Ok(())
    }

    /// Reserves so many holds and leaves them open.
    pub(super) async fn hold(&mut self, count: usize) -> anyhow::Result<Vec<(u64, String)>> {
        self.round(count).await?;
        Ok(std::mem::take(&mut self.open))
    }

    fn answered_by(&mut self, stream_seq: u64) {
        let (first, last) = self.blocks.get_or_insert((stream_seq, stream_seq));
        (*first, *last) = ((*first).min(stream_seq), (*last).max(stream_seq));
    }

    async fn round(&mut self, reserved: usize) -> anyhow::Result<()> {
        let open = std::mem::take(&mut self.open);
        let (settled, numbers): (usize, Vec<u64>) =
            (open.len(), open.iter().map(|(number, _)| *number).collect());
        let first = self.next;
        self.next += reserved as u64;
        let settle = open
            .into_iter()
            .map(|(number, hold_id)| Command::Settle(settlement(&self.name, number, hold_id)));
        let innermost = SCOPES[SCOPES.len() - 1];
        let reserve =
            (first..self.next).map(|number| Command::Reserve(reservation(&self.name, number, innermost)));
        let commands =
            settle.chain(reserve).map(|command| v1::DecideCommand { command: Some(command) }).collect();
        let answers = self.send(commands).await?;
        for (place, answer) in answers.into_iter().enumerate() {
            match answer.answer.context("no answer")? {
                Answer::Settle(answer) if place < settled => {
                    self.answered_by(answer.stream_seq);
                    let key = format!("{}-s-{}", self.name, numbers[place]);
                    take_settled(&mut self.tally, &key, &answer)?;
                }
                Answer::Reserve(answer) if place >= settled => {
                    self.answered_by(answer.stream_seq);
                    let number = first + (place - settled) as u64;
                    let key = format!("{}-r-{number}", self.name);
                    let hold = take_reserved(&mut self.tally, &key, answer)?;
                    self.open.push((number, hold.context("denied in spite of plenty")?));
                }
                other => bail!("command {place} was answered {other:?}"),
            }
        }
        Ok(())
    }

    /// Reserves of what is scarce until a whole batch is denied, and asks the first batch and the last again: same keys, same answers.
    pub(super) async fn exhaust(&mut self, batch: usize) -> anyhow::Result<()> {
        let mut first = None;
        loop {
            let numbers = self.next..self.next + batch as u64;
            self.next = numbers.end;
            let reserve =
                numbers.clone().map(|number| Command::Reserve(reservation(&self.name, number, SCARCE)));
            let commands: Vec<_> =
                reserve.map(|command| v1::DecideCommand { command: Some(command) }).collect();
            let answers = self.send(commands.clone()).await?;
            let mut granted = 0;
            for (number, answer) in numbers.zip(answers.clone()) {
                let Some(Answer::Reserve(answer)) = answer.answer else {
                    bail!("answered otherwise: {answer:?}")
                };
                let key = format!("{}-r-{number}", self.name);
                granted += u64::from(take_reserved(&mut self.tally, &key, answer)?.is_some());
            }
            let (first_commands, first_answers) =
                first.get_or_insert_with(|| (commands.clone(), answers.clone()));
            if granted == 0 {
                let first = (first_commands.clone(), first_answers.clone());
                for (commands, answers) in [first, (commands, answers)] {
                    ensure!(
                        self.send(commands).await? == answers,
                        "another answer to the same idempotency key"
                    );
                }
                return Ok(());
            }
        }
    }
}
