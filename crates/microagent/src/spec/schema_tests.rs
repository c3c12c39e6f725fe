//! Holds the schema and the reader together: a checker of our own, for exactly the words our schema
//! uses, judges the same documents as the reader.

use std::{cell::RefCell, collections::HashMap};

use proptest::{prelude::*, strategy::ValueTree as _};
use regex_lite::Regex;
use serde_json::{Map, Value as Json, json};

use super::{error::FaultClass, *};

/// Whether `schema` takes `value`.
///
/// Panics on a keyword it does not know, so that none is passed over.
pub(super) fn takes(schema: &Json, value: &Json) -> bool {
    schema
        .as_object()
        .unwrap()
        .iter()
        .all(|(keyword, argument)| holds(keyword, argument, schema, value))
}

fn holds(keyword: &str, argument: &Json, schema: &Json, value: &Json) -> bool {
    let all = |argument: &Json| -> Vec<Json> { argument.as_array().unwrap().clone() };
    let has = |key: &Json| value.get(key.as_str().unwrap()).is_some();
    match keyword {
        "$schema" | "title" | "description" | "default" => true,
        "type" => match argument {
            Json::Array(types) => types.iter().any(|one| is_type(one, value)),
            one => is_type(one, value),
        },
        "enum" => all(argument).contains(value),
        "const" => argument == value,
        "pattern" => value
            .as_str()
            .is_none_or(|text| matches(argument.as_str().unwrap(), text)),
        "maxLength" => value
            .as_str()
            .is_none_or(|text| text.chars().count() as u64 <= argument.as_u64().unwrap()),
        "minimum" => value
            .as_f64()
            .is_none_or(|number| number >= argument.as_f64().unwrap()),
        "maximum" => value
            .as_f64()
            .is_none_or(|number| number <= argument.as_f64().unwrap()),
        "maxItems" => value
            .as_array()
            .is_none_or(|list| list.len() as u64 <= argument.as_u64().unwrap()),
        "items" => value
            .as_array()
            .is_none_or(|list| list.iter().all(|item| takes(argument, item))),
        "required" => value
            .as_object()
            .is_none_or(|_| all(argument).iter().all(has)),
        "dependentRequired" => argument
            .as_object()
            .unwrap()
            .iter()
            .all(|(key, needed)| value.get(key).is_none() || all(needed).iter().all(has)),
        "properties" => argument
            .as_object()
            .unwrap()
            .iter()
            .all(|(key, schema)| value.get(key).is_none_or(|value| takes(schema, value))),
        "additionalProperties" => value.as_object().is_none_or(|table| {
            let known = schema.get("properties");
            table
                .iter()
                .filter(|(key, _)| known.is_none_or(|known| known.get(key).is_none()))
                .all(|(_, value)| match argument {
                    Json::Bool(allowed) => *allowed,
                    schema => takes(schema, value),
                })
        }),
        "propertyNames" => value
            .as_object()
            .is_none_or(|table| table.keys().all(|key| takes(argument, &json!(key)))),
        "allOf" => all(argument).iter().all(|schema| takes(schema, value)),
        "anyOf" => all(argument).iter().any(|schema| takes(schema, value)),
        "oneOf" => {
            all(argument)
                .iter()
                .filter(|schema| takes(schema, value))
                .count()
                == 1
        }
        "not" => !takes(argument, value),
        other => panic!("the checker does not know {other}"),
    }
}

/// Whether `text` has what `pattern` describes. Each pattern is compiled once.
fn matches(pattern: &str, text: &str) -> bool {
    thread_local!(static COMPILED: RefCell<HashMap<String, Regex>> = RefCell::default());
    COMPILED.with_borrow_mut(|compiled| {
        compiled
            .entry(pattern.to_owned())
            .or_insert_with(|| Regex::new(pattern).unwrap())
            .is_match(text)
    })
}

fn is_type(name: &Json, value: &Json) -> bool {
    match name.as_str().unwrap() {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        other => panic!("the checker does not know the type {other}"),
    }
}

