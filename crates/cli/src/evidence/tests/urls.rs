//! Live logs.

use std::{path::PathBuf, sync::Arc};

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::get,
};
use tokio::net::TcpListener;

use super::world::{World, kinds, trust};
use crate::evidence::{
    report::{FaultKind as F, Report, Verdict},
    verify::{Target, verify},
};

/// Serves a directory; entries need the token `sesame`.
async fn serve(dir: PathBuf) -> String {
    async fn file(
        State(dir): State<Arc<PathBuf>>,
        Path(path): Path<String>,
        headers: HeaderMap,
    ) -> Result<Vec<u8>, StatusCode> {
        let known = headers.get("authorization").is_some_and(|token| token == "Bearer sesame");
        if path.starts_with("tile/entries/") && !known {
            return Err(StatusCode::UNAUTHORIZED);
        }
        std::fs::read(dir.join(path)).map_err(|_| StatusCode::NOT_FOUND)
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let routes = Router::new().route("/{*path}", get(file)).with_state(Arc::new(dir));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    url
}

async fn check(url: &str, token: Option<&str>) -> Report {
    verify(Target::parse(url), trust(), token.map(str::to_owned), |_| {}).await
}

#[tokio::test]
async fn a_live_log_is_checked_as_a_directory_is() {
    let log = World::large(300).log();
    let dir = tempfile::tempdir().unwrap();
    log.write(dir.path());
    let url = serve(dir.path().into()).await;
    let report = check(&url, Some("sesame")).await;
    assert_eq!(report.verdict, Verdict::Holds, "{report}");
    assert_eq!(report.checked.entries, log.size());

    let path = log.bundle_path(1);
    let mut bytes = log.files[&path].clone();
    bytes[20] ^= 1;
    std::fs::write(dir.path().join(path), bytes).unwrap();
    let report = check(&format!("{url}/"), Some("sesame")).await;
    assert_eq!(kinds(&report), [(Some(256), F::EntryChanged)], "{report}");
}

#[tokio::test]
async fn a_log_that_refuses_or_is_not_there_could_not_be_checked() {
    let dir = tempfile::tempdir().unwrap();
    World::small().log().write(dir.path());
    let url = serve(dir.path().into()).await;
    let report = check(&url, None).await;
    assert_eq!(report.verdict, Verdict::CouldNotCheck);
    assert!(report.faults[0].detail.contains("needs a token"), "{report}");
    assert_eq!(check(&format!("{url}/elsewhere"), None).await.faults[0].kind, F::Missing);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(check(&format!("http://{closed}"), None).await.faults[0].kind, F::Unreadable);
    assert_eq!(check("https://127.0.0.1:1", None).await.faults[0].kind, F::BadInput);
}
