//! What becomes of an answer that a request could have filled with: the checks that all tests of storing share.

use anyhow::{Context as _, Result};

use super::client::Answer;
use super::stack::Stack;

/// Fields that differ between two answers to the same request.
const OF_ONE_EXCHANGE: [&str; 4] = [
    "cache-status",
    "date",
    "x-envoy-upstream-service-time",
    "x-request-id",
];

/// Why an answer is not stored.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fate {
    /// Its head forbids it, for the reason that the metric gives.
    Refused(&'static str),
    /// Its head allows it, but its body does not, for the reason that the metric gives.
    Aborted(&'static str),
}

impl Fate {
    /// GETs a path of the reference routes twice and compares with the route past Afterimage: the client has what the
    /// upstream sent, and the second request is no hit.
    ///
    /// # Errors
    /// When there is no answer, or no word about it in the metrics.
    ///
    /// # Panics
    /// When an answer is not as it should be.
    pub(crate) async fn befalls(self, stack: &Stack, path: &str) -> Result<()> {
        let upstream = stack.get(&format!("/uncached{path}")).await?;
        let before = self.count(stack).await?;
        for _ in 0..2 {
            let answer = stack.get(path).await.with_context(|| path.to_owned())?;
            assert_eq!(answer.cache_status(), self.cache_status(), "{path}");
            assert_is_what_was_sent(&answer, &upstream, path);
        }
        self.count_reaches(stack, before + 2).await
    }

    /// How often it has befallen an answer.
    ///
    /// # Errors
    /// When the metrics do not answer.
    pub(crate) async fn count(self, stack: &Stack) -> Result<usize> {
        let (name, labels) = self.metric();
        Ok(stack.metrics().await?.sum(name, &labels) as usize)
    }

    /// Waits until it has befallen so many answers; that of one that broke off is counted when its stream ends.
    ///
    /// # Errors
    /// As [`Stack::metric_reaches`].
    pub(crate) async fn count_reaches(self, stack: &Stack, count: usize) -> Result<()> {
        let (name, labels) = self.metric();
        stack.metric_reaches(name, &labels, count).await
    }

    /// What `Cache-Status` says of it.
    pub(crate) fn cache_status(self) -> &'static str {
        match self {
            Self::Refused(_) => "afterimage; fwd=miss",
            Self::Aborted(_) => "afterimage; fwd=miss; stored",
        }
    }

    fn metric(self) -> (&'static str, Vec<(&'static str, &'static str)>) {
        match self {
            Self::Refused(reason) => ("afterimage_not_storable_total", vec![("reason", reason)]),
            Self::Aborted(reason) => (
                "afterimage_fills_total",
                vec![("result", "aborted"), ("reason", reason)],
            ),
        }
    }
}

/// Is `answer` the same as `upstream`, or, where that one broke off, broken off as well?
///
/// # Panics
/// When it is not.
pub(crate) fn assert_is_what_was_sent(answer: &Answer, upstream: &Answer, what: &str) {
    let fields = |answer: &Answer| {
        let mut fields = answer.headers.clone();
        for name in OF_ONE_EXCHANGE {
            fields.remove(name);
        }
        fields
    };
    assert_eq!(answer.status, upstream.status, "{what}");
    assert_eq!(fields(answer), fields(upstream), "{what}");
    assert_eq!(answer.cut.is_some(), upstream.cut.is_some(), "{what}");
    if answer.cut.is_none() {
        assert_eq!(answer.body, upstream.body, "{what}");
    }
}
