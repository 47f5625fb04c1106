//! A real Garage, one node on free ports, ended on drop.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use afterimage::secret::Secret;
use afterimage::store::{Endpoint, S3Config, S3Timeouts};
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixStream};

pub(crate) const BUCKET: &str = "afterimage-test";
const ACCESS_KEY: &str = "GK0123456789abcdef01234567";
const SECRET_KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const ADMIN_TOKEN: &str = "admin-token-of-the-tests";
const START_ATTEMPTS: u32 = 3;
const START_TIME: Duration = Duration::from_secs(60);

pub(crate) enum Listen {
    Tcp,
    Unix,
}

pub(crate) struct Garage {
    process: Child,
    directory: TempDir,
    admin: String,
    pub(crate) endpoint: Endpoint,
}

impl Garage {
    pub(crate) async fn start(listen: &Listen) -> Self {
        for _ in 0..START_ATTEMPTS {
            let mut garage = Self::spawn(listen);
            match tokio::time::timeout(START_TIME, garage.until_ready()).await {
                Ok(true) => return garage,
                // A port was taken between finding it and using it.
                Ok(false) => {}
                Err(_) => panic!("garage does not become ready:\n{}", garage.output()),
            }
        }
        panic!("garage ended {START_ATTEMPTS} times while starting");
    }

    /// A configuration that works, with a prefix of its own.
    pub(crate) fn config(&self, prefix: &str) -> S3Config {
        S3Config {
            endpoint: self.endpoint.clone(),
            region: "garage".to_owned(),
            buckets: vec![BUCKET.to_owned()],
            prefix: prefix.to_owned(),
            access_key_id: ACCESS_KEY.to_owned(),
            secret_access_key: Secret::from(SECRET_KEY.to_owned()),
            timeouts: S3Timeouts {
                connect: Duration::from_secs(5),
                attempt: Duration::from_secs(30),
                write: Duration::from_secs(60),
                read: Duration::from_secs(30),
            },
        }
    }

    /// Objects and unfinished uploads in the bucket.
    pub(crate) async fn contents(&self) -> (u64, u64) {
        let info = reqwest::Client::new()
            .get(format!(
                "{}/v2/GetBucketInfo?globalAlias={BUCKET}",
                self.admin
            ))
            .bearer_auth(ADMIN_TOKEN)
            .send()
            .await
            .expect("the admin API answers")
            .text()
            .await
            .expect("the answer is text");
        let info: serde_json::Value = serde_json::from_str(&info).expect("the answer is JSON");
        let count = |name: &str| {
            info[name]
                .as_u64()
                .unwrap_or_else(|| panic!("no {name} in {info}"))
        };
        (count("objects"), count("unfinishedMultipartUploads"))
    }

    fn spawn(listen: &Listen) -> Self {
        let binary = binary();
        assert!(
            binary.exists(),
            "there is no Garage at {}: run `make tools`",
            binary.display()
        );
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path();
        let (s3, endpoint) = match listen {
            Listen::Tcp => {
                let address = format!("127.0.0.1:{}", free_port());
                let endpoint = format!("http://{address}");
                (address, endpoint)
            }
            Listen::Unix => {
                let socket = path.join("s3.sock").display().to_string();
                (socket.clone(), format!("unix:{socket}"))
            }
        };
        let admin = format!("127.0.0.1:{}", free_port());
        let config = format!(
            r#"
metadata_dir = "{directory}/meta"
data_dir = "{directory}/data"
db_engine = "lmdb"
metadata_fsync = false
data_fsync = false
disable_scrub = true
compression_level = "none"
block_size = "8M"
block_max_concurrent_reads = 128
rpc_timeout_msec = 10000
replication_factor = 1
rpc_bind_addr = "127.0.0.1:{rpc}"
rpc_secret = "{SECRET_KEY}"

[s3_api]
api_bind_addr = "{s3}"
s3_region = "garage"

[admin]
api_bind_addr = "{admin}"
admin_token = "{ADMIN_TOKEN}"
"#,
            directory = path.display(),
            rpc = free_port(),
        );
        fs::write(path.join("garage.toml"), config).expect("the configuration is written");
        let log = fs::File::create(path.join("log")).expect("a log file");
        let process = Command::new(binary)
            .arg("-c")
            .arg(path.join("garage.toml"))
            .args(["server", "--single-node", "--default-bucket"])
            .env("GARAGE_DEFAULT_ACCESS_KEY", ACCESS_KEY)
            .env("GARAGE_DEFAULT_SECRET_KEY", SECRET_KEY)
            .env("GARAGE_DEFAULT_BUCKET", BUCKET)
            .env("RUST_LOG", "garage=warn")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log is opened twice"))
            .stderr(log)
            .spawn()
            .expect("garage starts");
        Self {
            process,
            directory,
            admin: format!("http://{admin}"),
            endpoint: endpoint.parse().expect("an endpoint"),
        }
    }

    /// Whether it answers; `false` when it has ended instead.
    async fn until_ready(&mut self) -> bool {
        loop {
            if self
                .process
                .try_wait()
                .expect("its state is known")
                .is_some()
            {
                return false;
            }
            if self.is_listening().await && self.is_healthy().await {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn is_listening(&self) -> bool {
        match &self.endpoint {
            Endpoint::Tcp(uri) => {
                let address = uri.authority().expect("an address").as_str();
                TcpStream::connect(address).await.is_ok()
            }
            Endpoint::Unix(path) => UnixStream::connect(path).await.is_ok(),
        }
    }

    async fn is_healthy(&self) -> bool {
        reqwest::get(format!("{}/health", self.admin))
            .await
            .is_ok_and(|answer| answer.status() == 200)
    }

    fn output(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Garage {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("garage said:\n{}", self.output());
        }
    }
}

fn binary() -> PathBuf {
    let tools = std::env::var_os("AFTERIMAGE_TOOLS").map_or_else(
        || {
            let home = std::env::home_dir().expect("a home directory");
            home.join(".cache/afterimage/tools")
        },
        PathBuf::from,
    );
    tools.join("garage-2.5.0/bin/garage")
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}
