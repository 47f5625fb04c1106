//! Shows that the stack does what it is for: the same image twice or more, made once.

use std::time::Duration;

use afterimage::clock::Clock;
use anyhow::{Context as _, Result, ensure};
use reqwest::Method;

use super::support::client::{Answer, Client, Version};
use super::support::wait;

/// An entry is stored a moment after the image has been delivered.
const STORED_WITHIN: Duration = Duration::from_secs(5);

/// Asks `first` for an image that nobody has asked for yet, then each of `others` for the same, and prints the answers.
///
/// # Errors
/// When the first answer is no image, or another one no hit with the same bytes.
pub(crate) async fn show(first: &str, others: &[String], source: &str) -> Result<()> {
    // Nobody used this cache buster before, so this is a miss on a warm store, too.
    let path = format!(
        "/insecure/rs:fill:300:200/cb:{}-{}/plain/{source}@webp",
        Clock::system().now().as_unix(),
        std::process::id()
    );
    println!("coffee.png, filled to 300x200, as WebP, for the first time and again:");
    let made = Client::new(first, Version::Http1)?.get(&path).await?;
    print(first, &made);
    ensure!(made.status == 200, "no image; see run/*.log");
    for base in others {
        let client = Client::new(base, Version::Http1)?;
        // HEAD stores nothing, so what is found is what the first request left.
        wait::until("a hit", STORED_WITHIN, async || {
            let head = client.send(client.request(Method::HEAD, &path)).await;
            head.is_ok_and(|head| head.is_hit())
        })
        .await
        .context("the stack runs, but there is no hit; see run/afterimage*.log")?;
        let again = client.get(&path).await?;
        print(base, &again);
        ensure!(again.is_hit(), "the image was there and is not any more");
        ensure!(
            again.body == made.body,
            "the hit is another image than the miss"
        );
    }
    println!("\nTry it:       curl -i {first}{path}");
    println!("Not cached:   curl -i {first}/uncached{path}");
    Ok(())
}

fn print(base: &str, answer: &Answer) {
    let what = if answer.is_hit() { "hit" } else { "miss" };
    println!(
        "  {base}  {what:<4}  HTTP/1.1 {}  {:>7} bytes  {:>7.2} ms  Cache-Status: {}",
        answer.status,
        answer.body.len(),
        answer.took.as_secs_f64() * 1000.0,
        match answer.cache_status() {
            "" => "(none)",
            status => status,
        }
    );
}
