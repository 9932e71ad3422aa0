//! The HTTP client of the object stores: hyper over rustls with ring, like the rest of the tree.
//!
//! `object_store` would bring another TLS provider with its own client. Left out: retries and signing, which `object_store` does, and
//! time limits, which each operation has as a whole. Invariant: an https:// URL is never asked without verifying its certificate.

use std::fmt;

use axum::http::{HeaderValue, header::AUTHORIZATION};
use http_body_util::BodyExt as _;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector as Tcp},
    rt::TokioExecutor,
};
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
        HttpResponseBody, HttpService,
    },
};

/// Makes clients.
#[derive(Debug, Default)]
pub(super) struct Connector {
    /// Sent with each request; none for stores that sign.
    pub(super) bearer: Option<HeaderValue>,
}

struct Hyper {
    client: Client<HttpsConnector<Tcp>, HttpRequestBody>,
    bearer: Option<HeaderValue>,
}

impl fmt::Debug for Hyper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hyper")
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        let tls = HttpsConnectorBuilder::new().with_native_roots().map_err(|error| {
            let source = format!("no certificate authorities to trust: {error}").into();
            object_store::Error::Generic { store: "http", source }
        })?;
        let connector = tls.https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(HttpClient::new(Hyper { client, bearer: self.bearer.clone() }))
    }
}

#[tonic::async_trait]
impl HttpService for Hyper {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if let Some(bearer) = &self.bearer {
            request.headers_mut().insert(AUTHORIZATION, bearer.clone());
        }
        let response = self.client.request(request).await.map_err(|error| {
            let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Interrupted };
            HttpError::new(kind, error)
        })?;
        let (parts, body) = response.into_parts();
        let body = body.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error));
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }
}
