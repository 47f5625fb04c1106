//! Makes the keys of imgproxy policies.
//!
//! Such a policy stands for one imgproxy and reads a request as that imgproxy does. Two requests
//! that it answers alike may share a key; two that it may answer differently never do.
//!
//! Leaders carry only these fields to imgproxy: those of [`Negotiated`], those of tracing, and the
//! ones that the operator names. `baggage` is not among them: its content is free, and tracing may
//! hand it on to the servers of the sources.

mod negotiated;
mod path;
mod signature;

use std::fmt;
use std::sync::LazyLock;

use data_encoding::{BASE64URL_NOPAD, Encoding};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::{HeaderName, HeaderValue};
#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;
#[cfg(test)]
use serde::Serialize;
use sha2::Sha256;

use self::negotiated::Negotiated;
use self::path::{ImagePath, ImageSource, Processing, Target, UrlOption};

use super::decide::Keyed;
use super::request::{is_precondition_or_range, is_untouchable};
use super::{BypassReason, FieldName, Forward, RequestHead};
use crate::clock::Timestamp;
use crate::entry::KeyHasher;
use crate::written::Each;

/// URL-safe base64 without padding; like imgproxy's, it ignores bits that belong to no byte.
static BASE64: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = BASE64URL_NOPAD.specification();
    specification.check_trailing_bits = false;
    specification
        .encoding()
        .expect("differs from a valid one only in being lenient")
});

/// Fields that name a trace, or a request within it: those of Envoy's tracers and of imgproxy's.
/// They show in imgproxy's logs and spans, and in no image.
const TRACE_FIELDS: [&str; 18] = [
    "b3",
    "newrelic",
    "sentry-trace",
    "traceparent",
    "tracestate",
    "uber-trace-id",
    "x-amzn-trace-id",
    "x-b3-flags",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-spanid",
    "x-b3-traceid",
    "x-client-trace-id",
    "x-cloud-trace-context",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "x-datadog-trace-id",
    "x-request-id",
];

/// How URLs of an imgproxy policy are read: the settings of the imgproxy that it stands for.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Imgproxy {
    /// What comes before the signature in the path that Envoy's clients send, such as `/thumbs`: a
    /// path without a slash at its end.
    pub path_prefix: String,
    /// Signatures.
    #[serde(skip)]
    pub signing: Signing,
    /// The value of `IMGPROXY_ARGUMENTS_SEPARATOR`: not empty, and without a slash.
    pub arguments_separator: String,
    /// The value of `IMGPROXY_ONLY_PRESETS`.
    pub only_presets: bool,
    /// The value of `IMGPROXY_BASE64_URL_INCLUDES_FILENAME`.
    #[serde(rename = "base64_url_includes_filename")]
    pub base64_includes_filename: bool,
    /// Formats that imgproxy chooses by `Accept` (`IMGPROXY_AUTO_*`).
    pub formats: Vec<ImageFormat>,
    /// Formats that imgproxy chooses by `Accept` even over an explicit one (`IMGPROXY_ENFORCE_*`).
    #[serde(rename = "enforced_formats")]
    pub enforced: Vec<ImageFormat>,
    /// Values that the `DPR` hint is rounded up to, rising, above 0 and at most 8. Without them the
    /// hint does not reach imgproxy, because every value of it would be an entry of its own.
    pub dpr_steps: Vec<f64>,
    /// Pixels that the `Width` hint is rounded up to, rising. Without them the hint does not reach
    /// imgproxy, because every value of it would be an entry of its own.
    pub width_steps: Vec<u32>,
    /// Request headers that reach imgproxy although they are not in the key: the operator's promise
    /// that they do not change the image. `Accept`, the hints, conditions and ranges are never sent on
    /// that way.
    #[serde(with = "Each::<FieldName>")]
    pub forward_headers: Vec<HeaderName>,
}

impl Default for Imgproxy {
    fn default() -> Self {
        Self {
            path_prefix: String::new(),
            signing: Signing::Unknown,
            arguments_separator: ":".to_owned(),
            only_presets: false,
            base64_includes_filename: false,
            formats: Vec::new(),
            enforced: Vec::new(),
            dpr_steps: Vec::new(),
            width_steps: Vec::new(),
            forward_headers: Vec::new(),
        }
    }
}

impl Imgproxy {
    /// Reads the key of `request`, which arrived at `now`, and how to change it when it is
    /// forwarded.
    pub(super) fn keyed(
        &self,
        request: &RequestHead,
        key_host: bool,
        now: Timestamp,
    ) -> Result<Keyed, BypassReason> {
        let (path, _) = request.path_and_query();
        let target = Target::read(path, &self.path_prefix)?;
        if !self.signing.accepts(target.signature, &target.path) {
            return Err(BypassReason::Signature);
        }
        let image = ImagePath::read(&target.path, self, now)?;
        let negotiated = Negotiated::read(self, &request.headers, image.has_fixed_format);
        let set = negotiated.fields();
        let host = key_host.then(|| request.key_host());
        Ok(Keyed {
            source: source_hash(&image.source),
            digest: self.digest(host.as_deref(), &target, &image, &set),
            expires: image.expires,
            forward: Forward {
                remove: self.removed(request, &set),
                set,
                // imgproxy cuts the query itself.
                path: None,
            },
        })
    }

