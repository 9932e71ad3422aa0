//! Where a log's files come from: a directory, or an HTTP server with the same paths.
//!
//! Left out: what the files mean. Invariant: nothing larger than the bound that the caller names is ever held.

use std::{
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
    time::Duration,
};

use exchequer_tlog::TILE_WIDTH;

/// A request that takes longer has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A log's files.
pub(super) enum Source {
    Directory(PathBuf),
    Remote(Remote),
}

/// A file could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SourceError {
    #[error("is missing")]
    Missing,
    #[error("is longer than the {0} bytes it can have")]
    TooLong(usize),
    #[error("could not be read: {0}")]
    Failed(String),
}

impl Source {
    /// The file at this path under the log, of at most `max` bytes.
    pub(super) fn read(&self, path: &str, max: usize) -> Result<Vec<u8>, SourceError> {
        match self {
            Self::Directory(root) => {
                let file = File::open(root.join(path)).map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => SourceError::Missing,
                    _ => SourceError::Failed(error.to_string()),
                })?;
                // A file says how long it is; how long it may be says the caller.
                let length = file.metadata().map_or(0, |metadata| metadata.len());
                let mut bytes =
                    Vec::with_capacity(usize::try_from(length).map_or(max, |length| length.min(max)) + 1);
                file.take(max as u64 + 1)
                    .read_to_end(&mut bytes)
                    .map_err(|error| SourceError::Failed(error.to_string()))?;
                if bytes.len() > max {
                    return Err(SourceError::TooLong(max));
                }
                Ok(bytes)
            }
            Self::Remote(remote) => remote.read(path, max),
        }
    }

    /// Widths of the partial versions of a file that lie beside it. A server can't be asked for them.
    pub(super) fn partials(&self, full_path: &str) -> Vec<u16> {
        let Self::Directory(root) = self else {
            return Vec::new();
        };
        let Ok(names) = root.join(format!("{full_path}.p")).read_dir() else {
            return Vec::new();
        };
        let mut widths: Vec<u16> = names
            .filter_map(|name| name.ok()?.file_name().to_str()?.parse().ok())
            .filter(|width| (1..TILE_WIDTH).contains(width))
            .collect();
        widths.sort_unstable();
        widths
    }

    /// Requests or reads that are worth making at the same time.
    pub(super) fn lanes(&self) -> u64 {
        match self {
            Self::Directory(_) => std::thread::available_parallelism().map_or(1, |n| n.get().min(16) as u64),
            Self::Remote(_) => 8,
        }
    }
}

/// A log behind a URL.
pub(super) struct Remote {
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    /// Ends with a slash.
    base: String,
    token: Option<String>,
}

impl Remote {
    /// Blocks, so it must be neither made, used nor dropped on a thread of an async runtime.
    pub(super) fn new(url: &str, token: Option<String>) -> Result<Self, String> {
        if !url.starts_with("http://") {
            return Err(
                "only http:// URLs can be read; for https:// put a local proxy in front, or copy the log's \
                        files and give the directory"
                    .into(),
            );
        }
        let base = format!("{}/", url.trim_end_matches('/'));
        reqwest::Url::parse(&base).map_err(|error| format!("not a URL: {error}"))?;
        let client = reqwest::Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| error.to_string())?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { runtime, client, base, token })
    }

    fn read(&self, path: &str, max: usize) -> Result<Vec<u8>, SourceError> {
        let mut request = self.client.get(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        self.runtime.handle().block_on(async {
            let failed = |error: reqwest::Error| SourceError::Failed(chain(&error));
            let mut response = request.send().await.map_err(failed)?;
            match response.status().as_u16() {
                200 => {}
                404 | 410 => return Err(SourceError::Missing),
                status @ (401 | 403) => {
                    let hint =
                        if self.token.is_some() { "this token may not read it" } else { "it needs a token" };
                    return Err(SourceError::Failed(format!("status {status}: {hint}")));
                }
                status => return Err(SourceError::Failed(format!("status {status}"))),
            }
            let mut bytes = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(failed)? {
                if bytes.len() + chunk.len() > max {
                    return Err(SourceError::TooLong(max));
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(bytes)
        })
    }
}

/// An error with its causes: the outermost of an HTTP client says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
