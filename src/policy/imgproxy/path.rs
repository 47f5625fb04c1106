//! Reads the path of an imgproxy URL as imgproxy does.
//!
//! It takes two steps, because the signature is verified between them: [`Target`] is the path after
//! imgproxy's repairs, which is what was signed; [`ImagePath`] is what it means. Nothing is
//! normalised beyond what imgproxy does itself. Names and arguments of options are not checked:
//! imgproxy answers wrong ones with an error, and errors are not stored.

use std::borrow::Cow;

use super::{BASE64, Imgproxy};
use crate::clock::Timestamp;
use crate::policy::BypassReason;

/// Formats that alone decide what imgproxy makes. Every other name leaves the format open, as does
/// `best`, with which imgproxy chooses.
const FIXED_FORMATS: [&[u8]; 12] = [
    b"avif", b"bmp", b"gif", b"heic", b"ico", b"jpeg", b"jpg", b"jxl", b"png", b"svg", b"tiff",
    b"webp",
];

/// The two halves of a path: the signature, and what it signs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// The first segment.
    pub(super) signature: &'a [u8],
    /// All that follows, repaired, without the slash in front of it; not empty.
    pub(super) path: Cow<'a, [u8]>,
}

impl<'a> Target<'a> {
    /// Reads `path`, which has no query, below `prefix`.
    ///
    /// # Errors
    ///
    /// `PathPrefix` when `path` is not below it; `Unparsable` when a half is missing.
    pub(super) fn read(path: &'a [u8], prefix: &str) -> Result<Self, BypassReason> {
        let path = path
            .strip_prefix(prefix.as_bytes())
            .and_then(|path| path.strip_prefix(b"/"))
            .ok_or(BypassReason::PathPrefix)?;
        // The router takes the first slash and the handler another; in front of the options there
        // are two more that make no difference, neither to the signature nor to the image.
        let path = path.strip_prefix(b"/").unwrap_or(path);
        let (signature, path) = cut(path).ok_or(BypassReason::Unparsable)?;
        let path = path.strip_prefix(b"/").unwrap_or(path);
        let path = path.strip_prefix(b"/").unwrap_or(path);
        if signature.is_empty() || path.is_empty() {
            return Err(BypassReason::Unparsable);
        }
        Ok(Self {
            signature,
            path: repair(path),
        })
    }
}

/// What a repaired path asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ImagePath<'a> {
    /// Options, or names of presets.
    pub(super) processing: Processing<'a>,
    /// Where the image comes from.
    pub(super) source: ImageSource<'a>,
    /// The format after the source; empty when there is none.
    pub(super) extension: Cow<'a, [u8]>,
    /// When the URL expires: the earliest time that it names.
    pub(super) expires: Option<Timestamp>,
    /// Whether the URL alone decides the format, unless imgproxy enforces another.
    pub(super) has_fixed_format: bool,
}

