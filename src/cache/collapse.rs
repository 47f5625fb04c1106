//! Requests for the same that wait for the first one.
//!
//! [`Groups`] has the keys that a request was sent on for: it leads, the others follow, which means
//! that they wait for what becomes of it. A group lives exactly as long as the guard of its leader.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::in_flight::Published;
use crate::clock::Stopwatch;
use crate::entry::Key;
use crate::session::Verdict;

/// Keys that are marked hit-for-miss, and keys that were stored, at most of each; beyond them those go that
/// were used least.
const REMEMBERED: usize = 8192;

/// The keys that a request was sent on for; clones share them. At most one for each open stream.
#[derive(Debug, Clone)]
pub struct Groups(Arc<Table>);

#[derive(Debug)]
struct Table {
    groups: Mutex<HashMap<Key, Arc<Group>>>,
    /// Since when, and for how long, requests for a key do not wait for each other.
    hit_for_miss: Cache<Key, (Stopwatch, Duration)>,
    /// When there last was something to be looked up. A lookup that began earlier may have missed it,
    /// and must not lead.
    stored: Cache<Key, Stopwatch>,
    /// Followers of one group that may be sent on at a time.
    releases: usize,
}

/// The requests that wait for one leader.
#[derive(Debug)]
struct Group {
    end: watch::Sender<End>,
    releases: Arc<Semaphore>,
}

/// What became of a leader.
#[derive(Debug, Clone)]
enum End {
    NotYet,
    Stored(Option<Arc<Published>>),
    Nothing,
    Left,
}

/// The role that is left for a request.
#[derive(Debug)]
pub enum Joined {
    /// It is sent on, and others wait for it.
    Lead(Lead),
    /// It waits.
    Follow(Follow),
    /// It is sent on, and nobody waits for it.
    HitForMiss,
}

/// The role of the leader. Dropping it is leaving: one of the followers leads then.
#[derive(Debug)]
pub struct Lead {
    table: Groups,
    key: Key,
    group: Arc<Group>,
    has_ended: bool,
}

/// The role of a follower.
#[derive(Debug)]
pub struct Follow {
    table: Groups,
    key: Key,
    looked_up: Stopwatch,
    end: watch::Receiver<End>,
    releases: Arc<Semaphore>,
}

/// What a follower has waited for.
#[derive(Debug)]
pub enum Followed {
    /// There is something to be looked up, and as long as this is held, it is.
    Stored(Option<Arc<Published>>),
    /// The leader left, and this request leads now.
    Lead(Lead),
    /// There is nothing; this request may be sent on, and the next one when this is dropped.
    Released(OwnedSemaphorePermit),
    /// The time was over.
    TimedOut,
}

impl Followed {
    /// The word for labels.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Stored(_) => "stored",
            Self::Lead(_) => "lead",
            Self::Released(_) => "turn",
            Self::TimedOut => "timed_out",
        }
    }
}

impl Groups {
    /// `releases`: how many followers of one group are sent on at a time when there is nothing to
    /// serve them; at least 1.
    pub fn new(releases: usize) -> Self {
        Self(Arc::new(Table {
            groups: Mutex::default(),
            hit_for_miss: Cache::new(REMEMBERED),
            stored: Cache::new(REMEMBERED),
            releases,
        }))
    }

    /// Takes the role that is left for a request of this key, for which nothing usable was found by a
    /// lookup that began at `looked_up`. If a leader has stored something since then, the request
    /// follows it.
    pub fn join(&self, key: &Key, looked_up: Stopwatch) -> Joined {
        if let Some((since, lasts)) = self.0.hit_for_miss.get(key) {
            if since.elapsed() < lasts {
                return Joined::HitForMiss;
            }
            self.0.hit_for_miss.remove(key);
        }
        let mut groups = self.lock();
        let follow = |group: &Group| {
            Joined::Follow(Follow {
                table: self.clone(),
                key: key.clone(),
                looked_up,
                end: group.end.subscribe(),
                releases: Arc::clone(&group.releases),
            })
        };
        if let Some(group) = groups.get(key) {
            return follow(group);
        }
        let new = |end| Group {
            end: watch::Sender::new(end),
            releases: Arc::new(Semaphore::new(self.0.releases)),
        };
        let stored = self.0.stored.get(key);
        if stored.is_some_and(|stored| looked_up <= stored) {
            return follow(&new(End::Stored(None)));
        }
        let group = Arc::new(new(End::NotYet));
        groups.insert(key.clone(), Arc::clone(&group));
        Joined::Lead(Lead {
            table: self.clone(),
            key: key.clone(),
            group,
            has_ended: false,
        })
    }

