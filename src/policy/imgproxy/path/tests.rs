use proptest::prelude::*;

use super::*;
use crate::policy::testing::{CASES, NOW, imgproxy};

fn repaired(path: &str) -> String {
    String::from_utf8(repair(path.as_bytes()).into_owned()).expect("UTF-8")
}

fn parsed<'a>(path: &'a str, settings: &Imgproxy) -> Result<ImagePath<'a>, BypassReason> {
    ImagePath::read(path.as_bytes(), settings, NOW)
}

fn read(path: &str) -> ImagePath<'_> {
    parsed(path, &imgproxy()).unwrap_or_else(|reason| panic!("{reason:?} for {path}"))
}

fn url(source: &[u8]) -> ImageSource<'_> {
    ImageSource::Url(source.into())
}

#[test]
fn a_path_is_cut_into_signature_and_the_rest() {
    for (prefix, path) in [
        ("", "/sig/w:1/plain/a"),
        ("", "//sig/w:1/plain/a"),
        ("", "/sig//w:1/plain/a"),
        ("", "/sig///w:1/plain/a"),
        ("/img", "/img/sig/w:1/plain/a"),
        ("/img", "/img//sig/w:1/plain/a"),
        ("/i/mg", "/i/mg/sig/w%3A1/plain/a"),
    ] {
        let expected = Target {
            signature: b"sig",
            path: b"w:1/plain/a".into(),
        };
        assert_eq!(
            Target::read(path.as_bytes(), prefix),
            Ok(expected),
            "{path}"
        );
    }
}

#[test]
fn more_slashes_than_imgproxy_takes_stay() {
    let target = Target::read(b"/sig////w:1/plain/a", "").expect("two halves");
    assert_eq!(target.path.as_ref(), b"/w:1/plain/a");
    assert_eq!(
        Target::read(b"///sig/plain/a", ""),
        Err(BypassReason::Unparsable)
    );
}

#[test]
fn a_path_without_two_halves_or_outside_the_prefix_is_none() {
    use BypassReason::{PathPrefix, Unparsable};
    for (prefix, path, reason) in [
        ("", "", PathPrefix),
        ("", "*", PathPrefix),
        ("", "sig/plain/a", PathPrefix),
        ("", "/", Unparsable),
        ("", "/health", Unparsable),
        ("", "/sig/", Unparsable),
        ("", "/sig//", Unparsable),
        ("/img", "/img", PathPrefix),
        ("/img", "/img/", Unparsable),
        ("/img", "/img/health", Unparsable),
        ("/img", "/imgs/sig/plain/a", PathPrefix),
        ("/img", "/IMG/sig/plain/a", PathPrefix),
        ("/img", "/%69mg/sig/plain/a", PathPrefix),
        ("/img", "//img/sig/plain/a", PathPrefix),
    ] {
        assert_eq!(Target::read(path.as_bytes(), prefix), Err(reason), "{path}");
    }
}

#[test]
fn escaped_colons_are_repaired_in_front_of_a_plain_source_only() {
    for (path, expected) in [
        ("rs%3Afill%3A1/plain/a%3Ab", "rs:fill:1/plain/a%3Ab"),
        ("w:1/h%3A2/YQ", "w:1/h:2/YQ"),
        ("w%3a1/plain/a", "w%3a1/plain/a"),
        ("w%3A1/plain/a/plain/b%3Ac", "w:1/plain/a/plain/b%3Ac"),
        ("plain/a%3Ab", "plain/a%3Ab"),
        ("plain%3A/a", "plain:/a"),
        ("w%3A1/plain", "w:1/plain"),
        ("xplain/a%3Ab", "xplain/a:b"),
    ] {
        assert_eq!(repaired(path), expected);
    }
}

