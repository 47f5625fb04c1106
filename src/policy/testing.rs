//! Makes requests and policies for the tests of this module.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::{
    Authorization, Clients, Cookies, Decision, FreshnessRules, Generic, Imgproxy, Kind, Lookup,
    MediaRange, Policy, Query, RequestHead, Signing, Statuses, StoreRules, Validators, Verify,
};
use crate::clock::Timestamp;

/// Cases for each cheap property; the variable `PROPTEST_CASES` overrides it. A failing case is
/// printed in its smallest form and tried first from then on. (`proptest-regressions/` is not kept:
/// a fault gets a test with a name.)
#[cfg(test)]
pub(crate) const CASES: u32 = 100_000;

pub(crate) const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

pub(crate) fn imgproxy() -> Imgproxy {
    Imgproxy {
        path_prefix: String::new(),
        signing: Signing::Unsigned,
        arguments_separator: ":".into(),
        only_presets: false,
        base64_includes_filename: false,
        formats: Vec::new(),
        enforced: Vec::new(),
        dpr_steps: Vec::new(),
        width_steps: Vec::new(),
        forward_headers: Vec::new(),
    }
}

pub(crate) fn generic() -> Generic {
    Generic {
        query: Query::All,
        headers: Vec::new(),
        invalidates: false,
    }
}

pub(crate) fn policy(kind: Kind) -> Policy {
    Policy {
        name: "images".into(),
        namespace: "images".into(),
        epoch: 0,
        key_host: false,
        kind,
        cookies: Cookies::Ignore,
        authorization: Authorization::Bypass,
        clients: Clients::Ignored,
        targeted: vec![HeaderName::from_static("cdn-cache-control")],
        validators: Validators::Upstream,
        via: None,
        shows_detail: false,
        collapses: false,
        upstream: None,
        store: StoreRules {
            statuses: Statuses::Only(vec![StatusCode::OK]),
            content_codings: false,
            variants: 0,
            hit_for_miss: Duration::from_secs(30),
            content_types: vec![MediaRange {
                main: "image".into(),
                sub: None,
            }],
            verify: Verify::Image,
            exclude_headers: Vec::new(),
        },
        freshness: FreshnessRules {
            default: None,
            floor: Duration::ZERO,
            ceiling: Duration::from_secs(30 * 24 * 3600),
            heuristic: None,
            negative: Vec::new(),
            stale_while_revalidate: None,
            stale_if_error: None,
            fallback_max_age: None,
        },
    }
}

pub(crate) fn get(path: impl AsRef<[u8]>, headers: &[(&str, &str)]) -> RequestHead {
    RequestHead {
        method: Method::GET,
        authority: Bytes::from_static(b"img.example"),
        path: Bytes::copy_from_slice(path.as_ref()),
        headers: headers
            .iter()
            .map(|(name, value)| {
                let name: HeaderName = name.parse().expect("a field name");
                (name, HeaderValue::from_str(value).expect("a field value"))
            })
            .collect(),
        has_body: false,
        peer: None,
    }
}

pub(crate) fn lookup(policy: &Policy, request: &RequestHead) -> Lookup {
    match policy.decide(request, NOW) {
        Decision::Lookup(lookup) => *lookup,
        other => panic!("{other:?} for {request:?}"),
    }
}

#[cfg(test)]
pub(crate) fn bypass(policy: &Policy, request: &RequestHead) -> super::BypassReason {
    match policy.decide(request, NOW) {
        Decision::Bypass(reason) => reason,
        other => panic!("{other:?} for {request:?}"),
    }
}

/// The fields that the upstream gets when the request leads.
#[cfg(test)]
pub(crate) fn forwarded(policy: &Policy, request: &RequestHead) -> Vec<(String, String)> {
    let forward = lookup(policy, request).forward;
    let mut headers = request.headers.clone();
    for name in &forward.remove {
        assert!(
            headers.remove(name).is_some(),
            "{name} is not there to be removed"
        );
    }
    for (name, value) in forward.set {
        headers.insert(name, value);
    }
    let mut fields: Vec<_> = headers
        .iter()
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.to_string(), value)
        })
        .collect();
    fields.sort();
    fields
}
