//! imgproxy's URLs.

use std::fmt;

use http::HeaderName;

/// How URLs of an imgproxy policy are read: the settings of the imgproxy that it stands for.
#[derive(Debug, Clone)]
pub struct Imgproxy {
    /// What comes before the signature: empty, or a path such as `/img` without a slash at its end.
    pub path_prefix: String,
    /// Signatures.
    pub signing: Signing,
    /// `IMGPROXY_ARGUMENTS_SEPARATOR`.
    pub arguments_separator: String,
    /// `IMGPROXY_ONLY_PRESETS`.
    pub only_presets: bool,
    /// `IMGPROXY_BASE64_URL_INCLUDES_FILENAME`.
    pub base64_includes_filename: bool,
    /// Formats that imgproxy chooses by `Accept` (`IMGPROXY_AUTO_*`).
    pub formats: Vec<ImageFormat>,
    /// Formats that imgproxy chooses by `Accept` even over an explicit one (`IMGPROXY_ENFORCE_*`).
    pub enforced: Vec<ImageFormat>,
    /// Values that a `DPR` hint is rounded up to, rising; empty: the hint is removed on the way.
    pub dpr_steps: Vec<f64>,
    /// Pixels that a `Width` hint is rounded up to, rising; empty: the hint is removed on the way.
    pub width_steps: Vec<u32>,
    /// Request headers that are sent on although they are not in the key: the operator's promise
    /// that they do not change the image.
    pub forward_headers: Vec<HeaderName>,
}

/// A format that imgproxy negotiates by `Accept`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ImageFormat {
    /// `image/jxl`.
    Jxl,
    /// `image/avif`.
    Avif,
    /// `image/webp`.
    Webp,
}

/// What the first path segment is.
#[derive(Debug, Clone)]
pub enum Signing {
    /// A signature, verified on every request and left out of the key.
    Pairs {
        /// Any of them may have signed.
        pairs: Vec<KeyPair>,
        /// Bytes of a signature, 1 to 32 (`IMGPROXY_SIGNATURE_SIZE`).
        size: usize,
        /// Taken verbatim (`IMGPROXY_TRUSTED_SIGNATURES`).
        trusted: Vec<String>,
    },
    /// Declared to mean nothing: left out of the key.
    Unsigned,
    /// Unknown: it stays in the key.
    Unknown,
}

/// A key and a salt of imgproxy, decoded.
#[derive(Clone)]
pub struct KeyPair {
    /// HMAC key.
    pub key: Vec<u8>,
    /// Prefix of the message.
    pub salt: Vec<u8>,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair(***)")
    }
}
