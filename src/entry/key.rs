//! The key of an entry, by which every store and table names it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

/// The most bytes that an object name has.
const LONGEST_NAME_BYTES: usize = 180;

/// Names one entry. It says where the entry is kept, and proves what it is for.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    source: Source,
    digest: [u8; 32],
}

/// Names all entries made from one source image (or one generic URL without its query). Their
/// object names share a prefix.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Source {
    namespace: Arc<str>,
    epoch: u32,
    digest: [u8; 32],
}

/// Hashes only the digest, which nearly always differs between keys; equality compares the whole
/// key.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

impl Key {
    /// Makes the key of the entry with this digest among those of `source`.
    pub fn new(source: Source, digest: [u8; 32]) -> Self {
        Self { source, digest }
    }

    /// SHA-256 of the length-prefixed, versioned key material, which is everything that the answer
    /// may depend on.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The source whose entries it belongs to.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// `v1/<namespace>/<epoch>/<source, 32 hex digits>/<digest, 64 hex digits>`, at most 180 bytes.
    pub fn object_name(&self) -> String {
        let mut name = self.source.prefix();
        HEXLOWER.encode_append(&self.digest, &mut name);
        name
    }

    /// Makes a key from its parts, for tests of stores.
    #[doc(hidden)]
    pub fn from_parts(namespace: &str, epoch: u32, source: [u8; 32], digest: [u8; 32]) -> Self {
        Self::new(Source::new(namespace.into(), epoch, source), digest)
    }
}

impl Source {
    /// Makes the source with this digest in a namespace and epoch.
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

    /// `v1/<namespace>/<epoch>/<digest, 32 hex digits>/`, with which the object names of its
    /// entries begin, and no others.
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

/// SHA-256 over fields and lists. Whatever bytes they hold, they can be read back in only one way,
/// because the label and the fields before say whether a field or a list comes next.
///
/// A field is its length as 64 bits, most significant byte first, and then its bytes. A list is a
/// byte 1 and a field for each item, then a byte 0.
pub(crate) struct KeyHasher(Sha256);

impl KeyHasher {
    /// Begins with `label` as the first field. It says what is hashed, and the version of its
    /// layout.
    pub(crate) fn new(label: &str) -> Self {
        let mut hasher = Self(Sha256::new());
        hasher.field(label.as_bytes());
        hasher
    }

    pub(crate) fn field(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    /// Adds a list. An `Option` is a list of at most one item.
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
