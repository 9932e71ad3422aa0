//! The S3 client over HTTP, against a server that knows as much of the protocol as the mirror uses.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use object_store::aws::AmazonS3Builder;

use super::{super::MirrorOptions, CHECKPOINT, Log, Place};

/// Path to content, type and version.
type Objects = Arc<Mutex<BTreeMap<String, (Bytes, String, u64)>>>;

async fn serve(State(objects): State<Objects>, request: Request) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let headers: HeaderMap = request.headers().clone();
    let of = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    assert!(of(header::AUTHORIZATION).starts_with("AWS4-HMAC-SHA256 Credential=id/"), "{headers:?}");
    let body = axum::body::to_bytes(request.into_body(), 1 << 24).await.unwrap();
    let mut objects = objects.lock().unwrap();
    let held = objects.get(&path).cloned();
    let etag = |version: u64| format!("\"{version}\"");
    match method {
        Method::PUT => {
            let is_taken = of(header::IF_NONE_MATCH) == "*" && held.is_some();
            let expected = of(header::IF_MATCH);
            let is_other = !expected.is_empty() && held.as_ref().map(|held| etag(held.2)) != Some(expected);
            if is_taken || is_other {
                return StatusCode::PRECONDITION_FAILED.into_response();
            }
            let version = held.map_or(1, |held| held.2 + 1);
            objects.insert(path, (body, of(header::CONTENT_TYPE), version));
            [(header::ETAG, etag(version))].into_response()
        }
        Method::GET if path == "/bucket" => {
            "<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
                .into_response()
        }
        Method::GET => match held {
            Some((body, _, version)) => ([(header::ETAG, etag(version))], body).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        },
        _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
    }
}

#[tokio::test]
async fn over_http_with_an_s3_client_the_log_is_mirrored_by_conditional_puts() {
    let objects = Objects::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(serve).with_state(objects.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });

    let builder = AmazonS3Builder::new().with_access_key_id("id").with_secret_access_key("secret");
    let options = MirrorOptions {
        url: "s3://bucket/some/prefix".to_owned(),
        endpoint: Some(endpoint),
        region: Some("eu-test-1".to_owned()),
    };
    let log = Log::new(&[200, 300, 301], "entry");
    let mirror = log.mirror(Place::bucket(builder, &options).unwrap());
    for signed in &log.published[..2] {
        assert_eq!(mirror.push(signed).await.unwrap(), signed.checkpoint().size());
    }
    let at = |path: &str| objects.lock().unwrap().get(&format!("/bucket/some/prefix/{path}")).cloned();
    let (checkpoint, content_type, version) = at(CHECKPOINT).unwrap();
    assert_eq!((checkpoint, version), (log.published[1].to_string().into(), 2));
    assert_eq!(content_type, "text/plain; charset=utf-8");
    assert_eq!(
        at("tile/0/000").unwrap().0,
        log.opened.reader.tile_bytes("tile/0/000".parse().unwrap()).unwrap()
    );
    assert_eq!(at("tile/entries/001.p/44").unwrap().1, "application/octet-stream");
    // A ledger that knows less does not move it back.
    assert_eq!(mirror.push(&log.published[0]).await.unwrap(), 300);
    assert_eq!(mirror.push(&log.published[2]).await.unwrap(), 301);
    assert_eq!(at("state").unwrap().2, 3);
}