/// Go's `regexp` gives these results for imgproxy's expression.
#[test]
fn a_slash_lost_from_a_scheme_is_repaired_at_the_last_place_that_looks_like_it() {
    for (plain, expected) in [
        ("http:/a", "http://a"),
        ("http://a", "http://a"),
        ("local:/a", "local:///a"),
        ("local://a", "local://a"),
        ("local:///a", "local:///a"),
        ("s3:/a/b@png", "s3://a/b@png"),
        ("http://a:/b", "http://a://b"),
        ("http:/a:/b", "http:/a://b"),
        ("local:/a:/b", "local:/a://b"),
        ("a:/b:/c:/", "a:/b://c:/"),
        ("a:/b:/c://d", "a:/b://c://d"),
        ("::/a", ":://a"),
        (":/a", ":/a"),
        ("s3:/", "s3:/"),
        ("http:/\u{e9}", "http://\u{e9}"),
        ("a b:/c", "a b:/c"),
        ("a:/b c:/d", "a://b c:/d"),
        ("a:/\n", "a://\n"),
        ("a\u{b}:/b", "a\u{b}://b"),
        ("a\u{a0}:/b", "a\u{a0}://b"),
    ] {
        assert_eq!(
            repaired(&format!("plain/{plain}")),
            format!("plain/{expected}")
        );
        assert_eq!(
            repaired(&format!("w:1/plain/{plain}")),
            format!("w:1/plain/{expected}")
        );
    }
    assert_eq!(repair(b"plain/a\xff:/\xff").as_ref(), b"plain/a\xff://\xff");
}

#[test]
fn options_end_at_the_first_segment_without_a_separator() {
    for (path, options) in [
        ("plain/a", ""),
        ("w:1/plain/a", "w:1"),
        ("w:1/:/::/plain/a", "w:1/:/::"),
        ("w:1/YWJj/plain/YQ", "w:1"),
    ] {
        assert_eq!(
            read(path).processing,
            Processing::Options(options.as_bytes()),
            "{path}"
        );
    }
    let settings = Imgproxy {
        arguments_separator: "--".into(),
        ..imgproxy()
    };
    let image = parsed("w--1/h:-2--/plain/a", &settings).expect("an image");
    assert_eq!(image.processing, Processing::Options(b"w--1/h:-2--"));
}

#[test]
fn a_plain_source_is_unescaped_and_its_format_cut_off() {
    for (path, source, extension) in [
        ("plain/a", "a", ""),
        ("plain/a@", "a", ""),
        ("plain/a@png", "a", "png"),
        ("plain/a/b//c@png", "a/b//c", "png"),
        ("plain/a@p/ng", "a", "p/ng"),
        ("plain/a%40b@p%6eg", "a@b", "p%6eg"),
        ("plain/%2f%2F+%00%E4", "//+\0\u{fffd}", ""),
        ("plain/plain/a", "plain/a", ""),
    ] {
        let image = read(path);
        let ImageSource::Url(decoded) = &image.source else {
            panic!("{image:?}");
        };
        assert_eq!(String::from_utf8_lossy(decoded), source, "{path}");
        assert_eq!(image.extension, extension.as_bytes(), "{path}");
    }
}

#[test]
fn a_base64_source_may_be_split_and_padded() {
    for (path, extension) in [
        ("bG9jYWw6Ly8vYS5wbmc", ""),
        ("bG9jYWw6Ly8vYS5wbmc.", ""),
        ("bG9jYWw6Ly8vYS5wbmc.webp", "webp"),
        ("bG9jYWw6/Ly8v/YS5wbmc.we/bp", "webp"),
        ("bG9jYWw6//Ly8vYS5wbmc=/.webp", "webp"),
        ("bG9jYWw6Ly8vYS5wbmc====.webp", "webp"),
        ("bG9jYWw6Ly8vYS5wbmd.webp", "webp"),
    ] {
        let image = read(path);
        assert_eq!(image.source, url(b"local:///a.png"), "{path}");
        assert_eq!(image.extension, extension.as_bytes(), "{path}");
    }
}

