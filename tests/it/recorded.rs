//! Answers of the real imgproxy that its stand-in does not give, replayed: what is stored of them, and what is not.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::fate::Fate;
use crate::support::launch::Launch;
use crate::support::ports::Port;
use crate::support::process::Process;
use crate::support::stack::Stack;
use crate::support::tools;

const SOURCE: &str = "/insecure/rs:fill:120:80/plain/http://127.0.0.1:18099/";
const PHOTO: &str = "/insecure/rs:fill:120:80/plain/local:///coffee.png";
const CEILING: u64 = 30 * 24 * 3600;

/// What is to become of a recorded answer.
enum Expected {
    /// It is stored, fresh for at most so many seconds.
    Stored(u64),
    Not(&'static str),
}

use Expected::{Not, Stored};

#[tokio::test]
async fn with_passthrough_the_sources_cache_control_counts() -> Result<()> {
    let source = |name: &str| format!("{SOURCE}{name}@webp");
    check(
        "passthrough_ttl_3600",
        vec![
            (source("plain.png"), Stored(3600)),
            (source("fresh60.png"), Stored(60)),
            (source("nostore.png"), Not("no_store")),
            (source("private.png"), Not("private")),
            (source("smaxage.png"), Stored(99)),
            (source("expires.png"), Stored(CEILING)),
            (source("cookie.png"), Stored(3600)),
            (source("vary.png"), Stored(60)),
            (format!("{PHOTO}@webp"), Stored(3600)),
            (
                format!("{PHOTO}@webp").replace("/plain", "/exp:4102444800/plain"),
                // The key has no `exp`, so it is what the line above stored.
                Stored(3600),
            ),
        ],
    )
    .await
}

#[tokio::test]
async fn a_fallback_image_is_stored_for_its_own_time_or_not_at_all() -> Result<()> {
    let source = |name: &str| format!("{SOURCE}{name}@webp");
    check(
        "fallback_ttl_60",
        vec![
            (source("404.png"), Stored(60)),
            (source("500.png"), Stored(60)),
            (source("text.png"), Stored(60)),
            (source("plain.png"), Stored(CEILING)),
            (
                "/insecure/rs:fill:120:80/plain/local:///missing.png".into(),
                Stored(60),
            ),
        ],
    )
    .await?;
    check(
        "fallback_status_as_source",
        vec![
            (source("404.png"), Not("status")),
            (source("500.png"), Not("status")),
            (source("text.png"), Not("status")),
        ],
    )
    .await
}

#[tokio::test]
async fn every_image_format_is_stored_but_svg() -> Result<()> {
    let mut expected: Vec<_> = [
        "jxl", "bmp", "ico", "avif", "webp", "jpg", "gif", "tiff", "png",
    ]
    .iter()
    .map(|format| (format!("{PHOTO}@{format}"), Stored(CEILING)))
    .filter(|(path, _)| recorded("default").is_ok_and(|recorded| recorded.contains(path)))
    .collect();
    assert!(expected.len() >= 7, "{}", expected.len());
    expected.extend([
        (format!("{SOURCE}svg.svg@png"), Stored(CEILING)),
        (format!("{SOURCE}svg.svg"), Not("content_type")),
        (format!("{PHOTO}@svg"), Not("status")),
    ]);
    check("default", expected).await
}

/// Asks for recorded answers of a configuration, twice each, and sees what became of them.
async fn check(configuration: &str, expected: Vec<(String, Expected)>) -> Result<()> {
    let origin = Replay::start(configuration).await?;
    let stack = Stack::builder()
        .upstream(origin.address())
        .policies("images: { kind: imgproxy, unsigned: true }")
        .start()
        .await?;
    let mut fills = 0;
    for (path, expected) in expected {
        let upstream = stack.get(&format!("/uncached{path}")).await?;
        assert_ne!(upstream.status, 501, "not recorded: {path}");
        match expected {
            Stored(longest) => {
                let answer = stack.get(&path).await?;
                assert_eq!(answer.body, upstream.body, "{path}");
                fills += usize::from(!answer.is_hit());
                stack.commits_reach(fills).await?;
                let hit = stack.get(&path).await?;
                assert!(hit.is_hit(), "{path}: {hit:?}");
                assert_eq!(hit.body, upstream.body, "{path}");
                for field in ["content-type", "content-disposition", "vary"] {
                    assert_eq!(hit.header(field), upstream.header(field), "{path}");
                }
                let ttl: u64 = hit
                    .cache_status()
                    .rsplit("ttl=")
                    .next()
                    .context("a ttl")?
                    .parse()?;
                assert!(ttl <= longest, "{path}: {hit:?}");
            }
            Not(reason) => Fate::Refused(reason).befalls(&stack, &path).await?,
        }
    }
    stack.commits_reach(fills).await?;
    assert_eq!(stack.stored().await?, fills);
    Ok(())
}

/// The paths that were recorded with a configuration.
fn recorded(configuration: &str) -> Result<Vec<String>> {
    let file = tools::project().join("tests/imgproxy/recorded.json");
    let recorded: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
    let configurations = recorded["configurations"].as_array().context("a list")?;
    let paths = configurations
        .iter()
        .filter(|one| one["name"] == configuration)
        .flat_map(|one| one["exchanges"].as_array().into_iter().flatten())
        .filter_map(|exchange| exchange["path"].as_str().map(str::to_owned));
    Ok(paths.collect())
}

/// The replaying origin, which needs nothing but Python.
struct Replay {
    _process: Process,
    _logs: TempDir,
    port: Port,
}

impl Replay {
    async fn start(configuration: &str) -> Result<Self> {
        let logs = tempfile::tempdir()?;
        let port = Port::free()?;
        let script = tools::project().join("tests/imgproxy/origin.py");
        let number = port.number().to_string();
        let launch = Launch::new("origin", "python3", logs.path(), "IMGPROXY").args([
            "-u",
            &script.display().to_string(),
            configuration,
            "--port",
            &number,
        ]);
        let mut process = Process::start(launch, logs.path())?;
        let address = port.address();
        process
            .ready(
                "the replaying origin",
                Duration::from_secs(30),
                async || tokio::net::TcpStream::connect(address).await.is_ok(),
            )
            .await?;
        Ok(Self {
            _process: process,
            _logs: logs,
            port,
        })
    }

    fn address(&self) -> SocketAddr {
        self.port.address()
    }
}
