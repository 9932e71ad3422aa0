//! Payloads that are opened, moved, changed and forged.

use proptest::prelude::*;

use super::*;
use crate::seal;

const UUID: &str = "0190b2a4-0000-7000-8000-00000000000f";

fn key(byte: u8) -> PayloadKey {
    PayloadKey::new(&[byte; KEY_LEN])
}

fn once(byte: u8) -> Once {
    Once { nonce: [byte; NONCE_LEN], salt: [byte; SALT_LEN] }
}

fn kinds() -> Vec<Kind> {
    vec![
        Kind::ExecutionAdmitted(v1::ExecutionAdmitted {
            caller: "alice@example.com".into(),
            profile: "strict".into(),
            program: "/usr/bin/printf".into(),
            arguments_redacted: vec!["-c".into(), String::new(), "needle".into()],
            input_digest: vec![4; 32].into(),
            limits: Some(v1::Limits { cpu_ms: 1000, ..v1::Limits::default() }),
            hold_id: UUID.into(),
            scope: "acme/x".into(),
            controls: vec![v1::Control { name: "seccomp".into(), ..v1::Control::default() }],
            reserved: vec![v1::MeterAmount { meter: "cpu_ms".into(), amount: 7 }],
            profile_digest: vec![6; 32].into(),
            inputs: vec![v1::File { path: "needle.csv".into(), ..v1::File::default() }],
        }),
        Kind::ExecutionDenied(v1::ExecutionDenied {
            caller: "alice@example.com".into(),
            gate: 2,
            reason: "needle".into(),
            program: "/usr/bin/printf".into(),
            scope: "acme".into(),
            meter: "cpu_ms".into(),
        }),
        Kind::ExecutionFinished(v1::ExecutionFinished {
            cause: 1,
            exit_code: 3,
            usage: Some(v1::Usage { wall_us: 5, output_bytes: 6, ..v1::Usage::default() }),
            stdout: Some(v1::Output { digest: vec![1; 32].into(), size: 6 }),
            stderr: Some(v1::Output::default()),
            hold_id: UUID.into(),
            result_digest: vec![7; 32].into(),
            detail: "needle".into(),
            signal: 0,
            reserved: vec![v1::MeterAmount { meter: "cpu_ms".into(), amount: 7 }],
            artifacts: vec![v1::File { path: "needle.png".into(), ..v1::File::default() }],
            egress: vec![v1::EgressTarget { host: "needle.net".into(), ..v1::EgressTarget::default() }],
        }),
    ]
}

fn whole(kind: Kind) -> v1::Event {
    v1::Event {
        agent_id: "agent-1".into(),
        epoch: 3,
        seq: 9,
        prev_hash: vec![5; 32].into(),
        time_unix_ms: 1 << 41,
        tenant: "acme".into(),
        execution_id: UUID.into(),
        skill: "sum-up".into(),
        confidential: None,
        kind: Some(kind),
    }
}

fn admitted() -> v1::Event {
    whole(kinds().remove(0))
}

/// An event that commits to this plaintext and encrypts it, whatever it is.
fn forged(event: &v1::Event, plaintext: &[u8]) -> v1::Event {
    let (key, once) = (key(1), once(2));
    let aad = place(event).0;
    let sealed = key.cipher.encrypt(&once.nonce.into(), Payload { msg: plaintext, aad: &aad }).unwrap();
    let confidential = v1::Confidential {
        key_id: key.id.0.to_vec().into(),
        nonce: once.nonce.to_vec().into(),
        ciphertext: sealed.into(),
        commitment: Purpose::PayloadCommitment.digest(plaintext).into(),
    };
    v1::Event { confidential: Some(confidential), ..event.clone() }
}

fn framed(payload: &v1::Event) -> Vec<u8> {
    [&[9; SALT_LEN][..], &payload.encode_to_vec(), &[END, 0, 0]].concat()
}

#[test]
fn what_is_concealed_is_opened_again_and_nothing_of_it_stays_in_clear() {
    for kind in kinds() {
        let event = whole(kind);
        let recorded = key(1).conceal(event.clone(), &once(2));
        let bytes = Bytes::from(recorded.encode_to_vec());
        for secret in ["alice", "printf", "needle"] {
            let holds = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!holds(&bytes), "{secret} in {recorded:?}");
            assert!(holds(&event.encode_to_vec()) || secret != "needle");
        }
        assert_eq!(seal::decode_event(&bytes).unwrap(), recorded);
        assert_eq!(key_id(&recorded), Some(key(1).id()));
        let opened = key(1).open(&recorded).unwrap();
        assert_eq!(v1::Event { confidential: None, ..opened.event.clone() }, event);
        assert_eq!(reveal(&recorded, &opened.plaintext), Ok(opened.event));
    }
}

