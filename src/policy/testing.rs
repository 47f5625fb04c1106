//! Makes requests and policies for the tests of this module.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};

use super::{Cookies, Decision, Generic, Imgproxy, Kind, Lookup, Policy, RequestHead, Signing};
use crate::clock::Timestamp;

/// Cases for each cheap property; the variable `PROPTEST_CASES` overrides it. A failing case is
/// printed in its smallest form and tried first from then on. (`proptest-regressions/` is not kept:
/// a fault gets a test with a name.)
#[cfg(test)]
pub(crate) const CASES: u32 = 100_000;

pub(crate) const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

pub(crate) fn imgproxy() -> Imgproxy {
    Imgproxy {
        signing: Signing::Unsigned,
        ..Imgproxy::default()
    }
}

pub(crate) fn generic() -> Generic {
    Generic {
        invalidates: false,
        ..Generic::default()
    }
}

pub(crate) fn policy(kind: Kind) -> Policy {
    Policy {
        name: "images".into(),
        namespace: "images".into(),
        epoch: 0,
        kind,
        cookies: Cookies::Ignore,
        collapses: false,
        ..Policy::default()
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
