//! Every way in which a token can be wrong, each with its exact error, next to tokens that are right.
#![allow(clippy::unwrap_used, missing_docs)]

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use exchequer_auth::{Caller, JwksError, MAX_TOKEN_BYTES, Role, TokenError, Verifier, VerifierOptions};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;

fn ed() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn ec() -> EncodingKey {
    EncodingKey::from_ec_pem(include_bytes!("keys/p256.pem")).unwrap()
}

fn rsa() -> EncodingKey {
    EncodingKey::from_rsa_pem(include_bytes!("keys/rsa2048.pem")).unwrap()
}

fn ed_jwk() -> Value {
    let x = URL_SAFE_NO_PAD.encode(ed().verifying_key().as_bytes());
    json!({ "kty": "OKP", "crv": "Ed25519", "kid": "ed", "use": "sig", "alg": "EdDSA", "x": x })
}

fn jwk(key: &EncodingKey, algorithm: Algorithm, kid: &str) -> Value {
    let mut value = serde_json::to_value(Jwk::from_encoding_key(key, algorithm).unwrap()).unwrap();
    value["kid"] = json!(kid);
    value
}

fn jwks() -> Value {
    json!({ "keys": [ed_jwk(), jwk(&ec(), Algorithm::ES256, "ec"), jwk(&rsa(), Algorithm::RS256, "rsa")] })
}

fn claims() -> Value {
    json!({ "iss": "issuer", "aud": "exchequer", "sub": "alice", "exp": NOW + 60, "tenant": "acme", "roles": ["user"] })
}

/// The valid claims with some replaced; `null` takes one away.
fn with(changes: &Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        }
    }
    claims
}

fn part(value: &str) -> String {
    URL_SAFE_NO_PAD.encode(value)
}

fn ed_token_raw(header: &str, payload: &str) -> String {
    let signed = format!("{}.{}", part(header), part(payload));
    let signature = URL_SAFE_NO_PAD.encode(ed().sign(signed.as_bytes()).to_bytes());
    format!("{signed}.{signature}")
}

fn ed_token(header: &Value, claims: &Value) -> String {
    ed_token_raw(&header.to_string(), &claims.to_string())
}

fn signed_by(key: &EncodingKey, algorithm: Algorithm, header: &Value) -> String {
    let signed = format!("{}.{}", part(&header.to_string()), part(&claims().to_string()));
    let signature = crypto::sign(signed.as_bytes(), key, algorithm).unwrap();
    format!("{signed}.{signature}")
}

fn header() -> Value {
    json!({ "alg": "EdDSA", "kid": "ed", "typ": "JWT" })
}

async fn open(document: &str) -> Result<Verifier, JwksError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), document).unwrap();
    Verifier::open(VerifierOptions::new("issuer", "exchequer", file.path())).await
}

async fn verify(token: &str) -> Result<Caller, TokenError> {
    open(&jwks().to_string()).await.unwrap().verify_at(token, NOW).await
}

/// One way of being wrong, through an otherwise valid Ed25519 token.
async fn check_claims(changes: Value, expected: Result<(), TokenError>) {
    let outcome = verify(&ed_token(&header(), &with(&changes))).await.map(|_| ());
    assert_eq!(outcome, expected, "{changes}");
}

async fn check_header(header: Value, expected: Result<(), TokenError>) {
    let outcome = verify(&ed_token(&header, &claims())).await.map(|_| ());
    assert_eq!(outcome, expected, "{header}");
}

#[tokio::test]
async fn each_accepted_algorithm_yields_the_caller() {
    let caller = Caller::new("alice", Some("acme"), [Role::User]);
    assert_eq!(verify(&ed_token(&header(), &claims())).await, Ok(caller.clone()));
    let es = signed_by(&ec(), Algorithm::ES256, &json!({ "alg": "ES256", "kid": "ec" }));
    assert_eq!(verify(&es).await, Ok(caller.clone()));
    let rs = signed_by(&rsa(), Algorithm::RS256, &json!({ "alg": "RS256", "kid": "rsa" }));
    assert_eq!(verify(&rs).await, Ok(caller));
}

