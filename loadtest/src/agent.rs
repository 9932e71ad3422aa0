//! A simulated agent at full speed: it numbers, chains, hashes and signs real events of a given size, and keeps no more of them than
//! their digests.
//!
//! Left out: sandboxing, the spool. Invariant: its batches are what an honest agent's are; each is sealed from the events' own bytes.

use ed25519_dalek::{SigningKey, VerifyingKey};
use exchequer_event::{
    digest::{Digest, Purpose},
    name,
    seal::{event_digest, seal_digested},
    v1::{self, event::Kind},
};
use prost::{Message as _, bytes::Bytes};

/// Executions begin at this time, milliseconds since the Unix epoch.
const FIRST_TIME_UNIX_MS: u64 = 1_780_000_000_000;
const TENANTS: u64 = 8;

/// A simulated agent.
#[derive(Debug)]
pub(crate) struct Agent {
    id: String,
    key: SigningKey,
    seq: u64,
    head: Digest,
    event_bytes: usize,
    time_unix_ms: u64,
    execution_id: String,
}

/// A sealed batch and what its receipt has to say.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) payload: Bytes,
    pub(crate) events: u64,
    pub(crate) last_seq: u64,
    pub(crate) head: Digest,
}

impl Agent {
    pub(crate) fn new(number: usize, event_bytes: usize) -> Self {
        let id = format!("load-{number}");
        let key = SigningKey::from_bytes(&Purpose::Input.digest(id.as_bytes()).0);
        let time_unix_ms = FIRST_TIME_UNIX_MS;
        Self { id, key, seq: 0, head: Digest::ZERO, event_bytes, time_unix_ms, execution_id: String::new() }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn public_key(&self) -> VerifyingKey {
        self.key.verifying_key()
    }

    pub(crate) fn subject(&self) -> String {
        name::events_subject(&self.id)
    }

    /// The next event, admission and end of an execution in turn.
    fn event(&mut self) -> Bytes {
        self.seq += 1;
        self.time_unix_ms += 1;
        if self.seq % 2 == 1 {
            self.execution_id = execution_id(self.time_unix_ms, &self.id, self.seq);
        }
        let tenant = format!("tenant-{}", self.seq / 2 % TENANTS);
        let filler = Bytes::copy_from_slice(&self.head.0);
        let mut event = v1::Event {
            agent_id: self.id.clone(),
            epoch: 1,
            seq: self.seq,
            prev_hash: filler.clone(),
            time_unix_ms: self.time_unix_ms,
            tenant,
            execution_id: self.execution_id.clone(),
            skill: "load.test".to_owned(),
            confidential: None,
            kind: None,
        };
        let short = |event: &v1::Event| self.event_bytes.saturating_sub(event.encoded_len());
        if self.seq % 2 == 1 {
            let mut admitted = v1::ExecutionAdmitted {
                caller: "somebody".to_owned(),
                profile: "strict".to_owned(),
                program: "/usr/bin/tool".to_owned(),
                input_digest: filler,
                hold_id: self.execution_id.clone(),
                ..v1::ExecutionAdmitted::default()
            };
            event.kind = Some(Kind::ExecutionAdmitted(admitted.clone()));
            // Two bytes of framing.
            admitted.arguments_redacted = vec!["x".repeat(short(&event).saturating_sub(2))];
            event.kind = Some(Kind::ExecutionAdmitted(admitted));
        } else {
            let output = |size| Some(v1::Output { digest: filler.clone(), size });
            let mut finished = v1::ExecutionFinished {
                cause: v1::ExitCause::Exited.into(),
                usage: Some(v1::Usage { cpu_user_us: 900, wall_us: 1400, ..v1::Usage::default() }),
                stdout: output(100),
                stderr: output(1),
                hold_id: self.execution_id.clone(),
                result_digest: filler.clone(),
                ..v1::ExecutionFinished::default()
            };
            event.kind = Some(Kind::ExecutionFinished(finished.clone()));
            finished.detail = "x".repeat(short(&event).saturating_sub(2));
            event.kind = Some(Kind::ExecutionFinished(finished));
        }
        event.encode_to_vec().into()
    }

    /// So many events, as single encoded messages.
    pub(crate) fn events(&mut self, count: usize) -> Vec<Bytes> {
        (0..count).map(|_| self.event()).collect()
    }

    /// Makes and seals the next batch.
    pub(crate) fn batch(&mut self, count: usize) -> Batch {
        let (first_seq, before) = (self.seq + 1, self.head);
        let mut events = Vec::with_capacity(count);
        let mut digests = Vec::with_capacity(count);
        for _ in 0..count {
            let event = self.event();
            self.head = event_digest(&event);
            digests.push(self.head);
            events.push(event);
        }
        let signed = seal_digested(&self.key, &self.id, 1, first_seq, before, events, &digests);
        Batch {
            payload: signed.encode_to_vec().into(),
            events: count as u64,
            last_seq: self.seq,
            head: self.head,
        }
    }
}

/// A UUID of version 7 with this time; the rest follows from agent and seq.
fn execution_id(time_unix_ms: u64, agent_id: &str, seq: u64) -> String {
    let random = blake3::hash(format!("{agent_id}/{seq}").as_bytes()).to_hex();
    let (high, low) = (time_unix_ms >> 16, time_unix_ms & 0xffff);
    format!("{high:08x}-{low:04x}-7{}-8{}-{}", &random[..3], &random[3..6], &random[6..18])
}

#[cfg(test)]
mod tests {
    use super::*;
    use exchequer_event::seal::open_batch;

    #[test]
    fn its_batches_open_and_its_events_have_the_size_that_was_asked_for() {
        let mut agent = Agent::new(1, 300);
        for _ in 0..3 {
            let batch = agent.batch(512);
            let open = open_batch(agent.id(), &batch.payload, &[agent.public_key()]).unwrap();
            assert_eq!(open.last_seq(), batch.last_seq);
            assert!(open.signed.events.iter().all(|event| (298..=302).contains(&event.len())));
        }
    }
}
