//! Acceptance: the fold over the stream that turns messages into log entries.
//!
//! [`Acceptor::decide`] says which entries a message becomes, [`Acceptor::evolve`] takes an entry into the state. Everything that
//! `evolve` needs stands in the entries, so the state can be rebuilt from the log as well as from the stream, and two parties that
//! fold the same messages hold the same state, whatever else they do.
//!
//! - A batch is accepted if an enrolled, unrevoked key signed it and it continues its agent's chain. What the log already holds is
//!   compared by digest and skipped; a different event in a place that is taken is an equivocation, and both are evidence.
//! - A gap is refused with the head that was expected, and the agent goes back to it (go-back-N).
//! - A decision block is accepted if it continues its partition's chain; anything else has been fenced.
//! - What stands for a message that the broker lost ([`StreamRefilled`](v1::StreamRefilled)) becomes the entries that the lost
//!   message became, and no entry of its own.
//! - Whatever is refused becomes a rejection entry. An exact duplicate adds nothing to the log and becomes none.
//!
//! The acceptor remembers the digests of the last [`COMPARED_EVENTS`] events of each agent; an overlap that begins before them is
//! refused as stale. Messages from before the genesis are rejected.

mod refill;
mod snapshot;

pub use snapshot::AgentWindow;

use std::collections::{BTreeMap, VecDeque};

use ed25519_dalek::VerifyingKey;
use prost::{Message, bytes::Bytes};

use crate::{
    control::{self, OpenControl},
    digest::{Digest, Purpose},
    name::{self, MAX_DETAIL_BYTES, MAX_SUBJECT_BYTES, Subject},
    seal::{self, ExaminedBatch, OpenBatch, OpenBlock, Refusal},
    v1::{self, KeyRole, RejectionReason, control_record::Kind as ControlKind, entry::Kind},
};

/// Events of an agent whose digests are kept to compare an overlap with.
pub const COMPARED_EVENTS: usize = 2 * name::MAX_BATCH_EVENTS;

/// A message of the stream.
#[derive(Clone, Debug)]
pub struct Incoming<'a> {
    /// Its stream sequence.
    pub stream_seq: u64,
    /// Its subject.
    pub subject: &'a str,
    /// Its payload.
    pub payload: Bytes,
}

/// What of a message does not depend on the messages before it: the costly part, which many can be given at the same time.
#[derive(Clone, Debug, Default)]
pub struct Examined {
    /// Of a message that came as a batch.
    batch: Option<Result<ExaminedBatch, Refusal>>,
}

impl Examined {
    /// Examines a message. The keys may be those of an earlier state: what turns out to be of another key is examined again.
    pub fn new(message: &Incoming<'_>, likely: &[KeyState]) -> Self {
        let Some(Subject::Events(agent_id)) = Subject::parse(message.subject) else {
            return Self::default();
        };
        let keys = valid_keys(likely, KeyRole::Agent, agent_id);
        Self { batch: Some(seal::examine_batch(agent_id, &message.payload, &keys)) }
    }

    /// The events of a batch that a likely key signed and whose content holds.
    pub fn events(&self) -> &[Bytes] {
        self.batch.iter().flatten().next().map_or(&[], ExaminedBatch::events)
    }
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Events of an agent were accepted.
    Batch {
        /// The agent.
        agent_id: String,
        /// How many of them were new.
        new_events: usize,
    },
    /// Every event of the batch was in the log already.
    Duplicate {
        /// The agent.
        agent_id: String,
    },
    /// A decision block was accepted.
    Block {
        /// The partition.
        partition: String,
    },
    /// A control record was accepted.
    Control,
    /// It stands for a lost message that had become nothing.
    Refilled,
    /// The message was refused.
    Rejected {
        /// The subject's agent, if it has one.
        agent_id: Option<String>,
        /// Why.
        reason: RejectionReason,
    },
    /// The agent signed two different events for one place.
    Equivocation {
        /// The agent.
        agent_id: String,
    },
}

/// A decided message: its entries, not yet in the state.
#[derive(Clone, Debug)]
pub struct Decided {
    /// The entries, in log order.
    pub entries: Vec<v1::Entry>,
    /// What became of the message.
    pub outcome: Outcome,
    /// The runs of an accepted block, decoded.
    pub runs: Vec<v1::DecisionRun>,
}

