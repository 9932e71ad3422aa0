//! The static read path: what is public, what is not, and what is no path.

use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode, header},
};
use exchequer_auth::Role;
use exchequer_testkit::SimAgent;
use exchequer_tlog::{HASH_BYTES, leaf_hash, push_entry};
use tower::ServiceExt as _;

use super::support::World;

struct Answer {
    status: StatusCode,
    content_type: String,
    cache: String,
    body: Vec<u8>,
}

async fn get(world: &World, path: &str, token: Option<&str>) -> Answer {
    let app = world.service.http().layer(world.auth_layer());
    let mut request = Request::get(path);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let text = |name| {
        response.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    let (status, content_type, cache) =
        (response.status(), text(header::CONTENT_TYPE), text(header::CACHE_CONTROL));
    let body = to_bytes(response.into_body(), 64 << 20).await.unwrap().to_vec();
    Answer { status, content_type, cache, body }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_served_as_files_and_its_entries_only_to_those_who_read_every_tenant() {
    let mut agent = SimAgent::new("a1");
    let world = World::new(&[&agent]).await;
    for executions in [3, 100, 60] {
        world.take(&mut agent, "acme", executions).await;
    }
    let log = world.log();
    let checkpoint = get(&world, "/checkpoint", None).await;
    assert_eq!((checkpoint.status, &*checkpoint.cache), (StatusCode::OK, "no-cache"));
    assert_eq!(checkpoint.content_type, "text/plain; charset=utf-8");
    assert_eq!(checkpoint.body, log.signed.to_string().into_bytes());
    let key = get(&world, "/verifier-key", None).await;
    assert_eq!(key.body, format!("{}\n", world.service.verifier_key()).into_bytes());

    let leaves: Vec<u8> = log.entries.iter().flat_map(|entry| leaf_hash(entry).0).collect();
    // The whole tile, the newest partial one, and partial ones that were superseded.
    for (path, from, width) in
        [("000", 0, 256), ("001.p/75", 256, 75), ("001.p/3", 256, 3), ("000.p/9", 0, 9)]
    {
        let tile = get(&world, &format!("/tile/0/{path}"), None).await;
        assert_eq!(
            (tile.status, &*tile.content_type),
            (StatusCode::OK, "application/octet-stream"),
            "{path}"
        );
        assert!(tile.cache.contains("immutable"));
        assert_eq!(tile.body, leaves[from * HASH_BYTES..(from + width) * HASH_BYTES], "{path}");
    }
    let auditor = world.token("aud", None, &[Role::Auditor]);
    let user = world.token("ann", Some("acme"), &[Role::User]);
    for (path, from, width) in [("000", 0, 256), ("001.p/4", 256, 4)] {
        let path = format!("/tile/entries/{path}");
        assert_eq!(get(&world, &path, None).await.status, StatusCode::UNAUTHORIZED);
        assert_eq!(get(&world, &path, Some(&user)).await.status, StatusCode::FORBIDDEN);
        let mut expected = Vec::new();
        log.entries[from..from + width].iter().for_each(|entry| push_entry(&mut expected, entry).unwrap());
        let bundle = get(&world, &path, Some(&auditor)).await;
        assert!(bundle.status == StatusCode::OK && bundle.cache.starts_with("private"));
        assert_eq!(bundle.body, expected);
    }
    for path in [
        "/tile/0/002",
        "/tile/0/001",
        "/tile/0/001.p/76",
        "/tile/0/0",
        "/tile/0/000.p/0",
        "/tile/0/x000/000",
        "/tile/0/../../../state",
        "/tile/0/%2e%2e/%2e%2e/%2e%2e/state",
        "/tile/0/000/../../../../ledger.key",
        "/tile/entries/../../../ledger.key",
        "/state",
    ] {
        let answer = get(&world, path, Some(&auditor)).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
    }
}
