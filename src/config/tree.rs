//! Reads typed values out of the tree of a configuration.
//!
//! The tree may hold secrets in any place, so no error of this reader shows a value. It names the
//! place, what belongs there, and the kind of thing that stands there. The name of an unknown field is
//! shown as long as it looks like a name.
//!
//! Types say with serde's derives how they are written, in two ways that serde has no good form for:
//! - An enum of structs stands in a map whose field `kind` names the variant.
//! - A tuple of structs stands in one map that has the fields of all of them.

mod fault;

use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value};

use self::fault::any_of;
pub(super) use self::fault::{Fault, Step};

/// The field that names a variant.
const KIND: &str = "kind";

/// Reads a value out of `tree`, as if what the paths in `left_out` lead to were not there.
pub(super) fn read<'a, T: Deserialize<'a>>(
    tree: &'a Value,
    left_out: &'a [Vec<Step>],
) -> Result<T, Fault> {
    T::deserialize(Node {
        value: tree,
        left_out: left_out.iter().map(Vec::as_slice).collect(),
        taken: Vec::new(),
    })
}

/// A value and what is to be left out below it.
#[derive(Clone)]
struct Node<'a> {
    value: &'a Value,
    left_out: Vec<&'a [Step]>,
    /// Fields that others have read, if it is a map.
    taken: Vec<&'static str>,
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

    /// The fields of a map, all but those that are taken, or only these.
    fn fields(
        self,
        map: &'a Map<String, Value>,
        only: Option<&'static [&'static str]>,
    ) -> Fields<'a> {
        Fields {
            fields: map.iter(),
            value: None,
            only,
            node: self,
        }
    }

    /// What `step` leads to; `None` when it is to be left out.
    fn child(&self, value: &'a Value, step: &Step) -> Option<Self> {
        let below = self
            .left_out
            .iter()
            .filter_map(|path| match path.split_first() {
                Some((first, rest)) if first == step => Some(rest),
                Some(_) | None => None,
            });
        let left_out: Vec<_> = below.collect();
        let is_left_out = left_out.iter().any(|path| path.is_empty());
        (!is_left_out).then_some(Self {
            value,
            left_out,
            taken: Vec::new(),
        })
    }
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
                node: self,
            }),
            Value::Object(map) => visitor.visit_map(self.fields(map, None)),
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

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let words = any_of(variants);
        match self.value {
            Value::String(word) => visitor.visit_enum(Word(word)),
            Value::Object(_) => visitor.visit_enum(Tagged { node: self, words }),
            _ => Err(de::Error::invalid_type(self.unexpected(), &words.as_str())),
        }
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.value {
            Value::Object(_) => visitor.visit_seq(Parts {
                node: self,
                to_come: length,
            }),
            _ => Err(de::Error::invalid_type(
                self.unexpected(),
                &"a map of fields",
            )),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple map struct identifier ignored_any
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Value>>,
    node: Node<'a>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        for (index, value) in self.items.by_ref() {
            let step = Step::Index(index);
            if let Some(node) = self.node.child(value, &step) {
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
    /// All others are not looked at.
    only: Option<&'static [&'static str]>,
    node: Node<'a>,
}

impl<'de> MapAccess<'de> for Fields<'de> {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        for (name, value) in self.fields.by_ref() {
            let is_of_others = match self.only {
                Some(only) => !only.contains(&name.as_str()),
                None => self.node.taken.contains(&name.as_str()),
            };
            if is_of_others {
                continue;
            }
            let step = Step::Field(name.clone());
            if let Some(node) = self.node.child(value, &step) {
                let key: StrDeserializer<'_, Fault> = name.as_str().into_deserializer();
                let read = seed.deserialize(key);
                self.value = Some((step, node));
                return read.map(Some).map_err(|fault| fault.at_name(name));
            }
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let (step, node) = self.value.take().expect("serde asks for a key first");
        seed.deserialize(node).map_err(|fault| fault.inside(step))
    }
}

/// Several structs in one map. All but the last read only the fields that they know.
struct Parts<'a> {
    node: Node<'a>,
    to_come: usize,
}

impl<'de> SeqAccess<'de> for Parts<'de> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        let Some(to_come) = self.to_come.checked_sub(1) else {
            return Ok(None);
        };
        self.to_come = to_come;
        seed.deserialize(Part {
            is_last: to_come == 0,
            node: &mut self.node,
        })
        .map(Some)
    }
}

struct Part<'p, 'a> {
    node: &'p mut Node<'a>,
    is_last: bool,
}

impl<'de> Deserializer<'de> for Part<'_, 'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.node.clone().deserialize_any(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let Value::Object(map) = self.node.value else {
            return self.deserialize_any(visitor);
        };
        let earlier = self.node.taken.clone();
        let only = (!self.is_last).then_some(fields);
        self.node.taken.extend(fields);
        let node = Node {
            taken: earlier.clone(),
            ..self.node.clone()
        };
        let read = visitor.visit_map(node.fields(map, only));
        read.map_err(|fault| fault.or_one_of(&earlier))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// One of several words.
struct Word<'a>(&'a str);

impl<'de> EnumAccess<'de> for Word<'de> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Fault> {
        let word: StrDeserializer<'_, Fault> = self.0.into_deserializer();
        Ok((seed.deserialize(word)?, self))
    }
}

impl<'de> VariantAccess<'de> for Word<'de> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, _: S) -> Result<S::Value, Fault> {
        let found = Unexpected::Str(self.0);
        Err(de::Error::invalid_type(found, &"a map of fields"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        Err(de::Error::invalid_type(Unexpected::Str(self.0), &visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        Err(de::Error::invalid_type(Unexpected::Str(self.0), &visitor))
    }
}

/// One of several structs, with its word in the field `kind`.
struct Tagged<'a> {
    node: Node<'a>,
    words: String,
}

impl<'de> EnumAccess<'de> for Tagged<'de> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(mut self, seed: S) -> Result<(S::Value, Self), Fault> {
        let step = Step::Field(KIND.to_owned());
        let kind = self.node.value.get(KIND);
        let Some(kind) = kind.and_then(|kind| self.node.child(kind, &step)) else {
            return Err(Fault::new(format!(
                "needs the field `{KIND}`, which is {}",
                self.words
            )));
        };
        let read = match kind.value {
            Value::String(word) => {
                let word: StrDeserializer<'_, Fault> = word.as_str().into_deserializer();
                seed.deserialize(word)
            }
            _ => Err(de::Error::invalid_type(
                kind.unexpected(),
                &self.words.as_str(),
            )),
        };
        self.node.taken.push(KIND);
        Ok((read.map_err(|fault| fault.inside(step))?, self))
    }
}

impl<'de> VariantAccess<'de> for Tagged<'de> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Err(de::Error::invalid_type(
            Unexpected::Map,
            &self.words.as_str(),
        ))
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Fault> {
        let earlier = self.node.taken.clone();
        let read = seed.deserialize(self.node);
        read.map_err(|fault| fault.or_one_of(&earlier))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        Err(de::Error::invalid_type(Unexpected::Map, &visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        Err(de::Error::invalid_type(Unexpected::Map, &visitor))
    }
}
