//! The files that people copy: `envoy/istio`, `envoy/gateway`, `envoy/kubernetes`.
//!
//! Istio and Envoy Gateway make Envoy's configuration out of their own resources; what they make of ours is kept in
//! `translated*.yaml` (`make translated`), and is run here.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use data_encoding::HEXLOWER;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::signatures::{FIRST, FULL_SIZE, signed_url};
use crate::support::afterimage::{CREDENTIALS, binary};
use crate::support::client::Answer;
use crate::support::envoy::Bootstrap;
use crate::support::stack::Stack;
use crate::support::{settings, tools, wait};

const SMALL: &str = "/rs:fill:300:200/plain/local:///coffee.png@webp";
/// A hit that is streamed, not sent in one message.
const LARGE: &str = "/rs:fit:1000:1000/plain/local:///hubble_deep_field.jpg@png";
const MIB: usize = 1 << 20;

/// Where the files say that the socket is, and where it is in a test.
const SOCKET: &str = "/run/afterimage/ext_proc.sock";
const TEST_SOCKET: &str = "run/ext_proc.sock";

/// Filters that only Istio's own build of Envoy has.
const ISTIO_ONLY: &str = "istio.";

/// One way to run Envoy, as its files describe it.
struct Mesh {
    /// Afterimage's configuration, from the ConfigMap.
    config: Value,
    /// Envoy's, from `translated*.yaml` or the ConfigMap.
    envoy: Value,
    host: &'static str,
    is_signed: bool,
    /// Is Afterimage asked on routes that name no policy, too?
    asks_everywhere: bool,
}

impl Mesh {
    fn new(dir: &str, resources: &str, translated: &str, host: &'static str) -> Result<Self> {
        let dir = tools::project().join("envoy").join(dir);
        Ok(Self {
            config: config_of(&dir.join(resources), "afterimage.yaml")?,
            envoy: settings::read(&dir.join(translated))?,
            host,
            is_signed: false,
            asks_everywhere: false,
        })
    }

    fn istio_sidecar() -> Result<Self> {
        let host = "imgproxy.shop.svc.cluster.local";
        Self::new("istio", "sidecar.yaml", "translated-sidecar.yaml", host)
    }

    fn istio_gateway() -> Result<Self> {
        let host = "images.example.com";
        Self::new("istio", "gateway.yaml", "translated-gateway.yaml", host)
    }

    fn envoy_gateway() -> Result<Self> {
        let host = "images.example.com";
        let mesh = Self::new("gateway", "platform.yaml", "translated.yaml", host)?;
        Ok(Self {
            asks_everywhere: true,
            ..mesh
        })
    }

    fn kubernetes() -> Result<Self> {
        let file = tools::project().join("envoy/kubernetes/images.yaml");
        Ok(Self {
            config: config_of(&file, "afterimage.yaml")?,
            envoy: config_of(&file, "envoy.yaml")?,
            host: "images.example.com",
            is_signed: true,
            asks_everywhere: false,
        })
    }

    /// Starts it, the socket, the ports and imgproxy's address apart, which are a test's own, and the store, which is local.
    async fn start(&self) -> Result<Stack> {
        let mut config = self.config.clone();
        let listen = format!("unix:{SOCKET}");
        settings::replace(
            &mut config,
            "/listen",
            listen,
            format!("unix:{TEST_SOCKET}"),
        )?;
        settings::replace(
            &mut config,
            "/admin/listen",
            "0.0.0.0:9911",
            "127.0.0.1:9911",
        )?;
        settings::replace(&mut config, "/store/kind", "s3", "local")?;
        let envoy = self.envoy.clone();
        let mut builder = Stack::builder()
            .configuration(config)
            .settings("{store: {local: {path: run/store}}, limits: {lookup_timeout: 700ms}}")
            .adjust_envoy(move |bootstrap| wrap(bootstrap, &envoy));
        if self.is_signed {
            for (name, value) in signing() {
                builder = builder
                    .imgproxy_env(name, value)
                    .afterimage_env(name, value);
            }
        }
        builder.start().await
    }

    fn path(&self, image: &str) -> Result<String> {
        if self.is_signed {
            signed_url(FIRST, FULL_SIZE, image)
        } else {
            Ok(format!("/insecure{image}"))
        }
    }

