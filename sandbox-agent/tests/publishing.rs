//! The way from the spool into the stream, over an embedded stream, with a ledger that answers as it is told.
#![allow(clippy::unwrap_used, missing_docs)]

use std::{sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use exchequer_event::{
    accept::{Acceptor, Incoming, Outcome},
    control,
    digest::Digest,
    name,
    seal::event_digest,
    v1::{self, KeyRole, RejectionReason, control_record, event::Kind},
};
use exchequer_stream::{EventStream, LocalStream, Message as StreamMessage, RecordStream};
use exchequer_testkit::eventually;
use futures::StreamExt as _;
use prost::{Message, bytes::Bytes};
use sandbox_agent::{
    publish::{Progress, Publisher},
    spool::{NewEvent, Spool},
};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle};

const PATIENCE: Duration = Duration::from_secs(20);

/// A spool, its publisher, and what a ledger would make of the stream.
struct Rig {
    spool: Arc<Spool>,
    stream: Arc<dyn EventStream>,
    ledger: SigningKey,
    agent: SigningKey,
    records: RecordStream,
    acceptor: Acceptor,
    publisher: JoinHandle<()>,
    _dir: TempDir,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.publisher.abort();
    }
}

impl Rig {
    async fn start(is_enrolled: bool, resend_after: Duration) -> Self {
        let dir = exchequer_testkit::temp_dir();
        let stream: Arc<dyn EventStream> = Arc::new(LocalStream::open(&dir.path().join("stream")).unwrap());
        let (spool, _) = Spool::open(&dir.path().join("spool"), "a", 64 << 20, 8, 0).unwrap();
        let spool = Arc::new(spool);
        let (ledger, agent) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let publisher = Publisher {
            spool: Arc::clone(&spool),
            stream: Arc::clone(&stream),
            key: agent.clone(),
            ledger_key: ledger.verifying_key(),
            resend_after,
        };
        let records = stream.read(1, &[]).await.unwrap();
        let (report, _) = watch::channel(Progress::default());
        let mut rig = Self {
            spool,
            stream,
            ledger,
            agent,
            records,
            acceptor: Acceptor::new(),
            publisher: tokio::spawn(publisher.run(report)),
            _dir: dir,
        };
        let ledger_key = Bytes::copy_from_slice(rig.ledger.verifying_key().as_bytes());
        let genesis = v1::Genesis { origin: "test.local/log".into(), ledger_key };
        rig.state(control_record::Kind::Genesis(genesis)).await;
        if is_enrolled {
            rig.enrol().await;
        }
        rig
    }

    /// Appends a control record and takes it into the fold.
    async fn state(&mut self, kind: control_record::Kind) {
        let subject = name::control_subject(control::topic(&kind));
        let record = v1::ControlRecord { time_unix_ms: 1, actor: "test".into(), kind: Some(kind) };
        let signed = control::sign_control(&self.ledger, &record).encode_to_vec();
        self.stream.append(StreamMessage::new(subject, signed)).await.unwrap();
    }

    async fn enrol(&mut self) {
        let public_key = Bytes::copy_from_slice(self.agent.verifying_key().as_bytes());
        let key = v1::KeyEnrolled { role: KeyRole::Agent.into(), holder: "a".into(), public_key };
        self.state(control_record::Kind::KeyEnrolled(key)).await;
    }

    async fn record(&self, count: usize) {
        for _ in 0..count {
            let kind = Kind::AgentStopped(v1::AgentStopped { reason: "test".into() });
            let event = NewEvent::own(kind);
            self.spool.record(event).await.unwrap();
        }
    }

