//! An imgproxy that verifies signatures: what a hit may never spare, and what it may.

use afterimage::clock::{Clock, Timestamp};
use anyhow::{Context as _, Result};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::support::client::Answer;
use crate::support::stack::{Builder, Stack};

/// Key and salt of the recorded exchanges, and those that take their place when keys are rotated.
pub(crate) const FIRST: [&str; 2] = [
    "943b421c9eb07c830af81030552c86009268de4e532ba2ee2eab8247c6da0881",
    "520f986b998545b4785e0defbc4f3c1203f22de2374a3d53cb7a7fe9fea309c5",
];
const SECOND: [&str; 2] = [
    "5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed",
    "0a0b0c0d0e0f0a0b0c0d0e0f0a0b0c0d0e0f0a0b0c0d0e0f0a0b0c0d0e0f0a0b",
];
/// `IMGPROXY_SIGNATURE_SIZE` unless set.
pub(crate) const FULL_SIZE: usize = 32;
const IMAGE: &str = "/rs:fill:120:80/plain/local:///coffee.png@webp";
const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

#[tokio::test]
async fn a_valid_signature_fills_and_then_hits() -> Result<()> {
    let stack = signed(FULL_SIZE).start().await?;
    let url = signed_url(FIRST, FULL_SIZE, IMAGE)?;
    assert!(
        url.starts_with("/e-z9mnggMmswivORWv6262CPmOC-5tcm0tZbCX15J0k/"),
        "{url}"
    );
    let own = stack.imgproxy_client()?.get(&url).await?;
    let miss = stack.get(&url).await?;
    assert_is_miss(&miss);
    assert_eq!(miss.body, own.body);
    let hit = stack.get(&url).await?;
    assert!(hit.is_hit(), "{hit:?}");
    assert_eq!(hit.body, own.body);
    Ok(())
}

#[tokio::test]
async fn changing_one_character_of_a_signature_never_gives_a_hit() -> Result<()> {
    let stack = signed(FULL_SIZE).start().await?;
    let url = signed_url(FIRST, FULL_SIZE, IMAGE)?;
    stack.get(&url).await?;
    stack.commits_reach(1).await?;
    assert!(stack.get(&url).await?.is_hit());

    for position in 1..url.len() - IMAGE.len() {
        let answer = stack.get(&changed(&url, position, 32)).await?;
        assert_is_forbidden(&answer);
    }
    // Of the last character imgproxy reads four bits. Ours and imgproxy's judgement are the same.
    let last = url.len() - IMAGE.len() - 1;
    for by in 1..ALPHABET.len() {
        let url = changed(&url, last, by);
        let own = stack.imgproxy_client()?.get(&url).await?;
        let answer = stack.get(&url).await?;
        assert_eq!(answer.status, own.status, "{url}");
        assert_eq!(answer.body, own.body, "{url}");
        assert_eq!(answer.is_hit(), own.status == 200, "{url}");
    }
    for broken in [
        url.replacen("J0k/", "J0k=/", 1),
        url.replacen("J0k/", "J0/", 1),
        url.replacen("J0k/", "J0kA/", 1),
        format!("/insecure{IMAGE}"),
        format!("/{IMAGE}"),
        // The signature is that of another image.
        url.replacen("@webp", "@png", 1),
        url.replacen("120", "121", 1),
    ] {
        let answer = stack.get(&broken).await?;
        assert_is_forbidden(&answer);
    }
    assert_eq!(stack.stored().await?, 1);
    stack.commits_reach(1).await
}

#[tokio::test]
async fn a_forbidden_answer_is_never_stored_and_blocks_nobody() -> Result<()> {
    let stack = signed(FULL_SIZE).start().await?;
    let url = signed_url(FIRST, FULL_SIZE, IMAGE)?;
    let forged = changed(&url, 7, 32);
    for _ in 0..2 {
        let answer = stack.get(&forged).await?;
        assert_is_forbidden(&answer);
    }
    assert_eq!(stack.stored().await?, 0);
    assert_is_miss(&stack.get(&url).await?);
    assert!(stack.get(&url).await?.is_hit());
    assert_is_forbidden(&stack.get(&forged).await?);
    Ok(())
}

