//! The JWKS file behind a verifier: read at start, again every so often, and when a token names an unknown key.
//!
//! Left out: fetching over the network. Invariant: the keys in use are always those of the last document that was
//! good as a whole; a broken one changes nothing and is reported until it is replaced.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::jwks::{JwksError, KeySet, MAX_JWKS_BYTES};

#[derive(Debug)]
pub(crate) struct KeySource {
    path: PathBuf,
    refresh: Duration,
    cool_down: Duration,
    keys: RwLock<Arc<KeySet>>,
    fault: RwLock<Option<JwksError>>,
    /// When the file was last read after the start. The lock is the single flight.
    last: Mutex<Reads>,
}

#[derive(Debug)]
struct Reads {
    scheduled: Instant,
    on_demand: Option<Instant>,
    count: u64,
}

impl KeySource {
    pub(crate) async fn open(path: &Path, refresh: Duration, cool_down: Duration) -> Result<Self, JwksError> {
        let keys = read(path).await?;
        Ok(Self {
            path: path.to_owned(),
            refresh,
            cool_down,
            keys: RwLock::new(Arc::new(keys)),
            fault: RwLock::new(None),
            last: Mutex::new(Reads { scheduled: Instant::now(), on_demand: None, count: 1 }),
        })
    }

    /// The keys in use; reads the file first if that is due and nobody else is doing it.
    pub(crate) async fn current(&self) -> Arc<KeySet> {
        if let Ok(mut last) = self.last.try_lock()
            && last.scheduled.elapsed() >= self.refresh
        {
            self.reload(&mut last).await;
        }
        self.keys()
    }

    /// The keys after a token named a key that `seen` lacks: reads the file unless somebody just did.
    pub(crate) async fn after_unknown(&self, seen: &Arc<KeySet>) -> Arc<KeySet> {
        let mut last = self.last.lock().await;
        let is_stale = Arc::ptr_eq(seen, &self.keys());
        let is_cool = last.on_demand.is_none_or(|at| at.elapsed() >= self.cool_down);
        if is_stale && is_cool {
            last.on_demand = Some(Instant::now());
            self.reload(&mut last).await;
        }
        self.keys()
    }

    /// Why the file's present content is not in use, if it is not.
    pub(crate) fn fault(&self) -> Option<JwksError> {
        self.fault.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keys(&self) -> Arc<KeySet> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn reload(&self, last: &mut Reads) {
        last.scheduled = Instant::now();
        last.count += 1;
        let fault = match read(&self.path).await {
            Ok(keys) => {
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
                None
            }
            Err(error) => Some(error),
        };
        let mut known = self.fault.write().unwrap_or_else(PoisonError::into_inner);
        if *known != fault {
            let path = self.path.display();
            if let Some(error) = &fault {
                tracing::error!(%error, %path, "keeping the last good keys");
            } else {
                tracing::info!(%path, "the key file is good again");
            }
            *known = fault;
        }
    }
}

async fn read(path: &Path) -> Result<KeySet, JwksError> {
    let owned = path.to_owned();
    let reading = tokio::task::spawn_blocking(move || read_now(&owned)).await;
    reading.unwrap_or_else(|error| Err(unreadable(path, &error)))
}

/// Whether a JWKS file is as [`crate::Verifier::open`] needs it; blocks while it is read.
pub fn check_jwks(path: &Path) -> Result<(), JwksError> {
    read_now(path).map(|_| ())
}

fn read_now(path: &Path) -> Result<KeySet, JwksError> {
    let failed = |error| unreadable(path, &error);
    let mut document = Vec::new();
    // One byte more than allowed tells "too large" from "just fits".
    let limit = u64::try_from(MAX_JWKS_BYTES).unwrap_or(u64::MAX) + 1;
    let file = File::open(path).map_err(failed)?;
    file.take(limit).read_to_end(&mut document).map_err(failed)?;
    KeySet::parse(&document)
}

fn unreadable(path: &Path, error: &dyn std::error::Error) -> JwksError {
    JwksError::Read { path: path.display().to_string(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    const HOUR: Duration = Duration::from_secs(3600);

    async fn opened(refresh: Duration, cool_down: Duration) -> (tempfile::NamedTempFile, Arc<KeySource>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), A).unwrap();
        let source = KeySource::open(file.path(), refresh, cool_down).await.unwrap();
        (file, Arc::new(source))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_unknown_keys_at_once_read_the_file_once() {
        let (_file, source) = opened(HOUR, HOUR).await;
        let seen = source.current().await;
        let mut tasks = Vec::new();
        for _ in 0..64 {
            let (source, seen) = (Arc::clone(&source), Arc::clone(&seen));
            tasks.push(tokio::spawn(async move { source.after_unknown(&seen).await }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(source.last.lock().await.count, 2);
    }

    #[tokio::test]
    async fn unknown_keys_one_after_another_read_the_file_once_within_the_cool_down() {
        let (_file, source) = opened(HOUR, HOUR).await;
        for _ in 0..5 {
            let seen = source.current().await;
            source.after_unknown(&seen).await;
            assert_eq!(source.last.lock().await.count, 2);
        }
    }

    #[tokio::test]
    async fn after_the_cool_down_an_unknown_key_reads_the_file_again() {
        let (_file, source) = opened(HOUR, Duration::ZERO).await;
        for expected in 2..5 {
            let seen = source.current().await;
            source.after_unknown(&seen).await;
            assert_eq!(source.last.lock().await.count, expected);
        }
    }

    #[tokio::test]
    async fn a_removed_key_is_gone_after_the_refresh_interval() {
        let (file, source) = opened(Duration::ZERO, HOUR).await;
        assert!(source.current().await.get("a").is_some());
        std::fs::write(file.path(), A.replace("\"a\"", "\"b\"")).unwrap();
        let keys = source.current().await;
        assert!(keys.get("a").is_none() && keys.get("b").is_some());
    }

    #[tokio::test]
    async fn a_broken_file_keeps_the_last_good_keys_and_is_reported_until_it_is_good() {
        let (file, source) = opened(Duration::ZERO, HOUR).await;
        std::fs::write(file.path(), "{}").unwrap();
        assert!(source.current().await.get("a").is_some());
        let fault = source.fault();
        assert!(matches!(fault, Some(JwksError::Malformed(_))), "{fault:?}");
        std::fs::write(file.path(), vec![b' '; MAX_JWKS_BYTES + 1]).unwrap();
        assert!(source.current().await.get("a").is_some());
        assert_eq!(source.fault(), Some(JwksError::TooLarge));
        std::fs::write(file.path(), A).unwrap();
        source.current().await;
        assert_eq!(source.fault(), None);
    }
}
