//! Start, run, end.
//!
//! Everything that can be wrong with the surroundings is found before the process says that it is
//! ready, and named with its field. At the end streams and fills may go on until a deadline.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::Error;
use super::admin::{self, Readiness};
use super::listen::{Incoming, listen_hint};
use crate::cache::budget::Budget;
use crate::cache::collapse::Groups;
use crate::cache::fill::{Fills, Pace};
use crate::cache::in_flight::InFlight;
use crate::cache::invalidations::{Bounds, Marks};
use crate::cache::memory_tier::Memory;
use crate::cache::refreshes::Refreshes;
use crate::clock::Clock;
use crate::config::{Config, EnvoyLimits, StoreConfig};
use crate::extproc::{self, Patience, Routes, Shared};
use crate::large_hits::{self, Objects};
use crate::store::{
    self, BreakerState, LocalConfig, LocalStore, MemoryStore, Metered, Observe, OpResult,
    Operation, S3Config, S3Store, Store,
};
use crate::store::{Limited, WriteLimit};
use crate::telemetry::Metrics;
use crate::upstream::Fetcher;

/// The store's share of a lookup's time. Were it all, the lookup could be over a moment before the
/// store's own deadline, and what was given up does not count against the store.
const STORE_SHARE: f64 = 0.95;

/// Writes to the store at a time, large bodies aside: as many as idle connections to it are kept.
const WRITES: usize = 64;

/// Writes that may wait for their turn; there is room in a budget of 64 MiB for so many copies.
const WAITING_WRITES: usize = 4096;

/// Comparisons of the memory tier with the store that may be under way at a time.
const RECHECKS: usize = 16;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the process from starting.
pub async fn run(config: Config) -> Result<(), Error> {
    let stop = stop_signal()?;
    let metrics = Metrics::new();
    let clock = Clock::system();
    let limits = config.limits;
    let store: Arc<dyn Store> = Arc::new(Metered::new(
        open_store(&config.store, &clock).await?,
        store::Limits {
            lookup: limits.lookup_timeout.mul_f64(STORE_SHARE),
            write: limits.write_timeout,
            failures: limits.breaker_failures,
            open: limits.breaker_wait,
        },
        Arc::new(StoreMetrics(metrics.clone())),
    ));
    let write_limit = WriteLimit {
        concurrent: WRITES,
        waiting: WAITING_WRITES,
        patience: limits.write_timeout,
    };
    let store: Arc<dyn Store> = Arc::new(Limited::new(store, write_limit));
    let budget = Budget::new(limits.budget);
    let tasks = TaskTracker::new();
    let bounds = Bounds {
        count: limits.invalidations,
        patience: limits.invalidation_time,
        // It passes, waits for its turn, and is written.
        fill: limits.fill_deadline + 2 * limits.write_timeout,
    };
    let marks = Marks::new(Arc::clone(&store), clock.clone(), tasks.clone(), bounds);
    let memory = Memory::new(
        config.memory.max_bytes,
        limits.immediate_bytes,
        config.memory.recheck,
        marks.clone(),
    );
    let fills = Fills {
        marks,
        memory: memory.clone(),
        store: Arc::clone(&store),
        budget: budget.clone(),
        in_flight: InFlight::default(),
        metrics: metrics.clone(),
        held_bytes: limits.held_bytes,
        pace: Pace {
            deadline: limits.fill_deadline,
            bytes_per_second: limits.fill_rate,
            grace: limits.fill_grace,
        },
        tasks: tasks.clone(),
    };
    let upstreams = config
        .policies
        .iter()
        .filter_map(|policy| Some(policy.upstream.as_ref()?.endpoint.clone()));
    let fetcher = Fetcher::new(upstreams, limits.fetches, fills.clone(), clock.clone()).map_err(
        |source| Error::System {
            what: "requests to the policies' upstreams cannot be made",
            source,
        },
    )?;
    let objects = config.objects.as_ref();
    let objects = objects.map(|objects| Objects::new(objects.above, fills.clone()));
    let shared = Arc::new(Shared {
        routes: Routes::new(config.policies, config.routes, config.default_policy),
        store: Arc::clone(&store),
        budget: budget.clone(),
        fills,
        fetcher,
        rechecks: Arc::new(Semaphore::new(RECHECKS)),
        refreshes: Refreshes::default(),
        groups: Groups::new(limits.released_followers),
        metrics: metrics.clone(),
        clock,
        lookup_deadline: limits.lookup_timeout,
        patience: patience(&config.envoy, limits.lookup_timeout),
        immediate_bytes: limits.immediate_bytes,
        largest_bytes: match &config.objects {
            Some(objects) => objects.cap,
            None => limits.stream_cap,
        },
        objects: objects.clone(),
    });

    let admin = TcpListener::bind(config.admin)
        .await
        .map_err(|error| Error::Listen {
            field: "admin.listen",
            address: config.admin.to_string(),
            hint: listen_hint(&error),
        })?;
    let incoming = Incoming::bind("listen", &config.listen).await?;
    let fetched = match &config.objects {
        Some(objects) => Some(Incoming::bind("objects.listen", &objects.listen).await?),
        None => None,
    };

    let readiness = Readiness::default();
    let pages = admin::router(metrics, budget, memory, readiness.clone());
    let admin = tokio::spawn(async move { axum::serve(admin, pages).await });
    if let Err(error) = store.check().await {
        // It may come later; until then everything is forwarded.
        warn!(error = %store::Causes(&error), "store does not answer yet, requests are forwarded");
    }
    readiness.set(true);
    info!(listen = %incoming.address(), admin = %config.admin, "ready");

    let draining = CancellationToken::new();
    let serving = tokio::spawn(serve(shared, incoming, draining.clone()));
    if let (Some(objects), Some(incoming)) = (objects, fetched) {
        let draining = draining.clone();
        tasks.spawn(async move {
            if let Err(error) = serve_objects(objects, incoming, draining).await {
                warn!(%error, "large hits cannot be fetched any more");
            }
        });
    }
    stop.await;
    readiness.set(false);
    info!(deadline = ?config.drain, "stopping: no new streams, waiting for those that are open");
    draining.cancel();
    tasks.close();
    let ended = async {
        let served = serving.await;
        tasks.wait().await;
        served
    };
    match tokio::time::timeout(config.drain, ended).await {
        Ok(Ok(())) => info!("stopped"),
        Ok(Err(error)) => warn!(%error, "stopped"),
        Err(_) => warn!("stopped with streams or fills still open, their copies are dropped"),
    }
    admin.abort();
    Ok(())
}

