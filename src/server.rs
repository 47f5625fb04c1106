//! Start, run, end.
//!
//! Everything that can be wrong with the surroundings is found before the process says that it is
//! ready, and named with its field. At the end streams and fills may go on until a deadline.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt as _;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::budget::Budget;
use crate::clock::Clock;
use crate::collapse::{Groups, InFlight, Refreshes};
use crate::config::{Config, EnvoyLimits, Listen, StoreConfig};
use crate::extproc::{self, Patience, Routes, Shared};
use crate::fetch::Fetcher;
use crate::fill::{Fills, Pace, Turns};
use crate::marks::{self, Marks};
use crate::memory::Memory;
use crate::objects::{self, Objects};
use crate::store::{
    self, BreakerState, LocalConfig, LocalStore, MemoryStore, Metered, Observe, OpResult,
    Operation, S3Config, S3Store, Store,
};
use crate::telemetry::Metrics;
use crate::telemetry::admin::{self, Readiness};

/// The store's share of a lookup's time. Were it all, the lookup could be over a moment before the
/// store's own deadline, and what was given up does not count against the store.
const STORE_SHARE: f64 = 0.95;

/// Writes to the store at a time, large bodies aside: as many as idle connections to it are kept.
const WRITES: usize = 64;

/// Writes that may wait for their turn; there is room in a budget of 64 MiB for so many copies.
const WAITING_WRITES: usize = 4096;

/// Comparisons of the memory tier with the store that may be under way at a time.
const RECHECKS: usize = 16;

/// The mode bit of a directory whose files get its group.
const SETGID: u32 = 0o2000;

/// The mode of a socket that its group may connect to.
const OWNER_AND_GROUP: u32 = 0o660;

/// Why the process cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened on.
    #[error("{field}: cannot listen on {address}: {hint}")]
    Listen {
        /// The configuration's field.
        field: &'static str,
        /// Its value.
        address: String,
        /// What is wrong, and the way out.
        hint: String,
    },
    /// The store cannot be used.
    #[error("{field}: {error}")]
    Store {
        /// The configuration's field.
        field: &'static str,
        /// What is wrong, with its causes.
        error: String,
    },
    /// The system refused something that cannot be mended by the configuration.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

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
    let budget = Budget::new(limits.budget);
    let tasks = TaskTracker::new();
    let bounds = marks::Bounds {
        count: limits.invalidations,
        patience: limits.invalidation_time,
        // It passes, waits for its turn, and is written.
        fill: limits.fill_deadline + 2 * limits.write_timeout,
    };
    let marks = Marks::new(Arc::clone(&store), clock.clone(), tasks.clone(), bounds);
    let memory = Memory::new(
        config.memory.max_bytes,
        limits.immediate_cap,
        config.memory.recheck,
        marks.clone(),
    );
    let fills = Fills {
        marks,
        memory: memory.clone(),
        store: Arc::clone(&store),
        turns: Turns::new(WRITES, WAITING_WRITES, limits.write_timeout),
        budget: budget.clone(),
        in_flight: InFlight::default(),
        metrics: metrics.clone(),
        held_bytes: limits.held_cap,
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
    let fetcher = Fetcher::new(
        upstreams,
        limits.upstream_fetches,
        fills.clone(),
        clock.clone(),
    )
    .map_err(|source| Error::System {
        what: "requests to the policies' upstreams cannot be made",
        source,
    })?;
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
        immediate_bytes: limits.immediate_cap,
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

/// Where Envoy comes in.
enum Incoming {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener, String),
}

/// The file of a socket, which goes when the process does, unless a successor has put its own in
/// that place meanwhile.
struct SocketFile {
    path: PathBuf,
    /// Device and inode; `None` when it was gone as soon as it was made.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            identity: identity(path),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

impl Incoming {
    async fn bind(field: &'static str, listen: &Listen) -> Result<Self, Error> {
        let failed = |address: String, hint: String| Error::Listen {
            field,
            address,
            hint,
        };
        match listen {
            Listen::Tcp(address) => TcpListener::bind(address)
                .await
                .map(|listener| Self::Tcp(listener, address.to_string()))
                .map_err(|error| failed(address.to_string(), listen_hint(&error))),
            Listen::Unix(path) => bind_unix(path)
                .await
                .map(|listener| Self::Unix(listener, SocketFile::of(path)))
                .map_err(|hint| failed(format!("unix:{}", path.display()), hint)),
        }
    }

    fn address(&self) -> String {
        match self {
            Self::Unix(_, file) => format!("unix:{}", file.path.display()),
            Self::Tcp(_, address) => address.clone(),
        }
    }
}

/// Takes the place of a socket that nobody listens on any more, and of nothing else.
async fn bind_unix(path: &Path) -> Result<UnixListener, String> {
    if let Some(directory) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        std::fs::create_dir_all(directory)
            .map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(
                "something that is no socket is in its place; remove it or choose another path"
                    .to_owned(),
            );
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            return Err("another process listens there; stop it or choose another path".to_owned());
        }
        Ok(_) => std::fs::remove_file(path)
            .map_err(|error| format!("cannot remove the socket of an earlier process: {error}"))?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(|error| error.to_string())?;
    open_to_group(path).map_err(|error| format!("cannot open it to its group: {error}"))?;
    Ok(listener)
}

/// Lets the socket's group connect where the directory hands its own group down (setgid), as the
/// volume of a pod with `fsGroup` does: Envoy runs there as another user of that group, and
/// connecting needs write permission.
fn open_to_group(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    if directory.metadata()?.mode() & SETGID == 0 {
        return Ok(());
    }
    std::fs::set_permissions(path, Permissions::from_mode(OWNER_AND_GROUP))
}

fn listen_hint(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process listens there; stop it or choose another address".to_owned()
        }
        _ => error.to_string(),
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
    let router = objects::router(objects);
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
