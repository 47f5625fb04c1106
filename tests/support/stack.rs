//! Envoy, an upstream, Afterimage and its store, tied together for one test.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::afterimage::{Afterimage, Config};
use super::client::{Answer, Client, Version};
use super::envoy::{Bootstrap, Envoy};
use super::garage::{Garage, Transport};
use super::imgproxy::Imgproxy;
use super::metrics::Metrics;
use super::process::Process;
use super::wait;

/// How long a commit, or a request's last word in the metrics, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where entries are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    /// A directory of the stack.
    Local,
    /// A Garage of the stack, over TCP.
    Garage,
    /// A Garage of the stack, over a Unix socket.
    GarageOverUnix,
}

/// What a stack is to be. Begin with [`Stack::builder`].
pub(crate) struct Builder {
    store: Store,
    upstream: Option<SocketAddr>,
    imgproxy_env: Vec<(String, String)>,
    afterimage: bool,
    afterimage_env: Vec<(String, String)>,
    binary: Option<PathBuf>,
    config: Option<Value>,
    policies: Option<String>,
    settings: Vec<String>,
    routes: Vec<Value>,
    clusters: Vec<(String, SocketAddr)>,
    adjust: Option<Adjustment>,
}

type Adjustment = Box<dyn FnOnce(&mut Bootstrap) -> Result<()> + Send>;

impl Builder {
    /// Chooses the store; a local directory unless told.
    pub(crate) fn store(mut self, store: Store) -> Self {
        self.store = store;
        self
    }

    /// Puts this upstream in imgproxy's place; no imgproxy is started.
    pub(crate) fn upstream(mut self, upstream: SocketAddr) -> Self {
        self.upstream = Some(upstream);
        self
    }

    /// Sets an `IMGPROXY_*` variable.
    pub(crate) fn imgproxy_env(mut self, name: &str, value: &str) -> Self {
        self.imgproxy_env.push((name.into(), value.into()));
        self
    }

    /// Starts no Afterimage: Envoy finds nobody on the socket and passes everything on.
    pub(crate) fn without_afterimage(mut self) -> Self {
        self.afterimage = false;
        self
    }

    /// Runs this build of Afterimage.
    pub(crate) fn afterimage_binary(mut self, binary: &Path) -> Self {
        self.binary = Some(binary.to_owned());
        self
    }

    /// Sets a variable for Afterimage.
    pub(crate) fn afterimage_env(mut self, name: &str, value: &str) -> Self {
        self.afterimage_env.push((name.into(), value.into()));
        self
    }

    /// Runs Afterimage with this configuration instead of the reference.
    pub(crate) fn configuration(mut self, config: Value) -> Self {
        self.config = Some(config);
        self
    }

    /// Replaces all policies of the reference configuration by this YAML map.
    pub(crate) fn policies(mut self, yaml: &str) -> Self {
        self.policies = Some(yaml.into());
        self
    }

    /// Lays this YAML over Afterimage's reference configuration.
    pub(crate) fn settings(mut self, yaml: &str) -> Self {
        self.settings.push(yaml.into());
        self
    }

    /// Puts a route before all others; [`super::envoy::route`] makes one.
    pub(crate) fn route(mut self, route: Value) -> Self {
        self.routes.push(route);
        self
    }

    /// Adds a cluster for such routes.
    pub(crate) fn cluster(mut self, name: &str, endpoint: SocketAddr) -> Self {
        self.clusters.push((name.into(), endpoint));
        self
    }

    /// Changes Envoy's configuration in any other way.
    pub(crate) fn adjust_envoy(
        mut self,
        adjust: impl FnOnce(&mut Bootstrap) -> Result<()> + Send + 'static,
    ) -> Self {
        self.adjust = Some(Box::new(adjust));
        self
    }