    /// Folds the stream until a batch comes, and says what became of it.
    async fn next_batch(&mut self) -> Outcome {
        let next = async {
            loop {
                let record = self.records.next().await.unwrap().unwrap();
                let incoming = Incoming {
                    stream_seq: record.seq,
                    subject: &record.subject,
                    payload: record.payload.clone(),
                };
                let decided = self.acceptor.decide(&incoming);
                decided.entries.iter().for_each(|entry| self.acceptor.evolve(entry));
                if record.subject == "events.a" {
                    return decided.outcome;
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("a batch was published")
    }

    async fn accept_until(&mut self, seq: u64) {
        while self.acceptor.head("a").is_none_or(|head| head.seq < seq) {
            self.next_batch().await;
        }
    }

    async fn receipt(&self, by: &SigningKey, seq: u64, refused: RejectionReason, resend_from: u64) {
        let entry = self.spool.reader().read(seq, 1).unwrap().into_iter().next();
        let hash = entry.map_or(Digest::ZERO, |entry| event_digest(&entry.body));
        let head = v1::AgentHead { agent_id: "a".into(), epoch: self.spool.epoch(), seq, hash: hash.into() };
        let receipt = v1::Receipt {
            head: Some(head),
            resend_from,
            refused: refused.into(),
            key_chain: control::key_chain(self.acceptor.ledger_enrolments(), &by.verifying_key()),
            ..v1::Receipt::default()
        };
        let signed = control::sign_receipt(by, &receipt).encode_to_vec();
        self.stream.put_latest(&name::receipt_key("a"), signed.into()).await.unwrap();
    }
}

#[tokio::test]
async fn everything_recorded_is_accepted_once_and_only_the_ledgers_receipt_confirms_it() {
    let mut rig = Rig::start(true, PATIENCE).await;
    rig.record(700).await;
    rig.accept_until(700).await;
    assert_eq!(rig.spool.confirmed_seq(), 0, "no acknowledgement of the stream confirms anything");
    rig.receipt(&SigningKey::from_bytes(&[9; 32]), 700, RejectionReason::Unspecified, 0).await;
    rig.receipt(&rig.ledger, 500, RejectionReason::Unspecified, 0).await;
    eventually(PATIENCE, || async { rig.spool.confirmed_seq() > 0 }).await;
    assert_eq!(rig.spool.confirmed_seq(), 500, "the receipt of another key was ignored");
}

#[tokio::test]
async fn a_receipt_of_a_rotated_ledger_key_confirms_and_one_of_a_key_that_nobody_enrolled_does_not() {
    let mut rig = Rig::start(true, PATIENCE).await;
    let next = SigningKey::from_bytes(&[8; 32]);
    let public_key = Bytes::copy_from_slice(next.verifying_key().as_bytes());
    let (role, holder) = (KeyRole::Ledger.into(), "ledger".to_owned());
    rig.state(control_record::Kind::KeyEnrolled(v1::KeyEnrolled { role, holder, public_key })).await;
    rig.record(9).await;
    rig.accept_until(9).await;
    // The agent was told the first key only.
    rig.receipt(&SigningKey::from_bytes(&[9; 32]), 9, RejectionReason::Unspecified, 0).await;
    rig.receipt(&next, 5, RejectionReason::Unspecified, 0).await;
    eventually(PATIENCE, || async { rig.spool.confirmed_seq() > 0 }).await;
    assert_eq!(rig.spool.confirmed_seq(), 5);
}

#[tokio::test]
async fn what_the_broker_lost_is_published_again() {
    let mut rig = Rig::start(true, Duration::from_millis(200)).await;
    rig.record(3).await;
    rig.accept_until(3).await;
    // No receipt comes: for the agent, an acknowledged batch that the broker lost looks the same.
    assert_eq!(rig.next_batch().await, Outcome::Duplicate { agent_id: "a".into() });
    rig.receipt(&rig.ledger, 3, RejectionReason::Unspecified, 0).await;
    eventually(PATIENCE, || async { rig.spool.confirmed_seq() == 3 }).await;
    rig.record(1).await;
    rig.accept_until(4).await;
}

#[tokio::test]
async fn after_a_gap_it_goes_back_to_where_the_ledger_expects_it() {
    let mut rig = Rig::start(true, PATIENCE).await;
    rig.record(4).await;
    rig.accept_until(4).await;
    rig.receipt(&rig.ledger, 1, RejectionReason::Gap, 2).await;
    assert_eq!(rig.next_batch().await, Outcome::Duplicate { agent_id: "a".into() });
    assert_eq!(rig.spool.confirmed_seq(), 1);
}

#[tokio::test]
async fn an_agent_that_is_enrolled_late_gets_everything_in() {
    let mut rig = Rig::start(false, PATIENCE).await;
    rig.record(2).await;
    let refused = Outcome::Rejected { agent_id: Some("a".into()), reason: RejectionReason::UnknownKey };
    assert_eq!(rig.next_batch().await, refused);
    rig.receipt(&rig.ledger, 0, RejectionReason::UnknownKey, 0).await;
    rig.enrol().await;
    rig.accept_until(2).await;
}

#[tokio::test]
async fn where_the_log_holds_another_history_nothing_is_removed_and_executions_are_refused() {
    let mut rig = Rig::start(true, PATIENCE).await;
    rig.record(3).await;
    rig.accept_until(3).await;
    // As after a restored disk: the ledger is beyond what this spool ever recorded.
    rig.receipt(&rig.ledger, 9, RejectionReason::Unspecified, 0).await;
    eventually(PATIENCE, || async { rig.spool.check_room().is_err() }).await;
    assert_eq!((rig.spool.confirmed_seq(), rig.spool.first()), (0, 1));
}
