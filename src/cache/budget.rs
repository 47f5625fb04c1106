//! One bound on the bytes that are held for all requests together.
//!
//! Fills, bodies read for a hit and streamed hits reserve what they hold. Whoever gets no room goes
//! without: a copy is dropped, a hit is forwarded; a client is never made to wait for it.

use std::sync::Arc;

use bytes::Bytes;
use prometheus_client::registry::Unit;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::telemetry::Metrics;

/// The bytes that may be held at one time.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    room: Arc<Semaphore>,
    limit_bytes: u32,
}

/// No room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no room for {wanted_bytes} bytes in the memory budget")]
pub(super) struct NoRoom {
    /// What was asked for.
    pub(super) wanted_bytes: u64,
}

impl Budget {
    /// A budget of `limit_bytes`, at most 4 GiB.
    pub(super) fn new(limit_bytes: u32, metrics: &Metrics) -> Self {
        let budget = Self {
            room: Arc::new(Semaphore::new(limit_bytes as usize)),
            limit_bytes,
        };
        let observed = budget.clone();
        metrics.observed(
            "budget_reserved",
            "What fills and hits hold of the memory budget now",
            Some(Unit::Bytes),
            move || observed.reserved_bytes(),
        );
        budget
    }

    /// Reserves at once.
    ///
    /// # Errors
    /// [`NoRoom`] when that much is not free now.
    pub(super) fn try_reserve(&self, bytes: u64) -> Result<Reservation, NoRoom> {
        let no_room = NoRoom {
            wanted_bytes: bytes,
        };
        let permits = u32::try_from(bytes).map_err(|_| no_room)?;
        Arc::clone(&self.room)
            .try_acquire_many_owned(permits)
            .map(Reservation)
            .map_err(|_| no_room)
    }

    /// Reserves when there is room, in the order of the calls; the caller brings the deadline.
    ///
    /// # Errors
    /// [`NoRoom`] at once for more than the whole budget.
    pub(super) async fn reserve(&self, bytes: u64) -> Result<Reservation, NoRoom> {
        let no_room = NoRoom {
            wanted_bytes: bytes,
        };
        let permits = u32::try_from(bytes)
            .ok()
            .filter(|&permits| permits <= self.limit_bytes)
            .ok_or(no_room)?;
        Arc::clone(&self.room)
            .acquire_many_owned(permits)
            .await
            .map(Reservation)
            .map_err(|_| no_room)
    }

    /// Bytes reserved now.
    pub(super) fn reserved_bytes(&self) -> u64 {
        (self.limit_bytes as usize).saturating_sub(self.room.available_permits()) as u64
    }
}

/// Room for some bytes, until it is dropped.
#[derive(Debug)]
pub(super) struct Reservation(OwnedSemaphorePermit);

impl Reservation {
    /// These bytes, which hold the reservation until their last clone is dropped.
    pub(super) fn into_bytes(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Reserved {
            bytes,
            _reservation: self,
        })
    }

    /// Adds another reservation of the same budget to this one.
    pub(super) fn merge(&mut self, other: Self) {
        self.0.merge(other.0);
    }

    /// Gives back all but so many bytes.
    pub(super) fn shrink_to(&mut self, bytes: u64) {
        let kept = usize::try_from(bytes).unwrap_or(usize::MAX);
        let unused = self.0.num_permits().saturating_sub(kept);
        drop(self.0.split(unused));
    }
}

struct Reserved {
    bytes: Bytes,
    _reservation: Reservation,
}

impl AsRef<[u8]> for Reserved {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_hold_their_reservation_until_the_last_clone_is_gone() {
        let budget = Budget::new(100, &Metrics::new());
        let reservation = budget.try_reserve(5).unwrap();
        let bytes = reservation.into_bytes(Bytes::from_static(b"bytes"));
        let part = bytes.slice(1..3);
        drop(bytes);
        assert_eq!((budget.reserved_bytes(), &part[..]), (5, &b"yt"[..]));
        drop(part);
        assert_eq!(budget.reserved_bytes(), 0);
    }

    #[test]
    fn room_comes_back_when_the_reservation_goes() {
        let budget = Budget::new(100, &Metrics::new());
        let mut first = budget.try_reserve(60).unwrap();
        assert_eq!(budget.try_reserve(60).unwrap_err().wanted_bytes, 60);
        first.merge(budget.try_reserve(40).unwrap());
        assert_eq!(budget.reserved_bytes(), 100);
        first.shrink_to(100);
        assert_eq!(budget.reserved_bytes(), 100);
        first.shrink_to(30);
        assert_eq!(budget.reserved_bytes(), 30);
        drop(first);
        assert_eq!(budget.reserved_bytes(), 0);
    }

    #[tokio::test]
    async fn more_than_the_whole_budget_is_refused_at_once() {
        assert!(
            Budget::new(100, &Metrics::new())
                .reserve(101)
                .await
                .is_err()
        );
    }
}
