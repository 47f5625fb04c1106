//! Whole gRPC conversations in process: what Envoy is answered, message by message.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use afterimage::cache::Cache;
use afterimage::clock::{Clock, Timestamp};
use afterimage::config::Config;
use afterimage::exchange::Core;
use afterimage::extproc::{self, Routes};
use afterimage::store::{Fault, FaultyStore, MemoryStore, Operation, Store};
use afterimage::telemetry::Metrics;
use afterimage::upstream::Upstreams;
use anyhow::{Context as _, Result};
use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue};
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::{
    BodySendMode, HeaderSendMode,
};
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    HttpBody, HttpHeaders, HttpTrailers, ImmediateResponse, ProcessingRequest, ProcessingResponse,
};
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::support::wait;

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n and more";
const FILTER: &str = "envoy.filters.http.ext_proc";

/// A processor with a memory store and a clock that stands still, and a channel to it.
struct Processor {
    channel: Channel,
    metrics: Metrics,
    clock: Clock,
    cache: Cache,
}

impl Processor {
    async fn start() -> Result<Self> {
        Self::start_with(Arc::new(MemoryStore::new(1 << 20))).await
    }

    async fn start_with(store: Arc<dyn Store>) -> Result<Self> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(
            file.path(),
            "{memory: {max_bytes: 0B}, objects: {}, envoy: {message_timeout: 20s},
              limits: {lookup_timeout: 10s, stream_cap: 1MiB, held_cap: 1MiB, budget: 1MiB,
                       invalidations: 10, fill_rate: 0B},
              policies: {images: {kind: imgproxy, unsigned: true},
                         files: {kind: generic, cookies: ignore}}}",
        )?;
        let config = Config::load(file.path())?;
        let metrics = Metrics::new();
        let clock = Clock::manual(Timestamp::from_unix(1_800_000_000));
        let (limits, memory) = (config.limits, config.memory);
        let largest_bytes = limits.stream_cap;
        let cache = Cache::open(
            limits,
            memory,
            largest_bytes,
            store,
            clock.clone(),
            &metrics,
        );
        let upstreams = Upstreams::new([], 1)?;
        let core = Core::new(
            cache.clone(),
            upstreams,
            clock.clone(),
            Duration::ZERO,
            &metrics,
        );
        let routes = Routes::new(config.policies, HashMap::new(), None);
        let processor = extproc::Processor::new(Arc::new(core), routes, None, None, &metrics);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let never = CancellationToken::new();
        tokio::spawn(extproc::serve(listener, Arc::new(processor), never));
        drop(TcpStream::connect(address).await?);
        let channel = Channel::from_shared(format!("http://{address}"))?
            .connect()
            .await?;
        Ok(Self {
            channel,
            metrics,
            clock,
            cache,
        })
    }

    async fn open(&self, policy: &str) -> Result<Conversation> {
        let (sender, receiver) = mpsc::channel(64);
        let mut request = tonic::Request::new(ReceiverStream::new(receiver));
        request
            .metadata_mut()
            .insert("x-afterimage-policy", policy.parse()?);
        let answers = ExternalProcessorClient::new(self.channel.clone())
            .process(request)
            .await?
            .into_inner();
        Ok(Conversation { sender, answers })
    }

    /// Lets a body through to the store.
    async fn fill(&self, path: &str) -> Result<()> {
        self.fill_with("images", path).await
    }

    async fn fill_with(&self, policy: &str, path: &str) -> Result<()> {
        let before = self.count("afterimage_fills_total{result=\"committed\"");
        let mut conversation = self.open(policy).await?;
        conversation.ask(get(path)).await?;
        conversation.ask(image(PNG.len())).await?;
        conversation.ask(body(PNG, true)).await?;
        wait::until("the commit", Duration::from_secs(10), async || {
            self.count("afterimage_fills_total{result=\"committed\"") > before
        })
        .await
    }

    fn count(&self, beginning: &str) -> u64 {
        let page = self.metrics.encode();
        let lines = page.lines().filter(|line| line.starts_with(beginning));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }
}

