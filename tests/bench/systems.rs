//! Everyone who is measured, running: ours with each of its stores, the floors and the peers, all before one upstream.

use std::any::Any;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use afterimage::clock::Clock;
use afterimage::store::{LocalConfig, LocalStore};
use anyhow::{Context as _, Result, bail};
use futures_util::future::try_join_all;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::UnixStream;

use super::cores;
use super::load::{Expected, Load, Paths, Until};
use super::nginx::{self, Nginx};
use super::node::NodeProxy;
use super::s3::unused_key;
use super::support::envoy;
use super::support::garage::{self, BUCKET};
use super::support::launch::Launch;
use super::support::metrics::Metrics;
use super::support::ports::Port;
use super::support::process::Process;
use super::support::s3::Signer;
use super::support::stack::{Builder, Stack, Store};
use super::urls::{Images, KEY, SALT};
use super::usage::{self, Part};
use super::{empty_ext_proc, plan, upstream};

/// The prefix of a route that has not opted in: the filter is there, and names no policy.
pub(crate) const BYPASS: &str = "/bypass";
/// The policy of the reference configuration's route `/`.
const POLICY: &str = "images";
/// Switches the memory tier off.
pub(crate) const MEMORY_OFF: &str = "memory: {max_bytes: 0B}";
const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// How often all images are asked for until all are hits. The first time fills, a second may meet copies on their way.
const FILLING_ROUNDS: usize = 10;

/// Someone who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Setup {
    /// Afterimage with its memory tier, before a local store.
    AfterimageMemory,
    /// Afterimage with a local store, the memory tier off.
    AfterimageLocal,
    /// Afterimage with Garage over TCP, the memory tier off.
    AfterimageGarage,
    /// Afterimage with Garage over a Unix socket, the memory tier off.
    AfterimageGarageUnix,
    /// Envoy with a processor that does nothing.
    EmptyExtProc,
    /// Envoy without a processor.
    EnvoyAlone,
    /// nginx with `proxy_cache`.
    Nginx,
    /// The proxy in Node, on the Garage of [`Setup::AfterimageGarage`].
    NodeProxy,
    /// A directory as Afterimage's local store has it, asked directly.
    LocalStore,
    /// The Garage of [`Setup::AfterimageGarage`], asked directly.
    Garage,
}