    /// Starts it and waits until every part is ready.
    ///
    /// # Errors
    /// When a part is not installed or does not start; the message holds its last output.
    pub(crate) async fn start(self) -> Result<Stack> {
        let dir = tempfile::Builder::new().prefix("ai-").tempdir()?;
        let root = dir.path();
        std::fs::create_dir(root.join("run"))?;

        let imgproxy = match self.upstream {
            Some(_) => None,
            None => Some(Imgproxy::start(root, &self.imgproxy_env).await?),
        };
        let upstream = self
            .upstream
            .or_else(|| imgproxy.as_ref().map(Imgproxy::address))
            .context("there is an imgproxy where there is no other upstream")?;
        let garage = match self.store {
            Store::Local => None,
            Store::Garage => Some(start_garage(root, Transport::Tcp).await?),
            Store::GarageOverUnix => Some(start_garage(root, Transport::Unix).await?),
        };
        let afterimage = if self.afterimage {
            let config = self.config(garage.as_ref())?;
            let binary = match &self.binary {
                Some(binary) => binary.clone(),
                None => super::afterimage::binary()?,
            };
            Some(Afterimage::start(&binary, root, config, &self.afterimage_env).await?)
        } else {
            None
        };
        let envoy = Envoy::start(root, self.bootstrap(upstream)?).await?;
        Ok(Stack {
            client: Client::new(&envoy.base_url(), Version::Http1)?,
            envoy,
            afterimage,
            imgproxy,
            garage,
            dir,
        })
    }

    fn config(&self, garage: Option<&Garage>) -> Result<Config> {
        let mut config = match &self.config {
            Some(config) => Config::new(config.clone()),
            None => Config::reference()?,
        };
        if let Some(garage) = garage {
            config.store_in(garage)?;
        }
        if let Some(policies) = &self.policies {
            config.only_policies(policies)?;
        }
        for settings in &self.settings {
            config.overlay(settings)?;
        }
        Ok(config)
    }

    fn bootstrap(self, upstream: SocketAddr) -> Result<Bootstrap> {
        let mut bootstrap = Bootstrap::reference()?;
        bootstrap.imgproxy_at(upstream)?;
        for (name, endpoint) in &self.clusters {
            bootstrap.add_cluster(name, *endpoint)?;
        }
        for route in self.routes {
            bootstrap.add_route(route)?;
        }
        if let Some(adjust) = self.adjust {
            adjust(&mut bootstrap)?;
        }
        Ok(bootstrap)
    }
}

/// A running stack. Dropping it kills every part and removes its files; when the test is panicking, what the parts wrote
/// is shown first.
#[derive(Debug)]
pub(crate) struct Stack {
    /// Envoy.
    pub(crate) envoy: Envoy,
    /// A client of Envoy on HTTP/1.1.
    pub(crate) client: Client,
    imgproxy: Option<Imgproxy>,
    garage: Option<Garage>,
    afterimage: Option<Afterimage>,
    // Last, so that the processes are gone before their files are.
    dir: TempDir,
}

impl Stack {
    /// Local store, the imgproxy that is there, the reference policies and routes.
    pub(crate) fn builder() -> Builder {
        Builder {
            store: Store::Local,
            upstream: None,
            imgproxy_env: Vec::new(),
            afterimage: true,
            afterimage_env: Vec::new(),
            binary: None,
            config: None,
            policies: None,
            settings: Vec::new(),
            routes: Vec::new(),
            clusters: Vec::new(),
            adjust: None,
        }
    }

