//! Draws the policies, requests and responses that properties are tried with.
//!
//! What a response says is drawn as [`Directive`]s and written as fields afterwards, so that a rule
//! is about what was meant, and not about what our reader makes of it. [`Dice`] chooses everything:
//! it costs little, and failing cases shrink to simple ones.

use std::time::{Duration, UNIX_EPOCH};

use http::header::{
    AGE, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, ETAG, EXPIRES,
    LAST_MODIFIED, SET_COOKIE, TRANSFER_ENCODING, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use proptest::prelude::*;

use crate::policy::testing::{NOW, generic, get, imgproxy, policy};
use crate::policy::{
    Authorization, FreshnessRules, Generic, Heuristic, ImageFormat, Imgproxy, Kind, Policy,
    Provenance, Query, RequestHead, ResponseHead, Statuses, Verify,
};

pub(super) const CDN: HeaderName = HeaderName::from_static("cdn-cache-control");

/// Choices made by bytes. A smaller byte makes a plainer choice.
struct Dice<const N: usize>(std::array::IntoIter<u8, N>);

impl<const N: usize> Dice<N> {
    fn byte(&mut self) -> u8 {
        self.0.next().expect("as many bytes as there are choices")
    }

    fn below(&mut self, end: u8) -> u8 {
        self.byte() % end
    }

    fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    /// True in `of_16` of 16 cases.
    fn is_one(&mut self, of_16: u8) -> bool {
        self.byte() >> 4 >= 16 - of_16
    }

    /// Up to 255 units, in `of_16` of 16 cases.
    fn some(&mut self, of_16: u8) -> Option<u8> {
        let (is_there, value) = (self.is_one(of_16), self.byte());
        is_there.then_some(value)
    }
}

/// What an author of a response may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Directive {
    NoStore,
    Private,
    PrivateField,
    NoCache,
    NoCacheField,
    Public,
    MustRevalidate,
    ProxyRevalidate,
    MustUnderstand,
    MaxAge(u64),
    SMaxage(u64),
    StaleWhileRevalidate(u64),
    StaleIfError(u64),
    Unknown,
}

impl Directive {
    fn drawn<const N: usize>(dice: &mut Dice<N>) -> Self {
        let seconds = u64::from(dice.byte());
        match dice.below(24) {
            0..=5 => Self::MaxAge(seconds),
            6 | 7 => Self::SMaxage(seconds),
            8 | 9 => Self::StaleWhileRevalidate(seconds),
            10 | 11 => Self::StaleIfError(seconds),
            12 | 13 => Self::Public,
            14 => Self::MustRevalidate,
            15 => Self::ProxyRevalidate,
            16 => Self::MustUnderstand,
            17 => Self::NoCacheField,
            18 => Self::PrivateField,
            19 => Self::NoCache,
            20 => Self::Private,
            21 => Self::NoStore,
            _ => Self::Unknown,
        }
    }

    fn text(self) -> String {
        match self {
            Self::NoStore => "no-store".into(),
            Self::Private => "private".into(),
            Self::PrivateField => "private=\"x-a\"".into(),
            Self::NoCache => "no-cache".into(),
            Self::NoCacheField => "no-cache=\"x-b, x-c\"".into(),
            Self::Public => "public".into(),
            Self::MustRevalidate => "must-revalidate".into(),
            Self::ProxyRevalidate => "proxy-revalidate".into(),
            Self::MustUnderstand => "must-understand".into(),
            Self::MaxAge(seconds) => format!("max-age={seconds}"),
            Self::SMaxage(seconds) => format!("s-maxage={seconds}"),
            Self::StaleWhileRevalidate(seconds) => format!("stale-while-revalidate={seconds}"),
            Self::StaleIfError(seconds) => format!("stale-if-error={seconds}"),
            Self::Unknown => "x=\"no-store, max-age=9\"".into(),
        }
    }
}

/// Keeps the last of each repeated member, which is the one that counts in a dictionary (RFC 9651
/// section 3.2).
fn last_of_each_name(directives: Vec<Directive>) -> Vec<Directive> {
    let name = |directive: Directive| directive.text().split('=').next().map(str::to_owned);
    let is_last = |(place, directive): &(usize, &Directive)| {
        let later = &directives[place + 1..];
        later.iter().all(|later| name(*later) != name(**directive))
    };
    let counting = directives.iter().enumerate().filter(is_last);
    counting.map(|(_, directive)| *directive).collect()
}

