//! A simulated agent: numbers, chains and signs real events, and remembers them so that it can go back.
//!
//! Left out: sandboxing and spooling. Invariant: what it makes is what an honest agent would publish; dishonesty is up to the test,
//! for instance by two clones that go on differently.

use ed25519_dalek::{SigningKey, VerifyingKey};
use exchequer_event::{
    digest::{Digest, Purpose},
    name,
    seal::{event_digest, seal_batch},
    v1::{self, event::Kind},
};
use prost::{Message as _, bytes::Bytes};

/// The clock of a new agent, milliseconds since the Unix epoch; each event takes one more.
pub const FIRST_TIME_UNIX_MS: u64 = 1_750_000_000_000;

/// A simulated agent.
#[derive(Clone, Debug)]
pub struct SimAgent {
    id: String,
    key: SigningKey,
    epoch: u64,
    time_unix_ms: u64,
    executions: u64,
    skill: String,
    events: Vec<Bytes>,
}

impl SimAgent {
    /// An agent with a key that follows from its id.
    pub fn new(id: impl Into<String>) -> Self {
        let id = id.into();
        let key = SigningKey::from_bytes(&Purpose::Input.digest(id.as_bytes()).0);
        Self {
            id,
            key,
            epoch: 1,
            time_unix_ms: FIRST_TIME_UNIX_MS,
            executions: 0,
            skill: String::new(),
            events: Vec::new(),
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The key that it signs with.
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// The key to enrol.
    pub fn public_key(&self) -> VerifyingKey {
        self.key.verifying_key()
    }

    /// Replaces the key.
    pub fn with_key(self, key: SigningKey) -> Self {
        Self { key, ..self }
    }

    /// Sets the skill that its executions run from here on.
    pub fn with_skill(self, skill: impl Into<String>) -> Self {
        Self { skill: skill.into(), ..self }
    }

    /// The subject of its batches.
    pub fn subject(&self) -> String {
        name::events_subject(&self.id)
    }

    /// Its epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Seq of its newest event; 0 for none.
    pub fn seq(&self) -> u64 {
        self.events.len() as u64
    }

    /// All events of its epoch, encoded.
    pub fn events(&self) -> &[Bytes] {
        &self.events
    }

    /// Begins a new epoch, as an agent does that lost its spool.
    pub fn new_epoch(&mut self) {
        self.epoch += 1;
        self.events.clear();
    }

    /// A new execution's id: a UUID, version 7, that no other agent's is.
    pub fn execution_id(&mut self) -> String {
        self.executions += 1;
        let time = self.time_unix_ms;
        let own =
            u64::from_be_bytes(*Purpose::Input.digest(self.id.as_bytes()).0.first_chunk().expect("32 bytes"));
        let (high, low) = (time >> 16, time & 0xffff);
        let tail = (own ^ self.executions.rotate_right(16)) & 0xffff_ffff_ffff;
        format!(
            "{high:08x}-{low:04x}-7{:03x}-8{:03x}-{tail:012x}",
            self.executions & 0xfff,
            self.executions >> 12 & 0xfff
        )
    }

    /// Adds an event.
    pub fn record(&mut self, tenant: &str, execution_id: &str, kind: Kind) -> Bytes {
        self.time_unix_ms += 1;
        let event = v1::Event {
            agent_id: self.id.clone(),
            epoch: self.epoch,
            seq: self.seq() + 1,
            prev_hash: self.digest_of(self.seq()).into(),
            time_unix_ms: self.time_unix_ms,
            tenant: tenant.to_owned(),
            execution_id: execution_id.to_owned(),
            skill: if execution_id.is_empty() { String::new() } else { self.skill.clone() },
            confidential: None,
            kind: Some(kind),
        };
        let bytes = Bytes::from(event.encode_to_vec());
        self.events.push(bytes.clone());
        bytes
    }

    /// Adds a whole execution of a tenant, admission and end, that used so much CPU time under a hold; its id.
    pub fn execute(&mut self, tenant: &str, hold_id: &str, cpu_us: u64) -> String {
        let execution_id = self.execution_id();
        let admitted = v1::ExecutionAdmitted {
            caller: "somebody".to_owned(),
            profile: "default".to_owned(),
            program: "/bin/true".to_owned(),
            input_digest: Purpose::Input.digest(execution_id.as_bytes()).into(),
            hold_id: hold_id.to_owned(),
            scope: tenant.to_owned(),
            ..v1::ExecutionAdmitted::default()
        };
        self.record(tenant, &execution_id, Kind::ExecutionAdmitted(admitted));
        let finished = v1::ExecutionFinished {
            cause: v1::ExitCause::Exited.into(),
            usage: Some(v1::Usage { cpu_user_us: cpu_us, wall_us: cpu_us, ..v1::Usage::default() }),
            hold_id: hold_id.to_owned(),
            result_digest: Purpose::Result.digest(execution_id.as_bytes()).into(),
            ..v1::ExecutionFinished::default()
        };
        self.record(tenant, &execution_id, Kind::ExecutionFinished(finished));
        execution_id
    }

    /// Seals the events from `first_seq` to `last_seq`, both included, as they were recorded.
    pub fn seal(&self, first_seq: u64, last_seq: u64) -> v1::SignedBatch {
        let place = |seq: u64| usize::try_from(seq).expect("as many events as memory holds");
        let events = self.events[place(first_seq) - 1..place(last_seq)].to_vec();
        seal_batch(&self.key, &self.id, self.epoch, first_seq, self.digest_of(first_seq - 1), events)
    }

    /// Records so many executions of a tenant and seals their events, two for each, into an encoded batch.
    pub fn batch(&mut self, tenant: &str, executions: usize) -> Bytes {
        let first = self.seq() + 1;
        for _ in 0..executions {
            self.execute(tenant, "", 1000);
        }
        self.seal(first, self.seq()).encode_to_vec().into()
    }

    /// Digest of the event at a seq; zero at 0.
    fn digest_of(&self, seq: u64) -> Digest {
        let place = usize::try_from(seq).ok().and_then(|seq| seq.checked_sub(1));
        place.and_then(|place| self.events.get(place)).map_or(Digest::ZERO, |event| event_digest(event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use exchequer_event::{name::is_uuid, seal::open_batch};

    #[test]
    fn its_batches_open_with_its_key() {
        let mut agent = SimAgent::new("a1");
        for _ in 0..3 {
            let batch = agent.batch("acme", 2);
            let open = open_batch("a1", &batch, &[agent.public_key()]).unwrap();
            assert_eq!(open.last_seq(), agent.seq());
        }
        let (one, other) = (agent.execution_id(), SimAgent::new("a2").execution_id());
        assert!(is_uuid(&one) && is_uuid(&other) && one != other);
    }
}
