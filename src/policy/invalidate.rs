//! Decides what the answer to an unsafe method invalidates (RFC 9111 section 4.4).

use fluent_uri::{Uri, UriRef};
use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderName, Method};

use super::{Kind, Policy, Provenance, RequestHead, ResponseHead, generic};
use crate::entry::Source;

/// The fields of a response that name what else has changed.
const LOCATIONS: [HeaderName; 2] = [LOCATION, CONTENT_LOCATION];

impl Policy {
    /// Whether a successful answer to this method invalidates what is stored, because the method is
    /// not known to be safe (RFC 9110 section 9.2.1).
    pub(super) fn watches(&self, method: &Method) -> bool {
        let Kind::Generic(generic) = &self.kind else {
            return false;
        };
        let is_safe = matches!(
            *method,
            Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE
        );
        generic.invalidates && !is_safe
    }

    /// The sources whose entries `response` invalidates: that of `request`, and those that the
    /// response names on the same host. There are none without success, or if the proxy made the
    /// answer itself.
    pub fn invalidated(&self, request: &RequestHead, response: &ResponseHead) -> Vec<Source> {
        let is_success = response.status.is_success() || response.status.is_redirection();
        if !is_success || response.provenance == Provenance::Local {
            return Vec::new();
        }
        let (path, _) = request.path_and_query();
        let mut sources: Vec<_> = self.source_of(request, path).into_iter().collect();
        for name in LOCATIONS {
            for value in response.headers.get_all(&name) {
                let source = value
                    .to_str()
                    .ok()
                    .and_then(|reference| path_on_same_host(request, reference))
                    .and_then(|path| self.source_of(request, path.as_bytes()));
                if let Some(source) = source
                    && !sources.contains(&source)
                {
                    sources.push(source);
                }
            }
        }
        sources
    }

    fn source_of(&self, request: &RequestHead, path: &[u8]) -> Option<Source> {
        let Kind::Generic(_) = &self.kind else {
            return None;
        };
        Some(self.source(generic::source(&request.key_host(), path)))
    }
}

/// Resolves a reference against the request's URI and returns its path without query; `None` if it
/// is malformed or on another host. The scheme is not compared, because it is not in the key.
fn path_on_same_host(request: &RequestHead, reference: &str) -> Option<String> {
    let host = std::str::from_utf8(&request.authority).ok()?;
    let (path, _) = request.path_and_query();
    let path = std::str::from_utf8(path).ok()?;
    // The request's scheme is not known, and any will do.
    let base = format!("http://{host}{path}");
    let base = Uri::parse(base.as_str()).ok()?;
    let resolved = UriRef::parse(reference).ok()?.resolve_against(&base).ok()?;
    let default_port = match resolved.scheme().as_str() {
        "https" => ":443",
        _ => ":80",
    };
    let without_default = |authority: &str| {
        let authority = authority.to_ascii_lowercase();
        match authority.strip_suffix(default_port) {
            Some(host) => host.to_owned(),
            None => authority,
        }
    };
    let is_same = without_default(resolved.authority()?.as_str()) == without_default(host);
    is_same.then(|| resolved.path().as_str().to_owned())
}

#[cfg(test)]
mod tests;
