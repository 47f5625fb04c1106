//! Makes the keys of generic policies, whose upstream is an ordinary HTTP server.
//!
//! Paths and parameters go into the key as received: it interprets neither.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};
use percent_encoding::percent_decode;

use super::decide::Keyed;
use super::request::is_precondition_or_range;
use super::{BypassReason, Forward, Generic, Query, RequestHead};
use crate::entry::KeyHasher;

/// Fields that frameworks read in place of the method, the host, the path or the port. With them,
/// one client could choose what all others get. (`X-Forwarded-Proto` is Envoy's own and stays.)
const OVERRIDES: [&str; 17] = [
    "forwarded",
    "x-forwarded-host",
    "x-forwarded-path",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-forwarded-uri",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-host",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
    "x-script-name",
];

impl Generic {
    /// Reads the key of `request`, and how to change it when it is forwarded.
    pub(super) fn keyed(&self, request: &RequestHead) -> Result<Keyed, BypassReason> {
        let (path, query) = request.path_and_query();
        if !path.starts_with(b"/") {
            return Err(BypassReason::Unparsable);
        }
        let host = request.key_host();
        Ok(Keyed {
            source: source(&host, path),
            digest: self.digest(&host, path, query, &request.headers),
            expires: None,
            forward: Forward {
                set: Vec::new(),
                remove: request
                    .headers
                    .keys()
                    .filter(|name| self.removes(name))
                    .cloned()
                    .collect(),
                path: query.and_then(|query| self.forwarded_path(path, query)),
            },
        })
    }

    /// Whether field `name` is in the key or does not reach the upstream, so that varying by it
    /// needs no variant.
    pub(super) fn controls(&self, name: &HeaderName) -> bool {
        self.headers.contains(name) || self.removes(name)
    }

    fn digest(
        &self,
        host: &[u8],
        path: &[u8],
        query: Option<&[u8]>,
        headers: &HeaderMap,
    ) -> [u8; 32] {
        let mut hasher = KeyHasher::new("afterimage generic key 1");
        hasher.field(host);
        hasher.field(path);
        match &self.query {
            Query::All => {
                hasher.field(b"all");
                hasher.list(query);
            }
            Query::None => hasher.field(b"none"),
            Query::Only(names) => {
                hasher.field(b"only");
                hasher.list(named(query.unwrap_or_default(), names));
            }
        }
        for name in &self.headers {
            hasher.field(name.as_str().as_bytes());
            hasher.list(headers.get_all(name).iter().map(|value| value.as_bytes()));
        }
        hasher.finish()
    }

    /// The path with those parameters of the query that are in the key; `None` if all are.
    fn forwarded_path(&self, path: &[u8], query: &[u8]) -> Option<Bytes> {
        let kept: Vec<&[u8]> = match &self.query {
            Query::All => return None,
            Query::None => Vec::new(),
            Query::Only(names) => named(query, names).collect(),
        };
        let mut forwarded = path.to_vec();
        for (index, parameter) in kept.iter().enumerate() {
            forwarded.push(if index == 0 { b'?' } else { b'&' });
            forwarded.extend_from_slice(parameter);
        }
        Some(forwarded.into())
    }

    /// Whether leaders are forwarded without field `name`. `Accept-Encoding` is removed, so that
    /// the upstream answers without content coding and one entry suits every client.
    fn removes(&self, name: &HeaderName) -> bool {
        is_precondition_or_range(name)
            || (name == header::ACCEPT_ENCODING
                || name == header::COOKIE
                || OVERRIDES.contains(&name.as_str()))
                && !self.headers.contains(name)
    }
}

/// Digest of the source that all queries of one path share.
pub(super) fn source(host: &[u8], path: &[u8]) -> [u8; 32] {
    let mut hasher = KeyHasher::new("afterimage generic source 1");
    hasher.field(host);
    hasher.field(path);
    hasher.finish()
}

/// The parameters of `query` that an upstream might take for one of `names`, in their order.
fn named<'a>(query: &'a [u8], names: &'a [String]) -> impl Iterator<Item = &'a [u8]> {
    query
        .split(|byte| *byte == b'&')
        .filter(|parameter| is_named(parameter, names))
}

/// Whether an upstream might take `parameter` for one of `names`: some decode names, some take a
/// semicolon for the end of a parameter. Such a parameter is in the key as a whole, undecoded.
fn is_named(parameter: &[u8], names: &[String]) -> bool {
    parameter.split(|byte| *byte == b';').any(|parameter| {
        let name = parameter
            .split(|byte| *byte == b'=')
            .next()
            .unwrap_or_default();
        let decoded: Cow<'_, [u8]> = percent_decode(name).into();
        names
            .iter()
            .any(|wanted| wanted.as_bytes() == name || wanted.as_bytes() == decoded.as_ref())
    })
}

#[cfg(test)]
mod tests;
