//! Reduces what imgproxy reads from request headers to a few values, which are both in the key and
//! forwarded.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{ImageFormat, Imgproxy};

const DPR: HeaderName = HeaderName::from_static("dpr");
const SEC_CH_DPR: HeaderName = HeaderName::from_static("sec-ch-dpr");
const WIDTH: HeaderName = HeaderName::from_static("width");
const SEC_CH_WIDTH: HeaderName = HeaderName::from_static("sec-ch-width");

/// The largest `DPR` hint that counts.
const MAX_DPR: f64 = 8.0;

/// The headers that imgproxy sees instead of the client's.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Negotiated {
    accept: &'static str,
    dpr: Option<f64>,
    width: Option<u32>,
}

impl Negotiated {
    /// Reads the headers of a request. With a fixed format, only enforced formats depend on
    /// `Accept`.
    pub(super) fn read(settings: &Imgproxy, headers: &HeaderMap, has_fixed_format: bool) -> Self {
        let matters = |format| {
            settings.enforced.contains(&format)
                || !has_fixed_format && settings.formats.contains(&format)
        };
        Self {
            accept: accept(
                headers,
                matters(ImageFormat::Jxl),
                matters(ImageFormat::Avif),
                matters(ImageFormat::Webp),
            ),
            dpr: hint(headers, [SEC_CH_DPR, DPR], |value| {
                value
                    .parse()
                    .ok()
                    .filter(|dpr| *dpr > 0.0 && *dpr <= MAX_DPR)
            })
            .and_then(|dpr| round_up(&settings.dpr_steps, dpr)),
            width: hint(headers, [SEC_CH_WIDTH, WIDTH], |value| {
                // Wider than 32 bits is wider than any step.
                let width: i64 = value.parse().ok()?;
                (width > 0).then(|| u32::try_from(width).unwrap_or(u32::MAX))
            })
            .and_then(|width| round_up(&settings.width_steps, width)),
        }
    }

    /// The fields to set when forwarding; the key holds the same values.
    pub(super) fn fields(&self) -> Vec<(HeaderName, HeaderValue)> {
        let mut fields = Vec::with_capacity(3);
        fields.push((header::ACCEPT, HeaderValue::from_static(self.accept)));
        fields.extend(self.dpr.map(|dpr| (DPR, number(&dpr.to_string()))));
        fields.extend(self.width.map(|width| (WIDTH, width.into())));
        fields
    }

    /// Whether imgproxy, or an imgproxy of another version, would read field `name`.
    pub(super) fn reads(name: &HeaderName) -> bool {
        [header::ACCEPT, DPR, SEC_CH_DPR, WIDTH, SEC_CH_WIDTH].contains(name)
    }
}

fn number(digits: &str) -> HeaderValue {
    HeaderValue::from_str(digits).expect("a printed number has no control characters")
}

/// The wanted formats that `Accept` contains, as the value to forward.
///
/// Like imgproxy, it searches for substrings, case-sensitive, and knows neither media ranges nor
/// quality values. All field lines count, although imgproxy reads only the first: it is sent one
/// line.
fn accept(headers: &HeaderMap, jxl: bool, avif: bool, webp: bool) -> &'static str {
    let mut found = (false, false, false);
    if jxl || avif || webp {
        for value in headers.get_all(header::ACCEPT) {
            let mut rest = value.as_bytes();
            while let Some(at) = rest.iter().position(|byte| *byte == b'/') {
                let (main, sub) = (&rest[..at], &rest[at + 1..]);
                if main.ends_with(b"image") {
                    found.0 |= jxl && sub.starts_with(b"jxl");
                    found.1 |= avif && sub.starts_with(b"avif");
                    found.2 |= webp && sub.starts_with(b"webp");
                }
                rest = sub;
            }
        }
    }
    match found {
        (false, false, false) => "*/*",
        (false, false, true) => "image/webp",
        (false, true, false) => "image/avif",
        (false, true, true) => "image/avif,image/webp",
        (true, false, false) => "image/jxl",
        (true, false, true) => "image/jxl,image/webp",
        (true, true, false) => "image/jxl,image/avif",
        (true, true, true) => "image/jxl,image/avif,image/webp",
    }
}

/// The value of the first of the two fields whose first line is valid.
fn hint<T>(
    headers: &HeaderMap,
    names: [HeaderName; 2],
    parse: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    names
        .iter()
        .find_map(|name| parse(headers.get(name)?.to_str().ok()?))
}

/// The first of the rising `steps` that is not below `value`, else the last; `None` without steps.
fn round_up<T: Copy + PartialOrd>(steps: &[T], value: T) -> Option<T> {
    steps
        .iter()
        .find(|step| **step >= value)
        .or(steps.last())
        .copied()
}