impl Setup {
    /// The word in the results.
    pub(crate) fn system(self) -> &'static str {
        match self {
            Self::AfterimageMemory
            | Self::AfterimageLocal
            | Self::AfterimageGarage
            | Self::AfterimageGarageUnix => "afterimage",
            Self::EmptyExtProc => "empty-ext-proc",
            Self::EnvoyAlone => "envoy-alone",
            Self::Nginx => "nginx",
            Self::NodeProxy => "node-proxy",
            Self::LocalStore | Self::Garage => "store",
        }
    }

    /// Where it keeps copies. One that keeps none is compared with either kind.
    pub(crate) fn stores(self) -> &'static [&'static str] {
        match self {
            Self::AfterimageMemory | Self::AfterimageLocal | Self::Nginx | Self::LocalStore => {
                &["local"]
            }
            Self::AfterimageGarage
            | Self::AfterimageGarageUnix
            | Self::NodeProxy
            | Self::Garage => &["garage"],
            Self::EmptyExtProc | Self::EnvoyAlone => &["local", "garage"],
        }
    }

    /// Whom it cannot be started without.
    pub(crate) fn needs(self) -> Option<Self> {
        match self {
            Self::EmptyExtProc => Some(Self::AfterimageLocal),
            Self::NodeProxy | Self::Garage => Some(Self::AfterimageGarage),
            Self::AfterimageMemory
            | Self::AfterimageLocal
            | Self::AfterimageGarage
            | Self::AfterimageGarageUnix
            | Self::EnvoyAlone
            | Self::Nginx
            | Self::LocalStore => None,
        }
    }

    /// Does it have to be filled before it can hit?
    fn is_cache(self) -> bool {
        match self {
            Self::AfterimageMemory
            | Self::AfterimageLocal
            | Self::AfterimageGarage
            | Self::AfterimageGarageUnix
            | Self::Nginx
            | Self::NodeProxy => true,
            Self::EmptyExtProc | Self::EnvoyAlone | Self::LocalStore | Self::Garage => false,
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Systems {
    running: BTreeMap<Setup, Running>,
    // Last, so that nobody is left without it.
    upstream: Upstream,
}

impl Systems {
    /// Starts those who are wanted, and fills them with images of these sizes.
    ///
    /// # Errors
    /// When something is not installed or does not start; the message holds its last output.
    pub(crate) async fn start(wanted: &[Setup], sizes: &[u64]) -> Result<Self> {
        Self::start_build(wanted, sizes, None).await
    }

    /// The same with this build of Afterimage.
    ///
    /// # Errors
    /// As [`Systems::start`].
    pub(crate) async fn start_build(
        wanted: &[Setup],
        sizes: &[u64],
        binary: Option<&Path>,
    ) -> Result<Self> {
        let upstream = Upstream::start().await?;
        let address = upstream.address();
        let starting = wanted.iter().map(async |setup| {
            let running = match setup {
                Setup::AfterimageMemory => build(binary, Store::Local, "{}", address).await?,
                Setup::AfterimageLocal => build(binary, Store::Local, MEMORY_OFF, address).await?,
                Setup::AfterimageGarage => {
                    build(binary, Store::Garage, MEMORY_OFF, address).await?
                }
                Setup::AfterimageGarageUnix => {
                    build(binary, Store::GarageOverUnix, MEMORY_OFF, address).await?
                }
                Setup::EnvoyAlone => envoy_alone(address).await?,
                Setup::Nginx => with_nginx(address).await?,
                Setup::LocalStore => local_store().await?,
                // Later, because they need one of those above.
                Setup::EmptyExtProc | Setup::NodeProxy | Setup::Garage => return Ok(None),
            };
            anyhow::Ok(Some((*setup, running)))
        });
        let running = try_join_all(starting).await?.into_iter().flatten();
        let mut systems = Self {
            running: running.collect(),
            upstream,
        };
        if wanted.contains(&Setup::NodeProxy) {
            let proxy = node_proxy(address, systems.garage()?).await?;
            systems.running.insert(Setup::NodeProxy, proxy);
        }
        if wanted.contains(&Setup::Garage) {
            let garage = garage_itself(systems.garage()?).await?;
            systems.running.insert(Setup::Garage, garage);
        }
        for setup in wanted.iter().filter(|setup| setup.is_cache()) {
            for size in sizes {
                let images = Images::new(*size, "").known();
                let running = systems.of(*setup)?;
                fill(running, &systems.upstream, images, *size)
                    .await
                    .with_context(|| format!("{setup:?}"))?;
            }
        }
        if wanted.contains(&Setup::EmptyExtProc) {
            let empty = systems.empty_ext_proc(sizes).await?;
            systems.running.insert(Setup::EmptyExtProc, empty);
        }
        Ok(systems)
    }

    /// One of them.
    ///
    /// # Errors
    /// When it was not wanted.
    pub(crate) fn of(&self, setup: Setup) -> Result<&Running> {
        let running = self.running.get(&setup);
        running.with_context(|| format!("{setup:?} does not run"))
    }

    /// Starts again a peer that has ended by itself. True when it had.
    ///
    /// # Errors
    /// When it does not start again.
    pub(crate) async fn revive(&mut self, setup: Setup) -> Result<bool> {
        let Some(running) = self.running.get_mut(&setup) else {
            return Ok(false);
        };
        let Some(proxy) = &mut running.node_proxy else {
            return Ok(false);
        };
        let had_ended = proxy.revive().await?;
        let now = proxy.part();
        let mut parts = running.parts.iter_mut();
        if let Some(part) = parts.find(|part| part.name == now.name) {
            *part = now;
        }
        Ok(had_ended)
    }

    /// The upstream before which all stand.
    pub(crate) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    fn garage(&self) -> Result<&Garage> {
        let running = self.of(Setup::AfterimageGarage)?;
        running.garage.as_ref().context("it has a Garage")
    }

    /// Envoy and a processor that says what Afterimage says.
    async fn empty_ext_proc(&self, sizes: &[u64]) -> Result<Running> {
        let ours = self.of(Setup::AfterimageLocal)?.stack.as_ref();
        let ours = ours.context("Afterimage is a stack")?;
        let stack = before(self.upstream.address()).without_afterimage();
        let stack = stack.start().await?;
        let messages = stack.dir().join("messages");
        std::fs::create_dir(&messages)?;
        for size in sizes {
            let paths = Images::new(*size, "").known();
            empty_ext_proc::record(&ours.socket(), POLICY, *size, &paths, &messages).await?;
        }
        let path = Images::new(plan::MEDIUM, "").fresh();
        let image = upstream::webp(plan::MEDIUM as usize);
        let fields = &upstream::FIELDS;
        empty_ext_proc::record_miss(&ours.socket(), POLICY, &path, fields, &image, &messages)
            .await?;
        let socket = stack.socket();
        let args = [&socket, &messages].map(|path| path.display().to_string());
        let mut process = start_ourselves("empty-ext-proc", args, stack.dir())?;
        process
            .ready("it to listen", STARTS_WITHIN, async || {
                UnixStream::connect(&socket).await.is_ok()
            })
            .await?;
        let mut running = Running::of(stack)?;
        running
            .parts
            .push(Part::new("empty-ext-proc", process.pid()));
        Ok(running.keeping(process))
    }
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Running {
    /// Where it is asked.
    pub(crate) target: SocketAddr,
    /// Its processes, without the upstream.
    pub(crate) parts: Vec<Part>,
    /// The store that is asked without a server.
    pub(crate) local_store: Option<LocalStore>,
    /// Paths of objects that are not there, where it is a server of objects.
    pub(crate) absent: Vec<String>,
    stack: Option<Box<Stack>>,
    node_proxy: Option<NodeProxy>,
    /// Its Garage, which is among its processes.
    pub(crate) garage: Option<Garage>,
    /// Ends when this is dropped.
    _kept: Option<Box<dyn Any>>,
}

/// What others need to know of a stack's Garage.
#[derive(Debug)]
pub(crate) struct Garage {
    /// Where it speaks S3.
    pub(crate) endpoint: String,
    pid: u32,
}

impl Garage {
    fn address(&self) -> Result<SocketAddr> {
        address(&self.endpoint)
    }

    fn part(&self) -> Part {
        Part::new("garage", self.pid)
    }
}

impl Running {
    fn new(target: SocketAddr, part: Part) -> Self {
        Self {
            target,
            parts: vec![part],
            local_store: None,
            absent: Vec::new(),
            stack: None,
            node_proxy: None,
            garage: None,
            _kept: None,
        }
    }

    /// A stack with its Envoy alone; the other parts are to be added.
    pub(crate) fn of(stack: Stack) -> Result<Self> {
        let target = address(&stack.envoy.base_url())?;
        let envoy = Part::new("envoy", stack.envoy.process.pid());
        Ok(Self {
            stack: Some(Box::new(stack)),
            ..Self::new(target, envoy)
        })
    }

    fn keeping(self, kept: impl Any) -> Self {
        Self {
            _kept: Some(Box::new(kept)),
            ..self
        }
    }

    /// The metrics of Afterimage.
    ///
    /// # Errors
    /// When it does not answer, or this is another system.
    pub(crate) async fn metrics(&self) -> Result<Metrics> {
        let stack = self.stack.as_ref().context("no stack")?;
        stack.metrics().await
    }

    /// False while Afterimage's circuit breaker keeps it from asking its store.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn is_store_in_use(&self) -> Result<bool> {
        if self.parts.iter().all(|part| part.name != "afterimage") {
            return Ok(true);
        }
        let metrics = self.metrics().await?;
        Ok(metrics.sum("afterimage_store_breaker_state", &[]) == 0.0)
    }
}

/// The upstream's process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Upstream {
    process: Process,
    port: Port,
    _files: TempDir,
}

impl Upstream {
    /// Starts it.
    ///
    /// # Errors
    /// When it does not start; the message holds its last output.
    pub(crate) async fn start() -> Result<Self> {
        let files = tempfile::tempdir()?;
        let port = Port::free()?;
        let address = port.address();
        let mut process = start_ourselves("upstream", [address.to_string()], files.path())?;
        process
            .ready("it to listen", STARTS_WITHIN, async || {
                upstream::count(address).await.is_ok()
            })
            .await?;
        Ok(Self {
            process,
            port,
            _files: files,
        })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// How many images it has sent.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn sent(&self) -> Result<u64> {
        upstream::count(self.address()).await
    }

    /// The process, whose time counts as well.
    pub(crate) fn part(&self) -> Part {
        Part::new("upstream", self.process.pid())
    }
}

/// Asks for all these images of `length` bytes until the upstream is no longer asked.
///
/// # Errors
/// When there is a wrong answer, or they are not all remembered.
pub(crate) async fn fill(
    running: &Running,
    upstream: &Upstream,
    paths: Vec<String>,
    length: u64,
) -> Result<()> {
    let until = Until {
        time: STARTS_WITHIN,
        requests: paths.len() as u64,
    };
    let paths = Paths::known(paths);
    let mut load = Load::open(running.target, 4).await?;
    for _ in 0..FILLING_ROUNDS {
        let before = upstream.sent().await?;
        let answers = load.run(&paths, Expected::image(length), until).await;
        if let Some(error) = answers.first_error {
            bail!("a wrong answer: {error}");
        }
        usage::come_to_rest(&running.parts).await?;
        if upstream.sent().await? == before {
            return Ok(());
        }
    }
    bail!("not all images of {length} bytes are remembered");
}

/// A stack as shipped, but with keys, and with a route that has not opted in.
fn before(upstream: SocketAddr) -> Builder {
    let policies = format!(
        "{POLICY}: {{kind: imgproxy, signature: {{pairs: [{{key: {KEY}, salt: {SALT}}}]}}, formats: [avif, webp]}}"
    );
    let mut not_opted_in = envoy::route(&format!("{BYPASS}/"), "imgproxy", None);
    not_opted_in["typed_per_filter_config"] = json!({});
    Stack::builder()
        .upstream(upstream)
        .policies(&policies)
        .route(not_opted_in)
}

/// Afterimage with these settings laid over those of [`before`].
///
/// # Errors
/// When something is not installed or does not start; the message holds its last output.
pub(crate) async fn afterimage(
    store: Store,
    settings: &str,
    upstream: SocketAddr,
) -> Result<Running> {
    build(None, store, settings, upstream).await
}

/// The same with this build of it; the project's own if there is none.
async fn build(
    binary: Option<&Path>,
    store: Store,
    settings: &str,
    upstream: SocketAddr,
) -> Result<Running> {
    let mut stack = before(upstream).store(store).settings(settings);
    if let Some(binary) = binary {
        stack = stack.afterimage_binary(binary);
    }
    let mut stack = stack.start().await?;
    let afterimage = Part::new("afterimage", stack.afterimage().process.pid());
    let garage = (store != Store::Local).then(|| Garage {
        endpoint: stack.garage().endpoint().to_owned(),
        pid: stack.garage().process.pid(),
    });
    if let Some(garage) = &garage {
        cores::confine(garage.pid)?;
    }
    let mut running = Running::of(stack)?;
    running.parts.push(afterimage);
    running.parts.extend(garage.as_ref().map(Garage::part));
    running.garage = garage;
    Ok(running)
}

async fn envoy_alone(upstream: SocketAddr) -> Result<Running> {
    let stack = before(upstream)
        .without_afterimage()
        .adjust_envoy(|bootstrap| {
            let filters = &mut bootstrap.connection_manager()?["http_filters"];
            let filters = filters.as_array_mut().context("filters are a list")?;
            filters.retain(|filter| filter["name"] != "envoy.filters.http.ext_proc");
            let hosts = &mut bootstrap.connection_manager()?["route_config"]["virtual_hosts"];
            let routes = hosts[0]["routes"].as_array_mut();
            for route in routes.context("routes are a list")? {
                route["typed_per_filter_config"] = json!({});
            }
            Ok(())
        });
    Running::of(stack.start().await?)
}

async fn with_nginx(upstream: SocketAddr) -> Result<Running> {
    let files = tempfile::tempdir()?;
    let program = nginx::find().context("nginx is not installed")?;
    let nginx = Nginx::start(&program, files.path(), upstream).await?;
    let part = nginx.part().await?;
    // The process goes first.
    Ok(Running::new(nginx.address(), part).keeping((nginx, files)))
}

async fn node_proxy(upstream: SocketAddr, garage: &Garage) -> Result<Running> {
    let files = tempfile::tempdir()?;
    let proxy = NodeProxy::start(files.path(), upstream, &garage.endpoint).await?;
    let mut running = Running::new(proxy.address(), proxy.part());
    running.parts.push(garage.part());
    running.node_proxy = Some(proxy);
    Ok(running.keeping(files))
}

async fn local_store() -> Result<Running> {
    let files = tempfile::tempdir()?;
    let config = LocalConfig {
        path: files.path().to_owned(),
        max_bytes: 1 << 30,
    };
    let store = LocalStore::open(config, Clock::system()).await?;
    // Nobody listens there, and nobody asks there.
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut running = Running::new(nowhere, Part::new("load", std::process::id()));
    running.parts.clear();
    running.local_store = Some(store);
    Ok(running.keeping(files))
}

async fn garage_itself(garage: &Garage) -> Result<Running> {
    let signer = Signer::new(&garage.endpoint, BUCKET, garage::KEY);
    let mut running = Running::new(garage.address()?, garage.part());
    for number in 0..64 {
        let path = signer.get(&unused_key(number).object_name()).await?;
        running.absent.push(path);
    }
    Ok(running)
}

/// Starts another process of this program.
fn start_ourselves<const N: usize>(
    name: &'static str,
    args: [String; N],
    dir: &Path,
) -> Result<Process> {
    let launch = Launch::new(name, std::env::current_exe()?, dir, "AFTERIMAGE_")
        .args([name])
        .args(args);
    Process::start(launch, dir)
}

fn address(url: &str) -> Result<SocketAddr> {
    let address = url.strip_prefix("http://");
    Ok(address.context("a URL of an address")?.parse()?)
}
