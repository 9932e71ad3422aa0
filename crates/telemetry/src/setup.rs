//! The process's log and trace pipeline.
//!
//! Left out: metrics, which need no set-up ([`crate::meter`]). Invariant: standard output is never written to; it
//! belongs to the program.

use std::io::IsTerminal as _;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt};

/// Longest time that the last spans may take to leave at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// The transport's own spans are not traced: exporting a span would make another.
const UNTRACED: [&str; 6] = ["h2", "hyper", "hyper_util", "tonic", "tower", "opentelemetry"];

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("expected `text` or `json`".to_owned()),
        }
    }
}

/// What to log and where to send traces.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `service.name` of the traces.
    pub service_name: String,
    /// The shape of a log line.
    pub log_format: LogFormat,
    /// Directives of `tracing`'s `EnvFilter`, such as `info,exchequer_ledger=debug`.
    pub log_filter: String,
    /// The OTLP gRPC endpoint, such as `http://localhost:4317`. None: spans are made and propagated, not exported.
    pub otlp_endpoint: Option<String>,
}

/// Why telemetry was not set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter does not parse.
    #[error("the log filter is invalid: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The exporter can't be made for this endpoint.
    #[error("the OTLP endpoint is unusable: {0}")]
    Endpoint(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Export over gRPC was asked for outside of a tokio runtime.
    #[error("OTLP export needs a tokio runtime")]
    NoRuntime,
    /// The process has a subscriber that is not ours.
    #[error("another tracing subscriber is already installed")]
    Taken,
}

/// Sends the remaining spans when it goes; spans made later have no ids. Keep it until the end of `main`.
#[derive(Debug)]
#[must_use = "dropping the guard ends tracing for the process"]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Guard {
    /// Sends the remaining spans and ends the export; blocks for at most 5 s. The same as dropping the guard.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take()
            && let Err(error) = provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT)
        {
            tracing::warn!(%error, "the last spans may be lost");
        }
    }
}

/// Sets up logs and traces for the process. Once it has succeeded, further calls change nothing and return a guard
/// that guards nothing, so that several services can run in one process.
pub fn init(options: &Options) -> Result<Guard, InitError> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if *done {
        return Ok(Guard { provider: None });
    }
    let filter = EnvFilter::builder().parse(&options.log_filter)?;
    let provider = provider(options)?;
    let log = fmt::layer().with_writer(std::io::stderr);
    let log = match options.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).with_filter(filter).boxed(),
        LogFormat::Json => log.json().flatten_event(true).with_filter(filter).boxed(),
    };
    let traced = Targets::new()
        .with_default(LevelFilter::INFO)
        .with_targets(UNTRACED.map(|target| (target, LevelFilter::OFF)));
    let traces =
        tracing_opentelemetry::layer().with_tracer(provider.tracer("exchequer")).with_filter(traced).boxed();
    let layers: Vec<Box<dyn tracing_subscriber::Layer<Registry> + Send + Sync>> = vec![log, traces];
    tracing_subscriber::registry().with(layers).try_init().map_err(|_| InitError::Taken)?;
    *done = true;
    Ok(Guard { provider: Some(provider) })
}

/// Without an endpoint the provider has nowhere to send to, but still makes the ids that logs and messages carry.
fn provider(options: &Options) -> Result<SdkTracerProvider, InitError> {
    let resource = Resource::builder().with_service_name(options.service_name.clone()).build();
    let builder = SdkTracerProvider::builder().with_resource(resource);
    let Some(endpoint) = &options.otlp_endpoint else {
        return Ok(builder.build());
    };
    if tokio::runtime::Handle::try_current().is_err() {
        return Err(InitError::NoRuntime);
    }
    let exporter =
        opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    Ok(builder.with_batch_exporter(exporter).build())
}