#[test]
fn a_file_name_behind_a_base64_source_is_dropped_where_imgproxy_expects_one() {
    let settings = Imgproxy {
        base64_includes_filename: true,
        ..imgproxy()
    };
    for (path, extension) in [
        ("bG9jYWw6Ly8vYS5wbmc", ""),
        ("bG9jYWw6Ly8vYS5wbmc.webp", "webp"),
        ("bG9jYWw6Ly8vYS5wbmc.webp/x.y.z", "webp"),
        ("bG9jYWw6Ly8v/YS5wbmc/", ""),
    ] {
        let image =
            parsed(path, &settings).unwrap_or_else(|reason| panic!("{reason:?} for {path}"));
        assert_eq!(image.source, url(b"local:///a.png"), "{path}");
        assert_eq!(image.extension, extension.as_bytes(), "{path}");
    }
    let image = parsed("plain/a/b@png", &settings).expect("an image");
    assert_eq!(image.source, url(b"a/b"));
}

#[test]
fn an_encrypted_source_stays_as_it_is() {
    let image = read("w:1/enc/YWJj/ZGVm=.png");
    assert_eq!(image.source, ImageSource::Encrypted(b"YWJjZGVm=".into()));
    assert_eq!(image.extension.as_ref(), b"png");
    let settings = Imgproxy {
        base64_includes_filename: true,
        ..imgproxy()
    };
    let image = parsed("enc/YWJj/ZGVm.png/name.jpg", &settings).expect("an image");
    assert_eq!(
        image.source,
        ImageSource::Encrypted(b"YWJj/ZGVm.png/name.jpg".into())
    );
    assert!(!image.has_fixed_format);
}

#[test]
fn what_imgproxy_finds_no_source_in_is_unparsable() {
    for path in [
        "w:1",
        "w:1/",
        "w:1/h:2",
        "plain",
        "plain/",
        "w:1/plain/",
        "plain/@png",
        "plain/a@png@webp",
        "plain/%",
        "plain/a%4",
        "plain/%zz",
        "plain/%4g",
        ".png",
        "YQ.png.webp",
        "Y",
        "Y+Q",
        "Y%51",
        "YQ=Y",
        "enc/",
        "enc/.png",
        "enc/YQ.png.webp",
        "/w:1/plain/a",
    ] {
        assert_eq!(
            parsed(path, &imgproxy()),
            Err(BypassReason::Unparsable),
            "{path}"
        );
    }
}

#[test]
fn with_presets_only_the_first_segment_names_them_whatever_it_is() {
    let settings = Imgproxy {
        only_presets: true,
        ..imgproxy()
    };
    for (path, presets) in [
        ("a/plain/x", "a"),
        ("a:b/plain/x", "a:b"),
        ("exp:1/plain/x", "exp:1"),
        ("plain/plain/x", "plain"),
        ("a/eA", "a"),
    ] {
        let image =
            parsed(path, &settings).unwrap_or_else(|reason| panic!("{reason:?} for {path}"));
        assert_eq!(
            image.processing,
            Processing::Presets(presets.as_bytes()),
            "{path}"
        );
        assert_eq!(image.source, url(b"x"), "{path}");
    }
    for path in ["a", "a/", "plain/x", "a/w:1/plain/x"] {
        assert_eq!(
            parsed(path, &settings),
            Err(BypassReason::Unparsable),
            "{path}"
        );
    }
}

