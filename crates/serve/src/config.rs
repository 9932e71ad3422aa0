//! A daemon's command line, and the configuration sections that all daemons share: `[stream]`, `[auth]` and `[telemetry]`.
//!
//! Flags win over the environment, the environment over the file. Every fault is reported, together, before anything starts: also
//! those of the files that the configuration names.

use std::{
    fmt::Display,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use axum::http::Uri;
use exchequer_auth::{
    Verifier, VerifierOptions, check_jwks,
    keys::{self, KeyError},
};
use exchequer_config::{Faults, Reader};
use exchequer_stream::{EventStream, JetStream, jetstream};
use exchequer_telemetry as telemetry;
use tracing_subscriber::EnvFilter;

/// Sections that belong to some daemon; each daemon passes over those of the others, so that one file can serve them all.
const SECTIONS: [&str; 6] = ["stream", "auth", "telemetry", "ledger", "metering", "agent"];
/// How long a daemon goes on trying to reach the stream when it starts.
const STREAM_PATIENCE: Duration = Duration::from_secs(60);

/// The command line of a daemon.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Configuration file (TOML). Every key can also be given as an environment variable: `ledger.data` is EXCHEQUER_LEDGER_DATA.
    #[arg(long, value_name = "FILE", env = "EXCHEQUER_CONFIG")]
    pub config: Option<PathBuf>,
    /// Sets one key, over file and environment: `--set ledger.checkpoint_interval=250ms`. Can be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_setting)]
    pub set: Vec<(String, String)>,
    /// Checks the configuration and the files that it names, and exits: 0 if it holds, 2 with every fault listed if not.
    #[arg(long)]
    pub check: bool,
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

impl Arguments {
    /// A reader over the file, the environment and the flags. `sections` are those that this daemon reads.
    pub fn reader(&self, sections: &[&str]) -> anyhow::Result<Reader> {
        let text = match &self.config {
            Some(path) => Some(
                std::fs::read_to_string(path).with_context(|| format!("configuration {}", path.display()))?,
            ),
            None => None,
        };
        let path = self.config.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let file = text.as_deref().map(|text| (path.as_str(), text));
        let mut reader = Reader::new(file, std::env::vars(), self.set.clone());
        reader.allow_env(&[
            "EXCHEQUER_CONFIG",
            "EXCHEQUER_TOKEN",
            "EXCHEQUER_DATA",
            "EXCHEQUER_GRPC",
            "EXCHEQUER_HTTP",
        ]);
        for section in SECTIONS.iter().filter(|section| !sections.contains(section)) {
            reader.allow_section(section);
        }
        Ok(reader)
    }
}

/// Prints every fault and ends the process with status 2.
#[allow(clippy::print_stderr)]
pub fn exit_with(faults: &Faults) -> ! {
    eprintln!("{faults}");
    std::process::exit(2)
}

/// How to reach the stream of a real deployment.
#[derive(Clone, Debug)]
pub struct StreamOptions(pub jetstream::Options);

impl StreamOptions {
    /// Section `[stream]`. `None` if no URL is given: then the stream is embedded, where that is possible.
    pub fn read(reader: &mut Reader) -> Option<Self> {
        let url = reader.optional::<String>("stream.url");
        let mut options = jetstream::Options::new(url.clone().unwrap_or_default());
        options.credentials = reader.optional::<PathBuf>("stream.credentials_file");
        options.replicas = reader.in_range("stream.replicas", 1, 1..=5);
        options.monitor_urls = reader.list::<String>("stream.monitor_urls");
        options.prefix = reader.optional::<String>("stream.prefix");
        good(reader, "stream.url", url.as_deref().map_or(Ok(()), jetstream::check_url));
        good(reader, "stream.prefix", options.prefix.as_deref().map_or(Ok(()), jetstream::check_name));
        let credentials = options.credentials.as_deref().map_or(Ok(()), jetstream::check_credentials);
        good(reader, "stream.credentials_file", credentials);
        let monitors = options.monitor_urls.iter().try_for_each(|url| plain_http(url));
        good(reader, "stream.monitor_urls", monitors);
        if url.is_none() {
            let given = [
                ("stream.credentials_file", options.credentials.is_some()),
                ("stream.replicas", reader.optional::<String>("stream.replicas").is_some()),
                ("stream.monitor_urls", !options.monitor_urls.is_empty()),
                ("stream.prefix", options.prefix.is_some()),
            ];
            for (key, _) in given.iter().filter(|(_, given)| *given) {
                reader.fault(key, "takes effect only with stream.url, which is not given");
            }
        }
        url.map(|_| Self(options))
    }

    /// Connects; tries for a minute, since a deployment starts in any order.
    pub async fn connect(&self) -> anyhow::Result<Arc<dyn EventStream>> {
        let deadline = tokio::time::Instant::now() + STREAM_PATIENCE;
        loop {
            match JetStream::connect(self.0.clone()).await {
                Ok(stream) => return Ok(Arc::new(stream)),
                Err(error @ jetstream::ConnectError::Unavailable(_))
                    if tokio::time::Instant::now() < deadline =>
                {
                    tracing::warn!(%error, "waiting for the stream");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(error) => return Err(error).context("stream"),
            }
        }
    }
}

/// What every daemon takes from its configuration beside its own section.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The stream, if it is a real one.
    pub stream: Option<StreamOptions>,
    /// Who is believed.
    pub auth: Option<VerifierOptions>,
    /// Logs and traces.
    pub telemetry: telemetry::Options,
}

impl Shared {
    /// Sections `[stream]`, `[auth]` and `[telemetry]`. With `is_alone` (a daemon by itself) the stream's URL and the keys of
    /// `[auth]` are required; without, the caller has a stream and an issuer of its own to fall back on.
    pub fn read(reader: &mut Reader, service_name: &str, is_alone: bool) -> Self {
        let stream = StreamOptions::read(reader);
        if is_alone && stream.is_none() {
            reader.fault("stream.url", "is required");
        }
        let mut key = |name: &str| {
            if is_alone { reader.required::<String>(name) } else { reader.optional::<String>(name) }
        };
        let (jwks, issuer, audience) = (key("auth.jwks_file"), key("auth.issuer"), key("auth.audience"));
        let given = [
            ("auth.jwks_file", jwks.is_some()),
            ("auth.issuer", issuer.is_some()),
            ("auth.audience", audience.is_some()),
        ];
        if !is_alone && given.iter().any(|(_, given)| *given) {
            for (name, _) in given.iter().filter(|(_, given)| !given) {
                reader.fault(
                    name,
                    "is required where one of auth.jwks_file, auth.issuer and auth.audience is given",
                );
            }
        }
        let jwks_file = jwks.as_deref().map_or(Ok(()), |path| check_jwks(Path::new(path)));
        good(reader, "auth.jwks_file", jwks_file);
        let auth = jwks
            .zip(issuer)
            .zip(audience)
            .map(|((jwks, issuer), audience)| VerifierOptions::new(issuer, audience, jwks));
        // What the filter says is checked here and used as text.
        let _ = reader.optional::<EnvFilter>("telemetry.log_filter");
        let otlp_endpoint = reader.optional::<String>("telemetry.otlp_endpoint");
        good(reader, "telemetry.otlp_endpoint", otlp_endpoint.as_deref().map_or(Ok(()), plain_http));
        let telemetry = telemetry::Options {
            service_name: service_name.to_owned(),
            log_format: reader.get("telemetry.log_format", telemetry::LogFormat::Text),
            log_filter: reader.get("telemetry.log_filter", "info".to_owned()),
            otlp_endpoint,
        };
        Self { stream, auth, telemetry }
    }

    /// The verifier of tokens.
    pub async fn verifier(&self) -> anyhow::Result<Verifier> {
        let options = self.auth.clone().context("[auth] is not configured")?;
        Verifier::open(options).await.context("auth.jwks_file")
    }
}

/// Checks the service's key file, `<section>.key_file` or `<section>.key` in `<section>.data`. None is good: it is made at the start.
pub fn check_key_file(reader: &mut Reader, section: &str) {
    let key = format!("{section}.key_file");
    let data = reader.optional::<PathBuf>(&format!("{section}.data"));
    let file = reader.optional(&key).or(data.map(|data| data.join(format!("{section}.key"))));
    match file.map(keys::load) {
        Some(Err(KeyError::Io { source, .. })) if source.kind() == io::ErrorKind::NotFound => {}
        Some(outcome) => good(reader, &key, outcome.map(|_| ())),
        None => {}
    }
}

fn good<E: Display>(reader: &mut Reader, key: &str, checked: Result<(), E>) {
    if let Err(error) = checked {
        reader.fault(key, error.to_string());
    }
}

fn plain_http(url: &str) -> Result<(), &'static str> {
    let parsed = url.parse::<Uri>().ok();
    let is_plain = parsed.is_some_and(|url| url.scheme_str() == Some("http") && url.host().is_some());
    if is_plain { Ok(()) } else { Err("is not an http:// URL") }
}

/// Where a daemon listens: `<section>.grpc_listen` and `<section>.http_listen`.
#[derive(Clone, Copy, Debug)]
pub struct Listen {
    /// gRPC.
    pub grpc: SocketAddr,
    /// HTTP.
    pub http: SocketAddr,
}

impl Listen {
    /// Reads both addresses; the defaults are loopback at the given port and the next.
    pub fn read(reader: &mut Reader, section: &str, grpc_port: u16) -> Self {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            grpc: reader.get(&format!("{section}.grpc_listen"), local(grpc_port)),
            http: reader.get(&format!("{section}.http_listen"), local(grpc_port + 1)),
        }
    }
}
