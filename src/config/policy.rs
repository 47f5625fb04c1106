//! One policy of the configuration.

use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER_PERMISSIVE;
use http::HeaderName;
use serde::Deserialize;

use super::value::{Problem, Seconds, SecretSource};
use crate::policy::{
    Cookies, FreshnessRules, Generic, ImageFormat, Imgproxy, KeyPair, Kind, MediaRange, Policy,
    Query, Signing, StoreRules, Verify,
};

/// imgproxy says a year about anything; nobody should have to wait that long for a mistake to go.
const CEILING: Duration = Duration::from_secs(30 * 24 * 3600);

/// What routes can choose by a name. `kind` is required; everything else has a default that is
/// right for imgproxy.
#[derive(Debug, Default, Deserialize)]
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
    key: RawKey,
    store: RawStoreRules,
    freshness: RawFreshness,
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
enum RawFormat {
    Jxl,
    Avif,
    Webp,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawKey {
    /// imgproxy: whether the host is in the key. generic: always. Default false.
    host: bool,
    /// generic: `all`, `none`, or a list of parameter names. Default `all`.
    query: Option<RawQuery>,
    /// generic: request headers in the key. Default none.
    headers: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RawQuery {
    Word(String),
    Only(Vec<String>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawStoreRules {
    /// Media types that are stored, such as `image/*` or `text/css`. `image/svg+xml` must be named
    /// itself, because it can carry script. Default `[image/*]`.
    content_types: Option<Vec<String>>,
    /// `image`: the first bytes must be those of the declared format. `none`: only the length is
    /// checked. Default `image`.
    verify: Option<RawVerify>,
    /// Response headers that are not kept, for example those that a route adds. Default none.
    exclude_headers: Vec<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawVerify {
    Image,
    None,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawFreshness {
    /// For responses that say nothing about it. Default none: they are not stored.
    default: Option<Seconds>,
    /// At least. Default `0s`.
    floor: Option<Seconds>,
    /// At most. Default `30d`.
    ceiling: Option<Seconds>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawSignature {
    /// Any of them may have signed, so that keys can rotate. No default.
    pairs: Vec<RawPair>,
    /// Bytes of a signature, 1 to 32 (`IMGPROXY_SIGNATURE_SIZE`). Default 32.
    size: Option<usize>,
    /// Signatures that are taken as they are (`IMGPROXY_TRUSTED_SIGNATURES`). Default none.
    trusted: Vec<SecretSource>,
}

#[derive(Debug, Deserialize)]
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
        };
        if freshness.floor > freshness.ceiling {
            check.problem("freshness.floor", "is above freshness.ceiling");
        }
        let store = self.store.validate(&mut check);
        let key_host = self.key.host;
        let namespace = Arc::from(namespace);
        let epoch = self.epoch.unwrap_or(1);
        let cookies = self.cookies;
        let (kind, default_cookies) = match self.kind {
            None => {
                check.problem("kind", "is required: `imgproxy` or `generic`");
                return None;
            }
            Some(PolicyKind::Imgproxy) => (
                self.imgproxy(&mut check).map(Kind::Imgproxy),
                Cookies::Ignore,
            ),
            Some(PolicyKind::Generic) => {
                (self.generic(&mut check).map(Kind::Generic), Cookies::Bypass)
            }
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
            query,
            headers: check.header_names("key.headers", &self.key.headers),
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
                pairs.push(KeyPair { key, salt });
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
    fn validate(&self, check: &mut Check<'_>) -> StoreRules {
        let default = ["image/*".to_owned()];
        let content_types = self
            .content_types
            .as_deref()
            .unwrap_or(&default)
            .iter()
            .filter_map(|text| {
                let range = media_range(text);
                if range.is_none() {
                    check.problem(
                        "store.content_types",
                        &format!("`{text}` is not a media type such as `image/*` or `text/css`"),
                    );
                }
                range
            })
            .collect();
        StoreRules {
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

    fn header_names(&mut self, field: &str, names: &[String]) -> Vec<HeaderName> {
        names
            .iter()
            .filter_map(|text| {
                let name = HeaderName::try_from(text).ok();
                if name.is_none() {
                    self.problem(field, &format!("`{text}` is not the name of a header"));
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