struct Conversation {
    sender: mpsc::Sender<ProcessingRequest>,
    answers: Streaming<ProcessingResponse>,
}

impl Conversation {
    async fn ask(&mut self, message: ProcessingRequest) -> Result<ProcessingResponse> {
        self.sender.send(message).await?;
        let answer = tokio::time::timeout(Duration::from_secs(10), self.answers.message());
        answer
            .await??
            .context("the stream ended instead of an answer")
    }

    /// Whether nothing more comes once no more is said.
    async fn falls_silent(mut self) -> Result<bool> {
        drop(self.sender);
        Ok(self.answers.message().await?.is_none())
    }
}

fn message(request: Request) -> ProcessingRequest {
    ProcessingRequest {
        request: Some(request),
        ..ProcessingRequest::default()
    }
}

fn headers(fields: &[(&str, &str)], end_of_stream: bool) -> HttpHeaders {
    let headers = fields.iter().map(|(key, value)| HeaderValue {
        key: (*key).to_owned(),
        raw_value: value.as_bytes().to_vec(),
        ..HeaderValue::default()
    });
    HttpHeaders {
        headers: Some(HeaderMap {
            headers: headers.collect(),
        }),
        end_of_stream,
        ..HttpHeaders::default()
    }
}

fn request(method: &str, path: &str) -> ProcessingRequest {
    message(Request::RequestHeaders(headers(
        &[
            (":method", method),
            (":path", path),
            (":authority", "h"),
            ("cookie", "a=b"),
        ],
        true,
    )))
}

fn get(path: &str) -> ProcessingRequest {
    request("GET", path)
}

/// The head of an answer of the upstream with an image of so many bytes.
fn image(length: usize) -> ProcessingRequest {
    let details = Value {
        kind: Some(value::Kind::StringValue("via_upstream".to_owned())),
    };
    let attributes = Struct {
        fields: [("response.code_details".to_owned(), details)].into(),
    };
    ProcessingRequest {
        attributes: [(FILTER.to_owned(), attributes)].into(),
        ..message(Request::ResponseHeaders(headers(
            &[
                (":status", "200"),
                ("content-type", "image/png"),
                ("content-length", &length.to_string()),
                ("cache-control", "max-age=60"),
            ],
            false,
        )))
    }
}

fn body(bytes: &[u8], end_of_stream: bool) -> ProcessingRequest {
    message(Request::ResponseBody(HttpBody {
        body: bytes.to_vec(),
        end_of_stream,
        ..HttpBody::default()
    }))
}

fn path(number: u32) -> String {
    format!("/x/rs:fit:{number}:1/plain/local:///a.png")
}

fn immediate(answer: ProcessingResponse) -> Result<ImmediateResponse> {
    match answer.response {
        Some(Response::ImmediateResponse(hit)) => Ok(hit),
        other => anyhow::bail!("{other:?}"),
    }
}

#[tokio::test]
async fn an_invalidated_entry_that_is_read_while_it_is_deleted_is_not_served() -> Result<()> {
    let store = FaultyStore::new(Arc::new(MemoryStore::new(1 << 20)));
    let processor = Processor::start_with(Arc::clone(&store) as _).await?;
    processor.fill_with("files", "/a").await?;
    // The source is deleted only when an entry was read, which is given away only when the deletion is over.
    let (deletion, read) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let waits = Fault::WaitsBefore(Arc::clone(&deletion));
    store.set(Operation::DeleteSource, waits);
    store.set(Operation::Get, Fault::WaitsAfter(Arc::clone(&read)));
    let mut unsafe_method = processor.open("files").await?;
    unsafe_method.ask(request("POST", "/a")).await?;
    unsafe_method.ask(image(PNG.len())).await?;
    let mut conversation = processor.open("files").await?;
    let asked = store.calls(Operation::Get) + 1;
    let asking = tokio::spawn(async move { conversation.ask(get("/a")).await });
    calls_reach(&store, Operation::Get, asked).await?;
    deletion.add_permits(1);
    let tasks = processor.cache.tasks();
    wait::until("the deletion", Duration::from_secs(10), async || {
        tasks.is_empty()
    })
    .await?;
    read.add_permits(1);
    let answer = asking.await??;
    let is_forwarded = matches!(answer.response, Some(Response::RequestHeaders(_)));
    assert!(is_forwarded, "{answer:?}");
    Ok(())
}

