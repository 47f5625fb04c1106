//! Bounds the writes that are under way at a time.
//!
//! More writes at a time do not make a slow store faster, and each takes a connection.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;

use super::{Error, Found, Store, Writer};
use crate::entry::{Key, Record, Source};

/// How many writes may be under way and wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteLimit {
    /// Writes under way at a time; at least 1.
    pub concurrent: usize,
    /// Writes that may wait for one of these to end.
    pub waiting: usize,
    /// How long a write may wait.
    pub patience: Duration,
}

/// A store around a store that bounds [`Store::put`], [`Store::replace_record`] and
/// [`Store::delete`]. Reads, bodies written in chunks and deletions of sources pass unbounded.
///
/// Besides the inner store's errors, a write fails with [`Error::TimedOut`] when it has waited for
/// too long, and with [`Error::Unavailable`] when too many writes wait.
#[derive(Debug)]
pub struct Limited {
    inner: Arc<dyn Store>,
    writes: Semaphore,
    places: Semaphore,
    patience: Duration,
}

impl Limited {
    /// Bounds the writes to `inner`.
    pub fn new(inner: Arc<dyn Store>, limit: WriteLimit) -> Self {
        Self {
            inner,
            writes: Semaphore::new(limit.concurrent),
            places: Semaphore::new(limit.waiting),
            patience: limit.patience,
        }
    }

    async fn write<T>(
        &self,
        write: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, Error> {
        let _permit = match self.writes.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                let Ok(place) = self.places.try_acquire() else {
                    return Err(Error::Unavailable("too many writes wait".into()));
                };
                let permit = tokio::time::timeout(self.patience, self.writes.acquire()).await;
                drop(place);
                permit
                    .map_err(|_| Error::TimedOut)?
                    .expect("nobody closes it")
            }
        };
        write.await
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Store for Limited {
    async fn head(&self, key: &Key) -> Result<Option<Record>, Error> {
        self.inner.head(key).await
    }

    async fn get(&self, key: &Key) -> Result<Option<Found>, Error> {
        self.inner.get(key).await
    }

    async fn put(&self, key: &Key, record: &Record, body: &[Bytes]) -> Result<(), Error> {
        self.write(self.inner.put(key, record, body)).await
    }

    async fn begin(&self, key: &Key, draft: &Record) -> Result<Box<dyn Writer>, Error> {
        self.inner.begin(key, draft).await
    }

    async fn replace_record(&self, key: &Key, record: &Record) -> Result<bool, Error> {
        self.write(self.inner.replace_record(key, record)).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.write(self.inner.delete(key)).await
    }

    async fn delete_source(&self, source: &Source) -> Result<u64, Error> {
        self.inner.delete_source(source).await
    }

    async fn check(&self) -> Result<(), Error> {
        self.inner.check().await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;
    use tokio::sync::Notify;

    use super::*;
    use crate::store::MemoryStore;

    fn limited(waiting: usize) -> Limited {
        let limit = WriteLimit {
            concurrent: 1,
            waiting,
            patience: Duration::from_secs(60),
        };
        Limited::new(Arc::new(MemoryStore::new(0)), limit)
    }

    #[tokio::test]
    async fn writes_wait_for_their_turn_unless_too_many_do() {
        let store = limited(1);
        let done = Notify::new();
        let mut first = pin!(store.write(async {
            done.notified().await;
            Ok(())
        }));
        let mut second = pin!(store.write(async { Ok(()) }));
        assert!(poll!(first.as_mut()).is_pending());
        assert!(poll!(second.as_mut()).is_pending());
        let third = store.write(async { Ok(()) }).await;
        assert!(matches!(third, Err(Error::Unavailable(_))));
        done.notify_one();
        first.await.unwrap();
        second.await.unwrap();
        store.write(async { Ok(()) }).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_whose_turn_does_not_come_is_given_up() {
        let store = limited(1);
        let mut first = pin!(store.write(std::future::pending::<Result<(), _>>()));
        assert!(poll!(first.as_mut()).is_pending());
        let second = store.write(async { Ok(()) }).await;
        assert!(matches!(second, Err(Error::TimedOut)), "{second:?}");
    }
}
