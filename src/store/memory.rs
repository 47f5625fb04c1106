//! Keeps entries in memory, for tests and trials. Nothing outlives the process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;

use super::{Error, Found, Store, Writer, expect_length, length_of};
use crate::entry::Record;
use crate::entry::{Key, Source};

/// Keeps at most `max_bytes` of bodies, and evicts the entry that was written longest ago first.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    max_bytes: u64,
    entries: Arc<Mutex<Entries>>,
}

#[derive(Debug, Default)]
struct Entries {
    by_key: HashMap<Key, Entry>,
    /// Keys by the number of the write that made them, oldest first.
    by_age: BTreeMap<u64, Key>,
    used_bytes: u64,
    writes: u64,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    body: Vec<Bytes>,
    written: u64,
}

#[derive(Debug)]
struct MemoryWriter {
    store: MemoryStore,
    key: Key,
    body: Vec<Bytes>,
    length: u64,
}

impl MemoryStore {
    /// Makes an empty store for at most `max_bytes` of bodies.
    pub fn new(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            entries: Arc::default(),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Entries) -> T) -> T {
        // No change can panic halfway, so a poisoned lock still guards whole entries.
        change(&mut self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn insert(&self, key: &Key, record: &Record, body: Vec<Bytes>) -> Result<(), Error> {
        let length = length_of(&body);
        expect_length(record, length)?;
        record.encode()?;
        self.fits(length)?;
        self.with(|entries| {
            entries.remove(key);
            while entries.used_bytes + length > self.max_bytes {
                let Some((_, oldest)) = entries.by_age.pop_first() else {
                    break;
                };
                entries.remove(&oldest);
            }
            entries.writes += 1;
            let written = entries.writes;
            entries.used_bytes += length;
            entries.by_age.insert(written, key.clone());
            entries.by_key.insert(
                key.clone(),
                Entry {
                    record: record.clone(),
                    body,
                    written,
                },
            );
        });
        Ok(())
    }

    fn fits(&self, length: u64) -> Result<(), Error> {
        if length <= self.max_bytes {
            return Ok(());
        }
        Err(Error::TooLarge(format!(
            "the body has {length} bytes, and the memory store keeps at most {}",
            self.max_bytes
        )))
    }
}

impl Entries {
    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.by_key.remove(key) {
            self.by_age.remove(&entry.written);
            self.used_bytes -= length_of(&entry.body);
        }
    }

    fn remove_source(&mut self, source: &Source) -> u64 {
        let found = self.by_key.keys().filter(|key| key.source() == source);
        let found: Vec<_> = found.cloned().collect();
        for key in &found {
            self.remove(key);
        }
        found.len() as u64
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn head(&self, key: &Key) -> Result<Option<Record>, Error> {
        Ok(self.with(|entries| entries.by_key.get(key).map(|entry| entry.record.clone())))
    }

    async fn get(&self, key: &Key) -> Result<Option<Found>, Error> {
        let found = self.with(|entries| {
            let entry = entries.by_key.get(key)?;
            Some((entry.record.clone(), entry.body.clone()))
        });
        Ok(found.map(|(record, body)| Found {
            record,
            body: stream::iter(body.into_iter().map(Ok)).boxed(),
        }))
    }

    async fn put(&self, key: &Key, record: &Record, body: &[Bytes]) -> Result<(), Error> {
        self.insert(key, record, body.to_vec())
    }

    async fn begin(&self, key: &Key, _draft: &Record) -> Result<Box<dyn Writer>, Error> {
        Ok(Box::new(MemoryWriter {
            store: self.clone(),
            key: key.clone(),
            body: Vec::new(),
            length: 0,
        }))
    }

    async fn replace_record(&self, key: &Key, record: &Record) -> Result<bool, Error> {
        record.encode()?;
        Ok(self.with(|entries| match entries.by_key.get_mut(key) {
            Some(entry) if entry.record.body == record.body => {
                entry.record = record.clone();
                true
            }
            Some(_) | None => false,
        }))
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.with(|entries| entries.remove(key));
        Ok(())
    }

    async fn delete_source(&self, source: &Source) -> Result<u64, Error> {
        Ok(self.with(|entries| entries.remove_source(source)))
    }

    async fn check(&self) -> Result<(), Error> {
        Ok(())
    }
}

#[async_trait]
impl Writer for MemoryWriter {
    async fn append(&mut self, chunk: Bytes) -> Result<u64, Error> {
        self.length += chunk.len() as u64;
        self.store.fits(self.length)?;
        self.body.push(chunk);
        Ok(self.length)
    }

    async fn commit(self: Box<Self>, record: &Record) -> Result<(), Error> {
        self.store.insert(&self.key, record, self.body)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;
    use crate::clock::Timestamp;
    use crate::entry::{BodyProof, Identity};

    async fn put(store: &MemoryStore, number: u8, length: usize) -> Result<(), Error> {
        let key = key(number);
        let body = [Bytes::from(vec![number; length])];
        let record = Record {
            variants: None,
            identity: Identity::of(&key),
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            response_time: Timestamp::from_unix(0),
            initial_age: 0,
            body: BodyProof::of(&body),
        };
        store.put(&key, &record, &body).await
    }

    fn key(number: u8) -> Key {
        Key::from_parts("images", 1, [number; 32], [number; 32])
    }

    #[tokio::test]
    async fn what_was_written_longest_ago_goes_first() {
        let store = MemoryStore::new(100);
        for number in [1, 2, 3, 1] {
            put(&store, number, 30).await.unwrap();
        }
        put(&store, 4, 40).await.unwrap();
        for (number, is_kept) in [(1, true), (2, false), (3, true), (4, true)] {
            let head = store.head(&key(number)).await.unwrap();
            assert_eq!(head.is_some(), is_kept, "{number}");
        }
    }

    #[tokio::test]
    async fn a_deleted_source_leaves_its_room() {
        let store = MemoryStore::new(100);
        for number in [1, 2] {
            put(&store, number, 50).await.unwrap();
        }
        assert_eq!(store.delete_source(key(1).source()).await.unwrap(), 1);
        put(&store, 3, 50).await.unwrap();
        assert!(store.head(&key(2)).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn what_cannot_fit_is_refused_and_evicts_nothing() {
        let store = MemoryStore::new(100);
        put(&store, 1, 100).await.unwrap();
        let refused = put(&store, 2, 101).await;
        assert!(matches!(refused, Err(Error::TooLarge(_))), "{refused:?}");
        assert!(store.head(&key(1)).await.unwrap().is_some());
    }
}
