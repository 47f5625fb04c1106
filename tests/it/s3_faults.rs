//! What a broken or hostile S3 service does to the store: nothing worse than an error with a
//! meaning. Services that answer as scripted, and a Garage that is used wrongly or cut off.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use afterimage::entry::Key;
use afterimage::secret::Secret;
use afterimage::store::{Causes, Error, S3Config, S3Store, S3Timeouts, Store, read_whole};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::garage::Garage;
use crate::store_suite::{body, key, read, record};
use crate::support::garage::Transport;
use crate::support::ports::Port;

#[tokio::test]
async fn a_body_that_stalls_after_its_head_times_out() {
    let whole = [body(50_000, 1)];
    let head = entry_head(&whole, 50_000);
    let service = Scripted::start(vec![Reply::Stall(head)]).await;
    let mut config = service.config();
    config.timeouts.read = Duration::from_millis(50);
    let found = S3Store::new(config).unwrap().get(&key(1)).await.unwrap();
    let mut found = found.expect("the head was there");
    // Without a deadline of the store's own this would last for ever.
    let piece = tokio::time::timeout(Duration::from_secs(20), found.body.next()).await;
    assert!(matches!(piece, Ok(Some(Err(Error::TimedOut)))));
    assert!(found.body.next().await.is_none());
}

#[tokio::test]
async fn a_service_that_never_answers_times_out() {
    let service = Scripted::start(vec![Reply::Stall(String::new())]).await;
    let mut config = service.config();
    config.timeouts.attempt = Duration::from_millis(50);
    let answer = S3Store::new(config).unwrap().head(&key(1)).await;
    assert!(matches!(answer, Err(Error::TimedOut)), "{answer:?}");
    assert_eq!(service.requests(), 1, "a lookup is never tried again");
}

/// The kernel drops what does not fit into the queue of a socket that accepts nothing.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_endpoint_that_swallows_connections_times_out() {
    let hole = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    hole.bind(&any.into()).unwrap();
    hole.listen(0).unwrap();
    let address = hole.local_addr().unwrap().as_socket().unwrap();
    let mut queue = Vec::new();
    while let Ok(connected) =
        tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        queue.push(connected.unwrap());
        assert!(queue.len() < 16, "the queue has no end");
    }
    let mut config = config(&address.to_string());
    config.timeouts.connect = Duration::from_millis(50);
    let answer = S3Store::new(config).unwrap().head(&key(1)).await;
    assert!(matches!(answer, Err(Error::TimedOut)), "{answer:?}");
}

