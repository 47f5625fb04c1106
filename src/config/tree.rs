//! Reads typed values out of the tree of a configuration.
//!
//! The tree may hold secrets in any place, so no error of this reader shows a value. It names the
//! place, what belongs there, and the kind of thing that stands there. The name of an unknown field is
//! shown as long as it looks like a name.

use std::fmt;

use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value};

/// Reads a value out of `tree`, as if what the paths in `left_out` lead to were not there.
pub(super) fn read<'a, T: Deserialize<'a>>(
    tree: &'a Value,
    left_out: &'a [Vec<Step>],
) -> Result<T, Fault> {
    T::deserialize(Node {
        value: tree,
        left_out: left_out.iter().map(Vec::as_slice).collect(),
    })
}

/// One step of the way to a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Field(String),
    Index(usize),
}

/// Something that cannot be read, and where.
#[derive(Debug)]
pub(super) struct Fault {
    /// From the inside out.
    steps: Vec<Step>,
    /// What stands in the place of a field's name may be a value that slipped into a wrong line.
    hides_name: bool,
    what: String,
}

impl Fault {
    fn new(what: impl Into<String>) -> Self {
        Self {
            steps: Vec::new(),
            hides_name: false,
            what: what.into(),
        }
    }

    fn inside(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// The way to it.
    pub(super) fn steps(&self) -> Vec<Step> {
        self.steps.iter().rev().cloned().collect()
    }

    /// The way to it, as it is shown.
    pub(super) fn place(&self) -> String {
        let mut place = String::new();
        let shown = &self.steps[usize::from(self.hides_name)..];
        for step in shown.iter().rev() {
            match step {
                Step::Field(name) if place.is_empty() => place.push_str(name),
                Step::Field(name) => place = format!("{place}.{name}"),
                Step::Index(index) => place = format!("{place}[{index}]"),
            }
        }
        place
    }

    /// What is wrong.
    pub(super) fn what(&self) -> &str {
        &self.what
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.what)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    /// Drops the message, because it may quote the value.
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::new("has a form that does not belong here")
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let (expected, found) = (expectation(expected), kind(&found));
        Self::new(format!("expected {expected}, but found {found}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {}", expectation(expected)))
    }

    fn invalid_length(_: usize, expected: &dyn Expected) -> Self {
        Self::new(format!("expected {}", expectation(expected)))
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("expected {}", any_of(expected)))
    }

    fn unknown_field(name: &str, expected: &'static [&'static str]) -> Self {
        let what = if looks_like_a_name(name) {
            "unknown field"
        } else {
            "unknown field, whose name is not shown because it may be a value"
        };
        Self::new(format!("{what}, expected {}", any_of(expected)))
    }

    fn missing_field(name: &'static str) -> Self {
        Self::new(format!("needs the field `{name}`"))
    }

    fn duplicate_field(name: &'static str) -> Self {
        Self::new(format!("has the field `{name}` twice"))
    }
}

/// Our fields and numbers look like this; keys, signatures and passwords rarely do.
fn looks_like_a_name(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    let is_status = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_status || (1..=40).contains(&text.len()) && text.bytes().all(is_word)
}

/// serde's words for what belongs somewhere, in the words of this configuration.
fn expectation(expected: &dyn Expected) -> String {
    let words = expected.to_string();
    match words.as_str() {
        "a sequence" => "a list",
        "a string" | "string" | "path string" => "a text",
        "a boolean" => "`true` or `false`",
        "a nonzero usize" => "a number above 0",
        "u16" | "u32" | "u64" | "usize" => "a whole number",
        "f64" => "a number",
        words if words.starts_with("struct ") || words.starts_with("a map") => "a map of fields",
        words => words,
    }
    .to_owned()
}

fn any_of(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.as_slice() {
        [] => "nothing".to_owned(),
        [only] => only.clone(),
        [first, second] => format!("{first} or {second}"),
        all => format!("one of {}", all.join(", ")),
    }
}

fn kind(found: &Unexpected<'_>) -> &'static str {
    match found {
        Unexpected::Bool(_) => "a truth value",
        Unexpected::Unsigned(_) | Unexpected::Signed(_) | Unexpected::Float(_) => "a number",
        Unexpected::Char(_) | Unexpected::Str(_) | Unexpected::Bytes(_) => "a text",
        Unexpected::Unit | Unexpected::Option => "nothing",
        Unexpected::Seq => "a list",
        Unexpected::Map => "a map",
        _ => "something else",
    }
}

/// A value and what is to be left out below it.
struct Node<'a> {
    value: &'a Value,
    left_out: Vec<&'a [Step]>,
}

