//! Options, the connection, and the stream's set-up: created where absent, checked where it exists.
//!
//! Left out: changing a set-up that exists. Invariant: a stream that would lose or change messages is refused, with every reason.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::jetstream::stream::{self, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{Context, kv};
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use tokio::sync::watch;

use crate::stream::{MAX_LATEST, MAX_PAYLOAD};
use crate::subject::SUBJECTS;

/// Longest pause between two attempts to reach the server again.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How to reach and use the server.
#[derive(Clone)]
pub struct Options {
    /// Server URLs, separated by commas, e.g. `nats://user:password@host:4222` or `tls://host`.
    pub url: String,
    /// Name of the stream; the buckets' names begin with it. Default `EXCHEQUER`.
    pub stream: String,
    /// A token put before every subject and after the stream's name: several streams on one server.
    pub prefix: Option<String>,
    /// Copies of the stream. Default 1.
    pub replicas: usize,
    /// A `.creds` file.
    pub credentials: Option<PathBuf>,
    /// Monitoring addresses (`http://host:port`) of all servers that hold the stream, to check that they sync always.
    pub monitor_urls: Vec<String>,
    /// How long to wait for an answer. Default 10 s.
    pub timeout: Duration,
}

impl Options {
    /// The defaults for one server.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            stream: "EXCHEQUER".into(),
            prefix: None,
            replicas: 1,
            credentials: None,
            monitor_urls: Vec::new(),
            timeout: Duration::from_secs(10),
        }
    }

    pub(super) fn stream_name(&self) -> String {
        self.prefix.as_ref().map_or_else(|| self.stream.clone(), |p| format!("{}_{p}", self.stream))
    }

    pub(super) fn subject_prefix(&self) -> String {
        self.prefix.as_ref().map_or_else(String::new, |p| format!("{p}."))
    }
}

// The URL may hold a password.
impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { url: _, stream, prefix, replicas, credentials, monitor_urls, timeout } = self;
        let mut out = f.debug_struct("Options");
        out.field("stream", stream)
            .field("prefix", prefix)
            .field("replicas", replicas)
            .field("credentials", credentials);
        out.field("monitor_urls", monitor_urls).field("timeout", timeout).finish_non_exhaustive()
    }
}

/// Why the stream can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No server, or no JetStream, answered. Retry later.
    #[error("no JetStream server reached: {0}")]
    Unavailable(String),
    /// Wrong options or credentials.
    #[error("invalid NATS options: {0}")]
    Options(String),
    /// The server has the stream, but set up in a way that loses or changes messages.
    #[error("stream {stream} is set up wrongly: {}", .faults.join("; "))]
    Setup {
        /// The stream's name.
        stream: String,
        /// Every setting that is wrong.
        faults: Vec<String>,
    },
}

/// Whether `url` is a list of server URLs as [`Options::url`] takes it. The reason never quotes it: it may hold a password.
pub fn check_url(url: &str) -> Result<(), String> {
    for url in url.split(',') {
        let address = url.trim().parse::<ServerAddr>().map_err(|error| error.to_string())?;
        if address.host().is_empty() {
            return Err("NATS server URL is invalid: no host".to_owned());
        }
    }
    Ok(())
}

/// Whether `name` can be a stream's name or [`Options::prefix`].
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(format!("{name:?} is not of [A-Za-z0-9-_]"));
    }
    Ok(())
}

/// Whether the file can be read and holds NATS credentials.
pub fn check_credentials(path: &Path) -> Result<(), String> {
    let read = std::fs::read_to_string(path).and_then(|text| ConnectOptions::new().credentials(&text));
    read.map(|_| ()).map_err(|error| format!("{}: {error}", path.display()))
}

/// User and password of the first URL that names them. The client itself takes neither from a URL.
fn user_and_password(url: &str) -> Option<(String, String)> {
    url.split(',').filter_map(|url| url.trim().parse::<ServerAddr>().ok()).find_map(|address| {
        let user = address.username().filter(|user| !user.is_empty())?;
        Some((user.to_owned(), address.password().unwrap_or_default().to_owned()))
    })
}

/// How often the connection was made and lost so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Connection {
    pub(super) made: u64,
    pub(super) lost: u64,
}

pub(super) async fn connect_client(
    options: &Options,
) -> Result<(Client, watch::Receiver<Connection>), ConnectError> {
    let (changes, connection) = watch::channel(Connection::default());
    let mut connect = ConnectOptions::new()
        .name("exchequer")
        .max_reconnects(None)
        .ping_interval(PING_INTERVAL)
        .connection_timeout(options.timeout)
        .request_timeout(Some(options.timeout))
        .reconnect_delay_callback(|attempt| {
            let attempt = u32::try_from(attempt).unwrap_or(u32::MAX);
            (Duration::from_millis(50) * attempt.min(1000)).min(MAX_RECONNECT_DELAY)
        })
        .event_callback(move |event| {
            match &event {
                Event::Connected => changes.send_modify(|c| c.made += 1),
                Event::Disconnected | Event::Closed => changes.send_modify(|c| c.lost += 1),
                _ => {}
            }
            async move {
                match event {
                    Event::Connected | Event::LameDuckMode | Event::Draining | Event::Closed => {
                        tracing::info!(%event, "NATS");
                    }
                    _ => tracing::warn!(%event, "NATS"),
                }
            }
        });
    if let Some((user, password)) = user_and_password(&options.url) {
        // Servers can then grant each user its own answers only; a shared prefix lets every user read all others'.
        if user.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            connect = connect.custom_inbox_prefix(format!("_INBOX_{user}"));
        }
        connect = connect.user_and_password(user, password);
    }
    if let Some(path) = &options.credentials {
        let read = connect.credentials_file(path).await;
        connect = read.map_err(|e| ConnectError::Options(format!("credentials {}: {e}", path.display())))?;
    }
    let urls: Vec<&str> = options.url.split(',').map(str::trim).collect();
    let client = connect.connect(urls).await.map_err(|e| match e.kind() {
        async_nats::ConnectErrorKind::ServerParse
        | async_nats::ConnectErrorKind::Authentication
        | async_nats::ConnectErrorKind::AuthorizationViolation => ConnectError::Options(e.to_string()),
        _ => ConnectError::Unavailable(e.to_string()),
    })?;
    Ok((client, connection))
}

