//! `make conformance`: the public tests for HTTP caches, through Envoy and Afterimage.
//!
//! The tests are those of <https://github.com/http-tests/cache-tests>, of which the user has a checkout. Their client asks
//! Envoy, their server is Envoy's upstream, and Afterimage, with `policies.yaml`, is between the two. `deviations.yaml` says
//! which tests fail and why; a test that fails and is not in it is an error, and so is one that is in it and passes.

mod report;
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use report::Report;
use support::imgproxy::is_healthy;
use support::launch::Launch;
use support::ports::Port;
use support::process::Process;
use support::stack::Stack;
use support::{tools, wait};

const REPOSITORY: &str = "https://github.com/http-tests/cache-tests";
const SERVER_STARTS_WITHIN: Duration = Duration::from_secs(30);
/// A run takes about a minute, nearly all of it pauses of the tests.
const TESTS_END_WITHIN: Duration = Duration::from_secs(600);

#[derive(Parser)]
#[command(name = "conformance", about = "Runs the public tests for HTTP caches")]
struct Arguments {
    /// A checkout of cache-tests, with its packages installed.
    checkout: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(&Arguments::parse().checkout).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the tests and reports; whether what fails is what is known to fail.
async fn run(checkout: &Path) -> Result<bool> {
    let node = tools::path("node")?;
    let checkout = checked(checkout, &node)?;
    let own = tools::project().join("tests/conformance");
    let deviations = report::deviations(&own.join("deviations.yaml"))?;
    let policies = std::fs::read_to_string(own.join("policies.yaml"))?;

    let dir = tempfile::Builder::new().prefix("ai-").tempdir()?;
    let (_server, port) = start_server(&node, &checkout, dir.path()).await?;
    let stack = Stack::builder()
        .upstream(port.address())
        .policies(&policies)
        .settings(&format!(
            "policies: {{images: {{upstream: {{url: 'http://{}'}}}}}}",
            port.address()
        ))
        // The rules are tested, not a disk: what was freshened is in its place before the next request.
        .settings("store: {kind: memory}")
        .adjust_envoy(|bootstrap| {
            // Without it Envoy keeps all interim (1xx) responses to itself.
            bootstrap.connection_manager()?["proxy_100_continue"] = true.into();
            Ok(())
        });
    let stack = stack.start().await?;
    let results = dir.path().join("results.json");
    let client = Launch::new("client", &node, dir.path(), "npm_").args([
        own.join("run.mjs").display().to_string(),
        checkout.display().to_string(),
        stack.envoy.base_url(),
        results.display().to_string(),
    ]);
    to_its_end(Process::start(client, dir.path())?).await?;

    let report = Report::new(&std::fs::read(&results)?, &deviations)?;
    print!("{report}");
    let kept = tools::project().join("target/conformance.json");
    report.write(&kept)?;
    println!("\nAll results: {}", kept.display());
    Ok(report.is_as_known())
}

/// The checkout as an absolute path.
///
/// # Errors
/// When it is none, or its packages are missing, with the command that mends it.
fn checked(checkout: &Path, node: &Path) -> Result<PathBuf> {
    let shown = checkout.display();
    ensure!(
        checkout.join("test-engine/client/runner.mjs").is_file(),
        "{shown} is no checkout of cache-tests; make one with: git clone {REPOSITORY}"
    );
    let bin = node.parent().context("node is in a directory")?;
    ensure!(
        checkout.join("node_modules/undici").is_dir(),
        "the packages of {shown} are missing; install them with: (cd {shown} && PATH={}:$PATH npm install --omit=dev)",
        bin.display()
    );
    Ok(checkout.canonicalize()?)
}

/// The server of the tests, on a port of its own.
async fn start_server(node: &Path, checkout: &Path, dir: &Path) -> Result<(Process, Port)> {
    let port = Port::free()?;
    // What `npm run` would set from the command line.
    let launch = Launch::new("server", node, checkout, "npm_")
        .args(["test-engine/server/server.mjs"])
        .env("npm_config_protocol", "http")
        .env("npm_config_port", port.number().to_string())
        .env("npm_config_pidfile", dir.join("pid").display().to_string());
    let mut server = Process::start(launch, dir)?;
    let url = format!("http://{}", port.address());
    server
        .ready("the tests' server", SERVER_STARTS_WITHIN, async || {
            is_healthy(&url).await
        })
        .await?;
    Ok((server, port))
}

async fn to_its_end(mut client: Process) -> Result<()> {
    let mut ended = Ok(None);
    let waited = wait::until("the end of the tests", TESTS_END_WITHIN, async || {
        ended = client.exited();
        !matches!(ended, Ok(None))
    })
    .await;
    waited.with_context(|| client.last_output())?;
    let succeeded = ended?.is_some_and(|status| status.success());
    ensure!(
        succeeded,
        "the tests' client failed\n{}",
        client.last_output()
    );
    Ok(())
}
