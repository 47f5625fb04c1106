//! Responses that vary by request fields outside the key (RFC 9111 section 4.1).

use anyhow::Result;
use reqwest::Method;

use crate::scripted::{NOT_STORED, STORED, commits_reach, entries, generic};
use crate::support::client::{Answer, Client};
use crate::support::origin::{Origin, Script, Seen};
use crate::support::stack::Store;

const VARY_STORED: &str = "afterimage; fwd=vary-miss; stored";
const LANGUAGE: &str = "accept-language";

async fn ask(client: &Client, language: Option<&str>) -> Result<Answer> {
    let request = client.request(Method::GET, "/a");
    client
        .send(match language {
            Some(language) => request.header(LANGUAGE, language),
            None => request,
        })
        .await
}

/// Answers in the language that it is asked for.
fn in_language(seen: &Seen) -> Script {
    let language = seen.header(LANGUAGE).unwrap_or("none");
    let body = [b"\x89PNG\r\n\x1a\n", language.as_bytes()].concat();
    Script::ok("image/png", body).header("vary", "Accept-Language")
}

fn language(answer: &Answer) -> &[u8] {
    &answer.body[8..]
}

#[tokio::test]
async fn rfc9111_4_1_everyone_gets_what_was_stored_for_the_same_request_fields() -> Result<()> {
    for store in [Store::Local, Store::Garage] {
        let origin = Origin::start().await?;
        origin.respond_with("/a", in_language);
        let stack = generic(&origin, store).start().await?;
        let wanted = [Some("de"), Some("en, fr"), None];
        for (index, wanted) in wanted.into_iter().enumerate() {
            let miss = ask(&stack.client, wanted).await?;
            let expected = if index == 0 { STORED } else { VARY_STORED };
            assert_eq!(miss.cache_status(), expected, "{wanted:?}");
            commits_reach(&stack, index + 1).await?;
        }
        for client in [stack.client.clone(), stack.http2()?] {
            for wanted in wanted {
                let hit = ask(&client, wanted).await?;
                assert!(hit.is_hit(), "{wanted:?}: {hit:?}");
                assert_eq!(language(&hit), wanted.unwrap_or("none").as_bytes());
                assert_eq!(hit.header("vary"), Some("Accept-Language"));
            }
            // Spacing means nothing in this field.
            let hit = ask(&client, Some("en,fr")).await?;
            assert_eq!((hit.is_hit(), language(&hit)), (true, &b"en, fr"[..]));
            let head = client.request(Method::HEAD, "/a").header(LANGUAGE, "de");
            let head = client.send(head).await?;
            assert!(head.is_hit());
            assert_eq!(head.header("content-length"), Some("10"));
        }
        assert_eq!(origin.requests_for("/a").len(), 3);
    }
    Ok(())
}

#[tokio::test]
async fn strangers_cannot_fill_the_store_with_variants() -> Result<()> {
    let origin = Origin::start().await?;
    origin.respond_with("/a", in_language);
    let stack = generic(&origin, Store::Local)
        .policies("images: {kind: generic, store: {variants: 2}}")
        .start()
        .await?;
    for (index, wanted) in ["de", "en"].into_iter().enumerate() {
        ask(&stack.client, Some(wanted)).await?;
        commits_reach(&stack, index + 1).await?;
    }
    for number in 0..20 {
        let answer = ask(&stack.client, Some(&format!("x-{number}"))).await?;
        assert_eq!(answer.cache_status(), "afterimage; fwd=vary-miss");
    }
    for wanted in ["de", "en"] {
        assert!(ask(&stack.client, Some(wanted)).await?.is_hit());
    }
    // Two responses, and what says by which fields they are told apart.
    assert_eq!(entries(&stack)?.len(), 3);
    Ok(())
}

#[tokio::test]
async fn an_origin_that_stops_to_vary_is_stored_once_again() -> Result<()> {
    let origin = Origin::start().await?;
    origin.respond_with("/a", in_language);
    let stack = generic(&origin, Store::Local).start().await?;
    ask(&stack.client, Some("de")).await?;
    commits_reach(&stack, 1).await?;
    origin.respond_with("/a", |seen| in_language(seen).without("vary"));
    let miss = ask(&stack.client, Some("en")).await?;
    assert_eq!(miss.cache_status(), VARY_STORED);
    commits_reach(&stack, 2).await?;
    let hit = ask(&stack.client, Some("fr")).await?;
    assert_eq!((hit.is_hit(), language(&hit)), (true, &b"en"[..]));
    Ok(())
}

#[tokio::test]
async fn imgproxy_s_policies_know_no_variants_beside_the_key() -> Result<()> {
    let origin = Origin::start().await?;
    let path = "/insecure/rs:fill:1:1/plain/local:///a.png@png";
    // What is removed on the way cannot make a difference; `*` can.
    origin.respond_with(path, |seen| in_language(seen).header("vary", "*"));
    let stack = generic(&origin, Store::Local)
        .policies("images: {kind: imgproxy, unsigned: true}")
        .start()
        .await?;
    for _ in 0..2 {
        assert_eq!(stack.get(path).await?.cache_status(), NOT_STORED);
    }
    Ok(())
}
