//! What names an entry, everywhere.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

/// No object name is longer.
const LONGEST_NAME_BYTES: usize = 180;

/// Names one entry: where it is kept, and the proof of what it is for.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    source: Source,
    digest: [u8; 32],
}

/// What the entries made of one source image (or of one generic URL without its query) share: a
/// prefix of their object names.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Source {
    namespace: Arc<str>,
    epoch: u32,
    digest: [u8; 32],
}

/// Hashes the digest alone, which nearly always differs where the key does; equality compares all of it.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

impl Key {
    /// The key of the entry with this digest among those of `source`.
    pub fn new(source: Source, digest: [u8; 32]) -> Self {
        Self { source, digest }
    }

    /// SHA-256 of the length-prefixed, versioned key material: everything that the answer may
    /// depend on.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Which entries it belongs with.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// `v1/<namespace>/<epoch>/<source, 32 hex digits>/<digest, 64 hex digits>`, at most 180 bytes.
    pub fn object_name(&self) -> String {
        let mut name = self.source.prefix();
        HEXLOWER.encode_append(&self.digest, &mut name);
        name
    }

    /// A key made of its parts, for tests of stores.
    #[doc(hidden)]
    pub fn from_parts(namespace: &str, epoch: u32, source: [u8; 32], digest: [u8; 32]) -> Self {
        Self::new(Source::new(namespace.into(), epoch, source), digest)
    }
}

impl Source {
    /// The source with this digest in a namespace and epoch.
    pub fn new(namespace: Arc<str>, epoch: u32, digest: [u8; 32]) -> Self {
        Self {
            namespace,
            epoch,
            digest,
        }
    }

    /// SHA-256 of the length-prefixed, versioned material that names the source.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The namespace of its policy.
    pub fn namespace(&self) -> &Arc<str> {
        &self.namespace
    }

    /// The epoch of its policy.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// `v1/<namespace>/<epoch>/<digest, 32 hex digits>/`: what the object names of its entries begin
    /// with, and no others.
    pub fn prefix(&self) -> String {
        let mut prefix = String::with_capacity(LONGEST_NAME_BYTES);
        prefix.push_str("v1/");
        prefix.push_str(&self.namespace);
        prefix.push('/');
        prefix.push_str(&self.epoch.to_string());
        prefix.push('/');
        HEXLOWER.encode_append(&self.digest[..16], &mut prefix);
        prefix.push('/');
        prefix
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.object_name())
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({})", self.prefix())
    }
}

/// SHA-256 over fields and lists that can be read back in one way only, whatever bytes they hold,
/// because the label and what stands in front say which of the two comes next.
///
/// A field is its length as 64 bits, most significant byte first, and its bytes. A list is a byte 1
/// and a field for each item, then a byte 0.
pub(crate) struct KeyHasher(Sha256);

impl KeyHasher {
    /// Begins with `label` as the first field: what is hashed, and the version of its layout.
    pub(crate) fn new(label: &str) -> Self {
        let mut hasher = Self(Sha256::new());
        hasher.field(label.as_bytes());
        hasher
    }

    pub(crate) fn field(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    /// An `Option` is a list of at most one item.
    pub(crate) fn list<'a>(&mut self, items: impl IntoIterator<Item = &'a [u8]>) {
        for item in items {
            self.0.update([1]);
            self.field(item);
        }
        self.0.update([0]);
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}
