//! An object store that fails once, or into which another ledger writes at that moment.

use std::{
    fmt,
    fs::File,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use exchequer_tlog::SignedCheckpoint;
use futures::{StreamExt as _, stream::BoxStream};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};

use super::super::Mirror;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The operation is not performed.
    Before,
    /// It is performed, and the caller gets an error.
    AfterButPersisted,
    /// Another ledger mirrors its oldest checkpoint just before.
    OlderInBetween,
    /// Another ledger mirrors its newest checkpoint just before.
    NewerInBetween,
}

impl Fault {
    pub(super) const ALL: [Self; 4] =
        [Self::Before, Self::AfterButPersisted, Self::OlderInBetween, Self::NewerInBetween];
}

#[derive(Debug)]
pub(super) struct Faulty {
    store: Arc<dyn ObjectStore>,
    fault: Fault,
    at: u64,
    operations: AtomicU64,
    intruder: (Mirror, Vec<SignedCheckpoint>),
    /// The directory's lock, which keeps the intruder out while it is held.
    lock: Option<PathBuf>,
}

impl Faulty {
    pub(super) fn new(
        store: Arc<dyn ObjectStore>,
        fault: Fault,
        at: u64,
        intruder: (Mirror, Vec<SignedCheckpoint>),
        lock: Option<PathBuf>,
    ) -> Self {
        Self { store, fault, at, operations: AtomicU64::new(0), intruder, lock }
    }

    pub(super) fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }

    /// Counts an operation; whether it fails, and whether it is performed nevertheless.
    async fn fails(&self) -> Option<bool> {
        if self.operations.fetch_add(1, Ordering::Relaxed) != self.at {
            return None;
        }
        let (mirror, published) = &self.intruder;
        let newest = match self.fault {
            Fault::Before => return Some(false),
            Fault::AfterButPersisted => return Some(true),
            Fault::OlderInBetween => published.first(),
            Fault::NewerInBetween => published.last(),
        };
        let is_kept_out = self
            .lock
            .as_ref()
            .and_then(|lock| File::open(lock).ok())
            .is_some_and(|lock| lock.try_lock().is_err());
        if !is_kept_out {
            mirror.push(newest.unwrap()).await.unwrap();
        }
        None
    }
}

fn failure() -> object_store::Error {
    object_store::Error::Generic { store: "faulty", source: "injected".into() }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[tonic::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        match self.fails().await {
            None => self.store.put_opts(path, payload, options).await,
            Some(is_performed) => {
                if is_performed {
                    self.store.put_opts(path, payload, options).await?;
                }
                Err(failure())
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        match self.fails().await {
            None => self.store.get_opts(path, options).await,
            Some(_) => Err(failure()),
        }
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        if self.operations.fetch_add(1, Ordering::Relaxed) == self.at && self.fault == Fault::Before {
            return futures::stream::once(async { Err(failure()) }).boxed();
        }
        self.store.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}
