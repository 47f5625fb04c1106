//! What one request is for the others.

use std::sync::Arc;

use crate::cache::{Claim, Follow, Followed, Lead, Published};
use crate::session::Verdict;

/// The part of one request among those for the same key. It ends when this is dropped.
#[derive(Debug)]
pub(super) enum Part {
    /// Nobody waits for it, and it waits for nobody.
    Alone,
    /// Others wait for it.
    Leads(Lead),
    /// It is going to wait for another one.
    Follows(Follow),
    /// It has waited. What it has waited for is kept until it is over.
    HasFollowed(Followed),
    /// Others are served the stale entry while it refreshes it.
    Refreshes { _claim: Claim },
}

impl Part {
    /// Takes it, and leaves nothing.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Alone)
    }

    /// Whether others wait for it.
    pub(super) fn is_followed(&self) -> bool {
        match self {
            Self::Leads(lead) => lead.is_followed(),
            Self::Alone | Self::Follows(_) | Self::HasFollowed(_) | Self::Refreshes { .. } => false,
        }
    }

    /// Whether others may wait for it.
    pub(super) fn is_lead(&self) -> bool {
        matches!(self, Self::Leads(_))
    }

    /// Tells those that wait what became of the request; only the first call counts.
    pub(super) fn end(&mut self, verdict: Verdict, published: Option<Arc<Published>>) {
        if !self.is_lead() {
            return;
        }
        if let Self::Leads(lead) = self.take() {
            lead.end(verdict, published);
        }
    }
}
