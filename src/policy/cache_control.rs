//! Reads `Cache-Control` and the targeted fields that replace it (RFC 9111 section 5.2, RFC 9213).

mod structured;

use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Larger values mean this many seconds, about 68 years (RFC 9111 section 1.2.2).
const DELTA_SECONDS_MAX: u64 = 1 << 31;

/// The response directives that a shared cache obeys (RFC 9111 section 5.2.2, RFC 5861).
///
/// Unknown directives are ignored. If a directive is repeated with different arguments, the first
/// counts (section 4.2.1). An unreadable argument makes the lifetime or the stale window zero, so
/// that a malformed header never keeps anything longer than its author meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheControl {
    /// `no-store` (section 5.2.2.5).
    pub no_store: bool,
    /// `private` (section 5.2.2.7).
    pub private: Scope,
    /// `no-cache` (section 5.2.2.4).
    pub no_cache: Scope,
    /// `public` (section 5.2.2.9).
    pub public: bool,
    /// `must-revalidate` (section 5.2.2.2).
    pub must_revalidate: bool,
    /// `proxy-revalidate` (section 5.2.2.8).
    pub proxy_revalidate: bool,
    /// `must-understand` (section 5.2.2.3).
    pub must_understand: bool,
    /// `s-maxage` in seconds (section 5.2.2.10).
    pub s_maxage: Option<u64>,
    /// `max-age` in seconds (section 5.2.2.1).
    pub max_age: Option<u64>,
    /// `stale-while-revalidate` in seconds (RFC 5861 section 3).
    pub stale_while_revalidate: Option<u64>,
    /// `stale-if-error` in seconds (RFC 5861 section 4).
    pub stale_if_error: Option<u64>,
}

/// What a directive with optional field names applies to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    /// Nothing: the directive is absent.
    #[default]
    Nothing,
    /// These fields only.
    Fields(Vec<HeaderName>),
    /// The whole response.
    Response,
}

/// The directives for this cache, and where they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directed {
    /// The directives.
    pub control: CacheControl,
    /// Whether they come from a targeted field; then `Expires` does not count (RFC 9213 section
    /// 2.2).
    pub is_targeted: bool,
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

    /// Reads the first of the `targeted` fields that is there and valid, else `Cache-Control`
    /// (RFC 9213 section 2.2). An empty or malformed targeted field counts as absent.
    pub fn directed_at_us(headers: &HeaderMap, targeted: &[HeaderName]) -> Directed {
        for name in targeted {
            if let Some(members) = structured::dictionary(headers.get_all(name).iter()) {
                let mut control = Self::default();
                for (name, argument) in &members {
                    control.add(name.as_bytes(), argument.as_deref().map(str::as_bytes));
                }
                return Directed {
                    control,
                    is_targeted: true,
                };
            }
        }
        Directed {
            control: Self::of(headers),
            is_targeted: false,
        }
    }

    /// Whether a stale response must not be used without asking the upstream, whatever policy and
    /// client allow (RFC 9111 section 4.2.4). `s-maxage` implies `proxy-revalidate` (section
    /// 5.2.2.10).
    pub fn forbids_stale(&self) -> bool {
        self.must_revalidate
            || self.proxy_revalidate
            || self.s_maxage.is_some()
            || self.no_cache == Scope::Response
    }

    /// Whether the response to a request with `Authorization` may be shared (RFC 9111 section 3.5).
    pub fn shares_authorized(&self) -> bool {
        self.public || self.must_revalidate || self.s_maxage.is_some()
    }

    /// The fields that `no-cache` and `private` name (RFC 9111 sections 5.2.2.4 and 5.2.2.7). A
    /// directive about the whole response names none.
    pub fn unshared_fields(&self) -> impl Iterator<Item = &HeaderName> {
        self.no_cache.fields().iter().chain(self.private.fields())
    }

    fn add(&mut self, name: &[u8], argument: Option<&[u8]>) {
        // The length rules most names out at once.
        match name.len() {
            6 if is(name, b"public") => self.public = true,
            7 if is(name, b"private") => self.private.widen(argument),
            7 if is(name, b"max-age") => {
                self.max_age.get_or_insert(lifetime(argument));
            }
            8 if is(name, b"no-store") => self.no_store = true,
            8 if is(name, b"no-cache") => self.no_cache.widen(argument),
            8 if is(name, b"s-maxage") => {
                self.s_maxage.get_or_insert(lifetime(argument));
            }
            14 if is(name, b"stale-if-error") => {
                self.stale_if_error.get_or_insert(lifetime(argument));
            }
            15 if is(name, b"must-revalidate") => self.must_revalidate = true,
            15 if is(name, b"must-understand") => self.must_understand = true,
            16 if is(name, b"proxy-revalidate") => self.proxy_revalidate = true,
            22 if is(name, b"stale-while-revalidate") => {
                self.stale_while_revalidate
                    .get_or_insert(lifetime(argument));
            }
            _ => {}
        }
    }
}

