//! Makes the keys of variants, and the vary index of a primary key (RFC 9111 section 4.1).
//!
//! A response that varies by request fields outside the primary key is a variant. It is stored
//! under a key of its own, made of the primary key and what the request had in these fields. Under
//! the primary key stands the vary index: a record without a body that names the fields
//! ([`Variants`]). The most recent response decides which fields those are.

use http::header::{ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE};
use http::{HeaderMap, HeaderName};

use super::key::{Key, KeyHasher};

/// Fields that are compared member by member: their members may be spaced and split over lines in
/// any way (RFC 9110 section 5.6.1), and hold no quoted commas.
const LISTS: [HeaderName; 4] = [ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE];

/// The fields by which the responses of one primary key vary, and a bound on their number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variants {
    /// At least one request field, sorted, each once.
    pub fields: Vec<HeaderName>,
    /// The first 64 bits of the digest of each variant, in the order in which they were stored.
    /// Writers that do not see each other may leave some out, so this only bounds their number.
    pub stored: Vec<u64>,
}

impl Variants {
    /// Adds the variant of `key`, whose response varies by `fields`; `None` when there are `most`
    /// others. If the fields differ from the known ones, the list begins anew: variants of the
    /// former fields are not found any more.
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
    /// Makes the key of the variant that `request` selects by `fields` under this primary key (RFC
    /// 9111 section 4.1).
    pub fn variant(&self, fields: &[HeaderName], request: &HeaderMap) -> Self {
        Self::new(
            self.source().clone(),
            digest(self.digest(), fields, request),
        )
    }
}

/// Digest of the variant that `request` selects by `fields` under `primary`.
fn digest(primary: &[u8; 32], fields: &[HeaderName], request: &HeaderMap) -> [u8; 32] {
    let mut hasher = KeyHasher::new("afterimage variant 1");
    hasher.field(primary);
    for name in fields {
        hasher.field(name.as_str().as_bytes());
        // An empty field differs from an absent one.
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