/// Texts that one pattern or another takes, and such as all refuse.
const TEXTS: &[&str] = &[
    "a",
    "agent-1",
    "-a",
    "a-",
    "A.b_c",
    "x y",
    "",
    "\0",
    "/",
    "/data",
    "/data/x/",
    "/a/../b",
    "/a/..b/.c",
    "/./a",
    "rel/ative",
    "0644",
    "644",
    "07777",
    "17777",
    "0999",
    "true",
    "123",
    "1.5",
    "null",
    "~",
    "debian:12",
    "127.0.0.1:9900",
    "unix:/run/x",
    "127.0.0.1",
    "::1",
    "root",
    "1000:1000",
    "a:b:c",
    ":x",
    "tcp",
    "udp",
    "user",
    "isolated",
    "ro",
    "rw",
    "always",
    "on-failure",
    "never",
    "tiny",
    "small",
    "/healthz?x=1",
    "/he alth",
    "/ünicode",
    "host.example",
    "a..b",
    "# no comment",
    "a: b",
    "- a",
    "line\nbreak",
    "\"quoted\"",
    "🦀",
    "\u{85}",
];

/// Makes documents of bytes: values that a schema takes, now and then something else.
struct Maker<'a>(std::slice::Iter<'a, u8>);

impl Maker<'_> {
    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.0.next().copied().unwrap_or(0)) % limit
    }

    fn text(&mut self) -> Json {
        json!(TEXTS[self.below(TEXTS.len())])
    }

    fn anything(&mut self, depth: usize) -> Json {
        match self.below(if depth > 3 { 7 } else { 9 }) {
            0 => Json::Null,
            1 => json!(self.below(2) == 0),
            2 => json!(self.below(200)),
            3 => json!(-5),
            4 => json!([1.5, 80.0, 1e300, 4_294_967_296.0][self.below(4)]),
            5 | 6 => self.text(),
            7 => (0..self.below(3))
                .map(|_| self.anything(depth + 1))
                .collect(),
            _ => (0..self.below(3))
                .map(|_| {
                    (
                        self.text().as_str().unwrap().to_owned(),
                        self.anything(depth + 1),
                    )
                })
                .collect::<Map<_, _>>()
                .into(),
        }
    }

    /// A value that is likely to be taken by `schema`.
    fn like(&mut self, schema: &Json, depth: usize) -> Json {
        if self.below(40) == 39 {
            return self.anything(depth);
        }
        if let Some(Json::Array(choices)) = schema.get("anyOf")
            && schema.get("type").is_none()
        {
            let choice = self.below(choices.len());
            return self.like(&choices[choice], depth);
        }
        if let Some(Json::Array(words)) = schema.get("enum") {
            return words[self.below(words.len())].clone();
        }
        let kind = match &schema["type"] {
            Json::Array(kinds) => kinds[self.below(kinds.len())].clone(),
            one => one.clone(),
        };
        match kind.as_str().unwrap() {
            "boolean" => json!(self.below(2) == 0),
            "number" => json!(1.5),
            "integer" => {
                let (low, high) = (
                    schema["minimum"].as_u64().unwrap(),
                    schema["maximum"].as_u64().unwrap(),
                );
                let choices = [
                    low,
                    high,
                    low + 1,
                    (low + high) / 2,
                    high + 1,
                    low.saturating_sub(1),
                ];
                // Mostly inside.
                let index = self.below(20).min(5);
                json!(choices[if self.below(4) == 0 { index } else { index % 4 }])
            }
            "array" => (0..self.below(3))
                .map(|_| self.like(&schema["items"], depth + 1))
                .collect(),
            "object" => self.table(schema, depth),
            _ => self.matching(schema),
        }
    }

    /// A text that the pattern takes, mostly.
    fn matching(&mut self, schema: &Json) -> Json {
        let Some(pattern) = schema.get("pattern").and_then(Json::as_str) else {
            return self.text();
        };
        let good: Vec<_> = TEXTS.iter().filter(|text| matches(pattern, text)).collect();
        if self.below(8) == 0 || good.is_empty() {
            return self.text();
        }
        json!(good[self.below(good.len())])
    }

    fn table(&mut self, schema: &Json, depth: usize) -> Json {
        let mut table = Map::new();
        let Some(Json::Object(properties)) = schema.get("properties") else {
            for _ in 0..self.below(3) {
                let value = self.like(&schema["additionalProperties"], depth + 1);
                table.insert(self.text().as_str().unwrap().to_owned(), value);
            }
            return table.into();
        };
        let required = |key: &str| {
            schema
                .get("required")
                .is_some_and(|keys| keys.as_array().unwrap().contains(&json!(key)))
        };
        for (key, schema) in properties {
            let there = if required(key) {
                self.below(16) != 15
            } else {
                self.below(3) == 2
            };
            if there {
                table.insert(key.clone(), self.like(schema, depth + 1));
            }
        }
        if self.below(30) == 29 {
            let key = self.text().as_str().unwrap().to_owned();
            table.insert(key, self.anything(depth + 1));
        }
        table.into()
    }
}

