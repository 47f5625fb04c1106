//! `afterimage` as a process: what it needs to start, and how it says what is missing.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use tempfile::TempDir;

use crate::scripted::{KIB, STORED, commits_reach, generic, png};
use crate::support::afterimage::{CREDENTIALS, binary};
use crate::support::imgproxy::is_healthy;
use crate::support::launch::Launch;
use crate::support::origin::{Gate, Origin, Script};
use crate::support::ports::Port;
use crate::support::process::Process;
use crate::support::stack::Store;
use crate::support::{settings, tools, wait};

const PATIENCE: Duration = Duration::from_secs(30);

/// A directory in which Afterimage can be started.
struct Place {
    dir: TempDir,
    admin: Port,
}

/// How a run ended.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ai-").tempdir()?;
        std::fs::create_dir(dir.path().join("run"))?;
        Ok(Self {
            dir,
            admin: Port::free()?,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the reference configuration with these settings over it.
    fn configure(&self, yaml: &str) -> Result<()> {
        let mut config = settings::read(&tools::project().join("envoy/afterimage.yaml"))?;
        config["admin"]["listen"] = json!(self.admin.address());
        settings::merge(&mut config, settings::parse(yaml)?);
        settings::write(&config, &self.path("config.yaml"))
    }

    fn start(&self, args: &[&str], without: Option<&str>) -> Result<Process> {
        let launch = Launch::new("afterimage", binary()?, self.dir.path(), "AFTERIMAGE_");
        let launch = CREDENTIALS
            .iter()
            .filter(|(name, _)| Some(*name) != without)
            .fold(launch, |launch, (name, value)| launch.env(*name, *value));
        let launch = launch.args(args.iter().copied());
        Process::start(launch, self.dir.path())
    }

    /// Runs it until it ends by itself.
    async fn run(&self, args: &[&str]) -> Result<Ended> {
        self.run_without(args, None).await
    }

    async fn run_without(&self, args: &[&str], without: Option<&str>) -> Result<Ended> {
        for log in ["afterimage.out", "afterimage.err"] {
            drop(std::fs::remove_file(self.path(log)));
        }
        let mut process = self.start(args, without)?;
        let mut status = None;
        let ended = wait::until("its end", PATIENCE, async || {
            status = process.exited().ok().flatten();
            status.is_some()
        });
        ended.await.with_context(|| process.last_output())?;
        Ok(Ended {
            status: status.context("waited for it")?,
            stdout: process.stdout(),
            stderr: process.stderr(),
        })
    }
}

impl Ended {
    /// It found an instance that does not serve, and said so in one line.
    fn assert_not_ready(&self, says: &[&str]) {
        assert_eq!(self.status.code(), Some(1), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert!(self.stderr.starts_with("afterimage: "), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "{}", self.stderr);
        for what in says {
            assert!(self.stderr.contains(what), "no {what:?} in {}", self.stderr);
        }
    }

    /// It refused to start with exit code 2, and said why in so many lines and nothing more.
    fn assert_refused(&self, lines: usize, says: &[&str]) {
        assert_eq!(self.status.code(), Some(2), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert!(self.stderr.starts_with("afterimage: "), "{self:?}");
        assert_eq!(self.stderr.lines().count(), lines, "{}", self.stderr);
        for what in says {
            assert!(self.stderr.contains(what), "no {what:?} in {}", self.stderr);
        }
    }
}

const SERVE: [&str; 3] = ["serve", "--config", "config.yaml"];
const CHECK: [&str; 3] = ["check", "--config", "config.yaml"];

#[tokio::test]
async fn a_good_configuration_is_ok() -> Result<()> {
    let place = Place::new()?;
    place.configure("{}")?;
    let ended = place.run(&CHECK).await?;
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.stdout, "config.yaml: ok\n");
    assert_eq!(ended.stderr, "");
    Ok(())
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() -> Result<()> {
    let place = Place::new()?;
    for command in ["serve", "check"] {
        let missing = place.run(&[command, "--config", "no.yaml"]).await?;
        missing.assert_refused(1, &["no.yaml: file: cannot be read", "--config"]);
        let directory = place.run(&[command, "--config", "run"]).await?;
        directory.assert_refused(1, &["run: file: cannot be read", "--config"]);
    }
    let nothing = place.run(&["serve"]).await?;
    assert_eq!(nothing.status.code(), Some(2));
    assert!(nothing.stderr.contains("--config <FILE>"), "{nothing:?}");
    Ok(())
}

#[tokio::test]
async fn broken_yaml_is_shown_with_its_line() -> Result<()> {
    let place = Place::new()?;
    std::fs::write(
        place.path("config.yaml"),
        "listen: unix:run/a.sock\nadmin:\n  listen: [127.0.0.1\npolicies: {}\n",
    )?;
    for args in [SERVE, CHECK] {
        let ended = place.run(&args).await?;
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.starts_with("afterimage: config.yaml: file: "));
        // Where the list is still open.
        assert!(ended.stderr.contains("line 4"), "{}", ended.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn no_error_of_the_configuration_shows_a_secret() -> Result<()> {
    const SECRET: &str = "hunter2-Xyzzy";
    let place = Place::new()?;
    for yaml in [
        "store: {s3: {secret_access_key: SECRET}}\nadmin: {listen: [127.0.0.1",
        "store: {s3: {secret_access_key: SECRET}}\nstore: {}",
        "store: {s3: SECRET}",
        "policies: {p: {kind: imgproxy, signature: {pairs: SECRET}}}",
        "policies: {p: {kind: imgproxy, signature: {pairs: [{SECRET: SECRET}]}}}",
        "policies: {p: {kind: generic, upstream: {url: 'http://user:SECRET@host'}}}",
    ] {
        std::fs::write(place.path("config.yaml"), yaml.replace("SECRET", SECRET))?;
        for args in [SERVE, CHECK] {
            let ended = place.run(&args).await?;
            assert_eq!(ended.status.code(), Some(2), "{yaml}: {ended:?}");
            assert!(!ended.stderr.contains(SECRET), "{yaml}: {ended:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn all_problems_are_named_at_once() -> Result<()> {
    let place = Place::new()?;
    place.configure(
        "
listen: 0.0.0.0:9000
admin: {listen: nowhere}
limits: {lookup_timeout: 5s, budget: 1000, no_such_limit: 3}
store: {kind: s3, s3: {endpoint: 'garage:3900'}}
policies: {images: {kind: nonsense}, thumbs: {path_prefix: thumbs}}
routes: {a: nobody}
",
    )?;
    for args in [SERVE, CHECK] {
        let ended = place.run(&args).await?;
        let places = [
            "\n  listen: expected `unix:PATH`",
            "\n  admin.listen: expected `IP:PORT`",
            "\n  limits.lookup_timeout: ",
            "\n  limits.budget: ",
            "\n  limits.no_such_limit: ",
            "\n  store.s3.endpoint: expected `http://host:port`",
            "\n  policies.images.kind: ",
            "\n  policies.thumbs.path_prefix: begins with a slash",
        ];
        ended.assert_refused(places.len() + 1, &places);
        ended.assert_refused(places.len() + 1, &["config.yaml: 8 problems"]);
    }
    Ok(())
}

#[tokio::test]
async fn a_missing_secret_is_named_by_its_variable() -> Result<()> {
    let place = Place::new()?;
    place.configure("store: {kind: s3}")?;
    let (name, _) = CREDENTIALS[1];
    for args in [SERVE, CHECK] {
        let ended = place.run_without(&args, Some(name)).await?;
        ended.assert_refused(1, &["store.s3.secret_access_key: ", name, "is not set"]);
    }
    Ok(())
}

#[tokio::test]
async fn an_address_in_use_is_named() -> Result<()> {
    let place = Place::new()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?;
    for (field, yaml) in [
        ("admin.listen", format!("admin: {{listen: '{address}'}}")),
        ("listen", format!("listen: '{address}'")),
    ] {
        place.configure(&yaml)?;
        let ended = place.run(&SERVE).await?;
        let says = format!("afterimage: {field}: cannot listen on {address}: another process");
        ended.assert_refused(1, &[&says, "choose another address"]);
    }
    Ok(())
}

#[tokio::test]
async fn a_socket_of_a_living_process_is_left_alone() -> Result<()> {
    let place = Place::new()?;
    place.configure("{}")?;
    let socket = place.path("run/ext_proc.sock");
    let living = UnixListener::bind(&socket)?;
    let ended = place.run(&SERVE).await?;
    let says = "afterimage: listen: cannot listen on unix:run/ext_proc.sock: another process";
    ended.assert_refused(1, &[says, "stop it or choose another path"]);
    std::os::unix::net::UnixStream::connect(&socket)?;
    drop(living);
    Ok(())
}

#[tokio::test]
async fn a_file_in_the_place_of_the_socket_is_left_alone() -> Result<()> {
    let place = Place::new()?;
    place.configure("{}")?;
    let socket = place.path("run/ext_proc.sock");
    std::fs::write(&socket, "a letter")?;
    let ended = place.run(&SERVE).await?;
    let says =
        "afterimage: listen: cannot listen on unix:run/ext_proc.sock: something that is no socket";
    ended.assert_refused(1, &[says, "remove it or choose another path"]);
    assert_eq!(std::fs::read_to_string(&socket)?, "a letter");
    Ok(())
}

#[tokio::test]
async fn a_socket_of_a_dead_process_is_taken_over() -> Result<()> {
    let place = Place::new()?;
    place.configure("{}")?;
    let socket = place.path("run/ext_proc.sock");
    drop(UnixListener::bind(&socket)?);
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_err());
    let mut process = place.start(&SERVE, None)?;
    process
        .ready("the socket", PATIENCE, async || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        })
        .await?;
    assert!(process.stop(PATIENCE).await?.success());
    assert!(!socket.exists(), "it takes its socket with it");
    Ok(())
}

#[tokio::test]
async fn the_group_can_connect_only_where_the_directory_hands_its_group_down() -> Result<()> {
    const SETGID: u32 = 0o2755;
    for (directory, group_may) in [(0o755, false), (SETGID, true)] {
        let place = Place::new()?;
        place.configure("{}")?;
        std::fs::set_permissions(place.path("run"), Permissions::from_mode(directory))?;
        let mut process = place.start(&SERVE, None)?;
        let ready = format!("http://{}/readyz", place.admin.address());
        process
            .ready("/readyz", PATIENCE, async || is_healthy(&ready).await)
            .await?;
        let mode = place.path("run/ext_proc.sock").metadata()?.mode();
        assert_eq!(mode & 0o020 != 0, group_may, "{directory:o}: {mode:o}");
        assert_eq!(mode & 0o002, 0, "{directory:o}: {mode:o}");
    }
    Ok(())
}

#[tokio::test]
async fn a_successor_keeps_its_socket_when_its_predecessor_ends() -> Result<()> {
    let place = Place::new()?;
    place.configure("store: {local: {path: run/other}}")?;
    let origin = Origin::start().await?;
    let gate = Gate::closed();
    let body = png(50 * KIB);
    let script = Script::ok("image/png", body.clone()).wait_at(KIB, &gate);
    origin.respond("/held", script);
    origin.respond("/a", Script::ok("image/png", body.clone()));
    let mut stack = generic(&origin, Store::Local).start().await?;
    let socket = stack.socket();
    let config = settings::read(&stack.dir().join("afterimage.json"))?;
    let mut config = settings::parse(&config.to_string())?;
    settings::merge(
        &mut config,
        json!({
            "admin": {"listen": place.admin.address()},
            "listen": format!("unix:{}", socket.display()),
        }),
    );
    settings::write(&config, &place.path("config.yaml"))?;

    let client = stack.client.clone();
    let held = tokio::spawn(async move { client.get("/held").await });
    gate.reached_by(1).await?;
    let admin = stack.afterimage().admin_url();
    let (stopped, started) = tokio::join!(stack.afterimage().stop(), async {
        until_not_ready(&admin).await?;
        let mut successor = place.start(&SERVE, None)?;
        successor
            .ready("the socket", PATIENCE, async || {
                std::os::unix::net::UnixStream::connect(&socket).is_ok()
            })
            .await?;
        gate.open();
        anyhow::Ok(successor)
    });
    assert!(stopped?.success());
    let mut successor = started?;
    assert!(held.await??.body == body);
    std::os::unix::net::UnixStream::connect(&socket).context("the successor's socket")?;
    assert_eq!(stack.get("/a").await?.cache_status(), STORED);
    assert!(successor.stop(PATIENCE).await?.success());
    Ok(())
}

#[tokio::test]
async fn health_tells_a_serving_instance_from_one_that_hangs_or_is_gone() -> Result<()> {
    let place = Place::new()?;
    place.configure("{}")?;
    let admin = place.admin.address().to_string();
    let by_file = ["health", "--config", "config.yaml"];
    let by_address = ["health", "--admin", &admin];

    let mut process = place.start(&SERVE, None)?;
    let ready = format!("http://{admin}/readyz");
    process
        .ready("/readyz", PATIENCE, async || is_healthy(&ready).await)
        .await?;
    for args in [by_file, by_address] {
        let ended = place.run(&args).await?;
        assert!(ended.status.success(), "{ended:?}");
        assert_eq!(
            (ended.stdout.as_str(), ended.stderr.as_str()),
            ("ready\n", "")
        );
    }
    process.freeze().await?;
    let ended = place.run(&by_address).await?;
    ended.assert_not_ready(&[&admin, "does not answer within 2s", "restart it"]);
    process.thaw()?;
    assert!(process.stop(PATIENCE).await?.success());
    for args in [by_file, by_address] {
        let ended = place.run(&args).await?;
        ended.assert_not_ready(&[&admin, "nobody listens", "start afterimage"]);
    }
    Ok(())
}

#[tokio::test]
async fn health_tells_an_instance_that_drains_and_a_stranger() -> Result<()> {
    let place = Place::new()?;
    let origin = Origin::start().await?;
    let gate = Gate::closed();
    let script = Script::ok("image/png", png(50 * KIB)).wait_at(KIB, &gate);
    origin.respond("/held", script);
    let mut stack = generic(&origin, Store::Local).start().await?;
    let client = stack.client.clone();
    let held = tokio::spawn(async move { client.get("/held").await });
    gate.reached_by(1).await?;
    let url = stack.afterimage().admin_url();
    let admin = url
        .strip_prefix("http://")
        .context("an address")?
        .to_owned();
    let (stopped, asked) = tokio::join!(stack.afterimage().stop(), async {
        until_not_ready(&url).await?;
        let ended = place.run(&["health", "--admin", &admin]).await?;
        gate.open();
        anyhow::Ok(ended)
    });
    asked?.assert_not_ready(&[&admin, "is not ready", "ask again"]);
    assert!(stopped?.success());
    held.await??;

    let stranger = origin.address().to_string();
    origin.respond("/readyz", Script::status(404));
    let ended = place.run(&["health", "--admin", &stranger]).await?;
    ended.assert_not_ready(&[&stranger, "answers 404", "--admin or --config"]);
    Ok(())
}

#[tokio::test]
async fn health_with_a_wrong_configuration_says_so() -> Result<()> {
    let place = Place::new()?;
    let ended = place.run(&["health", "--config", "no.yaml"]).await?;
    ended.assert_refused(1, &["no.yaml: file: cannot be read"]);
    Ok(())
}

/// Waits until the admin pages say that no new requests should come.
async fn until_not_ready(admin: &str) -> Result<()> {
    let ready = format!("{admin}/readyz");
    wait::until("/readyz to turn", PATIENCE, async || {
        let answer = reqwest::get(&ready).await;
        answer.is_ok_and(|answer| answer.status() == 503)
    })
    .await
}

#[tokio::test]
async fn a_store_that_cannot_be_used_is_named() -> Result<()> {
    let place = Place::new()?;
    std::fs::write(place.path("file"), "a letter")?;
    for path in ["file", "file/below"] {
        place.configure(&format!("store: {{local: {{path: {path}}}}}"))?;
        let ended = place.run(&SERVE).await?;
        let says = format!("afterimage: store.local.path: cache directory {path} cannot be used: ");
        ended.assert_refused(1, &[&says]);
    }
    assert_eq!(std::fs::read_to_string(place.path("file"))?, "a letter");
    Ok(())
}

#[tokio::test]
async fn a_store_of_another_process_is_left_alone() -> Result<()> {
    let origin = Origin::start().await?;
    let mut stack = generic(&origin, Store::Local).start().await?;
    origin.respond("/a", Script::ok("image/png", png(KIB)));
    stack.get("/a").await?;
    commits_reach(&stack, 1).await?;
    let place = Place::new()?;
    let store = stack.local_store();
    place.configure(&format!("store: {{local: {{path: {}}}}}", quoted(&store)))?;
    let ended = place.run(&SERVE).await?;
    let owner = format!("(pid {})", stack.afterimage().process.pid());
    let says = "in use by another process";
    ended.assert_refused(
        1,
        &["afterimage: store.local.path: ", says, &owner, "of its own"],
    );
    assert!(stack.get("/a").await?.is_hit());
    Ok(())
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}

#[tokio::test]
async fn envoy_may_come_over_tcp() -> Result<()> {
    let origin = Origin::start().await?;
    let port = Port::free()?;
    let address = port.address();
    let stack = generic(&origin, Store::Local)
        .settings(&format!("listen: '{address}'"))
        .adjust_envoy(move |bootstrap| {
            let endpoint = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address";
            *settings::at(bootstrap.cluster("afterimage")?, endpoint)? = json!({
                "socket_address": {"address": address.ip(), "port_value": address.port()},
            });
            Ok(())
        })
        .start()
        .await?;
    assert!(!stack.socket().exists());
    let body = png(50 * KIB);
    origin.respond("/a", Script::ok("image/png", body.clone()));
    assert_eq!(stack.get("/a").await?.cache_status(), STORED);
    commits_reach(&stack, 1).await?;
    let hit = stack.get("/a").await?;
    assert!(hit.is_hit());
    assert_eq!(hit.body, body);
    Ok(())
}
