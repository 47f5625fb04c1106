//! Requests that this cache makes itself: to refresh an entry without a client waiting for it, or
//! before one is answered.

use bytes::Bytes;
use http::header::{CONNECTION, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Forward, Kind, Policy, RequestHead};
use crate::endpoint::Endpoint;

/// Where a policy's responses come from, for requests that do not go through the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// The server.
    pub endpoint: Endpoint,
    /// Before every path: empty, or a path without a slash at its end.
    pub base_path: String,
    /// `Host` of every request; `None`: the one of the request that is being answered.
    pub host: Option<HeaderValue>,
    /// Which requests that their clients leave are completed.
    pub completion: Completion,
}

/// Which requests a request of our own completes when their clients leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[cfg_attr(test, derive(serde::Serialize, schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Completion {
    /// Those that others wait for.
    Followers,
    /// All that may fill, so that what was begun is stored.
    Always,
}

/// A GET to an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// Whom to ask.
    pub endpoint: Endpoint,
    /// Path with its query.
    pub path: Bytes,
    /// All its fields, `host` included.
    pub headers: HeaderMap,
}

/// Fields that are about one connection (RFC 9110 section 7.6.1), beside those that `Connection`
/// names.
const OF_A_CONNECTION: [HeaderName; 8] = [
    CONNECTION,
    HOST,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

impl Policy {
    /// What the proxy would send on for `request` with the changes in `forward`, as a request of our
    /// own; `None` when the policy names no upstream, or the request no host.
    pub fn fetch(&self, request: &RequestHead, forward: &Forward) -> Option<Fetch> {
        let upstream = self.upstream.as_ref()?;
        let host = match &upstream.host {
            Some(host) => host.clone(),
            None => HeaderValue::from_maybe_shared(request.authority.clone())
                .ok()
                .filter(|host| !host.is_empty())?,
        };
        let path = forward.path.as_ref().unwrap_or(&request.path);
        let path = match &self.kind {
            // The proxy takes it out, too.
            Kind::Imgproxy(imgproxy) => path.strip_prefix(imgproxy.path_prefix.as_bytes())?,
            Kind::Generic(_) => path.as_ref(),
        };
        let named: Vec<HeaderName> = request
            .headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .collect();
        let mut headers: HeaderMap = request
            .headers
            .iter()
            .filter(|(name, _)| {
                !forward.remove.contains(name)
                    && !OF_A_CONNECTION.contains(name)
                    && !named.contains(name)
                    && !name.as_str().starts_with("x-envoy-")
            })
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        for (name, value) in &forward.set {
            headers.insert(name.clone(), value.clone());
        }
        headers.insert(HOST, host);
        Some(Fetch {
            endpoint: upstream.endpoint.clone(),
            path: [upstream.base_path.as_bytes(), path].concat().into(),
            headers,
        })
    }
}

#[cfg(test)]
mod tests;
