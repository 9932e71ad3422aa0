//! The tower layer in front of tonic servers and axum routers alike.
//!
//! Left out: what the caller may do (each service asks [`crate::Caller`]). Invariant: a request reaches the inner
//! service with a verified caller, or on a path that is public by name, without one.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderMap, Request, Response, StatusCode, header};
use tonic::Status;
use tower::{Layer, Service};

use crate::caller::Caller;
use crate::verify::{TokenError, Verifier};

/// Puts authentication in front of a service.
#[derive(Debug, Clone)]
pub struct AuthLayer {
    verifier: Verifier,
    public: Arc<[String]>,
}

impl AuthLayer {
    /// A layer that lets the `public` paths through unauthenticated: an entry that ends in `/` stands for all below
    /// it (`/grpc.health.v1.Health/`), any other for exactly itself (`/checkpoint`).
    pub fn new<P: Into<String>>(verifier: Verifier, public: impl IntoIterator<Item = P>) -> Self {
        Self { verifier, public: public.into_iter().map(Into::into).collect() }
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = Authenticated<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Authenticated { inner, layer: self.clone() }
    }
}

/// A service behind [`AuthLayer`].
#[derive(Debug, Clone)]
pub struct Authenticated<S> {
    inner: S,
    layer: AuthLayer,
}

impl<S, B, R> Service<Request<B>> for Authenticated<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
    R: Default + Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The clone was not polled ready; the original was.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        request.extensions_mut().remove::<Caller>();
        if is_public(&self.layer.public, request.uri().path()) {
            return Box::pin(inner.call(request));
        }
        let verifier = self.layer.verifier.clone();
        Box::pin(async move {
            let verified = match bearer(request.headers()) {
                Ok(token) => verifier.verify(token).await,
                Err(error) => Err(error),
            };
            match verified {
                Ok(caller) => {
                    request.extensions_mut().insert(caller);
                    inner.call(request).await
                }
                Err(error) => {
                    tracing::debug!(%error, path = request.uri().path(), "unauthenticated");
                    Ok(refusal(request.headers(), error))
                }
            }
        })
    }
}

/// Matches whole path segments only, and nothing that a later decoder might read as another path.
fn is_public(public: &[String], path: &str) -> bool {
    let is_plain = !path.contains('%')
        && !path.contains('\\')
        && !path.contains("//")
        && !path.split('/').any(|segment| segment == "." || segment == "..");
    is_plain
        && public
            .iter()
            .any(|entry| if entry.ends_with('/') { path.starts_with(entry.as_str()) } else { path == entry })
}

/// The token of the one `authorization: Bearer` header (RFC 6750 §2.1).
fn bearer(headers: &HeaderMap) -> Result<&str, TokenError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Err(TokenError::Missing),
        (Some(value), None) => value.to_str().map_err(|_| TokenError::NotBearer)?,
        (Some(_), Some(_)) => return Err(TokenError::NotBearer),
    };
    let (scheme, token) = value.split_once(' ').ok_or(TokenError::NotBearer)?;
    let token = token.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() {
        Ok(token)
    } else {
        Err(TokenError::NotBearer)
    }
}

/// gRPC wants its status in the headers of a 200, everything else a 401 with a challenge.
fn refusal<R: Default>(request: &HeaderMap, error: TokenError) -> Response<R> {
    let content_type = request.get(header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
    if content_type.is_some_and(|value| value.starts_with(b"application/grpc")) {
        return Status::from(error).into_http();
    }
    let challenge = error.challenge();
    let mut response = Response::new(R::default());
    *response.status_mut() = StatusCode::UNAUTHORIZED;
    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    response
}