/// The part of a path in front of the source.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Processing<'a> {
    /// Segments with options; empty when there are none.
    Options(&'a [u8]),
    /// The one segment of an imgproxy that takes presets only.
    Presets(&'a [u8]),
}

/// Where an image comes from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ImageSource<'a> {
    /// Its decoded URL. imgproxy makes the same image and headers whether it was written plain or
    /// in base64.
    Url(Cow<'a, [u8]>),
    /// Its URL as imgproxy Pro encrypts it.
    Encrypted(Cow<'a, [u8]>),
}

impl<'a> ImagePath<'a> {
    /// Reads the repaired `path` for the imgproxy of `settings`.
    ///
    /// # Errors
    ///
    /// `Unparsable` when imgproxy would find no source in it, or when its expiry is not a number;
    /// `Expired` when that expiry is before `now`.
    pub(super) fn read(
        path: &'a [u8],
        settings: &Imgproxy,
        now: Timestamp,
    ) -> Result<Self, BypassReason> {
        let separator = settings.arguments_separator.as_bytes();
        let mut expires = None;
        let mut has_fixed_format = false;
        let (processing, rest) = if settings.only_presets {
            let (presets, rest) = cut(path).ok_or(BypassReason::Unparsable)?;
            (Processing::Presets(presets), rest)
        } else {
            let mut rest = path;
            let mut options_len = 0;
            while let (segment, after) = first_segment(rest)
                && let Some(option) = UrlOption::read(segment, separator)
            {
                if let Some(end) = option.deadline()? {
                    if end < now {
                        return Err(BypassReason::Expired);
                    }
                    expires = Some(expires.map_or(end, |earliest: Timestamp| earliest.min(end)));
                }
                has_fixed_format = option.fixes_format().unwrap_or(has_fixed_format);
                options_len = path.len() - rest.len() + segment.len();
                rest = after.ok_or(BypassReason::Unparsable)?;
            }
            (Processing::Options(&path[..options_len]), rest)
        };
        let (source, extension) =
            read_source(rest, settings.base64_includes_filename).ok_or(BypassReason::Unparsable)?;
        // The extension is applied last, so it overrides options and presets. If one of these asks
        // for the raw source, no format matters.
        if !extension.is_empty() {
            has_fixed_format = is_fixed_format(&extension);
        }
        Ok(Self {
            processing,
            source,
            extension,
            expires,
            has_fixed_format,
        })
    }
}

/// An option of the path.
pub(super) struct UrlOption<'a> {
    name: &'a [u8],
    /// The only argument; `None` when there are several.
    argument: Option<&'a [u8]>,
}

impl<'a> UrlOption<'a> {
    /// Reads a segment; `None` if it has no `separator`, because there the source begins.
    pub(super) fn read(segment: &'a [u8], separator: &[u8]) -> Option<Self> {
        let at = find(segment, separator)?;
        let arguments = &segment[at + separator.len()..];
        Some(Self {
            name: &segment[..at],
            argument: find(arguments, separator).is_none().then_some(arguments),
        })
    }

    /// When the URL expires, if this option says so. imgproxy does not enforce zero or less, so
    /// that such an option is like any other.
    pub(super) fn deadline(&self) -> Result<Option<Timestamp>, BypassReason> {
        if !matches!(self.name, b"expires" | b"exp") {
            return Ok(None);
        }
        let seconds: i64 = self
            .argument
            .and_then(|argument| str::from_utf8(argument).ok())
            .and_then(|argument| argument.parse().ok())
            .ok_or(BypassReason::Unparsable)?;
        Ok(u64::try_from(seconds)
            .ok()
            .filter(|seconds| *seconds > 0)
            .map(Timestamp::from_unix))
    }

    /// Whether the format is fixed after this option; `None` when the option does not touch it. A
    /// preset may hold a format that is not in the URL.
    fn fixes_format(&self) -> Option<bool> {
        match self.name {
            b"format" | b"f" | b"ext" => Some(self.argument.is_some_and(is_fixed_format)),
            b"preset" | b"pr" => Some(false),
            _ => None,
        }
    }
}

fn is_fixed_format(name: &[u8]) -> bool {
    FIXED_FORMATS.contains(&name)
}

/// Undoes what proxies, CDNs and browsers do to a path: escaped colons in the options, and a slash
/// lost from the scheme of a plain source.
fn repair(path: &[u8]) -> Cow<'_, [u8]> {
    const ESCAPED: &[u8] = b"%3A";
    let (options, plain) = split_plain(path);
    let slash = plain.and_then(lost_slash);
    let escaped = find(options, ESCAPED);
    if slash.is_none() && escaped.is_none() {
        return path.into();
    }
    let mut repaired = Vec::with_capacity(path.len() + 2);
    let mut options = options;
    while let Some(at) = find(options, ESCAPED) {
        repaired.extend_from_slice(&options[..at]);
        repaired.push(b':');
        options = &options[at + ESCAPED.len()..];
    }
    repaired.extend_from_slice(options);
    if let Some(plain) = plain {
        if !repaired.is_empty() {
            repaired.push(b'/');
        }
        repaired.extend_from_slice(b"plain/");
        let (scheme, rest) = plain.split_at(slash.unwrap_or(0));
        repaired.extend_from_slice(scheme);
        if slash.is_some() {
            repaired.push(b'/');
            if scheme == b"local:/" {
                repaired.push(b'/');
            }
        }
        repaired.extend_from_slice(rest);
    }
    repaired.into()
}

/// Splits a path around its first segment `plain` that something follows.
fn split_plain(path: &[u8]) -> (&[u8], Option<&[u8]>) {
    const PLAIN: &[u8] = b"plain/";
    if let Some(plain) = path.strip_prefix(PLAIN) {
        return (&[], Some(plain));
    }
    path.iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'/')
        .find_map(|(at, _)| {
            let plain = path[at + 1..].strip_prefix(PLAIN)?;
            Some((&path[..at], Some(plain)))
        })
        .unwrap_or((path, None))
}

