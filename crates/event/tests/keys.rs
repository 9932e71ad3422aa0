//! The life of a key: enrolled, replaced, revoked; what counts at which place of the log, and whom a receipt convinces.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "support/world.rs"]
mod world;

use ed25519_dalek::SigningKey;
use exchequer_event::{
    accept::{Acceptor, Outcome},
    audit::Auditor,
    control::{MAX_KEY_CHAIN, key_chain, open_receipt, sign_control, sign_receipt},
    v1::{self, KeyRole, RejectionReason as Reason, control_record::Kind},
};
use prost::{Message, bytes::Bytes};
use world::{Agent, World, key, public};

fn revoked(role: KeyRole, holder: &str, key: &SigningKey) -> Kind {
    let (holder, reason) = (holder.to_owned(), "replaced".to_owned());
    Kind::KeyRevoked(v1::KeyRevoked { role: role.into(), holder, public_key: public(key), reason })
}

/// The ledger signs by a new key from here on; the old one is revoked by it.
fn rotate(world: &mut World, next: SigningKey) -> SigningKey {
    assert_eq!(world.enrol(KeyRole::Ledger, "ledger", public(&next)), Outcome::Control);
    let old = std::mem::replace(&mut world.ledger, next);
    assert_eq!(world.control(revoked(KeyRole::Ledger, "ledger", &old)), Outcome::Control);
    old
}

fn receipt(by: &SigningKey, chain: Vec<v1::SignedControl>) -> Bytes {
    let head = v1::AgentHead { agent_id: "a".into(), ..v1::AgentHead::default() };
    let receipt = v1::Receipt { head: Some(head), key_chain: chain, ..v1::Receipt::default() };
    sign_receipt(by, &receipt).encode_to_vec().into()
}

#[test]
fn a_rotated_agent_key_signs_on_and_the_revoked_one_no_more() {
    let (mut world, mut agent) = (World::new(), Agent::new("a", 1));
    assert!(matches!(world.events("a", agent.batch(2, "")), Outcome::Batch { .. }));
    let second = key(51);
    world.enrol(KeyRole::Agent, "a", public(&second));
    // Until the revocation both may sign.
    assert!(matches!(world.events("a", agent.batch(1, "")), Outcome::Batch { .. }));
    let old = std::mem::replace(&mut agent.key, second);
    assert!(matches!(world.events("a", agent.batch(1, "")), Outcome::Batch { .. }));
    assert_eq!(world.control(revoked(KeyRole::Agent, "a", &old)), Outcome::Control);
    let mut thief = agent.clone();
    thief.key = old;
    let refused = Outcome::Rejected { agent_id: Some("a".into()), reason: Reason::BadSignature };
    assert_eq!(world.events("a", thief.batch(1, "")), refused);
    assert!(matches!(world.events("a", agent.batch(1, "")), Outcome::Batch { .. }));
    assert_eq!(world.acceptor.head("a").unwrap().seq, 5);
    // What the first key signed before still holds for whoever audits the whole log.
    let mut auditor = Auditor::new();
    world.entries.iter().for_each(|entry| auditor.check(entry).unwrap());
    auditor.finish().unwrap();
}

#[test]
fn a_rotated_ledger_key_states_on_and_the_revoked_one_no_more() {
    let mut world = World::new();
    let old = rotate(&mut world, key(60));
    let metering = public(&key(61));
    let enrol = |holder: &str| {
        let (role, holder) = (KeyRole::Metering.into(), holder.to_owned());
        Kind::KeyEnrolled(v1::KeyEnrolled { role, holder, public_key: metering.clone() })
    };
    let refused = Outcome::Rejected { agent_id: None, reason: Reason::UnknownKey };
    assert_eq!(world.control_by(&old, enrol("m2")), refused);
    assert_eq!(world.control(enrol("m2")), Outcome::Control);
    // A revoked key does not come back.
    world.enrol(KeyRole::Ledger, "ledger", public(&old));
    assert_eq!(world.control_by(&old, enrol("m3")), refused);
}