    async fn get(&self, stack: &Stack, path: &str) -> Result<Answer> {
        let request = stack.client.request(Method::GET, path);
        stack.client.send(request.header("host", self.host)).await
    }
}

fn signing() -> [(&'static str, &'static str); 2] {
    [("IMGPROXY_KEY", FIRST[0]), ("IMGPROXY_SALT", FIRST[1])]
}

/// The resources in a file.
fn resources(file: &Path) -> Result<Vec<Value>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    text.split("\n---\n").map(settings::parse).collect()
}

fn of_kind<'v>(resources: &'v [Value], kind: &str) -> Result<&'v Value> {
    let mut found = resources.iter().filter(|one| one["kind"] == kind);
    let first = found.next().with_context(|| format!("no {kind}"))?;
    ensure!(found.next().is_none(), "more than one {kind}");
    Ok(first)
}

/// A file in the one ConfigMap among the resources.
fn config_of(file: &Path, name: &str) -> Result<Value> {
    let resources = resources(file)?;
    let text = of_kind(&resources, "ConfigMap")?["data"][name].as_str();
    settings::parse(text.with_context(|| format!("no {name} in {}", file.display()))?)
}

/// Puts what a file says into a bootstrap that can run here: a bootstrap as it is, else the listener's connection manager
/// with its routes, Afterimage's cluster, and imgproxy in the place of all others.
fn wrap(bootstrap: &mut Bootstrap, envoy: &Value) -> Result<()> {
    let imgproxy = bootstrap.cluster("imgproxy")?.clone();
    if envoy["static_resources"].is_object() {
        return run_as_it_is(bootstrap, envoy.clone(), imgproxy);
    }
    let listener = envoy["listeners"][0].clone();
    let chains = listener["filterChains"].as_array();
    let plain = chains
        .into_iter()
        .flatten()
        .find(|chain| chain["transportSocket"].is_null());
    let chain = plain.unwrap_or(&listener["defaultFilterChain"]);
    let filters = chain["filters"].as_array().context("filters")?;
    let manager = filters
        .iter()
        .find(|filter| filter["name"] == "envoy.filters.network.http_connection_manager")
        .context("a connection manager")?;
    let mut manager = manager["typedConfig"].clone();
    settings::at(&mut manager, "/httpFilters")?
        .as_array_mut()
        .context("filters are a list")?
        .retain(|filter| {
            !filter["name"]
                .as_str()
                .unwrap_or_default()
                .starts_with(ISTIO_ONLY)
        });
    if let Some(discovered) = manager.as_object_mut().context("fields")?.remove("rds") {
        let routes = named(&envoy["routes"], "name", &discovered["routeConfigName"])?;
        manager["routeConfig"] = without_type(routes.clone());
    }
    let (processor, cluster) = clusters(envoy, &manager, &imgproxy)?;
    *bootstrap.connection_manager()? = manager;
    let buffer = &listener["perConnectionBufferLimitBytes"];
    if !buffer.is_null() {
        *settings::at(bootstrap.whole(), "/static_resources/listeners/0")?
            .as_object_mut()
            .context("fields")?
            .entry("per_connection_buffer_limit_bytes")
            .or_insert(Value::Null) = buffer.clone();
    }
    let all = settings::at(bootstrap.whole(), "/static_resources/clusters")?;
    let mut kept = cluster;
    kept.push(processor);
    *all = Value::Array(kept);
    Ok(())
}

