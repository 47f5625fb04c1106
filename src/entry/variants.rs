//! Secondary keys (RFC 9111 section 4.1).
//!
//! A response that varies by request fields outside the primary key is stored under a key of its own,
//! made of the primary one and what the request had in these fields. Under the primary key stands
//! instead a record without a body that names the fields: [`Variants`]. The most recent response
//! decides which they are.

use http::header::{ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE};
use http::{HeaderMap, HeaderName};

use super::key::{Key, KeyHasher};

/// Fields whose members may be spaced and spread over lines as one likes (RFC 9110 section 5.6.1)
/// and hold no quoted commas, so that members alone are compared.
const LISTS: [HeaderName; 4] = [ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE];

/// What the responses of one primary key vary by, and how many of them there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variants {
    /// Request fields, sorted, each once, at least one.
    pub fields: Vec<HeaderName>,
    /// The first 64 bits of the digest of each that was stored, in that order. Writers that do not
    /// see each other may leave some out: it bounds their number, it does not list them.
    pub stored: Vec<u64>,
}

impl Variants {
    /// These variants with that of `key` among them, for a response that varies by `fields`; `None`
    /// when there are `most` others. Other fields begin anew: nothing that was stored for the former
    /// ones is found any more.
    pub(crate) fn with(
        known: Option<&Self>,
        fields: Vec<HeaderName>,
        key: &Key,
        most: usize,
    ) -> Option<Self> {
        let [first, ..] = key.digest().as_chunks().0 else {
            return None;
        };
        let own = u64::from_be_bytes(*first);
        let mut stored = known
            .filter(|known| known.fields == fields)
            .map_or_else(Vec::new, |known| known.stored.clone());
        if !stored.contains(&own) {
            if stored.len() >= most {
                return None;
            }
            stored.push(own);
        }
        Some(Self { fields, stored })
    }
}

impl Key {
    /// The key of the response to `request` among those of this primary key that vary by `fields`
    /// (RFC 9111 section 4.1).
    pub fn variant(&self, fields: &[HeaderName], request: &HeaderMap) -> Self {
        Self::new(
            self.source().clone(),
            digest(self.digest(), fields, request),
        )
    }
}

/// The digest of the variant of `primary` that `request` selects by `fields`.
fn digest(primary: &[u8; 32], fields: &[HeaderName], request: &HeaderMap) -> [u8; 32] {
    let mut hasher = KeyHasher::new("afterimage variant 1");
    hasher.field(primary);
    for name in fields {
        hasher.field(name.as_str().as_bytes());
        // A field that is there and empty is not one that is absent.
        hasher.list(request.get(name).map(|_| &b"present"[..]));
        if LISTS.contains(name) {
            hasher.list(members(request, name));
        } else {
            let lines = request.get_all(name).iter();
            hasher.list(lines.map(|line| line.as_bytes().trim_ascii()));
        }
    }
    hasher.finish()
}

/// The members of a list field (RFC 9110 section 5.6.1).
pub(crate) fn members<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}
