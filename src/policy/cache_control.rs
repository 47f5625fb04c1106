//! `Cache-Control` of a response (RFC 9111 section 5.2).

use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue};

/// Larger values mean this many seconds, about 68 years (RFC 9111 section 1.2.2).
const DELTA_SECONDS_MAX: u64 = 1 << 31;

/// The response directives that a shared cache obeys (RFC 9111 section 5.2.2).
///
/// Unknown directives are ignored. Of a directive that is repeated with different arguments the
/// first counts (section 4.2.1). An argument that cannot be read makes a lifetime zero, so that a
/// malformed header never keeps anything longer than its author meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheControl {
    /// `no-store` (section 5.2.2.5).
    pub no_store: bool,
    /// `private`, with or without field names (section 5.2.2.7).
    pub private: bool,
    /// `no-cache`, with or without field names (section 5.2.2.4).
    pub no_cache: bool,
    /// `s-maxage` in seconds (section 5.2.2.10).
    pub s_maxage: Option<u64>,
    /// `max-age` in seconds (section 5.2.2.1).
    pub max_age: Option<u64>,
}

impl CacheControl {
    /// Reads all `Cache-Control` field lines as one list.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut control = Self::default();
        for line in headers.get_all(CACHE_CONTROL) {
            for directive in Directives(line.as_bytes()) {
                control.add(directive.name, directive.argument);
            }
        }
        control
    }

    fn add(&mut self, name: &[u8], argument: Option<&[u8]>) {
        if name.eq_ignore_ascii_case(b"no-store") {
            self.no_store = true;
        } else if name.eq_ignore_ascii_case(b"private") {
            self.private = true;
        } else if name.eq_ignore_ascii_case(b"no-cache") {
            self.no_cache = true;
        } else if name.eq_ignore_ascii_case(b"s-maxage") {
            self.s_maxage.get_or_insert(lifetime(argument));
        } else if name.eq_ignore_ascii_case(b"max-age") {
            self.max_age.get_or_insert(lifetime(argument));
        }
    }
}

/// `Cache-Control` with no lifetime above `seconds`; `None` when none is above it already.
pub fn limited_cache_control(headers: &HeaderMap, seconds: u64) -> Option<HeaderValue> {
    let control = CacheControl::of(headers);
    if control.max_age.max(control.s_maxage)? <= seconds {
        return None;
    }
    let mut limited = Vec::new();
    for line in headers.get_all(CACHE_CONTROL) {
        for directive in Directives(line.as_bytes()) {
            if !limited.is_empty() {
                limited.extend_from_slice(b", ");
            }
            if directive.is_lifetime() {
                limited.extend_from_slice(directive.name);
                let value = lifetime(directive.argument).min(seconds);
                limited.extend_from_slice(format!("={value}").as_bytes());
            } else {
                limited.extend_from_slice(directive.text);
            }
        }
    }
    HeaderValue::from_bytes(&limited).ok()
}

/// Reads `delta-seconds` (RFC 9111 section 1.2.2); `None` when it is not a number.
pub(super) fn delta_seconds(argument: &[u8]) -> Option<u64> {
    if argument.is_empty() || !argument.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = argument.iter().fold(0_u64, |sum, digit| {
        sum.saturating_mul(10)
            .saturating_add(u64::from(digit - b'0'))
    });
    Some(seconds.min(DELTA_SECONDS_MAX))
}

fn lifetime(argument: Option<&[u8]>) -> u64 {
    argument.and_then(delta_seconds).unwrap_or(0)
}

struct Directive<'a> {
    name: &'a [u8],
    argument: Option<&'a [u8]>,
    text: &'a [u8],
}

impl Directive<'_> {
    fn is_lifetime(&self) -> bool {
        self.name.eq_ignore_ascii_case(b"max-age") || self.name.eq_ignore_ascii_case(b"s-maxage")
    }
}

/// Iterates over `name [= (token | quoted-string)]`, separated by commas outside quotes.
struct Directives<'a>(&'a [u8]);

impl<'a> Iterator for Directives<'a> {
    type Item = Directive<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.0.is_empty() {
                return None;
            }
            let mut is_quoted = false;
            let mut is_escaped = false;
            let end = self
                .0
                .iter()
                .position(|&byte| {
                    if is_escaped {
                        is_escaped = false;
                    } else if is_quoted && byte == b'\\' {
                        is_escaped = true;
                    } else if byte == b'"' {
                        is_quoted = !is_quoted;
                    }
                    byte == b',' && !is_quoted
                })
                .unwrap_or(self.0.len());
            let directive = self.0[..end].trim_ascii();
            self.0 = self.0.get(end + 1..).unwrap_or_default();
            if directive.is_empty() {
                continue;
            }
            let equals = directive.iter().position(|&byte| byte == b'=');
            return Some(Directive {
                name: directive[..equals.unwrap_or(directive.len())].trim_ascii_end(),
                argument: equals.map(|equals| unquote(directive[equals + 1..].trim_ascii_start())),
                text: directive,
            });
        }
    }
}

/// Both forms of an argument mean the same (RFC 9111 section 5.2).
fn unquote(argument: &[u8]) -> &[u8] {
    argument
        .strip_prefix(b"\"")
        .and_then(|argument| argument.strip_suffix(b"\""))
        .unwrap_or(argument)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(lines: &[&str]) -> CacheControl {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, HeaderValue::from_str(line).unwrap());
        }
        CacheControl::of(&headers)
    }

    #[test]
    fn directives_are_read_in_any_case_and_over_several_lines() {
        let control = parse(&["Public, MAX-AGE=60", "s-maxage=\"90\""]);
        assert_eq!(control.max_age, Some(60));
        assert_eq!(control.s_maxage, Some(90));
        assert!(!control.no_store);
    }

    #[test]
    fn a_comma_inside_quotes_separates_nothing() {
        let control = parse(&["no-cache=\"a, no-store\", private=\"x\\\", no-store\""]);
        assert!(control.no_cache && control.private && !control.no_store);
    }

    #[test]
    fn of_a_repeated_directive_the_first_counts() {
        assert_eq!(parse(&["max-age=1, max-age=100"]).max_age, Some(1));
    }

    #[test]
    fn a_malformed_lifetime_is_zero() {
        for malformed in [
            "max-age=abc",
            "max-age",
            "max-age=-1",
            "max-age=1.5",
            "max-age=",
        ] {
            assert_eq!(parse(&[malformed]).max_age, Some(0), "{malformed}");
        }
    }

    #[test]
    fn a_lifetime_of_any_number_of_digits_is_capped() {
        assert_eq!(
            parse(&["max-age=99999999999999999999999"]).max_age,
            Some(DELTA_SECONDS_MAX)
        );
        assert_eq!(
            parse(&["max-age=2307070330"]).max_age,
            Some(DELTA_SECONDS_MAX)
        );
    }

    #[test]
    fn a_limit_lowers_lifetimes_and_keeps_the_rest() {
        let limit = |line: &'static str| {
            let headers = [(CACHE_CONTROL, HeaderValue::from_static(line))];
            limited_cache_control(&headers.into_iter().collect(), 60)
        };
        assert_eq!(
            limit("public, max-age=31536000, s-maxage=30, no-cache=\"a, b\"").unwrap(),
            "public, max-age=60, s-maxage=30, no-cache=\"a, b\""
        );
        assert_eq!(limit("max-age=60"), None);
        assert_eq!(limit("public"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(32_u8..=255, 0..80)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.append(CACHE_CONTROL, value);
                CacheControl::of(&headers);
            }
        }
    }
}