/// Afterimage's cluster, and those that the routes name, all of them imgproxy's.
fn clusters(envoy: &Value, manager: &Value, imgproxy: &Value) -> Result<(Value, Vec<Value>)> {
    let filters = manager["httpFilters"].as_array().context("filters")?;
    let filter = filters
        .iter()
        .find(|filter| !filter["typedConfig"]["grpcService"].is_null())
        .context("the external processor")?;
    let name = &filter["typedConfig"]["grpcService"]["envoyGrpc"]["clusterName"];
    let mut processor = named(&envoy["clusters"], "name", name)?.clone();
    let fields = processor.as_object_mut().context("fields")?;
    if fields.remove("edsClusterConfig").is_some() {
        let endpoints = named(&envoy["endpoints"], "clusterName", name)?.clone();
        fields.insert("type".to_owned(), json!("STATIC"));
        fields.insert("loadAssignment".to_owned(), without_type(endpoints));
    }
    let pipe = "/loadAssignment/endpoints/0/lbEndpoints/0/endpoint/address/pipe/path";
    settings::replace(&mut processor, pipe, SOCKET, TEST_SOCKET)?;

    let mut upstreams = Vec::new();
    for route in manager["routeConfig"]["virtualHosts"][0]["routes"]
        .as_array()
        .context("routes")?
    {
        let mut upstream = imgproxy.clone();
        upstream["name"] = route["route"]["cluster"].clone();
        if !upstreams.contains(&upstream) {
            upstreams.push(upstream);
        }
    }
    Ok((without_type(processor), upstreams))
}

/// A message out of a dump, where it says its type.
fn without_type(mut message: Value) -> Value {
    if let Some(fields) = message.as_object_mut() {
        fields.remove("@type");
    }
    message
}

fn named<'v>(list: &'v Value, field: &str, name: &Value) -> Result<&'v Value> {
    list.as_array()
        .and_then(|list| list.iter().find(|one| one[field] == *name))
        .with_context(|| format!("nothing is called {name}"))
}

/// The pod's own bootstrap: it listens on loopback, on free ports.
fn run_as_it_is(bootstrap: &mut Bootstrap, envoy: Value, imgproxy: Value) -> Result<()> {
    *bootstrap.whole() = envoy;
    *bootstrap.cluster("imgproxy")? = imgproxy;
    let pipe = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/pipe/path";
    settings::replace(bootstrap.cluster("afterimage")?, pipe, SOCKET, TEST_SOCKET)?;
    for (listener, port, free) in [(0, 10000, 10000), (1, 9902, 0)] {
        let address = format!("/static_resources/listeners/{listener}/address/socket_address");
        settings::replace(
            bootstrap.whole(),
            &format!("{address}/address"),
            "0.0.0.0",
            "127.0.0.1",
        )?;
        settings::replace(
            bootstrap.whole(),
            &format!("{address}/port_value"),
            port,
            free,
        )?;
    }
    Ok(())
}

/// A miss and a hit on two routes, with their own policies, and an image that passes by on a third.
async fn caches_route_by_route(mesh: &Mesh) -> Result<()> {
    let stack = mesh.start().await?;
    let own = stack.imgproxy_client()?;
    let mut commits = 0;
    for (prefix, policy) in [("", "images"), ("/thumbs", "thumbs")] {
        for image in [SMALL, LARGE] {
            let path = mesh.path(image)?;
            let expected = own.get(&path).await?;
            assert_eq!(expected.status, 200, "{path}");
            assert_eq!(expected.body.len() > MIB, image == LARGE);
            let path = format!("{prefix}{path}");
            let miss = mesh.get(&stack, &path).await?;
            assert_eq!(
                miss.cache_status(),
                "afterimage; fwd=miss; stored",
                "{path}"
            );
            assert!(miss.body == expected.body, "{path}");
            commits += 1;
            stack.commits_reach(commits).await?;
            let hit = mesh.get(&stack, &path).await?;
            assert!(hit.is_hit(), "{path}: {}", hit.cache_status());
            assert!(hit.body == expected.body && hit.cut.is_none(), "{path}");
        }
        let of_policy = [("policy", policy)];
        stack
            .metric_reaches("afterimage_requests_total", &of_policy, 4)
            .await?;
    }
    let path = mesh.path(SMALL)?;
    let expected = own.get(&path).await?;
    for _ in 0..2 {
        let answer = mesh.get(&stack, &format!("/uncached{path}")).await?;
        assert_eq!((answer.status, answer.cache_status()), (200, ""));
        assert_eq!(answer.body, expected.body);
    }
    stack.commits_reach(commits).await?;
    let asked = if mesh.asks_everywhere { 10.0 } else { 8.0 };
    assert_eq!(streams(&stack).await?, asked);
    is_valid(&stack)?;
    has_outcomes_in_its_log(mesh, &stack).await
}