impl Scope {
    /// Adds another occurrence of the directive. Without names, or with a malformed one, it applies
    /// to the whole response.
    fn widen(&mut self, argument: Option<&[u8]>) {
        let names: Option<Vec<HeaderName>> = argument.and_then(|list| {
            list.split(|&byte| byte == b',')
                .map(<[u8]>::trim_ascii)
                .filter(|name| !name.is_empty())
                .map(|name| HeaderName::from_bytes(name).ok())
                .collect()
        });
        *self = match (std::mem::take(self), names) {
            (Self::Response, _) | (_, None) => Self::Response,
            (_, Some(names)) if names.is_empty() => Self::Response,
            (Self::Nothing, Some(names)) => Self::Fields(names),
            (Self::Fields(mut all), Some(names)) => {
                all.extend(names);
                Self::Fields(all)
            }
        };
    }

    /// The fields that the directive names; none if it is absent or applies to the whole response.
    pub fn fields(&self) -> &[HeaderName] {
        match self {
            Self::Fields(names) => names,
            Self::Nothing | Self::Response => &[],
        }
    }
}

/// The request directives (RFC 9111 section 5.2.1), and `Pragma` where there is no `Cache-Control`
/// (section 5.4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestControl {
    /// `no-cache`, or `Pragma: no-cache`.
    pub no_cache: bool,
    /// `no-store`.
    pub no_store: bool,
    /// `only-if-cached`.
    pub only_if_cached: bool,
    /// `max-age` in seconds.
    pub max_age: Option<u64>,
    /// `min-fresh` in seconds.
    pub min_fresh: Option<u64>,
    /// `max-stale` in seconds; without argument, any staleness.
    pub max_stale: Option<u64>,
}

impl RequestControl {
    /// Whether the client takes a response of this age that stays fresh for `ttl`, both in seconds.
    pub fn takes_fresh(&self, age: u64, ttl: u64) -> bool {
        !self.no_cache
            && self.max_age.is_none_or(|max_age| age <= max_age)
            && self.min_fresh.is_none_or(|min_fresh| ttl >= min_fresh)
    }

    /// Whether the client takes a response of this age that has been stale for `staleness`, both in
    /// seconds.
    pub fn takes_stale(&self, age: u64, staleness: u64) -> bool {
        let Some(max_stale) = self.max_stale else {
            return false;
        };
        let max_age = self
            .max_age
            .map(|max_age| max_age.saturating_add(max_stale));
        !self.no_cache
            && staleness <= max_stale
            && max_age.is_none_or(|max_age| age <= max_age)
            && self.min_fresh.is_none()
    }

    /// Reads the directives of a request.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut control = Self::default();
        for line in headers.get_all(CACHE_CONTROL) {
            for Directive { name, argument, .. } in Directives(line.as_bytes()) {
                match name.len() {
                    7 if is(name, b"max-age") => {
                        control.max_age.get_or_insert(lifetime(argument));
                    }
                    8 if is(name, b"no-cache") => control.no_cache = true,
                    8 if is(name, b"no-store") => control.no_store = true,
                    9 if is(name, b"max-stale") => {
                        let any = argument.map_or(Some(u64::MAX), delta_seconds);
                        control.max_stale.get_or_insert(any.unwrap_or(0));
                    }
                    9 if is(name, b"min-fresh") => {
                        control.min_fresh.get_or_insert(lifetime(argument));
                    }
                    14 if is(name, b"only-if-cached") => control.only_if_cached = true,
                    _ => {}
                }
            }
        }
        if !headers.contains_key(CACHE_CONTROL) {
            control.no_cache = headers
                .get_all(http::header::PRAGMA)
                .iter()
                .flat_map(|line| Directives(line.as_bytes()))
                .any(|directive| is(directive.name, b"no-cache"));
        }
        control
    }
}

/// The lines of `Cache-Control` with every lifetime cut to `seconds`; `None` if none is longer.
pub(super) fn limited_cache_control(headers: &HeaderMap, seconds: u64) -> Option<Vec<HeaderValue>> {
    let control = CacheControl::of(headers);
    if control.max_age.max(control.s_maxage)? <= seconds {
        return None;
    }
    // Lines are not joined, because an unclosed quote ends with its line.
    headers
        .get_all(CACHE_CONTROL)
        .iter()
        .map(|line| limited_line(line.as_bytes(), seconds))
        .collect()
}

fn limited_line(line: &[u8], seconds: u64) -> Option<HeaderValue> {
    let mut limited = Vec::new();
    for directive in Directives(line) {
        if !limited.is_empty() {
            limited.extend_from_slice(b", ");
        }
        if is(directive.name, b"max-age") || is(directive.name, b"s-maxage") {
            limited.extend_from_slice(directive.name);
            let value = lifetime(directive.argument).min(seconds);
            limited.extend_from_slice(format!("={value}").as_bytes());
        } else {
            limited.extend_from_slice(directive.text);
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

fn is(name: &[u8], wanted: &[u8]) -> bool {
    name.eq_ignore_ascii_case(wanted)
}

fn lifetime(argument: Option<&[u8]>) -> u64 {
    argument.and_then(delta_seconds).unwrap_or(0)
}

struct Directive<'a> {
    name: &'a [u8],
    argument: Option<&'a [u8]>,
    text: &'a [u8],
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

/// Removes the quotes: both forms of an argument mean the same (RFC 9111 section 5.2).
fn unquote(argument: &[u8]) -> &[u8] {
    argument
        .strip_prefix(b"\"")
        .and_then(|argument| argument.strip_suffix(b"\""))
        .unwrap_or(argument)
}

#[cfg(test)]
mod tests;
