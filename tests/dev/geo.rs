//! The stack in three zones: a Garage, an Afterimage and an Envoy in each, and one imgproxy for all of them.
//!
//! Each zone has a directory, `run/zone-NAME`, in which its parts run, as if it were the project's own.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::daemon::{Component, Health};
use super::support::envoy::Bootstrap;
use super::support::ports::loopback;
use super::support::zones::{self, Node, ZONES};
use super::support::{afterimage, envoy, garage, imgproxy, tools};

/// What the parts of a zone are called; zone a is where the other stacks are.
const NAMES: [[&str; 3]; 3] = [
    ["garage-a", "afterimage-a", "envoy-a"],
    ["garage-b", "afterimage-b", "envoy-b"],
    ["garage-c", "afterimage-c", "envoy-c"],
];

struct Zone {
    names: [&'static str; 3],
    dir: PathBuf,
    node: Node,
    public: u16,
    envoy_admin: u16,
    afterimage_admin: u16,
}

/// The parts of the stack, in the order in which they are started.
///
/// # Errors
/// When something is not installed, or a file of a zone cannot be written.
pub(crate) fn components(run: &Path, program: &imgproxy::Program) -> Result<Vec<Component>> {
    let zones = zones(run);
    let mut components = Vec::new();
    for zone in &zones {
        components.push(zone.garage()?);
    }
    components.push(imgproxy(program, zones[0].node));
    for zone in &zones {
        components.push(zone.afterimage()?);
        components.push(zone.envoy()?);
    }
    Ok(components)
}

/// Makes one store of the running nodes; an imgproxy that can read them gets its sources there, too.
///
/// # Errors
/// As [`zones::form`].
pub(crate) async fn form(run: &Path, program: &imgproxy::Program) -> Result<()> {
    let nodes: Vec<_> = zones(run).iter().map(|zone| zone.node).collect();
    zones::form(&nodes).await?;
    if program.is_real() {
        zones::put_originals(nodes[0]).await?;
    }
    Ok(())
}

/// Where clients of each zone go.
pub(crate) fn base_urls(run: &Path) -> Vec<String> {
    zones(run).iter().map(Zone::base_url).collect()
}

/// Prints where everything is.
pub(crate) fn print(run: &Path) {
    println!(
        "{:<6}{:<24}{:<32}Garage (S3)",
        "zone", "Envoy", "Afterimage"
    );
    for (zone, name) in zones(run).iter().zip(ZONES) {
        let metrics = format!("http://127.0.0.1:{}/metrics", zone.afterimage_admin);
        let (base, s3) = (zone.base_url(), zone.node.endpoint());
        println!("{name:<6}{base:<24}{metrics:<32}{s3}");
    }
}

fn zones(run: &Path) -> Vec<Zone> {
    let zone = |index: u16| Zone {
        names: NAMES[usize::from(index)],
        dir: run.join(format!("zone-{}", ZONES[usize::from(index)])),
        node: Node {
            s3: 3900 + 10 * index,
            rpc: 3901 + 10 * index,
            admin: 3903 + 10 * index,
        },
        public: 10000 + index,
        envoy_admin: 9901 + index,
        afterimage_admin: 9911 + index,
    };
    (0..3).map(zone).collect()
}

/// One imgproxy, which reads sources at zone a's Garage, or beside it where it cannot.
fn imgproxy(program: &imgproxy::Program, node: Node) -> Component {
    let component = super::imgproxy(program);
    if !program.is_real() {
        return component;
    }
    let launch = zones::imgproxy_variables(node)
        .into_iter()
        .fold(component.launch, |launch, (name, value)| {
            launch.env(name, value)
        });
    Component {
        launch,
        ..component
    }
}

impl Zone {
    fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.public)
    }

    fn garage(&self) -> Result<Component> {
        let config = self.file("garage.toml")?;
        std::fs::write(&config, self.node.config()?)?;
        let Node { s3, rpc, admin } = self.node;
        Ok(Component {
            launch: garage::launch_in_zone(&self.dir, &config)?.called(self.names[0]),
            config: Some(config),
            ports: vec![s3, rpc, admin],
            // It is not healthy before it knows the others.
            health: Health::Answers(format!("http://127.0.0.1:{admin}/health")),
            shown: format!("S3 on {}", self.node.endpoint()),
        })
    }

    fn afterimage(&self) -> Result<Component> {
        let admin = self.afterimage_admin;
        let config = tools::project().join("envoy/afterimage.yaml");
        let launch = afterimage::launch(&afterimage::binary()?, &self.dir, &config);
        Ok(Component {
            launch: afterimage::s3_overrides(launch)
                .called(self.names[1])
                .env("AFTERIMAGE_STORE__S3__ENDPOINT", self.node.endpoint())
                .env("AFTERIMAGE_ADMIN__LISTEN", loopback(admin).to_string()),
            config: Some(config),
            ports: vec![admin],
            health: Health::Ok(format!("http://127.0.0.1:{admin}/readyz")),
            shown: format!("http://127.0.0.1:{admin}/metrics"),
        })
    }

    fn envoy(&self) -> Result<Component> {
        let config = self.file("envoy.json")?;
        let admin = self.envoy_admin;
        let mut bootstrap = Bootstrap::reference()?;
        bootstrap.listen_on(self.public, admin)?;
        bootstrap.write(&config)?;
        Ok(Component {
            launch: envoy::launch(&self.dir, &config)?.called(self.names[2]),
            config: Some(config),
            ports: vec![self.public, admin],
            health: Health::Ok(format!("http://127.0.0.1:{admin}/ready")),
            shown: format!("{} (admin: http://127.0.0.1:{admin})", self.base_url()),
        })
    }

    /// The path of a file of the zone's; the directories that its parts need exist then.
    fn file(&self, name: &str) -> Result<PathBuf> {
        let run = self.dir.join("run");
        std::fs::create_dir_all(&run)
            .with_context(|| format!("cannot create {}", run.display()))?;
        Ok(self.dir.join(name))
    }
}
