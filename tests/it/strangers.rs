//! Clients that nobody knows: whatever they do to their own requests, those of others are not touched.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::scripted::{KIB, aborted, commits_reach, generic, png};
use crate::support::client::Answer;
use crate::support::metrics::Metrics;
use crate::support::origin::{Gate, Origin, Script};
use crate::support::stack::{Stack, Store};
use crate::support::wait;

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// HTTP/2 frames by their numbers (RFC 9113 section 6).
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_STREAM_AND_HEADERS: u8 = 0x5;
const CANCEL: u32 = 8;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A connection whose every request is reset in the packet that asks for it.
fn resets(connection: usize, count: u32) -> Vec<u8> {
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend(frame(SETTINGS, 0, 0, b""));
    for number in 0..count {
        let path = format!("/reset/{connection}/{number}");
        // GET and http by their index, :path and :authority with a literal (RFC 7541 appendix A, section 6.2.2).
        let mut head = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
        head.extend(path.bytes());
        head.extend([0x01, 1, b'h']);
        let stream = 1 + 2 * number;
        sent.extend(frame(HEADERS, END_STREAM_AND_HEADERS, stream, &head));
        sent.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
    }
    sent
}

/// What Envoy counts of its connections to Afterimage.
struct Connections {
    opened: f64,
    requests: f64,
    active_requests: f64,
}

impl Connections {
    async fn of(stack: &Stack) -> Result<Self> {
        let metrics = stack.envoy_metrics().await?;
        let count = |metrics: &Metrics, name: &str| {
            metrics.sum(name, &[("envoy_cluster_name", "afterimage")])
        };
        Ok(Self {
            opened: count(&metrics, "envoy_cluster_upstream_cx_total"),
            requests: count(&metrics, "envoy_cluster_upstream_rq_total"),
            active_requests: count(&metrics, "envoy_cluster_upstream_rq_active"),
        })
    }
}

/// Somebody whose response is under way while strangers come.
struct Victim {
    stack: Stack,
    gate: Gate,
    body: Bytes,
    running: JoinHandle<Result<Answer>>,
    before: Connections,
    // Its end would end the response.
    _origin: Origin,
}

impl Victim {
    async fn start() -> Result<Self> {
        let origin = Origin::start().await?;
        let stack = generic(&origin, Store::Local).start().await?;
        let (body, gate) = (png(500 * KIB), Gate::closed());
        let script = Script::ok("image/png", body.clone());
        origin.respond("/a", script.wait_at(100 * KIB, &gate));
        let client = stack.client.clone();
        let running = tokio::spawn(async move { client.get("/a").await });
        gate.reached_by(1).await?;
        let before = Connections::of(&stack).await?;
        Ok(Self {
            stack,
            gate,
            body,
            running,
            before,
            _origin: origin,
        })
    }

    fn address(&self) -> Result<String> {
        let base = self.stack.envoy.base_url();
        let address = base.strip_prefix("http://").context("an http URL")?;
        Ok(address.to_owned())
    }

    /// Waits until so many more requests have come to Afterimage, and only the victim's is left.
    async fn strangers_are_gone(&self, count: usize) -> Result<()> {
        wait::until("the strangers to be gone", PATIENCE, async || {
            let now = Connections::of(&self.stack).await;
            now.is_ok_and(|now| {
                now.requests >= self.before.requests + count as f64 && now.active_requests == 1.0
            })
        })
        .await
    }

    async fn stays_whole(self) -> Result<()> {
        let after = Connections::of(&self.stack).await?;
        assert_eq!(
            after.opened, self.before.opened,
            "Envoy had to connect anew"
        );
        self.gate.open();
        let answer = self.running.await??;
        assert!(answer.body == self.body);
        commits_reach(&self.stack, 1).await?;
        assert_eq!(aborted(&self.stack.metrics().await?, "cut"), 0.0);
        Ok(())
    }
}

#[tokio::test]
async fn bursts_of_reset_streams_cut_nobody_else() -> Result<()> {
    const CONNECTIONS: usize = 10;
    const RESETS: u32 = 60;
    let victim = Victim::start().await?;
    let mut strangers = Vec::new();
    for connection in 0..CONNECTIONS {
        let mut stranger = TcpStream::connect(victim.address()?).await?;
        stranger.write_all(&resets(connection, RESETS)).await?;
        strangers.push(stranger);
    }
    victim
        .strangers_are_gone(CONNECTIONS * RESETS as usize)
        .await?;
    victim.stays_whole().await
}

#[tokio::test]
async fn clients_that_leave_all_at_once_cut_nobody_else() -> Result<()> {
    const CLIENTS: usize = 200;
    let victim = Victim::start().await?;
    let address = victim.address()?;
    let mut strangers = Vec::new();
    for number in 0..CLIENTS {
        let mut stranger = TcpStream::connect(&address).await?;
        let request = format!("GET /left/{number} HTTP/1.1\r\nhost: {address}\r\n\r\n");
        stranger.write_all(request.as_bytes()).await?;
        // With the reset, Envoy learns of the request and of its end at the same time.
        socket2::SockRef::from(&stranger).set_linger(Some(std::time::Duration::ZERO))?;
        strangers.push(stranger);
    }
    drop(strangers);
    wait::until("the clients to be gone", PATIENCE, async || {
        let now = Connections::of(&victim.stack).await;
        now.is_ok_and(|now| now.active_requests == 1.0)
    })
    .await?;
    victim.stays_whole().await
}
