//! One policy of the configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER_PERMISSIVE;
use http::uri::Authority;
use http::{HeaderName, HeaderValue, StatusCode};
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Unexpected};

use super::value::{Problem, Seconds, SecretSource};
use crate::policy::{
    Authorization, Clients, Completion, Cookies, FreshnessRules, Generic, Heuristic, ImageFormat,
    Imgproxy, KeyPair, Kind, MediaRange, Policy, Query, Signing, Statuses, StoreRules, Upstream,
    Validators, Verify,
};
use crate::transport::Endpoint;

/// imgproxy says a year about anything; nobody should have to wait that long for a mistake to go.
const CEILING: Duration = Duration::from_secs(30 * 24 * 3600);

/// What routes can choose by a name. `kind` is required; everything else has a default that is
/// right for imgproxy.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawPolicy {
    /// What the URLs mean: `imgproxy` or `generic`. No default.
    kind: Option<PolicyKind>,
    /// First part of the object names; policies with the same one share entries. Default: the
    /// policy's name.
    namespace: Option<String>,
    /// Raise it to forget everything under the namespace. Default 1.
    epoch: Option<u32>,
    /// `bypass`: a request with a `Cookie` is not looked up. `ignore`: it plays no role, and is not
    /// sent on with requests that fill. Default `ignore` for imgproxy, `bypass` for generic.
    cookies: Option<RawCookies>,
    /// `bypass`: a request with `Authorization` is not looked up. `rfc9111`: its answer is stored
    /// where it says that it may be shared (RFC 9111 section 3.5). Default `bypass`.
    authorization: Option<RawAuthorization>,
    /// Whether the directives of a request are obeyed (`no-cache`, `Pragma` too, `no-store`, `max-age`,
    /// `min-fresh`, `max-stale`, `only-if-cached`): `ignore`, `obey`, or `{trusted: [NETWORK]}` for
    /// peers of Envoy in these networks (`10.0.0.0/8`; Envoy must send the attribute
    /// `source.address`). Whoever is obeyed can make the upstream work. Default `ignore`.
    client_cache_control: Option<RawClientControl>,
    /// Whose entity tags clients see. `content`: ours, made of the bytes; a miss has none.
    /// `upstream`: the upstream's. Default `content` for imgproxy, which sends one tag for all
    /// formats and sizes of a source, `upstream` for generic.
    validators: Option<RawValidators>,
    /// Fields that stand in the place of `Cache-Control` where a response has them, first wins
    /// (RFC 9213). Default `[CDN-Cache-Control]`.
    targeted_cache_control: Option<Vec<String>>,
    /// A name of ours for `Via` (RFC 9110 section 7.6.3), such as `afterimage`. Default none: no `Via`.
    via: Option<String>,
    /// Whether `Cache-Status` has a `detail` with the reason. Default false.
    cache_status_detail: bool,
    /// Whether requests for the same wait for the first one and are answered with what it gets.
    /// Default true.
    collapse: Option<bool>,
    /// Where the routes' upstream is, for requests of our own: they refresh entries in the background
    /// (`stale_while_revalidate`), ask about stale entries over `limits.immediate_cap`, and complete
    /// what others wait for when its client leaves. Default none: one client's request does the first,
    /// the second is not done, and one of those that wait begins anew.
    upstream: Option<RawUpstream>,
    key: RawKey,
    store: RawStoreRules,
    freshness: RawFreshness,
    /// generic: whether a successful answer to POST, PUT, DELETE, PATCH or an unknown method
    /// invalidates what is stored for its path, all queries included (RFC 9111 section 4.4). Default
    /// true.
    invalidate_on_unsafe: Option<bool>,
    /// imgproxy: what comes before the signature in the path that Envoy's clients send, such as
    /// `/thumbs`. Default none.
    path_prefix: Option<String>,
    /// imgproxy: `true` when it runs without keys, so that the first path segment means nothing.
    /// Without it and without `signature` that segment stays in the key. Default false.
    unsigned: bool,
    /// imgproxy: its keys and salts; every request is verified before it is looked up.
    signature: Option<RawSignature>,
    /// imgproxy: formats that it chooses by `Accept` (`IMGPROXY_AUTO_*`): `jxl`, `avif`, `webp`.
    /// Default none.
    formats: Vec<RawFormat>,
    /// imgproxy: formats that it chooses even over an explicit one (`IMGPROXY_ENFORCE_*`).
    /// Default none.
    enforced_formats: Vec<RawFormat>,
    /// imgproxy: values that the `DPR` hint is rounded up to, rising, at most 8. Default none: the
    /// hint does not reach imgproxy.
    dpr_steps: Vec<f64>,
    /// imgproxy: pixels that the `Width` hint is rounded up to, rising. Default none.
    width_steps: Vec<u32>,
    /// imgproxy: request headers that reach it although they are not in the key; name only what
    /// does not change the image. Default none.
    forward_headers: Vec<String>,
    /// imgproxy: `IMGPROXY_ARGUMENTS_SEPARATOR`. Default `:`.
    arguments_separator: Option<String>,
    /// imgproxy: `IMGPROXY_ONLY_PRESETS`. Default false.
    only_presets: bool,
    /// imgproxy: `IMGPROXY_BASE64_URL_INCLUDES_FILENAME`. Default false.
    base64_url_includes_filename: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUpstream {
    /// `http://HOST[:PORT]`, `https://HOST[:PORT]`, both with a path before all others if need be, or
    /// `unix:/PATH/OF/SOCKET`. Required.
    url: String,
    /// Its `Host`. Default: the one that the client asked for.
    host: Option<String>,
    /// Which requests are completed when their clients leave: `followers`, those that others wait for,
    /// or `always`, so that what was begun is stored. Default `followers`.
    completion: Option<RawCompletion>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawCompletion {
    Followers,
    Always,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PolicyKind {
    Imgproxy,
    Generic,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawCookies {
    Bypass,
    Ignore,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawAuthorization {
    Bypass,
    Rfc9111,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawClientControl {
    Word(String),
    Trusted(RawTrusted),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTrusted {
    trusted: Vec<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawValidators {
    Content,
    Upstream,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawFormat {
    Jxl,
    Avif,
    Webp,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawKey {
    /// imgproxy: whether the host is in the key. generic: always. Default false.
    host: bool,
    /// generic: `all`, `none`, or a list of parameter names. Default `all`.
    query: Option<RawQuery>,
    /// generic: request headers in the key. Default none.
    headers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawQuery {
    Word(String),
    Only(Vec<String>),
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawStoreRules {
    /// Statuses that are stored where the response has explicit freshness: a list, or `any` for
    /// generic. Default `[200]`.
    statuses: Option<RawStatuses>,
    /// Whether a response with `Content-Encoding` is stored as it is. Default false.
    content_codings: bool,
    /// generic: how many responses are kept for one URL that differ by request headers outside the
    /// key, where `Vary` names them; 0 to 64. With 0 such responses are not stored. Default 16.
    variants: Option<usize>,
    /// After a response that may not be stored, for how long requests for the same do not wait for each
    /// other (hit-for-miss); errors of the upstream (408, 429, 5xx) do not count. Default `30s`.
    hit_for_miss: Option<Seconds>,
    /// Media types that are stored, such as `image/*` or `text/css`. `image/svg+xml` must be named
    /// itself, because it can carry script. Default `[image/*]`.
    content_types: Option<Vec<String>>,
    /// `image`: the first bytes must be those of the declared format. `none`: only the length is
    /// checked. Default `image`.
    verify: Option<RawVerify>,
    /// Response headers that are not kept, for example those that a route adds. Default none.
    exclude_headers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawStatuses {
    Word(String),
    Only(Vec<u16>),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawVerify {
    Image,
    None,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawFreshness {
    /// For responses that say nothing about it. Default none: they are not stored.
    default: Option<Seconds>,
    /// At least. Default `0s`.
    floor: Option<Seconds>,
    /// At most. Default `30d`.
    ceiling: Option<Seconds>,
    /// Guesses from `Last-Modified` for responses that say nothing. Default none.
    heuristic: Option<RawHeuristic>,
    /// For statuses that say nothing, such as `404: 10s`; never for what a client could provoke for
    /// others (400, 403, 405, 408, 413, 414, 429, 431) and 5xx. Default none.
    negative: BTreeMap<NegativeStatus, Seconds>,
    /// After an entry was fresh, how long one request at a time asks about it while the others are
    /// served the stale one, where the response does not say (RFC 5861). Default `0s`.
    stale_while_revalidate: Option<Seconds>,
    /// After an entry was fresh, how long it may stand in for an error of the upstream, where the
    /// response does not say (RFC 5861). Default `0s`.
    stale_if_error: Option<Seconds>,
    /// imgproxy: its `IMGPROXY_FALLBACK_IMAGE_TTL`. An answer with this `max-age` is kept no
    /// longer, whatever `floor` and the stale windows say. Default none.
    fallback_max_age: Option<Seconds>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHeuristic {
    /// Of the time since the last change, 1 to 100. RFC 9111 section 4.2.2 suggests 10.
    percent: u32,
    /// At most.
    ceiling: Seconds,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawSignature {
    /// Any of them may have signed, so that keys can rotate. No default.
    pairs: Vec<RawPair>,
    /// Bytes of a signature, 1 to 32 (`IMGPROXY_SIGNATURE_SIZE`). Default 32.
    size: Option<usize>,
    /// Signatures that are taken as they are (`IMGPROXY_TRUSTED_SIGNATURES`). Default none.
    trusted: Vec<SecretSource>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPair {
    /// `IMGPROXY_KEY` in hex: literal, `{env: NAME}` or `{file: PATH}`.
    key: SecretSource,
    /// `IMGPROXY_SALT` in hex, likewise.
    salt: SecretSource,
}

impl RawPolicy {
    pub(super) fn validate(self, name: &str, problems: &mut Vec<Problem>) -> Option<Policy> {
        let mut check = Check {
            policy: name,
            before: problems.len(),
            problems,
        };
        check.name("", name);
        if name == "bypass" {
            check.problem("", "`bypass` is a word of its own, choose another name");
        }
        let namespace = self.namespace.as_deref().unwrap_or(name);
        check.name("namespace", namespace);
        let freshness = FreshnessRules {
            default: self.freshness.default.map(Seconds::get),
            floor: Seconds::or(self.freshness.floor, Duration::ZERO),
            ceiling: Seconds::or(self.freshness.ceiling, CEILING),
            heuristic: self.freshness.heuristic.as_ref().map(|raw| Heuristic {
                percent: raw.percent,
                ceiling: raw.ceiling.get(),
            }),
            negative: self
                .freshness
                .negative
                .iter()
                .map(|(status, lifetime)| (status.0, lifetime.get()))
                .collect(),
            stale_while_revalidate: self.freshness.stale_while_revalidate.map(Seconds::get),
            stale_if_error: self.freshness.stale_if_error.map(Seconds::get),
            fallback_max_age: self.freshness.fallback_max_age.map(Seconds::get),
        };
        if freshness
            .heuristic
            .is_some_and(|heuristic| !(1..=100).contains(&heuristic.percent))
        {
            check.problem("freshness.heuristic.percent", "is 1 to 100");
        }
        if freshness.floor > freshness.ceiling {
            check.problem("freshness.floor", "is above freshness.ceiling");
        }
        let store = self.store.validate(self.kind, &mut check);
        let targeted = match &self.targeted_cache_control {
            Some(names) => check.header_names("targeted_cache_control", names),
            None => vec![HeaderName::from_static("cdn-cache-control")],
        };
        let authorization = match self.authorization {
            None | Some(RawAuthorization::Bypass) => Authorization::Bypass,
            Some(RawAuthorization::Rfc9111) => Authorization::Rfc9111,
        };
        let collapses = self.collapse.unwrap_or(true);
        let upstream = self.upstream.as_ref().map(|raw| raw.validate(&mut check));
        if !collapses
            && let Some(Some(upstream)) = &upstream
            && upstream.completion == Completion::Always
        {
            check.problem("upstream.completion", "`always` needs `collapse: true`");
        }
        let clients = check.clients(self.client_cache_control.as_ref());
        let via = self.via.as_deref().and_then(|name| check.via(name));
        let validators = self.validators;
        let shows_detail = self.cache_status_detail;
        let key_host = self.key.host;
        let namespace = Arc::from(namespace);
        let epoch = self.epoch.unwrap_or(1);
        let cookies = self.cookies;
        let (kind, default_cookies, default_validators) = match self.kind {
            None => {
                check.problem("kind", "is required: `imgproxy` or `generic`");
                return None;
            }
            Some(PolicyKind::Imgproxy) => (
                self.imgproxy(&mut check).map(Kind::Imgproxy),
                Cookies::Ignore,
                Validators::Content,
            ),
            Some(PolicyKind::Generic) => (
                self.generic(&mut check).map(Kind::Generic),
                Cookies::Bypass,
                Validators::Upstream,
            ),
        };
        let is_valid = check.is_valid();
        Some(Policy {
            name: name.into(),
            namespace,
            epoch,
            key_host,
            kind: kind?,
            cookies: cookies.map_or(default_cookies, |cookies| match cookies {
                RawCookies::Bypass => Cookies::Bypass,
                RawCookies::Ignore => Cookies::Ignore,
            }),
            authorization,
            clients,
            via,
            targeted,
            validators: validators.map_or(default_validators, |validators| match validators {
                RawValidators::Content => Validators::Content,
                RawValidators::Upstream => Validators::Upstream,
            }),
            shows_detail,
            collapses,
            upstream: upstream.flatten().map(Arc::new),
            store,
            freshness,
        })
        .filter(|_| is_valid)
    }

    fn imgproxy(self, check: &mut Check<'_>) -> Option<Imgproxy> {
        if self.key.query.is_some() {
            check.problem(
                "key.query",
                "is for `kind: generic`; imgproxy ignores the query",
            );
        }
        if !self.key.headers.is_empty() {
            check.problem("key.headers", "is for `kind: generic`");
        }
        if self.invalidate_on_unsafe.is_some() {
            check.problem(
                "invalidate_on_unsafe",
                "is for `kind: generic`; imgproxy's methods change nothing",
            );
        }
        let path_prefix = self.path_prefix.unwrap_or_default();
        if !path_prefix.is_empty() && (!path_prefix.starts_with('/') || path_prefix.ends_with('/'))
        {
            check.problem(
                "path_prefix",
                "begins with a slash and does not end with one, such as `/thumbs`",
            );
        }
        let signing = match (self.unsigned, self.signature) {
            (true, Some(_)) => {
                check.problem("unsigned", "cannot be true together with `signature`");
                None
            }
            (true, None) => Some(Signing::Unsigned),
            (false, None) => Some(Signing::Unknown),
            (false, Some(signature)) => signature.validate(check),
        };
        let rising = |steps: &[f64]| steps.windows(2).all(|pair| pair[0] < pair[1]);
        if !rising(&self.dpr_steps)
            || self
                .dpr_steps
                .iter()
                .any(|step| !(*step > 0.0 && *step <= 8.0))
        {
            check.problem("dpr_steps", "rise, and are above 0 and at most 8");
        }
        if !self.width_steps.windows(2).all(|pair| pair[0] < pair[1])
            || self.width_steps.contains(&0)
        {
            check.problem("width_steps", "rise, and are above 0");
        }
        let arguments_separator = self.arguments_separator.unwrap_or_else(|| ":".to_owned());
        if arguments_separator.is_empty() || arguments_separator.contains('/') {
            check.problem("arguments_separator", "is not empty and has no slash");
        }
        Some(Imgproxy {
            path_prefix,
            signing: signing?,
            arguments_separator,
            only_presets: self.only_presets,
            base64_includes_filename: self.base64_url_includes_filename,
            formats: formats(&self.formats),
            enforced: formats(&self.enforced_formats),
            dpr_steps: self.dpr_steps,
            width_steps: self.width_steps,
            forward_headers: check.header_names("forward_headers", &self.forward_headers),
        })
    }

    fn generic(self, check: &mut Check<'_>) -> Option<Generic> {
        let of_imgproxy = [
            ("path_prefix", self.path_prefix.is_some()),
            ("unsigned", self.unsigned),
            ("signature", self.signature.is_some()),
            ("formats", !self.formats.is_empty()),
            ("enforced_formats", !self.enforced_formats.is_empty()),
            ("dpr_steps", !self.dpr_steps.is_empty()),
            ("width_steps", !self.width_steps.is_empty()),
            ("forward_headers", !self.forward_headers.is_empty()),
            ("arguments_separator", self.arguments_separator.is_some()),
            ("only_presets", self.only_presets),
            (
                "base64_url_includes_filename",
                self.base64_url_includes_filename,
            ),
        ];
        for (field, is_given) in of_imgproxy {
            if is_given {
                check.problem(field, "is for `kind: imgproxy`");
            }
        }
        let query = match self.key.query {
            None => Query::All,
            Some(RawQuery::Only(names)) => Query::Only(names),
            Some(RawQuery::Word(word)) => match word.as_str() {
                "all" => Query::All,
                "none" => Query::None,
                _ => {
                    check.problem("key.query", "is `all`, `none`, or a list of names");
                    return None;
                }
            },
        };
        Some(Generic {
            invalidates: self.invalidate_on_unsafe.unwrap_or(true),
            query,
            headers: check.header_names("key.headers", &self.key.headers),
        })
    }
}

impl RawUpstream {
    fn validate(&self, check: &mut Check<'_>) -> Option<Upstream> {
        let (endpoint, base_path) = match self.url.find("://").map(|at| at + 3) {
            None => (self.url.as_str(), ""),
            Some(start) => match self.url[start..].find('/') {
                None => (self.url.as_str(), ""),
                Some(slash) => self.url.split_at(start + slash),
            },
        };
        let base_path = base_path.trim_end_matches('/');
        let endpoint = endpoint.parse::<Endpoint>().ok();
        if endpoint.is_none() || base_path.contains(['?', '#']) {
            check.problem(
                "upstream.url",
                "give `http://host:port`, `https://host`, one of them with a path, or `unix:/path`",
            );
        }
        let host = self.host.as_ref().map(|host| {
            host.parse::<Authority>()
                .ok()
                .filter(|host| !host.as_str().contains('@'))
                .and_then(|host| HeaderValue::from_str(host.as_str()).ok())
        });
        if host == Some(None) {
            check.problem("upstream.host", "is not of the form `host` or `host:port`");
        }
        let completion = match self.completion {
            None | Some(RawCompletion::Followers) => Completion::Followers,
            Some(RawCompletion::Always) => Completion::Always,
        };
        Some(Upstream {
            completion,
            endpoint: endpoint?,
            base_path: base_path.to_owned(),
            host: host.flatten(),
        })
    }
}

impl RawSignature {
    fn validate(self, check: &mut Check<'_>) -> Option<Signing> {
        let size = self.size.unwrap_or(32);
        if !(1..=32).contains(&size) {
            check.problem("signature.size", "is 1 to 32 bytes");
        }
        if self.pairs.is_empty() {
            check.problem("signature.pairs", "needs at least one pair");
        }
        let mut pairs = Vec::new();
        for (index, pair) in self.pairs.iter().enumerate() {
            let key = check.hex(&format!("signature.pairs[{index}].key"), &pair.key);
            let salt = check.hex(&format!("signature.pairs[{index}].salt"), &pair.salt);
            if let (Some(key), Some(salt)) = (key, salt) {
                pairs.push(KeyPair::new(&key, &salt));
            }
        }
        let trusted = self
            .trusted
            .iter()
            .enumerate()
            .filter_map(|(index, source)| {
                let field = format!("signature.trusted[{index}]");
                check.secret(&field, source)
            })
            .collect();
        Some(Signing::Pairs {
            pairs,
            size,
            trusted,
        })
    }
}

impl RawStoreRules {
    fn validate(&self, kind: Option<PolicyKind>, check: &mut Check<'_>) -> StoreRules {
        let statuses = match &self.statuses {
            None => Statuses::Only(vec![StatusCode::OK]),
            Some(RawStatuses::Word(word)) if word == "any" => {
                if kind == Some(PolicyKind::Imgproxy) {
                    check.problem("store.statuses", "`any` is for `kind: generic`");
                }
                Statuses::Any
            }
            Some(RawStatuses::Word(_)) => {
                check.problem("store.statuses", "is `any`, or a list of statuses");
                Statuses::Any
            }
            Some(RawStatuses::Only(codes)) => Statuses::Only(
                codes
                    .iter()
                    .enumerate()
                    .filter_map(|(index, code)| {
                        let status = StatusCode::from_u16(*code).ok().filter(|status| {
                            *code >= 200 && !matches!(*code, 206 | 304) && status.as_u16() < 600
                        });
                        if status.is_none() {
                            check.problem(
                                &format!("store.statuses[{index}]"),
                                "is no status of a whole response, 200 to 599 but 206 and 304",
                            );
                        }
                        status
                    })
                    .collect(),
            ),
        };
        let default = ["image/*".to_owned()];
        let content_types = self
            .content_types
            .as_deref()
            .unwrap_or(&default)
            .iter()
            .enumerate()
            .filter_map(|(index, text)| {
                let range = media_range(text);
                if range.is_none() {
                    check.problem(
                        &format!("store.content_types[{index}]"),
                        "is not a media type such as `image/*` or `text/css`",
                    );
                }
                range
            })
            .collect();
        let variants = match (kind, self.variants) {
            (Some(PolicyKind::Imgproxy), Some(_)) => {
                check.problem(
                    "store.variants",
                    "is for `kind: generic`; imgproxy's variants are all in the key",
                );
                0
            }
            (Some(PolicyKind::Imgproxy) | None, _) => 0,
            (Some(PolicyKind::Generic), variants) => variants.unwrap_or(16),
        };
        if variants > 64 {
            check.problem("store.variants", "is 0 to 64");
        }
        StoreRules {
            statuses,
            variants,
            hit_for_miss: Seconds::or(self.hit_for_miss, Duration::from_secs(30)),
            content_codings: self.content_codings,
            content_types,
            verify: match self.verify {
                None | Some(RawVerify::Image) => Verify::Image,
                Some(RawVerify::None) => Verify::None,
            },
            exclude_headers: check.header_names("store.exclude_headers", &self.exclude_headers),
        }
    }
}

/// Reports the problems of one policy with their places.
struct Check<'a> {
    policy: &'a str,
    before: usize,
    problems: &'a mut Vec<Problem>,
}

impl Check<'_> {
    fn problem(&mut self, field: &str, what: &str) {
        let place = match field {
            "" => format!("policies.{}", self.policy),
            _ => format!("policies.{}.{field}", self.policy),
        };
        self.problems.push(Problem::new(place, what));
    }

    fn is_valid(&self) -> bool {
        self.problems.len() == self.before
    }

    /// Names become parts of object names and labels.
    fn name(&mut self, field: &str, name: &str) {
        let is_valid = (1..=63).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !is_valid {
            self.problem(field, "a name has 1 to 63 of `a-z`, `0-9` and `-`");
        }
    }

    fn clients(&mut self, raw: Option<&RawClientControl>) -> Clients {
        match raw {
            None => Clients::Ignored,
            Some(RawClientControl::Word(word)) => match word.as_str() {
                "ignore" => Clients::Ignored,
                "obey" => Clients::Obeyed,
                _ => {
                    self.problem(
                        "client_cache_control",
                        "is `ignore`, `obey` or `{trusted: [NETWORK]}`",
                    );
                    Clients::Ignored
                }
            },
            Some(RawClientControl::Trusted(raw)) => {
                let mut networks = Vec::new();
                for (index, text) in raw.trusted.iter().enumerate() {
                    let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
                    match text.parse().ok().or_else(one) {
                        Some(network) => networks.push(network),
                        None => self.problem(
                            &format!("client_cache_control.trusted[{index}]"),
                            "is no network such as `10.0.0.0/8`, and no address",
                        ),
                    }
                }
                Clients::Trusted(networks)
            }
        }
    }

    /// The version is the one that we are asked in through Envoy, whatever the client speaks.
    fn via(&mut self, name: &str) -> Option<HeaderValue> {
        let is_token = !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
        if !is_token {
            self.problem("via", "is a name without spaces, such as `afterimage`");
            return None;
        }
        HeaderValue::try_from(format!("1.1 {name}")).ok()
    }

    fn header_names(&mut self, field: &str, names: &[String]) -> Vec<HeaderName> {
        names
            .iter()
            .enumerate()
            .filter_map(|(index, text)| {
                let name = HeaderName::try_from(text).ok();
                if name.is_none() {
                    let field = format!("{field}[{index}]");
                    self.problem(&field, "is not the name of a header");
                }
                name
            })
            .collect()
    }

    fn secret(&mut self, field: &str, source: &SecretSource) -> Option<String> {
        match source.read() {
            Ok(secret) => Some(secret.expose().to_owned()),
            Err(error) => {
                self.problem(field, &error);
                None
            }
        }
    }

    fn hex(&mut self, field: &str, source: &SecretSource) -> Option<Vec<u8>> {
        let text = self.secret(field, source)?;
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
        if bytes.is_none() {
            self.problem(field, "is not hexadecimal");
        }
        bytes
    }
}

/// A status that a response may be kept with although it does not say so.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct NegativeStatus(StatusCode);

impl<'de> Deserialize<'de> for NegativeStatus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const PROVOKED: [u16; 8] = [400, 403, 405, 408, 413, 414, 429, 431];
        let text = String::deserialize(deserializer)?;
        text.parse::<u16>()
            .ok()
            .filter(|code| (300..500).contains(code) && *code != 304)
            .filter(|code| !PROVOKED.contains(code))
            .and_then(|code| StatusCode::from_u16(code).ok())
            .map(Self)
            .ok_or_else(|| {
                D::Error::invalid_value(
                    Unexpected::Str(&text),
                    &"a status that may be kept without being told to, such as `404` or `410`",
                )
            })
    }
}

fn formats(raw: &[RawFormat]) -> Vec<ImageFormat> {
    let mut formats: Vec<_> = raw
        .iter()
        .map(|format| match format {
            RawFormat::Jxl => ImageFormat::Jxl,
            RawFormat::Avif => ImageFormat::Avif,
            RawFormat::Webp => ImageFormat::Webp,
        })
        .collect();
    formats.sort_unstable();
    formats.dedup();
    formats
}

fn media_range(text: &str) -> Option<MediaRange> {
    let is_token = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
    };
    let (main, sub) = text.split_once('/')?;
    if text == "*/*" {
        return Some(MediaRange {
            main: "*".to_owned(),
            sub: None,
        });
    }
    let sub = match sub {
        "*" => None,
        sub if is_token(sub) => Some(sub.to_ascii_lowercase()),
        _ => return None,
    };
    is_token(main).then(|| MediaRange {
        main: main.to_ascii_lowercase(),
        sub,
    })
}
