//! The layer in front of a plain service, of a gRPC-shaped one and of an axum router.
#![allow(clippy::unwrap_used, missing_docs)]

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use exchequer_auth::{AuthLayer, Caller, Denied, Grant, Issuer, Role, Verifier};
use http::{Request, Response, StatusCode, header};
use tower::{Layer as _, ServiceExt as _, service_fn};

struct World {
    _directory: tempfile::TempDir,
    layer: AuthLayer,
    token: String,
}

async fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let issuer = Issuer::open(directory.path(), "issuer", "exchequer").unwrap();
    let verifier = Verifier::open(issuer.verifier_options()).await.unwrap();
    let ttl = Duration::from_secs(60);
    let grant =
        Grant { subject: "alice".to_owned(), tenant: Some("acme".to_owned()), roles: vec![Role::User], ttl };
    let layer = AuthLayer::new(verifier, ["/healthz", "/tile/", "/grpc.health.v1.Health/"]);
    World { layer, token: issuer.mint(&grant).unwrap(), _directory: directory }
}

/// Answers with the caller's subject, or `nobody`.
async fn who<B>(request: Request<B>) -> Result<Response<String>, Infallible> {
    let who = Caller::of(request.extensions()).map_or("nobody".to_owned(), |caller| caller.subject.clone());
    Ok(Response::new(who))
}

async fn ask(world: &World, path: &str, headers: &[(&str, &str)]) -> Response<String> {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let service = world.layer.layer(service_fn(who::<()>));
    service.oneshot(request.body(()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_valid_token_puts_the_caller_into_the_request() {
    let world = world().await;
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let value = format!("{scheme} {}", world.token);
        let response = ask(&world, "/x", &[("authorization", &value)]).await;
        assert_eq!((response.status(), response.body().as_str()), (StatusCode::OK, "alice"));
    }
}

#[tokio::test]
async fn http_requests_without_a_valid_token_get_401_and_a_challenge() {
    let world = world().await;
    let good = format!("Bearer {}", world.token);
    let cases: [(&[(&str, &str)], &str); 6] = [
        (&[], "Bearer realm=\"exchequer\""),
        (&[("authorization", "Basic YTpi")], "authorization is not a single bearer token"),
        (&[("authorization", "Bearer ")], "authorization is not a single bearer token"),
        (&[("authorization", "Bearer\u{e9} x")], "authorization is not a single bearer token"),
        (&[("authorization", &good), ("authorization", &good)], "authorization is not a single bearer token"),
        (&[("authorization", "Bearer a.b.c")], "the token is malformed: header"),
    ];
    for (headers, expected) in cases {
        let response = ask(&world, "/x", headers).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.body(), "");
        let challenge = response.headers()[header::WWW_AUTHENTICATE].to_str().unwrap();
        if headers.is_empty() {
            assert_eq!(challenge, expected);
        } else {
            let description = format!("error=\"invalid_token\", error_description=\"{expected}\"");
            assert_eq!(challenge, format!("Bearer realm=\"exchequer\", {description}"));
        }
    }
}

#[tokio::test]
async fn grpc_requests_without_a_valid_token_get_a_trailers_only_status() {
    let world = world().await;
    for content_type in ["application/grpc", "application/grpc+proto"] {
        let response = ask(&world, "/exchequer.v1.Ledger/Get", &[("content-type", content_type)]).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "16");
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert_eq!(response.body(), "");
    }
}

#[tokio::test]
async fn public_paths_pass_without_a_caller_and_nothing_else_does() {
    let world = world().await;
    for path in ["/healthz", "/tile/0/000", "/tile/", "/grpc.health.v1.Health/Check"] {
        let response = ask(&world, path, &[]).await;
        assert_eq!((response.status(), response.body().as_str()), (StatusCode::OK, "nobody"), "{path}");
    }
    let private = [
        "/",
        "/healthz/",
        "/healthz/x",
        "/healthzz",
        "/tile",
        "/tiles/0",
        "/tile/../secret",
        "/tile/./x",
        "/tile//x",
        "/tile/%2e%2e/secret",
        "/TILE/0",
        "/grpc.health.v1.HealthX/Check",
    ];
    for path in private {
        assert_eq!(ask(&world, path, &[]).await.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
}

#[tokio::test]
async fn a_caller_that_was_there_before_is_not_believed() {
    let world = world().await;
    let mut request = Request::builder().uri("/healthz").body(()).unwrap();
    request.extensions_mut().insert(Caller::new("mallory", None, [Role::Admin]));
    let service = world.layer.layer(service_fn(who::<()>));
    assert_eq!(service.oneshot(request).await.unwrap().body(), "nobody");
}

#[tokio::test]
async fn an_axum_router_takes_the_caller_as_an_argument_and_answers_denials() {
    async fn read(caller: Caller) -> Result<String, Denied> {
        caller.may_read_tenant("acme")?;
        Ok(caller.subject)
    }
    async fn settle(caller: Caller) -> Result<String, Denied> {
        caller.may_hold()?;
        Ok(caller.subject)
    }
    let world = world().await;
    let routes =
        Router::new().route("/read", get(read)).route("/settle", get(settle)).route("/healthz", get(read));
    let router = routes.layer(world.layer.clone());
    let ask = async |path: &str| {
        let bearer = format!("Bearer {}", world.token);
        let request =
            Request::builder().uri(path).header("authorization", bearer).body(Body::empty()).unwrap();
        router.clone().oneshot(request).await.unwrap()
    };
    assert_eq!(ask("/read").await.status(), StatusCode::OK);
    let denied = ask("/settle").await;
    assert_eq!(denied.status(), StatusCode::FORBIDDEN);
    assert_eq!(
        denied.headers()["www-authenticate"],
        "Bearer realm=\"exchequer\", error=\"insufficient_scope\""
    );
    // A handler that wants a caller on a public path gets none.
    assert_eq!(ask("/healthz").await.status(), StatusCode::UNAUTHORIZED);
}

/// Compiles only if tonic's server accepts the layer over its routes.
#[tokio::test]
async fn a_tonic_server_accepts_the_layer() {
    let world = world().await;
    let routes = tonic::service::Routes::default();
    let _router = tonic::transport::Server::builder().layer(world.layer.clone()).add_routes(routes);
    let service = world.layer.layer(service_fn(async |_: Request<tonic::body::Body>| {
        Ok::<_, Infallible>(Response::new(tonic::body::Body::empty()))
    }));
    let request = Request::builder().uri("/s/M").header("content-type", "application/grpc");
    let response = service.oneshot(request.body(tonic::body::Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "16");
}
