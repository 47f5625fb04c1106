//! Shows that the stack does what it is for: the same image twice, made once.

use std::time::Duration;

use afterimage::clock::Clock;
use anyhow::{Context as _, Result, ensure};

use super::support::client::{Answer, Client, Version};
use super::support::wait;

/// An entry is stored a moment after the image has been delivered.
const STORED_WITHIN: Duration = Duration::from_secs(5);

/// Asks for an image that nobody has asked for yet, then for the same again, and prints both answers.
///
/// # Errors
/// When the first answer is no image, or the second no hit with the same bytes.
pub(crate) async fn show(base: &str) -> Result<()> {
    let client = Client::new(base, Version::Http1)?;
    // Nobody used this cache buster before, so this is a miss on a warm store, too.
    let path = format!(
        "/insecure/rs:fill:300:200/cb:{}-{}/plain/local:///coffee.png@webp",
        Clock::system().now().as_unix(),
        std::process::id()
    );
    println!("coffee.png, filled to 300x200, as WebP, for the first time and again:");
    let first = client.get(&path).await?;
    print(&first);
    ensure!(first.status == 200, "no image; see run/*.log");

    let mut again = client.get(&path).await?;
    let waited = wait::until("a hit", STORED_WITHIN, async || {
        if again.is_hit() {
            return true;
        }
        if let Ok(next) = client.get(&path).await {
            again = next;
        }
        again.is_hit()
    })
    .await;
    print(&again);
    waited.context("the stack runs, but the second answer is no hit; see run/afterimage.log")?;
    ensure!(
        again.body == first.body,
        "the hit is another image than the miss"
    );
    println!("\nTry it:       curl -i {base}{path}");
    println!("Not cached:   curl -i {base}/uncached{path}");
    Ok(())
}

fn print(answer: &Answer) {
    let what = if answer.is_hit() { "hit" } else { "miss" };
    println!(
        "  {what:<4}  HTTP/1.1 {}  {:>7} bytes  {:>7.2} ms  Cache-Status: {}",
        answer.status,
        answer.body.len(),
        answer.took.as_secs_f64() * 1000.0,
        match answer.cache_status() {
            "" => "(none)",
            status => status,
        }
    );
}
