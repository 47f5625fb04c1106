//! What policies of `kind: imgproxy` have beside the others.

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::Deserialize;
#[cfg(test)]
use {schemars::JsonSchema, serde::Serialize};

use super::{Check, SecretSource};
use crate::policy::{
    Cookies, Imgproxy, KeyPair, Kind, Policy, Signing, Statuses, StoreRules, Validators,
};

#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawImgproxy {
    /// What a `Cookie` in the request does. imgproxy does not look at cookies.
    cookies: Cookies,
    /// Whose entity tags clients see. By default ours, because imgproxy sends one tag for all formats
    /// and sizes of a source.
    validators: Validators,
    key: RawKey,
    store: StoreRules,
    /// Whether imgproxy runs without keys, so that the first segment of a path means nothing. Without
    /// this and without `signature` that segment stays in the key.
    unsigned: bool,
    #[cfg_attr(test, serde(skip_serializing))]
    signature: Option<RawSignature>,
}

/// What is in the key beside imgproxy's options and source.
#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
struct RawKey {
    /// Whether the host is in the key. imgproxy does not look at it.
    host: bool,
}

/// imgproxy's keys and salts. Every request is verified before it is looked up.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
struct RawSignature {
    /// Keys and salts, of which any may have signed, so that keys can rotate.
    #[cfg_attr(test, serde(skip_serializing), schemars(extend("x-default" = "required")))]
    pairs: Vec<RawPair>,
    /// The bytes of a signature, 1 to 32 (`IMGPROXY_SIGNATURE_SIZE`).
    size: usize,
    /// Signatures that are taken as they are (`IMGPROXY_TRUSTED_SIGNATURES`).
    #[cfg_attr(test, serde(skip_serializing))]
    trusted: Vec<SecretSource>,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
struct RawPair {
    /// The value of `IMGPROXY_KEY`, in hex.
    key: SecretSource,
    /// The value of `IMGPROXY_SALT`, in hex.
    salt: SecretSource,
}

impl Default for RawImgproxy {
    fn default() -> Self {
        Self {
            cookies: Cookies::Ignore,
            validators: Validators::Content,
            key: RawKey::default(),
            store: StoreRules::default(),
            unsigned: false,
            signature: None,
        }
    }
}

impl Default for RawSignature {
    fn default() -> Self {
        Self {
            pairs: Vec::new(),
            size: 32,
            trusted: Vec::new(),
        }
    }
}

impl RawImgproxy {
    pub(super) fn build(
        self,
        policy: Policy,
        mut imgproxy: Imgproxy,
        check: &mut Check<'_>,
    ) -> Policy {
        check.imgproxy(&imgproxy);
        if self.store.statuses == Statuses::Any {
            check.problem("store.statuses", "`any` is for `kind: generic`");
        }
        imgproxy.signing = match (self.unsigned, self.signature) {
            (true, None) => Signing::Unsigned,
            (false, None) => Signing::Unknown,
            (false, Some(signature)) => signature.build(check),
            (true, Some(_)) => {
                check.problem("unsigned", "cannot be true together with `signature`");
                Signing::Unknown
            }
        };
        for formats in [&mut imgproxy.formats, &mut imgproxy.enforced] {
            formats.sort_unstable();
            formats.dedup();
        }
        Policy {
            kind: Kind::Imgproxy(imgproxy),
            key_host: self.key.host,
            cookies: self.cookies,
            validators: self.validators,
            store: self.store,
            ..policy
        }
    }
}

impl RawSignature {
    fn build(self, check: &mut Check<'_>) -> Signing {
        if !(1..=32).contains(&self.size) {
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
        let trusted = self.trusted.iter().enumerate();
        Signing::Pairs {
            pairs,
            size: self.size,
            trusted: trusted
                .filter_map(|(index, source)| {
                    check.secret(&format!("signature.trusted[{index}]"), source)
                })
                .collect(),
        }
    }
}

impl Check<'_> {
    fn imgproxy(&mut self, imgproxy: &Imgproxy) {
        let prefix = &imgproxy.path_prefix;
        if !prefix.is_empty() && (!prefix.starts_with('/') || prefix.ends_with('/')) {
            self.problem(
                "path_prefix",
                "begins with a slash and does not end with one, such as `/thumbs`",
            );
        }
        let dpr = &imgproxy.dpr_steps;
        let is_possible = |step: &f64| *step > 0.0 && *step <= 8.0;
        if !dpr.is_sorted_by(|a, b| a < b) || !dpr.iter().all(is_possible) {
            self.problem("dpr_steps", "rise, and are above 0 and at most 8");
        }
        let widths = &imgproxy.width_steps;
        if !widths.is_sorted_by(|a, b| a < b) || widths.contains(&0) {
            self.problem("width_steps", "rise, and are above 0");
        }
        let separator = &imgproxy.arguments_separator;
        if separator.is_empty() || separator.contains('/') {
            self.problem("arguments_separator", "is not empty and has no slash");
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
