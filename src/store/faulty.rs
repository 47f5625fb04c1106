//! Makes operations of a store fail or wait, for tests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;

use super::{Error, Found, Operation, Store, Writer};
use crate::entry::{Key, Record, Source};

/// What happens to an operation.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It fails with [`Error::TimedOut`], and nothing is done.
    Fails,
    /// It takes one permit before anything is done.
    WaitsBefore(Arc<Semaphore>),
    /// It takes one permit after everything is done.
    WaitsAfter(Arc<Semaphore>),
}

/// A store around a store, with a fault for each operation that a test names.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    faults: Mutex<HashMap<Operation, Fault>>,
    calls: Mutex<HashMap<Operation, usize>>,
}

impl FaultyStore {
    /// Passes everything on to `inner`, until a fault is set.
    pub fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            faults: Mutex::default(),
            calls: Mutex::default(),
        })
    }

    /// Sets what happens to the operation from now on.
    pub fn set(&self, operation: Operation, fault: Fault) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.insert(operation, fault);
    }

    /// Removes the operation's fault.
    pub fn heal(&self, operation: Operation) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.remove(&operation);
    }

    /// How often the operation was called, counting calls that have not ended.
    pub fn calls(&self, operation: Operation) -> usize {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.get(&operation).copied().unwrap_or_default()
    }

    async fn around<T>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, Error> {
        let fault = {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            *calls.entry(operation).or_default() += 1;
            let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
            faults.get(&operation).cloned()
        };
        match fault {
            None => work.await,
            Some(Fault::Fails) => Err(Error::TimedOut),
            Some(Fault::WaitsBefore(gate)) => {
                take(&gate).await;
                work.await
            }
            Some(Fault::WaitsAfter(gate)) => {
                let result = work.await;
                take(&gate).await;
                result
            }
        }
    }
}

async fn take(gate: &Semaphore) {
    gate.acquire().await.expect("nobody closes it").forget();
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Store for FaultyStore {
    async fn head(&self, key: &Key) -> Result<Option<Record>, Error> {
        self.around(Operation::Head, self.inner.head(key)).await
    }

    async fn get(&self, key: &Key) -> Result<Option<Found>, Error> {
        self.around(Operation::Get, self.inner.get(key)).await
    }

    async fn put(&self, key: &Key, record: &Record, body: &[Bytes]) -> Result<(), Error> {
        self.around(Operation::Put, self.inner.put(key, record, body))
            .await
    }

    async fn begin(&self, key: &Key, draft: &Record) -> Result<Box<dyn Writer>, Error> {
        self.around(Operation::Begin, self.inner.begin(key, draft))
            .await
    }

    async fn replace_record(&self, key: &Key, record: &Record) -> Result<bool, Error> {
        let replace = self.inner.replace_record(key, record);
        self.around(Operation::ReplaceRecord, replace).await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        self.around(Operation::Delete, self.inner.delete(key)).await
    }

    async fn delete_source(&self, source: &Source) -> Result<u64, Error> {
        let delete = self.inner.delete_source(source);
        self.around(Operation::DeleteSource, delete).await
    }

    async fn check(&self) -> Result<(), Error> {
        self.around(Operation::Check, self.inner.check()).await
    }
}
