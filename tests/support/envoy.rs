//! Envoy with the reference bootstrap, its ports replaced and, where a test wants them, routes and clusters added.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::imgproxy::is_healthy;
use super::launch::Launch;
use super::ports::Port;
use super::process::Process;
use super::{settings, tools};

const STARTS_WITHIN: Duration = Duration::from_secs(30);
const LISTENER: &str = "/static_resources/listeners/0";
const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
const CLUSTERS: &str = "/static_resources/clusters";
const PER_ROUTE: &str =
    "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute";

/// Envoy's configuration before it is written.
#[derive(Debug, Clone)]
pub(crate) struct Bootstrap(Value);

impl Bootstrap {
    /// `envoy/envoy.yaml` as it is.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn reference() -> Result<Self> {
        Ok(Self(settings::read(
            &tools::project().join("envoy/envoy.yaml"),
        )?))
    }

    /// Moves the public listener and the admin interface.
    ///
    /// # Errors
    /// When the reference does not have them where it had.
    pub(crate) fn listen_on(&mut self, public: u16, admin: u16) -> Result<()> {
        let port = format!("{LISTENER}/address/socket_address/port_value");
        settings::replace(&mut self.0, &port, 10000, public)?;
        let port = "/admin/address/socket_address/port_value";
        settings::replace(&mut self.0, port, 9901, admin)?;
        // Where a listener leads to the admin interface.
        if let Ok(cluster) = self.cluster("admin") {
            let address =
                "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";
            settings::replace(cluster, &format!("{address}/port_value"), 9901, admin)?;
        }
        // Two Envoys must never share a port, which the kernel allows when both ask for it.
        settings::at(&mut self.0, LISTENER)?["enable_reuse_port"] = json!(false);
        Ok(())
    }

    /// Sends what would go to imgproxy to `upstream`.
    ///
    /// # Errors
    /// When the reference has no such cluster.
    pub(crate) fn imgproxy_at(&mut self, upstream: SocketAddr) -> Result<()> {
        let cluster = self.cluster("imgproxy")?;
        let address = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";
        settings::replace(
            cluster,
            &format!("{address}/port_value"),
            8080,
            upstream.port(),
        )?;
        let ip = upstream.ip().to_string();
        settings::replace(cluster, &format!("{address}/address"), "127.0.0.1", ip)
    }

    /// The cluster of that name.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn cluster(&mut self, name: &str) -> Result<&mut Value> {
        named(settings::at(&mut self.0, CLUSTERS)?, name)
    }

    /// The route of that name.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn route(&mut self, name: &str) -> Result<&mut Value> {
        named(self.routes()?, name)
    }

    /// The configuration of the external processing filter.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn processor(&mut self) -> Result<&mut Value> {
        let filters = settings::at(&mut self.0, &format!("{MANAGER}/http_filters"))?;
        settings::at(
            named(filters, "envoy.filters.http.ext_proc")?,
            "/typed_config",
        )
    }

    /// The configuration of the HTTP connection manager.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn connection_manager(&mut self) -> Result<&mut Value> {
        settings::at(&mut self.0, MANAGER)
    }

    /// Puts a route before all others.
    ///
    /// # Errors
    /// When the reference has no list of routes.
    pub(crate) fn add_route(&mut self, route: Value) -> Result<()> {
        let routes = self.routes()?.as_array_mut().context("routes are a list")?;
        routes.insert(0, route);
        Ok(())
    }

    /// Adds a cluster with one static HTTP/1.1 endpoint.
    ///
    /// # Errors
    /// When the reference has no list of clusters.
    pub(crate) fn add_cluster(&mut self, name: &str, endpoint: SocketAddr) -> Result<()> {
        let clusters = settings::at(&mut self.0, CLUSTERS)?;
        let address = json!({"address": endpoint.ip(), "port_value": endpoint.port()});
        clusters
            .as_array_mut()
            .context("clusters are a list")?
            .push(json!({
                "name": name,
                "type": "STATIC",
                "connect_timeout": "1s",
                "load_assignment": {
                    "cluster_name": name,
                    "endpoints": [{"lb_endpoints": [
                        {"endpoint": {"address": {"socket_address": address}}}
                    ]}],
                },
            }));
        Ok(())
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        settings::write(&self.0, path)
    }

    /// All of it, for what has no method of its own.
    pub(crate) fn whole(&mut self) -> &mut Value {
        &mut self.0
    }

    fn routes(&mut self) -> Result<&mut Value> {
        let routes = format!("{MANAGER}/route_config/virtual_hosts/0/routes");
        settings::at(&mut self.0, &routes)
    }
}

