//! The same rules in the reference of the configuration: their form, and how defaults look.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};
use serde_json::json;

use super::{Clients, Negative, Network, Query, Statuses};
use crate::written::{Element, HumanDuration, Written as _};

impl Negative {
    pub(in crate::policy) fn serialize<S: Serializer>(
        values: &[(StatusCode, Duration)],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let texts = values.iter().map(|(status, lifetime)| {
            let lifetime = HumanDuration::write(lifetime);
            (status.as_u16(), lifetime)
        });
        to.collect_map(texts)
    }
}

impl Serialize for Clients {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Ignored => to.serialize_str("ignore"),
            Self::Obeyed => to.serialize_str("obey"),
            Self::Trusted(networks) => {
                let networks: Vec<_> = networks.iter().map(Network::write).collect();
                json!({"trusted": networks}).serialize(to)
            }
        }
    }
}

impl Serialize for Query {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => to.serialize_str("all"),
            Self::None => to.serialize_str("none"),
            Self::Only(names) => names.serialize(to),
        }
    }
}

impl Serialize for Statuses {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => to.serialize_str("any"),
            Self::Only(statuses) => to.collect_seq(statuses.iter().map(StatusCode::as_u16)),
        }
    }
}

/// Types whose schema is written out.
macro_rules! schema {
    ($($type:ty, $name:literal: |$generator:ident| $schema:expr;)*) => {$(
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema($generator: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    )*};
}

schema! {
    Negative, "Negative": |generator| {
        let time = Element::<HumanDuration>::json_schema(generator);
        json_schema!({
            "type": "object",
            "title": "map from statuses to times",
            "patternProperties": {"^[34][0-9][0-9]$": time},
            "additionalProperties": false
        })
    };
    Clients, "Clients": |generator| {
        let network = Element::<Network>::json_schema(generator);
        json_schema!({"title": "`ignore`, `obey` or `{trusted: [NETWORK]}`", "anyOf": [
            {"enum": ["ignore", "obey"]},
            {
                "type": "object",
                "properties": {"trusted": {"type": "array", "items": network}},
                "required": ["trusted"],
                "additionalProperties": false
            }
        ]})
    };
    Query, "Query": |_generator| json_schema!({"title": "`all`, `none` or list of texts", "anyOf": [
        {"enum": ["all", "none"]},
        {"type": "array", "items": {"type": "string"}}
    ]});
    Statuses, "Statuses": |_generator| json_schema!({"title": "list of statuses, or `any`", "anyOf": [
        {"const": "any"},
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 200, "maximum": 599, "not": {"enum": [206, 304]}}
        }
    ]});
}
