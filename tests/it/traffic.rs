//! Much traffic of all kinds at once: every answer is the uncached route's, and the metrics add up.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use crate::support::client::Client;
use crate::support::stack::{Stack, Store};
use crate::support::wait;

const REQUESTS: u64 = 20_000;
const CLIENTS: u64 = 16;

/// Images that most requests ask for, again and again.
const POPULAR: u64 = 150;

/// What one client asks for, by a number; the mix repeats exactly.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Ask {
    path: String,
    method: Method,
    authorization: bool,
}

impl Ask {
    fn new(number: u64) -> Self {
        // A fixed shuffle: neighbours in time have nothing in common.
        let shuffled = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let image = |width: u64, extra: &str| {
            format!("/insecure/rs:fit:{width}:{width}{extra}/plain/local:///rocket.jpg@jpg")
        };
        let (path, method, authorization) = match shuffled % 100 {
            // One of a kind: a miss whenever it comes.
            0..=11 => (image(8, &format!("/cb:{number}")), Method::GET, false),
            12..=15 => {
                let name = shuffled % 37;
                let path = format!("/insecure/w:9/plain/local:///missing-{name}.png@jpg");
                (path, Method::GET, false)
            }
            16..=17 => (
                "/insecure/nope:1/plain/local:///rocket.jpg".into(),
                Method::GET,
                false,
            ),
            18..=20 => (image(8 + shuffled % POPULAR, ""), Method::GET, true),
            21..=22 => (image(8 + shuffled % POPULAR, ""), Method::POST, false),
            _ => (image(8 + shuffled % POPULAR, ""), Method::GET, false),
        };
        Self {
            path,
            method,
            authorization,
        }
    }

    /// The image of those that are one of a kind: `cb:` changes no byte of it.
    fn one_of_a_kind() -> Self {
        Self {
            path: "/insecure/rs:fit:8:8/plain/local:///rocket.jpg@jpg".into(),
            method: Method::GET,
            authorization: false,
        }
    }

    async fn send(&self, client: &Client, route: &str) -> Result<(Reference, String)> {
        let mut request = client.request(self.method.clone(), &format!("{route}{}", self.path));
        if self.authorization {
            request = request.header("authorization", "Bearer x");
        }
        let answer = client.send(request).await?;
        ensure!(answer.cut.is_none(), "{self:?} was cut: {:?}", answer.cut);
        let status = answer.cache_status().to_owned();
        Ok((
            Reference {
                status: answer.status,
                sha256: Sha256::digest(&answer.body).into(),
            },
            status,
        ))
    }
}

/// What the uncached route gives.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reference {
    status: u16,
    sha256: [u8; 32],
}

/// What clients counted.
#[derive(Debug, Default)]
struct Count {
    hits: u64,
    collapsed: u64,
    misses: u64,
    stored: u64,
    bypasses: u64,
}

impl Count {
    fn add(&mut self, cache_status: &str) {
        if cache_status.starts_with("afterimage; hit") {
            self.hits += 1;
        } else if cache_status == "afterimage; fwd=miss; collapsed" {
            self.collapsed += 1;
        } else if cache_status.starts_with("afterimage; fwd") {
            self.misses += 1;
            self.stored += u64::from(cache_status.ends_with("; stored"));
        } else {
            self.bypasses += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_mixed_requests_are_answered_like_the_uncached_route() -> Result<()> {
    let stack = Stack::builder()
        .store(Store::Garage)
        .settings("log: { filter: warn }")
        .start()
        .await?;
    let client = &stack.client;

    let mut references = HashMap::new();
    for number in 0..REQUESTS {
        let ask = Ask::new(number);
        if !references.contains_key(&ask) && !ask.path.contains("cb:") {
            let (reference, status) = ask.send(client, "/uncached").await?;
            ensure!(status.is_empty(), "the uncached route is cached: {status}");
            references.insert(ask, reference);
        }
    }
    let (one_of_a_kind, _) = Ask::one_of_a_kind().send(client, "/uncached").await?;
    let references = Arc::new(references);

    let mut clients = JoinSet::new();
    for first in 0..CLIENTS {
        let client = client.clone();
        let references = Arc::clone(&references);
        let one_of_a_kind = one_of_a_kind.clone();
        clients.spawn(async move {
            let mut count = Count::default();
            for number in (first..REQUESTS).step_by(CLIENTS as usize) {
                let ask = Ask::new(number);
                let (answer, status) = ask.send(&client, "").await?;
                let expected = references.get(&ask).unwrap_or(&one_of_a_kind);
                ensure!(
                    answer == *expected,
                    "{ask:?} ({status}) is not the uncached answer"
                );
                count.add(&status);
            }
            Ok(count)
        });
    }
    let mut total = Count::default();
    while let Some(count) = clients.join_next().await {
        let count = count??;
        total.hits += count.hits;
        total.collapsed += count.collapsed;
        total.misses += count.misses;
        total.stored += count.stored;
        total.bypasses += count.bypasses;
    }

    let patience = Duration::from_secs(30);
    wait::until(
        "all requests and fills to be counted",
        patience,
        async || {
            let Ok(metrics) = stack.metrics().await else {
                return false;
            };
            metrics.sum("afterimage_requests_total", &[]) as u64 >= REQUESTS
                && metrics.sum("afterimage_fills_total", &[]) as u64 >= total.stored
        },
    )
    .await
    .with_context(|| format!("{total:?}"))?;
    let metrics = stack.metrics().await?;
    let by = |outcome| metrics.sum("afterimage_requests_total", &[("outcome", outcome)]) as u64;
    assert_eq!(by("hit"), total.hits, "{total:?}");
    assert_eq!(by("collapsed"), total.collapsed, "{total:?}");
    assert_eq!(by("miss"), total.misses, "{total:?}");
    assert_eq!(by("bypass"), total.bypasses, "{total:?}");
    let all = by("hit") + by("collapsed") + by("miss") + by("bypass");
    assert_eq!(all, REQUESTS);
    assert_eq!(
        metrics.sum("afterimage_fills_total", &[]) as u64,
        total.stored
    );
    assert!(by("hit") * 100 >= REQUESTS * 30, "{total:?}");
    assert!(by("miss") * 100 >= REQUESTS * 10, "{total:?}");
    eprintln!("{total:?}");
    Ok(())
}