/// How long a request may wait beside its lookups, of which there may be one before and one after.
fn patience(envoy: &EnvoyLimits, lookup: Duration) -> Patience {
    let longest = envoy.max_message_timeout;
    if longest.is_zero() {
        return Patience {
            extension: None,
            wait: envoy
                .message_timeout
                .mul_f64(0.7)
                .saturating_sub(2 * lookup),
        };
    }
    Patience {
        extension: Some(longest),
        wait: longest.mul_f64(0.9).saturating_sub(lookup),
    }
}

async fn serve(shared: Arc<Shared>, incoming: Incoming, draining: CancellationToken) {
    match incoming {
        Incoming::Tcp(listener, _) => {
            let listener = listener.tap_io(|stream| {
                // Without it an answer may wait for Envoy to acknowledge the one before.
                let _ = stream.set_nodelay(true);
            });
            extproc::serve(listener, shared, draining).await;
        }
        Incoming::Unix(listener, _file) => extproc::serve(listener, shared, draining).await,
    }
}

async fn serve_objects(
    objects: Objects,
    incoming: Incoming,
    draining: CancellationToken,
) -> io::Result<()> {
    let router = large_hits::router(objects);
    let draining = draining.cancelled_owned();
    match incoming {
        Incoming::Tcp(listener, _) => {
            let serving = axum::serve(listener, router);
            serving.with_graceful_shutdown(draining).await
        }
        Incoming::Unix(listener, _file) => {
            let serving = axum::serve(listener, router);
            serving.with_graceful_shutdown(draining).await
        }
    }
}

async fn open_store(config: &StoreConfig, clock: &Clock) -> Result<Arc<dyn Store>, Error> {
    let unusable = |field: &'static str, error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Error::Store { field, error: text }
    };
    Ok(match config {
        StoreConfig::Memory { max_bytes } => Arc::new(MemoryStore::new(*max_bytes)),
        StoreConfig::Local { path, max_bytes } => {
            let config = LocalConfig {
                path: path.clone(),
                max_bytes: *max_bytes,
            };
            let store = LocalStore::open(config, clock.clone()).await;
            Arc::new(store.map_err(|error| unusable("store.local.path", &error))?)
        }
        StoreConfig::S3(config) => {
            let store = S3Store::new(S3Config::clone(config));
            Arc::new(store.map_err(|error| unusable("store.s3", &error))?)
        }
    })
}

/// Completes with the first SIGTERM or SIGINT.
fn stop_signal() -> Result<impl Future<Output = ()>, Error> {
    let failed = |source| Error::System {
        what: "cannot wait for signals",
        source,
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Operations of the store as metrics, and changes of its breaker as log lines.
#[derive(Debug)]
struct StoreMetrics(Metrics);

impl Observe for StoreMetrics {
    fn operation(&self, operation: Operation, result: OpResult, took: std::time::Duration) {
        self.0
            .store_operation(operation.as_str(), result.as_str(), took);
    }

    fn breaker(&self, state: BreakerState) {
        let (value, is_good) = match state {
            BreakerState::Closed => (0, true),
            BreakerState::HalfOpen => (1, true),
            BreakerState::Open => (2, false),
        };
        self.0.set_store_breaker(value);
        if is_good {
            info!(state = state.as_str(), "circuit breaker of the store");
        } else {
            warn!(
                state = state.as_str(),
                "circuit breaker of the store: requests are forwarded"
            );
        }
    }
}
