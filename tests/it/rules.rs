//! Which test shows which rule of the RFCs.
//!
//! A test that shows a rule is named after its section: `rfc9111_4_2_1_...` for RFC 9111 section
//! 4.2.1, `rfc5861_3_and_4_...` for two of them. `tests/rules.md` lists them.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// RFC, section, and what it is about. Every one has a test, and every test is about one of these.
const RULES: [(u16, &str, &str); 59] = [
    (9110, "5.6.7", "dates, the obsolete forms included"),
    (9110, "7.6.1", "fields of one connection go no further"),
    (9110, "7.6.3", "`Via`"),
    (
        9110,
        "8.8.2.2",
        "when `Last-Modified` is a strong validator",
    ),
    (9110, "8.8.3.2", "comparison of entity tags"),
    (9110, "9.3.2", "HEAD"),
    (9110, "13.1.1", "`If-Match`"),
    (9110, "13.1.2", "`If-None-Match`"),
    (9110, "13.1.3", "`If-Modified-Since`"),
    (9110, "13.1.4", "`If-Unmodified-Since`"),
    (9110, "13.1.5", "`If-Range`"),
    (9110, "13.2.2", "precedence of preconditions"),
    (9110, "14.1.2", "byte ranges"),
    (9110, "14.2", "`Range`"),
    (9110, "14.4", "`Content-Range`"),
    (9110, "15.4.5", "304"),
    (9110, "15.5.17", "416"),
    (9111, "1.2.2", "seconds"),
    (9111, "3", "what is stored"),
    (9111, "3.1", "fields that are stored"),
    (9111, "3.2", "fields that are updated"),
    (9111, "3.3", "incomplete responses"),
    (9111, "3.4", "combining parts"),
    (9111, "3.5", "requests with `Authorization`"),
    (9111, "4", "what is reused"),
    (9111, "4.1", "`Vary`"),
    (9111, "4.2", "freshness"),
    (9111, "4.2.1", "freshness lifetime"),
    (9111, "4.2.2", "heuristic freshness"),
    (9111, "4.2.3", "age"),
    (9111, "4.2.4", "stale responses"),
    (9111, "4.3.1", "asking about what is stored"),
    (9111, "4.3.2", "conditions that we are asked with"),
    (9111, "4.3.3", "what the answer means"),
    (9111, "4.3.4", "freshening by a 304"),
    (9111, "4.3.5", "freshening by a HEAD"),
    (9111, "4.4", "invalidation"),
    (9111, "5.1", "`Age`"),
    (9111, "5.2", "`Cache-Control`"),
    (9111, "5.2.1", "directives of requests"),
    (9111, "5.2.1.7", "`only-if-cached`"),
    (9111, "5.2.2", "directives of responses"),
    (9111, "5.2.2.3", "`must-understand`"),
    (9111, "5.2.2.4", "`no-cache`"),
    (9111, "5.2.2.7", "`private`"),
    (9111, "5.3", "`Expires`"),
    (9111, "5.4", "`Pragma`"),
    (5861, "3", "`stale-while-revalidate`"),
    (5861, "4", "`stale-if-error`"),
    (9211, "2", "`Cache-Status`: members of several caches"),
    (9211, "2.1", "`hit`"),
    (9211, "2.2", "`fwd`"),
    (9211, "2.3", "`fwd-status`"),
    (9211, "2.4", "`ttl`"),
    (9211, "2.5", "`stored`"),
    (9211, "2.6", "`collapsed`"),
    (9211, "2.8", "`detail`"),
    (9213, "2.1", "syntax of `CDN-Cache-Control`"),
    (
        9213,
        "2.2",
        "`CDN-Cache-Control` in the place of `Cache-Control`",
    ),
];

