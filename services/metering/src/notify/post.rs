//! Posts a notification: hyper over rustls with ring, as the ledger's mirror does.
//!
//! Left out: when, and what comes of the answer. Invariants: a connection is made to an address that was checked, not to a name that is
//! resolved once more; redirects are not followed and connections not kept; the answer's body is not read; an https URL is not asked
//! without verifying the certificate.

use std::{
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::http::{
    HeaderMap, HeaderValue, Request, StatusCode, Uri,
    header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT},
};
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use futures::future::BoxFuture;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::Connect},
    rt::{TokioExecutor, TokioIo},
};
use jiff::{Timestamp, fmt::rfc2822};
use tokio::{
    net::{TcpStream, lookup_host},
    sync::OnceCell,
    time::timeout,
};

use super::{
    address::{AllowedHost, bare, refusal},
    outbox::Outcome,
    payload,
};

/// How long an attempt may take: resolving, connecting, asking, and the head of the answer.
const ATTEMPT: Duration = Duration::from_secs(15);
/// How long connecting to one address may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Addresses of a host that are tried at most.
const MAX_ADDRESSES: usize = 4;
/// Most bytes of an answer that are taken off the connection.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Posts to webhooks.
#[derive(Clone)]
pub(super) struct Post(Arc<Inner>);

struct Inner {
    key: SigningKey,
    guarded: Guarded,
    plain: Client<Guarded, Full<Bytes>>,
    /// Made when first needed: where no certificate authority is installed, plain http still works.
    tls: OnceCell<Client<HttpsConnector<Guarded>, Full<Bytes>>>,
}

impl Post {
    /// Signs with the key that the log enrols.
    pub(super) fn new(key: SigningKey, allowed: Vec<AllowedHost>) -> Self {
        let guarded = Guarded(allowed.into());
        let plain = client(guarded.clone());
        Self(Arc::new(Inner { key, guarded, plain, tls: OnceCell::new() }))
    }

    /// One attempt.
    pub(super) async fn post(&self, url: &str, id: &str, body: Bytes) -> Outcome {
        match timeout(ATTEMPT, self.ask(url, id, body)).await {
            Ok(Ok((status, _))) if status.is_success() => Outcome::Delivered(answered(status)),
            Ok(Ok((status, retry_after))) => Outcome::Failed { detail: answered(status), retry_after },
            Ok(Err(detail)) => Outcome::Failed { detail, retry_after: None },
            Err(_) => {
                let detail = format!("no answer within {} s", ATTEMPT.as_secs());
                Outcome::Failed { detail, retry_after: None }
            }
        }
    }

    async fn ask(&self, url: &str, id: &str, body: Bytes) -> Result<(StatusCode, Option<Duration>), String> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp = since.as_secs();
        let uri: Uri = url.parse().map_err(|_| "the URL cannot be asked".to_owned())?;
        let is_tls = uri.scheme_str() == Some("https");
        let request = Request::post(uri)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(USER_AGENT, HeaderValue::from_static("exchequer"))
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", payload::signature(&self.0.key, id, timestamp, &body))
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        let asked = if is_tls {
            let tls = self.0.tls.get_or_try_init(|| tls(self.0.guarded.clone())).await?;
            tls.request(request)
        } else {
            self.0.plain.request(request)
        };
        let response = asked.await.map_err(|error| innermost(&error))?;
        Ok((response.status(), retry_after(response.headers())))
    }
}

fn client<C: Connect + Clone>(connector: C) -> Client<C, Full<Bytes>> {
    Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .retry_canceled_requests(false)
        .http1_max_buf_size(MAX_HEAD_BYTES)
        .build(connector)
}

async fn tls(guarded: Guarded) -> Result<Client<HttpsConnector<Guarded>, Full<Bytes>>, String> {
    let roots = tokio::task::spawn_blocking(|| HttpsConnectorBuilder::new().with_native_roots()).await;
    let builder = roots
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("no certificate authorities to trust: {error}"))?;
    Ok(client(builder.https_or_http().enable_http1().wrap_connector(guarded)))
}

fn answered(status: StatusCode) -> String {
    if status.is_redirection() {
        format!("answered {}; redirects are not followed", status.as_u16())
    } else {
        format!("answered {}", status.as_u16())
    }
}

/// What the receiver asks for, in seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = rfc2822::parse(text).ok()?.timestamp();
    Duration::try_from(at.duration_since(Timestamp::now())).ok()
}

/// The last of the reasons, which says most.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Connects to addresses that are public, or of a host that is allowed.
#[derive(Clone, Debug)]
struct Guarded(Arc<[AllowedHost]>);

impl Guarded {
    async fn connect(self, uri: Uri) -> io::Result<TokioIo<TcpStream>> {
        let host = bare(uri.host().ok_or_else(|| io::Error::other("the URL names no host"))?);
        let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default);
        let addresses: Vec<SocketAddr> = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => lookup_host((host, port)).await?.collect(),
        };
        let is_allowed = self.0.iter().any(|allowed| allowed.names(host, port));
        // A name may have addresses of both sorts. Which they are is none of the tenant's business.
        let mut why = "the host has no address";
        let mut checked = Vec::new();
        for address in addresses {
            match refusal(address.ip()).filter(|_| !is_allowed) {
                Some(reason) => why = reason,
                None => checked.push(address),
            }
        }
        if checked.is_empty() {
            let text =
                format!("the host's address is refused: {why}; metering.webhook_allow does not name it");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        let mut failed = io::Error::other("not tried");
        for address in checked.into_iter().take(MAX_ADDRESSES) {
            match timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(TokioIo::new(stream)),
                Ok(Err(error)) => failed = error,
                Err(_) => failed = io::Error::other("connecting took too long"),
            }
        }
        Err(failed)
    }
}

impl tower::Service<Uri> for Guarded {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_to_come() {
        for (text, want) in [
            ("120", Some(120..=120)),
            ("0", Some(0..=0)),
            ("Tue, 31 Dec 2199 23:59:59 GMT", Some(1_000_000_000..=u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", None),
            ("-1", None),
            ("soon", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            let seconds = retry_after(&headers).map(|wait| wait.as_secs());
            assert_eq!(seconds.is_some(), want.is_some(), "{text}: {seconds:?}");
            assert!(seconds.is_none_or(|seconds| want.unwrap().contains(&seconds)), "{text}: {seconds:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
