//! Roles, key files, the local issuer and the client's token.
#![allow(clippy::unwrap_used, missing_docs)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use exchequer_auth::keys::{self, KeyError};
use exchequer_auth::{BearerError, BearerToken, Caller, Denied, Grant, Issuer, MintError, Role, Verifier};
use tonic::service::Interceptor as _;

#[test]
fn each_role_may_do_its_own_and_nothing_else() {
    let caller = |role| Caller::new("s", Some("acme"), [role]);
    // execute own, execute other, read own, read other, read all, budget own, budget other, hold, administer
    let table = [
        (Role::User, [true, false, true, false, false, false, false, false, false]),
        (Role::TenantAdmin, [false, false, true, false, false, true, false, false, false]),
        (Role::Agent, [false, false, false, false, false, false, false, true, false]),
        (Role::Auditor, [false, false, true, true, true, false, false, false, false]),
        (Role::Admin, [true, true, true, true, true, true, true, true, true]),
    ];
    for (role, expected) in table {
        let c = caller(role);
        let allowed = [
            c.may_execute("acme"),
            c.may_execute("other"),
            c.may_read_tenant("acme"),
            c.may_read_tenant("other"),
            c.may_read_all(),
            c.may_set_budget("acme"),
            c.may_set_budget("other"),
            c.may_hold(),
            c.may_administer(),
        ];
        assert_eq!(allowed.map(|outcome| outcome.is_ok()), expected, "{role}");
    }
}

#[test]
fn an_agent_submits_as_itself_and_an_admin_as_nobody() {
    let agent = Caller::new("agent-1", None, [Role::Agent]);
    assert_eq!(agent.may_submit_as("agent-1"), Ok(()));
    assert_eq!(agent.may_submit_as("agent-2"), Err(Denied::Subject { wanted: "agent-2".to_owned() }));
    let admin = Caller::new("agent-1", None, [Role::Admin]);
    assert_eq!(admin.may_submit_as("agent-1"), Err(Denied::Role { needed: "agent" }));
}

#[test]
fn a_user_without_a_tenant_has_no_tenant() {
    let user = Caller::new("u", None, [Role::User]);
    let denied = user.may_execute("").unwrap_err();
    assert_eq!(denied, Denied::Tenant { wanted: String::new() });
    let status = tonic::Status::from(denied);
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
}

#[test]
fn role_names_round_trip_and_others_are_refused() {
    for role in Role::ALL {
        assert_eq!(role.name().parse(), Ok(role));
    }
    let error = "Admin".parse::<Role>().unwrap_err();
    assert_eq!(error, "unknown role; expected one of user, tenant-admin, agent, auditor, admin");
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_key_is_made_once_private_and_loaded_ever_after() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.key");
    let made = keys::load_or_create(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(keys::load_or_create(&path).unwrap().to_bytes(), made.to_bytes());
    assert_eq!(keys::load(&path).unwrap().to_bytes(), made.to_bytes());
    assert!(
        matches!(keys::create(&path), Err(KeyError::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists)
    );
    assert_eq!(keys::load(&path).unwrap().to_bytes(), made.to_bytes());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing staged is left behind");
}

#[test]
fn all_that_race_to_make_a_key_get_the_same_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.key");
    let barrier = std::sync::Barrier::new(8);
    let made: Vec<_> = std::thread::scope(|scope| {
        let race = || {
            barrier.wait();
            keys::load_or_create(&path).unwrap().to_bytes()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(race)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(made.iter().all(|key| *key == made[0]));
}

#[test]
fn a_key_that_others_may_touch_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.key");
    keys::create(&path).unwrap();
    for exposed in [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o777] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(exposed)).unwrap();
        let outcome = keys::load_or_create(&path);
        assert!(matches!(outcome, Err(KeyError::Exposed { mode, .. }) if mode == exposed), "{exposed:o}");
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
    keys::load(&path).unwrap();
}

#[test]
fn a_file_that_is_no_key_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.key");
    let contents: [&[u8]; 6] = [
        b"",
        b"exchequer-ed25519-seed-v1",
        b"exchequer-ed25519-seed-v1 AAAA\n",
        b"other-tag AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
        b"\xff\xfe",
        &[b'A'; 4096],
    ];
    for content in contents {
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(keys::load_or_create(&path), Err(KeyError::Malformed { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), content);
    }
}

fn grant(ttl: Duration) -> Grant {
    Grant {
        subject: "alice".to_owned(),
        tenant: Some("acme".to_owned()),
        roles: vec![Role::User, Role::Admin],
        ttl,
    }
}

#[tokio::test]
async fn the_local_issuer_mints_what_a_verifier_accepts_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let minute = Duration::from_secs(60);
    let token = Issuer::open(directory.path(), "issuer", "aud").unwrap().mint(&grant(minute)).unwrap();
    let again = Issuer::open(directory.path(), "issuer", "aud").unwrap();
    assert_eq!(mode(&directory.path().join("issuer.key")), 0o600);
    assert_eq!(mode(again.jwks_path()), 0o644);
    let verifier = Verifier::open(again.verifier_options()).await.unwrap();
    let caller = Caller::new("alice", Some("acme"), [Role::User, Role::Admin]);
    assert_eq!(verifier.verify(&token).await, Ok(caller.clone()));
    assert_eq!(verifier.verify(&again.mint(&grant(minute)).unwrap()).await, Ok(caller));
}

#[test]
fn the_local_issuer_mints_nothing_that_would_be_refused() {
    let directory = tempfile::tempdir().unwrap();
    let issuer = Issuer::open(directory.path(), "issuer", "aud").unwrap();
    let minute = Duration::from_secs(60);
    assert_eq!(issuer.mint(&Grant { subject: String::new(), ..grant(minute) }), Err(MintError::Subject));
    assert_eq!(
        issuer.mint(&Grant { tenant: Some("a b".to_owned()), ..grant(minute) }),
        Err(MintError::Tenant)
    );
    assert_eq!(issuer.mint(&grant(Duration::ZERO)), Err(MintError::Ttl));
    assert_eq!(issuer.mint(&grant(exchequer_auth::MAX_TTL + minute)), Err(MintError::Ttl));
}

fn sent(token: &mut BearerToken) -> String {
    let request = token.call(tonic::Request::new(())).unwrap();
    let value = request.metadata().get("authorization").unwrap();
    assert!(value.is_sensitive() && token.header().is_sensitive());
    assert_eq!(value.as_encoded_bytes(), token.header().as_bytes());
    value.to_str().unwrap().to_owned()
}

#[test]
fn the_clients_token_is_sent_and_read_again_when_its_file_changes() {
    assert_eq!(sent(&mut BearerToken::fixed(" abc\n").unwrap()), "Bearer abc");
    for text in ["", " ", "a b", "a\nb", "\u{e9}", &"x".repeat(9000)] {
        assert!(matches!(BearerToken::fixed(text), Err(BearerError::Malformed)), "{text}");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    assert!(matches!(BearerToken::file(&path), Err(BearerError::Read { .. })));
    std::fs::write(&path, "one\n").unwrap();
    let mut token = BearerToken::file(&path).unwrap();
    assert_eq!(sent(&mut token), "Bearer one");
    let replacement = directory.path().join("token.new");
    std::fs::write(&replacement, "two\n").unwrap();
    std::fs::rename(&replacement, &path).unwrap();
    assert_eq!(sent(&mut token.clone()), "Bearer two");
    std::fs::write(&path, "").unwrap();
    assert_eq!(sent(&mut token), "Bearer two");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(sent(&mut token), "Bearer two");
}