/// A key that is or was enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyState {
    /// What it may sign.
    pub role: KeyRole,
    /// Who holds it.
    pub holder: String,
    /// The key.
    pub key: VerifyingKey,
    /// Whether it has been revoked.
    pub revoked: bool,
    /// Index of the log entry that enrolled it.
    pub enrolled_at: u64,
    /// Index of the log entry that revoked it first.
    pub revoked_at: Option<u64>,
}

impl KeyState {
    /// Whether it may sign a tree of so many entries: they enrol it and do not revoke it.
    pub fn is_valid_at(&self, size: u64) -> bool {
        self.enrolled_at < size && self.revoked_at.is_none_or(|revoked| revoked >= size)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct AgentState {
    epoch: u64,
    seq: u64,
    /// Digests of the last events, the newest last; never empty.
    recent: VecDeque<Digest>,
}

impl AgentState {
    fn hash(&self) -> Digest {
        self.recent.back().copied().unwrap_or(Digest::ZERO)
    }
}

/// Where a partition's chain of blocks stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionHead {
    /// The writer's lease epoch.
    pub epoch: u64,
    /// Index of the last block; 0 for none.
    pub index: u64,
    /// Digest of its seal.
    pub hash: Digest,
    /// Its clock, milliseconds.
    pub now_unix_ms: u64,
    /// Stream sequence up to which usage has been settled.
    pub usage_cursor: u64,
    /// Stream sequence of the last block.
    pub stream_seq: u64,
}

/// The state of the fold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acceptor {
    origin: String,
    keys: Vec<KeyState>,
    /// Entries taken in so far.
    entries: u64,
    /// The records that enrolled further ledger keys.
    ledger_enrolments: Vec<v1::SignedControl>,
    agents: BTreeMap<String, AgentState>,
    partitions: BTreeMap<String, PartitionHead>,
}

impl Acceptor {
    /// Before the genesis.
    pub fn new() -> Self {
        Self::default()
    }

    /// The log's origin; empty before the genesis.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Every key that was ever enrolled, in order of enrolment.
    pub fn keys(&self) -> &[KeyState] {
        &self.keys
    }

    /// The records that enrolled ledger keys after the genesis, in log order, the first of each key: see [`control::key_chain`].
    pub fn ledger_enrolments(&self) -> &[v1::SignedControl] {
        &self.ledger_enrolments
    }

    /// Whether this very key is enrolled and not revoked.
    pub fn may_sign(&self, role: KeyRole, holder: &str, key: &VerifyingKey) -> bool {
        self.valid_keys(role, holder).contains(key)
    }

    fn valid_keys(&self, role: KeyRole, holder: &str) -> Vec<VerifyingKey> {
        valid_keys(&self.keys, role, holder)
    }

    /// How far an agent's events are.
    pub fn head(&self, agent_id: &str) -> Option<v1::AgentHead> {
        self.agents.get(agent_id).map(|agent| v1::AgentHead {
            agent_id: agent_id.to_owned(),
            epoch: agent.epoch,
            seq: agent.seq,
            hash: agent.hash().into(),
        })
    }