#[tokio::test]
async fn a_rotated_pair_and_a_trusted_signature_hit_what_the_first_pair_filled() -> Result<()> {
    let stack = signed(FULL_SIZE).start().await?;
    let filled = stack.get(&signed_url(FIRST, FULL_SIZE, IMAGE)?).await?;
    assert_is_miss(&filled);
    for url in [
        signed_url(SECOND, FULL_SIZE, IMAGE)?,
        format!("/trusted-one{IMAGE}"),
        format!("/trusted-two{IMAGE}"),
    ] {
        let own = stack.imgproxy_client()?.get(&url).await?;
        let hit = stack.get(&url).await?;
        assert!(hit.is_hit(), "{url}: {hit:?}");
        assert_eq!(hit.body, own.body, "{url}");
        assert_eq!(hit.body, filled.body, "{url}");
    }
    assert_is_forbidden(&stack.get(&format!("/trusted-three{IMAGE}")).await?);
    let mixed = [FIRST[0], SECOND[1]];
    let mixed = stack.get(&signed_url(mixed, FULL_SIZE, IMAGE)?).await?;
    assert_is_forbidden(&mixed);
    stack.commits_reach(1).await
}

#[tokio::test]
async fn truncated_signatures_are_taken_at_their_size_alone() -> Result<()> {
    let stack = signed(8)
        .imgproxy_env("IMGPROXY_SIGNATURE_SIZE", "8")
        .start()
        .await?;
    assert_is_miss(&stack.get(&signed_url(FIRST, 8, IMAGE)?).await?);
    assert!(stack.get(&signed_url(SECOND, 8, IMAGE)?).await?.is_hit());
    for size in [7, 9, FULL_SIZE] {
        let answer = stack.get(&signed_url(FIRST, size, IMAGE)?).await?;
        assert_is_forbidden(&answer);
    }
    Ok(())
}

