//! `docs/protocol/v1.schema.json`, written from the types.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Map, Value, json};

use crate::{
    copy::CopyEnd,
    exec::ExitReport,
    shell::LineReport,
    supervisor::{Event, Request, Response, SUPERVISOR_PROTOCOL, WorkloadResult},
    time::Timestamp,
};

const PATH: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/protocol/v1.schema.json"
);

impl JsonSchema for Timestamp {
    fn schema_name() -> Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A time in UTC, as RFC 3339 writes it, with milliseconds.",
            "type": "string",
            "format": "date-time",
        })
    }
}

/// The whole document: one definition for each type, and which of them are whole messages.
fn document() -> String {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let messages = [
        ("request", generator.subschema_for::<Request>()),
        ("response", generator.subschema_for::<Response>()),
        ("event", generator.subschema_for::<Event>()),
        ("exit of a process", generator.subschema_for::<ExitReport>()),
        ("exit of a line", generator.subschema_for::<LineReport>()),
        ("exit of a copy", generator.subschema_for::<CopyEnd>()),
        ("result.json", generator.subschema_for::<WorkloadResult>()),
    ]
    .map(|(title, schema)| json!({ "title": title, "$ref": schema.get("$ref") }));
    let mut definitions: Map<String, Value> = generator.take_definitions(true);
    definitions.values_mut().for_each(plain);
    let document = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": format!("urn:microagent:supervisor-protocol:{SUPERVISOR_PROTOCOL}"),
        "title": format!("microagent's supervisor protocol, version {SUPERVISOR_PROTOCOL}"),
        "anyOf": messages,
        "$defs": definitions,
    });
    let mut text = serde_json::to_string_pretty(&document).unwrap();
    text.push('\n');
    text
}

/// Makes the links of doc comments plain text: `[`x`](y)` and `[`x`]` become `` `x` ``.
fn plain(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match value {
                    Value::String(text) if key == "description" => *text = without_links(text),
                    other => plain(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(plain),
        _ => {}
    }
}

fn without_links(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once("[`") {
        let Some((name, after)) = link.split_once("`]") else {
            break;
        };
        out.push_str(before);
        out.push('`');
        out.push_str(name.trim_start_matches("crate::"));
        out.push('`');
        rest = match after
            .strip_prefix('(')
            .and_then(|target| target.split_once(')'))
        {
            Some((_, after)) => after,
            None => after,
        };
    }
    out.push_str(rest);
    out.replace('\n', " ")
}

#[test]
fn the_schema_is_fresh() {
    let fresh = document();
    if std::env::var_os("MICROAGENT_WRITE_DOCS").is_some() {
        std::fs::create_dir_all(std::path::Path::new(PATH).parent().unwrap()).unwrap();
        std::fs::write(PATH, &fresh).unwrap();
    }
    let kept = std::fs::read_to_string(PATH).unwrap_or_default();
    assert!(
        kept == fresh,
        "docs/protocol/v1.schema.json is stale: if the change keeps the protocol's promises \
         (docs/protocol.md), write it again: MICROAGENT_WRITE_DOCS=1 cargo test -p microagent-protocol schema"
    );
}

#[test]
fn links_become_plain() {
    assert_eq!(
        without_links("See [`Command::Exec`] and [`x`](crate::y), a [b]\nc."),
        "See `Command::Exec` and `x`, a [b] c."
    );
}
