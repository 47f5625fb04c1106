use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::policy::testing::CASES;

type Check = fn(&[u8]);

const TARGETS: [(&str, Check); 6] = [
    ("accept", accept),
    ("cache_control", cache_control),
    ("dates", dates),
    ("imgproxy_path", imgproxy_path),
    ("range", range),
    ("route_metadata", route_metadata),
];

#[test]
fn every_seed_of_every_target_holds() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let mut targets: Vec<_> = fs::read_dir(&seeds)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    targets.sort_unstable();
    assert_eq!(targets, TARGETS.map(|(name, _)| name));
    for (name, check) in TARGETS {
        for seed in fs::read_dir(seeds.join(name)).unwrap() {
            check(&fs::read(seed.unwrap().path()).unwrap());
        }
    }
}

/// Any bytes, but that those which cannot stand in a field end its line.
fn lines() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|byte| match byte {
        b'\t' | b' '..=b'~' | 0x80.. => byte,
        _ => b'\n',
    });
    vec(byte, 0..40)
}

/// Text in which what our readers look for comes up often.
fn words(words: &'static [&'static str]) -> impl Strategy<Value = String> {
    vec(select(words), 0..12).prop_map(|words| words.concat())
}

const ACCEPT: &[&str] = &[
    "image/", "image", "Image/", "/", "jxl", "avif", "webp", "*", ",", ";q=0", " ", "\n",
];

const CACHE_CONTROL: &[&str] = &[
    "no-store",
    "private",
    "No-Cache",
    "max-age",
    "s-maxage",
    "stale-if-error",
    "must-understand",
    "max-stale",
    "x",
    "=",
    "=\"",
    "\"",
    "\\",
    "1",
    "61",
    "-",
    ".",
    ",",
    ", ",
    ";",
    " ",
    "\n",
];

const DATES: &[&str] = &[
    "Wed, ",
    "Sunday, ",
    "01 Jan ",
    "29 Feb ",
    "1 Jan ",
    "06-Nov-",
    "1950 ",
    "2025 ",
    "2028 ",
    "9999 ",
    "94 ",
    "08:49:37 GMT",
    "23:59:60 GMT",
    "Sun Nov  6 08:49:37 1994",
    "0",
    "7200",
    "-1",
    "9999999999999999999999",
    ",",
    " ",
    "\n",
    "\n",
    "\n",
    "Wed, 01 Jan 2025 00:00:00 GMT",
    "Fri, 31 Dec 9999 23:59:59 GMT",
];

const IMGPROXY_PATH: &[&str] = &[
    "/",
    "/",
    "//",
    "x",
    "plain/",
    "enc/",
    "w:1",
    "exp:9",
    "exp:2000000000",
    "f:png",
    "pr:a",
    "%3A",
    "%2f",
    "%",
    "local:/",
    "http:/",
    ":",
    "@",
    ".",
    "=",
    "png",
    "best",
    "bG9j",
    "?",
];

const RANGE: &[&str] = &[
    "bytes=",
    "BYTES=",
    "items=",
    "0",
    "9",
    "10",
    "99999999999999999999999",
    "-",
    "-",
    ",",
    " ",
    "\"a\"",
    "W/",
    "\"",
    "*",
    "\n",
    "\n",
    "\n",
    "Wed, 01 Jan 2025 00:00:00 GMT",
];

const ROUTE_METADATA: &[&str] = &[
    "filter_metadata",
    "key",
    "value",
    "fields",
    "string_value",
    "afterimage",
    "policy",
    "a",
    "{",
    "}",
    "{",
    "}",
    "<",
    ">",
    "[",
    "]",
    ":",
    ",",
    ";",
    " ",
    "\"",
    "'",
    "\\",
    "\\x41",
    "\\777",
    "#",
    "\n",
    "1",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn accept_of_any_bytes(input in lines()) {
        accept(&input);
    }

    #[test]
    fn accept_of_words(input in words(ACCEPT)) {
        accept(input.as_bytes());
    }

    #[test]
    fn cache_control_of_any_bytes(input in lines()) {
        cache_control(&input);
    }

    #[test]
    fn cache_control_of_words(input in words(CACHE_CONTROL)) {
        cache_control(input.as_bytes());
    }

    #[test]
    fn dates_of_any_bytes(input in lines()) {
        dates(&input);
    }

    #[test]
    fn dates_of_words(input in words(DATES)) {
        dates(input.as_bytes());
    }

    #[test]
    fn imgproxy_path_of_any_bytes(input in vec(any::<u8>(), 0..40)) {
        imgproxy_path(&input);
    }

    #[test]
    fn imgproxy_path_of_words(input in words(IMGPROXY_PATH)) {
        imgproxy_path(format!("/{input}").as_bytes());
    }

    #[test]
    fn range_of_any_bytes(input in lines()) {
        range(&input);
    }

    #[test]
    fn range_of_words(input in words(RANGE)) {
        range(format!("10\n{input}").as_bytes());
    }

    #[test]
    fn route_metadata_of_any_bytes(input in vec(any::<u8>(), 0..40)) {
        route_metadata(&input);
    }

    #[test]
    fn route_metadata_of_words(input in words(ROUTE_METADATA)) {
        route_metadata(input.as_bytes());
    }
}