/// How often Envoy has asked Afterimage.
async fn streams(stack: &Stack) -> Result<f64> {
    let metrics = stack.envoy_metrics().await?;
    let name = metrics
        .names()
        .find(|name| name.contains("ext_proc") && name.ends_with("streams_started"))
        .context("Envoy counts streams")?;
    Ok(metrics.sum(name, &[]))
}

/// Envoy takes the configuration that the test ran.
fn is_valid(stack: &Stack) -> Result<()> {
    let output = Command::new(tools::path("envoy")?)
        .args(["--mode", "validate", "-c", "envoy.json"])
        .current_dir(stack.dir())
        .output()?;
    succeeded(&output)
}

/// Where the files say how the access log looks, it has Afterimage's word for a request.
async fn has_outcomes_in_its_log(mesh: &Mesh, stack: &Stack) -> Result<()> {
    if !mesh
        .envoy
        .to_string()
        .contains("DYNAMIC_METADATA(afterimage:outcome)")
    {
        return Ok(());
    }
    let patience = std::time::Duration::from_secs(5);
    wait::until("both outcomes in the access log", patience, async || {
        let log = stack.envoy.access_log();
        ["outcome=miss ", "outcome=hit "]
            .iter()
            .all(|outcome| log.iter().any(|line| line.contains(outcome)))
    })
    .await
}