#[tokio::test]
async fn an_endpoint_that_refuses_connections_is_unavailable() {
    let port = Port::free().unwrap();
    let store = S3Store::new(config(&port.address().to_string())).unwrap();
    let answer = store.get(&key(1)).await;
    assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error() {
    let whole = [body(50_000, 1)];
    let mut reply = entry_head(&whole, 50_000).into_bytes();
    reply.extend_from_slice(&whole[0][..20_000]);
    let service = Scripted::start(vec![Reply::Close(reply)]).await;
    let found = S3Store::new(service.config()).unwrap().get(&key(1)).await;
    let found = found.unwrap().unwrap();
    let read = read_whole(&found.record, found.body).await;
    assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
}

#[tokio::test]
async fn an_object_that_is_no_entry_of_this_version_is_absent() {
    // Format version 2 and nothing else.
    let unknown = data_encoding::BASE64_NOPAD.encode(&[0x08, 0x02]);
    let service = Scripted::start(vec![
        reply("200 OK", "content-length: 0\r\n", ""),
        reply(
            "200 OK",
            &format!("content-length: 0\r\nx-amz-meta-afterimage: {unknown}\r\n"),
            "",
        ),
    ])
    .await;
    let store = S3Store::new(service.config()).unwrap();
    assert!(store.get(&key(1)).await.unwrap().is_none());
    assert!(store.get(&key(1)).await.unwrap().is_none());
    assert_eq!(service.requests(), 2);
}

#[tokio::test]
async fn an_object_with_a_broken_record_or_another_length_is_corrupt() {
    let whole = [body(50_000, 1)];
    let service = Scripted::start(vec![
        reply(
            "200 OK",
            "content-length: 0\r\nx-amz-meta-afterimage: what?\r\n",
            "",
        ),
        Reply::Close(entry_head(&whole, 49_999).into_bytes()),
        Reply::Close(entry_head(&whole, 50_001).into_bytes()),
    ])
    .await;
    let store = S3Store::new(service.config()).unwrap();
    for _ in 0..3 {
        let answer = store.get(&key(1)).await;
        assert!(matches!(answer, Err(Error::Corrupt(_))), "{answer:?}");
    }
    assert_eq!(service.requests(), 3);
}

#[tokio::test]
async fn a_refusal_has_the_meaning_of_its_code() {
    let xml = |code: &str| format!("<Error><Code>{code}</Code><Message>no</Message></Error>");
    let answer = async |status: &str, code: &str| {
        let xml = xml(code);
        let length = format!("content-length: {}\r\n", xml.len());
        let service = Scripted::start(vec![reply(status, &length, &xml)]).await;
        let answer = S3Store::new(service.config()).unwrap().get(&key(1)).await;
        assert_eq!(service.requests(), 1, "a lookup is never tried again");
        answer
    };
    let absent = answer("404 Not Found", "NoSuchKey").await;
    assert!(matches!(absent, Ok(None)), "{absent:?}");
    let no_bucket = answer("404 Not Found", "NoSuchBucket").await;
    assert!(
        matches!(no_bucket, Err(Error::Unavailable(_))),
        "{no_bucket:?}"
    );
    let denied = answer("403 Forbidden", "AccessDenied").await;
    assert!(matches!(denied, Err(Error::Denied(_))), "{denied:?}");
    let region = answer("400 Bad Request", "AuthorizationHeaderMalformed").await;
    assert!(matches!(region, Err(Error::Denied(_))), "{region:?}");
    for status in [
        "500 Oops",
        "503 Slow Down",
        "429 Too Many Requests",
        "501 Not Implemented",
    ] {
        let down = answer(status, "Whatever").await;
        assert!(
            matches!(down, Err(Error::Unavailable(_))),
            "{status}: {down:?}"
        );
    }
}

#[tokio::test]
async fn a_listing_that_ignores_its_prefix_costs_no_other_entries() {
    let mine = key(1).object_name();
    let others = [key(2).object_name(), "v1/suite".to_owned(), mine.clone()];
    let others = others.each_ref().map(String::as_str);
    let token = "<NextContinuationToken>2</NextContinuationToken>";
    let service = Scripted::start(vec![
        listing(&others, token),
        listing(&[&format!("p/{mine}")], ""),
        xml("<DeleteResult></DeleteResult>"),
    ])
    .await;
    let store = S3Store::new(service.config()).unwrap();
    assert_eq!(store.delete_source(key(1).source()).await.unwrap(), 1);
    assert_eq!(service.requests(), 3);
    let seen = service.seen.lock().await;
    let deletion = String::from_utf8_lossy(&seen[2]);
    assert!(deletion.starts_with("POST /b/?delete"), "{deletion}");
    assert_eq!(deletion.matches("<Key>").count(), 1, "{deletion}");
    assert!(
        deletion.contains(&format!("<Key>p/{mine}</Key>")),
        "{deletion}"
    );
}

#[tokio::test]
async fn a_source_is_not_deleted_while_one_of_its_entries_is_refused() {
    let names = [1, 2].map(|digest| {
        let key = Key::from_parts("suite", 1, [1; 32], [digest; 32]);
        format!("p/{}", key.object_name())
    });
    let names = names.each_ref().map(String::as_str);
    let answer = async |code: &str| {
        let service = Scripted::start(vec![
            listing(&names, ""),
            xml(&format!(
                "<DeleteResult><Error><Key>{}</Key><Code>{code}</Code></Error></DeleteResult>",
                names[1]
            )),
        ])
        .await;
        let store = S3Store::new(service.config()).unwrap();
        store.delete_source(key(1).source()).await
    };
    assert_eq!(answer("NoSuchKey").await.unwrap(), 1);
    let denied = answer("AccessDenied").await;
    assert!(matches!(denied, Err(Error::Denied(_))), "{denied:?}");
    let down = answer("InternalError").await;
    assert!(matches!(down, Err(Error::Unavailable(_))), "{down:?}");
}

#[tokio::test]
async fn a_listing_without_end_is_given_up() {
    let token = "<NextContinuationToken>again</NextContinuationToken>";
    let script = std::iter::repeat_with(|| listing(&[], token));
    let service = Scripted::start(script.take(1_001).collect()).await;
    let store = S3Store::new(service.config()).unwrap();
    let answer = store.delete_source(key(1).source()).await;
    assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
    assert_eq!(service.requests(), 1_000);
}

#[tokio::test]
async fn a_put_is_tried_three_times_with_its_whole_body() {
    let unavailable = || reply("503 Slow Down", "content-length: 0\r\n", "");
    let service = Scripted::start(vec![
        unavailable(),
        unavailable(),
        reply("200 OK", "content-length: 0\r\n", ""),
    ])
    .await;
    let store = S3Store::new(service.config()).unwrap();
    let chunks = [body(1_000, 1), Bytes::new(), body(20_000, 2)];
    let record = record(&key(1), &chunks);
    store.put(&key(1), &record, &chunks).await.unwrap();
    assert_eq!(service.requests(), 3);
    let seen = service.seen.lock().await;
    for request in seen.iter() {
        assert!(request.ends_with(&chunks.concat()));
        let head = String::from_utf8_lossy(&request[..request.len() - 21_000]).to_lowercase();
        assert!(head.starts_with("put /b/p/v1/suite/1/"), "{head}");
        assert!(head.contains("\r\ncontent-length: 21000\r\n"), "{head}");
        assert!(
            head.contains("\r\nx-amz-content-sha256: unsigned-payload\r\n"),
            "{head}"
        );
        assert!(head.contains("\r\ncontent-type: image/webp\r\n"), "{head}");
        assert!(
            head.contains("\r\ncache-control: max-age=31536000, public\r\n"),
            "{head}"
        );
        assert!(!head.contains("checksum"), "{head}");
        assert!(!head.contains("transfer-encoding"), "{head}");
        assert_eq!(
            head.matches("x-amz-meta-").count(),
            2,
            "the header and its signing: {head}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garage_used_wrongly_or_cut_off() {
    let garage = Garage::start(Transport::Tcp).await;
    a_wrong_secret_is_denied(&garage).await;
    a_wrong_region_is_told(&garage).await;
    an_absent_bucket_is_told(&garage).await;
    a_put_that_is_cut_off_leaves_nothing(&garage).await;
    a_writer_that_is_cut_off_leaves_nothing(&garage).await;
    an_entry_is_an_object_that_others_can_read(&garage).await;
}

async fn a_wrong_secret_is_denied(garage: &Garage) {
    let mut config = garage.config("p");
    config.secret_access_key = Secret::from("not the secret at all".to_owned());
    let store = S3Store::new(config).unwrap();
    let body = [body(1_000, 1)];
    let record = record(&key(1), &body);
    let results = [
        store.get(&key(1)).await.map(drop),
        store.head(&key(1)).await.map(drop),
        store.put(&key(1), &record, &body).await,
        store.begin(&key(1), &record).await.map(drop),
        store.delete(&key(1)).await,
        store.check().await,
    ];
    for result in results {
        assert!(matches!(result, Err(Error::Denied(_))), "{result:?}");
    }
}

async fn a_wrong_region_is_told(garage: &Garage) {
    let mut config = garage.config("p");
    config.region = "elsewhere".to_owned();
    let told = told(S3Store::new(config).unwrap().check().await);
    assert!(told.contains("region"), "{told}");
}

async fn an_absent_bucket_is_told(garage: &Garage) {
    let mut config = garage.config("p");
    config.buckets.push("no-such-bucket".to_owned());
    let told = told(S3Store::new(config).unwrap().check().await);
    let endpoint = garage.endpoint.to_string();
    assert!(
        told.contains("no-such-bucket") && told.contains(&endpoint),
        "{told}"
    );
    assert!(told.contains("does not exist"), "{told}");
}

async fn a_put_that_is_cut_off_leaves_nothing(garage: &Garage) {
    let key = key(2);
    let (old, new) = ([body(100_000, 1)], [body(4_000_000, 2)]);
    let direct = S3Store::new(garage.config("cut")).unwrap();
    let cut = S3Store::new(cut_after(garage, 1_000_000).await).unwrap();
    let record_of_new = record(&key, &new);

    let result = cut.put(&key, &record_of_new, &new).await;
    assert!(matches!(result, Err(Error::Unavailable(_))), "{result:?}");
    assert!(direct.get(&key).await.unwrap().is_none());

    let record_of_old = record(&key, &old);
    direct.put(&key, &record_of_old, &old).await.unwrap();
    assert!(cut.put(&key, &record_of_new, &new).await.is_err());
    assert!(read(&direct, &key).await == Some((record_of_old, old[0].clone())));
}

async fn a_writer_that_is_cut_off_leaves_nothing(garage: &Garage) {
    let key = key(3);
    let whole = body(20_000_000, 3);
    let direct = S3Store::new(garage.config("cut")).unwrap();
    let cut = S3Store::new(cut_after(garage, 4_000_000).await).unwrap();
    let mut writer = cut
        .begin(&key, &record(&key, std::slice::from_ref(&whole)))
        .await
        .unwrap();
    let result = writer.append(whole).await;
    assert!(matches!(result, Err(Error::Unavailable(_))), "{result:?}");
    drop(writer);
    assert!(direct.get(&key).await.unwrap().is_none());
    // The abort goes through the same proxy, which lets small requests pass.
    let aborted = async {
        while garage.contents().await.1 > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let aborted = tokio::time::timeout(Duration::from_secs(30), aborted).await;
    assert!(aborted.is_ok(), "an upload is left behind");
}

/// Nothing but the image is in the object, so that others can be pointed at the bucket.
async fn an_entry_is_an_object_that_others_can_read(garage: &Garage) {
    let key = key(4);
    let body = [body(10_000, 4)];
    let record = record(&key, &body);
    let mut config = garage.config("plain");
    let proxy = Recorder::start(garage).await;
    config.endpoint = format!("http://{}", proxy.address).parse().unwrap();
    let store = S3Store::new(config).unwrap();
    store.put(&key, &record, &body).await.unwrap();
    assert!(store.replace_record(&key, &record).await.unwrap());
    assert!(read(&store, &key).await == Some((record, body[0].clone())));
    let answers = proxy.answers.lock().await;
    let got = String::from_utf8_lossy(&answers).to_lowercase();
    let got = &got[got.rfind("http/1.1 200").unwrap()..];
    assert!(got.contains("\r\ncontent-type: image/webp\r\n"), "{got}");
    assert!(
        got.contains("\r\ncache-control: max-age=31536000, public\r\n"),
        "{got}"
    );
    assert!(got.contains("\r\ncontent-length: 10000\r\n"), "{got}");
}

/// A page of a listing with these names, which goes on if there is a token.
fn listing(names: &[&str], token: &str) -> Reply {
    let names: String = names
        .iter()
        .map(|name| format!("<Contents><Key>{name}</Key></Contents>"))
        .collect();
    xml(&format!(
        "<ListBucketResult>{names}<IsTruncated>{}</IsTruncated>{token}</ListBucketResult>",
        !token.is_empty()
    ))
}

fn xml(body: &str) -> Reply {
    let length = format!("content-length: {}\r\n", body.len());
    reply("200 OK", &length, body)
}

/// The message with all its causes, as an operator sees it.
fn told(result: Result<(), Error>) -> String {
    let error = result.expect_err("the check must fail");
    Causes(&error).to_string()
}

fn config(address: &str) -> S3Config {
    S3Config {
        endpoint: format!("http://{address}").parse().unwrap(),
        region: "garage".to_owned(),
        buckets: vec!["b".to_owned()],
        prefix: "p".to_owned(),
        access_key_id: "id".to_owned(),
        secret_access_key: Secret::from("secret".to_owned()),
        timeouts: S3Timeouts {
            connect: Duration::from_secs(30),
            attempt: Duration::from_secs(30),
            write: Duration::from_secs(30),
            read: Duration::from_secs(30),
        },
    }
}

enum Reply {
    /// Sends this and closes.
    Close(Vec<u8>),
    /// Sends this, then nothing, and stays.
    Stall(String),
}

fn reply(status: &str, headers: &str, body: &str) -> Reply {
    Reply::Close(format!("HTTP/1.1 {status}\r\nconnection: close\r\n{headers}\r\n{body}").into())
}

fn entry_head(body: &[Bytes], content_length: usize) -> String {
    let record = record(&key(1), body).encode().unwrap();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {content_length}\r\n\
         x-amz-meta-afterimage: {record}\r\n\r\n"
    )
}

/// Answers one connection after the other as scripted, and keeps what it was asked.
struct Scripted {
    address: String,
    count: Arc<AtomicUsize>,
    seen: Arc<tokio::sync::Mutex<Vec<Vec<u8>>>>,
}

impl Scripted {
    async fn start(script: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let service = Self {
            address: listener.local_addr().unwrap().to_string(),
            count: Arc::default(),
            seen: Arc::default(),
        };
        let (count, seen) = (Arc::clone(&service.count), Arc::clone(&service.seen));
        tokio::spawn(async move {
            let mut script = script.into_iter();
            let mut open = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let request = read_request(&mut stream).await;
                count.fetch_add(1, Ordering::SeqCst);
                seen.lock().await.push(request);
                match script.next() {
                    Some(Reply::Close(reply)) => stream.write_all(&reply).await.unwrap(),
                    Some(Reply::Stall(reply)) => {
                        stream.write_all(reply.as_bytes()).await.unwrap();
                        open.push(stream);
                    }
                    None => {}
                }
            }
        });
        service
    }

    fn config(&self) -> S3Config {
        config(&self.address)
    }

    fn requests(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

async fn read_request(stream: &mut TcpStream) -> Vec<u8> {
    let mut request = Vec::new();
    loop {
        if stream.read_buf(&mut request).await.unwrap() == 0 {
            return request;
        }
        let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        if request.len() >= end + 4 + length {
            return request;
        }
    }
}

/// A configuration that reaches Garage through a proxy which closes any connection that sends more
/// than `bytes`.
async fn cut_after(garage: &Garage, bytes: u64) -> S3Config {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = garage.config("cut");
    config.endpoint = format!("http://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let upstream = upstream(garage);
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(&upstream).await.unwrap();
            tokio::spawn(async move {
                let (client_in, mut client_out) = client.into_split();
                let (mut server_in, mut server_out) = server.into_split();
                let mut allowed = client_in.take(bytes);
                // Whichever ends first closes both.
                tokio::select! {
                    _ = tokio::io::copy(&mut allowed, &mut server_out) => {}
                    _ = tokio::io::copy(&mut server_in, &mut client_out) => {}
                }
            });
        }
    });
    config
}

/// Passes everything on, and keeps what Garage answered.
struct Recorder {
    address: String,
    answers: Arc<tokio::sync::Mutex<Vec<u8>>>,
}

impl Recorder {
    async fn start(garage: &Garage) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let recorder = Self {
            address: listener.local_addr().unwrap().to_string(),
            answers: Arc::default(),
        };
        let answers = Arc::clone(&recorder.answers);
        let upstream = upstream(garage);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&upstream).await.unwrap();
                let (mut client_in, mut client_out) = client.into_split();
                let (mut server_in, mut server_out) = server.into_split();
                tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut client_in, &mut server_out).await;
                });
                let answers = Arc::clone(&answers);
                tokio::spawn(async move {
                    let mut piece = vec![0; 65_536];
                    while let Ok(length @ 1..) = server_in.read(&mut piece).await {
                        // Kept before it is passed on, so that whoever has it can look here.
                        answers.lock().await.extend_from_slice(&piece[..length]);
                        if client_out.write_all(&piece[..length]).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        recorder
    }
}

fn upstream(garage: &Garage) -> String {
    let endpoint = garage.endpoint.to_string();
    endpoint.trim_start_matches("http://").to_owned()
}
