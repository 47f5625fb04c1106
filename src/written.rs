//! Values that the configuration writes as texts: sizes and times with their units, and other forms.
//!
//! A field of such a type names the form, and stays the plain value for everybody else:
//! `#[serde(with = "As::<HumanDuration>")]`, [`Optional`] for an `Option`, [`Each`] for a `Vec`.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// How a value is written.
pub(crate) trait Written {
    /// What is written so.
    type Value;

    /// The form's name in the reference.
    #[cfg(test)]
    const NAME: &'static str;

    /// What belongs into such a field, for errors.
    const EXPECTED: &'static str;

    /// The value that `text` stands for; `None`: none.
    fn read(text: &str) -> Option<Self::Value>;

    /// A text that stands for `value`.
    #[cfg(test)]
    fn write(value: &Self::Value) -> String;
}

/// A time span with its unit, such as `300ms`, `30s`, `12h`, `30d`.
pub(crate) struct HumanDuration;

impl Written for HumanDuration {
    type Value = Duration;

    #[cfg(test)]
    const NAME: &'static str = "time";
    const EXPECTED: &'static str = "a time span with a unit, such as `300ms` or `30d`";

    fn read(text: &str) -> Option<Duration> {
        humantime::parse_duration(text).ok()
    }

    #[cfg(test)]
    fn write(value: &Duration) -> String {
        const UNITS: [(u128, &str); 5] = [
            (24 * 3_600_000, "d"),
            (3_600_000, "h"),
            (60_000, "m"),
            (1000, "s"),
            (1, "ms"),
        ];
        let millis = value.as_millis();
        let fits = |(unit, _): &&(u128, &str)| millis.is_multiple_of(*unit);
        match UNITS.iter().find(fits) {
            Some((unit, name)) if millis > 0 => format!("{}{name}", millis / unit),
            Some(_) | None => "0s".to_owned(),
        }
    }
}

/// A number of bytes with its unit, such as `64KiB`, `10GiB`.
pub(crate) struct ByteSize;

impl Written for ByteSize {
    type Value = u64;

    #[cfg(test)]
    const NAME: &'static str = "size";
    const EXPECTED: &'static str = "a size with a unit, such as `512B` or `8MiB`";

    fn read(text: &str) -> Option<u64> {
        let has_unit = text.bytes().any(|byte| byte.is_ascii_alphabetic());
        let size = text.parse::<bytesize::ByteSize>().ok()?;
        has_unit.then_some(size.as_u64())
    }

    #[cfg(test)]
    fn write(value: &u64) -> String {
        const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let fits = |(unit, _): &&(u64, &str)| *value > 0 && value.is_multiple_of(*unit);
        match UNITS.iter().find(fits) {
            Some((unit, name)) => format!("{}{name}", value / unit),
            None => format!("{value}B"),
        }
    }
}

/// One value.
pub(crate) struct As<W>(PhantomData<W>);

/// A value, or none.
pub(crate) struct Optional<W>(PhantomData<W>);

/// A list of values.
pub(crate) struct Each<W>(PhantomData<W>);

/// A value that knows how it is written.
pub(crate) struct Element<W: Written>(pub(crate) W::Value);

impl<W: Written> As<W> {
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<W::Value, D::Error> {
        Element::<W>::deserialize(from).map(|element| element.0)
    }
}

impl<W: Written> Optional<W> {
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<W::Value>, D::Error> {
        let element = Option::<Element<W>>::deserialize(from)?;
        Ok(element.map(|element| element.0))
    }
}

impl<W: Written> Each<W> {
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<W::Value>, D::Error> {
        let elements = Vec::<Element<W>>::deserialize(from)?;
        Ok(elements.into_iter().map(|element| element.0).collect())
    }
}

impl<'de, W: Written> Deserialize<'de> for Element<W> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Text(PhantomData))
    }
}

/// Takes texts only: for a bare number the error says what is missing.
struct Text<W>(PhantomData<W>);

impl<W: Written> Visitor<'_> for Text<W> {
    type Value = Element<W>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(W::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Element<W>, E> {
        W::read(text)
            .map(Element)
            .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod reference;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for text in ["300ms", "0s", "90s", "5m", "12h", "30d"] {
            let value = HumanDuration::read(text).unwrap();
            assert_eq!(HumanDuration::write(&value), text);
        }
        for text in ["0B", "512B", "16KiB", "8MiB", "10GiB", "1500B"] {
            let value = ByteSize::read(text).unwrap();
            assert_eq!(ByteSize::write(&value), text);
        }
    }

    #[test]
    fn a_number_without_a_unit_is_none() {
        assert_eq!(ByteSize::read("8"), None);
        assert_eq!(HumanDuration::read("8"), None);
    }
}
