//! Where a policy's upstream is.

use http::HeaderValue;
use http::uri::Authority;
#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use crate::endpoint::Endpoint;
use crate::policy::{Completion, Upstream};
use crate::written::{As, Optional, Written};

#[derive(Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(super) struct RawUpstream {
    /// Where it is: `http://host:port`, `https://host`, both with a path before all others if need be,
    /// or `unix:/path/of/socket`.
    #[serde(with = "As::<UpstreamUrl>")]
    url: (Endpoint, String),
    /// The `Host` of these requests.
    #[cfg_attr(test, schemars(extend("x-default" = "the client's")))]
    #[serde(default, with = "Optional::<Host>")]
    host: Option<HeaderValue>,
    /// Which requests are completed when their clients leave.
    #[serde(default = "default_completion")]
    completion: Completion,
}

fn default_completion() -> Completion {
    Completion::Followers
}

impl From<RawUpstream> for Upstream {
    fn from(raw: RawUpstream) -> Self {
        let (endpoint, base_path) = raw.url;
        Self {
            endpoint,
            base_path,
            host: raw.host,
            completion: raw.completion,
        }
    }
}

/// A service and the path before all others.
struct UpstreamUrl;

impl Written for UpstreamUrl {
    type Value = (Endpoint, String);

    #[cfg(test)]
    const NAME: &'static str = "URL";
    const EXPECTED: &'static str =
        "`http://host:port`, `https://host`, one of them with a path, or `unix:/path`";

    fn read(text: &str) -> Option<(Endpoint, String)> {
        let authority = text.find("://").map(|at| at + 3);
        let path = authority.and_then(|start| Some(start + text[start..].find('/')?));
        let (endpoint, base_path) = text.split_at(path.unwrap_or(text.len()));
        let base_path = base_path.trim_end_matches('/');
        if base_path.contains(['?', '#']) {
            return None;
        }
        Some((endpoint.parse().ok()?, base_path.to_owned()))
    }

    #[cfg(test)]
    fn write((endpoint, base_path): &(Endpoint, String)) -> String {
        format!("{endpoint}{base_path}")
    }
}

/// What `Host` says.
struct Host;

impl Written for Host {
    type Value = HeaderValue;

    #[cfg(test)]
    const NAME: &'static str = "host";
    const EXPECTED: &'static str = "`host` or `host:port`";

    fn read(text: &str) -> Option<HeaderValue> {
        let host = text.parse::<Authority>().ok()?;
        let is_bare = !host.as_str().contains('@');
        is_bare.then(|| HeaderValue::from_str(host.as_str()).ok())?
    }

    #[cfg(test)]
    fn write(value: &HeaderValue) -> String {
        String::from_utf8_lossy(value.as_bytes()).into_owned()
    }
}
