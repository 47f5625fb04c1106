//! Reads dictionaries of structured fields (RFC 9651 section 3.2), as far as RFC 9213 needs them.

/// Reads the field lines as one dictionary: names of members, with the text of an integer, token or
/// string. A value of `None` stands for true. If a member is repeated, the last counts; the order
/// of members does not matter here.
///
/// Returns `None`, because the whole field is invalid, if a part of it is malformed, if it is
/// empty, or if a lifetime is not an integer (RFC 9213 section 2.1).
pub(super) fn dictionary<'a>(
    lines: impl Iterator<Item = &'a http::HeaderValue>,
) -> Option<Vec<(String, Option<String>)>> {
    let mut text = String::new();
    for line in lines {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(line.to_str().ok()?);
    }
    let mut reader = Reader(text.trim_matches(' ').as_bytes());
    let mut members: Vec<(String, Option<String>)> = Vec::new();
    loop {
        let name = reader.key()?;
        let value = if reader.take(b'=') {
            reader.member()?
        } else {
            Item::Boolean(true)
        };
        reader.parameters()?;
        members.retain(|(known, _)| *known != name);
        match (is_lifetime(&name), value) {
            (true, Item::Integer(seconds)) => members.push((name, Some(seconds))),
            (true, _) => return None,
            // A directive that is explicitly false is not given.
            (false, Item::Boolean(false)) => {}
            (false, Item::Boolean(true)) => members.push((name, None)),
            (false, Item::Integer(text) | Item::Text(text)) => members.push((name, Some(text))),
            (false, Item::Other) => members.push((name, None)),
        }
        reader.skip(b" \t");
        if reader.0.is_empty() {
            return Some(members);
        }
        if !reader.take(b',') {
            return None;
        }
        reader.skip(b" \t");
    }
}

fn is_lifetime(name: &str) -> bool {
    matches!(
        name,
        "max-age" | "s-maxage" | "stale-while-revalidate" | "stale-if-error"
    )
}

enum Item {
    Boolean(bool),
    Integer(String),
    /// A token or a string.
    Text(String),
    /// A valid value of a type that no directive has.
    Other,
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let is_there = self.peek() == Some(byte);
        if is_there {
            self.0 = &self.0[1..];
        }
        is_there
    }

    fn skip(&mut self, bytes: &[u8]) {
        while self.peek().is_some_and(|byte| bytes.contains(&byte)) {
            self.0 = &self.0[1..];
        }
    }

    fn take_while(&mut self, accepts: impl Fn(u8) -> bool) -> String {
        let end = self
            .0
            .iter()
            .position(|&byte| !accepts(byte))
            .unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(end);
        self.0 = rest;
        String::from_utf8_lossy(taken).into_owned()
    }

    /// Reads a key (RFC 9651 section 4.2.3.3).
    fn key(&mut self) -> Option<String> {
        let first = self.peek()?;
        if !(first.is_ascii_lowercase() || first == b'*') {
            return None;
        }
        Some(self.take_while(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte)
        }))
    }

    /// Reads an item or an inner list.
    fn member(&mut self) -> Option<Item> {
        if !self.take(b'(') {
            return self.item();
        }
        loop {
            self.skip(b" ");
            if self.take(b')') {
                return Some(Item::Other);
            }
            self.item()?;
            self.parameters()?;
            if !matches!(self.peek(), Some(b' ' | b')')) {
                return None;
            }
        }
    }

    /// Reads an item without its parameters (RFC 9651 section 4.2.3.1).
    fn item(&mut self) -> Option<Item> {
        match self.peek()? {
            b'-' | b'0'..=b'9' => self.number(),
            b'"' => self.string().map(Item::Text),
            b'?' => {
                self.take(b'?');
                match self
                    .take_while(|byte| byte == b'0' || byte == b'1')
                    .as_str()
                {
                    "0" => Some(Item::Boolean(false)),
                    "1" => Some(Item::Boolean(true)),
                    _ => None,
                }
            }
            b':' => {
                self.take(b':');
                self.take_while(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
                self.take(b':').then_some(Item::Other)
            }
            b'@' => {
                self.take(b'@');
                match self.number()? {
                    Item::Integer(_) => Some(Item::Other),
                    Item::Boolean(_) | Item::Text(_) | Item::Other => None,
                }
            }
            first if first.is_ascii_alphabetic() || first == b'*' => {
                Some(Item::Text(self.take_while(is_token_byte)))
            }
            _ => None,
        }
    }

    /// Reads a number (RFC 9651 section 4.2.4): at most 15 digits, or 12 and 3 after a point.
    fn number(&mut self) -> Option<Item> {
        let sign = if self.take(b'-') { "-" } else { "" };
        let whole = self.take_while(|byte| byte.is_ascii_digit());
        if whole.is_empty() || whole.len() > 15 {
            return None;
        }
        if !self.take(b'.') {
            return Some(Item::Integer(format!("{sign}{whole}")));
        }
        let fraction = self.take_while(|byte| byte.is_ascii_digit());
        (whole.len() <= 12 && (1..=3).contains(&fraction.len())).then_some(Item::Other)
    }

    fn string(&mut self) -> Option<String> {
        self.take(b'"');
        let mut text = String::new();
        loop {
            let byte = self.peek()?;
            self.0 = &self.0[1..];
            match byte {
                b'"' => return Some(text),
                b'\\' => match self.peek()? {
                    escaped @ (b'"' | b'\\') => {
                        self.0 = &self.0[1..];
                        text.push(char::from(escaped));
                    }
                    _ => return None,
                },
                0x20..=0x7e => text.push(char::from(byte)),
                _ => return None,
            }
        }
    }

    /// Skips parameters (RFC 9651 section 4.2.3.2), which mean nothing to a directive.
    fn parameters(&mut self) -> Option<()> {
        while self.take(b';') {
            self.skip(b" ");
            self.key()?;
            if self.take(b'=') {
                self.item()?;
            }
        }
        Some(())
    }
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte)
}
