//! The images that are asked for: signed imgproxy URLs that tell the upstream how many bytes to make.

use std::sync::atomic::{AtomicU64, Ordering};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

/// The one pair that signs everything; it guards nothing.
pub(crate) const KEY: &str = "6166746572696d6167652062656e6368206b6579206e6f7468696e6720656c73";
/// See [`KEY`].
pub(crate) const SALT: &str = "6166746572696d6167652062656e63682073616c74206e6f7468696e6720656c";

/// Stands before the size in a source, which the upstream looks for.
pub(crate) const SOURCE: &str = "local:///";

/// Signed paths of images of one size.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    size: u64,
    prefix: &'static str,
    signer: Hmac<Sha256>,
}

impl Images {
    /// Images of `size` bytes, below a route's `prefix` that is not signed (empty, or `/route`).
    pub(crate) fn new(size: u64, prefix: &'static str) -> Self {
        let decoded = |hex: &str| {
            HEXLOWER
                .decode(hex.as_bytes())
                .expect("the pair is written in hex")
        };
        let mut signer =
            Hmac::<Sha256>::new_from_slice(&decoded(KEY)).expect("a key may have any length");
        signer.update(&decoded(SALT));
        Self {
            size,
            prefix,
            signer,
        }
    }

    /// The path of the image of that name.
    pub(crate) fn path(&self, name: &str) -> String {
        let path = format!(
            "/rs:fill:300:200/plain/{SOURCE}{}/{name}.png@webp",
            self.size
        );
        let mut signer = self.signer.clone();
        signer.update(path.as_bytes());
        let signature = BASE64URL_NOPAD.encode(&signer.finalize().into_bytes());
        format!("{}/{signature}{path}", self.prefix)
    }

    /// The path of an image that nobody asked for before.
    pub(crate) fn fresh(&self) -> String {
        static GIVEN: AtomicU64 = AtomicU64::new(0);
        self.path(&format!("new-{:09}", GIVEN.fetch_add(1, Ordering::Relaxed)))
    }

    /// The paths that hits are asked for, always the same.
    pub(crate) fn known(&self) -> Vec<String> {
        // As much as fits into a small memory tier many times over, and not one image alone.
        let count = if self.size > 256 * 1024 { 16 } else { 64 };
        (0..count)
            .map(|number| self.path(&format!("known-{number:09}")))
            .collect()
    }
}
