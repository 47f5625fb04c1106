//! Entries spread over several buckets.

use std::sync::Arc;

use afterimage::store::{S3Store, Store};

use crate::garage::Garage;
use crate::store_suite::{body, key, read, record};
use crate::support::garage::{BUCKET, Transport};

const ENTRIES: u8 = 40;

#[tokio::test]
async fn entries_are_spread_over_buckets_and_found_there() {
    let garage = Garage::start(Transport::Tcp).await;
    let second = garage.second_bucket().await;
    let mut config = garage.config("shared");
    config.buckets.push(second.clone());
    let store: Arc<dyn Store> = Arc::new(S3Store::new(config).unwrap());
    store.check().await.unwrap();
    for number in 0..ENTRIES {
        let (key, body) = (key(number), [body(1000, number.into())]);
        store.put(&key, &record(&key, &body), &body).await.unwrap();
    }
    let first = garage.objects_in(BUCKET).await;
    let both = first + garage.objects_in(&second).await;
    assert_eq!(both, u64::from(ENTRIES));
    assert!((10..=30).contains(&first), "{first}");
    for number in 0..ENTRIES {
        let (key, body) = (key(number), [body(1000, number.into())]);
        let expected = (record(&key, &body), body[0].clone());
        assert!(read(&*store, &key).await == Some(expected));
        assert_eq!(store.delete_source(key.source()).await.unwrap(), 1);
    }
    assert_eq!(garage.objects_in(BUCKET).await, 0);
    assert_eq!(garage.objects_in(&second).await, 0);
}