#[tokio::test]
async fn an_expired_url_is_not_served_from_the_cache() -> Result<()> {
    let stack = signed(FULL_SIZE).start().await?;
    stack.get(&signed_url(FIRST, FULL_SIZE, IMAGE)?).await?;
    let expires_in = |seconds| url_that_expires(now().plus_seconds(seconds));
    assert!(stack.get(&expires_in(3600)?).await?.is_hit());

    let expired = url_that_expires(Timestamp::from_unix(1))?;
    let own = stack.imgproxy_client()?.get(&expired).await?;
    let answer = stack.get(&expired).await?;
    assert_eq!((answer.status, own.status), (404, 404));
    assert_eq!(answer.body, own.body);
    assert_eq!(answer.cache_status(), "");
    // An expired one cannot be prolonged: the time is signed.
    let prolonged = expired.replacen("exp:1/", "exp:4102444800/", 1);
    assert_is_forbidden(&stack.get(&prolonged).await?);
    stack.commits_reach(1).await?;
    assert_eq!(stack.stored().await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_hit_for_a_url_that_expires_soon_promises_no_more_than_that() -> Result<()> {
    let stack = signed(FULL_SIZE).start().await?;
    let lasting = signed_url(FIRST, FULL_SIZE, IMAGE)?;
    assert!(max_age(&stack.get(&lasting).await?)? >= 31_000_000);
    let expiring = url_that_expires(now().plus_seconds(600))?;
    let hit = stack.get(&expiring).await?;
    assert!(hit.is_hit(), "{hit:?}");
    let age: u64 = hit.header("age").context("an Age")?.parse()?;
    let remaining = max_age(&hit)? - age;
    assert!(remaining <= 600, "{remaining} s: {hit:?}");
    assert_eq!(hit.header("expires"), None);
    // What is stored keeps its own.
    assert!(max_age(&stack.get(&lasting).await?)? >= 31_000_000);
    Ok(())
}

#[tokio::test]
async fn a_thousand_forged_requests_beside_a_valid_one_change_nothing() -> Result<()> {
    const FORGED: usize = 1000;
    const AT_A_TIME: usize = 16;
    let stack = signed(FULL_SIZE).start().await?;
    let url = signed_url(FIRST, FULL_SIZE, IMAGE)?;
    let forged = (0..FORGED).map(|number| {
        // The first characters in turn, each as everything that it is not.
        let others = ALPHABET.len() - 1;
        let url = changed(&url, 1 + number / others, 1 + number % others);
        let client = stack.client.clone();
        async move { client.get(&url).await }
    });
    let forgeries = stream::iter(forged)
        .buffer_unordered(AT_A_TIME)
        .try_collect::<Vec<_>>();
    let (forgeries, valid) = tokio::try_join!(forgeries, stack.get(&url))?;
    assert_eq!(forgeries.len(), FORGED);
    forgeries.iter().for_each(assert_is_forbidden);
    assert_is_miss(&valid);

    assert!(stack.get(&url).await?.is_hit());
    stack.commits_reach(1).await?;
    assert_eq!(stack.stored().await?, 1);
    let bypassed = [("outcome", "bypass"), ("reason", "signature")];
    stack
        .metric_reaches("afterimage_requests_total", &bypassed, FORGED)
        .await?;
    // No other image waits or is kept out because of them.
    let other = signed_url(FIRST, FULL_SIZE, &IMAGE.replace("120", "121"))?;
    assert_is_miss(&stack.get(&other).await?);
    assert!(stack.get(&other).await?.is_hit());
    Ok(())
}

/// A stack whose imgproxy and policy know both pairs and two trusted signatures.
fn signed(size: usize) -> Builder {
    let policy = format!(
        "images:
           kind: imgproxy
           signature:
             size: {size}
             pairs:
               - {{ key: {}, salt: {} }}
               - {{ key: {}, salt: {} }}
             trusted: [trusted-one, trusted-two]",
        FIRST[0], FIRST[1], SECOND[0], SECOND[1]
    );
    let both = |index: usize| format!("{},{}", FIRST[index], SECOND[index]);
    Stack::builder()
        .imgproxy_env("IMGPROXY_KEY", &both(0))
        .imgproxy_env("IMGPROXY_SALT", &both(1))
        .imgproxy_env("IMGPROXY_TRUSTED_SIGNATURES", "trusted-one,trusted-two")
        .policies(&policy)
}

/// The URL of what is below the signature, signed with the first `size` bytes.
pub(crate) fn signed_url([key, salt]: [&str; 2], size: usize, path: &str) -> Result<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&HEXLOWER.decode(key.as_bytes())?)?;
    mac.update(&HEXLOWER.decode(salt.as_bytes())?);
    mac.update(path.as_bytes());
    let signature = mac.finalize().into_bytes();
    let signature = BASE64URL_NOPAD.encode(&signature[..size]);
    Ok(format!("/{signature}{path}"))
}

fn now() -> Timestamp {
    Clock::system().now()
}

fn url_that_expires(at: Timestamp) -> Result<String> {
    let path = IMAGE.replacen('/', &format!("/exp:{}/", at.as_unix()), 1);
    signed_url(FIRST, FULL_SIZE, &path)
}

/// The same URL with the character at `position` moved on by so many places of the alphabet.
fn changed(url: &str, position: usize, by: usize) -> String {
    let old = url.as_bytes()[position];
    let place = ALPHABET.iter().position(|character| *character == old);
    let place = place.expect("a character of a signature");
    let new = ALPHABET[(place + by) % ALPHABET.len()];
    let (before, after) = (&url[..position], &url[position + 1..]);
    format!("{before}{}{after}", char::from(new))
}

fn max_age(answer: &Answer) -> Result<u64> {
    let control = answer.header("cache-control").context("Cache-Control")?;
    let directives = control.split(',').map(str::trim);
    let mut values = directives.filter_map(|directive| directive.strip_prefix("max-age="));
    Ok(values.next().context("max-age")?.parse()?)
}

fn assert_is_miss(answer: &Answer) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.cache_status(), "afterimage; fwd=miss; stored");
}

/// imgproxy's own refusal, which is no business of the cache's.
fn assert_is_forbidden(answer: &Answer) {
    assert_eq!(answer.status, 403, "{answer:?}");
    assert_eq!(answer.cache_status(), "", "{answer:?}");
    assert_eq!(answer.body, "Forbidden", "{answer:?}");
}
