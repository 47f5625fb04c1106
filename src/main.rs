//! The `afterimage` binary: arguments, configuration, log, server, exit code.

use std::process::ExitCode;

use afterimage::cli::{Cli, Command};
use afterimage::config::Config;
use afterimage::{server, telemetry};
use anyhow::Context as _;
use clap::Parser as _;

/// For everything that the operator has to mend before a start.
const NOT_STARTED: u8 = 2;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Check { config } => Config::load(&config)
            .map(|_| println!("{}: ok", config.display()))
            .map_err(anyhow::Error::new),
        Command::Serve { config } => Config::load(&config)
            .map_err(anyhow::Error::new)
            .and_then(serve),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("afterimage: {error:#}");
            ExitCode::from(NOT_STARTED)
        }
    }
}

fn serve(config: Config) -> anyhow::Result<()> {
    telemetry::init(config.log_format, &config.log_filter).map_err(anyhow::Error::msg)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(server::run(config))?;
    Ok(())
}
