//! Clients' calls and the answers to them.
//!
//! Left out: what clients want. Invariant: whatever a client is told, also of a call that it gave up, is kept to be compared.

use exchequer_budget::Event;
use exchequer_event::v1;
use exchequer_metering::{
    core::{Answered, Input, Reply, Unanswered},
    partition,
};
use prost::Message as _;

use super::{Happening, MS, PATIENCE, World};

impl World {
    pub(super) fn calls(&mut self, number: usize, attempt: u64) {
        if self.clients[number].left == 0 || self.clients[number].attempt != attempt {
            return;
        }
        self.clients[number].attempt += 1;
        let attempt = self.clients[number].attempt;
        self.after(PATIENCE, Happening::Calls { client: number, attempt });
        let to = self.rng.index(self.instances.len());
        let tenant = self.clients[number].tenant().clone();
        let partition = partition::of_tenant(&tenant, self.settings.partitions);
        self.drawn += 1;
        let drawn = partition::hold_id(partition, &format!("{}", self.drawn));
        let command = self.clients[number].command(drawn);
        self.tickets.push((number, attempt));
        self.asked.insert((number, attempt), self.clients[number].key());
        let commands = vec![(self.tickets.len() as u64 - 1, command)];
        let life = self.instances[to].life;
        let delay = self.delay();
        self.after(delay, Happening::Arrives { to, life, input: Input::Asked { partition, commands } });
    }

    pub(super) fn answered(
        &mut self,
        ticket: u64,
        answer: Result<Answered, Unanswered>,
    ) -> Result<(), String> {
        let Some(&(number, attempt)) = usize::try_from(ticket).ok().and_then(|at| self.tickets.get(at))
        else {
            return Err(format!("ticket {ticket} was never given out"));
        };
        match answer {
            Ok(Answered { reply: Reply::Event(reply), stream_seq, .. }) => {
                self.replied(number, attempt, &reply, stream_seq)
            }
            Ok(Answered { reply: Reply::Recorded(tenant, key), stream_seq, .. }) => {
                let block = self.broker.record(stream_seq).ok_or("an answer in a block that is not there")?;
                let reply = recorded(&block.payload, tenant.as_str(), key.as_str())?;
                self.replied(number, attempt, &reply, stream_seq)
            }
            Err(Unanswered::Unavailable(_)) => {
                // As soon as it is known that there is no answer, the same is asked again, somewhere.
                if self.clients[number].attempt == attempt {
                    let delay = self.rng.between(20 * MS, 200 * MS);
                    self.after(delay, Happening::Calls { client: number, attempt });
                }
                Ok(())
            }
            Err(Unanswered::Refused(error)) => Err(format!("client {number} made no mistake: {error}")),
        }
    }

    fn replied(&mut self, number: usize, attempt: u64, reply: &Event, stream_seq: u64) -> Result<(), String> {
        let Some(key) = self.asked.get(&(number, attempt)).cloned() else {
            return Err(format!("client {number} did not ask for {attempt}"));
        };
        let client = &mut self.clients[number];
        let is_current = key == client.key();
        self.answers.take(client.tenant().as_str(), key, v1::BudgetEvent::from(reply), stream_seq)?;
        if is_current && client.left > 0 {
            client.go_on(reply, &mut self.rng);
            client.attempt += 1;
            let attempt = client.attempt;
            let delay = self.rng.between(MS, 300 * MS);
            self.after(delay, Happening::Calls { client: number, attempt });
        }
        Ok(())
    }
}

/// What a block answered a key.
fn recorded(payload: &[u8], tenant: &str, key: &str) -> Result<Event, String> {
    let block = v1::SignedBlock::decode(payload).map_err(|error| error.to_string())?;
    let runs = block.items.into_iter().filter_map(|item| v1::DecisionRun::decode(item).ok());
    let mut decisions = runs.filter(|run| run.tenant == tenant).flat_map(|run| run.decisions);
    let decision = decisions.find(|decision| decision.idempotency_key == key);
    let reply = decision.and_then(|decision| decision.events.into_iter().next());
    let reply = reply.ok_or_else(|| format!("the block does not answer {tenant}/{key}"))?;
    Event::try_from(&reply).map_err(|error| error.to_string())
}
