//! The operators' routes and the metrics text.
#![allow(clippy::unwrap_used, missing_docs)]

use axum::body::Body;
use axum::http::{Request, StatusCode};
use exchequer_telemetry::{KeyValue, LATENCY_SECONDS, Readiness, http_routes, meter, metrics_text};
use tower::ServiceExt as _;

async fn get(readiness: Readiness, path: &str) -> (StatusCode, String, String) {
    let routes = http_routes(move || readiness.clone());
    let request = Request::builder().uri(path).body(Body::empty()).unwrap();
    let response = routes.oneshot(request).await.unwrap();
    let status = response.status();
    let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, content_type, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn readiness_is_the_conjunction_of_its_components_and_names_the_faulty() {
    let check = async |readiness: Readiness, status: u16, expected: &str| {
        let (actual, content_type, body) = get(readiness, "/readyz").await;
        assert_eq!(
            (actual.as_u16(), content_type.as_str(), body.as_str()),
            (status, "application/json", expected)
        );
    };
    let up = Readiness::new().component("stream", Ok::<_, String>(()));
    check(Readiness::new(), 503, r#"{"components":{},"ready":false}"#).await;
    check(up.clone(), 200, r#"{"components":{"stream":"ok"},"ready":true}"#).await;
    let down = up.component("keys", Err("the JWKS is malformed"));
    check(down, 503, r#"{"components":{"keys":"the JWKS is malformed","stream":"ok"},"ready":false}"#).await;
}

#[tokio::test]
async fn a_live_process_answers_even_if_it_is_not_ready() {
    let (status, _, body) = get(Readiness::new(), "/healthz").await;
    assert_eq!((status, body.as_str()), (StatusCode::OK, "ok\n"));
}

#[tokio::test]
async fn metrics_are_exported_under_the_names_that_the_code_gives_them() {
    let counter = meter().u64_counter("exchequer_test_things_total").with_description("Things.").build();
    counter.add(2, &[KeyValue::new("kind", "a\"b")]);
    // A second component that makes the same instrument counts into the same series.
    meter()
        .u64_counter("exchequer_test_things_total")
        .with_description("Things.")
        .build()
        .add(3, &[KeyValue::new("kind", "a\"b")]);
    let boundaries = LATENCY_SECONDS.to_vec();
    let seconds = meter()
        .f64_histogram("exchequer_test_wait_seconds")
        .with_unit("s")
        .with_boundaries(boundaries)
        .build();
    seconds.record(0.003, &[]);
    meter().i64_up_down_counter("exchequer_test_open_bytes").build().add(-7, &[]);
    let (status, content_type, body) = get(Readiness::new(), "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(body, metrics_text());
    for line in [
        "# HELP exchequer_test_things_total Things.",
        "# TYPE exchequer_test_things_total counter",
        "exchequer_test_things_total{kind=\"a\\\"b\"} 5",
        "exchequer_test_wait_seconds_bucket{le=\"0.0025\"} 0",
        "exchequer_test_wait_seconds_bucket{le=\"0.005\"} 1",
        "exchequer_test_wait_seconds_count 1",
        "exchequer_test_open_bytes -7",
    ] {
        assert!(body.lines().any(|present| present == line), "{line}\n{body}");
    }
}

#[test]
fn merged_readiness_has_the_components_and_faults_of_both() {
    let up = Readiness::new().component("ledger", Ok::<_, String>(()));
    let down = Readiness::new().component("stream", Err("away"));
    assert!(up.is_ready());
    let both = up.merge(down);
    assert!(!both.is_ready());
    assert_eq!(both.faults().collect::<Vec<_>>(), [("stream", "away")]);
}

#[tokio::test]
async fn a_degraded_component_is_shown_and_does_not_take_the_process_out_of_service() {
    let readiness = Readiness::new().degraded("durability", Some("not synced".to_owned()));
    assert!(readiness.is_ready());
    assert_eq!(readiness.faults().count(), 0);
    let (status, _, body) = get(readiness, "/readyz").await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("degraded: not synced"), "{body}");
}
