//! Reads the policy's name in a route's metadata.
//!
//! Envoy sends `xds.route_metadata` as one string: `envoy.config.core.v3.Metadata` in the text
//! format of protocol buffers. This module reads as much of that format as such a message needs,
//! within bounds. It looks in two places: `filter_metadata.afterimage.policy`, and the annotation
//! `gateway.envoyproxy.io/afterimage-policy`, which Envoy Gateway copies to
//! `filter_metadata.envoy-gateway.resources[].annotations` without its prefix.

/// The longest text that is read.
const MAX_TEXT_BYTES: usize = 64 * 1024;

/// The deepest nesting of messages that is read. Envoy Gateway's annotations are at depth eleven.
const MAX_DEPTH: usize = 24;

/// The text is not what Envoy writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("route metadata is not readable at byte {at}: expected {what}")]
pub(super) struct Malformed {
    /// Offset in the text.
    at: usize,
    /// What was expected there.
    what: &'static str,
}

/// Reads the policy that a route's metadata names; `None` when it names none.
///
/// # Errors
/// [`Malformed`] for a text that is not readable.
pub(super) fn policy_name(text: &str) -> Result<Option<String>, Malformed> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(Malformed {
            at: MAX_TEXT_BYTES,
            what: "at most 65536 bytes",
        });
    }
    let mut reader = Reader { text, at: 0 };
    let metadata = reader.message(None, 0)?;
    let own = map_value(&metadata, "filter_metadata", "afterimage")
        .and_then(|value| map_value(value, "fields", "policy"))
        .and_then(|value| string_value(value));
    let annotated = || {
        let gateway = map_value(&metadata, "filter_metadata", "envoy-gateway")?;
        let resources = map_value(gateway, "fields", "resources")?;
        let list = message(resources, "list_value")?;
        messages(list, "values").find_map(|resource| {
            let annotations =
                map_value(message(resource, "struct_value")?, "fields", "annotations")?;
            let policy = map_value(
                message(annotations, "struct_value")?,
                "fields",
                "afterimage-policy",
            )?;
            string_value(policy)
        })
    };
    Ok(own.or_else(annotated).map(str::to_owned))
}

#[derive(Debug)]
enum Value {
    Scalar(String),
    Message(Message),
}

type Message = Vec<(String, Value)>;

fn messages<'a>(message: &'a Message, name: &'a str) -> impl Iterator<Item = &'a Message> {
    message
        .iter()
        .filter_map(move |(field, value)| match value {
            Value::Message(inner) if field == name => Some(inner),
            Value::Message(_) | Value::Scalar(_) => None,
        })
}

fn message<'a>(outer: &'a Message, name: &'a str) -> Option<&'a Message> {
    messages(outer, name).next()
}

fn scalar<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.iter().find_map(|(field, value)| match value {
        Value::Scalar(text) if field == name => Some(text.as_str()),
        Value::Scalar(_) | Value::Message(_) => None,
    })
}

/// The value in the map `field` under this key.
fn map_value<'a>(outer: &'a Message, field: &'a str, key: &str) -> Option<&'a Message> {
    messages(outer, field)
        .find(|entry| scalar(entry, "key") == Some(key))
        .and_then(|entry| message(entry, "value"))
}