#[test]
fn what_is_metered_and_found_by_stays_public() {
    let public = |place: usize| key(1).conceal(whole(kinds().remove(place)), &once(2)).kind.unwrap();
    let Kind::ExecutionAdmitted(admitted) = public(0) else { panic!() };
    assert_eq!(
        (admitted.profile.as_str(), admitted.scope.as_str(), admitted.hold_id.as_str()),
        ("strict", "acme/x", UUID)
    );
    assert!(admitted.limits.is_some() && admitted.controls.len() == 1);
    assert!(admitted.profile_digest.len() == 32 && admitted.inputs.is_empty());
    let Kind::ExecutionDenied(denied) = public(1) else { panic!() };
    assert_eq!((denied.gate, denied.scope.as_str(), denied.meter.as_str()), (2, "acme", "cpu_ms"));
    let Kind::ExecutionFinished(finished) = public(2) else { panic!() };
    assert_eq!((finished.cause, finished.exit_code, finished.hold_id.as_str()), (1, 3, UUID));
    assert_eq!(
        (admitted.reserved.len(), finished.reserved.len()),
        (1, 1),
        "what a lost execution is charged"
    );
    assert_eq!(finished.usage.unwrap().output_bytes, 6);
    assert!(finished.stdout.is_none() && finished.result_digest.is_empty() && finished.artifacts.is_empty());
}

#[test]
fn events_without_a_payload_stay_as_they_are() {
    let degraded = whole(Kind::ControlDegraded(v1::ControlDegraded { executed: true, ..Default::default() }));
    assert_eq!(key(1).conceal(degraded.clone(), &once(2)), degraded);
    assert_eq!(key(1).open(&degraded), Err(OpenError::Absent));
}

#[test]
fn a_ciphertext_that_was_moved_to_another_event_is_refused() {
    let recorded = key(1).conceal(admitted(), &once(2));
    let moved = |change: fn(&mut v1::Event)| {
        let mut event = recorded.clone();
        change(&mut event);
        key(1).open(&event)
    };
    assert!(moved(|_| ()).is_ok());
    assert_eq!(moved(|event| event.agent_id = "agent-2".into()), Err(OpenError::Undecryptable));
    assert_eq!(moved(|event| event.epoch += 1), Err(OpenError::Undecryptable));
    assert_eq!(moved(|event| event.seq += 1), Err(OpenError::Undecryptable));
    assert_eq!(moved(|event| event.tenant = "other".into()), Err(OpenError::Undecryptable));
    assert_eq!(moved(|event| event.execution_id.clear()), Err(OpenError::Undecryptable));
}

#[test]
fn what_was_changed_or_is_under_another_key_is_refused() {
    let recorded = key(1).conceal(admitted(), &once(2));
    let changed = |change: fn(&mut v1::Confidential)| {
        let mut event = recorded.clone();
        change(event.confidential.as_mut().unwrap());
        key(1).open(&event)
    };
    assert_eq!(changed(|c| c.ciphertext = flip(&c.ciphertext)), Err(OpenError::Undecryptable));
    assert_eq!(changed(|c| c.nonce = flip(&c.nonce)), Err(OpenError::Undecryptable));
    assert_eq!(changed(|c| c.commitment = flip(&c.commitment)), Err(OpenError::Commitment));
    assert!(matches!(changed(|c| c.nonce.truncate(12)), Err(OpenError::Malformed(_))));
    assert_eq!(key(2).open(&recorded), Err(OpenError::OtherKey(key(1).id())));
    // A key that only claims the id.
    let posing = PayloadKey { id: key(1).id(), ..key(2) };
    assert_eq!(posing.open(&recorded), Err(OpenError::Undecryptable));
    let opened = key(1).open(&recorded).unwrap();
    assert_eq!(reveal(&recorded, &flip(&opened.plaintext)), Err(OpenError::Commitment));
}

fn flip(bytes: &Bytes) -> Bytes {
    let mut bytes = bytes.to_vec();
    bytes[0] ^= 1;
    bytes.into()
}

