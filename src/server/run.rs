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
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Error;
use super::admin::{self, Readiness};
use super::listen::{Incoming, listen_hint};
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::{Config, EnvoyLimits, StoreConfig};
use crate::exchange::Core;
use crate::extproc::{self, Processor, Routes};
use crate::large_hits::{self, LargeHits};
use crate::store::{self, LocalConfig, LocalStore, MemoryStore, S3Config, S3Store, Store};
use crate::telemetry::Metrics;
use crate::upstream::Upstreams;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the process from starting.
pub async fn run(config: Config) -> Result<(), Error> {
    let stop = stop_signal()?;
    let metrics = Metrics::new();
    let clock = Clock::system();
    let store = open_store(&config.store, &clock).await?;
    let largest_bytes = match &config.objects {
        Some(objects) => objects.cap,
        None => config.limits.stream_cap,
    };
    let cache = Cache::open(
        config.limits,
        config.memory,
        largest_bytes,
        store,
        clock.clone(),
        &metrics,
    );
    let large_hits = config.objects.as_ref();
    let large_hits = large_hits.map(|objects| LargeHits::new(objects.above));
    let processor = processor(&config, &cache, clock, large_hits.clone(), &metrics)?;

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
    let pages = admin::router(metrics, readiness.clone());
    let admin = tokio::spawn(async move { axum::serve(admin, pages).await });
    if let Err(error) = cache.check().await {
        // It may come later; until then everything is forwarded.
        warn!(error = %store::Causes(&error), "store does not answer yet, requests are forwarded");
    }
    readiness.set(true);
    info!(listen = %incoming.address(), admin = %config.admin, "ready");

    let draining = CancellationToken::new();
    let serving = tokio::spawn(serve(processor, incoming, draining.clone()));
    if let (Some(large_hits), Some(incoming)) = (large_hits, fetched) {
        let draining = draining.clone();
        cache.tasks().spawn(async move {
            if let Err(error) = serve_large_hits(large_hits, incoming, draining).await {
                warn!(%error, "large hits cannot be fetched any more");
            }
        });
    }
    stop.await;
    readiness.set(false);
    info!(deadline = ?config.drain, "stopping: no new streams, waiting for those that are open");
    draining.cancel();
    cache.tasks().close();
    let ended = async {
        let served = serving.await;
        cache.tasks().wait().await;
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

fn processor(
    config: &Config,
    cache: &Cache,
    clock: Clock,
    large_hits: Option<LargeHits>,
    metrics: &Metrics,
) -> Result<Arc<Processor>, Error> {
    let endpoints = config
        .policies
        .iter()
        .filter_map(|policy| Some(policy.upstream.as_ref()?.endpoint.clone()));
    let upstreams =
        Upstreams::new(endpoints, config.limits.upstream_fetches).map_err(|source| {
            Error::System {
                what: "requests to the policies' upstreams cannot be made",
                source,
            }
        })?;
    let waits = WaitLimits::of(&config.envoy, config.limits.lookup_timeout);
    let core = Core::new(cache.clone(), upstreams, clock, waits.patience, metrics);
    let routes = Routes::new(
        config.policies.iter().cloned(),
        config.routes.clone(),
        config.default_policy.clone(),
    );
    Ok(Arc::new(Processor::new(
        Arc::new(core),
        routes,
        large_hits,
        waits.extension,
        metrics,
    )))
}

/// How long a request may wait for something else than its lookups.
struct WaitLimits {
    /// What Envoy is asked for, once; `None` where it would refuse.
    extension: Option<Duration>,
    /// How long we wait then.
    patience: Duration,
}

impl WaitLimits {
    /// All lookups of a request together take at most `lookup`.
    fn of(envoy: &EnvoyLimits, lookup: Duration) -> Self {
        let longest = envoy.max_message_timeout;
        if longest.is_zero() {
            let message = envoy.message_timeout.mul_f64(0.7);
            return Self {
                extension: None,
                patience: message.saturating_sub(lookup),
            };
        }
        Self {
            extension: Some(longest),
            patience: longest.mul_f64(0.9).saturating_sub(lookup),
        }
    }
}

async fn serve(processor: Arc<Processor>, incoming: Incoming, draining: CancellationToken) {
    match incoming {
        Incoming::Tcp(listener, _) => {
            let listener = listener.tap_io(|stream| {
                // Without it an answer may wait for Envoy to acknowledge the one before.
                let _ = stream.set_nodelay(true);
            });
            extproc::serve(listener, processor, draining).await;
        }
        Incoming::Unix(listener, _file) => extproc::serve(listener, processor, draining).await,
    }
}

async fn serve_large_hits(
    large_hits: LargeHits,
    incoming: Incoming,
    draining: CancellationToken,
) -> io::Result<()> {
    let router = large_hits::router(large_hits);
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
