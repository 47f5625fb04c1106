//! Puts deadlines, a circuit breaker and observation around any store.
//!
//! ```text
//!            N failures in a row                wait
//! Closed ──────────────────────────▶ Open ───────────────▶ HalfOpen
//!   ▲                                  ▲                      │ one operation is let through
//!   │                                  └──── it fails ────────┤
//!   └───────────────────────────────────── it answers ────────┘
//! ```
//!
//! Failures are [`Error::Unavailable`] and [`Error::TimedOut`]; every other answer shows that the
//! store is there. A `get` counts as answered when the first chunk of its body has come, because
//! servers send the head before they have the body.

mod breaker;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use self::breaker::{Admitted, Breaker};
pub use self::breaker::{BreakerOpen, BreakerState};
use super::{BodyStream, Error, Found, Store, Writer};
use crate::clock::Stopwatch;
use crate::entry::Record;
use crate::entry::{Key, Source};

/// The bounds that a [`Metered`] store keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Deadline of `head`, and of `get` until its record is there; default 300 ms, because a client
    /// waits.
    pub lookup: Duration,
    /// Deadline of each call that writes or deletes, and of `check`; default 30 s, because no
    /// client waits.
    pub write: Duration,
    /// Failures in a row that open the breaker; default 5. At least 1.
    pub failures: u32,
    /// How long the breaker stays open before one operation is tried; default 2 s.
    pub open: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lookup: Duration::from_millis(300),
            write: Duration::from_secs(30),
            failures: 5,
            open: Duration::from_secs(2),
        }
    }
}

/// Is told of operations and of the breaker. It is called on the hot path, so no method may block.
pub trait Observe: Send + Sync + fmt::Debug + 'static {
    /// Tells that an operation has ended.
    fn operation(&self, operation: Operation, result: OpResult, took: Duration);

    /// Tells that the breaker has changed its state.
    fn breaker(&self, state: BreakerState);
}

/// An [`Observe`] that nobody listens to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observe for Unobserved {
    fn operation(&self, _: Operation, _: OpResult, _: Duration) {}

    fn breaker(&self, _: BreakerState) {}
}

/// The operations of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Store::head`].
    Head,
    /// [`Store::get`], up to the record.
    Get,
    /// The body of a [`Store::get`], up to its end.
    Body,
    /// [`Store::put`].
    Put,
    /// [`Store::begin`].
    Begin,
    /// [`Writer::append`].
    Append,
    /// [`Writer::commit`].
    Commit,
    /// [`Store::replace_record`].
    ReplaceRecord,
    /// [`Store::delete`].
    Delete,
    /// [`Store::delete_source`].
    DeleteSource,
    /// [`Store::check`].
    Check,
}

impl Operation {
    /// The word for labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Get => "get",
            Self::Body => "body",
            Self::Put => "put",
            Self::Begin => "begin",
            Self::Append => "append",
            Self::Commit => "commit",
            Self::ReplaceRecord => "replace_record",
            Self::Delete => "delete",
            Self::DeleteSource => "delete_source",
            Self::Check => "check",
        }
    }
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpResult {
    /// It did what was asked.
    Done,
    /// There is no such entry.
    Absent,
    /// The breaker is open, so the store was not asked.
    Refused,
    /// The caller went away before the answer.
    Cancelled,
    /// [`Error::Unavailable`].
    Unavailable,
    /// [`Error::TimedOut`], the store's own or past the deadline here.
    TimedOut,
    /// [`Error::Denied`].
    Denied,
    /// [`Error::Corrupt`].
    Corrupt,
    /// [`Error::TooLarge`].
    TooLarge,
}

