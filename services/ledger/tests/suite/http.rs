//! The static read path: what is public, what is not, what is no path, and what caches are told.

use std::io::Read as _;

use axum::{
    body::{Body, to_bytes},
    http::{HeaderMap, Method, Request, StatusCode, header},
};
use exchequer_auth::Role;
use exchequer_testkit::SimAgent;
use exchequer_tlog::{HASH_BYTES, leaf_hash, push_entry};
use flate2::read::GzDecoder;
use tower::ServiceExt as _;

use super::support::{World, start};

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    fn tag(&self) -> &str {
        let tag = self.header(header::ETAG);
        assert!(tag.len() > 20 && tag.starts_with('"') && tag.ends_with('"'), "{tag:?} is no strong tag");
        tag
    }
}

async fn ask(world: &World, method: Method, path: &str, headers: &[(header::HeaderName, &str)]) -> Answer {
    let app = world.service.http().layer(world.auth_layer());
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    let response = app.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, 64 << 20).await.unwrap().to_vec();
    Answer { status: parts.status, headers: parts.headers, body }
}

async fn get(world: &World, path: &str, token: Option<&str>) -> Answer {
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<_> = bearer.iter().map(|bearer| (header::AUTHORIZATION, &**bearer)).collect();
    ask(world, Method::GET, path, &headers).await
}

async fn world() -> World {
    let mut agent = SimAgent::new("a1");
    let world = World::new(&[&agent]).await;
    for executions in [3, 100, 60] {
        world.take(&mut agent, "acme", executions).await;
    }
    world
}

