//! What whoever holds an exchange has to do.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use super::delivery::Delivery;
use crate::cache::{Followed, LookupResult};
use crate::policy::Forward;
use crate::session::{FetchOutcome, Passed};

/// What comes after a request's head.
#[derive(Debug)]
pub enum Turn {
    /// This is what to do.
    Go(Next),
    /// This has to be waited for, and given to [`super::Exchange::resume`].
    Wait(Wait),
}

/// What is to be done with a request or a response.
#[derive(Debug)]
pub enum Next {
    /// Send the request on as it is. Nothing more of it is wanted here.
    Bypass,
    /// Send the request on with these changes. The response's head is wanted.
    Forward(Forward),
    /// Send the response on with these changes. Its body is not wanted.
    Pass(Passed),
    /// Send the response on with these changes. Its body is wanted.
    Mirror(Passed),
    /// Answer with this.
    Deliver(Delivery),
    /// Send on what came as it is.
    AsItCame,
}

/// Work that takes time. Dropping it ends it.
pub struct Wait {
    /// Whether it may outlast a lookup's deadline.
    pub is_long: bool,
    work: Pin<Box<dyn Future<Output = Done> + Send>>,
}

/// What was waited for.
#[derive(Debug)]
pub struct Done(pub(super) Waited);

#[derive(Debug)]
pub(super) enum Waited {
    LookedUp(LookupResult, Duration),
    Followed(Followed),
    Fetched(FetchOutcome),
}

impl Wait {
    pub(super) fn new(is_long: bool, work: impl Future<Output = Waited> + Send + 'static) -> Self {
        Self {
            is_long,
            work: Box::pin(async move { Done(work.await) }),
        }
    }

    /// Waits.
    pub async fn done(self) -> Done {
        self.work.await
    }
}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait")
            .field("is_long", &self.is_long)
            .finish_non_exhaustive()
    }
}
