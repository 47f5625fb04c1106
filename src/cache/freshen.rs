//! Changes of entries that are stored: a new record, or none any more.

use std::sync::Arc;

use tracing::warn;

use super::in_flight::{Held, Published};
use super::{Cache, InvalidationSeq};
use crate::entry::Key;
use crate::session::{Freshened, StoredBody};
use crate::store;

impl Cache {
    /// Makes an entry visible with the record that the upstream has confirmed when it was asked at this moment,
    /// until [`Cache::freshen`] has written it; `None` where its body is not held, or has no room.
    pub fn publish_freshened(
        &self,
        freshened: &Freshened,
        asked: InvalidationSeq,
    ) -> Option<Arc<Published>> {
        let StoredBody::Held(chunks) = &freshened.body else {
            return None;
        };
        let reservation = self.reserve(freshened.record.body.content_length).ok()?;
        let (slot, publisher) = self.0.in_flight.announce(&freshened.key);
        publisher.publish(Arc::new(Held {
            record: Arc::new(freshened.record.clone()),
            chunks: chunks.clone(),
            asked,
        }));
        Some(Published::new(vec![slot], reservation))
    }

    /// Gives an entry the record that the upstream has confirmed when it was asked at this moment, and tells whether
    /// it has it now.
    pub async fn freshen(&self, freshened: Freshened, asked: InvalidationSeq) -> bool {
        let Freshened { key, record, body } = freshened;
        // Whoever shows it has room for it.
        drop(body);
        if self.0.invalidations.hides(key.source(), asked) {
            return false;
        }
        match self.0.store.replace_record(&key, &record).await {
            Ok(true) => self.0.memory.freshen(&key, record, asked),
            Ok(false) => {
                self.0.memory.remove(&key);
                return false;
            }
            Err(error) => {
                warn!(key = %key.object_name(), error = %store::Causes(&error), "entry was not freshened");
                return false;
            }
        }
        // An invalidation may have come meanwhile, and its deletion before the record.
        if self.0.invalidations.hides(key.source(), asked) {
            self.forget(&key).await;
            return false;
        }
        true
    }

    /// Removes an entry that may not be used any more.
    pub async fn forget(&self, key: &Key) {
        self.0.memory.remove(key);
        if let Err(error) = self.0.store.delete(key).await {
            warn!(key = %key.object_name(), error = %store::Causes(&error), "entry was not removed");
        }
        self.0.in_flight.detach_readers(key);
    }
}
