//! The life of the ledger's own key, and of an agent's, as an administrator leads it.

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf};

use ed25519_dalek::SigningKey;
use exchequer_auth::{Role, keys};
use exchequer_event::{
    audit::Auditor,
    control::sign_control,
    v1::{self, KeyRole, RejectionReason, control_record::Kind},
};
use exchequer_stream::Message;
use exchequer_testkit::{SimAgent, eventually};
use exchequer_tlog::{NoteSigner, Policy, SignedCheckpoint};
use prost::{Message as _, bytes::Bytes};
use tonic::Code;

use super::{
    ha::instance,
    support::{Log, ORIGIN, PATIENCE, World, checkpoint, covered, receipt, start},
};

const ADMIN: (&str, Option<&str>, &[Role]) = ("ada", None, &[Role::Admin]);

fn rotation(keep_old: bool) -> v1::RotateLedgerKeyRequest {
    v1::RotateLedgerKeyRequest { keep_old, reason: "a year old".into() }
}

fn is_signed_by(signed: &SignedCheckpoint, key: &SigningKey) -> bool {
    let key = NoteSigner::new(ORIGIN, key.clone()).unwrap().verifier().clone();
    let policy = Policy { origin: ORIGIN.into(), log_keys: vec![key], witnesses: Vec::new(), quorum: 0 };
    signed.verify(&policy).is_ok()
}

/// State of each ledger key that the log names: the key, and whether it is revoked.
async fn ledger_keys(world: &World) -> Vec<(Vec<u8>, bool)> {
    let request = v1::ListKeysRequest { role: KeyRole::Ledger.into() };
    let listed = world.client().list_keys(world.request(ADMIN, request)).await.unwrap().into_inner().keys;
    listed.into_iter().map(|key| (key.public_key.to_vec(), key.revoked)).collect()
}

