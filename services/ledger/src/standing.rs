//! What the parts of a running ledger know of each other: how far the log is committed and published, agents' heads, keys, health.
//!
//! Left out: anything durable. Invariant: a head that waits for its receipt stands together with the position that covers it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use exchequer_event::{
    accept::{Acceptor, KeyState},
    v1,
};
use exchequer_stream::Lease;
use exchequer_telemetry::Readiness;
use exchequer_tlog::SignedCheckpoint;
use tokio::sync::watch;

use crate::{
    integrate::{AgentOutcome, Integrated},
    store::{LogReader, Position},
    witness::client::Cosigning,
};

/// Agents without a single accepted event that wait for a receipt. Anybody who may publish can name an agent.
const MAX_UNKNOWN_AGENTS: usize = 1024;

/// The newest checkpoint as it is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Published {
    /// Entries that it covers; 0 before the first.
    pub(crate) size: u64,
    /// The signed note; empty before the first.
    pub(crate) note: Bytes,
    /// When it was signed or taken up here, seconds since the Unix epoch.
    pub(crate) unix_s: u64,
}

impl Published {
    pub(crate) fn new(signed: &SignedCheckpoint, unix_s: u64) -> Self {
        Self { size: signed.checkpoint().size(), note: signed.to_string().into(), unix_s }
    }
}

/// What the signer takes: a position and the receipts that its checkpoint makes possible.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) position: Position,
    /// Every key that the log holds at that position.
    pub(crate) keys: Arc<[KeyState]>,
    pub(crate) receipts: BTreeMap<String, AgentOutcome>,
}

/// Faults of the running parts, by part; `None` where it works.
#[derive(Clone, Debug, Default)]
struct Health {
    ingest: Option<String>,
    sign: Option<String>,
    durability: Option<String>,
    index: Option<String>,
    /// What came of asking the witnesses last; `None` without any.
    witnesses: Option<Cosigning>,
    mirror: Option<String>,
}

/// A part of the ledger that can be out of order.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    Ingest,
    Sign,
    Durability,
    Index,
    Mirror,
}

#[derive(Debug)]
struct Inner {
    position: Position,
    heads: BTreeMap<String, v1::AgentHead>,
    keys: Arc<[KeyState]>,
    ledger_enrolments: Vec<v1::SignedControl>,
    due: BTreeMap<String, AgentOutcome>,
    health: Health,
    /// The signing lease, while it is held.
    lease: Option<Lease>,
}

/// The shared standing of a running ledger.
#[derive(Debug)]
pub(crate) struct Standing {
    inner: Mutex<Inner>,
    /// Counts commits and new receipts: wakes whoever waits for either.
    pub(crate) changed: watch::Sender<Position>,
    /// The newest checkpoint.
    pub(crate) published: watch::Sender<Published>,
    /// Whether the stream fits the log and is read.
    pub(crate) reading: watch::Sender<bool>,
}