#[tokio::test]
async fn one_changed_bit_of_any_part_is_refused_for_each_algorithm() {
    let tokens = [
        ed_token(&header(), &claims()),
        signed_by(&ec(), Algorithm::ES256, &json!({ "alg": "ES256", "kid": "ec" })),
        signed_by(&rsa(), Algorithm::RS256, &json!({ "alg": "RS256", "kid": "rsa" })),
    ];
    for token in tokens {
        let parts: Vec<&str> = token.split('.').collect();
        let mut payload = URL_SAFE_NO_PAD.decode(parts[1]).unwrap();
        payload[20] ^= 1;
        let forged = format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode(payload), parts[2]);
        assert_eq!(verify(&forged).await, Err(TokenError::Signature));
        let mut signature = URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
        signature[0] ^= 1;
        let forged = format!("{}.{}.{}", parts[0], parts[1], URL_SAFE_NO_PAD.encode(signature));
        assert_eq!(verify(&forged).await, Err(TokenError::Signature));
        assert_eq!(verify(&format!("{}.{}.", parts[0], parts[1])).await, Err(TokenError::Signature));
        let padded = format!("{}.{}.{}", parts[0], parts[1], STANDARD.encode([0u8; 64]));
        assert_eq!(verify(&padded).await, Err(TokenError::Signature));
    }
}