/// The same log, with entries for everybody.
async fn public(mut world: World) -> World {
    world.service.stop().await;
    world.options.public_entries = true;
    world.service = start(&world.options, &world.stream).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_served_as_files_and_its_entries_only_to_those_who_read_every_tenant() {
    let world = world().await;
    let log = world.log();
    let checkpoint = get(&world, "/checkpoint", None).await;
    assert_eq!((checkpoint.status, checkpoint.header(header::CACHE_CONTROL)), (StatusCode::OK, "no-cache"));
    assert_eq!(checkpoint.header(header::CONTENT_TYPE), "text/plain; charset=utf-8");
    assert_eq!(checkpoint.body, log.signed.to_string().into_bytes());
    let key = get(&world, "/verifier-key", None).await;
    assert_eq!(key.body, format!("{}\n", world.service.verifier_key()).into_bytes());

    let leaves: Vec<u8> = log.entries.iter().flat_map(|entry| leaf_hash(entry).0).collect();
    // The whole tile, the newest partial one, and partial ones that were superseded.
    for (path, from, width) in
        [("000", 0, 256), ("001.p/75", 256, 75), ("001.p/3", 256, 3), ("000.p/9", 0, 9)]
    {
        let tile = get(&world, &format!("/tile/0/{path}"), None).await;
        let content_type = tile.header(header::CONTENT_TYPE);
        assert_eq!((tile.status, content_type), (StatusCode::OK, "application/octet-stream"), "{path}");
        assert_eq!(tile.header(header::CACHE_CONTROL), "public, max-age=31536000, immutable");
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
        assert_eq!(bundle.status, StatusCode::OK);
        assert_eq!(bundle.header(header::CACHE_CONTROL), "private, max-age=31536000, immutable");
        assert_eq!(bundle.header(header::CONTENT_TYPE), "application/octet-stream");
        assert_eq!(bundle.body, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_is_not_canonical_or_not_under_the_checkpoint_is_not_found() {
    let world = public(world().await).await;
    let auditor = world.token("aud", None, &[Role::Auditor]);
    for path in
        ["/tile/0/000", "/tile/0/001.p/75", "/tile/1/000.p/1", "/tile/entries/000", "/tile/entries/001.p/1"]
    {
        assert_eq!(get(&world, path, None).await.status, StatusCode::OK, "{path}");
    }
    for path in [
        "/tile/0/002",
        "/tile/0/001",
        "/tile/0/001.p/76",
        "/tile/0/001.p/075",
        "/tile/0/001.p/",
        "/tile/0/001.p",
        "/tile/0/0",
        "/tile/0/00",
        "/tile/0/0000",
        "/tile/00/000",
        "/tile/0/x000",
        "/tile/0/x001",
        "/tile/0/x000/000",
        "/tile/0/000/",
        "/tile/0/000.p/0",
        "/tile/0/000.p/256",
        "/tile/0/000.p/257",
        "/tile/0/000.p/65536",
        "/tile/0/-01",
        "/tile/0/+00",
        "/tile/0/%30%30%30",
        "/tile/0/000%2ep/9",
        "/tile/63/000",
        "/tile/64/000",
        "/tile/256/000",
        "/tile/0/../../../state",
        "/tile/0/%2e%2e/%2e%2e/%2e%2e/state",
        "/tile/0/000/../../../../ledger.key",
        "/tile/entries/../../../ledger.key",
        "/tile/entries/0",
        "/tile/entries/000/",
        "/tile/entries/x000/000",
        "/tile/entries/000.p/256",
        "/tile/entries/001.p/76",
        "/tile/data/000",
        "/tile/",
        "/tile",
        "/checkpoint/",
        "/state",
        "/",
    ] {
        let answer = get(&world, path, Some(&auditor)).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert!(!answer.header(header::CACHE_CONTROL).contains("immutable"), "{path}");
    }
    for path in ["/checkpoint", "/tile/0/000", "/tile/entries/000"] {
        for method in [Method::POST, Method::PUT, Method::DELETE] {
            let answer = ask(&world, method.clone(), path, &[]).await;
            assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            assert_eq!(answer.header(header::ALLOW), "GET,HEAD");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_holds_is_not_sent_again() {
    let mut agent = SimAgent::new("a1");
    let world = World::new(&[&agent]).await;
    world.take(&mut agent, "acme", 130).await;
    let bearer = format!("Bearer {}", world.token("aud", None, &[Role::Auditor]));
    let auth = (header::AUTHORIZATION, &*bearer);
    for path in ["/checkpoint", "/verifier-key", "/tile/0/000", "/tile/0/000.p/9", "/tile/entries/000"] {
        let whole = ask(&world, Method::GET, path, std::slice::from_ref(&auth)).await;
        assert_eq!(whole.status, StatusCode::OK);
        let tag = whole.tag();
        for held in [tag, &format!("W/{tag}"), "*", &format!("\"other\", {tag}")] {
            let again = ask(&world, Method::GET, path, &[auth.clone(), (header::IF_NONE_MATCH, held)]).await;
            assert_eq!((again.status, again.body.len()), (StatusCode::NOT_MODIFIED, 0), "{path} {held}");
            assert_eq!((again.tag(), again.header(header::CONTENT_TYPE)), (tag, ""));
            for name in [header::CACHE_CONTROL, header::VARY] {
                assert_eq!(again.header(name.clone()), whole.header(name));
            }
        }
        for held in ["\"other\"", "", &tag[1..tag.len() - 1]] {
            let again = ask(&world, Method::GET, path, &[auth.clone(), (header::IF_NONE_MATCH, held)]).await;
            assert_eq!((again.status, &again.body), (StatusCode::OK, &whole.body), "{path} {held}");
        }
        let head = ask(&world, Method::HEAD, path, std::slice::from_ref(&auth)).await;
        assert_eq!((head.status, head.body.len(), head.tag()), (StatusCode::OK, 0, tag));
        assert_eq!(head.header(header::CONTENT_LENGTH), whole.body.len().to_string());
    }
    // A checkpoint that moved on is another.
    let before = get(&world, "/checkpoint", None).await;
    world.take(&mut agent, "acme", 1).await;
    let held = (header::IF_NONE_MATCH, before.tag());
    let after = ask(&world, Method::GET, "/checkpoint", &[held]).await;
    assert!(after.status == StatusCode::OK && after.body != before.body && after.tag() != before.tag());
}

#[tokio::test(flavor = "multi_thread")]
async fn public_entries_need_no_token_and_bundles_are_compressed_for_those_who_take_it() {
    let world = public(world().await).await;
    for path in ["/tile/entries/000", "/tile/entries/001.p/75", "/tile/entries/001.p/2"] {
        let plain = get(&world, path, None).await;
        assert_eq!((plain.status, plain.header(header::CONTENT_ENCODING)), (StatusCode::OK, ""), "{path}");
        assert_eq!(plain.header(header::CACHE_CONTROL), "public, max-age=31536000, immutable");
        assert_eq!(plain.header(header::VARY), "accept-encoding");
        let accepts = [(header::ACCEPT_ENCODING, "br;q=1.0, gzip;q=0.8, identity")];
        let packed = ask(&world, Method::GET, path, &accepts).await;
        assert_eq!((packed.status, packed.header(header::CONTENT_ENCODING)), (StatusCode::OK, "gzip"));
        assert_eq!(packed.header(header::VARY), "accept-encoding");
        assert_eq!(packed.header(header::CONTENT_TYPE), "application/octet-stream");
        assert!(path.ends_with('2') || packed.body.len() * 5 < plain.body.len() * 4, "{}", packed.body.len());
        let mut unpacked = Vec::new();
        GzDecoder::new(&packed.body[..]).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, plain.body);
        // Two representations, each with its tag; a client that holds the one does not hold the other.
        assert_ne!(packed.tag(), plain.tag());
        let held = [accepts[0].clone(), (header::IF_NONE_MATCH, packed.tag())];
        assert_eq!(ask(&world, Method::GET, path, &held).await.status, StatusCode::NOT_MODIFIED);
        let other = [accepts[0].clone(), (header::IF_NONE_MATCH, plain.tag())];
        assert_eq!(ask(&world, Method::GET, path, &other).await.status, StatusCode::OK);
        let refused = ask(&world, Method::GET, path, &[(header::ACCEPT_ENCODING, "gzip;q=0")]).await;
        assert_eq!((refused.header(header::CONTENT_ENCODING), &refused.body), ("", &plain.body));
    }
    // Hashes do not compress, and notes are short.
    for path in ["/tile/0/000", "/checkpoint"] {
        let answer = ask(&world, Method::GET, path, &[(header::ACCEPT_ENCODING, "gzip")]).await;
        assert_eq!((answer.header(header::CONTENT_ENCODING), answer.header(header::VARY)), ("", ""));
    }
}