impl<'a> Node<'a> {
    fn unexpected(&self) -> Unexpected<'a> {
        match self.value {
            Value::Null => Unexpected::Unit,
            Value::Bool(truth) => Unexpected::Bool(*truth),
            Value::Number(_) => Unexpected::Unsigned(0),
            Value::String(text) => Unexpected::Str(text),
            Value::Array(_) => Unexpected::Seq,
            Value::Object(_) => Unexpected::Map,
        }
    }
}

/// What `step` leads to; `None` when it is to be left out.
fn child<'a>(value: &'a Value, step: &Step, left_out: &[&'a [Step]]) -> Option<Node<'a>> {
    let below = left_out.iter().filter_map(|path| match path.split_first() {
        Some((first, rest)) if first == step => Some(rest),
        Some(_) | None => None,
    });
    let node = Node {
        value,
        left_out: below.collect(),
    };
    let is_left_out = node.left_out.iter().any(|path| path.is_empty());
    (!is_left_out).then_some(node)
}

impl<'de> Deserializer<'de> for Node<'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(truth) => visitor.visit_bool(*truth),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(number), ..) => visitor.visit_u64(number),
                (None, Some(number), _) => visitor.visit_i64(number),
                (None, None, Some(number)) => visitor.visit_f64(number),
                (None, None, None) => Err(de::Error::invalid_type(self.unexpected(), &visitor)),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(items) => visitor.visit_seq(Items {
                items: items.iter().enumerate(),
                left_out: self.left_out,
            }),
            Value::Object(fields) => visitor.visit_map(Fields {
                fields: fields.iter(),
                value: None,
                left_out: self.left_out,
            }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    /// An enum is one of several words.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.value {
            Value::String(word) => visitor.visit_enum(Word(word)),
            _ => {
                let words = any_of(variants);
                Err(de::Error::invalid_type(self.unexpected(), &words.as_str()))
            }
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Value>>,
    left_out: Vec<&'a [Step]>,
}

impl<'a> SeqAccess<'a> for Items<'a> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'a>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        for (index, value) in self.items.by_ref() {
            let step = Step::Index(index);
            if let Some(node) = child(value, &step, &self.left_out) {
                let read = seed.deserialize(node);
                return read.map(Some).map_err(|fault| fault.inside(step));
            }
        }
        Ok(None)
    }
}

struct Fields<'a> {
    fields: <&'a Map<String, Value> as IntoIterator>::IntoIter,
    /// The value of the key that was read last.
    value: Option<(Step, Node<'a>)>,
    left_out: Vec<&'a [Step]>,
}

impl<'a> MapAccess<'a> for Fields<'a> {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'a>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        for (name, value) in self.fields.by_ref() {
            let step = Step::Field(name.clone());
            if let Some(node) = child(value, &step, &self.left_out) {
                let key: StrDeserializer<'_, Fault> = name.as_str().into_deserializer();
                let read = seed.deserialize(key);
                self.value = Some((step.clone(), node));
                return read.map(Some).map_err(|fault| Fault {
                    hides_name: !looks_like_a_name(name),
                    ..fault.inside(step)
                });
            }
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let (step, node) = self.value.take().expect("serde asks for a key first");
        seed.deserialize(node).map_err(|fault| fault.inside(step))
    }
}

struct Word<'a>(&'a str);

impl<'a> EnumAccess<'a> for Word<'a> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'a>>(self, seed: S) -> Result<(S::Value, Self), Fault> {
        let word: StrDeserializer<'_, Fault> = self.0.into_deserializer();
        Ok((seed.deserialize(word)?, self))
    }
}

impl<'a> VariantAccess<'a> for Word<'a> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'a>>(self, _: S) -> Result<S::Value, Fault> {
        Err(de::Error::custom(""))
    }

    fn tuple_variant<V: Visitor<'a>>(self, _: usize, _: V) -> Result<V::Value, Fault> {
        Err(de::Error::custom(""))
    }

    fn struct_variant<V: Visitor<'a>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Fault> {
        Err(de::Error::custom(""))
    }
}
