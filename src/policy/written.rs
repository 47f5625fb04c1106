//! How an operator writes a policy's rules.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};

use super::{Clients, MediaRange, Query, Statuses};
use crate::written::{Each, Element, HumanDuration, Written};

/// The name of a header field, such as `Accept-Language`.
pub(crate) struct FieldName;

impl Written for FieldName {
    type Value = HeaderName;

    #[cfg(test)]
    const NAME: &'static str = "header";
    const EXPECTED: &'static str = "the name of a header, such as `Accept-Language`";

    fn read(text: &str) -> Option<HeaderName> {
        HeaderName::try_from(text).ok()
    }

    #[cfg(test)]
    fn write(value: &HeaderName) -> String {
        value.to_string()
    }
}

/// A media type, or all of one main type, such as `text/css` and `image/*`.
pub(super) struct MediaType;

impl Written for MediaType {
    type Value = MediaRange;

    #[cfg(test)]
    const NAME: &'static str = "media type";
    const EXPECTED: &'static str = "a media type such as `image/*` or `text/css`";

    fn read(text: &str) -> Option<MediaRange> {
        let is_token = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
        };
        let (main, sub) = text.split_once('/')?;
        if text == "*/*" {
            return Some(MediaRange {
                main: "*".to_owned(),
                sub: None,
            });
        }
        let sub = match sub {
            "*" => None,
            sub if is_token(sub) => Some(sub.to_ascii_lowercase()),
            _ => return None,
        };
        is_token(main).then(|| MediaRange {
            main: main.to_ascii_lowercase(),
            sub,
        })
    }

    #[cfg(test)]
    fn write(value: &MediaRange) -> String {
        format!("{}/{}", value.main, value.sub.as_deref().unwrap_or("*"))
    }
}

/// The name before which `Via` says `1.1`: the version is the one that we are asked in through Envoy,
/// whatever the client speaks.
pub(super) struct ViaName;

impl Written for ViaName {
    type Value = HeaderValue;

    #[cfg(test)]
    const NAME: &'static str = "name";
    const EXPECTED: &'static str = "a name without spaces, such as `afterimage`";

    fn read(text: &str) -> Option<HeaderValue> {
        let is_token = !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
        let value = is_token.then(|| format!("1.1 {text}"))?;
        HeaderValue::try_from(value).ok()
    }

    #[cfg(test)]
    fn write(value: &HeaderValue) -> String {
        String::from_utf8_lossy(&value.as_bytes()[4..]).into_owned()
    }
}

/// A network, or one address.
struct Network;

impl Written for Network {
    type Value = IpNet;

    #[cfg(test)]
    const NAME: &'static str = "network";
    const EXPECTED: &'static str = "a network such as `10.0.0.0/8`, or an address";

    fn read(text: &str) -> Option<IpNet> {
        let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
        text.parse().ok().or_else(one)
    }

    #[cfg(test)]
    fn write(value: &IpNet) -> String {
        value.to_string()
    }
}

/// A map from statuses to times.
pub(super) struct Negative;

impl Negative {
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<(StatusCode, Duration)>, D::Error> {
        let map = BTreeMap::<NegativeStatus, Element<HumanDuration>>::deserialize(from)?;
        Ok(map
            .into_iter()
            .map(|(status, lifetime)| (status.0, lifetime.0))
            .collect())
    }
}

/// A status that a response may be kept with although it says nothing about that.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct NegativeStatus(StatusCode);

impl<'de> Deserialize<'de> for NegativeStatus {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        /// One client could provoke these for all others.
        const PROVOKED: [u16; 8] = [400, 403, 405, 408, 413, 414, 429, 431];
        let text = String::deserialize(from)?;
        text.parse::<u16>()
            .ok()
            .filter(|code| (300..500).contains(code) && *code != 304)
            .filter(|code| !PROVOKED.contains(code))
            .and_then(|code| StatusCode::from_u16(code).ok())
            .map(Self)
            .ok_or_else(|| {
                D::Error::invalid_value(
                    Unexpected::Str(&text),
                    &"a status that may be kept without being told to, such as `404` or `410`",
                )
            })
    }
}

impl<'de> Deserialize<'de> for Clients {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Form;

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Trusted {
            #[serde(with = "Each::<Network>")]
            trusted: Vec<IpNet>,
        }

        impl<'de> Visitor<'de> for Form {
            type Value = Clients;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`ignore`, `obey` or `{trusted: [NETWORK]}`")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Clients, E> {
                match word {
                    "ignore" => Ok(Clients::Ignored),
                    "obey" => Ok(Clients::Obeyed),
                    _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Clients, A::Error> {
                let form = Trusted::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Clients::Trusted(form.trusted))
            }
        }

        from.deserialize_any(Form)
    }
}

impl<'de> Deserialize<'de> for Query {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Form;

        impl<'de> Visitor<'de> for Form {
            type Value = Query;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`all`, `none`, or a list of names")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Query, E> {
                match word {
                    "all" => Ok(Query::All),
                    "none" => Ok(Query::None),
                    _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Query, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Query::Only)
            }
        }

        from.deserialize_any(Form)
    }
}

impl<'de> Deserialize<'de> for Statuses {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Form;

        impl<'de> Visitor<'de> for Form {
            type Value = Statuses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`any`, or a list of statuses")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Statuses, E> {
                match word {
                    "any" => Ok(Statuses::Any),
                    _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Statuses, A::Error> {
                let list = Vec::<WholeStatus>::deserialize(SeqAccessDeserializer::new(list))?;
                let statuses = list.into_iter().map(|status| status.0);
                Ok(Statuses::Only(statuses.collect()))
            }
        }

        from.deserialize_any(Form)
    }
}

/// The status of a whole response.
struct WholeStatus(StatusCode);

impl<'de> Deserialize<'de> for WholeStatus {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Number;

        impl Visitor<'_> for Number {
            type Value = WholeStatus;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status of a whole response, 200 to 599 but 206 and 304")
            }

            fn visit_u64<E: Error>(self, code: u64) -> Result<WholeStatus, E> {
                u16::try_from(code)
                    .ok()
                    .filter(|code| (200..600).contains(code) && !matches!(code, 206 | 304))
                    .and_then(|code| StatusCode::from_u16(code).ok())
                    .map(WholeStatus)
                    .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(code), &self))
            }
        }

        from.deserialize_u16(Number)
    }
}

#[cfg(test)]
mod reference;
