//! What policies of `kind: generic` have beside the others.

use http::HeaderName;
use serde::Deserialize;
#[cfg(test)]
use {schemars::JsonSchema, serde::Serialize};

use super::Check;
use crate::policy::{Cookies, FieldName, Generic, Kind, Policy, Query, StoreRules, Validators};
use crate::written::Each;

/// A bound on what strangers can store for one URL.
const MOST_VARIANTS: usize = 64;

#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawGeneric {
    /// What a `Cookie` in the request does. By default such a request is left alone, because its answer
    /// may be for one client only.
    cookies: Cookies,
    /// Whose entity tags clients see.
    validators: Validators,
    key: RawKey,
    store: GenericStore,
}

/// What is in the key beside the host and the path.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
struct RawKey {
    /// Which part of the query is in the key: `all`, `none`, or a list of parameters. The others are not
    /// sent on with requests that fill.
    query: Query,
    /// Request headers in the key.
    #[serde(with = "Each::<FieldName>")]
    headers: Vec<HeaderName>,
}

#[derive(Default, Deserialize)]
struct GenericStore(StoreRules, RawVariants);

#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
struct RawVariants {
    /// How many responses are kept for one URL that differ by request headers outside the key, where
    /// `Vary` names them; 0 to 64. With 0 such responses are not stored.
    variants: usize,
}

impl Default for RawGeneric {
    fn default() -> Self {
        Self {
            cookies: Cookies::Bypass,
            validators: Validators::Upstream,
            key: RawKey::default(),
            store: GenericStore::default(),
        }
    }
}

impl Default for RawKey {
    fn default() -> Self {
        let Generic { query, headers, .. } = Generic::default();
        Self { query, headers }
    }
}

impl Default for RawVariants {
    fn default() -> Self {
        Self { variants: 16 }
    }
}

impl RawGeneric {
    pub(super) fn build(self, policy: Policy, generic: Generic, check: &mut Check<'_>) -> Policy {
        let GenericStore(store, RawVariants { variants }) = self.store;
        if variants > MOST_VARIANTS {
            check.problem("store.variants", "is 0 to 64");
        }
        Policy {
            kind: Kind::Generic(Generic {
                query: self.key.query,
                headers: self.key.headers,
                ..generic
            }),
            cookies: self.cookies,
            validators: self.validators,
            store: StoreRules { variants, ..store },
            ..policy
        }
    }
}

#[cfg(test)]
mod reference {
    use serde::Serializer;

    use super::*;
    use crate::config::reference::merged;

    merged!(GenericStore of StoreRules, RawVariants);

    impl Serialize for GenericStore {
        fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            let mut fields = serde_json::to_value(&self.0).unwrap();
            let variants = serde_json::to_value(&self.1).unwrap();
            let more = variants.as_object().unwrap().clone();
            fields.as_object_mut().unwrap().extend(more);
            fields.serialize(to)
        }
    }
}