    /// How far every agent's events are, in order of name.
    pub fn heads(&self) -> impl Iterator<Item = v1::AgentHead> + '_ {
        self.agents.keys().filter_map(|agent_id| self.head(agent_id))
    }

    /// Digest of an agent's event, if it is among those that are compared.
    pub(crate) fn recorded(&self, agent_id: &str, epoch: u64, seq: u64) -> Option<Digest> {
        let agent = self.agents.get(agent_id).filter(|agent| agent.epoch == epoch)?;
        let oldest = agent.seq + 1 - agent.recent.len() as u64;
        agent.recent.get(usize::try_from(seq.checked_sub(oldest)?).ok()?).copied()
    }

    /// Where a partition's chain stands.
    pub fn partition(&self, partition: &str) -> PartitionHead {
        self.partitions.get(partition).cloned().unwrap_or_default()
    }

    /// What a message becomes. The state changes only when the entries are given to [`evolve`](Self::evolve), all of them in order.
    pub fn decide(&self, message: &Incoming<'_>) -> Decided {
        self.decide_examined(message, Examined::new(message, &self.keys))
    }

    /// [`decide`](Self::decide) for a message that was examined before. The result is the same, whatever keys it was examined with.
    pub fn decide_examined(&self, message: &Incoming<'_>, examined: Examined) -> Decided {
        let subject = Subject::parse(message.subject);
        let decided = match subject {
            None => Err(Refusal::new(RejectionReason::UnknownSubject, "").into()),
            Some(Subject::Control(_)) => self.decide_control(message),
            Some(_) if self.origin.is_empty() => {
                Err(Refusal::new(RejectionReason::Genesis, "the log has no genesis yet").into())
            }
            Some(Subject::Events(agent_id)) => {
                let examine = || seal::examine_batch(agent_id, &message.payload, &[]);
                self.decide_batch(agent_id, examined.batch.unwrap_or_else(examine))
            }
            Some(Subject::Budget(partition)) => self.decide_block(partition, message),
        };
        let (kinds, outcome, runs) = decided.unwrap_or_else(|refused: Refused| {
            let reason = refused.refusal.reason;
            let agent_id = match subject {
                Some(Subject::Events(agent_id)) => Some(agent_id.to_owned()),
                _ => None,
            };
            let rejection = Kind::Rejection(v1::Rejection {
                subject: name::clip(message.subject, MAX_SUBJECT_BYTES).to_owned(),
                reason: reason.into(),
                payload_digest: Purpose::Message.digest(&message.payload).into(),
                payload_size: message.payload.len() as u64,
                detail: name::clip(&refused.refusal.detail, MAX_DETAIL_BYTES).to_owned(),
                head: refused.head,
            });
            (vec![rejection], Outcome::Rejected { agent_id, reason }, Vec::new())
        });
        let entry = |kind| v1::Entry { stream_seq: message.stream_seq, kind: Some(kind) };
        Decided { entries: kinds.into_iter().map(entry).collect(), outcome, runs }
    }

    fn decide_batch(
        &self,
        agent_id: &str,
        examined: Result<ExaminedBatch, Refusal>,
    ) -> Result<Kinds, Refused> {
        let batch = examined?.admit(&self.valid_keys(KeyRole::Agent, agent_id))?;
        match self.place(&batch) {
            Place::Follows { skipped, previous_epoch } if skipped == batch.digests.len() => {
                debug_assert!(previous_epoch.is_none());
                Ok((Vec::new(), Outcome::Duplicate { agent_id: agent_id.to_owned() }, Vec::new()))
            }
            Place::Follows { skipped, previous_epoch } => {
                let new_events = batch.digests.len() - skipped;
                let sealed = Kind::BatchSealed(v1::BatchSealed {
                    seal: batch.signed.seal,
                    signature: batch.signed.signature,
                    public_key: Bytes::copy_from_slice(batch.key.as_bytes()),
                    skipped: u32::try_from(skipped).unwrap_or(u32::MAX),
                    event_digests: seal::join_digests(&batch.digests),
                    previous_epoch,
                });
                let events = batch.signed.events.into_iter().skip(skipped).map(Kind::Event);
                let outcome = Outcome::Batch { agent_id: agent_id.to_owned(), new_events };
                Ok((std::iter::once(sealed).chain(events).collect(), outcome, Vec::new()))
            }
            Place::Conflicts { place, recorded } => {
                let equivocation = Kind::Equivocation(v1::Equivocation {
                    agent_id: agent_id.to_owned(),
                    epoch: batch.seal.epoch,
                    seq: batch.seal.first_seq + place as u64,
                    recorded_digest: recorded.into(),
                    offered_digest: batch.digests[place].into(),
                    offered_event_digests: seal::join_digests(&batch.digests),
                    offered_event: batch.signed.events[place].clone(),
                    offered_seal: batch.signed.seal,
                    offered_signature: batch.signed.signature,
                });
                Ok((vec![equivocation], Outcome::Equivocation { agent_id: agent_id.to_owned() }, Vec::new()))
            }
            Place::Refused(reason, detail) => {
                let head = self.head(agent_id).unwrap_or_else(|| v1::AgentHead {
                    agent_id: agent_id.to_owned(),
                    ..v1::AgentHead::default()
                });
                Err(Refused { refusal: Refusal::new(reason, detail), head: Some(head) })
            }
        }
    }

    /// Where a batch stands to its agent's chain.
    fn place(&self, batch: &OpenBatch) -> Place {
        let (first, epoch) = (batch.seal.first_seq, batch.seal.epoch);
        let agent = match self.agents.get(&batch.seal.agent_id) {
            Some(agent) if epoch < agent.epoch => {
                return Place::Refused(
                    RejectionReason::Stale,
                    format!("epoch {epoch} has ended: it is {}", agent.epoch),
                );
            }
            Some(agent) if epoch == agent.epoch => agent,
            before => {
                if first != 1 {
                    return Place::Refused(
                        RejectionReason::Gap,
                        format!("seq {first} in a new epoch, 1 is expected"),
                    );
                }
                if batch.prev_hash != Digest::ZERO {
                    return Place::Refused(
                        RejectionReason::WrongChain,
                        "prev_hash of seq 1 is not zero".into(),
                    );
                }
                let previous_epoch = before.and_then(|_| self.head(&batch.seal.agent_id));
                return Place::Follows { skipped: 0, previous_epoch };
            }
        };
        let next = agent.seq + 1;
        if first > next {
            return Place::Refused(RejectionReason::Gap, format!("seq {first}, {next} is expected"));
        }
        if first == next {
            return if batch.prev_hash == agent.hash() {
                Place::Follows { skipped: 0, previous_epoch: None }
            } else {
                Place::Refused(
                    RejectionReason::WrongChain,
                    format!("prev_hash is not the digest of seq {}", agent.seq),
                )
            };
        }
        let oldest = next - agent.recent.len() as u64;
        if first < oldest {
            return Place::Refused(
                RejectionReason::Stale,
                format!("seq {first}, compared are {oldest} and later"),
            );
        }
        let known = agent.recent.iter().skip(usize::try_from(first - oldest).unwrap_or(usize::MAX));
        let mut skipped = 0;
        for (place, (recorded, offered)) in known.zip(&batch.digests).enumerate() {
            if recorded != offered {
                return Place::Conflicts { place, recorded: *recorded };
            }
            skipped = place + 1;
        }
        Place::Follows { skipped, previous_epoch: None }
    }

    fn decide_block(&self, partition: &str, message: &Incoming<'_>) -> Result<Kinds, Refused> {
        let block = seal::open_block(partition, &message.payload, &self.valid_keys(KeyRole::Metering, ""))?;
        let OpenBlock { place, signed, runs, digests, key, .. } = block;
        let head = self.partition(partition);
        let fenced = |detail: String| Err(Refusal::new(RejectionReason::Fenced, detail).into());
        if place.index != head.index + 1 || place.prev_hash != head.hash {
            return fenced(format!("block {} does not follow block {}", place.index, head.index));
        }
        if place.epoch < head.epoch || place.now_unix_ms < head.now_unix_ms {
            return fenced(format!("epoch {} or clock fell below the chain's", place.epoch));
        }
        if place.usage_cursor < head.usage_cursor || place.usage_cursor >= message.stream_seq {
            return fenced(format!(
                "usage_cursor {} is not between the chain's and the stream's",
                place.usage_cursor
            ));
        }
        let sealed = Kind::BlockSealed(v1::BlockSealed {
            seal: signed.seal,
            signature: signed.signature,
            public_key: Bytes::copy_from_slice(key.as_bytes()),
            item_digests: seal::join_digests(&digests),
        });
        let items = signed.items.into_iter().map(Kind::DecisionRun);
        let outcome = Outcome::Block { partition: partition.to_owned() };
        Ok((std::iter::once(sealed).chain(items).collect(), outcome, runs))
    }

    fn decide_control(&self, message: &Incoming<'_>) -> Result<Kinds, Refused> {
        let (signed, open) = control::open_control_message(&message.payload)?;
        self.check_control(&open)?;
        if let ControlKind::StreamRefilled(refilled) = &open.kind {
            return Ok(self.decide_refilled(message.stream_seq, refilled)?);
        }
        Ok((vec![Kind::Control(signed)], Outcome::Control, Vec::new()))
    }

    /// Whether the signer of a control record may state it now.
    pub(crate) fn check_control(&self, open: &OpenControl) -> Result<(), Refusal> {
        match &open.kind {
            ControlKind::Genesis(genesis) => {
                if !self.origin.is_empty() {
                    return Err(Refusal::new(RejectionReason::Genesis, "the log has a genesis"));
                }
                if genesis.ledger_key != open.signer.as_bytes().as_slice() {
                    return Err(Refusal::new(
                        RejectionReason::BadSignature,
                        "the genesis is not signed by its own key",
                    ));
                }
            }
            _ if self.origin.is_empty() => {
                return Err(Refusal::new(RejectionReason::Genesis, "the log has no genesis yet"));
            }
            _ if !self.is_ledgers(open) => {
                return Err(Refusal::new(
                    RejectionReason::UnknownKey,
                    "public_key is not an enrolled ledger key",
                ));
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes an entry into the state. Never refuses: what is in the log has been accepted. An entry that no acceptor would have made
    /// changes nothing but the count of entries, by which keys know their place.
    pub fn evolve(&mut self, entry: &v1::Entry) {
        self.evolve_kind(entry);
        self.entries += 1;
    }

    fn evolve_kind(&mut self, entry: &v1::Entry) {
        match &entry.kind {
            Some(Kind::BatchSealed(sealed)) => self.evolve_batch(sealed),
            Some(Kind::BlockSealed(sealed)) => {
                if let Ok((place, ..)) = seal::read_block_seal(&sealed.seal) {
                    let head = PartitionHead {
                        epoch: place.epoch,
                        index: place.index,
                        hash: seal::block_digest(&sealed.seal),
                        now_unix_ms: place.now_unix_ms,
                        usage_cursor: place.usage_cursor,
                        stream_seq: entry.stream_seq,
                    };
                    self.partitions.insert(place.partition, head);
                }
            }
            Some(Kind::Control(signed)) => self.evolve_control(signed),
            Some(Kind::Event(_) | Kind::DecisionRun(_) | Kind::Rejection(_) | Kind::Equivocation(_))
            | None => {}
        }
    }

    fn evolve_batch(&mut self, sealed: &v1::BatchSealed) {
        let (Ok(seal), Some(digests)) =
            (v1::BatchSeal::decode(sealed.seal.clone()), seal::split_digests(&sealed.event_digests))
        else {
            return;
        };
        let agent = self.agents.entry(seal.agent_id).or_insert_with(|| AgentState {
            epoch: seal.epoch,
            seq: 0,
            recent: VecDeque::new(),
        });
        if agent.epoch != seal.epoch {
            agent.epoch = seal.epoch;
            agent.recent.clear();
        }
        agent.seq = seal.first_seq + u64::from(seal.count) - 1;
        agent.recent.extend(digests.into_iter().skip(sealed.skipped as usize));
        let surplus = agent.recent.len().saturating_sub(COMPARED_EVENTS);
        agent.recent.drain(..surplus);
    }

    fn evolve_control(&mut self, signed: &v1::SignedControl) {
        let Ok(OpenControl { kind, .. }) = control::open_control(signed) else {
            return;
        };
        match kind {
            ControlKind::Genesis(genesis) => {
                self.origin = genesis.origin;
                self.enrol(KeyRole::Ledger, "ledger", &genesis.ledger_key);
            }
            ControlKind::KeyEnrolled(key) => {
                let is_new = self.enrol(key.role(), &key.holder, &key.public_key);
                if is_new && key.role() == KeyRole::Ledger {
                    self.ledger_enrolments.push(signed.clone());
                }
            }
            ControlKind::KeyRevoked(revoked) => {
                for key in &mut self.keys {
                    if key.role == revoked.role()
                        && key.holder == revoked.holder
                        && key.key.as_bytes().as_slice() == revoked.public_key
                        && !key.revoked
                    {
                        (key.revoked, key.revoked_at) = (true, Some(self.entries));
                    }
                }
            }
            ControlKind::DurabilityDegraded(_)
            | ControlKind::StreamRefilled(_)
            | ControlKind::StreamLost(_) => {}
        }
    }

    /// Whether it is a key that was not known.
    fn enrol(&mut self, role: KeyRole, holder: &str, key: &[u8]) -> bool {
        let Ok(key) = control::public_key("public_key", key) else {
            return false;
        };
        // A revoked key stays revoked: whoever leaked it can't be trusted with it again.
        let is_new = !self.keys.iter().any(|k| k.role == role && k.holder == holder && k.key == key);
        if is_new {
            let (holder, enrolled_at) = (holder.to_owned(), self.entries);
            self.keys.push(KeyState { role, holder, key, revoked: false, enrolled_at, revoked_at: None });
        }
        is_new
    }
}

fn valid_keys(keys: &[KeyState], role: KeyRole, holder: &str) -> Vec<VerifyingKey> {
    let valid =
        |key: &&KeyState| key.role == role && !key.revoked && (holder.is_empty() || key.holder == holder);
    keys.iter().filter(valid).map(|key| key.key).collect()
}

type Kinds = (Vec<Kind>, Outcome, Vec<v1::DecisionRun>);

struct Refused {
    refusal: Refusal,
    head: Option<v1::AgentHead>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, head: None }
    }
}

enum Place {
    Follows { skipped: usize, previous_epoch: Option<v1::AgentHead> },
    Conflicts { place: usize, recorded: Digest },
    Refused(RejectionReason, String),
}