    /// Learns what became of a request of this key, whether others wait for it or not: hit-for-miss begins, or ends
    /// with the first storable answer.
    pub fn learn(&self, key: &Key, verdict: Verdict) {
        match verdict {
            Verdict::Stored => {
                self.0.hit_for_miss.remove(key);
            }
            Verdict::NotWorthWaiting(lasts) if !lasts.is_zero() => {
                let mark = (Stopwatch::start(), lasts);
                self.0.hit_for_miss.insert(key.clone(), mark);
            }
            Verdict::NotWorthWaiting(_) | Verdict::Left => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Group>>> {
        self.0.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lead {
    /// Whether others wait.
    pub fn is_followed(&self) -> bool {
        self.group.end.receiver_count() > 0
    }

    /// Tells those that wait what became of this request. What is `published` stays visible until they have seen it.
    pub fn end(mut self, verdict: Verdict, published: Option<Arc<Published>>) {
        self.table.learn(&self.key, verdict);
        self.finish(match verdict {
            Verdict::Stored => End::Stored(published),
            Verdict::NotWorthWaiting(_) => End::Nothing,
            Verdict::Left => End::Left,
        });
    }

    fn finish(&mut self, end: End) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        let mut groups = self.table.lock();
        if let End::Stored(_) = end {
            let stored = Stopwatch::start();
            self.table.0.stored.insert(self.key.clone(), stored);
        }
        // Whoever comes from here on finds what is stored, or leads.
        groups.remove(&self.key);
        drop(groups);
        self.group.end.send_replace(end);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.finish(End::Left);
    }
}

impl Follow {
    /// Waits for what becomes of the leader, at most so long.
    pub async fn end(self, patience: Duration) -> Followed {
        tokio::time::timeout(patience, self.wait())
            .await
            .unwrap_or(Followed::TimedOut)
    }

    async fn wait(mut self) -> Followed {
        loop {
            let is_over = |end: &End| !matches!(end, End::NotYet);
            let end = match self.end.wait_for(is_over).await {
                Ok(end) => end.clone(),
                Err(_) => End::Left,
            };
            let joined = match end {
                End::Stored(published) => return Followed::Stored(published),
                End::Nothing => Joined::HitForMiss,
                End::NotYet | End::Left => self.table.join(&self.key, self.looked_up),
            };
            match joined {
                Joined::Lead(lead) => return Followed::Lead(lead),
                Joined::Follow(follow) => self = follow,
                Joined::HitForMiss => {
                    let release = Arc::clone(&self.releases).acquire_owned().await;
                    return release.map_or(Followed::TimedOut, Followed::Released);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::from_parts("test", 1, [1; 32], [2; 32])
    }

    const PATIENCE: Duration = Duration::from_secs(3600);

    fn lead(groups: &Groups) -> Lead {
        match groups.join(&key(), Stopwatch::start()) {
            Joined::Lead(lead) => lead,
            other => panic!("{other:?}"),
        }
    }

    fn follow(groups: &Groups) -> Follow {
        match groups.join(&key(), Stopwatch::start()) {
            Joined::Follow(follow) => follow,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_first_leads_and_the_rest_see_what_it_stored() {
        let groups = Groups::new(4);
        let leader = lead(&groups);
        assert!(!leader.is_followed());
        let followers = [follow(&groups), follow(&groups)];
        assert!(leader.is_followed());
        leader.end(Verdict::Stored, None);
        for follower in followers {
            let followed = follower.end(PATIENCE).await;
            assert!(matches!(followed, Followed::Stored(None)), "{followed:?}");
        }
        drop(lead(&groups));
    }

    #[tokio::test]
    async fn when_the_leader_leaves_one_follower_leads() {
        let groups = Groups::new(4);
        let leader = lead(&groups);
        let (first, second) = (follow(&groups), follow(&groups));
        drop(leader);
        let Followed::Lead(leader) = first.end(PATIENCE).await else {
            panic!("nobody leads")
        };
        let second = tokio::spawn(second.end(PATIENCE));
        tokio::task::yield_now().await;
        leader.end(Verdict::Stored, None);
        assert!(matches!(second.await.unwrap(), Followed::Stored(_)));
    }

    #[tokio::test]
    async fn who_looked_up_before_a_leader_stored_does_not_lead_after_it() {
        let groups = Groups::new(4);
        let looked_up = Stopwatch::start();
        lead(&groups).end(Verdict::Stored, None);
        let Joined::Follow(late) = groups.join(&key(), looked_up) else {
            panic!("a second request for what is stored")
        };
        let followed = late.end(PATIENCE).await;
        assert!(matches!(followed, Followed::Stored(None)), "{followed:?}");
        // What is looked up afterwards and not found is gone again.
        drop(lead(&groups));
    }

    #[tokio::test]
    async fn followers_of_a_refused_leader_are_released_a_few_at_a_time() {
        let groups = Groups::new(2);
        let leader = lead(&groups);
        let followers: Vec<_> = (0..3).map(|_| follow(&groups)).collect();
        leader.end(Verdict::NOTHING, None);
        let mut followers = followers.into_iter();
        let mut next = || followers.next().unwrap();
        let first = next().end(PATIENCE).await;
        let second = next().end(PATIENCE).await;
        assert!(matches!(
            (&first, &second),
            (Followed::Released(_), Followed::Released(_))
        ));
        let third = tokio::spawn(next().end(PATIENCE));
        tokio::task::yield_now().await;
        assert!(!third.is_finished());
        drop(first);
        assert!(matches!(third.await.unwrap(), Followed::Released(_)));
    }

    #[tokio::test]
    async fn nobody_waits_for_longer_than_asked() {
        let groups = Groups::new(1);
        let leader = lead(&groups);
        let followed = follow(&groups).end(Duration::ZERO).await;
        assert!(matches!(followed, Followed::TimedOut), "{followed:?}");
        drop(leader);
    }

    #[tokio::test]
    async fn hit_for_miss_lasts_as_long_as_said() {
        let groups = Groups::new(1);
        lead(&groups).end(Verdict::NotWorthWaiting(Duration::from_secs(3600)), None);
        assert!(matches!(
            groups.join(&key(), Stopwatch::start()),
            Joined::HitForMiss
        ));
        let groups = Groups::new(1);
        lead(&groups).end(Verdict::NotWorthWaiting(Duration::from_nanos(1)), None);
        drop(lead(&groups));
    }

    #[test]
    fn the_same_digest_in_another_namespace_or_epoch_is_another_group() {
        let groups = Groups::new(1);
        let _lead = lead(&groups);
        for (namespace, epoch) in [("other", 1), ("test", 2)] {
            let other = Key::from_parts(namespace, epoch, [1; 32], [2; 32]);
            let joined = groups.join(&other, Stopwatch::start());
            assert!(matches!(joined, Joined::Lead(_)), "{other:?}");
        }
    }
}
