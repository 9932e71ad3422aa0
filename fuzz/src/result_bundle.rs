//! Result bundles: the envelope, and the statement in it.

use ed25519_dalek::{Signer as _, SigningKey};
use exchequer_event::{
    bundle::{
        BundleParts, ContentDigests, Envelope, Hex, MAX_BUNDLE_BYTES, MAX_SIGNATURES, PAYLOAD_TYPE, SIGNED,
        Signature, Statement, key_id, pae, read_unverified, result_digest, sign_bundle, unsigned_bundle,
        verify_bundle,
    },
    v1,
};

fn key() -> SigningKey {
    SigningKey::from_bytes(&[4; 32])
}

/// A bundle, or the payload of one. A payload that is accepted is signed anew, by the key that it then names.
pub(crate) fn bundle(data: &[u8]) -> bool {
    let public = key().verifying_key();
    let read = read_unverified(data);
    if let Ok((statement, envelope)) = &read {
        assert!(data.len() <= MAX_BUNDLE_BYTES && envelope.signatures.len() <= MAX_SIGNATURES);
        assert_eq!(statement.encode(), envelope.payload);
        assert_eq!(Envelope::decode(&envelope.encode()).as_ref(), Ok(envelope));
    }
    if let Ok(verified) = verify_bundle(data, &public) {
        // Ed25519 is deterministic, and nobody else has the key.
        let signature = key().sign(&pae(PAYLOAD_TYPE, &verified.encode())).to_bytes();
        let (_, envelope) = read.as_ref().expect("what verifies can be read");
        assert!(envelope.signatures.iter().any(|of| of.sig == signature));
        assert_eq!(verified.predicate.signing_status, SIGNED);
    }
    let payload = Statement::decode(data);
    if let Ok(statement) = &payload {
        assert_eq!(statement.encode(), data);
    }
    if let Some(mut statement) = payload.as_ref().ok().or(read.as_ref().ok().map(|(of, _)| of)).cloned() {
        statement.predicate.agent.public_key = Hex(*public.as_bytes());
        SIGNED.clone_into(&mut statement.predicate.signing_status);
        let payload = statement.encode();
        let sig = key().sign(&pae(PAYLOAD_TYPE, &payload)).to_bytes().to_vec();
        let signatures = vec![Signature { key_id: key_id(&public), sig }];
        let anew = Envelope { payload_type: PAYLOAD_TYPE.to_owned(), payload, signatures }.encode();
        assert!(anew.len() > MAX_BUNDLE_BYTES || verify_bundle(&anew, &public) == Ok(statement));
    }
    read.is_ok() || payload.is_ok()
}

pub(crate) fn bundles() -> Vec<Vec<u8>> {
    let head = |seq| v1::AgentHead { agent_id: "a1".into(), epoch: 1, seq, hash: vec![9; 32].into() };
    let file = v1::File {
        path: "o".into(),
        digest: vec![1; 32].into(),
        sha256: vec![2; 32].into(),
        size: 1,
        ..v1::File::default()
    };
    let problem = v1::File { path: "p".into(), problem: "is a device".into(), ..v1::File::default() };
    let control = v1::Control { name: "seccomp".into(), status: 1, ..v1::Control::default() };
    let admitted = v1::ExecutionAdmitted {
        program: "/bin/true".into(),
        arguments_redacted: vec!["\u{1}\"é".into()],
        input_digest: vec![3; 32].into(),
        controls: vec![control],
        reserved: vec![v1::MeterAmount { meter: "cpu_ms".into(), amount: 1 }],
        inputs: vec![file.clone()],
        ..v1::ExecutionAdmitted::default()
    };
    let output = |size| Some(v1::Output { digest: vec![5; 32].into(), size });
    let finished = v1::ExecutionFinished {
        cause: 1,
        usage: Some(v1::Usage::default()),
        stdout: output(1),
        stderr: output(0),
        result_digest: result_digest([1, 0, 0], [&[5; 32], &[5; 32]], &[("o", &[1; 32]), ("p", &[])]).into(),
        artifacts: vec![file, problem],
        ..v1::ExecutionFinished::default()
    };
    let lost = v1::ExecutionFinished {
        cause: v1::ExitCause::Lost.into(),
        result_digest: result_digest([v1::ExitCause::Lost.into(), 0, 0], [&[], &[]], &[]).into(),
        ..v1::ExecutionFinished::default()
    };
    let (admitted_at, finished_at) = (head(1), head(2));
    let parts = |finished| BundleParts {
        tenant: "acme",
        execution_id: "0190b2a4-0000-7000-8000-000000000001",
        skill: "",
        admitted: &admitted,
        admitted_at: &admitted_at,
        admitted_unix_ms: 1,
        finished,
        finished_at: &finished_at,
        finished_unix_ms: 2,
        stdout: None,
        stderr: None,
    };
    let seen = BundleParts {
        stdout: Some(ContentDigests::of(b"x")),
        stderr: Some(ContentDigests::of(b"")),
        ..parts(&finished)
    };
    let signed = sign_bundle(&seen, &key()).unwrap();
    let unsigned = unsigned_bundle(&parts(&lost), &key().verifying_key()).unwrap();
    let payload = |bundle: &[u8]| read_unverified(bundle).unwrap().1.payload;
    let spaced = String::from_utf8(payload(&signed)).unwrap().replacen(':', ": ", 1).into_bytes();
    vec![payload(&signed), payload(&unsigned), spaced, b"{\"payload\":\"\"}".to_vec(), signed, unsigned]
}