#[tokio::test]
async fn algorithms_off_the_list_are_refused_before_any_key_is_used() {
    for alg in ["none", "NoNe", "NONE", "", "HS256", "HS512", "PS256", "RS1", "ES384", "eddsa", "EdDSA "] {
        check_header(json!({ "alg": alg, "kid": "ed" }), Err(TokenError::Algorithm)).await;
    }
    let unsigned = format!("{}.{}.", part(r#"{"alg":"none","kid":"ed"}"#), part(&claims().to_string()));
    assert_eq!(verify(&unsigned).await, Err(TokenError::Algorithm));
}

#[tokio::test]
async fn a_public_key_is_never_an_hmac_secret() {
    let public = serde_json::to_vec(&jwk(&rsa(), Algorithm::RS256, "rsa")).unwrap();
    let secret = EncodingKey::from_secret(&public);
    let confused = signed_by(&secret, Algorithm::HS256, &json!({ "alg": "HS256", "kid": "rsa" }));
    assert_eq!(verify(&confused).await, Err(TokenError::Algorithm));
    // The same signature under an accepted name does not hold either.
    let confused = signed_by(&secret, Algorithm::HS256, &json!({ "alg": "RS256", "kid": "rsa" }));
    assert_eq!(verify(&confused).await, Err(TokenError::Signature));
}

#[tokio::test]
async fn a_key_verifies_its_own_algorithm_only() {
    check_header(json!({ "alg": "EdDSA", "kid": "ec" }), Err(TokenError::KeyMismatch)).await;
    check_header(json!({ "alg": "RS256", "kid": "ed" }), Err(TokenError::KeyMismatch)).await;
    check_header(json!({ "alg": "ES256", "kid": "rsa" }), Err(TokenError::KeyMismatch)).await;
}

#[tokio::test]
async fn the_key_id_is_required_and_only_ever_a_name() {
    check_header(json!({ "alg": "EdDSA" }), Err(TokenError::Malformed("key id"))).await;
    check_header(json!({ "alg": "EdDSA", "kid": "" }), Err(TokenError::Malformed("key id"))).await;
    check_header(json!({ "alg": "EdDSA", "kid": "x".repeat(129) }), Err(TokenError::Malformed("key id")))
        .await;
    check_header(json!({ "alg": "EdDSA", "kid": 5 }), Err(TokenError::Malformed("header"))).await;
    for kid in ["other", "../../dev/null", "/dev/null", "ed\0", "' or 1=1", "ED"] {
        check_header(json!({ "alg": "EdDSA", "kid": kid }), Err(TokenError::UnknownKey)).await;
    }
}

#[tokio::test]
async fn a_token_that_brings_its_own_key_is_refused() {
    for name in ["jwk", "jku", "x5u", "x5c"] {
        for value in [json!("https://evil.example/jwks"), ed_jwk(), json!(null)] {
            let mut header = header();
            header[name] = value;
            check_header(header, Err(TokenError::EmbeddedKey(name))).await;
        }
    }
}

#[tokio::test]
async fn critical_headers_and_foreign_types_are_refused() {
    for crit in [json!(["b64"]), json!(["exp"]), json!([]), json!(null), json!("b64")] {
        let mut header = header();
        header["crit"] = crit;
        check_header(header, Err(TokenError::Critical)).await;
    }
    for typ in ["dpop+jwt", "logout+jwt", "JOSE", ""] {
        check_header(json!({ "alg": "EdDSA", "kid": "ed", "typ": typ }), Err(TokenError::Malformed("type")))
            .await;
    }
    for typ in ["JWT", "jwt", "at+jwt", "application/at+JWT"] {
        check_header(json!({ "alg": "EdDSA", "kid": "ed", "typ": typ }), Ok(())).await;
    }
}

#[tokio::test]
async fn tokens_of_another_shape_are_refused() {
    let good = ed_token(&header(), &claims());
    for token in ["", "x", "a.b", "a.b.c.d", "a.b.c.d.e"] {
        assert_eq!(verify(token).await, Err(TokenError::Malformed("not three parts")), "{token}");
    }
    for token in ["..", "!.e30.x", "e30.e30.x", "eyJhbGciOiJFZERTQSJ9=.e30.x", "bm8.e30.x"] {
        assert_eq!(verify(token).await, Err(TokenError::Malformed("header")), "{token}");
    }
    let twice = ed_token_raw(r#"{"alg":"EdDSA","kid":"ed","alg":"EdDSA"}"#, &claims().to_string());
    assert_eq!(verify(&twice).await, Err(TokenError::Malformed("header")));
    for payload in ["", "[]", "\"x\"", "{", "{} {}"] {
        let token = ed_token_raw(&header().to_string(), payload);
        assert_eq!(verify(&token).await, Err(TokenError::Malformed("payload")), "{payload}");
    }
    let long = format!("{good}{}", "A".repeat(MAX_TOKEN_BYTES + 1 - good.len()));
    assert_eq!(verify(&long).await, Err(TokenError::TooLong));
    assert_eq!(verify(&long[..MAX_TOKEN_BYTES]).await, Err(TokenError::Signature));
}

#[tokio::test]
async fn issuer_and_audience_are_required_and_must_match() {
    check_claims(json!({ "iss": null }), Err(TokenError::MissingClaim("iss"))).await;
    check_claims(json!({ "iss": ["issuer"] }), Err(TokenError::BadClaim("iss"))).await;
    check_claims(json!({ "iss": "issuer/" }), Err(TokenError::Issuer)).await;
    check_claims(json!({ "aud": null }), Err(TokenError::MissingClaim("aud"))).await;
    check_claims(json!({ "aud": "other" }), Err(TokenError::Audience)).await;
    check_claims(json!({ "aud": [] }), Err(TokenError::Audience)).await;
    check_claims(json!({ "aud": ["other", "exchequer2"] }), Err(TokenError::Audience)).await;
    check_claims(json!({ "aud": ["other", "exchequer"] }), Ok(())).await;
    check_claims(json!({ "aud": ["exchequer", 5] }), Err(TokenError::BadClaim("aud"))).await;
    check_claims(json!({ "aud": { "exchequer": true } }), Err(TokenError::BadClaim("aud"))).await;
    check_claims(json!({ "aud": vec!["exchequer"; 33] }), Err(TokenError::BadClaim("aud"))).await;
}

#[tokio::test]
async fn expiry_is_required_whole_and_bounded() {
    check_claims(json!({ "exp": null }), Err(TokenError::MissingClaim("exp"))).await;
    let huge = [json!(253_402_300_800_u64), json!(u64::MAX), json!(1e30)];
    let odd =
        [json!(1_800_000_060.5), json!(1.8e9), json!(-1), json!(-1.0), json!("1800000060"), json!(true)];
    for exp in huge.into_iter().chain(odd) {
        check_claims(json!({ "exp": exp }), Err(TokenError::BadClaim("exp"))).await;
    }
    let digits = claims().to_string().replace(&(NOW + 60).to_string(), &"9".repeat(400));
    let outcome = verify(&ed_token_raw(&header().to_string(), &digits)).await;
    assert!(
        matches!(outcome, Err(TokenError::BadClaim("exp") | TokenError::Malformed("payload"))),
        "{outcome:?}"
    );
    check_claims(json!({ "exp": 253_402_300_799_u64 }), Ok(())).await;
}

#[tokio::test]
async fn the_leeway_is_five_seconds_on_either_side_and_no_more() {
    check_claims(json!({ "exp": NOW + 1 }), Ok(())).await;
    check_claims(json!({ "exp": NOW - 4 }), Ok(())).await;
    check_claims(json!({ "exp": NOW - 5 }), Err(TokenError::Expired)).await;
    check_claims(json!({ "exp": 0 }), Err(TokenError::Expired)).await;
    check_claims(json!({ "nbf": NOW + 5 }), Ok(())).await;
    check_claims(json!({ "nbf": NOW + 6 }), Err(TokenError::NotYetValid)).await;
    check_claims(json!({ "nbf": 1.5 }), Err(TokenError::BadClaim("nbf"))).await;
    check_claims(json!({ "nbf": -1 }), Err(TokenError::BadClaim("nbf"))).await;
}

#[tokio::test]
async fn subject_tenant_and_roles_are_checked() {
    check_claims(json!({ "sub": null }), Err(TokenError::MissingClaim("sub"))).await;
    for sub in [json!(""), json!("  "), json!("a\nb"), json!("x".repeat(257)), json!(7)] {
        check_claims(json!({ "sub": sub }), Err(TokenError::BadClaim("sub"))).await;
    }
    for tenant in [json!(""), json!("a b"), json!("a\0"), json!("x".repeat(257)), json!(["acme"])] {
        check_claims(json!({ "tenant": tenant }), Err(TokenError::BadClaim("tenant"))).await;
    }
    for roles in [json!("admin"), json!([1]), json!({}), json!(vec!["user"; 33])] {
        check_claims(json!({ "roles": roles }), Err(TokenError::BadClaim("roles"))).await;
    }
    let plain = with(&json!({ "tenant": null, "roles": null }));
    assert_eq!(verify(&ed_token(&header(), &plain)).await, Ok(Caller::new("alice", None, [])));
    let mixed = with(&json!({ "roles": ["root", "Admin", "auditor", "agent", "auditor"] }));
    let expected = Caller::new("alice", Some("acme"), [Role::Agent, Role::Auditor]);
    assert_eq!(verify(&ed_token(&header(), &mixed)).await, Ok(expected));
}

async fn check_jwks(keys: Value, expected: JwksError) {
    let document = json!({ "keys": keys }).to_string();
    assert_eq!(open(&document).await.map(|_| ()), Err(expected), "{document}");
}

fn edited(mut key: Value, name: &str, value: Value) -> Value {
    key[name] = value;
    key
}

fn bad(kid: &str, reason: &'static str) -> JwksError {
    JwksError::BadKey { kid: kid.to_owned(), reason }
}

#[tokio::test]
async fn a_wrong_key_document_is_refused_as_a_whole() {
    let ec = jwk(&ec(), Algorithm::ES256, "ec");
    let rsa = jwk(&rsa(), Algorithm::RS256, "rsa");
    check_jwks(json!([]), JwksError::Empty).await;
    check_jwks(json!([ed_jwk(), ed_jwk()]), JwksError::DuplicateKid("ed".to_owned())).await;
    check_jwks(
        json!([ed_jwk(), edited(ec.clone(), "kid", json!("ed"))]),
        JwksError::DuplicateKid("ed".to_owned()),
    )
    .await;
    check_jwks(json!([edited(ed_jwk(), "kid", json!(null))]), JwksError::NoKid(0)).await;
    check_jwks(json!([edited(ed_jwk(), "d", json!("AAAA"))]), JwksError::PrivateKey("ed".to_owned())).await;
    check_jwks(
        json!([edited(ed_jwk(), "alg", json!("RS256"))]),
        bad("ed", "`alg` does not fit the key's type"),
    )
    .await;
    check_jwks(
        json!([edited(rsa.clone(), "alg", json!("ES256"))]),
        bad("rsa", "`alg` does not fit the key's type"),
    )
    .await;
    check_jwks(json!([edited(ed_jwk(), "x", json!("AAAA"))]), bad("ed", "`x` is not 32 bytes")).await;
    let zero = URL_SAFE_NO_PAD.encode([0u8; 32]);
    check_jwks(json!([edited(ed_jwk(), "x", json!(zero))]), bad("ed", "`x` is a point of small order")).await;
    check_jwks(json!([edited(ec, "x", json!(zero))]), bad("ec", "`x`, `y` is not a point of the curve"))
        .await;
    let weak = URL_SAFE_NO_PAD.encode([0xffu8; 128]);
    check_jwks(
        json!([edited(rsa.clone(), "n", json!(weak))]),
        bad("rsa", "`n` is not between 2048 and 4096 bits"),
    )
    .await;
    let exponent = "`e` is not an odd number above 1 of at most 32 bits";
    for e in ["AQ", "Ag", "AQAAAAAB", ""] {
        check_jwks(json!([edited(rsa.clone(), "e", json!(e))]), bad("rsa", exponent)).await;
    }
    check_jwks(json!(vec![ed_jwk(); 65]), JwksError::TooMany(65)).await;
    let large = " ".repeat(exchequer_auth::MAX_JWKS_BYTES + 1);
    assert_eq!(open(&large).await.map(|_| ()), Err(JwksError::TooLarge));
    assert!(matches!(open("{").await, Err(JwksError::Malformed(_))));
}

#[tokio::test]
async fn keys_for_other_purposes_are_skipped() {
    let others = [
        json!({ "kty": "oct", "k": "AAAA", "kid": "ed" }),
        json!({ "kty": "EC", "crv": "P-384", "kid": "ed" }),
        edited(ed_jwk(), "use", json!("enc")),
        edited(ed_jwk(), "key_ops", json!(["sign"])),
        edited(jwk(&rsa(), Algorithm::RS256, "ed"), "alg", json!("PS256")),
    ];
    for other in others {
        check_jwks(json!([other]), JwksError::Empty).await;
        let document = json!({ "keys": [other, ed_jwk()] }).to_string();
        let verifier = open(&document).await.unwrap();
        assert!(verifier.verify_at(&ed_token(&header(), &claims()), NOW).await.is_ok(), "{document}");
    }
}

#[tokio::test]
async fn a_rotated_key_is_found_without_a_restart() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json!({ "keys": [jwk(&ec(), Algorithm::ES256, "ec")] }).to_string()).unwrap();
    let verifier = Verifier::open(VerifierOptions::new("issuer", "exchequer", file.path())).await.unwrap();
    std::fs::write(file.path(), jwks().to_string()).unwrap();
    assert!(verifier.verify_at(&ed_token(&header(), &claims()), NOW).await.is_ok());
    assert_eq!(verifier.fault(), None);
}

#[tokio::test]
async fn a_missing_key_file_is_an_error_that_names_it() {
    let outcome = Verifier::open(VerifierOptions::new("i", "a", "/nonexistent/jwks.json")).await;
    let Err(JwksError::Read { path, .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(path, "/nonexistent/jwks.json");
}

#[tokio::test]
async fn a_token_that_was_verified_before_is_held_to_its_dates_and_to_every_bit_of_it() {
    let verifier = open(&jwks().to_string()).await.unwrap();
    let token = ed_token(&header(), &with(&json!({ "nbf": NOW })));
    let caller = verifier.verify_at(&token, NOW).await.unwrap();
    assert_eq!(verifier.verify_at(&token, NOW + 64).await, Ok(caller.clone()), "the same caller again");
    assert_eq!(verifier.verify_at(&token, NOW + 65).await, Err(TokenError::Expired));
    assert_eq!(verifier.verify_at(&token, NOW - 6).await, Err(TokenError::NotYetValid));
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{signed}.{flipped}{}", &signature[1..]);
    assert_eq!(verifier.verify_at(&forged, NOW).await, Err(TokenError::Signature));
    assert_eq!(verifier.verify_at(&token, NOW).await, Ok(caller));
}

#[tokio::test]
async fn a_token_that_was_verified_before_falls_with_its_key() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), jwks().to_string()).unwrap();
    let mut options = VerifierOptions::new("issuer", "exchequer", file.path());
    options.refresh = std::time::Duration::ZERO;
    let verifier = Verifier::open(options).await.unwrap();
    let token = ed_token(&header(), &claims());
    assert!(verifier.verify_at(&token, NOW).await.is_ok());
    assert!(verifier.verify_at(&token, NOW).await.is_ok());
    std::fs::write(file.path(), json!({ "keys": [jwk(&ec(), Algorithm::ES256, "ec")] }).to_string()).unwrap();
    assert_eq!(verifier.verify_at(&token, NOW).await, Err(TokenError::UnknownKey));
    // The same name, another key.
    let mut other = ed_jwk();
    other["x"] = json!(URL_SAFE_NO_PAD.encode(SigningKey::from_bytes(&[8; 32]).verifying_key().as_bytes()));
    std::fs::write(file.path(), json!({ "keys": [other] }).to_string()).unwrap();
    assert_eq!(verifier.verify_at(&token, NOW).await, Err(TokenError::Signature));
}