impl OpResult {
    /// The word for labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Absent => "absent",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
            Self::Unavailable => "unavailable",
            Self::TimedOut => "timed_out",
            Self::Denied => "denied",
            Self::Corrupt => "corrupt",
            Self::TooLarge => "too_large",
        }
    }

    fn of<T>(result: &Result<T, Error>, is_absent: impl FnOnce(&T) -> bool) -> Self {
        match result {
            Ok(value) if is_absent(value) => Self::Absent,
            Ok(_) => Self::Done,
            Err(Error::Unavailable(_)) => Self::Unavailable,
            Err(Error::TimedOut) => Self::TimedOut,
            Err(Error::Denied(_)) => Self::Denied,
            Err(Error::Corrupt(_)) => Self::Corrupt,
            Err(Error::TooLarge(_)) => Self::TooLarge,
        }
    }

    /// Whether the result says that the store is not there.
    fn is_failure(self) -> bool {
        match self {
            Self::Unavailable | Self::TimedOut => true,
            Self::Done
            | Self::Absent
            | Self::Refused
            | Self::Cancelled
            | Self::Denied
            | Self::Corrupt
            | Self::TooLarge => false,
        }
    }
}

/// A store around a store that answers within its deadlines, and at once while the inner one is not
/// there.
#[derive(Debug, Clone)]
pub struct Metered {
    inner: Arc<dyn Store>,
    limits: Limits,
    breaker: Arc<Breaker>,
    observe: Arc<dyn Observe>,
}

struct MeteredWriter {
    inner: Box<dyn Writer>,
    deadline: Duration,
    breaker: Arc<Breaker>,
    observe: Arc<dyn Observe>,
}

/// Tells of an operation when it is dropped, however the operation ended.
struct Observed {
    observe: Arc<dyn Observe>,
    operation: Operation,
    since: Stopwatch,
    result: OpResult,
}

impl Metered {
    /// Puts `inner` behind `limits`, and tells `observe` of its operations.
    pub fn new(inner: Arc<dyn Store>, limits: Limits, observe: Arc<dyn Observe>) -> Self {
        Self {
            inner,
            limits,
            breaker: Arc::new(Breaker::new(
                limits.failures,
                limits.open,
                Arc::clone(&observe),
            )),
            observe,
        }
    }

