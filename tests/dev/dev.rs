//! `make up` and `make down`: the development stack as native processes on fixed ports.
//!
//! Each part is a daemon of its own session with its output in `run/NAME.log` and its identity in `run/NAME.pid`. `up` keeps
//! what runs with the same program, settings and configuration, and starts the rest; when it fails, it stops what it started.

mod daemon;
mod demo;
mod geo;
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};

use daemon::{Component, Daemon, Health};
use support::ports::loopback;
use support::{afterimage, envoy, garage, imgproxy, ports, tools};

const HEALTHY_WITHIN: Duration = Duration::from_secs(60);
/// What runs already had its time to start.
const STILL_HEALTHY_WITHIN: Duration = Duration::from_secs(3);

#[derive(Parser)]
#[command(name = "dev", about = "Runs the development stack")]
enum Arguments {
    /// Starts the stack, or brings a running one up to date, and shows a miss and a hit.
    Up {
        /// Where Afterimage keeps its entries.
        #[arg(long, value_enum, default_value_t = Store::Local)]
        store: Store,
    },
    /// Stops the stack.
    Down,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Store {
    /// A directory, run/store.
    Local,
    /// A Garage of its own, data in run/garage.
    Garage,
    /// Three zones with a Garage in each, data in run/zone-a, run/zone-b and run/zone-c.
    GarageGeo,
}

/// All parts there are, in the order in which they are started.
const PARTS: [&str; 13] = [
    "garage",
    "garage-a",
    "garage-b",
    "garage-c",
    "imgproxy",
    "afterimage",
    "afterimage-a",
    "afterimage-b",
    "afterimage-c",
    "envoy",
    "envoy-a",
    "envoy-b",
    "envoy-c",
];

const BASE_URL: &str = "http://127.0.0.1:10000";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let done = match Arguments::parse() {
        Arguments::Up { store } => up(store).await,
        Arguments::Down => down().await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dev: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn up(store: Store) -> Result<()> {
    let run = run_directory()?;
    let _alone = daemon::lock(&run)?;
    let program = imgproxy::Program::find()?;
    let components = match store {
        Store::Local | Store::Garage => components(store, &program)?,
        Store::GarageGeo => geo::components(&run, &program)?,
    };
    for unwanted in PARTS.iter().filter(|name| !has(&components, name)) {
        Daemon::stop(&run, unwanted).await?;
    }
    start(&run, &components).await?;
    let mut again = vec![BASE_URL.to_owned()];
    let mut source = "local:///coffee.png";
    match store {
        Store::Local => {}
        Store::Garage => garage::install_lifecycle(3903).await?,
        Store::GarageGeo => {
            geo::form(&run, &program).await?;
            println!();
            geo::print(&run);
            again = geo::base_urls(&run);
            if program.is_real() {
                source = "s3://originals/coffee.png";
            }
        }
    }
    println!();
    demo::show(BASE_URL, &again, source).await?;
    println!("Output is in run/*.log; `make down` ends the stack.");
    Ok(())
}

async fn down() -> Result<()> {
    let run = run_directory()?;
    let _alone = daemon::lock(&run)?;
    let mut any = false;
    for name in PARTS.iter().rev() {
        if Daemon::stop(&run, name).await? {
            println!("{name:<12}  stopped");
            any = true;
        }
    }
    if !any {
        println!("nothing is running");
    }
    Ok(())
}

/// Brings every component to life in turn, or none that was not alive before.
async fn start(run: &Path, components: &[Component]) -> Result<()> {
    let mut stale = Vec::new();
    for component in components {
        let found = Daemon::find(run, component.name())?;
        let keeps = found.as_ref().is_some_and(|daemon| daemon.runs(component))
            && component.is_healthy_within(STILL_HEALTHY_WITHIN).await;
        if keeps {
            println!("{:<12}  kept       {}", component.name(), component.shown);
        } else {
            if found.is_none() {
                require_ports(component)?;
            }
            stale.push(component);
        }
    }
    for component in stale.iter().rev() {
        Daemon::stop(run, component.name()).await?;
    }
    for component in &stale {
        require_ports(component)?;
    }
    for (index, component) in stale.iter().enumerate() {
        if let Err(error) = start_one(run, component).await {
            for started in stale[..=index].iter().rev() {
                Daemon::stop(run, started.name()).await?;
            }
            return Err(error);
        }
        println!("{:<12}  started    {}", component.name(), component.shown);
    }
    Ok(())
}

async fn start_one(run: &Path, component: &Component) -> Result<()> {
    let daemon = Daemon::start(run, component)?;
    let log = daemon::log(run, component.name());
    let healthy = support::wait::until("it to be healthy", HEALTHY_WITHIN, async || {
        !daemon.is_alive() || component.is_healthy().await
    })
    .await;
    let output = || {
        let text = std::fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        format!(
            "{} did not start; the end of {}:\n{}",
            component.name(),
            log.display(),
            support::process::tail(&text)
        )
    };
    healthy.with_context(output)?;
    ensure!(daemon.is_alive(), "{}", output());
    Ok(())
}

fn require_ports(component: &Component) -> Result<()> {
    let taken = component.ports.iter().find(|port| !ports::is_free(**port));
    if let Some(port) = taken {
        bail!(
            "port {port} is needed for {} and in use by another program; find it with: ss -ltnp 'sport = :{port}'",
            component.name()
        );
    }
    Ok(())
}

fn has(components: &[Component], name: &str) -> bool {
    components.iter().any(|component| component.name() == name)
}

/// The parts of the stack with this store, in the order in which they are started.
fn components(store: Store, program: &imgproxy::Program) -> Result<Vec<Component>> {
    let project = tools::project();
    let mut components = Vec::new();

    if store == Store::Garage {
        let config = garage::reference();
        components.push(Component {
            launch: garage::launch(project, &config)?,
            config: Some(config),
            ports: vec![3900, 3901, 3903],
            health: Health::Ok("http://127.0.0.1:3903/health".into()),
            shown: "S3 on http://127.0.0.1:3900".into(),
        });
    }

    components.push(imgproxy(program));

    let config = project.join("envoy/afterimage.yaml");
    let launch = afterimage::launch(&afterimage::binary()?, project, &config);
    components.push(Component {
        launch: if store == Store::Local {
            launch
        } else {
            afterimage::s3_overrides(launch)
        },
        config: Some(config),
        ports: vec![9911],
        health: Health::Ok("http://127.0.0.1:9911/readyz".into()),
        shown: if store == Store::Local {
            "http://127.0.0.1:9911/metrics (store: run/store)".into()
        } else {
            "http://127.0.0.1:9911/metrics (store: Garage)".into()
        },
    });

    let config = project.join("envoy/envoy.yaml");
    components.push(Component {
        launch: envoy::launch(project, &config)?,
        config: Some(config),
        ports: vec![10000, 9901],
        health: Health::Ok("http://127.0.0.1:9901/ready".into()),
        shown: "http://127.0.0.1:10000 (admin: http://127.0.0.1:9901)".into(),
    });
    Ok(components)
}

fn imgproxy(program: &imgproxy::Program) -> Component {
    Component {
        launch: program
            .launch(tools::project(), loopback(8080))
            .env("IMGPROXY_AUTO_WEBP", "true")
            .env("IMGPROXY_AUTO_AVIF", "true"),
        config: None,
        ports: vec![8080],
        health: Health::Ok("http://127.0.0.1:8080/health".into()),
        shown: format!("http://127.0.0.1:8080 ({program})"),
    }
}

fn run_directory() -> Result<PathBuf> {
    let run = tools::project().join("run");
    std::fs::create_dir_all(&run).with_context(|| format!("cannot create {}", run.display()))?;
    Ok(run)
}
