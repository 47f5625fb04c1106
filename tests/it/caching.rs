//! What is cached, and what must not be: through real Envoy, with imgproxy or its stand-in.

use anyhow::Result;

use crate::support::stack::{Stack, Store};

const COFFEE: &str = "/insecure/rs:fill:300:200/plain/local:///coffee.png@webp";

#[tokio::test]
async fn the_second_request_is_a_hit_with_imgproxys_own_bytes() -> Result<()> {
    for store in [Store::Local, Store::Garage, Store::GarageOverUnix] {
        let stack = Stack::builder().store(store).start().await?;
        let own = stack.imgproxy_client()?.get(COFFEE).await?;

        let miss = stack.get(COFFEE).await?;
        assert_eq!(miss.status, 200);
        assert_eq!(
            miss.header("cache-status"),
            Some("afterimage; fwd=miss; stored"),
            "{store:?}"
        );
        assert_eq!(miss.body, own.body);
        assert_eq!(miss.header("age"), None);

        let hit = stack.get(COFFEE).await?;
        assert_eq!(hit.status, 200);
        assert_eq!(hit.body, own.body);
        let status = hit.header("cache-status").unwrap_or_default();
        assert!(status.starts_with("afterimage; hit; ttl=2"), "{status}");
        for name in [
            "content-type",
            "content-length",
            "cache-control",
            "content-disposition",
            "content-security-policy",
            "last-modified",
        ] {
            assert_eq!(hit.header(name), own.header(name), "{name}");
        }
        assert!(hit.header("age").is_some());
    }
    Ok(())
}