#[test]
fn a_key_is_valid_for_the_trees_that_enrol_and_do_not_revoke_it() {
    let mut world = World::new();
    let (first, enrolled) = (world.ledger.clone(), world.entries.len() as u64);
    rotate(&mut world, key(60));
    let state = |world: &World, key: &SigningKey| {
        world.acceptor.keys().iter().find(|state| state.key == key.verifying_key()).unwrap().clone()
    };
    let (old, new) = (state(&world, &first), state(&world, &world.ledger));
    assert_eq!((old.enrolled_at, old.revoked_at), (0, Some(enrolled + 1)));
    assert_eq!((new.enrolled_at, new.revoked_at), (enrolled, None));
    let valid = |state: &exchequer_event::accept::KeyState| {
        (0..=enrolled + 3).filter(|size| state.is_valid_at(*size)).collect::<Vec<_>>()
    };
    assert_eq!(valid(&old), (1..=enrolled + 1).collect::<Vec<_>>());
    assert_eq!(valid(&new), (enrolled + 1..=enrolled + 3).collect::<Vec<_>>());
    // Revoking again moves nothing, and the state comes back from a snapshot and from the entries.
    world.control(revoked(KeyRole::Ledger, "ledger", &first));
    assert_eq!(state(&world, &first).revoked_at, Some(enrolled + 1));
    assert_eq!(Acceptor::restore(&world.acceptor.snapshot()).unwrap(), world.acceptor);
    let mut again = Acceptor::new();
    world.entries.iter().for_each(|entry| again.evolve(entry));
    assert_eq!(again, world.acceptor);
}

#[test]
fn a_receipt_leads_from_any_earlier_key_across_the_rotations_to_the_one_that_signed_it() {
    let mut world = World::new();
    let genesis = world.ledger.clone();
    let second = key(60);
    rotate(&mut world, second.clone());
    // One that never signed: it leads nowhere.
    world.enrol(KeyRole::Ledger, "ledger", public(&key(62)));
    rotate(&mut world, key(61));
    let chain = key_chain(world.acceptor.ledger_enrolments(), &world.ledger.verifying_key());
    assert_eq!(chain.len(), 2);
    let told = receipt(&world.ledger, chain);
    for trusted in [&genesis, &second, &world.ledger] {
        open_receipt(&told, &trusted.verifying_key(), "a").unwrap();
    }
    for stranger in [key(62), key(1), key(101)] {
        let refused = open_receipt(&told, &stranger.verifying_key(), "a").unwrap_err();
        assert_eq!(refused.reason, Reason::BadSignature, "{refused}");
    }
    assert!(key_chain(world.acceptor.ledger_enrolments(), &genesis.verifying_key()).is_empty());
}

#[test]
fn a_chain_that_does_not_hold_convinces_nobody() {
    let genesis = key(100);
    let trusted = genesis.verifying_key();
    let enrol = |by: &SigningKey, role: KeyRole, new: &SigningKey| {
        let kind = Kind::KeyEnrolled(v1::KeyEnrolled {
            role: role.into(),
            holder: "ledger".into(),
            public_key: public(new),
        });
        sign_control(by, &v1::ControlRecord { kind: Some(kind), ..v1::ControlRecord::default() })
    };
    let (second, third) = (key(60), key(61));
    let whole = vec![enrol(&genesis, KeyRole::Ledger, &second), enrol(&second, KeyRole::Ledger, &third)];
    open_receipt(&receipt(&third, whole.clone()), &trusted, "a").unwrap();
    let mut claimed = enrol(&third, KeyRole::Ledger, &third);
    claimed.public_key = public(&genesis);
    let mut flipped = whole.clone();
    let mut signature = flipped[0].signature.to_vec();
    signature[5] ^= 1;
    flipped[0].signature = signature.into();
    for (chain, reason) in [
        (vec![], Reason::BadSignature),
        (vec![whole[1].clone()], Reason::BadSignature),
        (whole[..1].to_vec(), Reason::BadSignature),
        (vec![whole[1].clone(), whole[0].clone()], Reason::BadSignature),
        (vec![enrol(&genesis, KeyRole::Metering, &third)], Reason::BadSignature),
        (vec![enrol(&third, KeyRole::Ledger, &third)], Reason::BadSignature),
        (vec![claimed], Reason::BadSignature),
        (flipped, Reason::BadSignature),
        (vec![whole[0].clone(); MAX_KEY_CHAIN + 1], Reason::Malformed),
    ] {
        let refused = open_receipt(&receipt(&third, chain.clone()), &trusted, "a").unwrap_err();
        assert_eq!(refused.reason, reason, "{chain:?}");
    }
    let refused = open_receipt(&receipt(&third, whole), &trusted, "b").unwrap_err();
    assert_eq!(refused.reason, Reason::Malformed);
}

#[test]
fn a_receipt_leads_across_so_many_rotations_and_no_more() {
    let mut world = World::new();
    let mut keys = vec![world.ledger.clone()];
    for seed in 0..=u8::try_from(MAX_KEY_CHAIN).unwrap() {
        rotate(&mut world, key(120 + seed));
        keys.push(world.ledger.clone());
    }
    let chain = key_chain(world.acceptor.ledger_enrolments(), &world.ledger.verifying_key());
    assert_eq!(chain.len(), MAX_KEY_CHAIN);
    let told = receipt(&world.ledger, chain);
    open_receipt(&told, &keys[1].verifying_key(), "a").unwrap();
    assert!(open_receipt(&told, &keys[0].verifying_key(), "a").is_err());
}
