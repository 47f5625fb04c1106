//! The same values in the reference of the configuration: their form, and how defaults look.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use super::{As, Each, Element, Optional, Written};

impl<W: Written> As<W> {
    pub(crate) fn serialize<S: Serializer>(value: &W::Value, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&W::write(value))
    }
}

impl<W: Written> Optional<W> {
    pub(crate) fn serialize<S: Serializer>(
        value: &Option<W::Value>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().map(W::write).serialize(to)
    }
}

impl<W: Written> Each<W> {
    pub(crate) fn serialize<S: Serializer>(values: &[W::Value], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(values.iter().map(W::write))
    }
}

impl<W: Written> JsonSchema for Element<W> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        W::NAME.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "title": W::NAME})
    }
}

/// The schema of a wrapper is that of what it stands for.
macro_rules! same_schema {
    ($($wrapper:ident is $inner:ty;)*) => {$(
        impl<W: Written> JsonSchema for $wrapper<W> {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                <$inner>::schema_name()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                <$inner>::json_schema(generator)
            }
        }
    )*};
}

same_schema! {
    As is Element<W>;
    Optional is Option<Element<W>>;
    Each is Vec<Element<W>>;
}