#[test]
fn every_rule_has_a_test_and_every_test_a_rule() {
    let tests = tests();
    for (rfc, section, what) in RULES {
        let is_shown = tests.iter().any(|test| test.shows(rfc, section));
        assert!(is_shown, "no test for RFC {rfc} section {section}: {what}");
    }
    for Test { name, rules, .. } in &tests {
        let unknown = rules.iter().find(|(rfc, section)| {
            !RULES
                .iter()
                .any(|(known, of, _)| known == rfc && of == section)
        });
        assert_eq!(
            unknown, None,
            "{name} is about a section that is not listed"
        );
    }
}

#[test]
fn the_list_of_rules_is_up_to_date() {
    let page = page(&tests());
    let path = root().join("tests/rules.md");
    if fs::read_to_string(&path).unwrap_or_default() != page {
        let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rules.md");
        fs::write(&made, page).unwrap();
        panic!(
            "tests/rules.md is old; run: cp {} {}",
            made.display(),
            path.display()
        );
    }
}

#[test]
fn names_tell_sections() {
    let sections = |name| sections(name).unwrap_or_default();
    let of = |sections: &[&str]| -> Vec<_> {
        let owned = sections.iter().map(|section| (*section).to_owned());
        owned.map(|section| (9111, section)).collect()
    };
    assert_eq!(sections("rfc9111_4_2_1_x"), of(&["4.2.1"]));
    assert_eq!(sections("rfc9111_3_3_and_4_a_part"), of(&["3.3", "3.4"]));
    assert_eq!(sections("rfc9111_3_any_status"), of(&["3"]));
    assert_eq!(sections("rfc9111_4_3_4_a_304_freshens"), of(&["4.3.4"]));
    assert_eq!(sections("rfc9111_x"), of(&[""]));
    assert_eq!(sections("a_test"), vec![]);
}

struct Test {
    name: String,
    /// Below the root, with `/`.
    file: String,
    rules: Vec<(u16, String)>,
}

impl Test {
    fn shows(&self, rfc: u16, section: &str) -> bool {
        self.rules
            .iter()
            .any(|(own, of)| *own == rfc && of == section)
    }
}

/// All tests that are named after a section, in the order of their files.
fn tests() -> Vec<Test> {
    let mut files = Vec::new();
    for directory in ["src", "tests"] {
        collect(&root().join(directory), &mut files);
    }
    files.sort_unstable();
    files.iter().flat_map(|file| tests_of(file)).collect()
}

fn tests_of(file: &Path) -> Vec<Test> {
    let source = fs::read_to_string(file).unwrap();
    source
        .lines()
        .filter_map(|line| {
            let (_, after) = line.split_once("fn ")?;
            let (name, _) = after.split_once('(')?;
            Some(Test {
                rules: sections(name)?,
                name: name.to_owned(),
                file: file.strip_prefix(root()).unwrap().display().to_string(),
            })
        })
        .collect()
}

/// RFCs and sections that a test's name begins with; `None` where it begins with no RFC.
fn sections(name: &str) -> Option<Vec<(u16, String)>> {
    let mut parts = name.strip_prefix("rfc")?.split('_').peekable();
    let rfc = parts.next()?.parse().ok()?;
    let is_number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
    let mut section: Vec<&str> = Vec::new();
    while let Some(part) = parts.next_if(is_number) {
        section.push(part);
    }
    let mut sections = vec![(rfc, section.join("."))];
    while parts.next_if_eq(&"and").is_some()
        && let Some(last) = parts.next_if(is_number)
    {
        section.pop();
        section.push(last);
        sections.push((rfc, section.join(".")));
    }
    Some(sections)
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn page(tests: &[Test]) -> String {
    let mut page = "# Rules and their tests\n\n\
        Made and checked by `tests/it/rules.rs`. Run one with `cargo test NAME`.\n\n\
        | rule | about | tests |\n| --- | --- | --- |\n"
        .to_owned();
    for (rfc, section, what) in RULES {
        let named: Vec<_> = tests
            .iter()
            .filter(|test| test.shows(rfc, section))
            .map(|test| format!("[`{}`](../{})", test.name, test.file))
            .collect();
        writeln!(
            page,
            "| RFC {rfc} {section} | {what} | {} |",
            named.join("<br>")
        )
        .unwrap();
    }
    page
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
