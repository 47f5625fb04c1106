//! One Garage in three zones, an Envoy and an Afterimage beside each node: what one zone renders, the others have.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use tempfile::TempDir;

use crate::support::client::{Answer, Client, Version};
use crate::support::garage::Garage;
use crate::support::imgproxy::Imgproxy;
use crate::support::stack::Stack;
use crate::support::{wait, zones};

/// Longer than a circuit breaker needs to see that the store is back.
const PATIENCE: Duration = Duration::from_secs(20);

const STORED: &str = "afterimage; fwd=miss; stored";

struct Zone {
    stack: Stack,
    garage: Garage,
    /// Fills that we know of.
    commits: usize,
}

impl Zone {
    /// How often its Envoy has asked imgproxy.
    async fn asked(&self) -> Result<f64> {
        let metrics = self.stack.envoy_metrics().await?;
        let imgproxy = [("envoy_cluster_name", "imgproxy")];
        Ok(metrics.sum("envoy_cluster_upstream_rq_total", &imgproxy))
    }

    /// GETs what nobody has asked for yet, and waits until it is stored.
    async fn renders(&mut self, path: &str, expected: &Answer) -> Result<()> {
        let miss = self.stack.get(path).await?;
        assert_eq!((miss.status, miss.cache_status()), (200, STORED), "{path}");
        assert!(miss.body == expected.body, "{path}");
        self.commits += 1;
        self.stack.commits_reach(self.commits).await
    }

    /// Waits until its store gives what another zone has stored. HEAD never fills, so it is not this zone's own copy.
    async fn comes_to_have(&self, path: &str) -> Result<()> {
        let client = &self.stack.client;
        wait::until("a hit", PATIENCE, async || {
            let head = client.send(client.request(Method::HEAD, path)).await;
            head.is_ok_and(|head| head.is_hit())
        })
        .await
    }

    /// GETs what another zone has stored: a hit, for which imgproxy is not asked.
    async fn has(&self, path: &str, expected: &Answer) -> Result<()> {
        let before = self.asked().await?;
        let hit = self.stack.get(path).await?;
        assert!(hit.is_hit(), "{path}: {}", hit.cache_status());
        assert_eq!(hit.status, 200, "{path}");
        assert!(hit.body == expected.body && hit.cut.is_none(), "{path}");
        assert_eq!(self.asked().await?, before, "{path}");
        Ok(())
    }
}

/// Three zones that share an imgproxy.
struct Geo {
    zones: Vec<Zone>,
    own: Client,
    _imgproxy: Imgproxy,
    // Last, so that the processes are gone before their files are.
    _dir: TempDir,
}

impl Geo {
    async fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ai-").tempdir()?;
        let imgproxy = Imgproxy::start(dir.path(), &[]).await?;
        let mut garages = Vec::new();
        for zone in zones::ZONES {
            let dir = dir.path().join(zone);
            std::fs::create_dir(&dir)?;
            garages.push(Garage::start_in_zone(&dir).await?);
        }
        let nodes: Vec<_> = garages.iter().map(Garage::node).collect();
        zones::form(&nodes).await?;
        let mut zones = Vec::new();
        for garage in garages {
            // Without a memory tier, so that every hit is the store's.
            let settings = format!(
                "{{store: {{kind: s3, s3: {{endpoint: '{}'}}}}, memory: {{max_bytes: 0B}}, limits: {{lookup_timeout: 700ms}}}}",
                garage.endpoint()
            );
            let builder = Stack::builder().upstream(imgproxy.address());
            zones.push(Zone {
                stack: builder.settings(&settings).start().await?,
                garage,
                commits: 0,
            });
        }
        Ok(Self {
            zones,
            own: Client::new(&imgproxy.base_url(), Version::Http1)?,
            _imgproxy: imgproxy,
            _dir: dir,
        })
    }

    fn abc(&mut self) -> Result<[&mut Zone; 3]> {
        let all = self.zones.iter_mut().collect::<Vec<_>>();
        all.try_into().ok().context("three zones")
    }
}

/// An image of its own for each number, and what imgproxy itself says.
async fn image(own: &Client, number: u32) -> Result<(String, Answer)> {
    let path = format!("/insecure/rs:fill:300:200/cb:{number}/plain/local:///coffee.png@webp");
    answer(own, path).await
}

async fn answer(own: &Client, path: String) -> Result<(String, Answer)> {
    let answer = own.get(&path).await?;
    ensure!(answer.status == 200, "{path}: {answer:?}");
    Ok((path, answer))
}

#[tokio::test]
async fn what_one_zone_renders_is_a_hit_in_the_others() -> Result<()> {
    let mut geo = Geo::start().await?;
    let own = geo.own.clone();
    let [a, b, c] = geo.abc()?;
    for path in [
        // In one message; small enough for Garage's metadata; streamed.
        "/insecure/rs:fill:300:200/plain/local:///coffee.png@webp",
        "/insecure/rs:fill:20:20/plain/local:///coffee.png@webp",
        "/insecure/rs:fit:1000:1000/plain/local:///hubble_deep_field.jpg@png",
    ] {
        let (path, expected) = answer(&own, path.into()).await?;
        a.renders(&path, &expected).await?;
        for zone in [&*b, &*c, &*a] {
            zone.has(&path, &expected).await?;
        }
    }
    assert_eq!([b.asked().await?, c.asked().await?], [0.0, 0.0]);
    Ok(())
}

#[tokio::test]
async fn a_zone_without_its_store_forwards_the_others_go_on_and_it_catches_up() -> Result<()> {
    let mut geo = Geo::start().await?;
    let own = geo.own.clone();
    let [a, b, c] = geo.abc()?;
    let (seen, expected_seen) = image(&own, 1).await?;
    a.renders(&seen, &expected_seen).await?;

    a.garage.process.kill()?;
    // A read that was waiting for the dead node may run into its deadline, and is forwarded.
    for zone in [&*b, &*c] {
        zone.comes_to_have(&seen).await?;
        zone.has(&seen, &expected_seen).await?;
    }
    let (meanwhile, expected_meanwhile) = image(&own, 2).await?;
    b.renders(&meanwhile, &expected_meanwhile).await?;
    c.has(&meanwhile, &expected_meanwhile).await?;
    // Enough to open the circuit breaker, and one that the zone itself had stored.
    for number in [1, 10, 11, 12, 13, 14, 15, 16] {
        let (path, expected) = image(&own, number).await?;
        let forwarded = a.stack.get(&path).await?;
        assert_eq!(forwarded.status, 200);
        assert!(!forwarded.is_hit(), "{}", forwarded.cache_status());
        assert!(forwarded.body == expected.body && forwarded.cut.is_none());
    }

    a.garage.process.start_again()?;
    a.garage.wait_until_running().await?;
    // They look for each other every 30 s; this is sooner.
    let nodes = [&*a, &*b, &*c].map(|zone| zone.garage.node());
    zones::form(&nodes).await?;
    // Until the circuit breaker closes it forwards.
    a.comes_to_have(&meanwhile).await?;
    a.has(&meanwhile, &expected_meanwhile).await?;
    a.has(&seen, &expected_seen).await
}
