//! Two policies whose URLs make the same key material: what one has under way is never the other's.

use anyhow::Result;
use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::scripted::{KIB, SHORT_LOOKUPS, STORED, commits_reach, png, until};
use crate::support::client::Answer;
use crate::support::envoy;
use crate::support::origin::{Gate, Origin, Script};
use crate::support::stack::{Stack, Store};

const PATH: &str = "/x/rs:fill:1:1/plain/local:///logo.png";
const THUMB: &str = "/thumbs/x/rs:fill:1:1/plain/local:///logo.png";

/// A lookup outlasts the test's steps, also where Envoy would give up after a second.
const LONG_LOOKUPS_FROM_THE_STORE: &str =
    "{memory: {max_bytes: 0B}, envoy: {message_timeout: 20s}, limits: {lookup_timeout: 10s}}";

/// The reference configuration with its policies `images` and `thumbs`, each with an upstream of its own.
struct Setup {
    images: Origin,
    thumbs: Origin,
    stack: Stack,
    image: Bytes,
    thumb: Bytes,
}

impl Setup {
    async fn start(store: Store, settings: &str) -> Result<Self> {
        let (images, thumbs) = tokio::try_join!(Origin::start(), Origin::start())?;
        let mut route = envoy::route("/thumbs/", "thumbs", Some("thumbs"));
        route["route"]["prefix_rewrite"] = "/".into();
        let stack = Stack::builder()
            .store(store)
            .upstream(images.address())
            .cluster("thumbs", thumbs.address())
            .route(route)
            .settings(settings)
            .adjust_envoy(|bootstrap| {
                bootstrap.processor()?["message_timeout"] = "20s".into();
                Ok(())
            })
            .start()
            .await?;
        let (image, thumb) = (png(50 * KIB), png(60 * KIB));
        thumbs.respond(PATH, Script::ok("image/png", thumb.clone()));
        Ok(Self {
            images,
            thumbs,
            stack,
            image,
            thumb,
        })
    }

    fn ask(&self, path: &'static str) -> JoinHandle<Result<Answer>> {
        let client = self.stack.client.clone();
        tokio::spawn(async move { client.get(path).await })
    }

    async fn present(&self, count: usize) -> Result<()> {
        until(&self.stack, "requests", |metrics| {
            metrics.sum("afterimage_streams", &[]) == count as f64
        })
        .await
    }
}

#[tokio::test]
async fn a_request_does_not_follow_one_of_another_policy() -> Result<()> {
    let setup = Setup::start(Store::Local, "{}").await?;
    let gate = Gate::closed();
    let script = Script::ok("image/png", setup.image.clone());
    setup.images.respond(PATH, script.wait_before_head(&gate));
    let image = setup.ask(PATH);
    gate.reached_by(1).await?;
    let thumb = setup.ask(THUMB);
    // It is sent on, or it waits for what the other policy's request gets.
    until(&setup.stack, "the second request", |metrics| {
        let follows = metrics.sum("afterimage_following", &[]) == 1.0;
        follows || !setup.thumbs.requests_for(PATH).is_empty()
    })
    .await?;
    gate.open();
    let thumb = thumb.await??;
    assert!(thumb.body == setup.thumb, "the image of another policy");
    assert_eq!(thumb.cache_status(), STORED);
    assert!(image.await??.body == setup.image);
    Ok(())
}

#[tokio::test]
async fn a_fill_that_is_not_confirmed_is_not_shown_to_another_policy() -> Result<()> {
    let mut setup = Setup::start(Store::Garage, SHORT_LOOKUPS).await?;
    let gate = Gate::closed();
    let script = Script::ok("image/png", setup.image.clone());
    setup.images.respond(PATH, script.wait_before_head(&gate));
    let image = setup.ask(PATH);
    gate.reached_by(1).await?;
    setup.stack.garage().process.freeze().await?;
    gate.open();
    assert!(image.await??.body == setup.image);
    // From here on the whole fill answers lookups of its own key, since the store does not take it.
    assert!(setup.stack.get(PATH).await?.is_hit());
    let thumb = setup.stack.get(THUMB).await?;
    setup.stack.garage().process.thaw()?;
    assert!(thumb.body == setup.thumb, "the image of another policy");
    assert_eq!(setup.thumbs.requests_for(PATH).len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_lookup_does_not_join_one_of_another_policy() -> Result<()> {
    let mut setup = Setup::start(Store::Garage, LONG_LOOKUPS_FROM_THE_STORE).await?;
    let script = Script::ok("image/png", setup.image.clone());
    setup.images.respond(PATH, script);
    setup.stack.get(PATH).await?;
    commits_reach(&setup.stack, 1).await?;
    setup.stack.garage().process.freeze().await?;
    let image = setup.ask(PATH);
    setup.present(1).await?;
    let thumb = setup.ask(THUMB);
    setup.present(2).await?;
    setup.stack.garage().process.thaw()?;
    let (image, thumb) = (image.await??, thumb.await??);
    assert!(image.is_hit() && image.body == setup.image);
    assert!(thumb.body == setup.thumb, "the image of another policy");
    let metrics = setup.stack.metrics().await?;
    assert_eq!(metrics.sum("afterimage_joined_lookups_total", &[]), 0.0);
    Ok(())
}
