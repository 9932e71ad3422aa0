//! Signed records: batches, blocks, control records, receipts; as they come, and signed anew so that what is behind the signature is
//! reached as well.

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use exchequer_event::{
    control::{open_control, open_receipt, sign_control, sign_receipt},
    digest::{Digest, Purpose},
    name::{MAX_BATCH_BYTES, MAX_BATCH_EVENTS, MAX_BLOCK_BYTES, MAX_BLOCK_ITEMS, MAX_EVENT_BYTES},
    seal::{self, BlockPlace, open_batch, open_block},
    tree,
    v1::{self, KeyRole, control_record::Kind},
};
use exchequer_testkit::SimAgent;
use prost::Message as _;

/// The agent whose batches they are.
pub(crate) const AGENT: &str = "a1";

pub(crate) fn agent() -> SimAgent {
    SimAgent::new(AGENT)
}

pub(crate) fn ledger_key() -> SigningKey {
    SigningKey::from_bytes(&[100; 32])
}

pub(crate) fn metering_key() -> SigningKey {
    SigningKey::from_bytes(&[101; 32])
}

/// The batch with the root over its events, their number and a signature. With a place (epoch, seq, digest before) its events are also
/// numbered and chained from there, so that it continues a chain.
pub(crate) fn seal_anew(data: &[u8], place: Option<(u64, u64, Digest)>) -> Option<Bytes> {
    let mut signed = v1::SignedBatch::decode(data).ok()?;
    let mut seal = v1::BatchSeal::decode(signed.seal.clone()).ok()?;
    if let Some((epoch, first_seq, before)) = place {
        (seal.agent_id, seal.epoch, seal.first_seq) = (AGENT.to_owned(), epoch, first_seq);
        seal.prev_hash = before.into();
        let mut prev = before;
        for (seq, bytes) in (first_seq..).zip(&mut signed.events) {
            let mut event = v1::Event::decode(bytes.clone()).ok()?;
            (event.agent_id, event.epoch, event.seq) = (AGENT.to_owned(), epoch, seq);
            event.prev_hash = prev.into();
            *bytes = event.encode_to_vec().into();
            prev = seal::event_digest(bytes);
        }
    }
    let digests: Vec<_> = signed.events.iter().map(|event| seal::event_digest(event)).collect();
    seal.count = u32::try_from(digests.len()).ok()?;
    seal.root = tree::root(&digests).into();
    signed.seal = seal.encode_to_vec().into();
    signed.signature = seal::sign(agent().key(), Purpose::BatchSeal.digest(&signed.seal));
    Some(signed.encode_to_vec().into())
}

fn check_batch(payload: &Bytes) -> bool {
    let Ok(open) = open_batch(AGENT, payload, &[agent().public_key()]) else { return false };
    assert!(payload.len() <= MAX_BATCH_BYTES);
    assert!((1..=MAX_BATCH_EVENTS).contains(&open.digests.len()));
    assert!(open.signed.events.iter().all(|event| event.len() <= MAX_EVENT_BYTES));
    assert_eq!(open.last_seq() - open.seal.first_seq + 1, open.digests.len() as u64);
    // The same events, sealed by the project's own code, are accepted as the same.
    let again = seal::seal_batch(
        agent().key(),
        AGENT,
        open.seal.epoch,
        open.seal.first_seq,
        open.prev_hash,
        open.signed.events.clone(),
    );
    let again = Bytes::from(again.encode_to_vec());
    if again.len() <= MAX_BATCH_BYTES {
        let again = open_batch(AGENT, &again, &[agent().public_key()]).unwrap();
        assert_eq!((again.digests, again.prev_hash), (open.digests, open.prev_hash));
    }
    true
}

/// A batch of an agent.
pub(crate) fn batch(data: &[u8]) -> bool {
    let place = Some((1, 1, Digest::ZERO));
    let anew = [seal_anew(data, None), seal_anew(data, place)].into_iter().flatten();
    let mut accepted = check_batch(&Bytes::copy_from_slice(data));
    anew.for_each(|payload| accepted |= check_batch(&payload));
    accepted
}

pub(crate) fn batches() -> Vec<Vec<u8>> {
    let mut agent = agent();
    vec![agent.batch("acme", 1).to_vec(), agent.batch("", 3).to_vec(), vec![0x0a, 2, 1, 1]]
}

/// The block with the root over its items, their number and a signature; with a place, at that place of its chain.
pub(crate) fn seal_block_anew(data: &[u8], place: Option<(u64, Digest)>) -> Option<Bytes> {
    let mut signed = v1::SignedBlock::decode(data).ok()?;
    let mut seal = v1::BlockSeal::decode(signed.seal.clone()).ok()?;
    if let Some((index, before)) = place {
        (seal.partition, seal.index, seal.prev_hash) = ("0".to_owned(), index, before.into());
    }
    let digests: Vec<_> = signed.items.iter().map(|item| Purpose::DecisionRun.digest(item)).collect();
    seal.count = u32::try_from(digests.len()).ok()?;
    seal.root = tree::root(&digests).into();
    signed.seal = seal.encode_to_vec().into();
    signed.signature = seal::sign(&metering_key(), Purpose::BlockSeal.digest(&signed.seal));
    Some(signed.encode_to_vec().into())
}