/// Finds where a slash is missing: after the last `:/` that something other than a slash follows,
/// with something but no white space before it. imgproxy takes the last one, too.
fn lost_slash(plain: &[u8]) -> Option<usize> {
    let end = plain
        .iter()
        .position(|byte| matches!(byte, b'\t' | b'\n' | b'\x0c' | b'\r' | b' '))
        .unwrap_or(plain.len());
    (1..end)
        .rev()
        .find(|&at| matches!(plain[at..], [b':', b'/', next, ..] if next != b'/'))
        .map(|at| at + 2)
}

/// Reads the source and its extension.
fn read_source(rest: &[u8], includes_filename: bool) -> Option<(ImageSource<'_>, Cow<'_, [u8]>)> {
    if let Some(plain) = rest.strip_prefix(b"plain/") {
        let (url, extension) = split_extension(plain, b'@')?;
        return Some((ImageSource::Url(unescape(url)?), extension.into()));
    }
    if let Some(encrypted) = rest.strip_prefix(b"enc/") {
        // It is not certain whether a file name is part of it, so both the name and an extension
        // stay. That makes more keys than necessary, but never one key for two images.
        if includes_filename {
            return (!encrypted.is_empty())
                .then(|| (ImageSource::Encrypted(encrypted.into()), Cow::default()));
        }
        let (encrypted, extension) = split_encoded(encrypted)?;
        return Some((ImageSource::Encrypted(encrypted), extension));
    }
    let encoded = match rest.iter().rposition(|byte| *byte == b'/') {
        Some(at) if includes_filename => &rest[..at],
        _ => rest,
    };
    let (encoded, extension) = split_encoded(encoded)?;
    let url = BASE64.decode(trim_padding(&encoded)).ok()?;
    Some((ImageSource::Url(url.into()), extension))
}

/// A source as it is written, and its extension.
type Parts<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);

/// Joins an encoded source, which may be split by slashes anywhere, and takes off its extension.
fn split_encoded(encoded: &[u8]) -> Option<Parts<'_>> {
    if encoded.contains(&b'/') {
        let joined: Vec<u8> = encoded.iter().copied().filter(|b| *b != b'/').collect();
        let (encoded, extension) = split_extension(&joined, b'.')?;
        Some((encoded.to_vec().into(), extension.to_vec().into()))
    } else {
        let (encoded, extension) = split_extension(encoded, b'.')?;
        Some((encoded.into(), extension.into()))
    }
}

/// Splits a source at its only `mark`, if it has one; `None` if nothing precedes it or there are
/// several.
fn split_extension(source: &[u8], mark: u8) -> Option<(&[u8], &[u8])> {
    let mut parts = source.split(|byte| *byte == mark);
    let source = parts.next().filter(|source| !source.is_empty())?;
    let extension = parts.next().unwrap_or_default();
    parts.next().is_none().then_some((source, extension))
}

fn trim_padding(mut encoded: &[u8]) -> &[u8] {
    while let Some(shorter) = encoded.strip_suffix(b"=") {
        encoded = shorter;
    }
    encoded
}

/// Decodes percent escapes; `None` when a `%` is not followed by two hex digits.
fn unescape(escaped: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(first) = escaped.iter().position(|byte| *byte == b'%') else {
        return Some(escaped.into());
    };
    let mut decoded = Vec::with_capacity(escaped.len());
    decoded.extend_from_slice(&escaped[..first]);
    let mut rest = &escaped[first..];
    while let [byte, after @ ..] = rest {
        if *byte == b'%' {
            let [high, low, after @ ..] = after else {
                return None;
            };
            decoded.push(hex_digit(*high)? << 4 | hex_digit(*low)?);
            rest = after;
        } else {
            decoded.push(*byte);
            rest = after;
        }
    }
    Some(decoded.into())
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// The first segment, and what follows its slash, if it has one.
fn first_segment(path: &[u8]) -> (&[u8], Option<&[u8]>) {
    match cut(path) {
        Some((segment, after)) => (segment, Some(after)),
        None => (path, None),
    }
}

/// Splits a path at its first slash.
fn cut(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = path.iter().position(|byte| *byte == b'/')?;
    Some((&path[..at], &path[at + 1..]))
}

/// Offset of the first `needle`; `None` if it is empty.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let (first, others) = needle.split_first()?;
    haystack
        .iter()
        .enumerate()
        .filter(|(_, byte)| *byte == first)
        .find_map(|(at, _)| haystack[at + 1..].starts_with(others).then_some(at))
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;