fn string_value(value: &Message) -> Option<&str> {
    scalar(value, "string_value")
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    /// Reads fields up to and including `end`, or to the end of the text for `None`.
    fn message(&mut self, end: Option<u8>, depth: usize) -> Result<Message, Malformed> {
        if depth > MAX_DEPTH {
            return Err(self.expected("fewer nested messages"));
        }
        let mut fields = Message::new();
        loop {
            self.skip_space();
            match (self.peek(), end) {
                (None, None) => return Ok(fields),
                (None, Some(_)) => return Err(self.expected("the end of a message")),
                (Some(byte), Some(end)) if byte == end => {
                    self.at += 1;
                    return Ok(fields);
                }
                (Some(b',' | b';'), _) => self.at += 1,
                (Some(_), _) => self.field(&mut fields, depth)?,
            }
        }
    }

    fn field(&mut self, fields: &mut Message, depth: usize) -> Result<(), Malformed> {
        let name = self.field_name()?;
        self.skip_space();
        if self.peek() == Some(b':') {
            self.at += 1;
            self.skip_space();
        }
        if self.peek() != Some(b'[') {
            let value = self.value(depth)?;
            fields.push((name, value));
            return Ok(());
        }
        // A list is the short form of a repeated field.
        self.at += 1;
        loop {
            self.skip_space();
            match self.peek() {
                Some(b']') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b',') => self.at += 1,
                Some(_) => {
                    let value = self.value(depth)?;
                    fields.push((name.clone(), value));
                }
                None => return Err(self.expected("`]`")),
            }
        }
    }

    /// Reads a name, or `[type.googleapis.com/...]` of an `Any`.
    fn field_name(&mut self) -> Result<String, Malformed> {
        let start = self.at;
        if self.peek() == Some(b'[') {
            while self.peek().is_some_and(|byte| byte != b']') {
                self.at += 1;
            }
            self.at += usize::from(self.peek().is_some());
        } else {
            self.skip_word();
        }
        if self.at == start {
            return Err(self.expected("a field name"));
        }
        Ok(self.text[start..self.at].to_owned())
    }

    fn value(&mut self, depth: usize) -> Result<Value, Malformed> {
        match self.peek() {
            Some(b'{') => {
                self.at += 1;
                self.message(Some(b'}'), depth + 1).map(Value::Message)
            }
            Some(b'<') => {
                self.at += 1;
                self.message(Some(b'>'), depth + 1).map(Value::Message)
            }
            Some(b'"' | b'\'') => self.strings().map(Value::Scalar),
            _ => {
                let start = self.at;
                self.skip_word();
                if self.at == start {
                    return Err(self.expected("a value"));
                }
                Ok(Value::Scalar(self.text[start..self.at].to_owned()))
            }
        }
    }

    /// Reads adjacent strings, which are one.
    fn strings(&mut self) -> Result<String, Malformed> {
        let mut bytes = Vec::new();
        while let Some(quote @ (b'"' | b'\'')) = self.peek() {
            self.at += 1;
            self.string(quote, &mut bytes)?;
            self.skip_space();
        }
        String::from_utf8(bytes).map_err(|_| self.expected("UTF-8"))
    }

    fn string(&mut self, quote: u8, bytes: &mut Vec<u8>) -> Result<(), Malformed> {
        loop {
            let byte = self.next_byte("the end of a string")?;
            if byte == quote {
                return Ok(());
            }
            if byte != b'\\' {
                bytes.push(byte);
                continue;
            }
            let escape = self.next_byte("an escape")?;
            bytes.push(match escape {
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                b'a' => 0x07,
                b'b' => 0x08,
                b'f' => 0x0c,
                b'v' => 0x0b,
                b'\\' | b'\'' | b'"' | b'?' => escape,
                b'0'..=b'7' => self.octal(escape)?,
                b'x' => self.hex()?,
                _ => return Err(self.expected("a known escape")),
            });
        }
    }

    fn octal(&mut self, first: u8) -> Result<u8, Malformed> {
        let mut value = u32::from(first - b'0');
        for _ in 0..2 {
            let Some(digit @ b'0'..=b'7') = self.peek() else {
                break;
            };
            self.at += 1;
            value = value * 8 + u32::from(digit - b'0');
        }
        u8::try_from(value).map_err(|_| self.expected("an octal byte"))
    }

    fn hex(&mut self) -> Result<u8, Malformed> {
        let mut value = 0;
        let mut digits = 0;
        while let Some(digit) = self
            .peek()
            .and_then(|byte| char::from(byte).to_digit(16))
            .filter(|_| digits < 2)
        {
            self.at += 1;
            digits += 1;
            value = value * 16 + digit;
        }
        if digits == 0 {
            return Err(self.expected("a hexadecimal byte"));
        }
        u8::try_from(value).map_err(|_| self.expected("a hexadecimal byte"))
    }

    fn next_byte(&mut self, what: &'static str) -> Result<u8, Malformed> {
        let byte = self.peek().ok_or_else(|| self.expected(what))?;
        self.at += 1;
        Ok(byte)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while let Some(byte) = self.peek() {
            if byte == b'#' {
                while self.peek().is_some_and(|byte| byte != b'\n') {
                    self.at += 1;
                }
            } else if byte.is_ascii_whitespace() {
                self.at += 1;
            } else {
                return;
            }
        }
    }

    fn skip_word(&mut self) {
        while self
            .peek()
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || b"_-+.".contains(&byte))
        {
            self.at += 1;
        }
    }

    fn expected(&self, what: &'static str) -> Malformed {
        Malformed { at: self.at, what }
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing {
    //! Checks what holds for any text, and panics where it does not.

    use super::{MAX_TEXT_BYTES, policy_name};

    /// Checks the bytes as a text and as a name.
    pub fn route_metadata(bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        let named = policy_name(&text);
        if text.len() + 20 < MAX_TEXT_BYTES && named.is_ok() {
            assert_eq!(policy_name(&format!(" x: [y] #\n{text}\n# }}")), named);
        }
        let escaped: String = text.bytes().map(|byte| format!("\\{byte:o}")).collect();
        let own = format!(
            "filter_metadata {{ key: \"afterimage\" \
             value {{ fields {{ key: 'policy' value <string_value: '{escaped}'> }} }} }}"
        );
        if own.len() <= MAX_TEXT_BYTES {
            assert_eq!(policy_name(&own), Ok(Some(text.into_owned())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Option<String> {
        policy_name(text).unwrap()
    }

    #[test]
    fn the_namespace_of_this_project_names_the_policy() {
        let text = r#"filter_metadata { key: "other" value { fields { key: "policy" value { string_value: "no" } } } }
            filter_metadata { key: "afterimage" value { fields { key: "n" value { number_value: -1.5e3 } }
              fields { key: "policy" value { string_value: "images" } } } }"#;
        assert_eq!(name(text).as_deref(), Some("images"));
    }

    #[test]
    fn the_annotation_that_envoy_gateway_copies_names_the_policy() {
        let text = r#"filter_metadata { key: "envoy-gateway" value { fields { key: "resources" value {
            list_value { values { struct_value {
              fields { key: "annotations" value { struct_value {
                fields { key: "afterimage-policy" value { string_value: "thumbs" } } } } }
              fields { key: "kind" value { string_value: "HTTPRoute" } } } } } } } } }"#;
        assert_eq!(name(text).as_deref(), Some("thumbs"));
    }

    #[test]
    fn the_namespace_goes_before_the_annotation() {
        let text = r#"filter_metadata { key: "envoy-gateway" value { fields { key: "resources" value {
            list_value { values { struct_value { fields { key: "annotations" value { struct_value {
              fields { key: "afterimage-policy" value { string_value: "thumbs" } } } } } } } } } } } }
            filter_metadata { key: "afterimage" value { fields { key: "policy" value { string_value: "images" } } } }"#;
        assert_eq!(name(text).as_deref(), Some("images"));
    }

    #[test]
    fn other_spellings_of_the_format_are_read() {
        let text = "filter_metadata: < key: 'afterimage' value: {fields: [{key: \"pol\" 'icy', value: {string_value: \"\\151m\\x61ges\"}}] } > # end";
        assert_eq!(name(text).as_deref(), Some("images"));
    }

    #[test]
    fn metadata_without_a_policy_names_none() {
        for text in [
            "",
            "  ",
            r#"filter_metadata { key: "x" value { } }"#,
            r#"filter_metadata { key: "afterimage" value { fields { key: "policy" value { number_value: 3 } } } }"#,
            r#"typed_filter_metadata { key: "t" value { [type.googleapis.com/x.Y] { a: true } } }"#,
        ] {
            assert_eq!(name(text), None, "{text}");
        }
    }

    #[test]
    fn a_text_that_is_not_readable_is_an_error() {
        for text in [
            "filter_metadata {",
            "filter_metadata { key: \"a }",
            "}",
            "a: ",
            "a: [1, ",
            "a: \"\\q\"",
            "goo.gle/debugonly {",
            &"a { ".repeat(40),
            &" ".repeat(MAX_TEXT_BYTES + 1),
        ] {
            assert!(policy_name(text).is_err(), "{text}");
        }
    }
}