/// A route: everything below `prefix` goes to `cluster`, with `policy` or past Afterimage.
pub(crate) fn route(prefix: &str, cluster: &str, policy: Option<&str>) -> Value {
    let settings = match policy {
        Some(policy) => json!({
            "@type": PER_ROUTE,
            "overrides": {
                "grpc_initial_metadata": [{"key": "x-afterimage-policy", "value": policy}],
            },
        }),
        None => json!({"@type": PER_ROUTE, "disabled": true}),
    };
    json!({
        "name": format!("test {prefix}"),
        "match": {"prefix": prefix},
        "route": {"cluster": cluster, "timeout": "30s"},
        "typed_per_filter_config": {"envoy.filters.http.ext_proc": settings},
    })
}

/// A running Envoy of a test. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Envoy {
    /// The process, to be frozen, killed and started again.
    pub(crate) process: Process,
    public: Port,
    admin: Port,
}

impl Envoy {
    /// Starts it in `dir`, with its ports replaced by free ones, and waits until it listens.
    ///
    /// # Errors
    /// When it is not installed, refuses the configuration or does not start; the message holds its last output.
    pub(crate) async fn start(dir: &Path, mut bootstrap: Bootstrap) -> Result<Self> {
        let (public, admin) = (Port::free()?, Port::free()?);
        bootstrap.listen_on(public.number(), admin.number())?;
        let config = dir.join("envoy.json");
        bootstrap.write(&config)?;
        let launch = launch(dir, &config)?.args(["--concurrency", "1"]);
        let mut envoy = Self {
            process: Process::start(launch, dir)?,
            public,
            admin,
        };
        envoy.wait_until_ready().await?;
        Ok(envoy)
    }

    /// Waits until it is live, after it was started again.
    ///
    /// # Errors
    /// As [`Process::ready`].
    pub(crate) async fn wait_until_ready(&mut self) -> Result<()> {
        let ready = format!("{}/ready", self.admin_url());
        self.process
            .ready("Envoy to be live", STARTS_WITHIN, async || {
                is_healthy(&ready).await
            })
            .await
    }

    /// Where clients go: `http://127.0.0.1:PORT`.
    pub(crate) fn base_url(&self) -> String {
        format!("http://{}", self.public.address())
    }

    /// Where its admin interface is: `http://127.0.0.1:PORT`.
    pub(crate) fn admin_url(&self) -> String {
        format!("http://{}", self.admin.address())
    }

    /// The access log so far, a line per finished request. Envoy writes it some 50 ms late: wait for the line.
    pub(crate) fn access_log(&self) -> Vec<String> {
        self.process.stdout().lines().map(Into::into).collect()
    }
}

/// How Envoy is started with this configuration file, from `dir`.
///
/// # Errors
/// When it is not installed.
pub(crate) fn launch(dir: &Path, config: &Path) -> Result<Launch> {
    let config = config.display().to_string();
    Ok(Launch::new("envoy", tools::path("envoy")?, dir, "ENVOY_")
        // Without hot restart several Envoys of one user do not meet in shared memory.
        .args(["-c", &config, "--disable-hot-restart"])
        .args(["--log-level", "warning", "--file-flush-interval-msec", "50"]))
}

fn named<'v>(list: &'v mut Value, name: &str) -> Result<&'v mut Value> {
    list.as_array_mut()
        .and_then(|list| list.iter_mut().find(|one| one["name"] == name))
        .with_context(|| format!("the bootstrap has no {name:?}"))
}
