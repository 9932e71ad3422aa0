//! What a bundle is, what is refused, and with which words.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use prost::bytes::Bytes;
use serde_json::{Value as Json, json};

use super::*;
use crate::v1;

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn head(seq: u64) -> v1::AgentHead {
    v1::AgentHead { agent_id: "a1".into(), epoch: 2, seq, hash: Bytes::from(vec![9; 32]) }
}

fn file(path: &str, bytes: &[u8]) -> v1::File {
    let digests = ContentDigests::of(bytes);
    v1::File {
        path: path.into(),
        digest: Bytes::copy_from_slice(&digests.blake3),
        sha256: Bytes::copy_from_slice(&digests.sha256),
        size: digests.size,
        problem: String::new(),
    }
}

fn admitted() -> v1::ExecutionAdmitted {
    v1::ExecutionAdmitted {
        caller: "alice".into(),
        profile: "strict".into(),
        program: "/bin/echo".into(),
        arguments_redacted: vec!["--token=[redacted]".into(), "\u{1}\"\\/\u{7f}é\u{1f600}".into()],
        input_digest: vec![1; 32].into(),
        limits: Some(v1::Limits { cpu_ms: 1, wall_ms: 2, memory_bytes: 3, output_bytes: 4, egress_bytes: 5 }),
        hold_id: "0_0190b2a4-0000-7000-8000-00000000000f".into(),
        scope: "acme/skills".into(),
        controls: vec![v1::Control {
            name: "seccomp".into(),
            status: v1::ControlStatus::Enforced.into(),
            evidence: "Seccomp: 2".into(),
            remedy: String::new(),
        }],
        reserved: vec![v1::MeterAmount { meter: "cpu_ms".into(), amount: u64::MAX }],
        profile_digest: vec![2; 32].into(),
        inputs: vec![file("in.txt", b"in")],
    }
}

fn finished() -> v1::ExecutionFinished {
    let missing =
        v1::File { path: "no.txt".into(), problem: "is a symbolic link".into(), ..v1::File::default() };
    let mut finished = v1::ExecutionFinished {
        cause: v1::ExitCause::Exited.into(),
        exit_code: 3,
        usage: Some(v1::Usage { wall_us: 9, memory_source: "cgroup1".into(), ..v1::Usage::default() }),
        stdout: Some(v1::Output { digest: vec![3; 32].into(), size: 3 }),
        stderr: Some(v1::Output { digest: vec![4; 32].into(), size: 0 }),
        hold_id: admitted().hold_id,
        artifacts: vec![file("out.txt", b"out"), missing],
        egress: vec![v1::EgressTarget { host: "a.example".into(), port: 443, sent: 7, ..Default::default() }],
        ..v1::ExecutionFinished::default()
    };
    let artifacts: [(&str, &[u8]); 2] = [("out.txt", &ContentDigests::of(b"out").blake3), ("no.txt", &[])];
    finished.result_digest = result_digest([finished.cause, 3, 0], [&[3; 32], &[4; 32]], &artifacts).into();
    finished
}