#[test]
fn a_payload_may_not_stand_for_public_fields_even_if_the_agent_signed_it() {
    let public = v1::Event { confidential: None, ..key(1).conceal(admitted(), &once(2)) };
    let check = |payload: v1::Event| key(1).open(&forged(&public, &framed(&payload)));
    let kind = |admitted| v1::Event { kind: Some(Kind::ExecutionAdmitted(admitted)), ..v1::Event::default() };
    let program =
        || v1::ExecutionAdmitted { program: "/bin/true".into(), ..v1::ExecutionAdmitted::default() };
    assert!(check(kind(program())).is_ok());
    let is_refused = |payload| matches!(check(payload), Err(OpenError::Malformed(_)));
    assert!(is_refused(kind(v1::ExecutionAdmitted { scope: "other".into(), ..program() })));
    assert!(is_refused(v1::Event { tenant: "other".into(), ..kind(program()) }));
    assert!(is_refused(whole(kinds().remove(2))));
    assert!(is_refused(v1::Event { confidential: Some(v1::Confidential::default()), ..kind(program()) }));
    for plaintext in [&[0; SALT_LEN][..], &[1; 3], &[&[0; SALT_LEN][..], &[0xFF, END]].concat()] {
        let opened = reveal(&forged(&public, plaintext), plaintext);
        assert!(matches!(opened, Err(OpenError::Malformed(_))), "{plaintext:?}");
    }
    // Nor may the event hold a payload field in clear beside its ciphertext.
    let in_clear = forged(&admitted(), &framed(&kind(program())));
    assert!(matches!(key(1).open(&in_clear), Err(OpenError::Malformed(_))));
}

#[test]
fn lengths_are_checked_where_events_are_decoded() {
    let recorded = key(1).conceal(admitted(), &once(2));
    let check = |change: fn(&mut v1::Confidential)| {
        let mut event = recorded.clone();
        change(event.confidential.as_mut().unwrap());
        seal::decode_event(&event.encode_to_vec().into()).map_err(|refusal| refusal.detail)
    };
    assert!(check(|_| ()).is_ok());
    let refused = |change, field: &str| assert!(check(change).unwrap_err().contains(field), "{field}");
    refused(|c| c.key_id.truncate(15), "key_id");
    refused(|c| c.nonce = vec![0; 25].into(), "nonce");
    refused(|c| c.ciphertext.truncate(47), "ciphertext");
    refused(|c| c.ciphertext = vec![0; MAX_EVENT_BYTES + 1].into(), "ciphertext");
    refused(|c| c.commitment.clear(), "commitment");
}

#[test]
fn the_same_payload_is_committed_to_differently_each_time_and_lengths_say_little() {
    let first = key(1).conceal(admitted(), &once(2)).confidential.unwrap();
    let second = key(1).conceal(admitted(), &once(3)).confidential.unwrap();
    assert!(first.commitment != second.commitment && first.ciphertext != second.ciphertext);
    let length = |argument: &str| {
        let mut event = admitted();
        let Some(Kind::ExecutionAdmitted(admitted)) = &mut event.kind else { panic!() };
        admitted.arguments_redacted = vec![argument.into()];
        key(1).conceal(event, &once(2)).confidential.unwrap().ciphertext.len()
    };
    assert_eq!(length("yes"), length("no, and never"));
    assert_eq!(length("yes") % PAD_LEN, TAG_LEN);
}

proptest! {
    #[test]
    fn an_event_grows_by_no_more_than_is_said(length in 0..MAX_EVENT_BYTES) {
        let mut event = admitted();
        let Some(Kind::ExecutionAdmitted(admitted)) = &mut event.kind else { panic!() };
        admitted.arguments_redacted = vec!["x".repeat(length)];
        let before = event.encoded_len();
        let after = key(1).conceal(event, &once(2)).encoded_len();
        prop_assert!(after <= before + MAX_OVERHEAD, "{before} became {after}");
    }

    #[test]
    fn no_bytes_make_opening_panic(plaintext in prop::collection::vec(any::<u8>(), 0..200)) {
        let public = v1::Event { confidential: None, ..key(1).conceal(admitted(), &once(2)) };
        let _ = reveal(&forged(&public, &plaintext), &plaintext);
        let _ = reveal(&public, &plaintext);
    }
}