fn succeeded(output: &Output) -> Result<()> {
    ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[tokio::test]
async fn an_istio_sidecar_caches_route_by_route() -> Result<()> {
    caches_route_by_route(&Mesh::istio_sidecar()?).await
}

#[tokio::test]
async fn an_istio_gateway_caches_route_by_route() -> Result<()> {
    caches_route_by_route(&Mesh::istio_gateway()?).await
}

#[tokio::test]
async fn envoy_gateway_caches_route_by_route() -> Result<()> {
    caches_route_by_route(&Mesh::envoy_gateway()?).await
}

#[tokio::test]
async fn a_kubernetes_pod_caches_route_by_route() -> Result<()> {
    caches_route_by_route(&Mesh::kubernetes()?).await
}

#[tokio::test]
async fn the_pod_s_operations_listener_has_two_pages_of_the_admin_interface() -> Result<()> {
    let stack = Mesh::kubernetes()?.start().await?;
    let listeners = format!("{}/listeners?format=json", stack.envoy.admin_url());
    let listeners = settings::parse(&reqwest::get(listeners).await?.text().await?)?;
    let listener = named(
        &listeners["listener_statuses"],
        "name",
        &json!("operations"),
    )?;
    let port = &listener["local_address"]["socket_address"]["port_value"];
    for (page, status, says) in [
        ("ready", 200, "LIVE"),
        (
            "stats/prometheus",
            200,
            "envoy_http_ext_proc_streams_started",
        ),
        ("config_dump", 404, ""),
        ("quitquitquit", 404, ""),
    ] {
        let answer = reqwest::get(format!("http://127.0.0.1:{port}/{page}")).await?;
        assert_eq!(answer.status(), status, "{page}");
        assert!(answer.text().await?.contains(says), "{page}");
    }
    Ok(())
}

#[test]
fn afterimage_s_and_envoy_s_side_of_each_fit_together() -> Result<()> {
    for mesh in [
        Mesh::istio_sidecar()?,
        Mesh::istio_gateway()?,
        Mesh::envoy_gateway()?,
        Mesh::kubernetes()?,
    ] {
        let dir = tempfile::tempdir()?;
        settings::write(&mesh.config, &dir.path().join("afterimage.yaml"))?;
        settings::write(&mesh.envoy, &dir.path().join("envoy.yaml"))?;
        let output = Command::new(binary()?)
            .args([
                "check",
                "--config",
                "afterimage.yaml",
                "--envoy",
                "envoy.yaml",
            ])
            .envs(CREDENTIALS)
            .envs(signing())
            .current_dir(dir.path())
            .output()?;
        succeeded(&output)?;
    }
    Ok(())
}

#[test]
fn what_is_translated_is_what_the_files_say() -> Result<()> {
    for (dir, translated, sources) in [
        (
            "gateway",
            "translated.yaml",
            &["platform.yaml", "routes.yaml"][..],
        ),
        ("istio", "translated-sidecar.yaml", &["sidecar.yaml"]),
        (
            "istio",
            "translated-gateway.yaml",
            &["gateway.yaml", "gateway-routes.yaml", "sidecar.yaml"],
        ),
        (
            "gateway",
            "../../tests/manifests/protected/translated-gateway.yaml",
            &[
                "platform.yaml",
                "routes.yaml",
                "../../tests/manifests/protected/gateway.yaml",
            ],
        ),
        (
            "istio",
            "../../tests/manifests/protected/translated-istio-sidecar.yaml",
            &[
                "sidecar.yaml",
                "../../tests/manifests/protected/istio-sidecar.yaml",
            ],
        ),
        (
            "istio",
            "../../tests/manifests/protected/translated-istio-gateway.yaml",
            &[
                "gateway.yaml",
                "gateway-routes.yaml",
                "sidecar.yaml",
                "../../tests/manifests/protected/istio-gateway.yaml",
            ],
        ),
    ] {
        let dir = tools::project().join("envoy").join(dir);
        let mut text = String::new();
        for source in sources {
            let source = std::fs::read_to_string(dir.join(source))?;
            let kept = source.lines().filter(|line| {
                let line = line.trim_start();
                !line.is_empty() && !line.starts_with('#')
            });
            for line in kept {
                writeln!(text, "{line}")?;
            }
        }
        let sum = HEXLOWER.encode(&Sha256::digest(text.as_bytes()));
        let made = std::fs::read_to_string(dir.join(translated))?;
        assert!(
            made.contains(&format!("# sources: {sum}\n")),
            "{translated} was made of other files; run: make translated"
        );
    }
    Ok(())
}

/// A hit ends where Afterimage's filter is: what comes after it, a hit passes by.
#[test]
fn whatever_decides_about_a_request_comes_before_afterimage() -> Result<()> {
    for (translated, also) in [
        (
            "gateway",
            &["cors", "local_ratelimit", "compressor.gzip"][..],
        ),
        ("istio-sidecar", &["cors", "fault"]),
        ("istio-gateway", &["cors", "fault"]),
    ] {
        let file = format!("tests/manifests/protected/translated-{translated}.yaml");
        let envoy = settings::read(&tools::project().join(file))?;
        let mut chains = Vec::new();
        filter_names(&envoy, &mut chains);
        assert!(!chains.is_empty(), "{translated}");
        for names in chains {
            let before = names.iter().position(|name| name.starts_with("ext_proc"));
            let before = &names[..before.context("the external processor")?];
            for needed in ["jwt_authn", "rbac"].iter().chain(also) {
                assert!(before.contains(needed), "{translated}: {names:?}");
            }
            assert_eq!(names[before.len() + 1..], ["router"], "{translated}");
        }
    }
    Ok(())
}

/// What comes after `envoy.filters.http.` in the names of each chain's filters.
fn filter_names<'v>(value: &'v Value, found: &mut Vec<Vec<&'v str>>) {
    match value {
        Value::Object(fields) => {
            if let Some(filters) = fields.get("httpFilters").and_then(Value::as_array) {
                let names = filters.iter().filter_map(|filter| filter["name"].as_str());
                let names = names.map(|name| name.trim_start_matches("envoy.filters.http."));
                found.push(names.collect());
            }
            fields.values().for_each(|inner| filter_names(inner, found));
        }
        Value::Array(items) => items.iter().for_each(|inner| filter_names(inner, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A pod with a proxy and Afterimage in it.
struct Pod {
    file: &'static str,
    /// As its file has it.
    written: Value,
    /// As it runs: Istio and Envoy Gateway put their proxy into it.
    running: Value,
    proxy: &'static str,
}

fn pods() -> Result<Vec<Pod>> {
    let envoy = tools::project().join("envoy");
    let deployed = |file: &'static str| -> Result<Value> {
        let resources = resources(&envoy.join(file))?;
        Ok(of_kind(&resources, "Deployment")?["spec"]["template"]["spec"].clone())
    };
    let translated =
        |file| Ok::<_, anyhow::Error>(settings::read(&envoy.join(file))?["pod"].clone());
    Ok(vec![
        Pod {
            file: "istio/sidecar.yaml",
            written: deployed("istio/sidecar.yaml")?,
            running: translated("istio/translated-sidecar.yaml")?,
            proxy: "istio-proxy",
        },
        Pod {
            file: "istio/gateway.yaml",
            written: deployed("istio/gateway.yaml")?,
            running: translated("istio/translated-gateway.yaml")?,
            proxy: "istio-proxy",
        },
        Pod {
            file: "gateway/platform.yaml",
            written: translated("gateway/translated.yaml")?,
            running: translated("gateway/translated.yaml")?,
            proxy: "envoy",
        },
        Pod {
            file: "kubernetes/images.yaml",
            written: deployed("kubernetes/images.yaml")?,
            running: deployed("kubernetes/images.yaml")?,
            proxy: "envoy",
        },
    ])
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = [&pod["initContainers"], &pod["containers"]];
    lists.into_iter().filter_map(Value::as_array).flatten()
}

fn container<'v>(pod: &'v Value, name: &str) -> Result<&'v Value> {
    let found = containers(pod).find(|container| container["name"] == name);
    found.with_context(|| format!("no container {name}"))
}

#[test]
fn proxy_and_afterimage_share_the_socket_s_directory_and_may_both_use_it() -> Result<()> {
    let directory = Path::new(SOCKET).parent().context("a directory")?;
    let directory = json!(directory.to_str());
    for pod in pods()? {
        let mut volumes = Vec::new();
        for name in ["afterimage", pod.proxy] {
            let mounts = &container(&pod.running, name).context(pod.file)?["volumeMounts"];
            let mount = named(mounts, "mountPath", &directory).context(pod.file)?;
            assert!(mount["readOnly"].is_null(), "{}: {name}", pod.file);
            volumes.push(&mount["name"]);
        }
        assert_eq!(volumes[0], volumes[1], "{}", pod.file);
        let volume = named(&pod.running["volumes"], "name", volumes[0])?;
        assert_eq!(volume["emptyDir"]["medium"], "Memory", "{}", pod.file);
        // The kubelet gives the directory to this group, with the setgid bit, and all containers are in it.
        let group = &pod.running["securityContext"]["fsGroup"];
        assert_eq!(group, 65532, "{}", pod.file);
    }
    Ok(())
}

#[test]
fn no_container_of_ours_is_root_or_writes_outside_its_volumes() -> Result<()> {
    for pod in pods()? {
        for container in containers(&pod.written) {
            let name = &container["name"];
            let is_added = name == pod.proxy && pod.file != "kubernetes/images.yaml";
            let security = |field: &str| match &container["securityContext"][field] {
                Value::Null => &pod.written["securityContext"][field],
                own => own,
            };
            let of = format!("{}: {name}", pod.file);
            assert_eq!(security("runAsNonRoot"), true, "{of}");
            assert_eq!(security("allowPrivilegeEscalation"), false, "{of}");
            assert_eq!(security("seccompProfile")["type"], "RuntimeDefault", "{of}");
            assert_eq!(security("capabilities")["drop"], json!(["ALL"]), "{of}");
            // Of its own proxy the mesh decides that.
            if !is_added {
                assert_eq!(security("readOnlyRootFilesystem"), true, "{of}");
                assert!(
                    container["resources"]["limits"]["memory"].is_string(),
                    "{of}"
                );
                assert!(
                    container["livenessProbe"].is_object() || name == "imgproxy",
                    "{of}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn afterimage_gets_every_secret_that_its_configuration_names() -> Result<()> {
    for pod in pods()? {
        let file = tools::project().join("envoy").join(pod.file);
        let config = config_of(&file, "afterimage.yaml")?;
        let env = &container(&pod.written, "afterimage")?["env"];
        let mut secret_names = Vec::new();
        secrets(&config, &mut secret_names);
        assert!(secret_names.len() >= 2, "{}", pod.file);
        for name in secret_names {
            let variable = named(env, "name", &json!(name)).context(pod.file)?;
            let secret = &variable["valueFrom"]["secretKeyRef"];
            assert!(secret["name"].is_string(), "{variable}");
            assert!(secret["key"].is_string(), "{variable}");
        }
    }
    Ok(())
}

/// The names in every `{env: NAME}`.
fn secrets<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("env").and_then(Value::as_str));
            fields.values().for_each(|inner| secrets(inner, found));
        }
        Value::Array(items) => items.iter().for_each(|inner| secrets(inner, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