/// Whether the reader finds nothing that the schema would find, and what it found.
fn reader_takes(document: &str) -> (bool, Vec<String>) {
    match Spec::parse(document, "x", "/base") {
        Ok(_) => (true, Vec::new()),
        Err(error) => {
            let shape = error
                .faults()
                .iter()
                .all(|fault| fault.class == FaultClass::Sense);
            (shape, error.lines())
        }
    }
}

fn agree(schema: &Json, document: &Json) -> Result<bool, TestCaseError> {
    let text = serde_json::to_string_pretty(document).unwrap();
    let taken = takes(schema, document);
    let (read, faults) = reader_takes(&text);
    prop_assert_eq!(taken, read, "{}\n{:#?}", text, faults);
    Ok(taken)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reader_and_schema_agree(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let schema = Spec::schema();
        let document = Maker(bytes.iter()).like(&schema, 0);
        agree(&schema, &document)?;
    }

    /// One table alone: the whole document is refused too often to show much of its inside.
    #[test]
    fn reader_and_schema_agree_on_each_key(
        key in any::<prop::sample::Index>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let schema = Spec::schema();
        let properties = schema["properties"].as_object().unwrap();
        let (key, inner) = properties.iter().nth(key.index(properties.len())).unwrap();
        let document = json!({key: Maker(bytes.iter()).like(inner, 1)});
        agree(&schema, &document)?;
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
        let _ = Spec::parse(&text, "x", "/base");
    }
}

#[test]
fn generated_documents_are_of_both_kinds() {
    let schema = Spec::schema();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let bytes = proptest::collection::vec(any::<u8>(), 0..120);
    let (mut taken, mut refused) = (0, 0);
    for round in 0..1000 {
        let bytes = bytes.new_tree(&mut runner).unwrap().current();
        let properties = schema["properties"].as_object().unwrap();
        let (key, inner) = properties.iter().nth(round % properties.len()).unwrap();
        let document = json!({key: Maker(bytes.iter()).like(inner, 1)});
        if takes(&schema, &document) {
            taken += 1;
        } else {
            refused += 1;
        }
    }
    assert!(
        taken > 300 && refused > 100,
        "{taken} taken, {refused} refused"
    );
}

#[test]
fn defaults_are_taken_by_their_own_schema() {
    fn visit(schema: &Json, seen: &mut usize) {
        if let Some(default) = schema.get("default") {
            assert!(takes(schema, default), "{schema}");
            *seen += 1;
        }
        match schema {
            Json::Object(table) => table.values().for_each(|value| visit(value, seen)),
            Json::Array(list) => list.iter().for_each(|value| visit(value, seen)),
            _ => {}
        }
    }
    let mut seen = 0;
    visit(&Spec::schema(), &mut seen);
    assert!(seen > 10, "{seen}");
}

/// A document as JSON, numbers and words as the core schema has them.
fn as_json(node: &yaml::Node) -> Json {
    match &node.value {
        yaml::Value::Scalar(scalar) => match scalar.resolve() {
            yaml::Resolved::Null => Json::Null,
            yaml::Resolved::Bool(flag) => json!(flag),
            yaml::Resolved::Integer(number) => json!(i64::try_from(number).unwrap()),
            yaml::Resolved::Float(number) => json!(number),
            yaml::Resolved::Text(text) => json!(text),
        },
        yaml::Value::List(items) => items.iter().map(as_json).collect(),
        yaml::Value::Table(entries) => entries
            .iter()
            .map(|entry| (entry.key.clone(), as_json(&entry.node)))
            .collect::<Map<_, _>>()
            .into(),
    }
}

#[test]
fn the_examples_are_good_by_reader_and_schema() {
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples"));
    let mut seen = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let spec = Spec::read(&path).unwrap();
        for file in spec.files {
            assert!(
                file.src.is_file(),
                "{} has no {}",
                path.display(),
                file.src.display()
            );
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let document = as_json(&yaml::parse(&text).unwrap());
        assert!(takes(&Spec::schema(), &document), "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 3, "{seen}");
}
