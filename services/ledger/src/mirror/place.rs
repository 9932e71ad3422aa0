//! A place for a log's files: a bucket of an S3-compatible object store, a directory, or a server to read from.
//!
//! Left out: what the files mean. Invariant: [`Place::create`] never changes what is there, and [`Place::replace`] only what the caller
//! has read; every operation ends within [`OPERATION_LIMIT`].

use std::{fs::File, path::PathBuf, sync::Arc, time::Duration};

use axum::http::HeaderValue;
use bytes::Bytes;
use futures::StreamExt as _;
use object_store::{
    Attribute, Attributes, ClientOptions, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, RetryConfig,
    UpdateVersion, aws::AmazonS3Builder, http::HttpBuilder, local::LocalFileSystem, path::Path,
};

use super::{MirrorOptions, http::Connector};

/// For one operation with its retries.
const OPERATION_LIMIT: Duration = Duration::from_secs(60);
/// How long `object_store` itself tries again; beyond it, the caller does, from what it reads then.
const RETRY_LIMIT: Duration = Duration::from_secs(20);
const RETRIES: usize = 5;
/// In a directory: held while an object is compared and replaced, since a file system can't do that by itself.
const LOCK: &str = "mirror.lock";

/// An operation failed; trying again may help.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    #[error("{url}: {reason}")]
    Unusable { url: String, reason: String },
    #[error("{path}: {reason}")]
    Failed { path: String, reason: String },
    #[error("{path} has {size} bytes, more than the {max} that it can have")]
    TooLong { path: String, size: u64, max: usize },
}

/// What an object is to those who fetch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nature {
    /// A tile or bundle: never changes.
    Immutable,
    /// State or checkpoint.
    Changing,
}

/// An object as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) bytes: Bytes,
    version: UpdateVersion,
}

/// Where files are.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Whether the store keeps content types and cache headers.
    keeps_attributes: bool,
    /// The lock of a directory.
    lock: Option<PathBuf>,
}

impl Place {
    /// Opens a mirror to write.
    pub(crate) fn open(options: &MirrorOptions) -> Result<Self, PlaceError> {
        let url = &*options.url;
        if url.starts_with("s3://") {
            return Self::bucket(AmazonS3Builder::from_env(), options);
        }
        let dir = url.strip_prefix("file://").unwrap_or(url);
        Self::directory(url, dir)
    }