    /// Runs one operation within a deadline, if the breaker admits it. A success returns the
    /// admission, too: the caller tells the breaker whether the store answered.
    async fn run<T>(
        &self,
        operation: Operation,
        deadline: Duration,
        is_absent: impl FnOnce(&T) -> bool,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<(T, Admitted), Error> {
        let mut observed = Observed::start(&self.observe, operation);
        let admitted = match self.breaker.admit() {
            Ok(admitted) => admitted,
            Err(open) => {
                observed.result = OpResult::Refused;
                return Err(Error::Unavailable(open.into()));
            }
        };
        let result = within(deadline, call).await;
        observed.result = OpResult::of(&result, is_absent);
        match result {
            Ok(value) => Ok((value, admitted)),
            Err(error) => {
                admitted.answered(!observed.result.is_failure());
                Err(error)
            }
        }
    }

    /// Runs one operation like [`Metered::run`], and tells the breaker that the store answered.
    async fn settle<T>(
        &self,
        operation: Operation,
        deadline: Duration,
        is_absent: impl FnOnce(&T) -> bool,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let (value, admitted) = self.run(operation, deadline, is_absent, call).await?;
        admitted.answered(true);
        Ok(value)
    }

    /// Watches a body to its end. The first chunk must come within `remaining` and shows that the
    /// store is there; a later error counts as another failure of the store.
    fn watch(&self, body: BodyStream, admitted: Admitted, remaining: Duration) -> BodyStream {
        let observed = Observed::start(&self.observe, Operation::Body);
        let breaker = Arc::clone(&self.breaker);
        let state = Some((body, Some(admitted), observed));
        stream::unfold(state, move |state| {
            let breaker = Arc::clone(&breaker);
            async move {
                let (mut body, mut admitted, mut observed) = state?;
                let chunk = if admitted.is_some() {
                    let first = async { body.next().await.transpose() };
                    within(remaining, first).await.transpose()
                } else {
                    body.next().await
                };
                let is_there = match &chunk {
                    None => {
                        observed.result = OpResult::Done;
                        true
                    }
                    Some(Ok(_)) => true,
                    Some(Err(_)) => {
                        observed.result = chunk
                            .as_ref()
                            .map_or(OpResult::Done, |chunk| OpResult::of(chunk, |_| false));
                        !observed.result.is_failure()
                    }
                };
                match admitted.take() {
                    Some(admitted) => admitted.answered(is_there),
                    None if is_there => {}
                    None => breaker.failed(),
                }
                match chunk {
                    None => None,
                    Some(Err(error)) => Some((Err(error), None)),
                    Some(Ok(bytes)) => Some((Ok(bytes), Some((body, None, observed)))),
                }
            }
        })
        .boxed()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Store for Metered {
    async fn head(&self, key: &Key) -> Result<Option<Record>, Error> {
        let call = self.inner.head(key);
        self.settle(Operation::Head, self.limits.lookup, Option::is_none, call)
            .await
    }

    async fn get(&self, key: &Key) -> Result<Option<Found>, Error> {
        let since = Stopwatch::start();
        let call = self.inner.get(key);
        let (found, admitted) = self
            .run(Operation::Get, self.limits.lookup, Option::is_none, call)
            .await?;
        let Some(Found { record, body }) = found else {
            admitted.answered(true);
            return Ok(None);
        };
        let remaining = self.limits.lookup.saturating_sub(since.elapsed());
        let body = self.watch(body, admitted, remaining);
        Ok(Some(Found { record, body }))
    }

    async fn put(&self, key: &Key, record: &Record, body: &[Bytes]) -> Result<(), Error> {
        let call = self.inner.put(key, record, body);
        self.settle(Operation::Put, self.limits.write, |()| false, call)
            .await
    }

    async fn begin(&self, key: &Key, draft: &Record) -> Result<Box<dyn Writer>, Error> {
        let call = self.inner.begin(key, draft);
        let inner = self
            .settle(Operation::Begin, self.limits.write, |_| false, call)
            .await?;
        Ok(Box::new(MeteredWriter {
            inner,
            deadline: self.limits.write,
            breaker: Arc::clone(&self.breaker),
            observe: Arc::clone(&self.observe),
        }))
    }

    async fn replace_record(&self, key: &Key, record: &Record) -> Result<bool, Error> {
        let call = self.inner.replace_record(key, record);
        let is_absent = |replaced: &bool| !replaced;
        self.settle(Operation::ReplaceRecord, self.limits.write, is_absent, call)
            .await
    }

    async fn delete(&self, key: &Key) -> Result<(), Error> {
        let call = self.inner.delete(key);
        self.settle(Operation::Delete, self.limits.write, |()| false, call)
            .await
    }

    async fn delete_source(&self, source: &Source) -> Result<u64, Error> {
        let call = self.inner.delete_source(source);
        let is_absent = |removed: &u64| *removed == 0;
        self.settle(Operation::DeleteSource, self.limits.write, is_absent, call)
            .await
    }

    /// Asks the store even while the breaker is open, and does not count for the breaker: the
    /// caller wants the state of the store itself.
    async fn check(&self) -> Result<(), Error> {
        let mut observed = Observed::start(&self.observe, Operation::Check);
        let result = within(self.limits.write, self.inner.check()).await;
        observed.result = OpResult::of(&result, |()| false);
        result
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Writer for MeteredWriter {
    async fn append(&mut self, chunk: Bytes) -> Result<u64, Error> {
        let mut observed = Observed::start(&self.observe, Operation::Append);
        let result = within(self.deadline, self.inner.append(chunk)).await;
        observed.result = OpResult::of(&result, |_| false);
        if observed.result.is_failure() {
            self.breaker.failed();
        }
        result
    }

    async fn commit(self: Box<Self>, record: &Record) -> Result<(), Error> {
        let mut observed = Observed::start(&self.observe, Operation::Commit);
        let result = within(self.deadline, self.inner.commit(record)).await;
        observed.result = OpResult::of(&result, |()| false);
        if observed.result.is_failure() {
            self.breaker.failed();
        }
        result
    }
}

impl Observed {
    fn start(observe: &Arc<dyn Observe>, operation: Operation) -> Self {
        Self {
            observe: Arc::clone(observe),
            operation,
            since: Stopwatch::start(),
            result: OpResult::Cancelled,
        }
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        self.observe
            .operation(self.operation, self.result, self.since.elapsed());
    }
}

async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(deadline, call)
        .await
        .unwrap_or(Err(Error::TimedOut))
}

#[cfg(test)]
mod tests;