/// What a response says about its own use, in the field that counts for us.
#[derive(Debug, Clone)]
pub(super) struct Meant {
    pub(super) directives: Vec<Directive>,
    pub(super) is_targeted: bool,
    /// Seconds after [`NOW`], in `Expires`.
    pub(super) expires: Option<i64>,
}

impl Meant {
    pub(super) fn says(&self, directive: Directive) -> bool {
        self.directives.contains(&directive)
    }

    /// The argument of the first directive of this kind.
    fn first(&self, argument: impl Fn(Directive) -> Option<u64>) -> Option<u64> {
        self.directives.iter().copied().find_map(argument)
    }

    pub(super) fn max_age(&self) -> Option<u64> {
        self.first(|directive| match directive {
            Directive::MaxAge(seconds) => Some(seconds),
            _ => None,
        })
    }

    pub(super) fn s_maxage(&self) -> Option<u64> {
        self.first(|directive| match directive {
            Directive::SMaxage(seconds) => Some(seconds),
            _ => None,
        })
    }

    pub(super) fn stale_while_revalidate(&self) -> Option<u64> {
        self.first(|directive| match directive {
            Directive::StaleWhileRevalidate(seconds) => Some(seconds),
            _ => None,
        })
    }

    pub(super) fn stale_if_error(&self) -> Option<u64> {
        self.first(|directive| match directive {
            Directive::StaleIfError(seconds) => Some(seconds),
            _ => None,
        })
    }

    /// RFC 9111 section 4.2.1.
    pub(super) fn explicit_lifetime(&self, date: i64) -> Option<u64> {
        let expires = self.expires.filter(|_| !self.is_targeted);
        self.s_maxage()
            .or(self.max_age())
            .or(expires.map(|expires| u64::try_from(expires - date).unwrap_or(0)))
    }

    /// RFC 9111 section 4.2.4.
    pub(super) fn forbids_stale(&self) -> bool {
        self.says(Directive::NoCache)
            || self.says(Directive::MustRevalidate)
            || self.says(Directive::ProxyRevalidate)
            || self.s_maxage().is_some()
    }

    /// RFC 9111 section 3.5.
    pub(super) fn shares_authorized(&self) -> bool {
        self.says(Directive::Public)
            || self.says(Directive::MustRevalidate)
            || self.s_maxage().is_some()
    }
}

/// A response, and what is known about it without reading it.
#[derive(Debug, Clone)]
pub(super) struct Drawn {
    pub(super) head: ResponseHead,
    pub(super) meant: Meant,
    /// Seconds after [`NOW`], in `Date`; 0 without.
    pub(super) date: i64,
    /// Seconds in `Age`; 0 without.
    pub(super) age: u64,
    pub(super) vary: &'static str,
}

/// Responses: most are a 200 of the upstream, and some could not be worse.
pub(super) fn responses() -> impl Strategy<Value = Drawn> {
    any::<[u8; 40]>().prop_map(|bytes| response(Dice(bytes.into_iter())))
}

fn response(mut dice: Dice<40>) -> Drawn {
    let mut said = |most: u8| -> Vec<Directive> {
        let number = dice.below(most + 1);
        (0..most)
            .map(|_| Directive::drawn(&mut dice))
            .take(number.into())
            .collect()
    };
    let (control, targeted) = (said(4), said(3));
    let cdn = (dice.is_one(2) && !targeted.is_empty()).then_some(targeted);
    let (is_upper, is_split) = (dice.is_one(8), dice.is_one(8));
    let mut headers = HeaderMap::new();
    write(&mut headers, &CACHE_CONTROL, &control, is_upper, is_split);
    if let Some(cdn) = &cdn {
        // The names in a dictionary are in lower case.
        write(&mut headers, &CDN, cdn, false, is_split);
    }
    let times = Times::drawn(&mut dice, &mut headers);
    if dice.is_one(8) {
        headers.insert(ETAG, HeaderValue::from_static("\"a\""));
    }
    let vary = match dice.below(12) {
        names @ 0..3 => ["Accept, *", "user-agent", "accept-encoding"][usize::from(names)],
        _ => "",
    };
    if !vary.is_empty() {
        headers.insert(VARY, HeaderValue::from_static(vary));
    }
    if dice.is_one(1) {
        headers.insert(SET_COOKIE, HeaderValue::from_static("a=b"));
    }
    insert_length(&mut dice, &mut headers);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("image/png"));
    headers.insert(CONNECTION, HeaderValue::from_static("x-d, close"));
    for name in ["x-a", "x-b", "x-c", "x-d", "x-e", "keep-alive"] {
        headers.insert(name, HeaderValue::from_static("1"));
    }
    let status = dice.choose(&[200, 200, 200, 200, 200, 206, 304, 404, 503, 599]);
    Drawn {
        head: ResponseHead {
            status: StatusCode::from_u16(status).expect("a status"),
            headers,
            has_body: true,
            provenance: match dice.below(8) {
                0 => Provenance::Local,
                1 => Provenance::Unknown,
                _ => Provenance::Upstream,
            },
        },
        meant: Meant {
            is_targeted: cdn.is_some(),
            directives: cdn.map_or(control, last_of_each_name),
            expires: times.expires,
        },
        date: times.date.unwrap_or(0),
        age: times.age.unwrap_or(0),
        vary,
    }
}

