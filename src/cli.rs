//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Remembers every image that imgproxy has made, for Envoy.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve Envoy until SIGTERM or SIGINT.
    Serve {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Say whether a configuration can be run, with all its problems.
    Check {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Envoy's configuration, to be compared with it.
        #[arg(long, value_name = "FILE")]
        envoy: Option<PathBuf>,
    },
    /// Ask a running Afterimage whether it serves: exit code 0, or 1 with what is wrong.
    Health {
        /// Its configuration file, for `admin.listen`.
        #[arg(long, value_name = "FILE", conflicts_with = "admin")]
        config: Option<PathBuf>,
        /// Its `admin.listen`.
        #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:9911")]
        admin: SocketAddr,
    },
}