async fn calls_reach(store: &FaultyStore, operation: Operation, count: usize) -> Result<()> {
    wait::until(operation.as_str(), Duration::from_secs(10), async || {
        store.calls(operation) >= count
    })
    .await
}

/// A store whose reads go on when they are told to, and what tells them.
fn gated() -> (Arc<FaultyStore>, Arc<Semaphore>) {
    let store = FaultyStore::new(Arc::new(MemoryStore::new(1 << 20)));
    let gate = Arc::new(Semaphore::new(1));
    store.set(Operation::Get, Fault::WaitsBefore(Arc::clone(&gate)));
    (store, gate)
}

/// This many lookups of `/a` under way, of which all but one have joined the one that reads.
async fn joined(
    processor: &Processor,
    count: usize,
) -> Result<Vec<JoinHandle<Result<ProcessingResponse>>>> {
    let mut asking = Vec::new();
    for _ in 0..count {
        let mut conversation = processor.open("files").await?;
        asking.push(tokio::spawn(
            async move { conversation.ask(get("/a")).await },
        ));
    }
    wait::until("all to join", Duration::from_secs(10), async || {
        processor.count("afterimage_joined_lookups_total") == count as u64 - 1
    })
    .await?;
    Ok(asking)
}

#[tokio::test]
async fn lookups_of_an_entry_at_the_same_time_read_it_once() -> Result<()> {
    let (store, gate) = gated();
    let processor = Processor::start_with(Arc::clone(&store) as _).await?;
    processor.fill_with("files", "/a").await?;
    let asking = joined(&processor, 8).await?;
    gate.add_permits(1);
    for answer in asking {
        let answer = answer.await??;
        let Some(Response::ImmediateResponse(hit)) = answer.response else {
            panic!("{answer:?}");
        };
        assert_eq!(hit.body, PNG);
    }
    // That of the fill, and one for all.
    assert_eq!(store.calls(Operation::Get), 2);
    Ok(())
}

