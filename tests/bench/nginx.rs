//! nginx with `proxy_cache`, as its manual sets it up: one worker, like Envoy here, and files on disk.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;

use super::support::launch::Launch;
use super::support::ports::Port;
use super::support::process::Process;
use super::support::{tools, wait};
use super::usage::Part;

/// Where Debian has it, which need not be on a user's `PATH`.
const DEBIANS: &str = "/usr/sbin/nginx";
/// What its children that last call themselves.
const LASTING: [&str; 2] = ["worker process", "cache manager"];
const STARTS_WITHIN: Duration = Duration::from_secs(10);

/// The nginx of this machine.
pub(crate) fn find() -> Option<PathBuf> {
    let debians = Some(PathBuf::from(DEBIANS)).filter(|path| tools::is_executable(path));
    tools::on_path("nginx").or(debians)
}

/// A running nginx. Dropping it ends the master, which ends its children.
#[derive(Debug)]
pub(crate) struct Nginx {
    /// The master.
    pub(crate) process: Process,
    port: Port,
}

impl Nginx {
    /// Starts it in `dir`.
    ///
    /// # Errors
    /// When it does not start; the message holds its last output.
    pub(crate) async fn start(program: &Path, dir: &Path, upstream: SocketAddr) -> Result<Self> {
        let port = Port::free()?;
        let config = dir.join("nginx.conf");
        std::fs::write(&config, configuration(port.address(), upstream))?;
        let launch = Launch::new("nginx", program, dir, "NGINX").args([
            "-p".to_owned(),
            format!("{}/", dir.display()),
            "-e".to_owned(),
            "error.log".to_owned(),
            "-c".to_owned(),
            config.display().to_string(),
        ]);
        let mut nginx = Self {
            process: Process::start(launch, dir)?,
            port,
        };
        let address = nginx.address();
        nginx
            .process
            .ready("nginx to listen", STARTS_WITHIN, async || {
                TcpStream::connect(address).await.is_ok()
            })
            .await
            .context("nginx")?;
        Ok(nginx)
    }

    /// Its processes that last: the one that reads an old cache at the start ends after a minute.
    ///
    /// # Errors
    /// When they do not appear.
    pub(crate) async fn part(&self) -> Result<Part> {
        let master = self.process.pid();
        let mut found = Vec::new();
        wait::until("nginx's processes", STARTS_WITHIN, async || {
            found = LASTING
                .iter()
                .filter_map(|title| child(master, title))
                .collect();
            found.len() == LASTING.len()
        })
        .await?;
        found.push(master);
        Ok(Part::group("nginx", found))
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address()
    }
}

/// A master that is killed leaves its children behind, so it is asked first.
impl Drop for Nginx {
    fn drop(&mut self) {
        let pid = i32::try_from(self.process.pid())
            .ok()
            .and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        for _ in 0..200 {
            if !matches!(self.process.exited(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The child with this title, which it gives itself some time after it was forked.
fn child(parent: u32, title: &str) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    children.ok()?.split_whitespace().find_map(|child| {
        let found = std::fs::read_to_string(format!("/proc/{child}/cmdline")).ok()?;
        found.contains(title).then(|| child.parse().ok())?
    })
}

fn configuration(listen: SocketAddr, upstream: SocketAddr) -> String {
    // A worker of root's would become `nobody`, who cannot write here.
    let user = if rustix::process::getuid().is_root() {
        "user root;"
    } else {
        ""
    };
    format!(
        r#"{user}
daemon off;
worker_processes 1;
pid nginx.pid;
events {{ worker_connections 4096; }}
http {{
    access_log access.log;
    sendfile on;
    tcp_nopush on;
    client_body_temp_path client_body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    # Connections last, as those of the others do.
    keepalive_requests 1000000;
    proxy_cache_path cache levels=1:2 keys_zone=images:64m max_size=10g inactive=30d use_temp_path=off;
    upstream images {{
        server {upstream};
        keepalive 128;
        keepalive_requests 1000000;
    }}
    server {{
        listen {listen};
        merge_slashes off;
        location / {{
            proxy_pass http://images;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_cache images;
        }}
    }}
}}
"#
    )
}