pub(super) async fn open_stream(
    context: &Context,
    options: &Options,
    name: &str,
    prefix: &str,
) -> Result<stream::Stream, ConnectError> {
    let wanted = stream::Config {
        name: name.to_owned(),
        subjects: SUBJECTS.iter().map(|s| format!("{prefix}{s}")).collect(),
        storage: StorageType::File,
        num_replicas: options.replicas,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        max_messages: -1,
        max_bytes: -1,
        max_messages_per_subject: -1,
        allow_direct: true,
        deny_delete: true,
        deny_purge: true,
        ..stream::Config::default()
    };
    let opened = context.get_or_create_stream(wanted.clone()).await;
    let stream = opened.map_err(|e| ConnectError::Unavailable(format!("stream {name}: {e}")))?;
    let faults = faults(&stream.cached_info().config, &wanted);
    if faults.is_empty() { Ok(stream) } else { Err(ConnectError::Setup { stream: name.to_owned(), faults }) }
}

/// What in a stream's set-up would lose, change or refuse messages.
fn faults(actual: &stream::Config, wanted: &stream::Config) -> Vec<String> {
    let mut subjects = actual.subjects.clone();
    let mut wanted_subjects = wanted.subjects.clone();
    subjects.sort();
    wanted_subjects.sort();
    let size_ok = actual.max_message_size <= 0
        || usize::try_from(actual.max_message_size).is_ok_and(|s| s > MAX_PAYLOAD);
    let checks = [
        (subjects == wanted_subjects, format!("subjects are {subjects:?}, not {wanted_subjects:?}")),
        (actual.storage == StorageType::File, "storage is not file".to_owned()),
        (
            actual.num_replicas >= wanted.num_replicas,
            format!("{} replicas, not {}", actual.num_replicas, wanted.num_replicas),
        ),
        (actual.retention == RetentionPolicy::Limits, "retention is not limits".to_owned()),
        (actual.discard == DiscardPolicy::New, "discards old messages".to_owned()),
        (actual.max_age.is_zero(), format!("drops messages after {:?}", actual.max_age)),
        (actual.max_messages_per_subject <= 0, "limits messages per subject".to_owned()),
        (actual.deny_delete, "allows deletion".to_owned()),
        (actual.deny_purge, "allows purging".to_owned()),
        (!actual.allow_rollup, "allows rollup".to_owned()),
        (!actual.no_ack, "does not acknowledge".to_owned()),
        (!actual.sealed, "is sealed".to_owned()),
        (actual.mirror.is_none() && actual.sources.is_none(), "copies from other streams".to_owned()),
        (actual.subject_transform.is_none(), "transforms subjects".to_owned()),
        (size_ok, format!("refuses messages above {} bytes", actual.max_message_size)),
    ];
    checks.into_iter().filter(|(ok, _)| !ok).map(|(_, fault)| fault).collect()
}

pub(super) async fn open_bucket(
    context: &Context,
    options: &Options,
    bucket: &str,
) -> Result<stream::Stream, ConnectError> {
    let name = format!("KV_{bucket}");
    let unavailable = |e: String| ConnectError::Unavailable(format!("bucket {bucket}: {e}"));
    let stream = if let Ok(stream) = context.get_stream(&name).await {
        stream
    } else {
        let config = kv::Config {
            bucket: bucket.to_owned(),
            history: 1,
            storage: StorageType::File,
            num_replicas: options.replicas,
            max_value_size: i32::try_from(MAX_LATEST + 1024).expect("a small constant"),
            ..kv::Config::default()
        };
        context.create_key_value(config).await.map_err(|e| unavailable(e.to_string()))?;
        context.get_stream(&name).await.map_err(|e| unavailable(e.to_string()))?
    };
    let config = &stream.cached_info().config;
    let mut faults = Vec::new();
    if config.storage != StorageType::File {
        faults.push("storage is not file".to_owned());
    }
    if !config.max_age.is_zero() {
        faults.push(format!("drops values after {:?}", config.max_age));
    }
    if config.num_replicas < options.replicas {
        faults.push(format!("{} replicas, not {}", config.num_replicas, options.replicas));
    }
    if faults.is_empty() { Ok(stream) } else { Err(ConnectError::Setup { stream: name, faults }) }
}