#[tokio::test]
async fn those_that_joined_a_lookup_whose_client_leaves_read_for_themselves() -> Result<()> {
    let (store, gate) = gated();
    let processor = Processor::start_with(Arc::clone(&store) as _).await?;
    processor.fill_with("files", "/a").await?;
    let leaving = processor.open("files").await?;
    let asked = store.calls(Operation::Get) + 1;
    leaving.sender.send(get("/a")).await?;
    wait::until("the first to read", Duration::from_secs(10), async || {
        store.calls(Operation::Get) == asked
    })
    .await?;
    let mut staying = processor.open("files").await?;
    let staying = tokio::spawn(async move { staying.ask(get("/a")).await });
    wait::until("the second to join", Duration::from_secs(10), async || {
        processor.count("afterimage_joined_lookups_total") == 1
    })
    .await?;
    drop(leaving);
    wait::until("the second to read", Duration::from_secs(10), async || {
        store.calls(Operation::Get) == asked + 1
    })
    .await?;
    gate.add_permits(1);
    let answer = staying.await??;
    let is_hit = matches!(answer.response, Some(Response::ImmediateResponse(_)));
    assert!(is_hit, "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn a_miss_asks_for_the_body_only_once_the_answer_is_storable() -> Result<()> {
    let processor = Processor::start().await?;
    let mut conversation = processor.open("images").await?;

    let forward = conversation.ask(get(&path(1))).await?;
    assert!(forward.mode_override.is_none());
    let Some(Response::RequestHeaders(forward)) = forward.response else {
        panic!("{forward:?}")
    };
    let mutation = forward.response.unwrap().header_mutation.unwrap();
    assert_eq!(mutation.remove_headers, ["cookie"]);

    let mirror = conversation.ask(image(PNG.len())).await?;
    let mode = mirror.mode_override.unwrap();
    assert_eq!(mode.response_body_mode(), BodySendMode::Streamed);
    assert_eq!(mode.request_body_mode(), BodySendMode::None);

    for (bytes, is_end) in [(&PNG[..9], false), (&PNG[9..], false), (b"", true)] {
        let answer = conversation.ask(body(bytes, is_end)).await?;
        let Some(Response::ResponseBody(answer)) = answer.response else {
            panic!("{answer:?}")
        };
        assert!(
            answer
                .response
                .is_none_or(|common| common.body_mutation.is_none())
        );
    }
    assert!(conversation.falls_silent().await?);
    Ok(())
}

#[tokio::test]
async fn a_hit_is_one_answer_and_then_silence() -> Result<()> {
    let processor = Processor::start().await?;
    processor.fill(&path(1)).await?;
    processor.clock.advance(10);
    let mut conversation = processor.open("images").await?;
    let hit = immediate(conversation.ask(get(&path(1))).await?)?;
    assert_eq!(hit.body, PNG);
    assert_eq!(hit.status.unwrap().code, 200);
    let fields = hit.headers.unwrap().set_headers;
    let value = |name: &str| {
        let field = fields
            .iter()
            .filter_map(|field| field.header.as_ref())
            .find(|field| field.key == name)?;
        Some(String::from_utf8_lossy(&field.raw_value).into_owned())
    };
    assert_eq!(value("age").as_deref(), Some("10"));
    assert_eq!(
        value("cache-status").as_deref(),
        Some("afterimage; hit; ttl=50")
    );
    assert_eq!(value("content-type").as_deref(), Some("image/png"));
    assert!(conversation.falls_silent().await?);
    Ok(())
}

#[tokio::test]
async fn an_entry_is_forwarded_from_the_second_in_which_it_is_stale() -> Result<()> {
    let processor = Processor::start().await?;
    processor.fill(&path(1)).await?;
    processor.clock.advance(59);
    let mut fresh = processor.open("images").await?;
    immediate(fresh.ask(get(&path(1))).await?)?;
    processor.clock.advance(1);
    let mut stale = processor.open("images").await?;
    let answer = stale.ask(get(&path(1))).await?;
    assert!(matches!(answer.response, Some(Response::RequestHeaders(_))));
    Ok(())
}

#[tokio::test]
async fn a_bypass_asks_to_be_left_out_of_the_rest() -> Result<()> {
    let processor = Processor::start().await?;
    for (policy, message) in [
        ("images", request("POST", &path(1))),
        ("images", get("/no")),
        ("unknown", get(&path(1))),
        ("bypass", get(&path(1))),
    ] {
        let mut conversation = processor.open(policy).await?;
        let answer = conversation.ask(message).await?;
        let mode = answer.mode_override.context("a mode")?;
        assert_eq!(mode.response_header_mode(), HeaderSendMode::Skip);
        assert_eq!(mode.response_body_mode(), BodySendMode::None);
        // A filter that does not allow the override goes on asking, and is answered.
        let answer = conversation.ask(image(3)).await?;
        assert!(matches!(
            answer.response,
            Some(Response::ResponseHeaders(_))
        ));
    }
    assert_eq!(processor.count("afterimage_requests_total{"), 4);
    Ok(())
}

#[tokio::test]
async fn a_stream_that_ends_in_the_middle_of_a_body_leaves_nothing() -> Result<()> {
    let processor = Processor::start().await?;
    let mut conversation = processor.open("images").await?;
    conversation.ask(get(&path(1))).await?;
    conversation.ask(image(PNG.len())).await?;
    conversation.ask(body(&PNG[..9], false)).await?;
    assert!(conversation.falls_silent().await?);
    wait::until("the abort", Duration::from_secs(10), async || {
        processor.count("afterimage_fills_total{result=\"aborted\",reason=\"cut\"") == 1
    })
    .await?;
    let mut again = processor.open("images").await?;
    let answer = again.ask(get(&path(1))).await?;
    assert!(matches!(answer.response, Some(Response::RequestHeaders(_))));
    Ok(())
}

/// Any message that Envoy's protocol knows, sensible here or not.
fn any_message() -> impl Strategy<Value = ProcessingRequest> {
    let trailers = || HttpTrailers::default();
    prop_oneof![
        Just(get(&path(7))),
        Just(request("HEAD", &path(7))),
        Just(request("\u{1}", "")),
        Just(message(Request::RequestHeaders(HttpHeaders::default()))),
        Just(image(PNG.len())),
        Just(image(3)),
        Just(message(Request::ResponseHeaders(HttpHeaders::default()))),
        Just(body(PNG, true)),
        Just(body(PNG, false)),
        Just(body(b"", true)),
        Just(message(Request::RequestBody(HttpBody::default()))),
        Just(message(Request::RequestTrailers(trailers()))),
        Just(message(Request::ResponseTrailers(trailers()))),
    ]
}

/// Whatever order messages come in, each has one answer, of its own phase or a terminal one, and
/// after a terminal one there is silence.
#[tokio::test]
async fn every_message_in_any_order_has_exactly_one_answer() -> Result<()> {
    let processor = Processor::start().await?;
    processor.fill(&path(7)).await?;
    let mut runner = TestRunner::deterministic();
    let sequences = proptest::collection::vec(any_message(), 1..12);
    for _ in 0..500 {
        let sequence = sequences
            .new_tree(&mut runner)
            .map_err(anyhow::Error::msg)?
            .current();
        let mut conversation = processor.open("images").await?;
        for message in sequence {
            let asked = message.request.clone().context("a request")?;
            let answer = conversation.ask(message).await?;
            let answer = answer.response.context("an answer")?;
            let is_terminal = matches!(
                answer,
                Response::ImmediateResponse(_) | Response::StreamedImmediateResponse(_)
            );
            let fits = matches!(
                (&asked, &answer),
                (Request::RequestHeaders(_), Response::RequestHeaders(_))
                    | (Request::ResponseHeaders(_), Response::ResponseHeaders(_))
                    | (Request::RequestBody(_), Response::RequestBody(_))
                    | (Request::ResponseBody(_), Response::ResponseBody(_))
                    | (Request::RequestTrailers(_), Response::RequestTrailers(_))
                    | (Request::ResponseTrailers(_), Response::ResponseTrailers(_))
            );
            assert!(fits || is_terminal, "{asked:?} was answered {answer:?}");
            if is_terminal {
                // What Envoy might still say is not heard any more.
                let _ = conversation.sender.send(image(3)).await;
                break;
            }
        }
        assert!(conversation.falls_silent().await?);
    }
    Ok(())
}

#[tokio::test]
async fn unsafe_methods_on_one_policy_leave_another_one_alone() -> Result<()> {
    let processor = Processor::start().await?;
    processor.fill_with("images", &path(1)).await?;
    processor.clock.advance(1);
    // As many invalidations as there may be, and one more.
    for number in 0..11 {
        let mut one = processor.open("files").await?;
        let path = format!("/nothing{number}");
        one.ask(request("POST", &path)).await?;
        one.ask(image(PNG.len())).await?;
    }
    let mut again = processor.open("images").await?;
    immediate(again.ask(get(&path(1))).await?)?;
    Ok(())
}