/// What the fields of a response say about time, in seconds; dates count from [`NOW`].
struct Times {
    expires: Option<i64>,
    date: Option<i64>,
    age: Option<u64>,
}

impl Times {
    /// Draws the times and inserts their fields.
    fn drawn(dice: &mut Dice<40>, headers: &mut HeaderMap) -> Self {
        let expires = dice.some(8).map(|seconds| i64::from(seconds) - 50);
        let date = dice.some(8).map(|seconds| 20 - i64::from(seconds) / 2);
        let last_modified = dice.some(8).map(|seconds| -4 * i64::from(seconds));
        for (name, offset) in [
            (EXPIRES, expires),
            (DATE, date),
            (LAST_MODIFIED, last_modified),
        ] {
            if let Some(offset) = offset {
                headers.insert(name, http_date(offset));
            }
        }
        let age = dice.some(8).map(|seconds| u64::from(seconds) / 2);
        if let Some(age) = age {
            headers.insert(AGE, age.into());
        }
        Self { expires, date, age }
    }
}

/// Inserts a length that is most often right, and sometimes none or two.
fn insert_length(dice: &mut Dice<40>, headers: &mut HeaderMap) {
    let length = 5 * u16::from(dice.byte());
    match dice.below(16) {
        0 => {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        1 => {
            headers.insert(CONTENT_LENGTH, length.into());
            headers.append(CONTENT_LENGTH, length.into());
        }
        _ => {
            headers.insert(CONTENT_LENGTH, length.into());
        }
    }
}

/// Writes the directives as one line, or as a line for each.
fn write(
    headers: &mut HeaderMap,
    name: &HeaderName,
    said: &[Directive],
    is_upper: bool,
    is_split: bool,
) {
    let texts: Vec<String> = said
        .iter()
        .map(|directive| match is_upper {
            true => directive.text().to_ascii_uppercase(),
            false => directive.text(),
        })
        .collect();
    let lines = match is_split {
        true => texts,
        false => vec![texts.join(" ,")],
    };
    for line in lines.iter().filter(|line| !line.is_empty()) {
        headers.append(name, line.parse().expect("a field value"));
    }
}

/// The HTTP date that is `offset` seconds after [`NOW`].
fn http_date(offset: i64) -> HeaderValue {
    let seconds = NOW.as_unix().saturating_add_signed(offset);
    let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
    date.parse().expect("a field value")
}

/// Policies of both kinds, with rules that are short enough to matter.
pub(super) fn policies() -> impl Strategy<Value = Policy> {
    any::<[u8; 20]>().prop_map(|bytes| {
        let mut dice = Dice(bytes.into_iter());
        let mut policy = policy(match dice.is_one(8) {
            true => Kind::Imgproxy(imgproxy()),
            false => Kind::Generic(generic()),
        });
        policy.freshness = rules(&mut dice);
        policy.authorization = Authorization::Rfc9111;
        policy.store.variants = dice.choose(&[0, 2]);
        if dice.is_one(8) {
            policy.store.statuses = Statuses::Any;
        }
        if dice.is_one(8) {
            policy.store.verify = Verify::None;
        }
        policy
    })
}

fn rules<const N: usize>(dice: &mut Dice<N>) -> FreshnessRules {
    let mut seconds = || {
        let seconds = dice.some(5);
        seconds.map(|seconds| Duration::from_secs(seconds.into()))
    };
    let (default, fallback_max_age) = (seconds(), seconds());
    let (stale_while_revalidate, stale_if_error) = (seconds(), seconds());
    let is_negative = dice.is_one(8);
    FreshnessRules {
        default,
        floor: Duration::from_secs(dice.choose(&[0, 0, 0, 50])),
        ceiling: Duration::from_secs(dice.choose(&[1 << 20, 1 << 20, 100])),
        heuristic: dice.is_one(8).then_some(Heuristic {
            percent: 10,
            ceiling: Duration::from_secs(60),
        }),
        negative: is_negative
            .then_some((StatusCode::NOT_FOUND, Duration::from_secs(30)))
            .into_iter()
            .collect(),
        stale_while_revalidate,
        stale_if_error,
        fallback_max_age,
    }
}

/// A client's request, drawn from few choices, so that two requests often agree.
#[derive(Debug, Clone, Copy)]
pub(super) struct DrawnRequest([u8; 12]);

impl DrawnRequest {
    pub(super) const FIELDS: [(&'static str, &'static [&'static str]); 9] = [
        (
            "accept",
            &["", "image/webp,*/*", "*/*, image/webp;q=0.1", "image/avif"],
        ),
        ("dpr", &["", "1.5", "2", "x"]),
        ("width", &["", "100", "101"]),
        ("accept-language", &["", "de", "en"]),
        ("accept-encoding", &["", "br"]),
        ("x-forwarded-host", &["", "evil.example"]),
        ("if-none-match", &["", "\"a\""]),
        ("range", &["", "bytes=0-1"]),
        ("cookie", &["", "a=b"]),
    ];
    const PATHS: [&'static str; 4] = [
        "/s/w:1/plain/local:///a.png",
        "/s/w%3A1/plain/local:/a.png",
        "/t/w:1/bG9jYWw6Ly8vYS5wbmc.webp",
        "/s/w:2/plain/local:///a.png@png",
    ];
    const QUERIES: [&'static str; 4] = ["", "?v=1", "?v=1&utm=2", "?utm=1;v=1"];

    fn chosen<T: Copy>(self, place: usize, choices: &[T]) -> T {
        choices[usize::from(self.0[place]) % choices.len()]
    }

    pub(super) fn request(self) -> RequestHead {
        let path = self.chosen(9, &Self::PATHS).to_owned() + self.chosen(10, &Self::QUERIES);
        let fields: Vec<_> = Self::FIELDS
            .iter()
            .enumerate()
            .map(|(place, (name, values))| (*name, self.chosen(place, values)))
            .filter(|(_, value)| !value.is_empty())
            .collect();
        let mut request = get(path, &fields);
        if self.chosen(11, &[false, true]) {
            request.authority = "other.example".into();
        }
        request
    }
}

/// Requests of all these kinds.
pub(super) fn requests() -> impl Strategy<Value = RequestHead> {
    any::<[u8; 12]>().prop_map(|choices| DrawnRequest(choices).request())
}

/// Two requests, the second with some choices of the first.
pub(super) fn two_requests() -> impl Strategy<Value = (RequestHead, RequestHead)> {
    (any::<[u8; 12]>(), any::<[u8; 12]>(), any::<u16>()).prop_map(|(first, other, differs)| {
        let mut second = first;
        for place in (0..12).filter(|place| differs >> place & 1 == 1) {
            second[place] = other[place];
        }
        (
            DrawnRequest(first).request(),
            DrawnRequest(second).request(),
        )
    })
}

/// Policies whose keys hold much or little of a request.
pub(super) fn key_policies() -> [Policy; 4] {
    let generic = |query| {
        policy(Kind::Generic(Generic {
            query,
            headers: vec![HeaderName::from_static("accept-language")],
            ..generic()
        }))
    };
    let hinted = Imgproxy {
        formats: vec![ImageFormat::Avif, ImageFormat::Webp],
        dpr_steps: vec![1.0, 2.0],
        width_steps: vec![100, 200],
        ..imgproxy()
    };
    [
        generic(Query::All),
        generic(Query::None),
        generic(Query::Only(vec!["v".into()])),
        policy(Kind::Imgproxy(hinted)),
    ]
}
