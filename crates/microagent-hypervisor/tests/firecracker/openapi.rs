//! The vendor's published API document, and whether a request or an answer is what it says.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// `firecracker.yaml` of Firecracker's sources, Apache-2.0, as published.
const DOCUMENT: &str = include_str!("openapi.yaml");

pub(crate) struct OpenApi(Value);

impl OpenApi {
    pub(crate) fn load() -> Self {
        let mut events = Parser::new_from_str(DOCUMENT).map(|event| event.unwrap().0);
        let document = events
            .find_map(|event| match event {
                Event::StreamStart | Event::DocumentStart(_) => None,
                other => Some(other),
            })
            .unwrap();
        Self(value(document, &mut events))
    }

    /// Whether a request may be sent: its operation is there, its body is as the document says.
    pub(crate) fn check_request(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(), String> {
        let operation = self.operation(method, path)?;
        let schema = operation["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|parameter| parameter["in"] == "body")
            .map(|parameter| &parameter["schema"]);
        match (schema, body) {
            (Some(schema), Some(body)) => self.check(schema, body, "body"),
            (None, None) => Ok(()),
            (Some(_), None) => Err(format!("{method} {path} needs a body")),
            (None, Some(_)) => Err(format!("{method} {path} takes no body")),
        }
    }

    /// Whether an answer is one that the document has for this operation.
    pub(crate) fn check_answer(
        &self,
        method: &str,
        path: &str,
        status: u16,
        body: Option<&Value>,
    ) -> Result<(), String> {
        let responses = &self.operation(method, path)?["responses"];
        let response = responses
            .get(status.to_string())
            .or_else(|| responses.get("default"))
            .ok_or_else(|| format!("{method} {path} has no answer {status}"))?;
        match (response.get("schema"), body) {
            (Some(schema), Some(body)) => self.check(schema, body, "answer"),
            (None, None) => Ok(()),
            (schema, body) => Err(format!("{schema:?} and {body:?}")),
        }
    }

    /// The statuses, with their bodies' kind, that an operation can fail with.
    pub(crate) fn failures(&self, method: &str, path: &str) -> Vec<u16> {
        let responses = self.operation(method, path).unwrap()["responses"]
            .as_object()
            .unwrap();
        let mut failures: Vec<u16> = responses
            .keys()
            .map(|status| status.parse().unwrap_or(500))
            .filter(|status| *status >= 400)
            .collect();
        failures.dedup();
        failures
    }

    fn operation(&self, method: &str, path: &str) -> Result<&Value, String> {
        let paths = self.0["paths"].as_object().unwrap();
        let wanted: Vec<_> = path.split('/').collect();
        let (_, item) = paths
            .iter()
            .find(|(template, _)| {
                let parts: Vec<_> = template.split('/').collect();
                parts.len() == wanted.len()
                    && parts
                        .iter()
                        .zip(&wanted)
                        .all(|(part, word)| part.starts_with('{') || part == word)
            })
            .ok_or_else(|| format!("{path} is not in the document"))?;
        item.get(method.to_ascii_lowercase())
            .ok_or_else(|| format!("{method} {path} is not in the document"))
    }

    fn check(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        if let Some(name) = schema.get("$ref") {
            let name = name.as_str().unwrap().trim_start_matches("#/definitions/");
            return self.check(&self.0["definitions"][name], value, at);
        }
        if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
            && !allowed.contains(value)
        {
            return Err(format!("{at}: {value} is not one of {allowed:?}"));
        }
        match schema["type"].as_str().unwrap_or("object") {
            "object" => {
                let fields = value
                    .as_object()
                    .ok_or_else(|| format!("{at} is no object"))?;
                let known = schema.get("properties").and_then(Value::as_object);
                for name in schema["required"].as_array().into_iter().flatten() {
                    if !fields.contains_key(name.as_str().unwrap()) {
                        return Err(format!("{at} has no {name}"));
                    }
                }
                for (name, field) in fields {
                    // Firecracker refuses what it does not know.
                    let schema = known
                        .and_then(|known| known.get(name))
                        .ok_or_else(|| format!("{at} has the unknown field {name}"))?;
                    self.check(schema, field, &format!("{at}.{name}"))?;
                }
                Ok(())
            }
            "integer" => {
                let number = value
                    .as_i64()
                    .ok_or_else(|| format!("{at} is no whole number"))?;
                let bound = |name: &str| schema.get(name).and_then(Value::as_i64);
                if bound("minimum").is_some_and(|least| number < least)
                    || bound("maximum").is_some_and(|most| number > most)
                {
                    return Err(format!("{at}: {number} is out of bounds"));
                }
                Ok(())
            }
            "boolean" if value.is_boolean() => Ok(()),
            "string" if value.is_string() => Ok(()),
            "array" if value.is_array() => {
                for item in value.as_array().unwrap() {
                    self.check(&schema["items"], item, at)?;
                }
                Ok(())
            }
            other => Err(format!("{at} is not of type {other}: {value}")),
        }
    }
}

/// The value that begins with `first`. The document has no anchors.
fn value<'input>(first: Event<'input>, rest: &mut impl Iterator<Item = Event<'input>>) -> Value {
    match first {
        Event::Scalar(text, style, ..) => scalar(&text, style),
        Event::SequenceStart(..) => {
            let mut items = Vec::new();
            loop {
                match rest.next().unwrap() {
                    Event::SequenceEnd => return Value::Array(items),
                    first => items.push(value(first, rest)),
                }
            }
        }
        Event::MappingStart(..) => {
            let mut fields = BTreeMap::new();
            loop {
                let key = match rest.next().unwrap() {
                    Event::MappingEnd => return Value::Object(Map::from_iter(fields)),
                    Event::Scalar(text, ..) => text.into_owned(),
                    other => panic!("a key is {other:?}"),
                };
                let first = rest.next().unwrap();
                fields.insert(key, value(first, rest));
            }
        }
        other => panic!("{other:?}"),
    }
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::from(text);
    }
    match text {
        "true" => Value::from(true),
        "false" => Value::from(false),
        _ => text
            .parse::<i64>()
            .map_or_else(|_| Value::from(text), Value::from),
    }
}