    /// Whether field `name` does not reach imgproxy as the client sent it, so that varying by it
    /// needs no variant.
    pub(super) fn controls(&self, name: &HeaderName) -> bool {
        !self.passes(name)
    }

    fn digest(
        &self,
        host: Option<&[u8]>,
        target: &Target<'_>,
        image: &ImagePath<'_>,
        negotiated: &[(HeaderName, HeaderValue)],
    ) -> [u8; 32] {
        let mut hasher = KeyHasher::new("afterimage imgproxy key 1");
        hasher.list(host);
        // An unverified signature is in the key with all that it may sign, `expires` above all.
        hasher.list(
            match self.signing {
                Signing::Pairs { .. } | Signing::Unsigned => [None, None],
                Signing::Unknown => [Some(target.signature), Some(target.path.as_ref())],
            }
            .into_iter()
            .flatten(),
        );
        match image.processing {
            Processing::Options(options) => {
                let separator = self.arguments_separator.as_bytes();
                let is_deadline = |option: &&[u8]| {
                    UrlOption::read(option, separator)
                        .is_some_and(|option| matches!(option.deadline(), Ok(Some(_))))
                };
                hasher.field(b"options");
                hasher.list(
                    options
                        .split(|byte| *byte == b'/')
                        .filter(|option| !option.is_empty() && !is_deadline(option)),
                );
            }
            Processing::Presets(presets) => {
                hasher.field(b"presets");
                hasher.field(presets);
            }
        }
        image.source.hash(&mut hasher);
        hasher.field(&image.extension);
        hasher.list(
            negotiated
                .iter()
                .flat_map(|(name, value)| [name.as_str().as_bytes(), value.as_bytes()]),
        );
        hasher.finish()
    }

    /// The fields of `request` that do not reach imgproxy.
    fn removed(&self, request: &RequestHead, set: &[(HeaderName, HeaderValue)]) -> Vec<HeaderName> {
        let is_set = |name: &HeaderName| set.iter().any(|(other, _)| other == name);
        let mut removed = Vec::with_capacity(request.headers.keys_len());
        removed.extend(
            request
                .headers
                .keys()
                .filter(|name| !self.passes(name) && !is_set(name))
                .cloned(),
        );
        removed
    }

    /// Whether field `name` reaches imgproxy as the client sent it.
    fn passes(&self, name: &HeaderName) -> bool {
        is_untouchable(name)
            || TRACE_FIELDS.contains(&name.as_str())
            || self.forward_headers.contains(name)
                && !Negotiated::reads(name)
                && !is_precondition_or_range(name)
    }
}

fn source_hash(source: &ImageSource<'_>) -> [u8; 32] {
    let mut hasher = KeyHasher::new("afterimage imgproxy source 1");
    source.hash(&mut hasher);
    hasher.finish()
}

impl ImageSource<'_> {
    fn hash(&self, hasher: &mut KeyHasher) {
        let (form, source) = match self {
            Self::Url(url) => ("url", url),
            Self::Encrypted(encrypted) => ("encrypted", encrypted),
        };
        hasher.field(form.as_bytes());
        hasher.field(source);
    }
}

/// A format that imgproxy negotiates by `Accept`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// `image/jxl`.
    Jxl,
    /// `image/avif`.
    Avif,
    /// `image/webp`.
    Webp,
}

/// What the first path segment, the signature, means.
#[derive(Clone)]
pub enum Signing {
    /// It is verified on every request and left out of the key.
    Pairs {
        /// Keys and salts, of which any may have signed.
        pairs: Vec<KeyPair>,
        /// Bytes of a signature, 1 to 32 (`IMGPROXY_SIGNATURE_SIZE`).
        size: usize,
        /// Signatures that are accepted verbatim (`IMGPROXY_TRUSTED_SIGNATURES`).
        trusted: Vec<String>,
    },
    /// It means nothing, as the operator declares, and is left out of the key.
    Unsigned,
    /// It cannot be verified, so it is in the key with the whole path that it may sign, `expires`
    /// included.
    Unknown,
}

impl fmt::Debug for Signing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A trusted signature is as good as a key.
            Self::Pairs {
                pairs,
                size,
                trusted,
            } => f
                .debug_struct("Pairs")
                .field("pairs", pairs)
                .field("size", size)
                .field("trusted", &format_args!("{} (***)", trusted.len()))
                .finish(),
            Self::Unsigned => f.write_str("Unsigned"),
            Self::Unknown => f.write_str("Unknown"),
        }
    }
}

/// A key and a salt of imgproxy, decoded.
#[derive(Clone)]
pub struct KeyPair {
    /// State of the HMAC after the salt and the first slash, from which every signature continues.
    begun: Hmac<Sha256>,
}

impl KeyPair {
    /// Makes a pair of the HMAC's `key` and the `salt` that precedes each message.
    pub fn new(key: &[u8], salt: &[u8]) -> Self {
        let begun = Hmac::new_from_slice(key)
            .expect("HMAC takes keys of any length")
            .chain_update(salt)
            .chain_update(b"/");
        Self { begun }
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair(***)")
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) use self::path::fuzzing;
#[cfg(test)]
mod tests;
