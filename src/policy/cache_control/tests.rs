use super::*;

fn headers(name: &str, lines: &[&str]) -> HeaderMap {
    let name: HeaderName = name.parse().unwrap();
    lines
        .iter()
        .map(|line| (name.clone(), HeaderValue::from_str(line).unwrap()))
        .collect()
}

fn parse(lines: &[&str]) -> CacheControl {
    CacheControl::of(&headers("cache-control", lines))
}

fn targeted(line: &str) -> Directed {
    let cdn = HeaderName::from_static("cdn-cache-control");
    let mut headers = headers("cache-control", &["max-age=1"]);
    headers.insert(&cdn, HeaderValue::from_str(line).unwrap());
    CacheControl::directed_at_us(&headers, &[cdn])
}

#[test]
fn rfc9111_5_2_directives_are_read_in_any_case_and_over_several_lines() {
    let control = parse(&["Public, MAX-AGE=60", "s-maxage=\"90\", nO-StOrE"]);
    assert_eq!(control.max_age, Some(60));
    assert_eq!(control.s_maxage, Some(90));
    assert!(control.no_store && control.public);
}

#[test]
fn rfc9111_5_2_a_comma_inside_quotes_separates_nothing() {
    let control = parse(&["extension=\"max-age=3600, no-store\", max-age=1"]);
    assert_eq!(control.max_age, Some(1));
    assert!(!control.no_store);
    let control = parse(&["max-age=1, extension=\"x\\\", no-store, max-age=3600\""]);
    assert_eq!(control.max_age, Some(1));
    assert!(!control.no_store);
}

#[test]
fn rfc9111_4_2_1_of_a_repeated_directive_the_first_counts() {
    assert_eq!(parse(&["max-age=1, max-age=100"]).max_age, Some(1));
    assert_eq!(parse(&["max-age=100", "max-age=1"]).max_age, Some(100));
}

#[test]
fn rfc9111_1_2_2_a_malformed_lifetime_is_zero() {
    for argument in ["=abc", "", "=-1", "=1.5", "=", "='3600'", "=3 600"] {
        assert_eq!(
            parse(&[&format!("max-age{argument}")]).max_age,
            Some(0),
            "{argument}"
        );
    }
    assert_eq!(parse(&["max-age=003600"]).max_age, Some(3600));
}

#[test]
fn rfc9111_1_2_2_a_lifetime_of_any_number_of_digits_is_capped() {
    for digits in ["99999999999999999999999", "2307070330", "2147483648"] {
        let control = parse(&[&format!("max-age={digits}")]);
        assert_eq!(control.max_age, Some(DELTA_SECONDS_MAX));
    }
}

#[test]
fn rfc9111_5_2_2_4_and_7_field_names_narrow_a_directive() {
    let control = parse(&["no-cache=\"a, B\", private=x"]);
    let names: Vec<_> = control
        .no_cache
        .fields()
        .iter()
        .map(HeaderName::as_str)
        .collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(control.private.fields().len(), 1);
    for whole in [
        "no-cache",
        "no-cache=\"\"",
        "no-cache=\"a b\"",
        "no-cache=\"a\", no-cache",
    ] {
        assert_eq!(parse(&[whole]).no_cache, Scope::Response, "{whole}");
    }
}

#[test]
fn rfc9111_4_2_4_what_forbids_to_serve_stale() {
    for line in [
        "must-revalidate",
        "proxy-revalidate",
        "s-maxage=5",
        "no-cache",
    ] {
        assert!(parse(&[line]).forbids_stale(), "{line}");
    }
    assert!(!parse(&["max-age=5, public, no-cache=\"a\""]).forbids_stale());
}

#[test]
fn rfc9111_3_5_what_lets_an_authorized_response_be_shared() {
    for line in ["public", "must-revalidate", "s-maxage=5"] {
        assert!(parse(&[line]).shares_authorized(), "{line}");
    }
    assert!(!parse(&["max-age=5, proxy-revalidate"]).shares_authorized());
}

#[test]
fn rfc5861_3_and_4_stale_windows_are_read() {
    let control = parse(&["max-age=1, stale-while-revalidate=30, stale-if-error=60"]);
    assert_eq!(control.stale_while_revalidate, Some(30));
    assert_eq!(control.stale_if_error, Some(60));
    assert_eq!(parse(&["stale-if-error"]).stale_if_error, Some(0));
}

#[test]
fn rfc9213_2_2_a_valid_targeted_field_takes_the_place_of_cache_control() {
    for line in [
        "max-age=10000",
        "foobar, max-age=10000",
        "max-age=10000;x=1, foo=(a b);y",
        "max-age=5, max-age=10000",
    ] {
        let directed = targeted(line);
        assert!(directed.is_targeted, "{line}");
        assert_eq!(directed.control.max_age, Some(10000), "{line}");
    }
    assert!(targeted("private").control.private == Scope::Response);
    assert!(targeted("no-store=?1").control.no_store);
    assert!(!targeted("no-store=?0").control.no_store);
}

#[test]
fn rfc9213_2_1_a_malformed_or_empty_targeted_field_is_ignored() {
    for line in [
        "",
        "max-age=10000, &&&&&",
        "max-age=\"10000\"",
        "max-age =100",
        "max-age= 100",
        "MaX-aGe=3600",
        "max-age=10000,",
        "max-age=1.5",
        "max-age",
        "foo=(a",
        "foo=\"a",
    ] {
        let directed = targeted(line);
        assert!(!directed.is_targeted, "{line}");
        assert_eq!(directed.control.max_age, Some(1), "{line}");
    }
}

#[test]
fn rfc9111_5_2_1_request_directives_are_read() {
    let of = |lines: &[&str]| RequestControl::of(&headers("cache-control", lines));
    let control = of(&[
        "no-cache, max-age=5",
        "min-fresh=3, only-if-cached, no-store",
    ]);
    assert!(control.no_cache && control.only_if_cached && control.no_store);
    assert_eq!((control.max_age, control.min_fresh), (Some(5), Some(3)));
    assert_eq!(of(&["max-stale"]).max_stale, Some(u64::MAX));
    assert_eq!(of(&["max-stale=7"]).max_stale, Some(7));
    assert_eq!(of(&["max-stale=x"]).max_stale, Some(0));
}

#[test]
fn rfc9111_5_4_pragma_counts_where_there_is_no_cache_control() {
    let mut headers = headers("pragma", &["no-cache"]);
    assert!(RequestControl::of(&headers).no_cache);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=1"));
    assert!(!RequestControl::of(&headers).no_cache);
}

#[test]
fn a_limit_lowers_lifetimes_and_keeps_the_rest() {
    let limit = |lines: &[&str]| limited_cache_control(&headers("cache-control", lines), 60);
    assert_eq!(
        limit(&["public, max-age=31536000, s-maxage=30, no-cache=\"a, b\""]).unwrap(),
        ["public, max-age=60, s-maxage=30, no-cache=\"a, b\""]
    );
    assert_eq!(limit(&["max-age=60"]), None);
    assert_eq!(limit(&["public"]), None);
}

#[test]
fn a_limit_lets_no_open_quote_reach_the_next_line() {
    let lines = headers("cache-control", &["x=\"", "max-age=61, no-store"]);
    assert_eq!(
        limited_cache_control(&lines, 60).unwrap(),
        ["x=\"", "max-age=60, no-store"]
    );
}