    /// GETs a path through Envoy on HTTP/1.1.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        self.client.get(path).await
    }

    /// A client of Envoy on HTTP/2.
    ///
    /// # Errors
    /// When the library refuses.
    pub(crate) fn http2(&self) -> Result<Client> {
        Client::new(&self.envoy.base_url(), Version::Http2)
    }

    /// A client of imgproxy itself.
    ///
    /// # Errors
    /// When the stack has another upstream.
    pub(crate) fn imgproxy_client(&self) -> Result<Client> {
        let imgproxy = self
            .imgproxy
            .as_ref()
            .context("this stack has no imgproxy")?;
        Client::new(&imgproxy.base_url(), Version::Http1)
    }

    /// imgproxy.
    ///
    /// # Panics
    /// When the stack has another upstream.
    pub(crate) fn imgproxy(&mut self) -> &mut Imgproxy {
        self.imgproxy.as_mut().expect("this stack has no imgproxy")
    }

    /// Garage.
    ///
    /// # Panics
    /// When the stack has another store.
    pub(crate) fn garage(&mut self) -> &mut Garage {
        self.garage.as_mut().expect("this stack has no Garage")
    }

    /// Afterimage.
    ///
    /// # Panics
    /// When the stack was started without.
    pub(crate) fn afterimage(&mut self) -> &mut Afterimage {
        self.afterimage
            .as_mut()
            .expect("this stack has no Afterimage")
    }

    /// Afterimage's metrics now.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn metrics(&self) -> Result<Metrics> {
        let afterimage = self.afterimage.as_ref();
        afterimage
            .context("this stack has no Afterimage")?
            .metrics()
            .await
    }

    /// Waits until a counter of Afterimage's has come to `count`. It must not go past it, either.
    ///
    /// # Errors
    /// When it has not within 30 s, or has gone past.
    pub(crate) async fn metric_reaches(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        count: usize,
    ) -> Result<()> {
        let mut found = 0.0;
        let reached = wait::until("the counter", PATIENCE, async || {
            let metrics = self.metrics().await;
            found = metrics.map_or(0.0, |metrics| metrics.sum(name, labels));
            found >= count as f64
        })
        .await;
        reached.with_context(|| format!("{name} {labels:?}: {found} instead of {count}"))?;
        ensure!(
            found == count as f64,
            "{name} {labels:?}: {found} instead of {count}"
        );
        Ok(())
    }

    /// Waits until so many fills are committed, which is after their clients had the last byte.
    ///
    /// # Errors
    /// As [`Stack::metric_reaches`].
    pub(crate) async fn commits_reach(&self, count: usize) -> Result<()> {
        self.metric_reaches("afterimage_fills_total", &[("result", "committed")], count)
            .await
    }

    /// How many entries, and on Garage other objects, the store has now.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn stored(&self) -> Result<usize> {
        let Some(garage) = &self.garage else {
            return files_below(&self.local_store().join("v1"));
        };
        let objects = garage.bucket().await?["objects"].as_u64();
        Ok(usize::try_from(objects.context("a number")?)?)
    }

    /// Envoy's counters and gauges now; dots in their names are underscores, and `envoy_` stands before them.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn envoy_metrics(&self) -> Result<Metrics> {
        Metrics::scrape(&format!("{}/stats/prometheus", self.envoy.admin_url())).await
    }

    /// The directory of the stack.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The socket on which Afterimage listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir().join("run/ext_proc.sock")
    }

    /// The directory of the local store.
    pub(crate) fn local_store(&self) -> PathBuf {
        self.dir().join("run/store")
    }

    fn processes(&self) -> impl Iterator<Item = &Process> {
        let afterimage = self.afterimage.as_ref().map(|part| &part.process);
        let imgproxy = self.imgproxy.as_ref().map(|part| &part.process);
        let garage = self.garage.as_ref().map(|part| &part.process);
        [Some(&self.envoy.process), afterimage, imgproxy, garage]
            .into_iter()
            .flatten()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for process in self.processes() {
                eprintln!("{}", process.last_output());
            }
        }
    }
}

/// Counts the files of a directory that may not exist, and of those in it.
fn files_below(directory: &Path) -> Result<usize> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut files = 0;
    for entry in entries {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() {
            files_below(&entry.path())?
        } else {
            1
        };
    }
    Ok(files)
}

async fn start_garage(root: &Path, transport: Transport) -> Result<Garage> {
    let dir = root.join("garage");
    std::fs::create_dir(&dir)?;
    Garage::start(&dir, transport).await
}
