//! Control records that the ledger writes: enrolment, revocation, durability.
//!
//! Left out: deciding whether one counts, which is the acceptor's. Invariant: every one is signed by the ledger's key of that moment.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use exchequer_event::{
    control::{key_chain, sign_control, topic},
    digest::Digest,
    name::control_subject,
    seal,
    v1::{self, control_record::Kind},
};
use exchequer_stream::{AppendError, Durability, EventStream, Message};
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use crate::{
    key::LedgerKey,
    options::Enrolment,
    standing::{Part, Standing},
};

/// How often the stream's durability is looked at.
const DURABILITY_CHECK: Duration = Duration::from_secs(60);
/// How long to wait before trying an append again.
const RETRY: Duration = Duration::from_secs(2);
/// Actor of records that nobody asked for.
const SELF: &str = "ledger";

/// Writes control records to the stream.
#[derive(Clone, Debug)]
pub(crate) struct ControlWriter {
    stream: Arc<dyn EventStream>,
    key: LedgerKey,
}

impl ControlWriter {
    pub(crate) fn new(stream: Arc<dyn EventStream>, key: LedgerKey) -> Self {
        Self { stream, key }
    }

    /// A record as it is appended.
    pub(crate) fn message(&self, actor: &str, kind: Kind) -> Message {
        let subject = control_subject(topic(&kind));
        let record = v1::ControlRecord { time_unix_ms: unix_ms(), actor: actor.to_owned(), kind: Some(kind) };
        Message::new(subject, sign_control(&self.key.current().signing, &record).encode_to_vec())
    }

    /// A signature by the key of this moment.
    pub(crate) fn sign(&self, digest: Digest) -> Bytes {
        seal::sign(&self.key.current().signing, digest)
    }

    /// The records that lead from the genesis' key to the one of this moment.
    pub(crate) fn key_chain(&self, standing: &Standing) -> Vec<v1::SignedControl> {
        key_chain(&standing.ledger_enrolments(), &self.key.current().public())
    }

    /// Appends a record on behalf of an actor; its stream sequence.
    pub(crate) async fn append(&self, actor: &str, kind: Kind) -> Result<u64, AppendError> {
        // The key is not replaced between the signature and the stream's answer: what an old key signed comes before its revocation.
        let _unchanged = self.key.unchanged().await;
        if self.key.is_retired() {
            return Err(AppendError::Unavailable(
                "the ledger's key was revoked; it needs the new one".into(),
            ));
        }
        let mut message = self.message(actor, kind);
        exchequer_telemetry::inject(&mut message.headers);
        self.stream.append(message).await
    }

    /// Appends until it succeeds. Doing so twice is harmless: both records state the same.
    async fn insist(&self, kind: Kind, shutdown: &CancellationToken) {
        self.insist_for(SELF, &kind, shutdown).await;
    }

    /// As [`Self::insist`], on behalf of an actor; whether it is in the stream.
    pub(crate) async fn insist_for(&self, actor: &str, kind: &Kind, shutdown: &CancellationToken) -> bool {
        while let Err(error) = self.append(actor, kind.clone()).await {
            tracing::warn!(%error, "a control record could not be appended; trying again");
            if pause(RETRY, shutdown).await {
                return false;
            }
        }
        true
    }

    /// Waits until the log holds the stream as it is now; whether it does.
    pub(crate) async fn caught_up(&self, standing: &Standing, shutdown: &CancellationToken) -> bool {
        if !read(standing, shutdown).await {
            return false;
        }
        let tip = loop {
            match self.stream.tip().await {
                Ok(tip) => break tip,
                Err(_) if pause(RETRY, shutdown).await => return false,
                Err(_) => {}
            }
        };
        let mut changed = standing.changed.subscribe();
        tokio::select! {
            () = shutdown.cancelled() => false,
            caught_up = changed.wait_for(|position| position.cursor >= tip) => caught_up.is_ok(),
        }
    }

    /// Enrols the configured keys that the log does not know, once the log holds the stream as it was at the start.
    pub(crate) async fn enrol(
        self,
        keys: Vec<Enrolment>,
        standing: Arc<Standing>,
        shutdown: CancellationToken,
    ) {
        if keys.is_empty() {
            return;
        }
        if !self.caught_up(&standing, &shutdown).await {
            return;
        }
        let known = standing.keys();
        for Enrolment { role, holder, key } in keys {
            match known.iter().find(|k| k.role == role && k.holder == holder && k.key == key) {
                Some(known) if known.revoked => {
                    tracing::warn!(holder, "the configured key is revoked and stays so");
                }
                Some(_) => {}
                None => {
                    let public_key = key.as_bytes().to_vec().into();
                    let enrolled = v1::KeyEnrolled { role: role.into(), holder, public_key };
                    self.insist(Kind::KeyEnrolled(enrolled), &shutdown).await;
                }
            }
        }
    }

    /// Records, once per start and per change, that the broker does not sync.
    pub(crate) async fn watch_durability(self, standing: Arc<Standing>, shutdown: CancellationToken) {
        let mut recorded = None;
        loop {
            let fault = match self.stream.durability().await {
                Durability::Synced => None,
                Durability::Degraded { detail } => Some(detail),
            };
            standing.report(Part::Durability, fault.clone());
            if let Some(detail) = &fault
                && recorded != fault
            {
                // Appended to a stream that lost its end, it would take the place of a lost message.
                if !read(&standing, &shutdown).await {
                    return;
                }
                let detail =
                    exchequer_event::name::clip(detail, exchequer_event::name::MAX_DETAIL_BYTES).to_owned();
                self.insist(Kind::DurabilityDegraded(v1::DurabilityDegraded { detail }), &shutdown).await;
            }
            recorded = fault;
            if pause(DURABILITY_CHECK, &shutdown).await {
                return;
            }
        }
    }
}

/// Waits until the stream fits the log and is read; whether that came before the shutdown.
async fn read(standing: &Standing, shutdown: &CancellationToken) -> bool {
    let mut reading = standing.reading.subscribe();
    tokio::select! {
        () = shutdown.cancelled() => false,
        is_read = reading.wait_for(|is_read| *is_read) => is_read.is_ok(),
    }
}

/// Waits; whether the shutdown came first.
pub(crate) async fn pause(time: Duration, shutdown: &CancellationToken) -> bool {
    tokio::select! {
        () = shutdown.cancelled() => true,
        () = tokio::time::sleep(time) => false,
    }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