impl Standing {
    pub(crate) fn new(acceptor: &Acceptor, position: Position, published: Published) -> Self {
        let heads = acceptor.heads().map(|head| (head.agent_id.clone(), head)).collect();
        let inner = Inner {
            position: position.clone(),
            heads,
            keys: acceptor.keys().into(),
            ledger_enrolments: acceptor.ledger_enrolments().to_vec(),
            due: BTreeMap::new(),
            health: Health {
                ingest: Some("the stream has not been read yet".to_owned()),
                sign: Some("the signing lease is not held yet".to_owned()),
                ..Health::default()
            },
            lease: None,
        };
        Self {
            inner: Mutex::new(inner),
            changed: watch::Sender::new(position),
            published: watch::Sender::new(published),
            reading: watch::Sender::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up what was committed.
    pub(crate) fn committed(&self, position: Position, integrated: &Integrated, acceptor: &Acceptor) {
        let mut inner = self.lock();
        inner.position.clone_from(&position);
        if integrated.keys_changed {
            inner.keys = acceptor.keys().into();
            inner.ledger_enrolments = acceptor.ledger_enrolments().to_vec();
        }
        for (agent_id, outcome) in &integrated.agents {
            if outcome.head.seq > 0 {
                inner.heads.insert(agent_id.clone(), outcome.head.clone());
            }
        }
        Self::add_due(&mut inner, integrated.agents.clone());
        drop(inner);
        self.changed.send_replace(position);
    }

    /// Takes up the log as it was found again after a failed commit; every agent is told where it stands.
    pub(crate) fn reopened(&self, position: Position, acceptor: &Acceptor) {
        let outcome = |head: v1::AgentHead| (head.agent_id.clone(), AgentOutcome { head, refused: None });
        let mut inner = self.lock();
        inner.position.clone_from(&position);
        inner.keys = acceptor.keys().into();
        inner.ledger_enrolments = acceptor.ledger_enrolments().to_vec();
        inner.heads = acceptor.heads().map(|head| (head.agent_id.clone(), head)).collect();
        Self::add_due(&mut inner, acceptor.heads().map(outcome).collect());
        drop(inner);
        self.changed.send_replace(position);
    }

    /// Adds receipts that are due with the next checkpoint.
    pub(crate) fn owe(&self, receipts: BTreeMap<String, AgentOutcome>) {
        Self::add_due(&mut self.lock(), receipts);
        self.changed.send_modify(|_| {});
    }

    fn add_due(inner: &mut Inner, receipts: BTreeMap<String, AgentOutcome>) {
        let mut unknown = inner.due.values().filter(|outcome| outcome.head.seq == 0).count();
        for (agent_id, outcome) in receipts {
            if outcome.head.seq == 0 && !inner.due.contains_key(&agent_id) {
                if unknown >= MAX_UNKNOWN_AGENTS {
                    continue;
                }
                unknown += 1;
            }
            inner.due.insert(agent_id, outcome);
        }
    }

    /// Takes receipts back that could not be published; newer ones stay.
    pub(crate) fn give_back(&self, receipts: BTreeMap<String, AgentOutcome>) {
        let mut inner = self.lock();
        for (agent_id, outcome) in receipts {
            inner.due.entry(agent_id).or_insert(outcome);
        }
    }

    /// Whether there is something to sign or to tell.
    pub(crate) fn is_due(&self) -> bool {
        let inner = self.lock();
        inner.position.size > self.published.borrow().size || !inner.due.is_empty()
    }

    /// Takes what is due; the files of the position's size are kept until it is published.
    pub(crate) fn take_due(&self, reader: &LogReader) -> Due {
        let mut inner = self.lock();
        reader.pin(inner.position.size);
        let (position, keys) = (inner.position.clone(), inner.keys.clone());
        Due { position, keys, receipts: std::mem::take(&mut inner.due) }
    }

    /// Where the log stands, and every key that it holds there.
    pub(crate) fn at(&self) -> (Position, Arc<[KeyState]>) {
        let inner = self.lock();
        (inner.position.clone(), inner.keys.clone())
    }

    /// The records that enrolled ledger keys after the genesis.
    pub(crate) fn ledger_enrolments(&self) -> Vec<v1::SignedControl> {
        self.lock().ledger_enrolments.clone()
    }

    /// Why nothing is signed here, if so.
    pub(crate) fn sign_fault(&self) -> Option<String> {
        self.lock().health.sign.clone()
    }

    /// How far an agent's events are.
    pub(crate) fn head(&self, agent_id: &str) -> Option<v1::AgentHead> {
        self.lock().heads.get(agent_id).cloned()
    }

    /// How far every agent's events are.
    pub(crate) fn heads(&self) -> Vec<v1::AgentHead> {
        self.lock().heads.values().cloned().collect()
    }

    /// Every key that was ever enrolled.
    pub(crate) fn keys(&self) -> Arc<[KeyState]> {
        self.lock().keys.clone()
    }

    /// Takes up that the signing lease was taken or renewed, or given up.
    pub(crate) fn lead(&self, lease: Option<Lease>) {
        self.lock().lease = lease;
    }

    /// Whether the signing lease is held at this moment.
    pub(crate) fn leads(&self) -> bool {
        self.lock().lease.as_ref().is_some_and(|lease| !lease.remaining().is_zero())
    }

    /// Sets or clears the fault of a part.
    pub(crate) fn report(&self, part: Part, fault: Option<String>) {
        if matches!(part, Part::Ingest) {
            self.reading.send_replace(fault.is_none());
        }
        let mut inner = self.lock();
        let health = &mut inner.health;
        let place = match part {
            Part::Ingest => &mut health.ingest,
            Part::Sign => &mut health.sign,
            Part::Durability => &mut health.durability,
            Part::Index => &mut health.index,
            Part::Mirror => &mut health.mirror,
        };
        if *place != fault {
            if let Some(fault) = &fault {
                tracing::warn!(?part, fault, "out of order");
            } else {
                tracing::info!(?part, "in order");
            }
            *place = fault;
        }
    }

    /// Sets what came of asking the witnesses.
    pub(crate) fn report_witnesses(&self, cosigning: Cosigning) {
        let mut inner = self.lock();
        let was = inner.health.witnesses.as_ref().and_then(Cosigning::fault);
        match cosigning.fault() {
            Some(fault) if was.as_ref() != Some(&fault) => {
                tracing::warn!(fault, "not every witness cosigned");
            }
            None if was.is_some() => tracing::info!("every witness cosigned"),
            _ => {}
        }
        inner.health.witnesses = Some(cosigning);
    }

    /// Which parts work. A broker that does not sync, an index or mirror that is behind and a witness that can be done without are shown,
    /// but do not make the ledger unready.
    pub(crate) fn readiness(&self) -> Readiness {
        let health = self.lock().health.clone();
        let state = |fault: Option<String>| fault.map_or(Ok(()), Err);
        let readiness = Readiness::new()
            .component("ledger.ingest", state(health.ingest))
            .component("ledger.sign", state(health.sign))
            .degraded("ledger.index", health.index)
            .degraded("ledger.durability", health.durability)
            .degraded("ledger.mirror", health.mirror);
        match health.witnesses {
            None => readiness,
            Some(cosigning) if cosigning.is_enough() => {
                readiness.degraded("ledger.witness", cosigning.fault())
            }
            Some(cosigning) => readiness.component("ledger.witness", state(cosigning.fault())),
        }
    }

    /// What the stream's durability lacks, if anything.
    pub(crate) fn durability_fault(&self) -> Option<String> {
        self.lock().health.durability.clone()
    }
}
