//! What is in the bucket: images that anybody can read, not a format of our own.

use std::time::Duration;

use afterimage::clock::Stopwatch;
use anyhow::{Context as _, Result};
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::{Client, Config};

use crate::scripted::NO_MEMORY;
use crate::support::client::Answer;
use crate::support::garage;
use crate::support::stack::{Stack, Store};
use crate::support::wait;

const PATIENCE: Duration = Duration::from_secs(10);

const COFFEE: &str = "/insecure/rs:fill:300:200/plain/local:///coffee.png";

#[tokio::test]
async fn an_object_is_the_image_itself_with_its_type_and_its_freshness() -> Result<()> {
    let mut stack = Stack::builder().store(Store::Garage).start().await?;
    let imgproxy = stack.imgproxy_client()?;
    let mut seen = Vec::new();
    for (format, media_type) in [
        ("png", "image/png"),
        ("webp", "image/webp"),
        ("jpg", "image/jpeg"),
    ] {
        let url = format!("{COFFEE}@{format}");
        let own = imgproxy.get(&url).await?;
        let miss = stack.get(&url).await?;
        assert_eq!(miss.cache_status(), "afterimage; fwd=miss; stored");
        assert_eq!(miss.body, own.body);
        stack.commits_reach(seen.len() + 1).await?;

        let name = newest_key(&mut stack, &seen).await?;
        let object = read(&mut stack, &name).await?;
        assert_eq!(object.status, 200, "{object:?}");
        assert_eq!(object.body, own.body, "{url}");
        assert_eq!(object.header("content-type"), Some(media_type));
        for field in ["cache-control", "content-disposition"] {
            assert_eq!(object.header(field), own.header(field), "{url}");
        }
        if format == "png" {
            assert_eq!(png_size(&object.body), Some((300, 200)));
        }
        seen.push(name);
    }
    // All derivatives of one source are below one prefix.
    let source = |name: &str| name.rsplit_once('/').map(|(source, _)| source.to_owned());
    assert!(
        seen.iter().all(|name| source(name) == source(&seen[0])),
        "{seen:?}"
    );
    assert_eq!(stack.stored().await?, seen.len());
    Ok(())
}

#[tokio::test]
async fn an_object_that_is_not_the_one_stored_is_not_served() -> Result<()> {
    let mut stack = Stack::builder()
        .store(Store::Garage)
        .settings(NO_MEMORY)
        .start()
        .await?;
    let url = format!("{COFFEE}@png");
    let own = stack.get(&url).await?;
    stack.commits_reach(1).await?;
    let name = newest_key(&mut stack, &[]).await?;
    // Somebody puts another image in its place, as long as the first.
    let mut other = own.body.to_vec();
    if let Some(last) = other.last_mut() {
        *last ^= 1;
    }
    let presigned = bucket(&mut stack)
        .put_object()
        .bucket(garage::BUCKET)
        .key(&name)
        .presigned(soon()?)
        .await?;
    let put = reqwest::Client::new().put(presigned.uri()).body(other);
    assert!(put.send().await?.status().is_success());

    let answer = stack.get(&url).await?;
    assert_eq!(answer.cache_status(), "afterimage; fwd=miss; stored");
    assert_eq!(answer.body, own.body);
    stack.commits_reach(2).await?;
    assert!(stack.get(&url).await?.is_hit());
    assert_eq!(read(&mut stack, &name).await?.body, own.body);
    Ok(())
}

/// The name of the object that was filled last, as the log gives it to an operator.
async fn newest_key(stack: &mut Stack, known: &[String]) -> Result<String> {
    let mut name = None;
    let logged = wait::until("a key in the log", PATIENCE, async || {
        let log = stack.afterimage().process.stderr();
        let names = log.split('"').filter(|word| word.starts_with("v1/images/"));
        name = names.map(str::to_owned).rfind(|name| !known.contains(name));
        name.is_some()
    });
    logged.await?;
    name.context("waited for it")
}

/// Reads an object as any other S3 client does.
async fn read(stack: &mut Stack, name: &str) -> Result<Answer> {
    let presigned = bucket(stack)
        .get_object()
        .bucket(garage::BUCKET)
        .key(name)
        .presigned(soon()?)
        .await?;
    let response = reqwest::get(presigned.uri()).await?;
    Ok(Answer::read(response, Stopwatch::start()).await)
}

/// A client that signs and sends nothing.
fn bucket(stack: &mut Stack) -> Client {
    let credentials = Credentials::new(
        garage::ACCESS_KEY_ID,
        garage::SECRET_ACCESS_KEY,
        None,
        None,
        "test",
    );
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(garage::REGION))
        .endpoint_url(stack.garage().endpoint())
        .credentials_provider(credentials)
        .force_path_style(true)
        .build();
    Client::from_conf(config)
}

fn soon() -> Result<PresigningConfig> {
    Ok(PresigningConfig::expires_in(Duration::from_secs(300))?)
}

/// Width and height, from the header chunk that begins every PNG.
fn png_size(png: &[u8]) -> Option<(u32, u32)> {
    let header = png.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")?;
    let (width, rest) = header.split_first_chunk()?;
    let (height, _) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*height)))
}