fn beside(key_file: &std::path::Path) -> Vec<String> {
    let dir = std::fs::read_dir(key_file.parent().unwrap()).unwrap();
    let names = dir.map(|item| item.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("ledger.key.")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_ledger_signs_by_the_new_key_and_every_earlier_trust_leads_there() {
    let mut agent = SimAgent::new("a1");
    let world = World::new(&[&agent]).await;
    world.take(&mut agent, "acme", 2).await;
    let old = keys::load(&world.options.key_file).unwrap();
    let before = checkpoint(&world.service);
    let who = ("tom", Some("acme"), &[Role::TenantAdmin, Role::Auditor][..]);
    let refused = world.client().rotate_ledger_key(world.request(who, rotation(false))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let long = v1::RotateLedgerKeyRequest { reason: "x".repeat(513), ..rotation(false) };
    let refused = world.client().rotate_ledger_key(world.request(ADMIN, long)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    // A standby, whose key file nobody has replaced yet.
    let second = instance(world.dir.path(), "second", &world.options);
    let standby = start(&second, &world.stream).await;
    covered(&standby, before.checkpoint().size()).await;
    let request = world.request(ADMIN, rotation(false));
    let answer = world.client().rotate_ledger_key(request).await.unwrap().into_inner();
    let new = keys::load(&world.options.key_file).unwrap();
    assert_eq!(answer.public_key, new.verifying_key().as_bytes().as_slice());
    assert_eq!(answer.replaced_key, old.verifying_key().as_bytes().as_slice());
    assert!(answer.revoked && answer.verifier_key == world.service.verifier_key());
    assert_eq!(std::fs::metadata(&world.options.key_file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(beside(&world.options.key_file), Vec::<String>::new(), "nothing is left beside the key");
    let states = [&old, &new].map(|key| key.verifying_key().as_bytes().to_vec());
    assert_eq!(ledger_keys(&world).await, [(states[0].clone(), true), (states[1].clone(), false)]);

    // Whoever knows the first key only is told by the new one.
    world.take(&mut agent, "acme", 3).await;
    let seq = agent.seq();
    let told = receipt(&world.stream, &old.verifying_key(), "a1", |receipt| {
        receipt.head.as_ref().is_some_and(|head| head.seq == seq)
    })
    .await;
    assert_eq!(told.key_chain.len(), 1);
    let after = checkpoint(&world.service);
    assert!(is_signed_by(&after, &new) && !is_signed_by(&after, &old));
    assert!(is_signed_by(&before, &old), "the old checkpoints stay verifiable");

    // The old key states nothing any more.
    let enrolled = v1::KeyEnrolled {
        role: KeyRole::Agent.into(),
        holder: "thief".into(),
        public_key: states[0].clone().into(),
    };
    let record = v1::ControlRecord { kind: Some(Kind::KeyEnrolled(enrolled)), ..Default::default() };
    let size = after.checkpoint().size();
    let forged = sign_control(&old, &record).encode_to_vec();
    world.stream.append(Message::new("control.keys", forged)).await.unwrap();
    world.covered(size + 1).await;
    assert_eq!(world.log().rejections().last(), Some(&RejectionReason::UnknownKey));

    // The standby serves on, says what it lacks, and states nothing; it signs as soon as it has the key.
    covered(&standby, size + 1).await;
    let lacks =
        || std::future::ready(format!("{:?}", standby.readiness()).contains("was replaced and revoked"));
    eventually(PATIENCE, lacks).await;
    let World { dir, stream, service, options, .. } = world;
    service.stop().await;
    let batch = agent.batch("acme", 1);
    stream.append(Message::new(agent.subject(), batch)).await.unwrap();
    assert!(format!("{:?}", standby.readiness()).contains("was replaced and revoked"));
    let copy = second.key_file.with_extension("new");
    std::fs::copy(&options.key_file, &copy).unwrap();
    std::fs::rename(copy, &second.key_file).unwrap();
    let seq = agent.seq();
    receipt(&stream, &old.verifying_key(), "a1", |told| {
        told.head.as_ref().is_some_and(|head| head.seq == seq)
    })
    .await;
    assert!(is_signed_by(&checkpoint(&standby), &new) && standby.readiness().is_ready());
    standby.stop().await;

    // Both go on from their directories, whose histories hold checkpoints of both keys.
    let service = start(&options, &stream).await;
    covered(&service, size + 3).await;
    service.stop().await;
    let vkey = NoteSigner::new(ORIGIN, new).unwrap().verifier().to_string();
    let log = Log::read(&second.data, &vkey);
    let mut auditor = Auditor::new();
    for bytes in &log.entries {
        auditor.check(&exchequer_event::entry::decode(bytes).unwrap()).unwrap();
    }
    drop(dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_old_key_stays_enrolled_and_rotations_follow_each_other() {
    let agent = SimAgent::new("a1");
    let world = World::new(&[&agent]).await;
    let genesis = world.service.public_key();
    for (round, keep_old) in [true, false, true].into_iter().enumerate() {
        let request = world.request(ADMIN, rotation(keep_old));
        let answer = world.client().rotate_ledger_key(request).await.unwrap().into_inner();
        assert_eq!(answer.revoked, !keep_old);
        let revoked: Vec<_> = ledger_keys(&world).await.into_iter().map(|(_, revoked)| revoked).collect();
        assert_eq!(
            revoked,
            [vec![false, false], vec![false, true, false], vec![false, true, false, false]][round]
        );
    }
    let mut agent = agent;
    world.take(&mut agent, "acme", 1).await;
    let seq = agent.seq();
    let told =
        receipt(&world.stream, &genesis, "a1", |told| told.head.as_ref().is_some_and(|head| head.seq == seq))
            .await;
    assert_eq!(told.key_chain.len(), 3);
}

/// The files and records that a crash leaves after each step of a rotation.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_a_crash_interrupted_is_finished_or_dropped_at_the_next_start() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum After {
        Note,
        PendingKey,
        Enrolment,
        EnrolmentKeepingTheOld,
        Swap,
        Revocation,
    }
    for crash in [
        After::Note,
        After::PendingKey,
        After::Enrolment,
        After::EnrolmentKeepingTheOld,
        After::Swap,
        After::Revocation,
    ] {
        let mut agent = SimAgent::new("a1");
        let world = World::new(&[&agent]).await;
        world.take(&mut agent, "acme", 1).await;
        let World { dir, stream, service, options, .. } = world;
        drop(service);
        let old = keys::load(&options.key_file).unwrap();
        let instance = std::fs::read_to_string(options.data.join("instance")).unwrap();
        let file =
            |suffix: &str| PathBuf::from(format!("{}.{instance}.{suffix}", options.key_file.display()));
        if crash != After::EnrolmentKeepingTheOld {
            let note = format!("{}\nada\na year old", hex::encode(old.verifying_key().as_bytes()));
            std::fs::write(file("revoke"), note).unwrap();
        }
        let mut new = old.clone();
        if crash != After::Note {
            new = keys::create(file("pending")).unwrap();
        }
        let public = |key: &SigningKey| Bytes::copy_from_slice(key.verifying_key().as_bytes());
        let state = async |by: &SigningKey, kind: Kind| {
            let record = v1::ControlRecord { kind: Some(kind), actor: "ada".into(), time_unix_ms: 1 };
            stream
                .append(Message::new("control.keys", sign_control(by, &record).encode_to_vec()))
                .await
                .unwrap();
        };
        let (role, holder) = (i32::from(KeyRole::Ledger), "ledger".to_owned());
        let is_enrolled = !matches!(crash, After::Note | After::PendingKey);
        if is_enrolled {
            let (public_key, holder) = (public(&new), holder.clone());
            state(&old, Kind::KeyEnrolled(v1::KeyEnrolled { role, holder, public_key })).await;
        }
        if matches!(crash, After::Swap | After::Revocation) {
            std::fs::rename(file("pending"), &options.key_file).unwrap();
        }
        if crash == After::Revocation {
            let (public_key, reason) = (public(&old), String::new());
            state(&new, Kind::KeyRevoked(v1::KeyRevoked { role, holder, public_key, reason })).await;
        }

        let service = start(&options, &stream).await;
        let expected = if is_enrolled { &new } else { &old };
        let is_settled = || {
            let is_done = !file("pending").exists() && !file("revoke").exists();
            std::future::ready(is_done && service.public_key() == expected.verifying_key())
        };
        eventually(PATIENCE, is_settled).await;
        assert_eq!(keys::load(&options.key_file).unwrap().to_bytes(), expected.to_bytes(), "{crash:?}");
        let batch = agent.batch("acme", 1);
        stream.append(Message::new(agent.subject(), batch)).await.unwrap();
        let seq = agent.seq();
        receipt(&stream, &old.verifying_key(), "a1", |told| {
            told.head.as_ref().is_some_and(|head| head.seq == seq)
        })
        .await;
        assert!(is_signed_by(&checkpoint(&service), expected), "{crash:?}");
        service.stop().await;
        let vkey = NoteSigner::new(ORIGIN, expected.clone()).unwrap().verifier().to_string();
        let log = Log::read(&options.data, &vkey);
        let mut auditor = Auditor::new();
        for bytes in &log.entries {
            auditor.check(&exchequer_event::entry::decode(bytes).unwrap()).unwrap();
        }
        let states = auditor.acceptor().keys().iter().filter(|key| key.role == KeyRole::Ledger);
        let states: Vec<_> = states.map(|key| (key.key, key.revoked)).collect();
        let old_state = (old.verifying_key(), is_enrolled && crash != After::EnrolmentKeepingTheOld);
        let expected =
            if is_enrolled { vec![old_state, (new.verifying_key(), false)] } else { vec![old_state] };
        assert_eq!(states, expected, "{crash:?}");
        drop(dir);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_ledger_that_signs_rotates() {
    let agent = SimAgent::new("a1");
    let mut world = World::new(&[&agent]).await;
    let second = instance(world.dir.path(), "second", &world.options);
    let standby = start(&second, &world.stream).await;
    let stands_by =
        || std::future::ready(format!("{:?}", standby.readiness()).contains("holds the signing lease"));
    eventually(PATIENCE, stands_by).await;
    let holder = std::mem::replace(&mut world.service, standby);
    let refused = world.client().rotate_ledger_key(world.request(ADMIN, rotation(false))).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("holds the signing lease"), "{refused:?}");
    assert_eq!(beside(&second.key_file), Vec::<String>::new());
    drop(holder);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_goes_on_with_a_second_key_and_the_revoked_first_is_refused() {
    let mut agent = SimAgent::new("a1");
    let world = World::new(&[&agent]).await;
    world.take(&mut agent, "acme", 2).await;
    let (first, second) = (agent.key().clone(), SigningKey::from_bytes(&[55; 32]));
    let public = |key: &SigningKey| Bytes::copy_from_slice(key.verifying_key().as_bytes());
    let (role, holder) = (i32::from(KeyRole::Agent), "a1".to_owned());
    let enroll = v1::EnrollKeyRequest { role, holder: holder.clone(), public_key: public(&second) };
    let size = checkpoint(&world.service).checkpoint().size();
    world.client().enroll_key(world.request(ADMIN, enroll)).await.unwrap();
    world.covered(size + 1).await;
    let mut agent = agent.with_key(second);
    let size = world.take(&mut agent, "acme", 1).await;
    let revoke = v1::RevokeKeyRequest { role, holder, public_key: public(&first), reason: "rotated".into() };
    world.client().revoke_key(world.request(ADMIN, revoke)).await.unwrap();
    world.covered(size + 1).await;
    let mut thief = agent.clone().with_key(first);
    world.stream.append(Message::new(thief.subject(), thief.batch("acme", 1))).await.unwrap();
    world.covered(size + 2).await;
    assert_eq!(world.log().rejections(), [RejectionReason::BadSignature]);
    world.take(&mut agent, "acme", 1).await;
    let log = world.log();
    let mut auditor = Auditor::new();
    for bytes in &log.entries {
        auditor.check(&exchequer_event::entry::decode(bytes).unwrap()).unwrap();
    }
    assert_eq!(auditor.counts().events, agent.seq());
}