    /// Opens whatever a log can be read from: a bucket, a directory (also without `file://`), or a server over HTTP.
    pub(crate) fn open_to_read(url: &str, token: Option<&str>) -> Result<Self, PlaceError> {
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Self::open(&MirrorOptions { url: url.to_owned(), endpoint: None, region: None });
        }
        let unusable = |reason: String| PlaceError::Unusable { url: url.to_owned(), reason };
        let bearer = token.map(|token| HeaderValue::try_from(format!("Bearer {token}")));
        let bearer = bearer.transpose().map_err(|_| unusable("the token is no header value".to_owned()))?;
        let store = HttpBuilder::new()
            .with_url(url.trim_end_matches('/'))
            .with_http_connector(Connector { bearer })
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .with_retry(retry())
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self::over(Arc::new(store), Path::default(), false))
    }

    /// Over any store.
    pub(crate) fn over(store: Arc<dyn ObjectStore>, prefix: Path, keeps_attributes: bool) -> Self {
        Self { store, prefix, keeps_attributes, lock: None }
    }

    /// A bucket, with the credentials that the builder has.
    pub(crate) fn bucket(builder: AmazonS3Builder, options: &MirrorOptions) -> Result<Self, PlaceError> {
        let url = &*options.url;
        let rest = url.trim_start_matches("s3://");
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let mut builder =
            builder.with_bucket_name(bucket).with_http_connector(Connector::default()).with_retry(retry());
        if let Some(endpoint) = &options.endpoint {
            builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
        }
        if let Some(region) = &options.region {
            builder = builder.with_region(region);
        }
        let unusable = |reason: String| PlaceError::Unusable { url: url.to_owned(), reason };
        let store = builder.build().map_err(|error| unusable(error.to_string()))?;
        let prefix = Path::parse(prefix.trim_matches('/')).map_err(|error| unusable(error.to_string()))?;
        Ok(Self::over(Arc::new(store), prefix, true))
    }

    fn directory(url: &str, dir: &str) -> Result<Self, PlaceError> {
        // It is not made here: an empty directory where a disk should be mounted would be filled anew.
        let store = LocalFileSystem::new_with_prefix(dir)
            .map_err(|error| PlaceError::Unusable { url: url.to_owned(), reason: error.to_string() })?;
        let store = store.with_fsync(true).with_automatic_cleanup(true);
        Ok(Self::over_directory(Arc::new(store), dir.into()))
    }

    /// Over a store that is a directory.
    pub(crate) fn over_directory(store: Arc<dyn ObjectStore>, dir: PathBuf) -> Self {
        Self { lock: Some(dir.join(LOCK)), ..Self::over(store, Path::default(), false) }
    }

    fn path(&self, path: &str) -> Path {
        self.prefix.parts().chain(Path::from(path).parts()).collect()
    }

    /// An object of at most `max` bytes; `None` if there is none.
    pub(crate) async fn get(&self, path: &str, max: usize) -> Result<Option<Found>, PlaceError> {
        let getting = async {
            let result = match self.store.get(&self.path(path)).await {
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                result => result.map_err(failed(path))?,
            };
            let size = result.meta.size;
            if size > max as u64 {
                return Err(PlaceError::TooLong { path: path.to_owned(), size, max });
            }
            let version =
                UpdateVersion { e_tag: result.meta.e_tag.clone(), version: result.meta.version.clone() };
            let bytes = result.bytes().await.map_err(failed(path))?;
            Ok(Some(Found { bytes, version }))
        };
        within(path, getting).await
    }

    /// Puts an object where there is none; whether it did.
    pub(crate) async fn create(&self, path: &str, bytes: Bytes, nature: Nature) -> Result<bool, PlaceError> {
        within(path, self.put(path, bytes, nature, PutMode::Create)).await
    }

    /// Puts an object in the place of the one that was read, or where there was none; false if it is another by now.
    pub(crate) async fn replace(
        &self,
        path: &str,
        bytes: Bytes,
        found: Option<&Found>,
    ) -> Result<bool, PlaceError> {
        let nature = Nature::Changing;
        let replacing = async {
            let Some(found) = found else { return self.put(path, bytes, nature, PutMode::Create).await };
            let Some(lock) = self.lock.clone() else {
                return self.put(path, bytes, nature, PutMode::Update(found.version.clone())).await;
            };
            let _held = hold(path, lock).await?;
            let current = self.get(path, found.bytes.len()).await;
            if !matches!(&current, Ok(Some(current)) if current.bytes == found.bytes) {
                return Ok(false);
            }
            self.put(path, bytes, nature, PutMode::Overwrite).await
        };
        within(path, replacing).await
    }

    async fn put(&self, path: &str, bytes: Bytes, nature: Nature, mode: PutMode) -> Result<bool, PlaceError> {
        let attributes = if self.keeps_attributes { attributes(path, nature) } else { Attributes::new() };
        let options = PutOptions { mode, attributes, ..PutOptions::default() };
        match self.store.put_opts(&self.path(path), bytes.into(), options).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(false)
            }
            Err(error) => Err(failed(path)(error)),
        }
    }

    /// Removes the partial versions of a file whose full one is there.
    pub(crate) async fn remove_partials(&self, full: &str) -> Result<(), PlaceError> {
        let removing = async {
            let found = self.store.list(Some(&self.path(&format!("{full}.p"))));
            let mut removed =
                self.store.delete_stream(found.map(|meta| meta.map(|meta| meta.location)).boxed());
            while let Some(outcome) = removed.next().await {
                outcome.map_err(failed(full))?;
            }
            Ok(())
        };
        within(full, removing).await
    }
}

async fn within<T>(
    path: &str,
    operation: impl Future<Output = Result<T, PlaceError>>,
) -> Result<T, PlaceError> {
    tokio::time::timeout(OPERATION_LIMIT, operation).await.unwrap_or_else(|_| {
        let reason = format!("no answer within {} s", OPERATION_LIMIT.as_secs());
        Err(PlaceError::Failed { path: path.to_owned(), reason })
    })
}

/// Waits for a directory's lock, which ends with the file.
async fn hold(path: &str, lock: PathBuf) -> Result<File, PlaceError> {
    let holding = tokio::task::spawn_blocking(move || {
        let file = File::options().write(true).create(true).truncate(false).open(&lock)?;
        file.lock()?;
        std::io::Result::Ok(file)
    });
    let failed = |reason: String| PlaceError::Failed { path: path.to_owned(), reason };
    holding
        .await
        .map_err(|error| failed(error.to_string()))?
        .map_err(|error| failed(format!("its directory can't be locked: {error}")))
}

fn failed(path: &str) -> impl Fn(object_store::Error) -> PlaceError + '_ {
    |error| PlaceError::Failed { path: path.to_owned(), reason: error.to_string() }
}

fn retry() -> RetryConfig {
    RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_LIMIT, ..RetryConfig::default() }
}

fn attributes(path: &str, nature: Nature) -> Attributes {
    let content_type = match nature {
        Nature::Immutable => "application/octet-stream",
        Nature::Changing => "text/plain; charset=utf-8",
    };
    // Entries hold tenants' data: no shared cache keeps what only some may fetch.
    let cache = match nature {
        Nature::Immutable if path.starts_with("tile/entries/") => "private, max-age=31536000, immutable",
        Nature::Immutable => "public, max-age=31536000, immutable",
        Nature::Changing => "no-cache",
    };
    Attributes::from_iter([(Attribute::ContentType, content_type), (Attribute::CacheControl, cache)])
}
