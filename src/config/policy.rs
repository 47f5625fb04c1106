//! One policy of the configuration.
//!
//! The policy's own types ([`Policy`] and what is in it) say how their fields are written, what they
//! mean and what they are by default. Here is what depends on the kind of policy, and what must be
//! looked up or compared.

mod generic;
mod imgproxy;
mod upstream;

use std::sync::Arc;

use serde::Deserialize;
#[cfg(test)]
use {schemars::JsonSchema, serde::Serialize};

use self::generic::RawGeneric;
use self::imgproxy::RawImgproxy;
use self::upstream::RawUpstream;
use super::problem::Problem;
use super::secret::SecretSource;
use crate::policy::{Completion, Generic, Imgproxy, Policy};
use crate::written::{Optional, Written};

/// What routes can choose by a name. `kind` says what the URLs mean; everything else has a default.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawPolicy {
    /// The URLs of one imgproxy configuration.
    Imgproxy(Box<ImgproxyPolicy>),
    /// The URLs of any other origin.
    Generic(Box<GenericPolicy>),
}

#[derive(Deserialize)]
pub(super) struct ImgproxyPolicy(Policy, RawCommon, Imgproxy, RawImgproxy);

#[derive(Deserialize)]
pub(super) struct GenericPolicy(Policy, RawCommon, Generic, RawGeneric);

/// What both kinds have, and what does not stand in [`Policy`] as it is written.
#[derive(Default, Deserialize)]
#[cfg_attr(test, derive(Serialize, JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawCommon {
    /// The first part of the object names: 1 to 63 of `a-z`, `0-9` and `-`. Policies with the same one
    /// share entries.
    #[cfg_attr(test, schemars(extend("x-default" = "the policy's name")))]
    #[serde(with = "Optional::<Name>")]
    namespace: Option<String>,
    /// Where the routes' upstream is, for requests of our own. They refresh entries in the background
    /// (`stale_while_revalidate`), ask about stale entries above `limits.immediate_cap`, and complete
    /// what others wait for when its client leaves. Without it one client's request refreshes for the
    /// others, large stale entries are not asked about, and one of those that wait begins anew.
    #[cfg_attr(test, serde(skip_serializing))]
    upstream: Option<RawUpstream>,
}

impl RawPolicy {
    pub(super) fn build(self, name: &str, problems: &mut Vec<Problem>) -> Option<Policy> {
        let mut check = Check {
            policy: name,
            before: problems.len(),
            problems,
        };
        if Name::read(name).is_none() {
            check.problem("", "a name has 1 to 63 of `a-z`, `0-9` and `-`");
        }
        if name == "bypass" {
            check.problem("", "`bypass` is a word of its own, choose another name");
        }
        let (mut policy, common) = match self {
            Self::Imgproxy(raw) => {
                let ImgproxyPolicy(policy, common, imgproxy, raw) = *raw;
                (raw.build(policy, imgproxy, &mut check), common)
            }
            Self::Generic(raw) => {
                let GenericPolicy(policy, common, generic, raw) = *raw;
                (raw.build(policy, generic, &mut check), common)
            }
        };
        policy.name = name.into();
        policy.namespace = common.namespace.as_deref().unwrap_or(name).into();
        policy.upstream = common.upstream.map(|raw| Arc::new(raw.into()));
        check.freshness(&policy);
        let completes = policy.upstream.as_ref().map(|upstream| upstream.completion);
        if !policy.collapses && completes == Some(Completion::Always) {
            check.problem("upstream.completion", "`always` needs `collapse: true`");
        }
        check.is_valid().then_some(policy)
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

    fn freshness(&mut self, policy: &Policy) {
        let rules = &policy.freshness;
        if rules
            .heuristic
            .is_some_and(|heuristic| !(1..=100).contains(&heuristic.percent))
        {
            self.problem("freshness.heuristic.percent", "is 1 to 100");
        }
        if rules.floor > rules.ceiling {
            self.problem("freshness.floor", "is above freshness.ceiling");
        }
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
}

/// A name that can be a part of object names, and a label.
struct Name;

impl Written for Name {
    type Value = String;

    #[cfg(test)]
    const NAME: &'static str = "name";
    const EXPECTED: &'static str = "a name of 1 to 63 of `a-z`, `0-9` and `-`";

    fn read(text: &str) -> Option<String> {
        let is_valid = (1..=63).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        is_valid.then(|| text.to_owned())
    }

    #[cfg(test)]
    fn write(value: &String) -> String {
        value.clone()
    }
}

#[cfg(test)]
mod reference {
    use std::borrow::Cow;

    use schemars::{Schema, SchemaGenerator, json_schema};

    use super::*;
    use crate::config::reference::merged;

    merged!(ImgproxyPolicy of Policy, RawCommon, Imgproxy, RawImgproxy);
    merged!(GenericPolicy of Policy, RawCommon, Generic, RawGeneric);

    impl JsonSchema for RawPolicy {
        fn schema_name() -> Cow<'static, str> {
            "Policy".into()
        }

        fn json_schema(generator: &mut SchemaGenerator) -> Schema {
            let kind = |kind: &str, mut schema: Schema| {
                let schema = schema.ensure_object();
                schema["properties"]["kind"] = serde_json::json!({
                    "const": kind,
                    "description": "What the policy's URLs mean.",
                });
                schema.insert("required".to_owned(), serde_json::json!(["kind"]));
                serde_json::Value::Object(schema.clone())
            };
            let imgproxy = kind("imgproxy", ImgproxyPolicy::json_schema(generator));
            let generic = kind("generic", GenericPolicy::json_schema(generator));
            json_schema!({"oneOf": [imgproxy, generic]})
        }
    }
}