/// Makes parts of these records and hands them over.
fn with_parts<T>(
    admitted: &v1::ExecutionAdmitted,
    finished: &v1::ExecutionFinished,
    then: impl FnOnce(&BundleParts<'_>) -> T,
) -> T {
    let seen = finished.stdout.is_some();
    then(&BundleParts {
        tenant: "acme",
        execution_id: "0190b2a4-0000-7000-8000-000000000001",
        skill: "sum-up",
        admitted,
        admitted_at: &head(4),
        admitted_unix_ms: 1_750_000_000_000,
        finished,
        finished_at: &head(5),
        finished_unix_ms: 1_750_000_000_001,
        stdout: seen.then(|| ContentDigests::of(b"out")),
        stderr: seen.then(|| ContentDigests::of(b"")),
    })
}

fn signed() -> Vec<u8> {
    with_parts(&admitted(), &finished(), |parts| sign_bundle(parts, &key())).unwrap()
}

fn verify(bytes: &[u8]) -> Result<Statement, BundleError> {
    verify_bundle(bytes, &key().verifying_key())
}

/// A bundle whose payload was changed and signed anew by the right key.
fn resigned(change: impl FnOnce(&mut Json)) -> Vec<u8> {
    let (statement, _) = read_unverified(&signed()).unwrap();
    let mut payload = serde_json::to_value(&statement).unwrap();
    change(&mut payload);
    sign_payload(&serde_json::to_vec(&payload).unwrap())
}

fn sign_payload(payload: &[u8]) -> Vec<u8> {
    let sig = key().sign(&pae(PAYLOAD_TYPE, payload)).to_bytes().to_vec();
    let signature = Signature { key_id: key_id(&key().verifying_key()), sig };
    encode(payload.to_vec(), vec![signature]).unwrap()
}

#[test]
fn the_bytes_that_are_signed_are_those_of_the_specification() {
    // The example of DSSE's protocol.md.
    let expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world";
    assert_eq!(pae("http://example.com/HelloWorld", b"hello world"), expected);
}

#[test]
fn a_bundle_says_what_was_recorded_and_names_each_subject_by_plain_digests() {
    let statement = verify(&signed()).unwrap();
    let names: Vec<_> = statement.subject.iter().map(|subject| subject.name.as_str()).collect();
    assert_eq!(names, ["stdout", "stderr", "artifacts/out.txt", "result"]);
    let digest = statement.subject("stdout").unwrap().digest;
    assert_eq!(digest.sha256.to_string(), "762069bc07a6e1b5df123a5ae7bd91c10daa04694fbaa17fba0cd6a8dcce8f22");
    assert_eq!(digest.blake3.0, *blake3::hash(b"out").as_bytes());
    let result = statement.predicate.result.encode();
    assert_eq!(statement.subject("result").unwrap().digest, ContentDigests::of(&result).into());
    let predicate = &statement.predicate;
    assert_eq!((predicate.result.cause.as_str(), predicate.result.exit_code), ("exited", 3));
    assert_eq!(predicate.result.artifacts[1].problem, "is a symbolic link");
    assert_eq!((predicate.outcome.epoch, predicate.outcome.seq), (2, 5));
    assert_eq!(predicate.hold.reserved[0].amount, u64::MAX);
    assert_eq!(predicate.controls[0].status, "enforced");
    assert_eq!((predicate.egress[0].host.as_str(), predicate.egress[0].sent), ("a.example", 7));
    assert_eq!(predicate.signing_status, SIGNED);
}

/// The same with members in the order of their names.
fn sorted(value: &Json) -> Json {
    match value {
        Json::Object(members) => {
            let members: std::collections::BTreeMap<_, _> =
                members.iter().map(|(name, value)| (name.clone(), sorted(value))).collect();
            Json::Object(members.into_iter().collect())
        }
        Json::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

#[test]
fn equal_parts_are_equal_bytes_and_members_stand_in_the_order_of_their_names() {
    assert_eq!(signed(), signed());
    let (statement, envelope) = read_unverified(&signed()).unwrap();
    let value: Json = serde_json::from_slice(&envelope.payload).unwrap();
    assert_eq!(serde_json::to_vec(&sorted(&value)).unwrap(), envelope.payload);
    assert_eq!(Statement::decode(&envelope.payload), Ok(statement));
}

#[test]
fn an_execution_whose_end_nobody_saw_has_a_result_and_no_streams() {
    let lost = v1::ExecutionFinished {
        cause: v1::ExitCause::Lost.into(),
        hold_id: admitted().hold_id,
        detail: "the supervisor ended".into(),
        result_digest: result_digest([v1::ExitCause::Lost.into(), 0, 0], [&[], &[]], &[]).into(),
        ..v1::ExecutionFinished::default()
    };
    let bytes = with_parts(&admitted(), &lost, |parts| sign_bundle(parts, &key())).unwrap();
    let statement = verify(&bytes).unwrap();
    assert_eq!((statement.subject.len(), statement.predicate.usage), (1, None));
}

#[test]
fn a_bundle_that_nobody_signed_says_so_and_is_refused_with_that_word() {
    let public = key().verifying_key();
    let bytes = with_parts(&admitted(), &finished(), |parts| unsigned_bundle(parts, &public)).unwrap();
    let (statement, envelope) = read_unverified(&bytes).unwrap();
    assert_eq!((statement.predicate.signing_status.as_str(), envelope.signatures.len()), (UNSIGNED, 0));
    assert_eq!(verify(&bytes), Err(BundleError::Unsigned));
    assert_eq!(BundleError::Unsigned.to_string(), "unsigned");
    // Signatures that were taken away, and a signature over `unsigned`.
    let mut stripped = Envelope::decode(&signed()).unwrap();
    stripped.signatures.clear();
    assert_eq!(verify(&stripped.encode()), Err(BundleError::Unsigned));
    let refused = verify(&resigned(|payload| payload["predicate"]["signing_status"] = json!(UNSIGNED)));
    assert!(matches!(refused, Err(BundleError::Inconsistent(reason)) if reason.contains("signing_status")));
}

#[test]
fn every_changed_byte_of_payload_type_and_signature_is_refused() {
    let envelope = Envelope::decode(&signed()).unwrap();
    for at in 0..envelope.payload.len() {
        let mut changed = envelope.clone();
        changed.payload[at] ^= 1;
        assert_eq!(verify(&changed.encode()), Err(BundleError::BadSignature), "payload byte {at}");
    }
    for at in 0..64 {
        let mut changed = envelope.clone();
        changed.signatures[0].sig[at] ^= 1;
        assert_eq!(verify(&changed.encode()), Err(BundleError::BadSignature), "signature byte {at}");
    }
    let mut changed = envelope.clone();
    changed.payload_type.push('x');
    assert!(matches!(verify(&changed.encode()), Err(BundleError::PayloadType(_))));
    let mut cut = envelope;
    cut.signatures[0].sig.pop();
    assert_eq!(verify(&cut.encode()), Err(BundleError::BadSignature));
}

#[test]
fn the_key_decides_and_not_the_id_that_the_envelope_names() {
    let other = SigningKey::from_bytes(&[8; 32]).verifying_key();
    let (expected, found) = (key_id(&other), key_id(&key().verifying_key()));
    assert_eq!(
        verify_bundle(&signed(), &other),
        Err(BundleError::OtherKey { expected: expected.clone(), found })
    );
    let mut renamed = Envelope::decode(&signed()).unwrap();
    renamed.signatures[0].key_id = expected;
    assert_eq!(verify_bundle(&renamed.encode(), &other), Err(BundleError::BadSignature));
    renamed.signatures[0].key_id = String::new();
    assert_eq!(verify_bundle(&renamed.encode(), &other), Err(BundleError::BadSignature));
    assert!(verify(&renamed.encode()).is_ok(), "an id may be left out");
    // Somebody else's signature beside it changes nothing.
    let mut more = Envelope::decode(&signed()).unwrap();
    more.signatures.insert(0, Signature { key_id: "x".into(), sig: vec![1; 64] });
    assert!(verify(&more.encode()).is_ok());
    more.signatures = vec![more.signatures[0].clone(); MAX_SIGNATURES + 1];
    assert!(matches!(verify(&more.encode()), Err(BundleError::Envelope(_))));
    // A bundle of another agent, signed with this key.
    let refused =
        verify(&resigned(|payload| payload["predicate"]["agent"]["public_key"] = json!("0".repeat(64))));
    assert!(matches!(refused, Err(BundleError::Inconsistent(reason)) if reason.contains("public_key")));
}

#[test]
fn a_payload_in_any_other_encoding_is_refused_under_a_good_signature() {
    let (statement, envelope) = read_unverified(&signed()).unwrap();
    let text = String::from_utf8(envelope.payload.clone()).unwrap();
    assert!(verify(&sign_payload(text.as_bytes())).is_ok());
    let not_canonical = [
        serde_json::to_string_pretty(&statement).unwrap(),
        format!("{text}\n"),
        text.replacen("\"acme\"", "\"\\u0061cme\"", 1),
    ];
    for other in not_canonical {
        assert_eq!(verify(&sign_payload(other.as_bytes())), Err(BundleError::NotCanonical), "{other}");
    }
    let upper = text.replacen(
        "\"agent\":{\"id\":\"a1\",\"public_key\":\"ea",
        "\"agent\":{\"id\":\"a1\",\"public_key\":\"EA",
        1,
    );
    assert_ne!(upper, text);
    assert_eq!(verify(&sign_payload(upper.as_bytes())), Err(BundleError::NotCanonical));
    let refused = [
        text.replacen("\"tenant\":", "\"tenant\":\"acme\",\"tenant\":", 1),
        text.replacen("\"tenant\":", "\"new\":1,\"tenant\":", 1),
        text.replacen("\"exit_code\":3", "\"exit_code\":3.0", 1),
        text.replacen("\"cause\":\"exited\"", "\"cause\":\"vanished\"", 1),
        text.replacen("\"status\":\"enforced\"", "\"status\":\"probably\"", 1),
        text.replacen(STATEMENT_TYPE, "https://in-toto.io/Statement/v0.1", 1),
        text.replacen(PREDICATE_TYPE, "urn:exchequer:execution:v2", 1),
        text[..text.len() - 1].to_owned(),
        "{}".to_owned(),
        "[".repeat(100_000),
    ];
    for other in refused {
        let refused = verify(&sign_payload(other.as_bytes()));
        assert!(matches!(refused, Err(BundleError::Statement(_))), "{refused:?}: {other:.2000}");
    }
}

#[test]
fn subjects_that_are_not_those_of_the_result_are_refused_under_a_good_signature() {
    type Change = fn(&mut Json);
    let changes: [Change; 13] = [
        |payload| payload["subject"][0]["digest"]["sha256"] = json!("0".repeat(64)),
        |payload| payload["subject"][2]["digest"]["blake3"] = json!("0".repeat(64)),
        |payload| payload["subject"][2]["name"] = json!("artifacts/other.txt"),
        |payload| payload["subject"][3]["digest"]["blake3"] = json!("0".repeat(64)),
        |payload| drop(payload["subject"].as_array_mut().unwrap().remove(0)),
        |payload| drop(payload["subject"].as_array_mut().unwrap().pop()),
        |payload| {
            let subjects = payload["subject"].as_array_mut().unwrap();
            subjects.push(subjects[0].clone());
        },
        |payload| payload["predicate"]["result"]["exit_code"] = json!(0),
        |payload| payload["predicate"]["outcome"]["seq"] = json!(4),
        |payload| payload["predicate"]["recorded"]["stdout_digest"] = json!("0".repeat(64)),
        |payload| payload["predicate"]["recorded"]["stderr_digest"] = json!("0".repeat(64)),
        |payload| payload["predicate"]["recorded"]["result_digest"] = json!("0".repeat(64)),
        |payload| payload["predicate"]["result"]["artifacts"][0]["problem"] = json!("is a device"),
    ];
    for (place, change) in changes.into_iter().enumerate() {
        let refused = verify(&resigned(change));
        assert!(matches!(refused, Err(BundleError::Inconsistent(_))), "change {place}: {refused:?}");
    }
}

#[test]
fn an_envelope_is_read_as_dsse_says_and_no_other_way() {
    let text = String::from_utf8(signed()).unwrap();
    // Members that DSSE does not name are passed over; spaces are allowed.
    let more = text.replacen('{', "{ \"mediaType\": {\"x\": [1]},\n", 1);
    assert!(verify(more.as_bytes()).is_ok());
    let payload = Envelope::decode(text.as_bytes()).unwrap().payload;
    let encoded = STANDARD.encode(&payload);
    let refused = [
        text.replacen("\"payloadType\"", "\"payload\":\"\",\"payloadType\"", 1),
        text.replacen("\"payloadType\"", "\"payloadtype\"", 1),
        text.replacen(&encoded, encoded.trim_end_matches('='), 1).replacen("==\"", "\"", 1),
        text.replacen(&encoded, &encoded.replace('+', "-").replace('/', "_"), 1).replacen(
            "\"sig\":\"",
            "\"sig\":\"-",
            1,
        ),
        text.replacen(&encoded, &format!("{}\\n{}", &encoded[..4], &encoded[4..]), 1),
        format!("{text}{text}"),
        "null".to_owned(),
        format!("{{\"x\":{}", "[".repeat(100_000)),
    ];
    for other in refused {
        let refused = verify(other.as_bytes());
        assert!(matches!(refused, Err(BundleError::Envelope(_))), "{refused:?}");
    }
    assert_eq!(verify(&vec![b' '; MAX_BUNDLE_BYTES + 1]), Err(BundleError::TooLarge(MAX_BUNDLE_BYTES + 1)));
}

#[test]
fn a_bundle_is_not_made_of_records_that_do_not_belong_together() {
    let refused = |admitted: &v1::ExecutionAdmitted, finished: &v1::ExecutionFinished| {
        with_parts(admitted, finished, |parts| sign_bundle(parts, &key())).unwrap_err()
    };
    let other = v1::ExecutionFinished { hold_id: "another".into(), ..finished() };
    assert!(matches!(refused(&admitted(), &other), BundleError::Inconsistent(_)));
    let longer = v1::Output { digest: vec![3; 32].into(), size: 4 };
    let other = v1::ExecutionFinished { stdout: Some(longer), ..finished() };
    assert_eq!(refused(&admitted(), &other), BundleError::Parts("stdout"));
    let short = v1::ExecutionAdmitted { input_digest: vec![1; 31].into(), ..admitted() };
    assert_eq!(refused(&short, &finished()), BundleError::Parts("input_digest"));
    let huge = v1::ExecutionAdmitted { caller: "x".repeat(MAX_BUNDLE_BYTES), ..admitted() };
    assert!(matches!(refused(&huge, &finished()), BundleError::TooLarge(_)));
}

#[test]
fn a_public_key_is_written_as_openssl_writes_it_and_its_id_is_the_digest_of_that() {
    // RFC 8410, section 10.1 and 10.3: the example key and its SubjectPublicKeyInfo.
    let public = "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1";
    let public: [u8; 32] = hex::decode(public).unwrap().try_into().unwrap();
    let public = VerifyingKey::from_bytes(&public).unwrap();
    let pem = "-----BEGIN PUBLIC KEY-----\n\
               MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
               -----END PUBLIC KEY-----\n";
    assert_eq!(public_key_pem(&public), pem);
    assert_eq!(public_key_from_pem(pem), Some(public));
    assert_eq!(key_id(&public), "a1e9156054e04fac899ae9f275132cdc07a5dbc4ea2c2ad3a1ffc6e0d253681f");
    for bad in
        ["", "x", &pem.replace("MCow", "MCox"), &pem.replace("PUBLIC", "PRIVATE"), &pem.replace("uE=", "u=")]
    {
        assert_eq!(public_key_from_pem(bad), None, "{bad}");
    }
    // The identity point, of order 1: any signature can be made to verify under it.
    let weak = [&[1][..], &[0; 31]].concat();
    let weak = VerifyingKey::from_bytes(&weak.try_into().unwrap()).unwrap();
    assert_eq!(public_key_from_pem(&public_key_pem(&weak)), None);
}

proptest! {
    #[test]
    fn whatever_text_the_records_hold_a_bundle_of_it_verifies(text in any::<String>(), number in any::<u64>()) {
        let admitted = v1::ExecutionAdmitted {
            caller: text.clone(),
            program: text.clone(),
            arguments_redacted: vec![text.clone()],
            reserved: vec![v1::MeterAmount { meter: text, amount: number }],
            ..admitted()
        };
        let bytes = with_parts(&admitted, &finished(), |parts| sign_bundle(parts, &key())).unwrap();
        let statement = verify(&bytes).unwrap();
        prop_assert_eq!(&statement.predicate.caller, &admitted.caller);
        prop_assert_eq!(statement.predicate.hold.reserved[0].amount, number);
    }
}
