//! Writes the reference page and the schema for editors out of the types: `make reference`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::RawConfig;

/// What the page says before its tables.
const INTRODUCTION: &str = include_str!("reference/introduction.txt");

/// The schema of structs whose fields stand in one map.
macro_rules! merged {
    ($type:ident of $($part:ident),*) => {
        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let mut properties = serde_json::Map::new();
                $(
                    let part = <$part as schemars::JsonSchema>::json_schema(generator);
                    let fields = part.get("properties").and_then(serde_json::Value::as_object);
                    properties.extend(fields.into_iter().flatten().map(|(name, field)| {
                        (name.clone(), field.clone())
                    }));
                )*
                schemars::json_schema!({
                    "type": "object",
                    "properties": properties,
                    "additionalProperties": false
                })
            }
        }
    };
}
pub(super) use merged;

/// The schema, with every type where it is used.
fn schema() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings
        .into_generator()
        .into_root_schema_for::<RawConfig>();
    let mut schema = schema.to_value();
    tidy(&mut schema);
    schema["title"] = "Afterimage".into();
    schema
}

/// Takes out what says nothing: defaults of groups, which their fields have, and marks of serde's.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.contains_key("properties") {
                fields.remove("default");
            }
            fields.remove("writeOnly");
            fields.remove("format");
            for (name, inner) in fields.iter_mut() {
                if let Some(text) = inner.as_str().filter(|_| name == "description") {
                    *inner = text.replace('\n', " ").into();
                }
                match (name.as_str(), inner) {
                    // Names of fields, not words of the schema.
                    ("properties", Value::Object(fields)) => fields.values_mut().for_each(tidy),
                    ("default", _) => {}
                    (_, inner) => tidy(inner),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What an editor gets: without what only the page needs.
fn editors(mut schema: Value) -> String {
    fn strip(schema: &mut Value) {
        match schema {
            Value::Object(fields) => {
                fields.remove("x-default");
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    strip(&mut schema);
    format!("{}\n", serde_json::to_string_pretty(&schema).unwrap())
}

fn page(schema: &Value) -> String {
    let mut page = INTRODUCTION.trim_end().to_owned();
    section(&mut page, "", schema);
    policies(
        &mut page,
        &schema["properties"]["policies"]["additionalProperties"]["oneOf"],
    );
    page
}

/// One table for the fields that stand here, and a section for each group of them.
fn section(page: &mut String, place: &str, group: &Value) {
    let (groups, fields): (Vec<_>, Vec<_>) = group["properties"]
        .as_object()
        .unwrap()
        .iter()
        .partition(|(_, field)| field["properties"].is_object());
    if place.is_empty() {
        page.push_str("\n\n## At the top\n\n");
    } else {
        let about = group["description"].as_str().unwrap_or_default();
        write!(page, "\n\n## `{place}`\n\n{about}\n\n").unwrap();
    }
    let mut rows = Vec::new();
    for (name, field) in fields {
        if name != "policies" {
            row(
                &mut rows,
                &below(place, name),
                field,
                is_required(group, name),
            );
        }
    }
    table(page, &rows);
    for (name, inner) in groups {
        section(page, &below(place, name), inner);
    }
}

/// The tables of policies: what both kinds have alike, and the rest of each.
fn policies(page: &mut String, kinds: &Value) {
    let mut rows: BTreeMap<&str, Vec<Row>> = BTreeMap::new();
    for kind in kinds.as_array().unwrap() {
        let mut of_kind = Vec::new();
        for (name, field) in kind["properties"].as_object().unwrap() {
            if name != "kind" {
                row(&mut of_kind, name, field, false);
            }
        }
        rows.insert(
            kind["properties"]["kind"]["const"].as_str().unwrap(),
            of_kind,
        );
    }
    let (generic, imgproxy) = (&rows["generic"], &rows["imgproxy"]);
    page.push_str(
        "\n\n## Policies\n\nUnder `policies.NAME`. A name has 1 to 63 of `a-z`, `0-9` and `-`; `bypass` is none.\n\n\
         ### Of both kinds\n\n",
    );
    let kind = Row {
        field: "kind".to_owned(),
        default: "required".to_owned(),
        form: "`imgproxy` or `generic`".to_owned(),
        meaning: "What the policy's URLs mean: those of one imgproxy configuration, or of any other origin."
            .to_owned(),
    };
    let common = imgproxy.iter().filter(|row| generic.contains(row)).cloned();
    table(
        page,
        &std::iter::once(kind).chain(common).collect::<Vec<_>>(),
    );
    for (kind, own, other) in [
        ("imgproxy", imgproxy, generic),
        ("generic", generic, imgproxy),
    ] {
        write!(page, "\n\n### `kind: {kind}`\n\n").unwrap();
        let own: Vec<_> = own
            .iter()
            .filter(|row| !other.contains(row))
            .cloned()
            .collect();
        table(page, &own);
    }
    page.push('\n');
}

/// A line of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    field: String,
    default: String,
    form: String,
    meaning: String,
}

fn table(page: &mut String, rows: &[Row]) {
    if rows.is_empty() {
        page.truncate(page.trim_end().len());
        return;
    }
    page.push_str("| field | default | form | meaning |\n| --- | --- | --- | --- |");
    for row in rows {
        let cells = [&row.default, &row.form, &row.meaning].map(|cell| cell.replace('|', "\\|"));
        write!(page, "\n| `{}` | {} |", row.field, cells.join(" | ")).unwrap();
    }
}

/// The rows of a field and of what is below it.
fn row(rows: &mut Vec<Row>, place: &str, field: &Value, is_required: bool) {
    let plain = not_null(field);
    let inner = if plain["items"]["properties"].is_object() {
        (&plain["items"], format!("{place}[]"))
    } else {
        (plain, place.to_owned())
    };
    let properties = inner.0["properties"].as_object();
    // A group that is always there says nothing but its fields.
    if plain["properties"].is_null() || is_optional(plain) {
        rows.push(Row {
            field: place.to_owned(),
            default: default(field, is_required),
            form: form(plain),
            meaning: meaning(field, plain),
        });
    }
    for (name, below) in properties.into_iter().flatten() {
        let place = format!("{}.{name}", inner.1);
        row(rows, &place, below, self::is_required(inner.0, name));
    }
}

fn is_optional(group: &Value) -> bool {
    let kinds = group["type"].as_array();
    kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind == "null"))
}

fn is_required(group: &Value, name: &str) -> bool {
    let required = group["required"].as_array();
    required.is_some_and(|required| required.iter().any(|field| field == name))
}

fn below(place: &str, name: &str) -> String {
    if place.is_empty() {
        name.to_owned()
    } else {
        format!("{place}.{name}")
    }
}

/// What stands there if anything does.
fn not_null(field: &Value) -> &Value {
    let forms = field["anyOf"].as_array().into_iter().flatten();
    let [form, null] = forms.collect::<Vec<_>>()[..] else {
        return field;
    };
    if null["type"] == "null" { form } else { field }
}

fn default(field: &Value, is_required: bool) -> String {
    if let Some(words) = field["x-default"].as_str() {
        return words.to_owned();
    }
    match &field["default"] {
        _ if is_required => "required".to_owned(),
        Value::Null => "none".to_owned(),
        Value::String(text) if text.is_empty() => "none".to_owned(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Object(fields) if fields.is_empty() => "none".to_owned(),
        value => format!("`{}`", yaml(value)),
    }
}

fn yaml(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(yaml).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(fields) => {
            let fields = fields.iter();
            let fields: Vec<_> = fields
                .map(|(name, value)| format!("{name}: {}", yaml(value)))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
    }
}

/// How a field is written.
fn form(field: &Value) -> String {
    if let Some(title) = field["title"].as_str() {
        return title.to_owned();
    }
    let words = words(field);
    if !words.is_empty() {
        let words: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
        return words.join(", ");
    }
    let kind = match &field["type"] {
        Value::Array(kinds) => kinds[0].as_str(),
        kind => kind.as_str(),
    };
    match kind {
        Some("boolean") => "`true` or `false`".to_owned(),
        Some("integer" | "number") => "number".to_owned(),
        Some("string") => "text".to_owned(),
        Some("array") => match form(&field["items"]) {
            inner if inner == "map" => "list of maps".to_owned(),
            inner => format!("list of {inner}s").replace("`s", "`"),
        },
        Some("object") => match &field["additionalProperties"] {
            Value::Object(inner) if !inner.is_empty() => {
                format!("map of {}s", form(&field["additionalProperties"]))
            }
            _ => "map".to_owned(),
        },
        _ => panic!("no name for the form of {field}"),
    }
}

/// The words that can stand there, with what they mean.
fn words(field: &Value) -> Vec<(&str, &str)> {
    let described = field["oneOf"].as_array().into_iter().flatten();
    described
        .filter_map(|word| Some((word["const"].as_str()?, word["description"].as_str()?)))
        .collect()
}

fn meaning(field: &Value, plain: &Value) -> String {
    let own = field["description"]
        .as_str()
        .or(plain["description"].as_str());
    let mut meaning = own
        .unwrap_or_else(|| panic!("{field} has no meaning"))
        .to_owned();
    for (word, description) in words(plain) {
        write!(meaning, " `{word}`: {description}").unwrap();
    }
    meaning
}

/// The committed file is what the types say; with `UPDATE=1` it becomes so.
fn assert_is_current(name: &str, current: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, current).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == current,
        "docs/{name} is out of date: run `make reference`"
    );
}

#[test]
fn the_reference_says_what_the_types_say() {
    assert_is_current("configuration.md", &page(&schema()));
}

#[test]
fn the_schema_says_what_the_types_say() {
    assert_is_current("afterimage.schema.json", &editors(schema()));
}
