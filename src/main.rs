//! The `afterimage` binary: arguments, configuration, log, server, exit code.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use afterimage::cli::{Cli, Command};
use afterimage::config::{Config, Problems, default_threads};
use afterimage::server::{self, NotReady};
use afterimage::telemetry;
use anyhow::Context as _;
use clap::Parser as _;

/// For an instance that does not serve.
const NOT_READY: u8 = 1;

/// For everything that the operator has to mend before a start.
const NOT_STARTED: u8 = 2;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Check { config, envoy } => {
            check(&config, envoy.as_deref()).map_err(anyhow::Error::new)
        }
        Command::Serve { config } => Config::load(&config)
            .map_err(anyhow::Error::new)
            .and_then(serve),
        Command::Health { config, admin } => health(config.as_deref(), admin),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("afterimage: {error:#}");
            ExitCode::from(if error.is::<NotReady>() {
                NOT_READY
            } else {
                NOT_STARTED
            })
        }
    }
}

fn check(config: &Path, envoy: Option<&Path>) -> Result<(), Problems> {
    let loaded = Config::load(config)?;
    println!("{}: ok", config.display());
    if let Some(envoy) = envoy {
        loaded.check_envoy(envoy)?;
        println!("{}: fits", envoy.display());
    }
    Ok(())
}

fn serve(config: Config) -> anyhow::Result<()> {
    let _flush =
        telemetry::init(config.log_format, &config.log_filter).map_err(anyhow::Error::msg)?;
    let threads = config.threads.unwrap_or_else(default_threads);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.get())
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(server::run(config))?;
    Ok(())
}

fn health(config: Option<&Path>, admin: SocketAddr) -> anyhow::Result<()> {
    let admin = match config {
        Some(file) => Config::load(file)?.admin,
        None => admin,
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(server::health(admin))?;
    println!("ready");
    Ok(())
}