fn check_block(payload: &Bytes) -> bool {
    let Ok(open) = open_block("0", payload, &[metering_key().verifying_key()]) else { return false };
    assert!(payload.len() <= MAX_BLOCK_BYTES && open.runs.len() <= MAX_BLOCK_ITEMS);
    assert_eq!(open.runs.len(), open.digests.len());
    let again = seal::seal_block(&metering_key(), open.place.clone(), open.signed.items.clone());
    let again = Bytes::from(again.encode_to_vec());
    if again.len() <= MAX_BLOCK_BYTES {
        let again = open_block("0", &again, &[metering_key().verifying_key()]).unwrap();
        assert_eq!((again.place, again.runs), (open.place, open.runs));
    }
    true
}

/// A block of decisions.
pub(crate) fn block(data: &[u8]) -> bool {
    let anew = [seal_block_anew(data, None), seal_block_anew(data, Some((1, Digest::ZERO)))];
    let mut accepted = check_block(&Bytes::copy_from_slice(data));
    anew.into_iter().flatten().for_each(|payload| accepted |= check_block(&payload));
    accepted
}

pub(crate) fn blocks() -> Vec<Vec<u8>> {
    let run = v1::DecisionRun { tenant: "acme".into(), decisions: vec![v1::Decision::default()] };
    let make = |items| {
        let place = BlockPlace {
            partition: "0".into(),
            epoch: 1,
            index: 1,
            prev_hash: Digest::ZERO,
            now_unix_ms: 1000,
            usage_cursor: 0,
        };
        seal::seal_block(&metering_key(), place, items).encode_to_vec()
    };
    vec![make(vec![run.encode_to_vec().into()]), make(Vec::new()), vec![0x0a, 2, 1, 1]]
}

/// The control record signed by the ledger.
pub(crate) fn sign_control_anew(data: &[u8]) -> Option<Bytes> {
    let mut signed = v1::SignedControl::decode(data).ok()?;
    signed.public_key = Bytes::copy_from_slice(ledger_key().verifying_key().as_bytes());
    signed.signature = seal::sign(&ledger_key(), Purpose::Control.digest(&signed.record));
    Some(signed.encode_to_vec().into())
}

fn check_control(payload: &[u8]) -> bool {
    let Ok(signed) = v1::SignedControl::decode(payload) else { return false };
    let Ok(open) = open_control(&signed) else { return false };
    let again = open_control(&sign_control(&ledger_key(), &open.record)).unwrap();
    assert_eq!((again.record, again.kind), (open.record, open.kind));
    true
}

/// A control record.
pub(crate) fn control(data: &[u8]) -> bool {
    let anew = sign_control_anew(data).is_some_and(|payload| check_control(&payload));
    check_control(data) | anew
}

pub(crate) fn control_of(kind: Kind) -> Vec<u8> {
    let record = v1::ControlRecord { time_unix_ms: 1, actor: "test".into(), kind: Some(kind) };
    sign_control(&ledger_key(), &record).encode_to_vec()
}

pub(crate) fn genesis() -> Vec<u8> {
    let ledger_key = Bytes::copy_from_slice(ledger_key().verifying_key().as_bytes());
    control_of(Kind::Genesis(v1::Genesis { origin: "fuzz.example/log".into(), ledger_key }))
}

pub(crate) fn enrolment(role: KeyRole, holder: &str, key: &[u8]) -> Vec<u8> {
    let public_key = Bytes::copy_from_slice(key);
    control_of(Kind::KeyEnrolled(v1::KeyEnrolled { role: role.into(), holder: holder.into(), public_key }))
}

pub(crate) fn controls() -> Vec<Vec<u8>> {
    let key = agent().public_key();
    let revoked = v1::KeyRevoked {
        role: KeyRole::Agent.into(),
        holder: AGENT.into(),
        public_key: Bytes::copy_from_slice(key.as_bytes()),
        ..v1::KeyRevoked::default()
    };
    vec![
        genesis(),
        enrolment(KeyRole::Agent, AGENT, key.as_bytes()),
        control_of(Kind::KeyRevoked(revoked)),
        control_of(Kind::DurabilityDegraded(v1::DurabilityDegraded::default())),
        vec![0x0a, 1, 0xff],
    ]
}

fn check_receipt(payload: &Bytes) -> bool {
    let Ok(receipt) = open_receipt(payload, &ledger_key().verifying_key(), AGENT) else { return false };
    let again = Bytes::from(sign_receipt(&ledger_key(), &receipt).encode_to_vec());
    assert_eq!(open_receipt(&again, &ledger_key().verifying_key(), AGENT), Ok(receipt));
    true
}

/// A receipt.
pub(crate) fn receipt(data: &[u8]) -> bool {
    let anew = v1::SignedReceipt::decode(data).ok().map(|mut signed| {
        signed.signature = seal::sign(&ledger_key(), Purpose::Receipt.digest(&signed.receipt));
        Bytes::from(signed.encode_to_vec())
    });
    check_receipt(&Bytes::copy_from_slice(data)) | anew.is_some_and(|payload| check_receipt(&payload))
}

pub(crate) fn receipts() -> Vec<Vec<u8>> {
    let head = v1::AgentHead { agent_id: AGENT.into(), epoch: 1, seq: 7, hash: vec![7; 32].into() };
    let receipt = v1::Receipt { head: Some(head), ..v1::Receipt::default() };
    let nobody = sign_receipt(&ledger_key(), &v1::Receipt::default());
    vec![sign_receipt(&ledger_key(), &receipt).encode_to_vec(), nobody.encode_to_vec()]
}