#[test]
fn the_earliest_end_counts_and_each_is_enforced() {
    let now = NOW.as_unix();
    for (options, expires) in [
        ("w:1".to_owned(), None),
        (format!("exp:{now}"), Some(now)),
        (format!("expires:{}", now + 9), Some(now + 9)),
        (
            format!("exp:{}/w:1/expires:{}", now + 9, now + 5),
            Some(now + 5),
        ),
        (format!("exp:{}/exp:0", now + 9), Some(now + 9)),
        (format!("exp:+{now}"), Some(now)),
        (format!("exp:00{now}"), Some(now)),
        ("exp:0".to_owned(), None),
        ("exp:-1".to_owned(), None),
        (
            "exp:9223372036854775807".to_owned(),
            Some(9223372036854775807),
        ),
        (format!("Exp:{}", now - 1), None),
    ] {
        let path = format!("{options}/plain/a");
        assert_eq!(
            read(&path).expires,
            expires.map(Timestamp::from_unix),
            "{path}"
        );
    }
    for options in [
        format!("exp:{}", now - 1),
        "exp:1".to_owned(),
        format!("exp:{}/exp:{}", now + 1, now - 1),
    ] {
        let path = format!("{options}/plain/a");
        assert_eq!(
            parsed(&path, &imgproxy()),
            Err(BypassReason::Expired),
            "{path}"
        );
    }
}

#[test]
fn an_end_that_is_no_number_is_unparsable() {
    for option in [
        "exp:",
        "exp:abc",
        "exp:1.0",
        "exp: 1",
        "exp:1_0",
        "exp:0x7fffffff",
        "exp:9223372036854775808",
        "exp:1900000000:",
        "exp:1900000000:1",
        "exp::1900000000",
        "expires:-",
        "expires:\u{661}",
    ] {
        let path = format!("{option}/plain/a");
        assert_eq!(
            parsed(&path, &imgproxy()),
            Err(BypassReason::Unparsable),
            "{path}"
        );
    }
}

#[test]
fn only_a_format_that_nothing_can_change_is_fixed() {
    for (path, is_fixed) in [
        ("plain/a@png", true),
        ("plain/a@jpeg", true),
        ("plain/a@PNG", false),
        ("plain/a@best", false),
        ("plain/a@xyz", false),
        ("plain/a", false),
        ("plain/a@", false),
        ("YQ.webp", true),
        ("enc/YQ.webp", true),
        ("f:png/plain/a", true),
        ("format:png/plain/a@", true),
        ("ext:png/w:1/YQ", true),
        ("f:/plain/a", false),
        ("f:png:1/plain/a", false),
        ("f:best/plain/a", false),
        ("f:png/f:best/plain/a", false),
        ("f:best/f:png/plain/a", true),
        ("f:png/plain/a@best", false),
        ("f:best/plain/a@png", true),
        ("pr:x/plain/a", false),
        ("f:png/pr:x/plain/a", false),
        ("f:png/preset:x:y/plain/a", false),
        ("pr:x/f:png/plain/a", true),
        ("pr:x/plain/a@png", true),
        ("raw:1/plain/a", false),
        ("skp:png/plain/a", false),
        ("fq:png:80/plain/a", false),
    ] {
        assert_eq!(read(path).has_fixed_format, is_fixed, "{path}");
    }
    let settings = Imgproxy {
        only_presets: true,
        ..imgproxy()
    };
    for (path, is_fixed) in [("f:png/plain/a", false), ("x/plain/a@png", true)] {
        let image = parsed(path, &settings).expect("an image");
        assert_eq!(image.has_fixed_format, is_fixed, "{path}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn no_bytes_make_it_panic(
        path in proptest::collection::vec(any::<u8>(), 0..60),
        separator in ":?-{0,2}",
        only_presets in any::<bool>(),
        base64_includes_filename in any::<bool>(),
    ) {
        let settings =
            Imgproxy { arguments_separator: separator, only_presets, base64_includes_filename, ..imgproxy() };
        if let Ok(target) = Target::read(&path, "") {
            let _ = ImagePath::read(&target.path, &settings, NOW);
        }
    }

    #[test]
    fn escaping_any_byte_of_a_source_changes_nothing(source in proptest::collection::vec(any::<u8>(), 1..20)) {
        let escaped: String = source.iter().map(|byte| format!("%{byte:02x}")).collect();
        let path = format!("plain/{escaped}");
        prop_assert_eq!(read(&path).source, url(&source));
    }
}
