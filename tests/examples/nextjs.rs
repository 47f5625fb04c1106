//! `examples/nextjs`: built, started in front of a whole stack, and looked at by Chromium (`test/page.test.ts` there).

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::support::imgproxy::is_healthy;
use crate::support::launch::Launch;
use crate::support::ports::Port;
use crate::support::process::Process;
use crate::support::stack::{Builder, Stack};
use crate::support::{tools, wait};

const BUILDS_WITHIN: Duration = Duration::from_secs(300);
const STARTS_WITHIN: Duration = Duration::from_secs(60);
const LOOKS_WITHIN: Duration = Duration::from_secs(180);

/// imgproxy's, in hex: they have to be found nowhere in the browser.
const KEY: &str = "943b421c9eb07c830af81030552c86009268de4e532ba2ee2eab8247c6da0881";
const SALT: &str = "520f986b998545b4785e0defbc4f3c1203f22de2374a3d53cb7a7fe9fea309c5";

#[tokio::test]
async fn a_browser_gets_every_photo_out_of_the_cache_and_no_key() -> Result<()> {
    let mut stack = signed().start().await?;
    let node = Node {
        program: tools::path("node")?,
        app: tools::project().join("examples/nextjs"),
        logs: stack.dir().to_owned(),
        images_url: stack.envoy.base_url(),
    };
    let npm = node.program.with_file_name("npm").display().to_string();
    let build = node.launch("build", &[&npm, "run", "build"]);
    node.run(build, BUILDS_WITHIN).await?;

    let port = Port::free()?;
    let page = format!("http://{}", port.address());
    let number = port.number().to_string();
    // Not through npm, which would leave the server behind when it is killed.
    let next = "node_modules/next/dist/bin/next";
    let start = [next, "start", "--hostname", "127.0.0.1", "--port", &number];
    let mut server = Process::start(node.launch("next", &start), &node.logs)?;
    server
        .ready("the page", STARTS_WITHIN, async || is_healthy(&page).await)
        .await?;

    let chromium = tools::path("chromium")?;
    let screenshot = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nextjs.webp");
    let browser = node
        .launch("browser", &["--test", "test/page.test.ts"])
        .env("PAGE_URL", &page)
        .env(
            "METRICS_URL",
            format!("{}/metrics", stack.afterimage().admin_url()),
        )
        .env("CHROMIUM", chromium.display().to_string())
        .env("SCREENSHOT", screenshot.display().to_string());
    node.run(browser, LOOKS_WITHIN)
        .await
        .with_context(|| server.last_output())
}

/// A stack whose imgproxy takes nothing that is not signed, and chooses the format.
fn signed() -> Builder {
    let policy = format!(
        "images: {{kind: imgproxy, formats: [avif, webp], signature: {{pairs: [{{key: '{KEY}', salt: '{SALT}'}}]}}}}"
    );
    Stack::builder()
        .policies(&policy)
        .imgproxy_env("IMGPROXY_KEY", KEY)
        .imgproxy_env("IMGPROXY_SALT", SALT)
        .imgproxy_env("IMGPROXY_AUTO_AVIF", "true")
        .imgproxy_env("IMGPROXY_AUTO_WEBP", "true")
}

/// Runs programs of the application with what it is configured by.
struct Node {
    program: PathBuf,
    app: PathBuf,
    logs: PathBuf,
    images_url: String,
}

impl Node {
    fn launch(&self, name: &'static str, args: &[&str]) -> Launch {
        // What npm runs finds `node` on the path.
        let bin = self.program.parent().into_iter().map(Path::to_owned);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(bin.chain(std::env::split_paths(&path)))
            .expect("no directory of PATH has a colon in its name");
        Launch::new(name, &self.program, &self.app, "IMGPROXY_")
            .args(args.iter().copied())
            .env("PATH", path.to_string_lossy())
            .env("NEXT_TELEMETRY_DISABLED", "1")
            .env("IMAGES_URL", &self.images_url)
            .env("IMGPROXY_KEY", KEY)
            .env("IMGPROXY_SALT", SALT)
    }

    /// Runs it to its end, which has to be a success.
    async fn run(&self, launch: Launch, within: Duration) -> Result<()> {
        let name = launch.name;
        let mut process = Process::start(launch, &self.logs)?;
        let mut status = None;
        wait::until("its end", within, async || {
            status = process.exited().ok().flatten();
            status.is_some()
        })
        .await
        .with_context(|| format!("{name}\n{}", process.last_output()))?;
        ensure!(
            status.is_some_and(|status| status.success()),
            "{name} failed\n{}",
            process.last_output()
        );
        Ok(())
    }
}
